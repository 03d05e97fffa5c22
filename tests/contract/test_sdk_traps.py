"""The fourteen traps of the real SDK: what it does, shown on it, and that our venue client does not inherit it.

Numbers are those of the facts the desk was built from. A new version of the SDK that no longer falls into one of them
makes the first half of a test fail, and tells us.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.metadata
import inspect
import json
import multiprocessing
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import certifi
import pytest
import requests
import websockets
from coinbase.rest import RESTClient
from coinbase.rest.types.orders_types import CreateOrderResponse
from coinbase.websocket import WebsocketResponse, WSUserClient
from pydantic import SecretStr

from cluster.exchange_keys import open_credentials
from cluster.venue import (
    EndpointError,
    Venue,
    VenueEndpoint,
    VenueGarbage,
    VenueRejected,
    VenueUnauthorised,
    VenueUnavailable,
    VenueUnknown,
)
from cluster.venue_channels import Connected, Lost, OrderUpdate, StreamError, StreamEvent
from cluster.venue_stream import VenueStream
from strategies.model import Order, OrderStatus, OrderType, Side, TimeInForce
from tests.contract.bots import rest_bot, ws_bot
from tests.simulator import ROOT, Simulator, running_simulator

# The SDK makes its TLS context in a way that is deprecated.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:ssl:DeprecationWarning")]

PRODUCT: Final = "BTC-USD"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "10") as running:
        running.push_price(PRODUCT, "50000.00")
        yield running


@pytest.fixture
def venue(simulator: Simulator) -> Iterator[Venue]:
    made = simulator.venue()
    yield made
    made.close()
    control(simulator, "/sim/faults", {"rules": []})


def control(simulator: Simulator, path: str, body: dict[str, Any]) -> Any:
    """Use the simulator's control surface."""
    token = (simulator.state_dir / "sim_token").read_text()
    answer = simulator.request("POST", path, json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def fault(simulator: Simulator, name: str, path: str, **fields: Any) -> None:
    """One rule: strike the next request to a path once."""
    rule = {"match": {"path": path}, "fault": name, "count": 1}
    control(simulator, "/sim/faults", {"rules": [rule | fields]})


def limit_order(client_order_id: str, **changes: Any) -> Order:
    given: dict[str, Any] = {
        "client_order_id": client_order_id,
        "account": "main",
        "strategy": "hand",
        "product_id": PRODUCT,
        "side": Side.BUY,
        "type": OrderType.LIMIT,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal("0.01"),
        "limit_price": Decimal("1000.00"),
    }
    return Order(**(given | changes))


def listen(
    venue: Venue, until: Callable[[list[StreamEvent]], bool], *channels: str, **options: Any
) -> list[StreamEvent]:
    """What our own stream tells until enough is told; fails where that takes too long."""

    async def run() -> list[StreamEvent]:
        stream = VenueStream(venue, channels, [PRODUCT])
        told: list[StreamEvent] = []
        try:
            async with asyncio.timeout(20):
                async for event in stream.events():
                    told.append(event)
                    if until(told):
                        break
        finally:
            await stream.close()
        return told

    return asyncio.run(run())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def test_trap_1_https_is_written_in_front_of_whatever_the_base_url_is(simulator: Simulator) -> None:
    client: Any = RESTClient(base_url=f"https://{simulator.host_port}", timeout=5, api_key=None, api_secret=None)
    with contextlib.closing(client.session), pytest.raises(requests.RequestException):
        client.get_unix_time()
    with pytest.raises(EndpointError, match="without scheme"):
        VenueEndpoint(f"https://{simulator.host_port}", simulated=True)


def test_trap_2_a_ca_bundle_in_the_environment_wins_over_the_sessions_own(
    simulator: Simulator, venue: Venue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    client: Any = RESTClient(base_url=simulator.host_port, timeout=5, api_key=None, api_secret=None)
    with contextlib.closing(client.session):
        client.session.verify = str(simulator.state_dir / "ca.pem")
        with pytest.raises(requests.exceptions.SSLError):
            client.get_unix_time()
        client.session.trust_env = False
        assert client.get_unix_time()
    assert venue.server_time_ns() > 0


def test_trap_2_a_proxy_in_the_environment_gets_the_sdks_requests_and_not_ours(
    venue: Venue, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    client: Any = RESTClient(base_url=simulator.host_port, timeout=5, api_key=None, api_secret=None)
    with contextlib.closing(client.session), pytest.raises(requests.exceptions.ProxyError):
        client.get_unix_time()
    assert venue.server_time_ns() > 0


def test_trap_3_the_sdk_waits_for_ever_unless_told_and_retries_nothing(simulator: Simulator) -> None:
    assert RESTClient(api_key=None, api_secret=None).timeout is None
    assert requests.adapters.HTTPAdapter().max_retries.total == 0
    fault(simulator, "hang", "/accounts", s=30)
    impatient = Venue(replace(simulator.endpoint, timeout_s=0.5))
    try:
        # The request that hangs is given up, and a read is asked again.
        assert impatient.accounts()
    finally:
        impatient.close()
        control(simulator, "/sim/faults", {"rules": []})


def test_trap_3_html_raises_a_json_error_and_no_key_an_error_of_multiprocessing(
    simulator: Simulator, venue: Venue
) -> None:
    with rest_bot(simulator) as bot:
        fault(simulator, "html", "/accounts")
        with pytest.raises(requests.exceptions.JSONDecodeError):
            bot.client.get_accounts()
    fault(simulator, "html", "/accounts")
    with pytest.raises(VenueGarbage):
        venue.accounts()
    with rest_bot(simulator, key=None) as bot, pytest.raises(multiprocessing.AuthenticationError):
        bot.client.get_accounts()
    keyless = Venue(replace(simulator.endpoint, key_name=None, key_secret=None))
    with contextlib.closing(keyless), pytest.raises(VenueUnauthorised):
        keyless.accounts()


def test_trap_3_an_answer_that_never_comes_leaves_an_order_in_doubt_not_sent_twice(
    simulator: Simulator, venue: Venue
) -> None:
    fault(simulator, "accept_then_drop", "/orders")
    order = limit_order("trap-3")
    with pytest.raises(VenueUnknown):
        venue.create_order(order)
    found = venue.order_by_client_id("trap-3")
    assert found is not None
    assert [each.client_order_id for each in venue.open_orders()].count("trap-3") == 1
    venue.cancel([found.venue_order_id])


def test_trap_4_a_refused_order_raises_nothing_and_a_missing_key_is_none(simulator: Simulator, venue: Venue) -> None:
    with rest_bot(simulator) as bot:
        answer = bot.client.market_order_buy("trap-4", PRODUCT, base_size="300")
        assert answer.success is False
        assert answer["no_such_key"] is None
        accepted = bot.client.limit_order_gtc_buy("trap-4-ok", PRODUCT, "0.01", "1000.00")
        # There on success as well (issue 49 of the SDK).
        assert (accepted.success, accepted.failure_reason) == (True, "UNKNOWN_FAILURE_REASON")
        bot.client.cancel_orders([accepted.success_response["order_id"]])
    assert CreateOrderResponse({})["success"] is None
    with pytest.raises(VenueRejected) as caught:
        venue.create_order(limit_order("trap-4-ours", quantity=Decimal(300), limit_price=Decimal("49000.00")))
    assert caught.value.code == "INSUFFICIENT_FUND"


def test_trap_5_an_empty_client_order_id_becomes_a_new_random_one_at_each_call(
    simulator: Simulator, venue: Venue
) -> None:
    with rest_bot(simulator) as bot:
        placed = [bot.client.limit_order_gtc_buy("", PRODUCT, "0.01", "1000.00") for _ in range(2)]
        ids = {answer.success_response["client_order_id"] for answer in placed}
        assert len(ids) == 2
        bot.client.cancel_orders([answer.success_response["order_id"] for answer in placed])
    before = len(venue.orders())
    with pytest.raises(VenueRejected, match="client_order_id"):
        venue.create_order(limit_order(""))
    assert len(venue.orders()) == before


def test_trap_6_a_get_has_a_body_none_is_dropped_and_lists_are_repeated_keys(simulator: Simulator) -> None:
    with rest_bot(simulator) as bot:
        asked: list[requests.PreparedRequest] = []
        bot.client.session.hooks["response"].append(lambda response, **_: asked.append(response.request))
        bot.client.get_best_bid_ask(product_ids=[PRODUCT, "ETH-USD"])
        bot.client.get_best_bid_ask(product_ids=None)
        first, second = asked
        assert (first.body, first.headers["Content-Type"]) == (b"{}", "application/json")
        assert str(first.path_url).endswith(f"?product_ids={PRODUCT}&product_ids=ETH-USD")
        assert str(second.path_url).endswith("/best_bid_ask")
        # The simulator takes all that, as the venue does.
        assert [answer.status for answer in bot.answers] == [200, 200]


_KEY_AT_IMPORT: Final = """
import os
os.environ["COINBASE_API_KEY"], os.environ["COINBASE_API_SECRET"] = "from-the-environment", "secret"
from coinbase.rest import RESTClient
del os.environ["COINBASE_API_KEY"], os.environ["COINBASE_API_SECRET"]
assert RESTClient().api_key == "from-the-environment"
os.environ["COINBASE_API_KEY"] = "changed"
assert RESTClient().api_key == "from-the-environment"
from cluster.venue import Venue, VenueEndpoint, VenueUnauthorised
venue = Venue(VenueEndpoint("api.coinbase.com"))
assert venue._client(private=False).is_authenticated is False
try:
    venue.accounts()
except VenueUnauthorised:
    print("ours has no key")
"""


def test_trap_7_the_sdks_default_key_is_what_the_environment_held_at_import() -> None:
    default = inspect.signature(RESTClient.__init__).parameters["api_key"].default
    assert default == os.environ.get("COINBASE_API_KEY")
    done = subprocess.run(
        [sys.executable, "-c", _KEY_AT_IMPORT],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "ours has no key"), done.stderr


def test_trap_8_the_open_filter_leaves_out_what_is_queued_and_ours_finds_it(simulator: Simulator, venue: Venue) -> None:
    placed = venue.create_order(limit_order("trap-8"))
    for status in ("PENDING", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"):
        control(simulator, "/sim/show", {"order_id": placed, "status": status})
        with rest_bot(simulator) as bot:
            assert bot.client.get_order(placed).order.status == status
            assert placed not in {order.order_id for order in bot.client.list_orders(order_status=["OPEN"]).orders}
            with pytest.raises(requests.HTTPError, match="400"):
                bot.client.list_orders(order_status=["OPEN", status])
        assert placed in {order.venue_order_id for order in venue.open_orders()}
    control(simulator, "/sim/show", {"order_id": placed, "status": ""})
    venue.cancel([placed])


def test_trap_8_an_edit_needs_price_and_size_and_ours_always_sends_both(simulator: Simulator, venue: Venue) -> None:
    placed = venue.create_order(limit_order("trap-8-edit"))
    with rest_bot(simulator) as bot:
        assert bot.client.edit_order(placed, price="1001.00").success is False
    venue.edit(placed, Decimal("0.02"), Decimal("1001.00"))
    found = venue.order(placed)
    assert (found.quantity, found.limit_price) == (Decimal("0.02"), Decimal("1001.00"))
    venue.cancel([placed])


def test_trap_9_the_sdks_websocket_verifies_nobody_and_ours_does(
    simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[ssl.SSLContext] = []
    bare = websockets.connect

    def connect(*arguments: Any, **given: Any) -> Any:
        contexts.append(given["ssl"])
        return bare(*arguments, **given)

    monkeypatch.setattr(websockets, "connect", connect)
    # No CA was given to it: it connects to a certificate that nobody vouches for, and would send it a token.
    with ws_bot(simulator, verified=False) as (client, listener):
        client.heartbeats()
        listener.wait_channel("heartbeats")
    assert (contexts[0].verify_mode, contexts[0].check_hostname) == (ssl.CERT_NONE, False)
    monkeypatch.undo()
    # Another CA than the one that signed: ours refuses before a single byte of a token is sent.
    open_credentials(tmp_path, dt.datetime.now(dt.UTC))
    stranger = Venue(replace(simulator.endpoint, ca_file=tmp_path / "ca.pem"))
    with contextlib.closing(stranger):
        told = listen(stranger, lambda events: len(events) >= 2, "ticker")
    assert all(isinstance(event, Lost) and "CERTIFICATE" in event.reason.upper() for event in told)


def test_trap_10_a_close_with_1001_ends_the_sdk_silently_and_ours_connects_again(
    simulator: Simulator, venue: Venue
) -> None:
    with ws_bot(simulator) as (client, listener):
        client.heartbeats()
        listener.wait_channel("heartbeats")
        fault_ws(simulator, "ws_close", code=1001)
        wait_until(lambda: bool(client._task.done()), "the SDK's reader has not ended")
        assert listener.closed == 0
        client.raise_background_exception()
        assert listener.opened == 1
    fault_ws(simulator, "ws_close", code=1001)
    told = listen(venue, lambda events: sum(isinstance(event, Connected) for event in events) == 2, "ticker")
    assert [type(event) for event in told if isinstance(event, Connected | Lost)] == [Connected, Lost, Connected]


def fault_ws(simulator: Simulator, name: str, channel: str = "heartbeats", **fields: Any) -> None:
    """One rule: strike the next message of a channel."""
    rule = {"match": {"channel": channel}, "fault": name, "count": 1}
    control(simulator, "/sim/faults", {"rules": [rule | fields]})


def test_trap_11_the_sdks_reader_raises_on_an_error_message_and_on_the_venues_own_frames(
    simulator: Simulator, venue: Venue
) -> None:
    with pytest.raises(KeyError, match="channel"):
        WebsocketResponse({"type": "error", "message": "authentication failure"})
    # Production's frames have no client_id; the SDK's class wants one.
    frame = {"channel": "heartbeats", "timestamp": "2026-01-01T00:00:00Z", "sequence_num": 0, "events": []}
    with pytest.raises(KeyError, match="client_id"):
        WebsocketResponse(dict(frame))
    with ws_bot(simulator) as (client, listener):
        client.subscribe([PRODUCT], ["no_such_channel"])
        error = listener.wait(lambda message: message.get("type") == "error")
        # As recorded: an unknown channel is answered as a failure to authenticate.
        assert error["message"] == "authentication failure"
    fault_ws(simulator, "ws_error")
    told = listen(venue, lambda events: any(isinstance(event, StreamError) for event in events), "ticker")
    assert not any(isinstance(event, Lost) for event in told)


def test_trap_11_an_exception_in_a_callback_ends_the_sdks_reader_while_the_socket_stays_open(
    simulator: Simulator,
) -> None:
    def explode(_: str) -> None:
        raise KeyError("a bug of the user's")

    with ws_bot(simulator, on_message=explode) as (client, _):
        client.heartbeats()
        wait_until(lambda: bool(client._task.done()), "the SDK's reader has not ended")
        assert client.websocket.open is True
        client.raise_background_exception()
        assert isinstance(client._task.exception(), KeyError)


def test_trap_12_callbacks_run_on_the_sdks_own_loop(simulator: Simulator) -> None:
    threads: list[threading.Thread] = []
    with ws_bot(simulator, on_message=lambda _: threads.append(threading.current_thread())) as (client, _):
        client.heartbeats()
        wait_until(lambda: bool(threads), "no message")
        assert set(threads) == {client.thread}
    # Its pin; ours uses the newer interface that this version has too.
    assert int(importlib.metadata.version("websockets").split(".")[0]) < 14


def test_trap_13_the_user_channel_tells_what_an_order_came_to_and_only_rest_tells_trades(
    simulator: Simulator, venue: Venue
) -> None:
    with ws_bot(simulator, WSUserClient) as (client, listener):
        client.user(product_ids=[PRODUCT])
        listener.wait_channel("user", "snapshot")
        seen = len(listener.messages)
        placed = venue.create_order(
            limit_order("trap-13", type=OrderType.MARKET, time_in_force=TimeInForce.IOC, limit_price=None)
        )

        def filled(message: dict[str, Any]) -> bool:
            orders = [order for event in message.get("events", []) for order in event.get("orders", [])]
            return any(order["order_id"] == placed and order["status"] == "FILLED" for order in orders)

        update = listener.wait(filled, seen)
        assert listener.problems() == []
    assert "trade_id" not in json.dumps(update)
    fills = venue.fills([placed])
    assert sum((fill.quantity for fill in fills), Decimal(0)) == Decimal("0.01")
    assert all(fill.trade_id for fill in fills)
    numbers = [message["sequence_num"] for message in listener.messages if "sequence_num" in message]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_trap_13_our_stream_tells_the_same_orders_state(simulator: Simulator, venue: Venue) -> None:
    placed = venue.create_order(limit_order("trap-13-ours"))

    def told_it(events: list[StreamEvent]) -> bool:
        return any(isinstance(event, OrderUpdate) and event.venue_order_id == placed for event in events)

    update = [event for event in listen(venue, told_it, "user") if isinstance(event, OrderUpdate)][-1]
    assert (update.client_order_id, update.status, update.snapshot) == ("trap-13-ours", OrderStatus.OPEN, True)
    venue.cancel([placed])


def test_trap_14_a_skewed_clock_is_a_401_and_the_skew_can_be_seen(simulator: Simulator, venue: Venue) -> None:
    control(simulator, "/sim/clock", {"offset_ms": -60_000})
    try:
        with rest_bot(simulator) as bot, pytest.raises(requests.HTTPError, match="401"):
            bot.client.get_accounts()
        with pytest.raises(VenueUnauthorised, match="clock"):
            venue.accounts()
        assert venue.server_time_ns() / 1e9 == pytest.approx(time.time() - 60, abs=10)
    finally:
        control(simulator, "/sim/clock", {"offset_ms": 0})
    assert venue.accounts()


def test_an_unreachable_venue_is_unavailable_not_in_doubt(simulator: Simulator) -> None:
    elsewhere = Venue(replace(simulator.endpoint, host_port="127.0.0.1:9", timeout_s=1.0))
    with contextlib.closing(elsewhere), pytest.raises(VenueUnavailable):
        elsewhere.create_order(limit_order("nobody"))


def test_a_key_of_either_kind_works_for_rest_and_stream(simulator: Simulator) -> None:
    content = json.loads((simulator.state_dir / "cdp_key_ed25519.json").read_text())
    endpoint = replace(simulator.endpoint, key_name=content["name"], key_secret=SecretStr(content["privateKey"]))
    ours = Venue(endpoint)
    with contextlib.closing(ours):
        assert ours.accounts()
        assert any(isinstance(event, Connected) for event in listen(ours, lambda events: len(events) > 0, "user"))
