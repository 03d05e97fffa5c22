"""A sweep as a Ray job: ``python -m jobs.sweep --run-dir DIR --bars-dir DIR`` computes the run laid out in DIR.

Starting and going on are the same: the specification and the bars are checked, the sets whose parts are in place are
counted as done, the others are computed, then the table, the summary and the report are written. The first sets of each
grid are computed here, which tells what the others cost; what is worth no worker's start is computed here as well. Exit
status: 0 done, 1 failed, 2 refused before Ray was joined, 3 another driver is at work, 128 + signal stopped. What went
wrong is in DIR/progress.json.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

from cluster.market_data import BarStore, MarketDataError
from cluster.runs import (
    Block,
    Progress,
    RunBusy,
    RunConflict,
    RunError,
    RunFailure,
    RunFolder,
    RunRecord,
    RunState,
    code_identity,
    describe_run,
    failure_of,
    market_hash,
    read_market,
    spec_hash,
)
from jobs import background, blocks, parts, results
from jobs.plan import GridPlan, ParameterSets
from jobs.search import StudySource
from jobs.study import check_search
from strategies.backtest import SweepSpec
from strategies.metrics import NS_PER_YEAR
from strategies.model import Bars, Float64Array
from strategies.panel import Panel
from strategies.segments import plan_segments

DONE: Final = 0
FAILED: Final = 1
REFUSED: Final = 2
BUSY: Final = 3

PROGRESS_INTERVAL_S: Final = 0.2
# A worker costs two seconds of a core before its first block (Ray, Tune and kernels to load), so another one must have
# at least this much to do, and what is less than this in all is done by the driver alone.
WORKER_SECONDS_MIN: Final = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Drive one run; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.sweep", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="the run's folder, with spec.json in it")
    parser.add_argument("--bars-dir", type=Path, required=True, help="root of the bar store")
    options = parser.parse_args(arguments)
    # Workers may have another current folder.
    folder = RunFolder(options.run_dir.resolve())
    if not folder.spec_file.is_file():
        return _say(f"--run-dir: {folder.path} has no spec.json", REFUSED)
    try:
        with folder.driving():
            return drive(folder, BarStore(options.bars_dir.resolve()))
    except RunBusy as error:
        return _say(str(error), BUSY)


def drive(folder: RunFolder, store: BarStore) -> int:
    """Check and compute the run in ``folder``, whose only driver we are; returns the exit status."""
    state = Reporter(folder)
    stop_on_signals(state)
    try:
        run = check(folder, store, state)
    except (ValueError, MarketDataError, OSError) as error:
        # The typed errors of specification, bars and folder are of these kinds: the user's to mend, so no trace.
        state.failed(failure_of(error))
        return _say(f"refused: {error}", REFUSED)
    if run is None:
        return _say(f"{folder.run_id} has already succeeded; nothing to do", DONE)
    try:
        compute(run, state)
    except Exception as error:
        # The edge of the job: whatever it was, the run must not stay RUNNING.
        logging.getLogger(__name__).exception("run %s failed", folder.run_id)
        state.failed(failure_of(error))
        return FAILED
    return DONE


@dataclass(frozen=True)
class Run:
    """A run that passed its checks."""

    folder: RunFolder
    spec: SweepSpec
    record: RunRecord
    bars: Bars | Panel
    sets: ParameterSets


def check(folder: RunFolder, store: BarStore, state: Reporter) -> Run | None:
    """Everything that can be known to be wrong before Ray is joined; None where the run has already succeeded.

    Raises ``SpecError``, ``DataError``, ``MissingData``, or ``RunError`` where the specification or the bars are not
    those the run began with.
    """
    state.phase("checking")
    spec = folder.spec()
    if folder.run_file.is_file():
        record = folder.record()
        _require("spec.json", spec_hash(spec), record.spec_hash, "specification")
        # Bars that were changed since then are no reason to spoil a run that is over.
        if _succeeded(folder):
            return None
        bars = read_market(store, spec, record)
        _require("data_hash", market_hash(bars), record.data_hash, "bars")
    else:
        bars = read_market(store, spec)
        record = describe_run(folder.run_id, store, spec, "sweep", time.time_ns())
    # What counts is the code that computes, and that may be another machine's than the one that laid out the folder.
    cuts = record.cuts or tuple(plan_segments(len(bars)).tolist())
    record = record.model_copy(update=code_identity() | {"cuts": cuts})
    if spec.search is not None:
        check_search(spec, len(bars))
    folder.write_record(record)
    folder.parts_dir.mkdir(exist_ok=True)
    state.begin(record.set_count)
    return Run(folder, spec, record, bars, spec.parameter_sets())


def compute(run: Run, state: Reporter) -> None:
    """Compute what is missing, then write what the run is for."""
    state.phase("computing")
    plan = plan_of(run, state)
    work = work_of(run)

    def on_block(block: Block, seconds: float) -> None:
        state.block(block, seconds)

    blocks.compute_here(work, plan, on_block, until=lambda: plan.all_known)
    if plan.left_s < WORKER_SECONDS_MIN:
        blocks.compute_here(work, plan, on_block)
    if plan.finished:
        finish(run, state, plan)
        return
    state.phase("connecting")
    cpus = blocks.connect()
    stop_on_signals(state)  # joining Ray has set its own handler
    state.phase("computing")
    # As many as there are CPUs, but none that would start for less work than its start costs.
    plan.workers = max(1, min(cpus, round(plan.left_s / WORKER_SECONDS_MIN)))
    from jobs.trials import run_blocks

    run_blocks(work, plan, plan.workers, on_block, on_last=lambda: finish(run, state, plan))


def plan_of(run: Run, state: Reporter) -> GridPlan | StudySource:
    """The blocks of the grids, or of the search; what the parts in the run folder hold counts as done."""
    if run.spec.search is None:
        plan = GridPlan(run.sets, parts.finished_blocks(run.folder, run.record))
        state.resumed(run.record.set_count - plan.left)
        return plan
    source = StudySource(run.folder, run.record, run.spec)
    state.begin(source.total)
    state.resumed(source.total - source.left)
    return source


def work_of(run: Run) -> blocks.Work:
    """What the workers of ``run`` get."""
    return blocks.Work(
        run.folder,
        parts.Identity.of(run.record),
        run.sets,
        run.bars,
        run.spec.costs,
        run.spec.sizing,
        np.array(run.record.cuts, dtype=np.int64),
        run.spec.decide_on,
    )


def finish(run: Run, state: Reporter, plan: GridPlan | StudySource | None = None) -> None:
    """Write the table, the best set's curves, the summary and the report, and mark the run SUCCEEDED."""
    searched = plan if isinstance(plan, StudySource) else None
    if searched is not None:
        run = with_sets(run, searched.sets())
        state.begin(searched.total)
    state.phase("ranking")
    from jobs import honesty

    table, moments = searched.assemble() if searched else results.assemble(run.folder, run.record, run.sets)
    cuts = np.array(run.record.cuts, dtype=np.int64)
    study = honesty.study_of(run.sets, moments, cuts, bars_per_year(run.bars), run.spec.seed)
    columns = honesty.columns_of(study)
    ranked = results.rank(table, columns, run.spec)
    results.write_results(run.folder, ranked)
    best = ranked.top(1)[0]
    result = results.write_best(run.folder, run.spec, best, run.bars)

    def equity_of(set_id: int) -> Float64Array:
        return results.run_set(run.spec, *study.describe(set_id), run.bars).equity

    page = honesty.page_of(study, columns, best["set_id"], result, equity_of)
    results.write_json(run.folder.honesty_file, page)
    speed = results.Speed(state.computed_sets, state.computed_blocks, state.blocks_s, state.timings_s())
    summary = results.summarise(run.record, run.spec, ranked, speed)
    if searched is not None:
        summary |= {"evaluations": searched.evaluations, "study": searched.summary()}
        if len(searched.study.bar_counts) > 1:
            summary["evaluations_per_s"] = None  # its sets were not all run on the same bars
    results.write_json(run.folder.summary_file, summary)
    for place, row in enumerate(summary["top"], 1):
        print(f"{place:3}. {row['strategy']} {row['params']} {ranked.sorted_by} {row[ranked.sorted_by]}", flush=True)
    state.phase("reporting")
    from jobs.report import write_report

    write_report(run.folder, run.bars)
    state.succeeded()
    print("seconds:", " ".join(f"{phase} {spent_s:.2f}" for phase, spent_s in state.timings_s().items()), flush=True)


