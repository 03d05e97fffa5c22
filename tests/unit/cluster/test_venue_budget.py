"""The budget all processes share: what the ledger says is kept to, and only cancels go on without it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cluster.ledger_wire import LedgerError, LedgerUnavailable
from cluster.venue_budget import PartOfBudget, SharedBudget
from cluster.venue_endpoint import RequestKind, VenueThrottled

KINDS: tuple[RequestKind, ...] = ("public", "read", "order", "cancel")


class Clock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


class Answers:
    """A ledger that answers as told, the last answer for ever, and remembers what it was asked."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, float, float, float]] = []

    async def venue_budget(self, kind: str, rate_per_s: float, cancel_share: float, wait_s_max: float) -> float:
        self.asked.append((kind, rate_per_s, cancel_share, round(wait_s_max, 6)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever, daemon=True)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join(5)
    made.close()


def budget(ledger: Answers, loop: asyncio.AbstractEventLoop, clock: Clock) -> SharedBudget:
    return SharedBudget(ledger, loop, 20.0, 0.25, public_rate_per_s=8.0, clock=clock, sleep=clock.sleep)


def test_a_request_that_is_free_costs_one_question(loop: asyncio.AbstractEventLoop) -> None:
    clock, ledger = Clock(), Answers(0.0)
    shared = budget(ledger, loop, clock)
    for kind in KINDS:
        shared.take(kind, 3.0)
    # Only a cancel may reserve what comes later: nobody who waits is ahead of it.
    assert ledger.asked == [
        ("public", 8.0, 0.25, 0.0),
        ("read", 20.0, 0.25, 0.0),
        ("order", 20.0, 0.25, 0.0),
        ("cancel", 20.0, 0.25, 3.0),
    ]
    assert clock.slept_s == []


def test_a_cancel_waits_as_long_as_the_ledger_says(loop: asyncio.AbstractEventLoop) -> None:
    clock = Clock()
    budget(Answers(0.3), loop, clock).take("cancel", 1.0)
    assert clock.slept_s == [0.3]


def test_others_ask_again_until_one_is_free(loop: asyncio.AbstractEventLoop) -> None:
    clock, ledger = Clock(), Answers(-0.1, -0.2, 0.0)
    budget(ledger, loop, clock).take("order", 1.0)
    assert len(ledger.asked) == 3
    assert [0.1 <= clock.slept_s[0] <= 0.12, 0.2 <= clock.slept_s[1] <= 0.24] == [True, True]


def test_a_wait_that_would_be_too_long_is_refused_without_waiting(loop: asyncio.AbstractEventLoop) -> None:
    for kind in KINDS:
        clock = Clock()
        with pytest.raises(VenueThrottled, match=r"budget of (20|8) requests/s is spent") as error:
            budget(Answers(-2.0), loop, clock).take(kind, 1.0)
        assert error.value.retry_after_s == 2.0
        assert clock.slept_s == []


def test_who_waits_for_long_gives_up_in_time(loop: asyncio.AbstractEventLoop) -> None:
    clock, ledger = Clock(), Answers(-0.1)
    with pytest.raises(VenueThrottled):
        budget(ledger, loop, clock).take("read", 1.0)
    assert clock.now_s - 100.0 <= 1.0 + 0.12
    assert 8 <= len(ledger.asked) <= 12


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), LedgerError("no such function"), TimeoutError()])
def test_without_the_ledger_only_cancels_go_on_and_slowly(loop: asyncio.AbstractEventLoop, error: Exception) -> None:
    clock, ledger = Clock(), Answers(error)
    shared = budget(ledger, loop, clock)
    for kind in ("public", "read", "order"):
        with pytest.raises(VenueThrottled, match="no answer of the ledger"):
            shared.take(kind, 5.0)
    for _ in range(5):
        shared.take("cancel", 0.0)
    with pytest.raises(VenueThrottled, match="own budget of 5 requests/s"):
        shared.take("cancel", 0.1)
    # It is not asked again at once, so that cancels are not held up by every failure.
    assert len(ledger.asked) == 1


def test_the_ledger_is_asked_again_after_a_while(loop: asyncio.AbstractEventLoop) -> None:
    clock, ledger = Clock(), Answers(LedgerUnavailable("away"), 0.0)
    shared = budget(ledger, loop, clock)
    with pytest.raises(VenueThrottled):
        shared.take("order", 5.0)
    clock.now_s += 1.5
    shared.take("order", 5.0)
    assert len(ledger.asked) == 2


def test_a_ledger_that_never_answers_is_not_waited_for(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.venue_budget.ANSWER_S_MAX", 0.05)
    gone = threading.Event()

    class Hanging(Answers):
        async def venue_budget(self, kind: str, rate_per_s: float, cancel_share: float, wait_s_max: float) -> float:
            try:
                await asyncio.sleep(60)
            finally:
                gone.set()
            return 0.0

    shared = budget(Hanging(0.0), loop, Clock())
    with pytest.raises(VenueThrottled):
        shared.take("order", 5.0)
    shared.take("cancel", 0.0)
    assert gone.wait(5)


def test_a_loop_that_has_ended_is_a_ledger_that_is_away() -> None:
    ended = asyncio.new_event_loop()
    ended.close()
    shared = budget(Answers(0.0), ended, Clock())
    shared.take("cancel", 0.0)
    with pytest.raises(VenueThrottled):
        shared.take("order", 0.0)


def test_the_ledgers_own_loop_never_waits_for_itself(loop: asyncio.AbstractEventLoop) -> None:
    shared = budget(Answers(0.0), loop, Clock())

    async def call() -> None:
        shared.take("order", 1.0)

    with pytest.raises(RuntimeError, match="worker thread"):
        asyncio.run_coroutine_threadsafe(call(), loop).result(5)
    # Another loop's thread is as good as any.
    asyncio.run(call())


class Plenty:
    """A budget without bound that remembers how long it might have made one wait."""

    def __init__(self) -> None:
        self.waits_s_max: list[float] = []

    def take(self, kind: RequestKind, wait_s_max: float) -> None:
        self.waits_s_max.append(round(wait_s_max, 6))


def test_who_has_a_part_of_a_budget_takes_no_more_than_that() -> None:
    clock, everybodys = Clock(), Plenty()
    part = PartOfBudget(everybodys, 5.0, clock, clock.sleep)
    for kind in (*KINDS, "read"):
        part.take(kind, 0.0)
    with pytest.raises(VenueThrottled):
        part.take("read", 0.1)
    # What it waits for its own part is no longer there to wait for everybody's.
    part.take("read", 1.0)
    assert everybodys.waits_s_max == [0.0] * 5 + [0.8]
