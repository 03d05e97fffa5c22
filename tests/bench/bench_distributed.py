"""What a sweep on Ray costs beside its kernel: one worker and two, in one run, as JSON.

    python -m tests.bench.bench_distributed [--rules] [--quick | --bars N --seconds S]

The same sets are computed by the bare kernel before and after each sweep (``bare`` is the mean: a clock that changes in
between changes both), in as many processes as the sweep has workers, in one call a grid; two that share a cache need
more processor seconds than one. The sweep runs as users run it (``python -m jobs.sweep``): once in one process without
Ray (``alone``), then on a Ray head with one CPU, and on one with two. Processor seconds of driver and workers are read
from the kernel's books, so that what else the machine does counts as little as it can.

A minute is 100,000 sets that are paid for by their changes of target, or, with ``--rules`` (every set has a stop), some
5,000 that are gone through bar by bar; ranking and statistics cost by the set, so the two differ in what surrounds the
kernel.

- ``overhead_cpu``: driver and workers over the bare kernel, less 1. The driver also ranks, does the statistics and
  draws the report, which the bare kernel does not.
- ``overhead_of_ray_cpu``: driver and workers over the sweep alone, less 1: Ray and Tune. What the bare kernel needs
  more in two processes than in one is no work of theirs and is added to the sweep alone.
- ``overhead_of_workers_cpu``: the workers over the bare kernel, less 1.
- ``overhead_wall``: the sweep's wall time over the bare kernel's, less 1; needs a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from cluster.market_data import SIMULATED, BarStore
from cluster.runs import RunFolder, prepare_run
from strategies.backtest import SweepSpec, evaluate, parse_spec, warm
from strategies.model import Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS
from tests.ray_head import RayHead, ray_head

SEED: Final = 7
WORKERS: Final = (1, 2)
WORKER: Final = "ray::ImplicitFunc"
POLL_S: Final = 0.1
FAST: Final = {"start": 5, "stop": 104, "step": 1}
STOP_LOSS: Final = [0.05]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds of work: for the tests")
    parser.add_argument("--rules", action="store_true", help="every set has a stop, which the general loop computes")
    parser.add_argument("--bars", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="about so long the bare kernel runs")
    options = parser.parse_args(arguments)
    bars_count, seconds = (20_000, 2.0) if options.quick else (options.bars, options.seconds)
    warm()
    with tempfile.TemporaryDirectory(prefix="tt-bench-") as name:
        folder = Path(name)
        store = BarStore(folder / "bars")
        bars = walking_bars(bars_count)
        store.write(bars, source=SIMULATED)
        spec = spec_of_seconds(bars, seconds, options.rules)
        report: dict[str, Any] = {
            "bench": "distributed",
            "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
            "rules": options.rules,
            "bars": bars_count,
            "sets": sum(len(matrix) for _, matrix in spec.parameter_sets()),
            "seed": SEED,
            "alone": computed(prepare_run(folder / "runs", store, spec, "alone"), store),
            "workers": {},
        }
        for workers in WORKERS:
            run = prepare_run(folder / "runs", store, spec, f"workers-{workers}")
            before = bare_kernel(spec, bars, workers)
            with ray_head(num_cpus=workers) as head:
                figures = computed(run, store, head)
            after = bare_kernel(spec, bars, workers)
            figures["bare"] = bare = {name: round((before[name] + after[name]) / 2, 2) for name in before}
            figures["overhead_cpu"] = round(figures["cpu_s"] / bare["cpu_s"] - 1, 3)
            sharing_s = bare["cpu_s"] - report["workers"].get(1, figures)["bare"]["cpu_s"]
            figures["overhead_of_ray_cpu"] = round(figures["cpu_s"] / (report["alone"]["cpu_s"] + sharing_s) - 1, 3)
            figures["overhead_of_workers_cpu"] = round(sum(figures["worker_cpu_s"]) / bare["cpu_s"] - 1, 3)
            figures["overhead_wall"] = round(figures["wall_s"] / bare["wall_s"] - 1, 3)
            report["workers"][workers] = figures
        tables = [path.read_bytes() for path in (folder / "runs").glob("*/results.parquet")]
        report["tables_are_equal"] = len(tables) == 1 + len(WORKERS) and len(set(tables)) == 1
        computing = [figures["timings_s"]["computing"] for figures in report["workers"].values()]
        report["two_workers_are_faster_by"] = round(computing[0] / computing[1], 2)
    print(json.dumps(report, indent=2))


def walking_bars(count: int) -> Bars:
    """A seeded random walk of 60 % a year: nothing is lost but costs, so every set's equity stays within doubles."""
    step = 0.6 * np.sqrt(Granularity.ONE_MINUTE.seconds / (365.25 * 86_400))
    close = 20_000 * np.exp(np.cumsum(step * np.random.default_rng(SEED).standard_normal(count)))
    opened = np.concatenate([[20_000.0], close[:-1]])
    ts_ns = NEW_YEAR_NS + np.arange(count, dtype=np.int64) * Granularity.ONE_MINUTE.ns
    high, low = np.maximum(opened, close), np.minimum(opened, close)
    return Bars("BTC-USD", Granularity.ONE_MINUTE, ts_ns, opened, high, low, close, np.ones(count))


