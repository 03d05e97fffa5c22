"""What the venue says of orders and fills, brought into the ledger. What it has not said stays as it is.

Fills first, then endings: a reservation is freed only when every fill it stood for is booked. An order or a fill the
ledger does not know is taken over, and said aloud.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from cluster.ledger import LedgerError, StaleEpoch
from cluster.risk import ID_PATTERN
from cluster.venue import VenueNotFound, VenueOrder
from cluster.venue_stream import OrderUpdate
from serve_apps.execution_context import ExecutionContext
from strategies.model import (
    NS_PER_S,
    TERMINAL,
    Fill,
    IncrementError,
    Order,
    OrderStatus,
    OrderType,
    Product,
    TimeInForce,
)

ADOPTED_STRATEGY: Final = "external"
# Fills are read from a little before the newest one known, because the venue may list them late and out of order.
FILL_OVERLAP_NS: Final = 120 * NS_PER_S
FILL_OVERLAP_SHORT_NS: Final = 5 * NS_PER_S
# An order of ours was never created at the venue before it was reserved here, give or take the clocks.
CLOCK_MARGIN_NS: Final = 60 * NS_PER_S
# So many orders are asked for one by one; beyond, the venue's list is read.
ASKED_ONE_BY_ONE_MAX: Final = 50
ORDERS_OF_FILLS_MAX: Final = 50
# An order nobody will send any more is looked at only when whoever was to send it has had its time, several times over.
ORPHAN_AFTER: Final = 4

_DOUBTFUL: Final = frozenset({OrderStatus.SENT, OrderStatus.UNKNOWN})

logger = logging.getLogger("ray.serve")

Fields = Mapping[str, str]


class Settler:
    """Settles one account's orders. Every method may raise ``VenueError``; nothing is then half-done."""

    def __init__(self, context: ExecutionContext) -> None:
        """Begin with no fill known."""
        self._context = context
        self._ledger = context.ledger
        self._venue = context.venue
        self._newest_fill_ns = 0
        self._opened_ns: int | None = None

    async def settle(self, thorough: bool = True) -> None:
        """Everything: all orders either side holds open, and all fills since a little before the newest one known.

        How little is the difference: what a thorough look finds, too, was listed by the venue minutes late.
        """
        context = self._context
        ours = [f for f in await self._ledger.open_orders(context.account) if f["status"] != OrderStatus.RESERVED]
        theirs: list[VenueOrder] = await context.ask(self._venue.open_orders)
        known = {order.client_order_id: order for order in theirs}
        known |= await self._ended_at_the_venue([f for f in ours if f["client_order_id"] not in known])
        await self._adopt_unknown(theirs, {f["client_order_id"] for f in ours})
        await self.book_fills(since_ns=await self._fills_since_ns(ours, thorough))
        await self._settle_each(ours, known)

    async def settle_changed(self, updates: Sequence[OrderUpdate]) -> None:
        """Only orders whose state the venue has just told: their fills, then their endings."""
        ids = sorted({u.venue_order_id for u in updates if u.filled_quantity > 0})
        for begin in range(0, len(ids), ORDERS_OF_FILLS_MAX):
            await self.book_fills(ids[begin : begin + ORDERS_OF_FILLS_MAX])
        await asyncio.gather(*(self._end_told(update) for update in updates))

    async def _end_told(self, update: OrderUpdate) -> None:
        """End an order whose end the venue has told, if it is still open here."""
        if update.status is None or update.status not in TERMINAL or update.product_id not in self._context.products:
            return
        fields = await self._ledger.order(self._context.account, update.client_order_id)
        if fields and OrderStatus(fields["status"]) not in TERMINAL:
            ended = _Ending(update.venue_order_id, update.product_id, update.status, update.filled_quantity)
            await self._end({"client_order_id": update.client_order_id, **fields}, ended)

    async def sweep(self) -> None:
        """Orders nobody will send any more (their outbox entry is gone) are ended, once the venue was asked."""
        context = self._context
        queued, now_us = await self._ledger.queued(context.account), await self._ledger.time_ns() // 1000
        for fields in await self._ledger.open_orders(context.account):
            name, status = fields["client_order_id"], OrderStatus(fields["status"])
            lost = status in {OrderStatus.RESERVED, OrderStatus.SENT} and name not in queued
            # Both are stamps of the ledger's clock, and this process's own says how long it has been looking.
            quiet_s = min(context.quiet_s(name), (now_us - int(fields["changed_us"])) / 1e6)
            if not lost or quiet_s < ORPHAN_AFTER * context.settled_s:
                continue
            if status is OrderStatus.RESERVED:
                # Whoever sends now is told by mark_sent that it is too late.
                await self._ledger.mark_sent(context.account, context.epoch, name)
            found: VenueOrder | None = await context.ask(self._venue.order_by_client_id, name, _created_ns(fields))
            if found is not None:
                await self._ack(name, found)
                continue
            reason = "ORPHAN: nobody was to send it any more, and the venue does not know it"
            await self._ledger.release(context.account, context.epoch, name, OrderStatus.REJECTED, reason)
            context.count("rejected")

    # -- fills ---------------------------------------------------------------------------------------------------------

    async def book_fills(self, order_ids: Sequence[str] | None = None, since_ns: int | None = None) -> None:
        """Book every fill the venue lists of these orders, or since then; each trade counts once, in any order."""
        fills: list[Fill] = await self._context.ask(self._venue.fills, order_ids, since_ns)
        outcomes = await asyncio.gather(*(self._book(fill) for fill in fills))
        self._context.count("filled", sum(outcomes))
        if order_ids is None:
            self._newest_fill_ns = max(self._newest_fill_ns, since_ns or 1, *(fill.ts_ns for fill in fills))

    async def _book(self, fill: Fill) -> bool:
        """Whether the fill was new."""
        context = self._context
        product = context.products.get(fill.product_id)
        if product is None:
            logger.error("fill %s is of %s, which the venue does not list", fill.trade_id, fill.product_id)
            return False
        try:
            outcome, _ = await self._ledger.fill(context.account, context.epoch, fill, product)
            if outcome == "NOT_FOUND" and (taken := await self._adopted_for(fill)) is not None:
                outcome, _ = await self._ledger.fill(context.account, context.epoch, taken, product)
        except StaleEpoch:
            raise
        except LedgerError as error:
            # It cannot be booked as it is, and it happened: nobody may trade on books without it.
            logger.error("fill %s cannot be booked: %s", fill.trade_id, error)  # noqa: TRY400 - the text says it all
            await self._ledger.recon_break(context.account, context.epoch, [f"fill {fill.trade_id}: {error}"])
            return False
        return outcome == "APPLIED"

    async def _fills_since_ns(self, ours: Sequence[Fields], thorough: bool) -> int:
        """From when on fills may be unknown: a little before the newest known, and never before the books began."""
        if self._newest_fill_ns == 0:
            began = [_created_ns(fields) for fields in ours]
            opened_ns = await self._books_opened_ns()
            # After a start nobody knows what came while we were away, so all since the last that we know is read.
            return max(opened_ns, min([*began, await self._last_known_ns()]))
        return self._newest_fill_ns - (FILL_OVERLAP_NS if thorough else FILL_OVERLAP_SHORT_NS)

    async def _last_known_ns(self) -> int:
        """Just before the newest entry of the audit that a fill made; then all of them were booked, or soon after."""
        entries = await self._ledger.recent_audit(self._context.account, at_most=2_000)
        booked = [int(entry["us"]) * 1000 for _, entry in entries if entry["kind"] == "FILL"]
        return max(booked, default=await self._books_opened_ns()) - FILL_OVERLAP_NS

    async def _books_opened_ns(self) -> int:
        if self._opened_ns is None:
            self._opened_ns = await self._ledger.opened_ns(self._context.account)
        return self._opened_ns or 0

    # -- orders --------------------------------------------------------------------------------------------------------

    async def _ended_at_the_venue(self, missing: Sequence[Fields]) -> dict[str, VenueOrder]:
        """What the venue says of orders of ours that are not open there, by our id; those it does not list are left."""
        named = [fields for fields in missing if fields.get("venue_order_id")]
        unnamed = [fields for fields in missing if not fields.get("venue_order_id")]
        found: dict[str, VenueOrder] = {}
        if len(named) <= ASKED_ONE_BY_ONE_MAX:
            orders = await asyncio.gather(*(self._order(fields["venue_order_id"]) for fields in named))
            found = {f["client_order_id"]: order for f, order in zip(named, orders, strict=True) if order is not None}
            missing = unnamed
        if missing:
            since_ns = min(_created_ns(fields) for fields in missing)
            listed: list[VenueOrder] = await self._context.ask(self._venue.orders, None, None, since_ns)
            wanted = {fields["client_order_id"] for fields in missing}
            found |= {order.client_order_id: order for order in listed if order.client_order_id in wanted}
        return found

    async def _order(self, venue_order_id: str) -> VenueOrder | None:
        try:
            order: VenueOrder = await self._context.ask(self._venue.order, venue_order_id)
        except VenueNotFound:
            logger.exception("the venue does not know its own order %s", venue_order_id)
            return None
        return order

    async def _settle_each(self, ours: Sequence[Fields], theirs: Mapping[str, VenueOrder]) -> None:
        known = [(fields, theirs[fields["client_order_id"]]) for fields in ours if fields["client_order_id"] in theirs]
        await asyncio.gather(*(self._settle_known(fields, order) for fields, order in known))
        missing = [
            fields
            for fields in ours
            if fields["client_order_id"] not in theirs
            and fields["status"] == OrderStatus.UNKNOWN
            and self._context.quiet_s(fields["client_order_id"]) > self._context.settled_s
        ]
        if missing:
            await self._settle_missing(missing)

    async def _settle_known(self, fields: Fields, theirs: VenueOrder) -> None:
        if OrderStatus(fields["status"]) in _DOUBTFUL or not fields.get("venue_order_id"):
            await self._ack(fields["client_order_id"], theirs)
        if theirs.status in TERMINAL and theirs.product_id in self._context.products:
            reason = theirs.reject_reason or "ended by the venue"
            ended = _Ending(theirs.venue_order_id, theirs.product_id, theirs.status, theirs.filled_quantity, reason)
            await self._end(fields, ended)

    async def _end(self, fields: Fields, ended: _Ending) -> None:
        """Free what is left of a reservation, if every fill the venue counts is booked; else the next look does."""
        context, name = self._context, fields["client_order_id"]
        if OrderStatus(fields["status"]) in _DOUBTFUL:
            status = OrderStatus.OPEN
            await self._ledger.ack(context.account, context.epoch, name, status, ended.venue_order_id)
        product = context.products[ended.product_id]
        booked = await self._ledger.order(context.account, name) or {}
        if product.quantity(int(booked.get("filled_lots", "0"))) < ended.filled_quantity:
            await self.book_fills([ended.venue_order_id])
            booked = await self._ledger.order(context.account, name) or {}
        filled = product.quantity(int(booked.get("filled_lots", "0")))
        if filled < ended.filled_quantity or OrderStatus(booked.get("status", "FILLED")) in TERMINAL:
            return
        # Filled at the venue and still open here: it came to less than was ordered, as an amendment may make it.
        status = OrderStatus.CANCELLED if ended.status is OrderStatus.FILLED else ended.status
        done, _ = await self._ledger.release(context.account, context.epoch, name, status, ended.reason)
        context.count("cancelled", int(done))

    async def _settle_missing(self, missing: Sequence[Fields]) -> None:
        """The venue does not list orders in doubt: look for our ids once more before their reservations are freed.

        One list for all of them: the venue has no look-up by our id, and after an outage there may be hundreds.
        """
        context, since_ns = self._context, min(_created_ns(fields) for fields in missing)
        listed: list[VenueOrder] = await context.ask(self._venue.orders, None, None, since_ns)
        found = {order.client_order_id: order for order in listed}
        for fields in missing:
            name = fields["client_order_id"]
            if (order := found.get(name)) is not None:
                await self._ack(name, order)
                continue
            reason = "the venue gave no answer and does not know the order"
            context.answered(name)
            await self._ledger.release(context.account, context.epoch, name, OrderStatus.REJECTED, reason)
            context.count("rejected")

    async def _ack(self, name: str, theirs: VenueOrder) -> None:
        context = self._context
        await self._ledger.ack(context.account, context.epoch, name, OrderStatus.OPEN, theirs.venue_order_id)

    # -- what the ledger does not know ---------------------------------------------------------------------------------

    async def _adopt_unknown(self, theirs: Sequence[VenueOrder], ours: set[str]) -> None:
        for order in theirs:
            if order_id_of(order) in ours:
                continue
            fields = await self._ledger.order(self._context.account, order_id_of(order))
            if fields is None or fields["status"] == OrderStatus.DENIED:
                await self._adopt(order)
            elif OrderStatus(fields["status"]) in TERMINAL - {OrderStatus.FILLED}:
                # Its reservation is gone, so it must not live: it came to the venue after it was given up.
                logger.error("order %s has ended here as %s and is open at the venue: it is cancelled", *(
                    order.client_order_id, fields["status"]))  # fmt: skip
                await self._context.ask(self._venue.cancel, [order.venue_order_id])

    async def _adopted_for(self, fill: Fill) -> Fill | None:
        """Take over the order of a fill nobody here has asked for: the fill under the id it is known by from now on.

        None for what was filled before the books began: that is in the opening positions.
        """
        if fill.ts_ns < await self._books_opened_ns():
            return None
        order = await self._order(fill.venue_order_id)
        if order is None:
            return None
        if await self._ledger.order(self._context.account, order_id_of(order)) is None and not await self._adopt(order):
            return None
        return replace(fill, client_order_id=order_id_of(order))

    async def _adopt(self, theirs: VenueOrder) -> bool:
        context = self._context
        product = context.products.get(theirs.product_id)
        if product is None:
            logger.error("order %s of %s cannot be taken over", theirs.venue_order_id, theirs.product_id)
            return False
        found = found_order(theirs, context.account, product)
        taken = await self._ledger.adopt(context.epoch, found, product, theirs.venue_order_id)
        if taken:
            logger.error("the venue has an order the ledger did not know; it is taken over: %s", theirs)
            context.count("adopted")
        return taken


