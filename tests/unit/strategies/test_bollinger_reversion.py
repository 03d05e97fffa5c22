"""Bollinger reversion on bars by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.strategies.closes import targets_on

NAN = math.nan


@pytest.mark.parametrize(
    ("what", "close", "allow_short", "expected"),
    [
        # In 10, 10, 7 the mean is 9 and the deviation sqrt(2): the lower band of width 1 is at 7.59.
        ("long below the lower band, out at the mean", [10, 10, 7, 8, 9], 0, [NAN, NAN, 1, 1, 0]),
        ("straight from short to long", [10, 10, 13, 12.5, 11], 1, [NAN, NAN, -1, -1, 1]),
        ("short above the upper band, out at the mean", [10, 10, 13, 12.5, 12.75], 1, [NAN, NAN, -1, -1, 0]),
        ("flat above the upper band, where not", [10, 10, 13, 12.5, 11], 0, [NAN, NAN, 0, 0, 1]),
        ("no deviation, no position", [10, 10, 10, 10], 1, [NAN, NAN, 0, 0]),
    ],
)
def test_targets(what: str, close: list[float], allow_short: int, expected: list[float]) -> None:
    got = targets_on("bollinger_reversion", close, window=3, width=1.0, allow_short=allow_short)
    np.testing.assert_array_equal(got, expected)
