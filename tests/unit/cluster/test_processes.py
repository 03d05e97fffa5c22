"""Starting, finding and stopping exactly the desk's own processes, whatever was killed, renamed or recycled."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil
import pytest

from cluster.processes import (
    OWNER_VARIABLE,
    DeskError,
    PortTaken,
    Started,
    choose_port,
    choose_ports,
    family,
    start,
    stop,
    tail,
    wait_until,
)

SLEEP: Final = "print('ready', flush=True); import time; time.sleep(60)"
STUBBORN: Final = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
# What programs do that set their own title: they write over their arguments and their environment.
RENAMED: Final = f"""
import ctypes
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
arguments, environment_end = int(fields[45]), int(fields[48])
ctypes.memset(arguments, 0, environment_end - arguments)
ctypes.memmove(arguments, b"desk::renamed", 13)
{SLEEP}
"""
RENAMED_WITH_MARK: Final = RENAMED.replace('b"desk::renamed", 13', 'b"/scratch/desk-x/part", 20')
IN_A_SESSION_OF_ITS_OWN: Final = "import os; os.setsid(); "


def starts(child: str) -> str:
    """A program that starts another one and stays; it prints the child's pid."""
    return (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True); "
        "p.stdout.readline(); print(p.pid, flush=True); time.sleep(60)"
    )


@pytest.fixture
def owner(tmp_path: Path) -> str:
    return str(tmp_path / "state")


@pytest.fixture
def begin(tmp_path: Path, owner: str) -> Iterator[Callable[[str], Started]]:
    """Start a Python program as the desk does, and wait for its first line; all are gone afterwards."""
    begun: list[Started] = []

    def started(program: str) -> Started:
        log = tmp_path / f"{len(begun)}.log"
        item = start("part", [sys.executable, "-c", program], dict(os.environ), log, owner, tmp_path)
        begun.append(item)
        wait_until("part", lambda: "\n" in log.read_text(), 20, item, log)
        return item

    yield started
    for process in family(begun, owner, ["/scratch/desk-x/"]):
        process.kill()


def first_line(tmp_path: Path, number: int = 0) -> str:
    return (tmp_path / f"{number}.log").read_text().splitlines()[0]


