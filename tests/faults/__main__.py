"""``make faults``: every fault test with five seeds; writes TEST_REPORT.md from what they measured."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.conftest import PLUGIN
from tests.faults.report import FAULT, Row, order_of, page
from tests.servers import KINDS, binary

HERE: Final = Path(__file__).resolve().parent
REPORT: Final = HERE.parents[1] / "TEST_REPORT.md"


class FaultRun:
    """The plugin that tells the tests to run whole, and collects what they hand over."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self._targets: dict[tuple[str, str], str] = {}
        self._figures: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self._failed: dict[tuple[str, str], int] = defaultdict(int)
        self._skipped: dict[tuple[str, str], list[str]] = defaultdict(list)
        self._named: dict[str, tuple[str, str, str]] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Remember which fault a test is about, for the tests that cannot say it themselves any more."""
        if mark := item.get_closest_marker("fault"):
            self._named[item.nodeid] = mark.args

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after set-up, call and tear-down of each test."""
        if report.nodeid not in self._named:
            return
        number, name, target = self._named[report.nodeid]
        self._targets[number, name] = target
        if report.failed:
            self._failed[number, name] += 1
        if report.skipped and isinstance(report.longrepr, tuple):
            self._skipped[number, name].append(report.longrepr[2].removeprefix("Skipped: "))
        if report.when == "teardown":
            found = [value for key, value in report.user_properties if key == FAULT]
            self._figures[number, name] += [value["figures"] for value in found if isinstance(value, dict)]

    def rows(self) -> list[Row]:
        """One for each fault, in order."""
        rows = [
            Row(*key, target, self._figures[key], self._failed[key], self._skipped[key])
            for key, target in self._targets.items()
        ]
        return sorted(rows, key=order_of)


def main() -> int:
    """Run, write, and say whether all passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("-k", dest="only", default="", help="as pytest's; a part of the set is not worth a report")
    options = parser.parse_args()
    # However it is told to end, it ends what it has started (a shell in the background lets the first be ignored).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    load = _load()
    run, begin_s = FaultRun(options.seeds), time.monotonic()
    arguments = [str(HERE), "-s", "-q", "--timeout=600", "-p", "no:cacheprovider"]
    code = pytest.main(arguments + (["-k", options.only] if options.only else []), plugins=[_registered(run)])
    # Only now: pytest wants to be the first to import the package that brings the server.
    facts = _machine() | {"load average at the beginning": load, "load average at the end": _load()}
    facts["seeds"] = str(options.seeds)
    facts["duration"] = f"{(time.monotonic() - begin_s) / 60:.1f} minutes"
    options.report.write_text(page(facts, run.rows()))
    print(f"written: {options.report}")
    return int(code)


class _Registrar:
    """Registers the run under its name, which ``pytest.main`` itself does not do."""

    def __init__(self, run: FaultRun) -> None:
        self._run = run

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(self._run, PLUGIN)


def _registered(run: FaultRun) -> _Registrar:
    return _Registrar(run)


def _machine() -> dict[str, str]:
    return {
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        **{f"server {kind}": _version(kind) for kind in KINDS},
    }


def _load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


def _version(kind: Any) -> str:
    try:
        program = binary(kind)
    except pytest.skip.Exception:
        return "not installed"
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    fields = [part for part in text.split() if part.startswith("v=")]
    return f"{text.split()[0]} {fields[0].removeprefix('v=')}" if fields else text.strip()


if __name__ == "__main__":
    sys.exit(main())
