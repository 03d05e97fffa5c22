"""The exchange simulator's paths for orders: place, preview, edit, cancel, close, and the lists of orders and fills."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from cluster import exchange_shapes as shapes
from cluster.exchange_book import SimFill, SimOrder
from cluster.exchange_orders import State
from cluster.exchange_request import Request, RequestError, bad, cursor, integer, known, moment, one, text_of
from cluster.exchange_ticket import EditRefusal, Refusal, read_ticket

_CANCELS_MAX: Final = 100
CLIENT_ORDER_ID_MAX: Final = 128
_NEVER_NS: Final = 2**62
_STATUSES: Final = frozenset(
    {*State, "PENDING", "FAILED", "UNKNOWN_ORDER_STATUS", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"}
)


def create_order(request: Request) -> shapes.Json:
    """POST /orders: a known client_order_id gets the first order, whatever else the body says."""
    client_order_id = text_of(request, "client_order_id", CLIENT_ORDER_ID_MAX)
    exchange, portfolio = request.exchange, request.portfolio
    try:
        known_order = exchange.repeat_of(client_order_id, portfolio)
        if known_order is not None:
            return shapes.order_accepted(known_order)
        _refuse_what_is_not_simulated(request)
        ticket = read_ticket(request.body, request.now_ns)
        return shapes.order_accepted(exchange.place(ticket, request.now_ns, portfolio))
    except Refusal as refusal:
        return shapes.order_refused(refusal, _configuration(request))


def preview_order(request: Request) -> shapes.Json:
    """POST /orders/preview: what the order would do; it is not placed."""
    try:
        _refuse_what_is_not_simulated(request)
        ticket = read_ticket(request.body, request.now_ns)
    except Refusal as refusal:
        return shapes.previewed(None, (refusal.preview,))
    found = request.exchange.preview(ticket, request.now_ns, request.portfolio)
    return shapes.previewed(found, found.errors)


def edit_order(request: Request) -> shapes.Json:
    """POST /orders/edit: ``size`` is the whole one, the filled part included."""
    body = request.body
    order_id = text_of(request, "order_id", CLIENT_ORDER_ID_MAX)
    try:
        order = request.exchange.amend(
            order_id, body.get("size"), body.get("price"), request.now_ns, request.portfolio, body.get("stop_price")
        )
    except EditRefusal as refusal:
        return shapes.edit_refused(refusal)
    return shapes.edited(order)


def preview_edit(request: Request) -> shapes.Json:
    """POST /orders/edit_preview: what the order would be worth after the edit; nothing is changed."""
    body = request.body
    order_id = text_of(request, "order_id", CLIENT_ORDER_ID_MAX)
    try:
        found = request.exchange.preview_amendment(
            order_id, body.get("size"), body.get("price"), request.now_ns, request.portfolio, body.get("stop_price")
        )
    except EditRefusal as refusal:
        return shapes.edit_previewed(None, refusal)
    return shapes.edit_previewed(found, None)


def close_position(request: Request) -> shapes.Json:
    """POST /orders/close_position: positions are of futures; there is none in a spot product, so it is refused."""
    text_of(request, "client_order_id", CLIENT_ORDER_ID_MAX)
    name = known(request.body.get("product_id"))
    answer = shapes.order_refused(Refusal("CANNOT_CLOSE_ZERO_POSITION", f"product_id: {name} has no position"), None)
    return {field: value for field, value in answer.items() if field not in ("order_id", "failure_reason")}


def cancel_orders(request: Request) -> shapes.Json:
    """POST /orders/batch_cancel: a result for each id, in the order given."""
    given = request.body.get("order_ids")
    if not isinstance(given, list) or not all(isinstance(order_id, str) for order_id in given):
        raise bad("order_ids: expected a list of strings")
    if not 0 < len(given) <= _CANCELS_MAX:
        raise bad(f"order_ids: expected 1 to {_CANCELS_MAX}, was {len(given)}")
    results = request.exchange.cancel(given, request.now_ns, request.portfolio)
    return {"results": [shapes.cancel_result(order_id, results[order_id]) for order_id in given]}


def get_order(request: Request, order_id: str) -> shapes.Json:
    """GET /orders/historical/{id}."""
    order = request.exchange.orders.get(order_id)
    if order is None or order.portfolio_id != request.portfolio:
        raise RequestError(404, "NOT_FOUND", f"order {order_id[:40]}: not found")
    return {"order": shapes.order(order, request.portfolio)}


def list_orders(request: Request) -> shapes.Json:
    """Newest first. As Coinbase documents: OPEN goes with no other status, and dates do not apply to it."""
    statuses = set(request.query.get("order_status", []))
    if "OPEN" in statuses and len(statuses) > 1:
        raise bad("order_status: OPEN cannot be paired with other statuses")
    if not statuses <= _STATUSES:
        raise bad(f"order_status: expected some of {sorted(_STATUSES)}")
    limit = integer(request, "limit", 1_000, 1, 1_000)
    only_open = statuses == {"OPEN"}
    accepts = _order_filter(request, statuses, _NEVER_NS if only_open else moment(request, "end_date", _NEVER_NS))
    start_ns = 0 if only_open else moment(request, "start_date", 0)
    found: list[SimOrder] = []
    for order in _orders_newest_first(request, only_open):
        if order.created_ns < start_ns or len(found) > limit:
            break
        if accepts(order):
            found.append(order)
    page = found[:limit]
    more = len(found) > limit
    return {
        "orders": [shapes.order(order, request.portfolio) for order in page],
        "sequence": "0",
        "has_next": more,
        "cursor": str(page[-1].sequence) if more else "",
    }


def _orders_newest_first(request: Request, only_open: bool) -> Iterable[SimOrder]:
    exchange = request.exchange
    end = cursor(request, len(exchange.order_list))
    if not only_open:
        return reversed(exchange.order_list[:end])
    # The open ones are kept apart, so that the many that have ended are not walked through.
    return sorted(
        (order for order in exchange.open_orders.values() if order.sequence < end),
        key=lambda order: -order.sequence,
    )


def _order_filter(request: Request, statuses: set[str], end_ns: int) -> Callable[[SimOrder], bool]:
    query, portfolio = request.query, request.portfolio
    wanted = {name: set(query.get(name, [])) for name in ("order_ids", "product_ids", "order_types", "time_in_forces")}
    side = one(request, "order_side")
    wanted["assets"] = set(query.get("asset_filters", []))
    # Every order here is one of these; another word finds nothing.
    ours = (
        one(request, "product_type", "SPOT") in {"SPOT", "UNKNOWN_PRODUCT_TYPE"}
        and one(request, "order_placement_source", "RETAIL_ADVANCED") == "RETAIL_ADVANCED"
    )

    def accepts(order: SimOrder) -> bool:
        return (
            ours
            and order.portfolio_id == portfolio
            and order.created_ns < end_ns
            and (not statuses or order.status in statuses)
            and (not side or order.ticket.side.value == side)
            and (not wanted["order_ids"] or order.order_id in wanted["order_ids"])
            and (not wanted["product_ids"] or order.ticket.product_id in wanted["product_ids"])
            and (not wanted["assets"] or order.product.base_currency in wanted["assets"])
            and (not wanted["order_types"] or shapes.order_type(order.ticket.kind) in wanted["order_types"])
            and (not wanted["time_in_forces"] or shapes.time_in_force(order.ticket.kind) in wanted["time_in_forces"])
        )

    return accepts


def list_fills(request: Request) -> shapes.Json:
    """Newest first."""
    limit = integer(request, "limit", 100, 1, 1_000)
    accepts = _fill_filter(request)
    start_ns = moment(request, "start_sequence_timestamp", 0)
    found: list[SimFill] = []
    for fill in reversed(_fills(request)):
        if fill.ts_ns < start_ns or len(found) > limit:
            break
        if accepts(fill):
            found.append(fill)
    page = found[:limit]
    place = str(page[-1].sequence) if len(found) > limit else ""
    return {"fills": [shapes.fill(fill, request.portfolio) for fill in page], "cursor": place}


def _fills(request: Request) -> list[SimFill]:
    """The fills before the cursor, of the orders asked for."""
    exchange = request.exchange
    end = cursor(request, len(exchange.fills))
    wanted = set(request.query.get("order_ids", []))
    if not wanted:
        return exchange.fills[:end]
    # Repeats of a fill come after it, so nothing before the first fill of these orders can be one of theirs.
    firsts = [order.fills[0].sequence for name in wanted if (order := exchange.orders.get(name)) and order.fills]
    return [fill for fill in exchange.fills[min(firsts, default=end) : end] if fill.order_id in wanted]


def _fill_filter(request: Request) -> Callable[[SimFill], bool]:
    products, trades = set(request.query.get("product_ids", [])), set(request.query.get("trade_ids", []))
    end_ns = moment(request, "end_sequence_timestamp", _NEVER_NS)
    portfolio = request.portfolio

    def accepts(fill: SimFill) -> bool:
        return (
            fill.portfolio_id == portfolio
            and (not products or fill.product_id in products)
            and (not trades or fill.trade_id in trades)
            and fill.ts_ns < end_ns
        )

    return accepts


def _refuse_what_is_not_simulated(request: Request) -> None:
    """Refuse what would change the order's meaning and is not done here, rather than take it for something else."""
    body = request.body
    if body.get("attached_order_configuration"):
        text = "attached_order_configuration: not simulated"
        raise Refusal("UNSUPPORTED_ORDER_CONFIGURATION", text, "PREVIEW_INVALID_ORDER_CONFIG")
    if body.get("leverage") not in (None, "", "1", "1.0"):
        raise Refusal("INVALID_LEVERAGE", "leverage: a spot order has none", "PREVIEW_INVALID_ORDER_CONFIG")
    if body.get("margin_type") not in (None, ""):
        raise Refusal("INVALID_MARGIN_TYPE", "margin_type: a spot order has none", "PREVIEW_INVALID_ORDER_CONFIG")
    if body.get("retail_portfolio_id") not in (None, "", request.portfolio):
        raise Refusal("INVALID_REQUEST", "retail_portfolio_id: not the key's portfolio")


def _configuration(request: Request) -> dict[str, Any] | None:
    given = request.body.get("order_configuration")
    return given if isinstance(given, dict) else None
