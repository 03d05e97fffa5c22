"""Backtests of portfolios from a specification: what fits together, what is refused, decisions on longer bars."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from strategies import backtest
from strategies.base import SpecError
from strategies.compiled import plain, read_only
from strategies.cross_section import PanelStep
from strategies.model import Bars, Float64Array, Granularity
from strategies.panel import Panel, panel_of
from strategies.portfolio import WrongMarket, evaluate, run, weights_of
from strategies.registry import CROSS_SECTIONS, STRATEGIES, UnknownStrategy, find, get
from strategies.resample import resample
from strategies.spec import Costs, Sizing, parse_backtest, parse_spec
from tests.bar_samples import REAL_DATA, make_bars, pick

NAN = np.nan
HOUR = Granularity.ONE_HOUR
ROTATION: dict[str, Any] = {
    "product_ids": ["BTC-USD", "ETH-USD"],
    "granularity": "ONE_HOUR",
    "strategy": "momentum_rotation",
    "params": {"lookback": 2, "every": 3},
}
SWEEP: dict[str, Any] = {
    "product_ids": ["BTC-USD", "ETH-USD"],
    "granularity": "ONE_HOUR",
    "grids": [{"strategy": "momentum_rotation", "grid": {"lookback": [2, 5]}}],
}


def closes(*columns: list[float]) -> Panel:
    """A panel whose bars open at the close before; NaN is no bar."""
    names = ("BTC-USD", "ETH-USD", "SOL-USD")
    series = []
    for name, column in zip(names, columns, strict=False):
        close = np.array(column, dtype=np.float64)
        open_ = np.concatenate([close[:1], close[:-1]])
        open_ = np.where(np.isnan(open_), close, open_)
        ts_ns = np.arange(close.size, dtype=np.int64) * HOUR.ns
        high, low = np.fmax(open_, close), np.fmin(open_, close)
        there = ~np.isnan(close)
        series.append(pick(Bars(name, HOUR, ts_ns, open_, high, low, close, np.ones(close.size)), there))
    return panel_of(series)


def vector_of(name: str, **params: float) -> Float64Array:
    vector: Float64Array = CROSS_SECTIONS[name].params(**params).vector()
    return vector


def rotation(panel: Panel, **params: float) -> list[list[float]]:
    strategy = CROSS_SECTIONS["momentum_rotation"]
    vector = vector_of("momentum_rotation", **({"lookback": 2, "every": 2} | params))
    return [list(map(float, row)) for row in weights_of(strategy, vector, panel).T]


def test_rotation_holds_the_strongest_and_looks_again_every_so_many_bars() -> None:
    panel = closes([10, 10, 12, 12, 12, 9], [10, 11, 11, 11, 15, 15])
    nothing = [NAN, NAN]
    # At bar 2: +20 % against +10 %; at bar 4: 0 % against +36 %.
    np.testing.assert_array_equal(rotation(panel), [nothing, nothing, [1, 0], nothing, [0, 1], nothing])


@pytest.mark.parametrize(
    ("what", "params", "at_bar_2"),
    [
        ("the best two share equally", {"top": 2}, [0.5, 0.0, 0.5]),
        ("the weakest is sold short for the other half", {"top": 2, "bottom": 1}, [0.25, -0.5, 0.25]),
        ("an absolute filter buys risers only, and a place left free is cash", {"top": 3, "absolute_filter": 1}, None),
    ],
)
def test_rotation_weights(what: str, params: dict[str, float], at_bar_2: list[float] | None) -> None:
    panel = closes([10, 10, 12, 12], [10, 9, 9, 9], [10, 10, 11, 11])
    expected = [1 / 3, 0.0, 1 / 3] if at_bar_2 is None else at_bar_2
    assert rotation(panel, **params)[2] == pytest.approx(expected)


def test_inverse_volatility_gives_the_wilder_one_less() -> None:
    # Returns +10 %, +10 %, +10 % - 1 have deviations 0.02 and 0.04 over two returns.
    first, second = [100, 100 * 1.08, 100 * 1.08 * 1.12], [100, 100 * 1.06, 100 * 1.06 * 1.14]
    weights = rotation(closes(first, second), top=2, inverse_volatility=1, volatility_window=2)
    assert weights[2] == pytest.approx([2 / 3, 1 / 3])


def test_rotation_ranks_only_products_with_a_bar_now_and_then() -> None:
    # BTC has no bar at 2; SOL is listed too late to have risen since bar 0.
    panel = closes([10, 20, NAN, 40], [10, 10, 10, 10], [NAN, 10, 20, 30])
    assert rotation(panel)[2] == [0, 1, 0]


def test_pairs_sell_the_wide_side_and_close_when_it_has_come_back() -> None:
    strategy = CROSS_SECTIONS["pairs"]
    other = [100.0, 101, 102, 101, 100, 101, 102, 101, 100, 101, 102, 101]
    close = [x * 2 for x in other]
    close[7] *= 1.02  # the first product is dear once, then as before
    close[3] *= 1.001  # some deviation from the start
    vector = vector_of("pairs", window=6, entry=1.5, exit=0.5, stop=50.0)
    weights = weights_of(strategy, vector, closes(close, other)).T
    assert weights[7].tolist() == [-0.5, 0.5]
    asked = np.flatnonzero(~np.isnan(weights[:, 0]))
    assert asked[0] == 7
    np.testing.assert_array_equal(np.abs(weights[asked[1]]), [0, 0])


def test_pairs_give_a_bet_up_at_the_stop_and_wait_until_the_spread_is_small_again() -> None:
    strategy = CROSS_SECTIONS["pairs"]
    random = np.random.default_rng(3)
    other = 100 * np.exp(np.cumsum(0.01 * random.standard_normal(60)))
    spread = 0.001 * random.standard_normal(60)
    spread[40:46] = [0.0035, 0.2, 0.2, 0.2, 0.2, 0.2]
    panel = closes((other * np.exp(spread)).tolist(), other.tolist())
    on_bars, state = plain(strategy.on_bars), None
    vector = vector_of("pairs", window=30, entry=2.0, exit=0.5, stop=4.0)
    state = plain(strategy.start)(vector, 2)
    for i in range(42):
        columns = (read_only(a[:, i]) for a in (panel.open, panel.high, panel.low, panel.close, panel.volume))
        state, _ = on_bars(vector, state, PanelStep(*columns))
        if i == 40:
            assert state.side == -1.0
    assert (state.side, state.barred) == (0.0, 1)


@pytest.mark.parametrize(
    ("what", "changes", "field"),
    [
        ("a product twice", {"product_ids": ["BTC-USD", "BTC-USD"]}, "product_ids[1]"),
        ("two quote currencies", {"product_ids": ["BTC-USD", "ETH-EUR"]}, "product_ids[1]"),
        ("no product id", {"product_ids": ["BTC-USD", "eth"]}, "product_ids[1]"),
        ("another first product", {"product_id": "ETH-USD"}, "product_id"),
        ("a strategy of one product", {"strategy": "sma_cross", "params": {}}, "strategy"),
        ("more places than products", {"params": {"top": 3}}, "top"),
        (
            "too many products",
            {"strategy": "pairs", "params": {}, "product_ids": ["A-USD", "B-USD", "C-USD"]},
            "product_ids",
        ),
        ("entry above stop", {"strategy": "pairs", "params": {"entry": 5}}, "params.entry"),
        ("a cost out of range", {"costs": {"impact": 0.6}}, "costs.impact"),
        ("a stop out of range", {"params": {"stop_loss": 1.5}}, "params.stop_loss"),
        (
            "quantities of a product that is not among them",
            {"sizing": {"quantities": {"SOL-USD": {"min_quantity": 1}}}},
            "sizing.quantities.SOL-USD",
        ),
        ("decisions on shorter bars", {"decide_on": "ONE_MINUTE"}, "decide_on"),
        ("decisions on no multiple", {"granularity": "FOUR_HOUR", "decide_on": "SIX_HOUR"}, "decide_on"),
    ],
)
def test_a_backtest_of_several_products_refuses(what: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_backtest(ROTATION | changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("what", "changes", "field"),
    [
        ("a strategy over several without them", {"product_ids": [], "product_id": "BTC-USD"}, "grids[0].strategy"),
        (
            "more places than products",
            {"grids": [{"strategy": "momentum_rotation", "grid": {"top": {"start": 1, "stop": 3, "step": 1}}}]},
            "grids[0].top",
        ),
        (
            "quantities of a product that is not among them",
            {"sizing": {"quantities": {"SOL-USD": {"min_quantity": 1}}}},
            "sizing.quantities.SOL-USD",
        ),
    ],
)
def test_a_sweep_of_several_products_refuses(what: str, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(SWEEP | changes)
    assert caught.value.field == field


def test_the_first_product_names_the_specification_and_json_brings_it_back() -> None:
    spec = parse_spec(SWEEP)
    assert (spec.product_id, spec.product_ids) == ("BTC-USD", ("BTC-USD", "ETH-USD"))
    assert parse_spec(json.loads(spec.model_dump_json())) == spec


def test_a_market_of_the_wrong_kind_is_refused() -> None:
    panel = closes([10, 11, 12], [10, 11, 12])
    rows = CROSS_SECTIONS["momentum_rotation"].params().vector()[np.newaxis]
    with pytest.raises(WrongMarket, match="several products"):
        evaluate("momentum_rotation", rows, make_bars(5), Costs())
    with pytest.raises(WrongMarket, match="one product"):
        evaluate("sma_cross", STRATEGIES["sma_cross"].params().vector()[np.newaxis], panel, Costs())
    with pytest.raises(UnknownStrategy, match="pairs"):
        find("nothing")
    with pytest.raises(UnknownStrategy):
        get("pairs")


def test_quantities_by_product_are_refused_for_one_product_and_for_products_that_are_not_there() -> None:
    sizing = {"quantities": {"BTC-USD": {"quantity_increment": 0.1}}}
    one = {"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": "sma_cross", "sizing": sizing}
    with pytest.raises(SpecError, match=r"sizing\.quantities\.BTC-USD"):
        parse_backtest(one)
    given_sizing = Sizing.model_validate(sizing)
    vector = STRATEGIES["sma_cross"].params().vector()[np.newaxis]
    with pytest.raises(SpecError, match=r"sizing\.quantities\.BTC-USD"):
        evaluate("sma_cross", vector, make_bars(5), Costs(), given_sizing)
    row = parse_backtest(ROTATION).vector()[np.newaxis]
    elsewhere = Sizing.model_validate({"quantities": {"SOL-USD": {}}})
    with pytest.raises(SpecError, match=r"sizing\.quantities\.SOL-USD"):
        evaluate("momentum_rotation", row, closes([10, 11, 12], [10, 11, 12]), Costs(), elsewhere)


def test_a_panel_of_other_products_is_refused() -> None:
    with pytest.raises(SpecError, match="product_ids"):
        run(parse_backtest(ROTATION), closes([10, 11], [10, 11], [10, 11]))


def wavy(product_id: str, count: int, phase: float) -> Bars:
    steps = np.arange(count)
    close = 100 * np.exp(0.1 * np.sin(steps / 15 + phase) + 0.02 * np.sin(steps / 4))
    open_ = np.concatenate([close[:1], close[:-1]])
    ts_ns = steps.astype(np.int64) * HOUR.ns
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return Bars(product_id, HOUR, ts_ns, open_, high, low, close, np.ones(count))


def test_decisions_on_longer_bars_are_those_of_the_longer_bars_carried_out_on_the_next_short_one() -> None:
    panel = panel_of([wavy("BTC-USD", 400, 0.0), wavy("ETH-USD", 400, 2.0)])
    strategy = CROSS_SECTIONS["momentum_rotation"]
    vector = vector_of("momentum_rotation", lookback=3, every=2)
    fine = weights_of(strategy, vector, panel, Granularity.FOUR_HOUR)
    coarse = panel_of([resample(panel.bars(name), Granularity.FOUR_HOUR) for name in panel.product_ids])
    # The fourth hour of a bucket ends with it.
    np.testing.assert_array_equal(fine[:, 3::4], weights_of(strategy, vector, coarse))
    assert np.isnan(np.delete(fine, np.s_[3::4], axis=1)).all()
    spec = parse_backtest(ROTATION | {"decide_on": "FOUR_HOUR", "params": {"lookback": 3, "every": 2}})
    result = run(spec, panel)
    assert len(result.fills) > 10
    assert set(result.fills["bar_index"] % 4) == {0}
    block = evaluate("momentum_rotation", spec.vector()[np.newaxis], panel, Costs(), decide_on=spec.decide_on)
    np.testing.assert_array_equal(block.metrics[0], list(result.metrics.values()))
    for cut in (1, 7, 8, 100, 101, 399):
        np.testing.assert_array_equal(run(spec, panel.between(0, cut)).equity, result.equity[:cut])


EVERYTHING: dict[str, Any] = {
    "costs": {
        "spread_bps": 3,
        "impact": 0.05,
        "max_volume_share": 0.2,
        "fee_tiers": [[50_000, 20]],
        "funding_bps_per_day": 2,
        "borrow_bps_per_day": 1,
        "locked_bars": "waits",
        "at_end": "liquidate",
    },
    "sizing": {"kind": "volatility", "window": 20, "quantities": {"ETH-USD": {"quantity_increment": 0.01}}},
}
RULES = {"stop_loss": 0.03, "take_profit": 0.2, "trailing_stop": 0.05, "time_stop_bars": 30, "size": 0.5, "leverage": 2}


def test_rules_act_on_the_short_bars_where_decisions_are_taken_on_longer_ones_and_histories_differ() -> None:
    late = wavy("ETH-USD", 400, 2.0)
    panel = panel_of([wavy("BTC-USD", 400, 0.0), late.between(101, 330)])
    params = {"lookback": 3, "every": 2, "bottom": 1}
    plain_spec = ROTATION | {"decide_on": "FOUR_HOUR", "params": params}
    stopped = parse_backtest(plain_spec | {"params": params | {"stop_loss": 0.012}})
    result = run(stopped, panel)
    # Orders are carried out at the first hour of a bucket, stops in any.
    assert set(run(parse_backtest(plain_spec), panel).fills["bar_index"] % 4) == {0}
    assert set(result.fills["bar_index"] % 4) == {0, 1, 2, 3}
    ether = result.fills[result.fills["product"] == 1]
    assert len(ether) > 5
    assert ether["bar_index"].min() > 101
    assert ether["bar_index"].max() < 330
    for cut in (1, 103, 104, 200, 333, 399):
        np.testing.assert_array_equal(run(stopped, panel.between(0, cut)).equity, result.equity[:cut])


@pytest.mark.parametrize("decide_on", [None, "FOUR_HOUR"])
def test_a_block_has_the_metrics_of_the_run_with_every_cost_size_and_rule(decide_on: str | None) -> None:
    panel = panel_of([wavy("BTC-USD", 400, 0.0), wavy("ETH-USD", 400, 2.0).between(50, 380)])
    params = {"lookback": 5, "every": 3, "bottom": 1}
    plain_run = run(parse_backtest(ROTATION | {"params": params, "decide_on": decide_on}), panel)
    spec = parse_backtest(ROTATION | EVERYTHING | {"params": params | RULES, "decide_on": decide_on})
    result = run(spec, panel)
    rows = np.vstack([spec.vector(), spec.vector()])
    cuts = np.array([0, 100, 400])
    block = evaluate("momentum_rotation", rows, panel, spec.costs, spec.sizing, cuts, spec.decide_on)
    np.testing.assert_array_equal(block.metrics, [list(result.metrics.values())] * 2)
    growth = block.moments[0, :, 5].sum()
    assert growth == pytest.approx(np.log(result.equity[-1] / spec.costs.initial_cash), abs=1e-12)
    assert len(result.fills) > len(plain_run.fills) > 10


def test_one_product_decides_on_longer_bars_too() -> None:
    bars = wavy("BTC-USD", 400, 0.0)
    spec = parse_backtest(
        {
            "product_id": "BTC-USD",
            "granularity": "ONE_HOUR",
            "decide_on": "FOUR_HOUR",
            "strategy": "sma_cross",
            "params": {"fast": 2, "slow": 5},
        }
    )
    result = backtest.run(spec, bars)
    coarse = resample(bars, Granularity.FOUR_HOUR)
    target: Float64Array = backtest.targets_of(STRATEGIES["sma_cross"], spec.parameters().vector(), coarse)
    np.testing.assert_array_equal(result.target[3::4], target)
    assert len(result.fills) > 5
    assert set(result.fills["bar_index"] % 4) == {0}
    block = backtest.evaluate("sma_cross", spec.vector()[np.newaxis], bars, Costs(), decide_on=spec.decide_on)
    np.testing.assert_array_equal(block.metrics[0], list(result.metrics.values()))


@pytest.mark.skipif(not (REAL_DATA / "ta4j_coinbase").is_dir(), reason="../shared/data/ta4j_coinbase is absent")
def test_a_rotation_of_real_bitcoin_and_ether() -> None:
    from cluster.bar_files import read_file

    folder = REAL_DATA / "ta4j_coinbase"
    btc = read_file(next(folder.glob("*BTC*.json")), "BTC-USD", Granularity.FOUR_HOUR)
    eth = read_file(next(folder.glob("*ETH*.json")), "ETH-USD", Granularity.ONE_DAY)
    daily = resample(btc, Granularity.ONE_DAY)
    panel = panel_of([daily, eth])
    assert len(panel) > 3_400
    same = np.isin(daily.ts_ns, eth.ts_ns).mean()
    assert same > 0.99
    spec = parse_backtest(ROTATION | {"granularity": "ONE_DAY", "params": {"lookback": 90, "every": 7}})
    result = run(spec, panel)
    assert set(result.fills["product"]) == {0, 1}
    held = np.count_nonzero(result.units, axis=0)
    assert held.max() <= 1
    assert result.metrics["total_return"] > 0
    assert result.metrics["exposure"] > 0.9
