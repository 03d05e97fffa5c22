"""The accounting kernel: targets -> fills -> equity -> metrics, one compiled pass for every strategy.

The rules, which tests/properties/reference_kernel.py states again in slow Python:

1. When. The target of bar i is carried out at bar i+1's open ("next_open"), or at bar i's own close ("same_close", a
   look-ahead: that close was needed to know the target). A target of the last bar is not carried out at "next_open".
2. Only a change of target makes an order; prices moving away from the target do not. NaN counts as 0: no position.
   Before the first bar the target is 0.
3. Price. A buy pays ``price * (1 + slippage)``, a sell gets ``price * (1 - slippage)``; both pay ``fee`` on it.
4. Size. With ``worth`` the cash plus the position at the fill price, less the fee for closing the position where the
   target does not keep its sign: ``position = target * worth / (fill_price * (1 + fee))``, in fractions without limit.
   The divisor reserves the fee, so cash never falls below 0 for a target in [0, 1] (but for rounding).
   It is a buy if the target at the undisturbed price asks for more than is held, else a sell; where costs would turn
   it into the opposite, the position is already as near as it gets and no order is made.
5. Short. The proceeds stay in cash; equity is always ``cash + position * price``.
6. Ruin. If the worth at a fill or the equity at a close is not above 0 (by 1e-12 of the cash, its rounding), the
   position is closed out at that undisturbed price without a fee, equity is 0 (whoever lent bears the rest) and nothing
   is traded any more. The bar between open and close is not looked at: a short that only the bar's high would have
   ruined lives on.
7. Nothing is closed at the end; the last equity holds the open position at the last close.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from strategies.compiled import compiled
from strategies.metrics import EQUAL_WITHIN, Tallies, drawdown, max_drawdown_bars
from strategies.model import Float64Array, Int64Array

OK: Final = 0
TARGET_OUT_OF_RANGE: Final = 1
EQUITY_OVERFLOW: Final = 2


class Terms(NamedTuple):
    """Costs as the kernel takes them: fractions, not basis points; initial cash in quote units."""

    fee: float
    slippage: float
    same_close: bool
    initial_cash: float


class Trace(NamedTuple):
    """Where the kernel writes what happened: arrays of n bars and n fills, or all of length 0 to write nothing."""

    equity: Float64Array
    units: Float64Array
    fill_bar: Int64Array
    fill_side: Float64Array
    fill_price: Float64Array
    fill_quantity: Float64Array
    fill_fee: Float64Array


class Outcome(NamedTuple):
    """What a pass came to: the tallies, the number of fills written, and a fault (or ``OK``) with its bar."""

    tallies: Tallies
    fills: int
    fault: int
    fault_bar: int


class Book(NamedTuple):
    """Money, position and trades so far. ``stake`` is the worth at which the open trade began."""

    cash: float
    units: float
    stake: float
    traded_fractions: float
    trades: int
    wins: int
    gross_profit: float
    gross_loss: float
    ruined: bool


class Execution(NamedTuple):
    """One fill: ``quantity`` is signed (bought > 0), 0 where no order was made."""

    price: float
    quantity: float
    fee: float


class Course(NamedTuple):
    """Statistics of the equity curve so far; the drawdown in hand began at ``peak_bar``.

    ``distances`` and ``squares`` are sums over returns of ``r - pivot`` and its square, the pivot being the first one.
    """

    equity: float
    pivot: float
    distances: float
    squares: float
    squared_losses: float
    peak: float
    peak_bar: int
    deepest: float
    deepest_bars: int
    is_deepest: bool


@compiled
def account(target: Float64Array, open_: Float64Array, close: Float64Array, terms: Terms, trace: Trace) -> Outcome:
    """Carry out ``target`` float64[n] on n bars (n >= 1) by the rules at the top of this file, and tally the result."""
    book = Book(terms.initial_cash, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, False)
    course = Course(terms.initial_cash, 0.0, 0.0, 0.0, 0.0, terms.initial_cash, 0, 0.0, 0, False)
    recording = trace.equity.size > 0
    standing = 0.0
    bars_held = 0
    fills = 0
    fault = OK
    bar = 0
    for i in range(close.size):
        bar = i
        wanted = _wanted(target, i, terms.same_close)
        if wanted != standing:
            if not -1.0 <= wanted <= 1.0:
                fault = TARGET_OUT_OF_RANGE
                bar = i if terms.same_close else i - 1
                break
            standing = wanted
            if not book.ruined:
                price = close[i] if terms.same_close else open_[i]
                book, execution = carry_out(book, wanted, price, terms.fee, terms.slippage)
                if recording and execution.quantity != 0.0:
                    _record(trace, fills, i, execution)
                    fills += 1
        equity = book.cash + book.units * close[i]
        if not EQUAL_WITHIN * book.cash < equity < math.inf and not book.ruined:
            if equity == math.inf or math.isnan(equity):
                fault = EQUITY_OVERFLOW
                break
            book, execution = close_out(book, close[i])
            equity = 0.0
            if recording and execution.quantity != 0.0:
                _record(trace, fills, i, execution)
                fills += 1
        course = _observe(course, equity, i)
        if book.units != 0.0:
            bars_held += 1
        if recording:
            trace.equity[i] = equity
            trace.units[i] = book.units
    if fault == OK and not -1.0 <= _wanted(target, close.size - 1, True) <= 1.0:
        fault = TARGET_OUT_OF_RANGE  # the last target is never carried out at the next open, but just as wrong
    return Outcome(_tally(book, course, close.size, bars_held, terms.initial_cash), fills, fault, bar)


@compiled
def _wanted(target: Float64Array, i: int, same_close: bool) -> float:
    """The target to be carried out on bar ``i``, NaN as 0."""
    if same_close:
        wanted = target[i]
    elif i > 0:
        wanted = target[i - 1]
    else:
        wanted = 0.0
    return 0.0 if math.isnan(wanted) else wanted


@compiled
def carry_out(book: Book, target: float, price: float, fee: float, slippage: float) -> tuple[Book, Execution]:
    """Move the position towards ``target`` at ``price`` (before slippage)."""
    units = book.units
    direction = 1.0 if target * (book.cash + units * price) > units * price else -1.0
    fill_price = price * (1.0 + direction * slippage)
    closing = units if target * units <= 0.0 else 0.0
    worth = book.cash + units * fill_price - fee * abs(closing) * fill_price
    if worth <= EQUAL_WITHIN * book.cash:
        return close_out(book, price)
    wanted_units = target * worth / (fill_price * (1.0 + fee))
    quantity = wanted_units - units
    if not quantity * direction > 0.0:
        return book, Execution(fill_price, 0.0, 0.0)
    notional = abs(quantity) * fill_price
    if closing != 0.0:
        book = end_trade(book, worth - book.stake)
    stake = worth if units == 0.0 or closing != 0.0 else book.stake
    cash = book.cash - quantity * fill_price - fee * notional
    fractions = book.traded_fractions + notional / worth
    return (
        Book(cash, wanted_units, stake, fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, False),
        Execution(fill_price, quantity, fee * notional),
    )


@compiled
def close_out(book: Book, price: float) -> tuple[Book, Execution]:
    """Ruin: the position goes, the equity is 0 for good."""
    execution = Execution(price, -book.units, 0.0)
    if book.units != 0.0:
        book = end_trade(book, -book.stake)
    return (
        Book(0.0, 0.0, 0.0, book.traded_fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, True),
        execution,
    )


@compiled
def end_trade(book: Book, result: float) -> Book:
    """Count a round trip that earned ``result`` on the stake."""
    tolerance = EQUAL_WITHIN * book.stake
    won = result > tolerance
    lost = result < -tolerance
    return Book(
        book.cash,
        book.units,
        book.stake,
        book.traded_fractions,
        book.trades + 1,
        book.wins + (1 if won else 0),
        book.gross_profit + (result if won else 0.0),
        book.gross_loss - (result if lost else 0.0),
        book.ruined,
    )


@compiled
def _record(trace: Trace, at: int, bar: int, execution: Execution) -> None:
    trace.fill_bar[at] = bar
    trace.fill_side[at] = 1.0 if execution.quantity > 0.0 else -1.0
    trace.fill_price[at] = execution.price
    trace.fill_quantity[at] = abs(execution.quantity)
    trace.fill_fee[at] = execution.fee


@compiled
def _observe(course: Course, equity: float, i: int) -> Course:
    """Move the statistics on to bar ``i``.

    Returns are summed as distances from the first return: unlike with sums of the returns themselves nothing cancels
    that the variance needs (the first return is one of its terms), and unlike with Welford's update no bar waits for
    the mean of the bar before.
    """
    pivot = course.pivot
    distances = course.distances
    squares = course.squares
    squared_losses = course.squared_losses
    if i > 0:
        change = equity / course.equity - 1.0 if course.equity > 0.0 else 0.0
        if i == 1:
            pivot = change
        distance = change - pivot
        distances += distance
        squares += distance * distance
        loss = min(change, 0.0)
        squared_losses += loss * loss
    peak = course.peak
    peak_bar = course.peak_bar
    deepest = course.deepest
    deepest_bars = course.deepest_bars
    is_deepest = course.is_deepest
    if equity >= peak * (1.0 - EQUAL_WITHIN):
        if is_deepest:
            deepest_bars = max_drawdown_bars(peak_bar, i)
        peak = max(equity, peak)
        peak_bar = i
        is_deepest = False
    elif equity < peak * (1.0 - EQUAL_WITHIN - deepest):  # no division on the many bars that set no record
        deepest = drawdown(equity, peak)
        is_deepest = True
    return Course(equity, pivot, distances, squares, squared_losses, peak, peak_bar, deepest, deepest_bars, is_deepest)


@compiled
def _tally(book: Book, course: Course, bars: int, bars_held: int, initial_cash: float) -> Tallies:
    """A deepest drawdown still open lasts to the last bar."""
    mean_distance = course.distances / (bars - 1) if bars > 1 else math.nan
    squared_deviations = max(course.squares - mean_distance * course.distances, 0.0)
    drawdown_bars = max_drawdown_bars(course.peak_bar, bars - 1) if course.is_deepest else course.deepest_bars
    return Tallies(
        bars,
        initial_cash,
        course.equity,
        course.pivot + mean_distance,
        squared_deviations,
        course.squared_losses,
        course.deepest,
        drawdown_bars,
        bars_held,
        book.traded_fractions,
        book.trades,
        book.wins,
        book.gross_profit,
        book.gross_loss,
    )


def new_trace(bars: int) -> Trace:
    """Room for ``bars`` bars and as many fills (two a bar: an order and a close-out); 0 to record nothing."""
    floats = [np.empty(bars * size) for size in (1, 1, 2, 2, 2, 2)]
    return Trace(floats[0], floats[1], np.empty(2 * bars, dtype=np.int64), *floats[2:])
