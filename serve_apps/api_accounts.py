"""Accounts: what they hold and are worth, and the proof of the books."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field

from cluster import audit
from cluster.api_keys import READ, ApiKey
from cluster.audit_log import AuditMoved
from cluster.exposure_figures import ProductFigures
from cluster.exposures import figures
from cluster.ledger import LedgerError, Snapshot
from conf.settings import SIMULATED
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_figures import currency_of, product_of
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Nanoseconds, Shape, money, money_or_none, quantity
from strategies.model import Product, TradingState

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
    peak: Decimals = Field(description="the highest equity seen")
    state: TradingState | None = Field(description="of the account itself; null: none is set, so orders are denied")
    admitted: bool = Field(description="false: orders are refused (RECONCILING) until execution has asked the venue")
    prices_fresh: bool = Field(description="whether every held product has a price young enough to trade on")
    positions: list[PositionView] = Field(description="products held; none with quantity 0")


class DifferenceView(Shape):
    """One figure of the books that does not add up, in the ledger's integers."""

    figure: str = Field(examples=["p|BTC-USD|buy_lots"])
    booked: int
    computed: int


class Verification(Shape):
    """The proof of the books: reservations summed afresh, everything replayed from the audit log."""

    account: str = Field(examples=["main"])
    ok: bool
    differences: list[DifferenceView] = Field(description="none is the proof")
    problem: str | None = Field(description="why the audit log could not be replayed at all")


class Accounts(Shape):
    """The accounts a key covers."""

    accounts: list[AccountView]


@router.get("", responses=problems())
async def list_accounts(desk: TheDesk, key: Reader) -> Accounts:
    """Every account the key covers."""
    _, snapshots = await covered(desk, key)
    products = await desk.ledger.products()
    return Accounts(accounts=[_account(desk, name, one, products) for name, one in snapshots.items()])


@router.get("/{account}", responses=problems(404))
async def show_account(desk: TheDesk, key: Reader, account: AccountName) -> AccountView:
    """Cash, positions, open orders, fees and equity of one account."""
    snapshot = await account_snapshot(desk, key, account)
    return _account(desk, account, snapshot, await desk.ledger.products())


@router.get("/{account}/verify", responses=problems(404))
async def verify(desk: TheDesk, key: Reader, account: AccountName) -> Verification:
    """Prove the books now: the same as `desk risk verify`. The answer is 200 also where they do not add up."""
    await account_snapshot(desk, key, account)
    try:
        differences = await audit.verify(desk.ledger, account, audit.audit_folder(desk.settings))
    except (LedgerError, AuditMoved) as error:
        logger.error("books of %s: %s", account, error)  # noqa: TRY400 -- the text says it all
        problem = "the audit log cannot be replayed; an entry is missing or damaged, or entries keep being archived"
        return Verification(account=account, ok=False, differences=[], problem=problem)
    views = [DifferenceView(figure=d.what, booked=d.booked, computed=d.computed) for d in differences]
    return Verification(account=account, ok=not views, differences=views, problem=None)


def _account(desk: Desk, account: str, snapshot: Snapshot, products: Mapping[str, Product]) -> AccountView:
    found = figures(snapshot)
    held = [item for item in found.products if item.position.lots]
    return AccountView(
        **head(desk, account, snapshot),
        currency=currency_of(found, products),
        cash=money_or_none(found.cash),
        reserved_cash=money(found.reserved),
        free_cash=money_or_none(found.free),
        open_orders=found.open_orders,
        fees=money(found.fees),
        equity=money(found.equity) if found.cash is not None and found.priced else None,
        peak=money(found.peak),
        state=found.state,
        admitted=snapshot.admitted,
        prices_fresh=found.prices_fresh,
        positions=[_position(item, product_of(item.product_id, products)) for item in held],
    )


def _position(item: ProductFigures, product: Product) -> PositionView:
    position = item.position
    return PositionView(
        product_id=item.product_id,
        quantity=quantity(product, position.lots),
        currency=product.base_currency,
        value=money(position.value) if position.priced else None,
        price_age_ms=position.reference.age_ms if position.reference else None,
    )


async def covered(desk: Desk, key: ApiKey) -> tuple[Snapshot, dict[str, Snapshot]]:
    """The desk, and every account the key may read, by name; each at an instant of its own."""
    names = [name for name in await desk.ledger.accounts() if key.may(READ, name)]
    whole, *snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in (None, *names)))
    return whole, dict(zip(names, snapshots, strict=True))


def head(desk: Desk, account: str, snapshot: Snapshot) -> dict[str, Any]:
    """The fields of ``OfAccount``."""
    return {"account": account, "data_source": desk.settings.data_source, "as_of_ns": snapshot.now_ms * 1_000_000}
