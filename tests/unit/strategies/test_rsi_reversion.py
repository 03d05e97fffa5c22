"""RSI mean reversion on bars by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.strategies.closes import targets_on

NAN = math.nan


@pytest.mark.parametrize(
    ("what", "close", "allow_short", "expected"),
    [
        # With a window of 2 the RSI is 0 after two falls, then (+1 on -1, -1) 50, then 75, then 87.5.
        ("long when oversold, out at the exit level", [5, 4, 3, 4, 5, 6], 0, [NAN, NAN, 1, 0, 0, 0]),
        ("still long below the exit level", [50, 40, 30, 32, 60], 0, [NAN, NAN, 1, 1, 0]),
        ("short when overbought, where allowed", [5, 6, 7, 6, 5], 1, [NAN, NAN, -1, 0, 1]),
        ("flat when overbought, where not", [5, 6, 7, 6, 5], 0, [NAN, NAN, 0, 0, 1]),
        ("straight from long to short", [5, 4, 3, 30, 60], 1, [NAN, NAN, 1, -1, -1]),
        ("nothing moves", [5, 5, 5, 5], 1, [NAN, NAN, 0, 0]),
    ],
)
def test_targets(what: str, close: list[float], allow_short: int, expected: list[float]) -> None:
    np.testing.assert_array_equal(targets_on("rsi_reversion", close, window=2, allow_short=allow_short), expected)
