"""The exchange simulator's engine in a folder, with a clock that stands where the test puts it: for tests only."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from cluster.exchange_book import Exchange, Fees, Rules, SimOrder, State
from cluster.exchange_history import History
from cluster.exchange_journal import Journal
from cluster.exchange_ticket import Ticket, read_ticket
from strategies.model import Side

NOW_NS: Final = 1_741_613_841_500_000_000
SECOND_NS: Final = 1_000_000_000
MID: Final = 6_000_000  # 60,000.00 USD
LOT: Final = 100_000_000  # lots in one coin
DEPOSITS: Final = {"USD": Decimal(1_000_000), "BTC": Decimal(10)}
HISTORY: Final = History(7)
TAKER: Final = Decimal("0.006")
MAKER: Final = Decimal("0.004")


def opened(folder: Path, pinned: bool = True, rules: Rules | None = None, now_ns: int = NOW_NS) -> Exchange:
    """An exchange over the folder's journal, BTC-USD pinned at 60,000.00 unless told otherwise."""
    exchange = Exchange(HISTORY, Journal(folder / "journal.jsonl"), DEPOSITS, Fees(), now_ns, rules)
    if pinned:
        exchange.push_price("BTC-USD", MID, now_ns)
    return exchange


def ticket(exchange: Exchange, kind: str, side: str, now_ns: int = NOW_NS, **fields: Any) -> Ticket:
    """A ticket for BTC-USD with a new client order id."""
    body = {
        "client_order_id": fields.pop("client_order_id", f"id-{len(exchange.order_list)}"),
        "product_id": "BTC-USD",
        "side": side,
        "order_configuration": {kind: fields},
    }
    return read_ticket(body, now_ns)


def place(
    exchange: Exchange, kind: str, side: str = "BUY", now_ns: int = NOW_NS, portfolio_id: str = "", **fields: Any
) -> SimOrder:
    """Place an order for BTC-USD."""
    return exchange.place(ticket(exchange, kind, side, now_ns, **fields), now_ns, portfolio_id)


def limit(exchange: Exchange, side: str, size: str, price: str, now_ns: int = NOW_NS, **more: Any) -> SimOrder:
    """Place a limit order that is good until cancelled."""
    return place(exchange, "limit_limit_gtc", side, now_ns, base_size=size, limit_price=price, **more)


def stop(exchange: Exchange, side: str, size: str, price: str, stop_price: str) -> SimOrder:
    """Place a stop-limit order, its direction by its side as usual."""
    direction = "STOP_DIRECTION_STOP_UP" if side == "BUY" else "STOP_DIRECTION_STOP_DOWN"
    fields: dict[str, Any] = {
        "base_size": size,
        "limit_price": price,
        "stop_price": stop_price,
        "stop_direction": direction,
    }
    return place(exchange, "stop_limit_stop_limit_gtc", side, **fields)


def bracket(exchange: Exchange, side: str, size: str, price: str, trigger: str) -> SimOrder:
    """Place a bracket order."""
    fields: dict[str, Any] = {"base_size": size, "limit_price": price, "stop_trigger_price": trigger}
    return place(exchange, "trigger_bracket_gtc", side, **fields)


def state(order: SimOrder) -> State:
    """The order's state as it is now; a plain attribute would be taken for unchanged by the type checker."""
    return order.state


def hold(exchange: Exchange, currency: str, portfolio_id: str = "") -> Decimal:
    """What the portfolio's open orders hold."""
    return exchange.records.portfolio(portfolio_id).accounts[currency].hold


def nothing_held(exchange: Exchange) -> bool:
    """Whether no account of any portfolio has a hold."""
    return not any(account.hold for p in exchange.portfolios.values() for account in p.accounts.values())


def shown(exchange: Exchange, side: Side, now_ns: int = NOW_NS) -> list[tuple[int, int]]:
    """Levels a taker on ``side`` meets."""
    book = exchange.book("BTC-USD", now_ns)
    return list(book.asks if side is Side.BUY else book.bids)


def picture(exchange: Exchange) -> dict[str, Any]:
    """Everything that must be the same after a restart."""
    records = exchange.records
    lines = {key: [order.order_id for order in line] for key, line in records.lines.items()}
    waiting = {product: sorted(orders) for product, orders in records.waiting.items()}
    return {
        "portfolios": records.portfolios,
        "orders": records.order_list,
        "fills": records.fills,
        "open": list(records.open_orders),
        "ids": {key: order.order_id for key, order in records.by_client_id.items()},
        "flags": {product: flags for product, flags in records.flags.items() if any(flags.values())},
        "lines": lines,
        "waiting": waiting,
    }
