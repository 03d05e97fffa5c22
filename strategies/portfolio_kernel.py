"""Accounts of several products with one cash: weights -> orders -> fills -> equity -> metrics, one compiled pass.

The rules, which tests/properties/reference_portfolio.py states again in slow Python and
tests/unit/strategies/test_portfolio_rules.py shows with numbers. Where they are silent, those at the top of
strategies/kernel.py hold for each product: its price, its size, its stops are the same functions.

1. Decisions. A weight is an order: the wanted fraction of equity in that product, in [-1, 1], times ``size`` as
   ``Sizing.kind`` says. NaN is no order: what is held stays as it is, however its share of the equity has moved. A
   weight given again is an order again (rebalancing; after a stop: a new position).
2. When. The weights of bar i are carried out at bar i+1's open ("next_open") or at bar i's own close ("same_close", a
   look-ahead). A product that has no bar then, or one without volume, cannot be traded: its order waits for the first
   bar on which it can; a later weight takes its place. Weights of the last bar are not carried out at "next_open".
3. Value. A product is valued at its own price of the moment (the open at an open, the close at a close), and at its
   last close where it has no bar: after a delisting the value stands still. Within a bar, at the stop of one product,
   the others count at their opens, or at the price of their own stop on that bar.
4. The order of things on a bar: interest; orders at the open, sells before buys, both in the products' order; stops,
   targets and margin calls within the bar, in the products' order; orders at the close ("same_close"), again sells
   first; products whose bars end here are liquidated, where that is asked for. So the cash that a stop sets free is
   there for the next orders, at this bar's close or the next bar's open, and never for this bar's own open.
   Which orders are sells follows from the equity at undisturbed prices before the first of them. Not made are a trade
   that the costs of those before it have turned into the opposite and, unless it closes the position, one of not more
   than 1e-12 of the worth before or after costs are thought of.
5. Worth. What sizes are measured by is the cash, the others at their price of the moment, and the product itself as in
   kernel.py. A product's own bound by ``leverage`` is that of kernel.py.
6. Leverage. Where the sizes asked for, and the shares of the products left as they are, together exceed ``leverage``
   times the equity, all orders of that moment are made smaller by one factor. A single order, with nothing else held,
   is bounded as in kernel.py.
7. Cash. With ``leverage`` up to 1 a buy spends no more than the cash there is (the proceeds of shorts are cash), so
   orders take cash below 0 by rounding at most; at the price that all of it would have had. What it could not pay is
   not bought later either. Stops, time stops and liquidations are not held back: to cover a short they may borrow.
8. Interest. ``funding_bps_per_day`` is paid product by product; ``borrow_bps_per_day`` on the value of every short and,
   once, on cash below 0, which the longs' trades bear in proportion to their values.
9. Margin call, with ``leverage`` above 1. A product's is the price at which the equity is ``maintenance_margin`` times
   the value of all positions, while every other one stands at the worst price of its bar (a long at its low, a short at
   its high): whether lows fell together is not known, so they did. One after the other is closed until that holds.
10. Fee tiers. The fee follows from the notional of all products' fills within 30 days.
11. Ruin. As for one product, by the worth of everything: all positions go at their price of the moment, equity is 0,
   nothing is traded any more. What is then left or missing is shared evenly by the open trades.
12. Time stops and the end count a product's own bars: ``time_stop_bars`` passes over times at which it has none, and
   ``at_end`` = "liquidate" sells a product at the close of its own last bar, so before a delisting.
13. Round trips are counted by product, from flat to flat or to the other side; the result is that product's own money.
   Exposure counts the bars at whose close any product is held; turnover adds up all products.

With one product, and weights that are its targets where those change and NaN where they do not (``orders_of``),
equity, positions and fills are equal to the last bit to those of ``kernel.simulate`` with the same costs, sizing and
rules (with interest to 1e-9: it is added up in another order). Metrics agree to 1e-9, because sums over returns are
taken there block by block. (But for a new target that is met within 1e-12 already, which may be an order there.)
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

from strategies.compiled import compiled, compiled_step
from strategies.course import Course, observe, tally
from strategies.kernel import (
    EQUITY_OVERFLOW,
    OK,
    TARGET_OUT_OF_RANGE,
    TIER_DAYS,
    Outcome,
    interest_owed,
    stop_price,
)
from strategies.metrics import EQUAL_WITHIN
from strategies.model import Float64Array, Int64Array
from strategies.orders import (
    NOTIONAL,
    PERCENT,
    UNITS,
    VOLATILITY,
    Book,
    Conditions,
    Execution,
    Venue,
    buys,
    carry_out,
    end_trade,
    order,
    with_cash,
)
from strategies.stretch import levels

FIRST_DECISIONS: Final = 64
# More than any quantity: an order with it is taken through all of ``orders.order``'s rules, and not made smaller.
NO_BOUND: Final = 1e300


class Terms(NamedTuple):
    """What was agreed: ``conditions`` and ``tiers`` as the kernel for one product takes them, and by product the least
    quantity and the increment, float64[p] each (those in ``conditions`` do not count)."""

    conditions: Conditions
    tiers: Float64Array
    min_quantity: Float64Array
    quantity_increment: Float64Array


class Tape(NamedTuple):
    """float64[n, p] each, NaN without a bar: ``last_close`` is the latest close so far, 0 before a product's first, and
    ``volatility`` the yearly one known then (of length 0 where sizes do not follow it).

    ``days`` float64[n] count from the first time; ``last_bar`` int64[p] is the place of each product's last bar.
    """

    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array
    last_close: Float64Array
    volatility: Float64Array
    days: Float64Array
    last_bar: Int64Array


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
    """What changes while the bars go by; arrays of one number a product, written in place.

    ``aims`` are the weights pursued (0 after a stop), ``pending`` which of them wait (1), ``stopped`` which come from a
    stop. ``orders`` and ``sides`` are those of the moment, ``used`` what was filled on this bar, ``age`` the product's
    bars since that of its entry. For its open trade: ``stakes`` is the money before it, ``scales`` the worth of
    everything then; ``flows`` the product's money in and out so far, ``flows_then`` and ``total_then`` that and the sum
    over all products before the trade. ``traded`` float64[n] is the notional of each bar's fills where fees have tiers,
    ``lately`` its sum over 30 days, from bar ``lately_from`` on (one number each).
    """

    units: Float64Array
    aims: Float64Array
    pending: Int64Array
    stopped: Int64Array
    orders: Float64Array
    sides: Float64Array
    prices: Float64Array
    entry: Float64Array
    best: Float64Array
    age: Int64Array
    used: Float64Array
    stakes: Float64Array
    scales: Float64Array
    flows: Float64Array
    flows_then: Float64Array
    total_then: Float64Array
    traded: Float64Array
    lately: Float64Array
    lately_from: Int64Array


class Money(NamedTuple):
    """The cash account: ``book`` as for one product, but for units and stake; ``fills`` is how many were written.

    ``holdings`` is the value of all positions at the prices of the moment, ``total`` the sum of all ``flows``.
    """

    book: Book
    holdings: float
    total: float
    fills: int


@compiled
def account(  # noqa: C901 -- the order of things on a bar is what this loop says, so it stands in one place
    decisions: Decisions, tape: Tape, terms: Terms, trace: Trace
) -> Outcome:
    """Carry out ``decisions`` on n bars (n >= 1) of p products by the rules at the top of this file, and tally them."""
    bars, products = tape.close.shape
    conditions = terms.conditions
    books = _new_account(bars if len(terms.tiers) else 0, products)
    cash = conditions.initial_cash
    money = Money(Book(cash, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, False), 0.0, 0.0, 0)
    course = Course(cash, 0.0, 0.0, 0.0, 0.0, cash, 0, 0.0, 0, False)
    interest = conditions.funding_per_day != 0.0 or conditions.borrow_per_day != 0.0
    stopping = conditions.stop_loss > 0.0 or conditions.take_profit > 0.0 or conditions.trailing_stop > 0.0
    stopping = stopping or conditions.leverage > 1.0
    timed = conditions.time_stop_bars > 0
    next_decision = 0
    waiting = False
    held = False
    bars_held = 0
    fault = OK
    bar = 0
    for i in range(bars):
        bar = i
        if held:
            if interest:
                money = _charge(books, money, tape, conditions, i)
            if timed:
                _grow_older(books, tape, i)
        if conditions.max_volume_share > 0.0:
            books.used[:] = 0.0
        if conditions.same_close and stopping and held:
            money = _within(books, money, tape, terms, trace, i)
            waiting = True
        due = i if conditions.same_close else i - 1
        if next_decision < decisions.used and decisions.bars[next_decision] == due:
            if not _place(books, decisions.weights[next_decision]):
                fault = TARGET_OUT_OF_RANGE
                bar = due
                break
            next_decision += 1
            waiting = True
        if (waiting or timed) and not money.book.ruined:
            money, waiting = _trade(books, money, tape, terms, trace, i)
        if stopping and not conditions.same_close and not money.book.ruined:
            money = _within(books, money, tape, terms, trace, i)
            waiting = True
        if conditions.liquidates and not money.book.ruined:
            money = _liquidate(books, money, tape, terms, trace, i)
        holdings = 0.0
        held = False
        for q in range(products):
            holdings += books.units[q] * tape.last_close[i, q]
            held = held or books.units[q] != 0.0
        equity = money.book.cash + holdings
        if not EQUAL_WITHIN * abs(money.book.cash) < equity < math.inf and not money.book.ruined:
            if equity == math.inf or math.isnan(equity):
                fault = EQUITY_OVERFLOW
                break
            money = _close_out(books, money, tape.last_close[i], trace, i)
            equity = 0.0
            held = False
        course = observe(course, equity, i)
        bars_held += 1 if held else 0
        if trace.equity.size > 0:
            trace.equity[i] = equity
        if trace.units.size > 0:
            trace.units[i] = books.units
    if fault == OK and next_decision < decisions.used and not _usable(decisions.weights[decisions.used - 1]):
        fault = TARGET_OUT_OF_RANGE  # the last weights are never carried out at the next open, but just as wrong
    return Outcome(tally(money.book, course, bars, bars_held, conditions.initial_cash), money.fills, fault, bar)


@compiled
def _place(books: Account, weights: Float64Array) -> bool:
    """Let new weights take the place of waiting ones; whether all of them can be."""
    for q in range(weights.size):
        if not math.isnan(weights[q]):
            books.aims[q] = weights[q]
            books.pending[q] = 1
            books.stopped[q] = 0
    return _usable(weights)


@compiled
def _usable(weights: Float64Array) -> bool:
    usable = True
    for weight in weights:
        usable = usable and (math.isnan(weight) or -1.0 <= weight <= 1.0)
    return usable


@compiled
def _grow_older(books: Account, tape: Tape, bar: int) -> None:
    for q in range(books.units.size):
        if not math.isnan(tape.close[bar, q]):
            books.age[q] += 1


@compiled
def _charge(books: Account, money: Money, tape: Tape, conditions: Conditions, bar: int) -> Money:
    """Interest on what was held since the bar before."""
    span = tape.days[bar] - tape.days[bar - 1]
    cash, total = money.book.cash, money.total
    long = 0.0
    for q in range(books.units.size):
        long += max(books.units[q] * tape.last_close[bar - 1, q], 0.0)
    borrowing = min(cash, 0.0)
    for q in range(books.units.size):
        value = books.units[q] * tape.last_close[bar - 1, q]
        if value != 0.0:
            share = value / long if value > 0.0 else 0.0
            owed = interest_owed(borrowing * share, value, conditions.funding_per_day, conditions.borrow_per_day)
            before = cash
            cash = cash - owed * span
            books.flows[q] += cash - before
            total += cash - before
    return Money(with_cash(money.book, cash), money.holdings, total, money.fills)


@compiled_step
def _tradable(tape: Tape, conditions: Conditions, bar: int, q: int) -> bool:
    there = not math.isnan(tape.close[bar, q])
    return there and (tape.volume[bar, q] > 0.0 or not conditions.volume_counts)


@compiled
def _valued(books: Account, money: Money) -> Money:
    """The same money, its holdings at the prices of the moment."""
    holdings = 0.0
    for q in range(books.units.size):
        holdings += books.units[q] * books.prices[q]
    return Money(money.book, holdings, money.total, money.fills)


@compiled
def _trade(books: Account, money: Money, tape: Tape, terms: Terms, trace: Trace, bar: int) -> tuple[Money, bool]:
    """Carry out what waits and can be traded at this bar's order time; whether anything is left waiting."""
    units, pending, prices, sides = books.units, books.pending, books.prices, books.sides
    conditions = terms.conditions
    ready = False
    waiting = False
    for q in range(units.size):
        there = not math.isnan(tape.close[bar, q])
        prices[q] = tape.open[bar, q] if there and not conditions.same_close else tape.last_close[bar, q]
        old = conditions.time_stop_bars > 0 and books.age[q] >= conditions.time_stop_bars
        if old and books.aims[q] * units[q] > 0.0:
            _give_up(books, q)
        sides[q] = 0.0
        if pending[q] == 1:
            waiting = True
            if _tradable(tape, conditions, bar, q) and _wish(books, tape, terms, bar, q):
                sides[q] = 1.0
                ready = True
    if not ready:
        return money, waiting
    money = _valued(books, money)
    _choose_sides(books, money, tape, terms, bar)
    for side in (-1.0, 1.0):
        for q in range(units.size):
            if sides[q] == side and not money.book.ruined:
                money = _pursue(books, money, tape, terms, trace, bar, q, side)
    return money, True


