"""Donchian breakout: follow a close beyond the highest high or lowest low of many bars, leave at that of fewer bars."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMax, rolling_max_start, rolling_max_step
from strategies.model import Float64Array


class DonchianBreakoutParams(Params):
    """Channels are taken over the bars before this one, counted in bars."""

    BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("exit_window", "entry_window"),)

    entry_window: int = Field(20, ge=2, le=10_000, description="bars in the channel whose break opens a position")
    exit_window: int = Field(10, ge=1, le=5_000, description="bars in the channel whose break ends it")
    allow_short: int = Field(0, ge=0, le=1, description="1: short below the entry channel, 0: flat")


class DonchianBreakoutState(NamedTuple):
    """``top`` and ``bottom`` are the channels up to the bar before; bottoms are kept negated (largest of -low)."""

    entry_highs: RollingMax
    entry_lows: RollingMax
    exit_highs: RollingMax
    exit_lows: RollingMax
    entry_top: float
    entry_bottom: float
    exit_top: float
    exit_bottom: float
    held: float


@compiled
def start(vector: Float64Array) -> DonchianBreakoutState:
    entry = int(vector[0])
    leave = int(vector[1])
    return DonchianBreakoutState(
        rolling_max_start(entry),
        rolling_max_start(entry),
        rolling_max_start(leave),
        rolling_max_start(leave),
        math.nan,
        math.nan,
        math.nan,
        math.nan,
        0.0,
    )


@compiled_step
def on_bar(vector: Float64Array, state: DonchianBreakoutState, bar: BarStep) -> tuple[DonchianBreakoutState, float]:
    """NaN until the entry channel of the bars before is full. Source: the "turtle" rules of R. Dennis, 1983."""
    short = 0.0 - vector[2]
    held = state.held
    if bar.close > state.entry_top:
        held = 1.0
    elif -bar.close > state.entry_bottom:
        held = short
    elif (held > 0.0 and -bar.close > state.exit_bottom) or (held < 0.0 and bar.close > state.exit_top):
        held = 0.0
    target = math.nan if math.isnan(state.entry_top) else held
    entry_highs, entry_top = rolling_max_step(state.entry_highs, bar.high)
    entry_lows, entry_bottom = rolling_max_step(state.entry_lows, -bar.low)
    exit_highs, exit_top = rolling_max_step(state.exit_highs, bar.high)
    exit_lows, exit_bottom = rolling_max_step(state.exit_lows, -bar.low)
    moved_on = DonchianBreakoutState(
        entry_highs, entry_lows, exit_highs, exit_lows, entry_top, entry_bottom, exit_top, exit_bottom, held
    )
    return moved_on, target


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


DONCHIAN_BREAKOUT = Strategy("donchian_breakout", "Donchian breakout", DonchianBreakoutParams, start, on_bar, targets)
