"""A hundred nodes on paper: a million sets over a thousand workers, simulated with the plan the sweep itself uses.

    python -m tests.bench.bench_scheduling [--quick | --real SETS]

The driver is one server that handles one event after the other: a block handed out, a block done. What that costs
(``--trial-cost-s``) is measured by bench_distributed. Workers start one after the other, differ in speed, some are slow
(stragglers), and die at random; a dead one's block is computed again after a new one has started. Each block also costs
its worker a part to write. ``efficiency`` is the work in seconds of an ordinary worker, over workers times wall time.

``--real SETS`` instead puts so many made-up sets into parts and runs the real ``finished_blocks``, ``assemble``,
``columns_of``, ``rank`` and ``write_results`` over them: seconds and memory.
"""

from __future__ import annotations

import argparse
import heapq
import json
import platform
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.run_folder import Block
from jobs import plan as plans
from jobs.plan import GridPlan, ParameterSets
from strategies.metrics import METRICS
from strategies.model import Float64Array
from strategies.nearness import places
from strategies.registry import find

SEED: Final = 7
WORKER_START_S: Final = 2.0
RESTART_S: Final = 30.0
# What the table of a distinct window costs a block, in sets: measured for SMA crosses on a million bars, 1.5 ms a table
# and 0.8 ms a set by its changes; bar by bar there are no tables.
TABLE_SETS: Final = {"by change": 2, "by bar": 0}
# Sets over a million bars: seconds of one more set, and over how many workers they are simulated.
SWEEPS: Final = (
    ("by change", 1.2e-3, (2, 16, 100)),
    ("by bar", 1e-2, (2, 16, 100)),
    ("by bar", 6e-1, (100, 1_000)),
)
PART_S: Final = 0.02
PART_SET_S: Final = 2e-6
STRAGGLERS: Final = 0.01
STRAGGLER_SLOWER: Final = 4.0
DEATHS_PER_HOUR: Final = 0.1


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything: for the tests")
    parser.add_argument("--real", type=int, metavar="SETS", help="the real code over so many made-up sets")
    parser.add_argument("--trial-cost-s", type=float, default=plans.TRIAL_COST_S)
    options = parser.parse_args(arguments)
    if options.real:
        print(json.dumps({"bench": "scheduling, real code", **machine(), **real(options.real)}, indent=2))
        return
    sets = 100_000 if options.quick else 1_000_000
    rows = [
        simulated(kind, sets, set_s, workers, options.trial_cost_s, faults)
        for kind, set_s, counts in SWEEPS
        for workers in (counts[-1:] if options.quick else counts)
        for faults in (False, True)
    ]
    report = {
        "bench": "scheduling",
        **machine(),
        "sets": sets,
        "seed": SEED,
        "trial_cost_s": options.trial_cost_s,
        "stragglers": f"{STRAGGLERS:.0%} of the workers, {STRAGGLER_SLOWER:g} times slower",
        "deaths_per_worker_and_hour": DEATHS_PER_HOUR,
        "a_table_costs_as_many_sets": TABLE_SETS,
        "runs": rows,
    }
    print(json.dumps(report, indent=2))


def machine() -> dict[str, str]:
    """Where this was run."""
    return {"machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}"}


def simulated(kind: str, sets: int, set_s: float, workers: int, trial_cost_s: float, faults: bool) -> dict[str, Any]:
    """One sweep of ``sets`` sets of which one more costs a block ``set_s`` seconds."""
    world = World(grid(sets), workers, set_s, TABLE_SETS[kind], trial_cost_s, faults)
    began_s = time.process_time()
    world.run()
    each_s = sets * set_s / workers
    return {
        "kernel": kind,
        "workers": workers,
        "work_s_each": round(each_s, 1),
        "faults": faults,
        "wall_s": round(world.now_s, 1),
        "efficiency": round(each_s / world.now_s, 3),
        "blocks": world.blocks,
        "blocks_lost": world.lost,
        "driver_busy": round(world.driver_busy_s / world.now_s, 3),
        "longest_block_s": round(world.longest_s, 1),
        "plan_cpu_s": round(time.process_time() - began_s, 2),
    }


def grid(sets: int) -> ParameterSets:
    """Two grids of SMA crosses, the second a fifth of the first."""
    first = sets * 5 // 6
    return [("sma_cross", _matrix(count)) for count in (first, sets - first)]


