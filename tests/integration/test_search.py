"""Searches on a real Ray: killed at half time and begun again, with workers lost, extended; always the same table."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore
from cluster.run_folder import LOWER_IS_BETTER
from cluster.runs import RunFolder, RunState, prepare_run
from cluster.study_file import extend_study
from jobs.search import SEARCH_COLUMNS
from strategies.model import Granularity
from strategies.spec import SweepSpec
from tests.ray_head import RayHead, ray_head
from tests.run_samples import driven_here, make_spec, make_store, wavy_bars

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S: Final = 240.0
WORKER: Final = "ray::ImplicitFunc"
# A study this small is worth no worker; here it is to have some all the same.
_DRIVER: Final = "import sys, jobs.sweep as sweep; sweep.WORKER_SECONDS_MIN = {}; sys.exit(sweep.main(sys.argv[1:]))"
GRIDS: Final[list[dict[str, Any]]] = [
    {
        "strategy": "sma_cross",
        "grid": {
            "fast": {"low": 5, "high": 100},
            "slow": {"low": 50, "high": 500, "log": True},
            "stop_loss": {"low": 0.01, "high": 0.2},
        },
    }
]
DRIVER, ALONE = _DRIVER.format(1e-3), _DRIVER.format(1e9)
TPE: Final[dict[str, Any]] = {
    "method": "tpe",
    "sets": 240,
    "generation": 24,
    "objectives": ["sharpe", "-max_drawdown"],
    "constraints": ["trades >= 10", "slow >= 2 * fast"],
}
ASHA: Final[dict[str, Any]] = {"method": "asha", "sets": 600, "generation": 300, "constraints": ["max_drawdown <= 0.9"]}


def searching(search: dict[str, Any]) -> SweepSpec:
    return make_spec(granularity="ONE_MINUTE", grids=GRIDS, search=search, seed=11)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    store = make_store(tmp_path_factory.mktemp("bars"))
    store.write(wavy_bars(30_000, granularity=Granularity.ONE_MINUTE), source="SIMULATED")
    return store


def undisturbed(root: Path, store: BarStore, search: dict[str, Any]) -> RunFolder:
    """The same search in this process, by one worker, without Ray."""
    return driven_here(prepare_run(root, store, searching(search), "quiet"), store)


def start_driver(head: RayHead | None, folder: RunFolder, store: BarStore) -> subprocess.Popen[bytes]:
    """A driver with workers, or one that computes everything itself."""
    argv = [
        sys.executable,
        "-c",
        DRIVER if head else ALONE,
        "--run-dir",
        str(folder.path),
        "--bars-dir",
        str(store.root),
    ]
    with (folder.path / "driver.log").open("ab") as log:
        return subprocess.Popen(
            argv, env=dict(head.environment) if head else None, stdout=log, stderr=subprocess.STDOUT
        )


def rows_done(folder: RunFolder) -> int:
    spans = [path.stem.split("-")[1:] for path in folder.parts_dir.glob("block-*.parquet")]
    return sum(int(stop) - int(start) for start, stop in spans)


def wait_for(what: str, condition: Callable[[], bool], driver: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S} s"
        assert driver.poll() is None, f"{what}: the driver ended with {driver.poll()} before"
        time.sleep(0.02)


def ended(driver: subprocess.Popen[bytes], folder: RunFolder) -> None:
    assert driver.wait(WAIT_S) == 0, (folder.path / "driver.log").read_text()
    assert folder.progress().state == RunState.SUCCEEDED


def test_a_driver_killed_at_half_time_goes_on_to_the_same_table(head: RayHead, store: BarStore, tmp_path: Path) -> None:
    killed_at_half_time(head, store, tmp_path)


def test_a_driver_that_works_alone_goes_on_to_the_same_table(store: BarStore, tmp_path: Path) -> None:
    killed_at_half_time(None, store, tmp_path)


def killed_at_half_time(head: RayHead | None, store: BarStore, tmp_path: Path) -> None:
    quiet = undisturbed(tmp_path / "quiet", store, TPE)
    folder = prepare_run(tmp_path / "runs", store, searching(TPE), "killed-search")
    driver = start_driver(head, folder, store)
    wait_for("half of the sets", lambda: rows_done(folder) >= 120, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait(WAIT_S)
    before = {path.name: path.stat().st_ino for path in folder.parts_dir.glob("block-*")}
    assert rows_done(folder) < 240, "it was over before it was killed; make it longer"
    assert folder.progress().state == RunState.RUNNING
    ended(start_driver(head, folder, store), folder)
    assert folder.results_file.read_bytes() == quiet.results_file.read_bytes()
    assert folder.summary()["study"] == quiet.summary()["study"]
    after = {path.name: path.stat().st_ino for path in folder.parts_dir.glob("block-*")}
    assert {name: after[name] for name in before} == before, "no set was run again"
    assert not (folder.path / "tune").exists()
    assert_the_front_is_told(folder)
    # The same study, more sets: what was there stays.
    assert extend_study(folder, 48) == 1
    ended(start_driver(head, folder, store), folder)
    study = folder.summary()["study"]
    assert (study["sets"], study["endings"]) == (288, ["budget", "budget"])
    assert study["generations"][:10] == quiet.summary()["study"]["generations"]


def assert_the_front_is_told(folder: RunFolder) -> None:
    table = pq.read_table(folder.results_file)
    assert set(SEARCH_COLUMNS) <= set(table.column_names)
    front = folder.summary()["study"]["pareto_front"]
    assert {one["set_id"] for one in front} == set(table.filter(table["pareto"])["set_id"].to_pylist())
    rows = {row["set_id"]: row for row in table.to_pylist()}
    for one in front:
        row = rows[one["set_id"]]
        assert {name: row[name] for name in one["values"]} == one["values"]
        assert row["feasible"]
        assert row["trades"] >= 10
    assert all(row["slow"] >= 2 * row["fast"] for row in rows.values())


def test_lost_workers_change_nothing_in_a_halving_search(head: RayHead, store: BarStore, tmp_path: Path) -> None:
    quiet = undisturbed(tmp_path / "quiet", store, ASHA)
    folder = prepare_run(tmp_path / "runs", store, searching(ASHA), "lost-workers")
    driver = start_driver(head, folder, store)
    killed: set[int] = set()
    for count in (60, 200):
        wait_for(f"{count} runs", lambda count=count: rows_done(folder) >= count, driver)  # type: ignore[misc]
        for worker in head.workers(WORKER):
            worker.kill()
            killed.add(worker.pid)
    ended(driver, folder)
    assert killed, "no worker was there to be killed"
    assert folder.results_file.read_bytes() == quiet.results_file.read_bytes()
    rows = pq.read_table(folder.results_file, columns=["history", "feasible", "rung", "sharpe"]).to_pylist()
    whole = [row["history"] == 1.0 for row in rows]
    assert whole == sorted(whole, reverse=True), "what was stopped early ranks below what was not"
    assert (len(rows), sum(whole)) == (600, 68)
    assert {row["rung"] for row in rows} == {0, 1, 2}
    board = folder.leaderboard(68, "sharpe")
    assert [row["sharpe"] for row in board] == sorted((row["sharpe"] for row in board), reverse=True)
    assert "sharpe" not in LOWER_IS_BETTER
