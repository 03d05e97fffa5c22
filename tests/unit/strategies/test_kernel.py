"""The accounting rules as a table: targets and prices in, positions and equity out, worked by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from strategies import kernel
from strategies.compiled import read_only
from strategies.metrics import METRICS, metrics_of

NAN = math.nan


@dataclass
class Case:
    """One situation; prices are [(open, close), …], costs are fractions."""

    what: str
    target: list[float]
    prices: list[tuple[float, float]]
    units: list[float]
    equity: list[float]
    fills: list[tuple[int, float, float, float, float]] = field(default_factory=list)
    fee: float = 0.0
    slippage: float = 0.0
    same_close: bool = False
    cash: float = 1_000.0


CASES = [
    Case(
        "a target is carried out at the next open and held, not rebalanced",
        target=[1, 1, 0, 0],
        prices=[(10, 10), (10, 20), (20, 40), (50, 60)],
        units=[0, 100, 100, 0],
        equity=[1_000, 2_000, 4_000, 5_000],
        fills=[(1, +1, 10, 100, 0), (3, -1, 50, 100, 0)],
    ),
    Case(
        "same close fills at the deciding bar's close",
        target=[1, 1, 0, 0],
        prices=[(9, 10), (10, 20), (20, 40), (50, 60)],
        units=[100, 100, 0, 0],
        equity=[1_000, 2_000, 4_000, 4_000],
        fills=[(0, +1, 10, 100, 0), (2, -1, 40, 100, 0)],
        same_close=True,
    ),
    Case(
        "an order decided on the last bar is not filled",
        target=[0, 0, 1],
        prices=[(10, 10), (10, 10), (10, 20)],
        units=[0, 0, 0],
        equity=[1_000, 1_000, 1_000],
    ),
    Case(
        "NaN is no position, while warming up and afterwards",
        target=[NAN, 1, NAN, NAN, 0],
        prices=[(10, 10), (10, 10), (10, 10), (20, 20), (30, 30)],
        units=[0, 0, 100, 0, 0],
        equity=[1_000, 1_000, 1_000, 2_000, 2_000],
        fills=[(2, +1, 10, 100, 0), (3, -1, 20, 100, 0)],
    ),
    Case(
        "the fee is reserved: a target of 1 leaves no cash and no debt",
        target=[1, 1],
        prices=[(10, 10), (10, 10)],
        units=[0, 80],
        equity=[1_000, 800],
        fills=[(1, +1, 10, 80, 200)],
        fee=0.25,
    ),
    Case(
        "slippage makes a buy dearer and a sell cheaper",
        target=[1, 0, 0],
        prices=[(10, 10), (10, 12.5), (10, 10)],
        units=[0, 80, 0],
        equity=[1_000, 1_000, 600],
        fills=[(1, +1, 12.5, 80, 0), (2, -1, 7.5, 80, 0)],
        slippage=0.25,
    ),
    Case(
        "both costs on both sides",
        target=[1, 0, 0],
        prices=[(10, 10), (10, 10), (10, 10)],
        units=[0, 64, 0],
        equity=[1_000, 640, 360],
        fills=[(1, +1, 12.5, 64, 200), (2, -1, 7.5, 64, 120)],
        fee=0.25,
        slippage=0.25,
    ),
    Case(
        "half a target leaves half the cash; more is bought only when the target changes",
        target=[0.5, 0.5, 1, 1],
        prices=[(10, 10), (10, 20), (20, 20), (20, 20)],
        units=[0, 50, 50, 75],
        equity=[1_000, 1_500, 1_500, 1_500],
        fills=[(1, +1, 10, 50, 0), (3, +1, 20, 25, 0)],
    ),
    Case(
        "a short keeps its proceeds in cash and gains when the price falls",
        target=[-1, -1, 0, 0],
        prices=[(10, 10), (10, 8), (8, 5), (5, 5)],
        units=[0, -100, -100, 0],
        equity=[1_000, 1_200, 1_500, 1_500],
        fills=[(1, -1, 10, 100, 0), (3, +1, 5, 100, 0)],
    ),
    Case(
        "a short's fee is reserved as well",
        target=[-1, -1],
        prices=[(10, 10), (10, 10)],
        units=[0, -80],
        equity=[1_000, 800],
        fills=[(1, -1, 10, 80, 200)],
        fee=0.25,
    ),
    Case(
        "a reversal is one order, sized by what closing leaves",
        target=[1, -1, -1],
        prices=[(10, 10), (10, 10), (10, 10)],
        units=[0, 80, -48],
        equity=[1_000, 800, 480],
        fills=[(1, +1, 10, 80, 200), (2, -1, 10, 128, 320)],
        fee=0.25,
    ),
    Case(
        "a smaller target sells down to its share of what is left",
        target=[1, 0.9, 0.9],
        prices=[(10, 10), (10, 10), (10, 10)],
        units=[0, 80, 57.6],
        equity=[1_000, 800, 744],
        fills=[(1, +1, 10, 80, 200), (2, -1, 10, 22.4, 56)],
        fee=0.25,
    ),
    Case(
        # 0.51 * 900 is more than the 400 held, but after the fee's reserve only 367.2 could be held.
        "no order where costs would turn it into its opposite",
        target=[0.5, 0.51, 0.51],
        prices=[(10, 10), (10, 10), (10, 10)],
        units=[0, 40, 40],
        equity=[1_000, 900, 900],
        fills=[(1, +1, 10, 40, 100)],
        fee=0.25,
    ),
    Case(
        "a short ruined at a close is closed out there: equity 0, for good",
        target=[-1, -1, 1, 1, 1],
        prices=[(10, 10), (10, 10), (10, 30), (30, 10), (10, 10)],
        units=[0, -100, 0, 0, 0],
        equity=[1_000, 1_000, 0, 0, 0],
        fills=[(1, -1, 10, 100, 0), (2, +1, 30, 100, 0)],
    ),
    Case(
        "a short ruined at the open at which it should be covered",
        target=[-1, 0, 1, 1],
        prices=[(10, 10), (10, 10), (30, 5), (5, 5)],
        units=[0, -100, 0, 0],
        equity=[1_000, 1_000, 0, 0],
        fills=[(1, -1, 10, 100, 0), (2, +1, 30, 100, 0)],
    ),
    Case(
        "covering costs more than there is: ruin, not debt",
        target=[-1, 0, 0],
        prices=[(10, 10), (10, 10), (19.9, 10)],
        units=[0, -80, 0],
        equity=[1_000, 800, 0],
        fills=[(1, -1, 10, 80, 200), (2, +1, 19.9, 80, 0)],
        fee=0.25,
    ),
    Case(
        "the bar between open and close is not looked at",
        target=[-1, -1, -1],
        prices=[(10, 10), (10, 10), (1_000, 10)],
        units=[0, -100, -100],
        equity=[1_000, 1_000, 1_000],
        fills=[(1, -1, 10, 100, 0)],
    ),
]


def account(case: Case) -> tuple[kernel.Outcome, kernel.Trace]:
    open_, close = np.array(case.prices, dtype=np.float64).T
    terms = kernel.Terms(case.fee, case.slippage, case.same_close, case.cash)
    trace = kernel.new_trace(len(case.target))
    target = np.array(case.target, dtype=np.float64)
    return kernel.account(target, read_only(open_), read_only(close), terms, trace), trace


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_rule(case: Case) -> None:
    outcome, trace = account(case)
    assert outcome.fault == kernel.OK
    np.testing.assert_allclose(trace.units, case.units, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(trace.equity, case.equity, rtol=1e-12, atol=1e-9)
    columns = (trace.fill_bar, trace.fill_side, trace.fill_price, trace.fill_quantity, trace.fill_fee)
    fills = [tuple(float(column[i]) for column in columns) for i in range(outcome.fills)]
    assert len(fills) == len(case.fills)
    for got, expected in zip(fills, case.fills, strict=True):
        assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bad", [1.0000001, -1.5, math.inf, -math.inf])
@pytest.mark.parametrize("bar", [0, 1, 2])
@pytest.mark.parametrize("same_close", [False, True])
def test_a_target_out_of_range_is_a_fault_wherever_it_stands(bad: float, bar: int, same_close: bool) -> None:
    case = Case("", [0.0, 0.0, 0.0], [(10, 10)] * 3, [], [], same_close=same_close)
    case.target[bar] = bad
    outcome, _ = account(case)
    assert (outcome.fault, outcome.fault_bar) == (kernel.TARGET_OUT_OF_RANGE, bar)


def test_an_equity_beyond_all_doubles_is_a_fault() -> None:
    case = Case("", [1.0] * 4, [(1e-300, 1e-300), (1e-300, 1e-300), (1e300, 1e300), (1e300, 1e300)], [], [])
    outcome, _ = account(case)
    assert (outcome.fault, outcome.fault_bar) == (kernel.EQUITY_OVERFLOW, 2)


def metrics(case: Case) -> dict[str, float]:
    outcome, _ = account(case)
    return dict(zip(METRICS, metrics_of(outcome.tallies, 1.0).tolist(), strict=True))


@pytest.mark.parametrize(
    ("what", "target", "closes", "trades", "win_rate", "profit_factor"),
    [
        ("never in the market", [0, 0, 0, 0], [10, 10, 10, 10], 0, NAN, NAN),
        ("still open at the end", [1, 1, 1, 1], [10, 10, 20, 20], 0, NAN, NAN),
        ("one win", [1, 1, 0, 0], [10, 10, 10, 20], 1, 1.0, NAN),
        ("one loss", [1, 1, 0, 0], [10, 10, 10, 5], 1, 0.0, 0.0),
        ("break-even is neither", [1, 1, 0, 0], [10, 10, 10, 10], 1, 0.0, NAN),
        ("a change of size is the same trade", [1, 0.5, 0, 0], [10, 10, 20, 20], 1, 1.0, NAN),
        ("a reversal ends a trade and begins one", [1, -1, 0, 0], [10, 10, 20, 25], 2, 0.5, 2.0),
        ("ruin is a lost trade", [-1, -1, -1, -1], [10, 10, 10, 90], 1, 0.0, 0.0),
    ],
)
def test_trades(
    what: str, target: list[float], closes: list[float], trades: int, win_rate: float, profit_factor: float
) -> None:
    got = metrics(Case(what, target, [(price, price) for price in closes], [], []))
    expected = {"trades": trades, "win_rate": win_rate, "profit_factor": profit_factor}
    assert {name: got[name] for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("what", "closes", "depth", "length"),
    [
        ("only up", [10, 11, 12, 13, 14], 0.0, 0),
        ("down to the end", [10, 10, 9, 8, 5], 0.5, 3),
        ("down and up again: until the peak is reached", [10, 20, 15, 18, 20], 0.25, 3),
        ("the deeper of two", [10, 8, 10, 5, 6], 0.5, 2),
        ("the first of two equal ones", [16, 8, 16, 12, 8], 0.5, 2),
        ("the last bar at the peak begins it", [10, 10, 10, 10, 5], 0.5, 1),
    ],
)
def test_drawdown(what: str, closes: list[float], depth: float, length: int) -> None:
    prices = [(closes[0], closes[0])] + [(price, price) for price in closes]
    prices[1] = (closes[0], closes[0])
    got = metrics(Case(what, [1] * 6, prices, [], []))
    assert (got["max_drawdown"], got["max_drawdown_bars"]) == pytest.approx((depth, length))


def test_exposure_counts_the_bars_at_whose_close_a_position_is_held() -> None:
    assert metrics(Case("", [1, -1, 0, 0], [(10, 10)] * 4, [], []))["exposure"] == 0.5


def test_turnover_counts_in_and_out_with_everything_as_two() -> None:
    case = Case("", [1, 0, 0.5, 0.5], [(10, 10), (10, 20), (20, 20), (20, 20)], [], [])
    assert metrics(case)["turnover"] == pytest.approx(1.0 + 1.0 + 0.5)
