"""Waiting for what the channels say, up to a time."""

from __future__ import annotations

import asyncio

import pytest

from serve_apps.live_state import heard_or_later

pytestmark = pytest.mark.anyio


async def test_it_returns_when_the_event_is_set_and_when_the_time_is_over() -> None:
    wake = asyncio.Event()
    wake.set()
    await heard_or_later(wake, 60)
    assert not wake.is_set()
    await heard_or_later(wake, 0)
    waiting = asyncio.create_task(heard_or_later(wake, 60))
    await asyncio.sleep(0)
    wake.set()
    await waiting
    assert not wake.is_set()


async def test_a_cancellation_in_the_turn_in_which_it_is_woken_is_not_swallowed() -> None:
    # It was: execution, its ledger gone, told its parts to end just as the venue spoke; the part that settles orders
    # went on for ever and the rest waited for it, so that nothing was executed until somebody restarted the desk.
    for turns in range(4):
        wake = asyncio.Event()
        waiting = asyncio.create_task(heard_or_later(wake, 60))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        wake.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        if waiting.done():
            break
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
