"""Traders' heartbeats over HTTP, and what is said about the dead man who listens."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.api_keys import READ, TRADE
from cluster.deadman import PART, trader_part
from serve_apps import api_heartbeats
from tests.api_desk import ApiDesk, only

pytestmark = pytest.mark.anyio

PATH = "/v1/accounts/main/heartbeat"


@pytest.fixture(autouse=True)
async def opened(desk: ApiDesk) -> None:
    await desk.open_account()


async def beaten(desk: ApiDesk, name: str = "bot", timeout_s: float = 30, **more: Any) -> Any:
    answer = await desk.post(PATH, {"name": name, "timeout_s": timeout_s}, **more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_trader_that_beats_is_armed_until_it_ends_that(desk: ApiDesk) -> None:
    shown = await beaten(desk, headers=await desk.key([TRADE], person="ada"))
    (trader,) = shown["traders"]
    assert (trader["name"], trader["timeout_s"], trader["armed"], trader["person"]) == ("bot", 30, True, "ada")
    assert trader["age_ms"] < 10_000
    first = (await desk.ledger.heartbeats())[trader_part("main", "bot")]["at_ms"]
    await beaten(desk)
    assert (await desk.ledger.heartbeats())[trader_part("main", "bot")]["at_ms"] >= first
    for _ in range(2):
        ended = await desk.client.delete(PATH, params={"name": "bot"})
        assert ended.status_code == 200, ended.text
        assert only(ended.json()["traders"], name="bot")["armed"] is False
    assert only((await beaten(desk))["traders"], name="bot")["armed"] is True


async def test_the_answer_says_whether_anybody_is_watching(desk: ApiDesk) -> None:
    nobody = {"watching": False, "phase": None, "age_ms": None, "reason": None}
    assert (await beaten(desk))["deadman"] == nobody
    for phase, watching in (("WAITING", False), ("WATCHING", True), ("CANCELLING", False), ("TRIPPED", False)):
        await desk.ledger.beat(PART, {"account": "main", "phase": phase, "reason": "why" if watching else ""})
        shown = (await desk.get(PATH)).json()["deadman"]
        assert (shown["phase"], shown["watching"]) == (phase, watching)
        assert shown["reason"] == ("why" if watching else None)
    await desk.ledger.beat(PART, {"account": "other", "phase": "WATCHING"})
    assert (await desk.get(PATH)).json()["deadman"] == nobody


async def test_a_dead_man_that_is_silent_himself_watches_nobody(desk: ApiDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    await desk.ledger.beat(PART, {"account": "main", "phase": "WATCHING"})
    monkeypatch.setattr(api_heartbeats, "DEADMAN_FRESH_MS", -1)
    assert (await desk.get(PATH)).json()["deadman"]["watching"] is False


async def test_an_account_nobody_executes_for_cannot_be_watched(desk: ApiDesk) -> None:
    await desk.open_account("second")
    answer = await desk.post("/v1/accounts/second/heartbeat", {"name": "bot", "timeout_s": 30})
    assert (answer.status_code, answer.json()["code"]) == (409, "NOT_WATCHED")
    unknown = await desk.post("/v1/accounts/nobody/heartbeat", {"name": "bot", "timeout_s": 30})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "UNKNOWN_ACCOUNT")


async def test_names_are_bounded(desk: ApiDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_heartbeats, "NAMES_MAX", 2)
    for name in ("one", "two"):
        await beaten(desk, name)
    third = await desk.post(PATH, {"name": "three", "timeout_s": 30})
    assert (third.status_code, third.json()["code"]) == (409, "TOO_MANY_HEARTBEATS")
    await beaten(desk, "one")


@pytest.mark.parametrize(
    "wish",
    [
        {"name": "bot", "timeout_s": 1.9},
        {"name": "bot", "timeout_s": 3601},
        {"name": "bot", "timeout_s": "NaN"},
        {"name": "bot", "timeout_s": "inf"},
        {"name": "bot|main", "timeout_s": 30},
        {"name": "", "timeout_s": 30},
        {"name": "bot"},
        {"name": "bot", "timeout_s": 30, "ended": True},
    ],
)
async def test_a_promise_that_cannot_be_kept_is_refused(desk: ApiDesk, wish: dict[str, object]) -> None:
    assert (await desk.post(PATH, wish)).status_code == 422
    assert (await desk.get(PATH)).json()["traders"] == []


async def test_who_may_not_trade_may_only_look(desk: ApiDesk) -> None:
    reader, stranger = await desk.key([READ]), await desk.key([TRADE, READ], ["other"])
    for headers in (reader, stranger):
        assert (await desk.post(PATH, {"name": "bot", "timeout_s": 30}, headers=headers)).status_code == 403
        assert (await desk.client.delete(PATH, params={"name": "bot"}, headers=headers)).status_code == 403
    assert (await desk.get(PATH, headers=reader)).status_code == 200
    assert (await desk.get(PATH, headers=stranger)).status_code == 403
    unknown = await desk.client.delete(PATH, params={"name": "nobody"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "UNKNOWN_HEARTBEAT")
