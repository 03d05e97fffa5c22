"""Two runs against each other, in numbers: the parameter sets both have, and their best sets' equity curves."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.run_folder import LOWER_IS_BETTER
from strategies.metrics import METRICS, NS_PER_YEAR
from strategies.model import Float64Array, Int64Array
from strategies.segments import HONEST_COLUMNS
from strategies.validation import rank_correlation

if TYPE_CHECKING:
    import pyarrow as pa

# Of fewer returns a difference of Sharpe ratios says nothing.
RETURNS_MIN: Final = 30


@dataclass(frozen=True, slots=True)
class Largest:
    """The set whose figure differs most, and the figure in both runs."""

    strategy: str
    params: dict[str, float]
    base: float
    other: float
    difference: float  # other - base


@dataclass(frozen=True, slots=True)
class MetricDifference:
    """One figure over the common sets. ``equal`` are equal bit for bit (or undefined in both)."""

    metric: str
    equal: int
    undefined_in_one: int
    largest: Largest | None
    median_difference: float | None  # other - base, over sets where both are numbers
    other_better: float | None  # the share of those in which the other run's figure is the better one
    rank_correlation: float | None  # Spearman


@dataclass(frozen=True, slots=True)
class CommonSets:
    """Parameter sets that both runs have run on the whole of their bars: same strategy, same parameters.

    A user's strategy counts as the same under the same name, also where its file has changed. ``partly`` more are in
    both, but a search has run them on a part of the bars in one. ``identical``: equal bit for bit in every metric.
    """

    sets: int
    partly: int
    identical: int
    metrics: tuple[MetricDifference, ...]


@dataclass(frozen=True, slots=True)
class CurveDifference:
    """The best sets' equity curves over the bars both have (``about``: all of them, or those both runs held out).

    Sharpe ratios are yearly. ``z`` and ``p_value`` (two-sided) are of no difference between the true Sharpe ratios:
    J. D. Jobson and B. M. Korkie 1981 with C. Memmel's correction of 2003. They take returns for independent over time
    and know nothing of how the two sets were chosen. None: the curves are the same, or too short.
    """

    about: str
    returns: int
    base_sharpe: float | None
    other_sharpe: float | None
    base_return: float | None
    other_return: float | None
    correlation: float | None
    z: float | None
    p_value: float | None


def common_sets(base: pa.Table, other: pa.Table) -> CommonSets:
    """Compare the rows of two tables of results that are of the same sets, whatever order they are in."""
    rows, partners, partly = _matched(base, other)
    names = [name for name in (*METRICS, *HONEST_COLUMNS) if name in base.column_names and name in other.column_names]
    identical = np.ones(len(rows), dtype=np.bool_)
    found = []
    for name in names:
        ours, theirs = base[name].to_numpy()[rows], other[name].to_numpy()[partners]
        equal = _equal(ours, theirs)
        if name in METRICS:
            identical &= equal
        found.append(_difference(name, ours, theirs, equal, base, rows))
    return CommonSets(len(rows), partly, int(identical.sum()), tuple(found))


def scatter(base: pa.Table, other: pa.Table, metric: str, points_max: int, seed: int = 0) -> dict[str, list[Any]]:
    """Some of the common sets' figures in both runs, for a picture: ``base``, ``other`` and ``text`` (the set)."""
    rows, partners, _ = _matched(base, other)
    ours, theirs = base[metric].to_numpy()[rows], other[metric].to_numpy()[partners]
    known = np.flatnonzero(np.isfinite(ours) & np.isfinite(theirs))
    if len(known) > points_max:
        known = np.sort(np.random.default_rng(seed).choice(known, points_max, replace=False))
    sets = base.select(["strategy", "params"]).take(rows[known]).to_pylist()
    texts = [f"{row['strategy']} {row['params']}" for row in sets]
    return {"base": ours[known].tolist(), "other": theirs[known].tolist(), "text": texts}


