"""What else could have happened to one set: its returns in other blocks, its trades in another order.

Seeded, and only drawn, multiplied, added and compared (IEEE 754 fixes those), so a seed gives the same draws on any
machine; only yearly growth goes through a library's power and may differ in its last digit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from strategies.base import SpecError
from strategies.metrics import EQUAL_WITHIN, NO_DEVIATION
from strategies.model import Float64Array, Int64Array

DRAWS: Final = 1_000
# A longer series is compounded into this many periods at most; more bars tell no more about its interval's ends.
PERIODS_MAX: Final = 8_192
# Trades times draws: some one and a half seconds on one core.
TRADE_DRAWS_MAX: Final = 10_000_000
TRADE_DRAWS_MIN: Final = 100
_BATCH: Final = 1_000_000


@dataclass(frozen=True)
class Resampled:
    """Results of ``draws`` resampled series, float64[draws] each; ``observed_…`` are those of the series itself.

    ``sharpe`` and ``cagr`` are yearly, ``max_drawdown`` a fraction. ``block`` is the mean block in periods, ``period``
    how many bars were compounded into one.
    """

    sharpe: Float64Array
    cagr: Float64Array
    max_drawdown: Float64Array
    observed_sharpe: float
    observed_cagr: float
    observed_max_drawdown: float
    block: float
    period: int


def bootstrap(
    returns: Float64Array, per_year: float, *, seed: int, draws: int = DRAWS, block: float | None = None
) -> Resampled:
    """Stationary bootstrap of bar returns float64[n]: blocks from anywhere in the series, of geometric length, mean
    ``block`` periods (default: cube root of their number, the order that Politis and Romano find best), laid end to
    end until there are as many as in the series, which is a circle.

    Source: D. N. Politis and J. P. Romano, "The Stationary Bootstrap", Journal of the American Statistical
    Association, 1994. It keeps dependence within blocks, so intervals are honest where volatility comes in clusters;
    it does not invent what the series never saw. More than ``PERIODS_MAX`` bars are compounded to periods first: the
    figures are then those of the periods, and a drawdown within a period is not seen.

    Raises ``SpecError`` for returns that are not finite or below -1, no draws, or a block below 1.
    """
    if returns.ndim != 1 or not (np.isfinite(returns).all() and (returns >= -1.0).all()):
        raise SpecError("returns", returns.shape, "finite returns of -1 or more, float64[n]")
    if draws < 1:
        raise SpecError("draws", draws, "at least 1")
    period = max(1, math.ceil(returns.size / PERIODS_MAX))
    series = _compounded(returns, period)
    mean_block = max(1.0, round(series.size ** (1 / 3))) if block is None else block
    if not 1.0 <= mean_block < math.inf:
        raise SpecError("block", block, "at least 1 period")
    a_year = per_year / period
    if series.size < 2:
        none = np.full(draws, np.nan)
        return Resampled(none, none, none, np.nan, np.nan, np.nan, mean_block, period)
    generator = np.random.Generator(np.random.Philox(seed))
    found = np.concatenate(
        [
            _figures(series[_blocks(generator, rows, series.size, mean_block)], a_year)
            for rows in _batches(draws, series.size)
        ],
        axis=1,
    )
    own = _figures(series[np.newaxis], a_year)[:, 0].tolist()
    return Resampled(found[0], found[1], found[2], own[0], own[1], own[2], mean_block, period)


@dataclass(frozen=True)
class Reordered:
    """Results of ``draws`` sequences of the same trades, float64[draws] each; the drawdowns at the trades' ends.

    ``shuffled``: each trade once in another order, which changes the way and not the end. ``drawn``: as many trades
    drawn with replacement, which changes the end as well.
    """

    trades: int
    shuffled_max_drawdown: Float64Array
    drawn_max_drawdown: Float64Array
    drawn_return: Float64Array
    observed_max_drawdown: float
    observed_return: float


def reorder_trades(results: Float64Array, *, seed: int, draws: int = DRAWS) -> Reordered:
    """Trade-order Monte Carlo of trade results float64[t] (equity after over equity before, less 1; -1 or more).

    It takes trades for independent of each other and of what came before. Drawdowns within a trade are not seen, so
    the observed one is less deep than the equity curve's. ``draws`` is reduced, not below 100, where trades times
    draws exceed ``TRADE_DRAWS_MAX``. Source: K. Tharp, "Trade Your Way to Financial Freedom", 1998, on simulating a
    system's trades as marbles from a bag. Raises ``SpecError`` for results that are not finite or below -1.
    """
    if results.ndim != 1 or not (np.isfinite(results).all() and (results >= -1.0).all()):
        raise SpecError("results", results.shape, "finite results of -1 or more, float64[t]")
    if draws < 1:
        raise SpecError("draws", draws, "at least 1")
    trades = results.size
    if not trades:
        none = np.empty(0)
        return Reordered(0, none, none, none, np.nan, np.nan)
    wanted = min(draws, max(TRADE_DRAWS_MIN, TRADE_DRAWS_MAX // trades))
    generator = np.random.Generator(np.random.Philox(seed))
    shuffled, drawn, ends = [], [], []
    for rows in _batches(wanted, trades):
        orders = np.argsort(generator.random((rows, trades)), axis=1, kind="stable")
        shuffled.append(_max_drawdowns(_curves(results[orders])))
        curves = _curves(results[(generator.random((rows, trades)) * trades).astype(np.int64)])
        drawn.append(_max_drawdowns(curves))
        ends.append(curves[:, -1] - 1.0)
    own = _curves(results[np.newaxis])
    return Reordered(
        trades,
        np.concatenate(shuffled),
        np.concatenate(drawn),
        np.concatenate(ends),
        float(_max_drawdowns(own)[0]),
        float(own[0, -1] - 1.0),
    )


def trade_results(equity: Float64Array, position_units: Float64Array, initial_cash: float) -> Float64Array:
    """The result of each round trip, float64[t], from equity and position float64[n] at each close (as in ``Result``).

    A trade begins with the bar at whose close a position, or one of the other sign, is first held, and ends with the
    bar at whose close it is not held any more; one still open at the end counts. The result is equity at its last
    close over equity at the close before it, less 1, so the results compound to the total return exactly. At a
    reversal the old position's way from the last close to the fill counts for the new trade; a position opened and
    closed within one bar is a trade of that bar. After ruin there are none.
    """
    before = np.concatenate([[initial_cash], equity[:-1]])
    sign = np.sign(position_units)
    last_sign = np.concatenate([[0.0], sign[:-1]])
    starts = ((sign != last_sign) & (sign != 0.0)) | ((sign == 0.0) & (last_sign == 0.0) & (equity != before))
    begins = np.flatnonzero(starts & (before > 0.0))
    if not begins.size:
        return np.empty(0)
    bounds = np.concatenate([before[begins], equity[-1:]])
    return np.asarray(bounds[1:] / bounds[:-1] - 1.0)


def bar_returns(equity: Float64Array) -> Float64Array:
    """float64[n - 1]: the bars' returns as metrics take them, 0 after ruin."""
    before = equity[:-1]
    return np.divide(equity[1:], before, out=np.ones_like(before), where=before > 0.0) - 1.0


