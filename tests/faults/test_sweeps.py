"""Faults 7 to 9: a sweep's workers and its driver are killed, and both run out of memory; its table stays the same."""

from __future__ import annotations

import contextlib
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from pydantic import SecretStr

from cluster.local import ray_token
from cluster.market_data import SIMULATED, BarStore
from cluster.ray_jobs import RayJobs
from cluster.runs import RunFolder, RunState, prepare_run, settle
from strategies.model import Granularity
from tests.faults.conftest import Report
from tests.faults.desk_load import Load
from tests.ray_head import RayHead, ray_head
from tests.run_samples import complete_run, make_spec, wavy_bars
from tests.system.client import Desk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S: Final = 300.0
WORKER: Final = "ray::ImplicitFunc"
# Stops keep these sets on the loop over bars: enough seconds of work for a dozen blocks.
SWEEP: Final[dict[str, Any]] = {
    "granularity": "ONE_MINUTE",
    "grids": [
        {
            "strategy": "sma_cross",
            "grid": {
                "fast": {"start": 5, "stop": 95, "step": 5},
                "slow": {"start": 100, "stop": 480, "step": 20},
                "stop_loss": [0.02, 0.05],
            },
        },
        {"strategy": "rsi_reversion", "grid": {"window": [7, 14, 21, 28], "stop_loss": [0.02, 0.05]}},
    ],
}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    # One worker at a time, so that each block can be made to lose its worker exactly once.
    with ray_head(num_cpus=1) as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    store = BarStore(tmp_path_factory.mktemp("bars"))
    store.write(wavy_bars(600_000, granularity=Granularity.ONE_MINUTE), source=SIMULATED)
    return store


@pytest.fixture(scope="module")
def quiet(store: BarStore, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The sweep's table where nobody disturbed it."""
    folder = complete_run(tmp_path_factory.mktemp("quiet"), store, make_spec(**SWEEP), "quiet")
    return folder.results_file.read_bytes()


class Driver:
    """A driver of a run on a head, not as a job, so that its death is nobody's but ours."""

    def __init__(self, head: RayHead, folder: RunFolder, store: BarStore) -> None:
        argv = [sys.executable, "-m", "jobs.sweep", "--run-dir", str(folder.path), "--bars-dir", str(store.root)]
        self.log = folder.path / "driver.log"
        with self.log.open("ab") as log:
            self.process = psutil.Popen(argv, env=dict(head.environment), stdout=log, stderr=subprocess.STDOUT)

    def await_that(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for something that happens before the driver ends."""
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S} s"
            assert self.process.poll() is None, f"{what}: the driver ended before: {self.log.read_text()}"
            time.sleep(0.02)

    def end(self) -> int:
        """Its exit status."""
        return int(self.process.wait(WAIT_S))


def parts(folder: RunFolder) -> dict[str, tuple[int, int]]:
    """The finished blocks' files; a file that was written again has another inode or time."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.parts_dir.glob("block-*")}


def kill_workers(head: RayHead) -> set[int]:
    killed = set()
    for worker in head.workers(WORKER):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
            killed.add(worker.pid)
    return killed


def starve(process: psutil.Process) -> bool:
    """From now on a process gets no memory beyond what it has; False where it has ended or has its limit."""
    with contextlib.suppress(psutil.Error):
        if process.rlimit(psutil.RLIMIT_AS)[0] == psutil.RLIM_INFINITY:
            size = process.memory_info().vms
            process.rlimit(psutil.RLIMIT_AS, (size, size))
            return True
    return False


@pytest.mark.fault("7", "the worker of every block SIGKILLed once", "the table of a quiet run, bit for bit")
def test_every_block_may_lose_its_worker(
    head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes, report: Report, full: bool
) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**SWEEP), "workers")
    driver = Driver(head, folder, store)
    begin_s = time.monotonic()
    killed: set[int] = set()
    done = -1
    # After each block the worker is at the next one, or on its way to it; the small set of tests stops after two.
    while driver.process.poll() is None and (full or len(killed) < 2):
        if len(parts(folder)) > done and (found := kill_workers(head)):
            killed |= found
            done = len(parts(folder))
        time.sleep(0.02)
    assert driver.end() == 0, driver.log.read_text()
    blocks = len(parts(folder))
    report(blocks=blocks, workers_killed=len(killed), sweep_s=round(time.monotonic() - begin_s, 1))
    assert len(killed) >= 2, "no worker was there to be killed"
    assert folder.progress().state == RunState.SUCCEEDED
    assert folder.results_file.read_bytes() == quiet


