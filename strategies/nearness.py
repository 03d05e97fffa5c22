"""The order in which a grid's sets are computed: those that share indicators stand near each other.

A sweep is computed in blocks of sets that follow each other, and each distinct window of a block costs it a table,
as much as one or two more sets. Row by row through a grid of 100 x 1,500 windows, 1,500 sets need all 1,500 of a
side; along a Z-order curve (G. M. Morton, 1966), which stays within squares, m sets need 2 sqrt(m) of both
sides together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.base import AnyStrategy, Strategy
from strategies.model import Float64Array, Int64Array


def places(strategy: AnyStrategy, matrix: Float64Array) -> Int64Array:
    """int64[m], where each set of ``matrix`` float64[m, k] stands on the curve through its strategy's windows.

    Sets with the same windows stand at one place, and all do where the strategy names none.
    """
    found = np.zeros(len(matrix), dtype=np.int64)
    ranks = [np.unique(matrix[:, column], return_inverse=True)[1] for column in window_columns(strategy)]
    digits = [int(rank.max(initial=0)).bit_length() for rank in ranks]
    position = 0
    for digit in range(max(digits, default=0)):
        for rank, count in zip(reversed(ranks), reversed(digits), strict=True):
            if digit < count:
                found |= (rank >> digit & 1) << position
                position += 1
    return found


def steps(strategy: AnyStrategy, matrix: Float64Array) -> NDArray[np.int8]:
    """int8[m], how far each set is from the one before: 0 with the same parameters, 1 with the same windows.

    Else the bits of the curve that differ: the more there are, the fewer windows are shared across the step.
    """
    found = np.zeros(len(matrix), dtype=np.int8)
    own = matrix[:, : len(strategy.params.names())]
    at = places(strategy, matrix)
    found[1:] = (own[1:] != own[:-1]).any(axis=1)
    found[1:] += np.frexp((at[1:] ^ at[:-1]).astype(np.float64))[1].astype(np.int8)
    return found


def window_columns(strategy: AnyStrategy) -> list[int]:
    """Which of the strategy's own parameters its indicator tables are made for; none where it has no ``switches``."""
    if not isinstance(strategy, Strategy) or strategy.switches is None:
        return []
    return [strategy.params.names().index(name) for name in strategy.switches.windows]
