"""Run folders: laid out whole or not at all, one specification an id, readable at every moment."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.market_data import BarStore, DataError, MissingData
from cluster.run_folder import LOWER_IS_BETTER, ranking, replace_file
from cluster.runs import (
    Progress,
    RunBusy,
    RunConflict,
    RunError,
    RunFolder,
    RunState,
    UnknownRun,
    default_run_id,
    failure_of,
    list_runs,
    open_run,
    prepare_run,
    settle,
    spec_hash,
)
from strategies.backtest import SpecError
from strategies.metrics import METRICS
from tests.run_samples import complete_run, cut, evaluate_blocks, loaded, make_spec, make_store, wavy_bars


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_a_prepared_run_says_what_it_will_be_computed_from(store: BarStore, runs_dir: Path) -> None:
    spec = make_spec(seed=11)
    folder = prepare_run(runs_dir, store, spec, "a1")
    record = folder.record()
    bars = store.read("BTC-USD", spec.granularity)
    assert folder.spec() == spec
    assert (record.run_id, record.kind, record.seed) == ("a1", "sweep", 11)
    assert (record.bar_count, record.first_ts_ns, record.last_ts_ns) == (600, bars.ts_ns[0], bars.ts_ns[-1])
    assert record.data_hash == store.data_hash(bars)
    assert record.data_source == "SIMULATED"
    assert record.set_count + record.dropped_count == spec.count()
    assert record.dropped_count == spec.dropped() > 0
    assert record.spec_hash == spec_hash(spec)
    assert set(record.versions) == {"numpy", "numba", "ray", "python"}
    assert not record.look_ahead
    progress = folder.progress()
    assert (progress.state, progress.done_sets, progress.total_sets) == (RunState.PENDING, 0, record.set_count)


@pytest.mark.parametrize(("purge_bars", "gap"), [(None, 6), (0, 1), (1, 1), (20, 20)])
def test_the_gap_between_folds_is_the_one_asked_for(
    store: BarStore, runs_dir: Path, purge_bars: int | None, gap: int
) -> None:
    cuts = prepare_run(runs_dir, store, make_spec(purge_bars=purge_bars), "a1").record().cuts
    assert {cuts[i + 1] - cuts[i] for i in range(1, len(cuts) - 1, 2)} == {gap}


def test_a_gap_that_leaves_no_room_for_folds_is_refused_and_nothing_laid_out(store: BarStore, runs_dir: Path) -> None:
    with pytest.raises(RunError, match=r"purge_bars: expected a gap that 600 bars have folds beside, was 300"):
        prepare_run(runs_dir, store, make_spec(purge_bars=300), "a1")
    assert not runs_dir.exists()


def test_a_real_source_is_named_and_same_close_is_marked(tmp_path: Path, runs_dir: Path) -> None:
    store = make_store(tmp_path / "real", source="coinbase")
    record = prepare_run(runs_dir, store, make_spec(costs={"fill": "same_close"}), "a1").record()
    assert record.data_source == "coinbase"
    assert record.look_ahead


def test_a_repeat_returns_the_folder_as_it_is(store: BarStore, runs_dir: Path) -> None:
    first = prepare_run(runs_dir, store, make_spec(), "a1")
    first.write_progress(Progress(state=RunState.RUNNING, done_sets=7, updated_ns=1))
    again = prepare_run(runs_dir, store, make_spec(), "a1")
    assert again == first
    assert again.progress().done_sets == 7


def test_an_id_belongs_to_one_specification(store: BarStore, runs_dir: Path) -> None:
    prepare_run(runs_dir, store, make_spec(), "a1")
    with pytest.raises(RunConflict, match="run_id") as caught:
        prepare_run(runs_dir, store, make_spec(seed=1), "a1")
    assert caught.value.value == "a1"


def test_a_folder_that_is_no_run_is_not_taken_over(store: BarStore, runs_dir: Path) -> None:
    (runs_dir / "a1").mkdir(parents=True)
    (runs_dir / "a1" / "notes.txt").write_text("mine")
    with pytest.raises(RunConflict):
        prepare_run(runs_dir, store, make_spec(), "a1")
    assert (runs_dir / "a1" / "notes.txt").read_text() == "mine"


def test_of_callers_that_race_for_one_id_all_get_the_same_run(store: BarStore, runs_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: prepare_run(runs_dir, store, make_spec(), "a1"), range(8)))
    assert len({folder.record().created_ns for folder in folders}) == 1
    assert [path.name for path in runs_dir.iterdir()] == ["a1"]


@pytest.mark.parametrize("run_id", ["..", "a/b", "A1", "a_1", "a" * 65, "a b", "ä", ".new-x", "a\n"])
def test_an_id_that_is_no_plain_name_is_refused(store: BarStore, runs_dir: Path, run_id: str) -> None:
    with pytest.raises(RunError, match=r"run_id: expected 1 to 64 of a-z, 0-9 and -"):
        prepare_run(runs_dir, store, make_spec(), run_id)
    with pytest.raises(RunError, match="run_id"):
        open_run(runs_dir, run_id)
    assert not runs_dir.exists()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"product_id": "ETH-USD"}, MissingData),
        ({"granularity": "ONE_DAY"}, MissingData),
        ({"start": "2020-01-01"}, MissingData),
        ({"end": "2030-01-01"}, MissingData),
        ({"start": "2024-01-02T00:00:00Z", "end": "2024-01-02T01:00:00Z"}, RunError),  # one bar
    ],
)
def test_a_run_without_its_bars_leaves_nothing_behind(
    store: BarStore, runs_dir: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        prepare_run(runs_dir, store, make_spec(**changes), "a1")
    assert not runs_dir.exists()


def test_without_an_id_a_run_is_named_after_moment_and_specification(store: BarStore, runs_dir: Path) -> None:
    moment_ns = 1_700_000_000_999_999_999
    spec = make_spec()
    assert default_run_id(spec, moment_ns) == f"20231114-221320-{spec_hash(spec)[:8]}"
    assert default_run_id(spec, moment_ns) != default_run_id(make_spec(seed=1), moment_ns)
    folder = prepare_run(runs_dir, store, spec)
    assert open_run(runs_dir, folder.run_id) == folder


def test_the_hash_of_a_specification_does_not_depend_on_its_spelling() -> None:
    loud = make_spec(start="2024-01-02T01:00:00+01:00", costs={"fee_bps": 60})
    assert spec_hash(loud) == spec_hash(make_spec(start="2024-01-02", costs={"fee_bps": 60.0, "slippage_bps": 5}))
    assert spec_hash(loud) != spec_hash(make_spec(start="2024-01-02", costs={"fee_bps": 61}))


def test_runs_are_listed_newest_first_and_a_damaged_one_says_so(store: BarStore, runs_dir: Path) -> None:
    for run_id in ("b", "a", "c"):
        prepare_run(runs_dir, store, make_spec(), run_id)
    open_run(runs_dir, "c").run_file.write_bytes(b'{"run_id": ')
    (runs_dir / ".new-left-behind").mkdir()
    (runs_dir / "a file").write_text("")
    runs = list_runs(runs_dir)
    assert [run.run_id for run in runs] == ["a", "b", "c"]
    assert [bool(run.problem) for run in runs] == [False, False, True]
    assert "run.json" in runs[2].problem
    assert list_runs(runs_dir / "absent") == []


def test_an_unknown_run_is_named(runs_dir: Path) -> None:
    with pytest.raises(UnknownRun, match="'a1'"):
        open_run(runs_dir, "a1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"state": "DONE", "updated_ns": 1}',
        b'{"state": "RUNNING"}',
        b"\xff\xfe",
        b"[" * 9999,
    ],
)
def test_a_damaged_progress_file_is_an_error_that_names_it(store: BarStore, runs_dir: Path, content: bytes) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "a1")
    folder.progress_file.write_bytes(content)
    with pytest.raises(RunError, match=r"progress\.json"):
        folder.progress()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b'{"a": 1' + b"0" * 5000 + b"}"])
def test_a_specification_that_is_no_json_is_an_error_that_names_the_file(
    store: BarStore, runs_dir: Path, content: bytes
) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "a1")
    folder.spec_file.write_bytes(content)
    with pytest.raises(RunError, match=r"spec\.json"):
        folder.spec()


@pytest.mark.parametrize(
    ("before", "job_ended_as", "after"),
    [
        (RunState.PENDING, "STOPPED", RunState.STOPPED),
        (RunState.PENDING, "FAILED", RunState.FAILED),
        (RunState.RUNNING, "STOPPED", RunState.STOPPED),
        (RunState.RUNNING, "FAILED", RunState.FAILED),
        (RunState.RUNNING, "SUCCEEDED", RunState.FAILED),
        (RunState.RUNNING, "unknown", RunState.FAILED),
        (RunState.SUCCEEDED, "FAILED", RunState.SUCCEEDED),
        (RunState.STOPPED, "FAILED", RunState.STOPPED),
        (RunState.FAILED, "STOPPED", RunState.FAILED),
    ],
)
def test_a_run_its_job_left_behind_is_settled(
    store: BarStore, runs_dir: Path, before: RunState, job_ended_as: str, after: RunState
) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "a1")
    folder.write_progress(Progress(state=before, updated_ns=1))
    assert settle(folder, job_ended_as).state == after
    assert folder.progress().state == after
    if after == RunState.FAILED and before != after:
        error = folder.progress().error
        assert error is not None
        assert error.value == job_ended_as


def test_a_run_another_driver_works_on_is_not_settled_nor_driven(store: BarStore, runs_dir: Path) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "a1")
    folder.write_progress(Progress(state=RunState.RUNNING, updated_ns=1))
    with folder.driving():
        assert settle(folder, "FAILED").state == RunState.RUNNING
        with pytest.raises(RunBusy, match="a1"), folder.driving():
            pass
    assert settle(folder, "FAILED").state == RunState.FAILED


@pytest.mark.parametrize(
    ("error", "field", "value"),
    [
        (SpecError("grids[0].grid.fast[2]", 0, "a whole number from 1 to 2000"), "grids[0].grid.fast[2]", "0"),
        (RunError("run_id", "A", "small letters"), "run_id", "A"),
        (MissingData("BTC-USD", "ONE_DAY", None, None, ()), "product_id", "BTC-USD ONE_DAY"),
        (DataError("bars/x.parquet", 3, "a positive price", -1), "bars/x.parquet", "-1"),
        (MemoryError(), "MemoryError", ""),
    ],
)
def test_every_error_tells_field_value_and_rule(error: Exception, field: str, value: str) -> None:
    failure = failure_of(error)
    assert (failure.field, failure.value) == (field, value)
    assert failure.rule
    assert failure.message


def test_the_leaderboard_grows_with_the_blocks_and_ends_as_the_table(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "half"), store)
    assert run.folder.leaderboard() == []
    plan = cut(run.sets, 6)
    evaluate_blocks(run, plan[:1])
    some = run.folder.leaderboard(limit=1000)
    assert len(some) == plan[0].stop
    assert set(some[0]) == {"set_id", "strategy", "params", *METRICS}
    whole = complete_run(runs_dir, store, make_spec(), "whole")
    rows = whole.leaderboard(limit=1000)
    assert len(rows) == whole.record().set_count
    assert rows[0]["params"] == whole.summary()["best"]["params"]
    json.dumps(rows, allow_nan=False)


def test_a_set_that_two_drivers_computed_is_on_the_leaderboard_once(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_blocks(run, [*cut(run.sets, 6)[:2], *cut(run.sets, 3)[:1]])
    ids = [row["set_id"] for row in run.folder.leaderboard(limit=1000)]
    assert sorted(ids) == list(range(len(ids)))


@pytest.mark.parametrize("metric", ["sharpe", "max_drawdown"])
def test_the_leaderboard_sorts_best_first_by_any_metric(store: BarStore, runs_dir: Path, metric: str) -> None:
    folder = complete_run(runs_dir, store, make_spec())
    values = [row[metric] for row in folder.leaderboard(limit=1000, sort_by=metric) if row[metric] is not None]
    assert values == sorted(values, reverse=metric not in LOWER_IS_BETTER)
    with pytest.raises(RunError, match="sort_by: expected one of total_return"):
        folder.leaderboard(sort_by="luck")


def test_a_metric_that_is_no_number_ranks_last_and_equal_ones_go_by_set_id() -> None:
    values = np.array([1.0, np.nan, 2.0, 2.0, -np.inf, np.nan])
    set_ids = np.array([0, 1, 5, 2, 4, 3])
    assert ranking(values, set_ids, "sharpe").tolist() == [3, 2, 0, 4, 1, 5]
    assert ranking(values, set_ids, "max_drawdown").tolist() == [4, 0, 3, 2, 1, 5]


def test_a_damaged_part_does_not_look_like_a_result(store: BarStore, runs_dir: Path) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "a1")
    (folder.parts_dir / "block-0.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match="readable result files"):
        folder.leaderboard()


def test_the_entry_point_is_one_word_each_for_the_shell(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "it's here; rm -rf x" / "a1")
    line = folder.entrypoint(tmp_path / "bars", python="python")
    assert line.startswith("python -m jobs.sweep --run-dir '")
    import shlex

    assert shlex.split(line)[4] == str(folder.path)


def test_a_file_is_replaced_whole_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    replace_file(path, b"old")
    with pytest.raises(TypeError):
        replace_file(path, "text is no bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_bars_that_come_later_do_not_change_a_run(store: BarStore, runs_dir: Path) -> None:
    from cluster.runs import read_bars

    record = prepare_run(runs_dir, store, make_spec(), "a1").record()
    store.write(wavy_bars(700).between(600, 700), source="SIMULATED")
    assert len(read_bars(store, make_spec())) == 700
    again = read_bars(store, make_spec(), record)
    assert store.data_hash(again) == record.data_hash
