"""Live sessions over HTTP: start, list, watch, stop, go on. A session is a Ray job that trades with a key of its own.

That key is made when the session starts, for its account and its strategy alone, in the name of whoever started it; it
ends with the key it was made by at the latest, and is revoked when the session is seen to have ended.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, TypeVar

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from cluster.api_keys import READ, TRADE, ApiKey, ApiKeyError, revoke_key
from cluster.ray_jobs import SUBMIT_TIMEOUT_S, Job, RayJobs
from cluster.run_folder import RunConflict, RunError, RunState, UnknownRun
from cluster.session_journal import JournalError, read_page
from cluster.sessions import (
    JOB_PREFIX,
    LISTED_MAX,
    SESSION_ID,
    SessionFolder,
    SessionInfo,
    SessionRecord,
    SessionSpec,
    SessionStatus,
    StopRequest,
    list_sessions,
    open_session,
    prepare_session,
    require_alone,
    sessions_path,
    settle,
    settle_with_job,
)
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, Trader, account_snapshot
from serve_apps.api_problems import invalid_request, problems
from serve_apps.api_runs import FailureView
from serve_apps.api_shapes import Decimals, Nanoseconds, Shape
from serve_apps.problem import Problem, forbidden

router = APIRouter(prefix="/v1/sessions", tags=["sessions"], route_class=GuardedRoute)

# Each is a process of its own beside its job's supervisor, some 300 MB together.
SESSIONS_AT_ONCE_MAX: Final = 8
LINES_MAX: Final = 1_000
UNKNOWN: Final = "UNKNOWN"

T = TypeVar("T")

logger = logging.getLogger("ray.serve")

SessionPath = Annotated[str, Path(description="a session's id", examples=["20261122-093000-1a2b3c4d"])]


class SessionSubmission(SessionSpec):
    """A session, and optionally the id it shall have."""

    session_id: Annotated[str, Field(pattern=SESSION_ID)] | None = Field(
        None, description="the caller's own id; a repeat of it is the same session"
    )


class SessionFigures(Shape):
    """How a session does. Money in quote units, quantities in base units."""

    bars: int = Field(description="bars met, history included")
    live_bars: int
    last_bar_ns: Nanoseconds | None = Field(description="start of the newest bar")
    target: float | None = Field(description="what the strategy wants now, -1 to 1; null: warming up")
    position: Decimals = Field(description="of the session's own fills")
    cash: Decimals
    equity: Decimals = Field(description="at the newest bar's close")
    fees: Decimals
    orders: int = Field(description="decided")
    accepted: int
    denied: int
    filled: int
    skipped: int = Field(description="changes of target that came too late for an order, or met an open one")
    corrections: int = Field(description="bars that the venue changed, or brought, after they were final")
    open_order: str | None


class SessionView(Shape):
    """A session."""

    session_id: str
    state: RunState | None = Field(description="null where the folder is damaged")
    ended: bool
    phase: str
    problem: str = Field(description="what keeps it waiting just now; empty: nothing")
    error: FailureView | None
    created_ns: Nanoseconds | None
    updated_ns: Nanoseconds | None = Field(description="of the last change")
    alive_ns: Nanoseconds | None = Field(description="the last sign of life")
    data_source: str
    person: str = Field(description="in whose name it trades")
    spec: SessionSpec | None
    figures: SessionFigures | None
    job_status: str | None = Field(
        description="the Ray job's status as far as it was asked: null for an ended session or where Ray does not "
        "answer, UNKNOWN where the cluster has no such job"
    )


class Sessions(Shape):
    """Sessions, newest first."""

    sessions: list[SessionView]


class StopSession(Shape):
    """How a session shall end."""

    flatten: bool = Field(False, description="close its position first")


class SessionStopping(Shape):
    """What became of a request to stop."""

    session_id: str
    stop: Literal["REQUESTED", "STOPPED", "ALREADY"] = Field(
        description="REQUESTED: it ends within seconds. STOPPED: no process was at work. ALREADY: it had ended before"
    )
    state: RunState


class JournalView(Shape):
    """Lines of a session's journal: bars with their targets, orders, corrections, notes."""

    lines: list[dict[str, Any]]
    next: int = Field(description="the place to ask from for what comes behind these lines")


