"""Runs: lay out the folder of a run from a checked specification, find runs, and settle those a job left behind.

The folder is the run: a driver that was killed is started again on it and goes on. What is in it: run_folder.py.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from cluster.run_folder import (
    Block,
    Progress,
    RunBusy,
    RunConflict,
    RunError,
    RunFailure,
    RunFolder,
    RunRecord,
    RunState,
    UnknownRun,
    replace_file,
    to_json,
)

if TYPE_CHECKING:
    from cluster.market_data import BarStore
    from cluster.ray_jobs import Job
    from strategies.backtest import SweepSpec
    from strategies.model import Bars
    from strategies.panel import Panel

__all__ = [
    "Block",
    "Progress",
    "RunBusy",
    "RunConflict",
    "RunError",
    "RunFailure",
    "RunFolder",
    "RunInfo",
    "RunRecord",
    "RunState",
    "UnknownRun",
    "code_identity",
    "default_run_id",
    "describe_run",
    "failure_of",
    "list_runs",
    "market_hash",
    "open_run",
    "prepare_run",
    "read_bars",
    "read_market",
    "settle",
    "spec_hash",
]

ROOT: Final = Path(__file__).resolve().parent.parent
BARS_MIN: Final = 2
UNKNOWN: Final = "unknown"
_RUN_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_GIT_TIMEOUT_S: Final = 5.0
# How long a run that was laid out may be on its way to the cluster.
SUBMITTING_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A line of a list of runs; ``record`` and ``progress`` are None where the folder is damaged."""

    run_id: str
    record: RunRecord | None
    progress: Progress | None
    problem: str = ""


def prepare_run(
    runs_dir: Path,
    store: BarStore,
    spec: SweepSpec,
    run_id: str | None = None,
    kind: Literal["sweep", "backtest"] = "sweep",
) -> RunFolder:
    """Check a specification against the stored bars and lay out its run folder, ready for a driver.

    Without ``run_id`` one is made of the time and the specification. A repeat with the same specification returns the
    folder as it is. Nothing is written where anything is wrong: ``SpecError`` (the grid), ``DataError`` or
    ``MissingData`` (the bars), ``RunError`` (the id), ``RunConflict`` (the id is taken by another specification).
    """
    from strategies.user_file import write_into

    now_ns = time.time_ns()
    folder = RunFolder(runs_dir / _checked_id(run_id or default_run_id(spec, now_ns)))
    if folder.path.exists():
        return _same_run(folder, spec)
    record = describe_run(folder.run_id, store, spec, kind, now_ns)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=runs_dir) as staging:
        whole = RunFolder(Path(staging) / folder.run_id)
        whole.parts_dir.mkdir(parents=True)
        write_into(whole.strategies_dir, (grid.strategy for grid in spec.grids))
        replace_file(whole.spec_file, to_json(spec))
        whole.write_record(record)
        whole.write_progress(Progress(state=RunState.PENDING, total_sets=record.set_count, updated_ns=now_ns))
        try:
            # Renaming onto a folder that is not empty fails, so of two callers with one id the second sees the first.
            whole.path.rename(folder.path)
        except OSError:
            if not folder.path.exists():
                raise
            return _same_run(folder, spec)
    return folder


def describe_run(
    run_id: str, store: BarStore, spec: SweepSpec, kind: Literal["sweep", "backtest"], created_ns: int
) -> RunRecord:
    """What a run of ``spec`` over the stored bars would be computed from; raises as ``prepare_run``."""
    sets = spec.parameter_sets()
    bars = read_market(store, spec)
    # Of a search it is what it may try; how many it has tried its driver says in the end.
    set_count = spec.search.sets if spec.search else sum(len(matrix) for _, matrix in sets)
    return RunRecord(
        run_id=run_id,
        kind=kind,
        created_ns=created_ns,
        spec_hash=spec_hash(spec),
        product_id=", ".join(_products(spec)),
        granularity=str(bars.granularity),
        data_hash=market_hash(bars),
        data_source=_source(store, spec),
        bar_count=len(bars),
        first_ts_ns=int(bars.ts_ns[0]),
        last_ts_ns=int(bars.ts_ns[-1]),
        seed=spec.seed,
        set_count=set_count,
        dropped_count=spec.dropped(),
        look_ahead=spec.costs.look_ahead,
        cuts=_cuts(len(bars), spec.purge_bars),
        **code_identity(),
    )


