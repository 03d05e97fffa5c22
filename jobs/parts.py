"""The part a worker writes for its block, and which parts of a run can be trusted.

Every part says in its own metadata which sets of which specification, bars and code it holds. So a driver that is
started again trusts exactly the parts that fit. Parts of two drivers may overlap: a set's
row is the same in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run_folder import Block, RunFolder, RunRecord, replacing
from strategies.base import RULE_NAMES, ParameterInfo, parameter_table
from strategies.metrics import METRICS
from strategies.model import Float64Array
from strategies.registry import find

# Statistics of a bar return that are kept of each segment; strategies/segments.py says which.
MOMENTS_PER_SEGMENT: Final = 6
# How our tables are written: a damaged page is told by its checksum.
PARQUET: Final[dict[str, Any]] = {"compression": "zstd", "write_page_checksum": True}


def part_schema(segments: int) -> pa.Schema:
    """The columns of a part; ``moments`` is float64[segments * 6], segment by segment."""
    return pa.schema(
        [
            pa.field("set_id", pa.int64(), nullable=False),
            pa.field("strategy", pa.string(), nullable=False),
            pa.field("params", pa.string(), nullable=False),
            *(pa.field(name, pa.float64(), nullable=False) for name in METRICS),
            pa.field("moments", pa.list_(pa.float64(), segments * MOMENTS_PER_SEGMENT), nullable=False),
        ]
    )


@dataclass(frozen=True, slots=True)
class Identity:
    """What a part's numbers are made of; parts of another identity are never mixed in."""

    spec_hash: str
    data_hash: str
    code_hash: str
    segments: int

    @staticmethod
    def of(record: RunRecord) -> Identity:
        """The identity of a run's parts."""
        return Identity(record.spec_hash, record.data_hash, record.code_hash, max(0, len(record.cuts) - 1))

    def metadata(self, block: Block) -> dict[str, str]:
        """The part's Parquet metadata."""
        return {
            "spec_hash": self.spec_hash,
            "data_hash": self.data_hash,
            "code_hash": self.code_hash,
            "block": block.model_dump_json(),
        }


def write_part(
    folder: RunFolder,
    block: Block,
    matrix: Float64Array,
    metrics: Float64Array,
    moments: Float64Array,
    identity: Identity,
) -> None:
    """Put the rows of a block into place, whole.

    ``matrix`` is float64[m, k], ``metrics`` float64[m, len(METRICS)], ``moments`` float64[m, S, 6].
    """
    size = block.stop - block.start
    expected = ((size, len(METRICS)), (size, identity.segments, MOMENTS_PER_SEGMENT))
    if (metrics.shape, moments.shape) != expected:
        raise ValueError(f"{block}: expected metrics and moments of {expected}, was {(metrics.shape, moments.shape)}")
    schema = part_schema(identity.segments)
    flat = pa.array(np.ascontiguousarray(moments).reshape(-1))
    table = pa.table(
        [
            np.arange(block.start, block.stop, dtype=np.int64),
            pa.array([block.strategy] * size),
            params_json(block.strategy, matrix),
            *(np.ascontiguousarray(metrics[:, column]) for column in range(len(METRICS))),
            pa.FixedSizeListArray.from_arrays(flat, type=schema.field("moments").type),
        ],
        schema=schema.with_metadata(identity.metadata(block)),
    )
    write_table(folder.part_file(block), table)


def read_part(path: Path, identity: Identity) -> tuple[Block, pa.Table] | None:
    """A finished block and its rows; None where the part is absent, damaged or made of something else."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError):
        return None
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    try:
        block = Block.model_validate_json(metadata.get("block", ""))
    except ValueError:
        return None
    fits = metadata == identity.metadata(block) and table.schema.equals(part_schema(identity.segments))
    sets = table["set_id"].to_numpy() if fits else np.empty(0, dtype=np.int64)
    return (block, table) if fits and np.array_equal(sets, np.arange(block.start, block.stop)) else None


def parts_of(folder: RunFolder, record: RunRecord) -> Iterator[tuple[Block, pa.Table]]:
    """The parts that are there and fit, one after the other in the order of their sets."""
    identity = Identity.of(record)
    for path in sorted(folder.parts_dir.glob("block-*.parquet")):
        found = read_part(path, identity)
        if found is not None and folder.part_file(found[0]) == path:
            yield found


def finished_blocks(folder: RunFolder, record: RunRecord) -> list[Block]:
    """The blocks whose parts are there and fit, in order; any other file among the parts is deleted."""
    blocks = [block for block, _ in parts_of(folder, record) if block.stop <= record.set_count]
    wanted = {folder.part_file(block).name for block in blocks}
    for path in folder.parts_dir.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    return blocks


def params_json(strategy: str, matrix: Float64Array) -> pa.Array:
    """The parameters of each row of float64[m, k] as a JSON object; a rule is left out where it is switched off."""
    import pyarrow.compute as pc  # a tenth of what a fresh worker imports, and not needed for its kernels

    pieces: list[pa.Array] = []
    for position, info in enumerate(parameter_table(find(strategy))):
        # A grid has few distinct values, so each is spelled once.
        values, places = np.unique(matrix[:, position], return_inverse=True)
        texts = [_member(info, value) for value in values.tolist()]
        pieces.append(pa.array(texts, pa.string()).take(pa.array(places.reshape(-1))))
    members = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*pieces, ""), len(", "))
    return pc.binary_join_element_wise("{", members, "}", "")


def _member(info: ParameterInfo, value: float) -> str:
    if info.name in RULE_NAMES and value == info.default:
        return ""
    return f', "{info.name}": {int(value) if info.kind == "int" else value!r}'


def write_table(path: Path, table: pa.Table) -> None:
    """Replace a Parquet file whole."""
    with replacing(path) as file:
        pq.write_table(table, file, **PARQUET)
