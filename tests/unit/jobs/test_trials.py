"""How the sweep follows Tune's trials: what counts as done, as lost and as failed. Nothing of Ray is started."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobs import trials
from jobs.blocks import WORKER_ENVIRONMENT
from jobs.trials import BlockFailed, SweepStalled, _Watch


@dataclass
class TrialStub:
    """What the watch reads of a trial."""

    block: int
    recoverable: bool = False
    error_file: str | None = None
    last_result: dict[str, Any] = field(default_factory=lambda: {"seconds": 0.5})

    @property
    def config(self) -> dict[str, Any]:
        return {"block": self.block}

    def should_recover(self) -> bool:
        return self.recoverable


@dataclass
class Followed:
    """A watch over some blocks and what it has reported."""

    watch: _Watch
    blocks: list[tuple[int, float]]
    ends: list[str]


def follow(*indices: int) -> Followed:
    blocks: list[tuple[int, float]] = []
    ends: list[str] = []
    watch = _Watch(indices, lambda index, seconds: blocks.append((index, seconds)), lambda: ends.append("end"))
    return Followed(watch, blocks, ends)


def test_the_end_is_reported_once_after_the_last_block() -> None:
    followed = follow(3, 5)
    for index in (5, 3):
        assert followed.ends == []
        followed.watch.on_trial_complete(0, [], TrialStub(index))
        followed.watch.on_step_end(0, [])
    followed.watch.on_step_end(0, [])
    assert followed.blocks == [(5, 0.5), (3, 0.5)]
    assert followed.ends == ["end"]


def test_a_block_whose_actor_was_gone_before_it_began_stays_open_for_another_round() -> None:
    """Tune gives such a trial up whatever max_failures; a sweep failed when an idle worker was killed."""
    followed = follow(1, 2)
    followed.watch.on_trial_error(0, [], TrialStub(2, recoverable=True))
    followed.watch.on_trial_complete(0, [], TrialStub(1))
    followed.watch.on_step_end(0, [])
    assert followed.watch.open_blocks == {2}
    assert followed.ends == []


def test_a_block_that_failed_too_often_ends_the_sweep_with_its_reason(tmp_path: Any) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Traceback ...\n  File x\nstrategies.backtest.AccountingError: sma_cross at bar 7: no number\n\n")
    followed = follow(1)
    followed.watch.on_trial_error(0, [], TrialStub(1, error_file=str(file)))
    with pytest.raises(BlockFailed, match=r"block 1 failed 3 times: .*AccountingError: sma_cross at bar 7"):
        followed.watch.on_step_end(0, [])


@pytest.mark.parametrize("error_file", [None, "/nowhere/error.txt"])
def test_a_failure_without_a_reason_says_so(error_file: str | None) -> None:
    followed = follow(1)
    followed.watch.on_trial_error(0, [], TrialStub(1, error_file=error_file))
    with pytest.raises(BlockFailed, match="no reason is known"):
        followed.watch.on_step_end(0, [])


def test_a_sweep_that_does_not_move_ends_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = follow(1)
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
