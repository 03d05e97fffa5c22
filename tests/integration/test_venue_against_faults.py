"""The venue against a server that misbehaves over real TLS: every fault becomes the right one of our errors.

The rule shown here is the one execution builds on: after ``create_order`` only ``VenueUnknown`` leaves doubt, and what
leaves doubt was sent exactly once.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.exchange_keys import open_credentials
from cluster.venue import (
    EndpointError,
    Venue,
    VenueEndpoint,
    VenueError,
    VenueGarbage,
    VenueNotFound,
    VenueRejected,
    VenueThrottled,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
    check_key,
    simulator_endpoint,
)
from strategies.model import Granularity, Order, OrderType, Side, TimeInForce

ORDER = Order("mine-1", "main", "manual", "BTC-USD", Side.BUY, OrderType.MARKET, TimeInForce.IOC, Decimal("0.1"))
ACCEPTED = {"success": True, "success_response": {"order_id": "v-1", "client_order_id": "mine-1"}}
TIMEOUT_S = 0.5


def http(status: int, body: Any, kind: str = "application/json", simulated: bool = True, **headers: str) -> bytes:
    """A whole HTTP answer."""
    payload = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {kind}", f"Content-Length: {len(payload)}"]
    lines += ["X-Simulated: 1"] if simulated else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + payload


# Its head comes at once, its body never ends.
CUT_BODY = http(200, {"padding": " " * 2_000})


class FaultyServer:
    """Answers every request with what ``script`` says next (its last entry for ever): bytes, or an action."""

    def __init__(self, folder: Path) -> None:
        credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(credentials.certificate_file, credentials.certificate_key_file)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.script: list[bytes | str] = []
        self.requests: list[bytes] = []
        self._released = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def host_port(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def stop(self) -> None:
        self._released.set()
        for each in [self._listener, *self._connections]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, raw: socket.socket) -> None:
        raw.settimeout(5)
        with raw, contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as connection:
            self._connections.append(connection)
            while request := _read_request(connection):
                self.requests.append(request)
                answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                if answer == "hang":
                    self._released.wait(10)
                    return
                if answer == "reset":
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    return
                if isinstance(answer, str) and answer.startswith("drip"):
                    self._drip(connection, http(200, ACCEPTED) if answer == "drip" else CUT_BODY)
                    return
                if isinstance(answer, str):
                    return
                connection.sendall(answer)

    def _drip(self, connection: ssl.SSLSocket, answer: bytes) -> None:
        """Send on and on, a few bytes at a time, each well within any time-out for a read."""
        for begin in range(0, len(answer), 4):
            connection.sendall(answer[begin : begin + 4])
            if self._released.wait(TIMEOUT_S / 3):
                return


def _read_request(connection: ssl.SSLSocket) -> bytes:
    content = b""
    while b"\r\n\r\n" not in content:
        chunk = connection.recv(65_536)
        if not chunk:
            return b""
        content += chunk
    head, _, body = content.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += connection.recv(65_536)
    return head + b"\r\n\r\n" + body


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    made = FaultyServer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def venue(server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Venue]:
    monkeypatch.setattr("cluster.venue._BACKOFF_S", (0.01, 0.01))
    made = Venue(simulator_endpoint(server.host_port, tmp_path, timeout_s=TIMEOUT_S))
    yield made
    made.close()


HTML = http(200, "<html><body>Just a moment…</body></html>", "text/html")
CUT = http(200, ACCEPTED)[:-10]
PRIVATE_READ: Callable[[Venue], Any] = Venue.accounts
PUBLIC_READ: Callable[[Venue], Any] = Venue.server_time_ns


@pytest.mark.parametrize(
    "answer",
    [
        "hang",
        "close",
        "reset",
        "drip",
        "drip-body",
        CUT,
        HTML,
        http(200, b""),
        http(200, b"\xff\xfe"),
        http(200, "null"),
        http(200, "[]"),
        http(200, "5"),
        http(200, {}),
        http(200, {"success": True}),
        http(200, {"success": "yes", "success_response": {"order_id": "v-1"}}),
        http(200, {"success": True, "success_response": {"order_id": "v-1", "client_order_id": "other"}}),
        http(200, ACCEPTED, simulated=False),
        http(301, "", Location="https://127.0.0.1:1/"),
        http(302, "", Location="/api/v3/brokerage/time"),
        http(408, {}),
        http(409, {}),
        http(500, {"error": "INTERNAL"}),
        http(502, "<html>Bad gateway</html>", "text/html"),
        http(503, ""),
        http(504, ""),
        b"not even HTTP\r\n\r\n",
    ],
)
def test_an_order_without_a_clear_answer_is_in_doubt_and_was_sent_once(
    venue: Venue, server: FaultyServer, answer: bytes | str
) -> None:
    server.script = [answer]
    with pytest.raises(VenueUnknown):
        venue.create_order(ORDER)
    assert len(server.requests) == 1
    assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["client_order_id"] == "mine-1"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http(200, {"success": False, "error_response": {"error": "INSUFFICIENT_FUND"}}), VenueRejected),
        (http(200, {"success": False}), VenueRejected),
        (http(400, {"error": "INVALID_ARGUMENT", "message": "no"}), VenueRejected),
        (http(400, "<html>"), VenueRejected),
        (http(404, {"error": "NOT_FOUND"}), VenueRejected),
        (http(422, {}), VenueRejected),
        (http(401, "Unauthorized\n", "text/plain"), VenueUnauthorised),
        (http(403, '{"error_details":"Missing required scopes"}'), VenueUnauthorised),
        (http(429, {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]}), VenueThrottled),
    ],
)
def test_an_order_the_venue_surely_did_not_take_is_not_in_doubt(
    venue: Venue, server: FaultyServer, answer: bytes, error: type[VenueError]
) -> None:
    server.script = [answer]
    with pytest.raises(error) as raised:
        venue.create_order(ORDER)
    assert not isinstance(raised.value, VenueUnknown)
    # The SDK's error would bring frames along that hold the token.
    assert isinstance(raised.value.__context__, VenueError | type(None))
    assert len(server.requests) == 1


def test_a_kept_connection_that_the_server_dropped_leaves_doubt_and_no_second_order(
    venue: Venue, server: FaultyServer
) -> None:
    server.script = [http(200, ACCEPTED), "close"]
    assert venue.create_order(ORDER) == "v-1"
    with pytest.raises(VenueUnknown):
        venue.create_order(ORDER)
    assert len(server.requests) == 2


def test_a_cancel_without_a_clear_answer_is_in_doubt(venue: Venue, server: FaultyServer) -> None:
    for answer in ("close", HTML, http(500, {}), http(200, {}), http(200, {"results": []})):
        server.script = [answer]
        with pytest.raises(VenueUnknown):
            venue.cancel(["v-1"])


# --- edits and previews ---

LISTED = {
    "order_id": "v-1",
    "client_order_id": "mine-1",
    "product_id": "BTC-USD",
    "side": "BUY",
    "status": "OPEN",
    "filled_size": "0",
    "average_filled_price": "0",
    "total_fees": "0",
    "created_time": "2026-01-01T00:00:00Z",
}


def listed(**configuration: str) -> bytes:
    whole = {"base_size": "2", "limit_price": "100", "post_only": False} | configuration
    return http(200, {"order": LISTED | {"order_configuration": {"limit_limit_gtc": whole}}})


def edit(venue: Venue) -> None:
    venue.edit("v-1", Decimal("2.0"), Decimal(100))


def test_an_edit_is_sent_once_with_what_the_order_shall_be(venue: Venue, server: FaultyServer) -> None:
    server.script = [http(200, {"success": True, "errors": []})]
    venue.edit("v-1", Decimal("2.50"), Decimal("1E+2"), Decimal(90))
    edit(venue)
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    assert bodies[0] == {"order_id": "v-1", "size": "2.5", "price": "100", "stop_price": "90"}
    assert bodies[1] == {"order_id": "v-1", "size": "2", "price": "100"}


@pytest.mark.parametrize(
    "answer",
    ["close", "hang", "reset", HTML, http(200, {}), http(200, {"success": "yes"}), http(500, {}), http(409, {})],
)
def test_an_edit_without_a_clear_answer_is_in_doubt_and_was_sent_once(
    venue: Venue, server: FaultyServer, answer: bytes | str
) -> None:
    server.script = [answer]
    with pytest.raises(VenueUnknown):
        edit(venue)
    assert len(server.requests) == 1


REFUSED = {"success": False, "errors": [{"edit_failure_reason": "CANNOT_EDIT_TO_BELOW_FILLED_SIZE"}]}
EQUAL = http(200, {"success": False, "errors": [{"edit_failure_reason": "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"}]})


@pytest.mark.parametrize(
    ("answer", "error", "code"),
    [
        (http(200, REFUSED), VenueRejected, "CANNOT_EDIT_TO_BELOW_FILLED_SIZE"),
        (http(404, {"error": "NOT_FOUND"}), VenueRejected, "HTTP_404"),
        (http(400, {"error": "INVALID_ARGUMENT"}), VenueRejected, "INVALID_ARGUMENT"),
        (http(401, ""), VenueUnauthorised, ""),
        (http(429, {}), VenueThrottled, ""),
    ],
)
def test_an_edit_the_venue_surely_did_not_make_is_not_in_doubt(
    venue: Venue, server: FaultyServer, answer: bytes, error: type[VenueError], code: str
) -> None:
    server.script = [answer]
    with pytest.raises(error) as raised:
        edit(venue)
    assert getattr(raised.value, "code", "") == code


def test_an_edit_repeated_after_doubt_is_done_if_the_order_is_as_it_was_to_be(
    venue: Venue, server: FaultyServer
) -> None:
    server.script = [EQUAL, listed()]
    edit(venue)
    for other in (listed(base_size="3"), listed(limit_price="101"), http(200, {"order": LISTED})):
        server.script = [EQUAL, other]
        with pytest.raises(VenueRejected, match="EQUAL_TO_ORIGINAL"):
            edit(venue)
    server.script = [EQUAL, http(404, {})]
    with pytest.raises(VenueUnknown):
        edit(venue)


@pytest.mark.parametrize("wrong", [Decimal(0), Decimal(-1), Decimal("NaN"), Decimal("Infinity"), Decimal("1E+30")])
def test_an_edit_that_makes_no_sense_is_not_sent(venue: Venue, server: FaultyServer, wrong: Decimal) -> None:
    good = Decimal(1)
    for amounts in ((wrong, good, None), (good, wrong, None), (good, good, wrong)):
        with pytest.raises(VenueRejected, match="INVALID_ORDER"):
            venue.edit("v-1", *amounts)
    with pytest.raises(VenueNotFound):
        venue.edit("../v-1", good, good)
    assert server.requests == []


def test_a_preview_is_asked_again_and_places_nothing(venue: Venue, server: FaultyServer) -> None:
    preview = {"order_total": "10", "commission_total": "0.1", "errs": ["PREVIEW_X"], "warning": []}
    preview |= {"base_size": "0.1", "best_bid": "99", "best_ask": "100"}
    server.script = ["close", http(503, {}), http(200, preview)]
    found = venue.preview(ORDER)
    assert (found.notional, found.fee, found.errors) == (Decimal(10), Decimal("0.1"), ("PREVIEW_X",))
    assert {request.split(b" ")[1] for request in server.requests} == {b"/api/v3/brokerage/orders/preview"}
    assert b"client_order_id" not in server.requests[-1]
    server.script = ["close"]
    with pytest.raises(VenueUnavailable):
        venue.preview(ORDER)


# --- answers about something else ---


def test_an_answer_about_another_order_or_product_is_garbage(venue: Venue, server: FaultyServer) -> None:
    server.script = [listed()]
    assert venue.order("v-1").quantity == Decimal(2)
    with pytest.raises(VenueGarbage, match="about another"):
        venue.order("v-2")
    book = {"product_id": "ETH-USD", "bids": [], "asks": [], "time": "2026-01-01T00:00:00Z"}
    server.script = [http(200, {"pricebook": book})]
    assert venue.product_book("ETH-USD", 5).bids == ()
    with pytest.raises(VenueGarbage, match="ETH-USD"):
        venue.product_book("BTC-USD", 5)


def test_fills_that_were_not_asked_for_are_dropped_and_many_orders_are_asked_for_in_parts(
    venue: Venue, server: FaultyServer
) -> None:
    def fill(order_id: str) -> dict[str, str]:
        kept = {name: LISTED[name] for name in ("client_order_id", "product_id", "side")}
        amounts = {"price": "1", "size": "1", "commission": "0", "liquidity_indicator": "MAKER"}
        return (
            kept | amounts | {"trade_id": f"t-{order_id}", "order_id": order_id, "trade_time": "2026-01-01T00:00:00Z"}
        )

    server.script = [listed()]
    venue.order("v-1")
    server.requests.clear()
    server.script = [http(200, {"fills": [fill("v-1"), fill("v-2")], "cursor": ""})]
    assert [each.venue_order_id for each in venue.fills(["v-1", "v-1"])] == ["v-1"]
    assert server.requests[0].count(b"order_ids=") == 1
    server.requests.clear()
    server.script = [http(200, {"fills": [], "cursor": ""})]
    assert venue.fills([f"v-{number}" for number in range(250)]) == []
    assert [request.count(b"order_ids=") for request in server.requests] == [100, 100, 50]
    server.requests.clear()
    assert venue.fills([]) == []
    assert server.requests == []


def test_open_orders_are_those_that_can_still_execute_wherever_they_move_meanwhile(
    venue: Venue, server: FaultyServer
) -> None:
    def page(*orders: tuple[str, str]) -> bytes:
        return http(200, {"orders": [LISTED | {"order_id": o, "status": s} for o, s in orders], "has_next": False})

    # v-2 leaves the book to be edited, v-3 enters it, each between two questions.
    server.script = [page(("v-3", "QUEUED")), page(("v-1", "OPEN"), ("v-3", "OPEN")), page(("v-2", "EDIT_QUEUED"))]
    found = {order.venue_order_id: order.raw_status for order in venue.open_orders()}
    assert found == {"v-1": "OPEN", "v-2": "EDIT_QUEUED", "v-3": "OPEN"}
    asked = [
        sorted(part.split("=")[1] for part in _query(r) if part.startswith("order_status")) for r in server.requests
    ]
    assert asked == [["CANCEL_QUEUED", "EDIT_QUEUED", "PENDING", "QUEUED"], ["OPEN"], asked[0]]


def _query(request: bytes) -> list[str]:
    return request.split(b" ")[1].decode().partition("?")[2].split("&")


# --- what the key may do ---


@pytest.mark.parametrize(
    ("changes", "allow_transfer", "refusal"),
    [
        ({}, False, ""),
        ({"can_transfer": True}, False, "move funds"),
        ({"can_transfer": True}, True, ""),
        ({"can_trade": False}, True, "lacks the permission"),
        ({"can_view": False}, True, "lacks the permission"),
    ],
)
def test_a_live_key_that_may_move_funds_is_refused_unless_allowed(
    venue: Venue, server: FaultyServer, changes: dict[str, bool], allow_transfer: bool, refusal: str
) -> None:
    permissions = {"can_view": True, "can_trade": True, "can_transfer": False, "portfolio_uuid": "p"}
    server.script = [http(200, permissions | changes)]
    # The one difference between this simulated venue and the live one that matters here.
    object.__setattr__(venue.endpoint, "environment", "live")
    if refusal:
        with pytest.raises(EndpointError, match=refusal):
            check_key(venue, allow_transfer)
    else:
        found = check_key(venue, allow_transfer)
        assert found is not None
        assert found.portfolio_uuid == "p"


def test_a_paper_key_may_transfer_and_the_sandbox_is_not_asked(venue: Venue, server: FaultyServer) -> None:
    server.script = [http(200, {"can_view": True, "can_trade": True, "can_transfer": True})]
    assert check_key(venue, allow_transfer=False) is not None
    object.__setattr__(venue.endpoint, "environment", "sandbox")
    server.requests.clear()
    assert check_key(venue, allow_transfer=False) is None
    assert server.requests == []


# --- reads ---

TIME = http(200, {"iso": "2026-01-01T00:00:00Z", "epochSeconds": "1", "epochMillis": "1500"})
ACCOUNTS = http(200, {"accounts": [], "has_next": False, "cursor": "", "size": 0})


def test_an_answer_that_never_ends_costs_the_timeout_and_no_more(venue: Venue, server: FaultyServer) -> None:
    for answer in ("drip", "drip-body"):
        server.script = [answer]
        began_s = time.monotonic()
        with pytest.raises(VenueUnknown, match="no answer"):
            venue.create_order(ORDER)
        assert time.monotonic() - began_s < 3 * TIMEOUT_S


def test_an_answer_without_measure_is_not_kept(
    venue: Venue, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.venue_wire.ANSWER_BYTES_MAX", 100_000)
    server.script = [http(200, {"accounts": [], "padding": " " * 90_000})]
    assert venue.accounts() == []
    # The count begins anew with each answer of a connection that is kept.
    assert venue.accounts() == []
    server.script = [http(200, {"accounts": [], "padding": " " * 300_000})]
    with pytest.raises(VenueUnavailable):
        venue.accounts()


@pytest.mark.parametrize("fault", ["hang", "close", "reset", http(500, {}), http(503, "<html>"), http(429, {})])
def test_a_read_is_tried_three_times(venue: Venue, server: FaultyServer, fault: bytes | str) -> None:
    server.script = [fault, fault, TIME]
    assert venue.server_time_ns() == 1_500_000_000
    assert len(server.requests) == 3
    server.requests.clear()
    server.script = [fault, fault, fault, TIME]
    with pytest.raises((VenueUnavailable, VenueThrottled)):
        venue.server_time_ns()
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (HTML, VenueGarbage),
        (http(200, {}), VenueGarbage),
        (http(200, "null"), VenueGarbage),
        (http(200, "[1]"), VenueGarbage),
        (http(200, {"epochMillis": "soon"}), VenueGarbage),
        (http(200, {"epochMillis": None}), VenueGarbage),
        (http(200, {"epochMillis": "1500"}, simulated=False), VenueGarbage),
        (http(301, "", Location="https://127.0.0.1:1/"), VenueGarbage),
        (http(400, {"error": "INVALID_ARGUMENT"}), VenueRejected),
        (http(404, {}), VenueNotFound),
    ],
)
def test_what_a_retry_cannot_mend_is_not_tried_again(
    venue: Venue, server: FaultyServer, answer: bytes, error: type[VenueError]
) -> None:
    server.script = [answer]
    with pytest.raises(error):
        venue.server_time_ns()
    assert len(server.requests) == 1


def test_a_401_is_throttling_where_no_key_was_sent_and_a_bad_key_where_one_was(
    venue: Venue, server: FaultyServer
) -> None:
    server.script = [http(401, "Unauthorized\n", "text/plain")]
    with pytest.raises(VenueThrottled):
        venue.candles("BTC-USD", Granularity.ONE_MINUTE, 0, 60)
    with pytest.raises(VenueUnauthorised):
        venue.accounts()
    public, private = server.requests
    assert b"authorization" not in public.lower()
    assert b"authorization: bearer" in private.lower()


@pytest.mark.parametrize(
    ("header", "expected"), [("7", 7.0), ("0.5", 0.5), ("-1", 1.0), ("soon", 1.0), ("99999", 60.0)]
)
def test_how_long_to_wait_is_taken_from_the_venue_within_bounds(
    venue: Venue, server: FaultyServer, header: str, expected: float
) -> None:
    server.script = [http(429, {}, Retry_After=header)]
    with pytest.raises(VenueThrottled) as error:
        venue.create_order(ORDER)
    assert error.value.retry_after_s == expected


def test_a_long_wait_is_left_to_the_caller(venue: Venue, server: FaultyServer) -> None:
    server.script = [http(429, {}, Retry_After="30")]
    with pytest.raises(VenueThrottled):
        venue.accounts()
    assert len(server.requests) == 1


def test_a_cursor_that_does_not_move_is_garbage_not_a_loop(venue: Venue, server: FaultyServer) -> None:
    order = {
        "order_id": "v-1",
        "client_order_id": "x",
        "product_id": "BTC-USD",
        "side": "BUY",
        "status": "OPEN",
        "filled_size": "0",
        "average_filled_price": "0",
        "total_fees": "0",
        "created_time": "2026-01-01T00:00:00Z",
    }
    server.script = [http(200, {"orders": [order], "has_next": True, "cursor": "again"})]
    with pytest.raises(VenueGarbage, match="same page twice"):
        venue.orders()
    assert len(server.requests) == 2


def test_pages_are_bounded(venue: Venue, server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.venue._PAGES_MAX", 3)
    page = {"accounts": [{"uuid": "u", "currency": "USD", "available_balance": {"value": "1"}, "hold": {"value": "0"}}]}
    server.script = [http(200, page | {"has_next": True, "cursor": str(i)}) for i in range(9)]
    with pytest.raises(VenueGarbage, match="more than 3 pages"):
        venue.accounts()


def test_an_empty_page_ends_a_list_whatever_its_cursor_says(venue: Venue, server: FaultyServer) -> None:
    server.script = [http(200, {"fills": [], "cursor": "for ever"})]
    assert venue.fills() == []
    assert len(server.requests) == 1


def test_a_quote_that_was_not_asked_for_does_not_stand_in_for_one_that_was(venue: Venue, server: FaultyServer) -> None:
    level = [{"price": "1", "size": "1"}]
    book = {"product_id": "ETH-USD", "bids": level, "asks": level, "time": "2026-01-01T00:00:00Z"}
    server.script = [http(200, {"pricebooks": [book]})]
    with pytest.raises(VenueGarbage, match="no answer for BTC-USD"):
        venue.best_bid_ask(["BTC-USD", "ETH-USD"])


def test_candles_that_were_not_asked_for_are_dropped_and_bad_ones_refused(venue: Venue, server: FaultyServer) -> None:
    def candle(start: int, **changes: str) -> dict[str, str]:
        whole = {"start": str(start), "open": "2", "high": "3", "low": "1", "close": "2", "volume": "1"}
        return whole | changes

    server.script = [http(200, {"candles": [candle(s) for s in (240, 180, 120, 60)]})]
    bars = venue.candles("BTC-USD", Granularity.ONE_MINUTE, 120, 240)
    assert bars.ts_ns.tolist() == [120 * 10**9, 180 * 10**9]
    for bad in (candle(120, high="NaN"), candle(120, low="5"), candle(121), candle(120, volume="-1")):
        server.script = [http(200, {"candles": [bad]})]
        with pytest.raises(VenueGarbage):
            venue.candles("BTC-USD", Granularity.ONE_MINUTE, 120, 240)
    server.script = [http(200, {"candles": [candle(120), candle(120)]})]
    with pytest.raises(VenueGarbage, match="repeat"):
        venue.candles("BTC-USD", Granularity.ONE_MINUTE, 120, 240)


def test_one_product_that_cannot_be_read_does_not_hide_the_others(venue: Venue, server: FaultyServer) -> None:
    flags = ("is_disabled", "trading_disabled", "cancel_only", "limit_only", "post_only", "auction_mode", "view_only")
    sizes = ("base_increment", "quote_increment", "base_min_size", "base_max_size", "quote_min_size", "quote_max_size")
    good: dict[str, Any] = dict.fromkeys(sizes, "1") | dict.fromkeys(flags, False)
    good |= {"product_id": "BTC-USD", "base_currency_id": "BTC", "quote_currency_id": "USD", "status": "online"}
    odd = [good | {"base_increment": ""}, good | {"quote_increment": "0"}, good | {"product_id": "btc/usd"}, {}]
    server.script = [http(200, {"products": [*odd, good]})]
    assert [product.product_id for product in venue.products()] == ["BTC-USD"]
    bad: list[dict[str, Any]] = [{"products": odd}, {"products": []}, {}]
    for answer in bad:
        server.script = [http(200, answer)]
        with pytest.raises(VenueGarbage):
            venue.products()


def test_a_body_that_echoes_the_token_does_not_reach_an_error_or_a_log(
    venue: Venue, server: FaultyServer, caplog: pytest.LogCaptureFixture
) -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJDQU5BUlkifQ.c2lnbmF0dXJl"
    server.script = [http(400, {"error": f"E {token}", "message": f"bad header Bearer {token}"})]
    with pytest.raises(VenueRejected) as error:
        venue.accounts()
    texts = [str(error.value), error.value.code, error.value.message, *(r.getMessage() for r in caplog.records)]
    assert len(texts) > 3
    assert not [text for text in texts if "eyJ" in text]


def test_a_server_that_never_ends_its_handshake_costs_the_timeout_and_nothing_was_sent(tmp_path: Path) -> None:
    open_credentials(tmp_path, dt.datetime.now(dt.UTC))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = simulator_endpoint(f"127.0.0.1:{silent.getsockname()[1]}", tmp_path, timeout_s=0.3)
        with pytest.raises((VenueUnavailable, VenueUnknown)):
            Venue(endpoint).create_order(ORDER)


def test_a_stranger_with_a_certificate_of_its_own_is_never_told_the_token(server: FaultyServer, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = open_credentials(tmp_path / "other", dt.datetime.now(dt.UTC))
    own = simulator_endpoint(server.host_port, tmp_path)
    endpoint = VenueEndpoint(server.host_port, own.key_name, own.key_secret, other.ca_file, simulated=True)
    server.script = [ACCOUNTS]
    with pytest.raises(VenueUnavailable, match="SSLCertVerificationError"):
        Venue(endpoint).create_order(ORDER)
    assert server.requests == []
