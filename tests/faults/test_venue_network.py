"""Faults 19 and 21: the connection to the venue is lost after the venue has accepted, or does not work at all."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.faults.conftest import Report
from tests.faults.venue_load import VenueLoad, outcome, sent_again_without_asking, unknown_met, venue_rig
from tests.tcp_proxy import BLACK_HOLE, SOUND, Faults, Proxy

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

ACCEPT_THEN_DROP: Final = {"match": {"method": "POST", "path": "/orders"}, "fault": "accept_then_drop", "share": 0.5}


def _proxied(stack: ExitStack, proxies: list[Proxy], seed: int) -> object:
    def between(port: int) -> int:
        proxies.append(stack.enter_context(Proxy(port, seed=seed)))
        return proxies[0].port

    return between


@pytest.mark.fault("19", "the venue accepts and its answer is lost", "1,000 lost, duplicated 0")
async def test_answers_of_the_venue_lost_after_it_accepted_duplicate_nothing(
    tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    wanted = 1_000 if full else 20
    async with venue_rig(tmp_path) as made:
        made.exchange.faults(ACCEPT_THEN_DROP)
        load = VenueLoad(made, seed, 60.0 if full else 30.0)
        running = asyncio.create_task(load.run())
        while made.exchange.struck() < wanted:
            assert not running.done(), running
            await asyncio.sleep(0.1)
        load.stop()
        await running
        report(answers_lost=made.exchange.struck())
        made.exchange.faults()
        await outcome(made, report)
        assert sent_again_without_asking(made) == []
        assert await unknown_met(made) > 0


@pytest.mark.fault("19", "the connection to the venue cut after its answer began", "duplicated 0")
@pytest.mark.seeds(3)
async def test_connections_cut_under_the_venues_answers_duplicate_nothing(
    tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    wanted = 200 if full else 10
    proxies: list[Proxy] = []
    with ExitStack() as stack:
        async with venue_rig(tmp_path, between=_proxied(stack, proxies, seed)) as made:
            (proxy,) = proxies
            proxy.faults = Faults(cut_share=0.1)
            load = VenueLoad(made, seed, 20.0)
            running = asyncio.create_task(load.run())
            while proxy.cut < wanted:
                assert not running.done(), running
                await asyncio.sleep(0.1)
            load.stop()
            await running
            report(answers_cut=proxy.cut)
            proxy.faults = SOUND
            await outcome(made, report)
            assert sent_again_without_asking(made) == []


@pytest.mark.fault("21", "the network to the venue", "no crash, no phantom order, equal again in 5 s")
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(BLACK_HOLE, id="a black hole"),
        pytest.param(Faults(drop_replies=True), id="half-open", marks=pytest.mark.faults),
        pytest.param(Faults(refuse=True), id="refused", marks=pytest.mark.faults),
        pytest.param(Faults(reset_share=0.3), id="resets", marks=pytest.mark.faults),
        pytest.param(Faults(delay_s=0.3), id="slow", marks=pytest.mark.faults),
    ],
)
async def test_a_bad_network_to_the_venue_makes_no_phantom(
    tmp_path: Path, report: Report, full: bool, faults: Faults
) -> None:
    proxies: list[Proxy] = []
    with ExitStack() as stack:
        async with venue_rig(tmp_path, between=_proxied(stack, proxies, 1)) as made:
            load = VenueLoad(made, 1, 10.0)
            running = asyncio.create_task(load.run())
            await asyncio.sleep(1.0)
            proxies[0].faults = faults
            await asyncio.sleep(10.0 if full else 3.0)
            proxies[0].faults = SOUND
            if faults.refuse:
                proxies[0].reset()
            load.stop()
            await running
            await outcome(made, report)
            assert sent_again_without_asking(made) == []
