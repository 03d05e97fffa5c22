"""Fault 21: a venue that is slow, throttles, fails, answers nonsense or of something else, and channels that lie.

For some seconds every request or message that fits the rule is struck while orders come in. Execution must live on (no
restart), nothing may be at the exchange that the ledger does not know, no order twice, none sent again in doubt without
asking for it by our id, and once the fault has ended both sides must be equal within 5 s.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final

import pytest

from strategies.model import TERMINAL, OrderStatus
from tests.execution_rig import ACCOUNT, HURRIED, Rig, buy
from tests.faults.conftest import Report
from tests.faults.venue_load import RESYNC_S_MAX, VenueLoad, outcome, sent_again_without_asking, venue_rig

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

ORDERS: Final = {"method": "POST", "path": "/orders"}
READS: Final = {"method": "GET"}
CANCELS: Final = {"method": "POST", "path": "/orders/batch_cancel"}
IN_DOUBT_S: Final = 6.0
"""``SETTLED_S`` of ``serve_apps.execution``."""
TARGET: Final = "no crash, no phantom order, asked for by id, equal again in 5 s"


def bad(name: str, *rules: dict[str, Any], quick: bool = False, may_halt: bool = False) -> Any:
    """A row: what strikes, and whether books may be halted for it. Outside the whole set only ``quick`` ones run."""
    marks = [pytest.mark.fault("21", f"venue: {name}", TARGET)] + ([] if quick else [pytest.mark.faults])
    return pytest.param(rules, may_halt, id=name, marks=marks)


HTTP: Final = [
    bad("429 to half of all requests", {"fault": "throttle_429", "share": 0.5}, quick=True),
    bad("429 to all, wait a second", {"fault": "throttle_429", "retry_after_s": 1}),
    bad("401 in place of throttling", {"fault": "throttle_401", "share": 0.5}),
    bad("503 to half of all requests", {"fault": "error_5xx", "share": 0.5}),
    bad("502 after it has acted", {"fault": "error_5xx", "status": 502, "act": True, "share": 0.5}, quick=True),
    bad("a page instead of JSON", {"fault": "html", "share": 0.5}),
    bad("a page after it has acted", {"fault": "html", "act": True, "match": ORDERS}),
    bad("half of an answer", {"fault": "garbage_json", "share": 0.5}, quick=True),
    bad("accepts and drops", {"fault": "accept_then_drop", "share": 0.5}),
    bad("drops before it acts", {"fault": "drop", "share": 0.5}),
    bad("cancels unanswered", {"fault": "accept_then_drop", "match": CANCELS}),
    bad("NaN in place of numbers", {"fault": "nan_numbers", "match": READS}, quick=True),
    bad("1e400 in place of numbers", {"fault": "nan_numbers", "value": "1e400", "match": READS}),
    bad("negative numbers", {"fault": "nan_numbers", "value": "-1", "match": READS}),
    # A fill that cannot be booked has happened all the same: nobody may trade on books without it.
    bad("another product", {"fault": "wrong_product", "match": READS}, quick=True, may_halt=True),
    bad(
        "a product nobody knows",
        {"fault": "wrong_product", "product_id": "DOGE-USD", "match": READS},
        may_halt=True,
    ),
    bad("late answers to all", {"fault": "latency", "ms": 200, "ms_max": 900}),
]
STREAMS: Final = [
    bad("messages of the channels twice", {"fault": "ws_duplicate", "share": 0.5}),
    bad("messages of the channels in another order", {"fault": "ws_reorder", "share": 0.3}),
    bad("messages of the channels lost", {"fault": "ws_gap", "share": 0.2}),
    bad("channels closed with 1000", {"fault": "ws_close", "code": 1000, "share": 0.05}),
    bad("channels closed with 1001", {"fault": "ws_close", "code": 1001, "share": 0.05}),
    bad("channels cut", {"fault": "ws_close", "code": "abort", "share": 0.05}),
    bad("channels silent", {"fault": "ws_silence", "s": 6, "share": 0.05}),
    bad("errors on the channels", {"fault": "ws_error", "share": 0.2}),
    bad("channels refused", {"fault": "ws_close", "code": 1011}, {"fault": "ws_refuse"}),
    bad("nonsense on the channels", {"fault": "garbage_json", "match": {"channel": ".*"}, "share": 0.3}),
    bad("NaN on the channels", {"fault": "nan_numbers", "match": {"channel": "user|ticker"}, "share": 0.5}),
    bad("another product on the channels", {"fault": "wrong_product", "match": {"channel": "user"}, "share": 0.5}),
]


@pytest.mark.seeds(1)
@pytest.mark.parametrize(("rules", "may_halt"), HTTP + STREAMS)
async def test_a_venue_that_misbehaves_makes_no_phantom_and_no_second_order(
    tmp_path: Path, report: Report, full: bool, seed: int, rules: tuple[dict[str, Any], ...], may_halt: bool
) -> None:
    async with venue_rig(tmp_path) as made:
        made.may_deny = may_halt
        load = VenueLoad(made, seed, 10.0)
        running = asyncio.create_task(load.run())
        await made.until(lambda: _some_ended(made), "an order has been through")
        made.exchange.faults(*rules)
        await asyncio.sleep(10.0 if full else 3.0)
        report(struck=made.exchange.struck())
        made.exchange.faults()
        load.stop()
        await running
        await _equal_again(made, report)
        halted = [alert for alert in await made.ledger.alerts(ACCOUNT) if alert["code"] == "RECON_BREAK"]
        report(halted=bool(halted))
        assert may_halt or not halted, halted
        assert halted or not made.denied, "orders were denied and nobody was told why"


@pytest.mark.fault("21", "the venue hangs for 30 s", TARGET)
@pytest.mark.seeds(2)
async def test_a_venue_that_hangs_holds_nothing_up_for_good(
    tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    hangs_s = 30.0 if full else 3.0
    async with venue_rig(tmp_path, constants={} if full else HURRIED) as made:
        load = VenueLoad(made, seed, 5.0)
        running = asyncio.create_task(load.run())
        await made.until(lambda: _some_ended(made), "an order has been through")
        made.exchange.faults({"fault": "hang", "s": hangs_s})
        await asyncio.sleep(hangs_s)
        report(struck=made.exchange.struck())
        made.exchange.faults()
        load.stop()
        await running
        # What was sent at the last moment is in doubt for so long before both sides can be equal.
        await _equal_again(made, report, IN_DOUBT_S if full else 0.0)


@pytest.mark.faults
@pytest.mark.fault("21", "the venue acts 30 s late, long after we gave up", "known and alarmed, no phantom order")
async def test_an_order_the_venue_takes_long_after_we_gave_up_is_no_phantom(tmp_path: Path, report: Report) -> None:
    # The worst a venue can do: a request that was given up is not listed for half a minute, and then it is an order.
    async with venue_rig(tmp_path, constants={}) as made:
        made.exchange.faults({"fault": "latency", "ms": 30_000, "before": True, "match": ORDERS, "count": 1})
        await made.reserve(buy("late", "ETH-USD", "0.5", "2500"))
        await made.until(lambda: _is_there(made, "late"), "the order has come to the venue", 60.0)
        await outcome(made, report, 30.0)
        assert sent_again_without_asking(made) == []


async def _equal_again(made: Rig, report: Report, more_s: float = 0.0) -> None:
    seen: dict[str, Any] = {}

    def reported(**figures: Any) -> None:
        seen.update(figures)
        report(**figures)

    await outcome(made, reported)
    assert sent_again_without_asking(made) == []
    assert seen["restarts"] == 0, f"execution began anew {seen['restarts']} times\n{made.log()}"
    assert seen["resynced_s"] <= RESYNC_S_MAX + more_s


async def _some_ended(made: Rig) -> bool:
    return any([await made.status(name) in TERMINAL - {OrderStatus.DENIED} for name in list(made.accepted)])


async def _is_there(made: Rig, name: str) -> bool:
    listed = await asyncio.to_thread(made.venue.orders)
    return any(order.client_order_id == name for order in listed)
