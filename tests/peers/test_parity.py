"""Our engine beside other people's, bar by bar and fill by fill; README.md beside this file tells the settings."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.model import Float64Array
from tests.bar_samples import needs_real_data
from tests.peers.conftest import Engines
from tests.peers.engine_runs import needs_peers, patient
from tests.peers.engines.cases import Answer
from tests.peers.questions import ASKED, DIFFERENT
from tests.peers.samples import REAL_FILES, Question

pytestmark = [needs_peers, patient, pytest.mark.slow]

CLOSE_TO: Final = 1e-9


def _parameters(engine: str) -> list[Any]:
    return [
        pytest.param(one, id=one.name, marks=[needs_real_data] if one.series in REAL_FILES else [])
        for one in ASKED[engine]
    ]


@pytest.mark.parametrize("question", _parameters("vectorbt"))
def test_vectorbt_agrees_in_equity_fills_drawdown_and_sharpe(question: Question, engines: Engines) -> None:
    theirs = engines.ask("vectorbt", question)
    _same_equity(question, theirs["equity"])
    _same_fills(question, theirs)
    _same_metrics(question, theirs)


@pytest.mark.parametrize("question", _parameters("raptorbt"))
def test_raptorbt_agrees_in_equity_fills_drawdown_and_sharpe(question: Question, engines: Engines) -> None:
    theirs = engines.ask("raptorbt", question)
    _same_equity(question, theirs["equity"])
    _same_fills(question, theirs)
    # Its first return is that of the first bar against the initial cash, which is 0: one return more than ours.
    _same_metrics(question, theirs, _sharpe_with_a_first_return_of_0(question))


@pytest.mark.parametrize("question", _parameters("backtrader"))
def test_backtrader_agrees_in_equity_and_fills(question: Question, engines: Engines) -> None:
    theirs = engines.ask("backtrader", question)
    if question.fill == "next_open":
        _same_equity(question, theirs["equity"])
    else:
        _same_equity(question, theirs["equity"], but=question.filled_bars)
    _same_fills(question, theirs)


@pytest.mark.parametrize("question", _parameters("backtesting"))
def test_backtesting_py_agrees_in_equity_and_fills(question: Question, engines: Engines) -> None:
    theirs = engines.ask("backtesting", question)
    if question.fill == "next_open":
        _same_equity(question, theirs["equity"])
    else:
        _same_equity(question, theirs["equity"], but=question.filled_bars)
    _same_fills(question, theirs, but="fee")


def _same_equity(question: Question, equity: Float64Array, but: NDArray[np.int64] | None = None) -> None:
    """At every bar, except at those of ``but``: there the other engine carries an order out after it has looked."""
    ours = question.result.equity
    assert ours.min() > 0.01 * ours[0], "the equity collapses: this case compares rounding errors"
    assert len(question.result.fills) > 5, "too few fills to say anything"
    compared = np.ones(len(ours), dtype=np.bool_)
    if but is not None:
        compared[but] = False
    np.testing.assert_allclose(equity[compared], ours[compared], rtol=CLOSE_TO)


def _same_fills(question: Question, theirs: Answer, but: str = "") -> None:
    fills = question.result.fills
    np.testing.assert_array_equal(theirs["fill_bar"], fills["bar_index"])
    np.testing.assert_array_equal(theirs["fill_side"], fills["side"])
    for name in {"price", "quantity", "fee"} - {but}:
        np.testing.assert_allclose(theirs[f"fill_{name}"], fills[name], rtol=CLOSE_TO, err_msg=name)


def _same_metrics(question: Question, theirs: Answer, sharpe: float | None = None) -> None:
    metrics = question.result.metrics
    expected = metrics["sharpe"] if sharpe is None else sharpe
    assert theirs["max_drawdown"] == pytest.approx(metrics["max_drawdown"], rel=CLOSE_TO)
    assert theirs["sharpe"] == pytest.approx(expected, rel=CLOSE_TO)


def _sharpe_with_a_first_return_of_0(question: Question, per_year: float | None = None) -> float:
    equity = question.result.equity
    returns = np.concatenate([[0.0], equity[1:] / equity[:-1] - 1.0])
    factor = question.case().settings["periods_per_year"] if per_year is None else per_year
    return float(returns.mean() / returns.std(ddof=1) * np.sqrt(factor))


def test_vectorbt_by_default_annualises_by_365_days_and_counts_the_first_bar(engines: Engines) -> None:
    question = ASKED["vectorbt"][0]
    theirs = engines.ask("vectorbt", question)
    expected = _sharpe_with_a_first_return_of_0(question, per_year=365.0)
    assert theirs["sharpe_by_default"] == pytest.approx(expected, rel=CLOSE_TO)


def test_vectorbt_reserves_no_costs_for_a_share_of_the_equity(engines: Engines) -> None:
    question = DIFFERENT["vectorbt"][0]
    theirs = engines.ask("vectorbt", question)
    fills, settings = question.result.fills, question.case().settings
    assert abs(question.result.target[fills["bar_index"][0] - 1]) < 0.9
    ratio = theirs["fill_quantity"][0] / fills["quantity"][0]
    side = float(fills["side"][0])
    assert ratio == pytest.approx((1 + side * settings["slippage"]) * (1 + settings["fee"]), rel=CLOSE_TO)


def test_raptorbt_0_13_books_shorts_as_if_they_were_long(engines: Engines) -> None:
    """Its list of trades and its equity contradict each other, so shorts cannot be compared with it."""
    question = DIFFERENT["raptorbt"][0]
    theirs = engines.ask("raptorbt", question)
    ours = question.result
    np.testing.assert_array_equal(theirs["fill_bar"], ours.fills["bar_index"])
    first_exit = int(ours.fills["bar_index"][1])
    assert theirs["pnl"][0] == pytest.approx(ours.equity[first_exit] - ours.equity[0], rel=CLOSE_TO)
    assert (theirs["equity"][first_exit] - theirs["equity"][0]) * theirs["pnl"][0] < 0


def test_raptorbt_fills_a_target_at_its_price_where_the_bar_opens_beyond_it(engines: Engines) -> None:
    """Ours, like a limit order, is filled at the better open."""
    question = DIFFERENT["raptorbt"][1]
    theirs = engines.ask("raptorbt", question)
    case, fills = question.case(), question.result.fills
    np.testing.assert_array_equal(theirs["fill_bar"], fills["bar_index"])
    different = np.flatnonzero(np.abs(theirs["fill_price"] / fills["price"] - 1) > CLOSE_TO)
    assert len(different) > 0
    for at in different:
        target = fills["price"][at - 1] * (1 + question.params["take_profit"])
        slipped = 1 - case.settings["slippage"]
        assert case.open[fills["bar_index"][at]] > target
        assert theirs["fill_price"][at] == pytest.approx(target * slipped, rel=CLOSE_TO)
        assert fills["price"][at] == pytest.approx(case.open[fills["bar_index"][at]] * slipped, rel=CLOSE_TO)


def test_backtrader_by_default_slips_no_further_than_the_bar_went(engines: Engines) -> None:
    question = DIFFERENT["backtrader"][0]
    theirs = engines.ask("backtrader", question)
    case, fills = question.case(), question.result.fills
    bar = fills["bar_index"]
    capped = np.where(fills["side"] > 0, np.minimum(fills["price"], case.high[bar]), fills["price"])
    capped = np.where(fills["side"] < 0, np.maximum(capped, case.low[bar]), capped)
    np.testing.assert_allclose(theirs["fill_price"], capped, rtol=CLOSE_TO)
    assert np.any(capped != fills["price"])


def test_backtesting_py_charges_the_spread_only_where_a_trade_begins(engines: Engines) -> None:
    question = DIFFERENT["backtesting"][0]
    theirs = engines.ask("backtesting", question)
    fills, settings = question.result.fills, question.case().settings
    sold = fills[fills["side"] < 0]
    undisturbed = sold["price"] / (1 - settings["slippage"])
    spared = float(np.sum(sold["quantity"] * undisturbed) * settings["slippage"] * (1 - settings["fee"]))
    assert spared > 0.001 * question.result.equity[-1]
    assert theirs["equity"][-1] == pytest.approx(question.result.equity[-1] + spared, rel=CLOSE_TO)
