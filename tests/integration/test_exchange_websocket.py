"""The simulator's WebSocket as a client meets it: over verified TLS, with tokens the real SDK signs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.exceptions import ConnectionClosed

from tests.exchange_stream import WAIT_S, Connection, Stream, client, token
from tests.simulator import PREFIX, Simulator, running_simulator

pytestmark = pytest.mark.slow

MARKET_CHANNELS: Final = ("ticker", "ticker_batch", "level2", "market_trades", "candles", "status")


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "3") as running:
        yield running


@pytest.fixture
def stream(simulator: Simulator) -> Iterator[Stream]:
    opened = Stream(simulator)
    yield opened
    opened.connection.close()


def test_every_market_channel_sends_a_snapshot_then_the_acknowledgement(stream: Stream) -> None:
    for channel in MARKET_CHANNELS:
        stream.subscribe(channel, "BTC-USD")
        sent = "l2_data" if channel == "level2" else channel
        snapshot = stream.channel(sent, "snapshot")
        acknowledgement = stream.channel("subscriptions")
        assert acknowledgement["events"][0]["subscriptions"][channel] == ["BTC-USD"]
        assert acknowledgement["sequence_num"] > snapshot["sequence_num"]
        assert "client_id" not in snapshot


def test_the_sequence_counts_every_message_of_a_connection(stream: Stream) -> None:
    for channel in ("heartbeats", "ticker", "level2", "market_trades", "candles"):
        stream.subscribe(channel, "BTC-USD", "ETH-USD")
    for _ in range(3):
        stream.channel("heartbeats")
    assert [message["sequence_num"] for message in stream.seen] == list(range(len(stream.seen)))


def test_heartbeats_count_up_each_second(stream: Stream) -> None:
    stream.subscribe("heartbeats")
    assert stream.channel("subscriptions")["events"] == [{"subscriptions": {"heartbeats": ["heartbeats"]}}]
    counters = [stream.channel("heartbeats")["events"][0]["heartbeat_counter"] for _ in range(3)]
    assert counters[2] - counters[0] in {2, 3}
    assert all(isinstance(counter, int) for counter in counters)


def test_the_level2_book_kept_by_the_updates_is_the_book_of_rest(simulator: Simulator, stream: Stream) -> None:
    simulator.push_price("ETH-USD", "3000.00")
    try:
        stream.subscribe("level2", "ETH-USD")
        book: dict[tuple[str, Decimal], Decimal] = {}

        def apply(message: dict[str, Any]) -> bool:
            for event in message.get("events", []) if message.get("channel") == "l2_data" else []:
                if event["type"] == "snapshot":
                    book.clear()
                for update in event["updates"]:
                    level = (update["side"], Decimal(update["price_level"]))
                    book[level] = Decimal(update["new_quantity"])
                    if not book[level]:
                        del book[level]
            return bool(book) and message.get("channel") == "l2_data" and len(stream.seen) > 6

        stream.until(apply, "sixth update")
        simulator.push_price("ETH-USD", "3111.00")
        stream.until(lambda m: apply(m) and max(book)[1] > 3111 and min(book)[1] < 3111, "book around the new price")
        bids = sorted(price for side, price in book if side == "bid")
        asks = sorted(price for side, price in book if side == "offer")
        assert bids[-1] < Decimal(3111) < asks[0]
        assert len(bids) == len(asks) == 100
    finally:
        simulator.push_price("ETH-USD", None)


def test_a_pushed_price_is_told_at_once_on_the_ticker(simulator: Simulator, stream: Stream) -> None:
    stream.subscribe("ticker", "SOL-USD")
    stream.channel("ticker", "snapshot")
    simulator.push_price("SOL-USD", "222.00")
    try:
        message = stream.until(
            lambda m: m.get("channel") == "ticker" and m["events"][0]["tickers"][0]["price"] == "222.00", "222.00"
        )
        ticker = message["events"][0]["tickers"][0]
        assert Decimal(ticker["best_bid"]) < 222 < Decimal(ticker["best_ask"])
        assert Decimal(ticker["low_24_h"]) <= 222 <= Decimal(ticker["high_24_h"])
    finally:
        simulator.push_price("SOL-USD", None)


def test_an_orders_life_is_told_to_its_owner(simulator: Simulator, stream: Stream) -> None:
    stream.subscribe("user", jwt=token(simulator))
    snapshot = stream.channel("user", "snapshot")
    assert snapshot["events"][0]["positions"] == {"perpetual_futures_positions": [], "expiring_futures_positions": []}
    rest = client(simulator)
    simulator.push_price("BTC-USD", "60000.00")
    try:
        bought = rest.limit_order_gtc_buy("life-1", "BTC-USD", "0.001", "50000.00")
        order_id = bought.success_response["order_id"]
        opened = stream.order(order_id=order_id)
        assert (opened["status"], opened["cumulative_quantity"], opened["leaves_quantity"]) == (
            "OPEN", "0.00000000", "0.00100000",
        )  # fmt: skip
        simulator.push_price("BTC-USD", "49000.00")
        filled = stream.order(order_id=order_id, status="FILLED")
        assert filled["cumulative_quantity"] == "0.00100000"
        assert Decimal(filled["avg_price"]) == 50_000
        assert filled["number_of_fills"] == "1"
        resting = rest.limit_order_gtc_buy("life-2", "BTC-USD", "0.001", "40000.00")
        rest.cancel_orders([resting.success_response["order_id"]])
        assert stream.order(client_order_id="life-2", status="CANCELLED")["leaves_quantity"] == "0.00000000"
    finally:
        simulator.push_price("BTC-USD", None)
        rest.session.close()


def test_a_stops_trigger_is_told_before_its_fill(simulator: Simulator, stream: Stream) -> None:
    rest = client(simulator)
    simulator.push_price("BTC-USD", "60000.00")
    try:
        stream.subscribe("user", jwt=token(simulator))
        placed = rest.stop_limit_order_gtc_sell(
            "stop-1", "BTC-USD", "0.001", "58000.00", "59000.00", "STOP_DIRECTION_STOP_DOWN"
        )
        waiting = stream.order(client_order_id="stop-1")
        assert (waiting["trigger_status"], waiting["order_type"]) == ("STOP_PENDING", "STOP_LIMIT")
        assert (waiting["stop_price"], waiting["limit_price"]) == ("59000.00", "58000.00")
        simulator.push_price("BTC-USD", "58900.00")
        assert stream.order(client_order_id="stop-1", trigger_status="STOP_TRIGGERED")["status"] == "OPEN"
        assert stream.order(client_order_id="stop-1", status="FILLED")["leaves_quantity"] == "0.00000000"
        assert rest.get_order(placed.success_response["order_id"]).order.trigger_status == "STOP_TRIGGERED"
    finally:
        simulator.push_price("BTC-USD", None)
        rest.session.close()


def test_the_snapshot_has_every_open_order_in_batches_of_fifty(simulator: Simulator, stream: Stream) -> None:
    rest = client(simulator)
    placed = [
        rest.limit_order_gtc_buy(f"open-{i}", "SOL-USD", "0.01", "1.00").success_response["order_id"] for i in range(60)
    ]
    stream.subscribe("user", "SOL-USD", jwt=token(simulator))
    stream.channel("subscriptions")
    batches = [m["events"][0]["orders"] for m in stream.seen if m["channel"] == "user"]
    assert [len(batch) for batch in batches] == [50, 10]
    assert [order["order_id"] for batch in batches for order in batch] == placed
    rest.cancel_orders(placed)
    rest.session.close()


@pytest.mark.parametrize("file", ["cdp_key.json", "cdp_key_ed25519.json"])
def test_both_kinds_of_key_open_the_user_channel(simulator: Simulator, stream: Stream, file: str) -> None:
    stream.subscribe("user", jwt=token(simulator, file))
    assert stream.channel("user", "snapshot")["sequence_num"] == 0


def test_a_stranger_is_told_no_more_than_that(simulator: Simulator, stream: Stream) -> None:
    refused = {"type": "error", "message": "authentication failure"}
    stream.subscribe("user")
    stream.subscribe("user", jwt="nonsense")
    stream.subscribe("ticker", "BTC-USD", jwt="nonsense")
    stream.subscribe("gossip", "BTC-USD")
    for _ in range(4):
        assert json.loads(stream.connection.recv(timeout=WAIT_S)) == refused
    stream.subscribe("ticker", "NO-USD", "BTC-USD", jwt=token(simulator))
    acknowledgement = stream.channel("subscriptions")
    assert acknowledgement["events"][0]["subscriptions"] == {"ticker": ["BTC-USD"]}


def test_what_is_no_subscription_is_answered_with_an_error_and_ends_nothing(stream: Stream) -> None:
    for message in ("not json", "[]", "5", '{"type":"subscribe"}', '{"type":"dance","channel":"ticker"}', "[" * 5_000):
        stream.connection.send(message)
        assert json.loads(stream.connection.recv(timeout=WAIT_S))["type"] == "error"
    stream.send(type="subscribe", channel="ticker", product_ids="BTC-USD")
    assert json.loads(stream.connection.recv(timeout=WAIT_S))["type"] == "error"
    stream.subscribe("heartbeats")
    stream.channel("heartbeats")


def test_unsubscribing_takes_products_or_the_channel(stream: Stream) -> None:
    stream.subscribe("ticker", "BTC-USD", "ETH-USD")
    stream.subscribe("status", "BTC-USD")
    stream.send(type="unsubscribe", channel="ticker", product_ids=["BTC-USD"])
    stream.send(type="unsubscribe", channel="status")
    for _ in range(3):
        stream.channel("subscriptions")
    assert stream.channel("subscriptions")["events"][0]["subscriptions"] == {"ticker": ["ETH-USD"]}


def test_who_subscribes_to_nothing_is_let_go_after_five_seconds(stream: Stream) -> None:
    began_s = time.monotonic()
    with pytest.raises(ConnectionClosed) as closed:
        stream.connection.recv(timeout=WAIT_S)
    assert 4.5 < time.monotonic() - began_s < 8
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1008


def test_a_path_that_is_not_there_is_refused(simulator: Simulator) -> None:
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus):
        Connection(simulator, "/nowhere")


def test_rest_goes_on_beside_many_streams_and_a_client_that_never_reads(simulator: Simulator) -> None:
    streams = [Stream(simulator) for _ in range(5)]
    for one in streams:
        for channel in MARKET_CHANNELS:
            one.subscribe(channel)
    assert simulator.request("GET", PREFIX + "/time").status_code == 200
    streams[0].channel("ticker", "snapshot")
    for one in streams:
        one.connection.close()


def test_the_sdks_own_websocket_client_gets_tickers_and_orders(simulator: Simulator) -> None:
    """In a process of its own: the SDK's client trusts any certificate and runs a thread that cannot be waited for."""
    key = json.loads((simulator.state_dir / "cdp_key.json").read_text())
    code = """
import json, sys, time
from coinbase.websocket import WSClient, WSUserClient
host_port, name, secret = sys.argv[1:]
seen = set()
def on_message(text):
    seen.add(json.loads(text)["channel"])
market = WSClient(name, secret, base_url=f"wss://{host_port}", on_message=on_message)
user = WSUserClient(name, secret, base_url=f"wss://{host_port}", on_message=on_message)
market.open(); market.subscribe(["BTC-USD"], ["heartbeats", "ticker", "level2"])
user.open(); user.subscribe([], ["user", "heartbeats"])
wanted = {"heartbeats", "ticker", "l2_data", "user", "subscriptions"}
deadline = time.monotonic() + 15
while not wanted <= seen and time.monotonic() < deadline:
    time.sleep(0.05)
market.close(); user.close()
print(sorted(seen))
sys.exit(0 if wanted <= seen else 1)
"""
    arguments = [sys.executable, "-c", code, simulator.host_port, key["name"], key["privateKey"]]
    done = subprocess.run(
        arguments, capture_output=True, text=True, timeout=40, check=False, env=os.environ.copy(), cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_recorded_candles_are_the_price_and_recorded_messages_are_told(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    day_s = int(time.time()) // 86_400 * 86_400 - 400 * 86_400
    rows = [f"{day_s + 60 * i},100,101,99,100.5,1" for i in range(1_440)]
    (files / "BTC-USD.csv").write_text("\n".join(["time,open,high,low,close,volume", *rows]) + "\n")
    book = {"type": "snapshot", "product_id": "SKL-USD", "asks": [["0.66", "1"]], "bids": [["0.65", "7"]]}
    change = {"type": "l2update", "product_id": "SKL-USD", "changes": [["buy", "0.64", "3"]]}
    lines = [f"{1618677817 + 0.1 * i}: {json.dumps(book if i % 2 == 0 else change)}" for i in range(20)]
    (files / "tape.ws").write_text("\n".join(lines))
    options = ["--history-days", "3", "--replay", str(files / "BTC-USD.csv"), "--tape", str(files / "tape.ws")]
    with running_simulator(tmp_path / "state", *options) as simulator:
        now_s = int(time.time())
        query = f"?start={now_s - 600}&end={now_s - 120}&granularity=ONE_MINUTE"
        answer = simulator.request("GET", f"{PREFIX}/market/products/BTC-USD/candles{query}").json()
        assert {(c["open"], c["high"], c["low"], c["close"]) for c in answer["candles"]} == {
            ("100.00", "101.00", "99.00", "100.50")
        }
        price = Decimal(simulator.request("GET", f"{PREFIX}/market/products/BTC-USD").json()["price"])
        assert 99 <= price <= 101
        stream = Stream(simulator)
        stream.subscribe("level2", "SKL-USD", "BTC-USD")
        stream.until(
            lambda m: m["channel"] == "l2_data" and m["events"][0]["product_id"] == "SKL-USD", "a taped message"
        )
        stream.connection.close()
        assert simulator.request("GET", f"{PREFIX}/market/products/SKL-USD").status_code == 404
        status = simulator.control("/sim/status")
        day = time.strftime("%Y-%m-%d", time.gmtime(day_s))
        assert status["replayed"] == {"BTC-USD": {"first": day, "last": day, "today": day}}
        assert status["taped"] == ["SKL-USD"]
