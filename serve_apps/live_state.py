"""The venue's channels heard for one account: orders that change wake whoever settles them, quotes become references.

Nothing here is believed further than the connection is whole: after each new connection and each gap everything is
asked for again, and while a channel is down, or says nothing of a product, the venue is polled as if there were none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from decimal import ROUND_FLOOR, Decimal
from typing import Final, Protocol

from cluster.ledger import Reference
from cluster.venue import Quote, VenueError
from cluster.venue_stream import Connected, Gap, Lost, OrderUpdate, StreamError, StreamEvent
from serve_apps.execution_context import ExecutionContext

# A quote that was not renewed for so long is asked for: the ticker only speaks when something was traded.
QUOTE_FRESH_S: Final = 5.0
USER_GROUP: Final = "user"

logger = logging.getLogger("ray.serve")


class Stream(Protocol):
    """What is listened to: ``cluster.venue_stream.VenueStream``."""

    def events(self) -> AsyncIterator[StreamEvent]:
        """Everything that comes, for ever."""
        ...

    async def close(self) -> None:
        """End ``events``."""
        ...


class LiveState:
    """What the channels have said lately, and whether they can be relied on."""

    def __init__(self, context: ExecutionContext, wake: Callable[[], None]) -> None:
        """``wake`` is called when there is something for whoever settles orders."""
        self._context = context
        self._wake = wake
        self._updates: dict[str, OrderUpdate] = {}
        self._quotes: dict[str, tuple[float, Quote]] = {}
        self._user_connected = False
        self._resync = True
        self.lost = 0

    @property
    def heard(self) -> bool:
        """Whether changes of orders are heard now; without, they must be polled."""
        return self._user_connected

    def take(self) -> tuple[list[OrderUpdate], bool]:
        """Orders that have changed since the last call, and whether something may have been missed."""
        updates, self._updates = list(self._updates.values()), {}
        resync, self._resync = self._resync, False
        return updates, resync

    def give_back(self, updates: list[OrderUpdate], resync: bool) -> None:
        """What was taken and could not be settled counts again; what has come since is newer."""
        self._updates = {update.venue_order_id: update for update in updates} | self._updates
        self._resync = self._resync or resync

    async def listen(self, stream: Stream) -> None:
        """Take in everything that comes; returns when the stream is closed."""
        async for event in stream.events():
            self.hear(event)

    def hear(self, event: StreamEvent) -> None:
        """One event."""
        if isinstance(event, OrderUpdate):
            self._updates[event.venue_order_id] = event
            self._wake()
        elif isinstance(event, Quote):
            self._quotes[event.product_id] = (self._context.clock.monotonic_s(), event)
        elif isinstance(event, Connected):
            if event.channel_group == USER_GROUP:
                self._user_connected = True
                self._missed()
        elif isinstance(event, Gap):
            logger.warning("the venue's channel skipped from %d to %d", event.expected, event.got)
            self._missed()
        elif isinstance(event, Lost):
            self.lost += 1
            # The venue is then asked, so a connection that comes and goes says nothing about its health.
            logger.warning("the venue's channel is lost: %s", event.reason)
            if event.channel_group in {USER_GROUP, ""}:
                self._user_connected = False
                self._missed()
        elif isinstance(event, StreamError):
            # It may have been about an order of ours, and could not be read.
            logger.warning("the venue's channel says: %s", event.message)
            self._missed()

    def _missed(self) -> None:
        self._resync = True
        self._wake()

    # -- prices --------------------------------------------------------------------------------------------------------

    async def set_references(self, product_ids: list[str]) -> None:
        """Bring best bid and ask of the products into the ledger, each with its age; raises ``VenueError``.

        A failure of the venue leaves the others in: prices then grow old, and the ledger denies what it cannot value.
        """
        context, now_s = self._context, self._context.clock.monotonic_s()
        fresh = {
            name: (now_s - heard_s, quote)
            for name in product_ids
            if (known := self._quotes.get(name)) is not None
            for heard_s, quote in (known,)
            if now_s - heard_s <= QUOTE_FRESH_S
        }
        missing, failure = [name for name in product_ids if name not in fresh], None
        if missing:
            try:
                polled: list[Quote] = await context.ask(context.venue.best_bid_ask, missing)
                fresh |= {quote.product_id: (0.0, quote) for quote in polled}
            except VenueError as error:
                failure = error
        references = [self._reference(age_s, quote) for age_s, quote in fresh.values()]
        await context.ledger.set_references(context.account, [one for one in references if one is not None])
        if failure is not None:
            raise failure

    def _reference(self, age_s: float, quote: Quote) -> Reference | None:
        product = self._context.products.get(quote.product_id)
        if product is None or min(quote.bid, quote.ask) <= 0:
            return None
        # A price between two ticks (an increment that has just changed) is widened, not a reason to stop.
        bid, ask = _down(quote.bid, product.quote_increment), -_down(-quote.ask, product.quote_increment)
        if bid <= 0:
            return None
        return Reference(product, bid, ask, quote.bid_size, quote.ask_size, round(age_s * 1000))


def _down(price: Decimal, increment: Decimal) -> Decimal:
    return (price / increment).to_integral_value(ROUND_FLOOR) * increment


async def heard_or_later(wake: asyncio.Event, wait_s: float) -> None:
    """Return when ``wake`` is set, or after ``wait_s`` seconds."""
    try:
        # Not wait_for: in Python 3.11 that swallows a cancellation which comes in the turn in which it would return.
        async with asyncio.timeout(wait_s):
            await wake.wait()
    except TimeoutError:
        return
    finally:
        wake.clear()
