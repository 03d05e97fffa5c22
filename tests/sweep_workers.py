"""A sweep whose workers keep books: what each of them compiled, and how long it took to its first result.

``python -m tests.sweep_workers --run-dir DIR --bars-dir DIR`` is ``python -m jobs.sweep`` but for two things: a sweep
of any size gets workers, and each worker writes ``DIR/workers/<pid>.json`` after each of its blocks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from cluster.run_folder import RunFolder, replace_file
from jobs.background import SHARE
from jobs.blocks import Work

# A sweep of one block has one worker, whatever the cluster.
MEET_S: Final = 60.0
# What this process has written so far; a worker computes many blocks.
_BOOK: Final[dict[str, Any]] = {}


def begin(config: dict[str, Any], work: Work, begun_dir: Path) -> dict[str, Any]:
    """The sweep's trainable, and after it the worker's book."""
    from jobs import trials
    from tests.cold_worker import age_s, statistics

    age, folder = age_s(), work.folder.path / "workers"
    folder.mkdir(exist_ok=True)
    if not _BOOK:
        _meet(folder)
    began_s = time.perf_counter()
    found = trials._begin(config, work, begun_dir)
    if not _BOOK:
        spent_s = time.perf_counter() - began_s
        _BOOK.update(age_at_first_block_s=round(age, 3), first_block_s=round(spent_s, 3), blocks=0)
        # Of the first block's time what was neither computing nor writing: kernels and strategies loaded.
        _BOOK.update(loading_s=round(spent_s - found["seconds"], 3))
    loaded, compiled = statistics()
    _BOOK.update(loaded=loaded, compiled=compiled, blocks=_BOOK["blocks"] + 1)
    _BOOK.update(pid=os.getpid(), session=os.getsid(0), niceness=os.getpriority(os.PRIO_PROCESS, 0), share=_share())
    replace_file(folder / f"{os.getpid()}.json", json.dumps(_BOOK).encode())
    return found


def _share() -> str:
    """What the session weighs beside others; empty on a kernel that does not say."""
    try:
        return SHARE.read_text().strip().partition(" ")[2]
    except OSError:
        return ""


def _meet(folder: Path) -> None:
    """Wait for another worker: the first one that was up has sometimes done everything alone."""
    import ray

    (folder / f"{os.getpid()}.begun").touch()
    wanted = min(2, int(ray.cluster_resources()["CPU"]))  # type: ignore[no-untyped-call]
    deadline_s = time.monotonic() + MEET_S
    while len(list(folder.glob("*.begun"))) < wanted and time.monotonic() < deadline_s:
        time.sleep(0.01)


def swept(folder: RunFolder, bars_dir: Path, environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Compute a prepared run on the cluster that ``environment`` names; its workers' books."""
    argv = [sys.executable, "-m", "tests.sweep_workers", "--run-dir", str(folder.path), "--bars-dir", str(bars_dir)]
    done = subprocess.run(argv, env=dict(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(path.read_bytes()) for path in sorted((folder.path / "workers").glob("*.json"))]


def main() -> int:
    """Drive the run; returns the exit status."""
    from jobs import sweep, trials
    from tests import sweep_workers

    sweep.WORKER_SECONDS_MIN = 1e-3  # type: ignore[misc]
    # By its module's name, which the workers import too; theirs is the sweep's own.
    trials._begin = sweep_workers.begin
    return sweep.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
