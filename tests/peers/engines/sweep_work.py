"""A part of the sweep benchmark, as it is handed to an engine's process and how the engine is timed.

Only numpy is imported here: both interpreters read this file.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRICES: Final = ("open", "high", "low", "close")
OUTPUTS: Final = ("final_equity", "max_drawdown", "sharpe", "round_trips")


@dataclass(frozen=True)
class SweepWork:
    """An SMA-cross sweep: long while the fast mean is above the slow one, all in, filled at the next open.

    ``open``, ``high``, ``low``, ``close`` are float64[products, bars], ``fast`` and ``slow`` int64[sets] windows in
    bars; every set runs on every product. ``fee`` and ``slippage`` are fractions.
    """

    ts_ns: NDArray[np.int64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    fast: NDArray[np.int64]
    slow: NDArray[np.int64]
    fee: float
    slippage: float
    initial_cash: float

    @property
    def evaluations(self) -> int:
        """Bars times sets times products."""
        return self.close.size * len(self.fast)

    @property
    def periods_per_year(self) -> float:
        """Returns a year, by the bars' own times."""
        return (len(self.ts_ns) - 1) / (float(self.ts_ns[-1] - self.ts_ns[0]) / (365.25 * 86_400e9))

    def beginning(self, bars: int) -> SweepWork:
        """The same kind of work, small: what an engine warms up on."""
        cut: dict[str, Any] = {name: np.ascontiguousarray(getattr(self, name)[:1, :bars]) for name in PRICES}
        return replace(self, ts_ns=self.ts_ns[:bars], fast=self.fast[:2], slow=self.slow[:2], **cut)


Engine = Callable[[SweepWork], Floats]


def save_work(path: str, work: SweepWork) -> None:
    """Write ``work`` for other processes."""
    np.savez(path, **vars(work))


def load_work(path: str) -> SweepWork:
    """Read what ``save_work`` wrote."""
    with np.load(path) as file:
        fields: dict[str, Any] = {name: file[name] if file[name].ndim else float(file[name]) for name in file.files}
    return SweepWork(**fields)


def measured(engine: Engine, warm_bars: int = 2_000) -> None:
    """The main function of an engine's process: ``WORK RESULT``; the table to a file, times and memory as JSON.

    The warm-up (imports, compiling, first calls) is not timed. Processor time is that of all threads.
    """
    work = load_work(sys.argv[1])
    engine(work.beginning(min(warm_bars, len(work.ts_ns))))
    wall_s, processor_s = time.perf_counter(), time.process_time()
    table = engine(work)
    wall_s, processor_s = time.perf_counter() - wall_s, time.process_time() - processor_s
    np.save(sys.argv[2], table)
    # Linux counts this in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    report: dict[str, Any] = {
        "wall_s": wall_s,
        "processor_s": processor_s,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
        "load": os.getloadavg()[0],
    }
    print(json.dumps(report))
