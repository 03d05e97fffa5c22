"""Backtests: submit, list, status, cancel, resume. Progress and results have rooms of their own."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Header, Query, Response
from pydantic import Field

from cluster.run_queue import NotWaiting, Priority
from cluster.runs import RunState
from serve_apps.api_access import GuardedRoute, Reader, Researcher, TheDesk
from serve_apps.api_problems import problems
from serve_apps.api_runs import (
    RunPath,
    RunView,
    Stopping,
    find_run,
    newest_runs,
    resume_run,
    start_run,
    stop_run,
    view_of,
)
from serve_apps.api_shapes import Shape
from serve_apps.api_submission import read_submission, refusals
from serve_apps.problem import Problem

router = APIRouter(prefix="/v1/backtests", tags=["backtests"], route_class=GuardedRoute)

LISTED_MAX: Final = 500

_SUBMISSION_SCHEMA: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "title": "Submission",
                    "anyOf": [
                        {"$ref": "#/components/schemas/SweepSubmission"},
                        {"$ref": "#/components/schemas/BacktestSubmission"},
                    ],
                },
                "examples": {
                    "sweep": {
                        "value": {
                            "product_id": "BTC-USD",
                            "granularity": "ONE_HOUR",
                            "grids": [
                                {
                                    "strategy": "sma_cross",
                                    "grid": {"fast": [5, 10], "slow": {"start": 20, "stop": 60, "step": 10}},
                                }
                            ],
                        }
                    },
                    "backtest": {
                        "value": {
                            "backtest": {
                                "product_id": "BTC-USD",
                                "granularity": "ONE_HOUR",
                                "strategy": "sma_cross",
                                "params": {"fast": 10, "slow": 30},
                            }
                        }
                    },
                },
            }
        },
    }
}


class Runs(Shape):
    """Runs, newest first."""

    runs: list[RunView]


class Wanted(Shape):
    """Another priority."""

    priority: Priority


class Cancellation(Shape):
    """What became of a request to cancel."""

    run_id: str
    cancel: Stopping = Field(
        description="REQUESTED: the job was told and ends within seconds. STOPPED: no job was running. "
        "ALREADY: the run had ended before"
    )
    state: RunState = Field(description="the run's state now")


@router.post(
    "",
    status_code=202,
    responses=problems(404, 409, 429, _409="the id was used for another specification"),
    openapi_extra=_SUBMISSION_SCHEMA,
)
async def submit_backtest(
    desk: TheDesk,
    key: Researcher,
    response: Response,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[
        str | None, Header(description="any text; a repeat with the same one is the same run")
    ] = None,
) -> RunView:
    """Check a specification and put it into the queue: it starts as a Ray job when it is its turn, often at once.

    With ``run_id`` or ``Idempotency-Key`` a repeat is harmless: it answers with the same run (header
    ``Idempotent-Replayed: true``), or 409 where the specification is another one. Without either, two equal
    submissions within a second are one.
    """
    with refusals():
        async with desk.preparing:
            submission = await asyncio.to_thread(read_submission, body, idempotency_key, key.key_id)
    folder, repeat = await start_run(desk, submission, key)
    response.headers["location"] = f"/v1/backtests/{folder.run_id}"
    if repeat:
        response.headers["idempotent-replayed"] = "true"
    return await view_of(desk, folder)


@router.get("", responses=problems())
async def list_backtests(
    desk: TheDesk, _: Reader, limit: Annotated[int, Query(ge=1, le=LISTED_MAX, description="at most so many")] = 50
) -> Runs:
    """The newest runs."""
    return Runs(runs=await newest_runs(desk, limit))


@router.get("/{run_id}", responses=problems(404))
async def show_backtest(desk: TheDesk, _: Reader, run_id: RunPath) -> RunView:
    """State, progress and provenance of one run."""
    return await view_of(desk, find_run(desk, run_id))


@router.post("/{run_id}/priority", responses=problems(404, 409))
async def prioritise_backtest(
    desk: TheDesk, _: Researcher, run_id: RunPath, wanted: Annotated[Wanted, Body()]
) -> RunView:
    """Give a run that waits for its turn another priority; 409 where it does not wait."""
    folder = find_run(desk, run_id)
    try:
        await asyncio.to_thread(desk.queue.reprioritise, folder, wanted.priority)
    except NotWaiting:
        raise Problem(409, "NOT_WAITING", f"run {run_id} has begun or has ended", {"run_id": run_id}) from None
    return await view_of(desk, folder)


@router.post("/{run_id}/cancel", responses=problems(404))
async def cancel_backtest(desk: TheDesk, _: Researcher, run_id: RunPath) -> Cancellation:
    """Stop a run. What is finished stays, and the run can be resumed."""
    folder = find_run(desk, run_id)
    outcome, progress = await stop_run(desk, folder)
    return Cancellation(run_id=run_id, cancel=outcome, state=progress.state)


@router.post("/{run_id}/resume", status_code=202, responses=problems(404, 429))
async def resume_backtest(desk: TheDesk, key: Researcher, run_id: RunPath) -> RunView:
    """Start a failed or stopped run again: it goes on from its finished blocks. Any other run is left as it is."""
    folder = find_run(desk, run_id)
    await resume_run(desk, folder, key)
    return await view_of(desk, folder)
