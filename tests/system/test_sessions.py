"""A live session as a user runs it: a Ray job on the running desk, killed, gone on, compared, stopped by command."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

import psutil
import pytest

from tests.system.client import Desk, eventually
from tests.system.test_commands import as_json, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A bar of a minute ends within one, is final a moment later, and its order is over a moment after that.
BAR_S_MAX = 150.0


def shown(desk: Desk) -> dict[str, Any]:
    found: dict[str, Any] = as_json(desk, "session show live")
    return found


def workers(desk: Desk) -> list[psutil.Process]:
    """The session's own process, which the job's watches over."""
    found = []
    for process in desk.all_processes():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "jobs.session" in words and "--supervise" not in words:
            found.append(process)
    return found


def test_a_session_trades_survives_a_kill_and_is_what_the_backtest_says(desk: Desk) -> None:
    # Nearly every RSI is below 98, so that the first live bar already wants a position.
    levels = ("--param", "oversold=98", "--param", "exit_level=99", "--param", "overbought=100")
    words = ("-p", "BTC-USD", "-g", "ONE_MINUTE", "--trades-as", "manual", "--capital", "1000", "--id", "live")
    started = as_json(desk, "session start rsi_reversion", *words, *levels)
    assert (started["session_id"], started["data_source"]) == ("live", "SIMULATED")
    assert as_json(desk, "session start rsi_reversion", *words, *levels)["session_id"] == "live"
    eventually(lambda: Decimal(shown(desk)["figures"]["position"]) > 0, BAR_S_MAX, "the session holds something")
    first = shown(desk)
    assert (first["state"], first["job_status"]) == ("RUNNING", "RUNNING")
    (worker,) = workers(desk)
    worker.kill()
    eventually(lambda: [one.pid for one in workers(desk)] not in ([], [worker.pid]), 30, "it was started again")
    bars = first["figures"]["live_bars"]
    eventually(lambda: shown(desk)["figures"]["live_bars"] > bars, BAR_S_MAX, "it has met another bar")
    assert len([row for row in orders_of(desk) if row["status"] == "FILLED"]) == 1
    compared = as_json(desk, "session parity live")
    assert (compared["differences"], compared["compared"]) == (0, 1)
    watched = run(desk, "session watch live --seconds 1 --json")
    kinds = {json.loads(line)["kind"] for line in watched.stdout.splitlines()}
    assert "bar" in kinds
    assert "live" in [row["session_id"] for row in as_json(desk, "session list")]
    assert as_json(desk, "session stop live --flatten")["stop"] == "REQUESTED"
    eventually(lambda: bool(shown(desk)["ended"]), 60, "it has ended")
    last = shown(desk)
    assert last["state"] == "STOPPED"
    assert Decimal(last["figures"]["position"]) == 0
    assert [row["side"] for row in orders_of(desk)] == ["SELL", "BUY"]
    eventually(lambda: not workers(desk), 10, "no process of it is left")
    resumed = as_json(desk, "session resume live")
    assert resumed["state"] in {"PENDING", "RUNNING"}
    eventually(lambda: shown(desk)["state"] == "RUNNING", 60, "it goes on")
    assert as_json(desk, "session stop live")["stop"] == "REQUESTED"
    eventually(lambda: bool(shown(desk)["ended"]), 60, "it has ended again")
    assert not desk.differences()


def orders_of(desk: Desk) -> list[dict[str, Any]]:
    """The session's orders as the desk knows them, newest first."""
    rows = as_json(desk, "orders ls")
    return [row for row in rows if row["client_order_id"].startswith("live.")]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("session start nobody -p BTC-USD", "nobody"),
        ("session start sma_cross -p BTC-USD", "trades_as"),
        ("session start sma_cross -p BTC-USD --trades-as manual --param fast=quick", "fast"),
        ("session start sma_cross -p BTC-USD --trades-as manual -g ONE_WEEK", "granularity"),
        ("session start sma_cross -p NO-USD --trades-as manual", "product_id"),
        ("session show no-such", "no-such"),
        ("session stop no-such", "no-such"),
        ("session parity no-such", "no-such"),
        ("session watch no-such", "no-such"),
    ],
)
def test_bad_input_is_one_clear_line(desk: Desk, words: str, named: str) -> None:
    begin = time.monotonic()
    done = run(desk, words)
    assert done.returncode in {1, 2}, done
    assert named in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    assert time.monotonic() - begin < 60
