"""Runs of a user's own strategy: laid out with a copy, computed and read from the copy alone, told apart by content."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.market_data import BarStore
from cluster.runs import RunConflict, RunFolder, prepare_run, spec_hash
from jobs.blocks import config_of
from jobs.sweep import work_of
from strategies.base import Strategy
from strategies.user_errors import StrategyFileError
from tests.run_samples import complete_run, cut, loaded, make_spec, make_store
from tests.strategy_files import GOOD, single, written

ROOT = Path(__file__).resolve().parents[3]


def own_strategy(folder: Path, text: str = GOOD) -> Strategy:
    return single(written(folder, text))


def spec_of(*strategies: str) -> Any:
    return make_spec(grids=[{"strategy": name, "grid": {"fast": [3, 5, 8], "slow": [13, 21]}} for name in strategies])


def in_a_new_process(code: str, folder: RunFolder) -> Any:
    """What ``code`` prints in a process that has loaded nothing; ``folder`` is the run's."""
    head = "import json, sys\nfrom pathlib import Path\nfrom cluster.run_folder import RunFolder\n"
    head += "folder = RunFolder(Path(sys.argv[1]))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(folder.path)],
        env=environment, cwd=folder.path, capture_output=True, text=True, check=True, timeout=280,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_run_is_computed_from_its_copy_and_its_results_stand_beside_a_shipped_strategys(tmp_path: Path) -> None:
    own = own_strategy(tmp_path)
    (tmp_path / "my_strategy.py").unlink()
    folder = complete_run(tmp_path / "runs", make_store(tmp_path / "bars"), spec_of(own.name, "sma_cross"))
    assert [path.name for path in folder.strategies_dir.iterdir()] == [f"{own.name}.py"]
    rows = folder.leaderboard(20)
    assert len(rows) == 12
    of = {
        name: {
            (row["params"]["fast"], row["params"]["slow"]): row["total_return"]
            for row in rows
            if row["strategy"] == name
        }
        for name in (own.name, "sma_cross")
    }
    assert of[own.name] == of["sma_cross"]
    # A driver or worker that was started anew has only the folder.
    said = in_a_new_process("print(json.dumps([grid.strategy for grid in folder.spec().grids]))", folder)
    assert said == [own.name, "sma_cross"]


def test_who_only_looks_at_a_run_runs_nothing_of_the_users(tmp_path: Path) -> None:
    own = own_strategy(tmp_path)
    folder = complete_run(tmp_path / "runs", make_store(tmp_path / "bars"), spec_of(own.name))
    code = (
        "folder.record(), folder.progress(), folder.summary()\n"
        "best = folder.leaderboard(1)[0]['strategy']\n"
        "print(json.dumps([best, [name for name in sys.modules if name.startswith('users_')]]))"
    )
    assert in_a_new_process(code, folder) == [own.name, []]


def test_an_edited_file_is_another_specification(tmp_path: Path) -> None:
    store, runs = make_store(tmp_path / "bars"), tmp_path / "runs"
    first = own_strategy(tmp_path)
    folder = prepare_run(runs, store, spec_of(first.name), "r1")
    second = own_strategy(tmp_path, GOOD + "\n# another rule\n")
    assert spec_hash(spec_of(first.name)) != spec_hash(spec_of(second.name))
    with pytest.raises(RunConflict):
        prepare_run(runs, store, spec_of(second.name), "r1")
    assert prepare_run(runs, store, spec_of(first.name), "r1").path == folder.path
    # The run's copy is still the first text.
    assert (folder.strategies_dir / f"{first.name}.py").read_text() == GOOD


def test_a_copy_that_was_changed_stops_the_run(tmp_path: Path) -> None:
    own = own_strategy(tmp_path)
    folder = prepare_run(tmp_path / "runs", make_store(tmp_path / "bars"), spec_of(own.name), "r1")
    copy = folder.strategies_dir / f"{own.name}.py"
    copy.write_text(GOOD.replace("1.0 if quick", "0.5 if quick"))
    code = "try:\n    folder.spec()\nexcept ValueError as error:\n    print(json.dumps(str(error)))"
    assert "was changed after it was laid out" in in_a_new_process(code, folder)
    copy.unlink()
    assert "strategy: expected one of" in in_a_new_process(code, folder)


def test_what_goes_wrong_in_a_sweep_is_told_with_the_users_line(tmp_path: Path) -> None:
    target = "    target = math.nan if math.isnan(long) else above(quick, long)\n"
    own = own_strategy(tmp_path, GOOD.replace(target, "    target = slow.ring[100] if vector[0] == 8 else 0.0\n"))
    with pytest.raises(StrategyFileError, match=r"my_strategy\.py, line 36: on_bar at bar 0 with fast=8"):
        complete_run(tmp_path / "runs", make_store(tmp_path / "bars"), spec_of(own.name))


def test_a_worker_loads_the_strategy_from_the_runs_copy(tmp_path: Path) -> None:
    # The driver had loaded it, so only a process of its own shows whether a worker does. Blocks once did not.
    own = own_strategy(tmp_path)
    run = loaded(
        prepare_run(tmp_path / "runs", make_store(tmp_path / "bars"), spec_of(own.name), "r1"),
        BarStore(tmp_path / "bars"),
    )
    [block] = cut(run.sets, 1)
    (run.folder.path / "work.pickle").write_bytes(pickle.dumps((config_of(block), work_of(run))))
    code = (
        "import pickle\nfrom jobs.blocks import evaluate_block\n"
        "config, work = pickle.loads((folder.path / 'work.pickle').read_bytes())\n"
        "evaluate_block(config, work)\nprint(json.dumps(folder.part_file(work_block(config)).exists()))"
    ).replace("work_block(config)", "__import__('cluster.run_folder').run_folder.Block(**config['block'])")
    assert in_a_new_process(code, run.folder) is True
