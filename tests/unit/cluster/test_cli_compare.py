"""``desk compare``: whether runs can be compared, what differs, and every way their folders can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from cluster.run_archive import RunArchive
from cluster.run_compare import Comparison, compare, read_runs
from cluster.run_folder import RunError
from cluster.run_pairs import common_sets, curve_difference
from cluster.runs import RunFolder, prepare_run
from strategies.metrics import METRICS
from tests.bar_samples import NEW_YEAR_NS, with_value
from tests.run_samples import complete_run, make_spec, make_store, wavy_bars

OTHER_GRID = [{"strategy": "sma_cross", "grid": {"fast": [3, 5, 16], "slow": [13, 21, 55], "allow_short": [0, 1]}}]
HOUR_NS = 3_600 * 10**9


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that differ in one thing each."""
    root = tmp_path_factory.mktemp("compared")
    bars = wavy_bars(600)
    store = make_store(root / "bars", bars)
    runs: dict[str, dict[str, Any]] = {
        "base": {},
        "again": {},
        "costlier": {"costs": {"spread_bps": 4, "fee_tiers": [[1e5, 30]]}},
        "other-grid": {"grids": OTHER_GRID},
        "later": {"start": "2024-01-05"},
        "sized": {"sizing": {"kind": "notional"}},
    }
    for run_id, changes in runs.items():
        complete_run(root / "runs", store, make_spec(**changes), run_id)
    corrected = make_store(root / "corrected", with_value(bars, "close", 300, float(bars.low[300])))
    complete_run(root / "runs", corrected, make_spec(), "corrected")
    return root / "runs"


