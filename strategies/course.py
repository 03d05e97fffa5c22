"""Statistics of an equity curve while it is made: a bar at a time, or a block of bars at a time.

Returns are summed as distances from the first return, the pivot: unlike with sums of the returns themselves nothing
cancels that the variance needs (the first return is one of its terms), and unlike with Welford's update no bar waits
for the mean of the bar before.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from strategies.compiled import compiled, compiled_sums
from strategies.metrics import EQUAL_WITHIN, Tallies, drawdown, max_drawdown_bars
from strategies.model import Float64Array, Int64Array
from strategies.orders import Book

# Of a peak: more than the falls that ``EQUAL_WITHIN`` takes for equal.
ROUNDING: Final = 4 * EQUAL_WITHIN


class Course(NamedTuple):
    """Statistics of the equity curve so far; the drawdown in hand began at ``peak_bar``.

    ``distances`` and ``squares`` are sums over returns of ``r - pivot`` and its square, the pivot being the first one.
    """

    equity: float
    pivot: float
    distances: float
    squares: float
    squared_losses: float
    peak: float
    peak_bar: int
    deepest: float
    deepest_bars: int
    is_deepest: bool


class Drop(NamedTuple):
    """The fall from the highest equity so far, ``peak``, at ``peak_bar``, and the deepest fall so far.

    ``is_deepest`` says that the fall in hand is the deepest one and so has no length yet.
    """

    peak: float
    peak_bar: int
    deepest: float
    deepest_bars: int
    is_deepest: bool


@compiled
def observe(course: Course, equity: float, i: int) -> Course:
    """Move the statistics on to bar ``i``."""
    pivot = course.pivot
    distances = course.distances
    squares = course.squares
    squared_losses = course.squared_losses
    if i > 0:
        change = equity / course.equity - 1.0 if course.equity > 0.0 else 0.0
        if i == 1:
            pivot = change
        distance = change - pivot
        distances += distance
        squares += distance * distance
        loss = min(change, 0.0)
        squared_losses += loss * loss
    peak = course.peak
    peak_bar = course.peak_bar
    deepest = course.deepest
    deepest_bars = course.deepest_bars
    is_deepest = course.is_deepest
    if equity >= peak * (1.0 - EQUAL_WITHIN):
        if is_deepest:
            deepest_bars = max_drawdown_bars(peak_bar, i)
        peak = max(equity, peak)
        peak_bar = i
        is_deepest = False
    elif equity < peak * (1.0 - EQUAL_WITHIN - deepest):  # no division on the many bars that set no record
        deepest = drawdown(equity, peak)
        is_deepest = True
    return Course(equity, pivot, distances, squares, squared_losses, peak, peak_bar, deepest, deepest_bars, is_deepest)


@compiled
def tally(book: Book, course: Course, bars: int, bars_held: int, initial_cash: float) -> Tallies:
    """A deepest drawdown still open lasts to the last bar."""
    mean_distance = course.distances / (bars - 1) if bars > 1 else math.nan
    squared_deviations = max(course.squares - mean_distance * course.distances, 0.0)
    drawdown_bars = max_drawdown_bars(course.peak_bar, bars - 1) if course.is_deepest else course.deepest_bars
    return Tallies(
        bars,
        initial_cash,
        course.equity,
        course.pivot + mean_distance,
        squared_deviations,
        course.squared_losses,
        course.deepest,
        drawdown_bars,
        bars_held,
        book.traded_fractions,
        book.trades,
        book.wins,
        book.gross_profit,
        book.gross_loss,
    )


@compiled
def extremes(bits: Int64Array, count: int) -> tuple[int, int]:
    """The least and the greatest of ``bits[1 : count + 1]``, which are equities' bits.

    As integers they are ordered like the equities themselves, as far as those are above 0; anything below is less, and
    what is no number is less than all or more than infinity. Unlike numbers they can be compared in any order.
    """
    lowest = highest = bits[1]
    for k in range(np.uint64(2), np.uint64(count + 1)):
        lowest = min(lowest, bits[k])
        highest = max(highest, bits[k])
    return lowest, highest


@compiled
def first_beyond(equity: Float64Array, count: int, least: float) -> int:
    """The place of the first equity that is not between ``least`` and infinity."""
    for k in range(1, count):
        if not least < equity[k] < math.inf:
            return k
    return count


@compiled_sums
def sums(equity: Float64Array, returns: Float64Array, count: int, pivot: float) -> tuple[float, float, float]:
    """Fill ``returns[1 : count + 1]``; sums of their distances from the pivot, of the squares, of squared losses."""
    distances = squares = squared_losses = 0.0
    for k in range(1, count + 1):
        change = equity[k] / equity[k - 1] - 1.0
        returns[k] = change
        distance = change - pivot
        distances += distance
        squares += distance * distance
        loss = min(change, 0.0)
        squared_losses += loss * loss
    return distances, squares, squared_losses


@compiled_sums
def add_powers(part: Float64Array, returns: Float64Array, begin: int, end: int) -> None:
    """Add the first four powers of ``returns[begin:end]`` to ``part[1:5]``."""
    sum1 = sum2 = sum3 = sum4 = 0.0
    for k in range(begin, end):
        change = returns[k]
        square = change * change
        sum1 += change
        sum2 += square
        sum3 += square * change
        sum4 += square * square
    part[1] += sum1
    part[2] += sum2
    part[3] += sum3
    part[4] += sum4


@compiled
def by_segments(
    moments: Float64Array,
    cuts: Int64Array,
    segment: int,
    part: Float64Array,
    equity: Float64Array,
    returns: Float64Array,
    first: int,
    count: int,
) -> int:
    """Add a block's returns to the segments its bars lie in; the segment of its last bar."""
    begin = 1
    while cuts[segment + 1] < first + count:
        end = 1 + cuts[segment + 1] - first
        add_powers(part, returns, begin, end)
        end_segment(moments, cuts, segment, part, equity[end - 1])
        segment += 1
        begin = end
    add_powers(part, returns, begin, count + 1)
    return segment


