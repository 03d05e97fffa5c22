"""Series made small: what a thinned curve, a candle, a histogram and a list of round trips must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.report_series import (
    benchmark_figures,
    candles_of,
    curve_figures,
    curve_points,
    day_ends,
    distribution,
    drawdown,
    ladder,
    per_year,
    returns_of,
    round_trips,
)
from strategies.backtest import run
from strategies.metrics import METRICS
from strategies.spec import parse_backtest
from tests.run_samples import wavy_bars

DAY_NS = 86_400 * 10**9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6_000), st.integers(4, 300))
def test_a_thinned_curve_keeps_its_deepest_fall(seed: int, length: int, points_max: int) -> None:
    equity = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 0.02, length)))
    at = curve_points(equity, points_max)
    assert len(at) <= points_max + 2
    assert at[0] == 0
    assert at[-1] == length - 1
    assert (np.diff(at) > 0).all()
    shown = equity[at]
    assert drawdown(shown).max() == drawdown(equity).max(), "seen from the thinned curve alone"
    assert shown.min() == equity.min()
    assert shown.max() == equity.max()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 500), st.integers(1, 60))
def test_a_candle_is_its_bars_together(seed: int, length: int, per: int) -> None:
    bars = wavy_bars(length, seed=seed)
    first = seed % length
    candles = candles_of(bars, first, per)
    starts = range(first, length, per)
    assert len(candles.open) == len(starts)
    for place, start in enumerate(starts):
        part = slice(start, min(start + per, length))
        assert candles.ts_ns[place] == bars.ts_ns[start]
        assert candles.open[place] == bars.open[start]
        assert candles.high[place] == max(bars.high[part])
        assert candles.low[place] == min(bars.low[part])
        assert candles.close[place] == bars.close[part][-1]
        assert candles.volume[place] == pytest.approx(sum(bars.volume[part]))


@pytest.mark.parametrize("length", [1, 2, 99, 100, 101, 12_345])
def test_a_ladder_begins_with_everything_and_ends_with_single_bars(length: int) -> None:
    levels = ladder(wavy_bars(length), 100)
    assert levels[0].first == 0
    assert all(len(level.open) <= 101 for level in levels)
    assert levels[-1].per == 1
    assert [level.per for level in levels] == sorted({level.per for level in levels}, reverse=True)
    assert levels[-1].first + len(levels[-1].open) == length
    assert len(levels[-1].open) >= min(length, 100)


def test_the_days_last_bars() -> None:
    hours = np.array([0, 5, 23, 24, 25, 72]) * 3_600 * 10**9
    assert day_ends(hours).tolist() == [2, 4, 5]
    assert day_ends(hours[:1]).tolist() == [0]


def test_a_normal_sample_has_a_normal_histogram() -> None:
    sample = np.random.default_rng(3).normal(0.001, 0.02, 50_000)
    found = distribution(sample)
    assert found is not None
    assert sum(found["counts"]) == found["count"] == 50_000
    assert sum(found["normal"]) == pytest.approx(50_000)
    assert found["skew"] == pytest.approx(0, abs=0.05)
    assert found["excess_kurtosis"] == pytest.approx(0, abs=0.1)
    assert found["value_at_risk_95"] == pytest.approx(1.645 * 0.02 - 0.001, rel=0.03)
    assert found["expected_shortfall_95"] == pytest.approx(2.063 * 0.02 - 0.001, rel=0.03)
    assert found["value_at_risk_99"] > found["value_at_risk_95"]


@pytest.mark.parametrize("sample", [[], [0.1] * 19, [0.0] * 500, [np.nan] * 50])
def test_what_has_no_distribution_says_so(sample: list[float]) -> None:
    assert distribution(np.array(sample)) is None


def test_a_curve_beside_itself_and_beside_twice_its_moves() -> None:
    other = np.random.default_rng(5).normal(0.0005, 0.01, 1_000)
    same = benchmark_figures(other, other, 365.0)
    assert same is not None
    assert same["beta"] == pytest.approx(1)
    assert same["alpha"] == pytest.approx(0, abs=1e-12)
    assert same["up_capture"] == pytest.approx(1)
    assert np.isnan(same["information_ratio"]), "nothing differs"
    double = benchmark_figures(2 * other + 0.0001, other, 365.0)
    assert double is not None
    assert double["beta"] == pytest.approx(2)
    assert double["alpha"] == pytest.approx(0.0365)
    assert double["correlation"] == pytest.approx(1)
    assert double["tracking_error"] == pytest.approx(other.std(ddof=1) * np.sqrt(365))
    assert benchmark_figures(other[:5], other[:5], 365.0) is None
    assert benchmark_figures(other, np.zeros(1_000), 365.0) is None


def test_a_curves_figures_are_the_engines() -> None:
    bars = wavy_bars(600)
    spec = parse_backtest({"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": "sma_cross"})
    result = run(spec, bars)
    found = curve_figures(bars.ts_ns, result.equity, spec.costs.initial_cash)
    assert set(found) < set(METRICS)
    assert found == pytest.approx({name: result.metrics[name] for name in found}, rel=1e-9)


@pytest.mark.parametrize("params", [{}, {"allow_short": 1}, {"stop_loss": 0.004}, {"take_profit": 0.01}])
def test_round_trips_are_as_many_as_the_engine_counts_and_come_to_its_gain(params: dict[str, float]) -> None:
    bars = wavy_bars(2_000)
    spec = parse_backtest(
        {
            "product_id": "BTC-USD",
            "granularity": "ONE_HOUR",
            "strategy": "sma_cross",
            "params": {"fast": 5, "slow": 21, **params},
            "costs": {"at_end": "liquidate"},
        }
    )
    result = run(spec, bars)
    columns = (result.fills[name].tolist() for name in ("bar_index", "side", "price", "quantity", "fee"))
    trips = round_trips(*columns)
    assert len(trips) == result.metrics["trades"]
    assert sum(trip.result for trip in trips) == pytest.approx(result.equity[-1] - spec.costs.initial_cash, rel=1e-6)
    assert np.mean([trip.result > 0 for trip in trips]) == pytest.approx(result.metrics["win_rate"])


def test_round_trips_by_hand() -> None:
    # Bought 1 at 100 and 1 at 110, sold 2 at 120; sold short 1 at 120 by the same order's rest; bought back at 130.
    trips = round_trips([1, 2, 5, 9], [1, 1, -1, 1], [100, 110, 120, 130], [1, 1, 3, 1], [1, 1, 3, 1])
    assert [(trip.entry_bar, trip.exit_bar, trip.side) for trip in trips] == [(1, 5, 1), (5, 9, -1)]
    assert trips[0].result == pytest.approx(240 - 210 - 2 - 2)
    assert trips[0].share == pytest.approx(26 / 210)
    assert trips[1].result == pytest.approx(120 - 130 - 1 - 1)


def test_after_ruin_round_trips_are_still_counted() -> None:
    """Quantities of 1e-200 have a product of 0: half of a million bars' round trips were lost so."""
    trips = round_trips([1, 2], [1, -1], [100.0, 90.0], [1e-200, 1e-200], [0.0, 0.0])
    assert len(trips) == 1
    assert trips[0].share == pytest.approx(-0.1)


def test_returns_after_ruin_are_nothing_and_a_year_has_as_many_as_its_times_say() -> None:
    assert returns_of(np.array([100.0, 50.0, 0.0, 0.0])).tolist() == [-0.5, -1.0, 0.0]
    assert per_year(np.arange(10, dtype=np.int64) * DAY_NS) == pytest.approx(365.25)
    assert np.isnan(per_year(np.zeros(1, dtype=np.int64)))
