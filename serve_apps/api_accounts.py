"""Accounts: what they hold, what they risk beside every limit, what they have earned, and the proof of the books."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from cluster.api_keys import READ
from cluster.exposures import AccountFigures, ProductFigures, figures
from cluster.ledger import Snapshot
from conf.settings import SIMULATED
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Nanoseconds, Shape, money, money_or_none, quantity
from serve_apps.problem import Problem
from strategies.model import Product

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/accounts", tags=["accounts"], route_class=GuardedRoute)

AccountName = Annotated[str, Path(description="an account's name", examples=["main"])]


class _OfAccount(Shape):
    account: str = Field(examples=["main"])
    data_source: str = Field(description="SIMULATED, or the venue prices and fills came from", examples=[SIMULATED])
    as_of_ns: Nanoseconds = Field(description="the ledger's time of the figures, exact to a millisecond")


class PositionView(Shape):
    """One position of an account."""

    product_id: str = Field(examples=["BTC-USD"])
    quantity: Decimals = Field(description="base currency units held, negative is short", examples=["0.25"])
    currency: str = Field(description="the base currency", examples=["BTC"])
    value: Decimals | None = Field(description="signed, at the middle of bid and ask; null without a price")
    price_age_ms: Milliseconds | None = Field(description="null: there is no price")


class AccountView(_OfAccount):
    """An account at one instant. Money is in units of ``currency``."""

    currency: str = Field(examples=["USD"])
    cash: Decimals | None = Field(description="null until the books are opened")
    reserved_cash: Decimals = Field(description="held for open buy orders, fees included")
    free_cash: Decimals | None = Field(description="cash less what is reserved")
    open_orders: int = Field(ge=0)
    fees: Decimals = Field(description="paid since the books were opened")
    equity: Decimals | None = Field(description="cash and the value of all positions; null without a price")
    prices_fresh: bool = Field(description="whether every held product has a price young enough to trade on")
    positions: list[PositionView] = Field(description="products held; none with quantity 0")


class Accounts(Shape):
    """The accounts a key covers."""

    accounts: list[AccountView]


@router.get("", responses=problems())
async def list_accounts(desk: TheDesk, key: Reader) -> Accounts:
    """Every account the key covers."""
    names = [name for name in await desk.ledger.accounts() if key.may(READ, name)]
    products = await desk.ledger.products()
    snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in names))
    return Accounts(accounts=[_account(desk, *pair, products) for pair in zip(names, snapshots, strict=True)])


@router.get("/{account}", responses=problems(404))
async def show_account(desk: TheDesk, key: Reader, account: AccountName) -> AccountView:
    """Cash, positions, open orders, fees and equity of one account."""
    snapshot = await account_snapshot(desk, key, account)
    return _account(desk, account, snapshot, await desk.ledger.products())


def _account(desk: Desk, account: str, snapshot: Snapshot, products: Mapping[str, Product]) -> AccountView:
    found = figures(snapshot)
    return AccountView(
        **_head(desk, account, snapshot),
        currency=_currency(found, products),
        cash=money_or_none(found.cash),
        reserved_cash=money(found.reserved),
        free_cash=money_or_none(found.free),
        open_orders=found.open_orders,
        fees=money(found.fees),
        equity=money_or_none(found.equity),
        prices_fresh=found.prices_fresh,
        positions=[_position(item, product_of(item.product_id, products)) for item in found.products if item.lots],
    )


def product_of(product_id: str, products: Mapping[str, Product]) -> Product:
    """The product as the venue describes it; 503 while execution has not published it."""
    product = products.get(product_id)
    if product is None:
        raise Problem(503, "NOT_READY", f"product {product_id} is not known yet; execution publishes the products")
    return product


def _position(item: ProductFigures, product: Product) -> PositionView:
    return PositionView(
        product_id=item.product_id,
        quantity=quantity(product, item.lots),
        currency=product.base_currency,
        value=money_or_none(item.value),
        price_age_ms=item.reference.age_ms if item.reference else None,
    )


def _head(desk: Desk, account: str, snapshot: Snapshot) -> dict[str, Any]:
    return {"account": account, "data_source": desk.settings.data_source, "as_of_ns": snapshot.now_ms * 1_000_000}


def _currency(found: AccountFigures, products: Mapping[str, Product]) -> str:
    """The quote currency of the account's products: the ledger keeps one."""
    known = [products[item.product_id].quote_currency for item in found.products if item.product_id in products]
    return known[0] if known else "USD"
