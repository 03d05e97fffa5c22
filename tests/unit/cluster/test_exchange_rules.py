"""The exchange simulator's own book, self-trade prevention, product flags, previews, and what tests may force on it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.exchange_book import Exchange, Rules, SelfTrade, State
from cluster.exchange_records import FLAGS
from cluster.exchange_ticket import EditRefusal, Refusal
from strategies.model import Side
from tests.exchange_engine import (
    DEPOSITS,
    LOT,
    MAKER,
    MID,
    NOW_NS,
    SECOND_NS,
    TAKER,
    bracket,
    hold,
    limit,
    nothing_held,
    opened,
    picture,
    place,
    shown,
    state,
    stop,
    ticket,
)

IDLE = FLAGS[:3] + FLAGS[4:]  # all but limit_only: while one is set nothing executes


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return opened(tmp_path)


def ruled(folder: Path, **rules: Any) -> Exchange:
    return opened(folder, rules=Rules(**rules))


def empty_bids(exchange: Exchange, portfolio_id: str = "") -> int:
    """Take all seeded bids of this second; returns how much that was."""
    there = sum(lots for _, lots in shown(exchange, Side.SELL))
    exchange.deposit("BTC", Decimal(there) / LOT, NOW_NS, portfolio_id)
    order = place(exchange, "market_market_ioc", "SELL", NOW_NS, portfolio_id, base_size=f"{Decimal(there) / LOT:f}")
    assert state(order) is State.FILLED
    return there


# --- the book that is shown ---


def test_resting_orders_stand_in_the_book_that_is_shown(exchange: Exchange) -> None:
    seeded = shown(exchange, Side.SELL)
    beside = (seeded[0][0], seeded[0][1] + LOT)
    limit(exchange, "BUY", "1", f"{Decimal(seeded[0][0]) / 100:.2f}", post_only=True)
    order = limit(exchange, "BUY", "0.5", "60000.00", post_only=True)
    assert shown(exchange, Side.SELL) == [(MID, LOT // 2), beside, *seeded[1:]]
    exchange.cancel([order.order_id], NOW_NS)
    assert shown(exchange, Side.SELL) == [beside, *seeded[1:]]


# --- self-trade prevention ---


@pytest.mark.parametrize(
    ("rule", "resting", "arriving", "rests", "arrives", "left"),
    [
        (SelfTrade.CANCEL_NEWEST, "2", "3", State.OPEN, State.CANCELLED, 2),
        (SelfTrade.CANCEL_OLDEST, "2", "3", State.CANCELLED, State.OPEN, 3),
        (SelfTrade.CANCEL_BOTH, "2", "3", State.CANCELLED, State.CANCELLED, 0),
        (SelfTrade.DECREMENT, "2", "3", State.CANCELLED, State.OPEN, 1),
        (SelfTrade.DECREMENT, "3", "2", State.OPEN, State.CANCELLED, 1),
        (SelfTrade.DECREMENT, "2", "2", State.CANCELLED, State.CANCELLED, 0),
    ],
)
def test_an_order_never_executes_against_one_of_its_own_portfolio(
    tmp_path: Path, rule: SelfTrade, resting: str, arriving: str, rests: State, arrives: State, left: int
) -> None:
    exchange = ruled(tmp_path, self_trade=rule)
    first = limit(exchange, "SELL", resting, "60000.00")
    second = limit(exchange, "BUY", arriving, "60000.00")
    assert (state(first), state(second)) == (rests, arrives)
    assert exchange.fills == []
    live = [order for order in (first, second) if order.state.live]
    assert sum(order.open_lots for order in live) == left * LOT
    assert hold(exchange, "USD") == sum(o.hold() for o in live if o.ticket.side is Side.BUY)
    assert hold(exchange, "BTC") == sum(o.hold() for o in live if o.ticket.side is Side.SELL)
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(exchange)
    again.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_what_an_arriving_order_got_before_it_met_itself_stays(exchange: Exchange) -> None:
    best = shown(exchange, Side.BUY)[0]
    limit(exchange, "SELL", "5", f"{Decimal(best[0] + 1) / 100:.2f}")
    order = limit(exchange, "BUY", "9", "61000.00")
    assert (state(order), order.filled_lots, order.message) == (State.CANCELLED, best[1], "Self trade prevention")


@pytest.mark.parametrize("rule", list(SelfTrade))
def test_an_order_by_quote_size_that_meets_itself_ends_in_order(tmp_path: Path, rule: SelfTrade) -> None:
    exchange = ruled(tmp_path, self_trade=rule)
    mine = limit(exchange, "SELL", "5", "60000.00")
    order = place(exchange, "market_market_ioc", quote_size="1000")
    assert order.filled_value + order.fees <= 1000
    assert all(fill.ticks != MID for fill in order.fills)
    assert not order.state.live
    assert hold(exchange, "BTC") == mine.hold()


@pytest.mark.parametrize("rule", list(SelfTrade))
def test_an_order_all_or_nothing_that_would_meet_itself_does_nothing(tmp_path: Path, rule: SelfTrade) -> None:
    exchange = ruled(tmp_path, self_trade=rule)
    mine = limit(exchange, "SELL", "5", "60000.00")
    fields: dict[str, Any] = {"base_size": "5", "limit_price": "60000.00"}
    order = place(exchange, "limit_limit_fok", **fields)
    assert (state(order), state(mine), list(exchange.fills)) == (State.CANCELLED, State.OPEN, [])


def test_a_post_only_order_that_would_meet_itself_is_refused(exchange: Exchange) -> None:
    limit(exchange, "SELL", "5", "60000.00")
    with pytest.raises(Refusal, match="at once"):
        limit(exchange, "BUY", "1", "60000.00", post_only=True)


# --- several portfolios ---


def test_orders_of_two_portfolios_execute_against_each_other_at_the_resting_price(exchange: Exchange) -> None:
    other = exchange.open_portfolio("other", {"USD": Decimal(100_000)})
    resting = limit(exchange, "SELL", "1", "60000.00")
    order = limit(exchange, "BUY", "0.4", "60001.00", portfolio_id=other.portfolio_id)
    mine, theirs = resting.fills[0], order.fills[0]
    assert (mine.ticks, mine.lots, mine.liquidity) == (MID, LOT * 4 // 10, "MAKER")
    assert (theirs.ticks, theirs.lots, theirs.liquidity) == (MID, LOT * 4 // 10, "TAKER")
    assert mine.trade_id == theirs.trade_id
    assert mine.entry_id != theirs.entry_id
    assert (mine.fee, theirs.fee) == (24_000 * MAKER, 24_000 * TAKER)
    assert other.accounts["BTC"].total == Decimal("0.4")
    assert other.accounts["USD"].total == 100_000 - 24_000 * (1 + TAKER)
    assert exchange.accounts["USD"].total == DEPOSITS["USD"] + 24_000 * (1 - MAKER)
    assert (resting.open_lots, hold(exchange, "BTC")) == (LOT * 6 // 10, Decimal("0.6"))


def test_each_portfolio_has_its_own_ids_orders_and_money(exchange: Exchange) -> None:
    other = exchange.open_portfolio("other", {"USD": Decimal(100_000)})
    mine = limit(exchange, "BUY", "1", "50000.00", client_order_id="same")
    theirs = limit(exchange, "BUY", "1", "50000.00", client_order_id="same", portfolio_id=other.portfolio_id)
    assert mine is not theirs
    assert exchange.order_by_client_id("same") is mine
    assert exchange.order_by_client_id("same", other.portfolio_id) is theirs
    assert exchange.cancel([theirs.order_id], NOW_NS) == {theirs.order_id: "UNKNOWN_CANCEL_ORDER"}
    with pytest.raises(Refusal, match="Insufficient"):
        limit(exchange, "BUY", "1", "50000.00", portfolio_id=other.portfolio_id)
    assert hold(exchange, "USD", other.portfolio_id) == theirs.hold()


def test_at_one_price_the_earlier_portfolio_is_first(exchange: Exchange) -> None:
    other = exchange.open_portfolio("other", {"BTC": Decimal(5)})
    third = exchange.open_portfolio("third", {"USD": Decimal(1_000_000)})
    first = limit(exchange, "SELL", "1", "60000.00", portfolio_id=other.portfolio_id)
    second = limit(exchange, "SELL", "1", "60000.00")
    limit(exchange, "BUY", "1.5", "60000.00", portfolio_id=third.portfolio_id)
    assert (first.filled_lots, second.filled_lots) == (LOT, LOT // 2)


def test_portfolios_survive_a_restart_and_a_snapshot(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    other = exchange.open_portfolio("other", {"USD": Decimal(100_000)})
    limit(exchange, "SELL", "1", "60000.00")
    limit(exchange, "BUY", "0.4", "60001.00", portfolio_id=other.portfolio_id)
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(exchange)
    again.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    assert again.portfolios[other.portfolio_id].name == "other"


# --- product flags ---


@pytest.mark.parametrize("flag", IDLE)
def test_nothing_executes_while_a_product_is_not_open_and_what_crosses_does_afterwards(
    exchange: Exchange, flag: str
) -> None:
    order = limit(exchange, "BUY", "0.001", "59990.00")
    waiting = stop(exchange, "SELL", "0.001", "59000.00", "59900.00")
    exchange.set_product("BTC-USD", {flag: True}, NOW_NS)
    assert exchange.push_price("BTC-USD", 5_980_000, NOW_NS) == 0
    exchange.advance(NOW_NS + SECOND_NS)
    assert (order.filled_lots, waiting.trigger_status) == (0, "STOP_PENDING")
    exchange.set_product("BTC-USD", {flag: False}, NOW_NS + SECOND_NS)
    assert (state(order), state(waiting)) == (State.FILLED, State.FILLED)


@pytest.mark.parametrize("flag", FLAGS)
def test_cancelling_always_works(exchange: Exchange, flag: str) -> None:
    order = limit(exchange, "BUY", "0.001", "59990.00")
    exchange.set_product("BTC-USD", {flag: True}, NOW_NS)
    assert exchange.cancel([order.order_id], NOW_NS) == {order.order_id: ""}


@pytest.mark.parametrize(
    ("flag", "market", "at_once", "plain", "post_only"),
    [
        ("limit_only", False, True, True, True),
        ("auction_mode", False, False, True, True),
        ("post_only", False, False, False, True),
        *((flag, False, False, False, False) for flag in ("cancel_only", "trading_disabled", "is_disabled")),
        *((flag, False, False, False, False) for flag in ("view_only", "offline")),
    ],
)
def test_a_products_state_says_which_orders_it_takes(
    exchange: Exchange, flag: str, market: bool, at_once: bool, plain: bool, post_only: bool
) -> None:
    exchange.set_product("BTC-USD", {flag: True}, NOW_NS)
    fields: dict[str, Any] = {"base_size": "0.001", "limit_price": "59000.00"}
    orders: list[tuple[bool, str, dict[str, Any]]] = [
        (market, "market_market_ioc", {"base_size": "0.001"}),
        (at_once, "sor_limit_ioc", fields),
        (at_once, "limit_limit_fok", fields),
        (plain, "limit_limit_gtc", fields),
        (post_only, "limit_limit_gtc", fields | {"post_only": True}),
    ]
    for taken, kind, given in orders:
        if taken:
            place(exchange, kind, **given)
        else:
            with pytest.raises(Refusal) as refusal:
                place(exchange, kind, **given)
            assert refusal.value.code in {"ORDER_ENTRY_DISABLED", "UNTRADABLE_PRODUCT"}


def test_flags_are_seen_on_the_product_and_survive_a_restart(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    exchange.set_product("BTC-USD", {"limit_only": True, "offline": True}, NOW_NS)
    product = exchange.set_product("BTC-USD", {"auction_mode": True}, NOW_NS)
    assert (product.limit_only, product.auction_mode, product.status, product.cancel_only) == (
        True,
        True,
        "offline",
        False,
    )
    assert exchange.product("ETH-USD").tradable
    again = opened(tmp_path, pinned=False)
    assert again.product("BTC-USD") == product
    again.compact()
    assert opened(tmp_path, pinned=False).product("BTC-USD") == product
    assert again.set_product("BTC-USD", dict.fromkeys(FLAGS, False), NOW_NS).tradable


@pytest.mark.parametrize("flags", [{"magic": True}, {"post_only": "yes"}, {"post_only": 1}, {"post_only": None}])
def test_a_flag_nobody_knows_is_refused(exchange: Exchange, flags: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match="expected true or false"):
        exchange.set_product("BTC-USD", flags, NOW_NS)


def test_orders_that_cross_in_an_auction_execute_when_it_ends(exchange: Exchange) -> None:
    other = exchange.open_portfolio("other", {"USD": Decimal(1_000_000)})
    exchange.set_product("BTC-USD", {"auction_mode": True}, NOW_NS)
    first = limit(exchange, "SELL", "1", "59999.99")
    second = limit(exchange, "BUY", "1", "60000.00", portfolio_id=other.portfolio_id)
    mine = limit(exchange, "BUY", "1", "60000.01")  # crosses an order of its own portfolio
    assert (first.filled_lots, second.filled_lots) == (0, 0)
    exchange.set_product("BTC-USD", {"auction_mode": False}, NOW_NS)
    assert second.filled_lots == LOT
    assert second.fills[0].ticks == 5_999_999
    assert state(mine) is State.CANCELLED or mine.filled_lots > 0
    lines = exchange.records.lines
    bid, ask = lines["BTC-USD", Side.BUY].first(), lines["BTC-USD", Side.SELL].first()
    assert bid is None or ask is None or (bid.limit_ticks or 0) < (ask.limit_ticks or 0)


# --- previews ---


@pytest.mark.parametrize(
    ("kind", "side", "fields"),
    [
        ("market_market_ioc", "BUY", {"base_size": "1"}),
        ("market_market_ioc", "BUY", {"quote_size": "5000"}),
        ("market_market_ioc", "SELL", {"base_size": "1"}),
        ("sor_limit_ioc", "BUY", {"base_size": "1", "limit_price": "61000.00"}),
    ],
)
def test_a_preview_says_what_then_happens_and_does_nothing(
    tmp_path: Path, kind: str, side: str, fields: dict[str, Any]
) -> None:
    exchange = opened(tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    seen = exchange.preview(ticket(exchange, kind, side, **fields), NOW_NS)
    assert (len(exchange.orders), len(exchange.fills)) == (0, 0)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    assert shown(exchange, Side.BUY)[0][0] == MID + 1
    order = place(exchange, kind, side, **fields)
    assert seen.errors == ()
    assert seen.commission_total == order.fees
    signed = order.fees if side == "BUY" else -order.fees
    assert seen.order_total == order.filled_value + signed
    assert seen.base_size == Decimal(order.filled_lots) / LOT
    assert (seen.best_bid, seen.best_ask) == (Decimal("59999.99"), Decimal("60000.01"))
    assert seen.average_price == order.filled_value / (Decimal(order.filled_lots) / LOT)


def test_a_preview_of_an_order_that_rests_names_its_own_price(exchange: Exchange) -> None:
    fields: dict[str, Any] = {"base_size": "2", "limit_price": "50000.00", "post_only": True}
    seen = exchange.preview(ticket(exchange, "limit_limit_gtc", "BUY", **fields), NOW_NS)
    assert (seen.base_size, seen.average_price) == (Decimal(2), Decimal(50_000))
    assert seen.commission_total == 100_000 * MAKER
    assert seen.order_total == 100_000 * (1 + MAKER)
    assert seen.slippage == 0
    assert not seen.errors


@pytest.mark.parametrize(
    ("kind", "side", "fields", "error"),
    [
        ("market_market_ioc", "BUY", {"base_size": "17"}, "PREVIEW_INSUFFICIENT_FUND"),
        ("limit_limit_gtc", "SELL", {"base_size": "11", "limit_price": "70000.00"}, "PREVIEW_INSUFFICIENT_FUND"),
        (
            "limit_limit_gtc",
            "BUY",
            {"base_size": "1", "limit_price": "60000.01", "post_only": True},
            "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY",
        ),
    ],
)
def test_a_preview_of_an_order_that_would_be_refused_says_why(
    exchange: Exchange, kind: str, side: str, fields: dict[str, Any], error: str
) -> None:
    seen = exchange.preview(ticket(exchange, kind, side, **fields), NOW_NS)
    assert seen.errors == (error,)
    assert seen.order_total > 0


# --- what tests force ---


def test_a_resting_order_can_be_filled_by_force_at_any_price_and_in_parts(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "50000.00")
    fill = exchange.force_fill(order.order_id, LOT // 4, None, NOW_NS)
    assert (fill.ticks, fill.lots, fill.liquidity, state(order)) == (5_000_000, LOT // 4, "MAKER", State.OPEN)
    assert hold(exchange, "USD") == Decimal("0.75") * 50_000 * (1 + TAKER)
    exchange.force_fill(order.order_id, None, 4_900_000, NOW_NS)
    assert (state(order), order.filled_value) == (State.FILLED, 12_500 + Decimal("0.75") * 49_000)
    assert nothing_held(exchange)


def test_an_order_can_be_executed_beyond_its_size_and_after_its_end(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "50000.00")
    exchange.force_fill(order.order_id, LOT * 3 // 2, None, NOW_NS)
    assert (state(order), order.filled_lots) == (State.FILLED, LOT * 3 // 2)
    late = limit(exchange, "SELL", "1", "70000.00")
    exchange.cancel([late.order_id], NOW_NS)
    exchange.force_fill(late.order_id, LOT, None, NOW_NS)
    assert (state(late), late.filled_lots) == (State.CANCELLED, LOT)
    assert exchange.accounts["BTC"].total == DEPOSITS["BTC"] + Decimal("1.5") - 1
    assert nothing_held(exchange)


def test_a_forced_fill_nobody_can_pay_is_refused(exchange: Exchange) -> None:
    order = limit(exchange, "SELL", "10", "70000.00")
    with pytest.raises(Refusal, match="Insufficient"):
        exchange.force_fill(order.order_id, 10 * LOT + 1, None, NOW_NS)
    exchange.force_fill(order.order_id, None, None, NOW_NS)
    with pytest.raises(Refusal, match="nothing is open"):
        exchange.force_fill(order.order_id, None, None, NOW_NS)
    with pytest.raises(Refusal, match="not found"):
        exchange.force_fill("nobody", None, None, NOW_NS)


def test_a_fill_can_be_listed_again_with_the_ids_it_had(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    order = place(exchange, "market_market_ioc", base_size="0.001")
    heard: list[str] = []
    exchange.listen(lambda event: heard.append(event["kind"]))
    before = exchange.accounts["USD"].total
    again = exchange.repeat_fill(order.order_id, NOW_NS)
    assert (again.trade_id, again.sequence) == (order.fills[-1].trade_id, 1)
    assert (len(exchange.fills), len(order.fills), order.filled_lots) == (2, 1, LOT // 1000)
    assert (exchange.accounts["USD"].total, heard) == (before, ["repeated"])
    reopened = opened(tmp_path, pinned=False)
    reopened.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    with pytest.raises(Refusal, match="no fill"):
        exchange.repeat_fill(limit(exchange, "BUY", "1", "50000.00").order_id, NOW_NS)


def test_another_status_can_be_shown_without_being_true(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "59000.00")
    for status in ("PENDING", "QUEUED", "UNKNOWN_ORDER_STATUS", "EDIT_QUEUED"):
        assert exchange.show(order.order_id, status).status == status
        assert state(order) is State.OPEN
    assert exchange.show(order.order_id, "").status == "OPEN"


def test_money_comes_and_goes_but_never_what_is_held(tmp_path: Path) -> None:
    exchange = opened(tmp_path)
    exchange.deposit("USD", Decimal("0.01"), NOW_NS)
    exchange.deposit("USD", Decimal(-1_000), NOW_NS)
    assert exchange.accounts["USD"].total == DEPOSITS["USD"] - Decimal("999.99")
    limit(exchange, "SELL", "9.5", "70000.00")
    with pytest.raises(Refusal, match="Insufficient"):
        exchange.deposit("BTC", Decimal("-0.50000001"), NOW_NS)
    exchange.deposit("BTC", Decimal("-0.5"), NOW_NS)
    assert exchange.accounts["BTC"].available == 0
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    for currency, amount in (("EUR", Decimal(1)), ("USD", Decimal("NaN")), ("USD", Decimal("Infinity"))):
        with pytest.raises(Refusal):
            exchange.deposit(currency, amount, NOW_NS)


# --- duplicates and cancels ---


def test_a_client_order_id_seen_before_can_be_refused_instead(tmp_path: Path) -> None:
    exchange = ruled(tmp_path, reject_duplicates=True)
    limit(exchange, "BUY", "1", "50000.00", client_order_id="same")
    with pytest.raises(Refusal, match="client_order_id"):
        limit(exchange, "BUY", "1", "50000.00", client_order_id="same")
    assert len(exchange.orders) == 1


def test_a_cancel_under_way_can_be_overtaken_by_a_fill(tmp_path: Path) -> None:
    exchange = ruled(tmp_path, cancel_delay_ns=300_000_000)
    orders = [limit(exchange, "BUY", "0.001", "59990.00") for _ in range(2)]
    ids = [order.order_id for order in orders]
    assert set(exchange.cancel(ids, NOW_NS).values()) == {""}
    assert [order.status for order in orders] == ["CANCEL_QUEUED"] * 2
    assert exchange.cancel(ids, NOW_NS) == dict.fromkeys(ids, "DUPLICATE_CANCEL_REQUEST")
    exchange.force_fill(ids[0], None, None, NOW_NS)
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    exchange.advance(NOW_NS + 299_999_999)
    assert state(orders[1]) is State.CANCEL_QUEUED
    exchange.advance(NOW_NS + 300_000_000)
    assert [state(order) for order in orders] == [State.FILLED, State.CANCELLED]
    assert nothing_held(exchange)


def test_an_order_that_ends_while_its_cancel_is_under_way_expires(tmp_path: Path) -> None:
    exchange = ruled(tmp_path, cancel_delay_ns=10 * SECOND_NS)
    fields: dict[str, Any] = {"base_size": "1", "limit_price": "50000.00", "end_time": "2025-03-10T13:37:24Z"}
    order = place(exchange, "limit_limit_gtd", **fields)
    exchange.cancel([order.order_id], NOW_NS)
    exchange.advance(NOW_NS + 20 * SECOND_NS)
    assert state(order) is State.EXPIRED
    assert nothing_held(exchange)


# --- orders that come to the book later ---


def late(folder: Path) -> Exchange:
    return ruled(folder, accept_delay_ns=200_000_000)


def test_an_accepted_order_is_pending_until_it_comes_to_the_book(tmp_path: Path) -> None:
    exchange = late(tmp_path)
    orders = [
        limit(exchange, "BUY", "0.001", "59990.00"),
        place(exchange, "market_market_ioc", base_size="0.001"),
        place(exchange, "market_market_ioc", quote_size="100"),
        place(exchange, "limit_limit_fok", base_size="9", limit_price="60000.01"),
        stop(exchange, "SELL", "0.001", "59000.00", "59900.00"),
    ]
    assert [order.status for order in orders] == ["PENDING"] * 5
    assert exchange.fills == []
    assert all(ticks != 5_999_000 for ticks, _ in shown(exchange, Side.SELL)[:1])
    assert hold(exchange, "USD") == sum(o.hold() for o in orders if o.ticket.side is Side.BUY) > 160
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
    exchange.advance(NOW_NS + 199_999_999)
    assert {order.status for order in orders} == {"PENDING"}
    exchange.advance(NOW_NS + 200_000_000)
    assert [order.status for order in orders] == ["OPEN", "FILLED", "FILLED", "CANCELLED", "OPEN"]
    assert hold(exchange, "USD") == orders[0].hold()
    exchange.push_price("BTC-USD", 5_980_000, NOW_NS + SECOND_NS)
    assert (state(orders[0]), state(orders[4])) == (State.FILLED, State.FILLED)
    assert nothing_held(exchange)
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(exchange)


def test_what_is_no_longer_allowed_when_it_comes_to_the_book_fails(tmp_path: Path) -> None:
    exchange = late(tmp_path)
    posted = limit(exchange, "BUY", "0.001", "59990.00", post_only=True)
    dear = place(exchange, "market_market_ioc", base_size="16")
    exchange.push_price("BTC-USD", 5_900_000, NOW_NS)
    exchange._pinned["BTC-USD"] = 7_000_000
    exchange.deposit("USD", -exchange.accounts["USD"].available, NOW_NS)
    exchange.advance(NOW_NS + 200_000_000)
    assert (state(dear), dear.message) == (State.FAILED, "INSUFFICIENT_FUND")
    assert state(posted) is State.OPEN
    exchange.deposit("USD", Decimal(10_000), NOW_NS)
    crossing = limit(exchange, "BUY", "0.001", "69990.00", NOW_NS + 200_000_000, post_only=True)
    exchange.push_price("BTC-USD", 6_900_000, NOW_NS + 200_000_000)
    exchange.advance(NOW_NS + SECOND_NS)
    assert (state(crossing), crossing.message) == (State.FAILED, "INVALID_LIMIT_PRICE_POST_ONLY")
    closed = limit(exchange, "BUY", "0.001", "59000.00", NOW_NS + SECOND_NS)
    exchange.set_product("BTC-USD", {"cancel_only": True}, NOW_NS + SECOND_NS)
    exchange.advance(NOW_NS + 2 * SECOND_NS)
    assert state(closed) is State.FAILED
    assert all(not order.hold() for order in (dear, crossing, closed))
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(exchange)
    again.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)


def test_a_pending_order_can_be_cancelled_and_expire_but_not_be_amended(tmp_path: Path) -> None:
    exchange = ruled(tmp_path, accept_delay_ns=2 * SECOND_NS, cancel_delay_ns=5 * SECOND_NS)
    leaving = limit(exchange, "BUY", "0.001", "59990.00")
    fields: dict[str, Any] = {"base_size": "1", "limit_price": "50000.00", "end_time": "2025-03-10T13:37:22Z"}
    ending = place(exchange, "limit_limit_gtd", **fields)
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(leaving.order_id, "0.002", "59990.00", NOW_NS)
    assert refusal.value.code == "ONLY_OPEN_ORDERS_CAN_BE_EDITED"
    assert exchange.cancel([leaving.order_id], NOW_NS) == {leaving.order_id: ""}
    exchange.advance(NOW_NS + 3 * SECOND_NS)
    assert (leaving.status, ending.status) == ("CANCELLED", "EXPIRED")
    assert nothing_held(exchange)


# --- listeners ---


def test_a_listener_hears_each_event_after_it_has_happened(exchange: Exchange) -> None:
    heard: list[tuple[str, str, int]] = []

    def listener(event: dict[str, Any]) -> None:
        order = exchange.orders[event["order_id"]]
        heard.append((event["kind"], order.state.value, len(order.fills)))

    exchange.listen(listener)
    place(exchange, "sor_limit_ioc", base_size="9", limit_price="60000.01")
    assert heard == [("order", "OPEN", 0), ("fill", "OPEN", 1), ("closed", "CANCELLED", 1)]


def test_a_listener_that_fails_leaves_no_decision_half_done(tmp_path: Path) -> None:
    exchange = opened(tmp_path)

    def broken(event: dict[str, Any]) -> None:
        raise RuntimeError(event["kind"])

    exchange.listen(broken)
    order = place(exchange, "market_market_ioc", base_size="1")
    bracket(exchange, "SELL", "0.5", "61000.00", "59000.00")
    assert state(order) is State.FILLED
    assert picture(opened(tmp_path, pinned=False)) == picture(exchange)