def with_sets(run: Run, sets: ParameterSets) -> Run:
    """The run of a search once its sets are known; its record says so from now on."""
    record = run.record.model_copy(update={"set_count": sum(len(matrix) for _, matrix in sets)})
    run.folder.write_record(record)
    return Run(run.folder, run.spec, record, run.bars, sets)


@dataclass
class Reporter:
    """Writes progress.json, not more often than every ``PROGRESS_INTERVAL_S``, and a line of log a block."""

    folder: RunFolder
    started_ns: int = field(default_factory=time.time_ns)
    computed_sets: int = 0
    computed_blocks: int = 0
    _blocks_began_s: float = math.inf
    _blocks_ended_s: float = math.inf
    _progress: Progress = field(init=False)
    _timings_s: dict[str, float] = field(default_factory=dict)
    _phase_began_s: float = field(default_factory=time.monotonic)
    _written_s: float = 0.0

    def __post_init__(self) -> None:
        self._progress = Progress(state=RunState.RUNNING, started_ns=self.started_ns, updated_ns=self.started_ns)

    def phase(self, name: str) -> None:
        """The run enters a phase; the time since the last one counts for that one."""
        self._count_phase()
        # A run that has succeeded keeps saying so while a repeated start looks at it.
        if name != "checking":
            self._write(phase=name, state=RunState.RUNNING)
        self._progress = self._progress.model_copy(update={"phase": name})

    def begin(self, total_sets: int) -> None:
        """The checks are passed."""
        self._write(total_sets=total_sets)

    def resumed(self, done_sets: int) -> None:
        """So many sets were found done."""
        if done_sets:
            print(f"going on: {done_sets} of {self._progress.total_sets} sets are done", flush=True)
        self._write(done_sets=done_sets)

    def block(self, block: Block, seconds: float) -> None:
        """A block has been computed, which took ``seconds`` until now."""
        size = block.stop - block.start
        self.computed_sets += size
        self.computed_blocks += 1
        self._blocks_ended_s = time.monotonic()
        self._blocks_began_s = min(self._blocks_began_s, self._blocks_ended_s - seconds)
        done = self._progress.done_sets + size
        self._progress = self._progress.model_copy(update={"done_sets": done})
        what = f"block {block.start}-{block.stop}: {size} sets in {seconds:.2f} s"
        print(f"{what}, {done} of {self._progress.total_sets} done", flush=True)
        if time.monotonic() - self._written_s >= PROGRESS_INTERVAL_S:
            self._write()

    def failed(self, failure: RunFailure) -> None:
        """The run has failed."""
        self._write(state=RunState.FAILED, error=failure)

    def stopped(self) -> None:
        """The run was asked to stop."""
        self._write(state=RunState.STOPPED)

    def succeeded(self) -> None:
        """Everything is in place."""
        self._count_phase()
        self._write(state=RunState.SUCCEEDED, phase="done", done_sets=self._progress.total_sets)

    @property
    def blocks_s(self) -> float:
        """From the first block's beginning to the last one's end, without the start of workers; 0 without blocks."""
        return self._blocks_ended_s - self._blocks_began_s if self.computed_sets else 0.0

    def timings_s(self) -> dict[str, float]:
        """Seconds spent in each phase so far."""
        self._count_phase()
        return dict(self._timings_s)

    def _count_phase(self) -> None:
        now_s = time.monotonic()
        if self._progress.phase:
            spent_s = self._timings_s.get(self._progress.phase, 0.0)
            self._timings_s[self._progress.phase] = spent_s + now_s - self._phase_began_s
        self._phase_began_s = now_s

    def _write(self, **update: object) -> None:
        self._progress = self._progress.model_copy(update={**update, "updated_ns": time.time_ns()})
        self.folder.write_progress(self._progress)
        self._written_s = time.monotonic()


