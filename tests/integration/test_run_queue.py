"""The queue of runs: order, limits, turns, and what a crash, a refusal or a damaged ticket leaves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.ray_jobs import RayJobsUnavailable
from cluster.run_folder import RunError, RunFolder, RunState
from cluster.run_queue import NotWaiting, Priority, QueueFull, RunQueue, Ticket, Waiting, due, read_ticket
from cluster.runs import prepare_run, settle_with_job
from cluster.study_file import extend_study
from conf.settings import QueueSettings
from tests.jobs_api import JobsApi, jobs_api
from tests.run_samples import make_spec, make_store, one_set_spec

SPACE = [{"strategy": "sma_cross", "grid": {"fast": {"low": 5, "high": 20}, "slow": {"low": 30, "high": 90}}}]
LIMITS = QueueSettings(runs_at_once_max=2, runs_per_user_max=1, waiting_per_user_max=3)


@pytest.fixture
def ray() -> Iterator[JobsApi]:
    with jobs_api() as api:
        yield api


class Desk:
    """Run folders of one-set sweeps, and the queue over them."""

    def __init__(self, folder: Path) -> None:
        self.store = make_store(folder / "bars")
        self.runs_dir = folder / "runs"
        self.queue = RunQueue(self.runs_dir, LIMITS)

    def run(self, name: str) -> RunFolder:
        return prepare_run(self.runs_dir, self.store, one_set_spec(), name)

    def wait(self, name: str, user: str = "ann", priority: Priority = Priority.NORMAL) -> RunFolder:
        folder = self.run(name)
        self.queue.enqueue(folder, user, priority)
        return folder

    def dispatch(self, ray: JobsApi) -> list[str]:
        return self.queue.dispatch(ray.client(), self.store.root)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_runs_start_by_priority_and_users_take_turns(desk: Desk, ray: JobsApi) -> None:
    for name, user, priority in (
        ("a1", "ann", Priority.NORMAL),
        ("a2", "ann", Priority.HIGH),
        ("b1", "bob", Priority.LOW),
        ("c1", "cat", Priority.NORMAL),
    ):
        desk.wait(name, user, priority)
    assert [each.run_id for each in desk.queue.waiting()] == ["a2", "a1", "c1", "b1"]
    assert desk.dispatch(ray) == ["a2", "c1"]  # ann has her one, so a1 waits; b1 is of lower priority than c1
    assert desk.dispatch(ray) == []
    ray.put("c1", "SUCCEEDED")
    assert desk.dispatch(ray) == ["b1"]  # ann is still at her limit, which holds up nobody else
    ray.put("a2", "FAILED")
    assert desk.dispatch(ray) == ["a1"]
    assert desk.queue.waiting() == []
    assert {row["metadata"]["submitted_by"] for row in ray.submissions} == {"ann", "bob", "cat"}


def test_jobs_that_are_no_runs_take_no_place(desk: Desk, ray: JobsApi) -> None:
    for number in range(5):
        ray.client().submit(f"session-{number}", "true", {"kind": "session", "submitted_by": "ann"})
    desk.wait("a1")
    assert desk.dispatch(ray) == ["a1"]


def test_a_run_that_waits_is_not_taken_for_lost_and_can_be_withdrawn(desk: Desk, ray: JobsApi) -> None:
    folder = desk.wait("a1")
    progress = folder.progress()
    folder.write_progress(progress.model_copy(update={"updated_ns": progress.updated_ns - 10**12}))
    assert settle_with_job(folder, None).state is RunState.PENDING
    assert desk.queue.withdraw(folder)
    assert not desk.queue.withdraw(folder)
    assert desk.dispatch(ray) == []
    assert settle_with_job(folder, None).state is RunState.FAILED


def test_a_repeat_keeps_its_ticket_and_a_full_queue_refuses_one_user_only(desk: Desk) -> None:
    folder = desk.wait("a1")
    ticket = read_ticket(folder)
    assert desk.queue.enqueue(folder, "ann", Priority.HIGH) == ticket
    desk.wait("a2")
    desk.wait("a3")
    with pytest.raises(QueueFull, match="waiting_per_user_max = 3"):
        desk.wait("a4")
    desk.wait("b1", "bob")
    with pytest.raises(RunError, match="user"):
        desk.wait("c1", "")


def test_the_priority_of_a_waiting_run_can_be_changed(desk: Desk, ray: JobsApi) -> None:
    desk.wait("a1")
    later = desk.wait("a2")
    assert desk.queue.reprioritise(later, Priority.HIGH).priority is Priority.HIGH
    assert desk.dispatch(ray) == ["a2"]
    with pytest.raises(NotWaiting, match="a2"):
        desk.queue.reprioritise(later, Priority.LOW)


def test_a_caller_killed_between_start_and_ticket_starts_nothing_twice(desk: Desk, ray: JobsApi) -> None:
    folder = desk.wait("a1")
    kept = folder.ticket_file.read_bytes()
    assert desk.dispatch(ray) == ["a1"]
    folder.ticket_file.write_bytes(kept)  # as if it had died before it was removed
    ray.put("a1", "SUCCEEDED")
    assert desk.dispatch(ray) == ["a1"]
    assert [row["submission_id"] for row in ray.submissions] == ["a1"]
    assert desk.queue.waiting() == []


def test_an_ended_run_that_waits_again_starts_as_a_new_attempt(desk: Desk, ray: JobsApi) -> None:
    folder = desk.wait("a1")
    desk.dispatch(ray)
    ray.put("a1", "FAILED")
    assert settle_with_job(folder, ray.client().latest("a1")).state is RunState.FAILED
    desk.queue.enqueue(folder, "ann", again=True)
    assert settle_with_job(folder, ray.client().latest("a1")).state is RunState.PENDING
    assert desk.dispatch(ray) == ["a1"]
    assert [row["submission_id"] for row in ray.submissions] == ["a1", "a1-r2"]


def test_a_study_that_was_extended_starts_although_its_last_job_succeeded(desk: Desk, ray: JobsApi) -> None:
    """It once did not: the queue took the last job for an answer, and the extended run was then given up as lost."""
    spec = make_spec(grids=SPACE, search={"method": "random", "sets": 8})
    folder = prepare_run(desk.runs_dir, desk.store, spec, "a1")
    desk.queue.enqueue(folder, "ann")
    desk.dispatch(ray)
    folder.write_progress(folder.progress().model_copy(update={"state": RunState.SUCCEEDED}))
    ray.put("a1", "SUCCEEDED")
    assert extend_study(folder, 4) == 1
    desk.queue.enqueue(folder, "ann", again=True)
    kept = folder.ticket_file.read_bytes()
    assert desk.dispatch(ray) == ["a1"]
    assert [row["submission_id"] for row in ray.submissions] == ["a1", "a1-r2"]
    # A caller killed before it removed the ticket: what it started has succeeded, so nothing is left to start.
    folder.write_progress(folder.progress().model_copy(update={"state": RunState.SUCCEEDED}))
    ray.put("a1-r2", "SUCCEEDED")
    folder.ticket_file.write_bytes(kept)
    desk.dispatch(ray)
    assert len(ray.submissions) == 2
    assert folder.progress().state is RunState.SUCCEEDED
    folder.remote_file.write_text("{}")
    with pytest.raises(RunError, match="where it was computed"):
        extend_study(folder, 4)


def test_what_ray_refuses_and_a_damaged_ticket_fail_alone(desk: Desk, ray: JobsApi) -> None:
    damaged, gone, well = desk.wait("a1"), desk.wait("b1", "bob"), desk.wait("c1", "cat")
    damaged.ticket_file.write_text("{")
    gone.run_file.unlink()
    assert [each.run_id for each in desk.queue.waiting()] == ["b1", "c1"]
    assert desk.dispatch(ray) == ["c1"]
    assert (damaged.progress().state, gone.progress().state) == (RunState.FAILED, RunState.FAILED)
    assert damaged.progress().error is not None
    assert well.progress().state is RunState.PENDING
    assert desk.queue.waiting() == []


def test_without_ray_everything_goes_on_waiting(desk: Desk, ray: JobsApi) -> None:
    desk.wait("a1")
    ray.broken = True
    with pytest.raises(Exception, match="Jobs API") as error:
        desk.dispatch(ray)
    assert not isinstance(error.value, RayJobsUnavailable)
    ray.broken = False
    assert desk.dispatch(ray) == ["a1"]


def test_many_callers_at_once_start_each_run_once(desk: Desk, ray: JobsApi) -> None:
    desk.queue = RunQueue(desk.runs_dir, QueueSettings(runs_at_once_max=50, runs_per_user_max=50))
    names = {desk.wait(f"r{number}", f"user-{number % 3}").run_id for number in range(12)}
    started: list[str] = []
    threads = [threading.Thread(target=lambda: started.extend(desk.dispatch(ray))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    started += desk.dispatch(ray)
    assert Counter(started) == Counter(names)
    assert Counter(row["submission_id"] for row in ray.submissions) == Counter(names)


@pytest.mark.parametrize(
    ("waiting", "at_work", "expected"),
    [
        ([], {}, ""),
        ([("a", "ann", "NORMAL", 1)], {}, "a"),
        ([("a", "ann", "NORMAL", 1)], {"bob": 1, "cat": 1}, ""),
        ([("a", "ann", "NORMAL", 1)], {"ann": 1}, ""),
        # Who has less at work comes first, whoever has waited longer.
        ([("a", "ann", "NORMAL", 1), ("b", "bob", "NORMAL", 2)], {"ann": 1}, "b"),
        # More at work than allowed now: the limit was lowered.
        ([("b", "bob", "NORMAL", 2)], {"ann": 5}, ""),
        ([("a", "ann", "LOW", 1), ("b", "bob", "HIGH", 9), ("c", "cat", "NORMAL", 5)], {}, "b c"),
        ([("b", "ann", "NORMAL", 3), ("a", "ann", "NORMAL", 3)], {}, "a"),
    ],
)
def test_what_is_due(waiting: list[tuple[str, str, Any, int]], at_work: dict[str, int], expected: str) -> None:
    tickets = [
        Waiting(name, Ticket(user=user, priority=priority, queued_ns=queued_ns))
        for name, user, priority, queued_ns in waiting
    ]
    assert " ".join(each.run_id for each in due(tickets, at_work, LIMITS)) == expected
