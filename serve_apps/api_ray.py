"""Ray's Jobs API for an event loop: every call in a thread of its own few, bounded in time, failures as problems."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from cluster.ray_jobs import RayJobs, RayJobsRefused, RayJobsUnavailable
from serve_apps.problem import Problem

CALL_TIMEOUT_S: Final = 5.0
# A call that hangs keeps its thread until its own time-outs end it; when all are taken, further calls are refused.
THREADS: Final = 4
PROBE_FRESH_S: Final = 5.0
PROBE_WAIT_S: Final = 0.5

T = TypeVar("T")

logger = logging.getLogger("ray.serve")


class RayCalls:
    """Calls to one cluster's Jobs API; ``jobs`` is None where the settings know no Ray."""

    def __init__(self, jobs: RayJobs | None) -> None:
        """Nothing is sent yet."""
        self._jobs = jobs
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ray-jobs")
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = float("-inf")
        self._probed = (False, "not asked yet")

    async def call(self, work: Callable[[RayJobs], T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        """``work`` done in a thread; raises ``Problem`` 503 where Ray does not answer or refuses, else what it raises.

        After a time-out the outcome is unknown: the thread may still finish what it began.
        """
        if self._jobs is None:
            raise _unavailable("the settings name no Ray cluster")
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._threads, work, self._jobs)
        except TimeoutError:
            raise _unavailable(f"no answer within {timeout_s:g} s") from None
        except (RayJobsUnavailable, RayJobsRefused) as error:
            logger.warning("%s", error)
            refused = isinstance(error, RayJobsRefused)
            raise _unavailable("it refused the call" if refused else "it does not answer") from None

    async def state(self) -> tuple[bool, str]:
        """(whether Ray answers, its version or what is wrong), at most ``PROBE_FRESH_S`` old where Ray is quick.

        One question at a time, however many ask here: a hanging dashboard never holds up a readiness check.
        """
        if self._probing is None and time.monotonic() - self._probed_at > PROBE_FRESH_S:
            self._probing = asyncio.create_task(self._probe())
        if self._probing is not None:
            await asyncio.wait({self._probing}, timeout=PROBE_WAIT_S)
        return self._probed

    async def _probe(self) -> None:
        try:
            self._probed = (True, f"Ray {await self.call(RayJobs.version)}")
        except Problem as problem:
            self._probed = (False, problem.detail)
        finally:
            self._probed_at = time.monotonic()
            self._probing = None


def _unavailable(reason: str) -> Problem:
    return Problem(503, "RAY_UNAVAILABLE", f"Ray's Jobs API: {reason}; try again", headers={"retry-after": "2"})