def read_bars(store: BarStore, spec: SweepSpec, record: RunRecord | None = None) -> Bars:
    """The bars a specification names; raises ``MissingData``, or ``RunError`` where there are too few to compute on.

    With the ``record`` of a run laid out before, exactly its range: bars that came in since then change nothing.
    """
    if spec.product_ids:
        raise RunError("product_ids", ", ".join(spec.product_ids), "one product: this cannot be done with several yet")
    start_ns, end_ns = spec.start_ns, spec.end_ns
    if record is not None:
        start_ns, end_ns = record.first_ts_ns, record.last_ts_ns + spec.granularity.ns
    bars = store.read(spec.product_id, spec.granularity, start_ns, end_ns)
    if len(bars) < BARS_MIN:
        raise RunError("start", len(bars), f"at least {BARS_MIN} bars of {spec.product_id} between start and end")
    return bars


def read_market(store: BarStore, spec: SweepSpec, record: RunRecord | None = None) -> Bars | Panel:
    """``read_bars``, or the panel of several products; raises ``PanelError`` too.

    Each product is read as far as the store has it between start and end, so that one that was listed later, or is
    traded no longer, is in the panel from then or until then.
    """
    from strategies.panel import panel_of

    if not spec.product_ids:
        return read_bars(store, spec, record)
    series = []
    for product_id in spec.product_ids:
        bars = store.read(product_id, spec.granularity, spec.start_ns, spec.end_ns)
        if record is not None:
            ends = [record.first_ts_ns, record.last_ts_ns + 1]
            first, last = bars.ts_ns.searchsorted(ends).tolist()
            bars = bars.between(first, last)
        series.append(bars)
    panel = panel_of(series)
    if len(panel) < BARS_MIN:
        raise RunError("start", len(panel), f"at least {BARS_MIN} bars between start and end")
    return panel


def market_hash(market: Bars | Panel) -> str:
    """The SHA-256 of everything a run is computed on: one product's bars, or those of all, in their order."""
    from cluster.bar_checks import data_hash
    from strategies.model import Bars

    if isinstance(market, Bars):
        return data_hash(market)
    hashes = [f"{product_id} {data_hash(market.bars(product_id))}" for product_id in market.product_ids]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def open_run(runs_dir: Path, run_id: str) -> RunFolder:
    """The folder of a run; raises ``UnknownRun``."""
    folder = RunFolder(runs_dir / _checked_id(run_id))
    if not folder.run_file.is_file():
        raise UnknownRun("run_id", run_id, f"a run in {runs_dir}")
    return folder


def list_runs(runs_dir: Path) -> list[RunInfo]:
    """Every run, newest first; a damaged folder is listed with what is wrong, after the others."""
    if not runs_dir.is_dir():
        return []
    names = [path.name for path in runs_dir.iterdir() if path.is_dir() and _RUN_ID.fullmatch(path.name)]
    runs = [_info(RunFolder(runs_dir / name)) for name in names]
    return sorted(runs, key=lambda run: (run.record.created_ns if run.record else 0, run.run_id), reverse=True)


def settle(folder: RunFolder, job_ended_as: str) -> Progress:
    """The run's progress, corrected where its Ray job has ended without saying so (a driver killed by SIGKILL).

    ``job_ended_as`` is the ended job's status: STOPPED marks the run STOPPED, anything else FAILED. Call it only for a
    job that has ended or is unknown to the cluster. A run that another driver is working on is left alone.
    """
    progress = folder.progress()
    if progress.state.ended:
        return progress
    try:
        with folder.driving():
            progress = folder.progress()
            if not progress.state.ended:
                progress = progress.model_copy(update=_ending(job_ended_as))
                folder.write_progress(progress)
    except RunBusy:
        return progress
    return progress


def settle_with_job(folder: RunFolder, job: Job | None) -> Progress:
    """The run's progress, settled where ``job`` has ended, or where the cluster does not know it (None).

    A folder laid out a moment ago may still be on its way to the cluster, so an unknown job is no sign of an end then.
    """
    progress = folder.progress()
    if folder.ticket_file.exists() or folder.remote_file.exists():
        return progress  # it waits for its turn, or is another cluster's: this one's word says nothing
    submitting = progress.state is RunState.PENDING and time.time_ns() - progress.updated_ns < SUBMITTING_S * 1e9
    if progress.state.ended or (submitting if job is None else not job.status.ended):
        return progress
    return settle(folder, str(job.status) if job else UNKNOWN)


