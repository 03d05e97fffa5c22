"""Matching, holds, fees and memory of the exchange simulator, with a clock that stands where the test puts it."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster import exchange_book, exchange_levels
from cluster.exchange_book import Exchange, Fees, SimOrder, State
from cluster.exchange_history import MARKETS, History
from cluster.exchange_journal import Journal, JournalError
from cluster.exchange_ticket import Refusal, read_ticket
from strategies.model import NS_PER_S, Side

NOW_NS = 1_741_613_841_500_000_000
MID = 6_000_000  # 60,000.00 USD
LOT = 100_000_000  # lots in one coin
DEPOSITS = {"USD": Decimal(1_000_000), "BTC": Decimal(10)}
HISTORY = History(7)
ZERO = Decimal(0)


def opened(folder: Path, pinned: bool = True, now_ns: int = NOW_NS, **deposits: Decimal) -> Exchange:
    journal = Journal(folder / "journal.jsonl")
    exchange = Exchange(HISTORY, journal, DEPOSITS | deposits, Fees(), now_ns)
    if pinned:
        exchange.push_price("BTC-USD", MID, now_ns)
    return exchange


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return opened(tmp_path)


def place(
    exchange: Exchange,
    kind: str,
    side: str = "BUY",
    now_ns: int = NOW_NS,
    client_order_id: str | None = None,
    **fields: Any,
) -> SimOrder:
    body = {
        "client_order_id": client_order_id or f"id-{len(exchange.order_list)}",
        "product_id": "BTC-USD",
        "side": side,
        "order_configuration": {kind: fields},
    }
    return exchange.place(read_ticket(body, now_ns), now_ns)


def state(order: SimOrder) -> State:
    """The order's state as it is now; a plain attribute would be taken for unchanged by the type checker."""
    return order.state


def usd(exchange: Exchange) -> tuple[Decimal, Decimal]:
    return exchange.accounts["USD"].total, exchange.accounts["USD"].hold


def shown(exchange: Exchange, side: Side, now_ns: int = NOW_NS) -> list[tuple[int, int]]:
    """Levels a taker on ``side`` meets."""
    book = exchange.book("BTC-USD", now_ns)
    return list(book.asks if side is Side.BUY else book.bids)


# --- orders that execute at once ---


@pytest.mark.parametrize(
    ("kind", "side", "fields", "state", "filled"),
    [
        ("market_market_ioc", "BUY", {"base_size": "1"}, State.FILLED, "1"),
        ("market_market_ioc", "SELL", {"base_size": "1"}, State.FILLED, "1"),
        ("limit_limit_gtc", "BUY", {"base_size": "0.01", "limit_price": "60100.00"}, State.FILLED, "0.01"),
        ("limit_limit_gtc", "BUY", {"base_size": "0.01", "limit_price": "60000.00"}, State.OPEN, "0"),
        ("limit_limit_gtc", "SELL", {"base_size": "0.01", "limit_price": "60000.00"}, State.OPEN, "0"),
        ("limit_limit_gtc", "SELL", {"base_size": "0.01", "limit_price": "59900.00"}, State.FILLED, "0.01"),
        ("sor_limit_ioc", "BUY", {"base_size": "0.01", "limit_price": "60100.00"}, State.FILLED, "0.01"),
        ("sor_limit_ioc", "BUY", {"base_size": "0.01", "limit_price": "60000.00"}, State.CANCELLED, "0"),
        ("limit_limit_fok", "BUY", {"base_size": "0.01", "limit_price": "60100.00"}, State.FILLED, "0.01"),
        ("limit_limit_fok", "BUY", {"base_size": "9", "limit_price": "60000.01"}, State.CANCELLED, "0"),
        ("limit_limit_fok", "SELL", {"base_size": "9", "limit_price": "59999.99"}, State.CANCELLED, "0"),
    ],
)
def test_what_an_arriving_order_becomes(
    exchange: Exchange, kind: str, side: str, fields: dict[str, str], state: State, filled: str
) -> None:
    order = place(exchange, kind, side, NOW_NS, **fields)
    assert order.state is state
    assert order.filled_lots == Decimal(filled) * LOT
    assert (order.order_id in exchange.open_orders) is (state is State.OPEN)


