"""Strategy files for tests: one that is right, and ways to make it wrong."""

from __future__ import annotations

from pathlib import Path

from strategies.base import Strategy
from strategies.user_file import load, read

GOOD = '''"""A cross of two averages, written by a user."""

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies import base
from strategies.indicators import RollingMean, rolling_mean_start, rolling_mean_step


class Params(base.Params):
    BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("fast", "slow"),)
    fast: int = Field(5, ge=2, le=500, description="bars")
    slow: int = Field(20, ge=2, le=500, description="bars")


class State(NamedTuple):
    fast: RollingMean
    slow: RollingMean
    bars: int


def start(vector):
    return State(rolling_mean_start(int(vector[0])), rolling_mean_start(int(vector[1])), 0)


def above(quick, slow):
    return 1.0 if quick > slow else 0.0


def on_bar(vector, state, bar):
    fast, quick = rolling_mean_step(state.fast, bar.close)
    slow, long = rolling_mean_step(state.slow, bar.close)
    target = math.nan if math.isnan(long) else above(quick, long)
    return State(fast, slow, state.bars + 1), target
'''

SECTION = '''"""The strongest of several, looked at every few bars, written by a user."""

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies import base

PRODUCTS_MIN = 2
COUNTS = ("top",)


class Params(base.Params):
    lookback: int = Field(20, ge=1, le=500, description="bars")
    every: int = Field(6, ge=1, le=500, description="bars")
    top: int = Field(1, ge=1, le=100, description="products")


class State(NamedTuple):
    closes: np.ndarray
    weights: np.ndarray
    bars: int


def start(vector, products):
    return State(np.full((int(vector[0]) + 1, products), np.nan), np.full(products, np.nan), 0)


def on_bars(vector, state, step):
    closes, weights, bars = state
    rows, products = closes.shape
    row = bars % rows
    closes[row] = step.close
    weights[:] = math.nan
    if bars + 1 >= rows and (bars + 1 - rows) % int(vector[1]) == 0:
        rises = step.close / closes[(row + 1) % rows] - 1.0
        weights[:] = 0.0
        for _ in range(int(vector[2])):
            best = -1
            for q in range(products):
                if not math.isnan(rises[q]) and (best < 0 or rises[q] > rises[best]):
                    best = q
            if best >= 0:
                weights[best] = 1.0 / vector[2]
                rises[best] = math.nan
    return State(closes, weights, bars + 1), weights
'''

# The line of SECTION that most of the wrong ones replace.
WEIGHTS = "        weights[:] = 0.0\n"
# The line of GOOD that most of the wrong ones replace.
TARGET = "    target = math.nan if math.isnan(long) else above(quick, long)\n"


def written(folder: Path, text: str = GOOD, name: str = "my_strategy.py") -> Path:
    """A file with ``text`` in ``folder``."""
    path = folder / name
    path.write_text(text)
    return path


def wrong(before: str, after: str, good: str = GOOD) -> tuple[str, int]:
    """``good`` with the one place that reads ``before`` replaced, and the line that place is at."""
    assert good.count(before) == 1, before
    return good.replace(before, after), good[: good.index(before)].count("\n") + 1


def single(path: Path) -> Strategy:
    """The strategy over one product that stands in the file."""
    own = load(read(path))
    assert isinstance(own, Strategy)
    return own
