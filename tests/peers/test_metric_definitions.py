"""Each metric beside quantstats' and empyrical's on the same equity curves, the conventions that differ spelled out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pytest

from strategies.backtest import Result
from strategies.metrics import METRICS
from strategies.model import Float64Array
from tests.bar_samples import REAL_DATA, needs_real_data
from tests.peers.engine_runs import needs_peers, patient, run_peer
from tests.peers.samples import REAL_FILES, YEAR_NS, Question

pytestmark = [needs_peers, patient, pytest.mark.slow]

CLOSE_TO: Final = 1e-9
SMA: Final = {"fast": 20.0, "slow": 100.0}
CURVES: Final[Mapping[str, Question]] = {
    "made-up": Question("made-up", "sma_cross", SMA),
    "losing": Question("made-up", "rsi_reversion", {}),
    "with-gaps": Question("with-gaps", "sma_cross", SMA),
    "fractions": Question("with-gaps", "vol_target_momentum", {"target_volatility": 0.001}),
    "btc-4h": Question("btc-4h", "sma_cross", SMA | {"allow_short": 1.0}),
    "eth-1d": Question("eth-1d", "sma_cross", SMA),
}
SAME: Final = ("total_return", "cagr", "volatility", "sharpe", "sortino", "calmar")
Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    """What the libraries say, by curve and library."""
    folder = tmp_path_factory.mktemp("metrics")
    asked: dict[str, Any] = {}
    for name, question in CURVES.items():
        if question.series in REAL_FILES and not REAL_DATA.is_dir():
            continue
        result = question.result
        asked[f"{name}.equity"], asked[f"{name}.ts_ns"] = result.equity, result.ts_ns
        asked[f"{name}.periods"], asked[f"{name}.results"] = _periods(result), _round_trips(result)
    np.savez(folder / "curves.npz", **asked)
    run_peer("metric_definitions", str(folder / "curves.npz"), str(folder / "figures.json"))
    loaded: Figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    return loaded


def _curves() -> list[Any]:
    marks = {name: [needs_real_data] if one.series in REAL_FILES else [] for name, one in CURVES.items()}
    return [pytest.param(name, id=name, marks=marks[name]) for name in CURVES]


def _periods(result: Result) -> float:
    """Returns a year by the bars' own times: n - 1 over the years from the first bar to the last, gaps included.

    Both libraries take this number as given; neither can work it out from the index.
    """
    years = float(result.ts_ns[-1] - result.ts_ns[0]) / YEAR_NS
    return (len(result.ts_ns) - 1) / years


def _round_trips(result: Result) -> Float64Array:
    """What each round trip of an all-in strategy earned, of the initial cash: equity from flat to flat by the fills."""
    cash, held, stake, earned = result.spec.costs.initial_cash, 0.0, 0.0, []
    for fill in result.fills:
        quantity = float(fill["side"]) * float(fill["quantity"])
        worth = cash + held * float(fill["price"])
        if held != 0.0 and (held + quantity) * held <= 1e-9 * held * held:
            earned.append(worth - abs(held) * float(fill["price"]) * result.spec.costs.fee_bps / 1e4 - stake)
            stake = stake + earned[-1]
        elif held == 0.0:
            stake = cash
        cash -= quantity * float(fill["price"]) + float(fill["fee"])
        held = held + quantity if abs(held + quantity) > 1e-9 * abs(quantity) else 0.0
    return np.array(earned) / result.spec.costs.initial_cash


@pytest.mark.parametrize("library", ["quantstats", "empyrical"])
@pytest.mark.parametrize("metric", SAME)
@pytest.mark.parametrize("curve", _curves())
def test_returns_risk_and_ratios_are_theirs_given_our_year(
    figures: Figures, curve: str, metric: str, library: str
) -> None:
    """Sample deviation (n - 1), risk-free rate 0, downside over all returns: the same three conventions everywhere."""
    assert figures[curve][library][metric] == pytest.approx(CURVES[curve].result.metrics[metric], rel=CLOSE_TO)


@pytest.mark.parametrize("library", ["quantstats", "empyrical"])
@pytest.mark.parametrize("curve", _curves())
def test_their_drawdown_is_ours_below_zero(figures: Figures, curve: str, library: str) -> None:
    ours = CURVES[curve].result.metrics["max_drawdown"]
    assert ours > 0
    assert figures[curve][library]["max_drawdown"] == pytest.approx(-ours, rel=CLOSE_TO)


@needs_real_data
def test_their_longest_days_under_water_leave_out_peak_and_recovery(figures: Figures) -> None:
    """They count the days under water; ours is bars from the peak to the bar that reaches it again."""
    result = CURVES["eth-1d"].result
    equity = result.equity
    trough = int(np.argmin(equity / np.maximum.accumulate(equity)))
    peak = int(np.flatnonzero(equity[: trough + 1] == equity[: trough + 1].max())[-1])
    above = np.flatnonzero(equity[trough:] >= equity[peak])
    end = trough + int(above[0]) if above.size else len(equity) - 1
    assert result.metrics["max_drawdown_bars"] == end - peak
    last_under_water = end - 1 if above.size else end
    days = (result.ts_ns[last_under_water] - result.ts_ns[peak + 1]) / 86_400e9 + 1
    assert figures["eth-1d"]["quantstats"]["max_drawdown_days"] == days


@pytest.mark.parametrize("curve", _curves())
def test_their_exposure_counts_returns_that_are_not_zero_in_whole_per_cent(figures: Figures, curve: str) -> None:
    """Ours counts bars at whose close a position is held: a bar may be held and not move, or move and end flat."""
    result = CURVES[curve].result
    held = result.position_units != 0.0
    assert result.metrics["exposure"] == pytest.approx(held.mean(), rel=CLOSE_TO)
    moved = np.diff(result.equity) != 0.0
    assert figures[curve]["quantstats"]["exposure"] == pytest.approx(math.ceil(moved.mean() * 100) / 100)


@pytest.mark.parametrize("curve", [name for name in CURVES if name not in ("fractions", "btc-4h", "eth-1d")])
def test_win_rate_and_profit_factor_are_theirs_on_round_trips_instead_of_bars(figures: Figures, curve: str) -> None:
    metrics, theirs = CURVES[curve].result.metrics, figures[curve]["quantstats"]
    trips = _round_trips(CURVES[curve].result)
    assert len(trips) == metrics["trades"] > 5
    assert theirs["win_rate_of_trips"] == pytest.approx(metrics["win_rate"], rel=CLOSE_TO)
    if math.isfinite(metrics["profit_factor"]):
        assert theirs["profit_factor_of_trips"] == pytest.approx(metrics["profit_factor"], rel=CLOSE_TO)
    assert theirs["win_rate_of_bars"] != pytest.approx(metrics["win_rate"])


@pytest.mark.parametrize("curve", _curves())
def test_turnover_is_fills_over_equity_a_year(curve: str) -> None:
    """No library has it (pyfolio's divides by the gross book): recomputed from fills and equity alone."""
    result = CURVES[curve].result
    fills, costs = result.fills, result.spec.costs
    cash = costs.initial_cash - np.cumsum(fills["side"] * fills["quantity"] * fills["price"] + fills["fee"])
    held = np.cumsum(fills["side"] * fills["quantity"])
    before = np.concatenate([[0.0], held[:-1]])
    closing = np.where((held * before <= 1e-9 * before * before) & (before != 0.0), np.abs(before), 0.0)
    worth = np.concatenate([[costs.initial_cash], cash[:-1]]) + before * fills["price"]
    worth = worth - closing * fills["price"] * costs.fee_bps / 1e4
    years = float(result.ts_ns[-1] - result.ts_ns[0]) / YEAR_NS
    expected = float(np.sum(fills["quantity"] * fills["price"] / worth)) / years
    assert result.metrics["turnover"] == pytest.approx(expected, rel=1e-7)


def test_their_default_year_is_252_days_whatever_the_bars(figures: Figures) -> None:
    result = CURVES["with-gaps"].result
    factor = math.sqrt(252 / _periods(result))
    for library in ("quantstats", "empyrical"):
        expected = result.metrics["sharpe"] * factor
        assert figures["with-gaps"][library]["sharpe_by_default"] == pytest.approx(expected, rel=CLOSE_TO)


def test_every_metric_is_compared() -> None:
    compared = {"max_drawdown", "max_drawdown_bars", "exposure", "win_rate", "profit_factor", "trades", "turnover"}
    assert {*SAME, *compared} == set(METRICS)
