"""The accounting kernel: targets -> orders -> fills -> equity -> metrics, one compiled pass for every strategy.

The rules, which tests/properties/reference_kernel.py states again in slow Python and which
tests/unit/strategies/test_fill_rules.py shows one by one with numbers:

1. When. The target of bar i is carried out at bar i+1's open ("next_open"), or at bar i's own close ("same_close", a
   look-ahead: that close was needed to know the target). A target of the last bar is not carried out at "next_open".
2. Only a change of target makes an order; prices moving away from the target do not. NaN counts as 0: no position.
   Before the first bar the target is 0.
3. Price. A buy pays ``price * (1 + slippage)``, a sell gets ``price * (1 - slippage)``; both pay ``fee`` on it.
   Half of ``spread_bps`` is added to the slippage. With ``impact`` so is ``impact * sqrt(quantity / volume)``, the
   volume being that of the bar of the fill (a share above 1 counts as 1) and the quantity what the order would be
   without its impact; the order is then sized at the price so moved. Targets and stops pay slippage like any order.
4. Size. With ``worth`` the cash plus the position at the fill price, less the fee for closing the position where the
   target does not keep its sign: ``position = fraction * worth / (fill_price * (1 + fee))``, of any number of digits.
   The divisor reserves the fee, so cash never falls below 0 for a fraction in [0, 1] (but for rounding).
   It is a buy if the target at the undisturbed price asks for more than is held, else a sell; where costs would turn
   it into the opposite, the position is already as near as it gets and no order is made.
   The fraction is ``target * size`` (percent), or ``target * size / volatility`` (volatility: of the last ``window``
   returns up to the bar that decides, a year being as many of them as fit by their own times; the order waits until
   the window is full; without any volatility the fraction is the leverage), at most ``leverage`` on either side.
   Else the position is ``target * size`` units (units), or of ``target * size`` quote units at the fill price
   (notional); it is worth at most ``leverage`` times the worth, the fee reserved as above. But in the plain case
   (percent, within the leverage) an order of less than 1e-12 of what is held is rounding and not made.
5. Quantities. An order is rounded down to a multiple of ``quantity_increment``, and not made below ``min_quantity``;
   an order for exactly what is held, which closes the position, is neither.
6. Volume. On a bar without volume nothing is filled, and no stop is looked at: the order waits for the next bar with
   volume (``zero_volume`` = "fills": such a bar is like any other). With ``max_volume_share`` no more than this share
   of a bar's volume is filled on it; the rest is left and waits for the next bar, at whose price (rule 1) it is sized
   anew, until the target is reached or changes. What is left of a stop waits in the same way, the target being 0.
   ``locked_bars`` = "waits": on a bar whose four prices are equal and above the close before, no buy is filled, and no
   sell on one below; by default it is filled at that price.
7. Stops. The entry price is the average fill price of what is held (a reduction leaves it). A long is closed where a
   bar's low reaches ``entry * (1 - stop_loss)`` or ``best * (1 - trailing_stop)``, the best price being the highest of
   the entry and the highs of the bars before; or where its high reaches ``entry * (1 + take_profit)``. Shorts are the
   mirror image. It fills at that price, or at the open where the bar opens beyond it. On a bar that reaches both a stop
   and the target without opening beyond either, the stop comes first (``both_in_bar`` = "target_first": the target).
   Orders at the open come before the stops of the same bar, and all of the bar of an entry at its open counts; orders
   at the close come after them, and of the bar of an entry at its close nothing counts.
   ``time_stop_bars`` = N closes a position N bars after the bar of its entry, at the price of rule 1; a target that
   changes on that very bar is carried out instead if it is 0 or of the other side.
   After a stop only a change of the target makes the next order.
8. Short, leverage, interest. The proceeds of a short stay in cash; equity is always ``cash + position * price``. Before
   anything else happens on a bar, what was held since the bar before pays for the time between the two bars' starts, on
   its value at the last close: ``funding_bps_per_day`` (a long pays, a short gets), and ``borrow_bps_per_day`` on what
   is borrowed: the value of a short, or cash below 0.
   Margin call: with ``leverage`` above 1, a position is closed, by the rules of a stop-loss, at the price at which
   equity is ``maintenance_margin`` times its value.
9. Ruin. If the worth at a fill or the equity at a close is not above 0 (by 1e-12 of the cash, its rounding), the
   position is closed out at that undisturbed price without a fee, equity is 0 (whoever lent bears the rest) and nothing
   is traded any more. But for margin calls the bar between open and close is not looked at: a short that only the
   bar's high would have ruined lives on.
10. Fee tiers. The fee of a fill is that of the last tier whose volume is reached by the notional of the fills within
   the 30 days before it (the time of a fill being its bar's start); below the first one it is ``fee_bps``.
11. The end. Nothing is closed; the last equity holds the open position at the last close, also where a series ends
   early. ``at_end`` = "liquidate": it is closed at the last close, with fee and slippage, whatever the volume.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from strategies.compiled import compiled, read_only
from strategies.course import Drop, add_powers, by_segments, deepen, end_segment, extremes, first_beyond, sums
from strategies.indicators import rolling_moments_start, rolling_moments_step
from strategies.lanes import as_number, ask_for
from strategies.metrics import EQUAL_WITHIN, Tallies, max_drawdown_bars
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
    close_out,
    end_trade,
    order,
    with_cash,
)
from strategies.rules import Rules
from strategies.stretch import fixed_levels, levels, mark, reached, unchanged, with_interest

if TYPE_CHECKING:
    from strategies.spec import Costs, Sizing

__all__ = [
    "EQUITY_OVERFLOW",
    "OK",
    "TARGET_OUT_OF_RANGE",
    "Book",
    "Conditions",
    "Execution",
    "Outcome",
    "Tape",
    "Terms",
    "Trace",
    "account",
    "carry_out",
    "close_out",
    "conditions_of",
    "end_trade",
    "new_trace",
    "plain",
    "simulate",
    "tiers_of",
    "volatility_of",
]

OK: Final = 0
TARGET_OUT_OF_RANGE: Final = 1
EQUITY_OVERFLOW: Final = 2

# Bars whose statistics are taken together: their equities stay in the core's own cache.
BLOCK: Final = 256
TIER_DAYS: Final = 30.0
DAYS_PER_YEAR: Final = 365.25
# A bar may have an order at its open and at its end, a stop and a close-out.
FILLS_PER_BAR: Final = 4
_KINDS: Final = {"percent": PERCENT, "units": UNITS, "notional": NOTIONAL, "volatility": VOLATILITY}


class Terms(NamedTuple):
    """The plain conditions: fractions, not basis points; initial cash in quote units."""

    fee: float
    slippage: float
    same_close: bool
    initial_cash: float


class Tape(NamedTuple):
    """Bars as the kernel takes them, float64[n] each: ``days`` from the first bar's start, and the yearly volatility
    known at each close (or of length 0). ``sparse`` says that a bar has no volume."""

    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array
    days: Float64Array
    volatility: Float64Array
    sparse: bool


class Trace(NamedTuple):
    """Where the kernel writes what happened: arrays of n bars and 4 n fills, or all of length 0 to write nothing."""

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


def plain(costs: Costs, sizing: Sizing, rules: Float64Array, every_bar_trades: bool) -> bool:
    """Whether ``carry_out`` alone decides: no stops, a size and leverage of 1, nothing but fee, slippage and fill.

    ``rules`` float64[6] is a row's as in ``RULES``. ``every_bar_trades``: no bar is without volume.
    """
    return (
        costs.plain
        and costs.spread_bps == 0
        and sizing.kind == "percent"
        and sizing.min_quantity == sizing.quantity_increment == 0
        and (every_bar_trades or costs.zero_volume == "fills")
        and rules.tolist() == _NO_RULES
    )


_NO_RULES: Final = Rules().vector().tolist()


def conditions_of(costs: Costs, sizing: Sizing, rules: Float64Array) -> Conditions:
    """What the kernel needs of a specification; ``rules`` float64[6] is a row's as in ``RULES``."""
    stop_loss, take_profit, trailing_stop, time_stop_bars, size, leverage = rules.tolist()
    return Conditions(
        costs.fee_bps / 1e4,
        costs.slippage_bps / 1e4 + costs.spread_bps / 2e4,
        costs.look_ahead,
        costs.initial_cash,
        costs.impact,
        costs.max_volume_share,
        costs.funding_bps_per_day / 1e4,
        costs.borrow_bps_per_day / 1e4,
        costs.maintenance_margin,
        costs.both_in_bar == "target_first",
        costs.zero_volume == "waits",
        costs.locked_bars == "waits",
        costs.at_end == "liquidate",
        _KINDS[sizing.kind],
        sizing.min_quantity,
        sizing.quantity_increment,
        stop_loss,
        take_profit,
        trailing_stop,
        int(time_stop_bars),
        size,
        leverage,
    )