@pytest.mark.fault(
    "8", "the driver SIGKILLed at half of the sets", "no finished block is computed again; the same table"
)
def test_a_killed_driver_goes_on_from_the_finished_blocks(
    head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes, report: Report, seed: int
) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**SWEEP), "driver")
    driver = Driver(head, folder, store)
    share = random.Random(seed).uniform(0.3, 0.7) if seed else 0.5
    total = folder.record().set_count
    driver.await_that("half of the sets", lambda: folder.progress().done_sets >= share * total)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait(WAIT_S)
    deadline_s = time.monotonic() + WAIT_S
    while head.workers(WORKER):  # they end with it; until then one may finish its block
        assert time.monotonic() < deadline_s, "the driver's workers did not end"
        time.sleep(0.02)
    before = parts(folder)
    done = folder.progress().done_sets
    assert done < total, "it was over before it was killed; make it longer"
    assert not folder.results_file.exists()
    assert settle(folder, "FAILED").state == RunState.FAILED
    again = Driver(head, folder, store)
    assert again.end() == 0, again.log.read_text()
    after = parts(folder)
    computed = folder.summary()["computed_sets"]
    report(sets=total, done_when_killed=done, computed_again=sum(after[name] != was for name, was in before.items()))
    assert {name: after[name] for name in before} == before
    assert computed <= total - done
    assert folder.results_file.read_bytes() == quiet


@pytest.mark.parametrize("victim", ["driver", pytest.param("worker", marks=pytest.mark.faults)])
@pytest.mark.fault(
    "9", "a sweep has no more memory to be had", "it fails and says so; with memory it goes on to the same table"
)
def test_a_sweep_without_memory_fails_and_goes_on_later(
    head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes, report: Report, victim: str
) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**SWEEP), f"memory-{victim}")
    driver = Driver(head, folder, store)
    driver.await_that("a worker", lambda: bool(head.workers(WORKER)))
    starved = 0
    while driver.process.poll() is None:
        # From now on every request for memory is refused, as by a container's limit.
        for process in [driver.process] if victim == "driver" else head.workers(WORKER):
            starved += starve(process)
        time.sleep(0.02)
    status = driver.process.returncode
    progress = folder.progress() if folder.progress().state.ended else settle(folder, "FAILED")
    reason = progress.error.message if progress.error else ""
    report(victim=victim, exit_status=status, reason=reason[:80])
    assert starved
    assert status != 0, "it had memory enough"
    assert progress.state == RunState.FAILED
    assert reason
    assert not folder.results_file.exists()
    before = parts(folder)
    again = Driver(head, folder, store)
    assert again.end() == 0, again.log.read_text()
    assert {name: found for name, found in parts(folder).items() if name in before} == before
    assert folder.results_file.read_bytes() == quiet


@pytest.mark.faults
@pytest.mark.fault("9", "a backtest job runs out of memory beside a desk in service", "lost 0; p95 of orders <= 2x")
def test_the_risk_path_does_not_notice_a_backtest_without_memory(
    desk: Desk, tmp_path: Path, report: Report, seed: int
) -> None:
    store = BarStore(desk.settings.bars_path)
    store.write(wavy_bars(600_000, granularity=Granularity.ONE_MINUTE), source=SIMULATED)
    folder = prepare_run(desk.settings.runs_path, store, make_spec(**SWEEP, seed=seed), f"starved-{seed}")
    token = ray_token(desk.settings.state_dir)
    address = desk.settings.ray.address or f"127.0.0.1:{desk.settings.ray.dashboard_port}"
    jobs = RayJobs(address, SecretStr(token) if token else None)
    with Load(desk, tmp_path, seed) as load:
        load.await_steady()
        jobs.submit(folder.run_id, folder.entrypoint(store.root), {"kind": "sweep"})
        deadline_s = time.monotonic() + WAIT_S
        while not jobs.status(folder.run_id).ended:
            assert time.monotonic() < deadline_s, "the job did not end"
            for process in _drivers(folder):
                if folder.progress().phase in {"computing", "connecting", "ranking"}:
                    starve(process)
            time.sleep(0.05)
        load.finish()
        figures = load.figures()
        books = load.books()
    progress = folder.progress() if folder.progress().state.ended else settle(folder, "FAILED")
    report(**figures, **books.figures(), job_ended_as=str(jobs.status(folder.run_id)))
    assert progress.state == RunState.FAILED, json.dumps(progress.model_dump(mode="json"))
    assert not math.isnan(figures["p95_ms"])
    books.assert_whole()


def _drivers(folder: RunFolder) -> list[psutil.Process]:
    """The processes that drive this run; no other has its folder among its words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(folder.path) in words and "jobs.sweep" in words:
            found.append(process)
    return found
