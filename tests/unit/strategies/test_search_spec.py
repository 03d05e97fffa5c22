"""What a search may be asked for, and every way of asking that is refused, as tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.run_folder import LOWER_IS_BETTER
from strategies.base import SpecError
from strategies.search_spec import LESS_IS_BETTER, Search, parse_constraint, parse_objective
from strategies.spec import SweepSpec, parse_spec

NAN, INF = float("nan"), float("inf")


def sweep(search: Any, **grid: Any) -> SweepSpec:
    axes = grid or {"fast": {"low": 2, "high": 100}, "slow": {"start": 20, "stop": 300, "step": 1}}
    grids = [{"strategy": "sma_cross", "grid": axes}]
    return parse_spec({"product_id": "BTC-USD", "granularity": "ONE_HOUR", "grids": grids, "search": search})


@pytest.mark.parametrize(
    ("text", "terms", "offset", "strict"),
    [
        ("max_drawdown <= 0.3", {"max_drawdown": 1.0}, -0.3, False),
        ("trades >= 30", {"trades": -1.0}, 30.0, False),
        ("30<trades", {"trades": -1.0}, 30.0, True),
        ("slow >= 2 * fast + 10", {"fast": 2.0, "slow": -1.0}, 10.0, False),
        ("slow - fast*1.5 > .5e1", {"fast": 1.5, "slow": -1.0}, 5.0, True),
        ("-sharpe + 1 <= -sortino", {"sharpe": -1.0, "sortino": 1.0}, 1.0, False),
        ("2 * 3 >= fast", {"fast": 1.0}, -6.0, False),
    ],
)
def test_a_constraint_is_read(text: str, terms: dict[str, float], offset: float, strict: bool) -> None:
    found = parse_constraint(text)
    assert (dict(found.terms), found.offset, found.strict) == (terms, offset, strict)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "trades",
        "trades >=",
        ">= 30",
        "trades => 30",
        "trades == 30",
        "trades >= 30 >= 3",
        "trades >= 30, fast > 2",
        "trades >= 3O",
        "trades >= 1.2.3",
        "trades >= 0x10",
        "trades >= nan * inf",
        "fast * slow <= 3",
        "fast / 2 <= 3",
        "fast <= fast",
        "1 <= 2",
        "trades >= 1e999",
        "(trades) >= 3",
        "__import__('os').system('true') <= 1",
        "trades >= 30; import os",
        "lambda: 0",
        "t\u0072ades\u200b >= 3",
        "trades >= " + "1" * 500,
        "- - trades <= 3",
        None,
        3,
        ["trades >= 3"],
    ],
)
def test_what_is_no_constraint_is_refused(text: Any) -> None:
    with pytest.raises(SpecError, match="comparison"):
        parse_constraint(text)


def test_a_constraint_measures_by_how_much_it_is_broken() -> None:
    columns = {"trades": np.array([10.0, 30.0, 50.0, NAN]), "fast": np.array([3.0, 4.0, 5.0, 6.0])}
    np.testing.assert_array_equal(parse_constraint("trades >= 30").excess(columns), [20.0, 0.0, 0.0, 1.0])
    assert (parse_constraint("trades > 30").excess(columns)[1:3] > 0).tolist() == [True, False]
    np.testing.assert_array_equal(parse_constraint("2 * fast <= 8").excess(columns), [0.0, 0.0, 2.0, 4.0])


def test_only_limits_that_stay_broken_count_on_a_part_of_the_history() -> None:
    hardening = {"max_drawdown <= 0.3", "trades < 100", "max_drawdown + 0.01 * trades <= 1"}
    others = {"trades >= 30", "sharpe >= 1", "volatility <= 0.2", "max_drawdown >= 0.1"}
    assert {text for text in hardening | others if parse_constraint(text).only_hardens} == hardening


def test_an_objective_is_a_metric_with_its_direction() -> None:
    assert (parse_objective("sharpe").less, parse_objective(" -max_drawdown").less) == (False, True)
    for text in ("max_drawdown", "turnover", "oos_sharpe", "--max_drawdown", "", "-", None, 3, "sharpe sharpe"):
        with pytest.raises(SpecError):
            parse_objective(text)
    assert LESS_IS_BETTER == LOWER_IS_BETTER


@pytest.mark.parametrize(
    ("search", "field"),
    [
        ({"sets": 10}, "search.method"),
        ({"method": "grid", "sets": 10}, "search.method"),
        ({"method": "tpe"}, "search.sets"),
        ({"method": "tpe", "sets": 0}, "search.sets"),
        ({"method": "tpe", "sets": -5}, "search.sets"),
        ({"method": "tpe", "sets": 10.0}, "search.sets"),
        ({"method": "tpe", "sets": "10"}, "search.sets"),
        ({"method": "tpe", "sets": True}, "search.sets"),
        ({"method": "random", "sets": 10**12}, "search.sets"),
        ({"method": "tpe", "sets": 100_000}, "search.sets"),
        ({"method": "tpe", "sets": 10, "generation": 0}, "search.generation"),
        ({"method": "cmaes", "sets": 10, "generation": 3}, "search.generation"),
        ({"method": "tpe", "sets": 10, "objectives": []}, "search.objectives"),
        ({"method": "tpe", "sets": 10, "objectives": ["sharpe", "sharpe"]}, "search.objectives"),
        ({"method": "tpe", "sets": 10, "objectives": ["sharpe", "profit"]}, "search.objectives[1]"),
        ({"method": "cmaes", "sets": 10, "objectives": ["sharpe", "-max_drawdown"]}, "search.objectives"),
        ({"method": "tpe", "sets": 10, "constraints": ["drawdown <= 1"]}, "search.constraints[0]"),
        ({"method": "tpe", "sets": 10, "constraints": ["trades >= 3", "window > 3"]}, "search.constraints[1]"),
        ({"method": "tpe", "sets": 10, "constraints": ["exec('1') <= 1"]}, "search.constraints[0]"),
        ({"method": "tpe", "sets": 10, "constraints": ["trades >= 3"] * 33}, "search.constraints"),
        ({"method": "tpe", "sets": 10, "eta": 3}, "search.eta"),
        ({"method": "random", "sets": 10, "rungs": 2}, "search.rungs"),
        ({"method": "asha", "sets": 10, "eta": 1}, "search.eta"),
        ({"method": "asha", "sets": 10, "rungs": 1}, "search.rungs"),
        ({"method": "tpe", "sets": 10, "patience": 0}, "search.patience"),
        ({"method": "tpe", "sets": 10, "time_budget_s": 0}, "search.time_budget_s"),
        ({"method": "tpe", "sets": 10, "time_budget_s": NAN}, "search.time_budget_s"),
        ({"method": "tpe", "sets": 10, "time_budget_s": INF}, "search.time_budget_s"),
        ({"method": "tpe", "sets": 10, "target": NAN}, "search.target"),
        ({"method": "tpe", "sets": 10, "target": 1, "objectives": ["sharpe", "cagr"]}, "search.target"),
        ({"method": "tpe", "sets": 10, "sampler": "cloudpickle"}, "search.sampler"),
        ("tpe", "search"),
        ([], "search"),
    ],
)
def test_a_bad_search_is_refused_by_its_field(search: Any, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep(search)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("grid", "field"),
    [
        ({"fast": {"low": 50, "high": 2}}, "grids[0].grid.fast.high"),
        ({"fast": {"low": 5, "high": 5}}, "grids[0].grid.fast.high"),
        ({"fast": {"low": NAN, "high": 5}}, "grids[0].grid.fast.low"),
        ({"fast": {"low": 2, "high": INF}}, "grids[0].grid.fast.high"),
        ({"fast": {"low": -3, "high": 5}}, "grids[0].grid.fast.low"),
        ({"fast": {"low": 2.5, "high": 5}}, "grids[0].grid.fast.low"),
        ({"fast": {"low": 2}}, "grids[0].grid.fast.high"),
        ({"fast": {"low": 2, "high": 5, "step": 1}}, "grids[0].grid.fast.step"),
        ({"stop_loss": {"low": 0, "high": 0.5, "log": True}}, "grids[0].grid.stop_loss.low"),
        ({"fast": {"low": 30, "high": 50}, "slow": [10, 30]}, "grids[0].grid"),
        ({"stop_loss": {"start": 0, "stop": 1, "step": 1e-9}}, "grids[0].grid.stop_loss"),
    ],
)
def test_a_bad_axis_of_a_search_is_refused_by_its_field(grid: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep({"method": "random", "sets": 10}, **grid)
    assert caught.value.field == field


def test_only_a_search_takes_a_continuous_axis() -> None:
    with pytest.raises(SpecError, match="only a search"):
        sweep(None)


def test_a_space_of_any_size_is_searched_without_writing_it_out() -> None:
    wide = {"low": 0.0001, "high": 0.9999}
    spec = sweep({"method": "tpe", "sets": 10}, stop_loss=wide, take_profit=wide, size={"low": 0.01, "high": 1e12})
    assert (spec.count(), spec.dropped()) == (10, 0)
    assert [len(matrix) for _, matrix in spec.parameter_sets()] == [0]


def test_each_grid_of_a_search_has_a_set_at_least() -> None:
    grids = [{"strategy": name, "grid": {"allow_short": [0, 1]}} for name in ("sma_cross", "rsi_reversion")]
    search = {"method": "random", "sets": 1}
    with pytest.raises(SpecError, match="a grid"):
        parse_spec({"product_id": "BTC-USD", "granularity": "ONE_HOUR", "grids": grids, "search": search})


def test_a_generation_follows_from_method_and_budget() -> None:
    sizes = {
        method: Search(method=method, sets=500).generation_sets(1) for method in ("random", "tpe", "cmaes", "asha")
    }
    assert sizes == {"random": 64, "tpe": 20, "cmaes": 16, "asha": 500}
    assert Search(method="tpe", sets=500, generation=7).generation_sets(3) == 7


def test_the_rungs_of_a_search_are_rising_parts_of_the_history() -> None:
    assert Search(method="asha", sets=9).fractions == (1 / 9, 1 / 3, 1.0)
    assert Search(method="asha", sets=9, eta=2, rungs=2).fractions == (0.5, 1.0)
    assert Search(method="tpe", sets=9).fractions == (1.0,)
