"""Starts a program where it is in nobody's way: ``python -IS background.py PROGRAM ARGUMENT …`` becomes that program.

A sweep's workers are started through it, so that not even their imports delay an order. Niceness alone does not do
that: a kernel that gives each session a share of its own (sched(7), "The autogroup feature") weighs it only against
others of the session, which for a worker is Ray's, while ledger and venue wait outside. So a worker gets a session of
its own, with the smallest share. The process stays the one that Ray has started, and leads a group as before.
"""

import contextlib
import os
import sys
from pathlib import Path

# Ray's own value for workers, which a desk in service sets to 0 for its replicas.
NICENESS = 15
# What the session weighs beside others; only where the kernel has the feature.
SHARE = Path("/proc/self/autogroup")
SHARE_NICENESS = 19


def main() -> None:
    """Leave the session, step back, and become the program."""
    if SHARE.exists():
        with contextlib.suppress(OSError):  # of another session than the parent: as good
            # Who leads a group, as Ray's workers do, cannot begin a session.
            os.setpgid(0, os.getpgid(os.getppid()))
            os.setsid()
    step_back(whole_session=os.getsid(0) == os.getpid())
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the program Ray would have started


def step_back(whole_session: bool) -> None:
    """From now on this process, and what it starts, computes when nobody else wants the processor.

    ``whole_session``: nor does the rest of its session weigh more than that beside other sessions.
    """
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    if whole_session:
        with contextlib.suppress(OSError):  # a kernel without the feature
            SHARE.write_text(f"{SHARE_NICENESS}\n")


def is_job() -> bool:
    """Whether Ray's Jobs API has started this process, in a session of its own."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


if __name__ == "__main__":
    main()
