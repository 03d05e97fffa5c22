"""Volatility-targeted momentum on bars by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.strategies.closes import targets_on

NAN = math.nan
# Returns +10 % and -10 % in turn: a sample deviation of 0.1414 over two of them.
SWING = [100.0, 110.0, 99.0, 108.9, 98.01]
DEVIATION = math.sqrt(0.02)


def test_the_size_is_the_wanted_over_the_measured_volatility() -> None:
    got = targets_on(
        "vol_target_momentum", SWING, lookback=1, volatility_window=2, target_volatility=0.05, band=0, allow_short=1
    )
    size = 0.05 / DEVIATION
    np.testing.assert_allclose(got, [NAN, NAN, -size, size, -size], rtol=1e-12)


@pytest.mark.parametrize(
    ("what", "close", "allow_short", "expected"),
    [
        ("no measured volatility: full size", [1, 2, 4, 8], 0, [NAN, NAN, 1, 1]),
        ("no shorts unless allowed", [8, 4, 2, 1], 0, [NAN, NAN, 0, 0]),
        ("shorts where allowed", [8, 4, 2, 1], 1, [NAN, NAN, -1, -1]),
        ("no direction, no position", [2, 2, 2, 2], 1, [NAN, NAN, 0, 0]),
    ],
)
def test_targets(what: str, close: list[float], allow_short: int, expected: list[float]) -> None:
    got = targets_on("vol_target_momentum", close, lookback=1, volatility_window=2, allow_short=allow_short)
    np.testing.assert_array_equal(got, expected)


def test_the_band_keeps_the_target_while_it_would_change_little() -> None:
    random = np.random.default_rng(2)
    close = (100.0 * np.exp(np.cumsum(0.002 + 0.01 * random.standard_normal(500)))).tolist()
    free = np.array(targets_on("vol_target_momentum", close, target_volatility=0.005, band=0))
    held = np.array(targets_on("vol_target_momentum", close, target_volatility=0.005, band=0.1))
    free, held = free[60:], held[60:]
    changes = np.flatnonzero(np.diff(held)) + 1
    assert 0 < len(changes) < np.count_nonzero(np.diff(free)) / 3
    assert (np.abs(held - free) <= 0.1).all()
    assert (np.sign(held) == np.sign(free)).all()
    np.testing.assert_array_equal(held[changes], free[changes])
    assert ((free > 0) & (free < 1)).any()
