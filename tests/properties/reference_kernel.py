"""The accounting rules once more in slow, plain Python, written from the specification and not from the kernel.

Money is moved leg by leg (a reversal is a close and an open), and every metric is computed afterwards from the whole
equity curve, so that the compiled one-pass kernel has something independent to be equal to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

NS_PER_DAY = 24 * 3600 * 10**9
NS_PER_YEAR = 365.25 * NS_PER_DAY


@dataclass
class ReferenceFill:
    """One fill: side +1 bought, -1 sold."""

    bar_index: int
    side: int
    price: float
    quantity: float
    fee: float


@dataclass
class ReferenceRun:
    """Everything that happened, bar by bar; a trade is (worth before it, what it earned)."""

    initial_cash: float
    equity: list[float] = field(default_factory=list)
    units: list[float] = field(default_factory=list)
    fills: list[ReferenceFill] = field(default_factory=list)
    traded_fractions: list[float] = field(default_factory=list)
    trades: list[tuple[float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Terms:
    """What was agreed: names and units as in ``Costs``, ``Sizing`` and ``Rules``; everything but the first is off."""

    initial_cash: float = 10_000.0
    fee_bps: float = 0.0
    slippage_bps: float = 0.0
    fill: str = "next_open"
    spread_bps: float = 0.0
    impact: float = 0.0
    max_volume_share: float = 0.0
    fee_tiers: tuple[tuple[float, float], ...] = ()
    funding_bps_per_day: float = 0.0
    borrow_bps_per_day: float = 0.0
    maintenance_margin: float = 0.05
    both_in_bar: str = "stop_first"
    zero_volume: str = "waits"
    locked_bars: str = "fills"
    at_end: str = "hold"
    kind: str = "percent"
    window: int = 30
    min_quantity: float = 0.0
    quantity_increment: float = 0.0
    stop_loss: float = 0.0
    take_profit: float = 0.0
    trailing_stop: float = 0.0
    time_stop_bars: int = 0
    size: float = 1.0
    leverage: float = 1.0


@dataclass(frozen=True)
class ReferenceBars:
    """The market: lists of n, and the bars' starts."""

    open: Sequence[float]
    high: Sequence[float]
    low: Sequence[float]
    close: Sequence[float]
    volume: Sequence[float]
    ts_ns: Sequence[int]


