"""Whether a parameter set stands on a plateau or on a peak: its metric beside its neighbours'.

A result that a small change of a parameter destroys was found by chance more likely than one that it does not: no
market knows that a window is 21 and not 20. Neighbours are one step away on one axis of a grid, or, where the sets are
no grid, the nearest ones in parameters scaled to their range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.base import SpecError
from strategies.model import Float64Array, Int64Array

# A search of more sets than this asks for the neighbours of its best ones only.
NEAREST_MAX: Final = 100_000
Int32Array = NDArray[np.int32]

_ROWS: Final = 65_536
# A grid from which rules between parameters took more than 19 of 20 sets is looked at as scattered points.
_GRID_FILLED_MIN: Final = 0.05
_FAR: Final = 1e6


@dataclass(frozen=True)
class Neighbourhood:
    """An entry a set, float64[m] each, not a number without neighbours; ``count`` is how many there are.

    ``share`` is the neighbours' mean over the set's own metric, between -1 and 1: 1 where they are as good or better,
    0 where nothing is left beside it. Not a number where the set's own metric is not above 0: there is nothing to hold.
    """

    count: Int64Array
    mean: Float64Array
    median: Float64Array
    worst: Float64Array
    share: Float64Array
    method: str


def neighbourhood(
    matrix: Float64Array, values: Float64Array, categories: NDArray[np.bool_] | None = None
) -> Neighbourhood:
    """Each row of float64[m, k] among its neighbours, by ``values`` float64[m] (greater is better; NaN counts as 0).

    ``categories`` bool[k] marks columns that are choices, not amounts (long only or not): neighbours never differ in
    them. Columns with one value are left out. Time m k log m. Raises ``SpecError`` for shapes that do not match.
    """
    sets, columns = matrix.shape
    if values.shape != (sets,) or (categories is not None and categories.shape != (columns,)):
        raise SpecError("values", values.shape, f"one for each of {sets} rows, and categories one for each column")
    choice = np.zeros(columns, dtype=np.bool_) if categories is None else categories
    moving = np.array([np.ptp(matrix[:, c]) > 0.0 if sets else False for c in range(columns)], dtype=np.bool_)
    metric = np.where(np.isnan(values), 0.0, values)
    if not (moving & ~choice).any():
        return _described(np.empty((0, sets), dtype=np.int32), metric, "grid")
    levels, sizes = _levels(matrix[:, moving])
    cells = float(np.prod([float(size) for size in sizes]))
    if sets >= _GRID_FILLED_MIN * cells and cells < 2**62:
        return _described(_grid(levels, sizes, choice[moving]), metric, "grid")
    return _described(_nearest(matrix[:, moving], choice[moving], metric), metric, "nearest")


def _grid(levels: Int64Array, sizes: Int64Array, choice: NDArray[np.bool_]) -> Int32Array:
    """int32[2 d, m]: the rows one step down and up on each axis, -1 where there is none."""
    strides = np.concatenate([np.cumprod(sizes[::-1])[::-1][1:], [1]]).astype(np.int64)
    keys = levels @ strides
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    found = []
    for axis in np.flatnonzero(~choice):
        for step in (-1, 1):
            wanted = keys + step * strides[axis]
            place = np.minimum(np.searchsorted(ordered, wanted), len(keys) - 1)
            inside = (levels[:, axis] + step >= 0) & (levels[:, axis] + step < sizes[axis])
            found.append(np.where(inside & (ordered[place] == wanted), order[place], -1))
    return np.array(found, dtype=np.int32)


def _nearest(matrix: Float64Array, choice: NDArray[np.bool_], metric: Float64Array) -> Int32Array:
    """int32[2 d, m]: the nearest rows, another choice being out of reach, -1 where there is none.

    Distances are Euclidean in parameters scaled to 0 … 1 over the rows.
    """
    from scipy.spatial import cKDTree

    low, spread = matrix.min(axis=0), np.ptp(matrix, axis=0)
    points = (matrix - low) / spread * np.where(choice, _FAR, 1.0)
    wanted = min(2 * int((~choice).sum()), len(points) - 1)
    asked = np.argsort(-metric, kind="stable")[:NEAREST_MAX]
    distance, rows = cKDTree(points).query(points[asked], k=wanted + 1)
    rows = np.where(distance < _FAR / 2, rows, -1)
    rows = np.where(rows == asked[:, np.newaxis], -1, rows)
    found = np.full((wanted + 1, len(points)), -1, dtype=np.int32)
    found[:, asked] = rows.T
    return found


def _described(neighbours: Int32Array, metric: Float64Array, method: str) -> Neighbourhood:
    """Statistics over int32[q, m] neighbours, some rows at a time: a million sets have many million neighbours."""
    count = (neighbours >= 0).sum(axis=0)
    mean, median, worst, share = (np.full(len(metric), np.nan) for _ in range(4))
    for start in range(0, len(metric) if len(neighbours) else 0, _ROWS):
        part = slice(start, start + _ROWS)
        near = np.where(neighbours[:, part] >= 0, metric[neighbours[:, part]], np.nan)
        near.sort(axis=0)  # not a number comes last
        some, column = count[part], np.arange(near.shape[1])
        with np.errstate(divide="ignore", invalid="ignore"):
            mean[part] = np.nansum(near, axis=0) / some
            share[part] = np.where(metric[part] > 0.0, np.clip(mean[part] / metric[part], -1.0, 1.0), np.nan)
        median[part] = (near[np.maximum(some - 1, 0) // 2, column] + near[some // 2, column]) / 2.0
        worst[part] = near[0]
    return Neighbourhood(count, mean, median, worst, share, method)


def _levels(matrix: Float64Array) -> tuple[Int64Array, Int64Array]:
    """int64[m, d]: which of its column's distinct values, in rising order, each entry is; and how many there are."""
    parts = [np.unique(column, return_inverse=True) for column in matrix.T]
    return np.stack([place for _, place in parts], axis=1), np.array([len(values) for values, _ in parts])
