"""The venue's channels for as long as one listens: supervised WebSocket connections over verified TLS.

Not the SDK's client: that one verifies no certificate, ends silently when the venue closes, and dies of an exception in
a callback. Here nothing the network does ends or disturbs whoever listens: a connection that is closed, silent, out of
sequence or not fully subscribed is replaced, for ever, and told as ``Lost``, then ``Connected``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from cluster.venue_channels import (
    HEARTBEATS,
    USER,
    Beat,
    Candle,
    Connected,
    Gap,
    Lost,
    MarketFill,
    Message,
    OrderUpdate,
    StreamError,
    StreamEvent,
    read_message,
)
from cluster.venue_endpoint import EndpointError, SafeLog, redacted
from cluster.venue_shapes import Quote, product_path

if TYPE_CHECKING:
    from cluster.venue import Venue

__all__ = [
    "Beat",
    "Candle",
    "Connected",
    "Gap",
    "Lost",
    "MarketFill",
    "OrderUpdate",
    "Quote",
    "StreamError",
    "StreamEvent",
    "VenueStream",
]

# Far above any message of the channels read here (a snapshot of 50 orders has some 40 kB).
MESSAGE_BYTES_MAX: Final = 4 * 2**20
EVENTS_WAITING_MAX: Final = 10_000
BACKOFF_S: Final = (0.2, 5.0)
CLOSE_S_MAX: Final = 0.5
# A connection that lived this long was a good one: the next begins with the shortest wait again.
_GOOD_S: Final = 10.0
_GRACE_S: Final = 0.05
_PRIVATE: Final = frozenset({USER, "futures_balance_summary"})

_log = logging.getLogger(__name__)
_wire_log = logging.getLogger(f"{__name__}.wire")


class VenueStream:
    """The channels of one venue as one sequence of events; made once, listened to once, on one event loop.

    ``user`` has a connection of its own, as on Coinbase (another host), and tells of all products. Heartbeats are
    always subscribed. Raises ``EndpointError`` where the venue has no such channels or the key is missing,
    ``VenueNotFound`` for a product that is none.
    """

    def __init__(
        self,
        venue: Venue,
        channels: Sequence[str],
        product_ids: Sequence[str],
        *,
        silent_s: float = 3.0,
        open_timeout_s: float = 5.0,
    ) -> None:
        self._venue = venue
        self._products = [product_path(name) for name in dict.fromkeys(product_ids)]
        self._silent_s, self._open_timeout_s = silent_s, open_timeout_s
        self._groups = _groups(channels)
        for group in self._groups:
            if not self._host(group):
                raise EndpointError(f"host_port: {venue.endpoint.host_port} has no channels")
        if USER in self._groups and venue.endpoint.key_name is None:
            raise EndpointError("key_name: the user channel needs a key")
        # Knows only what the venue's own client trusts, checks the host's name, and ignores the environment.
        self._tls = ssl.create_default_context(cafile=venue.trusted_file)
        self._waiting: asyncio.Queue[StreamEvent | None] = asyncio.Queue(EVENTS_WAITING_MAX)
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False
        # Its own, so that a seeded one can take its place.
        self._random = random.Random()  # noqa: S311 - not a secret
        _quiet_wire_log()

    async def events(self) -> AsyncIterator[StreamEvent]:
        """All events, until ``close``. Never raises for what the network does.

        Whoever listens slowly slows the connections down, and loses them at worst: nothing is dropped silently.
        """
        if not self._closed:
            if self._tasks:
                raise RuntimeError("a stream is listened to once")
            self._tasks = [asyncio.create_task(self._keep(group), name=f"venue {group}") for group in self._groups]
        try:
            while not self._closed and (event := await self._waiting.get()) is not None:
                yield event
        finally:
            await self.close()

    async def close(self) -> None:
        """End the events and wait until every connection and task is gone; harmless when repeated."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    def _host(self, group: str) -> str:
        endpoint = self._venue.endpoint
        return endpoint.user_stream if group == USER else endpoint.market_stream

    async def _keep(self, group: str) -> None:
        """Keep one group connected until cancelled."""
        loop = asyncio.get_running_loop()
        failures = number = 0
        while True:
            number += 1
            began_s = loop.time()
            connection = _Connection(group, number, self._waiting.put)
            reason = await self._one(connection)
            _log.info("venue %s channels lost: %s", group, reason)
            await self._waiting.put(Lost(reason, group))
            failures = 1 if loop.time() - began_s > _GOOD_S else failures + 1
            # Jitter, so that processes which lost the venue together do not come back together.
            wait_s = min(BACKOFF_S[1], BACKOFF_S[0] * 2 ** min(failures - 1, 10))
            await asyncio.sleep(max(BACKOFF_S[0], wait_s * self._random.uniform(0.5, 1.0)))

    async def _one(self, connection: _Connection) -> str:
        """One connection from its making to its end; why it ended."""
        socket: ClientConnection | None = None
        try:
            socket = await self._open(connection.group)
            simulated = socket.response is not None and socket.response.headers.get("X-Simulated") == "1"
            if simulated is not self._venue.endpoint.simulated:
                return f"{self._host(connection.group)} is {'' if simulated else 'not '}simulated, expected otherwise"
            wanted = await self._subscribe(socket, connection.group)
            return await self._listen(socket, connection, wanted)
        except (OSError, EOFError, WebSocketException) as error:
            return _why(error) if socket else f"not connected: {_why(error)}"
        except Exception as error:  # noqa: BLE001 - a loop's edge: whatever it was, a new connection is a new start
            _log.exception("the venue's %s channels failed", connection.group)
            return _why(error)
        finally:
            if socket is not None:
                await _shut(socket)

    async def _open(self, group: str) -> ClientConnection:
        return await _Connect(
            f"wss://{self._host(group)}/",
            ssl=self._tls,
            open_timeout=self._open_timeout_s,
            ssl_handshake_timeout=self._open_timeout_s,
            ssl_shutdown_timeout=CLOSE_S_MAX,
            close_timeout=CLOSE_S_MAX,
            # Heartbeats every second tell sooner than pings whether the venue is there.
            ping_interval=None,
            max_size=MESSAGE_BYTES_MAX,
            compression=None,
            user_agent_header=None,
            logger=_wire_log,
        )

    async def _subscribe(self, socket: ClientConnection, group: str) -> frozenset[str]:
        """Ask for the group's channels, each with a token of its own; the venue gives 5 s for the first."""
        channels = self._groups[group]
        for channel in channels:
            request: dict[str, object] = {"type": "subscribe", "channel": channel}
            if channel not in _PRIVATE | {HEARTBEATS}:
                request["product_ids"] = self._products
            if token := self._venue.stream_token():
                request["jwt"] = token
            async with asyncio.timeout(self._open_timeout_s):
                await socket.send(json.dumps(request))
        return frozenset(channels)

    async def _listen(self, socket: ClientConnection, connection: _Connection, wanted: frozenset[str]) -> str:
        """Pass on what comes until the connection is of no more use; why."""
        loop = asyncio.get_running_loop()
        products = frozenset(self._products) if connection.group != USER else frozenset()
        began_s = heard_s = loop.time()
        while True:
            due_s = heard_s + self._silent_s
            if not connection.complete:
                due_s = min(due_s, began_s + self._open_timeout_s)
            try:
                raw = await _receive(socket, due_s)
            except TimeoutError:
                if loop.time() >= heard_s + self._silent_s:
                    return f"nothing heard for {self._silent_s:g} s"
                missing = ", ".join(sorted(connection.missing(wanted)))
                return f"not subscribed within {self._open_timeout_s:g} s: {missing}"
            message = read_message(raw, products)
            if connection.repeats(message):
                continue  # and is no sign of life: a venue that says one thing for ever is silent
            reason = await connection.take(message, wanted)
            if reason:
                return reason
            if message.sequence is not None:
                # After the events are taken: a slow listener is not a silent venue.
                heard_s = loop.time()


