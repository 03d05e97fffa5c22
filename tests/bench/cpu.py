"""Where the machine's time goes while something runs: processor seconds by component, and what was idle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

GENERATOR: Final = "load generator"
IDLE: Final = "idle"
ELSEWHERE: Final = "everything else on the machine"
# What a command line contains -> what we call it; the first that fits.
_NAMES: Final = (
    ("ServeReplica:orders", "risk replicas"),
    ("ServeReplica:execution", "execution"),
    ("ServeReplica:api", "api"),
    ("tests.bench.plain_fastapi", "uvicorn workers"),
    ("valkey", "Valkey"),
    ("redis-benchmark", GENERATOR),
    ("haproxy", "HAProxy"),
    ("ServeController", "Serve controller"),
    ("cluster.exchange_sim", "exchange simulator"),
    ("raylet", "raylet"),
    ("gcs_server", "GCS"),
    ("dashboard", "Ray dashboard and agents"),
    ("agent", "Ray dashboard and agents"),
    ("multiprocessing", "uvicorn workers"),
    ("ray", "rest of Ray"),
)


@dataclass
class Spent:
    """Processor seconds by component, summed over runs, and the work done meanwhile."""

    seconds: dict[str, float] = field(default_factory=dict)
    machine_s: float = 0.0
    orders: int = 0

    def __add__(self, other: Spent) -> Spent:
        names = self.seconds.keys() | other.seconds.keys()
        seconds = {name: self.seconds.get(name, 0.0) + other.seconds.get(name, 0.0) for name in names}
        return Spent(seconds, self.machine_s + other.machine_s, self.orders + other.orders)

    def table(self) -> list[dict[str, Any]]:
        """A row a component, the costliest first: microseconds an order, per cent of all processors' time."""
        return [
            {
                "component": name,
                "us_per_order": round(1e6 * seconds / self.orders, 1) if self.orders else None,
                "percent_of_machine": round(100 * seconds / self.machine_s, 1) if self.machine_s else None,
            }
            for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])
            if seconds > 0
        ]


class Meter:
    """Measures between ``begin`` and ``end``; processes that start in between are seen, those that end are not."""

    def __init__(self, processes: Iterable[psutil.Process]) -> None:
        """Of these processes, and of this one as the load generator."""
        self._processes = [*processes]

    def begin(self) -> None:
        """From now on."""
        self._before = self._seconds()
        self._machine_before = psutil.cpu_times()

    def end(self, orders: int) -> Spent:
        """Until now; ``orders`` were handled meanwhile."""
        after, machine = self._seconds(), psutil.cpu_times()
        seconds: dict[str, float] = {}
        for process, (name, spent_s) in after.items():
            seconds[name] = seconds.get(name, 0.0) + spent_s - self._before.get(process, (name, 0.0))[1]
        times = {name: getattr(machine, name) - getattr(self._machine_before, name) for name in machine._fields}
        # The guests' time is in the users' already.
        machine_s = sum(spent for name, spent in times.items() if not name.startswith("guest"))
        idle_s = times["idle"] + times.get("iowait", 0.0)
        rest_s = machine_s - idle_s - sum(seconds.values())
        seconds[IDLE] = idle_s
        seconds[ELSEWHERE] = max(0.0, rest_s)
        return Spent(seconds, machine_s, orders)

    def _seconds(self) -> Mapping[psutil.Process, tuple[str, float]]:
        found = {}
        for process in {*self._processes, *_children(self._processes)}:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found[process] = (_name(process), times.user + times.system)
        own = psutil.Process()
        times = own.cpu_times()
        # Children that have ended (redis-benchmark) count for the one that waited for them.
        found[own] = (GENERATOR, times.user + times.system + times.children_user + times.children_system)
        return found


def _children(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def _name(process: psutil.Process) -> str:
    line = " ".join(process.cmdline()) or process.name()
    return next((name for part, name in _NAMES if part in line), process.name())
