"""Searches for tests: specifications, and a market that is a formula, so that a study needs no kernel and no Ray."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cluster.run_folder import Block
from jobs.blocks import Work
from jobs.parts import MOMENTS_PER_SEGMENT, write_part
from jobs.search import StudySource
from jobs.study import Batch, Study
from strategies.metrics import METRICS
from strategies.model import Float64Array
from strategies.spec import SweepSpec
from tests.run_samples import make_spec

TWO_GRIDS: list[dict[str, Any]] = [
    {"strategy": "sma_cross", "grid": {"fast": {"low": 2, "high": 100}, "slow": {"low": 10, "high": 300, "log": True}}},
    {
        "strategy": "rsi_reversion",
        "grid": {"window": {"start": 5, "stop": 30, "step": 1}, "oversold": {"low": 15, "high": 40}},
    },
]


def search_spec(
    method: str = "random", sets: int = 40, *, grids: Any = None, seed: int = 3, **search: Any
) -> SweepSpec:
    """A search over one strategy with two parameters, or over the ``grids`` given."""
    search = {"method": method, "sets": sets, **search}
    return make_spec(grids=grids or TWO_GRIDS[:1], search=search, seed=seed)


def formula(matrix: Float64Array, bar_count: int) -> Float64Array:
    """Metrics float64[m, 13] of each set: Sharpe 3 at the best place and less around it, told better by more bars."""
    distance = ((matrix[:, 0] - 17) / 40) ** 2 + ((matrix[:, 1] - 123) / 80) ** 2
    metrics = np.zeros((len(matrix), len(METRICS)))
    noise = np.sin(matrix[:, 0] * 12.9898 + matrix[:, 1] * 78.233 + bar_count) / math.sqrt(bar_count)
    metrics[:, METRICS.index("sharpe")] = 3 - distance + 5 * noise
    metrics[:, METRICS.index("max_drawdown")] = np.clip(0.02 * matrix[:, 0] * bar_count / 10_000, 0, 1)
    metrics[:, METRICS.index("trades")] = np.floor(bar_count / matrix[:, 1])
    return metrics


def run_study(study: Study, most: int = 10_000) -> list[Batch]:
    """Run a study on the formula to its end, or for ``most`` turns; every batch there was."""
    batches: list[Batch] = []
    for _ in range(most):
        asked = study.next()
        if not asked:
            break
        study.tell([formula(batch.matrix, batch.bar_count) for batch in asked])
        batches += asked
    return batches


def compute_formula(source: StudySource, work: Work, blocks: int = 10**9) -> int:
    """What workers do, with the formula instead of kernels: at most so many blocks; how many there were."""
    done = 0
    while done < blocks and (block := source.next()) is not None:
        write_formula_part(work, block, source.rows(block))
        source.done(block, 0.001)
        done += 1
    return done


def write_formula_part(work: Work, block: Block, matrix: Float64Array) -> None:
    """A block's part as a worker would write it."""
    bars = block.bar_count or len(work.bars)
    moments = np.zeros((len(matrix), len(work.cuts) - 1, MOMENTS_PER_SEGMENT))
    write_part(work.folder, block, matrix, formula(matrix, bars), moments, work.identity)
