"""An event loop whose time is a number, and worker "threads" that are greenlets: nothing sleeps, nothing is parallel.

Time passes only when nothing is left to do, and then at once up to the next timer. What runs next depends on the timers
alone, so a run of the same seed does the same, in any process.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

BASE_S: Final = 1_772_452_800.0
"""Virtual time 0 as seconds since 1970: 2026-03-02 12:00 UTC."""


class Stalled(RuntimeError):
    """Nothing is scheduled and nothing is ready: whoever still waits would wait for ever."""


class VirtualLoop(asyncio.BaseEventLoop):
    """asyncio's own loop over a selector that moves the clock instead of waiting."""

    def __init__(self, begins_s: float = 0.0) -> None:
        super().__init__()
        self._now_s = begins_s
        self._clock_resolution = 1e-9
        self._selector = self
        self.steps = 0
        self.errors: list[str] = []
        numbers = itertools.count()
        self.set_task_factory(lambda loop, coro, **named: _Task(next(numbers), coro, loop=loop, **named))
        self.set_exception_handler(self._note)

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._now_s

    def now_us(self) -> int:
        """Virtual microseconds since 1970."""
        return round((BASE_S + self._now_s) * 1e6)

    # -- what BaseEventLoop asks of a selector -------------------------------------------------------------------------

    def select(self, timeout: float | None) -> list[Any]:
        """Jump to the next timer where nothing is ready."""
        self.steps += 1
        if timeout is None:
            raise Stalled(f"nothing is scheduled at {self._now_s:.6f} s")
        if timeout > 0:
            self._now_s = max(self._now_s, self._scheduled[0].when())  # type: ignore[attr-defined]
        return []

    def _process_events(self, _: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody is waiting in another thread."""

    def _note(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.errors.append(f"{context.get('message')}: {error!r}")


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: asyncio keeps tasks in sets, whose order would follow memory addresses."""

    def __init__(self, number: int, coro: Any, **named: Any) -> None:
        self._number = number
        super().__init__(coro, **named)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


# -- workers -----------------------------------------------------------------------------------------------------------


class _Worker(greenlet):  # type: ignore[misc]
    """A synchronous call on its way."""

    owner: Workers


class Workers:
    """The worker threads of one simulated process: synchronous calls that wait in virtual time."""

    def __init__(self, loop: VirtualLoop, start_s: Callable[[], float]) -> None:
        """``start_s`` draws how long a call waits for a thread."""
        self._loop = loop
        self._start_s = start_s
        self._live: dict[_Worker, None] = {}
        self.killed = False

    async def ask(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """As ``asyncio.to_thread``: whoever is cancelled while waiting leaves the call running."""
        done = self._loop.create_future()

        def body() -> None:
            try:
                found = function(*args, **named)
            except Exception as error:  # noqa: BLE001 - it goes to whoever asked
                if not done.done():
                    done.set_exception(error)
            else:
                if not done.done():
                    done.set_result(found)

        if not self.killed:
            worker = _Worker(body)
            worker.owner = self
            self._live[worker] = None
            self._loop.call_later(self._start_s(), self._resume, worker)
        return await done

    def kill(self) -> None:
        """End every call where it stands, as the end of a process does."""
        self.killed = True
        live, self._live = self._live, {}
        for worker in live:
            if worker and not worker.dead:
                worker.throw(GreenletExit)

    def _resume(self, worker: _Worker) -> None:
        if worker in self._live:
            worker.switch()
            if worker.dead:
                self._live.pop(worker, None)


def wait_for(future: asyncio.Future[Any]) -> Any:
    """Inside a worker: wait in virtual time for ``future``."""
    worker = getcurrent()
    if not isinstance(worker, _Worker) or worker.parent is None:
        raise RuntimeError("a call that blocks was made on the event loop")
    future.add_done_callback(lambda _: worker.owner._resume(worker))
    worker.parent.switch()
    return future.result()


# -- what must not differ between two runs -----------------------------------------------------------------------------


@contextlib.contextmanager
def determined(loop: VirtualLoop, seed: int) -> Iterator[None]:
    """Clocks, sleeping, random ids and garbage collection follow the run while it lasts."""
    source = random.Random(f"ids/{seed}")
    state = random.getstate()
    random.seed(f"global/{seed}")

    def sleep(seconds: float) -> None:
        done = loop.create_future()
        loop.call_later(seconds, done.set_result, None)
        wait_for(done)

    replaced: list[tuple[Any, str, Any]] = [
        (time, "time", lambda: BASE_S + loop.time()),
        (time, "time_ns", lambda: loop.now_us() * 1_000),
        (time, "monotonic", loop.time),
        (time, "sleep", sleep),
        (uuid, "uuid4", lambda: uuid.UUID(int=source.getrandbits(128), version=4)),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    collects = gc.isenabled()
    # A finaliser that runs between two steps would be a step of its own.
    gc.disable()
    try:
        for module, name, value in replaced:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        random.setstate(state)
        if collects:
            gc.enable()
