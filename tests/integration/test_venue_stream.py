"""The venue's channels over real TLS against a server that misbehaves: nothing it does ends or disturbs the listener.

One test for each trap of the SDK's own client: certificates nobody trusts, silent closes, a socket that dies while a
message is read, errors that are no messages, and connections that are open but dead.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import json
import logging
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from cluster.exchange_keys import check_stream_token, open_credentials
from cluster.venue import EndpointError, Venue, VenueEndpoint, VenueNotFound, simulator_endpoint
from cluster.venue_stream import (
    Beat,
    Connected,
    Gap,
    Lost,
    OrderUpdate,
    Quote,
    StreamError,
    StreamEvent,
    VenueStream,
)

pytestmark = pytest.mark.anyio

WAIT_S = 20.0
SILENT_S = 0.4
TIME = "2026-09-05T21:52:10.940239371Z"
TICKER = {
    "product_id": "BTC-USD",
    "best_bid": "100",
    "best_ask": "101",
    "best_bid_quantity": "1",
    "best_ask_quantity": "2",
}


@dataclass
class Talk:
    """One connection as the server sees it."""

    connection: ServerConnection
    opened_s: float
    requests: list[dict[str, Any]] = field(default_factory=list)
    subscribed_s: float = 0.0
    sequence: int = 0

    async def say(self, channel: str, *events: Any, **changes: Any) -> None:
        """The next message of the sequence."""
        whole = {"channel": channel, "timestamp": TIME, "sequence_num": self.sequence, "events": list(events)}
        self.sequence += 1
        await self.connection.send(json.dumps(whole | changes))

    async def subscribed(self, count: int = 2) -> None:
        """Take subscriptions and confirm each, with all before it, as the venue does."""
        having: dict[str, list[str]] = {}
        for _ in range(count):
            request = json.loads(await self.connection.recv())
            self.subscribed_s = self.subscribed_s or time.monotonic()
            self.requests.append(request)
            having[request["channel"]] = request.get("product_ids", [request["channel"]])
            await self.say("subscriptions", {"subscriptions": having})

    async def quote(self, bid: str = "100") -> None:
        await self.say("ticker", {"type": "update", "tickers": [TICKER | {"best_bid": bid}]})

    async def beat_for_ever(self, every_s: float = 0.05) -> None:
        counter = 0
        while True:
            counter += 1
            await self.say("heartbeats", {"heartbeat_counter": counter})
            await asyncio.sleep(every_s)


Script = Callable[[Talk], Awaitable[None]]


async def well(talk: Talk) -> None:
    """A venue without faults."""
    await talk.subscribed()
    await talk.quote()
    await talk.beat_for_ever()


@dataclass
class Server:
    """A venue that follows one script a connection, the last one for ever."""

    host_port: str
    scripts: list[Script]
    talks: list[Talk] = field(default_factory=list)

    async def handle(self, connection: ServerConnection) -> None:
        talk = Talk(connection, time.monotonic())
        self.talks.append(talk)
        with suppress(ConnectionClosed):
            await self.scripts[min(len(self.talks), len(self.scripts)) - 1](talk)


def _marked(_: ServerConnection, __: Request, response: Response) -> Response:
    response.headers["X-Simulated"] = "1"
    return response


@asynccontextmanager
async def serving(folder: Path, *scripts: Script, marked: bool = True, **options: Any) -> AsyncIterator[Server]:
    credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(credentials.certificate_file, credentials.certificate_key_file)
    server = Server("", list(scripts))
    arguments: dict[str, Any] = {"ssl": tls, "ping_interval": None, "close_timeout": 0.2, "compression": None}
    arguments |= {"process_response": _marked if marked else None}
    async with serve(server.handle, "127.0.0.1", 0, **(arguments | options)) as running:
        server.host_port = f"127.0.0.1:{next(iter(running.sockets)).getsockname()[1]}"
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    open_credentials(tmp_path, dt.datetime.now(dt.UTC))
    return tmp_path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.venue_stream.BACKOFF_S", (0.01, 0.05))


@pytest.fixture
async def no_leftovers() -> AsyncIterator[None]:
    """No task of the stream or of its library is left when it has ended."""
    yield
    async with asyncio.timeout(5):
        while _ours():
            await asyncio.sleep(0.01)


def _ours() -> list[str]:
    """Where the tasks that are the stream's or the library's were written."""
    codes = [getattr(task.get_coro(), "cr_code", None) for task in asyncio.all_tasks()]
    files = [code.co_filename for code in codes if code is not None]
    return [name for name in files if "websockets" in name or Path(name).name == "venue_stream.py"]


def stream_to(
    host_port: str, folder: Path, channels: tuple[str, ...] = ("ticker",), silent_s: float = SILENT_S, **options: Any
) -> VenueStream:
    venue = Venue(simulator_endpoint(host_port, folder))
    return VenueStream(venue, channels, ["BTC-USD"], silent_s=silent_s, **options)


async def until(
    stream: VenueStream, done: Callable[[list[StreamEvent]], bool], then: Callable[[], Awaitable[None]] | None = None
) -> list[StreamEvent]:
    """Listen until ``done`` holds of all events, then close; the error names what came instead."""
    found: list[StreamEvent] = []
    try:
        async with asyncio.timeout(WAIT_S), aclosing(stream.events()) as events:  # type: ignore[type-var]
            async for event in events:
                found.append(event)
                if done(found):
                    break
    except TimeoutError:
        raise AssertionError(f"waited {WAIT_S:g} s, came: {found[-20:]}") from None
    finally:
        if then:
            await then()
    return found


def kinds(found: list[StreamEvent]) -> list[str]:
    """The story: names of events, repeats told once, beats left out."""
    names = [type(event).__name__ for event in found if not isinstance(event, Beat)]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def connections(found: list[StreamEvent]) -> list[int]:
    return [event.connection for event in found if isinstance(event, Connected)]


def has(kind: type, count: int = 1) -> Callable[[list[StreamEvent]], bool]:
    return lambda found: sum(isinstance(event, kind) for event in found) >= count


def open_sockets(host_port: str) -> int:
    """How many of this process's sockets lead to the server."""
    port = int(host_port.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port and each.status != "TIME_WAIT" for each in found)


