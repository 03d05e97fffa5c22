"""Orders as they arrive at the exchange simulator: Coinbase's ``order_configuration`` read into a ticket, or refused.

Codes are Coinbase's ``NewOrderFailureReason`` and ``PreviewFailureReason`` (Advanced Trade OpenAPI, create order).
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from cluster.exchange_history import MARKETS, Market
from strategies.model import Side

PRICE_TICKS_MAX: Final = 10**12
UNKNOWN_FAILURE: Final = "UNKNOWN_FAILURE_REASON"
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_AMOUNT: Final = re.compile(r"[0-9]{1,16}(\.[0-9]{1,16})?")


class Kind(StrEnum):
    """The order configurations that are simulated, by Coinbase's keys."""

    MARKET_IOC = "market_market_ioc"
    LIMIT_IOC = "sor_limit_ioc"
    LIMIT_GTC = "limit_limit_gtc"
    LIMIT_GTD = "limit_limit_gtd"
    LIMIT_FOK = "limit_limit_fok"
    STOP_GTC = "stop_limit_stop_limit_gtc"
    STOP_GTD = "stop_limit_stop_limit_gtd"
    BRACKET_GTC = "trigger_bracket_gtc"
    BRACKET_GTD = "trigger_bracket_gtd"

    @property
    def rests(self) -> bool:
        """Whether what is not filled at once stays at the exchange."""
        return self in _RESTING

    @property
    def stops(self) -> bool:
        """Whether it is a stop-limit order: unseen until its trigger is reached."""
        return self in {Kind.STOP_GTC, Kind.STOP_GTD}

    @property
    def brackets(self) -> bool:
        """Whether it is a bracket: a limit order that takes profit, with a trigger against the loss."""
        return self in {Kind.BRACKET_GTC, Kind.BRACKET_GTD}

    @property
    def expires(self) -> bool:
        """Whether it has an end time."""
        return self in {Kind.LIMIT_GTD, Kind.STOP_GTD, Kind.BRACKET_GTD}

    @property
    def amendable(self) -> bool:
        """Whether Coinbase edits it: what is good until cancelled."""
        return self.rests and not self.expires


_RESTING: Final = frozenset(
    {Kind.LIMIT_GTC, Kind.LIMIT_GTD, Kind.STOP_GTC, Kind.STOP_GTD, Kind.BRACKET_GTC, Kind.BRACKET_GTD}
)
_POST_ONLY: Final = frozenset({Kind.LIMIT_GTC, Kind.LIMIT_GTD})


class Refusal(Exception):
    """The exchange refuses an order: HTTP 200 with ``success: false``. ``preview`` is Coinbase's second code."""

    def __init__(self, code: str, message: str, preview: str = "UNKNOWN_PREVIEW_FAILURE_REASON") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.preview = preview


class EditRefusal(Exception):
    """The exchange refuses an amendment: HTTP 200 with ``success: false``. ``code`` is Coinbase's
    ``edit_failure_reason``, ``preview`` its ``preview_failure_reason``."""

    def __init__(self, code: str, message: str, preview: str = "UNKNOWN_PREVIEW_FAILURE_REASON") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.preview = preview


@dataclass(frozen=True, slots=True)
class Ticket:
    """An order the exchange understands. Exactly one of ``lots`` and ``quote_size`` is given; ``ticks`` is the limit.

    ``stop_ticks`` is the trigger of a stop or bracket order; ``rising`` says that it is reached from below.
    ``configuration`` is what the sender wrote (after an amendment: what would have been written), for the echo.
    """

    client_order_id: str
    product_id: str
    side: Side
    kind: Kind
    configuration: dict[str, Any]
    lots: int | None = None
    quote_size: Decimal | None = None
    ticks: int | None = None
    post_only: bool = False
    end_ns: int | None = None
    stop_ticks: int | None = None
    rising: bool = False


