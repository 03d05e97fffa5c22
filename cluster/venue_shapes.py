"""Between Coinbase's JSON and our nouns: what is missing, not finite or not documented becomes ``VenueGarbage``."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Final

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
    """An order as the venue sees it. ``average_price`` is 0 while nothing is filled."""

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
            quote_increment=decimal_of(item, "quote_increment"),
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
    size = _sent_decimal(order.quantity, "quantity")
    if order.type is OrderType.MARKET:
        if order.time_in_force is not TimeInForce.IOC or order.limit_price is not None or order.post_only:
            raise VenueRejected(_INVALID, "a MARKET order is IOC, without limit_price and not post-only")
        return {"market_market_ioc": {"base_size": size}}
    if order.limit_price is None:
        raise VenueRejected(_INVALID, "limit_price: a LIMIT order needs one")
    if order.post_only and order.time_in_force is not TimeInForce.GTC:
        raise VenueRejected(_INVALID, "post_only: only with GTC")
    fields: Json = {"base_size": size, "limit_price": _sent_decimal(order.limit_price, "limit_price")}
    if order.time_in_force is TimeInForce.GTC:
        return {"limit_limit_gtc": fields | {"post_only": order.post_only}}
    return {"sor_limit_ioc" if order.time_in_force is TimeInForce.IOC else "limit_limit_fok": fields}


_INVALID: Final = "INVALID_ORDER"


def _sent_decimal(value: Decimal, name: str) -> str:
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


# Coinbase's order states, and ours. PENDING and QUEUED are accepted but not in the book; both may still fill.
_STATUSES: Final = {
    "PENDING": OrderStatus.OPEN,
    "QUEUED": OrderStatus.OPEN,
    "CANCEL_QUEUED": OrderStatus.OPEN,
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


def read_order(item: Json) -> VenueOrder:
    name = text_of(item, "status")
    status = _STATUSES.get(name)
    if status is None:
        raise VenueGarbage(f"status: expected one of Coinbase's, was {name[:40]!r}")
    filled = amount_of(item, "filled_size")
    if status is OrderStatus.OPEN and filled > 0:
        status = OrderStatus.PARTIALLY_FILLED
    reason = str(item.get("reject_reason") or "")
    return VenueOrder(
        venue_order_id=text_of(item, "order_id"),
        client_order_id=text_of(item, "client_order_id"),
        product_id=text_of(item, "product_id"),
        side=read_side(item),
        status=status,
        filled_quantity=filled,
        average_price=amount_of(item, "average_filled_price"),
        total_fees=amount_of(item, "total_fees", signed=True),
        created_ns=time_ns_of(text_of(item, "created_time"), "created_time"),
        reject_reason="" if reason in {"", "REJECT_REASON_UNSPECIFIED"} else reason,
    )


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
    value = required(item, name, "product")
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
