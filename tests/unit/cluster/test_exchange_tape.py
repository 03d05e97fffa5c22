"""Recorded WebSocket messages: what is read, when it is told, what a late listener is told first."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.exchange_tape import Tape, TapeError, read_tape

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "cryptofeed_coinbase" / "COINBASE.ws.28.0"
NOW_NS = 1_790_000_000_000_000_000
SNAPSHOT = {
    "type": "snapshot",
    "product_id": "SKL-USD",
    "asks": [["0.66", "100"], ["0.67", "5"]],
    "bids": [["0.65", "7"]],
}
UPDATE = {
    "type": "l2update",
    "product_id": "SKL-USD",
    "changes": [["sell", "0.66", "0.00000000"], ["buy", "0.64", "3"]],
    "time": "2021-04-17T16:43:37.075687Z",
}
TICKER = {
    "type": "ticker",
    "product_id": "SKL-USD",
    "price": "0.66",
    "open_24h": "0.60",
    "volume_24h": "1000",
    "low_24h": "0.5",
    "high_24h": "0.7",
    "best_bid": "0.65",
    "best_ask": "0.66",
}
MATCH = {
    "type": "match",
    "trade_id": 5,
    "side": "sell",
    "size": "985",
    "price": "0.66",
    "product_id": "SKL-USD",
    "time": "2021-04-17T16:43:37.089723Z",
}


def tape(tmp_path: Path, *messages: tuple[float | None, Any]) -> Tape:
    lines = ["wss://feed <-> 1618677816.8434298", 'wss://feed <- 1618677817.0: {"type":"subscribe","channels":[]}']
    lines += [f"{'' if at is None else f'{at}: '}{json.dumps(message)}" for at, message in messages]
    path = tmp_path / "tape.ws"
    path.write_text("\n".join(lines) + "\n")
    return read_tape(path)


def test_messages_are_told_in_advanced_trades_words_at_their_times(tmp_path: Path) -> None:
    played = tape(
        tmp_path, (1618677817.5, SNAPSHOT), (1618677818.0, UPDATE), (1618677819.0, TICKER), (1618677819.25, MATCH)
    )
    assert played.products == {"SKL-USD"}
    assert [(t.at_s, t.channel, t.subscribed) for t in played.story] == [
        (0.5, "l2_data", "level2"),
        (1.0, "l2_data", "level2"),
        (2.0, "ticker", "ticker"),
        (2.25, "market_trades", "market_trades"),
    ]
    first, change, ticker, trade = (told.now(NOW_NS) for told in played.story)
    moment = "2026-09-21T14:13:20.000000Z"
    assert first["updates"][0] == {
        "side": "bid", "event_time": moment, "price_level": "0.65", "new_quantity": "7",
    }  # fmt: skip
    assert [(u["side"], u["price_level"], u["new_quantity"]) for u in change["updates"]] == [
        ("offer", "0.66", "0"),
        ("bid", "0.64", "3"),
    ]
    assert ticker["tickers"][0]["price_percent_chg_24_h"] == "10.00000000"
    assert trade["trades"][0] == {
        "trade_id": "5", "product_id": "SKL-USD", "price": "0.66", "size": "985", "side": "SELL", "time": moment,
    }  # fmt: skip


def test_what_is_due_comes_once_and_the_tape_begins_anew(tmp_path: Path) -> None:
    played = tape(tmp_path, (1618677817.5, SNAPSHOT), (1618677818.0, UPDATE))

    def told(now_s: float) -> list[float]:
        return [each.at_s for each in played.due(now_s)]

    assert told(100.0) == []
    assert told(100.6) == [0.5]
    assert told(100.7) == []
    assert told(101.5) == [1.0]
    assert told(102.5) == []
    assert told(103.1) == [0.5]


def test_a_late_listener_gets_the_book_as_it_has_become(tmp_path: Path) -> None:
    played = tape(tmp_path, (1618677817.5, SNAPSHOT), (1618677818.0, UPDATE), (1618677819.0, TICKER))
    assert played.snapshot("level2", "SKL-USD", NOW_NS) is None
    assert list(played.due(0.0)) == []
    assert len(list(played.due(10.0))) == 3
    book = played.snapshot("level2", "SKL-USD", NOW_NS)
    assert book is not None
    assert {(u["side"], u["price_level"]) for u in book["updates"]} == {
        ("bid", "0.65"),
        ("bid", "0.64"),
        ("offer", "0.67"),
    }
    ticker = played.snapshot("ticker", "SKL-USD", NOW_NS)
    assert ticker is not None
    assert ticker["type"] == "snapshot"
    assert played.snapshot("ticker", "NO-USD", NOW_NS) is None


def test_advanced_trades_own_messages_are_told_as_they_are(tmp_path: Path) -> None:
    event = {"type": "update", "tickers": [{"type": "ticker", "product_id": "BTC-USD", "price": "1"}]}
    message = {"channel": "ticker", "timestamp": "x", "sequence_num": 9, "events": [event]}
    beat = {"channel": "heartbeats", "events": [{"heartbeat_counter": 1}]}
    acknowledgement = {"channel": "subscriptions", "events": [{"subscriptions": {}}]}
    played = tape(tmp_path, (None, message), (None, beat), (None, acknowledgement))
    assert [(t.channel, t.product_id, t.event) for t in played.story] == [("ticker", "BTC-USD", event)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "readable text file"),
        (b"\xff\xfe\x00", "readable text file"),
        (b"", "holds no message"),
        (b"hello\n", "holds no message"),
        (b'1618677817.0: {"type":"subscriptions"}\n', "holds no message"),
        (b'1618677817.0: {"type":"snapshot"}\n', "line 1: not a message of a feed"),
        (b'{"type":"l2update","product_id":"A-B","changes":[["up","1","1"]]}\n', "line 1"),
        (b'{"type":"l2update","product_id":"A-B","changes":[["buy","1","many"]]}\n', "line 1"),
        (b'{"channel":"ticker","events":5}\n', "line 1"),
        (b'{"type":"ticker", broken}\n', "line 1"),
    ],
)
def test_a_recording_that_cannot_be_played_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "tape.ws"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TapeError) as error:
        read_tape(path)
    assert says in str(error.value)


def test_a_real_recording_is_read_whole_and_its_books_never_cross() -> None:
    if not DATA.exists():
        pytest.skip("recorded messages are not on this machine (../shared/data/cryptofeed_coinbase)")
    played = read_tape(DATA)
    assert len(played.products) == 10
    assert len(played.story) == 9_719 + 107 + 97 + 10 + 10
    list(played.due(0.0))
    for elapsed_s in (5.0, 15.0, 30.0):
        list(played.due(elapsed_s))
        for book in played.books.values():
            bids = [Decimal(price) for side, price in book if side == "bid"]
            asks = [Decimal(price) for side, price in book if side == "offer"]
            assert max(bids) < min(asks)
