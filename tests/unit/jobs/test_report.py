"""The report: right numbers, one file that loads nothing, and no text from outside that becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import BarStore
from cluster.runs import RunFolder, prepare_run
from jobs import report
from jobs.blocks import compute_here
from jobs.report import write_report
from jobs.report_series import monthly_returns, returns_of, sample
from jobs.report_tables import differing_fields
from jobs.sweep import Reporter, finish, plan_of, work_of
from strategies.user_file import load, read
from tests.bar_samples import NEW_YEAR_NS
from tests.html_page import Page
from tests.run_samples import complete_run, loaded, make_spec, make_store, one_set_spec, wavy_bars
from tests.strategy_files import GOOD, written

HOUR_NS = 3_600 * 10**9


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


def page_of(folder: RunFolder) -> Page:
    return Page(write_report(folder).read_text())


def test_the_report_shows_run_best_set_and_leaderboard(store: BarStore, tmp_path: Path) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    page = page_of(folder)
    best = folder.summary()["best"]
    assert "BTC-USD · 1-hour bars" in page.text
    assert "SIMULATED" in page.text
    assert "LOOK-AHEAD" not in page.text
    record = folder.record()
    for fact in (record.data_hash, record.spec_hash, record.git_revision, record.code_hash, record.run_id):
        assert fact in page.text
    assert f"Sweep of {record.set_count} parameter sets" in page.text
    assert f"{best['total_return'] * 100:+.1f}\u00a0%".replace("-", "−") in "".join(page.texts)
    data = page.data
    assert {strategy["title"] for strategy in data["heat"]["maps"]} == {"SMA cross", "RSI mean reversion"}
    assert len(data["sets"]) == 4
    assert [one["set_id"] for one in data["sets"]] == [row["set_id"] for row in folder.leaderboard(4)]
    assert len(data["sets"][0]["curve"]["ts"]) == 600


def test_a_run_with_same_close_fills_says_look_ahead(store: BarStore, tmp_path: Path) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec(costs={"fill": "same_close"}))
    assert "LOOK-AHEAD" in page_of(folder).text


def test_a_run_on_real_bars_does_not_say_simulated(tmp_path: Path) -> None:
    store = make_store(tmp_path / "real", source="coinbase")
    page = page_of(complete_run(tmp_path / "runs", store, make_spec()))
    assert "SIMULATED" not in page.text
    assert "coinbase" in page.text


def test_what_a_single_backtest_cannot_have_is_said_and_not_drawn(store: BarStore, tmp_path: Path) -> None:
    page = page_of(complete_run(tmp_path / "runs", store, one_set_spec()))
    data = page.data
    assert data["heat"]["maps"] == []
    assert not {"heat-plot", "walk-bars", "logits", "paths", "study-best"} & page.ids
    for sentence in ("No parameter varies", "No walk-forward: one set", "No probability of backtest", "is no search"):
        assert sentence in page.text


def test_a_run_without_a_single_fill_has_a_report(tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars")
    spec = make_spec(grids=[{"strategy": "sma_cross", "grid": {"slow": [9_000]}}])
    page = page_of(complete_run(tmp_path / "runs", store, spec))
    assert "–" in page.text  # a Sharpe ratio without deviation is no number
    assert "NaN" not in page.scripts["script#data"]


def test_the_report_loads_nothing_from_anywhere(store: BarStore, tmp_path: Path) -> None:
    page = page_of(complete_run(tmp_path / "runs", store, make_spec()))
    assert not {"link", "iframe", "img", "object", "embed", "base"} & set(page.elements)
    links = [value for name, value in page.attributes if name in {"src", "href", "action", "data"}]
    assert not [value for value in links if not str(value).startswith("#")]
    policy = next(value for name, value in page.attributes if name == "content" and value and "default-src" in value)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert not re.search(r"url\(|@import", page.scripts["style#"])


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "</script><b>", "<!--", "%DATA%", "'\"><i>", "&lt;"])
def test_text_from_outside_stays_text(store: BarStore, tmp_path: Path, hostile: str) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    elements = []
    for text in ("plain", hostile):
        update = {"data_source": f"file:{text}", "git_revision": text}
        folder.write_record(folder.record().model_copy(update=update))
        page = page_of(folder)
        assert f"file:{text}" in "".join(page.texts)
        elements.append(page.elements)
    assert elements[0] == elements[1]


def test_data_for_the_charts_cannot_end_its_element(store: BarStore, tmp_path: Path) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    html = write_report(folder).read_text()
    data = html[html.index('id="data">') + 10 :].partition("</script>")[0]
    assert "<" not in data
    json.loads(data)


@pytest.mark.parametrize("name", ["results.parquet", "best/equity.parquet", "run.json", "spec.json"])
def test_a_missing_or_damaged_file_is_named(
    store: BarStore, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    before = folder.report_file.read_bytes()
    path = folder.path / name
    for content in (path.read_bytes()[:-20], None):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert report.main(["--run-dir", str(folder.path)]) == 2
        assert Path(name).name in capsys.readouterr().err
        if content is None:
            assert folder.report_file.read_bytes() == before
        path.touch()


def test_the_command_writes_the_report_again(
    store: BarStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    first = folder.report_file.read_bytes()
    folder.report_file.unlink()
    capsys.readouterr()
    assert report.main(["--run-dir", str(folder.path)]) == 0
    assert folder.report_file.read_bytes() == first
    assert capsys.readouterr().out.strip() == str(folder.report_file)


def test_monthly_returns_chain_to_the_whole() -> None:
    # Hourly bars from the last two hours of 2023 to the first of March 2024; February has no bar.
    stamps = np.array(["2023-12-31T22", "2023-12-31T23", "2024-01-01T00", "2024-01-31T23", "2024-03-01T00"])
    ts_ns = stamps.astype("datetime64[ns]").astype(np.int64)
    equity = np.array([99.0, 110.0, 100.0, 121.0, 60.5])
    years = dict(monthly_returns(ts_ns, equity, 100.0))
    assert list(years) == [2023, 2024]
    assert years[2023][11] == pytest.approx(0.10)
    assert years[2024][0] == pytest.approx(0.10)
    assert np.isnan(years[2024][1])
    assert years[2024][2] == pytest.approx(-0.5)
    assert years[2023][12] == pytest.approx(0.10)
    assert years[2024][12] == pytest.approx(60.5 / 110 - 1)


def test_after_ruin_a_month_has_no_return() -> None:
    ts_ns = np.array(["2024-01-31", "2024-02-29", "2024-03-31"]).astype("datetime64[ns]").astype(np.int64)
    ((year, returns),) = monthly_returns(ts_ns, np.array([50.0, 0.0, 0.0]), 100.0)
    assert year == 2024
    assert returns[:2] == [-0.5, -1.0]
    assert np.isnan(returns[2])


@pytest.mark.parametrize("length", [1, 2, 1999, 2000, 2001, 50_000])
def test_thinning_keeps_ends_and_extremes(length: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    at = sample(values, 2000)
    assert len(at) <= 2000
    assert at[0] == 0
    assert at[-1] == length - 1
    assert (np.diff(at) > 0).all()
    assert values[at].min() == values.min()
    assert values[at].max() == values.max()


def test_a_template_placeholder_without_a_value_would_fail(store: BarStore, tmp_path: Path) -> None:
    html = write_report(complete_run(tmp_path / "runs", store, make_spec())).read_text()
    assert not re.search(r"%[A-Z_]{3,}%", html.partition("<script>")[0])
    assert NEW_YEAR_NS % HOUR_NS == 0


def test_what_a_user_wrote_is_text(store: BarStore, tmp_path: Path) -> None:
    own = load(read(written(tmp_path, GOOD + "\n# </pre><script>alert(1)</script> & more\n")))
    spec = make_spec(grids=[{"strategy": own.name, "grid": {"fast": [3, 5], "slow": [13, 21]}}])
    page = page_of(complete_run(tmp_path / "runs", store, spec))
    assert "# </pre><script>alert(1)</script> & more" in "".join(page.texts)
    assert page.elements.count("script") == 3
    assert own.name.partition("@")[0] in page.text


def test_fields_that_differ_from_their_defaults_are_listed_with_them() -> None:
    spec = make_spec(costs={"fee_bps": 12.5, "fill": "same_close"}, seed=3, sizing={"kind": "units"})
    rows = {name: (value, default) for name, value, default in differing_fields(spec)}
    assert rows["costs.fee_bps"] == ("12.5", "60")
    assert rows["costs.fill"] == ("same_close", "next_open")
    assert rows["sizing.kind"] == ("units", "percent")
    assert rows["seed"] == ("3", "0")
    assert rows["product_id"] == ("BTC-USD", "required")
    assert set(rows) == {"product_id", "granularity", "grids", "costs.fee_bps", "costs.fill", "sizing.kind", "seed"}


def test_what_is_alike_in_every_row_is_said_once(store: BarStore, tmp_path: Path) -> None:
    spec = make_spec(grids=[{"strategy": "sma_cross", "grid": {"fast": [3, 5], "slow": [13, 21]}}])
    text = page_of(complete_run(tmp_path / "runs", store, spec)).text
    assert "SMA cross has in every row allow_short 0." in text


def test_sets_of_a_halving_search_that_saw_a_part_of_the_history_say_so(tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars", wavy_bars(1_200))
    search = {"method": "asha", "sets": 18, "generation": 18, "eta": 3, "rungs": 2}
    grids = [{"strategy": "sma_cross", "grid": {"fast": {"low": 3, "high": 20}, "slow": {"low": 21, "high": 90}}}]
    run = loaded(prepare_run(tmp_path / "runs", store, make_spec(grids=grids, search=search), "a1"), store)
    state = Reporter(run.folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    finish(run, state, plan)
    page = page_of(run.folder)
    assert page.text.count("only the first 33") == 12
    assert "12 sets saw only a part of the history" in page.text
    assert "best of the search" in page.text
    assert "study-best" in page.ids
    assert "One objective: there is no Pareto front." in page.text


def test_a_bar_that_takes_most_of_the_equity_is_pointed_at(tmp_path: Path) -> None:
    bars = wavy_bars(600)
    for values in (bars.open, bars.high, bars.low, bars.close):
        values[300:] *= 4  # whoever is short then has lost everything
    store = make_store(tmp_path / "bars", bars)
    grids = [{"strategy": "sma_cross", "grid": {"allow_short": [1], "fast": [100], "slow": [290]}}]
    folder = complete_run(tmp_path / "runs", store, make_spec(grids=grids))
    assert returns_of(pq.read_table(folder.equity_file)["equity"].to_numpy()).min() < -0.5
    assert "One bar took 100.0\u00a0% of the equity: 2024-01-13 12:00:00 UTC." in "".join(page_of(folder).texts)
