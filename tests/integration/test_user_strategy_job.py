"""A user's own strategy as a Ray job: its driver is a process that has only the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from cluster.ray_jobs import JobStatus
from cluster.runs import RunState, prepare_run
from strategies.model import Granularity
from strategies.user_file import load, read
from tests.ray_head import ray_head
from tests.run_samples import make_spec, make_store, wavy_bars
from tests.strategy_files import GOOD, TARGET, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WAIT_S: Final = 400.0


def test_a_job_computes_a_users_strategy_and_tells_what_goes_wrong_in_it(tmp_path: Path) -> None:
    store = make_store(tmp_path / "bars", wavy_bars(20_000, granularity=Granularity.ONE_MINUTE))
    right = load(read(written(tmp_path)))
    # Right for small windows, and so for whatever was tried first.
    wrong = load(
        read(written(tmp_path, GOOD.replace(TARGET, "    target = slow.ring[70] if vector[0] > 6 else 0.0\n")))
    )
    (tmp_path / "my_strategy.py").unlink()
    axes = {"fast": {"start": 2, "stop": 30, "step": 4}, "slow": {"start": 31, "stop": 66, "step": 5}}
    runs = tmp_path / "runs"
    specs = {
        "right": make_spec(granularity="ONE_MINUTE", grids=[{"strategy": right.name, "grid": axes}]),
        "wrong": make_spec(granularity="ONE_MINUTE", grids=[{"strategy": wrong.name, "grid": axes}]),
    }
    with ray_head() as head:
        for name, spec in specs.items():
            folder = prepare_run(runs, store, spec, name)
            job = head.jobs.submit(folder.run_id, folder.entrypoint(store.root), {"kind": "sweep"})
            ended = head.jobs.wait(job, WAIT_S)
            progress, log = folder.progress(), head.jobs.logs(job)
            if name == "right":
                assert (ended.status, progress.state) == (JobStatus.SUCCEEDED, RunState.SUCCEEDED), log
                assert progress.done_sets == 8 * 8
                assert folder.leaderboard(1)[0]["strategy"] == right.name
            else:
                assert progress.state is RunState.FAILED, log
                assert progress.error is not None
                assert "my_strategy.py, line 36: on_bar at bar 0 with fast=" in progress.error.message
                assert "IndexError" in progress.error.message