@pytest.fixture
def own(runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk's folder with a copy of two of the runs, to be damaged."""
    import shutil

    monkeypatch.setenv("DESK_STATE_DIR", str(tmp_path))
    for name in ("base", "again"):
        shutil.copytree(runs_dir / name, tmp_path / "runs" / name)
    return tmp_path / "runs"


def compared(runs_dir: Path, *run_ids: str, **options: Any) -> Comparison:
    return compare(read_runs(runs_dir, run_ids), **options)


def levels(found: Comparison) -> dict[str, str]:
    return {check.about: check.level for check in found.checks if check.level != "good"}


def desk(words: str) -> Result:
    return CliRunner().invoke(app, words.split())


def test_the_same_run_twice_is_the_same_in_everything(runs_dir: Path) -> None:
    found = compared(runs_dir, "base", "again")
    assert found.comparable
    assert (levels(found), found.differences) == ({}, ())
    (pair,) = found.pairs
    assert (pair.common.sets, pair.common.identical, pair.common.partly) == (42, 42, 0)
    assert all(one.equal == 42 and one.largest is None for one in pair.common.metrics)
    assert [one.about for one in pair.curves] == ["all bars", "held-out bars"]
    assert all(one.z is None for one in pair.curves)
    assert any("are the same" in sentence for sentence in found.answer)
    assert found.runs[0].rows == found.runs[1].rows


@pytest.mark.parametrize(
    ("other", "comparable", "differing", "fields"),
    [
        ("costlier", False, {"costs": "bad"}, {"costs.spread_bps", "costs.fee_tiers"}),
        ("sized", False, {"sizing": "bad"}, {"sizing.kind"}),
        ("corrected", False, {"data hash": "bad"}, set()),
        ("later", False, {"period": "bad", "data hash": "bad", "held-out bars": "doubtful"}, {"start"}),
        (
            "other-grid",
            True,
            {"sets tried": "note"},
            {
                "grids[sma_cross].grid.fast",
                "grids[sma_cross].grid.slow",
                "grids[rsi_reversion].strategy",
                "grids[rsi_reversion].grid.window",
                "grids[rsi_reversion].grid.oversold.start",
                "grids[rsi_reversion].grid.oversold.stop",
                "grids[rsi_reversion].grid.oversold.step",
            },
        ),
    ],
)
def test_what_differs_is_named_and_judged(
    runs_dir: Path, other: str, comparable: bool, differing: dict[str, str], fields: set[str]
) -> None:
    found = compared(runs_dir, "base", other)
    assert found.comparable is comparable
    assert levels(found) == differing
    assert {one.field for one in found.differences} == fields
    assert found.answer[0].startswith("The figures can be compared" if comparable else "The figures cannot be compared")


def test_of_three_runs_each_pair_is_judged_by_itself(runs_dir: Path) -> None:
    found = compared(runs_dir, "base", "other-grid", "costlier")
    assert found.comparable is False
    assert [pair.comparable for pair in found.pairs] == [True, False]
    (border,) = [check for check in found.checks if check.about == "held-out bars"]
    page = json.loads((runs_dir / "base" / "honesty.json").read_text())
    assert border.values == (f"from bar {page['plan']['held_out_from_bar']}",) * 3


def test_values_of_a_field_are_those_of_the_specifications(runs_dir: Path) -> None:
    found = {one.field: one.values for one in compared(runs_dir, "base", "costlier", "other-grid").differences}
    assert found["costs.spread_bps"] == {"base": 0.0, "costlier": 4.0, "other-grid": 0.0}
    assert found["costs.fee_tiers"]["costlier"] == [{"volume_30d_from": 1e5, "fee_bps": 30.0}]
    assert "other-grid" not in found["grids[rsi_reversion].grid.window"]


def test_common_sets_are_found_whatever_place_they_are_in(runs_dir: Path) -> None:
    (pair,) = compared(runs_dir, "base", "other-grid").pairs
    # fast 3 and 5 with slow 13 and 21, long only and both ways
    assert (pair.common.sets, pair.common.identical) == (8, 8)
    honest = {one.metric: one for one in pair.common.metrics}
    assert honest["dsr"].equal < 8, "the number of trials is another"
    assert honest["oos_sharpe"].equal == 8


def test_the_largest_difference_is_told_with_its_set(runs_dir: Path) -> None:
    (pair,) = compared(runs_dir, "base", "costlier").pairs
    rows = [
        {
            (row["strategy"], row["params"]): row
            for row in pq.read_table(runs_dir / name / "results.parquet").to_pylist()
        }
        for name in ("base", "costlier")
    ]
    (sharpe,) = [one for one in pair.common.metrics if one.metric == "sharpe"]
    changes = {key: rows[1][key]["sharpe"] - row["sharpe"] for key, row in rows[0].items()}
    key = max(changes, key=lambda one: abs(changes[one]))
    assert sharpe.largest is not None
    assert (sharpe.largest.strategy, json.dumps(sharpe.largest.params)) == key
    assert sharpe.largest.difference == changes[key]
    assert sharpe.median_difference == pytest.approx(float(np.median(list(changes.values()))))
    assert sharpe.other_better == pytest.approx(sum(change > 0 for change in changes.values()) / len(changes))


def table_of(rows: list[tuple[str, float]], **columns: Any) -> pa.Table:
    figures = {name: [value for _, value in rows] for name in METRICS}
    names = [params for params, _ in rows]
    return pa.table(
        {"set_id": range(len(rows)), "strategy": ["s@0"] * len(rows), "params": names, **figures, **columns}
    )


def test_not_a_number_equals_itself_and_differs_from_a_number() -> None:
    base = table_of([("{}", math.nan), ('{"a": 1}', 1.0), ('{"a": 2}', math.nan), ('{"a": 3}', 0.0)])
    other = table_of([('{"a": 3}', -0.0), ('{"a": 2}', 5.0), ("{}", math.nan), ('{"a": 1}', 1.5)])
    found = common_sets(base, other)
    assert (found.sets, found.identical) == (4, 1)
    (sharpe,) = [one for one in found.metrics if one.metric == "sharpe"]
    assert (sharpe.equal, sharpe.undefined_in_one) == (1, 1), "0.0 and -0.0 are not the same bits"
    assert sharpe.largest is not None
    assert (sharpe.largest.params, sharpe.largest.difference) == ({"a": 1}, 0.5)


def test_sets_of_a_part_of_the_history_are_not_compared() -> None:
    base = table_of([("{}", 1.0), ('{"a": 1}', 1.0)], history=[1.0, 0.5])
    found = common_sets(base, table_of([("{}", 1.0), ('{"a": 1}', 1.0)]))
    assert (found.sets, found.partly) == (1, 1)


def test_runs_without_a_set_in_common_say_so() -> None:
    found = common_sets(table_of([("{}", 1.0)]), table_of([('{"a": 1}', 1.0)]))
    assert found.sets == 0
    assert found.metrics[0].median_difference is None


def test_two_sharpe_ratios_are_tested_as_memmel_does() -> None:
    """Against the formula written out once more, and a difference no chance makes against one it does."""
    draws = np.random.default_rng(5).normal(size=(3, 4_000))
    stamps = NEW_YEAR_NS + np.arange(4_001) * HOUR_NS
    one = np.concatenate([[1.0], np.cumprod(1 + 0.001 * draws[0])])
    two = np.concatenate([[1.0], np.cumprod(1 + 0.001 * (0.8 * draws[0] + 0.6 * draws[1]) + 2e-5)])
    far = np.concatenate([[1.0], np.cumprod(1 + 0.001 * draws[2] + 2e-4)])
    near = curve_difference("all", (stamps, one), (stamps, two))
    a, b = np.diff(one) / one[:-1], np.diff(two) / two[:-1]
    sa, sb, rho = a.mean() / a.std(ddof=1), b.mean() / b.std(ddof=1), np.corrcoef(a, b)[0, 1]
    variance = (2 * (1 - rho) + (sa**2 + sb**2 - 2 * sa * sb * rho**2) / 2) / 4_000
    assert near.z == pytest.approx((sb - sa) / math.sqrt(variance))
    assert near.p_value is not None
    assert near.p_value > 0.01
    apart = curve_difference("all", (stamps, one), (stamps, far))
    assert apart.p_value is not None
    assert apart.p_value < 1e-6
    later = curve_difference("rest", (stamps, one), (stamps[10:], two[10:]), int(stamps[3_001]))
    assert later.returns == 999


@pytest.mark.parametrize("count", [0, 1, 30])
def test_few_bars_or_ruin_tell_nothing(count: int) -> None:
    stamps = NEW_YEAR_NS + np.arange(count) * HOUR_NS
    assert curve_difference("all", (stamps, np.ones(count)), (stamps, np.ones(count))).p_value is None
    longer = NEW_YEAR_NS + np.arange(100) * HOUR_NS
    ruined = np.concatenate([np.ones(50), np.zeros(50)])
    assert curve_difference("all", (longer, ruined), (longer, np.ones(100))).p_value is None
    assert curve_difference("all", (longer, np.ones(100)), (longer, np.ones(100))).p_value is None


def test_the_best_sets_are_by_the_figure_asked_for(runs_dir: Path) -> None:
    found = compared(runs_dir, "base", "other-grid", sort_by="max_drawdown", top=4)
    for run in found.runs:
        falls = [row["max_drawdown"] for row in run.rows]
        assert (run.sorted_by, len(falls), falls) == ("max_drawdown", 4, sorted(falls))
    with pytest.raises(RunError, match="sort_by"):
        compared(runs_dir, "base", "again", sort_by="luck")


def test_the_command_prints_all_parts_and_one_json_document(own: Path) -> None:
    text = " ".join(desk("compare base again --top 2").stdout.split())
    for part in (
        "The figures can be compared",
        "The specifications are the same",
        "oos_sharpe",
        "PBO",
        "equal bit for",
    ):
        assert part in text
    found = json.loads(desk("compare base again --json --top 2").stdout)
    assert found["comparable"] is True
    assert [len(run["rows"]) for run in found["runs"]] == [2, 2]
    assert found["pairs"][0]["common"]["identical"] == 42


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("base", "2 to 12 runs"),
        ("base base", "each run once"),
        ("base nobody", "nobody"),
        ("base ../../etc", "etc"),
        ("base again --sort-by luck", "sort_by"),
    ],
)
def test_what_cannot_be_compared_is_refused(own: Path, words: str, said: str) -> None:
    result = desk(f"compare {words} --json")
    assert result.exit_code == 2
    assert said in json.loads(result.stdout)["error"]["message"]


