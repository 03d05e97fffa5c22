"""Whatever is sent to the exchange simulator: balances are deposits and fills, holds are open orders, nothing is lost.

A state machine places, cancels, pushes prices, lets time pass and restarts; after every step all books are recomputed
from the orders and fills alone.
"""

from __future__ import annotations

import shutil
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.exchange_book import Exchange, Fees, SimOrder, State
from cluster.exchange_history import MARKETS, History
from cluster.exchange_journal import Journal
from cluster.exchange_ticket import Kind, Refusal, read_ticket
from strategies.model import NS_PER_S, Side

START_NS = 1_741_613_841_500_000_000
DEPOSITS = {"USD": Decimal(300_000), "BTC": Decimal(3), "ETH": Decimal(40)}
CENTRE = {"BTC-USD": 6_000_000, "ETH-USD": 300_000}
HISTORY = History(7)

products = st.sampled_from(sorted(CENTRE))
offsets = st.integers(-400, 400)
lots = st.one_of(st.integers(1, 1_000), st.integers(10**6, 5 * 10**8))


class ExchangeBooks(RuleBasedStateMachine):
    """Drives one exchange over its journal."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.now_ns = START_NS
        self.sent = 0
        self.exchange = self.opened()
        self.push("BTC-USD", 0)
        self.push("ETH-USD", 0)

    def opened(self) -> Exchange:
        self.journal = Journal(self.folder / "journal.jsonl")
        return Exchange(HISTORY, self.journal, DEPOSITS, Fees(), self.now_ns)

    def teardown(self) -> None:
        if hasattr(self, "journal"):
            self.journal.close()
            shutil.rmtree(self.folder)

    @rule(
        product=products,
        side=st.sampled_from(list(Side)),
        kind=st.sampled_from(list(Kind)),
        size=lots,
        offset=offsets,
        post_only=st.booleans(),
        lasts_s=st.integers(1, 20),
    )
    def place(
        self, product: str, side: Side, kind: Kind, size: int, offset: int, post_only: bool, lasts_s: int
    ) -> None:
        fields: dict[str, Any] = {"base_size": f"{Decimal(size) / 10**8:f}"}
        if kind is not Kind.MARKET_IOC:
            fields["limit_price"] = f"{Decimal(CENTRE[product] + offset) / 100:f}"
        if kind in {Kind.LIMIT_GTC, Kind.LIMIT_GTD}:
            fields["post_only"] = post_only
        if kind.expires:
            fields["end_time"] = _iso(self.now_ns // NS_PER_S + 1 + lasts_s)
        self.send(product, side, {kind.value: fields})

    @rule(product=products, cents=st.integers(100, 30_000_000))
    def spend(self, product: str, cents: int) -> None:
        self.send(product, Side.BUY, {"market_market_ioc": {"quote_size": f"{Decimal(cents) / 100:f}"}})

    def send(self, product: str, side: Side, configuration: dict[str, Any]) -> None:
        self.sent += 1
        body = {"client_order_id": f"id-{self.sent}", "product_id": product, "side": side.value}
        before = len(self.exchange.order_list)
        try:
            ticket = read_ticket(body | {"order_configuration": configuration}, self.now_ns)
            order = self.exchange.place(ticket, self.now_ns)
        except Refusal:
            assert len(self.exchange.order_list) == before
            return
        assert self.exchange.place(ticket, self.now_ns) is order
        assert len(self.exchange.order_list) == before + 1

    @precondition(lambda self: self.exchange.order_list)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(self.exchange.order_list), label="order")
        was_open = order.state is State.OPEN
        # Time passes first inside, so an order due to expire or to be filled is not cancelled any more.
        refusal = self.exchange.cancel([order.order_id], self.now_ns)[order.order_id]
        assert order.state is not State.OPEN
        assert was_open or refusal

    @rule(product=products, offset=offsets)
    def push(self, product: str, offset: int) -> None:
        self.exchange.push_price(product, CENTRE[product] + offset, self.now_ns)

    @rule(seconds=st.integers(0, 5))
    def wait(self, seconds: int) -> None:
        self.now_ns += seconds * NS_PER_S
        self.exchange.advance(self.now_ns)

    @rule()
    def restart(self) -> None:
        before = self.exchange
        self.journal.close()
        self.exchange = self.opened()
        assert self.exchange.accounts == before.accounts
        assert self.exchange.order_list == before.order_list
        assert self.exchange.fills == before.fills
        for product in CENTRE:
            self.push(product, 0)

    @invariant()
    def balances_are_deposits_and_fills(self) -> None:
        if not hasattr(self, "exchange"):
            return
        expected = {currency: DEPOSITS.get(currency, Decimal(0)) for currency in self.exchange.accounts}
        for fill in self.exchange.fills:
            product = MARKETS[fill.product_id].product
            sign = 1 if fill.side is Side.BUY else -1
            expected[product.base_currency] += sign * product.quantity(fill.lots)
            expected[product.quote_currency] -= sign * product.quantity(fill.lots) * product.price(fill.ticks)
            expected[product.quote_currency] -= fill.fee
        assert {c: a.total for c, a in self.exchange.accounts.items()} == expected

    @invariant()
    def holds_are_open_orders(self) -> None:
        if not hasattr(self, "exchange"):
            return
        expected = dict.fromkeys(self.exchange.accounts, Decimal(0))
        for order in self.exchange.open_orders.values():
            product, limit = order.product, order.ticket.ticks
            assert limit is not None
            amount = product.quantity(order.open_lots)
            if order.ticket.side is Side.BUY:
                expected[product.quote_currency] += amount * product.price(limit) * Decimal("1.006")
            else:
                expected[product.base_currency] += amount
        for currency, account in self.exchange.accounts.items():
            assert account.hold == expected[currency]
            assert account.available >= 0

    @invariant()
    def orders_and_fills_agree(self) -> None:
        if not hasattr(self, "exchange"):
            return
        for order in self.exchange.order_list:
            _check_order(order)
        assert len({fill.trade_id for fill in self.exchange.fills}) == len(self.exchange.fills)
        assert sum(len(order.fills) for order in self.exchange.order_list) == len(self.exchange.fills)


def _check_order(order: SimOrder) -> None:
    ticket, product = order.ticket, order.product
    assert order.filled_lots == sum(fill.lots for fill in order.fills)
    assert order.fees == sum(fill.fee for fill in order.fills)
    if ticket.lots is not None:
        assert 0 <= order.filled_lots <= ticket.lots
        assert (order.state is State.FILLED) is (order.filled_lots == ticket.lots)
    if ticket.quote_size is not None:
        assert order.filled_value + order.fees <= ticket.quote_size
    if ticket.kind is Kind.LIMIT_FOK:
        assert order.filled_lots in {0, ticket.lots}
    assert ticket.kind.rests or order.state is not State.OPEN
    for fill in order.fills:
        rate = Decimal("0.004") if fill.liquidity == "MAKER" else Decimal("0.006")
        assert fill.fee == product.quantity(fill.lots) * product.price(fill.ticks) * rate
        assert not (ticket.post_only and fill.liquidity == "TAKER")
        if ticket.ticks is not None:
            assert fill.ticks <= ticket.ticks if ticket.side is Side.BUY else fill.ticks >= ticket.ticks


def _iso(second: int) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(second, dt.UTC).isoformat()


TestExchangeBooks = ExchangeBooks.TestCase
TestExchangeBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
