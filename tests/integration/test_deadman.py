"""The dead man with a real ledger and a real exchange: what it has cancelled is gone from the venue's own list."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.deadman import PART, Phase, trader_part
from cluster.ledger import Ledger
from cluster.venue import Venue
from conf.settings import ExecutionSettings, Settings, write_secrets
from serve_apps.deadman import SETTLED_S, DeadMan, DeadManService, ReservedShare
from strategies.model import Order, OrderType, Side, TimeInForce, TradingState
from tests.api_desk import ApiDesk, open_desk
from tests.servers import PASSWORD, Server, binary, redis_secrets
from tests.simulator import Simulator, running_simulator

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIMIT_S = 15.0
SETTINGS = ExecutionSettings(deadman_s=LIMIT_S)


class TestClock:
    """Time that passes when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def time_s(self) -> float:
        return self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--seed", "3") as running:
        yield running


@pytest.fixture
def venue(simulator: Simulator) -> Iterator[Venue]:
    """The test's own look at the venue, whose open orders are gone afterwards."""
    venue = simulator.venue()
    yield venue
    if rest := [order.venue_order_id for order in venue.open_orders()]:
        venue.cancel(rest)
    venue.close()


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


def deadman_of(
    ledger: Ledger, simulator: Simulator, clock: TestClock, timeout_s: float = 5.0, note: Path | None = None
) -> DeadMan:
    endpoint = replace(simulator.endpoint, timeout_s=timeout_s)
    return DeadMan(ledger, lambda: Venue(endpoint, ReservedShare(1_000, 1)), SETTINGS, clock=clock, note=note)


@pytest.fixture
async def watching(desk: ApiDesk, simulator: Simulator, clock: TestClock) -> AsyncIterator[DeadMan]:
    """A dead man that has seen execution beat."""
    await desk.open_account()
    deadman = deadman_of(desk.ledger, simulator, clock)
    await see_execution(desk.ledger, deadman, clock)
    yield deadman
    deadman.close()


async def see_execution(ledger: Ledger, deadman: DeadMan, clock: TestClock) -> None:
    """It beats before each of two looks; the ledger's own clock must have moved on in between."""
    for _ in range(2):
        await ledger.beat("execution", {"account": "main"})
        await deadman.step()
        clock.now_s += 1
        await asyncio.sleep(0.005)
    assert deadman.phase is Phase.WATCHING


def rest(venue: Venue, count: int, prefix: str = "rest") -> None:
    """Orders far below the market."""
    for number in range(count):
        price = Decimal("1000.00") + number
        kind, in_force = OrderType.LIMIT, TimeInForce.GTC
        quantity = Decimal("0.001")
        order = Order(
            f"{prefix}-{os.urandom(4).hex()}", "main", "manual", "BTC-USD", Side.BUY, kind, in_force, quantity
        )
        venue.create_order(replace(order, limit_price=price))
    assert len(venue.open_orders()) >= count


async def until(deadman: DeadMan, clock: TestClock, phase: Phase, step_s: float = 1.0) -> None:
    """Steps until it stands there, at most sixty."""
    for _ in range(60):
        if deadman.phase is phase:
            return
        clock.now_s += step_s
        await deadman.step()
    raise AssertionError(f"still {deadman.phase}")


async def state(ledger: Ledger) -> str:
    return (await ledger.snapshot("main")).state["account"]


async def resume(ledger: Ledger) -> None:
    """Two people let the account trade again."""
    proposal = await ledger.propose_resume("main", "account", "one", "one", "found and mended")
    approval = await ledger.approve("main", proposal.id, proposal.digest, "two", "two")
    assert approval.outcome == "APPLIED", approval


async def audited(ledger: Ledger) -> list[dict[str, str]]:
    return [fields for _, fields in await ledger.audit_entries("main") if fields["kind"] == "STATE"]


