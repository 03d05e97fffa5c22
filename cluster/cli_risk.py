"""``desk risk`` and ``desk orders``: the kill switch, the books and orders, from the command line.

Halting goes straight to the ledger, so it works while every application is down. Orders go over HTTP like anybody's.
"""

from __future__ import annotations

import asyncio
import getpass
import uuid
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import typer

from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from cluster.ledger import Difference, Ledger, Snapshot
from cluster.local import local_api_key
from conf.settings import Settings, load_secrets, load_settings
from strategies.model import TradingState, units

risk = typer.Typer(no_args_is_help=True, help="Trading states, limits and the books.")
orders = typer.Typer(no_args_is_help=True, help="Send, list and cancel orders.")

T = TypeVar("T")
AccountOption = typer.Option("main", "--account", "-a", help="The account.")
AllAccountsOption = typer.Option(None, "--account", "-a", help="Only this account; without it, all of them.")


class ScopeKind(StrEnum):
    """What a trading state is set for."""

    GLOBAL = "global"
    ACCOUNT = "account"
    STRATEGY = "strategy"
    PRODUCT = "product"


class HaltState(StrEnum):
    """How hard to halt."""

    REDUCING = "REDUCING"
    HALTED = "HALTED"
    CANCEL_ALL = "CANCEL_ALL"


ScopeOption = typer.Option(ScopeKind.GLOBAL, "--scope", "-s", help="What to set the state for.")
NameOption = typer.Option(None, "--name", "-n", help="The strategy or product, for those scopes.")


@risk.command("status")
@command
def risk_status(account: str | None = AllAccountsOption, as_json: bool = JsonOption) -> None:
    """Trading states, exposures and limits of the accounts."""
    snapshots = with_ledger(lambda ledger: _snapshots(ledger, account))
    if as_json:
        print_json({name: _risk_view(snapshot) for name, snapshot in snapshots.items()})
        return
    source = load_settings().data_source
    for name, snapshot in snapshots.items():
        _print_risk(name, snapshot, source)


@risk.command("halt")
@command
def risk_halt(
    scope: ScopeKind = ScopeOption,
    name: str | None = NameOption,
    state: HaltState = typer.Option(HaltState.HALTED, "--state", help="How hard."),
    reason: str = typer.Option("halted by hand", "--reason", "-r", help="Written into the audit stream."),
    account: str | None = AllAccountsOption,
    as_json: bool = JsonOption,
) -> None:
    """Stop new orders at once; CANCEL_ALL also cancels the open ones. Never loosens a stricter state."""
    _set_states(scope, name, TradingState(state.value), reason, account, as_json)


@risk.command("resume")
@command
def risk_resume(
    scope: ScopeKind = ScopeOption,
    name: str | None = NameOption,
    reason: str = typer.Option(..., "--reason", "-r", help="Why it is safe again; written into the audit stream."),
    account: str | None = AllAccountsOption,
    as_json: bool = JsonOption,
) -> None:
    """Let a halted scope trade again. Other scopes that are halted stay so."""
    _set_states(scope, name, TradingState.ACTIVE, reason, account, as_json)


@risk.command("verify")
@command
def risk_verify(account: str | None = AllAccountsOption, as_json: bool = JsonOption) -> None:
    """Prove the books: open reservations summed afresh, cash and positions replayed from the audit stream."""

    async def verify(ledger: Ledger) -> dict[str, list[Difference]]:
        return {name: await ledger.verify(name) for name in await _chosen(ledger, account)}

    found = with_ledger(verify)
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