@compiled_step
def _give_up(books: Account, q: int) -> None:
    """A stop: the position is to be closed, until a new weight says otherwise."""
    books.aims[q] = 0.0
    books.pending[q] = 1
    books.stopped[q] = 1


@compiled_step
def _wish(books: Account, tape: Tape, terms: Terms, bar: int, q: int) -> bool:
    """Note what is pursued of product ``q`` at this moment; whether it can be said (a volatility may not be known).

    Sizes by volatility become fractions of the worth here, as ``orders.order`` reckons them.
    """
    conditions = terms.conditions
    aim = books.aims[q]
    if conditions.kind == VOLATILITY and aim != 0.0:
        known = bar if conditions.same_close else bar - 1
        volatility = tape.volatility[known, q]
        if math.isnan(volatility):
            return False
        aim = aim * conditions.size
        aim = aim / volatility if volatility > 0.0 else math.copysign(math.inf, aim) if aim != 0.0 else 0.0
        aim = min(max(aim, -conditions.leverage), conditions.leverage)
    books.orders[q] = aim
    return True


@compiled
def _choose_sides(books: Account, money: Money, tape: Tape, terms: Terms, bar: int) -> None:
    """Make the orders of the moment smaller where leverage asks for it, and tell the sells from the buys.

    What is met already is no order any more; what a locked bar holds back goes on waiting.
    """
    conditions, sides = terms.conditions, books.sides
    worth = money.book.cash + money.holdings
    scale = _scale(books, worth, conditions)
    for q in range(sides.size):
        if sides[q] == 0.0:
            continue
        price, value = books.prices[q], books.units[q] * books.prices[q]
        books.orders[q] = books.orders[q] * scale
        aim = books.orders[q]
        share = _share(aim, conditions, price, worth)
        share = min(max(share, -conditions.leverage), conditions.leverage)
        if abs(share * worth - value) <= EQUAL_WITHIN * worth and aim != 0.0:
            sides[q] = 0.0
            books.pending[q] = 0
            continue
        seen = _seen(books, money, q)
        buying = buys(seen, aim, _own_conditions(terms, q), Venue(price, 0.0, 0.0, 0.0, math.nan))
        sides[q] = 1.0 if buying else -1.0
        if _locked(tape, conditions, bar, q, buying):
            sides[q] = 0.0


