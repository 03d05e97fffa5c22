"""A sweep over several products from the specification to the report, driven in this process."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore, MissingData
from cluster.run_folder import RunError, RunState
from cluster.runs import RunFolder, market_hash, prepare_run, read_bars, read_market
from jobs import sweep
from strategies import backtest, portfolio
from strategies.model import Bars, Granularity
from strategies.panel import Panel, PanelError
from strategies.spec import SweepSpec, parse_backtest, parse_spec
from strategies.user_file import load, read
from tests.run_samples import make_spec, wavy_bars
from tests.strategy_files import SECTION, written

ROTATION: dict[str, Any] = {
    "product_ids": ["BTC-USD", "ETH-USD"],
    "granularity": "ONE_HOUR",
    "grids": [{"strategy": "momentum_rotation", "grid": {"lookback": [5, 20, 60], "every": [6, 24]}}],
    "sort_by": "sharpe",
}


def ether(count: int = 500, first: int = 100) -> Bars:
    """Ether, listed a hundred hours after bitcoin."""
    bars = dataclasses.replace(wavy_bars(600, seed=9), product_id="ETH-USD")
    return bars.between(first, first + count)


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    filled = BarStore(tmp_path / "bars")
    filled.write(wavy_bars(600), source="file:made-up")
    filled.write(ether(), source="file:made-up")
    return filled


def driven(tmp_path: Path, store: BarStore, spec: SweepSpec, run_id: str = "a1") -> RunFolder:
    folder = prepare_run(tmp_path / "runs", store, spec, run_id)
    with folder.driving():
        assert sweep.drive(folder, store) == sweep.DONE
    return folder


def test_a_sweep_of_two_products_is_computed_to_its_report(tmp_path: Path, store: BarStore) -> None:
    spec = parse_spec(ROTATION)
    folder = driven(tmp_path, store, spec)
    assert folder.progress().state is RunState.SUCCEEDED
    assert folder.record().product_id == "BTC-USD, ETH-USD"
    assert folder.record().bar_count == 600
    table = pq.read_table(folder.results_file)
    assert table.num_rows == 6
    best = table.slice(0, 1).to_pylist()[0]
    panel = read_market(store, spec)
    assert isinstance(panel, Panel)
    single = {name: value for name, value in ROTATION.items() if name not in {"grids", "sort_by"}}
    chosen = {"strategy": best["strategy"], "params": json.loads(best["params"])}
    result = portfolio.run(parse_backtest(single | chosen), panel)
    assert {name: best[name] for name in result.metrics} == pytest.approx(result.metrics, rel=0, abs=0, nan_ok=True)
    fills = pq.read_table(folder.fills_file)
    assert set(fills["product"].to_pylist()) == {"BTC-USD", "ETH-USD"}
    assert fills.num_rows == len(result.fills)
    curves = pq.read_table(folder.equity_file)
    np.testing.assert_array_equal(curves["equity"].to_numpy(), result.equity)
    np.testing.assert_array_equal(curves["position_units ETH-USD"].to_numpy(), result.units[1])
    assert curves["buy_and_hold"].to_numpy()[0] == pytest.approx(10_000, rel=0.02)
    assert "Momentum rotation" in folder.report_file.read_text()
    assert "BTC-USD, ETH-USD" in folder.report_file.read_text()


def test_bars_of_any_product_that_were_changed_since_then_are_refused(tmp_path: Path, store: BarStore) -> None:
    spec = parse_spec(ROTATION)
    folder = prepare_run(tmp_path / "runs", store, spec, "a1")
    changed = ether()
    changed.close[300] *= 1.0001
    changed.high[300] *= 1.01
    store.write(changed, source="file:made-up", replace=True)
    with folder.driving():
        assert sweep.drive(folder, store) == sweep.REFUSED
    error = folder.progress().error
    assert error is not None
    assert error.field == "data_hash"


def test_bars_that_came_in_since_then_change_nothing(tmp_path: Path, store: BarStore) -> None:
    spec = parse_spec(ROTATION)
    folder = prepare_run(tmp_path / "runs", store, spec, "a1")
    store.write(wavy_bars(700), source="file:made-up", replace=True)
    market = read_market(store, spec, folder.record())
    assert market_hash(market) == folder.record().data_hash


def test_the_order_of_products_counts(store: BarStore) -> None:
    spec = parse_spec(ROTATION)
    turned = parse_spec(ROTATION | {"product_ids": ["ETH-USD", "BTC-USD"]})
    assert market_hash(read_market(store, spec)) != market_hash(read_market(store, turned))


def test_what_is_not_in_the_store_is_named(tmp_path: Path, store: BarStore) -> None:
    with pytest.raises(MissingData, match="SOL-USD"):
        prepare_run(tmp_path, store, parse_spec(ROTATION | {"product_ids": ["BTC-USD", "SOL-USD"]}))
    with pytest.raises(RunError, match="one product"):
        read_bars(store, parse_spec(ROTATION))
    assert PanelError("", "series", 0, "x").field == "series"


def test_a_sweep_decides_on_longer_bars(tmp_path: Path, store: BarStore) -> None:
    grid = [{"strategy": "sma_cross", "grid": {"fast": [2, 3], "slow": [5, 8]}}]
    spec = make_spec(grids=grid, decide_on="FOUR_HOUR", sort_by="sharpe")
    folder = driven(tmp_path, store, spec)
    best = pq.read_table(folder.results_file).slice(0, 1).to_pylist()[0]
    chosen = {"strategy": "sma_cross", "params": json.loads(best["params"]), "decide_on": "FOUR_HOUR"}
    single = parse_backtest({"product_id": "BTC-USD", "granularity": "ONE_HOUR", **chosen})
    bars = read_bars(store, spec)
    result = backtest.run(single, bars)
    assert {name: best[name] for name in result.metrics} == pytest.approx(result.metrics, rel=0, abs=0, nan_ok=True)
    hours = pq.read_table(folder.fills_file)["ts_ns"].to_numpy() // Granularity.ONE_HOUR.ns
    assert set(hours % 4) == {0}


def test_a_sweep_of_several_products_with_rules_costs_and_own_quantities(tmp_path: Path, store: BarStore) -> None:
    grid = {"lookback": [5, 20], "stop_loss": [0.0, 0.01], "size": [0.5, 1]}
    asked = {
        "grids": [{"strategy": "momentum_rotation", "grid": grid}],
        "costs": {"max_volume_share": 0.5, "borrow_bps_per_day": 5, "at_end": "liquidate"},
        "sizing": {"quantities": {"ETH-USD": {"quantity_increment": 0.01}}},
        "decide_on": "FOUR_HOUR",
    }
    spec = parse_spec(ROTATION | asked)
    folder = driven(tmp_path, store, spec)
    rows = pq.read_table(folder.results_file).to_pylist()
    assert len(rows) == 8
    assert len({row["total_return"] for row in rows}) > 4
    panel = read_market(store, spec)
    assert isinstance(panel, Panel)
    given = {name: value for name, value in (ROTATION | asked).items() if name not in {"grids", "sort_by"}}
    for row in rows:
        one = parse_backtest(given | {"strategy": "momentum_rotation", "params": json.loads(row["params"])})
        result = portfolio.run(one, panel)
        assert {name: row[name] for name in result.metrics} == pytest.approx(result.metrics, rel=0, abs=0, nan_ok=True)
    ether = pq.read_table(folder.fills_file).to_pandas().query("product == 'ETH-USD'")
    # Orders are whole hundredths; what closes a position is exactly what is held.
    assert len(ether) > 3
    np.testing.assert_allclose(ether["quantity"] * 100, (ether["quantity"] * 100).round(), atol=1e-6)


def test_a_users_cross_section_is_shipped_with_its_run_and_computed_from_the_copy(
    tmp_path: Path, store: BarStore
) -> None:
    path = written(tmp_path, SECTION)
    own = load(read(path))
    path.unlink()
    spec = parse_spec(ROTATION | {"grids": [{"strategy": own.name, "grid": {"lookback": [5, 20], "every": [6]}}]})
    folder = driven(tmp_path, store, spec)
    assert [kept.name for kept in folder.strategies_dir.iterdir()] == [f"{own.name}.py"]
    rows = pq.read_table(folder.results_file).to_pylist()
    assert [row["strategy"] for row in rows] == [own.name] * 2
    assert pq.read_table(folder.fills_file).num_rows > 3
    assert folder.report_file.is_file()
    # A driver or worker that was started anew has only the folder.
    code = "import sys; from pathlib import Path; from cluster.run_folder import RunFolder; "
    code += "from strategies.registry import find; "
    code += "print(find(RunFolder(Path(sys.argv[1])).spec().grids[0].strategy).kind)"
    words = [sys.executable, "-c", code, str(folder.path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=280)
    assert done.stdout.strip() == "cross section"