@dataclass(frozen=True, slots=True)
class _Ending:
    """That the venue has ended an order, and after how much was filled."""

    venue_order_id: str
    product_id: str
    status: OrderStatus
    filled_quantity: Decimal
    reason: str = "ended by the venue"


def order_id_of(theirs: VenueOrder) -> str:
    """The id the ledger knows a venue's order by: our own, or the venue's where it could not be one of ours."""
    usable = re.fullmatch(ID_PATTERN.strip("^$"), theirs.client_order_id) is not None
    return theirs.client_order_id if usable else theirs.venue_order_id


def found_order(theirs: VenueOrder, account: str, product: Product) -> Order:
    """An order of somebody else's making as the ledger can count it; what it cannot say is taken as a market order."""
    quantity = theirs.quantity or max(theirs.filled_quantity, product.base_increment)
    limit_price, stop_price = theirs.limit_price, theirs.stop_price
    try:
        product.lots(quantity)
        for price in (limit_price, stop_price):
            if price is not None:
                product.ticks(price)
    except IncrementError:
        quantity = -(-quantity // product.base_increment) * product.base_increment
        limit_price = stop_price = None
    kind = theirs.type if theirs.type is not None and limit_price is not None else OrderType.MARKET
    return Order(
        client_order_id=order_id_of(theirs),
        account=account,
        strategy=ADOPTED_STRATEGY,
        product_id=theirs.product_id,
        side=theirs.side,
        type=kind,
        time_in_force=theirs.time_in_force or TimeInForce.IOC,
        quantity=Decimal(quantity),
        limit_price=None if kind is OrderType.MARKET else limit_price,
        post_only=theirs.post_only,
        stop_price=stop_price if kind in {OrderType.STOP_LIMIT, OrderType.BRACKET} else None,
        end_ns=theirs.end_ns,
    )


def _created_ns(fields: Mapping[str, Any]) -> int:
    """When an order may have been created at the venue at the earliest."""
    return int(fields["created_us"]) * 1000 - CLOCK_MARGIN_NS
