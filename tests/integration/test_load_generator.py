"""The benchmarks' load generator tells the truth: a stall of the server shows in everything that was due meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from cluster.processes import choose_ports
from tests.bench.load import Measured, closed_loop, open_loop, percentile_ms

pytestmark = pytest.mark.anyio

STALL_S: Final = 1.0
REQUEST: Final = b"GET / HTTP/1.1\r\n\r\n"


@asynccontextmanager
async def server(stall_at_s: float = 1e9, answers_at_most: int = 10**9) -> AsyncIterator[int]:
    """Answers at once, except that it does nothing for a second from a time on, or hangs up after so many answers."""
    (port,) = choose_ports(1)
    loop = asyncio.get_running_loop()
    stall_from_s = loop.time() + stall_at_s
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        while answered < answers_at_most and await reader.readline():
            await reader.readline()
            if stall_from_s <= loop.time() < stall_from_s + STALL_S:
                await asyncio.sleep(stall_from_s + STALL_S - loop.time())
            answered += 1
            writer.write(b"HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", port):
        yield port


async def test_an_open_loop_counts_from_the_time_it_meant_to_send() -> None:
    """Ten users at ten requests a second: the stall takes a third of the run, so its half is felt by a sixth of all."""
    warm = Measured()
    async with server(stall_at_s=1.5) as port:
        measured = await open_loop(port, 10, 0.1, 3.0, lambda _: REQUEST, warm, warm_s=0.5)
    summary = measured.summary(good=201)
    assert (summary["requests"], summary["errors"]) == (300, 0)
    assert warm.done == 50
    assert percentile_ms(measured.histogram, 100 * 5 / 6) > 350
    assert measured.histogram.get_max_value() / 1e6 > 0.85


async def test_a_closed_loop_does_not_and_that_is_why_there_is_the_other() -> None:
    async with server(stall_at_s=1.5) as port:
        measured = await closed_loop(port, 10, 2.0, lambda _: REQUEST, warm_s=0.5)
    assert measured.histogram.get_max_value() / 1e6 > 0.85
    assert percentile_ms(measured.histogram, 99) < 350
    assert measured.unevenness() > 0.3


async def test_what_is_never_answered_is_an_error() -> None:
    async with server(answers_at_most=20) as port:
        measured = await open_loop(port, 5, 0.1, 1.0, lambda _: REQUEST, Measured(), warm_s=0.0)
    summary = measured.summary(good=201)
    assert 20 <= summary["requests"] < 30
    assert summary["requests"] + summary["errors"] == 50


async def test_every_request_of_an_open_loop_has_a_number_of_its_own() -> None:
    numbers: list[int] = []

    def request(number: int) -> bytes:
        numbers.append(number)
        return REQUEST

    async with server() as port:
        await open_loop(port, 7, 0.1, 1.0, request, Measured(), warm_s=0.2)
    assert len(numbers) == len(set(numbers)) == 7 * 12
