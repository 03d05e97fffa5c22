"""Faults 13 and 19: the network between the ledger's clients and its server is slow, loses, resets, goes half-open."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.faults.conftest import Report
from tests.faults.ledger_load import REPLICAS, LedgerLoad, connected, ledger_load, opened
from tests.faults.open_loop import Answer
from tests.servers import Server
from tests.tcp_proxy import BLACK_HOLE, SOUND, Faults, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

STEADY_S: Final = 1.0
CONNECTIONS_MAX: Final = 2
"""Of one client: one for its pipelines, and one that is being replaced."""


def slowed(extra_ms: int) -> Faults:
    """A round trip that takes so much longer."""
    return Faults(delay_s=extra_ms / 2000)


NETWORKS: Final = [
    # name, faults, whether any order can be accepted meanwhile, seconds (whole set, short)
    pytest.param("+50 ms", slowed(50), True, (5.0, 1.0), marks=pytest.mark.fault("13", "network +50 ms", "errors 0")),
    pytest.param(
        "+200 ms", slowed(200), True, (5.0, 1.0), marks=pytest.mark.fault("13", "network +200 ms", "errors 0")
    ),
    pytest.param(
        "1 % reset",
        Faults(reset_share=0.01),
        True,
        (10.0, 1.0),
        marks=pytest.mark.fault("13", "1 % of requests reset the connection", "errors 0 after retry"),
    ),
    pytest.param(
        "black hole",
        BLACK_HOLE,
        False,
        (10.0, 3.0),
        marks=pytest.mark.fault("13", "black hole", "fails closed, no connection leaks"),
    ),
    pytest.param(
        "replies lost",
        Faults(drop_replies=True),
        False,
        (10.0, 3.0),
        marks=pytest.mark.fault(
            "13", "half-open: requests arrive, replies vanish", "fails closed, no connection leaks"
        ),
    ),
    pytest.param(
        "requests lost",
        Faults(drop_requests=True),
        False,
        (10.0, 3.0),
        marks=pytest.mark.fault("13", "half-open: requests vanish", "fails closed, no connection leaks"),
    ),
]


@pytest.mark.parametrize(("name", "faults", "passes", "seconds"), NETWORKS)
async def test_a_bad_network_loses_nothing_and_leaks_no_connection(
    server: Server,
    tmp_path: Path,
    report: Report,
    full: bool,
    name: str,
    faults: Faults,
    passes: bool,
    seconds: tuple[float, float],
) -> None:
    async with connected(server.settings) as sound:
        await opened(sound)
        with Proxy(server.settings.port) as proxy:
            far = [server.settings.model_copy(update={"port": proxy.port})] * REPLICAS
            async with ledger_load(far, tmp_path, seed=1) as load:
                await _steady(load)
                files, before = psutil.Process().num_fds(), proxy.open_connections
                broken_s = time.time()
                proxy.faults = faults
                most = await _watch(proxy, seconds[0] if full else seconds[1])
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
    server: Server, tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    wanted = 1000 if full else 50
    async with connected(server.settings) as sound:
        await opened(sound)
        with Proxy(server.settings.port, seed=seed) as proxy:
            far = [server.settings.model_copy(update={"port": proxy.port})] * REPLICAS
            async with ledger_load(far, tmp_path, seed, rate_per_s=200.0) as load:
                await _steady(load)
                # Half of the answers are lost, also those to the repeats.
                proxy.faults = Faults(cut_share=0.5)
                await load.until(lambda _: proxy.cut >= wanted, "enough answers are cut", 300)
                proxy.faults = SOUND
                report(served_again_s=await load.until_served())
                answers = await load.finish()
                report(**load.figures(), answers_cut=proxy.cut, found_by_repeating=sum(a.replayed for a in answers))
        found = await load.books(sound)
        report(**found.figures(), reserved_and_never_answered=found.unacknowledged)
    found.assert_whole()
    assert all(answer.accepted for answer in answers), "some orders were given up"
    assert proxy.cut >= wanted


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
