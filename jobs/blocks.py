"""What a worker of a sweep does: compute one block of parameter sets and put its rows into the run folder.

A worker writes its rows itself, on the volume that every node of the cluster mounts. Tune wants such a volume anyway
once there is more than one node, and this way a finished block survives whatever happens to the driver a moment later;
sent through the driver it would be lost with it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Final

from cluster.run_folder import Block, RunFolder
from jobs.results import Identity, ParameterSets, read_part, rows_of, write_part
from strategies.backtest import run_block
from strategies.model import Bars
from strategies.spec import Costs

# Exactly what Tune gives its actors. With the same for the whole job they move into workers that are already up; a
# difference of one variable makes Ray start new ones.
WORKER_ENVIRONMENT: Final = {"PL_DISABLE_FORK": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}


@dataclass(frozen=True)
class Work:
    """What every worker needs; it goes into the object store once, and the arrays are read there without a copy."""

    folder: RunFolder
    identity: Identity
    blocks: tuple[Block, ...]
    sets: ParameterSets
    bars: Bars
    costs: Costs


def evaluate_block(config: dict[str, Any], work: Work) -> dict[str, Any]:
    """The trainable: compute block ``config["block"]`` and put its rows into the run folder, unless they are there."""
    index: int = config["block"]
    block = work.blocks[index]
    started_s = time.perf_counter()
    # A worker that was killed after writing leaves a good part behind.
    if read_part(work.folder, index, block, work.identity) is None:
        matrix = rows_of(block, work.sets)
        metrics = run_block(block.strategy, matrix, work.bars, work.costs)
        write_part(work.folder, index, block, matrix, metrics, work.identity)
    return {"block": index, "seconds": time.perf_counter() - started_s}


def connect() -> int:
    """Join the cluster this process was started in; the number of CPUs it has now, at least 1."""
    import logging

    import ray

    # Inside a job Ray takes address and runtime_env from the environment the Jobs API sets. The code is not shipped as
    # a working_dir: every node has the package installed, and imports of one path share the compiled kernels' cache.
    environment = {"env_vars": WORKER_ENVIRONMENT}
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING, runtime_env=environment)
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
