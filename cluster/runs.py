"""Run folders: one folder a run holds what was asked, what it was computed from, how far it is and what came out.

``runs_dir/<run_id>/``: spec.json (what was asked), run.json (what it is computed from), progress.json (how far),
parts/block-<k>.parquet (one a finished block), then results.parquet, summary.json, best/, report.html. Every file
appears whole or not at all. The folder is the run: a driver that was killed is started again on it and goes on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import reprlib
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from cluster.market_data import BarStore
    from strategies.backtest import SweepSpec
    from strategies.model import Bars

ROOT: Final = Path(__file__).resolve().parent.parent
BARS_MIN: Final = 2
UNKNOWN: Final = "unknown"
# A leaderboard sorts by "best first"; these are the metrics of which less is better.
LOWER_IS_BETTER: Final = frozenset({"volatility", "max_drawdown", "max_drawdown_bars", "turnover"})
_RUN_ID: Final = re.compile(r"[a-z0-9-]{1,64}")
_GIT_TIMEOUT_S: Final = 5.0

_R = TypeVar("_R", bound=BaseModel)


class RunError(ValueError):
    """A run breaks a rule: ``field`` names what, ``value`` is what it was, ``rule`` what was expected."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: expected {rule}, was {reprlib.repr(value)}")
        self.field = field
        self.value = str(value)
        self.rule = rule


class RunConflict(RunError):
    """The run id is taken by a run with another specification."""


class UnknownRun(RunError):
    """There is no run with this id."""


class RunBusy(RunError):
    """Another driver is working on this run."""


class RunState(StrEnum):
    """Where a run stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself; a FAILED or STOPPED run can be started again."""
        return self in {RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunFailure(_Record):
    """Why a run failed, in the four parts a form or a command needs."""

    field: str
    value: str
    rule: str
    message: str


class Progress(_Record):
    """How far a run is (progress.json). Times in nanoseconds UTC."""

    state: RunState
    phase: str = ""
    done_sets: int = Field(0, ge=0)
    total_sets: int = Field(0, ge=0)
    started_ns: int | None = None
    updated_ns: int
    error: RunFailure | None = None


class Block(_Record):
    """Parameter sets ``start`` to ``stop`` (exclusive, counted over the whole run), all of one grid."""

    strategy: str
    grid: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)


class RunRecord(_Record):
    """What a run is computed from (run.json). The block plan is added by the run's first driver."""

    run_id: str
    kind: Literal["sweep", "backtest"]
    created_ns: int
    spec_hash: str
    product_id: str
    granularity: str
    data_hash: str
    data_source: str
    bar_count: int
    first_ts_ns: int
    last_ts_ns: int
    seed: int
    set_count: int
    dropped_count: int
    look_ahead: bool
    git_revision: str
    git_dirty: bool
    code_hash: str
    versions: dict[str, str]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A line of a list of runs; ``record`` and ``progress`` are None where the folder is damaged."""

    run_id: str
    record: RunRecord | None
    progress: Progress | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The files of one run, by name. Reading raises ``RunError`` where a file is absent or damaged."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name, which is also the Ray job's submission id."""
        return self.path.name

    @property
    def spec_file(self) -> Path:
        return self.path / "spec.json"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.json"

    @property
    def parts_dir(self) -> Path:
        return self.path / "parts"

    @property
    def results_file(self) -> Path:
        return self.path / "results.parquet"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def equity_file(self) -> Path:
        return self.path / "best" / "equity.parquet"

    @property
    def fills_file(self) -> Path:
        return self.path / "best" / "fills.parquet"

    @property
    def report_file(self) -> Path:
        return self.path / "report.html"

    def part_file(self, index: int) -> Path:
        """Where the rows of block ``index`` of the plan go."""
        return self.parts_dir / f"block-{index}.parquet"

    def spec(self) -> SweepSpec:
        """What was asked; raises ``SpecError`` naming the field where it breaks a rule."""
        from strategies.backtest import parse_spec

        return parse_spec(_load_json(self.spec_file))

    def record(self) -> RunRecord:
        """What the run is computed from."""
        return _parse(RunRecord, self.run_file)

    def progress(self) -> Progress:
        """How far the run is. A killed driver leaves it RUNNING: see ``settle``."""
        return _parse(Progress, self.progress_file)

    def summary(self) -> dict[str, Any]:
        """The ended run's summary."""
        loaded = _load_json(self.summary_file)
        if not isinstance(loaded, dict):
            raise RunError(self.summary_file.name, type(loaded).__name__, "an object")
        return loaded

    def write_record(self, record: RunRecord) -> None:
        """Replace run.json atomically."""
        replace_file(self.run_file, _to_json(record))

    def write_progress(self, progress: Progress) -> None:
        """Replace progress.json atomically."""
        replace_file(self.progress_file, _to_json(progress))

    def entrypoint(self, bars_dir: Path, python: str = sys.executable) -> str:
        """The command line of this run's Ray job; the job is started by name and never imported from here."""
        words = [python, "-m", "jobs.sweep", "--run-dir", str(self.path), "--bars-dir", str(bars_dir)]
        return shlex.join(words)

    def leaderboard(self, limit: int = 50, sort_by: str | None = None) -> list[dict[str, Any]]:
        """The best ``limit`` rows so far, best first: ``set_id``, ``strategy``, ``params`` and every metric.

        Before the run has ended it is read from the finished blocks. A metric that is not a number is None.
        """
        from strategies.metrics import METRICS

        metric = sort_by or self.spec().sort_by
        if metric not in METRICS:
            raise RunError("sort_by", metric, f"one of {', '.join(METRICS)}")
        return _top_rows(read_rows(self), limit, metric, METRICS)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the folder as its only driver; raises ``RunBusy``. A killed driver's hold ends with it."""
        with (self.path / "driver.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunBusy("run_id", self.run_id, "no other driver on this run") from error
            yield


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
    now_ns = time.time_ns()
    folder = RunFolder(runs_dir / _checked_id(run_id or default_run_id(spec, now_ns)))
    if folder.path.exists():
        return _same_run(folder, spec)
    record = describe_run(folder.run_id, store, spec, kind, now_ns)
    runs_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=runs_dir) as staging:
        whole = RunFolder(Path(staging) / folder.run_id)
        whole.parts_dir.mkdir(parents=True)
        replace_file(whole.spec_file, _to_json(spec))
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
    bars = read_bars(store, spec)
    set_count = sum(len(matrix) for _, matrix in sets)
    return RunRecord(
        run_id=run_id,
        kind=kind,
        created_ns=created_ns,
        spec_hash=spec_hash(spec),
        product_id=bars.product_id,
        granularity=str(bars.granularity),
        data_hash=store.data_hash(bars),
        data_source=_source(store, bars),
        bar_count=len(bars),
        first_ts_ns=int(bars.ts_ns[0]),
        last_ts_ns=int(bars.ts_ns[-1]),
        seed=spec.seed,
        set_count=set_count,
        dropped_count=spec.dropped(),
        look_ahead=spec.costs.look_ahead,
        **code_identity(),
    )


