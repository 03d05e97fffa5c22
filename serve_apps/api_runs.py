"""Runs as the API sees them: found, settled with their Ray job, started, stopped, and shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Annotated, Final, Literal

from fastapi import Path
from pydantic import Field

from cluster.api_keys import ApiKey
from cluster.ray_jobs import SUBMIT_TIMEOUT_S, Job, RayJobs, UnknownJob
from cluster.run_queue import Priority, QueueFull, time_left_s
from cluster.runs import (
    Progress,
    RunError,
    RunFolder,
    RunInfo,
    RunRecord,
    RunState,
    list_runs,
    open_run,
    prepare_run,
    settle,
    settle_with_job,
)
from serve_apps.api_access import Desk
from serve_apps.api_shapes import Nanoseconds, Shape
from serve_apps.api_submission import Submission, refusals
from serve_apps.problem import Problem

TURN_INTERVAL_S: Final = 1.0
UNKNOWN: Final = "UNKNOWN"

Stopping = Literal["REQUESTED", "STOPPED", "ALREADY"]

logger = logging.getLogger("ray.serve")


class FailureView(Shape):
    """Why a run failed."""

    field: str
    value: str
    rule: str
    message: str


class ProgressView(Shape):
    """How far a run is."""

    run_id: str = Field(examples=["20241122-093000-1a2b3c4d"])
    state: RunState
    ended: bool = Field(description="nothing more happens by itself")
    phase: str = Field(description="what the driver is doing", examples=["computing"])
    done_sets: int = Field(ge=0)
    total_sets: int = Field(ge=0)
    share: float = Field(ge=0, le=1, description="done share of the parameter sets")
    started_ns: Nanoseconds | None
    updated_ns: Nanoseconds
    time_left_s: float | None = Field(
        ge=0, description="at the pace so far; null before anything is done and at the end"
    )
    error: FailureView | None


class WaitingView(Shape):
    """A run's place in the queue."""

    place: int = Field(ge=1, description="by priority and time; users take turns, so another may start before")
    priority: Priority
    user: str
    queued_ns: Nanoseconds


class RecordView(Shape):
    """What a run is computed from: enough to repeat it bit for bit."""

    kind: Literal["sweep", "backtest"]
    created_ns: Nanoseconds
    product_id: str = Field(examples=["BTC-USD"])
    granularity: str = Field(examples=["FOUR_HOUR"])
    data_source: str = Field(description="SIMULATED, or where the bars came from", examples=["SIMULATED"])
    data_hash: str = Field(description="SHA-256 of the bars")
    bar_count: int
    first_ts_ns: Nanoseconds
    last_ts_ns: Nanoseconds
    spec_hash: str
    seed: int
    set_count: int
    dropped_count: int = Field(description="combinations that break a rule between parameters and are not run")
    look_ahead: bool = Field(description="fills use a price that was needed to decide them")
    git_revision: str
    git_dirty: bool
    code_hash: str
    versions: dict[str, str]


class RunView(Shape):
    """A run."""

    run_id: str = Field(examples=["20241122-093000-1a2b3c4d"])
    progress: ProgressView | None = Field(description="null where the run's folder is damaged")
    record: RecordView | None = Field(description="null where the run's folder is damaged")
    job_status: str | None = Field(
        description="the Ray job's status as far as it was asked: null for an ended run or where Ray does not answer, "
        "UNKNOWN where the cluster has no such job",
        examples=["RUNNING"],
    )
    waiting: WaitingView | None = Field(None, description="null where the run does not wait for its turn")


RunPath = Annotated[str, Path(description="a run's id", examples=["20241122-093000-1a2b3c4d"])]


def find_run(desk: Desk, run_id: str) -> RunFolder:
    """The run's folder; 404 where there is none."""
    try:
        return open_run(desk.runs_dir, run_id)
    except RunError:
        raise Problem(404, "UNKNOWN_RUN", f"there is no run {run_id!r}", {"run_id": run_id}) from None


def damaged(folder: RunFolder, error: RunError) -> Problem:
    """A run whose files cannot be read; which and why stands in the log."""
    logger.error("run %s: %s", folder.run_id, error)
    return Problem(500, "DAMAGED_RUN", f"a file of run {folder.run_id} is damaged or missing; the fault is logged")


