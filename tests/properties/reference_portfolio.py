"""The rules of portfolios once more in slow, plain Python, written from the specification and not from the kernel.

One purse, a position a product, money moved leg by leg; each round trip keeps its own list of payments, so its result
is their sum. The metrics are computed afterwards by the reference for one product, from the whole curve.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.properties.reference_kernel import NS_PER_DAY, NS_PER_YEAR, ReferenceRun, Terms

TINY = 1e-12


@dataclass
class PortfolioFill:
    """One fill: side +1 bought, -1 sold."""

    bar_index: int
    product: int
    side: int
    price: float
    quantity: float
    fee: float


@dataclass(frozen=True)
class Market:
    """Lists of n bars of p numbers, NaN where a product has no bar; the times' starts."""

    open: Sequence[Sequence[float]]
    high: Sequence[Sequence[float]]
    low: Sequence[Sequence[float]]
    close: Sequence[Sequence[float]]
    volume: Sequence[Sequence[float]]
    ts_ns: Sequence[int]

    def there(self, bar: int, q: int) -> bool:
        return not math.isnan(self.close[bar][q])

    def latest(self, bar: int, q: int) -> float:
        """The last close up to this bar, 0 before the first."""
        return next((self.close[i][q] for i in range(bar, -1, -1) if self.there(i, q)), 0.0)

    def own_bars(self, q: int, first: int, last: int) -> list[int]:
        return [i for i in range(first, last + 1) if self.there(i, q)]


@dataclass
class Position:
    """One product: what is held and pursued, and the payments of its round trip, which began at ``scale`` of equity."""

    units: float = 0.0
    aim: float = 0.0
    waiting: bool = False
    stopped: bool = False
    entry: float = 0.0
    entry_bar: int = 0
    best: float = 0.0
    payments: list[float] = field(default_factory=list)
    scale: float = 0.0

    @property
    def side(self) -> int:
        return (self.units > 0) - (self.units < 0)


