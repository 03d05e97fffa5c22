"""The hash chain of an audit log: whatever is done to the rows, it is found, and at its row."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from cluster.audit_chain import FINDINGS_MAX, ChainCheck, Finding, Row, canonical, chain_of, row_of
from tests.audit_rows import log, rechained

ROWS = log(50)
Change = Callable[[list[Row]], list[Row]]


def check(rows: list[Row]) -> list[Finding]:
    found = ChainCheck()
    found.take_all(rows)
    return found.finish()


def places(findings: list[Finding]) -> list[tuple[str, int | None, str]]:
    """(rule, number, stream id) of each."""
    return [(finding.rule, finding.seq, finding.stream_id) for finding in findings]


def altered(rows: list[Row], index: int, **changed: object) -> list[Row]:
    return [*rows[:index], msgspec.structs.replace(rows[index], **changed), *rows[index + 1 :]]


def test_an_untouched_log_has_no_findings() -> None:
    found = ChainCheck()
    found.take_all(ROWS)
    assert (found.finish(), found.seq, found.chain) == ([], 50, ROWS[-1].chain)


def test_the_chain_is_the_one_the_server_computes() -> None:
    # sha1("000…0\n1\n1700000000001000\nSENT\no-1\nexecution\n{}"), computed with sha1sum.
    assert chain_of("0" * 40, ROWS[0]) == ROWS[0].chain == "fb6ea04f65d0f876b0c1eb03fed7c6b2e5673278"


# A row is at 0-based index 20, so it is entry 21; each change is done to a log of 50 entries.
CHANGES: list[tuple[str, Change, list[tuple[str, int]]]] = [
    # what, the change, (rule, number) of what must be found and nothing else
    ("other data", lambda rows: altered(rows, 20, data='{"a":1}'), [("altered", 21)]),
    ("another kind", lambda rows: altered(rows, 20, kind="OPEN"), [("altered", 21)]),
    ("another id", lambda rows: altered(rows, 20, id="o-99"), [("altered", 21)]),
    ("another hand", lambda rows: altered(rows, 20, by="somebody"), [("altered", 21)]),
    ("another time", lambda rows: altered(rows, 20, us=rows[20].us + 1), [("altered", 21)]),
    ("another chain value", lambda rows: altered(rows, 20, chain="f" * 40), [("altered", 21)]),
    ("other data in the first", lambda rows: altered(rows, 0, data="{} "), [("altered", 1)]),
    ("other data in the last", lambda rows: altered(rows, 49, data="{} "), [("altered", 50)]),
    ("other data in two that follow each other",
     lambda rows: altered(altered(rows, 20, data="[]"), 21, data="[]"), [("altered", 21), ("altered", 22)]),
    ("other data in two apart",
     lambda rows: altered(altered(rows, 20, data="[]"), 30, data="[]"), [("altered", 21), ("altered", 31)]),
    ("another number", lambda rows: altered(rows, 20, seq=99), [("missing", 21), ("inserted", 99)]),
    ("one is gone", lambda rows: rows[:20] + rows[21:], [("missing", 21)]),
    ("the first is gone", lambda rows: rows[1:], [("missing", 1)]),
    ("ten are gone", lambda rows: rows[:20] + rows[30:], [("missing", 21)]),
    ("all but the last are gone", lambda rows: rows[49:], [("missing", 1)]),
    ("one is gone, and later another", lambda rows: rows[:20] + rows[21:40] + rows[41:],
     [("missing", 21), ("missing", 41)]),
    ("the one before the last is gone", lambda rows: rows[:48] + rows[49:], [("missing", 49)]),
    ("one was put in", lambda rows: rows[:20] + altered(rows, 20, data="[]")[20:21] + rows[20:], [("inserted", 21)]),
    ("one was put in after the true one",
     lambda rows: rows[:21] + altered(rows, 20, data="[]")[20:21] + rows[21:], [("inserted", 21)]),
    ("one was put in with a chain that fits",
     lambda rows: rows[:20] + rechained(altered(rows, 20, data="[]")[20:21], rows[19].chain) + rows[20:],
     [("inserted", 21)]),
    ("one is there twice", lambda rows: rows[:21] + rows[20:], [("inserted", 21)]),
    ("ten are there twice", lambda rows: rows[:30] + rows[20:], [("inserted", seq) for seq in range(21, 31)]),
    ("one of a far number was put in", lambda rows: rows[:20] + altered(rows, 0, seq=10**12)[:1] + rows[20:],
     [("inserted", 10**12)]),
    ("two have changed places", lambda rows: [*rows[:20], rows[21], rows[20], *rows[22:]], [("out of order", 22)]),
    ("two far apart have changed places", lambda rows: [*rows[:20], rows[30], *rows[21:30], rows[20], *rows[31:]],
     [("out of order", 21), ("out of order", 31)]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "change", "expected"), CHANGES, ids=[row[0] for row in CHANGES])
def test_a_change_is_found_at_its_row_and_nowhere_else(
    what: str, change: Change, expected: list[tuple[str, int]]
) -> None:
    found = [(finding.rule, finding.seq) for finding in check(change(list(ROWS)))]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_an_altered_row_is_named_by_its_place_with_what_was_expected() -> None:
    (finding,) = check(altered(ROWS, 20, data="[]"))
    assert (finding.seq, finding.stream_id) == (21, ROWS[20].stream_id)
    assert finding.found == f"chain {ROWS[20].chain}"
    assert finding.expected.startswith("chain ")
    assert finding.expected != finding.found
    assert str(finding).startswith(f"altered: entry 21, stream id {ROWS[20].stream_id}: expected chain ")


def test_a_row_of_a_file_is_named_by_file_and_row() -> None:
    rows = [msgspec.structs.replace(row, file="a.parquet", row=row.seq) for row in ROWS]
    (finding,) = check(altered(rows, 20, data="[]"))
    assert (finding.file, finding.row) == ("a.parquet", 21)
    assert "a.parquet row 21" in str(finding)


def test_rows_that_were_cut_off_at_the_end_show_where_the_log_ends() -> None:
    found = ChainCheck()
    found.take_all(ROWS[:30])
    assert (found.finish(), found.seq, found.chain) == ([], 30, ROWS[29].chain)


def test_a_log_altered_throughout_is_read_to_its_end_with_so_many_findings_and_no_more() -> None:
    rows = [msgspec.structs.replace(row, data="[]") for row in log(3 * FINDINGS_MAX)]
    found = ChainCheck()
    found.take_all(rows)
    findings = found.finish()
    assert len(findings) == FINDINGS_MAX
    assert found.left_out == 2 * FINDINGS_MAX
    assert {finding.rule for finding in findings} == {"altered"}


def test_whatever_single_thing_is_done_to_a_log_is_found() -> None:
    """Any row left out, doubled, moved or changed in any field: 2,000 times at random, never without a finding."""
    chance = random.Random(7)
    for _ in range(2_000):
        rows = list(ROWS)
        index, other = chance.sample(range(len(rows) - 1), 2)
        what = chance.choice(["drop", "double", "move", "kind", "id", "by", "data", "chain", "us", "seq"])
        if what == "drop":
            del rows[index]
        elif what == "double":
            rows.insert(other, rows[index])
        elif what == "move":
            rows.insert(other, rows.pop(index))
        else:
            value: object = rows[other].us if what == "us" else other + 1 if what == "seq" else f"x{other}"
            rows = altered(rows, index, **{what: value})
        findings = check(rows)
        assert findings or rows == ROWS, (what, index, other)


READABLE = {"seq": "1", "us": "5", "kind": "SENT", "id": "o", "by": "b", "data": "{}", "chain": "c"}
UNREADABLE: list[tuple[str, dict[str, str]]] = [
    ("nothing", {}),
    ("a field lacks", {name: text for name, text in READABLE.items() if name != "chain"}),
    ("a field too many", READABLE | {"note": "x"}),
    ("no number", READABLE | {"seq": "one"}),
    ("an empty number", READABLE | {"seq": ""}),
    ("another writing of a number", READABLE | {"seq": "01"}),
    ("a number with a sign", READABLE | {"us": "+5"}),
    ("a number with an exponent", READABLE | {"us": "5e1"}),
    ("a number of another script", READABLE | {"seq": "١"}),
    ("a number too long", READABLE | {"seq": "1" * 30}),
]


@pytest.mark.parametrize(("what", "fields"), UNREADABLE, ids=[row[0] for row in UNREADABLE])
def test_an_entry_that_cannot_be_read_is_a_finding_at_its_stream_id(what: str, fields: dict[str, str]) -> None:
    (finding,) = check([*ROWS[:20], row_of("5-0", fields), *ROWS[20:]])
    assert (finding.rule, finding.stream_id) == ("unreadable", "5-0")


def test_an_entry_is_read_as_it_was_written() -> None:
    assert row_of("7-1", READABLE) == Row(1, 5, "SENT", "o", "b", "{}", "c", "7-1")


def test_no_two_rows_have_the_same_canonical_bytes() -> None:
    # The chain alone would let a line break move from one field into the next.
    one, other = (msgspec.structs.replace(ROWS[0], id=a, by=b) for a, b in (("a\nb", "c"), ("a", "b\nc")))
    assert chain_of("", one) == chain_of("", other)
    assert canonical(one) != canonical(other)
