"""Signed anchors of the audit logs outside the ledger's server: what was once written there cannot be unwritten.

Whoever can write to the server can recompute its hash chain. So execution notes each minute, in a file of its own,
where the chain stood, signed with a key the server never sees. A ledger that no longer holds what an anchor says has
lost acknowledged writes, was emptied or rolled back, or is another database; one whose chain differs was rewritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from cluster.audit_chain import GENESIS, ChainCheck, Finding, Row, canonical
from cluster.audit_files import DESK_NAME, ArchiveFile
from cluster.audit_log import READINGS_MAX, AuditLog, AuditMoved, Head
from cluster.ledger import Ledger
from conf.settings import Secrets, Settings

AUDIT_DIR: Final = "audit"
# The end of the file is looked at before anything is traded; all of it by `desk audit verify`.
TAIL_BYTES: Final = 65_536
NOTHING: Final = "0" * 64
LOCK_TRIES: Final = 200
LOCK_PAUSE_S: Final = 0.05
REASON_CHARS_MAX: Final = 500


class AnchorError(RuntimeError):
    """An anchor cannot be written: there is no key, or the file cannot be written."""


class BooksLost(RuntimeError):
    """The ledger does not hold what was anchored of it, so the account must not be opened or traded."""

    def __init__(self, account: str, findings: list[Finding]) -> None:
        """Keep what was found."""
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        super().__init__(
            f"account {account}: the ledger is not the one its anchors know: {findings[0]}{more}. Restore the ledger, "
            "or begin anew on purpose: desk audit reset"
        )
        self.account = account
        self.findings = findings


class Anchor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of the file: where the chain stood.

    ``rows`` is the SHA-256 of the entries after ``after`` up to ``seq``,
    ``before`` is the SHA-256 of the line before, ``key`` names the key, ``reset`` is the reason of a new beginning.
    """

    account: str
    seq: int
    chain: str
    entry: str
    after: int
    rows: str
    written_ns: int
    before: str
    key: str
    reset: str
    mac: str


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the file as read: its anchor and its hash, or why it is none."""

    number: int
    anchor: Anchor | None
    digest: str
    problem: str = ""


class Anchors:
    """The anchors of all accounts in one folder: ``anchors-<account>.jsonl``, the desk's own as ``@desk``."""

    def __init__(self, folder: Path, key: bytes, *former: bytes, clock: Callable[[], int] = time.time_ns) -> None:
        """Sign with ``key``; lines signed with a ``former`` key are believed too. ``clock`` gives nanoseconds."""
        if len(key) < 16:
            raise AnchorError("audit_key: expected at least 16 bytes")
        self.folder = folder
        self._keys = {_name(one): one for one in (*former, key)}
        self._key_name = _name(key)
        self._clock = clock

    @classmethod
    def of(cls, settings: Settings, secrets: Secrets) -> Anchors:
        """The desk's anchors, signed with its ``audit_key``, or with a key made from ``api_key_pepper``."""
        own, pepper = secrets.audit_key, secrets.api_key_pepper
        derived = None if pepper is None else _derived(pepper.get_secret_value())
        if own is not None:
            return cls(audit_folder(settings), own.get_secret_value().encode(), *([derived] if derived else []))
        if derived is None:
            raise AnchorError("audit_key: there is neither this secret nor api_key_pepper to derive one from")
        return cls(audit_folder(settings), derived)

    def path(self, account: str | None) -> Path:
        """The file of an account, or of the desk."""
        return self.folder / f"anchors-{account or DESK_NAME}.jsonl"

    async def write(self, ledger: Ledger, account: str | None) -> Anchor | None:
        """Anchor what was written since the last anchor; None where nothing was.

        Raises ``BooksLost``, and writes nothing, where the ledger does not go on from the last anchor.
        """
        log = AuditLog(ledger, account, self.folder)
        async with self._locked(account):
            last = self._last(account)
            head = await log.head()
            if last.seq == head.seq and last.chain == head.chain:
                return None
            made = await self._next(log, last, head)
            self._append(account, made)
            return made

    async def check(self, ledger: Ledger, account: str | None, *, full: bool = True) -> list[Finding]:
        """What the anchors (and archived files) say is no longer in the ledger; none is the proof.

        ``full`` reads every line and every entry they stand for; without it the newest line and the entries since.
        """
        log = AuditLog(ledger, account, self.folder)
        lines, findings = self._lines(account, None if full else TAIL_BYTES)
        findings += _behind_archive(log, await log.head())
        anchors = [line.anchor for line in lines if line.anchor is not None]
        if not anchors:
            return findings
        for _ in range(READINGS_MAX):
            try:
                return findings + await (_check_all(log, anchors) if full else _check_last(log, anchors[-1]))
            except AuditMoved:
                continue
        raise AuditMoved(f"account {log.name}: entries kept moving to the archive during {READINGS_MAX} readings")

    async def require(self, ledger: Ledger, account: str | None) -> None:
        """Raise ``BooksLost`` where the ledger is not the one the anchors know; call it before claiming an account."""
        findings = await self.check(ledger, account, full=False)
        if findings:
            raise BooksLost(account or DESK_NAME, findings)

    async def reset(self, ledger: Ledger, account: str | None, reason: str, by: str) -> list[Path]:
        """Begin anew with the ledger as it is: old anchors and orphaned archives are put aside, never deleted.

        The new file's first line is signed, says why, and holds the hash of the old file's last line. Returns what
        was put aside.
        """
        from cluster.series_files import fsync_folder

        if not reason.strip() or len(reason) > REASON_CHARS_MAX:
            raise AnchorError(f"reason: expected 1 to {REASON_CHARS_MAX} characters, was {len(reason)}")
        log = AuditLog(ledger, account, self.folder)
        async with self._locked(account):
            lines, _ = self._lines(account, None)
            head = await log.head()
            first = await log.first_in_stream()
            aside = [] if log.archive is None else [log.archive.put_aside(await _orphans(log, first))]
            path = self.path(account)
            if path.exists():
                kept = path.with_name(f"{path.stem}.until-{self._clock()}.jsonl")
                path.rename(kept)
                fsync_folder(self.folder)
                aside.append(kept)
            start = Anchor(
                account=log.name,
                seq=0,
                chain=GENESIS,
                entry="",
                after=0,
                rows=hashlib.sha256().hexdigest(),
                written_ns=self._clock(),
                before=lines[-1].digest if lines else NOTHING,
                key=self._key_name,
                reset=f"{by}: {reason}",
                mac="",
            )
            self._append(account, self._signed(start))
            if head.seq > 0:
                self._append(account, await self._next(log, _Last(0, GENESIS, self._last(account).digest), head))
        return [path for path in aside if path is not None]

    # -- lines ---------------------------------------------------------------------------------------------------------

    async def _next(self, log: AuditLog, last: _Last, head: Head) -> Anchor:
        """The anchor after ``last``; raises ``BooksLost`` where the log does not lead from there to ``head``."""
        if head.seq <= last.seq:
            raise BooksLost(log.name, [_behind(last.seq, last.chain, head)])
        for _ in range(READINGS_MAX):
            check, digest, entry = ChainCheck(last.seq, last.chain), hashlib.sha256(), ""
            try:
                async for page in log.pages(last.seq, head.seq):
                    check.take_all(page)
                    rows = [row for row in page if isinstance(row, Row)]
                    digest.update(b"".join(canonical(row) for row in rows))
                    entry = rows[-1].stream_id if rows else entry
            except AuditMoved:
                continue
            findings = check.finish() + _ends_at(check, head)
            if findings:
                raise BooksLost(log.name, findings)
            return self._signed(
                Anchor(
                    account=log.name,
                    seq=head.seq,
                    chain=head.chain,
                    entry=entry,
                    after=last.seq,
                    rows=digest.hexdigest(),
                    written_ns=self._clock(),
                    before=last.digest,
                    key=self._key_name,
                    reset="",
                    mac="",
                )
            )
        raise AuditMoved(f"account {log.name}: entries kept moving to the archive during {READINGS_MAX} readings")

    def _signed(self, anchor: Anchor) -> Anchor:
        return msgspec.structs.replace(anchor, mac=self._mac(anchor))

    def _mac(self, anchor: Anchor) -> str:
        content = msgspec.to_builtins(anchor)
        del content["mac"]
        return hmac.digest(self._keys[anchor.key], _canonical_json(content), "sha256").hex()

    def _last(self, account: str | None) -> _Last:
        lines, findings = self._lines(account, TAIL_BYTES)
        if findings:
            raise BooksLost(account or DESK_NAME, findings)
        last = lines[-1] if lines else None
        if last is None or last.anchor is None:
            return _Last(0, GENESIS, NOTHING)
        return _Last(last.anchor.seq, last.anchor.chain, last.digest)

    def _append(self, account: str | None, anchor: Anchor) -> None:
        from cluster.series_files import fsync_folder

        path = self.path(account)
        known = path.exists()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(descriptor, "r+b") as file:
                # A line without an end was never acknowledged: the writer was killed in it.
                os.ftruncate(descriptor, _end_of_lines(path))
                file.write(_canonical_json(msgspec.to_builtins(anchor)) + b"\n")
                file.flush()
                os.fsync(descriptor)
            if not known:
                fsync_folder(self.folder)
        except OSError as error:
            raise AnchorError(f"{path}: cannot be written: {error.strerror}") from error

    def _lines(self, account: str | None, tail_bytes: int | None) -> tuple[list[_Line], list[Finding]]:
        """The lines of the file (or of its end), and what is wrong with them."""
        path = self.path(account)
        lines: list[_Line] = []
        findings: list[Finding] = []
        try:
            numbered = list(_numbered_lines(path, tail_bytes))
        except FileNotFoundError:
            return [], []
        except OSError as error:
            raise AnchorError(f"{path}: cannot be read: {error.strerror}") from error
        for index, (number, content) in enumerate(numbered):
            line = self._read(number, content, account or DESK_NAME)
            before = lines[-1].digest if index else None
            lines.append(line)
            if line.problem:
                findings.append(_line_finding(path, line, "a line signed with the desk's key", line.problem))
            elif before is not None and line.anchor is not None and line.anchor.before != before:
                found = f"one after {line.anchor.before}"
                findings.append(_line_finding(path, line, f"the line after {before}", found))
        return lines, findings

    def _read(self, number: int, content: bytes, account: str) -> _Line:
        digest = hashlib.sha256(content).hexdigest()
        try:
            anchor = msgspec.json.decode(content, type=Anchor)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _Line(number, None, digest, f"one that cannot be read ({error})")
        if _canonical_json(msgspec.to_builtins(anchor)) != content:
            return _Line(number, None, digest, "one written by another hand")
        if anchor.key not in self._keys:
            return _Line(number, None, digest, f"one signed with another key ({anchor.key})")
        if not hmac.compare_digest(self._mac(anchor), anchor.mac):
            return _Line(number, None, digest, "one whose signature is wrong")
        if anchor.account != account:
            return _Line(number, None, digest, f"one of account {anchor.account}")
        return _Line(number, anchor, digest)

    @contextlib.asynccontextmanager
    async def _locked(self, account: str | None) -> AsyncIterator[None]:
        """One writer of an account's anchors at a time, over all processes of this machine."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / f".anchors-{account or DESK_NAME}.lock").open("w") as file:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(LOCK_PAUSE_S)
            else:
                raise AnchorError(f"account {account or DESK_NAME}: another process keeps writing its anchors")
            yield


@dataclass(frozen=True, slots=True)
class _Last:
    """What the next anchor goes on from."""

    seq: int
    chain: str
    digest: str


def audit_folder(settings: Settings) -> Path:
    """Where a desk keeps its anchors and archived entries."""
    return settings.state_dir / AUDIT_DIR


# -- comparing with the ledger -----------------------------------------------------------------------------------------


async def _check_last(log: AuditLog, anchor: Anchor) -> list[Finding]:
    """The anchored entry is there, and the log leads from it to where the ledger says it ends."""
    head = await log.head()
    if head.seq < anchor.seq:
        return [_behind(anchor.seq, anchor.chain, head)]
    if anchor.seq:
        row = await log.find(anchor.seq, anchor.entry)
        if row is None or row.problem or (row.seq, row.chain) != (anchor.seq, anchor.chain):
            return [_differs(anchor, row)]
    check = ChainCheck(anchor.seq, anchor.chain)
    async for page in log.pages(anchor.seq, head.seq):
        check.take_all(page)
    return check.finish() + _ends_at(check, head)


async def _check_all(log: AuditLog, anchors: list[Anchor]) -> list[Finding]:
    """Every anchor's entries are those that were there when it was written."""
    head = await log.head()
    findings: list[Finding] = []
    # A line that begins anew stands for nothing that came before it.
    waiting = [anchor for anchor in anchors if not anchor.reset]
    digest, after = hashlib.sha256(), 0
    async for page in log.pages(0, waiting[-1].seq if waiting else 0):
        for row in page:
            if isinstance(row, Finding) or row.problem:
                continue
            digest.update(canonical(row))
            while waiting and row.seq >= waiting[0].seq:
                anchor = waiting.pop(0)
                if (row.seq, row.chain) != (anchor.seq, anchor.chain):
                    findings.append(_differs(anchor, row))
                elif anchor.after == after and digest.hexdigest() != anchor.rows:
                    what = f"entries {after + 1} to {anchor.seq} of SHA-256 {anchor.rows}"
                    findings.append(Finding("anchor", anchor.seq, what, digest.hexdigest(), anchor.entry))
                digest, after = hashlib.sha256(), anchor.seq
    if waiting:
        findings.append(_behind(waiting[-1].seq, waiting[-1].chain, head))
    return findings


