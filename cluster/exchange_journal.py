"""The exchange simulator's memory on disk: events as JSON lines, appended and synced before an answer leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class JournalError(RuntimeError):
    """The journal cannot be read; the text names file, line and rule."""


class Journal:
    """An append-only file of events. Opening it cuts off a last line that a killed process left unfinished."""

    def __init__(self, path: Path) -> None:
        """Read ``path`` (made when absent); ``past`` then holds its events. Raises ``JournalError``."""
        self.path = path
        self.past = self._read()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._length = os.fstat(self._file).st_size

    def append(self, events: Sequence[Event]) -> None:
        """Write all events and return when they are on disk; raises ``OSError`` with none of them written.

        A crash keeps a beginning of them, never a hole.
        """
        if not events:
            return
        content = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode()
        try:
            written = 0
            while written < len(content):
                written += os.write(self._file, content[written:])
            os.fsync(self._file)
        except OSError:
            # A full disk may have taken a part: without this the next event would be glued to it.
            os.ftruncate(self._file, self._length)
            raise
        self._length += len(content)

    def close(self) -> None:
        """Close the file; everything appended is on disk already."""
        os.close(self._file)

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
