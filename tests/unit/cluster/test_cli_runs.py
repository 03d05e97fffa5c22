"""``desk jobs show`` and ``desk data resample`` on folders alone: what stands there, as a table and as JSON."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from cluster import cli_leaderboard
from cluster.cli import app
from cluster.console import console
from cluster.market_data import BarStore
from cluster.remote_runs import unpacked
from cluster.run_honesty import honesty_of
from cluster.runs import RunFolder, prepare_run
from conf.settings import load_settings
from jobs.blocks import config_of, evaluate_block
from jobs.sweep import Reporter, plan_of, work_of
from strategies.model import Granularity
from strategies.resample import resample
from tests.bar_samples import make_bars, pick, same
from tests.run_samples import complete_run, loaded, make_spec, make_store, one_set_spec, wavy_bars


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BarStore:
    """A desk's state folder with bars in it, which nobody runs on."""
    monkeypatch.setenv("DESK_STATE_DIR", str(tmp_path))
    return make_store(load_settings().bars_path)


@pytest.fixture
def runs_dir(store: BarStore) -> Path:
    return load_settings().runs_path


def desk(words: str) -> Result:
    return CliRunner().invoke(app, words.split())


def as_json(words: str) -> Any:
    result = desk(f"{words} --json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def shown(capsys: pytest.CaptureFixture[str], folder: RunFolder, top: int = 5) -> str:
    from cluster.cli_leaderboard import print_leaderboard

    capsys.readouterr()
    print_leaderboard(folder, top)
    return " ".join(capsys.readouterr().out.split())


def test_a_finished_run_is_shown_with_costs_and_how_far_it_is_to_be_believed(
    store: BarStore, runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = complete_run(runs_dir, store, make_spec(costs={"spread_bps": 2}))
    text = shown(capsys, folder)
    page = json.loads(folder.honesty_file.read_text())
    assert all(name in text for name in ("is_sharpe", "oos_sharpe", "is_return", "oos_return", "dsr"))
    assert "spread_bps 2" in text
    assert f"PBO {page['overfitting']['pbo']:.0%} of {page['overfitting']['splits']} splits" in text
    assert f"DSR {page['sharpe_tests']['dsr']:.2f} of {page['sharpe_tests']['trials']} trials" in text
    told = {one["about"]: one["sentence"] for one in page["verdicts"]}
    assert all(told[about] in text for about in ("sharpe_tests", "overfitting", "stability"))
    honesty = as_json("jobs show a1")["honesty"]
    assert honesty["why_not"] is None
    assert (honesty["pbo"], honesty["dsr"]) == (page["overfitting"]["pbo"], page["sharpe_tests"]["dsr"])
    assert honesty["verdicts"] == page["verdicts"]


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (160, set()),
        (125, {"is_return", "total_return", "sharpe"}),
        (80, {"is_return", "total_return", "sharpe", "dsr", "max_drawdown"}),
    ],
)
def test_a_narrow_terminal_shows_fewer_figures_and_always_the_held_out_ones(
    monkeypatch: pytest.MonkeyPatch, width: int, left_out: set[str]
) -> None:
    monkeypatch.setattr(console, "width", width)
    names = [*cli_leaderboard.HONEST, *cli_leaderboard.SHOWN]
    assert set(names) - set(cli_leaderboard.fitting(names)) == left_out
    assert {"is_sharpe", "oos_sharpe", "oos_return", "trades"} <= set(cli_leaderboard.fitting(names))


def test_too_little_data_is_said(tmp_path: Path, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "few", wavy_bars(60))
    text = shown(capsys, complete_run(runs_dir, store, make_spec()))
    assert "too few to hold any out" in text
    assert "PBO n/a" in text


def test_the_page_is_made_with_the_gap_that_was_asked_for(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, make_spec(purge_bars=20))
    assert json.loads(folder.honesty_file.read_text())["plan"]["gap_bars"] == 20


def test_a_report_is_made_anew_with_the_bars_or_without_them(store: BarStore, runs_dir: Path) -> None:
    folder = complete_run(runs_dir, store, make_spec())
    folder.report_file.unlink()
    figures = folder.path / "best" / "figures.json"
    figures.unlink()
    assert as_json("report a1")["report"] == str(folder.report_file)
    assert figures.exists()
    kept = figures.read_bytes()
    for path in store.root.rglob("*.parquet"):
        path.unlink()
    result = desk("report a1 --rebuild")
    assert result.exit_code == 0
    assert "without the bars: refused:" in result.stderr
    assert figures.read_bytes() == kept
    folder.results_file.unlink()
    assert desk("report a1 --rebuild").exit_code != 0