def _blocks(generator: np.random.Generator, rows: int, length: int, mean_block: float) -> Int64Array:
    """int64[rows, length]: positions in a circle; each continues the one before but for a new block's start."""
    fresh = generator.random((rows, length)) < 1.0 / mean_block
    fresh[:, 0] = True
    place = np.arange(length)
    begun = np.maximum.accumulate(np.where(fresh, place, 0), axis=1)
    start = (generator.random((rows, length)) * length).astype(np.int64)
    return np.asarray((np.take_along_axis(start, begun, axis=1) + place - begun) % length)


def _figures(series: Float64Array, per_year: float) -> Float64Array:
    """float64[3, rows]: yearly Sharpe and growth, and the deepest drawdown, of float64[rows, n]."""
    curves = _curves(series)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        deviation = series.std(axis=1, ddof=1)
        sharpe = np.where(deviation > NO_DEVIATION, series.mean(axis=1) / deviation * math.sqrt(per_year), np.nan)
        cagr = curves[:, -1] ** (per_year / series.shape[1]) - 1.0
    return np.stack([sharpe, np.where(np.isfinite(cagr), cagr, np.nan), _max_drawdowns(curves)])


def _curves(results: Float64Array) -> Float64Array:
    """float64[rows, n]: equity from 1 by compounding; doubles hold what a million trades may come to or it is huge."""
    with np.errstate(over="ignore"):
        return np.asarray(np.minimum(np.cumprod(1.0 + results, axis=1), np.finfo(np.float64).max))


def _max_drawdowns(curves: Float64Array) -> Float64Array:
    """float64[rows]: the deepest fall from the highest point so far, at least the start; below 1e-12 it is 0."""
    peaks = np.maximum(np.maximum.accumulate(curves, axis=1), 1.0)
    deepest = (1.0 - curves / peaks).max(axis=1)
    return np.where(deepest > EQUAL_WITHIN, deepest, 0.0)


def _compounded(returns: Float64Array, period: int) -> Float64Array:
    if period == 1:
        return returns
    starts = np.arange(0, returns.size, period)
    return np.asarray(np.multiply.reduceat(1.0 + returns, starts) - 1.0)


def _batches(draws: int, length: int) -> Iterator[int]:
    """How many rows at a time: memory stays below some ten megabytes an array whatever is asked for."""
    most = max(1, _BATCH // length)
    for first in range(0, draws, most):
        yield min(most, draws - first)
