"""The API in this process for tests: the application, its ledger, and requests through httpx without a network."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

import httpx
from fastapi import FastAPI

from cluster.api_keys import ALL_ACCOUNTS, SCOPES, create_key
from cluster.ledger import Ledger, Reference
from cluster.limit_records import CALENDAR, account_records, desk_records
from cluster.ray_jobs import RayJobs
from conf.limits import AccountLimits
from conf.settings import Settings
from serve_apps.api import build_api
from strategies.model import Fill, Order, OrderType, Product, Side, TimeInForce
from tests.limit_samples import account_limits, limits_file
from tests.servers import redis_secrets

BTC: Final = Product(
    "BTC-USD",
    "BTC",
    "USD",
    Decimal("0.00000001"),
    Decimal("0.01"),
    Decimal("0.00000001"),
    Decimal(10_000),
    Decimal(1),
    Decimal(10_000_000),
)
ETH: Final = Product(
    "ETH-USD",
    "ETH",
    "USD",
    Decimal("0.0001"),
    Decimal("0.01"),
    Decimal("0.0001"),
    Decimal(10_000),
    Decimal(1),
    Decimal(10_000_000),
)
_STRATEGY: Final[dict[str, Any]] = {
    "max_order_notional": 50_000,
    "max_gross_exposure": 100_000,
    "max_open_orders": 50,
}
LIMITS: Final = account_limits(
    max_order_notional=50_000,
    max_gross_exposure=250_000,
    max_open_orders=200,
    order_rate_per_s=50,
    order_burst=100,
    reference_stale_ms=10_000,
    products={
        "BTC-USD": {"max_order_notional": 50_000, "max_position": 5, "max_open_orders": 100},
        "ETH-USD": {"max_order_notional": 50_000, "max_position": 100, "max_open_orders": 100},
    },
    strategies={"manual": _STRATEGY, "sma_cross": _STRATEGY},
)


@dataclass
class ApiDesk:
    """A desk's API and its ledger."""

    app: FastAPI
    settings: Settings
    ledger: Ledger
    client: httpx.AsyncClient
    epochs: dict[str, int] = field(default_factory=dict)

    async def get(self, path: str, **arguments: Any) -> httpx.Response:
        """A GET with the key that may do everything."""
        return await self.client.get(path, **arguments)

    async def post(self, path: str, body: object = None, **arguments: Any) -> httpx.Response:
        """A POST of JSON with the same key; in ASCII, so that any text can be sent."""
        headers = {"content-type": "application/json"} | arguments.pop("headers", {})
        content = None if body is None else json.dumps(body)
        return await self.client.post(path, content=content, headers=headers, **arguments)

    async def key(
        self, scopes: Sequence[str], accounts: Sequence[str] = (ALL_ACCOUNTS,), **more: Any
    ) -> dict[str, str]:
        """Headers with a new key, known to the application's ring at once; ``more``: its person, strategies, end."""
        pepper = redis_secrets().api_key_pepper
        assert pepper is not None
        key = await create_key(self.ledger, pepper, "test", scopes, accounts, **more)
        self.forget_keys()
        return {"authorization": f"Bearer {key.get_secret_value()}"}

    def forget_keys(self) -> None:
        """Let the application read the keys' records anew with its next request."""
        self.app.state.desk.keys._read_at = float("-inf")

    async def open_account(
        self, name: str = "main", cash: int = 100_000, limits: AccountLimits = LIMITS, prices: bool = True
    ) -> None:
        """Products, limits, books and prices of an account as execution sets them up: BTC 100,000, ETH 4,000."""
        products = {product.product_id: product for product in (BTC, ETH)}
        await self.ledger.set_products(list(products.values()))
        desk = desk_records(limits_file())
        await self.ledger.set_limits(None, desk, "test")
        await self.ledger.set_limits(name, account_records(limits, products, desk[CALENDAR]), "test")
        self.epochs[name] = await self.ledger.claim(name, "test")
        if prices:
            await self.quote(name)
        await self.ledger.open_account(name, cash * 1_000_000, {}, "test")
        await self.ledger.admit(name, self.epochs[name])

    async def quote(self, account: str = "main", btc: int = 100_000, eth: int = 4_000) -> None:
        """Reference prices one unit apart around these."""
        half = Decimal("0.5")
        quotes = [Reference(BTC, btc - half, btc + half), Reference(ETH, eth - half, eth + half)]
        await self.ledger.set_references(account, quotes)

    async def order(self, client_order_id: str, quantity: str, price: str, **changed: Any) -> Order:
        """Reserve a limit order; it must be accepted."""
        base = Order(
            client_order_id=client_order_id,
            account="main",
            strategy="manual",
            product_id="BTC-USD",
            side=Side.BUY,
            type=OrderType.LIMIT,
            time_in_force=TimeInForce.GTC,
            quantity=Decimal(quantity),
            limit_price=Decimal(price),
        )
        order = replace(base, **changed)
        verdict = await self.ledger.reserve(order, BTC if order.product_id == "BTC-USD" else ETH, "test")
        assert verdict.accepted, verdict
        return order

    async def fill(self, order: Order, quantity: str, price: str, fee: str = "0") -> None:
        """Book a fill of an order."""
        product = BTC if order.product_id == "BTC-USD" else ETH
        fill = Fill(
            trade_id=f"t-{order.client_order_id}-{quantity}",
            client_order_id=order.client_order_id,
            venue_order_id="v",
            product_id=order.product_id,
            side=order.side,
            price=Decimal(price),
            quantity=Decimal(quantity),
            fee=Decimal(fee),
            liquidity="TAKER",
            ts_ns=1,
        )
        epoch = self.epochs[order.account]
        await self.ledger.mark_sent(order.account, epoch, order.client_order_id)
        outcome, _ = await self.ledger.fill(order.account, epoch, fill, product)
        assert outcome == "APPLIED", outcome


@asynccontextmanager
async def open_desk(settings: Settings, ledger: Ledger, jobs: RayJobs | None = None) -> AsyncIterator[ApiDesk]:
    """The API on ``ledger``."""
    app = build_api(settings, redis_secrets(), ledger, jobs)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://desk", timeout=30) as client:
        desk = ApiDesk(app, settings, ledger, client)
        client.headers.update(await desk.key(SCOPES))
        yield desk
        app.state.desk.venue.close()


def only(rows: Sequence[Mapping[str, Any]], **wanted: object) -> Mapping[str, Any]:
    """The one row with these fields."""
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


async def forget_admissions(desk: ApiDesk) -> None:
    """As a restarted or promoted server: the data is there, but it may take no order until it was reconciled."""
    await desk.ledger._direct("FUNCTION", "DELETE", "tt_ledger")
    await desk.ledger.install()
