"""``desk audit``: prove the audit logs and the books, read them, archive them, begin anew after a loss."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import typer

from cluster.anchors import AnchorError, Anchors, BooksLost, audit_folder
from cluster.audit import ChainReport, verify, verify_chain
from cluster.audit_chain import Finding, Row
from cluster.audit_files import DESK_NAME
from cluster.audit_log import AuditLog, AuditMoved
from cluster.cli_access import AccountOption, AllAccountsOption, ReasonOption, chosen, running_settings, with_ledger
from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from cluster.ledger import Difference, Ledger
from conf.settings import load_secrets

audit = typer.Typer(no_args_is_help=True, help="The audit logs: proofs, entries, the archive.")

SHOWN_AT_ONCE: Final = 20
T = TypeVar("T")
DeskOption = typer.Option(False, "--desk", help="The desk's own log instead of an account's.")


@dataclass(frozen=True, slots=True)
class Proof:
    """Everything that can be said of one account's log and books."""

    chain: ChainReport
    anchors: list[Finding]
    differences: list[Difference]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.chain.whole and not self.anchors and not self.differences

    def view(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": self.ok,
            "entries": self.chain.rows,
            "archived": self.chain.archived,
            "head": self.chain.head,
            "findings": [finding.view() for finding in self.chain.findings],
            "findings_left_out": self.chain.left_out,
            "anchors": [finding.view() for finding in self.anchors],
            "differences": self.differences,
        }


@audit.command("verify")
@command
def audit_verify(account: str | None = AllAccountsOption, as_json: bool = JsonOption) -> None:
    """Prove the logs row by row (archive, stream, signed anchors) and the books from them. Exit code 1 on a finding."""
    settings = running_settings()
    anchors, folder = Anchors.of(settings, load_secrets(settings)), audit_folder(settings)

    async def prove(ledger: Ledger) -> dict[str, Proof]:
        names: list[str | None] = [*await chosen(ledger, account)]
        if account is None:
            names.append(None)
        return {
            name or DESK_NAME: Proof(
                await verify_chain(ledger, name, folder),
                await anchors.check(ledger, name),
                await verify(ledger, name, folder),
            )
            for name in names
        }

    found = with_ledger(_in_words(prove))
    if as_json:
        print_json({name: proof.view() for name, proof in found.items()})
    for name, proof in found.items() if not as_json else ():
        _print_proof(name, proof)
    if not all(proof.ok for proof in found.values()):
        raise typer.Exit(FAILED)


@audit.command("show")
@command
def audit_show(
    account: str = AccountOption,
    desk: bool = DeskOption,
    tail: int = typer.Option(SHOWN_AT_ONCE, "--tail", "-n", min=1, max=100_000, help="At most so many, newest last."),
    kind: str | None = typer.Option(None, "--kind", "-k", help="Only of this kind, such as FILL or STATE."),
    name: str | None = typer.Option(None, "--id", help="Only of this order, scope or proposal."),
    as_json: bool = JsonOption,
) -> None:
    """The newest entries of a log, from the ledger and from the archive."""
    folder = audit_folder(running_settings())

    async def read(ledger: Ledger) -> list[Row]:
        log = AuditLog(ledger, None if desk else (await chosen(ledger, account))[0], folder)
        if kind is None and name is None:
            return await log.tail(tail)
        return await log.newest(tail, kind.upper() if kind else None, name)

    rows = with_ledger(_in_words(read))
    if as_json:
        print_json([_row_view(row) for row in rows])
        return
    cells = [(row.seq, _moment(row.us), row.kind, row.id, row.by, row.data) for row in rows]
    print_table(f"audit of {DESK_NAME if desk else account}", ["entry>", "UTC", "kind", "id", "by", "data"], cells)


@audit.command("reset")
@command
def audit_reset(
    account: str = AccountOption, desk: bool = DeskOption, reason: str = ReasonOption, as_json: bool = JsonOption
) -> None:
    """After a deliberate new beginning: accept the ledger as it is. Old anchors and archives are kept aside."""
    settings = running_settings()
    anchors = Anchors.of(settings, load_secrets(settings))
    known = None if desk else account

    async def begin_anew(ledger: Ledger) -> list[str]:
        if not await anchors.check(ledger, known):
            message = f"{known or DESK_NAME}: the ledger agrees with its anchors; there is nothing to reset"
            raise CommandError(message, field="account", value=known or DESK_NAME)
        # The keys that say who somebody is are lost with the ledger; whoever may read the desk's secrets may do this.
        kept = await anchors.reset(ledger, known, reason, f"cli:{getpass.getuser()}")
        return [str(path) for path in kept]

    kept = with_ledger(_in_words(begin_anew))
    if as_json:
        print_json({"account": known or DESK_NAME, "reason": reason, "kept": kept})
    else:
        console.print(f"{known or DESK_NAME}: begun anew; kept aside: {', '.join(kept) or 'nothing'}")


@audit.command("archive")
@command
def audit_archive(
    keep_hours: float | None = typer.Option(None, "--keep-hours", help="What is younger stays in the ledger."),
    account: str | None = AllAccountsOption,
    as_json: bool = JsonOption,
) -> None:
    """Move old entries into Parquet and drop them from the ledger's memory; may be killed and repeated."""
    words = [sys.executable, "-m", "jobs.archive"]
    options = {"--keep-hours": None if keep_hours is None else str(keep_hours), "--account": account}
    words += [part for name, value in options.items() if value is not None for part in (name, value)]
    # Started by name: what runs on the floor above is never imported from here.
    raise typer.Exit(subprocess.run([*words, *(["--json"] if as_json else [])], check=False).returncode)


def _in_words(work: Callable[[Ledger], Awaitable[T]]) -> Callable[[Ledger], Awaitable[T]]:
    """What the anchors and the archive refuse, as the error of a command."""

    async def done(ledger: Ledger) -> T:
        try:
            return await work(ledger)
        except (AnchorError, AuditMoved, BooksLost) as error:
            raise CommandError(str(error)) from error

    return done


def _print_proof(name: str, proof: Proof) -> None:
    chain = proof.chain
    if proof.ok:
        console.print(f"{name}: {chain.rows} entries ({chain.archived} archived), chain, anchors and books are whole")
        return
    console.print(f"[bold red]{name}: NOT WHOLE[/] ({chain.rows} entries read, {chain.archived} of them archived)")
    rows = [(f.rule, f.seq, f.stream_id, f.file, f.row, f.expected, f.found) for f in [*chain.findings, *proof.anchors]]
    if rows:
        columns = ["rule", "entry>", "stream id", "file", "row>", "expected", "found"]
        print_table("the log", columns, rows, f"{chain.left_out} more are left out" if chain.left_out else "")
    if proof.differences:
        cells = [(row.what, row.booked, row.computed) for row in proof.differences]
        print_table("the books do NOT add up", ["figure", "booked>", "computed>"], cells)


def _row_view(row: Row) -> dict[str, Any]:
    try:
        data = json.loads(row.data)
    except ValueError:
        data = row.data
    return {
        "seq": row.seq,
        "us": row.us,
        "kind": row.kind,
        "id": row.id,
        "by": row.by,
        "data": data,
        "chain": row.chain,
        "stream_id": row.stream_id,
        "file": row.file or None,
        "problem": row.problem or None,
    }


def _moment(us: int) -> str:
    try:
        return f"{dt.datetime.fromtimestamp(us / 1_000_000, dt.UTC):%Y-%m-%d %H:%M:%S.%f}"
    except (ValueError, OverflowError, OSError):
        return str(us)
