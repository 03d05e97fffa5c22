"""Moments for tests, straight from returns: what a sweep would have kept of sets with these returns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.metrics import MOMENTS

Floats = NDArray[np.float64]


def moments_of(returns: Floats, cuts: NDArray[np.int64]) -> Floats:
    """float64[m, S, 6] of returns float64[m, n - 1] on n bars: return i - 1 is that of bar i; bar 0 has none."""
    moments = np.empty((len(returns), len(cuts) - 1, len(MOMENTS)))
    for s in range(len(cuts) - 1):
        part = returns[:, max(int(cuts[s]) - 1, 0) : max(int(cuts[s + 1]) - 1, 0)]
        moments[:, s, 0] = part.shape[1]
        for power in (1, 2, 3, 4):
            moments[:, s, power] = (part**power).sum(axis=1)
        with np.errstate(divide="ignore"):
            moments[:, s, 5] = np.log1p(part).sum(axis=1)
    return moments
