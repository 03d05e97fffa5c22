"""Bollinger reversion: buy below the lower band, sell above the upper one, leave when the close is back at the mean."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMoments, rolling_moments_start, rolling_moments_step
from strategies.model import Float64Array


class BollingerReversionParams(Params):
    """The window is counted in bars and taken over closes, this bar's included."""

    window: int = Field(20, ge=2, le=10_000, description="bars in mean and deviation")
    width: float = Field(2.0, ge=0.1, le=10.0, description="distance of the bands from the mean, in deviations")
    allow_short: int = Field(0, ge=0, le=1, description="1: short above the upper band, 0: flat")


class BollingerReversionState(NamedTuple):
    moments: RollingMoments
    held: float


@compiled
def start(vector: Float64Array) -> BollingerReversionState:
    return BollingerReversionState(rolling_moments_start(int(vector[0])), 0.0)


@compiled_step
def on_bar(vector: Float64Array, state: BollingerReversionState, bar: BarStep) -> tuple[BollingerReversionState, float]:
    """NaN until the window is full. The deviation divides by the window's length, as J. Bollinger defines his bands."""
    size = vector[0]
    width = vector[1]
    short = 0.0 - vector[2]
    moments, mean, squares = rolling_moments_step(state.moments, bar.close)
    distance = bar.close - mean
    band = width * math.sqrt(squares / size)
    held = state.held
    if distance < -band:
        held = 1.0
    elif distance > band:
        held = short
    elif (held > 0.0 and distance >= 0.0) or (held < 0.0 and distance <= 0.0):
        held = 0.0
    return BollingerReversionState(moments, held), math.nan if math.isnan(distance) else held


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


BOLLINGER_REVERSION = Strategy(
    "bollinger_reversion", "Bollinger reversion", BollingerReversionParams, start, on_bar, targets
)
