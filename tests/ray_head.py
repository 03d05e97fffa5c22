"""A Ray head with its dashboard for tests: on free ports, with a folder of its own, gone when the test module ends."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from cluster.processes import DeskError, Started, choose_ports, family, start, stop, wait_until
from cluster.ray_jobs import RayJobs, RayJobsError

ROOT: Final = Path(__file__).resolve().parents[1]
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 10.0
ATTEMPTS: Final = 3
_PORTS: Final = (
    "port",
    "dashboard-port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)


@dataclass(frozen=True)
class RayHead:
    """A running head: ``address`` is what ``ray.init`` takes, ``dashboard`` what the Jobs API listens on."""

    address: str
    dashboard: str
    environment: Mapping[str, str]
    started: Started
    owner: str

    @property
    def jobs(self) -> RayJobs:
        """The Jobs API of this head."""
        return RayJobs(self.dashboard)

    def workers(self, title: str) -> list[psutil.Process]:
        """Living worker processes of this head whose title contains ``title``."""
        found = []
        for process in family([self.started], self.owner, []):
            try:
                if any(title in part for part in process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue  # it has ended meanwhile
        return found


@contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[RayHead]:
    """Start a head and stop exactly its processes in the end."""
    # A socket's path may have 107 bytes, and Ray puts long ones below its folder.
    folder = Path(tempfile.mkdtemp(prefix="tt-ray-"))
    owner = uuid.uuid4().hex
    head: RayHead | None = None
    try:
        for attempt in range(ATTEMPTS):
            try:
                head = _started(folder / str(attempt), owner, num_cpus)
                break
            except DeskError:
                # Ray gives its raylet thirty seconds, which a machine with much else to do does not always have.
                stop(family([], owner, [str(folder)]), STOP_TIMEOUT_S)
                if attempt == ATTEMPTS - 1:
                    raise
        assert head is not None
        yield head
    finally:
        # Asked alone, the head takes the others down in their order, which is quicker than asking all at once.
        root = head.started.process() if head else None
        stop([root] if root else [], STOP_TIMEOUT_S)
        stop(family([], owner, [str(folder)]), STOP_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _started(folder: Path, owner: str, num_cpus: int) -> RayHead:
    """A head that has said that it runs and whose Jobs API answers; raises ``DeskError``."""
    folder.mkdir()
    ports = dict(zip(_PORTS, choose_ports(len(_PORTS)), strict=True))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "DESK_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    environment = kept | {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    argv: list[str | Path] = [Path(sys.executable).with_name("ray"), "start", "--head", "--block"]
    argv += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    argv += [f"--num-cpus={num_cpus}", "--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}"]
    argv += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
    argv += [f"--{name}={port}" for name, port in ports.items()]
    log = folder / "head.log"
    # From the repository's root, so that jobs import the very files the tests import.
    started = start("ray", argv, environment, log, owner, ROOT)
    dashboard = f"127.0.0.1:{ports['dashboard-port']}"

    def ready() -> bool:
        return "Ray runtime started" in log.read_text(errors="replace") and _answers(RayJobs(dashboard))

    wait_until("ray", ready, START_TIMEOUT_S, started, log)
    address = f"127.0.0.1:{ports['port']}"
    return RayHead(address, dashboard, environment | {"RAY_ADDRESS": address}, started, owner)


def _answers(jobs: RayJobs) -> bool:
    try:
        return bool(jobs.version())
    except RayJobsError:
        return False
