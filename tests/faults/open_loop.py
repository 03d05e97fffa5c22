"""An open-loop generator of orders: they come at a constant rate whatever the desk does, each answer goes to a file.

A generator that waits for answers asks less while the desk stands still, and so hides the standing still. Here every
order has a time at which it is due; its latency counts from then. An order that was not decided is sent again with the
same id, within a budget that all orders share, so that a fault is not answered by a storm of repeats.

``python -m tests.faults.open_loop`` is the generator for HTTP, in a process of its own so that what a test does
meanwhile costs it nothing. A line of JSON (``Asked``) on standard input starts it, a number is a new rate, the end of
standard input ends it.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import urlsplit

import msgspec

DECIDED: Final = frozenset({"ACCEPTED", "DENIED", "CONFLICT"})
OUTCOMES: Final = {
    b"201": "ACCEPTED",
    b"422": "DENIED",
    b"429": "DENIED",
    b"409": "CONFLICT",
    b"503": "UNAVAILABLE",
}
BACKOFF_S: Final = (0.05, 1.0)
REPEATS_PER_ORDER: Final = 1.0
"""The shared budget: on average at most so many repeats a second for each order a second."""


class Answer(msgspec.Struct, frozen=True):
    """What became of one order; one line of the file. Times are UNIX seconds."""

    client_order_id: str
    due_s: float
    tries: int
    first: str
    """ACCEPTED, DENIED, CONFLICT; or not decided: UNAVAILABLE (503), BROKEN (connection), TIMEOUT, OTHER."""
    first_ms: float
    """From the time it was due to the end of its first try."""
    last: str
    at_s: float
    """When the last answer had come."""
    replayed: bool
    """Whether the last answer was a repeat of one given before: an earlier try had been decided."""
    slowest_ms: float
    """The longest single try, from its sending."""

    @property
    def accepted(self) -> bool:
        """Whether the desk has said yes, so that the order must be in its books from then on."""
        return self.last == "ACCEPTED"


@dataclass(frozen=True, slots=True)
class Tried:
    """One try: its outcome as in ``Answer.first``, and whether it was the repeat of an earlier answer."""

    outcome: str
    replayed: bool = False


Send = Callable[[str], Awaitable[Tried]]


class OpenLoop:
    """Sends order after order, ``rate_per_s`` of them, until told to stop."""

    def __init__(self, send: Send, name: str, rate_per_s: float, persist_s: float, file: Path, seed: int = 0) -> None:
        """``send(client_order_id)`` makes one try; the undecided is repeated until ``persist_s`` after it was due."""
        self._send = send
        self._name = name
        self._rate_per_s = rate_per_s
        self._persist_s = persist_s
        self._file: TextIO = file.open("a", buffering=1)
        self._random = random.Random(seed)
        self._next_repeat_s = 0.0
        self._stopping = asyncio.Event()

    def set_rate(self, rate_per_s: float) -> None:
        """From the next order on."""
        self._rate_per_s = rate_per_s

    def stop(self) -> None:
        """Send no new order; ``run`` returns when those under way have ended."""
        self._stopping.set()

    async def run(self) -> None:
        """Send until ``stop``, then wait for what is under way."""
        due_s, number = time.time(), 0
        async with asyncio.TaskGroup() as orders:
            while not self._stopping.is_set():
                await asyncio.sleep(max(0.0, due_s - time.time()))
                orders.create_task(self._one(f"{self._name}-{number}", due_s))
                number += 1
                due_s += 1 / self._rate_per_s
        self._file.close()

    async def _one(self, client_order_id: str, due_s: float) -> None:
        first, first_ms, slowest_ms, tries = "", 0.0, 0.0, 0
        while True:
            begin_s = time.time()
            tried = await self._send(client_order_id)
            now_s = time.time()
            tries += 1
            slowest_ms = max(slowest_ms, (now_s - begin_s) * 1000)
            if tries == 1:
                first, first_ms = tried.outcome, (now_s - due_s) * 1000
            if tried.outcome in DECIDED or now_s - due_s > self._persist_s:
                break
            await self._pause(tries)
        answer = Answer(
            client_order_id, due_s, tries, first, first_ms, tried.outcome, now_s, tried.replayed, slowest_ms
        )
        self._file.write(msgspec.json.encode(answer).decode() + "\n")

    async def _pause(self, tries: int) -> None:
        """Longer with each try and never in step with the others; and not before the shared budget allows it."""
        own_s = min(BACKOFF_S[0] * 2 ** (tries - 1), BACKOFF_S[1]) * self._random.uniform(0.5, 1.5)
        now_s = time.time()
        self._next_repeat_s = max(self._next_repeat_s, now_s) + 1 / (self._rate_per_s * REPEATS_PER_ORDER)
        await asyncio.sleep(max(own_s, self._next_repeat_s - now_s))


def read_answers(file: Path) -> list[Answer]:
    """Every complete line of the file, in the order in which the orders were due."""
    text = file.read_bytes() if file.exists() else b""
    lines = text[: text.rfind(b"\n") + 1].splitlines()
    return sorted((msgspec.json.decode(line, type=Answer) for line in lines), key=lambda answer: answer.due_s)


# -- over HTTP, in a process of its own --------------------------------------------------------------------------------


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the process is told in its first line."""

    url: str
    key: str
    file: str
    name: str
    bodies: list[dict[str, Any]]
    """Order n takes body n (from the start again after the last) and its own id."""
    rate_per_s: float
    persist_s: float = 60.0
    timeout_s: float = 5.0
    seed: int = 0