def read_ticket(body: dict[str, Any], now_ns: int) -> Ticket:
    """Read the body of POST /orders or /orders/preview (no client order id); raises ``Refusal``.

    The client order id was checked before.
    """
    market = MARKETS.get(str(body.get("product_id")))
    if market is None:
        raise Refusal("INVALID_PRODUCT_ID", "product_id: not known", "PREVIEW_INVALID_PRODUCT_ID")
    # A tuple, not a set: what was sent may be a list, which has no hash.
    if body.get("side") not in ("BUY", "SELL"):
        raise Refusal("INVALID_SIDE", "side: expected BUY or SELL", "PREVIEW_INVALID_SIDE")
    kind, fields = _configuration(body.get("order_configuration"))
    side = Side(body["side"])
    lots, quote_size = _size(market, side, kind, fields)
    ticks = None if kind is Kind.MARKET_IOC else limit_ticks(market, fields.get("limit_price"))
    stop_ticks, rising = _trigger(market, side, kind, fields)
    if ticks is not None and stop_ticks is not None:
        refuse_prices(side, kind, ticks, stop_ticks, rising)
    return Ticket(
        client_order_id=str(body.get("client_order_id", "")),
        product_id=market.product.product_id,
        side=side,
        kind=kind,
        configuration={kind.value: fields},
        lots=lots,
        quote_size=quote_size,
        ticks=ticks,
        post_only=_post_only(kind, fields),
        end_ns=_end_ns(fields.get("end_time"), now_ns) if kind.expires else None,
        stop_ticks=stop_ticks,
        rising=rising,
    )


def beyond(side: Side, stop_ticks: int) -> int:
    """The limit of a bracket once it is triggered: 5 % beyond the trigger, in whole ticks inside of that.

    Coinbase: "a stop limit order is automatically placed with a limit price 5% higher for BUYS and 5% lower for SELLS".
    """
    return stop_ticks * 105 // 100 if side is Side.BUY else max(1, -(-stop_ticks * 95 // 100))


def refuse_prices(side: Side, kind: Kind, ticks: int, stop_ticks: int, rising: bool) -> None:
    """Raise ``Refusal`` where limit and trigger contradict each other."""
    if kind.brackets and (ticks <= stop_ticks if side is Side.SELL else ticks >= stop_ticks):
        text = "limit_price: must lie on the profitable side of stop_trigger_price"
        raise Refusal("INVALID_BRACKET_PRICES", text, "PREVIEW_INVALID_BRACKET_PRICES")
    if kind.stops and side is Side.BUY and rising and ticks < stop_ticks:
        text = "limit_price: must be at or above stop_price"
        raise Refusal(UNKNOWN_FAILURE, text, "PREVIEW_STOP_PRICE_ABOVE_LIMIT_PRICE")
    if kind.stops and side is Side.SELL and not rising and ticks > stop_ticks:
        text = "limit_price: must be at or below stop_price"
        raise Refusal(UNKNOWN_FAILURE, text, "PREVIEW_STOP_PRICE_BELOW_LIMIT_PRICE")


def _configuration(given: Any) -> tuple[Kind, dict[str, Any]]:
    if isinstance(given, dict) and len(given) == 1:
        name, fields = next(iter(given.items()))
        if name in set(Kind) and isinstance(fields, dict):
            return Kind(name), fields
        if name == "market_market_fok":
            text = "market_market_fok: not supported for spot products"
            raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_FOK_ONLY_ALLOWED_ON_LIMIT_ORDERS")
    text = "order_configuration: expected one of " + ", ".join(Kind)
    raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_INVALID_ORDER_CONFIG")


def _size(market: Market, side: Side, kind: Kind, fields: dict[str, Any]) -> tuple[int | None, Decimal | None]:
    in_base, in_quote = fields.get("base_size"), fields.get("quote_size")
    if in_quote is None:
        return base_lots(market, in_base), None
    if in_base is not None or kind is not Kind.MARKET_IOC or side is not Side.BUY:
        text = "quote_size: only for a market order that buys, without base_size"
        raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_INVALID_ORDER_CONFIG")
    amount = _amount(in_quote)
    if amount is None or amount % market.product.quote_increment:
        text = f"quote_size: expected a multiple of {market.product.quote_increment}"
        raise Refusal("INVALID_SIZE_PRECISION", text, "PREVIEW_INVALID_QUOTE_SIZE_PRECISION")
    if amount < market.product.quote_min_size:
        raise Refusal(UNKNOWN_FAILURE, "quote_size: too small", "PREVIEW_INVALID_QUOTE_SIZE_TOO_SMALL")
    if amount > market.product.quote_max_size:
        raise Refusal(UNKNOWN_FAILURE, "quote_size: too large", "PREVIEW_INVALID_QUOTE_SIZE_TOO_LARGE")
    return None, amount


