"""Runs of the story of orders in which execution dies at a point: one, or all there are; and their table.

A quiet life first writes down every call there is. Then one run for each point: the process kills itself there, a new
one starts, and within 10 s the exchange and the ledger must hold the same: one order at the exchange for each accepted
one, the same fills, positions and cash, nothing lost and nothing twice. After that the story goes on to its end.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from conf.settings import RedisSettings
from tests.crash_points import PHASES, CrashPoint
from tests.execution_rig import ACCOUNT, HURRIED, Rig, rig
from tests.faults.books_check import check_books
from tests.order_story import ENDINGS, Check, Story
from tests.servers import Server, binary

AGREE_S_MAX: Final = 10.0
"""The target. A machine that others use too may be late once; most runs may not, and none by more than three times."""
STEP_S_MAX: Final = 60.0
AT_ONCE: Final = 4
CHANGES: Final = (
    *("ledger.outbox_read", "ledger.order", "ledger.mark_sent", "venue.create_order", "ledger.ack"),
    *("ledger.fill", "ledger.release", "venue.cancel", "ledger.outbox_done", "venue.orders", "venue.fills"),
    *("venue.edit", "ledger.amended", "ledger.amend_refused"),
)
"""Between outbox and ack, fill, release, cancel and amend: the points of the quick run, each once."""
IN_DOUBT: Final = ("ledger.mark_sent", "venue.create_order", "ledger.ack", "venue.cancel")
"""Where a crash leaves an order in doubt for as long as a request may be on its way."""
OFTEN: Final = 2
"""Of a call that only reads or that is repeated for ever, the first so many are points."""
EVERY_ONE: Final = frozenset(CHANGES) - {"ledger.outbox_read", "ledger.order", "venue.orders", "venue.fills"}


Plan = tuple[CrashPoint, ...]
"""Where the first life dies, where the second does, and so on; the one after the last lives."""


@dataclass
class Outcome:
    """What came of one plan; ``agreed_s`` counts from the start of the life that lives. ``calls`` are each life's."""

    plan: Plan
    died: bool
    agreed_s: float
    figures: dict[str, int]
    calls: list[Counter[str]]


async def run(
    server: RedisSettings,
    folder: Path,
    keys: Path | None,
    seed: int,
    plan: Plan,
    constants: Mapping[str, float] = HURRIED,
) -> Outcome:
    """The story once, with execution dying where the plan says."""
    async with rig(server, folder, keys=keys) as made:
        made.constants = constants
        agreed_s = [0.0]

        def begin() -> None:
            lived = len(made.lives)
            assert lived == 0 or made.killed_itself, f"execution ended by itself\n{made.log()}"
            made.begin(plan[lived] if lived < len(plan) else None)

        async def until(check: Check, what: str) -> None:
            async def holds() -> bool:
                if not made.alive:
                    begin()
                    if len(made.lives) > len(plan):
                        agreed_s.append(await made.agree(3 * AGREE_S_MAX))
                return await check()

            await made.until(holds, f"{what} ({'; '.join(map(str, plan))}, seed {seed})", STEP_S_MAX)

        begin()
        await Story(made, seed, until).tell()
        await until(made.agrees, "ledger and exchange agree at the end")
        figures = await _whole(made, seed)
        calls = [made.calls(life) for life in range(len(made.lives))]
        return Outcome(plan, len(made.lives) > len(plan), max(agreed_s), figures, calls)


async def _whole(made: Rig, seed: int) -> dict[str, int]:
    """Every sum of the books made anew; every order where the story left it, once."""
    made.kill()
    statuses = {name: await made.status(name) for name in ENDINGS}
    assert statuses == {name: status.value for name, status in ENDINGS.items()}, (statuses, seed)
    listed = Counter(order.client_order_id for order in await asyncio.to_thread(made.venue.orders))
    twice = [name for name, times in listed.items() if times > 1]
    checked = await check_books(made.ledger, ACCOUNT, made.accepted, lambda _: True)
    checked.assert_whole()
    assert not twice
    return checked.figures() | {"at_venue": len(listed), "undecided": 0}