class Account:
    """Cash and a position; knows how to trade, how to be ruined, and what a round trip earned."""

    def __init__(self, terms: Terms, bars: ReferenceBars) -> None:
        self.terms = terms
        self.bars = bars
        self.run = ReferenceRun(terms.initial_cash)
        self.cash = terms.initial_cash
        self.units = 0.0
        self.flat_cash = terms.initial_cash
        self.ruined = False
        self.aim = 0.0
        self.waiting = False
        self.entry = 0.0
        self.entry_bar = 0
        self.best = 0.0
        self.filled_on: dict[int, float] = {}

    # -- one bar ------------------------------------------------------------------------------------------------------

    def go_through(self, bar: int, wanted: float | None) -> None:
        """Everything that happens on a bar; ``wanted`` is a changed target, None where it stands."""
        self.pay_interest(bar)
        at_close = self.terms.fill == "same_close"
        if not at_close:
            self.at_order_time(bar, wanted, self.bars.open[bar])
        self.within(bar)
        if at_close:
            self.at_order_time(bar, wanted, self.bars.close[bar])
        if self.terms.at_end == "liquidate" and bar == len(self.bars.close) - 1 and self.units != 0:
            self.aim, self.waiting = 0.0, False
            self.trade_at(self.bars.close[bar], bar, simple=True)
        self.mark(self.bars.close[bar], bar)

    def pay_interest(self, bar: int) -> None:
        if self.units == 0 or bar == 0:
            return
        value = self.units * self.bars.close[bar - 1]
        time = (self.bars.ts_ns[bar] - self.bars.ts_ns[bar - 1]) / NS_PER_DAY
        borrowed = abs(value) if self.units < 0 else max(0.0, -self.cash)
        self.cash -= value * self.terms.funding_bps_per_day / 1e4 * time
        self.cash -= borrowed * self.terms.borrow_bps_per_day / 1e4 * time

    def at_order_time(self, bar: int, wanted: float | None, price: float) -> None:
        if wanted is not None:
            self.aim, self.waiting = wanted, not self.ruined
        limit = self.terms.time_stop_bars
        held_long_enough = limit > 0 and self.units != 0 and bar >= self.entry_bar + limit
        if held_long_enough and self.aim * self.units > 0:
            self.aim, self.waiting = 0.0, True
        if self.waiting and not self.nothing_trades(bar):
            self.trade_at(price, bar)

    def within(self, bar: int) -> None:
        """Stops and targets between a bar's open and its close."""
        if self.units == 0 or self.aim == 0 or self.nothing_trades(bar):
            return
        stops, targets = self.stops(), self.targets()
        long = self.units > 0
        worst, best = (self.bars.low[bar], self.bars.high[bar]) if long else (self.bars.high[bar], self.bars.low[bar])
        open_ = self.bars.open[bar]
        side = 1 if long else -1
        never = -side * math.inf
        stop = max(stops, default=never) if long else min(stops, default=never)
        target = targets[0] if targets else -never
        stopped = (worst - stop) * side <= 0
        reached = (best - target) * side >= 0
        beyond_stop = (open_ - stop) * side <= 0
        beyond_target = (open_ - target) * side >= 0
        if beyond_stop or beyond_target:
            price = open_
        elif stopped and reached:
            price = stop if self.terms.both_in_bar == "stop_first" else target
        elif stopped:
            price = stop
        elif reached:
            price = target
        else:
            self.best = max(self.best, best) if long else min(self.best, best)
            return
        self.aim, self.waiting = 0.0, True
        self.trade_at(price, bar)

    def stops(self) -> list[float]:
        side = 1 if self.units > 0 else -1
        found = []
        if self.terms.stop_loss > 0:
            found.append(self.entry * (1 - side * self.terms.stop_loss))
        if self.terms.trailing_stop > 0:
            found.append(self.best * (1 - side * self.terms.trailing_stop))
        if self.terms.leverage > 1:
            # cash + units * p = margin * |units| * p
            call = -self.cash / (self.units - self.terms.maintenance_margin * abs(self.units))
            if call > 0 or self.units < 0:
                found.append(call)
        return found

    def targets(self) -> list[float]:
        side = 1 if self.units > 0 else -1
        gain = self.terms.take_profit
        return [self.entry * (1 + side * gain)] if gain > 0 and 1 + side * gain > 0 else []

    def nothing_trades(self, bar: int) -> bool:
        return self.bars.volume[bar] == 0 and self.terms.zero_volume == "waits"

    # -- one order ----------------------------------------------------------------------------------------------------

    def trade_at(self, price: float, bar: int, simple: bool = False) -> None:
        """Move the position towards the aim at an undisturbed ``price``; ``simple``: whatever the bar's volume."""
        wish = self.wish(bar)
        if wish is None:
            return
        side = 1 if self.wanted_value(wish, price) > self.units * price else -1
        if not simple and self.is_locked(bar, side):
            return
        fee = self.fee(bar)
        slippage = self.terms.slippage_bps / 10_000 + self.terms.spread_bps / 2 / 10_000
        room = math.inf
        if self.terms.max_volume_share > 0 and not simple:
            room = self.terms.max_volume_share * self.bars.volume[bar] - self.filled_on.get(bar, 0.0)
        fill_price = price * (1 + slippage * side)
        if self.terms.impact > 0 and not simple:
            amount = min(max(0.0, (self.wanted_units(wish, fill_price, fee) - self.units) * side), room)
            if amount > 0:
                volume = self.bars.volume[bar]
                part = min(1.0, amount / volume) if volume > 0 else 1.0
                fill_price = price * (1 + side * (slippage + self.terms.impact * math.sqrt(part)))
        left = self.left_to_size_by(wish, fill_price, fee)
        if left <= 1e-12 * abs(self.cash):
            self.waiting = False
            self.ruin(price, bar)
            return
        wanted = self.wanted_units(wish, fill_price, fee)
        needed = (wanted - self.units) * side
        if needed <= 1e-12 * abs(self.units):  # as near as it gets, or rounding
            self.waiting = False
            return
        amount = min(needed, room)
        complete = amount >= needed
        if not (complete and wanted == 0):
            amount = self.rounded(amount)
        self.waiting = not complete
        if amount <= 0:
            return
        self.filled_on[bar] = self.filled_on.get(bar, 0.0) + amount
        self.book(side * amount, wanted if amount == needed else None, fill_price, fee, left, bar)

    def wish(self, bar: int) -> tuple[str, float] | None:
        """What the aim means: a fraction of equity, units or quote units; None while it cannot be said."""
        terms = self.terms
        if self.aim == 0:
            return "fraction", 0.0
        if terms.kind in {"units", "notional"}:
            return terms.kind, self.aim * terms.size
        fraction = self.aim * terms.size
        if terms.kind == "volatility":
            measured = self.volatility(bar if terms.fill == "same_close" else bar - 1)
            if measured is None:
                return None
            if fraction != 0:
                fraction = fraction / measured if measured > 0 else math.copysign(math.inf, fraction)
        return "fraction", max(-terms.leverage, min(terms.leverage, fraction))

    def volatility(self, last: int) -> float | None:
        window, close = self.terms.window, self.bars.close
        if last < window:
            return None
        returns = [close[i] / close[i - 1] - 1 for i in range(last - window + 1, last + 1)]
        mean = math.fsum(returns) / window
        variance = math.fsum((r - mean) ** 2 for r in returns) / (window - 1)
        years = (self.bars.ts_ns[last] - self.bars.ts_ns[last - window]) / NS_PER_YEAR
        # Equal returns have no deviation, whatever a sum of their rounding errors says.
        return 0.0 if max(returns) == min(returns) else math.sqrt(variance * window / years)

    def wanted_value(self, wish: tuple[str, float], price: float) -> float:
        """What the position should be worth at the undisturbed price."""
        kind, number = wish
        worth = self.cash + self.units * price
        if kind == "fraction":
            return number * worth
        most = self.terms.leverage * max(worth, 0.0)
        return max(-most, min(most, number * price if kind == "units" else number))

    def left_to_size_by(self, wish: tuple[str, float], fill_price: float, fee: float) -> float:
        worth = self.cash + self.units * fill_price
        keeps_side = wish[1] * self.units > 0
        return worth if keeps_side else worth - abs(self.units) * fill_price * fee

    def wanted_units(self, wish: tuple[str, float], fill_price: float, fee: float) -> float:
        kind, number = wish
        left = self.left_to_size_by(wish, fill_price, fee)
        if kind == "fraction":
            return number * left / (fill_price * (1 + fee))
        most = self.terms.leverage * max(left, 0.0) / (fill_price * (1 + fee))
        return max(-most, min(most, number if kind == "units" else number / fill_price))

    def rounded(self, amount: float) -> float:
        increment = self.terms.quantity_increment
        if increment > 0:
            amount = math.floor(amount / increment + 1e-9) * increment
        return amount if amount > 0 and amount >= self.terms.min_quantity * (1 - 1e-9) else 0.0

    def is_locked(self, bar: int, side: int) -> bool:
        bars = self.bars
        if self.terms.locked_bars == "fills" or bar == 0:
            return False
        price = bars.close[bar]
        if not bars.open[bar] == bars.high[bar] == bars.low[bar] == price:
            return False
        return (price > bars.close[bar - 1] and side > 0) or (price < bars.close[bar - 1] and side < 0)

    def fee(self, bar: int) -> float:
        now = self.bars.ts_ns[bar]
        lately = [f for f in self.run.fills if now - self.bars.ts_ns[f.bar_index] < 30 * NS_PER_DAY]
        traded = math.fsum(fill.quantity * fill.price for fill in lately)
        fee_bps = self.terms.fee_bps
        for volume_from, tier_bps in self.terms.fee_tiers:
            if traded >= volume_from:
                fee_bps = tier_bps
        return fee_bps / 10_000

    def book(
        self, quantity: float, becomes: float | None, fill_price: float, fee: float, worth: float, bar: int
    ) -> None:
        """Move the money, a reversal in two legs; remember the entry."""
        before = self.units
        after = before + quantity if becomes is None else becomes
        if abs(after) < 1e-9 * abs(quantity):
            after = 0.0
        fees = 0.0
        if before != 0 and after * before <= 0:
            fees += self._leg(-before, fill_price, fee)
            self._end_trade()
        if after != self.units:
            fees += self._leg(after - self.units, fill_price, fee)
        self.units = after
        self.run.fills.append(ReferenceFill(bar, 1 if quantity > 0 else -1, fill_price, abs(quantity), fees))
        self.run.traded_fractions.append(abs(quantity) * fill_price / worth)
        if before * after <= 0:
            self.entry = self.best = fill_price
            self.entry_bar = bar
        elif abs(after) > abs(before):
            self.entry = (self.entry * before + fill_price * quantity) / after

    def mark(self, close: float, bar: int) -> None:
        """Note the equity at a close; ruin if nothing is left."""
        if not self.ruined and self.cash + self.units * close <= 1e-12 * abs(self.cash):
            self.ruin(close, bar)
        self.run.equity.append(self.cash + self.units * close)
        self.run.units.append(self.units)

    def ruin(self, price: float, bar: int) -> None:
        """The position is closed out without a fee and nothing is left."""
        if self.units != 0:
            side = 1 if self.units < 0 else -1
            self.run.fills.append(ReferenceFill(bar, side, price, abs(self.units), 0.0))
        self.cash = 0.0
        if self.units != 0:
            self._end_trade()
        self.units = 0.0
        self.ruined = True
        self.waiting = False

    def _leg(self, quantity: float, fill_price: float, fee: float) -> float:
        paid = abs(quantity) * fill_price * fee
        self.cash -= quantity * fill_price + paid
        self.units += quantity
        return paid

    def _end_trade(self) -> None:
        self.run.trades.append((self.flat_cash, self.cash - self.flat_cash))
        self.flat_cash = self.cash


