"""The limits the project ships, on a real ledger: a desk's ordinary day passes, and what they are for is denied."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import pytest

from cluster.exchange_history import MARKETS
from cluster.ledger import Ledger, Reference, Verdict
from cluster.limit_records import CALENDAR, account_records, desk_records
from cluster.risk import check_order
from conf.limits import load_limits
from conf.settings import CONF_DIR
from strategies.model import Fill, Order, OrderType, Product, Side, TimeInForce

pytestmark = pytest.mark.anyio

PRODUCTS: Final = {name: market.product for name, market in MARKETS.items()}
BTC: Final = PRODUCTS["BTC-USD"]
MIDS: Final = {"BTC-USD": 100_000, "ETH-USD": 4_000, "SOL-USD": 200}
CASH: Final = 1_000_000


@dataclass
class Desk:
    """The account ``main`` under the shipped limits."""

    ledger: Ledger
    epoch: int
    sent: int = 0

    async def send(self, side: Side, quantity: str, price: str | None = None, **more: Any) -> Verdict:
        """Decide on one order as a replica does."""
        self.sent += 1
        order = Order(
            client_order_id=more.pop("client_order_id", f"o-{self.sent}"),
            account="main",
            strategy=more.pop("strategy", "manual"),
            product_id=more.pop("product_id", "BTC-USD"),
            side=side,
            type=OrderType.LIMIT if price else OrderType.MARKET,
            time_in_force=more.pop("time_in_force", TimeInForce.GTC if price else TimeInForce.IOC),
            quantity=Decimal(quantity),
            limit_price=Decimal(price) if price else None,
            **more,
        )
        product = PRODUCTS[order.product_id]
        return await self.ledger.reserve(order, product, "0123456789ab", check_order(order, product))

    async def fill(self, client_order_id: str, side: Side, quantity: str, price: str, fee: str = "6") -> None:
        """The whole order filled at once."""
        await self.ledger.mark_sent("main", self.epoch, client_order_id)
        fill = Fill(
            trade_id=f"t-{client_order_id}",
            client_order_id=client_order_id,
            venue_order_id="v",
            product_id="BTC-USD",
            side=side,
            price=Decimal(price),
            quantity=Decimal(quantity),
            fee=Decimal(fee),
            liquidity="TAKER",
            ts_ns=1,
        )
        assert (await self.ledger.fill("main", self.epoch, fill, BTC))[0] == "APPLIED"


@pytest.fixture
async def shipped(ledger: Ledger) -> Desk:
    file = load_limits(CONF_DIR / "limits.yaml")
    await ledger.set_products(list(PRODUCTS.values()))
    records = desk_records(file)
    await ledger.set_limits(None, records, "limits.yaml")
    await ledger.set_limits("main", account_records(file.accounts["main"], PRODUCTS, records[CALENDAR]), "limits.yaml")
    epoch = await ledger.claim("main", "execution")
    await ledger.set_references("main", [_quote(product, MIDS[name]) for name, product in PRODUCTS.items()])
    await ledger.open_account("main", CASH * 1_000_000, {}, "execution")
    await ledger.admit("main", epoch)
    return Desk(ledger, epoch)


def _quote(product: Product, mid: int) -> Reference:
    tick, half = product.quote_increment, Decimal("0.5")
    return Reference(product, mid - half * 2 * tick, mid + half * 2 * tick, half, half)


def codes(verdict: Verdict) -> set[str]:
    return {denial["code"] for denial in verdict.answer.get("denials", [])}


async def test_every_product_of_the_simulator_may_be_traded(shipped: Desk) -> None:
    for name in PRODUCTS:
        verdict = await shipped.send(Side.BUY, "0.01", product_id=name)
        assert verdict.accepted, verdict


async def test_three_hundred_orders_at_once_by_one_key_all_pass(shipped: Desk) -> None:
    random.seed(3)
    asked = [
        shipped.send(Side.BUY, f"{random.randint(1, 100) / 10_000:.4f}", f"{random.randint(20_000, 120_000)}.00")
        for _ in range(300)
    ]
    verdicts = await asyncio.gather(*asked)
    assert [verdict for verdict in verdicts if not verdict.accepted] == []


async def test_what_was_bought_may_be_sold_again_and_no_more(shipped: Desk) -> None:
    for n in range(20):
        assert (await shipped.send(Side.BUY, "0.01", client_order_id=f"b-{n}")).accepted
        await shipped.fill(f"b-{n}", Side.BUY, "0.01", "100000.01")
        sell = await shipped.send(Side.SELL, "0.01", client_order_id=f"s-{n}")
        assert sell.accepted, sell
        # What is being sold already cannot be sold twice.
        assert codes(await shipped.send(Side.SELL, "0.0001")) == {"INSUFFICIENT_FUNDS"}
        await shipped.fill(f"s-{n}", Side.SELL, "0.01", "99999.99")


async def test_a_hundred_times_what_was_usual_passes_with_a_warning_at_most(shipped: Desk) -> None:
    for _ in range(10):
        assert (await shipped.send(Side.BUY, "0.0001")).accepted
    assert (await shipped.send(Side.BUY, "0.01")).accepted


DENIED: list[tuple[dict[str, Any], set[str]]] = [
    # order, the rules it breaks
    ({"side": Side.BUY, "quantity": "40", "price": "30000.00"}, {"NOTIONAL_EXCEEDS_MAX", "QTY_EXCEEDS_MAX"}),
    ({"side": Side.BUY, "quantity": "0.51"}, {"NOTIONAL_EXCEEDS_MAX"}),
    ({"side": Side.BUY, "quantity": "0.01", "price": "300001.00"}, {"PRICE_COLLAR"}),
    ({"side": Side.SELL, "quantity": "0.01"}, {"INSUFFICIENT_FUNDS"}),
    ({"side": Side.SELL, "quantity": "0.01", "strategy": "sma_cross"}, {"INSUFFICIENT_FUNDS", "SHORT_NOT_ALLOWED"}),
    ({"side": Side.BUY, "quantity": "0.01", "strategy": "nobody"}, {"STRATEGY_NOT_APPROVED"}),
]


@pytest.mark.parametrize(("order", "expected"), DENIED)
async def test_what_the_limits_are_for_is_denied(shipped: Desk, order: dict[str, Any], expected: set[str]) -> None:
    verdict = await shipped.send(**order)
    assert verdict.kind == "DENIED"
    assert expected <= codes(verdict)


async def test_a_strategy_that_repeats_itself_is_stopped_and_a_person_is_not(shipped: Desk) -> None:
    for strategy, repeated in (("sma_cross", {"DUPLICATE_ORDER"}), ("manual", set())):
        assert (await shipped.send(Side.BUY, "0.001", "90000.00", strategy=strategy)).accepted
        assert codes(await shipped.send(Side.BUY, "0.001", "90000.00", strategy=strategy)) == repeated


async def test_an_order_that_would_meet_another_of_ours_is_denied(shipped: Desk) -> None:
    assert (await shipped.send(Side.BUY, "0.01", client_order_id="b")).accepted
    await shipped.fill("b", Side.BUY, "0.01", "100000.01")
    assert (await shipped.send(Side.BUY, "0.01", "99000.00")).accepted
    assert codes(await shipped.send(Side.SELL, "0.01", "98000.00")) == {"SELF_TRADE"}
    assert (await shipped.send(Side.SELL, "0.01", "99000.01")).accepted
