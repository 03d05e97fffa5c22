"""``desk risk``: trading states and the kill switch, what waits for a second person, alerts and the proof of the books.

All of it goes straight to the ledger, so it works while every application is down. Who acts is who holds the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import typer

from cluster.api_keys import HALT, RESUME, ApiKey
from cluster.approvals import DESK, GLOBAL, may_change, may_halt
from cluster.cli_access import AllAccountsOption, KeyFileOption, ReasonOption, as_holder, chosen, refused, with_ledger
from cluster.cli_approvals import (
    DigestOption,
    ProposalArgument,
    decide,
    place,
    print_proposals,
    print_waiting,
    proposal_view,
    when,
)
from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from cluster.exposure_figures import HARD, SOFT, AccountFigures, ScopeFigures
from cluster.exposures import desk_figures, figures, references_of
from cluster.ledger import Difference, Ledger, Proposal, Snapshot
from conf.settings import load_settings
from strategies.model import TradingState, units

risk = typer.Typer(no_args_is_help=True, help="Trading states, approvals, alerts and the books.")

NAMED: Final = ("strategy", "product")
CAUSE: Final = "cause|"


class HaltState(StrEnum):
    """How hard to halt."""

    REDUCING = "REDUCING"
    HALTED = "HALTED"
    CANCEL_ALL = "CANCEL_ALL"


ScopeOption = typer.Option(GLOBAL, "--scope", "-s", help="global, account, strategy|NAME or product|ID.")
NameOption = typer.Option(None, "--name", "-n", help="The strategy or product, where the scope does not name it.")


@dataclass(frozen=True, slots=True)
class Changed:
    """A trading state written for one account (None: the desk as a whole)."""

    account: str | None
    scope: str
    state: TradingState
    audit_seq: int
    cancels_asked: int


@risk.command("status")
@command
def risk_status(account: str | None = AllAccountsOption, as_json: bool = JsonOption) -> None:
    """Trading states, figures and the limits that are nearly used up."""
    desk, accounts = with_ledger(lambda ledger: snapshots(ledger, account))
    if as_json:
        states = _states(desk.desk_state)
        views = {name: _risk_view(one, states) for name, one in accounts.items()}
        print_json({DESK: {"states": states, "book": desk.desk_book, "limits": desk.desk_limits}, **views})
        return
    source = load_settings().data_source
    print_table(f"desk ({source})", ["scope", "trading state", "cause"], _state_rows(desk.desk_state))
    for name, snapshot in accounts.items():
        _print_account(name, snapshot, source)


@risk.command("halt")
@command
def risk_halt(
    scope: str = ScopeOption,
    name: str | None = NameOption,
    cancel_all: bool = typer.Option(False, "--cancel-all", help="Also cancel every open order there."),
    reducing: bool = typer.Option(False, "--reducing", help="Let orders pass that shrink a position."),
    state: HaltState | None = typer.Option(None, "--state", help="The same in one word.", show_default="HALTED"),
    reason: str = typer.Option("halted by hand", "--reason", "-r", help="Why; it is written into the audit."),
    account: str | None = AllAccountsOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Stop new orders at once: everywhere, or at a scope. Never loosens a stricter state."""
    wanted = _halt_state(cancel_all, reducing, state)
    field = scope_field(scope, name)
    changed = as_holder(key_file, lambda ledger, key: halt(ledger, key, field, wanted, reason, account))
    if as_json:
        print_json(changed)
        return
    for row in changed:
        asked = f", {row.cancels_asked} cancels asked for" if row.cancels_asked else ""
        console.print(f"{place(row.account)}: {row.scope} is {row.state} (audit {row.audit_seq}{asked})")


