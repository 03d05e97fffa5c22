"""Generated sequences of everything that can happen to an account, on a plain model and on the real server at once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Set
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from cluster.ledger import Ledger, StaleEpoch
from conf.settings import Settings
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, PRODUCTS, STRATEGIES, UNLIMITED, Books, order
from tests.properties.ledger_model import ENDED, SCALES, Model
from tests.servers import Kind, Server, binary, redis_secrets

T = TypeVar("T")
CASH = 8_000_000
# Two bursts that come back after an hour: in a test, they are all there is.
SLOW = {
    "account|order_interval_us": "3600000000",
    "account|order_burst": "20",
    "strategy|other|order_interval_us": "3600000000",
    "strategy|other|order_burst": "4",
}
LIMITED = sorted(name for name in UNLIMITED if "|max_" in name and not name.endswith("max_open_orders"))
LIMITED += ["account|max_open_orders", "strategy|manual|max_open_orders"]
SCOPES = ["global", "account", *(f"strategy|{s}" for s in STRATEGIES), *(f"product|{p}" for p in SCALES)]

# Weighted so that much is let through: a model of denials alone would prove little.
STATES = [TradingState.ACTIVE] * 4 + [TradingState.REDUCING] * 2 + [TradingState.HALTED, TradingState.CANCEL_ALL]
TIGHTNESS = [None, None, None, 4, 3, 2, 1, 0]
HELD = {"BTC-USD": 25, "XRP-USD": 40}

lots = st.integers(1, 30)
strategies = st.sampled_from([*STRATEGIES, "manual"])
sides = st.sampled_from(list(Side))
products = st.sampled_from(list(SCALES))
prices = st.integers(9_000, 11_000) | st.none() | st.sampled_from([1, 9_900, 10_100])


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to both and compares the answers; each invariant compares all there is."""

    ids = Bundle("ids")
    fills = Bundle("fills")
    ledger: Ledger
    runner: asyncio.Runner
    steps = 0
    outcomes: ClassVar[Counter[str]] = Counter()

    def run(self, call: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await call

        return self.runner.run(awaited())

    @initialize()
    def open(self) -> None:
        self.run(self.ledger._direct("FLUSHDB"))
        self.model, self.books, self.number = Model(CASH, HELD), Books(self.ledger), 0
        self.model.limits |= SLOW
        self.run(self.books.open(CASH, HELD, SLOW))

    def met(self, what: str) -> None:
        type(self).outcomes[what] += 1

    # -- orders --------------------------------------------------------------------------------------------------------

    @rule(target=ids, asked=st.lists(st.tuples(sides, lots, prices, products, strategies), min_size=1, max_size=4))
    def reserve(self, asked: list[tuple[Side, int, int | None, str, str]]) -> Any:
        return multiple(*(name for one in asked if (name := self._reserve(*one)) and self.model.orders[name].lots))

    @rule(target=ids, lots=st.integers(1, 5), product=products)
    def reserve_what_should_pass(self, lots: int, product: str) -> Any:
        self.resume()
        name = self._reserve(Side.BUY, lots, 10_000, product, "manual")
        return name if name and self.model.orders[name].lots else multiple()

    @rule(target=ids, which=st.integers(0, 8), over=st.booleans(), side=sides, lots=lots, product=products)
    def reserve_at_a_limit(self, which: int, over: bool, side: Side, lots: int, product: str) -> Any:
        """Set one limit to just what the next order needs, or one unit less, and ask for it."""
        self.resume()
        asked = order("next", lots=lots, ticks=10_100, side=side, product_id=product)
        _, notional, _ = self.model.decide(asked, lots, 10_100)
        name, scope, value, code = self.model.compared(asked, lots, notional)[which]
        before = self.model.limits[name]
        self._limit(name, str(max(value - over, 0)))
        order_id = self._reserve(
            side, lots, 10_100, product, "manual", {(code, scope)} if over and value > 0 else set()
        )
        self._limit(name, before)
        return order_id if order_id and self.model.orders[order_id].lots else multiple()

    def _reserve(
        self,
        side: Side,
        lots: int,
        ticks: int | None,
        product: str,
        strategy: str,
        surely_broken: Set[tuple[str, str]] = frozenset(),
    ) -> str | None:
        self.number += 1
        asked = order(f"o-{self.number}", lots=lots, ticks=ticks, side=side, product_id=product, strategy=strategy)
        broken, notional, cash = self.model.decide(asked, lots, ticks)
        verdict = self.run(self.books.reserve(asked))
        found = {(d["code"], d["scope"], d["value"], d["limit"]) for d in verdict.answer.get("denials", ())}
        rate_limited = {denial for denial in found if denial[0] == "RATE_LIMIT"}
        # How long it takes until one more may come is the clock's to say.
        assert {(code, scope, "", limit) for code, scope, _, limit in rate_limited} | (found - rate_limited) == broken
        assert verdict.kind == ("DENIED" if broken else "ACCEPTED")
        assert {denial[:2] for denial in found} >= surely_broken
        for code in {denial[0] for denial in broken} or {"ACCEPTED"}:
            self.met(code)
        if rate_limited:
            del self.books.orders[asked.client_order_id]
            return None
        if broken:
            self.model.deny(asked)
        else:
            self.model.take(asked, lots, notional, cash)
            assert verdict.answer["reserved_notional_micros"] == str(notional)
            assert verdict.answer["reserved_cash_micros"] == str(cash)
            assert self.model.exceeded(asked) == []
        return asked.client_order_id

    @rule()
    def touch_what_was_denied(self) -> None:
        denied = [name for name, held in self.model.orders.items() if held.status == "DENIED"]
        if denied:
            self.ask_again(denied[-1])
            self.mark_sent(denied[-1])
            self.acknowledge(denied[-1], OrderStatus.OPEN)
            assert self._fill(denied[-1], "t-denied", 1, 10_000, 1) == ("NOT_FOUND", "")
            self.release(denied[-1], OrderStatus.CANCELLED)
            self.cancel(denied[-1])

    @rule(order_id=ids)
    def ask_again(self, order_id: str) -> None:
        verdict = self.run(self.books.reserve(self.books.orders[order_id]))
        assert (verdict.kind, verdict.accepted) == ("REPEATED", self.model.orders[order_id].lots > 0)

    @rule(order_id=ids)
    def ask_for_another_order_with_the_same_id(self, order_id: str) -> None:
        first = self.books.orders[order_id]
        other = order(order_id, lots=31, side=first.side, product_id=first.product_id, strategy=first.strategy)
        verdict = self.run(self.ledger.reserve(other, PRODUCTS[other.product_id], "test"))
        assert (verdict.kind, verdict.accepted) == ("CONFLICT", False)

    # -- execution -----------------------------------------------------------------------------------------------------

    @rule(order_id=ids)
    def mark_sent(self, order_id: str) -> None:
        held = self.model.orders[order_id]
        first = held.status == "RESERVED"
        if first:
            held.status = "SENT"
        found = self.run(self.ledger.mark_sent(ACCOUNT, self.books.epoch, order_id))
        assert found == (first, held.status)

    @rule(order_id=ids, status=st.sampled_from([OrderStatus.OPEN, OrderStatus.UNKNOWN]))
    def acknowledge(self, order_id: str, status: OrderStatus) -> None:
        held = self.model.orders[order_id]
        if held.status == "SENT" or (held.status == "UNKNOWN" and status is OrderStatus.OPEN):
            held.status = status
        assert self.run(self.ledger.ack(ACCOUNT, self.books.epoch, order_id, status, "v")) == held.status

    @rule(
        target=fills,
        order_id=ids,
        lots=st.integers(1, 8),
        ticks=st.integers(8_000, 12_000),
        fee=st.integers(-50, 5_000),
    )
    def fill(self, order_id: str, lots: int, ticks: int, fee: int) -> Any:
        trade = (order_id, f"t-{self.books.trades}", lots, ticks, fee)
        outcome = self._fill(*trade)
        self.met(f"fill {outcome[0]} {outcome[1]}")
        return trade if outcome[0] == "APPLIED" else multiple()

    @rule(order_id=ids)
    def fill_the_rest(self, order_id: str) -> None:
        left = self.model.orders[order_id].left
        if left:
            assert self._fill(order_id, f"t-{self.books.trades}", left, 10_001, 7)[1] in ENDED

    @rule(trade=fills)
    def fill_again(self, trade: tuple[str, str, int, int, int]) -> None:
        assert self._fill(*trade)[0] == "DUPLICATE"
        self.met("fill DUPLICATE")

    def _fill(self, order_id: str, trade_id: str, lots: int, ticks: int, fee: int) -> tuple[str, str]:
        expected = self.model.fill(order_id, trade_id, lots, ticks, fee)
        found = self.run(self.books.fill(order_id, lots, ticks, fee, trade_id))
        assert found == expected
        return found

    @rule(order_id=ids, status=st.sampled_from([OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.EXPIRED]))
    def release(self, order_id: str, status: OrderStatus) -> None:
        first = self.model.end(order_id, status)
        found = self.run(self.ledger.release(ACCOUNT, self.books.epoch, order_id, status, "why"))
        assert found == (first, self.model.orders[order_id].status)

    @rule(order_id=ids)
    def cancel(self, order_id: str) -> None:
        expected = self.model.cancel(order_id)
        assert self.run(self.ledger.request_cancel(ACCOUNT, order_id, "test")) == expected
        self.met(f"cancel {expected[1]}")

    @rule(order_id=ids)
    def another_execution_takes_over(self, order_id: str) -> None:
        old, self.books.epoch = self.books.epoch, self.run(self.ledger.claim(ACCOUNT, "test"))
        assert self.books.epoch == old + 1
        with pytest.raises(StaleEpoch):
            self.run(self.ledger.release(ACCOUNT, old, order_id, OrderStatus.CANCELLED, "too late"))

    # -- the account ---------------------------------------------------------------------------------------------------

    @rule(scope=st.sampled_from(SCOPES), state=st.sampled_from(STATES))
    def set_state(self, scope: str, state: TradingState) -> None:
        asked = self.model.set_state(scope, state)
        assert self.run(self.ledger.set_state(ACCOUNT, scope, state, "test", "why"))[1] == asked

    @rule()
    def resume(self) -> None:
        for scope in [scope for scope in SCOPES if self.model.states[scope] != "ACTIVE"]:
            self.model.set_state(scope, "ACTIVE")
            self.run(self.ledger.set_state(ACCOUNT, scope, TradingState.ACTIVE, "test", "why"))

    @rule(product=products, bid=st.integers(9_000, 11_000), spread=st.integers(0, 300))
    def quote(self, product: str, bid: int, spread: int) -> None:
        self.model.quotes[product] = (bid, bid + spread)
        self.run(self.books.quote({product: (bid, bid + spread)}))

    @rule(name=st.sampled_from(LIMITED), tightness=st.sampled_from(TIGHTNESS))
    def limit(self, name: str, tightness: int | None) -> None:
        unit = {"max_open_orders": 3, "max_position": 40}.get(name.rpartition("|")[2], 2_000_000)
        self._limit(name, "unlimited" if tightness is None else str(unit * tightness + tightness))

    def _limit(self, name: str, value: str) -> None:
        self.model.limits[name] = value
        self.run(self.books.limit(self.model.limits))

    # -- a walk without Hypothesis -------------------------------------------------------------------------------------

    def walk(self, steps: int, chance: random.Random) -> None:
        """Steps of one account, drawn evenly; a new account every 70 steps, because rates are used up by then."""
        trades: list[tuple[str, str, int, int, int]] = []
        for step in range(steps):
            if step % 70 == 0:
                self.open()
                trades.clear()
            ids = [name for name, held in self.model.orders.items() if held.lots]
            self._step(chance, chance.choice(ids[-8:]) if ids else None, trades)
            self.the_ledger_is_what_the_model_is()

    def _step(self, chance: random.Random, order_id: str | None, trades: list[tuple[str, str, int, int, int]]) -> None:
        product, amount = chance.choice(list(SCALES)), chance.randint(1, 12)
        side, ticks = chance.choice(list(Side)), chance.choice([None, 1, *range(9_000, 11_000, 50)])
        draw = chance.randrange(14)
        if draw < 4 or order_id is None:
            self._reserve(side, amount, ticks, product, chance.choice([*STRATEGIES, "manual"]))
        elif draw < 5:
            self.reserve_at_a_limit(chance.randrange(9), chance.random() < 0.5, side, amount, product)
        elif draw < 7:
            trade = (order_id, f"t-{self.books.trades}", chance.randint(1, 8), chance.randint(8_000, 12_000), 5)
            self.met("fill {} {}".format(*self._fill(*trade)))
            trades.append(trade)
        elif draw < 8 and trades:
            self.fill_again(chance.choice(trades))
        elif draw < 9:
            self.limit(chance.choice(LIMITED), chance.choice(TIGHTNESS))
        elif draw < 10:
            self.set_state(chance.choice(SCOPES), chance.choice(STATES))
        else:
            verb = chance.choice([self.mark_sent, self.mark_sent, self.cancel, self.ask_again, self.fill_the_rest])
            verb(order_id)

    # -- after every step ----------------------------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_what_the_model_is(self) -> None:
        type(self).steps += 1
        self.run(self._compare())

    async def _compare(self) -> None:
        model, snapshot = self.model, await self.ledger.snapshot(ACCOUNT)
        left_out = ("seq", "denied_for_rate", "|fees")
        booked = {n: int(v) for n, v in snapshot.book.items() if int(v) and not n.endswith(left_out)}
        expected = model.book()
        assert booked | {"fees": model.fees} == expected | {"fees": model.fees}
        assert {p: int(n) for p, n in snapshot.positions.items() if int(n)} == {
            p: n for p, n in model.positions.items() if n
        }
        by_strategy = {
            (s, p): int(n) for s, held in snapshot.strategy_positions.items() for p, n in held.items() if int(n)
        }
        assert by_strategy == {key: n for key, n in model.by_strategy.items() if n}
        for product in SCALES:
            assert model.cost[product] - model.realised[product] == model.flow[product]
        assert model.cash == CASH - sum(model.flow.values()) - model.fees
        assert {scope: snapshot.state[scope] for scope in SCOPES} == model.states
        assert await self.books.outbox() == model.outbox
        statuses = {held["client_order_id"]: held["status"] for held in await self.ledger.open_orders(ACCOUNT)}
        assert statuses == {name: held.status for name, held in model.orders.items() if held.open}
        assert await self.ledger.verify(ACCOUNT) == []


@pytest.fixture
def run_on(tmp_path: Path) -> Iterator[Any]:
    """Lets something be done with the machine on a server: (kind, what) -> the machine's class with its counts."""
    with asyncio.Runner() as runner:

        def run(kind: Kind, what: Callable[[type[LedgerMachine]], None]) -> type[LedgerMachine]:
            with Server(binary(kind), tmp_path).running() as redis_settings:
                ledger = runner.run(_connected(Settings(state_dir=tmp_path, redis=redis_settings)))
                counted = type("Machine", (LedgerMachine,), {"ledger": ledger, "runner": runner, "outcomes": Counter()})
                try:
                    what(counted)
                finally:
                    runner.run(ledger.close())
                return counted

        yield run


def sequences(number: int, steps: int) -> Callable[[type[LedgerMachine]], None]:
    """Generated by Hypothesis."""
    chosen = settings(
        max_examples=number,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda machine: run_state_machine_as_test(machine, settings=chosen)


def walk(steps: int) -> Callable[[type[LedgerMachine]], None]:
    """Drawn evenly, the same every time."""
    return lambda machine: machine().walk(steps, random.Random(3))


async def _connected(settings: Settings) -> Ledger:
    ledger = Ledger.connect(settings, redis_secrets())
    await ledger.install()
    return ledger


def test_model_and_valkey_agree_after_every_step(run_on: Any) -> None:
    machine = run_on("valkey", sequences(130, 25))
    assert machine.steps >= 2_000


def test_a_long_walk_meets_every_rule_and_every_end(run_on: Any) -> None:
    """Generated sequences are short and may miss something; a seeded walk of one account is the same every time."""
    machine = run_on("valkey", walk(700))
    # A run that never met these has proven nothing about them.
    met = {
        "ACCEPTED", "RATE_LIMIT", "INSUFFICIENT_FUNDS", "MAX_GROSS", "MAX_POSITION", "MAX_OPEN_ORDERS",
        "NOTIONAL_EXCEEDS_MAX", "TRADING_HALTED", "REDUCE_ONLY_MODE", "fill APPLIED PARTIALLY_FILLED",
        "fill APPLIED FILLED", "fill APPLIED CANCELLED", "fill DUPLICATE", "cancel CANCELLED", "cancel REQUESTED",
        "cancel ALREADY",
    }  # fmt: skip
    assert met <= set(machine.outcomes), (met - set(machine.outcomes), machine.outcomes)


def test_model_and_redis_agree_after_every_step(run_on: Any) -> None:
    assert run_on("redis", sequences(35, 25)).steps >= 500


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_model_and_server_agree_for_fifty_thousand_steps(run_on: Any, kind: Kind) -> None:
    machine = run_on(kind, sequences(500, 60))
    assert machine.steps >= 25_000
    assert {"RATE_LIMIT", "REDUCE_ONLY_MODE", "MAX_POSITION", "NOTIONAL_EXCEEDS_MAX"} <= set(machine.outcomes)
