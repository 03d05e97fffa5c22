"""The cache before the venue: asked once however many ask, aged honestly, and silent failures never shown as fresh."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from cluster.venue import EndpointError, Venue, VenueError, VenueUnauthorised, VenueUnavailable
from serve_apps import venue_reads
from serve_apps.venue_reads import AGE_MAX_S, ANSWERS_KEPT, FAILURE_REST_S, Answer, VenueReads

pytestmark = pytest.mark.anyio


class TestClock:
    """Time that passes when a test says so."""

    __test__ = False

    def __init__(self) -> None:
        self.now_s = 100.0

    def time_s(self) -> float:
        return 1_700_000_000 + self.now_s

    def monotonic_s(self) -> float:
        return self.now_s


class Asked:
    """A question that counts how often the venue was asked; what it answers may be an error."""

    def __init__(self, answer: object = 0) -> None:
        self.count = 0
        self.answer = answer
        self.gate: threading.Event | None = None

    def __call__(self, venue: Venue) -> int:
        self.count += 1
        if self.gate is not None:
            assert self.gate.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.count


class Made:
    """Venues as they are made: nothing is asked of them here but to be closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed = 0
        self.error: Exception | None = None

    def __call__(self) -> Venue:
        if self.error is not None:
            raise self.error
        self.made += 1
        return cast(Venue, self)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def reads(made: Made, clock: TestClock) -> Iterator[VenueReads]:
    reads = VenueReads(made, clock)
    yield reads
    reads.close()


def told(answer: Answer[Any]) -> tuple[Any, float, bool]:
    return answer.value, answer.age_s, answer.warning is not None


async def test_however_many_ask_at_once_the_venue_is_asked_once(reads: VenueReads) -> None:
    ask = Asked()
    ask.gate = threading.Event()
    waiting = [asyncio.create_task(reads.read("x", 1, ask)) for _ in range(50)]
    await asyncio.sleep(0.01)
    ask.gate.set()
    answers = await asyncio.gather(*waiting)
    assert ({told(one) for one in answers}, ask.count) == ({(1, 0.0, False)}, 1)


async def test_an_answer_is_good_for_its_time_and_is_then_asked_for_anew(reads: VenueReads, clock: TestClock) -> None:
    ask = Asked()
    first = await reads.read("x", 2, ask)
    assert first.as_of_ns == 1_700_000_100 * 10**9
    clock.now_s += 2
    assert told(await reads.read("x", 2, ask)) == (1, 2.0, False)
    clock.now_s += 0.5
    assert told(await reads.read("x", 2, ask)) == (2, 0.0, False)


async def test_resources_do_not_share_an_answer(reads: VenueReads) -> None:
    ask = Asked()
    assert [(await reads.read(name, 1, ask)).value for name in ("x", ("x", 1), ("x", 2), "x")] == [1, 2, 3, 1]


async def test_a_caller_that_hangs_up_does_not_end_the_reading_for_the_others(reads: VenueReads) -> None:
    ask = Asked()
    ask.gate = threading.Event()
    hasty, patient = (asyncio.create_task(reads.read("x", 1, ask)) for _ in range(2))
    await asyncio.sleep(0.01)
    hasty.cancel()
    ask.gate.set()
    assert told(await patient) == (1, 0.0, False)


async def test_while_the_venue_does_not_answer_what_is_known_is_shown_with_its_age_and_a_warning(
    reads: VenueReads, clock: TestClock
) -> None:
    ask = Asked()
    await reads.read("x", 1, ask)
    ask.answer = VenueUnavailable("10.0.0.1: gone")
    clock.now_s += 60
    answer = await reads.read("x", 1, ask)
    assert told(answer) == (1, 60.0, True)
    assert answer.warning == "not up to date: the venue does not answer"
    clock.now_s += AGE_MAX_S
    with pytest.raises(VenueUnavailable):
        await reads.read("x", 1, ask)


async def test_after_a_failure_the_venue_is_left_alone_for_a_moment(reads: VenueReads, clock: TestClock) -> None:
    ask = Asked(VenueUnavailable("gone"))
    for _ in range(20):
        with pytest.raises(VenueUnavailable):
            await reads.read("x", 1, ask)
    assert ask.count == 1
    clock.now_s += FAILURE_REST_S
    ask.answer = 0
    assert told(await reads.read("x", 1, ask)) == (2, 0.0, False)


async def test_a_venue_that_takes_long_is_not_waited_for_where_something_is_known(
    reads: VenueReads, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(venue_reads, "PATIENCE_WITH_ANSWER_S", 0.05)
    monkeypatch.setattr(venue_reads, "PATIENCE_S", 0.05)
    ask = Asked()
    await reads.read("x", 1, ask)
    clock.now_s += 5
    ask.gate = threading.Event()
    answer = await reads.read("x", 1, ask)
    assert told(answer) == (1, 5.0, True)
    with pytest.raises(VenueUnavailable):
        await reads.read("y", 1, ask)
    ask.gate.set()


async def test_after_a_refused_key_the_venue_is_made_anew(reads: VenueReads, made: Made, clock: TestClock) -> None:
    ask = Asked(VenueUnauthorised("HTTP 401"))
    with pytest.raises(VenueUnauthorised):
        await reads.read("x", 1, ask)
    clock.now_s += FAILURE_REST_S
    ask.answer = 0
    await reads.read("x", 1, ask)
    assert (made.made, made.closed) == (2, 1)


async def test_a_venue_that_cannot_be_made_yet_is_tried_again(reads: VenueReads, made: Made, clock: TestClock) -> None:
    made.error = EndpointError("no key file at /secret/path")
    with pytest.raises(EndpointError):
        await reads.read("x", 1, Asked())
    made.error = None
    clock.now_s += FAILURE_REST_S
    assert (await reads.read("x", 1, Asked())).value == 1


async def test_a_fault_of_ours_is_raised_and_not_taken_for_the_venues(reads: VenueReads) -> None:
    with pytest.raises(ZeroDivisionError):
        await reads.read("x", 1, Asked(ZeroDivisionError("ours")))


async def test_only_so_many_answers_are_kept(reads: VenueReads) -> None:
    for number in range(ANSWERS_KEPT + 10):
        await reads.read(("page", number), 1, Asked())
    assert len(reads._kept) == ANSWERS_KEPT
    again: Callable[[Venue], int] = Asked()
    assert told(await reads.read(("page", ANSWERS_KEPT + 9), 1, again)) == (1, 0.0, False)


@pytest.mark.parametrize("error", [VenueError("/a/path"), VenueUnavailable("10.0.0.1:443"), EndpointError("/etc/key")])
def test_what_is_told_names_no_host_and_no_path(error: VenueError) -> None:
    assert str(error) not in venue_reads.told(error)
