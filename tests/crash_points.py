"""Execution in a process of its own that kills itself at a chosen point: just before the n-th call of the ledger or the
venue, with the call sent and its answer not read, or just after it. For tests only.

Every call that ``Execution`` makes of its ``Ledger`` and its ``Venue`` goes through here and is written down by name
before it is made, so that a run without a point to die at lists all the points there are.
"""

from __future__ import annotations

import contextvars
import functools
import http.client
import inspect
import mmap
import os
import signal
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import uvloop
from redis.asyncio.connection import AbstractConnection

from cluster.anchors import Anchors
from cluster.ledger import Ledger
from cluster.ledger_wire import Wire
from cluster.venue import Venue
from cluster.venue_budget import shared_venue
from cluster.venue_endpoint import VenueError
from cluster.venue_stream import VenueStream
from conf.limits import load_limits
from conf.settings import Secrets, Settings
from serve_apps import execution

Phase = Literal["before", "sent", "after"]
PHASES: Final[tuple[Phase, ...]] = ("before", "sent", "after")
CALLED: Final = "called"


@dataclass(frozen=True, slots=True, order=True)
class CrashPoint:
    """Die ``phase`` the ``occurrence``-th (from 1) call of ``name``, such as ``ledger.ack`` or ``venue.cancel``."""

    name: str
    occurrence: int
    phase: Phase

    def __str__(self) -> str:
        return f"{self.phase} {self.name} #{self.occurrence}"


@dataclass(frozen=True, slots=True)
class Life:
    """What a process of execution is given. ``journal`` gets a line for each call, ``log`` what it would print."""

    settings: Settings
    secrets: Secrets
    journal: Path
    log: Path
    point: CrashPoint | None = None
    constants: Mapping[str, float] = field(default_factory=dict)
    """Constants of ``serve_apps.execution`` by name, and what they are in this life."""
    watched: bool = True
    """Whether calls are counted and written down; without it nothing stands between execution and the others."""
    clock: Path | None = None
    """A file of ``set_clock``: by so much this process's clock is wrong, from the moment it is written."""


def live(life: Life) -> None:
    """The process: run execution, supervised as the replica does, until it is killed."""
    print_into(life.log)
    if life.clock is not None:
        _shift_clock(life.clock)
    for name, value in life.constants.items():
        assert isinstance(getattr(execution, name), float), f"{name} has another name now"
        setattr(execution, name, value)
    settings, watch = life.settings, Watch(life.point, life.journal) if life.watched else None
    limits = load_limits(settings.limits_file)
    anchors = Anchors.of(settings, life.secrets)

    if life.point is not None:
        _die_when_sent()

    async def run() -> None:
        plain_ledger = Ledger.connect(settings, life.secrets)
        ledger: Any = WatchedLedger(plain_ledger, watch) if watch else plain_ledger

        def make() -> execution.Execution:
            plain_venue = shared_venue(settings, life.secrets, ledger)
            venue: Any = WatchedVenue(plain_venue, watch) if watch else plain_venue

            def listen(product_ids: list[str]) -> VenueStream:
                return VenueStream(plain_venue, execution.CHANNELS, product_ids)

            stream = listen if settings.execution.stream else None
            return execution.Execution(ledger, venue, limits, settings.execution, anchors, stream=stream)

        await execution.supervise(make)

    # The loop that a replica of Serve runs on.
    uvloop.run(run())


class Watch:
    """Counts the calls of each name, writes them down, and knows when it is time."""

    def __init__(self, point: CrashPoint | None, journal: Path) -> None:
        """Die at ``point``; None only writes down."""
        self._point = point
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, *words: str) -> None:
        """Write a line that outlives the process."""
        os.write(self._journal, ("\t".join(words) + "\n").encode())

    def meet(self, name: str, about: str = "") -> Phase | None:
        """A call is about to be made: when to die, where it is the one."""
        with self._lock:
            self._counts[name] += 1
            self.note(CALLED, name, about)
            point = self._point
            here = point is not None and (point.name, point.occurrence) == (name, self._counts[name])
        if not here or point is None:
            return None
        if point.phase == "before":
            die()
        return point.phase


