"""The venue's channels in virtual time: the desk's own stream over sockets that are late, deaf, silent or gone.

What is said on a socket is made of the exchange's events with the simulator's own shapes; what is heard goes through
``cluster.venue_stream`` unchanged, from the message's bytes on.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from websockets.exceptions import ConnectionClosedError

from cluster import exchange_ws_shapes as shapes
from cluster.venue import Venue
from cluster.venue_channels import HEARTBEATS, USER
from cluster.venue_stream import VenueStream
from tests.simulation.sim_venue import SimVenueServer

CHANNELS: Final = (USER, "ticker")
BEAT_S: Final = 1.0


@dataclass(frozen=True)
class StreamFaults:
    """Shares of messages that are lost (and leave a gap), come twice or late; how often a second a socket is closed or
    falls silent."""

    lost: float = 0.0
    repeated: float = 0.0
    late: float = 0.0
    closed: float = 0.0
    silent: float = 0.0
    refused: float = 0.0


class SimStream(VenueStream):
    """The desk's stream; only opening a socket is another."""

    def __init__(
        self, venue: Venue, product_ids: list[str], server: SimVenueServer, faults: StreamFaults, source: random.Random
    ) -> None:
        super().__init__(venue, CHANNELS, product_ids)
        self.faults = faults
        self._server = server
        self._random = source

    def kill(self) -> None:
        """The process is gone."""
        for task in self._tasks:
            task.cancel()

    async def _open(self, group: str) -> Any:
        await asyncio.sleep(0.002 + self._random.random() * 0.05)
        if self._random.random() < self.faults.refused:
            raise OSError("refused")
        return Socket(self, self._server, self._random, list(self._products))


class Socket:
    """One connection, as far as ``VenueStream`` uses one; the venue's side of it as well."""

    def __init__(
        self, stream: SimStream, server: SimVenueServer, source: random.Random, product_ids: list[str]
    ) -> None:
        self.response = SimpleNamespace(headers={"X-Simulated": "1"})
        self.transport = SimpleNamespace(abort=self.end)
        self._stream, self._server, self._random = stream, server, source
        self._product_ids = product_ids
        self._coming: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._subscribed: dict[str, list[str]] = {}
        self._sequence = self._beats = 0
        self._arrives_s = 0.0
        self._silent = self._ended = False
        for rate, act in ((stream.faults.closed, self._close), (stream.faults.silent, self._fall_silent)):
            if rate:
                server.loop.call_later(source.expovariate(rate), act)
        server.sockets[self] = None

    async def send(self, text: str) -> None:
        """A subscription."""
        channel = json.loads(text)["channel"]
        self._subscribed[channel] = self._product_ids
        self._say("subscriptions", [shapes.subscriptions(dict(self._subscribed))])
        if channel == HEARTBEATS:
            self._beat()
        elif channel == USER:
            exchange = self._server.exchange
            orders = [shapes.order(order, exchange.portfolio_id) for order in exchange.open_orders.values()]
            self._say(USER, [shapes.user_event("snapshot", orders)])
        else:
            self._tick()

    async def recv(self, decode: bool) -> bytes:
        """The next message; raises when the connection is closed."""
        message = await self._coming.get()
        if message is None:
            raise ConnectionClosedError(None, None)
        return message

    async def close(self) -> None:
        """Say goodbye."""
        self.end()

    def end(self) -> None:
        """Nothing is said any more."""
        self._ended = True
        self._server.sockets.pop(self, None)

    def heard(self, order_id: str) -> None:
        """An order has changed at the venue."""
        exchange = self._server.exchange
        if USER in self._subscribed and order_id in exchange.orders:
            order = shapes.order(exchange.orders[order_id], exchange.portfolio_id)
            self._say(USER, [shapes.user_event("update", [order])])

    def _beat(self) -> None:
        if self._ended:
            return
        self._beats += 1
        self._say(HEARTBEATS, [shapes.heartbeat(self._server.now_ns(), self._beats, self._beats * BEAT_S)])
        self._server.loop.call_later(BEAT_S, self._beat)

    def _tick(self) -> None:
        if self._ended:
            return
        now_ns, tickers = self._server.now_ns(), []
        for product_id in self._product_ids:
            book, product = self._server.exchange.book(product_id, now_ns), self._server.exchange.product(product_id)
            (bid, bid_lots), (ask, ask_lots) = book.bids[0], book.asks[0]
            tickers.append(
                {
                    "product_id": product_id,
                    "best_bid": str(product.price(bid)),
                    "best_bid_quantity": str(product.quantity(bid_lots)),
                    "best_ask": str(product.price(ask)),
                    "best_ask_quantity": str(product.quantity(ask_lots)),
                }
            )
        self._say("ticker", [{"type": "update", "tickers": tickers}])
        self._server.loop.call_later(BEAT_S, self._tick)

    def _say(self, channel: str, events: list[Any]) -> None:
        """Send one message; what is lost on the way still had its number."""
        now_ns = self._server.now_ns()
        message = {
            "channel": channel,
            "timestamp": shapes.timestamp(now_ns),
            "sequence_num": self._sequence,
            "events": events,
        }
        self._sequence += 1
        faults, draw = self._stream.faults, self._random.random
        lost, repeated, late = draw() < faults.lost, draw() < faults.repeated, draw() < faults.late
        if self._silent or lost:
            return
        loop = self._server.loop
        delay_s = 0.001 + draw() ** 4 * 0.05 + (draw() * 2.0 if late else 0.0)
        self._arrives_s = max(self._arrives_s + 1e-7, loop.time() + delay_s)
        raw = json.dumps(message).encode()
        for _ in range(2 if repeated else 1):
            loop.call_at(self._arrives_s, self._coming.put_nowait, raw)

    def _close(self) -> None:
        self.end()
        self._coming.put_nowait(None)

    def _fall_silent(self) -> None:
        self._silent = True
