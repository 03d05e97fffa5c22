"""The queue of runs: who waits, in which order they start, and how many run at once, in all and of one user.

A run that waits has a ticket in its folder; there is no other state, so nothing is lost with a process and everything
may be repeated. ``dispatch`` starts what is due; whoever has a reason to look calls it (the API every second, a command
when it submits or follows), and of several at once one does the work.
"""

from __future__ import annotations

import fcntl
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.ray_jobs import Job, JobFieldError, RayJobs, RayJobsRefused
from cluster.run_folder import TICKET_FILE, Progress, RunError, RunFailure, RunFolder, RunState, replace_file, to_json
from conf.settings import QueueSettings

KINDS: Final = frozenset({"sweep", "backtest"})
"""What the metadata of a run's Ray job says it is; other jobs (live sessions) are not the queue's."""
SUBMITTED_BY: Final = "submitted_by"


class Priority(StrEnum):
    """Who starts first. Within a priority, users take turns and a user's runs start as they came."""

    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"


class Ticket(BaseModel):
    """Why a run waits (queue.json). ``again`` starts a run that has ended anew, from its finished blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    user: Annotated[str, Field(pattern=r"^[ -~]{1,100}$")]
    priority: Priority = Priority.NORMAL
    queued_ns: int = Field(ge=0)
    again: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """A run that waits."""

    run_id: str
    ticket: Ticket


class QueueFull(RunError):
    """A user has as many runs waiting as one may have."""


class NotWaiting(RunError):
    """The run has begun, has ended or was never queued."""


class RunQueue:
    """The waiting runs under ``runs_dir``."""

    def __init__(self, runs_dir: Path, limits: QueueSettings) -> None:
        self._runs_dir = runs_dir
        self._limits = limits

    def enqueue(
        self, folder: RunFolder, user: str, priority: Priority = Priority.NORMAL, *, again: bool = False
    ) -> Ticket:
        """Let the run wait for its turn; a run that waits already keeps its ticket. Raises ``QueueFull``."""
        with self._locked():
            if ticket := read_ticket(folder):
                return ticket
            try:
                ticket = Ticket(user=user, priority=priority, queued_ns=time.time_ns(), again=again)
            except ValidationError:
                raise RunError("user", user, "1 to 100 printable ASCII characters") from None
            self.require_room(folder.run_id, user)
            progress = folder.progress()
            if progress.state.ended:
                begun = {"state": RunState.PENDING, "updated_ns": ticket.queued_ns, "error": None}
                folder.write_progress(progress.model_copy(update=begun))
            replace_file(folder.ticket_file, to_json(ticket))
            return ticket

    def require_room(self, run_id: str, user: str) -> None:
        """Raise ``QueueFull`` where no other run of this user may wait."""
        if sum(each.ticket.user == user for each in self.waiting()) >= self._limits.waiting_per_user_max:
            rule = f"at most waiting_per_user_max = {self._limits.waiting_per_user_max} waiting runs of {user}"
            raise QueueFull("run_id", run_id, rule)

    def waiting(self) -> list[Waiting]:
        """Every run that waits, by priority and then by time; users' turns depend on who runs: see ``due``."""
        tickets = {folder.run_id: _readable(folder) for folder in self._ticketed()}
        return sorted((Waiting(name, ticket) for name, ticket in tickets.items() if ticket), key=_order)

    def anything_waits(self) -> bool:
        """Whether there is any ticket: what a look every second costs."""
        return bool(self._ticketed())

    def withdraw(self, folder: RunFolder) -> bool:
        """Take the run out of the queue; False where it was not in it (any more)."""
        with self._locked():
            if read_ticket(folder) is None:
                return False
            folder.ticket_file.unlink()
            return True

    def reprioritise(self, folder: RunFolder, priority: Priority) -> Ticket:
        """Give a waiting run another priority; raises ``NotWaiting``."""
        with self._locked():
            ticket = read_ticket(folder)
            if ticket is None:
                raise NotWaiting("run_id", folder.run_id, "a run that waits in the queue")
            ticket = ticket.model_copy(update={"priority": priority})
            replace_file(folder.ticket_file, to_json(ticket))
            return ticket

    def dispatch(self, jobs: RayJobs, bars_dir: Path, driver_num_cpus: float = 0.0) -> list[str]:
        """Start what is due; the ids of the runs started. Nothing where another process is at it.

        A killed caller leaves the ticket of the run it was starting: the next one starts it again, which Ray takes as
        a repeat. Raises ``RayJobsUnavailable``; a run that Ray refuses is marked FAILED and holds up nobody.
        """
        if not self._ticketed():
            return []
        with self._locked(wait=False) as locked:
            if not locked:
                return []
            for folder in self._ticketed():
                self._refuse_damaged(folder)
            chosen = due(self.waiting(), users_at_work(jobs.list()), self._limits)
            return [each.run_id for each in chosen if self._start(jobs, each, bars_dir, driver_num_cpus)]

    def _ticketed(self) -> list[RunFolder]:
        return [RunFolder(path.parent) for path in self._runs_dir.glob(f"*/{TICKET_FILE}")]

    def _refuse_damaged(self, folder: RunFolder) -> None:
        try:
            read_ticket(folder)
        except RunError as error:
            _refused(folder, error)
            folder.ticket_file.unlink(missing_ok=True)

    def _start(self, jobs: RayJobs, each: Waiting, bars_dir: Path, driver_num_cpus: float) -> bool:
        folder = RunFolder(self._runs_dir / each.run_id)
        try:
            record, progress = folder.record(), folder.progress()
            metadata = {
                "kind": record.kind,
                "product": record.product_id,
                SUBMITTED_BY: each.ticket.user,
                "priority": str(each.ticket.priority),
            }
            # Before the job is there: from then on its driver alone writes how far the run is.
            if progress.state is RunState.PENDING:
                folder.write_progress(progress.model_copy(update={"updated_ns": time.time_ns()}))
            asked = (each.run_id, folder.entrypoint(bars_dir), metadata, driver_num_cpus)
            if not each.ticket.again:
                jobs.submit(*asked)
            elif progress.state is not RunState.SUCCEEDED:
                # A study that was extended is to be computed although its last job has succeeded.
                jobs.resubmit(*asked, succeeded_too=True)
        except (RayJobsRefused, JobFieldError, RunError) as error:
            _refused(folder, error)
            folder.ticket_file.unlink(missing_ok=True)
            return False
        folder.ticket_file.unlink(missing_ok=True)
        return True

    @contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[bool]:
        self._runs_dir.mkdir(parents=True, exist_ok=True)
        with (self._runs_dir / ".queue.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def due(waiting: Sequence[Waiting], at_work: Mapping[str, int], limits: QueueSettings) -> list[Waiting]:
    """Which of ``waiting`` may start now, in the order of their start.

    ``at_work`` counts each user's runs at work. Of the highest priority that may start, the user with the fewest runs
    at work comes first, then who has waited longest. A user at the limit holds up nobody else.
    """
    running, left, chosen = Counter(at_work), list(waiting), []
    while sum(running.values()) < limits.runs_at_once_max:
        free = [each for each in left if running[each.ticket.user] < limits.runs_per_user_max]
        if not free:
            break
        first = min(free, key=lambda each: (_RANKS[each.ticket.priority], running[each.ticket.user], *_order(each)))
        chosen.append(first)
        left.remove(first)
        running[first.ticket.user] += 1
    return chosen


def users_at_work(jobs: Sequence[Job]) -> Counter[str]:
    """How many runs of each user are at work, as Ray tells."""
    ours = (job for job in jobs if not job.status.ended and job.metadata.get("kind") in KINDS)
    return Counter(job.metadata.get(SUBMITTED_BY, "") for job in ours)


def read_ticket(folder: RunFolder) -> Ticket | None:
    """The run's ticket; None where it does not wait. Raises ``RunError`` for a damaged one."""
    try:
        return Ticket.model_validate_json(folder.ticket_file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise RunError(folder.ticket_file.name, folder.run_id, f"a ticket ({error.errors()[0]['msg']})") from error


def time_left_s(progress: Progress, now_ns: int) -> float | None:
    """Seconds until the sets are done, at the pace so far; None where nothing is done yet or it has ended."""
    if progress.state.ended or not progress.done_sets or progress.started_ns is None:
        return None
    pace_s = (progress.updated_ns - progress.started_ns) / 1e9 / progress.done_sets
    return max(0.0, pace_s * (progress.total_sets - progress.done_sets) - (now_ns - progress.updated_ns) / 1e9)


def _readable(folder: RunFolder) -> Ticket | None:
    try:
        return read_ticket(folder)
    except RunError:
        return None  # it holds up nobody; the next dispatch marks the run


_RANKS: Final = {priority: rank for rank, priority in enumerate(Priority)}


def _order(each: Waiting) -> tuple[int, int, str]:
    return _RANKS[each.ticket.priority], each.ticket.queued_ns, each.run_id


def _refused(folder: RunFolder, error: Exception) -> None:
    failure = RunFailure(field="job", value=folder.run_id, rule="a job that Ray takes", message=str(error)[:2000])
    now_ns = time.time_ns()
    try:
        progress = folder.progress()
    except RunError:
        return  # a damaged folder says so itself
    folder.write_progress(
        progress.model_copy(update={"state": RunState.FAILED, "error": failure, "updated_ns": now_ns})
    )
