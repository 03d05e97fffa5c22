"""Faults 10 and 11: the ledger's server is killed, frozen, or starts on files a crash has cut short or damaged."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil
import pytest

from cluster import local
from cluster.ledger import LedgerError, LedgerUnavailable
from tests.books import ACCOUNT, BTC, Books, order
from tests.faults.books_check import check_books, unproven
from tests.faults.conftest import Report
from tests.faults.desk_load import Load, entries, ledger_process, settled_books
from tests.faults.ledger_load import connected, opened
from tests.servers import Server
from tests.system.client import Desk, eventually

DOWN_S: Final = 1.0
FROZEN_S: Final = 5.0
MANY_ORDERS: Final = 100_000


# -- the desk's own server ---------------------------------------------------------------------------------------------


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.fault("10", "the ledger's server SIGKILLed, a second later started again", "lost 0, serving again in 3 s")
def test_a_killed_server_comes_back_with_all_that_was_acknowledged(
    desk: Desk, tmp_path: Path, report: Report, seed: int
) -> None:
    with Load(desk, tmp_path, seed) as load:
        load.await_steady()
        time.sleep(random.Random(seed).uniform(0, 0.5))
        server = ledger_process(desk)
        server.kill()
        _await_gone(server)
        time.sleep(DOWN_S)
        begin_s = time.monotonic()
        local.start_valkey(desk.settings)
        report(server_answers_s=round(time.monotonic() - begin_s, 2), service_again_s=round(load.await_service(), 2))
        load.finish()
        report(**load.figures())
        books = load.books()
        report(**books.figures(), reserved_and_never_answered=books.unacknowledged)
    books.assert_whole()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.fault("10", "the same while a venue that does not answer has orders of ours", "serving again in 3 s")
def test_orders_on_their_way_to_the_venue_do_not_keep_the_desk_closed(desk: Desk, report: Report) -> None:
    # Whether they arrived can only be said some seconds later, and used to be waited for before any order was taken.
    (exchange,) = [item for item in local.recorded(desk.settings.state_dir) if item.name == "exchange"]
    venue = exchange.process()
    assert venue is not None
    bodies = [desk.resting() for _ in range(20)]
    venue.suspend()
    try:
        replies = desk.submit_all(bodies, persist_s=30)
        eventually(lambda: any(desk.show(body["client_order_id"])["status"] == "SENT" for body in bodies), 60, "sent")
        server = ledger_process(desk)
        server.kill()
        _await_gone(server)
        said = desk.http.get("/readyz").status_code
    finally:
        venue.resume()
    begin_s = time.monotonic()
    local.start_valkey(desk.settings)
    report(server_answers_s=round(time.monotonic() - begin_s, 2))
    eventually(lambda: desk.submit(desk.resting()).status_code == 201, 90, "an order is accepted")
    report(service_again_s=round(time.monotonic() - begin_s, 2))
    eventually(lambda: all(desk.show(b["client_order_id"])["status"] == "OPEN" for b in bodies), 90, "all are known")
    report(every_order_known_s=round(time.monotonic() - begin_s, 2))
    accepted = {body["client_order_id"] for body in bodies}
    books = settled_books(desk, accepted, accepted.__contains__)
    report(**books.figures())
    report(readyz_without_the_ledger=f"HTTP {said}")
    assert all(reply is not None and reply.status_code == 201 for reply in replies)
    assert said == 503
    books.assert_whole()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.seeds(3)
@pytest.mark.fault("11", "the ledger's server stands still for 5 s (SIGSTOP)", "every answer in 2 s; again in 2 s")
def test_a_frozen_server_means_no_acceptance(desk: Desk, tmp_path: Path, report: Report, seed: int) -> None:
    with Load(desk, tmp_path, seed) as load:
        load.await_steady()
        time.sleep(random.Random(seed).uniform(0, 0.5))
        server = ledger_process(desk)
        server.suspend()
        frozen_s = time.time()
        try:
            time.sleep(FROZEN_S)
        finally:
            thawed_s = time.time()
            server.resume()
        report(service_again_s=round(load.await_service(), 2))
        load.finish()
        report(**load.figures())
        accepted = [a for a in load.answers() if a.accepted and frozen_s + 0.5 < a.at_s < thawed_s]
        report(accepted_while_frozen=len(accepted))
        refused_ms = [a.first_ms for a in load.answers() if a.due_s > frozen_s and a.first == "UNAVAILABLE"]
        report(slowest_refusal_ms=round(max(refused_ms, default=0.0)))
        books = load.books()
        report(**books.figures(), reserved_and_never_answered=books.unacknowledged)
    # The server's clock is in each entry: none may have been made while it stood still.
    made_s = [int(entry["us"]) / 1e6 for entry in entries(desk)]
    assert not [at_s for at_s in made_s if frozen_s + 0.5 < at_s < thawed_s - 0.5]
    assert not accepted
    books.assert_whole()


def _await_gone(process: psutil.Process) -> None:
    def gone() -> bool:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    eventually(gone, 20, "the killed server is gone")


# -- files after a crash -----------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.anyio
@pytest.mark.fault(
    "10", "the last file cut by 1 byte to all of its last entries", "starts, says so, only the cut is missing"
)
async def test_a_server_starts_on_a_file_cut_short_and_says_so(server: Server, report: Report, full: bool) -> None:
    accepted = await _orders_then_kill(server, 60)
    log = _last_file(server)
    whole = log.read_bytes()
    cuts = _cuts(whole, 24 if full else 6)
    kept, told, proven = [], 0, 0
    for cut in cuts:
        log.write_bytes(whole[: len(whole) - cut])
        told += _starts(server)
        async with connected(server.settings) as ledger:
            await ledger.install()
            stored = {number for number, name in enumerate(accepted) if await ledger.order(ACCOUNT, name)}
            proven += not await unproven(ledger, ACCOUNT)
        # What is left is what came first: nothing from the middle may be missing.
        assert stored == set(range(len(stored))), cut
        kept.append(len(stored))
        server.kill()
    report(cuts_tried=len(cuts), cut_bytes_most=max(cuts), starts_that_told=told, books_proven=proven)
    report(orders_in_the_cut_most=len(accepted) - min(kept))
    assert (told, proven) == (len(cuts), len(cuts))
    assert min(kept) < len(accepted)


@pytest.mark.timeout(600)
@pytest.mark.anyio
@pytest.mark.fault("10", "a file damaged in its middle", "refuses to start")
async def test_a_server_refuses_a_file_damaged_in_the_middle(server: Server, report: Report, seed: int) -> None:
    await _orders_then_kill(server, 60)
    log = _last_file(server)
    whole = log.read_bytes()
    chance = random.Random(seed)
    tried, refused = 10, 0
    for _ in range(tried):
        at = chance.randrange(len(whole) // 10, len(whole) // 2)
        # The bytes that say how long the next part is: data itself carries no check sum.
        at = whole.index(b"\r\n$", at) + 3
        log.write_bytes(whole[:at] + b"x" + whole[at + 1 :])
        process = server.launch()
        refused += process.wait(60) != 0
    report(damages_tried=tried, starts_refused=refused)
    assert refused == tried
    log.write_bytes(whole)


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.anyio
@pytest.mark.fault("10", "the server SIGKILLed with 100,000 orders in its files", "lost 0, serving again in 3 s")
async def test_a_server_with_many_orders_is_soon_back(tmp_path: Path, report: Report) -> None:
    with _valkey_with_room(tmp_path) as server:
        async with connected(server.settings, 30) as ledger:
            books = await opened(ledger)
            accepted = await _many_orders(books, MANY_ORDERS)
            server.kill()
            size = sum(path.stat().st_size for path in _folder(server).rglob("*") if path.is_file())
            begin_s = time.monotonic()
            server.launch()
            report(server_answers_s=round(await _until_it_answers(server), 2), files_mb=round(size / 2**20, 1))
            epoch = await ledger.claim(ACCOUNT, "test")
            await ledger.admit(ACCOUNT, epoch)
            assert (await books.reserve(order("after"))).accepted
            report(serving_again_s=round(time.monotonic() - begin_s, 2))
            found = await check_books(ledger, ACCOUNT, accepted, accepted.__contains__)
            report(**found.figures())
            found.assert_whole()


def _folder(server: Server) -> Path:
    return server._folder


@contextmanager
def _valkey_with_room(folder: Path) -> Iterator[Server]:
    from tests.servers import binary

    with (server := Server(binary("valkey"), folder, appendfsync="always", maxmemory="2gb")).running():
        yield server


async def _many_orders(books: Books, count: int, at_once: int = 250) -> set[str]:
    accepted = set()
    for start in range(0, count, at_once):
        names = [f"o-{number}" for number in range(start, start + at_once)]
        verdicts = await asyncio.gather(*(books.ledger.reserve(order(name), BTC, "test") for name in names))
        accepted |= {name for name, verdict in zip(names, verdicts, strict=True) if verdict.accepted}
    return accepted


async def _orders_then_kill(server: Server, count: int) -> list[str]:
    names = [f"o-{number}" for number in range(count)]
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        for name in names:
            await books.accept(name)
    server.kill()
    return names


def _last_file(server: Server) -> Path:
    """The file of appended commands: the only one that grows."""
    (found,) = [path for path in _folder(server).rglob("*.incr.aof") if path.stat().st_size]
    return found


def _cuts(whole: bytes, count: int) -> list[int]:
    """1, 2, 3 bytes, and on to the last tenth of the file in growing steps; none at the end of a command."""
    most = len(whole) // 10
    steps = sorted({1, 2, 3, *(int(most ** (number / count)) for number in range(1, count))})
    return [cut for cut in steps if not whole[: len(whole) - cut].endswith(b"*1\r\n$4\r\nEXEC\r\n")]


def _starts(server: Server) -> bool:
    """Start it; whether it told in its log that its file was cut short."""
    log = _folder(server) / "server.log"
    before = log.stat().st_size
    server.start()
    with log.open("rb") as file:
        file.seek(before)
        return b"runcated" in file.read() or b"nexpected end" in file.read()


async def _until_it_answers(server: Server) -> float:
    begin_s = time.monotonic()
    while True:
        async with connected(server.settings) as ledger:
            try:
                await ledger.server()
            except (LedgerUnavailable, LedgerError):
                await asyncio.sleep(0.02)
            else:
                return time.monotonic() - begin_s
