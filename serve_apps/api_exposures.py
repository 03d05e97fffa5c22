"""Exposures and limits: what an account puts at risk, each figure beside the limit it is checked against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, Literal

from fastapi import APIRouter
from pydantic import Field

from cluster.exposures import UNLIMITED, ProductFigures, StrategyFigures, figures
from serve_apps.api_access import GuardedRoute, Reader, TheDesk, account_snapshot
from serve_apps.api_accounts import AccountName, OfAccount, currency_of, head, price_of, product_of
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Milliseconds, Shape, money, money_or_none, quantity
from strategies.model import Product, units

router = APIRouter(prefix="/v1/accounts", tags=["accounts"], route_class=GuardedRoute)


class Use(Shape):
    """A figure beside its limit."""

    value: Decimals | None = Field(description="null: it cannot be told without a price")
    limit: Decimals | Literal["unlimited"] | None = Field(description="null: no limit is set, so orders are denied")
    used: float | None = Field(
        ge=0, description="share of the limit in use: 1 is full, and so is a limit of 0", examples=[0.42]
    )
    unit: str = Field(description="a currency, or orders", examples=["USD"])


class ProductExposure(Shape):
    """What one product puts at risk. ``position_use`` counts the open orders of the worse side as filled."""

    product_id: str = Field(examples=["BTC-USD"])
    currency: str = Field(description="the base currency, unit of the quantities", examples=["BTC"])
    position: Decimals
    open_buys: Decimals = Field(description="bought if every open order were filled")
    open_sells: Decimals
    reserved_notional: Decimals = Field(description="value of the open orders as reserved")
    mid_price: Decimals | None = Field(description="middle of the reference bid and ask; null without one")
    price_age_ms: Milliseconds | None
    price_fresh: bool
    value: Decimals | None = Field(description="signed value of the position at the middle")
    position_use: Use
    open_orders_use: Use


class StrategyExposure(Shape):
    """What one strategy puts at risk."""

    strategy: str = Field(examples=["sma_cross"])
    positions: dict[str, Decimals] = Field(description="base currency units by product", examples=[{"BTC-USD": "0.1"}])
    reserved_notional: Decimals
    net: Decimals | None = Field(description="signed value of its positions")
    gross_use: Use
    open_orders_use: Use


class Exposures(OfAccount):
    """What an account puts at risk, each figure beside its limit."""

    currency: str = Field(examples=["USD"])
    prices_fresh: bool = Field(description="false: values stand on old prices, and orders are denied for it")
    net: Decimals | None = Field(description="signed value of all positions")
    reserved_notional: Decimals
    gross_use: Use = Field(description="absolute values of positions and the notional of open orders")
    open_orders_use: Use
    products: list[ProductExposure]
    strategies: list[StrategyExposure]


class LimitView(Shape):
    """One limit."""

    scope: Literal["account", "strategy", "product"]
    name: str | None = Field(description="the strategy or product", examples=["BTC-USD"])
    limit: str = Field(description="named as in limits.yaml", examples=["max_position"])
    value: Decimals | Literal["unlimited"]
    unit: str = Field(examples=["BTC"])


class Limits(Shape):
    """Every limit of an account, as orders are checked against now."""

    account: str = Field(examples=["main"])
    version: int = Field(description="grows with every change")
    limits: list[LimitView]


@router.get("/{account}/exposures", responses=problems(404))
async def show_exposures(desk: TheDesk, key: Reader, account: AccountName) -> Exposures:
    """Positions and open orders by product and strategy, gross and net, each beside its limit."""
    snapshot = await account_snapshot(desk, key, account)
    products = await desk.ledger.products()
    found = figures(snapshot)
    limits = _LimitReader(snapshot.limits, currency_of(found, products))
    return Exposures(
        **head(desk, account, snapshot),
        currency=limits.currency,
        prices_fresh=found.prices_fresh,
        net=money_or_none(found.net),
        reserved_notional=money(found.open_notional),
        gross_use=limits.money_use("account|max_gross_exposure", found.gross),
        open_orders_use=limits.count_use("account|max_open_orders", found.open_orders),
        products=[_exposure(item, product_of(item.product_id, products), limits) for item in found.products],
        strategies=[_strategy_exposure(item, products, limits) for item in found.strategies],
    )


@router.get("/{account}/limits", responses=problems(404))
async def show_limits(desk: TheDesk, key: Reader, account: AccountName) -> Limits:
    """Every limit with its unit, and the version they stand at."""
    snapshot = await account_snapshot(desk, key, account)
    products = await desk.ledger.products()
    currency = currency_of(figures(snapshot), products)
    fields = {name: value for name, value in snapshot.limits.items() if name != "version"}
    views = [_limit(name, value, products, currency) for name, value in fields.items()]
    views.sort(key=lambda view: (_SCOPES.index(view.scope), view.name or "", view.limit))
    return Limits(account=account, version=int(snapshot.limits.get("version", "0")), limits=views)


@dataclass(frozen=True)
class _LimitReader:
    """Figures beside the limits of one snapshot."""

    limits: Mapping[str, str]
    currency: str

    def money_use(self, field: str, value: int | None) -> Use:
        """An amount in micros."""
        return self._use(field, value, units, self.currency)

    def count_use(self, field: str, value: int) -> Use:
        """A number of orders."""
        return self._use(field, value, Decimal, "orders")

    def lots_use(self, field: str, value: int, product: Product) -> Use:
        """A number of the product's lots."""
        return self._use(field, value, product.quantity, product.base_currency)

    def _use(self, field: str, value: int | None, shown: Callable[[int], Decimal], unit: str) -> Use:
        limit = self.limits.get(field)
        text = None if value is None else f"{shown(value):f}"
        if limit is None or limit == UNLIMITED:
            return Use(value=text, limit=UNLIMITED if limit else None, used=None, unit=unit)
        bound = int(limit)
        share = None if value is None else round(max(0, value) / bound, 6) if bound else 1.0
        return Use(value=text, limit=f"{shown(bound):f}", used=share, unit=unit)


