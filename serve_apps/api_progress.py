"""A run's progress as it happens, as server-sent events: snapshots, so that a reconnect loses nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from cluster.runs import Progress, RunFolder
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk
from serve_apps.api_problems import problems
from serve_apps.api_runs import ProgressView, RunPath, find_run, progress_of, progress_view, settled
from serve_apps.problem import Problem

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/backtests", tags=["backtests"], route_class=GuardedRoute)


@dataclass(frozen=True)
class Rhythm:
    """How often a progress stream looks and speaks, and how long it lives; seconds."""

    look_s: float = 0.5
    ask_ray_s: float = 5.0
    keep_alive_s: float = 15.0
    life_s: float = 600.0


RHYTHM: Final = Rhythm()


@router.get(
    "/{run_id}/progress",
    response_class=StreamingResponse,
    responses={
        **problems(404, 429),
        200: {
            "description": "Server-sent events: `id` is the progress' `updated_ns`, `data` a ProgressView as JSON. "
            "The stream ends with the run, or after ten minutes: reconnect, the first event is always the state now.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "Last-Event-ID is the end of the run: there is nothing more to come."},
    },
)
async def follow_backtest(
    desk: TheDesk,
    _: Reader,
    run_id: RunPath,
    last_event_id: Annotated[str | None, Header(description="sent by a browser that reconnects")] = None,
) -> Response:
    """The run's progress as it happens."""
    folder = find_run(desk, run_id)
    progress, _status = await settled(desk, folder)
    if progress.state.ended and last_event_id == str(progress.updated_ns):
        # A browser reconnects for ever to a stream that ended; 204 is how it is told to stop.
        return Response(status_code=204)
    if desk.streams.locked():
        raise Problem(429, "TOO_MANY_STREAMS", "too many progress streams are open", headers={"retry-after": "5"})
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(progress_events(desk, folder, RHYTHM), media_type="text/event-stream", headers=headers)


async def progress_events(desk: Desk, folder: RunFolder, rhythm: Rhythm) -> AsyncIterator[str]:
    """The run's progress whenever it changes, a comment where nothing does, until its end or the stream's."""
    now = asyncio.get_running_loop().time
    ends_at, ask_at, spoke_at = now() + rhythm.life_s, now() + rhythm.ask_ray_s, now()
    last: Progress | None = None
    async with desk.streams:
        yield "retry: 2000\n\n"
        while now() < ends_at:
            # A driver that was killed says nothing; its job's status tells, asked now and then.
            due = now() >= ask_at
            try:
                progress = (await settled(desk, folder))[0] if due else progress_of(folder)
            except Problem as problem:
                logger.warning("progress of %s ends: %s", folder.run_id, problem.detail)
                return
            if due:
                ask_at = now() + rhythm.ask_ray_s
            if progress != last:
                last, spoke_at = progress, now()
                yield _event(progress_view(folder.run_id, progress))
            if progress.state.ended:
                return
            if now() - spoke_at >= rhythm.keep_alive_s:
                spoke_at = now()
                yield ": keep-alive\n\n"
            await asyncio.sleep(rhythm.look_s)
        yield ": reconnect\n\n"


def _event(progress: ProgressView) -> str:
    return f"id: {progress.updated_ns}\ndata: {progress.model_dump_json()}\n\n"
