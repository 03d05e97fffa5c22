"""Fault 23: the kill switch. Once a halt is acknowledged no replica accepts, and no fault of a process undoes it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from cluster import local
from cluster.ledger import Ledger
from tests.faults.conftest import Report
from tests.faults.desk_load import ACCOUNT, Load, entries, ledger_process
from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

RATE_PER_S: Final = 100.0
REPLICAS: Final = "orders:risk"


@pytest.mark.fault("23", "halt to the last accepted order, three replicas under load", "none after the acknowledgement")
def test_no_order_is_accepted_after_a_halt_is_acknowledged(
    desk: Desk, tmp_path: Path, report: Report, seed: int
) -> None:
    with Load(desk, tmp_path, seed, RATE_PER_S) as load:
        load.await_steady()
        time.sleep(random.Random(seed).uniform(0, 0.5))
        asked_s = time.time()
        with halted(desk):
            acknowledged_s = time.time()
            eventually(lambda: _denied_since(load, acknowledged_s) >= 50, 60, "orders are denied")
            load.finish()
            story = entries(desk)
            report(**load.figures())
    books = load.books()
    report(**books.figures())
    halt = max(number for number, entry in enumerate(story) if entry["kind"] == "STATE")
    late = [entry for entry in story[halt:] if entry["kind"] == "RESERVED"]
    last_s = max(answer.at_s for answer in load.answers() if answer.accepted)
    fresh = [a for a in load.answers() if a.accepted and not a.replayed and a.due_s > acknowledged_s]
    report(
        accepted_after_the_halt=len(late) + len(fresh),
        halt_acknowledged_ms=round((acknowledged_s - asked_s) * 1000, 1),
        asked_to_last_acceptance_seen_ms=round((last_s - asked_s) * 1000, 1),
    )
    assert (late, fresh) == ([], [])
    books.assert_whole()


@pytest.mark.fault("23", "the halt outlives every fault of a process", "no order accepted, state HALTED, 100 %")
def test_no_fault_undoes_a_halt(desk: Desk, report: Report) -> None:
    accepted, asked, survived = 0, 0, []
    with halted(desk):
        halt = len(entries(desk))
        for name, fault in FAULTS.items():
            with fault(desk):
                replies = [r for r in desk.submit_all([desk.order() for _ in range(12)]) if r is not None]
                accepted += sum(reply.status_code == 201 for reply in replies)
            body = desk.order()
            eventually(lambda b=body: _refused_by_the_halt(desk, b), 120, f"an answer again after: {name}")  # type: ignore[misc]
            asked += 13
            if _state(desk) == "HALTED":
                survived.append(name)
        late = [entry for entry in entries(desk)[halt:] if entry["kind"] == "RESERVED"]
    report(faults=len(FAULTS), halt_survived=len(survived), orders_tried=asked, accepted_after_the_halt=len(late))
    eventually(lambda: len(desk.replicas(REPLICAS)) == 3, 120, "three replicas")
    assert (accepted, late) == (0, [])
    assert survived == list(FAULTS)
    eventually(lambda: desk.submit(desk.order()).status_code == 201, 60, "trading goes on after the resume")


@contextmanager
def halted(desk: Desk) -> Iterator[None]:
    """Halt the account by the API; two people resume it."""
    body = {"account": ACCOUNT, "scope": "account", "reason": "a fault test"}
    reply = desk.http.post("/v1/risk/halt", json=body)
    assert reply.status_code == 200, reply.text
    try:
        yield
    finally:
        desk.ledger(_resume)


async def _resume(ledger: Ledger) -> None:
    proposal = await ledger.propose_resume(ACCOUNT, "account", "test", "one", "the fault test is over")
    approval = await ledger.approve(ACCOUNT, proposal.id, proposal.digest, "test", "another")
    assert approval.outcome == "APPLIED", approval


def _denied_since(load: Load, at_s: float) -> int:
    return sum(answer.last == "DENIED" and answer.due_s > at_s for answer in load.answers())


def _refused_by_the_halt(desk: Desk, body: dict[str, Any]) -> bool:
    (reply,) = desk.submit_all([body])
    if reply is None or reply.status_code >= 500:
        return False
    codes = {denial["code"] for denial in reply.json().get("denials", [])}
    assert (reply.status_code, "TRADING_HALTED" in codes) == (422, True), reply.text
    return True


def _state(desk: Desk) -> str:
    return desk.ledger(lambda ledger: ledger.snapshot(ACCOUNT)).state["account"]


# -- what may go wrong meanwhile ---------------------------------------------------------------------------------------


@contextmanager
def _replica_killed(desk: Desk) -> Iterator[None]:
    desk.replicas(REPLICAS)[0].kill()
    yield


@contextmanager
def _all_replicas_killed(desk: Desk) -> Iterator[None]:
    for replica in desk.replicas(REPLICAS):
        replica.kill()
    yield


@contextmanager
def _execution_killed(desk: Desk) -> Iterator[None]:
    (execution,) = desk.replicas("execution:execution")
    execution.kill()
    yield
    eventually(lambda: desk.replicas("execution:execution") not in ([], [execution]), 120, "execution again")


@contextmanager
def _ledger_frozen(desk: Desk) -> Iterator[None]:
    server = ledger_process(desk)
    server.suspend()
    try:
        yield
    finally:
        server.resume()


@contextmanager
def _ledger_killed(desk: Desk) -> Iterator[None]:
    server = ledger_process(desk)
    server.kill()
    eventually(lambda: not server.is_running() or server.status() == "zombie", 20, "the ledger is gone")
    yield
    local.start_valkey(desk.settings)


@contextmanager
def _exchange_frozen(desk: Desk) -> Iterator[None]:
    (exchange,) = [item for item in local.recorded(desk.settings.state_dir) if item.name == "exchange"]
    process = exchange.process()
    assert process is not None
    process.suspend()
    try:
        yield
    finally:
        process.resume()


FAULTS: Final[dict[str, Callable[[Desk], Any]]] = {
    "a replica killed": _replica_killed,
    "execution killed": _execution_killed,
    "the ledger frozen": _ledger_frozen,
    "the ledger killed and started": _ledger_killed,
    "the exchange frozen": _exchange_frozen,
    "all replicas killed": _all_replicas_killed,
}
