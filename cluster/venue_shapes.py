"""Between Coinbase's JSON and our nouns: what is missing, not finite or not documented becomes ``VenueGarbage``."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

import numpy as np

from cluster.venue_endpoint import VenueGarbage, VenueNotFound, VenueRejected, VenueUnknown, redacted
from strategies.model import (
    NS_PER_S,
    Bars,
    Fill,
    Granularity,
    Order,
    OrderStatus,
    OrderType,
    Product,
    Side,
    TimeInForce,
)

_CLIENT_ORDER_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Quote:
    """Best bid and ask of a product; sizes in base units."""

    product_id: str
    bid: Decimal
    bid_size: Decimal
    ask: Decimal
    ask_size: Decimal
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Balance:
    """A currency's balance at the venue; ``hold`` is claimed by open orders."""

    currency: str
    available: Decimal
    hold: Decimal
    uuid: str


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """An order as the venue sees it. ``average_price`` is 0 while nothing is filled.

    What was asked for (``type`` and below) is None where the venue's configuration is one the desk does not send;
    ``quantity`` also where a market order names money instead. ``raw_status`` is the venue's own word.
    """

    venue_order_id: str
    client_order_id: str
    product_id: str
    side: Side
    status: OrderStatus
    filled_quantity: Decimal
    average_price: Decimal
    total_fees: Decimal
    created_ns: int
    reject_reason: str
    type: OrderType | None = None
    time_in_force: TimeInForce | None = None
    quantity: Decimal | None = None
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    post_only: bool = False
    end_ns: int | None = None
    raw_status: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """What the venue says an order would come to, without placing it; amounts it does not know are 0.

    ``quantity`` in base units, ``notional`` (fees included) and ``fee`` in quote currency.
    """

    quantity: Decimal
    notional: Decimal
    fee: Decimal
    best_bid: Decimal
    best_ask: Decimal
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Portfolio:
    """A portfolio of the user; a key belongs to exactly one."""

    uuid: str
    name: str
    type: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class FeeTier:
    """What orders cost now: rates as fractions of the notional, ``volume`` of the last 30 days in USD."""

    name: str
    maker_rate: Decimal
    taker_rate: Decimal
    volume: Decimal


@dataclass(frozen=True, slots=True)
class KeyPermissions:
    """What the API key may do, and where."""

    can_view: bool
    can_trade: bool
    can_transfer: bool
    portfolio_uuid: str
    portfolio_type: str


@dataclass(frozen=True, slots=True)
class BookSnapshot:
    """The best levels of a product, (price, size in base units), best first; a side may be empty."""

    product_id: str
    bids: tuple[tuple[Decimal, Decimal], ...]
    asks: tuple[tuple[Decimal, Decimal], ...]
    ts_ns: int


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list, newest first; ``cursor`` asks for the next one and is empty on the last."""

    items: tuple[T, ...]
    cursor: str


def plain(value: Any) -> Any:
    """The SDK's response objects as plain dicts and lists, however deep."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def read_product(item: Json) -> Product:
    try:
        return Product(
            product_id=text_of(item, "product_id"),
            base_currency=text_of(item, "base_currency_id"),
            quote_currency=text_of(item, "quote_currency_id"),
            base_increment=decimal_of(item, "base_increment"),
            # What the reference calls the step of prices; its quote_increment is that of amounts of money.
            quote_increment=decimal_of(item, "price_increment" if item.get("price_increment") else "quote_increment"),
            base_min_size=decimal_of(item, "base_min_size"),
            base_max_size=decimal_of(item, "base_max_size"),
            quote_min_size=decimal_of(item, "quote_min_size"),
            quote_max_size=decimal_of(item, "quote_max_size"),
            status=text_of(item, "status"),
            **{flag: flag_of(item, flag) for flag in _PRODUCT_FLAGS},
        )
    except VenueGarbage:
        raise
    except ValueError as error:
        raise VenueGarbage(f"product: {error}") from None


_PRODUCT_FLAGS: Final = (
    "is_disabled",
    "trading_disabled",
    "cancel_only",
    "limit_only",
    "post_only",
    "auction_mode",
    "view_only",
)


