"""The exchange simulator's journal: many share one sync, a decision is whole or absent, compaction loses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster import exchange_book
from cluster.exchange_book import Exchange
from cluster.exchange_journal import Journal, JournalError
from strategies.model import Side
from tests.exchange_engine import (
    LOT,
    MID,
    NOW_NS,
    SECOND_NS,
    bracket,
    limit,
    opened,
    picture,
    place,
    stop,
)


def busy(exchange: Exchange) -> None:
    """Some of everything that is kept."""
    other = exchange.open_portfolio("other", {"USD": Decimal(100_000)})
    place(exchange, "market_market_ioc", base_size="1")
    place(exchange, "market_market_ioc", quote_size="500")
    resting = limit(exchange, "SELL", "0.5", "60000.00")
    limit(exchange, "BUY", "0.25", "60000.00", portfolio_id=other.portfolio_id)
    exchange.amend(resting.order_id, "0.4", "60000.50", NOW_NS)
    stop(exchange, "SELL", "0.1", "58000.00", "59000.00")
    bracket(exchange, "SELL", "0.5", "61000.00", "58500.00")
    place(exchange, "limit_limit_gtd", base_size="1", limit_price="50000.00", end_time="2025-03-10T13:38:00Z")
    place(exchange, "sor_limit_ioc", base_size="5", limit_price="60000.01")
    exchange.repeat_fill(exchange.order_list[0].order_id, NOW_NS)
    exchange.deposit("USD", Decimal(-7), NOW_NS)
    exchange.set_product("ETH-USD", {"limit_only": True}, NOW_NS)
    exchange.cancel([resting.order_id], NOW_NS)
    exchange.push_price("BTC-USD", 5_895_000, NOW_NS)


# --- syncing ---


def test_an_order_is_on_disk_once_synced_has_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced_length = 0
    fsync = os.fsync

    def note(file: int) -> None:
        nonlocal synced_length
        synced_length = os.fstat(file).st_size
        fsync(file)

    exchange = opened(tmp_path)
    monkeypatch.setattr("cluster.exchange_journal.os.fsync", note)
    limit(exchange, "BUY", "1", "50000.00")
    assert synced_length == 0
    asyncio.run(exchange.synced())
    assert synced_length == (tmp_path / "journal.jsonl").stat().st_size


def test_those_who_wait_meanwhile_share_one_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = opened(tmp_path)
    began, may_end, syncs = threading.Event(), threading.Event(), []

    def slow(file: int) -> None:
        syncs.append(file)
        began.set()
        assert may_end.wait(10)

    async def many() -> None:
        limit(exchange, "BUY", "0.001", "50000.00")
        first = asyncio.create_task(exchange.synced())
        while not began.is_set():
            await asyncio.sleep(0.001)
        # These come while the first sync is under way: it does not cover them, one more covers all.
        waiting = []
        for _ in range(50):
            limit(exchange, "BUY", "0.001", "50000.00")
            waiting.append(asyncio.create_task(exchange.synced()))
        await asyncio.sleep(0)
        assert not any(task.done() for task in [first, *waiting])
        may_end.set()
        await asyncio.gather(first, *waiting)

    monkeypatch.setattr("cluster.exchange_journal.os.fsync", slow)
    asyncio.run(many())
    assert len(syncs) == 2
    asyncio.run(exchange.synced())
    assert len(syncs) == 2


def test_one_who_stops_waiting_takes_the_sync_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = opened(tmp_path)

    async def cancelled() -> None:
        limit(exchange, "BUY", "0.001", "50000.00")
        first, second = asyncio.create_task(exchange.synced()), asyncio.create_task(exchange.synced())
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert first.cancelled()

    monkeypatch.setattr("cluster.exchange_journal.os.fsync", lambda file: time.sleep(0.01))
    asyncio.run(cancelled())


def test_a_disk_that_fails_at_a_sync_is_trusted_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = opened(tmp_path)

    def broken(file: int) -> None:
        raise OSError(5, "Input/output error")

    limit(exchange, "BUY", "0.001", "50000.00")
    with monkeypatch.context() as patch:
        patch.setattr("cluster.exchange_journal.os.fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            asyncio.run(exchange.synced())
    orders = len(exchange.order_list)
    with pytest.raises(OSError, match="failed before"):
        asyncio.run(exchange.synced())
    with pytest.raises(OSError, match="failed before"):
        limit(exchange, "BUY", "0.001", "50000.00")
    assert len(exchange.order_list) == orders


# --- whole decisions ---


def test_a_process_killed_at_any_byte_leaves_whole_decisions(tmp_path: Path) -> None:
    """Every beginning of the journal opens; an order that may not rest does not, both sides of an execution are there
    or neither, and what is opened again is the same."""
    (tmp_path / "whole").mkdir()
    busy(opened(tmp_path / "whole"))
    content = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    lines = [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    for length in [*range(0, len(content), 97), *lines, *(line - 1 for line in lines)]:
        folder = tmp_path / str(length)
        folder.mkdir(exist_ok=True)
        (folder / "journal.jsonl").write_bytes(content[:length])
        exchange = opened(folder, pinned=False)
        assert all(order.ticket.kind.rests for order in exchange.open_orders.values())
        trades: dict[str, int] = {}
        for fill in {fill.entry_id: fill for fill in exchange.fills}.values():
            trades[fill.trade_id] = trades.get(fill.trade_id, 0) + (fill.lots if fill.side is Side.BUY else -fill.lots)
        between = {fill.trade_id for order in exchange.order_list for fill in order.fills if fill.liquidity == "MAKER"}
        assert all(trades[trade_id] == 0 for trade_id in between)
        assert picture(opened(folder, pinned=False)) == picture(exchange)


def test_the_journal_of_an_earlier_version_still_opens(tmp_path: Path) -> None:
    """One event a line, one portfolio without a name, one fee rate an order, no triggers."""
    order = {
        "kind": "order",
        "order_id": "o1",
        "created_ns": NOW_NS,
        "hold_rate": "0.006",
        "client_order_id": "c1",
        "product_id": "BTC-USD",
        "side": "BUY",
        "configuration": {"limit_limit_gtc": {"base_size": "1", "limit_price": "59000.00"}},
        "lots": LOT,
        "quote_size": None,
        "ticks": 5_900_000,
        "post_only": False,
        "end_ns": None,
    }
    torn = order | {
        "order_id": "o2",
        "client_order_id": "c2",
        "configuration": {"market_market_ioc": {"base_size": "1"}},
        "ticks": None,
    }
    fill = {"kind": "fill", "order_id": "o1", "trade_id": "t1", "entry_id": "e1", "ticks": 5_900_000}
    events = [
        {
            "kind": "opened",
            "portfolio_id": "p1",
            "accounts": [{"uuid": c, "currency": c, "amount": a} for c, a in (("USD", "100000"), ("BTC", "1"))],
        },
        order,
        fill | {"lots": LOT // 2, "fee": "118.000", "liquidity": "MAKER", "ts_ns": NOW_NS},
        torn,
    ]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    exchange = opened(tmp_path)
    old = exchange.orders["o1"]
    assert (exchange.portfolio_id, old.portfolio_id, old.open_lots) == ("p1", "p1", LOT // 2)
    assert exchange.accounts["USD"].total == 100_000 - 29_500 - 118
    assert exchange.accounts["USD"].hold == Decimal(29_500) * Decimal("1.006")
    assert exchange.accounts["ETH"].total == 0
    assert exchange.orders["o2"].status == "CANCELLED"
    exchange.force_fill("o1", None, None, NOW_NS)
    assert old.fills[-1].fee == 29_500 * Decimal("0.004")


@pytest.mark.parametrize(
    "line",
    [
        '{"kind":"snapshot","version":1,"priority":0}',
        '{"kind":"snapshot","version":2,"priority":0}',
        '{"kind":"batch","events":[{"kind":"magic"}]}',
        '{"kind":"batch"}',
        '{"kind":"triggered","order_id":"nobody"}',
        '{"kind":"deposited","portfolio_id":"nobody","currency":"USD","amount":"1"}',
        '{"kind":"repeated","order_id":"nobody","index":0}',
        '{"kind":7}',
    ],
)
def test_a_line_that_cannot_be_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    busy(opened(tmp_path))
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    with pytest.raises(JournalError, match=r"journal\.jsonl line 4: "):
        opened(tmp_path, pinned=False)


# --- compaction ---


def test_a_compacted_journal_opens_to_the_same_books_and_goes_on(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    before = picture(exchange)
    exchange.compact()
    assert picture(exchange) == before
    assert picture(opened(tmp_path, pinned=False)) == before
    exchange.push_price("BTC-USD", MID, NOW_NS)
    busy(exchange)
    exchange.advance(NOW_NS + 60 * SECOND_NS)
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_compacting_twice_changes_nothing(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    exchange.compact()
    content = (tmp_path / "journal.jsonl").read_bytes()
    exchange.compact()
    assert (tmp_path / "journal.jsonl").read_bytes() == content


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
def test_a_compaction_that_fails_leaves_the_journal_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    asyncio.run(exchange.synced())
    content = (tmp_path / "journal.jsonl").read_bytes()

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"cluster.exchange_journal.os.{failing}", broken)
        with pytest.raises(OSError, match="No space"):
            exchange.compact()
    assert (tmp_path / "journal.jsonl").read_bytes() == content
    limit(exchange, "BUY", "0.001", "50000.00")
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    exchange.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_what_a_killed_compaction_left_beside_the_journal_does_no_harm(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    (tmp_path / ".journal.jsonl.new").write_text('{"kind":"snapshot"')
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    exchange.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_a_journal_that_has_grown_is_compacted_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    monkeypatch.setattr(exchange_book, "COMPACT_LINES_START", 5)
    again = opened(tmp_path, pinned=False)
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(b'{"kind":"snapshot"')
    assert picture(again) == picture(exchange)


def test_a_journal_that_grows_while_the_exchange_runs_is_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_book, "COMPACT_LINES", 50)
    exchange = opened(tmp_path)
    order = limit(exchange, "BUY", "0.001", "50000.00")
    for step in range(1, 200):
        exchange.amend(order.order_id, f"0.00{step % 2 + 1}", "50000.00", NOW_NS + step * SECOND_NS // 10)
    assert len((tmp_path / "journal.jsonl").read_bytes().splitlines()) < 120
    assert len(order.edits) == 199
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_a_compaction_for_which_there_is_no_room_is_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = opened(tmp_path)
    busy(exchange)
    monkeypatch.setattr(exchange_book, "COMPACT_LINES_START", 5)

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.exchange_journal.os.replace", broken)
        assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    opened(tmp_path, pinned=False)
    assert (tmp_path / "journal.jsonl").read_bytes().startswith(b'{"kind":"snapshot"')


# --- forgetting ---


def test_orders_that_ended_long_ago_are_forgotten_but_not_what_they_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange_book, "ORDERS_MAX", 20)
    monkeypatch.setattr(exchange_book, "ENDED_KEPT", 5)
    exchange = opened(tmp_path)
    old = limit(exchange, "BUY", "0.5", "50000.00")
    exchange.force_fill(old.order_id, LOT // 10, None, NOW_NS)
    for number in range(60):
        now_ns = NOW_NS + number * SECOND_NS
        place(exchange, "market_market_ioc", "BUY", now_ns, base_size="0.001", client_order_id=f"m{number}")
    assert len(exchange.orders) <= 20
    assert len(exchange.order_list) == 61
    assert exchange.order_list[0] is old
    assert exchange.order_list[-1].ticket.client_order_id == "m59"
    assert [order.sequence for order in exchange.order_list[:58]][-1] == 57
    assert exchange.order_by_client_id("m0") is None
    assert all(fill.order_id in exchange.orders for fill in exchange.fills)
    volume, fees = exchange.records.totals(exchange.portfolio_id)
    spent = exchange.records.portfolio("").accounts["USD"].total
    assert spent == 1_000_000 - volume - fees
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(exchange)
    assert again.records.totals(again.portfolio_id) == (volume, fees)
    with pytest.raises(IndexError):
        exchange.order_list[1]
    newest = place(again, "market_market_ioc", "BUY", NOW_NS + 99 * SECOND_NS, base_size="0.001", client_order_id="n")
    assert newest.sequence == 61


def test_a_sync_that_waits_while_the_journal_is_compacted_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = opened(tmp_path)
    fsync = os.fsync

    def slow(file: int) -> None:
        time.sleep(0.02)
        fsync(file)

    async def meanwhile() -> None:
        limit(exchange, "BUY", "0.001", "50000.00")
        waiting = asyncio.create_task(exchange.synced())
        await asyncio.sleep(0)
        exchange.compact()
        limit(exchange, "BUY", "0.001", "50000.00")
        await asyncio.gather(waiting, exchange.synced())

    monkeypatch.setattr("cluster.exchange_journal.os.fsync", slow)
    asyncio.run(meanwhile())
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_closing_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append([{"kind": "opened", "portfolio_id": "p", "accounts": []}])
    monkeypatch.setattr("cluster.exchange_journal.os.fsync", syncs.append)
    journal.close()
    assert len(syncs) == 1
    assert Journal(tmp_path / "journal.jsonl").past[0]["portfolio_id"] == "p"
