"""``desk orders override``: asked for over HTTP, approved at the ledger by another person, submitted under its id."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from cluster.api_keys import KeyRing
from cluster.ledger import Ledger, Reference
from serve_apps.api import build_api
from serve_apps.orders import PREFIX, OrdersApp
from tests.api_desk import BTC
from tests.integration.test_cli_risk import Shell, shell
from tests.servers import redis_secrets

__all__ = ["shell"]

ORDER = ("--product", "btc-usd", "--side", "buy", "--quantity", "0.6", "--limit-price", "100000")
WHY = ("--reason", "the client agreed")


class Applications:
    """The API and one risk replica on one port, as Serve shares the paths out, on a loop of their own."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def start(self) -> None:
        self._thread.start()
        while self._server is None or not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        secrets = redis_secrets()
        assert secrets.api_key_pepper is not None
        ledger = Ledger.connect(self._shell.settings, secrets)
        api = build_api(self._shell.settings, secrets, ledger)
        orders: Any = OrdersApp(ledger, KeyRing(ledger, secrets.api_key_pepper))

        async def both(scope: Any, receive: Any, send: Any) -> None:
            await (orders if scope["path"].startswith(PREFIX) else api)(scope, receive, send)

        config = uvicorn.Config(both, lifespan="off", ws="none", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        await self._server.serve(sockets=[self.socket])
        await ledger.close()


@pytest.fixture
def desk(shell: Shell) -> Iterator[Shell]:
    """The command line of a desk with an open account, its two applications running: at most 50,000 USD an order."""

    async def open_account(ledger: Ledger) -> None:
        epoch = await ledger.claim("main", "test")
        await ledger.set_references("main", [Reference(BTC, BTC.price(9_999_950), BTC.price(10_000_050))])
        await ledger.open_account("main", 100_000 * 1_000_000, {}, "test")
        await ledger.admit("main", epoch)

    shell.ledger(open_account)
    applications = Applications(shell)
    redis = shell.settings.redis.model_dump(mode="json")
    settings = {"redis": redis, "serve": {"http_port": applications.port}}
    (shell.folder / "desk.json").write_text(json.dumps({"settings": settings}))
    applications.start()
    yield shell
    applications.stop()


def test_from_the_question_to_the_order(desk: Shell) -> None:
    ada, bob = desk.person("ada"), desk.person("bob")
    asked = desk.json("orders", "override", *ORDER, *WHY, "--id", "big-1", key=ada)
    assert (asked["kind"], asked["status"], asked["person"], asked["reason"]) == (
        "OVERRIDE",
        "PENDING",
        "ada",
        "the client agreed",
    )
    assert asked["order"]["client_order_id"] == "big-1"
    code, text = desk.run("risk", "approvals")
    assert (code, asked["id"] in text, "OVERRIDE" in text) == (0, True, True)
    assert desk.error("risk", "approve", asked["id"], key=ada)["code"] == "SAME_PERSON"
    approved = desk.json("risk", "approve", asked["id"], key=bob)
    assert approved["outcome"] == "APPLIED"
    assert {"NOTIONAL_EXCEEDS_MAX", "accepted"} <= {row["name"] for row in approved["changes"]}
    sent = desk.json("orders", "submit", *ORDER, "--id", "big-1", key=ada)
    assert sent["verdict"] == "ACCEPTED"
    assert "OVERRIDDEN" in {warning.get("level") for warning in sent["warnings"]}
    assert [one["status"] for one in desk.json("risk", "approvals", "--all")] == ["USED"]
    assert desk.run("orders", "submit", *ORDER, "--id", "big-2", key=ada)[0] == 1
    assert desk.json("risk", "verify") == {
        name: {"ok": True, "differences": []} for name in desk.json("risk", "status") if name != "DESK"
    }


def test_a_person_reads_what_to_do_next(desk: Shell) -> None:
    code, text = desk.run("orders", "override", *ORDER, *WHY, "--id", "big-1")
    assert code == 0, text
    words = " ".join(text.split())
    (proposal,) = desk.json("risk", "approvals")
    assert f"desk risk approve {proposal['id']}" in words
    assert "desk orders submit --id big-1" in words
    assert "NOTIONAL_EXCEEDS_MAX" in words
    bob = desk.person("bob")
    assert desk.run("risk", "approve", proposal["id"], key=bob)[0] == 0
    code, text = desk.run("orders", "submit", *ORDER, "--id", "big-1")
    assert (code, "over a limit, as two people agreed" in text) == (0, True), text


def test_an_id_is_made_where_none_is_given(desk: Shell) -> None:
    first, second = (desk.json("orders", "override", *ORDER, *WHY)["order"]["client_order_id"] for _ in range(2))
    assert first != second
    assert first.startswith("cli-")


def test_every_option_of_an_order_is_taken_along(desk: Shell) -> None:
    words = ["--time-in-force", "gtc", "--post-only", "--strategy", "manual", "--account", "main"]
    asked = desk.json("orders", "override", *ORDER, *words, *WHY, "--minutes", "1")
    assert (asked["order"]["time_in_force"], asked["order"]["post_only"]) == ("GTC", True)
    assert asked["expires_ns"] - asked["created_ns"] == 60_000_000_000


def test_who_asked_takes_it_back_and_another_trader_does_not(desk: Shell) -> None:
    ada, eve = desk.person("ada", "trade"), desk.person("eve", "trade")
    asked = desk.json("orders", "override", *ORDER, *WHY, key=ada)
    why = ("--reason", "no longer")
    assert desk.error("risk", "refuse", asked["id"], *why, key=eve)["code"] == "NOT_AUTHORISED"
    assert desk.error("risk", "approve", asked["id"], key=eve)["code"] == "NOT_AUTHORISED"
    assert desk.json("risk", "refuse", asked["id"], *why, key=ada)["status"] == "REFUSED"


def test_without_a_reason_nothing_is_asked(desk: Shell) -> None:
    assert desk.run("orders", "override", *ORDER)[0] == 2
    assert desk.json("risk", "approvals", "--all") == []


def test_what_cannot_be_asked_for_is_said_with_its_code(desk: Shell) -> None:
    reader = desk.person("rita", "read")
    words = ["orders", "override", *ORDER, *WHY, "--id", "big-1"]
    code, text = desk.run(*words, key=reader)
    assert (code, "NOT_AUTHORISED" in text) == (1, True)
    code, text = desk.run(*words, "--side", "HOLD", "--json")
    assert (code, json.loads(text)["code"]) == (1, "INVALID_ORDER")
    assert desk.run("orders", "submit", *ORDER, "--id", "big-1")[0] == 1
    code, text = desk.run(*words)
    assert (code, "ORDER_KNOWN" in text) == (1, True)
