"""The exchange simulator's memory on disk: events as JSON lines, one line a decision, synced in groups."""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

Event = dict[str, Any]
_encode = msgspec.json.Encoder().encode


class JournalError(RuntimeError):
    """The journal cannot be read; the text names file, line and rule."""


class Journal:
    """An append-only file of events. Opening it cuts off a last line that a killed process left unfinished.

    Events that were decided together are one line (kind ``batch``), so that a crash keeps all of them or none.
    """

    def __init__(self, path: Path) -> None:
        """Read ``path`` (made when absent); ``past`` then holds its events by line. Raises ``JournalError``."""
        self.path = path
        new = not path.exists()
        self.past = self._read()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # Whoever lets a journal go without closing it, as tests of a killed process do, keeps no descriptor.
        self._let_go = weakref.finalize(self, os.close, self._file)
        if new:
            _sync_folder(path.parent)
        self.length = os.fstat(self._file).st_size
        self.lines_since_replaced = len(self.past)
        self._written = 0
        self._on_disk = 0
        self._syncing: asyncio.Task[None] | None = None
        self._failure: OSError | None = None

    def append(self, events: Sequence[Event]) -> None:
        """Hand all events to the operating system; raises ``OSError`` with none of them written.

        They are safe only after ``sync`` or ``synced``.
        """
        if not events:
            return
        if self._failure is not None:
            raise OSError(self._failure.errno, f"the journal failed before: {self._failure}")
        event = events[0] if len(events) == 1 else {"kind": "batch", "events": list(events)}
        content = _encode(event) + b"\n"
        try:
            _write(self._file, content)
        except OSError:
            # A full disk may have taken a part: without this the next event would be glued to it.
            os.ftruncate(self._file, self.length)
            raise
        self.length += len(content)
        self.lines_since_replaced += 1
        self._written += 1

    def sync(self) -> None:
        """Return when everything appended is on disk; raises ``OSError``, and then the journal takes nothing more."""
        written = self._written
        try:
            os.fsync(self._file)
        except OSError as failure:
            # What the kernel could not write it may have dropped: a second fsync would lie.
            self._failure = failure
            raise
        self._on_disk = max(self._on_disk, written)

    async def synced(self) -> None:
        """Like ``sync``, without blocking the loop, and all who wait meanwhile share one fsync."""
        wanted = self._written
        while self._on_disk < wanted:
            if self._failure is not None:
                raise OSError(self._failure.errno, f"the journal failed before: {self._failure}")
            if self._syncing is None or self._syncing.done():
                self._syncing = asyncio.create_task(asyncio.to_thread(self.sync), name="journal sync")
            await asyncio.shield(self._syncing)

    def replace(self, events: Iterable[Event]) -> None:
        """Exchange the whole content for ``events``: atomic, and on disk when this returns; raises ``OSError``.

        Where it raises or the process dies, the old content is untouched.
        """
        temporary = self.path.with_name(f".{self.path.name}.new")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            for event in events:
                _write(file, _encode(event) + b"\n")
            os.fsync(file)
            os.replace(temporary, self.path)
            # The same descriptor number now means the new file; a sync under way in a thread keeps the old one.
            os.dup2(file, self._file, inheritable=False)
        finally:
            os.close(file)
        _sync_folder(self.path.parent)
        self.length = os.fstat(self._file).st_size
        self.lines_since_replaced = 0
        self._on_disk = self._written

    def close(self) -> None:
        """Sync and close the file."""
        try:
            if self._failure is None:
                self.sync()
        finally:
            self._let_go()

    def _read(self) -> list[Event]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return [self._parse(line, number) for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1)]

    def _parse(self, line: bytes, number: int) -> Event:
        try:
            event = json.loads(line)
        except ValueError:
            raise JournalError(f"{self.path} line {number}: not JSON; move the file away to begin anew") from None
        if not isinstance(event, dict) or "kind" not in event:
            raise JournalError(f"{self.path} line {number}: not an event; move the file away to begin anew")
        return event


def _sync_folder(folder: Path) -> None:
    """A file's name is on disk only when its folder is."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _write(file: int, content: bytes) -> None:
    written = 0
    while written < len(content):
        written += os.write(file, content[written:])
