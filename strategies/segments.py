"""Segments of time and what is kept of each: a few sums a parameter set, from which every honest statistic is pooled.

A sweep keeps no returns: that would be of size bars x sets. It keeps six numbers a set and segment (MOMENTS),
and as sums add up, mean, deviation, skew, kurtosis, Sharpe and growth of *any* union of segments follow exactly:
walk-forward, cross-validation and the probability of overfitting are made of them afterwards, without another backtest.

Segments alternate: fold, gap, fold, gap, …, fold. A gap is left out where its two folds stand on different sides of a
split (purging and embargo: Lopez de Prado, "Advances in Financial Machine Learning", 2018, 7.4) and counts with them
where they stand on the same side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from strategies.base import SpecError
from strategies.metrics import MOMENTS, NO_DEVIATION
from strategies.model import Float64Array, Int64Array

# Columns of ``MOMENTS``, which strategies/metrics.py defines and fills.
RETURNS, SUM, SUM2, SUM3, SUM4, GROWTH = range(len(MOMENTS))

# The columns that honesty adds to a leaderboard. All are better when greater; not a number where undefined.
HONEST_COLUMNS: Final[tuple[str, ...]] = (
    "is_sharpe",
    "is_return",
    "oos_sharpe",
    "oos_return",
    "psr",
    "dsr",
    "stability",
    "worst_neighbour",
)

FOLDS: Final = 16
FOLDS_MIN: Final = 4
FOLD_BARS_MIN: Final = 20
HELD_OUT: Final = 0.3
# Lopez de Prado 2018, 7.4.2, finds an embargo of 1 % of the bars enough to prevent leakage.
PURGE_SHARE: Final = 0.01
# Below this share of the mean a deviation pooled from sums of squares is their rounding error.
NO_DEVIATION_OF_MEAN: Final = 3e-5


def plan_segments(
    n_bars: int, *, folds: int = FOLDS, purge_bars: int | None = None, embargo_bars: int = 0
) -> Int64Array:
    """Cuts int64[S + 1] of a series of ``n_bars``: rising, the first 0, the last ``n_bars``; S = 2 * folds - 1 is odd.

    ``folds`` folds of equal length (to one bar), between them gaps of ``max(purge_bars, embargo_bars)`` bars, at least
    one. ``purge_bars`` should be the longest warm-up or holding time where it is known; the default is 1 % of the
    bars, rounded up. A gap lies on both sides of a fold, so it purges before a test and embargoes after it.

    Where folds would have fewer than ``FOLD_BARS_MIN`` bars, or fewer than a gap, there are two fewer of them, down to
    ``FOLDS_MIN``; a series too short even for that is one segment, ``[0, n_bars]`` (``Segments.too_short``).
    Raises ``SpecError`` for fewer than 1 bar, an odd number of folds or fewer than 4, or negative gaps.
    """
    _whole("n_bars", n_bars, 1)
    _whole("folds", folds, FOLDS_MIN)
    _whole("embargo_bars", embargo_bars, 0)
    if folds % 2:
        raise SpecError("folds", folds, "an even number")
    if purge_bars is None:
        purge_bars = math.ceil(n_bars * PURGE_SHARE)
    _whole("purge_bars", purge_bars, 0)
    gap = max(purge_bars, embargo_bars, 1)
    for count in range(folds, FOLDS_MIN - 1, -2):
        in_folds = n_bars - (count - 1) * gap
        if in_folds // count >= max(FOLD_BARS_MIN, gap):
            place = np.arange(count, dtype=np.int64)
            starts = in_folds * place // count + gap * place
            stops = in_folds * (place + 1) // count + gap * place
            return np.stack([starts, stops], axis=1).ravel()
    return np.array([0, n_bars], dtype=np.int64)


@dataclass(frozen=True)
class Segments:
    """What each segment of ``cuts`` is for: even ones are folds, odd ones gaps; the last folds are held out.

    ``held_out`` is the share of the folds at the end that is not looked at in-sample, rounded, at least one and at
    most all but one. Raises ``SpecError`` for cuts that ``plan_segments`` would not make.
    """

    cuts: Int64Array
    held_out: float = HELD_OUT

    def __post_init__(self) -> None:
        cuts = self.cuts
        if cuts.dtype != np.int64 or cuts.ndim != 1 or cuts.size < 2 or cuts.size % 2:
            raise SpecError("cuts", f"{cuts.dtype}{cuts.shape}", "int64[S + 1] with an odd number S of segments")
        if cuts[0] != 0 or not (np.diff(cuts) > 0).all():
            raise SpecError("cuts", cuts.tolist(), "rising from 0")
        if not 0.0 < self.held_out < 1.0:
            raise SpecError("held_out", self.held_out, "a share between 0 and 1")

    @property
    def count(self) -> int:
        """S: how many segments, gaps included."""
        return self.cuts.size - 1

    @property
    def folds(self) -> int:
        """How many folds."""
        return (self.count + 1) // 2

    @property
    def too_short(self) -> bool:
        """Whether the series is one segment: nothing can be held out, every statistic of a split is undefined."""
        return self.folds < FOLDS_MIN

    @property
    def first_held_out(self) -> int:
        """The first fold that is held out; all from there on are."""
        return self.folds - min(max(1, round(self.held_out * self.folds)), self.folds - 1)

    def covering(self, folds: Iterable[int]) -> Int64Array:
        """int64: the segments of these folds and the gaps both of whose folds are among them, in order of time."""
        member = np.zeros(self.folds, dtype=np.bool_)
        member[list(folds)] = True
        chosen = np.zeros(self.count, dtype=np.bool_)
        chosen[::2] = member
        chosen[1::2] = member[:-1] & member[1:]
        return np.flatnonzero(chosen)

    @property
    def in_sample(self) -> Int64Array:
        """int64: all segments before the gap before the held-out folds; the only one if the series is too short."""
        return np.arange(1) if self.too_short else self.covering(range(self.first_held_out))

    @property
    def held_out_segments(self) -> Int64Array:
        """int64: the held-out folds and the gaps between them; empty if the series is too short."""
        none: Int64Array = np.empty(0, dtype=np.int64)
        return none if self.too_short else self.covering(range(self.first_held_out, self.folds))


class Pooled(NamedTuple):
    """Statistics of the bar returns in a union of segments, float64[m] each; not a number where undefined.

    ``deviation`` is the sample's (n - 1); ``skew`` and ``kurtosis`` (3 for the normal distribution) are the plain
    moment ratios m3 / m2^1.5 and m4 / m2^2. ``growth`` is ln(equity after / before), -inf after ruin.
    """

    returns: Float64Array
    mean: Float64Array
    deviation: Float64Array
    skew: Float64Array
    kurtosis: Float64Array
    growth: Float64Array

    @property
    def sharpe(self) -> Float64Array:
        """float64[m]: mean over deviation, per bar; times ``sqrt(periods_per_year)`` it is the yearly one."""
        return self.mean / self.deviation

    @property
    def total_return(self) -> Float64Array:
        """float64[m]: equity after over equity before, less 1; not a number where it exceeds a double."""
        with np.errstate(over="ignore"):
            gained = np.expm1(self.growth)
        return np.where(gained < np.inf, gained, np.nan)


def add_up(moments: Float64Array, segments: Int64Array) -> Float64Array:
    """float64[m, 6]: the sums of float64[m, S, 6] over some of its segments, added in order of time."""
    total = np.zeros((moments.shape[0], len(MOMENTS)))
    for rows in chunks(moments.shape[0]):
        for segment in segments:
            total[rows] += moments[rows, segment]
    return total


def chunks(rows: int, size: int = 16_384) -> Iterator[slice]:
    """Rows some at a time: the moments of these fit a processor's cache, those of a million may lie in a file."""
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def pool(moments: Float64Array, segments: Int64Array) -> Pooled:
    """The statistics of some segments of float64[m, S, 6]; memory of the order of m."""
    return pooled(add_up(moments, segments))


