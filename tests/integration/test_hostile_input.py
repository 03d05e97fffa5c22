"""Hostile callers at the replicas' own port, over real sockets: a clear refusal each, nothing reserved, others served.

The orders application stands behind the listener the replicas use, on a real ledger, in this process.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest

from cluster.api_keys import READ
from cluster.ledger import Ledger
from cluster.processes import choose_ports
from cluster.risk import ORDER_BYTES_MAX
from conf.settings import RedisSettings, Settings
from serve_apps.listener import HEAD_BYTES_MAX, HEAD_TIMEOUT_S, LINGER_S, Listener
from serve_apps.orders import BODY_TIMEOUT_S, OrdersApp
from tests.api_desk import open_desk
from tests.books import Books
from tests.servers import redis_secrets

pytestmark = pytest.mark.anyio

ORDER: Final = {
    "client_order_id": "o-1",
    "account": "main",
    "strategy": "manual",
    "product_id": "BTC-USD",
    "side": "BUY",
    "type": "LIMIT",
    "quantity": "0.01",
    "limit_price": "90000",
}
BODY: Final = json.dumps(ORDER).encode()
# Nobody waits longer than this for an answer, whatever the others do.
PATIENCE_S: Final = 2.0
MB: Final = 1_000_000


# Stands in a request for the caller's valid key.
KEY: Final = b"{key}"


def head(method: str = "POST", target: str = "/v1/orders", *headers: str, key: str = KEY.decode()) -> bytes:
    """A request's head, up to and with the empty line."""
    lines = [f"{method} {target} HTTP/1.1", "host: desk", f"authorization: {key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def post(body: bytes, *headers: str, target: str = "/v1/orders") -> bytes:
    """A whole order request."""
    return head("POST", target, f"content-length: {len(body)}", *headers) + body


@dataclass
class Door:
    """The port, a key that may do everything, one that may only read, and the books behind it."""

    port: int
    key: str
    reader: str
    books: Books

    def keyed(self, request: bytes) -> bytes:
        """The request with the caller's key."""
        return request.replace(KEY, self.key.encode())

    async def ask(self, *pieces: bytes, pause_s: float = 0.0, hang_up: bool = False) -> Answer:
        """Send pieces, read one answer. Sending goes on while the answer is awaited, as a hostile caller's would."""
        pieces = (self.keyed(pieces[0]), *pieces[1:])
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        sending = asyncio.create_task(_send(writer, pieces, pause_s, hang_up))
        try:
            async with asyncio.timeout(30):
                return await _answer(reader)
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError, OSError):
                await sending
            await _closed(writer)

    async def is_well(self) -> bool:
        """Whether another caller is served."""
        async with asyncio.timeout(PATIENCE_S):
            answer = await self.ask(head("GET", "/v1/orders?account=main&limit=1"))
        return answer.status == 200


@dataclass(frozen=True)
class Answer:
    """Status and body; status None where the connection was closed without an answer."""

    status: int | None
    body: bytes = b""

    def problem(self) -> dict[str, Any]:
        """The problem document."""
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status, document
        return document


async def _send(writer: asyncio.StreamWriter, pieces: tuple[bytes, ...], pause_s: float, hang_up: bool) -> None:
    with suppress(OSError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
        if hang_up:
            writer.write_eof()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        while head.startswith(b"HTTP/1.1 100"):
            head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, OSError):
        return Answer(None)
    return Answer(int(head[9:12]), body)


