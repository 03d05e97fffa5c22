"""Fault 15 on the real desk: its ledger is emptied, or comes back with files older than what was acknowledged."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import pytest

from cluster import local
from cluster.anchors import Anchors
from cluster.ledger import Ledger
from conf.settings import load_secrets
from tests.faults.conftest import Report
from tests.faults.desk_load import ACCOUNT, ledger_process, settle, settled_books
from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

TRIED_S: Final = 8.0
ORDERS: Final = 20


def stop_ledger(desk: Desk) -> None:
    server = ledger_process(desk)
    server.kill()
    eventually(lambda: not server.is_running() or server.status() == "zombie", 20, "the ledger is gone")


def files_of(desk: Desk) -> Path:
    return desk.settings.state_dir / "valkey" / "appendonlydir"


@contextmanager
def flushed(desk: Desk, _: Path) -> Iterator[None]:
    """Emptied by a command while it runs; its files still have all that was before."""

    async def flush(ledger: Ledger) -> None:
        await ledger._direct("FLUSHALL")

    desk.ledger(flush)
    yield
    stop_ledger(desk)
    (log,) = [path for path in files_of(desk).glob("*.incr.aof") if b"FLUSHALL" in path.read_bytes()]
    whole = log.read_bytes()
    log.write_bytes(whole[: whole.rindex(b"*1\r\n$8\r\nFLUSHALL")])
    local.start_valkey(desk.settings)


@contextmanager
def files_gone(desk: Desk, folder: Path) -> Iterator[None]:
    """Started without its files."""
    with _other_files(desk, folder, None):
        yield


@contextmanager
def older_files(desk: Desk, folder: Path) -> Iterator[None]:
    """Started on a copy of its files made before the last orders."""
    with _other_files(desk, folder, folder / "older"):
        yield


@contextmanager
def _other_files(desk: Desk, folder: Path, other: Path | None) -> Iterator[None]:
    newest = folder / "newest"
    stop_ledger(desk)
    shutil.move(files_of(desk), newest)
    if other is not None:
        shutil.copytree(other, files_of(desk))
    local.start_valkey(desk.settings)
    yield
    stop_ledger(desk)
    shutil.rmtree(files_of(desk))
    shutil.move(newest, files_of(desk))
    local.start_valkey(desk.settings)


WAYS: Final[dict[str, Callable[[Desk, Path], AbstractContextManager[None]]]] = {
    "FLUSHALL": flushed,
    "files gone": files_gone,
    "older files": older_files,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.fault("15", "the desk's ledger is emptied or put back", "no order accepted until its state is back")
def test_a_desk_whose_ledger_forgot_takes_no_order(desk: Desk, tmp_path: Path, report: Report, way: str) -> None:
    _accepted(desk)
    settle(desk)
    _copy(desk, tmp_path / "older")
    accepted = _accepted(desk)
    settle(desk)
    desk.ledger(lambda ledger: _anchor(desk, ledger))
    with WAYS[way](desk, tmp_path):
        tried, taken = _try(desk)
    begin_s = time.monotonic()
    eventually(lambda: desk.submit(desk.resting()).status_code == 201, 180, "orders are taken again")
    report(served_again_s=round(time.monotonic() - begin_s, 1), orders_tried=tried, accepted_from_nothing=taken)
    books = settled_books(desk, accepted, accepted.__contains__)
    report(**books.figures(), ways_tried=1)
    assert taken == 0
    books.assert_whole()


def _accepted(desk: Desk) -> set[str]:
    bodies = [desk.resting() for _ in range(ORDERS)]
    replies = desk.submit_all(bodies, persist_s=60)
    assert all(reply is not None and reply.status_code == 201 for reply in replies)
    return {body["client_order_id"] for body in bodies}


def _try(desk: Desk) -> tuple[int, int]:
    """Ask for orders for a while, through both doors: (how many, how many were accepted)."""
    tried = taken = 0
    deadline = time.monotonic() + TRIED_S
    while time.monotonic() < deadline:
        for door in desk.doors:
            for reply in desk.submit_all([desk.resting() for _ in range(3)], door=door):
                tried += 1
                taken += reply is not None and reply.status_code == 201
        time.sleep(0.2)
    return tried, taken


def _copy(desk: Desk, to: Path) -> None:
    """The ledger's files as they are between two runs of it."""
    stop_ledger(desk)
    shutil.copytree(files_of(desk), to)
    local.start_valkey(desk.settings)
    eventually(lambda: desk.submit(desk.resting()).status_code == 201, 120, "orders are taken again")
    settle(desk)


async def _anchor(desk: Desk, ledger: Ledger) -> None:
    """What execution does each minute: note outside the server how far its audit has come."""
    anchors = Anchors.of(desk.settings, load_secrets(desk.settings))
    for account in (None, ACCOUNT):
        await anchors.write(ledger, account)
