"""Accounts of several products with one cash: weights -> fills -> equity -> metrics, one compiled pass.

The rules, which tests/properties/reference_portfolio.py states again in slow Python. Where they are silent, those at
the top of strategies/kernel.py hold.

1. Decisions. A weight is an order: the wanted fraction of equity in that product, in [-1, 1]. NaN is no order: what is
   held stays as it is, however its share of the equity has moved. A weight given again is an order again (rebalancing).
2. When. The weights of bar i are carried out at bar i+1's open ("next_open") or at bar i's own close ("same_close", a
   look-ahead). A product that has no bar then, or one without volume, cannot be traded: its order waits for the first
   bar on which it can; a later weight takes its place. Weights of the last bar are not carried out at "next_open".
3. Value. A product is valued at its own price of the moment (the open at an open, the close at a close), and at its
   last close where it has no bar: after a delisting the value stands still.
4. Order of trades. Sells before buys, both in the products' order. Which is which follows from the equity at
   undisturbed prices before the first of them. Not made are a trade that its costs would turn into the opposite and,
   unless it closes the position, one of not more than 1e-12 of the worth before or after costs are thought of.
5. Size. ``size * weight`` of the worth at that trade: the cash, the others at their undisturbed price, the product
   itself at its fill price less the fee for closing where the weight does not keep its sign; the fee is reserved.
6. Leverage. Where the sizes asked for, and the shares of the products left as they are, together exceed ``leverage``
   times the equity, all orders of that moment are made smaller by one factor.
7. Cash. With ``leverage`` up to 1 a buy spends no more than the cash there is (the proceeds of shorts are cash), so
   cash never falls below 0 but for rounding. What it could not pay is not bought later either.
8. Ruin. As for one product, by the worth of everything: all positions go, equity is 0, nothing is traded any more. What
   is then left or missing is shared evenly by the open trades.
9. Round trips are counted by product, from flat to flat or to the other side; the result is that product's own money.
   Exposure counts the bars at whose close any product is held; turnover adds up all products.

With one product, and weights that are its targets where those change and NaN where they do not (``orders_of``), size 1
and leverage 1, equity, positions and fills are equal to the last bit to those of ``kernel.account``: the same
operations in the same order. Metrics agree to 1e-9, because sums over returns are taken there block by block. (But for
a new target that is met within 1e-12 already, which may be an order there.)
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from strategies.compiled import compiled
from strategies.course import Course, observe, tally
from strategies.kernel import EQUITY_OVERFLOW, OK, TARGET_OUT_OF_RANGE, Book, Outcome, end_trade
from strategies.metrics import EQUAL_WITHIN
from strategies.model import Float64Array, Int64Array

FIRST_DECISIONS: Final = 64


class Terms(NamedTuple):
    """Costs as fractions, not basis points; ``size`` and ``leverage`` as the rules of these names."""

    fee: float
    slippage: float
    same_close: bool
    needs_volume: bool
    initial_cash: float
    size: float
    leverage: float


class Prices(NamedTuple):
    """float64[n, p] each, NaN without a bar; ``last_close`` is the latest close so far, 0 before a product's first."""

    open: Float64Array
    close: Float64Array
    volume: Float64Array
    last_close: Float64Array


class Decisions(NamedTuple):
    """Weights float64[e, p] of the bars int64[e] that ask for something; the first ``used`` rows are filled."""

    bars: Int64Array
    weights: Float64Array
    used: int


class Trace(NamedTuple):
    """Where the kernel writes: ``equity`` float64[n], ``units`` float64[n, p] and the fills; length 0 to write nothing.

    ``equity`` alone may be given, for the moments of segments.
    """

    equity: Float64Array
    units: Float64Array
    fill_bar: Int64Array
    fill_product: Int64Array
    fill_side: Float64Array
    fill_price: Float64Array
    fill_quantity: Float64Array
    fill_fee: Float64Array