# --- listening ---


@pytest.mark.usefixtures("no_leftovers")
async def test_what_the_venue_says_is_told_after_all_channels_are_subscribed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No proxy of the environment comes between.
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "wss_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving(folder, well) as server:
        found = await until(stream_to(server.host_port, folder), has(Beat, 2))
    assert kinds(found) == ["Connected", "Quote"]
    assert found[0] == Connected("market", 1)
    assert isinstance(found[1], Quote)
    assert (str(found[1].bid), str(found[1].ask_size)) == ("100", "2")


async def test_each_subscription_has_a_fresh_token_and_heartbeats_come_first_and_at_once(folder: Path) -> None:
    async with serving(folder, well) as server:
        await until(stream_to(server.host_port, folder, ("ticker", "ticker", "heartbeats")), has(Beat))
        (talk,) = server.talks
    assert [request["channel"] for request in talk.requests] == ["heartbeats", "ticker"]
    assert "product_ids" not in talk.requests[0]
    assert talk.requests[1]["product_ids"] == ["BTC-USD"]
    assert all(request["type"] == "subscribe" for request in talk.requests)
    keys = open_credentials(folder, dt.datetime.now(dt.UTC)).keys
    tokens = [request["jwt"] for request in talk.requests]
    assert len(set(tokens)) == 2
    assert {check_stream_token(token, keys, time.time()) for token in tokens} <= set(keys)
    assert talk.subscribed_s - talk.opened_s < 2


