"""Splits and what they choose: tables of who trains and tests where, and the figures against returns cut by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.base import SpecError
from strategies.segments import Segments, plan_segments
from strategies.validation import (
    choose,
    combinatorial_splits,
    efficiency,
    held_out_columns,
    paths,
    rank_correlation,
    stitched,
    walk_forward_splits,
)
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]
BARS = 1_001
SEGMENTS = Segments(plan_segments(BARS, folds=6))
TOO_SHORT = Segments(plan_segments(10))


def noise(sets: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(1e-4, 0.01, size=(sets, BARS - 1))


def part_of(returns: Floats, segments: NDArray[np.int64]) -> Floats:
    """The returns float64[m, …] of the bars in some segments."""
    cuts = SEGMENTS.cuts
    return np.concatenate([returns[:, max(cuts[s] - 1, 0) : cuts[s + 1] - 1] for s in segments], axis=1)


def sharpe(returns: Floats) -> Floats:
    return np.asarray(returns.mean(axis=1) / returns.std(axis=1, ddof=1))


@pytest.mark.parametrize(
    ("anchored", "train_folds", "expected"),
    [
        (False, None, [((0, 1), 2), ((1, 2), 3), ((2, 3), 4), ((3, 4), 5)]),
        (True, None, [((0, 1), 2), ((0, 1, 2), 3), ((0, 1, 2, 3), 4), ((0, 1, 2, 3, 4), 5)]),
        (False, 4, [((0, 1, 2, 3), 4), ((1, 2, 3, 4), 5)]),
        (True, 5, [((0, 1, 2, 3, 4), 5)]),
    ],
)
def test_walk_forward_tests_each_fold_on_what_came_before(
    anchored: bool, train_folds: int | None, expected: list[tuple[tuple[int, ...], int]]
) -> None:
    splits = walk_forward_splits(SEGMENTS, train_folds=train_folds, anchored=anchored)
    assert [(split.train_folds, split.test_folds[0]) for split in splits] == expected


@pytest.mark.parametrize(("test_folds", "splits"), [(1, 6), (2, 15), (3, 20), (5, 6)])
def test_combinatorial_splits_test_every_combination_once(test_folds: int, splits: int) -> None:
    found = combinatorial_splits(SEGMENTS, test_folds=test_folds)
    assert len({split.test_folds for split in found}) == len(found) == splits
    assert all(sorted(split.train_folds + split.test_folds) == list(range(6)) for split in found)


def test_no_segment_is_on_both_sides_and_a_gap_lies_between_them() -> None:
    for split in [*combinatorial_splits(SEGMENTS), *walk_forward_splits(SEGMENTS)]:
        apart = np.abs(split.train[:, np.newaxis] - split.test).min()
        assert apart == 2
    middle = next(split for split in combinatorial_splits(SEGMENTS) if split.test_folds == (2, 3))
    assert middle.train.tolist() == [0, 1, 2, 8, 9, 10]
    assert middle.test.tolist() == [4, 5, 6]


@pytest.mark.parametrize("folds", [0, 6, -1])
def test_splits_that_leave_a_side_empty_are_refused(folds: int) -> None:
    with pytest.raises(SpecError, match="train_folds"):
        walk_forward_splits(SEGMENTS, train_folds=folds)
    with pytest.raises(SpecError, match="test_folds"):
        combinatorial_splits(SEGMENTS, test_folds=folds)


def test_a_series_too_short_has_no_splits_and_no_held_out_figures() -> None:
    assert walk_forward_splits(TOO_SHORT) == combinatorial_splits(TOO_SHORT) == []
    returns = noise(3)[:, :9]
    columns = held_out_columns(moments_of(returns, TOO_SHORT.cuts), TOO_SHORT, 365.25)
    np.testing.assert_allclose(columns["is_sharpe"], sharpe(returns) * math.sqrt(365.25), rtol=1e-9)
    assert np.isnan(columns["oos_sharpe"]).all()
    assert np.isnan(columns["oos_return"]).all()


@pytest.mark.parametrize("kind", ["rolling", "anchored", "k_fold", "combinatorial"])
def test_each_split_chooses_the_best_and_judges_it_by_its_own_returns(kind: str) -> None:
    returns = noise(40)
    splits = {
        "rolling": walk_forward_splits(SEGMENTS),
        "anchored": walk_forward_splits(SEGMENTS, anchored=True),
        "k_fold": combinatorial_splits(SEGMENTS, test_folds=1),
        "combinatorial": combinatorial_splits(SEGMENTS),
    }[kind]
    choice = choose(moments_of(returns, SEGMENTS.cuts), splits)
    for i, split in enumerate(splits):
        inside = sharpe(part_of(returns, split.train))
        assert choice.rows[i] == np.argmax(inside)
        assert choice.is_sharpe[i] == pytest.approx(inside.max(), rel=1e-9)
        outside = part_of(returns[choice.rows[i : i + 1]], split.test)
        assert choice.outside.sharpe[i] == pytest.approx(sharpe(outside)[0], rel=1e-9)
        assert choice.outside.total_return[i] == pytest.approx(np.prod(1 + outside) - 1, rel=1e-9)


def test_rows_may_come_in_many_chunks_and_from_a_selection(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = moments_of(noise(50), SEGMENTS.cuts)
    splits = combinatorial_splits(SEGMENTS)
    whole = choose(moments, splits)
    monkeypatch.setattr("strategies.validation._ROWS", 7)
    np.testing.assert_array_equal(choose(moments, splits).rows, whole.rows)
    odd = np.arange(1, 50, 2)
    np.testing.assert_array_equal(choose(moments, splits, odd).rows, odd[choose(moments[odd], splits).rows])


def test_the_stitched_walk_is_the_tests_laid_end_to_end() -> None:
    returns = noise(40)
    splits = walk_forward_splits(SEGMENTS)
    choice = choose(moments_of(returns, SEGMENTS.cuts), splits)
    walked = np.concatenate(
        [part_of(returns[[row]], split.test) for row, split in zip(choice.rows, splits, strict=True)], 1
    )
    assert stitched(choice).sharpe[0] == pytest.approx(sharpe(walked)[0], rel=1e-9)
    assert stitched(choice).total_return[0] == pytest.approx(np.prod(1 + walked) - 1, rel=1e-9)
    assert efficiency(choice) == pytest.approx(sharpe(walked)[0] / choice.is_sharpe.mean(), rel=1e-9)


@pytest.mark.parametrize(("test_folds", "count"), [(1, 1), (2, 5), (3, 10)])
def test_every_path_tests_every_fold_once(test_folds: int, count: int) -> None:
    """Sets of constant sign in log growth tell which set was tested where: growth adds up over the path's folds."""
    returns = noise(10)
    moments = moments_of(returns, SEGMENTS.cuts)
    choice = choose(moments, combinatorial_splits(SEGMENTS, test_folds=test_folds))
    found = paths(moments, choice)
    assert len(found.growth) == count
    assert (found.returns == moments[0, ::2, 0].sum()).all()
    tested = [
        sum(
            moments[row, 2 * fold, 5]
            for row, split in zip(choice.rows, choice.splits, strict=True)
            for fold in split.test_folds
        )
    ]
    assert found.growth.sum() == pytest.approx(tested[0], rel=1e-9)


