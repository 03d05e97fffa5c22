"""A run on somebody else's cluster: what it is made of travels as one package, and what came of it comes back as text.

The cluster needs the desk's image and a folder its nodes share; it needs neither our run folder nor our bars. All goes
through the Jobs API, the one door there is: the package with its upload, the results through the log of a second job.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from cluster.ray_jobs import Job, RayJobs
from cluster.run_folder import Progress, RunError, RunFailure, RunFolder, RunState, replace_file

if TYPE_CHECKING:
    from strategies.model import Bars

PACKAGED: Final = "desk-run"
"""The one folder in a package. A job's folder is on Python's path, where a folder ``strategies`` would be found."""
SENT: Final = ("results.parquet", "summary.json", "honesty.json", "report.html", "run.json", "progress.json")
SENT_FOLDERS: Final = ("best",)
BEGIN: Final = "desk-results"
END: Final = "desk-results-end"
LINE_BYTES: Final = 57 * 1024
RESULTS_BYTES_MAX: Final = 512 * 2**20
SEND_TIMEOUT_S: Final = 600.0
_DONE: Final = re.compile(r"(\d+) of (\d+) done")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is computed (remote.json): the cluster's Jobs API, and the folder its nodes share."""

    address: str
    data_dir: str
    python: str = "python"


def write_place(folder: RunFolder, place: Place) -> None:
    """Note where the run is computed: from now on nobody here takes it for lost."""
    content = {"address": place.address, "data_dir": place.data_dir, "python": place.python}
    replace_file(folder.remote_file, json.dumps(content).encode())


def place_of(folder: RunFolder) -> Place | None:
    """Where the run is computed; None where that is here. Raises ``RunError``."""
    try:
        content = json.loads(folder.remote_file.read_bytes())
        return Place(str(content["address"]), str(content["data_dir"]), str(content["python"]))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(folder.remote_file.name, folder.run_id, f"address and folder of a cluster ({error})") from error


def packaged(folder: RunFolder, bars: Iterable[Bars] = ()) -> bytes:
    """What a run is made of, as a zip: specification, users' strategies, and the ``bars`` of its products, if any."""
    import tempfile

    from cluster.market_data import BarStore

    with tempfile.TemporaryDirectory() as scratch:
        store = BarStore(Path(scratch) / "bars")
        spec = folder.spec()
        for series in bars:
            first_ns = int(series.ts_ns[0]) if spec.start_ns is None else spec.start_ns
            end_ns = int(series.ts_ns[-1]) + series.granularity.ns if spec.end_ns is None else spec.end_ns
            # What has no bar within the run's period has none over there either.
            store.write(series, source=folder.record().data_source, answered=[(first_ns, end_ns)])
        files = {"spec.json": folder.spec_file}
        files |= {f"strategies/{path.name}": path for path in folder.strategies_dir.glob("*.py")}
        stored = [path for path in store.root.rglob("*") if path.is_file() and not path.name.endswith(".lock")]
        files |= {f"bars/{path.relative_to(store.root).as_posix()}": path for path in stored}
        return _zipped((f"{PACKAGED}/{name}", path.read_bytes()) for name, path in sorted(files.items()))


def submit(jobs: RayJobs, folder: RunFolder, place: Place, package: bytes, driver_num_cpus: float, user: str) -> str:
    """Start the run there, or let it go on; the id of the job that counts."""
    write_place(folder, place)
    record = folder.record()
    metadata = {"kind": record.kind, "product": record.product_id, "submitted_by": user}
    last = jobs.latest(folder.run_id)
    if last is not None and not last.status.ended:
        return last.submission_id
    address = jobs.upload(package)
    return jobs.resubmit(
        folder.run_id, entrypoint(place, folder.run_id), metadata, driver_num_cpus, package=address, succeeded_too=True
    )


def entrypoint(place: Place, run_id: str, package: bytes = b"") -> str:
    """The command line there; with ``package`` it carries the package itself, and the bars are the cluster's own."""
    words = [place.python, "-m", "jobs.remote", "run", "--data-dir", place.data_dir, "--run-id", run_id]
    words += ["--package", base64.b64encode(package).decode()] if package else []
    return shlex.join(words)


