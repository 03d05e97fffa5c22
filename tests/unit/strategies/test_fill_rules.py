"""When and at what price an order is filled, how large it is, what holding costs: rules as tables, worked by hand.

A case has 1,000 in cash and neither fee nor slippage unless it says so. Bars are (open, high, low, close), or one price
for all four; their volume is 1,000 and they are a day apart. A fill is (bar, quantity, below 0 where sold, price).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from strategies import kernel
from strategies.backtest import BarsError, tape_of
from strategies.compiled import read_only
from strategies.model import Bars, Granularity
from strategies.rules import Rules
from strategies.spec import Costs, Sizing

NAN = math.nan
Price = float | tuple[float, float, float, float]


@dataclass
class Case:
    """One situation and what comes of it; ``given`` are fields of costs, sizing and rules."""

    what: str
    target: list[float]
    bars: list[Price]
    fills: list[tuple[float, float, float]]
    equity: list[float] | None = None
    fees: list[float] | None = None
    volume: list[float] = field(default_factory=list)
    days: list[int] = field(default_factory=list)
    given: dict[str, Any] = field(default_factory=dict)


def case(
    what: str, target: list[float], bars: list[Price], fills: list[tuple[float, float, float]], **more: Any
) -> Case:
    own = {name: more.pop(name) for name in ("equity", "fees", "volume", "days") if name in more}
    return Case(what, target, bars, fills, **own, given=more)


LONG = [1.0] * 5
SHORT = [-1.0] * 5
DEVIATION = math.sqrt(0.02)  # of returns +10 % and -10 %

WHEN = [
    case(
        "next open: decided at a close, filled at the open after it",
        [1, 1, 1],
        [10, (12.5, 13, 11, 12), 12],
        [(1, 80, 12.5)],
    ),
    case("next open: what the last bar decides is not filled", [0, 0, 1], [10, 10, 10], []),
    case(
        "same close: filled at the close that decided it",
        [1, 1],
        [(9, 12, 8, 10), 20],
        [(0, 100, 10)],
        fill="same_close",
    ),
    case(
        "a gap at the open is paid or gained",
        [1, 0, 0],
        [10, 10, (14, 15, 13, 14)],
        [(1, 100, 10), (2, -100, 14)],
        equity=[1_000, 1_000, 1_400],
    ),
    case("a target that is no number means no position", [1, NAN, NAN], [10, 10, 12], [(1, 100, 10), (2, -100, 12)]),
]
STOPS = [
    case(
        "a stop-loss fills at its price within the bar",
        LONG,
        [10, 10, (10, 11, 8, 10), 10, 10],
        [(1, 100, 10), (2, -100, 9)],
        stop_loss=0.1,
    ),
    case(
        "a stop-loss that is nearly reached does not",
        LONG,
        [10, 10, (10, 11, 9.01, 10), 10, 10],
        [(1, 100, 10)],
        stop_loss=0.1,
    ),
    case(
        "a stop-loss that the bar opens beyond fills at the open",
        LONG,
        [10, 10, (7, 8, 6, 8), 8, 8],
        [(1, 100, 10), (2, -100, 7)],
        stop_loss=0.1,
    ),
    case(
        "the bar of an entry at its open counts",
        LONG,
        [10, (10, 11, 8, 10), 10, 10, 10],
        [(1, 100, 10), (1, -100, 9)],
        stop_loss=0.1,
    ),
    case(
        "the bar of an entry at its close does not",
        LONG,
        [(10, 11, 8, 10), 10, 10, 10, 10],
        [(0, 100, 10)],
        stop_loss=0.1,
        fill="same_close",
    ),
    case(
        "the entry price is the price paid, and a stop pays slippage like any order",
        LONG,
        [10, 10, (10, 11, 8, 10), 10, 10],
        [(1, 1_000 / 11.5, 11.5), (2, -1_000 / 11.5, 11.5 * 0.8 * 0.85)],
        stop_loss=0.2,
        slippage_bps=1_000,
        spread_bps=1_000,
    ),
    case(
        "a short is stopped above",
        SHORT,
        [10, 10, (10, 12, 9, 10), 10, 10],
        [(1, -100, 10), (2, 100, 11)],
        stop_loss=0.1,
    ),
    case(
        "a short that the bar opens beyond its stop is bought back at the open",
        SHORT,
        [10, 10, (13, 14, 12, 13), 13, 13],
        [(1, -100, 10), (2, 100, 13)],
        stop_loss=0.1,
    ),
    case(
        "a target fills at its price",
        LONG,
        [10, 10, (10, 13, 9, 10), 10, 10],
        [(1, 100, 10), (2, -100, 12)],
        take_profit=0.2,
    ),
    case(
        "a target that the bar opens beyond fills at the better open",
        LONG,
        [10, 10, (14, 15, 13, 14), 14, 14],
        [(1, 100, 10), (2, -100, 14)],
        take_profit=0.2,
    ),
    case(
        "the target of a short is below",
        SHORT,
        [10, 10, (10, 11, 7, 10), 10, 10],
        [(1, -100, 10), (2, 100, 8)],
        take_profit=0.2,
    ),
    case(
        "stop and target in one bar: the stop",
        LONG,
        [10, 10, (10, 13, 8, 12), 12, 12],
        [(1, 100, 10), (2, -100, 9)],
        stop_loss=0.1,
        take_profit=0.2,
    ),
    case(
        "stop and target in one bar: the target, where asked for",
        LONG,
        [10, 10, (10, 13, 8, 12), 12, 12],
        [(1, 100, 10), (2, -100, 12)],
        stop_loss=0.1,
        take_profit=0.2,
        both_in_bar="target_first",
    ),
    case(
        "stop and target in one bar that opens beyond the target: the open was first",
        LONG,
        [10, 10, (13, 14, 8, 12), 12, 12],
        [(1, 100, 10), (2, -100, 13)],
        stop_loss=0.1,
        take_profit=0.2,
    ),
    case(
        "stop and target of a short in one bar: the stop",
        SHORT,
        [10, 10, (10, 12, 7, 8), 8, 8],
        [(1, -100, 10), (2, 100, 11)],
        stop_loss=0.1,
        take_profit=0.2,
    ),
    case(
        "a trailing stop follows the highs of the bars before",
        LONG,
        [10, 10, (10, 20, 10, 20), (20, 20, 15, 16), 16],
        [(1, 100, 10), (3, -100, 16)],
        trailing_stop=0.2,
    ),
    case(
        "a bar's own high does not raise its own trailing stop",
        LONG,
        [10, 10, (10, 20, 9, 17), (17, 20, 17, 18), 18],
        [(1, 100, 10)],
        trailing_stop=0.2,
    ),
    case(
        "the trailing stop of a short follows the lows",
        SHORT,
        [10, 10, (10, 10, 5, 5), (5, 7, 5, 6), 6],
        [(1, -100, 10), (3, 100, 6)],
        trailing_stop=0.2,
    ),
    case(
        "of stop-loss and trailing stop the nearer counts",
        LONG,
        [10, 10, (10, 11, 8, 10), 10, 10],
        [(1, 100, 10), (2, -100, 9)],
        stop_loss=0.1,
        trailing_stop=0.2,
    ),
    case(
        "a time stop closes so many bars after the entry",
        LONG,
        [10, 10, 11, 12, 13],
        [(1, 100, 10), (3, -100, 12)],
        time_stop_bars=2,
    ),
    case(
        "a time stop at the close",
        LONG,
        [10, 10, 11, 12, 13],
        [(0, 100, 10), (2, -100, 11)],
        time_stop_bars=2,
        fill="same_close",
    ),
    case(
        "a reversal begins the time anew",
        [1, 1, -1, -1, -1, -1],
        [10, 10, 10, 10, 10, 10],
        [(1, 100, 10), (3, -200, 10), (5, 100, 10)],
        time_stop_bars=2,
    ),
    case(
        "after a stop only a change of target makes an order",
        [1, 1, 1, 1, 0.5, 0.5],
        [10, 10, (10, 10, 8, 9), 9, 9, 9],
        [(1, 100, 10), (2, -100, 9), (5, 50, 9)],
        stop_loss=0.1,
    ),
    case(
        "an order at the open goes before the stops of its bar",
        [1, -1, -1],
        [10, 10, (10, 10.5, 8, 9)],
        [(1, 100, 10), (2, -200, 10)],
        stop_loss=0.1,
    ),
    case(
        "an order at the close goes after the stops of its bar",
        [1, 1, -1],
        [10, 10, (10, 10, 8, 9)],
        [(0, 100, 10), (2, -100, 9), (2, -100, 9)],
        stop_loss=0.1,
        fill="same_close",
    ),
    case(
        "an increase averages the entry price: 50 at 10 and 25 at 20 make 13.33",
        [0.5, 1, 1, 1],
        [10, 10, 20, (20, 20, 11, 12)],
        [(1, 50, 10), (2, 25, 20), (3, -75, 12)],
        stop_loss=0.1,
    ),
    case(
        "a reduction leaves the entry price where it was",
        [1, 0.5, 0.5, 0.5],
        [10, 10, 20, (20, 20, 8, 9)],
        [(1, 100, 10), (2, -50, 20), (3, -50, 9)],
        stop_loss=0.1,
    ),
]
VOLUME = [
    case(
        "on a bar without volume an order waits for the next one with volume",
        [1, 1, 1],
        [10, 10, 12.5],
        [(2, 80, 12.5)],
        volume=[5, 0, 5],
    ),
    case("an order that waits follows the target", [1, 0, 0, 0], [10, 10, 10, 10], [], volume=[5, 0, 5, 5]),
    case(
        "on a bar without volume no stop is reached",
        LONG,
        [10, 10, (10, 10, 5, 10), 10, (10, 10, 8, 10)],
        [(1, 100, 10), (4, -100, 9)],
        volume=[5, 5, 0, 5, 5],
        stop_loss=0.1,
    ),
    case(
        "bars without volume are like others where asked for",
        [1, 1, 1],
        [10, 10, 12.5],
        [(1, 100, 10)],
        volume=[5, 0, 5],
        zero_volume="fills",
    ),
    case(
        "a share of the volume is filled, the rest on the next bars at their prices",
        [1, 1, 1, 1],
        [10, 10, 10, 8],
        [(1, 60, 10), (2, 20, 10), (3, 25, 8)],
        volume=[9, 600, 200, 900],
        max_volume_share=0.1,
    ),
    case(
        "closing takes as many bars as the volume needs",
        [1, 0, 0, 0],
        [10, 10, 10, 10],
        [(1, 100, 10), (2, -40, 10), (3, -60, 10)],
        volume=[9, 1_000, 400, 900],
        max_volume_share=0.1,
    ),
    case(
        "what a stop leaves is closed at the next open",
        LONG,
        [10, 10, (10, 10, 8, 8), 7, 7],
        [(1, 100, 10), (2, -40, 9), (3, -60, 7)],
        volume=[9, 1_000, 400, 900, 9],
        max_volume_share=0.1,
        stop_loss=0.1,
    ),
    case(
        "a bar's volume is shared by the order and the stop on it",
        LONG,
        [10, (10, 10, 8, 9), 9, 9, 9],
        [(1, 100, 10), (2, -100, 9)],
        volume=[9, 1_000, 1_000, 9, 9],
        max_volume_share=0.1,
        stop_loss=0.1,
    ),
    case(
        "impact: a quarter of the volume moves the price by half of 10 %",
        [1, 1],
        [10, 10],
        [(1, 1_000 / 10.5, 10.5)],
        volume=[9, 400],
        impact=0.1,
    ),
    case(
        "impact: more than all of the volume moves it no further than all of it",
        [1, 1],
        [10, 10],
        [(1, 1_000 / 11, 11)],
        volume=[9, 9],
        impact=0.1,
    ),
    case(
        "impact is against a seller too",
        [1, 0, 0],
        [10, 10, 10],
        [(1, 1_000 / 10.1, 10.1), (2, -1_000 / 10.1, 10 * (1 - 0.1 * math.sqrt(1 / 101)))],
        volume=[9, 10_000, 10_000],
        impact=0.1,
    ),
]
LOCKED = [
    case("a bar that stands still fills at its price", [1, 1, 1], [10, 12.5, (12, 13, 11, 12)], [(1, 80, 12.5)]),
    case(
        "limit up: no buy where asked for, until the bar after it",
        [1, 1, 1],
        [10, 12, (12.5, 13, 11, 12)],
        [(2, 80, 12.5)],
        locked_bars="waits",
    ),
    case("limit up: a sell is filled", [1, 0, 0], [10, 10, 12], [(1, 100, 10), (2, -100, 12)], locked_bars="waits"),
    case(
        "limit down: no sell",
        [1, 0, 0, 0],
        [10, 10, 8, (7, 8, 6, 7)],
        [(1, 100, 10), (3, -100, 7)],
        locked_bars="waits",
    ),
    case(
        "limit down: a stop waits as well",
        LONG,
        [10, 10, 8, (7, 8, 6, 7), 7],
        [(1, 100, 10), (3, -100, 7)],
        locked_bars="waits",
        stop_loss=0.1,
    ),
    case("a price that did not move is no limit", [1, 1], [10, 10], [(1, 100, 10)], locked_bars="waits"),
]
SIZES = [
    case("percent: size times the target of equity", [0.5, 0.5], [10, 10], [(1, 40, 10)], size=0.8),
    case(
        "units: size times the target, whatever they cost",
        [1, 0.5, 0.5],
        [10, 10, 20],
        [(1, 3, 10), (2, -1.5, 20)],
        kind="units",
        size=3,
    ),
    case(
        "notional: quote units at the fill price",
        [1, -0.5, -0.5],
        [10, 10, 20],
        [(1, 20, 10), (2, -25, 20)],
        kind="notional",
        size=200,
    ),
    case(
        "volatility: the wanted over the measured one, once its window is full",
        [1, 1, 1, 1],
        [10, 11, 9.9, 10],
        [(3, 50, 10)],
        kind="volatility",
        window=2,
        size=0.5 * DEVIATION * math.sqrt(365.25),
    ),
    case(
        "volatility: none at all means the leverage",
        [1, 1, 1, 1],
        [10, 10, 10, 10],
        [(3, 200, 10)],
        kind="volatility",
        window=2,
        size=0.3,
        leverage=2,
    ),
    case("the leverage bounds a fraction", [1, 1], [10, 10], [(1, 200, 10)], size=3, leverage=2),
    case(
        "the leverage bounds units, the fee reserved",
        [1, 1],
        [10, 10],
        [(1, 1_000 / 11, 10)],
        kind="units",
        size=1e6,
        fee_bps=1_000,
    ),
    case("a leverage below 1 bounds too", [1, 1], [10, 10], [(1, 50, 10)], leverage=0.5),
    case("an order is rounded down to the increment", [1, 1], [12, 12], [(1, 80, 12)], quantity_increment=10),
    case(
        "an order below the least quantity is not made",
        [0.5, 0.5, 1, 1],
        [10, 10, 10, 10],
        [(3, 100, 10)],
        min_quantity=60,
    ),
    case(
        "a reduction below the least quantity is not made, closing always is",
        [1, 0.5, 0, 0],
        [10, 10, 10, 10],
        [(1, 100, 10), (3, -100, 10)],
        min_quantity=60,
    ),
    case(
        "a closing order is not rounded: a reversal is",
        [1, -1, 0, 0],
        [12, 12, 12, 12],
        [(1, 80, 12), (2, -160, 12), (3, 80, 12)],
        quantity_increment=10,
    ),
]
COSTS = [
    case(
        "half the spread is paid by either side",
        [1, 0, 0],
        [10, 10, 10],
        [(1, 1_000 / 10.1, 10.1), (2, -1_000 / 10.1, 9.9)],
        spread_bps=200,
    ),
    case(
        "fee tiers: the second fill has reached the tier",
        [1, 0, 0],
        [10, 10, 10],
        [(1, 50, 10), (2, -50, 10)],
        fees=[5, 2.5],
        kind="units",
        size=50,
        fee_bps=100,
        fee_tiers=[[500, 50], [5_000, 10]],
    ),
    case(
        "fee tiers: after 30 days what was traded no longer counts",
        [1, 0, 0],
        [10, 10, 10],
        [(1, 50, 10), (2, -50, 10)],
        fees=[5, 5],
        days=[0, 1, 31],
        kind="units",
        size=50,
        fee_bps=100,
        fee_tiers=[[500, 50]],
    ),
    case(
        "funding: a long pays for the time held",
        [1, 1, 0, 0],
        [10, 10, 10, 10],
        [(1, 100, 10), (3, -100, 10)],
        equity=[1_000, 1_000, 990, 980],
        funding_bps_per_day=100,
    ),
    case(
        "funding: a short gets it",
        [-1, -1, 0, 0],
        [10, 10, 10, 10],
        [(1, -100, 10), (3, 100, 10)],
        equity=[1_000, 1_000, 1_010, 1_020],
        funding_bps_per_day=100,
    ),
    case(
        "funding: a gap between bars is time",
        [1, 1, 1],
        [10, 10, 10],
        [(1, 100, 10)],
        equity=[1_000, 1_000, 970],
        days=[0, 1, 4],
        funding_bps_per_day=100,
    ),
    case(
        "borrowing: a short pays for its units",
        [-1, 0, 0],
        [10, 10, 12],
        [(1, -100, 10), (2, 100, 12)],
        equity=[1_000, 1_000, 790],
        borrow_bps_per_day=100,
    ),
    case(
        "borrowing: a long without leverage owes nothing",
        [1, 1, 1],
        [10, 10, 10],
        [(1, 100, 10)],
        equity=[1_000, 1_000, 1_000],
        borrow_bps_per_day=100,
    ),
    case(
        "borrowing: a leveraged long pays for the cash it owes",
        [1, 1, 1],
        [10, 10, 10],
        [(1, 200, 10)],
        equity=[1_000, 1_000, 990],
        borrow_bps_per_day=100,
        size=2,
        leverage=2,
    ),
]
MARGIN = [
    case(
        "a margin call closes where equity is 5 % of the value: 1,000 / (200 * 0.95)",
        [1, 1, 1],
        [10, 10, (10, 10, 5, 8)],
        [(1, 200, 10), (2, -200, 1_000 / 190)],
        equity=[1_000, 1_000, 200 * 1_000 / 190 - 1_000],
        size=2,
        leverage=2,
    ),
    case(
        "a short's margin call: 3,000 / (200 * 1.05)",
        [-1, -1, -1],
        [10, 10, (10, 15, 10, 10)],
        [(1, -200, 10), (2, 200, 3_000 / 210)],
        size=2,
        leverage=2,
    ),
    case(
        "a gap through the margin and all money is ruin",
        [1, 1, 1],
        [10, 10, (4, 5, 3, 4)],
        [(1, 200, 10), (2, -200, 4)],
        equity=[1_000, 1_000, 0],
        size=2,
        leverage=2,
    ),
    case(
        "without leverage nothing is called between open and close",
        SHORT,
        [10, 10, (10, 30, 10, 10), 10, 10],
        [(1, -100, 10)],
    ),
    case(
        "a stop nearer than the margin comes first",
        [1, 1, 1],
        [10, 10, (10, 10, 5, 8)],
        [(1, 200, 10), (2, -200, 9)],
        stop_loss=0.1,
        size=2,
        leverage=2,
    ),
]
END = [
    case(
        "a series that ends early: the position is worth its last close",
        [1, 1, 1],
        [10, 10, 7],
        [(1, 100, 10)],
        equity=[1_000, 1_000, 700],
    ),
    case(
        "or it is closed there, with costs",
        [1, 1, 1],
        [10, 10, 7],
        [(1, 100, 10), (2, -100, 7)],
        equity=[1_000, 1_000, 700],
        at_end="liquidate",
    ),
    case(
        "whatever the volume of the last bar",
        [1, 1, 1],
        [10, 10, 7],
        [(1, 100, 10), (2, -100, 7)],
        volume=[9, 9, 0],
        at_end="liquidate",
    ),
]

CASES = [*WHEN, *STOPS, *VOLUME, *LOCKED, *SIZES, *COSTS, *MARGIN, *END]


def bars_of(case: Case) -> Bars:
    rows = [(bar,) * 4 if isinstance(bar, float | int) else bar for bar in case.bars]
    open_, high, low, close = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    days = np.array(case.days or range(len(rows)), dtype=np.int64)
    volume = np.array(case.volume or [1_000.0] * len(rows), dtype=np.float64)
    return Bars("BTC-USD", Granularity.ONE_DAY, days * Granularity.ONE_DAY.ns, open_, high, low, close, volume)


def account(case: Case) -> tuple[kernel.Outcome, kernel.Trace]:
    given = {"fee_bps": 0.0, "slippage_bps": 0.0, "initial_cash": 1_000.0, **case.given}
    costs = Costs.model_validate({name: given.pop(name) for name in Costs.model_fields if name in given})
    sizing = Sizing.model_validate({name: given.pop(name) for name in Sizing.model_fields if name in given})
    conditions = kernel.conditions_of(costs, sizing, Rules.model_validate(given).vector())
    trace = kernel.new_trace(len(case.target))
    cuts, moments = read_only(np.empty(0, dtype=np.int64)), np.empty((0, 6))
    tape, target = tape_of(bars_of(case), sizing), np.array(case.target, dtype=np.float64)
    return kernel.simulate(target, tape, conditions, kernel.tiers_of(costs), cuts, moments, trace), trace


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_rule(case: Case) -> None:
    outcome, trace = account(case)
    assert outcome.fault == kernel.OK
    signed = trace.fill_side[: outcome.fills] * trace.fill_quantity[: outcome.fills]
    fills = [(float(trace.fill_bar[i]), float(signed[i]), float(trace.fill_price[i])) for i in range(outcome.fills)]
    assert len(fills) == len(case.fills), fills
    for got, expected in zip(fills, case.fills, strict=True):
        assert got == pytest.approx(expected, rel=1e-12)
    if case.fees is not None:
        assert trace.fill_fee[: outcome.fills].tolist() == pytest.approx(case.fees)
    if case.equity is not None:
        assert trace.equity.tolist() == pytest.approx(case.equity, abs=1e-9)


@pytest.mark.parametrize("column", ["open", "high", "low", "close", "volume"])
def test_bars_that_are_no_numbers_are_refused(column: str) -> None:
    bars = bars_of(WHEN[0])
    getattr(bars, column)[1] = NAN
    with pytest.raises(BarsError, match=f"{column} of bar 1"):
        tape_of(bars, Sizing())