async def test_keys_of_both_kinds_sign_subscriptions(folder: Path) -> None:
    content = json.loads((folder / "cdp_key_ed25519.json").read_text())
    async with serving(folder, well) as server:
        name, secret = content["name"], SecretStr(content["privateKey"])
        endpoint = VenueEndpoint(server.host_port, name, secret, folder / "ca.pem", simulated=True)
        await until(VenueStream(Venue(endpoint), ["ticker"], ["BTC-USD"]), has(Connected))
        token = server.talks[0].requests[0]["jwt"]
    assert check_stream_token(token, open_credentials(folder, dt.datetime.now(dt.UTC)).keys, time.time()) == name


async def test_market_channels_need_no_key_and_then_carry_no_token(folder: Path) -> None:
    async with serving(folder, well) as server:
        endpoint = VenueEndpoint(server.host_port, ca_file=folder / "ca.pem", simulated=True)
        await until(VenueStream(Venue(endpoint), ["ticker"], ["BTC-USD"]), has(Connected))
        assert all("jwt" not in request for request in server.talks[0].requests)


async def test_the_user_channel_has_its_own_connection_and_tells_of_all_products(folder: Path) -> None:
    order = {
        "order_id": "v-1",
        "client_order_id": "mine-1",
        "product_id": "DOGE-USD",
        "status": "OPEN",
        "cumulative_quantity": "0",
        "avg_price": "0",
        "total_fees": "0",
    }

    async def either(talk: Talk) -> None:
        await talk.subscribed()
        if talk.requests[-1]["channel"] == "user":
            # As on Coinbase, the snapshot may come before the confirmation.
            await talk.say("user", {"type": "snapshot", "orders": [order]})
        await talk.beat_for_ever()

    def both(found: list[StreamEvent]) -> bool:
        return len(connections(found)) == 2 and has(OrderUpdate)(found)

    async with serving(folder, either) as server:
        found = await until(stream_to(server.host_port, folder, ("user", "ticker")), both)
        asked = sorted(tuple(sorted(r["channel"] for r in talk.requests)) for talk in server.talks)
        (user,) = [r for talk in server.talks for r in talk.requests if r["channel"] == "user"]
    assert asked == [("heartbeats", "ticker"), ("heartbeats", "user")]
    assert "product_ids" not in user
    assert {event.channel_group for event in found if isinstance(event, Connected)} == {"user", "market"}
    (update,) = [event for event in found if isinstance(event, OrderUpdate)]
    assert (update.product_id, update.snapshot) == ("DOGE-USD", True)


# --- connections that end, and ones that only seem to live ---


def closing(code: int) -> Script:
    async def script(talk: Talk) -> None:
        await talk.subscribed()
        await talk.quote()
        await talk.connection.close(code, "for a test")

    return script


