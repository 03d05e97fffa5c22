"""The shared budget over a real ledger: many threads keep to one rate, and cancels get through."""

from __future__ import annotations

import asyncio
import time

import pytest

from cluster.ledger import Ledger
from cluster.venue_budget import SharedBudget
from cluster.venue_endpoint import RequestKind, VenueThrottled

pytestmark = pytest.mark.anyio

RATE = 20.0


def shared(ledger: Ledger, rate_per_s: float = RATE) -> SharedBudget:
    return SharedBudget(ledger, asyncio.get_running_loop(), rate_per_s, 0.25, public_rate_per_s=5.0)


async def taken(budget: SharedBudget, kind: RequestKind, tries: int, wait_s_max: float = 0.0) -> int:
    """How many of ``tries`` requests one thread gets."""

    def take() -> int:
        count = 0
        for _ in range(tries):
            try:
                budget.take(kind, wait_s_max)
            except VenueThrottled:
                continue
            count += 1
        return count

    return await asyncio.to_thread(take)


async def test_all_who_share_it_get_no_more_than_the_rate(ledger: Ledger) -> None:
    began_s = time.monotonic()
    budgets = [shared(ledger) for _ in range(4)]
    counts = await asyncio.gather(*(taken(each, "order", 15, wait_s_max=10.0) for each in budgets))
    ran_s = time.monotonic() - began_s
    assert sum(counts) == 60
    # Three quarters of a second's worth at once, the rest at the rate.
    assert ran_s >= (60 - 0.75 * RATE - 1) / RATE


async def test_cancels_have_their_share_however_many_orders_wait(ledger: Ledger) -> None:
    budgets = [shared(ledger) for _ in range(3)]
    orders = asyncio.gather(*(taken(each, "order", 8, wait_s_max=10.0) for each in budgets))
    await asyncio.sleep(0.3)
    began_s = time.monotonic()
    assert await taken(shared(ledger), "cancel", 4, wait_s_max=1.0) == 4
    assert time.monotonic() - began_s < 0.5
    assert sum(await orders) == 24


async def test_public_requests_are_counted_apart(ledger: Ledger) -> None:
    budget = shared(ledger, rate_per_s=10.0)
    assert 7 <= await taken(budget, "read", 20) <= 10
    assert 5 <= await taken(budget, "public", 20) <= 7


async def test_without_the_ledger_cancels_pass_and_orders_do_not(ledger: Ledger) -> None:
    budget = shared(ledger)
    await ledger._direct("FUNCTION", "FLUSH")
    with pytest.raises(VenueThrottled, match="no answer of the ledger"):
        await asyncio.to_thread(budget.take, "order", 1.0)
    await asyncio.to_thread(budget.take, "cancel", 1.0)
