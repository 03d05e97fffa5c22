"""What a seed stands for: how long, how many orders, which faults and how often. Drawn once, before anything runs."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.simulation.sim_venue import VenueFaults
from tests.simulation.sim_wire import WireFaults


@dataclass(frozen=True)
class Plan:
    """One run. A rate is how often a second; 0 means that it does not happen in this run."""

    seed: int
    begins_s: float
    lasts_s: float
    orders: int
    cancels: float
    wire: WireFaults
    client_wire: WireFaults
    venue: VenueFaults
    crashes: float
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
    amends: float = 0.0
    strangers: float = 0.0
    stream: bool = False


def plan_of(seed: int) -> Plan:
    """The plan of a seed. Each kind of fault is in some runs only: all at once would leave nothing to go wrong."""
    source = random.Random(f"plan/{seed}")

    def sometimes(share: float, most: float) -> float:
        return source.random() * most if source.random() < share else 0.0

    quiet = source.random() < 0.05
    wire = WireFaults(
        lost=sometimes(0.3, 0.03),
        answer_lost=sometimes(0.3, 0.03),
        reset=sometimes(0.3, 0.05),
        slow=sometimes(0.4, 0.1),
        slow_s=source.choice([0.1, 1.0, 3.0]),
    )
    venue = VenueFaults(
        refused=sometimes(0.3, 0.2),
        lost=sometimes(0.4, 0.1),
        act_and_drop=sometimes(0.5, 0.3),
        late=sometimes(0.4, 0.15),
        late_s=source.choice([1.0, 4.0, 11.0]),
        throttled=sometimes(0.3, 0.2),
        unauthorised=sometimes(0.1, 0.1),
        failing=sometimes(0.3, 0.2),
        garbage=sometimes(0.3, 0.1),
        lists_lag_s=source.choice([0.0, 0.0, 0.3, 2.0]),
        repeats=sometimes(0.3, 0.5),
    )
    return Plan(
        seed=seed,
        begins_s=source.uniform(0, 40_000),
        lasts_s=source.uniform(10, 30),
        orders=source.randint(6, 18),
        cancels=source.choice([0.0, 0.3, 0.7]),
        wire=WireFaults() if quiet else wire,
        client_wire=WireFaults() if quiet else WireFaults(
            lost=sometimes(0.3, 0.1), answer_lost=sometimes(0.5, 0.2), reset=sometimes(0.3, 0.1), slow=wire.slow
        ),
        venue=VenueFaults() if quiet else venue,
        crashes=0.0 if quiet else sometimes(0.6, 0.3),
        doubles=0.0 if quiet else sometimes(0.25, 0.1),
        server_restarts=0.0 if quiet else sometimes(0.25, 0.1),
        venue_restarts=0.0 if quiet else sometimes(0.15, 0.1),
        clock_jumps=0.0 if quiet else sometimes(0.2, 0.1),
        price_moves=sometimes(0.7, 0.6),
        forced_fills=sometimes(0.7, 1.0),
        repeated_fills=0.0 if quiet else sometimes(0.3, 0.3),
        user_cancels=sometimes(0.4, 0.3),
        halts=sometimes(0.2, 0.1),
        cancel_delay_ms=source.choice([0, 0, 300, 2_000]),
        restart_at_end=source.random() < 0.5,
    )  # fmt: skip