def progress_from(progress: Progress, job: Job, log: str) -> Progress:
    """How far a run is there, from its job's status and what its driver has printed."""
    found = _DONE.findall(log)
    update: dict[str, object] = {"updated_ns": time.time_ns(), "started_ns": job.start_ns or progress.started_ns}
    if found:
        update |= {"done_sets": int(found[-1][0]), "total_sets": int(found[-1][1])}
    update["state"] = RunState.RUNNING if str(job.status) in {"RUNNING", "SUCCEEDED"} else RunState(str(job.status))
    if update["state"] is RunState.FAILED:
        reason = (log.strip().splitlines() or [job.message])[-1][:2000]
        update["error"] = RunFailure(field="job", value=job.submission_id, rule="a run that succeeds", message=reason)
    return progress.model_copy(update=update)


def fetch(jobs: RayJobs, folder: RunFolder, place: Place) -> None:
    """Bring the results of an ended run here, in the place of what is here. Raises ``RunError`` or ``RayJobsError``."""
    words = [place.python, "-m", "jobs.remote", "send", "--data-dir", place.data_dir, "--run-id", folder.run_id]
    asked = hashlib.sha256(f"{folder.run_id} {time.time_ns()}".encode()).hexdigest()[:12]
    job_id = jobs.submit(f"send-{asked}", shlex.join(words), {"kind": "send"})
    job = jobs.wait(job_id, SEND_TIMEOUT_S)
    log = jobs.logs(job_id)
    if str(job.status) != "SUCCEEDED":
        raise RunError(
            "run_id", folder.run_id, f"results on the cluster ({(log.strip().splitlines() or [''])[-1][:300]})"
        )
    files = unpacked(received(log, folder.run_id), folder.run_id)
    # The state last: whoever sees SUCCEEDED finds the rest.
    for name in sorted(files, key=lambda name: name == "progress.json"):
        (folder.path / name).parent.mkdir(exist_ok=True)
        replace_file(folder.path / name, files[name])


def sent(folder: RunFolder) -> Iterable[str]:
    """The lines of the log by which an ended run's results travel."""
    paths = [folder.path / name for name in SENT]
    paths += [path for name in SENT_FOLDERS for path in sorted((folder.path / name).glob("*")) if path.is_file()]
    named = [(path.relative_to(folder.path).as_posix(), path) for path in paths if path.is_file()]
    content = _zipped((name, path.read_bytes()) for name, path in named)
    yield f"{BEGIN} {len(content)} {hashlib.sha256(content).hexdigest()}"
    for start in range(0, len(content), LINE_BYTES):
        yield base64.b64encode(content[start : start + LINE_BYTES]).decode()
    yield END


def received(log: str, run_id: str) -> bytes:
    """The package in a log, whole and unchanged, whatever else was printed around it; raises ``RunError``."""
    lines = log.splitlines()
    begins = [number for number, line in enumerate(lines) if line.startswith(f"{BEGIN} ")]
    ends = [number for number, line in enumerate(lines) if line == END]
    if not begins or not ends or ends[-1] < begins[-1]:
        raise RunError("log", run_id, "whole results in the log of the job that sends them")
    _, length, digest = lines[begins[-1]].split()
    try:
        content = base64.b64decode("".join(lines[begins[-1] + 1 : ends[-1]]), validate=True)
    except ValueError as error:
        raise RunError("log", run_id, f"results in base64 ({error})") from error
    if str(len(content)) != length or hashlib.sha256(content).hexdigest() != digest:
        raise RunError("log", run_id, f"{length} bytes with the checksum they were sent with")
    return content


def unpacked(package: bytes, run_id: str) -> dict[str, bytes]:
    """The files of a package by their relative names; raises ``RunError`` for a name outside the run or too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(package)) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > RESULTS_BYTES_MAX:
                raise RunError("package", run_id, f"at most {RESULTS_BYTES_MAX} bytes")
            for info in infos:
                path = PurePosixPath(info.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
                    raise RunError("package", info.filename, "a name inside the run's folder")
            return {info.filename: archive.read(info) for info in infos}
    except zipfile.BadZipFile as error:
        raise RunError("package", run_id, f"a zip file ({error})") from error


def _zipped(files: Iterable[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            # A fixed time: the bytes depend on the content alone.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
