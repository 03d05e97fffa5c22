"""Stop and bracket orders of the exchange simulator: when they are triggered, what they then are, what they hold."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.exchange_book import Exchange, State
from cluster.exchange_ticket import Refusal
from strategies.model import Side
from tests.exchange_engine import (
    LOT,
    MAKER,
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


@pytest.mark.parametrize(
    ("side", "price", "stop_price", "short_of", "reached"),
    [
        ("BUY", "60200.00", "60100.00", 6_009_999, 6_010_000),
        ("SELL", "59800.00", "59900.00", 5_990_001, 5_990_000),
    ],
)
def test_a_stop_waits_unseen_until_its_trigger_then_takes_what_is_there(
    exchange: Exchange, side: str, price: str, stop_price: str, short_of: int, reached: int
) -> None:
    before = shown(exchange, Side.BUY), shown(exchange, Side.SELL)
    order = stop(exchange, side, "0.01", price, stop_price)
    assert (order.status, order.trigger_status) == ("OPEN", "STOP_PENDING")
    assert (shown(exchange, Side.BUY), shown(exchange, Side.SELL)) == before
    assert exchange.push_price("BTC-USD", short_of, NOW_NS) == 0
    assert order.trigger_status == "STOP_PENDING"
    assert exchange.push_price("BTC-USD", reached, NOW_NS) == 1
    assert (state(order), order.trigger_status) == (State.FILLED, "STOP_TRIGGERED")
    assert order.fills[0].liquidity == "TAKER"
    assert order.fills[0].ticks == reached + (1 if side == "BUY" else -1)
    assert nothing_held(exchange)


def test_a_triggered_stop_beyond_the_market_rests_at_its_limit_and_is_not_triggered_again(exchange: Exchange) -> None:
    order = stop(exchange, "BUY", "0.01", "60100.00", "60100.00")
    heard: list[str] = []
    exchange.listen(lambda event: heard.append(event["kind"]))
    exchange.push_price("BTC-USD", 6_020_000, NOW_NS)
    assert (state(order), order.trigger_status, heard) == (State.OPEN, "STOP_TRIGGERED", ["triggered"])
    assert (6_010_000, LOT // 100) in shown(exchange, Side.SELL)
    exchange.push_price("BTC-USD", 6_000_000, NOW_NS)
    assert (state(order), heard) == (State.FILLED, ["triggered", "fill"])
    assert (order.fills[0].ticks, order.fills[0].liquidity) == (6_010_000, "MAKER")


def test_a_stop_larger_than_the_book_within_its_limit_rests_with_the_rest(exchange: Exchange) -> None:
    order = stop(exchange, "BUY", "10", "60100.00", "60099.90")
    exchange.push_price("BTC-USD", 6_009_990, NOW_NS)
    assert 0 < order.filled_lots < 10 * LOT
    assert state(order) is State.OPEN
    assert hold(exchange, "USD") == Decimal(10 * LOT - order.filled_lots) / LOT * Decimal("60100.00") * (1 + TAKER)


def test_a_stop_of_either_side_may_look_in_the_other_direction(exchange: Exchange) -> None:
    fields: dict[str, Any] = {"base_size": "0.01", "limit_price": "60050.00", "stop_price": "60100.00"}
    order = place(exchange, "stop_limit_stop_limit_gtc", "SELL", stop_direction="STOP_DIRECTION_STOP_UP", **fields)
    exchange.push_price("BTC-USD", 6_010_000, NOW_NS)
    assert (state(order), order.fills[0].ticks) == (State.FILLED, 6_009_999)


@pytest.mark.parametrize(
    ("side", "price", "stop_price", "preview"),
    [
        ("BUY", "60200.00", "60000.00", "PREVIEW_STOP_PRICE_BELOW_LAST_TRADE_PRICE"),
        ("BUY", "60200.00", "59000.00", "PREVIEW_STOP_PRICE_BELOW_LAST_TRADE_PRICE"),
        ("SELL", "59000.00", "60000.00", "PREVIEW_STOP_PRICE_ABOVE_LAST_TRADE_PRICE"),
        ("BUY", "60099.99", "60100.00", "PREVIEW_STOP_PRICE_ABOVE_LIMIT_PRICE"),
        ("SELL", "59900.01", "59900.00", "PREVIEW_STOP_PRICE_BELOW_LIMIT_PRICE"),
        ("BUY", "60200.00", "60100.001", "PREVIEW_INVALID_STOP_PRICE_PRECISION"),
        ("BUY", "60200.00", "0", "PREVIEW_INVALID_STOP_PRICE"),
        ("BUY", "60200.00", "NaN", "PREVIEW_INVALID_STOP_PRICE_PRECISION"),
    ],
)
def test_a_stop_that_makes_no_sense_is_refused(
    exchange: Exchange, side: str, price: str, stop_price: str, preview: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        stop(exchange, side, "0.01", price, stop_price)
    assert refusal.value.preview == preview
    assert exchange.orders == {}


def test_a_waiting_stop_holds_its_limit_with_the_fee(exchange: Exchange) -> None:
    buy = stop(exchange, "BUY", "2", "61000.00", "60500.00")
    sell = stop(exchange, "SELL", "3", "59000.00", "59500.00")
    assert hold(exchange, "USD") == 2 * Decimal(61_000) * (1 + TAKER)
    assert hold(exchange, "BTC") == 3
    exchange.cancel([buy.order_id, sell.order_id], NOW_NS)
    assert nothing_held(exchange)
    assert exchange.push_price("BTC-USD", 6_500_000, NOW_NS) == 0


def test_a_stop_expires_unseen(exchange: Exchange) -> None:
    fields: dict[str, Any] = {"base_size": "0.01", "limit_price": "60200.00", "stop_price": "60100.00"}
    order = place(
        exchange,
        "stop_limit_stop_limit_gtd",
        stop_direction="STOP_DIRECTION_STOP_UP",
        end_time="2025-03-10T13:37:23.250Z",
        **fields,
    )
    exchange.advance(NOW_NS + SECOND_NS)
    assert state(order) is State.OPEN
    exchange.advance(NOW_NS + 2 * SECOND_NS)
    assert (state(order), order.closed_ns) == (State.EXPIRED, 1_741_613_843_250_000_000)
    assert exchange.push_price("BTC-USD", 6_020_000, NOW_NS + 3 * SECOND_NS) == 0


def test_stops_reached_together_arrive_in_the_order_they_were_placed(exchange: Exchange) -> None:
    size = str(Decimal(shown(exchange, Side.BUY)[0][1]) / LOT)
    orders = [stop(exchange, "BUY", size, "60200.00", price) for price in ("60100.00", "60050.00")]
    exchange.push_price("BTC-USD", 6_010_000, NOW_NS)
    assert orders[0].fills[0].ticks == 6_010_001
    assert orders[0].fills[-1].sequence < orders[1].fills[0].sequence


def test_the_path_itself_triggers_a_stop(tmp_path: Path) -> None:
    exchange = opened(tmp_path, pinned=False)
    mid = exchange.mid_ticks("BTC-USD", NOW_NS)
    trigger = f"{Decimal(mid - 300) / 100:.2f}"
    order = stop(exchange, "SELL", "0.001", f"{Decimal(mid - 900) / 100:.2f}", trigger)
    for second in range(1, 36_000):
        exchange.advance(NOW_NS + second * SECOND_NS)
        reached = exchange.mid_ticks("BTC-USD", NOW_NS + second * SECOND_NS) <= mid - 300
        assert (order.trigger_status == "STOP_TRIGGERED") is reached
        if reached:
            assert order.triggered_ns == (NOW_NS // SECOND_NS + second) * SECOND_NS
            return
    pytest.fail("the path never fell; choose another time")


def test_a_clock_that_is_set_back_does_not_stop_the_path(exchange: Exchange) -> None:
    """Found with the simulator's clock skew: after an hour ahead nothing was triggered for an hour."""
    exchange.advance(NOW_NS + 3_600 * SECOND_NS)
    order = limit(exchange, "BUY", "0.01", "59990.00")
    exchange._pinned["BTC-USD"] = 5_980_000  # the path falls, nobody pushes
    exchange.advance(NOW_NS)
    assert state(order) is State.OPEN
    exchange.advance(NOW_NS + SECOND_NS)
    assert state(order) is State.FILLED


