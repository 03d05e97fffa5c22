"""What the parameter sets of a block share: each distinct indicator once, and the changes of target found in it.

A sweep asks few windows of many sets. So a block is worked through in *tiles* of a few thousand bars: first the values
of every distinct window on the tile's bars (the table), then, for each set, where its target changes within the tile.
A table holds what the strategy's own step would compute, to the last bit: the step itself fills it, or a loop that does
the same operations in the same order (tests/properties/test_switches.py compares both with the strategy's targets).

Comparisons are made 64 bars at a time: a *word* has a bit for each bar, so a change is a bit that differs from the one
before it, found by counting zeros. Inner loops reach arrays by their ``address``: numba counts the references of an
array that is handed on or cut, with an atomic addition each time, and that took two thirds of the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from strategies.compiled import compiled
from strategies.model import Float64Array, Int64Array

WORD: Final = 64
ONE: Final = np.uint64(1)
NOTHING: Final = np.uint64(0)
EVERYTHING: Final = np.uint64(2**64 - 1)

Indexed = TypeVar("Indexed", bound=np.ndarray[Any, Any])


class Series(NamedTuple):
    """The bars' columns, float64[n] each."""

    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array


class Windows(NamedTuple):
    """The distinct windows of a block, int64[w], with the place in ``memory`` float64 where each keeps its state."""

    sizes: Int64Array
    places: Int64Array
    memory: Float64Array


class Changes(NamedTuple):
    """Changes of target: set s has those from ``first[s]`` to before ``first[s + 1]``, ``bar`` counted in the tile."""

    first: Int64Array
    bar: Int64Array
    target: Float64Array


@dataclass(frozen=True)
class Switches:
    """How a strategy finds the changes of its target without visiting every bar of every set.

    ``windows`` names the parameters that are windows; per distinct one the table has ``lines`` values a bar, and
    ``memory`` = (a, b) says that it keeps ``a * window + b`` values from tile to tile (all 0 at first).

    ``table(series, first, last, windows, table)`` fills ``table`` float64[w, lines, >= last - first] for the bars from
    ``first`` to before ``last``, the next ones after those of the call before.
    ``scan(rows, places, table, series, first, last, carried, changes)`` writes the changes in those bars: ``rows``
    float64[m, k] are the parameters, ``places`` int64[m, len(windows)] where in the table each row's windows are,
    ``carried`` float64[m, 2] is the scan's own from tile to tile (0 at first). NaN as a target counts as 0.
    Both are compiled module globals of the strategy's file; ``on_bar`` alone says what the strategy means.
    """

    windows: tuple[str, ...]
    lines: int
    memory: tuple[int, int]
    table: Callable[..., None]
    scan: Callable[..., None]


