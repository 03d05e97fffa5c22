"""Signed anchors of the audit logs outside the ledger's server: what was once written there cannot be unwritten.

Whoever can write to the server can recompute its hash chain. So execution notes each minute, in a file of its own,
where the chain stood, signed with a key the server never sees. A ledger that no longer holds what an anchor says has
lost acknowledged writes, was emptied or rolled back, or is another database; one whose chain differs was rewritten.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cluster.anchor_file import NOTHING, TAIL_BYTES, Anchor, AnchorFile, key_name
from cluster.anchor_file import AnchorError as AnchorError
from cluster.audit_chain import GENESIS, ChainCheck, Finding, Row, canonical
from cluster.audit_files import DESK_NAME, ArchiveFile
from cluster.audit_log import READINGS_MAX, AuditLog, AuditMoved, Head
from cluster.ledger import Ledger
from conf.settings import Secrets, Settings

AUDIT_DIR: Final = "audit"
REASON_CHARS_MAX: Final = 500


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


@dataclass(frozen=True, slots=True)
class _Last:
    """What the next anchor goes on from: an entry's number and chain value, and the hash of the line that says so."""

    seq: int
    chain: str
    digest: str


class Anchors:
    """The anchors of all accounts, and of the desk itself (None), in one folder.

    Methods that read the ledger may raise ``LedgerUnavailable``; those that read or write a file ``AnchorError``.
    """

    def __init__(self, folder: Path, key: bytes, *former: bytes, clock: Callable[[], int] = time.time_ns) -> None:
        """Sign with ``key``; lines signed with a ``former`` key are believed too. ``clock`` gives nanoseconds."""
        self.folder = folder
        self._keys = {key_name(one): one for one in (*(one for one in former if one != key), key)}
        self._clock = clock

    @classmethod
    def of(cls, settings: Settings, secrets: Secrets) -> Anchors:
        """The desk's anchors, signed with its ``audit_key``, or with a key made from ``api_key_pepper``."""
        own, pepper = secrets.audit_key, secrets.api_key_pepper
        derived = [] if pepper is None else [_derived(pepper.get_secret_value())]
        if own is not None:
            return cls(audit_folder(settings), own.get_secret_value().encode(), *derived)
        if not derived:
            raise AnchorError("audit_key: there is neither this secret nor api_key_pepper to derive one from")
        return cls(audit_folder(settings), *derived)

    def path(self, account: str | None) -> Path:
        """The file of an account's anchors."""
        return self._file(account).path

    async def write(self, ledger: Ledger, account: str | None) -> Anchor | None:
        """Anchor what was written since the last anchor; None where nothing was.

        Raises ``BooksLost``, and writes nothing, where the ledger does not go on from the last anchor.
        """
        log, file = AuditLog(ledger, account, self.folder), self._file(account)
        async with file.locked():
            last = _last_of(file)
            head = await log.head()
            if (last.seq, last.chain) == (head.seq, head.chain):
                return None
            return file.append(await self._next(log, last, head))

    async def check(self, ledger: Ledger, account: str | None, *, full: bool = True) -> list[Finding]:
        """What the anchors (and archived files) say is no longer in the ledger; none is the proof.

        ``full`` reads every line and every entry they stand for; without it the newest line and the entries since.
        """
        log = AuditLog(ledger, account, self.folder)
        lines, findings = self._file(account).lines(None if full else TAIL_BYTES)
        findings += _behind_archive(log, await log.head())
        anchors = [line.anchor for line in lines if line.anchor is not None]
        if not anchors:
            return findings
        for _ in range(READINGS_MAX):
            try:
                return findings + await (_check_all(log, anchors) if full else _check_last(log, anchors[-1]))
            except AuditMoved:
                continue
        raise _kept_moving(log)

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
        if not reason.strip() or len(reason) > REASON_CHARS_MAX:
            raise AnchorError(f"reason: expected 1 to {REASON_CHARS_MAX} characters, was {len(reason)}")
        log, file = AuditLog(ledger, account, self.folder), self._file(account)
        async with file.locked():
            lines, _ = file.lines()
            head = await log.head()
            if head.seq < 0:
                raise AnchorError(f"account {log.name}: the ledger does not say how many entries it has (:book seq)")
            newest = [row for row in await log.tail(1) if (row.seq, row.chain) == (head.seq, head.chain)]
            kept = [
                None if log.archive is None else log.archive.put_aside(await _orphans(log)),
                file.put_aside(self._clock()),
            ]
            before = lines[-1].digest if lines else NOTHING
            entry = newest[0].stream_id if newest else ""
            file.append(self._anchor(log, head, entry, head.seq, hashlib.sha256(), before, f"{by}: {reason}"))
        return [path for path in kept if path is not None]

    def _file(self, account: str | None) -> AnchorFile:
        return AnchorFile(self.folder, account, self._keys)

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
            return self._anchor(log, head, entry, last.seq, digest, last.digest)
        raise _kept_moving(log)

    def _anchor(
        self, log: AuditLog, head: Head, entry: str, after: int, digest: hashlib._Hash, before: str, reset: str = ""
    ) -> Anchor:
        rows, now_ns = digest.hexdigest(), self._clock()
        return Anchor(log.name, head.seq, head.chain, entry, after, rows, now_ns, before, reset)