# -- all points --------------------------------------------------------------------------------------------------------


def points(calls: Counter[str], seed: int, names: Sequence[str] | None = None, often: int = OFTEN) -> list[CrashPoint]:
    """Every point of a life with these ``calls``; with ``names`` each of them once, by chance which.

    Of what only reads one phase is then enough.
    """
    found = []
    chance = random.Random(seed)
    for name in sorted(calls) if names is None else [name for name in names if calls[name]]:
        last = calls[name] if name in EVERY_ONE and often == OFTEN else min(calls[name], often)
        for phase in PHASES if names is None or name in EVERY_ONE else [chance.choice(PHASES)]:
            occurrences = range(1, last + 1) if names is None else [chance.randint(1, last)]
            found += [CrashPoint(name, occurrence, phase) for occurrence in occurrences]
    return found


async def run_all(
    servers: Sequence[RedisSettings],
    folder: Path,
    seed: int,
    names: Sequence[str] | None = None,
    constants: Mapping[str, float] = HURRIED,
    part: tuple[int, int] = (0, 1),
) -> list[Outcome]:
    """A quiet life, then every point, several at once; without ``names`` each point of a recovering life as well.

    ``part`` (k, n) runs every n-th of them from the k-th on.
    """
    quiet = await run(servers[0], _folder(folder, "quiet"), None, seed, ())
    keys = folder / "quiet" / "desk" / "exchange"
    plans: list[Plan] = [(point,) for point in points(quiet.calls[0], seed, names)]
    if names is None:
        first = CrashPoint("venue.create_order", 1 + seed % 4, "sent")
        recovering = await run(servers[0], _folder(folder, "recovering"), keys, seed, (first,))
        plans += [(first, second) for second in points(recovering.calls[1], seed, often=1)]
    plans = plans[part[0] :: part[1]]
    outcomes: list[Outcome] = []

    async def work(server: RedisSettings) -> None:
        while plans:
            plan = plans.pop()
            outcomes.append(await run(server, _folder(folder, f"{len(plans)}"), keys, seed, plan, constants))

    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(work(server))
    return sorted(outcomes, key=lambda outcome: str(outcome.plan))


def table(outcomes: Sequence[Outcome]) -> str:
    """The points by call and phase: how many, how many were reached, the slowest agreement."""
    cells: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        *before, point = outcome.plan
        cells[f"{point.name}{' while recovering' if before else ''}", point.phase].append(outcome)
    lines = [f"{'call':44} {'phase':8} {'points':>6} {'reached':>7} {'agreed after, s (worst)':>24}"]
    for (name, phase), found in sorted(cells.items()):
        reached = [outcome.agreed_s for outcome in found if outcome.died]
        worst = f"{max(reached):.2f}" if reached else ""
        lines.append(f"{name:44} {phase:8} {len(found):6} {len(reached):7} {worst:>24}")
    return "\n".join(lines)


def assert_met(outcomes: Sequence[Outcome]) -> None:
    """Most points were reached (which read comes how often is the machine's speed), and most soon enough."""
    reached = [outcome.agreed_s for outcome in outcomes if outcome.died]
    assert len(reached) >= len(outcomes) * 3 // 4
    assert statistics.median(reached) <= AGREE_S_MAX


def figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """For the report."""
    reached = [outcome.agreed_s for outcome in outcomes if outcome.died]
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts.update(outcome.figures)
    return {
        **counts,
        "points": len(outcomes),
        "points_reached": len(reached),
        "agreed_median_s": round(statistics.median(reached), 3),
        "agreed_worst_s": round(max(reached), 3),
    }


def _folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


@contextmanager
def ledger_servers(folder: Path, count: int) -> Iterator[list[RedisSettings]]:
    """Servers of their own, so that several stories run at once."""
    with ExitStack() as stack:
        places = [_folder(folder, f"server-{number}") for number in range(count)]
        yield [stack.enter_context(Server(binary("valkey"), place).running()) for place in places]
