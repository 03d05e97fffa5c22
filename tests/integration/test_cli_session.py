"""``desk session`` as typed, against the API in this process; what the job would do is done here on bars of a double.

Below: ``python -m jobs.session`` as a process, its exit statuses and how it is stopped and started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from cluster.ledger import Ledger
from cluster.live_bars import LiveBars
from cluster.run_folder import RunState
from cluster.sessions import SessionFolder, prepare_session
from conf.settings import ROOT
from jobs.session_engine import Session
from serve_apps.api import build_api
from strategies.model import Granularity
from tests.api_desk import BTC
from tests.integration.test_cli_override import Applications
from tests.integration.test_cli_risk import Shell, shell
from tests.jobs_api import JobsApi, jobs_api
from tests.servers import redis_secrets
from tests.session_parts import Market, MemoryDesk, SetClock, minute_bars, spec_of

__all__ = ["shell"]

START = ("session", "start", "sma_cross", "-p", "btc-usd", "-g", "one_minute", "--param", "fast=2", "--param", "slow=5")
ID = ("--id", "mine", "--warmup-bars", "30")


class Api(Applications):
    """The API alone, with a Jobs API."""

    def __init__(self, shell: Shell, ray: JobsApi) -> None:
        super().__init__(shell)
        self._ray = ray

    async def _serve(self) -> None:
        ledger = Ledger.connect(self._shell.settings, redis_secrets())
        api = build_api(self._shell.settings, redis_secrets(), ledger, self._ray.client())
        config = uvicorn.Config(api, lifespan="off", ws="none", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        await self._server.serve(sockets=[self.socket])
        await ledger.close()


@pytest.fixture
def ray() -> Iterator[JobsApi]:
    with jobs_api() as api:
        yield api


@pytest.fixture
def desk(shell: Shell, ray: JobsApi) -> Iterator[Shell]:
    api = Api(shell, ray)
    settings = {"redis": shell.settings.redis.model_dump(mode="json"), "serve": {"http_port": api.port}}
    (shell.folder / "desk.json").write_text(json.dumps({"settings": settings}))
    api.start()
    yield shell
    api.stop()


def meet(folder: SessionFolder, bars_max: int = 60) -> None:
    """Let the session meet so many bars, in this process."""
    found = minute_bars(400)
    clock = SetClock(int(found.ts_ns[100]) + 1)
    market = Market(found, clock)
    bars = LiveBars("BTC-USD", Granularity.ONE_MINUTE, market.fetch)
    session = Session(folder, BTC, bars, MemoryDesk(market), clock)
    session._spec = folder.spec().model_copy(update={"bars_max": bars_max})
    assert session.run() is RunState.SUCCEEDED


def folder_of(desk: Shell) -> SessionFolder:
    return SessionFolder(desk.folder / "sessions" / "mine")


def test_from_the_start_to_the_comparison_in_words(desk: Shell, ray: JobsApi) -> None:
    code, text = desk.run(*START, *ID)
    assert (code, "mine: PENDING" in text, "desk session watch mine" in text) == (0, True, True), text
    assert "no sign of life" not in text
    meet(folder_of(desk))
    ray.put("session-mine", "SUCCEEDED")
    code, text = desk.run("session", "list")
    assert (code, "mine" in text, "SUCCEEDED" in text, "BTC-USD ONE_MINUTE" in text) == (0, True, True, True), text
    code, text = desk.run("session", "show", "mine")
    assert code == 0, text
    for words in ("sma_cross", "denied by risk", "equity", "ACCEPTED", "FILLED", "last sign of life"):
        assert words in text, words
    code, text = desk.run("session", "watch", "mine")
    assert (code, "close " in text, text.rstrip().endswith("SUCCEEDED")) == (0, True, True), text
    code, text = desk.run("session", "parity", "mine")
    assert (code, "0 differences in 90 bars (60 live)" in text, "parity.html" in text) == (0, True, True), text
    assert "median, bp" in text


def test_the_same_for_a_machine(desk: Shell, ray: JobsApi) -> None:
    view = desk.json(*START, *ID, "--capital", "500", "--bars", "7")
    assert (view["session_id"], view["spec"]["costs"]["initial_cash"], view["spec"]["bars_max"]) == ("mine", 500, 7)
    assert desk.json(*START, *ID, "--capital", "500", "--bars", "7")["session_id"] == "mine"
    meet(folder_of(desk), 5)
    assert [row["session_id"] for row in desk.json("session", "list")] == ["mine"]
    assert desk.json("session", "show", "mine")["figures"]["live_bars"] == 5
    code, text = desk.run("session", "watch", "mine", "--json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert (code, lines[-1]["kind"], lines[-1]["state"]) == (0, "state", "SUCCEEDED")
    assert desk.json("session", "parity", "mine")["differences"] == 0
    assert desk.json("session", "stop", "mine")["stop"] == "ALREADY"
    assert desk.json("session", "resume", "mine")["state"] == "SUCCEEDED"


def test_a_difference_is_said_in_red_and_by_the_exit_code(desk: Shell) -> None:
    desk.json(*START, *ID)
    folder = folder_of(desk)
    meet(folder)
    text = folder.journal_file.read_text()
    folder.journal_file.write_text(
        text.replace('"target":0.0', '"target":1.0', 1).replace('"target":1.0', '"target":0.5', 1)
    )
    code, shown = desk.run("session", "parity", "mine")
    assert (code, "differences" in shown, "first: bar" in shown) == (1, True, True), shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ((*START, "--param", "fast"), "fast"),
        ((*START, "--param", "fast=x"), "fast"),
        ((*START, "--capital", "-5"), "initial_cash"),
        ((*START, "--fill", "never"), "fill"),
        ((*START, "--trades-as", "nobody"), "trades_as"),
        ((*START, "--id", "No"), "session_id"),
        ((*START, "--account", "nobody"), "nobody"),
        (("session", "show", "nobody"), "nobody"),
        (("session", "stop", "nobody"), "nobody"),
        (("session", "resume", "nobody"), "nobody"),
        (("session", "watch", "nobody"), "nobody"),
        (("session", "parity", "nobody"), "nobody"),
        (("session", "parity", "../desk"), "session_id"),
    ],
)
def test_bad_input_is_one_clear_error(desk: Shell, words: tuple[str, ...], named: str) -> None:
    assert named in json.dumps(desk.error(*words))


def test_a_reader_starts_nothing(desk: Shell) -> None:
    error = desk.error(*START, *ID, key=desk.person("eve", "read"))
    assert error["code"] == "NOT_AUTHORISED"


# -- the process -------------------------------------------------------------------------------------------------------


def laid_out(tmp_path: Path) -> SessionFolder:
    folder, _ = prepare_session(tmp_path / "sessions", spec_of(), "s1", "SIMULATED")
    folder.write_key("tt_none")
    return folder


def command(folder: Path, *more: str) -> tuple[list[str], dict[str, Any]]:
    """The words that start a session's process, and its surroundings: a desk that does not run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DESK_")}
    environment |= {"DESK_STATE_DIR": str(folder.parent.parent), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "jobs.session", "--session-dir", str(folder), *more]
    return words, {"env": environment, "cwd": ROOT, "text": True}