def test_an_unfinished_a_sent_and_an_archived_run_are_refused_with_what_to_do(own: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars")
    begun = prepare_run(own, store, make_spec(), "begun")
    assert "PENDING" in desk("compare base begun").stderr
    begun.remote_file.write_text("{}")
    assert "desk jobs fetch begun" in desk("compare base begun").stderr
    RunArchive(own).put_away(RunFolder(own / "again"))
    result = desk("compare base again")
    assert (result.exit_code, "desk jobs restore again" in result.stderr) == (2, True)
    RunArchive(own).bring_back("again")
    assert desk("compare base again").exit_code == 0


FILES = (
    "run.json",
    "spec.json",
    "progress.json",
    "results.parquet",
    "summary.json",
    "honesty.json",
    "best/equity.parquet",
)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "bytes"])
def test_an_absent_or_damaged_file_is_named_with_its_run(own: Path, name: str, damage: str) -> None:
    path = own / "again" / name
    content = path.read_bytes()
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "bytes": b"\xff\x00{[" * 9}[damage])
    result = desk("compare base again --json")
    assert result.exit_code == 2, result.output
    message = json.loads(result.stdout)["error"]["message"]
    assert "again" in message
    assert name.rpartition("/")[2] in message or (damage == "absent" and name == "run.json")


