"""Exposures and limits: what the desk and its accounts put at risk, each figure beside the limit it meets."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, Literal

from fastapi import APIRouter
from pydantic import Field

from cluster.api_keys import READ
from cluster.exposure_figures import AccountFigures, EquityFigures, ProductFigures, ScopeFigures, StrategyFigures
from cluster.exposures import desk_figures, figures
from cluster.ledger import Snapshot
from cluster.limit_records import CALENDAR, VERSION, LimitError, kind_of, record_fields, shown
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_accounts import AccountName, OfAccount, covered, head
from serve_apps.api_figures import (
    DESK_CURRENCY,
    ScopeView,
    Use,
    average_price,
    currency_of,
    multiple,
    percent,
    price_fields,
    product_of,
    scope_fields,
    use_of,
    use_view,
)
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Nanoseconds, Shape, money, money_or_none, quantity
from strategies.model import LEDGER_INTEGER_MAX, Product

router = APIRouter(prefix="/v1", tags=["accounts"], route_class=GuardedRoute)


class ProductExposure(ScopeView):
    """What one product puts at risk. ``position_use`` counts the open orders of the worse side as filled."""

    product_id: str = Field(examples=["BTC-USD"])
    currency: str = Field(description="the base currency, unit of the quantities", examples=["BTC"])
    position: Decimals
    average_price: Decimals | None = Field(description="what the position cost a unit; null without a position")
    open_buys: Decimals = Field(description="bought if every open order were filled")
    open_sells: Decimals
    mid_price: Decimals | None = Field(description="middle of the reference bid and ask; null without one")
    price_age_ms: Milliseconds | None
    price_fresh: bool
    volatile_ms: Milliseconds = Field(description="how long only reducing orders are taken after a fast move")
    value: Decimals | None = Field(description="signed value of the position at the middle")
    concentration_percent: Decimals | None = Field(description="gross and open orders in the equity; null without one")
    position_use: Use
    open_orders_use: Use


class StrategyExposure(ScopeView):
    """What one strategy puts at risk with its own positions."""

    strategy: str = Field(examples=["sma_cross"])
    positions: dict[str, Decimals] = Field(description="base currency units by product", examples=[{"BTC-USD": "0.1"}])
    position_uses: dict[str, Use] = Field(description="by product, beside its max_strategy_position")
    net: Decimals | None = Field(description="signed value of its positions")
    gross_use: Use
    open_orders_use: Use


class NamedExposure(ScopeView):
    """What an API key has open, or a group of products puts at risk."""

    name: str = Field(description="the key's id, or the group", examples=["majors"])


class _Whole(ScopeView):
    net: Decimals | None = Field(description="signed value of all positions; null without a price")
    equity: Decimals | None = Field(description="cash and the value of all positions; null without a price")
    peak: Decimals = Field(description="the highest equity seen")
    drawdown_percent: Decimals | None = Field(description="fall of the equity from its peak")
    leverage: Decimals | None = Field(description="gross and open orders, in equities; null without an equity")
    gross_use: Use = Field(description="absolute values of positions and the notional of open orders")
    open_orders_use: Use


class Exposures(OfAccount, _Whole):
    """What an account puts at risk, each figure beside its limit."""

    currency: str = Field(examples=["USD"])
    prices_fresh: bool = Field(description="false: values stand on old prices, and orders are denied for it")
    admitted: bool = Field(description="false: orders are refused (RECONCILING) until execution has asked the venue")
    products: list[ProductExposure]
    strategies: list[StrategyExposure]
    keys: list[NamedExposure]
    groups: list[NamedExposure]


class DeskWhole(_Whole):
    """The desk as a whole, as its own limits are compared with."""


class DeskExposures(Shape):
    """What every account a key covers puts at risk, and the desk."""

    data_source: str
    as_of_ns: Nanoseconds = Field(description="the ledger's time of the desk's own figures")
    currency: str = Field(examples=["USD"])
    desk: DeskWhole | None = Field(description="null: the key does not cover every account")
    accounts: list[Exposures]


class LimitView(Shape):
    """One limit."""

    scope: Literal["global", "account", "strategy", "product", "key", "group"]
    name: str | None = Field(description="the strategy, product, key or group", examples=["BTC-USD"])
    limit: str = Field(description="named as in limits.yaml", examples=["max_position"])
    value: str = Field(description="a decimal, a word, hours, versions, or unlimited", examples=["5"])
    soft: str | None = Field(description="above it an order is warned about; null: never")
    unit: str = Field(description='"" of a count or a word', examples=["BTC"])


class Limits(Shape):
    """Every limit of an account and of the desk, as orders are checked against now."""

    account: str = Field(examples=["main"])
    version: int = Field(description="of the account's; grows with every change")
    desk_version: int = Field(description="of the desk's own, scope global")
    calendar: str | None = Field(description="the time zone days and hours are of; null: none is set, UTC is used")
    unreadable: list[str] = Field(description="scopes whose record cannot be read: their orders are denied")
    limits: list[LimitView]


@router.get("/accounts/{account}/exposures", responses=problems(404))
async def show_exposures(desk: TheDesk, key: Reader, account: AccountName) -> Exposures:
    """Positions and open orders by product and strategy, gross and net, each beside its limit."""
    snapshot = await account_snapshot(desk, key, account)
    return _exposures(desk, account, snapshot, figures(snapshot), await desk.ledger.products())


@router.get("/exposures", responses=problems())
async def show_desk_exposures(desk: TheDesk, key: Reader) -> DeskExposures:
    """The same for every account the key covers, and the desk's own for a key that covers them all."""
    (whole, snapshots), products = await asyncio.gather(covered(desk, key), desk.ledger.products())
    found = {name: figures(snapshot) for name, snapshot in snapshots.items()}
    currency = next((currency_of(one, products) for one in found.values()), DESK_CURRENCY)
    return DeskExposures(
        data_source=desk.settings.data_source,
        as_of_ns=whole.now_ms * 1_000_000,
        currency=currency,
        desk=DeskWhole(**_whole(desk_figures(whole), currency, known=True)) if key.may_everywhere(READ) else None,
        accounts=[_exposures(desk, name, snapshots[name], one, products) for name, one in found.items()],
    )