@compiled
def _scale(books: Account, worth: float, conditions: Conditions) -> float:
    """What every order of the moment is multiplied by: 1, or less where leverage would be exceeded."""
    if not worth > 0.0:
        return 1.0
    asked = 0.0
    kept = 0.0
    orders = 0
    for q in range(books.units.size):
        if books.sides[q] != 0.0:
            share = abs(_share(books.orders[q], conditions, books.prices[q], worth))
            asked += share
            orders += 1 if share > 0.0 else 0
        else:
            kept += abs(books.units[q] * books.prices[q]) / worth
    if orders <= 1 and kept == 0.0:
        return 1.0
    if asked + kept > conditions.leverage * (1.0 + EQUAL_WITHIN) and asked > 0.0:
        return max(conditions.leverage - kept, 0.0) / asked
    return 1.0


@compiled_step
def _share(aim: float, conditions: Conditions, price: float, worth: float) -> float:
    """The share of the worth that an order asks for, before it is bounded."""
    if conditions.kind == VOLATILITY:
        return aim
    wanted = aim * conditions.size
    if conditions.kind == UNITS:
        return wanted * price / worth
    return wanted / worth if conditions.kind == NOTIONAL else wanted


@compiled_step
def _locked(tape: Tape, conditions: Conditions, bar: int, q: int, buying: bool) -> bool:
    """Whether the bar stands still above the close before and so sells nothing, or below it and buys nothing."""
    price = tape.close[bar, q]
    before = tape.last_close[bar - 1, q] if bar > 0 else 0.0
    still: bool = tape.open[bar, q] == price and tape.high[bar, q] == price and tape.low[bar, q] == price
    return conditions.locked_waits and still and before > 0.0 and price != before and buying == (price > before)