@pytest.fixture(scope="module")
async def open_door(ledger_server: RedisSettings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Door]:
    """The listener, with an account that would accept ``ORDER``."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("desk"), redis=ledger_server)
    async with empty_ledger(settings) as ledger, open_desk(settings, ledger) as desk:
        await desk.open_account()
        (port,) = choose_ports(1)
        listener = Listener(OrdersApp(ledger, desk.app.state.desk.keys), port)
        await listener.open()
        await _until(lambda: _open(port))
        reader = (await desk.key([READ]))["authorization"]
        yield Door(port, desk.client.headers["authorization"], reader, Books(ledger))
        await listener.close()


@pytest.fixture
async def door(open_door: Door) -> AsyncIterator[Door]:
    """The listener, and the proof afterwards that nothing was reserved and others are served."""
    before = await open_door.books.keys()
    yield open_door
    assert await open_door.is_well()
    assert await open_door.books.keys() == before


@asynccontextmanager
async def empty_ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """As the fixture of this name, for longer than one test."""
    ledger = Ledger.connect(settings, redis_secrets())
    try:
        await ledger._direct("FLUSHALL")
        await ledger.install()
        yield ledger
    finally:
        await ledger.close()


async def _open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    await _closed(writer)
    return True


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def _until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# -- bodies ------------------------------------------------------------------------------------------------------------


def _with(field: str, literal: str | bytes) -> bytes:
    """The order with another literal in one place."""
    raw = literal.encode("utf-8", "surrogatepass") if isinstance(literal, str) else literal
    return json.dumps(ORDER | {field: "@"}).encode().replace(b'"@"', raw)


# What stands in the place of a number, between commas and as JSON would have it.
NUMBERS: Final = [
    *("NaN", "nan", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 40, "-0", "0.01", "1"),
    *("null", "true", "[]", "{}", '["0.01"]', '{"$numberDecimal":"0.01"}'),
    *('"NaN"', '"sNaN"', '"Infinity"', '"-inf"', '"1e400"', '"1e-400"', '"-0"', '"-0.0"', '"0"', '"+1"', '"-1"'),
    *(f'"{"9" * 40}"', f'"0.{"1" * 40}"', f'"{"0" * 40}1"', f'"{"1" * 10_000}"'),
    *('"\u0661"', '"\uff11"', '"\u00bd"', '"1\u2009000"', '"0,01"', '"0x10"', '"1_0"', '" 1"', '"one"', '""'),
    *('"1\\u0000"', '"1\\n"', '"\\u0661"'),
]
BODIES: Final[dict[str, bytes]] = {
    **{f"quantity {text[:30]}": _with("quantity", text) for text in NUMBERS},
    **{f"limit_price {text[:30]}": _with("limit_price", text) for text in NUMBERS},
    "nothing": b"",
    "a space": b" ",
    "NUL": b"\x00",
    "NUL behind": BODY + b"\x00",
    "NUL in a name": BODY.replace(b"side", b"si\x00de"),
    "NUL in the id": _with("client_order_id", '"o\\u00001"'),
    "utf-16": BODY.decode().encode("utf-16"),
    "utf-16-le": BODY.decode().encode("utf-16-le"),
    "utf-32": BODY.decode().encode("utf-32"),
    "latin-1": _with("strategy", '"manuel\xe9"'.encode("latin-1")),
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "overlong utf-8": _with("strategy", b'"manu\xc1\xa1l"'),
    "half a surrogate pair": _with("strategy", b'"manual\xed\xa0\xbd"'),
    "half a surrogate pair, escaped": _with("strategy", '"manual\\ud83d"'),
    "unicode digits in the id": _with("product_id", '"BTC-US\uff24"'),
    "a field named twice": BODY[:-1] + b',"quantity":"5"}',
    "a field named twice alike": BODY[:-1] + b',"side":"BUY"}',
    "a field named twice, escaped": BODY[:-1] + b',"quantit\\u0079":"5"}',
    "an unknown field": BODY[:-1] + b',"leverage":"5"}',
    "an unknown field of half a surrogate pair": BODY[:-1] + b',"\\ud83d":"5"}',
    "a prototype": BODY[:-1] + b',"__proto__":{}}',
    "in a list": b"[" + BODY + b"]",
    "two": BODY + BODY,
    "half": BODY[: len(BODY) // 2],
    "a comma too many": BODY[:-1] + b",}",
    "single quotes": BODY.replace(b'"', b"'"),
    "a comment": b"/* */" + BODY,
    "deep lists": b"[" * (ORDER_BYTES_MAX - 1),
    "deep objects": b'{"a":' * 3_000,
    "deep in a field": _with("quantity", b"[" * 7_000 + b"]" * 7_000),
    "deep in an unknown field": BODY[:-1] + b',"x":' + b"[" * 7_000 + b"]" * 7_000 + b"}",
    "many fields": b"{" + b",".join(b'"f%d":1' % n for n in range(1500)) + b"}",
    "a form": b"client_order_id=o-1&account=main&quantity=1",
    "xml": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><order>&a;</order>',
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03",
    "msgpack": b"\x88\xa8quantity\xa40.01",
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_order_is_a_400_that_names_what_is_wrong(door: Door, name: str) -> None:
    answer = await door.ask(post(BODIES[name]))
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (400, "INVALID_ORDER"), problem
    assert problem["field"].startswith("$")
    assert len(answer.body) < 3 * ORDER_BYTES_MAX


LARGE: Final[dict[str, tuple[str, ...]]] = {
    "content-length": (f"content-length: {10 * MB}",),
    "chunked": ("transfer-encoding: chunked",),
    "asked for first": (f"content-length: {10 * MB}", "expect: 100-continue"),
}


@pytest.mark.parametrize("name", LARGE)
async def test_ten_megabytes_are_413_and_the_sender_can_read_it(door: Door, name: str) -> None:
    piece = b"x" * 100_000
    pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) if name == "chunked" else piece] * 100
    answer = await door.ask(head("POST", "/v1/orders", *LARGE[name]), *pieces)
    assert (answer.status, answer.problem()["code"]) == (413, "BODY_TOO_LARGE")


async def test_one_byte_more_than_an_order_may_have_is_413(door: Door) -> None:
    answer = await door.ask(post(b" " * (ORDER_BYTES_MAX + 1)))
    assert (answer.status, answer.problem()["code"]) == (413, "BODY_TOO_LARGE")


# -- requests ----------------------------------------------------------------------------------------------------------

ODD: Final[dict[str, tuple[bytes, set[int | None]]]] = {
    # what is sent, what may come back (None: the connection is closed)
    **{
        f"method {method}": (head(method, "/v1/orders", "content-length: 0"), {405})
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY", "PROPFIND", "PURGE")
    },
    **{
        f"method {method} on one": (head(method, "/v1/orders/o-1?account=main"), {405})
        for method in ("PUT", "POST", "OPTIONS")
    },
    "an amendment of nothing": (head("PATCH", "/v1/orders/o-1?account=main"), {400}),
    "an amendment to nothing": (
        head("PATCH", "/v1/orders/o-1?account=main", "content-length: 38") + b'{"quantity": "0", "limit_price": "0.0"}',
        {400},
    ),
    "no method there is": (head("BUY"), {400}),
    "a method in small letters": (head("post"), {400}),
    "CONNECT": (head("CONNECT", "desk:443"), {400, 405, None}),
    "an account nobody has opened": (post(json.dumps(ORDER | {"account": "other"}).encode()), {404}),
    "what is no HTTP after a request": (head("PUT", "/v1/orders", "content-length: 0") + b"\x00\x01", {405}),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    "HTTP/2 without asking": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400}),
    "HTTP/0.9": (b"GET /v1/orders\r\n\r\n", {400, 401, None}),
    "HTTP/9.9": (post(BODY).replace(b"HTTP/1.1", b"HTTP/9.9"), {400}),
    "a websocket": (
        head("GET", "/v1/orders", "connection: upgrade", "upgrade: websocket", "sec-websocket-key: a"),
        {400},
    ),
    "no key": (post(BODY).replace(b"authorization", b"x-nothing"), {401}),
    "a key of NULs": (head("POST", key="Bearer \x00\x00"), {400}),
    "a key of other letters": (head("POST", key="Bearer tt_é_ü"), {401}),
    "a long key": (head("GET", key="Bearer " + "x" * 20_000), {401}),
    "two content-lengths": (post(BODY, f"content-length: {len(BODY)}"), {400}),
    "two content-lengths that differ": (post(BODY, "content-length: 3"), {400}),
    "a list of content-lengths": (
        head("POST", "/v1/orders", f"content-length: {len(BODY)}, {len(BODY)}") + BODY,
        {400},
    ),
    **{
        f"content-length {text[:12]!r}": (
            head("POST", "/v1/orders", f"content-length: {text}") + BODY,
            {400},
        )
        for text in ("-1", "+5", "0x10", "1e3", "", "five", "9" * 30, "18446744073709551617", "1 0", "\u0661")
    },
    "both lengths": (post(BODY, "transfer-encoding: chunked"), {400}),
    "an unknown coding": (
        head("POST", "/v1/orders", "transfer-encoding: gzip") + BODY,
        {400},
    ),
    "chunked and then another": (
        head("POST", "/v1/orders", "transfer-encoding: chunked, identity") + BODY,
        {400},
    ),
    **{
        f"chunk size {size!r}": (
            head("POST", "/v1/orders", "transfer-encoding: chunked") + size + b"\r\n" + BODY,
            {400},
        )
        for size in (b"-1", b"zz", b"", b"f" * 17, b"0x5", b" 5")
    },
    "a chunk longer than it says": (
        head("POST", "/v1/orders", "transfer-encoding: chunked") + b"5\r\n" + BODY + b"\r\n0\r\n\r\n",
        {400},
    ),
    "a header without a colon": (head("POST", "/v1/orders", "nothing") + BODY, {400}),
    "a space before the colon": (head("POST", "/v1/orders", "content-length : 5") + BODY, {400}),
    "a folded header": (head("POST", "/v1/orders", "x-a: b", " c: d") + BODY, {400}),
    "NUL in a header": (head("POST", "/v1/orders", "x-a: \x00") + BODY, {400}),
    "a bare carriage return": (head("POST", "/v1/orders", "x-a: b\rx-c: d") + BODY, {400}),
    "many headers": (head("GET", "/v1/orders", *["a: b"] * 40_000), {400, 431}),
    "a long header": (head("GET", "/v1/orders", "x-a: " + "b" * MB), {400, 431}),
    "a long path": (head("GET", "/v1/orders/" + "b" * MB), {400, 431}),
    "a long query": (head("GET", "/v1/orders?account=main&" + "a=b&" * 250_000), {400, 431}),
    "a query of many fields": (head("GET", "/v1/orders?account=main&" + "a=b&" * 2_000), {400}),
    "a limit of 5000 digits": (head("GET", f"/v1/orders?account=main&limit={'9' * 5000}"), {400}),
    **{
        f"limit {text}": (head("GET", f"/v1/orders?account=main&limit={text}"), {400})
        for text in ("0", "501", "-1", "1e2", "NaN", "%D9%A1", "%00", "", "1%00", "0x1")
    },
    **{
        f"status {text}": (head("GET", f"/v1/orders?account=main&status={text}"), {400})
        for text in ("", "OPEN", "open%00", "%ff")
    },
    "no account": (head("GET", "/v1/orders"), {400}),
    **{
        f"account {text[:20]}": (
            head("DELETE", f"/v1/orders/o-1?account={text}"),
            {400, 404},
        )
        for text in ("%00", "%ff", "%ed%a0%bd", "..%2f..", "main%7D", "x" * 5_000, "%F0%9F%92%A9", "*", "main%0d%0aa:b")
    },
    **{
        f"id {text[:20]}": (head("DELETE", f"/v1/orders/{text}?account=main"), {400, 404})
        for text in ("%00", "%ff", "%ed%a0%bd", "..%2f..%2f", "%2e%2e", "x" * 5_000, "%F0%9F%92%A9", "a%0d%0ab", "%")
    },
    "a path of other letters": (head("GET", "/v1/orders/é?account=main"), {400, 404}),
    "a target that is an address": (post(b"{}", target="http://elsewhere/v1/orders"), {400}),
    "a body that is shorter than it says, and an end": (
        head("POST", "/v1/orders", f"content-length: {len(BODY) + 1}") + BODY,
        {400, None},
    ),
}


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_request_is_refused(door: Door, name: str) -> None:
    request, allowed = ODD[name]
    answer = await door.ask(request, hang_up="an end" in name)
    assert answer.status in allowed, answer
    if answer.body.startswith(b"{"):
        assert answer.problem()["code"]


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/order", "/v1/ordersx", "/healthz", "//v1/orders", "/v1/orders/a/b"])
async def test_an_order_sent_anywhere_else_is_not_taken(door: Door, path: str) -> None:
    answer = await door.ask(post(BODY, target=path))
    assert answer.status in {400, 404, 405}, answer


async def test_no_damage_to_a_request_makes_more_of_it_than_a_refusal(door: Door) -> None:
    """Random bytes changed, dropped, repeated, inserted; with a key that may only read, for some are still orders."""
    draw = random.Random(7)
    whole = post(BODY).replace(KEY, door.reader.encode())
    requests = []
    for _ in range(300):
        request = bytearray(whole)
        for _ in range(draw.randint(1, 6)):
            start = draw.randrange(len(request))
            stop = min(len(request), start + draw.choice([0, 1, 1, 2, 10]))
            piece = draw.choice([b"", draw.randbytes(2), b"\r\n", b"\x00", b" ", bytes(request[start:]), b"9"])
            request[start:stop] = piece
        # What follows fills a body that was to be longer, and is no request of its own.
        requests.append(bytes(request) + b"\r\n\r\n" + b"z" * 4_000 + b"\r\n\r\n")
    answers = await asyncio.gather(*(door.ask(request) for request in requests))
    statuses = Counter(answer.status for answer in answers)
    assert {status for status in statuses if status is not None and not 400 <= status < 500} == set(), statuses
    # Most were refused for what they are, and some for who sends them.
    assert statuses[400] > 100, statuses
    assert statuses[403] > 10, statuses


# -- callers that keep a connection busy -------------------------------------------------------------------------------


def _drip(door: Door, text: bytes, pause_s: float) -> Awaitable[Answer]:
    return door.ask(*(bytes([byte]) for byte in text), pause_s=pause_s)


async def test_slow_callers_are_ended_and_hold_up_nobody(door: Door) -> None:
    """Each drips for far longer than it may; all at once, while others are served."""
    a_body = post(BODY + b" " * 200)
    split = len(a_body) - 200
    unknown = a_body.replace(KEY, b"Bearer of nothing")
    slow: dict[str, tuple[Awaitable[Answer], set[int | None]]] = {
        "a dripping body": (door.ask(a_body[:split], *([b" "] * 199), pause_s=0.1), {408}),
        "a body that never comes": (door.ask(a_body[:split]), {408}),
        "a dripping chunked body": (
            door.ask(head("POST", "/v1/orders", "transfer-encoding: chunked"), *([b"1\r\n \r\n"] * 200), pause_s=0.1),
            {408},
        ),
        "trailers without end": (
            door.ask(
                head("POST", "/v1/orders", "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n",
                *([b"x-a: b\r\n"] * 200),
                pause_s=0.1,
            ),
            {408},
        ),
        "a dripping head": (_drip(door, head("POST", "/v1/orders", "x-a: " + "b" * 200), 0.1), {408}),
        "a head that never ends": (door.ask(head()[:-2]), {408}),
        "a stranger's dripping body": (door.ask(unknown[:split], *([b" "] * 199), pause_s=0.1), {401}),
    }
    began = time.monotonic()
    answers = [asyncio.ensure_future(awaitable) for awaitable, _ in slow.values()]
    while not all(answer.done() for answer in answers):
        assert await door.is_well()
        await asyncio.sleep(0.1)
    assert time.monotonic() - began < max(BODY_TIMEOUT_S, HEAD_TIMEOUT_S) + PATIENCE_S
    for (name, (_, allowed)), answer in zip(slow.items(), answers, strict=True):
        assert answer.result().status in allowed, name


@pytest.mark.parametrize("key", ["a stranger", "a trader"])
async def test_the_rest_of_a_request_answered_early_is_not_awaited_for_ever(door: Door, key: str) -> None:
    """The answer came at once (401, 413); who goes on sending to that connection is cut off soon."""
    request = head("POST", "/v1/orders", f"content-length: {MB}") + b" " * (ORDER_BYTES_MAX + 1)
    request = request.replace(KEY, b"Bearer of nothing") if key == "a stranger" else request
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(door.keyed(request))
    assert (await _answer(reader)).status == (401 if key == "a stranger" else 413)
    dripping = asyncio.create_task(_send(writer, (b" ",) * 200, 0.1, hang_up=False))
    async with asyncio.timeout(LINGER_S + PATIENCE_S):
        with suppress(OSError):
            assert await reader.read() == b""
    dripping.cancel()
    await _closed(writer)


@pytest.mark.parametrize("part", ["path", "header", "headers", "trailers"])
async def test_a_flood_without_end_is_cut_off_long_before_it_fills_memory(door: Door, part: str) -> None:
    begin = {
        "path": b"GET /v1/orders/",
        "header": head("GET")[:-2] + b"x-a: ",
        "headers": head("GET")[:-2],
        "trailers": head("POST", "/v1/orders", "transfer-encoding: chunked") + b"2\r\n{}\r\n0\r\n",
    }[part]
    piece = (b"b" * 65_536) if part in {"path", "header"} else b"x-a: b\r\n" * 8_192
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(door.keyed(begin))
    sent = 0
    with suppress(OSError):
        while sent < 64 * MB and not reader.at_eof():
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
    await _closed(writer)
    assert sent < 32 * MB
    assert HEAD_BYTES_MAX < 64 * 1024


async def test_callers_that_hang_up_in_the_middle_leave_nothing(door: Door) -> None:
    """At every byte of a request, with a half-closed connection and with one that is gone."""
    request = post(BODY)
    for cut in range(1, len(request), 7):
        half_closed = await door.ask(request[:cut], hang_up=True)
        assert half_closed.status in {None, 400}
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(door.keyed(request[:cut]))
        writer.transport.abort()
        await _closed(writer)


async def test_a_thousand_requests_at_once_on_one_connection_are_answered_in_order(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    asked = [400, 405, 404]
    kinds = [post(b"{}"), head("PUT"), head("GET", "/v1/orders/none?account=main")]
    writer.write(door.keyed(b"".join(kinds[n % 3] for n in range(1000))))
    for n in range(1000):
        assert (await _answer(reader)).status == asked[n % 3]
    await _closed(writer)


async def test_many_idle_connections_hold_up_nobody(door: Door) -> None:
    idle = [await asyncio.open_connection("127.0.0.1", door.port) for _ in range(200)]
    assert await door.is_well()
    for _, writer in idle:
        await _closed(writer)
