"""The sweep's driver up to the moment it would join Ray: what it refuses, with which status, and where it says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.market_data import BarStore
from cluster.runs import Block, Progress, RunFolder, RunState, prepare_run
from jobs import sweep
from tests.bar_samples import with_value
from tests.run_samples import (
    TWO_STRATEGIES,
    complete_run,
    cut,
    evaluate_blocks,
    loaded,
    make_spec,
    make_store,
    wavy_bars,
)

TOO_MANY = {"start": 1, "stop": 2000, "step": 1}


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The driver takes over two signals; the test run wants them back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


def drive(folder: Path, store: BarStore) -> int:
    return sweep.main(["--run-dir", str(folder), "--bars-dir", str(store.root)])


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"grids": [{"strategy": "golden_goose", "grid": {"fast": [1]}}]}, "grids[0].strategy"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"fast": [0]}}]}, "grids[0].grid.fast[0]"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"speed": [3]}}]}, "grids[0].grid.speed"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"fast": []}}]}, "grids[0].grid.fast"),
        ({"grids": [{"strategy": "sma_cross", "grid": {}}]}, "grids[0].grid"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"fast": [50], "slow": [20]}}]}, "grids[0].grid"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"fast": TOO_MANY, "slow": TOO_MANY | {"start": 2}}}]}, "grids"),
        ({"grids": []}, "grids"),
        ({"sort_by": "luck"}, "sort_by"),
        ({"costs": {"fee_bps": -1}}, "costs.fee_bps"),
        ({"colour": "red"}, "colour"),
        ({"product_id": "ETH-USD"}, "product_id"),
        ({"granularity": "ONE_DAY"}, "product_id"),
        ({"start": "2020-01-01"}, "product_id"),
        ({"start": "2024-01-02", "end": "2024-01-02T01:00:00Z"}, "start"),
    ],
)
def test_a_bad_specification_is_refused_with_the_fields_name(
    store: BarStore, tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    folder = RunFolder(tmp_path / "a1")
    folder.path.mkdir()
    folder.spec_file.write_text(json.dumps(TWO_STRATEGIES | changes))
    assert drive(folder.path, store) == sweep.REFUSED
    progress = folder.progress()
    assert progress.state == RunState.FAILED
    assert progress.error is not None
    assert progress.error.field.startswith(field)
    assert progress.error.rule
    assert not folder.results_file.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"grids": NaN}'])
def test_a_file_that_is_no_specification_is_refused(store: BarStore, tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path / "a1")
    folder.path.mkdir()
    folder.spec_file.write_bytes(content)
    assert drive(folder.path, store) == sweep.REFUSED
    assert folder.progress().state == RunState.FAILED


def test_refusing_does_not_even_import_ray(store: BarStore, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a1")
    folder.path.mkdir()
    folder.spec_file.write_text(json.dumps(TWO_STRATEGIES | {"sort_by": "luck"}))
    arguments = ["--run-dir", str(folder.path), "--bars-dir", str(store.root)]
    program = (
        f"import sys; from jobs.sweep import main; s = main({arguments!r}); sys.exit(s + 10 * ('ray' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == sweep.REFUSED, done.stderr
    assert "sort_by" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_specification_is_refused(
    store: BarStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drive(tmp_path / "nowhere", store) == sweep.REFUSED
    assert "spec.json" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()


def test_another_specification_than_the_run_began_with_is_refused(store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "a1")
    folder.spec_file.write_text(make_spec(seed=1).model_dump_json())
    assert drive(folder.path, store) == sweep.REFUSED
    error = folder.progress().error
    assert error is not None
    assert error.field == "spec.json"


def test_other_bars_than_the_run_began_with_are_refused(store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "a1")
    changed = with_value(wavy_bars(600), "volume", 300, 123.0)
    store.write(changed, source="SIMULATED", replace=True)
    assert drive(folder.path, store) == sweep.REFUSED
    error = folder.progress().error
    assert error is not None
    assert error.field == "data_hash"


def test_a_run_that_has_succeeded_stays_as_it_is(store: BarStore, tmp_path: Path) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    files = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    store.write(with_value(wavy_bars(600), "volume", 300, 123.0), source="SIMULATED", replace=True)
    assert drive(folder.path, store) == sweep.DONE
    assert {path: path.read_bytes() for path in files} == files


def test_a_second_driver_leaves_the_run_alone(store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "a1")
    with folder.driving():
        assert drive(folder.path, store) == sweep.BUSY
    assert folder.progress().state == RunState.PENDING


def test_progress_is_written_now_and_then_and_at_every_turn(store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "a1")
    state = sweep.Reporter(folder)
    state.phase("computing")
    state.begin(1000)
    seen: list[Progress] = []
    for index in range(100):
        state.block(Block(strategy="sma_cross", grid=0, start=10 * index, stop=10 * index + 10), 0.01)
        if not seen or folder.progress() != seen[-1]:
            seen.append(folder.progress())
    assert len(seen) < 100
    assert state.computed_sets == 1000
    assert 0.01 <= state.blocks_s < 60
    state.succeeded()
    final = folder.progress()
    assert (final.state, final.done_sets, final.total_sets) == (RunState.SUCCEEDED, 1000, 1000)
    assert "computing" in state.timings_s()


def test_a_small_sweep_needs_no_ray_and_gives_the_table_of_any_other_cut(store: BarStore, tmp_path: Path) -> None:
    folder = prepare_run(tmp_path / "runs", store, make_spec(), "a1")
    arguments = ["--run-dir", str(folder.path), "--bars-dir", str(store.root)]
    program = (
        f"import sys; from jobs.sweep import main; s = main({arguments!r}); sys.exit(s + 10 * ('ray' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == sweep.DONE, done.stderr
    assert folder.progress().state == RunState.SUCCEEDED
    other = complete_run(tmp_path / "other", store, make_spec(), block_count=40)
    assert folder.results_file.read_bytes() == other.results_file.read_bytes()
    assert folder.summary()["block_count"] < 20


def test_a_run_that_was_interrupted_anywhere_ends_with_the_same_table(store: BarStore, tmp_path: Path) -> None:
    whole = complete_run(tmp_path / "whole", store, make_spec())
    run = loaded(prepare_run(tmp_path / "runs", store, make_spec(), "a1"), store)
    plan = cut(run.sets, 7)
    evaluate_blocks(run, [plan[1], plan[2], plan[-1]])
    before = {path.name: path.stat().st_ino for path in run.folder.parts_dir.iterdir()}
    assert drive(run.folder.path, store) == sweep.DONE
    after = {path.name: path.stat().st_ino for path in run.folder.parts_dir.iterdir()}
    assert {name: after[name] for name in before} == before, "a finished block was computed again"
    assert run.folder.summary()["computed_sets"] == run.record.set_count - sum(
        block.stop - block.start for block in (plan[1], plan[2], plan[-1])
    )
    assert run.folder.results_file.read_bytes() == whole.results_file.read_bytes()