def _exposure(item: ProductFigures, product: Product, limits: _LimitReader) -> ProductExposure:
    scope, reference = f"product|{item.product_id}", item.reference
    return ProductExposure(
        product_id=item.product_id,
        currency=product.base_currency,
        position=quantity(product, item.lots),
        open_buys=quantity(product, item.buy_lots),
        open_sells=quantity(product, item.sell_lots),
        reserved_notional=money(item.open_notional),
        **price_of(item, product),
        value=money_or_none(item.value) if reference else None,
        position_use=limits.lots_use(f"{scope}|max_position", item.worst_lots, product),
        open_orders_use=limits.count_use(f"{scope}|max_open_orders", item.open_orders),
    )


def _strategy_exposure(
    item: StrategyFigures, products: Mapping[str, Product], limits: _LimitReader
) -> StrategyExposure:
    scope = f"strategy|{item.name}"
    return StrategyExposure(
        strategy=item.name,
        positions={name: quantity(product_of(name, products), lots) for name, lots in item.lots.items()},
        reserved_notional=money(item.open_notional),
        net=money_or_none(item.net),
        gross_use=limits.money_use(f"{scope}|max_gross_exposure", item.gross),
        open_orders_use=limits.count_use(f"{scope}|max_open_orders", item.open_orders),
    )


_SCOPES: Final = ("account", "strategy", "product")
_PPM_PER_BPS: Final = 100


def _limit(field: str, value: str, products: Mapping[str, Product], currency: str) -> LimitView:
    """A limit of the ledger in the words and units of limits.yaml."""
    scope, _, rest = field.partition("|")
    name, _, limit = rest.rpartition("|")
    shown: Callable[[int], Decimal]
    match limit:
        case "max_position":
            product = product_of(name, products)
            shown, unit = product.quantity, product.base_currency
        case "max_open_orders" | "order_burst":
            shown, unit = Decimal, "orders"
        case "order_interval_us":
            limit, shown, unit = "order_rate_per_s", _rate, "orders/s"
        case "reference_stale_ms":
            shown, unit = Decimal, "ms"
        case "taker_fee_ppm" | "market_buffer_ppm":
            limit, shown, unit = limit.replace("_ppm", "_bps"), _bps, "bps"
        case _:
            shown, unit = units, currency
    text = UNLIMITED if value == UNLIMITED else f"{shown(int(value)):f}"
    return LimitView(scope=scope, name=name or None, limit=limit, value=text, unit=unit)


def _rate(interval_us: int) -> Decimal:
    return (Decimal(1_000_000) / interval_us).quantize(Decimal("0.000001")).normalize()


def _bps(ppm: int) -> Decimal:
    return Decimal(ppm) / _PPM_PER_BPS