async def test_a_silent_execution_has_its_orders_cancelled_and_its_account_halted(
    desk: ApiDesk, watching: DeadMan, venue: Venue, clock: TestClock
) -> None:
    rest(venue, 3)
    clock.now_s += LIMIT_S - 2
    await watching.step()
    assert (watching.phase, len(venue.open_orders())) == (Phase.WATCHING, 3)
    clock.now_s += 3
    await watching.step()
    assert venue.open_orders() == []
    assert await state(desk.ledger) == TradingState.CANCEL_ALL
    # Believed only once nothing can be on its way any more.
    assert watching.phase is Phase.CANCELLING
    await until(watching, clock, Phase.TRIPPED)
    (entry,) = await audited(desk.ledger)
    assert entry["by"] == "deadman"
    assert "dead man: execution has been silent for" in entry["data"]
    beat = (await desk.ledger.heartbeats())[PART]
    assert (beat["phase"], beat["part"], beat["trips"]) == ("TRIPPED", "execution", 1)


async def test_more_orders_than_one_call_takes_and_those_that_arrive_meanwhile_are_cancelled(
    watching: DeadMan, venue: Venue, clock: TestClock
) -> None:
    rest(venue, 130)
    clock.now_s += LIMIT_S + 1
    await watching.step()
    assert venue.open_orders() == []
    rest(venue, 2, "late")
    clock.now_s += SETTLED_S + 1
    await watching.step()
    # The late ones were on the list of this round, so it was not the last.
    assert (watching.phase, venue.open_orders()) == (Phase.CANCELLING, [])
    await watching.step()
    assert watching.phase is Phase.TRIPPED


async def test_nothing_is_cancelled_before_execution_has_beaten_once(
    desk: ApiDesk, simulator: Simulator, venue: Venue, clock: TestClock
) -> None:
    await desk.open_account()
    await desk.ledger.beat("execution", {"account": "main"})
    rest(venue, 1)
    deadman = deadman_of(desk.ledger, simulator, clock)
    for _ in range(5):
        clock.now_s += 600
        await deadman.step()
    assert (deadman.phase, len(venue.open_orders())) == (Phase.WAITING, 1)
    assert await state(desk.ledger) == TradingState.ACTIVE


async def test_one_silence_trips_once_and_a_resumed_account_is_watched_again(
    desk: ApiDesk, watching: DeadMan, venue: Venue, clock: TestClock
) -> None:
    clock.now_s += LIMIT_S + 1
    await watching.step()
    await until(watching, clock, Phase.TRIPPED)
    rest(venue, 1)
    for _ in range(5):
        clock.now_s += 600
        await watching.step()
    assert (watching.phase, len(venue.open_orders())) == (Phase.TRIPPED, 1)
    await resume(desk.ledger)
    await watching.step()
    assert watching.phase is Phase.WAITING
    clock.now_s += 600
    await watching.step()
    assert (watching.phase, await state(desk.ledger)) == (Phase.WAITING, TradingState.ACTIVE)
    await see_execution(desk.ledger, watching, clock)
    clock.now_s += LIMIT_S + 1
    await watching.step()
    assert (await state(desk.ledger), venue.open_orders()) == (TradingState.CANCEL_ALL, [])


async def test_a_trader_that_stops_beating_is_cancelled_and_its_heartbeat_is_over(
    desk: ApiDesk, watching: DeadMan, venue: Venue, clock: TestClock
) -> None:
    part = trader_part("main", "bot")
    await desk.ledger.beat(part, {"timeout_s": 5.0, "name": "bot"})
    await watching.step()
    rest(venue, 2)
    clock.now_s += 6
    await desk.ledger.beat("execution", {"account": "main"})
    await watching.step()
    assert venue.open_orders() == []
    beats = await desk.ledger.heartbeats()
    assert (beats[PART]["part"], "trader bot" in beats[PART]["reason"]) == (part, True)
    await until(watching, clock, Phase.TRIPPED)
    assert (await desk.ledger.heartbeats())[part]["ended"] is True


