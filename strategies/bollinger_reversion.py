"""Bollinger reversion: buy below the lower band, sell above the upper one, leave when the close is back at the mean."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMoments, rolling_moments_start, rolling_moments_step
from strategies.model import Float64Array, Int64Array
from strategies.tables import (
    MOMENTS_MEMORY,
    NOTHING,
    WORD,
    Changes,
    Series,
    Switches,
    Windows,
    address,
    addresses,
    append_changes,
    at_least,
    at_most,
    hold,
    moments,
    wanted_at,
)


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


@compiled
def table_of(series: Series, first: int, last: int, windows: Windows, table: Float64Array) -> None:
    """Two lines a window: the close's distance from the mean, and the deviation."""
    for w in range(windows.sizes.size):
        size = windows.sizes[w]
        kept = windows.memory[windows.places[w] : windows.places[w] + 4 * size]
        moments(series.close, False, first, last, size, kept, table[w])
        distance, deviation, close = address(table[w, 0]), address(table[w, 1]), address(series.close)
        for j in range(last - first):
            distance[j] = close[first + j] - distance[j]
            deviation[j] = math.sqrt(deviation[j] / size)


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
    lines, found = address(table), addresses(changes)
    stride = table.shape[2]
    for s in range(places.shape[0]):
        distance, deviation = 2 * places[s, 0] * stride, (2 * places[s, 0] + 1) * stride
        held, standing = carried[s, 0], carried[s, 1]
        changes.first[s] = count
        for begin in range(0, last - first, WORD):
            bars = min(WORD, last - first - begin)
            buy, sell = _beyond(lines, distance + begin, deviation + begin, rows[s, 1])
            if (buy | sell) == NOTHING and held == 0.0 and standing == 0.0:
                continue
            leave_long = at_least(lines, distance + begin, 0.0)
            leave_short = at_most(lines, distance + begin, 0.0)
            long, short = hold(buy, sell, leave_long, leave_short, rows[s, 2] > 0.0, held)
            held = wanted_at(long, short, bars - 1)
            known = leave_long | leave_short  # where the distance is no number it is neither
            long &= known
            short &= known
            count = append_changes(found, count, begin, bars, long, short, standing)
            standing = wanted_at(long, short, bars - 1)
        carried[s, 0], carried[s, 1] = held, standing
    changes.first[places.shape[0]] = count


@compiled
def _beyond(lines: Float64Array, distance: int, deviation: int, width: float) -> tuple[np.uint64, np.uint64]:
    """Bit i: below the lower band, above the upper one, on the bar whose lines lie i after the places given."""
    buy = sell = NOTHING
    for i in range(WORD):
        band = width * lines[deviation + i]
        buy |= np.uint64(lines[distance + i] < -band) << np.uint64(i)
        sell |= np.uint64(lines[distance + i] > band) << np.uint64(i)
    return buy, sell


SWITCHES = Switches(("window",), lines=2, memory=MOMENTS_MEMORY, table=table_of, scan=scan)
BOLLINGER_REVERSION = Strategy(
    "bollinger_reversion", "Bollinger reversion", BollingerReversionParams, start, on_bar, targets, SWITCHES
)
