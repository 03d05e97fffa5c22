"""Reading an order's body: at once where it is there, in pieces, late, too late, too long, and not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cluster.risk import ORDER_BYTES_MAX
from serve_apps import orders
from serve_apps.orders import _body
from serve_apps.problem import Problem

Message = dict[str, Any]
DISCONNECT: Message = {"type": "http.disconnect"}


def piece(body: bytes = b"", more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def receiving(*messages: Message, waits: bool) -> Callable[[], Awaitable[Message]]:
    """The messages one by one; ``waits``: each of them only after others have had their turn, twice."""
    left = list(messages)

    async def receive() -> Message:
        for _ in range(2 if waits else 0):
            await asyncio.sleep(0)
        return left.pop(0)

    return receive


BODIES: list[tuple[list[Message], bytes]] = [
    ([piece(b"{}")], b"{}"),
    ([piece()], b""),
    ([{"type": "http.request"}], b""),
    ([piece(b"a", more=True), piece(b"b", more=True), piece(b"c")], b"abc"),
    ([piece(b"", more=True), piece(b"x" * ORDER_BYTES_MAX)], b"x" * ORDER_BYTES_MAX),
]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("messages", "body"), BODIES)
def test_a_body_is_all_its_pieces(messages: list[Message], body: bytes, waits: bool) -> None:
    assert asyncio.run(_body(receiving(*messages, waits=waits))) == body


REFUSED: list[tuple[list[Message], str]] = [
    ([DISCONNECT], "INCOMPLETE_BODY"),
    ([piece(b"{", more=True), DISCONNECT], "INCOMPLETE_BODY"),
    ([piece(b"x" * (ORDER_BYTES_MAX + 1))], "BODY_TOO_LARGE"),
    ([piece(b"x" * ORDER_BYTES_MAX, more=True), piece(b"x")], "BODY_TOO_LARGE"),
]


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("messages", "code"), REFUSED)
def test_what_is_no_whole_body_is_refused(messages: list[Message], code: str, waits: bool) -> None:
    with pytest.raises(Problem) as caught:
        asyncio.run(_body(receiving(*messages, waits=waits)))
    assert caught.value.code == code


@pytest.mark.parametrize("first", [[], [piece(b"{", more=True)]])
def test_a_body_that_does_not_come_is_not_waited_for_long(
    first: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "BODY_TIMEOUT_S", 0.01)
    left, ended = list(first), []

    async def receive() -> Message:
        if left:
            return left.pop(0)
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError("nothing ever comes")

    with pytest.raises(Problem) as caught:
        asyncio.run(_body(receive))
    assert (caught.value.code, ended) == ("BODY_TOO_SLOW", [True])


@pytest.mark.parametrize("waits", [False, True])
def test_an_error_of_the_server_comes_through_as_it_is(waits: bool) -> None:
    async def receive() -> Message:
        if waits:
            await asyncio.sleep(0)
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError, match="gone"):
        asyncio.run(_body(receive))


def test_a_caller_that_is_cancelled_while_it_waits_leaves_nothing_running() -> None:
    ended = []

    async def receive() -> Message:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)
        raise AssertionError("nothing ever comes")

    async def cancelled() -> None:
        task = asyncio.create_task(_body(receive))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(cancelled())
    assert ended == [True]


def test_what_is_waited_for_gets_its_result_and_not_a_later_one() -> None:
    async def answered() -> bytes:
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        async def receive() -> Message:
            return await future

        asyncio.get_running_loop().call_soon(future.set_result, piece(b"late"))
        return await _body(receive)

    assert asyncio.run(answered()) == b"late"
