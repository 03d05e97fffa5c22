"""Our overfit statistics beside ffn's and skfolio's, on the same returns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from strategies.overfit import deflated_sharpe, expected_max_sharpe, overfitting, probabilistic_sharpe
from strategies.segments import Pooled, Segments, plan_segments, pool
from strategies.validation import Split, choose, combinatorial_splits, paths
from tests.moment_samples import moments_of
from tests.peers.engine_runs import needs_peers, run_peer

pytestmark = [needs_peers, pytest.mark.slow]

Floats = NDArray[np.float64]
SETS: Final = 12
FOLDS: Final = 8
FOLD_BARS: Final = 60
GAP_BARS: Final = 6
TEST_FOLDS: Final = 3


@dataclass(frozen=True)
class Compared:
    """The returns, and what the peers say of them."""

    returns: Floats
    answer: dict[str, Any]

    @property
    def pooled(self) -> Pooled:
        """Our statistics of the sets."""
        return pool(moments_of(self.returns, whole(self.returns)), np.array([0]))


def whole(returns: Floats) -> NDArray[np.int64]:
    return np.array([0, returns.shape[1] + 1])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """Fat-tailed, skewed returns of sets that are alike."""
    generator = np.random.default_rng(11)
    common = generator.standard_t(4, size=(1, FOLDS * FOLD_BARS))
    own = generator.exponential(1.0, size=(SETS, FOLDS * FOLD_BARS)) - 0.97
    returns = 0.004 * common + 0.006 * own
    file = tmp_path_factory.mktemp("overfit") / "asked.npz"
    np.savez(file, returns=returns, folds=FOLDS, fold_bars=FOLD_BARS, gap_bars=GAP_BARS, test_folds=TEST_FOLDS)
    return Compared(returns, json.loads(run_peer("overfit_statistics", str(file))))


@pytest.mark.parametrize(("name", "benchmark"), [("psr", 0.0), ("psr_above", 0.02)])
def test_probabilistic_sharpe_is_skfolios(compared: Compared, name: str, benchmark: float) -> None:
    ours = compared.pooled
    found = probabilistic_sharpe(ours.sharpe, benchmark, ours.returns, ours.skew, ours.kurtosis)
    np.testing.assert_allclose(found, compared.answer["skfolio"][name], rtol=1e-10)


def test_deflated_sharpe_is_skfolios(compared: Compared) -> None:
    ours = compared.pooled
    found = deflated_sharpe(ours.sharpe, ours.sharpe.std(ddof=1), SETS, ours.returns, ours.skew, ours.kurtosis)
    np.testing.assert_allclose(found, compared.answer["skfolio"]["dsr"], rtol=1e-10)


def test_deflated_sharpe_is_ffns_with_its_skew_and_kurtosis(compared: Compared) -> None:
    """ffn takes pandas' skew and kurtosis, corrected for small samples; the papers and we take the plain moments."""
    ours, theirs = compared.pooled, compared.answer["ffn"]
    best = int(np.argmax(ours.sharpe))
    deviation = float(ours.sharpe.std(ddof=1))
    assert best == theirs["best"]
    assert expected_max_sharpe(deviation, SETS) == pytest.approx(theirs["expected_max"], rel=1e-10)
    series = compared.returns[best]
    skew, excess = stats.skew(series, bias=False), stats.kurtosis(series, bias=False)
    found = deflated_sharpe(ours.sharpe[best], deviation, SETS, series.size, skew, excess + 3.0)
    assert float(found) == pytest.approx(theirs["dsr"], rel=1e-10)


def test_probability_of_overfitting_is_ffns_split_by_split(compared: Compared) -> None:
    cuts = np.array([0, *(1 + FOLD_BARS * np.arange(1, FOLDS + 1))])
    found = overfitting(moments_of(compared.returns, cuts))
    theirs = compared.answer["ffn"]
    assert found.pbo == theirs["pbo"]
    np.testing.assert_allclose(np.sort(found.logits), np.sort(theirs["logits"]), rtol=1e-10)


def bars_of(segments: Segments, chosen: NDArray[np.int64]) -> set[int]:
    return {bar for s in chosen for bar in range(segments.cuts[s], segments.cuts[s + 1])}


def test_combinatorial_splits_train_and_test_on_skfolios_bars(compared: Compared) -> None:
    bars = FOLDS * (FOLD_BARS + GAP_BARS) - GAP_BARS
    segments = Segments(plan_segments(bars, folds=FOLDS, purge_bars=GAP_BARS))
    ours = {split.test_folds: split for split in combinatorial_splits(segments, test_folds=TEST_FOLDS)}
    theirs = compared.answer["splits"]
    assert len(theirs) == len(ours)
    for answer in theirs:
        # A fold of theirs begins half a gap before ours.
        split = ours[tuple((test[0] + GAP_BARS) // (FOLD_BARS + GAP_BARS) for test in answer["tests"])]
        assert bars_of(segments, split.train) == set(answer["train"]) & set(range(bars))
        assert bars_of(segments, split.test) <= {bar for test in answer["tests"] for bar in test}


def test_paths_are_put_together_as_skfolio_does(compared: Compared) -> None:
    bars = FOLDS * (FOLD_BARS + GAP_BARS) - GAP_BARS
    segments = Segments(plan_segments(bars, folds=FOLDS, purge_bars=GAP_BARS))
    splits: list[Split] = combinatorial_splits(segments, test_folds=TEST_FOLDS)
    moments = moments_of(np.random.default_rng(3).normal(0, 0.01, size=(9, bars - 1)), segments.cuts)
    choice = choose(moments, splits)
    expected: dict[int, float] = {}
    for row, split, answer in zip(choice.rows, splits, compared.answer["splits"], strict=True):
        for fold, path in zip(split.test_folds, answer["paths"], strict=True):
            expected[path] = expected.get(path, 0.0) + float(moments[row, 2 * fold, 5])
    np.testing.assert_allclose(np.sort(paths(moments, choice).growth), np.sort(list(expected.values())), rtol=1e-10)
