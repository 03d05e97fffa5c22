"""Planes through a table of results for the report's heat maps: one metric over two parameters, the others held."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from strategies.base import RULES
from strategies.metrics import METRICS
from strategies.model import Float64Array
from strategies.segments import HONEST_COLUMNS

# What fits on a screen and keeps the report small.
AXIS_VALUES_MAX: Final = 60
PARAMETERS_MAX: Final = 4


def planes_of(table: pa.Table, titles: Mapping[str, str], sort_by: str) -> list[dict[str, Any]]:
    """For each strategy of which a parameter varies: its title and its planes, the most telling first.

    ``table`` is sorted best first. A plane goes through the strategy's best set: the parameters that are not its axes
    have that set's values. It has ``x``, ``y`` (None where only one parameter varies), ``xs``, ``ys``, ``fixed``,
    ``best`` (the best set's values on both), ``thinned``, and ``z``: per metric a row for each of ``ys``, None where no
    set is.
    """
    strategies = table["strategy"].to_numpy(zero_copy_only=False)
    planes = []
    for name in dict.fromkeys(strategies.tolist()):
        rows = table.filter(pa.array(strategies == name))
        found = _planes(rows, sort_by)
        if found:
            planes.append({"title": titles.get(name, name), "planes": found})
    return planes


def _planes(rows: pa.Table, sort_by: str) -> list[dict[str, Any]]:
    best: dict[str, float] = json.loads(rows["params"][0].as_py())
    # A row leaves out the rules it does not use; where another one uses them they have a column.
    best = {info.name: info.default for info in RULES if info.name in rows.column_names} | best
    columns = {name: rows[name].to_numpy().astype(np.float64) for name in best}
    metric = rows[sort_by].to_numpy()
    varying = [name for name, column in columns.items() if np.ptp(column) > 0]
    # Two values, mostly a switch, make a poor axis however much they move.
    counts = {name: len(np.unique(columns[name])) for name in varying}
    varying.sort(key=lambda name: (counts[name] == 2, -_influence(columns[name], metric)))
    telling = varying[:PARAMETERS_MAX]
    if not telling:
        return []
    pairs: list[tuple[str, str | None]] = [*itertools.combinations(telling, 2)] or [(telling[0], None)]
    metrics = {name: rows[name].to_numpy() for name in (*METRICS, *HONEST_COLUMNS) if name in rows.column_names}
    # A screen is wider than high: the parameter with more values lies across.
    across = [(y, x) if y is not None and counts[y] > counts[x] else (x, y) for x, y in pairs]
    return [_plane(x, y, columns, best, metrics) for x, y in across]


def _influence(column: Float64Array, metric: Float64Array) -> float:
    """How much the metric's mean moves along a parameter: the variance of the means at its values."""
    values, places = np.unique(column, return_inverse=True)
    known = np.isfinite(metric)
    counts = np.bincount(places[known], minlength=len(values))
    sums = np.bincount(places[known], weights=metric[known], minlength=len(values))
    means = sums[counts > 0] / counts[counts > 0]
    return float(np.var(means)) if means.size else 0.0


def _plane(
    x: str,
    y: str | None,
    columns: Mapping[str, Float64Array],
    best: Mapping[str, float],
    metrics: Mapping[str, Float64Array],
) -> dict[str, Any]:
    held = {name: value for name, value in best.items() if name not in (x, y)}
    on_plane = np.ones(len(columns[x]), dtype=np.bool_)
    for name, value in held.items():
        on_plane &= columns[name] == value
    xs, x_thinned = _axis(columns[x][on_plane], best[x])
    ys, y_thinned = _axis(columns[y][on_plane], best[y]) if y else (np.zeros(1), False)
    across = columns[x][on_plane]
    up = columns[y][on_plane] if y else np.zeros(len(across))
    shown = np.isin(across, xs) & np.isin(up, ys)
    # Rows come best first and two grids may share a set: written in reverse, the better one is kept.
    cell = (np.searchsorted(ys, up[shown]) * len(xs) + np.searchsorted(xs, across[shown]))[::-1]
    z = {}
    for name, values in metrics.items():
        grid = np.full(len(xs) * len(ys), np.nan)
        grid[cell] = values[on_plane][shown][::-1]
        z[name] = [[_short(value) for value in row] for row in grid.reshape(len(ys), len(xs)).tolist()]
    varying = {name: value for name, value in held.items() if np.ptp(columns[name]) > 0}
    return {
        "x": x,
        "y": y,
        "xs": [_tidy(value) for value in xs.tolist()],
        "ys": [_tidy(value) for value in ys.tolist()],
        "fixed": varying,
        "best": [best[x], best[y]] if y else None,
        "thinned": x_thinned or y_thinned,
        "z": z,
    }


def _axis(values: Float64Array, kept: float) -> tuple[Float64Array, bool]:
    """The different values in rising order, thinned out evenly where there are too many; ``kept`` stays."""
    different = np.unique(values)
    if len(different) <= AXIS_VALUES_MAX:
        return different, False
    places = np.linspace(0, len(different) - 1, AXIS_VALUES_MAX - 1).astype(np.int64)
    return np.unique(np.append(different[places], kept)), True


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _tidy(value: float) -> float:
    return int(value) if value.is_integer() else value
