"""vectorbt's answers, by its own interpreter: ``python -m tests.peers.engines.vectorbt_engine FOLDER``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import vectorbt as vbt
from numpy.typing import NDArray

from tests.peers.engines.cases import Answer, Case, Floats, answer_all, fill_columns

YEAR_NS = 365.25 * 86_400e9


def answer(case: Case) -> Answer:
    """Signals for all-in strategies, target percentages or target amounts for the others, as the settings say."""
    how = {"signals": _by_signals, "percent": _by_percent, "amount": _by_amount}[case.settings["vectorbt"]]
    portfolio = how(case)
    equity = portfolio.value()
    spacing = pd.Timedelta(round(YEAR_NS / case.settings["periods_per_year"]), "ns")
    year = pd.Timedelta(round(YEAR_NS), "ns")
    returns = portfolio.returns()
    return {
        "equity": equity.to_numpy(),
        # Its series of returns begins with that of the first bar against the initial cash; ours with the second bar's.
        "sharpe": float(returns.iloc[1:].vbt.returns(freq=spacing, year_freq=year).sharpe_ratio()),
        "sharpe_by_default": float(returns.vbt.returns(freq="1D").sharpe_ratio()),
        "max_drawdown": -float(portfolio.max_drawdown()),
        **fill_columns(_fills(portfolio)),
    }


def _by_signals(case: Case) -> vbt.Portfolio:
    changes, wanted, settings = case.changes, case.wanted, case.settings
    stops: dict[str, Any] = {name: settings[name] for name in ("sl_stop", "sl_trail", "tp_stop") if name in settings}
    if stops:
        # Measured from the price paid, and slippage on the price of a stop: neither is the default.
        stops |= {"stop_entry_price": "fillprice", "stop_exit_price": "stopmarket"}
    return vbt.Portfolio.from_signals(
        _series(case, case.close),
        entries=_series(case, changes & (wanted > 0)),
        exits=_series(case, changes & (wanted <= 0)),
        short_entries=_series(case, changes & (wanted < 0)),
        short_exits=_series(case, changes & (wanted >= 0)),
        open=_series(case, case.open),
        high=_series(case, case.high),
        low=_series(case, case.low),
        price=_price(case),
        freq="1D",
        **stops,
        **_costs(case),
    )


def _by_percent(case: Case) -> vbt.Portfolio:
    size = np.where(case.changes, case.wanted, np.nan)
    return _by_orders(case, size, "targetpercent")


def _by_amount(case: Case) -> vbt.Portfolio:
    before = np.concatenate([[0.0], case.position[:-1]])
    size = np.where(case.position != before, case.position, np.nan)
    return _by_orders(case, size, "targetamount")


def _by_orders(case: Case, size: Floats, size_type: str) -> vbt.Portfolio:
    return vbt.Portfolio.from_orders(
        _series(case, case.close),
        size=_series(case, size),
        size_type=size_type,
        price=_price(case),
        freq="1D",
        **_costs(case),
    )


def _costs(case: Case) -> dict[str, float]:
    settings = case.settings
    return {"fees": settings["fee"], "slippage": settings["slippage"], "init_cash": settings["initial_cash"]}


def _price(case: Case) -> pd.Series:
    return _series(case, case.close if case.same_close else case.open)


def _series(case: Case, values: NDArray[Any]) -> pd.Series:
    return pd.Series(values, index=pd.to_datetime(case.ts_ns))


def _fills(portfolio: vbt.Portfolio) -> list[tuple[int, float, float, float, float]]:
    records = portfolio.orders.records
    rows = zip(records["idx"], records["side"], records["price"], records["size"], records["fees"], strict=True)
    return [(bar, 1.0 if side == 0 else -1.0, price, size, fee) for bar, side, price, size, fee in rows]


if __name__ == "__main__":
    answer_all("vectorbt", answer)
