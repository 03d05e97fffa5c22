"""A part is trusted only if it fits; the final table depends on neither the cut nor on who computed what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore
from cluster.runs import Block, RunError, RunFolder, list_runs, prepare_run
from jobs import results
from jobs.blocks import rows_of
from jobs.parts import Identity, finished_blocks, params_json, read_part
from jobs.sweep import Run
from strategies.backtest import evaluate
from strategies.base import Rules, full_vector, parameter_table
from strategies.metrics import METRICS
from strategies.model import Bars
from strategies.registry import STRATEGIES
from strategies.segments import HONEST_COLUMNS
from tests.run_samples import (
    TWO_STRATEGIES,
    complete_run,
    cut,
    evaluate_blocks,
    loaded,
    make_spec,
    make_store,
    one_set_spec,
    wavy_bars,
)


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def planned(store: BarStore, runs_dir: Path) -> tuple[Run, list[Block]]:
    run = loaded(prepare_run(runs_dir, store, make_spec(), "a1"), store)
    return run, cut(run.sets, 6)


def test_a_part_comes_back_as_it_was_written(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    block = plan[0]
    evaluate_blocks(run, [block])
    found = read_part(run.folder.part_file(block), Identity.of(run.record))
    assert found is not None
    table = found[1]
    matrix = rows_of(block, run.sets)
    assert isinstance(run.bars, Bars)
    direct = evaluate(block.strategy, matrix, run.bars, run.spec.costs, cuts=np.array(run.record.cuts))
    for column, name in enumerate(METRICS):
        np.testing.assert_array_equal(table[name].to_numpy(), direct.metrics[:, column])
    moments = np.array(table["moments"].to_pylist()).reshape(direct.moments.shape)
    np.testing.assert_array_equal(moments, direct.moments)
    assert table["set_id"].to_pylist() == list(range(block.start, block.stop))


@pytest.mark.parametrize("changed", ["spec_hash", "data_hash", "code_hash"])
def test_a_part_of_another_specification_data_or_code_is_not_taken(
    store: BarStore, runs_dir: Path, changed: str
) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    assert finished_blocks(run.folder, run.record) == plan[:1]
    other = run.record.model_copy(update={changed: "0" * 64})
    assert finished_blocks(run.folder, other) == []
    assert not run.folder.part_file(plan[0]).exists()


def test_a_part_of_other_segments_is_not_taken(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    other = run.record.model_copy(update={"cuts": (0, run.record.bar_count)})
    assert finished_blocks(run.folder, other) == []


def test_a_part_under_another_blocks_name_is_not_taken(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    run.folder.part_file(plan[0]).rename(run.folder.part_file(plan[1]))
    assert finished_blocks(run.folder, run.record) == []


def test_a_part_cut_anywhere_is_not_taken(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    part = run.folder.part_file(plan[0])
    whole = part.read_bytes()
    for length in (*range(0, len(whole), 97), len(whole) - 1):
        part.write_bytes(whole[:length])
        assert read_part(part, Identity.of(run.record)) is None


def test_a_part_with_a_flipped_bit_is_not_taken_or_is_the_same(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    part = run.folder.part_file(plan[0])
    whole = part.read_bytes()
    first = read_part(part, Identity.of(run.record))
    assert first is not None
    for place in range(4, len(whole), 53):
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        found = read_part(part, Identity.of(run.record))
        assert found is None or found[1].equals(first[1]), place


def test_a_part_that_is_there_is_not_computed_again(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan[:1])
    before = run.folder.part_file(plan[0]).stat()
    evaluate_blocks(run, plan[:1])
    assert run.folder.part_file(plan[0]).stat().st_ino == before.st_ino


def test_leftovers_of_a_killed_worker_are_cleared_away(store: BarStore, runs_dir: Path) -> None:
    run, _ = planned(store, runs_dir)
    (run.folder.parts_dir / ".block-0.parquet-abc").write_bytes(b"half")
    assert finished_blocks(run.folder, run.record) == []
    assert list(run.folder.parts_dir.iterdir()) == []


def test_parameters_are_told_as_json_does_without_rules_that_are_off() -> None:
    strategy = STRATEGIES["rsi_reversion"]
    rows = np.stack(
        [
            full_vector(strategy.params.model_validate({"window": w}), Rules(stop_loss=s))
            for w in (7, 9)
            for s in (0.0, 0.05)
        ]
    )
    texts = params_json("rsi_reversion", rows).to_pylist()
    own = strategy.params().model_dump()
    assert [json.loads(text) for text in texts] == [
        own | {"window": 7},
        own | {"window": 7, "stop_loss": 0.05},
        own | {"window": 9},
        own | {"window": 9, "stop_loss": 0.05},
    ]
    assert texts[0] == json.dumps(own | {"window": 7})


def test_the_final_table_is_the_same_whatever_the_plan(store: BarStore, runs_dir: Path) -> None:
    spec = make_spec()
    few = complete_run(runs_dir, store, spec, "few", block_count=2)
    many = complete_run(runs_dir, store, spec, "many", block_count=40)
    assert len(list(many.parts_dir.iterdir())) > len(list(few.parts_dir.iterdir()))
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
        assert [row[name] for name in names] == vector[: len(names)]
        assert [row[name] for name in ("fast", "oversold") if name not in names] == [None]
    assert isinstance(rows[0]["allow_short"], int)


def test_sets_without_a_part_are_named(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, [plan[0], plan[2]])
    with pytest.raises(RunError, match=f"the rows of each of {run.record.set_count} sets, was {plan[0].stop}"):
        results.assemble(run.folder, run.record, run.sets)


def test_parts_of_two_drivers_that_overlap_make_one_table(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, [*cut(run.sets, 3), *plan])
    table, moments = results.assemble(run.folder, run.record, run.sets)
    assert table["set_id"].to_pylist() == list(range(run.record.set_count))
    assert isinstance(run.bars, Bars)
    whole = [
        evaluate(name, matrix, run.bars, run.spec.costs, cuts=np.array(run.record.cuts)) for name, matrix in run.sets
    ]
    np.testing.assert_array_equal(moments, np.concatenate([found.moments for found in whole]))
    assert not list(run.folder.path.glob(".moments*"))


def test_a_column_that_is_undefined_for_every_set_is_not_ranked_by(store: BarStore, runs_dir: Path) -> None:
    run, plan = planned(store, runs_dir)
    evaluate_blocks(run, plan)
    table, _ = results.assemble(run.folder, run.record, run.sets)
    absent = np.full(table.num_rows, np.nan)
    spec = run.spec.model_copy(update={"sort_by": "oos_sharpe"})
    ranked = results.rank(table, {"oos_sharpe": absent}, spec)
    assert (ranked.sorted_by, "undefined" in ranked.note) == ("sharpe", True)
    absent[3] = 1.0
    ranked = results.rank(table, {"oos_sharpe": absent}, spec)
    assert (ranked.sorted_by, ranked.note, ranked.top(1)[0]["set_id"]) == ("oos_sharpe", "", 3)


def test_no_parameter_is_called_like_another_column() -> None:
    taken = {"set_id", "strategy", "params", *METRICS, *HONEST_COLUMNS}
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
    assert results.Speed(100, 1, 2.0, {}).evaluations_per_s(1_000) == 50_000
    assert results.Speed(0, 0, 0.0, {}).evaluations_per_s(1_000) is None


def test_one_backtest_is_a_sweep_of_one(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, one_set_spec())
    assert [path.name for path in folder.parts_dir.iterdir()] == ["block-00000000-00000001.parquet"]
    assert RunFolder(folder.path).summary()["best"]["params"] == {"fast": 5, "slow": 21, "allow_short": 0}


def test_a_tables_honest_figures_stand_beside_its_metrics(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, make_spec(), "a1")
    table = pq.read_table(folder.results_file)
    assert set(HONEST_COLUMNS) <= set(table.column_names)
    summary = folder.summary()
    assert (summary["sort_by"], summary["sort_note"]) == (folder.spec().sort_by, "")
    assert set(HONEST_COLUMNS) <= set(summary["top"][0])
    held_out = [row["oos_sharpe"] for row in folder.leaderboard(1_000) if row["oos_sharpe"] is not None]
    assert held_out == sorted(held_out, reverse=True)
    assert held_out
    page = json.loads(folder.honesty_file.read_text())
    assert page["sets"] == table.num_rows
    assert page["plan"]["held_out_from_bar"] in folder.record().cuts


def test_a_series_too_short_to_hold_any_of_it_out_is_ranked_by_what_there_is(tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars", wavy_bars(60))
    folder = complete_run(tmp_path / "runs", store, make_spec(), "a1")
    assert folder.record().cuts == (0, 60)
    rows, metric, note = folder.ranked_rows(5)
    assert (metric, note) == ("sharpe", "ranked by sharpe: oos_sharpe is undefined for every set")
    assert (folder.summary()["sort_by"], folder.summary()["sort_note"]) == (metric, note)
    assert rows[0]["oos_sharpe"] is None


def test_pandas_reads_the_results_as_they_are(store: BarStore, runs_dir: Path) -> None:
    import pandas as pd

    folder = complete_run(runs_dir, store, make_spec(), "a1")
    frame = pd.read_parquet(folder.results_file)
    assert len(frame) == folder.record().set_count
    assert frame["oos_sharpe"].dtype == np.float64
    assert frame.groupby("strategy")["sharpe"].max().notna().all()
    assert [json.loads(text) for text in frame["params"]] == [row["params"] for row in folder.leaderboard(1_000)]
    part = pd.read_parquet(sorted(folder.parts_dir.iterdir())[0])
    assert {len(moments) for moments in part["moments"]} == {6 * (len(folder.record().cuts) - 1)}


def test_a_run_of_an_earlier_version_is_still_read(store: BarStore, runs_dir: Path) -> None:
    """Its record has a plan and no cuts, its parts have no moments, its table no honest figures."""
    from jobs.report import write_report

    folder = complete_run(runs_dir, store, make_spec(sort_by="sharpe"), "a1")
    record = json.loads(folder.run_file.read_text())
    del record["cuts"]
    record["blocks"] = [{"strategy": "sma_cross", "grid": 0, "start": 0, "stop": 5}]
    folder.run_file.write_text(json.dumps(record))
    spec = json.loads(folder.spec_file.read_text())
    folder.spec_file.write_text(json.dumps({key: spec[key] for key in (*TWO_STRATEGIES, "costs", "seed", "sort_by")}))
    table = pq.read_table(folder.results_file).drop_columns(list(HONEST_COLUMNS))
    pq.write_table(table, folder.results_file)
    folder.honesty_file.unlink()
    (info,) = list_runs(runs_dir)
    assert info.problem == ""
    best = folder.leaderboard(3)
    assert "oos_sharpe" not in best[0]
    assert folder.leaderboard(3, "oos_sharpe") == best, "what there is not cannot be ranked by"
    assert write_report(folder).stat().st_size > 1_000_000
    folder.results_file.unlink()
    parts = sorted(folder.parts_dir.iterdir())
    for number, path in enumerate(parts):
        pq.write_table(pq.read_table(path).drop_columns("moments"), folder.parts_dir / f"block-{number}.parquet")
        path.unlink()
    assert [row["set_id"] for row in folder.leaderboard(3)] == [row["set_id"] for row in best]
