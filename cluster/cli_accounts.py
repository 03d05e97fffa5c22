"""``desk accounts``: what the venue itself says: balances, portfolios, products, fees, fills, orders and books.

They come over HTTP from the desk's cache, so that looking costs the venue's request budget next to nothing.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any, Final

import typer

from cluster.cli_access import call
from cluster.console import CommandError, JsonOption, command, console, print_json, print_table
from cluster.risk import PRODUCT_PATTERN
from strategies.model import NS_PER_S

accounts = typer.Typer(no_args_is_help=True, help="What the venue says of the account: balances, fills, orders, books.")

LIMIT_MAX: Final = 1_000
_PAGE: Final = 100

ProductOption = typer.Option(None, "--product", "-p", help="Only this product, for example BTC-USD.")
SinceOption = typer.Option(None, "--since", help="From this time on: 2026-11-22 or 2026-11-22T10:00, UTC.")
UntilOption = typer.Option(None, "--until", help="Before this time, as --since.")
LimitOption = typer.Option(50, "--limit", min=1, max=LIMIT_MAX, help="At most so many, newest first.")


@accounts.command("balances")
@command
def accounts_balances(
    everything: bool = typer.Option(False, "--all", help="Each of the venue's accounts, empty ones too."),
    as_json: bool = JsonOption,
) -> None:
    """What is held at the venue, and what open orders claim of it."""
    answer = _ask("/v1/venue/accounts" if everything else "/v1/venue/balances")
    if as_json:
        print_json(answer)
        return
    amounts = ("available", "hold", "total")
    if everything:
        rows = [[row["currency"], *(row[name] for name in amounts), row["uuid"]] for row in answer["accounts"]]
        _print("accounts", answer, ["currency", "available>", "hold>", "total>", "uuid"], rows)
    else:
        rows = [[row["currency"], *(row[name] for name in amounts)] for row in answer["balances"]]
        _print("balances", answer, ["currency", "available>", "hold>", "total>"], rows)


@accounts.command("portfolios")
@command
def accounts_portfolios(as_json: bool = JsonOption) -> None:
    """The portfolios of the venue's user; the desk's key belongs to one of them."""
    answer = _ask("/v1/venue/portfolios")
    if as_json:
        print_json(answer)
        return
    rows = [
        [row["name"], row["type"], "deleted" if row["deleted"] else "", row["uuid"]] for row in answer["portfolios"]
    ]
    _print("portfolios", answer, ["name", "type", "", "uuid"], rows)


@accounts.command("products")
@command
def accounts_products(
    product: str | None = ProductOption,
    quote: str | None = typer.Option(None, "--quote", "-q", help="Only this quote currency, for example USD."),
    as_json: bool = JsonOption,
) -> None:
    """Products with the venue's increments, smallest sizes and flags."""
    if product is not None:
        answer = _ask(f"/v1/venue/products/{_product_id(product)}")
        found = [answer["product"]]
    else:
        answer = _ask("/v1/venue/products", quote=quote.upper() if quote else None)
        found = answer["products"]
    if as_json:
        print_json(answer)
        return
    names = ("product_id", "base_increment", "quote_increment", "base_min_size", "quote_min_size", "status")
    rows = [[*(row[name] for name in names), _flags(row)] for row in found]
    columns = ["product", "lot>", "tick>", "least base>", "least quote>", "status", "flags"]
    _print("products", answer, columns, rows)


@accounts.command("fees")
@command
def accounts_fees(as_json: bool = JsonOption) -> None:
    """The fee tier orders are charged by."""
    answer = _ask("/v1/venue/fees")
    if as_json:
        print_json(answer)
        return
    row = [answer["tier"], answer["maker_rate"], answer["taker_rate"], answer["volume"]]
    _print("fees", answer, ["tier", "maker>", "taker>", "30 days' volume (USD)>"], [row])


@accounts.command("fills")
@command
def accounts_fills(
    product: str | None = ProductOption,
    order: str | None = typer.Option(None, "--order", help="Only fills of this order, by the venue's id."),
    since: dt.datetime | None = SinceOption,
    until: dt.datetime | None = UntilOption,
    limit: int = LimitOption,
    as_json: bool = JsonOption,
) -> None:
    """Executed parts of orders, newest first."""
    query = {"product_id": _optional_id(product), "venue_order_id": order} | _window(since, until)
    answer = _pages("/v1/venue/fills", "fills", limit, query)
    if as_json:
        print_json(answer)
        return
    names = ("side", "quantity", "product_id", "price", "fee", "liquidity", "client_order_id", "trade_id")
    rows = [[_utc(row["ts_ns"]), *(row[name] for name in names)] for row in answer["fills"]]
    columns = ["time (UTC)", "side", "quantity>", "product", "price>", "fee>", "liquidity", "order", "trade"]
    _print("fills", answer, columns, rows)