def test_a_run_without_a_page_says_why(store: BarStore, runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare_run(runs_dir, store, make_spec(), "begun")
    assert "honesty: none yet: the run is PENDING" in shown(capsys, folder)
    folder.remote_file.write_text("{}")
    assert str(honesty_of(folder)["why_not"]).endswith("desk jobs fetch begun")
    ended = complete_run(runs_dir, store, one_set_spec(), "gone")
    ended.honesty_file.unlink()
    assert "honesty.json has gone from its folder" in shown(capsys, ended)
    ended.write_record(ended.record().model_copy(update={"cuts": ()}))
    assert "an earlier version computed the run" in shown(capsys, ended)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"verdicts": [1]}', b'{"verdicts": [{}]}', b"\xff"])
def test_a_damaged_page_is_named(store: BarStore, runs_dir: Path, content: bytes) -> None:
    complete_run(runs_dir, store, one_set_spec()).honesty_file.write_bytes(content)
    result = desk("jobs show a1 --json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["field"] == "honesty.json"


def test_while_a_halving_search_runs_what_has_seen_a_part_ranks_below_what_has_seen_all(
    store: BarStore, runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows of the first rungs were shown as if they were of the whole history."""
    search = {"method": "asha", "sets": 24, "rungs": 3, "eta": 2}
    folder = prepare_run(runs_dir, store, make_spec(search=search, sort_by="sharpe"), "halving")
    run = loaded(folder, store)
    plan, work = plan_of(run, Reporter(folder)), work_of(run)
    shares: list[set[float]] = []
    while (block := plan.next()) is not None:
        evaluate_block(config_of(block, plan.rows(block)), work)
        plan.done(block, 0.01)
        rows = folder.leaderboard(1_000)
        history = [row.get("history", 1.0) for row in rows]
        shares.append(set(history))
        whole = [share == 1.0 for share in history]
        assert whole == sorted(whole, reverse=True)
        sets = [(row["strategy"], json.dumps(row["params"])) for row in rows]
        assert len(sets) == len(set(sets)), "a set that went on has one row, of its longest run"
    assert shares[0] == {0.25}
    assert shares[-1] == {0.25, 0.5, 1.0}
    assert "ranked below those run on all" in shown(capsys, folder, 1_000)
    assert "ranked below" not in shown(capsys, folder, 1)


def test_resampled_bars_are_those_of_the_kernel_and_say_what_they_are(store: BarStore) -> None:
    found = as_json("data resample BTC-USD --from ONE_HOUR --to FOUR_HOUR")
    hours = store.read("BTC-USD", Granularity.ONE_HOUR)
    made = store.read("BTC-USD", Granularity.FOUR_HOUR)
    assert same(made, resample(hours, Granularity.FOUR_HOUR))
    assert (found["bars"], found["made"], found["new"], found["unfinished"]) == (600, 150, 150, False)
    (series,) = [one for one in as_json("data ls") if one["granularity"] == "FOUR_HOUR"]
    assert series["sources"] == ["SIMULATED, resampled from ONE_HOUR (SIMULATED)"]
    assert series["simulated"] is True
    again = as_json("data resample BTC-USD --from ONE_HOUR --to FOUR_HOUR")
    assert (again["new"], again["unchanged"]) == (0, 150)
    text = desk("data resample BTC-USD --from FOUR_HOUR --to ONE_DAY").stdout
    assert "150 bars of FOUR_HOUR made 25 of ONE_DAY" in text


def test_an_unfinished_last_bar_is_left_out_and_a_gap_stays_one(store: BarStore) -> None:
    bars = make_bars(98, product_id="ETH-USD")
    store.write(pick(bars, np.r_[2:20, 40:98]), source="coinbase")
    found = as_json("data resample ETH-USD --from ONE_HOUR --to FOUR_HOUR")
    assert (found["unfinished"], found["starts_inside"], found["made"]) == (True, True, 19)
    assert [gap["missing"] for gap in found["gaps"]] == [5]
    assert found["source"] == "resampled from ONE_HOUR (coinbase)"
    assert store.info("ETH-USD", Granularity.FOUR_HOUR).simulated is False  # type: ignore[union-attr]
    whole = as_json(
        "data resample ETH-USD --from ONE_HOUR --to ONE_DAY --start 2024-01-02T01:00 --end 2024-01-04T23:00"
    )
    assert (whole["starts_inside"], whole["unfinished"], whole["made"]) == (False, True, 1)


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("BTC-USD --from ONE_HOUR --to ONE_MINUTE", "to"),
        ("BTC-USD --from ONE_HOUR --to ONE_HOUR", "to"),
        ("BTC-USD --from ONE_HOUR --to THREE_HOUR", "to"),
        ("BTC-USD --from SOMETIMES --to ONE_DAY", "from"),
        ("BTC-USD --from ONE_HOUR --to ONE_DAY --start 2024-01-25 --end 2024-01-25T23:00", "from"),
        ("BTC-USD --from ONE_HOUR --to ONE_DAY --start yesterday", "start"),
        ("BTC-USD --from ONE_HOUR --to ONE_DAY --end 3000-01-01", "end"),
        ("BTC-USD --from ONE_HOUR --to ONE_DAY --end 2024-02-01", None),  # MissingData, which names the command
        ("SOL-USD --from ONE_HOUR --to ONE_DAY", None),
        ("../x --from ONE_HOUR --to ONE_DAY", None),
    ],
)
def test_what_cannot_be_resampled_is_refused_and_nothing_is_stored(
    store: BarStore, words: str, field: str | None
) -> None:
    before = store.ls()
    result = desk(f"data resample {words} --json")
    assert result.exit_code == 2, result.output
    error = json.loads(result.stdout)["error"]
    assert error.get("field") == field
    assert store.ls() == before


def test_other_bars_that_are_stored_are_not_overwritten_unless_asked(store: BarStore) -> None:
    as_json("data resample BTC-USD --from ONE_HOUR --to ONE_DAY")
    other = make_bars(600, seed=8)
    store.write(other, source="SIMULATED", replace=True)
    assert desk("data resample BTC-USD --from ONE_HOUR --to ONE_DAY").exit_code == 2
    found = as_json("data resample BTC-USD --from ONE_HOUR --to ONE_DAY --replace")
    assert found["updated"] == 25


@pytest.mark.parametrize(
    "words", ["--seed 3", "-p ETH-USD", "--cost spread_bps=2", "--sizing kind=units", "--purge-bars 3"]
)
def test_options_that_a_specification_file_would_pass_over_are_refused(
    store: BarStore, tmp_path: Path, words: str
) -> None:
    (tmp_path / "spec.json").write_text(make_spec().model_dump_json())
    for first in (f"sweep {tmp_path}/spec.json", "sweep --extend begun --sets 3"):
        result = desk(f"{first} {words} --json")
        assert result.exit_code == 2
        option = {"-p": "--product"}.get(words.split()[0], words.split()[0])
        assert json.loads(result.stdout)["error"]["message"].startswith(f"{option} cannot be given here")


def test_costs_and_sizing_reach_the_specification_that_is_sent(store: BarStore) -> None:
    """A manifest carries the specification, so that nothing has to run for it to be looked at."""
    words = "sweep -p BTC-USD -G sma_cross.fast=5 --fee-bps 10 --cost spread_bps=2"
    words += " --cost fee_tiers=1000:5 --sizing kind=units --purge-bars 12"
    result = desk(f"{words} --to manifest --image desk:1 --run-id sent")
    assert result.exit_code == 0, result.output
    package = re.search(r"--package ([A-Za-z0-9+/=]+)", result.stdout.replace("\n", " "))
    assert package is not None
    spec = json.loads(unpacked(base64.b64decode(package[1]), "sent")["desk-run/spec.json"])
    assert (spec["costs"]["fee_bps"], spec["costs"]["spread_bps"], spec["sizing"]["kind"]) == (10, 2, "units")
    assert spec["purge_bars"] == 12
    assert spec["costs"]["fee_tiers"] == [{"volume_30d_from": 1000, "fee_bps": 5}]
    refused = desk(f"{words} --cost impact=2 --to manifest --image desk:1 --json")
    assert (refused.exit_code, json.loads(refused.stdout)["error"]["field"]) == (2, "costs.impact")
