"""One account's whole audit log, wherever its entries are: archived files first, then the ledger's stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.audit_chain import GENESIS, Finding, Row, row_of
from cluster.audit_files import DESK_NAME, Archive, ArchiveFile
from cluster.ledger import Ledger, LedgerUnavailable

PAGE_ROWS: Final = 1_000
# How often a reading is begun anew because entries were archived while it went on.
READINGS_MAX: Final = 5
# The server's clock may be ahead of ours; a day more costs the search two steps.
CLOCK_SLACK_MS: Final = 86_400_000


class AuditMoved(LedgerUnavailable):
    """Entries went from the stream to the archive while they were read: read again."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where the ledger says its log ends: the last entry's number and chain value."""

    seq: int
    chain: str


class AuditLog:
    """The entries of one account, or of the desk (``account`` None), in the order they were written.

    ``folder`` is the audit folder of the desk; without one only the stream is read. Every method may raise
    ``LedgerUnavailable`` or ``LedgerError``.
    """

    def __init__(self, ledger: Ledger, account: str | None, folder: Path | None) -> None:
        """Nothing is read yet."""
        self.account = account
        self.name = account or DESK_NAME
        self.archive = None if folder is None else Archive(folder, account)
        self._ledger = ledger

    async def head(self) -> Head:
        """The end of the log by the ledger's own counters; seq -1 where they are no number."""
        snapshot = await self._ledger.snapshot(self.account)
        book = snapshot.desk_book if self.account is None else snapshot.book
        seq, chain = book.get("seq", "0"), book.get("head", GENESIS)
        return Head(int(seq) if seq.isascii() and seq.isdigit() else -1, chain)

    async def first_in_stream(self) -> Row | None:
        """The oldest entry the stream still has."""
        page = await self.page("", 1)
        return page[0] if page else None

    async def pages(self, after: int = 0, through: int | None = None) -> AsyncIterator[Sequence[Row | Finding]]:
        """Every entry after ``after`` (up to ``through``) in parts; a finding stands for rows that cannot be read.

        Raises ``AuditMoved`` at the end where entries left the stream meanwhile, so that some may be missing.
        """
        first = await self.first_in_stream()
        limits = [seq for seq in (through, _limit(first)) if seq is not None]
        for file in self.needed(after, first):
            for group in self.archive.groups(file) if self.archive else ():
                await asyncio.sleep(0)
                yield [group] if isinstance(group, Finding) else _between(group, after, min(limits, default=None))
        async for page in self._stream(await self._start(after, first)):
            yield _between(page, after, through)
            if through is not None and page and page[-1].seq >= through:
                break
        now_first = await self.first_in_stream()
        if first is not None and (now_first is None or now_first.stream_id != first.stream_id):
            raise AuditMoved(f"account {self.name}: entries were archived while they were read")

    def needed(self, after: int, first_in_stream: Row | None) -> list[ArchiveFile]:
        """The files with entries after ``after`` that the stream no longer has."""
        files = self.archive.files() if self.archive else []
        limit = _limit(first_in_stream)
        return [file for file in files if file.last > after and (limit is None or file.first <= limit)]

    async def _stream(self, after_id: str) -> AsyncIterator[list[Row]]:
        while True:
            page = await self.page(after_id)
            yield page
            if len(page) < PAGE_ROWS:
                return
            after_id = page[-1].stream_id

    async def _start(self, after: int, first: Row | None) -> str:
        """A stream id with no entry after ``after`` before it: found by halving the time, as ids begin with theirs."""
        if first is None or first.problem or after < first.seq + PAGE_ROWS:
            return ""
        low, high = int(first.stream_id.partition("-")[0]), time.time_ns() // 1_000_000 + CLOCK_SLACK_MS
        while high - low > 1:
            middle = (low + high) // 2
            page = await self.page(f"{middle}-0", 1)
            if page and not page[0].problem and page[0].seq <= after:
                low = middle
            else:
                high = middle
        return f"{low}-0"

    async def tail(self, at_most: int) -> list[Row]:
        """The newest entries, oldest first."""
        head = await self.head()
        rows: list[Row] = []
        async for page in self.pages(max(head.seq - at_most, 0)):
            rows += [row for row in page if isinstance(row, Row)]
        return rows[-at_most:]

    async def newest(self, at_most: int, kind: str | None, name: str | None) -> list[Row]:
        """The newest entries of a kind, of an id, or of both, oldest first; the whole log is read."""
        found: deque[Row] = deque(maxlen=at_most)
        async for page in self.pages():
            rows = (row for row in page if isinstance(row, Row))
            found.extend(row for row in rows if kind in {None, row.kind} and name in {None, row.id})
        return list(found)

    async def find(self, seq: int, stream_id: str) -> Row | None:
        """The entry of this number: in the stream at ``stream_id``, else in the archive."""
        page = await self.page(_just_before(stream_id), 1)
        if page and page[0].stream_id == stream_id:
            return page[0]
        for file in self.archive.files() if self.archive else ():
            if not file.first <= seq <= file.last:
                continue
            for group in self.archive.groups(file) if self.archive else ():
                found = None if isinstance(group, Finding) else next((row for row in group if row.seq == seq), None)
                if found is not None:
                    return found
        return None

    async def page(self, after_id: str = "", at_most: int = PAGE_ROWS) -> list[Row]:
        """Entries of the stream from behind ``after_id`` ("" = from its beginning)."""
        found = await self._ledger.audit_entries(self.account, after_id, at_most)
        return [row_of(stream_id, fields) for stream_id, fields in found]


def _limit(first_in_stream: Row | None) -> int | None:
    """The last entry that only the archive can have; None where the stream does not say."""
    return None if first_in_stream is None or first_in_stream.problem else first_in_stream.seq - 1


def _between(rows: Sequence[Row], after: int, through: int | None) -> list[Row]:
    """Rows that cannot be read have no number and always belong."""
    return [row for row in rows if row.problem or (row.seq > after and (through is None or row.seq <= through))]


def _just_before(stream_id: str) -> str:
    milliseconds, _, number = stream_id.partition("-")
    if number == "0":
        return f"{int(milliseconds) - 1}-{2**64 - 1}"
    return f"{milliseconds}-{int(number) - 1}"
