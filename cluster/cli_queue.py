"""``desk jobs queue | priority | retry | archive | restore``: runs that wait, that go on, and that are put away."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import typer

from cluster.cli_access import running_settings
from cluster.console import CommandError, JsonOption, command, console, errors, print_json, print_table
from cluster.run_queue import Priority, RunQueue
from conf.settings import Settings, load_settings

if TYPE_CHECKING:
    from cluster.ray_jobs import RayJobs
    from cluster.run_folder import RunFolder

PriorityOption = typer.Option(Priority.NORMAL, "--priority", help="HIGH runs start before NORMAL, NORMAL before LOW.")
RunArgument = typer.Argument(..., help="The run.")
NS_PER_DAY: Final = 86_400 * 10**9


def register(jobs: typer.Typer) -> None:
    """Add the commands to ``desk jobs``."""
    for name, function in (
        ("queue", jobs_queue),
        ("priority", jobs_priority),
        ("retry", jobs_retry),
        ("archive", jobs_archive),
        ("restore", jobs_restore),
    ):
        jobs.command(name)(command(function))


def submit(settings: Settings, jobs: RayJobs, folder: RunFolder, priority: Priority) -> None:
    """Let a run wait for its turn, which is often at once; one that waits, is at work or has succeeded stays so."""
    from cluster.run_folder import RunState

    queue = queue_of(settings)
    last = jobs.latest(folder.run_id)
    if folder.progress().state is RunState.SUCCEEDED or (last is not None and not last.status.ended):
        return
    queue.enqueue(folder, user(), priority, again=last is not None)
    take_turns(settings, jobs)


def take_turns(settings: Settings, jobs: RayJobs) -> None:
    """Start what is due. Without Ray everything goes on waiting."""
    from cluster.ray_jobs import RayJobsError

    try:
        queue_of(settings).dispatch(jobs, settings.bars_path, settings.ray.driver_num_cpus)
    except RayJobsError as error:
        errors.print(f"[yellow]runs wait:[/] {error}", highlight=False)


def place_of(settings: Settings, run_id: str) -> tuple[int, int] | None:
    """(place, of how many) of a run that waits; None where it does not."""
    waiting = [each.run_id for each in queue_of(settings).waiting()]
    return (waiting.index(run_id) + 1, len(waiting)) if run_id in waiting else None


def queue_of(settings: Settings) -> RunQueue:
    """The queue of these settings' runs."""
    return RunQueue(settings.runs_path, settings.queue)


def user() -> str:
    """Who submits from this shell: the machine's account. (Over HTTP it is the person of the API key.)"""
    return getpass.getuser()


def jobs_queue(as_json: bool = JsonOption) -> None:
    """The runs that wait for their turn, first to start first (users take turns within a priority)."""
    settings = load_settings()
    waiting = queue_of(settings).waiting()
    if as_json:
        print_json([{"run_id": each.run_id, **each.ticket.model_dump(mode="json")} for each in waiting])
        return
    now_ns = time.time_ns()
    rows = [
        [place, each.run_id, each.ticket.user, each.ticket.priority, f"{(now_ns - each.ticket.queued_ns) / 6e10:.1f}"]
        for place, each in enumerate(waiting, 1)
    ]
    limits = settings.queue
    title = f"{limits.runs_at_once_max} runs at once, {limits.runs_per_user_max} of one user"
    print_table(title, ["#>", "run", "user", "priority", "waiting, min>"], rows, "" if rows else "nothing waits")


def jobs_priority(run_id: str = RunArgument, priority: Priority = typer.Argument(..., help="HIGH, NORMAL or LOW."),
                  as_json: bool = JsonOption) -> None:  # fmt: skip
    """Give a run that waits another priority."""
    from cluster.runs import open_run

    settings = load_settings()
    ticket = queue_of(settings).reprioritise(open_run(settings.runs_path, run_id), priority)
    if as_json:
        print_json({"run_id": run_id, **ticket.model_dump(mode="json")})
    else:
        console.print(f"{run_id}: {ticket.priority}")


def jobs_retry(run_id: str = RunArgument, priority: Priority = PriorityOption, as_json: bool = JsonOption) -> None:
    """Let a failed or stopped run go on from its finished blocks when it is its turn."""
    from cluster.cli_jobs import ray_jobs
    from cluster.run_folder import RunState
    from cluster.runs import open_run, settle_with_job

    settings = running_settings()
    folder, jobs = open_run(settings.runs_path, run_id), ray_jobs(settings)
    progress = settle_with_job(folder, jobs.latest(run_id))
    if progress.state not in {RunState.FAILED, RunState.STOPPED}:
        raise CommandError(f"{run_id} is {progress.state}", field="run_id", rule="a run that failed or was stopped")
    submit(settings, jobs, folder, priority)
    place = place_of(settings, run_id)
    if as_json:
        print_json({"run_id": run_id, "place": place[0] if place else None, "progress": folder.progress()})
    else:
        console.print(f"{run_id}: {'waits, place ' + str(place[0]) if place else 'started'}")


def jobs_archive(
    run_ids: list[str] = typer.Argument(None, help="Runs that have ended."),
    older_than_days: float | None = typer.Option(None, "--older-than", min=0, help="Every ended run so many days old."),
    as_json: bool = JsonOption,
) -> None:
    """Put ended runs away, each as one compressed file; ``desk jobs restore`` lays them out again."""
    from cluster.run_archive import RunArchive
    from cluster.runs import list_runs, open_run

    runs_dir = load_settings().runs_path
    names = list(run_ids or [])
    if older_than_days is not None:
        before_ns = time.time_ns() - int(older_than_days * NS_PER_DAY)
        ended = [run for run in list_runs(runs_dir) if run.progress and run.progress.state.ended]
        names += [run.run_id for run in ended if run.progress and run.progress.updated_ns < before_ns]
    if not names and older_than_days is None:
        rows = RunArchive(runs_dir).ls()
        if as_json:
            print_json(rows)
            return
        shown = [[each.run_id, f"{each.bytes / 1e6:.1f}", _day(each.archived_ns)] for each in rows]
        print_table(
            "archived runs", ["run", "MB>", "since"], shown, "" if shown else "none (name runs to put them away)"
        )
        return
    files = {name: RunArchive(runs_dir).put_away(open_run(runs_dir, name)) for name in dict.fromkeys(names)}
    if as_json:
        print_json(files)
    else:
        console.print(f"{len(files)} runs put away: {', '.join(files) or 'none'}")


def jobs_restore(run_id: str = RunArgument, as_json: bool = JsonOption) -> None:
    """Lay an archived run out again, as it was."""
    from cluster.run_archive import RunArchive

    folder = RunArchive(load_settings().runs_path).bring_back(run_id)
    if as_json:
        print_json({"run_id": run_id, "run_dir": folder.path})
    else:
        console.print(f"{run_id}: restored")


def _day(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%d}"
