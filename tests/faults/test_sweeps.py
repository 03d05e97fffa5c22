"""Faults 7 to 9: a sweep's workers, its driver and Ray's head are killed, memory runs out; its table stays the same."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import pytest
from pydantic import SecretStr

from cluster import local
from cluster.local import ray_token
from cluster.market_data import SIMULATED, BarStore
from cluster.ray_jobs import Job, JobStatus, RayJobs
from cluster.runs import Progress, RunFolder, RunState, prepare_run, settle
from strategies.model import Granularity
from tests.faults.books_check import load_figures
from tests.faults.conftest import Report
from tests.faults.desk_load import Load
from tests.ray_head import RayHead, ray_head
from tests.run_processes import drivers, starve
from tests.run_samples import complete_run, make_spec, wavy_bars
from tests.system.client import Desk, eventually

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
# Long enough to be killed in it again and again.
_STOPS: Final = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
LONGER: Final = SWEEP | {
    "grids": [{**grid, "grid": {**grid["grid"], "stop_loss": _STOPS}} for grid in SWEEP["grids"]],
}
_NOT_YET: Final = Job("", JobStatus.PENDING, "", "", {}, None, None, None)


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


class Sweep:
    """A sweep that users of a desk have submitted over HTTP, and what it meets."""

    def __init__(self, desk: Desk, run_id: str, spec: dict[str, Any]) -> None:
        self.desk = desk
        self.run_id = run_id
        body = make_spec(**spec).model_dump(mode="json", exclude_defaults=True) | {"run_id": run_id}
        reply = desk.http.post("/v1/backtests", json=body)
        assert reply.status_code == 202, reply.text
        self.folder = RunFolder(desk.settings.runs_path / run_id)

    def await_share(self, share: float) -> None:
        """Wait until so many of its sets are done, and it is still at work."""
        total = self.folder.record().set_count
        deadline_s = time.monotonic() + WAIT_S
        while (progress := self.folder.progress()).done_sets < share * total:
            assert not progress.state.ended, f"before {share:.0%} of the sets: {progress}"
            assert time.monotonic() < deadline_s, f"{share:.0%} of the sets: not within {WAIT_S} s"
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """The desk's workers of sweeps, of which this is the only one."""
        return self.desk.processes(WORKER)

    def state(self) -> str:
        """As the desk tells it, which settles what a dead job has left behind; empty while nobody answers."""
        with contextlib.suppress(httpx.TransportError):
            reply = self.desk.http.get(f"/v1/backtests/{self.run_id}")
            return str(reply.json()["progress"]["state"]) if reply.status_code == 200 else ""
        return ""

    def resume(self, *ended_as: str) -> None:
        """Ask the desk to go on with a run, as soon as it says that it has ended, and as one of these."""
        eventually(lambda: self.state() in ended_as, WAIT_S, f"the desk knows that the run is {' or '.join(ended_as)}")
        reply = self.desk.http.post(f"/v1/backtests/{self.run_id}/resume")
        assert reply.status_code == 202, reply.text

    def end(self) -> Progress:
        """Once it has ended."""
        eventually(lambda: self.folder.progress().state.ended, WAIT_S, "the sweep has ended")
        return self.folder.progress()


@pytest.fixture
def desks_store(desk: Desk) -> BarStore:
    """The same bars in the desk's store."""
    store = BarStore(desk.settings.bars_path)
    store.write(wavy_bars(600_000, granularity=Granularity.ONE_MINUTE), source=SIMULATED)
    return store


def end_of_head(desk: Desk, seed: int) -> str:
    """SIGKILL the raylet, the cluster's own store, or the process above both; what it was, once all are gone."""
    (head,) = [item for item in local.recorded(desk.settings.state_dir) if item.name == "ray"]
    process = head.process()
    assert process is not None
    victims = {"raylet": "raylet/raylet", "gcs": "gcs_server", "head": "ray.scripts.scripts"}
    name = list(victims)[seed % len(victims)]
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(victims[name] in word for word in one.cmdline()):
                one.kill()
                break
    else:
        raise AssertionError(f"no {victims[name]} was there to be killed")
    eventually(lambda: head.process() is None, WAIT_S, "Ray has ended")
    return name


