"""The command line straight at the ledger, with no application running: halts, approvals, limits, keys, watch."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from typer.testing import CliRunner

from cluster.cli import app
from cluster.demo import _halt, _resume
from cluster.ledger import Ledger
from cluster.limit_records import CALENDAR, account_records, desk_records
from cluster.local import API_KEY_FILE, write_private
from conf.settings import API_KEY_VARIABLE, RedisSettings, Settings, write_secrets
from tests.api_desk import BTC, ETH, LIMITS
from tests.limit_samples import limits_file
from tests.servers import PASSWORD, redis_secrets

T = TypeVar("T")
ACCOUNTS: Final = ("main", "second")
PRODUCTS: Final = {"BTC-USD": BTC, "ETH-USD": ETH}


class Shell:
    """A person at the command line of a desk of which only the ledger runs."""

    def __init__(self, folder: Path, redis: RedisSettings) -> None:
        self.folder = folder
        self.settings = Settings(state_dir=folder, redis=redis)

    def run(self, *words: str, key: str | None = None) -> tuple[int, str]:
        """Exit code and everything printed; ``key`` comes as DESK_API_KEY."""
        result = CliRunner().invoke(app, list(words), env={API_KEY_VARIABLE: key})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def json(self, *words: str, key: str | None = None) -> Any:
        """What a command prints with --json; it must succeed."""
        code, text = self.run(*words, "--json", key=key)
        assert code == 0, text
        return json.loads(text)

    def error(self, *words: str, key: str | None = None) -> Any:
        """The error of a command that must fail."""
        code, text = self.run(*words, "--json", key=key)
        assert code in {1, 2}, text
        return json.loads(text)["error"]

    def ledger(self, work: Callable[[Ledger], Awaitable[T]]) -> T:
        """Run ``work`` on the ledger."""

        async def connected() -> T:
            ledger = Ledger.connect(self.settings, redis_secrets())
            try:
                return await work(ledger)
            finally:
                await ledger.close()

        return asyncio.run(connected())

    def person(self, name: str, scopes: str = "read,trade,resume,limits", *more: str) -> str:
        """A new key of a person."""
        made = self.json("keys", "create", "--person", name, "--scopes", scopes, *more)
        return str(made["key"])

    def state(self, field: str = "global", account: str | None = None) -> str:
        """A trading state in the ledger."""

        async def read(ledger: Ledger) -> str:
            snapshot = await ledger.snapshot(account)
            return (snapshot.state if account else snapshot.desk_state)[field]

        return self.ledger(read)


@pytest.fixture
def shell(tmp_path: Path, ledger_server: RedisSettings, monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell(tmp_path, ledger_server)
    for name in [name for name in os.environ if name.startswith("DESK_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DESK_STATE_DIR", str(tmp_path))
    (tmp_path / "desk.json").write_text(json.dumps({"settings": {"redis": ledger_server.model_dump(mode="json")}}))
    pepper = redis_secrets().api_key_pepper
    assert pepper is not None
    write_secrets(tmp_path / "secrets.env", {"redis_password": PASSWORD, "api_key_pepper": pepper.get_secret_value()})

    async def set_up(ledger: Ledger) -> None:
        await ledger._direct("FLUSHALL")
        await ledger.install()
        await ledger.set_products(list(PRODUCTS.values()))
        desk = desk_records(limits_file(max_gross_exposure=1_000_000))
        await ledger.set_limits(None, desk, "limits.yaml")
        for account in ACCOUNTS:
            await ledger.set_limits(account, account_records(LIMITS, PRODUCTS, desk[CALENDAR]), "limits.yaml")

    shell.ledger(set_up)
    write_private(tmp_path / API_KEY_FILE, shell.person("local desk", "read,trade,halt,resume,limits,research"))
    return shell


# -- halting -----------------------------------------------------------------------------------------------------------


def test_one_command_halts_everything(shell: Shell) -> None:
    (changed,) = shell.json("risk", "halt")
    assert (changed["account"], changed["scope"], changed["state"]) == (None, "global", "HALTED")
    assert shell.state() == "HALTED"
    code, text = shell.run("risk", "status")
    assert (code, "HALTED" in text) == (0, True)
    assert shell.json("risk", "status")["main"]["states"]["global"] == "HALTED"


HALTS: list[tuple[list[str], str, str]] = [
    # words -> the field, the state
    (["--cancel-all"], "global", "CANCEL_ALL"),
    (["--reducing"], "global", "REDUCING"),
    (["--state", "REDUCING"], "global", "REDUCING"),
    (["--scope", "account", "--account", "main"], "account", "HALTED"),
    (["--scope", "strategy", "--name", "manual"], "strategy|manual", "HALTED"),
    (["--scope", "strategy|manual"], "strategy|manual", "HALTED"),
    (["--scope", "product:BTC-USD", "--reducing"], "product|BTC-USD", "REDUCING"),
]


@pytest.mark.parametrize(("words", "field", "state"), HALTS)
def test_a_scope_is_halted_as_hard_as_asked(shell: Shell, words: list[str], field: str, state: str) -> None:
    changed = shell.json("risk", "halt", *words)
    assert {(one["scope"], one["state"]) for one in changed} == {(field, state)}
    assert shell.state(field, None if field == "global" else "main") == state


NO_HALTS: list[tuple[list[str], str]] = [
    # words, what the error names
    (["--cancel-all", "--reducing"], "state"),
    (["--cancel-all", "--state", "HALTED"], "state"),
    (["--scope", "everything"], "everything"),
    (["--scope", "strategy"], "name"),
    (["--scope", "strategy|manual", "--name", "manual"], "name"),
    (["--scope", "global", "--name", "manual"], "name"),
    (["--scope", "strategy", "--name", "nobody"], "nobody"),
    (["--scope", "account", "--account", "nobody"], "nobody"),
]


@pytest.mark.parametrize(("words", "named"), NO_HALTS)
def test_a_halt_that_means_nothing_is_refused_by_name(shell: Shell, words: list[str], named: str) -> None:
    error = shell.error("risk", "halt", *words)
    assert named in json.dumps(error)
    assert shell.state() == "ACTIVE"


def test_who_may_trade_may_halt_and_who_may_only_read_may_not(shell: Shell) -> None:
    trader, reader = shell.person("tess", "trade"), shell.person("rita", "read,limits,resume")
    assert shell.error("risk", "halt", key=reader)["code"] == "NOT_AUTHORISED"
    assert shell.state() == "ACTIVE"
    shell.json("risk", "halt", key=trader)
    assert shell.state() == "HALTED"


def test_a_key_of_one_account_halts_there_only(shell: Shell) -> None:
    key = shell.person("tess", "trade", "--accounts", "main")
    for words in ([], ["--scope", "account"], ["--scope", "account", "--account", "second"]):
        assert shell.error("risk", "halt", *words, key=key)["code"] == "NOT_AUTHORISED"
    shell.json("risk", "halt", "--scope", "account", "--account", "main", key=key)
    assert (shell.state("account", "main"), shell.state("account", "second")) == ("HALTED", "ACTIVE")


def test_the_audit_names_the_key_that_halted(shell: Shell) -> None:
    key = shell.person("tess", "trade")
    shell.json("risk", "halt", "--reason", "prices look odd", key=key)
    ((_, entry),) = shell.ledger(lambda ledger: ledger.recent_audit(None, at_most=1))
    assert (entry["kind"], entry["by"]) == ("STATE", key.split("_")[1])
    assert "prices look odd" in entry["data"]


# -- who acts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["nonsense", "tt_0123456789ab_" + "x" * 43])
def test_a_key_of_nobody_may_nothing(shell: Shell, key: str) -> None:
    assert shell.error("risk", "halt", key=key)["code"] == "NOT_AUTHENTICATED"
    assert shell.state() == "ACTIVE"


def test_a_revoked_key_may_nothing(shell: Shell) -> None:
    key = shell.person("tess", "trade")
    assert shell.json("keys", "revoke", key.split("_")[1])["changed"] is True
    assert shell.json("keys", "revoke", key.split("_")[1])["changed"] is False
    assert shell.error("risk", "halt", key=key)["code"] == "NOT_AUTHENTICATED"


def test_a_key_may_come_from_a_file_that_only_its_owner_can_read(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "tess.key"
    made = shell.json("keys", "create", "--person", "tess", "--scopes", "trade", "--out", str(path))
    assert made["key"] is None
    assert path.stat().st_mode & 0o777 == 0o600
    shell.json("risk", "halt", "--reducing", "--key-file", str(path))
    assert shell.state() == "REDUCING"
    path.chmod(0o644)
    assert "0644" in shell.error("risk", "halt", "--key-file", str(path))["message"]
    assert "missing.key" in shell.error("risk", "halt", "--key-file", str(tmp_path / "missing.key"))["message"]
    assert shell.error("keys", "create", "--person", "a", "--scopes", "read", "--out", str(path))["field"] == "out"
    assert shell.state() == "REDUCING"


def test_the_named_file_beats_the_environment(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "reader.key"
    shell.json("keys", "create", "--person", "rita", "--scopes", "read", "--out", str(path))
    trader = shell.person("tess", "trade")
    assert shell.error("risk", "halt", "--key-file", str(path), key=trader)["code"] == "NOT_AUTHORISED"


# -- a second person ---------------------------------------------------------------------------------------------------


def test_resuming_takes_another_person(shell: Shell) -> None:
    ada, bob = shell.person("ada"), shell.person("bob")
    shell.json("risk", "halt", key=ada)
    (proposal,) = shell.json("risk", "resume", "--reason", "looked at it", key=ada)
    assert proposal["id"].startswith("DESK.")
    assert shell.error("risk", "approve", proposal["id"], key=ada)["code"] == "SAME_PERSON"
    assert shell.error("risk", "approve", proposal["id"], key=shell.person(" ADA "))["code"] == "SAME_PERSON"
    assert shell.state() == "HALTED"
    assert [one["id"] for one in shell.json("risk", "approvals")] == [proposal["id"]]
    assert "ada" in shell.run("risk", "approvals")[1]
    assert shell.json("risk", "approve", proposal["id"], key=bob)["outcome"] == "APPLIED"
    assert shell.state() == "ACTIVE"
    assert shell.json("risk", "approvals") == []
    assert [one["status"] for one in shell.json("risk", "approvals", "--all")] == ["APPLIED"]


def test_what_was_looked_at_is_what_is_approved(shell: Shell) -> None:
    bob = shell.person("bob")
    shell.json("risk", "halt", "--scope", "account", "--account", "main")
    (proposal,) = shell.json("risk", "resume", "--scope", "account", "--account", "main", "--reason", "fine")
    other = shell.error("risk", "approve", proposal["id"], "--digest", "0" * 40, key=bob)
    assert other["code"] == "CHANGED"
    shell.json("risk", "approve", proposal["id"], "--digest", proposal["digest"], key=bob)
    assert shell.state("account", "main") == "ACTIVE"


def test_a_refused_proposal_is_over(shell: Shell) -> None:
    bob = shell.person("bob")
    shell.json("risk", "halt")
    (proposal,) = shell.json("risk", "resume", "--reason", "too early")
    assert shell.json("risk", "refuse", proposal["id"], "--reason", "not yet", key=bob)["status"] == "REFUSED"
    assert shell.error("risk", "approve", proposal["id"], key=bob)["code"] == "DONE"
    assert shell.state() == "HALTED"


def test_resuming_what_is_active_or_unknown_is_refused(shell: Shell) -> None:
    assert shell.error("risk", "resume", "--reason", "x")["code"] == "ALREADY_ACTIVE"
    assert "nobody" in json.dumps(shell.error("risk", "resume", "--scope", "strategy|nobody", "--reason", "x"))
    assert shell.error("risk", "approve", "main.999")["code"] == "NOT_FOUND"
    assert shell.error("risk", "approve", "../etc")["code"] == "NOT_FOUND"
    assert shell.run("risk", "resume")[0] == 2


def test_a_right_to_limits_is_none_to_resume(shell: Shell) -> None:
    shell.json("risk", "halt")
    limiter = shell.person("lim", "read,limits")
    assert shell.error("risk", "resume", "--reason", "x", key=limiter)["code"] == "NOT_AUTHORISED"
    (proposal,) = shell.json("risk", "resume", "--reason", "x")
    assert shell.error("risk", "approve", proposal["id"], key=limiter)["code"] == "NOT_AUTHORISED"
    assert shell.error("risk", "refuse", proposal["id"], "--reason", "x", key=limiter)["code"] == "NOT_AUTHORISED"


# -- limits ------------------------------------------------------------------------------------------------------------


def hard(shell: Shell, scope: str, name: str, account: str = "main") -> Any:
    (row,) = [
        row for row in shell.json("limits", "show")[account]["limits"] if (row["scope"], row["name"]) == (scope, name)
    ]
    return row["hard"], row["soft"]


def test_a_stricter_limit_holds_at_once_and_a_looser_one_when_another_person_approves(shell: Shell) -> None:
    ada, bob = shell.person("ada"), shell.person("bob")
    words = ["account.max_order_notional=1000", "product:BTC-USD.max_position=9:8", "global.max_gross_exposure=2000000"]
    main, desk = sorted(
        shell.json("limits", "set", *words, "--reason", "drill", key=ada), key=lambda one: one["account"] is None
    )
    assert [row["name"] for row in main["applied"]] == ["max_order_notional"]
    assert hard(shell, "account", "max_order_notional") == ("1000", "800")
    assert hard(shell, "product|BTC-USD", "max_position") == ("5", "4")
    assert (desk["applied"], desk["proposal"]["account"]) == ([], None)
    waiting = {one["id"] for one in shell.json("limits", "proposals")}
    assert waiting == {main["proposal"]["id"], desk["proposal"]["id"]}
    assert "max_position" in shell.run("limits", "proposals")[1]
    for identity in waiting:
        assert shell.error("limits", "approve", identity, key=ada)["code"] == "SAME_PERSON"
        assert shell.json("limits", "approve", identity, key=bob)["outcome"] == "APPLIED"
    assert hard(shell, "product|BTC-USD", "max_position") == ("9", "8")
    assert hard(shell, "global", "max_gross_exposure", "DESK") == ("2000000", "1600000")
    entries = shell.json("limits", "history", "--account", "main")["entries"]
    assert [entry["kind"] for entry in entries] == ["LIMITS", "APPROVED", "PROPOSED", "LIMITS", "LIMITS"]
    code, text = shell.run("limits", "history", "--account", "main")
    assert (code, "9, warns above 8" in text) == (0, True)


def test_the_limits_of_other_accounts_stay(shell: Shell) -> None:
    shell.json("limits", "set", "account.max_open_orders=3", "--account", "second", "--reason", "drill")
    assert hard(shell, "account", "max_open_orders", "second") == ("3", "2")
    assert hard(shell, "account", "max_open_orders", "main") == ("200", "160")


SETTINGS: list[tuple[str, str, str, tuple[str, str | None]]] = [
    # as typed -> scope, name, hard and soft as shown
    ("account.max_daily_loss=5000:3000", "account", "max_daily_loss", ("5000", "3000")),
    ("account.order_rate_per_s=10", "account", "order_rate_per_s", ("10", None)),
    ("account.self_trade=deny", "account", "self_trade", ("deny", None)),
    ("product|BTC-USD.restricted=yes", "product|BTC-USD", "restricted", ("yes", None)),
    ("product:ETH-USD.max_position=0.5", "product|ETH-USD", "max_position", ("0.5", "0.4")),
    ("strategy:manual.short=denied", "strategy|manual", "short", ("denied", None)),
    ("key:*.max_open_orders=4", "key|*", "max_open_orders", ("4", "3")),
]


@pytest.mark.parametrize(("text", "scope", "name", "shown"), SETTINGS)
def test_a_limit_is_typed_as_it_stands_in_the_file(
    shell: Shell, text: str, scope: str, name: str, shown: tuple[str, str | None]
) -> None:
    (outcome,) = shell.json("limits", "set", text, "--reason", "drill")
    assert outcome["proposal"] is None
    assert hard(shell, scope, name) == shown


def test_hours_and_versions_are_typed_with_commas(shell: Shell) -> None:
    words = ["product:BTC-USD.hours=mon-fri 09:00-17:00,sun 20:00-22:00", "strategy:manual.versions=v1,v2"]
    (outcome,) = shell.json("limits", "set", *words, "--reason", "drill")
    shell.json("limits", "approve", outcome["proposal"]["id"], key=shell.person("bob"))
    assert hard(shell, "product|BTC-USD", "hours")[0].startswith("mon 09:00-17:00, tue 09:00-17:00")
    assert hard(shell, "strategy|manual", "versions") == ("v1,v2", None)


@pytest.mark.parametrize(
    "text",
    [
        "account.max_order_notional", "max_order_notional=1", "account.=1", ".max_order_notional=1", "=1", "",
        "account.max_order_notional=", "account.max_order_notional=much", "account.max_order_notional=1:2",
        "account.max_order_notional=nan", "account.max_order_notional=-1", "account.max_orders=1",
        "nobody.max_order_notional=1", "strategy:nobody.max_order_notional=1", "product:BTC-USD.max_position=1:1:1",
        "account.order_burst=1.5", "account.max_order_notional=١",
    ],
)  # fmt: skip
def test_a_limit_that_cannot_be_changes_nothing(shell: Shell, text: str) -> None:
    before = shell.ledger(lambda ledger: ledger.snapshot("main"))
    error = shell.error("limits", "set", "account.max_open_orders=1", text, "--reason", "drill")
    assert error["message"]
    assert shell.ledger(lambda ledger: ledger.snapshot("main")).limits == before.limits


def test_limits_are_shown_by_scope(shell: Shell) -> None:
    for scope, scopes in (
        ("product", {"product|BTC-USD", "product|ETH-USD"}),
        ("product:BTC-USD", {"product|BTC-USD"}),
    ):
        shown = shell.json("limits", "show", "--account", "main", "--scope", scope)["main"]
        assert {row["scope"] for row in shown["limits"]} == scopes
    assert "nobody" in shell.error("limits", "show", "--scope", "strategy|nobody")["message"]
    code, text = shell.run("limits", "show")
    assert (code, "max_drawdown_percent" in text, "warns above" in text) == (0, True, True)


def test_limits_need_their_own_right_and_a_reason(shell: Shell) -> None:
    trader = shell.person("tess", "read,trade,halt,resume")
    assert (
        shell.error("limits", "set", "account.order_burst=1", "--reason", "x", key=trader)["code"] == "NOT_AUTHORISED"
    )
    assert shell.run("limits", "set", "account.order_burst=1")[0] == 2
    own = shell.person("otto", "limits", "--strategies", "manual")
    shell.json("limits", "set", "strategy:manual.order_burst=1", "--reason", "x", key=own)
    assert shell.error("limits", "set", "account.order_burst=1", "--reason", "x", key=own)["code"] == "NOT_AUTHORISED"


# -- keys --------------------------------------------------------------------------------------------------------------


def test_keys_are_listed_without_their_secrets(shell: Shell) -> None:
    key = shell.person("Ada Lovelace", "read,trade", "--strategies", "manual,sma_cross", "--expires-days", "0.5")
    rows = shell.json("keys", "list")
    (row,) = [row for row in rows if row["key_id"] == key.split("_")[1]]
    assert (row["person"], row["status"], row["scopes"]) == ("ada lovelace", "active", ["read", "trade"])
    assert row["strategies"] == ["manual", "sma_cross"]
    assert 0 < row["expires_ns"] - time.time_ns() <= 43_200 * 10**9
    everything = shell.run("keys", "list")[1] + json.dumps(rows)
    assert key.split("_", 2)[2] not in everything
    assert "hash" not in everything


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--person", " ", "--scopes", "read"], "person"),
        (["--person", "a", "--scopes", "red"], "red"),
        (["--person", "a", "--scopes", ""], "scopes"),
        (["--person", "a", "--scopes", "*"], "scopes"),
        (["--person", "a", "--scopes", "read", "--accounts", "A B"], "accounts"),
        (["--person", "a", "--scopes", "read", "--strategies", "x|y"], "strategies"),
    ],
)
def test_a_key_that_cannot_be_is_not_made(shell: Shell, words: list[str], named: str) -> None:
    before = shell.json("keys", "list")
    assert named in json.dumps(shell.error("keys", "create", *words))
    assert shell.json("keys", "list") == before
    assert shell.error("keys", "revoke", "0" * 12)["field"] == "key_id"


# -- alerts and the watch ----------------------------------------------------------------------------------------------


def test_alerts_of_the_desk_and_of_accounts_are_listed(shell: Shell) -> None:
    async def spoil(ledger: Ledger) -> None:
        await ledger._direct("HSET", "tt:{desk}:main:book", "a|open_orders", "1")
        assert await ledger.prove("main")

    shell.ledger(spoil)
    (alert,) = shell.json("risk", "alerts")
    assert (alert["account"], alert["level"], alert["code"]) == ("main", "HARD", "INVARIANT")
    assert shell.json("risk", "alerts", "--account", "second") == []
    assert "INVARIANT" in shell.run("risk", "alerts")[1]
    assert "INVARIANT" in shell.run("risk", "status")[1]


def test_the_watch_needs_a_terminal(shell: Shell) -> None:
    code, text = shell.run("risk", "watch")
    assert (code, "terminal" in text) == (2, True)


class Terminal:
    """``desk risk watch`` in a terminal of its own."""

    def __init__(self, shell: Shell, **environment: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DESK_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "risk", "watch", "--every", "0.2"],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**inherited, "TERM": "xterm", "DESK_STATE_DIR": str(shell.folder), **environment},
        )
        self.seen = ""

    def press(self, key: str) -> None:
        os.write(self.master, key.encode())

    def wait_for(self, condition: Callable[[str], bool], what: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition(self.seen):
            assert time.monotonic() < deadline, f"{what} has not come: {self.seen[-2000:]}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65_536).decode("utf-8", "replace")

    def end(self) -> int:
        try:
            self.wait_for(lambda _: self.process.poll() is not None, "the end")
            return int(self.process.returncode)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.slave)
            os.close(self.master)


@pytest.mark.slow
@pytest.mark.parametrize(("key", "state"), [("h", "HALTED"), ("C", "CANCEL_ALL"), ("r", "REDUCING")])
def test_one_key_press_in_a_terminal_halts_everything(shell: Shell, key: str, state: str) -> None:
    terminal = Terminal(shell)
    try:
        terminal.wait_for(lambda text: "account main" in text, "the view")
        terminal.press("x")
        terminal.press(key)
        terminal.wait_for(lambda text: f"everything is {state}" in text, "the answer")
        assert shell.state() == state
        terminal.press("q")
        terminal.wait_for(lambda _: terminal.process.poll() is not None, "the end")
        assert termios.tcgetattr(terminal.slave) == terminal.before
    finally:
        assert terminal.end() == 0


@pytest.mark.slow
def test_who_may_not_halt_learns_it_from_the_watch(shell: Shell) -> None:
    terminal = Terminal(shell, **{API_KEY_VARIABLE: shell.person("rita", "read")})
    try:
        terminal.wait_for(lambda text: "account main" in text, "the view")
        terminal.press("h")
        terminal.wait_for(lambda text: "NOT HALTED" in text, "the refusal")
        assert shell.state() == "ACTIVE"
        terminal.press("q")
    finally:
        assert terminal.end() == 0


# -- the demonstration -------------------------------------------------------------------------------------------------


def test_the_demonstration_halts_and_resumes_with_two_people_and_undoes_a_killed_one(shell: Shell) -> None:
    mark = shell.folder / "mark"
    for _ in range(2):
        _halt(mark)
        assert (shell.state(), mark.exists()) == ("HALTED", True)
        assert _resume(mark) == "SAME_PERSON"
        assert (shell.state(), mark.exists()) == ("ACTIVE", False)
