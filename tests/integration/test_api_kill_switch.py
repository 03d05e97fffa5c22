"""The kill switch over HTTP: who may, what is written, that a halt never allows more, and that resuming takes two."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.api_keys import HALT, LIMITS, READ, RESEARCH, RESUME, TRADE
from cluster.audit import verify
from cluster.ledger import account_base
from strategies.model import TradingState
from tests.api_desk import LIMITS as TEST_LIMITS
from tests.api_desk import ApiDesk, only

pytestmark = pytest.mark.anyio

REASON = {"reason": "drill"}


async def halt(desk: ApiDesk, **body: Any) -> Any:
    answer = await desk.post("/v1/risk/halt", REASON | body)
    assert answer.status_code == 200, answer.text
    return answer.json()["changed"]


async def states(desk: ApiDesk, account: str = "main") -> dict[str, str]:
    snapshot = await desk.ledger.snapshot(account)
    return {name: state for name, state in (snapshot.desk_state | snapshot.state).items() if state in set(TradingState)}


async def proposed(desk: ApiDesk, **body: Any) -> Any:
    """A proposal to resume, by the person of the desk's own key."""
    answer = await desk.post("/v1/risk/resume", REASON | body)
    assert answer.status_code == 202, answer.text
    (proposal,) = answer.json()["proposals"]
    return proposal


async def approved(desk: ApiDesk, proposal: Any, person: str = "second", **changed: Any) -> Any:
    headers = changed.pop("headers", None) or await desk.key([RESUME, LIMITS], person=person)
    body = {"digest": proposal["digest"]} | changed
    return await desk.post(f"/v1/approvals/{proposal['id']}/approve", body, headers=headers)


async def test_halting_an_account_stops_its_orders_and_resuming_lets_them_through(desk: ApiDesk) -> None:
    await desk.open_account()
    (change,) = await halt(desk, account="main", scope="account")
    assert (change["before"], change["state"], change["account"]) == ("ACTIVE", "HALTED", "main")
    with pytest.raises(AssertionError, match="TRADING_HALTED"):
        await desk.order("o-1", "0.01", "100000")
    proposal = await proposed(desk, account="main", scope="account")
    assert (proposal["status"], proposal["scopes"], proposal["kind"]) == ("PENDING", ["account"], "RESUME")
    with pytest.raises(AssertionError, match="TRADING_HALTED"):
        await desk.order("o-2", "0.01", "100000")
    answer = await approved(desk, proposal)
    assert (answer.status_code, answer.json()["outcome"]) == (200, "APPLIED"), answer.text
    await desk.order("o-3", "0.01", "100000")
    assert await verify(desk.ledger, "main") == []


async def test_the_audit_entry_names_the_key_and_the_reason(desk: ApiDesk) -> None:
    await desk.open_account()
    headers = await desk.key([HALT])
    await desk.post("/v1/risk/halt", {"scope": "global", "reason": "  prices look odd é "}, headers=headers)
    ((_, entry),) = await desk.ledger.recent_audit(None, at_most=1)
    assert entry["kind"] == "STATE"
    assert entry["by"] == headers["authorization"].split("_")[1]
    assert '"reason":"prices look odd é"' in entry["data"]


