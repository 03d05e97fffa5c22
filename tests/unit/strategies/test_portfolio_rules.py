"""Costs, sizes and rules in a portfolio as a table: bars and weights in, fills and equity out, worked by hand.

Where nothing else is said the cash is 1,000, fills are at the next open, and there is no fee and no slippage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from strategies import kernel
from strategies.metrics import METRICS, metrics_of
from tests.unit.strategies.portfolios import VALUES, books_of, panel_from

NAN = math.nan
NONE = (NAN, NAN)
NO_BAR = (NAN, NAN, NAN, NAN)
A, B = 0, 1
FREE = {"fee_bps": 0.0, "slippage_bps": 0.0, "initial_cash": 1_000.0}


def flat(price: float) -> tuple[float, float, float, float]:
    return (price, price, price, price)


@dataclass
class Case:
    """Rows are times, columns products; a bar is (open, high, low, close); fills are (time, product, units, price)."""

    what: str
    weights: list[tuple[float, float]]
    bars: list[tuple[tuple[float, float, float, float], tuple[float, float, float, float]]]
    fills: list[tuple[int, int, float, float]]
    equity: list[float]
    agreed: dict[str, Any] = field(default_factory=dict)
    volume: list[tuple[float, float]] | None = None
    hours: list[int] | None = None


FALL = (10, 10, 8, 8)

CASES = [
    Case(
        # At bar 2's open A still holds all there is, so B gets nothing; a buy that found no money is not made later.
        "a stop's cash is not there for its own bar's open, but for the next one",
        weights=[(1, NAN), (NAN, 1), (NAN, 1), NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (FALL, flat(5)), (flat(8), flat(5))],
        fills=[(1, A, 100, 10), (2, A, -100, 9), (3, B, 180, 5)],
        equity=[1_000, 1_000, 900, 900],
        agreed={"stop_loss": 0.1},
    ),
    Case(
        "at the close the cash of a stop within that bar is there",
        weights=[(1, NAN), (NAN, 1)],
        bars=[(flat(10), flat(5)), (FALL, flat(5))],
        fills=[(0, A, 100, 10), (1, A, -100, 9), (1, B, 180, 5)],
        equity=[1_000, 900],
        agreed={"stop_loss": 0.1, "fill": "same_close"},
    ),
    Case(
        "of a stop and a target in one bar the stop comes first; the other product is left alone",
        weights=[(0.5, 0.5), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), ((10, 13, 8, 12), (10, 11, 9.5, 11))],
        fills=[(1, A, 50, 10), (1, B, 50, 10), (2, A, -50, 9)],
        equity=[1_000, 1_000, 1_000],
        agreed={"stop_loss": 0.1, "take_profit": 0.2},
    ),
    Case(
        "a bar that opens beyond the stop fills at its open; shorts are the mirror image",
        weights=[(0.5, -0.5), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), ((7, 7, 6, 6), (10, 11.5, 10, 10))],
        fills=[(1, B, -50, 10), (1, A, 50, 10), (2, A, -50, 7), (2, B, 50, 11)],
        equity=[1_000, 1_000, 800],
        agreed={"stop_loss": 0.1},
    ),
    Case(
        "a trailing stop follows each product's own best price, the bar of its entry at the open included",
        weights=[(0.5, 0.5), NONE, NONE],
        bars=[(flat(10), flat(10)), ((10, 20, 10, 19), flat(10)), ((19, 19, 17, 17), (10, 10, 9.5, 10))],
        fills=[(1, A, 50, 10), (1, B, 50, 10), (2, A, -50, 18)],
        equity=[1_000, 1_450, 1_400],
        agreed={"trailing_stop": 0.1},
    ),
    Case(
        "a weight given again after a stop is a new order",
        weights=[(0.5, NAN), NONE, (0.5, NAN), NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (FALL, flat(5)), (flat(8), flat(5))],
        fills=[(1, A, 50, 10), (2, A, -50, 9), (3, A, 59.375, 8)],
        equity=[1_000, 1_000, 950, 950],
        agreed={"stop_loss": 0.1},
    ),
    Case(
        "a time stop counts a product's own bars: it passes over times at which it has none",
        weights=[(0.5, 0.5), NONE, NONE, NONE, NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (flat(10), NO_BAR), (flat(10), flat(5)), (flat(10), flat(5))],
        fills=[(1, A, 50, 10), (1, B, 100, 5), (3, A, -50, 10), (4, B, -100, 5)],
        equity=[1_000] * 5,
        agreed={"time_stop_bars": 2},
    ),
    Case(
        "on a bar without volume, or without a bar, no stop is looked at",
        weights=[(0.5, 0.5), NONE, NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), (FALL, NO_BAR), (flat(8), flat(8))],
        fills=[(1, A, 50, 10), (1, B, 50, 10), (3, A, -50, 8), (3, B, -50, 8)],
        equity=[1_000, 1_000, 900, 800],
        agreed={"stop_loss": 0.1},
        volume=[(1, 1), (1, 1), (0, 1), (1, 1)],
    ),
    Case(
        # 900 of A, -100 of B, 200 of cash. At 30 the short costs 300: 100 are borrowed rather than to go on with it.
        "a stop that covers a short is not held back by the cash",
        weights=[(0.9, -0.1), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), (flat(10), flat(30))],
        fills=[(1, B, -10, 10), (1, A, 90, 10), (2, B, 10, 30)],
        equity=[1_000, 1_000, 800],
        agreed={"stop_loss": 1.0},
    ),
    Case(
        # With both at 7 the equity is 400, less than 0.3 of 1,400. A is sold where 0.3 of everything is left, B being
        # at 7: -1,000 + 700 + 100 p = 0.3 * (700 + 100 p), p = 510 / 70. Then B alone is far from its own margin.
        "a margin call takes the lows of all products together, and closes one after the other until it is met",
        weights=[(1, 1), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), ((10, 10, 7, 7), (10, 10, 7, 7))],
        fills=[(1, A, 100, 10), (1, B, 100, 10), (2, A, -100, 510 / 70)],
        equity=[1_000, 1_000, 400 + 100 * (510 / 70 - 7)],
        agreed={"leverage": 2.0, "maintenance_margin": 0.3},
    ),
    Case(
        "the same fall of one product alone is no margin call",
        weights=[(1, 1), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), ((10, 10, 7, 7), flat(10))],
        fills=[(1, A, 100, 10), (1, B, 100, 10)],
        equity=[1_000, 1_000, 700],
        agreed={"leverage": 2.0, "maintenance_margin": 0.3},
    ),
    Case(
        "what is held and what is asked for together keep within the leverage",
        weights=[(1.0, NAN), (NAN, 1.0), NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (flat(10), flat(5))],
        fills=[(1, A, 100, 10), (2, B, 100, 5)],
        equity=[1_000] * 3,
        agreed={"leverage": 1.5},
    ),
    Case(
        # A's 500 / 10.1 = 49.5 units pay 1 per cent and bring the account over 400: B pays nothing.
        "fee tiers look at what the whole account traded",
        weights=[(0.5, 0.5), NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5))],
        fills=[(1, A, 500 / 10.1, 10), (1, B, 0.5 * (1_000 - 5 / 1.01) / 5, 5)],
        equity=[1_000, 1_000 - 5 / 1.01],
        agreed={"fee_bps": 100.0, "fee_tiers": [[400, 0]]},
    ),
    Case(
        "no more than a share of each product's own volume; the rest waits for its next bar",
        weights=[(0.5, 0.5), NONE, NONE],
        bars=[(flat(10), flat(5))] * 3,
        fills=[(1, A, 30, 10), (1, B, 100, 5), (2, A, 20, 10)],
        equity=[1_000] * 3,
        agreed={"max_volume_share": 0.1},
        volume=[(300, 1_000)] * 3,
    ),
    Case(
        "the rest of a stop waits too, and is closed at the next open",
        weights=[(0.5, NAN), NONE, NONE, NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (FALL, flat(5)), (flat(8), flat(5))],
        fills=[(1, A, 50, 10), (2, A, -30, 9), (3, A, -20, 8)],
        equity=[1_000, 1_000, 930, 930],
        agreed={"max_volume_share": 0.1, "stop_loss": 0.1},
        volume=[(500, 500), (500, 500), (300, 500), (500, 500)],
    ),
    Case(
        # 50 units of a volume of 5,000: 0.5 * sqrt(0.01) is 5 per cent.
        "impact moves each product's price by its own share of its volume; half the spread is paid besides",
        weights=[(0.5, NAN), NONE],
        bars=[(flat(10), flat(5))] * 2,
        fills=[(1, A, 500 / 10.5, 10.5)],
        equity=[1_000, 1_000 - 0.5 * 500 / 10.5],
        agreed={"impact": 0.5},
        volume=[(5_000, 1)] * 2,
    ),
    Case(
        "increments and least quantities are each product's own",
        weights=[(0.333, 0.333), (0.33, 0.01), NONE],
        bars=[(flat(10), flat(5))] * 3,
        fills=[(1, A, 33.3, 10), (1, B, 60, 5), (2, B, -50, 5)],
        equity=[1_000] * 3,
        agreed={"quantities": {"P0-USD": {"min_quantity": 1}, "P1-USD": {"quantity_increment": 10}}},
    ),
    Case(
        "sizes in quote units",
        weights=[(1, 0.5), NONE],
        bars=[(flat(10), flat(5))] * 2,
        fills=[(1, A, 30, 10), (1, B, 30, 5)],
        equity=[1_000] * 2,
        agreed={"kind": "notional", "size": 300.0},
    ),
    Case(
        # 600 and 900 are asked for of 1,000: two thirds of each.
        "sizes in units, made smaller together where they exceed the leverage",
        weights=[(0.5, 1), NONE],
        bars=[(flat(10), flat(7.5))] * 2,
        fills=[(1, A, 40, 10), (1, B, 80, 7.5)],
        equity=[1_000] * 2,
        agreed={"kind": "units", "size": 120.0},
    ),
    Case(
        # A day at 1 per cent: A's 500 pay 5, B's short gets 5 and pays 5 for what it borrowed.
        "funding and borrowing are paid by the day, product by product",
        weights=[(0.5, -0.5), NONE, NONE],
        bars=[(flat(10), flat(5))] * 3,
        fills=[(1, B, -100, 5), (1, A, 50, 10)],
        equity=[1_000, 1_000, 995],
        agreed={"funding_bps_per_day": 100.0, "borrow_bps_per_day": 100.0},
        hours=[0, 24, 48],
    ),
    Case(
        "cash below 0 is borrowed once, however many products it went into",
        weights=[(1, 1), NONE, NONE],
        bars=[(flat(10), flat(10))] * 3,
        fills=[(1, A, 100, 10), (1, B, 100, 10)],
        equity=[1_000, 1_000, 990],
        agreed={"leverage": 2.0, "borrow_bps_per_day": 100.0},
        hours=[0, 24, 48],
    ),
    Case(
        "before a delisting a product is sold at its last close where that is asked for, and its cash is free",
        weights=[(NAN, 1), NONE, (1, NAN), NONE],
        bars=[(flat(10), flat(5)), (flat(10), flat(5)), (flat(10), (5, 5, 4, 4)), (flat(10), NO_BAR)],
        fills=[(1, B, 200, 5), (2, B, -200, 4), (3, A, 80, 10), (3, A, -80, 10)],
        equity=[1_000, 1_000, 800, 800],
        agreed={"at_end": "liquidate"},
    ),
    Case(
        "on a locked bar nothing can be bought; the other product's order is carried out",
        weights=[(0.5, 0.5), NONE, NONE],
        bars=[(flat(10), flat(5)), (flat(12), flat(5)), ((12, 13, 12, 12), flat(5))],
        fills=[(1, B, 100, 5), (2, A, 500 / 12, 12)],
        equity=[1_000] * 3,
        agreed={"locked_bars": "waits"},
    ),
    Case(
        "ruin within a bar takes everything at its price of the moment: the stop's, and the other's open",
        weights=[(0.2, -0.8), NONE, NONE],
        bars=[(flat(10), flat(10)), (flat(10), flat(10)), ((9, 9, 1, 1), (40, 40, 40, 40))],
        fills=[(1, B, -80, 10), (1, A, 20, 10), (2, A, -20, 5), (2, B, 80, 40)],
        equity=[1_000, 1_000, 0],
        agreed={"stop_loss": 0.5},
    ),
]


def account(case: Case) -> tuple[kernel.Outcome, Any]:
    given = np.array(case.bars, dtype=np.float64)
    columns = {name: given[:, :, place] for place, name in enumerate(VALUES[:4])}
    volume = np.full(given.shape[:2], 1e9) if case.volume is None else np.array(case.volume, dtype=np.float64)
    hours = None if case.hours is None else np.array(case.hours)
    panel = panel_from({**columns, "volume": np.where(np.isnan(columns["close"]), NAN, volume)}, hours)
    return books_of(np.array(case.weights, dtype=np.float64), panel, FREE | case.agreed)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_rule(case: Case) -> None:
    outcome, trace = account(case)
    assert outcome.fault == kernel.OK
    fills = [
        (
            int(trace.fill_bar[i]),
            int(trace.fill_product[i]),
            trace.fill_side[i] * trace.fill_quantity[i],
            trace.fill_price[i],
        )
        for i in range(outcome.fills)
    ]
    assert fills == [pytest.approx(expected, rel=1e-12) for expected in case.fills]
    np.testing.assert_allclose(trace.equity, case.equity, rtol=1e-12, atol=1e-9)


def test_interest_is_part_of_what_a_round_trip_earned() -> None:
    case = Case(
        "",
        weights=[(0.5, -0.5), NONE, (0, 0), NONE],
        bars=[(flat(10), flat(5))] * 4,
        fills=[],
        equity=[],
        agreed={"funding_bps_per_day": 100.0},
        hours=[0, 24, 48, 72],
    )
    outcome, trace = account(case)
    got = dict(zip(METRICS, metrics_of(outcome.tallies, 1.0).tolist(), strict=True))
    # What the long pays the short gets: the account is even, one trade won 10 and one lost 10.
    assert trace.equity[-1] == pytest.approx(1_000)
    assert (got["trades"], got["win_rate"], got["profit_factor"]) == pytest.approx((2, 0.5, 1.0))