class Account(NamedTuple):
    """What changes while the bars go by; the arrays are float64[p] and written in place.

    ``pending`` are the waiting weights (NaN: none). For the open trade of each product: ``stakes`` is the money before
    it, ``scales`` the worth of everything then; ``flows`` the product's money in and out so far, ``flows_then`` and
    ``total_then`` that and the sum over all products before the trade.
    """

    units: Float64Array
    pending: Float64Array
    prices: Float64Array
    sides: Float64Array
    stakes: Float64Array
    scales: Float64Array
    flows: Float64Array
    flows_then: Float64Array
    total_then: Float64Array


class Money(NamedTuple):
    """The cash account: ``book`` as for one product, but for units and stake; ``fills`` is how many were written.

    ``holdings`` is the value of all positions at undisturbed prices, ``total`` the sum of the products' ``flows``.
    """

    book: Book
    holdings: float
    total: float
    fills: int


@compiled
def account(decisions: Decisions, prices: Prices, terms: Terms, trace: Trace) -> Outcome:
    """Carry out ``decisions`` on n bars (n >= 1) of p products by the rules at the top of this file, and tally them."""
    bars, products = prices.close.shape
    books = _new_account(products)
    money = Money(Book(terms.initial_cash, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, False), 0.0, 0.0, 0)
    course = Course(terms.initial_cash, 0.0, 0.0, 0.0, 0.0, terms.initial_cash, 0, 0.0, 0, False)
    next_decision = 0
    waiting = False
    bars_held = 0
    fault = OK
    bar = 0
    for i in range(bars):
        bar = i
        due = i if terms.same_close else i - 1
        if next_decision < decisions.used and decisions.bars[next_decision] == due:
            if not _place(books.pending, decisions.weights[next_decision]):
                fault = TARGET_OUT_OF_RANGE
                bar = due
                break
            next_decision += 1
            waiting = True
        if waiting and not money.book.ruined:
            money, waiting = _trade(books, money, prices, terms, trace, i)
        holdings = 0.0
        for q in range(products):
            holdings += books.units[q] * prices.last_close[i, q]
        equity = money.book.cash + holdings
        if not EQUAL_WITHIN * abs(money.book.cash) < equity < math.inf and not money.book.ruined:
            if equity == math.inf or math.isnan(equity):
                fault = EQUITY_OVERFLOW
                break
            money = _close_out(books, money, prices.last_close[i], trace, i)
            equity = 0.0
        course = observe(course, equity, i)
        held = False
        for q in range(products):
            held = held or books.units[q] != 0.0
        bars_held += 1 if held else 0
        if trace.equity.size > 0:
            trace.equity[i] = equity
        if trace.units.size > 0:
            trace.units[i] = books.units
    if fault == OK and next_decision < decisions.used and not _usable(decisions.weights[decisions.used - 1]):
        fault = TARGET_OUT_OF_RANGE  # the last weights are never carried out at the next open, but just as wrong
    return Outcome(tally(money.book, course, bars, bars_held, terms.initial_cash), money.fills, fault, bar)


@compiled
def _place(pending: Float64Array, weights: Float64Array) -> bool:
    """Let new weights take the place of waiting ones; whether all of them can be."""
    for q in range(weights.size):
        if not math.isnan(weights[q]):
            pending[q] = weights[q]
    return _usable(weights)


@compiled
def _usable(weights: Float64Array) -> bool:
    usable = True
    for weight in weights:
        usable = usable and (math.isnan(weight) or -1.0 <= weight <= 1.0)
    return usable


