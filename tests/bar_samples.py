"""Bars for tests: seeded and valid, and ways to cut and compare them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from cluster.bar_checks import VALUES
from strategies.model import NS_PER_S, Bars, Granularity

REAL_DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"needs {REAL_DATA.name} beside the repository")

# 2024-01-01T00:00:00Z
NEW_YEAR_NS: Final = 1_704_067_200 * NS_PER_S


def make_bars(
    count: int,
    product_id: str = "BTC-USD",
    granularity: Granularity = Granularity.ONE_HOUR,
    start_ns: int = NEW_YEAR_NS,
    seed: int = 7,
) -> Bars:
    """``count`` bars without a gap; a longer series with the same seed begins with the same values."""
    draws = np.random.default_rng(seed).normal(size=(count, 5))
    opened = np.round(20_000 * np.exp(np.cumsum(draws[:, 0]) * 1e-3), 2)
    closed = np.round(opened * np.exp(draws[:, 1] * 1e-3), 2)
    high = np.maximum(opened, closed) + np.round(1 + np.abs(draws[:, 2]), 2)
    low = np.minimum(opened, closed) - np.round(1 + np.abs(draws[:, 3]), 2)
    volume = np.round(np.abs(draws[:, 4]) * 3, 8)
    ts_ns = start_ns + np.arange(count, dtype=np.int64) * granularity.ns
    return Bars(product_id, granularity, ts_ns, opened, high, low, closed, volume)


def pick(bars: Bars, chosen: Any) -> Bars:
    """The bars at an index array, a mask or a slice, as a copy."""
    values = (np.array(getattr(bars, name)[chosen]) for name in VALUES)
    return Bars(bars.product_id, bars.granularity, np.array(bars.ts_ns[chosen]), *values)


def with_value(bars: Bars, name: str, index: int, value: float) -> Bars:
    """A copy with one number changed."""
    copy = pick(bars, slice(None))
    getattr(copy, name)[index] = value
    return copy


def same(left: Bars, right: Bars) -> bool:
    """Whether both are the same series, bit for bit."""
    names = ("ts_ns", *VALUES)
    alike = (left.product_id, left.granularity) == (right.product_id, right.granularity)
    return alike and all(getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in names)
