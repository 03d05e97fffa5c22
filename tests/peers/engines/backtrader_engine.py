"""backtrader's answers, by its own interpreter: ``python -m tests.peers.engines.backtrader_engine FOLDER``."""

from __future__ import annotations

import backtrader as bt
import numpy as np
import pandas as pd

from tests.peers.engines.cases import Answer, Case, answer_all, fill_columns


class _ToldPositions(bt.Strategy):  # type: ignore[misc]
    """Orders the difference to the position our engine held, on the bar before (next open) or the same (close)."""

    params = (("case", None),)

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float, float, float]] = []
        self.equity: list[float] = []
        self.seen: set[int] = set()
        position = self.p.case.position
        before = np.concatenate([[0.0], position[:-1]])
        self.orders_by_bar = position - before

    def next(self) -> None:
        bar = len(self) - 1
        self.equity.append(self.broker.getvalue())
        # "Cheat on close" fills an order of this bar at this bar's close, after this call; the next open otherwise.
        decided_for = bar if self.p.case.same_close else bar + 1
        if decided_for < len(self.orders_by_bar) and self.orders_by_bar[decided_for] != 0.0:
            quantity = self.orders_by_bar[decided_for]
            (self.buy if quantity > 0 else self.sell)(size=abs(quantity))

    def notify_order(self, order: bt.Order) -> None:
        # A position turned round may leave 1e-16 of the order, which is "partial" now and done on the next bar.
        if order.status in (order.Partial, order.Completed) and order.ref not in self.seen:
            self.seen.add(order.ref)
            done = order.executed
            bar = len(self) - 2 if self.p.case.same_close else len(self) - 1
            self.rows.append((bar, 1.0 if order.isbuy() else -1.0, done.price, abs(done.size), done.comm))
        elif order.status in (order.Margin, order.Rejected, order.Canceled):
            raise RuntimeError(f"bar {len(self) - 1}: {order.getstatusname()}")


def answer(case: Case) -> Answer:
    """Fixed quantities, slippage beyond the bar's range allowed as ``slip_out`` says.

    The account holds twice the cash, taken off again below: backtrader refuses an order that would leave it a rounding
    error below nothing.
    """
    settings = case.settings
    spare = settings["initial_cash"]
    cerebro = bt.Cerebro(stdstats=False)
    frame = pd.DataFrame(
        {name: getattr(case, name) for name in ("open", "high", "low", "close", "volume")},
        index=pd.to_datetime(case.ts_ns),
    )
    cerebro.adddata(bt.feeds.PandasData(dataname=frame))
    cerebro.addstrategy(_ToldPositions, case=case)
    cerebro.broker.setcash(settings["initial_cash"] + spare)
    cerebro.broker.setcommission(commission=settings["fee"])
    cerebro.broker.set_slippage_perc(settings["slippage"], slip_open=True, slip_out=settings.get("slip_out", True))
    cerebro.broker.set_coc(case.same_close)
    strategy = cerebro.run()[0]
    equity = np.array(strategy.equity) - spare
    return {"equity": equity, "final_equity": cerebro.broker.getvalue() - spare, **fill_columns(strategy.rows)}


if __name__ == "__main__":
    answer_all("backtrader", answer)