@compiled
def _trade(books: Account, money: Money, prices: Prices, terms: Terms, trace: Trace, bar: int) -> tuple[Money, bool]:
    """Carry out what waits and can be traded on this bar; whether anything is left waiting."""
    units, pending, price, sides = books.units, books.pending, books.prices, books.sides
    holdings = 0.0
    waiting = False
    ready = False
    for q in range(units.size):
        there = not math.isnan(prices.close[bar, q])
        price[q] = prices.open[bar, q] if there and not terms.same_close else prices.last_close[bar, q]
        holdings += units[q] * price[q]
        sides[q] = 0.0
        if not math.isnan(pending[q]):
            if there and (prices.volume[bar, q] > 0.0 or not terms.needs_volume):
                sides[q] = 1.0
                ready = True
            else:
                waiting = True
    if not ready:
        return money, waiting
    worth = money.book.cash + holdings
    factor = _factor(books, worth, terms)
    for q in range(units.size):
        if sides[q] != 0.0:
            pending[q] = pending[q] * factor
            gap = pending[q] * worth - units[q] * price[q]
            if abs(gap) <= EQUAL_WITHIN * worth and pending[q] != 0.0:
                sides[q] = 0.0
                pending[q] = math.nan
            else:
                sides[q] = 1.0 if pending[q] * worth > units[q] * price[q] else -1.0
    money = Money(money.book, holdings, money.total, money.fills)
    for side in (-1.0, 1.0):
        for q in range(units.size):
            if sides[q] == side and not money.book.ruined:
                money = _carry_out(books, money, q, side, terms, trace, bar)
                pending[q] = math.nan
    return money, waiting


@compiled
def _factor(books: Account, worth: float, terms: Terms) -> float:
    """What each weight about to be carried out is multiplied by: ``size``, or less where leverage would be exceeded."""
    asked = 0.0
    kept = 0.0
    for q in range(books.units.size):
        if books.sides[q] != 0.0:
            asked += abs(books.pending[q]) * terms.size
        elif worth > 0.0:
            kept += abs(books.units[q] * books.prices[q]) / worth
    if asked + kept > terms.leverage * (1.0 + EQUAL_WITHIN) and asked > 0.0:
        return terms.size * max(terms.leverage - kept, 0.0) / asked
    return terms.size


@compiled
def _carry_out(books: Account, money: Money, q: int, direction: float, terms: Terms, trace: Trace, bar: int) -> Money:
    """Move product ``q`` towards its pending fraction; the operations are those of ``kernel.carry_out``."""
    book = money.book
    units, price, fee = books.units[q], books.prices[q], terms.fee
    fill_price = price * (1.0 + direction * terms.slippage)
    target = books.pending[q]
    others = money.holdings - units * price
    closing = units if target * units <= 0.0 else 0.0
    own = book.cash + units * fill_price - fee * abs(closing) * fill_price
    worth = (book.cash + others) + units * fill_price - fee * abs(closing) * fill_price
    if worth <= EQUAL_WITHIN * abs(book.cash):
        return _close_out(books, money, books.prices, trace, bar)
    wanted_units = target * worth / (fill_price * (1.0 + fee))
    quantity = wanted_units - units
    if not quantity * direction > 0.0:
        return money
    notional = abs(quantity) * fill_price
    if direction > 0.0 and terms.leverage <= 1.0 and notional + fee * notional > book.cash + EQUAL_WITHIN * worth:
        quantity = max(book.cash, 0.0) / (fill_price * (1.0 + fee))
        wanted_units = units + quantity
        notional = quantity * fill_price
    if notional <= EQUAL_WITHIN * worth and wanted_units != 0.0:
        return money
    if units != 0.0 and wanted_units * units <= 0.0:
        book = _end_trade(books, money, q, own)
    if units == 0.0 or wanted_units * units <= 0.0:
        books.stakes[q] = own
        books.scales[q] = worth
        books.flows_then[q] = books.flows[q]
        books.total_then[q] = money.total
    cash = book.cash - quantity * fill_price - fee * notional
    flow = cash - book.cash
    books.flows[q] += flow
    books.units[q] = wanted_units
    _record(trace, money.fills, bar, q, fill_price, quantity, fee * notional)
    fractions = book.traded_fractions + notional / worth
    return Money(
        Book(cash, 0.0, 0.0, fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, False),
        others + wanted_units * price,
        money.total + flow,
        money.fills + 1,
    )


@compiled
def _close_out(books: Account, money: Money, prices: Float64Array, trace: Trace, bar: int) -> Money:
    """Ruin: every position goes at its price without a fee, and the open trades share evenly what is then left."""
    book = money.book
    worth = book.cash
    held = 0
    for q in range(books.units.size):
        worth += books.units[q] * prices[q]
        held += 1 if books.units[q] != 0.0 else 0
    fills = money.fills
    for q in range(books.units.size):
        units = books.units[q]
        if units != 0.0:
            own = book.cash + units * prices[q] - worth / held
            counted = _end_trade(books, Money(book, money.holdings, money.total, fills), q, own)
            _record(trace, fills, bar, q, prices[q], -units, 0.0)
            fills += 1
            books.units[q] = 0.0
            book = counted
    return Money(
        Book(0.0, 0.0, 0.0, book.traded_fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, True),
        0.0,
        0.0,
        fills,
    )


