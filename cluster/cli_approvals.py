"""What needs a second person, on the command line: proposals listed, approved and refused."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import typer

from cluster.api_keys import ApiKey
from cluster.approvals import (
    APPLIED,
    DESK,
    PENDING,
    REFUSED,
    RIGHTS,
    changes_of,
    find,
    limits_of,
    listed,
    may_decide,
    may_refuse,
    public_id,
    why_not,
)
from cluster.cli_access import as_holder, chosen, refused, with_ledger
from cluster.console import CommandError, console, print_json, print_table
from cluster.ledger import Ledger, Proposal
from cluster.limit_records import ShownChange

ProposalArgument = typer.Argument(..., metavar="ID", help="As `desk risk approvals` lists it, for example main.17.")
DigestOption = typer.Option(None, "--digest", help="Approve only what has this digest.")


def print_proposals(account: str | None, kind: str | None, everything: bool, as_json: bool) -> None:
    """The proposals of the accounts and, where none is named, of the desk."""

    async def work(ledger: Ledger) -> list[tuple[Proposal, list[ShownChange]]]:
        bases = [*([None] if account is None else []), *await chosen(ledger, account)]
        found = [one for one in await listed(ledger, bases) if kind in {None, one.kind}]
        return [(one, await _effect(ledger, one)) for one in found if everything or one.status == PENDING]

    found = with_ledger(work)
    if as_json:
        print_json([proposal_view(proposal, changes) for proposal, changes in found])
        return
    rows = [
        [public_id(one), one.kind, one.status, one.person, one.reason, when(one.expires_ms * 1000), _told(changes)]
        for one, changes in found
    ]
    columns = ["id", "kind", "status", "proposed by", "reason", "until (UTC)", "would change"]
    print_table("for a second person to decide", columns, rows)


def decide(
    proposal_id: str, key_file: Path | None, as_json: bool, digest: str | None = None, refusal: str | None = None
) -> None:
    """Approve a proposal as it is shown, or refuse it with a reason."""

    async def work(ledger: Ledger, key: ApiKey) -> tuple[Proposal, list[ShownChange]]:
        proposal = await find(ledger, proposal_id)
        if proposal is None:
            raise CommandError(f"ID: there is no proposal {proposal_id!r}", code="NOT_FOUND", field="id")
        if not (may_decide if refusal is None else may_refuse)(key, proposal):
            raise refused(key, RIGHTS.get(proposal.kind, proposal.kind), place(proposal.account))
        changes = await _effect(ledger, proposal)
        base, number = proposal.account, proposal.id
        if refusal is not None:
            done = await ledger.refuse(base, number, key.key_id, key.person, refusal)
        else:
            done = await ledger.approve(base, number, digest or proposal.digest, key.key_id, key.person)
        if done.outcome not in {APPLIED, REFUSED}:
            raise CommandError(f"{proposal_id}: {why_not(done)}", code=done.outcome, field="id", value=proposal_id)
        return proposal, changes

    proposal, changes = as_holder(key_file, work)
    outcome = APPLIED if refusal is None else REFUSED
    if as_json:
        print_json({"outcome": outcome, **proposal_view(proposal, changes), "status": outcome})
        return
    console.print(f"{proposal_id} {outcome} (proposed by {proposal.person}: {proposal.reason})", highlight=False)
    if refusal is None:
        print_changes("", changes)


def print_waiting(proposal: Proposal) -> None:
    """What a person reads who has proposed something."""
    print_until(public_id(proposal), proposal.expires_ms * 1000, "limits" if proposal.kind == "LIMITS" else "risk")


def print_until(identity: str, expires_us: int, group: str) -> None:
    """How another person approves a proposal, and until when."""
    until = when(expires_us)
    console.print(f"{identity} waits for another person until {until} UTC: desk {group} approve {identity}")


def print_changes(title: str, changes: list[ShownChange]) -> None:
    """What was, or would be, changed."""
    rows = [[row.scope, row.name, row.before, row.after, row.unit] for row in changes]
    print_table(title, ["scope", "limit", "before>", "after>", "unit"], rows)


def proposal_view(proposal: Proposal, changes: list[ShownChange] | None = None) -> dict[str, Any]:
    """A proposal for --json."""
    view = {
        "id": public_id(proposal),
        "kind": proposal.kind,
        "account": proposal.account,
        "status": proposal.status,
        "person": proposal.person,
        "by": proposal.by,
        "reason": proposal.reason,
        "digest": proposal.digest,
        "created_ms": proposal.created_ms,
        "expires_ms": proposal.expires_ms,
        "approver": proposal.approver or None,
        "payload": proposal.payload,
    }
    return view | ({"changes": changes} if changes is not None else {})


async def _effect(ledger: Ledger, proposal: Proposal) -> list[ShownChange]:
    limits = limits_of(await ledger.snapshot(proposal.account), proposal.account)
    return changes_of(proposal, limits, await ledger.products())


def _told(changes: list[ShownChange]) -> str:
    told = [f"{row.scope}.{row.name}: {row.before or '-'} -> {row.after or '-'}" for row in changes[:6]]
    more = [f"and {len(changes) - 6} more"] if len(changes) > 6 else []
    return "\n".join(told + more)


def place(account: str | None) -> str:
    """How an account, or the desk (None), is called."""
    return DESK if account is None else f"account {account}"


def when(us: int) -> str:
    """A time in microseconds since 1970 as people read it, UTC."""
    return dt.datetime.fromtimestamp(us / 1e6, dt.UTC).strftime("%Y-%m-%d %H:%M:%S")
