"""``desk reconcile``: the books against the venue, line by line, and how two people book a difference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from cluster.api_keys import LIMITS, ApiKey
from cluster.approvals import may_change
from cluster.cli_access import AccountOption, KeyFileOption, as_holder, chosen, refused, running_settings
from cluster.cli_approvals import print_waiting, proposal_view
from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from cluster.ledger import Ledger, Proposal
from cluster.reconcile import Comparison, NothingToBook, adjustment, compare
from cluster.venue import Venue, VenueError
from cluster.venue_endpoint import configured_endpoint
from conf.settings import load_secrets

ADJUST_MINUTES = 10


@command
def reconcile(
    account: str = AccountOption,
    adjust: bool = typer.Option(
        False, "--adjust", help="Ask another person to book the cash and coins that came or went without an order."
    ),
    reason: str = typer.Option("", "--reason", "-r", help="Why they did; with --adjust. It goes into the audit."),
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Hold the books against the venue, now. Exit code 1 where something differs that nothing explains."""
    if adjust and not reason.strip():
        raise CommandError("--reason: say why the books are to be adjusted", field="reason")

    async def work(ledger: Ledger, key: ApiKey) -> tuple[Comparison, Proposal | None]:
        await chosen(ledger, account)
        settings = running_settings()
        venue = Venue(configured_endpoint(settings, load_secrets(settings)))
        try:
            found = await compare(ledger, venue, account, asyncio.to_thread)
        except VenueError as error:
            raise CommandError(f"the venue does not answer: {error}", code="VENUE_UNAVAILABLE") from None
        finally:
            venue.close()
        return found, await _proposed(ledger, key, account, found, reason) if adjust else None

    found, proposal = as_holder(key_file, work)
    if as_json:
        print_json(found.view() | ({"proposal": proposal_view(proposal)} if proposal else {}))
    else:
        rows = [[line.kind, line.name, line.ledger, line.venue, line.verdict, line.why] for line in found.lines]
        print_table(f"{account} against the venue", ["what", "name", "ledger>", "venue>", "verdict", "why"], rows)
        console.print(f"{len(found.breaks)} differences, {len(found.explained)} explained, {len(found.lines)} lines")
        if proposal is not None:
            print_waiting(proposal)
    if found.breaks:
        raise typer.Exit(FAILED)


async def _proposed(ledger: Ledger, key: ApiKey, account: str, found: Comparison, reason: str) -> Proposal:
    if not may_change(key, LIMITS, account, "account"):
        raise refused(key, LIMITS, account)
    try:
        cash, positions = adjustment(found, await ledger.snapshot(account), await ledger.products())
    except NothingToBook as error:
        raise CommandError(str(error), code="NOTHING_TO_BOOK") from None
    ttl_s = ADJUST_MINUTES * 60
    return await ledger.propose_adjust(account, cash, positions, key.key_id, key.person, reason, ttl_s)
