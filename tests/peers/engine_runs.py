"""Running a peer's script with the peers' own interpreter, once for all its cases."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.peers.engines.cases import Answer, Case, read_answer, write_case

ROOT: Final = Path(__file__).resolve().parents[2]
INTERPRETER: Final = ROOT / ".venv-peers" / "bin" / "python"
MADE: Final = ROOT / ".venv-peers" / ".ready"
TIMEOUT_S: Final = 1_500

# One test of a file waits for all answers of an engine, on a machine that others may use as well.
patient = pytest.mark.timeout(TIMEOUT_S + 100)
needs_peers = pytest.mark.skipif(not MADE.is_file(), reason="other people's engines are not installed: make peers")


def run_peer(module: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> str:
    """What ``python -m tests.peers.engines.<module>`` prints; fails with what it had to say."""
    done = subprocess.run(
        [str(INTERPRETER), "-m", f"tests.peers.engines.{module}", *arguments],
        cwd=ROOT,
        env=peer_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{module} ended with {done.returncode}:\n{done.stderr[-4_000:]}"
    return done.stdout


def peer_environment() -> dict[str, str]:
    """Ours, and what peers need to stay quiet: raptorbt asks the internet for a newer version when it is imported."""
    quiet = {"RAPTORBT_NO_VERSION_CHECK": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": ""}
    # Numba keys its cache by path and by nothing of ours, so it may share the folder.
    return {**os.environ, **quiet}


def answers(folder: Path, engine: str, cases: Sequence[Case]) -> Mapping[str, Answer]:
    """The engine's answer to each case, by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        write_case(folder, case)
    run_peer(f"{engine}_engine", str(folder))
    return {case.name: read_answer(folder, engine, case.name) for case in cases}