@router.post(
    "",
    status_code=202,
    responses=problems(
        404,
        429,
        _409="SESSION_CONFLICT: the id is another specification's, or such a session is running",
    ),
)
async def start_session(desk: TheDesk, key: Trader, response: Response, body: SessionSubmission) -> SessionView:
    """Start a strategy on live bars. A repeat of an id is the same session (Idempotent-Replayed: true)."""
    spec = SessionSpec.model_validate(body.model_dump(exclude={"session_id"}))
    if not key.may(TRADE, spec.account, spec.order_strategy):
        raise forbidden(TRADE, spec.account)
    await _require_limits(desk, key, spec)
    folder, repeat = await _prepared(desk, key, spec, body.session_id)
    if repeat and not key.may(TRADE, spec.account):
        raise forbidden(TRADE, spec.account)
    async with desk.starting:
        status = _read(folder, folder.status)
        if status.state is RunState.PENDING and status.started_ns is None:
            if not folder.key_file.exists():
                await _give_key(desk, folder, key, spec)
            await _submit(desk, folder, key)
    response.headers["location"] = f"/v1/sessions/{folder.session_id}"
    if repeat:
        response.headers["idempotent-replayed"] = "true"
    return await _view_of(desk, folder)


@router.get("", responses=problems())
async def list_all_sessions(
    desk: TheDesk, key: Reader, limit: Annotated[int, Query(ge=1, le=LISTED_MAX, description="at most so many")] = 50
) -> Sessions:
    """The newest sessions of the accounts the key covers."""
    infos = await asyncio.to_thread(list_sessions, sessions_path(desk.settings))
    mine = [info for info in infos if info.spec is None or key.may(READ, info.spec.account)][:limit]
    jobs = await _jobs(desk) if any(info.status and not info.status.state.ended for info in mine) else None
    return Sessions(sessions=list(await asyncio.gather(*(_listed(desk, info, jobs) for info in mine))))


@router.get("/{session_id}", responses=problems(404))
async def show_session(desk: TheDesk, key: Reader, session_id: SessionPath) -> SessionView:
    """State, figures and specification of one session."""
    folder = _find(desk, session_id)
    _require(key, READ, folder)
    return await _view_of(desk, folder)


@router.get("/{session_id}/journal", responses=problems(404))
async def show_journal(
    desk: TheDesk,
    key: Reader,
    session_id: SessionPath,
    after: Annotated[int | None, Query(ge=0, description="`next` of an earlier answer; absent: the newest")] = None,
    limit: Annotated[int, Query(ge=1, le=LINES_MAX)] = 100,
) -> JournalView:
    """What the session met and did, in order."""
    folder = _find(desk, session_id)
    _require(key, READ, folder)
    checkpoint = _read(folder, folder.checkpoint)
    length = checkpoint.journal_bytes if checkpoint else 0
    try:
        lines, behind = await asyncio.to_thread(read_page, folder.journal_file, length, after, limit)
    except JournalError as error:
        if error.field == "after":
            raise invalid_request("after", after, error.rule) from None
        raise _damaged(folder, error) from None
    return JournalView(lines=lines, next=behind)


@router.post("/{session_id}/stop", responses=problems(404))
async def stop_session(
    desk: TheDesk, key: Trader, session_id: SessionPath, body: StopSession | None = None
) -> SessionStopping:
    """Let a session end. Its position stays unless it shall be closed; the session can be resumed."""
    folder = _find(desk, session_id)
    _require(key, TRADE, folder)
    status, _ = await _settled(desk, folder)
    if status.state.ended:
        return SessionStopping(session_id=session_id, stop="ALREADY", state=status.state)
    request = StopRequest(by=key.key_id, at_ns=time.time_ns(), flatten=body.flatten if body else False)
    await asyncio.to_thread(folder.write_stop, request)
    try:
        job = await desk.ray.call(lambda jobs: jobs.latest(folder.job_id))
    except Problem:
        # Without Ray: the process, where there is one, reads the request all the same.
        return SessionStopping(session_id=session_id, stop="REQUESTED", state=status.state)
    if job is None or job.status.ended:
        status = await asyncio.to_thread(settle, folder, RunState.STOPPED)
        await _retire_key(desk, folder, status)
    stop: Literal["REQUESTED", "STOPPED"] = "STOPPED" if status.state.ended else "REQUESTED"
    return SessionStopping(session_id=session_id, stop=stop, state=status.state)


@router.post(
    "/{session_id}/resume",
    status_code=202,
    responses=problems(404, 429, _409="SESSION_CONFLICT: such a one is running"),
)
async def resume_session(desk: TheDesk, key: Trader, session_id: SessionPath) -> SessionView:
    """Start a failed or stopped session again: it goes on behind its last bar. Any other is left as it is."""
    folder = _find(desk, session_id)
    spec = _require(key, TRADE, folder)
    async with desk.starting:
        status, _ = await _settled(desk, folder)
        if status.state in {RunState.FAILED, RunState.STOPPED}:
            await _require_limits(desk, key, spec)
            await _require_room(desk)
            with _refusals():
                await asyncio.to_thread(require_alone, folder.path.parent, folder.session_id, spec)
            await _give_key(desk, folder, key, spec)
            await asyncio.to_thread(_reopen, folder)
            await _submit(desk, folder, key, again=True)
    return await _view_of(desk, folder)


