"""backtesting.py's answers, by its own interpreter: ``python -m tests.peers.engines.backtesting_engine FOLDER``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from backtesting import Backtest, Strategy

from tests.peers.engines.cases import Answer, Case, answer_all, fill_columns

# It trades whole units only, so prices are counted in units this small: a rounding of 1e-13 of a position.
UNIT = 2.0**-40
SPARE = 4.0


class _Trade(NamedTuple):
    size: float
    entry_bar: int
    entry_price: float
    exit_bar: int | None
    exit_price: float


class _ToldPositions(Strategy):  # type: ignore[misc]
    """Orders the difference to the position our engine held."""

    case: Case

    def init(self) -> None:
        units = np.rint(self.case.position / UNIT)
        self.orders_by_bar = np.diff(units, prepend=0.0)

    def next(self) -> None:
        # Orders of bar i are processed at bar i + 1: at its open, or at bar i's close with ``trade_on_close``.
        bar = len(self.data) - 1
        decided_for = bar if self.case.same_close else bar + 1
        if decided_for < len(self.orders_by_bar) and self.orders_by_bar[decided_for] != 0.0:
            quantity = self.orders_by_bar[decided_for]
            (self.buy if quantity > 0 else self.sell)(size=abs(quantity))


def answer(case: Case) -> Answer:
    """``spread`` is what it has instead of slippage, charged when a trade is opened and never when it is closed."""
    settings = case.settings
    spare = SPARE * settings["initial_cash"]
    frame = pd.DataFrame(
        {name.capitalize(): getattr(case, name) * UNIT for name in ("open", "high", "low", "close")},
        index=pd.to_datetime(case.ts_ns),
    )
    frame["Volume"] = case.volume
    strategy = type("Told", (_ToldPositions,), {"case": case})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*Broker canceled.*")  # only a warning there
        test = Backtest(
            frame,
            strategy,
            cash=settings["initial_cash"] + spare,
            spread=settings["slippage"],
            commission=settings["fee"],
            trade_on_close=case.same_close,
            finalize_trades=bool(settings.get("finalize_trades", False)),
        )
        result = test.run()
    equity = result["_equity_curve"]["Equity"].to_numpy() - spare
    return {"equity": equity, **fill_columns(_fills(result))}


def _fills(result: pd.Series) -> list[tuple[int, float, float, float, float]]:
    """One fill a bar: it splits an order into the trades that it ends and begins; one fee a trade, so none is told."""
    bars: dict[int, float] = {}
    prices: dict[int, float] = {}
    for one in _trades(result):
        ends = ((one.entry_bar, one.size, one.entry_price), (one.exit_bar, -one.size, one.exit_price))
        for bar, change, price in ends:
            if bar is not None:
                bars[bar] = bars.get(bar, 0.0) + change * UNIT
                prices[bar] = price / UNIT
    return [(bar, float(np.sign(bars[bar])), prices[bar], abs(bars[bar]), np.nan) for bar in sorted(bars)]


def _trades(result: pd.Series) -> Iterator[_Trade]:
    """Those that ended, and those still open."""
    for one in result["_trades"].itertuples():
        yield _Trade(one.Size, one.EntryBar, one.EntryPrice, one.ExitBar, one.ExitPrice)
    for one in result["_strategy"]._broker.trades:
        yield _Trade(one.size, one.entry_bar, one.entry_price, None, np.nan)


if __name__ == "__main__":
    answer_all("backtesting", answer)