async def test_a_dead_man_that_was_killed_while_it_cancelled_goes_on(
    desk: ApiDesk, watching: DeadMan, simulator: Simulator, venue: Venue, clock: TestClock
) -> None:
    clock.now_s += LIMIT_S + 1
    await watching.step()
    assert watching.phase is Phase.CANCELLING
    rest(venue, 2)
    second = deadman_of(desk.ledger, simulator, TestClock())
    await second.step()
    assert (second.phase, venue.open_orders()) == (Phase.CANCELLING, [])
    second.close()


async def test_while_the_venue_is_away_the_account_is_halted_and_the_orders_go_when_it_is_back(
    desk: ApiDesk, simulator: Simulator, venue: Venue, clock: TestClock
) -> None:
    await desk.open_account()
    deadman = deadman_of(desk.ledger, simulator, clock, timeout_s=0.3)
    await see_execution(desk.ledger, deadman, clock)
    rest(venue, 1)
    clock.now_s += LIMIT_S + 1
    os.kill(simulator.process.pid, signal.SIGSTOP)
    try:
        await deadman.step()
        assert (await state(desk.ledger), deadman.phase) == (TradingState.CANCEL_ALL, Phase.CANCELLING)
    finally:
        os.kill(simulator.process.pid, signal.SIGCONT)
    await until(deadman, clock, Phase.TRIPPED)
    assert venue.open_orders() == []
    deadman.close()


@pytest.mark.parametrize("path", ["/orders/batch_cancel", "/orders/historical/batch"])
@pytest.mark.parametrize("fault", ["error_5xx", "throttle_429", "html", "accept_then_drop", "drop", "garbage_json"])
async def test_a_venue_that_fails_is_asked_until_its_list_is_empty(
    watching: DeadMan, simulator: Simulator, venue: Venue, clock: TestClock, fault: str, path: str
) -> None:
    rest(venue, 5)
    clock.now_s += LIMIT_S + 1
    # A read is tried three times, so four strikes fail one look and the begin of the next one.
    set_faults(simulator, [{"match": {"path": path}, "fault": fault, "count": 4}])
    try:
        await until(watching, clock, Phase.TRIPPED, step_s=5.0)
    finally:
        (rule,) = set_faults(simulator, [])
    assert rule["struck"] > 0
    assert venue.open_orders() == []


async def test_one_order_the_venue_cannot_cancel_does_not_save_the_others(
    watching: DeadMan, simulator: Simulator, venue: Venue, clock: TestClock
) -> None:
    rest(venue, 5)
    poisoned = venue.open_orders()[2].venue_order_id
    rule = {"match": {"path": "/orders/batch_cancel", "body": poisoned}, "fault": "error_5xx", "status": 400}
    set_faults(simulator, [rule])
    clock.now_s += LIMIT_S + 1
    try:
        await watching.step()
        assert [order.venue_order_id for order in venue.open_orders()] == [poisoned]
        clock.now_s += SETTLED_S + 1
        await watching.step()
        assert watching.phase is Phase.CANCELLING
    finally:
        set_faults(simulator, [])
    await until(watching, clock, Phase.TRIPPED)
    assert venue.open_orders() == []