class _Connection:
    """What is known of one connection: its sequence, its channels, and the events held until all are subscribed."""

    def __init__(self, group: str, number: int, put: Callable[[StreamEvent], Awaitable[None]]) -> None:
        self.group, self.number = group, number
        self.complete = False
        self._put = put
        self._expected: int | None = None
        self._subscribed: set[str] = set()
        self._held: list[StreamEvent] = []

    def missing(self, wanted: frozenset[str]) -> frozenset[str]:
        """The channels the venue has neither confirmed nor spoken on."""
        return wanted - self._subscribed

    def repeats(self, message: Message) -> bool:
        """Whether it is the last message once more, which tells nothing new and means that nothing was missed."""
        return self._expected is not None and message.sequence == self._expected - 1

    async def take(self, message: Message, wanted: frozenset[str]) -> str:
        """Pass the message's events on; returns why the connection must end, else an empty text."""
        if message.sequence is None:
            await self._pass(message.events)
            return ""
        if self._expected is not None and message.sequence != self._expected:
            await self._put(Gap(self._expected, message.sequence))
            return f"out of sequence: expected {self._expected}, got {message.sequence}"
        self._expected = message.sequence + 1
        if self.complete:
            await self._pass(message.events)
            return ""
        self._subscribed |= message.subscribed | {message.channel}
        self._held += message.events
        if len(self._held) > EVENTS_WAITING_MAX:
            return f"not subscribed, and {EVENTS_WAITING_MAX} events are held already"
        if not self.missing(wanted):
            self.complete = True
            await self._put(Connected(self.group, self.number))
            await self._pass(self._held)
            self._held = []
        return ""

    async def _pass(self, events: list[StreamEvent]) -> None:
        for event in events:
            await self._put(event)


