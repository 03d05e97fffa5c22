"""The simulation sees bugs: each of these, put in on purpose, is found within a few seeds and named for what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final
from unittest.mock import patch

import pytest

from cluster.ledger import library_source
from cluster.venue import VenueRejected, VenueUnknown
from tests.simulation.plan import calm_plan, plan_of
from tests.simulation.sim_venue import SimVenue, VenueFaults
from tests.simulation.world import run_plan

SEEDS_MAX: Final = 60
_BOOKED: Final = "  if redis.call('SISMEMBER', base .. ':fills:'"


def library(before: str, after: str) -> AbstractContextManager[Any]:
    """The ledger's function library with one place changed."""
    source = library_source()
    assert source.count(before) == 1, f"{before!r} is not one place of the library any more"
    return patch("tests.simulation.world.library_source", lambda: source.replace(before, after))


class Hasty(SimVenue):
    """A client that takes no answer for a no."""

    def create_order(self, order: Any) -> str:
        try:
            return super().create_order(order)
        except VenueUnknown as error:
            raise VenueRejected("UNKNOWN", str(error)) from None


BUGS: Final[dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]]] = {
    "no answer is taken for a refusal": (
        lambda: patch("tests.simulation.world.SimVenue", Hasty),
        r"is REJECTED in the ledger|still holds|booked",
    ),
    "what was sent is given up before it can have arrived": (
        lambda: patch("serve_apps.execution.SETTLED_S", 0.0),
        r"was placed 2 times|is REJECTED in the ledger",
    ),
    "a fill counts as often as it is told": (
        lambda: library("if redis.call('SISMEMBER', base .. ':fills:' .. id, trade) == 1 then", "if false then"),
        r"lots are booked|is booked already",
    ),
    "a halt does not stop orders": (
        lambda: library("elseif level >= 2 then", "elseif level >= 9 then"),
        r"was accepted while .* was halted",
    ),
    "an ended order keeps its place among the open ones": (
        lambda: library("  redis.call('ZREM', base .. ':open', id)\n", ""),
        r"do not add up|not settled",
    ),
    "orders are counted against another limit": (
        lambda: library("if orders > soft.max_open_orders then", "if false then"),
        r"orders are open, the limit is",
    ),
    "an order in doubt is never settled": (
        lambda: patch("serve_apps.settling.Settler._settle_missing", _nothing),
        r"not settled",
    ),
    "fills of orders that have ended are not booked": (
        lambda: library(_BOOKED, f"  if TERMINAL[order.status] then return {{ 'DUPLICATE', '' }} end\n{_BOOKED}"),
        r"booked|executed",
    ),
}  # fmt: skip

LATE: Final = {
    "what was sent is given up before it can have arrived": VenueFaults(late=0.4, late_s=5.4),
    "fills of orders that have ended are not booked": VenueFaults(late=0.4, late_s=11.0),
}
"""Where a bug shows only when requests are late, and everything else would hide it."""


async def _nothing(*_: Any) -> None:
    return None


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    plant, named = BUGS[bug]
    with plant():
        for seed in range(SEEDS_MAX):
            plan = calm_plan(seed, venue=late, orders=40) if (late := LATE.get(bug)) else plan_of(seed)
            violations = run_plan(plan).violations
            if any(re.search(named, what) for what in violations):
                return
    pytest.fail(f"{SEEDS_MAX} seeds and no sign of it: {bug}")
