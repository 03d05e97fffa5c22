"""How the exchange simulator's bytes leave it: one write an answer, and a connection that can be cut on purpose.

``uvicorn`` writes an answer's headers and its body apart; behind Nagle's algorithm and delayed acknowledgements that
would cost a client that waits for both some 40 ms. ASGI has no word for cutting a connection either, so each scope gets
one (``cut``) that closes the socket without another byte.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

CUT: Final = "cut"


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with Nagle's algorithm off and a way to cut the connection."""

    def connection_made(self, transport: Any) -> None:
        """Take the connection; see the module."""
        super().connection_made(_Joining(transport))  # type: ignore[arg-type]
        _no_delay(transport)

    def on_message_begin(self) -> None:
        """Give the request's scope its ``cut``."""
        super().on_message_begin()
        self.scope["extensions"] = {CUT: {"abort": self.transport.abort}}

    def on_response_complete(self) -> None:
        """An answer without a body (to HEAD) has its headers still held back."""
        flush = getattr(self.transport, "flush", None)
        if flush is not None:
            flush()
        super().on_response_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the bare connection on: WebSocket messages are one write each already."""
        self.transport = getattr(self.transport, "bare", self.transport)
        super().handle_websocket_upgrade()


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """WebSocket with a way to cut the connection."""

    def connection_made(self, transport: Any) -> None:
        """Take the connection over from HTTP."""
        super().connection_made(transport)
        _no_delay(transport)

    async def run_asgi(self) -> None:
        """Give the session's scope its ``cut`` and run it."""
        self.scope["extensions"] = {CUT: {"abort": self.transport.abort}}
        await super().run_asgi()


def cut(scope: MutableMapping[str, Any]) -> None:
    """Close the connection behind ``scope`` without another byte (nothing happens where there is none, as in tests)."""
    found: Callable[[], None] | None = (scope.get("extensions") or {}).get(CUT, {}).get("abort")
    if found is not None:
        found()


class _Joining:
    """A transport that holds an answer's headers back until its body comes."""

    def __init__(self, bare: Any) -> None:
        self.bare = bare
        self._headers = b""

    def write(self, data: bytes) -> None:
        """Write, unless this is a head that announces a body."""
        if not self._headers and data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n") and _has_body(data):
            self._headers = data
            return
        self.bare.write(self._headers + data)
        self._headers = b""

    def flush(self) -> None:
        """Write what was held back."""
        if self._headers:
            self.bare.write(self._headers)
            self._headers = b""

    def close(self) -> None:
        """Close after what was held back."""
        self.flush()
        self.bare.close()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's own."""
        return getattr(self.bare, name)


def _has_body(head: bytes) -> bool:
    return b"\r\ncontent-length: 0\r\n" not in head and not head.startswith((b"HTTP/1.1 1", b"HTTP/1.1 204"))


def _no_delay(transport: Any) -> None:
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
