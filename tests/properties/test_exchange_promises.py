"""What the exchange simulator promises whatever happens, also where it is slow, forgetful or forced.

Random steps with delays before acceptance and cancel, forced and repeated fills, deposits, withdrawals, product flags,
several portfolios, restarts, snapshots and forgetting. After each: what was heard adds up to every balance, holds are
those of the open orders, nothing is overdrawn, nothing unforced is filled beyond its size, a restart changes nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.exchange_book import Exchange, Fees, Rules, SelfTrade, SimOrder, State
from cluster.exchange_history import MARKETS, History
from cluster.exchange_journal import Event, Journal
from cluster.exchange_records import FLAGS
from cluster.exchange_ticket import EditRefusal, Kind, Refusal, read_ticket
from strategies.model import Side
from tests.exchange_engine import picture

START_NS: Final = 1_741_613_841_500_000_000
DEPOSITS: Final = {"USD": Decimal(700_000), "BTC": Decimal(8), "ETH": Decimal(30)}
CENTRE: Final = {"BTC-USD": 6_000_000, "ETH-USD": 300_000}
HISTORY: Final = History(7)
STEPS: Final = 60
MS: Final = 1_000_000


class Venue:
    """An exchange, and an account of it that is kept from what it tells."""

    def __init__(self, dice: Random) -> None:
        self.dice, self.now_ns, self.sent = dice, START_NS, 0
        self.folder = Path(tempfile.mkdtemp())
        self.rules = Rules(
            dice.choice(list(SelfTrade)),
            reject_duplicates=dice.random() < 0.3,
            cancel_delay_ns=dice.choice((0, 300 * MS)),
            accept_delay_ns=dice.choice((0, 0, 150 * MS)),
        )
        self.forced: set[str] = set()
        self.money: dict[tuple[str, str], Decimal] = {}
        self.exchange = self.opened()
        self.portfolios = ["", *(self.exchange.open_portfolio(name, DEPOSITS).portfolio_id for name in ("b", "c"))]
        for portfolio in self.exchange.portfolios.values():
            for currency, account in portfolio.accounts.items():
                self.money[portfolio.portfolio_id, currency] = account.total
        for product, mid in CENTRE.items():
            self.exchange.push_price(product, mid, self.now_ns)

    def opened(self) -> Exchange:
        self.journal = Journal(self.folder / "journal.jsonl")
        exchange = Exchange(HISTORY, self.journal, DEPOSITS, Fees(), self.now_ns, self.rules)
        exchange.listen(self.heard)
        return exchange

    def heard(self, event: Event) -> None:
        """Keep the account."""
        if event["kind"] == "deposited":
            self.money[event["portfolio_id"], event["currency"]] += Decimal(event["amount"])
        if event["kind"] != "fill":
            return
        order = self.exchange.orders[event["order_id"]]
        base, quote = order.ticket.product_id.split("-")
        sign, lots = (1 if order.ticket.side is Side.BUY else -1), Decimal(event["lots"]).scaleb(-8)
        self.money[order.portfolio_id, base] += sign * lots
        self.money[order.portfolio_id, quote] -= sign * lots * Decimal(event["ticks"]) / 100 + Decimal(event["fee"])

    # --- steps ---

    def step(self) -> None:
        """One of all that can happen."""
        steps = {
            self.place: 40,
            self.cancel: 8,
            self.amend: 8,
            self.push: 10,
            self.wait: 14,
            self.flags: 4,
            self.force: 6,
            self.repeat: 2,
            self.deposit: 4,
            self.restart: 4,
        }
        self.dice.choices(list(steps), list(steps.values()))[0]()

    def some_order(self) -> SimOrder | None:
        orders = list(self.exchange.orders.values())
        return self.dice.choice(orders) if orders else None

    def place(self) -> None:
        dice, product = self.dice, self.dice.choice(sorted(CENTRE))
        side, kind, self.sent = dice.choice(list(Side)), dice.choice(list(Kind)), self.sent + 1
        mid = self.exchange.mid_ticks(product, self.now_ns)
        away = -1 if side is Side.BUY else 1
        limit, stop = mid + away * dice.randint(-5, 12), mid - away * dice.randint(1, 15)
        if kind.stops:
            limit = stop - away * dice.randint(0, 9)
        fields: dict[str, Any] = {"base_size": f"{Decimal(dice.randint(1, 2 * 10**8)).scaleb(-8):f}"}
        if kind is not Kind.MARKET_IOC:
            fields["limit_price"] = f"{Decimal(limit).scaleb(-2):f}"
        elif side is Side.BUY and dice.random() < 0.5:
            fields = {"quote_size": f"{Decimal(dice.randint(100, 10**7)).scaleb(-2):f}"}
        if kind in {Kind.LIMIT_GTC, Kind.LIMIT_GTD}:
            fields["post_only"] = dice.random() < 0.3
        if kind.expires:
            fields["end_time"] = f"2025-03-10T13:3{dice.randint(8, 9)}:{dice.randint(10, 59)}Z"
        fields["stop_trigger_price" if kind.brackets else "stop_price"] = f"{Decimal(stop).scaleb(-2):f}"
        fields["stop_direction"] = "STOP_DIRECTION_STOP_UP" if side is Side.BUY else "STOP_DIRECTION_STOP_DOWN"
        body = {"client_order_id": f"id-{self.sent}", "product_id": product, "side": side.value}
        try:
            ticket = read_ticket(body | {"order_configuration": {kind.value: fields}}, self.now_ns)
            self.exchange.place(ticket, self.now_ns, dice.choice(self.portfolios))
        except Refusal:
            return

    def cancel(self) -> None:
        order = self.some_order()
        if order is not None:
            self.exchange.cancel([order.order_id], self.now_ns, order.portfolio_id)

    def amend(self) -> None:
        order = self.some_order()
        if order is None or order.ticket.lots is None:
            return
        size = f"{Decimal(self.dice.randint(1, 2 * order.ticket.lots)).scaleb(-8):f}"
        price = f"{Decimal((order.ticket.ticks or 1) + self.dice.randint(-9, 9)).scaleb(-2):f}"
        try:
            self.exchange.amend(order.order_id, size, price, self.now_ns, order.portfolio_id)
        except EditRefusal:
            return

    def push(self) -> None:
        product = self.dice.choice(sorted(CENTRE))
        self.exchange.push_price(product, CENTRE[product] + self.dice.randint(-40, 40), self.now_ns)

    def wait(self) -> None:
        self.now_ns += self.dice.choice((100, 900, 5_000, 30_000)) * MS
        self.exchange.advance(self.now_ns)

    def flags(self) -> None:
        flags = dict.fromkeys(FLAGS, False)
        flags[self.dice.choice(FLAGS)] = self.dice.random() < 0.4
        self.exchange.set_product(self.dice.choice(sorted(CENTRE)), flags, self.now_ns)

    def force(self) -> None:
        order = self.some_order()
        if order is None:
            return
        lots = self.dice.choice((None, self.dice.randint(1, 10**8)))
        try:
            self.exchange.force_fill(order.order_id, lots, self.dice.choice((None, 5_999_000)), self.now_ns)
        except Refusal:
            return
        self.forced.add(order.order_id)

    def repeat(self) -> None:
        order = self.some_order()
        if order is not None and order.fills:
            assert self.exchange.repeat_fill(order.order_id, self.now_ns).entry_id == order.fills[-1].entry_id

    def deposit(self) -> None:
        amount = Decimal(self.dice.randint(-(10**8), 10**8)).scaleb(-2)
        try:
            self.exchange.deposit("USD", amount, self.now_ns, self.dice.choice(self.portfolios))
        except Refusal:
            assert amount < 0

    def restart(self) -> None:
        how = self.dice.choice(("", "compact", "forget"))
        if how:
            getattr(self.exchange, how)()
        before = picture(self.exchange)
        self.journal.close()
        self.exchange = self.opened()
        assert picture(self.exchange) == before

    # --- promises ---

    def check(self) -> None:
        """See the module."""
        for portfolio in self.exchange.portfolios.values():
            mine = [o for o in self.exchange.open_orders.values() if o.portfolio_id == portfolio.portfolio_id]
            for currency, account in portfolio.accounts.items():
                assert account.total == self.money[portfolio.portfolio_id, currency]
                assert account.hold == sum((_held(order, currency) for order in mine), Decimal(0))
                assert 0 <= account.hold <= account.total
        for order in self.exchange.orders.values():
            assert order.state.live is (order.order_id in self.exchange.open_orders)
            assert order.filled_lots == sum(fill.lots for fill in order.fills)
            if order.order_id not in self.forced:
                assert order.ticket.lots is None or order.filled_lots <= order.ticket.lots
                assert (order.state is State.FILLED) or order.filled_lots != order.ticket.lots

    def end(self) -> None:
        """Leave nothing behind."""
        self.journal.close()
        shutil.rmtree(self.folder)


def _held(order: SimOrder, currency: str) -> Decimal:
    """What an open order holds of a currency, from its ticket alone."""
    ticket, product = order.ticket, MARKETS[order.ticket.product_id].product
    if ticket.side is Side.SELL:
        left = max(0, (ticket.lots or 0) - order.filled_lots)
        return Decimal(left).scaleb(-8) if currency == product.base_currency else Decimal(0)
    if currency != product.quote_currency:
        return Decimal(0)
    if ticket.ticks is None:
        return order.reserve
    worst = ticket.ticks
    if ticket.kind.brackets:
        worst = (ticket.stop_ticks or 0) * 105 // 100
    left = max(0, (ticket.lots or 0) - order.filled_lots)
    return Decimal(left).scaleb(-8) * Decimal(worst).scaleb(-2) * Decimal("1.006")


@contextmanager
def forgetful() -> Iterator[None]:
    """Bounds so small that they are reached."""
    with mock.patch("cluster.exchange_book.ENDED_KEPT", 10), mock.patch("cluster.exchange_book.ORDERS_MAX", 30):
        yield


@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_books_add_up_whatever_happens(seed: int) -> None:
    with forgetful():
        venue = Venue(Random(seed))
        try:
            for _ in range(STEPS):
                venue.step()
                venue.check()
        finally:
            venue.end()
