"""Indicator steps equal a plain recomputation over the window, whatever came before it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from strategies import indicators
from strategies.compiled import compiled
from strategies.model import Float64Array

SIZES = (1, 2, 3, 20, 500)


def series(kind: str, length: int = 5_000) -> Float64Array:
    random = np.random.default_rng(3)
    noise = random.standard_normal(length)
    kinds = {
        "walk": 100.0 * np.exp(np.cumsum(0.01 * noise)),
        "equal": np.full(length, 0.1),
        "nearly equal": 1e6 + 1e-3 * noise,
        "collapse": np.where(np.arange(length) < length // 2, 1e12, 1e-3) * (1.0 + 0.01 * noise),
        "spikes": np.where(random.random(length) < 0.001, 1e9, 1.0) * (1.0 + 0.01 * noise),
    }
    return kinds[kind]


def windows(values: Float64Array, size: int) -> Float64Array:
    return np.lib.stride_tricks.sliding_window_view(values, size)


def results(name: str, size: int, values: Float64Array) -> list[Float64Array]:
    """Each result of ``<name>_step`` over ``values``, run plain."""
    start: Callable[..., Any] = getattr(indicators, f"{name}_start").py_func
    step: Callable[..., Any] = getattr(indicators, f"{name}_step").py_func
    state, rows = start(size), []
    for value in values:
        state, *row = step(state, value)
        rows.append(row)
    return list(np.array(rows, dtype=np.float64).T)


@pytest.mark.parametrize("kind", ["walk", "equal", "nearly equal", "collapse", "spikes"])
@pytest.mark.parametrize("size", SIZES)
def test_rolling_mean(size: int, kind: str) -> None:
    values = series(kind)
    (mean,) = results("rolling_mean", size, values)
    assert np.isnan(mean[: size - 1]).all()
    seen = windows(values, size)
    # What the running sum may have kept from the two laps before: their largest value's rounding.
    laps = np.array([values[max(0, i - size) : i + size].max() for i in range(len(seen))])
    error = np.abs(mean[size - 1 :] - seen.mean(axis=1))
    assert (error <= 1e-9 * seen.mean(axis=1) + 4 * size * 2.0**-53 * laps).all()
    if kind in ("walk", "equal", "nearly equal"):
        np.testing.assert_allclose(mean[size - 1 :], seen.mean(axis=1), rtol=1e-12)


@pytest.mark.parametrize("kind", ["walk", "equal", "nearly equal", "collapse", "spikes"])
@pytest.mark.parametrize("size", SIZES)
def test_rolling_moments(size: int, kind: str) -> None:
    values = series(kind)
    mean, squares = results("rolling_moments", size, values)
    assert np.isnan(mean[: size - 1]).all()
    assert np.isnan(squares[: size - 1]).all()
    seen = windows(values, size)
    expected = ((seen - seen.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    np.testing.assert_allclose(mean[size - 1 :], seen.mean(axis=1), rtol=1e-11)
    assert (squares[size - 1 :] >= 0).all()
    if kind == "equal" or size == 1:
        assert (squares[size - 1 :] == 0).all()
    else:
        # Welford's bound: each value enters through its distance to a mean that is known to 2^-53 of itself.
        bound = math.sqrt(size) * 2.0**-50 * seen.max(axis=1) * (seen.max(axis=1) - seen.min(axis=1))
        assert (np.abs(squares[size - 1 :] - expected) <= 1e-9 * expected + bound).all()


@pytest.mark.parametrize("kind", ["walk", "equal", "spikes"])
@pytest.mark.parametrize("size", SIZES)
def test_rolling_max_is_exact(size: int, kind: str) -> None:
    values = series(kind)
    (largest,) = results("rolling_max", size, values)
    assert np.isnan(largest[: size - 1]).all()
    np.testing.assert_array_equal(largest[size - 1 :], windows(values, size).max(axis=1))


@pytest.mark.parametrize("size", SIZES)
def test_delay_is_exact(size: int) -> None:
    values = series("walk")
    (past,) = results("delay", size, values)
    assert np.isnan(past[:size]).all()
    np.testing.assert_array_equal(past[size:], values[:-size])


@pytest.mark.parametrize("size", [2, 14, 100])
def test_relative_strength_follows_wilder(size: int) -> None:
    values = series("walk", 600)
    (strength,) = results("relative_strength", size, values)
    changes = np.diff(values)
    gain, loss = np.maximum(changes[:size], 0).mean(), np.maximum(-changes[:size], 0).mean()
    expected = [100 - 100 / (1 + gain / loss)]
    for change in changes[size:]:
        gain = (gain * (size - 1) + max(change, 0)) / size
        loss = (loss * (size - 1) + max(-change, 0)) / size
        expected.append(100 - 100 / (1 + gain / loss))
    assert np.isnan(strength[:size]).all()
    np.testing.assert_allclose(strength[size:], expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("values", "last"),
    [([1.0, 1.0, 1.0, 1.0], 50.0), ([1.0, 2.0, 3.0, 4.0], 100.0), ([4.0, 3.0, 2.0, 1.0], 0.0), ([1.0, 2.0, 1.0], 50.0)],
)
def test_relative_strength_at_its_ends(values: list[float], last: float) -> None:
    assert results("relative_strength", 2, np.array(values))[0][-1] == last


@pytest.mark.parametrize("name", ["rolling_mean", "rolling_moments", "rolling_max", "relative_strength"])
def test_a_nan_is_passed_over(name: str) -> None:
    values = series("walk", 200)
    holes = np.insert(values, [0, 3, 77, 199], math.nan)
    for with_holes, without in zip(results(name, 5, holes), results(name, 5, values), strict=True):
        np.testing.assert_array_equal(with_holes[~np.isnan(holes)], without)


@compiled
def _means(values: Float64Array, size: int) -> Float64Array:
    state = indicators.rolling_mean_start(size)
    result = np.empty(values.size)
    for i in range(values.size):
        state, result[i] = indicators.rolling_mean_step(state, values[i])
    return result


def test_a_rolling_mean_does_not_drift_over_a_million_bars() -> None:
    values = series("walk", 1_000_000) * 1e3
    mean = _means(values, 200)
    places = np.arange(999_000, 1_000_000)
    exact = [math.fsum(values[i - 199 : i + 1]) / 200 for i in places]
    np.testing.assert_allclose(mean[places], exact, rtol=1e-13)
