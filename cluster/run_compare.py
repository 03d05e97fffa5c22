"""Runs side by side: whether their figures can be compared at all, what was asked differently, and what came of it.

Everything is read from the run folders; nothing is computed anew and nothing of a user's is run. The first run is what
the others are compared with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.run_checks import Check, Difference, checks_of, differences_of, held_out_of
from cluster.run_folder import RunError, RunFolder, RunRecord, RunState, UnknownRun, best_first, sorting_metric
from cluster.run_honesty import honesty_of
from cluster.run_pairs import CommonSets, CurveDifference, common_sets, curve_difference
from cluster.runs import open_run
from strategies.base import SpecError
from strategies.metrics import METRICS
from strategies.model import Float64Array, Int64Array
from strategies.segments import HONEST_COLUMNS

if TYPE_CHECKING:
    import pyarrow as pa

RUNS_MAX: Final = 12
# Below this probability a difference is taken for more than chance.
SIGNIFICANT: Final = 0.05


@dataclass(frozen=True)
class ComparedRun:
    """A finished run's files, read and found whole. ``spec`` is spec.json as it stands; the curve is the best set's."""

    folder: RunFolder
    record: RunRecord
    spec: Mapping[str, Any]
    table: pa.Table
    summary: Mapping[str, Any]
    honesty: Mapping[str, Any]
    curve: tuple[Int64Array, Float64Array]

    @property
    def run_id(self) -> str:
        """Its name."""
        return self.folder.run_id


@dataclass(frozen=True, slots=True)
class Side:
    """One run in the comparison: its best sets by ``sorted_by`` (the first places of ``rows``) and its facts."""

    run_id: str
    sorted_by: str
    sort_note: str
    rows: tuple[dict[str, Any], ...]
    honesty: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Pair:
    """A run against the first one; ``comparable`` where no check of these two is bad."""

    base: str
    other: str
    comparable: bool
    common: CommonSets
    curves: tuple[CurveDifference, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """``comparable`` where no check is bad; ``answer`` is all of it in a few sentences."""

    runs: tuple[Side, ...]
    comparable: bool
    answer: tuple[str, ...]
    checks: tuple[Check, ...]
    differences: tuple[Difference, ...]
    pairs: tuple[Pair, ...]


def read_runs(runs_dir: Path, run_ids: Sequence[str]) -> list[ComparedRun]:
    """The runs, whole. Raises ``UnknownRun``, or ``RunError`` naming run and file where one is absent or damaged."""
    if not 2 <= len(run_ids) <= RUNS_MAX:
        raise RunError("run_id", list(run_ids), f"2 to {RUNS_MAX} runs")
    for place, run_id in enumerate(run_ids):
        if run_id in run_ids[:place]:
            raise RunError("run_id", run_id, "each run once")
    return [read_run(_found(runs_dir, run_id)) for run_id in run_ids]


def read_run(folder: RunFolder) -> ComparedRun:
    """One run; raises ``RunError`` as ``read_runs``."""
    with _of_run(folder.run_id):
        state = folder.progress().state
        if state is not RunState.SUCCEEDED:
            hint = f" (desk jobs fetch {folder.run_id})" if folder.remote_file.exists() else ""
            raise RunError("state", str(state), f"a run that has SUCCEEDED{hint}")
        record, spec, summary = folder.record(), folder.spec_content(), folder.summary()
        try:
            held_out_of(record)
        except SpecError as error:
            raise RunError(folder.run_file.name, error.value, error.rule) from error
        table = _table(folder.results_file, ("set_id", "strategy", "params", *METRICS))
        if not table.num_rows:
            raise RunError(folder.results_file.name, 0, "at least one row")
        curve = _table(folder.equity_file, ("ts_ns", "equity"))
        honesty = honesty_of(folder)
        if record.cuts and honesty["why_not"]:
            raise RunError(folder.honesty_file.name, str(folder.honesty_file), "a readable file")
        points = (curve["ts_ns"].to_numpy(), curve["equity"].to_numpy())
        return ComparedRun(folder, record, spec, table, summary, honesty, points)


def compare(runs: Sequence[ComparedRun], sort_by: str | None = None, top: int = 5) -> Comparison:
    """Put the runs side by side, the best ``top`` sets of each by ``sort_by``.

    Without it by what all were sorted by, or where that differs by the held-out Sharpe ratio. Raises ``RunError`` for
    a column there is not.
    """
    asked = {str(run.spec.get("sort_by")) for run in runs}
    wanted = sort_by or (asked.pop() if len(asked) == 1 else "oos_sharpe")
    if wanted not in (*METRICS, *HONEST_COLUMNS):
        raise RunError("sort_by", wanted, f"one of {', '.join((*METRICS, *HONEST_COLUMNS))}")
    sides = tuple(_side(run, wanted, top) for run in runs)
    identities = [(run.record, run.spec) for run in runs]
    checks = checks_of(identities)
    pairs = tuple(_pair(runs[0], other) for other in runs[1:])
    comparable = all(check.level != "bad" for check in checks)
    differences = differences_of({run.run_id: run.spec for run in runs})
    answer = tuple(_answer(sides, comparable, checks, pairs))
    return Comparison(sides, comparable, answer, checks, differences, pairs)


def _side(run: ComparedRun, wanted: str, top: int) -> Side:
    metric, note = sorting_metric(run.table, wanted)
    names = [name for name in (*METRICS, *HONEST_COLUMNS, "history") if name in run.table.column_names]
    order = best_first(run.table, metric)[: max(1, top)]
    rows = run.table.select(["set_id", "strategy", "params", *names]).take(order).to_pylist()
    with _of_run(run.run_id):
        plain = tuple(_plain(row, names) for row in rows)
    return Side(run.run_id, metric, note, plain, dict(run.honesty), _facts(run))


def _plain(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    try:
        params = json.loads(row["params"])
    except ValueError as error:
        raise RunError("results.parquet", row["params"], f"parameters as JSON ({error})") from error
    return row | {"params": params} | {name: row[name] if math.isfinite(row[name]) else None for name in names}


def _facts(run: ComparedRun) -> dict[str, Any]:
    record, summary, study = run.record, run.summary, run.summary.get("study") or {}
    facts = {name: getattr(record, name) for name in ("kind", "created_ns", "product_id", "granularity", "data_source")}
    facts |= {name: getattr(record, name) for name in ("bar_count", "first_ts_ns", "last_ts_ns", "seed", "look_ahead")}
    facts |= {"sets": run.table.num_rows, "dropped_sets": record.dropped_count}
    facts |= {name: summary.get(name) for name in ("evaluations", "evaluations_per_s", "wall_s")}
    facts |= {f"search_{name}": study.get(name) for name in ("method", "objectives", "constraints", "runs", "endings")}
    facts |= {"search_generations": len(study["generations"]) if study.get("generations") else None}
    facts |= {name: getattr(record, name) for name in ("git_revision", "git_dirty", "code_hash", "data_hash")}
    return facts | {"spec_hash": record.spec_hash, "versions": dict(record.versions)}


def _pair(base: ComparedRun, other: ComparedRun) -> Pair:
    curves = [curve_difference("all bars", base.curve, other.curve)]
    borders = [int(border) for run in (base, other) if (border := run.honesty.get("held_out_from_ts_ns")) is not None]
    if len(borders) == 2:
        curves.append(curve_difference("held-out bars", base.curve, other.curve, max(borders)))
    checks = checks_of([(run.record, run.spec) for run in (base, other)])
    comparable = all(check.level != "bad" for check in checks)
    return Pair(base.run_id, other.run_id, comparable, common_sets(base.table, other.table), tuple(curves))


def _answer(sides: Sequence[Side], comparable: bool, checks: Sequence[Check], pairs: Sequence[Pair]) -> Iterator[str]:
    if comparable:
        yield "The figures can be compared: same bars, costs and sizing."
    else:
        what = ", ".join(check.about for check in checks if check.level == "bad")
        yield f"The figures cannot be compared: the runs differ in {what}."
    for side in sides[1:]:
        first, best = sides[0].rows[0], side.rows[0]
        shown = [
            f"{name} {_text(first.get(name))} and {_text(best.get(name))}"
            for name in ("is_sharpe", "oos_sharpe", "sharpe")
            if name in first and name in best
        ]
        yield f"Best sets of {sides[0].run_id} and {side.run_id}: {'; '.join(shown)}."
    for pair in pairs:
        yield _of_curves(pair)
        yield _of_sets(pair.common, pair)


def _of_curves(pair: Pair) -> str:
    told = pair.curves[-1]
    about = f"Curves of the leaders of {pair.base} and {pair.other} over {told.about}"
    if told.p_value is None or told.base_sharpe is None or told.other_sharpe is None:
        same = told.correlation is not None and told.correlation > 1 - 1e-9
        why = "are the same" if same else f"({told.returns} returns in common) are too few to tell apart"
        return f"{about} {why}."
    figures = f"Sharpe {told.base_sharpe:.2f} and {told.other_sharpe:.2f}, p {_p(told.p_value)}"
    if not pair.comparable:
        return f"{about}: {figures}; what differs may be the reason."
    if told.p_value >= SIGNIFICANT:
        return f"{about}: {figures}: chance explains the difference."
    better = pair.other if told.other_sharpe > told.base_sharpe else pair.base
    return f"{about}: {figures}: {better} is better by more than chance explains, if its set was not picked on them."


def _of_sets(common: CommonSets, pair: Pair) -> str:
    if not common.sets:
        return f"{pair.base} and {pair.other} have no parameter set in common."
    sets = f"{common.sets:,} parameter sets that {pair.base} and {pair.other} have in common"
    if common.identical == common.sets:
        return f"All {sets} are equal bit for bit."
    ranks = next((one.rank_correlation for one in common.metrics if one.metric == "sharpe"), None)
    equal = f"Of {sets} {common.identical:,} are equal bit for bit"
    return f"{equal}; the rank correlation of their Sharpe ratios is {_text(ranks)}."


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _p(value: float) -> str:
    return "< 0.01" if value < 0.01 else f"= {value:.2f}"


def _found(runs_dir: Path, run_id: str) -> RunFolder:
    from cluster.run_archive import RunArchive

    try:
        return open_run(runs_dir, run_id)
    except UnknownRun as error:
        if any(one.run_id == run_id for one in RunArchive(runs_dir).ls()):
            rule = f"a run that is not archived (desk jobs restore {run_id})"
            raise UnknownRun("run_id", run_id, rule) from error
        raise


def _table(path: Path, columns: Sequence[str]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise RunError(path.name, str(path), f"a readable Parquet file ({error})") from error
    for name in columns:
        if name not in table.column_names:
            raise RunError(path.name, ", ".join(table.column_names), f"a column {name}")
    if any(table[name].null_count for name in columns):
        raise RunError(path.name, "null", f"a value in every row of {', '.join(columns)}")
    return table


@contextmanager
def _of_run(run_id: str) -> Iterator[None]:
    """Say of which run an error is."""
    try:
        yield
    except RunError as error:
        raise type(error)(f"{run_id}: {error.field}", error.value, error.rule) from error
