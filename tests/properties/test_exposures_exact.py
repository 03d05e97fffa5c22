"""Exposures and PnL of generated fills and prices, against sums over the fills alone: exact to the last micro."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.exposure_figures import AccountFigures, EquityFigures, Position
from cluster.exposures import desk_figures, figures
from cluster.ledger import Ledger, Reference
from conf.settings import Settings
from strategies.model import Fill, Side
from tests.books import PRODUCTS, QUOTES, STRATEGIES, limit_records, order
from tests.servers import redis_secrets, valkey

ACCOUNTS: Final = ("main", "second")
CASH: Final = 10**12
SCALES: Final = {"BTC-USD": Fraction(10), "XRP-USD": Fraction(1, 10)}
"""Micros of one lot at one tick, from the products' descriptions."""


@dataclass(frozen=True)
class Trade:
    """An order that is filled in part, and what stays open of it."""

    account: str
    strategy: str
    product: str
    side: Side
    lots: int
    filled: int
    ticks: int
    fee: int


@dataclass(frozen=True)
class Quote:
    """A price for one account."""

    account: str
    product: str
    bid: int
    ask: int


@dataclass
class Told:
    """What has happened, as a list; every figure is summed from it."""

    trades: list[Trade] = field(default_factory=list)
    quotes: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    peaks: dict[str | None, int] = field(default_factory=dict)

    def of(self, account: str, product: str | None = None, strategy: str | None = None) -> list[Trade]:
        """The trades of one scope."""
        return [
            one
            for one in self.trades
            if one.account == account and product in {None, one.product} and strategy in {None, one.strategy}
        ]

    def mark(self) -> None:
        """Peaks are the highest equities there were after anything."""
        equities: dict[str | None, int] = {account: self.equity(account) for account in ACCOUNTS}
        equities[None] = sum(equities.values())
        self.peaks = {name: max(self.peaks.get(name, 0), equity) for name, equity in equities.items()}

    def equity(self, account: str) -> int:
        """Cash after every fill and fee, and every position at the exact middle, rounded down."""
        own = self.of(account)
        return CASH - spent(own) - fees(own) + sum(self.value(account, product) for product in PRODUCTS)

    def value(self, account: str, product: str, strategy: str | None = None) -> int:
        """A position's value."""
        bid, ask = self.quotes[account, product]
        return math.floor(held(self.of(account, product, strategy)) * SCALES[product] * Fraction(bid + ask, 2))

    def gross(self, account: str, product: str, strategy: str | None = None) -> int:
        """Its exposure."""
        bid, ask = self.quotes[account, product]
        lots = abs(held(self.of(account, product, strategy)))
        return math.ceil(lots * SCALES[product] * math.ceil(Fraction(bid + ask, 2)))


def held(trades: list[Trade]) -> int:
    return sum(one.filled if one.side is Side.BUY else -one.filled for one in trades)


def spent(trades: list[Trade]) -> int:
    """Micros paid less micros received, without fees; a fill's value is rounded half-even."""
    values = [round(one.filled * one.ticks * SCALES[one.product]) for one in trades]
    return sum(value if one.side is Side.BUY else -value for one, value in zip(trades, values, strict=True))


def fees(trades: list[Trade]) -> int:
    return sum(one.fee for one in trades)


accounts, products = st.sampled_from(ACCOUNTS), st.sampled_from(list(PRODUCTS))
ticks = st.integers(1, 200_000)
trades = st.builds(
    lambda lots, left, **rest: Trade(lots=lots + left, filled=lots, **rest),
    lots=st.integers(1, 1000),
    left=st.integers(0, 3),
    account=accounts,
    strategy=st.sampled_from(STRATEGIES),
    product=products,
    side=st.sampled_from([Side.BUY, Side.BUY, Side.SELL]),
    ticks=ticks,
    fee=st.integers(0, 5000),
)
quotes = st.builds(
    lambda account, product, bid, spread: Quote(account, product, bid, bid + spread),
    accounts,
    products,
    ticks,
    st.integers(1, 3),
)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, Ledger]]:
    """A real server."""
    folder = tmp_path_factory.mktemp("desk")
    with valkey(folder) as redis, asyncio.Runner() as runner:
        ledger = Ledger.connect(Settings(state_dir=Path(folder), redis=redis), redis_secrets())
        yield runner, ledger
        runner.run(ledger.close())


@given(steps=st.lists(trades | quotes, min_size=1, max_size=12))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_figure_is_the_sum_of_the_fills_at_the_prices(
    desk: tuple[asyncio.Runner, Ledger], steps: list[Trade | Quote]
) -> None:
    runner, ledger = desk
    runner.run(walk(ledger, steps))


async def walk(ledger: Ledger, steps: list[Trade | Quote]) -> None:
    """Let it all happen, and compare at the end."""
    told, epochs = await opened(ledger)
    for number, step in enumerate(steps):
        if isinstance(step, Quote):
            told.quotes[step.account, step.product] = (step.bid, step.ask)
            await quote(ledger, step)
        elif held(told.of(step.account, step.product)) - open_sells(told, step) >= step.lots or step.side is Side.BUY:
            await trade(ledger, epochs[step.account], number, step)
            told.trades.append(step)
        told.mark()
    whole: list[AccountFigures] = []
    for account in ACCOUNTS:
        found = figures(await ledger.snapshot(account))
        compare_account(told, account, found)
        whole.append(found)
    compare_desk(told, whole, desk_figures(await ledger.snapshot(None)))


