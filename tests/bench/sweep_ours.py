"""The sweep benchmark's work by our own engine, and by a loop as one would write it by hand; run as a process.

    python -m tests.bench.sweep_ours ours|general|loop WORK RESULT

``ours`` is ``run_block`` as every sweep calls it, on as many threads as there are processors (compiled code runs
without the interpreter lock). ``general`` is the same with a profit target that is never reached, which the engine for
plain cases leaves to the general loop. ``loop`` computes only the four outputs that are compared.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies.backtest import Costs, run_block
from strategies.base import parameter_table
from strategies.compiled import compiled
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import get
from tests.peers.engines.sweep_work import OUTPUTS, PRICES, Engine, SweepWork, measured

THREADS: Final = int(os.environ.get("SWEEP_THREADS", str(os.cpu_count() or 1)))
NEVER_REACHED: Final = 100.0
COLUMNS: Final = ("total_return", "max_drawdown", "sharpe", "trades")


def _ours(work: SweepWork) -> Float64Array:
    return _by_run_block(work, 0.0)


def _general(work: SweepWork) -> Float64Array:
    return _by_run_block(work, NEVER_REACHED)


def _by_run_block(work: SweepWork, take_profit: float) -> Float64Array:
    """float64[products, sets, outputs]."""
    table = parameter_table(get("sma_cross"))
    names = [info.name for info in table]
    matrix = np.tile([info.default for info in table], (len(work.fast), 1))
    matrix[:, names.index("fast")], matrix[:, names.index("slow")] = work.fast, work.slow
    matrix[:, names.index("take_profit")] = take_profit
    costs = Costs(fee_bps=work.fee * 1e4, slippage_bps=work.slippage * 1e4, initial_cash=work.initial_cash)
    chosen = [METRICS.index(name) for name in COLUMNS]

    def of(bars: Bars, sets: slice) -> Float64Array:
        found = run_block("sma_cross", matrix[sets], bars, costs)[:, chosen]
        found[:, 0] = (1.0 + found[:, 0]) * work.initial_cash
        return found

    return _threaded(of, [_bars(work, product) for product in range(len(work.close))], len(work.fast))


def _loop(work: SweepWork) -> Float64Array:
    per_year = work.periods_per_year

    def of(bars: Bars, sets: slice) -> Float64Array:
        terms = np.array([work.fee, work.slippage, work.initial_cash, per_year])
        return by_hand(bars.open, bars.close, work.fast[sets].copy(), work.slow[sets].copy(), terms)

    return _threaded(of, [_bars(work, product) for product in range(len(work.close))], len(work.fast))


def _threaded(of: Callable[[Bars, slice], Float64Array], products: list[Bars], sets: int) -> Float64Array:
    """Products to threads where there are several, else parts of the sets."""
    parts = 1 if len(products) >= THREADS else min(THREADS, sets)
    cuts = np.linspace(0, sets, parts + 1).astype(int)
    pieces = [slice(first, last) for first, last in itertools.pairwise(cuts)]
    table = np.empty((len(products), sets, len(OUTPUTS)))

    def fill(product: int, piece: slice) -> None:
        table[product, piece] = of(products[product], piece)

    with ThreadPoolExecutor(THREADS) as pool:
        started = [pool.submit(fill, product, piece) for product in range(len(products)) for piece in pieces]
        for one in started:
            one.result()
    return table


def _bars(work: SweepWork, product: int) -> Bars:
    columns = {name: np.ascontiguousarray(getattr(work, name)[product]) for name in PRICES}
    return Bars("BTC-USD", Granularity.ONE_MINUTE, work.ts_ns, **columns, volume=np.ones(work.close.shape[1]))


@compiled
def by_hand(
    open_: Float64Array,
    close: Float64Array,
    fast: NDArray[np.int64],
    slow: NDArray[np.int64],
    terms: Float64Array,
) -> Float64Array:
    """float64[sets, 4]: final equity, drawdown, Sharpe, round trips. One pass a set, everything fused into it."""
    fee, slippage, initial_cash, per_year = terms
    table = np.empty((fast.size, 4))
    for s in range(fast.size):
        quick, lazy = fast[s], slow[s]
        quick_sum, lazy_sum = 0.0, 0.0
        cash, units, equity, peak, deepest = initial_cash, 0.0, initial_cash, initial_cash, 0.0
        total, squares, fills, long = 0.0, 0.0, 0, False
        for i in range(close.size):
            if long and units == 0.0:
                units = cash / (open_[i] * (1.0 + slippage) * (1.0 + fee))
                cash = 0.0
                fills += 1
            elif not long and units > 0.0:
                cash = units * open_[i] * (1.0 - slippage) * (1.0 - fee)
                units = 0.0
                fills += 1
            worth = cash + units * close[i]
            if i > 0:
                change = worth / equity - 1.0
                total += change
                squares += change * change
            equity = worth
            peak = max(peak, worth)
            deepest = max(deepest, 1.0 - worth / peak)
            quick_sum += close[i]
            lazy_sum += close[i]
            if i >= quick:
                quick_sum -= close[i - quick]
            if i >= lazy:
                lazy_sum -= close[i - lazy]
            long = i >= lazy - 1 and quick_sum / quick > lazy_sum / lazy
        returns = close.size - 1
        mean = total / returns
        deviation = np.sqrt((squares - mean * total) / (returns - 1))
        table[s, 0] = equity
        table[s, 1] = deepest
        table[s, 2] = mean / deviation * np.sqrt(per_year) if deviation > 0.0 else np.nan
        table[s, 3] = fills // 2
    return table


ENGINES: Final[dict[str, Engine]] = {"ours": _ours, "general": _general, "loop": _loop}

if __name__ == "__main__":
    measured(ENGINES[sys.argv.pop(1)])
