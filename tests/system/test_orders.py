"""Orders through HAProxy, three risk replicas, the ledger, execution and the exchange simulator: all of it real."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

import httpx
import pytest

from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_market_order_is_accepted_filled_and_booked(desk: Desk) -> None:
    before = desk.ledger(lambda ledger: ledger.snapshot("main"))
    body = desk.order(quantity="0.02")
    reply = desk.submit(body)
    assert reply.status_code == 201, reply.text
    assert reply.json()["verdict"] == "ACCEPTED"
    final = desk.settled(body["client_order_id"])
    assert (final["status"], final["filled_quantity"]) == ("FILLED", "0.02000000")
    after = desk.ledger(lambda ledger: ledger.snapshot("main"))
    spent = Decimal(final["filled_value"]) + Decimal(final["fees"])
    assert int(before.book["cash"]) - int(after.book["cash"]) == spent * 1_000_000
    held = int(after.book["p|BTC-USD|lots"]) - int(before.book.get("p|BTC-USD|lots", "0"))
    assert held == 2_000_000
    assert desk.submit(desk.order(quantity="0.02", side="SELL")).status_code == 201


def test_a_repeat_gets_the_first_answer_and_reaches_the_venue_once(desk: Desk) -> None:
    body = desk.resting()
    first = desk.submit(body)
    repeats = [reply for reply in desk.submit_all([body] * 30) if reply is not None]
    assert len(repeats) == 30
    assert {reply.status_code for reply in repeats} == {201}
    assert {reply.text for reply in repeats} == {first.text}
    assert {reply.headers["idempotent-replayed"] for reply in repeats} == {"true"}
    eventually(lambda: desk.show(body["client_order_id"])["status"] == "OPEN", 10, "the order is at the venue")
    theirs = [order for order in desk.venue().orders() if order.client_order_id == body["client_order_id"]]
    assert len(theirs) == 1
    desk.http.delete(f"/v1/orders/{body['client_order_id']}", params={"account": "main"})
    assert desk.settled(body["client_order_id"])["status"] == "CANCELLED"


def test_the_same_id_with_another_body_is_a_conflict(desk: Desk) -> None:
    body = desk.resting()
    assert desk.submit(body).status_code == 201
    reply = desk.submit(body | {"quantity": "0.02"})
    assert (reply.status_code, reply.json()["code"]) == (409, "DUP_ID_DIFFERENT_BODY")
    desk.cancel_all("manual")


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"quantity": "5"}, 422, "NOTIONAL_EXCEEDS_MAX"),
        ({"product_id": "DOGE-USD"}, 422, "UNKNOWN_PRODUCT"),
        ({"product_id": "SOL-USD"}, 422, "SYMBOL_NOT_ALLOWED"),
        ({"strategy": "nobody"}, 422, "STRATEGY_NOT_APPROVED"),
        ({"account": "nobody"}, 404, "UNKNOWN_ACCOUNT"),
        ({"quantity": "0.000000001"}, 422, "SIZE_BELOW_MIN"),
        ({"quantity": "0.0010000001"}, 422, "SIZE_INCREMENT"),
        ({"type": "LIMIT", "limit_price": "1000.001"}, 422, "PRICE_INCREMENT"),
        ({"type": "LIMIT"}, 400, "INVALID_ORDER"),
        ({"quantity": "-1"}, 400, "INVALID_ORDER"),
        ({"quantity": "NaN"}, 400, "INVALID_ORDER"),
        ({"quantity": 1}, 400, "INVALID_ORDER"),
        ({"side": "HOLD"}, 400, "INVALID_ORDER"),
        ({"surprise": True}, 400, "INVALID_ORDER"),
        ({"product_id": "ETH-USD", "side": "SELL", "quantity": "1"}, 422, "INSUFFICIENT_FUNDS"),
    ],
)
def test_a_bad_order_is_refused_with_its_rule(desk: Desk, changes: dict[str, object], status: int, code: str) -> None:
    reply = desk.submit(desk.order(**changes))
    assert reply.headers["content-type"] == "application/problem+json"
    answer = reply.json()
    codes = {denial["code"] for denial in answer.get("denials", [{"code": answer["code"]}])}
    assert (reply.status_code, code in codes) == (status, True), reply.text


def test_every_route_of_version_1_needs_a_key(desk: Desk) -> None:
    for method, path in [
        ("POST", "/v1/orders"),
        ("GET", "/v1/orders?account=main"),
        ("GET", "/v1/orders/x?account=main"),
        ("DELETE", "/v1/orders/x?account=main"),
        ("GET", "/v1/accounts"),
        ("POST", "/v1/risk/halt"),
        ("GET", "/v1/backtests"),
    ]:
        for headers in ({}, {"Authorization": "Bearer tt_000000000000_" + "A" * 43}):
            reply = httpx.request(method, desk.settings.api_url + path, headers=headers, timeout=10, trust_env=False)
            assert reply.status_code == 401, (method, path, reply.text)
            assert reply.json()["code"] == "NOT_AUTHENTICATED"


def test_the_replicas_own_port_gives_the_same_answers(desk: Desk) -> None:
    body = desk.resting()
    first = desk.submit(body, "own port")
    assert first.status_code == 201, first.text
    repeat = desk.submit(body, "serve")
    assert (repeat.text, repeat.headers["idempotent-replayed"]) == (first.text, "true")
    other = desk.submit(body | {"quantity": "0.02"}, "own port")
    assert (other.status_code, other.headers["content-type"]) == (409, "application/problem+json")
    own = desk.doors["own port"]
    assert own.post("/v1/orders", json=body, headers={"authorization": "Bearer x"}).status_code == 401
    assert own.delete(f"/v1/orders/{body['client_order_id']}?account=main").status_code in {200, 202}
    assert desk.settled(body["client_order_id"])["status"] == "CANCELLED"


@pytest.mark.parametrize(
    ("strategy", "code", "door"),
    [
        ("race", "MAX_OPEN_ORDERS", "serve"),  # room for 100 open orders
        ("race", "MAX_OPEN_ORDERS", "own port"),
        ("gross", "MAX_GROSS", "serve"),  # 1,000 USD: room for 100 orders of 10 USD
    ],
)
def test_of_300_at_once_exactly_100_find_room(desk: Desk, strategy: str, code: str, door: str) -> None:
    replies = desk.submit_all([desk.resting(strategy=strategy) for _ in range(300)], door=door)
    counts = Counter(reply.status_code for reply in replies if reply is not None)
    assert counts == {201: 100, 422: 200}
    denied = [reply.json()["code"] for reply in replies if reply is not None and reply.status_code == 422]
    assert set(denied) == {code}
    assert desk.differences() == []
    desk.cancel_all(strategy)
    assert desk.differences() == []


def test_the_order_rate_is_kept_over_all_replicas_and_says_when_to_come_again(desk: Desk) -> None:
    replies = desk.submit_all([desk.resting(strategy="slow") for _ in range(12)])
    counts = Counter(reply.status_code for reply in replies if reply is not None)
    assert counts == {201: 3, 429: 9}
    late = next(reply for reply in replies if reply is not None and reply.status_code == 429)
    assert int(late.headers["retry-after"]) >= 1
    desk.cancel_all("slow")


@pytest.mark.parametrize("scope", ["global", "account", "strategy|stopped", "product|BTC-USD"])
def test_after_a_halt_no_replica_accepts_and_cancels_still_work(desk: Desk, scope: str) -> None:
    open_order = desk.resting(strategy="stopped")
    assert desk.submit(open_order).status_code == 201

    desk.halt(scope)
    try:
        replies = desk.submit_all([desk.order(strategy="stopped") for _ in range(30)])
        assert {reply.json()["code"] for reply in replies if reply is not None} == {"TRADING_HALTED"}
        cancel = desk.http.delete(f"/v1/orders/{open_order['client_order_id']}", params={"account": "main"})
        assert cancel.status_code in {200, 202}
        assert desk.settled(open_order["client_order_id"])["status"] == "CANCELLED"
    finally:
        desk.resume(scope)
    assert desk.submit(desk.order(strategy="stopped")).status_code == 201


def test_hostile_bodies_get_a_clear_4xx_and_reserve_nothing(desk: Desk) -> None:
    def open_orders() -> int:
        return int(desk.ledger(lambda ledger: ledger.snapshot("main")).book["a|open_orders"])

    eventually(lambda: open_orders() == 0, 20, "no order of the tests before is open")
    bodies = [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b'{"a":' * 5000, b"x" * 10_000_000, b'{"quantity": 1e400}']
    for body in bodies:
        reply = desk.http.post("/v1/orders", content=body, headers={"content-type": "application/json"})
        assert 400 <= reply.status_code < 500, (body[:20], reply.status_code, reply.text)
        assert reply.headers["content-type"] == "application/problem+json"
    assert open_orders() == 0
