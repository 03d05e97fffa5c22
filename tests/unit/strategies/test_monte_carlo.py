"""Resampled returns and reordered trades: seeds, edges, and intervals that hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.base import SpecError
from strategies.monte_carlo import Resampled, bar_returns, bootstrap, reorder_trades, trade_results

Floats = NDArray[np.float64]
DAYS = 365.25


def draws_of(found: Resampled) -> list[Floats]:
    return [found.sharpe, found.cagr, found.max_drawdown]


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    returns = np.random.default_rng(1).normal(0, 0.01, size=500)
    one, again, other = (bootstrap(returns, DAYS, seed=seed, draws=50) for seed in (3, 3, 4))
    for a, b, c in zip(draws_of(one), draws_of(again), draws_of(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_the_draws_of_a_seed_are_fixed_for_good() -> None:
    """Written down once: another processor or library that drew otherwise would make reports that do not repeat."""
    returns = np.arange(-10, 11) / 1_000
    found = bootstrap(returns, DAYS, seed=42, draws=3, block=4.0)
    np.testing.assert_allclose(found.max_drawdown, FIXED_DRAWDOWNS, rtol=1e-12)
    shuffled = reorder_trades(returns, seed=42, draws=3).shuffled_max_drawdown
    np.testing.assert_allclose(shuffled, FIXED_SHUFFLES, rtol=1e-12)


FIXED_DRAWDOWNS = [0.021821637160000185, 0.028700975408848195, 0.0]
FIXED_SHUFFLES = [0.029723049434345006, 0.042312087378934105, 0.025777629999999996]


def test_observed_figures_are_the_series_own() -> None:
    returns = np.random.default_rng(1).normal(1e-3, 0.01, size=731)
    found = bootstrap(returns, DAYS, seed=0, draws=2)
    curve = np.concatenate([[1.0], np.cumprod(1 + returns)])
    assert found.observed_sharpe == pytest.approx(returns.mean() / returns.std(ddof=1) * math.sqrt(DAYS))
    assert found.observed_cagr == pytest.approx(curve[-1] ** (DAYS / 731) - 1)
    assert found.observed_max_drawdown == pytest.approx((1 - curve / np.maximum.accumulate(curve)).max())


def test_one_block_of_the_whole_circle_is_the_series_turned() -> None:
    returns = np.random.default_rng(1).normal(1e-3, 0.01, size=100)
    found = bootstrap(returns, DAYS, seed=0, draws=40, block=1e12)
    np.testing.assert_allclose(found.sharpe, found.observed_sharpe, rtol=1e-9)
    np.testing.assert_allclose(found.cagr, found.observed_cagr, rtol=1e-9)


def test_blocks_keep_what_single_draws_lose() -> None:
    """Returns that repeat themselves have a mean less certain than their deviation says; only long blocks show it."""
    shocks = np.random.default_rng(1).normal(0, 0.01, size=4_000)
    returns = np.convolve(shocks, np.ones(20) / 20, mode="valid")
    single, long = (bootstrap(returns, DAYS, seed=0, draws=300, block=block) for block in (1.0, 80.0))
    assert long.sharpe.std() > 2.5 * single.sharpe.std()


def test_the_interval_of_independent_returns_is_the_textbooks() -> None:
    """Lo, "The Statistics of Sharpe Ratios", 2002: the deviation of a Sharpe estimate is sqrt((1 + SR^2 / 2) / n)."""
    returns = np.random.default_rng(1).normal(5e-4, 0.01, size=2_000)
    found = bootstrap(returns, 1.0, seed=0, draws=2_000, block=1.0)
    expected = math.sqrt((1 + found.observed_sharpe**2 / 2) / 2_000)
    assert found.sharpe.std() == pytest.approx(expected, rel=0.06)
    assert found.sharpe.mean() == pytest.approx(found.observed_sharpe, abs=4 * expected / math.sqrt(2_000))


def test_a_long_series_is_compounded_into_periods_and_keeps_its_growth() -> None:
    returns = np.random.default_rng(1).normal(1e-5, 1e-3, size=50_000)
    found = bootstrap(returns, 525_960.0, seed=0, draws=5)
    assert found.period == 7
    growth = np.prod(1 + returns) ** (525_960 / 50_000) - 1
    assert found.observed_cagr == pytest.approx(growth, rel=1e-3)
    assert found.observed_sharpe == pytest.approx(returns.mean() / returns.std() * math.sqrt(525_960), rel=0.05)


def test_ruin_stays_ruin() -> None:
    returns = np.array([0.1, -1.0, 0.0, 0.0, 0.0])
    found = bootstrap(returns, DAYS, seed=0, draws=50)
    assert found.observed_cagr == -1.0
    assert found.observed_max_drawdown == 1.0
    assert set(np.round(found.max_drawdown[found.cagr == -1.0], 12)) == {1.0}


@pytest.mark.parametrize("returns", [[], [0.01]])
def test_too_few_returns_have_no_interval(returns: list[float]) -> None:
    found = bootstrap(np.array(returns), DAYS, seed=0, draws=4)
    assert np.isnan([*found.sharpe, *found.cagr, found.observed_sharpe]).all()


def test_idle_returns_have_no_sharpe_and_no_drawdown() -> None:
    found = bootstrap(np.zeros(50), DAYS, seed=0, draws=4)
    assert np.isnan(found.sharpe).all()
    assert found.cagr.tolist() == [0.0] * 4
    assert found.max_drawdown.tolist() == [0.0] * 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.1])
def test_returns_that_cannot_be_are_refused(value: float) -> None:
    with pytest.raises(SpecError, match="returns"):
        bootstrap(np.array([0.1, value]), DAYS, seed=0)
    with pytest.raises(SpecError, match="results"):
        reorder_trades(np.array([0.1, value]), seed=0)


def test_options_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="draws"):
        bootstrap(np.zeros(5), DAYS, seed=0, draws=0)
    with pytest.raises(SpecError, match="block"):
        bootstrap(np.zeros(5), DAYS, seed=0, block=0.5)
    with pytest.raises(SpecError, match="draws"):
        reorder_trades(np.zeros(5), seed=0, draws=0)


def test_orders_of_two_trades_give_the_two_drawdowns_there_are() -> None:
    found = reorder_trades(np.array([0.5, -0.5]), seed=0, draws=200)
    assert set(np.round(found.shuffled_max_drawdown, 12)) == {0.5}
    found = reorder_trades(np.array([0.25, -0.2, -0.5]), seed=0, draws=500)
    assert set(np.round(found.shuffled_max_drawdown, 12)) == {0.6, 0.5}
    assert set(np.round(found.drawn_return, 9)) >= {0.953125, -0.875, -0.5}
    assert found.observed_return == pytest.approx(-0.5)
    assert found.observed_max_drawdown == pytest.approx(0.6)


def test_trades_without_loss_have_no_drawdown_in_any_order_and_no_trades_have_none() -> None:
    assert reorder_trades(np.array([0.1, 0.2]), seed=0, draws=9).drawn_max_drawdown.tolist() == [0.0] * 9
    nothing = reorder_trades(np.empty(0), seed=0)
    assert nothing.trades == nothing.shuffled_max_drawdown.size == 0


def test_many_trades_are_drawn_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.monte_carlo.TRADE_DRAWS_MAX", 30_000)
    results = np.random.default_rng(1).normal(0, 0.01, size=100)
    assert reorder_trades(results, seed=0, draws=1_000).drawn_return.size == 300
    assert reorder_trades(np.repeat(results, 10), seed=0, draws=1_000).drawn_return.size == 100


def test_batches_do_not_bound_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.monte_carlo._BATCH", 700)
    results = np.random.default_rng(1).normal(0, 0.01, size=100)
    assert bootstrap(results, DAYS, seed=1, draws=23).sharpe.size == 23
    assert reorder_trades(results, seed=1, draws=23).drawn_return.size == 23


def test_gains_beyond_the_doubles_are_cut_and_not_infinite() -> None:
    found = reorder_trades(np.full(5_000, 1.0), seed=0, draws=3)
    assert np.isfinite(found.drawn_return).all()
    assert found.drawn_max_drawdown.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("story", "units", "equity", "results"),
    [
        ("never in the market", [0, 0, 0], [100, 100, 100], []),
        ("one trade", [0, 1, 1, 0, 0], [100, 110, 120, 121, 121], [0.21]),
        ("open at the end", [0, 1, 1], [100, 110, 90], [-0.1]),
        ("two trades", [1, 0, 0, 1, 0], [90, 80, 80, 100, 160], [-0.2, 1.0]),
        ("sized up and down, one trade", [1, 2, 1, 0], [110, 120, 130, 150], [0.5]),
        ("reversed", [1, -1, -1, 0], [110, 120, 130, 132], [0.1, 0.2]),
        ("in and out within a bar", [0, 0, 0], [100, 90, 90], [-0.1]),
        ("closed, and the next opened a bar later", [1, 0, 1, 0], [110, 110, 121, 121], [0.1, 0.1]),
        ("ruined", [1, 0, 0], [50, 0, 0], [-1.0]),
    ],
)
def test_round_trips_from_the_curve(story: str, units: list[int], equity: list[int], results: list[float]) -> None:
    found = trade_results(np.array(equity, float), np.array(units, float), 100.0)
    assert found.tolist() == pytest.approx(results), story
    assert np.prod(1 + found) == pytest.approx(equity[-1] / 100)


def test_bar_returns_are_zero_after_ruin() -> None:
    assert bar_returns(np.array([100.0, 50.0, 0.0, 0.0])).tolist() == [-0.5, -1.0, 0.0]