def open_sells(told: Told, trade: Trade) -> int:
    """What open orders may still sell of the product."""
    own = told.of(trade.account, trade.product)
    return sum(one.lots - one.filled for one in own if one.side is Side.SELL)


async def opened(ledger: Ledger) -> tuple[Told, dict[str, int]]:
    """Two accounts with the same cash, no positions and no limits."""
    await ledger._direct("FLUSHDB")
    await ledger.install()
    told, epochs = Told(), {}
    desk, own = limit_records()
    await ledger.set_limits(None, desk, "test")
    for account in ACCOUNTS:
        await ledger.set_limits(account, own, "test")
        epochs[account] = await ledger.claim(account, "test")
        await ledger.open_account(account, CASH, {}, "test")
        for product, (bid, ask) in QUOTES.items():
            told.quotes[account, product] = (bid, ask)
            await quote(ledger, Quote(account, product, bid, ask))
        await ledger.admit(account, epochs[account])
    told.mark()
    return told, epochs


async def quote(ledger: Ledger, step: Quote) -> None:
    product = PRODUCTS[step.product]
    reference = Reference(product, product.price(step.bid), product.price(step.ask))
    await ledger.set_references(step.account, [reference])


async def trade(ledger: Ledger, epoch: int, number: int, step: Trade) -> None:
    product, name = PRODUCTS[step.product], f"o-{number}"
    base = order(name, lots=step.lots, ticks=step.ticks, product_id=step.product)
    asked = replace(base, account=step.account, strategy=step.strategy, side=step.side)
    verdict = await ledger.reserve(asked, product, "test")
    assert verdict.accepted, verdict
    await ledger.mark_sent(step.account, epoch, name)
    fill = Fill(
        trade_id=name,
        client_order_id=name,
        venue_order_id="v",
        product_id=step.product,
        side=step.side,
        price=product.price(step.ticks),
        quantity=product.quantity(step.filled),
        fee=Decimal(step.fee).scaleb(-6),
        liquidity="TAKER",
        ts_ns=number,
    )
    assert (await ledger.fill(step.account, epoch, fill, product))[0] == "APPLIED"


def compare_account(told: Told, account: str, found: AccountFigures) -> None:
    own = told.of(account)
    products = {item.product_id: item for item in found.products}
    for product, item in products.items():
        compare_position(told, account, product, None, item.position)
        assert (item.value, item.gross) == (item.position.value, item.position.gross)
        assert item.pnl == item.position.pnl
        assert item.open_orders == sum(one.lots > one.filled for one in told.of(account, product))
    for strategy in found.strategies:
        for product, position in strategy.positions.items():
            compare_position(told, account, product, strategy.name, position)
        assert strategy.pnl == sum(position.pnl for position in strategy.positions.values())
        assert strategy.realised + strategy.unrealised - strategy.fees == strategy.pnl
        assert (strategy.value, strategy.gross) == tuple(
            sum(getattr(position, name) for position in strategy.positions.values()) for name in ("value", "gross")
        )
    assert found.cash == CASH - spent(own) - fees(own)
    assert (found.fees, found.equity, found.peak) == (fees(own), told.equity(account), told.peaks[account])
    assert found.pnl == found.realised + found.unrealised - found.fees == found.equity - CASH
    assert (found.value, found.gross, found.open_orders) == tuple(
        sum(getattr(item, name) for item in products.values()) for name in ("value", "gross", "open_orders")
    )
    assert found.day.fills == len(own)
    assert found.day.turnover == sum(abs(spent([one])) for one in own)
    assert found.day.pnl == found.pnl
    (key,) = found.keys or (None,)
    assert (key.open_orders if key else 0) == found.open_orders
    (group,) = found.groups
    assert (group.gross, group.open_notional) == (found.gross, found.open_notional)


def compare_position(told: Told, account: str, product: str, strategy: str | None, position: Position) -> None:
    own = told.of(account, product, strategy)
    assert position.lots == held(own)
    assert position.value == told.value(account, product, strategy)
    assert position.gross == told.gross(account, product, strategy)
    assert position.fees == fees(own)
    # What was spent stands in the cost or was realised, whatever was rounded on the way.
    assert position.cost - position.realised == spent(own)
    assert position.pnl == position.value - spent(own) - fees(own)
    assert (position.cost > 0) <= (position.lots > 0)
    assert (position.cost < 0) <= (position.lots < 0)
    for side, lots in ((Side.BUY, position.buy_lots), (Side.SELL, position.sell_lots)):
        assert lots == sum(one.lots - one.filled for one in own if one.side is side)
    reference = position.reference
    assert reference is not None
    assert (reference.value(position.lots), reference.gross(position.lots)) == (position.value, position.gross)


def compare_desk(told: Told, accounts: list[AccountFigures], desk: EquityFigures) -> None:
    for name in ("gross", "value", "pnl", "equity", "open_orders", "buy_notional", "sell_notional"):
        assert getattr(desk, name) == sum(getattr(account, name) for account in accounts), name
    assert desk.day.turnover == sum(account.day.turnover for account in accounts)
    assert desk.peak == told.peaks[None]
