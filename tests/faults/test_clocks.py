"""Fault 17: a clock jumps by an hour, of execution, of the venue, of whoever asks; nothing that counts is fooled.

The wall clock of execution's process is shifted while it runs (the monotonic one is not, as no real jump touches it),
the exchange's by its control surface, a caller's by replacing what it reads. The ledger's server keeps its own.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from strategies.model import OrderStatus, TradingState
from tests.books import APPROVER, ASKER, Books
from tests.crash_points import set_clock
from tests.execution_rig import ACCOUNT, buy
from tests.faults.conftest import Report, durable_server
from tests.faults.ledger_load import connected, opened
from tests.faults.venue_load import RESYNC_S_MAX, VenueLoad, outcome, sent_again_without_asking, venue_rig

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

HOUR_S = 3600.0
ORDERS = {"method": "POST", "path": "/orders"}


@pytest.mark.fault("17", "the clock of execution, of the venue, of both jumps", "nothing twice, equal again in 5 s")
@pytest.mark.parametrize(
    ("execution_s", "venue_s"),
    [
        pytest.param(HOUR_S, 0.0, id="execution +1 h"),
        pytest.param(-HOUR_S, 0.0, id="execution -1 h", marks=pytest.mark.faults),
        pytest.param(0.0, HOUR_S, id="venue +1 h", marks=pytest.mark.faults),
        pytest.param(0.0, -HOUR_S, id="venue -1 h", marks=pytest.mark.faults),
        pytest.param(HOUR_S, HOUR_S, id="both +1 h", marks=pytest.mark.faults),
        pytest.param(-HOUR_S, -HOUR_S, id="both -1 h"),
        # So little that tokens still hold: what is stamped meanwhile lies in the future when the clock is right again.
        pytest.param(0.0, 110.0, id="venue +110 s", marks=pytest.mark.faults),
        pytest.param(0.0, -4.0, id="venue -4 s", marks=pytest.mark.faults),
    ],
)
async def test_a_clock_that_jumps_doubles_and_loses_nothing(
    tmp_path: Path, report: Report, full: bool, execution_s: float, venue_s: float
) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0.0)
    async with venue_rig(tmp_path, clock=clock) as made:
        # Clocks that differ stop all but reducing orders, if somebody looks meanwhile: that is wanted too.
        made.may_deny = True
        load = VenueLoad(made, 17, 10.0)
        running = asyncio.create_task(load.run())
        await asyncio.sleep(1.0)
        made.exchange.clock(venue_s)
        set_clock(clock, execution_s)
        await asyncio.sleep(8.0 if full else 2.0)
        orders = [await made.ledger.order(ACCOUNT, name) or {} for name in list(made.accepted)]
        reached = sum(bool(fields.get("venue_order_id")) for fields in orders)
        report(reached_the_venue_meanwhile=reached, denied=len(made.denied))
        made.exchange.clock(0.0)
        set_clock(clock, 0.0)
        load.stop()
        await running
        seen: dict[str, Any] = {}

        def reported(**figures: Any) -> None:
            seen.update(figures)
            report(**figures)

        await outcome(made, reported)
        assert sent_again_without_asking(made) == []
        assert (seen["restarts"], seen["resynced_s"] <= RESYNC_S_MAX) == (0, True)


@pytest.mark.faults
@pytest.mark.fault("17", "an order in doubt while execution's clock is an hour wrong", "what comes late is found")
@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
async def test_how_long_an_order_is_in_doubt_does_not_depend_on_a_wrong_clock(
    tmp_path: Path, report: Report, offset_s: float
) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0.0)
    async with venue_rig(tmp_path, constants={}, clock=clock) as made:
        # Both are wrong by the same, so that the venue still believes execution's tokens; the ledger is not.
        made.exchange.clock(offset_s)
        set_clock(clock, offset_s)
        slow = {"fault": "latency", "ms": 4_000, "before": True, "match": ORDERS, "count": 1}
        made.exchange.faults(slow, {"fault": "drop", "match": ORDERS, "skip": 1, "count": 1})
        # The venue takes the first three seconds after it was given up, the second never. Both are reserved at once:
        # as soon as execution is in doubt it looks at the clocks too, and then lets out only orders that reduce.
        await made.reserve(buy("slow", "ETH-USD", "0.5", "2500"))
        await made.until(lambda: _is(made, "slow", "SENT"), "slow is sent")
        await made.reserve(buy("dropped", "ETH-USD", "0.5", "2500"))
        await made.until(lambda: _is(made, "slow", "UNKNOWN"), "slow is in doubt")
        await made.until(lambda: _is(made, "slow", "OPEN"), "the order that came late is found", 30.0)
        report(dropped_settled_s=await made.until(lambda: _is(made, "dropped", "REJECTED"), "dropped is settled", 30.0))
        made.exchange.clock(0.0)
        set_clock(clock, 0.0)
        await outcome(made, report)


@pytest.mark.fault("17", "the clock of whoever asks the ledger jumps", "rates, times to live and repeats as before")
@pytest.mark.parametrize("offset_s", [HOUR_S, -HOUR_S])
async def test_rates_and_times_to_live_are_the_servers(
    tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch, offset_s: float
) -> None:
    with durable_server("valkey", tmp_path) as server:
        async with connected(server.settings) as ledger:
            books = await opened(ledger, limits={"account|order_interval_us": "3600000000", "account|order_burst": "2"})
            await books.accept("first")
            await books.halt("account", TradingState.HALTED)
            proposal = await ledger.propose_resume(ACCOUNT, "account", "test", ASKER, "the test goes on", ttl_s=60)
            true_s, true_ns = time.time, time.time_ns
            monkeypatch.setattr(time, "time", lambda: true_s() + offset_s)
            monkeypatch.setattr(time, "time_ns", lambda: true_ns() + round(offset_s * 1e9))
            again = await ledger.propose_resume(ACCOUNT, "account", "test", ASKER, "the test goes on", ttl_s=60)
            assert abs(again.expires_ms - proposal.expires_ms) < 30_000
            approved = await ledger.approve(ACCOUNT, proposal.id, proposal.digest, "second", APPROVER)
            assert approved.outcome == "APPLIED"
            codes = [await _codes(books, f"later-{number}") for number in range(3)]
            repeated = await books.reserve(books.orders["first"])
    # One more is within the burst, an hour's worth of more is not; the first one is as it was.
    assert [code == {"RATE_LIMIT"} for code in codes] == [False, True, True], codes
    assert (repeated.kind, repeated.accepted) == ("REPEATED", True)
    report(refused_by_rate=2, repeats_recognised=1)


async def _codes(books: Books, name: str) -> set[str]:
    return {code for code, _ in await books.codes(name)}


async def _is(made: Any, name: str, status: str) -> bool:
    found = await made.status(name)
    assert found != OrderStatus.REJECTED or status == OrderStatus.REJECTED, f"{name} was given up"
    return bool(found == status)
