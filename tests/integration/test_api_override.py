"""One order over its limits over HTTP: who may trade asks, who may set limits approves, then it is submitted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cluster.api_keys import HALT, LIMITS, READ, RESUME, TRADE
from cluster.audit import verify
from serve_apps.api_approvals import ProposalView
from serve_apps.api_document import OrderAccepted, OrderView, WouldBeAccepted
from serve_apps.orders import OrdersApp
from tests.api_desk import ApiDesk

pytestmark = pytest.mark.anyio

# 0.6 BTC at 100,000 are 60,000 USD, and 50,000 is the most at four scopes.
ORDER: dict[str, Any] = {
    "client_order_id": "o-1",
    "account": "main",
    "strategy": "manual",
    "product_id": "BTC-USD",
    "side": "BUY",
    "type": "LIMIT",
    "quantity": "0.6",
    "limit_price": "100000",
}
SCOPES = {"account", "strategy|manual", "product|BTC-USD"}


@pytest.fixture
async def orders(desk: ApiDesk) -> AsyncIterator[httpx.AsyncClient]:
    """A risk replica in this process, beside the API; the account is open."""
    await desk.open_account()
    application: Any = OrdersApp(desk.ledger, desk.app.state.desk.keys)
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://desk", headers=desk.client.headers) as client:
        yield client


async def asked(desk: ApiDesk, headers: dict[str, str] | None = None, **changed: Any) -> httpx.Response:
    """Ask for an override; fields of the order may be changed, ``reason`` and ``expires_s`` too."""
    more = {name: changed.pop(name) for name in ("reason", "expires_s") if name in changed}
    body = {"order": ORDER | changed, "reason": "the client agreed"} | more
    return await desk.post("/v1/risk/override", body, headers=headers or await desk.key([TRADE], person="ada"))


async def proposed(desk: ApiDesk, **changed: Any) -> dict[str, Any]:
    answer = await asked(desk, **changed)
    assert answer.status_code == 202, answer.text
    ProposalView.model_validate_json(answer.content)
    return dict(answer.json())


async def approve(desk: ApiDesk, proposal: dict[str, Any], scopes: list[str] | None = None, **more: Any) -> Any:
    headers = await desk.key(scopes or [LIMITS], **({"person": "bob"} | more))
    return await desk.post(f"/v1/approvals/{proposal['id']}/approve", {"digest": proposal["digest"]}, headers=headers)


async def test_from_the_question_to_the_order(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    proposal = await proposed(desk)
    assert (proposal["kind"], proposal["status"], proposal["person"]) == ("OVERRIDE", "PENDING", "ada")
    assert proposal["scopes"] == ["strategy|manual", "product|BTC-USD"]
    assert proposal["order"] == {
        "client_order_id": "o-1",
        "strategy": "manual",
        "product_id": "BTC-USD",
        "side": "BUY",
        "type": "LIMIT",
        "time_in_force": "GTC",
        "quantity": "0.6",
        "limit_price": "100000",
        "post_only": False,
        "reduce_only": False,
        "strategy_version": None,
    }
    first, *rules = proposal["changes"]
    assert first["scope"] == "order o-1"
    assert first["after"] == "LIMIT BUY 0.6 BTC-USD at 100000 GTC, strategy manual"
    assert {(r["scope"], r["before"], r["after"], r["unit"]) for r in rules if r["name"] == "NOTIONAL_EXCEEDS_MAX"} == {
        (scope, "50000", "60000", "USD") for scope in SCOPES
    }
    listed = (await desk.get("/v1/approvals")).json()["proposals"]
    assert listed == [proposal]

    answer = await approve(desk, proposal)
    assert (answer.status_code, answer.json()["outcome"]) == (200, "APPLIED"), answer.text
    checked = await orders.post("/v1/orders/check", json=ORDER)
    WouldBeAccepted.model_validate_json(checked.content)
    sent = await orders.post("/v1/orders", json=ORDER)
    assert sent.status_code == 201, sent.text
    OrderAccepted.model_validate_json(sent.content)
    overridden = {(w["scope"], w["value"], w["limit"]) for w in sent.json()["warnings"] if w.get("level")}
    assert {("account", "60000", "50000")} < overridden
    assert checked.json()["warnings"] == sent.json()["warnings"]
    again = await orders.post("/v1/orders", json=ORDER)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
    another = await orders.post("/v1/orders", json=ORDER | {"client_order_id": "o-2"})
    assert (another.status_code, another.json()["code"]) == (422, "NOTIONAL_EXCEEDS_MAX")

    (row,) = (await desk.get("/v1/approvals", params={"status": "all"})).json()["proposals"]
    assert (row["status"], row["approver"]) == ("USED", "bob")
    shown = await orders.get("/v1/orders/o-1", params={"account": "main"})
    OrderView.model_validate_json(shown.content)
    assert shown.json()["warnings"] == sent.json()["warnings"]
    alerts = (await desk.get("/v1/alerts")).json()["alerts"]
    assert {alert["client_order_id"] for alert in alerts if alert["level"] == "OVERRIDDEN"} == {"o-1"}
    assert await verify(desk.ledger, "main") == []


async def test_a_halt_stands_over_what_was_approved(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    proposal = await proposed(desk)
    assert (await approve(desk, proposal)).status_code == 200
    halted = await desk.post("/v1/risk/halt", {"scope": "global", "reason": "drill"})
    assert halted.status_code == 200
    sent = await orders.post("/v1/orders", json=ORDER)
    codes = {denial["code"] for denial in sent.json()["denials"]}
    assert (sent.status_code, {"TRADING_HALTED", "NOTIONAL_EXCEEDS_MAX"} <= codes) == (422, True)


async def test_a_rule_nothing_overrides_is_shown_as_one(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    proposal = await proposed(desk, quantity="2")
    names = {row["name"] for row in proposal["changes"]}
    assert {"INSUFFICIENT_FUNDS (never overridden)", "NOTIONAL_EXCEEDS_MAX"} <= names


async def test_numbers_are_shown_in_digits(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    proposal = await proposed(desk, quantity="0.00001", limit_price=None, type="MARKET", strategy_version="v7")
    terms = proposal["order"]
    assert (terms["quantity"], terms["limit_price"], terms["strategy_version"]) == ("0.00001", None, "v7")
    (row,) = proposal["changes"]
    assert row["after"] == "MARKET BUY 0.00001 BTC-USD IOC, strategy manual, version v7"


# -- who may -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scopes", [[READ], [HALT, RESUME, LIMITS]])
async def test_who_may_not_trade_may_not_ask(desk: ApiDesk, orders: httpx.AsyncClient, scopes: list[str]) -> None:
    answer = await asked(desk, await desk.key(scopes))
    assert (answer.status_code, answer.json()["code"]) == (403, "NOT_AUTHORISED")


@pytest.mark.parametrize("covers", [{"accounts": ["second"]}, {"strategies": ["sma_cross"]}])
async def test_a_key_asks_for_its_own_account_and_strategy(
    desk: ApiDesk, orders: httpx.AsyncClient, covers: dict[str, list[str]]
) -> None:
    answer = await asked(desk, await desk.key([TRADE], **covers))
    assert (answer.status_code, answer.json()["code"]) == (403, "NOT_AUTHORISED")


async def test_without_a_key_nobody_asks(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    answer = await asked(desk, {"authorization": "Bearer nonsense"})
    assert answer.status_code == 401


async def test_the_same_person_cannot_approve(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    answer = await approve(desk, await proposed(desk), person=" ADA ")
    assert (answer.status_code, answer.json()["code"]) == (403, "SAME_PERSON")


APPROVERS: list[tuple[str, list[str], dict[str, list[str]]]] = [
    ("may resume", [RESUME], {}),
    ("may trade", [TRADE], {}),
    ("another account", [LIMITS], {"accounts": ["second"]}),
    ("only this strategy, and the account's limits are broken too", [LIMITS], {"strategies": ["manual"]}),
]


@pytest.mark.parametrize(("what", "scopes", "covers"), APPROVERS, ids=[row[0] for row in APPROVERS])
async def test_who_may_not_loosen_the_accounts_limits_may_not_approve(
    desk: ApiDesk, orders: httpx.AsyncClient, what: str, scopes: list[str], covers: dict[str, list[str]]
) -> None:
    answer = await approve(desk, await proposed(desk), scopes, **covers)
    assert (answer.status_code, answer.json()["code"]) == (403, "NOT_AUTHORISED")
    assert (await orders.post("/v1/orders", json=ORDER)).status_code == 422


@pytest.mark.parametrize("approved", [False, True])
async def test_who_asked_may_take_it_back_and_another_trader_may_not(
    desk: ApiDesk, orders: httpx.AsyncClient, approved: bool
) -> None:
    proposal = await proposed(desk)
    if approved:
        assert (await approve(desk, proposal)).status_code == 200
    path, why = f"/v1/approvals/{proposal['id']}/refuse", {"reason": "no longer"}
    other = await desk.post(path, why, headers=await desk.key([TRADE], person="eve"))
    assert (other.status_code, other.json()["code"]) == (403, "NOT_AUTHORISED")
    own = await desk.post(path, why, headers=await desk.key([TRADE], person="ada"))
    assert (own.status_code, own.json()["outcome"]) == (200, "REFUSED")
    assert (await orders.post("/v1/orders", json=ORDER)).status_code == 422
    late = await approve(desk, proposal)
    assert (late.status_code, late.json()["code"]) == (409, "DONE")


async def test_a_trader_may_not_refuse_what_is_no_override(desk: ApiDesk, orders: httpx.AsyncClient) -> None:
    await desk.post("/v1/risk/halt", {"scope": "global", "reason": "drill"})
    resumed = await desk.post("/v1/risk/resume", {"scope": "global", "reason": "over"})
    (proposal,) = resumed.json()["proposals"]
    trader = await desk.key([TRADE], person=proposal["person"])
    answer = await desk.post(f"/v1/approvals/{proposal['id']}/refuse", {"reason": "no"}, headers=trader)
    assert (answer.status_code, answer.json()["code"]) == (403, "NOT_AUTHORISED")


# -- what cannot be asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("price", ["90000", "100000"])
async def test_an_id_that_is_an_orders_is_refused(desk: ApiDesk, orders: httpx.AsyncClient, price: str) -> None:
    # One was accepted, the other denied.
    quantity = "0.01" if price == "90000" else "0.6"
    await orders.post("/v1/orders", json=ORDER | {"quantity": quantity, "limit_price": price})
    answer = await asked(desk)
    assert (answer.status_code, answer.json()["code"]) == (409, "ORDER_KNOWN")
    assert "o-1" in answer.json()["detail"]


async def test_an_order_that_was_sent_before_the_approval_keeps_its_denial(
    desk: ApiDesk, orders: httpx.AsyncClient
) -> None:
    proposal = await proposed(desk)
    assert (await orders.post("/v1/orders", json=ORDER)).status_code == 422
    answer = await approve(desk, proposal)
    assert (answer.status_code, answer.json()["code"]) == (409, "CHANGED")


WRONG: list[tuple[dict[str, Any], int, str, str]] = [
    # what differs -> status, code, what the answer names
    ({"quantity": "-1"}, 400, "INVALID_ORDER", "order.quantity"),
    ({"quantity": "0"}, 400, "INVALID_ORDER", "order.quantity"),
    ({"quantity": 1}, 422, "INVALID_REQUEST", "order.quantity"),
    ({"quantity": float("nan")}, 422, "INVALID_REQUEST", "order.quantity"),
    ({"quantity": None}, 400, "INVALID_ORDER", "order.quantity"),
    ({"quantity": ["1"]}, 422, "INVALID_REQUEST", "order.quantity"),
    ({"limit_price": None}, 400, "INVALID_ORDER", "order.limit_price"),
    ({"side": "HOLD"}, 400, "INVALID_ORDER", "order.side"),
    ({"side": "\ud800"}, 400, "INVALID_ORDER", "order"),
    ({"account": "a" * 40}, 400, "INVALID_ORDER", "order.account"),
    ({"unknown": "x"}, 400, "INVALID_ORDER", "order.unknown"),
    ({"post_only": "yes"}, 400, "INVALID_ORDER", "order.post_only"),
    ({"account": "nobody"}, 404, "UNKNOWN_ACCOUNT", "nobody"),
    ({"product_id": "DOGE-USD"}, 422, "UNKNOWN_PRODUCT", "product|DOGE-USD"),
    ({"quantity": "0.000000001"}, 422, "SIZE_BELOW_MIN", "product|BTC-USD"),
    ({"limit_price": "100000.001"}, 422, "PRICE_INCREMENT", "product|BTC-USD"),
    ({"reason": " "}, 422, "INVALID_REQUEST", "reason"),
    ({"reason": "x" * 501}, 422, "INVALID_REQUEST", "reason"),
    ({"expires_s": 9}, 422, "INVALID_REQUEST", "expires_s"),
    ({"expires_s": 86_401}, 422, "INVALID_REQUEST", "expires_s"),
]


@pytest.mark.parametrize(("changed", "status", "code", "named"), WRONG, ids=[str(row[0])[:40] for row in WRONG])
async def test_what_can_be_no_order_is_refused_by_name(
    desk: ApiDesk, orders: httpx.AsyncClient, changed: dict[str, Any], status: int, code: str, named: str
) -> None:
    answer = await asked(desk, **changed)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert named in answer.text
    assert (await desk.get("/v1/approvals", params={"status": "all"})).json() == {"proposals": []}


@pytest.mark.parametrize("left_out", ["client_order_id", "account", "quantity", "side"])
async def test_an_order_that_lacks_something_is_refused(
    desk: ApiDesk, orders: httpx.AsyncClient, left_out: str
) -> None:
    order = {name: value for name, value in ORDER.items() if name != left_out}
    answer = await desk.post("/v1/risk/override", {"order": order, "reason": "why"})
    assert (answer.status_code, answer.json()["field"]) == (400, f"order.{left_out}")


@pytest.mark.parametrize(
    "body", [{"reason": "x"}, {"order": ORDER}, {"order": "x", "reason": "x"}, {"order": None}, []]
)
async def test_a_body_without_order_or_reason_is_refused(
    desk: ApiDesk, orders: httpx.AsyncClient, body: object
) -> None:
    answer = await desk.post("/v1/risk/override", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")
