"""Execution between a real ledger and the exchange simulator over TLS: orders, books, and what differs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.anchors import Anchors
from cluster.ledger import LedgerUnavailable, Verdict
from cluster.reconcile import adjustment, compare
from cluster.venue_budget import shared_venue
from cluster.venue_stream import VenueStream
from conf.limits import load_limits
from conf.settings import RedisSettings
from serve_apps import execution
from serve_apps.execution import CHANNELS, Execution
from strategies.model import NS_PER_S, Order, OrderStatus, OrderType, Side, TimeInForce, TradingState
from tests.execution_rig import ACCOUNT, Rig, buy, rig
from tests.servers import redis_secrets

pytestmark = pytest.mark.anyio


@contextlib.asynccontextmanager
async def executing(made: Rig, monkeypatch: pytest.MonkeyPatch, listen: bool = True) -> AsyncIterator[Execution]:
    """Execution in this process, serving."""
    monkeypatch.setattr(execution, "SETTLED_S", 1.0)
    monkeypatch.setattr(execution, "RECONCILE_AGAIN_S", 0.2)
    venue = shared_venue(made.settings, redis_secrets(), made.ledger)

    def stream(product_ids: list[str]) -> VenueStream:
        return VenueStream(venue, CHANNELS, product_ids)

    limits, anchors = load_limits(made.settings.limits_file), Anchors.of(made.settings, redis_secrets())
    runs = Execution(made.ledger, venue, limits, made.settings.execution, anchors, stream=stream if listen else None)
    task = asyncio.create_task(runs.run())
    try:
        await until(made, task, made._admitted, "execution serves")
        if listen:
            await until(made, task, lambda: heard(runs), "the channels are heard")
        yield runs
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        venue.close()


async def heard(runs: Execution) -> bool:
    return runs._live.heard


async def until(
    made: Rig, task: asyncio.Task[None], holds: Callable[[], Any], what: str, timeout_s: float = 20
) -> None:
    begin_s = time.monotonic()
    while not await holds():
        if task.done():
            task.result()
        assert time.monotonic() - begin_s < timeout_s, f"not within {timeout_s} s: {what}: {await made.disagreements()}"
        await asyncio.sleep(0.02)


@pytest.fixture
async def desk(ledger_server: RedisSettings, tmp_path: Path) -> AsyncIterator[Rig]:
    """A ledger and an exchange."""
    async with rig(ledger_server, tmp_path) as made:
        yield made


async def stands(made: Rig, name: str, *statuses: OrderStatus) -> None:
    async def holds() -> bool:
        return await made.status(name) in set(statuses)

    begin_s = time.monotonic()
    while not await holds():
        assert time.monotonic() - begin_s < 15, (name, await made.status(name), statuses)
        await asyncio.sleep(0.02)


async def account_state(made: Rig) -> tuple[str, str]:
    state = (await made.ledger.snapshot(ACCOUNT)).state
    return state["account"], state.get("cause|account", "")


async def amend(made: Rig, order: Order, quantity: str, limit_price: str) -> Verdict:
    wanted = replace(order, quantity=Decimal(quantity), limit_price=Decimal(limit_price))
    verdict = await made.ledger.amend(wanted, made.products[order.product_id], "test")
    assert verdict is not None
    return verdict


async def reserved(made: Rig) -> int:
    return int((await made.ledger.snapshot(ACCOUNT)).book.get("reserved", "0"))


async def is_stuck(runs: Execution, wanted: bool) -> None:
    async with asyncio.timeout(20):
        while runs.stuck is not wanted:
            await asyncio.sleep(0.02)


async def test_a_run_that_neither_works_nor_ends_is_called_stuck(desk: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    # One part once outlived the others' failure: the replica looked healthy and nothing was executed.
    let_go, fails = asyncio.Event(), asyncio.Event()

    async def will_not_end(self: Execution) -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    async def watch(self: Execution) -> None:
        if fails.is_set():
            raise LedgerUnavailable("gone")

    monkeypatch.setattr(Execution, "_follow_orders", will_not_end)
    monkeypatch.setattr(Execution, "_watch", watch)
    async with executing(desk, monkeypatch, listen=False) as runs:
        assert not runs.stuck
        # As fast as heartbeats come here; a run that works is not called stuck by it in between.
        monkeypatch.setattr(execution, "STUCK_S", 0.0)
        fails.set()
        await is_stuck(runs, True)
        let_go.set()
        await is_stuck(runs, False)


async def test_orders_of_every_kind_reach_the_venue_and_what_becomes_of_them_comes_back(
    desk: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_ns = (time.time_ns() // NS_PER_S + 4) * NS_PER_S
    orders = {
        "market": buy("market", "BTC-USD", "0.01"),
        "rests": buy("rests", "BTC-USD", "0.01", "59000.00"),
        "dies": buy("dies", "BTC-USD", "0.01", "59000.00", time_in_force=TimeInForce.IOC),
        "ends": buy("ends", "BTC-USD", "0.01", "59000.00", time_in_force=TimeInForce.GTD, end_ns=end_ns),
        "stop": buy("stop", "BTC-USD", "0.01", "60700.00", type=OrderType.STOP_LIMIT, stop_price=Decimal("60600.00")),
        "bracket": replace(
            buy("bracket", "BTC-USD", "0.01", "61000.00", type=OrderType.BRACKET, stop_price=Decimal("59500.00")),
            side=Side.SELL,
        ),
    }
    async with executing(desk, monkeypatch):
        for order in orders.values():
            await desk.reserve(order)
        await stands(desk, "market", OrderStatus.FILLED)
        await stands(desk, "dies", OrderStatus.CANCELLED)
        for name in ("rests", "stop", "bracket"):
            await stands(desk, name, OrderStatus.OPEN)
        await asyncio.to_thread(desk.exchange.pin, "BTC-USD", "60650")
        await stands(desk, "stop", OrderStatus.FILLED)
        await asyncio.to_thread(desk.exchange.pin, "BTC-USD", "61100")
        await stands(desk, "bracket", OrderStatus.FILLED)
        await stands(desk, "ends", OrderStatus.EXPIRED)
        await desk.ledger.request_cancel(ACCOUNT, "rests", "test")
        await stands(desk, "rests", OrderStatus.CANCELLED)
        await desk.agree()
        assert await reserved(desk) == 0


async def test_an_amended_order_holds_the_larger_amount_until_the_venue_has_answered(
    desk: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = buy("o-1", "BTC-USD", "0.01", "50000.00")
    async with executing(desk, monkeypatch):
        await desk.reserve(order)
        await stands(desk, "o-1", OrderStatus.OPEN)
        before = await reserved(desk)
        desk.exchange.faults({"match": {"path": "/orders/edit"}, "fault": "latency", "ms": 1500})
        assert (await amend(desk, order, "0.03", "50000.00")).kind == "ACCEPTED"
        assert await reserved(desk) == 3 * before
        assert (await amend(desk, order, "0.03", "50000.00")).kind == "REPEATED"
        pending = await amend(desk, order, "0.02", "50000.00")
        assert [denial["code"] for denial in pending.answer["denials"]] == ["AMEND_PENDING"]
        await desk.until(lambda: _amended(desk, "o-1"), "the venue has amended")
        assert await reserved(desk) == 3 * before
        (there,) = await asyncio.to_thread(desk.venue.open_orders)
        assert (there.quantity, there.client_order_id) == (Decimal("0.03"), "o-1")
        # Smaller: the larger old amount is held until then.
        desk.exchange.faults({"match": {"path": "/orders/edit"}, "fault": "latency", "ms": 1500})
        assert (await amend(desk, order, "0.01", "49000.00")).kind == "ACCEPTED"
        assert await reserved(desk) == 3 * before
        await desk.until(lambda: _amended(desk, "o-1"), "the venue has amended")
        assert await reserved(desk) < before
        # Refused by the venue: as it was.
        desk.exchange.faults()
        await asyncio.to_thread(desk.venue.cancel, [there.venue_order_id])
        await stands(desk, "o-1", OrderStatus.CANCELLED)
        assert await reserved(desk) == 0
        await desk.agree()


async def _amended(made: Rig, name: str) -> bool:
    fields = await made.ledger.order(ACCOUNT, name)
    return fields is not None and "amend" not in fields


@pytest.mark.parametrize("listen", [True, False])
async def test_an_order_the_ledger_does_not_know_is_taken_over_with_its_fills(
    desk: Rig, monkeypatch: pytest.MonkeyPatch, listen: bool
) -> None:
    async with executing(desk, monkeypatch, listen):
        body = {"product_id": "BTC-USD", "side": "BUY", "client_order_id": "stranger"}
        resting = {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "59000.00"}}
        desk.exchange.ask("POST", "/sim/order", body | {"order_configuration": resting})
        await stands(desk, "stranger", OrderStatus.OPEN)
        assert await reserved(desk) > 0
        alerts = await desk.ledger.alerts(ACCOUNT)
        assert "ADOPTED" in [alert["code"] for alert in alerts]
        # One that was over before anybody looked: its fill brings it.
        taken = {"market_market_ioc": {"base_size": "0.02"}}
        desk.exchange.ask("POST", "/sim/order", body | {"client_order_id": "gone", "order_configuration": taken})
        await stands(desk, "gone", OrderStatus.FILLED)
        await asyncio.to_thread(desk.exchange.pin, "BTC-USD", "58000")
        await stands(desk, "stranger", OrderStatus.FILLED)
        desk.accepted += ["stranger", "gone"]
        await desk.agree()
        assert await account_state(desk) == ("ACTIVE", "")


async def test_what_came_without_an_order_halts_the_account_until_two_people_have_booked_it(
    desk: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with executing(desk, monkeypatch) as runs:
        assert (await runs.reconcile()).breaks == []
        desk.exchange.ask("POST", "/sim/deposit", {"currency": "USD", "amount": "-1000"})
        desk.exchange.ask("POST", "/sim/deposit", {"currency": "BTC", "amount": "0.5"})
        found = await runs.reconcile()
        assert len(found.breaks) == 2
        assert "cash USD" in found.breaks[0]
        assert "differ by -1000" in found.breaks[0]
        assert await account_state(desk) == ("HALTED", "RECON_BREAK")
        verdict = await desk.ledger.reserve(buy("late", "BTC-USD", "0.01"), desk.products["BTC-USD"], "test")
        assert [denial["code"] for denial in verdict.answer["denials"]] == ["RECON_BREAK"]
        snapshot = await desk.ledger.snapshot(ACCOUNT)
        cash, positions = adjustment(found, snapshot, desk.products)
        assert (cash, positions["BTC-USD"][0]) == (-1_000_000_000, 50_000_000)
        made = await desk.ledger.propose_adjust(ACCOUNT, cash, positions, "k1", "ada", "a withdrawal")
        same = await desk.ledger.approve(ACCOUNT, made.id, made.digest, "k1", "ada")
        assert same.outcome == "SAME_PERSON"
        assert (await desk.ledger.approve(ACCOUNT, made.id, made.digest, "k2", "bob")).outcome == "APPLIED"
        resume = await desk.ledger.propose_resume(ACCOUNT, "account", "k1", "ada", "it is explained")
        assert (await desk.ledger.approve(ACCOUNT, resume.id, resume.digest, "k2", "bob")).outcome == "APPLIED"
        assert (await runs.reconcile()).breaks == []
        assert await account_state(desk) == ("ACTIVE", "")
        assert await desk.ledger.prove(ACCOUNT) == 0


async def test_cancel_all_goes_on_until_the_venues_own_list_is_empty_and_that_is_proved(
    desk: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with executing(desk, monkeypatch):
        for number in range(5):
            await desk.reserve(buy(f"o-{number}", "BTC-USD", "0.01", f"5900{number}.00"))
        resting = {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "58000.00"}}
        body = {"product_id": "BTC-USD", "side": "BUY", "order_configuration": resting}
        desk.exchange.ask("POST", "/sim/order", body | {"client_order_id": "stranger"})
        desk.exchange.faults(
            {"match": {"path": "/orders/batch_cancel"}, "fault": "error_5xx", "status": 503, "count": 3}
        )
        await desk.ledger.tighten(ACCOUNT, "account", TradingState.CANCEL_ALL, "test", "enough")
        await desk.until(lambda: _proved(desk), "the venue's list is empty and that is noted")
        assert await asyncio.to_thread(desk.venue.open_orders) == []
        for number in range(5):
            await stands(desk, f"o-{number}", OrderStatus.CANCELLED)
        # It lived too short to be taken over, perhaps; then it is nowhere.
        assert await desk.status("stranger") in {"", OrderStatus.CANCELLED}
        assert await reserved(desk) == 0


async def _proved(made: Rig) -> bool:
    entries = await made.ledger.recent_audit(ACCOUNT, at_most=50)
    return any(fields["kind"] == "EMPTIED" for _, fields in entries)


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "ws_gap"},
        {"fault": "ws_duplicate"},
        {"fault": "ws_reorder"},
        {"fault": "ws_close", "code": 1000},
        {"fault": "ws_close", "code": 1001},
        {"fault": "ws_close", "code": 1011},
        {"fault": "ws_silence", "s": 20},
        {"fault": "ws_error"},
    ],
    ids=lambda fault: "-".join(str(part) for part in fault.values()),
)
async def test_whatever_the_channels_do_every_fill_is_booked(
    desk: Rig, monkeypatch: pytest.MonkeyPatch, fault: dict[str, Any]
) -> None:
    async with executing(desk, monkeypatch):
        desk.exchange.faults(fault | {"share": 1.0, "count": 2})
        for number in range(6):
            await desk.reserve(buy(f"o-{number}", "BTC-USD", "0.01"))
        for number in range(6):
            await stands(desk, f"o-{number}", OrderStatus.FILLED)
        await desk.agree()


async def test_the_comparison_says_what_differs_and_what_explains_it(
    desk: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with executing(desk, monkeypatch):
        await desk.reserve(buy("o-1", "BTC-USD", "0.01", "59000.00"))
        await stands(desk, "o-1", OrderStatus.OPEN)
    # Nobody executes now.
    (there,) = await asyncio.to_thread(desk.venue.open_orders)
    desk.exchange.ask("POST", "/sim/fill", {"order_id": there.venue_order_id, "quantity": "0.004"})
    found = await compare(desk.ledger, desk.venue, ACCOUNT, asyncio.to_thread)
    assert found.breaks == []
    assert any("fills that are not listed yet" in text for text in found.explained)
    await asyncio.to_thread(desk.venue.cancel, [there.venue_order_id])
    found = await compare(desk.ledger, desk.venue, ACCOUNT, asyncio.to_thread)
    assert any("ended at the venue, not here" in text for text in found.breaks)
