"""What one would write by hand: a loop over the bars with just the rules of one configuration and all metrics."""

from __future__ import annotations

import math

import numpy as np

from strategies.compiled import compiled
from strategies.kernel import Conditions, Tape
from strategies.model import Float64Array


@compiled
def fused(  # noqa: C901 -- everything in one loop is the point
    target: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    fee: float,
    slippage: float,
    stop_loss: float,
    take_profit: float,
    trailing: float,
    size: float,
    cash: float,
) -> Float64Array:
    """One loop for long and short, three stops, a size, fee, slippage and all metrics: what one would write by hand."""
    n = close.size
    initial = previous = peak = cash
    units = standing = entry = best = stake = 0.0
    sum1 = sum2 = losses = deepest = fractions = gain = lost = 0.0
    peak_bar = deepest_bars = held = trades = wins = 0
    is_deepest = False
    stopping = stop_loss > 0.0
    for i in range(n):
        goal = math.nan
        price = 0.0
        if i > 0:
            wanted = target[i - 1]
            if math.isnan(wanted):
                wanted = 0.0
            if wanted != standing:
                standing = goal = wanted
                price = open_[i]
        for step in range(2 if stopping else 1):
            if step == 1:
                goal = math.nan
                if units > 0.0:
                    stop = max(entry * (1.0 - stop_loss), best * (1.0 - trailing))
                    if low[i] <= stop:
                        goal, price = 0.0, min(open_[i], stop)
                    elif high[i] >= entry * (1.0 + take_profit):
                        goal, price = 0.0, max(open_[i], entry * (1.0 + take_profit))
                    else:
                        best = max(best, high[i])
                elif units < 0.0:
                    stop = min(entry * (1.0 + stop_loss), best * (1.0 + trailing))
                    if high[i] >= stop:
                        goal, price = 0.0, max(open_[i], stop)
                    elif low[i] <= entry * (1.0 - take_profit):
                        goal, price = 0.0, min(open_[i], entry * (1.0 - take_profit))
                    else:
                        best = min(best, low[i])
            if goal == goal:
                fraction = goal * size
                side = 1.0 if fraction * (cash + units * price) > units * price else -1.0
                fill = price * (1.0 + side * slippage)
                closing = units if fraction * units <= 0.0 else 0.0
                worth = cash + units * fill - fee * abs(closing) * fill
                bought = fraction * worth / (fill * (1.0 + fee)) - units
                if bought * side > 0.0:
                    if closing != 0.0:
                        trades += 1
                        earned = worth - stake
                        if earned > 1e-12 * stake:
                            wins += 1
                            gain += earned
                        elif earned < -1e-12 * stake:
                            lost -= earned
                    if units == 0.0 or closing != 0.0:
                        stake = worth
                        entry = best = fill
                    cash -= bought * fill + fee * abs(bought) * fill
                    fractions += abs(bought) * fill / worth
                    units += bought
                    if goal == 0.0:
                        units = 0.0
        equity = cash + units * close[i]
        if units != 0.0:
            held += 1
        if i > 0:
            change = equity / previous - 1.0
            sum1 += change
            sum2 += change * change
            loss = min(change, 0.0)
            losses += loss * loss
        previous = equity
        if equity >= peak * (1.0 - 1e-12):
            if is_deepest:
                deepest_bars = i - peak_bar
            is_deepest = False
            peak = max(equity, peak)
            peak_bar = i
        elif equity < peak * (1.0 - 1e-12 - deepest):
            deepest = 1.0 - equity / peak
            is_deepest = True
    if is_deepest:
        deepest_bars = n - 1 - peak_bar
    drops = (deepest, float(deepest_bars), held / n)
    return as_metrics(n, initial, previous, sum1, sum2, losses, drops, fractions, (trades, wins, gain, lost))


