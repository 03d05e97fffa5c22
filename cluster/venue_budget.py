"""One budget of requests to the venue for all processes of the desk, counted in the ledger.

Orders and reads take a request only once it is free now: who waits has reserved nothing, so that no queue of orders,
however long, can be ahead of a cancel, which also has a share of its own (``cancel_share``). When the ledger cannot be
asked nobody knows what the others send: cancels go on from a small budget of this process, everything else is refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from cluster.ledger import Ledger
from cluster.ledger_wire import LedgerError, LedgerUnavailable
from cluster.venue import Venue
from cluster.venue_endpoint import Budget, RequestKind, TokenBucket, VenueThrottled, configured_endpoint
from conf.settings import Secrets, Settings

_log = logging.getLogger(__name__)

# Longer than the ledger's own limits for an answer.
ANSWER_S_MAX: Final = 3.0
# After a failure the ledger is left alone this long, so that a cancel does not wait for it again and again.
AWAY_S: Final = 1.0
_POLL_S_MIN: Final = 0.005


class BudgetLedger(Protocol):
    """What is needed of ``Ledger``."""

    async def venue_budget(self, kind: str, rate_per_s: float, cancel_share: float, wait_s_max: float) -> float:
        """Seconds to wait with the request taken, or, below 0, after how many seconds one is free."""


def shared_venue(settings: Settings, secrets: Secrets, ledger: Ledger, part: float = 1.0) -> Venue:
    """The settings' venue on the request budget that all processes share; raises ``EndpointError``.

    To be called on the loop that ``ledger`` lives on. This process spends at most ``part`` of the requests.
    """
    endpoint = configured_endpoint(settings, secrets)
    loop, share = asyncio.get_running_loop(), settings.venue.cancel_share
    public = endpoint.public_requests_per_s
    shared = SharedBudget(ledger, loop, endpoint.requests_per_s, share, public_rate_per_s=public)
    return Venue(endpoint, shared if part == 1.0 else PartOfBudget(shared, max(1.0, part * endpoint.requests_per_s)))


class PartOfBudget:
    """A bounded part of a budget, for who must not take what others need."""

    def __init__(
        self,
        budget: Budget,
        requests_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """At most ``requests_per_s`` of any kind out of ``budget``."""
        self._budget = budget
        self._clock = clock
        self._part = TokenBucket(requests_per_s, clock, sleep)

    def take(self, kind: RequestKind, wait_s_max: float) -> None:
        """As ``Budget.take``."""
        due_s = self._clock() + wait_s_max
        self._part.take(wait_s_max)
        self._budget.take(kind, max(0.0, due_s - self._clock()))


class SharedBudget:
    """A ``Budget`` that all processes share. Thread-safe; to be used by any thread but the loop's own."""

    def __init__(
        self,
        ledger: BudgetLedger,
        loop: asyncio.AbstractEventLoop,
        rate_per_s: float,
        cancel_share: float = 0.2,
        *,
        public_rate_per_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``loop`` is the one the ledger lives on. Public requests are counted apart, as the venue does."""
        self._ledger, self._loop = ledger, loop
        self._rate_per_s, self._public_rate_per_s, self._cancel_share = rate_per_s, public_rate_per_s, cancel_share
        self._clock, self._sleep = clock, sleep
        self._own_cancels = TokenBucket(max(1.0, rate_per_s * cancel_share), clock, sleep)
        self._lock = threading.Lock()
        self._away_until_s = float("-inf")

    def take(self, kind: RequestKind, wait_s_max: float) -> None:
        """Wait for a request of this kind, at most ``wait_s_max``; raises ``VenueThrottled`` where that is too short.

        Raises ``RuntimeError`` on the ledger's own loop, which would wait for itself.
        """
        self._refuse_own_loop()
        due_s = self._clock() + wait_s_max
        while True:
            left_s = max(0.0, due_s - self._clock())
            answer_s = self._ask(kind, left_s if kind == "cancel" else 0.0)
            if answer_s is None:
                self._without_ledger(kind, left_s)
                return
            if answer_s >= 0:
                if answer_s > 0:
                    self._sleep(answer_s)
                return
            if -answer_s > left_s:
                raise VenueThrottled(f"the desk's budget of {self._rate_of(kind):g} requests/s is spent", -answer_s)
            # Jitter, so that those who wait for the same request do not all ask at once.
            self._sleep(max(_POLL_S_MIN, -answer_s * random.uniform(1.0, 1.2)))  # noqa: S311 - not a secret

    def _rate_of(self, kind: RequestKind) -> float:
        return self._public_rate_per_s if kind == "public" else self._rate_per_s

    def _ask(self, kind: RequestKind, wait_s_max: float) -> float | None:
        """The ledger's answer; None where it gives none."""
        with self._lock:
            if self._clock() < self._away_until_s:
                return None
        question = self._ledger.venue_budget(kind, self._rate_of(kind), self._cancel_share, wait_s_max)
        try:
            future = asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError:
            # The loop is closed: the process is about to end.
            question.close()
            self._away("the loop is closed")
            return None
        try:
            return future.result(ANSWER_S_MAX + wait_s_max)
        except (LedgerError, LedgerUnavailable, TimeoutError, concurrent.futures.CancelledError) as error:
            future.cancel()
            self._away(f"{type(error).__name__}: {error}")
            return None

    def _away(self, reason: str) -> None:
        _log.warning("the ledger does not count requests to the venue: %s", reason)
        with self._lock:
            self._away_until_s = self._clock() + AWAY_S

    def _without_ledger(self, kind: RequestKind, wait_s_max: float) -> None:
        if kind != "cancel":
            raise VenueThrottled("the desk's budget of requests cannot be asked: no answer of the ledger", AWAY_S)
        self._own_cancels.take(wait_s_max)

    def _refuse_own_loop(self) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is self._loop:
            raise RuntimeError("SharedBudget.take: called on the ledger's own loop, expected a worker thread")