def foreign(program: str, **environment: str) -> subprocess.Popen[str]:
    """A process that is not the desk's, in a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | environment,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[str]]:
    process = foreign(SLEEP)
    yield process
    process.kill()
    process.communicate()


def pids(processes: list[psutil.Process]) -> set[int]:
    return {process.pid for process in processes}


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_free_port_is_taken_as_configured() -> None:
    (port,) = choose_ports(1)
    assert choose_port(port, "redis.port") == port


def test_no_port_configured_means_any_free_one() -> None:
    chosen = choose_port(0, "redis.port")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", chosen))


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])  # noqa: S104 - the case in question
def test_a_taken_port_is_an_error_that_names_port_setting_and_remedy(address: str) -> None:
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken) as caught:
            choose_port(port, "serve.http_port")
    assert str(caught.value) == (
        f"serve.http_port: port {port} is taken by another program; "
        "set another one (DESK_SERVE__HTTP_PORT=PORT, or 0 for any free port) or stop that program"
    )


def test_a_port_whose_last_server_has_just_gone_is_free() -> None:
    with socket.socket() as listener:
        # As every server does.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = listener.accept()
        # The side that closes first keeps the port in TIME_WAIT.
        accepted.close()
        client.close()
    assert choose_port(port, "redis.port") == port


def test_several_ports_are_different_and_free() -> None:
    ports = choose_ports(20)
    assert len(set(ports)) == 20
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("", port))


# -- starting ----------------------------------------------------------------------------------------------------------


def test_a_started_process_is_known_by_pid_and_time(begin: Callable[[str], Started]) -> None:
    item = begin(SLEEP)
    process = item.process()
    assert process is not None
    assert process.environ()[OWNER_VARIABLE]
    assert os.getsid(item.pid) == item.pid


def test_a_program_that_is_not_there_is_named(tmp_path: Path, owner: str) -> None:
    with pytest.raises(DeskError, match=r"valkey: /nowhere/valkey could not be started"):
        start("valkey", ["/nowhere/valkey"], {}, tmp_path / "log", owner, tmp_path)


def test_waiting_for_a_process_that_ends_tells_its_last_words(tmp_path: Path, owner: str) -> None:
    log = tmp_path / "log"
    program = "import sys; print('x' * 200_000); sys.exit('the port is taken')"
    item = start("valkey", [sys.executable, "-c", program], dict(os.environ), log, owner, tmp_path)
    with pytest.raises(DeskError, match=r"valkey: the process ended before it was ready; log .*") as caught:
        wait_until("valkey", lambda: False, 30, item, log)
    assert "the port is taken" in str(caught.value)
    assert len(str(caught.value)) < 70_000


def test_waiting_has_an_end_that_names_what_was_waited_for(begin: Callable[[str], Started], tmp_path: Path) -> None:
    item = begin(SLEEP)
    with pytest.raises(DeskError, match=r"ray: not ready within 0 s; log .*\nready"):
        wait_until("ray", lambda: False, 0.1, item, tmp_path / "0.log")


def test_the_end_of_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert tail(tmp_path / "nothing").endswith("nothing:\n")


# -- finding -----------------------------------------------------------------------------------------------------------


def test_a_started_process_and_its_children_are_found(
    begin: Callable[[str], Started], tmp_path: Path, owner: str, bystander: subprocess.Popen[str]
) -> None:
    item = begin(starts(SLEEP))
    assert pids(family([item], owner, [])) == {item.pid, int(first_line(tmp_path))}


@pytest.mark.parametrize(
    "child",
    [SLEEP, STUBBORN, IN_A_SESSION_OF_ITS_OWN + SLEEP, RENAMED, "import os; os.setsid()" + RENAMED_WITH_MARK],
    ids=["plain", "ignores SIGTERM", "session of its own", "renamed", "renamed, session of its own, marked"],
)
def test_a_child_whose_parent_was_killed_is_found_and_stopped(
    begin: Callable[[str], Started], tmp_path: Path, owner: str, bystander: subprocess.Popen[str], child: str
) -> None:
    item = begin(starts(child))
    orphan = psutil.Process(int(first_line(tmp_path)))
    os.kill(item.pid, signal.SIGKILL)
    wait_for(lambda: item.process() is None)
    found = family([item], owner, ["/scratch/desk-x/"])
    assert pids(found) == {orphan.pid}
    stop(found, patience_s=0.2)
    wait_for(lambda: not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE)
    assert family([item], owner, ["/scratch/desk-x/"]) == []
    assert bystander.poll() is None


def test_a_process_is_found_by_its_owner_when_nothing_was_recorded(begin: Callable[[str], Started], owner: str) -> None:
    item = begin(SLEEP)
    assert pids(family([], owner, [])) == {item.pid}


def test_a_renamed_process_is_found_by_its_session(begin: Callable[[str], Started], owner: str) -> None:
    item = begin(RENAMED)
    process = item.process()
    assert process is not None
    assert process.environ() == {}
    assert pids(family([item], owner, [])) == {item.pid}


def test_a_renamed_process_that_has_left_its_session_is_found_by_its_output(owner: str, tmp_path: Path) -> None:
    # Workers of sweeps once outlived a raylet that was killed: neither session nor command line told whose they were.
    with (tmp_path / "worker.out").open("w") as output:
        worker = subprocess.Popen([sys.executable, "-c", RENAMED], stdout=output, start_new_session=True)
    try:
        wait_for(lambda: "ready" in (tmp_path / "worker.out").read_text())
        assert psutil.Process(worker.pid).environ() == {}
        assert family([], owner, [f"{tmp_path / 'other'}/"]) == []
        assert pids(family([], owner, [f"{tmp_path}/"])) == {worker.pid}
    finally:
        worker.kill()
        worker.communicate()


def test_what_is_not_the_desks_is_not_found(begin: Callable[[str], Started], owner: str, tmp_path: Path) -> None:
    item = begin(SLEEP)
    others = [
        foreign(SLEEP),
        foreign(SLEEP, **{OWNER_VARIABLE: owner + "-2"}),
        foreign(SLEEP, **{OWNER_VARIABLE: str(tmp_path)}),
        # Somebody reads a log of the desk: its path is in the command line.
        foreign(f"{SLEEP} # /scratch/desk-x/ray/session.log"),
        foreign(RENAMED),
    ]
    try:
        assert pids(family([item], owner, ["/scratch/desk-x/"])) == {item.pid}
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_the_process_that_asks_is_never_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    this = psutil.Process()
    monkeypatch.setenv(OWNER_VARIABLE, "somebody")
    item = Started("this", this.pid, this.create_time())
    assert this.pid not in pids(family([item], "somebody", ["python"]))


# -- a pid that belongs to somebody else by now ------------------------------------------------------------------------


@pytest.mark.parametrize("program", [SLEEP, RENAMED], ids=["plain", "renamed"])
def test_a_recycled_pid_is_not_touched_nor_is_its_session(owner: str, program: str) -> None:
    # The pid of a recorded process now leads somebody else's session: its number alone says nothing.
    other = foreign(program)
    try:
        created_s = psutil.Process(other.pid).create_time()
        for age_s in (2.0, 3_600.0, -2.0):
            recorded = Started("valkey", other.pid, created_s - age_s)
            assert recorded.process() is None
            assert family([recorded], owner, []) == []
    finally:
        other.kill()
        other.communicate()


def test_a_session_left_from_before_the_last_boot_is_somebody_elses(owner: str) -> None:
    # A daemon's session often outlives its leader: after a reboot its number may be one the desk had recorded.
    other = foreign(starts(RENAMED))
    child = psutil.Process(psutil.Process(other.pid).children()[0].pid)
    try:
        recorded = Started("valkey", other.pid, psutil.boot_time() - 1_000.0)
        other.kill()
        other.communicate()
        assert family([recorded], owner, []) == []
        assert pids(family([replace(recorded, created_s=time.time())], owner, [])) == {child.pid}
    finally:
        child.kill()


@pytest.mark.parametrize("pid", [2**22 + 1, 999_999_999])
def test_a_pid_nobody_has_is_nobody(owner: str, pid: int) -> None:
    item = Started("valkey", pid, time.time())
    assert item.process() is None
    assert family([item], owner, []) == []


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_a_process_is_asked_first_and_may_finish_its_work(
    begin: Callable[[str], Started], tmp_path: Path, owner: str
) -> None:
    farewell = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit()))"
    item = begin(f"{farewell}; {SLEEP}")
    stop(family([item], owner, []), patience_s=20)
    assert item.process() is None
    assert (tmp_path / "0.log").read_text().splitlines() == ["ready", "bye"]


@pytest.mark.parametrize("frozen", [False, True])
def test_a_process_that_does_not_listen_is_ended_all_the_same(
    begin: Callable[[str], Started], owner: str, frozen: bool
) -> None:
    item = begin(SLEEP if frozen else STUBBORN)
    if frozen:
        os.kill(item.pid, signal.SIGSTOP)
    stop(family([item], owner, []), patience_s=0.2)
    assert item.process() is None


def test_our_own_dead_child_is_not_waited_for(begin: Callable[[str], Started], owner: str) -> None:
    # A child nobody has buried is a zombie: it exists, but there is nothing left to stop.
    item = begin(SLEEP)
    processes = family([item], owner, [])
    os.kill(item.pid, signal.SIGKILL)
    wait_for(lambda: item.process() is None)
    begun = time.monotonic()
    stop(processes, patience_s=30)
    assert time.monotonic() - begun < 15


def test_stopping_what_is_already_gone_or_nothing_is_harmless(begin: Callable[[str], Started], owner: str) -> None:
    item = begin(SLEEP)
    processes = family([item], owner, [])
    stop(processes, patience_s=20)
    stop(processes, patience_s=20)
    stop([], patience_s=20)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
