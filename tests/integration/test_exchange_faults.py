"""Faults on demand as a client meets them over TLS, the control surface, scopes, limits and the paths beside orders."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.exchange_stream import WAIT_S, Stream, client, token
from tests.simulator import PREFIX, Simulator, running_simulator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "3") as simulator:
        yield simulator


@pytest.fixture
def simulator(running: Simulator) -> Iterator[Simulator]:
    """Without rules, at the true time, with every flag off, when a test begins."""
    running.control("/sim/faults", rules=[])
    running.control("/sim/clock", offset_ms=0)
    running.control("/sim/limits", requests_per_s=0, public_per_s=0)
    running.push_price("BTC-USD", "60000.00")
    yield running
    running.control("/sim/faults", rules=[])


@pytest.fixture
def sdk(simulator: Simulator) -> Iterator[Any]:
    made = client(simulator)
    yield made
    made.session.close()


def place(sdk: Any, client_order_id: str) -> Any:
    return sdk.limit_order_gtc_buy(client_order_id, "BTC-USD", "0.001", "1000.00")


def exists(sdk: Any, client_order_id: str) -> bool:
    return any(order.client_order_id == client_order_id for order in sdk.list_orders().orders)


ORDERS = {"method": "POST", "path": "/orders"}


@pytest.mark.parametrize(
    ("rule", "raises", "acted"),
    [
        ({"fault": "throttle_429"}, "429 Client Error.*rate_limit_exceeded", False),
        ({"fault": "throttle_401"}, "401 Client Error.*Unauthorized", False),
        ({"fault": "error_5xx", "status": 500}, "500 Server Error", False),
        ({"fault": "error_5xx", "status": 503, "act": True}, "503 Server Error", True),
        ({"fault": "html"}, "Expecting value", False),
        ({"fault": "html", "status": 502, "act": True}, "502 Server Error", True),
        ({"fault": "garbage_json"}, "Unterminated|Expecting", True),
        ({"fault": "garbage_json", "act": False}, "Expecting", False),
        ({"fault": "accept_then_drop"}, "Connection aborted|Remote end closed|reset", True),
        ({"fault": "drop"}, "Connection aborted|Remote end closed|reset", False),
        ({"fault": "hang", "s": 0.3}, "Connection aborted|Remote end closed|reset", False),
        ({"fault": "hang", "s": 0.3, "act": True}, "Connection aborted|Remote end closed|reset", True),
    ],
    ids=str,
)
def test_what_an_order_meets_and_whether_it_exists_afterwards(
    simulator: Simulator, sdk: Any, rule: dict[str, Any], raises: str, acted: bool
) -> None:
    simulator.control("/sim/faults", rules=[{"match": ORDERS, "count": 1} | rule])
    client_order_id = f"fault-{time.time_ns()}"
    with pytest.raises((requests.RequestException, ValueError), match=raises):
        place(sdk, client_order_id)
    assert exists(sdk, client_order_id) is acted
    assert simulator.control("/sim/faults")["rules"][0]["struck"] == 1
    again = place(sdk, client_order_id)
    assert again.success
    assert exists(sdk, client_order_id)


def test_an_answer_is_late_while_the_exchange_goes_on(simulator: Simulator, sdk: Any) -> None:
    simulator.control("/sim/faults", rules=[{"match": ORDERS, "fault": "latency", "ms": 400}])
    began_s = time.monotonic()
    assert place(sdk, f"late-{time.time_ns()}").success
    assert time.monotonic() - began_s >= 0.4


def test_a_retry_after_is_told(simulator: Simulator) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "throttle_429", "retry_after_s": 2.5}])
    answer = simulator.request("GET", PREFIX + "/time")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "2.5")
    assert answer.json() == {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]}
    assert simulator.request("GET", "/healthz").status_code == 200


def test_wrong_products_and_numbers_that_are_none(simulator: Simulator, sdk: Any) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "wrong_product"}])
    assert sdk.get_product("BTC-USD").product_id == "ETH-USD"
    simulator.control("/sim/faults", rules=[{"fault": "nan_numbers"}])
    assert sdk.get_product("BTC-USD").price == "NaN"
    assert math.isnan(json.loads(simulator.request("GET", PREFIX + "/market/products").text)["num_products"])


def test_rules_that_cannot_be_are_refused_and_the_old_ones_stay(simulator: Simulator) -> None:
    simulator.control("/sim/faults", rules=[{"match": ORDERS, "fault": "drop"}])
    answer = simulator.control_request("POST", "/sim/faults", {"rules": [{"fault": "fire"}]})
    assert answer.status_code == 400
    assert "rules[0].fault" in answer.json()["message"]
    assert [rule["fault"] for rule in simulator.control("/sim/faults")["rules"]] == ["drop"]


# --- messages ---


@pytest.fixture
def stream(simulator: Simulator) -> Iterator[Stream]:
    """Beats are coming: the next one is a second away at most."""
    opened = Stream(simulator)
    opened.subscribe("heartbeats")
    opened.channel("heartbeats")
    yield opened
    opened.connection.close()


def numbers(stream: Stream, count: int) -> list[int]:
    """Sequence numbers of the next beats."""
    return [stream.channel("heartbeats")["sequence_num"] for _ in range(count)]


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ({"fault": "ws_duplicate"}, [0, 1, 1]),
        ({"fault": "ws_gap"}, [2, 1, 1]),
        ({"fault": "ws_gap", "numbers": 10}, [11, 1, 1]),
        ({"fault": "ws_reorder"}, [1, 2, -1]),
    ],
    ids=str,
)
def test_sequences_are_broken_on_demand(
    simulator: Simulator, stream: Stream, rule: dict[str, Any], steps: list[int]
) -> None:
    match = {"channel": "heartbeats"}
    # One message passes first, from which the steps are counted.
    simulator.control("/sim/faults", rules=[{"match": match, "count": 1, "skip": 1} | rule])
    first = numbers(stream, 1)[0]
    if rule["fault"] == "ws_reorder":
        following = numbers(stream, 2)
        assert following == [first + 2, first + 1]
        return
    following = numbers(stream, 4)
    found = [after - before for before, after in zip([first, *following], following, strict=False)]
    wanted = [1, *steps] if rule["fault"] == "ws_duplicate" else steps
    assert found[: len(wanted)] == wanted


@pytest.mark.parametrize("code", [1000, 1001, 1011])
def test_a_connection_is_closed_with_the_code(simulator: Simulator, stream: Stream, code: int) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "ws_close", "code": code, "count": 1}])
    with pytest.raises(ConnectionClosed) as closed:
        numbers(stream, 5)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


def test_a_connection_is_cut_without_a_word(simulator: Simulator, stream: Stream) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "ws_close", "code": "abort", "count": 1}])
    with pytest.raises(ConnectionClosed) as closed:
        numbers(stream, 5)
    assert closed.value.rcvd is None


def test_silence_loses_messages_and_keeps_the_connection(simulator: Simulator, stream: Stream) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "ws_silence", "s": 2.5, "count": 1}])
    before = stream.seen[-1]["sequence_num"]
    began_s = time.monotonic()
    after = numbers(stream, 1)[0]
    assert time.monotonic() - began_s > 2
    assert after - before > 2


def test_an_error_comes_between_and_garbage_and_strange_numbers_too(simulator: Simulator, stream: Stream) -> None:
    simulator.control("/sim/faults", rules=[{"fault": "ws_error", "count": 1}])
    assert stream.until(lambda m: m.get("type") == "error", "error") == {
        "type": "error",
        "message": "simulated failure",
    }
    rule = {"match": {"channel": "ticker"}, "fault": "nan_numbers", "count": 1}
    simulator.control("/sim/faults", rules=[rule])
    stream.subscribe("ticker", "BTC-USD")
    assert stream.channel("ticker")["events"][0]["tickers"][0]["price"] == "NaN"
    simulator.control("/sim/faults", rules=[{"match": {"channel": ".*"}, "fault": "garbage_json", "count": 1}])
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        numbers(stream, 3)


def test_a_new_connection_is_refused(simulator: Simulator) -> None:
    """Of five refused clients one left its socket open, which failed whichever test it was collected in."""
    simulator.control("/sim/faults", rules=[{"fault": "ws_refuse", "count": 20}])
    for _ in range(19):
        with pytest.raises(InvalidStatus):
            Stream(simulator)
    gc.collect()
    with pytest.raises(InvalidStatus):
        Stream(simulator)
    Stream(simulator).connection.close()


# --- the control surface ---


def test_a_skewed_clock_stamps_and_checks_by_its_own_time(simulator: Simulator, sdk: Any) -> None:
    simulator.control("/sim/clock", offset_ms=-40_000)
    told_s = int(simulator.request("GET", PREFIX + "/time").json()["epochSeconds"])
    assert -43 < told_s - time.time() < -38
    with pytest.raises(requests.HTTPError, match="401"):
        sdk.get_accounts()
    simulator.control("/sim/clock", offset_ms=3_600_000)
    with pytest.raises(requests.HTTPError, match="401"):
        sdk.get_accounts()
    simulator.control("/sim/clock", offset_ms=0)
    assert place(sdk, f"after-{time.time_ns()}").success
    # Time passes again: what the path crosses is filled, and what ends expires.
    end_time = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    ending = sdk.limit_order_gtd_buy(f"gtd-{time.time_ns()}", "BTC-USD", "0.01", "1000.00", end_time)
    deadline = time.monotonic() + WAIT_S
    while sdk.get_order(ending.success_response["order_id"]).order.status != "EXPIRED":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_order_is_filled_on_demand_and_listed_twice(simulator: Simulator, sdk: Any) -> None:
    order_id = place(sdk, f"fill-{time.time_ns()}").success_response["order_id"]
    filled = simulator.control("/sim/fill", order_id=order_id, quantity="0.0004", price="999.00")
    assert (filled["fill"]["size"], filled["fill"]["price"]) == ("0.00040000", "999.00")
    assert (filled["order"]["status"], filled["order"]["filled_size"]) == ("OPEN", "0.00040000")
    simulator.control("/sim/fill", order_id=order_id, repeat=True)
    fills = sdk.get_fills(order_ids=[order_id]).fills
    assert [fill.trade_id for fill in fills] == [filled["fill"]["trade_id"]] * 2
    assert sdk.get_order(order_id).order.filled_size == "0.00040000"
    simulator.control("/sim/fill", order_id=order_id)
    assert sdk.get_order(order_id).order.status == "FILLED"


def test_an_order_behind_the_desks_back_is_told_to_listeners(simulator: Simulator, sdk: Any) -> None:
    stream = Stream(simulator)
    stream.subscribe("user", jwt=token(simulator))
    stream.channel("user", "snapshot")
    body = {"product_id": "BTC-USD", "side": "BUY"}
    configuration = {"limit_limit_gtc": {"base_size": "0.001", "limit_price": "1000.00"}}
    placed = simulator.control("/sim/order", **body, order_configuration=configuration)
    assert stream.order(order_id=placed["order_id"])["status"] == "OPEN"
    sdk.cancel_orders([placed["order_id"]])
    assert stream.order(order_id=placed["order_id"], status="CANCELLED")
    stream.connection.close()


def test_flags_and_deposits_hold_at_once(simulator: Simulator, sdk: Any) -> None:
    simulator.control("/sim/product", product_id="SOL-USD", trading_disabled=True)
    assert sdk.get_product("SOL-USD").trading_disabled
    assert not sdk.market_order_buy(f"off-{time.time_ns()}", "SOL-USD", base_size="0.1").success
    simulator.control("/sim/product", product_id="SOL-USD", trading_disabled=False)
    assert sdk.market_order_buy(f"on-{time.time_ns()}", "SOL-USD", base_size="0.1").success

    def usd() -> Decimal:
        return Decimal(next(a for a in sdk.get_accounts().accounts if a.currency == "USD").available_balance["value"])

    before = usd()
    simulator.control("/sim/deposit", currency="USD", amount="250.25")
    simulator.control("/sim/deposit", currency="USD", amount="-50")
    assert usd() - before == Decimal("200.25")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sim/clock", {"offset_ms": "5"}),
        ("/sim/clock", {}),
        ("/sim/fill", {"order_id": "nobody"}),
        ("/sim/product", {"product_id": "BTC-USD", "magic": True}),
        ("/sim/product", {"product_id": "BTC-USD", "post_only": "yes"}),
        ("/sim/product", {"product_id": "NO-USD"}),
        ("/sim/deposit", {"currency": "USD", "amount": "NaN"}),
        ("/sim/deposit", {"currency": "USD", "amount": "-99999999999"}),
        ("/sim/deposit", {"currency": "XYZ", "amount": "1"}),
        ("/sim/limits", {"requests_per_s": -1}),
        ("/sim/limits", {"orders_per_s": 1}),
        ("/sim/show", {"order_id": "nobody", "status": "QUEUED"}),
        ("/sim/faults", {}),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(simulator: Simulator, path: str, body: dict[str, Any]) -> None:
    assert simulator.control_request("POST", path, body).status_code in {400, 404}


def test_the_control_surface_takes_no_api_key(simulator: Simulator, sdk: Any) -> None:
    with pytest.raises(requests.HTTPError, match="401"):
        sdk.get("/sim/status")
    assert simulator.control("/sim/status")["prices"]["BTC-USD"] == "60000.00"


# --- scopes, limits, other paths ---


def test_a_key_that_may_only_look_is_told_so(simulator: Simulator) -> None:
    looking = client(simulator, "cdp_key_view.json")
    assert looking.get_accounts().accounts
    assert looking.preview_limit_order_gtc_buy("BTC-USD", "0.01", "1000.00").errs == []
    permissions = looking.get_api_key_permissions()
    assert (permissions.can_view, permissions.can_trade) == (True, False)
    for method, arguments in (
        ("limit_order_gtc_buy", ("never", "BTC-USD", "0.001", "1000.00")),
        ("cancel_orders", (["x"],)),
        ("edit_order", ("x", "1", "1")),
    ):
        with pytest.raises(requests.HTTPError, match="403 Client Error: Missing Required Scopes"):
            getattr(looking, method)(*arguments)
    looking.session.close()


def test_requests_beyond_the_rate_get_429_and_every_answer_says_what_is_left(simulator: Simulator, sdk: Any) -> None:
    simulator.control("/sim/limits", requests_per_s=5, public_per_s=3)
    answers = [simulator.request("GET", PREFIX + "/time") for _ in range(8)]
    assert [a.status_code for a in answers[:3]] == [200] * 3
    assert answers[0].headers["x-ratelimit-limit"] == "3"
    assert [int(a.headers["x-ratelimit-remaining"]) for a in answers[:3]] == [2, 1, 0]
    assert 429 in {a.status_code for a in answers}
    with pytest.raises(requests.HTTPError, match="429"):
        _ = [sdk.get_accounts() for _ in range(20)]
    # One key's haste is not another's.
    other = client(simulator, "cdp_key_ed25519.json")
    assert other.get_accounts().accounts
    other.session.close()


def test_a_preview_says_what_the_order_would_cost_and_places_nothing(sdk: Any) -> None:
    before = len(sdk.list_orders().orders)
    seen = sdk.preview_market_order_buy("BTC-USD", base_size="0.1")
    assert seen.errs == []
    total, fee = Decimal(seen.order_total), Decimal(seen.commission_total)
    assert total > 6000 > fee > 0
    assert fee == (total - fee) * Decimal("0.006")
    poor = sdk.preview_limit_order_gtc_buy("BTC-USD", "1000", "60000.00")
    assert poor.errs == ["PREVIEW_INSUFFICIENT_FUND"]
    assert sdk.preview_market_order_buy("NO-USD", base_size="0.1").errs == ["PREVIEW_INVALID_PRODUCT_ID"]
    assert len(sdk.list_orders().orders) == before


def test_an_edit_changes_size_and_price_and_is_remembered(sdk: Any) -> None:
    order_id = place(sdk, f"edit-{time.time_ns()}").success_response["order_id"]
    seen = sdk.preview_edit_order(order_id, "0.002", "2000.00")
    assert seen.errors == []
    assert Decimal(seen.order_total) > 4
    assert sdk.get_order(order_id).order.edit_history == []
    assert sdk.edit_order(order_id, "0.002", "2000.00").success
    order = sdk.get_order(order_id).order
    fields = order.order_configuration.limit_limit_gtc
    assert (fields.base_size, fields.limit_price) == ("0.00200000", "2000.00")
    assert [(edit.size, edit.price) for edit in order.edit_history] == [("0.00200000", "2000.00")]
    refused = sdk.edit_order(order_id, "0.002", "2000.00")
    assert not refused.success
    assert refused.errors[0].edit_failure_reason == "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"
    nobody = sdk.preview_edit_order("nobody", "1", "1.00")
    assert nobody.errors[0].edit_failure_reason == "ORDER_NOT_FOUND"


def test_the_portfolio_of_a_key_is_all_it_sees(sdk: Any) -> None:
    (own,) = sdk.get_portfolios().portfolios
    assert sdk.get_portfolios("INTX").portfolios == []
    breakdown = sdk.get_portfolio_breakdown(own.uuid).breakdown
    assert breakdown.portfolio.uuid == own.uuid
    assert {row.asset for row in breakdown.spot_positions} >= {"USD", "BTC"}
    with pytest.raises(requests.HTTPError, match="404"):
        sdk.get_portfolio_breakdown("11111111-2222-3333-4444-555555555555")


def test_an_answer_is_one_write(simulator: Simulator) -> None:
    """Headers and body apart would cost a client that waits for both the other side's delayed acknowledgement."""
    import socket
    import ssl

    context = ssl.create_default_context(cafile=str(simulator.state_dir / "ca.pem"))
    host, _, port = simulator.host_port.rpartition(":")
    with socket.create_connection((host, int(port))) as raw, context.wrap_socket(raw, server_hostname=host) as tls:
        for _ in range(20):
            tls.sendall(f"GET /healthz HTTP/1.1\r\nHost: {simulator.host_port}\r\n\r\n".encode())
            assert tls.recv(65_536).endswith(b'{"status":"ok"}')


