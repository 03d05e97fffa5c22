"""A user's own strategy on the running desk: new, check, sweep, backtest; the job works from the run's copy alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.strategy_files import GOOD, written
from tests.system.client import Desk
from tests.system.test_commands import as_json, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PERIOD = ("-p", "ETH-USD", "-g", "ONE_DAY")


def with_bars(desk: Desk) -> None:
    as_json(desk, "ingest", *PERIOD, "--start", "2026-01-01", "--end", "2026-07-01")


def test_a_new_strategy_is_checked_and_swept_as_it_is(desk: Desk, tmp_path: Path) -> None:
    with_bars(desk)
    written_to = as_json(desk, "strategy new", "my_first", "--dir", str(tmp_path))["written"]
    assert as_json(desk, "strategy check", written_to)["ok"] is True
    grid = ("--grid", "window=5:25:10", "--grid", "my_first.overbought=70,80", "--grid", "stop_loss=0,0.05")
    done = as_json(desk, "sweep", written_to, *PERIOD, *grid)
    summary = done["summary"]
    assert summary["set_count"] == 12
    assert summary["best"]["strategy"].startswith("my_first@")
    assert Path(done["report"]).is_file()


def test_a_job_needs_only_the_runs_copy_and_a_repeat_starts_nothing(desk: Desk, tmp_path: Path) -> None:
    with_bars(desk)
    path = written(tmp_path)
    words = (str(path), *PERIOD, "--param", "fast=3", "--param", "slow=9", "--run-id", "own-backtest")
    first = as_json(desk, "backtest", *words)
    shipped = as_json(desk, "backtest", "sma_cross", *words[1:-2])
    assert first["summary"]["best"]["total_return"] == shipped["summary"]["best"]["total_return"]
    path.unlink()
    assert as_json(desk, "jobs show", "own-backtest")["leaderboard"][0]["params"]["slow"] == 9
    path.write_text(GOOD + "\n# edited\n")
    again = run(desk, "backtest", *words, "--json")
    assert again.returncode == 2
    assert json.loads(again.stdout)["error"]["type"] == "RunConflict"


def test_a_specification_may_name_a_file_beside_it(desk: Desk, tmp_path: Path) -> None:
    with_bars(desk)
    written(tmp_path)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "product_id: ETH-USD\ngranularity: ONE_DAY\ngrids:\n"
        "  - {strategy: ./my_strategy.py, grid: {fast: [3, 5], slow: [9, 12]}}\n"
        "  - {strategy: sma_cross, grid: {fast: [3, 5], slow: [9, 12]}}\n"
    )
    summary = as_json(desk, "sweep", str(spec))["summary"]
    assert summary["set_count"] == 8
    assert [row["strategy"].partition("@")[0] for row in summary["best_by_strategy"]] == ["my_strategy", "sma_cross"]


def test_what_is_wrong_with_a_file_is_said_before_a_job_starts(desk: Desk, tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace("def above(quick, slow):", "def above(quick, slow):\n    print(quick)"))
    before = {row["run_id"] for row in as_json(desk, "jobs ls")}
    done = run(desk, "sweep", str(path), *PERIOD, "--grid", "fast=3,5", "--json")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "print(quick)" in text)
    assert (error["file"], error["line"]) == ("my_strategy.py", line)
    assert "prints nothing" in error["rule"]
    assert {row["run_id"] for row in as_json(desk, "jobs ls")} == before
