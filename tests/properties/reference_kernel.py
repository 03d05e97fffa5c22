"""The accounting rules once more in slow, plain Python, written from the specification and not from the kernel.

Money is moved leg by leg (a reversal is a close and an open), and every metric is computed afterwards from the whole
equity curve, so that the compiled one-pass kernel has something independent to be equal to.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

NS_PER_YEAR = 365.25 * 24 * 3600 * 10**9


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


class Account:
    """Cash and a position; knows how to trade, how to be ruined, and what a round trip earned."""

    def __init__(self, initial_cash: float, fee: float, slippage: float) -> None:
        self.run = ReferenceRun(initial_cash)
        self.cash = initial_cash
        self.units = 0.0
        self.fee = fee
        self.slippage = slippage
        self.flat_cash = initial_cash
        self.ruined = False

    def pursue(self, target: float, price: float, bar: int) -> None:
        """Carry out a changed target at ``price``."""
        if self.ruined:
            return
        side = 1 if target * (self.cash + self.units * price) > self.units * price else -1
        fill_price = price * (1 + self.slippage * side)
        before = self.units
        same_side = target * before > 0
        left = self.cash + before * fill_price if same_side else self._cash_after_closing(fill_price)
        if left <= 1e-12 * self.cash:
            self.ruin(price, bar)
            return
        fees = 0.0
        if before != 0 and not same_side:
            fees += self._leg(-before, fill_price)
            self._end_trade()
        worth = self.cash + self.units * fill_price
        wanted = target * worth / (fill_price * (1 + self.fee))
        if same_side and (wanted - before) * side <= 0:
            return
        if wanted != self.units:
            fees += self._leg(wanted - self.units, fill_price)
        if wanted != before:
            quantity = abs(wanted - before)
            self.run.fills.append(ReferenceFill(bar, side, fill_price, quantity, fees))
            self.run.traded_fractions.append(quantity * fill_price / worth)
        self.units = wanted

    def mark(self, close: float, bar: int) -> None:
        """Note the equity at a close; ruin if nothing is left."""
        if not self.ruined and self.cash + self.units * close <= 1e-12 * self.cash:
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

    def _cash_after_closing(self, fill_price: float) -> float:
        return self.cash + self.units * fill_price - abs(self.units) * fill_price * self.fee

    def _leg(self, quantity: float, fill_price: float) -> float:
        fee = abs(quantity) * fill_price * self.fee
        self.cash -= quantity * fill_price + fee
        self.units += quantity
        return fee

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
    """The books of a run on n bars."""
    account = Account(initial_cash, fee_bps / 10_000, slippage_bps / 10_000)
    decided = [0.0 if math.isnan(value) else value for value in target]
    if fill == "same_close":
        due, prices = decided, close
    else:
        due, prices = [0.0, *decided[:-1]], open_
    for bar in range(len(close)):
        standing = due[bar - 1] if bar > 0 else 0.0
        if due[bar] != standing:
            account.pursue(due[bar], prices[bar], bar)
        account.mark(close[bar], bar)
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
