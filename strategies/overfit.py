"""Is a Sharpe ratio more than luck: probabilistic and deflated Sharpe, track record, probability of overfitting.

Sharpe ratios here are those of one bar's return (not annualised), as in the papers; kurtosis is 3 for the normal
distribution. All formulas take arrays that broadcast. They assume returns that do not depend on each other: where
returns repeat themselves (positive serial correlation) the true uncertainty is greater than they say.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from strategies.base import SpecError
from strategies.compiled import compiled
from strategies.metrics import NO_DEVIATION
from strategies.model import Float64Array, Int64Array
from strategies.segments import GROWTH, NO_DEVIATION_OF_MEAN, RETURNS, SUM, SUM2

EULER_MASCHERONI: Final = 0.5772156649015329
CONFIDENCE: Final = 0.95
# Splits times sets: half a second to one on one core. Above, a sample of the splits is looked at, then of the sets.
EVALUATIONS_MAX: Final = 100_000_000
SETS_MAX: Final = 200_000
SPLITS_MIN: Final = 500
# Sets whose sums are added together: they stay in a processor's nearest cache.
_SETS_AT_ONCE: Final = 512
# Pairs of halves that are gone through with them before the next ones are read.
_PAIRS_AT_ONCE: Final = 8


def probabilistic_sharpe(
    sharpe: ArrayLike, benchmark: ArrayLike, returns: ArrayLike, skew: ArrayLike, kurtosis: ArrayLike
) -> Float64Array:
    """Probability that the true Sharpe ratio is above ``benchmark``, given the estimate from that many returns.

    ``Phi((SR - SR*) sqrt(n - 1) / sqrt(1 - skew SR + (kurtosis - 1) / 4 SR^2))``. Source: Bailey and Lopez de Prado,
    "The Sharpe Ratio Efficient Frontier", Journal of Risk, 2012, eq. 11. Not a number with fewer than two returns.
    """
    count = np.asarray(returns, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = (np.asarray(sharpe) - np.asarray(benchmark)) * np.sqrt(np.where(count > 1, count - 1, np.nan))
        return np.asarray(ndtr(distance / np.sqrt(_spread(sharpe, skew, kurtosis))), dtype=np.float64)


def minimum_track_record(
    sharpe: ArrayLike, benchmark: ArrayLike, skew: ArrayLike, kurtosis: ArrayLike, confidence: float = CONFIDENCE
) -> Float64Array:
    """How many returns it takes for ``probabilistic_sharpe`` to reach ``confidence``; infinite if SR <= SR*.

    ``1 + (1 - skew SR + (kurtosis - 1) / 4 SR^2) (Z(confidence) / (SR - SR*))^2``. Source: the same paper, eq. 13.
    Raises ``SpecError`` for a confidence outside 0.5 … 1.
    """
    if not 0.5 <= confidence < 1.0:
        raise SpecError("confidence", confidence, "a number from 0.5 up to below 1")
    above = np.asarray(sharpe, dtype=np.float64) - np.asarray(benchmark)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = 1.0 + _spread(sharpe, skew, kurtosis) * (ndtri(confidence) / above) ** 2
        return np.asarray(np.where(above <= 0.0, np.inf, needed), dtype=np.float64)


def expected_max_sharpe(deviation: float, trials: float) -> float:
    """The Sharpe ratio that the best of ``trials`` independent sets without any skill is expected to show.

    ``deviation * ((1 - g) Z(1 - 1/N) + g Z(1 - 1/(N e)))``, g the Euler-Mascheroni constant, ``deviation`` that of the
    trials' Sharpe ratios. Source: Bailey and Lopez de Prado, "The Deflated Sharpe Ratio", Journal of Portfolio
    Management, 2014, eq. 1 (an approximation for large N: at N = 2 it says 0.52 where 0.56 is true). 0 for one trial.
    """
    if math.isnan(deviation) or math.isnan(trials):
        return math.nan
    if not trials > 1.0:
        return 0.0
    high, higher = ndtri(1.0 - 1.0 / trials), ndtri(1.0 - 1.0 / (trials * math.e))
    return float(deviation * ((1.0 - EULER_MASCHERONI) * high + EULER_MASCHERONI * higher))


def deflated_sharpe(
    sharpe: ArrayLike, deviation: float, trials: float, returns: ArrayLike, skew: ArrayLike, kurtosis: ArrayLike
) -> Float64Array:
    """Probability that the true Sharpe ratio is above what the best of ``trials`` skill-less sets would show.

    ``probabilistic_sharpe`` with ``expected_max_sharpe(deviation, trials)`` as the benchmark. Source: the same paper,
    eq. 2. For a set other than the best it says what it would say if that set had been picked from the same trials.
    """
    return probabilistic_sharpe(sharpe, expected_max_sharpe(deviation, trials), returns, skew, kurtosis)


def sampling_deviation(returns: ArrayLike) -> Float64Array:
    """Deviation of the Sharpe ratio estimated from that many independent returns of a set whose true one is 0.

    ``1 / sqrt(n - 1)``. Source: A. W. Lo, "The Statistics of Sharpe Ratios", Financial Analysts Journal, 2002, at a
    Sharpe of 0. Trials that deviate by more differ truly; by less, they share what moves them.
    """
    count = np.asarray(returns, dtype=np.float64)
    return np.asarray(1.0 / np.sqrt(np.where(count > 1, count - 1, np.nan)), dtype=np.float64)


def independent_trials(correlation: float, sets: int) -> float:
    """How many independent trials ``sets`` correlated ones amount to: ``rho + (1 - rho) M``.

    Source: Bailey and Lopez de Prado 2014, appendix A.3 (rho: mean correlation, here cut to 0 … 1). A grid's
    neighbours trade nearly the same, so this is below the number of sets, which is the conservative count.
    """
    return correlation + (1.0 - correlation) * sets if 0.0 <= correlation <= 1.0 else math.nan


def mean_correlation(moments: Float64Array, rows: Int64Array) -> float:
    """Mean correlation over all pairs of some sets of float64[m, S, 6], from their mean returns in the S segments.

    With unit vectors u (a set's S mean returns, centred, over their length) it is ``(|sum u|^2 - m) / (m (m - 1))``:
    no m x m matrix is made. Sets that did nothing are left out. Negative means are 0. Not a number below two sets or
    three segments.
    """
    segments = moments.shape[1]
    total, used = np.zeros(segments), 0
    for start in range(0, len(rows), 16_384):
        part = moments[rows[start : start + 16_384]]
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = part[:, :, SUM] / part[:, :, RETURNS]
            mean -= mean.mean(axis=1, keepdims=True)
            length = np.sqrt((mean**2).sum(axis=1))
        moved = length > 1e-15
        total += (mean[moved] / length[moved, np.newaxis]).sum(axis=0)
        used += int(moved.sum())
    if used < 2 or segments < 3:
        return math.nan
    return min(max((float((total**2).sum()) - used) / (used * (used - 1.0)), 0.0), 1.0)


@dataclass(frozen=True)
class Overfitting:
    """What CSCV found, an entry a split (C of them). ``chosen`` are rows of the moments it was given.

    ``logits`` are ln(w / (1 - w)), w the chosen set's relative rank out-of-sample (0 worst, 1 best); Sharpe ratios
    per bar, ``oos_sharpe`` 0 where the chosen set did nothing and -inf where it was ruined.
    """

    logits: Float64Array
    chosen: Int64Array
    is_sharpe: Float64Array
    oos_sharpe: Float64Array
    all_splits: int
    sets: int

    @property
    def pbo(self) -> float:
        """Share of the splits in which the set that was best in-sample was in the worse half out-of-sample."""
        return float((self.logits <= 0.0).mean()) if self.logits.size else math.nan

    @property
    def probability_of_loss(self) -> float:
        """Share of the splits in which the set that was best in-sample lost out-of-sample."""
        return float((self.oos_sharpe < 0.0).mean()) if self.logits.size else math.nan

    def degradation(self) -> tuple[float, float, float]:
        """Intercept, slope and R^2 of the least squares line OOS Sharpe = a + b * IS Sharpe over the splits.

        Source: the paper's section 3.2. A negative slope is what overfitting looks like: the better in-sample, the
        worse after. Note that with splits in halves of one series a slope near -1 also arises where all sets are
        equal, because what one half has more the other has less.
        """
        used = np.isfinite(self.oos_sharpe)
        x, y = self.is_sharpe[used], self.oos_sharpe[used]
        if x.size < 3 or np.ptp(x) == 0.0:
            return math.nan, math.nan, math.nan
        dx, dy = x - x.mean(), y - y.mean()
        # Sums, not dot products: those go to a library whose threads and rounding differ between machines.
        both, across, along = (float(product.sum()) for product in (dx * dy, dx * dx, dy * dy))
        slope = both / across
        fit = both**2 / (across * along) if along > 0.0 else math.nan
        return float(y.mean() - slope * x.mean()), slope, fit


def overfitting(
    folds: Float64Array,
    candidates: Int64Array | None = None,
    *,
    seed: int = 0,
    evaluations_max: int = EVALUATIONS_MAX,
    sets_max: int = SETS_MAX,
) -> Overfitting:
    """Combinatorially symmetric cross-validation of sets' moments float64[m, F, 6] in F equal folds, F even.

    ``candidates`` are the rows that take part (default: all), m of them.

    Each way to split the folds in halves, in both directions: the set with the best Sharpe in one half, and its rank
    (1 … m, ties share their mean) over m + 1 in the other. Source: Bailey, Borwein, Lopez de Prado and Zhu, "The
    Probability of Backtest Overfitting", Journal of Computational Finance, 2015. Gaps between folds are left out.

    The work is splits * sets. Where it exceeds ``evaluations_max``, splits are drawn at random (by ``seed``), not
    fewer than 500; more than ``sets_max`` sets are represented by as many drawn at random, whose best is a little less
    lucky than that of all. Raises ``SpecError`` for an odd number of folds, fewer than two or moments not a number.
    """
    count = folds.shape[1]
    rows = np.arange(folds.shape[0]) if candidates is None else candidates
    sets = len(rows)
    if count < 2 or count % 2:
        raise SpecError("folds", count, "an even number")
    generator = np.random.Generator(np.random.Philox(seed))
    if sets > sets_max:
        rows = rows[np.sort(generator.permutation(sets)[:sets_max])]
    # In this order the opposite of the i-th half is the i-th from the end.
    halves = np.array(list(itertools.combinations(range(count), count // 2)))
    pairs = np.stack([halves, halves[::-1]], axis=1)[: len(halves) // 2]
    wanted = max(SPLITS_MIN, evaluations_max // max(1, len(rows))) // 2
    if len(pairs) > wanted:
        pairs = pairs[np.sort(generator.permutation(len(pairs))[:wanted])]
    if sets < 2:
        return Overfitting(*_nothing(), len(halves), sets)
    found = _Folds.of(folds, rows).compare(pairs)
    kept = found[0] >= 0
    chosen, is_sharpe, oos_sharpe, rank = (column[kept] for column in found)
    share = rank / (len(rows) + 1.0)
    logits = np.log(share / (1.0 - share))
    return Overfitting(logits, rows[chosen.astype(np.int64)], is_sharpe, oos_sharpe, len(halves), len(rows))


@dataclass(frozen=True)
class _Folds:
    """The folds' sums, fold-major so that a half is a few long additions."""

    returns: Float64Array  # float64[F]
    first: Float64Array  # float64[F, m]
    second: Float64Array
    ruined: NDArray[np.bool_]

    @staticmethod
    def of(folds: Float64Array, rows: Int64Array) -> _Folds:
        returns = folds[rows[:1], :, RETURNS].ravel()
        parts = [np.ascontiguousarray(folds[rows, :, column].T) for column in (SUM, SUM2)]
        if not all(np.isfinite(part).all() for part in parts):
            raise SpecError("moments", "not a number", "moments of sets that ran to the end")
        ruined = np.ascontiguousarray(np.isneginf(folds[rows, :, GROWTH].T))
        return _Folds(returns, parts[0], parts[1], ruined)

    def compare(self, pairs: Int64Array) -> Float64Array:
        """float64[4, 2 p] for int64[p, 2, F / 2], both ways: chosen set (-1: none), IS and OOS Sharpe, OOS rank."""
        found = np.empty((4, len(pairs), 2))
        _compare(self.first, self.second, self.ruined, self.returns, np.ascontiguousarray(pairs), found)
        return found.reshape(4, -1)


@compiled
def _compare(
    first: Float64Array,
    second: Float64Array,
    ruined: NDArray[np.bool_],
    returns: Float64Array,
    pairs: Int64Array,
    found: Float64Array,
) -> None:
    """Fill ``found`` float64[4, p, 2] for ``pairs`` int64[p, 2, F / 2] of halves."""
    sets, any_ruined = first.shape[1], ruined.any()
    sharpe = np.empty((min(_PAIRS_AT_ONCE, len(pairs)), 2, sets))
    sums = np.empty((2, _SETS_AT_ONCE))
    for start in range(0, len(pairs), _PAIRS_AT_ONCE):
        size = min(_PAIRS_AT_ONCE, len(pairs) - start)
        for begin in range(0, sets, _SETS_AT_ONCE):
            some = slice(begin, min(begin + _SETS_AT_ONCE, sets))
            for p in range(size):
                for half in range(2):
                    line = sharpe[p, half, some]
                    _half_sharpe(first, second, returns, pairs[start + p, half], some, sums, line)
                    if any_ruined:
                        for fold in pairs[start + p, half]:
                            _mark(ruined[fold, some], line)
        for p in range(size):
            _choose(sharpe[p, 0], sharpe[p, 1], found[:, start + p, 0])
            _choose(sharpe[p, 1], sharpe[p, 0], found[:, start + p, 1])


@compiled
def _half_sharpe(
    first: Float64Array,
    second: Float64Array,
    returns: Float64Array,
    half: Int64Array,
    some: slice,
    sums: Float64Array,
    sharpe: Float64Array,
) -> None:
    """Fill ``sharpe`` with that of ``some`` sets in the folds int64[F / 2], as ``segments.sharpe_of``."""
    one, two = sums[0, : sharpe.size], sums[1, : sharpe.size]
    one[:], two[:] = first[half[0], some], second[half[0], some]
    count = returns[half[0]]
    for fold in half[1:]:
        count += returns[fold]
        _add(first[fold, some], one)
        _add(second[fold, some], two)
    _divide(one, two, count, sharpe)


# Loops of their own over whole arrays: only these become vector instructions, four times as fast.
@compiled
def _add(row: Float64Array, total: Float64Array) -> None:
    for i in range(total.size):
        total[i] += row[i]


@compiled
def _divide(first: Float64Array, second: Float64Array, count: float, sharpe: Float64Array) -> None:
    """Fill ``sharpe`` as ``segments.sharpe_of``."""
    smallest, freedom = NO_DEVIATION * NO_DEVIATION, count / (count - 1.0)
    for i in range(sharpe.size):
        mean = first[i] / count
        variance = second[i] / count - mean * mean
        of_mean = NO_DEVIATION_OF_MEAN * mean
        value = mean / math.sqrt(variance * freedom)
        sharpe[i] = value if (variance > smallest) & (variance > of_mean * of_mean) else np.nan


@compiled
def _mark(ruined: NDArray[np.bool_], sharpe: Float64Array) -> None:
    for i in range(sharpe.size):
        sharpe[i] = -np.inf if ruined[i] else sharpe[i]


@compiled
def _choose(inside: Float64Array, outside: Float64Array, found: Float64Array) -> None:
    """Fill ``found`` float64[4]: the set that is best inside (-1: none), its Sharpe there, outside, and rank there."""
    best, highest = 0, -np.inf
    for i in range(inside.size):
        if inside[i] > highest:
            best, highest = i, inside[i]
    # A set that does nothing out-of-sample neither gains nor loses there.
    own = 0.0 if np.isnan(outside[best]) else outside[best]
    below = equal = 0
    for i in range(outside.size):
        placed = 0.0 if np.isnan(outside[i]) else outside[i]
        below += placed < own
        equal += placed == own
    found[0] = best if np.isfinite(inside[best]) else -1
    found[1], found[2], found[3] = inside[best], own, below + (equal + 1) / 2


def _nothing() -> tuple[Float64Array, Int64Array, Float64Array, Float64Array]:
    none: Float64Array = np.empty(0)
    return none, np.empty(0, dtype=np.int64), none, none


def _spread(sharpe: ArrayLike, skew: ArrayLike, kurtosis: ArrayLike) -> Float64Array:
    """(n - 1) times the variance of a Sharpe estimate; never negative, as kurtosis >= 1 + skew^2."""
    ratio = np.asarray(sharpe, dtype=np.float64)
    spread = 1.0 - np.asarray(skew) * ratio + (np.asarray(kurtosis) - 1.0) / 4.0 * ratio**2
    return np.asarray(np.where(spread > 0.0, spread, np.nan), dtype=np.float64)
