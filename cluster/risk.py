"""The stateless half of pre-trade risk: read an order strictly, check it against its product. No state, no I/O.

The half with state is ``reserve`` in ledger_reserve.lua. Here nothing is decided finally: what these checks find goes
with the order into the ledger, which records the denial under the order's id.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Final, TypeVar

import msgspec

from strategies.model import (
    EXACT,
    LEDGER_INTEGER_MAX,
    NS_PER_S,
    Denial,
    IncrementError,
    Order,
    OrderType,
    Product,
    Side,
    TimeInForce,
    units,
)

ORDER_BYTES_MAX: Final = 16_384
ID_PATTERN: Final = r"^[A-Za-z0-9._:\-]{1,64}$"
NAME_PATTERN: Final = r"^[a-z0-9_]{1,32}$"
VERSION_PATTERN: Final = r"^[A-Za-z0-9._\-]{1,64}$"
PRODUCT_PATTERN: Final = r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$"
# No sign, no exponent, at most 15 + 12 digits: such a number is finite and exact in 28-digit decimal arithmetic.
DECIMAL_PATTERN: Final = r"^[0-9]{1,15}(\.[0-9]{1,12})?$"

_PPM_PER_PERCENT: Final = 10_000

_TIME_IN_FORCE: Final = {
    OrderType.MARKET: (TimeInForce.IOC,),
    OrderType.LIMIT: (TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK, TimeInForce.GTD),
    OrderType.STOP_LIMIT: (TimeInForce.GTC, TimeInForce.GTD),
    OrderType.BRACKET: (TimeInForce.GTC, TimeInForce.GTD),
}
_RESTING: Final = (TimeInForce.GTC, TimeInForce.GTD)
_STOPS: Final = (OrderType.STOP_LIMIT, OrderType.BRACKET)
# An end beyond it is a mistake, and its nanoseconds might not fit a clock.
_END_YEAR_MAX: Final = 2200
_BLOCKED_BY: Final = ("is_disabled", "trading_disabled", "cancel_only", "view_only", "auction_mode")


def _all_of(pattern: str) -> str:
    # msgspec searches with Python's re, where $ also matches before a line break at the end.
    return pattern.removesuffix("$") + r"\Z"


_Decimal = Annotated[
    str, msgspec.Meta(pattern=_all_of(DECIMAL_PATTERN), description="a positive decimal number, as text")
]
_EndTime = Annotated[
    str,
    msgspec.Meta(
        pattern=_all_of(
            r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.]0{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
        ),
        description="RFC 3339 with its zone, in whole seconds: when a GTD order expires",
    ),
]
_Name = Annotated[str, msgspec.Meta(pattern=_all_of(NAME_PATTERN))]


class OrderRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/orders``."""

    client_order_id: Annotated[str, msgspec.Meta(pattern=_all_of(ID_PATTERN))]
    account: _Name
    strategy: _Name
    product_id: Annotated[str, msgspec.Meta(pattern=_all_of(PRODUCT_PATTERN))]
    side: Side
    type: OrderType
    quantity: _Decimal
    limit_price: _Decimal | msgspec.UnsetType | None = msgspec.UNSET
    time_in_force: TimeInForce | msgspec.UnsetType | None = msgspec.UNSET
    post_only: bool | msgspec.UnsetType = msgspec.UNSET
    reduce_only: bool | msgspec.UnsetType = msgspec.UNSET
    strategy_version: (
        Annotated[str, msgspec.Meta(pattern=_all_of(VERSION_PATTERN), description="of the code that decided")]
        | msgspec.UnsetType
        | None
    ) = msgspec.UNSET
    stop_price: _Decimal | msgspec.UnsetType | None = msgspec.UNSET
    end_time: _EndTime | msgspec.UnsetType | None = msgspec.UNSET


class AmendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/orders/{client_order_id}/amend``: what the order is to be from now on, in whole."""

    quantity: _Decimal
    limit_price: _Decimal


class InvalidOrder(ValueError):
    """The order cannot be read as one; ``field`` is a JSON path such as ``$.quantity``."""

    def __init__(self, field: str, rule: str) -> None:
        """Keep the field and the rule for a machine-readable answer."""
        super().__init__(f"{field}: {rule}")
        self.field = field
        self.rule = rule


_Body = TypeVar("_Body")
_decoder = msgspec.json.Decoder(OrderRequest)
_amend_decoder = msgspec.json.Decoder(AmendRequest)
_MEMBERS_MAX: Final = len(OrderRequest.__struct_fields__)
_may_be_left_out = attrgetter(*OrderRequest.__struct_fields__[-len(OrderRequest.__struct_defaults__) :])


def read_order(body: bytes) -> Order:
    """The order in a JSON body; raises ``InvalidOrder`` naming the field and the rule."""
    request = _decoded(_decoder, body)
    # No valid key or value holds a comma, so commas count the members: one more than there are fields is a repeat.
    if body.count(b",") >= _MEMBERS_MAX - _may_be_left_out(request).count(msgspec.UNSET):
        raise InvalidOrder(f"$.{_repeated(body)}", "named twice")
    return _order(request)


def read_amend(body: bytes) -> tuple[Decimal, Decimal]:
    """Quantity and limit price an order is to have; raises ``InvalidOrder`` naming the field and the rule."""
    request = _decoded(_amend_decoder, body)
    if body.count(b",") >= len(AmendRequest.__struct_fields__):
        raise InvalidOrder(f"$.{_repeated(body)}", "named twice")
    return _positive("$.quantity", request.quantity), _positive("$.limit_price", request.limit_price)


def check_order(order: Order, product: Product | None) -> list[Denial]:
    """Every rule of the product that ``order`` breaks; a product nobody knows is one."""
    scope = f"product|{order.product_id}"
    if product is None:
        return [Denial("UNKNOWN_PRODUCT", "the venue has no such product", scope, order.product_id)]
    return [*_status_denials(order, product, scope), *_size_denials(order, product, scope)]


def in_units(denial: Mapping[str, str], product: Product | None) -> dict[str, str]:
    """A denial or a warning in currency units and per cent instead of the ledger's integers; words stay words."""
    found, unit = dict(denial), denial["unit"]
    show: Callable[[int], Decimal]
    if unit == "micros":
        show, unit = units, product.quote_currency if product else "USD"
    elif unit == "ppm":
        show, unit = _percent, "%"
    elif unit == "lots" and product is not None:
        show, unit = product.quantity, product.base_currency
    elif unit == "ticks" and product is not None:
        show, unit = product.price, product.quote_currency
    else:
        return found
    shown = {name: f"{show(int(found[name])):f}" for name in ("value", "limit") if is_integer(found[name])}
    return found | shown | {"unit": unit}


def is_integer(text: str) -> bool:
    """Whether a figure of a denial is a whole number."""
    return text.removeprefix("-").isdecimal()


def _percent(ppm: int) -> Decimal:
    return Decimal(ppm) / _PPM_PER_PERCENT


def _decoded(decoder: msgspec.json.Decoder[_Body], body: bytes) -> _Body:
    if len(body) > ORDER_BYTES_MAX:
        raise InvalidOrder("$", f"at most {ORDER_BYTES_MAX} bytes, was {len(body)}")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidOrder("$", f"not JSON: {error}") from None


def _order(request: OrderRequest) -> Order:
    quantity = _positive("$.quantity", request.quantity)
    limit_price = _positive("$.limit_price", request.limit_price) if request.limit_price else None
    if request.type is not OrderType.MARKET and limit_price is None:
        raise InvalidOrder("$.limit_price", f"a {request.type} order needs one")
    if request.type is OrderType.MARKET and limit_price is not None:
        raise InvalidOrder("$.limit_price", "a MARKET order has none")
    stop_price = _stop_price(request, limit_price)
    allowed = _TIME_IN_FORCE[request.type]
    time_in_force = request.time_in_force or allowed[0]
    if time_in_force not in allowed:
        names = ", ".join(allowed)
        raise InvalidOrder("$.time_in_force", f"{time_in_force} does not go with {request.type}; allowed: {names}")
    post_only = request.post_only is True
    if post_only and (request.type is not OrderType.LIMIT or time_in_force not in _RESTING):
        raise InvalidOrder("$.post_only", "only a LIMIT order with GTC or GTD can be post-only")
    return Order(
        client_order_id=request.client_order_id,
        account=request.account,
        strategy=request.strategy,
        product_id=request.product_id,
        side=request.side,
        type=request.type,
        time_in_force=time_in_force,
        quantity=quantity,
        limit_price=limit_price,
        post_only=post_only,
        reduce_only=request.reduce_only is True,
        strategy_version=request.strategy_version or "",
        stop_price=stop_price,
        end_ns=_end_ns(request, time_in_force),
    )


def _stop_price(request: OrderRequest, limit_price: Decimal | None) -> Decimal | None:
    """The trigger, on the right side of the limit: the venue's rule, so that a triggered order can be executed."""
    if request.type not in _STOPS:
        if request.stop_price:
            raise InvalidOrder("$.stop_price", f"a {request.type} order has none")
        return None
    if not request.stop_price or limit_price is None:
        raise InvalidOrder("$.stop_price", f"a {request.type} order needs one")
    stop_price = _positive("$.stop_price", request.stop_price)
    if request.type is OrderType.BRACKET:
        # It leaves a position: the limit with a profit, the trigger with a loss.
        wrong, rule = stop_price <= limit_price, "must be above the limit_price of a BRACKET that buys"
        if request.side is Side.SELL:
            wrong, rule = stop_price >= limit_price, "must be below the limit_price of a BRACKET that sells"
    else:
        wrong, rule = stop_price > limit_price, "must not be above the limit_price of a STOP_LIMIT that buys"
        if request.side is Side.SELL:
            wrong, rule = stop_price < limit_price, "must not be below the limit_price of a STOP_LIMIT that sells"
    if wrong:
        raise InvalidOrder("$.stop_price", f"{rule}, was {stop_price}")
    return stop_price


