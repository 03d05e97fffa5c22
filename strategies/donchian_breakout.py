"""Donchian breakout: follow a close beyond the highest high or lowest low of many bars, leave at that of fewer bars."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RollingMax, rolling_max_start, rolling_max_step
from strategies.model import Float64Array, Int64Array
from strategies.tables import (
    NOTHING,
    WORD,
    Changes,
    Series,
    Switches,
    Windows,
    address,
    addresses,
    append_changes,
    hold,
    wanted_at,
)


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


@compiled
def table_of(series: Series, first: int, last: int, windows: Windows, table: Float64Array) -> None:
    """Two lines a window, in words of 64 bars: whether a close is above the channel of the bars before, or below it."""
    words = table.view(np.uint64)
    for w in range(windows.sizes.size):
        size = windows.sizes[w]
        kept = windows.memory[windows.places[w] :]
        _breaks(series.high, series.close, 1.0, first, last, kept[: 2 * size + 4], size, words[w, 0])
        _breaks(series.low, series.close, -1.0, first, last, kept[2 * size + 4 :], size, words[w, 1])


@compiled
def _breaks(
    prices: Float64Array,
    close: Float64Array,
    sign: float,
    first: int,
    last: int,
    kept: Float64Array,
    size: int,
    words: NDArray[np.uint64],
) -> None:
    """Bit i: ``sign * close`` is above the largest ``sign * price`` of the bars before; bottoms are tops, negated."""
    position, filled = int(kept[2 * size]), int(kept[2 * size + 1])
    lap = kept[2 * size + 2] if first > 0 else -math.inf
    top = kept[2 * size + 3] if first > 0 else math.nan
    state = RollingMax(kept[:size], kept[size : 2 * size], position, filled, lap)
    for begin in range(first, last, WORD):
        word = NOTHING
        for i in range(begin, min(begin + WORD, last)):
            word |= np.uint64(sign * close[i] > top) << np.uint64(i - begin)
            state, top = rolling_max_step(state, sign * prices[i])
        words[(begin - first) // WORD] = word
    kept[2 * size], kept[2 * size + 1], kept[2 * size + 2], kept[2 * size + 3] = (
        state.position,
        state.filled,
        state.lap,
        top,
    )


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
    broken, found = address(table.view(np.uint64)), addresses(changes)
    stride = table.shape[2]
    for s in range(places.shape[0]):
        entry, leave = 2 * places[s, 0] * stride, 2 * places[s, 1] * stride
        shorts = rows[s, 2] > 0.0
        held = carried[s, 0]
        changes.first[s] = count
        for begin in range(0, last - first, WORD):
            bars = min(WORD, last - first - begin)
            at = begin // WORD
            buy, sell = broken[entry + at], broken[entry + stride + at]
            # While the entry channel is unknown nothing is held, so NaN as a target needs no word of its own.
            if (buy | sell) == NOTHING and held == 0.0:
                continue
            long, short = hold(buy, sell, broken[leave + stride + at], broken[leave + at], shorts, held)
            count = append_changes(found, count, begin, bars, long, short, held)
            held = wanted_at(long, short, bars - 1)
        carried[s, 0] = held
    changes.first[places.shape[0]] = count


SWITCHES = Switches(("entry_window", "exit_window"), lines=2, memory=(4, 8), table=table_of, scan=scan)
DONCHIAN_BREAKOUT = Strategy(
    "donchian_breakout", "Donchian breakout", DonchianBreakoutParams, start, on_bar, targets, SWITCHES
)
