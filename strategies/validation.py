"""Choosing in one stretch of time, judging in another: held-out, walk-forward, purged and combinatorial splits.

Everything is pooled from the segments' moments (strategies/segments.py); no backtest is run again. One caveat holds for
all of it: a set's returns in a segment come from one run over the whole series, so positions carry over from the
segment before and costs of switching from one chosen set to the next are not in the stitched results.

What it protects from: each split asks whether *choosing by past Sharpe* pays in data that the choice did not see.
What it does not protect from: ideas, ranges and costs that a person settled on after looking at the same history; and
the leaderboard sorted by ``oos_sharpe``, because then the held-out bars choose as well. Its first row is the best of
all sets on these bars and, the more sets there are, the luckier; ``dsr``, the probability of overfitting and the
steps of the walk-forward, in which each result was picked by nobody, say how much of it to expect again.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from strategies.base import SpecError
from strategies.metrics import MOMENTS
from strategies.model import Float64Array, Int64Array
from strategies.segments import GROWTH, RETURNS, SUM, SUM2, Pooled, Segments, add_up, pool, pooled, sharpe_of

TEST_FOLDS: Final = 2
# Rows looked at together: their sums in all segments fit a processor's cache.
_ROWS: Final = 16_384


@dataclass(frozen=True)
class Split:
    """Folds to choose on and folds to judge by, and the segments these are; gaps between the two are in neither."""

    train_folds: tuple[int, ...]
    test_folds: tuple[int, ...]
    train: Int64Array
    test: Int64Array


@dataclass(frozen=True)
class Choice:
    """For each of C splits the row with the best in-sample Sharpe (-1: no row has one) and its results.

    Sharpe ratios are per bar. ``oos`` are the sums float64[C, 6] over the test segments, not a number where none was
    chosen.
    """

    splits: tuple[Split, ...]
    rows: Int64Array
    is_sharpe: Float64Array
    oos: Float64Array

    @property
    def outside(self) -> Pooled:
        """The chosen rows' statistics in the test segments, an entry a split."""
        return pooled(self.oos)


