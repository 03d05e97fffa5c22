"""Amending an order at the exchange simulator: what may change, what it costs in line, what it holds afterwards."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster import exchange_refusals
from cluster.exchange_book import Exchange, Rules, State
from cluster.exchange_ticket import EditRefusal
from strategies.model import Side
from tests.exchange_engine import (
    LOT,
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
)


@pytest.fixture
def exchange(tmp_path: Path) -> Exchange:
    return opened(tmp_path)


def test_an_amended_order_stands_at_its_new_price_with_its_new_size(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "59000.00", post_only=True)
    assert exchange.amend(order.order_id, "2", "58000.00", NOW_NS + 7) is order
    assert (order.ticket.lots, order.ticket.ticks, order.limit_ticks) == (2 * LOT, 5_800_000, 5_800_000)
    assert order.ticket.configuration == {
        "limit_limit_gtc": {"base_size": "2.00000000", "limit_price": "58000.00", "post_only": True}
    }
    assert [(edit.ts_ns, edit.lots, edit.ticks) for edit in order.edits] == [(NOW_NS + 7, 2 * LOT, 5_800_000)]
    assert (5_800_000, 2 * LOT) in shown(exchange, Side.SELL)
    assert all(ticks != 5_900_000 for ticks, _ in shown(exchange, Side.SELL))
    assert hold(exchange, "USD") == 2 * Decimal(58_000) * (1 + TAKER)
    exchange.cancel([order.order_id], NOW_NS)
    assert nothing_held(exchange)


@pytest.mark.parametrize(
    ("size", "price", "keeps"),
    [("0.5", "59000.00", True), ("1.5", "59000.00", False), ("0.5", "59000.01", False), ("1", "59000.01", False)],
)
def test_only_a_smaller_size_keeps_the_place_in_line(exchange: Exchange, size: str, price: str, keeps: bool) -> None:
    first = limit(exchange, "BUY", "1", "59000.00")
    second = limit(exchange, "BUY", "1", "59000.00")
    exchange.amend(first.order_id, size, price, NOW_NS)
    assert (first.priority < second.priority) is keeps
    if first.ticket.ticks == second.ticket.ticks:
        line = list(exchange.records.lines["BTC-USD", Side.BUY])
        assert line == ([first, second] if keeps else [second, first])


def test_an_order_amended_into_the_market_takes_from_it(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "0.01", "59000.00")
    exchange.amend(order.order_id, "0.01", "60000.01", NOW_NS)
    assert (state(order), order.fills[0].liquidity, order.fills[0].ticks) == (State.FILLED, "TAKER", 6_000_001)
    assert nothing_held(exchange)


def test_an_order_that_is_filled_in_part_can_become_smaller_down_to_that(exchange: Exchange) -> None:
    order = limit(exchange, "SELL", "9", "60000.10", post_only=True)
    exchange.push_price("BTC-USD", 6_000_012, NOW_NS)
    filled = order.filled_lots
    for size in (Decimal(filled), Decimal(filled - 1)):
        with pytest.raises(EditRefusal) as refusal:
            exchange.amend(order.order_id, f"{size / LOT:f}", "60000.10", NOW_NS)
        assert refusal.value.code == "CANNOT_EDIT_TO_BELOW_FILLED_SIZE"
    exchange.amend(order.order_id, f"{Decimal(filled + 1) / LOT:f}", "60000.10", NOW_NS)
    assert (order.open_lots, hold(exchange, "BTC")) == (1, Decimal(1) / LOT)
    exchange.push_price("BTC-USD", 6_000_012, NOW_NS + SECOND_NS)
    assert (state(order), order.filled_lots) == (State.FILLED, filled + 1)


@pytest.mark.parametrize(
    ("size", "price", "code"),
    [
        ("1", "59000.00", "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"),
        ("1.00", "59000.00", "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"),
        *((size, "59000.00", "INVALID_EDITED_SIZE") for size in (None, "", "0", "-1", "NaN", 2, "0.000000001", "9999")),
        *(("1", price, "INVALID_EDITED_PRICE") for price in (None, "", "0", "NaN", "1.001", 5, "9" * 13)),
        ("1", "60000.01", "INVALID_EDITED_PRICE"),  # the order may only be posted
        ("17", "59000.00", "COMMANDER_REJECTED_EDIT_ORDER"),  # nobody could pay that
    ],
)
def test_an_amendment_that_cannot_be_is_refused_and_changes_nothing(
    exchange: Exchange, size: Any, price: Any, code: str
) -> None:
    order = limit(exchange, "BUY", "1", "59000.00", post_only=True)
    before = hold(exchange, "USD"), order.ticket, order.priority
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(order.order_id, size, price, NOW_NS)
    assert refusal.value.code == code
    assert (hold(exchange, "USD"), order.ticket, order.priority) == before
    assert order.edits == []


def test_a_trigger_cannot_be_given_to_an_order_without_one(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "59000.00")
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(order.order_id, "2", "59000.00", NOW_NS, stop_price="60100.00")
    assert refusal.value.code == "FIELD_STOPPRICE_NOT_SUPPORTED"


def test_only_open_orders_that_are_good_until_cancelled_can_be_amended(tmp_path: Path) -> None:
    exchange = opened(tmp_path, rules=Rules(cancel_delay_ns=SECOND_NS))
    other = exchange.open_portfolio("other", {"USD": Decimal(1_000_000)})
    fields: dict[str, Any] = {"base_size": "1", "limit_price": "50000.00"}
    cases = {
        "nobody": "ORDER_NOT_FOUND",
        place(exchange, "limit_limit_gtc", "BUY", NOW_NS, other.portfolio_id, **fields).order_id: "ORDER_NOT_FOUND",
        place(exchange, "market_market_ioc", base_size="0.01").order_id: "ONLY_OPEN_ORDERS_CAN_BE_EDITED",
        place(
            exchange, "limit_limit_gtd", end_time="2030-01-01T00:00:00Z", **fields
        ).order_id: "ONLY_LIMIT_ORDER_EDITS_SUPPORTED",
    }
    leaving = limit(exchange, "BUY", "1", "59000.00")
    exchange.cancel([leaving.order_id], NOW_NS)
    cases[leaving.order_id] = "CANNOT_EDIT_ORDER_PENDING_CANCEL"
    for order_id, code in cases.items():
        with pytest.raises(EditRefusal) as refusal:
            exchange.amend(order_id, "2", "50000.00", NOW_NS)
        assert refusal.value.code == code


def test_size_and_price_of_a_stop_can_be_amended_and_its_trigger_until_it_is_reached(exchange: Exchange) -> None:
    order = stop(exchange, "BUY", "0.01", "60200.00", "60100.00")
    exchange.amend(order.order_id, "0.02", "60400.00", NOW_NS, stop_price="60300.00")
    assert (order.ticket.stop_ticks, order.ticket.ticks) == (6_030_000, 6_040_000)
    configuration = order.ticket.configuration["stop_limit_stop_limit_gtc"]
    assert (configuration["stop_price"], configuration["base_size"]) == ("60300.00", "0.02000000")
    with pytest.raises(EditRefusal, match="reached already"):
        exchange.amend(order.order_id, "0.02", "60400.00", NOW_NS, stop_price="59000.00")
    with pytest.raises(EditRefusal, match="at or above"):
        exchange.amend(order.order_id, "0.02", "60299.99", NOW_NS)
    exchange.push_price("BTC-USD", 6_020_000, NOW_NS)
    assert state(order) is State.OPEN
    exchange.push_price("BTC-USD", 6_050_000, NOW_NS)
    assert order.trigger_status == "STOP_TRIGGERED"
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(order.order_id, "0.02", "60400.00", NOW_NS, stop_price="60600.00")
    assert refusal.value.code == "CANNOT_EDIT_STOP_PRICE_FOR_TRIGGERED_ORDER"
    exchange.amend(order.order_id, "0.02", "60500.02", NOW_NS)
    assert state(order) is State.FILLED
    assert nothing_held(exchange)


def test_a_waiting_bracket_can_be_amended_a_triggered_one_cannot(exchange: Exchange) -> None:
    order = bracket(exchange, "BUY", "1", "59000.00", "61000.00")
    exchange.amend(order.order_id, "1", "58000.00", NOW_NS, stop_price="62000.00")
    assert hold(exchange, "USD") == Decimal("65100.00") * (1 + TAKER)
    assert (5_800_000, LOT) in shown(exchange, Side.SELL)
    exchange.push_price("BTC-USD", 6_600_000, NOW_NS)
    assert order.limit_ticks == 6_510_000
    with pytest.raises(EditRefusal):
        exchange.amend(order.order_id, "1", "58000.00", NOW_NS)


def test_an_order_is_amended_so_often_and_no_more(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_refusals, "EDITS_MAX", 2)
    order = limit(exchange, "BUY", "1", "59000.00")
    for size in ("2", "3"):
        exchange.amend(order.order_id, size, "59000.00", NOW_NS)
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(order.order_id, "4", "59000.00", NOW_NS)
    assert refusal.value.code == "EXCEEDED_MAX_ALLOWED_EDIT_REQUEST_COUNT"


def test_nothing_is_amended_while_the_product_takes_cancels_only(exchange: Exchange) -> None:
    order = limit(exchange, "BUY", "1", "59000.00")
    exchange.set_product("BTC-USD", {"cancel_only": True}, NOW_NS)
    with pytest.raises(EditRefusal) as refusal:
        exchange.amend(order.order_id, "2", "59000.00", NOW_NS)
    assert refusal.value.code == "COMMANDER_REJECTED_EDIT_ORDER"


def test_amendments_survive_a_restart(tmp_path: Path) -> None:
    first = opened(tmp_path)
    order = limit(first, "BUY", "1", "59000.00")
    limit(first, "BUY", "1", "59000.00")
    for size in ("2", "1.5"):
        first.amend(order.order_id, size, "59000.00", NOW_NS)
    first.amend(order.order_id, "1.5", "60000.01", NOW_NS)
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(first)
    again.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(first)
    assert again.orders[order.order_id].edits == order.edits
    assert len(order.edits) == 3
