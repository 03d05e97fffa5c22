"""The sweep benchmark's work by vectorbt: indicators, signals, simulation and the four outputs, in chunks that fit."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import vectorbt as vbt

from tests.peers.engines.sweep_work import OUTPUTS, Floats, SweepWork, measured

# It keeps some 40 arrays of bars x sets while it works (0.3 GB a set at a million bars, measured).
CELLS_MAX = int(os.environ.get("SWEEP_CELLS_MAX", 10_000_000))


def sweep(work: SweepWork) -> Floats:
    """float64[products, sets, outputs]."""
    chunk = max(1, CELLS_MAX // work.close.shape[1])
    table = np.empty((len(work.close), len(work.fast), len(OUTPUTS)))
    for product in range(len(work.close)):
        for first in range(0, len(work.fast), chunk):
            table[product, first : first + chunk] = _chunk(work, product, slice(first, first + chunk))
    return table


def _chunk(work: SweepWork, product: int, sets: slice) -> Floats:
    index = pd.to_datetime(work.ts_ns)
    close, open_ = (pd.Series(values[product], index=index) for values in (work.close, work.open))
    fast = vbt.MA.run(close, work.fast[sets], short_name="fast").ma.to_numpy()
    slow = vbt.MA.run(close, work.slow[sets], short_name="slow").ma.to_numpy()
    above = np.zeros(fast.shape, dtype=np.bool_)
    # What a bar's close decides is filled at the next bar's open.
    above[1:] = (fast > slow)[:-1]
    portfolio = vbt.Portfolio.from_signals(
        close,
        entries=pd.DataFrame(above, index=index),
        exits=pd.DataFrame(~above, index=index),
        price=open_,
        fees=work.fee,
        slippage=work.slippage,
        init_cash=work.initial_cash,
        freq=pd.Timedelta(365.25, "D") / work.periods_per_year,
    )
    return np.column_stack(
        [
            np.asarray(portfolio.final_value()),
            -np.asarray(portfolio.max_drawdown()),
            np.asarray(portfolio.sharpe_ratio(year_freq="365.25D")),
            np.asarray(portfolio.orders.count()) // 2,
        ]
    )


if __name__ == "__main__":
    measured(sweep)