def walk_forward_splits(segments: Segments, *, train_folds: int | None = None, anchored: bool = False) -> list[Split]:
    """Each fold in turn is judged by what was best in the folds before it: F - train_folds splits in order of time.

    Rolling: in the ``train_folds`` (default a quarter of all, at least 2) folds before; anchored: in all folds before,
    at least that many. Source: R. Pardo, "The Evaluation and Optimization of Trading Strategies", 2008, chapter 11.
    Raises ``SpecError`` where ``train_folds`` leaves nothing to test.
    """
    if segments.too_short:
        return []
    length = max(2, segments.folds // 4) if train_folds is None else train_folds
    if not 1 <= length < segments.folds:
        raise SpecError("train_folds", train_folds, f"a whole number from 1 to {segments.folds - 1}")
    return [
        _split(segments, range(0 if anchored else test - length, test), [test])
        for test in range(length, segments.folds)
    ]


def combinatorial_splits(segments: Segments, *, test_folds: int = TEST_FOLDS) -> list[Split]:
    """Every way to test on ``test_folds`` of the F folds and choose on the others: C(F, test_folds) splits.

    Folds after a test train as well, which only purging makes allowable: the gap on each side of a test fold is left
    out, the one after it being the embargo. Source: M. Lopez de Prado, "Advances in Financial Machine Learning", 2018,
    7.4 and 12.3; one test fold is purged K-fold. Raises ``SpecError`` where a side would be empty.
    """
    if segments.too_short:
        return []
    if not 1 <= test_folds < segments.folds:
        raise SpecError("test_folds", test_folds, f"a whole number from 1 to {segments.folds - 1}")
    everything = set(range(segments.folds))
    return [
        _split(segments, sorted(everything - set(tested)), tested)
        for tested in itertools.combinations(range(segments.folds), test_folds)
    ]


def choose(moments: Float64Array, splits: Sequence[Split], rows: Int64Array | None = None) -> Choice:
    """For each split the best of ``rows`` (default: all) of float64[m, S, 6] by in-sample Sharpe, the first of equals.

    Sets without a Sharpe in-sample (they did nothing) and sets ruined there are not chosen. Time and memory are of the
    order of splits * m and of m. Raises ``SpecError`` where sets have more or fewer returns than others: leave out
    those that were stopped early (``segments.complete_rows``).
    """
    candidates = np.arange(moments.shape[0]) if rows is None else rows
    best = np.full(len(splits), -1, dtype=np.int64)
    value = np.full(len(splits), -np.inf)
    returns = moments[candidates[:1], :, RETURNS].ravel()
    for start in range(0, len(candidates), _ROWS):
        part = candidates[start : start + _ROWS]
        block = moments[part]
        if not (block[:, :, RETURNS] == returns).all():
            raise SpecError("moments", "sets of different length", "as many returns in a segment for every set")
        first, second = (_Table.of(block[:, :, column]) for column in (SUM, SUM2))
        ruined = np.isneginf(block[:, :, GROWTH].T)
        any_ruined = ruined.any()
        for i, split in enumerate(splits):
            sharpe = sharpe_of(returns[split.train].sum(), first.over(split.train), second.over(split.train))
            if any_ruined:
                sharpe[ruined[split.train].any(axis=0)] = np.nan
            sharpe[np.isnan(sharpe)] = -np.inf
            place = int(np.argmax(sharpe))
            if sharpe[place] > value[i]:
                best[i], value[i] = part[place], sharpe[place]
    oos = np.full((len(splits), len(MOMENTS)), np.nan)
    for i, split in enumerate(splits):
        if best[i] >= 0:
            oos[i] = add_up(moments[best[i] : best[i] + 1], split.test)[0]
    return Choice(tuple(splits), best, np.where(best >= 0, value, np.nan), oos)


def stitched(choice: Choice) -> Pooled:
    """The walk-forward as one: the chosen sets' test folds pooled, arrays of one entry; steps with no choice idle."""
    return pooled(np.nansum(choice.oos, axis=0, keepdims=True))


def efficiency(choice: Choice) -> float:
    """Stitched out-of-sample Sharpe over the mean in-sample Sharpe of the chosen sets; not a number unless that is > 0.

    Pardo's walk-forward efficiency, taken of Sharpe ratios: 1 means the promise was kept, 0 that nothing was left.
    """
    promised = choice.is_sharpe[choice.rows >= 0]
    mean = float(promised.mean()) if promised.size else np.nan
    return float(stitched(choice).sharpe[0]) / mean if mean > 0.0 else np.nan


def paths(moments: Float64Array, choice: Choice) -> Pooled:
    """The combinatorial splits' paths, an entry a path: C(F - 1, k - 1) histories in which every fold is a test.

    Path p takes for each fold the choice of the p-th split that tests it. Gaps are in none. Source: Lopez de Prado
    2018, 12.4.
    """
    folds = 1 + max(fold for split in choice.splits for fold in split.test_folds)
    total = np.zeros((len(choice.splits) * len(choice.splits[0].test_folds) // folds, len(MOMENTS)))
    for fold in range(folds):
        testing = [i for i, split in enumerate(choice.splits) if fold in split.test_folds]
        for path, i in enumerate(testing):
            if choice.rows[i] >= 0:
                total[path] += moments[choice.rows[i], 2 * fold]
    return pooled(total)


def held_out_columns(moments: Float64Array, segments: Segments, per_year: float) -> dict[str, Float64Array]:
    """``is_sharpe``, ``is_return``, ``oos_sharpe``, ``oos_return``: float64[m] before and after the held-out border.

    Sharpe ratios are yearly (``per_year`` returns a year), returns fractions over the whole stretch. The gap at the
    border counts for neither. A series too short to hold anything out has no ``oos`` figures. A set that was ruined
    has no Sharpe from then on, so it ranks last.
    """
    inside, outside = pool(moments, segments.in_sample), pool(moments, segments.held_out_segments)
    none = np.full(moments.shape[0], np.nan)
    with np.errstate(invalid="ignore"):
        return {
            "is_sharpe": _yearly(inside, per_year),
            "is_return": inside.total_return,
            "oos_sharpe": _yearly(outside, per_year),
            "oos_return": none if segments.too_short else outside.total_return,
        }


def rank_correlation(one: Float64Array, other: Float64Array) -> float:
    """Spearman's rank correlation of float64[m] and float64[m] over rows where both are numbers; ties share a rank.

    Of in-sample and held-out Sharpe: near 0, the order of the leaderboard says nothing about what comes after.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3:
        return np.nan
    a, b = _ranks(one[both]), _ranks(other[both])
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / spread if spread > 0.0 else np.nan


def _split(segments: Segments, train: Sequence[int], test: Sequence[int]) -> Split:
    return Split(tuple(train), tuple(test), segments.covering(train), segments.covering(test))


class _Table(NamedTuple):
    """One moment of c sets, float64[S, c], and its total over all segments."""

    values: Float64Array
    total: Float64Array

    @staticmethod
    def of(column: Float64Array) -> _Table:
        values = np.ascontiguousarray(column.T)
        return _Table(values, values.sum(axis=0))

    def over(self, chosen: Int64Array) -> Float64Array:
        """float64[c]: the sum over some segments, by taking away the others where they are fewer."""
        if 2 * len(chosen) > len(self.values):
            others = np.setdiff1d(np.arange(len(self.values)), chosen, assume_unique=True)
            return self.total - _sum_rows(self.values, others)
        return _sum_rows(self.values, chosen)


def _sum_rows(table: Float64Array, rows: Int64Array) -> Float64Array:
    total = np.zeros(table.shape[1])
    for row in rows:
        total += table[row]
    return total


def _yearly(part: Pooled, per_year: float) -> Float64Array:
    return np.where(np.isneginf(part.growth), np.nan, part.sharpe * np.sqrt(per_year))


def _ranks(values: Float64Array) -> Float64Array:
    """Ranks about their mean, ties sharing theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[place]
    return np.asarray(ranks - ranks.mean())
