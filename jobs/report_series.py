"""Series made small enough for a page: thinned curves, aggregated candles, months, distributions, a benchmark beside.

Pure functions on arrays; what they keep is said and tested: a thinned curve its highest, its lowest and its deepest
fall, a candle its bars' open, high, low, close and volume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.special import ndtr

from strategies.metrics import NS_PER_YEAR
from strategies.model import Bars, Float64Array, Int64Array

NS_PER_DAY: Final = 86_400 * 10**9
HISTOGRAM_BINS: Final = 60
# Of fewer returns moments and quantiles say nothing.
RETURNS_MIN: Final = 20


class Candles(NamedTuple):
    """``per`` bars a candle from bar ``first`` on: start times int64[m], open, high, low, close, volume float64[m]."""

    first: int
    per: int
    ts_ns: Int64Array
    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array


class RoundTrip(NamedTuple):
    """From flat to flat (or to the other side): the net result in quote units, and as a share of what was put in."""

    entry_bar: int
    exit_bar: int
    side: int
    result: float
    share: float


def sample(values: Float64Array, points_max: int) -> Int64Array:
    """Positions of at most ``points_max`` values, rising, first and last included: the lowest and the highest of each
    of equal stretches, so that peaks and drawdowns stay."""
    if len(values) <= points_max:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (points_max - 2) // 2 + 1).astype(np.int64)
    chosen = {0, len(values) - 1}
    for start, stop in itertools.pairwise(edges.tolist()):
        chosen.add(start + int(values[start:stop].argmin()))
        chosen.add(start + int(values[start:stop].argmax()))
    return np.array(sorted(chosen), dtype=np.int64)


def curve_points(equity: Float64Array, points_max: int) -> Int64Array:
    """``sample`` with the deepest fall's peak and trough, which need not be a stretch's extremes; at most 2 more."""
    falls = drawdown(equity)
    trough = int(falls.argmax())
    peak = int(equity[: trough + 1].argmax())
    return np.union1d(sample(equity, points_max), [peak, trough]).astype(np.int64)


def drawdown(equity: Float64Array, initial_cash: float = 0.0) -> Float64Array:
    """float64[n]: how far below its highest value so far the equity is, as a fraction of that value.

    As in the metric the initial cash counts as a value before the first.
    """
    return np.asarray(1.0 - equity / np.maximum(np.maximum.accumulate(equity), initial_cash))


def candles_of(bars: Bars, first: int, per: int) -> Candles:
    """Bars from ``first`` on, ``per`` together (the last candle may have fewer): first open, highest high, lowest low,
    last close, volumes added up."""
    starts = np.arange(first, len(bars), per)
    ends = np.append(starts[1:], len(bars)) - 1
    return Candles(
        first,
        per,
        bars.ts_ns[starts],
        bars.open[starts],
        np.maximum.reduceat(bars.high, starts),
        np.minimum.reduceat(bars.low, starts),
        bars.close[ends],
        np.add.reduceat(bars.volume, starts),
    )


def ladder(bars: Bars, candles_max: int, step: int = 4) -> list[Candles]:
    """The whole series in at most ``candles_max`` candles, then ever shorter last parts of it in ever finer ones, the
    last of them in single bars."""
    levels = []
    length = len(bars)
    while True:
        per = math.ceil(length / candles_max)
        first = len(bars) - length
        levels.append(candles_of(bars, first - first % per, per))
        if per == 1:
            return levels
        length = max(length // step, min(length, candles_max))


def monthly_returns(ts_ns: Int64Array, equity: Float64Array, initial_cash: float) -> list[tuple[int, list[float]]]:
    """(year, twelve returns as fractions and the year's) for each year, oldest first; NaN for months without a bar.

    A month's return is its last equity over the last equity before it (at first, the initial cash) less 1.
    """
    months = ts_ns.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)  # months since January 1970
    last = np.append(np.flatnonzero(np.diff(months)), len(months) - 1)
    closing = equity[last]
    opening = np.concatenate([[initial_cash], closing[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = np.where(opening > 0, closing / opening - 1, np.nan)
    years: dict[int, list[float]] = {}
    growth: dict[int, float] = {}
    for month, change in zip(months[last].tolist(), returns.tolist(), strict=True):
        year = 1970 + month // 12
        years.setdefault(year, [math.nan] * 12)[month % 12] = change
        growth[year] = growth.get(year, 1.0) * (1 + change)
    return [(year, [*changes, growth[year] - 1]) for year, changes in years.items()]


def day_ends(ts_ns: Int64Array) -> Int64Array:
    """Positions of the last bar of each UTC day that has one."""
    days = ts_ns // NS_PER_DAY
    return np.append(np.flatnonzero(np.diff(days)), len(days) - 1).astype(np.int64)


def returns_of(values: Float64Array) -> Float64Array:
    """float64[n - 1]: value over the one before less 1; 0 after ruin, as the metrics have it."""
    before = values[:-1]
    out = np.zeros(len(before))
    np.divide(values[1:] - before, before, out=out, where=before > 0)
    return out


def per_year(ts_ns: Int64Array) -> float:
    """How many of these returns a year has, by their own times; NaN for fewer than two."""
    years = (int(ts_ns[-1]) - int(ts_ns[0])) / NS_PER_YEAR
    return (len(ts_ns) - 1) / years if years > 0 else math.nan


def distribution(returns: Float64Array, bins: int = HISTOGRAM_BINS) -> dict[str, Any] | None:
    """Moments, tails and a histogram of a sample with what a normal distribution of its mean and deviation would give.

    None for fewer than ``RETURNS_MIN`` values or all alike. ``value_at_risk`` is the loss that is exceeded in 5 (1) %
    of cases, ``expected_shortfall`` the mean loss of those (Rockafellar, Uryasev 2000), both positive for a loss. The
    histogram reaches from the 0.25 % to the 99.75 % quantile at least; its end bins hold what lies beyond.
    """
    known = returns[np.isfinite(returns)]
    deviation = float(known.std(ddof=1)) if known.size >= RETURNS_MIN else 0.0
    if not deviation > 1e-14:
        return None
    mean = float(known.mean())
    scaled = (known - mean) / known.std()
    low, high = np.quantile(known, (0.0025, 0.9975))
    low, high = min(float(low), mean - 2 * deviation), max(float(high), mean + 2 * deviation)
    edges = np.linspace(low, high, bins + 1)
    counts, _ = np.histogram(np.clip(known, low, high), edges)
    within = np.diff(ndtr((edges - mean) / deviation))
    within[0], within[-1] = ndtr((edges[1] - mean) / deviation), 1 - ndtr((edges[-2] - mean) / deviation)
    tails = {f"{name}_{level}": value for level in (95, 99) for name, value in _tail(known, level).items()}
    return {
        "count": int(known.size),
        "mean": mean,
        "deviation": deviation,
        "skew": float((scaled**3).mean()),
        "excess_kurtosis": float((scaled**4).mean() - 3),
        "best": float(known.max()),
        "worst": float(known.min()),
        "above_zero": float((known > 0).mean()),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "normal": (within * known.size).tolist(),
    } | tails


def _tail(known: Float64Array, level: int) -> dict[str, float]:
    border = float(np.quantile(known, 1 - level / 100))
    return {"value_at_risk": -border, "expected_shortfall": -float(known[known <= border].mean())}


def benchmark_figures(mine: Float64Array, other: Float64Array, returns_per_year: float) -> dict[str, float] | None:
    """A curve's returns beside a benchmark's of the same times: regression, captures, tracking. None for too few.

    alpha is Jensen's (1968), yearly; beta and it from ordinary least squares; captures are the mean return in periods
    in which the benchmark rose (fell) over the benchmark's mean in these; the information ratio is the mean excess
    return over its deviation (Goodwin 1998), yearly.
    """
    if len(mine) < RETURNS_MIN or not math.isfinite(returns_per_year) or not other.std() > 1e-14:
        return None
    beta = float(np.cov(mine, other)[0, 1] / other.var(ddof=1))
    excess = mine - other
    root = math.sqrt(returns_per_year)
    error = float(excess.std(ddof=1)) * root
    moves = float(mine.std()) > 1e-14
    return {
        "returns": float(len(mine)),
        "alpha": float((mine.mean() - beta * other.mean()) * returns_per_year),
        "beta": beta,
        "correlation": float(np.corrcoef(mine, other)[0, 1]) if moves else math.nan,
        "up_capture": _capture(mine, other, other > 0),
        "down_capture": _capture(mine, other, other < 0),
        "tracking_error": error,
        "information_ratio": float(excess.mean()) * returns_per_year / error if error > 1e-12 else math.nan,
    }


def _capture(mine: Float64Array, other: Float64Array, chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> float:
    return float(mine[chosen].mean() / other[chosen].mean()) if chosen.any() else math.nan


def curve_figures(ts_ns: Int64Array, equity: Float64Array, initial_cash: float) -> dict[str, float]:
    """Total return, CAGR, volatility, Sharpe and the deepest fall of any curve, as strategies/metrics.py has them."""
    returns, yearly = returns_of(equity), per_year(ts_ns)
    deviation = float(returns.std(ddof=1)) if len(returns) > 1 else math.nan
    years = (int(ts_ns[-1]) - int(ts_ns[0])) / NS_PER_YEAR
    growth = float(equity[-1]) / initial_cash
    powered = math.log(growth) / years if growth > 0 and years > 0 else math.nan
    return {
        "total_return": growth - 1,
        "cagr": math.expm1(powered) if powered < 700 else math.nan,
        "volatility": deviation * math.sqrt(yearly),
        "sharpe": float(returns.mean()) / deviation * math.sqrt(yearly) if deviation > 1e-14 else math.nan,
        "max_drawdown": float(drawdown(equity, initial_cash).max()),
    }


def round_trips(
    bar: Sequence[int],
    side: Sequence[int],
    price: Sequence[float],
    quantity: Sequence[float],
    fee: Sequence[float],
) -> list[RoundTrip]:
    """One product's fills as round trips, at average cost with its fees; a position still open is none."""
    trips: list[RoundTrip] = []
    held = paid = spent = 0.0
    entry = 0
    for at, sign, each, much, cost in zip(bar, side, price, quantity, fee, strict=True):
        left = sign * much
        # Signs, not a product: after ruin quantities are so small that it would be 0.
        if (held > 0 and left < 0) or (held < 0 and left > 0):
            part = min(1.0, abs(held / left))
            closing = left * part
            paid += closing * each + cost * part
            held += closing
            if abs(held) <= 1e-9 * much:
                trips.append(RoundTrip(entry, at, -sign, -paid, -paid / spent if spent > 0 else math.nan))
                held = paid = spent = 0.0
            left -= closing
            cost *= 1 - part
        if abs(left) > 1e-9 * much:
            entry = at if held == 0 else entry
            held += left
            paid += left * each + cost
            spent += abs(left) * each
    return trips
