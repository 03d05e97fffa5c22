"""Indicator steps in O(1) a bar: the same functions plain (live) and compiled (sweep).

Each indicator is a NamedTuple: ``<name>_start`` makes it, ``<name>_step(state, value) -> (state, result)`` moves it on.
Its arrays are rings that the step writes in place: the state has one owner, and only the returned one is valid.
A result is NaN until the window has filled once.

Windows are cut into *laps* of their own length: a ring is written from its first place to its last, then over again.
What the running sums carry is renewed at the end of every lap from that lap's values alone, so that a rounding error
(or a huge value long gone) lives for two laps at most instead of growing with the length of the series.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from strategies.compiled import compiled
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


@compiled
def rolling_mean_step(state: RollingMean, value: float) -> tuple[RollingMean, float]:
    """Mean of the last ``size`` values; error within ``4 * size * 2**-53`` of the largest of the last two laps."""
    ring = state.ring
    position = state.position
    total = state.total + (value - ring[position])
    lap = state.lap + value
    filled = state.filled
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
