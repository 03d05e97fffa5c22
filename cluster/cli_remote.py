"""A sweep sent elsewhere: to a Ray cluster by its address, or printed as a RayJob; and its results brought here."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import typer

from cluster.cli_queue import RunArgument, user
from cluster.console import CommandError, JsonOption, command, console, print_json
from conf.settings import Settings, load_settings

if TYPE_CHECKING:
    from cluster.ray_jobs import RayJobs
    from cluster.run_folder import Progress, RunFolder
    from strategies.spec import SweepSpec

MANIFEST: Final = "manifest"
ToOption = typer.Option(
    None, "--to", help="Where it is computed: http(s)://HOST:PORT of a Ray dashboard, or 'manifest' to print a RayJob."
)
TokenFileOption = typer.Option(None, "--token-file", help="With --to an address: the cluster's auth token.")
DataDirOption = typer.Option("/data", "--data-dir", help="With --to: the folder that cluster's nodes share.")
PythonOption = typer.Option("python", "--python", help="With --to: the interpreter there that has the desk.")
ImageOption = typer.Option(None, "--image", help="With --to manifest: the desk's image, with a tag or a digest.")


def register(jobs: typer.Typer) -> None:
    """Add the command to ``desk jobs``."""
    jobs.command("fetch")(command(jobs_fetch))


def send(
    spec: SweepSpec, run_id: str | None, kind: Any, to: str, where: dict[str, Any]
) -> tuple[RunFolder, RayJobs] | None:
    """Lay the run out here and start it at ``to``; None where it was printed as a manifest."""
    from cluster.market_data import BarStore
    from cluster.remote_runs import Place, packaged, submit
    from cluster.runs import prepare_run, read_market
    from strategies.model import Bars

    settings = load_settings()
    store = BarStore(settings.bars_path)
    if to == MANIFEST:
        _print_manifest(settings, spec, run_id, where)
        return None
    jobs = _cluster(to, where["token_file"])
    folder = prepare_run(settings.runs_path, store, spec, run_id, kind)
    market = read_market(store, spec, folder.record())
    series = [market] if isinstance(market, Bars) else [market.bars(product_id) for product_id in market.product_ids]
    place = Place(jobs.address, where["data_dir"], where["python"])
    package = packaged(folder, series)
    submit(jobs, folder, place, package, settings.ray.driver_num_cpus, user())
    return folder, jobs


def look(folder: RunFolder, jobs: RayJobs) -> Progress:
    """How far a run is over there; its results are brought here as soon as it has succeeded."""
    from cluster.ray_jobs import JobStatus
    from cluster.remote_runs import fetch, place_of, progress_from

    place, progress = place_of(folder), folder.progress()
    job = jobs.latest(folder.run_id)
    if progress.state.ended or place is None or job is None:
        return progress
    progress = progress_from(progress, job, jobs.logs(job.submission_id))
    if job.status is JobStatus.SUCCEEDED:
        fetch(jobs, folder, place)
        return folder.progress()
    folder.write_progress(progress)
    return progress


def jobs_fetch(
    run_id: str = RunArgument, token_file: Path | None = TokenFileOption, as_json: bool = JsonOption
) -> None:
    """Look at a run that was sent to another cluster, and bring its results here where it has ended."""
    from cluster.remote_runs import place_of
    from cluster.runs import open_run

    folder = open_run(load_settings().runs_path, run_id)
    place = place_of(folder)
    if place is None:
        raise CommandError(f"{run_id} was not sent anywhere", field="run_id", rule="a run sent with --to")
    progress = look(folder, _cluster(place.address, token_file))
    if as_json:
        print_json({"run_id": run_id, "address": place.address, "progress": progress})
    else:
        console.print(f"{run_id} at {place.address}: {progress.state} {progress.done_sets}/{progress.total_sets}")


def _cluster(address: str, token_file: Path | None) -> RayJobs:
    from pydantic import SecretStr

    from cluster.ray_jobs import RayJobs

    token = SecretStr(token_file.read_text().strip()) if token_file else None
    host = urlsplit(address).hostname or ""
    if token and address.startswith("http:") and host not in {"localhost", "127.0.0.1", "::1"}:
        raise CommandError(f"--to {address}: a token goes over https only", field="to", rule="https")
    return RayJobs(address, token)


def _print_manifest(settings: Settings, spec: SweepSpec, run_id: str | None, where: dict[str, Any]) -> None:
    """The bars are the cluster's own: a manifest carries the specification and users' strategies only."""
    import tempfile

    from cluster.kube import render, sweep_job, to_yaml
    from cluster.remote_runs import Place, entrypoint, packaged
    from cluster.run_folder import RunFolder, replace_file, to_json
    from cluster.runs import default_run_id
    from strategies.user_file import write_into

    if where["image"] is None:
        raise CommandError("--to manifest needs --image", field="image", rule="name:tag or name@sha256:digest")
    name = run_id or default_run_id(spec, time.time_ns())
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder(Path(scratch) / name)
        folder.path.mkdir()
        replace_file(folder.spec_file, to_json(spec))
        write_into(folder.strategies_dir, (grid.strategy for grid in spec.grids))
        package = packaged(folder)
    words = entrypoint(Place("", where["data_dir"], where["python"]), name, package)
    sys.stdout.write(to_yaml([sweep_job(render("paper", where["image"]), name, words)]))
