"""The page of a comparison: right, one file that loads nothing, and no text from outside that becomes markup."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run_compare import ComparedRun, compare, read_run
from cluster.runs import RunFolder
from jobs import compare as page_of_runs
from jobs.compare import main, write_page
from tests.html_page import Page
from tests.run_samples import complete_run, make_spec, make_store

EVIL = "</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[RunFolder]:
    root = tmp_path_factory.mktemp("runs")
    store = make_store(root / "bars")
    specs = {"one": make_spec(), "two": make_spec(costs={"spread_bps": 4, "fill": "same_close"})}
    return [complete_run(root / "runs", store, spec, name) for name, spec in specs.items()]


def page(path: Path, runs: list[ComparedRun], **options: Any) -> Page:
    write_page(path, runs, compare(runs, **options))
    return Page(path.read_text())


def test_the_page_shows_answer_differences_and_both_curves(folders: list[RunFolder], tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in folders]
    shown = page(tmp_path / "a.html", runs)
    found = compare(runs)
    for sentence in (*found.answer, *(check.sentence for check in found.checks), "costs.spread_bps"):
        assert " ".join(sentence.split()) in shown.text
    assert "SIMULATED prices, from no market: one, two" in shown.text
    assert "LOOK-AHEAD, filled at the close that decided: two" in shown.text
    for folder in folders:
        for verdict in json.loads(folder.honesty_file.read_text())["verdicts"]:
            assert verdict["sentence"] in shown.text
    curves = {run["name"]: run for run in shown.data["runs"]}
    for run in runs:
        equity = run.curve[1]
        assert curves[run.run_id]["equity"][-1] == pytest.approx(equity[-1] / equity[0], rel=1e-6)
        assert min(curves[run.run_id]["drawdown"]) == pytest.approx(
            float((equity / np.maximum.accumulate(equity) - 1).min()), rel=1e-4
        )
    (pair,) = shown.data["pairs"]
    assert (pair["names"], len(pair["base"])) == (["one", "two"], found.pairs[0].common.sets)


def test_the_page_loads_nothing(folders: list[RunFolder], tmp_path: Path) -> None:
    shown = page(tmp_path / "a.html", [read_run(folder) for folder in folders])
    assert not [name for name, attributes in shown.tagged if {"src", "href"} & attributes.keys()]
    (policy,) = [a["content"] for _, a in shown.tagged if a.get("http-equiv") == "Content-Security-Policy"]
    assert str(policy).startswith("default-src 'none'")


def test_text_from_outside_stays_text(folders: list[RunFolder], tmp_path: Path) -> None:
    run = read_run(folders[1])
    honesty = dict(run.honesty) | {"verdicts": [{"about": EVIL, "level": EVIL, "sentence": EVIL}]}
    table = run.table.set_column(1, "strategy", pa.array([EVIL] * run.table.num_rows))
    record = run.record.model_copy(update={"product_id": EVIL, "data_source": EVIL, "git_revision": EVIL})
    spec = dict(run.spec) | {EVIL: EVIL, "grids": [{"strategy": EVIL, "grid": {EVIL: [1]}}]}
    summary = dict(run.summary) | {"best": {"strategy": EVIL, "params": {EVIL: 1.0}}, "study": {"method": EVIL}}
    bad = dataclasses.replace(run, honesty=honesty, table=table, record=record, spec=spec, summary=summary)
    shown = page(tmp_path / "a.html", [bad, dataclasses.replace(bad, folder=RunFolder(Path(EVIL)))])
    assert EVIL.rpartition("/")[2] in shown.text
    assert "img" not in shown.elements
    assert shown.elements.count("script") == 3
    assert shown.data["pairs"][0]["text"][0].startswith(EVIL)


@pytest.mark.parametrize("count", [1, 3])
def test_a_million_bars_are_drawn_with_a_few_points(folders: list[RunFolder], tmp_path: Path, count: int) -> None:
    run = read_run(folders[0])
    stamps = run.curve[0][0] + np.arange(1_000_000) * 60 * 10**9
    equity = 1e4 * np.exp(np.cumsum(np.random.default_rng(count).normal(size=len(stamps)) * 1e-4))
    runs = [read_run(folders[1]), dataclasses.replace(run, curve=(stamps, equity))]
    shown = page(tmp_path / "a.html", runs)
    points = shown.data["runs"][1]["equity"]
    assert len(points) <= page_of_runs.POINTS_MAX + 1
    assert max(points) == pytest.approx(float(equity.max() / equity[0]), rel=1e-6)
    assert (tmp_path / "a.html").stat().st_size < 6_000_000


def test_the_program_writes_the_file_and_refuses_what_it_cannot_read(
    folders: list[RunFolder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [part for folder in folders for part in ("--run-dir", str(folder.path))]
    out = tmp_path / "page.html"
    assert main([*words, "--out", str(out), "--sort-by", "sharpe"]) == 0
    assert "Best sets by sharpe" in Page(out.read_text()).text
    assert main([*words, "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert main([*words, "--out", str(out), "--sort-by", "luck"]) == 2
    assert main([*words, "--run-dir", str(tmp_path / "nobody"), "--out", str(out)]) == 2
    assert "nobody: progress.json" in capsys.readouterr().err


def test_equity_that_is_no_number_is_refused(folders: list[RunFolder], tmp_path: Path) -> None:
    run = read_run(folders[0])
    for first in (0.0, np.nan, -1.0):
        curve = run.curve[1].copy()
        curve[0] = first
        bad = dataclasses.replace(run, curve=(run.curve[0], curve))
        with pytest.raises(ValueError, match=r"one: best/equity\.parquet"):
            page(tmp_path / "a.html", [read_run(folders[1]), bad])
    assert pq.read_table(folders[0].equity_file).num_rows == len(run.curve[0])
