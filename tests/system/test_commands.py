"""The desk command as a user types it, against the running desk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.system.client import Desk

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMANDS = [
    "up", "down", "status", "demo", "ingest", "backtest", "sweep", "report", "compare",
    "data ls", "data check", "data resample", "data rm", "jobs ls", "jobs show", "jobs logs", "jobs stop",
    "jobs queue", "jobs priority", "jobs retry", "jobs archive", "jobs restore", "jobs fetch",
    "risk status", "risk halt", "risk resume", "risk approvals", "risk approve", "risk refuse", "risk alerts",
    "risk watch", "risk verify", "limits show", "limits set", "limits proposals", "limits approve", "limits refuse",
    "limits history", "keys create", "keys list", "keys revoke", "orders submit", "orders ls", "orders cancel",
    "orders override", "orders amend", "orders preview", "reconcile",
    "accounts balances", "accounts portfolios", "accounts products", "accounts fees", "accounts fills",
    "accounts orders", "accounts book", "arm live", "arm show", "arm off",
    "session start", "session stop", "session resume", "session list", "session show", "session watch",
    "session parity", "strategy new", "strategy check", "strategy ls",
    "exchange status", "exchange price", "exchange fault", "exchange clock", "exchange fill", "exchange product",
    "exchange deposit",
    "audit show", "audit verify", "audit archive", "audit reset",
]  # fmt: skip


def run(desk: Desk | None, words: str, *more: str) -> subprocess.CompletedProcess[str]:
    """``desk WORDS MORE…`` on the desk under test."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DESK_")}
    if desk is not None:
        environment["DESK_STATE_DIR"] = str(desk.settings.state_dir)
    argv = [sys.executable, "-m", "cluster.cli", *words.split(), *more]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=280, check=False)


