"""Every message of Coinbase's channels becomes events or a StreamError, whatever is in it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest

from cluster.venue_channels import Beat, Candle, MarketFill, OrderUpdate, StreamError, read_message
from cluster.venue_shapes import Quote
from strategies.model import OrderStatus, Side

PRODUCTS = frozenset({"BTC-USD", "ETH-USD"})
TIME = "2026-09-05T21:52:10.940239371Z"
TIME_NS = 1_788_645_130_940_239_371
TICKER = {
    "type": "ticker",
    "product_id": "BTC-USD",
    "price": "79914.6",
    "best_bid": "79914.5",
    "best_ask": "79914.6",
    "best_bid_quantity": "0.7944",
    "best_ask_quantity": "0.7554",
}
CANDLE = {"start": "1788645000", "open": "2", "high": "3", "low": "1", "close": "2.5", "volume": "9"}
TRADE = {"trade_id": "t-2", "product_id": "BTC-USD", "price": "5", "size": "0.1", "side": "SELL", "time": TIME}
ORDER = {
    "order_id": "v-1",
    "client_order_id": "mine-1",
    "product_id": "DOGE-USD",
    "status": "OPEN",
    "cumulative_quantity": "0.4",
    "avg_price": "100",
    "total_fees": "-0.1",
    "order_side": "BUY",
}


def message(channel: str, *events: Any, **changes: Any) -> bytes:
    whole = {"channel": channel, "timestamp": TIME, "sequence_num": 7, "events": list(events)}
    return json.dumps(whole | changes).encode()


def read(raw: bytes, products: frozenset[str] = PRODUCTS) -> list[Any]:
    return list(read_message(raw, products).events)


def test_each_channel_has_its_events() -> None:
    quote = Quote("BTC-USD", Decimal("79914.5"), Decimal("0.7944"), Decimal("79914.6"), Decimal("0.7554"), TIME_NS)
    candle = {"candles": [CANDLE | {"product_id": "ETH-USD"}]}
    bar = Candle("ETH-USD", 1_788_645_000, 2.0, 3.0, 1.0, 2.5, 9.0)
    partly = OrderStatus.PARTIALLY_FILLED
    amounts = (Decimal("0.4"), Decimal(100), Decimal("-0.1"))
    order = OrderUpdate("v-1", "mine-1", "DOGE-USD", partly, *amounts, snapshot=True, ts_ns=TIME_NS)
    fill = MarketFill("BTC-USD", "t-2", Side.SELL, Decimal(5), Decimal("0.1"), TIME_NS)
    assert read(message("heartbeats", {"heartbeat_counter": 42})) == [Beat(42)]
    assert read(message("heartbeats", {"heartbeat_counter": "42", "current_time": "x"})) == [Beat(42)]
    assert read(message("ticker", {"type": "update", "tickers": [TICKER]})) == [quote]
    assert read(message("candles", candle)) == [bar]
    assert read(message("market_trades", {"trades": [TRADE]})) == [fill]
    assert read(message("user", {"type": "snapshot", "orders": [ORDER]}), frozenset()) == [order]


def test_a_snapshot_is_told_oldest_first() -> None:
    trades = [TRADE | {"trade_id": name} for name in ("t-3", "t-2", "t-1")]
    events = {"type": "snapshot", "trades": trades}, {"type": "update", "trades": [TRADE | {"trade_id": "t-4"}]}
    found = [event.trade_id for event in read(message("market_trades", *events))]
    assert found == ["t-1", "t-2", "t-3", "t-4"]


def test_subscriptions_name_the_channels_the_connection_has() -> None:
    found = read_message(
        message("subscriptions", {"subscriptions": {"ticker": ["BTC-USD"], "heartbeats": []}}), PRODUCTS
    )
    assert found.subscribed == {"ticker", "heartbeats"}
    assert (found.sequence, list(found.events)) == (7, [])
    for odd in ({"subscriptions": None}, {"subscriptions": ["ticker"]}, {}, 5):
        assert read_message(message("subscriptions", odd), PRODUCTS).subscribed == frozenset()
    assert read_message(message("subscriptions", events="odd"), PRODUCTS).subscribed == frozenset()


@pytest.mark.parametrize(
    "word", ["OPEN", "PENDING", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED", "FILLED", "CANCELLED", "EXPIRED", "FAILED"]
)
def test_every_status_of_an_order_is_known_and_a_new_word_is_none(word: str) -> None:
    (known,) = read(message("user", {"type": "update", "orders": [ORDER | {"status": word}]}))
    (unknown,) = read(message("user", {"type": "update", "orders": [ORDER | {"status": f"{word}!"}]}))
    assert isinstance(known.status, OrderStatus)
    assert (unknown.status, unknown.venue_order_id, unknown.snapshot) == (None, "v-1", False)


@pytest.mark.parametrize("side", ["best_bid", "best_ask"])
@pytest.mark.parametrize("value", ["", None])
def test_a_book_with_an_empty_side_has_no_quote(side: str, value: str | None) -> None:
    assert read(message("ticker", {"tickers": [TICKER | {side: value}]})) == []


def test_a_usdc_product_is_told_by_its_own_name() -> None:
    (quote,) = read(message("ticker", {"tickers": [TICKER]}), frozenset({"BTC-USDC"}))
    assert quote.product_id == "BTC-USDC"


@pytest.mark.parametrize("channel", ["level2", "l2_data", "status", "futures_balance_summary", "from_tomorrow", ""])
def test_other_channels_only_count(channel: str) -> None:
    found = read_message(message(channel, {"anything": [1]}), PRODUCTS)
    assert (found.channel, found.sequence, found.events) == (channel, 7, [])


@pytest.mark.parametrize(
    ("channel", "event", "good"),
    [
        ("heartbeats", {"heartbeat_counter": None}, 0),
        ("heartbeats", {"heartbeat_counter": -1}, 0),
        ("heartbeats", {"heartbeat_counter": 1.5}, 0),
        ("ticker", {"tickers": [TICKER, TICKER | {"best_bid": "NaN"}, TICKER]}, 2),
        ("ticker", {"tickers": [TICKER | {"best_bid": 5}]}, 0),
        ("ticker", {"tickers": [TICKER | {"best_ask": "-1"}]}, 0),
        ("ticker", {"tickers": [TICKER | {"best_bid_quantity": "1e999"}]}, 0),
        ("ticker", {"tickers": [TICKER | {"product_id": "DOGE-USD"}, TICKER]}, 1),
        ("ticker", {"tickers": [TICKER | {"product_id": None}]}, 0),
        ("ticker", {"tickers": "none"}, 0),
        ("ticker", {}, 0),
        ("candles", {"candles": [CANDLE | {"product_id": "ETH-USD", "low": "5"}]}, 0),
        ("candles", {"candles": [CANDLE]}, 0),
        ("market_trades", {"trades": [TRADE | {"side": "buy"}, TRADE]}, 1),
        ("market_trades", {"trades": [TRADE | {"size": "0"}]}, 0),
        ("market_trades", {"trades": [TRADE | {"time": "now"}]}, 0),
        ("user", {"orders": [ORDER | {"order_id": None}, ORDER]}, 1),
        ("user", {"orders": [ORDER | {"cumulative_quantity": "Infinity"}]}, 0),
        ("user", {"orders": [ORDER | {"status": 5}]}, 0),
        ("user", {"orders": {}}, 0),
    ],
)
def test_an_item_that_is_garbage_is_told_and_hides_no_other(channel: str, event: dict[str, Any], good: int) -> None:
    found = read(message(channel, event))
    errors = [each for each in found if isinstance(each, StreamError)]
    assert (len(errors), len(found) - len(errors)) == (1, good)
    assert errors[0].message.startswith(f"{channel}: ")


@pytest.mark.parametrize("changes", [{"timestamp": "now"}, {"timestamp": None}, {"events": None}, {"events": [5]}])
def test_a_frame_that_is_garbage_keeps_its_place_in_the_sequence(changes: dict[str, Any]) -> None:
    found = read_message(message("ticker", {"tickers": [TICKER]}, **changes), PRODUCTS)
    assert found.sequence == 7
    assert [type(event) for event in found.events] == [StreamError]


def test_a_user_event_may_be_about_positions_only() -> None:
    assert read(message("user", {"type": "snapshot", "positions": {}})) == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b"{",
        b"<html>",
        b"\xff\xfe{}",
        b'{"a":"\xff"}',
        b"[" * 100_000,
        b'{"channel":"ticker"}',
        b'{"channel":5,"sequence_num":1}',
        b'{"channel":"ticker","sequence_num":"1"}',
        b'{"channel":"ticker","sequence_num":true}',
        b'{"channel":"ticker","sequence_num":1.0}',
        b'{"channel":"ticker","sequence_num":' + b"9" * 5_000 + b"}",
        json.dumps({"channel": "ticker", "sequence_num": 1}).encode("utf-16"),
    ],
)
def test_what_is_no_message_is_told_and_has_no_place_in_the_sequence(raw: bytes) -> None:
    found = read_message(raw, PRODUCTS)
    assert (found.channel, found.sequence) == ("", None)
    (event,) = found.events
    assert isinstance(event, StreamError)
    assert len(event.message) < 300


def test_an_error_of_the_venue_is_told_without_any_token_in_it() -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"
    said = {"type": "error", "message": "authentication failure", "reason": f"bad {token}"}
    assert read(json.dumps(said).encode()) == [StreamError("authentication failure bad [redacted]")]
    assert read(b'{"type":"error"}') == [StreamError("error")]
    assert "eyJ" not in str(read(f"not JSON {token}".encode()))
