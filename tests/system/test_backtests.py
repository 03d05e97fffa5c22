"""A backtest over HTTP: submitted, followed as events, its result and report read, cancelled; through Serve and Ray."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.market_data import SIMULATED, BarStore
from strategies.model import Bars, Granularity
from tests.system.client import Desk, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def bars(desk: Desk) -> Bars:
    """A year of hourly bars of a product of its own, in the desk's store."""
    granularity, count = Granularity.ONE_HOUR, 24 * 365
    ts_ns = 1_700_002_800 * 10**9 + np.arange(count, dtype=np.int64) * granularity.ns
    close = 100 * np.exp(np.cumsum(np.random.default_rng(11).normal(0, 0.01, count)))
    opened = np.concatenate([[100.0], close[:-1]])
    made = Bars(
        "TEST-USD",
        granularity,
        ts_ns,
        opened,
        np.maximum(opened, close),
        np.minimum(opened, close),
        close,
        np.ones(count),
    )
    BarStore(desk.settings.bars_path).write(made, source=SIMULATED)
    return made


def spec(**grid: list[float]) -> dict[str, Any]:
    wanted = grid or {"fast": [5, 10, 20], "slow": [50, 100, 200]}
    return {
        "product_id": "TEST-USD",
        "granularity": "ONE_HOUR",
        "grids": [{"strategy": "sma_cross", "grid": wanted}],
    }


def ended(desk: Desk, run_id: str) -> bool:
    reply = desk.http.get(f"/v1/backtests/{run_id}")
    assert reply.status_code == 200, reply.text
    return reply.json()["progress"]["state"] in {"SUCCEEDED", "FAILED", "STOPPED"}


def test_a_sweep_is_submitted_followed_and_read(desk: Desk, bars: Bars) -> None:
    headers = {"idempotency-key": "a-sweep-of-nine"}
    reply = desk.http.post("/v1/backtests", json=spec(), headers=headers)
    assert reply.status_code == 202, reply.text
    run_id = reply.json()["run_id"]
    again = desk.http.post("/v1/backtests", json=spec(), headers=headers)
    assert (again.status_code, again.json()["run_id"]) == (202, run_id)
    other = desk.http.post("/v1/backtests", json=spec(fast=[5], slow=[50]), headers=headers)
    assert other.status_code == 409, other.text

    with desk.http.stream("GET", f"/v1/backtests/{run_id}/progress", timeout=120) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        data = (line.removeprefix("data:") for line in events.iter_lines() if line.startswith("data:"))
        states = [json.loads(text)["state"] for text in data]
    assert states[-1] == "SUCCEEDED"

    result = desk.http.get(f"/v1/backtests/{run_id}/result", params={"limit": 3}).json()
    assert len(result["rows"]) == 3
    assert result["sort_by"] in {"oos_sharpe", "sharpe"}, "the latter where too little is held out"
    sharpes = [row["metrics"][result["sort_by"]] for row in result["rows"]]
    assert sharpes == sorted(sharpes, reverse=True)
    report = desk.http.get(f"/v1/backtests/{run_id}/report")
    assert report.status_code == 200
    assert "SIMULATED" in report.text
    assert "content-security-policy" in report.headers


_HUGE = {"start": 2, "stop": 1_000, "step": 1e-6}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"grids": [{"strategy": "nobody", "grid": {"fast": [1]}}]}, 422, "INVALID_SPEC"),
        ({"grids": []}, 422, "INVALID_SPEC"),
        ({"grids": [{"strategy": "sma_cross", "grid": {"fast": _HUGE, "slow": _HUGE}}]}, 422, "INVALID_SPEC"),
        ({"product_id": "NONE-USD"}, 422, "MISSING_DATA"),
        ({"surprise": 1}, 422, "INVALID_SPEC"),
    ],
)
def test_a_bad_specification_is_refused_before_anything_starts(
    desk: Desk, bars: Bars, change: dict[str, Any], status: int, code: str
) -> None:
    before = desk.http.get("/v1/backtests").json()
    reply = desk.http.post("/v1/backtests", json=spec() | change)
    assert (reply.status_code, reply.json()["code"]) == (status, code), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert desk.http.get("/v1/backtests").json() == before


def test_a_long_sweep_is_cancelled_and_keeps_what_is_finished(desk: Desk, bars: Bars) -> None:
    wide = {"fast": list(range(2, 200)), "slow": list(range(200, 900))}
    run_id = desk.http.post("/v1/backtests", json=spec(**wide)).json()["run_id"]  # type: ignore[arg-type]

    def started() -> bool:
        progress = desk.http.get(f"/v1/backtests/{run_id}").json()["progress"]
        return bool(progress["state"] == "RUNNING" and progress["done_sets"] > 0)

    eventually(started, 90, "the sweep has finished a block")
    reply = desk.http.post(f"/v1/backtests/{run_id}/cancel")
    assert reply.status_code in {200, 202}, reply.text
    eventually(lambda: ended(desk, run_id), 60, "the sweep has stopped")
    progress = desk.http.get(f"/v1/backtests/{run_id}").json()["progress"]
    assert progress["state"] == "STOPPED"
    assert 0 < progress["done_sets"] < progress["total_sets"]


def test_health_without_a_key_and_readiness_of_every_part(desk: Desk) -> None:
    assert httpx.get(f"{desk.settings.api_url}/healthz", trust_env=False).status_code == 200
    ready = httpx.get(f"{desk.settings.api_url}/readyz", trust_env=False)
    assert ready.status_code == 200, ready.text
    assert all(part["healthy"] for part in ready.json()["parts"])
    described = httpx.get(f"{desk.settings.api_url}/openapi.json", trust_env=False).json()
    assert {"/v1/orders", "/v1/backtests", "/v1/risk/halt"} <= set(described["paths"])


def test_accounts_exposures_and_profit_are_shown_as_the_ledger_has_them(desk: Desk) -> None:
    body = desk.order(quantity="0.01")
    assert desk.submit(body).status_code == 201
    desk.settled(body["client_order_id"])
    account = desk.http.get("/v1/accounts/main").json()
    snapshot = desk.ledger(lambda ledger: ledger.snapshot("main"))
    assert account["data_source"] == "SIMULATED"
    assert Decimal(account["cash"]) * 10**6 == int(snapshot.book["cash"])
    for part in ("exposures", "pnl", "limits"):
        reply = desk.http.get(f"/v1/accounts/main/{part}")
        assert reply.status_code == 200, reply.text
    assert desk.http.get("/v1/accounts/main/verify").json()["ok"] is True
    assert desk.submit(desk.order(quantity="0.01", side="SELL")).status_code == 201
