"""Rows of a run: the block plan, the part a worker writes, the final table, the best set's curves, the summary.

Every part says in its own metadata which block of which specification, bars and code it holds. So a driver that is
started again trusts exactly the parts that fit, and the final table does not depend on how often that happened.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run_folder import Block, RunError, RunFolder, RunRecord, ranking, replace_file
from strategies.backtest import BacktestSpec, Result, SweepSpec, run
from strategies.base import parameter_table
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array
from strategies.registry import get

ParameterSets = Sequence[tuple[str, Float64Array]]

BLOCK_SECONDS_MAX: Final = 1.5
BLOCKS_PER_WORKER_MIN: Final = 4
# A trial costs Tune some 20 ms, so a block of less than this would mostly be overhead.
BLOCK_SECONDS_MIN: Final = 0.05
BLOCKS_MAX: Final = 5_000
TOP_ROWS: Final = 10

PART_SCHEMA: Final = pa.schema(
    [
        pa.field("set_id", pa.int64(), nullable=False),
        pa.field("strategy", pa.string(), nullable=False),
        pa.field("params", pa.string(), nullable=False),
        *(pa.field(name, pa.float64(), nullable=False) for name in METRICS),
    ]
)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a part's numbers are made of; parts of another identity are never mixed in."""

    spec_hash: str
    data_hash: str
    code_hash: str

    @staticmethod
    def of(record: RunRecord) -> Identity:
        """The identity of a run's parts."""
        return Identity(record.spec_hash, record.data_hash, record.code_hash)

    def metadata(self, block: Block) -> dict[str, str]:
        """The part's Parquet metadata."""
        return {
            "spec_hash": self.spec_hash,
            "data_hash": self.data_hash,
            "code_hash": self.code_hash,
            "block": block.model_dump_json(),
        }