def audit_folder(settings: Settings) -> Path:
    """Where a desk keeps its anchors and archived entries."""
    return settings.state_dir / AUDIT_DIR


# -- comparing with the ledger -----------------------------------------------------------------------------------------


def _last_of(file: AnchorFile) -> _Last:
    """The newest anchor; raises ``BooksLost`` where the end of the file was changed."""
    lines, findings = file.lines(TAIL_BYTES)
    if findings:
        raise BooksLost(file.account, findings)
    anchor = lines[-1].anchor if lines else None
    return _Last(0, GENESIS, NOTHING) if anchor is None else _Last(anchor.seq, anchor.chain, lines[-1].digest)


async def _check_last(log: AuditLog, anchor: Anchor) -> list[Finding]:
    """The anchored entry is there, and the log leads from it to where the ledger says it ends."""
    head = await log.head()
    if head.seq < anchor.seq:
        return [_behind(anchor.seq, anchor.chain, head)]
    if findings := await _check_entry(log, anchor):
        return findings
    check = ChainCheck(anchor.seq, anchor.chain)
    async for page in log.pages(anchor.seq, head.seq):
        check.take_all(page)
    return check.finish() + _ends_at(check, head)


async def _check_entry(log: AuditLog, anchor: Anchor) -> list[Finding]:
    if not anchor.entry:
        return []
    row = await log.find(anchor.seq, anchor.entry)
    found = row is not None and not row.problem and (row.seq, row.chain) == (anchor.seq, anchor.chain)
    return [] if found else [_differs(anchor, row)]


async def _check_all(log: AuditLog, anchors: list[Anchor]) -> list[Finding]:
    """Every anchor's entries are those that were there when it was written."""
    head = await log.head()
    waiting, findings, after = list(anchors), [], 0
    if waiting[0].reset:
        # What was there when the log was begun anew was taken as it was.
        start = waiting.pop(0)
        after = start.seq
        findings += await _check_entry(log, start)
    digest = hashlib.sha256()
    async for page in log.pages(after, waiting[-1].seq if waiting else after):
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
    behind = waiting or [anchor for anchor in anchors[-1:] if head.seq < anchor.seq]
    return findings + [_behind(anchor.seq, anchor.chain, head) for anchor in behind[-1:]]


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


async def _orphans(log: AuditLog) -> list[ArchiveFile]:
    """Archived files the ledger as it is does not go on from."""
    first = await log.first_in_stream()
    files = log.archive.files() if log.archive else []
    return [file for file in files if first is None or file.last >= first.seq]


def _derived(pepper: str) -> bytes:
    return hmac.digest(pepper.encode(), b"audit anchors", "sha256")


def _kept_moving(log: AuditLog) -> AuditMoved:
    return AuditMoved(f"account {log.name}: entries kept moving to the archive during {READINGS_MAX} readings")
