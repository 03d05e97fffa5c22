"""``desk orders``: send, list and cancel orders. They go over HTTP like anybody's."""

from __future__ import annotations

import uuid
from typing import Any

import typer

from cluster.cli_access import AccountOption, ReasonOption, call
from cluster.cli_approvals import print_until
from cluster.console import FAILED, CommandError, JsonOption, command, console, print_json, print_table
from conf.settings import load_settings

orders = typer.Typer(no_args_is_help=True, help="Send, list and cancel orders; ask for one over its limits.")

ProductOption = typer.Option(..., "--product", "-p", help="For example BTC-USD.")
SideOption = typer.Option(..., "--side", help="BUY or SELL.")
QuantityOption = typer.Option(..., "--quantity", "-q", help="In base currency units, a decimal number.")
LimitPriceOption = typer.Option(None, "--limit-price", "-l", help="Makes it a LIMIT order.")
TimeInForceOption = typer.Option(None, "--time-in-force", help="GTC, GTD, IOC or FOK.")
StopPriceOption = typer.Option(None, "--stop-price", help="Makes it a STOP_LIMIT order: the trigger.")
BracketOption = typer.Option(False, "--bracket", help="With both prices: a BRACKET, which leaves a position.")
EndTimeOption = typer.Option(None, "--end-time", help="Makes it GTD: when it expires, such as 2026-12-31T23:59:59Z.")
PostOnlyOption = typer.Option(False, "--post-only", help="Only ever add liquidity.")
StrategyOption = typer.Option("manual", "--strategy", help="The strategy the order counts for.")


@orders.command("submit")
@command
def orders_submit(
    product: str = ProductOption,
    side: str = SideOption,
    quantity: str = QuantityOption,
    limit_price: str | None = LimitPriceOption,
    time_in_force: str | None = TimeInForceOption,
    post_only: bool = PostOnlyOption,
    stop_price: str | None = StopPriceOption,
    bracket: bool = BracketOption,
    end_time: str | None = EndTimeOption,
    strategy: str = StrategyOption,
    account: str = AccountOption,
    client_order_id: str | None = typer.Option(None, "--id", help="Your own id; a repeat gets the first answer."),
    as_json: bool = JsonOption,
) -> None:
    """Send one order through pre-trade risk to the venue."""
    body = order_body(product, side, quantity, limit_price, strategy, account, client_order_id)
    body |= _optional(time_in_force, post_only, stop_price, end_time, bracket)
    status, answer = call("POST", "/v1/orders", json=body)
    if as_json:
        print_json(answer)
    elif status == 201:
        console.print(f"[green]ACCEPTED[/] {answer['client_order_id']}: reserved {answer['reserved_notional']}")
        warnings = answer.get("warnings", [])
        _print_rules("over a limit, as two people agreed", [one for one in warnings if one.get("level")])
        _print_rules("near a limit", [one for one in warnings if not one.get("level")])
    else:
        _print_problem(answer)
    if status != 201:
        raise typer.Exit(FAILED)


@orders.command("preview")
@command
def orders_preview(
    product: str = ProductOption,
    side: str = SideOption,
    quantity: str = QuantityOption,
    limit_price: str | None = LimitPriceOption,
    time_in_force: str | None = TimeInForceOption,
    post_only: bool = PostOnlyOption,
    stop_price: str | None = StopPriceOption,
    bracket: bool = BracketOption,
    end_time: str | None = EndTimeOption,
    strategy: str = StrategyOption,
    account: str = AccountOption,
    as_json: bool = JsonOption,
) -> None:
    """Ask the venue what an order would come to. Nothing is sent. Exit code 1 where the venue would not take it."""
    body = order_body(product, side, quantity, limit_price, strategy, account)
    body |= _optional(time_in_force, post_only, stop_price, end_time, bracket)
    status, answer = call("POST", "/v1/preview", json={"order": body})
    if as_json:
        print_json(answer)
    elif status == 200:
        rows = [[name, answer[name]] for name in ("quantity", "notional", "fee", "best_bid", "best_ask")]
        rows += [["would be refused", error] for error in answer["errors"]]
        rows += [["warning", warning] for warning in answer["warnings"]]
        print_table(
            f"{body['side']} {quantity} {body['product_id']} ({answer['data_source']})", ["what", "value>"], rows
        )
    else:
        _print_problem(answer)
    if status != 200 or answer["errors"]:
        raise typer.Exit(FAILED)