def read_quote(item: Json) -> Quote:
    bids, asks = list_of(item, "bids"), list_of(item, "asks")
    name = text_of(item, "product_id")
    if not bids or not asks:
        raise VenueGarbage(f"best_bid_ask of {name}: a side is empty")
    return Quote(
        name,
        positive_of(bids[0], "price"),
        decimal_of(bids[0], "size"),
        positive_of(asks[0], "price"),
        decimal_of(asks[0], "size"),
        time_ns_of(text_of(item, "time"), "time"),
    )


def order_configuration(order: Order) -> Json:
    """Coinbase's ``order_configuration``; raises ``VenueRejected`` (nothing is sent) where the order makes no sense."""
    if not _CLIENT_ORDER_ID.fullmatch(order.client_order_id):
        # The SDK would replace an empty id by a random one, and a retry would be a second order.
        raise VenueRejected(_INVALID, "client_order_id: expected 1 to 128 of letters, digits, '_', '-', '.', ':'")
    name = _CONFIGURATION_NAMES.get((order.type, order.time_in_force))
    if name is None:
        raise VenueRejected(_INVALID, f"time_in_force: a {order.type} order is never {order.time_in_force}")
    _check_fields(order)
    fields: Json = {"base_size": sent_decimal(order.quantity, "quantity")}
    if order.limit_price is not None:
        fields["limit_price"] = sent_decimal(order.limit_price, "limit_price")
    if order.stop_price is not None:
        fields |= _stop_fields(order, order.stop_price)
    if order.end_ns is not None:
        fields["end_time"] = rfc3339(order.end_ns)
    if order.type is OrderType.LIMIT and order.time_in_force in _RESTING:
        fields["post_only"] = order.post_only
    return {name: fields}


# ``market_market_fok`` is left out on purpose: Coinbase refuses it on spot.
_CONFIGURATION_NAMES: Final = {
    (OrderType.MARKET, TimeInForce.IOC): "market_market_ioc",
    (OrderType.LIMIT, TimeInForce.IOC): "sor_limit_ioc",
    (OrderType.LIMIT, TimeInForce.GTC): "limit_limit_gtc",
    (OrderType.LIMIT, TimeInForce.GTD): "limit_limit_gtd",
    (OrderType.LIMIT, TimeInForce.FOK): "limit_limit_fok",
    (OrderType.STOP_LIMIT, TimeInForce.GTC): "stop_limit_stop_limit_gtc",
    (OrderType.STOP_LIMIT, TimeInForce.GTD): "stop_limit_stop_limit_gtd",
    (OrderType.BRACKET, TimeInForce.GTC): "trigger_bracket_gtc",
    (OrderType.BRACKET, TimeInForce.GTD): "trigger_bracket_gtd",
}
_CONFIGURATIONS: Final = {name: key for key, name in _CONFIGURATION_NAMES.items()}
_RESTING: Final = frozenset({TimeInForce.GTC, TimeInForce.GTD})
_STOP_DIRECTIONS: Final = {Side.BUY: "STOP_DIRECTION_STOP_UP", Side.SELL: "STOP_DIRECTION_STOP_DOWN"}
_INVALID: Final = "INVALID_ORDER"
_YEAR_10000_NS: Final = 253_402_300_800 * NS_PER_S


def _check_fields(order: Order) -> None:
    """Every price is there where its type needs it, and nowhere else; raises ``VenueRejected``."""
    needs = {
        "limit_price": (order.limit_price is not None, order.type is not OrderType.MARKET),
        "stop_price": (order.stop_price is not None, order.type in {OrderType.STOP_LIMIT, OrderType.BRACKET}),
        "end_ns": (order.end_ns is not None, order.time_in_force is TimeInForce.GTD),
    }
    for field, (given, needed) in needs.items():
        if given is not needed:
            kind = f"{order.type} {order.time_in_force} order"
            raise VenueRejected(_INVALID, f"{field}: a {kind} {'needs one' if needed else 'has none'}")
    if order.end_ns is not None and not 0 < order.end_ns < _YEAR_10000_NS:
        raise VenueRejected(_INVALID, f"end_ns: expected nanoseconds since 1970, was {order.end_ns}")
    if order.post_only and (order.type is not OrderType.LIMIT or order.time_in_force not in _RESTING):
        raise VenueRejected(_INVALID, "post_only: only a LIMIT order that rests (GTC, GTD)")


