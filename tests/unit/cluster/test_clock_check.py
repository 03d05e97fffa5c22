"""Clocks compared: a round trip leaves doubt, and only what is beyond doubt is a difference."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cluster.clock_check import GOOD_ENOUGH_S, Clocks, compare_clocks
from cluster.ledger import Ledger

TRUE_S = 1_700_000_000.0


class World:
    """True time, this host's clock beside it, and two servers some way off."""

    def __init__(self, host_s: float = 0.0, venue_s: float = 0.0, ledger_s: float = 0.0) -> None:
        self.passed_s = 0.0
        self.host_s, self.venue_s, self.ledger_s = host_s, venue_s, ledger_s
        self.asked = 0
        # Seconds there and back, call by call; the last one stays.
        self.trips: list[tuple[float, float]] = [(0.0, 0.0)]
        self.during: Callable[[], None] = lambda: None

    def time_s(self) -> float:
        return TRUE_S + self.passed_s + self.host_s

    def monotonic_s(self) -> float:
        return self.passed_s

    async def ask(self, call: Callable[[], int]) -> int:
        there_s, back_s = self.trips.pop(0) if len(self.trips) > 1 else self.trips[0]
        self.asked += 1
        self.passed_s += there_s
        told = call()
        self.during()
        self.passed_s += back_s
        return told

    def venue_time_ns(self) -> int:
        return int((TRUE_S + self.passed_s + self.venue_s) * 1_000) * 1_000_000

    async def snapshot(self, account: None) -> Any:
        return SimpleNamespace(now_ms=int((TRUE_S + self.passed_s + self.ledger_s) * 1_000))

    def compare(self) -> Clocks:
        ledger = cast(Ledger, SimpleNamespace(snapshot=self.snapshot))
        return asyncio.run(compare_clocks(self.venue_time_ns, ledger, self.ask, self))


@pytest.mark.parametrize(
    ("world", "ahead", "behind"),
    [
        (World(venue_s=6), {"the venue"}, {"this host", "the ledger"}),
        (World(host_s=6), {"this host"}, {"the venue", "the ledger"}),
        (World(ledger_s=-6), {"the venue", "this host"}, {"the ledger"}),
        (World(venue_s=3, ledger_s=-3), {"the venue"}, {"the ledger"}),
    ],
)
def test_the_largest_difference_is_named_with_its_direction(world: World, ahead: set[str], behind: set[str]) -> None:
    clocks = world.compare()
    skew = clocks.beyond(5)
    assert skew is not None
    assert skew.ahead in ahead
    assert skew.behind in behind
    assert skew.seconds == pytest.approx(6, abs=0.01)
    assert str(skew).startswith(f"{skew.ahead} is {skew.seconds:.3f} s ahead of {skew.behind}")
    assert clocks.beyond(7) is None


def test_half_the_round_trip_is_taken_off() -> None:
    world = World()
    world.trips = [(0.04, 0.04)]
    assert abs(world.compare().venue.seconds) <= 0.001
    assert world.asked == 1


def test_a_long_round_trip_is_doubt_and_not_a_difference() -> None:
    world = World()
    world.trips = [(0.0, 6.0)]
    clocks = world.compare()
    assert clocks.venue.seconds == pytest.approx(-3, abs=0.01)
    assert clocks.beyond(0.5) is None


def test_a_long_round_trip_is_asked_again_and_the_shortest_counts() -> None:
    world = World(venue_s=1)
    world.trips = [(0.0, 6.0), (0.0, 0.01)]
    clocks = world.compare()
    assert world.asked == 2
    assert clocks.venue.uncertainty_s < GOOD_ENOUGH_S
    skew = clocks.beyond(0.5)
    assert skew is not None
    assert skew.seconds == pytest.approx(1, abs=0.02)


def test_a_clock_that_is_set_while_it_is_compared_is_doubt() -> None:
    world = World()

    def set_clock() -> None:
        world.host_s, world.during = 30.0, lambda: None

    world.trips, world.during = [(0.01, 0.01)], set_clock
    assert world.compare().beyond(31) is None
    assert world.asked == 2


def test_it_is_never_asked_more_than_three_times() -> None:
    world = World()
    world.trips = [(1.0, 1.0)]
    world.compare()
    assert world.asked == 3
