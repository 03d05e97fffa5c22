"""The tools of the venue's fault tests can tell: each difference between exchange and ledger is found by name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.crash_points import Watch
from tests.execution_rig import ACCOUNT, buy, rig
from tests.faults.venue_load import sent_again_without_asking, venue_rig
from tests.servers import valkey

pytestmark = pytest.mark.anyio


async def test_the_comparison_finds_a_phantom_a_lost_order_and_a_wrong_book(tmp_path: Path) -> None:
    async with venue_rig(tmp_path) as made:
        await made.reserve(buy("mine", "ETH-USD", "0.5", "2500"))
        await made.agree()

        made.kill()
        await asyncio.to_thread(made.venue.create_order, buy("phantom", "ETH-USD", "0.5", "2500"))
        assert await made.disagreements() == ["the exchange has phantom, which nobody asked for"]

        made.accepted.append("phantom")
        assert await made.disagreements() == ["phantom: absent 0 here, OPEN 0 there"]
        made.accepted.remove("phantom")

        await made.reserve(buy("waiting", "ETH-USD", "0.5", "2500"))
        found = await made.disagreements()
        assert "waiting is RESERVED here and not at the exchange" in found
        assert "1 outbox entries are not finished" in found

        await made.ledger._direct("HINCRBY", f"tt:{{desk}}:{ACCOUNT}:book", "cash", "1")
        assert any(difference.startswith("cash: ") for difference in await made.disagreements())


async def test_a_second_attempt_without_a_look_up_is_found(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        async with rig(server, tmp_path) as made:
            made.begin()
            journal = made.lives[-1][1]
            await made.serving()
            made.kill()
            watch = Watch(None, journal)
            watch.meet("venue.create_order", "o-1")
            watch.note("VenueThrottled", "venue.create_order", "o-1")
            watch.meet("venue.create_order", "o-1")
            assert sent_again_without_asking(made) == []
            watch.note("VenueUnknown", "venue.create_order", "o-1")
            watch.meet("venue.order_by_client_id", "o-2")
            watch.meet("venue.create_order", "o-1")
            assert sent_again_without_asking(made) == ["o-1"]
            watch.meet("venue.order_by_client_id", "o-1")
            watch.meet("venue.create_order", "o-1")
            assert sent_again_without_asking(made) == ["o-1"]
