"""Sweeps on a real Ray: as a job, killed and started again, stopped, refused, on real bars against the reference."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore, read_file
from cluster.ray_jobs import Job, JobStatus, JobTimeout, RayJobsRefused, UnknownJob
from cluster.runs import RunFolder, RunState, prepare_run, settle
from strategies.backtest import evaluate
from strategies.base import BarStep
from strategies.compiled import plain
from strategies.metrics import METRICS
from strategies.model import Bars, Granularity
from strategies.registry import get
from tests.bar_samples import REAL_DATA
from tests.properties.reference_kernel import reference_run
from tests.ray_head import RayHead, ray_head
from tests.run_samples import complete_run, make_spec, make_store, wavy_bars

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WAIT_S: Final = 120.0
# What Ray calls a process in which a function runs as Tune's trainable.
WORKER: Final = "ray::ImplicitFunc"
# Some seconds of work in a dozen blocks: long enough to be killed in the middle. Stops keep the sets on the loop over
# bars, which takes its time.
LONG: Final[dict[str, Any]] = {
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
        {"strategy": "rsi_reversion", "grid": {"window": [7, 14, 21, 28], "oversold": [20, 25, 30, 35]}},
    ],
}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    store = make_store(tmp_path_factory.mktemp("bars"))
    store.write(wavy_bars(600_000, granularity=Granularity.ONE_MINUTE), source="SIMULATED")
    return store


@pytest.fixture(scope="module")
def quiet(store: BarStore, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The long sweep's table where nobody disturbed it."""
    folder = complete_run(tmp_path_factory.mktemp("quiet"), store, make_spec(**LONG), "quiet")
    return folder.results_file.read_bytes()


def submit(head: RayHead, folder: RunFolder, store: BarStore) -> str:
    return head.jobs.submit(folder.run_id, folder.entrypoint(store.root), {"kind": "sweep"})


def wait_for(what: str, condition: Callable[[], bool], driver: subprocess.Popen[bytes] | None = None) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S} s"
        assert driver is None or driver.poll() is None, f"{what}: the driver ended with {driver.poll()} before"
        time.sleep(0.02)


def start_driver(head: RayHead, folder: RunFolder, store: BarStore) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "jobs.sweep", "--run-dir", str(folder.path), "--bars-dir", str(store.root)]
    log = (folder.path / "driver.log").open("ab")
    with log:
        return subprocess.Popen(argv, env=dict(head.environment), stdout=log, stderr=subprocess.STDOUT)