class _Connect(connect):
    """A connection to where it was asked to go: a redirect is an error, as with REST."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _groups(channels: Sequence[str]) -> dict[str, list[str]]:
    """The channels of each connection, heartbeats first; raises ``ValueError`` where none is asked for."""
    private = [name for name in dict.fromkeys(channels) if name in _PRIVATE]
    market = [name for name in dict.fromkeys(channels) if name not in _PRIVATE | {HEARTBEATS}]
    groups = {USER: private, "market": market}
    found = {group: [HEARTBEATS, *names] for group, names in groups.items() if names}
    if not found and HEARTBEATS not in channels:
        raise ValueError("channels: expected at least one")
    return found or {"market": [HEARTBEATS]}


async def _receive(socket: ClientConnection, due_s: float) -> bytes:
    """The next message; raises ``TimeoutError`` where none has come until then."""
    try:
        async with asyncio.timeout_at(due_s):
            raw = await socket.recv(decode=False)
    except TimeoutError:
        # It may be this process that was held up: what has come meanwhile counts.
        async with asyncio.timeout(_GRACE_S):
            raw = await socket.recv(decode=False)
    return raw if isinstance(raw, bytes) else raw.encode()


async def _shut(socket: ClientConnection) -> None:
    """Say goodbye if the venue listens, and be gone in any case."""
    try:
        # The library's own limit does not hold where nobody reads what has come.
        async with asyncio.timeout(CLOSE_S_MAX):
            await socket.close()
    except (OSError, WebSocketException) as error:
        _log.debug("closing: %s", _why(error))
    finally:
        socket.transport.abort()


def _why(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {error}".strip(": "))[:200]


def _quiet_wire_log() -> None:
    """The library logs whole frames at DEBUG, and ours hold tokens."""
    _wire_log.setLevel(logging.WARNING)
    if not any(isinstance(each, SafeLog) for each in _wire_log.filters):
        _wire_log.addFilter(SafeLog())