@compiled
def _end_trade(books: Account, money: Money, q: int, own: float) -> Book:
    """Count product ``q``'s round trip: what its money has grown to, less what came from the other products meanwhile.

    With one product that difference is exactly 0, as both sums are of the same numbers.
    """
    book = money.book
    meanwhile = (money.total - books.total_then[q]) - (books.flows[q] - books.flows_then[q])
    scale = books.scales[q]
    staked = Book(
        book.cash,
        0.0,
        scale,
        book.traded_fractions,
        book.trades,
        book.wins,
        book.gross_profit,
        book.gross_loss,
        book.ruined,
    )
    return end_trade(staked, (own - books.stakes[q]) - meanwhile)


@compiled
def _record(trace: Trace, at: int, bar: int, q: int, price: float, quantity: float, fee: float) -> None:
    if trace.fill_bar.size > 0:
        trace.fill_bar[at] = bar
        trace.fill_product[at] = q
        trace.fill_side[at] = 1.0 if quantity > 0.0 else -1.0
        trace.fill_price[at] = price
        trace.fill_quantity[at] = abs(quantity)
        trace.fill_fee[at] = fee


@compiled
def _new_account(products: int) -> Account:
    return Account(
        np.zeros(products),
        np.full(products, math.nan),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
    )


@compiled
def new_decisions(products: int) -> Decisions:
    """No decision yet, with room for some."""
    return Decisions(np.empty(FIRST_DECISIONS, dtype=np.int64), np.empty((FIRST_DECISIONS, products)), 0)


@compiled
def decided(decisions: Decisions, bar: int, weights: Float64Array) -> Decisions:
    """One more decision, unless no weight is a number; room is doubled, so it costs O(p) on average."""
    asks = False
    for weight in weights:
        asks = asks or not math.isnan(weight)
    if not asks:
        return decisions
    bars, rows, count = decisions.bars, decisions.weights, decisions.used
    if count == bars.size:
        bars = np.empty(2 * count, dtype=np.int64)
        rows = np.empty((2 * count, weights.size))
        bars[:count] = decisions.bars
        rows[:count] = decisions.weights
    bars[count] = bar
    rows[count] = weights
    return Decisions(bars, rows, count + 1)


def orders_of(target: Float64Array) -> Float64Array:
    """float64[n]: the targets of one product as weights: a number where the target changes (NaN is 0), else NaN."""
    wanted = np.where(np.isnan(target), 0.0, target)
    before = np.concatenate([[0.0], wanted[:-1]])
    return np.where(wanted != before, wanted, np.nan)


def decisions_of(weights: Float64Array) -> Decisions:
    """The decisions in weights float64[n, p] given bar by bar."""
    bars = np.flatnonzero(~np.isnan(weights).all(axis=1)).astype(np.int64)
    return Decisions(bars, np.ascontiguousarray(weights[bars]), len(bars))


def new_trace(bars: int, products: int, decisions: Decisions | None = None) -> Trace:
    """Room for the equity of ``bars`` bars, and with ``decisions`` for units and every fill they can lead to."""
    empty, none = np.empty(0), np.empty(0, dtype=np.int64)
    if decisions is None:
        return Trace(np.empty(bars), np.empty((0, products)), none, none, empty, empty, empty, empty)
    orders = int(np.count_nonzero(~np.isnan(decisions.weights[: decisions.used]))) + products
    bar, product = np.empty(orders, dtype=np.int64), np.empty(orders, dtype=np.int64)
    side, price, quantity, fee = (np.empty(orders) for _ in range(4))
    return Trace(np.empty(bars), np.empty((bars, products)), bar, product, side, price, quantity, fee)
