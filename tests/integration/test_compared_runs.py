"""Runs that a quant would compare, computed for it: a strategy's file before and after an edit, a search and a grid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.market_data import BarStore
from cluster.remote_runs import received, sent, unpacked
from cluster.run_compare import compare, read_runs
from cluster.run_folder import RunFolder, replace_file
from cluster.runs import prepare_run
from jobs.blocks import compute_here
from jobs.sweep import Reporter, finish, plan_of, work_of
from strategies.spec import SweepSpec
from strategies.user_file import load, read
from tests.run_samples import complete_run, loaded, make_spec, make_store
from tests.strategy_files import GOOD, written, wrong

pytestmark = [pytest.mark.timeout(280)]

ROOT = Path(__file__).resolve().parents[2]
GRID: dict[str, Any] = {"fast": [3, 5, 8], "slow": [13, 21, 34]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    return make_store(tmp_path_factory.mktemp("compared") / "bars")


def computed(runs_dir: Path, store: BarStore, spec: SweepSpec, run_id: str) -> RunFolder:
    """A run of a grid or a search to its end, in this process."""
    run = loaded(prepare_run(runs_dir, store, spec, run_id), store)
    state = Reporter(run.folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    finish(run, state, plan)
    return run.folder


def test_an_edited_strategy_file_is_told_and_what_it_did_to_each_set(store: BarStore, tmp_path: Path) -> None:
    texts = {"before": GOOD, "after": wrong("quick > slow else", "quick > 1.02 * slow else")[0]}
    for run_id, text in texts.items():
        own = load(read(written(tmp_path, text)))
        complete_run(tmp_path / "runs", store, make_spec(grids=[{"strategy": own.name, "grid": GRID}]), run_id)
    words = [sys.executable, "-m", "cluster.cli", "compare", "before", "after", "--json"]
    environment = {**os.environ, "DESK_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(done.stdout)
    assert found["comparable"] is True
    (check,) = [one for one in found["checks"] if one["about"] == "strategy files"]
    assert check["level"] == "note"
    assert "my_strategy has changed" in check["sentence"]
    assert [one["field"] for one in found["differences"]] == ["grids[my_strategy].strategy"]
    (pair,) = found["pairs"]
    assert pair["common"]["sets"] == 9
    assert pair["common"]["identical"] < 9
    assert {one["metric"] for one in pair["common"]["metrics"] if one["largest"]} >= {"sharpe", "exposure"}


def test_a_grid_and_a_halving_search_agree_on_what_both_have_run_on_all_bars(store: BarStore, tmp_path: Path) -> None:
    grids = [{"strategy": "sma_cross", "grid": GRID}]
    computed(tmp_path, store, make_spec(grids=grids), "grid")
    search = {"method": "asha", "sets": 9, "rungs": 2, "eta": 3}
    computed(tmp_path, store, make_spec(grids=grids, search=search), "search")
    found = compare(read_runs(tmp_path, ("grid", "search")))
    (pair,) = found.pairs
    assert (pair.common.sets, pair.common.identical, pair.common.partly) == (3, 3, 6)
    assert {one.field for one in found.differences} == {"search"} | {f"search.{name}" for name in SEARCH_FIELDS}
    assert found.runs[1].facts["search_method"] == "asha"
    assert [row.get("history") for row in found.runs[1].rows][:3] == [1.0, 1.0, 1.0]


def test_a_run_that_came_back_from_another_cluster_is_compared_as_one_from_here(
    store: BarStore, tmp_path: Path
) -> None:
    here = computed(tmp_path / "here", store, make_spec(), "run")
    there = computed(tmp_path / "there", store, make_spec(), "fetched")
    fetched = prepare_run(tmp_path / "here", store, make_spec(), "fetched")
    for name, content in unpacked(received("\n".join(sent(there)), "fetched"), "fetched").items():
        (fetched.path / name).parent.mkdir(exist_ok=True)
        replace_file(fetched.path / name, content)
    found = compare(read_runs(here.path.parent, ("run", "fetched")))
    assert (found.comparable, found.differences) == (True, ())
    assert found.pairs[0].common.identical == found.pairs[0].common.sets == here.record().set_count


SEARCH_FIELDS = (
    "method", "sets", "generation", "objectives", "constraints", "eta", "rungs", "patience", "time_budget_s", "target",
)  # fmt: skip