class Portfolio:
    """The purse and the positions; ``run`` collects what the metrics need."""

    def __init__(self, terms: Terms, market: Market, quantities: Sequence[tuple[float, float]] | None = None) -> None:
        products = len(market.close[0])
        self.terms, self.market = terms, market
        self.quantities = quantities or [(terms.min_quantity, terms.quantity_increment)] * products
        self.run = ReferenceRun(terms.initial_cash)
        self.cash = terms.initial_cash
        self.positions = [Position() for _ in range(products)]
        self.prices = [0.0] * products
        self.fills: list[PortfolioFill] = []
        self.history: list[list[float]] = []
        self.filled_on: dict[tuple[int, int], float] = {}
        self.ruined = False

    # -- one bar ------------------------------------------------------------------------------------------------------

    def go_through(self, bar: int, weights: Sequence[float]) -> None:
        """Everything that happens at one time, in its order; ``weights`` are those due then."""
        at_close = self.terms.fill == "same_close"
        self.pay_interest(bar)
        if at_close:
            self.within(bar)
        if not self.ruined:
            for position, weight in zip(self.positions, weights, strict=True):
                if not math.isnan(weight):
                    position.aim, position.waiting, position.stopped = weight, True, False
            self.stop_by_time(bar)
            self.at_order_time(bar, at_close)
        if not at_close:
            self.within(bar)
        self.at_the_end(bar)
        self.mark(bar)

    def pay_interest(self, bar: int) -> None:
        if bar == 0:
            return
        days = (self.market.ts_ns[bar] - self.market.ts_ns[bar - 1]) / NS_PER_DAY
        values = [p.units * self.market.latest(bar - 1, q) for q, p in enumerate(self.positions)]
        longs = sum(value for value in values if value > 0)
        debt = max(0.0, -self.cash)
        for position, value in zip(self.positions, values, strict=True):
            borrowed = -value if value < 0 else debt * value / longs if value > 0 else 0.0
            owed = value * self.terms.funding_bps_per_day + borrowed * self.terms.borrow_bps_per_day
            if value:
                position.payments.append(-owed / 1e4 * days)
                self.cash -= owed / 1e4 * days

    def stop_by_time(self, bar: int) -> None:
        limit = self.terms.time_stop_bars
        for q, position in enumerate(self.positions):
            age = len(self.market.own_bars(q, position.entry_bar + 1, bar))
            if limit > 0 and position.aim * position.units > 0 and age >= limit:
                position.aim, position.waiting, position.stopped = 0.0, True, True

    def at_order_time(self, bar: int, at_close: bool) -> None:
        """Every waiting order that can be traded, sells first."""
        self.look_at_prices(bar, at_close)
        ready: dict[int, float] = {}
        for q, position in enumerate(self.positions):
            wish = self.wish(bar, q)
            if position.waiting and self.trades(bar, q) and wish is not None:
                ready[q] = wish
        worth = self.worth()
        scale = self.scale(ready, worth)
        sides: dict[int, int] = {}
        for q, wish in ready.items():
            ready[q] = wish * scale
            gap = self.wanted_value(ready[q], q, worth) - self.value(q)
            if ready[q] != 0 and abs(gap) <= TINY * worth:
                self.positions[q].waiting = False
                continue
            side = 1 if gap > 0 else -1
            if not self.is_locked(bar, q, side):
                sides[q] = side
        for side in (-1, 1):
            for q in ready:
                if sides.get(q) == side and not self.ruined:
                    self.pursue(q, ready[q], side, bar)

    def within(self, bar: int) -> None:
        """Stops, targets and margin calls between a bar's open and its close."""
        self.look_at_prices(bar, at_close=False)
        for q, position in enumerate(self.positions):
            if self.ruined or position.units == 0 or position.aim == 0 or not self.trades(bar, q):
                continue
            long = position.units > 0
            low, high, open_ = self.market.low[bar][q], self.market.high[bar][q], self.market.open[bar][q]
            worst, best = (low, high) if long else (high, low)
            side = position.side
            levels = self.stop_levels(bar, q)
            stop = (max if long else min)(levels) if levels else -side * math.inf
            gain = self.terms.take_profit
            target = position.entry * (1 + side * gain) if gain > 0 else side * math.inf
            if target <= 0:
                target = side * math.inf
            stopped, reached = (worst - stop) * side <= 0, (best - target) * side >= 0
            if not stopped and not reached:
                position.best = max(position.best, best) if long else min(position.best, best)
                continue
            if (open_ - stop) * side <= 0 or (open_ - target) * side >= 0:
                price = open_
            elif stopped and reached:
                price = stop if self.terms.both_in_bar == "stop_first" else target
            else:
                price = stop if stopped else target
            position.aim, position.waiting, position.stopped = 0.0, True, True
            self.prices[q] = price
            if not self.is_locked(bar, q, -side):
                self.pursue(q, 0.0, -side, bar)

    def stop_levels(self, bar: int, q: int) -> list[float]:
        position, terms = self.positions[q], self.terms
        found = []
        if terms.stop_loss > 0:
            found.append(position.entry * (1 - position.side * terms.stop_loss))
        if terms.trailing_stop > 0:
            found.append(position.best * (1 - position.side * terms.trailing_stop))
        if terms.leverage > 1:
            # money + units * p = margin * (gross + |units| * p), the others at their worst
            money, gross = self.cash, 0.0
            for other, one in enumerate(self.positions):
                if other != q and one.units:
                    worst = self.market.low[bar][other] if one.units > 0 else self.market.high[bar][other]
                    worst = self.market.latest(bar, other) if math.isnan(worst) else worst
                    money += one.units * worst
                    gross += abs(one.units) * worst
            margin = terms.maintenance_margin
            call = (margin * gross - money) / (position.units - margin * abs(position.units))
            if call > 0 or position.units < 0:
                found.append(call)
        return found

    def at_the_end(self, bar: int) -> None:
        if self.terms.at_end != "liquidate":
            return
        last = len(self.market.close) - 1
        self.prices = [self.market.latest(bar, q) for q in range(len(self.positions))]
        for q, position in enumerate(self.positions):
            ends = self.market.there(bar, q) and not self.market.own_bars(q, bar + 1, last)
            if ends and position.units and not self.ruined:
                position.aim, position.waiting = 0.0, False
                self.close_simply(q, bar)

    def mark(self, bar: int) -> None:
        """Note the equity at a close; ruin if nothing is left."""
        self.prices = [self.market.latest(bar, q) for q in range(len(self.positions))]
        if not self.ruined and self.worth() <= TINY * abs(self.cash):
            self.ruin(bar)
        self.run.equity.append(self.worth())
        self.history.append([position.units for position in self.positions])
        self.run.units.append(1.0 if any(self.history[-1]) else 0.0)

    # -- what can be asked --------------------------------------------------------------------------------------------

    def look_at_prices(self, bar: int, at_close: bool) -> None:
        for q in range(len(self.positions)):
            opens = self.market.there(bar, q) and not at_close
            self.prices[q] = self.market.open[bar][q] if opens else self.market.latest(bar, q)

    def value(self, q: int) -> float:
        return self.positions[q].units * self.prices[q]

    def worth(self, q: int = -1, price: float = 0.0) -> float:
        """Cash and all positions at the prices of the moment, product ``q`` at its own ``price``."""
        values = [p.units * (price if i == q else self.prices[i]) for i, p in enumerate(self.positions) if p.units]
        return self.cash + sum(values)

    def trades(self, bar: int, q: int) -> bool:
        return self.market.there(bar, q) and (self.terms.zero_volume == "fills" or self.market.volume[bar][q] > 0)

    def is_locked(self, bar: int, q: int, side: int) -> bool:
        market = self.market
        price = market.close[bar][q]
        still = market.open[bar][q] == market.high[bar][q] == market.low[bar][q] == price
        before = market.latest(bar - 1, q) if bar > 0 else 0.0
        moved = (price > before) - (price < before) if before > 0 else 0
        return self.terms.locked_bars == "waits" and still and moved == side

    def wish(self, bar: int, q: int) -> float | None:
        """The aim; for sizes by volatility the fraction of the worth it means, None while that is not known."""
        terms, aim = self.terms, self.positions[q].aim
        if aim == 0 or terms.kind != "volatility":
            return aim
        measured = self.volatility(bar if terms.fill == "same_close" else bar - 1, q)
        if measured is None:
            return None
        if aim * terms.size == 0:
            return 0.0
        fraction = aim * terms.size / measured if measured > 0 else math.copysign(math.inf, aim)
        return max(-terms.leverage, min(terms.leverage, fraction))

    def volatility(self, last: int, q: int) -> float | None:
        bars = self.market.own_bars(q, 0, last)[-self.terms.window - 1 :]
        if len(bars) <= self.terms.window:
            return None
        closes = [self.market.close[i][q] for i in bars]
        returns = [b / a - 1 for a, b in itertools.pairwise(closes)]
        mean = math.fsum(returns) / len(returns)
        variance = math.fsum((r - mean) ** 2 for r in returns) / (len(returns) - 1)
        years = (self.market.ts_ns[bars[-1]] - self.market.ts_ns[bars[0]]) / NS_PER_YEAR
        return 0.0 if max(returns) == min(returns) else math.sqrt(variance * len(returns) / years)

    def asked(self, wish: float, q: int, worth: float) -> float:
        """The value wanted, before it is bounded."""
        terms = self.terms
        if terms.kind == "volatility":
            return wish * worth
        if terms.kind == "percent":
            return wish * terms.size * worth
        return wish * terms.size * (self.prices[q] if terms.kind == "units" else 1.0)

    def wanted_value(self, wish: float, q: int, worth: float) -> float:
        bound = self.terms.leverage * (worth if self.terms.kind in {"percent", "volatility"} else max(worth, 0.0))
        asked = self.asked(wish, q, worth)
        return math.copysign(min(abs(asked), abs(bound)), asked)

    def scale(self, ready: dict[int, float], worth: float) -> float:
        """The one factor by which too large wishes are made smaller together."""
        if worth <= 0:
            return 1.0
        asked = [abs(self.asked(wish, q, worth)) / worth for q, wish in ready.items()]
        kept = sum(abs(self.value(q)) for q in range(len(self.positions)) if q not in ready) / worth
        if sum(1 for share in asked if share) <= 1 and kept == 0:
            return 1.0
        total, leverage = sum(asked), self.terms.leverage
        return max(leverage - kept, 0.0) / total if total and total + kept > leverage * (1 + TINY) else 1.0

    def fee(self, bar: int) -> float:
        now = self.market.ts_ns[bar]
        lately = [f for f in self.fills if now - self.market.ts_ns[f.bar_index] < 30 * NS_PER_DAY]
        traded = math.fsum(fill.quantity * fill.price for fill in lately)
        fee_bps = self.terms.fee_bps
        for volume_from, tier_bps in self.terms.fee_tiers:
            if traded >= volume_from:
                fee_bps = tier_bps
        return fee_bps / 10_000

    # -- one order ----------------------------------------------------------------------------------------------------

    def pursue(self, q: int, wish: float, side: int, bar: int) -> None:
        """Move the position towards the wish, as far as this bar and the cash allow."""
        position, fee = self.positions[q], self.fee(bar)
        worth = self.worth()
        if (1 if self.wanted_value(wish, q, worth) > self.value(q) else -1) != side:
            position.waiting = False
            return
        room = math.inf
        if self.terms.max_volume_share > 0:
            room = self.terms.max_volume_share * self.market.volume[bar][q] - self.filled_on.get((bar, q), 0.0)
        offer = self.offer(q, wish, side, fee, room, bar)
        if offer is None:
            self.ruin(bar)
            return
        amount, fill_price, complete, left = offer
        held_back = side == 1 and self.terms.leverage <= 1 and not position.stopped
        if held_back and amount * fill_price * (1 + fee) > self.cash + TINY * worth:
            affordable = max(self.cash, 0.0) / (fill_price * (1 + fee))
            offer = self.offer(q, wish, side, fee, min(room, affordable), bar)
            assert offer is not None
            amount, fill_price, _, left = offer
            complete = True
        position.waiting = not complete
        closes = abs(position.units + side * amount) <= 1e-9 * amount
        if amount <= 0 or (amount * fill_price <= TINY * worth and not closes):
            return
        self.filled_on[bar, q] = self.filled_on.get((bar, q), 0.0) + amount
        self.book(q, side * amount, fill_price, fee, left, bar)

    def offer(
        self, q: int, wish: float, side: int, fee: float, room: float, bar: int
    ) -> tuple[float, float, bool, float] | None:
        """Quantity, price, whether that is all, and the worth it is measured by; None is ruin."""
        position, terms = self.positions[q], self.terms
        slippage = terms.slippage_bps / 10_000 + terms.spread_bps / 20_000
        fill_price = self.prices[q] * (1 + side * slippage)
        if terms.impact > 0:
            volume = self.market.volume[bar][q]
            amount = min(max(0.0, (self.wanted_units(q, wish, fill_price, fee) - position.units) * side), room)
            part = min(1.0, amount / volume) if volume > 0 else 1.0
            if amount > 0:
                fill_price = self.prices[q] * (1 + side * (slippage + terms.impact * math.sqrt(part)))
        left = self.left(q, wish, fill_price, fee)
        if left <= TINY * abs(self.worth() - self.value(q)):
            return None
        wanted = self.wanted_units(q, wish, fill_price, fee)
        needed = (wanted - position.units) * side
        if needed <= TINY * abs(position.units):
            return 0.0, fill_price, True, left
        amount, complete = min(needed, room), needed <= room
        if not (complete and wanted == 0):
            amount = self.rounded(q, amount)
        return amount, fill_price, complete, left

    def left(self, q: int, wish: float, fill_price: float, fee: float) -> float:
        units = self.positions[q].units
        reserved = abs(units) * fill_price * fee if wish * units <= 0 else 0.0
        return self.worth(q, fill_price) - reserved

    def wanted_units(self, q: int, wish: float, fill_price: float, fee: float) -> float:
        terms, left = self.terms, self.left(q, wish, fill_price, fee)
        most = terms.leverage * max(left, 0.0) / (fill_price * (1 + fee))
        if terms.kind in {"percent", "volatility"}:
            fraction = wish * terms.size if terms.kind == "percent" else wish
            return max(-terms.leverage, min(terms.leverage, fraction)) * left / (fill_price * (1 + fee))
        wanted = wish * terms.size / (1.0 if terms.kind == "units" else fill_price)
        return max(-most, min(most, wanted))

    def rounded(self, q: int, amount: float) -> float:
        least, increment = self.quantities[q]
        if increment > 0:
            amount = math.floor(amount / increment + 1e-9) * increment
        return amount if amount > 0 and amount >= least * (1 - 1e-9) else 0.0

    def close_simply(self, q: int, bar: int) -> None:
        """At the end: fee and slippage, whatever the volume."""
        position, fee = self.positions[q], self.fee(bar)
        slippage = self.terms.slippage_bps / 10_000 + self.terms.spread_bps / 20_000
        fill_price = self.prices[q] * (1 - position.side * slippage)
        left = self.left(q, 0.0, fill_price, fee)
        if left <= TINY * abs(self.worth() - self.value(q)):
            self.ruin(bar)
            return
        self.book(q, -position.units, fill_price, fee, left, bar)

    def book(self, q: int, quantity: float, fill_price: float, fee: float, worth: float, bar: int) -> None:
        """Move the money, a reversal in two legs; remember the entry."""
        position = self.positions[q]
        before, after = position.units, position.units + quantity
        if abs(after) < 1e-9 * abs(quantity):
            after = 0.0
        self.run.traded_fractions.append(abs(quantity) * fill_price / worth)
        side = 1 if quantity > 0 else -1
        self.fills.append(PortfolioFill(bar, q, side, fill_price, abs(quantity), abs(quantity) * fill_price * fee))
        if before and after * before <= 0:
            self.pay(position, -before, fill_price, fee)
            self.end_trade(position)
        if not position.units:
            position.scale = worth
        if after != position.units:
            self.pay(position, after - position.units, fill_price, fee)
        position.units = after
        if before * after <= 0:
            position.entry = position.best = fill_price
            position.entry_bar = bar
        elif abs(after) > abs(before):
            position.entry = (position.entry * before + fill_price * quantity) / after

    def pay(self, position: Position, quantity: float, fill_price: float, fee: float) -> None:
        paid = -quantity * fill_price - abs(quantity) * fill_price * fee
        position.payments.append(paid)
        position.units += quantity
        self.cash += paid

    def end_trade(self, position: Position) -> None:
        self.run.trades.append((position.scale, math.fsum(position.payments)))
        position.payments = []
        position.units = 0.0

    def ruin(self, bar: int) -> None:
        """Everything goes at the prices of the moment, without a fee."""
        open_ones = [q for q, position in enumerate(self.positions) if position.units]
        left = self.worth()
        for q in open_ones:
            position = self.positions[q]
            self.fills.append(PortfolioFill(bar, q, -position.side, self.prices[q], abs(position.units), 0.0))
            position.payments += [self.value(q), -left / len(open_ones)]
            self.end_trade(position)
        self.cash = 0.0
        self.ruined = True


def reference_portfolio(
    weights: Sequence[Sequence[float]],
    market: Market,
    terms: Terms,
    quantities: Sequence[tuple[float, float]] | None = None,
) -> Portfolio:
    """The books of a run; ``weights`` is a list of n bars of p numbers, NaN for no order."""
    portfolio = Portfolio(terms, market, quantities)
    nothing = [math.nan] * len(weights[0])
    due = [*weights] if terms.fill == "same_close" else [nothing, *weights[:-1]]
    for bar, asked in enumerate(due):
        portfolio.go_through(bar, asked)
    return portfolio
