"""The archive of an audit log: old entries in Parquet, one row an entry, each file named by its first and last entry.

A file is written whole or not at all and never changed; its SHA-256 stands in an ARCHIVED entry of the log itself.
pandas and DuckDB read the files as they are.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.audit_chain import Finding, Row

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION: Final = 1
DESK_NAME: Final = "@desk"
"""Stands for the desk's own log where accounts are named; no account can be called so."""
ROWS_PER_FILE_MAX: Final = 100_000
# What is read at once, and what is lost to the reader where a byte is damaged.
ROWS_PER_GROUP: Final = 5_000

_COLUMNS: Final = ("seq", "us", "kind", "id", "by", "data", "chain", "stream_id")
_FILE_NAME: Final = re.compile(r"(\d{16})-(\d{16})\.parquet")
_TEMPORARY: Final = re.compile(r"\.\d{16}-\d{16}\.parquet\.[0-9a-f]{16}")


class ArchiveError(RuntimeError):
    """A file of the archive cannot be written, or what is to be archived is not sound."""


@dataclass(frozen=True, slots=True, order=True)
class ArchiveFile:
    """A file of the archive: the numbers of its first and last entry."""

    first: int
    last: int
    path: Path

    @property
    def name(self) -> str:
        """As ARCHIVED entries call it."""
        return self.path.name

    def sha256(self) -> str:
        """The hash of its bytes as they are now."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class Archive:
    """The archived entries of one account, or of the desk (``account`` None): ``<folder>/<account>/*.parquet``."""

    def __init__(self, folder: Path, account: str | None) -> None:
        """Nothing is read or made yet."""
        self.account = account or DESK_NAME
        self.path = folder / self.account

    def files(self) -> list[ArchiveFile]:
        """The files there are, by their first entry."""
        if not self.path.is_dir():
            return []
        named = [(_FILE_NAME.fullmatch(path.name), path) for path in self.path.iterdir()]
        return sorted(ArchiveFile(int(match[1]), int(match[2]), path) for match, path in named if match)

    def write(self, rows: Sequence[Row]) -> ArchiveFile:
        """Put consecutive rows into a file, whole and on the disk; an equal file may be there already."""
        from cluster.series_files import fsync_folder

        numbers = [row.seq for row in rows]
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(rows))):
            raise ArchiveError(f"expected consecutive entries, was {numbers[:3]} … {numbers[-3:]}")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path / f"{numbers[0]:016d}-{numbers[-1]:016d}.parquet"
        temporary = self.path / f".{path.name}.{secrets.token_hex(8)}"
        try:
            with temporary.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(self._parquet(rows))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(self.path)
        return ArchiveFile(numbers[0], numbers[-1], path)

    def groups(self, file: ArchiveFile) -> Iterator[list[Row] | Finding]:
        """The rows of a file in parts, and a finding in the place of a part that cannot be read."""
        # Heavy, and most who read a log find all of it in the stream.
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            parquet = pq.ParquetFile(file.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield _unreadable(file, None, error)
            return
        with parquet:
            row = 1
            for index in range(parquet.num_row_groups):
                count = parquet.metadata.row_group(index).num_rows
                try:
                    yield _rows(parquet.read_row_group(index, use_threads=False), file, row)
                except (pa.ArrowException, OSError, ValueError, ArchiveError) as error:
                    yield _unreadable(file, row, error)
                row += count

    def remove(self, file: ArchiveFile) -> None:
        """Delete a file whose entries are all still in the stream."""
        file.path.unlink(missing_ok=True)

    def clean(self) -> None:
        """Delete what a killed writer has left half done."""
        for path in self.path.iterdir() if self.path.is_dir() else ():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def put_aside(self, files: Sequence[ArchiveFile]) -> Path | None:
        """Move files into a folder beside the archive, kept and never read again; None where there are none."""
        from cluster.series_files import fsync_folder

        if not files:
            return None
        aside = self.path.with_name(f"{self.account}.until-{time.time_ns()}")
        aside.mkdir(mode=0o700)
        for file in files:
            file.path.rename(aside / file.name)
        fsync_folder(aside)
        fsync_folder(self.path)
        return aside

    def _parquet(self, rows: Sequence[Row]) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = _schema()
        metadata = {"schema_version": str(SCHEMA_VERSION), "account": self.account}
        columns = [pa.array([getattr(row, name) for row in rows], schema.field(name).type) for name in _COLUMNS]
        buffer = io.BytesIO()
        pq.write_table(
            pa.table(columns, schema=schema.with_metadata(metadata)),
            buffer,
            compression="zstd",
            row_group_size=ROWS_PER_GROUP,
            write_page_checksum=True,
        )
        return buffer.getvalue()


@functools.cache
def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"seq": pa.int64(), "us": pa.int64()}
    return pa.schema([pa.field(name, types.get(name, pa.string()), nullable=False) for name in _COLUMNS])


def _rows(table: pa.Table, file: ArchiveFile, first_row: int) -> list[Row]:
    if not table.schema.equals(_schema()) or any(column.null_count for column in table.columns):
        raise ArchiveError(f"expected the columns {', '.join(_COLUMNS)}, was {', '.join(table.schema.names)}")
    columns = [table.column(name).to_pylist() for name in _COLUMNS]
    return [Row(*values, file.name, row) for row, values in enumerate(zip(*columns, strict=True), first_row)]  # type: ignore[call-arg]


def _unreadable(file: ArchiveFile, row: int | None, error: Exception) -> Finding:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return Finding("unreadable", None, "the rows that were archived", reason[:300], file=file.name, row=row)
