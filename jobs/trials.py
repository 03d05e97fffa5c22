"""The Ray side of a sweep: a Tune trial is a block of parameter sets, run by a few actors that are used again.

Which block comes next is asked of a ``Source`` when a worker is free, so a block can be cut by what the ones before
have cost, and a search can think of sets as it goes. Tune keeps no state that matters: which sets are done is told by
the parts in the run folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cluster.run_folder import Block
from jobs.blocks import WORKER_ENVIRONMENT, Work, config_of, evaluate_block
from jobs.plan import Source

# Tune reads these when it is imported. Its loggers would write three files a trial, its own output a table a second.
os.environ.update(
    TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
    TUNE_DISABLE_SIGINT_HANDLER="1",
    TUNE_GLOBAL_CHECKPOINT_S="3600",
    TUNE_RESULT_BUFFER_LENGTH="0",
    RAY_AIR_NEW_OUTPUT="0",
    RAY_CHDIR_TO_TRIAL_DIR=WORKER_ENVIRONMENT["RAY_CHDIR_TO_TRIAL_DIR"],
)
# Tune would copy these into its actors' runtime_env, which the dashboard shows; our storage is a mounted volume.
for _secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
    os.environ.pop(_secret, None)

from ray import tune  # noqa: E402 -- see above
from ray.tune.search import Searcher  # noqa: E402

# A block that fails, or whose worker dies while it computes (out of memory, node gone, SIGKILL), is computed again.
FAILURES_MAX: Final = 2
# How often a block may be lost before it began, which is not its fault: Tune moves trials into actors it has kept
# without asking whether they live, so after the loss of a node a block may meet as many dead ones as the node had.
LOSSES_MAX: Final = 100
# Neither a block finished nor one begun in this time: the cluster has no room for us. Autoscaling takes minutes.
STALL_TIMEOUT_S: Final = 900.0


class SweepStalled(RuntimeError):
    """No block has begun or ended for too long."""


class BlockFailed(RuntimeError):
    """A block could not be computed, also not when tried again."""


def run_blocks(
    work: Work,
    source: Source,
    workers: int,
    on_block: Callable[[Block, float], None],
    on_last: Callable[[], None],
) -> None:
    """Compute the blocks of ``source`` on at most ``workers`` CPUs.

    ``on_block(block, seconds)`` is called for each as it comes, after the source was told; ``on_last()`` after the last
    one, before Tune puts its actors away (which takes a second or two). Raises ``BlockFailed`` or ``SweepStalled``.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    storage = work.folder.path / "tune"
    watch = Watch(source, on_block, on_last, storage / "begun")
    shutil.rmtree(storage, ignore_errors=True)
    watch.begun_dir.mkdir(parents=True)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_begin, work=work, begun_dir=watch.begun_dir), {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_Asker(watch), num_samples=-1, reuse_actors=True, max_concurrent_trials=workers
        ),
        run_config=tune.RunConfig(
            name="blocks",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),  # what is tried again is for the watch to say
            callbacks=[watch],
        ),
    )
    tuner.fit()
    shutil.rmtree(storage, ignore_errors=True)


def _begin(config: dict[str, Any], work: Work, begun_dir: Path) -> dict[str, Any]:
    """The trainable: tells that the block has begun, then computes it."""
    _mark(begun_dir, Block(**config["block"])).touch()
    return evaluate_block(config, work)


def _mark(begun_dir: Path, block: Block) -> Path:
    return begun_dir / f"{block.start}-{block.stop}"


class _Asker(Searcher):
    """Asks the source for a block when Tune has room for a trial."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def suggest(self, trial_id: str) -> Any:
        if self._watch.source.finished:
            return Searcher.FINISHED
        source = self._watch.source
        block = source.next()
        return None if block is None else config_of(block, source.rows(block))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        return None  # the watch has told the source

    def save(self, checkpoint_path: str) -> None:
        return None  # the run folder's parts are the state

    def restore(self, checkpoint_path: str) -> None:
        return None


class Watch(tune.Callback):
    """Follows the trials; an exception raised in a step of Tune's loop ends the sweep."""

    def __init__(
        self,
        source: Source,
        on_block: Callable[[Block, float], None],
        on_last: Callable[[], None],
        begun_dir: Path,
    ) -> None:
        self.source = source
        self.begun_dir = begun_dir
        self._losses: Counter[int] = Counter()
        self._failures: list[Block] = []
        self._on_block = on_block
        self._on_last = on_last
        self._given_up: tuple[Block, str] | None = None
        self._moved_s = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._moved_s = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._moved_s = time.monotonic()
        block = Block(**trial.config["block"])
        seconds = float(trial.last_result.get("seconds", 0.0))
        self.source.done(block, seconds)
        self._on_block(block, seconds)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        block = Block(**trial.config["block"])
        mark = _mark(self.begun_dir, block)
        if mark.exists():
            mark.unlink()
            self._failures.append(block)
            count, most, what = self._failures_of(block), FAILURES_MAX + 1, "failed"
        else:
            self._losses[block.start] += 1
            count, most, what = self._losses[block.start], LOSSES_MAX, "was lost before it began"
        if count < most:
            self.source.lost(block)
        else:
            self._given_up = block, f"{what} {count} times: {_reason(trial)}"

    def _failures_of(self, block: Block) -> int:
        """A block tried again may be cut anew; what shares a set with it counts."""
        return sum(one.start < block.stop and block.start < one.stop for one in self._failures)

    def on_step_end(self, iteration: int, trials: list[Any], **_: Any) -> None:
        if self._given_up:
            block, why = self._given_up
            raise BlockFailed(f"block {block.start}-{block.stop} {why}")
        if self.source.finished:
            last, self._on_last = self._on_last, _nothing
            last()
        elif time.monotonic() - self._moved_s > STALL_TIMEOUT_S:
            raise SweepStalled(f"no block began or ended for {STALL_TIMEOUT_S:g} s; has the cluster a free CPU?")


def _reason(trial: Any) -> str:
    """The last line of what the worker raised; the trial keeps the whole trace in a file."""
    try:
        with open(trial.error_file) as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, TypeError):
        return "no reason is known"
    return lines[-1][:500] if lines else "no reason is known"


def _nothing() -> None:
    return None