def test_idle_and_ruined_sets_are_not_chosen() -> None:
    returns = noise(4)
    returns[0] = 0.0
    returns[1] += 0.1
    returns[1, 30] = -1.0
    returns[1, 31:] = 0.0
    choice = choose(moments_of(returns, SEGMENTS.cuts), walk_forward_splits(SEGMENTS, anchored=True))
    assert set(choice.rows) <= {2, 3}
    idle = choose(moments_of(np.zeros((3, BARS - 1)), SEGMENTS.cuts), walk_forward_splits(SEGMENTS))
    assert idle.rows.tolist() == [-1] * 4
    assert np.isnan(idle.is_sharpe).all()
    assert math.isnan(efficiency(idle))
    assert math.isnan(stitched(idle).sharpe[0])


def test_ruin_in_the_test_is_a_total_loss_of_the_walk() -> None:
    returns = noise(2)
    returns[0] += 0.02
    returns[0, 600] = -1.0
    returns[0, 601:] = 0.0
    choice = choose(moments_of(returns, SEGMENTS.cuts), walk_forward_splits(SEGMENTS, anchored=True))
    assert stitched(choice).total_return[0] == -1.0


def test_held_out_columns_are_those_of_the_returns_on_each_side() -> None:
    returns = noise(6)
    columns = held_out_columns(moments_of(returns, SEGMENTS.cuts), SEGMENTS, 8_766.0)
    inside, outside = part_of(returns, SEGMENTS.in_sample), part_of(returns, SEGMENTS.held_out_segments)
    np.testing.assert_allclose(columns["is_sharpe"], sharpe(inside) * math.sqrt(8_766), rtol=1e-9)
    np.testing.assert_allclose(columns["oos_sharpe"], sharpe(outside) * math.sqrt(8_766), rtol=1e-9)
    np.testing.assert_allclose(columns["is_return"], np.prod(1 + inside, axis=1) - 1, rtol=1e-9)
    np.testing.assert_allclose(columns["oos_return"], np.prod(1 + outside, axis=1) - 1, rtol=1e-9)


def test_a_set_ruined_before_the_border_has_no_sharpe_after_it() -> None:
    returns = noise(1)
    returns[0, 30] = -1.0
    returns[0, 31:] = 0.0
    columns = held_out_columns(moments_of(returns, SEGMENTS.cuts), SEGMENTS, 365.25)
    assert math.isnan(columns["is_sharpe"][0])
    assert math.isnan(columns["oos_sharpe"][0])
    assert columns["is_return"][0] == -1.0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 45], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, math.nan, 3, 4], [1, 2, 0, 3, 4], 1.0),
        ([1, 1, 2, 3], [5, 6, 7, 8], 0.9486832980505138),
        ([1, 2], [1, 2], math.nan),
        ([1, 1, 1], [1, 2, 3], math.nan),
    ],
)
def test_rank_correlation_is_spearmans(one: list[float], other: list[float], expected: float) -> None:
    assert rank_correlation(np.array(one, float), np.array(other, float)) == pytest.approx(expected, nan_ok=True)
