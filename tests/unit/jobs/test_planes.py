"""Heat map planes: the most telling parameters, through the best set, gaps where no set is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.planes import AXIS_VALUES_MAX, planes_of
from strategies.metrics import METRICS

Rows = list[tuple[str, dict[str, float], float]]


def table_of(rows: Rows) -> pa.Table:
    """A results table, best first, of (strategy, parameters, Sharpe); every other metric is the place."""
    rows = sorted(rows, key=lambda row: -row[2])
    names = sorted({name for _, params, _ in rows for name in params})
    columns: dict[str, Any] = {
        "strategy": [strategy for strategy, _, _ in rows],
        "params": [json.dumps(params) for _, params, _ in rows],
    }
    columns |= {name: pa.array([params.get(name) for _, params, _ in rows], pa.float64()) for name in names}
    columns |= {name: np.arange(len(rows), dtype=np.float64) for name in METRICS}
    columns["sharpe"] = np.array([sharpe for _, _, sharpe in rows])
    return pa.table(columns)


def test_two_parameters_make_one_plane_with_gaps() -> None:
    rows: Rows = [("x", {"fast": f, "slow": s}, f + s / 10) for f in (1, 2, 3) for s in (2, 3, 4) if f < s]
    (strategy,) = planes_of(table_of(rows), {"x": "Title of x"}, "sharpe")
    assert strategy["title"] == "Title of x"
    (plane,) = strategy["planes"]
    assert {plane["x"], plane["y"]} == {"fast", "slow"}
    across, up = plane["xs"], plane["ys"]
    for j, y in enumerate(up):
        for i, x in enumerate(across):
            values = {plane["x"]: x, plane["y"]: y}
            expected = values["fast"] + values["slow"] / 10 if values["fast"] < values["slow"] else None
            assert plane["z"]["sharpe"][j][i] == (expected if expected is None else pytest.approx(expected))
    assert {plane["x"]: plane["best"][0], plane["y"]: plane["best"][1]} == {"fast": 3, "slow": 4}
    assert plane["fixed"] == {}


def test_the_parameters_that_move_the_metric_most_come_first_and_others_are_held_at_the_best_set() -> None:
    rows: Rows = [
        ("x", {"a": a, "b": b, "c": c, "d": 7}, 10.0 * a + b + 100.0 * c)
        for a in (1, 2)
        for b in (1, 2)
        for c in (0, 1)
    ]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    assert strategy["title"] == "x"
    assert [(plane["x"], plane["y"]) for plane in strategy["planes"]] == [("c", "a"), ("c", "b"), ("a", "b")]
    assert strategy["planes"][0]["fixed"] == {"b": 2}  # d does not vary, so nobody needs to be told
    assert strategy["planes"][2]["z"]["sharpe"] == [[111, 121], [112, 122]]


def test_a_switch_comes_after_parameters_with_more_values() -> None:
    rows: Rows = [
        ("x", {"switch": s, "a": a, "b": b}, 1e3 * s + a + b / 9) for s in (0, 1) for a in (1, 2, 3) for b in (1, 2, 3)
    ]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    assert [(plane["x"], plane["y"]) for plane in strategy["planes"]] == [("a", "b"), ("a", "switch"), ("b", "switch")]


def test_the_parameter_with_more_values_lies_across() -> None:
    rows: Rows = [("x", {"few": f, "many": m}, 10.0 * f + m) for f in (1, 2, 3) for m in (1, 2, 3, 4)]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    assert [(plane["x"], plane["y"]) for plane in strategy["planes"]] == [("many", "few")]


def test_one_parameter_makes_a_line_and_none_makes_nothing() -> None:
    line = planes_of(table_of([("x", {"a": a, "b": 1}, -abs(a - 2)) for a in (1, 2, 3)]), {}, "sharpe")
    assert line[0]["planes"][0]["x"] == "a"
    assert line[0]["planes"][0]["y"] is None
    assert line[0]["planes"][0]["z"]["sharpe"] == [[-1, 0, -1]]
    assert planes_of(table_of([("x", {"a": 1}, 1.0)]), {}, "sharpe") == []


def test_each_strategy_has_its_own_planes() -> None:
    rows: Rows = [("x", {"a": a}, a) for a in (1.0, 2.0)]
    rows += [("y", {"b": b}, b) for b in (5.0, 6.0)] + [("z", {"c": 1.0}, 0.0)]
    assert [strategy["title"] for strategy in planes_of(table_of(rows), {}, "sharpe")] == ["y", "x"]


def test_a_metric_that_is_no_number_is_a_gap_and_makes_no_noise() -> None:
    rows: Rows = [("x", {"a": a, "b": b}, np.nan if a == 1 else b) for a in (1, 2) for b in (1, 2)]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    plane = strategy["planes"][0]
    assert sorted(value is None for row in plane["z"]["sharpe"] for value in row) == [False, False, True, True]
    json.dumps(strategy, allow_nan=False)


def test_a_long_axis_is_thinned_out_but_keeps_the_best_set() -> None:
    rows: Rows = [("x", {"a": a, "b": b}, -abs(a - 101)) for a in range(1, 400) for b in (1, 2)]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    plane = strategy["planes"][0]
    assert plane["thinned"]
    assert len(plane["xs"]) <= AXIS_VALUES_MAX
    assert 101 in plane["xs"]
    assert plane["best"][0] == 101
    assert plane["xs"] == sorted(plane["xs"])


def test_a_set_that_two_grids_share_shows_the_better_row() -> None:
    rows: Rows = [("x", {"a": 1, "b": 1}, 1.0), ("x", {"a": 1, "b": 1}, 3.0), ("x", {"a": 2, "b": 1}, 2.0)]
    (strategy,) = planes_of(table_of(rows), {}, "sharpe")
    assert strategy["planes"][0]["z"]["sharpe"] == [[3, 2]]
