"""The file of one log's anchors: signed JSON lines, each with the hash of the one before, only ever appended to."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cluster.audit_chain import Finding
from cluster.audit_files import DESK_NAME

# The end of the file is looked at before anything is traded; all of it by `desk audit verify`.
TAIL_BYTES: Final = 65_536
NOTHING: Final = "0" * 64
"""What the first line says of the line before it."""
KEY_BYTES_MIN: Final = 16
LOCK_TRIES: Final = 200
LOCK_PAUSE_S: Final = 0.05


class AnchorError(RuntimeError):
    """An anchor cannot be written or read: there is no key, the file's disk fails, another process holds it."""


class Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line: where a log stood, its last entry's number, chain value and stream id (``entry``, "" = not there).

    ``rows`` is the SHA-256 of the entries after ``after`` up to ``seq``, ``before`` that of the line before, ``key``
    names the key of the signature ``mac``. With ``reset``, the reason of a new beginning, the log is taken as it is.
    """

    account: str
    seq: int
    chain: str
    entry: str
    after: int
    rows: str
    written_ns: int
    before: str
    reset: str = ""
    key: str = ""
    mac: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A line as read: its number (0 where those before it were not read), its anchor, or why it is none; its hash."""

    number: int
    anchor: Anchor | None
    digest: str
    problem: str = ""


class AnchorFile:
    """``anchors-<account>.jsonl`` of an account, or of the desk (None, as ``@desk``)."""

    def __init__(self, folder: Path, account: str | None, keys: dict[str, bytes]) -> None:
        """``keys`` by name (``key_name``), the last of them signs; nothing is read or made yet."""
        self.account = account or DESK_NAME
        self.path = folder / f"anchors-{self.account}.jsonl"
        self._keys = keys

    def append(self, anchor: Anchor) -> Anchor:
        """Sign ``anchor`` and put it at the end, on the disk; raises ``AnchorError``."""
        from cluster.series_files import fsync_folder

        name = list(self._keys)[-1]
        signed = msgspec.structs.replace(anchor, key=name)
        signed = msgspec.structs.replace(signed, mac=self._mac(signed))
        known = self.path.exists()
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                # A line without an end was never acknowledged: the writer was killed in it.
                os.ftruncate(descriptor, _end_of_lines(self.path))
                file.write(_canonical_json(msgspec.to_builtins(signed)) + b"\n")
                file.flush()
                os.fsync(descriptor)
            if not known:
                fsync_folder(self.path.parent)
        except OSError as error:
            raise AnchorError(f"{self.path}: cannot be written: {error.strerror}") from error
        return signed

    def lines(self, tail_bytes: int | None = None) -> tuple[list[Line], list[Finding]]:
        """The lines of the file (or of its end), and what is wrong with them; raises ``AnchorError``."""
        lines: list[Line] = []
        findings: list[Finding] = []
        try:
            numbered = list(_numbered_lines(self.path, tail_bytes))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise AnchorError(f"{self.path}: cannot be read: {error.strerror}") from error
        for number, content in numbered:
            line = self._read(number, content)
            before = lines[-1].digest if lines else None
            lines.append(line)
            if line.anchor is None:
                findings.append(self._finding(line, "a line signed with the desk's key", line.problem))
            elif before is not None and line.anchor.before != before:
                findings.append(self._finding(line, f"the line after {before}", f"one after {line.anchor.before}"))
        return lines, findings

    def put_aside(self, stamp: int) -> Path | None:
        """Keep the file under another name; None where there is none."""
        from cluster.series_files import fsync_folder

        if not self.path.exists():
            return None
        kept = self.path.with_name(f"{self.path.stem}.until-{stamp}.jsonl")
        self.path.rename(kept)
        fsync_folder(self.path.parent)
        return kept

    @contextlib.asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """One writer at a time, over all processes of this machine; raises ``AnchorError`` where one does not end."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.path.with_name(f".{self.path.stem}.lock").open("w") as file:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_PAUSE_S)
            else:
                raise AnchorError(f"account {self.account}: another process keeps writing its anchors")
            yield

    def _read(self, number: int, content: bytes) -> Line:
        digest = hashlib.sha256(content).hexdigest()
        try:
            anchor = msgspec.json.decode(content, type=Anchor)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return Line(number, None, digest, f"one that cannot be read ({error})")
        if _canonical_json(msgspec.to_builtins(anchor)) != content:
            return Line(number, None, digest, "one written by another hand")
        if anchor.key not in self._keys:
            return Line(number, None, digest, f"one signed with another key ({anchor.key})")
        if not hmac.compare_digest(self._mac(anchor), anchor.mac):
            return Line(number, None, digest, "one whose signature is wrong")
        if anchor.account != self.account:
            return Line(number, None, digest, f"one of account {anchor.account}")
        return Line(number, anchor, digest)

    def _mac(self, anchor: Anchor) -> str:
        content = msgspec.to_builtins(anchor)
        del content["mac"]
        return hmac.digest(self._keys[anchor.key], _canonical_json(content), "sha256").hex()

    def _finding(self, line: Line, expected: str, found: str) -> Finding:
        return Finding("anchor", None, expected, found, file=self.path.name, row=line.number or None)


def key_name(key: bytes) -> str:
    """What lines call a key: it tells keys apart and nothing about them. Raises ``AnchorError`` for a short one."""
    if len(key) < KEY_BYTES_MIN:
        raise AnchorError(f"audit_key: expected at least {KEY_BYTES_MIN} bytes")
    return hashlib.sha256(b"audit key name\n" + key).hexdigest()[:16]


def _canonical_json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _numbered_lines(path: Path, tail_bytes: int | None) -> Iterator[tuple[int, bytes]]:
    """The whole lines (number, bytes without the end); of a tail numbered 0, as nobody has counted those before it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(size - tail_bytes, 0) if tail_bytes is not None else 0
        file.seek(start)
        if start:
            file.readline()
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n"):
                yield (0 if start else number), line[:-1]


def _end_of_lines(path: Path) -> int:
    """How many bytes of the file are whole lines."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(size - TAIL_BYTES, 0)
        file.seek(start)
        return start + file.read().rfind(b"\n") + 1