def set_clock(file: Path, offset_s: float) -> None:
    """Let the clocks of all processes with this file be wrong by so much from now on, in one step."""
    if not file.exists():
        file.write_bytes(bytes(8))
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 8) as shared:
        shared[:8] = struct.pack("d", offset_s)


def _shift_clock(file: Path) -> None:
    """The wall clock of this process is the machine's and what the file says; the monotonic one stays, as it would."""
    shared = mmap.mmap(os.open(file, os.O_RDONLY), 8, prot=mmap.PROT_READ)
    true_s, true_ns = time.time, time.time_ns
    wall: Any = time

    def offset_s() -> float:
        return float(struct.unpack("d", shared[:8])[0])

    wall.time = lambda: true_s() + offset_s()
    wall.time_ns = lambda: true_ns() + round(offset_s() * 1e9)


def calls_made(journal: Path) -> Counter[str]:
    """How often each name was called in a life."""
    return Counter(name for kind, name, _ in lines_of(journal) if kind == CALLED)


def lines_of(journal: Path) -> list[tuple[str, str, str]]:
    """What was written down of a life: (called or the error it ended with, the call, the order it was about)."""
    if not journal.exists():
        return []
    fields = (line.split("\t") for line in journal.read_text().splitlines())
    return [(kind, name, about) for kind, name, about in fields]


def die() -> NoReturn:
    """End this process as a crash does: nothing is flushed, closed or told."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


class WatchedLedger:
    """A ledger whose public verbs are points to die at."""

    def __init__(self, ledger: Ledger, watch: Watch) -> None:
        self._ledger = ledger
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if name.startswith("_") or not inspect.iscoroutinefunction(found):
            return found

        @functools.wraps(found)
        async def call(*arguments: Any, **named: Any) -> Any:
            phase = self._watch.meet(f"ledger.{name}")
            if phase == "sent":
                _dies_once_sent.set(True)
            answer = await found(*arguments, **named)
            if phase:
                die()
            return answer

        return call


class WatchedVenue:
    """A venue whose calls are points to die at."""

    def __init__(self, venue: Venue, watch: Watch) -> None:
        self._venue = venue
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._venue, name)
        if name.startswith("_") or name == "close" or not inspect.ismethod(found):
            return found

        @functools.wraps(found)
        def call(*arguments: Any, **named: Any) -> Any:
            about = next((getattr(given, "client_order_id", given) for given in arguments), "")
            about = about if isinstance(about, str) else ""
            phase = self._watch.meet(f"venue.{name}", about)
            _this_thread.dies_once_sent = phase == "sent"
            try:
                answer = found(*arguments, **named)
            except VenueError as error:
                self._watch.note(type(error).__name__, f"venue.{name}", about)
                raise
            if phase:
                die()
            return answer

        return call


# -- dying with the request on the wire --------------------------------------------------------------------------------

_dies_once_sent: Final = contextvars.ContextVar("_dies_once_sent", default=False)
_this_thread: Final = threading.local()
_awaited: list[tuple[str, ...]] = []


def _die_when_sent() -> None:
    """From now on a call that was marked ends the process when its bytes were given to the kernel."""

    def noting(send: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(send)
        async def sent(wire: Wire, *command: str) -> Any:
            if _dies_once_sent.get():
                _awaited.append(command)
            return await send(wire, *command)

        return sent

    pack = AbstractConnection.send_packed_command
    answer_of = http.client.HTTPConnection.getresponse

    @functools.wraps(pack)
    async def packed(connection: Any, command: Any, *arguments: Any, **named: Any) -> Any:
        await pack(connection, command, *arguments, **named)
        payload = command if isinstance(command, bytes) else b"".join(command)
        if any(all(part.encode() in payload for part in awaited) for awaited in _awaited):
            die()

    @functools.wraps(answer_of)
    def unanswered(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        if getattr(_this_thread, "dies_once_sent", False):
            die()
        return answer_of(connection)

    wire: Any
    connection: Any
    requests: Any
    wire, connection, requests = Wire, AbstractConnection, http.client.HTTPConnection
    wire.send, wire.send_alone = noting(Wire.send), noting(Wire.send_alone)
    connection.send_packed_command = packed
    requests.getresponse = unanswered


def print_into(log: Path) -> None:
    """Whatever this process prints goes to ``log``."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)
