"""Research on the running desk by command: a study that is extended, stopped and loses its driver, and a portfolio."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from cluster.market_data import SIMULATED, BarStore
from cluster.runs import RunFolder, RunState, open_run, prepare_run
from cluster.study_file import extend_study
from strategies.model import Granularity
from tests.run_processes import drivers
from tests.run_samples import driven_here, wavy_bars
from tests.system.client import Desk, eventually
from tests.system.test_commands import as_json, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S: Final = 200.0
# Stops keep its sets on the loop over bars: some seconds of work for the workers.
LONG: Final[dict[str, Any]] = {
    "product_id": "WAVE-USD",
    "granularity": "ONE_MINUTE",
    "grids": [
        {
            "strategy": "sma_cross",
            "grid": {
                "fast": {"low": 5, "high": 100},
                "slow": {"low": 110, "high": 900, "log": True},
                "stop_loss": {"low": 0.01, "high": 0.2},
            },
        }
    ],
    "search": {"method": "random", "sets": 3_000, "generation": 1_000},
    "seed": 5,
}


@pytest.fixture(scope="module")
def store(desk: Desk) -> BarStore:
    """Bars of products of these tests' own, in the desk's store."""
    store = BarStore(desk.settings.bars_path)
    minutes = wavy_bars(300_000, granularity=Granularity.ONE_MINUTE)
    store.write(dataclasses.replace(minutes, product_id="WAVE-USD"), source=SIMULATED)
    for number, product_id in enumerate(("WAVE-USD", "SWELL-USD")):
        hours = wavy_bars(3_000 - 500 * number, seed=20 + number)
        store.write(dataclasses.replace(hours, product_id=product_id), source=SIMULATED)
    return store


def the_same_here(desk: Desk, run_id: str, root: Path, store: BarStore, *extensions: int) -> bytes:
    """The table of the desk's run, computed in this process where nobody disturbs it."""
    folder = driven_here(prepare_run(root, store, folder_of(desk, run_id).spec(), "quiet"), store)
    for sets in extensions:
        extend_study(folder, sets)
        driven_here(folder, store)
    return folder.results_file.read_bytes()


def folder_of(desk: Desk, run_id: str) -> RunFolder:
    return open_run(desk.settings.runs_path, run_id)


def await_that(desk: Desk, run_id: str, what: str, holds: Callable[[RunFolder], bool]) -> None:
    """Wait for something of a run that is at work, as quickly as it can be seen."""
    folder, deadline_s = folder_of(desk, run_id), time.monotonic() + WAIT_S
    while not holds(folder):
        assert not folder.progress().state.ended, f"{what}: {folder.progress()}"
        assert time.monotonic() < deadline_s, f"{what}: not within {WAIT_S} s"
        time.sleep(0.02)


def state_of(desk: Desk, run_id: str) -> str:
    """As the command shows it, which settles what a job left behind."""
    return str(as_json(desk, "jobs show", run_id)["progress"]["state"])


def test_a_study_is_extended_on_the_desk(desk: Desk, store: BarStore, tmp_path: Path) -> None:
    search = ("--search", "tpe", "--sets", "24", "--generation", "8", "--constraint", "trades >= 5")
    grid = ("--grid", "sma_cross.fast=5..50", "--grid", "sma_cross.slow=60..300:log")
    words = ("-p", "WAVE-USD", "-g", "ONE_HOUR", *grid, *search, "--run-id", "a-study")
    assert as_json(desk, "sweep", *words)["summary"]["study"]["sets"] == 24
    extended = as_json(desk, "sweep", "--extend", "a-study", "--sets", "16")["summary"]["study"]
    assert (extended["sets"], extended["endings"]) == (40, ["budget", "budget"])
    folder = folder_of(desk, "a-study")
    assert folder.progress().state is RunState.SUCCEEDED
    assert folder.results_file.read_bytes() == the_same_here(desk, "a-study", tmp_path, store, 16)
    # The command that began it finds it done, and starts nothing.
    written_ns = folder.results_file.stat().st_mtime_ns
    assert as_json(desk, "sweep", *words)["summary"]["study"]["sets"] == 40
    assert folder.results_file.stat().st_mtime_ns == written_ns


def test_a_portfolio_is_swept_on_the_desk(desk: Desk, store: BarStore, tmp_path: Path) -> None:
    products = ("-p", "WAVE-USD", "-p", "SWELL-USD", "-g", "ONE_HOUR", "--run-id", "a-portfolio")
    grid = ("--grid", "momentum_rotation.lookback=10:60:10", "--grid", "momentum_rotation.every=6,24")
    done = as_json(desk, "sweep", *products, *grid, "--grid", "pairs.window=50,100")
    summary = done["summary"]
    assert (summary["set_count"], summary["product_id"]) == (14, "WAVE-USD, SWELL-USD")
    assert {row["strategy"] for row in summary["best_by_strategy"]} == {"momentum_rotation", "pairs"}
    report = Path(done["report"]).read_text()
    assert all(word in report for word in ("WAVE-USD", "SWELL-USD", "SIMULATED"))
    shown = run(desk, "jobs show", "a-portfolio")
    assert (shown.returncode, "momentum_rotation" in shown.stdout) == (0, True), shown.stderr
    table = folder_of(desk, "a-portfolio").results_file.read_bytes()
    assert table == the_same_here(desk, "a-portfolio", tmp_path, store)
    refused = run(desk, "sweep --extend a-portfolio --sets 5 --json")
    assert refused.returncode == 2
    assert "a grid is complete" in json.loads(refused.stdout)["error"]["message"]
    assert state_of(desk, "a-portfolio") == "SUCCEEDED"


def test_a_search_that_is_stopped_and_loses_its_driver_ends_in_the_same_table(
    desk: Desk, store: BarStore, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(LONG))
    as_json(desk, "sweep", str(spec), "--run-id", "troubled", "--detach")
    await_that(desk, "troubled", "the first sets", lambda folder: folder.progress().done_sets > 0)
    assert as_json(desk, "jobs stop", "troubled")["stopped"] is True
    eventually(lambda: state_of(desk, "troubled") == "STOPPED", WAIT_S, "the run has stopped")
    done = folder_of(desk, "troubled").progress().done_sets
    assert 0 < done < 3_000, "it was over before it was stopped; make it longer"

    as_json(desk, "jobs retry", "troubled")
    await_that(desk, "troubled", "more sets", lambda folder: folder.progress().done_sets > done)
    for driver in drivers(folder_of(desk, "troubled")):
        driver.kill()
    eventually(lambda: state_of(desk, "troubled") == "FAILED", WAIT_S, "the run is known to have lost its driver")
    shown = as_json(desk, "jobs show", "troubled")
    assert "start it again" in shown["progress"]["error"]["message"]
    assert shown["leaderboard"], "what is finished is shown"

    as_json(desk, "jobs retry", "troubled")
    eventually(lambda: state_of(desk, "troubled") not in {"PENDING", "RUNNING"}, WAIT_S, "the run has ended")
    folder = folder_of(desk, "troubled")
    assert folder.progress().state is RunState.SUCCEEDED, folder.progress()
    assert folder.summary()["computed_sets"] < 3_000 - done, "what was finished was not computed again"
    assert folder.results_file.read_bytes() == the_same_here(desk, "troubled", tmp_path, store)
    refused = run(desk, "jobs retry troubled")
    assert (refused.returncode, "SUCCEEDED" in refused.stderr) == (2, True), refused
