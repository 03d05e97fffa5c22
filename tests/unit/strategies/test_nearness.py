"""Sets that share windows are computed near each other, and a grid keeps every set once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.base import RULE_NAMES
from strategies.model import Float64Array
from strategies.nearness import places, steps
from strategies.registry import find
from strategies.spec import parse_spec


def grid_of(strategy: str, grid: dict[str, object]) -> Float64Array:
    content = {"product_id": "BTC-USD", "granularity": "ONE_HOUR", "grids": [{"strategy": strategy, "grid": grid}]}
    ((_, matrix),) = parse_spec(content).parameter_sets()
    return matrix


def windows_in(matrix: Float64Array) -> int:
    return sum(np.unique(matrix[:, column]).size for column in (0, 1))


@pytest.mark.parametrize(("fast", "slow"), [(100, 1_000), (300, 300), (7, 3_000)])
def test_neighbours_need_few_windows(fast: int, slow: int) -> None:
    """Row by row, 1,000 sets of the first of these grids needed 1,001 windows."""
    matrix = grid_of(
        "sma_cross", {"fast": list(range(1, fast + 1)), "slow": {"start": 400, "stop": 399 + slow, "step": 1}}
    )
    assert len(matrix) == fast * slow
    for size in (64, 1_024, 8_192):
        square = max(2 * size**0.5, fast + size / fast)
        for start in range(0, len(matrix) - size, size):
            assert windows_in(matrix[start : start + size]) <= 2 * square


@given(
    fast=st.lists(st.integers(1, 40), min_size=1, max_size=9, unique=True),
    slow=st.lists(st.integers(20, 60), min_size=1, max_size=9, unique=True),
    stops=st.lists(st.sampled_from([0.0, 0.1, 0.2]), min_size=1, max_size=3, unique=True),
)
def test_each_combination_is_there_once_and_those_of_one_target_follow_each_other(
    fast: list[int], slow: list[int], stops: list[float]
) -> None:
    wanted = {
        (float(f), float(s), float(short), stop)
        for f, s, short, stop in itertools.product(fast, slow, (0, 1), stops)
        if f < s
    }
    if not wanted:
        return
    matrix = grid_of("sma_cross", {"fast": fast, "slow": slow, "allow_short": [0, 1], "stop_loss": stops})
    column = 3 + RULE_NAMES.index("stop_loss")
    found = [(*row[:3], row[column]) for row in matrix.tolist()]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    own = [row[:3] for row in found]
    assert len([key for key, _ in itertools.groupby(own)]) == len(set(own))


def test_a_strategy_without_windows_keeps_the_order_of_its_grid() -> None:
    matrix = np.array([[3.0, 1.0], [1.0, 2.0], [2.0, 2.0]])
    assert places(find("momentum_rotation"), matrix).tolist() == [0, 0, 0]


def test_a_step_is_0_between_rules_1_between_targets_of_the_same_windows_and_larger_between_windows() -> None:
    own = np.array([[1.0, 5, 0], [1, 5, 0], [1, 5, 1], [1, 6, 0], [2, 5, 0], [1, 8, 0], [1, 9, 0]])
    rules = np.zeros((len(own), len(RULE_NAMES)))
    rules[1, 0] = 0.1
    # Places: 1,5 is 0; 1,6 is 1; 2,5 is 2; 1,8 is 4; 1,9 is 5 (ranks of 5, 6, 8, 9: 0 to 3).
    assert places(find("sma_cross"), own).tolist() == [0, 0, 0, 1, 2, 4, 5]
    assert steps(find("sma_cross"), np.hstack([own, rules])).tolist() == [0, 0, 1, 2, 3, 4, 2]