@risk.command("resume")
@command
def risk_resume(
    scope: str = ScopeOption,
    name: str | None = NameOption,
    reason: str = ReasonOption,
    minutes: int = typer.Option(10, "--minutes", min=1, max=1440, help="How long another person may approve it."),
    account: str | None = AllAccountsOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Ask that a halted scope may trade again. Another person approves; what else is halted stays so."""
    field = scope_field(scope, name)

    async def work(ledger: Ledger, key: ApiKey) -> list[Proposal]:
        proposed = []
        for one in await places(ledger, field, account):
            if not may_change(key, RESUME, one, field):
                raise refused(key, RESUME, f"{place(one)}, {field}")
            if _states((await ledger.snapshot(one)).state).get(field) == TradingState.ACTIVE:
                continue
            proposed.append(await ledger.propose_resume(one, field, key.key_id, key.person, reason, minutes * 60))
        if not proposed:
            raise CommandError(f"{field} is ACTIVE already", code="ALREADY_ACTIVE", field="scope", value=field)
        return proposed

    proposed = as_holder(key_file, work)
    if as_json:
        print_json([proposal_view(proposal) for proposal in proposed])
        return
    for proposal in proposed:
        print_waiting(proposal)


@risk.command("approvals")
@command
def risk_approvals(
    account: str | None = AllAccountsOption,
    everything: bool = typer.Option(False, "--all", help="Also what was decided or has expired."),
    as_json: bool = JsonOption,
) -> None:
    """What waits for a second person: trading to resume, limits to loosen."""
    print_proposals(account, None, everything, as_json)


@risk.command("approve")
@command
def risk_approve(
    proposal_id: str = ProposalArgument,
    digest: str | None = DigestOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """Approve what another person has proposed; it takes effect at once."""
    decide(proposal_id, key_file, as_json, digest=digest)


@risk.command("refuse")
@command
def risk_refuse(
    proposal_id: str = ProposalArgument,
    reason: str = ReasonOption,
    key_file: Path | None = KeyFileOption,
    as_json: bool = JsonOption,
) -> None:
    """End a proposal without its effect; your own too."""
    decide(proposal_id, key_file, as_json, refusal=reason)


@risk.command("alerts")
@command
def risk_alerts(
    account: str | None = AllAccountsOption,
    limit: int = typer.Option(50, "--limit", min=1, max=1000, help="At most so many, newest first."),
    as_json: bool = JsonOption,
) -> None:
    """Warnings (SOFT) and rules that tripped and stay so until a person resumes (HARD), newest first."""

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for one in [*([None] if account is None else []), *await chosen(ledger, account)]:
            found += [{"account": one, **fields} for fields in await ledger.alerts(one, limit)]
        return sorted(found, key=lambda row: int(row["us"]), reverse=True)[:limit]

    rows = with_ledger(work)
    if as_json:
        print_json(rows)
        return
    names = ("level", "code", "scope", "value", "limit", "id", "message")
    cells = [[when(int(row["us"])), place(row["account"]), *(row.get(name) for name in names)] for row in rows]
    columns = ["time (UTC)", "account", "level", "code", "scope", "value>", "limit>", "order", "meaning"]
    print_table(f"alerts ({load_settings().data_source})", columns, cells)


@risk.command("watch")
@command
def risk_watch(
    account: str | None = AllAccountsOption,
    every_s: float = typer.Option(1.0, "--every", min=0.1, max=60, help="Seconds between two looks."),
    key_file: Path | None = KeyFileOption,
) -> None:
    """Watch the desk in a terminal; one key press halts it: h HALT, c HALT and cancel all, r reducing only, q quit."""
    from cluster.cli_watch import watch

    watch(account, every_s, key_file)


@risk.command("verify")
@command
def risk_verify(account: str | None = AllAccountsOption, as_json: bool = JsonOption) -> None:
    """Prove the books: open reservations summed afresh, cash and positions replayed from the audit."""
    from cluster.audit import audit_folder, verify

    folder = audit_folder(load_settings())

    async def proved(ledger: Ledger) -> dict[str, list[Difference]]:
        return {name: await verify(ledger, name, folder) for name in await chosen(ledger, account)}

    found = with_ledger(proved)
    wrong = any(found.values())
    if as_json:
        print_json({name: {"ok": not rows, "differences": rows} for name, rows in found.items()})
    for name, rows in found.items() if not as_json else ():
        if rows:
            cells = [(row.what, row.booked, row.computed) for row in rows]
            print_table(f"account {name}: the books do NOT add up", ["figure", "booked>", "computed>"], cells)
        else:
            console.print(f"account {name}: the books add up")
    if wrong:
        raise typer.Exit(FAILED)


# -- halting -----------------------------------------------------------------------------------------------------------


def scope_field(scope: str, name: str | None) -> str:
    """A scope as the ledger names it: ``global``, ``account``, ``strategy|S``, ``product|P``."""
    kind, _, inside = scope.replace(":", "|", 1).partition("|")
    named = inside or name
    if kind not in {GLOBAL, "account", *NAMED}:
        rule = "expected global, account, strategy|NAME or product|ID"
        raise CommandError(f"scope: {rule}, was {scope!r}", field="scope", value=scope, rule=rule)
    if (named is None) == (kind in NAMED) or (inside and name):
        rule = "needed once with scope strategy or product, and only there"
        raise CommandError(f"name: {rule}, was {named!r}", field="name", value=named, rule=rule)
    return f"{kind}|{named}" if named else kind


async def places(ledger: Ledger, field: str, account: str | None) -> list[str | None]:
    """Where a scope's state is kept: at the desk (None), or at each account that knows it."""
    if field == GLOBAL:
        # What is global spares no account, whichever was named.
        return [None]
    names = await chosen(ledger, account)
    found: list[str | None] = [name for name in names if field in (await ledger.snapshot(name)).state]
    if not found:
        raise CommandError(f"name: no account knows {field}", field="name", value=field, rule="a configured one")
    return found


async def halt(
    ledger: Ledger, key: ApiKey, field: str, state: TradingState, reason: str, account: str | None = None
) -> list[Changed]:
    """Make a scope at least as strict as ``state``, alone and at once."""
    found = await places(ledger, field, account)
    known = await ledger.accounts()
    for one in found:
        if not may_halt(key, one, known):
            raise refused(key, HALT, place(one))
    written = [(one, await ledger.tighten(one, field, state, key.key_id, reason)) for one in found]
    return [Changed(one, field, holds, seq, asked) for one, (seq, asked, holds) in written]


def _halt_state(cancel_all: bool, reducing: bool, state: HaltState | None) -> TradingState:
    named = [*(["CANCEL_ALL"] if cancel_all else []), *(["REDUCING"] if reducing else []), *([state] if state else [])]
    if len(named) > 1:
        rule = "one of --cancel-all, --reducing and --state"
        raise CommandError(f"state: {rule}, was {' and '.join(named)}", field="state", rule=rule)
    return TradingState(named[0] if named else TradingState.HALTED)


# -- what is shown -----------------------------------------------------------------------------------------------------


async def snapshots(ledger: Ledger, account: str | None) -> tuple[Snapshot, dict[str, Snapshot]]:
    """The desk, and the accounts by name."""
    return await ledger.snapshot(None), {name: await ledger.snapshot(name) for name in await chosen(ledger, account)}


def figure_rows(found: AccountFigures) -> list[tuple[str, str]]:
    """An account's figures, money in units of its currency."""
    cash = "not opened" if found.cash is None else f"{units(found.cash):f}"
    return [
        ("cash", cash),
        ("reserved", f"{units(found.reserved):f}"),
        ("equity", f"{units(found.equity):f}"),
        ("PnL today", f"{units(found.day.pnl):f}"),
        ("gross with open orders", f"{units(found.exposure):f}"),
        ("below the peak", f"{found.drawdown_ppm / 10_000:.4f} %"),
        ("open orders", str(found.open_orders)),
    ]


def strained_rows(scopes: list[ScopeFigures]) -> list[tuple[str, str, str, str]]:
    """The limits that warn or deny now: scope, limit, level, share."""
    return [
        (one.scope, name, use.level, "" if use.share is None else f"{use.share:.1%}")
        for one in scopes
        for name, use in one.uses.items()
        if use.level in {SOFT, HARD}
    ]


def scopes_of(found: AccountFigures) -> list[ScopeFigures]:
    """Every scope of an account, itself first."""
    return [found, *found.strategies, *found.products, *found.keys, *found.groups]


def _print_account(name: str, snapshot: Snapshot, source: str) -> None:
    found = figures(snapshot)
    print_table(f"account {name} ({source})", ["scope", "trading state", "cause"], _state_rows(snapshot.state))
    console.print("; ".join(f"{what} {value}" for what, value in figure_rows(found)), highlight=False)
    if not snapshot.admitted:
        console.print("[yellow]no orders are taken: the account is being compared with the venue[/]")
    strained = strained_rows([*scopes_of(found), desk_figures(snapshot)])
    if strained:
        print_table("limits nearly used up, or used up", ["scope", "limit", "level", "used>"], strained)


def _state_rows(state: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(scope, value, state.get(CAUSE + scope, "")) for scope, value in sorted(_states(state).items())]


def _states(state: dict[str, str]) -> dict[str, str]:
    known = (GLOBAL, "account", *NAMED)
    return {scope: value for scope, value in state.items() if scope.partition("|")[0] in known}


def _risk_view(snapshot: Snapshot, desk_states: dict[str, str]) -> dict[str, Any]:
    causes = {k.removeprefix(CAUSE): v for k, v in snapshot.state.items() if k.startswith(CAUSE) and v}
    return {
        "states": desk_states | _states(snapshot.state),
        "causes": causes,
        "admitted": snapshot.admitted,
        "figures": figures(snapshot),
        "book": snapshot.book,
        "limits": snapshot.limits,
        "reference_age_ms": {name: one.age_ms for name, one in references_of(snapshot).items()},
    }
