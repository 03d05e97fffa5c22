"""The results of a run are read by pandas, polars and DuckDB as they are: same names, types and values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.runs import prepare_run
from jobs.blocks import compute_here
from jobs.sweep import Reporter, finish, plan_of, work_of
from tests.peers.engine_runs import needs_peers, patient, run_peer
from tests.run_samples import complete_run, loaded, make_spec, make_store

pytestmark = [needs_peers, patient, pytest.mark.slow]

# What each library calls the types that results are written with; pandas has no whole numbers with gaps.
TYPES: Final[dict[str, dict[pa.DataType, set[str]]]] = {
    "pandas": {
        pa.int64(): {"int64", "float64"},
        pa.float64(): {"float64"},
        pa.string(): {"str", "object"},
        pa.bool_(): {"bool", "object"},
    },
    "polars": {pa.int64(): {"Int64"}, pa.float64(): {"Float64"}, pa.string(): {"String"}, pa.bool_(): {"Boolean"}},
    "duckdb": {pa.int64(): {"BIGINT"}, pa.float64(): {"DOUBLE"}, pa.string(): {"VARCHAR"}, pa.bool_(): {"BOOLEAN"}},
}


FILES: Final = ("results", "searched", "equity", "fills", "part")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a sweep over two strategies: parameters that one of them lacks are null; and the table of a search."""
    root = tmp_path_factory.mktemp("readers")
    store = make_store(root / "bars")
    folder = complete_run(root / "runs", store, make_spec())
    search = {"method": "asha", "sets": 40, "rungs": 2, "eta": 2, "constraints": ["trades >= 3"]}
    run = loaded(prepare_run(root / "runs", store, make_spec(search=search), "searched"), store)
    state = Reporter(run.folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    finish(run, state, plan)
    return {
        "results": folder.results_file,
        "searched": run.folder.results_file,
        "equity": folder.equity_file,
        "fills": folder.fills_file,
        "part": sorted(folder.parts_dir.iterdir())[0],
    }


@pytest.fixture(scope="module", params=FILES)
def results_file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


@pytest.fixture(scope="module")
def read(results_file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_peer("readers", str(results_file)))
    return found


@pytest.mark.parametrize("library", TYPES)
def test_names_and_types_are_those_written(results_file: Path, read: dict[str, Any], library: str) -> None:
    schema = pq.read_schema(results_file)
    assert list(read[library]["types"]) == schema.names
    for field in schema:
        if field.type in TYPES[library]:
            assert read[library]["types"][field.name] in TYPES[library][field.type], field.name


@pytest.mark.parametrize("library", TYPES)
def test_values_are_those_written(results_file: Path, read: dict[str, Any], library: str) -> None:
    table = pq.read_table(results_file)
    assert table.num_rows > 3
    if results_file.name == "results.parquet":
        assert any(column.null_count for column in table.columns), "no parameter is missing anywhere: nothing shown"
    expected = [[_plain(value) for value in row.values()] for row in table.to_pylist()]
    assert read[library]["rows"] == expected


def test_duckdb_answers_a_question_in_sql(results_file: Path, read: dict[str, Any]) -> None:
    if "best_by_duckdb" not in read:
        assert not {"strategy", "sharpe"} <= set(pq.read_schema(results_file).names)
        return
    best: dict[str, float] = {}
    for row in pq.read_table(results_file, columns=["strategy", "sharpe"]).to_pylist():
        if not math.isnan(row["sharpe"]):
            best[row["strategy"]] = max(best.get(row["strategy"], -math.inf), row["sharpe"])
    assert read["best_by_duckdb"] == [[name, best[name]] for name in sorted(best)]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return float(value) if math.isfinite(value) else None
