"""Volatility-targeted momentum: follow the direction of the last bars, the smaller the wilder the market."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
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
    EVERYTHING,
    MOMENTS_MEMORY,
    NOTHING,
    ONE,
    WORD,
    Changes,
    Series,
    Switches,
    Windows,
    address,
    addresses,
    moments,
    trailing_zeros,
    wanted_at,
)

Words = NDArray[np.uint64]

# Of ``_quiet``: much more than rounding can come to, and a size below which a product of two could be 0.
SURELY = 1e-12
NO_UNDERFLOW = 1e100


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
    """Two lines a window: the measured volatility, NaN until there is one; least and greatest of each 64 bars of it."""
    for w in range(windows.sizes.size):
        size = windows.sizes[w]
        kept = windows.memory[windows.places[w] : windows.places[w] + 4 * size]
        moments(series.close, True, first, last, size, kept, table[w])
        mean, squares = table[w, 0], table[w, 1]
        for j in range(last - first):
            measured = math.sqrt(squares[j] / (size - 1.0))
            measured = measured if measured >= 0.0 else 0.0  # no number: the full size, as where nothing moves
            mean[j] = math.nan if math.isnan(mean[j]) else measured
        for begin in range(0, last - first, WORD):
            _range_of_word(mean[begin : min(begin + WORD, last - first)], squares[begin // WORD * 2 :])


@compiled
def _range_of_word(values: Float64Array, result: Float64Array) -> None:
    """The least and the greatest value; what is no number counts as infinite."""
    least, greatest = np.full(WORD, math.inf), np.full(WORD, -math.inf)
    for i in range(values.size):
        value = values[i] if values[i] < math.inf else math.inf
        least[i] = greatest[i] = value
    half = WORD // 2
    while half > 0:
        for i in range(half):
            least[i] = least[i] if least[i] < least[i + half] else least[i + half]
            greatest[i] = greatest[i] if greatest[i] > greatest[i + half] else greatest[i + half]
        half //= 2
    result[0], result[1] = least[0], greatest[0]


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
    bars = last - first
    measured, found, close = address(table), addresses(changes), address(series.close)
    up, down = np.empty(bars // WORD + 1, np.uint64), np.empty(bars // WORD + 1, np.uint64)
    lookback = 0
    for s in range(places.shape[0]):
        if int(rows[s, 0]) != lookback:  # rows of a grid have it in common with the one before
            lookback = int(rows[s, 0])
            _directions(close, first, last, lookback, up, down)
        target_volatility, band, shorts = rows[s, 2], rows[s, 3], rows[s, 4] > 0.0
        line = 2 * places[s, 0] * table.shape[2]
        ranges = line + table.shape[2]
        held = carried[s, 0]
        low, high = _quiet(held, target_volatility, band)
        changes.first[s] = count
        for begin in range(0, bars, WORD):
            at = begin // WORD
            left = EVERYTHING >> np.uint64(WORD - min(WORD, bars - begin))
            while left != NOTHING:
                if held == 0.0:
                    doubtful = up[at] | (down[at] if shorts else NOTHING)
                else:
                    doubtful = ~(up[at] if held > 0.0 else down[at])
                    if not (measured[ranges + 2 * at] >= low and measured[ranges + 2 * at + 1] <= high):
                        doubtful |= _outside(measured, line + begin, low, high)
                doubtful &= left
                if doubtful == NOTHING:
                    break
                bit = trailing_zeros(doubtful)
                upto = doubtful ^ (doubtful - ONE)
                left &= ~upto
                volatility = measured[line + begin + bit]
                size = target_volatility / volatility if volatility > target_volatility else 1.0
                direction = wanted_at(up[at], down[at] if shorts else NOTHING, bit)
                wanted = direction * size
                if first + begin + bit < lookback or math.isnan(volatility):
                    wanted = 0.0
                    changed = held != 0.0
                else:
                    changed = abs(wanted - held) > band or (wanted * held <= 0.0 and wanted != held)
                if changed:
                    held = wanted
                    low, high = _quiet(held, target_volatility, band)
                    found.bar[count] = begin + bit
                    found.target[count] = held
                    count += 1
        carried[s, 0] = held
    changes.first[places.shape[0]] = count


@compiled
def _directions(close: Float64Array, first: int, last: int, lookback: int, up: Words, down: Words) -> None:
    """Bit i of word w: bar ``first + 64 * w + i`` closes above, below the close ``lookback`` bars before; else 0."""
    for begin in range(first, last, WORD):
        rises = falls = NOTHING
        if begin >= lookback and begin + WORD <= last:
            for i in range(WORD):
                rises |= np.uint64(close[begin + i] > close[begin + i - lookback]) << np.uint64(i)
                falls |= np.uint64(close[begin + i] < close[begin + i - lookback]) << np.uint64(i)
        else:
            for i in range(max(lookback - begin, 0), min(WORD, last - begin)):
                rises |= np.uint64(close[begin + i] > close[begin + i - lookback]) << np.uint64(i)
                falls |= np.uint64(close[begin + i] < close[begin + i - lookback]) << np.uint64(i)
        up[(begin - first) // WORD], down[(begin - first) // WORD] = rises, falls


@compiled
def _quiet(held: float, target_volatility: float, band: float) -> tuple[float, float]:
    """Measured volatilities from the first to the second number surely leave ``held`` as it is, the side being its own.

    They are a little nearer to each other than where rounding could tell otherwise: beyond them ``on_bar``'s own
    operations decide.
    """
    size = abs(held)
    smallest, largest = size - band + SURELY, size + band - SURELY
    low, high = -math.inf, NO_UNDERFLOW
    if size < 1.0 / NO_UNDERFLOW or (largest < smallest and size < 1.0):
        low = math.inf
    elif size < 1.0 and largest < 1.0:  # a size of 1 is the largest there is
        low = target_volatility / largest * (1.0 + SURELY)
    if smallest > 0.0:
        high = min(target_volatility / smallest * (1.0 - SURELY), NO_UNDERFLOW)
    return low, high


@compiled
def _outside(line: Float64Array, begin: int, low: float, high: float) -> np.uint64:
    """Bit i: ``line[begin + i]`` is not from ``low`` to ``high``, or no number."""
    word = NOTHING
    for i in range(WORD):
        value = line[begin + i]
        word |= np.uint64(not ((value >= low) & (value <= high))) << np.uint64(i)
    return word


SWITCHES = Switches(("volatility_window",), lines=2, memory=MOMENTS_MEMORY, table=table_of, scan=scan)
VOL_TARGET_MOMENTUM = Strategy(
    "vol_target_momentum",
    "Volatility-targeted momentum",
    VolTargetMomentumParams,
    start,
    on_bar,
    targets,
    SWITCHES,
)