def _matrix(count: int) -> Float64Array:
    place = np.arange(count)
    columns = [place // 2_000, place // 2 % 1_000 + 5_000, place % 2, *([np.zeros(count)] * 4), *([np.ones(count)] * 2)]
    matrix = np.stack(columns, axis=1).astype(np.float64)
    return matrix[np.argsort(places(find("sma_cross"), matrix), kind="stable")]


@dataclass
class World:
    """A driver and its workers in virtual time."""

    sets: ParameterSets
    workers: int
    set_s: float
    table_sets: int
    trial_cost_s: float
    faults: bool
    now_s: float = 0.0
    driver_busy_s: float = 0.0
    blocks: int = 0
    lost: int = 0
    longest_s: float = 0.0
    _events: list[tuple[float, int, int, Block | None, float]] = field(default_factory=list)
    _count: int = 0

    def run(self) -> None:
        """Until every set is done."""
        chance = random.Random(SEED)
        plan = GridPlan(self.sets, workers=self.workers)
        # The driver has computed the first block of each grid itself.
        while not plan.all_known and (block := plan.next()) is not None:
            plan.done(block, self.seconds(block))
            self.now_s += self.seconds(block)
        slower = [
            STRAGGLER_SLOWER if self.faults and chance.random() < STRAGGLERS else chance.uniform(0.95, 1.1)
            for _ in range(self.workers)
        ]
        for worker in range(self.workers):
            self._push(self.now_s + WORKER_START_S, worker, None, 0.0)
        idle: list[int] = []
        while not plan.finished:
            at_s, _, worker, block, seconds = heapq.heappop(self._events)
            self._drive(at_s)
            if block is not None and seconds < 0:
                self.lost += 1
                plan.lost(block)
            elif block is not None:
                plan.done(block, seconds)
                self.blocks += 1
                self.longest_s = max(self.longest_s, seconds)
            idle.append(worker)
            while idle and (following := plan.next()) is not None:
                self._drive(self.now_s)
                self._begin(idle.pop(), following, slower, chance)

    def seconds(self, block: Block) -> float:
        """What a block takes an ordinary worker; tables that its sets share make small ones dearer."""
        size = block.stop - block.start
        first = sum(len(matrix) for _, matrix in self.sets[: block.grid])
        rows = self.sets[block.grid][1][block.start - first : block.stop - first] if self.table_sets else None
        tables = 0 if rows is None else sum(np.unique(rows[:, column]).size for column in (0, 1))
        return (self.table_sets * tables + size) * self.set_s + PART_S + size * PART_SET_S

    def _begin(self, worker: int, block: Block, slower: list[float], chance: random.Random) -> None:
        seconds = self.seconds(block) * slower[worker]
        dies_s = chance.expovariate(DEATHS_PER_HOUR / 3_600) if self.faults else seconds + 1
        if dies_s < seconds:
            self._push(self.now_s + dies_s + RESTART_S, worker, block, -1.0)
        else:
            self._push(self.now_s + seconds, worker, block, seconds)

    def _drive(self, at_s: float) -> None:
        """The driver turns to an event when it has time; half a trial's cost is for its begin, half for its end."""
        self.now_s = max(self.now_s, at_s) + self.trial_cost_s / 2
        self.driver_busy_s += self.trial_cost_s / 2

    def _push(self, at_s: float, worker: int, block: Block | None, seconds: float) -> None:
        self._count += 1
        heapq.heappush(self._events, (at_s, self._count, worker, block, seconds))


def real(sets: int) -> dict[str, Any]:
    """Seconds and memory of what a driver does with the parts of so many sets."""
    from cluster.run_folder import RunFolder
    from cluster.runs import prepare_run
    from jobs import honesty, results
    from jobs.parts import Identity, finished_blocks, write_part
    from tests.run_samples import make_store, wavy_bars

    rows = max(2, round(sets / 2_000))
    content = {
        "product_id": "BTC-USD",
        "granularity": "ONE_HOUR",
        "max_sets": 2 * sets,
        "grids": [
            {
                "strategy": "sma_cross",
                "grid": {
                    "fast": {"start": 1, "stop": rows, "step": 1},
                    "slow": {"start": 5_001, "stop": 6_000, "step": 1},
                    "allow_short": [0, 1],
                },
            }
        ],
    }
    from strategies.spec import parse_spec

    with tempfile.TemporaryDirectory(prefix="tt-bench-") as name:
        store = make_store(Path(name) / "bars", wavy_bars(8_000))
        clock = Clock()
        spec = parse_spec(content)
        folder: RunFolder = prepare_run(Path(name) / "runs", store, spec, "real")
        record, matrix = folder.record(), spec.parameter_sets()
        clock.lap("prepare_s")
        plan = GridPlan(matrix, workers=1_000)
        cuts = []
        while (block := plan.next()) is not None:
            plan.done(block, 0.02 * (block.stop - block.start))
            cuts.append(block)
        clock.lap("plan_s")
        chance, segments = np.random.default_rng(SEED), len(record.cuts) - 1
        for block in cuts:
            size = block.stop - block.start
            moments = np.abs(chance.normal(size=(size, segments, 6))) * 1e-3
            moments[:, :, 0] = np.diff(record.cuts)
            metrics = chance.normal(size=(size, len(METRICS)))
            write_part(folder, block, matrix[0][1][block.start : block.stop], metrics, moments, Identity.of(record))
        clock.lap("write_parts_s")
        assert len(finished_blocks(folder, record)) == len(cuts)
        clock.lap("finished_blocks_s")
        table, moments = results.assemble(folder, record, matrix)
        clock.lap("assemble_s")
        study = honesty.study_of(matrix, moments, np.array(record.cuts), 8_766.0, 0)
        columns = honesty.columns_of(study)
        clock.lap("honest_columns_s")
        ranked = results.rank(table, columns, spec)
        results.write_results(folder, ranked)
        clock.lap("rank_and_write_s")
        folder.leaderboard(50)
        clock.lap("leaderboard_s")
        return {
            "sets": record.set_count,
            "blocks": len(cuts),
            "cpu_seconds": clock.laps_s,
            "parts_mb": round(sum(path.stat().st_size for path in folder.parts_dir.iterdir()) / 1e6),
            "results_mb": round(folder.results_file.stat().st_size / 1e6),
            "anonymous_memory_mb": clock.most_mb,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


class Clock:
    """Processor seconds from lap to lap, and the most memory of this process that no file backs."""

    def __init__(self) -> None:
        self.laps_s: dict[str, float] = {}
        self.most_mb = 0
        self._since_s = time.process_time()

    def lap(self, name: str) -> None:
        """The lap that ends here."""
        now_s = time.process_time()
        self.laps_s[name] = round(now_s - self._since_s, 2)
        lines = Path("/proc/self/status").read_text().splitlines()
        anonymous = next((line for line in lines if line.startswith("RssAnon")), "RssAnon: 0 kB")
        self.most_mb = max(self.most_mb, int(anonymous.split()[1]) // 1024)
        self._since_s = time.process_time()


if __name__ == "__main__":
    main()
