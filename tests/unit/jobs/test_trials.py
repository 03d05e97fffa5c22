"""How the sweep follows Tune's trials: what counts as done, as lost and as failed. Nothing of Ray is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
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
    recoverable: bool = False
    error_file: str | None = None
    last_result: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.5})

    @property
    def config(self) -> dict[str, Any]:
        return {"block": self.block.model_dump()}

    def should_recover(self) -> bool:
        return self.recoverable


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


def follow() -> Followed:
    blocks: list[tuple[int, float]] = []
    ends: list[str] = []
    plan = GridPlan([("sma_cross", np.zeros((2, 3))), ("sma_cross", np.zeros((3, 3)))])
    watch = Watch(plan, lambda block, seconds: blocks.append((block.start, seconds)), lambda: ends.append("end"))
    return Followed(plan, watch, blocks, ends)


def test_the_end_is_reported_once_after_the_last_block() -> None:
    followed = follow()
    one, other = followed.next(), followed.next()
    for block in (other, one):
        assert followed.ends == []
        followed.watch.on_trial_complete(0, [], TrialStub(block))
        followed.watch.on_step_end(0, [])
    followed.watch.on_step_end(0, [])
    assert followed.blocks == [(2, 0.5), (0, 0.5)]
    assert followed.ends == ["end"]


def test_a_block_whose_actor_was_gone_before_it_began_is_given_to_another() -> None:
    """Tune gives such a trial up whatever max_failures; a sweep failed when an idle worker was killed."""
    followed = follow()
    one, other = followed.next(), followed.next()
    followed.watch.on_trial_error(0, [], TrialStub(one, recoverable=True))
    followed.watch.on_trial_complete(0, [], TrialStub(other))
    followed.watch.on_step_end(0, [])
    assert followed.ends == []
    assert followed.next() == one


def test_a_block_that_is_lost_over_and_over_ends_the_sweep() -> None:
    followed = follow()
    for _ in range(trials.LOSSES_MAX):
        followed.watch.on_step_end(0, [])
        followed.watch.on_trial_error(0, [], TrialStub(followed.next(), recoverable=True))
    with pytest.raises(BlockFailed, match="block 0-2 failed"):
        followed.watch.on_step_end(0, [])


def test_a_block_that_failed_too_often_ends_the_sweep_with_its_reason(tmp_path: Any) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Traceback ...\n  File x\nstrategies.backtest.AccountingError: sma_cross at bar 7: no number\n\n")
    followed = follow()
    followed.watch.on_trial_error(0, [], TrialStub(followed.next(), error_file=str(file)))
    with pytest.raises(BlockFailed, match=r"block 0-2 failed 3 times: .*AccountingError: sma_cross at bar 7"):
        followed.watch.on_step_end(0, [])


@pytest.mark.parametrize("error_file", [None, "/nowhere/error.txt"])
def test_a_failure_without_a_reason_says_so(error_file: str | None) -> None:
    followed = follow()
    followed.watch.on_trial_error(0, [], TrialStub(followed.next(), error_file=error_file))
    with pytest.raises(BlockFailed, match="no reason is known"):
        followed.watch.on_step_end(0, [])


def test_a_sweep_that_does_not_move_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = follow()
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
