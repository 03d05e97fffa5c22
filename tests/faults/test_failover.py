"""Fault 12: a primary with two replicas and three Sentinels loses the primary, or the network to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from cluster.ledger import Ledger, LedgerUnavailable
from conf.settings import RedisSettings
from tests.books import ACCOUNT, BTC, Books, order
from tests.faults.conftest import Report
from tests.faults.ledger_load import LedgerLoad, connected, ledger_load, opened
from tests.servers import KINDS, Group, Node, await_that
from tests.tcp_proxy import BLACK_HOLE, SOUND

pytestmark = [pytest.mark.faults, pytest.mark.anyio, pytest.mark.timeout(600)]

WATCH_S: Final = 0.2
TARGET: Final = "gap <= 5 s, lost 0, the old primary refuses"


@pytest.fixture
def group(tmp_path: Path, seed: int) -> Iterator[Group]:
    """Three servers in step and three Sentinels, Valkey and Redis in turn; a primary without a replica refuses."""
    folder = tmp_path / "servers"
    folder.mkdir()
    kind = KINDS[seed % len(KINDS)]
    with Group(
        kind, folder, appendfsync="always", min_replicas_to_write="1", min_replicas_max_lag="1"
    ).running() as one:
        yield one


@asynccontextmanager
async def watched(settings: RedisSettings, books: Books) -> AsyncIterator[None]:
    """As execution does: a server that has just become the primary takes orders only after it was looked at."""

    stopping = asyncio.Event()

    async def watch(ledger: Ledger) -> None:
        while not stopping.is_set():
            await asyncio.sleep(WATCH_S)
            with suppress(LedgerUnavailable):
                if "NOT_ADMITTED" in await ledger.watch(ACCOUNT, books.epoch):
                    await ledger.admit(ACCOUNT, books.epoch)
                await books.quote()

    async with connected(settings, 1.0) as ledger:
        books.ledger = ledger
        task = asyncio.create_task(watch(ledger))
        try:
            yield
        finally:
            stopping.set()
            await task


@pytest.mark.fault("12", "Sentinel failover: the primary SIGKILLed", TARGET)
async def test_a_failover_loses_nothing_that_was_acknowledged(
    group: Group, tmp_path: Path, report: Report, seed: int
) -> None:
    old = group.nodes[0]
    async with connected(group.settings()) as patient:
        books = await opened(patient)
        async with (
            watched(group.settings(), books),
            ledger_load([group.settings()] * 3, tmp_path, seed) as load,
        ):
            await load.until_served()
            await asyncio.sleep(1 + seed / 10)
            begin_s = time.monotonic()
            old.server.kill()
            await asyncio.to_thread(group.await_failover_from, old)
            report(sentinels_agree_s=round(time.monotonic() - begin_s, 2))
            await load.until_served()
            report(served_again_s=round(time.monotonic() - begin_s, 2))
            if seed < len(KINDS):
                # Sentinel takes ten seconds to tell it; two runs are enough to see that it does no harm till then.
                old.server.start()
                await asyncio.to_thread(_await_replica, old)
                await load.until_served()
            await load.finish()
            await _checked(load, report, group)


@pytest.mark.seeds(3)
@pytest.mark.fault("12", "Sentinel failover: the primary cut off, its clients cannot know", TARGET)
async def test_a_partition_loses_nothing_that_was_acknowledged(
    group: Group, tmp_path: Path, report: Report, seed: int
) -> None:
    old = group.nodes[0]
    # One of three clients stays with the old primary whatever the Sentinels say.
    servers = [group.settings(), group.settings(), group.settings_of(old)]
    async with connected(group.settings()) as patient:
        books = await opened(patient)
        async with watched(group.settings(), books), ledger_load(servers, tmp_path, seed) as load:
            await load.until_served()
            begin_s = time.monotonic()
            old.proxy.faults = BLACK_HOLE
            await asyncio.to_thread(group.await_failover_from, old)
            report(sentinels_agree_s=round(time.monotonic() - begin_s, 2))
            await load.until_served()
            report(served_again_s=round(time.monotonic() - begin_s, 2))
            alone = await _told_by(group.settings_of(old, wait_replicas=0))
            old.proxy.faults = SOUND
            await asyncio.to_thread(_await_replica, old)
            await load.until_served()
            await load.finish()
            report(old_primary_said=alone.split(":")[-1].strip()[:60])
            await _checked(load, report, group)
    assert "NOREPLICAS" in alone or "RECONCILING" in alone or "Not enough good replicas" in alone, alone


async def _checked(load: LedgerLoad, report: Report, group: Group) -> None:
    report(**load.figures())
    async with connected(group.settings()) as ledger:
        found = await load.books(ledger)
    report(**found.figures(), reserved_and_never_answered=found.unacknowledged)
    found.assert_whole()


async def _told_by(settings: RedisSettings) -> str:
    """What a server says to an order while nobody replicates from it."""
    async with connected(settings, 2.0) as ledger:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                verdict = await ledger.reserve(order("alone"), BTC, "test")
            except LedgerUnavailable as error:
                return str(error)
            # Until it has been alone for as long as a replica may be silent it does not know.
            assert verdict is not None
            await asyncio.sleep(0.1)
    raise AssertionError("the old primary went on taking orders alone")


def _await_replica(node: Node) -> None:
    await_that(lambda: node.role == "slave", "the old primary follows the new one", 60)