async def cut(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    talk.connection.transport.abort()


async def cut_at_once(talk: Talk) -> None:
    talk.connection.transport.abort()


async def silence(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    await talk.connection.wait_closed()


async def noise(talk: Talk) -> None:
    """Garbage is no sign of life."""
    await talk.subscribed()
    await talk.quote()
    while True:
        await talk.connection.send("noise")
        await asyncio.sleep(0.05)


async def gap(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    talk.sequence += 3
    await talk.quote()
    await talk.beat_for_ever()


async def stuck(talk: Talk) -> None:
    """The same message for ever is no sign of life."""
    await talk.subscribed()
    await talk.quote()
    while True:
        await asyncio.sleep(0.1)
        talk.sequence -= 1
        await talk.quote()


async def back(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    talk.sequence -= 2
    await talk.quote()
    await talk.beat_for_ever()


async def reorder(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    talk.sequence += 1
    await talk.quote()
    talk.sequence -= 2
    await talk.quote()
    await talk.beat_for_ever()


async def huge(talk: Talk) -> None:
    await talk.subscribed()
    await talk.quote()
    await talk.connection.send("x" * 5 * 2**20)
    await talk.beat_for_ever()


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    ("script", "reason", "gaps"),
    [
        (closing(1000), "1000", []),
        (closing(1001), "1001", []),
        (closing(1011), "1011", []),
        (cut, "ConnectionClosed", []),
        (silence, "nothing heard", []),
        (noise, "nothing heard", []),
        (stuck, "nothing heard", []),
        (gap, "expected 3, got 6", [Gap(3, 6)]),
        (back, "expected 3, got 1", [Gap(3, 1)]),
        (reorder, "expected 3, got 4", [Gap(3, 4)]),
        (huge, "1009", []),
    ],
)
async def test_a_connection_that_is_of_no_more_use_is_told_and_replaced(
    folder: Path, script: Script, reason: str, gaps: list[Gap]
) -> None:
    async with serving(folder, script, script, well) as server:
        found = await until(stream_to(server.host_port, folder), lambda found: connections(found)[-1:] == [3])
        assert len(server.talks) == 3
    story = [name for name in kinds(found) if name != "StreamError"]
    once = ["Connected", "Quote", *(["Gap"] if gaps else []), "Lost"]
    assert story == [*once, *once, "Connected"]
    assert connections(found) == [1, 2, 3]
    lost = [event for event in found if isinstance(event, Lost)]
    assert all(reason in event.reason and event.channel_group == "market" for event in lost)
    assert [event for event in found if isinstance(event, Gap)] == gaps * 2


@pytest.mark.usefixtures("no_leftovers")
async def test_a_message_that_comes_twice_is_told_once_and_costs_no_connection(folder: Path) -> None:
    # It once counted as out of sequence: a venue that repeats half its messages was reconnected to all the time.
    async def twice(talk: Talk) -> None:
        await talk.subscribed()
        for bid in ("100", "101", "102"):
            await talk.quote(bid)
            talk.sequence -= 1
            await talk.quote(bid)
        await talk.beat_for_ever()

    async with serving(folder, twice) as server:
        found = await until(stream_to(server.host_port, folder), has(Beat, 3))
        assert len(server.talks) == 1
    assert connections(found) == [1]
    assert [event.bid for event in found if isinstance(event, Quote)] == [100, 101, 102]


@pytest.mark.usefixtures("no_leftovers")
async def test_one_groups_loss_does_not_touch_the_other(folder: Path) -> None:
    async def user_dies(talk: Talk) -> None:
        await talk.subscribed()
        if talk.requests[-1]["channel"] == "user":
            return
        await talk.beat_for_ever()

    async with serving(folder, user_dies) as server:
        found = await until(stream_to(server.host_port, folder, ("ticker", "user")), has(Lost, 3))
        markets = [talk for talk in server.talks if talk.requests[-1:] and talk.requests[-1]["channel"] == "ticker"]
        assert len(markets) == 1
    assert {event.channel_group for event in found if isinstance(event, Lost)} == {"user"}


async def test_channels_the_venue_does_not_confirm_are_not_taken_for_subscribed(folder: Path) -> None:
    async def half(talk: Talk) -> None:
        await talk.subscribed(1)
        await talk.connection.recv()
        await talk.connection.send('{"type":"error","message":"authentication failure"}')
        await talk.beat_for_ever()

    async with serving(folder, half, well) as server:
        stream = stream_to(server.host_port, folder, open_timeout_s=0.5)
        found = await until(stream, has(Connected))
    assert kinds(found) == ["StreamError", "Lost", "Connected"]
    (lost,) = [event for event in found if isinstance(event, Lost)]
    assert lost.reason == "not subscribed within 0.5 s: ticker"
    assert StreamError("authentication failure") in found


async def test_a_channel_that_speaks_is_subscribed_even_if_nobody_says_so(folder: Path) -> None:
    async def mute(talk: Talk) -> None:
        await talk.connection.recv()
        await talk.connection.recv()
        await talk.quote()
        await talk.beat_for_ever()

    async with serving(folder, mute) as server:
        found = await until(stream_to(server.host_port, folder), has(Quote))
    assert kinds(found) == ["Connected", "Quote"]


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(
    "raw",
    [
        '{"type":"error","message":"something","reason":"or other"}',
        '{"type":"error"}',
        "not JSON",
        "<html>",
        "[]",
        "{}",
        b"\xff\xfe\x00binary",
        b"{}",
        '{"channel":"from_tomorrow"}',
        '{"channel":"ticker","sequence_num":"x"}',
        "[" * 50_000,
        "",
    ],
)
async def test_what_cannot_be_read_is_told_and_the_connection_goes_on(folder: Path, raw: str | bytes) -> None:
    async def odd(talk: Talk) -> None:
        await talk.subscribed()
        await talk.connection.send(raw)
        await talk.say("from_tomorrow", {"a": 1})
        await talk.say("ticker", {"tickers": [TICKER | {"best_bid": "NaN"}]})
        await talk.quote()
        await talk.beat_for_ever()

    async with serving(folder, odd) as server:
        found = await until(stream_to(server.host_port, folder), has(Quote))
        assert len(server.talks) == 1
    assert kinds(found) == ["Connected", "StreamError", "Quote"]
    assert sum(isinstance(event, StreamError) for event in found) == 2


async def test_text_that_is_not_utf_8_ends_nothing(folder: Path) -> None:
    async def odd(talk: Talk) -> None:
        await talk.subscribed()
        async with talk.connection.send_context():
            talk.connection.protocol.send_text(b'{"channel":"\xff\xfe"}')
        await talk.quote()
        await talk.beat_for_ever()

    async with serving(folder, odd) as server:
        found = await until(stream_to(server.host_port, folder), has(Quote))
    assert kinds(found)[-1] == "Quote"
    assert kinds(found)[1] in {"StreamError", "Lost"}


# --- strangers ---


def strange_certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A certificate for ``name`` that signs itself; its PEM file is ``strange.pem``."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    with suppress(ValueError):
        names = [x509.IPAddress(ipaddress.ip_address(name))]
        return _written(folder, key, subject, now, names)
    return _written(folder, key, subject, now, [x509.DNSName(name)])


def _written(
    folder: Path, key: ec.EllipticCurvePrivateKey, subject: x509.Name, now: dt.datetime, names: list[Any]
) -> ssl.SSLContext:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=2))
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    pem = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    formats = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "strange.pem").write_bytes(pem)
    (folder / "strange_key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, *formats))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(folder / "strange.pem", folder / "strange_key.pem")
    return tls


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("example.org", True)])
async def test_a_certificate_nobody_trusts_or_of_another_host_is_refused_and_no_token_leaves(
    folder: Path, tmp_path: Path, name: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = strange_certificate(tmp_path, name)
    # What the environment trusts must not matter.
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "strange.pem"))
    async with serving(folder, well, ssl=tls) as server:
        own = simulator_endpoint(server.host_port, folder)
        ca = tmp_path / "strange.pem" if trusted else own.ca_file
        endpoint = VenueEndpoint(server.host_port, own.key_name, own.key_secret, ca, simulated=True)
        found = await until(VenueStream(Venue(endpoint), ["user"], []), has(Lost, 2))
        assert server.talks == []
    assert kinds(found) == ["Lost"]
    assert all("SSLCertVerificationError" in event.reason for event in found if isinstance(event, Lost))


