"""Speed of the general accounting loop, beside a loop fused by hand for just these rules, in one run, as JSON.

    python -m tests.bench.bench_general [--quick | bars [rounds]]

Each round times every case once, in seconds of this thread's processor time, so that whatever else the machine does
meets all of them; medians over the rounds, and the ratio to the fused loop of the same round. Targets are those of an
SMA cross that goes short, made beforehand: what they cost is a row of its own.
"""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from strategies import kernel
from strategies.backtest import tape_of
from strategies.compiled import compiled, read_only
from strategies.metrics import metrics_of
from strategies.model import Bars, Float64Array, Granularity
from strategies.rules import Rules
from strategies.sma_cross import SMA_CROSS, SmaCrossParams
from strategies.spec import Costs, FeeTier, Sizing

SEED = 42
STOPS = Rules(stop_loss=0.02, take_profit=0.05, trailing_stop=0.03, size=0.5)
COSTS = Costs(fee_bps=10, slippage_bps=5)


def main(length: int = 1_000_000, rounds: int = 7) -> None:
    bars = made_up_bars(length)
    vector = SmaCrossParams(fast=20, slow=110, allow_short=1).vector()
    target = SMA_CROSS.targets(read_only(vector), *columns_of(bars))
    cuts = np.linspace(0, length, 32).astype(np.int64)
    cases: dict[str, Callable[[], Any]] = {
        "fused by hand, stops": lambda: hand_fused(target, bars, STOPS),
        "general, rules off": lambda: general(target, bars, Rules(), COSTS, Sizing()),
        "general, rules off, moments": lambda: general(target, bars, Rules(), COSTS, Sizing(), cuts),
        "general, stops": lambda: general(target, bars, STOPS, COSTS, Sizing()),
        "general, stops, moments": lambda: general(target, bars, STOPS, COSTS, Sizing(), cuts),
        "general, everything on": lambda: general(target, bars, EVERYTHING, ALL_COSTS, ALL_SIZING, cuts),
        "targets of sma_cross, bar by bar": lambda: SMA_CROSS.targets(read_only(vector), *columns_of(bars)),
    }
    check(cases["fused by hand, stops"](), cases["general, stops"]())
    speeds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(rounds + 1):
        for name, case in cases.items():
            began = time.thread_time()
            case()
            spent_s = time.thread_time() - began
            if turn:  # the first round compiles
                speeds[name].append(length / spent_s / 1e6)
    fused = speeds["fused by hand, stops"]
    report = {
        "bench": "general",
        "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}",
        "bars": length,
        "rounds": rounds,
        "seed": SEED,
        "changes_of_target": int(np.count_nonzero(np.diff(np.nan_to_num(target)))),
        "mev_per_s_one_core": {name: round(statistics.median(values), 1) for name, values in speeds.items()},
        "best_mev_per_s": {name: round(max(values), 1) for name, values in speeds.items()},
        "times_fused_by_hand": {
            name: round(statistics.median(v / f for v, f in zip(values, fused, strict=True)), 2)
            for name, values in speeds.items()
        },
    }
    print(json.dumps(report, indent=2))


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


def general(
    target: Float64Array,
    bars: Bars,
    rules: Rules,
    costs: Costs,
    sizing: Sizing,
    cuts: Any = None,
) -> Float64Array:
    if sizing.kind not in TAPES:
        TAPES[sizing.kind] = tape_of(bars, sizing)
    borders = read_only(np.empty(0, dtype=np.int64) if cuts is None else cuts)
    moments = np.empty((max(borders.size - 1, 0), 6))
    conditions = kernel.conditions_of(costs, sizing, rules.vector())
    trace = kernel.new_trace(0)
    outcome = kernel.simulate(target, TAPES[sizing.kind], conditions, kernel.tiers_of(costs), borders, moments, trace)
    if outcome.fault != kernel.OK:
        raise ArithmeticError(outcome)
    return metrics_of(outcome.tallies, 1.0)


def hand_fused(target: Float64Array, bars: Bars, rules: Rules) -> Float64Array:
    open_, high, low, close, _ = columns_of(bars)
    stops = (rules.stop_loss, rules.take_profit, rules.trailing_stop, rules.size)
    return fused(target, open_, high, low, close, 10e-4, 5e-4, *stops, 10_000.0)