@compiled_step
def _seen(books: Account, money: Money, q: int) -> Book:
    """The account as an order for product ``q`` sees it: the others are money."""
    book, units = money.book, books.units[q]
    others = money.holdings - units * books.prices[q]
    fractions = book.traded_fractions
    return Book(book.cash + others, units, 0.0, fractions, book.trades, book.wins, 0.0, 0.0, False)


@compiled_step
def _own_conditions(terms: Terms, q: int) -> Conditions:
    """Those of product ``q``; a size by volatility is a fraction already."""
    given = terms.conditions
    measured = given.kind == VOLATILITY
    return Conditions(
        given.fee,
        given.slippage,
        given.same_close,
        given.initial_cash,
        given.impact,
        given.max_volume_share,
        given.funding_per_day,
        given.borrow_per_day,
        given.maintenance_margin,
        given.target_first,
        given.volume_counts,
        given.locked_waits,
        given.liquidates,
        PERCENT if measured else given.kind,
        terms.min_quantity[q],
        terms.quantity_increment[q],
        given.stop_loss,
        given.take_profit,
        given.trailing_stop,
        given.time_stop_bars,
        1.0 if measured else given.size,
        given.leverage,
    )


@compiled_step
def _pursue(
    books: Account, money: Money, tape: Tape, terms: Terms, trace: Trace, bar: int, q: int, side: float
) -> Money:
    """Send the order of the moment for product ``q``, and book what comes of it."""
    conditions, book, seen = _own_conditions(terms, q), money.book, _seen(books, money, q)
    aim = books.orders[q]
    price, volume = books.prices[q], tape.volume[bar, q]
    room = NO_BOUND if terms.conditions.kind == VOLATILITY else math.inf
    if conditions.max_volume_share > 0.0:
        room = conditions.max_volume_share * volume - books.used[q]
    fee = _fee(books, tape, terms, bar)
    venue = Venue(price, fee, volume, room, math.nan)
    if buys(seen, aim, conditions, venue) != (side > 0.0):
        books.pending[q] = 0
        return money
    after, execution, done = order(seen, aim, conditions, venue)
    if side > 0.0 and conditions.leverage <= 1.0 and books.stopped[q] == 0 and not after.ruined:
        unit = execution.price * (1.0 + fee)
        notional = execution.quantity * execution.price
        if notional + fee * notional > book.cash + EQUAL_WITHIN * (after.cash + after.units * price):
            affordable = min(max(book.cash, 0.0) / unit, room)
            after, execution, done = order(seen, aim, conditions, Venue(price, fee, volume, affordable, math.nan))
            done = True
    books.pending[q] = 0 if done else 1
    if after.ruined:
        return _close_out(books, money, books.prices, trace, bar)
    notional = abs(execution.quantity) * execution.price
    if notional <= EQUAL_WITHIN * (after.cash + after.units * price) and after.units != 0.0:
        return money
    return _booked(books, money, after, execution, trace, bar, q, fee)


