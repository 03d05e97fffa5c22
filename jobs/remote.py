"""A packaged run on this cluster: ``python -m jobs.remote run`` lays it out and computes it, ``send`` prints results.

Started by name through the Jobs API or by a RayJob. The package is in the current folder (the job's working_dir) or on
the command line. A repeat goes on from the parts that are there, as with any run.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cluster.remote_runs import PACKAGED, sent, unpacked
from cluster.run_folder import RunError, RunFolder, RunState
from jobs import sweep
from jobs.background import is_job, step_back


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or send; returns the exit status (``jobs.sweep``'s; 2 for bad input)."""
    parser = argparse.ArgumentParser(prog="python -m jobs.remote", description=__doc__)
    parser.add_argument("what", choices=("run", "send"))
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder the cluster's nodes share")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--package", default="", help="the package in base64; the bars are then those of --data-dir")
    chosen = parser.parse_args(arguments)
    if not re.fullmatch(r"[a-z0-9-]{1,64}", chosen.run_id):
        return _refused(f"--run-id: expected 1 to 64 of a-z, 0-9 and -, was {chosen.run_id!r}")
    folder = RunFolder(chosen.data_dir.resolve() / "runs" / chosen.run_id)
    try:
        return send(folder) if chosen.what == "send" else run(folder, chosen.data_dir.resolve(), chosen.package)
    except RunError as error:
        return _refused(str(error))


def run(folder: RunFolder, data_dir: Path, package: str) -> int:
    """Lay the run out, unless it is there, and drive it."""
    lay_out(folder, _packaged_here() if not package else _packaged_in(package, folder.run_id))
    own = folder.path / "bars"
    bars_dir = own if own.is_dir() else data_dir / "bars"
    return sweep.main(["--run-dir", str(folder.path), "--bars-dir", str(bars_dir)])


def send(folder: RunFolder) -> int:
    """Print the results of a run that has succeeded."""
    if folder.progress().state is not RunState.SUCCEEDED:
        return _refused(f"run {folder.run_id} is {folder.progress().state}")
    for line in sent(folder):
        print(line)
    return 0


def lay_out(folder: RunFolder, files: dict[str, bytes]) -> None:
    """The package's files as a run folder, whole or not at all; raises ``RunError`` where another run has the name."""
    if "spec.json" not in files:
        raise RunError("package", folder.run_id, "a specification in it")
    if folder.path.exists():
        if folder.spec_file.read_bytes() != files["spec.json"]:
            raise RunError("run_id", folder.run_id, "an id that no run with another specification has")
        return
    folder.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.path.parent) as staging:
        whole = Path(staging) / folder.run_id
        for name, content in files.items():
            (whole / name).parent.mkdir(parents=True, exist_ok=True)
            (whole / name).write_bytes(content)
        whole.rename(folder.path)


def _packaged_here() -> dict[str, bytes]:
    root = Path.cwd() / PACKAGED
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _packaged_in(text: str, run_id: str) -> dict[str, bytes]:
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RunError("package", run_id, f"base64 ({error})") from error
    files = unpacked(content, run_id)
    return {PurePosixPath(name).relative_to(PACKAGED).as_posix(): data for name, data in files.items()}


def _refused(text: str) -> int:
    print(text, file=sys.stderr, flush=True)
    return sweep.REFUSED


if __name__ == "__main__":
    step_back(whole_session=is_job())
    sys.exit(main())
