"""The changes of target of many parameter sets, a reach of bars after the other, and whole targets made of them.

A strategy that declares ``Switches`` finds its changes from tables which all sets of a block share. Accounts by the
change (switches.py) need no more; accounts by the bar need a target for each bar, and filling it in from the changes
takes a fraction of the time of the strategy's own loop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, cast

import numpy as np
from numba.core import config

from strategies.base import Strategy
from strategies.compiled import compiled, read_only
from strategies.model import Float64Array
from strategies.nearness import window_columns
from strategies.tables import WORD, Changes, Series, Windows

# Bars of a tile. It must not follow from the sets of a block: the running sums begin anew with each tile, so a set's
# last digits would depend on which others it is computed with, and a sweep's table on how it was cut.
TILE_BARS: Final = 1024
# Sets whose changes are kept at once; each may change on every bar of a tile.
SETS_AT_ONCE: Final = 1024
# A call from Python takes as long as a set needs for several tiles: a *reach* is up to so many tiles, while its table
# has no more values than fit a core's cache. Nothing in the results follows from it.
TILES_AT_ONCE: Final = 16
VALUES_AT_ONCE: Final = 2**16
# Targets that are held at once: 128 MB.
TARGETS_AT_ONCE: Final = 2**24


def applies(strategy: Strategy) -> bool:
    """Whether changes can be found for ``strategy`` at all (without a compiler they cannot: no words of bits)."""
    return strategy.switches is not None and not cast(Any, config).DISABLE_JIT


class Scan:
    """What is kept from one reach of bars to the next for own parameters ``rows`` float64[m, k]; of bounded size.

    ``width`` is the length of a tile in bars; ``reach`` how many bars ``changes`` may be asked for at once.
    """

    def __init__(self, strategy: Strategy, rows: Float64Array, series: Series) -> None:
        switches = strategy.switches
        if switches is None:
            raise AssertionError(f"{strategy.name} has no switches")
        self.switches, self.rows, self.series = switches, read_only(rows), series
        self.width = width = tile_bars(series.close.size)
        columns = window_columns(strategy)
        sizes, places = np.unique(rows[:, columns].astype(np.int64), return_inverse=True)
        self.places = np.ascontiguousarray(places.reshape(len(rows), len(columns)).astype(np.int64))
        per_bar, fixed = switches.memory
        needs = per_bar * sizes + fixed
        self.windows = Windows(sizes, np.cumsum(needs) - needs, np.zeros(int(needs.sum())))
        self.at_once = min(len(rows), SETS_AT_ONCE)
        values = sizes.size * switches.lines * width
        tiles = min(TILES_AT_ONCE, VALUES_AT_ONCE // values, SETS_AT_ONCE // self.at_once)
        self.reach = max(min(tiles, -(-series.close.size // width)), 1) * width
        self.table = np.zeros((sizes.size, switches.lines, self.reach))
        most = self.at_once * self.reach
        self.found = Changes(np.zeros(self.at_once + 1, dtype=np.int64), np.empty(most, np.int64), np.empty(most))
        self.carried = np.zeros((len(rows), 2))

    def changes(self, first: int, last: int) -> Iterator[tuple[int, int, Changes]]:
        """(low, high, changes) of the sets from low to before high, in the bars from ``first`` to before ``last``.

        These must be the next ones after those of the call before; there may be none. The changes are good until the
        next ones are asked for.
        """
        if last > first:
            self.switches.table(self.series, first, last, self.windows, self.table)
        for low in range(0, len(self.rows), self.at_once):
            high = min(low + self.at_once, len(self.rows))
            if last > first:
                some = (self.rows[low:high], self.places[low:high])
                self.switches.scan(*some, self.table, self.series, first, last, self.carried[low:high], self.found)
            else:
                self.found.first[:] = 0
            yield low, high, self.found


def tile_bars(length: int) -> int:
    """How many bars a tile has in a series of so many: a power of two."""
    return min(TILE_BARS, int(2 ** math.ceil(math.log2(max(length, WORD)))))


def targets(strategy: Strategy, rows: Float64Array, series: Series) -> Iterator[Float64Array]:
    """The target float64[n] of each of own parameters ``rows`` float64[m, k]; while it warms up it may be 0 or NaN.

    Of equal rows that follow each other it is made once; an array must not be written to.
    """
    if not len(rows):
        return
    new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
    starts = np.flatnonzero(new)
    repeats = np.diff(np.append(starts, len(rows)))
    at_once = max(1, TARGETS_AT_ONCE // max(1, series.close.size))
    for begin in range(0, starts.size, at_once):
        chosen = starts[begin : begin + at_once]
        for target, count in zip(_different(strategy, rows[chosen], series), repeats[begin:], strict=False):
            for _ in range(count):
                yield target


def _different(strategy: Strategy, rows: Float64Array, series: Series) -> Iterator[Float64Array]:
    if not applies(strategy):
        for row in rows:
            yield strategy.targets(read_only(row), *series)
        return
    scan = Scan(strategy, np.ascontiguousarray(rows), series)
    length = series.close.size
    made, standing = np.empty((len(rows), length)), np.zeros(len(rows))
    for first in range(0, length, scan.reach):
        last = min(first + scan.reach, length)
        for low, high, changes in scan.changes(first, last):
            _fill(changes, first, last, standing[low:high], made[low:high])
    yield from made


@compiled
def _fill(changes: Changes, first: int, last: int, standing: Float64Array, made: Float64Array) -> None:
    """Write the targets of the bars from ``first`` to before ``last``; ``standing`` is each set's last one."""
    for s in range(standing.size):
        at = first
        for j in range(changes.first[s], changes.first[s + 1]):
            until = first + changes.bar[j]
            made[s, at:until] = standing[s]
            standing[s] = changes.target[j]
            at = until
        made[s, at:last] = standing[s]