@compiled_step
def _booked(
    books: Account, money: Money, after: Book, execution: Execution, trace: Trace, bar: int, q: int, fee: float
) -> Money:
    """``execution`` makes of product ``q`` what it is in ``after``: cash, round trips, entry, the fill itself."""
    if execution.quantity == 0.0:
        return money
    book, units, price = money.book, books.units[q], execution.price
    quantity, becomes = execution.quantity, after.units
    own = book.cash + units * price - fee * abs(units) * price
    others = money.holdings - units * books.prices[q]
    if units != 0.0 and becomes * units <= 0.0:
        book = _end_trade(books, money, q, own)
    if becomes * units <= 0.0:
        books.stakes[q] = own
        books.scales[q] = after.stake
        books.flows_then[q] = books.flows[q]
        books.total_then[q] = money.total
        books.entry[q] = books.best[q] = price
        books.age[q] = 0
    elif abs(becomes) > abs(units):
        books.entry[q] += (price - books.entry[q]) * (quantity / becomes)
    notional = abs(quantity) * price
    cash = book.cash - quantity * price - fee * notional
    flow = cash - book.cash
    books.flows[q] += flow
    books.units[q] = becomes
    books.used[q] += abs(quantity)
    if books.traded.size > 0:
        books.traded[bar] += notional
        books.lately[0] += notional
    _record(trace, money.fills, bar, q, price, quantity, execution.fee)
    fractions = after.traded_fractions
    return Money(
        Book(cash, 0.0, 0.0, fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, False),
        others + becomes * books.prices[q],
        money.total + flow,
        money.fills + 1,
    )