@orders.command("submit")
@command
def orders_submit(
    product: str = typer.Option(..., "--product", "-p", help="For example BTC-USD."),
    side: str = typer.Option(..., "--side", help="BUY or SELL."),
    quantity: str = typer.Option(..., "--quantity", "-q", help="In base currency units, a decimal number."),
    limit_price: str | None = typer.Option(None, "--limit-price", "-l", help="Makes it a LIMIT order."),
    time_in_force: str | None = typer.Option(None, "--time-in-force", help="GTC, IOC or FOK."),
    post_only: bool = typer.Option(False, "--post-only", help="Only ever add liquidity."),
    strategy: str = typer.Option("manual", "--strategy", help="The strategy the order counts for."),
    account: str = AccountOption,
    client_order_id: str | None = typer.Option(None, "--id", help="Your own id; a repeat gets the first answer."),
    as_json: bool = JsonOption,
) -> None:
    """Send one order through pre-trade risk to the venue."""
    body = order_body(product, side, quantity, limit_price, strategy, account, client_order_id)
    if time_in_force:
        body["time_in_force"] = time_in_force.upper()
    if post_only:
        body["post_only"] = True
    status, answer = call("POST", "/v1/orders", json=body)
    if as_json:
        print_json(answer)
    elif status == 201:
        console.print(f"[green]ACCEPTED[/] {answer['client_order_id']}: reserved {answer['reserved_notional']}")
    else:
        _print_problem(answer)
    if status != 201:
        raise typer.Exit(FAILED)


@orders.command("ls")
@command
def orders_ls(
    only_open: bool = typer.Option(False, "--open", help="Only orders that hold a reservation."),
    limit: int = typer.Option(50, "--limit", min=1, max=500, help="At most so many, newest first."),
    account: str = AccountOption,
    as_json: bool = JsonOption,
) -> None:
    """Orders, newest first."""
    query = {"account": account, "status": "open" if only_open else "recent", "limit": limit}
    status, answer = call("GET", "/v1/orders", params=query)
    if status != 200:
        raise CommandError(answer.get("detail", str(status)), **answer)
    if as_json:
        print_json(answer)
        return
    names = ("client_order_id", "status", "side", "quantity", "product_id", "limit_price", "filled_quantity")
    rows = [[row.get(name) for name in (*names, "average_price", "fees")] + [_why(row)] for row in answer]
    columns = ["id", "status", "side", "quantity>", "product", "limit>", "filled>", "average>", "fees>", "reason"]
    print_table(f"orders of {account} ({load_settings().data_source})", columns, rows)


@orders.command("cancel")
@command
def orders_cancel(
    client_order_id: str = typer.Argument(..., help="The order's id."),
    account: str = AccountOption,
    as_json: bool = JsonOption,
) -> None:
    """Cancel one order; allowed in every trading state."""
    status, answer = call("DELETE", f"/v1/orders/{client_order_id}", params={"account": account})
    if as_json:
        print_json(answer)
    elif status < 300:
        console.print(f"{client_order_id}: {answer['cancel']}, the order is {answer['status']}")
    else:
        _print_problem(answer)
    if status >= 300:
        raise typer.Exit(FAILED)


def order_body(
    product: str,
    side: str,
    quantity: str,
    limit_price: str | None = None,
    strategy: str = "manual",
    account: str = "main",
    client_order_id: str | None = None,
) -> dict[str, Any]:
    """The body of ``POST /v1/orders``; without an id a new one is made."""
    body = {
        "client_order_id": client_order_id or f"cli-{uuid.uuid4().hex[:16]}",
        "account": account,
        "strategy": strategy,
        "product_id": product.upper(),
        "side": side.upper(),
        "type": "LIMIT" if limit_price else "MARKET",
        "quantity": quantity,
    }
    return body | ({"limit_price": limit_price} if limit_price else {})


def call(method: str, path: str, **request: Any) -> tuple[int, Any]:
    """One request to the running desk with its local key: HTTP status and JSON body."""
    import httpx

    settings = running_settings()
    headers = {"Authorization": f"Bearer {local_api_key(settings.state_dir)}"}
    try:
        with httpx.Client(base_url=settings.api_url, headers=headers, timeout=15, trust_env=False) as client:
            reply = client.request(method, path, **request)
    except httpx.TransportError as error:
        raise CommandError(f"the desk does not answer at {settings.api_url}: {error} (desk status)") from error
    try:
        return reply.status_code, reply.json()
    except ValueError:
        raise CommandError(f"{method} {path}: {reply.status_code} without JSON: {reply.text[:200]}") from None


