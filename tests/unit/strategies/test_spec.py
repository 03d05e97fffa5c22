"""A specification is refused before anything starts, naming field, value and rule."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
from typing import Any

import numpy as np
import pytest

from strategies.base import SpecError
from strategies.model import Granularity
from strategies.rules import Rules
from strategies.spec import BacktestSpec, Costs, Range, Sizing, StrategyGrid, SweepSpec, parse_backtest, parse_spec

NAN = math.nan


def sweep(**changes: Any) -> dict[str, Any]:
    return {
        "product_id": "BTC-USD",
        "granularity": "FOUR_HOUR",
        "grids": [{"strategy": "sma_cross", "grid": {"fast": [5, 10], "slow": {"start": 20, "stop": 40, "step": 10}}}],
        **changes,
    }


def backtest(**changes: Any) -> dict[str, Any]:
    return {"product_id": "BTC-USD", "granularity": "FOUR_HOUR", "strategy": "sma_cross", **changes}


def grid(strategy: str = "sma_cross", **axes: Any) -> dict[str, Any]:
    return sweep(grids=[{"strategy": strategy, "grid": axes}])


def reaching(start: float, stop: float, step: float) -> dict[str, float]:
    return {"start": start, "stop": stop, "step": step}


BAD_SWEEPS: list[tuple[Any, str, str]] = [
    # what is given, the field named, a part of the rule
    (None, "spec", "dictionary"),
    ([], "spec", "dictionary"),
    ({}, "product_id", "required"),
    (sweep(product_id="btc-usd"), "product_id", "match pattern"),
    (sweep(product_id="BTC-USD\n"), "product_id", "match pattern"),
    (sweep(product_id=7), "product_id", "string"),
    (sweep(granularity="FORTNIGHT"), "granularity", "ONE_MINUTE"),
    (sweep(granularity=None), "granularity", "ONE_MINUTE"),
    (sweep(gird=1), "gird", "no such field"),
    (sweep(grids=[]), "grids", "at least one grid"),
    (sweep(grids={}), "grids", "tuple"),
    (sweep(grids=[{}]), "grids[0].strategy", "required"),
    (sweep(grids=[{"strategy": "sma_cross"}]), "grids[0].grid", "required"),
    (grid(), "grids[0].grid", "at least one parameter"),
    (grid("macd", fast=[1]), "grids[0].strategy", "one of sma_cross"),
    (grid(fsat=[5]), "grids[0].grid.fsat", "a parameter of sma_cross: fast, slow, allow_short"),
    (grid(fast=[]), "grids[0].grid.fast", "at least one value"),
    (grid(fast=5), "grids[0].grid.fast", "a list of numbers or a range"),
    (grid(fast="5"), "grids[0].grid.fast", "a list of numbers or a range"),
    (grid(fast=None), "grids[0].grid.fast", "a list of numbers or a range"),
    (grid(fast=[5, 5.0]), "grids[0].grid.fast", "each value once"),
    (grid(fast=[5, 0]), "grids[0].grid.fast[1]", "from 1 to 2000"),
    (grid(fast=[5, 2_001]), "grids[0].grid.fast[1]", "from 1 to 2000"),
    (grid(fast=[5.5]), "grids[0].grid.fast[0]", "whole number"),
    (grid(fast=[NAN]), "grids[0].grid.fast[0]", "finite"),
    (grid(fast=[math.inf]), "grids[0].grid.fast[0]", "finite"),
    (grid(fast=["5"]), "grids[0].grid.fast[0]", "number"),
    (grid(fast=[True]), "grids[0].grid.fast[0]", "number"),
    (grid(fast=[None]), "grids[0].grid.fast[0]", "number"),
    (grid(fast=[10**400]), "grids[0].grid.fast[0]", "number"),
    (grid(fast=[[5]]), "grids[0].grid.fast[0]", "number"),
    (grid(allow_short=[0, 1, 2]), "grids[0].grid.allow_short[2]", "from 0 to 1"),
    (grid(fast={}), "grids[0].grid.fast.start", "required"),
    (grid(fast={"start": 1, "stop": 9}), "grids[0].grid.fast.step", "required"),
    (grid(fast={**reaching(1, 9, 1), "setp": 1}), "grids[0].grid.fast.setp", "no such field"),
    (grid(fast=reaching(1, 9, 0)), "grids[0].grid.fast.step", "greater than 0"),
    (grid(fast=reaching(1, 9, -1)), "grids[0].grid.fast.step", "greater than 0"),
    (grid(fast=reaching(1, 9, NAN)), "grids[0].grid.fast.step", "finite"),
    (grid(fast=reaching(1, math.inf, 1)), "grids[0].grid.fast.stop", "finite"),
    (grid(fast=reaching(9, 1, 1)), "grids[0].grid.fast.stop", "at least start = 9"),
    (grid(fast=reaching(0, 9, 1)), "grids[0].grid.fast.start", "from 1 to 2000"),
    (grid(fast=reaching(1, 1e9, 1)), "grids[0].grid.fast.stop", "from 1 to 2000"),
    (grid(fast=reaching(1, 9, 0.5)), "grids[0].grid.fast.step", "whole number"),
    (grid(fast=reaching(1.5, 9, 1)), "grids[0].grid.fast.start", "whole number"),
    (grid(fast=reaching(1, 9.5, 1)), "grids[0].grid.fast.stop", "whole number"),
    (grid(fast=[200]), "grids[0].grid", "fast < slow"),
    (grid(fast=[30, 40], slow=[20, 30]), "grids[0].grid", "fast < slow"),
    (sweep(grids=[*sweep()["grids"], {"strategy": "sma_cross", "grid": {"fast": [0]}}]), "grids[1].grid.fast[0]", "1"),
    (sweep(sort_by="luck"), "sort_by", "one of total_return, cagr"),
    (sweep(purge_bars=-1), "purge_bars", "greater than or equal to 0"),
    (sweep(purge_bars=2.5), "purge_bars", "integer"),
    (sweep(purge_bars=True), "purge_bars", "integer"),
    (sweep(purge_bars=10**12), "purge_bars", "less than or equal to"),
    (sweep(max_sets=0), "max_sets", "greater than or equal to 1"),
    (sweep(max_sets=10**12), "max_sets", "less than or equal to"),
    (sweep(max_sets=3.0), "max_sets", "integer"),
    (sweep(max_sets=5), "grids", "at most max_sets = 5 parameter sets"),
    (sweep(seed=-1), "seed", "greater than or equal to 0"),
    (sweep(seed=2**63), "seed", "less than"),
    (sweep(seed=True), "seed", "integer"),
    (sweep(seed=1.5), "seed", "integer"),
    (sweep(costs=None), "costs", "dictionary"),
    (sweep(costs={"fee": 60}), "costs.fee", "no such field"),
    (sweep(costs={"fee_bps": -1}), "costs.fee_bps", "greater than or equal to 0"),
    (sweep(costs={"fee_bps": 1_001}), "costs.fee_bps", "less than or equal to 1000"),
    (sweep(costs={"fee_bps": NAN}), "costs.fee_bps", "finite"),
    (sweep(costs={"fee_bps": "60"}), "costs.fee_bps", "number"),
    (sweep(costs={"slippage_bps": math.inf}), "costs.slippage_bps", "finite"),
    (sweep(costs={"slippage_bps": True}), "costs.slippage_bps", "number"),
    (sweep(costs={"initial_cash": 0}), "costs.initial_cash", "greater than"),
    (sweep(costs={"initial_cash": 1e16}), "costs.initial_cash", "less than"),
    (sweep(costs={"fill": "close"}), "costs.fill", "next_open"),
    (sweep(costs={"spread_bps": NAN}), "costs.spread_bps", "finite"),
    (sweep(costs={"spread_bps": -1}), "costs.spread_bps", "greater than or equal to 0"),
    (sweep(costs={"impact": 0.6}), "costs.impact", "less than or equal to 0.5"),
    (sweep(costs={"impact": "0.1"}), "costs.impact", "number"),
    (sweep(costs={"max_volume_share": 1.1}), "costs.max_volume_share", "less than or equal to 1"),
    (sweep(costs={"max_volume_share": math.inf}), "costs.max_volume_share", "finite"),
    (sweep(costs={"funding_bps_per_day": -1_001}), "costs.funding_bps_per_day", "greater than or equal to -1000"),
    (sweep(costs={"funding_bps_per_day": None}), "costs.funding_bps_per_day", "number"),
    (sweep(costs={"borrow_bps_per_day": -1}), "costs.borrow_bps_per_day", "greater than or equal to 0"),
    (sweep(costs={"borrow_bps_per_day": True}), "costs.borrow_bps_per_day", "number"),
    (sweep(costs={"maintenance_margin": 0.51}), "costs.maintenance_margin", "less than or equal to 0.5"),
    (sweep(costs={"both_in_bar": "luck"}), "costs.both_in_bar", "stop_first"),
    (sweep(costs={"zero_volume": True}), "costs.zero_volume", "waits"),
    (sweep(costs={"locked_bars": 0}), "costs.locked_bars", "fills"),
    (sweep(costs={"at_end": "sell"}), "costs.at_end", "liquidate"),
    (sweep(costs={"fee_tiers": 5}), "costs.fee_tiers", "tuple"),
    (sweep(costs={"fee_tiers": [5]}), "costs.fee_tiers[0]", "dictionary"),
    (sweep(costs={"fee_tiers": [[1, 2, 3]]}), "costs.fee_tiers[0]", "dictionary"),
    (sweep(costs={"fee_tiers": [[0, 5]]}), "costs.fee_tiers[0].volume_30d_from", "greater than 0"),
    (sweep(costs={"fee_tiers": [[10, NAN]]}), "costs.fee_tiers[0].fee_bps", "finite"),
    (sweep(costs={"fee_tiers": [["10", 5]]}), "costs.fee_tiers[0].volume_30d_from", "number"),
    (sweep(costs={"fee_tiers": [[10, 5], [10, 4]]}), "costs.fee_tiers[1].volume_30d_from", "more than the tier before"),
    (sweep(costs={"fee_tiers": [[i + 1, 5] for i in range(33)]}), "costs.fee_tiers", "at most 32"),
    (sweep(sizing={"kind": "all"}), "sizing.kind", "percent"),
    (sweep(sizing={"window": 1}), "sizing.window", "greater than or equal to 2"),
    (sweep(sizing={"window": 30.0}), "sizing.window", "integer"),
    (sweep(sizing={"min_quantity": -1}), "sizing.min_quantity", "greater than or equal to 0"),
    (sweep(sizing={"min_quantity": math.inf}), "sizing.min_quantity", "finite"),
    (sweep(sizing={"quantity_increment": NAN}), "sizing.quantity_increment", "finite"),
    (sweep(sizing={"quantity": 1}), "sizing.quantity", "no such field"),
    (sweep(sizing=None), "sizing", "dictionary"),
    (grid(stop_loss=[1.5]), "grids[0].grid.stop_loss[0]", "from 0 to 1"),
    (grid(time_stop_bars=[2.5]), "grids[0].grid.time_stop_bars[0]", "whole number"),
    (grid(leverage=[0]), "grids[0].grid.leverage[0]", "from 0.01 to 10"),
    (grid(size=[NAN]), "grids[0].grid.size[0]", "finite"),
    (sweep(start="yesterday"), "start", "a moment like"),
    (sweep(start=1_700_000_000), "start", "a moment like"),
    (sweep(start=True), "start", "a moment like"),
    (sweep(start="1969-12-31"), "start", "between 1970 and 2262"),
    (sweep(end="2262-01-01"), "end", "between 1970 and 2262"),
    (sweep(end="9999-12-31T23:59:59-12:00"), "end", "between 1970 and 2262"),
    (sweep(start="0001-01-01T00:00:00+14:00"), "start", "between 1970 and 2262"),
    (sweep(start="2024-01-02", end="2024-01-01"), "end", "later than start"),
    (sweep(start="2024-01-02", end="2024-01-02"), "end", "later than start"),
]


@pytest.mark.parametrize(("data", "field", "rule"), BAD_SWEEPS)
def test_a_bad_sweep_is_refused(data: Any, field: str, rule: str) -> None:
    before = copy.deepcopy(data)
    with pytest.raises(SpecError) as caught:
        parse_spec(data)
    assert caught.value.field == field
    assert rule in caught.value.rule
    assert str(caught.value).startswith(f"{field}: expected ")
    assert len(str(caught.value)) < 400
    assert repr(data) == repr(before)


@pytest.mark.parametrize(
    ("data", "at_least"),
    [
        # None of these could be expanded: 10^9 numbers are 8 GB, 10^300 are more than there is.
        (grid("bollinger_reversion", window=reaching(2, 10_000, 1), width=reaching(0.1, 10, 0.0001)), 9 * 10**8),
        (grid("sma_cross", fast=reaching(1, 2_000, 1), slow=reaching(2, 10_000, 1), allow_short=[0, 1]), 10**7),
        (grid("vol_target_momentum", band=reaching(0, 1, 1e-300)), 10**300),
        (grid("rsi_reversion", oversold=reaching(0, 40, 1e-320), overbought=reaching(60, 100, 1e-320)), 10**600),
    ],
)
def test_a_huge_grid_is_refused_by_its_count(data: dict[str, Any], at_least: int) -> None:
    with pytest.raises(SpecError, match=r"grids: expected at most max_sets = 1000000 parameter sets") as caught:
        parse_spec(data)
    assert isinstance(caught.value.value, int)
    assert caught.value.value >= at_least


BAD_BACKTESTS: list[tuple[Any, str, str]] = [
    (backtest(strategy="macd"), "strategy", "one of sma_cross"),
    (backtest(strategy=None), "strategy", "string"),
    (backtest(params={"fsat": 1}), "params.fsat", "a parameter of sma_cross"),
    (backtest(params={"fast": 0}), "params.fast", "from 1 to 2000"),
    (backtest(params={"fast": 2.5}), "params.fast", "whole number"),
    (backtest(params={"fast": NAN}), "params.fast", "finite"),
    (backtest(params={"fast": "5"}), "params.fast", "number"),
    (backtest(params={"fast": True}), "params.fast", "number"),
    (backtest(params={"fast": 200}), "params.fast", "less than slow = 100"),
    (backtest(params=[5]), "params", "dictionary"),
    (backtest(costs={"fill": 1}), "costs.fill", "next_open"),
    (backtest(grids=[]), "grids", "no such field"),
]


@pytest.mark.parametrize(("data", "field", "rule"), BAD_BACKTESTS)
def test_a_bad_backtest_is_refused(data: Any, field: str, rule: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_backtest(data)
    assert caught.value.field == field
    assert rule in caught.value.rule


def test_a_sweep_becomes_matrices_whose_neighbours_share_windows() -> None:
    spec = parse_spec(sweep())
    assert spec.count() == 6
    assert spec.dropped() == 0
    [(name, matrix)] = spec.parameter_sets()
    assert name == "sma_cross"
    assert matrix.dtype == np.float64
    assert matrix.flags.c_contiguous
    windows = [(5.0, 20.0), (5.0, 30.0), (10.0, 20.0), (10.0, 30.0), (5.0, 40.0), (10.0, 40.0)]
    assert matrix[:, :3].tolist() == [[fast, slow, 0.0] for fast, slow in windows]
    assert matrix[:, 3:].tolist() == [Rules().vector().tolist()] * 6


def test_combinations_that_break_a_rule_are_dropped_and_counted() -> None:
    spec = parse_spec(grid(fast=[10, 20, 30], slow=[20, 30]))
    [(_, matrix)] = spec.parameter_sets()
    assert matrix[:, :2].tolist() == [[10.0, 20.0], [10.0, 30.0], [20.0, 30.0]]
    assert (spec.count(), spec.dropped()) == (6, 3)


def test_several_grids_keep_their_order_and_may_repeat_a_strategy() -> None:
    names = ["sma_cross", "donchian_breakout", "sma_cross"]
    axes: list[dict[str, Any]] = [{"fast": [5]}, {"entry_window": [20, 30]}, {"fast": [6]}]
    spec = parse_spec(sweep(grids=[{"strategy": n, "grid": a} for n, a in zip(names, axes, strict=True)]))
    assert [(name, len(matrix)) for name, matrix in spec.parameter_sets()] == [
        ("sma_cross", 1),
        ("donchian_breakout", 2),
        ("sma_cross", 1),
    ]


@pytest.mark.parametrize(
    ("start", "stop", "step", "values"),
    [
        (0.1, 0.5, 0.1, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (1, 10, 3, [1.0, 4.0, 7.0, 10.0]),
        (1, 9, 3, [1.0, 4.0, 7.0]),
        (5, 5, 1, [5.0]),
        (5, 6, 10, [5.0]),
        (1e-5, 3e-5, 1e-5, [1e-5, 2e-5, 3e-5]),
        (-0.2, 0.1, 0.1, [-0.2, -0.1, 0.0, 0.1]),
    ],
)
def test_a_range_includes_its_stop_and_reckons_in_decimal(
    start: float, stop: float, step: float, values: list[float]
) -> None:
    reach = Range(start=start, stop=stop, step=step)
    assert reach.values() == values
    assert reach.count() == len(values)


def test_a_specification_from_before_there_were_rules_still_reads() -> None:
    old = {"fee_bps": 10.0, "slippage_bps": 1.0, "fill": "same_close", "initial_cash": 500.0}
    spec = parse_spec(sweep(costs=old))
    assert spec.costs == Costs(**old)
    assert spec.costs.plain
    assert spec.sizing == Sizing()
    assert parse_backtest(backtest(costs=old)).rules() == Rules()


def test_rules_tiers_and_sizing_are_part_of_a_specification() -> None:
    costs = {"fee_tiers": [[1e5, 8], {"volume_30d_from": 1e6, "fee_bps": 5}], "impact": 0.1}
    sizing = {"kind": "volatility", "window": 20, "quantity_increment": 0.001}
    spec = parse_spec(sweep(costs=costs, sizing=sizing))
    assert [tier.fee_bps for tier in spec.costs.fee_tiers] == [8, 5]
    assert not spec.costs.plain
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    one = parse_backtest(backtest(params={"fast": 7, "stop_loss": 0.1, "size": 0.2}, sizing=sizing))
    assert one.rules() == Rules(stop_loss=0.1, size=0.2)
    assert one.vector().tolist() == [7, 100, 0, 0.1, 0, 0, 0, 0.2, 1]
    assert parse_backtest(json.loads(one.model_dump_json())) == one


def test_a_specification_survives_json() -> None:
    spec = parse_spec(sweep(start="2020-01-01", end="2021-06-01T12:00:00+02:00", seed=3, costs={"fill": "same_close"}))
    assert parse_spec(json.loads(spec.model_dump_json())) == spec
    one = parse_backtest(backtest(params={"fast": 7}, start="2020-01-01"))
    assert parse_backtest(json.loads(one.model_dump_json())) == one


@pytest.mark.parametrize(
    "start",
    [
        "2024-05-01",
        "2024-05-01T00:00:00",
        "2024-05-01T00:00:00Z",
        "2024-05-01T02:00:00+02:00",
        dt.date(2024, 5, 1),
        dt.datetime(2024, 5, 1),  # noqa: DTZ001 -- a naive moment is read as UTC
        dt.datetime(2024, 5, 1, tzinfo=dt.UTC),
    ],
)
def test_moments_are_utc(start: object) -> None:
    spec = parse_spec(sweep(start=start))
    assert spec.start == dt.datetime(2024, 5, 1, tzinfo=dt.UTC)
    assert spec.start_ns == 1_714_521_600 * 10**9
    assert spec.end_ns is None


def test_nanoseconds_are_exact() -> None:
    assert parse_spec(sweep(start="2024-05-01T00:00:00.000001")).start_ns == 1_714_521_600_000_001_000


def test_defaults_are_those_of_the_venue_and_the_strategy() -> None:
    spec = parse_backtest(backtest())
    assert spec.costs == Costs(fee_bps=60, slippage_bps=5, fill="next_open", initial_cash=10_000)
    assert spec.parameters().vector().tolist() == [20.0, 100.0, 0.0]
    assert spec.granularity is Granularity.FOUR_HOUR
    assert not spec.costs.look_ahead
    assert Costs(fill="same_close").look_ahead


def test_models_can_be_built_directly() -> None:
    grids = (StrategyGrid(strategy="sma_cross", grid={"fast": (5.0,), "slow": Range(start=20, stop=30, step=10)}),)
    spec = SweepSpec(product_id="BTC-USD", granularity=Granularity.ONE_DAY, grids=grids)
    assert spec.count() == 2
    one = BacktestSpec(product_id="BTC-USD", granularity=Granularity.ONE_DAY, strategy="sma_cross", params={"fast": 5})
    assert one.parameters().vector()[0] == 5