def failure_of(error: Exception) -> RunFailure:
    """The four parts of an error: from its ``field``, ``value`` and ``rule`` where it has them."""
    if hasattr(error, "available"):  # MissingData, told without importing the bar store
        value = f"{getattr(error, 'product_id', '')} {getattr(error, 'granularity', '')}"
        return RunFailure(field="product_id", value=value, rule="bars in the store", message=str(error))
    return RunFailure(
        field=str(getattr(error, "field", "") or getattr(error, "file", "") or type(error).__name__),
        value=str(getattr(error, "value", ""))[:200],
        rule=str(getattr(error, "rule", "") or type(error).__name__),
        message=str(error)[:2000] or type(error).__name__,
    )


def default_run_id(spec: SweepSpec, now_ns: int) -> str:
    """``YYYYMMDD-HHMMSS-<hash>``: sorts by time, and a double click within a second is the same run."""
    moment = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
    return f"{moment:%Y%m%d-%H%M%S}-{spec_hash(spec)[:8]}"


def spec_hash(spec: SweepSpec) -> str:
    """SHA-256 of the specification in canonical JSON, so that spelling and key order do not matter."""
    canonical = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def code_identity() -> dict[str, Any]:
    """Which code and libraries compute here: git revision, hash of the strategies' sources, versions.

    The hash covers what decides a result (the package ``strategies`` and its two libraries), so it also tells two
    edits of one revision apart and works in an image without git.
    """
    from importlib.metadata import version

    versions = {name: version(name) for name in ("numpy", "numba", "ray")}
    versions["python"] = ".".join(str(part) for part in sys.version_info[:3])
    digest = hashlib.sha256(f"{versions['numpy']} {versions['numba']}".encode())
    for source in sorted((ROOT / "strategies").glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_revision": _git("rev-parse", "HEAD") or UNKNOWN,
        "git_dirty": bool(status),
        "code_hash": digest.hexdigest(),
        "versions": versions,
    }


def _cuts(bar_count: int, purge_bars: int | None) -> tuple[int, ...]:
    """The segments of the bars; raises ``RunError`` where it is the wanted gap that leaves no room for folds."""
    from strategies.segments import plan_segments

    cuts = plan_segments(bar_count, purge_bars=purge_bars)
    if purge_bars is not None and len(cuts) == 2 and len(plan_segments(bar_count)) > 2:
        raise RunError("purge_bars", purge_bars, f"a gap that {bar_count} bars have folds beside")
    return tuple(cuts.tolist())


def _same_run(folder: RunFolder, spec: SweepSpec) -> RunFolder:
    """The folder, where its record is of the same specification; a folder without one is not a run."""
    if not folder.run_file.is_file():
        raise RunConflict("run_id", folder.run_id, f"an id that no other folder in {folder.path.parent} has")
    if folder.record().spec_hash != spec_hash(spec):
        raise RunConflict("run_id", folder.run_id, "an id that no run with another specification has")
    return folder


def _products(spec: SweepSpec) -> tuple[str, ...]:
    return spec.product_ids or (spec.product_id,)


def _source(store: BarStore, spec: SweepSpec) -> str:
    """Where the bars came from; SIMULATED where any of them did."""
    from cluster.market_data import SIMULATED

    wanted = [(product_id, spec.granularity) for product_id in _products(spec)]
    found = [info for info in store.ls() if (info.product_id, info.granularity) in wanted]
    if any(info.simulated for info in found):
        return SIMULATED
    return ", ".join(dict.fromkeys(source for info in found for source in info.sources)) or UNKNOWN


def _info(folder: RunFolder) -> RunInfo:
    try:
        return RunInfo(folder.run_id, folder.record(), folder.progress())
    except RunError as error:
        return RunInfo(folder.run_id, None, None, str(error))


def _ending(job_ended_as: str) -> dict[str, Any]:
    update: dict[str, Any] = {"updated_ns": time.time_ns()}
    if job_ended_as == RunState.STOPPED:
        return update | {"state": RunState.STOPPED}
    message = f"the Ray job ended ({job_ended_as}) before the run did; start it again to go on from the finished blocks"
    failure = RunFailure(
        field="job", value=job_ended_as, rule="a driver that reports the end of the run", message=message
    )
    return update | {"state": RunState.FAILED, "error": failure}


def _checked_id(run_id: str) -> str:
    if not _RUN_ID.fullmatch(run_id):
        raise RunError("run_id", run_id, "1 to 64 of a-z, 0-9 and -")
    return run_id


def _git(*words: str) -> str:
    """The output of a read-only git command on this checkout; empty where there is none."""
    if not (ROOT / ".git").exists():
        return ""
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
