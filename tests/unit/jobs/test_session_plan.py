"""From a target to an order: a table of positions, targets and what is sent."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from cluster.sessions import Checkpoint, SessionOrder
from jobs.session_plan import plan_bar, wanted_position, wanted_target, way_to
from tests.api_desk import BTC
from tests.session_parts import spec_of

# A lot of a thousandth, at least a hundredth and 100 in money, at most 5.
PRODUCT = replace(
    BTC,
    base_increment=Decimal("0.001"),
    base_min_size=Decimal("0.01"),
    base_max_size=Decimal(5),
    quote_min_size=Decimal(100),
)
ORDER = SessionOrder(client_order_id="s1.1", bar_ts_ns=1, side="BUY", quantity="1", valid_until_ns=2)


def checkpoint(**changed: Any) -> Checkpoint:
    base = Checkpoint(
        bars=1,
        warm_up_bars=0,
        first_ts_ns=0,
        last_ts_ns=0,
        strategy_state=[],
        target=None,
        standing=0.0,
        wanted="0",
        cash="10000",
        position="0",
        equity="10000",
        journal_bytes=0,
    )
    return base.model_copy(update=changed)


@pytest.mark.parametrize(
    ("after", "target", "fresh", "action", "why", "side", "quantity", "acts"),
    [
        # at 1,000 with 10,000 of equity and no costs a full target is 10 units, but one order takes at most 5
        ({}, 0.3, True, "ORDER", "", "BUY", "3.000", True),
        ({}, 1.0, True, "ORDER", "", "BUY", "5", True),
        ({}, 0.0, True, "NONE", "", None, None, False),
        ({}, math.nan, True, "NONE", "", None, None, False),
        ({}, -1.0, True, "NONE", "", None, None, False),
        ({}, 0.3, False, "SKIPPED", "TOO_LATE", None, None, False),
        ({"order": ORDER}, 0.3, True, "SKIPPED", "ORDER_OPEN", None, None, False),
        ({"standing": 0.3, "wanted": "3", "position": "3"}, 0.3, True, "NONE", "", None, None, False),
        ({"standing": 0.3, "wanted": "3", "position": "3"}, 0.1, True, "ORDER", "", "SELL", "2.000", True),
        ({"standing": 0.3, "wanted": "3", "position": "3"}, 0.0, True, "ORDER", "", "SELL", "3", True),
        ({"standing": 0.3, "wanted": "3", "position": "3"}, math.nan, True, "ORDER", "", "SELL", "3", True),
        ({"standing": 0.3, "wanted": "3", "position": "1"}, 0.3, True, "NONE", "", None, None, False),
        ({"position": "1"}, 0.0, True, "ORDER", "LEFT_OVER", "SELL", "1", False),
        ({"position": "1"}, 0.0, False, "NONE", "TOO_LATE", None, None, False),
        ({"position": "1", "order": ORDER}, 0.0, True, "NONE", "ORDER_OPEN", None, None, False),
        ({"position": "0.009"}, 0.0, True, "NONE", "LEFT_OVER BELOW_MIN", None, None, False),
        ({}, 0.005, True, "NONE", "BELOW_MIN", None, None, True),
        ({}, 0.0101, True, "ORDER", "", "BUY", "0.101", True),
    ],
)  # fmt: skip
def test_only_a_change_of_target_makes_an_order_and_a_missed_exit_is_made_up_for(
    after: dict[str, Any],
    target: float,
    fresh: bool,
    action: str,
    why: str,
    side: str | None,
    quantity: str | None,
    acts: bool,
) -> None:
    spec = spec_of(costs={"fee_bps": 0, "slippage_bps": 0})
    plan = plan_bar(checkpoint(**after), target, 1_000.0, Decimal(10_000), PRODUCT, spec, fresh=fresh)
    assert (plan.action, plan.why, plan.acts) == (action, why, acts)
    if action == "ORDER":
        assert (plan.side, plan.quantity) == (side, Decimal(quantity or 0))
        assert plan.ask_first is (why == "LEFT_OVER")


@pytest.mark.parametrize(
    ("target", "equity", "close", "costs", "units"),
    [
        (1.0, "10000", 1_000.0, (0.0, 0.0), "10"),
        (1.0, "10000", 1_000.0, (60.0, 5.0), "9.935"),
        (0.5, "10000", 3.0, (0.0, 0.0), "1666.666"),
        (-0.5, "10000", 1_000.0, (0.0, 0.0), "-5"),
        (0.0, "10000", 1_000.0, (0.0, 0.0), "0"),
        (1.0, "0", 1_000.0, (0.0, 0.0), "0"),
        (1.0, "-5", 1_000.0, (0.0, 0.0), "0"),
        (1.0, "0.9", 1_000.0, (0.0, 0.0), "0"),
        (1e-9, "10000", 1e-7, (0.0, 0.0), "100"),
    ],
)
def test_the_wanted_position_is_whole_lots_that_the_equity_pays_for_with_the_costs(
    target: float, equity: str, close: float, costs: tuple[float, float], units: str
) -> None:
    spec = spec_of(costs={"fee_bps": costs[0], "slippage_bps": costs[1]})
    wanted = wanted_position(target, Decimal(equity), close, PRODUCT, spec)
    assert wanted == Decimal(units)
    assert wanted % PRODUCT.base_increment == 0


def test_without_a_price_only_the_size_decides_what_is_too_small() -> None:
    assert way_to(Decimal(0), Decimal("0.05"), PRODUCT, 1.0).action == "NONE"
    assert way_to(Decimal(0), Decimal("0.05"), PRODUCT, None).action == "ORDER"


@pytest.mark.parametrize(("long_only", "target", "wanted"), [(True, -1.0, 0.0), (False, -1.0, -1.0), (True, 0.4, 0.4)])
def test_short_targets_are_for_risk_to_decide_only_where_that_was_asked_for(
    long_only: bool, target: float, wanted: float
) -> None:
    assert wanted_target(target, spec_of(long_only=long_only)) == wanted