def _trailing_zeros(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def _leading_zeros(typing_context: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


# Zeros below the lowest and above the highest set bit of a uint64 (64 for 0), for compiled callers only: one
# instruction each, which neither Python nor numba has a name for.
trailing_zeros: Callable[[np.uint64], int] = cast(Any, intrinsic)(_trailing_zeros)
leading_zeros: Callable[[np.uint64], int] = cast(Any, intrinsic)(_leading_zeros)


def _address(typing_context: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(array)(context, builder, arguments[0]).data

    return cast(Any, types).CPointer(array.dtype)(array), generate


# Where the values of a contiguous array lie, for compiled callers only: it is read and written like one with a single
# index, which nobody checks, and it does not keep the array alive. So it is for arrays that a caller holds: one made in
# the same function is freed after its last mention.
address: Callable[[Indexed], Indexed] = cast(Any, intrinsic)(_address)


@compiled
def addresses(changes: Changes) -> Changes:
    """The same lists by their addresses."""
    return Changes(address(changes.first), address(changes.bar), address(changes.target))


@compiled
def append_changes(
    changes: Changes, count: int, begin: int, bars: int, long: np.uint64, short: np.uint64, standing: float
) -> int:
    """Append the changes in one word of ``bars`` <= 64 bars beginning at ``begin``; the new number of changes.

    Bit i of ``long`` and ``short`` says that bar ``begin + i`` wants 1 or -1, neither 0; ``standing`` came before.
    ``changes`` are by their ``addresses``; so are the lines of ``above`` and its kin.
    """
    was_long = ONE if standing > 0.0 else NOTHING
    was_short = ONE if standing < 0.0 else NOTHING
    changed = (long ^ ((long << ONE) | was_long)) | (short ^ ((short << ONE) | was_short))
    changed &= EVERYTHING >> np.uint64(WORD - bars)
    while changed != NOTHING:
        bit = trailing_zeros(changed)
        changes.bar[count] = begin + bit
        changes.target[count] = wanted_at(long, short, bit)
        count += 1
        changed &= changed - ONE
    return count


@compiled
def wanted_at(long: np.uint64, short: np.uint64, bit: int) -> float:
    """1, -1 or 0 by the two bits."""
    place = np.uint64(bit)
    return float(np.int64((long >> place) & ONE) - np.int64((short >> place) & ONE))


@compiled
def latch(on: np.uint64, off: np.uint64, before: bool) -> np.uint64:
    """Bit i is set where ``on`` was the last of ``on`` and ``off`` to be set up to bar i; without either, ``before``.

    Where both are set ``on`` holds. This is the carry of an addition: a bar passes it on unless it is off.
    """
    passing = ~off
    first = on | passing
    total = first + on + (ONE if before else NOTHING)
    carry_in = total ^ first ^ on
    return on | (passing & carry_in)


@compiled
def hold(
    buy: np.uint64, sell: np.uint64, leave_long: np.uint64, leave_short: np.uint64, shorts: bool, held: float
) -> tuple[np.uint64, np.uint64]:
    """The words of bars that hold 1 and -1: ``buy`` goes before ``sell``, both before leaving; ``held`` comes before.

    Without ``shorts`` a ``sell`` ends a long position and begins nothing.
    """
    sell &= ~buy
    long = latch(buy, sell | leave_long, held > 0.0)
    return long, latch(sell, buy | leave_short, held < 0.0) if shorts else NOTHING


@compiled
def above(line: Float64Array, begin: int, level: float) -> np.uint64:
    """Bit i: ``line[begin + i] > level``, for 64 bars; False for NaN."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(line[begin + i] > level) << np.uint64(i)
    return word


@compiled
def at_least(line: Float64Array, begin: int, level: float) -> np.uint64:
    """Bit i: ``line[begin + i] >= level``."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(line[begin + i] >= level) << np.uint64(i)
    return word


@compiled
def below(line: Float64Array, begin: int, level: float) -> np.uint64:
    """Bit i: ``line[begin + i] < level``."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(line[begin + i] < level) << np.uint64(i)
    return word


@compiled
def at_most(line: Float64Array, begin: int, level: float) -> np.uint64:
    """Bit i: ``line[begin + i] <= level``."""
    word = NOTHING
    for i in range(WORD):
        word |= np.uint64(line[begin + i] <= level) << np.uint64(i)
    return word


MEANS_MEMORY: Final = (0, 3)


@compiled
def means(series: Series, first: int, last: int, windows: Windows, table: Float64Array) -> None:
    """The rolling means of the closes: ``rolling_mean_step``'s operations, lap by lap, without its ring."""
    close = series.close
    for w in range(windows.sizes.size):
        size = windows.sizes[w]
        place = windows.places[w]
        position = int(windows.memory[place])
        total = windows.memory[place + 1]
        lap = windows.memory[place + 2]
        line = table[w, 0]
        i = first
        while i < last:
            stop = min(last, i + size - position)
            position += stop - i
            total, lap = _sum_on(close, i, stop, size, first, total, lap, line)
            if position == size:
                position = 0
                total = lap
                lap = 0.0
                line[stop - 1 - first] = total
            i = stop
        windows.memory[place] = position
        windows.memory[place + 1] = total
        windows.memory[place + 2] = lap
        for j in range(last - first):
            line[j] /= size
        for j in range(min(size - 1, last) - first):
            line[j] = math.nan


@compiled
def _sum_on(
    values: Float64Array, i: int, stop: int, size: int, first: int, total: float, lap: float, line: Float64Array
) -> tuple[float, float]:
    """Sums over the bars from ``i`` to before ``stop``, all within a lap; in the first lap nothing leaves."""
    for j in range(i, stop):
        value = values[j]
        total += value - values[j - size] if j >= size else value
        lap += value
        line[j - first] = total
    return total, lap


MOMENTS_MEMORY: Final = (4, 0)


@compiled
def moments(
    close: Float64Array, of_returns: bool, first: int, last: int, size: int, kept: Float64Array, lines: Float64Array
) -> None:
    """The means and squares of ``rolling_moments_step`` into two ``lines`` float64[2, >= last - first].

    They are of the closes, or of the returns, of which the first bar has none. ``kept`` are ``4 * size`` values from
    call to call: the moments of the last whole lap from each place on, and of the one after it up to each place. Both
    are found when the lap has ended, as two chains of divisions side by side of which neither waits for the other.
    """
    begin = 1 if of_returns else 0
    mean, squares = lines[0], lines[1]
    full = min(max(begin + size - 1 - first, 0), last - first)
    mean[:full] = math.nan
    squares[:full] = math.nan
    values = np.empty(2 * size)
    i = first + full
    while i < last:
        laps, place = divmod(i - begin + 1, size)
        if place == 0:
            _laps(close, of_returns, begin + (laps - 1) * size, size, address(kept), values)
        count = min(size - place, last - i)
        _join(address(kept), size, place, count, mean[i - first :], squares[i - first :])
        i += count


@compiled
def _join(kept: Float64Array, size: int, begin: int, count: int, mean: Float64Array, squares: Float64Array) -> None:
    """What ``rolling_moments_step`` makes of the two parts of a window."""
    for j in range(count):
        place = begin + j
        share = place / size
        gap = kept[2 * size + place] - kept[place] if place > 0 else 0.0
        mean[j] = kept[place] + gap * share
        squares[j] = kept[size + place] + kept[3 * size + place] + gap * gap * share * (size - place)


@compiled
def _laps(
    close: Float64Array, of_returns: bool, start: int, size: int, kept: Float64Array, values: Float64Array
) -> None:
    """Moments of the lap from bar ``start`` on, backwards from its end, and of the next one, up to each place.

    ``values`` float64[2 * size] is room to work in.
    """
    ahead = min(size - 1, close.size - start - size)
    value, price = address(values), address(close)
    for j in range(size + ahead):
        value[j] = price[start + j] / price[start + j - 1] - 1.0 if of_returns else price[start + j]
    end_mean = end_squares = lap_mean = lap_squares = 0.0
    kept[2 * size] = kept[3 * size] = 0.0
    for j in range(size):
        difference = value[size - 1 - j] - end_mean
        end_mean += difference / (j + 1)
        end_squares += difference * (value[size - 1 - j] - end_mean)
        kept[size - 1 - j], kept[2 * size - 1 - j] = end_mean, end_squares
        if j < ahead:
            difference = value[size + j] - lap_mean
            lap_mean += difference / (j + 1)
            lap_squares += difference * (value[size + j] - lap_mean)
            kept[2 * size + j + 1], kept[3 * size + j + 1] = lap_mean, lap_squares
