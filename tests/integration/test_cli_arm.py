"""``desk arm``: who may let real orders pass, for how long, and that anybody who may halt can stop them."""

from __future__ import annotations

import json
import time

import pytest

from tests.integration.test_cli_risk import Shell, shell

__all__ = ["shell"]

LIVE = ("arm", "live", "--reason", "the first live day")


@pytest.fixture
def live(shell: Shell) -> Shell:
    """A desk whose orders would go to Coinbase; nothing here sends one."""
    running = json.loads((shell.folder / "desk.json").read_text())
    running["settings"] |= {"profile": "live", "venue": {"kind": "coinbase"}}
    (shell.folder / "desk.json").write_text(json.dumps(running))
    return shell


def test_a_live_desk_is_armed_shown_and_disarmed(live: Shell) -> None:
    assert live.json("arm", "show")["armed"] is False
    armed = live.json(*LIVE, "--minutes", "30", key=live.person("ada"))
    assert (armed["armed"], armed["needed"], armed["person"], armed["environment"]) == (True, True, "ada", "live")
    assert abs(armed["until_ns"] / 1e9 - time.time() - 1_800) < 60
    assert live.json("arm", "show") == armed
    code, text = live.run("arm", "show")
    assert (code, "ARMED" in text, "ada" in text) == (0, True, True)
    assert live.json("arm", "off", "--reason", "enough")["armed"] is False
    code, text = live.run("arm", "show")
    assert (code, "NOT armed" in text) == (0, True)


def test_a_paper_desk_has_nothing_to_arm(shell: Shell) -> None:
    assert shell.error(*LIVE)["code"] == "NOT_LIVE"
    assert shell.json("arm", "show") == {
        **dict.fromkeys(("person", "by", "reason", "until_ns")),
        "environment": "paper",
        "needed": False,
        "armed": False,
    }


@pytest.mark.parametrize(
    ("scopes", "accounts", "allowed"), [("read,trade", "*", False), ("resume", "main", False), ("resume", "*", True)]
)
def test_arming_takes_the_right_to_resume_everywhere(live: Shell, scopes: str, accounts: str, allowed: bool) -> None:
    key = live.person("eve", scopes, "--accounts", accounts)
    code, text = live.run(*LIVE, "--json", key=key)
    assert (code == 0) is allowed, text
    if not allowed:
        assert json.loads(text)["error"]["code"] == "NOT_AUTHORISED"
    assert live.json("arm", "show")["armed"] is allowed


def test_who_may_only_read_does_not_disarm(live: Shell) -> None:
    live.json(*LIVE)
    assert live.error("arm", "off", key=live.person("eve", "read"))["code"] == "NOT_AUTHORISED"
    assert live.json("arm", "show")["armed"] is True
    assert live.json("arm", "off", key=live.person("tom", "trade"))["armed"] is False


@pytest.mark.parametrize("minutes", ["0", "1441", "-5", "NaN"])
def test_never_for_more_than_a_day(live: Shell, minutes: str) -> None:
    assert live.run(*LIVE, "--minutes", minutes)[0] == 2
    assert live.json("arm", "show")["armed"] is False
