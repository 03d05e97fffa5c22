"""Arming over HTTP: real orders pass only while a person has said so; on paper there is nothing to arm."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator

import pytest

from cluster.api_keys import HALT, READ, RESUME, TRADE
from cluster.ledger import Ledger
from conf.settings import Settings, VenueSettings
from tests.api_desk import ApiDesk, open_desk

pytestmark = pytest.mark.anyio

WISH = {"reason": "the first live day", "expires_s": 3_600}


@pytest.fixture
async def live(settings: Settings, ledger: Ledger) -> AsyncIterator[ApiDesk]:
    """A desk whose orders would go to Coinbase; nothing here sends one."""
    real = settings.model_copy(update={"profile": "live", "venue": VenueSettings(kind="coinbase")})
    async with open_desk(real, ledger) as desk:
        await desk.open_account()
        yield desk


async def test_a_live_desk_is_armed_with_its_person_until_a_time_and_disarmed_at_once(live: ApiDesk) -> None:
    before = (await live.get("/v1/arming")).json()
    assert (before["environment"], before["needed"], before["armed"], before["until_ns"]) == ("live", True, False, None)
    headers = await live.key([RESUME, READ], person="Ada Lovelace")
    armed = await live.post("/v1/arming", WISH, headers=headers)
    assert armed.status_code == 200, armed.text
    shown = armed.json()
    assert (shown["armed"], shown["person"], shown["reason"]) == (True, "ada lovelace", "the first live day")
    assert abs(shown["until_ns"] / 1e9 - time.time() - 3_600) < 60
    assert (await live.get("/v1/arming")).json() == shown
    ended = await live.client.delete("/v1/arming", params={"reason": "enough"})
    assert (ended.status_code, ended.json()["armed"]) == (200, False)
    assert (await live.get("/v1/arming")).json()["armed"] is False
    assert (await live.client.delete("/v1/arming")).status_code == 200


async def test_arming_and_disarming_are_audited_with_the_reason(live: ApiDesk) -> None:
    await live.post("/v1/arming", WISH, headers=await live.key([RESUME], person="ada"))
    await live.client.delete("/v1/arming", params={"reason": "enough"})
    entries = [fields for _, fields in await live.ledger.audit_entries(None)]
    found = [(one["kind"], json.loads(one["data"])) for one in entries if one["kind"] in {"ARMED", "DISARMED"}]
    assert [(kind, data["reason"]) for kind, data in found] == [("ARMED", WISH["reason"]), ("DISARMED", "enough")]
    assert found[0][1]["person"] == "ada"


async def test_a_paper_desk_has_nothing_to_arm(desk: ApiDesk) -> None:
    await desk.open_account()
    refused = await desk.post("/v1/arming", WISH)
    assert (refused.status_code, refused.json()["code"]) == (409, "NOT_LIVE")
    shown = (await desk.get("/v1/arming")).json()
    assert (shown["environment"], shown["needed"], shown["armed"]) == ("paper", False, False)


@pytest.mark.parametrize(
    ("scopes", "accounts", "status"),
    [([READ, TRADE], ["*"], 403), ([RESUME], ["main"], 403), ([RESUME], ["*"], 200)],
)
async def test_arming_takes_the_right_to_resume_everywhere(
    live: ApiDesk, scopes: list[str], accounts: list[str], status: int
) -> None:
    answer = await live.post("/v1/arming", WISH, headers=await live.key(scopes, accounts))
    assert answer.status_code == status, answer.text
    assert (await live.get("/v1/arming")).json()["armed"] is (status == 200)


@pytest.mark.parametrize(
    ("scopes", "accounts", "status"),
    [([READ], ["*"], 403), ([TRADE], ["main"], 200), ([HALT], ["other"], 403), ([HALT], ["*"], 200)],
)
async def test_who_may_halt_the_desk_may_disarm_it(
    live: ApiDesk, scopes: list[str], accounts: list[str], status: int
) -> None:
    await live.post("/v1/arming", WISH)
    answer = await live.client.delete("/v1/arming", headers=await live.key(scopes, accounts))
    assert answer.status_code == status, answer.text
    assert (await live.get("/v1/arming")).json()["armed"] is (status != 200)


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"reason": "why", "expires_s": 86_401}, "expires_s"),
        ({"reason": "why", "expires_s": 59}, "expires_s"),
        ({"reason": "why", "expires_s": 1e400}, "expires_s"),
        ({"reason": "  ", "expires_s": 60}, "reason"),
        ({"expires_s": 60}, "reason"),
        ({"reason": "why", "expires_s": 60, "person": "somebody else"}, "person"),
    ],
)
async def test_a_day_at_most_and_never_without_a_reason(live: ApiDesk, wish: dict[str, object], field: str) -> None:
    answer = await live.post("/v1/arming", wish)
    assert answer.status_code in {400, 422}, answer.text
    if answer.status_code == 422:
        assert answer.json()["fields"][0]["field"] == field
    assert (await live.get("/v1/arming")).json()["armed"] is False
