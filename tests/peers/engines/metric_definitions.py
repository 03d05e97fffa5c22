"""quantstats' and empyrical's figures of equity curves: ``python -m tests.peers.engines.metric_definitions IN OUT``.

IN is an .npz with, for each curve NAME, ``NAME.equity``, ``NAME.ts_ns``, ``NAME.periods`` (returns a year) and
``NAME.results`` (what each round trip earned, as a share of the initial cash). OUT is JSON: figures by curve, library.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import empyrical
import numpy as np
import pandas as pd
import quantstats.stats as qs


def main() -> None:
    """Every curve of the file."""
    with np.load(sys.argv[1]) as file:
        names = {key.rsplit(".", 1)[0] for key in file.files}
        figures = {name: _figures(*(file[f"{name}.{part}"] for part in PARTS)) for name in names}
    Path(sys.argv[2]).write_text(json.dumps(figures), encoding="utf-8")


PARTS = ("equity", "ts_ns", "periods", "results")


def _figures(equity: Any, ts_ns: Any, periods: Any, results: Any) -> dict[str, dict[str, float]]:
    # The equity's own returns: n - 1 of them, each at the time of its bar.
    returns = pd.Series(equity[1:] / equity[:-1] - 1.0, index=pd.to_datetime(ts_ns[1:]))
    year = float(periods)
    trips = pd.Series(results)
    return {
        "quantstats": {
            "total_return": qs.comp(returns),
            "cagr": qs.cagr(returns, periods=year),
            "volatility": qs.volatility(returns, periods=year),
            "sharpe": qs.sharpe(returns, periods=year),
            "sortino": qs.sortino(returns, periods=year),
            "calmar": qs.calmar(returns, periods=year),
            "max_drawdown": qs.max_drawdown(returns),
            "max_drawdown_days": _days_of_the_deepest(returns),
            "exposure": qs.exposure(returns),
            "win_rate_of_trips": qs.win_rate(trips),
            "profit_factor_of_trips": qs.profit_factor(trips),
            "win_rate_of_bars": qs.win_rate(returns),
            "sharpe_by_default": qs.sharpe(returns),
        },
        "empyrical": {
            "total_return": empyrical.cum_returns_final(returns),
            "cagr": empyrical.annual_return(returns, annualization=year),
            "volatility": empyrical.annual_volatility(returns, annualization=year),
            "sharpe": empyrical.sharpe_ratio(returns, annualization=year),
            "sortino": empyrical.sortino_ratio(returns, annualization=year),
            "calmar": empyrical.calmar_ratio(returns, annualization=year),
            "max_drawdown": empyrical.max_drawdown(returns),
            "sharpe_by_default": empyrical.sharpe_ratio(returns),
        },
    }


def _days_of_the_deepest(returns: Any) -> float:
    """Days from the first to the last one under water, both counted."""
    details = qs.drawdown_details(qs.to_drawdown_series(returns))
    return float(details.sort_values("max drawdown").iloc[0]["days"]) if len(details) else 0.0


if __name__ == "__main__":
    main()
