"""Start servers, remember exactly which they are, and stop exactly those, whatever was killed before."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

# Every process a desk starts carries this variable, its children inherit it: so those that lost their parent are found.
OWNER_VARIABLE: Final = "TT_DESK_OWNER"
POLL_INTERVAL_S: Final = 0.05
TAIL_BYTES: Final = 65_536


class DeskError(RuntimeError):
    """A part of the desk could not be started or stopped; the text names it and says what to do."""


class PortTaken(DeskError):
    """Something else listens on a configured port."""


@dataclass(frozen=True, slots=True)
class Started:
    """A process the desk started: ``created_s`` (UNIX seconds) tells it from a later one with the same pid."""

    name: str
    pid: int
    created_s: float

    def process(self) -> psutil.Process | None:
        """The living process, or None."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_s) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def start(
    name: str, argv: Sequence[str | Path], environment: Mapping[str, str], log: Path, owner: str, folder: Path
) -> Started:
    """Start ``argv`` in ``folder`` as a session of its own, output appended to ``log``.

    Raises ``DeskError`` where there is no such program or it ends at once.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("ab") as output:
            process = subprocess.Popen(
                [str(part) for part in argv],
                env={**environment, OWNER_VARIABLE: owner},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise DeskError(f"{name}: {argv[0]} could not be started: {error}") from error
    try:
        created_s = psutil.Process(process.pid).create_time()
    except psutil.Error:
        raise DeskError(f"{name}: ended at once; {tail(log)}") from None
    # Popen would warn about a child nobody waited for; the desk outlives this process on purpose.
    process.returncode = 0
    return Started(name, process.pid, created_s)


def wait_until(what: str, ready: Callable[[], bool], timeout_s: float, started: Started, log: Path) -> None:
    """Wait for ``ready``; raises ``DeskError`` with the log's end when the process ends or the time is up."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if started.process() is None:
            raise DeskError(f"{what}: the process ended before it was ready; {tail(log)}")
        if time.monotonic() > deadline:
            raise DeskError(f"{what}: not ready within {timeout_s:.0f} s; {tail(log)}")
        time.sleep(POLL_INTERVAL_S)


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, with its path."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            end = file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        end = []
    return f"log {log}:\n" + "\n".join(end)


def choose_port(configured: int, setting: str) -> int:
    """``configured`` if it is free, or a free port where it is 0; raises ``PortTaken`` naming port and setting."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            # On all interfaces, because some of the servers listen there: what is taken on one is taken.
            probe.bind(("", configured))
        except OSError as error:
            variable = "DESK_" + setting.upper().replace(".", "__")
            remedy = f"set another one ({variable}=PORT, or 0 for any free port)"
            if error.errno == errno.EACCES:
                raise DeskError(f"{setting}: port {configured} may not be used by this user; {remedy}") from None
            raise PortTaken(
                f"{setting}: port {configured} is taken by another program; {remedy} or stop that program"
            ) from None
        return int(probe.getsockname()[1])


def choose_ports(count: int) -> list[int]:
    """``count`` different free ports, below the range the system hands out for outgoing connections."""
    found: list[int] = []
    candidate = 20_000 + (os.getpid() * 37 + time.monotonic_ns() // 1_000_000) % 8_000
    while len(found) < count:
        candidate = candidate + 1 if candidate < 29_000 else 20_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", candidate))
            found.append(candidate)
    return found


def family(started: Iterable[Started], owner: str, marks: Sequence[str]) -> list[psutil.Process]:
    """Every living process of the desk, and no other.

    These are the started ones, their descendants, and whatever carries the owner's variable. Of programs that have
    renamed themselves, which overwrites their environment, those in a session of a started one, or with one of
    ``marks`` in their command line or in the name of the file they write their output to.
    """
    started = list(started)
    roots = [process for item in started if (process := item.process()) is not None]
    found = {process.pid: process for root in roots for process in _with_children(root)}
    sessions = {item.pid for item in started if not _recycled(item)}
    for process in psutil.process_iter():
        if process.pid not in found and _belongs(process, owner, marks, sessions):
            found[process.pid] = process
    return [process for process in found.values() if process.pid != os.getpid()]


def stop(processes: Sequence[psutil.Process], patience_s: float) -> None:
    """Ask ``processes`` to end, and end those that have not within ``patience_s``."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    alive = _await_end(processes, patience_s)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _await_end(alive, 5.0)


def _await_end(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those still alive after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    alive = [process for process in processes if not _ended(process)]
    while alive and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
        alive = [process for process in alive if not _ended(process)]
    return alive


def _ended(process: psutil.Process) -> bool:
    try:
        if process.is_running() and process.status() == psutil.STATUS_ZOMBIE:
            # Dead, whoever should have noticed; our own child we can bury ourselves.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            return True
        return not process.is_running()
    except psutil.NoSuchProcess:
        return True


def _recycled(item: Started) -> bool:
    """Whether the pid, and with it the session's number, may be somebody else's by now."""
    if item.created_s < psutil.boot_time() - 1.0:
        return True
    try:
        return abs(psutil.Process(item.pid).create_time() - item.created_s) >= 1.0
    except psutil.Error:
        # Nobody has it: processes of its session that outlived it keep the number from being given away.
        return False


def _with_children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _belongs(process: psutil.Process, owner: str, marks: Sequence[str], sessions: set[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if environment := process.environ():
            # A reader of the desk's logs has their path in its command line too; it is not ours to stop.
            return environment.get(OWNER_VARIABLE) == owner
        if os.getsid(process.pid) in sessions or any(mark in part for part in process.cmdline() for mark in marks):
            return True
        # A sweep's worker has left its session and its command line; what it says still goes to the desk's logs.
        return any(mark in str(Path(f"/proc/{process.pid}/fd/1").readlink()) for mark in marks)
    except (psutil.Error, OSError):
        return False
