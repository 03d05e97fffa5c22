"""A run's rows put together: the final table, the best set's curves, the summary.

The parts are read one after the other and the table is written piece by piece, so that a million sets fit: their rows
are held once, and their moments in a file that has no name and goes with the process.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run_folder import RunError, RunFolder, RunRecord, best_first, replace_file, replacing, sorting_metric
from jobs.parts import MOMENTS_PER_SEGMENT, PARQUET, parts_of, write_table
from jobs.plan import ParameterSets
from strategies import portfolio
from strategies.backtest import BacktestSpec, Result, SweepSpec, run
from strategies.base import RULES, parameter_table
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array, Int64Array
from strategies.panel import Panel
from strategies.portfolio import PortfolioResult
from strategies.registry import find
from strategies.segments import HONEST_COLUMNS

TOP_ROWS: Final = 10
# Rows that are put in order and written at a time.
ROWS_AT_A_TIME: Final = 100_000


@dataclass(frozen=True)
class Ranked:
    """All rows in the order of their sets, ``order`` int64[m] from best to worst, and what they are ranked by.

    ``sorted_by`` is not what was asked for where that is undefined for every set; ``note`` says why.
    """

    table: pa.Table
    order: Int64Array
    sorted_by: str
    note: str = ""

    def top(self, limit: int = TOP_ROWS) -> list[dict[str, Any]]:
        """The best rows as plain values: ``set_id``, ``strategy``, ``params``, the metrics; None for not a number."""
        return self._rows(self.order[:limit])

    def best_of(self, strategy: str) -> dict[str, Any]:
        """The best row of one strategy."""
        mine = self.table["strategy"].to_numpy(zero_copy_only=False)[self.order] == strategy
        return self._rows(self.order[np.argmax(mine)][np.newaxis])[0]

    def _rows(self, places: Int64Array) -> list[dict[str, Any]]:
        names = [name for name in (*METRICS, *HONEST_COLUMNS, "history") if name in self.table.column_names]
        rows = self.table.select(["set_id", "strategy", "params", *names]).take(pa.array(places)).to_pylist()
        return [_plain_row(row, names) for row in rows]


def assemble(folder: RunFolder, record: RunRecord, sets: ParameterSets) -> tuple[pa.Table, Float64Array]:
    """All rows in the order of their sets, and their moments float64[m, S, 6] in a file that has no name any more.

    Columns: ``set_id``, ``strategy``, a nullable column a parameter, ``params`` (JSON), the metrics.
    Raises ``RunError`` naming the first set that no part holds.
    """
    moments = unnamed_file(folder.path, (record.set_count, max(0, len(record.cuts) - 1), MOMENTS_PER_SEGMENT))
    pieces: list[pa.Table] = []
    reached = 0
    for block, table in parts_of(folder, record):
        if block.start > reached:
            break
        if block.stop <= reached:
            continue  # two drivers cut differently
        rows = table.slice(reached - block.start)
        values = rows["moments"].combine_chunks().flatten().to_numpy()
        moments[reached : block.stop] = values.reshape(-1, *moments.shape[1:])
        pieces.append(rows.drop_columns("moments").replace_schema_metadata())
        reached = block.stop
    if reached != record.set_count:
        raise RunError("parts", reached, f"the rows of each of {record.set_count} sets")
    rows = pa.concat_tables(pieces).combine_chunks()
    columns = {"set_id": rows["set_id"], "strategy": rows["strategy"], **parameter_columns(sets)}
    columns |= {name: rows[name] for name in ("params", *METRICS)}
    return pa.table(columns), moments


def rank(table: pa.Table, columns: Mapping[str, Float64Array], spec: SweepSpec) -> Ranked:
    """The rows of ``assemble`` with further ``columns`` (float64[m] each), ranked as the specification wants."""
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    sorted_by, note = sorting_metric(table, spec.sort_by)
    order = best_first(table, sorted_by)
    return Ranked(table, order, sorted_by, note)


def parameter_columns(sets: ParameterSets) -> dict[str, pa.Array]:
    """One column a parameter name over all sets, null where a strategy has no such parameter.

    Strategies that use the same name share its column; it holds whole numbers if they all do. A rule that is at its
    default in every set has no column.
    """
    total = sum(len(matrix) for _, matrix in sets)
    values: dict[str, Float64Array] = {}
    whole: dict[str, bool] = {}
    first = 0
    for strategy, matrix in sets:
        for position, info in enumerate(parameter_table(find(strategy))):
            column = values.setdefault(info.name, np.full(total, math.nan))
            column[first : first + len(matrix)] = matrix[:, position]
            whole[info.name] = whole.get(info.name, True) and info.kind == "int"
        first += len(matrix)
    unused = {info.name for info in RULES if (values[info.name] == info.default).all()}
    return {name: _nullable(column, whole[name]) for name, column in values.items() if name not in unused}


def write_results(folder: RunFolder, ranked: Ranked) -> None:
    """Put results.parquet into place, best first; the same rows make the same bytes."""
    with replacing(folder.results_file) as file, pq.ParquetWriter(file, ranked.table.schema, **PARQUET) as writer:
        for start in range(0, len(ranked.order), ROWS_AT_A_TIME):
            writer.write_table(ranked.table.take(pa.array(ranked.order[start : start + ROWS_AT_A_TIME])))


def run_set(
    spec: SweepSpec, strategy: str, params: Mapping[str, float], bars: Bars | Panel
) -> Result | PortfolioResult:
    """Run one set of a sweep once more with everything that happened; its metrics are those of the table."""
    backtest = BacktestSpec(
        product_id=spec.product_id,
        product_ids=spec.product_ids,
        granularity=spec.granularity,
        decide_on=spec.decide_on,
        start=spec.start,
        end=spec.end,
        strategy=strategy,
        params=dict(params),
        costs=spec.costs,
        sizing=spec.sizing,
        seed=spec.seed,
    )
    return portfolio.run(backtest, bars) if isinstance(bars, Panel) else run(backtest, bars)


def write_best(
    folder: RunFolder, spec: SweepSpec, best: Mapping[str, Any], bars: Bars | Panel
) -> Result | PortfolioResult:
    """Run the best set once more with everything that happened and write best/equity.parquet and best/fills.parquet.

    ``best`` is a row as ``Ranked.top`` gives it. Its metrics are those of the table to the last bit. Of several
    products ``target`` and ``position_units`` have a column each (``target BTC-USD``), and a fill says which it is of.
    """
    result = run_set(spec, best["strategy"], best["params"], bars)
    curves = {"ts_ns": bars.ts_ns, "equity": result.equity, "buy_and_hold": buy_and_hold(bars, spec)}
    fills = {name: result.fills[name] for name in result.fills.dtype.names or ()}
    if isinstance(result, PortfolioResult):
        for row, product_id in enumerate(result.product_ids):
            curves |= {f"target {product_id}": result.weights[row], f"position_units {product_id}": result.units[row]}
        fills["product"] = np.array(result.product_ids)[result.fills["product"]]
    else:
        curves |= {"target": result.target, "position_units": result.position_units}
    equity = pa.table(curves)
    folder.equity_file.parent.mkdir(exist_ok=True)
    write_table(folder.equity_file, equity)
    write_table(folder.fills_file, pa.table({"ts_ns": bars.ts_ns[result.fills["bar_index"]], **fills}))
    return result


def buy_and_hold(bars: Bars | Panel, spec: SweepSpec) -> Float64Array:
    """float64[n]: all cash put into the product at the first bar's open, fee and slippage paid once.

    Of several products each gets the same share of the cash, at its own first open.
    """
    slippage, fee = 1 + spec.costs.slippage_bps / 1e4, 1 + spec.costs.fee_bps / 1e4
    if isinstance(bars, Bars):
        return np.asarray(spec.costs.initial_cash / (bars.open[0] * slippage * fee) * bars.close)
    share = spec.costs.initial_cash / len(bars.product_ids)
    worth, closes = np.zeros(len(bars)), bars.last_close()
    for row in range(len(bars.product_ids)):
        first = int(np.argmin(np.isnan(bars.open[row])))
        units = share / (bars.open[row, first] * slippage * fee)
        worth += np.where(np.arange(len(bars)) < first, share, units * closes[row])
    return worth


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a driver was: its share of the sets, the time they took all workers together, its phases' seconds."""

    computed_sets: int
    blocks: int
    blocks_s: float
    timings_s: dict[str, float]

    def evaluations_per_s(self, bar_count: int) -> int | None:
        """Parameter sets times bars a second, workers' start not counted; None where nothing was left to compute."""
        return round(self.computed_sets * bar_count / self.blocks_s) if self.blocks_s > 0 else None