@compiled
def fused(  # noqa: C901 -- everything in one loop is the point
    target: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    fee: float,
    slippage: float,
    stop_loss: float,
    take_profit: float,
    trailing: float,
    size: float,
    cash: float,
) -> Float64Array:
    """One loop for long and short, three stops, a size, fee, slippage and all metrics: what one would write by hand."""
    n = close.size
    initial = previous = peak = cash
    units = standing = entry = best = stake = 0.0
    sum1 = sum2 = losses = deepest = fractions = gain = lost = 0.0
    peak_bar = deepest_bars = held = trades = wins = 0
    is_deepest = False
    for i in range(n):
        goal = math.nan
        price = 0.0
        if i > 0:
            wanted = target[i - 1]
            if math.isnan(wanted):
                wanted = 0.0
            if wanted != standing:
                standing = goal = wanted
                price = open_[i]
        for step in range(2):
            if step == 1:
                goal = math.nan
                if units > 0.0:
                    stop = max(entry * (1.0 - stop_loss), best * (1.0 - trailing))
                    if low[i] <= stop:
                        goal, price = 0.0, min(open_[i], stop)
                    elif high[i] >= entry * (1.0 + take_profit):
                        goal, price = 0.0, max(open_[i], entry * (1.0 + take_profit))
                    else:
                        best = max(best, high[i])
                elif units < 0.0:
                    stop = min(entry * (1.0 + stop_loss), best * (1.0 + trailing))
                    if high[i] >= stop:
                        goal, price = 0.0, max(open_[i], stop)
                    elif low[i] <= entry * (1.0 - take_profit):
                        goal, price = 0.0, min(open_[i], entry * (1.0 - take_profit))
                    else:
                        best = min(best, low[i])
            if goal == goal:
                fraction = goal * size
                side = 1.0 if fraction * (cash + units * price) > units * price else -1.0
                fill = price * (1.0 + side * slippage)
                closing = units if fraction * units <= 0.0 else 0.0
                worth = cash + units * fill - fee * abs(closing) * fill
                bought = fraction * worth / (fill * (1.0 + fee)) - units
                if bought * side > 0.0:
                    if closing != 0.0:
                        trades += 1
                        earned = worth - stake
                        if earned > 1e-12 * stake:
                            wins += 1
                            gain += earned
                        elif earned < -1e-12 * stake:
                            lost -= earned
                    if units == 0.0 or closing != 0.0:
                        stake = worth
                        entry = best = fill
                    cash -= bought * fill + fee * abs(bought) * fill
                    fractions += abs(bought) * fill / worth
                    units += bought
                    if goal == 0.0:
                        units = 0.0
        equity = cash + units * close[i]
        if units != 0.0:
            held += 1
        if i > 0:
            change = equity / previous - 1.0
            sum1 += change
            sum2 += change * change
            loss = min(change, 0.0)
            losses += loss * loss
        previous = equity
        if equity >= peak * (1.0 - 1e-12):
            if is_deepest:
                deepest_bars = i - peak_bar
            is_deepest = False
            peak = max(equity, peak)
            peak_bar = i
        elif equity < peak * (1.0 - 1e-12 - deepest):
            deepest = 1.0 - equity / peak
            is_deepest = True
    if is_deepest:
        deepest_bars = n - 1 - peak_bar
    mean = sum1 / (n - 1)
    deviation = math.sqrt((sum2 - mean * sum1) / (n - 2))
    per_year = float(n - 1)
    growth = previous / initial - 1.0
    result = np.empty(13)
    result[0] = result[1] = growth
    result[2] = deviation * math.sqrt(per_year)
    result[3] = mean / deviation * math.sqrt(per_year)
    result[4] = mean / math.sqrt(losses / (n - 1)) * math.sqrt(per_year)
    result[5] = growth / deepest
    result[6], result[7], result[8] = deepest, deepest_bars, held / n
    result[9], result[10], result[11], result[12] = fractions, trades, wins / trades, gain / lost
    return result


def check(ours: Float64Array, theirs: Float64Array) -> None:
    """The two do the same work."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def columns_of(bars: Bars) -> tuple[Float64Array, ...]:
    return tuple(read_only(column) for column in (bars.open, bars.high, bars.low, bars.close, bars.volume))


def made_up_bars(length: int) -> Bars:
    """A seeded random walk of minutes with 0.05 % a bar, highs and lows beyond open and close."""
    random = np.random.default_rng(SEED)
    close = 100.0 * np.exp(np.cumsum(0.0005 * random.standard_normal(length)))
    open_ = np.concatenate([close[:1], close[:-1]])
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_MINUTE.ns
    high = np.maximum(open_, close) * (1.0 + 0.0002 * random.random(length))
    low = np.minimum(open_, close) * (1.0 - 0.0002 * random.random(length))
    volume = random.uniform(1e3, 1e5, length)
    return Bars("BTC-USD", Granularity.ONE_MINUTE, ts_ns, open_, high, low, close, volume)


if __name__ == "__main__":
    given = sys.argv[1:3]
    main(*((50_000, 2) if given == ["--quick"] else (int(argument) for argument in given)))
