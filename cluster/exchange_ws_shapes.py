"""Coinbase's WebSocket messages, made from the exchange simulator's nouns: envelope, events, every field as a string.

Shapes follow the Advanced Trade AsyncAPI page (docs.cdp.coinbase.com, "WebSocket Channels") and frames recorded from
production in 2026: no ``client_id``, ``heartbeat_counter`` a number, ``ticker_batch`` without the best bid and ask.
Not verified against the venue: the closing codes, and what an order's update looks like beyond the documented fields.
"""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from cluster import exchange_shapes as shapes
from cluster.exchange_book import Book, SimOrder
from cluster.exchange_history import MARKETS, Candles
from strategies.model import NS_PER_S, Product, Side

Json = dict[str, Any]
NO_TIME: Final = "0001-01-01T00:00:00Z"
AUTHENTICATION_FAILURE: Final = "authentication failure"


def timestamp(ts_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, as the envelope has it."""
    seconds, rest_ns = divmod(ts_ns, NS_PER_S)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def error(message: str, reason: str = "") -> Json:
    """A message outside the envelope: neither channel nor sequence number."""
    body = {"type": "error", "message": message}
    return body | {"reason": reason} if reason else body


def subscriptions(subscribed: Json) -> Json:
    """The answer to subscribe and unsubscribe: everything the connection has now, by the names it asked with."""
    return {"subscriptions": subscribed}


def heartbeat(now_ns: int, counter: int, running_s: float) -> Json:
    """One heartbeat; its time is written as Go prints one, with the monotonic clock at the end."""
    seconds, rest_ns = divmod(now_ns, NS_PER_S)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    current = f"{moment:%Y-%m-%d %H:%M:%S}.{rest_ns:09d} +0000 UTC m=+{running_s:.9f}"
    return {"current_time": current, "heartbeat_counter": counter}


def ticker(book: Book, day: Candles, day_before: Candles, month: Candles, batch: bool) -> Json:
    """One product of ``ticker`` or (``batch``) ``ticker_batch``; hourly candles of two days, daily ones of a month."""
    market = MARKETS[book.product_id]
    product = shapes.product(market, book, day, day_before)
    body = {
        "type": "ticker",
        "product_id": book.product_id,
        "price": product["price"],
        "volume_24_h": product["volume_24h"],
        **_extremes("24_h", book, day),
        # Of the last month: a year of a seeded path would take a second to make, and nobody trades on it.
        **_extremes("52_w", book, month),
        "price_percent_chg_24_h": product["price_percentage_change_24h"] or "0",
    }
    if batch:
        return body
    for name, side in (("bid", book.bids), ("ask", book.asks)):
        body[f"best_{name}"] = shapes.price(market, side[0][0]) if side else ""
        body[f"best_{name}_quantity"] = shapes.size(market, side[0][1]) if side else ""
    return body


def _extremes(suffix: str, book: Book, series: Candles) -> Json:
    market = MARKETS[book.product_id]
    low = min(int(series.low.min()), book.mid_ticks) if len(series) else book.mid_ticks
    high = max(int(series.high.max()), book.mid_ticks) if len(series) else book.mid_ticks
    return {f"low_{suffix}": shapes.price(market, low), f"high_{suffix}": shapes.price(market, high)}


def book_snapshot(book: Book, now_ns: int) -> Json:
    """All levels of ``l2_data``."""
    return _book_event("snapshot", book.product_id, _levels(None, book), now_ns)


def book_update(before: Book, after: Book, now_ns: int) -> Json | None:
    """The levels that differ (a level that is gone has quantity "0"); None where none does."""
    levels = _levels(before, after)
    return _book_event("update", after.product_id, levels, now_ns) if levels else None


def _levels(before: Book | None, after: Book) -> list[tuple[str, int, int]]:
    """Side, ticks and lots of every level that is new or another."""
    found = []
    for name, old, new in (
        ("bid", before.bids if before else (), after.bids),
        ("offer", before.asks if before else (), after.asks),
    ):
        was, now = dict(old), dict(new)
        found += [(name, ticks, 0) for ticks in was if ticks not in now]
        found += [(name, ticks, lots) for ticks, lots in now.items() if was.get(ticks) != lots]
    return found


def _book_event(kind: str, product_id: str, levels: list[tuple[str, int, int]], now_ns: int) -> Json:
    market, moment = MARKETS[product_id], shapes.timestamp(now_ns)
    updates = [
        {
            "side": side,
            "event_time": moment,
            "price_level": shapes.price(market, ticks),
            "new_quantity": shapes.size(market, lots) if lots else "0",
        }
        for side, ticks, lots in levels
    ]
    return {"type": kind, "product_id": product_id, "updates": updates}


def market_trade(trade: Json) -> Json:
    """One public trade, from the shape REST has for it."""
    return {name: trade[name] for name in ("product_id", "trade_id", "price", "size", "time", "side")}


def own_trade(order: SimOrder, now_ns: int) -> Json | None:
    """The public face of an order's last fill: the side is the maker's."""
    if not order.fills:
        return None
    fill = order.fills[-1]
    market = MARKETS[fill.product_id]
    other = Side.SELL if fill.side is Side.BUY else Side.BUY
    return {
        "product_id": fill.product_id,
        "trade_id": fill.trade_id,
        "price": shapes.price(market, fill.ticks),
        "size": shapes.size(market, fill.lots),
        "time": shapes.timestamp(now_ns),
        "side": (fill.side if fill.liquidity == "MAKER" else other).value,
    }


def candles(product_id: str, series: Candles) -> list[Json]:
    """Five-minute candles, oldest first, each with its product."""
    rows = shapes.candles(product_id, series)["candles"][::-1]
    return [row | {"product_id": product_id} for row in rows]


def status_product(product: Product) -> Json:
    """One product of the ``status`` channel."""
    return {
        "product_type": "SPOT",
        "id": product.product_id,
        "base_currency": product.base_currency,
        "quote_currency": product.quote_currency,
        "base_increment": shapes.plain(product.base_increment),
        "quote_increment": shapes.plain(product.quote_increment),
        "display_name": f"{product.base_currency}/{product.quote_currency}",
        "status": product.status,
        "status_message": "",
        "min_market_funds": shapes.plain(product.quote_min_size),
    }


def order(entry: SimOrder, portfolio: str) -> Json:
    """One order of the ``user`` channel: what it has come to in all, never a single fill."""
    known = shapes.order(entry, portfolio)
    fields = next(iter(known["order_configuration"].values()))
    quantity = entry.product.quantity(entry.open_lots)
    return {
        "order_id": known["order_id"],
        "client_order_id": known["client_order_id"],
        "product_id": known["product_id"],
        "product_type": "SPOT",
        "contract_expiry_type": "UNKNOWN_CONTRACT_EXPIRY_TYPE",
        "risk_managed_by": "UNKNOWN_RISK_MANAGEMENT_TYPE",
        "retail_portfolio_id": portfolio,
        "order_side": known["side"],
        "order_type": known["order_type"],
        "time_in_force": known["time_in_force"],
        "trigger_status": known["trigger_status"],
        "status": known["status"],
        "limit_price": str(fields.get("limit_price", "")),
        "stop_price": str(fields.get("stop_price", fields.get("stop_trigger_price", ""))),
        "post_only": "true" if fields.get("post_only") else "false",
        "cumulative_quantity": known["filled_size"],
        "leaves_quantity": shapes.plain(quantity),
        "avg_price": known["average_filled_price"],
        "filled_value": known["filled_value"],
        "total_fees": known["total_fees"],
        "total_value_after_fees": known["total_value_after_fees"],
        "number_of_fills": known["number_of_fills"],
        "completion_percentage": known["completion_percentage"],
        "outstanding_hold_amount": known["outstanding_hold_amount"],
        "cancel_reason": known["cancel_message"],
        "reject_reason": "",
        "creation_time": known["created_time"],
        "start_time": NO_TIME,
        "end_time": str(fields.get("end_time", NO_TIME)),
    }


def user_event(kind: str, orders: list[Json]) -> Json:
    """One event of the ``user`` channel; there are no derivatives here, so positions are empty."""
    positions: Json = {"perpetual_futures_positions": [], "expiring_futures_positions": []}
    return {"type": kind, "orders": orders, "positions": positions}