@pytest.mark.parametrize("cuts", [[5, 3], [0, 600, 700], [0, 10, 5, 600]])
def test_segments_nobody_plans_are_named(own: Path, cuts: list[int]) -> None:
    path = own / "again" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cuts": cuts}))
    result = desk("compare base again --json")
    assert result.exit_code == 2
    assert "again: run.json" in json.loads(result.stdout)["error"]["message"]


@pytest.mark.parametrize("change", ["column", "rows", "null", "params"])
def test_a_table_that_is_no_table_of_results_is_named(own: Path, change: str) -> None:
    path = own / "again" / "results.parquet"
    table = pq.read_table(path)
    count = table.num_rows
    changed = {
        "column": lambda: table.drop_columns("sharpe"),
        "rows": lambda: table.slice(0, 0),
        "null": lambda: table.set_column(table.column_names.index("sharpe"), "sharpe", pa.nulls(count, pa.float64())),
        "params": lambda: table.set_column(table.column_names.index("params"), "params", pa.array(["{"] * count)),
    }[change]()
    pq.write_table(changed, path)
    result = desk("compare base again --json")
    assert result.exit_code == 2
    assert "again: results.parquet" in json.loads(result.stdout)["error"]["message"]


def test_a_run_of_an_earlier_version_is_compared_by_what_it_has(own: Path) -> None:
    folder = RunFolder(own / "again")
    folder.write_record(folder.record().model_copy(update={"cuts": (), "code_hash": "0" * 64}))
    folder.honesty_file.unlink()
    spec = json.loads(folder.spec_file.read_text())
    del spec["sizing"], spec["costs"]["spread_bps"]
    folder.spec_file.write_text(json.dumps(spec))
    found = compared(own, "base", "again")
    assert levels(found) == {"engine": "doubtful", "held-out bars": "doubtful"}
    assert found.comparable, "what it did not know was what its default means"
    assert "earlier version" in found.runs[1].honesty["why_not"]
    assert [one.about for one in found.pairs[0].curves] == ["all bars"]


def test_the_page_is_written_or_the_reason_told(own: Path, tmp_path: Path) -> None:
    page = tmp_path / "both.html"
    assert desk(f"compare base again --html {page} --json").exit_code == 0
    assert "base and again" in page.read_text()
    result = desk(f"compare base again --html {tmp_path}/no/both.html --json")
    assert (result.exit_code, json.loads(result.stdout)["error"]["field"]) == (2, "html")
