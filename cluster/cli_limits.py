"""``desk limits``: what is limited, changing it while the desk runs, and how it came to be what it is.

What is stricter holds at once; what is looser waits for a second person. Straight at the ledger, nothing is restarted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import typer

from cluster.api_keys import LIMITS, ApiKey
from cluster.approvals import DESK, limits_of, may_change
from cluster.cli_access import (
    AccountOption,
    AllAccountsOption,
    KeyFileOption,
    ReasonOption,
    as_holder,
    chosen,
    refused,
    with_ledger,
)
from cluster.cli_approvals import (
    DigestOption,
    ProposalArgument,
    decide,
    place,
    print_changes,
    print_proposals,
    print_waiting,
    proposal_view,
    when,
)
from cluster.console import CommandError, JsonOption, command, console, print_json, print_table
from cluster.ledger import Ledger
from cluster.limit_changes import Outcome, Wish, base_of, change_limits, history
from cluster.limit_records import CALENDAR, VERSION, ShownLimit, kind_of, scope_records, shown

limits = typer.Typer(no_args_is_help=True, help="Risk limits: show, change, approve, history.")

_LISTS: Final = frozenset({"hours", "versions"})


@limits.command("show")
@command
def limits_show(
    account: str | None = AllAccountsOption,
    scope: str | None = typer.Option(None, "--scope", "-s", help="Only this scope: global, product|BTC-USD, key …"),
    as_json: bool = JsonOption,
) -> None:
    """Every limit in force with its unit, the desk's own first."""

    async def work(ledger: Ledger) -> dict[str | None, tuple[str, str, list[ShownLimit]]]:
        products = await ledger.products()
        found = {}
        for one in [*([None] if account is None else []), *await chosen(ledger, account)]:
            records = limits_of(await ledger.snapshot(one), one)
            rows = []
            for name, text in scope_records(records).items():
                if name != CALENDAR and _covered(name, scope):
                    rows += shown(name, text, products.get(name.partition("|")[2]))
            found[one] = (records.get(VERSION, "0"), records.get(CALENDAR, ""), rows)
        return found

    found = with_ledger(work)
    if scope is not None and not any(rows for _, _, rows in found.values()):
        raise CommandError(f"scope: nothing is limited at {scope!r}", field="scope", value=scope)
    if as_json:
        print_json(
            {
                one or DESK: {VERSION: int(version), CALENDAR: calendar, "limits": rows}
                for one, (version, calendar, rows) in found.items()
            }
        )
        return
    for one, (version, calendar, rows) in found.items():
        cells = [[row.scope, row.name, row.hard, row.soft, row.unit] for row in rows]
        title = f"limits of {place(one)}, version {version}" + (f", days in {calendar.split()[0]}" if calendar else "")
        print_table(title, ["scope", "limit", "denies above>", "warns above>", "unit"], cells)