def curve_difference(
    about: str, base: tuple[Int64Array, Float64Array], other: tuple[Int64Array, Float64Array], from_ns: int = 0
) -> CurveDifference:
    """Compare two curves, each (ts_ns int64[n], equity float64[n]), over the bars of both that begin at ``from_ns``."""
    stamps, ours, theirs = np.intersect1d(base[0], other[0], assume_unique=True, return_indices=True)
    kept = stamps >= from_ns
    stamps, one, two = stamps[kept], base[1][ours[kept]], other[1][theirs[kept]]
    empty = CurveDifference(about, max(0, len(stamps) - 1), *[None] * 7)
    # After ruin there are no returns any more.
    if len(stamps) <= RETURNS_MIN or not ((one > 0).all() and (two > 0).all()):
        return empty
    first, second = np.diff(one) / one[:-1], np.diff(two) / two[:-1]
    count = len(first)
    per_year = count / ((int(stamps[-1]) - int(stamps[0])) / NS_PER_YEAR)
    base_sharpe, other_sharpe = (
        float(each.mean() / each.std(ddof=1)) if each.std() > 0 else math.nan for each in (first, second)
    )
    undefined = math.isnan(base_sharpe + other_sharpe)
    correlation = math.nan if undefined else float(np.corrcoef(first, second)[0, 1])
    z = _memmel(base_sharpe, other_sharpe, correlation, count)
    root = math.sqrt(per_year)
    return CurveDifference(
        about,
        count,
        _number(base_sharpe * root),
        _number(other_sharpe * root),
        _number(one[-1] / one[0] - 1),
        _number(two[-1] / two[0] - 1),
        _number(correlation),
        _number(z),
        _number(math.erfc(abs(z) / math.sqrt(2))),
    )


def _memmel(first: float, second: float, correlation: float, returns: int) -> float:
    """z of two Sharpe ratios per bar being different; not a number where the curves are the same."""
    if math.isnan(correlation):
        return math.nan
    spread = 2 - 2 * correlation + 0.5 * (first**2 + second**2 - 2 * first * second * correlation**2)
    return (second - first) / math.sqrt(spread / returns) if spread > 1e-12 else math.nan


def _matched(base: pa.Table, other: pa.Table) -> tuple[Int64Array, Int64Array, int]:
    """int64[c], int64[c]: the rows of the common sets in both tables; and how many more are of a part of the bars."""
    import pyarrow.compute as pc

    places = pc.index_in(_names(other), value_set=_names(base))
    partners = np.flatnonzero(pc.is_valid(places).to_numpy(zero_copy_only=False))
    rows = places.take(partners).to_numpy().astype(np.int64)
    rows, firsts = np.unique(rows, return_index=True)
    partners = partners[firsts]
    whole = _whole(base)[rows] & _whole(other)[partners]
    return rows[whole], partners[whole], int((~whole).sum())


def _names(table: pa.Table) -> pa.Array:
    """Each row's strategy, without the hash of its file, and parameters as one text."""
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(table["strategy"], "@.*", "")
    return pc.binary_join_element_wise(plain, table["params"], "\n").combine_chunks()


def _whole(table: pa.Table) -> NDArray[np.bool_]:
    if "history" not in table.column_names:
        return np.ones(table.num_rows, dtype=np.bool_)
    return np.asarray(table["history"].to_numpy() >= 1.0)


def _equal(ours: Float64Array, theirs: Float64Array) -> NDArray[np.bool_]:
    same = np.ascontiguousarray(ours).view(np.int64) == np.ascontiguousarray(theirs).view(np.int64)
    return np.asarray(same | (np.isnan(ours) & np.isnan(theirs)))


def _difference(
    name: str,
    ours: Float64Array,
    theirs: Float64Array,
    equal: NDArray[np.bool_],
    base: pa.Table,
    rows: Int64Array,
) -> MetricDifference:
    both = np.isfinite(ours) & np.isfinite(theirs)
    change = np.where(both, np.where(both, theirs, 0.0) - np.where(both, ours, 0.0), 0.0)
    largest = None
    if (change != 0.0).any():
        place = int(np.argmax(np.abs(change)))
        (row,) = base.select(["strategy", "params"]).take(rows[place : place + 1]).to_pylist()
        figures = (float(ours[place]), float(theirs[place]), float(change[place]))
        largest = Largest(row["strategy"], json.loads(row["params"]), *figures)
    better = change < 0 if name in LOWER_IS_BETTER else change > 0
    return MetricDifference(
        name,
        int(equal.sum()),
        int((np.isnan(ours) != np.isnan(theirs)).sum()),
        largest,
        _number(float(np.median(change[both]))) if both.any() else None,
        _number(float(better[both].mean())) if both.any() else None,
        _number(rank_correlation(ours, theirs)),
    )


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