def spec_of_seconds(bars: Bars, seconds: float, rules: bool) -> SweepSpec:
    """A grid of SMA crosses over these bars for which the bare kernel takes about so long."""
    small = _spec(2 if rules else max(2, round(2 * seconds)), rules)
    (_, matrix), *_ = small.parameter_sets()
    evaluate("sma_cross", matrix[:1], bars, small.costs, cuts=_cuts(bars))  # loads the kernels, which is no set's cost
    began_s = time.thread_time()
    evaluate("sma_cross", matrix, bars, small.costs, cuts=_cuts(bars))
    per_set_s = (time.thread_time() - began_s) / len(matrix)
    return _spec(max(2, round(seconds / per_set_s / 100)), rules)


def _spec(slow_windows: int, rules: bool) -> SweepSpec:
    slow = {"start": 110, "stop": 109 + slow_windows, "step": 1}
    grid = {"fast": FAST, "slow": slow} | ({"stop_loss": STOP_LOSS} if rules else {})
    content = {"product_id": "BTC-USD", "granularity": "ONE_MINUTE", "costs": {"fee_bps": 10}}
    return parse_spec(content | {"grids": [{"strategy": "sma_cross", "grid": grid}]})


def _cuts(bars: Bars) -> Any:
    from strategies.segments import plan_segments

    return plan_segments(len(bars))


def bare_kernel(spec: SweepSpec, bars: Bars, processes: int) -> dict[str, float]:
    """Everything in one call a grid and process: wall seconds, and processor seconds of all processes."""

    def part(number: int, spent: Any) -> None:
        began_s = time.process_time()
        for name, matrix in spec.parameter_sets():
            mine = matrix[len(matrix) * number // processes : len(matrix) * (number + 1) // processes]
            found = evaluate(name, mine, bars, spec.costs, spec.sizing, _cuts(bars))
            assert np.isfinite(found.metrics[:, 0]).all()
        spent.put(time.process_time() - began_s)

    fork = multiprocessing.get_context("fork")
    spent: Any = fork.SimpleQueue()
    began_s = time.perf_counter()
    running = [fork.Process(target=part, args=(number, spent)) for number in range(processes)]
    for one in running:
        one.start()
    for one in running:
        one.join()
    if any(one.exitcode for one in running):
        raise SystemExit("the bare kernel failed")
    wall_s = time.perf_counter() - began_s
    return {"wall_s": round(wall_s, 2), "cpu_s": round(sum(spent.get() for _ in running), 2)}


def computed(run: RunFolder, store: BarStore, head: RayHead | None = None) -> dict[str, Any]:
    """The sweep as a driver of its own, alone or on a head: wall and processor seconds, phases, blocks."""
    program = "import sys; from jobs import sweep; sweep.WORKER_SECONDS_MIN = 1e18; sys.exit(sweep.main(sys.argv[1:]))"
    words = ["-c", program] if head is None else ["-m", "jobs.sweep"]
    argv = [sys.executable, *words, "--run-dir", str(run.path), "--bars-dir", str(store.root)]
    environment = os.environ if head is None else head.environment
    began_s = time.perf_counter()
    with (run.path / "driver.log").open("ab") as log:
        driver = psutil.Popen(argv, env=dict(environment), stdout=log, stderr=subprocess.STDOUT)
    spent: dict[int, float] = {}
    driver_s = 0.0
    while driver.poll() is None:
        for process in [driver, *(head.workers(WORKER) if head else ())]:
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue  # it has ended meanwhile
            if process.pid == driver.pid:
                driver_s = times.user + times.system
            else:
                spent[process.pid] = times.user + times.system
        time.sleep(POLL_S)
    wall_s = time.perf_counter() - began_s
    if driver.returncode != 0:
        raise SystemExit((run.path / "driver.log").read_text())
    summary = run.summary()
    return {
        "wall_s": round(wall_s, 2),
        "cpu_s": round(driver_s + sum(spent.values()), 2),
        "driver_cpu_s": round(driver_s, 2),
        "worker_cpu_s": [round(seconds, 2) for seconds in spent.values()],
        "blocks": summary["block_count"],
        "timings_s": summary["timings_s"],
        "mev_per_s": round(summary["evaluations"] / wall_s / 1e6, 1),
    }


if __name__ == "__main__":
    main()
