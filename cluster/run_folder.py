"""One run's folder: its files by name, what is in them, and how they are read and replaced.

``<run_id>/``: spec.json (what was asked), run.json (what it is computed from), progress.json (how far), a file
parts/block-<k>.parquet a finished block, then results.parquet, summary.json, best/ and report.html. Every file appears
whole or not at all.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import reprlib
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from strategies.backtest import SweepSpec

TICKET_FILE: Final = "queue.json"
# A leaderboard sorts by "best first"; these are the metrics of which less is better.
LOWER_IS_BETTER: Final = frozenset({"volatility", "max_drawdown", "max_drawdown_bars", "turnover"})

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
    def ticket_file(self) -> Path:
        """Why the run waits in the queue; absent where it does not (cluster/run_queue.py)."""
        return self.path / TICKET_FILE

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
        replace_file(self.run_file, to_json(record))

    def write_progress(self, progress: Progress) -> None:
        """Replace progress.json atomically."""
        replace_file(self.progress_file, to_json(progress))

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


def ranking(values: NDArray[np.float64], set_ids: NDArray[np.int64], metric: str) -> NDArray[np.int64]:
    """int64[m]: the rows from best to worst by one metric; not a number comes last, equal ones go by set id."""
    import numpy as np

    absent = np.isnan(values)
    keys = values if metric in LOWER_IS_BETTER else -values
    return np.lexsort((set_ids, np.where(absent, 0.0, keys), absent))


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


def to_json(model: BaseModel) -> bytes:
    return model.model_dump_json(indent=1).encode() + b"\n"
