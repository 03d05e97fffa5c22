"""The space a search looks through for one strategy: points of a unit cube, and the parameter sets they stand for.

A dimension is an axis with more than one value. A list or a range has levels: coordinate u stands for the level
floor(u * levels), in rising order. A continuous axis {low, high} is linear in u, or logarithmic; its values are rounded
to ten digits, so that the last bits of a logarithm, which differ between machines, do not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.base import AnyStrategy, ParameterInfo, parameter_table
from strategies.model import Float64Array
from strategies.search_spec import Constraint, Continuous
from strategies.spec import Range

DIGITS: Final = 10
# How many points at a time, and how often, are drawn in search of one that keeps the rules and is new.
DRAWS: Final = 4_096
DRAW_ROUNDS_MAX: Final = 64
# How far around a point, as a standard deviation in the unit cube, and how many points at each distance.
NEIGHBOURHOODS: Final = (0.01, 0.03, 0.1)
NEIGHBOURS: Final = 64
# A space of at most so many sets is written out where drawing finds nothing new.
ENUMERATED_MAX: Final = 1_000_000

AnyAxis = tuple[float, ...] | Range | Continuous


@dataclass(frozen=True)
class Dimension:
    """One axis: its column among the parameters, and its levels or its ends (then ``levels`` is None)."""

    name: str
    column: int
    levels: Float64Array | None
    low: float
    high: float
    log: bool
    whole: bool

    @property
    def count(self) -> int | None:
        """How many values there are; None for a continuum."""
        if self.levels is not None:
            return len(self.levels)
        return int(self.high) - int(self.low) + 1 if self.whole else None

    def values(self, units: Float64Array) -> Float64Array:
        """float64[n] values for float64[n] coordinates in 0 … 1."""
        if self.levels is not None:
            places = np.minimum((units * len(self.levels)).astype(np.int64), len(self.levels) - 1)
            return np.asarray(self.levels[places])
        low, high = self._ends()
        raw = low + units * (high - low)
        if self.log:
            raw = np.exp(raw)
        if self.whole:
            return np.asarray(np.clip(np.rint(raw), self.low, self.high))
        rounded = np.array([float(f"{value:.{DIGITS}g}") for value in raw.tolist()])
        return np.asarray(np.clip(rounded, self.low, self.high))

    def middles(self) -> Float64Array:
        """float64[count]: a coordinate for each value of a dimension that is no continuum."""
        count = self.count or 0
        if self.levels is not None:
            return (np.arange(count) + 0.5) / count
        low, high = self._ends()
        values = np.arange(count) + self.low
        return np.asarray(((np.log(values) if self.log else values) - low) / (high - low))

    def _ends(self) -> tuple[float, float]:
        """Where u = 0 and u = 1 lie, as logarithms on a logarithmic axis; whole numbers own half a step each side."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        return (math.log(low), math.log(high)) if self.log else (low, high)


