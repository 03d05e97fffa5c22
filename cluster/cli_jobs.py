"""``desk jobs | report``: runs listed, looked at, followed, stopped; where their reports are."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.cli_access import running_settings
from cluster.cli_leaderboard import print_leaderboard
from cluster.cli_queue import queue_of, register
from cluster.cli_remote import register as register_remote
from cluster.console import CommandError, JsonOption, command, console, errors, print_json, print_table
from cluster.local import ray_token
from cluster.run_queue import time_left_s
from conf.settings import Settings, load_settings

if TYPE_CHECKING:
    from cluster.ray_jobs import RayJobs
    from cluster.runs import Progress as RunProgress
    from cluster.runs import RunFolder

jobs = typer.Typer(no_args_is_help=True, help="Runs and their Ray jobs.")


@jobs.command("ls")
@command
def jobs_ls(
    limit: int = typer.Option(20, "--limit", min=1, help="At most so many, newest first."), as_json: bool = JsonOption
) -> None:
    """All runs, newest first."""
    from cluster.runs import list_runs

    settings = load_settings()
    runs = list_runs(settings.runs_path)[:limit]
    if as_json:
        print_json(runs)
        return
    rows = []
    places = {each.run_id: place for place, each in enumerate(queue_of(settings).waiting(), 1)}
    for run in runs:
        progress, record = run.progress, run.record
        if progress is None or record is None:
            rows.append([run.run_id, "DAMAGED", "", "", "", run.problem])
            continue
        done = f"{progress.done_sets}/{progress.total_sets}"
        left_s = time_left_s(progress, time.time_ns())
        bars = f"{record.product_id} {record.granularity} ({record.data_source})"
        state = f"waits, {places[run.run_id]}" if run.run_id in places else progress.state
        rows.append([run.run_id, state, record.kind, done, "" if left_s is None else f"{left_s:.0f}", bars])
    print_table(f"runs in {settings.runs_path}", ["run", "state", "kind", "sets>", "left, s>", "bars"], rows)


@jobs.command("show")
@command
def jobs_show(
    run_id: str = typer.Argument(..., help="The run."),
    top: int = typer.Option(10, "--top", min=1, max=1000, help="Rows of the leaderboard."),
    as_json: bool = JsonOption,
) -> None:
    """One run: its state, its leaderboard so far, and how far that is to be believed.

    Example: desk jobs show 20260101-120000-0a1b2c3d --top 20
    """
    from cluster.run_honesty import honesty_of
    from cluster.runs import open_run

    settings = load_settings()
    folder = open_run(settings.runs_path, run_id)
    progress = settled(settings, folder)
    if as_json:
        found = {"run": folder.record(), "progress": progress, "leaderboard": folder.leaderboard(top)}
        print_json({**found, "honesty": honesty_of(folder), "report": folder.report_file})
        return
    console.print(f"{run_id}: {progress.state} {progress.done_sets}/{progress.total_sets}")
    print_leaderboard(folder, top)


@jobs.command("logs")
@command
def jobs_logs(
    run_id: str = typer.Argument(..., help="The run."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job has ended."),
) -> None:
    """What a run's Ray job has printed."""
    client = ray_jobs(running_settings())
    job_id = _last_job(client, run_id)
    for text in client.tail(job_id) if follow else [client.logs(job_id)]:
        sys.stdout.write(text)


@jobs.command("stop")
@command
def jobs_stop(run_id: str = typer.Argument(..., help="The run."), as_json: bool = JsonOption) -> None:
    """Stop a run, or take it out of the queue; what is finished stays, and ``desk jobs retry`` goes on from there."""
    from cluster.runs import RunState, open_run, settle

    settings = running_settings()
    folder = open_run(settings.runs_path, run_id)
    client = ray_jobs(settings)
    if queue_of(settings).withdraw(folder):
        stopped = settle(folder, RunState.STOPPED).state is RunState.STOPPED
    else:
        stopped = not folder.progress().state.ended and client.stop(_last_job(client, run_id))
    progress = settled(settings, folder)
    if as_json:
        print_json({"run_id": run_id, "stopped": stopped, "progress": progress})
    else:
        console.print(f"{run_id}: {'stopping' if stopped else 'was not running'} ({progress.state})")


@command
def report(
    run_id: str | None = typer.Argument(None, help="The run; without it, the newest that has succeeded."),
    rebuild: bool = typer.Option(False, "--rebuild", help="Make the report anew from the results."),
    as_json: bool = JsonOption,
) -> None:
    """The path of a run's report: one HTML file that opens anywhere, without a network."""
    from cluster.runs import RunState, list_runs, open_run

    settings = load_settings()
    runs_dir = settings.runs_path
    if run_id is None:
        ended = [r.run_id for r in list_runs(runs_dir) if r.progress and r.progress.state == RunState.SUCCEEDED]
        if not ended:
            raise CommandError("no run has succeeded yet (desk jobs ls)")
        run_id = ended[0]
    folder = open_run(runs_dir, run_id)
    if rebuild or not folder.report_file.exists():
        _make_report(folder, settings.bars_path)
    if as_json:
        print_json({"run_id": run_id, "report": folder.report_file})
    else:
        sys.stdout.write(f"{folder.report_file}\n")


def _make_report(folder: RunFolder, bars_dir: Path) -> None:
    """With the bars the run was computed on; where they are not here any more, from what the run has kept of them."""
    words = [sys.executable, "-m", "jobs.report", "--run-dir", str(folder.path)]
    done = subprocess.run([*words, "--bars-dir", str(bars_dir)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        errors.print(f"without the bars: {done.stderr.strip()}")
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"the report could not be made: {done.stderr.strip() or done.stdout.strip()}")


def settled(settings: Settings, folder: RunFolder) -> RunProgress:
    """The run's progress, corrected where its job has ended without a word."""
    from cluster.ray_jobs import RayJobsError
    from cluster.runs import settle_with_job

    progress = folder.progress()
    if progress.state.ended:
        return progress
    try:
        return settle_with_job(folder, ray_jobs(settings).latest(folder.run_id))
    except RayJobsError:
        # Without Ray what the folder says stands.
        return progress


def _last_job(client: RayJobs, run_id: str) -> str:
    """The id of the run's last Ray job: a run that was resumed has had several."""
    job = client.latest(run_id)
    if job is None:
        raise CommandError(f"run_id: Ray has no job of {run_id!r} (a new desk forgets the jobs of the one before)")
    return job.submission_id


def ray_jobs(settings: Settings) -> RayJobs:
    """The Jobs API of the running desk, or of the cluster the settings name."""
    from pydantic import SecretStr

    from cluster.ray_jobs import RayJobs

    token = ray_token(settings.state_dir)
    address = settings.ray.address or f"127.0.0.1:{settings.ray.dashboard_port}"
    return RayJobs(address, SecretStr(token) if token else None)


register(jobs)
register_remote(jobs)