@pytest.mark.faults
@pytest.mark.seeds(3)
@pytest.mark.fault(
    "7", "under one sweep its workers, its driver and then Ray's head are SIGKILLed", "orders lost 0; the same table"
)
def test_a_sweep_outlives_its_workers_its_driver_and_the_head(
    desk: Desk, desks_store: BarStore, tmp_path: Path, report: Report, seed: int
) -> None:
    quiet = complete_run(tmp_path / "quiet", desks_store, make_spec(**LONGER), "quiet").results_file.read_bytes()
    with Load(desk, tmp_path, seed, rate_per_s=20) as load:
        load.await_steady()
        sweep = Sweep(desk, f"outlives-{seed}", LONGER)
        sweep.await_share(0.1)
        killed = [worker for worker in sweep.workers() if killed_now(worker)]
        sweep.await_share(0.3)
        assert [driver for driver in drivers(sweep.folder) if killed_now(driver)]
        before = [parts(sweep.folder)]
        sweep.resume("FAILED")
        sweep.await_share(0.5)
        victim = end_of_head(desk, seed)
        begin_s = time.monotonic()
        # As a user would, at once: whoever still works for the dead one is ended by it.
        local.up(desk.settings)
        report(killed=victim, workers_killed=len(killed), desk_up_again_s=round(time.monotonic() - begin_s, 1))
        assert drivers(sweep.folder) + sweep.workers() == []
        before.append(parts(sweep.folder))
        done = sum(int(name[15:23]) - int(name[6:14]) for name in before[-1])
        load.await_service()
        # A driver that still worked for the dead head was asked to end by ``up``, and says so.
        sweep.resume("FAILED", "STOPPED")
        progress = sweep.end()
        load.finish()
        report(**load.figures())
        books = load.books()
    computed = sweep.folder.summary()["computed_sets"] if progress.state is RunState.SUCCEEDED else None
    report(**books.figures(), sets=progress.total_sets, done_before_the_end=done, computed_after_it=computed)
    assert progress.state is RunState.SUCCEEDED, progress
    assert killed, "no worker was there to be killed"
    after = parts(sweep.folder)
    assert all({name: after.get(name) for name in was} == was for was in before), "finished blocks were computed again"
    assert computed == progress.total_sets - done
    assert sweep.folder.results_file.read_bytes() == quiet
    books.assert_whole()


@pytest.mark.faults
@pytest.mark.parametrize("victims", ["driver", "workers"])
@pytest.mark.fault(
    "9", "a sweep on every core runs out of memory beside a desk in service", "lost 0; p95 of orders <= 2x; same table"
)
def test_the_risk_path_does_not_notice_a_sweep_without_memory(
    desk: Desk, desks_store: BarStore, tmp_path: Path, quiet: bytes, report: Report, seed: int, victims: str
) -> None:
    with Load(desk, tmp_path, seed) as load:
        load.await_steady()
        begin_s = time.time()
        sweep = Sweep(desk, f"starved-{victims}-{seed}", SWEEP)
        deadline_s = time.monotonic() + WAIT_S
        starved = 0
        while not (jobs_of(desk).latest(sweep.run_id) or _NOT_YET).status.ended:
            assert time.monotonic() < deadline_s, "the job did not end"
            at_work = sweep.folder.progress().phase in {"computing", "connecting", "ranking"}
            found = drivers(sweep.folder) if victims == "driver" else sweep.workers()
            starved += sum(starve(process) for process in found if at_work)
            time.sleep(0.05)
        failed = sweep.state(), sweep.folder.progress()
        sweep.resume("FAILED")
        progress = sweep.end()
        end_s = time.time()
        load.finish()
        report(**load.figures(), **beside(load, begin_s, end_s), victims=victims, starved=starved)
        books = load.books()
    reason = failed[1].error.message if failed[1].error else ""
    report(**books.figures(), failed_as=reason[:80], sweep_and_failure_s=round(end_s - begin_s, 1))
    assert starved
    assert failed[0] == RunState.FAILED
    assert reason
    assert progress.state is RunState.SUCCEEDED, progress
    assert sweep.folder.results_file.read_bytes() == quiet
    assert load.figures()["errors_after_retry_percent"] == 0
    books.assert_whole()


def beside(load: Load, begin_s: float, end_s: float) -> dict[str, float]:
    """The latency of orders while the sweep was at work, against what it was before."""
    answers = load.answers()
    before = load_figures([a for a in answers if load.begin_s <= a.due_s < begin_s])["p95_ms"]
    during = load_figures([a for a in answers if begin_s <= a.due_s < end_s])["p95_ms"]
    return {"p95_before_ms": before, "p95_beside_ms": during, "p95_times": round(during / before, 2)}


def killed_now(process: psutil.Process) -> bool:
    """SIGKILL; False where it had ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
        return True
    return False


def jobs_of(desk: Desk) -> RayJobs:
    """The desk's Jobs API."""
    token = ray_token(desk.settings.state_dir)
    address = desk.settings.ray.address or f"127.0.0.1:{desk.settings.ray.dashboard_port}"
    return RayJobs(address, SecretStr(token) if token else None)
