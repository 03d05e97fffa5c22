"""``desk exchange`` as a user types it: the simulator in the foreground, and the commands that control it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster.cli import app
from tests.simulator import ROOT

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Foreground:
    """A running ``desk exchange``: its process, its folder and what it said of itself."""

    process: subprocess.Popen[str]
    folder: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    folder = tmp_path_factory.mktemp("desk") / "exchange"
    options = ["--port", "0", "--state-dir", str(folder), "--history-days", "3", "--json"]
    command = [sys.executable, "-u", "-m", "cluster.cli", "exchange", *options]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ.copy(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = process.stdout.readline()
        assert line, "it ended instead of starting"
        lines.append(line)
    yield Foreground(process, folder, json.loads("".join(lines)))
    if process.poll() is None:
        process.kill()
        process.wait()
    process.stdout.close()


def run(exchange: Foreground, *words: str) -> Result:
    name, *more = words
    return CliRunner().invoke(app, ["exchange", name, "--state-dir", str(exchange.folder), *more])


def as_json(exchange: Foreground, *words: str) -> Any:
    name, *more = words
    done = run(exchange, name, "--json", *more)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_it_says_where_everything_is_and_the_sdk_needs_no_more(exchange: Foreground) -> None:
    from coinbase.rest import RESTClient

    facts = exchange.facts
    assert facts["simulated"] is True
    client = RESTClient(key_file=facts["key"], base_url=facts["host_port"])
    client.session.trust_env, client.session.verify = False, facts["CA"]
    assert client.get_accounts().accounts
    assert facts["WebSocket"] == f"wss://{facts['host_port']}"
    client.session.close()


def test_prices_faults_clock_flags_and_deposits_are_set(exchange: Foreground) -> None:
    assert as_json(exchange, "price", "BTC-USD", "61000.00")["price"] == "61000.00"
    assert as_json(exchange, "product", "SOL-USD", "post_only=on", "cancel_only=off")["post_only"] is True
    assert as_json(exchange, "deposit", "USD", "12.5")["available_balance"]["value"] == "1000012.5"
    assert as_json(exchange, "clock", "--", "-250") == {"offset_ms": -250}
    (rule,) = as_json(exchange, "fault", "latency", "--set", "ms=5", "--path", "/orders", "--count", "3")["rules"]
    assert (rule["fault"], rule["ms"], rule["match"], rule["count"]) == ("latency", 5, {"path": "/orders"}, 3)
    both = as_json(exchange, "fault", "ws_close", "--set", "code=abort", "--channel", "user", "--add")["rules"]
    assert [each["fault"] for each in both] == ["latency", "ws_close"]
    status = as_json(exchange, "status")
    assert status["prices"]["BTC-USD"] == "61000.00"
    assert status["flags"] == {"SOL-USD": ["post_only"]}
    assert status["clock_offset_ms"] == -250
    assert [each["fault"] for each in status["faults"]["rules"]] == ["latency", "ws_close"]
    assert as_json(exchange, "fault", "off")["rules"] == []
    assert as_json(exchange, "clock", "0") == {"offset_ms": 0}
    assert as_json(exchange, "price", "BTC-USD", "free")["price"] != "61000.00"


def test_every_command_says_in_words_what_it_did(exchange: Foreground, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"rules": [{"fault": "drop", "count": 0}]}))
    for words, says in (
        (("price", "ETH-USD", "3000.00"), "ETH-USD at 3000.00, 0 fills"),
        (("product", "SOL-USD", "post_only=off"), "SOL-USD: online"),
        (("deposit", "EUR", "5"), "expected one of"),
        (("clock", "0"), "+0 ms"),
        (("fault", "--rules", str(rules)), "drop"),
        (("fault",), "drop"),
        (("fault", "off"), "no faults"),
        (("status",), "exchange (SIMULATED)"),
    ):
        assert says in run(exchange, *words).output, words


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("price", "NO-USD", "5"), "not found"),
        (("price", "BTC-USD", "cheap"), "expected a decimal string"),
        (("fault", "fire"), "expected one of latency"),
        (("fault", "latency", "--set", "ms"), "expected FIELD=VALUE"),
        (("fault", "--rules", "/nowhere.json"), "expected a JSON file"),
        (("product", "BTC-USD", "magic=on"), "expected true or false for some of"),
        (("product", "BTC-USD", "post_only=maybe"), "expected FLAG=on or FLAG=off"),
        (("fill", "nobody"), "no such order"),
    ],
    ids=str,
)
def test_what_cannot_be_is_an_error_in_one_line(exchange: Foreground, words: tuple[str, ...], says: str) -> None:
    done = run(exchange, *words)
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_where_nothing_runs_the_way_out_is_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["exchange", "status", "--state-dir", str(tmp_path), "--json"])
    assert done.exit_code == 2
    assert "no exchange has been started there" in json.loads(done.stdout)["error"]["message"]


def test_a_start_that_cannot_be_ends_with_its_reason(exchange: Foreground, tmp_path: Path) -> None:
    for options, says in (
        (["--state-dir", str(exchange.folder)], "another simulator is running there"),
        (["--state-dir", str(tmp_path / "a"), "--replay", str(tmp_path / "none.csv")], "none.csv"),
        (["--state-dir", str(tmp_path / "b"), "--tape", str(tmp_path / "none.ws")], "none.ws"),
    ):
        command = [sys.executable, "-m", "cluster.cli", "exchange", "--port", "0", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr


def test_ctrl_c_ends_it_quietly(exchange: Foreground) -> None:
    """The last test of this file: nothing runs afterwards."""
    exchange.process.send_signal(signal.SIGINT)
    assert exchange.process.wait(timeout=10) == 0
    assert run(exchange, "status").exit_code == 2
