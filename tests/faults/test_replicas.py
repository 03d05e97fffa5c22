"""Faults 1, 2 and 18: risk replicas are killed, one, each in turn and all at once; one id reaches all three at once."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Report
from tests.faults.desk_load import Load, await_unread, entries, ledger_process, settled_books
from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

REPLICAS = "orders:risk"
BACK_S = 120.0
CONNECTIONS = 150


def await_three(desk: Desk, begin_s: float | None = None) -> float:
    """Wait for three living replicas; seconds since ``begin_s`` (monotonic; default now)."""
    begin_s = begin_s or time.monotonic()
    eventually(lambda: len(desk.replicas(REPLICAS)) == 3, BACK_S, "three replicas")
    return round(time.monotonic() - begin_s, 2)


class _Asked:
    """One order on a connection of its own to the port the replicas share: it is one replica's from the start."""

    def __init__(self, desk: Desk) -> None:
        self.body = desk.resting()
        self._key = desk.key
        self._connection = http.client.HTTPConnection("127.0.0.1", desk.settings.serve.orders_port, timeout=60)
        self._connection.connect()
        self.port: int = self._connection.sock.getsockname()[1]

    def send(self) -> None:
        headers = {"authorization": f"Bearer {self._key}", "content-type": "application/json"}
        self._connection.request("POST", "/v1/orders", json.dumps(self.body), headers)

    def status(self) -> int | None:
        """Of the answer; None when the connection broke."""
        try:
            return self._connection.getresponse().status
        except OSError:
            return None
        finally:
            self._connection.close()


def _stand_still(process: psutil.Process) -> None:
    """Stop a process; on return it does stand still, which a signal alone does not promise."""
    process.suspend()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED, BACK_S, "it stands still")


def _taken(desk: Desk, replica: psutil.Process) -> set[int]:
    """The callers' ports of the connections a replica has accepted on the port that the replicas share.

    Only of that port: Ray's own connections may have a caller's port number as well, to another port.
    """
    found = replica.net_connections("tcp")
    return {one.raddr.port for one in found if one.raddr and one.laddr.port == desk.settings.serve.orders_port}


@pytest.mark.fault("1", "one of three replicas SIGKILLed", "error < 1 % first try, 0 after retry, three back in 15 s")
def test_a_killed_replica_loses_nothing(desk: Desk, tmp_path: Path, report: Report, seed: int) -> None:
    chance = random.Random(seed)
    door = ("serve", "own port")[seed % 2]
    await_three(desk)
    with Load(desk, tmp_path, seed, door=door) as load:
        load.await_steady()
        victim = chance.choice(desk.replicas(REPLICAS))
        time.sleep(chance.uniform(0, 0.5))
        begin_s = time.monotonic()
        victim.kill()
        report(back_to_three_s=await_three(desk, begin_s), orders_came_by=door)
        load.await_service()
        load.finish()
        report(**load.figures())
        books = load.books()
        report(**books.figures(), reserved_and_never_answered=books.unacknowledged)
    used, allowed = desk.ledger(lambda ledger: ledger.memory())
    report(ledger_memory_used_percent=round(100 * used / allowed, 2))
    books.assert_whole()


@pytest.mark.fault("1", "a replica SIGKILLed between the ledger's reservation and its answer", "lost 0, duplicated 0")
def test_orders_reserved_by_a_replica_that_died_before_it_answered(desk: Desk, report: Report, seed: int) -> None:
    # The replica finds many orders waiting, sends them all to a ledger that stands still, and is killed. The ledger
    # then takes them from its socket and reserves them for nobody.
    await_three(desk)
    victim = random.Random(seed).choice(desk.replicas(REPLICAS))
    ledger = ledger_process(desk)
    asked = [_Asked(desk) for _ in range(CONNECTIONS)]
    wanted = {one.port for one in asked}
    replicas = desk.replicas(REPLICAS)
    # A connection that its replica has not accepted yet is nobody's, and its order would find another fate.
    eventually(lambda: wanted <= set.union(*(_taken(desk, one) for one in replicas)), BACK_S, "all are taken")
    doomed = [one for one in asked if one.port in _taken(desk, victim)]
    # What a replica keeps for some seconds (products, keys) it must not have to read when the ledger stands still.
    first = doomed.pop()
    asked.remove(first)
    first.send()
    assert first.status() == 201
    _stand_still(victim)
    for one in asked:
        one.send()
    assert all(one.status() == 201 for one in asked if one not in doomed)
    _stand_still(ledger)
    try:
        victim.resume()
        await_unread(desk)
        victim.kill()
        victim.wait(20)
    finally:
        ledger.resume()
    assert all(one.status() is None for one in doomed)
    again = [desk.submit_all([one.body], persist_s=60)[0] for one in doomed]
    replayed = sum(reply is not None and reply.headers.get("idempotent-replayed") == "true" for reply in again)
    await_three(desk)
    accepted = {one.body["client_order_id"] for one in asked}
    books = settled_books(desk, accepted, accepted.__contains__)
    report(**books.figures(), died_in_flight=len(doomed), reserved_for_nobody_then_found_by_id=replayed)
    assert all(reply is not None and reply.status_code == 201 for reply in again)
    assert replayed > 0
    books.assert_whole()