async def test_scope_global_is_one_write_that_every_account_obeys(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    before = {name: (await desk.ledger.snapshot(name)).book["seq"] for name in ("main", "second")}
    changed = await halt(desk, scope="global")
    assert [change["account"] for change in changed] == [None]
    for account, seq in before.items():
        assert (await states(desk, account))["global"] == "HALTED"
        assert (await desk.ledger.snapshot(account)).book["seq"] == seq
        with pytest.raises(AssertionError, match="TRADING_HALTED"):
            await desk.order(f"o-{account}", "0.01", "100000", account=account)


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
    assert await verify(desk.ledger, "main") == []


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
    before = await desk.ledger.snapshot("main")
    answer = await desk.post("/v1/risk/halt", REASON | body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert named in answer.text
    assert set((await states(desk)).values()) == {"ACTIVE"}
    after = await desk.ledger.snapshot("main")
    assert (after.book, after.desk_book) == (before.book, before.desk_book)


async def test_resume_takes_no_state(desk: ApiDesk) -> None:
    answer = await desk.post("/v1/risk/resume", REASON | {"scope": "global", "state": "ACTIVE"})
    assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, "state")


async def test_a_halt_of_accounts_there_are_none_of_is_not_taken_for_done(desk: ApiDesk) -> None:
    answer = await desk.post("/v1/risk/halt", REASON | {"scope": "account"})
    assert (answer.status_code, answer.json()["code"]) == (404, "UNKNOWN_ACCOUNT")


async def test_an_account_that_comes_after_a_global_halt_is_halted_too(desk: ApiDesk) -> None:
    await halt(desk, scope="global")
    await desk.open_account()
    with pytest.raises(AssertionError, match="TRADING_HALTED"):
        await desk.order("o-1", "0.01", "100000")


RIGHTS: list[tuple[list[str], list[str], str, dict[str, Any], int]] = [
    # scopes and accounts of the key, verb, body, status
    ([HALT], ["*"], "halt", {"scope": "global"}, 200),
    ([TRADE], ["*"], "halt", {"scope": "global"}, 200),
    ([TRADE], ["main", "second"], "halt", {"scope": "global"}, 200),
    ([TRADE], ["main"], "halt", {"scope": "account", "account": "main"}, 200),
    ([READ, RESEARCH, LIMITS], ["*"], "halt", {"scope": "global"}, 403),
    ([RESUME], ["*"], "halt", {"scope": "global"}, 403),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "main"}, 200),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "second"}, 403),
    ([HALT], ["main"], "halt", {"scope": "global"}, 403),
    ([HALT], ["main"], "halt", {"scope": "strategy", "name": "manual"}, 403),
    ([HALT], ["main"], "halt", {"scope": "account", "account": "nobody"}, 403),
    ([RESUME], ["*"], "resume", {"scope": "global"}, 202),
    ([RESUME], ["main", "second"], "resume", {"scope": "global"}, 403),
    ([HALT, TRADE, LIMITS], ["*"], "resume", {"scope": "global"}, 403),
    ([RESUME], ["main"], "resume", {"scope": "account", "account": "main"}, 202),
    ([RESUME], ["main"], "resume", {"scope": "account", "account": "second"}, 403),
]


@pytest.mark.parametrize(("scopes", "accounts", "verb", "body", "status"), RIGHTS)
async def test_halting_is_a_traders_too_and_resuming_a_right_of_its_own(
    desk: ApiDesk, scopes: list[str], accounts: list[str], verb: str, body: dict[str, Any], status: int
) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    if verb == "resume":
        await halt(desk, **body)
    headers = await desk.key(scopes, accounts)
    answer = await desk.post(f"/v1/risk/{verb}", REASON | body, headers=headers)
    assert answer.status_code == status, answer.text
    if status == 403 and verb == "halt":
        assert set((await states(desk)).values()) == {"ACTIVE"}


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ({"scope": "strategy", "name": "manual"}, 202),
        ({"scope": "strategy", "name": "sma_cross"}, 403),
        ({"scope": "account"}, 403),
        ({"scope": "product", "name": "BTC-USD"}, 403),
    ],
)
async def test_a_key_of_one_strategy_resumes_that_strategy_only(
    desk: ApiDesk, scope: dict[str, Any], status: int
) -> None:
    await desk.open_account()
    await halt(desk, account="main", **scope)
    headers = await desk.key([RESUME], strategies=["manual"])
    answer = await desk.post("/v1/risk/resume", REASON | scope | {"account": "main"}, headers=headers)
    assert answer.status_code == status, answer.text


# -- a second person ---------------------------------------------------------------------------------------------------