def _stop_fields(order: Order, stop_price: Decimal) -> Json:
    stop = sent_decimal(stop_price, "stop_price")
    if order.type is OrderType.STOP_LIMIT:
        return {"stop_price": stop, "stop_direction": _STOP_DIRECTIONS[order.side]}
    limit = order.limit_price or Decimal(0)
    if (order.side is Side.SELL and limit <= stop_price) or (order.side is Side.BUY and limit >= stop_price):
        raise VenueRejected(_INVALID, f"stop_price: on the wrong side of limit_price {limit} for a BRACKET, was {stop}")
    return {"stop_trigger_price": stop}


def sent_decimal(value: Decimal, name: str) -> str:
    """A positive amount as the venue takes it: no exponent, no zeros at the end; raises ``VenueRejected``."""
    if not value.is_finite() or value <= 0 or not -20 < value.adjusted() < 20:
        raise VenueRejected(_INVALID, f"{name}: expected a finite number above 0, was {value}")
    # Not normalize(): it would round to the context's 28 digits.
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def read_accepted(answer: Json, client_order_id: str) -> str:
    """The venue's id of an order it accepted; anything but a clear yes to this very order is ``VenueUnknown``."""
    accepted = answer.get("success_response")
    fields: Json = accepted if isinstance(accepted, dict) else {}
    venue_order_id = fields.get("order_id")
    if answer.get("success") is not True or not isinstance(venue_order_id, str) or not venue_order_id:
        raise VenueUnknown("create_order: the answer says neither yes nor no")
    if fields.get("client_order_id", client_order_id) != client_order_id:
        raise VenueUnknown("create_order: the answer is about another order")
    return venue_order_id


def read_rejection(answer: Json) -> VenueRejected:
    """The most telling of the codes Coinbase spreads over an answer."""
    error = answer.get("error_response")
    fields: Json = error if isinstance(error, dict) else {}
    candidates = [fields.get(name) for name in ("error", "new_order_failure_reason", "preview_failure_reason")]
    telling = [str(code) for code in [*candidates, answer.get("failure_reason")] if code]
    code = next((c for c in telling if not c.startswith("UNKNOWN_") or c == "UNKNOWN_PRODUCT_ID"), None)
    message = fields.get("message") or fields.get("error_details") or ""
    return VenueRejected(redacted(code or "UNKNOWN_FAILURE_REASON")[:80], redacted(str(message))[:200])


def read_edit_refusal(answer: Json) -> VenueRejected | None:
    """None where the venue took the edit; anything but a clear yes or no is ``VenueUnknown``."""
    success = answer.get("success")
    if success is True:
        return None
    if success is not False:
        raise VenueUnknown("edit: the answer says neither yes nor no")
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], dict) else {}
    telling = [str(first.get(name)) for name in ("edit_failure_reason", "preview_failure_reason") if first.get(name)]
    code = next((each for each in telling if not each.startswith("UNKNOWN_")), None)
    return VenueRejected(redacted(code or "UNKNOWN_EDIT_ORDER_FAILURE_REASON")[:80], "")


def read_preview(answer: Json) -> Preview:
    """A preview; where the venue finds errors, amounts may be absent."""
    errors, warnings = _words_of(answer, "errs"), _words_of(answer, "warning")
    names = ("base_size", "order_total", "commission_total", "best_bid", "best_ask")
    # The reference calls the size a string and gives a JSON number as its example.
    given = answer | ({"base_size": str(answer["base_size"])} if _is_number(answer.get("base_size")) else {})
    amounts = [Decimal(0) if errors and given.get(name) is None else amount_of(given, name) for name in names]
    quantity, notional, fee, best_bid, best_ask = amounts
    return Preview(quantity, notional, fee, best_bid, best_ask, errors, warnings)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _words_of(answer: Json, name: str) -> tuple[str, ...]:
    """Codes in a list that may be absent; the reference calls them strings, the SDK objects."""
    listed = answer.get(name)
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise VenueGarbage(f"{name}: expected a list, was {type(listed).__name__}")
    return tuple(redacted(str(each))[:200] for each in listed)


def read_portfolio(item: Json) -> Portfolio:
    return Portfolio(text_of(item, "uuid"), text_of(item, "name"), text_of(item, "type"), flag_of(item, "deleted"))