@compiled_step
def _fee(books: Account, tape: Tape, terms: Terms, bar: int) -> float:
    """By the notional of all fills within the 30 days before this bar."""
    fee = terms.conditions.fee
    if len(terms.tiers) == 0:
        return fee
    first = books.lately_from[0]
    while first < bar and tape.days[first] <= tape.days[bar] - TIER_DAYS:
        books.lately[0] -= books.traded[first]
        first += 1
    if first == bar:
        books.lately[0] = books.traded[bar]
    books.lately_from[0] = first
    for tier in range(len(terms.tiers)):
        if books.lately[0] >= terms.tiers[tier, 0]:
            fee = terms.tiers[tier, 1]
    return fee


@compiled
def _within(books: Account, money: Money, tape: Tape, terms: Terms, trace: Trace, bar: int) -> Money:
    """Stops, targets and margin calls between a bar's open and its close."""
    units, prices, conditions = books.units, books.prices, terms.conditions
    for q in range(units.size):
        there = not math.isnan(tape.close[bar, q])
        prices[q] = tape.open[bar, q] if there else tape.last_close[bar, q]
    money = _valued(books, money)
    for q in range(units.size):
        if units[q] == 0.0 or books.aims[q] == 0.0 or not _tradable(tape, conditions, bar, q):
            continue
        high, low = tape.high[bar, q], tape.low[bar, q]
        cash = _free_cash(books, money, tape, conditions, bar, q) if conditions.leverage > 1.0 else money.book.cash
        under, over = levels(cash, units[q], books.entry[q], books.best[q], conditions)
        if low <= under or high >= over:
            stop = stop_price(units[q], tape.open[bar, q], high, low, under, over, conditions.target_first)
            _give_up(books, q)
            books.orders[q] = 0.0
            buying = units[q] < 0.0
            prices[q] = stop
            money = _valued(books, money)
            if not _locked(tape, conditions, bar, q, buying):
                money = _pursue(books, money, tape, terms, trace, bar, q, 1.0 if buying else -1.0)
                if money.book.ruined:
                    return money
        elif units[q] > 0.0:
            books.best[q] = max(books.best[q], high)
        else:
            books.best[q] = min(books.best[q], low)
    return money