async def test_one_person_cannot_resume_alone_with_two_keys(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    proposal = await proposed(desk, account="main", scope="account")
    assert proposal["person"] == "test"
    for person in ("test", " TEST "):
        answer = await approved(desk, proposal, person)
        assert (answer.status_code, answer.json()["code"]) == (403, "SAME_PERSON")
    assert (await states(desk))["account"] == "HALTED"


async def test_an_approval_is_of_what_was_looked_at(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    proposal = await proposed(desk, account="main", scope="account")
    answer = await approved(desk, proposal, digest="0" * 40)
    assert (answer.status_code, answer.json()["code"]) == (409, "CHANGED")
    assert (await states(desk))["account"] == "HALTED"


async def test_a_proposal_is_decided_once(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    proposal = await proposed(desk, account="main", scope="account")
    headers = await desk.key([RESUME], person="second")
    answers = await asyncio.gather(*(approved(desk, proposal, headers=headers) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 9]
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"DONE"}
    await halt(desk, account="main", scope="account")
    assert (await approved(desk, proposal, headers=headers)).json()["code"] == "DONE"
    assert (await states(desk))["account"] == "HALTED"


async def test_a_refused_proposal_stays_refused(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    proposal = await proposed(desk, account="main", scope="account")
    answer = await desk.post(f"/v1/approvals/{proposal['id']}/refuse", REASON)
    assert (answer.status_code, answer.json()["outcome"]) == (200, "REFUSED")
    assert (await approved(desk, proposal)).json()["code"] == "DONE"
    assert (await states(desk))["account"] == "HALTED"


async def test_a_proposal_expires(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    over = await desk.ledger.propose_resume("main", "account", "key", "first", "too long ago", ttl_s=0.001)
    await asyncio.sleep(0.01)
    answer = await approved(desk, {"id": f"main.{over.id}", "digest": over.digest})
    assert (answer.status_code, answer.json()["code"]) == (409, "EXPIRED")
    listed = (await desk.get("/v1/approvals", params={"status": "all"})).json()["proposals"]
    assert [proposal["status"] for proposal in listed] == ["EXPIRED"]
    assert (await desk.get("/v1/approvals")).json()["proposals"] == []


async def test_trading_that_would_stop_at_once_again_is_not_resumed(desk: ApiDesk) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="product", name="BTC-USD")
    proposal = await proposed(desk, account="main", scope="product", name="BTC-USD")
    crossed = "10000100 10000000 1 1 100000000 0 0 0 0 0"
    await desk.ledger._direct("HSET", f"{account_base('main')}:reference", "BTC-USD", crossed)
    answer = await approved(desk, proposal)
    assert (answer.status_code, answer.json()["code"]) == (409, "STILL_BREACHED"), answer.text
    assert "BAD_BOOK" in answer.json()["detail"]
    assert (await states(desk))["product|BTC-USD"] == "HALTED"


async def test_what_is_active_needs_no_resuming(desk: ApiDesk) -> None:
    await desk.open_account()
    for body in ({"scope": "global"}, {"scope": "account", "account": "main"}):
        answer = await desk.post("/v1/risk/resume", REASON | body)
        assert (answer.status_code, answer.json()["code"]) == (409, "ALREADY_ACTIVE")


DECIDERS: list[tuple[list[str], dict[str, Any], int]] = [
    # scopes and rights of the second person's key, status
    ([RESUME], {}, 200),
    ([LIMITS], {}, 403),
    ([READ, TRADE, HALT], {}, 403),
    ([RESUME], {"accounts": ["second"]}, 403),
    ([RESUME], {"accounts": ["main"]}, 200),
    ([RESUME], {"strategies": ["manual"]}, 403),
]


@pytest.mark.parametrize(("scopes", "more", "status"), DECIDERS)
async def test_the_second_person_needs_the_right_too(
    desk: ApiDesk, scopes: list[str], more: dict[str, Any], status: int
) -> None:
    await desk.open_account()
    await halt(desk, account="main", scope="account")
    proposal = await proposed(desk, account="main", scope="account")
    headers = await desk.key(
        scopes, more.get("accounts", ["*"]), person="second", strategies=more.get("strategies", ["*"])
    )
    answer = await approved(desk, proposal, headers=headers)
    assert answer.status_code == status, answer.text
    refusal = await desk.post(f"/v1/approvals/{proposal['id']}/refuse", REASON, headers=headers)
    assert refusal.status_code == (409 if status == 200 else 403)


async def test_proposals_of_the_desk_and_of_accounts_are_told_apart(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    for body in ({"scope": "global"}, {"scope": "account"}):
        await halt(desk, **body)
        await desk.post("/v1/risk/resume", REASON | body)
    listed = (await desk.get("/v1/approvals")).json()["proposals"]
    assert sorted((one["account"] or "", one["id"].split(".")[0]) for one in listed) == [
        ("", "DESK"),
        ("main", "main"),
        ("second", "second"),
    ]
    mine = await desk.get("/v1/approvals", headers=await desk.key([READ], ["main"]))
    assert [one["account"] for one in mine.json()["proposals"]] == ["main"]
    assert (await desk.get("/v1/approvals?account=second", headers=await desk.key([READ], ["main"]))).status_code == 403


@pytest.mark.parametrize("name", ["main.999", "nobody.1", "DESK.1", "main", "17", "main.x", "main.1e3", "a|b.1", "é.1"])
async def test_a_proposal_there_is_none_of_is_not_found(desk: ApiDesk, name: str) -> None:
    await desk.open_account()
    answer = await desk.post(f"/v1/approvals/{name}/approve", {"digest": "0" * 40})
    assert (answer.status_code, answer.json()["code"]) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("verb", "body"),
    [("approve", {}), ("approve", {"digest": ""}), ("approve", {"digest": "x" * 40}), ("approve", {"digest": 0}),
     ("refuse", {}), ("refuse", {"reason": " "}), ("refuse", {"reason": "a", "digest": "0" * 40})],
)  # fmt: skip
async def test_a_decision_that_says_nothing_is_refused(desk: ApiDesk, verb: str, body: dict[str, Any]) -> None:
    answer = await desk.post(f"/v1/approvals/main.1/{verb}", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


# -- alerts ------------------------------------------------------------------------------------------------------------


async def test_alerts_are_listed_with_their_account_newest_first(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.order("o-1", "0.49", "99999")
    await desk.order("o-2", "0.48", "99999")
    alerts = (await desk.get("/v1/alerts")).json()["alerts"]
    assert [(a["account"], a["level"], a["client_order_id"]) for a in alerts if a["scope"] == "account"] == [
        ("main", "SOFT", "o-2"),
        ("main", "SOFT", "o-1"),
    ]
    assert len((await desk.get("/v1/alerts?limit=1")).json()["alerts"]) == 1
    assert (await desk.get("/v1/alerts?account=nobody")).status_code == 404
    assert (await desk.get("/v1/alerts", headers=await desk.key([READ], ["second"]))).json()["alerts"] == []


async def test_a_scope_of_one_account_only_is_halted_there(desk: ApiDesk) -> None:
    await desk.open_account("main")
    fewer = TEST_LIMITS.model_copy(update={"products": {"BTC-USD": TEST_LIMITS.products["BTC-USD"]}})
    await desk.open_account("second", limits=fewer)
    changed = await halt(desk, scope="product", name="ETH-USD")
    assert [change["account"] for change in changed] == ["main"]


async def test_a_halt_that_fails_for_one_account_says_for_which(desk: ApiDesk) -> None:
    await desk.open_account("main")
    await desk.open_account("second")
    await desk.ledger._direct("DEL", f"{account_base('second')}:audit")
    await desk.ledger._direct("SET", f"{account_base('second')}:audit", "not a stream")
    answer = await desk.post("/v1/risk/halt", REASON | {"scope": "account"})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["failed"]) == (503, "RISK_UNAVAILABLE", ["second"])
    assert [change["account"] for change in problem["changed"]] == ["main"]
    assert (await states(desk))["account"] == "HALTED"
