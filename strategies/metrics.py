"""The metrics of a run: one function each, with its formula and its source.

Conventions. ``equity[i]`` is the equity at the close of bar i; the return of bar i is ``equity[i] / equity[i-1] - 1``
(0 after ruin), so n bars have n - 1 returns; the risk-free rate is 0. A year has 365.25 days of 24 hours, and the
number of returns a year follows from the bars' own times (``periods_per_year``), gaps included. Values are fractions,
not per cent. Every metric is finite, or NaN where it is undefined; it is never infinite.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from strategies.compiled import compiled
from strategies.model import Float64Array, Int64Array

METRICS: Final[tuple[str, ...]] = (
    "total_return",
    "cagr",
    "volatility",
    "sharpe",
    "sortino",
    "calmar",
    "max_drawdown",
    "max_drawdown_bars",
    "exposure",
    "turnover",
    "trades",
    "win_rate",
    "profit_factor",
)
# Of the returns of a segment of bars; ``moments_of`` says which.
MOMENTS: Final[tuple[str, ...]] = ("returns", "sum", "sum2", "sum3", "sum4", "growth")
NS_PER_YEAR: Final = 365.25 * 86_400 * 1e9

# A return is 1 + r - 1, so it carries a rounding error of some 2e-16: a deviation below this is noise, not risk.
NO_DEVIATION: Final = 1e-14
# Equities closer than this, relative to each other, are equal: falls and trade results within it are noise as well.
EQUAL_WITHIN: Final = 1e-12


class Tallies(NamedTuple):
    """What one pass over a run leaves behind; everything the metrics are made of."""

    bars: int
    initial_cash: float
    final_equity: float
    mean_return: float
    squared_deviations: float  # sum over returns of (r - mean)^2
    squared_losses: float  # sum over returns of min(r, 0)^2
    deepest_drawdown: float
    deepest_drawdown_bars: int
    bars_held: int
    traded_fractions: float  # sum over fills of notional / equity
    trades: int
    wins: int
    gross_profit: float
    gross_loss: float


@compiled
def metrics_of(tallies: Tallies, years: float) -> Float64Array:
    """float64[13] in the order of ``METRICS``; ``years`` is the time from the first bar's start to the last one's."""
    returns = tallies.bars - 1
    per_year = periods_per_year(tallies.bars, years)
    deviation = math.sqrt(tallies.squared_deviations / (returns - 1)) if returns > 1 else math.nan
    loss_deviation = math.sqrt(tallies.squared_losses / returns) if returns > 0 else math.nan
    growth = cagr(tallies.initial_cash, tallies.final_equity, years)
    result = np.empty(13)
    result[0] = total_return(tallies.initial_cash, tallies.final_equity)
    result[1] = growth
    result[2] = volatility(deviation, per_year)
    result[3] = sharpe(tallies.mean_return, deviation, per_year)
    result[4] = sortino(tallies.mean_return, loss_deviation, per_year)
    result[5] = calmar(growth, tallies.deepest_drawdown)
    result[6] = tallies.deepest_drawdown
    result[7] = tallies.deepest_drawdown_bars
    result[8] = exposure(tallies.bars_held, tallies.bars)
    result[9] = turnover(tallies.traded_fractions, years)
    result[10] = tallies.trades
    result[11] = win_rate(tallies.wins, tallies.trades)
    result[12] = profit_factor(tallies.gross_profit, tallies.gross_loss)
    return result


@compiled
def moments_of(equity: Float64Array, cuts: Int64Array, initial_cash: float, result: Float64Array) -> None:
    """Fill ``result`` float64[S, 6], columns as ``MOMENTS``, for the segments between ``cuts`` int64[S + 1].

    Of the returns of the bars from ``cuts[s]`` to before ``cuts[s + 1]`` (bar 0 has none): how many, and the sums of
    their first, second, third and fourth powers. ``growth`` is the logarithm of the equity at the segment's last close
    over that at the close before the segment, for the first segment over the initial cash; minus infinity from ruin
    on. Segments add up: the sums to the whole run's, the growths to ``log(1 + total_return)``.
    """
    before = initial_cash
    for s in range(cuts.size - 1):
        first, last = cuts[s], cuts[s + 1] - 1
        previous = before
        sum1 = sum2 = sum3 = sum4 = 0.0
        for i in range(first, last + 1):
            if i > 0 and previous > 0.0:
                change = equity[i] / previous - 1.0
                square = change * change
                sum1 += change
                sum2 += square
                sum3 += square * change
                sum4 += square * square
            previous = equity[i]
        result[s, 0] = last - first + (1 if first > 0 else 0)
        result[s, 1], result[s, 2], result[s, 3], result[s, 4] = sum1, sum2, sum3, sum4
        result[s, 5] = math.log(previous / before) if previous > 0.0 else -math.inf
        before = previous


@compiled
def periods_per_year(bars: int, years: float) -> float:
    """Returns a year: ``(bars - 1) / years``, the mean spacing, so that gaps count as time; NaN for one bar."""
    return (bars - 1) / years if years > 0.0 else math.nan


@compiled
def total_return(initial_cash: float, final_equity: float) -> float:
    """``final_equity / initial_cash - 1``; -1 after ruin."""
    return final_equity / initial_cash - 1.0


@compiled
def cagr(initial_cash: float, final_equity: float, years: float) -> float:
    """Compound annual growth rate: ``(final_equity / initial_cash) ** (1 / years) - 1``.

    NaN for one bar, and where the power exceeds a double (a gain within minutes, told as a yearly rate).
    """
    if not years > 0.0:
        return math.nan
    growth = (final_equity / initial_cash) ** (1.0 / years) - 1.0
    return growth if growth < math.inf else math.nan


@compiled
def volatility(deviation: float, per_year: float) -> float:
    """Sample standard deviation of the returns (n - 2 degrees of freedom for n bars) times sqrt(periods_per_year).

    NaN with fewer than two returns.
    """
    return deviation * math.sqrt(per_year)


@compiled
def sharpe(mean_return: float, deviation: float, per_year: float) -> float:
    """``mean / deviation * sqrt(periods_per_year)`` with a risk-free rate of 0.

    Source: W. F. Sharpe, "The Sharpe Ratio", Journal of Portfolio Management, 1994. NaN with fewer than two returns
    or without deviation.
    """
    return mean_return / deviation * math.sqrt(per_year) if deviation > NO_DEVIATION else math.nan


@compiled
def sortino(mean_return: float, loss_deviation: float, per_year: float) -> float:
    """``mean / sqrt(mean over all returns of min(r, 0)^2) * sqrt(periods_per_year)``, the wanted return being 0.

    Source: F. A. Sortino and L. N. Price, "Performance Measurement in a Downside Risk Framework", Journal of
    Investing, 1994. NaN without a losing bar.
    """
    return mean_return / loss_deviation * math.sqrt(per_year) if loss_deviation > NO_DEVIATION else math.nan


@compiled
def calmar(growth: float, deepest_drawdown: float) -> float:
    """``cagr / max_drawdown`` over the whole run.

    Source: T. W. Young, "Calmar Ratio: A Smoother Tool", Futures, 1991 (there over 36 months). NaN without drawdown.
    """
    return growth / deepest_drawdown if deepest_drawdown > 0.0 else math.nan


@compiled
def drawdown(equity: float, peak: float) -> float:
    """``1 - equity / peak``, the peak being the highest equity so far, at least the initial cash.

    ``max_drawdown`` is the largest over all bars (0 where none exceeds 1e-12; the first of those equal within 1e-12).
    """
    return 1.0 - equity / peak


@compiled
def max_drawdown_bars(peak_bar: int, end_bar: int) -> int:
    """Length of the deepest drawdown in bars: from its peak to the bar that reaches it again, or to the last bar.

    The peak is the last bar before the fall that stands at it; the initial cash as the peak counts as bar 0.
    """
    return end_bar - peak_bar


@compiled
def exposure(bars_held: int, bars: int) -> float:
    """Time in the market: the fraction of bars at whose close a position, long or short, is held."""
    return bars_held / bars


@compiled
def turnover(traded_fractions: float, years: float) -> float:
    """Sum over fills of ``notional / equity at the fill``, per year; in and out again with everything counts as 2.

    Closing out after ruin does not count (there is no equity to divide by). NaN for one bar.
    """
    return traded_fractions / years if years > 0.0 else math.nan


@compiled
def win_rate(wins: int, trades: int) -> float:
    """``wins / trades``; NaN without trades.

    A trade is a round trip: a position from flat, or from a reversal, until flat or reversed again, however often its
    size changed. A position still open at the end is not a trade yet. Its result is the equity after closing costs
    less the equity before opening costs; within 1e-12 of the latter it is break-even: not a win, not a loss.
    ``trades`` is the number of such round trips.
    """
    return wins / trades if trades > 0 else math.nan


@compiled
def profit_factor(gross_profit: float, gross_loss: float) -> float:
    """Sum of the winning trades' results over the sum of the losing ones', both positive; NaN without a loss."""
    return gross_profit / gross_loss if gross_loss > 0.0 else math.nan
