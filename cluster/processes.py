"""Start servers, remember exactly which they are, and stop exactly those, whatever was killed before."""

from __future__ import annotations

import contextlib
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
    """Start ``argv`` in ``folder`` as a session of its own, output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
        end = log.read_text(errors="replace").splitlines()[-lines:]
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
        except OSError:
            variable = "DESK_" + setting.upper().replace(".", "__")
            raise PortTaken(
                f"{setting}: port {configured} is taken by another program; "
                f"set another one ({variable}=PORT, or 0 for any free port) or stop that program"
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
    """Every living process of the desk: the started ones, their descendants, those that carry the owner's variable
    or one of ``marks`` in their command line, and what shares a session with a started one."""
    own = os.getpid()
    roots = [process for item in started if (process := item.process()) is not None]
    found = {process.pid: process for root in roots for process in _with_children(root)}
    sessions = {item.pid for item in started}
    for process in psutil.process_iter():
        if process.pid != own and process.pid not in found and _belongs(process, owner, marks, sessions):
            found[process.pid] = process
    return [process for process in found.values() if process.pid != own]


def stop(processes: Sequence[psutil.Process], patience_s: float) -> None:
    """Ask ``processes`` to end, and end those that have not within ``patience_s``."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _with_children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _belongs(process: psutil.Process, owner: str, marks: Sequence[str], sessions: set[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if os.getsid(process.pid) in sessions:
            return True
        if any(mark in part for part in process.cmdline() for mark in marks):
            return True
        # Programs that rename themselves overwrite their environment too; the three ways above find those.
        return process.environ().get(OWNER_VARIABLE) == owner
    except (psutil.Error, OSError):
        return False
