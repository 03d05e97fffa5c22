"""Probabilistic and deflated Sharpe, track record and PBO against the numbers the papers print, and at the edges."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.base import SpecError
from strategies.overfit import (
    deflated_sharpe,
    expected_max_sharpe,
    independent_trials,
    mean_correlation,
    minimum_track_record,
    overfitting,
    probabilistic_sharpe,
    sampling_deviation,
)
from strategies.segments import plan_segments
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]
DAYS = 250


@pytest.mark.parametrize(
    ("skew", "kurtosis", "probability"),
    [(0.0, 3.0, 0.982), (-2.448, 10.164, 0.913)],
)
def test_psr_of_the_2012_papers_fund(skew: float, kurtosis: float, probability: float) -> None:
    """24 months at a monthly Sharpe of 0.458: 0.982 if returns were normal, 0.913 with their skew and kurtosis."""
    assert probabilistic_sharpe(0.458, 0.0, 24, skew, kurtosis) == pytest.approx(probability, abs=5e-4)


@pytest.mark.parametrize(
    ("per_year", "skew", "kurtosis", "years"),
    [(250, 0.0, 3.0, 2.73), (52, 0.0, 3.0, 2.83), (12, 0.0, 3.0, 3.24), (12, -0.72, 5.78, 4.99)],
)
def test_track_record_of_the_2012_paper(per_year: int, skew: float, kurtosis: float, years: float) -> None:
    """To say with 95 % confidence that a yearly Sharpe of 2 is above 1."""
    root = math.sqrt(per_year)
    needed = minimum_track_record(2 / root, 1 / root, skew, kurtosis) / per_year
    assert needed == pytest.approx(years, abs=5e-3)


def test_a_track_record_of_that_length_reaches_the_confidence() -> None:
    needed = minimum_track_record(0.11, 0.02, -0.5, 6.0, confidence=0.9)
    assert probabilistic_sharpe(0.11, 0.02, needed, -0.5, 6.0) == pytest.approx(0.9, abs=1e-12)


def test_no_track_record_is_long_enough_for_a_sharpe_not_above_the_benchmark() -> None:
    needed = minimum_track_record(0.1, [0.1, 0.2, 0.05], 0.0, 3.0)
    assert np.isposinf(needed).tolist() == [True, True, False]


@pytest.mark.parametrize("confidence", [0.4, 1.0, math.nan])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(SpecError, match="confidence"):
        minimum_track_record(0.1, 0.0, 0.0, 3.0, confidence=confidence)


@pytest.mark.parametrize(
    ("trials", "skew", "kurtosis", "probability"),
    [(100, -3.0, 10.0, 0.9004), (46, -3.0, 10.0, 0.9505), (88, 0.0, 3.0, 0.9505)],
)
def test_dsr_of_the_2014_papers_example(trials: int, skew: float, kurtosis: float, probability: float) -> None:
    """1,250 days at a yearly Sharpe of 2.5, the best of some trials whose yearly Sharpes have a variance of 1/2."""
    deviation = math.sqrt(0.5 / DAYS)
    found = deflated_sharpe(2.5 / math.sqrt(DAYS), deviation, trials, 1250, skew, kurtosis)
    assert found == pytest.approx(probability, abs=1e-4)


def test_expected_maximum_of_the_2014_papers_example() -> None:
    assert expected_max_sharpe(math.sqrt(0.5 / DAYS), 100) == pytest.approx(0.1132, abs=1e-4)


@pytest.mark.parametrize("trials", [10, 100, 1_000])
def test_expected_maximum_is_that_of_normal_draws(trials: int) -> None:
    draws = np.random.default_rng(5).normal(0, 0.3, size=(20_000_000 // trials // 10, trials)).max(axis=1)
    assert expected_max_sharpe(0.3, trials) == pytest.approx(draws.mean(), rel=0.03)


def test_one_trial_deflates_nothing_and_unknown_ones_leave_it_unknown() -> None:
    assert expected_max_sharpe(0.3, 1) == 0.0
    assert deflated_sharpe(0.1, 0.3, 1, 500, 0, 3) == probabilistic_sharpe(0.1, 0, 500, 0, 3)
    assert math.isnan(expected_max_sharpe(math.nan, 10))
    assert math.isnan(expected_max_sharpe(0.1, math.nan))


def test_dsr_falls_with_the_number_and_the_spread_of_trials_and_with_fat_tails() -> None:
    by_trials = [float(deflated_sharpe(0.1, 0.03, n, 1000, -0.5, 6)) for n in (1, 2, 5, 10, 100, 1e4, 1e6)]
    by_spread = [float(deflated_sharpe(0.1, d, 50, 1000, -0.5, 6)) for d in (0.0, 0.01, 0.03, 0.1)]
    by_tails = [float(deflated_sharpe(0.1, 0.03, 50, 1000, s, k)) for s, k in ((0, 3), (-0.5, 6), (-2, 20))]
    for falling in (by_trials, by_spread, by_tails):
        assert all(later < earlier for earlier, later in itertools.pairwise(falling))


def test_sharpes_of_sets_without_skill_deviate_by_the_sampling_error() -> None:
    draws = np.random.default_rng(1).normal(0, 0.01, size=(20_000, 50))
    found = draws.mean(axis=1) / draws.std(axis=1, ddof=1)
    assert sampling_deviation(50) == pytest.approx(found.std(), rel=0.03)
    assert math.isnan(sampling_deviation(1))


@pytest.mark.parametrize("returns", [0, 1, math.nan])
def test_without_two_returns_there_is_no_probability(returns: float) -> None:
    assert math.isnan(probabilistic_sharpe(0.1, 0.0, returns, 0.0, 3.0))


def test_a_set_without_a_sharpe_has_no_probability_and_disturbs_no_other() -> None:
    found = probabilistic_sharpe([math.nan, 0.1], 0.0, 100, [math.nan, 0.0], [math.nan, 3.0])
    assert np.isnan(found).tolist() == [True, False]


def test_mean_correlation_is_that_over_all_pairs() -> None:
    generator = np.random.default_rng(2)
    common = generator.normal(0, 1e-3, size=(1, 4_000))
    returns = common + generator.normal(0, 1e-3, size=(40, 4_000))
    cuts = plan_segments(4_001)
    moments = moments_of(returns, cuts)
    means = moments[:, :, 1] / moments[:, :, 0]
    pairs = np.asarray(np.corrcoef(means))[np.triu_indices(40, 1)]
    assert mean_correlation(moments, np.arange(40)) == pytest.approx(pairs.mean(), rel=1e-9)


@pytest.mark.parametrize(
    ("correlation", "sets", "trials"), [(0.0, 50, 50.0), (1.0, 50, 1.0), (0.5, 101, 51.0), (math.nan, 5, math.nan)]
)
def test_independent_trials_lie_between_one_and_all(correlation: float, sets: int, trials: float) -> None:
    assert independent_trials(correlation, sets) == pytest.approx(trials, nan_ok=True)


def test_correlation_of_copies_is_one_and_of_idle_sets_unknown() -> None:
    moments = moments_of(np.random.default_rng(2).normal(0, 1e-3, size=(1, 600)), plan_segments(601))
    assert mean_correlation(np.repeat(moments, 5, axis=0), np.arange(5)) == pytest.approx(1.0)
    assert math.isnan(mean_correlation(np.zeros_like(np.repeat(moments, 5, axis=0)), np.arange(5)))
    assert math.isnan(mean_correlation(moments, np.arange(1)))


def folds_of(returns: Floats, count: int) -> Floats:
    """float64[m, F, 6] of returns float64[m, n] cut into ``count`` equal folds without gaps."""
    length = returns.shape[1] // count
    return moments_of(returns, np.array([0, *(1 + length * (np.arange(count) + 1))]))


def slow_pbo(returns: Floats, count: int) -> tuple[float, list[float]]:
    """The paper's procedure word for word on the returns themselves."""
    blocks = np.split(returns, count, axis=1)
    logits = []
    for half in itertools.combinations(range(count), count // 2):
        inside = np.concatenate([blocks[i] for i in half], axis=1)
        outside = np.concatenate([blocks[i] for i in range(count) if i not in half], axis=1)
        ratio_in = inside.mean(axis=1) / inside.std(axis=1, ddof=1)
        ratio_out = outside.mean(axis=1) / outside.std(axis=1, ddof=1)
        best = int(np.argmax(ratio_in))
        rank = float((ratio_out < ratio_out[best]).sum() + ((ratio_out == ratio_out[best]).sum() + 1) / 2)
        share = rank / (len(returns) + 1)
        logits.append(math.log(share / (1 - share)))
    return float(np.mean(np.array(logits) <= 0)), logits


@pytest.mark.parametrize(("sets", "folds"), [(2, 4), (9, 6), (30, 8), (25, 10)])
def test_pbo_from_moments_is_the_papers_procedure_on_returns(sets: int, folds: int) -> None:
    returns = np.random.default_rng(sets).standard_t(4, size=(sets, 30 * folds)) * 0.01
    found = overfitting(folds_of(returns, folds))
    pbo, logits = slow_pbo(returns, folds)
    assert found.pbo == pbo
    assert found.all_splits == len(found.logits) == math.comb(folds, folds // 2)
    np.testing.assert_allclose(np.sort(found.logits), np.sort(logits), rtol=1e-12)


def test_a_sample_of_the_splits_stands_for_all_and_is_the_same_each_time() -> None:
    returns = np.random.default_rng(1).normal(1e-4, 0.01, size=(40, 1_600))
    folds = folds_of(returns, 16)
    everything = overfitting(folds)
    sample = overfitting(folds, seed=3, evaluations_max=40 * 3_000)
    assert (len(everything.logits), len(sample.logits), sample.all_splits) == (12_870, 3_000, 12_870)
    assert sample.pbo == pytest.approx(everything.pbo, abs=0.05)
    assert np.array_equal(sample.logits, overfitting(folds, seed=3, evaluations_max=40 * 3_000).logits)


def test_too_many_sets_are_represented_by_a_sample_of_them() -> None:
    folds = folds_of(np.random.default_rng(1).normal(0, 0.01, size=(500, 160)), 8)
    found = overfitting(folds, sets_max=50)
    assert found.sets == 50
    assert len(np.unique(found.chosen)) > 1
    assert found.chosen.max() > 50


def test_fewer_than_two_sets_have_nothing_to_overfit() -> None:
    found = overfitting(folds_of(np.random.default_rng(1).normal(0, 0.01, size=(1, 160)), 8))
    assert math.isnan(found.pbo)
    assert math.isnan(found.probability_of_loss)
    assert np.isnan(found.degradation()).all()


def test_idle_sets_are_never_chosen_and_count_as_zero_outside() -> None:
    returns = np.random.default_rng(1).normal(-0.005, 0.01, size=(3, 160))
    returns[2] = 0.0
    found = overfitting(folds_of(returns, 8))
    assert set(found.chosen) <= {0, 1}
    assert found.probability_of_loss > 0.9
    assert overfitting(folds_of(np.zeros((3, 160)), 8)).logits.size == 0


def test_a_ruined_set_is_worse_than_any_other_on_both_sides() -> None:
    returns = np.random.default_rng(1).normal(0.0, 0.01, size=(3, 160))
    returns[0, :140] += 0.1
    returns[0, 150:] = 0.0
    returns[0, 149] = -1.0
    found = overfitting(folds_of(returns, 8))
    best = found.chosen == 0
    assert best.any()
    assert np.isneginf(found.oos_sharpe[best]).all()
    assert np.isfinite(found.degradation()).all() or np.isnan(found.degradation()).all()


def test_moments_that_are_no_numbers_and_odd_folds_are_refused() -> None:
    folds = folds_of(np.random.default_rng(1).normal(0, 0.01, size=(3, 160)), 8)
    with pytest.raises(SpecError, match="folds"):
        overfitting(folds[:, :7])
    folds[1, 3, 1] = math.nan
    with pytest.raises(SpecError, match="moments"):
        overfitting(folds)
