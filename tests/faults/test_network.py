"""Faults 13 and 19: the network between the ledger's clients and its server is slow, loses, resets, goes half-open."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from cluster.ledger import Ledger
from tests.faults.conftest import Report, durable_server
from tests.faults.ledger_load import REPLICAS, LedgerLoad, connected, ledger_load, opened
from tests.faults.open_loop import Answer
from tests.servers import KINDS, Kind, Server
from tests.tcp_proxy import BLACK_HOLE, SOUND, Faults, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

STEADY_S: Final = 1.0
CONNECTIONS_MAX: Final = 2
"""Of one client: one for its pipelines, and one that is being replaced."""


def slowed(extra_ms: int) -> Faults:
    """A round trip that takes so much longer."""
    return Faults(delay_s=extra_ms / 2000)


def bad(name: str, target: str, faults: Faults, kind: Kind, seconds: tuple[float, float], passes: bool) -> Any:
    """A row: what the network does, for how long (in the whole set, else), whether orders can be accepted meanwhile."""
    marks = [pytest.mark.fault("13", f"network: {name}", target)]
    # Outside the whole set one network that passes and one that does not are enough.
    marks += [pytest.mark.faults] if kind == "redis" else []
    return pytest.param(faults, kind, seconds, passes, id=f"{name}, {kind}", marks=marks)


CLOSED: Final = "fails closed, no connection leaks"
NETWORKS: Final = [
    bad("+50 ms", "errors 0", slowed(50), "valkey", (5, 1), passes=True),
    bad("+200 ms", "errors 0", slowed(200), "redis", (5, 1), passes=True),
    bad("1 % of requests reset", "errors 0 after retry", Faults(reset_share=0.01), "valkey", (10, 1), passes=True),
    bad("black hole for 10 s", CLOSED, BLACK_HOLE, "valkey", (10, 3), passes=False),
    bad("black hole for 10 s", CLOSED, BLACK_HOLE, "redis", (10, 3), passes=False),
    bad("half-open, answers vanish", CLOSED, Faults(drop_replies=True), "redis", (10, 3), passes=False),
    bad("half-open, requests vanish", CLOSED, Faults(drop_requests=True), "valkey", (10, 3), passes=False),
]


@pytest.mark.parametrize(("faults", "kind", "seconds", "passes"), NETWORKS)
async def test_a_bad_network_loses_nothing_and_leaks_no_connection(
    tmp_path: Path,
    report: Report,
    full: bool,
    faults: Faults,
    kind: Kind,
    seconds: tuple[float, float],
    passes: bool,
) -> None:
    with durable_server(kind, tmp_path) as server:
        await _through_a_bad_network(server, tmp_path, report, faults, seconds[0] if full else seconds[1], passes)


async def _through_a_bad_network(
    server: Server, folder: Path, report: Report, faults: Faults, duration_s: float, passes: bool
) -> None:
    async with connected(server.settings) as sound:
        await opened(sound)
        with Proxy(server.settings.port) as proxy:
            far = [server.settings.model_copy(update={"port": proxy.port})] * REPLICAS
            async with ledger_load(far, folder, seed=1) as load:
                await _steady(load)
                files, before = psutil.Process().num_fds(), proxy.open_connections
                broken_s = time.time()
                proxy.faults = faults
                most = await _watch(proxy, duration_s)
                mended_s = time.time()
                proxy.faults = SOUND
                report(served_again_s=await load.until_served())
                answers = await load.finish()
                after = proxy.open_connections
                report(**load.figures(), most_connections=most, connections_before=before, connections_after=after)
                left = psutil.Process().num_fds() - files
                accepted = [a for a in answers if a.accepted and broken_s + 0.1 < a.at_s < mended_s]
        found = await load.books(sound)
        report(**found.figures(), reserved_and_never_answered=found.unacknowledged, accepted_meanwhile=len(accepted))
    found.assert_whole()
    assert all(answer.accepted for answer in answers), "some orders were given up"
    assert bool(accepted) is passes
    # Per client: its pipelines' connection, one being opened anew. The proxy counts what only one side has closed too.
    assert after <= REPLICAS * CONNECTIONS_MAX
    assert left <= 2 * REPLICAS * CONNECTIONS_MAX, "files stay open"


@pytest.mark.fault("19", "answers cut off after execution", "1,000 cut, duplicated 0")
async def test_answers_cut_off_after_execution_duplicate_nothing(
    tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    wanted = 1000 if full else 50
    with durable_server(KINDS[seed % len(KINDS)], tmp_path) as server:
        async with connected(server.settings) as sound:
            await opened(sound)
            answers, cut = await _answers_cut(server, tmp_path, report, wanted, seed, sound)
    assert all(answer.accepted for answer in answers), "some orders were given up"
    assert cut >= wanted


async def _answers_cut(
    server: Server, folder: Path, report: Report, wanted: int, seed: int, sound: Ledger
) -> tuple[list[Answer], int]:
    """Orders while half of the answers are lost, also those to the repeats; what was answered, how many were cut."""
    with Proxy(server.settings.port, seed=seed) as proxy:
        far = [server.settings.model_copy(update={"port": proxy.port})] * REPLICAS
        async with ledger_load(far, folder, seed, rate_per_s=200.0) as load:
            await _steady(load)
            proxy.faults = Faults(cut_share=0.5)
            await load.until(lambda _: proxy.cut >= wanted, "enough answers are cut", 300)
            proxy.faults = SOUND
            report(served_again_s=await load.until_served())
            answers = await load.finish()
            report(**load.figures(), answers_cut=proxy.cut, found_by_repeating=sum(a.replayed for a in answers))
        found = await load.books(sound)
        report(**found.figures(), reserved_and_never_answered=found.unacknowledged)
        found.assert_whole()
        return answers, proxy.cut


async def _steady(load: LedgerLoad) -> None:
    """A second in which every order is accepted at once."""

    def steady(answers: list[Answer]) -> bool:
        since_s = time.time() - STEADY_S
        late = [a for a in answers if a.due_s >= since_s]
        return bool(late) and answers[0].due_s < since_s and all(a.first == "ACCEPTED" for a in late)

    await load.until(steady, "a steady second")


async def _watch(proxy: Proxy, duration_s: float) -> int:
    """Let the fault last; the most connections there were meanwhile."""
    most, end_s = 0, time.monotonic() + duration_s
    while time.monotonic() < end_s:
        most = max(most, proxy.open_connections)
        await asyncio.sleep(0.05)
    return most