# --- brackets ---


def test_a_bracket_takes_its_profit_at_its_limit_and_its_trigger_is_gone(exchange: Exchange) -> None:
    order = bracket(exchange, "SELL", "0.5", "61000.00", "59000.00")
    assert (order.trigger_status, hold(exchange, "BTC")) == ("STOP_PENDING", Decimal("0.5"))
    assert (6_100_000, LOT // 2) in shown(exchange, Side.BUY)
    for second in range(60):
        exchange.push_price("BTC-USD", 6_110_000, NOW_NS + second * SECOND_NS)
    assert state(order) is State.FILLED
    assert {(fill.ticks, fill.liquidity) for fill in order.fills} == {(6_100_000, "MAKER")}
    assert order.fees == Decimal("0.5") * 61_000 * MAKER
    exchange.push_price("BTC-USD", 5_000_000, NOW_NS + 60 * SECOND_NS)
    assert order.filled_lots == LOT // 2


@pytest.mark.parametrize(
    ("side", "price", "trigger", "limit_ticks", "push"),
    [("SELL", "61000.00", "59000.00", 5_605_000, 5_600_000), ("BUY", "59000.00", "61000.00", 6_405_000, 6_410_000)],
)
def test_a_triggered_bracket_is_a_limit_five_per_cent_beyond(
    exchange: Exchange, side: str, price: str, trigger: str, limit_ticks: int, push: int
) -> None:
    order = bracket(exchange, side, "0.01", price, trigger)
    exchange.push_price("BTC-USD", push, NOW_NS)  # beyond even that limit, so that it rests
    assert (state(order), order.trigger_status, order.limit_ticks) == (State.OPEN, "STOP_TRIGGERED", limit_ticks)
    own = shown(exchange, Side.BUY if side == "SELL" else Side.SELL)
    assert (limit_ticks, LOT // 100) in own
    assert all(ticks != int(Decimal(price) * 100) for ticks, _ in own)
    exchange.push_price("BTC-USD", limit_ticks + (10 if side == "SELL" else -10), NOW_NS)
    assert (state(order), order.fills[0].ticks) == (State.FILLED, limit_ticks)
    assert nothing_held(exchange)


def test_what_the_profit_side_has_filled_is_not_sold_again_by_the_stop(exchange: Exchange) -> None:
    order = bracket(exchange, "SELL", "9", "60000.10", "59000.00")
    exchange.push_price("BTC-USD", 6_000_012, NOW_NS)
    first = order.filled_lots
    assert 0 < first < 9 * LOT
    for second in range(1, 60):
        exchange.push_price("BTC-USD", 5_890_000, NOW_NS + second * SECOND_NS)
    assert (state(order), order.filled_lots) == (State.FILLED, 9 * LOT)
    assert exchange.accounts["BTC"].total == 1


def test_a_bracket_that_buys_holds_the_worst_it_can_cost(exchange: Exchange) -> None:
    order = bracket(exchange, "BUY", "1", "59000.00", "61000.00")
    assert hold(exchange, "USD") == Decimal("64050.00") * (1 + TAKER) == order.hold()
    for second in range(60):
        exchange.push_price("BTC-USD", 6_100_000, NOW_NS + second * SECOND_NS)
    assert state(order) is State.FILLED
    assert hold(exchange, "USD") == 0
    assert exchange.accounts["USD"].available >= 0


@pytest.mark.parametrize(
    ("side", "price", "trigger", "code"),
    [
        ("SELL", "59000.00", "61000.00", "INVALID_BRACKET_PRICES"),
        ("SELL", "61000.00", "61000.00", "INVALID_BRACKET_PRICES"),
        ("BUY", "61000.00", "59000.00", "INVALID_BRACKET_PRICES"),
        ("SELL", "61000.00", "60000.00", "INVALID_BRACKET_STOP_TRIGGER_PRICE"),
        ("SELL", "60000.00", "59000.00", "INVALID_BRACKET_LIMIT_PRICE"),
        ("BUY", "59000.00", "60000.00", "INVALID_BRACKET_STOP_TRIGGER_PRICE"),
        ("BUY", "60000.00", "61000.00", "INVALID_BRACKET_LIMIT_PRICE"),
    ],
)
def test_a_bracket_that_makes_no_sense_is_refused(
    exchange: Exchange, side: str, price: str, trigger: str, code: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        bracket(exchange, side, "0.01", price, trigger)
    assert (refusal.value.code, refusal.value.preview) == (code, f"PREVIEW_{code}")


def test_stops_and_brackets_survive_a_restart_in_every_state(tmp_path: Path) -> None:
    first = opened(tmp_path)
    stop(first, "BUY", "0.01", "60200.00", "60100.00")
    bracket(first, "SELL", "0.5", "61000.00", "59000.00")
    stop(first, "SELL", "0.02", "59800.00", "59900.00")
    limit(first, "BUY", "0.01", "59990.00")
    first.push_price("BTC-USD", 5_900_000, NOW_NS)
    again = opened(tmp_path, pinned=False)
    assert picture(again) == picture(first)
    again.compact()
    assert picture(opened(tmp_path, pinned=False)) == picture(first)