def test_a_market_order_takes_level_after_level_at_the_books_prices(exchange: Exchange) -> None:
    levels = shown(exchange, Side.BUY)
    wanted = levels[0][1] + levels[1][1] + 1
    order = place(exchange, "market_market_ioc", base_size=f"{Decimal(wanted) / LOT:f}")
    assert [(fill.ticks, fill.lots) for fill in order.fills] == [*levels[:2], (levels[2][0], 1)]
    value = sum(Decimal(fill.ticks * fill.lots) / 100 / LOT for fill in order.fills)
    assert order.filled_value == value
    assert order.fees == value * Decimal("0.006")
    assert {fill.liquidity for fill in order.fills} == {"TAKER"}
    assert usd(exchange) == (DEPOSITS["USD"] - value - order.fees, ZERO)
    assert exchange.accounts["BTC"].total == DEPOSITS["BTC"] + Decimal(wanted) / LOT


def test_what_was_taken_is_gone_until_the_next_second(exchange: Exchange) -> None:
    before = shown(exchange, Side.BUY)
    place(exchange, "market_market_ioc", base_size=f"{Decimal(before[0][1] + 5) / LOT:f}")
    after = shown(exchange, Side.BUY)
    assert after[0] == (before[1][0], before[1][1] - 5)
    assert after[1:] == before[2:]
    renewed = shown(exchange, Side.BUY, NOW_NS + NS_PER_S)
    assert renewed[0][0] == MID + 1
    assert len(renewed) == len(before)


def test_an_ioc_order_keeps_what_it_got_and_ends(exchange: Exchange) -> None:
    first = shown(exchange, Side.BUY)[0]
    order = place(exchange, "sor_limit_ioc", base_size="5", limit_price="60000.01")
    assert (order.state, order.filled_lots) == (State.CANCELLED, first[1])
    assert usd(exchange)[1] == 0


def test_a_market_order_larger_than_the_book_ends_cancelled_with_what_there_was(tmp_path: Path) -> None:
    exchange = opened(tmp_path, BTC=Decimal(3000))
    there = sum(lots for _, lots in shown(exchange, Side.SELL))
    order = place(exchange, "market_market_ioc", "SELL", base_size="3000")
    assert (order.state, order.filled_lots) == (State.CANCELLED, there)
    assert exchange.accounts["BTC"].hold == 0


@pytest.mark.parametrize("quote_size", ["1", "1000", "100000.01"])
def test_an_order_by_quote_size_spends_at_most_that_with_fees(exchange: Exchange, quote_size: str) -> None:
    order = place(exchange, "market_market_ioc", quote_size=quote_size)
    spent = order.filled_value + order.fees
    assert order.state is State.FILLED
    assert Decimal(quote_size) - Decimal("0.002") < spent <= Decimal(quote_size)
    assert usd(exchange) == (DEPOSITS["USD"] - spent, ZERO)


def test_an_order_by_quote_size_that_empties_the_book_is_cancelled(tmp_path: Path) -> None:
    exchange = opened(tmp_path, USD=Decimal(200_000_000))
    order = place(exchange, "market_market_ioc", quote_size="150000000")
    assert order.state is State.CANCELLED
    assert shown(exchange, Side.BUY) == []
    after = place(exchange, "market_market_ioc", quote_size="10")
    assert (after.state, after.filled_lots) == (State.CANCELLED, 0)


# --- orders that rest ---


