"""The kill switch over HTTP: who may, what is written, and that a halt never allows more than before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.api_keys import HALT, READ, RESUME, TRADE
from strategies.model import TradingState
from tests.api_desk import LIMITS, ApiDesk, only

pytestmark = pytest.mark.anyio

REASON = {"reason": "drill"}


async def halt(desk: ApiDesk, **body: Any) -> Any:
    answer = await desk.post("/v1/risk/halt", REASON | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["changed"]


async def states(desk: ApiDesk, account: str = "main") -> dict[str, str]:
    fields = (await desk.ledger.snapshot(account)).state
    return {name: state for name, state in fields.items() if state in set(TradingState)}


async def test_halting_an_account_stops_its_orders_and_resuming_lets_them_through(desk: ApiDesk) -> None:
    await desk.open_account()
    (change,) = await halt(desk, account="main", scope="account")
    assert (change["before"], change["state"], change["account"]) == ("ACTIVE", "HALTED", "main")
    with pytest.raises(AssertionError, match="TRADING_HALTED"):
        await desk.order("o-1", "0.01", "100000")
    answer = await desk.post("/v1/risk/resume", REASON | {"account": "main", "scope": "account"})
    (resumed,) = answer.json()["changed"]
    assert (resumed["before"], resumed["state"]) == ("HALTED", "ACTIVE")
    assert resumed["audit_seq"] > change["audit_seq"]
    await desk.order("o-2", "0.01", "100000")


async def test_the_audit_entry_names_the_key_and_the_reason(desk: ApiDesk) -> None:
    await desk.open_account()
    headers = await desk.key([HALT])
    await desk.post("/v1/risk/halt", {"scope": "global", "reason": "  prices look odd é "}, headers=headers)
    (_, entry), *_ = await desk.ledger._direct("XREVRANGE", "tt:{main}:audit", "+", "-", "COUNT", "1")
    assert entry["kind"] == "STATE"
    assert entry["by"] == headers["authorization"].split("_")[1]
    assert '"reason":"prices look odd é"' in entry["data"]


async def test_scope_global_writes_every_account(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    changed = await halt(desk, scope="global")
    assert [change["account"] for change in changed] == ["main", "second"]
    for account in ("main", "second"):
        assert (await states(desk, account))["global"] == "HALTED"


@pytest.mark.parametrize(
    ("scope", "name", "field"),
    [("strategy", "sma_cross", "strategy|sma_cross"), ("product", "BTC-USD", "product|BTC-USD")],
)
async def test_one_strategy_or_product_is_halted_alone(desk: ApiDesk, scope: str, name: str, field: str) -> None:
    await desk.open_account()
    await halt(desk, scope=scope, name=name, state="REDUCING")
    assert {key for key, state in (await states(desk)).items() if state != "ACTIVE"} == {field}
    listed = (await desk.get("/v1/risk/states")).json()["accounts"]
    assert only(only(listed, account="main")["states"], scope=scope, name=name)["state"] == "REDUCING"
    assert [state["scope"] for state in listed[0]["states"]][:2] == ["global", "account"]


async def test_cancel_all_asks_for_the_cancellation_of_open_orders(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.order("o-1", "0.01", "100000")
    (change,) = await halt(desk, scope="account", account="main", state="CANCEL_ALL")
    assert (change["state"], change["cancels_requested"]) == ("CANCEL_ALL", 1)


TIGHTENED: list[tuple[list[str], str]] = [
    # halts one after the other -> the state that holds
    (["REDUCING", "HALTED"], "HALTED"),
    (["HALTED", "REDUCING"], "HALTED"),
    (["CANCEL_ALL", "REDUCING"], "CANCEL_ALL"),
    (["CANCEL_ALL", "HALTED"], "CANCEL_ALL"),
    (["HALTED", "HALTED"], "HALTED"),
]


@pytest.mark.parametrize(("asked", "holds"), TIGHTENED)
async def test_a_halt_never_allows_more_than_the_one_before(desk: ApiDesk, asked: list[str], holds: str) -> None:
    await desk.open_account()
    for state in asked:
        (change,) = await halt(desk, scope="account", account="main", state=state)
    assert change["state"] == holds
    assert (await states(desk))["account"] == holds


async def test_of_many_halts_at_once_the_strictest_stays(desk: ApiDesk) -> None:
    await desk.open_account()
    wanted = ["REDUCING", "CANCEL_ALL", "HALTED"] * 10
    await asyncio.gather(*(halt(desk, scope="global", state=state) for state in wanted))
    assert (await states(desk))["global"] == "CANCEL_ALL"
    assert await desk.ledger.verify("main") == []


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    # body beside the reason, status, code, what the answer names
    ({"scope": "account", "account": "nobody"}, 404, "UNKNOWN_ACCOUNT", "nobody"),
    ({"scope": "strategy", "name": "no_such"}, 422, "UNKNOWN_STRATEGY", "no_such"),
    ({"scope": "product", "name": "DOGE-USD"}, 422, "UNKNOWN_PRODUCT", "DOGE-USD"),
    ({"scope": "product", "name": "sma_cross"}, 422, "UNKNOWN_PRODUCT", "BTC-USD, ETH-USD"),
    ({"scope": "strategy", "name": "x|y"}, 422, "UNKNOWN_STRATEGY", "x|y"),
    ({"scope": "strategy"}, 422, "INVALID_REQUEST", "name"),
    ({"scope": "account", "name": "main"}, 422, "INVALID_REQUEST", "name"),
    ({"scope": "global", "account": "main"}, 422, "INVALID_REQUEST", "account"),
    ({"scope": "account", "account": "MAIN}"}, 422, "INVALID_REQUEST", "account"),
    ({"scope": "everything"}, 422, "INVALID_REQUEST", "scope"),
    ({}, 422, "INVALID_REQUEST", "scope"),
    ({"scope": "global", "state": "ACTIVE"}, 422, "INVALID_REQUEST", "resume"),
    ({"scope": "global", "state": "halted"}, 422, "INVALID_REQUEST", "state"),
    ({"scope": "global", "reason": ""}, 422, "INVALID_REQUEST", "reason"),
    ({"scope": "global", "reason": "   "}, 422, "INVALID_REQUEST", "reason"),
    ({"scope": "global", "reason": "two\nlines"}, 422, "INVALID_REQUEST", "reason"),
    ({"scope": "global", "reason": "x" * 501}, 422, "INVALID_REQUEST", "reason"),
    ({"scope": "global", "reason": None}, 422, "INVALID_REQUEST", "reason"),
    ({"scope": "global", "until": 1}, 422, "INVALID_REQUEST", "until"),
]


@pytest.mark.parametrize(("body", "status", "code", "named"), REFUSED)
async def test_a_halt_that_means_nothing_writes_nothing(
    desk: ApiDesk, body: dict[str, Any], status: int, code: str, named: str
) -> None:
    await desk.open_account()
    before = (await desk.ledger.snapshot("main")).book
    answer = await desk.post("/v1/risk/halt", REASON | body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert named in answer.text
    assert set((await states(desk)).values()) == {"ACTIVE"}
    assert (await desk.ledger.snapshot("main")).book == before


async def test_resume_takes_no_state(desk: ApiDesk) -> None:
    answer = await desk.post("/v1/risk/resume", REASON | {"scope": "global", "state": "ACTIVE"})
    assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, "state")


async def test_a_halt_without_any_account_is_not_taken_for_done(desk: ApiDesk) -> None:
    answer = await desk.post("/v1/risk/halt", REASON | {"scope": "global"})
    assert (answer.status_code, answer.json()["code"]) == (404, "UNKNOWN_ACCOUNT")


RIGHTS: list[tuple[list[str], list[str], str, dict[str, Any], int]] = [
    # scopes and accounts of the key, verb, body, status
    ([HALT], ["*"], "halt", {"scope": "global"}, 200),
    ([HALT], ["*"], "resume", {"scope": "global"}, 403),
    ([RESUME], ["*"], "resume", {"scope": "global"}, 200),
    ([RESUME], ["*"], "halt", {"scope": "global"}, 403),
    ([READ, TRADE], ["*"], "halt", {"scope": "global"}, 403),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "main"}, 200),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "second"}, 403),
    ([HALT], ["main"], "halt", {"scope": "global"}, 403),
    ([HALT], ["main"], "halt", {"scope": "strategy", "name": "manual"}, 403),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "nobody"}, 403),
]


@pytest.mark.parametrize(("scopes", "accounts", "verb", "body", "status"), RIGHTS)
async def test_halting_and_resuming_are_rights_of_their_own(
    desk: ApiDesk, scopes: list[str], accounts: list[str], verb: str, body: dict[str, Any], status: int
) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    headers = await desk.key(scopes, accounts)
    answer = await desk.post(f"/v1/risk/{verb}", REASON | body, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 403 and verb == "halt":
        assert {**await states(desk), **await states(desk, "second")}["global"] == "ACTIVE"


async def test_a_scope_of_one_account_only_is_halted_there(desk: ApiDesk) -> None:
    await desk.open_account("main")
    fewer = LIMITS.model_copy(update={"products": {"BTC-USD": LIMITS.products["BTC-USD"]}})
    await desk.open_account("second", limits=fewer)
    changed = await halt(desk, scope="product", name="ETH-USD")
    assert [change["account"] for change in changed] == ["main"]


async def test_a_halt_that_fails_for_one_account_says_for_which(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    await desk.ledger._direct("DEL", "tt:{second}:audit")
    await desk.ledger._direct("SET", "tt:{second}:audit", "not a stream")
    answer = await desk.post("/v1/risk/halt", REASON | {"scope": "global"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["failed"]) == (503, "RISK_UNAVAILABLE", ["second"])
    assert [change["account"] for change in problem["changed"]] == ["main"]
    assert (await states(desk))["global"] == "HALTED"