@compiled
def fused_everything(  # noqa: C901 -- everything in one loop is the point
    target: Float64Array, tape: Tape, terms: Conditions, tiers: Float64Array
) -> Float64Array:
    """The same for sizes by volatility, impact, a share of the volume, rounding, tiers, interest, margin calls, a time
    stop and a last order; nothing but this, and no ruin."""
    open_, high, low, close, volume = tape.open, tape.high, tape.low, tape.close, tape.volume
    days, volatility = tape.days, tape.volatility
    n = close.size
    cash = initial = previous = peak = terms.initial_cash
    units = standing = aim = entry = best = stake = recent = 0.0
    sum1 = sum2 = losses = deepest = fractions = gain = lost = 0.0
    peak_bar = deepest_bars = held = trades = wins = entry_bar = oldest = newest = 0
    is_deepest = pending = False
    filled_days, filled = np.empty(4 * n), np.empty(4 * n)
    for i in range(n):
        if units != 0.0 and i > 0:
            value = units * close[i - 1]
            borrowed = -value if value < 0.0 else max(-cash, 0.0)
            cash -= (terms.funding_per_day * value + terms.borrow_per_day * borrowed) * (days[i] - days[i - 1])
        used = 0.0
        for step in range(3):
            price = 0.0
            if step == 0 and i > 0:
                wanted = target[i - 1]
                if math.isnan(wanted):
                    wanted = 0.0
                if wanted != standing:
                    standing = aim = wanted
                    pending = True
                if i - entry_bar >= terms.time_stop_bars and aim * units > 0.0:
                    aim = 0.0
                    pending = True
                if pending:
                    price = open_[i]
            elif step == 1 and units != 0.0 and aim != 0.0:
                if units > 0.0:
                    stop = max(entry * (1.0 - terms.stop_loss), best * (1.0 - terms.trailing_stop))
                    stop = max(stop, -cash / (units * (1.0 - terms.maintenance_margin)))
                    goal = entry * (1.0 + terms.take_profit)
                    if low[i] <= stop:
                        price = open_[i] if open_[i] <= stop or open_[i] >= goal else stop
                    elif high[i] >= goal:
                        price = max(open_[i], goal)
                    else:
                        best = max(best, high[i])
                else:
                    stop = min(entry * (1.0 + terms.stop_loss), best * (1.0 + terms.trailing_stop))
                    stop = min(stop, -cash / (units * (1.0 + terms.maintenance_margin)))
                    goal = entry * (1.0 - terms.take_profit)
                    if high[i] >= stop:
                        price = open_[i] if open_[i] >= stop or open_[i] <= goal else stop
                    elif low[i] <= goal:
                        price = min(open_[i], goal)
                    else:
                        best = min(best, low[i])
                if price > 0.0:
                    aim = 0.0
                    pending = True
            elif step == 2 and i == n - 1 and units != 0.0:
                price = close[i]
                aim = 0.0
            if price == 0.0:
                continue
            while oldest < newest and filled_days[oldest] <= days[i] - 30.0:
                recent -= filled[oldest]
                oldest += 1
            if oldest == newest:
                recent = 0.0
            fee = terms.fee
            for tier in range(len(tiers)):
                if recent >= tiers[tier, 0]:
                    fee = tiers[tier, 1]
            fraction = 0.0
            if aim != 0.0:
                if math.isnan(volatility[i - 1]):
                    continue
                fraction = min(max(aim * terms.size / volatility[i - 1], -terms.leverage), terms.leverage)
            side = 1.0 if fraction * (cash + units * price) > units * price else -1.0
            locked = step < 2 and i > 0 and open_[i] == high[i] == low[i] == close[i] != close[i - 1]
            if locked and (side > 0.0) == (close[i] > close[i - 1]):
                continue
            fill = price * (1.0 + side * terms.slippage)
            closing = units if fraction * units <= 0.0 else 0.0
            worth = cash + units * fill - fee * abs(closing) * fill
            position = fraction * worth / (fill * (1.0 + fee))
            room = terms.max_volume_share * volume[i] - used if step < 2 else math.inf
            amount = min(max((position - units) * side, 0.0), room)
            if amount > 0.0 and step < 2:
                moved = terms.slippage + terms.impact * math.sqrt(min(amount / volume[i], 1.0))
                fill = price * (1.0 + side * moved)
                worth = cash + units * fill - fee * abs(closing) * fill
                position = fraction * worth / (fill * (1.0 + fee))
            needed = (position - units) * side
            pending = False
            if not needed > 1e-12 * abs(units):
                continue
            amount = min(needed, room)
            pending = amount < needed
            if position != 0.0 or pending:
                amount = math.floor(amount / terms.quantity_increment + 1e-9) * terms.quantity_increment
                if amount < terms.min_quantity * (1.0 - 1e-9):
                    continue
            after = position if amount == needed else units + side * amount
            if abs(after) < 1e-9 * amount:
                after = 0.0
            if units != 0.0 and after * units <= 0.0:
                left = cash + units * fill - fee * abs(units) * fill
                earned = left - stake
                trades += 1
                if earned > 1e-12 * stake:
                    wins += 1
                    gain += earned
                elif earned < -1e-12 * stake:
                    lost -= earned
                stake = left
            elif units == 0.0:
                stake = worth
            notional = amount * fill
            cash -= side * notional + fee * notional
            fractions += notional / worth
            used += amount
            filled_days[newest], filled[newest] = days[i], notional
            recent += notional
            newest += 1
            if units * after <= 0.0:
                entry = best = fill
                entry_bar = i
            elif abs(after) > abs(units):
                entry += (fill - entry) * (side * amount / after)
            units = after
        equity = cash + units * close[i]
        if units != 0.0:
            held += 1
        if i > 0:
            change = equity / previous - 1.0
            sum1 += change
            sum2 += change * change
            loss = min(change, 0.0)
            losses += loss * loss
        previous = equity
        if equity >= peak * (1.0 - 1e-12):
            if is_deepest:
                deepest_bars = i - peak_bar
            is_deepest = False
            peak = max(equity, peak)
            peak_bar = i
        elif equity < peak * (1.0 - 1e-12 - deepest):
            deepest = 1.0 - equity / peak
            is_deepest = True
    if is_deepest:
        deepest_bars = n - 1 - peak_bar
    drops = (deepest, float(deepest_bars), held / n)
    return as_metrics(n, initial, previous, sum1, sum2, losses, drops, fractions, (trades, wins, gain, lost))


@compiled
def as_metrics(
    n: int,
    initial: float,
    last: float,
    sum1: float,
    sum2: float,
    losses: float,
    drops: tuple[float, float, float],
    fractions: float,
    round_trips: tuple[int, int, float, float],
) -> Float64Array:
    """The thirteen metrics, a year being the whole run."""
    mean = sum1 / (n - 1)
    deviation = math.sqrt((sum2 - mean * sum1) / (n - 2))
    per_year = float(n - 1)
    growth = last / initial - 1.0
    result = np.empty(13)
    result[0] = result[1] = growth
    result[2] = deviation * math.sqrt(per_year)
    result[3] = mean / deviation * math.sqrt(per_year)
    result[4] = mean / math.sqrt(losses / (n - 1)) * math.sqrt(per_year)
    result[5] = growth / drops[0]
    result[6], result[7], result[8] = drops
    trades, wins, gain, lost = round_trips
    result[9], result[10], result[11], result[12] = fractions, trades, wins / trades, gain / lost
    return result