def running_settings() -> Settings:
    """The settings of the desk that runs; raises ``CommandError`` where none does."""
    settings = load_settings()
    if not Path(settings.state_dir / "desk.json").exists() and settings.redis.host is None:
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


async def _chosen(ledger: Ledger, account: str | None) -> list[str]:
    known = await ledger.accounts()
    if account is not None and account not in known:
        raise CommandError(f"account: {account!r} is not known; known: {', '.join(known) or 'none'}", field="account")
    return [account] if account else known


async def _snapshots(ledger: Ledger, account: str | None) -> dict[str, Snapshot]:
    return {name: await ledger.snapshot(name) for name in await _chosen(ledger, account)}


def _set_states(
    scope: ScopeKind, name: str | None, state: TradingState, reason: str, account: str | None, as_json: bool
) -> None:
    if (name is None) != (scope in {ScopeKind.GLOBAL, ScopeKind.ACCOUNT}):
        rule = "needed with scope strategy or product, and only there"
        raise CommandError(f"name: {rule}, was {name!r}", field="name", value=name, rule=rule)
    field = f"{scope.value}|{name}" if name else scope.value
    actor = f"cli:{getpass.getuser()}"

    async def work(ledger: Ledger) -> list[dict[str, Any]]:
        # A global halt spares no account, whichever was named.
        accounts = await _chosen(ledger, None if scope is ScopeKind.GLOBAL else account)
        changed = []
        for one in accounts:
            if field not in (await ledger.snapshot(one)).state:
                continue
            holds: TradingState = state
            if state is TradingState.ACTIVE:
                seq, asked = await ledger.set_state(one, field, state, actor, reason)
            else:
                seq, asked, holds = await ledger.tighten(one, field, state, actor, reason)
            changed.append({"account": one, "scope": field, "state": holds, "audit_seq": seq, "cancels_asked": asked})
        if not changed:
            raise CommandError(f"name: no account knows {field}", field="name", value=name, rule="a configured one")
        return changed

    changed = with_ledger(work)
    if as_json:
        print_json(changed)
        return
    for row in changed:
        asked = f", {row['cancels_asked']} cancels asked for" if row["cancels_asked"] else ""
        console.print(f"account {row['account']}: {row['scope']} is {row['state']} (audit {row['audit_seq']}{asked})")


def _risk_view(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "states": {k: v for k, v in snapshot.state.items() if k != "epoch"},
        "book": snapshot.book,
        "positions": snapshot.positions,
        "limits": snapshot.limits,
        "reference_age_ms": {p: snapshot.now_ms - int(v.split()[2]) for p, v in snapshot.reference.items()},
    }


def _print_risk(name: str, snapshot: Snapshot, source: str) -> None:
    rows = sorted((scope, state) for scope, state in snapshot.state.items() if scope != "epoch")
    print_table(f"account {name} ({source})", ["scope", "trading state"], rows)
    book = {key: int(value) for key, value in snapshot.book.items()}
    cash, reserved = book.get("cash", 0), book.get("reserved", 0)
    console.print(
        f"cash {units(cash):f}, reserved {units(reserved):f}, free {units(cash - reserved):f}; "
        f"open orders {book.get('a|open_orders', 0)} of {snapshot.limits.get('account|max_open_orders')}"
    )


def _print_problem(answer: dict[str, Any]) -> None:
    console.print(f"[red]{answer.get('code', 'ERROR')}[/] {answer.get('detail', '')}")
    rows = [[d["code"], d["scope"], d["value"], d["limit"], d["unit"], d["message"]] for d in answer.get("denials", [])]
    if rows:
        print_table("", ["rule", "scope", "value>", "limit>", "unit", "meaning"], rows)


def _why(row: dict[str, Any]) -> str:
    return ", ".join(denial["code"] for denial in row.get("denials", [])) or row.get("reason") or ""
