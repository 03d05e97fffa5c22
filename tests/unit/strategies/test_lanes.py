"""Eight bars at a time is the same as bar by bar: comparisons, ends of a stretch, drawdowns."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from strategies import lanes, stretch
from strategies.compiled import compiled
from strategies.course import ROUNDING, Drop, deepen, extremes
from strategies.lanes import as_number
from strategies.metrics import EQUAL_WITHIN
from strategies.model import Float64Array

ROOT = Path(__file__).resolve().parents[3]
VALUES = np.array([0.0, 1.0, 2.0, math.nan, 4.0, -3.0, 2.0, -0.0, 9.0])


@compiled
def answers(values: Float64Array, at: int) -> tuple[int, int, int, int, int]:
    return (
        lanes.unlike(values, at, 2.0),
        lanes.unlike_zero(values, at, 0.0),
        lanes.at_most(values, at, 2.0),
        lanes.at_least(values, at, 2.0),
        lanes.first_of(lanes.at_least(values, at, 2.0)),
    )


def plain_answers() -> list[list[int]]:
    return [[int(answer) for answer in answers(VALUES, at)] for at in range(2)]


def test_comparisons_tell_the_places_apart_and_treat_nan_as_said() -> None:
    assert plain_answers()[0] == [0b10111011, 0b01110110, 0b11100111, 0b01010100, 2]
    assert plain_answers()[1][1] == 0b10111011, "NaN and -0 are like 0"


def test_without_a_compiler_the_answers_are_the_same() -> None:
    code = "import json; from tests.unit.strategies.test_lanes import plain_answers; print(json.dumps(plain_answers()))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(answer.stdout) == plain_answers()


@pytest.mark.parametrize("standing", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 40])
def test_a_change_of_target_is_found_at_every_place_before_the_end(length: int, standing: float) -> None:
    for place in range(length + 1):
        target = np.full(length, standing)
        target[place:] = 0.5
        for begin in range(length):
            for end in range(begin, length + 1):
                assert stretch.unchanged(target, begin, end, standing) == min(max(place, begin), end)


def test_not_a_number_is_no_target_and_so_no_change_from_0_only() -> None:
    target = np.full(20, math.nan)
    assert stretch.unchanged(target, 0, 20, 0.0) == 20
    assert stretch.unchanged(target, 0, 20, 1.0) == 0


@pytest.mark.parametrize("kept", [0.99, 1.0, 1.01])
def test_a_stop_is_reached_where_a_plain_loop_says_so(kept: float) -> None:
    random = np.random.default_rng(3)
    for _ in range(300):
        length = int(random.integers(1, 60))
        close = 100.0 * np.exp(np.cumsum(0.004 * random.standard_normal(length)))
        high, low = close * (1.0 + 0.002 * random.random(length)), close * (1.0 - 0.002 * random.random(length))
        begin = int(random.integers(0, length))
        end = int(random.integers(begin, length + 1))
        given = (high, low, begin, end, 98.0, 102.5, 100.0, kept)
        assert stretch.reached(*given) == plainly_reached(*given)


def plainly_reached(
    high: Float64Array, low: Float64Array, begin: int, end: int, under: float, over: float, best: float, kept: float
) -> tuple[int, float]:
    for i in range(begin, end):
        trailed = (kept < 1.0 and low[i] <= best * kept) or (kept > 1.0 and high[i] >= best * kept)
        if low[i] <= under or high[i] >= over or trailed:
            return i, best
        if kept != 1.0:
            best = max(best, high[i]) if kept < 1.0 else min(best, low[i])
    return end, best


@pytest.mark.parametrize("step", [1e-3, 1e-12, 3e-13], ids=["falls", "about the tolerance", "within the tolerance"])
def test_the_deepest_fall_is_that_of_going_bar_by_bar(step: float) -> None:
    random = np.random.default_rng(4)
    assert ROUNDING > EQUAL_WITHIN
    for _ in range(300):
        count = int(random.integers(1, 40))
        equity = np.empty(count + 1)
        equity[0] = 90.0
        equity[1:] = 90.0 * np.cumprod(1.0 + step * random.choice([-1.0, 0.0, 1.0], count))
        drop = Drop(100.0, 0, float(random.choice([0.0, 0.1, 0.1001])), 0, False)
        together = deepen(drop, equity, 1, count, *(as_range(equity, count)))
        single = drop
        for k in range(1, count + 1):
            one = np.array([equity[0], equity[k]])
            single = deepen(single, one, k, 1, equity[k], math.inf)  # the range says nothing: looked at one by one
        assert together == single


@compiled
def as_range(equity: Float64Array, count: int) -> tuple[float, float]:
    lowest, highest = extremes(equity.view(np.int64), count)
    return as_number(lowest), as_number(highest)


def test_the_extremes_are_the_least_and_the_greatest_and_show_what_is_no_number() -> None:
    equity = np.array([0.0, 3.0, 1.0, 2.0, 8.0, 5.0])
    assert as_range(equity, 5) == (1.0, 8.0)
    assert as_range(equity, 3) == (1.0, 3.0)
    equity[2] = math.nan
    lowest, highest = as_range(equity, 5)
    assert not (lowest > 0.0 and highest < math.inf)
