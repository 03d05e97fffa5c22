"""The processes of a run at work, for tests that kill them or take their memory away."""

from __future__ import annotations

import contextlib

import psutil

from cluster.run_folder import RunFolder


def drivers(folder: RunFolder) -> list[psutil.Process]:
    """The processes that drive this run; no other has its folder among its words."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if str(folder.path) in words and "jobs.sweep" in words:
            found.append(process)
    return found


def starve(process: psutil.Process) -> bool:
    """From now on a process gets no memory beyond what it has; False where it has ended or has its limit."""
    with contextlib.suppress(psutil.Error):
        if process.rlimit(psutil.RLIMIT_AS)[0] == psutil.RLIM_INFINITY:
            size = process.memory_info().vms
            process.rlimit(psutil.RLIMIT_AS, (size, size))
            return True
    return False