def tiers_of(costs: Costs) -> Float64Array:
    """float64[t, 2]: the volume of 30 days from which on a tier holds, and its fee as a fraction."""
    rows = [(tier.volume_30d_from, tier.fee_bps / 1e4) for tier in costs.fee_tiers]
    return read_only(np.array(rows, dtype=np.float64).reshape(-1, 2))


def account(target: Float64Array, open_: Float64Array, close: Float64Array, terms: Terms, trace: Trace) -> Outcome:
    """Carry out ``target`` float64[n] on n bars (n >= 1) in the plain case: ``simulate`` with every rule off."""
    conditions = Conditions(*terms)
    prices = read_only(open_), read_only(close)
    tape = Tape(prices[0], prices[1], prices[1], prices[1], prices[1], prices[1], read_only(np.empty(0)), False)
    none = read_only(np.empty(0, dtype=np.int64))
    return simulate(target, tape, conditions, read_only(np.empty((0, 2))), none, np.empty((0, 6)), trace)


@compiled
def simulate(  # noqa: C901 -- one loop on purpose: its state stays in registers, and each rule is where it applies
    target: Float64Array,
    tape: Tape,
    conditions: Conditions,
    tiers: Float64Array,
    cuts: Int64Array,
    moments: Float64Array,
    trace: Trace,
) -> Outcome:
    """Carry out ``target`` float64[n] on n bars (n >= 1) by the rules at the top of this file, and tally the result.

    ``tiers`` float64[t, 2] are those of rule 10. ``cuts`` int64[S + 1] are the borders of segments and ``moments``
    float64[S, 6] is filled as ``metrics.moments_of`` says; both may be empty.

    Bars on which something happens are taken one by one. Between them the position stands: the next such bar is
    looked for, and the equity of the bars up to it goes into the statistics, a block at a time. Returns are summed as
    distances from the first one: unlike with sums of the returns themselves nothing cancels that the variance needs.
    """
    open_, high, low, close, volume = tape.open, tape.high, tape.low, tape.close, tape.volume
    days, volatility = tape.days, tape.volatility
    bars = close.size
    lag = 0 if conditions.same_close else 1
    recording = trace.equity.size > 0
    sparse = tape.sparse and conditions.volume_counts
    share = conditions.max_volume_share
    interest = conditions.funding_per_day != 0.0 or conditions.borrow_per_day != 0.0
    trailing = conditions.trailing_stop > 0.0
    stopping = trailing or conditions.stop_loss > 0.0 or conditions.take_profit > 0.0 or conditions.leverage > 1.0
    time_stop = conditions.time_stop_bars if conditions.time_stop_bars > 0 else 2 * bars
    measured = conditions.kind == VOLATILITY
    rounded = conditions.min_quantity > 0.0 or conditions.quantity_increment > 0.0
    easy = conditions.kind == PERCENT and not rounded and conditions.impact == 0.0 and share == 0.0
    tier_days = np.empty(FILLS_PER_BAR * bars if len(tiers) else 0)
    tier_notional = np.empty(tier_days.size)
    tier_first = 0
    tier_fills = 0
    recent = 0.0

    book = Book(conditions.initial_cash, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, False)
    standing = 0.0  # the strategy's target
    aim = 0.0  # what is pursued: the same, or 0 after a stop
    pending = False
    entry = best = 0.0
    entry_bar = 0
    under, over = 0.0, math.inf  # prices at and beyond which a stop or the target is reached

    segmented = cuts.size > 1
    segment = 0
    part = np.zeros(5)  # of the segment in hand: the equity before it and the sums of four powers
    part[0] = conditions.initial_cash
    equity = np.empty(BLOCK + 1)
    returns = np.empty(BLOCK + 1)
    bits = equity.view(np.int64)
    equity[0] = conditions.initial_cash
    pivot = distances = squares = squared_losses = 0.0
    drop = Drop(conditions.initial_cash, 0, 0.0, 0, False)
    bars_held = 0
    fills = 0
    fault = OK
    fault_bar = 0
    charged = False  # interest up to bar i is paid
    i = 0
    while i < bars:
        if interest and book.units != 0.0 and not charged and i > 0:
            span = days[i] - days[i - 1]
            owed = interest_owed(
                book.cash, book.units * close[i - 1], conditions.funding_per_day, conditions.borrow_per_day
            )
            book = with_cash(book, book.cash - owed * span)
            if stopping:
                under, over = levels(book.cash, book.units, entry, best, conditions)
        charged = False
        used = 0.0
        trades = not sparse or volume[i] > 0.0
        for step in range(4):  # at the open, within the bar, at the close, at the end of the series
            price = 0.0
            if step == 1:
                if not (stopping and trades) or book.units == 0.0 or aim == 0.0:
                    continue
                if low[i] <= under or high[i] >= over:
                    price = stop_price(book.units, open_[i], high[i], low[i], under, over, conditions.target_first)
                    aim = 0.0
                    pending = True
                elif trailing:
                    best = max(best, high[i]) if book.units > 0.0 else min(best, low[i])
                    under, over = levels(book.cash, book.units, entry, best, conditions)
            elif step == 3:
                if conditions.liquidates and i == bars - 1 and book.units != 0.0:
                    price = close[i]
                    aim = 0.0
            elif (step == 0) == (lag == 1):
                wanted = target[i - lag] if i >= lag else 0.0
                if math.isnan(wanted):
                    wanted = 0.0
                if wanted != standing:
                    if not -1.0 <= wanted <= 1.0:
                        fault = TARGET_OUT_OF_RANGE
                        fault_bar = i - lag
                        break
                    standing = wanted
                    aim = wanted
                    pending = not book.ruined
                if i - entry_bar >= time_stop and aim * book.units > 0.0:
                    aim = 0.0
                    pending = True
                if pending and trades:
                    price = open_[i] if lag == 1 else close[i]
            if price == 0.0:
                continue
            fee = conditions.fee
            if len(tiers):
                while tier_first < tier_fills and tier_days[tier_first] <= days[i] - TIER_DAYS:
                    recent -= tier_notional[tier_first]
                    tier_first += 1
                if tier_first == tier_fills:
                    recent = 0.0
                for tier in range(len(tiers)):
                    if recent >= tiers[tier, 0]:
                        fee = tiers[tier, 1]
            room = share * volume[i] - used if share > 0.0 else math.inf
            known = volatility[i - lag] if conditions.kind == VOLATILITY and i >= lag else math.nan
            venue = Venue(price, fee, volume[i], room, known)
            units = book.units
            if step == 3:
                book, execution = carry_out(book, 0.0, price, fee, conditions.slippage)
                done = True
            else:
                rises = i > 0 and close[i] > close[i - 1]
                if conditions.locked_waits and _locked(tape, i) and buys(book, aim, conditions, venue) == rises:
                    continue
                if easy and abs(aim) * conditions.size <= conditions.leverage:
                    book, execution = carry_out(book, aim * conditions.size, price, fee, conditions.slippage)
                    done = True
                else:
                    book, execution, done = order(book, aim, conditions, venue)
            pending = not done
            if execution.quantity == 0.0:
                continue
            used += abs(execution.quantity)
            if recording:
                _record(trace, fills, i, execution)
                fills += 1
            if len(tiers):
                tier_days[tier_fills] = days[i]
                tier_notional[tier_fills] = abs(execution.quantity) * execution.price
                recent += tier_notional[tier_fills]
                tier_fills += 1
            if units * book.units <= 0.0:
                entry = best = execution.price
                entry_bar = i
            elif abs(book.units) > abs(units):
                entry += (execution.price - entry) * (execution.quantity / book.units)
            if stopping and book.units != 0.0:
                under, over = levels(book.cash, book.units, entry, best, conditions)
        if fault != OK:
            break

        # From here on only closes count, until something may happen again.
        end = bars
        if pending or i <= 1:
            end = i + 1
        elif book.units != 0.0:
            if time_stop < bars:
                end = min(end, max(entry_bar + time_stop, i + 1))
            if conditions.liquidates:
                end = min(end, max(bars - 1, i + 1))
        watching = stopping and aim != 0.0
        first = i  # of the block in hand, whose equities are equity[1:]
        equity[1] = book.cash + book.units * close[i]
        i += 1
        goes_on = True
        resumes = -1
        if book.units == 0.0 and not pending and i < end:
            resumes = unchanged(target, i - lag, end - lag, standing) + lag
            if resumes < bars:  # fetched while the bar in hand goes into the statistics
                ask_for(open_, resumes)
                ask_for(close, resumes)
                ask_for(high, resumes)
                ask_for(low, resumes)
                ask_for(volume, resumes)
                ask_for(days, resumes)
                if measured:
                    ask_for(volatility, resumes - lag)
        while goes_on:
            held = book.units
            if held != 0.0:
                stop = min(end, first + BLOCK)
                begin = i
                i = unchanged(target, i - lag, stop - lag, standing) + lag
                if interest or sparse:
                    i, cash, best, charged = with_interest(
                        high,
                        low,
                        close,
                        volume,
                        days,
                        equity,
                        first,
                        begin,
                        i,
                        book.cash,
                        held,
                        entry,
                        best,
                        watching,
                        sparse,
                        conditions,
                    )
                    book = with_cash(book, cash)
                else:
                    if watching:
                        under, over = fixed_levels(book.cash, held, entry, conditions)
                        kept = 1.0 - math.copysign(conditions.trailing_stop, held)
                        i, best = reached(high, low, begin, i, under, over, best, kept)
                    mark(close, equity, begin, i, first, book.cash, held)
                goes_on = i == stop and i < end
                if not goes_on and i < bars:
                    ask_for(open_, i)
                    ask_for(volume, i)
                    if measured:
                        ask_for(volatility, i - lag)
            else:
                goes_on = False
            count = i - first
            if count == 0:
                break
            least_bits, most_bits = extremes(bits, count)
            lowest, highest = as_number(least_bits), as_number(most_bits)
            least = EQUAL_WITHIN * abs(book.cash)
            if not (least < lowest and highest < math.inf) and not book.ruined:
                count = first_beyond(equity, count, least)
                i = first + count
                if equity[count] == math.inf or math.isnan(equity[count]):
                    fault = EQUITY_OVERFLOW
                    fault_bar = i - 1
                    break
                book, execution = close_out(book, close[i - 1])
                if recording and execution.quantity != 0.0:
                    _record(trace, fills, i - 1, execution)
                    fills += 1
                equity[count] = lowest = 0.0
                pending = goes_on = charged = False
            if held != 0.0:
                bars_held += count - (1 if book.ruined else 0)
            if first > 1 and equity[0] > 0.0:
                change, square, loss = sums(equity, returns, count, pivot)
                distances += change
                squares += square
                squared_losses += loss
            elif first == 1 and equity[0] > 0.0:
                returns[1] = pivot = equity[1] / equity[0] - 1.0
                squared_losses = min(pivot, 0.0) * min(pivot, 0.0)
            else:  # bar 0, or after ruin
                returns[1] = 0.0
                distances -= pivot
                squares += pivot * pivot
            if segmented and cuts[segment + 1] >= first + count:
                add_powers(part, returns, 1, count + 1)
            elif segmented:
                segment = by_segments(moments, cuts, segment, part, equity, returns, first, count)
            near = drop.peak * (1.0 - EQUAL_WITHIN)
            if highest >= near or lowest < drop.peak * (1.0 - EQUAL_WITHIN - drop.deepest):
                drop = deepen(drop, equity, first, count, lowest, highest)
            if recording:
                trace.equity[first:i] = equity[1 : count + 1]
                trace.units[first:i] = held
                trace.units[i - 1] = book.units
            equity[0] = equity[count]
            first = i
        if fault != OK:
            break
        if book.units != 0.0 and (trailing or interest):
            under, over = levels(book.cash, book.units, entry, best, conditions)
        if book.units == 0.0 and not pending and i < end:
            i = resumes if resumes >= 0 else unchanged(target, i - lag, end - lag, standing) + lag
            count = i - first
            distances -= count * pivot
            squares += count * (pivot * pivot)
            if segmented:
                while cuts[segment + 1] < i:
                    end_segment(moments, cuts, segment, part, equity[0])
                    segment += 1
            if equity[0] >= drop.peak * (1.0 - EQUAL_WITHIN) and count:
                drop = Drop(drop.peak, i - 1, drop.deepest, drop.deepest_bars, False)
            if recording:
                trace.equity[first:i] = equity[0]
                trace.units[first:i] = 0.0
    last = target[bars - 1]
    if fault == OK and not math.isnan(last) and not -1.0 <= last <= 1.0:
        fault = TARGET_OUT_OF_RANGE  # the last target is never carried out at the next open, but just as wrong
        fault_bar = bars - 1
    if segmented and fault == OK:
        end_segment(moments, cuts, segment, part, equity[0])
    mean_distance = distances / (bars - 1) if bars > 1 else math.nan
    tallies = Tallies(
        bars,
        conditions.initial_cash,
        equity[0],
        pivot + mean_distance,
        max(squares - mean_distance * distances, 0.0),
        squared_losses,
        drop.deepest,
        max_drawdown_bars(drop.peak_bar, bars - 1) if drop.is_deepest else drop.deepest_bars,
        bars_held,
        book.traded_fractions,
        book.trades,
        book.wins,
        book.gross_profit,
        book.gross_loss,
    )
    return Outcome(tallies, fills, fault, fault_bar)


