"""What the exchange simulator refuses, and why: product states, triggers, amendments, what cannot be paid."""

from __future__ import annotations

import dataclasses
from decimal import Decimal
from typing import Any, Final

from cluster.exchange_history import MARKETS
from cluster.exchange_journal import Event
from cluster.exchange_matching import Arrival
from cluster.exchange_orders import Fees, SimOrder, State, worst_ticks
from cluster.exchange_records import plain
from cluster.exchange_ticket import (
    UNKNOWN_FAILURE,
    EditRefusal,
    Kind,
    Refusal,
    Ticket,
    base_lots,
    limit_ticks,
    refuse_prices,
    stop_ticks_of,
)
from strategies.model import Product, Side

# Coinbase has such a bound too; its number is not published.
EDITS_MAX: Final = 1_000


def executes(product: Product) -> bool:
    """Whether orders for the product execute now."""
    return product.tradable and not product.post_only and not product.auction_mode


def refuse_by_state(ticket: Ticket, product: Product) -> None:
    """Refuse what the product's flags do not allow."""
    if product.status != "online" or product.is_disabled or product.view_only:
        raise Refusal("UNTRADABLE_PRODUCT", "product_id: cannot be traded now", "PREVIEW_UNTRADABLE_PRODUCT")
    at_once = not ticket.kind.rests
    forbidding = {
        "trading_disabled": product.trading_disabled,
        "cancel_only": product.cancel_only,
        "limit_only": product.limit_only and ticket.kind is Kind.MARKET_IOC,
        "auction_mode": product.auction_mode and at_once,
        "post_only": product.post_only and not ticket.post_only,
    }
    for name, forbids in forbidding.items():
        if forbids:
            text = f"product_id: {name} does not allow this order now"
            raise Refusal("ORDER_ENTRY_DISABLED", text, "PREVIEW_NOT_ALLOWED_BY_MARKET_STATE")


def refuse_by_last_price(ticket: Ticket, last: int) -> None:
    """Refuse a trigger that ``last`` (the last price, in ticks) has reached, and a bracket whose profit side it has."""
    if ticket.stop_ticks is None or ticket.ticks is None:
        return
    if last >= ticket.stop_ticks if ticket.rising else last <= ticket.stop_ticks:
        if ticket.kind.brackets:
            text, code = "stop_trigger_price: reached already", "INVALID_BRACKET_STOP_TRIGGER_PRICE"
            raise Refusal(code, text, f"PREVIEW_{code}")
        relation = "BELOW" if ticket.rising else "ABOVE"
        text = "stop_price: reached already"
        raise Refusal(UNKNOWN_FAILURE, text, f"PREVIEW_STOP_PRICE_{relation}_LAST_TRADE_PRICE")
    if ticket.kind.brackets and (ticket.ticks >= last if ticket.side is Side.BUY else ticket.ticks <= last):
        text, code = "limit_price: reached already", "INVALID_BRACKET_LIMIT_PRICE"
        raise Refusal(code, text, f"PREVIEW_{code}")


def needed(ticket: Ticket, arrival: Arrival, fees: Fees) -> Decimal:
    """What an order needs to be accepted, in the currency it pays with."""
    product = arrival.product
    if ticket.side is Side.SELL:
        return product.quantity(ticket.lots or 0)
    if ticket.quote_size is not None:
        return ticket.quote_size
    worst = worst_ticks(ticket)
    if worst is not None:
        rate = max(fees.rate("TAKER"), fees.rate("MAKER"))
        return product.quantity(ticket.lots or 0) * product.price(worst) * (1 + rate)
    return arrival.value * (1 + fees.rate("TAKER"))


def hold_with(order: SimOrder, lots: int, ticket: Ticket | None = None) -> Decimal:
    """What the order would hold with so many open lots (and another ticket)."""
    product, worst = order.product, worst_ticks(ticket or order.ticket)
    if order.ticket.side is Side.SELL:
        return product.quantity(lots)
    return product.quantity(lots) * product.price(worst or 0) * (1 + max(order.taker_rate, order.maker_rate))


def insufficient() -> Refusal:
    """The refusal of what cannot be paid."""
    return Refusal("INSUFFICIENT_FUND", "Insufficient balance in source account", "PREVIEW_INSUFFICIENT_FUND")


