"""Coinbase's response shapes, made from the exchange simulator's nouns: decimal strings, RFC 3339 times, every field.

Shapes follow the Advanced Trade OpenAPI pages (docs.cdp.coinbase.com, Advanced Trade API) and the SDK's own types;
``tests/contract/test_coinbase_shapes.py`` holds them to both.
"""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any, Final

from cluster.exchange_book import Account, Book, Fees, Level, SimFill, SimOrder, State
from cluster.exchange_history import MARKETS, Candles, Market
from cluster.exchange_orders import Edit, Portfolio, Preview
from cluster.exchange_ticket import EditRefusal, Kind, Refusal, Ticket
from strategies.model import NS_PER_S, Product

Json = dict[str, Any]
EXCHANGE_OPENED: Final = "2021-01-01T00:00:00Z"


def plain(value: Decimal) -> str:
    """A decimal as Coinbase writes it: no exponent."""
    return format(value, "f")


def timestamp(ts_ns: int) -> str:
    """RFC 3339 in UTC with microseconds."""
    seconds, rest_ns = divmod(ts_ns, NS_PER_S)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC).replace(microsecond=rest_ns // 1_000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def price(market: Market, ticks: int) -> str:
    """Ticks as a decimal string in quote currency."""
    return plain(market.product.price(ticks))


def size(market: Market, lots: int) -> str:
    """Lots as a decimal string in base currency."""
    return plain(market.product.quantity(lots))


def server_time(now_ns: int) -> Json:
    """GET /time."""
    return {
        "iso": timestamp(now_ns),
        "epochSeconds": str(now_ns // NS_PER_S),
        "epochMillis": str(now_ns // 1_000_000),
    }


def account(entry: Account, now_ns: int, portfolio: str) -> Json:
    """One account of GET /accounts."""
    return {
        "uuid": entry.uuid,
        "name": f"{entry.currency} Wallet",
        "currency": entry.currency,
        "available_balance": {"value": plain(entry.available), "currency": entry.currency},
        "default": True,
        "active": True,
        "created_at": EXCHANGE_OPENED,
        "updated_at": timestamp(now_ns),
        "deleted_at": None,
        "type": "ACCOUNT_TYPE_FIAT" if entry.currency == "USD" else "ACCOUNT_TYPE_CRYPTO",
        "ready": True,
        "hold": {"value": plain(entry.hold), "currency": entry.currency},
        "retail_portfolio_id": portfolio,
        "platform": "ACCOUNT_PLATFORM_CONSUMER",
    }


def product(market: Market, book: Book, day: Candles, day_before: Candles) -> Json:
    """One product of GET /products; ``day`` and ``day_before`` are hourly candles of the last two days."""
    noun = market.product
    last = noun.price(book.mid_ticks)
    volume = noun.quantity(int(day.volume.sum()))
    volume_before = noun.quantity(int(day_before.volume.sum()))
    opened = noun.price(int(day.open[0])) if len(day) else last
    return {
        "product_id": noun.product_id,
        "price": plain(last),
        "price_percentage_change_24h": _percent(last, opened),
        "volume_24h": plain(volume),
        "volume_percentage_change_24h": _percent(volume, volume_before),
        "base_increment": plain(noun.base_increment),
        "quote_increment": plain(noun.quote_increment),
        "quote_min_size": plain(noun.quote_min_size),
        "quote_max_size": plain(noun.quote_max_size),
        "base_min_size": plain(noun.base_min_size),
        "base_max_size": plain(noun.base_max_size),
        "base_name": market.base_name,
        "quote_name": "US Dollar",
        "watched": False,
        "is_disabled": noun.is_disabled,
        "new": False,
        "status": noun.status,
        "cancel_only": noun.cancel_only,
        "limit_only": noun.limit_only,
        "post_only": noun.post_only,
        "trading_disabled": noun.trading_disabled,
        "auction_mode": noun.auction_mode,
        "product_type": "SPOT",
        "quote_currency_id": noun.quote_currency,
        "base_currency_id": noun.base_currency,
        "fcm_trading_session_details": None,
        "mid_market_price": "",
        "alias": "",
        "alias_to": [],
        "base_display_symbol": noun.base_currency,
        "quote_display_symbol": noun.quote_currency,
        "view_only": noun.view_only,
        "price_increment": plain(noun.quote_increment),
        "display_name": noun.product_id,
        "product_venue": "CBE",
        "approximate_quote_24h_volume": plain((volume * last).quantize(Decimal("0.01"))),
        "new_at": EXCHANGE_OPENED,
    }


def pricebook(book: Book, limit: int) -> Json:
    """Up to ``limit`` levels a side."""
    market = MARKETS[book.product_id]
    return {
        "product_id": book.product_id,
        "bids": [_level(market, level) for level in book.bids[:limit]],
        "asks": [_level(market, level) for level in book.asks[:limit]],
        "time": timestamp(book.second * NS_PER_S),
    }


def product_book(book: Book, limit: int) -> Json:
    """GET /product_book."""
    increment = MARKETS[book.product_id].product.quote_increment
    # A side that was bought empty this second is shown as at the mid.
    bid = (book.bids[0][0] if book.bids else book.mid_ticks) * increment
    ask = (book.asks[0][0] if book.asks else book.mid_ticks) * increment
    middle = (bid + ask) / 2
    return {
        "pricebook": pricebook(book, limit),
        "last": plain(increment * book.mid_ticks),
        "mid_market": plain(middle),
        "spread_bps": plain(((ask - bid) / middle * 10_000).quantize(Decimal("1e-12"))),
        "spread_absolute": plain(ask - bid),
    }


def candles(product_id: str, series: Candles) -> Json:
    """GET …/candles: newest first, everything a string."""
    market = MARKETS[product_id]
    columns = (series.start_s, series.low, series.high, series.open, series.close, series.volume)
    return {
        "candles": [
            {
                "start": str(start),
                "low": price(market, low),
                "high": price(market, high),
                "open": price(market, opened),
                "close": price(market, closed),
                "volume": size(market, volume),
            }
            for start, low, high, opened, closed, volume in zip(*(c.tolist()[::-1] for c in columns), strict=True)
        ]
    }


def market_trade(book: Book) -> Json:
    """One seeded public trade: the best level of the side that the second's parity names, at most a tenth of it."""
    market = MARKETS[book.product_id]
    side, (ticks, lots) = ("BUY", book.bids[0]) if book.second % 2 else ("SELL", book.asks[0])
    return {
        "trade_id": str(book.second),
        "product_id": book.product_id,
        "price": price(market, ticks),
        "size": size(market, max(1, lots // 10)),
        "time": timestamp(book.second * NS_PER_S),
        "side": side,
        "bid": "",
        "ask": "",
        "exchange": "simulated",
    }


def order_accepted(accepted: SimOrder) -> Json:
    """POST /orders, accepted. ``failure_reason`` is there on success too (issue 49 of the SDK)."""
    ticket = accepted.ticket
    return {
        "success": True,
        "failure_reason": "UNKNOWN_FAILURE_REASON",
        "order_id": accepted.order_id,
        "success_response": {
            "order_id": accepted.order_id,
            "product_id": ticket.product_id,
            "side": ticket.side.value,
            "client_order_id": ticket.client_order_id,
            "attached_order_id": "",
        },
        "order_configuration": ticket.configuration,
    }


def order_refused(refusal: Refusal, configuration: Json | None) -> Json:
    """POST /orders, refused: HTTP 200 all the same."""
    body = {
        "success": False,
        "failure_reason": "UNKNOWN_FAILURE_REASON",
        "order_id": "",
        "error_response": {
            "error": refusal.code,
            "message": refusal.message,
            "error_details": "",
            "preview_failure_reason": refusal.preview,
            "new_order_failure_reason": refusal.code,
        },
    }
    return body if configuration is None else body | {"order_configuration": configuration}


def order(entry: SimOrder, portfolio: str) -> Json:
    """One order of GET /orders/historical/…."""
    ticket, product_noun = entry.ticket, entry.product
    filled = product_noun.quantity(entry.filled_lots)
    average = (entry.filled_value / filled).quantize(Decimal("1e-12")) if filled else Decimal(0)
    signed_fees = entry.fees if ticket.side.value == "BUY" else -entry.fees
    return {
        "order_id": entry.order_id,
        "product_id": ticket.product_id,
        "user_id": portfolio,
        "order_configuration": ticket.configuration,
        "side": ticket.side.value,
        "client_order_id": ticket.client_order_id,
        "status": entry.status,
        "time_in_force": time_in_force(ticket.kind),
        "created_time": timestamp(entry.created_ns),
        "completion_percentage": plain(_completion(entry, ticket)),
        "filled_size": plain(filled),
        "average_filled_price": plain(average),
        "fee": "",
        "number_of_fills": str(len(entry.fills)),
        "filled_value": plain(entry.filled_value),
        "pending_cancel": entry.state is State.CANCEL_QUEUED,
        "size_in_quote": ticket.quote_size is not None,
        "total_fees": plain(entry.fees),
        "size_inclusive_of_fees": ticket.quote_size is not None,
        "total_value_after_fees": plain(entry.filled_value + signed_fees),
        "trigger_status": entry.trigger_status,
        "order_type": order_type(ticket.kind),
        "reject_reason": "REJECT_REASON_UNSPECIFIED",
        "settled": not entry.state.live,
        "product_type": "SPOT",
        "reject_message": entry.message if entry.state is State.FAILED else "",
        "cancel_message": "" if entry.state is State.FAILED else entry.message,
        "order_placement_source": "RETAIL_ADVANCED",
        "outstanding_hold_amount": plain(entry.hold()),
        "is_liquidation": False,
        "last_fill_time": timestamp(entry.fills[-1].ts_ns) if entry.fills else None,
        "edit_history": [_edit(product_noun, edit) for edit in entry.edits],
        "leverage": "",
        "margin_type": "UNKNOWN_MARGIN_TYPE",
        "retail_portfolio_id": portfolio,
        "originating_order_id": "",
        "attached_order_id": "",
        "attached_order_configuration": None,
    }


def time_in_force(kind: Kind) -> str:
    """Coinbase's word for how long an order of the kind stands."""
    return _TIME_IN_FORCE[kind]


def order_type(kind: Kind) -> str:
    """Coinbase's word for what an order of the kind is."""
    return _ORDER_TYPE.get(kind, "LIMIT")


def previewed(found: Preview | None, errors: tuple[str, ...]) -> Json:
    """POST /orders/preview; ``found`` None for an order that could not even be read."""
    body = _previewed(found)
    body["errs"], body["warning"] = list(errors), [] if found is None else list(found.warnings)
    return body | {
        "is_max": False,
        "order_margin_total": "",
        "leverage": "1.0",
        "long_leverage": "",
        "short_leverage": "",
        "preview_id": str(uuid.uuid4()),
        "current_liquidation_buffer": "",
        "projected_liquidation_buffer": "",
        "max_leverage": "",
        "pnl_configuration": None,
    }


def edit_previewed(found: Preview | None, refusal: EditRefusal | None) -> Json:
    """POST /orders/edit_preview."""
    average = "0" if found is None else plain(found.average_price)
    return _previewed(found) | {"errors": _edit_errors(refusal), "average_filled_price": average}


def _previewed(found: Preview | None) -> Json:
    zero = Decimal(0)
    names = ("order_total", "commission_total", "quote_size", "base_size", "best_bid", "best_ask", "slippage")
    values = {name: zero if found is None else getattr(found, name) for name in names}
    return {name: plain(value.quantize(Decimal("1e-16")).normalize()) for name, value in values.items()}


def edited(order: SimOrder) -> Json:
    """POST /orders/edit, accepted."""
    return {"success": True, "success_response": {"order_id": order.order_id}, "errors": []}


def edit_refused(refusal: EditRefusal) -> Json:
    """POST /orders/edit, refused: HTTP 200 all the same."""
    errors = _edit_errors(refusal)
    return {"success": False, "error_response": errors[0], "errors": errors}


def _edit_errors(refusal: EditRefusal | None) -> list[Json]:
    if refusal is None:
        return []
    return [{"edit_failure_reason": refusal.code, "preview_failure_reason": refusal.preview}]


def fill(entry: SimFill, portfolio: str) -> Json:
    """One fill of GET /orders/historical/fills."""
    market = MARKETS[entry.product_id]
    return {
        "entry_id": entry.entry_id,
        "trade_id": entry.trade_id,
        "order_id": entry.order_id,
        "trade_time": timestamp(entry.ts_ns),
        "trade_type": "FILL",
        "price": price(market, entry.ticks),
        "size": size(market, entry.lots),
        "commission": plain(entry.fee),
        "product_id": entry.product_id,
        "sequence_timestamp": timestamp(entry.ts_ns),
        "liquidity_indicator": entry.liquidity,
        "size_in_quote": False,
        "user_id": portfolio,
        "side": entry.side.value,
        "retail_portfolio_id": portfolio,
    }


def cancel_result(order_id: str, refusal: str) -> Json:
    """One result of POST /orders/batch_cancel; ``refusal`` is empty where the order was cancelled."""
    return {
        "success": not refusal,
        "failure_reason": refusal or "UNKNOWN_CANCEL_FAILURE_REASON",
        "order_id": order_id,
    }


def transaction_summary(volume: Decimal, paid: Decimal, balance: Decimal, fees: Fees) -> Json:
    """GET /transaction_summary: volume, fees paid and total balance in USD; totals are JSON numbers there."""
    return {
        "total_volume": float(volume),
        "total_fees": float(paid),
        "fee_tier": {
            "pricing_tier": "Simulated",
            "usd_from": "0",
            "usd_to": "",
            "taker_fee_rate": plain(fees.rate("TAKER")),
            "maker_fee_rate": plain(fees.rate("MAKER")),
            "aop_from": "",
            "aop_to": "",
        },
        "margin_rate": None,
        "goods_and_services_tax": None,
        "advanced_trade_only_volume": float(volume),
        "advanced_trade_only_fees": float(paid),
        "coinbase_pro_volume": 0.0,
        "coinbase_pro_fees": 0.0,
        "total_balance": plain(balance.quantize(Decimal("0.01"))),
        "has_promo_fee": False,
    }


def key_permissions(portfolio_id: str, may_trade: bool, may_transfer: bool, kind: str) -> Json:
    """GET /key_permissions."""
    return {
        "can_view": True,
        "can_trade": may_trade,
        "can_transfer": may_transfer,
        "portfolio_uuid": portfolio_id,
        "portfolio_type": kind,
    }


def portfolio(entry: Portfolio, kind: str) -> Json:
    """One portfolio of GET /portfolios."""
    return {"name": entry.name, "uuid": entry.portfolio_id, "type": kind, "deleted": False}


def breakdown(entry: Portfolio, kind: str, rows: list[tuple[Account, Decimal]]) -> Json:
    """GET /portfolios/{uuid}; ``rows`` are its accounts with what a unit is worth in USD."""
    cash = sum((row.total * rate for row, rate in rows if row.currency == "USD"), Decimal(0))
    crypto = sum((row.total * rate for row, rate in rows if row.currency != "USD"), Decimal(0))
    return {
        "portfolio": portfolio(entry, kind),
        "portfolio_balances": {
            "total_balance": _usd(cash + crypto),
            "total_futures_balance": _usd(Decimal(0)),
            "total_cash_equivalent_balance": _usd(cash),
            "total_crypto_balance": _usd(crypto),
            "futures_unrealized_pnl": _usd(Decimal(0)),
            "perp_unrealized_pnl": _usd(Decimal(0)),
        },
        "spot_positions": [_position(row, rate, cash + crypto) for row, rate in rows],
        "perp_positions": [],
        "futures_positions": [],
    }


def _position(entry: Account, rate: Decimal, whole: Decimal) -> Json:
    """Numbers here are JSON numbers, as on Coinbase. Nobody keeps what was paid for a position: cost is its worth."""
    worth = entry.total * rate
    return {
        "asset": entry.currency,
        "account_uuid": entry.uuid,
        "total_balance_fiat": float(worth),
        "total_balance_crypto": float(entry.total),
        "available_to_trade_fiat": float(entry.available * rate),
        "available_to_trade_crypto": float(entry.available),
        "allocation": float(worth / whole) if whole else 0.0,
        "cost_basis": _usd(worth),
        "is_cash": entry.currency == "USD",
        "average_entry_price": _usd(rate),
        "unrealized_pnl": 0.0,
    }


def _usd(amount: Decimal) -> Json:
    return {"value": plain(amount.quantize(Decimal("0.01"))), "currency": "USD"}


def throttled() -> Json:
    """The body of a 429."""
    return {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]}


def error(code: str, message: str) -> Json:
    """The body of a 4xx answer."""
    return {"error": code, "code": code, "error_details": message, "message": message}


_TIME_IN_FORCE: Final = {
    Kind.MARKET_IOC: "IMMEDIATE_OR_CANCEL",
    Kind.LIMIT_IOC: "IMMEDIATE_OR_CANCEL",
    Kind.LIMIT_GTC: "GOOD_UNTIL_CANCELLED",
    Kind.LIMIT_GTD: "GOOD_UNTIL_DATE_TIME",
    Kind.LIMIT_FOK: "FILL_OR_KILL",
    Kind.STOP_GTC: "GOOD_UNTIL_CANCELLED",
    Kind.STOP_GTD: "GOOD_UNTIL_DATE_TIME",
    Kind.BRACKET_GTC: "GOOD_UNTIL_CANCELLED",
    Kind.BRACKET_GTD: "GOOD_UNTIL_DATE_TIME",
}


_ORDER_TYPE: Final = {
    Kind.MARKET_IOC: "MARKET",
    Kind.STOP_GTC: "STOP_LIMIT",
    Kind.STOP_GTD: "STOP_LIMIT",
    Kind.BRACKET_GTC: "BRACKET",
    Kind.BRACKET_GTD: "BRACKET",
}


def _edit(noun: Product, edit: Edit) -> Json:
    """One entry of ``edit_history``."""
    return {
        "price": plain(noun.price(edit.ticks)),
        "size": plain(noun.quantity(edit.lots)),
        "replace_accept_timestamp": timestamp(edit.ts_ns),
    }


def _completion(entry: SimOrder, ticket: Ticket) -> Decimal:
    if entry.state is State.FILLED:
        return Decimal(100)
    wanted = ticket.lots
    return Decimal(0) if not wanted else (Decimal(100 * entry.filled_lots) / wanted).quantize(Decimal("0.01"))


def _level(market: Market, level: Level) -> Json:
    return {"price": price(market, level[0]), "size": size(market, level[1])}


def _percent(value: Decimal, before: Decimal) -> str:
    return "" if before == 0 else plain(((value - before) / before * 100).quantize(Decimal("1e-8")))