def plan_blocks(sets: ParameterSets, set_cost_s: Sequence[float], workers: int) -> tuple[Block, ...]:
    """Cut the grids into blocks of even size within a grid.

    ``set_cost_s`` is the measured time of one parameter set of each grid. A block takes about ``BLOCK_SECONDS_MAX``,
    or less where that would leave a worker fewer than ``BLOCKS_PER_WORKER_MIN`` blocks; there are about
    ``BLOCKS_MAX`` at most.
    """
    total_s = sum(len(matrix) * cost_s for (_, matrix), cost_s in zip(sets, set_cost_s, strict=True))
    wanted_s = min(BLOCK_SECONDS_MAX, total_s / (BLOCKS_PER_WORKER_MIN * workers))
    block_s = max(wanted_s, BLOCK_SECONDS_MIN, total_s / BLOCKS_MAX)
    blocks: list[Block] = []
    first = 0
    for grid, ((strategy, matrix), cost_s) in enumerate(zip(sets, set_cost_s, strict=True)):
        count = max(1, min(len(matrix), round(len(matrix) * cost_s / block_s)))
        cuts = [first + len(matrix) * i // count for i in range(count + 1)]
        for start, stop in itertools.pairwise(cuts):
            blocks.append(Block(strategy=strategy, grid=grid, start=start, stop=stop))
        first += len(matrix)
    return tuple(blocks)


def rows_of(block: Block, sets: ParameterSets) -> Float64Array:
    """The block's parameter sets: float64[m, k]."""
    first = sum(len(matrix) for _, matrix in sets[: block.grid])
    return sets[block.grid][1][block.start - first : block.stop - first]


def write_part(
    folder: RunFolder, index: int, block: Block, matrix: Float64Array, metrics: Float64Array, identity: Identity
) -> None:
    """Put the rows of a block into place, whole: ``metrics`` is float64[m, len(METRICS)], a row a parameter set."""
    expected = (block.stop - block.start, len(METRICS))
    if metrics.shape != expected:
        raise ValueError(f"block {index}: expected metrics of shape {expected}, was {metrics.shape}")
    table = pa.table(
        [
            np.arange(block.start, block.stop, dtype=np.int64),
            pa.array([block.strategy] * len(matrix)),
            pa.array(_params_json(block.strategy, matrix)),
            *(np.ascontiguousarray(metrics[:, column]) for column in range(len(METRICS))),
        ],
        schema=PART_SCHEMA.with_metadata(identity.metadata(block)),
    )
    replace_file(folder.part_file(index), _parquet(table))


def read_part(folder: RunFolder, index: int, block: Block, identity: Identity) -> pa.Table | None:
    """The rows of a finished block; None where the part is absent, damaged or made of something else."""
    try:
        table = pq.read_table(folder.part_file(index))
    except (pa.ArrowException, OSError):
        return None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    fits = metadata == identity.metadata(block) and table.schema.equals(PART_SCHEMA)
    return table.replace_schema_metadata() if fits and table.num_rows == block.stop - block.start else None


def finished_blocks(folder: RunFolder, record: RunRecord) -> set[int]:
    """The blocks of the plan whose parts are there and fit; any other part is deleted."""
    identity = Identity.of(record)
    finished = {i for i, block in enumerate(record.blocks) if read_part(folder, i, block, identity) is not None}
    wanted = {folder.part_file(i).name for i in finished}
    for path in folder.parts_dir.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    return finished


def assemble(folder: RunFolder, record: RunRecord, spec: SweepSpec, sets: ParameterSets) -> pa.Table:
    """All rows, best first: ``set_id``, ``strategy``, a nullable column a parameter, ``params`` (JSON), the metrics.

    Raises ``RunError`` naming the block where a part is missing.
    """
    identity = Identity.of(record)
    parts = []
    for index, block in enumerate(record.blocks):
        part = read_part(folder, index, block, identity)
        if part is None:
            raise RunError("parts", folder.part_file(index).name, "the rows of a finished block")
        parts.append(part)
    rows = pa.concat_tables(parts).combine_chunks()
    set_ids = rows["set_id"].to_numpy()
    if not np.array_equal(set_ids, np.arange(record.set_count)):
        raise RunError("run.json", len(set_ids), f"a plan that covers each of {record.set_count} sets once")
    names, columns = ["set_id", "strategy"], [rows["set_id"], rows["strategy"]]
    for name, column in parameter_columns(sets).items():
        names.append(name)
        columns.append(column)
    for name in ("params", *METRICS):
        names.append(name)
        columns.append(rows[name])
    order = ranking(rows[spec.sort_by].to_numpy(), set_ids, spec.sort_by)
    return pa.table(columns, names=names).take(order)


def parameter_columns(sets: ParameterSets) -> dict[str, pa.Array]:
    """One column a parameter name over all sets, null where a strategy has no such parameter.

    Strategies that use the same name share its column; it holds whole numbers if they all do.
    """
    total = sum(len(matrix) for _, matrix in sets)
    values: dict[str, Float64Array] = {}
    whole: dict[str, bool] = {}
    first = 0
    for strategy, matrix in sets:
        for position, info in enumerate(parameter_table(get(strategy))):
            column = values.setdefault(info.name, np.full(total, math.nan))
            column[first : first + len(matrix)] = matrix[:, position]
            whole[info.name] = whole.get(info.name, True) and info.kind == "int"
        first += len(matrix)
    return {name: _nullable(column, whole[name]) for name, column in values.items()}


def write_table(folder: RunFolder, table: pa.Table) -> None:
    """Put results.parquet into place; the same rows make the same bytes."""
    replace_file(folder.results_file, _parquet(table))


def write_best(folder: RunFolder, spec: SweepSpec, best: dict[str, Any], bars: Bars) -> Result:
    """Run the best set once more with everything that happened and write best/equity.parquet and best/fills.parquet.

    ``best`` is a row as ``top_rows`` gives it. Its metrics are those of the table to the last bit.
    """
    backtest = BacktestSpec(
        product_id=spec.product_id,
        granularity=spec.granularity,
        start=spec.start,
        end=spec.end,
        strategy=best["strategy"],
        params=best["params"],
        costs=spec.costs,
        seed=spec.seed,
    )
    result = run(backtest, bars)
    equity = pa.table(
        {
            "ts_ns": bars.ts_ns,
            "equity": result.equity,
            "buy_and_hold": buy_and_hold(bars, spec),
            "target": result.target,
            "position_units": result.position_units,
        }
    )
    fills = {name: result.fills[name] for name in result.fills.dtype.names or ()}
    folder.equity_file.parent.mkdir(exist_ok=True)
    replace_file(folder.equity_file, _parquet(equity))
    replace_file(folder.fills_file, _parquet(pa.table({"ts_ns": bars.ts_ns[result.fills["bar_index"]], **fills})))
    return result


def buy_and_hold(bars: Bars, spec: SweepSpec) -> Float64Array:
    """float64[n]: all cash put into the product at the first bar's open, fee and slippage paid once."""
    price = bars.open[0] * (1 + spec.costs.slippage_bps / 1e4) * (1 + spec.costs.fee_bps / 1e4)
    return np.asarray(spec.costs.initial_cash / price * bars.close)


def top_rows(table: pa.Table, limit: int = TOP_ROWS) -> list[dict[str, Any]]:
    """The first rows as plain values: ``set_id``, ``strategy``, ``params`` and the metrics, None for not a number."""
    rows = table.select(["set_id", "strategy", "params", *METRICS]).slice(0, limit).to_pylist()
    return [_plain_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a driver was: its share of the sets, the time they took all workers together, its phases' seconds."""

    computed_sets: int
    blocks_s: float
    timings_s: dict[str, float]

    def evaluations_per_s(self, bar_count: int) -> int | None:
        """Parameter sets times bars a second, workers' start not counted; None where nothing was left to compute."""
        return round(self.computed_sets * bar_count / self.blocks_s) if self.blocks_s > 0 else None


def summarise(record: RunRecord, spec: SweepSpec, table: pa.Table, speed: Speed) -> dict[str, Any]:
    """The content of summary.json. ``evaluations`` counts bars times parameter sets."""
    strategies = table["strategy"].to_numpy(zero_copy_only=False)
    firsts = [int(np.argmax(strategies == name)) for name in dict.fromkeys(grid.strategy for grid in spec.grids)]
    return {
        "run_id": record.run_id,
        "kind": record.kind,
        "product_id": record.product_id,
        "granularity": record.granularity,
        "data_source": record.data_source,
        "look_ahead": record.look_ahead,
        "sort_by": spec.sort_by,
        "set_count": record.set_count,
        "dropped_count": record.dropped_count,
        "bar_count": record.bar_count,
        "block_count": len(record.blocks),
        "evaluations": record.set_count * record.bar_count,
        "computed_sets": speed.computed_sets,
        "evaluations_per_s": speed.evaluations_per_s(record.bar_count),
        "wall_s": round(sum(speed.timings_s.values()), 3),
        "timings_s": {name: round(value, 3) for name, value in speed.timings_s.items()},
        "best": top_rows(table, 1)[0],
        "best_by_strategy": [top_rows(table.slice(first), 1)[0] for first in firsts],
        "top": top_rows(table),
    }


def write_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Put summary.json into place."""
    replace_file(folder.summary_file, json.dumps(summary, indent=1, allow_nan=False).encode() + b"\n")


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: row[name] if math.isfinite(row[name]) else None for name in METRICS}
    return row | metrics | {"params": json.loads(row["params"])}


def _params_json(strategy: str, matrix: Float64Array) -> Iterable[str]:
    table = parameter_table(get(strategy))
    columns = [
        (matrix[:, position].astype(np.int64) if info.kind == "int" else matrix[:, position]).tolist()
        for position, info in enumerate(table)
    ]
    names = [info.name for info in table]
    return [json.dumps(dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def _nullable(column: Float64Array, whole: bool) -> pa.Array:
    absent = np.isnan(column)
    if whole:
        return pa.array(np.where(absent, 0, column).astype(np.int64), mask=absent)
    return pa.array(column, mask=absent)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
