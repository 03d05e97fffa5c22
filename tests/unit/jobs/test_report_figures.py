"""What the report computes from the bars: limited fills, why they were made, other costs; kept and found again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.market_data import BarStore
from cluster.runs import read_market
from jobs import report
from jobs.report import write_report
from jobs.report_figures import (
    FILLS_MAX,
    break_even,
    cost_sensitivity,
    figures_of,
    scaled,
    shown_fills,
    with_fee,
)
from jobs.report_run import dsr_sampling, read_run
from strategies.backtest import run
from strategies.spec import Costs, parse_backtest
from tests.run_samples import complete_run, make_spec, make_store, one_set_spec, wavy_bars


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return make_store(tmp_path / "bars")


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (7, 7), (FILLS_MAX, FILLS_MAX), (100_000, FILLS_MAX)])
def test_of_many_fills_the_latest_and_an_even_choice_of_the_others_are_shown(count: int, shown: int) -> None:
    at = shown_fills(count)
    assert len(at) == shown
    assert (np.diff(at) > 0).all()
    if count > shown:
        assert at[0] == 0
        assert at[-FILLS_MAX // 2 :].tolist() == list(range(count - FILLS_MAX // 2, count))
        assert np.diff(at[: FILLS_MAX // 2]).max() <= 2 * count / FILLS_MAX + 1


@pytest.mark.parametrize(
    ("params", "reasons"),
    [
        ({}, {"entry", "target 0"}),
        ({"allow_short": 1}, {"entry", "reversed"}),
        ({"stop_loss": 0.004}, {"entry", "target 0", "stop_loss"}),
        ({"take_profit": 0.01}, {"entry", "target 0", "take_profit"}),
        ({"trailing_stop": 0.02}, {"entry", "target 0", "trailing_stop"}),
        ({"time_stop_bars": 10}, {"entry", "target 0", "time_stop_bars"}),
    ],
)
def test_why_a_fill_was_made_is_told_by_the_rule_that_made_it(params: dict[str, float], reasons: set[str]) -> None:
    bars = wavy_bars(2_000)
    spec = make_spec(grids=[{"strategy": "sma_cross", "grid": {"fast": [5], "slow": [21]}}])
    row = {"set_id": 0, "strategy": "sma_cross", "params": {"fast": 5, "slow": 21, **params}}
    fills = figures_of(spec, [row], bars)["sets"][0]["fills"]
    assert set(fills["why"]) == reasons
    assert fills["total"] == len(fills["ts"]) == len(fills["why"])


def test_costs_times_one_are_the_run_and_more_costs_are_worse() -> None:
    spec = parse_backtest({"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": "sma_cross",
                           "params": {"fast": 5, "slow": 21}})  # fmt: skip
    bars = wavy_bars(2_000)
    result = run(spec, bars)
    found = cost_sensitivity(spec, bars, result.metrics)
    returns = [point["total_return"] for point in found["multiples"]]
    assert [point["at"] for point in found["multiples"]] == [0, 0.5, 1, 2, 4]
    assert returns[2] == result.metrics["total_return"]
    assert returns == sorted(returns, reverse=True)
    place = found["multiple_zero"]["at"]
    assert place is not None
    for multiple, sign in ((place * 0.98, 1), (place * 1.02, -1)):
        costs = scaled(spec.costs, multiple)
        assert costs is not None
        assert np.sign(run(spec.model_copy(update={"costs": costs}), bars).metrics["total_return"]) == sign
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("gain", "at", "side"),
    [
        (lambda x: 5 - x, 5.0, ""),
        (lambda x: 0.003 - x, 0.003, ""),
        (lambda x: -1.0, None, "below"),
        (lambda x: 0.0, None, "below"),
        (lambda x: 1.0, None, "above"),
    ],
)
def test_break_even_is_found_or_said_to_be_nowhere(gain: Callable[[float], float], at: float | None, side: str) -> None:
    found = break_even(gain, 16.0)
    assert found["side"] == side
    assert found["at"] == (None if at is None else pytest.approx(at, abs=0.01))


def test_costs_beyond_what_may_be_asked_for_are_left_out() -> None:
    assert scaled(Costs(fee_bps=600), 2) is None
    doubled = scaled(Costs(fee_tiers=({"volume_30d_from": 1.0, "fee_bps": 10.0},)), 2)
    assert doubled is not None
    assert doubled.fee_tiers[0].fee_bps == 20
    free = with_fee(doubled, 3.0)
    assert free is not None
    assert (free.fee_bps, free.fee_tiers) == (3.0, ())


def test_the_sampling_dsr_of_the_leader_is_the_honesty_pages(store: BarStore, tmp_path: Path) -> None:
    spec = make_spec(sort_by="oos_sharpe", costs={"fee_bps": 200})
    run = read_run(complete_run(tmp_path / "runs", store, spec))
    assert run.honesty is not None
    tests = run.honesty["sharpe_tests"]
    assert tests is not None
    assert tests["set_id"] == run.best["set_id"]
    assert run.best["dsr_sampling"] == pytest.approx(tests["dsr_sampling"], rel=1e-6)


@pytest.mark.parametrize(("sharpe", "psr"), [(0.0, 0.5), (1.0, 1.0), (-1.0, 0.0), (float("nan"), 0.5)])
def test_where_the_psr_tells_no_error_there_is_no_sampling_dsr(sharpe: float, psr: float) -> None:
    assert np.isnan(dsr_sampling(sharpe, psr, 0.3))
    assert np.isnan(dsr_sampling(1.0, 0.9, None))


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def of_others(path: Path) -> None:
    content: dict[str, Any] = json.loads(path.read_text())
    content["of"][0] = "0" * 64
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("change", [Path.unlink, damage, of_others, lambda path: path.write_text("[1]")])
def test_figures_that_are_not_the_runs_are_not_shown_and_can_be_made_again(
    store: BarStore, tmp_path: Path, change: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = complete_run(tmp_path / "runs", store, make_spec())
    first = folder.report_file.read_bytes()
    change(folder.path / "best" / "figures.json")
    text = write_report(folder).read_text()
    assert "The bars were not at hand" in text
    assert 'id="equity-plot"' in text, "the best set's own curve is in best/"
    assert report.main(["--run-dir", str(folder.path), "--bars-dir", str(store.root)]) == 0
    assert folder.report_file.read_bytes() == first
    capsys.readouterr()


def test_other_bars_than_the_runs_are_refused(
    store: BarStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = complete_run(tmp_path / "runs", store, one_set_spec())
    other = make_store(tmp_path / "other", wavy_bars(600, seed=8))
    assert report.main(["--run-dir", str(folder.path), "--bars-dir", str(other.root)]) == 2
    assert "data_hash" in capsys.readouterr().err


def test_the_bars_of_the_run_are_those_read_again(store: BarStore, tmp_path: Path) -> None:
    folder = complete_run(tmp_path / "runs", store, one_set_spec())
    market = read_market(store, folder.spec(), folder.record())
    run = read_run(folder, market)
    assert run.figures is not None
    (product,) = run.figures["products"]
    level = product["levels"][0]
    assert level["per"] == 1
    assert level["close"] == pytest.approx(wavy_bars(600).close, rel=1e-6)
