"""One backtest and a block of them: equal metrics, strict inputs, marked look-ahead."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest

from strategies.backtest import (
    FILL_DTYPE,
    AccountingError,
    BacktestSpec,
    BarsError,
    Costs,
    Sizing,
    SpecError,
    evaluate,
    parse_backtest,
    run,
    run_block,
    targets_of,
)
from strategies.base import RULE_NAMES, Rules
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES, UnknownStrategy


def bars(length: int = 400) -> Bars:
    close = 100.0 * np.exp(np.cumsum(0.02 * np.random.default_rng(5).standard_normal(length)))
    open_ = np.concatenate([close[:1], close[:-1]])
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_HOUR.ns + 1_700_000_000 * 10**9
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    return Bars("BTC-USD", Granularity.ONE_HOUR, ts_ns, open_, high, low, close, np.ones(length))


def spec(**changes: Any) -> BacktestSpec:
    data = {"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": "sma_cross", **changes}
    return parse_backtest({"params": {"fast": 3, "slow": 12}, **data})


def test_a_result_tells_bar_by_bar_what_happened() -> None:
    series = bars()
    result = run(spec(), series)
    assert all(array.shape == (400,) for array in (result.equity, result.target, result.position_units, result.ts_ns))
    assert result.fills.dtype == FILL_DTYPE
    assert result.equity[0] == 10_000
    assert list(result.metrics) == list(METRICS)
    assert all(isinstance(value, float) for value in result.metrics.values())
    assert result.metrics["total_return"] == result.equity[-1] / 10_000 - 1
    assert np.isnan(result.target[:11]).all()
    held = np.cumsum(np.bincount(result.fills["bar_index"], result.fills["side"] * result.fills["quantity"], 400))
    np.testing.assert_allclose(held, result.position_units, atol=1e-9)
    assert not result.look_ahead


def test_a_look_ahead_is_marked() -> None:
    assert run(spec(costs={"fill": "same_close"}), bars()).look_ahead


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_block_has_the_metrics_of_single_runs_to_the_last_bit(name: str, fill: str) -> None:
    series, costs = bars(), Costs(fill=fill)
    vectors = [STRATEGIES[name].params.model_validate({"allow_short": short}).vector() for short in (0, 1)]
    block = run_block(name, np.array(vectors), series, costs)
    assert block.shape == (2, len(METRICS))
    for short in (0, 1):
        single = run(spec(strategy=name, params={"allow_short": short}, costs=costs.model_dump()), series)
        np.testing.assert_array_equal(block[short], list(single.metrics.values()))


def test_rules_are_carried_out_alike_in_a_block_with_segments_or_without_and_alone() -> None:
    series, sizing = bars(), {"kind": "volatility", "window": 5, "min_quantity": 0.01}
    rules = {"stop_loss": 0.02, "take_profit": 0.05, "time_stop_bars": 9, "size": 0.4, "leverage": 2}
    costs = Costs(spread_bps=3, impact=0.05, max_volume_share=0.5, funding_bps_per_day=2, borrow_bps_per_day=1)
    single = run(spec(costs=costs.model_dump(), sizing=sizing, params={"fast": 3, "slow": 12, **rules}), series)
    rows = np.stack([spec(params=params).vector() for params in ({}, {"fast": 3, "slow": 12, **rules})])
    for cuts in (None, np.array([0, 7, 300, 400])):
        block = evaluate("sma_cross", rows, series, costs, Sizing.model_validate(sizing), cuts)
        np.testing.assert_array_equal(block.metrics[1], list(single.metrics.values()))
    assert single.metrics["trades"] > 10
    assert set(np.abs(single.position_units)) != {0.0}
    assert (block.metrics[0] != block.metrics[1]).any()


def test_read_only_and_strided_arrays_give_the_same() -> None:
    series = bars()
    matrix = np.array([[3.0, 12.0, 0.0], [5.0, 20.0, 1.0]])
    expected = run_block("sma_cross", matrix, series, Costs())
    frozen = dataclasses.replace(series, close=np.repeat(series.close, 2)[::2], open=series.open.copy())
    frozen.open.flags.writeable = False
    wide = np.asfortranarray(matrix)
    wide.flags.writeable = False
    np.testing.assert_array_equal(run_block("sma_cross", wide, frozen, Costs()), expected)
    assert series.close.flags.writeable


def test_no_rows_give_no_metrics() -> None:
    assert run_block("sma_cross", np.empty((0, 3)), bars(), Costs()).shape == (0, len(METRICS))


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_few_bars_are_enough_to_run(name: str, length: int) -> None:
    result = run(spec(strategy=name, params={}), bars(length))
    assert result.metrics["total_return"] == 0
    assert result.metrics["trades"] == 0
    assert math.isnan(result.metrics["sharpe"])
    assert math.isnan(result.metrics["cagr"]) == (length == 1)
    assert not any(math.isinf(value) for value in result.metrics.values())


def test_moments_of_segments_are_those_of_the_equity_curve() -> None:
    series, cuts = bars(), np.array([0, 1, 120, 121, 400])
    costs = Costs(fill="same_close", fee_bps=10)
    result = run(spec(costs=costs.model_dump()), series)
    [moments] = evaluate("sma_cross", np.array([[3.0, 12.0, 0.0]]), series, costs, cuts=cuts).moments
    returns = result.equity[1:] / result.equity[:-1] - 1
    before = np.array([10_000.0, *result.equity[cuts[1:-1] - 1]])
    for segment, (first, end) in enumerate(itertools.pairwise(cuts)):
        part = returns[max(first, 1) - 1 : end - 1]
        expected = [len(part), *(np.sum(part**power) for power in (1, 2, 3, 4))]
        np.testing.assert_allclose(moments[segment, :5], expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose(moments[segment, 5], np.log(result.equity[end - 1] / before[segment]), atol=1e-12)
    assert moments[:, 0].sum() == 399
    np.testing.assert_allclose(moments[:, 5].sum(), np.log1p(result.metrics["total_return"]))


@pytest.mark.parametrize(
    "cuts",
    [[0], [0, 399], [1, 400], [0, 200, 200, 400], [0, 300, 200, 400], [[0, 400]], [0.0, 400.0], [0, 401], []],
)
def test_cuts_that_do_not_cover_the_bars_are_refused(cuts: list[Any]) -> None:
    with pytest.raises(SpecError, match="cuts"):
        evaluate("sma_cross", np.array([[3.0, 12.0, 0.0]]), bars(), Costs(), cuts=np.array(cuts))


def test_rows_may_name_the_rules_or_leave_them_out() -> None:
    own = np.array([[3.0, 12.0, 0.0]])
    full = np.array([[3.0, 12.0, 0.0, *Rules().vector()]])
    expected = evaluate("sma_cross", own, bars(), Costs())
    np.testing.assert_array_equal(evaluate("sma_cross", full, bars(), Costs()).metrics, expected.metrics)
    assert expected.moments.shape == (1, 0, 6)
    for column, bad in ((3, -0.1), (3, 1.1), (6, 2.5), (7, math.nan), (8, 10.5)):
        wrong = full.copy()
        wrong[0, column] = bad
        with pytest.raises(SpecError, match=rf"matrix\[0\].{RULE_NAMES[column - 3]}"):
            evaluate("sma_cross", wrong, bars(), Costs())


PRICES = ("open", "high", "low", "close")


@pytest.mark.parametrize("name", [*PRICES, "volume"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
@pytest.mark.parametrize("at", [0, 17, 399])
def test_bars_with_an_impossible_number_are_refused(name: str, value: float, at: int) -> None:
    series = bars()
    getattr(series, name)[at] = value
    for call in (
        lambda: run(spec(), series),
        lambda: run_block("sma_cross", np.array([[3.0, 12, 0]]), series, Costs()),
    ):
        with pytest.raises(BarsError, match=f"{name} of bar {at}: expected a finite number") as caught:
            call()
        assert (caught.value.field, caught.value.bar_index) == (name, at)


def test_a_price_is_above_zero_and_a_volume_may_be_zero() -> None:
    series = bars()
    series.volume[:] = 0.0
    run(spec(), series)
    series.low[3] = 0.0
    with pytest.raises(BarsError, match="low of bar 3"):
        run(spec(), series)


@pytest.mark.parametrize(("at", "earlier_by"), [(1, 0), (200, 1), (399, 10**18)])
def test_bars_out_of_order_are_refused(at: int, earlier_by: int) -> None:
    series = bars()
    series.ts_ns[at] = series.ts_ns[at - 1] - earlier_by
    with pytest.raises(BarsError, match=f"ts_ns of bar {at}: expected later than the bar before"):
        run(spec(), series)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"close": np.ones(399)}, "close"),
        ({"close": np.ones((400, 1))}, "close"),
        ({"open": np.ones(400, dtype=np.float32)}, "open"),
        ({"volume": np.ones(400, dtype=np.int64)}, "volume"),
        ({"ts_ns": np.arange(400.0)}, "ts_ns"),
        ({"product_id": "ETH-USD"}, "product_id"),
        ({"granularity": Granularity.ONE_DAY}, "granularity"),
    ],
)
def test_bars_of_another_shape_or_series_are_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BarsError) as caught:
        run(spec(), dataclasses.replace(bars(), **change))
    assert (caught.value.field, caught.value.bar_index) == (field, None)


def test_no_bars_are_refused() -> None:
    for call in (lambda: run(spec(), bars(0)), lambda: run_block("sma_cross", np.empty((0, 3)), bars(0), Costs())):
        with pytest.raises(BarsError, match="bars: expected at least one bar"):
            call()


def test_bars_outside_the_period_are_refused() -> None:
    with pytest.raises(BarsError, match="ts_ns of bar 0: expected at or after start"):
        run(spec(start="2024-01-01"), bars())
    with pytest.raises(BarsError, match="ts_ns of bar 399: expected at or before end"):
        run(spec(end="2023-11-20"), bars())
    run(spec(start="2023-11-01", end="2024-01-01"), bars())


@pytest.mark.parametrize(
    ("matrix", "field"),
    [
        (np.array([[3.0, 12.0, 0.0], [0.0, 12.0, 0.0]]), "matrix[1].fast"),
        (np.array([[3.0, 12.0, 0.5]]), "matrix[0].allow_short"),
        (np.array([[3.0, math.nan, 0.0]]), "matrix[0].slow"),
        (np.array([[3.0, math.inf, 0.0]]), "matrix[0].slow"),
        (np.array([[12.0, 12.0, 0.0]]), "matrix[0]"),
        (np.array([[3.0, 12.0]]), "matrix"),
        (np.array([3.0, 12.0, 0.0]), "matrix"),
        (np.array([[3, 12, 0]]), "matrix"),
        ([["3", "12", "0"]], "matrix"),
    ],
)
def test_a_block_of_bad_parameters_is_refused_by_row_and_name(matrix: Float64Array, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        run_block("sma_cross", matrix, bars(), Costs())
    assert caught.value.field == field


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(UnknownStrategy):
        run_block("macd", np.empty((1, 3)), bars(), Costs())


def test_targets_can_be_had_without_accounts() -> None:
    target = targets_of(STRATEGIES["sma_cross"], np.array([3.0, 12.0, 0.0]), bars())
    np.testing.assert_array_equal(target, run(spec(), bars()).target)
    with pytest.raises(SpecError):
        targets_of(STRATEGIES["sma_cross"], np.array([3.0, 1.0, 0.0]), bars())


def test_a_strategy_that_wants_more_than_everything_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(vector: Float64Array, open_: Float64Array, *_: Float64Array) -> Float64Array:
        return np.where(np.arange(open_.size) < 50, 0.0, 1.5)

    monkeypatch.setitem(
        STRATEGIES, "greedy", dataclasses.replace(STRATEGIES["sma_cross"], name="greedy", targets=greedy, switches=None)
    )
    with pytest.raises(AccountingError, match="greedy at bar 50: a target lies outside -1 … 1") as caught:
        run_block("greedy", np.array([[3.0, 12.0, 0.0]]), bars(), Costs())
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own bytes
    assert (copy.strategy, copy.bar_index) == ("greedy", 50)


def test_errors_survive_the_way_between_processes() -> None:
    error = BarsError("close", 3, math.inf, "a finite number above 0")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (str(copy), copy.bar_index) == (str(error), 3)