async def test_the_same_certificate_is_taken_where_it_is_trusted_and_fits(folder: Path, tmp_path: Path) -> None:
    tls = strange_certificate(tmp_path, "127.0.0.1")
    async with serving(folder, well, ssl=tls) as server:
        own = simulator_endpoint(server.host_port, folder)
        ca = tmp_path / "strange.pem"
        endpoint = VenueEndpoint(server.host_port, own.key_name, own.key_secret, ca, simulated=True)
        await until(VenueStream(Venue(endpoint), ["ticker"], ["BTC-USD"]), has(Connected))


async def test_a_venue_that_does_not_say_it_is_simulated_gets_no_token(folder: Path) -> None:
    async with serving(folder, well, marked=False) as server:
        found = await until(stream_to(server.host_port, folder), has(Lost, 2))
        assert [talk.requests for talk in server.talks[:2]] == [[], []]
    assert all("not simulated" in event.reason for event in found if isinstance(event, Lost))


async def test_a_redirect_is_not_followed(folder: Path) -> None:
    async with serving(folder, well) as elsewhere:

        def moved(connection: ServerConnection, _: Request) -> Response:
            response = connection.respond(302, "")
            response.headers["Location"] = f"wss://{elsewhere.host_port}/"
            return response

        async with serving(folder, well, process_request=moved) as server:
            found = await until(stream_to(server.host_port, folder), has(Lost, 2))
        assert elsewhere.talks == []
    assert all("302" in event.reason for event in found if isinstance(event, Lost))


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("then", ["nothing", "close", "http"])
async def test_a_host_that_is_no_venue_costs_the_time_to_open_and_no_more(folder: Path, then: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if then == "nothing":
            await reader.read()
        elif then == "http":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await writer.drain()
        writer.close()

    credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(credentials.certificate_file, credentials.certificate_key_file)
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls)
    async with server:
        host_port = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        began_s = time.monotonic()
        found = await until(stream_to(host_port, folder, open_timeout_s=0.3), has(Lost, 2))
        assert time.monotonic() - began_s < 5
    assert kinds(found) == ["Lost"]
    assert all(event.reason.startswith("not connected: ") for event in found if isinstance(event, Lost))


