"""The proofs: that an audit log is whole, and that the books are what the log and the open orders add up to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from cluster.anchors import Anchors as Anchors
from cluster.anchors import BooksLost as BooksLost
from cluster.anchors import audit_folder as audit_folder
from cluster.audit_chain import ChainCheck, Finding, Row
from cluster.audit_files import ArchiveFile
from cluster.audit_log import READINGS_MAX, AuditLog, AuditMoved, Head
from cluster.ledger import Difference, Ledger, LedgerUnavailable, Snapshot
from cluster.ledger_replay import BrokenAudit, Replay
from cluster.replay_book import Book

# How often the desk's book and its accounts' are read until nothing has moved between them.
INSTANTS_MAX: Final = 50
SUMMED: Final = re.compile(r"reserved|(.+\|)?(open_orders|(buy|sell)_(notional|lots))")
"""Counters of the book that are sums over open orders."""
_INTEGER: Final = re.compile(r"-?[0-9]+")
_LEFT_OUT: Final = frozenset({"seq", "head", "a|venue_errors"})
_DAY: Final = ("number", "orders", "turnover", "pnl_start", "messages", "fills")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What ``verify_chain`` read (``rows``, ``archived`` of them in files) and found; no finding is the proof."""

    account: str
    rows: int
    archived: int
    head: str
    findings: list[Finding]
    left_out: int

    @property
    def whole(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


class _Archived(msgspec.Struct, frozen=True):
    """What an ARCHIVED entry says."""

    through_seq: str
    file: str
    sha256: str


async def verify_chain(ledger: Ledger, account: str | None, folder: Path | None) -> ChainReport:
    """Read the whole log, archive and stream, and name every row where it is not what was written.

    ``folder`` is the audit folder. May be called while others write. Raises ``AuditMoved`` where entries keep moving
    to the archive, ``LedgerUnavailable``.
    """
    log = AuditLog(ledger, account, folder)
    return await _settled(lambda: _read_chain(log))


async def verify(ledger: Ledger, account: str | None, folder: Path | None = None) -> list[Difference]:
    """Prove the books: every counter against the open orders summed afresh, and all against the audit log replayed.

    Returns the figures that do not add up; an empty list is the proof. Sums and book are of one instant, and the log
    is replayed up to that instant, so the proof holds while others write. ``folder`` is the audit folder, needed where
    entries were archived. Of the desk (None) all accounts are replayed together.
    """
    sums, book, desk = await ledger.open_sums(account)
    differences = _compare_sums(sums, desk if account is None else book)
    if account is None:
        return differences + await _settled(lambda: _prove_desk(ledger, folder))
    return differences + await _settled(lambda: _prove_account(ledger, account, folder))


async def replayed(log: AuditLog, through: int, desk: Book | None = None) -> Replay:
    """The first ``through`` entries replayed; raises ``BrokenAudit`` where they are not all there."""
    replay = Replay(log.account, desk)
    async for row in _rows(log, through):
        replay.apply(row)
    if replay.seq != through:
        raise BrokenAudit(f"expected {through} entries, the log ends after {replay.seq}")
    return replay


async def _settled(work: Callable[[], Awaitable[T]]) -> T:
    """Do it again where entries moved to the archive meanwhile."""
    for attempt in range(READINGS_MAX):
        try:
            return await work()
        except AuditMoved:
            if attempt == READINGS_MAX - 1:
                raise
    raise AssertionError("unreachable")


# -- the chain ---------------------------------------------------------------------------------------------------------


async def _read_chain(log: AuditLog) -> ChainReport:
    head = await log.head()
    files = log.needed(0, await log.first_in_stream())
    check, rows, archived, at_head = ChainCheck(), 0, 0, None
    notes: list[tuple[Row, _Archived]] = []
    async for page in log.pages():
        check.take_all(page)
        for row in page:
            if isinstance(row, Finding):
                continue
            rows += 1
            archived += bool(row.file)
            if row.seq == head.seq:
                at_head = row
            if row.kind == "ARCHIVED":
                notes += _note(row, check)
    findings = check.finish()
    findings += _check_head(head, at_head, check, await log.head()) + _check_files(log, notes, files)
    return ChainReport(log.name, rows, archived, head.chain, findings, check.left_out)


def _check_head(head: Head, at_head: Row | None, check: ChainCheck, later: Head) -> list[Finding]:
    """The counters name the last entry that was there when they were read; what came later moved them on."""
    if head.seq < 0:
        return [Finding("head", None, "the number of entries in :book seq", "no number")]
    if head.seq > check.seq:
        return [Finding("truncated", check.seq + 1, f"entries to {head.seq}", f"the end after {check.seq}")]
    if later.seq < check.seq:
        return [Finding("head", later.seq, f"seq {check.seq}", f"seq {later.seq}")]
    if at_head is not None and at_head.chain != head.chain:
        return [Finding("head", head.seq, f"head {at_head.chain}", f"head {head.chain}", at_head.stream_id)]
    return []


def _note(row: Row, check: ChainCheck) -> list[tuple[Row, _Archived]]:
    try:
        return [(row, msgspec.json.decode(row.data, type=_Archived))]
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        check.note(Finding("unreadable", row.seq, "an ARCHIVED entry", str(error), row.stream_id, row.file, row.row))
        return []


def _check_files(log: AuditLog, notes: list[tuple[Row, _Archived]], needed: list[ArchiveFile]) -> list[Finding]:
    """Every file is named by an entry, is there, and has the bytes it was written with."""
    files = {file.name: file for file in (log.archive.files() if log.archive else [])}
    findings: list[Finding] = []
    known: set[str] = set()
    for row, note in notes:
        if note.file in known:
            continue
        known.add(note.file)
        file = files.get(note.file)
        if file is None:
            what = f"the file entry {row.seq} names, SHA-256 {note.sha256}"
            findings.append(Finding("file", None, what, "no such file", file=note.file))
        elif (found := file.sha256()) != note.sha256:
            what = f"SHA-256 {note.sha256}, as entry {row.seq} says"
            findings.append(Finding("file", None, what, f"SHA-256 {found}", file=note.file))
    findings += [
        Finding("file", file.first, "a file an ARCHIVED entry names", "one that none names", file=file.name)
        for file in needed
        if file.name not in known
    ]
    return findings


# -- the books ---------------------------------------------------------------------------------------------------------


async def _prove_account(ledger: Ledger, account: str, folder: Path | None) -> list[Difference]:
    snapshot = await ledger.snapshot(account)
    through = _entries(snapshot.book)
    try:
        replay = await replayed(AuditLog(ledger, account, folder), through)
    except BrokenAudit as error:
        return [Difference(f"audit entries ({error})", through, 0)]
    return _compare(snapshot, snapshot.book, replay)


async def _prove_desk(ledger: Ledger, folder: Path | None) -> list[Difference]:
    """The desk's book is what all accounts' entries make of it, in the order of their times."""
    desk, heads = await _instant(ledger)
    logs = {account: AuditLog(ledger, account, folder) for account in heads}
    own = Replay(None)
    replays = {account: own if account is None else Replay(account, own.book) for account in heads}
    try:
        async for account, row in _merged(logs, heads):
            replays[account].apply(row)
    except BrokenAudit as error:
        return [Difference(f"audit entries ({error})", sum(heads.values()), sum(r.seq for r in replays.values()))]
    short = [
        Difference(f"audit entries of {logs[account].name}", heads[account], replay.seq)
        for account, replay in replays.items()
        if replay.seq != heads[account]
    ]
    return short or _compare(desk, desk.book, own)


async def _instant(ledger: Ledger) -> tuple[Snapshot, dict[str | None, int]]:
    """The desk, and how many entries it and each account had, at one instant."""
    for _ in range(INSTANTS_MAX):
        accounts: list[str | None] = [None, *await ledger.accounts()]
        before = {account: _entries((await ledger.snapshot(account)).book) for account in accounts}
        desk = await ledger.snapshot(None)
        after = {account: _entries((await ledger.snapshot(account)).book) for account in accounts}
        if before == after:
            return desk, after
    raise LedgerUnavailable("the accounts change too fast for the desk's proof; repeat it when there is less to do")


async def _merged(
    logs: Mapping[str | None, AuditLog], heads: Mapping[str | None, int]
) -> AsyncIterator[tuple[str | None, Row]]:
    """The entries of several logs in the order of their times, each log's own order kept."""
    readers = {account: _rows(log, heads[account]) for account, log in logs.items()}
    waiting: dict[str | None, Row] = {}
    for account, reader in readers.items():
        if (row := await anext(reader, None)) is not None:
            waiting[account] = row
    while waiting:
        account = min(waiting, key=lambda name: waiting[name].us)
        yield account, waiting.pop(account)
        if (row := await anext(readers[account], None)) is not None:
            waiting[account] = row


async def _rows(log: AuditLog, through: int) -> AsyncIterator[Row]:
    """The first ``through`` entries one by one; raises ``BrokenAudit`` where some cannot be read."""
    if through <= 0:
        return
    async for page in log.pages(0, through):
        for row in page:
            if isinstance(row, Finding):
                raise BrokenAudit(str(row))
            yield row


def _compare_sums(sums: Mapping[str, str], book: Mapping[str, str]) -> list[Difference]:
    """Counters against the open orders (of the desk: its accounts' figures) summed at the same instant."""
    summed = {name: int(text) for name, text in sums.items()}
    differences = [
        _difference("orders in :open without a reservation", 0, summed.pop("broken", 0)),
        _difference("reserved orders missing in the outbox", 0, summed.pop("unqueued", 0)),
    ]
    counted = {*summed, *(name for name in book if SUMMED.fullmatch(name))}
    differences += [_difference(name, _figure(book, name), summed.get(name, 0)) for name in sorted(counted)]
    return [difference for difference in differences if difference is not None]


def _compare(snapshot: Snapshot, book: Mapping[str, str], replay: Replay) -> list[Difference]:
    """Everything the entries lead to, field by field."""
    keys = replay.keys()
    differences: list[Difference | None] = []
    if book.get("head", "") != replay.chain and replay.seq:
        differences.append(Difference(f"head: booked {book.get('head')}, audit replay {replay.chain}", 0, 0))
    computed = keys.get(":book", {})
    for name in sorted({*book, *computed} - _LEFT_OUT):
        differences += _compare_field(name, book.get(name, ""), computed.get(name, ""), replay.book)
    limits = {scope: text for scope, text in snapshot.limits.items() if scope != "baseline"}
    for key, found in ((":state", snapshot.state), (":limits", limits)):
        for name in sorted({*found, *keys.get(key, {})}):
            differences.append(_texts(f"{key} {name}", found.get(name, ""), keys.get(key, {}).get(name, "")))
    return [difference for difference in differences if difference is not None]


def _compare_field(name: str, booked: str, computed: str, replay: Book) -> list[Difference | None]:
    if name.rpartition("|")[2] == "day":
        return _compare_days(name, booked.split(), computed.split(), replay)
    if _INTEGER.fullmatch(booked or "0") and _INTEGER.fullmatch(computed or "0"):
        return [_difference(f"{name} (audit replay)", int(booked or 0), int(computed or 0))]
    if _INTEGER.fullmatch(computed):
        return [_difference(f"{name} (audit replay)", None, int(computed))]
    return [_texts(name, booked, computed)]


def _compare_days(name: str, booked: list[str], computed: list[str], replay: Book) -> list[Difference | None]:
    """Part by part. A day that began with a look at an unchanged price has no entry: it is then as good as empty."""
    if booked[:1] != computed[:1]:
        computed = [*booked[:1], "0", "0", str(replay.figures[name.removesuffix("day") + "pnl"]), "0", "0"]
    if len(booked) != len(_DAY) or not all(_INTEGER.fullmatch(part) for part in booked):
        return [Difference(f"{name} (no integer)", 0, 0)]
    parts = zip(_DAY, booked, computed, strict=True)
    return [_difference(f"{name} {part} (audit replay)", int(one), int(other)) for part, one, other in parts]


def _entries(book: Mapping[str, str]) -> int:
    return _figure(book, "seq") or 0


def _figure(book: Mapping[str, str], name: str) -> int | None:
    """A counter as an integer; None where it is none."""
    text = book.get(name, "0")
    return int(text) if _INTEGER.fullmatch(text) else None


def _difference(what: str, booked: int | None, computed: int) -> Difference | None:
    if booked is None:
        return Difference(f"{what} (no integer)", 0, computed)
    return None if booked == computed else Difference(what, booked, computed)


def _texts(what: str, booked: str, computed: str) -> Difference | None:
    """Texts have no amount to show, so they stand in the name."""
    return None if booked == computed else Difference(f"{what}: booked {booked!r}, audit replay {computed!r}", 0, 0)
