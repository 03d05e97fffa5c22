"""``desk audit`` on a real ledger: proofs and exit codes, entries by kind and id, the archive, a new beginning."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from cluster.anchors import Anchors
from cluster.cli import app
from cluster.ledger import Ledger
from conf.settings import Settings, write_secrets
from tests.books import ACCOUNT, BASE, Books
from tests.servers import PASSWORD, redis_secrets
from tests.tampering import add_to_figure

pytestmark = pytest.mark.anyio

DESK: Final = "@desk"


@pytest.fixture
async def traded(books: Books, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Books:
    """An account with a few orders, and an environment in which the command finds its ledger."""
    assert settings.redis.host is not None
    write_secrets(
        settings.state_dir / "secrets.env", {"redis_password": PASSWORD, "api_key_pepper": "pepper-of-a-test"}
    )
    monkeypatch.setenv("DESK_STATE_DIR", str(settings.state_dir))
    monkeypatch.setenv("DESK_REDIS__HOST", settings.redis.host)
    monkeypatch.setenv("DESK_REDIS__PORT", str(settings.redis.port))
    await books.open(lots={"BTC-USD": 100})
    for number in range(3):
        await books.accept(f"o-{number}")
        await books.send(f"o-{number}")
        await books.fill(f"o-{number}", 10, 10_000)
    return books


@pytest.fixture
def anchors(settings: Settings) -> Anchors:
    """As the desk makes them: the pepper is the same as in secrets.env."""
    return Anchors.of(settings, redis_secrets())


async def desk(*words: str) -> Any:
    """``desk audit …`` in a thread of its own, as it runs an event loop."""
    return await asyncio.to_thread(lambda: CliRunner().invoke(app, ["audit", *words]))


async def as_json(*words: str) -> tuple[int, Any]:
    done = await desk(*words, "--json")
    return done.exit_code, json.loads(done.stdout)


async def test_a_whole_log_is_said_to_be_whole(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    code, found = await as_json("verify")
    assert code == 0
    assert set(found) == {ACCOUNT, DESK}
    assert found[ACCOUNT] | {"entries": 0, "head": ""} == {
        "ok": True, "entries": 0, "archived": 0, "head": "", "findings": [], "findings_left_out": 0, "anchors": [],
        "differences": [],
    }  # fmt: skip
    done = await desk("verify", "--account", ACCOUNT)
    assert (done.exit_code, "chain, anchors and books are whole" in done.stdout) == (0, True)


async def test_a_damaged_log_is_named_at_its_row_with_exit_code_1(traded: Books, ledger: Ledger) -> None:
    entries = await ledger.audit_entries(ACCOUNT, "", 1_000)
    await ledger._direct("XDEL", f"{BASE}:audit", entries[4][0])
    code, found = await as_json("verify", "--account", ACCOUNT)
    assert (code, found[ACCOUNT]["ok"]) == (1, False)
    (finding,) = found[ACCOUNT]["findings"]
    assert (finding["rule"], finding["seq"], finding["stream_id"]) == ("missing", 5, entries[5][0])
    done = await desk("verify")
    assert done.exit_code == 1
    assert "NOT WHOLE" in done.stdout
    assert "missing" in done.stdout


async def test_books_that_do_not_add_up_are_shown(traded: Books, ledger: Ledger) -> None:
    await add_to_figure(ledger, BASE, "cash", 1)
    code, found = await as_json("verify", "-a", ACCOUNT)
    assert code == 1
    (difference,) = found[ACCOUNT]["differences"]
    assert difference["what"] == "cash (audit replay)"
    assert difference["booked"] - difference["computed"] == 1


async def test_an_account_nobody_knows_is_refused(traded: Books) -> None:
    code, found = await as_json("verify", "--account", "nobody")
    assert code == 2
    assert "nobody" in found["error"]["message"]


async def test_entries_are_shown_by_kind_and_id(traded: Books) -> None:
    _, newest = await as_json("show", "--tail", "2")
    assert [row["kind"] for row in newest] == ["FILL", "FILLED"]
    _, fills = await as_json("show", "--kind", "fill")
    assert [(row["kind"], row["id"]) for row in fills] == [("FILL", f"o-{n}") for n in range(3)]
    _, own = await as_json("show", "--id", "o-1")
    assert [row["kind"] for row in own] == ["RESERVED", "SENT", "FILL", "FILLED"]
    _, one = await as_json("show", "--id", "o-1", "--kind", "FILL", "-n", "1")
    assert one[0]["data"]["lots"] == "10"
    _, desks = await as_json("show", "--desk")
    assert {row["kind"] for row in desks} == {"LIMITS"}
    done = await desk("show")
    assert (done.exit_code, "o-2" in done.stdout) == (0, True)


async def test_the_archive_is_made_and_read(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    assert (await desk("archive", "--keep-hours", "0")).exit_code == 0
    code, found = await as_json("verify")
    assert code == 0
    assert found[ACCOUNT]["archived"] > 10
    _, fills = await as_json("show", "--kind", "FILL")
    assert len(fills) == 3
    assert all(row["file"] for row in fills)
    assert (await desk("archive", "--keep-hours", "nan")).exit_code != 0


async def test_a_lost_ledger_is_found_and_a_new_beginning_needs_a_reason(traded: Books, anchors: Anchors) -> None:
    await anchors.write(traded.ledger, ACCOUNT)
    await traded.ledger._direct("FLUSHALL")
    await traded.ledger.install()
    await traded.open()
    code, found = await as_json("verify", "-a", ACCOUNT)
    assert code == 1
    assert "lost" in found[ACCOUNT]["anchors"][0]["found"]
    assert (await desk("reset", "-a", ACCOUNT)).exit_code == 2
    code, done = await as_json("reset", "-a", ACCOUNT, "--reason", "the test has emptied it")
    assert (code, len(done["kept"])) == (0, 1)
    code, found = await as_json("verify", "-a", ACCOUNT)
    assert code == 0
    code, again = await as_json("reset", "-a", ACCOUNT, "--reason", "once more")
    assert code == 2
    assert "nothing to reset" in again["error"]["message"]