def test_a_second_portfolio_has_its_own_key_orders_and_stream(tmp_path: Path) -> None:
    with running_simulator(tmp_path, "--history-days", "3", "--portfolio", "second") as simulator:
        simulator.push_price("BTC-USD", "60000.00")
        first, second = client(simulator), client(simulator, "cdp_key_second.json")
        ours, theirs = first.get_portfolios().portfolios[0], second.get_portfolios().portfolios[0]
        assert (ours.type, theirs.type, theirs.name) == ("DEFAULT", "CONSUMER", "second")
        stream = Stream(simulator)
        stream.subscribe("user", jwt=token(simulator, "cdp_key_second.json"))
        stream.channel("subscriptions")
        bought = first.limit_order_gtc_buy("mine", "BTC-USD", "0.001", "59999.99")
        resting = second.limit_order_gtc_buy("theirs", "BTC-USD", "0.001", "1000.00")
        assert stream.order(client_order_id="theirs")["retail_portfolio_id"] == theirs.uuid
        with pytest.raises(requests.HTTPError, match="404"):
            second.get_order(bought.success_response["order_id"])
        answer = first.cancel_orders([resting.success_response["order_id"]]).results[0]
        assert (answer.success, answer.failure_reason) == (False, "UNKNOWN_CANCEL_ORDER")
        assert [order.client_order_id for order in second.list_orders().orders] == ["theirs"]
        seen = {o["client_order_id"] for m in stream.seen for e in m["events"] for o in e.get("orders", [])}
        assert seen == {"theirs"}
        stream.connection.close()
        first.session.close()
        second.session.close()
