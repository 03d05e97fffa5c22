"""The block plan covers every set once, a part is trusted only if it fits, the table depends on neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore
from cluster.runs import Block, RunError, RunFolder, RunRecord, prepare_run
from jobs import results
from jobs.blocks import evaluate_block
from strategies.backtest import run_block
from strategies.base import parameter_table
from strategies.metrics import METRICS
from strategies.registry import STRATEGIES
from tests.run_samples import complete_run, loaded, make_spec, make_store, one_set_spec, work_of


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.parametrize(
    ("sizes", "cost_s", "workers", "blocks"),
    [
        ([1], [1e-3], 8, 1),
        ([1000], [1e-3], 1, 4),  # a second of work: four blocks for the one worker
        ([1000], [1e-3], 2, 8),
        ([1000], [1e-6], 2, 1),  # a millisecond of work: more blocks would be overhead
        ([1_000_000], [1e-3], 4, 667),  # 1,000 seconds of work: blocks of 1.5 s
        ([100], [10.0], 2, 100),  # a set of ten seconds: a block each
        ([1_000_000], [1.0], 64, 5_000),  # bounded
        ([500, 500], [1e-3, 3e-3], 1, 4),  # by cost, not by number
    ],
)
def test_blocks_are_about_as_many_as_the_work_needs(
    sizes: list[int], cost_s: list[float], workers: int, blocks: int
) -> None:
    sets = [("sma_cross", np.zeros((size, 3))) for size in sizes]
    plan = results.plan_blocks(sets, cost_s, workers)
    assert len(plan) == blocks
    assert [block.start for block in plan] == [0, *(block.stop for block in plan[:-1])]
    assert plan[-1].stop == sum(sizes)
    for grid in range(len(sizes)):
        lengths = [block.stop - block.start for block in plan if block.grid == grid]
        assert max(lengths) - min(lengths) <= 1


def test_the_rows_of_all_blocks_are_the_parameter_sets_in_order() -> None:
    sets = make_spec().parameter_sets()
    plan = results.plan_blocks(sets, [1.0, 1.0], 2)
    for grid, (strategy, matrix) in enumerate(sets):
        mine = [block for block in plan if block.grid == grid]
        assert {block.strategy for block in mine} == {strategy}
        np.testing.assert_array_equal(np.concatenate([results.rows_of(block, sets) for block in mine]), matrix)


def test_a_part_comes_back_as_it_was_written(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    block = run.record.blocks[0]
    evaluate_block({"block": 0}, work_of(run))
    table = results.read_part(run.folder, 0, block, results.Identity.of(run.record))
    assert table is not None
    direct = run_block(block.strategy, results.rows_of(block, run.sets), run.bars, run.spec.costs)
    for column, name in enumerate(METRICS):
        np.testing.assert_array_equal(table[name].to_numpy(), direct[:, column])
    assert table["set_id"].to_pylist() == list(range(block.start, block.stop))


@pytest.mark.parametrize("changed", ["spec_hash", "data_hash", "code_hash"])
def test_a_part_of_another_specification_data_or_code_is_not_taken(
    store: BarStore, runs_dir: Path, changed: str
) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    assert results.finished_blocks(run.folder, run.record) == {0}
    other = run.record.model_copy(update={changed: "0" * 64})
    assert results.finished_blocks(run.folder, other) == set()
    assert not run.folder.part_file(0).exists()


def test_a_part_under_another_blocks_name_is_not_taken(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    run.folder.part_file(0).rename(run.folder.part_file(1))
    assert results.finished_blocks(run.folder, run.record) == set()


def test_a_part_cut_anywhere_is_not_taken(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    part = run.folder.part_file(0)
    whole = part.read_bytes()
    for length in (*range(0, len(whole), 37), len(whole) - 1):
        part.write_bytes(whole[:length])
        assert results.read_part(run.folder, 0, run.record.blocks[0], results.Identity.of(run.record)) is None


def test_a_part_that_is_there_is_not_computed_again(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    before = run.folder.part_file(0).stat()
    evaluate_block({"block": 0}, work_of(run))
    assert run.folder.part_file(0).stat().st_ino == before.st_ino


def test_leftovers_of_a_killed_worker_are_cleared_away(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    (run.folder.parts_dir / ".block-0.parquet-abc").write_bytes(b"half")
    assert results.finished_blocks(run.folder, run.record) == set()
    assert list(run.folder.parts_dir.iterdir()) == []


def test_the_final_table_is_the_same_whatever_the_plan(store: BarStore, runs_dir: Path) -> None:
    spec = make_spec()
    few = complete_run(runs_dir, store, spec, "few", block_count=2)
    many = complete_run(runs_dir, store, spec, "many", block_count=40)
    assert len(many.record().blocks) > len(few.record().blocks)
    assert few.results_file.read_bytes() == many.results_file.read_bytes()


def test_the_final_table_holds_every_set_once_with_its_own_parameters(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, make_spec())
    rows = pq.read_table(folder.results_file).to_pylist()
    assert sorted(row["set_id"] for row in rows) == list(range(folder.record().set_count))
    sets = folder.spec().parameter_sets()
    expected = [(strategy, vector.tolist()) for strategy, matrix in sets for vector in matrix]
    for row in rows:
        strategy, vector = expected[row["set_id"]]
        names = STRATEGIES[strategy].params.names()
        assert row["strategy"] == strategy
        assert [row[name] for name in names] == vector
        assert [row[name] for name in ("fast", "oversold") if name not in names] == [None]
    assert isinstance(rows[0]["allow_short"], int)


def test_a_missing_part_is_named(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    with pytest.raises(RunError, match=r"block-1\.parquet"):
        results.assemble(run.folder, run.record, run.spec, run.sets)


def test_a_plan_that_leaves_sets_out_is_an_error(store: BarStore, runs_dir: Path) -> None:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    evaluate_block({"block": 0}, work_of(run))
    short: RunRecord = run.record.model_copy(update={"blocks": run.record.blocks[:1]})
    with pytest.raises(RunError, match="covers each of"):
        results.assemble(run.folder, short, run.spec, run.sets)


def test_no_parameter_is_called_like_another_column() -> None:
    taken = {"set_id", "strategy", "params", *METRICS}
    names = {info.name for strategy in STRATEGIES.values() for info in parameter_table(strategy)}
    assert not names & taken


def test_the_best_sets_curves_end_where_its_row_says(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, make_spec(), "a1")
    summary = folder.summary()
    equity = pq.read_table(folder.equity_file)
    assert equity.num_rows == 600
    cash = folder.spec().costs.initial_cash
    assert equity["equity"][-1].as_py() / cash - 1 == summary["best"]["total_return"]
    first = (1 + 5e-4) * (1 + 60e-4)
    bars = store.read("BTC-USD", folder.spec().granularity)
    np.testing.assert_allclose(equity["buy_and_hold"].to_numpy(), cash / bars.open[0] / first * bars.close, rtol=1e-12)
    fills = pq.read_table(folder.fills_file)
    assert set(fills["ts_ns"].to_pylist()) <= set(equity["ts_ns"].to_pylist())
    assert fills.num_rows >= summary["best"]["trades"]


def test_a_summary_counts_what_was_done(store: BarStore, runs_dir: Path) -> None:
    summary = complete_run(runs_dir, store, make_spec(), "a1").summary()
    assert summary["evaluations"] == summary["set_count"] * 600
    assert [row["strategy"] for row in summary["best_by_strategy"]] == ["sma_cross", "rsi_reversion"]
    assert summary["top"][0] == summary["best"]
    assert len(summary["top"]) == 10
    assert summary["data_source"] == "SIMULATED"


def test_speed_counts_this_drivers_own_sets_only() -> None:
    assert results.Speed(100, 2.0, {}).evaluations_per_s(1_000) == 50_000
    assert results.Speed(0, 0.0, {}).evaluations_per_s(1_000) is None


def test_one_backtest_is_a_sweep_of_one(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, one_set_spec())
    assert folder.record().blocks == (Block(strategy="sma_cross", grid=0, start=0, stop=1),)
    assert RunFolder(folder.path).summary()["best"]["params"] == {"fast": 5, "slow": 21, "allow_short": 0}