@limits.command("set")
@command
def limits_set(
    wishes: list[str] = typer.Argument(
        ..., metavar="SCOPE.NAME=VALUE[:SOFT]…", help="For example account.max_daily_loss=5000:3000"
    ),
    reason: str = ReasonOption,
    account: str = AccountOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Change limits. Stricter holds at once; looser waits for another person (desk limits approve)."""
    wanted: dict[str | None, list[Wish]] = {}
    for text in wishes:
        wish = read_wish(text)
        wanted.setdefault(base_of(wish.scope, account), []).append(wish)

    async def work(ledger: Ledger, key: ApiKey) -> list[Outcome]:
        for base, items in wanted.items():
            await _check_base(ledger, base)
            for wish in items:
                if not may_change(key, LIMITS, base, wish.scope):
                    raise refused(key, LIMITS, f"{place(base)}, {wish.scope}")
        return [
            await change_limits(ledger, base, items, key.key_id, key.person, reason) for base, items in wanted.items()
        ]

    outcomes = as_holder(key_file, work)
    if as_json:
        print_json([outcome_view(outcome) for outcome in outcomes])
        return
    for outcome in outcomes:
        _print_outcome(outcome)


@limits.command("proposals")
@command
def limits_proposals(
    account: str | None = AllAccountsOption,
    everything: bool = typer.Option(False, "--all", help="Also what was decided or has expired."),
    as_json: bool = JsonOption,
) -> None:
    """Looser limits that wait for a second person."""
    print_proposals(account, "LIMITS", everything, as_json)


@limits.command("approve")
@command
def limits_approve(
    proposal_id: str = ProposalArgument,
    digest: str | None = DigestOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Approve looser limits that another person has proposed; they hold at once."""
    decide(proposal_id, key_file, as_json, digest=digest)


@limits.command("refuse")
@command
def limits_refuse(
    proposal_id: str = ProposalArgument,
    reason: str = ReasonOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """End a proposal without its effect; your own too."""
    decide(proposal_id, key_file, as_json, refusal=reason)


@limits.command("history")
@command
def limits_history(
    account: str | None = typer.Option(None, "--account", "-a", help="The account; without it, the desk's own limits."),
    limit: int = typer.Option(50, "--limit", min=1, max=1000, help="At most so many steps, newest first."),
    as_json: bool = JsonOption,
) -> None:
    """Who changed which limit, when and why, from the audit; newest first."""

    async def work(ledger: Ledger) -> tuple[list[Any], bool]:
        await _check_base(ledger, account)
        return await history(ledger, account, limit)

    entries, complete = with_ledger(work)
    if as_json:
        print_json({"account": account, "entries": entries, "complete": complete})
        return
    for entry in entries:
        about = " ".join(part for part in (entry.proposal_id and f"proposal {entry.proposal_id}", entry.reason) if part)
        version = f" version {entry.version}" if entry.version is not None else ""
        console.print(f"{when(entry.ts_us)} UTC {entry.kind}{version} by {entry.by} {about}".rstrip(), highlight=False)
        if entry.changes:
            print_changes("", entry.changes)
    if not complete:
        console.print("there is more, further back")


def read_wish(text: str) -> Wish:
    """``account.max_daily_loss=5000:3000`` as a wish; raises ``CommandError`` for what is none."""
    place_text, separator, value = text.partition("=")
    scope, dot, name = place_text.rpartition(".")
    if not (separator and dot and scope and name and value):
        rule = "expected SCOPE.NAME=VALUE or SCOPE.NAME=VALUE:SOFT"
        raise CommandError(f"limit: {rule}, was {text!r}", field="limit", value=text, rule=rule)
    scope = scope.replace(":", "|", 1)
    kind_of(scope)
    return Wish(scope, name, _value(name, value))


def _value(name: str, text: str) -> Any:
    if name in _LISTS:
        parts = [part.strip() for part in text.split(",")]
        return parts[0] if parts in (["always"], ["any"]) else parts
    hard, separator, soft = text.partition(":")
    return {"hard": hard, "soft": soft} if separator else hard


def outcome_view(outcome: Outcome) -> dict[str, Any]:
    """What became of wishes, for --json."""
    waiting = proposal_view(outcome.proposal, outcome.waiting) if outcome.proposal else None
    return {
        "account": outcome.account,
        "version": outcome.version,
        "applied": outcome.applied,
        "proposal": waiting,
    }


def _print_outcome(outcome: Outcome) -> None:
    if outcome.applied:
        print_changes(f"{place(outcome.account)}: holds now, version {outcome.version}", outcome.applied)
    if outcome.proposal is not None:
        print_changes(f"{place(outcome.account)}: looser, so it waits", outcome.waiting)
        print_waiting(outcome.proposal)
    if not outcome.applied and outcome.proposal is None:
        console.print(f"{place(outcome.account)}: nothing differs, version {outcome.version}")


def _covered(name: str, scope: str | None) -> bool:
    wanted = None if scope is None else scope.replace(":", "|", 1)
    return wanted is None or name == wanted or name.partition("|")[0] == wanted


async def _check_base(ledger: Ledger, account: str | None) -> None:
    if account is not None:
        await chosen(ledger, account)