@accounts.command("orders")
@command
def accounts_orders(
    status: str = typer.Option("any", "--status", help="any, open, filled, cancelled, expired or rejected."),
    product: str | None = ProductOption,
    since: dt.datetime | None = SinceOption,
    until: dt.datetime | None = UntilOption,
    limit: int = LimitOption,
    as_json: bool = JsonOption,
) -> None:
    """The venue's orders, newest first, whoever sent them (desk orders ls shows the desk's own book)."""
    query = {"status": status.lower(), "product_id": _optional_id(product)} | _window(since, until)
    answer = _pages("/v1/venue/orders", "orders", limit, query)
    if as_json:
        print_json(answer)
        return
    names = ("side", "quantity", "product_id", "type", "time_in_force", "limit_price", "stop_price")
    done = ("filled_quantity", "average_price", "fees", "client_order_id")
    rows = [
        [_utc(row["created_ns"]), row["venue_status"], *(row[name] for name in (*names, *done))]
        for row in answer["orders"]
    ]
    columns = ["created (UTC)", "status", "side", "quantity>", "product", "type", "in force", "limit>", "stop>"]
    _print("orders", answer, [*columns, "filled>", "average>", "fees>", "order"], rows)


@accounts.command("book")
@command
def accounts_book(
    product: str = typer.Argument(..., help="For example BTC-USD."),
    levels: int = typer.Option(10, "--levels", "-n", min=1, max=100, help="So many prices of each side."),
    as_json: bool = JsonOption,
) -> None:
    """A product's order book, best prices first."""
    answer = _ask(f"/v1/venue/book/{_product_id(product)}", levels=levels)
    if as_json:
        print_json(answer)
        return
    bids, asks = answer["bids"], answer["asks"]
    none = {"price": "", "size": ""}
    rows = [
        [bid["size"], bid["price"], ask["price"], ask["size"]]
        for bid, ask in (
            (bids[i] if i < len(bids) else none, asks[i] if i < len(asks) else none)
            for i in range(max(len(bids), len(asks)))
        )
    ]
    _print(f"book of {answer['product_id']}", answer, ["bid size>", "bid>", "ask>", "ask size>"], rows)


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask(path: str, **query: Any) -> dict[str, Any]:
    status, answer = call("GET", path, params={name: value for name, value in query.items() if value is not None})
    if status != 200:
        raise CommandError(answer.get("detail", str(status)), **answer)
    return dict(answer)


def _pages(path: str, name: str, limit: int, query: dict[str, Any]) -> dict[str, Any]:
    """As many pages as ``limit`` rows need, as one answer with the first page's age."""
    answer = _ask(path, limit=min(limit, _PAGE), **query)
    while answer["cursor"] is not None and len(answer[name]) < limit:
        page = _ask(path, limit=min(limit, _PAGE), cursor=answer["cursor"], **query)
        answer = answer | {name: answer[name] + page[name], "cursor": page["cursor"]}
    if len(answer[name]) > limit:
        # The cursor would leave out what is cut off here.
        answer = answer | {name: answer[name][:limit], "cursor": None}
    return answer


def _product_id(text: str) -> str:
    if not re.fullmatch(PRODUCT_PATTERN, text.upper()):
        rule = "expected BASE-QUOTE, for example BTC-USD"
        raise CommandError(f"product: {rule}, was {text!r}", field="product", value=text, rule=rule)
    return text.upper()


def _optional_id(text: str | None) -> str | None:
    return None if text is None else _product_id(text)


def _window(since: dt.datetime | None, until: dt.datetime | None) -> dict[str, int | None]:
    return {"since_ns": _ns(since), "until_ns": _ns(until)}


def _ns(moment: dt.datetime | None) -> int | None:
    return None if moment is None else round(moment.replace(tzinfo=dt.UTC).timestamp()) * NS_PER_S


# -- what is shown -----------------------------------------------------------------------------------------------------


def _print(title: str, answer: dict[str, Any], columns: list[str], rows: list[list[Any]]) -> None:
    print_table(f"{title} ({answer['data_source']}, {answer['age_s']:.1f} s old)", columns, rows)
    if answer["warning"]:
        console.print(f"[yellow]{answer['warning']}[/]", highlight=False)


def _flags(row: dict[str, Any]) -> str:
    names = ("is_disabled", "trading_disabled", "cancel_only", "limit_only", "post_only", "auction_mode", "view_only")
    return ", ".join(name for name in names if row[name])


def _utc(ns: int) -> str:
    return f"{dt.datetime.fromtimestamp(ns / NS_PER_S, dt.UTC):%Y-%m-%d %H:%M:%S}"
