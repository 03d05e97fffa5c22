"""A search as a source of blocks: generations asked from the study, run by the workers, told back in a fixed order.

What a killed driver leaves are parts. The next one asks the same study again: sets whose rows are in a part that fits
are not run, and a part that holds other sets than the study asks for ends the run with a ``StudyConflict``. Rows are
counted over all runs of sets, in the order they are asked for; a set that goes on to another rung has one row each.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cluster.run_folder import Block, RunError, RunFolder, RunRecord
from cluster.study_file import read_notes, write_notes
from jobs.parts import MOMENTS_PER_SEGMENT, Identity, params_json, parts_of, read_part
from jobs.plan import PROBE_SETS, ParameterSets, block_seconds
from jobs.results import parameter_columns, unnamed_file
from jobs.study import Batch, Study
from strategies.metrics import METRICS
from strategies.model import Float64Array, Int64Array
from strategies.spec import SweepSpec

# The columns a search adds to the table of results.
SEARCH_COLUMNS: Final = ("generation", "rung", "history", "feasible", "pareto")
# A gap of a generation that is not much longer than a block is one block.
LONGER: Final = 1.3


class StudyConflict(RunError):
    """The parts in the run folder are not of the study that its specification and this code describe."""


@dataclass
class _Open:
    """A batch under way: the results so far, which rows have one, and the gaps that no block was cut from yet."""

    batch: Batch
    block_bars: int | None
    metrics: Float64Array
    done: NDArray[np.bool_]
    gaps: deque[tuple[int, int]]


class StudySource:
    """The blocks of a study, as ``jobs.plan.Source``; ``workers`` share a generation."""

    def __init__(
        self,
        folder: RunFolder,
        record: RunRecord,
        spec: SweepSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Repeats the study as far as the parts go. Raises ``RunError`` or ``StudyConflict``."""
        self.workers = 1
        self._folder, self._record, self._identity = folder, record, Identity.of(record)
        self._search, self._clock = spec.search, clock
        self._notes = read_notes(folder)
        self.study = Study(spec, record.bar_count, self._notes.extensions)
        self._parts = deque(_trusted(folder, record))
        self._cost_s: dict[int, float] = {}  # of a set of each grid on one bar
        self._largest: dict[int, int] = {}
        self._open: list[_Open] = []
        self._over = False
        self._running: dict[int, Block] = {}
        self._rows_done = 0
        self._before_s = dict(self._notes.spent_s)
        self._stage_began_s = (0, clock())
        self._begin()

    def next(self) -> Block | None:
        """The next block; None where the generation must end first, or the study is over."""
        for one in self._open:
            if one.gaps:
                block = self._cut(one)
                self._running[block.start] = block
                return block
        return None

    def rows(self, block: Block) -> Float64Array:
        """The block's sets float64[m, k]."""
        batch = self._open_of(block).batch
        return batch.matrix[block.start - batch.first_row : block.stop - batch.first_row]

    def done(self, block: Block, seconds: float) -> None:
        """Take the block's rows from its part; with the last one of a generation the next is asked for."""
        one = self._open_of(block)
        found = read_part(self._folder.part_file(block), self._identity)
        if found is None:
            raise RunError("parts", self._folder.part_file(block).name, "the rows of a block that is done")
        self._running.pop(block.start, None)
        self._take(one, *found)
        size, bars = block.stop - block.start, block.bar_count or self._record.bar_count
        # A small block says little of what a set costs in a large one.
        if 2 * size >= self._largest.get(block.grid, 0):
            self._cost_s[block.grid] = seconds / size / bars
        self._largest[block.grid] = max(size, self._largest.get(block.grid, 0))
        self._rows_done += size
        if all(each.done.all() for each in self._open):
            self._tell()
            self._begin()

    def lost(self, block: Block) -> None:
        """The block's rows are to be computed by another worker."""
        if self._running.pop(block.start, None) is not None:
            self._open_of(block).gaps.appendleft((block.start, block.stop))

    @property
    def finished(self) -> bool:
        """Whether the study is over."""
        return self._over

    @property
    def total(self) -> int:
        """Runs of sets there will be at most, by what is known now."""
        return self.study.planned_runs

    @property
    def left(self) -> int:
        """Runs that are not done yet, at most."""
        return self.total - self._rows_done

    @property
    def all_known(self) -> bool:
        """Whether it is known what a set costs, of each grid that waits."""
        return self._over or all(one.batch.grid in self._cost_s for one in self._open)

    @property
    def left_s(self) -> float:
        """Seconds of one worker that the rest of the study takes at most, by what is known now."""
        if self._over:
            return 0.0
        if not self._cost_s:
            return float("nan")
        mean_s = sum(self._cost_s.values()) / len(self._cost_s)
        # Each rung has so many fewer sets as it has more bars.
        bars = self.study.bar_counts[0] * len(self.study.bar_counts)
        here = sum(int((~one.done).sum()) * one.batch.bar_count for one in self._open)
        return mean_s * (here + (self.study.planned - self.study.set_count) * bars)

    @property
    def evaluations(self) -> int:
        """Bars times sets of all runs so far."""
        return self.study.evaluations

    def sets(self) -> ParameterSets:
        """The sets of the study so far, a matrix a grid."""
        return [(name, matrix) for name, matrix, _ in self.study.matrices()]

    def assemble(self) -> tuple[pa.Table, Float64Array]:
        """As ``results.assemble``, a row a set of ``sets()``: its last and longest run, with ``SEARCH_COLUMNS``."""
        columns = self.study.columns()
        ids = self._ids()
        columns = {name: values[ids] for name, values in columns.items()}
        row_of = {row: place for place, row in enumerate(columns["last_row"].tolist())}
        metrics = np.full((len(ids), len(METRICS)), np.nan)
        moments = unnamed_file(self._folder.path, (len(ids), self._identity.segments, MOMENTS_PER_SEGMENT))
        for _, table in parts_of(self._folder, self._record):
            rows = table["set_id"].to_numpy().tolist()
            wanted = [(place, row_of[row]) for place, row in enumerate(rows) if row in row_of]
            if not wanted:
                continue
            places, targets = map(list, zip(*wanted, strict=True))
            metrics[targets] = _metrics(table)[places]
            values = table["moments"].combine_chunks().flatten().to_numpy()
            moments[targets] = values.reshape(len(rows), *moments.shape[1:])[places]
        sets = self.sets()
        found: dict[str, Any] = {
            "set_id": np.arange(len(ids), dtype=np.int64),
            "strategy": pa.concat_arrays([pa.array([name] * len(matrix), pa.string()) for name, matrix in sets]),
            **parameter_columns(sets),
            "params": pa.concat_arrays([params_json(name, matrix) for name, matrix in sets if len(matrix)]),
        }
        found |= {name: metrics[:, place].copy() for place, name in enumerate(METRICS)}
        return pa.table(found | {name: columns[name] for name in SEARCH_COLUMNS}), moments

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the study; sets are numbered as in the table of results."""
        found = self.study.summary()
        number = {set_id: place for place, set_id in enumerate(self._ids().tolist())}
        params: dict[int, dict[str, Any]] = {}
        for name, matrix, ids in self.study.matrices():
            wanted = np.isin(ids, [one["set_id"] for one in found["pareto_front"]])
            texts = params_json(name, matrix[wanted]).to_pylist() if wanted.any() else []
            for set_id, text in zip(ids[wanted].tolist(), texts, strict=True):
                params[set_id] = {"strategy": name, "params": json.loads(text)}
        found["pareto_front"] = [
            one | params[one["set_id"]] | {"set_id": number[one["set_id"]]} for one in found["pareto_front"]
        ]
        found["generations"] = [
            one | {"best_set_id": None if one["best_set_id"] is None else number[one["best_set_id"]]}
            for one in found["generations"]
        ]
        return found

    def _ids(self) -> Int64Array:
        """The study's sets in the order of ``sets()``: grid by grid, in each as they were asked for."""
        return np.concatenate([set_ids for _, _, set_ids in self.study.matrices()])

    def _begin(self) -> None:
        """Ask the study till there is something to run, or it is over."""
        while True:
            while self._out_of_time():
                pass
            batches = self.study.next()
            self._open = [self._opened(batch) for batch in batches]
            if not batches:
                self._end()
                return
            if any(one.gaps for one in self._open):
                return
            self._tell()

    def _tell(self) -> None:
        self.study.tell([one.metrics for one in self._open])
        self._open = []
        if self.study.between_generations and self._search is not None and self._search.time_budget_s is not None:
            spent = self._notes.spent_s | {self.study.stage: self._spent_s()}
            self._note(spent_s=spent)

    def _opened(self, batch: Batch) -> _Open:
        """A batch with what the parts have of it."""
        count = len(batch.set_ids)
        metrics, done = np.full((count, len(METRICS)), np.nan), np.zeros(count, dtype=np.bool_)
        bars = None if batch.bar_count == self._record.bar_count else batch.bar_count
        one = _Open(batch, bars, metrics, done, deque())
        while self._parts and self._parts[0][0].start < batch.first_row + count:
            self._take(one, *self._parts.popleft())
        missing = np.flatnonzero(~done)
        for piece in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1):
            if len(piece):
                one.gaps.append((batch.first_row + int(piece[0]), batch.first_row + int(piece[-1]) + 1))
        self._rows_done += int(done.sum())
        return one

    def _take(self, one: _Open, block: Block, table: pa.Table) -> None:
        """Put a part's rows into their batch; they must be the sets that were asked for."""
        batch = one.batch
        first, last = block.start - batch.first_row, block.stop - batch.first_row
        fits = (block.strategy, block.grid, block.bar_count) == (batch.strategy, batch.grid, one.block_bars)
        if not fits or first < 0 or last > len(batch.set_ids):
            raise self._conflict(block, batch.generation)
        if not table["params"].combine_chunks().equals(params_json(batch.strategy, batch.matrix[first:last])):
            raise self._conflict(block, batch.generation)
        one.metrics[first:last] = _metrics(table)
        one.done[first:last] = True

    def _end(self) -> None:
        self._over = True
        if self._parts:
            raise self._conflict(self._parts[0][0], self.study.generation + 1)

    def _conflict(self, block: Block, generation: int) -> StudyConflict:
        rule = f"the sets that generation {generation} asks for; was it begun with other versions of optuna or cmaes?"
        return StudyConflict("parts", self._folder.part_file(block).name, rule)

    def _cut(self, one: _Open) -> Block:
        batch = one.batch
        start, end = one.gaps.popleft()
        cost_s = self._cost_s.get(batch.grid, 0.0) * batch.bar_count
        size = PROBE_SETS
        if batch.grid in self._cost_s:
            left_s = (
                sum(int((~each.done).sum()) * each.batch.bar_count for each in self._open) * self._cost_s[batch.grid]
            )
            size = max(1, int(block_seconds(left_s, self.workers) / max(cost_s, 1e-9)))
        stop = end if end - start <= LONGER * size else start + size
        if stop < end:
            one.gaps.appendleft((stop, end))
        return Block(strategy=batch.strategy, grid=batch.grid, start=start, stop=stop, bar_count=one.block_bars)

    def _open_of(self, block: Block) -> _Open:
        for one in self._open:
            if one.batch.first_row <= block.start < one.batch.first_row + len(one.batch.set_ids):
                return one
        raise AssertionError(f"{block} is of no batch under way")

    def _out_of_time(self) -> bool:
        """Whether a stage was ended here, by the clock now or by a note of an earlier driver."""
        study, budget_s = self.study, self._search.time_budget_s if self._search else None
        if budget_s is None or not study.between_generations or study.over:
            return False
        noted = self._notes.time_stops.get(study.stage)
        repeated = bool(self._parts)
        if noted is None and (repeated or not study.begun or self._spent_s() < budget_s):
            return False
        if noted is None:
            self._note(time_stops=self._notes.time_stops | {study.stage: study.generation})
        elif noted != study.generation:
            return False
        study.stop("time_budget")
        return True

    def _spent_s(self) -> float:
        """How long drivers have worked on this stage."""
        if self._stage_began_s[0] != self.study.stage:
            self._stage_began_s = (self.study.stage, self._clock())
        before_s = self._before_s.get(self.study.stage, 0.0)
        return before_s + self._clock() - self._stage_began_s[1]

    def _note(self, **update: Any) -> None:
        self._notes = self._notes.model_copy(update=update)
        write_notes(self._folder, self._notes)


def _trusted(folder: RunFolder, record: RunRecord) -> Iterator[tuple[Block, pa.Table]]:
    """The parts that fit, without their moments, in the order of their rows; any other file among them is deleted."""
    found = [(block, table.drop_columns("moments")) for block, table in parts_of(folder, record)]
    wanted = {folder.part_file(block).name for block, _ in found}
    for path in folder.parts_dir.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    return iter(sorted(found, key=lambda part: (part[0].start, part[0].stop)))


def _metrics(table: pa.Table) -> Float64Array:
    return np.stack([table[name].to_numpy() for name in METRICS], axis=1)