def as_json(desk: Desk, words: str, *more: str) -> Any:
    done = run(desk, words, *more, "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_every_command_explains_itself() -> None:
    import typer.main
    from typer.testing import CliRunner

    from cluster.cli import app

    group: Any = typer.main.get_command(app)
    found = {
        f"{name} {sub}" if sub else name
        for name, one in group.commands.items()
        for sub in (getattr(one, "commands", None) or {"": None})
    }
    assert found == set(COMMANDS)
    for words in COMMANDS:
        result = CliRunner().invoke(app, [*words.split(), "--help"])
        assert result.exit_code == 0, words
        assert "Usage" in result.output, words


def test_status_shows_every_part_healthy(desk: Desk) -> None:
    parts = {part["name"]: part["healthy"] for part in as_json(desk, "status")}
    assert parts == dict.fromkeys(("ledger", "exchange", "ray", "orders", "execution", "deadman", "api"), True)


def test_bars_are_ingested_once_and_a_backtest_runs_on_them(desk: Desk) -> None:
    words = ("-p", "ETH-USD", "-g", "ONE_DAY", "--start", "2026-01-01", "--end", "2026-07-01")
    assert as_json(desk, "ingest", *words)["new"] == 181
    assert as_json(desk, "ingest", *words)["fetched"] == 0
    (series,) = [row for row in as_json(desk, "data ls") if row["product_id"] == "ETH-USD"]
    assert (series["rows"], series["sources"]) == (181, ["SIMULATED"])
    assert as_json(desk, "data check", "-p", "ETH-USD") == {"ETH-USD ONE_DAY": []}
    options = ("-p", "ETH-USD", "-g", "ONE_DAY", "--param", "fast=5", "--param", "slow=20")
    answer = as_json(desk, "backtest sma_cross", *options)
    (shown,) = as_json(desk, "jobs show", answer["run_id"])["leaderboard"]
    assert (shown["params"]["fast"], shown["params"]["slow"]) == (5, 20)
    assert as_json(desk, "report", answer["run_id"])["report"] == answer["report"]
    with open(answer["report"]) as page:
        assert "SIMULATED" in page.read()
    assert answer["run_id"] in [row["run_id"] for row in as_json(desk, "jobs ls")]
    assert as_json(desk, "data rm", "-p", "ETH-USD", "-g", "ONE_DAY") == {"removed": True}
    assert as_json(desk, "data rm", "-p", "ETH-USD", "-g", "ONE_DAY") == {"removed": False}


@pytest.mark.parametrize(
    ("words", "more", "named"),
    [
        ("sweep -p BTC-USD -G nobody.fast=1", (), "nobody"),
        ("sweep -p BTC-USD -G sma_cross.fast=0", (), "grids[0].grid.fast"),
        ("sweep -p BTC-USD -G sma_cross.speed=1", (), "speed"),
        ("sweep -p BTC-USD -G sma_cross.fast=1:1000000000:0.001", (), "fast"),
        ("sweep -p BTC-USD", (), "grids"),
        ("sweep -p SOL-USD -g ONE_MINUTE -G sma_cross.fast=5,10", (), "SOL-USD"),
        ("backtest sma_cross -p BTC-USD --param fast=50 --param slow=10", (), "fast"),
        ("backtest sma_cross -p BTC-USD --param fast=quick", (), "quick"),
        ("orders submit -p BTC-USD --side BUY -q 1e400", (), "quantity"),
        ("risk halt --scope strategy", (), "name"),
        ("risk halt --scope strategy --name nobody", (), "nobody"),
        ("risk status --account nobody", (), "nobody"),
        ("jobs show no-such-run", (), "no-such-run"),
        ("jobs show", ("../../etc",), "etc"),
        ("ingest -p BTC-USD -g FOUR_HOUR --start 2999-01-01", (), "start"),
        ("ingest -p BTC-USD --file", ("/no/such/file.json",), "file.json"),
    ],
)
def test_bad_input_is_one_clear_line_and_an_exit_code(
    desk: Desk, words: str, more: tuple[str, ...], named: str
) -> None:
    done = run(desk, words, *more)
    assert done.returncode in {1, 2}, done
    assert named in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout


def test_halt_and_resume_by_command_and_the_books_are_proven(desk: Desk, tmp_path: Path) -> None:
    (changed,) = as_json(desk, "risk halt", "--scope", "strategy", "--name", "stopped", "--reason", "a test")
    assert (changed["account"], changed["scope"], changed["state"]) == ("main", "strategy|stopped", "HALTED")
    denied = run(desk, "orders submit -p BTC-USD --side BUY -q 0.001 --strategy stopped", "--json")
    assert denied.returncode == 1
    assert json.loads(denied.stdout)["code"] == "TRADING_HALTED"
    words = ("--scope", "strategy", "--name", "stopped", "--reason", "the test is over")
    (proposal,) = as_json(desk, "risk resume", *words)
    alone = run(desk, "risk approve", proposal["id"], "--json")
    assert json.loads(alone.stdout)["error"]["code"] == "SAME_PERSON"
    second = tmp_path / "second.key"
    as_json(desk, "keys create", "--person", "second", "--scopes", "resume", "--out", str(second))
    approved = as_json(desk, "risk approve", proposal["id"], "--key-file", str(second))
    assert approved["outcome"] == "APPLIED"
    accepted = as_json(desk, "orders submit -p BTC-USD --side BUY -q 0.001 -l 1000.00 --strategy stopped --id by-cli-1")
    assert accepted["verdict"] == "ACCEPTED"
    assert as_json(desk, "orders cancel by-cli-1")["cancel"] in {"CANCELLED", "REQUESTED"}
    assert desk.settled("by-cli-1")["status"] == "CANCELLED"
    assert as_json(desk, "risk verify") == {"main": {"ok": True, "differences": []}}
    assert "by-cli-1" in [row["client_order_id"] for row in as_json(desk, "orders ls")]


def test_without_a_desk_commands_say_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("none")
    for words in ("orders ls", "risk status", "sweep -p BTC-USD -G sma_cross.fast=5,10"):
        done = run(None, f"--state-dir {folder} {words}")
        assert done.returncode in {1, 2}
        assert "desk up" in done.stderr
    assert run(None, f"--state-dir {folder} down").returncode == 0
    assert run(None, f"--state-dir {folder} status").returncode == 1
