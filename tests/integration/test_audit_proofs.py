"""Whatever is done to an audit log or to the books on a real server, the proof names it; anchors outlive the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from cluster.anchors import AnchorError, Anchors, BooksLost
from cluster.audit import verify, verify_chain
from cluster.audit_chain import Finding, Row, row_of
from cluster.ledger import Ledger
from conf.settings import RedisSettings
from strategies.model import OrderStatus, Side
from tests.audit_rows import rechained
from tests.books import ACCOUNT, BASE, DESK, Books
from tests.tampering import add_to_figure, set_figure

pytestmark = pytest.mark.anyio

KEY: Final = b"a key of at least sixteen bytes"
Change = Callable[[list[Row]], list[Row]]


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


@pytest.fixture
def anchors(tmp_path: Path) -> Anchors:
    return Anchors(tmp_path / "audit", KEY)


@pytest.fixture
async def traded(books: Books) -> Books:
    """Two dozen entries: orders sent, filled and cancelled."""
    await books.open(lots={"BTC-USD": 1_000})
    for number in range(4):
        await books.accept(f"o-{number}", side=Side.BUY if number % 2 else Side.SELL)
        await books.send(f"o-{number}")
        await books.fill(f"o-{number}", 4, 10_000 + number, fee=1)
    await books.ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.CANCELLED, "test")
    return books


async def stream(ledger: Ledger, base: str = BASE) -> list[Row]:
    account = None if base == DESK else base.removeprefix(f"{DESK}:")
    return [row_of(stream_id, fields) for stream_id, fields in await ledger.audit_entries(account, "", 10_000)]


async def write_stream(ledger: Ledger, rows: list[Row], base: str = BASE) -> None:
    """Put other rows in the place of a log, as somebody does who may write to the server."""
    await ledger._direct("DEL", f"{base}:audit")
    for number, row in enumerate(rows, 1):
        fields = {name: str(getattr(row, name)) for name in ("seq", "us", "kind", "id", "by", "data", "chain")}
        flat = [part for pair in fields.items() for part in pair]
        # The server wants ascending ids: where rows were moved or put in, theirs go with the place.
        await ledger._direct("XADD", f"{base}:audit", f"{number}-0", *flat)


def changed(rows: list[Row], index: int, **fields: Any) -> list[Row]:
    return [*rows[:index], msgspec.structs.replace(rows[index], **fields), *rows[index + 1 :]]


# -- the log -----------------------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, Change, list[tuple[str, int]]]] = [
    # what, the change to a log, (rule, number) of the findings
    ("an entry altered", lambda rows: changed(rows, 9, data='{"lots":"5"}'), [("altered", 10)]),
    ("the last entry altered", lambda rows: changed(rows, len(rows) - 1, by="nobody"), [("altered", -1)]),
    ("an entry deleted", lambda rows: rows[:9] + rows[10:], [("missing", 10)]),
    ("an entry put in", lambda rows: rows[:9] + changed(rows, 9, id="o-9")[9:10] + rows[9:], [("inserted", 10)]),
    ("two entries exchanged", lambda rows: [*rows[:9], rows[10], rows[9], *rows[11:]], [("out of order", 11)]),
    ("the end cut off", lambda rows: rows[:-3], [("truncated", -3)]),
    ("the beginning cut off", lambda rows: rows[5:], [("missing", 1)]),
    ("all gone", lambda rows: [], [("truncated", 1)]),
]


@pytest.mark.parametrize(("what", "change", "expected"), CHANGES, ids=[row[0] for row in CHANGES])
async def test_what_is_done_to_the_stream_is_found_at_its_row(
    traded: Books, what: str, change: Change, expected: list[tuple[str, int]]
) -> None:
    ledger = traded.ledger
    rows = await stream(ledger)
    await write_stream(ledger, change(list(rows)))
    report = await verify_chain(ledger, ACCOUNT, None)
    found = [(finding.rule, finding.seq) for finding in report.findings]
    # Negative numbers count from the end.
    assert found == [(rule, seq if seq > 0 else len(rows) + 1 + seq) for rule, seq in expected]
    assert await verify(ledger, ACCOUNT) != []


async def test_an_untouched_log_is_whole_while_others_write(traded: Books) -> None:
    report = await verify_chain(traded.ledger, ACCOUNT, None)
    rows = await stream(traded.ledger)
    assert (report.whole, report.rows, report.head) == (True, len(rows), rows[-1].chain)
    assert (await verify_chain(traded.ledger, None, None)).whole


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [("head", "f" * 40, "head"), ("seq", "3", "head"), ("seq", "1000", "truncated"), ("seq", "many", "head")],
)
async def test_counters_of_the_log_that_were_changed_are_found(traded: Books, name: str, text: str, rule: str) -> None:
    await traded.ledger._direct("HSET", f"{BASE}:book", name, text)
    report = await verify_chain(traded.ledger, ACCOUNT, None)
    assert [finding.rule for finding in report.findings] == [rule]


# -- the books ---------------------------------------------------------------------------------------------------------

FIGURES: list[tuple[str, str, str, str]] = [
    # what, the figure of the book, what is added to it or (with =) put there, how the difference begins
    ("cash", "cash", "1", "cash (audit replay)"),
    ("a position", "p|BTC-USD|lots", "1", "p|BTC-USD|lots (audit replay)"),
    ("a strategy's cost", "sp|manual|BTC-USD|cost", "-1", "sp|manual|BTC-USD|cost (audit replay)"),
    ("a mark", "a|equity", "-1", "a|equity (audit replay)"),
    ("the peak", "a|peak", "=0", "a|peak (audit replay)"),
    ("a reservation", "reserved", "1", "reserved"),
    ("open orders", "s|manual|open_orders", "1", "s|manual|open_orders"),
    ("a day's turnover", "a|day", "=1 2 3 4 5 6", "a|day"),
    ("a day that is none", "a|day", "=today", "a|day (no integer)"),
    ("a rate", "a|tat", "5", "a|tat (audit replay)"),
    ("a figure that is no number", "fees", "=none", "fees"),
    ("a counter that is no number", "a|open_orders", "=none", "a|open_orders (no integer)"),
    ("a record that is none", "p|BTC-USD", "=gone", "p|BTC-USD"),
    ("a figure of nobody", "p|DOGE-USD|lots", "7", "p|DOGE-USD|lots (audit replay)"),
    ("what is held", "held", "=", "held: booked ''"),
    ("the last sizes", "p|BTC-USD|recent", "=1 2", "p|BTC-USD|recent: booked '1 2'"),
    ("a window", "s|manual|rejects", "=5 5", "s|manual|rejects: booked '5 5'"),
]


@pytest.mark.parametrize(("what", "figure", "change", "difference"), FIGURES, ids=[row[0] for row in FIGURES])
async def test_a_figure_that_was_changed_is_found(
    traded: Books, what: str, figure: str, change: str, difference: str
) -> None:
    await traded.limit({"account|order_interval_us": "1000"})
    await traded.accept("o-rate")
    assert await verify(traded.ledger, ACCOUNT) == []
    if change.startswith("="):
        await set_figure(traded.ledger, BASE, figure, change[1:])
    else:
        await add_to_figure(traded.ledger, BASE, figure, int(change))
    found = [one.what for one in await verify(traded.ledger, ACCOUNT)]
    assert any(name.startswith(difference) for name in found), found


OTHER_KEYS: list[tuple[str, list[str], str]] = [
    # what, the command, how the difference begins
    ("a trading state", ["HSET", f"{BASE}:state", "account", "CANCEL_ALL"], ":state account: booked 'CANCEL_ALL'"),
    ("a cause", ["HSET", f"{BASE}:state", "cause|account", "DRAWDOWN"], ":state cause|account: booked 'DRAWDOWN'"),
    ("the epoch", ["HINCRBY", f"{BASE}:state", "epoch", "1"], ":state epoch: booked '2'"),
    ("a limit", ["HSET", f"{BASE}:limits", "account", "max_open_orders=9"], ":limits account: booked"),
    ("a limit that is gone", ["HDEL", f"{BASE}:limits", "key|*"], ":limits key|*: booked ''"),
    ("a forgotten order", ["DEL", f"{BASE}:order:o-0"], "orders in :open without a reservation"),
    ("an order that is no longer open", ["ZREM", f"{BASE}:open", "o-0"], "a|open_orders"),
    ("an order that reserves less", ["HSET", f"{BASE}:order:o-0", "reserved_notional", "1"], "a|sell_notional"),
    ("an order nobody will send", ["DEL", f"{BASE}:outbox"], "reserved orders missing in the outbox"),
]


@pytest.mark.parametrize(("what", "command", "difference"), OTHER_KEYS, ids=[row[0] for row in OTHER_KEYS])
async def test_another_key_that_was_changed_is_found(
    traded: Books, what: str, command: list[str], difference: str
) -> None:
    await traded.accept("o-waiting")
    assert await verify(traded.ledger, ACCOUNT) == []
    await traded.ledger._direct(*command)
    found = [one.what for one in await verify(traded.ledger, ACCOUNT)]
    assert any(name.startswith(difference) for name in found), found


async def test_a_figure_of_the_desk_that_was_changed_is_found(traded: Books) -> None:
    assert await verify(traded.ledger, None) == []
    await add_to_figure(traded.ledger, DESK, "peak", 3)
    (difference,) = await verify(traded.ledger, None)
    assert (difference.what, difference.booked - difference.computed) == ("peak (audit replay)", 3)
    await add_to_figure(traded.ledger, DESK, "gross", 1)
    assert {one.what for one in await verify(traded.ledger, None)} == {
        "peak (audit replay)", "gross", "gross (audit replay)",
    }  # fmt: skip


# -- anchors -----------------------------------------------------------------------------------------------------------


async def test_an_anchor_is_written_when_there_is_something_new_and_holds(traded: Books, anchors: Anchors) -> None:
    first = await anchors.write(traded.ledger, ACCOUNT)
    assert first is not None
    assert await anchors.write(traded.ledger, ACCOUNT) is None
    await traded.accept("o-9")
    second = await anchors.write(traded.ledger, ACCOUNT)
    assert second is not None
    assert (second.after, second.seq) == (first.seq, first.seq + 1)
    assert await anchors.write(traded.ledger, None) is not None
    for account in (ACCOUNT, None):
        assert await anchors.check(traded.ledger, account) == []
        await anchors.require(traded.ledger, account)
    assert anchors.path(ACCOUNT).read_text().count("\n") == 2
    assert anchors.path(ACCOUNT).stat().st_mode & 0o077 == 0


async def test_without_anchors_nothing_is_said(traded: Books, anchors: Anchors) -> None:
    assert await anchors.check(traded.ledger, ACCOUNT) == []
    await anchors.require(traded.ledger, ACCOUNT)
    assert await anchors.write(traded.ledger, "nobody") is None


async def flush(books: Books) -> None:
    await books.ledger._direct("FLUSHALL")
    await books.ledger.install()


async def roll_back(books: Books) -> None:
    """The server as it was some entries ago, its counters too, as after a failover that lost writes."""
    rows = await stream(books.ledger)
    await write_stream(books.ledger, rows[:-4])
    await books.ledger._direct("HSET", f"{BASE}:book", "seq", str(rows[-5].seq), "head", rows[-5].chain)


async def begin_again(books: Books) -> None:
    """Another database, in which the same account has lived another life, and a longer one."""
    await flush(books)
    await books.open(lots={"BTC-USD": 7})
    for number in range(60):
        await books.accept(f"n-{number}")


async def rewrite(books: Books) -> None:
    """A fill made smaller, all chain values after it computed anew, the counters with them."""
    rows = await stream(books.ledger)
    index = next(i for i, row in enumerate(rows) if row.kind == "FILL")
    forged = rechained(changed(rows, index, data=rows[index].data.replace('"lots":"4"', '"lots":"3"')))
    assert forged[index].data != rows[index].data
    await write_stream(books.ledger, [msgspec.structs.replace(row, stream_id="") for row in forged])
    await books.ledger._direct("HSET", f"{BASE}:book", "head", forged[-1].chain)
    assert (await verify_chain(books.ledger, ACCOUNT, None)).whole


LOSSES = [flush, roll_back, begin_again, rewrite]


@pytest.mark.parametrize("loss", LOSSES, ids=[loss.__name__ for loss in LOSSES])
async def test_a_ledger_that_is_not_the_anchored_one_is_refused(traded: Books, anchors: Anchors, loss: Any) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    await anchors.write(traded.ledger, ACCOUNT)
    await loss(traded)
    lines = anchors.path(ACCOUNT).read_bytes()
    with pytest.raises(BooksLost, match="desk audit reset") as refused:
        await anchors.require(traded.ledger, ACCOUNT)
    assert (refused.value.account, refused.value.findings[0].rule) == (ACCOUNT, "anchor")
    assert [finding.rule for finding in await anchors.check(traded.ledger, ACCOUNT)].count("anchor") >= 1
    with pytest.raises(BooksLost):
        await anchors.write(traded.ledger, ACCOUNT)
    assert anchors.path(ACCOUNT).read_bytes() == lines


async def test_entries_that_do_not_follow_from_the_anchor_are_not_anchored(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    rows = await stream(traded.ledger)
    await write_stream(traded.ledger, changed(rows, len(rows) - 1, data="{}"))
    with pytest.raises(BooksLost, match="altered"):
        await anchors.write(traded.ledger, ACCOUNT)


async def test_only_the_full_check_finds_what_was_altered_before_the_last_anchor(
    traded: Books, anchors: Anchors
) -> None:
    """Between two anchors, with the chain values left as they are: the first look needs the newest line only."""
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    await anchors.write(traded.ledger, ACCOUNT)
    rows = await stream(traded.ledger)
    key = f"{BASE}:audit"
    await traded.ledger._direct("DEL", key)
    for row in changed(rows, 9, data="[]"):
        fields = {name: str(getattr(row, name)) for name in ("seq", "us", "kind", "id", "by", "data", "chain")}
        await traded.ledger._direct("XADD", key, row.stream_id, *(part for pair in fields.items() for part in pair))
    await anchors.require(traded.ledger, ACCOUNT)
    (finding,) = await anchors.check(traded.ledger, ACCOUNT)
    assert finding.rule == "anchor"
    assert finding.expected.startswith("entries 1 to ")


LINES: list[tuple[str, Callable[[list[bytes]], list[bytes]], str]] = [
    ("a number changed", lambda lines: [lines[0].replace(b'"seq":', b'"seq":1'), *lines[1:]], "signature"),
    ("a signature changed", lambda lines: [lines[0].replace(b'"mac":"', b'"mac":"0'), *lines[1:]], "signature"),
    ("a line deleted", lambda lines: [lines[0], *lines[2:]], "one after"),
    ("lines exchanged", lambda lines: [lines[1], lines[0], *lines[2:]], "one after"),
    ("a line doubled", lambda lines: [lines[0], lines[0], *lines[1:]], "one after"),
    ("no JSON", lambda lines: [b"{", *lines[1:]], "cannot be read"),
    ("an empty line", lambda lines: [b"", *lines], "cannot be read"),
    ("bytes that are no text", lambda lines: [b"\xff\xfe", *lines], "cannot be read"),
    ("other blanks", lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]], "another hand"),
    ("a field more", lambda lines: [lines[0].replace(b"{", b'{"a":1,', 1), *lines[1:]], "cannot be read"),
]


@pytest.mark.parametrize(("what", "change", "found"), LINES, ids=[row[0] for row in LINES])
async def test_an_anchor_file_that_was_changed_is_found_at_its_line(
    traded: Books, anchors: Anchors, what: str, change: Callable[[list[bytes]], list[bytes]], found: str
) -> None:
    for number in range(3):
        await traded.accept(f"x-{number}")
        await anchors.write(traded.ledger, ACCOUNT)
    path = anchors.path(ACCOUNT)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    findings = await anchors.check(traded.ledger, ACCOUNT)
    assert any(found in finding.found and finding.file == path.name and finding.row for finding in findings), findings
    with pytest.raises(BooksLost):
        await anchors.require(traded.ledger, ACCOUNT)
    with pytest.raises(BooksLost):
        await anchors.write(traded.ledger, ACCOUNT)


async def test_a_line_whose_writer_was_killed_in_it_is_written_over(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    whole = anchors.path(ACCOUNT).read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        anchors.path(ACCOUNT).write_bytes(whole + whole[:cut])
        assert await anchors.check(traded.ledger, ACCOUNT) == []
        await anchors.require(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    assert await anchors.write(traded.ledger, ACCOUNT) is not None
    assert await anchors.check(traded.ledger, ACCOUNT) == []
    assert anchors.path(ACCOUNT).read_bytes().startswith(whole)


async def test_another_key_is_not_believed_and_a_former_one_is(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    other = b"another key of sixteen bytes"
    with pytest.raises(BooksLost, match="another key"):
        await Anchors(anchors.folder, other).require(traded.ledger, ACCOUNT)
    turned = Anchors(anchors.folder, other, KEY)
    await turned.require(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    assert await turned.write(traded.ledger, ACCOUNT) is not None
    assert await turned.check(traded.ledger, ACCOUNT) == []


async def test_anchors_of_another_account_are_not_believed(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    anchors.path("second").write_bytes(anchors.path(ACCOUNT).read_bytes())
    (finding, *_) = await anchors.check(traded.ledger, "second")
    assert "of account main" in finding.found


async def test_a_new_beginning_is_signed_says_why_and_deletes_nothing(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    old = anchors.path(ACCOUNT).read_bytes()
    await flush(traded)
    await traded.open()
    (kept,) = await anchors.reset(traded.ledger, ACCOUNT, "the disk was lost", "somebody")
    assert kept.read_bytes() == old
    assert b"somebody: the disk was lost" in anchors.path(ACCOUNT).read_bytes().splitlines()[0]
    assert await anchors.check(traded.ledger, ACCOUNT) == []
    await traded.accept("o-8")
    assert await anchors.write(traded.ledger, ACCOUNT) is not None
    assert await anchors.check(traded.ledger, ACCOUNT) == []


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501])
async def test_a_new_beginning_without_a_reason_is_refused(traded: Books, anchors: Anchors, reason: str) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    with pytest.raises(AnchorError, match="reason"):
        await anchors.reset(traded.ledger, ACCOUNT, reason, "somebody")


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match="audit_key"):
        Anchors(tmp_path, b"short")


def test_findings_are_shown_in_one_line() -> None:
    assert "\n" not in str(Finding("altered", 3, "a", "b", "5-0"))


async def test_an_anchor_that_cannot_be_written_is_an_error_and_the_next_one_stands_for_it(
    traded: Books, anchors: Anchors, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-8")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cluster.anchor_file.os.fsync", full)
        with pytest.raises(AnchorError, match="No space left"):
            await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-9")
    last = await anchors.write(traded.ledger, ACCOUNT)
    assert first is not None
    assert last is not None
    assert last.seq == first.seq + 2
    assert await anchors.check(traded.ledger, ACCOUNT) == []


async def test_two_writers_of_anchors_leave_one_sound_file(traded: Books, anchors: Anchors) -> None:
    """As while one execution service hands over to the next."""
    other = Anchors(anchors.folder, KEY)
    for number in range(10):
        await traded.accept(f"y-{number}")
        await asyncio.gather(anchors.write(traded.ledger, ACCOUNT), other.write(traded.ledger, ACCOUNT))
    assert anchors.path(ACCOUNT).read_bytes().count(b"\n") == 10
    assert await anchors.check(traded.ledger, ACCOUNT) == []


async def test_proofs_hold_while_orders_come_in(traded: Books, anchors: Anchors) -> None:
    """Sums, book and log are read at different moments; what comes between must not look like damage."""
    stop = asyncio.Event()

    async def trade() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            await traded.accept(f"z-{number}")
            await traded.send(f"z-{number}")
            await traded.fill(f"z-{number}", 10, 10_000)

    trading = asyncio.create_task(trade())
    for _ in range(8):
        assert await verify(traded.ledger, ACCOUNT) == []
        assert (await verify_chain(traded.ledger, ACCOUNT, None)).findings == []
        await anchors.write(traded.ledger, ACCOUNT)
        assert await anchors.check(traded.ledger, ACCOUNT) == []
    stop.set()
    await trading


async def test_a_damaged_log_can_be_begun_anew_as_it_is_and_stays_named_damaged(
    traded: Books, anchors: Anchors
) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.accept("o-8")
    await traded.accept("o-9")
    entries = await traded.ledger.audit_entries(ACCOUNT, "", 1_000)
    await traded.ledger._direct("XDEL", f"{BASE}:audit", entries[-2][0])
    with pytest.raises(BooksLost):
        await anchors.require(traded.ledger, ACCOUNT)
    await anchors.reset(traded.ledger, ACCOUNT, "an entry was deleted by hand", "somebody")
    await anchors.require(traded.ledger, ACCOUNT)
    await traded.accept("o-10")
    await anchors.write(traded.ledger, ACCOUNT)
    assert await anchors.check(traded.ledger, ACCOUNT) == []
    assert [finding.rule for finding in (await verify_chain(traded.ledger, ACCOUNT, None)).findings] == ["missing"]


async def test_a_log_without_its_last_entry_can_be_begun_anew_too(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.ledger._direct("DEL", f"{BASE}:audit")
    await anchors.reset(traded.ledger, ACCOUNT, "the stream was deleted by hand", "somebody")
    await anchors.require(traded.ledger, ACCOUNT)
    await traded.accept("o-10")
    await anchors.write(traded.ledger, ACCOUNT)
    assert await anchors.check(traded.ledger, ACCOUNT) == []


async def test_a_ledger_that_has_forgotten_how_many_entries_it_has_cannot_be_begun_anew(
    traded: Books, anchors: Anchors
) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.ledger._direct("HSET", f"{BASE}:book", "seq", "many")
    with pytest.raises(AnchorError, match="seq"):
        await anchors.reset(traded.ledger, ACCOUNT, "why not", "somebody")
    assert anchors.path(ACCOUNT).exists()
