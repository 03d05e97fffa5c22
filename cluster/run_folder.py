"""One run's folder: its files by name, what is in them, and how they are read and replaced.

``<run_id>/``: spec.json (what was asked), strategies/ (users' own, where it asks for any), run.json (what it is
computed from), progress.json (how far), a file parts/block-<first set>-<end>.parquet a finished block, then
results.parquet, honesty.json, summary.json, best/ and report.html. Every file appears whole or not at all. Runs of
earlier versions, which lack some of this, are still read.
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
from typing import IO, TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from strategies.backtest import SweepSpec

TICKET_FILE: Final = "queue.json"
# A leaderboard sorts by "best first"; these are the metrics of which less is better.
LOWER_IS_BETTER: Final = frozenset({"volatility", "max_drawdown", "max_drawdown_bars", "turnover"})
# By what rows are ranked where the wanted column is not there yet or undefined for every set.
SORTED_BY_OTHERWISE: Final = "sharpe"

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
    """Parameter sets ``start`` to ``stop`` (exclusive, counted over the whole run), all of one grid.

    A search may run them on the first ``bar_count`` bars only (None: all), and a set more than once: it counts runs.
    """

    strategy: str
    grid: int = Field(ge=0)
    start: int = Field(ge=0)
    stop: int = Field(ge=1)
    bar_count: int | None = Field(None, ge=1)


class RunRecord(_Record):
    """What a run is computed from (run.json).

    ``cuts`` are the segments of bars whose moments are kept of every set (strategies/segments.py): bar numbers from 0
    to ``bar_count``. ``blocks`` is the plan of a run of an earlier version; now the parts tell what is done.
    """

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
    cuts: tuple[int, ...] = ()
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
    def strategies_dir(self) -> Path:
        """The files of users' own strategies, each by its strategy's name; absent where the run has none."""
        return self.path / "strategies"

    @property
    def ticket_file(self) -> Path:
        """Why the run waits in the queue; absent where it does not (cluster/run_queue.py)."""
        return self.path / TICKET_FILE

    @property
    def remote_file(self) -> Path:
        """On which other cluster the run is computed; absent where it is here (cluster/remote_runs.py)."""
        return self.path / "remote.json"

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

    @property
    def honesty_file(self) -> Path:
        return self.path / "honesty.json"

    def part_file(self, block: Block) -> Path:
        """Where the rows of a block go; the names sort as the sets do."""
        return self.parts_dir / f"block-{block.start:08d}-{block.stop:08d}.parquet"

    def load_strategies(self) -> None:
        """RUN the files of users' own strategies that this run has: for its driver and workers, and the user's command.

        The API must not call it. Raises ``StrategyFileError``.
        """
        from strategies.user_file import load_folder

        load_folder(self.strategies_dir)

    def spec(self) -> SweepSpec:
        """What was asked, users' own strategies loaded; raises ``SpecError`` naming the field that breaks a rule."""
        from strategies.backtest import parse_spec

        self.load_strategies()
        return parse_spec(_load_json(self.spec_file))

    def spec_content(self) -> dict[str, Any]:
        """What was asked, as it stands in spec.json: nothing of the user's is run for it."""
        content = _load_json(self.spec_file)
        if not isinstance(content, dict):
            raise RunError(self.spec_file.name, type(content).__name__, "an object")
        return content

    def sort_by(self) -> str:
        """The column the run is sorted by, read without running anything of the user's."""
        metric = self.spec_content().get("sort_by")
        if not isinstance(metric, str):
            raise RunError("spec.json", metric, "sort_by, a column's name")
        return metric

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
        """The best ``limit`` rows so far, best first: ``set_id``, ``strategy``, ``params``, every metric and what
        honesty adds once the run has ended.

        Before the run has ended it is read from the finished blocks. A figure that is not a number is None. Of a search
        ``history`` is the part of the bars a set was run on: below 1 it ranks below all others.
        """
        return self.ranked_rows(limit, sort_by)[0]

    def ranked_rows(self, limit: int = 50, sort_by: str | None = None) -> tuple[list[dict[str, Any]], str, str]:
        """The rows of ``leaderboard``, the column they are ranked by, and why it is not the wanted one (or nothing)."""
        from strategies.metrics import METRICS
        from strategies.segments import HONEST_COLUMNS

        wanted = sort_by or self.sort_by()
        if wanted not in (*METRICS, *HONEST_COLUMNS):
            raise RunError("sort_by", wanted, f"one of {', '.join((*METRICS, *HONEST_COLUMNS))}")
        table = read_rows(self)
        if not table.num_rows:
            return [], wanted, ""
        metric, note = sorting_metric(table, wanted)
        shown = [name for name in (*METRICS, *HONEST_COLUMNS, "history") if name in table.column_names]
        order = best_first(table, metric)[: max(0, limit)]
        rows = table.select(["set_id", "strategy", "params", *shown]).take(order).to_pylist()
        return [{key: _plain(key, value) for key, value in row.items()} for row in rows], metric, note

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