@compiled
def _free_cash(books: Account, money: Money, tape: Tape, conditions: Conditions, bar: int, q: int) -> float:
    """The cash that bears product ``q``'s own margin: the others' worst value added, their margin taken off."""
    value = 0.0
    gross = 0.0
    for other in range(books.units.size):
        units = books.units[other]
        if units != 0.0 and other != q:
            worst = tape.low[bar, other] if units > 0.0 else tape.high[bar, other]
            if math.isnan(worst):
                worst = tape.last_close[bar, other]
            value += units * worst
            gross += abs(units) * worst
    return money.book.cash + value - conditions.maintenance_margin * gross


@compiled
def _liquidate(books: Account, money: Money, tape: Tape, terms: Terms, trace: Trace, bar: int) -> Money:
    """Close what has its last bar here, at that bar's close, whatever its volume."""
    valued = False
    for q in range(books.units.size):
        if tape.last_bar[q] != bar or books.units[q] == 0.0 or money.book.ruined:
            continue
        if not valued:
            books.prices[:] = tape.last_close[bar]
            money = _valued(books, money)
            valued = True
        fee = _fee(books, tape, terms, bar)
        seen = _seen(books, money, q)
        after, execution = carry_out(seen, 0.0, books.prices[q], fee, terms.conditions.slippage)
        books.aims[q] = 0.0
        books.pending[q] = 0
        if after.ruined:
            return _close_out(books, money, books.prices, trace, bar)
        money = _booked(books, money, after, execution, trace, bar, q, fee)
    return money


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


@compiled_step
def _record(trace: Trace, at: int, bar: int, q: int, price: float, quantity: float, fee: float) -> None:
    if trace.fill_bar.size > 0:
        trace.fill_bar[at] = bar
        trace.fill_product[at] = q
        trace.fill_side[at] = 1.0 if quantity > 0.0 else -1.0
        trace.fill_price[at] = price
        trace.fill_quantity[at] = abs(quantity)
        trace.fill_fee[at] = fee


@compiled
def _new_account(bars: int, products: int) -> Account:
    """``bars`` is 0 where no fee depends on what was traded."""
    return Account(
        np.zeros(products),
        np.zeros(products),
        np.zeros(products, dtype=np.int64),
        np.zeros(products, dtype=np.int64),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products, dtype=np.int64),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(products),
        np.zeros(bars),
        np.zeros(1),
        np.zeros(1, dtype=np.int64),
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


def new_trace(bars: int, products: int, fills: int | None = None) -> Trace:
    """Room for the equity of ``bars`` bars, and with ``fills`` for units and so many fills."""
    empty, none = np.empty(0), np.empty(0, dtype=np.int64)
    if fills is None:
        return Trace(np.empty(bars), np.empty((0, products)), none, none, empty, empty, empty, empty)
    bar, product = np.empty(fills, dtype=np.int64), np.empty(fills, dtype=np.int64)
    side, price, quantity, fee = (np.empty(fills) for _ in range(4))
    return Trace(np.empty(bars), np.empty((bars, products)), bar, product, side, price, quantity, fee)