# -- folders -----------------------------------------------------------------------------------------------------------


def _find(desk: Desk, session_id: str) -> SessionFolder:
    try:
        return open_session(sessions_path(desk.settings), session_id)
    except RunError:
        raise Problem(
            404, "UNKNOWN_SESSION", f"there is no session {session_id!r}", {"session_id": session_id}
        ) from None


def _require(key: ApiKey, scope: str, folder: SessionFolder) -> SessionSpec:
    """The session's specification; 403 where the key does not cover it."""
    spec = _read(folder, folder.spec)
    if not key.may(scope, spec.account, spec.order_strategy if scope == TRADE else None):
        raise forbidden(scope, spec.account)
    return spec


def _read(folder: SessionFolder, work: Callable[[], T]) -> T:
    try:
        return work()
    except (RunError, ValueError, OSError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: SessionFolder, error: Exception) -> Problem:
    logger.error("session %s: %s", folder.session_id, error)
    detail = f"a file of session {folder.session_id} is damaged or missing; the fault is logged"
    return Problem(500, "DAMAGED_SESSION", detail)


def _reopen(folder: SessionFolder) -> None:
    """Nobody wants it to end any more."""
    folder.stop_file.unlink(missing_ok=True)
    update = {"state": RunState.PENDING, "phase": "resuming", "error": None, "updated_ns": time.time_ns()}
    folder.write_status(folder.status().model_copy(update=update))


# -- starting ----------------------------------------------------------------------------------------------------------


async def _require_limits(desk: Desk, key: ApiKey, spec: SessionSpec) -> None:
    """422 where the account has no limits for the strategy or the product: every order would be denied."""
    snapshot = await account_snapshot(desk, key, spec.account, TRADE)
    wanted = (("trades_as", "strategy", spec.order_strategy), ("product_id", "product", spec.product_id))
    for field, kind, name in wanted:
        if f"{kind}|{name}" not in snapshot.limits:
            known = sorted(scope.partition("|")[2] for scope in snapshot.limits if scope.startswith(f"{kind}|"))
            rule = f"one of account {spec.account}'s limits: {', '.join(known)}"
            raise Problem(422, "INVALID_SPEC", f"{field}: expected {rule}, was {name!r}", _broken(field, name, rule))


async def _prepared(desk: Desk, key: ApiKey, spec: SessionSpec, session_id: str | None) -> tuple[SessionFolder, bool]:
    folder_there = session_id is not None and (sessions_path(desk.settings) / session_id).exists()
    if not folder_there:
        await _require_room(desk)
    source = desk.settings.data_source
    with _refusals():
        async with desk.preparing:
            return await asyncio.to_thread(
                prepare_session, sessions_path(desk.settings), spec, session_id, source, person=key.person
            )


async def _require_room(desk: Desk) -> None:
    listed = await desk.ray.call(RayJobs.list)
    active = sum(job.submission_id.startswith(JOB_PREFIX) and not job.status.ended for job in listed)
    if active >= SESSIONS_AT_ONCE_MAX:
        detail = f"{active} sessions are at work and at most {SESSIONS_AT_ONCE_MAX} may be; stop one first"
        raise Problem(429, "TOO_MANY_SESSIONS", detail, headers={"retry-after": "10"})


async def _give_key(desk: Desk, folder: SessionFolder, key: ApiKey, spec: SessionSpec) -> None:
    """A key for this session alone, in the name of who started it; the one before it is revoked."""
    await _revoke(desk, folder, key.key_id)
    own = await desk.keys.make(
        f"session {folder.session_id}",
        [READ, TRADE],
        [spec.account],
        person=key.person,
        strategies=[spec.order_strategy],
        expires_ns=key.expires_ns,
        by=key.key_id,
    )
    await asyncio.to_thread(folder.write_key, own.get_secret_value())


async def _retire_key(desk: Desk, folder: SessionFolder, status: SessionStatus) -> None:
    if status.state.ended and folder.key_file.exists():
        await _revoke(desk, folder, "session ended")
        folder.key_file.unlink(missing_ok=True)


async def _revoke(desk: Desk, folder: SessionFolder, by: str) -> None:
    if not folder.key_file.exists():
        return
    match = re.fullmatch(r"tt_([0-9a-f]{12})_\S+\s*", folder.key_file.read_text(errors="replace"))
    if match:
        try:
            await revoke_key(desk.ledger, match[1], by)
        except ApiKeyError:
            logger.warning("session %s: its key is not known any more", folder.session_id)


