"""Orders through execution to the exchange while something between them is broken, and what came of each.

Everybody here is real: the ledger's server, execution in a process of its own, the exchange over TLS. A figure of the
report is always of both sides: what callers were told (acknowledged), what the exchange lists (at venue).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from strategies.model import Order, OrderStatus, Side, TimeInForce
from tests.crash_points import CALLED
from tests.execution_rig import ACCOUNT, HURRIED, Rig, buy, rig
from tests.faults.books_check import check_books
from tests.servers import Server, binary

UNDECIDED: Final = frozenset({OrderStatus.RESERVED, OrderStatus.SENT, OrderStatus.UNKNOWN})
RESYNC_S_MAX: Final = 15.0
"""The target is 5 s, and the report says what it was; what is asserted leaves room for a machine that others use."""
_CREATE: Final = "venue.create_order"
_SURE: Final = frozenset({"VenueRejected", "VenueUnavailable", "VenueThrottled", "VenueUnauthorised"})
"""After these the venue has no such order, so it may be sent again without asking."""


@dataclass
class VenueLoad:
    """A constant stream of orders of every kind, until it is told to stop."""

    rig: Rig
    seed: int
    rate_per_s: float
    name: str = "v"
    sent: int = 0
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, count: int | None = None) -> None:
        """Until ``stop``, or until ``count`` orders were acknowledged."""
        chance = random.Random(self.seed)
        async with asyncio.TaskGroup() as group:
            while not self._stopped.is_set() and (count is None or self.sent < count):
                order = self._order(chance)
                self.sent += 1
                group.create_task(self._ask(order, chance.uniform(0.0, 1.0) if chance.random() < 0.5 else None))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), 1 / self.rate_per_s)

    def stop(self) -> None:
        """No new orders."""
        self._stopped.set()

    async def _ask(self, order: Order, cancelled_after_s: float | None) -> None:
        await self.rig.reserve(order, 60.0)
        cancelled = cancelled_after_s is not None and order.time_in_force is TimeInForce.GTC
        name = order.client_order_id
        if cancelled and name not in self.rig.denied:
            await asyncio.sleep(cancelled_after_s or 0.0)
            await self.rig.ledger.request_cancel(ACCOUNT, name, "test")

    def _order(self, chance: random.Random) -> Order:
        name, size = f"{self.name}-{self.sent}", str(Decimal(chance.randint(1, 30)).scaleb(-2))
        kind = chance.choice(("market", "sale", "resting", "resting", "refused", "unfilled"))
        if kind == "market":
            return buy(name, "SOL-USD", size)
        if kind == "sale":
            return buy(name, "ETH-USD", size, side=Side.SELL)
        if kind == "resting":
            return buy(name, "ETH-USD", size, str(chance.randint(2000, 2900)))
        if kind == "refused":
            return buy(name, "SOL-USD", size, "160", post_only=True)
        return buy(name, "SOL-USD", size, "140", time_in_force=TimeInForce.FOK)


@asynccontextmanager
async def venue_rig(
    folder: Path, constants: Mapping[str, float] = HURRIED, clock: Path | None = None, **given: Any
) -> AsyncIterator[Rig]:
    """A rig on a server of its own, with execution serving and a time-out of the venue that a test can wait for."""
    place = folder / "server"
    place.mkdir()
    venue = {"timeout_s": 1.0} | given.pop("venue", {})
    with Server(binary("valkey"), place).running() as server:
        async with rig(server, folder, venue=venue, **given) as made:
            made.constants, made.clock = constants, clock
            made.begin()
            await made.serving()
            yield made


async def outcome(made: Rig, report: Callable[..., None], timeout_s: float = 60.0) -> None:
    """Wait until all is the same again, report it, and require it: lost 0, twice 0, books whole, execution alive."""
    try:
        resynced_s = await made.agree(timeout_s)
    finally:
        report(**await sums(made))
    report(resynced_s=round(resynced_s, 3))
    assert made.alive, f"execution has ended\n{made.log()}"
    made.kill()
    listed = Counter(order.client_order_id for order in await asyncio.to_thread(made.venue.orders))
    checked = await check_books(made.ledger, ACCOUNT, made.accepted, lambda _: True)
    twice = {name for name, times in listed.items() if times > 1} | set(checked.duplicated)
    report(lost=len(checked.lost), duplicated=len(twice))
    checked.assert_whole()
    assert not twice


async def sums(made: Rig) -> dict[str, Any]:
    """The figures of the report as they are now."""
    orders = [await made.ledger.order(ACCOUNT, name) or {} for name in made.accepted]
    statuses = [fields.get("status", "") for fields in orders]
    listed = await asyncio.to_thread(made.venue.orders)
    return {
        "acknowledged": len(made.accepted),
        "stored": sum(bool(status) for status in statuses),
        "at_venue": len(listed),
        "undecided": sum(status in UNDECIDED for status in statuses),
        "given_up": sum("no answer" in fields.get("reason", "") for fields in orders),
        "unknown_met": await unknown_met(made),
        "restarts": made.calls()["ledger.claim"] - 1,
    }


async def unknown_met(made: Rig) -> int:
    """How many orders were in doubt at some time, by the audit."""
    found, after = 0, ""
    while entries := await made.ledger.audit_entries(ACCOUNT, after):
        after = entries[-1][0]
        found += sum(fields["kind"] == OrderStatus.UNKNOWN for _, fields in entries)
    return found


def sent_again_without_asking(made: Rig) -> list[str]:
    """Orders that were sent once more after an attempt that left doubt, without a look-up by our id in between."""
    doubtful: set[str] = set()
    found = []
    for kind, name, about in made.lines():
        if kind == CALLED and name == _CREATE and about in doubtful:
            found.append(about)
        elif kind == CALLED and name in {"venue.order_by_client_id", "venue.orders"}:
            # A list of all orders is a look-up too.
            doubtful -= {about} if about else doubtful
        elif name == _CREATE and kind != CALLED:
            doubtful |= {about} if kind not in _SURE else set()
    return found
