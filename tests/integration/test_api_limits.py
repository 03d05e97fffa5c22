"""Limits over HTTP: stricter at once, looser with a second person, read live, and told from the audit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.api_keys import LIMITS, READ, RESUME, TRADE
from cluster.audit import verify
from tests.api_desk import ApiDesk, only

pytestmark = pytest.mark.anyio

REASON = {"reason": "drill"}


def wish(name: str, hard: Any, scope: str = "account", **more: Any) -> dict[str, Any]:
    return {"scope": scope, "name": name, "hard": hard, **more}


async def ask(desk: ApiDesk, *wishes: dict[str, Any], account: str | None = "main", **arguments: Any) -> Any:
    return await desk.post("/v1/limits", REASON | {"account": account, "changes": list(wishes)}, **arguments)


async def limit(
    desk: ApiDesk, name: str, scope: str = "account", account: str | None = "main"
) -> tuple[str, str | None]:
    params = {"scope": scope} | ({"account": account} if account else {})
    answer = await desk.get("/v1/limits", params=params)
    assert answer.status_code == 200, answer.text
    row = only(answer.json()["limits"], name=name, scope=scope)
    return row["hard"], row["soft"]


async def approve(desk: ApiDesk, proposal: Any, person: str = "second") -> Any:
    headers = await desk.key([LIMITS], person=person)
    return await desk.post(f"/v1/approvals/{proposal['id']}/approve", {"digest": proposal["digest"]}, headers=headers)


async def test_a_stricter_limit_holds_for_the_next_order_without_a_restart(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.order("o-1", "0.02", "100000")
    answer = await ask(desk, wish("max_order_notional", "1000"))
    assert (answer.status_code, answer.json()["proposal"]) == (200, None), answer.text
    assert only(answer.json()["applied"], scope="account") == {
        "scope": "account",
        "name": "max_order_notional",
        "before": "50000, warns above 40000",
        "after": "1000, warns above 800",
        "unit": "USD",
    }
    with pytest.raises(AssertionError, match="NOTIONAL_EXCEEDS_MAX"):
        await desk.order("o-2", "0.02", "100000")
    assert await limit(desk, "max_order_notional") == ("1000", "800")


async def test_a_looser_limit_holds_only_when_a_second_person_has_approved_it(desk: ApiDesk) -> None:
    await desk.open_account(cash=1_000_000)
    answer = await ask(
        desk,
        *(wish("max_order_notional", "60000", scope) for scope in ("account", "product|BTC-USD", "strategy|manual")),
    )
    assert answer.status_code == 202, answer.text
    proposal = answer.json()["proposal"]
    assert answer.json()["applied"] == []
    assert len(proposal["changes"]) == 3
    with pytest.raises(AssertionError, match="NOTIONAL_EXCEEDS_MAX"):
        await desk.order("o-1", "0.55", "100000")
    alone = await approve(desk, proposal, person="test")
    assert (alone.status_code, alone.json()["code"]) == (403, "SAME_PERSON")
    assert (await approve(desk, proposal)).status_code == 200
    await desk.order("o-2", "0.55", "100000")
    assert await limit(desk, "max_order_notional") == ("60000", "48000")
    assert await verify(desk.ledger, "main") == []


async def test_of_a_mixed_change_the_stricter_part_holds_at_once(desk: ApiDesk) -> None:
    await desk.open_account()
    answer = await ask(desk, wish("max_open_orders", 5), wish("max_order_notional", "60000"))
    assert answer.status_code == 202
    assert [row["name"] for row in answer.json()["applied"]] == ["max_open_orders"]
    assert [row["name"] for row in answer.json()["proposal"]["changes"]] == ["max_order_notional"]
    assert await limit(desk, "max_open_orders") == ("5", "4")
    assert await limit(desk, "max_order_notional") == ("50000", "40000")


DIRECTIONS: list[tuple[str, str, Any, bool]] = [
    # scope, limit, value -> whether it needs a second person
    ("account", "order_rate_per_s", "10", False),
    ("account", "order_rate_per_s", "100", True),
    ("account", "order_rate_per_s", "unlimited", True),
    ("account", "order_burst", 10, False),
    ("account", "order_burst", 1_000, True),
    ("account", "taker_fee_bps", "70", False),
    ("account", "taker_fee_bps", "50", True),
    ("account", "market_buffer_bps", "50", True),
    ("account", "reference_stale_ms", 20_000, True),
    ("account", "reference_stale_ms", 5_000, False),
    ("account", "duplicate_window_ms", 100, False),
    ("account", "self_trade", "deny", False),
    ("account", "max_daily_loss", "100", False),
    ("product|BTC-USD", "max_position", "4", False),
    ("product|BTC-USD", "max_position", "6", True),
    ("product|BTC-USD", "max_position", "unlimited", True),
    ("product|BTC-USD", "restricted", "yes", False),
    ("product|BTC-USD", "hours", ["mon-fri 09:00-17:00"], True),
    ("strategy|manual", "short", "denied", False),
    ("strategy|manual", "versions", ["v1"], True),
    ("key|*", "max_order_notional", "10", False),
]


@pytest.mark.parametrize(("scope", "name", "value", "needs_two"), DIRECTIONS)
async def test_looser_is_told_from_stricter_limit_by_limit(
    desk: ApiDesk, scope: str, name: str, value: Any, needs_two: bool
) -> None:
    await desk.open_account()
    answer = await ask(desk, wish(name, value, scope))
    assert answer.status_code == (202 if needs_two else 200), answer.text
    assert bool(answer.json()["applied"]) is not needs_two


async def test_a_soft_level_alone_is_a_limit_too(desk: ApiDesk) -> None:
    await desk.open_account()
    assert (await ask(desk, wish("max_order_notional", "50000", soft="10000"))).status_code == 200
    assert await limit(desk, "max_order_notional") == ("50000", "10000")
    assert (await ask(desk, wish("max_order_notional", "50000", soft="20000"))).status_code == 202
    assert await limit(desk, "max_order_notional") == ("50000", "10000")


async def test_the_limits_of_the_desk_as_a_whole_are_changed_the_same_way(desk: ApiDesk) -> None:
    await desk.open_account()
    answer = await ask(desk, wish("max_order_notional", "1000", "global"), account=None)
    assert answer.status_code == 200, answer.text
    assert await limit(desk, "max_order_notional", "global", None) == ("1000", "800")
    with pytest.raises(AssertionError, match="'scope': 'global'"):
        await desk.order("o-1", "0.02", "100000")
    answer = await ask(desk, wish("max_order_notional", "2000", "global"), account=None)
    assert answer.json()["proposal"]["id"].startswith("DESK.")
    assert (await approve(desk, answer.json()["proposal"])).status_code == 200
    assert await limit(desk, "max_order_notional", "global", None) == ("2000", "1600")


async def test_a_key_gets_limits_of_its_own_from_those_of_every_key(desk: ApiDesk) -> None:
    await desk.open_account()
    answer = await ask(desk, wish("max_order_notional", "1000", "key|0123456789ab"))
    # A scope that was not there before loosens: until now its orders met key|*, and the ledger cannot know better.
    assert answer.status_code == 202, answer.text
    assert (await approve(desk, answer.json()["proposal"])).status_code == 200
    assert await limit(desk, "max_order_notional", "key|0123456789ab") == ("1000", "800")
    assert await limit(desk, "order_burst", "key|0123456789ab") == await limit(desk, "order_burst", "key|*")


REFUSED: list[tuple[dict[str, Any], str | None, int, str, str]] = [
    # wish, account, status, code, what the answer names
    (wish("max_order_notional", "much"), "main", 422, "INVALID_LIMIT", "max_order_notional"),
    (wish("max_order_notional", "NaN"), "main", 422, "INVALID_LIMIT", "max_order_notional"),
    (wish("max_order_notional", "1e400"), "main", 422, "INVALID_LIMIT", "max_order_notional"),
    (wish("max_order_notional", "-1"), "main", 422, "INVALID_LIMIT", "max_order_notional"),
    (wish("max_order_notional", 10**15), "main", 422, "INVALID_LIMIT", "max_order_notional"),
    (wish("max_order_notional", 10**18), "main", 422, "INVALID_REQUEST", "hard"),
    (wish("max_order_notional", "1", soft=True), "main", 422, "INVALID_REQUEST", "soft"),
    (wish("max_order_notional", 1.5), "main", 422, "INVALID_REQUEST", "hard"),
    (wish("max_order_notional", None), "main", 422, "INVALID_REQUEST", "hard"),
    (wish("max_order_notional", True), "main", 422, "INVALID_REQUEST", "hard"),
    (wish("max_order_notional", {"hard": 1}), "main", 422, "INVALID_REQUEST", "hard"),
    (wish("max_order_notional", "1", soft="2"), "main", 422, "INVALID_LIMIT", "soft"),
    (wish("order_burst", "0"), "main", 422, "INVALID_LIMIT", "order_burst"),
    (wish("order_burst", 5, soft=1), "main", 422, "INVALID_LIMIT", "order_burst"),
    (wish("cancel_reserve", 100), "main", 422, "INVALID_LIMIT", "cancel_reserve"),
    (wish("max_orders", "1"), "main", 422, "INVALID_LIMIT", "max_orders"),
    (wish("max_order_lots", "1", "product|BTC-USD"), "main", 422, "INVALID_LIMIT", "max_order_lots"),
    (wish("max_position", "1", "product|DOGE-USD"), "main", 422, "INVALID_LIMIT", "DOGE-USD"),
    (wish("max_order_notional", "1", "strategy|nobody"), "main", 422, "INVALID_LIMIT", "nobody"),
    (wish("group", "majors", "product|BTC-USD"), "main", 422, "INVALID_LIMIT", "majors"),
    (wish("hours", ["mon"], "product|BTC-USD"), "main", 422, "INVALID_LIMIT", "hours"),
    (wish("max_order_notional", "1", "everything"), "main", 422, "INVALID_LIMIT", "everything"),
    (wish("max_order_notional", "1", "product"), "main", 422, "INVALID_LIMIT", "product"),
    (wish("max_order_notional", "1", "a b"), "main", 422, "INVALID_REQUEST", "scope"),
    (wish("max_order_notional", "1", "global"), "main", 422, "INVALID_LIMIT", "account"),
    (wish("max_order_notional", "1"), None, 422, "INVALID_LIMIT", "account"),
    (wish("max_order_notional", "1"), "nobody", 404, "UNKNOWN_ACCOUNT", "nobody"),
    (wish("max_order_notional", "1", until=1), "main", 422, "INVALID_REQUEST", "until"),
]


@pytest.mark.parametrize(("one", "account", "status", "code", "named"), REFUSED)
async def test_a_limit_that_cannot_be_changes_nothing(
    desk: ApiDesk, one: dict[str, Any], account: str | None, status: int, code: str, named: str
) -> None:
    await desk.open_account()
    before = await desk.ledger.snapshot("main")
    good = wish("max_open_orders", 1) if account else wish("max_open_orders", 1, "global")
    answer = await ask(desk, good, one, account=account)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert named in answer.text
    after = await desk.ledger.snapshot("main")
    assert (after.limits, after.desk_limits, after.book) == (before.limits, before.desk_limits, before.book)


@pytest.mark.parametrize(
    "body",
    [{"changes": []}, {"changes": None}, {"changes": [wish("order_burst", 1)] * 2}, {"reason": " "}, {"account": "A"}],
)
async def test_a_change_that_means_nothing_is_refused(desk: ApiDesk, body: dict[str, Any]) -> None:
    await desk.open_account()
    whole = REASON | {"account": "main", "changes": [wish("order_burst", 1)]}
    answer = await desk.post("/v1/limits", whole | body)
    assert answer.status_code == 422
    assert await limit(desk, "order_burst") == ("100", None)


RIGHTS: list[tuple[list[str], dict[str, Any], str, int]] = [
    # scopes and rights of the key, scope of the limit, status
    ([LIMITS], {}, "account", 200),
    ([LIMITS], {"accounts": ["main"]}, "account", 200),
    ([LIMITS], {"accounts": ["second"]}, "account", 403),
    ([READ, TRADE, RESUME], {}, "account", 403),
    ([LIMITS], {"strategies": ["manual"]}, "account", 403),
    ([LIMITS], {"strategies": ["manual"]}, "strategy|manual", 200),
    ([LIMITS], {"strategies": ["manual"]}, "strategy|sma_cross", 403),
    ([LIMITS], {"strategies": ["manual"]}, "key|*", 403),
    ([LIMITS], {}, "global", 200),
    ([LIMITS], {"accounts": ["main"]}, "global", 403),
]


@pytest.mark.parametrize(("scopes", "more", "scope", "status"), RIGHTS)
async def test_limits_are_a_right_of_their_own(
    desk: ApiDesk, scopes: list[str], more: dict[str, Any], scope: str, status: int
) -> None:
    await desk.open_account()
    headers = await desk.key(scopes, more.get("accounts", ["*"]), strategies=more.get("strategies", ["*"]))
    account = None if scope == "global" else "main"
    answer = await ask(desk, wish("max_order_notional", "10", scope), account=account, headers=headers)
    assert answer.status_code == status, answer.text
    # Whoever may ask may refuse, and nobody else.
    await ask(desk, wish("max_order_notional", "10", scope), account=account)
    looser = await ask(desk, wish("max_order_notional", "11", scope), account=account)
    path = f"/v1/approvals/{looser.json()['proposal']['id']}/refuse"
    refusal = await desk.post(path, REASON, headers=headers)
    assert refusal.status_code == status, refusal.text


async def test_what_was_changed_meanwhile_must_be_looked_at_again(desk: ApiDesk) -> None:
    await desk.open_account()
    proposal = (await ask(desk, wish("max_order_notional", "60000"))).json()["proposal"]
    assert (await ask(desk, wish("max_order_notional", "100"))).status_code == 200
    answer = await approve(desk, proposal)
    assert (answer.status_code, answer.json()["code"]) == (409, "CHANGED")
    assert await limit(desk, "max_order_notional") == ("100", "80")


async def test_of_many_changes_at_once_none_is_lost_and_none_loosens(desk: ApiDesk) -> None:
    await desk.open_account()
    names = ("max_order_notional", "max_gross_exposure", "max_open_notional", "max_daily_turnover", "max_net_exposure")
    await asyncio.gather(*(ask(desk, wish(name, str(100 + n))) for n in range(4) for name in names))
    for name in names:
        assert await limit(desk, name) == ("100", "80")


async def test_the_history_tells_who_when_and_why_newest_first(desk: ApiDesk) -> None:
    await desk.open_account()
    await ask(desk, wish("max_open_orders", 7))
    proposal = (await ask(desk, wish("max_open_orders", 9))).json()["proposal"]
    await approve(desk, proposal)
    refused = (await ask(desk, wish("max_open_orders", 11))).json()["proposal"]
    await desk.post(f"/v1/approvals/{refused['id']}/refuse", REASON)
    # Resuming takes two as well, and is none of the history of limits.
    halted = await desk.post("/v1/risk/halt", REASON | {"scope": "account", "account": "main"})
    resumed = await desk.post("/v1/risk/resume", REASON | {"scope": "account", "account": "main"})
    assert (halted.status_code, resumed.status_code) == (200, 202)
    await desk.post(f"/v1/approvals/{resumed.json()['proposals'][0]['id']}/refuse", REASON)
    answer = (await desk.get("/v1/limits/history", params={"account": "main"})).json()
    kinds = [(entry["kind"], entry["version"]) for entry in answer["entries"]]
    assert [kind for kind, _ in kinds] == [
        "REFUSED", "PROPOSED", "LIMITS", "APPROVED", "PROPOSED", "LIMITS", "LIMITS",
    ]  # fmt: skip
    assert [version for kind, version in kinds if kind == "LIMITS"] == [3, 2, 1]
    assert answer["complete"] is True
    newest = only(answer["entries"], kind="LIMITS", version=3)
    assert [(row["before"], row["after"]) for row in newest["changes"]] == [("7, warns above 5", "9, warns above 7")]
    assert " and " in newest["by"]
    assert [entry["reason"] for entry in answer["entries"] if entry["kind"] == "LIMITS"] == ["drill", "drill", ""]
    newest_only = (await desk.get("/v1/limits/history", params={"account": "main", "limit": 1})).json()
    assert [entry["kind"] for entry in newest_only["entries"]] == ["REFUSED"]
    assert newest_only["complete"] is False


async def test_limits_are_shown_to_who_may_read_the_account(desk: ApiDesk) -> None:
    await desk.open_account()
    whole = (await desk.get("/v1/limits", params={"account": "main"})).json()
    assert (whole["version"], whole["calendar"], whole["unreadable"]) == (1, "UTC", [])
    assert {row["scope"] for row in whole["limits"]} == {
        "account", "strategy|manual", "strategy|sma_cross", "product|BTC-USD", "product|ETH-USD", "key|*",
    }  # fmt: skip
    headers = await desk.key([READ], ["second"])
    for path in ("/v1/limits", "/v1/limits/history"):
        assert (await desk.get(path, params={"account": "main"}, headers=headers)).status_code == 403
        assert (await desk.get(path, headers=headers)).status_code == 403
        assert (await desk.get(path, params={"account": "nobody"})).status_code == 404


async def test_a_record_nobody_can_read_does_not_hide_the_others(desk: ApiDesk) -> None:
    await desk.open_account()
    await desk.ledger._direct("HSET", "tt:{desk}:main:limits", "account", "max_order_notional=1 nonsense")
    whole = (await desk.get("/v1/limits", params={"account": "main"})).json()
    assert whole["unreadable"] == ["account"]
    assert "product|BTC-USD" in {row["scope"] for row in whole["limits"]}
