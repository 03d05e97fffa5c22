"""The bars between two events, on which a position stands: the bar that ends them, and the equity at the others.

A target that changes and a stop that is reached are looked for eight bars at a time (lanes.py).
"""

from __future__ import annotations

import math

import numpy as np

from strategies.compiled import compiled
from strategies.lanes import (
    LANES,
    at_least,
    at_most,
    first_of,
    highest_of,
    lowest_of,
    unlike,
    unlike_zero,
)
from strategies.model import Float64Array
from strategies.orders import Conditions

# Unsigned, for indices that are known not to be negative.
_1 = np.uint64(1)


@compiled
def unchanged(target: Float64Array, begin: int, end: int, standing: float) -> int:
    """The first place from ``begin`` on, before ``end``, where another target than ``standing`` stands; NaN is 0."""
    at = begin
    whole = target.size - LANES
    if standing == 0.0:
        while at < end and at <= whole:
            bits = unlike_zero(target, at, 0.0)
            if bits != 0:
                return min(at + first_of(bits), end)
            at += LANES
    else:
        while at < end and at <= whole:
            bits = unlike(target, at, standing)
            if bits != 0:
                return min(at + first_of(bits), end)
            at += LANES
    while at < end and (target[at] == standing or (standing == 0.0 and math.isnan(target[at]))):
        at += 1
    return min(at, end)


@compiled
def reached(  # noqa: C901 -- one loop on purpose, for long and short
    high: Float64Array,
    low: Float64Array,
    begin: int,
    end: int,
    under: float,
    over: float,
    best: float,
    kept: float,
) -> tuple[int, float]:
    """The first bar from ``begin`` on, before ``end``, that reaches down to ``under`` or up to ``over``.

    Or that reaches the stop of ``best * kept``, which follows the best price: ``kept`` is below 1 for a long, above it
    for a short, and 1 without such a stop. Also the best price before that bar.
    """
    whole = high.size - LANES
    at = begin
    while at < end:
        if at <= whole:
            bits = at_most(low, at, under) | at_least(high, at, over)
            if at + LANES > end:
                bits &= (1 << (end - at)) - 1
            if kept == 1.0:
                if bits != 0:
                    return at + first_of(bits), best
                at += LANES
                continue
            if bits == 0 and at + LANES <= end:
                # If eight bars together do not reach the stop that all eight would make, none reaches its own.
                highest, lowest = highest_of(high, at), lowest_of(low, at)
                moved = max(best, highest) if kept < 1.0 else min(best, lowest)
                if (lowest > moved * kept) if kept < 1.0 else (highest < moved * kept):
                    best = moved
                    at += LANES
                    continue
        for place in range(np.uint64(at), np.uint64(min(at + LANES, end))):
            if (low[place] <= under) | (high[place] >= over):
                return int(np.int64(place)), best
            if kept < 1.0:
                if low[place] <= best * kept:
                    return int(np.int64(place)), best
                best = max(best, high[place])
            elif kept > 1.0:
                if high[place] >= best * kept:
                    return int(np.int64(place)), best
                best = min(best, low[place])
        at += LANES
    return end, best


@compiled
def mark(
    close: Float64Array, equity: Float64Array, begin: int, end: int, first: int, cash: float, units: float
) -> None:
    """The equity of the bars from ``begin`` to before ``end``, that of bar ``first`` into place 1."""
    place = np.uint64(1 + begin - first)
    for at in range(np.uint64(begin), np.uint64(end)):
        equity[place] = cash + units * close[at]
        place += _1


@compiled
def with_interest(
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    volume: Float64Array,
    days: Float64Array,
    equity: Float64Array,
    first: int,
    begin: int,
    end: int,
    cash: float,
    units: float,
    entry: float,
    best: float,
    watching: bool,
    sparse: bool,
    conditions: Conditions,
) -> tuple[int, float, float, bool]:
    """The first bar before ``end`` that reaches a stop; those before it are marked, cash changing from bar to bar.

    Also the cash after interest, the best price since the entry, and whether that bar has paid its interest already.
    """
    funding, borrow = conditions.funding_per_day, conditions.borrow_per_day
    leveraged = conditions.leverage > 1.0
    long = units > 0.0
    trailing = conditions.trailing_stop > 0.0
    kept = 1.0 - math.copysign(conditions.trailing_stop, units)
    # A margin call's price moves with cash.
    under, over = fixed_levels(math.inf if leveraged else cash, units, entry, conditions)
    margin = -1.0 / (units * (1.0 - math.copysign(conditions.maintenance_margin, units)))
    place = np.uint64(1 + begin - first)
    last = close[begin - 1]
    then = days[begin - 1]
    for at in range(np.uint64(begin), np.uint64(end)):
        span = days[at] - then
        then = days[at]
        paid = funding * (units * last) * span
        if not long:
            paid -= borrow * (units * last) * span
        elif cash < 0.0:
            paid -= borrow * cash * span
        cash -= paid
        if watching and (not sparse or volume[at] > 0.0):
            lower, upper = under, over
            if long:
                if leveraged:
                    lower = max(lower, cash * margin)
                if trailing:
                    lower = max(lower, best * kept)
            else:
                if leveraged:
                    upper = min(upper, cash * margin)
                if trailing:
                    upper = min(upper, best * kept)
            if (low[at] <= lower) | (high[at] >= upper):
                return int(np.int64(at)), cash, best, True
            best = max(best, high[at]) if long else min(best, low[at])
        last = close[at]
        equity[place] = cash + units * last
        place += _1
    return end, cash, best, False


@compiled
def levels(cash: float, units: float, entry: float, best: float, conditions: Conditions) -> tuple[float, float]:
    """The prices at which a long is stopped and has reached its target, or a short the other way round."""
    under, over = fixed_levels(cash, units, entry, conditions)
    if conditions.trailing_stop > 0.0:
        if units > 0.0:
            under = max(under, best * (1.0 - conditions.trailing_stop))
        else:
            over = min(over, best * (1.0 + conditions.trailing_stop))
    return under, over


@compiled
def fixed_levels(cash: float, units: float, entry: float, conditions: Conditions) -> tuple[float, float]:
    """The same without the trailing stop."""
    margin = 1.0 - math.copysign(conditions.maintenance_margin, units)
    called = -cash / (units * margin) if conditions.leverage > 1.0 else 0.0
    if units > 0.0:
        under = entry * (1.0 - conditions.stop_loss) if conditions.stop_loss > 0.0 else 0.0
        over = entry * (1.0 + conditions.take_profit) if conditions.take_profit > 0.0 else math.inf
        return max(under, called), over
    over = entry * (1.0 + conditions.stop_loss) if conditions.stop_loss > 0.0 else math.inf
    under = entry * (1.0 - conditions.take_profit) if conditions.take_profit > 0.0 else 0.0
    return under, min(over, called) if conditions.leverage > 1.0 else over
