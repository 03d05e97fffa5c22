"""Backtests over HTTP: submit once, follow, read, stop. Run folders and bars are real, Ray's Jobs API is a double."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.api_keys import READ, RESEARCH
from cluster.ledger import Ledger
from cluster.runs import Progress, RunFolder, RunState, open_run, prepare_run
from conf.settings import QueueSettings, Settings
from jobs.blocks import compute_here
from jobs.sweep import Reporter, finish, plan_of, work_of
from serve_apps.api_progress import Rhythm, progress_events
from serve_apps.api_runs import take_turns
from tests.api_desk import ApiDesk, only, open_desk
from tests.jobs_api import JobsApi, jobs_api
from tests.run_samples import TWO_STRATEGIES, complete_run, loaded, make_spec, make_store

pytestmark = pytest.mark.anyio

BACKTEST: dict[str, Any] = {
    "product_id": "BTC-USD",
    "granularity": "ONE_HOUR",
    "strategy": "sma_cross",
    "params": {"fast": 5, "slow": 21},
}


@pytest.fixture
def ray() -> Iterator[JobsApi]:
    with jobs_api() as api:
        yield api


@pytest.fixture
async def desk(settings: Settings, ledger: Ledger, ray: JobsApi) -> AsyncIterator[ApiDesk]:
    """The API with a Jobs API and 600 bars of BTC-USD."""
    make_store(settings.bars_path)
    async with open_desk(settings, ledger, ray.client()) as desk:
        yield desk


async def submit(
    desk: ApiDesk, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    return await desk.post("/v1/backtests", TWO_STRATEGIES if body is None else body, headers=headers or {})


def run_of(desk: ApiDesk, run_id: str) -> RunFolder:
    return open_run(desk.settings.runs_path, run_id)


def advance(folder: RunFolder, state: RunState, done: int = 0, started: bool = True) -> Progress:
    before = folder.progress()
    update = {"state": state, "done_sets": done, "updated_ns": time.time_ns()}
    progress = before.model_copy(update=update | ({"started_ns": 1} if started else {}))
    folder.write_progress(progress)
    return progress


async def test_a_sweep_becomes_a_run_and_a_job(desk: ApiDesk, ray: JobsApi) -> None:
    answer = await submit(desk, TWO_STRATEGIES | {"run_id": "my-sweep"})
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == "/v1/backtests/my-sweep"
    run = answer.json()
    assert (run["run_id"], run["progress"]["state"], run["job_status"]) == ("my-sweep", "PENDING", "PENDING")
    assert run["record"]["data_source"] == "SIMULATED"
    assert (run["record"]["kind"], run["record"]["bar_count"]) == ("sweep", 600)
    (job,) = ray.submissions
    assert job["submission_id"] == "my-sweep"
    assert "-m jobs.sweep --run-dir" in job["entrypoint"]
    assert job["runtime_env"] == {}
    assert (await desk.get(answer.headers["location"])).json() == run


async def test_a_backtest_is_a_sweep_of_one(desk: ApiDesk) -> None:
    answer = await submit(desk, {"backtest": BACKTEST, "run_id": "one"})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["record"]["kind"], answer.json()["record"]["set_count"]) == ("backtest", 1)
    ((name, matrix),) = run_of(desk, "one").spec().parameter_sets()
    assert (name, list(matrix[0][:2])) == ("sma_cross", [5.0, 21.0])


async def test_a_repeat_is_the_same_run_and_starts_nothing(desk: ApiDesk, ray: JobsApi) -> None:
    first = await submit(desk, TWO_STRATEGIES | {"run_id": "again"})
    second = await submit(desk, TWO_STRATEGIES | {"run_id": "again", "seed": 0})
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json() == first.json()
    assert ("idempotent-replayed" in first.headers, second.headers["idempotent-replayed"]) == (False, "true")
    assert len(ray.submissions) == 1


async def test_the_same_id_for_something_else_is_409(desk: ApiDesk) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "taken"})
    for body in (TWO_STRATEGIES | {"run_id": "taken", "seed": 1}, {"backtest": BACKTEST, "run_id": "taken"}):
        answer = await submit(desk, body)
        assert (answer.status_code, answer.json()["code"]) == (409, "RUN_ID_CONFLICT")
        assert str(desk.settings.state_dir) not in answer.text


async def test_twenty_equal_submissions_at_once_are_one_run(desk: ApiDesk, ray: JobsApi) -> None:
    answers = await asyncio.gather(*(submit(desk, headers={"Idempotency-Key": "click"}) for _ in range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert len(ray.submissions) == 1


async def test_an_idempotency_key_belongs_to_its_caller(desk: ApiDesk) -> None:
    mine = await submit(desk, headers={"Idempotency-Key": '"8e03978e-40d5"'})
    again = await submit(desk, headers={"Idempotency-Key": '"8e03978e-40d5"'})
    other_key = await desk.key([RESEARCH])
    theirs = await submit(desk, {"backtest": BACKTEST}, {"Idempotency-Key": '"8e03978e-40d5"'} | other_key)
    assert mine.json()["run_id"] == again.json()["run_id"]
    assert theirs.status_code == 202
    assert theirs.json()["run_id"] != mine.json()["run_id"]
    conflict = await submit(desk, {"backtest": BACKTEST}, {"Idempotency-Key": '"8e03978e-40d5"'})
    assert (conflict.status_code, conflict.json()["code"]) == (409, "RUN_ID_CONFLICT")


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    # body, code, the field named
    ({}, "INVALID_SPEC", "product_id"),
    (TWO_STRATEGIES | {"grids": []}, "INVALID_SPEC", "grids"),
    (TWO_STRATEGIES | {"unknown": 1}, "INVALID_SPEC", "unknown"),
    (TWO_STRATEGIES | {"\ud800": 1}, "INVALID_SPEC", "spec"),
    (TWO_STRATEGIES | {"grids": [{"strategy": "no_such", "grid": {"a": [1]}}]}, "INVALID_SPEC", "grids[0].strategy"),
    (
        TWO_STRATEGIES | {"grids": [{"strategy": "sma_cross", "grid": {"fast": [-1]}}]},
        "INVALID_SPEC",
        "grids[0].grid.fast[0]",
    ),
    (
        TWO_STRATEGIES
        | {
            "grids": [
                {
                    "strategy": "sma_cross",
                    "grid": {
                        "fast": {"start": 1, "stop": 100, "step": 1},
                        "slow": {"start": 2, "stop": 100, "step": 1},
                    },
                }
            ],
            "max_sets": 10,
        },
        "INVALID_SPEC",
        "grids",
    ),
    (TWO_STRATEGIES | {"max_sets": 10_000_000}, "INVALID_SPEC", "max_sets"),
    (TWO_STRATEGIES | {"max_sets": 10**30}, "INVALID_SPEC", "max_sets"),
    (TWO_STRATEGIES | {"sort_by": "luck"}, "INVALID_SPEC", "sort_by"),
    (TWO_STRATEGIES | {"costs": {"fee_bps": -1}}, "INVALID_SPEC", "costs.fee_bps"),
    (TWO_STRATEGIES | {"start": "2024-01-02", "end": "2024-01-01"}, "INVALID_SPEC", "end"),
    (TWO_STRATEGIES | {"run_id": "Not An Id"}, "INVALID_SPEC", "run_id"),
    (TWO_STRATEGIES | {"run_id": "../../etc"}, "INVALID_SPEC", "run_id"),
    (TWO_STRATEGIES | {"run_id": 7}, "INVALID_SPEC", "run_id"),
    (TWO_STRATEGIES | {"run_id": ""}, "INVALID_SPEC", "run_id"),
    (TWO_STRATEGIES | {"backtest": BACKTEST}, "INVALID_SPEC", "product_id"),
    ({"backtest": None}, "INVALID_SPEC", "backtest"),
    ({"backtest": BACKTEST | {"params": {"fast": 30, "slow": 10}}}, "INVALID_SPEC", "backtest.params.fast"),
    ({"backtest": BACKTEST | {"strategy": "no_such"}}, "INVALID_SPEC", "backtest.strategy"),
    (TWO_STRATEGIES | {"product_id": "DOGE-USD"}, "MISSING_DATA", "product_id"),
    (TWO_STRATEGIES | {"granularity": "ONE_DAY"}, "MISSING_DATA", "product_id"),
    (TWO_STRATEGIES | {"start": "2030-01-01"}, "MISSING_DATA", "product_id"),
]


@pytest.mark.parametrize(("body", "code", "field"), REFUSED)
async def test_a_bad_specification_is_refused_by_name_and_leaves_nothing(
    desk: ApiDesk, ray: JobsApi, body: dict[str, Any], code: str, field: str
) -> None:
    answer = await submit(desk, body)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code), answer.text
    assert problem["field"] == field
    assert problem["rule"]
    assert not desk.settings.runs_path.exists()
    assert ray.submissions == []


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there"])
async def test_a_bad_idempotency_key_is_refused(desk: ApiDesk, key: str) -> None:
    answer = await submit(desk, headers={"Idempotency-Key": key})
    assert (answer.status_code, answer.json()["field"]) == (422, "Idempotency-Key")


async def test_two_ids_at_once_are_refused(desk: ApiDesk) -> None:
    answer = await submit(desk, TWO_STRATEGIES | {"run_id": "a"}, {"Idempotency-Key": "b"})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"7", b"null", b""])
async def test_a_specification_is_an_object(desk: ApiDesk, body: bytes) -> None:
    answer = await desk.client.post("/v1/backtests", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


async def submitted(desk: ApiDesk, *names: str, **more: str) -> list[dict[str, Any]]:
    answers = [await submit(desk, TWO_STRATEGIES | {"run_id": name} | more) for name in names]
    assert [answer.status_code for answer in answers] == [202] * len(names)
    return [answer.json() for answer in answers]


async def test_more_runs_than_a_user_may_have_at_work_wait_for_their_turn(desk: ApiDesk, ray: JobsApi) -> None:
    limit = desk.settings.queue.runs_per_user_max
    views = await submitted(desk, *(f"run-{number}" for number in range(limit + 1)))
    assert [view["waiting"] is None for view in views] == [True] * limit + [False]
    assert (views[-1]["waiting"]["place"], views[-1]["progress"]["state"]) == (1, "PENDING")
    bob = await desk.key([RESEARCH], person="bob")
    other = await desk.post("/v1/backtests", TWO_STRATEGIES | {"run_id": "other"}, headers=bob)
    assert other.json()["waiting"] is None, "one user's limit holds up nobody else"
    ray.put("run-0", "SUCCEEDED")
    turns = asyncio.create_task(take_turns(desk.app.state.desk))
    async with asyncio.timeout(20):
        while (await desk.get(f"/v1/backtests/run-{limit}")).json()["waiting"]:
            await asyncio.sleep(0.02)
    turns.cancel()
    assert ray.submissions[-1]["submission_id"] == f"run-{limit}"


async def test_a_waiting_run_can_be_hastened_and_cancelled(desk: ApiDesk, ray: JobsApi) -> None:
    limit = desk.settings.queue.runs_per_user_max
    await submitted(desk, *(f"run-{number}" for number in range(limit)))
    await submitted(desk, "late", priority="LOW")
    await submitted(desk, "later")
    places = {run["run_id"]: run["waiting"] for run in (await desk.get("/v1/backtests")).json()["runs"]}
    assert (places["later"]["place"], places["late"]["place"]) == (1, 2)
    hastened = await desk.post("/v1/backtests/late/priority", {"priority": "HIGH"})
    assert (hastened.json()["waiting"]["place"], hastened.json()["waiting"]["priority"]) == (1, "HIGH")
    begun = await desk.post("/v1/backtests/run-0/priority", {"priority": "HIGH"})
    assert (begun.status_code, begun.json()["code"]) == (409, "NOT_WAITING")
    answer = (await desk.post("/v1/backtests/late/cancel")).json()
    assert (answer["cancel"], answer["state"]) == ("STOPPED", "STOPPED")
    assert len(ray.submissions) == limit
    assert (await desk.post("/v1/backtests/late/resume")).json()["waiting"]["place"] == 2


@pytest.mark.parametrize("priority", ["URGENT", "", None, 1, ["HIGH"], {"a": 1}])
async def test_a_priority_is_one_of_three(desk: ApiDesk, priority: object) -> None:
    answer = await submit(desk, TWO_STRATEGIES | {"run_id": "a-run", "priority": priority})
    assert (answer.status_code, answer.json()["field"]) == (422, "priority")


async def test_a_full_queue_refuses_before_anything_is_laid_out(
    settings: Settings, ledger: Ledger, ray: JobsApi
) -> None:
    make_store(settings.bars_path)
    small = settings.model_copy(update={"queue": QueueSettings(runs_per_user_max=1, waiting_per_user_max=1)})
    async with open_desk(small, ledger, ray.client()) as desk:
        await submitted(desk, "at-work", "waiting")
        answer = await submit(desk, TWO_STRATEGIES | {"run_id": "one-more"})
        assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_RUNS")
        assert not (settings.runs_path / "one-more").exists()


async def test_without_ray_runs_wait_and_can_still_be_read(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "before"})
    ray.broken = True
    answer = await submit(desk, TWO_STRATEGIES | {"run_id": "after"})
    assert (answer.status_code, answer.json()["waiting"]["place"]) == (202, 1)
    run = (await desk.get("/v1/backtests/before")).json()
    assert (run["progress"]["state"], run["job_status"]) == ("PENDING", None)
    assert {run["run_id"] for run in (await desk.get("/v1/backtests")).json()["runs"]} == {"before", "after"}


async def test_a_repeat_submits_what_never_reached_ray(desk: ApiDesk, ray: JobsApi) -> None:
    prepare_run(desk.settings.runs_path, desk.app.state.desk.store, make_spec(), "lost")
    answer = await submit(desk, TWO_STRATEGIES | {"run_id": "lost"})
    assert answer.status_code == 202
    assert [job["submission_id"] for job in ray.submissions] == ["lost"]


async def test_ray_that_hangs_holds_nobody_up(desk: ApiDesk, ray: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "slow"})
    monkeypatch.setattr("serve_apps.api_ray.RayCalls.call.__defaults__", (0.05,))
    ray.silent.set()
    run = await asyncio.wait_for(desk.get("/v1/backtests/slow"), 5)
    assert (run.status_code, run.json()["job_status"]) == (200, None)
    ready = await asyncio.wait_for(desk.get("/readyz"), 5)
    assert only(ready.json()["parts"], name="ray_jobs")["healthy"] is False


SETTLED: list[tuple[str, str | None, str]] = [
    # state in the folder, the job's status (None: no such job) -> state shown
    ("RUNNING", "FAILED", "FAILED"),
    ("RUNNING", "STOPPED", "STOPPED"),
    ("RUNNING", None, "FAILED"),
    ("RUNNING", "RUNNING", "RUNNING"),
    ("RUNNING", "PENDING", "RUNNING"),
    ("SUCCEEDED", "FAILED", "SUCCEEDED"),
    ("SUCCEEDED", None, "SUCCEEDED"),
    ("STOPPED", "RUNNING", "STOPPED"),
]


@pytest.mark.parametrize(("state", "job", "shown"), SETTLED)
async def test_a_run_whose_driver_was_killed_does_not_look_running(
    desk: ApiDesk, ray: JobsApi, state: str, job: str | None, shown: str
) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    advance(run_of(desk, "a-run"), RunState(state), done=3)
    ray.jobs.clear()
    if job:
        ray.put("a-run", job)
    listed = (await desk.get("/v1/backtests")).json()["runs"]
    assert only(listed, run_id="a-run")["progress"]["state"] == shown
    run = (await desk.get("/v1/backtests/a-run")).json()
    assert run["progress"]["state"] == shown
    if shown == "FAILED":
        assert run["progress"]["error"]["field"] == "job"


async def test_a_run_on_its_way_to_ray_is_not_taken_for_lost(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "young"})
    ray.jobs.clear()
    assert (await desk.get("/v1/backtests/young")).json()["progress"]["state"] == "PENDING"
    folder = run_of(desk, "young")
    folder.write_progress(folder.progress().model_copy(update={"updated_ns": time.time_ns() - 3600 * 10**9}))
    assert (await desk.get("/v1/backtests/young")).json()["progress"]["state"] == "FAILED"


async def test_a_run_another_driver_works_on_is_left_alone(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "driven"})
    folder = run_of(desk, "driven")
    advance(folder, RunState.RUNNING)
    ray.put("driven", "FAILED")
    with folder.driving():
        assert (await desk.get("/v1/backtests/driven")).json()["progress"]["state"] == "RUNNING"


async def test_cancel_stops_the_job_and_a_repeat_is_harmless(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    advance(run_of(desk, "a-run"), RunState.RUNNING)
    ray.put("a-run", "RUNNING")
    with run_of(desk, "a-run").driving():
        first = (await desk.post("/v1/backtests/a-run/cancel")).json()
    assert (first["cancel"], first["state"]) == ("REQUESTED", "RUNNING")
    assert (await desk.get("/v1/backtests/a-run")).json()["progress"]["state"] == "STOPPED"
    assert (await desk.post("/v1/backtests/a-run/cancel")).json()["cancel"] == "ALREADY"


async def test_cancel_of_a_run_without_a_job_ends_the_run(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    ray.jobs.clear()
    answer = (await desk.post("/v1/backtests/a-run/cancel")).json()
    assert (answer["cancel"], answer["state"]) == ("STOPPED", "STOPPED")
    repeat = await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    assert repeat.json()["progress"]["state"] == "STOPPED"
    assert len(ray.submissions) == 1


async def test_a_stopped_run_is_resumed_and_any_other_left_as_it_is(desk: ApiDesk, ray: JobsApi) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    assert (await desk.post("/v1/backtests/a-run/resume")).status_code == 202
    assert len(ray.submissions) == 1
    advance(run_of(desk, "a-run"), RunState.STOPPED)
    ray.put("a-run", "STOPPED")
    answer = await desk.post("/v1/backtests/a-run/resume")
    assert answer.status_code == 202
    assert len(ray.submissions) == 2
    # A new attempt has an id of its own; the run keeps its one.
    assert ray.jobs["a-run-r2"]["status"] == "PENDING"


async def test_runs_are_listed_newest_first(desk: ApiDesk) -> None:
    for name in ("first", "second", "third"):
        await submit(desk, TWO_STRATEGIES | {"run_id": name})
    listed = (await desk.get("/v1/backtests", params={"limit": 2})).json()["runs"]
    assert [run["run_id"] for run in listed] == ["third", "second"]


@pytest.mark.parametrize("limit", ["0", "501", "-1", "x", "1e9", ""])
async def test_a_list_is_bounded(desk: ApiDesk, limit: str) -> None:
    answer = await desk.get("/v1/backtests", params={"limit": limit})
    assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, "limit")


PARTS = ["", "/progress", "/result", "/report"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("run_id", ["no-such-run", "..", "%2e%2e%2fetc", "UPPER", "a" * 65, "%00"])
async def test_an_unknown_run_is_404(desk: ApiDesk, part: str, run_id: str) -> None:
    answer = await desk.get(f"/v1/backtests/{run_id}{part}")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


@pytest.mark.parametrize("part", ["", "/progress", "/result"])
@pytest.mark.parametrize("file", ["progress.json", "run.json", "spec.json"])
async def test_a_damaged_run_is_named_and_its_path_is_not(desk: ApiDesk, part: str, file: str) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "hurt"})
    (desk.settings.runs_path / "hurt" / file).write_text('{"state": ')
    needed = {"": {"progress.json", "run.json"}, "/progress": {"progress.json"}}.get(part, {file})
    if file in needed:
        answer = await desk.get(f"/v1/backtests/hurt{part}")
        assert (answer.status_code, answer.json()["code"]) == (500, "DAMAGED_RUN")
        assert str(desk.settings.state_dir) not in answer.text
    listed = (await desk.get("/v1/backtests")).json()["runs"]
    assert only(listed, run_id="hurt")["record"] is None or file == "spec.json"


async def test_the_result_is_the_leaderboard_with_its_summary(desk: ApiDesk) -> None:
    complete_run(desk.settings.runs_path, desk.app.state.desk.store, make_spec())
    result = (await desk.get("/v1/backtests/a1/result", params={"limit": 5})).json()
    assert (result["state"], result["complete"], result["sort_by"]) == ("SUCCEEDED", True, "oos_sharpe")
    assert result["sort_note"] == ""
    assert result["data_source"] == "SIMULATED"
    sharpes = [row["metrics"]["oos_sharpe"] for row in result["rows"]]
    assert len(sharpes) == 5
    assert sharpes == sorted(sharpes, reverse=True)
    assert result["summary"]["best"] == result["rows"][0]
    assert result["summary"]["bar_count"] == 600
    by_return = (await desk.get("/v1/backtests/a1/result", params={"sort_by": "max_drawdown"})).json()
    drawdowns = [row["metrics"]["max_drawdown"] for row in by_return["rows"]]
    assert drawdowns == sorted(drawdowns)


async def test_rows_of_a_halving_search_say_on_which_part_of_the_bars_they_were_run(desk: ApiDesk) -> None:
    search = {"method": "asha", "sets": 12, "rungs": 2, "eta": 4}
    spec = make_spec(search=search, sort_by="sharpe")
    store = desk.app.state.desk.store
    run = loaded(prepare_run(desk.settings.runs_path, store, spec, "halving"), store)
    state = Reporter(run.folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    for _ in range(2):  # from the finished blocks, then from the table
        result = (await desk.get("/v1/backtests/halving/result")).json()
        history = [row["metrics"]["history"] for row in result["rows"]]
        assert (set(history), history) == ({1.0, 0.25}, sorted(history, reverse=True))
        finish(run, state, plan)
    assert result["summary"]["best"] == result["rows"][0]


async def test_before_the_first_block_the_leaderboard_is_empty(desk: ApiDesk) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "young"})
    result = (await desk.get("/v1/backtests/young/result")).json()
    assert (result["rows"], result["summary"], result["complete"]) == ([], None, False)


@pytest.mark.parametrize("query", [{"sort_by": "luck"}, {"limit": "0"}, {"limit": "1001"}])
async def test_a_bad_question_for_a_result_is_refused(desk: ApiDesk, query: dict[str, str]) -> None:
    answer = await desk.get("/v1/backtests/a1/result", params=query)
    assert (answer.status_code, answer.json()["fields"][0]["field"]) == (422, next(iter(query)))


async def test_the_report_may_run_its_own_scripts_and_reach_nothing(desk: ApiDesk) -> None:
    complete_run(desk.settings.runs_path, desk.app.state.desk.store, make_spec())
    answer = await desk.get("/v1/backtests/a1/report")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.content == run_of(desk, "a1").report_file.read_bytes()
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'unsafe-inline'"
    assert "allow-same-origin" not in policy["sandbox"]
    assert "connect-src" not in policy


async def test_a_run_without_a_report_says_where_it_stands(desk: ApiDesk) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "young"})
    answer = await desk.get("/v1/backtests/young/report")
    assert (answer.status_code, answer.json()["code"]) == (404, "NO_REPORT")
    assert "PENDING" in answer.json()["detail"]


def parsed(block: str) -> dict[str, Any]:
    """The data of an event, whose id is the time it was written."""
    first, _, data = block.strip().partition("\ndata: ")
    progress: dict[str, Any] = json.loads(data)
    assert first == f"id: {progress['updated_ns']}"
    return progress


async def next_event(stream: AsyncIterator[str]) -> dict[str, Any]:
    """The next event of a stream, comments left out."""
    async with asyncio.timeout(10):
        while (block := await anext(stream)).startswith(":"):
            pass
    return parsed(block)


async def stream_of(desk: ApiDesk, run_id: str, rhythm: Rhythm) -> AsyncIterator[str]:
    """A stream as the route answers it, to be read piece by piece."""
    await submit(desk, TWO_STRATEGIES | {"run_id": run_id})
    stream = progress_events(desk.app.state.desk, run_of(desk, run_id), rhythm)
    assert (await anext(stream)).startswith("retry: ")
    return stream


async def test_progress_is_told_as_it_happens_until_the_end(desk: ApiDesk) -> None:
    stream = await stream_of(desk, "a-run", Rhythm(look_s=0.005))
    assert (await next_event(stream))["state"] == "PENDING"
    for done in (10, 20):
        advance(run_of(desk, "a-run"), RunState.RUNNING, done)
        assert (await next_event(stream))["done_sets"] == done
    advance(run_of(desk, "a-run"), RunState.SUCCEEDED, 42)
    last = await next_event(stream)
    assert (last["state"], last["ended"], last["done_sets"]) == ("SUCCEEDED", True, 42)
    assert [block async for block in stream] == []


async def test_where_nothing_happens_a_comment_keeps_the_connection(desk: ApiDesk) -> None:
    stream = await stream_of(desk, "a-run", Rhythm(look_s=0.005, keep_alive_s=0.02))
    await next_event(stream)
    assert [await anext(stream) for _ in range(2)] == [": keep-alive\n\n"] * 2


async def test_the_stream_of_an_ended_run_is_one_event_and_then_no_more(desk: ApiDesk) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    last = advance(run_of(desk, "a-run"), RunState.SUCCEEDED, 42)
    answer = await desk.get("/v1/backtests/a-run/progress", headers={"Last-Event-ID": "1"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    retry, event, rest = answer.text.split("\n\n")
    assert (retry, parsed(event)["state"], rest) == ("retry: 2000", "SUCCEEDED", "")
    ended = await desk.get("/v1/backtests/a-run/progress", headers={"Last-Event-ID": str(last.updated_ns)})
    assert (ended.status_code, ended.content) == (204, b"")


async def test_a_stream_ends_with_a_killed_driver(desk: ApiDesk, ray: JobsApi) -> None:
    stream = await stream_of(desk, "a-run", Rhythm(look_s=0.005, ask_ray_s=0.02))
    await next_event(stream)
    advance(run_of(desk, "a-run"), RunState.RUNNING)
    ray.put("a-run", "RUNNING")
    assert (await next_event(stream))["state"] == "RUNNING"
    ray.put("a-run", "FAILED")
    assert (await next_event(stream))["state"] == "FAILED"
    assert [block async for block in stream] == []


async def test_a_stream_has_an_end_of_life(desk: ApiDesk) -> None:
    stream = await stream_of(desk, "a-run", Rhythm(look_s=0.005, life_s=0.05))
    blocks = [block async for block in stream]
    assert [parsed(block)["state"] for block in blocks[:-1]] == ["PENDING"]
    assert blocks[-1] == ": reconnect\n\n"


async def test_a_run_that_vanishes_ends_its_stream(desk: ApiDesk) -> None:
    stream = await stream_of(desk, "a-run", Rhythm(look_s=0.005))
    await next_event(stream)
    run_of(desk, "a-run").progress_file.unlink()
    assert [block async for block in stream] == []


async def test_streams_are_bounded_in_number(desk: ApiDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"})
    monkeypatch.setattr(desk.app.state.desk.streams, "_value", 0)
    answer = await desk.get("/v1/backtests/a-run/progress")
    assert (answer.status_code, answer.json()["code"]) == (429, "TOO_MANY_STREAMS")


async def test_reading_and_submitting_are_rights_of_their_own(desk: ApiDesk) -> None:
    reader, researcher = await desk.key([READ]), await desk.key([RESEARCH])
    assert (await submit(desk, headers=reader)).status_code == 403
    assert (await submit(desk, TWO_STRATEGIES | {"run_id": "a-run"}, researcher)).status_code == 202
    for part in ("/cancel", "/resume"):
        assert (await desk.post(f"/v1/backtests/a-run{part}", headers=reader)).status_code == 403
    assert (await desk.get("/v1/backtests/a-run", headers=reader)).status_code == 200
    assert (await desk.get("/v1/backtests/a-run", headers=researcher)).status_code == 403


async def test_strategies_come_with_what_a_form_needs(desk: ApiDesk) -> None:
    answer = (await desk.get("/v1/strategies")).json()
    sma = only(answer["strategies"], name="sma_cross")
    assert {"lesser": "fast", "greater": "slow"} in sma["rules"]
    fast = only(sma["parameters"], name="fast")
    assert fast["kind"] == "int"
    assert fast["low"] <= fast["default"] <= fast["high"]
    assert len(answer["strategies"]) >= 5
    kinds = {item["name"]: item["kind"] for item in answer["strategies"]}
    assert (kinds["sma_cross"], kinds["momentum_rotation"], kinds["pairs"]) == (
        "single product",
        *["cross section"] * 2,
    )
    pairs = only(answer["strategies"], name="pairs")
    assert pairs["rules"] == [{"lesser": "exit", "greater": "entry"}, {"lesser": "entry", "greater": "stop"}]
    assert {"window", "stop_loss", "leverage"} <= {item["name"] for item in pairs["parameters"]}
    assert "sharpe" in answer["metrics"]


async def test_stored_series_are_listed_with_their_source(desk: ApiDesk) -> None:
    (series,) = (await desk.get("/v1/data")).json()["series"]
    assert (series["product_id"], series["granularity"], series["rows"]) == ("BTC-USD", "ONE_HOUR", 600)
    assert (series["data_source"], series["damaged"]) == ("SIMULATED", False)
    manifest: Path = desk.settings.bars_path / "BTC-USD" / "ONE_HOUR" / "manifest.json"
    manifest.write_text("{")
    (series,) = (await desk.get("/v1/data")).json()["series"]
    assert (series["damaged"], series["first_ns"]) == (True, None)
    answer = await submit(desk)
    assert (answer.status_code, answer.json()["code"]) == (503, "DATA_UNAVAILABLE")
    assert str(desk.settings.state_dir) not in answer.text
