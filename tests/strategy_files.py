"""Strategy files for tests: one that is right, and ways to make it wrong."""

from __future__ import annotations

from pathlib import Path

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

# The line of GOOD that most of the wrong ones replace.
TARGET = "    target = math.nan if math.isnan(long) else above(quick, long)\n"


def written(folder: Path, text: str = GOOD, name: str = "my_strategy.py") -> Path:
    """A file with ``text`` in ``folder``."""
    path = folder / name
    path.write_text(text)
    return path


def wrong(before: str, after: str) -> tuple[str, int]:
    """GOOD with the one place that reads ``before`` replaced, and the line that place is at."""
    assert GOOD.count(before) == 1, before
    return GOOD.replace(before, after), GOOD[: GOOD.index(before)].count("\n") + 1
