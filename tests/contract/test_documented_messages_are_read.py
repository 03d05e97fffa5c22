"""What the documented WebSocket schemas allow becomes the events it means; whatever else comes never raises.

``read_message`` is where every byte of the venue's channels enters the desk. The messages are made from the schemas.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import json
import ssl
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from cluster.exchange_keys import open_credentials
from cluster.venue import Venue, simulator_endpoint
from cluster.venue_channels import (
    Beat,
    Candle,
    Connected,
    Gap,
    Lost,
    MarketFill,
    OrderUpdate,
    StreamError,
    read_message,
)
from cluster.venue_shapes import Quote
from cluster.venue_stream import VenueStream
from strategies.model import OrderStatus
from tests.contract import coinbase_schemas as documented
from tests.contract.coinbase_messages import damaged, valid

EXAMPLES: Final = settings(max_examples=40, deadline=None)
ANY: Final[frozenset[str]] = frozenset()
EVENTS: Final = (Beat, Candle, MarketFill, OrderUpdate, Quote, StreamError)
MESSAGES: Final = documented.WS_SHAPES


def read(message: Any) -> list[Any]:
    """The events of a message, as they come over the wire."""
    return list(read_message(json.dumps(message).encode("utf-8", "surrogatepass"), ANY).events)


def rows(message: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for event in message["events"] for row in event[name] or []]


@pytest.mark.parametrize("name", MESSAGES)
@EXAMPLES
@given(data=st.data())
def test_a_damaged_message_never_raises(name: str, data: st.DataObject) -> None:
    found = read(data.draw(damaged(MESSAGES[name])))
    assert [event for event in found if not isinstance(event, EVENTS)] == []
    assert not any(isinstance(event, Connected | Lost | Gap) for event in found)


@EXAMPLES
@given(raw=st.binary(max_size=200) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_never_raise(raw: bytes) -> None:
    assert all(isinstance(event, EVENTS) for event in read_message(raw, ANY).events)


@pytest.mark.parametrize(
    "raw",
    [b"", b"[", b"null", b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b'{"n":' + b"9" * 5_000 + b"}", b"\xff\xfe"],
    ids=["empty", "cut off", "null", "list", "bare", "deep list", "deep object", "long number", "not utf-8"],
)
def test_what_is_no_message_is_told_as_an_error(raw: bytes) -> None:
    message = read_message(raw, ANY)
    assert message.sequence is None
    assert [type(event) for event in message.events] == [StreamError]


@pytest.mark.parametrize("name", [name for name in MESSAGES if name != "ws_error"])
@EXAMPLES
@given(data=st.data())
def test_every_documented_message_has_its_channel_and_number(name: str, data: st.DataObject) -> None:
    given_message = data.draw(valid(MESSAGES[name]))
    message = read_message(json.dumps(given_message).encode(), ANY)
    assert (message.channel, message.sequence) == (name, given_message["sequence_num"])


@EXAMPLES
@given(message=valid(MESSAGES["user"]))
def test_every_documented_order_becomes_an_update(message: dict[str, Any]) -> None:
    orders = rows(message, "orders")
    found = read(message)
    assert len(found) == len(orders)
    for update, order in zip(found, orders, strict=True):
        assert isinstance(update, OrderUpdate)
        assert (update.venue_order_id, update.client_order_id) == (order["order_id"], order["client_order_id"])
        assert update.filled_quantity == Decimal(order["cumulative_quantity"] or "0")
        assert update.average_price == Decimal(order["avg_price"] or "0")
        assert isinstance(update.status, OrderStatus)


@EXAMPLES
@given(message=valid(MESSAGES["user"]), word=st.sampled_from(["A_WORD_OF_2027", "", "open"]))
def test_an_unknown_status_is_an_update_without_one_not_a_lost_update(message: dict[str, Any], word: str) -> None:
    for order in rows(message, "orders"):
        order["status"] = word
    assert all(isinstance(update, OrderUpdate) and update.status is None for update in read(message))


@EXAMPLES
@given(message=valid(MESSAGES["ticker"]))
def test_a_ticker_with_both_sides_becomes_a_quote_and_one_without_nothing(message: dict[str, Any]) -> None:
    sides = ("best_bid", "best_bid_quantity", "best_ask", "best_ask_quantity")
    for row in rows(message, "tickers"):
        if not all(row.get(side) for side in sides):
            row["best_bid"] = ""
    whole = [row for row in rows(message, "tickers") if row["best_bid"]]
    found = read(message)
    assert all(isinstance(event, Quote) for event in found)
    assert [(quote.bid, quote.ask) for quote in found] == [
        (Decimal(r["best_bid"]), Decimal(r["best_ask"])) for r in whole
    ]


@EXAMPLES
@given(message=valid(MESSAGES["heartbeats"]))
def test_a_heartbeat_counts_whether_the_counter_is_text_or_a_number(message: dict[str, Any]) -> None:
    # Text in the prose of the reference, an integer in its AsyncAPI and in recordings; the time as Go prints it.
    assert read(message) == [Beat(int(event["heartbeat_counter"])) for event in message["events"]]


@EXAMPLES
@given(message=valid(MESSAGES["market_trades"]))
def test_a_market_trade_has_the_makers_side_and_one_without_a_side_is_told(message: dict[str, Any]) -> None:
    trades = [row for event in message["events"] for row in reversed(event["trades"])]
    for event, trade in zip(read(message), trades, strict=True):
        if trade["side"] == "UNKNOWN_ORDER_SIDE":
            assert isinstance(event, StreamError)
        else:
            assert isinstance(event, MarketFill)
            assert (event.trade_id, event.side.value) == (trade["trade_id"], trade["side"])


@EXAMPLES
@given(message=valid(MESSAGES["candles"]))
def test_a_candle_that_holds_together_is_read(message: dict[str, Any]) -> None:
    for row in rows(message, "candles"):
        low, opened, closed, high = sorted(float(row[name]) for name in ("low", "open", "close", "high"))
        row |= {"low": str(low), "open": str(opened), "close": str(closed), "high": str(high)}
    found = read(message)
    assert len(found) == len(rows(message, "candles"))
    assert all(isinstance(event, Candle) and event.low <= event.open <= event.high for event in found)


@pytest.mark.parametrize("name", ["status", "l2_data", "futures_balance_summary", "ticker_batch"])
@EXAMPLES
@given(data=st.data())
def test_channels_we_do_not_read_are_passed_over_in_silence(name: str, data: st.DataObject) -> None:
    assert read(data.draw(valid(MESSAGES[name]))) == []


@EXAMPLES
@given(message=valid(MESSAGES["subscriptions"]))
def test_an_acknowledgement_names_the_channels_the_connection_has(message: dict[str, Any]) -> None:
    found = read_message(json.dumps(message).encode(), ANY)
    assert found.subscribed == {name for event in message["events"] for name in event["subscriptions"]}
    assert found.events == []


@EXAMPLES
@given(message=valid(MESSAGES["ws_error"]))
def test_an_error_message_is_told_and_is_no_part_of_the_sequence(message: dict[str, Any]) -> None:
    # The SDK's own class raises KeyError here.
    found = read_message(json.dumps(message).encode(), ANY)
    assert found.sequence is None
    (event,) = found.events
    assert isinstance(event, StreamError)
    assert message["message"].strip() in event.message


# --- over a real connection ---


class Babbler:
    """A venue that says whatever it is given, numbered as the venue does, and goes on after a new connection."""

    def __init__(self, messages: list[Any]) -> None:
        self.left = messages
        self.connections = 0

    async def serve(self, socket: ServerConnection) -> None:
        """One connection: take the subscriptions, acknowledge, say what is left, then the last heartbeat for ever."""
        self.connections += 1
        for _ in range(2):
            await socket.recv()
        numbers = itertools.count()
        await socket.send(json.dumps(_numbered(_ACKNOWLEDGED, next(numbers))))
        while self.left:
            await socket.send(_wire(self.left.pop(0), numbers))
        while True:
            await socket.send(json.dumps(_numbered(_LAST, next(numbers))))
            await asyncio.sleep(0.05)


_STAMP: Final = {"timestamp": "2026-01-01T00:00:00Z"}
_ACKNOWLEDGED: Final = _STAMP | {
    "channel": "subscriptions",
    "events": [{"subscriptions": {"ticker": ["BTC-USD"], "heartbeats": ["heartbeats"]}}],
}
_LAST: Final = _STAMP | {
    "channel": "heartbeats",
    "events": [{"current_time": "2026-01-01 00:00:00 +0000 UTC", "heartbeat_counter": 777_000_777}],
}


def _numbered(message: dict[str, Any], number: int) -> dict[str, Any]:
    return message | {"sequence_num": number}


def _wire(message: Any, numbers: Iterator[int]) -> str | bytes:
    """A message of the right number where it still has one; damage may have taken it or made it another."""
    if isinstance(message, bytes):
        return message
    if isinstance(message, dict) and type(message.get("sequence_num")) is int:
        message = _numbered(message, next(numbers))
    return json.dumps(message).encode("utf-8", "surrogatepass")


@pytest.mark.slow
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    messages=st.lists(
        st.one_of([damaged(shape) for shape in MESSAGES.values()]) | st.binary(max_size=50), min_size=5, max_size=25
    )
)
def test_a_venue_that_says_anything_never_ends_nor_disturbs_the_stream(
    messages: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("babbler")
    credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(credentials.certificate_file, credentials.certificate_key_file)

    async def run() -> list[Any]:
        babbler = Babbler(messages)

        def simulated(_: Any, __: Any, response: Any) -> None:
            response.headers["X-Simulated"] = "1"

        async with serve(babbler.serve, "127.0.0.1", 0, ssl=tls, process_response=simulated) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            venue = Venue(simulator_endpoint(f"127.0.0.1:{port}", folder))
            stream = VenueStream(venue, ["ticker"], ["BTC-USD"])
            told = []
            async with asyncio.timeout(60):
                async for event in stream.events():
                    told.append(event)
                    if event == Beat(777_000_777):
                        break
            await stream.close()
            venue.close()
        return told

    told = asyncio.run(run())
    assert all(isinstance(event, (*EVENTS, Connected, Lost, Gap)) for event in told)
    assert messages == []
