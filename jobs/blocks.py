"""What a worker of a sweep does: compute one block of parameter sets and put its rows into the run folder.

A worker writes its rows itself, on the volume that every node of the cluster mounts. Tune wants such a volume anyway
once there is more than one node, and this way a finished block survives whatever happens to the driver a moment later;
sent through the driver it would be lost with it.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cluster.run_folder import Block, RunFolder
from jobs import background
from jobs.parts import Identity, read_part, write_part
from jobs.plan import ParameterSets, Source
from strategies.model import Bars, Float64Array, Granularity, Int64Array
from strategies.panel import Panel
from strategies.portfolio import evaluate
from strategies.spec import Costs, Sizing

# Exactly what Tune gives its actors. With the same for the whole job they move into workers that are already up; a
# difference of one variable makes Ray start new ones.
WORKER_ENVIRONMENT: Final = {"PL_DISABLE_FORK": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
# Enough bars to load every kernel, few enough to cost nothing.
WARM_UP_BARS: Final = 32


@dataclass(frozen=True)
class Work:
    """What every worker needs; it goes into the object store once, and the arrays are read there without a copy."""

    folder: RunFolder
    identity: Identity
    sets: ParameterSets
    bars: Bars | Panel
    costs: Costs
    sizing: Sizing
    cuts: Int64Array
    decide_on: Granularity | None = None


def evaluate_block(config: dict[str, Any], work: Work) -> dict[str, Any]:
    """The trainable: compute the sets of a block and put their rows into the run folder, unless they are there.

    ``config`` is what ``config_of`` makes of the block; ``seconds`` of the result is what computing and writing took.
    """
    block = Block(**config["block"])
    path = work.folder.part_file(block)
    # A worker that was killed after writing leaves a good part behind.
    if path.exists() and (found := read_part(path, work.identity)) is not None and found[0] == block:
        return {"seconds": 0.0}
    given = config.get("rows")
    matrix = rows_of(block, work.sets) if given is None else np.array(given, dtype=np.float64)
    work.folder.load_strategies()
    _load_kernels(block.strategy, matrix, work)
    started_s = time.perf_counter()
    bars, cuts = _first_bars(work, block.bar_count)
    found_rows = evaluate(block.strategy, matrix, bars, work.costs, work.sizing, cuts, work.decide_on)
    # Of segments that were not reached to their end nothing is known.
    moments = np.full((len(matrix), len(work.cuts) - 1, found_rows.moments.shape[2]), np.nan)
    whole = int(np.searchsorted(work.cuts, len(bars), side="right")) - 1
    moments[:, :whole] = found_rows.moments[:, :whole]
    write_part(work.folder, block, matrix, found_rows.metrics, moments, work.identity)
    return {"seconds": time.perf_counter() - started_s}


def config_of(block: Block, rows: Float64Array | None = None) -> dict[str, Any]:
    """The trial of a block; with ``rows`` float64[m, k] where its sets are not those of ``Work.sets``."""
    return {"block": block.model_dump()} | ({} if rows is None else {"rows": rows.tolist()})


def compute_here(
    work: Work,
    source: Source,
    on_block: Callable[[Block, float], None],
    until: Callable[[], bool] = lambda: False,
) -> None:
    """Compute the blocks of ``source`` in this process, one after the other, till there is none or ``until()``."""
    while not until() and (block := source.next()) is not None:
        seconds = float(evaluate_block(config_of(block, source.rows(block)), work)["seconds"])
        source.done(block, seconds)
        on_block(block, seconds)


def rows_of(block: Block, sets: ParameterSets) -> Float64Array:
    """The block's parameter sets: float64[m, k]."""
    first = sum(len(matrix) for _, matrix in sets[: block.grid])
    return sets[block.grid][1][block.start - first : block.stop - first]


def _first_bars(work: Work, bar_count: int | None) -> tuple[Bars | Panel, Int64Array]:
    """The first bars of the history and the cuts of the segments they reach."""
    if bar_count is None:
        return work.bars, work.cuts
    return work.bars.between(0, bar_count), np.append(work.cuts[work.cuts < bar_count], bar_count)


def _load_kernels(strategy: str, matrix: Float64Array, work: Work) -> None:
    """Load what a strategy calls before the clock runs: a worker does it once, and it says nothing of a set's cost."""
    bars = work.bars.between(0, min(WARM_UP_BARS, len(work.bars)))
    evaluate(strategy, matrix[:1], bars, work.costs, work.sizing, np.array([0, len(bars)]), work.decide_on)


def worker_python() -> str:
    """The command, for a shell, that starts a worker's interpreter in the background: on a desk orders come first."""
    return shlex.join([sys.executable, "-IS", background.__file__, sys.executable])


def connect() -> int:
    """Join the cluster this process was started in; the number of CPUs it has now, at least 1."""
    import logging

    import ray

    # Inside a job Ray takes address and runtime_env from the environment the Jobs API sets. The code is not shipped as
    # a working_dir: every node has the package installed, and imports of one path share the compiled kernels' cache.
    environment = {"env_vars": WORKER_ENVIRONMENT, "py_executable": worker_python()}
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING, runtime_env=environment)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