@router.get("/accounts/{account}/limits", responses=problems(404))
async def show_limits(desk: TheDesk, key: Reader, account: AccountName) -> Limits:
    """Every limit with its soft level and unit, and the versions they stand at."""
    snapshot = await account_snapshot(desk, key, account)
    products = await desk.ledger.products()
    currency = currency_of(figures(snapshot), products)
    views: list[LimitView] = []
    unreadable: list[str] = []
    records = {**snapshot.desk_limits, **snapshot.limits}
    for scope, text in sorted(records.items(), key=_place):
        if scope in _NO_RECORDS:
            continue
        try:
            views += _limits(scope, text, products, currency)
        except LimitError:
            unreadable.append(scope)
    return Limits(
        account=account,
        version=int(snapshot.limits.get(VERSION, "0")),
        desk_version=int(snapshot.desk_limits.get(VERSION, "0")),
        calendar=snapshot.limits.get(CALENDAR, "").partition(" ")[0] or None,
        unreadable=unreadable,
        limits=views,
    )


def _exposures(
    desk: Desk, account: str, snapshot: Snapshot, found: AccountFigures, products: Mapping[str, Product]
) -> Exposures:
    currency = currency_of(found, products)
    return Exposures(
        **head(desk, account, snapshot),
        **_whole(found, currency, known=found.priced),
        currency=currency,
        prices_fresh=found.prices_fresh,
        admitted=snapshot.admitted,
        products=[_product(item, product_of(item.product_id, products), currency) for item in found.products],
        strategies=[_strategy(item, products, currency) for item in found.strategies],
        keys=[_named(item, currency) for item in found.keys],
        groups=[_named(item, currency) for item in found.groups],
    )


def _whole(found: EquityFigures, currency: str, *, known: bool) -> dict[str, Any]:
    """The fields of ``_Whole``; ``known`` is whether every position stands on a price."""
    opened = not isinstance(found, AccountFigures) or found.cash is not None
    leverage = found.leverage_ppm if known and opened else LEDGER_INTEGER_MAX
    return {
        **scope_fields(found, None, currency),
        "net": money(found.value) if known else None,
        "equity": money(found.equity) if known and opened else None,
        "peak": money(found.peak),
        "drawdown_percent": percent(found.drawdown_ppm) if known and opened else None,
        "leverage": multiple(leverage) if leverage < LEDGER_INTEGER_MAX else None,
        "gross_use": use_of(found, "max_gross_exposure", None, currency),
        "open_orders_use": use_of(found, "max_open_orders", None, currency),
    }


def _product(item: ProductFigures, product: Product, currency: str) -> ProductExposure:
    position, share = item.position, item.concentration_ppm
    return ProductExposure(
        **scope_fields(item, product, currency),
        product_id=item.product_id,
        currency=product.base_currency,
        position=quantity(product, position.lots),
        average_price=average_price(position, product),
        open_buys=quantity(product, position.buy_lots),
        open_sells=quantity(product, position.sell_lots),
        **price_fields(position.reference, product),
        volatile_ms=position.reference.volatile_ms if position.reference else 0,
        value=money_or_none(position.value if position.reference else None),
        concentration_percent=percent(share) if share < LEDGER_INTEGER_MAX else None,
        position_use=use_of(item, "max_position_lots", product, currency),
        open_orders_use=use_of(item, "max_open_orders", product, currency),
    )


def _strategy(item: StrategyFigures, products: Mapping[str, Product], currency: str) -> StrategyExposure:
    own = record_fields("product")["max_strategy_position_lots"]
    held = {name: position for name, position in item.positions.items() if position.lots}
    return StrategyExposure(
        **scope_fields(item, None, currency),
        strategy=item.name,
        positions={name: quantity(product_of(name, products), position.lots) for name, position in held.items()},
        position_uses={
            name: use_view(own, use, product_of(name, products), currency) for name, use in item.position_uses.items()
        },
        net=money(item.value) if item.priced else None,
        gross_use=use_of(item, "max_gross_exposure", None, currency),
        open_orders_use=use_of(item, "max_open_orders", None, currency),
    )


def _named(item: ScopeFigures, currency: str) -> NamedExposure:
    return NamedExposure(name=item.scope.partition("|")[2], **scope_fields(item, None, currency))


_KINDS: Final = ("global", "account", "strategy", "product", "key", "group")
_NO_RECORDS: Final = (CALENDAR, VERSION, "baseline")


def _place(pair: tuple[str, str]) -> tuple[int, str]:
    kind, _, name = pair[0].partition("|")
    return (_KINDS.index(kind) if kind in _KINDS else len(_KINDS), name)


def _limits(scope: str, text: str, products: Mapping[str, Product], currency: str) -> list[LimitView]:
    """The limits of one record in the words and units of limits.yaml."""
    kind: Any = kind_of(scope)
    name = scope.partition("|")[2] or None
    product = product_of(name, products) if kind == "product" and name else None
    return [
        LimitView(scope=kind, name=name, limit=one.name, value=one.hard, soft=one.soft, unit=one.unit)
        for one in shown(scope, text, product, currency)
    ]