@pytest.mark.fault("2", "all three replicas SIGKILLed in turn, one every ten seconds", "as fault 1")
def test_a_rolling_kill_of_all_three_loses_nothing(desk: Desk, tmp_path: Path, report: Report) -> None:
    await_three(desk)
    with Load(desk, tmp_path, seed=1) as load:
        load.await_steady()
        back_s = []
        for victim in desk.replicas(REPLICAS):
            begin_s = time.monotonic()
            victim.kill()
            back_s.append(await_three(desk, begin_s))
            time.sleep(max(0.0, 10 - (time.monotonic() - begin_s)))
        report(back_to_three_s=max(back_s))
        load.await_service()
        load.finish()
        report(**load.figures())
        books = load.books()
        report(**books.figures(), reserved_and_never_answered=books.unacknowledged)
    books.assert_whole()


@pytest.mark.seeds(3)
@pytest.mark.fault("2", "all three replicas SIGKILLed at once", "nothing accepted meanwhile, back in 30 s")
def test_without_any_replica_no_order_is_accepted(desk: Desk, tmp_path: Path, report: Report, seed: int) -> None:
    await_three(desk)
    with Load(desk, tmp_path, seed) as load:
        load.await_steady()
        victims = desk.replicas(REPLICAS)
        for victim in victims:
            victim.kill()
            victim.wait(20)
        dead_s, begin_s = time.time(), time.monotonic()
        report(service_again_s=round(load.await_service(BACK_S), 2), back_to_three_s=await_three(desk, begin_s))
        load.finish()
        report(**load.figures())
        books = load.books()
        report(**books.figures(), reserved_and_never_answered=books.unacknowledged)
    born_s = min(replica.create_time() for replica in desk.replicas(REPLICAS))
    reserved_s = [int(e["us"]) / 1e6 for e in entries(desk) if e["kind"] == "RESERVED"]
    # A second for what the dead had sent before and the server had not read yet.
    early = [at_s for at_s in reserved_s if dead_s + 1 < at_s < born_s]
    report(accepted_without_replicas=len(early))
    books.assert_whole()
    assert not early


@pytest.mark.fault(
    "18", "one client_order_id 100 times at once over three replicas", "1 reservation, 100 equal answers"
)
def test_one_id_a_hundred_times_at_once_is_one_reservation(desk: Desk, report: Report, seed: int) -> None:
    await_three(desk)
    bodies = [desk.resting(quantity=f"0.0{seed + 1}{number}") for number in range(10)]
    others = [body | {"quantity": "0.5"} for body in bodies]
    doors = ["serve", "own port"]
    answers, conflicts = set(), Counter[int]()
    first_given = 0
    for number, body in enumerate(bodies):
        replies = [r for r in desk.submit_all([body] * 100, persist_s=30, door=doors[number % 2]) if r is not None]
        assert Counter(reply.status_code for reply in replies) == {201: 100}
        assert len({reply.text for reply in replies}) == 1
        first_given += sum("idempotent-replayed" not in reply.headers for reply in replies)
        answers.add(replies[0].text)
    for reply in desk.submit_all(others, persist_s=30):
        conflicts[reply.status_code if reply is not None else 0] += 1
    ids = {body["client_order_id"] for body in bodies}
    books = settled_books(desk, ids, ids.__contains__)
    report(**books.figures(), asked=1000, first_answers=first_given, other_body_refused=conflicts[409])
    assert (first_given, len(answers)) == (len(bodies), len(bodies))
    assert conflicts == {409: len(others)}
    books.assert_whole()
