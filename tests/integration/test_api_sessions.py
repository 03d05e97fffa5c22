"""Live sessions over HTTP: started once, each with a key of its own, shown, stopped. Ray's Jobs API is a double."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from cluster.api_keys import READ, TRADE
from cluster.ledger import Ledger
from cluster.live_bars import LiveBars
from cluster.run_folder import RunState
from cluster.sessions import SessionFolder, open_session, sessions_path
from conf.settings import Settings
from jobs.session_engine import Session
from serve_apps.api_sessions import SESSIONS_AT_ONCE_MAX
from strategies.model import Granularity
from tests.api_desk import BTC, ApiDesk, open_desk
from tests.jobs_api import JobsApi, jobs_api
from tests.session_parts import Market, MemoryDesk, SetClock, minute_bars

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {
    "session_id": "mine",
    "account": "main",
    "product_id": "BTC-USD",
    "granularity": "ONE_MINUTE",
    "strategy": "sma_cross",
    "params": {"fast": 2, "slow": 5},
    "warmup_bars": 30,
}


@pytest.fixture
def ray() -> Iterator[JobsApi]:
    with jobs_api() as api:
        yield api


@pytest.fixture
async def desk(settings: Settings, ledger: Ledger, ray: JobsApi) -> AsyncIterator[ApiDesk]:
    """The API with a Jobs API, and an account with limits."""
    async with open_desk(settings, ledger, ray.client()) as desk:
        await desk.open_account()
        yield desk


async def start(desk: ApiDesk, headers: dict[str, str] | None = None, **changes: Any) -> httpx.Response:
    return await desk.post("/v1/sessions", BODY | changes, headers=headers or {})


def folder_of(desk: ApiDesk, session_id: str = "mine") -> SessionFolder:
    return open_session(sessions_path(desk.settings), session_id)


def run_session(folder: SessionFolder, bars: int = 5) -> None:
    """What the job would do, in this process, on bars of a double."""
    spec = folder.spec().model_copy(update={"bars_max": bars})
    found = minute_bars(400)
    clock = SetClock(int(found.ts_ns[100]) + 1)
    market = Market(found, clock)
    session = Session(folder, BTC, LiveBars("BTC-USD", Granularity.ONE_MINUTE, market.fetch), MemoryDesk(market), clock)
    session._spec = spec
    assert session.run() is RunState.SUCCEEDED


async def test_a_session_becomes_a_folder_a_job_and_a_key_of_its_own(desk: ApiDesk, ray: JobsApi) -> None:
    answer = await start(desk)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/v1/sessions/mine"
    view = answer.json()
    assert (view["state"], view["ended"], view["job_status"]) == ("PENDING", False, "PENDING")
    assert (view["data_source"], view["person"]) == ("SIMULATED", "test")
    assert view["spec"]["params"] == {"fast": 2, "slow": 5}
    (job,) = ray.submissions
    assert job["submission_id"] == "session-mine"
    assert "-m jobs.session --session-dir" in job["entrypoint"]
    assert job["runtime_env"] == {}
    path = folder_of(desk).key_file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text()
    assert secret not in str(job) + answer.text
    desk.forget_keys()
    key = await desk.app.state.desk.keys.key(secret)
    assert (key.scopes, key.accounts, key.strategies) == ({READ, TRADE}, {"main"}, {"sma_cross"})
    assert key.person == "test"
    assert (await desk.get("/v1/sessions/mine")).json()["session_id"] == "mine"


async def test_a_repeat_is_the_same_session_and_starts_nothing(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    secret = folder_of(desk).key_file.read_text()
    folder_of(desk).write_status(
        folder_of(desk).status().model_copy(update={"state": RunState.RUNNING, "started_ns": 1})
    )
    again = await start(desk)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert len(ray.submissions) == 1
    assert folder_of(desk).key_file.read_text() == secret


async def test_ten_at_once_are_one_session(desk: ApiDesk, ray: JobsApi) -> None:
    answers = await asyncio.gather(*(start(desk) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len(ray.submissions) == 1


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"strategy": "nobody"}, 422, "INVALID_REQUEST", "strategy"),
        ({"params": {"fast": 50, "slow": 10}}, 422, "INVALID_REQUEST", "fast"),
        ({"params": {"fast": "quick"}}, 422, "INVALID_REQUEST", "fast"),
        ({"costs": {"initial_cash": -1}}, 422, "INVALID_REQUEST", "initial_cash"),
        ({"granularity": "TWO_MINUTE"}, 422, "INVALID_REQUEST", "granularity"),
        ({"session_id": "../etc"}, 422, "INVALID_REQUEST", "session_id"),
        ({"session_id": "a" * 41}, 422, "INVALID_REQUEST", "session_id"),
        ({"warmup_bars": -1}, 422, "INVALID_REQUEST", "warmup_bars"),
        ({"bars_max": 0}, 422, "INVALID_REQUEST", "bars_max"),
        ({"speed": 1}, 422, "INVALID_REQUEST", "speed"),
        ({"account": "nobody"}, 404, "UNKNOWN_ACCOUNT", ""),
        ({"strategy": "rsi_reversion", "params": {}}, 422, "INVALID_SPEC", "trades_as"),
        ({"trades_as": "nobody"}, 422, "INVALID_SPEC", "trades_as"),
        ({"product_id": "SOL-USD"}, 422, "INVALID_SPEC", "product_id"),
    ],
)
async def test_a_wish_that_cannot_be_is_refused_by_name_and_leaves_nothing(
    desk: ApiDesk, ray: JobsApi, changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    answer = await start(desk, **changes)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert field in answer.text
    assert ray.submissions == []
    assert (await desk.get("/v1/sessions")).json() == {"sessions": []}


async def test_another_strategy_of_the_limits_may_be_named(desk: ApiDesk) -> None:
    answer = await start(desk, strategy="rsi_reversion", params={}, trades_as="manual")
    assert answer.status_code == 202, answer.text
    desk.forget_keys()
    key = await desk.app.state.desk.keys.key(folder_of(desk).key_file.read_text())
    assert key.strategies == {"manual"}


async def test_the_id_of_something_else_and_a_second_of_the_same_are_409(desk: ApiDesk) -> None:
    await start(desk)
    for changes in ({"params": {"fast": 3, "slow": 5}}, {"session_id": "other"}):
        answer = await start(desk, **changes)
        assert (answer.status_code, answer.json()["code"]) == (409, "SESSION_CONFLICT")
    assert (await start(desk, session_id="other", product_id="ETH-USD")).status_code == 202


async def test_only_who_may_trade_for_the_strategy_on_the_account_starts_and_stops(desk: ApiDesk) -> None:
    reader = await desk.key([READ])
    elsewhere = await desk.key([READ, TRADE], ["second"])
    other = await desk.key([READ, TRADE], strategies=["manual"])
    for headers in (reader, elsewhere, other):
        answer = await start(desk, headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "NOT_AUTHORISED")
    await start(desk)
    for headers in (reader, elsewhere, other):
        assert (await desk.post("/v1/sessions/mine/stop", headers=headers)).status_code == 403
        assert (await desk.post("/v1/sessions/mine/resume", headers=headers)).status_code == 403
    assert (await desk.get("/v1/sessions/mine", headers=reader)).status_code == 200
    assert (await desk.get("/v1/sessions/mine", headers=elsewhere)).status_code == 403
    assert (await desk.get("/v1/sessions/mine/journal", headers=elsewhere)).status_code == 403
    assert (await desk.get("/v1/sessions", headers=elsewhere)).json() == {"sessions": []}
    assert (await desk.post("/v1/sessions", BODY, headers={"authorization": "Bearer tt_no"})).status_code == 401


async def test_the_sessions_key_ends_with_the_key_that_started_it(desk: ApiDesk) -> None:
    end_ns = time.time_ns() + 3_600 * 10**9
    await start(desk, await desk.key([READ, TRADE], expires_ns=end_ns, person="Ada"))
    desk.forget_keys()
    key = await desk.app.state.desk.keys.key(folder_of(desk).key_file.read_text())
    assert (key.expires_ns, key.person) == (end_ns, "ada")


async def test_what_it_met_is_shown_and_followed_line_by_line(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    assert (await desk.get("/v1/sessions/mine/journal")).json() == {"lines": [], "next": 0}
    ray.put("session-mine", "SUCCEEDED")
    await asyncio.to_thread(run_session, folder_of(desk))
    view = (await desk.get("/v1/sessions/mine")).json()
    assert (view["state"], view["ended"], view["figures"]["live_bars"]) == ("SUCCEEDED", True, 5)
    assert view["figures"]["bars"] == 35
    newest = (await desk.get("/v1/sessions/mine/journal?limit=3")).json()
    assert newest["next"] == (await desk.get("/v1/sessions/mine/journal?limit=1000")).json()["next"]
    first = (await desk.get("/v1/sessions/mine/journal?after=0&limit=30")).json()
    rest = (await desk.get(f"/v1/sessions/mine/journal?after={first['next']}")).json()
    assert [line["live"] for line in first["lines"]] == [False] * 30
    assert rest["lines"][0]["live"] is True
    assert rest["lines"][-3:] == newest["lines"]
    assert (await desk.get(f"/v1/sessions/mine/journal?after={newest['next']}")).json()["lines"] == []
    inside = await desk.get("/v1/sessions/mine/journal?after=3")
    assert (inside.status_code, inside.json()["field"]) == (422, "after")
    (listed,) = (await desk.get("/v1/sessions")).json()["sessions"]
    assert listed == view


async def test_an_ended_sessions_key_is_revoked(desk: ApiDesk) -> None:
    await start(desk)
    secret = folder_of(desk).key_file.read_text()
    await asyncio.to_thread(run_session, folder_of(desk))
    await desk.get("/v1/sessions/mine")
    desk.forget_keys()
    assert await desk.app.state.desk.keys.key(secret) is None
    assert not folder_of(desk).key_file.exists()


async def test_a_running_session_is_asked_to_stop_and_one_without_a_job_is_stopped(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    ray.put("session-mine", "RUNNING")
    answer = await desk.post("/v1/sessions/mine/stop", {"flatten": True})
    assert (answer.status_code, answer.json()["stop"]) == (200, "REQUESTED")
    request = folder_of(desk).stop_request()
    assert request is not None
    assert request.flatten
    ray.put("session-mine", "FAILED")
    assert (await desk.post("/v1/sessions/mine/stop")).json()["stop"] == "ALREADY"
    del ray.jobs["session-mine"]
    await start(desk, session_id="lost", product_id="ETH-USD")
    del ray.jobs["session-lost"]
    answer = await desk.post("/v1/sessions/lost/stop")
    assert answer.json() == {"session_id": "lost", "stop": "STOPPED", "state": "STOPPED"}


async def test_a_stopped_session_goes_on_when_resumed_though_its_job_has_succeeded(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    folder = folder_of(desk)
    ray.put("session-mine", "RUNNING")
    await desk.post("/v1/sessions/mine/stop")
    folder.write_status(folder.status().model_copy(update={"state": RunState.STOPPED, "started_ns": 1}))
    ray.put("session-mine", "SUCCEEDED")
    again = await desk.post("/v1/sessions/mine/resume")
    assert (again.status_code, again.json()["state"]) == (202, "PENDING")
    assert [job["submission_id"] for job in ray.submissions] == ["session-mine", "session-mine-r2"]
    assert folder.stop_request() is None
    assert folder.key_file.exists()


async def test_a_session_whose_job_was_killed_is_failed_and_goes_on_when_resumed(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    folder = folder_of(desk)
    secret = folder.key_file.read_text()
    folder.write_status(folder.status().model_copy(update={"state": RunState.RUNNING, "started_ns": 1}))
    ray.put("session-mine", "FAILED")
    view = (await desk.get("/v1/sessions/mine")).json()
    assert (view["state"], view["error"]["field"]) == ("FAILED", "job")
    again = await desk.post("/v1/sessions/mine/resume")
    assert again.status_code == 202, again.text
    assert [job["submission_id"] for job in ray.submissions] == ["session-mine", "session-mine-r2"]
    assert again.json()["state"] == "PENDING"
    assert folder.stop_request() is None
    assert folder.key_file.read_text() != secret


async def test_resuming_what_runs_or_has_succeeded_changes_nothing(desk: ApiDesk, ray: JobsApi) -> None:
    await start(desk)
    ray.put("session-mine", "RUNNING")
    assert (await desk.post("/v1/sessions/mine/resume")).status_code == 202
    await asyncio.to_thread(run_session, folder_of(desk))
    assert (await desk.post("/v1/sessions/mine/resume")).json()["state"] == "SUCCEEDED"
    assert len(ray.submissions) == 1


async def test_sessions_have_a_bound(desk: ApiDesk, ray: JobsApi) -> None:
    for number in range(SESSIONS_AT_ONCE_MAX):
        ray.put(f"session-{number}", "RUNNING")
    answer = await start(desk)
    assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_SESSIONS")
    assert not sessions_path(desk.settings).exists() or not list(sessions_path(desk.settings).glob("mine"))


async def test_without_ray_the_session_is_laid_out_and_a_repeat_starts_it(desk: ApiDesk, ray: JobsApi) -> None:
    ray.broken = True
    assert (await start(desk)).status_code == 503
    ray.broken = False
    assert (await start(desk)).status_code == 202
    assert len(ray.submissions) == 1


async def test_a_damaged_session_is_told_and_spoils_no_other(desk: ApiDesk) -> None:
    await start(desk)
    await start(desk, session_id="other", product_id="ETH-USD")
    (folder_of(desk).path / "status.json").write_bytes(os.urandom(40))
    answer = await desk.get("/v1/sessions/mine")
    assert (answer.status_code, answer.json()["code"]) == (500, "DAMAGED_SESSION")
    listed = {view["session_id"]: view["state"] for view in (await desk.get("/v1/sessions")).json()["sessions"]}
    assert listed == {"mine": None, "other": "PENDING"}
    assert (await desk.get("/v1/sessions/nobody")).json()["code"] == "UNKNOWN_SESSION"
