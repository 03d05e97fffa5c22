"""Seeds of the whole order path: nothing that must hold is violated, and a seed is the same run in every process.

A failure names its seed; ``python -m tests.simulation SEED --trace`` shows every event of it.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest

from tests.simulation.plan import calm_plan
from tests.simulation.sim_venue import VenueFaults
from tests.simulation.sim_wire import WireFaults
from tests.simulation.world import Outcome, run, run_plan

SEEDS: Final = range(200)
NIGHTLY_SEEDS: Final = range(10_000)
FOUND: Final[dict[str, dict[str, Any]]] = {
    "the claim of a killed process came late and ended the one after it, which nobody replaced": {
        "wire": WireFaults(slow=0.3, slow_s=2.0),
        "crashes": 0.5,
    },
    "the ledger's clock was behind, and an order still on its way was taken for one that never came": {
        "ledger_behind_ms": 4_900,
        "venue": VenueFaults(late=0.4, late_s=5.4),
        "orders": 40,
    },
    "an order was filled beyond its size while its strategy was halted, and nothing was said of it": {
        "overfills": 1.0,
        "halts": 1.0,
        "orders": 30,
    },
}
"""What seeds have shown, each as a plan in which it shows soon. A seed alone stands for another run with every change
of the plans."""
FOUND_SEEDS: Final = range(5)


def told(outcome: Outcome) -> list[str]:
    """What was violated, and how to see it."""
    replay = f"replay: python -m tests.simulation {outcome.seed} --trace"
    return [f"seed {outcome.seed}: {what} ({replay})" for what in outcome.violations]


@pytest.mark.timeout(600)
def test_no_seed_violates_what_must_hold() -> None:
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(run, SEEDS, chunksize=10))
    assert [line for outcome in outcomes for line in told(outcome)] == []
    # Were nothing accepted, filled or killed, nothing could go wrong either.
    totals = Counter[str]()
    for outcome in outcomes:
        totals.update(orders=outcome.orders, fills=outcome.fills, crashes=outcome.crashes, events=outcome.events)
    assert totals["orders"] > 5 * len(SEEDS), totals
    assert totals["fills"] > 3 * len(SEEDS), totals
    assert totals["crashes"] > len(SEEDS) // 2, totals


@pytest.mark.parametrize("bug", FOUND)
def test_what_seeds_have_shown_does_not_come_back(bug: str) -> None:
    outcomes = [run_plan(calm_plan(seed, **FOUND[bug])) for seed in FOUND_SEEDS]
    assert [line for outcome in outcomes for line in told(outcome)] == []


def test_a_seed_is_the_same_run_in_another_process() -> None:
    here = {seed: run(seed).trace for seed in (3, 8, 12)}
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", *map(str, reversed(here))]
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        folder = Path(__file__).parents[2]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
        there = {int(seed): trace for seed, trace in re.findall(r"^seed (\d+): .* trace (\w+)$", done.stdout, re.M)}
        assert there == here


def test_two_seeds_are_two_runs() -> None:
    assert run(3).trace != run(8).trace


@pytest.mark.nightly
@pytest.mark.timeout(4 * 3_600)
def test_no_seed_of_ten_thousand_violates_what_must_hold() -> None:
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=500) as pool:
        violated = [line for outcome in pool.map(run, NIGHTLY_SEEDS, chunksize=50) for line in told(outcome)]
    assert violated == []