def reference_run(
    target: Sequence[float],
    open_: Sequence[float],
    close: Sequence[float],
    *,
    fee_bps: float,
    slippage_bps: float,
    fill: str,
    initial_cash: float,
) -> ReferenceRun:
    """The books of a run on n bars in the plain case."""
    terms = Terms(initial_cash, fee_bps, slippage_bps, fill)
    ones, hours = [1.0] * len(close), [i * 3_600 * 10**9 for i in range(len(close))]
    return reference_general(target, ReferenceBars(open_, close, close, close, ones, hours), terms)


def reference_general(target: Sequence[float], bars: ReferenceBars, terms: Terms) -> ReferenceRun:
    """The books of a run on n bars by all rules at the top of strategies/kernel.py."""
    account = Account(terms, bars)
    decided = [0.0 if math.isnan(value) else value for value in target]
    due = decided if terms.fill == "same_close" else [0.0, *decided[:-1]]
    for bar in range(len(bars.close)):
        standing = due[bar - 1] if bar > 0 else 0.0
        account.go_through(bar, due[bar] if due[bar] != standing else None)
    return account.run


def reference_metrics(run: ReferenceRun, ts_ns: Sequence[int]) -> dict[str, float]:
    """Every metric from its definition, over the whole curve; NaN where undefined."""
    equity, bars = run.equity, len(run.equity)
    years = (ts_ns[-1] - ts_ns[0]) / NS_PER_YEAR
    returns = [b / a - 1 if a > 0 else 0.0 for a, b in itertools.pairwise(equity)]
    per_year = _ratio(bars - 1, years)
    mean = math.fsum(returns) / len(returns) if returns else math.nan
    deviation = _root(math.fsum((r - mean) ** 2 for r in returns), len(returns) - 1)
    losses = _root(math.fsum(min(r, 0.0) ** 2 for r in returns), len(returns))
    drawdown, drawdown_bars = _deepest_drawdown(run)
    cagr = _growth(equity[-1] / run.initial_cash, years)
    wins = [gain for stake, gain in run.trades if gain > 1e-12 * stake]
    defeats = [-gain for stake, gain in run.trades if -gain > 1e-12 * stake]
    return {
        "total_return": equity[-1] / run.initial_cash - 1,
        "cagr": cagr,
        "volatility": deviation * math.sqrt(per_year),
        "sharpe": _ratio(mean, deviation if deviation > 1e-14 else 0.0) * math.sqrt(per_year),
        "sortino": _ratio(mean, losses if losses > 1e-14 else 0.0) * math.sqrt(per_year),
        "calmar": _ratio(cagr, drawdown if drawdown > 1e-14 else 0.0),
        "max_drawdown": drawdown,
        "max_drawdown_bars": float(drawdown_bars),
        "exposure": sum(1 for units in run.units if units != 0) / bars,
        "turnover": _ratio(math.fsum(run.traded_fractions), years),
        "trades": float(len(run.trades)),
        "win_rate": _ratio(len(wins), len(run.trades)),
        "profit_factor": _ratio(math.fsum(wins), math.fsum(defeats)),
    }


def _deepest_drawdown(run: ReferenceRun) -> tuple[float, int]:
    depths, peaks = [], []
    peak, peak_bar = run.initial_cash, 0
    for bar, value in enumerate(run.equity):
        if value >= peak * (1 - 1e-12):
            peak, peak_bar = max(value, peak), bar
        depths.append(1 - value / peak)
        peaks.append((peak, peak_bar))
    deepest = max(depths)
    if deepest <= 1e-12:
        return 0.0, 0
    bottom = next(bar for bar, depth in enumerate(depths) if depth >= deepest - 1e-12)
    peak, peak_bar = peaks[bottom]
    recovered = [bar for bar in range(bottom, len(run.equity)) if run.equity[bar] >= peak * (1 - 1e-12)]
    return deepest, (recovered[0] if recovered else len(run.equity) - 1) - peak_bar


def _growth(multiple: float, years: float) -> float:
    if years <= 0:
        return math.nan
    try:
        return float(multiple ** (1 / years)) - 1
    except OverflowError:
        return math.nan


def _root(total: float, count: int) -> float:
    return math.sqrt(total / count) if count > 0 else math.nan


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else math.nan