@compiled
def end_segment(moments: Float64Array, cuts: Int64Array, segment: int, part: Float64Array, equity: float) -> None:
    moments[segment, 0] = cuts[segment + 1] - cuts[segment] - (1 if segment == 0 else 0)
    moments[segment, 1:5] = part[1:5]
    moments[segment, 5] = math.log(equity / part[0]) if equity > 0.0 else -math.inf
    part[0] = equity
    part[1:5] = 0.0


@compiled
def deepen(drop: Drop, equity: Float64Array, first: int, count: int, lowest: float, highest: float) -> Drop:
    """Move the drawdown on over the bars from ``first``, whose equities are from ``lowest`` to ``highest``."""
    peak, peak_bar, deepest, deepest_bars, is_deepest = drop
    near = peak * (1.0 - EQUAL_WITHIN)
    deep = peak * (1.0 - EQUAL_WITHIN - deepest)
    if highest < near and lowest < deep:
        # Where no other equity is as low but for rounding, bar by bar would end with the lowest as well.
        as_low = 0
        for k in range(np.uint64(1), np.uint64(count + 1)):
            as_low += equity[k] <= lowest + ROUNDING * peak
        if as_low == 1:
            return Drop(peak, peak_bar, drawdown(lowest, peak), deepest_bars, True)
    for k in range(1, count + 1):
        if equity[k] >= near:
            if is_deepest:
                deepest_bars = max_drawdown_bars(peak_bar, first + k - 1)
                is_deepest = False
            if equity[k] > peak:
                peak = equity[k]
                near = peak * (1.0 - EQUAL_WITHIN)
                deep = peak * (1.0 - EQUAL_WITHIN - deepest)
            peak_bar = first + k - 1
        elif equity[k] < deep:  # no division on the many bars that set no record
            deepest = drawdown(equity[k], peak)
            deep = peak * (1.0 - EQUAL_WITHIN - deepest)
            is_deepest = True
    return Drop(peak, peak_bar, deepest, deepest_bars, is_deepest)