@orders.command("override")
@command
def orders_override(
    product: str = ProductOption,
    side: str = SideOption,
    quantity: str = QuantityOption,
    reason: str = ReasonOption,
    limit_price: str | None = LimitPriceOption,
    time_in_force: str | None = TimeInForceOption,
    post_only: bool = PostOnlyOption,
    stop_price: str | None = StopPriceOption,
    bracket: bool = BracketOption,
    end_time: str | None = EndTimeOption,
    strategy: str = StrategyOption,
    account: str = AccountOption,
    client_order_id: str | None = typer.Option(None, "--id", help="The id the order will have; none that was used."),
    minutes: int = typer.Option(10, "--minutes", min=1, max=1440, help="How long it may be approved, then submitted."),
    as_json: bool = JsonOption,
) -> None:
    """Ask that exactly this order may go over its limits, once. Another person approves; no halt is overridden."""
    body = order_body(product, side, quantity, limit_price, strategy, account, client_order_id)
    body |= _optional(time_in_force, post_only, stop_price, end_time, bracket)
    asked = {"order": body, "reason": reason, "expires_s": minutes * 60}
    status, answer = call("POST", "/v1/risk/override", json=asked)
    if as_json:
        print_json(answer)
    elif status == 202:
        print_until(answer["id"], answer["expires_ns"] // 1000, "risk")
        again = f"desk orders submit --id {body['client_order_id']}"
        console.print(f"once approved, the order passes until then: {again}, the rest as here", highlight=False)
        rows = [[row[name] for name in ("scope", "name", "before", "after", "unit")] for row in answer["changes"]]
        print_table("", ["scope", "rule", "limit>", "the order's>", "unit"], rows)
    else:
        _print_problem(answer)
    if status != 202:
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


@orders.command("amend")
@command
def orders_amend(
    client_order_id: str = typer.Argument(..., help="The order's id."),
    quantity: str = typer.Option(..., "--quantity", "-q", help="The whole quantity, what is filled included."),
    limit_price: str = typer.Option(..., "--limit-price", "-l", help="The limit price it is to have."),
    account: str = AccountOption,
    as_json: bool = JsonOption,
) -> None:
    """Change quantity and price of an open limit order; checked as a new one, on what it adds."""
    body = {"quantity": quantity, "limit_price": limit_price}
    status, answer = call("PATCH", f"/v1/orders/{client_order_id}", params={"account": account}, json=body)
    if as_json:
        print_json(answer)
    elif status < 300:
        console.print(f"{client_order_id}: {answer['amend']}, reserved {answer['reserved_notional']} meanwhile")
    else:
        _print_problem(answer)
    if status >= 300:
        raise typer.Exit(FAILED)


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


def _optional(
    time_in_force: str | None,
    post_only: bool,
    stop_price: str | None = None,
    end_time: str | None = None,
    bracket: bool = False,
) -> dict[str, Any]:
    in_force = time_in_force or ("GTD" if end_time else None)
    found: dict[str, Any] = {"time_in_force": in_force.upper()} if in_force else {}
    found |= {"post_only": True} if post_only else {}
    if stop_price:
        found |= {"stop_price": stop_price, "type": "BRACKET" if bracket else "STOP_LIMIT"}
    elif bracket:
        raise CommandError("--bracket: needs --stop-price and --limit-price")
    return found | ({"end_time": end_time} if end_time else {})


def _print_problem(answer: dict[str, Any]) -> None:
    console.print(f"[red]{answer.get('code', 'ERROR')}[/] {answer.get('detail', '')}")
    _print_rules("", answer.get("denials", []))


def _print_rules(title: str, found: list[dict[str, Any]]) -> None:
    rows = [[rule[name] for name in ("code", "scope", "value", "limit", "unit", "message")] for rule in found]
    if rows:
        print_table(title, ["rule", "scope", "value>", "limit>", "unit", "meaning"], rows)


def _why(row: dict[str, Any]) -> str:
    return ", ".join(denial["code"] for denial in row.get("denials", [])) or row.get("reason") or ""
