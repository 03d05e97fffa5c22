"""The report's heat maps: through the best set, and over all sets by the median or the best of what lies in a cell.

Which two parameters, and the plane through the best set, are what jobs/planes.py says. Where a parameter has more
values than fit, as in a search over continuous ones, neighbouring values share a cell.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import pyarrow as pa

from cluster.run_folder import LOWER_IS_BETTER
from jobs.planes import planes_of
from jobs.report_words import short, title_of
from strategies.model import Float64Array, Int64Array

HEAT_METRICS: Final = (
    "oos_sharpe",
    "is_sharpe",
    "sharpe",
    "total_return",
    "cagr",
    "max_drawdown",
    "sortino",
    "calmar",
    "trades",
    "win_rate",
    "profit_factor",
    "psr",
    "stability",
)
# Values on an axis before neighbours share a cell, and cells' values in all, so that the file stays small.
GROUPS_MAX: Final = 40
BINS_MAX: Final = 16
BINS_MIN: Final = 4
VALUES_MAX: Final = 300_000
STRATEGIES_MAX: Final = 12


def heat_maps(table: pa.Table, sort_by: str) -> list[dict[str, Any]]:
    """For each strategy of which a parameter varies: ``title`` and ``planes``, each with ``x``, ``y`` and ``modes``.

    A mode (``slice``, ``median``, ``best``) has ``xs``, ``ys`` (labels), ``best`` (the place [i, j] of the strategy's
    best set), ``note`` and ``z``: per metric a row for each of ``ys``, None where no set is. ``table`` is sorted best
    first; sets that saw only a part of the history are left out.
    """
    if "history" in table.column_names:
        whole = table["history"].to_numpy() >= 1.0
        table = table.filter(pa.array(whole)) if whole.any() else table
    strategies = table["strategy"].to_numpy(zero_copy_only=False)
    maps: list[dict[str, Any]] = []
    budget = VALUES_MAX
    for name in list(dict.fromkeys(strategies.tolist()))[:STRATEGIES_MAX]:
        rows = table.filter(pa.array(strategies == name))
        found = planes_of(rows, {name: title_of(name)}, sort_by)
        planes: list[dict[str, Any]] = []
        for plane in found[0]["planes"] if found else []:
            made = _with_modes(plane, rows)
            budget -= _size(made)
            if budget < 0 and planes:
                break
            planes.append(made)
        if planes:
            maps.append({"title": title_of(name), "planes": planes})
    return maps


def _with_modes(plane: dict[str, Any], rows: pa.Table) -> dict[str, Any]:
    x, y = plane["x"], plane["y"]
    modes: dict[str, Any] = {}
    names = [name for name in HEAT_METRICS if name in plane["z"]]
    filled = np.array([[value is not None for value in row] for row in plane["z"][names[0]]])
    others = bool(plane["fixed"])
    if others or plane["thinned"] or y is None or filled.mean() < 0.3:
        modes["median"] = _grouped(rows, x, y, names, best=False)
        modes["best"] = _grouped(rows, x, y, names, best=True)
    # A plane that hardly any set lies on shows nothing: so it is with continuous parameters.
    if not others or filled.sum() >= 4:
        modes = {"slice": _slice(plane, names)} | modes
    return {"x": x, "y": y, "modes": modes}


def _slice(plane: dict[str, Any], names: list[str]) -> dict[str, Any]:
    held = ", ".join(f"{name} = {short(value)}" for name, value in plane["fixed"].items())
    note = f"Held at the best set's values: {held}. " if held else ""
    note += "Shown thinned out: the grid has more values than fit. " if plane["thinned"] else ""
    best = plane["best"] and [plane["xs"].index(plane["best"][0]), plane["ys"].index(plane["best"][1])]
    labels = {axis: [short(value) for value in plane[axis]] for axis in ("xs", "ys")}
    return labels | {"best": best, "note": note, "z": {name: plane["z"][name] for name in names}}


def _grouped(rows: pa.Table, x: str, y: str | None, names: list[str], best: bool) -> dict[str, Any]:
    across, xs = _groups(rows[x].to_numpy().astype(np.float64))
    up, ys = _groups(rows[y].to_numpy().astype(np.float64)) if y else (np.zeros(rows.num_rows, dtype=np.int64), [""])
    cell = up * len(xs) + across
    z = {}
    for name in names:
        values = rows[name].to_numpy().astype(np.float64)
        flat = _of_cells(values, cell, len(xs) * len(ys), (name in LOWER_IS_BETTER) if best else None)
        z[name] = [[_short(value) for value in row] for row in flat.reshape(len(ys), len(xs)).tolist()]
    what = "The best" if best else "The median"
    note = f"{what} of all sets in a cell, whatever their other parameters ({rows.num_rows:,} sets). "
    return {"xs": xs, "ys": ys, "best": [int(across[0]), int(up[0])] if y else None, "note": note, "z": z}


def _groups(values: Float64Array) -> tuple[Int64Array, list[str]]:
    """For each value the number of its group, and the groups' labels: the values, or ranges of about as many sets."""
    different, places = np.unique(values, return_inverse=True)
    if len(different) <= GROUPS_MAX:
        return places.astype(np.int64), [short(value) for value in different.tolist()]
    # About four sets a cell of the plane.
    bins = min(BINS_MAX, max(BINS_MIN, round(math.sqrt(len(values)) / 2)))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)))
    group = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    labels = [f"{low:.3g} … {high:.3g}" for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    return group.astype(np.int64), labels


def _of_cells(values: Float64Array, cell: Int64Array, cells: int, less: bool | None) -> Float64Array:
    """Per cell the median, or where ``less`` is given the lowest (highest) value; NaN where there is none."""
    known = np.isfinite(values)
    values, cell = values[known], cell[known]
    order = np.lexsort((values, cell))
    values, cell = values[order], cell[order]
    there, first, count = np.unique(cell, return_index=True, return_counts=True)
    out = np.full(cells, np.nan)
    if less is None:
        out[there] = (values[first + (count - 1) // 2] + values[first + count // 2]) / 2
    else:
        out[there] = values[first if less else first + count - 1]
    return out


def _size(plane: dict[str, Any]) -> int:
    return sum(len(mode["xs"]) * len(mode["ys"]) * len(mode["z"]) for mode in plane["modes"].values())


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None
