"""Speed of the general accounting loop, beside a loop fused by hand for just these rules, in one run, as JSON.

    python -m tests.bench.bench_general [--quick | bars [rounds]]

Workload: seeded minutes of 0.11 % a bar (80 % a year), three sets of an SMA cross that goes short, from the often to
the seldom changing corner of the usual grid (fast 5 … 101, slow 110 … 500), stops at 2 to 5 %. The report says how
many fills a million bars have. Targets are made beforehand: what they cost is a row of its own, and so are blocks of 24
sets as a sweep computes them, targets and all.

Rules off, with stops, and with everything on, each beside a loop written by hand for just that, with all metrics; ours
fills the moments of 31 segments besides. Results are compared to 1e-9. Each round times every case once, in seconds of
this thread's processor time, the two sides in turns, so that whatever else the machine does meets all of them: medians
over the rounds, and the median of the ratios within a round.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from strategies import kernel
from strategies.backtest import evaluate, tape_of
from strategies.base import full_matrix
from strategies.compiled import read_only
from strategies.metrics import metrics_of
from strategies.model import Bars, Float64Array, Granularity
from strategies.rules import Rules
from strategies.sma_cross import SMA_CROSS, SmaCrossParams
from strategies.spec import Costs, FeeTier, Sizing
from tests.bench.fused_by_hand import fused, fused_everything

SEED = 42
STOPS = Rules(stop_loss=0.02, take_profit=0.05, trailing_stop=0.03, size=0.5)
COSTS = Costs(fee_bps=10, slippage_bps=5)


SETS = ((20, 110), (50, 250), (100, 500))


def main(length: int = 1_000_000, rounds: int = 7) -> None:
    bars = made_up_bars(length)
    vectors = [SmaCrossParams(fast=fast, slow=slow, allow_short=1).vector() for fast, slow in SETS]
    targets = [SMA_CROSS.targets(read_only(vector), *columns_of(bars)) for vector in vectors]
    cuts = np.linspace(0, length, 32).astype(np.int64)
    plain = (Rules(), COSTS, Sizing()), (STOPS, COSTS, Sizing()), (EVERYTHING, ALL_COSTS, ALL_SIZING)
    cases: dict[str, Callable[[], Any]] = {}
    for name, given in zip(("rules off", "stops", "everything on"), plain, strict=True):
        cases[f"general, {name}"] = over(targets, general, bars, *given, cuts)
        cases[f"by hand, {name}"] = over(targets, hand_fused, bars, *given)
        check(cases[f"general, {name}"](), cases[f"by hand, {name}"]())
    cases["targets of sma_cross, bar by bar"] = lambda: [
        SMA_CROSS.targets(read_only(vector), *columns_of(bars)) for vector in vectors
    ]
    blocks = blocks_of()
    for name, rows in blocks.items():
        cases[name] = partial(evaluate, "sma_cross", rows, bars, COSTS, cuts=cuts)
    spent_s: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds):
        names = list(cases) if turn % 2 == 0 else list(cases)[::-1]
        for name in names:
            began = time.thread_time()
            cases[name]()
            spent_s[name].append(time.thread_time() - began)
    evaluated = {name: length * len(blocks.get(name, SETS)) / 1e6 for name in cases}
    report = {
        "bench": "general",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "bars": length,
        "sets": [f"fast {fast}, slow {slow}" for fast, slow in SETS],
        "rounds": rounds,
        "seed": SEED,
        "changes_of_target_per_million_bars": [
            round(np.count_nonzero(np.diff(np.nan_to_num(target))) / length * 1e6) for target in targets
        ],
        "fills_per_million_bars": {
            name: [round(fills_of(target, bars, *given) / length * 1e6) for target in targets]
            for name, given in zip(("rules off", "stops", "everything on"), plain, strict=True)
        },
        "mev_per_s_one_core": {name: round(evaluated[name] / statistics.median(s), 1) for name, s in spent_s.items()},
        "best_mev_per_s": {name: round(evaluated[name] / min(s), 1) for name, s in spent_s.items()},
        "times_by_hand": {
            name: round(
                statistics.median(
                    theirs / ours
                    for ours, theirs in zip(spent_s[f"general, {name}"], spent_s[f"by hand, {name}"], strict=True)
                ),
                2,
            )
            for name in ("rules off", "stops", "everything on")
        },
    }
    print(json.dumps(report, indent=2))


def blocks_of() -> dict[str, Float64Array]:
    """24 sets with stops: all of different windows, and six windows with four stops each."""
    windows = [(fast, slow, 1.0) for fast in (20, 30, 40, 50) for slow in (110, 150, 200, 250, 300, 500)]
    different, shared = (full_matrix(SMA_CROSS, np.array(own)) for own in (windows, np.repeat(windows[::4], 4, axis=0)))
    stop_loss = len(SMA_CROSS.params.names())
    different[:, stop_loss], shared[:, stop_loss] = np.linspace(0.02, 0.05, 24), np.tile([0.02, 0.03, 0.04, 0.05], 6)
    return {"a block, 24 windows with stops": different, "a block, 6 windows with 4 stops each": shared}


def over(targets: list[Float64Array], run: Callable[..., Float64Array], *given: Any) -> Callable[[], Any]:
    return lambda: [run(target, *given) for target in targets]


EVERYTHING = Rules(stop_loss=0.02, take_profit=0.05, trailing_stop=0.03, time_stop_bars=500, size=0.2, leverage=3)
ALL_COSTS = Costs(
    fee_bps=10,
    spread_bps=2,
    fee_tiers=(FeeTier(volume_30d_from=1e5, fee_bps=8), FeeTier(volume_30d_from=1e6, fee_bps=5)),
    impact=0.05,
    max_volume_share=0.1,
    funding_bps_per_day=1,
    borrow_bps_per_day=3,
    locked_bars="waits",
    at_end="liquidate",
)
ALL_SIZING = Sizing(kind="volatility", window=60, min_quantity=0.001, quantity_increment=0.0001)


TAPES: dict[str, kernel.Tape] = {}


def general(target: Float64Array, bars: Bars, rules: Rules, costs: Costs, sizing: Sizing, cuts: Any) -> Float64Array:
    borders = read_only(cuts)
    moments = np.empty((borders.size - 1, 6))
    outcome = simulated(target, bars, rules, costs, sizing, borders, moments, kernel.new_trace(0))
    return metrics_of(outcome.tallies, 1.0)


def fills_of(target: Float64Array, bars: Bars, rules: Rules, costs: Costs, sizing: Sizing) -> int:
    none = read_only(np.empty(0, dtype=np.int64))
    trace = kernel.new_trace(len(bars))
    return simulated(target, bars, rules, costs, sizing, none, np.empty((0, 6)), trace).fills


def simulated(
    target: Float64Array, bars: Bars, rules: Rules, costs: Costs, sizing: Sizing, cuts: Any, moments: Any, trace: Any
) -> kernel.Outcome:
    conditions = kernel.conditions_of(costs, sizing, rules.vector())
    tape = tape_for(bars, sizing)
    outcome = kernel.simulate(target, tape, conditions, kernel.tiers_of(costs), cuts, moments, trace)
    if outcome.fault != kernel.OK:
        raise ArithmeticError(outcome)
    return outcome


def tape_for(bars: Bars, sizing: Sizing) -> kernel.Tape:
    if sizing.kind not in TAPES:
        TAPES[sizing.kind] = tape_of(bars, sizing)
    return TAPES[sizing.kind]


def hand_fused(target: Float64Array, bars: Bars, rules: Rules, costs: Costs, sizing: Sizing) -> Float64Array:
    if sizing.kind == "volatility":
        tape = tape_for(bars, sizing)
        return fused_everything(
            target, tape, kernel.conditions_of(costs, sizing, rules.vector()), kernel.tiers_of(costs)
        )
    open_, high, low, close, _ = columns_of(bars)
    stops = (rules.stop_loss, rules.take_profit, rules.trailing_stop)
    given = (costs.fee_bps / 1e4, costs.slippage_bps / 1e4, *stops, rules.size, costs.initial_cash)
    return fused(target, open_, high, low, close, *given)


def check(ours: list[Float64Array], theirs: list[Float64Array]) -> None:
    """The two do the same work."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def columns_of(bars: Bars) -> tuple[Float64Array, ...]:
    return tuple(read_only(column) for column in (bars.open, bars.high, bars.low, bars.close, bars.volume))


def made_up_bars(length: int) -> Bars:
    """A seeded random walk of minutes with 0.11 % a bar, highs and lows beyond open and close."""
    random = np.random.default_rng(SEED)
    close = 100.0 * np.exp(np.cumsum(0.0011 * random.standard_normal(length)))
    open_ = np.concatenate([close[:1], close[:-1]])
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_MINUTE.ns
    high = np.maximum(open_, close) * (1.0 + 0.0005 * random.random(length))
    low = np.minimum(open_, close) * (1.0 - 0.0005 * random.random(length))
    volume = random.uniform(1e3, 1e5, length)
    return Bars("BTC-USD", Granularity.ONE_MINUTE, ts_ns, open_, high, low, close, volume)


if __name__ == "__main__":
    given = sys.argv[1:3]
    main(*((50_000, 2) if given == ["--quick"] else (int(argument) for argument in given)))
