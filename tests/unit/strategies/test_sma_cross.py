"""SMA cross on bars by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.strategies.closes import targets_on

NAN = math.nan


@pytest.mark.parametrize(
    ("what", "close", "allow_short", "expected"),
    [
        ("up, down, up", [1, 1, 1, 2, 3, 2, 1, 1, 2], 0, [NAN, NAN, 0, 1, 1, 1, 0, 0, 1]),
        ("the same with shorts", [1, 1, 1, 2, 3, 2, 1, 1, 2], 1, [NAN, NAN, 0, 1, 1, 1, -1, -1, 1]),
        ("equal averages are no position", [2, 2, 2, 2], 1, [NAN, NAN, 0, 0]),
    ],
)
def test_targets(what: str, close: list[float], allow_short: int, expected: list[float]) -> None:
    got = targets_on("sma_cross", close, fast=2, slow=3, allow_short=allow_short)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("price", [0.1, 1 / 3, 1e-9, 123_456.789])
@pytest.mark.parametrize(("fast", "slow"), [(3, 10), (7, 1_000), (999, 2_000)])
def test_a_market_that_stands_still_makes_no_crossing_out_of_rounding(price: float, fast: int, slow: int) -> None:
    got = np.array(targets_on("sma_cross", [price] * 5_000, fast=fast, slow=slow, allow_short=1))
    assert (got[slow - 1 :] == 0).all()
