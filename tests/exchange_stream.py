"""A client of the simulator's WebSocket and of its REST paths with the real SDK, over verified TLS: for tests only."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from websockets.asyncio.client import ClientConnection, connect

from tests.simulator import Simulator

WAIT_S: Final = 12.0
_OPEN_S_MAX: Final = 10.0
_CLOSE_S_MAX: Final = 0.2
_Result = TypeVar("_Result")


class _Kept(ClientConnection):
    """Keeps its socket, which a TLS transport that has come to its end no longer tells."""

    socket: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.socket = transport.get_extra_info("socket")


class Connection:
    """A WebSocket connection that is read and written by one thread of its own.

    The library's own blocking client reads in one thread and writes in another; Python 3.11 lets both into one TLS
    connection at once, and about one handshake in fifty then never ends.
    """

    def __init__(self, simulator: Simulator, path: str = "") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stream", daemon=True)
        self._thread.start()
        context = ssl.create_default_context(cafile=str(simulator.state_dir / "ca.pem"))
        try:
            self._bare = self._run(self._open(f"wss://{simulator.host_port}{path}", context))
        except BaseException:
            self._end()
            raise

    def recv(self, timeout: float) -> str | bytes:
        """The next message; raises ``TimeoutError`` or ``websockets.ConnectionClosed``."""
        return self._run(asyncio.wait_for(self._bare.recv(), timeout))

    def send(self, text: str) -> None:
        """Send one message."""
        self._run(self._bare.send(text))

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._thread.is_alive():
            self._run(self._shut())
            self._end()

    async def _open(self, url: str, context: ssl.SSLContext) -> _Kept:
        times: dict[str, Any] = {"open_timeout": _OPEN_S_MAX, "close_timeout": _CLOSE_S_MAX}
        opening = connect(url, ssl=context, create_connection=_Kept, **times)
        try:
            await opening
        except BaseException:
            await self._free(getattr(opening, "connection", None))
            raise
        assert isinstance(opening.connection, _Kept)
        return opening.connection

    async def _shut(self) -> None:
        await self._bare.close()
        await self._free(self._bare)

    @staticmethod
    async def _free(connection: ClientConnection | None) -> None:
        """Wait until the socket is closed; left behind, as one that was refused once was, it fails some later test."""
        if isinstance(connection, _Kept) and connection.socket is not None:
            connection.transport.abort()
            while connection.socket.fileno() != -1:
                await asyncio.sleep(0)

    def _run(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S + _OPEN_S_MAX)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()
        self._loop.close()


class Stream:
    """A WebSocket client that keeps what it received."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator = simulator
        self.connection = Connection(simulator)
        self.seen: list[dict[str, Any]] = []

    def send(self, **message: Any) -> None:
        self.connection.send(json.dumps(message))

    def subscribe(self, channel: str, *product_ids: str, jwt: str | None = None) -> None:
        token = {} if jwt is None else {"jwt": jwt}
        self.send(type="subscribe", channel=channel, product_ids=list(product_ids), **token)

    def until(self, holds: Any, what: str) -> dict[str, Any]:
        """The first message of which ``holds`` is true, from now on."""
        deadline = time.monotonic() + WAIT_S
        while (left := deadline - time.monotonic()) > 0:
            message = json.loads(self.connection.recv(timeout=left))
            self.seen.append(message)
            if holds(message):
                return dict(message)
        raise AssertionError(f"no {what} within {WAIT_S} s: {self.seen[-3:]}")

    def channel(self, name: str, kind: str | None = None) -> dict[str, Any]:
        """The next message of a channel (of a type)."""

        def holds(message: dict[str, Any]) -> bool:
            if message.get("channel") != name:
                return False
            return kind is None or message["events"][0]["type"] == kind

        return self.until(holds, f"{name} {kind}")

    def order(self, **wanted: Any) -> dict[str, Any]:
        """The next user message's order with these fields."""

        def holds(message: dict[str, Any]) -> bool:
            orders = [o for event in message.get("events", []) for o in event.get("orders", [])]
            return any(all(order[k] == v for k, v in wanted.items()) for order in orders)

        message = self.until(holds, str(wanted))
        return dict(message["events"][0]["orders"][0])


def token(simulator: Simulator, file: str = "cdp_key.json") -> str:
    """A token for one WebSocket message, signed by the SDK."""
    from coinbase.jwt_generator import build_ws_jwt

    key = json.loads((simulator.state_dir / file).read_text())
    return str(build_ws_jwt(key["name"], key["privateKey"]))


def client(simulator: Simulator, file: str = "cdp_key.json") -> Any:
    """The SDK's own REST client with one of the simulator's keys; the caller closes its session."""
    from coinbase.rest import RESTClient

    key = json.loads((simulator.state_dir / file).read_text())
    made = RESTClient(key["name"], key["privateKey"], base_url=simulator.host_port, timeout=10)
    made.session.trust_env = False
    made.session.verify = str(simulator.state_dir / "ca.pem")
    return made
