"""The WebSocket face of the exchange simulator without a socket: when it closes, what it waits for, whom it lets go."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import exchange_ws_shapes
from cluster.exchange_book import Exchange, Fees
from cluster.exchange_history import DAY_S, History
from cluster.exchange_journal import Journal
from cluster.exchange_keys import Credentials, load_private_key, open_credentials
from cluster.exchange_limits import RateLimits
from cluster.exchange_tape import read_tape
from cluster.exchange_ticket import read_ticket
from cluster.exchange_ws import CHANNELS, QUEUE_MAX, Hub
from strategies.model import NS_PER_S

NOW_NS = int(time.time()) * NS_PER_S
HISTORY = History(7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    open_credentials(made, dt.datetime.now(dt.UTC))
    return made


class Venue:
    """An exchange behind a hub."""

    def __init__(self, folder: Path, state: Path, **options: Any) -> None:
        self.folder = folder
        self.credentials: Credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
        deposits = {"USD": Decimal(1_000_000), "BTC": Decimal(10)}
        journal = Journal(state / "journal.jsonl")
        self.exchange = Exchange(HISTORY, journal, deposits, Fees(), NOW_NS)
        self.hub = Hub(self.exchange, self.credentials, NOW_NS // NS_PER_S - DAY_S, lambda: NOW_NS, **options)

    def token(self) -> str:
        key = json.loads((self.folder / "cdp_key.json").read_text())
        now_s = NOW_NS // NS_PER_S
        claims = {"sub": key["name"], "iss": "cdp", "nbf": now_s, "exp": now_s + 120}
        secret: Any = load_private_key(key["privateKey"])
        return jwt.encode(claims, secret, algorithm="ES256", headers={"kid": key["name"]})

    def place(self, client_order_id: str, price: str = "1000.00") -> None:
        configuration = {"limit_limit_gtc": {"base_size": "0.001", "limit_price": price}}
        body = {"client_order_id": client_order_id, "product_id": "BTC-USD", "side": "BUY"}
        self.exchange.place(read_ticket(body | {"order_configuration": configuration}, NOW_NS), NOW_NS)


class Client:
    """One connection as the server library sees it."""

    def __init__(self, hub: Hub, address: str = "10.0.0.1", blocked: bool = False) -> None:
        self.sent: list[Any] = []
        self.cut = False
        self._blocked = blocked
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._incoming.put_nowait({"type": "websocket.connect"})
        scope = {
            "type": "websocket",
            "path": "/",
            "client": (address, 1),
            "extensions": {"cut": {"abort": self._abort}},
        }
        self.task = asyncio.create_task(hub.serve(scope, self._incoming.get, self._send))

    def _abort(self) -> None:
        self.cut = True

    async def _send(self, message: Any) -> None:
        if self._blocked and message["type"] == "websocket.send":
            await asyncio.Event().wait()
        self.sent.append(message)

    def say(self, **message: Any) -> None:
        self.give(json.dumps(message))

    def give(self, text: str) -> None:
        self._incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def leave(self) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})
        await self.task

    def messages(self, channel: str | None = None) -> list[Any]:
        texts = [json.loads(message["text"]) for message in self.sent if message["type"] == "websocket.send"]
        return [message for message in texts if channel is None or message.get("channel") == channel]

    @property
    def closed(self) -> int | None:
        return next((m["code"] for m in self.sent if m["type"] == "websocket.close"), None)


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await asyncio.wait_for(story(), 20)

    asyncio.run(whole())


async def until(holds: Callable[[], Any]) -> None:
    """Let the loop run until it holds; the whole story has a time limit."""
    while not holds():
        await asyncio.sleep(0.001)


def test_who_hears_nothing_for_long_is_closed_and_heartbeats_prevent_it(folder: Path, tmp_path: Path) -> None:
    venue = Venue(folder, tmp_path, idle_s=(0.2, 0.2))

    async def story() -> None:
        quiet, beating = Client(venue.hub), Client(venue.hub)
        quiet.say(type="subscribe", channel="user", jwt=venue.token())
        beating.say(type="subscribe", channel="heartbeats")
        await until(lambda: quiet.messages("subscriptions") and beating.messages("subscriptions"))
        while quiet.closed is None:
            venue.hub._each_second(0, NOW_NS)
            venue.hub.tick()
            await asyncio.sleep(0.02)
        assert quiet.closed == 1001
        assert beating.closed is None
        await quiet.leave()
        await beating.leave()
        assert venue.hub.sessions == {}

    run(story)


def test_an_order_is_told_only_once_it_is_on_disk(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = Venue(folder, tmp_path)
    safe = asyncio.Event()

    async def synced() -> None:
        await safe.wait()

    async def story() -> None:
        monkeypatch.setattr(venue.exchange, "synced", synced)
        client = Client(venue.hub)
        client.say(type="subscribe", channel="user", jwt=venue.token())
        await until(lambda: client.messages("subscriptions"))
        venue.place("first")
        await asyncio.sleep(0.05)
        assert len(client.messages("user")) == 1
        safe.set()
        await until(lambda: len(client.messages("user")) == 2)
        assert client.messages("user")[1]["events"][0]["orders"][0]["client_order_id"] == "first"
        await client.leave()

    run(story)


def test_a_journal_that_cannot_be_written_ends_the_user_channel(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = Venue(folder, tmp_path)

    async def synced() -> None:
        raise OSError(28, "No space left on device")

    async def story() -> None:
        listening, other = Client(venue.hub), Client(venue.hub)
        listening.say(type="subscribe", channel="user", jwt=venue.token())
        other.say(type="subscribe", channel="heartbeats")
        await until(lambda: listening.messages("subscriptions") and other.messages("subscriptions"))
        monkeypatch.setattr(venue.exchange, "synced", synced)
        venue.place("lost")
        await until(lambda: listening.closed is not None)
        assert (listening.closed, other.closed, len(listening.messages("user"))) == (1011, None, 1)
        await listening.leave()
        await other.leave()

    run(story)


def test_what_fails_while_telling_never_fails_the_order(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    venue = Venue(folder, tmp_path)

    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    async def story() -> None:
        client = Client(venue.hub)
        client.say(type="subscribe", channel="user", jwt=venue.token())
        await until(lambda: client.messages("subscriptions"))
        monkeypatch.setattr(exchange_ws_shapes, "order", broken)
        venue.place("kept")
        await client.leave()

    run(story)
    assert venue.exchange.order_by_client_id("kept") is not None


def test_a_client_that_reads_nothing_is_let_go(folder: Path, tmp_path: Path) -> None:
    venue = Venue(folder, tmp_path)

    async def story() -> None:
        client = Client(venue.hub, blocked=True)
        client.say(type="subscribe", channel="heartbeats")
        await until(lambda: venue.hub.sessions and next(iter(venue.hub.sessions.values())).subscriptions)
        (session,) = venue.hub.sessions.values()
        for _ in range(QUEUE_MAX + 10):
            venue.hub._each_second(0, NOW_NS)
        assert session.ended
        assert session.outgoing.qsize() == 1
        await client.leave()

    run(story)


def test_a_changed_product_is_told_on_the_status_channel(folder: Path, tmp_path: Path) -> None:
    venue = Venue(folder, tmp_path)

    async def story() -> None:
        client = Client(venue.hub)
        client.say(type="subscribe", channel="status", product_ids=["BTC-USD"])
        await until(lambda: client.messages("subscriptions"))
        venue.exchange.set_product("BTC-USD", {"offline": True}, NOW_NS)
        await until(lambda: len(client.messages("status")) == 2)
        assert client.messages("status")[1]["events"][0]["products"][0]["status"] == "offline"
        await client.leave()

    run(story)


def test_connections_and_messages_of_an_address_are_limited(folder: Path, tmp_path: Path) -> None:
    venue = Venue(folder, tmp_path, limits=RateLimits(2, 3))

    async def story() -> None:
        clients = [Client(venue.hub) for _ in range(3)]
        stranger = Client(venue.hub, "10.0.0.2")
        await until(lambda: all(client.sent for client in [*clients, stranger]))
        answers = [client.sent[0] for client in [*clients, stranger]]
        assert [answer["type"] for answer in answers] == [
            "websocket.accept",
            "websocket.accept",
            "websocket.http.response.start",
            "websocket.accept",
        ]
        assert answers[2]["status"] == 429
        for _ in range(5):
            clients[0].say(type="subscribe", channel="heartbeats")
        await until(lambda: len(clients[0].messages()) == 5)
        errors = [message for message in clients[0].messages() if message.get("type") == "error"]
        assert errors == [{"type": "error", "message": "rate limit exceeded"}] * 2
        clients[0].say(type="subscribe", channel="user", jwt=venue.token())
        await until(lambda: clients[0].messages("user"))
        for client in (clients[0], clients[1], stranger):
            await client.leave()

    run(story)


def test_a_taped_product_that_is_traded_gets_its_price_from_the_tape(folder: Path, tmp_path: Path) -> None:
    book = {"type": "snapshot", "product_id": "BTC-USD", "asks": [["50010.00", "1"]], "bids": [["50000.00", "7"]]}
    path = tmp_path / "tape.ws"
    path.write_text(f"1618677817.0: {json.dumps(book)}\n")
    venue = Venue(folder, tmp_path, tape=read_tape(path))

    async def story() -> None:
        client = Client(venue.hub)
        client.say(type="subscribe", channel="ticker", product_ids=["BTC-USD"])
        await until(lambda: client.messages("subscriptions"))
        playing = asyncio.create_task(venue.hub.play())
        await until(lambda: len(client.messages("ticker")) > 1)
        assert client.messages("ticker")[1]["events"][0]["tickers"][0]["price"] == "50005.00"
        playing.cancel()
        await client.leave()

    run(story)
    assert venue.exchange.mid_ticks("BTC-USD", NOW_NS) == 5_000_500


def test_two_portfolios_that_meet_make_one_public_trade(folder: Path, tmp_path: Path) -> None:
    venue = Venue(folder, tmp_path)
    other = venue.exchange.open_portfolio("second", {"BTC": Decimal(1)}).portfolio_id
    venue.exchange.push_price("BTC-USD", 6_000_000, NOW_NS)

    def place(side: str, portfolio: str) -> None:
        configuration = {"limit_limit_gtc": {"base_size": "0.001", "limit_price": "60000.00"}}
        body = {"client_order_id": side, "product_id": "BTC-USD", "side": side}
        read = read_ticket(body | {"order_configuration": configuration}, NOW_NS)
        venue.exchange.place(read, NOW_NS, portfolio)

    async def story() -> None:
        client = Client(venue.hub)
        client.say(type="subscribe", channel="market_trades", product_ids=["BTC-USD"])
        await until(lambda: client.messages("subscriptions"))
        place("BUY", "")
        place("SELL", other)
        await until(lambda: len(client.messages("market_trades")) > 1)
        await asyncio.sleep(0.02)
        (update,) = client.messages("market_trades")[1:]
        (trade,) = update["events"][0]["trades"]
        # The side is the maker's, who was there first.
        assert (trade["side"], trade["price"], trade["size"]) == ("BUY", "60000.00", "0.00100000")
        await client.leave()

    run(story)
    assert len(venue.exchange.fills) == 2


NAMES = st.sampled_from(["BTC-USD", "ETH-USD", "NO-USD", "", "x" * 40])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["subscribe", "unsubscribe"]) | JSON,
        "channel": st.sampled_from(CHANNELS) | JSON,
        "product_ids": st.lists(NAMES, max_size=4) | JSON,
        "jwt": st.just("") | JSON,
    },
)


@given(requests=st.lists(REQUESTS | JSON, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_message_gets_an_answer_and_none_breaks_it(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, requests: list[Any]
) -> None:
    venue = Venue(folder, tmp_path_factory.mktemp("state"))

    async def story() -> None:
        client = Client(venue.hub)
        for request in requests:
            client.give(json.dumps(request))
        await until(
            lambda: (
                sum(m.get("type") == "error" or m["channel"] == "subscriptions" for m in client.messages())
                == len(requests)
            )
        )
        assert not [m for m in client.messages() if m.get("message") == "internal error"]
        numbers = [m["sequence_num"] for m in client.messages() if "channel" in m]
        assert numbers == list(range(len(numbers)))
        venue.hub.tick()
        venue.hub._each_second(10, NOW_NS)
        await client.leave()

    run(story)
