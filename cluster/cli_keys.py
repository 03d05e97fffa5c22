"""``desk keys``: who may do what. A key is shown once, when it is made; the ledger keeps only its hash."""

from __future__ import annotations

import datetime as dt
import getpass
import os
import time
from pathlib import Path
from typing import Any

import typer

from cluster.api_keys import ALL_ACCOUNTS, ALL_STRATEGIES, SCOPES, create_key, revoke_key
from cluster.cli_access import running_settings, with_ledger
from cluster.console import CommandError, JsonOption, command, console, print_json, print_table
from cluster.ledger import Ledger
from cluster.local import write_private
from conf.settings import load_secrets
from strategies.model import NS_PER_S

keys = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke.")

_DAY_S = 86_400


@keys.command("create")
@command
def keys_create(
    person: str = typer.Option(..., "--person", help="Who holds it: two keys of one person are one person."),
    scopes: str = typer.Option(..., "--scopes", help=f"What it may do, with commas: {', '.join(SCOPES)}."),
    name: str | None = typer.Option(None, "--name", help="What the key is called; without it, as its person."),
    accounts: str = typer.Option(ALL_ACCOUNTS, "--accounts", help="Accounts with commas; * is all of them."),
    strategies: str = typer.Option(ALL_STRATEGIES, "--strategies", help="Strategies with commas; * is all of them."),
    expires_days: float | None = typer.Option(None, "--expires-days", min=0.0001, max=3650, help="When it ends."),
    out: Path | None = typer.Option(None, "--out", help="Write the key into this file, for its owner only."),
    as_json: bool = JsonOption,
) -> None:
    """Make a key. It is shown now and never again."""
    settings = running_settings()
    pepper = load_secrets(settings).api_key_pepper
    if pepper is None:
        raise CommandError("secrets: api_key_pepper is missing, so no key can be made", field="api_key_pepper")
    if out is not None and out.exists():
        raise CommandError(f"out: {out} is there already", field="out", value=str(out), rule="a new file")
    expires_ns = None if expires_days is None else time.time_ns() + round(expires_days * _DAY_S) * NS_PER_S

    async def work(ledger: Ledger) -> str:
        made = await create_key(
            ledger,
            pepper,
            name or person,
            _names("scopes", scopes),
            _names("accounts", accounts),
            person=person,
            strategies=_names("strategies", strategies),
            expires_ns=expires_ns,
            by=_system_user(),
        )
        return made.get_secret_value()

    key = with_ledger(work)
    if out is not None:
        write_private(out, key + "\n")
    shown = None if out is not None else key
    if as_json:
        print_json({"key_id": key.split("_")[1], "key": shown, "file": out, "expires_ns": expires_ns})
    else:
        console.print(shown or f"key {key.split('_')[1]} written to {out}", highlight=False, soft_wrap=True)


@keys.command("list")
@command
def keys_list(as_json: bool = JsonOption) -> None:
    """Every key: who holds it, what it may do, whether it still works."""

    async def work(ledger: Ledger) -> dict[str, dict[str, Any]]:
        return await ledger.api_keys()

    rows = [_view(key_id, record) for key_id, record in sorted(with_ledger(work).items())]
    if as_json:
        print_json(rows)
        return
    names = ("key_id", "status", "person", "name", "scopes", "accounts", "strategies", "expires")
    cells = [[", ".join(row[name]) if isinstance(row[name], list) else row[name] for name in names] for row in rows]
    columns = ["id", "status", "person", "name", "may", "accounts", "strategies", "expires (UTC)"]
    print_table("API keys", columns, cells)


@keys.command("revoke")
@command
def keys_revoke(
    key_id: str = typer.Argument(..., help="The key's id: the part behind tt_."), as_json: bool = JsonOption
) -> None:
    """End a key. It stops everywhere within two seconds."""
    revoked = with_ledger(lambda ledger: revoke_key(ledger, key_id, _system_user()))
    if as_json:
        print_json({"key_id": key_id, "revoked": True, "changed": revoked})
    else:
        console.print(f"{key_id} is revoked" if revoked else f"{key_id} was revoked already", highlight=False)


def _system_user() -> str:
    """Who runs this command as the machine knows it: whoever may read the desk's secrets may make keys."""
    try:
        return f"system user {getpass.getuser()}"
    except (KeyError, OSError):
        return f"system user {os.getuid()}"


def _names(field: str, text: str) -> list[str]:
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        rule = "expected names with commas between them"
        raise CommandError(f"{field}: {rule}, was {text!r}", field=field, value=text, rule=rule)
    return found


def _view(key_id: str, record: dict[str, Any]) -> dict[str, Any]:
    """A record without its hash."""
    expires_ns = record.get("expires_ns")
    over = isinstance(expires_ns, int) and expires_ns <= time.time_ns()
    ends = dt.datetime.fromtimestamp(expires_ns / NS_PER_S, dt.UTC) if isinstance(expires_ns, int) else None
    return {
        "key_id": key_id,
        "status": "revoked" if record.get("revoked") else "expired" if over else "active",
        "person": record.get("person") or record.get("name"),
        "name": record.get("name"),
        "scopes": record.get("scopes", []),
        "accounts": record.get("accounts", []),
        "strategies": record.get("strategies", [ALL_STRATEGIES]),
        "created_ns": record.get("created_ns"),
        "expires_ns": expires_ns,
        "expires": ends.strftime("%Y-%m-%d %H:%M") if ends else "never",
    }