def refuse_to_amend(order: SimOrder, product: Product) -> None:
    """Refuse to amend an order because of what or where it is; raises ``EditRefusal``."""
    if order.state is State.CANCEL_QUEUED:
        raise EditRefusal("CANNOT_EDIT_ORDER_PENDING_CANCEL", "order_id: is being cancelled")
    if not order.state.live or order.state is State.PENDING:
        raise EditRefusal("ONLY_OPEN_ORDERS_CAN_BE_EDITED", f"order_id: the order is {order.state}")
    if not order.ticket.kind.amendable:
        raise EditRefusal("ONLY_LIMIT_ORDER_EDITS_SUPPORTED", "order_id: only limit orders good until cancelled")
    if len(order.edits) >= EDITS_MAX:
        raise EditRefusal("EXCEEDED_MAX_ALLOWED_EDIT_REQUEST_COUNT", f"order_id: edited {EDITS_MAX} times")
    if order.ticket.kind.brackets and not order.waits:
        raise EditRefusal("ONLY_LIMIT_ORDER_EDITS_SUPPORTED", "order_id: the bracket is triggered")
    if not product.tradable:
        raise EditRefusal("COMMANDER_REJECTED_EDIT_ORDER", f"{product.product_id}: its state allows cancels only")


def amended_event(order: SimOrder, size: Any, price: Any, stop_price: Any, last: int, now_ns: int) -> Event:
    """Read what an amendment asks for; raises ``EditRefusal``."""
    ticket, market = order.ticket, MARKETS[order.ticket.product_id]
    try:
        lots = base_lots(market, size)
    except Refusal as refusal:
        raise EditRefusal("INVALID_EDITED_SIZE", refusal.message, refusal.preview) from None
    try:
        ticks = limit_ticks(market, price)
        stop_ticks = _amended_stop(order, stop_price)
        if stop_ticks is not None and order.waits:
            refuse_prices(ticket.side, ticket.kind, ticks, stop_ticks, ticket.rising)
            changed = dataclasses.replace(ticket, ticks=ticks, stop_ticks=stop_ticks)
            refuse_by_last_price(changed, last)
    except Refusal as refusal:
        raise EditRefusal("INVALID_EDITED_PRICE", refusal.message, refusal.preview) from None
    if lots <= order.filled_lots:
        raise EditRefusal("CANNOT_EDIT_TO_BELOW_FILLED_SIZE", "size: that much is filled already")
    if (lots, ticks, stop_ticks) == (ticket.lots, ticket.ticks, ticket.stop_ticks):
        raise EditRefusal("EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST", "nothing would change")
    return {
        "kind": "amended",
        "order_id": order.order_id,
        "lots": lots,
        "ticks": ticks,
        "stop_ticks": stop_ticks,
        "requeued": ticks != ticket.ticks or lots > (ticket.lots or 0) or stop_ticks != ticket.stop_ticks,
        "configuration": _amended_configuration(ticket, order.product, lots, ticks, stop_ticks),
        "ts_ns": now_ns,
    }


def _amended_stop(order: SimOrder, given: Any) -> int | None:
    """The trigger an amendment asks for: the old one where it says nothing."""
    ticket = order.ticket
    if given is None or given == "":
        return ticket.stop_ticks
    if ticket.stop_ticks is None:
        raise EditRefusal("FIELD_STOPPRICE_NOT_SUPPORTED", "stop_price: the order has none")
    if not order.waits:
        raise EditRefusal("CANNOT_EDIT_STOP_PRICE_FOR_TRIGGERED_ORDER", "stop_price: reached already")
    return stop_ticks_of(MARKETS[ticket.product_id], ticket.kind, given)


def _amended_configuration(
    ticket: Ticket, product: Product, lots: int, ticks: int, stop_ticks: int | None
) -> dict[str, Any]:
    """The configuration as the sender would have written it for the amended order."""
    fields = dict(ticket.configuration[ticket.kind.value])
    fields |= {"base_size": plain(product.quantity(lots)), "limit_price": plain(product.price(ticks))}
    if stop_ticks is not None:
        fields["stop_trigger_price" if ticket.kind.brackets else "stop_price"] = plain(product.price(stop_ticks))
    return {ticket.kind.value: fields}
