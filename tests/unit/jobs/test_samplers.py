"""Samplers: the same from the same seed, inside the space, stratified, and better than luck on a known surface."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pytest

from jobs.samplers import Archive, make_sampler
from jobs.space import Space
from strategies.model import Float64Array
from strategies.registry import get
from strategies.search_spec import Continuous, parse_constraint
from strategies.spec import Range

METHODS: Final = ("random", "lhs", "tpe", "cmaes")
LEVELS: Final[dict[str, Any]] = {
    "fast": Range(start=2, stop=200, step=1),
    "slow": Range(start=10, stop=400, step=1),
    "allow_short": (1.0, 0.0),
}
CONTINUOUS: Final[dict[str, Any]] = {
    "fast": Continuous(low=2, high=200),
    "slow": Continuous(low=10, high=400, log=True),
    "stop_loss": Continuous(low=0.01, high=0.5, log=True),
}


def bowl(row: Float64Array) -> float:
    """Lowest at fast 17, slow 123."""
    return float(((row[0] - 17) / 100) ** 2 + ((row[1] - 123) / 200) ** 2)


def search(
    method: Any,
    axes: dict[str, Any],
    sets: int,
    seed: int = 1,
    generation: int = 12,
    rules: tuple[str, ...] = (),
    loss: Callable[[Float64Array], float] = bowl,
) -> Float64Array:
    """Every set float64[n, k] that was tried, in order."""
    space = Space(get("sma_cross"), axes, [parse_constraint(rule) for rule in rules])
    archive = Archive(1)
    sampler = make_sampler(method, space, archive, (seed, 0), generation)
    sampler.plan(sets)
    tried: list[Float64Array] = []
    while len(tried) < sets:
        points, keys = sampler.ask(min(generation, sets - len(tried)))
        if not keys:
            break
        rows = space.rows(points)
        assert [space.key(row) for row in rows] == keys
        for row, key in zip(rows, keys, strict=True):
            archive.store(key, np.array([loss(row)]), 0.0)
        sampler.learn()
        tried += list(rows)
    return np.array(tried)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axes", [LEVELS, CONTINUOUS], ids=["levels", "continuous"])
def test_sets_are_new_inside_the_axes_and_keep_every_rule(method: str, axes: dict[str, Any]) -> None:
    rows = search(method, axes, 60, rules=("slow >= 2 * fast", "window > 3"))
    assert len(rows) == len({row.tobytes() for row in rows}) == 60
    fast, slow = rows[:, 0], rows[:, 1]
    assert fast.min() >= 2
    assert fast.max() <= 200
    assert slow.min() >= 10
    assert slow.max() <= 400
    assert (slow >= 2 * fast).all()
    assert (rows[:, :2] == np.floor(rows[:, :2])).all(), "whole-number parameters"
    names = Space(get("sma_cross"), axes).names
    if "stop_loss" in axes:
        stops = rows[:, names.index("stop_loss")]
        assert (stops.min() >= 0.01, stops.max() <= 0.5) == (True, True)
        assert len(set(stops)) == 60
    assert (rows[:, names.index("take_profit")] == 0).all(), "what is not named stays at its default"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_asks_for_the_same_sets_and_another_for_others(method: str) -> None:
    first, again, other = (search(method, CONTINUOUS, 30, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_nothing_depends_on_the_process() -> None:
    code = "import tests.unit.jobs.test_samplers as t; print([t.search(m, t.LEVELS, 30).tolist() for m in t.METHODS])"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
        cwd=os.fspath(os.path.dirname(__file__) + "/../../.."),
    )
    assert eval(printed.stdout) == [search(method, LEVELS, 30).tolist() for method in METHODS]  # noqa: S307


def test_a_latin_hypercube_has_one_set_in_each_slice_of_each_axis() -> None:
    axes: dict[str, Any] = {
        "stop_loss": Continuous(low=0.1, high=0.9),
        "take_profit": Continuous(low=1, high=100, log=True),
    }
    rows = search("lhs", axes, 40, generation=7)
    names = Space(get("sma_cross"), axes).names
    stops = (rows[:, names.index("stop_loss")] - 0.1) / 0.8
    profits = np.log(rows[:, names.index("take_profit")]) / np.log(100)
    for units in (stops, profits):
        assert sorted(np.floor(units * 40).astype(int).tolist()) == list(range(40))
    uniform = search("random", axes, 40, generation=7)[:, names.index("stop_loss")]
    assert len(set(np.floor((uniform - 0.1) / 0.8 * 40).tolist())) < 35, "luck does not spread like that"


@pytest.mark.parametrize("method", METHODS)
def test_a_small_space_is_searched_to_its_last_set_and_no_further(method: str) -> None:
    axes: dict[str, Any] = {"fast": (4.0, 2.0, 3.0), "slow": (3.0, 4.0, 5.0)}
    rows = search(method, axes, 50, generation=8)
    assert sorted(map(tuple, rows[:, :2].tolist())) == [(2, 3), (2, 4), (2, 5), (3, 4), (3, 5), (4, 5)]
    one = search(method, {"fast": (5.0,), "slow": (50.0,)}, 3)
    assert one[:, :2].tolist() == [[5.0, 50.0]]


@pytest.mark.parametrize(("method", "times_better"), [("tpe", 4), ("cmaes", 4)])
def test_a_model_finds_the_best_of_a_known_surface_better_than_luck(method: str, times_better: float) -> None:
    def best(name: str) -> float:
        return statistics.median(min(map(bowl, search(name, CONTINUOUS, 120, seed))) for seed in range(5))

    assert best(method) * times_better < best("random")


@pytest.mark.parametrize("method", ["tpe", "cmaes"])
def test_results_that_are_not_a_number_do_not_stop_a_model(method: str) -> None:
    rows = search(method, CONTINUOUS, 60, loss=lambda row: np.nan if row[0] > 40 else bowl(row))
    late = rows[30:]
    assert (late[:, 0] <= 40).mean() > 0.5
    assert len(search(method, CONTINUOUS, 24, loss=lambda _: np.nan)) == 24


def test_a_logarithmic_axis_gives_each_factor_its_share() -> None:
    names = Space(get("sma_cross"), {}).names
    rows = search("lhs", {"take_profit": Continuous(low=0.1, high=10, log=True)}, 90)
    profits = rows[:, names.index("take_profit")]
    assert ((profits < 1).sum(), (profits < 0.1 * 10**0.2).sum()) == (45, 9)


def test_whole_numbers_of_an_axis_come_equally_often() -> None:
    space = Space(get("sma_cross"), {"fast": Continuous(low=2, high=5), "slow": (50.0,)})
    values = space.rows((np.arange(4_000) + 0.5)[:, np.newaxis] / 4_000)[:, 0]
    assert np.unique(values, return_counts=True)[1].tolist() == [1_000] * 4
    assert space.size == 4
