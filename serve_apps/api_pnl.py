"""Profit and loss: of an account, its products and strategies, and of the desk; exact to the last micro."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from cluster.api_keys import READ
from cluster.exposure_figures import AccountFigures, EquityFigures, Position, ProductFigures, StrategyFigures
from cluster.exposures import desk_figures, figures
from cluster.ledger import Snapshot
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_accounts import AccountName, OfAccount, covered, head
from serve_apps.api_figures import (
    DESK_CURRENCY,
    DayView,
    average_price,
    currency_of,
    day_view,
    percent,
    price_fields,
    product_of,
)
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Nanoseconds, Shape, money, quantity
from strategies.model import Product

router = APIRouter(prefix="/v1", tags=["accounts"], route_class=GuardedRoute)


class Earned(Shape):
    """What was earned since the books were opened."""

    realised: Decimals = Field(description="of what was closed, before fees")
    unrealised: Decimals | None = Field(description="what closing at the middle would add; null without a price")
    fees: Decimals
    net: Decimals | None = Field(description="realised and unrealised less fees; null without a price")


class PositionPnl(Earned):
    """What one position has earned."""

    product_id: str = Field(examples=["BTC-USD"])
    position: Decimals = Field(description="base currency units, negative is short")
    average_price: Decimals | None = Field(description="what the position cost a unit; null without a position")
    value: Decimals | None = Field(description="signed, at the middle of bid and ask; null without a price")


class ProductPnl(PositionPnl):
    """What one product has earned in the account, and the price it is marked at."""

    mid_price: Decimals | None
    price_age_ms: Milliseconds | None
    price_fresh: bool
    day: DayView


class StrategyPnl(Earned):
    """What one strategy has earned with its own positions."""

    strategy: str = Field(examples=["sma_cross"])
    peak: Decimals = Field(description="its highest net profit, at least 0")
    drawdown_percent: Decimals | None = Field(description="fall from capital and peak; null without a capital")
    loss_streak: int = Field(ge=0, description="losing exits in a row")
    day: DayView
    positions: list[PositionPnl] = Field(description="every product it ever held")


class _Equity(Shape):
    equity: Decimals | None = Field(description="cash and the value of all positions; null without a price")
    peak: Decimals = Field(description="the highest equity seen")
    drawdown: Decimals | None = Field(description="what the equity has fallen from its peak")
    drawdown_percent: Decimals | None
    day: DayView


class Pnl(OfAccount, Earned, _Equity):
    """Profit and loss of an account since its books were opened."""

    currency: str = Field(examples=["USD"])
    prices_fresh: bool = Field(description="whether every held product has a price young enough to trade on")
    products: list[ProductPnl]
    strategies: list[StrategyPnl]


class DeskEquity(_Equity):
    """The desk as a whole, as its own limits are compared with."""

    net: Decimals = Field(description="realised and unrealised less fees of all accounts")


class DeskPnl(Shape):
    """Profit and loss of every account a key covers, their sums, and the desk."""

    data_source: str
    as_of_ns: Nanoseconds = Field(description="the ledger's time of the desk's own figures")
    currency: str = Field(examples=["USD"])
    totals: Earned = Field(description="sums over the accounts listed, each at its own instant")
    desk: DeskEquity | None = Field(description="null: the key does not cover every account")
    accounts: list[Pnl]


@router.get("/accounts/{account}/pnl", responses=problems(404))
async def show_pnl(desk: TheDesk, key: Reader, account: AccountName) -> Pnl:
    """Average price, realised and unrealised profit and fees by product and strategy, their totals, and the day's."""
    snapshot = await account_snapshot(desk, key, account)
    return _pnl(desk, account, snapshot, figures(snapshot), await desk.ledger.products())


@router.get("/pnl", responses=problems())
async def show_desk_pnl(desk: TheDesk, key: Reader) -> DeskPnl:
    """The same for every account the key covers, with the sums, and the desk's own for a key that covers them all."""
    (whole, snapshots), products = await asyncio.gather(covered(desk, key), desk.ledger.products())
    found = {name: figures(snapshot) for name, snapshot in snapshots.items()}
    return DeskPnl(
        data_source=desk.settings.data_source,
        as_of_ns=whole.now_ms * 1_000_000,
        currency=next((currency_of(one, products) for one in found.values()), DESK_CURRENCY),
        totals=_totals(list(found.values())),
        desk=_desk(desk_figures(whole)) if key.may_everywhere(READ) else None,
        accounts=[_pnl(desk, name, snapshots[name], one, products) for name, one in found.items()],
    )


def _pnl(desk: Desk, account: str, snapshot: Snapshot, found: AccountFigures, products: Mapping[str, Product]) -> Pnl:
    return Pnl(
        **head(desk, account, snapshot),
        currency=currency_of(found, products),
        prices_fresh=found.prices_fresh,
        products=[_product(item, product_of(item.product_id, products)) for item in found.products],
        strategies=[_strategy(item, products) for item in found.strategies],
        **_earned(found.realised, found.unrealised, found.fees, found.priced),
        **_equity(found, known=found.cash is not None and found.priced),
    )


def _totals(found: list[AccountFigures]) -> Earned:
    realised, fees = sum(one.realised for one in found), sum(one.fees for one in found)
    unrealised, priced = sum(one.unrealised for one in found), all(one.priced for one in found)
    return Earned(**_earned(realised, unrealised, fees, priced))


def _desk(found: EquityFigures) -> DeskEquity:
    return DeskEquity(net=money(found.pnl), **_equity(found, known=True))


def _product(item: ProductFigures, product: Product) -> ProductPnl:
    return ProductPnl(
        **_position(item.product_id, item.position, product),
        **price_fields(item.position.reference, product),
        day=day_view(item.day),
    )


def _strategy(item: StrategyFigures, products: Mapping[str, Product]) -> StrategyPnl:
    return StrategyPnl(
        strategy=item.name,
        **_earned(item.realised, item.unrealised, item.fees, item.priced),
        peak=money(item.peak),
        drawdown_percent=None if item.drawdown_ppm is None else percent(item.drawdown_ppm),
        loss_streak=item.loss_streak,
        day=day_view(item.day),
        positions=[
            PositionPnl(**_position(name, position, product_of(name, products)))
            for name, position in item.positions.items()
        ],
    )


def _position(product_id: str, position: Position, product: Product) -> dict[str, Any]:
    return {
        "product_id": product_id,
        "position": quantity(product, position.lots),
        "average_price": average_price(position, product),
        "value": money(position.value) if position.priced else None,
        **_earned(position.realised, position.unrealised, position.fees, position.priced),
    }


def _earned(realised: int, unrealised: int, fees: int, priced: bool) -> dict[str, str | None]:
    return {
        "realised": money(realised),
        "unrealised": money(unrealised) if priced else None,
        "fees": money(fees),
        "net": money(realised + unrealised - fees) if priced else None,
    }


def _equity(found: EquityFigures, *, known: bool) -> dict[str, Any]:
    return {
        "equity": money(found.equity) if known else None,
        "peak": money(found.peak),
        "drawdown": money(found.drawdown) if known else None,
        "drawdown_percent": percent(found.drawdown_ppm) if known else None,
        "day": day_view(found.day),
    }