def read_fee_tier(answer: Json) -> FeeTier:
    tier = object_of(answer, "fee_tier")
    return FeeTier(
        name=text_of(tier, "pricing_tier"),
        maker_rate=decimal_of(tier, "maker_fee_rate", signed=True),
        taker_rate=decimal_of(tier, "taker_fee_rate", signed=True),
        volume=number_of(answer, "total_volume"),
    )


def read_key_permissions(answer: Json) -> KeyPermissions:
    return KeyPermissions(
        can_view=flag_of(answer, "can_view"),
        can_trade=flag_of(answer, "can_trade"),
        can_transfer=flag_of(answer, "can_transfer"),
        portfolio_uuid=str(answer.get("portfolio_uuid") or ""),
        portfolio_type=str(answer.get("portfolio_type") or ""),
    )


def read_book(item: Json, product_id: str) -> BookSnapshot:
    """A book whose sides are in order; another product's is garbage."""
    same_product(text_of(item, "product_id"), product_id)
    bids, asks = (_levels(item, side, product_id) for side in ("bids", "asks"))
    if any(far[0] >= near[0] for near, far in pairwise(bids)) or any(far[0] <= near[0] for near, far in pairwise(asks)):
        raise VenueGarbage(f"product_book of {product_id}: levels are not in order")
    return BookSnapshot(product_id, bids, asks, time_ns_of(text_of(item, "time"), "time"))


def _levels(item: Json, side: str, product_id: str) -> tuple[tuple[Decimal, Decimal], ...]:
    try:
        return tuple((positive_of(level, "price"), decimal_of(level, "size")) for level in list_of(item, side))
    except VenueGarbage as error:
        raise VenueGarbage(f"product_book of {product_id}: {error}") from None


def same_product(answered: str, asked: str) -> None:
    """Raise ``VenueGarbage`` for another product; Coinbase answers for BTC-USDC with its alias BTC-USD."""
    if answered not in {asked, asked.removesuffix("C") if asked.endswith("-USDC") else asked}:
        raise VenueGarbage(f"product_id: asked for {asked}, the answer is about {answered[:40]!r}")


def read_cancel_results(answer: Json) -> dict[str, bool | str]:
    try:
        results = list_of(answer, "results")
        return {
            text_of(item, "order_id"): True
            if required(item, "success") is True
            else str(item.get("failure_reason") or "?")
            for item in results
        }
    except VenueGarbage as error:
        raise VenueUnknown(f"cancel: {error}") from None


# Coinbase's order states, and ours. PENDING and QUEUED are accepted but not in the book; all that is OPEN may fill.
_STATUSES: Final = {
    "PENDING": OrderStatus.OPEN,
    "QUEUED": OrderStatus.OPEN,
    "CANCEL_QUEUED": OrderStatus.OPEN,
    "EDIT_QUEUED": OrderStatus.OPEN,
    "OPEN": OrderStatus.OPEN,
    "FILLED": OrderStatus.FILLED,
    "CANCELLED": OrderStatus.CANCELLED,
    "EXPIRED": OrderStatus.EXPIRED,
    "FAILED": OrderStatus.REJECTED,
    "UNKNOWN_ORDER_STATUS": OrderStatus.UNKNOWN,
}


def status_groups(statuses: Sequence[OrderStatus]) -> list[list[str]]:
    """The lists of statuses to ask Coinbase for, in order; OPEN is always alone."""
    wanted = {OrderStatus.OPEN if status is OrderStatus.PARTIALLY_FILLED else status for status in statuses}
    names = [name for name, status in _STATUSES.items() if status in wanted]
    queued = [name for name in names if _STATUSES[name] is OrderStatus.OPEN and name != "OPEN"]
    ended = [name for name in names if _STATUSES[name] is not OrderStatus.OPEN]
    return [group for group in (queued, ["OPEN"] if "OPEN" in names else [], ended) if group]


def read_status(name: str, filled: Decimal) -> OrderStatus:
    """Our status for Coinbase's; an open order with fills is PARTIALLY_FILLED."""
    status = _STATUSES.get(name)
    if status is None:
        raise VenueGarbage(f"status: expected one of Coinbase's, was {name[:40]!r}")
    return OrderStatus.PARTIALLY_FILLED if status is OrderStatus.OPEN and filled > 0 else status