def bars_per_year(bars: Bars | Panel) -> float:
    """Returns a year, as the metrics count them; not a number where the bars take no time."""
    years = (int(bars.ts_ns[-1]) - int(bars.ts_ns[0])) / NS_PER_YEAR
    return (len(bars) - 1) / years if years > 0 else math.nan


def _require(field: str, found: str, began_with: str, what: str) -> None:
    if found != began_with:
        raise RunConflict(field, found, f"the {what} the run began with, {began_with}")


def _succeeded(folder: RunFolder) -> bool:
    if not all(path.is_file() for path in (folder.results_file, folder.summary_file, folder.report_file)):
        return False
    try:
        return folder.progress().state == RunState.SUCCEEDED
    except RunError:
        return False  # a lost or damaged progress.json is no reason to refuse: this driver writes a new one


def stop_on_signals(state: Reporter) -> None:
    """From now on SIGTERM (a stopped job) and SIGINT mark the run STOPPED and end this process.

    It ends at once: an exception raised from the handler could be caught by the code it happens to interrupt, and the
    Jobs API gives three seconds before it kills. Ray ends the workers of a driver that is gone.
    """

    def stop(number: int, _: FrameType | None) -> None:
        state.stopped()
        print(f"stopped by {signal.Signals(number).name}", flush=True)
        os._exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr if status else sys.stdout, flush=True)
    return status


if __name__ == "__main__":
    background.step_back(whole_session=background.is_job())
    sys.exit(main())
