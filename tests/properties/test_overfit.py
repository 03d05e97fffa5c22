"""What the probability of overfitting must say of noise, of skill, and whatever order the sets come in."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.overfit import overfitting
from strategies.segments import GROWTH, RETURNS, SUM, SUM2, plan_segments, sharpe_of
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]


def folds_of(returns: Floats, folds: int = 8) -> Floats:
    """Moments of the folds alone."""
    return moments_of(returns, plan_segments(returns.shape[1] + 1, folds=folds))[:, ::2]


def plain(folds: Floats) -> dict[tuple[int, ...], tuple[int, float, float, float]]:
    """Chosen set, its Sharpe inside and outside, and its rank outside, for every half, as one would write it down."""
    found = {}
    for inside in itertools.combinations(range(folds.shape[1]), folds.shape[1] // 2):
        outside = tuple(fold for fold in range(folds.shape[1]) if fold not in inside)
        one, other = half_sharpe(folds, inside), half_sharpe(folds, outside)
        if not np.isfinite(one).any():
            continue
        chosen = int(np.nanargmax(one))
        placed = np.where(np.isnan(other), 0.0, other)
        rank = (placed < placed[chosen]).sum() + ((placed == placed[chosen]).sum() + 1) / 2
        found[inside] = chosen, float(one[chosen]), float(placed[chosen]), float(rank)
    return found


def half_sharpe(folds: Floats, half: tuple[int, ...]) -> Floats:
    """Of every set in some folds; -inf where one of them ruined it."""
    columns = [np.zeros(len(folds)) for _ in range(3)]
    for fold in half:
        for total, column in zip(columns, (RETURNS, SUM, SUM2), strict=True):
            total += folds[:, fold, column]
    return np.where(np.isneginf(folds[:, half, GROWTH]).any(axis=1), -np.inf, sharpe_of(*columns))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 40, 511, 513, 1_100]), st.sampled_from([4, 6, 8]))
def test_it_is_what_one_would_write_down(seed: int, sets: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    returns = generator.normal(0, 0.01, size=(sets, 25 * count))
    returns[generator.random(sets) < 0.2] = 0.0  # sets that do nothing
    returns[generator.random(sets) < 0.2] = returns[0]  # and equal ones
    folds = folds_of(returns, count)
    folds[generator.random(folds.shape[:2]) < 0.02, GROWTH] = -np.inf
    found, expected = overfitting(folds), plain(folds)
    assert sorted(expected.values()) == sorted(
        zip(
            found.chosen.tolist(),
            found.is_sharpe.tolist(),
            found.oos_sharpe.tolist(),
            ((sets + 1) / (1 + np.exp(-found.logits))).round(6).tolist(),
            strict=True,
        )
    )


def test_noise_is_overfitted_half_of_the_time() -> None:
    """Over many seeds: on one series halves are not independent, so a single PBO of noise may be anything."""
    found = [
        overfitting(folds_of(np.random.default_rng(seed).normal(0, 0.01, size=(40, 800)))).pbo for seed in range(120)
    ]
    assert np.mean(found) == pytest.approx(0.5, abs=3 * np.std(found) / np.sqrt(len(found)) + 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_a_set_that_is_truly_better_is_not_overfitted(seed: int) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.01, size=(40, 800))
    returns[7] += 0.004
    found = overfitting(folds_of(returns))
    assert found.pbo < 0.02
    assert found.probability_of_loss < 0.02
    assert (found.chosen == 7).mean() > 0.95


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_the_order_of_the_sets_changes_nothing(seed: int, sets: int) -> None:
    generator = np.random.default_rng(seed)
    folds = folds_of(generator.normal(0, 0.01, size=(sets, 200)))
    order = generator.permutation(sets)
    one, other = overfitting(folds), overfitting(folds[order])
    np.testing.assert_array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.chosen, order[other.chosen])
    np.testing.assert_array_equal(one.oos_sharpe, other.oos_sharpe)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.25, 4.0))
def test_leverage_changes_nothing(seed: int, leverage: float) -> None:
    returns = np.random.default_rng(seed).normal(0, 0.01, size=(10, 200))
    one, other = overfitting(folds_of(returns)), overfitting(folds_of(returns * leverage))
    np.testing.assert_allclose(one.is_sharpe, other.is_sharpe, rtol=1e-9)
    np.testing.assert_array_equal(one.logits, other.logits)
