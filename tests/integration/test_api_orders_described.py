"""What the document says of /v1/orders is what the risk replicas answer, and a check is what an order would be told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import jsonschema
import pytest
from pydantic import BaseModel

from cluster.api_keys import TRADE
from cluster.ledger import Reference, account_base
from serve_apps.api_document import OrderAccepted, OrderCancel, OrderView, WouldBeAccepted, WouldBeDenied
from serve_apps.orders import OrdersApp
from strategies.model import TradingState
from tests.api_desk import BTC, ApiDesk, forget_admissions
from tests.limit_samples import account_limits

pytestmark = pytest.mark.anyio

ORDER = {
    "client_order_id": "o-1",
    "account": "main",
    "strategy": "manual",
    "product_id": "BTC-USD",
    "side": "BUY",
    "type": "LIMIT",
    "quantity": "0.01",
    "limit_price": "90000",
}
LIMITS = account_limits(
    max_order_notional={"hard": 50_000, "soft": 10_000},
    max_leverage={"hard": 1, "soft": "0.5"},
    max_clock_skew_ms=60_000,
    products={"BTC-USD": {"max_order_quantity": 2, "collar_bps": 2000, "max_spread_bps": 100}},
    strategies={
        "manual": {},
        "scout": {"versions": ["v1", "v2"]},
        "slow": {"order_rate_per_s": "0.01", "order_burst": 1},
    },
)


@pytest.fixture
async def client(desk: ApiDesk) -> AsyncIterator[httpx.AsyncClient]:
    """A risk replica in this process, beside an API that knows the same ledger."""
    await desk.open_account(limits=LIMITS)
    application: Any = OrdersApp(desk.ledger, desk.app.state.desk.keys)
    transport = httpx.ASGITransport(application)
    async with httpx.AsyncClient(transport=transport, base_url="http://desk", headers=desk.client.headers) as client:
        yield client


def reads(model: type[BaseModel], answer: Any) -> None:
    """The answer has the documented fields and no other."""
    model.model_validate_json(httpx.Response(200, json=answer).content)


async def test_every_answer_of_orders_is_as_documented(desk: ApiDesk, client: httpx.AsyncClient) -> None:
    documented = desk.app.openapi()["paths"]
    accepted = await client.post("/v1/orders", json=ORDER)
    assert accepted.status_code == 201, accepted.text
    reads(OrderAccepted, accepted.json())
    assert "warnings" not in accepted.json()
    warned = await client.post("/v1/orders", json=ORDER | {"client_order_id": "o-w", "quantity": "0.2"})
    reads(OrderAccepted, warned.json())
    refusals = [
        await client.post("/v1/orders", json=ORDER | {"quantity": "0.02"}),
        await client.post("/v1/orders", json=ORDER | {"client_order_id": "o-2", "quantity": "50"}),
        await client.post("/v1/orders", content=b"{"),
        await client.post("/v1/orders", json=ORDER, headers={"authorization": ""}),
    ]
    assert [answer.status_code for answer in refusals] == [409, 422, 400, 401]
    assert {str(answer.status_code) for answer in refusals} <= set(documented["/v1/orders"]["post"]["responses"])
    listed = (await client.get("/v1/orders", params={"account": "main"})).json()
    assert {order["status"] for order in listed} == {"RESERVED", "DENIED"}
    for order in listed:
        reads(OrderView, order)
    assert [len(order["warnings"]) for order in listed if order["client_order_id"] == "o-w"] == [1]
    one = await client.get("/v1/orders/o-1", params={"account": "main"})
    reads(OrderView, one.json())
    cancelled = await client.delete("/v1/orders/o-1", params={"account": "main"})
    reads(OrderCancel, cancelled.json())
    missing = await client.get("/v1/orders/none", params={"account": "main"})
    assert str(missing.status_code) in documented["/v1/orders/{client_order_id}"]["get"]["responses"]


async def test_how_an_order_was_meant_is_shown_with_it(desk: ApiDesk, client: httpx.AsyncClient) -> None:
    await desk.fill(await desk.order("held", "0.01", "90000"), "0.01", "90000")
    flags: list[dict[str, Any]] = [{"post_only": True}, {"side": "SELL", "reduce_only": True}]
    for number, changed in enumerate(flags):
        sent = await client.post("/v1/orders", json=ORDER | changed | {"client_order_id": f"f-{number}"})
        assert sent.status_code == 201, sent.text
    shown = [(await client.get(f"/v1/orders/f-{n}", params={"account": "main"})).json() for n in range(2)]
    assert [(order["post_only"], order["reduce_only"]) for order in shown] == [(True, False), (False, True)]


# -- check -------------------------------------------------------------------------------------------------------------


async def test_a_check_reserves_nothing_and_answers_what_the_order_is_told(
    desk: ApiDesk, client: httpx.AsyncClient
) -> None:
    keys = await desk.ledger._direct("KEYS", "*")
    before = await desk.ledger.snapshot("main")
    checked = await client.post("/v1/orders/check", json=ORDER)
    assert (checked.status_code, checked.json()) == (
        200,
        {
            "client_order_id": "o-1",
            "account": "main",
            "verdict": "ACCEPTED",
            "reserved_notional": "900",
            "reserved_cash": "905.4",
            "warnings": [],
        },
    )
    after = await desk.ledger.snapshot("main")
    assert (after.book, after.state, await desk.ledger._direct("KEYS", "*")) == (before.book, before.state, keys)
    accepted = await client.post("/v1/orders", json=ORDER)
    told = {name: accepted.json()[name] for name in ("reserved_notional", "reserved_cash", "verdict")}
    assert told.items() <= checked.json().items()


ASKED: list[tuple[dict[str, Any], str, list[str], list[str]]] = [
    # order beside the usual one -> verdict, codes of the denials, of the warnings
    ({}, "ACCEPTED", [], []),
    ({"quantity": "0.2"}, "ACCEPTED", [], ["NOTIONAL_EXCEEDS_MAX"]),
    ({"quantity": "0.6"}, "DENIED", ["NOTIONAL_EXCEEDS_MAX"], ["LEVERAGE"]),
    ({"quantity": "3"}, "DENIED", ["INSUFFICIENT_FUNDS", "LEVERAGE", "NOTIONAL_EXCEEDS_MAX", "QTY_EXCEEDS_MAX"], []),
    ({"limit_price": "79999.99"}, "DENIED", ["PRICE_COLLAR"], []),
    ({"limit_price": "90000.001"}, "DENIED", ["PRICE_INCREMENT"], []),
    ({"quantity": "20000"}, "DENIED", ["SIZE_ABOVE_MAX", "SIZE_ABOVE_MAX"], []),
    ({"product_id": "NO-USD"}, "DENIED", ["UNKNOWN_PRODUCT"], []),
    ({"product_id": "ETH-USD"}, "DENIED", ["SYMBOL_NOT_ALLOWED"], []),
    ({"side": "SELL", "reduce_only": True}, "DENIED", ["INSUFFICIENT_FUNDS", "REDUCE_ONLY_WOULD_INCREASE"], []),
    ({"strategy": "scout"}, "DENIED", ["STRATEGY_NOT_APPROVED"], []),
    ({"strategy": "scout", "strategy_version": "v3"}, "DENIED", ["STRATEGY_NOT_APPROVED"], []),
    ({"strategy": "scout", "strategy_version": "v2"}, "ACCEPTED", [], []),
]


@pytest.mark.parametrize(("changed", "verdict", "denials", "warnings"), ASKED)
async def test_a_check_names_every_rule_with_its_figures(
    desk: ApiDesk,
    client: httpx.AsyncClient,
    changed: dict[str, Any],
    verdict: str,
    denials: list[str],
    warnings: list[str],
) -> None:
    checked = await client.post("/v1/orders/check", json=ORDER | changed)
    answer = checked.json()
    assert (checked.status_code, answer["verdict"]) == (200, verdict)
    assert sorted(one["code"] for one in answer.get("denials", [])) == denials
    assert [one["code"] for one in answer["warnings"]] == warnings
    reads(WouldBeAccepted if verdict == "ACCEPTED" else WouldBeDenied, answer)
    document = desk.app.openapi()
    described = document["paths"]["/v1/orders/check"]["post"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]
    jsonschema.validate(answer, described | {"components": document["components"]})
    assert await desk.ledger.recent_orders("main") == []
    sent = await client.post("/v1/orders", json=ORDER | changed)
    assert sorted(one["code"] for one in sent.json().get("denials", [])) == denials


async def test_a_check_of_an_id_that_is_known_asks_anew(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/orders", json=ORDER)).status_code == 201
    asked = await client.post("/v1/orders/check", json=ORDER | {"quantity": "3"})
    assert (asked.status_code, asked.json()["verdict"]) == (200, "DENIED")


async def test_a_check_that_cannot_be_read_or_may_not_be_asked_is_refused(
    desk: ApiDesk, client: httpx.AsyncClient
) -> None:
    unreadable = await client.post("/v1/orders/check", json=ORDER | {"quantity": "NaN"})
    assert (unreadable.status_code, unreadable.json()["field"]) == (400, "$.quantity")
    for scopes, accounts in ((["read"], ["*"]), ([TRADE], ["second"])):
        refused = await client.post("/v1/orders/check", json=ORDER, headers=await desk.key(scopes, accounts))
        assert (refused.status_code, refused.json()["code"]) == (403, "NOT_AUTHORISED")
    own = await desk.key([TRADE], strategies=["manual"])
    answers = [
        await client.post(path, json=ORDER | {"strategy": strategy, "strategy_version": "v1"}, headers=own)
        for path in ("/v1/orders/check", "/v1/orders")
        for strategy in ("manual", "scout")
    ]
    assert [answer.status_code for answer in answers] == [200, 403, 201, 403]


async def test_an_order_may_be_called_check(client: httpx.AsyncClient) -> None:
    assert (await client.post("/v1/orders", json=ORDER | {"client_order_id": "check"})).status_code == 201
    shown = await client.get("/v1/orders/check", params={"account": "main"})
    assert (shown.status_code, shown.json()["client_order_id"]) == (200, "check")
    cancelled = await client.delete("/v1/orders/check", params={"account": "main"})
    assert cancelled.json()["cancel"] == "CANCELLED"
    for path in ("/v1/orders/check/more", "/v1/orders/else"):
        assert (await client.post(path, params={"account": "main"}, json=ORDER)).status_code == 405


# -- figures, and not now ----------------------------------------------------------------------------------------------

FIGURES: list[tuple[dict[str, Any], str, tuple[str, str, str]]] = [
    # order -> code of one denial, its value, limit and unit
    ({"quantity": "0.6"}, "NOTIONAL_EXCEEDS_MAX", ("54000", "50000", "USD")),
    ({"quantity": "2.5"}, "QTY_EXCEEDS_MAX", ("2.50000000", "2.00000000", "BTC")),
    ({"limit_price": "75000"}, "PRICE_COLLAR", ("25", "20", "%")),
    ({"quantity": "1.5"}, "LEVERAGE", ("135", "100", "%")),
    ({"side": "SELL"}, "INSUFFICIENT_FUNDS", ("0.01000000", "0.00000000", "BTC")),
    ({"strategy": "scout", "strategy_version": "v9"}, "STRATEGY_NOT_APPROVED", ("v9", "v1,v2", "")),
]


@pytest.mark.parametrize(("changed", "code", "figures"), FIGURES)
async def test_a_denial_shows_its_figures_in_the_units_of_people(
    client: httpx.AsyncClient, changed: dict[str, Any], code: str, figures: tuple[str, str, str]
) -> None:
    denials = (await client.post("/v1/orders", json=ORDER | changed)).json()["denials"]
    (found,) = [one for one in denials if one["code"] == code]
    assert (found["value"], found["limit"], found["unit"]) == figures
    assert found["message"]


async def test_a_crossed_market_is_shown_in_prices(desk: ApiDesk, client: httpx.AsyncClient) -> None:
    await desk.ledger.set_references("main", [Reference(BTC, Decimal(90_001), Decimal(90_000))])
    denials = (await client.post("/v1/orders/check", json=ORDER)).json()["denials"]
    (market,) = [one for one in denials if one["code"] == "BAD_BOOK" and one["unit"]]
    assert (market["value"], market["limit"], market["unit"]) == ("90001.00", "90000.00", "USD")


async def test_words_stay_words(desk: ApiDesk, client: httpx.AsyncClient) -> None:
    await desk.ledger.tighten("main", "account", TradingState.HALTED, "test", "drill")
    (halted,) = (await client.post("/v1/orders/check", json=ORDER)).json()["denials"]
    assert (halted["code"], halted["value"], halted["limit"]) == ("TRADING_HALTED", "HALTED", "ACTIVE")


async def test_a_rate_is_429_with_the_time_to_wait_and_a_check_uses_none_of_it(client: httpx.AsyncClient) -> None:
    slow = ORDER | {"strategy": "slow"}
    for _ in range(3):
        assert (await client.post("/v1/orders/check", json=slow)).json()["verdict"] == "ACCEPTED"
    assert (await client.post("/v1/orders", json=slow)).status_code == 201
    again = await client.post("/v1/orders", json=slow | {"client_order_id": "o-2"})
    assert (again.status_code, again.json()["code"]) == (429, "RATE_LIMIT")
    assert 90 <= int(again.headers["retry-after"]) <= 100
    checked = await client.post("/v1/orders/check", json=slow | {"client_order_id": "o-2"})
    assert (checked.status_code, checked.json()["denials"][0]["code"]) == (200, "RATE_LIMIT")


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/orders/check"])
async def test_a_server_that_was_not_reconciled_says_so(desk: ApiDesk, client: httpx.AsyncClient, path: str) -> None:
    await forget_admissions(desk)
    answer = await client.post(path, json=ORDER)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "RECONCILING", "1")
    await desk.ledger.admit("main", desk.epochs["main"])
    assert (await client.post(path, json=ORDER)).status_code in {200, 201}


@pytest.mark.parametrize("path", ["/v1/orders", "/v1/orders/check"])
async def test_a_server_behind_the_epoch_already_seen_is_not_decided_on(
    desk: ApiDesk, client: httpx.AsyncClient, path: str
) -> None:
    assert (await client.post("/v1/orders", json=ORDER)).status_code == 201
    await desk.ledger._direct("HSET", f"{account_base('main')}:state", "epoch", "0")
    answer = await client.post(path, json=ORDER | {"client_order_id": "o-2"})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "STALE_EPOCH", "1")


async def test_a_clock_that_is_far_off_is_not_kept_against_the_order(
    desk: ApiDesk, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_ns = time.time_ns
    monkeypatch.setattr("cluster.ledger.time.time_ns", lambda: true_ns() - 120_000_000_000)
    refused = await client.post("/v1/orders", json=ORDER)
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (503, "CLOCK_SKEW", "1")
    checked = await client.post("/v1/orders/check", json=ORDER)
    assert (checked.status_code, checked.json()["denials"][0]["unit"]) == (200, "ms")
    monkeypatch.undo()
    assert (await client.post("/v1/orders", json=ORDER)).status_code == 201
