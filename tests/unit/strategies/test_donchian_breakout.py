"""Donchian breakout on bars by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.strategies.closes import targets_on

NAN = math.nan


@pytest.mark.parametrize(
    ("what", "close", "allow_short", "expected"),
    [
        ("long above the channel, out below the short one", [5, 4, 5, 6, 7, 5, 6], 0, [NAN, NAN, NAN, 1, 1, 0, 0]),
        ("a new low opens a short, where allowed", [5, 4, 5, 3, 2, 4], 1, [NAN, NAN, NAN, -1, -1, 0]),
        ("a new low is no position, where not", [5, 4, 5, 3, 2, 4], 0, [NAN, NAN, NAN, 0, 0, 0]),
        ("touching the channel is no break", [5, 4, 5, 5, 4], 1, [NAN, NAN, NAN, 0, 0]),
        ("straight from long to short", [5, 4, 5, 6, 3], 1, [NAN, NAN, NAN, 1, -1]),
    ],
)
def test_targets(what: str, close: list[float], allow_short: int, expected: list[float]) -> None:
    got = targets_on("donchian_breakout", close, entry_window=3, exit_window=1, allow_short=allow_short)
    np.testing.assert_array_equal(got, expected)


def test_channels_are_made_of_highs_and_lows_of_the_bars_before() -> None:
    close = [5, 5, 5, 8, 5, 5, 2, 5]
    high = [9, 5, 5, 9, 5, 5, 5, 5]
    low = [1, 5, 5, 5, 5, 1, 1, 5]
    got = targets_on("donchian_breakout", close, high, low, entry_window=3, exit_window=1, allow_short=1)
    # 8 is not above the 9 of three bars before, nor is bar 3's own high of 9 against it; 2 is not below the 1 before.
    np.testing.assert_array_equal(got, [NAN, NAN, NAN, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(
        targets_on("donchian_breakout", [*close, 6], [*high, 6], [*low, 6], entry_window=3, exit_window=1)[-1], 1
    )
