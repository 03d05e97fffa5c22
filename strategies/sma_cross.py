"""SMA cross: long while the fast simple moving average is above the slow one, flat or short while it is below."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMean, rolling_mean_start, rolling_mean_step
from strategies.model import Float64Array

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


SMA_CROSS = Strategy("sma_cross", "SMA cross", SmaCrossParams, start, on_bar, targets)