def run_job(folder: Path, *more: str) -> tuple[int, str]:
    words, surroundings = command(folder, *more)
    done = subprocess.run(words, capture_output=True, timeout=120, check=False, **surroundings)
    return done.returncode, done.stdout + done.stderr


def test_what_cannot_be_run_is_refused_and_told(tmp_path: Path) -> None:
    status, text = run_job(tmp_path / "a" / "nowhere")
    assert (status, "has no spec.json" in text) == (2, True)
    folder = laid_out(tmp_path)
    with folder.driving():
        status, text = run_job(folder.path)
        assert (status, "no other process at work" in text) == (3, True)
    status, text = run_job(folder.path)
    assert (status, "Traceback" in text) == (2, False), text
    told = folder.status()
    assert told.state is RunState.FAILED
    assert told.error is not None
    assert "cdp_key.json" in told.error.message
    folder.spec_file.write_text("{")
    status, text = run_job(folder.path)
    assert (status, "Traceback" in text) == (2, False), text
    assert folder.status().state is RunState.FAILED


def test_a_session_killed_is_started_again_and_one_told_to_stop_is_not(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    counted = tmp_path / "lives"
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        f"lives = pathlib.Path({str(counted)!r})\n"
        "lives.write_text(lives.read_text() + 'x' if lives.exists() else 'x')\n"
        "if len(lives.read_text()) < 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(60)\n"
    )
    start = f"import sys; from jobs.session import supervise; sys.exit(supervise([sys.executable, {str(script)!r}]))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    watcher = subprocess.Popen([sys.executable, "-c", start], env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not counted.exists() or len(counted.read_text()) < 3:
        assert time.monotonic() < deadline
        assert watcher.poll() is None
        time.sleep(0.05)
    watcher.send_signal(signal.SIGTERM)
    assert watcher.wait(20) == 128 + signal.SIGTERM
    assert len(counted.read_text()) == 3
