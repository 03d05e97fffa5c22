"""How commands reach the running desk: over HTTP like anybody, or straight at the ledger as the holder of a key.

Halting, resuming and limits go straight to the ledger, so they work while every application is down.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import SecretStr

from cluster.api_keys import ApiKey, KeyRing
from cluster.console import CommandError
from cluster.ledger import Ledger
from cluster.local import local_api_key
from conf.settings import API_KEY_VARIABLE, Settings, environment_api_key, load_secrets, load_settings

T = TypeVar("T")

AccountOption = typer.Option("main", "--account", "-a", help="The account.")
AllAccountsOption = typer.Option(None, "--account", "-a", help="Only this account; without it, all of them.")
ReasonOption = typer.Option(..., "--reason", "-r", help="Why; it is written into the audit.")
KeyFileOption = typer.Option(
    None,
    "--key-file",
    help=f"A file with your API key, which says who you are. Without it: {API_KEY_VARIABLE}, else the desk's own key.",
)


def running_settings() -> Settings:
    """The settings of the desk that runs; raises ``CommandError`` where none does."""
    settings = load_settings()
    if settings.redis.embedded and not Path(settings.state_dir / "desk.json").exists():
        raise CommandError("the desk is not running: start it with `desk up`")
    return settings


def with_ledger(work: Callable[[Ledger], Awaitable[T]]) -> T:
    """Run ``work`` on the running desk's ledger."""
    settings = running_settings()

    async def connected() -> T:
        ledger = Ledger.connect(settings, load_secrets(settings))
        try:
            return await work(ledger)
        finally:
            await ledger.close()

    return asyncio.run(connected())


def as_holder(key_file: Path | None, work: Callable[[Ledger, ApiKey], Awaitable[T]]) -> T:
    """Run ``work`` on the ledger as the holder of the presented key; raises ``CommandError`` where it is no key."""

    async def identified(ledger: Ledger) -> T:
        return await work(ledger, await holder(ledger, running_settings(), key_file))

    return with_ledger(identified)


async def holder(ledger: Ledger, settings: Settings, key_file: Path | None) -> ApiKey:
    """The key that ``key_file``, else the environment, else the desk itself presents, proved against the ledger."""
    pepper = load_secrets(settings).api_key_pepper
    if pepper is None:
        raise CommandError("secrets: api_key_pepper is missing, so no API key can be checked", field="api_key_pepper")
    source, presented = presented_key(settings, key_file)
    key = await KeyRing(ledger, pepper).key(presented.get_secret_value())
    if key is None:
        message = f"{source} is no key of this desk: unknown, revoked or expired (desk keys list)"
        raise CommandError(message, code="NOT_AUTHENTICATED", field="key")
    return key


def presented_key(settings: Settings, key_file: Path | None) -> tuple[str, SecretStr]:
    """Where the key comes from, in words, and the key."""
    if key_file is not None:
        return str(key_file), SecretStr(_private_text(key_file))
    if (key := environment_api_key()) is not None:
        return API_KEY_VARIABLE, key
    return "the desk's own key", SecretStr(local_api_key(settings.state_dir))


def refused(key: ApiKey, right: str, where: str) -> CommandError:
    """The error of a key that may not do this."""
    message = f"the key {key.name!r} of {key.person} has no right to {right} on {where}"
    return CommandError(message, code="NOT_AUTHORISED", right=right, person=key.person)


async def chosen(ledger: Ledger, account: str | None) -> list[str]:
    """The named account, which must be known, or all of them."""
    known = await ledger.accounts()
    if account is not None and account not in known:
        raise CommandError(f"account: {account!r} is not known; known: {', '.join(known) or 'none'}", field="account")
    return [account] if account else known


def call(method: str, path: str, **request: Any) -> tuple[int, Any]:
    """One request to the running desk with the presented key: HTTP status and JSON body."""
    import httpx

    settings = running_settings()
    _, key = presented_key(settings, None)
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"}
    try:
        with httpx.Client(base_url=settings.api_url, headers=headers, timeout=15, trust_env=False) as client:
            reply = client.request(method, path, **request)
    except httpx.TransportError as error:
        raise CommandError(f"the desk does not answer at {settings.api_url}: {error} (desk status)") from error
    try:
        return reply.status_code, reply.json()
    except ValueError:
        raise CommandError(f"{method} {path}: {reply.status_code} without JSON: {reply.text[:200]}") from None


def _private_text(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            rule = f"mode {mode:04o} lets others read it; expected 0600 (chmod 600 {path.name})"
            raise CommandError(f"key file {path}: {rule}", field="key_file", value=str(path), rule=rule)
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise CommandError(f"key file {path}: {reason}", field="key_file", value=str(path)) from None
