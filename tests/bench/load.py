"""A load generator that costs little: raw HTTP/1.1 over asyncio, latencies in microseconds in an HdrHistogram.

Closed loop: one outstanding request a connection, the next one as soon as the answer is there. A stall slows the
asking too, so the tail is flattered: good for comparing two servers side by side, not for promising a latency.
Open loop: each user means to send at fixed times and a latency counts from then, whatever the server does, so that a
stall shows in everything that should have been sent meanwhile (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from hdrh.histogram import HdrHistogram

Request = Callable[[int], bytes]
PERCENTILES = {"50": 50, "95": 95, "99": 99, "99_9": 99.9}
END_TIMEOUT_S = 60.0


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, 60_000_000, 3)


@dataclass
class Measured:
    """What a run of load saw."""

    wall_s: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    # Requests that were meant to be answered and were not: connections broke, or the run ended.
    unanswered: int = 0
    histogram: HdrHistogram = field(default_factory=_histogram)
    # How late the generator itself was in sending what could be sent at once (open loop): part of every latency.
    lateness: HdrHistogram = field(default_factory=_histogram)
    # Answers by the second they came in.
    by_second: Counter[int] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Requests answered."""
        return sum(self.statuses.values())

    def unevenness(self) -> float:
        """The largest deviation of a whole second's answers from their median, as a share of it."""
        seconds = [self.by_second[second] for second in range(int(self.wall_s))]
        middle = sorted(seconds)[len(seconds) // 2] if seconds else 0
        return max(abs(count - middle) for count in seconds) / middle if middle else 0.0

    def summary(self, good: int) -> dict[str, Any]:
        """Requests a second, latency percentiles in milliseconds, and everything that was not ``good``."""
        return {
            "requests": self.done,
            "requests_per_s": round(self.done / self.wall_s, 1),
            **{f"p{name}_ms": percentile_ms(self.histogram, value) for name, value in PERCENTILES.items()},
            "max_ms": self.histogram.get_max_value() / 1000,
            "errors": self.done - self.statuses[good] + self.unanswered,
            "statuses": dict(self.statuses),
        }


def percentile_ms(histogram: HdrHistogram, percentile: float) -> float:
    """A percentile of a histogram of microseconds, in milliseconds."""
    return float(histogram.get_value_at_percentile(percentile)) / 1000


async def closed_loop(
    port: int, connections: int, duration_s: float, request: Request, warm_s: float = 1.0
) -> Measured:
    """Load 127.0.0.1:``port`` for ``warm_s`` uncounted and then ``duration_s`` counted seconds."""
    measured = Measured()
    begin_s = time.perf_counter() + warm_s
    numbers = iter(range(10**12))

    def next_request() -> bytes | None:
        return request(next(numbers)) if time.perf_counter() < begin_s + duration_s else None

    made = [_ClosedLoop(measured, begin_s, next_request) for _ in range(connections)]
    await _run(port, made, warm_s + duration_s)
    measured.wall_s = time.perf_counter() - begin_s
    return measured


async def open_loop(
    port: int, users: int, interval_s: float, duration_s: float, request: Request, warm: Measured, warm_s: float = 5.0
) -> Measured:
    """``users`` who each send every ``interval_s``, the first time at random within it; seeded.

    What is meant to be sent in the first ``warm_s`` goes into ``warm``.
    """
    measured, draw = Measured(), random.Random(42)
    begin_s = time.perf_counter() + warm_s
    made = []
    for user in range(users):
        first_s = begin_s - warm_s + draw.random() * interval_s
        count = math.ceil((begin_s + duration_s - first_s) / interval_s)
        times = deque(first_s + n * interval_s for n in range(count))
        made.append(_OpenLoop((warm, measured), begin_s, times, _every(users, user, request)))
    await _run(port, made, warm_s + duration_s)
    warm.wall_s, measured.wall_s = warm_s, duration_s
    measured.unanswered += sum(len(protocol.times) for protocol in made)
    return measured


def _every(users: int, user: int, request: Request) -> Request:
    """This user's requests among all users': no number comes twice."""
    return lambda number: request(number * users + user)


async def _run(port: int, made: Sequence[_Connection], duration_s: float) -> None:
    loop = asyncio.get_running_loop()
    for protocol in made:
        await loop.create_connection(lambda protocol=protocol: protocol, "127.0.0.1", port)  # type: ignore[misc]
    # A server that stops answering ends the run instead of hanging it.
    async with asyncio.timeout(duration_s + END_TIMEOUT_S):
        await asyncio.gather(*(protocol.ended for protocol in made))


class _Connection(asyncio.Protocol):
    """One request at a time; subclasses say when the next one goes out."""

    def __init__(self) -> None:
        self._buffer = b""
        self.outstanding = False
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are of no asyncio class.
        self._transport = cast(asyncio.Transport, transport)
        self.begin()

    def send(self, request: bytes) -> None:
        self.outstanding = True
        self._transport.write(request)

    def end(self) -> None:
        self._transport.close()

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
        self._buffer = b""
        self.outstanding = False
        self.answered(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost()
        if not self.ended.done():
            self.ended.set_result(None)

    def begin(self) -> None:
        raise NotImplementedError

    def answered(self, status: int) -> None:
        raise NotImplementedError

    def lost(self) -> None:
        raise NotImplementedError


class _ClosedLoop(_Connection):
    """Sends the next request as soon as the answer to the last is complete."""

    def __init__(self, measured: Measured, begin_s: float, request: Callable[[], bytes | None]) -> None:
        super().__init__()
        self._measured = measured
        self._begin_s = begin_s
        self._request = request
        self._sent_s = 0.0

    def begin(self) -> None:
        request = self._request()
        if request is None:
            self.end()
            return
        self._sent_s = time.perf_counter()
        self.send(request)

    def answered(self, status: int) -> None:
        now_s = time.perf_counter()
        if now_s >= self._begin_s:
            self._measured.histogram.record_value(max(1, int((now_s - self._sent_s) * 1e6)))
            self._measured.statuses[status] += 1
            self._measured.by_second[int(now_s - self._begin_s)] += 1
        self.begin()

    def lost(self) -> None:
        self._measured.unanswered += self.outstanding


class _OpenLoop(_Connection):
    """Sends at its times; what is due while an answer is outstanding waits for it, and its clock runs."""

    def __init__(
        self, measured: tuple[Measured, Measured], begin_s: float, times: deque[float], request: Request
    ) -> None:
        super().__init__()
        self._measured = measured
        self._begin_s = begin_s
        self._request = request
        self._number = 0
        self.times = times

    def begin(self) -> None:
        """Send now what is due, or wait until something is."""
        if not self.times:
            self.end()
            return
        late_s = time.perf_counter() - self.times[0]
        if late_s < 0:
            asyncio.get_running_loop().call_later(-late_s, self._due)
        else:
            self._send()

    def _due(self) -> None:
        if self._transport.is_closing():
            return
        late_s = time.perf_counter() - self.times[0]
        if late_s < 0:
            # The loop's clock is coarser than ours and may wake us a little early.
            asyncio.get_running_loop().call_soon(self._due)
            return
        self._of(self.times[0]).lateness.record_value(max(1, int(late_s * 1e6)))
        self._send()

    def _send(self) -> None:
        self.send(self._request(self._number))
        self._number += 1

    def answered(self, status: int) -> None:
        meant_s = self.times.popleft()
        now_s = time.perf_counter()
        measured = self._of(meant_s)
        measured.histogram.record_value(max(1, int((now_s - meant_s) * 1e6)))
        measured.statuses[status] += 1
        self.begin()

    def lost(self) -> None:
        """What was still to be sent is counted as unanswered by whoever made the run."""

    def _of(self, meant_s: float) -> Measured:
        warm, measured = self._measured
        return measured if meant_s >= self._begin_s else warm