async def test_a_venue_that_is_away_is_waited_for_as_long_as_it_takes(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    stream = stream_to(f"127.0.0.1:{port}", folder)
    events = stream.events()
    async with asyncio.timeout(WAIT_S):
        for _ in range(5):
            event = await anext(events)
            assert isinstance(event, Lost)
            assert "not connected" in event.reason
        credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(credentials.certificate_file, credentials.certificate_key_file)
        server = Server("", [well])
        async with serve(server.handle, "127.0.0.1", port, ssl=tls, process_response=_marked):
            while not isinstance(await anext(events), Connected):
                pass
            await stream.close()
    assert [event async for event in events] == []


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_the_venue_does_in_whatever_order_it_is_listened_to_again(folder: Path, seed: int) -> None:
    chance = random.Random(seed)

    async def chaos(talk: Talk) -> None:
        if chance.random() < 0.2:
            return
        await talk.subscribed(chance.choice([1, 2, 2, 2]))
        for _ in range(chance.randrange(12)):
            await _something(talk, chance)
        await chance.choice([talk.connection.close, talk.connection.wait_closed, _nothing])()

    async with serving(folder, *[chaos] * 12, well) as server:
        stream = stream_to(server.host_port, folder, silent_s=0.2, open_timeout_s=0.4)

        def recovered(found: list[StreamEvent]) -> bool:
            return len(server.talks) == 13 and isinstance(found[-1], Quote)

        found = await until(stream, recovered)
        assert await _gone(server.host_port)
    connected = False
    for event in found:
        if isinstance(event, Connected | Lost):
            assert not (connected and isinstance(event, Connected))
            connected = isinstance(event, Connected)
        # What is told between connections is never a price.
        assert connected or not isinstance(event, Quote | Beat)
    numbers = connections(found)
    assert numbers == sorted(set(numbers))


async def _something(talk: Talk, chance: random.Random) -> None:
    """A message as it should be, or one of everything that can go wrong with it."""
    what = chance.randrange(9)
    if what < 3:
        await talk.quote()
    elif what == 3:
        garbage: list[str | bytes] = ["noise", b"\xff\xfe", "{}", '{"type":"error","message":"x"}', "[1]"]
        await talk.connection.send(chance.choice(garbage))
    elif what == 4:
        await talk.say(chance.choice(["status", "user", "ticker", "subscriptions"]), chance.choice([{}, 5, None]))
    elif what == 5:
        talk.sequence += chance.choice([0, 0, 1, -1, 10**18])
    elif what == 6:
        await asyncio.sleep(chance.choice([0, 0.01, 0.1, 0.3]))
    elif what == 7 and chance.random() < 0.3:
        talk.connection.transport.abort()
    else:
        await talk.say("heartbeats", {"heartbeat_counter": 1})


async def _nothing() -> None:
    """The handler ends, and the library closes with 1000."""


def test_it_is_all_the_same_on_the_loop_serve_uses(folder: Path) -> None:
    async def story() -> None:
        async with serving(folder, cut, gap, silence, well) as server:
            found = await until(stream_to(server.host_port, folder), lambda found: connections(found)[-1:] == [4])
            assert kinds(found)[-2:] == ["Lost", "Connected"]
            assert await _gone(server.host_port)

    uvloop.run(story())


# --- those who listen ---


@pytest.mark.usefixtures("no_leftovers")
async def test_closing_ends_the_events_and_leaves_no_task_and_no_socket(folder: Path) -> None:
    async with serving(folder, well) as server:
        stream = stream_to(server.host_port, folder, ("ticker", "user"))
        found: list[StreamEvent] = []

        both = asyncio.Event()

        async def listen() -> None:
            async for event in stream.events():
                found.append(event)
                if has(Connected, 2)(found):
                    both.set()

        listening = asyncio.create_task(listen())
        await asyncio.wait_for(both.wait(), WAIT_S)
        assert open_sockets(server.host_port) == 2
        began_s = time.monotonic()
        await stream.close()
        await stream.close()
        assert time.monotonic() - began_s < 2
        await asyncio.wait_for(listening, 5)
        assert open_sockets(server.host_port) == 0
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("venue")]
    assert [event async for event in stream.events()] == []


