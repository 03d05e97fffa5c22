"""A driver may be killed at any moment: from whatever parts it leaves, the study comes out the same to the last bit."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.market_data import BarStore
from cluster.run_folder import Block, RunFolder, RunState
from cluster.runs import RunError, prepare_run
from cluster.study_file import extend_study, read_notes
from jobs.blocks import Work
from jobs.search import StudyConflict, StudySource
from jobs.sweep import work_of
from strategies.model import Float64Array
from strategies.spec import SweepSpec
from tests.run_samples import loaded, make_spec, make_store, wavy_bars
from tests.search_samples import TWO_GRIDS, compute_formula, search_spec, write_formula_part

SPECS: Final[dict[str, SweepSpec]] = {
    "random": search_spec("random", 30, generation=10),
    "lhs": search_spec("lhs", 30, generation=10, grids=TWO_GRIDS),
    "tpe": search_spec("tpe", 24, generation=8, objectives=["sharpe", "-max_drawdown"], constraints=["trades >= 3"]),
    "cmaes": search_spec("cmaes", 32, generation=8, patience=3),
    "asha": search_spec("asha", 36, generation=18, eta=2, rungs=3, grids=TWO_GRIDS),
}


@functools.cache
def store() -> BarStore:
    return make_store(Path(tempfile.mkdtemp(prefix="bars-")), wavy_bars(600))


def opened(root: Path, spec: SweepSpec, run_id: str = "study", **given: Any) -> tuple[StudySource, Work, RunFolder]:
    run = loaded(prepare_run(root, store(), spec, run_id), store())
    return StudySource(run.folder, run.record, spec, **given), work_of(run), run.folder


@functools.cache
def quiet(method: str) -> tuple[Path, pa.Table, Float64Array, dict[str, Any]]:
    """The study nobody disturbed: its folder of parts and what came out."""
    source, work, folder = opened(Path(tempfile.mkdtemp(prefix="quiet-")), SPECS[method])
    compute_formula(source, work)
    assert source.finished
    return folder.parts_dir, *source.assemble(), source.summary()


def assert_same(source: StudySource, method: str) -> None:
    _, table, moments, summary = quiet(method)
    found, found_moments = source.assemble()
    assert found.to_pandas().equals(table.to_pandas())
    np.testing.assert_array_equal(found_moments, moments)
    assert source.summary() == summary


@pytest.mark.parametrize("method", SPECS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_from_any_parts_a_driver_could_leave_the_study_is_the_same(method: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        source, work, _ = opened(Path(root), SPECS[method])
        # Killed again and again: after some blocks are done, and with others written whose end nobody saw.
        for _ in range(data.draw(st.integers(1, 3))):
            source.workers = data.draw(st.sampled_from([1, 2, 7]))
            compute_formula(source, work, data.draw(st.integers(0, 6)))
            for _ in range(data.draw(st.integers(0, 2))):
                if (block := source.next()) is not None and data.draw(st.booleans()):
                    write_formula_part(work, block, source.rows(block))
            source, work, _ = opened(Path(root), SPECS[method])
        compute_formula(source, work)
        assert source.finished
        assert_same(source, method)
        assert source.left == 0


@pytest.mark.parametrize("method", SPECS)
def test_from_any_number_of_finished_parts_the_study_is_the_same(method: str, tmp_path: Path) -> None:
    parts = sorted(quiet(method)[0].iterdir())
    for count in sorted({0, 1, len(parts) // 2, len(parts) - 1, len(parts)}):
        folder = prepare_run(tmp_path, store(), SPECS[method], f"after-{count}")
        for path in parts[:count]:
            shutil.copy(path, folder.parts_dir / path.name)
        source, work, _ = opened(tmp_path, SPECS[method], f"after-{count}")
        assert compute_formula(source, work) > 0 or count == len(parts)
        assert_same(source, method)


@pytest.mark.parametrize("method", ["tpe", "asha"])
def test_blocks_may_come_in_any_order_and_be_lost(method: str, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    source, work, _ = opened(tmp_path, SPECS[method])
    source.workers = 5
    running: list[Block] = []
    while not source.finished:
        while len(running) < 5 and (block := source.next()) is not None:
            running.append(block)
        block = running.pop(int(random.integers(len(running))))
        if random.random() < 0.3:
            source.lost(block)
            continue
        write_formula_part(work, block, source.rows(block))
        source.done(block, float(random.random()))
    assert_same(source, method)


def test_parts_of_other_sets_than_the_study_asks_for_end_the_run(tmp_path: Path) -> None:
    """As where the sampler's library was exchanged between two starts: never mixed in silence."""
    source, work, folder = opened(tmp_path, SPECS["tpe"])
    block = source.next()
    assert block is not None
    others = source.rows(block).copy()
    others[:, 0] += 1
    write_formula_part(work, block, others)
    with pytest.raises(StudyConflict, match=r"generation 0.*optuna"):
        opened(tmp_path, SPECS["tpe"])
    assert folder.part_file(block).exists(), "nothing is deleted that may be right"


