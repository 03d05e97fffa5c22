"""``desk sweep --search``: options become a specification, or are refused before anything starts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cli_search import continuous_axis, search_of
from cluster.console import CommandError

SWEEP = ["sweep", "-p", "BTC-USD", "--grid", "sma_cross.fast=2..100", "--grid", "sma_cross.slow=10..300:log"]


def test_the_options_become_a_search() -> None:
    options: dict[str, Any] = {"objectives": ["sharpe", "-max_drawdown"], "constraints": [], "eta": None, "patience": 3}
    assert search_of("tpe", 500, **options) == {
        "search": {"method": "tpe", "sets": 500, "objectives": ["sharpe", "-max_drawdown"], "patience": 3}
    }
    assert search_of(None, None, objectives=[], eta=None) == {}


@pytest.mark.parametrize(
    ("method", "sets", "options", "named"),
    [
        ("tpe", None, {}, "--sets"),
        (None, 50, {}, "--sets"),
        (None, None, {"objectives": ["sharpe"]}, "--objective "),
        (None, None, {"constraints": ["trades >= 3"]}, "--constraint "),
        (None, None, {"time_budget_s": 3.0}, "--time-budget-s"),
    ],
)
def test_an_option_of_a_search_needs_a_search(method: Any, sets: Any, options: dict[str, Any], named: str) -> None:
    with pytest.raises(CommandError, match=named):
        search_of(method, sets, **options)


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("2..200", {"low": 2.0, "high": 200.0, "log": False}),
        ("0.01..0.5:log", {"low": 0.01, "high": 0.5, "log": True}),
        ("-1..1", {"low": -1.0, "high": 1.0, "log": False}),
        ("2:200:1", None),
        ("2,3,5", None),
        ("2..", None),
        ("..", None),
        ("2..3..4", None),
        ("2..3:lin", None),
    ],
)
def test_an_axis_may_be_continuous(text: str, axis: dict[str, Any] | None) -> None:
    assert continuous_axis(text) == axis


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--search", "annealing", "--sets", "5"], "search.method"),
        (["--search", "tpe", "--sets", "5", "--objective", "max_drawdown"], "search.objectives[0]"),
        (
            ["--search", "cmaes", "--sets", "5", "--objective", "sharpe", "--objective", "-turnover"],
            "search.objectives",
        ),
        (["--search", "tpe", "--sets", "5", "--constraint", "trades > 3 or 1"], "search.constraints[0]"),
        (["--search", "tpe", "--sets", "5", "--eta", "3"], "search.eta"),
        (["--search", "tpe", "--sets", "5", "--time-budget-s", "nan"], "search.time_budget_s"),
        ([], "grids[0].grid.fast"),
    ],
)
def test_a_bad_search_is_refused_with_its_field(words: list[str], field: str) -> None:
    result = CliRunner().invoke(app, [*SWEEP, *words, "--json"])
    assert result.exit_code != 0
    assert json.loads(result.stdout)["error"]["field"] == field