async def _listen(stream: VenueStream) -> list[StreamEvent]:
    return [event async for event in stream.events()]


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("deaf", [False, True])
async def test_cancelling_whoever_listens_leaves_no_task_and_no_socket(folder: Path, deaf: bool) -> None:
    held = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.subscribed()
        if deaf:
            # A venue that reads nothing any more, not even a goodbye.
            talk.connection.transport.pause_reading()
            await held.wait()
            talk.connection.transport.abort()
        await talk.beat_for_ever()

    async with serving(folder, script) as server:
        connected = asyncio.Event()

        async def listen() -> None:
            async for event in stream_to(server.host_port, folder, silent_s=10).events():
                if isinstance(event, Connected):
                    connected.set()

        listening = asyncio.create_task(listen())
        await asyncio.wait_for(connected.wait(), WAIT_S)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(listening, 5)
        assert await _gone(server.host_port)
        held.set()


async def _gone(host_port: str) -> bool:
    async with asyncio.timeout(5):
        while open_sockets(host_port):
            await asyncio.sleep(0.02)
    return True


@pytest.mark.usefixtures("no_leftovers")
async def test_closing_while_it_connects_leaves_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host_port = f"127.0.0.1:{silent.getsockname()[1]}"
        stream = stream_to(host_port, folder)
        listening = asyncio.create_task(_listen(stream))
        async with asyncio.timeout(WAIT_S):
            while not open_sockets(host_port):
                await asyncio.sleep(0.01)
        await asyncio.wait_for(stream.close(), 5)
        assert await asyncio.wait_for(listening, 5) == []
        assert await _gone(host_port)


async def test_a_stream_closed_before_it_is_listened_to_makes_no_connection(folder: Path) -> None:
    async with serving(folder, well) as server:
        stream = stream_to(server.host_port, folder)
        await stream.close()
        assert [event async for event in stream.events()] == []
        assert server.talks == []


@pytest.mark.usefixtures("no_leftovers")
async def test_an_error_of_whoever_listens_is_its_own_and_ends_the_connections(folder: Path) -> None:
    async with serving(folder, well) as server:

        async def fail() -> None:
            async with aclosing(stream_to(server.host_port, folder).events()) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Quote):
                        raise KeyError("channel")

        with pytest.raises(KeyError, match="channel"):
            await asyncio.wait_for(fail(), WAIT_S)
        assert await _gone(server.host_port)


