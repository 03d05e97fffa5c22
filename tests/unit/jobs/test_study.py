"""The study: generations, rungs, constraints, the front, why it stops, and that it can be extended."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import numpy as np
import pytest

from jobs.study import Study, check_search, front_of, standing
from strategies.base import SpecError
from strategies.metrics import METRICS
from tests.search_samples import TWO_GRIDS, formula, run_study, search_spec

NAN = float("nan")
BARS = 10_000


def finished(spec: Any, extensions: tuple[int, ...] = (), bars: int = BARS) -> Study:
    study = Study(spec, bars, extensions)
    run_study(study)
    assert study.over
    return study


def best(study: Study) -> float:
    return float(study.history[-1]["best"]["sharpe"])


@pytest.mark.parametrize("method", ["random", "lhs", "tpe", "cmaes", "asha"])
@pytest.mark.parametrize("grids", [TWO_GRIDS[:1], TWO_GRIDS], ids=["one strategy", "two strategies"])
def test_the_budget_is_spent_exactly_and_no_set_is_run_twice(method: str, grids: Any) -> None:
    study = Study(search_spec(method, 50, grids=grids), BARS)
    batches = run_study(study)
    assert (study.set_count, study.endings, study.planned) == (50, ["budget"], 50)
    rows = [(batch.rung, batch.strategy, row.tobytes()) for batch in batches for row in batch.matrix]
    assert len(rows) == len(set(rows))
    starts = [batch.first_row for batch in batches]
    assert starts == [sum(len(batch.set_ids) for batch in batches[:i]) for i in range(len(batches))]
    assert sorted(set_id for batch in batches if batch.rung == 0 for set_id in batch.set_ids.tolist()) == list(
        range(50)
    )
    assert study.planned_runs == len(rows)


@pytest.mark.parametrize("method", ["random", "lhs", "tpe", "cmaes", "asha"])
def test_a_study_is_the_same_again(method: str) -> None:
    first, again = (run_study(Study(search_spec(method, 40, grids=TWO_GRIDS), BARS)) for _ in range(2))
    assert [batch.matrix.tolist() for batch in first] == [batch.matrix.tolist() for batch in again]
    other = run_study(Study(search_spec(method, 40, grids=TWO_GRIDS, seed=4), BARS))
    assert [batch.matrix.tolist() for batch in first] != [batch.matrix.tolist() for batch in other]


def test_halving_finds_the_best_with_a_fraction_of_the_evaluations() -> None:
    def share_and_loss(seed: int) -> tuple[float, float]:
        halved = finished(search_spec("asha", 300, seed=seed))
        # All of the very same sets on all bars.
        matrix = np.concatenate([rows for _, rows, _ in halved.matrices()])
        sharpe = formula(matrix, BARS)[:, METRICS.index("sharpe")]
        return halved.evaluations / (len(matrix) * BARS), float(sharpe.max()) - best(halved)

    shares, losses = zip(*map(share_and_loss, range(7)), strict=True)
    assert max(shares) < 0.36
    assert statistics.median(losses) == 0.0


def test_every_rung_has_the_best_of_the_one_below() -> None:
    study = Study(search_spec("asha", 81, eta=3, rungs=4), BARS)
    batches = run_study(study)
    assert [len(batch.set_ids) for batch in batches] == [81, 27, 9, 3]
    assert [batch.bar_count for batch in batches] == [370, 1111, 3333, 10_000]
    for below, above in itertools.pairwise(batches):
        sharpe = formula(below.matrix, below.bar_count)[:, METRICS.index("sharpe")]
        wanted = below.set_ids[np.argsort(-sharpe, kind="stable")[: len(above.set_ids)]]
        assert set(above.set_ids.tolist()) == set(wanted.tolist())
    columns = study.columns()
    assert np.unique(columns["rung"], return_counts=True)[1].tolist() == [54, 18, 6, 3]
    assert (columns["history"][columns["rung"] == 3] == 1.0).all()
    assert columns["history"].max() == 1.0


def test_a_history_too_short_for_its_rungs_is_refused() -> None:
    with pytest.raises(SpecError) as caught:
        check_search(search_spec("asha", 10, rungs=5), 1_000)
    assert caught.value.field == "search.rungs"
    check_search(search_spec("asha", 10, rungs=5), 3_000)


def test_rules_that_no_set_keeps_are_refused() -> None:
    with pytest.raises(SpecError) as caught:
        check_search(search_spec("tpe", 10, constraints=["fast >= slow + 1"]), BARS)
    assert caught.value.field == "search.constraints"


@pytest.mark.parametrize("method", ["random", "tpe", "cmaes", "asha"])
def test_what_breaks_a_limit_is_never_the_best(method: str) -> None:
    # Unlimited, the best place has a drawdown of 0.34.
    study = finished(search_spec(method, 96, constraints=["max_drawdown <= 0.2", "trades >= 30"]))
    found = study.summary()["pareto_front"][0]
    row = next(rows[ids == found["set_id"]] for _, rows, ids in study.matrices())
    metrics = dict(zip(METRICS, formula(row, BARS)[0].tolist(), strict=True))
    assert metrics["max_drawdown"] <= 0.2
    assert metrics["trades"] >= 30
    feasible = study.columns()["feasible"]
    assert 0 < feasible.sum() < 96


def test_a_minimum_of_trades_does_not_stop_a_set_on_a_part_of_the_history() -> None:
    study = Study(search_spec("asha", 54, constraints=["trades >= 60"]), BARS)
    batches = run_study(study)
    chosen = batches[1].set_ids == study.history[-1]["best_set_id"]
    trades = formula(batches[1].matrix[chosen], batches[1].bar_count)[0, METRICS.index("trades")]
    assert trades < 60, "on the second rung it had not so many yet"


def test_several_objectives_give_a_front_of_which_no_set_is_beaten_in_all() -> None:
    study = finished(search_spec("tpe", 60, objectives=["sharpe", "-max_drawdown"]))
    front = study.summary()["pareto_front"]
    matrix = np.concatenate([rows for _, rows, _ in study.matrices()])
    metrics = formula(matrix, BARS)
    losses = np.stack([-metrics[:, METRICS.index("sharpe")], metrics[:, METRICS.index("max_drawdown")]], axis=1)
    beaten = [bool(((losses <= one).all(axis=1) & (losses < one).any(axis=1)).any()) for one in losses]
    assert sorted(one["set_id"] for one in front) == [i for i, is_beaten in enumerate(beaten) if not is_beaten]
    assert len(front) > 3
    assert study.columns()["pareto"].sum() == len(front)
    assert front == sorted(front, key=lambda one: -one["values"]["sharpe"])


def test_a_study_stops_after_generations_without_a_better_set() -> None:
    study = finished(search_spec("random", 2_000, generation=20, patience=3))
    assert study.endings == ["patience"]
    assert [one["better"] for one in study.history[-4:]] == [True, False, False, False]
    assert study.set_count < 1_000


def test_a_study_stops_at_its_target() -> None:
    study = finished(search_spec("random", 500, generation=10, target=2.95))
    assert study.endings == ["target"]
    assert best(study) >= 2.95
    assert study.history[-2]["best"]["sharpe"] < 2.95
    less = finished(search_spec("random", 200, generation=10, objectives=["-max_drawdown"], target=0.1))
    assert (less.endings, less.history[-1]["best"]["max_drawdown"] <= 0.1) == (["target"], True)


@pytest.mark.parametrize("method", ["random", "tpe", "cmaes"])
def test_an_extended_study_is_the_one_that_had_the_budget_at_once(method: str) -> None:
    extended = Study(search_spec(method, 48, generation=16), BARS, (32, 16))
    at_once = Study(search_spec(method, 96, generation=16), BARS)
    assert [one.matrix.tolist() for one in run_study(extended)] == [one.matrix.tolist() for one in run_study(at_once)]
    assert (extended.endings, at_once.endings) == (["budget"] * 3, ["budget"])


def test_an_extension_gives_a_study_that_stopped_early_its_patience_back() -> None:
    spec = search_spec("random", 400, generation=10, patience=2)
    study, extended = finished(spec), finished(spec, (30,))
    assert extended.endings[0] == "patience"
    assert study.set_count < extended.set_count <= study.set_count + 30


def test_a_design_that_is_extended_stays_stratified() -> None:
    grids = [{"strategy": "sma_cross", "grid": {"stop_loss": {"low": 0.1, "high": 0.9}}}]
    study = Study(search_spec("lhs", 20, grids=grids), BARS, (10,))
    batches = run_study(study)
    rows = np.concatenate([batch.matrix for batch in batches])
    column = (rows[:, -6] - 0.1) / 0.8  # the first of the rules
    assert sorted(np.floor(column[:20] * 20).tolist()) == list(range(20))
    assert sorted(np.floor(column[20:] * 10).tolist()) == list(range(10))


def test_a_space_that_has_no_more_sets_ends_the_study() -> None:
    grids = [{"strategy": "sma_cross", "grid": {"fast": [2, 3], "slow": [3, 4]}}]
    study = finished(search_spec("tpe", 50, grids=grids))
    assert (study.set_count, study.endings) == (3, ["exhausted"])


def test_grids_that_share_sets_run_them_once() -> None:
    grids = [{"strategy": "sma_cross", "grid": {"fast": [2, 3], "slow": slow}} for slow in ([10, 20], [20, 30])]
    study = finished(search_spec("random", 50, grids=grids))
    assert study.set_count == 6


def test_the_standing_of_sets() -> None:
    losses = np.array([[3.0], [1.0], [NAN], [0.0], [1.0], [-5.0]])
    violations = np.array([0.0, 0.0, 0.0, 0.1, 0.0, 2.0])
    assert standing(losses, violations, 6) == [1, 4, 0, 3, 5, 2]


def test_a_front_keeps_equals_and_drops_what_is_beaten() -> None:
    losses = np.array([[1.0, 5.0], [2.0, 4.0], [2.0, 4.0], [2.0, 5.0], [5.0, 1.0], [6.0, 6.0]])
    assert front_of(losses).tolist() == [0, 1, 2, 4]
    # Of one front those at its ends come first, then those in empty surroundings.
    assert standing(losses, np.zeros(6), 6)[:2] == [0, 4]
