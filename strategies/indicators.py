"""Indicator steps in O(1) a bar: the same functions plain (live) and compiled (sweep).

Each indicator is a NamedTuple: ``<name>_start`` makes it, ``<name>_step(state, value) -> (state, result)`` moves it on.
Its arrays are rings that the step writes in place: the state has one owner, and only the returned one is valid.
A result is NaN until the window has filled once; a NaN value is passed over as if its bar were not there.

Windows are cut into *laps* of their own length: a ring is written from its first place to its last, then over again.
At the end of a lap everything carried along is made anew from that lap's values alone, so a rounding error, or a huge
value long gone, lives for two laps at most instead of growing with the length of the series. Where the window's values
can be joined from two parts without subtracting (moments, maximum), they are: the end of the last lap (prepared
backwards when that lap ended: O(1) a bar on average) and the beginning of this one. For the maximum this is the
algorithm of M. van Herk (1992) and J. Gil and M. Werman (1993).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from strategies.compiled import compiled, compiled_step
from strategies.model import Float64Array


class RollingMean(NamedTuple):
    """Simple moving average. ``total`` is the window's sum, ``lap`` the sum of the values of this lap only."""

    ring: Float64Array
    position: int
    filled: int
    total: float
    lap: float


@compiled
def rolling_mean_start(size: int) -> RollingMean:
    return RollingMean(np.zeros(size), 0, 0, 0.0, 0.0)


@compiled_step
def rolling_mean_step(state: RollingMean, value: float) -> tuple[RollingMean, float]:
    """Mean of the last ``size`` values; error within ``4 * size * 2**-53`` of the largest of the last two laps."""
    ring, position, filled, total, lap = state
    if not math.isnan(value):
        total += value - ring[position]
        lap += value
        ring[position] = value
        position += 1
    if position == ring.size:
        # The lap is the whole window now: its sum holds no subtraction, so it replaces the running one.
        position = 0
        filled = 1
        total = lap
        lap = 0.0
    mean = total / ring.size if filled else math.nan
    return RollingMean(ring, position, filled, total, lap), mean


class RollingMoments(NamedTuple):
    """Mean and squared deviations: ``end_*[k]`` of the last lap from place k on, ``lap_*`` of this lap so far."""

    ring: Float64Array
    end_mean: Float64Array
    end_squares: Float64Array
    position: int
    filled: int
    lap_mean: float
    lap_squares: float


@compiled
def rolling_moments_start(size: int) -> RollingMoments:
    return RollingMoments(np.zeros(size), np.zeros(size), np.zeros(size), 0, 0, 0.0, 0.0)


@compiled_step
def rolling_moments_step(state: RollingMoments, value: float) -> tuple[RollingMoments, float, float]:
    """Mean of the last ``size`` values and the sum of their squared deviations from it.

    Sums of squares are only ever added (B. P. Welford 1962 within a part, T. F. Chan et al. 1983 to join two), so the
    result is never negative and exactly 0 for equal values.
    """
    ring, end_mean, end_squares, position, filled, lap_mean, lap_squares = state
    if not math.isnan(value):
        ring[position] = value
        position += 1
        difference = value - lap_mean
        lap_mean += difference / position
        lap_squares += difference * (value - lap_mean)
    if position == ring.size:
        _moments_backwards(ring, end_mean, end_squares)
        position = 0
        filled = 1
        lap_mean = 0.0
        lap_squares = 0.0
    share = position / ring.size
    gap = lap_mean - end_mean[position] if position > 0 else 0.0
    mean = end_mean[position] + gap * share
    squares = end_squares[position] + lap_squares + gap * gap * share * (ring.size - position)
    if not filled:
        mean = math.nan
        squares = math.nan
    return RollingMoments(ring, end_mean, end_squares, position, filled, lap_mean, lap_squares), mean, squares


@compiled
def _moments_backwards(ring: Float64Array, end_mean: Float64Array, end_squares: Float64Array) -> None:
    mean = 0.0
    squares = 0.0
    for k in range(ring.size - 1, -1, -1):
        difference = ring[k] - mean
        mean += difference / (ring.size - k)
        squares += difference * (ring[k] - mean)
        end_mean[k] = mean
        end_squares[k] = squares


class RollingMax(NamedTuple):
    """Largest value: ``end[k]`` of the last lap from place k on, ``lap`` of this lap so far."""

    ring: Float64Array
    end: Float64Array
    position: int
    filled: int
    lap: float


@compiled
def rolling_max_start(size: int) -> RollingMax:
    return RollingMax(np.zeros(size), np.zeros(size), 0, 0, -math.inf)


@compiled_step
def rolling_max_step(state: RollingMax, value: float) -> tuple[RollingMax, float]:
    """Largest of the last ``size`` values, exactly. The smallest of them is ``-max`` of the negated values."""
    ring, end, position, filled, lap = state
    if not math.isnan(value):
        ring[position] = value
        position += 1
        lap = max(lap, value)
    if position == ring.size:
        _max_backwards(ring, end)
        position = 0
        filled = 1
        lap = -math.inf
    largest = max(end[position], lap) if filled else math.nan
    return RollingMax(ring, end, position, filled, lap), largest


@compiled
def _max_backwards(ring: Float64Array, end: Float64Array) -> None:
    largest = -math.inf
    for k in range(ring.size - 1, -1, -1):
        largest = max(largest, ring[k])
        end[k] = largest


class Delay(NamedTuple):
    """The last ``size`` values, oldest at ``position`` once full."""

    ring: Float64Array
    position: int
    filled: int


@compiled
def delay_start(size: int) -> Delay:
    return Delay(np.zeros(size), 0, 0)


@compiled_step
def delay_step(state: Delay, value: float) -> tuple[Delay, float]:
    """The value of ``size`` steps ago."""
    ring, position, filled = state
    past = ring[position] if filled else math.nan
    if not math.isnan(value):
        ring[position] = value
        position += 1
    if position == ring.size:
        position = 0
        filled = 1
    return Delay(ring, position, filled), past


class RelativeStrength(NamedTuple):
    """RSI: Wilder's averages of gains and losses; ``changes`` counts up to ``size`` and stays there."""

    size: int
    changes: int
    previous: float
    gain: float
    loss: float


@compiled
def relative_strength_start(size: int) -> RelativeStrength:
    return RelativeStrength(size, 0, math.nan, 0.0, 0.0)


@compiled_step
def relative_strength_step(state: RelativeStrength, value: float) -> tuple[RelativeStrength, float]:
    """``100 * gain / (gain + loss)``, 0 to 100; 50 while nothing moves.

    Source: J. W. Wilder, "New Concepts in Technical Trading Systems", 1978. The averages begin as the plain mean of
    the first ``size`` changes and go on as ``average += (change - average) / size``: a contraction, so errors die out.
    """
    size, changes, previous, gain, loss = state
    change = value - previous
    if not math.isnan(change):
        changes = min(changes + 1, size)
        gain += (max(change, 0.0) - gain) / changes
        loss += (max(-change, 0.0) - loss) / changes
    if not math.isnan(value):
        previous = value
    strength = math.nan
    if changes == size:
        moved = gain + loss
        strength = 100.0 * gain / moved if moved > 0.0 else 50.0
    return RelativeStrength(size, changes, previous, gain, loss), strength
