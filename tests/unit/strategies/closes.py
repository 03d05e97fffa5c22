"""Targets of a strategy on a few hand-written bars, for tables that read as a specification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from strategies.backtest import targets_of
from strategies.model import Bars, Granularity
from strategies.registry import STRATEGIES


def targets_on(
    name: str,
    close: Sequence[float],
    high: Sequence[float] | None = None,
    low: Sequence[float] | None = None,
    **params: float,
) -> list[float]:
    """Targets for the closes given; highs and lows are the closes where not given."""
    rows = [np.array(values, dtype=np.float64) for values in (close, high or close, low or close, close)]
    ts_ns = np.arange(len(close), dtype=np.int64) * Granularity.ONE_DAY.ns
    bars = Bars("BTC-USD", Granularity.ONE_DAY, ts_ns, rows[0], rows[1], rows[2], rows[3], np.ones(len(close)))
    strategy = STRATEGIES[name]
    return list(targets_of(strategy, strategy.params.model_validate(params).vector(), bars))
