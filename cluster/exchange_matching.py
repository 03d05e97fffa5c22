"""What an order does when it arrives at the exchange simulator's book, decided as events; nothing is changed here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal
from typing import Final

from cluster.exchange_journal import Event
from cluster.exchange_levels import Level, Offer
from cluster.exchange_orders import SelfTrade, SimOrder, State
from cluster.exchange_records import plain
from cluster.exchange_ticket import Kind
from strategies.model import Product, Side

_SELF_TRADE: Final = "Self trade prevention"


@dataclass(slots=True)
class Arrival:
    """An order as it arrives at the book, and what was decided about it so far.

    ``left`` is what is still to be filled, None where ``budget`` (quote currency, fees included) decides instead.
    """

    order_id: str
    portfolio_id: str
    product: Product
    side: Side
    limit_ticks: int | None
    taker_rate: Decimal
    left: int | None
    budget: Decimal = Decimal(0)
    events: list[Event] = field(default_factory=list)
    taken: list[tuple[Side, int, int]] = field(default_factory=list)
    filled: int = 0
    value: Decimal = Decimal(0)
    ended: str = ""
    spent: bool = False


def match(arrival: Arrival, offered: Iterable[Offer], rule: SelfTrade, now_ns: int) -> None:
    """Decide what the arriving order executes at once against what it is offered, best first."""
    for offer in offered:
        if arrival.left == 0 or arrival.ended or arrival.spent:
            return
        if offer.order is not None and offer.order.portfolio_id == arrival.portfolio_id:
            _prevent(arrival, offer.order, rule, now_ns)
            continue
        lots = offer.lots if arrival.left is None else min(offer.lots, arrival.left)
        if arrival.left is None:
            affordable = _affordable(arrival, offer.ticks)
            arrival.spent = affordable <= lots
            lots = min(lots, affordable)
        if lots:
            _execute(arrival, offer, lots, now_ns)


def finish(arrival: Arrival, kind: Kind, now_ns: int) -> None:
    """Add the event that ends the arriving order where it does not rest and its fills did not end it."""
    if arrival.left == 0 or (kind.rests and not arrival.ended):
        return
    spent = arrival.spent and arrival.filled > 0
    state = State.FILLED if spent else State.CANCELLED
    message = "" if spent else arrival.ended or "Not enough in the book"
    arrival.events.append(closed_event(arrival.order_id, state, now_ns, message))


def arrival_of(order: SimOrder, ticks: int | None, lots: int) -> Arrival:
    """An accepted order that arrives anew, with this limit and whole size."""
    return Arrival(
        order_id=order.order_id,
        portfolio_id=order.portfolio_id,
        product=order.product,
        side=order.ticket.side,
        limit_ticks=ticks,
        taker_rate=order.taker_rate,
        left=lots - order.filled_lots,
    )


def take(levels: tuple[Level, ...], side: Side, limit: int, lots: int) -> list[Level]:
    """What levels of the other side give within the limit."""
    taken = []
    for ticks, available in levels:
        if lots <= 0 or (ticks > limit if side is Side.BUY else ticks < limit):
            break
        taken.append((ticks, min(lots, available)))
        lots -= taken[-1][1]
    return taken


def other(side: Side) -> Side:
    """The side it trades against."""
    return Side.SELL if side is Side.BUY else Side.BUY


def fill_now(order_id: str, product: Product, level: Level, fee_rate: Decimal, liquidity: str, now_ns: int) -> Event:
    """The event of an execution that happens now."""
    ticks, lots = level
    return {
        "kind": "fill",
        "order_id": order_id,
        # Random, not seeded: two exchanges with one seed must never hand out the same trade.
        "trade_id": str(uuid.uuid4()),
        "entry_id": str(uuid.uuid4()),
        "ticks": ticks,
        "lots": lots,
        "fee": plain(product.price(ticks) * product.quantity(lots) * fee_rate),
        "liquidity": liquidity,
        "ts_ns": now_ns,
    }


def closed_event(order_id: str, state: State, ts_ns: int, message: str) -> Event:
    """The event that ends an order without its fills."""
    return {"kind": "closed", "order_id": order_id, "state": state.value, "ts_ns": ts_ns, "message": message}


def _execute(arrival: Arrival, offer: Offer, lots: int, now_ns: int) -> None:
    """One execution: of the arriving order and, where it is not the seeded book's, of the resting one."""
    product, level = arrival.product, (offer.ticks, lots)
    event = fill_now(arrival.order_id, product, level, arrival.taker_rate, "TAKER", now_ns)
    arrival.events.append(event)
    if offer.order is None:
        arrival.taken.append((other(arrival.side), offer.ticks, lots))
    else:
        rate = offer.order.rate("MAKER")
        resting = fill_now(offer.order.order_id, product, level, rate, "MAKER", now_ns)
        arrival.events.append(resting | {"trade_id": event["trade_id"]})
    value = product.price(offer.ticks) * product.quantity(lots)
    arrival.filled += lots
    arrival.value += value
    if arrival.left is None:
        arrival.budget -= value * (1 + arrival.taker_rate)
    else:
        arrival.left -= lots


def _prevent(arrival: Arrival, resting: SimOrder, rule: SelfTrade, now_ns: int) -> None:
    """Decide what happens where the arriving order meets one of its own portfolio."""
    if rule is SelfTrade.CANCEL_NEWEST or (rule is SelfTrade.DECREMENT and arrival.left is None):
        arrival.ended = _SELF_TRADE
        return
    if rule is SelfTrade.DECREMENT:
        arriving, rests = arrival.left or 0, resting.open_lots
        if arriving < rests:
            arrival.events.append({"kind": "decremented", "order_id": resting.order_id, "lots": arriving})
        if arriving > rests:
            arrival.events.append({"kind": "decremented", "order_id": arrival.order_id, "lots": rests})
            arrival.left = arriving - rests
        else:
            arrival.ended = _SELF_TRADE
        if arriving < rests:
            return
    if rule is SelfTrade.CANCEL_BOTH:
        arrival.ended = _SELF_TRADE
    arrival.events.append(closed_event(resting.order_id, State.CANCELLED, now_ns, _SELF_TRADE))


def _affordable(arrival: Arrival, ticks: int) -> int:
    """Lots that the budget, fees included, still buys at this price."""
    product = arrival.product
    lot_cost = product.price(ticks) * product.base_increment * (1 + arrival.taker_rate)
    return int((arrival.budget / lot_cost).to_integral_value(ROUND_FLOOR))