def progress_of(folder: RunFolder) -> Progress:
    """What the folder says of the run; raises ``Problem`` where it is damaged."""
    try:
        return folder.progress()
    except RunError as error:
        raise damaged(folder, error) from None


async def settled(desk: Desk, folder: RunFolder) -> tuple[Progress, str | None]:
    """The run's progress and its job's status, corrected where the job ended without a word."""
    progress = progress_of(folder)
    if progress.state.ended:
        return progress, None
    try:
        job = await desk.ray.call(lambda jobs: jobs.latest(folder.run_id))
    except Problem:
        # Without Ray what the folder says stands; the next question asks again.
        return progress, None
    try:
        return await _settled_with(folder, job)
    except RunError as error:
        raise damaged(folder, error) from None


async def view_of(desk: Desk, folder: RunFolder) -> RunView:
    """The run as it is now."""
    progress, status = await settled(desk, folder)
    places = await asyncio.to_thread(_places, desk)
    try:
        return run_view(folder.run_id, folder.record(), progress, status, places.get(folder.run_id))
    except RunError as error:
        raise damaged(folder, error) from None


async def newest_runs(desk: Desk, limit: int) -> list[RunView]:
    """The newest runs; one question to Ray settles all of them."""
    infos = (await asyncio.to_thread(list_runs, desk.runs_dir))[:limit]
    if not any(info.progress and not info.progress.state.ended for info in infos):
        return [run_view(info.run_id, info.record, info.progress) for info in infos]
    places = await asyncio.to_thread(_places, desk)
    try:
        jobs = {job.submission_id: job for job in await desk.ray.call(RayJobs.list)}
    except Problem:
        return [run_view(info.run_id, info.record, info.progress, None, places.get(info.run_id)) for info in infos]
    return list(await asyncio.gather(*(_listed(desk, info, jobs.get(info.run_id), places) for info in infos)))


async def start_run(desk: Desk, submission: Submission, key: ApiKey) -> tuple[RunFolder, bool]:
    """Lay out the run and put it into the queue: (the folder, whether this was a repeat of an earlier submission).

    A repeat starts nothing that has begun before, whatever became of it; one that never began waits for its turn now.
    """
    repeat = (desk.runs_dir / submission.run_id).exists()
    if not repeat:
        with _full():
            await asyncio.to_thread(desk.queue.require_room, submission.run_id, user_of(key))
    with refusals():
        async with desk.preparing:
            folder = await asyncio.to_thread(
                prepare_run, desk.runs_dir, desk.store, submission.spec, submission.run_id, submission.kind
            )
    progress, status = await settled(desk, folder)
    never_begun = progress.started_ns is None and progress.state in {RunState.PENDING, RunState.FAILED}
    if never_begun and (not repeat or status in {UNKNOWN, None}):
        await _wait(desk, folder, key, submission.priority)
    return folder, repeat


async def resume_run(desk: Desk, folder: RunFolder, key: ApiKey) -> None:
    """Let a FAILED or STOPPED run wait for another turn, from its finished blocks; any other is left as it is."""
    progress, _ = await settled(desk, folder)
    if progress.state in {RunState.FAILED, RunState.STOPPED}:
        await _wait(desk, folder, key, again=True)


async def take_turns(desk: Desk) -> None:
    """Start waiting runs whenever there is room, until cancelled."""
    while True:
        with suppress(Problem):
            await _dispatch(desk)
        await asyncio.sleep(TURN_INTERVAL_S)


def user_of(key: ApiKey) -> str:
    """Whose runs are counted together: all keys of one person, or a key that is nobody's."""
    return key.person or key.key_id


async def _wait(
    desk: Desk, folder: RunFolder, key: ApiKey, priority: Priority = Priority.NORMAL, *, again: bool = False
) -> None:
    """Put the run into the queue; where there is room and Ray answers it starts at once."""
    with _full():
        await asyncio.to_thread(desk.queue.enqueue, folder, user_of(key), priority, again=again)
    with suppress(Problem):
        await _dispatch(desk)