def best_first(table: pa.Table, metric: str) -> NDArray[np.int64]:
    """int64[m]: the rows of a table of results from best to worst by one of its columns.

    Of a search those that were run on the whole history come first, and of these those that break no constraint
    (which is known when it has ended).
    """
    import numpy as np

    order = ranking(table[metric].to_numpy(), table["set_id"].to_numpy(), metric)
    if "history" not in table.column_names:
        return order
    partly = table["history"].to_numpy()[order] < 1.0
    broken = np.zeros(len(order), dtype=np.bool_)
    if "feasible" in table.column_names:
        broken = ~table["feasible"].to_numpy(zero_copy_only=False)[order]
    return np.asarray(order[np.lexsort((np.arange(len(order)), broken, partly))])


def sorting_metric(table: pa.Table, wanted: str) -> tuple[str, str]:
    """The column to rank by: the wanted one, or the Sharpe ratio and the reason where that one tells nothing."""
    import numpy as np

    if wanted not in table.column_names:
        return SORTED_BY_OTHERWISE, f"ranked by {SORTED_BY_OTHERWISE}: {wanted} is known when the run has ended"
    if not np.isfinite(table[wanted].to_numpy()).any() and wanted != SORTED_BY_OTHERWISE:
        return SORTED_BY_OTHERWISE, f"ranked by {SORTED_BY_OTHERWISE}: {wanted} is undefined for every set"
    return wanted, ""


def read_rows(folder: RunFolder) -> pa.Table:
    """Every row there is so far: results.parquet where the run has ended, else the finished blocks; maybe no row.

    Of the blocks each set's first row; their moments are left out. Where a search has run sets on a part of the bars
    only, ``history`` says on which, and a set that was run again on more of them has its longest run's row.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if folder.results_file.is_file():
            return pq.read_table(folder.results_file)
        paths = sorted(folder.parts_dir.glob("block-*.parquet"))
        bar_count = folder.record().bar_count if paths else 0
        parts = [_part_rows(path, bar_count) for path in paths]
    except (pa.ArrowException, OSError) as error:
        raise RunError("run_id", folder.run_id, f"readable result files ({error})") from error
    if not parts:
        return pa.table({})
    rows = pa.concat_tables(parts)
    firsts = np.unique(rows["set_id"].to_numpy(), return_index=True)[1]
    rows = rows if len(firsts) == rows.num_rows else rows.take(firsts)
    return _longest_runs(rows) if (rows["history"].to_numpy() < 1.0).any() else rows.drop_columns("history")


def _part_rows(path: Path, bar_count: int) -> pa.Table:
    """A part's rows and the share of the bars they were run on, which its metadata tells."""
    import numpy as np
    import pyarrow.parquet as pq

    from strategies.metrics import METRICS

    table = pq.read_table(path, columns=["set_id", "strategy", "params", *METRICS])
    text = (table.schema.metadata or {}).get(b"block", b"{}")
    try:
        bars = Block.model_validate_json(text).bar_count
    except ValidationError:
        bars = None  # of an earlier version, whose blocks were always of all bars
    share = 1.0 if bars is None else bars / bar_count
    return table.replace_schema_metadata().append_column("history", [np.full(table.num_rows, share)])


def _longest_runs(rows: pa.Table) -> pa.Table:
    """Of rows that are of the same set the one that was run on most bars."""
    import numpy as np
    import pyarrow.compute as pc

    names = pc.binary_join_element_wise(rows["strategy"], rows["params"], "\n").combine_chunks()
    which = names.dictionary_encode().indices.to_numpy()
    order = np.lexsort((-rows["history"].to_numpy(), which))
    return rows.take(np.sort(order[np.unique(which[order], return_index=True)[1]]))


def _plain(key: str, value: Any) -> Any:
    if key == "params":
        return json.loads(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole: into a temporary neighbour, to the disk, then into place."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes the place of ``path`` whole, or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            yield file
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
