"""Figures as the API shows them: a figure beside its limit, a scope's day, a price with its age, shares."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import Field

from cluster import exposure_figures
from cluster.exposure_figures import PPM, AccountFigures, Position, ReferencePrice, ScopeFigures
from cluster.limit_records import LimitField, kind_of, record_fields
from conf.limits import UNLIMITED, Unit
from serve_apps.api_shapes import Decimals, Shape, middle, money
from serve_apps.problem import Problem
from strategies.model import EXACT, LEDGER_INTEGER_MAX, Product, TradingState, units


class Use(Shape):
    """A figure beside its limit, as orders are compared with it now; a position without a price counts at its cost."""

    value: Decimals | None = Field(description="null: it cannot be told, as a share of no equity")
    limit: Decimals | Literal["unlimited"] | None = Field(description="null: no limit is set, so orders are denied")
    soft: Decimals | None = Field(description="above it an order is warned about; null: never")
    used: float | None = Field(
        ge=0, description="share of the limit in use: 1 is full, and so is a limit of 0", examples=[0.42]
    )
    level: Literal["OK", "SOFT", "HARD"] | None = Field(
        description="SOFT above the soft level, HARD from the limit on; null: no limit is set"
    )
    unit: str = Field(description="a currency, %, x (times), ms, or what is counted", examples=["USD", "orders"])


Uses = dict[str, Use]
"""By the limits' names in limits.yaml."""


class DayView(Shape):
    """What a scope has done since its day began, on the desk's own calendar."""

    orders: int = Field(ge=0, description="accepted")
    messages: int = Field(ge=0, description="orders and cancels")
    fills: int = Field(ge=0)
    turnover: Decimals = Field(description="value of the fills")
    net: Decimals = Field(description="what was earned: realised and unrealised less fees")


class ScopeView(Shape):
    """What every scope puts at risk."""

    state: TradingState | None = Field(description="null: this scope has none of its own")
    cause: str | None = Field(
        description="the rule that tripped it; null: a person, or nothing", examples=["DAILY_LOSS"]
    )
    gross: Decimals = Field(description="absolute values of the positions, rounded up, as limits count them")
    reserved_notional: Decimals = Field(description="value of the open orders as reserved")
    open_buy_notional: Decimals
    open_sell_notional: Decimals
    day: DayView
    uses: Uses = Field(description="every figure that is compared with a limit, by the limit's name in limits.yaml")


def scope_fields(found: ScopeFigures, product: Product | None, currency: str) -> dict[str, Any]:
    """The fields of ``ScopeView``."""
    return {
        "state": found.state,
        "cause": found.cause,
        "gross": money(found.gross),
        "reserved_notional": money(found.open_notional),
        "open_buy_notional": money(found.buy_notional),
        "open_sell_notional": money(found.sell_notional),
        "day": day_view(found.day),
        "uses": {
            record_fields(kind_of(found.scope))[name].name: use_of(found, name, product, currency)
            for name in found.uses
        },
    }


def day_view(day: exposure_figures.Day) -> DayView:
    """A day's figures in currency units."""
    turnover, net = money(day.turnover), money(day.pnl)
    return DayView(orders=day.orders, messages=day.messages, fills=day.fills, turnover=turnover, net=net)


def use_of(found: ScopeFigures, name: str, product: Product | None, currency: str) -> Use:
    """One of a scope's figures beside its limit; ``name`` as in the scope's record."""
    return use_view(record_fields(kind_of(found.scope))[name], found.uses[name], product, currency)


def use_view(field: LimitField, use: exposure_figures.Use, product: Product | None, currency: str) -> Use:
    """A figure and its limit in people's units; quantities stay lots where the product is not known."""
    return Use(
        value=None if use.value >= LEDGER_INTEGER_MAX else _shown(field, use.value, product),
        limit=_shown(field, use.hard, product) if isinstance(use.hard, int) else UNLIMITED if use.hard else None,
        soft=None if use.soft is None else _shown(field, use.soft, product),
        used=use.share,
        level=use.level,
        unit=_unit(field, product, currency),
    )


def percent(ppm: int) -> str:
    """Parts per million as per cent in text."""
    return _plain(Decimal(ppm) / (PPM // 100))


def multiple(ppm: int) -> str:
    """Parts per million as a multiple in text."""
    return _plain(Decimal(ppm) / PPM)


def average_price(position: Position, product: Product) -> str | None:
    """What a unit of the position cost, to eight decimals: shown, never reckoned with. None without a position."""
    if not position.lots:
        return None
    text = f"{units(position.cost) / product.quantity(position.lots):.8f}"
    return text.rstrip("0").rstrip(".")


def price_fields(reference: ReferencePrice | None, product: Product) -> dict[str, Any]:
    """The fields every answer with a price has: the middle, its age and whether it may be traded on."""
    if reference is None:
        return {"mid_price": None, "price_age_ms": None, "price_fresh": False}
    price = middle(product, reference.bid_ticks, reference.ask_ticks)
    return {"mid_price": f"{price:f}", "price_age_ms": reference.age_ms, "price_fresh": reference.fresh}


def product_of(product_id: str, products: Mapping[str, Product]) -> Product:
    """The product as the venue describes it; 503 while execution has not published it."""
    product = products.get(product_id)
    if product is None:
        raise Problem(503, "NOT_READY", f"product {product_id} is not known yet; execution publishes the products")
    return product


def currency_of(found: AccountFigures, products: Mapping[str, Product]) -> str:
    """The quote currency of the account's products: the ledger keeps one."""
    known = [products[item.product_id].quote_currency for item in found.products if item.product_id in products]
    return known[0] if known else DESK_CURRENCY


DESK_CURRENCY: Final = "USD"

_COUNTED: Final = {
    "message_burst": "messages",
    "max_order_to_trade": "messages per fill",
    "max_rejects": "rejections",
    "max_venue_errors": "errors",
    "max_loss_streak": "losing exits",
}


def _shown(field: LimitField, amount: int, product: Product | None) -> str:
    match field.unit:
        case Unit.MONEY:
            return money(amount)
        case Unit.QUANTITY if product is not None:
            return f"{product.quantity(amount):f}"
        case Unit.PERCENT:
            return percent(amount)
        case Unit.BPS:
            return percent(amount * 100)
        case Unit.MULTIPLE:
            return multiple(amount)
        case _:
            return str(amount)


def _unit(field: LimitField, product: Product | None, currency: str) -> str:
    match field.unit:
        case Unit.MONEY:
            return currency
        case Unit.QUANTITY:
            return product.base_currency if product is not None else "lots"
        case Unit.COUNT | Unit.RATIO:
            return _COUNTED.get(field.name, "orders")
        case _:
            return field.unit.value


def _plain(value: Decimal) -> str:
    return f"{value.normalize(EXACT):f}"
