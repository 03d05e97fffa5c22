"""``desk arm``: let real orders pass for a while, see whether they may, and stop them again.

It goes straight to the ledger, so it works while every application is down. Who acts is who holds the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cluster import arming
from cluster.api_keys import HALT, RESUME, ApiKey
from cluster.cli_access import KeyFileOption, ReasonOption, as_holder, refused, running_settings, with_ledger
from cluster.cli_approvals import when
from cluster.console import CommandError, JsonOption, command, console, print_json
from cluster.ledger import Arming, Ledger
from conf.settings import Settings

arm = typer.Typer(no_args_is_help=True, help="Live trading: armed by a person, for a day at most.")


@arm.command("live")
@command
def arm_live(
    reason: str = ReasonOption,
    minutes: int = typer.Option(60, "--minutes", min=1, max=1440, help="For how long from now; a day at most."),
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Let REAL orders pass until then. It takes the right to resume on every account; the audit names you."""
    settings = running_settings()

    async def work(ledger: Ledger, key: ApiKey) -> Arming:
        if not arming.may_arm(key):
            raise refused(key, RESUME, "every account")
        try:
            return await arming.arm(ledger, settings, key, reason, minutes * 60)
        except arming.NotLive as error:
            raise CommandError(str(error), code=error.code, field="environment") from None

    _print(settings, as_holder(key_file, work), as_json)


@arm.command("show")
@command
def arm_show(as_json: bool = JsonOption) -> None:
    """Whether real orders may pass, who has said so and until when."""
    settings = running_settings()
    _print(settings, with_ledger(lambda ledger: ledger.armed()), as_json)


@arm.command("off")
@command
def arm_off(
    reason: str = typer.Option("disarmed by hand", "--reason", "-r", help="Why; it is written into the audit."),
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Let no more real orders pass, at once. What rests at the venue stays there (desk risk halt --cancel-all)."""
    settings = running_settings()

    async def work(ledger: Ledger, key: ApiKey) -> None:
        if not arming.may_disarm(key, await ledger.accounts()):
            raise refused(key, HALT, "the desk as a whole")
        await ledger.disarm(key.key_id, reason)

    as_holder(key_file, work)
    _print(settings, None, as_json)


def _print(settings: Settings, armed: Arming | None, as_json: bool) -> None:
    environment = settings.venue.environment
    if as_json:
        print_json(_view(environment, armed))
    elif environment != arming.LIVE:
        console.print(f"this desk is {environment}: its orders are not real, and nothing has to be armed")
    elif armed is None:
        console.print("live, NOT armed: every order is denied (NOT_ARMED)")
    else:
        until = when(armed.until_ms * 1000)
        console.print(f"[bold red]ARMED[/] until {until} UTC by {armed.person}: {armed.reason}", highlight=False)


def _view(environment: str, armed: Arming | None) -> dict[str, Any]:
    return {
        "environment": environment,
        "needed": environment == arming.LIVE,
        "armed": armed is not None,
        "person": armed.person if armed else None,
        "by": armed.by if armed else None,
        "reason": armed.reason if armed else None,
        "until_ns": armed.until_ms * 1_000_000 if armed else None,
    }
