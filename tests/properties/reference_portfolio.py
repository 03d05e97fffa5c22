"""The rules of portfolios once more in slow, plain Python, written from the specification and not from the kernel.

One purse, a position a product, money moved leg by leg; each round trip keeps its own list of payments, so its result
is their sum. The metrics are computed afterwards by the reference for one product, from the whole curve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.properties.reference_kernel import ReferenceRun


@dataclass
class PortfolioFill:
    """One fill: side +1 bought, -1 sold."""

    bar_index: int
    product: int
    side: int
    price: float
    quantity: float
    fee: float


@dataclass
class Position:
    """Units of one product and the payments of its open round trip, which began at ``scale`` of equity."""

    units: float = 0.0
    payments: list[float] = field(default_factory=list)
    scale: float = 0.0


@dataclass(frozen=True)
class Rules:
    """Costs in fractions, and what is allowed."""

    fee: float = 0.0
    slippage: float = 0.0
    fill: str = "next_open"
    needs_volume: bool = False
    initial_cash: float = 1_000.0
    size: float = 1.0
    leverage: float = 1.0


class Portfolio:
    """The purse and the positions; ``run`` collects what the metrics need."""

    def __init__(self, products: int, rules: Rules) -> None:
        self.rules = rules
        self.run = ReferenceRun(rules.initial_cash)
        self.cash = rules.initial_cash
        self.positions = [Position() for _ in range(products)]
        self.fills: list[PortfolioFill] = []
        self.history: list[list[float]] = []
        self.waiting: dict[int, float] = {}
        self.ruined = False

    def worth(self, prices: Sequence[float]) -> float:
        """Cash and all positions at these prices."""
        return self.cash + sum(p.units * price for p, price in zip(self.positions, prices, strict=True) if p.units)

    def trade(self, tradable: Sequence[bool], prices: Sequence[float], bar: int) -> None:
        """Carry out every waiting order that can be traded, sells first."""
        orders = {q: weight for q, weight in sorted(self.waiting.items()) if tradable[q]}
        for q in orders:
            del self.waiting[q]
        if self.ruined or not orders:
            return
        worth = self.worth(prices)
        orders = {q: weight * self._factor(orders, prices, worth) for q, weight in orders.items()}
        gaps = {q: weight * worth - self.positions[q].units * prices[q] for q, weight in orders.items()}
        orders = {q: weight for q, weight in orders.items() if weight == 0 or abs(gaps[q]) > 1e-12 * worth}
        sides = {q: 1 if w * worth > self.positions[q].units * prices[q] else -1 for q, w in orders.items()}
        for side in (-1, 1):
            for q, weight in orders.items():
                if sides[q] == side and not self.ruined:
                    self._pursue(q, weight, side, prices, bar)

    def _factor(self, orders: dict[int, float], prices: Sequence[float], worth: float) -> float:
        size, leverage = self.rules.size, self.rules.leverage
        asked = sum(abs(weight) * size for weight in orders.values())
        idle = [q for q in range(len(prices)) if q not in orders and self.positions[q].units]
        kept = sum(abs(self.positions[q].units * prices[q]) for q in idle) / worth if worth > 0 else 0.0
        if asked and asked + kept > leverage * (1 + 1e-12):
            return max(leverage - kept, 0.0) * size / asked
        return size

    def _pursue(self, q: int, weight: float, side: int, prices: Sequence[float], bar: int) -> None:
        position, fee = self.positions[q], self.rules.fee
        fill_price = prices[q] * (1 + self.rules.slippage * side)
        at_fill = [fill_price if other == q else price for other, price in enumerate(prices)]
        left = self.worth(at_fill)
        if weight * position.units <= 0:
            left -= abs(position.units) * fill_price * fee
        if left <= 1e-12 * abs(self.cash):
            self._ruin(prices, bar)
            return
        quantity = weight * left / (fill_price * (1 + fee)) - position.units
        if quantity * side <= 0:
            return
        cost = quantity * fill_price * (1 + fee)
        if side == 1 and self.rules.leverage <= 1 and cost > self.cash + 1e-12 * left:
            quantity = max(self.cash, 0.0) / (fill_price * (1 + fee))
        if abs(quantity) * fill_price <= 1e-12 * left and position.units + quantity != 0:
            return
        self.run.traded_fractions.append(abs(quantity) * fill_price / left)
        self.fills.append(PortfolioFill(bar, q, side, fill_price, abs(quantity), abs(quantity) * fill_price * fee))
        rest = position.units + quantity
        if position.units and rest * position.units <= 0:
            self._pay(position, -position.units, fill_price)
            self._end(position)
            quantity = rest
        if not position.units:
            position.scale = left
        if quantity:
            self._pay(position, quantity, fill_price)
        position.units = rest

    def _pay(self, position: Position, quantity: float, fill_price: float) -> None:
        paid = -quantity * fill_price - abs(quantity) * fill_price * self.rules.fee
        position.payments.append(paid)
        position.units += quantity
        self.cash += paid

    def _end(self, position: Position) -> None:
        self.run.trades.append((position.scale, math.fsum(position.payments)))
        position.payments = []
        position.units = 0.0

    def _ruin(self, prices: Sequence[float], bar: int) -> None:
        open_ones = [q for q, position in enumerate(self.positions) if position.units]
        left = self.worth(prices)
        for q in open_ones:
            position = self.positions[q]
            side = 1 if position.units < 0 else -1
            self.fills.append(PortfolioFill(bar, q, side, prices[q], abs(position.units), 0.0))
            position.payments += [position.units * prices[q], -left / len(open_ones)]
            self._end(position)
        self.cash = 0.0
        self.ruined = True

    def mark(self, closes: Sequence[float], bar: int) -> None:
        """Note the equity at a close; ruin if nothing is left."""
        if not self.ruined and self.worth(closes) <= 1e-12 * abs(self.cash):
            self._ruin(closes, bar)
        self.run.equity.append(self.worth(closes))
        self.history.append([position.units for position in self.positions])
        self.run.units.append(1.0 if any(self.history[-1]) else 0.0)


def reference_portfolio(
    weights: Sequence[Sequence[float]],
    open_: Sequence[Sequence[float]],
    close: Sequence[Sequence[float]],
    volume: Sequence[Sequence[float]],
    rules: Rules,
) -> Portfolio:
    """The books of a run; every argument is a list of n bars of p numbers, NaN for no order or no bar."""
    products = len(close[0])
    portfolio = Portfolio(products, rules)
    latest = [0.0] * products
    for bar in range(len(close)):
        there = [not math.isnan(price) for price in close[bar]]
        tradable = [t and (v > 0 or not rules.needs_volume) for t, v in zip(there, volume[bar], strict=True)]
        before = list(latest)
        latest = [new if t else old for new, old, t in zip(close[bar], latest, there, strict=True)]
        same_close = rules.fill == "same_close"
        if same_close or bar > 0:
            asked = weights[bar if same_close else bar - 1]
            portfolio.waiting |= {q: weight for q, weight in enumerate(asked) if not math.isnan(weight)}
        opens = [new if t else old for new, old, t in zip(open_[bar], before, there, strict=True)]
        portfolio.trade(tradable, latest if same_close else opens, bar)
        portfolio.mark(latest, bar)
    return portfolio