class Space:
    """The parameter sets one grid of a search allows, by points float64[n, d] of a unit cube."""

    def __init__(self, strategy: AnyStrategy, axes: Mapping[str, AnyAxis], rules: Sequence[Constraint] = ()) -> None:
        """``rules`` are constraints on parameters; those that name another strategy's do not apply."""
        self.strategy = strategy
        table = parameter_table(strategy)
        self.names = tuple(info.name for info in table)
        self._rules = [rule for rule in rules if rule.names <= set(self.names)]
        self._fixed = np.array([info.default for info in table])
        self.dimensions: list[Dimension] = []
        for column, info in enumerate(table):
            dimension = _dimension(info, column, axes.get(info.name, (info.default,)))
            if dimension.count == 1:
                self._fixed[column] = dimension.values(np.zeros(1))[0]
            else:
                self.dimensions.append(dimension)

    @property
    def size(self) -> float:
        """How many sets there are, those that break a rule included; infinite for a continuum."""
        return math.prod(math.inf if one.count is None else float(one.count) for one in self.dimensions)

    def rows(self, points: Float64Array) -> Float64Array:
        """The sets float64[n, k] that the points float64[n, d] stand for."""
        rows = np.tile(self._fixed, (len(points), 1))
        for position, dimension in enumerate(self.dimensions):
            rows[:, dimension.column] = dimension.values(points[:, position])
        return rows + 0.0

    def allowed(self, rows: Float64Array) -> NDArray[np.bool_]:
        """bool[n]: which sets keep the rules between parameters, the strategy's own and those of the search."""
        return np.asarray(self.excess(rows) == 0.0)

    def excess(self, rows: Float64Array) -> Float64Array:
        """float64[n]: by how much each set breaks the rules between parameters, 0 where it keeps them."""
        columns = {name: rows[:, position] for position, name in enumerate(self.names)}
        total = np.zeros(len(rows))
        for rule in self._rules:
            total += rule.excess(columns)
        for lesser, greater in self.strategy.params.BELOW:
            total += np.maximum(columns[lesser] - columns[greater], 0.0)
        # Equal values break ``fast < slow`` without an excess.
        return np.where(self.strategy.params.keeps_order(rows), total, np.maximum(total, 1e-9))

    def key(self, row: Float64Array) -> bytes:
        """What tells one set from another, also between grids of one strategy."""
        return self.strategy.name.encode() + b"\0" + row.tobytes()

    def fresh(
        self,
        random: np.random.Generator,
        count: int,
        known: Callable[[bytes], bool],
        around: Float64Array | None = None,
    ) -> tuple[Float64Array, list[bytes]]:
        """Up to ``count`` random points whose sets are allowed, not ``known`` and different, with their keys.

        With ``around`` (a point float64[d]) they are looked for near it first. Fewer come back only where no more could
        be found: every set of a space that can be written out is known.
        """
        found: list[Float64Array] = []
        keys: dict[bytes, None] = {}
        for scale in NEIGHBOURHOODS if around is not None else ():
            steps = random.normal(0.0, scale, (NEIGHBOURS, len(self.dimensions)))
            points = np.clip(np.asarray(around) + steps, 0.0, 1.0)
            found += self._take(points, count - len(found), known, keys)
        for _ in range(DRAW_ROUNDS_MAX):
            if len(found) >= count:
                break
            points = random.random((min(DRAWS, max(64, 4 * count)), len(self.dimensions)))
            found += self._take(points, count - len(found), known, keys)
            if self.size <= len(points):
                break
        if len(found) < count and self.size <= ENUMERATED_MAX:
            points = self._every_point()
            found += self._take(points[random.permutation(len(points))], count - len(found), known, keys)
        return np.array(found).reshape(len(found), len(self.dimensions)), list(keys)

    def _take(
        self, points: Float64Array, count: int, known: Callable[[bytes], bool], keys: dict[bytes, None]
    ) -> list[Float64Array]:
        rows = self.rows(points)
        taken: list[Float64Array] = []
        for position in np.flatnonzero(self.allowed(rows)).tolist():
            if len(taken) >= count:
                break
            key = self.key(rows[position])
            if key not in keys and not known(key):
                keys[key] = None
                taken.append(points[position])
        return taken

    def _every_point(self) -> Float64Array:
        """The middle of every cell float64[size, d]."""
        middles = [one.middles() for one in self.dimensions]
        if not middles:
            return np.zeros((1, 0))
        return np.stack([column.ravel() for column in np.meshgrid(*middles, indexing="ij")], axis=1)


def _dimension(info: ParameterInfo, column: int, axis: AnyAxis) -> Dimension:
    if isinstance(axis, Continuous):
        return Dimension(info.name, column, None, axis.low, axis.high, axis.log, info.kind == "int")
    values = axis.values() if isinstance(axis, Range) else sorted(axis)
    levels = np.array(values, dtype=np.float64)
    return Dimension(info.name, column, levels, levels[0], levels[-1], False, info.kind == "int")
