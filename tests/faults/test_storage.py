"""Faults 14, 15 and 16: the server's memory or disk is full, or what it holds is gone, old or somebody else's."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, StaleEpoch
from strategies.model import OrderStatus, TradingState
from tests.books import ACCOUNT, BTC, Books, order
from tests.faults.books_check import check_books
from tests.faults.conftest import Report
from tests.faults.ledger_load import connected, opened
from tests.servers import KINDS, Kind, Server, binary

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

DISK_MB: Final = 12
REFUSED_MAX: Final = 50_000


async def accepted_until_refused(books: Books, prefix: str, at_once: int = 50) -> tuple[set[str], str]:
    """Reserve until the server refuses: the ids it took, and what it said."""
    accepted: set[str] = set()
    for start in range(0, REFUSED_MAX, at_once):
        names = [f"{prefix}-{number}" for number in range(start, start + at_once)]
        found = await asyncio.gather(*(books.reserve(order(name)) for name in names), return_exceptions=True)
        for name, verdict in zip(names, found, strict=True):
            if not isinstance(verdict, BaseException):
                accepted |= {name} if verdict.accepted else set()
            elif not isinstance(verdict, LedgerUnavailable):
                raise verdict
        refusals = [str(verdict) for verdict in found if isinstance(verdict, LedgerUnavailable)]
        if refusals:
            return accepted, refusals[0]
    raise AssertionError(f"{REFUSED_MAX} orders were accepted and none refused")


# -- 14: memory --------------------------------------------------------------------------------------------------------


@pytest.mark.fault("14", "the server's memory is full", "refused whole, release, fill, cancel and halt go on")
async def test_with_memory_full_orders_are_refused_whole_and_risk_can_be_ended(server: Server, report: Report) -> None:
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        for number in range(6):
            await books.accept(f"sent-{number}")
            await books.send(f"sent-{number}")
        used, _ = await ledger.memory()
        await ledger._direct("CONFIG", "SET", "maxmemory", str(used + 3 * 2**20))
        accepted, said = await accepted_until_refused(books, "o")
        before = await books.keys()
        refused = 0
        for number in range(200):
            try:
                await books.reserve(order(f"refused-{number}"))
            except LedgerUnavailable:
                refused += 1
        assert await books.keys() == before, "a refused order left something behind"
        done = await _ending_risk(books)
        found = await check_books(ledger, ACCOUNT, accepted, lambda name: name.startswith("o-"))
        report(**found.figures(), tried_when_full=200, refused_when_full=refused, ends_of_risk_done=done)
        used, allowed = await ledger.memory()
        report(memory_used_percent=round(100 * used / allowed, 1))
        await ledger._direct("CONFIG", "SET", "maxmemory", "64mb")
        resumed = await books.reserve(order("with room again", strategy="other"))
    assert (refused, done) == (200, 6)
    assert "maxmemory" in said or "OOM" in said
    assert resumed.kind == "DENIED", "the account was halted meanwhile"
    found.assert_whole()


async def _ending_risk(books: Books) -> int:
    """What must work with memory full: how much of it did."""
    ledger, epoch = books.ledger, books.epoch
    done = [
        await ledger.ack(ACCOUNT, epoch, "sent-0", OrderStatus.OPEN, "v-0") == "OPEN",
        await books.fill("sent-0", 10, 10_000) == ("APPLIED", "FILLED"),
        await ledger.release(ACCOUNT, epoch, "sent-1", OrderStatus.REJECTED, "x") == (True, "REJECTED"),
        await ledger.request_cancel(ACCOUNT, "sent-2", "test") == ("SENT", "REQUESTED"),
        await ledger.request_cancel(ACCOUNT, "o-0", "test") == ("CANCELLED", "CANCELLED"),
        (await ledger.tighten(ACCOUNT, "account", TradingState.HALTED, "test", "full"))[2] is TradingState.HALTED,
    ]
    return sum(done)


# -- 15: not the state it was ------------------------------------------------------------------------------------------


async def _flushed(server: Server, ledger: Ledger) -> None:
    await ledger._direct("FLUSHALL")


async def _flushed_and_restarted(server: Server, ledger: Ledger) -> None:
    await ledger._direct("FLUSHALL")
    server.kill()
    server.start()


async def _library_gone(server: Server, ledger: Ledger) -> None:
    await ledger._direct("FUNCTION", "FLUSH")


async def _restarted(server: Server, ledger: Ledger) -> None:
    server.kill()
    server.start()


async def _library_loaded_anew(server: Server, ledger: Ledger) -> None:
    await ledger._direct("FUNCTION", "FLUSH")
    await ledger.install()


async def _files_gone(server: Server, ledger: Ledger) -> None:
    server.kill()
    shutil.rmtree(server._folder / "appendonlydir")
    server.start()


async def _older_files(server: Server, ledger: Ledger) -> None:
    saved = server._folder / "saved"
    server.kill()
    shutil.rmtree(server._folder / "appendonlydir")
    shutil.copytree(saved, server._folder / "appendonlydir")
    server.start()


async def _account_deleted(server: Server, ledger: Ledger) -> None:
    found = await ledger._direct("KEYS", "tt:*:state")
    await ledger._direct("DEL", *found)


GONE: Final[dict[str, Callable[[Server, Ledger], Awaitable[None]]]] = {
    "FLUSHALL": _flushed,
    "FLUSHALL and a restart": _flushed_and_restarted,
    "the trading states deleted": _account_deleted,
    "the library gone": _library_gone,
    "the library loaded anew": _library_loaded_anew,
    "a restart": _restarted,
    "the files gone": _files_gone,
    "older files": _older_files,
}


@pytest.mark.fault("15", "state gone, old, or of another database", "refuses, never trades from zero")
async def test_a_server_that_is_not_what_it_was_takes_no_order(server: Server, report: Report) -> None:
    tried = refused = 0
    said: dict[str, str] = {}
    for what, happens in GONE.items():
        async with connected(server.settings) as ledger, connected(server.settings) as fresh:
            await ledger._direct("FLUSHALL")
            await ledger._direct("FUNCTION", "FLUSH")
            books = await opened(ledger)
            # A copy of the files from before the last orders and the last epoch.
            shutil.rmtree(server._folder / "saved", ignore_errors=True)
            shutil.copytree(server._folder / "appendonlydir", server._folder / "saved")
            books.epoch = await ledger.claim(ACCOUNT, "test")
            await ledger.admit(ACCOUNT, books.epoch)
            for number in range(20):
                await books.accept(f"{number}")
            await happens(server, ledger)
            # One that knows the account from before, and one that has never seen it.
            for caller in (ledger, fresh):
                for number in range(20):
                    tried += 1
                    outcome = await _outcome(caller, f"after-{number}")
                    refused += outcome != "ACCEPTED"
                    said[what] = outcome
    report(ways_tried=len(GONE), orders_tried=tried, orders_refused=refused, accepted_from_nothing=tried - refused)
    assert refused == tried, said


@pytest.mark.fault("15", "state gone, old, or of another database", "refuses, never trades from zero")
async def test_another_database_of_the_same_server_takes_no_order(server: Server, report: Report) -> None:
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        await books.accept("o-1")
        async with connected(server.settings.model_copy(update={"database": 1})) as other:
            outcomes = [await _outcome(other, f"o-{number}") for number in range(20)]
        assert "ACCEPTED" not in outcomes
        found = await check_books(ledger, ACCOUNT, {"o-1"}, lambda _: True)
        report(**found.figures(), ways_tried=1, orders_tried=20, orders_refused=20, accepted_from_nothing=0)
        found.assert_whole()


@pytest.mark.fault("15", "a writer with an old epoch", "refused, nothing written")
async def test_a_writer_with_an_old_epoch_changes_nothing(server: Server, report: Report) -> None:
    async with connected(server.settings) as ledger:
        books = await opened(ledger)
        for name in ("o-1", "o-2"):
            await books.accept(name)
        await books.send("o-1")
        await ledger.claim(ACCOUNT, "another")
        before = await books.keys()
        old = books.epoch
        attempts: list[Awaitable[Any]] = [
            ledger.mark_sent(ACCOUNT, old, "o-2"),
            ledger.ack(ACCOUNT, old, "o-1", OrderStatus.OPEN, "v"),
            books.fill("o-1", 1, 10_000),
            ledger.release(ACCOUNT, old, "o-1", OrderStatus.REJECTED, "x"),
            ledger.admit(ACCOUNT, old),
            ledger.watch(ACCOUNT, old),
            ledger.venue_errors(ACCOUNT, old, 1),
        ]
        refused = 0
        for attempt in attempts:
            with pytest.raises(StaleEpoch):
                await attempt
            refused += 1
        assert await books.keys() == before
        found = await check_books(ledger, ACCOUNT, {"o-1", "o-2"}, lambda _: True)
        report(**found.figures(), writes_tried=len(attempts), writes_refused=refused)
        found.assert_whole()


async def _outcome(ledger: Ledger, name: str) -> str:
    try:
        verdict = await ledger.reserve(order(name), BTC, "test")
    except (LedgerUnavailable, LedgerError) as error:
        return str(error)
    return "ACCEPTED" if verdict.accepted else str(verdict.answer)


# -- 16: disk ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small file system can be mounted by root only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    """All but half a megabyte of the disk is taken by something else."""
    filler = disk / "filler"
    free = shutil.disk_usage(disk).free
    filler.write_bytes(b"x" * max(0, free - 2**19))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("appendfsync", ["always", "everysec"])
@pytest.mark.fault("16", "the server's disk is full", "refuses, says so, goes on when there is room")
async def test_with_the_disk_full_orders_are_refused_until_there_is_room(
    small_disk: Path, report: Report, kind: Kind, appendfsync: str
) -> None:
    server = Server(binary(kind), small_disk, appendfsync=appendfsync)
    with server.running():
        async with connected(server.settings) as ledger:
            books = await opened(ledger)
            for number in range(20):
                await books.accept(f"o-{number}")
            with _filled(small_disk):
                accepted, said = await accepted_until_refused(books, "full")
                refused = [await _refused(ledger, f"refused-{number}") for number in range(20)]
                ended = server._process is not None and server._process.poll() is not None
            begin_s = time.monotonic()
            if ended:
                # With `always` both servers end rather than answer what they could not write.
                server.start()
                books.epoch = await ledger.claim(ACCOUNT, "test")
                await ledger.admit(ACCOUNT, books.epoch)
            await _until_accepted(books)
            report(served_again_s=round(time.monotonic() - begin_s, 2))
            accepted |= {f"o-{number}" for number in range(20)} | {"room"}
            found = await check_books(ledger, ACCOUNT, accepted, lambda name: not name.startswith("refused"))
            report(**found.figures(), tried_when_full=20, refused_when_full=sum(refused))
            report(**{f"{kind}_{appendfsync}": "ends, to be started again" if ended else said})
    assert sum(refused) == 20
    found.assert_whole()


async def _refused(ledger: Ledger, name: str) -> bool:
    try:
        await ledger.reserve(order(name), BTC, "test")
    except LedgerUnavailable:
        return True
    return False


async def _until_accepted(books: Books, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            verdict = await books.reserve(order("room"))
        except LedgerUnavailable:
            assert time.monotonic() < deadline, "no order is accepted although there is room"
            await asyncio.sleep(0.05)
        else:
            assert verdict.accepted
            return
