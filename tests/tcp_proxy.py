"""A TCP proxy that spoils the network between a client and a server on this machine, as a test says and while it runs.

``with Proxy(port_of_the_server) as proxy:`` listens on ``proxy.port``. What it does to bytes is ``proxy.faults``, which
may be replaced at any time and from any thread; ``proxy.reset()`` and ``proxy.cut_replies(n)`` act once. The proxy runs
on a thread with an event loop of its own, so tests may be synchronous or asynchronous.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

CHUNK_BYTES: Final = 65_536
SLOW_CHUNK_BYTES: Final = 1_024
# Closing with these sends RST instead of FIN and forgets what was not sent yet.
_RESET: Final = struct.pack("ii", 1, 0)
_Queue = asyncio.Queue[tuple[float, bytes]]


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to bytes on their way; the default is a sound network.

    ``drop_requests`` (client to server) and ``drop_replies`` lose bytes and FINs while both ends keep their
    connections: one of them is a half-open connection, both are a black hole. A stream that has lost bytes is never
    continued: it stays dead until a ``reset()`` or the end of the fault, which resets it.
    ``reset_share`` and ``cut_share`` (0 to 1) are the probabilities that a request is lost and its connection reset,
    and that a request is delivered, its reply lost and its connection reset; with ``cut_after`` only replies to
    requests that hold these bytes are, so that what opens a connection is not in the way. ``delay_s`` is each way.
    """

    delay_s: float = 0.0
    bandwidth_bytes_per_s: float | None = None
    drop_requests: bool = False
    drop_replies: bool = False
    reset_share: float = 0.0
    cut_share: float = 0.0
    cut_after: bytes = b""
    refuse: bool = False


SOUND: Final = Faults()
BLACK_HOLE: Final = Faults(drop_requests=True, drop_replies=True)


class Proxy:
    """Stands between clients and ``127.0.0.1:target_port``; ``seed`` decides what the shares hit."""

    def __init__(self, target_port: int, port: int = 0, seed: int = 1) -> None:
        """Choose a free port where none is given; nothing runs before ``start``."""
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self.cut = 0
        self._faults = SOUND
        self._cuts_left = 0
        self._random = random.Random(seed)
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.port}", daemon=True)

    @property
    def faults(self) -> Faults:
        """What happens to bytes from now on."""
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        self._faults = faults
        self._in_loop(self._reset_broken)

    @property
    def open_connections(self) -> int:
        """Connections that neither side has closed."""
        return len(self._links)

    def cut_replies(self, count: int) -> None:
        """Deliver the next ``count`` requests, lose their replies and reset their connections."""
        self._cuts_left = count

    def reset(self) -> None:
        """Reset every open connection, both ways."""
        self._in_loop(self._reset_all)

    def start(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Reset what is open and end the thread."""
        self._in_loop(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- on the proxy's own thread -------------------------------------------------------------------------------------

    def _in_loop(self, act: Callable[[], object]) -> None:
        """Do it on the proxy's thread and wait until it is done."""
        if not self._thread.is_alive():
            return
        done = threading.Event()

        def run() -> None:
            try:
                act()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(run)
        done.wait(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, sock=self._listener)
        await self._end.wait()
        # A server closed while it accepts a connection leaves that one open for ever (Python 3.11): first no more are
        # accepted, then what is on its way becomes a link and is reset; a turn of the loop later its socket is closed.
        self._loop.remove_reader(self._listener)
        turns_left = 5
        while turns_left > 0:
            self._reset_all()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            turns_left = 5 if others else turns_left - 1
            await asyncio.sleep(0)
        server.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(self, reader, writer)
        self._links.add(link)
        if self._faults.refuse:
            link.end()
        else:
            link.start(self._target_port)

    def _reset_all(self) -> None:
        for link in list(self._links):
            link.reset()

    def _reset_broken(self) -> None:
        for link in list(self._links):
            if link.lost and not (self._faults.drop_requests or self._faults.drop_replies):
                link.reset()

    def forget(self, link: _Link) -> None:
        """It is no longer open."""
        self._links.discard(link)

    def hit(self, share: float) -> bool:
        """Whether chance strikes."""
        return share > 0 and self._random.random() < share

    def take_cut(self, request: bytes) -> bool:
        """Whether the reply to this request (what was last read of it) is to be lost."""
        if self._faults.cut_after not in request:
            return False
        if self._cuts_left > 0:
            self._cuts_left -= 1
        elif not self.hit(self._faults.cut_share):
            return False
        self.cut += 1
        return True


class _Link:
    """One connection of a client and its counterpart to the server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.lost: set[str] = set()  # the ways on which bytes were lost
        self._proxy = proxy
        self._client = (reader, writer)
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked = b""

    def start(self, target_port: int) -> None:
        """Begin to carry bytes both ways, until both ends have closed or the link is reset."""
        self._task = asyncio.create_task(self._carry(target_port))
        self._task.add_done_callback(self._done)

    def reset(self) -> None:
        """Close both connections with RST."""
        if self._task is not None:
            self._task.cancel()
        self.end()

    def _done(self, task: asyncio.Task[None]) -> None:
        # Either end is gone, or the test is over: there is nobody to tell what went wrong.
        if not task.cancelled():
            task.exception()
        self.end()

    async def _carry(self, target_port: int) -> None:
        self._server = await asyncio.open_connection("127.0.0.1", target_port)
        ways = ("requests", self._client[0], self._server[1]), ("replies", self._server[0], self._client[1])
        pieces = []
        for way, reader, writer in ways:
            queue: _Queue = asyncio.Queue(64)
            pieces += [self._take(way, reader, queue), self._give(queue, writer)]
        tasks = [asyncio.create_task(piece) for piece in pieces]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def end(self) -> None:
        """Close what is still open with RST."""
        self._proxy.forget(self)
        for _, writer in (self._client, self._server or self._client):
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _take(self, way: str, reader: asyncio.StreamReader, queue: _Queue) -> None:
        """Read one way, lose what is to be lost, stamp the rest with the time it is due."""
        loop, proxy, requests = asyncio.get_running_loop(), self._proxy, way == "requests"
        while True:
            slow = proxy.faults.bandwidth_bytes_per_s is not None
            chunk = await reader.read(SLOW_CHUNK_BYTES if slow else CHUNK_BYTES)
            faults = proxy.faults
            if faults.drop_requests if requests else faults.drop_replies:
                self.lost.add(way)
            elif chunk and (proxy.hit(faults.reset_share) if requests else proxy.take_cut(self._asked)):
                self.reset()
                return
            if requests:
                self._asked = chunk
            if way not in self.lost:
                await queue.put((loop.time() + faults.delay_s, chunk))
            if not chunk:
                return

    async def _give(self, queue: _Queue, writer: asyncio.StreamWriter) -> None:
        """Write each chunk when it is due, as fast as the bandwidth allows; empty = the other end has closed."""
        loop, proxy = asyncio.get_running_loop(), self._proxy
        while True:
            due_s, chunk = await queue.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if bandwidth := proxy.faults.bandwidth_bytes_per_s:
                await asyncio.sleep(len(chunk) / bandwidth)
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()
