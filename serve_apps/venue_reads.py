"""What the venue was last asked, kept for a moment: however many ask the desk, the venue is asked once.

Each resource has a time for which an answer is good. Later it is read anew, once for all who wait; where the venue does
not answer, what is known is shown with its age and a warning, and only where nothing is known the caller gets an error.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from cluster.clock_check import Clock, HostClock
from cluster.venue import (
    EndpointError,
    Venue,
    VenueError,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
)
from strategies.model import NS_PER_S

# Reads at once of one replica; whoever comes later waits for a thread and then for the budget.
READS_AT_ONCE: Final = 4
ANSWERS_KEPT: Final = 512
# The part of the desk's requests to the venue that those who look may spend.
LOOKING_SHARE: Final = 0.2
# What is older is not shown any more, warning or not.
AGE_MAX_S: Final = 3_600.0
# How long a caller waits for the venue where an older answer could be shown, and where there is none.
PATIENCE_WITH_ANSWER_S: Final = 2.0
PATIENCE_S: Final = 12.0
# After a failure the venue is left alone for this long; asking again at once would only spend the budget.
FAILURE_REST_S: Final = 1.0

T = TypeVar("T")
Resource = Hashable

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the venue said, when (this host's clock, taken before it was asked), and why it is no newer."""

    value: T
    as_of_ns: int
    age_s: float
    warning: str | None


@dataclass(frozen=True, slots=True)
class _Kept:
    value: Any
    as_of_ns: int
    read_at_s: float


@dataclass(frozen=True, slots=True)
class _Failure:
    error: VenueError
    at_s: float


class VenueReads:
    """Reads of one venue. Used on one event loop; the venue itself is asked in threads."""

    def __init__(self, make_venue: Callable[[], Venue], clock: Clock | None = None) -> None:
        """``make_venue`` is called with the first read, and again after the venue refused the key."""
        self._make_venue = make_venue
        self._clock = clock or HostClock()
        self._venue: Venue | None = None
        self._threads = ThreadPoolExecutor(READS_AT_ONCE, thread_name_prefix="venue")
        self._kept: OrderedDict[Resource, _Kept] = OrderedDict()
        self._failures: OrderedDict[Resource, _Failure] = OrderedDict()
        self._reading: dict[Resource, asyncio.Task[None]] = {}

    def close(self) -> None:
        """Close the connections; reads on their way are not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._venue is not None:
            self._venue.close()

    async def read(self, resource: Resource, good_for_s: float, call: Callable[[Venue], T]) -> Answer[T]:
        """The answer to ``call``, at most ``good_for_s`` old where the venue answers; ``resource`` names the question.

        Raises ``VenueError`` where it does not and nothing is known that may still be shown.
        """
        kept = self._known(resource)
        if kept is not None and self._age_s(kept) <= good_for_s:
            return self._answer(kept, None)
        failure = self._failures.get(resource)
        if failure is None or self._clock.monotonic_s() - failure.at_s >= FAILURE_REST_S:
            task = self._reading.get(resource) or self._begin(resource, call)
            patience_s = PATIENCE_S if kept is None else PATIENCE_WITH_ANSWER_S
            # A caller that hangs up, or has waited long enough, does not end the reading for the others.
            await asyncio.wait([task], timeout=patience_s)
            if task.done():
                task.result()  # a fault of ours is raised here
            failure = self._failures.get(resource)
        kept = self._known(resource)
        if kept is None:
            raise failure.error if failure else VenueUnavailable(f"no answer within {PATIENCE_S:.0f} s")
        if self._age_s(kept) <= good_for_s or (failure is None and resource not in self._reading):
            return self._answer(kept, None)
        why = told(failure.error) if failure else "the venue takes long to answer"
        return self._answer(kept, f"not up to date: {why}")

    def _begin(self, resource: Resource, call: Callable[[Venue], Any]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._read(resource, call))
        self._reading[resource] = task
        return task

    async def _read(self, resource: Resource, call: Callable[[Venue], Any]) -> None:
        as_of_ns, begun_s = round(self._clock.time_s() * NS_PER_S), self._clock.monotonic_s()
        try:
            venue = self._venue = self._venue or self._make_venue()
            value = await asyncio.get_running_loop().run_in_executor(self._threads, call, venue)
        except VenueError as error:
            self._failed(resource, error)
        else:
            self._failures.pop(resource, None)
            _keep(self._kept, resource, _Kept(value, as_of_ns, begun_s))
        finally:
            del self._reading[resource]

    def _failed(self, resource: Resource, error: VenueError) -> None:
        logger.warning("venue: %s not read: %s", resource, error)
        _keep(self._failures, resource, _Failure(error, self._clock.monotonic_s()))
        if isinstance(error, (VenueUnauthorised, EndpointError)) and self._venue is not None:
            # The key may have been replaced since.
            self._venue.close()
            self._venue = None

    def _known(self, resource: Resource) -> _Kept | None:
        kept = self._kept.get(resource)
        return kept if kept is not None and self._age_s(kept) <= AGE_MAX_S else None

    def _age_s(self, kept: _Kept) -> float:
        return self._clock.monotonic_s() - kept.read_at_s

    def _answer(self, kept: _Kept, warning: str | None) -> Answer[Any]:
        return Answer(kept.value, kept.as_of_ns, max(0.0, round(self._age_s(kept), 3)), warning)


def told(error: VenueError) -> str:
    """What to tell a caller about a failure: no host, no path, nothing the venue has written."""
    words: dict[type[VenueError], str] = {
        EndpointError: "the venue's endpoint is not configured",
        VenueUnauthorised: "the venue refuses the desk's key",
        VenueThrottled: "the request budget of the venue is spent",
        VenueRejected: "the venue refused the question",
        VenueUnavailable: "the venue does not answer",
        VenueUnknown: "the venue does not answer",
    }
    return next((text for kind, text in words.items() if isinstance(error, kind)), "the venue's answer is not readable")


def _keep(where: OrderedDict[Resource, Any], resource: Resource, value: object) -> None:
    where[resource] = value
    where.move_to_end(resource)
    if len(where) > ANSWERS_KEPT:
        where.popitem(last=False)
