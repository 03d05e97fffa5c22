"""The sweep benchmark's work by raptorbt: its own moving averages, signals by numpy, its batch over all cores."""

from __future__ import annotations

import os

import numpy as np
import raptorbt

from tests.peers.engines.sweep_work import OUTPUTS, Floats, SweepWork, measured

# Each set of a batch brings an equity curve, a drawdown curve and returns, bars long.
CELLS_MAX = int(os.environ.get("SWEEP_CELLS_MAX", 20_000_000))


def sweep(work: SweepWork) -> Floats:
    """float64[products, sets, outputs]."""
    chunk = max(1, CELLS_MAX // work.close.shape[1])
    config = raptorbt.BacktestConfig(
        initial_capital=work.initial_cash,
        fees=work.fee,
        slippage=work.slippage,
        fill_timing="next_bar_open",
        periods_per_year=work.periods_per_year,
    )
    table = np.empty((len(work.close), len(work.fast), len(OUTPUTS)))
    for product in range(len(work.close)):
        for first in range(0, len(work.fast), chunk):
            table[product, first : first + chunk] = _chunk(work, product, slice(first, first + chunk), config)
    return table


def _chunk(work: SweepWork, product: int, sets: slice, config: raptorbt.BacktestConfig) -> Floats:
    close = work.close[product]
    fast, slow = work.fast[sets], work.slow[sets]
    means = {window: raptorbt.sma(close, window) for window in {*fast.tolist(), *slow.tolist()}}
    items: list[raptorbt.BatchSingleItem] = []
    for quick, lazy in zip(fast.tolist(), slow.tolist(), strict=True):
        above = means[quick] > means[lazy]
        items.append(raptorbt.BatchSingleItem(str(len(items)), above, ~above, 1, 1.0, "PEER"))
    columns = (work.open[product], work.high[product], work.low[product], close)
    results = raptorbt.batch_single_backtest(work.ts_ns, *columns, np.ones_like(close), items, config)
    return np.array([_outputs(result) for _, result in results])


def _outputs(result: raptorbt.BacktestResult) -> list[float]:
    metrics = result.metrics
    return [metrics.end_value, metrics.max_drawdown_pct / 100, metrics.sharpe_ratio, metrics.total_closed_trades]


if __name__ == "__main__":
    measured(sweep)