def _end_ns(request: OrderRequest, time_in_force: TimeInForce) -> int | None:
    if time_in_force is not TimeInForce.GTD:
        if request.end_time:
            raise InvalidOrder("$.end_time", f"only a GTD order has one, not {time_in_force}")
        return None
    if not request.end_time:
        raise InvalidOrder("$.end_time", "a GTD order needs one")
    try:
        moment = dt.datetime.fromisoformat(request.end_time)
    except ValueError as error:
        raise InvalidOrder("$.end_time", f"not a time: {error}") from None
    if not 1970 < moment.year < _END_YEAR_MAX:
        raise InvalidOrder("$.end_time", f"expected a year before {_END_YEAR_MAX}, was {moment.year}")
    return int(moment.timestamp()) * NS_PER_S


def _repeated(body: bytes) -> str:
    names: list[str] = [name for name, _ in json.loads(body, object_pairs_hook=list)]
    return next((name for name in names if names.count(name) > 1), "")


def _positive(field: str, text: str) -> Decimal:
    value = Decimal(text)
    if value <= 0:
        raise InvalidOrder(field, f"must be above 0, was {text}")
    return value


def _status_denials(order: Order, product: Product, scope: str) -> list[Denial]:
    blocked = [name for name in _BLOCKED_BY if getattr(product, name)]
    if product.status != "online":
        blocked.insert(0, product.status)
    if product.limit_only and order.type is OrderType.MARKET:
        blocked.append("limit_only")
    if product.post_only and not order.post_only:
        blocked.append("post_only")
    return [
        Denial("PRODUCT_STATUS", "the venue does not take this order now", scope, name, "online") for name in blocked
    ]


def _size_denials(order: Order, product: Product, scope: str) -> list[Denial]:
    found = []
    if order.quantity < product.base_min_size:
        found.append(_sized("SIZE_BELOW_MIN", "quantity", scope, order.quantity, product.base_min_size, product))
    if order.quantity > product.base_max_size:
        found.append(_sized("SIZE_ABOVE_MAX", "quantity", scope, order.quantity, product.base_max_size, product))
    lots = ticks = None
    try:
        lots = product.lots(order.quantity)
    except IncrementError as error:
        increment = f"{product.base_increment:f}"
        found.append(Denial("SIZE_INCREMENT", str(error), scope, f"{order.quantity:f}", increment))
    try:
        ticks = None if order.limit_price is None else product.ticks(order.limit_price)
    except IncrementError as error:
        increment = f"{product.quote_increment:f}"
        found.append(Denial("PRICE_INCREMENT", str(error), scope, f"{order.limit_price:f}", increment))
    stop_ticks = None
    try:
        stop_ticks = None if order.stop_price is None else product.ticks(order.stop_price)
    except IncrementError:
        increment = f"{product.quote_increment:f}"
        message = f"stop_price: {order.stop_price} is not a multiple of {increment} for {product.product_id}"
        found.append(Denial("PRICE_INCREMENT", message, scope, f"{order.stop_price:f}", increment))
    most = max(lots or 0, ticks or 0, stop_ticks or 0)
    if most > LEDGER_INTEGER_MAX:
        message = "more increments than can be counted"
        found.append(Denial("VALUE_TOO_LARGE", message, scope, str(most), str(LEDGER_INTEGER_MAX), "increments"))
    elif lots is not None and order.limit_price is not None and ticks is not None:
        # What a market order is worth only the ledger can say, which knows the price.
        found += _notional_denials(EXACT.multiply(order.quantity, order.limit_price), product, scope)
    return found


def _notional_denials(notional: Decimal, product: Product, scope: str) -> list[Denial]:
    if notional < product.quote_min_size:
        return [_sized("SIZE_BELOW_MIN", "notional", scope, notional, product.quote_min_size, product)]
    if notional > product.quote_max_size:
        return [_sized("SIZE_ABOVE_MAX", "notional", scope, notional, product.quote_max_size, product)]
    return []


def _sized(code: str, what: str, scope: str, value: Decimal, limit: Decimal, product: Product) -> Denial:
    unit = product.base_currency if what == "quantity" else product.quote_currency
    return Denial(code, f"{what} the venue takes", scope, f"{value:f}", f"{limit:f}", unit)


_AT = re.compile(r" - at `(?P<path>[^`]+)`$")
_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<name>[^`]*)`")
_MISSING_FIELD = re.compile(r"missing required field `(?P<name>[^`]*)`")


def _invalid(text: str) -> InvalidOrder:
    at = _AT.search(text)
    path, rule = (at["path"], text[: at.start()]) if at else ("$", text)
    if named := _UNKNOWN_FIELD.search(rule) or _MISSING_FIELD.search(rule):
        path = f"{path}.{named['name']}"
    return InvalidOrder(path, rule)
