"""A load generator that costs little: raw HTTP/1.1 over asyncio, one outstanding request a connection (closed loop).

Latencies go into an HdrHistogram in microseconds. Closed loop means that a stall slows the asking too, so the tail is
flattered: good for comparing two servers side by side, not for promising a latency.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from hdrh.histogram import HdrHistogram


@dataclass
class Measured:
    """What a run of load saw."""

    wall_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    broken: int = 0
    histogram: HdrHistogram = field(default_factory=lambda: HdrHistogram(1, 60_000_000, 3))

    def summary(self, good: int) -> dict[str, Any]:
        """Requests a second, latency percentiles in milliseconds, and everything that was not ``good``."""
        done = sum(self.statuses.values())
        percentiles = {
            f"p{name}_ms": self.histogram.get_value_at_percentile(value) / 1000
            for name, value in {"50": 50, "95": 95, "99": 99, "99_9": 99.9}.items()
        }
        return {
            "requests": done,
            "requests_per_s": round(done / self.wall_s, 1),
            **percentiles,
            "errors": done - self.statuses[good] + self.broken,
            "statuses": dict(self.statuses),
        }


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the answer to the last is complete."""

    def __init__(self, measured: Measured, request: Callable[[], bytes | None]) -> None:
        self._measured = measured
        self._request = request
        self._buffer = b""
        self._sent_s = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no asyncio class.
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        request = self._request()
        if request is None:
            self._transport.close()
            return
        self._sent_s = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self._buffer[:head_end].lower()
        at = head.find(b"content-length:") + 15
        length = int(head[at : head.find(b"\r\n", at) if head.find(b"\r\n", at) > 0 else None])
        if len(self._buffer) < head_end + 4 + length:
            return
        self._measured.histogram.record_value(max(1, int((time.perf_counter() - self._sent_s) * 1e6)))
        self._measured.statuses[int(head[9:12])] += 1
        self._buffer = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._measured.broken += error is not None
        if not self.done.done():
            self.done.set_result(None)


async def closed_loop(
    port: int, connections: int, duration_s: float, request: Callable[[int], bytes], warm_s: float = 1.0
) -> Measured:
    """Load 127.0.0.1:``port`` for ``warm_s`` uncounted and then ``duration_s`` counted seconds."""
    loop = asyncio.get_running_loop()
    measured = Measured()
    state = {"number": 0, "until_s": time.perf_counter() + warm_s}

    def next_request() -> bytes | None:
        if time.perf_counter() > state["until_s"]:
            return None
        state["number"] += 1
        return request(int(state["number"]))

    async def run(into: Measured) -> None:
        made = [
            await loop.create_connection(lambda: _Connection(into, next_request), "127.0.0.1", port)
            for _ in range(connections)
        ]
        # A server that stops answering ends the run instead of hanging it.
        async with asyncio.timeout(duration_s + 60):
            await asyncio.gather(*(protocol.done for _, protocol in made))

    await run(Measured())
    begin = time.perf_counter()
    state["until_s"] = begin + duration_s
    await run(measured)
    measured.wall_s = time.perf_counter() - begin
    return measured
