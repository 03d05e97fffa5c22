"""The API's door and its health, against a real ledger."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from decimal import Decimal

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from cluster.api_keys import READ
from cluster.deadman import PART
from cluster.ledger import Ledger, Reference, account_base
from cluster.processes import choose_ports
from conf.settings import RedisSettings, Settings, VenueSettings
from serve_apps.api import build_api
from serve_apps.api_access import BODY_BYTES_MAX, key_with_any, presented_key
from strategies.model import TradingState
from tests.api_desk import BTC, ApiDesk, forget_admissions, open_desk
from tests.servers import redis_secrets

pytestmark = pytest.mark.anyio


async def test_a_living_process_says_so_without_a_key(desk: ApiDesk) -> None:
    answer = await desk.get("/healthz", headers={"authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["x-simulated"] == "1"


async def test_ready_once_ledger_execution_and_prices_are(desk: ApiDesk) -> None:
    first = await desk.get("/readyz")
    assert (first.status_code, first.json()["code"]) == (503, "NOT_READY")
    assert "execution: no heartbeat" in first.json()["detail"]
    await desk.open_account()
    await desk.ledger.beat("execution", {"account": "main"})
    second = await desk.get("/readyz", headers={"authorization": ""})
    assert second.status_code == 200, second.text
    assert {part["name"]: part["healthy"] for part in second.json()["parts"]} == {
        "ledger": True,
        "admission": True,
        "execution": True,
        "deadman": False,
        "prices": True,
        "ray_jobs": False,
    }


async def test_not_ready_without_a_price_of_every_product(desk: ApiDesk) -> None:
    await desk.open_account(prices=False)
    await desk.ledger.beat("execution", {"account": "main"})
    answer = await desk.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_READY")
    assert "BTC-USD none, ETH-USD none" in answer.json()["detail"]


async def test_not_ready_while_orders_wait_for_a_reconciliation(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.open_account("second")
    await desk.ledger.beat("execution", {"account": "main"})
    await forget_admissions(desk)
    answer = await desk.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "NOT_READY")
    assert "admission: orders are refused (RECONCILING) for account main, second" in answer.json()["detail"]
    await desk.ledger.admit("main", desk.epochs["main"])
    admitted = await desk.get("/readyz")
    assert admitted.status_code == 200, admitted.text
    (part,) = [part for part in admitted.json()["parts"] if part["name"] == "admission"]
    assert "account second" in part["detail"]


async def test_health_says_whether_a_silence_would_be_noticed(desk: ApiDesk) -> None:
    await desk.open_account()
    for phase, healthy in (("WAITING", False), ("WATCHING", True), ("TRIPPED", False)):
        await desk.ledger.beat(PART, {"account": "main", "phase": phase, "reason": "execution has been silent"})
        health = (await desk.get("/v1/health")).json()
        (part,) = [part for part in health["parts"] if part["name"] == "deadman"]
        assert (part["healthy"], part["required"], part["detail"].startswith(phase)) == (healthy, False, True)
        assert (health["deadman"]["phase"], health["deadman"]["watching"]) == (phase, healthy)
    assert "execution has been silent" in part["detail"]


async def test_health_says_whether_a_live_desk_is_armed_and_it_is_ready_before(
    settings: Settings, ledger: Ledger
) -> None:
    live = settings.model_copy(update={"profile": "live", "venue": VenueSettings(kind="coinbase")})
    async with open_desk(live, ledger) as desk:
        await desk.open_account()
        await desk.ledger.beat("execution", {"account": "main"})
        for armed in (False, True):
            ready = await desk.get("/readyz")
            assert ready.status_code == 200, ready.text
            (part,) = [part for part in ready.json()["parts"] if part["name"] == "arming"]
            assert (part["healthy"], part["required"], "not armed" in part["detail"]) == (armed, False, not armed)
            assert (await desk.get("/v1/health")).json()["arming"]["armed"] is armed
            await desk.post("/v1/arming", {"reason": "the first live day", "expires_s": 60})


async def test_health_counts_alerts_and_names_what_is_halted(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger.tighten(None, "global", TradingState.REDUCING, "test", "drill")
    await desk.ledger.set_references("main", [Reference(BTC, Decimal("100000.01"), Decimal(100_000))])
    whole, main = (await desk.get("/v1/health")).json()["accounts"]
    assert (whole["account"], whole["admitted"]) == (None, True)
    assert whole["halts"] == [{"scope": "global", "state": "REDUCING", "cause": None}]
    assert (main["account"], main["admitted"], main["alerts"], main["hard_alerts"]) == ("main", True, 1, 1)
    assert main["halts"] == [{"scope": "product|BTC-USD", "state": "HALTED", "cause": "BAD_BOOK"}]


async def test_every_v1_route_asks_for_a_key(desk: ApiDesk) -> None:
    routes = [route for route in iter_route_contexts(desk.app.routes) if (route.path or "").startswith("/v1")]
    assert len(routes) > 5
    for route in routes:
        asked = {part.call for part in route.dependant.dependencies}
        assert asked & {presented_key, key_with_any}, route.path
        for method in route.methods or ():
            # Whatever is named: who asks is known before that is looked at.
            path = re.sub(r"\{[a-z_]+\}", "anything", str(route.path))
            answer = await desk.client.request(method, path, headers={"authorization": ""})
            assert (answer.status_code, answer.json()["code"]) == (401, "NOT_AUTHENTICATED"), (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_an_open_route_is_one_of_three(desk: ApiDesk) -> None:
    paths = {route.path for route in iter_route_contexts(desk.app.routes)}
    assert {path for path in paths if not str(path).startswith("/v1")} == {"/healthz", "/readyz", "/openapi.json"}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer tt_0123456789ab_" + "A" * 43,
        "Basic dXNlcjpwYXNz",
        "Bearer \xe9\xff",
        "x" * 9000,
    ],
)
async def test_what_is_not_a_known_key_is_401(desk: ApiDesk, header: str) -> None:
    answer = await desk.get("/v1/accounts", headers={"authorization": header.encode("latin-1")})
    assert (answer.status_code, answer.json()["code"]) == (401, "NOT_AUTHENTICATED")


async def test_a_revoked_key_is_401(desk: ApiDesk) -> None:
    headers = await desk.key([READ])
    key_id = headers["authorization"].split("_")[1]
    assert (await desk.get("/v1/accounts", headers=headers)).status_code == 200
    await desk.ledger.put_api_key(key_id, (await desk.ledger.api_keys())[key_id] | {"revoked": True})
    desk.forget_keys()
    assert (await desk.get("/v1/accounts", headers=headers)).status_code == 401


async def test_the_caller_is_known_before_the_body_is_read(desk: ApiDesk) -> None:
    answer = await desk.client.post("/v1/risk/halt", content=b"{not json", headers={"authorization": "Bearer no"})
    assert answer.status_code == 401


BAD_BODIES: list[tuple[bytes, str, int, str]] = [
    # body, content type, status, code
    (b"{not json", "application/json", 400, "INVALID_BODY"),
    (b"\xff\xfe", "application/json", 400, "INVALID_BODY"),
    (b"[" * 200_000, "application/json", 400, "INVALID_BODY"),
    (b'{"scope": ' + b"9" * 5000 + b"}", "application/json", 400, "INVALID_BODY"),
    (b'{"scope": "account", "reason": "\\ud800"}', "application/json", 422, "INVALID_REQUEST"),
    (b'{"scope": "account", "reason": "x", "state": NaN}', "application/json", 422, "INVALID_REQUEST"),
    (b"null", "application/json", 422, "INVALID_REQUEST"),
    (b"", "application/json", 422, "INVALID_REQUEST"),
    (b"{}", "text/plain", 415, "UNSUPPORTED_MEDIA_TYPE"),
    (b"scope=account", "application/x-www-form-urlencoded", 415, "UNSUPPORTED_MEDIA_TYPE"),
    (b" " * (BODY_BYTES_MAX + 1), "application/json", 413, "BODY_TOO_LARGE"),
]


@pytest.mark.parametrize(("body", "content_type", "status", "code"), BAD_BODIES)
async def test_a_bad_body_is_a_problem(desk: ApiDesk, body: bytes, content_type: str, status: int, code: str) -> None:
    answer = await desk.client.post("/v1/risk/halt", content=body, headers={"content-type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_body_without_a_declared_length_is_bounded_too(desk: ApiDesk) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100_000

    answer = await desk.client.post("/v1/risk/halt", content=pieces(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


async def test_a_body_that_does_not_come_is_408(desk: ApiDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.api_access.BODY_TIMEOUT_S", 0.05)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await desk.client.post("/v1/risk/halt", content=pieces(), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (408, "BODY_TOO_SLOW")


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "NOT_FOUND"),
        ("GET", "/v1/accounts/", 404, "NOT_FOUND"),
        ("GET", "/docs", 404, "NOT_FOUND"),
        ("POST", "/v1/accounts", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/risk/halt", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/accounts/nobody", 404, "UNKNOWN_ACCOUNT"),
        ("GET", "/v1/accounts/%00%0a", 404, "UNKNOWN_ACCOUNT"),
        ("GET", "/v1/accounts/%ff", 404, "UNKNOWN_ACCOUNT"),
        ("GET", "/v1/accounts/" + "a" * 500, 404, "UNKNOWN_ACCOUNT"),
    ],
)
async def test_a_wrong_path_is_a_problem(desk: ApiDesk, method: str, path: str, status: int, code: str) -> None:
    answer = await desk.client.request(method, path)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"


async def test_a_key_sees_only_its_accounts(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    headers = await desk.key([READ], ["second"])
    listed = (await desk.get("/v1/accounts", headers=headers)).json()["accounts"]
    assert [account["account"] for account in listed] == ["second"]
    refused = await desk.get("/v1/accounts/main", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "NOT_AUTHORISED")


async def test_without_the_ledger_the_answer_is_503_and_names_no_host(settings: Settings) -> None:
    (port,) = choose_ports(1)
    away = settings.model_copy(update={"redis": RedisSettings(host="127.0.0.1", port=port)})
    ledger = Ledger.connect(away, redis_secrets())
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(build_api(away, redis_secrets(), ledger)), base_url="http://desk"
    ) as client:
        answer = await client.get("/v1/accounts", headers={"authorization": "Bearer tt_0_0"})
        assert (answer.status_code, answer.json()["code"]) == (503, "RISK_UNAVAILABLE")
        assert str(port) not in answer.text
        assert (await client.get("/readyz")).json()["code"] == "NOT_READY"
        assert (await client.get("/healthz")).status_code == 200
    await ledger.close()


async def test_a_fault_of_ours_is_500_and_tells_nothing(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("HSET", f"{account_base('main')}:book", "cash", "no number")
    answer = await desk.get("/v1/accounts/main")
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    assert "no number" not in answer.text


async def test_a_refusal_of_the_ledger_is_500_and_tells_nothing(desk: ApiDesk) -> None:
    await desk.ledger._direct("SET", f"{account_base('main')}:limits", "not a hash")
    answer = await desk.get("/v1/accounts/main")
    assert (answer.status_code, answer.json()["code"]) == (500, "INTERNAL")
    assert "WRONGTYPE" not in answer.text


async def test_health_shows_every_part(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger.beat("execution", {"account": "main", "submitted": 3})
    health = (await desk.get("/v1/health")).json()
    assert health["healthy"] is True
    assert health["data_source"] == "SIMULATED"
    assert health["venue"]["simulated"] is True
    assert health["ledger"]["server"] == "valkey"
    assert 0 < health["ledger"]["memory_share"] < 1
    assert health["execution"]["submitted"] == 3
    assert {item["product_id"]: item["fresh"] for item in health["references"]} == {"BTC-USD": True, "ETH-USD": True}
