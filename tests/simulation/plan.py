"""What a seed stands for: how long, how many orders, which faults and how often. Drawn once, before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any, Final

from tests.simulation.sim_stream import StreamFaults
from tests.simulation.sim_venue import VenueFaults
from tests.simulation.sim_wire import WireFaults


@dataclass(frozen=True)
class Plan:
    """One run. A rate is how often a second; 0 means that it does not happen in this run.

    ``fuse_calls``: each life of execution ends in one of its first so many calls that move an order on, when it is
    carried out and not yet answered.
    """

    seed: int
    begins_s: float
    lasts_s: float
    orders: int
    cancels: float
    wire: WireFaults
    client_wire: WireFaults
    venue: VenueFaults
    crashes: float
    fuse_calls: int
    doubles: float
    server_restarts: float
    venue_restarts: float
    clock_jumps: float
    price_moves: float
    forced_fills: float
    repeated_fills: float
    user_cancels: float
    halts: float
    cancel_delay_ms: int
    restart_at_end: bool
    amends: float
    strangers: float
    overfills: float
    deposits: float
    odd_statuses: float
    product_flags: float
    kinds: float
    stream: StreamFaults | None
    ledger_behind_ms: int = 0


_RATES: Final = (
    *("crashes", "doubles", "server_restarts", "venue_restarts", "clock_jumps", "price_moves", "forced_fills"),
    *("repeated_fills", "user_cancels", "halts", "strangers", "overfills", "deposits", "odd_statuses", "product_flags"),
)


def calm_plan(seed: int, **changed: Any) -> Plan:
    """A run in which nothing goes wrong but what is named."""
    plan = replace(plan_of(seed), **dict.fromkeys(_RATES, 0.0))  # type: ignore[arg-type]
    none = {"wire": WireFaults(), "client_wire": WireFaults(), "venue": VenueFaults(), "stream": None, "fuse_calls": 0}
    return replace(plan, **none | changed)  # type: ignore[arg-type]


def plan_of(seed: int) -> Plan:
    """The plan of a seed. Each kind of fault is in some runs only: all at once would leave nothing to go wrong."""
    source = random.Random(f"plan/{seed}")

    def sometimes(share: float, most: float) -> float:
        return source.random() * most if source.random() < share else 0.0

    quiet = source.random() < 0.05
    wire = WireFaults(
        lost=sometimes(0.3, 0.004),
        answer_lost=sometimes(0.3, 0.004),
        reset=sometimes(0.3, 0.05),
        slow=sometimes(0.4, 0.05),
        slow_s=source.choice([0.1, 0.5, 2.0]),
    )
    venue = VenueFaults(
        refused=sometimes(0.3, 0.2),
        lost=sometimes(0.5, 0.2),
        act_and_drop=sometimes(0.5, 0.3),
        late=sometimes(0.5, 0.2),
        late_s=source.choice([1.0, 4.0, 11.0]),
        throttled=sometimes(0.3, 0.2),
        unauthorised=sometimes(0.1, 0.1),
        failing=sometimes(0.3, 0.2),
        garbage=sometimes(0.4, 0.1),
        lists_lag_s=source.choice([0.0, 0.0, 0.3, 2.0]),
        repeats=sometimes(0.3, 0.5),
    )
    calm = WireFaults()
    return Plan(
        seed=seed,
        begins_s=source.uniform(0, 40_000),
        lasts_s=source.uniform(8, 22),
        orders=source.randint(8, 24),
        cancels=source.choice([0.0, 0.3, 0.7]),
        wire=calm if quiet else wire,
        client_wire=calm if quiet else WireFaults(
            lost=sometimes(0.3, 0.1), answer_lost=sometimes(0.5, 0.2), reset=sometimes(0.3, 0.1), slow=wire.slow
        ),
        venue=VenueFaults() if quiet else venue,
        crashes=0.0 if quiet else sometimes(0.3, 0.3),
        fuse_calls=source.choice([3, 10, 40]) if not quiet and source.random() < 0.6 else 0,
        doubles=0.0 if quiet else sometimes(0.2, 0.1),
        server_restarts=0.0 if quiet else sometimes(0.2, 0.15),
        venue_restarts=0.0 if quiet else sometimes(0.15, 0.15),
        clock_jumps=0.0 if quiet else sometimes(0.2, 0.15),
        price_moves=sometimes(0.7, 0.6),
        forced_fills=sometimes(0.7, 2.0),
        repeated_fills=0.0 if quiet else sometimes(0.3, 0.5),
        user_cancels=sometimes(0.4, 1.0),
        halts=sometimes(0.35, 0.4),
        cancel_delay_ms=source.choice([0, 0, 300, 2_000]),
        restart_at_end=source.random() < 0.5,
        amends=source.choice([0.0, 0.3, 0.6]),
        strangers=sometimes(0.15, 0.3),
        overfills=sometimes(0.12, 0.6),
        deposits=sometimes(0.08, 0.3),
        odd_statuses=0.0 if quiet else sometimes(0.2, 0.4),
        product_flags=0.0 if quiet else sometimes(0.15, 0.2),
        kinds=source.choice([0.0, 0.3, 0.6]),
        stream=None if source.random() < 0.3 else StreamFaults() if quiet else StreamFaults(
            lost=sometimes(0.4, 0.1), repeated=sometimes(0.3, 0.1), late=sometimes(0.3, 0.2),
            closed=sometimes(0.4, 0.2), silent=sometimes(0.3, 0.1), refused=sometimes(0.2, 0.5),
        ),
    )  # fmt: skip
