"""What only a test or the simulator's user does to the exchange: prices, faults, the clock, fills, deposits, flags.

All under ``/sim/`` and opened by the token in the state folder's ``sim_token``, never by an API key.
"""

from __future__ import annotations

import re
import uuid
from decimal import Decimal
from typing import Any, Final, Protocol

from cluster import exchange_shapes as shapes
from cluster.exchange_faults import FaultError, Faults
from cluster.exchange_history import MARKETS
from cluster.exchange_limits import RateLimits
from cluster.exchange_orders import SimOrder
from cluster.exchange_records import FLAGS
from cluster.exchange_request import Request, RequestError, bad, decimal_of, known
from cluster.exchange_ticket import PRICE_TICKS_MAX, Refusal
from cluster.exchange_trading import create_order
from strategies.model import IncrementError

_OFFSET_MS_MAX: Final = 10 * 365 * 86_400_000
_RATE_MAX: Final = 1_000_000
_STATUSES: Final = frozenset({"", "PENDING", "OPEN", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED", "UNKNOWN_ORDER_STATUS"})


class Controlled(Protocol):
    """The parts of the HTTP face that are controlled."""

    faults: Faults
    limits: RateLimits

    def book_changed(self, product_id: str) -> None:
        """Tell who listens that a product's book was changed from outside."""

    def set_clock(self, offset_ms: int) -> None:
        """Let the venue's clock differ from this machine's."""

    def status(self) -> shapes.Json:
        """Facts about the process: clock, connections, counts."""


def push_price(face: Controlled, request: Request) -> shapes.Json:
    """``{"product_id": …, "price": "61000.00"}`` pins a mid until it is pushed again or, with null, let go.

    Candles stay those of the path; only book, quotes and matching follow the pin. Not kept over a restart.
    """
    name = known(request.body.get("product_id"))
    given = request.body.get("price")
    ticks = None if given is None else _ticks(name, given)
    fills = request.exchange.push_price(name, ticks, request.now_ns)
    face.book_changed(name)
    mid = request.exchange.mid_ticks(name, request.now_ns)
    return {"product_id": name, "price": shapes.plain(MARKETS[name].product.price(mid)), "fills": fills}


def set_faults(face: Controlled, request: Request) -> shapes.Json:
    """``{"rules": […]}`` takes the place of all rules; an empty list ends them. See ``exchange_faults``."""
    if set(request.body) != {"rules"}:
        raise bad("rules: expected an object with nothing else")
    try:
        face.faults.replace(request.body["rules"])
    except FaultError as error:
        raise bad(str(error)) from None
    return face.faults.view()


def get_faults(face: Controlled, request: Request) -> shapes.Json:
    """The rules with how often each matched and struck."""
    return face.faults.view()


def set_clock(face: Controlled, request: Request) -> shapes.Json:
    """``{"offset_ms": -30000}`` sets the venue's clock beside this machine's: its time, its stamps, its token check."""
    offset_ms = _whole(request, "offset_ms", -_OFFSET_MS_MAX, _OFFSET_MS_MAX)
    face.set_clock(offset_ms)
    return {"offset_ms": offset_ms}


def set_limits(face: Controlled, request: Request) -> shapes.Json:
    """``{"requests_per_s": 30, "public_per_s": 10}`` changes the rate limits; 0 limits nothing."""
    for name in request.body:
        if name not in ("requests_per_s", "public_per_s"):
            raise bad(f"{name[:40]}: expected requests_per_s or public_per_s")
    if "requests_per_s" in request.body:
        face.limits.private_per_s = _whole(request, "requests_per_s", 0, _RATE_MAX)
    if "public_per_s" in request.body:
        face.limits.public_per_s = _whole(request, "public_per_s", 0, _RATE_MAX)
    return {"requests_per_s": face.limits.private_per_s, "public_per_s": face.limits.public_per_s}


def fill_order(face: Controlled, request: Request) -> shapes.Json:
    """``{"order_id": …, "lots" or "quantity": …, "price": …, "repeat": …}`` executes an order now.

    Without a size all that is open, without a price at its limit. ``repeat`` lists the order's last fill once more
    (after the one asked for, where a size is given, or where there is none yet).
    """
    order = _order(request)
    lots, ticks = _lots(request, order), None
    if request.body.get("price") is not None:
        ticks = _ticks(order.ticket.product_id, request.body["price"])
    repeat = request.body.get("repeat", False)
    if not isinstance(repeat, bool):
        raise bad("repeat: expected true or false")
    liquidity = request.body.get("liquidity", "MAKER")
    if liquidity not in ("MAKER", "TAKER"):
        raise bad("liquidity: expected MAKER or TAKER")
    try:
        if not repeat or lots is not None or not order.fills:
            request.exchange.force_fill(order.order_id, lots, ticks, request.now_ns, liquidity)
        if repeat:
            request.exchange.repeat_fill(order.order_id, request.now_ns)
    except Refusal as refusal:
        raise bad(refusal.message) from None
    face.book_changed(order.ticket.product_id)
    return {
        "fill": shapes.fill(request.exchange.fills[-1], order.portfolio_id),
        "order": shapes.order(order, order.portfolio_id),
    }


def place_order(face: Controlled, request: Request) -> shapes.Json:
    """Place an order as if somebody else used the account: the body of POST /orders, its client_order_id optional."""
    body = {"client_order_id": str(uuid.uuid4())} | request.body
    inner = Request(request.method, request.path, {}, body, request.now_ns, request.floor)
    answer = create_order(inner)
    if isinstance(body.get("product_id"), str) and body["product_id"] in MARKETS:
        face.book_changed(body["product_id"])
    return answer


def set_product(face: Controlled, request: Request) -> shapes.Json:
    """``{"product_id": …, "trading_disabled": true, …}`` sets flags and leaves the others; answers with the product."""
    name = known(request.body.get("product_id"))
    flags = {flag: value for flag, value in request.body.items() if flag != "product_id"}
    try:
        request.exchange.set_product(name, flags, request.now_ns)
    except Refusal as refusal:
        raise bad(refusal.message) from None
    face.book_changed(name)
    return request.floor.product(name, request.now_ns)


def deposit(face: Controlled, request: Request) -> shapes.Json:
    """``{"currency": "USD", "amount": "-500"}`` adds to a balance of the default portfolio (minus is a withdrawal)."""
    currency = request.body.get("currency")
    if not isinstance(currency, str):
        raise bad("currency: expected a currency")
    try:
        account = request.exchange.deposit(currency, decimal_of(request, "amount"), request.now_ns)
    except Refusal as refusal:
        raise bad(refusal.message) from None
    return {"account": shapes.account(account, request.now_ns, request.portfolio)}


def show_status(face: Controlled, request: Request) -> shapes.Json:
    """``{"order_id": …, "status": "QUEUED"}`` shows another status than the true one; "" ends that."""
    order = _order(request)
    status = request.body.get("status")
    if not isinstance(status, str) or status not in _STATUSES:
        raise bad(f"status: expected one of {', '.join(sorted(_STATUSES))}")
    request.exchange.show(order.order_id, status)
    return {"order": shapes.order(order, order.portfolio_id)}


def get_status(face: Controlled, request: Request) -> shapes.Json:
    """The exchange at a glance: prices, balances, orders, faults and connections."""
    exchange = request.exchange
    prices = {
        name: shapes.plain(market.product.price(exchange.mid_ticks(name, request.now_ns)))
        for name, market in MARKETS.items()
    }
    balances = {
        portfolio.name: {
            account.currency: {"available": shapes.plain(account.available), "hold": shapes.plain(account.hold)}
            for account in portfolio.accounts.values()
        }
        for portfolio in exchange.portfolios.values()
    }
    flags = {name: sorted(f for f in FLAGS if exchange.records.flags.get(name, {}).get(f)) for name in MARKETS}
    return face.status() | {
        "time": shapes.timestamp(request.now_ns),
        "prices": prices,
        "flags": {name: having for name, having in flags.items() if having},
        "balances": balances,
        "orders": {"open": len(exchange.open_orders), "all": len(exchange.order_list), "fills": len(exchange.fills)},
    }


def _order(request: Request) -> SimOrder:
    """The order named by ``order_id`` or ``client_order_id``; 404 without one."""
    order_id, client_order_id = request.body.get("order_id"), request.body.get("client_order_id")
    found = request.exchange.orders.get(order_id) if isinstance(order_id, str) else None
    if found is None and isinstance(client_order_id, str):
        found = request.exchange.order_by_client_id(client_order_id)
    if found is None:
        raise RequestError(404, "NOT_FOUND", "order_id: no such order")
    return found


def _lots(request: Request, order: SimOrder) -> int | None:
    if request.body.get("lots") is not None:
        return _whole(request, "lots", 1, 2**53)
    if request.body.get("quantity") is None:
        return None
    try:
        lots = order.product.lots(decimal_of(request, "quantity"))
    except IncrementError as error:
        raise bad(f"quantity: {error}") from None
    if not 0 < lots <= 2**53:
        raise bad("quantity: out of range")
    return lots


def _ticks(name: str, given: Any) -> int:
    if not isinstance(given, str) or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,8})?", given):
        raise bad("price: expected a decimal string or null")
    try:
        ticks = MARKETS[name].product.ticks(Decimal(given))
    except IncrementError as error:
        raise bad(f"price: {error}") from None
    if not 2 <= ticks <= PRICE_TICKS_MAX:
        raise bad("price: out of range")
    return ticks


def _whole(request: Request, name: str, low: int, high: int) -> int:
    given = request.body.get(name)
    if not isinstance(given, int) or isinstance(given, bool) or not low <= given <= high:
        raise bad(f"{name}: expected a whole number from {low} to {high}")
    return given
