"""Fault 20: fills repeated, late and in any order end in the same position, cash and profit, to the last unit.

Each case is a set of orders with their fills; it is delivered in several permutations at once, each to an account of
its own on a real server, with fills that come twice or thrice, before the acknowledgement, after the order's end, and
more of them than was ordered. What must come of it is computed here with ``Decimal`` and without the ledger.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Any, Final

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from cluster.ledger import Ledger
from conf.settings import Settings
from strategies.model import Fill, OrderStatus, Side, micros_exact
from tests.books import PRODUCTS, QUOTES, STRATEGIES, Books, order
from tests.faults.conftest import Report
from tests.servers import KINDS, Server, binary, redis_secrets

CASH: Final = 10**14
ACCOUNTS: Final = ("main", "second", "third", "fourth")
"""Each case is delivered once to each, in another permutation."""
WHOLE, QUICK = 2_500, 75
"""Cases of a seed: with four accounts 10,000 permutations, or some hundreds."""


@dataclass(frozen=True)
class Asked:
    """An order of a case, with the trades there are of it: (trade id, lots, ticks, fee in micros)."""

    name: str
    product_id: str
    side: Side
    strategy: str
    lots: int
    trades: tuple[tuple[str, int, int, int], ...]

    @property
    def overfilled(self) -> bool:
        """Whether the venue executes more than was ordered."""
        return sum(lots for _, lots, _, _ in self.trades) > self.lots

    def fill(self, trade: tuple[str, int, int, int]) -> Fill:
        """A trade as the venue lists it."""
        trade_id, lots, ticks, fee = trade
        product = PRODUCTS[self.product_id]
        price, quantity = product.price(ticks), product.quantity(lots)
        charged = Decimal(fee).scaleb(-6)
        ts_ns = 1 + int(trade_id.rpartition("-")[2])
        return Fill(trade_id, self.name, "v", self.product_id, self.side, price, quantity, charged, "TAKER", ts_ns)


Event = tuple[str, Asked, Any]
"""("fill", order, trade), ("ack", order, None) or ("release", order, ending)."""


@dataclass(frozen=True)
class Case:
    """Orders, and everything that is told of them in several orders of telling."""

    orders: tuple[Asked, ...]
    permutations: tuple[tuple[Event, ...], ...]

    @property
    def opening(self) -> Counter[str]:
        """Lots held before, at no cost: just what the sales may sell, so that one overfill more makes it short."""
        held = Counter(dict.fromkeys(PRODUCTS, 0))
        for asked in self.orders:
            held[asked.product_id] += asked.lots if asked.side is Side.SELL else 0
        return held


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One to three orders; their fills once to three times each, an ending for some."""
    orders, events = [], list[Event]()
    for number in range(draw(st.integers(1, 3))):
        product_id = draw(st.sampled_from(sorted(PRODUCTS)))
        bid, ask = QUOTES[product_id]
        sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
        trades = tuple(
            (f"t-{number}-{place}", lots, draw(st.integers(bid // 2, 2 * ask)), draw(st.integers(0, 99_999)))
            for place, lots in enumerate(sizes)
        )
        # Mostly what was ordered or a part of it; now and then more.
        wanted = max(1, sum(sizes) + draw(st.sampled_from((0, 0, 1, 5, -1))))
        side, strategy = draw(st.sampled_from(list(Side))), draw(st.sampled_from(STRATEGIES))
        asked = Asked(f"o-{number}", product_id, side, strategy, wanted, trades)
        orders.append(asked)
        events.append(("ack", asked, None))
        for trade in trades:
            events += [("fill", asked, trade)] * draw(st.integers(1, 3))
        if draw(st.booleans()):
            events.append(("release", asked, draw(st.sampled_from((OrderStatus.CANCELLED, OrderStatus.EXPIRED)))))
    shuffled = tuple(tuple(draw(st.permutations(events))) for _ in ACCOUNTS)
    return Case(tuple(orders), shuffled)


class Bench:
    """A server, and what was met on it so far."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.met: Counter[str] = Counter()

    async def deliver(self, case: Case) -> None:
        """The case to every account, each permutation in one pipeline; then all figures against exact ones."""
        await self._ledger._direct("FLUSHALL")
        await self._ledger._direct("FUNCTION", "FLUSH")
        await self._ledger.install()
        # A ledger remembers the epoch it has seen; this one starts with an empty server.
        ledger = Ledger(self._ledger._wire)
        opening = (Books(ledger, account).open(cash=CASH, lots=case.opening) for account in ACCOUNTS)
        books = await asyncio.gather(*opening)
        await asyncio.gather(*(self._one(*pair, case) for pair in zip(books, case.permutations, strict=True)))

    async def _one(self, books: Books, events: Sequence[Event], case: Case) -> None:
        for asked in case.orders:
            ticks = QUOTES[asked.product_id][0]
            base = order(asked.name, product_id=asked.product_id, ticks=ticks, side=asked.side)
            quantity = PRODUCTS[asked.product_id].quantity(asked.lots)
            wanted = replace(base, strategy=asked.strategy, account=books.account, quantity=quantity)
            assert (await books.reserve(wanted)).accepted
            await books.send(asked.name)
        outcomes = await asyncio.gather(*(self._tell(books, event) for event in events))
        self.met["permutations"] += 1
        await self._compare(books, events, outcomes, case)

    async def _tell(self, books: Books, event: Event) -> str:
        kind, asked, detail = event
        account, epoch, ledger = books.account, books.epoch, books.ledger
        if kind == "ack":
            return await ledger.ack(account, epoch, asked.name, OrderStatus.OPEN, "v")
        if kind == "release":
            return (await ledger.release(account, epoch, asked.name, detail, "the venue says so"))[1]
        outcome, _ = await ledger.fill(account, epoch, asked.fill(detail), PRODUCTS[asked.product_id])
        return outcome

    async def _compare(self, books: Books, events: Sequence[Event], outcomes: Sequence[str], case: Case) -> None:
        told: Counter[str] = Counter()
        for (kind, _, trade), outcome in zip(events, outcomes, strict=True):
            if kind == "fill":
                expected = "DUPLICATE" if told[trade[0]] else "APPLIED"
                assert outcome == expected, (trade, outcome)
                told[trade[0]] += 1
                self.met[outcome] += 1
        snapshot = await books.ledger.snapshot(books.account)
        figures = {name: int(value) for name, value in snapshot.book.items() if value.lstrip("-").isdigit()}
        expected_figures = _figures(case)
        found = {name: figures.get(name, 0) for name in expected_figures}
        assert found == expected_figures, (found, expected_figures, events)
        await self._compare_orders(books, events, case)
        assert await books.ledger.prove(books.account) == 0

    async def _compare_orders(self, books: Books, events: Sequence[Event], case: Case) -> None:
        halted = {scope for scope, cause in (await books.causes()).items() if cause == "OVERFILL"}
        alarmed = {a["scope"] for a in await books.ledger.alerts(books.account) if a["code"] == "OVERFILL"}
        overfilled = {f"strategy|{asked.strategy}" for asked in case.orders if asked.overfilled}
        assert (halted, alarmed) == (overfilled, overfilled)
        states = await books.states()
        assert all(states[scope] == "HALTED" for scope in overfilled)
        self.met["overfilled"] += len(overfilled)
        for asked in case.orders:
            fields = await books.ledger.order(books.account, asked.name)
            assert fields is not None
            status, late = _ending(asked, events)
            self.met["after_the_end"] += late
            assert fields["status"] == status, (asked, events)
            assert int(fields["filled_lots"]) == sum(lots for _, lots, _, _ in asked.trades)
            if status in {OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.EXPIRED}:
                assert (fields["reserved_lots"], fields["reserved_cash"]) == ("0", "0")


def _figures(case: Case) -> dict[str, int]:
    """Cash, fees, positions and profit in micros, by exact arithmetic and whatever the permutation."""
    cash, fees = Decimal(CASH), Decimal(0)
    lots = case.opening
    flow: dict[str, Decimal] = dict.fromkeys(PRODUCTS, Decimal(0))
    for asked in case.orders:
        for trade in asked.trades:
            fill = asked.fill(trade)
            sign = 1 if fill.side is Side.BUY else -1
            value = Decimal(micros_exact(fill.price * fill.quantity))
            cash -= sign * value + fill.fee.scaleb(6)
            fees += fill.fee.scaleb(6)
            lots[asked.product_id] += sign * trade[1]
            flow[asked.product_id] -= sign * value + fill.fee.scaleb(6)
    figures = {"cash": cash, "fees": fees}
    for product_id, product in PRODUCTS.items():
        mid = Decimal(sum(QUOTES[product_id])) / 2 * product.quote_increment
        worth = (product.quantity(lots[product_id]) * mid).scaleb(6).to_integral_value(ROUND_FLOOR)
        figures[f"p|{product_id}|lots"] = Decimal(lots[product_id])
        figures[f"p|{product_id}|pnl"] = flow[product_id] + worth
    assert all(value == int(value) for value in figures.values())
    return {name: int(value) for name, value in figures.items()}


def _ending(asked: Asked, events: Sequence[Event]) -> tuple[str, int]:
    """Where the order must stand after these events, and how many of its trades came after its end."""
    status, filled, seen, late = "SENT", 0, set[str](), 0
    for kind, of, detail in events:
        if of is not asked:
            continue
        ended = status in {"FILLED", "CANCELLED", "EXPIRED"}
        if kind == "ack" and status == "SENT":
            status = "OPEN"
        elif kind == "release" and not ended:
            status = detail.value
        elif kind == "fill" and detail[0] not in seen:
            seen.add(detail[0])
            filled += detail[1]
            late += ended
            if not ended:
                status = "FILLED" if filled >= asked.lots else "PARTIALLY_FILLED"
    return status, late


@pytest.mark.seeds(2)
@pytest.mark.timeout(1_200)
@pytest.mark.fault("20", "fills repeated, late, out of order, too many", "10,000 permutations, equal to the last unit")
def test_fills_in_any_order_end_in_the_same_position_and_profit(
    tmp_path: Path, report: Report, full: bool, seed: int
) -> None:
    with Server(binary(KINDS[seed % len(KINDS)]), tmp_path).running() as server, asyncio.Runner() as runner:
        ledger = Ledger.connect(Settings(state_dir=tmp_path, redis=server), redis_secrets())
        bench = Bench(ledger)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=WHOLE if full else QUICK,
            derandomize=False,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases())
        def delivered(case: Case) -> None:
            runner.run(bench.deliver(case))

        try:
            delivered()
        finally:
            runner.run(ledger.close())
            met = bench.met
            report(permutations=met["permutations"], applied=met["APPLIED"], refused_as_repeated=met["DUPLICATE"])
            report(applied_after_the_end=met["after_the_end"], halted_for_overfill=met["overfilled"], differences=0)
    assert met["permutations"] >= (10_000 if full else 4 * QUICK)
    assert min(met["after_the_end"], met["overfilled"], met["DUPLICATE"]) > 0