async def test_a_stream_is_listened_to_once(folder: Path) -> None:
    async with serving(folder, well) as server:
        stream = stream_to(server.host_port, folder)
        events = stream.events()
        await anext(events)
        with pytest.raises(RuntimeError, match="once"):
            await anext(stream.events())
        # The first is not disturbed by the second.
        assert await anext(events)
        await stream.close()


@pytest.mark.usefixtures("no_leftovers")
async def test_a_failure_of_our_own_is_told_and_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = iter([RuntimeError("not now"), KeyError("channel")])
    real = Venue.stream_token

    def token(venue: Venue) -> str:
        if (error := next(failures, None)) is not None:
            raise error
        return real(venue)

    monkeypatch.setattr(Venue, "stream_token", token)
    async with serving(folder, well) as server:
        found = await until(stream_to(server.host_port, folder), has(Connected))
    assert [event.reason for event in found if isinstance(event, Lost)] == [
        "RuntimeError: not now",
        "KeyError: 'channel'",
    ]


async def test_a_slow_listener_is_not_a_silent_venue_and_misses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.venue_stream.EVENTS_WAITING_MAX", 3)

    async def many(talk: Talk) -> None:
        await talk.subscribed()
        for bid in range(1, 101):
            await talk.quote(str(bid))
        await talk.beat_for_ever()

    async with serving(folder, many) as server:
        stream = stream_to(server.host_port, folder)
        events = stream.events()
        assert isinstance(await anext(events), Connected)
        await asyncio.sleep(SILENT_S * 3)
        bids = []
        async with asyncio.timeout(WAIT_S):
            async for event in events:
                assert isinstance(event, Quote | Beat)
                if isinstance(event, Beat):
                    break
                bids.append(int(event.bid))
        await stream.close()
    assert bids == list(range(1, 101))


async def test_a_process_that_was_held_up_does_not_blame_the_venue(folder: Path) -> None:
    async with serving(folder, well) as server:
        stream = stream_to(server.host_port, folder)
        events = stream.events()
        while not isinstance(await anext(events), Beat):
            pass
        for _ in range(3):
            time.sleep(SILENT_S * 1.5)
            assert isinstance(await asyncio.wait_for(anext(events), 5), Beat)
        await stream.close()
        assert len(server.talks) == 1


async def test_tokens_are_in_no_log_however_much_is_logged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(folder, closing(1011), well) as server:
        # The server of this test logs what it receives; only the client's side counts.
        logging.getLogger("websockets.server").setLevel(logging.WARNING)
        await until(stream_to(server.host_port, folder), lambda found: connections(found) == [1, 2])
        tokens = [request["jwt"] for talk in server.talks for request in talk.requests]
    assert len(tokens) >= 2
    assert not [record for record in caplog.records if "eyJ" in record.getMessage()]


# --- what is refused before anything is sent ---


def test_what_cannot_be_listened_to_is_refused_at_once(folder: Path) -> None:
    key = simulator_endpoint("127.0.0.1:1", folder)
    without = VenueEndpoint("127.0.0.1:1", ca_file=folder / "ca.pem", simulated=True)
    sandbox = VenueEndpoint("api-sandbox.coinbase.com", "me", key.key_secret)
    with pytest.raises(EndpointError, match="key_name"):
        VenueStream(Venue(without), ["user"], [])
    with pytest.raises(EndpointError, match="no channels"):
        VenueStream(Venue(sandbox), ["ticker"], ["BTC-USD"])
    with pytest.raises(VenueNotFound):
        VenueStream(Venue(key), ["ticker"], ["BTC/USD"])
    with pytest.raises(ValueError, match="at least one"):
        VenueStream(Venue(key), [], ["BTC-USD"])


@pytest.fixture(autouse=True)
def server_log() -> Iterator[None]:
    level = logging.getLogger("websockets.server").level
    yield
    logging.getLogger("websockets.server").setLevel(level)
