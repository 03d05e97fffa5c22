"""What the parts of one account's execution share: ledger and venue, epoch and products, time, threads and counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.clock_check import Clock
from cluster.ledger import Ledger
from cluster.venue import Venue, VenueError, VenueRejected
from conf.settings import ExecutionSettings
from strategies.model import Product

SENDING_AT_ONCE: Final = 16
READING_AT_ONCE: Final = 8
CANCELLING_AT_ONCE: Final = 4

logger = logging.getLogger("ray.serve")

Ask = Callable[..., Awaitable[Any]]
_COUNTED: Final = ("submitted", "filled", "rejected", "cancelled", "unknown", "amended", "adopted")


class VenueThreads:
    """Awaits synchronous calls of the venue on threads: orders, cancels and reads each have their own.

    A venue that keeps orders waiting must hold up neither their cancellation nor the look at what became of them.
    """

    def __init__(self) -> None:
        """No thread is started before the first call."""
        self._orders = ThreadPoolExecutor(SENDING_AT_ONCE, thread_name_prefix="venue-orders")
        self._cancels = ThreadPoolExecutor(CANCELLING_AT_ONCE, thread_name_prefix="venue-cancels")
        self._reads = ThreadPoolExecutor(READING_AT_ONCE, thread_name_prefix="venue-reads")

    async def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call's result; raises what it raises."""
        name = getattr(call, "__name__", "")
        pool = self._cancels if name == "cancel" else self._orders if name in {"create_order", "edit"} else self._reads
        return await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)

    def close(self) -> None:
        """Take no more calls; those under way are not waited for."""
        for pool in (self._orders, self._cancels, self._reads):
            pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class ExecutionContext:
    """One account's execution. ``ask(call, *arguments)`` awaits a call of the venue, ``clock`` is the only clock.

    ``settled_s``: a request that was sent may still be on its way to the venue; only after this long does "not found"
    mean that it never came.
    """

    ledger: Ledger
    venue: Venue
    account: str
    settings: ExecutionSettings
    ask: Ask
    clock: Clock
    settled_s: float
    epoch: int = 0
    products: dict[str, Product] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COUNTED, 0))
    # Calls the venue has failed since the ledger was last told.
    venue_failures: int = 0
    # When this process last had a request about an order under way; of one before us, it may be until now.
    _tried_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin now."""
        self._began_s = self.clock.monotonic_s()

    def failed(self, what: str, error: VenueError) -> None:
        """Note that a call failed; a rejection is an answer, everything else says that the venue is not well."""
        self.venue_failures += not isinstance(error, VenueRejected)
        logger.warning("%s: %s", what, error)

    def tried(self, order_id: str) -> None:
        """Note that a request to place this order is under way now."""
        self._tried_s[order_id] = self.clock.monotonic_s()

    def answered(self, order_id: str) -> None:
        """Note that the venue has said what became of this order."""
        self._tried_s.pop(order_id, None)

    def quiet_s(self, order_id: str) -> float:
        """Seconds since a request to place this order can last have left.

        By this process's own clock: the ledger's stamps are of another, and one of the two may be set meanwhile.
        """
        return self.clock.monotonic_s() - self._tried_s.get(order_id, self._began_s)

    def count(self, what: str, by: int = 1) -> None:
        """Once more of what the heartbeat shows."""
        self.counts[what] += by