async def _dispatch(desk: Desk) -> None:
    bars_dir, num_cpus = desk.store.root.resolve(), desk.settings.ray.driver_num_cpus
    if desk.queue.anything_waits():
        await desk.ray.call(lambda jobs: desk.queue.dispatch(jobs, bars_dir, num_cpus), timeout_s=SUBMIT_TIMEOUT_S + 5)


@contextmanager
def _full() -> Iterator[None]:
    try:
        yield
    except QueueFull as error:
        detail = f"{error.rule}; wait for one to start, or cancel one"
        raise Problem(429, "TOO_MANY_RUNS", detail, headers={"retry-after": "10"}) from None


def _places(desk: Desk) -> dict[str, WaitingView]:
    waiting = desk.queue.waiting()
    return {
        each.run_id: WaitingView(place=place, **each.ticket.model_dump(exclude={"again"}))
        for place, each in enumerate(waiting, 1)
    }


async def stop_run(desk: Desk, folder: RunFolder) -> tuple[Stopping, Progress]:
    """Ask the run's job to end, or take the run out of the queue: (what became of that, the run's progress now)."""
    if await asyncio.to_thread(desk.queue.withdraw, folder):
        # One that waits to go on has no job at work either.
        return "STOPPED", await asyncio.to_thread(settle, folder, RunState.STOPPED)
    progress, _ = await settled(desk, folder)
    if progress.state.ended:
        return "ALREADY", progress
    try:
        stopping = await desk.ray.call(lambda jobs: jobs.stop(_attempt(jobs, folder.run_id)))
    except UnknownJob:
        # Never handed over, or the cluster was made anew: there is nothing to stop but the run itself.
        return "STOPPED", await asyncio.to_thread(settle, folder, RunState.STOPPED)
    progress, _ = await settled(desk, folder)
    return "REQUESTED" if stopping and not progress.state.ended else "STOPPED", progress


def _attempt(jobs: RayJobs, run_id: str) -> str:
    """The id of the run's last job; raises ``UnknownJob``."""
    job = jobs.latest(run_id)
    if job is None:
        raise UnknownJob(run_id)
    return job.submission_id


def run_view(
    run_id: str,
    record: RunRecord | None,
    progress: Progress | None,
    job_status: str | None = None,
    waiting: WaitingView | None = None,
) -> RunView:
    """A run as shown."""
    return RunView(
        run_id=run_id,
        progress=progress_view(run_id, progress) if progress else None,
        record=RecordView.model_validate(record.model_dump(include=set(RecordView.model_fields))) if record else None,
        job_status=job_status,
        waiting=waiting,
    )


def progress_view(run_id: str, progress: Progress) -> ProgressView:
    """A run's progress as shown."""
    total = progress.total_sets
    return ProgressView(
        run_id=run_id,
        state=progress.state,
        ended=progress.state.ended,
        phase=progress.phase,
        done_sets=progress.done_sets,
        total_sets=total,
        share=min(1.0, round(progress.done_sets / total, 4)) if total else 0.0,
        started_ns=progress.started_ns,
        updated_ns=progress.updated_ns,
        time_left_s=time_left_s(progress, time.time_ns()),
        error=FailureView.model_validate(progress.error.model_dump()) if progress.error else None,
    )


async def _listed(desk: Desk, info: RunInfo, job: Job | None, places: Mapping[str, WaitingView]) -> RunView:
    if info.progress is None or info.progress.state.ended:
        return run_view(info.run_id, info.record, info.progress)
    folder = RunFolder(desk.runs_dir / info.run_id)
    try:
        progress, status = await _settled_with(folder, job)
    except RunError as error:
        logger.error("run %s: %s", info.run_id, error)  # noqa: TRY400 -- the text says it all
        return run_view(info.run_id, None, None)
    return run_view(info.run_id, info.record, progress, status, places.get(info.run_id))


async def _settled_with(folder: RunFolder, job: Job | None) -> tuple[Progress, str | None]:
    progress = await asyncio.to_thread(settle_with_job, folder, job)
    return progress, str(job.status) if job else UNKNOWN