def set_faults(simulator: Simulator, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Replace the exchange's faults and return those there were, with how often each has struck."""
    headers = {"Authorization": f"Bearer {(simulator.state_dir / 'sim_token').read_text()}"}
    before = simulator.request("GET", "/sim/faults", headers=headers)
    before.raise_for_status()
    simulator.request("POST", "/sim/faults", json={"rules": rules}, headers=headers).raise_for_status()
    return list(before.json()["rules"])


@pytest.fixture
async def own_desk(tmp_path: Path) -> AsyncIterator[tuple[Server, ApiDesk]]:
    """A desk whose ledger may be killed."""
    (tmp_path / "valkey").mkdir()
    server = Server(binary("valkey"), tmp_path / "valkey")
    with server.running() as redis:
        settings = Settings(state_dir=tmp_path, redis=redis)
        ledger = Ledger.connect(settings, redis_secrets())
        await ledger.install()
        async with open_desk(settings, ledger) as desk:
            yield server, desk
        await ledger.close()


async def test_orders_are_cancelled_while_the_ledger_is_down_and_the_account_is_halted_once_it_is_back(
    own_desk: tuple[Server, ApiDesk], simulator: Simulator, venue: Venue, clock: TestClock
) -> None:
    server, desk = own_desk
    await desk.open_account()
    deadman = deadman_of(desk.ledger, simulator, clock)
    await see_execution(desk.ledger, deadman, clock)
    rest(venue, 3)
    server.kill()
    await deadman.step()
    assert (deadman.phase, len(venue.open_orders())) == (Phase.WATCHING, 3)
    clock.now_s += LIMIT_S + 1
    await deadman.step()
    assert venue.open_orders() == []
    clock.now_s += SETTLED_S + 1
    await deadman.step()
    # As long as nobody could be told, it is not over.
    assert deadman.phase is Phase.CANCELLING
    server.start()
    await until(deadman, clock, Phase.TRIPPED)
    assert await state(desk.ledger) == TradingState.CANCEL_ALL
    (entry,) = await audited(desk.ledger)
    assert entry["by"] == "deadman"
    deadman.close()


async def test_the_replica_watches_in_real_time_and_finds_everything_in_the_settings(
    desk: ApiDesk, simulator: Simulator, venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.open_account()
    folder = desk.settings.state_dir
    (folder / "exchange").symlink_to(simulator.state_dir, target_is_directory=True)
    running = {
        "redis": desk.settings.redis.model_dump(mode="json"),
        "venue": {"host_port": simulator.host_port},
        "execution": {"deadman_s": 2},
    }
    (folder / "desk.json").write_text(json.dumps({"settings": running}))
    write_secrets(folder / "secrets.env", {"redis_password": PASSWORD})
    monkeypatch.setenv("DESK_STATE_DIR", str(folder))
    monkeypatch.setattr("serve_apps.deadman.SETTLED_S", 1.0)
    rest(venue, 2)
    deployment: Any = DeadManService
    replica = deployment.func_or_class()
    await replica.check_health()
    try:
        async with asyncio.timeout(60):
            while await phase(desk.ledger) != "WATCHING":
                await desk.ledger.beat("execution", {"account": "main"})
                await asyncio.sleep(0.1)
            while await phase(desk.ledger) != "TRIPPED":
                await asyncio.sleep(0.1)
        assert (venue.open_orders(), await state(desk.ledger)) == ([], TradingState.CANCEL_ALL)
        await replica.check_health()
        replica._task.cancel()
        await asyncio.wait([replica._task])
        with pytest.raises(RuntimeError, match="ended"):
            await replica.check_health()
    finally:
        await replica.close()


async def test_killed_while_the_ledger_is_down_too_it_goes_on_by_its_own_note(
    own_desk: tuple[Server, ApiDesk], simulator: Simulator, venue: Venue, clock: TestClock, tmp_path: Path
) -> None:
    server, desk = own_desk
    await desk.open_account()
    note = tmp_path / "deadman.tripped"
    first = deadman_of(desk.ledger, simulator, clock, note=note)
    await see_execution(desk.ledger, first, clock)
    server.kill()
    await first.step()
    clock.now_s += LIMIT_S + 1
    await first.step()
    first.close()
    rest(venue, 2)
    second_clock = TestClock()
    second = deadman_of(desk.ledger, simulator, second_clock, note=note)
    await second.step()
    assert (second.phase, venue.open_orders()) == (Phase.CANCELLING, [])
    server.start()
    await until(second, second_clock, Phase.TRIPPED)
    assert await state(desk.ledger) == TradingState.CANCEL_ALL
    second.close()
    # Done is done: the next one starts as any other.
    assert deadman_of(desk.ledger, simulator, clock, note=note).phase is Phase.WAITING


async def phase(ledger: Ledger) -> str | None:
    """What the dead man says of himself."""
    beat = (await ledger.heartbeats()).get(PART, {})
    return beat.get("phase")


def test_the_dead_man_has_a_budget_of_its_own() -> None:
    share = ReservedShare(25, 0.2)
    for _ in range(5):
        share.take("read", 0)
    with pytest.raises(Exception, match="budget"):
        share.take("cancel", 0)
