"""The exchange simulator's paths for market data: time, products, books, candles and public trades."""

from __future__ import annotations

from typing import Final

from cluster import exchange_shapes as shapes
from cluster.exchange_history import MARKETS
from cluster.exchange_request import Request, RequestError, bad, integer, known, one
from strategies.model import NS_PER_S, Granularity

CANDLES_MAX: Final = 350
_TRADES_MAX: Final = 100


def server_time(request: Request) -> shapes.Json:
    """GET /time."""
    return shapes.server_time(request.now_ns)


def list_products(request: Request) -> shapes.Json:
    """GET /products: all are SPOT; another product_type finds nothing."""
    wanted = request.query.get("product_ids") or list(MARKETS)
    spot = one(request, "product_type", "SPOT") in {"SPOT", "UNKNOWN_PRODUCT_TYPE"}
    found = [request.floor.product(name, request.now_ns) for name in wanted if name in MARKETS and spot]
    offset = integer(request, "offset", 0, 0, 1_000_000)
    limit = integer(request, "limit", 250, 1, 1_000)
    return {"products": found[offset : offset + limit], "num_products": len(found)}


def get_product(request: Request, product_id: str) -> shapes.Json:
    """GET /products/{id}."""
    return request.floor.product(known(product_id), request.now_ns)


def best_bid_ask(request: Request) -> shapes.Json:
    """GET /best_bid_ask: one level a side, of all products where none is named."""
    names = request.query.get("product_ids") or list(MARKETS)
    books = [request.exchange.book(known(name), request.now_ns) for name in names]
    return {"pricebooks": [shapes.pricebook(book, 1) for book in books]}


def product_book(request: Request) -> shapes.Json:
    """GET /product_book: seeded levels and resting orders."""
    if "aggregation_price_increment" in request.query:
        raise bad("aggregation_price_increment: not simulated")
    limit = integer(request, "limit", 50, 1, 1_000)
    name = known(one(request, "product_id"))
    return shapes.product_book(request.exchange.book(name, request.now_ns), limit)


def candles(request: Request, product_id: str) -> shapes.Json:
    """At most 350 candles whose start lies in ``[start, end]``; more is refused, as Coinbase does."""
    name = known(product_id)
    try:
        granularity = Granularity(one(request, "granularity"))
    except ValueError:
        raise bad("granularity argument is invalid") from None
    start_s = integer(request, "start", None, 0, 10**11)
    end_s = integer(request, "end", None, 0, 10**11)
    limit = integer(request, "limit", CANDLES_MAX, 1, CANDLES_MAX)
    length_s = granularity.seconds
    asked = end_s // length_s - -(-start_s // length_s) + 1
    if start_s > end_s or asked > CANDLES_MAX:
        rule = "start must be before end" if start_s > end_s else "number of candles requested should be less than"
        suffix = "" if start_s > end_s else f" {CANDLES_MAX}"
        raise bad(f"start and end argument is invalid - {rule}{suffix}")
    history, first_s = request.exchange.history, request.floor.first_s
    series = history.candles(name, granularity, start_s, end_s + 1, request.now_ns, first_s)
    return {"candles": shapes.candles(name, series)["candles"][:limit]}


def market_trades(request: Request, product_id: str) -> shapes.Json:
    """GET /products/{id}/ticker: one seeded trade a second, at most 100."""
    name = known(product_id)
    limit = min(integer(request, "limit", _TRADES_MAX, 1, 1_000), _TRADES_MAX)
    now_s = request.now_ns // NS_PER_S
    newest = min(now_s, integer(request, "end", now_s, 0, 10**11))
    oldest = max(request.floor.first_s, newest - limit + 1, integer(request, "start", 0, 0, 10**11))
    seconds = range(newest, oldest - 1, -1)
    books = [request.exchange.past_book(name, second, request.now_ns) for second in seconds]
    top = shapes.pricebook(request.exchange.book(name, request.now_ns), 1)
    if not top["bids"] or not top["asks"]:
        raise RequestError(503, "UNAVAILABLE", f"product {name}: nothing is offered")
    return {
        # A book that was bought empty this second has no trade to show.
        "trades": [shapes.market_trade(past) for past in books if past.bids and past.asks],
        "best_bid": top["bids"][0]["price"],
        "best_ask": top["asks"][0]["price"],
    }
