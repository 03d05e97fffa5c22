"""How the sweep follows Tune's trials: what counts as done, as lost and as failed. Nothing of Ray is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.run_folder import Block
from jobs import trials
from jobs.blocks import WORKER_ENVIRONMENT
from jobs.plan import GridPlan
from jobs.trials import BlockFailed, SweepStalled, Watch


@dataclass
class TrialStub:
    """What the watch reads of a trial."""

    block: Block
    error_file: str | None = None
    last_result: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.5})

    @property
    def config(self) -> dict[str, Any]:
        return {"block": self.block.model_dump()}


@dataclass
class Followed:
    """A watch over a plan of two blocks of one grid each and what it has reported."""

    plan: GridPlan
    watch: Watch
    blocks: list[tuple[int, float]]
    ends: list[str]

    def next(self) -> Block:
        block = self.plan.next()
        assert block is not None
        return block

    def begin(self) -> Block:
        """The next block, whose worker has begun with it."""
        block = self.next()
        (self.watch.begun_dir / f"{block.start}-{block.stop}").touch()
        return block


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    blocks: list[tuple[int, float]] = []
    ends: list[str] = []
    plan = GridPlan([("sma_cross", np.zeros((2, 3))), ("sma_cross", np.zeros((3, 3)))])
    watch = Watch(
        plan, lambda block, seconds: blocks.append((block.start, seconds)), lambda: ends.append("end"), tmp_path
    )
    return Followed(plan, watch, blocks, ends)


def test_the_end_is_reported_once_after_the_last_block(followed: Followed) -> None:
    one, other = followed.next(), followed.next()
    for block in (other, one):
        assert followed.ends == []
        followed.watch.on_trial_complete(0, [], TrialStub(block))
        followed.watch.on_step_end(0, [])
    followed.watch.on_step_end(0, [])
    assert followed.blocks == [(2, 0.5), (0, 0.5)]
    assert followed.ends == ["end"]


def test_a_block_whose_actors_were_gone_before_it_began_is_given_to_another(followed: Followed) -> None:
    """A sweep failed when its idle workers were killed: Tune sent a trial to each of the dead ones within 10 ms."""
    one, other = followed.next(), followed.next()
    for _ in range(10):
        followed.watch.on_trial_error(0, [], TrialStub(one))
        followed.watch.on_step_end(0, [])
        assert followed.next() == one
    followed.watch.on_trial_complete(0, [], TrialStub(other))
    followed.watch.on_trial_complete(0, [], TrialStub(one))
    followed.watch.on_step_end(0, [])
    assert followed.ends == ["end"]


def test_a_block_that_never_begins_ends_the_sweep(followed: Followed) -> None:
    for _ in range(trials.LOSSES_MAX):
        followed.watch.on_step_end(0, [])
        followed.watch.on_trial_error(0, [], TrialStub(followed.next()))
    with pytest.raises(BlockFailed, match=r"block 0-2 was lost before it began 100 times"):
        followed.watch.on_step_end(0, [])


def test_a_block_that_failed_too_often_ends_the_sweep_with_its_reason(followed: Followed, tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Traceback ...\n  File x\nstrategies.backtest.AccountingError: sma_cross at bar 7: no number\n\n")
    for _ in range(trials.FAILURES_MAX + 1):
        followed.watch.on_step_end(0, [])
        followed.watch.on_trial_error(0, [], TrialStub(followed.begin(), error_file=str(file)))
    with pytest.raises(BlockFailed, match=r"block 0-2 failed 3 times: .*AccountingError: sma_cross at bar 7"):
        followed.watch.on_step_end(0, [])


def test_a_block_cut_anew_has_the_failures_of_the_sets_it_shares(followed: Followed) -> None:
    for start, stop in ((0, 2), (0, 1), (0, 2)):
        followed.watch.on_step_end(0, [])
        block = followed.begin().model_copy(update={"start": start, "stop": stop})
        (followed.watch.begun_dir / f"{start}-{stop}").touch()
        followed.watch.on_trial_error(0, [], TrialStub(block))
    with pytest.raises(BlockFailed, match=r"block 0-2 failed 3 times"):
        followed.watch.on_step_end(0, [])


@pytest.mark.parametrize("error_file", [None, "/nowhere/error.txt"])
def test_a_failure_without_a_reason_says_so(followed: Followed, error_file: str | None) -> None:
    for _ in range(trials.FAILURES_MAX + 1):
        followed.watch.on_trial_error(0, [], TrialStub(followed.begin(), error_file=error_file))
    with pytest.raises(BlockFailed, match="no reason is known"):
        followed.watch.on_step_end(0, [])


def test_a_sweep_that_does_not_move_ends_itself(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    followed.watch.on_step_end(0, [])
    monkeypatch.setattr(trials, "STALL_TIMEOUT_S", -1.0)
    with pytest.raises(SweepStalled, match="free CPU"):
        followed.watch.on_step_end(0, [])


def test_tune_gives_its_actors_the_jobs_own_environment_and_no_credentials() -> None:
    """Else Ray would start further workers for them, and the dashboard would show the credentials."""
    program = """
import os
os.environ["AWS_SECRET_ACCESS_KEY"] = "canary"
import jobs.trials
from jobs.blocks import WORKER_ENVIRONMENT
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS, ENV_VARS_TO_PROPAGATE
given = DEFAULT_ENV_VARS | {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
assert given == WORKER_ENVIRONMENT, given
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert WORKER_ENVIRONMENT
