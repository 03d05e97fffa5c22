"""A set beside its neighbours: one step on one axis of a grid, or the nearest sets where there is no grid."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.base import SpecError
from strategies.stability import neighbourhood

Floats = NDArray[np.float64]


def grid(*axes: list[float]) -> Floats:
    return np.stack([axis.ravel() for axis in np.meshgrid(*[np.array(a, float) for a in axes], indexing="ij")], axis=1)


def slow(matrix: Floats, values: Floats, row: int, choice: list[int]) -> list[float]:
    """The neighbours' values by comparing with every other set."""
    levels = [sorted(set(column)) for column in matrix.T.tolist()]
    place = [[levels[c].index(v) for c, v in enumerate(line)] for line in matrix.tolist()]
    found = []
    for other, line in enumerate(place):
        steps = [abs(a - b) for a, b in zip(line, place[row], strict=True)]
        if sum(steps) == 1 and not any(steps[c] for c in choice):
            found.append(float(values[other]))
    return found


@pytest.mark.parametrize("choice", [[], [2]])
def test_a_grids_neighbours_are_one_step_away_on_one_axis(choice: list[int]) -> None:
    matrix = grid([3, 5, 8, 13, 21], [8, 13, 21, 34], [0, 1])
    matrix = matrix[matrix[:, 0] < matrix[:, 1]]
    values = np.random.default_rng(2).normal(1, 1, size=len(matrix))
    order = np.random.default_rng(3).permutation(len(matrix))
    matrix, values = matrix[order], values[order]
    found = neighbourhood(matrix, values, np.array([c in choice for c in range(3)]))
    assert found.method == "grid"
    for row, own in enumerate(values):
        near = slow(matrix, values, row, choice)
        assert found.count[row] == len(near)
        assert found.mean[row] == pytest.approx(np.mean(near))
        assert found.median[row] == pytest.approx(np.median(near))
        assert found.worst[row] == min(near)
        expected = np.clip(np.mean(near) / own, -1, 1) if own > 0 else math.nan
        assert found.share[row] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ([1.0, 1.0, 1.0], 1.0),
        ([2.0, 1.0, 2.0], 1.0),
        ([0.5, 1.0, 0.5], 0.5),
        ([0.0, 1.0, 0.0], 0.0),
        ([math.nan, 1.0, math.nan], 0.0),
        ([-9.0, 1.0, -9.0], -1.0),
        ([1.0, 0.0, 1.0], math.nan),
        ([1.0, -1.0, 1.0], math.nan),
        ([1.0, math.nan, 1.0], math.nan),
    ],
)
def test_the_share_is_what_neighbours_keep_of_the_sets_own_metric(values: list[float], share: float) -> None:
    found = neighbourhood(grid([1, 2, 3]), np.array(values))
    assert found.share[1] == pytest.approx(share, nan_ok=True)


def test_a_column_that_does_not_move_is_no_axis_and_steps_need_not_be_even() -> None:
    found = neighbourhood(grid([7], [1, 10, 1000], [0.5]), np.array([1.0, 2.0, 4.0]))
    assert found.count.tolist() == [1, 2, 1]
    assert found.mean.tolist() == [2.0, 2.5, 2.0]


@pytest.mark.parametrize("matrix", [np.empty((0, 2)), np.ones((1, 2)), np.empty((3, 0)), grid([0, 1])])
def test_without_neighbours_there_is_nothing_to_say(matrix: Floats) -> None:
    found = neighbourhood(matrix, np.ones(len(matrix)), np.ones(matrix.shape[1], dtype=bool))
    assert found.count.tolist() == [0] * len(matrix)
    assert np.isnan([found.mean, found.median, found.worst, found.share]).all()


def test_scattered_sets_are_compared_with_the_nearest_ones_in_scaled_parameters() -> None:
    generator = np.random.default_rng(4)
    matrix = generator.uniform([0, 100], [1, 900], size=(300, 2))
    values = generator.normal(1, 0.1, size=300)
    found = neighbourhood(matrix, values)
    assert found.method == "nearest"
    assert (found.count == 4).all()
    scaled = (matrix - matrix.min(axis=0)) / np.ptp(matrix, axis=0)
    for row in range(300):
        near = np.argsort(((scaled - scaled[row]) ** 2).sum(axis=1))[1:5]
        assert found.mean[row] == pytest.approx(values[near].mean())
        assert found.worst[row] == values[near].min()


def test_scattered_sets_of_another_choice_are_no_neighbours() -> None:
    matrix = np.random.default_rng(4).uniform(0, 1, size=(60, 3))
    matrix[:, 1] = np.arange(60) % 2
    values = matrix[:, 1] + 1.0
    found = neighbourhood(matrix, values, np.array([False, True, False]))
    assert found.method == "nearest"
    np.testing.assert_array_equal(found.mean, values)


def test_of_very_many_scattered_sets_the_best_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.stability.NEAREST_MAX", 10)
    generator = np.random.default_rng(4)
    values = generator.normal(size=200)
    found = neighbourhood(generator.uniform(size=(200, 3)), values)
    assert set(np.flatnonzero(found.count)) == set(np.argsort(-values)[:10])


def test_neighbours_in_many_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = grid([1, 2, 3, 4], [1, 2, 3], [5, 6, 7])
    values = np.random.default_rng(1).normal(size=len(matrix))
    whole = neighbourhood(matrix, values)
    monkeypatch.setattr("strategies.stability._ROWS", 5)
    chunked = neighbourhood(matrix, values)
    for name in ("count", "mean", "median", "worst", "share"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(chunked, name))


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(SpecError, match="values"):
        neighbourhood(np.ones((3, 2)), np.ones(2))
    with pytest.raises(SpecError, match="values"):
        neighbourhood(np.ones((3, 2)), np.ones(3), np.array([True]))