def parts_of(folder: RunFolder) -> dict[str, tuple[int, int]]:
    """The finished blocks' files; a file that was written again has another inode or time."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.parts_dir.glob("block-*")}


def at_least(folder: RunFolder, count: int) -> bool:
    return len(parts_of(folder)) >= count


def end_of(head: RayHead, folder: RunFolder) -> Job:
    job = head.jobs.wait(folder.run_id, WAIT_S)
    assert job.status == JobStatus.SUCCEEDED, head.jobs.logs(folder.run_id)
    return job


def test_a_sweep_as_a_ray_job_gives_what_the_engine_gives(head: RayHead, store: BarStore, tmp_path: Path) -> None:
    spec = make_spec()
    folder = prepare_run(tmp_path / "runs", store, spec, "plain-sweep")
    assert submit(head, folder, store) == submit(head, folder, store) == "plain-sweep"
    end_of(head, folder)
    progress = folder.progress()
    count = folder.record().set_count
    assert (progress.state, progress.done_sets, progress.total_sets) == (RunState.SUCCEEDED, count, count)
    bars = store.read(spec.product_id, spec.granularity)
    # With the run's own cuts: where a sum over returns is interrupted decides its last digit.
    cuts = np.array(folder.record().cuts, dtype=np.int64)
    sets = spec.parameter_sets()
    direct = np.concatenate([evaluate(name, matrix, bars, spec.costs, cuts=cuts).metrics for name, matrix in sets])
    table = pq.read_table(folder.results_file)
    set_ids = table["set_id"].to_numpy()
    assert sorted(set_ids) == list(range(len(direct)))
    for column, name in enumerate(METRICS):
        np.testing.assert_array_equal(table[name].to_numpy(), direct[set_ids, column], err_msg=name)
    assert folder.report_file.stat().st_size > 1_000_000
    assert not (folder.path / "tune").exists()
    again = complete_run(tmp_path / "again", store, spec)
    assert again.results_file.read_bytes() == folder.results_file.read_bytes()
    assert len([job for job in head.jobs.list() if job.submission_id == "plain-sweep"]) == 1
    assert "block 0-" in "".join(head.jobs.tail("plain-sweep", timeout_s=WAIT_S))


def test_a_killed_driver_goes_on_where_it_was(head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**LONG), "killed-driver")
    driver = start_driver(head, folder, store)
    wait_for("four finished blocks", partial(at_least, folder, 4), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait(WAIT_S)
    # Its workers end with it; until then they may finish a block each.
    wait_for("the driver's workers to end", lambda: not head.workers(WORKER))
    before = parts_of(folder)
    assert not folder.results_file.exists(), "it was over before it was killed; make it longer"
    assert folder.progress().state == RunState.RUNNING
    assert settle(folder, "FAILED").state == RunState.FAILED
    assert start_driver(head, folder, store).wait(WAIT_S) == 0, (folder.path / "driver.log").read_text()
    assert folder.progress().state == RunState.SUCCEEDED
    assert {name: found for name, found in parts_of(folder).items() if name in before} == before
    assert folder.summary()["computed_sets"] < folder.record().set_count
    assert folder.results_file.read_bytes() == quiet


def test_killed_workers_cost_their_blocks_only(head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**LONG), "killed-workers")
    driver = start_driver(head, folder, store)
    killed: set[int] = set()
    for _ in range(2):
        wait_for("another worker", lambda: any(worker.pid not in killed for worker in head.workers(WORKER)), driver)
        count = len(parts_of(folder))
        wait_for("another finished block", partial(at_least, folder, count + 1), driver)
        for worker in head.workers(WORKER):
            worker.kill()
            killed.add(worker.pid)
    assert driver.wait(WAIT_S) == 0, (folder.path / "driver.log").read_text()
    assert len(killed) >= 2, "no worker was there to be killed"
    assert folder.results_file.read_bytes() == quiet


def test_a_stopped_job_says_so_and_can_go_on(head: RayHead, store: BarStore, tmp_path: Path, quiet: bytes) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**LONG), "stopped")
    submit(head, folder, store)
    wait_for("a few finished blocks", partial(at_least, folder, 3))
    assert head.jobs.stop("stopped")
    job = head.jobs.wait("stopped", WAIT_S)
    assert job.status == JobStatus.STOPPED
    assert folder.progress().state == RunState.STOPPED
    assert not folder.results_file.exists()
    assert submit(head, folder, store) == "stopped"
    assert head.jobs.status("stopped") == JobStatus.STOPPED, "a repeat must not start it again"
    line = folder.entrypoint(store.root)
    assert {head.jobs.resubmit("stopped", line) for _ in range(3)} == {"stopped-r2"}, "one more attempt, not three"
    last = head.jobs.latest("stopped")
    assert last is not None
    assert last.submission_id == "stopped-r2"
    job = head.jobs.wait("stopped-r2", WAIT_S)
    assert job.status == JobStatus.SUCCEEDED, head.jobs.logs("stopped-r2")
    assert head.jobs.resubmit("stopped", line) == "stopped-r2", "what has succeeded is not started again"
    assert folder.results_file.read_bytes() == quiet


def test_a_job_with_a_bad_specification_fails_with_status_2(head: RayHead, store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "bad-spec")
    folder.spec_file.write_text(make_spec().model_dump_json().replace("sma_cross", "golden_goose"))
    submit(head, folder, store)
    job = head.jobs.wait("bad-spec", WAIT_S)
    assert (job.status, job.exit_code) == (JobStatus.FAILED, 2)
    error = folder.progress().error
    assert error is not None
    assert error.field == "grids[0].strategy"
    assert "golden_goose" in head.jobs.logs("bad-spec")
    assert "Traceback" not in head.jobs.logs("bad-spec")


def test_a_run_whose_blocks_cannot_be_written_fails_and_names_the_reason(
    head: RayHead, store: BarStore, tmp_path: Path
) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(**LONG), "no-room")
    driver = start_driver(head, folder, store)
    wait_for("a worker", lambda: bool(head.workers(WORKER)), driver)
    shutil.move(folder.parts_dir, folder.path / "aside")
    folder.parts_dir.write_text("in the way")
    assert driver.wait(WAIT_S) == 1
    progress = folder.progress()
    assert progress.state == RunState.FAILED
    assert progress.error is not None
    assert "failed 3 times" in progress.error.message
    assert "Error" in progress.error.message


def test_of_callers_that_race_for_one_id_one_starts_the_job(head: RayHead, tmp_path: Path) -> None:
    line = f"sh -c 'echo started >> {tmp_path}/count'"
    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(lambda _: head.jobs.submit("raced", line), range(8)))
    assert ids == {"raced"}
    assert head.jobs.wait("raced", WAIT_S).status == JobStatus.SUCCEEDED
    assert (tmp_path / "count").read_text().splitlines() == ["started"]


def test_jobs_are_listed_newest_first_and_forgotten_on_request(head: RayHead) -> None:
    for submission_id in ("older", "newer"):
        head.jobs.submit(submission_id, "true", {"note": submission_id})
        head.jobs.wait(submission_id, WAIT_S)
    listed = [job for job in head.jobs.list() if job.submission_id in {"older", "newer"}]
    assert [job.submission_id for job in listed] == ["newer", "older"]
    assert listed[0].metadata["note"] == "newer"
    assert listed[0].end_ns is not None
    head.jobs.delete("older")
    assert head.jobs.find("older") is None
    with pytest.raises(UnknownJob, match="older"):
        head.jobs.status("older")
    for call in (head.jobs.stop, head.jobs.logs, head.jobs.delete):
        with pytest.raises(UnknownJob, match="older"):
            call("older")


def test_waiting_is_bounded_and_names_the_job(head: RayHead) -> None:
    head.jobs.submit("sleeper", "sleep 60")
    with pytest.raises(JobTimeout, match=r"sleeper.*(PENDING|RUNNING)"):
        head.jobs.wait("sleeper", timeout_s=0.1)
    with pytest.raises(JobTimeout, match="sleeper"):
        list(head.jobs.tail("sleeper", timeout_s=0.1))
    with pytest.raises(RayJobsRefused):
        head.jobs.delete("sleeper")
    wait_for("the job to run", lambda: head.jobs.status("sleeper") == JobStatus.RUNNING)
    head.jobs.stop("sleeper")
    assert head.jobs.wait("sleeper", WAIT_S).status == JobStatus.STOPPED


def test_nothing_of_ours_is_left_in_a_jobs_environment(head: RayHead) -> None:
    import requests

    head.jobs.submit("looked-at", "true")
    head.jobs.wait("looked-at", WAIT_S)
    row = requests.get(f"http://{head.dashboard}/api/jobs/looked-at", timeout=10).json()
    assert not set((row["runtime_env"] or {}).get("env_vars", {})) - {"RAY_worker_niceness"}


REAL_GRIDS: Final[list[dict[str, Any]]] = [
    {
        "strategy": "sma_cross",
        "grid": {
            "fast": {"start": 5, "stop": 50, "step": 5},
            "slow": {"start": 60, "stop": 300, "step": 10},
            "allow_short": [0, 1],
        },
    },
    {
        "strategy": "rsi_reversion",
        "grid": {
            "window": [7, 10, 14, 21, 28],
            "oversold": [15, 20, 25, 30, 35],
            "overbought": [60, 65, 70, 75, 80, 85],
            "allow_short": [0, 1],
        },
    },
    {
        "strategy": "bollinger_reversion",
        "grid": {
            "window": {"start": 10, "stop": 200, "step": 5},
            "width": {"start": 1, "stop": 3, "step": 0.25},
            "allow_short": [0, 1],
        },
    },
    {
        "strategy": "donchian_breakout",
        "grid": {
            "entry_window": {"start": 20, "stop": 300, "step": 10},
            "exit_window": {"start": 10, "stop": 100, "step": 10},
            "allow_short": [0, 1],
        },
    },
    {
        "strategy": "vol_target_momentum",
        "grid": {
            "lookback": {"start": 20, "stop": 300, "step": 20},
            "volatility_window": [10, 20, 30, 60],
            "target_volatility": [0.005, 0.0075, 0.01, 0.015, 0.02],
        },
    },
]


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="needs ../shared/data with real bars beside the repository")
def test_a_sweep_on_real_bars_is_what_the_reference_computes(head: RayHead, tmp_path: Path) -> None:
    (path,) = (REAL_DATA / "ta4j_coinbase").glob("*BTC*")
    bars = read_file(path, product_id="BTC-USD", granularity=Granularity.FOUR_HOUR)
    assert len(bars) == 20_695
    store = BarStore(tmp_path / "bars")
    store.write(bars, source=f"file:{path.name}")
    spec = make_spec(granularity="FOUR_HOUR", grids=REAL_GRIDS)
    folder = prepare_run(tmp_path / "runs", store, spec, "real-bars")
    assert folder.record().set_count >= 2_000
    submit(head, folder, store)
    end_of(head, folder)
    summary = folder.summary()
    assert {row["strategy"] for row in summary["best_by_strategy"]} == {grid["strategy"] for grid in REAL_GRIDS}
    assert summary["data_source"] == f"file:{path.name}"
    assert summary["computed_sets"] == summary["set_count"]
    assert summary["evaluations_per_s"] > 1_000_000
    equity = pq.read_table(folder.equity_file)["equity"].to_numpy()
    assert_equals_reference(equity, summary["best"], bars, folder)


def assert_equals_reference(equity: np.ndarray, best: dict[str, Any], bars: Bars, folder: RunFolder) -> None:
    """Targets from the strategy's source run by the interpreter, accounts from the slow reference: no compiled code."""
    strategy, costs = get(best["strategy"]), folder.spec().costs
    vector = strategy.params(**best["params"]).vector()
    on_bar, state = plain(strategy.on_bar), plain(strategy.start)(vector)
    target = []
    rows = zip(*(array.tolist() for array in (bars.open, bars.high, bars.low, bars.close, bars.volume)), strict=True)
    for row in rows:
        state, wanted = on_bar(vector, state, BarStep(*row))
        target.append(wanted)
    plain_costs = costs.model_dump(include={"fee_bps", "slippage_bps", "fill", "initial_cash"})
    expected = reference_run(target, bars.open.tolist(), bars.close.tolist(), **plain_costs)
    np.testing.assert_allclose(equity, expected.equity, rtol=1e-9)