def read_bars(store: BarStore, spec: SweepSpec) -> Bars:
    """The bars a specification names; raises ``MissingData``, or ``RunError`` where there are too few to compute on."""
    bars = store.read(spec.product_id, spec.granularity, spec.start_ns, spec.end_ns)
    if len(bars) < BARS_MIN:
        raise RunError("start", len(bars), f"at least {BARS_MIN} bars of {spec.product_id} between start and end")
    return bars


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


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole: into a temporary neighbour, to the disk, then into place."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def ranking(values: NDArray[np.float64], set_ids: NDArray[np.int64], metric: str) -> NDArray[np.int64]:
    """int64[m]: the rows from best to worst by one metric; not a number comes last, equal ones go by set id."""
    import numpy as np

    keys = values if metric in LOWER_IS_BETTER else -values
    return np.lexsort((set_ids, np.where(np.isnan(keys), np.inf, keys)))


def read_rows(folder: RunFolder) -> pa.Table:
    """Every row there is so far: results.parquet where the run has ended, else the finished blocks; maybe no row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if folder.results_file.is_file():
            return pq.read_table(folder.results_file)
        parts = [pq.read_table(path) for path in sorted(folder.parts_dir.glob("block-*.parquet"))]
    except (pa.ArrowException, OSError) as error:
        raise RunError("run_id", folder.run_id, f"readable result files ({error})") from error
    return pa.concat_tables(parts).replace_schema_metadata() if parts else pa.table({})


def _top_rows(table: pa.Table, limit: int, metric: str, metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    if not table.num_rows:
        return []
    order = ranking(table[metric].to_numpy(), table["set_id"].to_numpy(), metric)[: max(0, limit)]
    rows = table.select(["set_id", "strategy", "params", *metrics]).take(order).to_pylist()
    return [{key: _plain(key, value) for key, value in row.items()} for row in rows]


def _plain(key: str, value: Any) -> Any:
    if key == "params":
        return json.loads(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _same_run(folder: RunFolder, spec: SweepSpec) -> RunFolder:
    """The folder, where its record is of the same specification; a folder without one is not a run."""
    if not folder.run_file.is_file():
        raise RunConflict("run_id", folder.run_id, f"an id that no other folder in {folder.path.parent} has")
    if folder.record().spec_hash != spec_hash(spec):
        raise RunConflict("run_id", folder.run_id, "an id that no run with another specification has")
    return folder


def _source(store: BarStore, bars: Bars) -> str:
    from cluster.market_data import SIMULATED

    for info in store.ls():
        if (info.product_id, info.granularity) == (bars.product_id, bars.granularity):
            return SIMULATED if info.simulated else ", ".join(info.sources)
    return UNKNOWN


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(path.name, str(path), f"a readable file ({error.strerror})") from error


def _load_json(path: Path) -> object:
    try:
        return json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise RunError(path.name, str(path), f"JSON ({error})") from error


def _parse(model: type[_R], path: Path) -> _R:
    try:
        return model.model_validate_json(_read(path))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join([path.name, *(str(part) for part in first["loc"])])
        raise RunError(field, first["input"], first["msg"]) from error


def _to_json(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=1).encode() + b"\n"
