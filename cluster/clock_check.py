"""Three clocks that must agree: this host's, the ledger's and the venue's (whose tokens begin "now").

A server's time arrives after half a round trip, so each difference is told with what the round trip leaves uncertain;
only a difference beyond all doubt is one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from cluster.ledger import Ledger
from strategies.model import NS_PER_S

SAMPLES_MAX: Final = 3
GOOD_ENOUGH_S: Final = 0.1
# Ledger and venue tell whole milliseconds.
RESOLUTION_S: Final = 0.001


class Clock(Protocol):
    """Where the time comes from; a test passes its own."""

    def time_s(self) -> float:
        """Seconds since 1970 UTC, as this host believes."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever go forward, from an arbitrary start."""
        ...


class HostClock:
    """The clock of this host."""

    def time_s(self) -> float:
        """Seconds since 1970 UTC."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since some start."""
        return time.monotonic()


@dataclass(frozen=True, slots=True)
class Skew:
    """How far the clock ``ahead`` runs before the clock ``behind``: ``seconds`` (>= 0), give or take."""

    ahead: str
    behind: str
    seconds: float
    uncertainty_s: float

    def beyond(self, limit_s: float) -> bool:
        """Whether the true difference surely exceeds ``limit_s``."""
        return self.seconds - self.uncertainty_s > limit_s

    def __str__(self) -> str:
        return f"{self.ahead} is {self.seconds:.3f} s ahead of {self.behind} (within {self.uncertainty_s:.3f} s)"


@dataclass(frozen=True, slots=True)
class Offset:
    """A server's time less this host's, in seconds, and how far that may be wrong."""

    seconds: float
    uncertainty_s: float


@dataclass(frozen=True, slots=True)
class Clocks:
    """One comparison of the three clocks."""

    venue: Offset
    ledger: Offset

    @property
    def skews(self) -> tuple[Skew, ...]:
        """The three differences, the largest first."""
        both = self.venue.uncertainty_s + self.ledger.uncertainty_s
        found = (
            _skew("the venue", "this host", self.venue.seconds, self.venue.uncertainty_s),
            _skew("the ledger", "this host", self.ledger.seconds, self.ledger.uncertainty_s),
            _skew("the venue", "the ledger", self.venue.seconds - self.ledger.seconds, both),
        )
        return tuple(sorted(found, key=lambda skew: skew.seconds, reverse=True))

    def beyond(self, limit_s: float) -> Skew | None:
        """The largest difference that surely exceeds ``limit_s``; None where the clocks agree so far."""
        return next((skew for skew in self.skews if skew.beyond(limit_s)), None)


async def compare_clocks(
    venue_time_ns: Callable[[], int],
    ledger: Ledger,
    ask: Callable[..., Awaitable[Any]] = asyncio.to_thread,
    clock: Clock | None = None,
) -> Clocks:
    """Compare this host's clock with the ledger's and the venue's (``Venue.server_time_ns``, called by ``ask``).

    Each is asked once, or up to three times where the round trip was long, and the shortest counts (as NTP does, RFC
    5905 section 10). Raises what the two raise where they do not answer.
    """
    clock = clock or HostClock()

    async def venue_s() -> float:
        return float(await ask(venue_time_ns)) / NS_PER_S

    async def ledger_s() -> float:
        return (await ledger.snapshot(None)).now_ms / 1000

    return Clocks(await _offset(venue_s, clock), await _offset(ledger_s, clock))


async def _offset(read_s: Callable[[], Awaitable[float]], clock: Clock) -> Offset:
    best = await _sample(read_s, clock)
    for _ in range(SAMPLES_MAX - 1):
        if best.uncertainty_s <= GOOD_ENOUGH_S:
            break
        best = min(best, await _sample(read_s, clock), key=lambda offset: offset.uncertainty_s)
    return best


async def _sample(read_s: Callable[[], Awaitable[float]], clock: Clock) -> Offset:
    sent_s, begun_s = clock.time_s(), clock.monotonic_s()
    told_s = await read_s()
    trip_s, passed_s = clock.monotonic_s() - begun_s, clock.time_s() - sent_s
    # This host's clock may have been set meanwhile: then nobody knows by how much the answer is off.
    uncertainty_s = trip_s / 2 + RESOLUTION_S + abs(passed_s - trip_s)
    return Offset(told_s - (sent_s + trip_s / 2), uncertainty_s)


def _skew(one: str, other: str, seconds: float, uncertainty_s: float) -> Skew:
    ahead, behind = (one, other) if seconds >= 0 else (other, one)
    return Skew(ahead, behind, abs(seconds), uncertainty_s)