def test_parts_beyond_the_end_of_the_study_end_the_run(tmp_path: Path) -> None:
    source, work, folder = opened(tmp_path, SPECS["random"])
    compute_formula(source, work)
    last = sorted(folder.parts_dir.iterdir())[-1]
    beyond = Block(strategy="sma_cross", grid=0, start=30, stop=31)
    write_formula_part(work, beyond, source.sets()[0][1][:1])
    with pytest.raises(StudyConflict):
        opened(tmp_path, SPECS["random"])
    folder.part_file(beyond).unlink()
    last.write_bytes(last.read_bytes()[:-40])
    again, work, _ = opened(tmp_path, SPECS["random"])
    assert compute_formula(again, work) > 0, "a damaged part is computed again"
    assert_same(again, "random")


def test_a_budget_of_time_that_ran_out_is_remembered(tmp_path: Path) -> None:
    spec = search_spec("random", 60, generation=10, time_budget_s=25)
    now = [0.0]
    source, work, folder = opened(tmp_path, spec, clock=lambda: now[0])
    while not source.finished:
        compute_formula(source, work, 1)
        now[0] += 5.0
    ended = source.study.generation
    assert (source.study.endings, read_notes(folder).time_stops) == (["time_budget"], {0: ended})
    assert 0 < source.study.set_count < 60
    again, work, _ = opened(tmp_path, spec, clock=lambda: 1e9)
    assert again.finished
    assert again.summary() == source.summary()


def test_time_that_drivers_spent_before_counts(tmp_path: Path) -> None:
    spec = search_spec("random", 60, generation=10, time_budget_s=100)
    now = [0.0]
    source, work, folder = opened(tmp_path, spec, clock=lambda: now[0])
    while source.study.generation < 1:
        now[0] = 99.0
        compute_formula(source, work, 1)
    assert read_notes(folder).spent_s[0] == 99.0
    later = [1_000.0]
    again, work, _ = opened(tmp_path, spec, clock=lambda: later[0])
    later[0] += 2.0
    compute_formula(again, work)
    assert again.study.endings == ["time_budget"]
    assert again.study.generation == 1, "the generation under way was finished, no other begun"


def test_a_study_is_extended_where_it_ended(tmp_path: Path) -> None:
    spec = search_spec("tpe", 24, generation=8)
    source, work, folder = opened(tmp_path, spec)
    compute_formula(source, work)
    before = {path.name: path.stat().st_mtime_ns for path in folder.parts_dir.iterdir()}
    for sets, rule in ((0, "1 or more"), (-5, "1 or more"), (True, "1 or more"), (20_000, "at most")):
        with pytest.raises(RunError, match=rule):
            extend_study(folder, sets)
    with pytest.raises(RunError, match="SUCCEEDED"):
        extend_study(folder, 16)
    folder.write_progress(folder.progress().model_copy(update={"state": RunState.SUCCEEDED}))
    assert extend_study(folder, 16) == 1
    assert folder.progress().state == RunState.PENDING
    extended, work, _ = opened(tmp_path, spec)
    compute_formula(extended, work)
    assert (extended.study.set_count, extended.study.endings) == (40, ["budget", "budget"])
    assert {name: (folder.parts_dir / name).stat().st_mtime_ns for name in before} == before
    at_once, work, _ = opened(tmp_path, search_spec("tpe", 40, generation=8), "at-once")
    compute_formula(at_once, work)
    assert at_once.assemble()[0].to_pandas().equals(extended.assemble()[0].to_pandas())


def test_a_grid_cannot_be_extended(tmp_path: Path) -> None:
    folder = prepare_run(tmp_path, store(), make_spec(), "grid")
    with pytest.raises(RunError, match="a run with a search"):
        extend_study(folder, 10)


def test_damaged_notes_are_named(tmp_path: Path) -> None:
    _, _, folder = opened(tmp_path, SPECS["random"])
    (folder.path / "study.json").write_text('{"extensions": [1e99]}')
    with pytest.raises(RunError, match=r"study\.json"):
        opened(tmp_path, SPECS["random"])
