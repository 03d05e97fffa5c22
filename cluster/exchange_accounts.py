"""The exchange simulator's paths for accounts: balances, portfolios, fees and what a key may do."""

from __future__ import annotations

from decimal import Decimal

from cluster import exchange_shapes as shapes
from cluster.exchange_history import MARKETS
from cluster.exchange_orders import Account, Portfolio
from cluster.exchange_request import Request, RequestError, cursor, integer, one


def list_accounts(request: Request) -> shapes.Json:
    """GET /accounts."""
    limit = integer(request, "limit", 49, 1, 250)
    entries = list(_own(request).accounts.values())
    begin = cursor(request, len(entries), default=0)
    page = entries[begin : begin + limit]
    more = begin + limit < len(entries)
    return {
        "accounts": [shapes.account(entry, request.now_ns, request.portfolio) for entry in page],
        "has_next": more,
        "cursor": str(begin + limit) if more else "",
        "size": len(page),
    }


def get_account(request: Request, account_id: str) -> shapes.Json:
    """GET /accounts/{uuid}."""
    for entry in _own(request).accounts.values():
        if entry.uuid == account_id:
            return {"account": shapes.account(entry, request.now_ns, request.portfolio)}
    raise RequestError(404, "NOT_FOUND", "account: not found")


def list_portfolios(request: Request) -> shapes.Json:
    """GET /portfolios: the key's own, which is all it may see."""
    own = shapes.portfolio(_own(request), _kind(request))
    wanted = one(request, "portfolio_type")
    return {"portfolios": [own] if wanted in ("", "UNDEFINED", own["type"]) else []}


def get_portfolio(request: Request, portfolio_id: str) -> shapes.Json:
    """GET /portfolios/{uuid}: what it holds, and what that is worth in USD."""
    own = _own(request)
    if portfolio_id != own.portfolio_id:
        raise RequestError(404, "NOT_FOUND", "portfolio: not found")
    rows = [(entry, _rate(request, entry.currency)) for entry in own.accounts.values()]
    return {"breakdown": shapes.breakdown(own, _kind(request), rows)}


def transaction_summary(request: Request) -> shapes.Json:
    """GET /transaction_summary: of all time, not of the last month."""
    exchange, own = request.exchange, request.portfolio
    volume, paid = exchange.records.totals(own)
    balance = sum((_worth(request, entry) for entry in _own(request).accounts.values()), Decimal(0))
    return shapes.transaction_summary(volume, paid, balance, exchange.fees)


def key_permissions(request: Request) -> shapes.Json:
    """GET /key_permissions."""
    key = request.key
    may_trade, may_transfer = (key.can_trade, key.can_transfer) if key else (True, False)
    return shapes.key_permissions(request.portfolio, may_trade, may_transfer, _kind(request))


def _own(request: Request) -> Portfolio:
    return request.exchange.portfolios[request.portfolio]


def _kind(request: Request) -> str:
    return "DEFAULT" if request.portfolio == request.exchange.portfolio_id else "CONSUMER"


def _rate(request: Request, currency: str) -> Decimal:
    """What a unit of the currency is worth in USD now."""
    name = f"{currency}-USD"
    if name not in MARKETS:
        return Decimal(1)
    return MARKETS[name].product.price(request.exchange.mid_ticks(name, request.now_ns))


def _worth(request: Request, entry: Account) -> Decimal:
    return entry.total * _rate(request, entry.currency)
