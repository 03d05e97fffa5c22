"""What the probability of overfitting must say of noise, of skill, and whatever order the sets come in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.overfit import overfitting
from strategies.segments import plan_segments
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]


def folds_of(returns: Floats, folds: int = 8) -> Floats:
    """Moments of the folds alone."""
    return moments_of(returns, plan_segments(returns.shape[1] + 1, folds=folds))[:, ::2]


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
