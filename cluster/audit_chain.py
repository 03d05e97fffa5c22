"""The hash chain of an audit log, in pure code: rows in, and where they are not what was written out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import msgspec

GENESIS: Final = "0" * 40
FIELDS: Final = frozenset({"seq", "us", "kind", "id", "by", "data", "chain"})
# Of a log that is damaged from end to end nobody reads more; the number of those left out is said.
FINDINGS_MAX: Final = 1_000
# Rows looked at together to find where a damaged stretch ends.
PENDING_MAX: Final = 1_000

_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,15}")


class Row(msgspec.Struct, frozen=True):
    """One entry as it is stored, and where: in ``file`` at ``row`` (from 1), or without a file in the stream.

    ``us`` is the server's time in microseconds, ``data`` JSON. ``problem`` says why an entry cannot be read; its
    other fields then mean nothing.
    """

    seq: int
    us: int
    kind: str
    id: str
    by: str
    data: str
    chain: str
    stream_id: str
    file: str = ""
    row: int = 0
    problem: str = ""

    def from_stream(self) -> Row:
        """The same entry without the place it has in a file."""
        return msgspec.structs.replace(self, file="", row=0)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a log: the rule it breaks, the row, what was expected there and what was found.

    ``rule`` is altered | missing | inserted | out of order | unreadable | truncated | head | file | anchor.
    """

    rule: str
    seq: int | None
    expected: str
    found: str
    stream_id: str = ""
    file: str = ""
    row: int | None = None

    def __str__(self) -> str:
        place = [f"entry {self.seq}"] if self.seq is not None else []
        place += [f"stream id {self.stream_id}"] if self.stream_id else []
        place += [f"{self.file} row {self.row}" if self.row else self.file] if self.file else []
        return f"{self.rule}: {', '.join(place) or 'the log'}: expected {self.expected}, found {self.found}"

    def view(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def chain_of(before: str, row: Row) -> str:
    """The chain value of ``row`` after ``before``, as the ledger's server computes it (SHA-1 is all it has)."""
    content = f"{before}\n{row.seq}\n{row.us}\n{row.kind}\n{row.id}\n{row.by}\n{row.data}"
    return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()


def canonical(row: Row) -> bytes:
    """A row's content as one line of bytes that no two different rows share, wherever the row is stored."""
    return msgspec.json.encode([row.seq, row.us, row.kind, row.id, row.by, row.data, row.chain]) + b"\n"


def row_of(stream_id: str, fields: Mapping[str, str]) -> Row:
    """The row of a stream's entry; one that cannot be read says so in ``problem``."""
    problem = ""
    if set(fields) != FIELDS:
        problem = f"the fields {' '.join(sorted(fields)) or 'none'}"
    elif not (_NUMBER.fullmatch(fields["seq"]) and _NUMBER.fullmatch(fields["us"])):
        problem = f"seq {fields['seq']!r} and us {fields['us']!r}"
    if problem:
        return Row(0, 0, "", "", "", "", "", stream_id, problem=problem)
    return Row(
        int(fields["seq"]),
        int(fields["us"]),
        fields["kind"],
        fields["id"],
        fields["by"],
        fields["data"],
        fields["chain"],
        stream_id,
    )


class ChainCheck:
    """Takes rows in the order they are stored; ``finish`` returns every place where they are not what was written.

    A row is sound when its number and its chain follow from the sound row before it. One that does not follow waits
    until the rows after it show what happened: that an altered row is named and not its neighbours, a missing one by
    its number, an inserted one by its place.
    """

    def __init__(self, seq: int = 0, chain: str = GENESIS) -> None:
        """Expect the row after ``seq``, whose chain value is ``chain``."""
        self.seq = seq
        self.chain = chain
        self.left_out = 0
        self._findings: list[Finding] = []
        self._pending: list[Row] = []
        self._gaps: dict[int, range] = {}
        # The last sound row and the chain before it: a second row of the same number may be the true one.
        self._last: Row | None = None
        self._chain_before = chain

    def take(self, row: Row) -> None:
        """The next row."""
        if row.problem:
            self.note(Finding("unreadable", None, "an entry of seven fields", row.problem, *_place(row)))
        elif row.seq == self.seq + 1 and chain_of(self.chain, row) == row.chain:
            self._accept(row)
            if self._pending:
                self._settle_overtaken()
        else:
            self._suspect(row)

    def take_all(self, rows: Iterable[Row | Finding]) -> None:
        """The next rows; a finding stands for some that could not be read."""
        for row in rows:
            if isinstance(row, Finding):
                self.note(row)
            else:
                self.take(row)

    def finish(self) -> list[Finding]:
        """The rows are at their end: everything that was found, in the order of the rows."""
        self._settle()
        inserted = {finding.seq for finding in self._findings if finding.rule == "inserted" and finding.seq}
        found: list[Finding] = []
        for index, finding in enumerate(self._findings):
            if index in self._gaps:
                found += _without(finding, self._gaps[index], inserted)
            elif finding.rule == "inserted" and any(finding.seq in gap for gap in self._gaps.values()):
                # Missing in one place and there in another: it was moved.
                found.append(replace(finding, rule="out of order", expected="the entries in their order"))
            else:
                found.append(finding)
        return found

    def note(self, finding: Finding) -> None:
        """Add a finding, of which only so many are kept."""
        if len(self._findings) < FINDINGS_MAX:
            self._findings.append(finding)
        else:
            self.left_out += 1

    def _accept(self, row: Row) -> None:
        self._chain_before, self._last = self.chain, row
        self.seq, self.chain = row.seq, row.chain

    def _suspect(self, row: Row) -> None:
        before = self._pending[-1] if self._pending else None
        if before and self._last and self._is_twin(before) and chain_of(before.chain, row) == row.chain:
            # The log goes on from the second of two rows with one number, so the first was put there.
            self._pending[-1], self.chain = self._last, before.chain
            self._accept(row)
            self._settle_overtaken()
            return
        if before and self._goes_on(before, row):
            self._settle()
            self._accept(row)
            return
        self._pending.append(row)
        if len(self._pending) >= PENDING_MAX:
            self._settle()

    def _is_twin(self, row: Row) -> bool:
        """Whether ``row`` could stand for the last sound row: its number, and a chain that follows as well."""
        return row.seq == self.seq and chain_of(self._chain_before, row) == row.chain

    def _goes_on(self, before: Row, row: Row) -> bool:
        """Whether ``row`` follows the suspected row ``before``, by what is stored there or by what should be."""
        if row.seq != before.seq + 1 or before.seq <= self.seq:
            return False
        if chain_of(before.chain, row) == row.chain:
            return True
        return before.seq == self.seq + 1 and chain_of(chain_of(self.chain, before), row) == row.chain

    def _settle_overtaken(self) -> None:
        """A row has followed the last sound one, so those that waited were put in between or came too early."""
        waiting, self._pending = self._pending, []
        for row in waiting:
            if row.seq == self.seq + 1 and chain_of(self.chain, row) == row.chain:
                self.note(Finding("out of order", row.seq, "the entries in their order", "it too early", *_place(row)))
                self._accept(row)
            else:
                self._note_inserted(row)

    def _settle(self) -> None:
        """Name what is wrong with the rows that wait; the log goes on from the last of them."""
        waiting, self._pending = self._pending, []
        for index, row in enumerate(waiting):
            last = index == len(waiting) - 1
            if row.seq <= self.seq or (not last and row.seq >= waiting[-1].seq > self.seq):
                self._note_inserted(row)
                continue
            if row.seq > self.seq + 1:
                self._note_missing(range(self.seq + 1, row.seq), row)
            elif (expected := chain_of(self.chain, row)) != row.chain:
                self.note(Finding("altered", row.seq, f"chain {expected}", f"chain {row.chain}", *_place(row)))
            self._accept(row)

    def _note_inserted(self, row: Row) -> None:
        self.note(Finding("inserted", row.seq, "no such entry here", f"a {row.kind} of {row.id}", *_place(row)))

    def _note_missing(self, gap: range, row: Row) -> None:
        """Consecutive entries that are missing are one finding, placed at the row that follows them."""
        if len(self._findings) < FINDINGS_MAX:
            self._gaps[len(self._findings)] = gap
        self.note(Finding("missing", gap.start, _entries(gap), f"entry {row.seq}", *_place(row)))


def _entries(gap: range) -> str:
    return f"entry {gap.start}" if len(gap) == 1 else f"entries {gap.start} to {gap.stop - 1}"


def _without(finding: Finding, gap: range, present: Iterable[int]) -> list[Finding]:
    """A finding of missing entries, less those that are elsewhere in the log."""
    found, start = [], gap.start
    for seq in [*sorted(seq for seq in present if seq in gap), gap.stop]:
        if seq > start:
            found.append(replace(finding, seq=start, expected=_entries(range(start, seq))))
        start = seq + 1
    return found


def _place(row: Row) -> tuple[str, str, int | None]:
    return row.stream_id, row.file, row.row or None
