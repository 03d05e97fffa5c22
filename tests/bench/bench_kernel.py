"""Speed of the backtest engine: million bar x parameter-set evaluations a second, per strategy, as JSON.

    python -m tests.bench.bench_kernel [--quick | bars [sets]]

For each strategy the engine of changes (``switches``) and the general loop, on one core and on two threads that share
the sets; beside them, in the same run, the peer: a plain numba loop for SMA crosses in which everything is fused by
hand. Whole units of work are measured, ``run_block`` from bars to metrics with the tables included; the median of
several. Times are processor times of the threads, the slower one where there are two (on a quiet machine that is the
time on the clock; what else runs still shows by the caches it takes), so the ratios are what can be compared.

The memory is that of a process of its own: 1,000 sets of SMA crosses on 1,000,000 bars, imports and bars included.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from strategies import switches
from strategies.backtest import Costs, run_block, warm
from strategies.compiled import compiled
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES

SEED: Final = 42
ROUNDS: Final = 3
COSTS: Final = Costs(fee_bps=10, slippage_bps=5)
# 1,000 sets each. The SMA crosses are the sweep of the comparison with other engines.
GRIDS: Final[dict[str, tuple[Any, ...]]] = {
    "sma_cross": (range(5, 102, 4), range(110, 501, 10), (0,)),
    "rsi_reversion": (range(10, 60, 5), range(20, 40, 2), range(61, 81, 2), (50,), (0,)),
    "bollinger_reversion": (range(20, 520, 20), np.arange(40) * 0.05 + 1.0, (0,)),
    "donchian_breakout": (range(120, 1_000, 22), range(10, 110, 4), (0,)),
    "vol_target_momentum": (range(60, 1_060, 50), range(30, 230, 20), (4e-4, 6e-4, 1e-3, 2e-3, 1e-2), (0.1,), (0,)),
}


def main(length: int = 500_000, sets: int = 1_000, memory: bool = True) -> None:
    began = time.perf_counter()
    warm()
    warm_s = time.perf_counter() - began
    bars = made_up_bars(length)
    peer = speed(lambda rows: plain_loops(rows, bars), matrix_of("sma_cross", min(sets, 40)), length)
    report = {
        "bench": "kernel",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "bars": length,
        "sets": sets,
        "seed": SEED,
        "warm_s": round(warm_s, 3),
        "plain_loop_mev_per_s": peer,
        "mev_per_s": {name: speeds_of(name, sets, bars, peer) for name in STRATEGIES},
    }
    if memory:
        command = [sys.executable, "-m", "tests.bench.bench_kernel", "--memory"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        report["peak_rss_mb_1000_sets_1000000_bars"] = json.loads(answer.stdout)
    print(json.dumps(report, indent=2))


def speeds_of(name: str, sets: int, bars: Bars, peer: dict[str, float]) -> dict[str, Any]:
    """Both engines on one strategy, and the ratio of each to the peer on one core."""
    rows = matrix_of(name, sets)
    few = rows[:: max(len(rows) // 20, 1)]
    applies = switches.applies
    fast = speed(lambda rows: run_block(name, rows, bars, COSTS), rows, len(bars))
    switches.applies = lambda strategy: False
    try:
        general = speed(lambda rows: run_block(name, rows, bars, COSTS), few, len(bars))
    finally:
        switches.applies = applies
    return {
        "by_changes": fast,
        "general": general,
        "by_changes_to_plain_loop": round(fast["one_core"] / peer["one_core"], 2),
        "general_to_plain_loop": round(general["one_core"] / peer["one_core"], 2),
    }


def speed(work: Callable[[Float64Array], object], rows: Float64Array, length: int) -> dict[str, float]:
    """Million evaluations a second on one core and on two threads, the median of some rounds."""
    halves = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
    one = [max(times_s(work, (rows,))) for _ in range(ROUNDS)]
    two = [max(times_s(work, halves)) for _ in range(ROUNDS)] if len(rows) > 1 else one
    evaluations = len(rows) * length / 1e6
    medians = {"one_core": statistics.median(one), "two_threads": statistics.median(two)}
    return {name: round(evaluations / time_s, 1) for name, time_s in medians.items()}


def times_s(work: Callable[[Float64Array], object], parts: tuple[Float64Array, ...]) -> list[float]:
    """Processor time of each part's thread, all at once."""
    spent_s = [0.0] * len(parts)

    def run(position: int) -> None:
        began = time.thread_time()
        work(parts[position])
        spent_s[position] = time.thread_time() - began

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return spent_s