def base_lots(market: Market, given: Any) -> int:
    """A base size in lots; raises ``Refusal`` for a bad one."""
    product = market.product
    amount = _amount(given)
    if amount is None or amount % product.base_increment:
        text = f"base_size: expected a multiple of {product.base_increment:f}"
        raise Refusal("INVALID_SIZE_PRECISION", text, "PREVIEW_INVALID_SIZE_PRECISION")
    if amount < product.base_min_size:
        raise Refusal(UNKNOWN_FAILURE, "base_size: too small", "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL")
    if amount > product.base_max_size:
        raise Refusal(UNKNOWN_FAILURE, "base_size: too large", "PREVIEW_INVALID_BASE_SIZE_TOO_LARGE")
    return product.lots(amount)


def limit_ticks(market: Market, given: Any) -> int:
    """A limit price in ticks; raises ``Refusal`` for a bad one."""
    amount = _amount(given)
    if amount is None or amount % market.product.quote_increment:
        text = f"limit_price: expected a multiple of {market.product.quote_increment}"
        raise Refusal("INVALID_PRICE_PRECISION", text, "PREVIEW_INVALID_PRICE_PRECISION")
    ticks = market.product.ticks(amount)
    if not 0 < ticks <= PRICE_TICKS_MAX:
        raise Refusal("INVALID_LIMIT_PRICE", "limit_price: out of range", "PREVIEW_INVALID_LIMIT_PRICE")
    return ticks


def stop_ticks_of(market: Market, kind: Kind, given: Any) -> int:
    """A trigger price in ticks; raises ``Refusal`` for a bad one."""
    name = "stop_trigger_price" if kind.brackets else "stop_price"
    amount = _amount(given)
    if amount is None or amount % market.product.quote_increment:
        text = f"{name}: expected a multiple of {market.product.quote_increment}"
        raise Refusal("INVALID_PRICE_PRECISION", text, "PREVIEW_INVALID_STOP_PRICE_PRECISION")
    ticks = market.product.ticks(amount)
    if not 0 < ticks <= PRICE_TICKS_MAX // 2:
        code = "INVALID_BRACKET_STOP_TRIGGER_PRICE" if kind.brackets else UNKNOWN_FAILURE
        preview = "PREVIEW_INVALID_BRACKET_STOP_TRIGGER_PRICE" if kind.brackets else "PREVIEW_INVALID_STOP_PRICE"
        raise Refusal(code, f"{name}: out of range", preview)
    return ticks


def _trigger(market: Market, side: Side, kind: Kind, fields: dict[str, Any]) -> tuple[int | None, bool]:
    """The trigger in ticks, and whether it is reached from below."""
    if kind.brackets:
        return stop_ticks_of(market, kind, fields.get("stop_trigger_price")), side is Side.BUY
    if not kind.stops:
        return None, False
    direction = fields.get("stop_direction")
    if direction not in ("STOP_DIRECTION_STOP_UP", "STOP_DIRECTION_STOP_DOWN"):
        text = "stop_direction: expected STOP_DIRECTION_STOP_UP or STOP_DIRECTION_STOP_DOWN"
        raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_INVALID_ORDER_CONFIG")
    return stop_ticks_of(market, kind, fields.get("stop_price")), direction == "STOP_DIRECTION_STOP_UP"


def _post_only(kind: Kind, fields: dict[str, Any]) -> bool:
    given = fields.get("post_only", False)
    if not isinstance(given, bool) or (given and kind not in _POST_ONLY):
        text = "post_only: expected true or false, and only on a limit order that can rest"
        raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_INVALID_ORDER_CONFIG")
    return given


def _end_ns(given: Any, now_ns: int) -> int:
    try:
        moment = dt.datetime.fromisoformat(given) if isinstance(given, str) else None
    except ValueError:
        moment = None
    end_ns = None if moment is None or moment.tzinfo is None else (moment - _EPOCH) // _MICROSECOND * 1_000
    if end_ns is None or end_ns <= now_ns:
        raise Refusal(
            "INVALID_REQUEST", "end_time: expected an RFC 3339 time in the future", "PREVIEW_INVALID_END_TIME"
        )
    return end_ns


def _amount(given: Any) -> Decimal | None:
    """A decimal string without sign or exponent; anything else (a JSON number too) is None."""
    return Decimal(given) if isinstance(given, str) and _AMOUNT.fullmatch(given) else None