@compiled
def volatility_of(close: Float64Array, days: Float64Array, window: int) -> Float64Array:
    """float64[n]: at each close the yearly volatility of the last ``window`` returns, NaN before there are as many.

    Their sample standard deviation, times the root of how many fit into a year at the time these ones took.
    """
    result = np.full(close.size, math.nan)
    state = rolling_moments_start(window)
    for i in range(1, close.size):
        state, _, squares = rolling_moments_step(state, close[i] / close[i - 1] - 1.0)
        if i >= window:
            years = (days[i] - days[i - window]) / DAYS_PER_YEAR
            result[i] = math.sqrt(squares / (window - 1) * (window / years))
    return result


@compiled
def stop_price(
    units: float, open_: float, high: float, low: float, under: float, over: float, target_first: bool
) -> float:
    """Where a bar that reaches ``under`` or ``over`` closes the position, before slippage."""
    if open_ <= under or open_ >= over:
        return open_
    if low <= under and high >= over:
        return under if (units > 0.0) != target_first else over
    return under if low <= under else over


@compiled
def interest_owed(cash: float, value: float, funding_per_day: float, borrow_per_day: float) -> float:
    """What a position worth ``value`` (a short: below 0) pays a day."""
    borrowed = -value if value < 0.0 else max(-cash, 0.0)
    return funding_per_day * value + borrow_per_day * borrowed


@compiled
def _locked(tape: Tape, i: int) -> bool:
    price = tape.close[i]
    still: bool = tape.open[i] == price and tape.high[i] == price and tape.low[i] == price
    return still and i > 0 and price != tape.close[i - 1]


@compiled
def _record(trace: Trace, at: int, bar: int, execution: Execution) -> None:
    trace.fill_bar[at] = bar
    trace.fill_side[at] = 1.0 if execution.quantity > 0.0 else -1.0
    trace.fill_price[at] = execution.price
    trace.fill_quantity[at] = abs(execution.quantity)
    trace.fill_fee[at] = execution.fee


def new_trace(bars: int) -> Trace:
    """Room for ``bars`` bars and all their fills; 0 to record nothing."""
    floats = [np.empty(bars * size) for size in (1, 1, *[FILLS_PER_BAR] * 4)]
    return Trace(floats[0], floats[1], np.empty(FILLS_PER_BAR * bars, dtype=np.int64), *floats[2:])
