"""What one order comes to: its price, its size, and the book afterwards. Rules 3 to 9 at the top of kernel.py."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from strategies.compiled import compiled
from strategies.metrics import EQUAL_WITHIN

# Kinds of sizing, as ``Sizing.kind`` names them.
PERCENT: Final = 0
UNITS: Final = 1
NOTIONAL: Final = 2
VOLATILITY: Final = 3
# A quantity this close below a multiple of the increment, in increments, is that multiple.
WHOLE_WITHIN: Final = 1e-9


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


class Conditions(NamedTuple):
    """Costs, sizing and rules as the kernel takes them: fractions, not basis points; by default the plain case.

    ``kind`` is one of the kinds above; ``slippage`` holds half the spread.
    """

    fee: float
    slippage: float
    same_close: bool
    initial_cash: float
    impact: float = 0.0
    max_volume_share: float = 0.0
    funding_per_day: float = 0.0
    borrow_per_day: float = 0.0
    maintenance_margin: float = 0.0
    target_first: bool = False
    volume_counts: bool = False
    locked_waits: bool = False
    liquidates: bool = False
    kind: int = PERCENT
    min_quantity: float = 0.0
    quantity_increment: float = 0.0
    stop_loss: float = 0.0
    take_profit: float = 0.0
    trailing_stop: float = 0.0
    time_stop_bars: int = 0
    size: float = 1.0
    leverage: float = 1.0


class Venue(NamedTuple):
    """What an order meets on its bar: the undisturbed price, the fee, the bar's volume, how much of it may be filled
    (infinite: any quantity), and the product's yearly volatility so far (NaN: not known)."""

    price: float
    fee: float
    volume: float
    room: float
    volatility: float


@compiled
def order(book: Book, aim: float, conditions: Conditions, venue: Venue) -> tuple[Book, Execution, bool]:
    """Move the position towards the target ``aim``; the last of the answer says whether nothing is left to be done."""
    kind = conditions.kind
    fraction = _fraction(aim, conditions, venue.volatility)
    if math.isnan(fraction):
        return book, Execution(venue.price, 0.0, 0.0), False
    rounded = conditions.min_quantity > 0.0 or conditions.quantity_increment > 0.0
    moved = conditions.impact > 0.0 or venue.room < math.inf
    bounded = abs(aim) * conditions.size > conditions.leverage or kind == VOLATILITY
    if kind == PERCENT and not rounded and not moved and not bounded:
        book, execution = carry_out(book, fraction, venue.price, venue.fee, conditions.slippage)
        return book, execution, True
    return _work(book, aim, fraction, conditions, venue)


@compiled
def _in_fractions(kind: int) -> bool:
    """Whether sizes are fractions of equity."""
    return kind in (PERCENT, VOLATILITY)


@compiled
def _fraction(aim: float, conditions: Conditions, volatility: float) -> float:
    """The wanted fraction of equity for the kinds that count in fractions; NaN while the volatility is not known."""
    if aim == 0.0:
        return 0.0
    wanted = aim * conditions.size
    if conditions.kind == VOLATILITY:
        if math.isnan(volatility):
            return math.nan
        wanted = wanted / volatility if volatility > 0.0 else math.copysign(math.inf, wanted) if wanted != 0.0 else 0.0
    return min(max(wanted, -conditions.leverage), conditions.leverage)


@compiled
def buys(book: Book, aim: float, conditions: Conditions, venue: Venue) -> bool:
    """Whether the target at the undisturbed price asks for more than is held."""
    price = venue.price
    worth = book.cash + book.units * price
    if _in_fractions(conditions.kind):
        value = _fraction(aim, conditions, venue.volatility) * worth
    else:
        limit = conditions.leverage * max(worth, 0.0)
        value = aim * conditions.size * (price if conditions.kind == UNITS else 1.0)
        value = min(max(value, -limit), limit)
    return value > book.units * price