def read_order(item: Json) -> VenueOrder:
    name = text_of(item, "status")
    filled = amount_of(item, "filled_size")
    reason = str(item.get("reject_reason") or "")
    return VenueOrder(
        venue_order_id=text_of(item, "order_id"),
        client_order_id=text_of(item, "client_order_id"),
        product_id=text_of(item, "product_id"),
        side=read_side(item),
        status=read_status(name, filled),
        filled_quantity=filled,
        average_price=amount_of(item, "average_filled_price"),
        total_fees=amount_of(item, "total_fees", signed=True),
        created_ns=time_ns_of(text_of(item, "created_time"), "created_time"),
        reject_reason="" if reason in {"", "REJECT_REASON_UNSPECIFIED"} else reason,
        raw_status=name,
        **_asked(item.get("order_configuration"), read_side(item)),
    )


def _asked(configuration: Any, side: Side) -> Json:
    """What an order asked for, as fields of ``VenueOrder``; empty where the desk never sends such an order."""
    if configuration is None:
        return {}
    if not isinstance(configuration, dict):
        raise VenueGarbage(f"order_configuration: expected an object, was {type(configuration).__name__}")
    # The SDK's response classes list every configuration, the absent ones as None.
    given = [(name, fields) for name, fields in configuration.items() if fields is not None]
    if len(given) != 1 or given[0][0] not in _CONFIGURATIONS or not isinstance(given[0][1], dict):
        return {}
    name, fields = given[0]
    kind, time_in_force = _CONFIGURATIONS[name]
    if kind is OrderType.STOP_LIMIT and fields.get("stop_direction") != _STOP_DIRECTIONS[side]:
        return {}
    end = fields.get("end_time") if time_in_force is TimeInForce.GTD else None
    return {
        "type": kind,
        "time_in_force": time_in_force,
        "quantity": _optional_positive(fields, "base_size"),
        "limit_price": _optional_positive(fields, "limit_price"),
        "stop_price": _optional_positive(fields, "stop_trigger_price" if kind is OrderType.BRACKET else "stop_price"),
        "post_only": fields.get("post_only") is True,
        "end_ns": time_ns_of(str(end), "end_time") if end else None,
    }


def _optional_positive(fields: Json, name: str) -> Decimal | None:
    return None if fields.get(name) in (None, "") else positive_of(fields, name)


def read_fill(item: Json, client_order_id: str) -> Fill:
    """One fill. ``size`` is in base units whatever ``size_in_quote`` says (seen in public records; not verified)."""
    return Fill(
        trade_id=text_of(item, "trade_id"),
        client_order_id=client_order_id,
        venue_order_id=text_of(item, "order_id"),
        product_id=text_of(item, "product_id"),
        side=read_side(item),
        price=positive_of(item, "price"),
        quantity=positive_of(item, "size"),
        fee=decimal_of(item, "commission", signed=True),
        liquidity=text_of(item, "liquidity_indicator"),
        ts_ns=time_ns_of(text_of(item, "trade_time"), "trade_time"),
    )


def read_side(item: Json) -> Side:
    name = text_of(item, "side")
    if name not in set(Side):
        raise VenueGarbage(f"side: expected BUY or SELL, was {name[:40]!r}")
    return Side(name)


def amount_of(item: Json, name: str, signed: bool = False) -> Decimal:
    """As ``decimal_of``, for amounts that Coinbase leaves empty while there is none."""
    return Decimal(0) if required(item, name) == "" else decimal_of(item, name, signed)


def read_balance(item: Json) -> Balance:
    available, hold = object_of(item, "available_balance"), object_of(item, "hold")
    return Balance(
        text_of(item, "currency"), decimal_of(available, "value"), decimal_of(hold, "value"), text_of(item, "uuid")
    )


def read_candle(item: Json) -> tuple[int, float, float, float, float, float]:
    numbers = [float(decimal_of(item, name)) for name in ("open", "high", "low", "close", "volume")]
    opened, high, low, closed, volume = numbers
    start_s = integer_of(text_of(item, "start"), "start")
    if not 0 < low <= min(opened, closed) <= max(opened, closed) <= high < float("inf") or volume < 0:
        raise VenueGarbage(f"candle at {start_s}: low, open, close, high do not fit: {numbers}")
    return start_s, opened, high, low, closed, volume


