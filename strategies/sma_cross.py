"""SMA cross: long while the fast simple moving average is above the slow one, flat or short while it is below."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMean, rolling_mean_start, rolling_mean_step
from strategies.model import Float64Array, Int64Array
from strategies.tables import (
    MEANS_MEMORY,
    NOTHING,
    WORD,
    Changes,
    Series,
    Switches,
    address,
    addresses,
    append_changes,
    means,
    wanted_at,
)

# Means of equal prices over windows of different length differ by rounding (some 1e-12 for 10,000 bars): no crossing.
EQUAL_WITHIN = 1e-10


class SmaCrossParams(Params):
    """Windows are counted in bars and taken over closes."""

    BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("fast", "slow"),)

    fast: int = Field(20, ge=1, le=2_000, description="bars in the fast average")
    slow: int = Field(100, ge=2, le=10_000, description="bars in the slow average")
    allow_short: int = Field(0, ge=0, le=1, description="1: short while the fast average is below, 0: flat")


class SmaCrossState(NamedTuple):
    fast: RollingMean
    slow: RollingMean


@compiled
def start(vector: Float64Array) -> SmaCrossState:
    return SmaCrossState(rolling_mean_start(int(vector[0])), rolling_mean_start(int(vector[1])))


@compiled_step
def on_bar(vector: Float64Array, state: SmaCrossState, bar: BarStep) -> tuple[SmaCrossState, float]:
    """NaN until the slow window is full; equal averages mean no position."""
    # Parameters are read before any branch: read inside one, the vector's references are counted on every bar.
    below = 0.0 - vector[2]
    fast, fast_mean = rolling_mean_step(state.fast, bar.close)
    slow, slow_mean = rolling_mean_step(state.slow, bar.close)
    difference = fast_mean - slow_mean
    equal = EQUAL_WITHIN * slow_mean
    target = 0.0
    if math.isnan(difference):
        target = math.nan
    elif difference > equal:
        target = 1.0
    elif difference < -equal:
        target = below
    return SmaCrossState(fast, slow), target


@compiled
def targets(
    vector: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    volume: Float64Array,
) -> Float64Array:
    target = np.empty(close.size)
    state = start(vector)
    for i in range(close.size):
        bar = BarStep(open_[i], high[i], low[i], close[i], volume[i])
        state, target[i] = on_bar(vector, state, bar)
    return target


@compiled
def scan(
    rows: Float64Array,
    places: Int64Array,
    table: Float64Array,
    series: Series,
    first: int,
    last: int,
    carried: Float64Array,
    changes: Changes,
) -> None:
    count = 0
    means_at, found = address(table), addresses(changes)
    stride = table.shape[1] * table.shape[2]
    for s in range(places.shape[0]):
        fast, slow = places[s, 0] * stride, places[s, 1] * stride
        short_allowed = rows[s, 2] > 0.0
        held = carried[s, 0]
        changes.first[s] = count
        for begin in range(0, last - first, WORD):
            bars = min(WORD, last - first - begin)
            long = _above(means_at, fast + begin, slow + begin)
            short = _below(means_at, fast + begin, slow + begin) if short_allowed else NOTHING
            count = append_changes(found, count, begin, bars, long, short, held)
            held = wanted_at(long, short, bars - 1)
        carried[s, 0] = held
    changes.first[places.shape[0]] = count


@compiled
def _above(mean: Float64Array, fast: int, slow: int) -> np.uint64:
    """Bit i: ``on_bar`` wants a long position where the means lie at ``fast + i`` and ``slow + i``."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(mean[fast + i] - mean[slow + i] > EQUAL_WITHIN * mean[slow + i]) << np.uint64(i)
    return word


@compiled
def _below(mean: Float64Array, fast: int, slow: int) -> np.uint64:
    """The same for a short one."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(mean[fast + i] - mean[slow + i] < -(EQUAL_WITHIN * mean[slow + i])) << np.uint64(i)
    return word


SWITCHES = Switches(("fast", "slow"), lines=1, memory=MEANS_MEMORY, table=means, scan=scan)
SMA_CROSS = Strategy("sma_cross", "SMA cross", SmaCrossParams, start, on_bar, targets, SWITCHES)