@compiled
def _work(
    book: Book, aim: float, fraction: float, conditions: Conditions, venue: Venue
) -> tuple[Book, Execution, bool]:
    """An order with a price of its own making, a volume to share or a quantity to be rounded."""
    direction = 1.0 if buys(book, aim, conditions, venue) else -1.0
    slippage = conditions.slippage
    fill_price = venue.price * (1.0 + direction * slippage)
    wanted, worth = _wanted_units(book, aim, fraction, conditions, venue.fee, fill_price)
    if conditions.impact > 0.0 and worth > EQUAL_WITHIN * abs(book.cash):
        # The price is moved by what the order would be without moving it; then it is sized again at that price.
        amount = min(max((wanted - book.units) * direction, 0.0), venue.room)
        share = min(amount / venue.volume, 1.0) if venue.volume > 0.0 else 1.0
        if amount > 0.0:
            slippage += conditions.impact * math.sqrt(share)
        fill_price = venue.price * (1.0 + direction * slippage)
        wanted, worth = _wanted_units(book, aim, fraction, conditions, venue.fee, fill_price)
    if worth <= EQUAL_WITHIN * abs(book.cash):
        book, execution = close_out(book, venue.price)
        return book, execution, True
    needed = (wanted - book.units) * direction
    if not needed > EQUAL_WITHIN * abs(book.units):  # the bound of the leverage, or what was filled in parts: rounding
        return book, Execution(fill_price, 0.0, 0.0), True
    amount = min(needed, venue.room)
    whole = amount == needed
    if wanted != 0.0 or not whole:  # what closes the position is for exactly what is held
        amount = _orderable(amount, conditions)
        if amount == 0.0:
            return book, Execution(fill_price, 0.0, 0.0), whole
    units = wanted if amount == needed else book.units + direction * amount
    if abs(units) < WHOLE_WITHIN * amount:
        units = 0.0  # a reversal cut down to what closes: the rest is rounding
    return *_fill(book, units, direction * amount, fill_price, venue.fee, worth), whole


@compiled
def _wanted_units(
    book: Book, aim: float, fraction: float, conditions: Conditions, fee: float, fill_price: float
) -> tuple[float, float]:
    """The position wanted at ``fill_price``, within the leverage, and the worth it is measured by."""
    sign = fraction if _in_fractions(conditions.kind) else aim * conditions.size
    closing = book.units if sign * book.units <= 0.0 else 0.0
    worth = book.cash + book.units * fill_price - fee * abs(closing) * fill_price
    if _in_fractions(conditions.kind):
        return fraction * worth / (fill_price * (1.0 + fee)), worth
    limit = conditions.leverage * max(worth, 0.0) / (fill_price * (1.0 + fee))
    wanted = sign if conditions.kind == UNITS else sign / fill_price
    return min(max(wanted, -limit), limit), worth


@compiled
def _orderable(amount: float, conditions: Conditions) -> float:
    """``amount`` rounded down to a multiple of the increment; 0 where it is below the least quantity."""
    increment = conditions.quantity_increment
    if increment > 0.0:
        amount = math.floor(amount / increment + WHOLE_WITHIN) * increment
    return amount if amount >= conditions.min_quantity * (1.0 - WHOLE_WITHIN) else 0.0


@compiled
def _fill(
    book: Book, units: float, quantity: float, fill_price: float, fee: float, worth: float
) -> tuple[Book, Execution]:
    """``quantity`` (signed) at ``fill_price`` makes the position ``units``; ``worth`` is what its size counts from."""
    notional = abs(quantity) * fill_price
    ends = book.units != 0.0 and units * book.units <= 0.0
    stake = book.stake
    if ends:
        left = book.cash + book.units * fill_price - fee * abs(book.units) * fill_price
        book = end_trade(book, left - book.stake)
        stake = left
    elif book.units == 0.0:
        stake = worth
    cash = book.cash - quantity * fill_price - fee * notional
    fractions = book.traded_fractions + notional / worth
    return (
        Book(cash, units, stake, fractions, book.trades, book.wins, book.gross_profit, book.gross_loss, False),
        Execution(fill_price, quantity, fee * notional),
    )


@compiled
def carry_out(book: Book, target: float, price: float, fee: float, slippage: float) -> tuple[Book, Execution]:
    """Move the position to the fraction ``target`` of the worth, at ``price`` before slippage: the plain order."""
    units = book.units
    direction = 1.0 if target * (book.cash + units * price) > units * price else -1.0
    fill_price = price * (1.0 + direction * slippage)
    closing = units if target * units <= 0.0 else 0.0
    worth = book.cash + units * fill_price - fee * abs(closing) * fill_price
    if worth <= EQUAL_WITHIN * abs(book.cash):
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
def with_cash(book: Book, cash: float) -> Book:
    """The same book with other cash: interest was paid."""
    return Book(
        cash,
        book.units,
        book.stake,
        book.traded_fractions,
        book.trades,
        book.wins,
        book.gross_profit,
        book.gross_loss,
        book.ruined,
    )