def _behind(seq: int, chain: str, head: Head) -> Finding:
    if head.seq == seq and head.chain != chain:
        return Finding("anchor", seq, f"chain {chain}", f"chain {head.chain}: the log was rewritten")
    if head.seq >= seq:
        return Finding("anchor", seq, f"entry {seq} with chain {chain}", "no such entry: the log ends before it")
    return Finding("anchor", seq, f"at least {seq} entries", f"a ledger of {head.seq}: acknowledged entries are lost")


def _behind_archive(log: AuditLog, head: Head) -> list[Finding]:
    """An archived file stands for what the ledger once held, also where the anchors themselves were lost."""
    files = log.archive.files() if log.archive else []
    found = f"a ledger of {head.seq}: acknowledged entries are lost"
    return [
        Finding("anchor", file.last, f"at least {file.last} entries", found, file=file.name)
        for file in files[-1:]
        if file.last > head.seq
    ]


def _differs(anchor: Anchor, row: Row | None) -> Finding:
    found = "no such entry" if row is None or row.problem else f"entry {row.seq} with chain {row.chain}"
    return Finding("anchor", anchor.seq, f"chain {anchor.chain}", f"{found}: the log was rewritten", anchor.entry)


def _ends_at(check: ChainCheck, head: Head) -> list[Finding]:
    """The rows end where the ledger's counters say."""
    if check.seq < head.seq:
        return [Finding("truncated", check.seq + 1, f"entries to {head.seq}", f"the end after {check.seq}")]
    if check.chain != head.chain:
        return [Finding("head", check.seq, f"head {check.chain}", f"head {head.chain}")]
    return []


async def _orphans(log: AuditLog, first: Row | None) -> list[ArchiveFile]:
    """Archived files the ledger as it is does not go on from."""
    files = log.archive.files() if log.archive else []
    return [file for file in files if first is None or file.last >= first.seq]


# -- the file ----------------------------------------------------------------------------------------------------------


def _canonical_json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _name(key: bytes) -> str:
    return hashlib.sha256(b"audit key name\n" + key).hexdigest()[:16]


def _derived(pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), b"audit anchors", "sha256")


def _line_finding(path: Path, line: _Line, expected: str, found: str) -> Finding:
    return Finding("anchor", None, expected, found, file=path.name, row=line.number or None)


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
