"""Accounts: what they hold, what they have earned, and the proof of the books."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from cluster.api_keys import READ
from cluster.exposures import AccountFigures, ProductFigures, figures
from cluster.ledger import LedgerError, Snapshot
from conf.settings import SIMULATED
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Nanoseconds, Shape, middle, money, money_or_none, quantity
from serve_apps.problem import Problem
from strategies.model import Product, units

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/accounts", tags=["accounts"], route_class=GuardedRoute)

AccountName = Annotated[str, Path(description="an account's name", examples=["main"])]


class OfAccount(Shape):
    """What every answer about one account says first."""

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


class AccountView(OfAccount):
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


class ProductPnl(Shape):
    """What one product has earned, before fees unless said."""

    product_id: str = Field(examples=["BTC-USD"])
    position: Decimals
    average_price: Decimals | None = Field(description="what the position cost a unit; null without a position")
    realised: Decimals
    unrealised: Decimals | None = Field(description="what closing at the middle would add; null without a price")
    fees: Decimals
    mid_price: Decimals | None
    price_age_ms: Milliseconds | None
    price_fresh: bool


class Pnl(OfAccount):
    """Profit and loss of an account since its books were opened."""

    currency: str = Field(examples=["USD"])
    products: list[ProductPnl]
    realised: Decimals
    unrealised: Decimals | None
    fees: Decimals
    net: Decimals | None = Field(description="realised and unrealised less fees")


class DifferenceView(Shape):
    """One figure of the books that does not add up, in the ledger's integers."""

    figure: str = Field(examples=["p|BTC-USD|buy_lots"])
    booked: int
    computed: int


class Verification(Shape):
    """The proof of the books: reservations summed afresh, cash and positions replayed from the audit stream."""

    account: str = Field(examples=["main"])
    ok: bool
    differences: list[DifferenceView] = Field(description="none is the proof")
    problem: str | None = Field(description="why the audit stream could not be replayed at all")


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


@router.get("/{account}/pnl", responses=problems(404))
async def show_pnl(desk: TheDesk, key: Reader, account: AccountName) -> Pnl:
    """Average price, realised and unrealised profit and fees by product, and their totals."""
    snapshot = await account_snapshot(desk, key, account)
    products = await desk.ledger.products()
    found = figures(snapshot)
    unrealised = found.unrealised
    return Pnl(
        **head(desk, account, snapshot),
        currency=currency_of(found, products),
        products=[_pnl(item, product_of(item.product_id, products)) for item in found.products],
        realised=money(found.realised),
        unrealised=money_or_none(unrealised),
        fees=money(found.fees),
        net=money_or_none(None if unrealised is None else found.realised + unrealised - found.fees),
    )


@router.get("/{account}/verify", responses=problems(404))
async def verify(desk: TheDesk, key: Reader, account: AccountName) -> Verification:
    """Prove the books now: the same as `desk risk verify`. The answer is 200 also where they do not add up."""
    await account_snapshot(desk, key, account)
    try:
        differences = await desk.ledger.verify(account)
    except LedgerError as error:
        logger.error("books of %s: %s", account, error)  # noqa: TRY400 -- the text says it all
        problem = "the audit stream cannot be replayed; an entry is missing or damaged"
        return Verification(account=account, ok=False, differences=[], problem=problem)
    views = [DifferenceView(figure=d.what, booked=d.booked, computed=d.computed) for d in differences]
    return Verification(account=account, ok=not views, differences=views, problem=None)


def _account(desk: Desk, account: str, snapshot: Snapshot, products: Mapping[str, Product]) -> AccountView:
    found = figures(snapshot)
    return AccountView(
        **head(desk, account, snapshot),
        currency=currency_of(found, products),
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


def head(desk: Desk, account: str, snapshot: Snapshot) -> dict[str, Any]:
    """The fields of ``OfAccount``."""
    return {"account": account, "data_source": desk.settings.data_source, "as_of_ns": snapshot.now_ms * 1_000_000}


def currency_of(found: AccountFigures, products: Mapping[str, Product]) -> str:
    """The quote currency of the account's products: the ledger keeps one."""
    known = [products[item.product_id].quote_currency for item in found.products if item.product_id in products]
    return known[0] if known else "USD"


def _pnl(item: ProductFigures, product: Product) -> ProductPnl:
    return ProductPnl(
        product_id=item.product_id,
        position=quantity(product, item.lots),
        average_price=_average_price(item, product),
        realised=money(item.realised),
        unrealised=money_or_none(item.unrealised),
        fees=money(item.fees),
        **price_of(item, product),
    )


def _average_price(item: ProductFigures, product: Product) -> str | None:
    """What a unit of the position cost, to eight decimals: shown, never reckoned with."""
    if not item.lots:
        return None
    text = f"{units(item.cost) / product.quantity(item.lots):.8f}"
    return text.rstrip("0").rstrip(".")


def price_of(item: ProductFigures, product: Product) -> dict[str, Any]:
    """The fields every answer with a price has: the middle, its age and whether it may be traded on."""
    reference = item.reference
    if reference is None:
        return {"mid_price": None, "price_age_ms": None, "price_fresh": False}
    price = middle(product, reference.bid_ticks, reference.ask_ticks)
    return {"mid_price": f"{price:f}", "price_age_ms": reference.age_ms, "price_fresh": reference.fresh}