async def _submit(desk: Desk, folder: SessionFolder, key: ApiKey, *, again: bool = False) -> None:
    metadata = {"kind": "session", "submitted_by": key.key_id}

    def work(jobs: RayJobs) -> str:
        asked = (folder.job_id, folder.entrypoint(), metadata, desk.settings.ray.driver_num_cpus)
        # The job of a session that was stopped has done what it was told: Ray calls that a success.
        return jobs.resubmit(*asked, succeeded_too=True) if again else jobs.submit(*asked)

    try:
        await desk.ray.call(work, timeout_s=SUBMIT_TIMEOUT_S + 5)
    except Problem as problem:
        detail = f"{problem.detail}; session {folder.session_id} is laid out, repeat with this session_id"
        extra = {"session_id": folder.session_id}
        raise Problem(problem.status, problem.code, detail, extra, problem.headers) from None


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except RunConflict as error:
        extra = _broken(error.field, error.value, error.rule)
        raise Problem(409, "SESSION_CONFLICT", str(error), extra) from None
    except UnknownRun as error:
        raise Problem(404, "UNKNOWN_SESSION", str(error)) from None
    except RunError as error:
        raise Problem(422, "INVALID_SPEC", str(error), _broken(error.field, error.value, error.rule)) from None


def _broken(field: str, value: str, rule: str) -> dict[str, str]:
    return {"field": field, "value": value, "rule": rule}


# -- as shown ----------------------------------------------------------------------------------------------------------


async def _settled(desk: Desk, folder: SessionFolder) -> tuple[SessionStatus, str | None]:
    """The status and the job's, corrected where the job ended without a word; an ended session's key is revoked."""
    status = _read(folder, folder.status)
    if status.state.ended:
        await _retire_key(desk, folder, status)
        return status, None
    try:
        job = await desk.ray.call(lambda jobs: jobs.latest(folder.job_id))
    except Problem:
        return status, None
    return await _settled_with(desk, folder, job)


async def _settled_with(desk: Desk, folder: SessionFolder, job: Job | None) -> tuple[SessionStatus, str | None]:
    status = await asyncio.to_thread(_read, folder, lambda: settle_with_job(folder, job))
    await _retire_key(desk, folder, status)
    return status, str(job.status) if job else UNKNOWN


async def _view_of(desk: Desk, folder: SessionFolder) -> SessionView:
    status, job_status = await _settled(desk, folder)
    spec, record = _read(folder, lambda: (folder.spec(), folder.record()))
    return _view(folder, spec, record, status, job_status)


async def _listed(desk: Desk, info: SessionInfo, jobs: dict[str, Job] | None) -> SessionView:
    folder = SessionFolder(sessions_path(desk.settings) / info.session_id)
    if info.status is None or info.status.state.ended or jobs is None:
        return _view(folder, info.spec, info.record, info.status, None)
    try:
        # A resumed session has had several jobs: the newest is asked for by name where the first has ended.
        first = jobs.get(folder.job_id)
        again = first is not None and first.status.ended
        job = await desk.ray.call(lambda calls: calls.latest(folder.job_id)) if again else first
        status, job_status = await _settled_with(desk, folder, job)
    except Problem:
        return _view(folder, info.spec, info.record, info.status, None)
    return _view(folder, info.spec, info.record, status, job_status)


async def _jobs(desk: Desk) -> dict[str, Job] | None:
    try:
        return {job.submission_id: job for job in await desk.ray.call(RayJobs.list)}
    except Problem:
        return None


def _view(
    folder: SessionFolder,
    spec: SessionSpec | None,
    record: SessionRecord | None,
    status: SessionStatus | None,
    job_status: str | None,
) -> SessionView:
    return SessionView(
        session_id=folder.session_id,
        state=status.state if status else None,
        ended=status.state.ended if status else True,
        phase=status.phase if status else "damaged",
        problem=status.problem if status else "",
        error=FailureView.model_validate(status.error.model_dump()) if status and status.error else None,
        created_ns=record.created_ns if record else None,
        updated_ns=status.updated_ns if status else None,
        alive_ns=folder.beaten_ns() if status else None,
        data_source=record.data_source if record else "",
        person=record.person if record else "",
        spec=spec,
        figures=_figures(status) if status else None,
        job_status=job_status,
    )


def _figures(status: SessionStatus) -> SessionFigures:
    names = set(SessionFigures.model_fields) - {"last_bar_ns"}
    return SessionFigures(last_bar_ns=status.last_ts_ns, **{name: getattr(status, name) for name in names})
