"""The honesty page of small sweeps: complete, plain JSON, bounded, and right beside figures worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.honesty import CHOSEN_MAX, SCATTER_MAX, Study, columns_of, honesty_of, page_of, study_of
from jobs.honesty_page import Honesty
from strategies.backtest import BacktestSpec, Costs, Result, evaluate, run
from strategies.base import SpecError, full_matrix
from strategies.metrics import METRICS, NS_PER_YEAR, periods_per_year
from strategies.model import Bars
from strategies.registry import get
from strategies.segments import HONEST_COLUMNS, Segments, plan_segments
from tests.run_samples import wavy_bars

Floats = NDArray[np.float64]
COSTS = Costs(fee_bps=1.0, slippage_bps=0.0)


def grid() -> list[tuple[str, Floats]]:
    sma, rsi = get("sma_cross"), get("rsi_reversion")
    fast_slow = [(fast, slow) for fast in (3, 5, 8, 13) for slow in (21, 34, 55) if fast < slow]
    own = np.array([[*pair, *sma.params().vector()[2:]] for pair in fast_slow], dtype=float)
    windows = np.array([[window, *rsi.params().vector()[1:]] for window in (7, 14, 21)], dtype=float)
    return [("sma_cross", full_matrix(sma, own)), ("rsi_reversion", full_matrix(rsi, windows))]


def result_of(study: Study, bars: Bars, set_id: int) -> Result:
    strategy, params = study.describe(set_id)
    spec = BacktestSpec(
        product_id=bars.product_id, granularity=bars.granularity, strategy=strategy, params=params, costs=COSTS
    )
    return run(spec, bars)


def study(bars: Bars, sets: list[tuple[str, Floats]] | None = None) -> Study:
    chosen = grid() if sets is None else sets
    cuts = plan_segments(len(bars))
    moments = [evaluate(name, matrix, bars, COSTS, cuts=cuts).moments for name, matrix in chosen]
    years = (int(bars.ts_ns[-1]) - int(bars.ts_ns[0])) / NS_PER_YEAR
    return study_of(chosen, np.concatenate(moments), cuts, periods_per_year(len(bars), years), seed=3)


@pytest.fixture(scope="module")
def bars() -> Bars:
    return wavy_bars(1_500)


@pytest.fixture(scope="module")
def swept(bars: Bars) -> Study:
    return study(bars)


@pytest.fixture(scope="module")
def page(swept: Study, bars: Bars) -> Honesty:
    columns = columns_of(swept)
    best = int(np.nanargmax(columns["oos_sharpe"]))

    def equity_of(set_id: int) -> Floats:
        return result_of(swept, bars, set_id).equity

    return page_of(swept, columns, best, result_of(swept, bars, best), equity_of)


def each_number(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in each_number(part)]
    if isinstance(value, list):
        return [number for part in value for number in each_number(part)]
    return [value]


def test_the_page_is_plain_json_without_what_json_cannot_say(page: Honesty) -> None:
    text = json.dumps(page, allow_nan=False)
    assert json.loads(text) == page
    assert len(text) < 200_000
    assert {type(value) for value in each_number(page)} <= {int, float, str, bool, type(None)}


def test_every_part_is_there_for_a_sweep_of_many_sets(page: Honesty) -> None:
    absent = [name for name, part in page.items() if part is None]
    assert absent == []
    assert [walk["kind"] for walk in page["walk_forward"]] == ["rolling", "anchored"]
    about = [verdict["about"] for verdict in page["verdicts"]]
    assert set(about) >= {"sharpe_tests", "held_out", "walk_forward", "cross_validation", "overfitting", "bootstrap"}
    assert {verdict["level"] for verdict in page["verdicts"]} <= {"good", "doubtful", "bad", "unknown"}


def test_the_plan_tells_where_the_held_out_bars_begin(page: Honesty, bars: Bars) -> None:
    plan = page["plan"]
    border = plan["held_out_from_bar"]
    assert border is not None
    assert plan["held_out_from_ts_ns"] == bars.ts_ns[border]
    assert [fold["held_out"] for fold in plan["folds"]] == [fold["first_bar"] >= border for fold in plan["folds"]]
    assert (plan["bars"], plan["gap_bars"]) == (1_500, 15)
    assert plan["folds"][-1]["stop_bar"] == 1_500


def test_columns_stand_for_the_equity_curves_of_the_sets(swept: Study, bars: Bars) -> None:
    columns = columns_of(swept)
    assert tuple(columns) == HONEST_COLUMNS
    segments = swept.segments
    border = int(segments.cuts[segments.held_out_segments[0]])
    end = int(segments.cuts[segments.in_sample[-1] + 1])
    for set_id in (0, 5, 12, 14):
        equity = result_of(swept, bars, set_id).equity
        returns = equity[1:] / equity[:-1] - 1
        inside, outside = returns[: end - 1], returns[border - 1 :]
        for name, part in (("is_sharpe", inside), ("oos_sharpe", outside)):
            expected = part.mean() / part.std(ddof=1) * math.sqrt(swept.per_year)
            assert columns[name][set_id] == pytest.approx(expected, rel=1e-8)
        assert columns["oos_return"][set_id] == pytest.approx(equity[-1] / equity[border - 1] - 1, rel=1e-9)
        assert columns["is_return"][set_id] == pytest.approx(equity[end - 1] / 10_000 - 1, rel=1e-9)


def test_figures_of_the_best_set_agree_with_its_metrics(swept: Study, bars: Bars, page: Honesty) -> None:
    tests = page["sharpe_tests"]
    assert tests is not None
    result = result_of(swept, bars, tests["set_id"])
    assert tests["sharpe"] == pytest.approx(result.metrics["sharpe"], rel=1e-9)
    assert page["bootstrap"] is not None
    assert page["bootstrap"]["cagr"]["observed"] == pytest.approx(result.metrics["cagr"], rel=1e-2)
    assert page["bootstrap"]["max_drawdown"]["observed"] == pytest.approx(result.metrics["max_drawdown"], rel=1e-9)
    assert page["trade_order"] is not None
    assert abs(page["trade_order"]["trades"] - result.metrics["trades"]) <= 1
    assert page["trade_order"]["drawn_return"]["observed"] == pytest.approx(result.metrics["total_return"], rel=1e-9)


def test_the_curve_of_the_walk_is_the_stitched_result_bar_by_bar(swept: Study, bars: Bars, page: Honesty) -> None:
    best = 0
    coarse = page_of(swept, columns_of(swept), best, result_of(swept, bars, best))
    for fine_walk, coarse_walk in zip(page["walk_forward"], coarse["walk_forward"], strict=True):
        gained = fine_walk["oos_return"]
        assert gained is not None
        for curve in (fine_walk["curve"], coarse_walk["curve"]):
            assert curve["equity"][0] == 1.0
            assert curve["equity"][-1] == pytest.approx(1 + gained, rel=1e-9)
            assert curve["ts_ns"] == sorted(set(curve["ts_ns"]))
        assert len(coarse_walk["curve"]["ts_ns"]) == 1 + len(coarse_walk["steps"])
        assert set(coarse_walk["curve"]["ts_ns"]) <= set(fine_walk["curve"]["ts_ns"])
        assert 500 < len(fine_walk["curve"]["ts_ns"]) < 1_100


def test_the_set_with_the_best_held_out_sharpe_is_said_to_be_picked_by_it(page: Honesty) -> None:
    held = page["held_out"]
    assert held is not None
    assert held["leads_held_out"]
    assert any(verdict["about"] == "picked" for verdict in page["verdicts"]) == (
        held["set_id"] != held["best_is_set_id"]
    )


def test_chosen_sets_are_named_with_their_parameters(page: Honesty, swept: Study) -> None:
    found = page["cross_validation"]
    assert found is not None
    assert found["chosen"]
    assert len(found["chosen"]) <= CHOSEN_MAX
    assert sum(chosen["splits"] for chosen in found["chosen"]) <= found["splits"] == math.comb(16, 2)
    for chosen in found["chosen"]:
        assert (chosen["strategy"], chosen["params"]) == swept.describe(chosen["set_id"])
    step = page["walk_forward"][0]["steps"][0]
    assert step["params"] is not None
    assert "stop_loss" not in step["params"]


def test_scatter_and_histogram_are_bounded_and_count_every_split(page: Honesty) -> None:
    found = page["overfitting"]
    assert found is not None
    assert sum(found["logits"]["counts"]) == found["splits"] == math.comb(16, 8)
    assert len(found["logits"]["edges"]) == len(found["logits"]["counts"]) + 1
    assert len(found["degradation"]["is_sharpe"]) == len(found["degradation"]["oos_sharpe"]) <= SCATTER_MAX


def test_the_same_sweep_gives_the_same_page(swept: Study, bars: Bars, page: Honesty) -> None:
    best = page["sharpe_tests"]["set_id"] if page["sharpe_tests"] else 0
    again = honesty_of(swept, best, result_of(swept, bars, best), lambda row: result_of(swept, bars, row).equity)[1]
    assert json.dumps(again) == json.dumps(page)


@pytest.mark.parametrize("count", [1, 2, 3, 30, 82])
def test_a_series_too_short_says_so_and_still_has_its_columns(count: int) -> None:
    short = wavy_bars(count)
    few = study(short)
    columns, page = honesty_of(few, 0, result_of(few, short, 0))
    json.dumps(page, allow_nan=False)
    assert tuple(columns) == HONEST_COLUMNS
    assert np.isnan(columns["oos_sharpe"]).all()
    assert [page["held_out"], page["cross_validation"], page["overfitting"]] == [None] * 3
    assert page["walk_forward"] == []
    assert any(v["about"] == "plan" and "too few" in v["sentence"] for v in page["verdicts"])


def test_a_single_backtest_has_no_choice_to_judge(bars: Bars) -> None:
    alone = study(bars, [("sma_cross", grid()[0][1][:1])])
    columns, page = honesty_of(alone, 0, result_of(alone, bars, 0))
    json.dumps(page, allow_nan=False)
    assert columns["psr"] == pytest.approx(columns["dsr"])
    assert [page["overfitting"], page["stability"]] == [None, None]
    assert page["held_out"] is not None
    assert any("nothing was chosen" in verdict["sentence"] for verdict in page["verdicts"])
    assert any(verdict["sentence"].startswith("One set was tried") for verdict in page["verdicts"])


def test_sets_that_never_trade_leave_a_page_of_unknowns(bars: Bars) -> None:
    idle = full_matrix(get("sma_cross"), np.array([[1_000.0, 2_000.0, 0.0], [1_000.0, 2_001.0, 0.0]]))
    nothing = study(bars, [("sma_cross", idle)])
    columns, page = honesty_of(nothing, 0, result_of(nothing, bars, 0))
    json.dumps(page, allow_nan=False)
    assert np.isnan(columns["dsr"]).all()
    assert page["sharpe_tests"] is None
    assert all(step["set_id"] is None for walk in page["walk_forward"] for step in walk["steps"])
    assert page["overfitting"] is not None
    assert page["overfitting"]["pbo"] is None


def test_sets_that_were_stopped_early_count_as_trials_but_are_never_chosen(swept: Study, bars: Bars) -> None:
    moments = swept.moments.copy()
    moments[3:6, 10:] = np.nan
    stopped = Study(swept.groups, moments, swept.segments, swept.per_year, swept.seed)
    columns, page = honesty_of(stopped, 0, result_of(swept, bars, 0))
    json.dumps(page, allow_nan=False)
    assert (page["sets"], page["complete_sets"]) == (15, 12)
    assert np.isnan(columns["oos_sharpe"][3:6]).all()
    assert np.isfinite(columns["oos_sharpe"][:3]).all()
    chosen = {step["set_id"] for walk in page["walk_forward"] for step in walk["steps"]}
    assert chosen.isdisjoint({3, 4, 5})
    assert page["sharpe_tests"] is not None
    assert page["sharpe_tests"]["trials"] == 15


def test_fills_with_look_ahead_are_called_what_they_are(swept: Study, bars: Bars) -> None:
    strategy, params = swept.describe(0)
    costs = Costs(fill="same_close")
    spec = BacktestSpec(
        product_id=bars.product_id, granularity=bars.granularity, strategy=strategy, params=params, costs=costs
    )
    verdicts = honesty_of(swept, 0, run(spec, bars))[1]["verdicts"]
    assert (verdicts[0]["about"], verdicts[0]["level"]) == ("look_ahead", "bad")


@pytest.mark.parametrize(
    "change",
    [
        lambda moments, cuts: (moments[:-1], cuts),
        lambda moments, cuts: (moments[:, :-2], cuts),
        lambda moments, cuts: (moments[:0], cuts),
        lambda moments, cuts: (moments, np.array([0, 9], dtype=np.int64)),
    ],
)
def test_moments_of_another_sweep_are_refused(swept: Study, change: Callable[..., tuple[Floats, Any]]) -> None:
    moments, cuts = change(swept.moments, swept.segments.cuts)
    with pytest.raises(SpecError, match="moments"):
        Study(swept.groups, moments, Segments(cuts), swept.per_year, 0)


def test_a_truly_better_set_is_told_from_luck_and_luck_is_called_luck(bars: Bars) -> None:
    """Moments by hand: 40 sets of noise, then the same with one that gains."""
    from tests.moment_samples import moments_of

    returns = np.random.default_rng(5).normal(0, 1e-3, size=(15, 1_499))
    cuts = plan_segments(1_500)
    levels = {}
    for drift in (0.0, 5e-4):
        returns[2] += drift
        made = study_of(grid(), moments_of(returns, cuts), cuts, 8_766.0, 1)
        best = int(np.argmax(made.whole.sharpe))
        page = honesty_of(made, best, result_of(made, bars, best))[1]
        levels[drift] = {v["about"]: v["level"] for v in page["verdicts"]}
    assert levels[0.0]["sharpe_tests"] != "good"
    assert levels[5e-4]["sharpe_tests"] == levels[5e-4]["overfitting"] == levels[5e-4]["walk_forward"] == "good"


def test_sets_that_differ_truly_are_not_called_luck_for_their_spread(bars: Bars) -> None:
    """Half of the sets lose what the others gain: the paper's DSR takes their spread for luck, sampling error does not.

    It once said that a Sharpe of 59 was no more than luck among trend followers and their opposites.
    """
    from tests.moment_samples import moments_of

    noise = np.random.default_rng(5).normal(0, 1e-3, size=(15, 1_499))
    cuts = plan_segments(1_500)
    made = study_of(grid(), moments_of(noise + np.linspace(-1e-3, 1e-3, 15)[:, np.newaxis], cuts), cuts, 8_766.0, 1)
    page = honesty_of(made, 14, result_of(made, bars, 14))[1]
    tests = page["sharpe_tests"]
    assert tests is not None
    assert tests["dsr"] is not None
    assert tests["dsr"] < 0.95
    assert tests["dsr_sampling"] == pytest.approx(1.0)
    assert next(v["level"] for v in page["verdicts"] if v["about"] == "sharpe_tests") == "doubtful"


def test_metric_columns_and_honest_columns_do_not_share_a_name() -> None:
    assert set(METRICS).isdisjoint(HONEST_COLUMNS)