def main() -> None:
    """Read what is asked, send until standard input ends."""
    asked = msgspec.json.decode(sys.stdin.readline(), type=Asked)
    asyncio.run(_run(asked))


async def _run(asked: Asked) -> None:
    client = _Client(asked)

    async def send(client_order_id: str) -> Tried:
        number = int(client_order_id.rsplit("-", 1)[1])
        body = asked.bodies[number % len(asked.bodies)] | {"client_order_id": client_order_id}
        return await client.post(msgspec.json.encode(body))

    load = OpenLoop(send, asked.name, asked.rate_per_s, asked.persist_s, Path(asked.file), asked.seed)
    sending = asyncio.create_task(load.run())
    while line := await asyncio.to_thread(sys.stdin.readline):
        load.set_rate(float(line))
    load.stop()
    await sending
    client.close()


class _Client:
    """HTTP/1.1 at the cost of a few microseconds a request, as many connections as requests are under way.

    A client of comfort spends so much on hundreds of waiting requests that it would be measured instead of the desk.
    """

    def __init__(self, asked: Asked) -> None:
        parts = urlsplit(asked.url)
        self._address = parts.hostname or "", parts.port or 80
        self._timeout_s = asked.timeout_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._head = (
            f"POST /v1/orders HTTP/1.1\r\nhost: {parts.netloc}\r\nauthorization: Bearer {asked.key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()

    async def post(self, body: bytes) -> Tried:
        """One try, and what became of it."""
        writer = None
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await self._connection()
                writer.write(b"%s%d\r\n\r\n%s" % (self._head, len(body), body))
                head = await reader.readuntil(b"\r\n\r\n")
                fields = {n.lower(): v.strip() for n, _, v in (line.partition(b":") for line in head.split(b"\r\n"))}
                await reader.readexactly(int(fields[b"content-length"]))
        except TimeoutError:
            outcome, replayed = "TIMEOUT", False
        except (OSError, EOFError, KeyError):
            outcome, replayed = "BROKEN", False
        else:
            outcome, replayed = OUTCOMES.get(head[9:12], "OTHER"), fields.get(b"idempotent-replayed") == b"true"
            if fields.get(b"connection", b"").lower() != b"close":
                self._idle.append((reader, writer))
                return Tried(outcome, replayed)
        if writer is not None:
            writer.transport.abort()
        return Tried(outcome, replayed)

    def close(self) -> None:
        """Close the connections."""
        for _, writer in self._idle:
            writer.transport.abort()

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_connection(*self._address)


if __name__ == "__main__":
    main()