def make_bars(
    product_id: str, granularity: Granularity, rows: list[tuple[int, float, float, float, float, float]]
) -> Bars:
    starts = np.array([row[0] for row in rows], dtype=np.int64)
    if (np.diff(starts) <= 0).any() or (starts % granularity.seconds != 0).any():
        raise VenueGarbage(f"candles of {product_id}: starts repeat or do not fit {granularity}")
    columns = [np.array([row[column] for row in rows], dtype=np.float64) for column in range(1, 6)]
    return Bars(product_id, granularity, starts * NS_PER_S, *columns)


def required(item: Json, name: str, of: str = "answer") -> Any:
    """A key that must be there: the SDK's own ``obj["x"]`` gives None where it is not."""
    value = item.get(name) if isinstance(item, dict) else None
    if value is None:
        raise VenueGarbage(f"{of}: no {name}")
    return value


def text_of(item: Json, name: str) -> str:
    value = required(item, name)
    if not isinstance(value, str):
        raise VenueGarbage(f"{name}: expected a string, was {type(value).__name__}")
    return value


def flag_of(item: Json, name: str) -> bool:
    value = required(item, name)
    if not isinstance(value, bool):
        raise VenueGarbage(f"{name}: expected true or false, was {type(value).__name__}")
    return value


def object_of(item: Json, name: str) -> Json:
    value = required(item, name)
    if not isinstance(value, dict):
        raise VenueGarbage(f"{name}: expected an object, was {type(value).__name__}")
    return value


def list_of(item: Json, name: str) -> list[Json]:
    value = required(item, name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise VenueGarbage(f"{name}: expected a list of objects, was {type(value).__name__}")
    return value


def decimal_of(item: Json, name: str, signed: bool = False) -> Decimal:
    """A finite decimal, given as a string; only fees may be negative (a maker's rebate)."""
    text = text_of(item, name)
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise VenueGarbage(f"{name}: expected a number, was {text[:40]!r}") from None
    if not value.is_finite() or (value < 0 and not signed) or not -40 < value.adjusted() < 40:
        raise VenueGarbage(f"{name}: expected a finite number{'' if signed else ' of 0 or more'}, was {text[:40]!r}")
    return value


def number_of(item: Json, name: str) -> Decimal:
    """A finite amount of 0 or more that the venue writes as a JSON number; a string is taken too."""
    value = required(item, name)
    if not _is_number(value) and not isinstance(value, str):
        raise VenueGarbage(f"{name}: expected a number, was {type(value).__name__}")
    return decimal_of({name: str(value)}, name)


def positive_of(item: Json, name: str) -> Decimal:
    value = decimal_of(item, name)
    if value == 0:
        raise VenueGarbage(f"{name}: expected more than 0")
    return value


def integer_of(value: Any, name: str) -> int:
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise VenueGarbage(f"{name}: expected a whole number, was {text[:40]!r}")
    return int(text)


def time_ns_of(text: str, name: str) -> int:
    """RFC 3339 to nanoseconds UTC; fractions beyond microseconds are cut off."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", text)
    if not match:
        raise VenueGarbage(f"{name}: expected an RFC 3339 time, was {text[:40]!r}")
    day, clock, fraction, zone = match.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        raise VenueGarbage(f"{name}: expected an RFC 3339 time, was {text[:40]!r}") from None
    nanoseconds = int((fraction or ".0")[1:].ljust(9, "0"))
    return int(moment.timestamp()) * NS_PER_S + nanoseconds


def rfc3339(ts_ns: int) -> str:
    seconds, rest_ns = divmod(ts_ns, NS_PER_S)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC).replace(microsecond=rest_ns // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def product_path(product_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", product_id):
        raise VenueNotFound(f"product {product_id[:40]!r}: not an id of the venue")
    return product_id


def order_path(venue_order_id: str) -> str:
    """An id that goes into a path as it is; anything else cannot be an order of the venue."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", venue_order_id):
        raise VenueNotFound(f"order {venue_order_id[:40]!r}: not an id of the venue")
    return venue_order_id
