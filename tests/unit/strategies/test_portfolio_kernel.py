"""The rules of portfolios as a table: weights and prices in, units and equity out, worked by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from strategies import kernel, portfolio_kernel
from strategies.metrics import METRICS, metrics_of
from tests.unit.strategies.portfolios import books_of, panel_from

NAN = math.nan
NO_BAR = (NAN, NAN)
A, B, C = 0, 1, 2


@dataclass
class Case:
    """One situation; rows are bars, columns products; prices are (open, close), costs are fractions."""

    what: str
    weights: list[list[float]]
    prices: list[list[tuple[float, float]]]
    units: list[list[float]]
    equity: list[float]
    fills: list[tuple[int, int, float, float, float, float]] = field(default_factory=list)
    fee: float = 0.0
    slippage: float = 0.0
    same_close: bool = False
    size: float = 1.0
    leverage: float = 1.0
    volume: list[list[float]] | None = None
    cash: float = 1_000.0


CASES = [
    Case(
        "weights are shares of one cash, carried out at the next open",
        weights=[[0.5, 0.25], [NAN, NAN], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 20), (5, 5)], [(20, 20), (5, 10)]],
        units=[[0, 0], [50, 50], [50, 50]],
        equity=[1_000, 1_500, 1_750],
        fills=[(1, A, +1, 10, 50, 0), (1, B, +1, 5, 50, 0)],
    ),
    Case(
        "same close fills at the deciding bar's close",
        weights=[[0.5, 0.5], [NAN, NAN]],
        prices=[[(9, 10), (4, 5)], [(10, 20), (5, 5)]],
        units=[[50, 100], [50, 100]],
        equity=[1_000, 1_500],
        fills=[(0, A, +1, 10, 50, 0), (0, B, +1, 5, 100, 0)],
        same_close=True,
    ),
    Case(
        "weights of the last bar are not carried out",
        weights=[[NAN, NAN], [1, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)]],
        units=[[0, 0], [0, 0]],
        equity=[1_000, 1_000],
    ),
    Case(
        "sells come before buys, whatever the products' order: the money is there",
        weights=[[NAN, 1], [1, 0], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 10)], [(10, 10), (10, 10)]],
        units=[[0, 0], [0, 200], [200, 0]],
        equity=[1_000, 2_000, 2_000],
        fills=[(1, B, +1, 5, 200, 0), (2, B, -1, 10, 200, 0), (2, A, +1, 10, 200, 0)],
    ),
    Case(
        "NaN leaves a position as it is; a weight given again rebalances it",
        weights=[[0.5, 0.5], [NAN, NAN], [0.5, 0.5], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 30), (5, 5)], [(30, 30), (5, 5)], [(30, 30), (5, 5)]],
        units=[[0, 0], [50, 100], [50, 100], [100 / 3, 200]],
        equity=[1_000, 2_000, 2_000, 2_000],
        fills=[(1, A, +1, 10, 50, 0), (1, B, +1, 5, 100, 0), (3, A, -1, 30, 50 / 3, 0), (3, B, +1, 5, 100, 0)],
    ),
    Case(
        "an order for a product without a bar waits for its next one, and is sized then",
        weights=[[0.5, 0.5], [NAN, NAN], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 20), NO_BAR], [(20, 20), (5, 5)]],
        units=[[0, 0], [50, 0], [50, 100]],
        equity=[1_000, 1_500, 1_500],
        # At bar 2 the equity is 1,500: half of it is 750, but only 500 of cash and 0.5 of leverage are left.
        fills=[(1, A, +1, 10, 50, 0), (2, B, +1, 5, 100, 0)],
    ),
    Case(
        "a later weight takes the place of a waiting one",
        weights=[[NAN, 1], [NAN, 0.5], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), NO_BAR], [(10, 10), (5, 5)]],
        units=[[0, 0], [0, 0], [0, 100]],
        equity=[1_000, 1_000, 1_000],
        fills=[(2, B, +1, 5, 100, 0)],
    ),
    Case(
        "a product that is not listed yet cannot be bought",
        weights=[[0.5, 0.5], [NAN, NAN]],
        prices=[[(10, 10), NO_BAR], [(10, 10), NO_BAR]],
        units=[[0, 0], [50, 0]],
        equity=[1_000, 1_000],
        fills=[(1, A, +1, 10, 50, 0)],
    ),
    Case(
        "a delisted product is worth its last close and cannot be sold",
        weights=[[NAN, 1], [NAN, 0], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 4)], [(10, 10), NO_BAR]],
        units=[[0, 0], [0, 200], [0, 200]],
        equity=[1_000, 800, 800],
        fills=[(1, B, +1, 5, 200, 0)],
    ),
    Case(
        "on a bar without volume nothing is traded",
        weights=[[1, NAN], [NAN, NAN], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)], [(20, 20), (5, 5)]],
        units=[[0, 0], [0, 0], [50, 0]],
        equity=[1_000, 1_000, 1_000],
        fills=[(2, A, +1, 20, 50, 0)],
        volume=[[1, 1], [0, 1], [1, 1]],
    ),
    Case(
        "the fee is reserved: weights that add up to 1 leave no debt",
        weights=[[0.5, 0.5], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)]],
        # A: 0.5 * 1,000 / (10 * 1.25) = 40, which costs 500; B: 0.5 of the 900 that are left, 450 / (5 * 1.25) = 72.
        units=[[0, 0], [40, 72]],
        equity=[1_000, 810],
        fills=[(1, A, +1, 10, 40, 100), (1, B, +1, 5, 72, 90)],
        fee=0.25,
    ),
    Case(
        "dollar-neutral: what the short brings in is cash",
        weights=[[0.5, -0.5], [NAN, NAN], [0, 0], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 12), (5, 5)], [(12, 12), (5, 4)], [(12, 12), (4, 4)]],
        units=[[0, 0], [50, -100], [50, -100], [0, 0]],
        equity=[1_000, 1_100, 1_200, 1_200],
        fills=[(1, B, -1, 5, 100, 0), (1, A, +1, 10, 50, 0), (3, A, -1, 12, 50, 0), (3, B, +1, 4, 100, 0)],
    ),
    Case(
        "sizes beyond the leverage are made smaller by one factor",
        weights=[[1, -1], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)]],
        units=[[0, 0], [50, -100]],
        equity=[1_000, 1_000],
        fills=[(1, B, -1, 5, 100, 0), (1, A, +1, 10, 50, 0)],
    ),
    Case(
        "with leverage the cash may be borrowed",
        weights=[[1, 1], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 11), (5, 5)]],
        units=[[0, 0], [100, 200]],
        equity=[1_000, 1_100],
        fills=[(1, A, +1, 10, 100, 0), (1, B, +1, 5, 200, 0)],
        leverage=2.0,
    ),
    Case(
        "size multiplies the weights",
        weights=[[0.5, 0.25], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)]],
        units=[[0, 0], [100, 100]],
        equity=[1_000, 1_000],
        fills=[(1, A, +1, 10, 100, 0), (1, B, +1, 5, 100, 0)],
        size=2.0,
        leverage=2.0,
    ),
    Case(
        # Selling A brings 166.67. B could have half of that and the 333.33 left in A, but there is no more cash.
        "a buy spends no more than the cash there is",
        weights=[[1, NAN], [0.5, 0.5], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)], [(10, 10), (5, 5)]],
        units=[[0, 0], [200 / 3, 0], [33.33333333333333, 22.22222222222222]],
        equity=[1_000, 2_000 / 3, 4_000 / 9],
        fills=[(1, A, +1, 15, 200 / 3, 0), (2, A, -1, 5, 100 / 3, 0), (2, B, +1, 7.5, 200 / 9, 0)],
        slippage=0.5,
    ),
    Case(
        "ruin closes every position at its price, for good",
        weights=[[1, -1], [NAN, NAN], [1, NAN], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)], [(10, 10), (5, 20)], [(10, 10), (5, 5)]],
        units=[[0, 0], [50, -100], [0, 0], [0, 0]],
        equity=[1_000, 1_000, 0, 0],
        fills=[(1, B, -1, 5, 100, 0), (1, A, +1, 10, 50, 0), (2, A, -1, 10, 50, 0), (2, B, +1, 20, 100, 0)],
    ),
]


def account(case: Case) -> tuple[kernel.Outcome, portfolio_kernel.Trace]:
    open_, close = np.moveaxis(np.array(case.prices, dtype=np.float64), 2, 0)
    volume = np.ones_like(close) if case.volume is None else np.array(case.volume, dtype=np.float64)
    columns = {"open": open_, "high": np.maximum(open_, close), "low": np.minimum(open_, close), "close": close}
    agreed = {
        "fee_bps": case.fee * 1e4,
        "slippage_bps": case.slippage * 1e4,
        "fill": "same_close" if case.same_close else "next_open",
        "initial_cash": case.cash,
        "size": case.size,
        "leverage": case.leverage,
    }
    weights = np.array(case.weights, dtype=np.float64)
    # Margin calls have a table of their own.
    return books_of(weights, panel_from({**columns, "volume": volume}), agreed | {"maintenance_margin": 0.0})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_rule(case: Case) -> None:
    outcome, trace = account(case)
    assert outcome.fault == kernel.OK
    np.testing.assert_allclose(trace.units, case.units, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(trace.equity, case.equity, rtol=1e-12, atol=1e-9)
    names = ("bar", "product", "side", "price", "quantity", "fee")
    fills = [tuple(float(getattr(trace, f"fill_{name}")[i]) for name in names) for i in range(outcome.fills)]
    assert len(fills) == len(case.fills)
    for got, expected in zip(fills, case.fills, strict=True):
        assert got == pytest.approx(expected, rel=1e-12)


def metrics(case: Case) -> dict[str, float]:
    outcome, _ = account(case)
    return dict(zip(METRICS, metrics_of(outcome.tallies, 1.0).tolist(), strict=True))


def test_round_trips_are_counted_by_product_with_that_products_own_money() -> None:
    case = Case(
        "",
        weights=[[0.5, 0.5], [NAN, NAN], [0, 0], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 12), (5, 4)], [(12, 12), (4, 4)], [(12, 12), (4, 4)]],
        units=[],
        equity=[],
    )
    got = metrics(case)
    # A wins 100, B loses 100.
    assert (got["trades"], got["win_rate"], got["profit_factor"]) == pytest.approx((2, 0.5, 1.0))
    assert got["exposure"] == 0.5
    assert got["turnover"] == pytest.approx(0.5 + 0.5 + 0.6 + 0.4)


def test_in_a_ruin_the_open_trades_share_what_is_left_or_missing() -> None:
    case = Case(
        "",
        weights=[[0.5, -0.5], [NAN, NAN], [NAN, NAN]],
        prices=[[(10, 10), (5, 5)], [(10, 10), (5, 5)], [(10, 12), (5, 20)]],
        units=[],
        equity=[],
    )
    got = metrics(case)
    # A is 100 up, B 1,500 down: 400 are missing of the 1,000. Lent 200 each, they end 300 up and 1,300 down.
    assert (got["trades"], got["total_return"]) == (2, -1)
    assert got["profit_factor"] == pytest.approx(300 / 1_300)


def test_an_equity_beyond_all_doubles_is_a_fault() -> None:
    tiny, huge = (1e-300, 1e-300), (1e300, 1e300)
    case = Case("", [[1.0], [NAN], [NAN]], [[tiny], [tiny], [huge]], [], [])
    outcome, _ = account(case)
    assert (outcome.fault, outcome.fault_bar) == (kernel.EQUITY_OVERFLOW, 2)


def test_room_for_decisions_grows() -> None:
    decisions = portfolio_kernel.new_decisions(2)
    for bar in range(200):
        decisions = portfolio_kernel.decided(decisions, bar, np.array([NAN, NAN]))
        decisions = portfolio_kernel.decided(decisions, bar, np.array([NAN, bar / 200]))
    assert decisions.bars[: decisions.used].tolist() == list(range(200))
    assert decisions.weights[: decisions.used, 1].tolist() == [bar / 200 for bar in range(200)]