def pooled(total: Float64Array) -> Pooled:
    """The statistics that sums float64[m, 6] amount to.

    Powers are summed about zero. With bar returns this costs nothing that matters: the variance loses the digits that
    (mean / deviation)^2 has before the point, and that ratio is far below 1. Where it is not, for returns as good as
    constant, deviation, skew and kurtosis are not a number.
    """
    count, first, second, third, fourth, growth = (total[:, i] for i in range(len(MOMENTS)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = first / count
        variance = second / count - mean**2
        variance = np.where(_no_noise(variance, mean), variance, np.nan)
        deviation = np.sqrt(variance * count / np.where(count > 1, count - 1, np.nan))
        skew = (third / count - 3.0 * mean * second / count + 2.0 * mean**3) / variance**1.5
        tail = fourth / count - 4.0 * mean * third / count + 6.0 * mean**2 * second / count - 3.0 * mean**4
        return Pooled(count, mean, deviation, skew, tail / variance**2, growth)


def sharpe_of(count: Float64Array, first: Float64Array, second: Float64Array) -> Float64Array:
    """Per-bar Sharpe ratios from how many, sum r and sum r^2 (shapes that broadcast); not a number where undefined."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        mean = first / count
        variance = second / count - mean * mean
        sharpe = mean / np.sqrt(variance * (count / (count - 1)))
        sharpe[~_no_noise(variance, mean)] = np.nan
    return sharpe


def complete_rows(moments: Float64Array) -> Int64Array:
    """int64: the rows whose moments are all there; a set that was stopped early lacks its last segments (NaN)."""
    whole = np.empty(moments.shape[0], dtype=np.bool_)
    for rows in chunks(moments.shape[0]):
        sums, growth = moments[rows, :, :GROWTH], moments[rows, :, GROWTH]
        whole[rows] = np.isfinite(sums).all(axis=(1, 2)) & ~np.isnan(growth).any(axis=1)
    return np.flatnonzero(whole)


def _no_noise(variance: Float64Array, mean: Float64Array) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Whether a variance is more than the rounding of the sums it is made of."""
    return variance > np.maximum(NO_DEVIATION**2, (NO_DEVIATION_OF_MEAN * mean) ** 2)


def _whole(field: str, value: object, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < lowest:
        raise SpecError(field, value, f"a whole number, at least {lowest}")
