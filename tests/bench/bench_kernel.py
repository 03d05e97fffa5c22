"""Speed of the backtest engine: million bar x parameter-set evaluations a second, per strategy, as JSON.

    python -m tests.bench.bench_kernel [--quick | bars [sets]]

For each strategy the engine of changes (``switches``) and the general loop, on one core and on two threads that share
the sets; beside them, in the same run, the peer: a plain numba loop for SMA crosses in which everything is fused by
hand. Whole units of work are measured, ``run_block`` from bars to metrics with the tables included: the median of
several rounds, in each of which all of them take their turn. Times are processor times of the threads, the slower one
where there are two (on a quiet machine that is the time on the clock; what else runs still shows by the caches and the
dividers it takes), so the ratios are what can be compared.

``parts`` says where the time of the engine of changes goes on one core: tables, scans, and the rest, which are the
accounts (the survey of each tile included). A million evaluations cost the accounts ``changes_per_million_bars`` times
``account_ns_per_change``, and that bounds a strategy: vol_target_momentum, whose size follows the volatility, changes
its target four times as often as the others, some 25,000 times in a million bars.

``small_blocks`` are evaluations a second of blocks of few sets, as multiples of the general loop on the same sets: what
all sets of a block share (the survey and the distinct windows) has to be paid by them.

The memory is that of a process of its own for each strategy: 1,000 sets on 1,000,000 bars, imports and bars included.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from strategies.backtest import Costs, run_block, warm
from strategies.base import Strategy
from strategies.compiled import compiled
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES

SEED: Final = 42
ROUNDS: Final = 3
SMALL: Final = (1, 2, 4, 8, 16, 50)
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
    names = [name for name in STRATEGIES if name in GRIDS]
    report = {
        "bench": "kernel",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "load_average": round(os.getloadavg()[0], 1),
        "bars": length,
        "sets": sets,
        "seed": SEED,
        "warm_s": round(warm_s, 3),
        "mev_per_s": {name: speeds_of(name, sets, bars) for name in names},
    }
    if memory:
        report["peak_rss_mb_1000_sets_1000000_bars"] = {name: memory_of(name) for name in names}
    print(json.dumps(report, indent=2))


def speeds_of(name: str, sets: int, bars: Bars) -> dict[str, Any]:
    """Both engines on one strategy and the peer, in turn; the ratio of both engines, and where the time goes."""
    rows = matrix_of(name, sets)
    changes = Work(lambda part: run_block(name, part, bars, COSTS), rows)
    general = Work(lambda part: run_block(bar_by_bar(name), part, bars, COSTS), matrix_of(name, min(sets, 20)))
    peer = Work(lambda part: plain_loops(part, bars), matrix_of("sma_cross", min(sets, 20)))
    for work in (changes, general, peer):
        work.run(work.rows[:1])
    by_changes, generals, peers = speeds((changes, general, peer), len(bars))
    return {
        "by_changes": by_changes,
        "general": generals,
        "plain_loop": peers,
        "by_changes_to_general": round(by_changes["one_core"] / generals["one_core"], 2),
        "by_changes_to_plain_loop": round(by_changes["one_core"] / peers["one_core"], 2),
        "parts": parts_of(name, rows, bars),
        "small_blocks": {str(count): small_block(name, count, bars, generals["one_core"]) for count in SMALL},
    }


class Work(NamedTuple):
    """Something to be timed: ``run`` on any part of ``rows``."""

    run: Callable[[Float64Array], object]
    rows: Float64Array


def speeds(works: tuple[Work, ...], length: int) -> list[dict[str, float]]:
    """Million evaluations a second of each on one core and on two threads, the medians of rounds in turn."""
    spent: list[dict[str, list[float]]] = [{"one_core": [], "two_threads": []} for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, spent, strict=True):
            half = max(len(work.rows) // 2, 1)
            times["one_core"].append(max(times_s(work.run, (work.rows,))))
            times["two_threads"].append(max(times_s(work.run, (work.rows[:half], work.rows[half:]))))
    return [
        {name: round(len(work.rows) * length / 1e6 / statistics.median(found), 1) for name, found in times.items()}
        for work, times in zip(works, spent, strict=True)
    ]


def bar_by_bar(name: str) -> Strategy:
    """The same strategy for the general loop alone."""
    return dataclasses.replace(STRATEGIES[name], switches=None)


def small_block(name: str, sets: int, bars: Bars, general: float) -> float:
    """Speed of a block of ``sets`` rows spread over the grid, as a multiple of the general loop's."""
    short = bars.between(0, min(len(bars), 100_000))
    work = Work(lambda part: run_block(name, part, short, COSTS), matrix_of(name, sets))
    found = [max(times_s(work.run, (work.rows,))) for _ in range(ROUNDS)]
    return round(sets * len(short) / 1e6 / statistics.median(found) / general, 2)


def parts_of(name: str, rows: Float64Array, bars: Bars) -> dict[str, float]:
    """What the engine of changes does on one core, part by part (see the top of this file)."""
    rounds = [parts(STRATEGIES[name], rows, bars) for _ in range(ROUNDS)]
    whole_s, table_s, scan_s, changes = (statistics.median(part) for part in zip(*rounds, strict=True))
    evaluations = len(rows) * len(bars)
    account_s = whole_s - table_s - scan_s
    return {
        "changes_per_million_bars": round(changes / evaluations * 1e6, 1),
        "table_share": round(table_s / whole_s, 3),
        "scan_share": round(scan_s / whole_s, 3),
        "account_share": round(account_s / whole_s, 3),
        "scan_ns_per_evaluation": round(scan_s / evaluations * 1e9, 3),
        "account_ns_per_change": round(account_s / max(changes, 1) * 1e9, 1),
    }


def parts(strategy: Strategy, rows: Float64Array, bars: Bars) -> tuple[float, float, float, int]:
    """Processor seconds of a block, of its tables and of its scans, and how many changes it found."""
    spent_s = {"table": 0.0, "scan": 0.0}
    found = 0

    def timed(name: str, work: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            nonlocal found
            began = time.thread_time()
            work(*arguments)
            spent_s[name] += time.thread_time() - began
            if name == "scan":
                found += int(arguments[-1].first[len(arguments[0])])

        return run

    switches = strategy.switches
    if switches is None:
        raise AssertionError(f"{strategy.name} has no switches")
    watched = dataclasses.replace(switches, table=timed("table", switches.table), scan=timed("scan", switches.scan))
    began = time.thread_time()
    run_block(dataclasses.replace(strategy, switches=watched), rows, bars, COSTS)
    return time.thread_time() - began, spent_s["table"], spent_s["scan"], found


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


def memory_of(name: str) -> dict[str, float]:
    """``peak_rss_mb`` of a process that does nothing else."""
    command = [sys.executable, "-m", "tests.bench.bench_kernel", "--memory", name]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def peak_rss_mb(name: str) -> dict[str, float]:
    """Peak resident memory of this process, before and after the whole workload."""
    bars = made_up_bars(1_000_000)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    run_block(name, matrix_of(name, 1_000), bars, COSTS)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return {"imports_and_bars": round(before, 1), "whole": round(after, 1)}


if __name__ == "__main__":
    given = sys.argv[1:3]
    if given[:1] == ["--memory"]:
        print(json.dumps(peak_rss_mb(given[1])))
    elif given == ["--quick"]:
        main(20_000, 8, memory=False)
    else:
        lengths = [int(argument) for argument in given] + [500_000, 1_000][len(given) :]
        main(lengths[0], lengths[1])