def matrix_of(name: str, sets: int) -> Float64Array:
    """float64[sets, k]: as many rows of the strategy's grid, spread over it."""
    rows = np.array(list(itertools.product(*GRIDS[name])), dtype=np.float64)
    return np.ascontiguousarray(rows[np.linspace(0, len(rows) - 1, sets).astype(np.int64)])


def made_up_bars(length: int) -> Bars:
    """A seeded random walk of minutes with a volatility of 80 % a year."""
    random = np.random.default_rng(SEED)
    close = 100.0 * np.exp(np.cumsum(0.8 / math.sqrt(525_960) * random.standard_normal(length)))
    open_ = np.concatenate([close[:1], close[:-1]])
    spread = 1.0 + 0.0003 * np.abs(random.standard_normal(length))
    high, low = np.maximum(open_, close) * spread, np.minimum(open_, close) / spread
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_MINUTE.ns
    return Bars("BTC-USD", Granularity.ONE_MINUTE, ts_ns, open_, high, low, close, np.ones(length))


def plain_loops(rows: Float64Array, bars: Bars) -> Float64Array:
    """The peer on every row: final equity, mean and deviation of the returns, and deepest drawdown."""
    return np.array([_plain_loop(bars.open, bars.close, int(row[0]), int(row[1]), 0.001, 0.0005) for row in rows])


@compiled
def _plain_loop(
    open_: Float64Array, close: Float64Array, fast: int, slow: int, fee: float, slippage: float
) -> tuple[float, float, float, float]:
    cash, units, equity, peak, deepest = 1e4, 0.0, 1e4, 1e4, 0.0
    fast_sum = slow_sum = total = squares = 0.0
    wanted = held = False
    for i in range(close.size):
        if wanted != held:
            if wanted:
                price = open_[i] * (1.0 + slippage)
                units = cash / (price * (1.0 + fee))
                cash = 0.0
            else:
                cash = units * open_[i] * (1.0 - slippage) * (1.0 - fee)
                units = 0.0
            held = wanted
        now = cash + units * close[i]
        change = now / equity - 1.0
        total += change
        squares += change * change
        equity = now
        peak = max(peak, now)
        deepest = max(deepest, 1.0 - now / peak)
        fast_sum += close[i]
        slow_sum += close[i]
        if i >= fast:
            fast_sum -= close[i - fast]
        if i >= slow:
            slow_sum -= close[i - slow]
        wanted = i >= slow - 1 and fast_sum / fast > slow_sum / slow
    mean = total / close.size
    return equity, mean, math.sqrt(squares / close.size - mean * mean), deepest


def peak_rss_mb() -> dict[str, float]:
    """Peak resident memory of this process, before and after the whole workload."""
    bars = made_up_bars(1_000_000)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    run_block("sma_cross", matrix_of("sma_cross", 1_000), bars, COSTS)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"imports_and_bars": round(before, 1), "whole": round(after, 1)}


if __name__ == "__main__":
    given = sys.argv[1:3]
    if given == ["--memory"]:
        print(json.dumps(peak_rss_mb()))
    elif given == ["--quick"]:
        main(20_000, 8, memory=False)
    else:
        lengths = [int(argument) for argument in given] + [500_000, 1_000][len(given) :]
        main(lengths[0], lengths[1])
