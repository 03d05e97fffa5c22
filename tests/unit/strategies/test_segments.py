"""Segments: how a series is cut, what each piece is for, and that pooled moments are the returns' own statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from strategies.base import SpecError
from strategies.metrics import MOMENTS
from strategies.segments import (
    GROWTH,
    Segments,
    add_up,
    complete_rows,
    plan_segments,
    pool,
    sharpe_of,
)
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]


@pytest.mark.parametrize(
    ("n_bars", "options", "folds", "gap"),
    [
        (100_000, {}, 16, 1_000),
        (1_000_000, {"purge_bars": 200}, 16, 200),
        (100_000, {"purge_bars": 200, "embargo_bars": 500}, 16, 500),
        (100_000, {"purge_bars": 0}, 16, 1),
        (380, {}, 16, 4),
        (379, {}, 14, 4),
        (300, {}, 12, 3),
        (100, {}, 4, 1),
        (100, {"folds": 4}, 4, 1),
        (2_000, {"purge_bars": 200}, 4, 200),
        (5_000, {"folds": 8, "purge_bars": 300}, 8, 300),
    ],
)
def test_folds_are_equal_and_gaps_are_as_long_as_asked(
    n_bars: int, options: dict[str, int], folds: int, gap: int
) -> None:
    cuts = plan_segments(n_bars, **options)
    lengths = np.diff(cuts)
    assert (cuts[0], cuts[-1], cuts.dtype.name) == (0, n_bars, "int64")
    assert len(lengths) == 2 * folds - 1
    assert np.ptp(lengths[::2]) <= 1
    assert (lengths[1::2] == gap).all()
    assert lengths[::2].min() >= max(20, gap)


@pytest.mark.parametrize(("n_bars", "options"), [(1, {}), (2, {}), (82, {}), (600, {"purge_bars": 100})])
def test_a_series_too_short_is_one_segment_and_says_so(n_bars: int, options: dict[str, int]) -> None:
    segments = Segments(plan_segments(n_bars, **options))
    assert segments.cuts.tolist() == [0, n_bars]
    assert segments.too_short
    assert segments.in_sample.tolist() == [0]
    assert segments.held_out_segments.tolist() == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n_bars": 0}, "n_bars"),
        ({"n_bars": 1.5}, "n_bars"),
        ({"n_bars": True}, "n_bars"),
        ({"n_bars": 1_000, "folds": 7}, "folds"),
        ({"n_bars": 1_000, "folds": 2}, "folds"),
        ({"n_bars": 1_000, "purge_bars": -1}, "purge_bars"),
        ({"n_bars": 1_000, "embargo_bars": -1}, "embargo_bars"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_field(options: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        plan_segments(**options)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("cuts", "field"), [([0, 5, 9], "cuts"), ([1, 9], "cuts"), ([0, 5, 5, 9], "cuts"), ([0], "cuts")]
)
def test_cuts_of_no_plan_are_refused(cuts: list[int], field: str) -> None:
    with pytest.raises(SpecError) as refused:
        Segments(np.array(cuts, dtype=np.int64))
    assert refused.value.field == field
    with pytest.raises(SpecError, match="held_out"):
        Segments(np.array([0, 9], dtype=np.int64), held_out=1.0)


def test_the_last_folds_are_held_out_and_the_gap_at_the_border_belongs_to_neither_side() -> None:
    segments = Segments(plan_segments(10_000))
    assert segments.first_held_out == 11
    assert segments.in_sample.tolist() == list(range(21))
    assert segments.held_out_segments.tolist() == list(range(22, 31))


def test_a_gap_counts_only_where_both_its_folds_do() -> None:
    segments = Segments(plan_segments(10_000))
    assert segments.covering([0, 1, 3, 15]).tolist() == [0, 1, 2, 6, 30]
    assert segments.covering([]).tolist() == []


@pytest.mark.parametrize("scale", [1e-5, 1e-2, 0.3])
@pytest.mark.parametrize("chosen", [[0], [0, 1, 2], [4, 10, 11, 12], list(range(31))])
def test_pooled_statistics_are_those_of_the_returns_themselves(scale: float, chosen: list[int]) -> None:
    returns = np.random.default_rng(3).standard_t(4, size=(5, 2_000)) * scale + 0.01 * scale
    returns = np.clip(returns, -0.5, None)
    cuts = plan_segments(2_001)
    pooled = pool(moments_of(returns, cuts), np.array(chosen))
    for row, series in enumerate(returns):
        part = np.concatenate([series[max(cuts[s] - 1, 0) : cuts[s + 1] - 1] for s in chosen])
        assert pooled.returns[row] == part.size
        np.testing.assert_allclose(pooled.mean[row], part.mean(), rtol=1e-10, atol=1e-16)
        np.testing.assert_allclose(pooled.deviation[row], part.std(ddof=1), rtol=1e-12)
        np.testing.assert_allclose(pooled.skew[row], stats.skew(part), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(pooled.kurtosis[row], stats.kurtosis(part, fisher=False), rtol=1e-11)
        np.testing.assert_allclose(pooled.sharpe[row], part.mean() / part.std(ddof=1), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(pooled.total_return[row], np.prod(1 + part) - 1, rtol=1e-9, atol=1e-14)


def test_the_sharpe_of_sums_is_the_pooled_one() -> None:
    moments = moments_of(np.random.default_rng(1).normal(1e-4, 1e-2, size=(7, 500)), plan_segments(501))
    total = add_up(moments, np.arange(moments.shape[1]))
    fast = sharpe_of(total[:, 0], total[:, 1], total[:, 2])
    np.testing.assert_allclose(fast, pool(moments, np.arange(moments.shape[1])).sharpe, rtol=1e-14)


@pytest.mark.parametrize("constant", [0.0, 1e-3, -1e-3, 1e-9, 0.1])
def test_constant_returns_have_no_deviation_and_so_no_sharpe(constant: float) -> None:
    """The variance of constants pooled from squares is rounding error; a Sharpe made of it would be of any size."""
    moments = moments_of(np.full((1, 5_000), constant), plan_segments(5_001))
    pooled = pool(moments, np.arange(moments.shape[1]))
    assert np.isnan([pooled.deviation[0], pooled.skew[0], pooled.kurtosis[0], pooled.sharpe[0]]).all()
    total = add_up(moments, np.arange(moments.shape[1]))
    assert np.isnan(sharpe_of(total[:, 0], total[:, 1], total[:, 2])).all()


def test_ruin_is_a_loss_of_everything_wherever_it_is_pooled_with() -> None:
    returns = np.random.default_rng(1).normal(0, 1e-2, size=(1, 500))
    returns[0, 200] = -1.0
    returns[0, 201:] = 0.0
    moments = moments_of(returns, plan_segments(501))
    assert pool(moments, np.arange(31)).total_return[0] == -1.0
    assert pool(moments, np.arange(5)).total_return[0] > -1.0
    assert np.isnan(pool(moments, np.arange(28, 31)).sharpe[0])
    assert complete_rows(moments).tolist() == [0]


def test_an_empty_union_is_undefined_and_grows_by_nothing() -> None:
    pooled = pool(np.ones((2, 3, len(MOMENTS))), np.array([], dtype=np.int64))
    assert np.isnan(pooled.mean).all()
    assert np.isnan(pooled.sharpe).all()
    assert pooled.total_return.tolist() == [0.0, 0.0]


def test_a_set_that_was_stopped_early_is_incomplete() -> None:
    moments = np.ones((4, 7, len(MOMENTS)))
    moments[1, 5:] = np.nan
    moments[2, 6, GROWTH] = -np.inf
    moments[3, 0, 2] = np.inf
    assert complete_rows(moments).tolist() == [0, 2]
