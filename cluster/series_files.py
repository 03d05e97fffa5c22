"""The files of one stored series: Parquet parts that never change, and the manifest that names them.

Both carry their hash, so that a flipped bit is an error that names the file and never a wrong price.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.bar_checks import VALUES, DataError
from strategies.model import Bars, Granularity

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
OUR_FILES: Final = re.compile(r"\d{4}(-\d{2})?\.[0-9a-f]{16}\.parquet|manifest\.json\.[0-9a-f]{16}\.tmp")

_SCHEMA: Final = pa.schema(
    [pa.field("ts_ns", pa.int64(), nullable=False)] + [pa.field(name, pa.float64(), nullable=False) for name in VALUES]
)
_COLUMNS: Final = ("ts_ns", *VALUES)

Range = tuple[int, int]


class PartGone(DataError):
    """A part the manifest names is not there: a writer has just replaced it, or somebody deleted it."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One Parquet file of a series: a calendar period's bars."""

    name: str
    period: str
    rows: int
    first_ns: int
    last_ns: int
    size_bytes: int
    sha256: str
    sources: tuple[str, ...]


class Series(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A manifest: the parts in order of time, and the ranges a venue answered in full (what they lack, it lacks)."""

    schema_version: int
    product_id: str
    granularity: Granularity
    simulated: bool
    parts: tuple[Part, ...] = ()
    answered: tuple[Range, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(source for part in self.parts for source in part.sources))

    def covers(self, start_ns: int, end_ns: int) -> bool:
        """Whether every bar there is from ``start_ns`` to ``end_ns`` is stored, as far as the store can know."""
        spans = list(self.answered)
        if self.parts:
            spans.append((self.parts[0].first_ns, self.parts[-1].last_ns + self.granularity.ns))
        return start_ns >= end_ns or any(start <= start_ns and end_ns <= end for start, end in join_ranges(spans))


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is in the manifest file: the series' own bytes and their hash, so that a flipped bit is noticed."""

    sha256: str
    series: msgspec.Raw


def write_part(folder: Path, period: str, bars: Bars, sources: tuple[str, ...]) -> Part:
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "product_id": bars.product_id,
        "granularity": str(bars.granularity),
        "sources": json.dumps(sources),
    }
    table = pa.table([getattr(bars, name) for name in _COLUMNS], schema=_SCHEMA.with_metadata(metadata))
    buffer = io.BytesIO()
    # Measured on a month of minutes: lz4 without a dictionary reads 1,000,000 bars in 0.08 s, zstd takes twice that.
    pq.write_table(table, buffer, compression="lz4", use_dictionary=False)
    content = buffer.getbuffer()
    name = f"{period}.{secrets.token_hex(8)}.parquet"
    _write_new_file(folder / name, content)
    first_ns, last_ns = int(bars.ts_ns[0]), int(bars.ts_ns[-1])
    sha256 = hashlib.sha256(content).hexdigest()
    return Part(name, period, len(bars), first_ns, last_ns, content.nbytes, sha256, sources)


def read_part(folder: Path, series: Series, part: Part) -> Bars:
    """A part's bars (read-only arrays); raises ``DataError`` naming it where its bytes are not those written."""
    path = folder / part.name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise PartGone(path, None, "a file that is there") from None
    except OSError as error:
        raise DataError(path, None, "a readable file", error) from error
    if len(content) != part.size_bytes:
        raise DataError(path, None, f"{part.size_bytes} bytes", len(content))
    if hashlib.sha256(content).hexdigest() != part.sha256:
        raise DataError(path, None, "the content its hash was made of", "other bytes")
    try:
        table = pq.read_table(pa.BufferReader(content), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, None, "a Parquet file", error) from error
    if not table.schema.equals(_SCHEMA) or table.num_rows != part.rows:
        raise DataError(path, None, f"{part.rows} rows of {_SCHEMA}", f"{table.num_rows} rows of {table.schema}")
    columns = [table.column(name).to_numpy() for name in _COLUMNS]
    return Bars(series.product_id, series.granularity, *columns)


def read_manifest(folder: Path, product_id: str, granularity: Granularity) -> Series | None:
    """The series a folder holds, None where it holds none; raises ``DataError`` where the manifest is damaged."""
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(path, None, "a readable file", error) from error
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
        series = msgspec.json.decode(envelope.series, type=Series)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(path, None, "a manifest of the bar store", error) from error
    if hashlib.sha256(envelope.series).hexdigest() != envelope.sha256:
        raise DataError(path, None, "the content its hash was made of", "other bytes")
    wanted = (SCHEMA_VERSION, product_id, str(granularity))
    found = (series.schema_version, series.product_id, str(series.granularity))
    if found != wanted:
        raise DataError(path, None, f"a manifest of schema, product, granularity {wanted}", found)
    return series


def commit(folder: Path, series: Series) -> None:
    """Make ``series`` the series' state: its parts are on the disk before the manifest that names them."""
    fsync_folder(folder)
    content = msgspec.json.encode(series)
    envelope = _Envelope(hashlib.sha256(content).hexdigest(), msgspec.Raw(content))
    temporary = folder / f"{MANIFEST}.{secrets.token_hex(8)}.tmp"
    _write_new_file(temporary, msgspec.json.encode(envelope))
    os.replace(temporary, folder / MANIFEST)
    fsync_folder(folder)


def _write_new_file(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def join_bars(product_id: str, granularity: Granularity, pieces: Sequence[Bars]) -> Bars:
    """One series of contiguous arrays out of consecutive pieces (empty arrays from none)."""
    ts_ns = np.concatenate([np.empty(0, np.int64), *(piece.ts_ns for piece in pieces)])
    values = (np.concatenate([np.empty(0), *(getattr(piece, name) for piece in pieces)]) for name in VALUES)
    return Bars(product_id, granularity, ts_ns, *values)


def join_ranges(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """The same set of points as ascending, disjoint, non-touching ranges."""
    joined: list[Range] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return tuple(joined)
