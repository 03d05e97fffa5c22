"""A port of the replicas' own beside Serve's: every replica on a node listens on it and the kernel spreads connections.

Serve's way to a replica (HAProxy, then its wrapper around each request) costs an order more than reading, checking
and reserving it together: tests/bench/bench_orders.py measures both ways in one run. Callers that send many orders
use this port; everybody else, and everything that must find a replica on another node, uses Serve's.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

DRAIN_TIMEOUT_S: Final = 3
IDLE_TIMEOUT_S: Final = 90
# A request's line and headers; HAProxy on Serve's way allows 16 KB.
HEAD_BYTES_MAX: Final = 32_768
HEAD_TIMEOUT_S: Final = 5.0
# Bodies are bounded by the application long before; this ends what nobody reads, such as trailers without end.
MESSAGE_BYTES_MAX: Final = 16_000_000
# How long the rest of a request that was answered early is still taken and thrown away, so that its sender, busy
# writing, gets to read the answer instead of a reset connection.
LINGER_S: Final = 3.0


class Listener:
    """An HTTP server for one ASGI application on a shared port."""

    def __init__(self, app: Any, port: int) -> None:
        """Serve ``app`` on ``port`` of this machine once ``open`` is called."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            http=BoundedProtocol,
            ws="none",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            # A line for every stranger's broken request is a way to fill the disk.
            log_level="error",
            server_header=False,
            timeout_keep_alive=IDLE_TIMEOUT_S,
            timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
            backlog=4096,
        )
        self._port = port
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen. Raises ``OSError`` where a program that does not share it has the port."""
        shared = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            shared.bind(("0.0.0.0", self._port))  # noqa: S104 - as Serve's own port; every route needs a key
        except OSError:
            shared.close()
            raise
        self._task = asyncio.create_task(self._server.serve(sockets=[shared]))

    async def close(self) -> None:
        """Take no new connection, finish what has begun, and end."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP with an end to everything a caller can draw out: by itself it would read a head for ever."""

    _in_head = False
    _in_message = False
    # Bytes since the piece in which the message began; that piece itself is bounded by how much one read takes.
    _size = 0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection on which nothing ever comes is as idle as one between two requests."""
        super().connection_made(transport)
        self._idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller or we hung up."""
        self._end_after(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Nearly always a whole request comes in one piece; what does not is counted and timed."""
        if self._in_message:
            self._size += len(data)
        super().data_received(data)
        if self._in_message:
            self._await_rest()
        elif self.timeout_keep_alive_task is None and (self.cycle is None or self.cycle.response_complete):
            # What came was no request, such as an empty line or the rest of one answered early.
            self._idle()

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head = self._in_message = True
        self._size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those after the body nobody has asked for."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; from here on the application watches the time."""
        self._in_head = False
        self._end_after(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The whole request is there."""
        self._in_message = False
        self._end_after(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer given before the whole request has come: its rest is waited for a little."""
        super().on_response_complete()
        if self._in_message and not self._in_head:
            self._end_after(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """The bytes are no HTTP. Requests before them still get their answers, and no refusal in the place of one."""
        own_body = self._in_message and not self._in_head and not self.pipeline
        if self.cycle is None or self.cycle.response_complete or own_body:
            super().send_400_response(msg)
        else:
            self.cycle.keep_alive = False

    def _await_rest(self) -> None:
        if self._in_head and self._size > HEAD_BYTES_MAX:
            self._refuse(431)
        elif self._size > MESSAGE_BYTES_MAX:
            self._refuse(413)
        elif self._in_head and self._deadline is None:
            self._end_after(HEAD_TIMEOUT_S)

    def _refuse(self, status: int) -> None:
        # Where an answer to an earlier request is still to come, the refusal would be taken for it.
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(IDLE_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _end_after(self, timeout_s: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if timeout_s is not None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(timeout_s, self._too_late)

    def _too_late(self) -> None:
        self._refuse(408) if self._in_head else self.transport.close()
