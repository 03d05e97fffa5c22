"""RSI mean reversion: buy what fell too fast, sell what rose too fast, leave when the RSI is back in the middle."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.indicators import RelativeStrength, relative_strength_start, relative_strength_step
from strategies.model import Float64Array, Int64Array
from strategies.tables import (
    NOTHING,
    WORD,
    Changes,
    Series,
    Switches,
    Windows,
    above,
    address,
    addresses,
    append_changes,
    at_least,
    at_most,
    below,
    hold,
    wanted_at,
)


class RsiReversionParams(Params):
    """The window is counted in bars and taken over closes; levels are on the RSI's scale of 0 to 100."""

    BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("oversold", "exit_level"), ("exit_level", "overbought"))

    window: int = Field(14, ge=2, le=2_000, description="bars in Wilder's averages")
    oversold: float = Field(30.0, ge=0.0, le=100.0, description="long below this RSI")
    overbought: float = Field(70.0, ge=0.0, le=100.0, description="short above this RSI, where allowed")
    exit_level: float = Field(50.0, ge=0.0, le=100.0, description="a long ends at or above, a short at or below it")
    allow_short: int = Field(0, ge=0, le=1, description="1: short above overbought, 0: flat")


class RsiReversionState(NamedTuple):
    strength: RelativeStrength
    held: float


@compiled
def start(vector: Float64Array) -> RsiReversionState:
    return RsiReversionState(relative_strength_start(int(vector[0])), 0.0)


@compiled_step
def on_bar(vector: Float64Array, state: RsiReversionState, bar: BarStep) -> tuple[RsiReversionState, float]:
    """NaN until ``window`` changes are known."""
    oversold = vector[1]
    overbought = vector[2]
    exit_level = vector[3]
    short = 0.0 - vector[4]
    strength, rsi = relative_strength_step(state.strength, bar.close)
    held = state.held
    if rsi < oversold:
        held = 1.0
    elif rsi > overbought:
        held = short
    elif (held > 0.0 and rsi >= exit_level) or (held < 0.0 and rsi <= exit_level):
        held = 0.0
    return RsiReversionState(strength, held), math.nan if math.isnan(rsi) else held


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
    """One line a window: the RSI."""
    for w in range(windows.sizes.size):
        kept = windows.memory[windows.places[w] :]
        state = relative_strength_start(windows.sizes[w])
        if first > 0:
            state = RelativeStrength(windows.sizes[w], int(kept[0]), kept[1], kept[2], kept[3])
        line = table[w, 0]
        for i in range(first, last):
            state, line[i - first] = relative_strength_step(state, series.close[i])
        kept[0], kept[1], kept[2], kept[3] = state.changes, state.previous, state.gain, state.loss


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
    strength, found = address(table), addresses(changes)
    stride = table.shape[1] * table.shape[2]
    for s in range(places.shape[0]):
        line = places[s, 0] * stride
        oversold, overbought, exit_level = rows[s, 1], rows[s, 2], rows[s, 3]
        held, standing = carried[s, 0], carried[s, 1]
        changes.first[s] = count
        for begin in range(0, last - first, WORD):
            bars = min(WORD, last - first - begin)
            buy, sell = below(strength, line + begin, oversold), above(strength, line + begin, overbought)
            if (buy | sell) == NOTHING and held == 0.0 and standing == 0.0:
                continue
            leave_long = at_least(strength, line + begin, exit_level)
            leave_short = at_most(strength, line + begin, exit_level)
            long, short = hold(buy, sell, leave_long, leave_short, rows[s, 4] > 0.0, held)
            held = wanted_at(long, short, bars - 1)
            known = leave_long | leave_short  # where the RSI is no number it is neither
            long &= known
            short &= known
            count = append_changes(found, count, begin, bars, long, short, standing)
            standing = wanted_at(long, short, bars - 1)
        carried[s, 0], carried[s, 1] = held, standing
    changes.first[places.shape[0]] = count


SWITCHES = Switches(("window",), lines=1, memory=(0, 4), table=table_of, scan=scan)
RSI_REVERSION = Strategy("rsi_reversion", "RSI mean reversion", RsiReversionParams, start, on_bar, targets, SWITCHES)
