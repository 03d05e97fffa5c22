"""Speed of the backtest engine: million bar x parameter-set evaluations a second on one core, per strategy, as JSON.

    python -m tests.bench.bench_kernel [--quick | bars [sets]]

Whole units of work are measured: ``run_block`` from bars to metrics, best of five, in seconds of processor time (what
else runs on the machine still shows, by the caches and the clock it takes).
"""

from __future__ import annotations

import json
import platform
import sys
import time

import numpy as np

from strategies.backtest import Costs, run_block, warm
from strategies.base import own_parameters
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES

SEED = 42


def main(length: int = 500_000, sets: int = 8) -> None:
    began = time.perf_counter()
    warm()
    warm_s = time.perf_counter() - began
    bars = made_up_bars(length)
    speeds = {name: speed(name, matrix_of(name, sets), bars) for name in STRATEGIES}
    report = {
        "bench": "kernel",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "bars": length,
        "sets": sets,
        "seed": SEED,
        "warm_s": round(warm_s, 3),
        "mev_per_s_one_core": {name: round(value, 1) for name, value in speeds.items()},
    }
    print(json.dumps(report, indent=2))


def speed(name: str, matrix: Float64Array, bars: Bars) -> float:
    """Million evaluations a second, best of five."""
    times_s = []
    for _ in range(5):
        began = time.thread_time()
        run_block(name, matrix, bars, Costs(fee_bps=10))
        times_s.append(time.thread_time() - began)
    return len(matrix) * len(bars) / min(times_s) / 1e6


def matrix_of(name: str, sets: int) -> Float64Array:
    """The defaults, every window (and whatever else is a whole number above one) a little longer from row to row."""
    rows = np.tile(STRATEGIES[name].params().vector(), (sets, 1))
    for column, info in enumerate(own_parameters(STRATEGIES[name])):
        if info.kind == "int" and info.high > 1:
            rows[:, column] += np.arange(sets)
    return rows


def made_up_bars(length: int) -> Bars:
    """A seeded random walk of minutes with 0.05 % a bar."""
    close = 100.0 * np.exp(np.cumsum(0.0005 * np.random.default_rng(SEED).standard_normal(length)))
    open_ = np.concatenate([close[:1], close[:-1]])
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_MINUTE.ns
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return Bars("BTC-USD", Granularity.ONE_MINUTE, ts_ns, open_, high, low, close, np.ones(length))


if __name__ == "__main__":
    given = sys.argv[1:3]
    main(*((50_000, 2) if given == ["--quick"] else (int(argument) for argument in given)))
