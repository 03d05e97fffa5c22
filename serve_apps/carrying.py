"""From the outbox to the venue: each order is sent once, cancels and amendments until the venue has heard them.

An entry leaves the outbox when what it asks for is done, so whoever comes after a crash finds it there again and first
asks the venue what it knows of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from cluster.ledger import OutboxEntry, order_of
from cluster.venue import (
    VenueError,
    VenueNotFound,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
)
from serve_apps.execution_context import SENDING_AT_ONCE, ExecutionContext
from strategies.model import TERMINAL, Order, OrderStatus

CONSUMER: Final = "execution"
OUTBOX_WAIT_MS: Final = 500
CANCELS_AT_ONCE: Final = 100
ENTRIES_AT_ONCE: Final = 64
GIVEN_AGAIN_S: Final = 5.0
# Once the venue does it again, nothing may wait longer than that before it is tried: both sides are equal in 5 s.
BACKOFF_S: Final = (0.2, 2.0)
# What surely changed nothing at the venue, and may be tried again.
_NOT_REACHED: Final = (VenueUnavailable, VenueThrottled, VenueUnauthorised)


class Carrier:
    """Works the outbox of one account."""

    def __init__(self, context: ExecutionContext) -> None:
        """Nothing is read before ``run``."""
        self._context = context
        self._ledger = context.ledger
        self._venue = context.venue
        self._to_cancel: asyncio.Queue[tuple[str, asyncio.Future[None]]] = asyncio.Queue()
        # Orders whose every attempt so far surely did not reach the venue: they may be sent without asking first.
        self._never_reached: set[str] = set()
        # Entries that are being carried: who asks for what was given and is not finished gets these too.
        self._under_way: set[str] = set()

    async def run(self) -> None:
        """Carry entries as they come, a bounded number at once; one that the venue keeps waiting holds up no other."""
        gate = asyncio.Semaphore(SENDING_AT_ONCE)
        account = self._context.account

        async def carry(entry: OutboxEntry) -> None:
            try:
                await self._carry(entry)
            finally:
                gate.release()

        looked_s = self._context.clock.monotonic_s()

        async with asyncio.TaskGroup() as group:
            group.create_task(self._cancel_together())
            # What was given to the one before us. Much of it may have to wait until it is settled what that one did
            # with it; it keeps its reservation meanwhile, so neither new orders nor the gate need wait for it.
            for entry in await self._ledger.outbox_read(account, CONSUMER, "0", 10_000):
                group.create_task(self._carry(entry))
            while True:
                if self._context.clock.monotonic_s() - looked_s > GIVEN_AGAIN_S:
                    looked_s = self._context.clock.monotonic_s()
                    # An execution that another has fenced may have been given entries after that one has begun.
                    for entry in await self._ledger.outbox_read(account, CONSUMER, "0", 10_000):
                        if entry.entry_id not in self._under_way:
                            group.create_task(self._carry(entry))
                for entry in await self._ledger.outbox_read(account, CONSUMER, ">", ENTRIES_AT_ONCE, OUTBOX_WAIT_MS):
                    if entry.kind == "CANCEL":
                        # A cancel waits behind no order.
                        group.create_task(self._carry(entry))
                        continue
                    self._under_way.add(entry.entry_id)
                    await gate.acquire()
                    group.create_task(carry(entry))

    async def _carry(self, entry: OutboxEntry) -> None:
        """Do what one entry asks, again and again while the venue surely has not done it, then remove it."""
        self._under_way.add(entry.entry_id)
        backoff_s = BACKOFF_S[0]
        while not await self._carried(entry):
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_S[1])
        await self._ledger.outbox_done(self._context.account, [entry.entry_id])
        self._under_way.discard(entry.entry_id)

    async def _carried(self, entry: OutboxEntry) -> bool:
        context = self._context
        fields = await self._ledger.order(context.account, entry.client_order_id)
        if fields is None or OrderStatus(fields["status"]) in TERMINAL:
            return True
        if entry.kind == "CANCEL":
            return await self._cancel(fields)
        if entry.kind == "AMEND":
            return await self._amend(entry.client_order_id, fields)
        first, status = await self._ledger.mark_sent(context.account, context.epoch, entry.client_order_id)
        if not first and status != OrderStatus.SENT:
            return True
        again = not first and entry.client_order_id not in self._never_reached
        if again and context.quiet_s(entry.client_order_id) < context.settled_s:
            # An attempt before us may still be on its way; sending now could make it two.
            return False
        return await self._submit(order_of(entry.client_order_id, context.account, fields), again)

    async def _submit(self, order: Order, again: bool) -> bool:
        """Send one order. ``again``: an earlier attempt may have reached the venue, so it is asked first."""
        context, order_id = self._context, order.client_order_id
        try:
            known = await context.ask(self._venue.order_by_client_id, order_id) if again else None
            # From here on the venue may have it, whatever we hear.
            self._never_reached.discard(order_id)
            context.tried(order_id)
            venue_order_id = known.venue_order_id if known else await context.ask(self._venue.create_order, order)
        except VenueRejected as error:
            context.answered(order_id)
            await self._ledger.release(context.account, context.epoch, order_id, OrderStatus.REJECTED, str(error))
            context.count("rejected")
            return True
        except VenueUnknown as error:
            context.tried(order_id)
            context.failed(f"no answer about order {order_id}", error)
            await self._ledger.ack(context.account, context.epoch, order_id, OrderStatus.UNKNOWN)
            context.count("unknown")
            return True
        except _NOT_REACHED as error:
            context.failed(f"order {order_id} has not reached the venue yet", error)
            if not again:
                self._never_reached.add(order_id)
            return False
        context.answered(order_id)
        await self._ledger.ack(context.account, context.epoch, order_id, OrderStatus.OPEN, venue_order_id)
        context.count("submitted")
        return True

    async def _cancel(self, fields: Mapping[str, str]) -> bool:
        venue_order_id = fields.get("venue_order_id")
        if not venue_order_id:
            # Not acknowledged yet: the answer is on its way, or the settling of UNKNOWN orders will end it.
            return False
        heard: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._to_cancel.put_nowait((venue_order_id, heard))
        try:
            await heard
        except VenueError as error:
            self._context.failed(f"cancel of {venue_order_id} has not reached the venue yet", error)
            return isinstance(error, VenueRejected)
        return True

    async def _cancel_together(self) -> None:
        """Cancels that wait go to the venue in one request: of a thousand orders, ten requests must be enough."""
        while True:
            waiting = [await self._to_cancel.get()]
            while len(waiting) < CANCELS_AT_ONCE and not self._to_cancel.empty():
                waiting.append(self._to_cancel.get_nowait())
            failure: VenueError | None = None
            try:
                await self._context.ask(self._venue.cancel, [venue_order_id for venue_order_id, _ in waiting])
            except VenueError as error:
                failure = error
            for _, heard in waiting:
                if heard.done():
                    # Whoever asked was ended meanwhile.
                    continue
                if failure is None:
                    heard.set_result(None)
                else:
                    heard.set_exception(failure)

    async def _amend(self, order_id: str, fields: Mapping[str, str]) -> bool:
        """Ask for an amendment until it is known whether the venue has made it; asking again changes nothing more."""
        context, venue_order_id = self._context, fields.get("venue_order_id", "")
        if "amend" not in fields:
            return True
        wanted = json.loads(fields["amend"])
        quantity, limit_price = Decimal(wanted["quantity"]), Decimal(wanted["limit_price"])
        try:
            refusal = await self._edited(venue_order_id, quantity, limit_price)
        except (VenueUnknown, *_NOT_REACHED) as error:
            context.failed(f"the amendment of {order_id} is not known to have reached the venue", error)
            return False
        if refusal is None:
            await self._ledger.amended(context.account, context.epoch, order_id)
            context.count("amended")
        else:
            await self._ledger.amend_refused(context.account, context.epoch, order_id, refusal)
        return True

    async def _edited(self, venue_order_id: str, quantity: Decimal, limit_price: Decimal) -> str | None:
        """None where the venue's order is as wanted, else why it is not. Raises what leaves that open."""
        try:
            await self._context.ask(self._venue.edit, venue_order_id, quantity, limit_price)
        except (VenueRejected, VenueNotFound) as error:
            # The attempt before a crash may have done it: the same again is then refused, and yet it is so.
            if await self._is(venue_order_id, quantity, limit_price):
                return None
            return str(error)
        except VenueUnknown:
            if await self._is(venue_order_id, quantity, limit_price):
                return None
            raise
        return None

    async def _is(self, venue_order_id: str, quantity: Decimal, limit_price: Decimal) -> bool:
        try:
            order: Any = await self._context.ask(self._venue.order, venue_order_id)
        except VenueNotFound:
            return False
        return bool((order.quantity, order.limit_price) == (quantity, limit_price))