def test_a_resting_order_is_filled_at_its_own_limit_as_maker_when_the_price_crosses(exchange: Exchange) -> None:
    order = place(exchange, "limit_limit_gtc", base_size="0.01", limit_price="59000.00", post_only=True)
    assert usd(exchange) == (DEPOSITS["USD"], Decimal("0.01") * 59_000 * Decimal("1.006"))
    assert exchange.push_price("BTC-USD", 5_900_000, NOW_NS) == 0  # the ask is one tick above
    assert exchange.push_price("BTC-USD", 5_890_000, NOW_NS) == 1
    fill = order.fills[0]
    assert (fill.ticks, fill.lots, fill.liquidity) == (5_900_000, LOT // 100, "MAKER")
    assert fill.fee == Decimal("0.01") * 59_000 * Decimal("0.004")
    assert order.state is State.FILLED
    assert usd(exchange) == (DEPOSITS["USD"] - 590 - fill.fee, ZERO)


def test_a_large_resting_order_is_filled_in_parts_second_by_second(exchange: Exchange) -> None:
    order = place(exchange, "limit_limit_gtc", "SELL", base_size="9.5", limit_price="60000.10", post_only=True)
    exchange.push_price("BTC-USD", 6_000_020, NOW_NS)
    first = order.filled_lots
    assert 0 < first < order.open_lots
    assert exchange.accounts["BTC"].hold == Decimal(order.open_lots) / LOT
    exchange.advance(NOW_NS)
    assert order.filled_lots == first
    exchange.advance(NOW_NS + NS_PER_S)
    assert first < order.filled_lots
    for second in range(2, 400):
        exchange.advance(NOW_NS + second * NS_PER_S)
    assert order.state is State.FILLED
    assert (exchange.accounts["BTC"].total, exchange.accounts["BTC"].hold) == (Decimal("0.5"), ZERO)
    assert {fill.ticks for fill in order.fills} == {6_000_010}


def test_better_price_first_then_earlier_order(exchange: Exchange) -> None:
    late_better = [
        place(exchange, "limit_limit_gtc", base_size="3", limit_price=price, post_only=True)
        for price in ("59990.00", "59995.00", "59995.00")
    ]
    exchange.push_price("BTC-USD", 5_998_990, NOW_NS)
    worst, first, second = late_better
    assert first.filled_lots > 0
    assert second.filled_lots == 0 or first.state is State.FILLED
    assert worst.filled_lots == 0 or second.state is State.FILLED
    for step in range(1, 200):
        exchange.advance(NOW_NS + step * NS_PER_S)
    assert [order.state for order in late_better] == [State.FILLED] * 3
    assert first.closed_ns <= second.closed_ns <= worst.closed_ns


def test_an_order_rests_until_the_path_itself_crosses_it(tmp_path: Path) -> None:
    exchange = opened(tmp_path, pinned=False)
    mid = exchange.mid_ticks("BTC-USD", NOW_NS)
    order = place(exchange, "limit_limit_gtc", base_size="0.001", limit_price=f"{Decimal(mid - 200) / 100:f}")
    assert state(order) is State.OPEN
    step, lowest = 0, mid
    while state(order) is State.OPEN and step < 36_000:
        step += 1
        exchange.advance(NOW_NS + step * NS_PER_S)
        lowest = min(lowest, exchange.mid_ticks("BTC-USD", NOW_NS + step * NS_PER_S))
        assert (lowest < mid - 200) is (state(order) is State.FILLED)
    assert state(order) is State.FILLED


def test_a_good_till_date_order_expires_and_frees_its_hold(exchange: Exchange) -> None:
    order = place(exchange, "limit_limit_gtd", base_size="1", limit_price="50000.00", end_time="2025-03-10T13:37:25Z")
    exchange.advance(1_741_613_844_000_000_000)
    assert state(order) is State.OPEN
    exchange.advance(1_741_613_845_000_000_000)
    assert state(order) is State.EXPIRED
    assert usd(exchange) == (DEPOSITS["USD"], ZERO)


def test_cancelling_frees_the_hold_once(exchange: Exchange) -> None:
    order = place(exchange, "limit_limit_gtc", base_size="1", limit_price="50000.00")
    done = place(exchange, "market_market_ioc", base_size="0.01")
    total = usd(exchange)[0]
    ids = [order.order_id, done.order_id, "nobody"]
    assert exchange.cancel(ids, NOW_NS) == {
        order.order_id: "",
        done.order_id: "ORDER_IS_FULLY_FILLED",
        "nobody": "UNKNOWN_CANCEL_ORDER",
    }
    assert usd(exchange) == (total, ZERO)
    assert exchange.cancel([order.order_id], NOW_NS) == {order.order_id: "DUPLICATE_CANCEL_REQUEST"}
    assert exchange.cancel([order.order_id, order.order_id], NOW_NS) == {order.order_id: "DUPLICATE_CANCEL_REQUEST"}
    assert usd(exchange) == (total, ZERO)


def test_an_order_named_twice_in_one_cancel_is_cancelled_once(exchange: Exchange) -> None:
    order = place(exchange, "limit_limit_gtc", base_size="1", limit_price="50000.00")
    assert exchange.cancel([order.order_id, order.order_id], NOW_NS) == {order.order_id: ""}
    assert usd(exchange) == (DEPOSITS["USD"], ZERO)


# --- refusals ---


@pytest.mark.parametrize(
    ("kind", "side", "fields", "code"),
    [
        ("limit_limit_gtc", "BUY", {"base_size": "1", "limit_price": "60000.01", "post_only": True}, "POST_ONLY"),
        ("limit_limit_gtc", "SELL", {"base_size": "1", "limit_price": "59999.99", "post_only": True}, "POST_ONLY"),
        ("limit_limit_gtc", "BUY", {"base_size": "17", "limit_price": "59000.00"}, "INSUFFICIENT_FUND"),
        ("limit_limit_gtc", "SELL", {"base_size": "10.00000001", "limit_price": "70000.00"}, "INSUFFICIENT_FUND"),
        ("market_market_ioc", "SELL", {"base_size": "10.00000001"}, "INSUFFICIENT_FUND"),
        ("market_market_ioc", "BUY", {"base_size": "17"}, "INSUFFICIENT_FUND"),
        ("market_market_ioc", "BUY", {"quote_size": "1000000.01"}, "INSUFFICIENT_FUND"),
    ],
)
def test_a_refused_order_changes_nothing(
    exchange: Exchange, kind: str, side: str, fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        place(exchange, kind, side, **fields)
    assert code in refusal.value.code
    assert exchange.orders == {}
    assert usd(exchange) == (DEPOSITS["USD"], ZERO)


def test_the_last_cent_can_be_spent_but_not_more(tmp_path: Path) -> None:
    exchange = opened(tmp_path, USD=Decimal("503.00"))
    place(exchange, "limit_limit_gtc", base_size="0.01", limit_price="50000.00")
    assert exchange.accounts["USD"].available == 0
    with pytest.raises(Refusal, match="Insufficient"):
        place(exchange, "limit_limit_gtc", base_size="0.00000001", limit_price="1.00")


def test_holds_of_open_orders_are_not_available_to_the_next(exchange: Exchange) -> None:
    for _ in range(3):
        place(exchange, "limit_limit_gtc", "SELL", base_size="3", limit_price="70000.00")
    with pytest.raises(Refusal, match="Insufficient"):
        place(exchange, "market_market_ioc", "SELL", base_size="1.00000001")
    assert place(exchange, "market_market_ioc", "SELL", base_size="1").state is State.FILLED


def test_a_currency_without_deposit_has_an_account_with_nothing(exchange: Exchange) -> None:
    body = {
        "client_order_id": "x",
        "product_id": "SOL-USD",
        "side": "SELL",
        "order_configuration": {"market_market_ioc": {"base_size": "1"}},
    }
    assert exchange.accounts["SOL"].total == 0
    with pytest.raises(Refusal, match="Insufficient"):
        exchange.place(read_ticket(body, NOW_NS), NOW_NS)
    exchange.place(read_ticket(body | {"side": "BUY"}, NOW_NS), NOW_NS)
    assert exchange.accounts["SOL"].total == 1


def test_open_orders_are_bounded(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_book, "OPEN_ORDERS_MAX", 2)
    for _ in range(2):
        place(exchange, "limit_limit_gtc", base_size="0.01", limit_price="50000.00")
    with pytest.raises(Refusal, match="at most 2 open orders"):
        place(exchange, "limit_limit_gtc", base_size="0.01", limit_price="50000.00")


# --- one id, one order ---


def test_a_client_order_id_seen_before_gets_the_first_order(exchange: Exchange) -> None:
    first = place(exchange, "limit_limit_gtc", client_order_id="same", base_size="0.01", limit_price="50000.00")
    again = place(exchange, "market_market_ioc", client_order_id="same", base_size="1")
    assert again is first
    assert len(exchange.orders) == 1
    exchange.cancel([first.order_id], NOW_NS)
    assert place(exchange, "market_market_ioc", client_order_id="same", base_size="1") is first


# --- memory ---


def picture(exchange: Exchange) -> tuple[Any, ...]:
    orders = [
        (o.order_id, o.ticket, o.state, o.filled_lots, o.filled_value, o.fees, o.created_ns, o.closed_ns, o.fills)
        for o in exchange.order_list
    ]
    return exchange.portfolio_id, exchange.accounts, orders, exchange.fills, list(exchange.open_orders)


def busy(exchange: Exchange) -> None:
    place(exchange, "market_market_ioc", base_size="1")
    place(exchange, "market_market_ioc", quote_size="500")
    resting = place(exchange, "limit_limit_gtc", base_size="0.5", limit_price="59000.00", post_only=True)
    place(exchange, "limit_limit_gtd", "SELL", base_size="1", limit_price="61000.00", end_time="2030-01-01T00:00:00Z")
    place(exchange, "sor_limit_ioc", base_size="5", limit_price="60000.01")
    exchange.cancel([resting.order_id], NOW_NS)


def test_a_restarted_exchange_has_the_same_books(tmp_path: Path) -> None:
    first = opened(tmp_path)
    busy(first)
    again = opened(tmp_path, now_ns=NOW_NS + 10**12, USD=Decimal(5))
    assert picture(again) == picture(first)
    assert (
        place(again, "market_market_ioc", client_order_id="id-0", base_size="1").order_id
        == first.order_list[0].order_id
    )


def test_every_beginning_of_a_journal_gives_consistent_books(tmp_path: Path) -> None:
    """A process can be killed after any byte; whatever is left must open, and no order may rest that must not."""
    (tmp_path / "whole").mkdir()
    busy(opened(tmp_path / "whole"))
    content = (tmp_path / "whole" / "journal.jsonl").read_bytes()
    for length in range(0, len(content) + 1, 37):
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / "journal.jsonl").write_bytes(content[:length])
        exchange = opened(folder)
        assert all(order.ticket.kind.rests for order in exchange.open_orders.values())
        for currency in ("USD", "BTC"):
            side = Side.BUY if currency == "USD" else Side.SELL
            held = sum(o.hold() for o in exchange.open_orders.values() if o.ticket.side is side)
            assert exchange.accounts[currency].hold == held
        assert opened(folder).accounts == exchange.accounts


@pytest.mark.parametrize(
    "line", ["not json", "[]", "{}", '{"kind":"magic"}', '{"kind":"fill","order_id":"nobody"}', '{"kind":"order"}']
)
def test_a_damaged_journal_is_refused_by_file_and_line(tmp_path: Path, line: str) -> None:
    busy(opened(tmp_path))
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(JournalError, match=r"journal\.jsonl line 3: "):
        opened(tmp_path)


def test_an_event_that_cannot_be_written_did_not_happen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = opened(tmp_path)
    before, size = picture(exchange), (tmp_path / "journal.jsonl").stat().st_size
    write = os.write
    beginnings = iter([10])

    def full_disk(file: int, content: bytes) -> int:
        """Takes a beginning, then nothing more, as a full disk does."""
        for length in beginnings:
            return write(file, content[:length])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.exchange_journal.os.write", full_disk)
        with pytest.raises(OSError, match="No space"):
            place(exchange, "market_market_ioc", base_size="1")
    assert (tmp_path / "journal.jsonl").stat().st_size == size
    assert picture(exchange) == before
    place(exchange, "market_market_ioc", base_size="1")
    assert picture(opened(tmp_path)) == picture(exchange)


def test_the_book_is_the_seeds_and_the_seconds(tmp_path: Path) -> None:
    first = exchange_levels.make_book(7, "BTC-USD", 1_000, MID)
    assert first == exchange_levels.make_book(7, "BTC-USD", 1_000, MID)
    assert first.bids != exchange_levels.make_book(7, "BTC-USD", 1_001, MID).bids
    assert first.bids != exchange_levels.make_book(8, "BTC-USD", 1_000, MID).bids
    assert (first.bids[0][0], first.asks[0][0]) == (MID - 1, MID + 1)
    assert [ticks for ticks, _ in first.asks] == sorted({ticks for ticks, _ in first.asks})
    assert [ticks for ticks, _ in first.bids] == sorted({ticks for ticks, _ in first.bids}, reverse=True)
    assert all(lots > 0 for _, lots in (*first.bids, *first.asks))
    assert all(exchange_levels.make_book(7, name, 1_000, 2).bids[0] for name in MARKETS)
