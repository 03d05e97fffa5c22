"""raptorbt's answers, by its own interpreter: ``python -m tests.peers.engines.raptorbt_engine FOLDER``."""

from __future__ import annotations

import numpy as np
import raptorbt

from tests.peers.engines.cases import Answer, Case, answer_all, fill_columns


def answer(case: Case) -> Answer:
    """One run in one direction: its array interface holds long or short positions, not both in turn."""
    settings, wanted, changes = case.settings, case.decided, case.decided_changes
    config = raptorbt.BacktestConfig(
        initial_capital=settings["initial_cash"],
        fees=settings["fee"],
        slippage=settings["slippage"],
        fill_timing="same_bar_close" if case.same_close else "next_bar_open",
        periods_per_year=settings["periods_per_year"],
    )
    for name in ("fixed_stop", "trailing_stop", "fixed_target"):
        if name in settings:
            getattr(config, f"set_{name}")(settings[name])
    direction = -1 if wanted.min() < 0.0 else 1
    result = raptorbt.run_single_backtest(
        case.ts_ns,
        case.open,
        case.high,
        case.low,
        case.close,
        case.volume,
        changes & (wanted != 0),
        changes & (wanted == 0),
        direction,
        1.0,
        "PEER",
        config,
    )
    return {
        "equity": result.equity_curve(),
        "sharpe": result.metrics.sharpe_ratio,
        "max_drawdown": result.metrics.max_drawdown_pct / 100,
        "pnl": np.array([trade.pnl for trade in result.trades()]),
        **fill_columns(_fills(result)),
    }


def _fills(result: raptorbt.BacktestResult) -> list[tuple[int, float, float, float, float]]:
    """Its round trips as fills; it reports an open position as a trade that ends with the data, at no fee."""
    rows = []
    for trade in result.trades():
        side = float(trade.direction)
        rows.append((trade.entry_idx, side, trade.entry_price, trade.size, trade.entry_fees))
        if trade.exit_reason != "EndOfData":
            rows.append((trade.exit_idx, -side, trade.exit_price, trade.size, trade.exit_fees))
    return rows


if __name__ == "__main__":
    answer_all("raptorbt", answer)