def summarise(record: RunRecord, spec: SweepSpec, ranked: Ranked, speed: Speed) -> dict[str, Any]:
    """The content of summary.json. ``evaluations`` counts bars times parameter sets."""
    return {
        "run_id": record.run_id,
        "kind": record.kind,
        "product_id": record.product_id,
        "granularity": record.granularity,
        "data_source": record.data_source,
        "look_ahead": record.look_ahead,
        "sort_by": ranked.sorted_by,
        "sort_note": ranked.note,
        "set_count": record.set_count,
        "dropped_count": record.dropped_count,
        "bar_count": record.bar_count,
        "block_count": speed.blocks,
        "evaluations": record.set_count * record.bar_count,
        "computed_sets": speed.computed_sets,
        "evaluations_per_s": speed.evaluations_per_s(record.bar_count),
        "wall_s": round(sum(speed.timings_s.values()), 3),
        "timings_s": {name: round(value, 3) for name, value in speed.timings_s.items()},
        "best": ranked.top(1)[0],
        "best_by_strategy": [ranked.best_of(name) for name in dict.fromkeys(grid.strategy for grid in spec.grids)],
        "top": ranked.top(),
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Put a page of figures into place; not a number is not JSON."""
    replace_file(path, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def unnamed_file(folder: Path, shape: tuple[int, ...]) -> Float64Array:
    """An array of zeros on the disk, not in memory, gone with the process."""
    size = 8 * math.prod(shape)
    if size == 0:
        return np.empty(shape)
    descriptor, name = tempfile.mkstemp(prefix=".moments-", dir=folder)
    with os.fdopen(descriptor, "r+b") as file:
        Path(name).unlink()
        file.truncate(size)
        return np.memmap(file, dtype=np.float64, mode="r+", shape=shape)


def _plain_row(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    figures = {name: row[name] if math.isfinite(row[name]) else None for name in names}
    return row | figures | {"params": json.loads(row["params"])}


def _nullable(column: Float64Array, whole: bool) -> pa.Array:
    absent = np.isnan(column)
    if whole:
        return pa.array(np.where(absent, 0, column).astype(np.int64), mask=absent)
    return pa.array(column, mask=absent)
