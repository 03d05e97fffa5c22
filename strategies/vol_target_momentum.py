"""Volatility-targeted momentum: follow the direction of the last bars, the smaller the wilder the market."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import (
    Delay,
    RollingMoments,
    delay_start,
    delay_step,
    rolling_moments_start,
    rolling_moments_step,
)
from strategies.model import Float64Array, Int64Array
from strategies.tables import (
    MOMENTS_MEMORY,
    NOTHING,
    WORD,
    Changes,
    Series,
    Switches,
    Windows,
    keep_moments,
    kept_moments,
    trailing_zeros,
)


class VolTargetMomentumParams(Params):
    """Windows are counted in bars; volatilities are standard deviations of the returns of one bar, not annualised."""

    lookback: int = Field(60, ge=1, le=10_000, description="bars back to the close that tells the direction")
    volatility_window: int = Field(30, ge=2, le=10_000, description="returns in the measured volatility")
    target_volatility: float = Field(0.01, ge=1e-6, le=1.0, description="wanted volatility of a bar's return")
    band: float = Field(0.1, ge=0.0, le=1.0, description="smaller changes of the target are not made")
    allow_short: int = Field(0, ge=0, le=1, description="1: short when the direction is down, 0: flat")


class VolTargetMomentumState(NamedTuple):
    closes: Delay
    returns: RollingMoments
    previous: float
    held: float


@compiled
def start(vector: Float64Array) -> VolTargetMomentumState:
    return VolTargetMomentumState(delay_start(int(vector[0])), rolling_moments_start(int(vector[1])), math.nan, 0.0)


@compiled_step
def on_bar(vector: Float64Array, state: VolTargetMomentumState, bar: BarStep) -> tuple[VolTargetMomentumState, float]:
    """``direction * min(1, target_volatility / measured volatility)``; NaN until both windows are full.

    The direction is that of the close against the one ``lookback`` bars ago. The held target is kept while the new one
    is within ``band`` of it and on the same side. No measured volatility at all means the full size. Source: the
    scaling of T. Moskowitz, Y. H. Ooi and L. H. Pedersen, "Time series momentum", Journal of Financial Economics, 2012.
    """
    degrees = vector[1] - 1.0
    target_volatility = vector[2]
    band = vector[3]
    short = 0.0 - vector[4]
    closes, past = delay_step(state.closes, bar.close)
    returns, mean, squares = rolling_moments_step(state.returns, bar.close / state.previous - 1.0)
    measured = math.sqrt(squares / degrees)
    size = target_volatility / measured if measured > target_volatility else 1.0
    direction = 1.0 if bar.close > past else (short if bar.close < past else 0.0)
    wanted = direction * size
    held = state.held
    if abs(wanted - held) > band or (wanted * held <= 0.0 and wanted != held):
        held = wanted
    ready = not math.isnan(past) and not math.isnan(mean)
    if not ready:
        held = 0.0
    return VolTargetMomentumState(closes, returns, bar.close, held), held if ready else math.nan


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
    """One line a window: the measured volatility, NaN until there is one."""
    close = series.close
    for w in range(windows.sizes.size):
        size = windows.sizes[w]
        kept = windows.memory[windows.places[w] :]
        state = kept_moments(kept, size)
        for i in range(first, last):
            change = close[i] / close[i - 1] - 1.0 if i > 0 else math.nan
            state, mean, squares = rolling_moments_step(state, change)
            measured = math.sqrt(squares / (size - 1.0))
            if math.isnan(mean):
                measured = math.nan
            elif math.isnan(measured):
                measured = 0.0  # the full size, as where nothing moves
            table[w, 0, i - first] = measured
        keep_moments(kept, size, state)


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
    wanted = np.empty(WORD)
    for s in range(places.shape[0]):
        held = carried[s, 0]
        changes.first[s] = count
        for begin in range(0, last - first, WORD):
            bars = min(WORD, last - first - begin)
            _wanted(wanted, rows[s], table[places[s, 0], 0], series.close, first, begin, bars)
            bit = _next_change(wanted, 0, bars, held, rows[s, 3])
            while bit < bars:
                held = 0.0 if math.isnan(wanted[bit]) else wanted[bit]
                changes.bar[count] = begin + bit
                changes.target[count] = held
                count += 1
                bit = _next_change(wanted, bit + 1, bars, held, rows[s, 3])
        carried[s, 0] = held
    changes.first[places.shape[0]] = count


@compiled
def _wanted(
    wanted: Float64Array,
    row: Float64Array,
    measured: Float64Array,
    close: Float64Array,
    first: int,
    begin: int,
    bars: int,
) -> None:
    """What ``on_bar`` wants on the bars from ``first + begin`` on, before the band; NaN where it is not ready."""
    lookback, target_volatility, short = int(row[0]), row[2], 0.0 - row[4]
    unknown = min(max(lookback - first - begin, 0), bars)
    wanted[:unknown] = math.nan
    at = first + begin
    now, past = close[at + unknown : at + bars], close[at + unknown - lookback : at + bars - lookback]
    volatility, result = measured[begin + unknown : begin + bars], wanted[unknown:]
    for i in range(now.size):
        size = target_volatility / volatility[i] if volatility[i] > target_volatility else 1.0
        direction = 1.0 if now[i] > past[i] else (short if now[i] < past[i] else 0.0)
        result[i] = math.nan if math.isnan(volatility[i]) else direction * size


@compiled
def _next_change(wanted: Float64Array, start: int, bars: int, held: float, band: float) -> int:
    """The first of the bars from ``start`` on at which ``on_bar`` would hold something else than ``held``."""
    word = NOTHING
    for i in range(WORD):
        value = wanted[i]
        apart = (abs(value - held) > band) | ((value * held <= 0.0) & (value != held))
        word |= np.uint64(apart | (math.isnan(value) & (held != 0.0))) << np.uint64(i)
    if start >= WORD:
        return WORD
    return trailing_zeros((word >> np.uint64(start)) << np.uint64(start))


SWITCHES = Switches(("volatility_window",), lines=1, memory=MOMENTS_MEMORY, table=table_of, scan=scan)
VOL_TARGET_MOMENTUM = Strategy(
    "vol_target_momentum",
    "Volatility-targeted momentum",
    VolTargetMomentumParams,
    start,
    on_bar,
    targets,
    SWITCHES,
)
