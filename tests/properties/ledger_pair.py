"""The real ledger and its plain model side by side: each step does one thing to both and compares all there is.

The steps draw what they do from a ``Chance``, so that Hypothesis and a seeded walk can take the same ones. Time is the
server's: the model is told the moment that the audit entry of a step shows, and where a step leaves none, what it says
must be right for a moment between two looks at the server's clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import pytest

from cluster import audit
from cluster.ledger import (
    EnvironmentMixed,
    Ledger,
    LedgerError,
    LedgerUnavailable,
    Reference,
    Snapshot,
    StaleEpoch,
    Verdict,
    account_base,
    order_of,
)
from strategies.model import Order, OrderStatus, OrderType, Product, Side, TimeInForce, TradingState
from tests.books import PRODUCTS, STRATEGIES, Books, limit_records, order
from tests.properties.ledger_limits import Record, day_number
from tests.properties.ledger_model import ENDED, NOTHING, SCALES, Account, Day, Desk, Held, Holder, Quote
from tests.properties.ledger_rules import Asked, Decision, Rule, decide, refuse_amend

T = TypeVar("T")
ACCOUNTS: Final = ("main", "second")
BOOKS: Final[tuple[str | None, ...]] = (None, *ACCOUNTS)
"""Everything with a book: the desk (None) and its accounts."""
KEYS: Final = ("test", "test", "alice")
FOUND: Final = "external"
"""The strategy of orders found at the venue; it has no limits."""
ANN, BOB = "ann", "bob"
CASH: Final = 8_000_000
LOTS_HELD: Final = {"BTC-USD": 25, "XRP-USD": 40}
FIRST_QUOTES: Final = {"BTC-USD": (9_900, 10_100), "XRP-USD": (9_990, 10_010)}
GENESIS: Final = "0" * 40
HOUR_US: Final = 3_600_000_000
TIMED: Final = frozenset({"RATE_LIMIT", "MSG_RATE", "STALE_REFERENCE", "NOT_ARMED", "EXPIRE_IN_PAST"})
"""Rules whose value, or what it is compared with, is a time that passes."""
DAY_S: Final = 86_400
WITH_TRIGGER: Final = (OrderType.STOP_LIMIT, OrderType.BRACKET)

STATES: Final = [TradingState.ACTIVE, TradingState.REDUCING, TradingState.HALTED, TradingState.CANCEL_ALL]
SCOPES: Final = ["account", *(f"strategy|{s}" for s in STRATEGIES), *(f"product|{p}" for p in SCALES)]

# What limits are set to. Unlimited comes first, because Hypothesis shrinks towards it.
_AMOUNTS: Final = ["unlimited", "9000000:4000000", "3000000", "1200000:600000", "200000", "0"]
_COUNTS: Final = ["unlimited", "9:4", "3", "2:1", "0"]
_LOTS: Final = ["unlimited", "60:30", "30", "12:6", "3"]
_PPM: Final = ["unlimited", "2000000:1000000", "800000", "100000:50000", "20000"]
_RATE: Final = ["unlimited", str(HOUR_US), "20000", "3000"]
_WINDOW: Final = ["60000", "15", "0"]
VALUES: Final[dict[str, list[str]]] = {
    "max_order_notional": _AMOUNTS,
    "max_open_orders": _COUNTS,
    "max_open_notional": _AMOUNTS,
    "max_gross_exposure": _AMOUNTS,
    "max_net_exposure": _AMOUNTS,
    "order_interval_us": _RATE,
    "order_burst": ["100", "4", "2", "1"],
    "max_daily_orders": _COUNTS,
    "max_daily_turnover": _AMOUNTS,
    "max_daily_loss": ["unlimited", "3000000:1000000", "500000", "50000", "1"],
    "max_drawdown_ppm": ["unlimited", "500000:200000", "100000", "10000"],
    "max_leverage_ppm": _PPM,
    "max_concentration_ppm": _PPM,
    "max_order_to_trade": ["unlimited", "20:5", "6", "2"],
    "message_interval_us": _RATE,
    "message_burst": ["100", "5", "3"],
    "cancel_reserve": ["0", "1", "2"],
    "taker_fee_ppm": ["6000", "0", "50000"],
    "market_buffer_ppm": ["10000", "0", "100000"],
    "reference_stale_ms": ["3600000", "200", "40"],
    "reference_halt_ms": ["unlimited", "400", "60"],
    "max_clock_skew_ms": ["unlimited", "3600000"],
    "duplicate_window_ms": ["0", "3600000"],
    "max_venue_errors": _COUNTS,
    "venue_error_window_ms": _WINDOW,
    "max_rejects": _COUNTS,
    "reject_window_ms": _WINDOW,
    "self_trade": ["allow", "deny"],
    "capital": ["unlimited", "10000000", "1000000", "0"],
    "max_loss_streak": ["unlimited", "3", "2", "1"],
    "max_repeats": ["unlimited", "5", "2", "1"],
    "repeat_window_ms": _WINDOW,
    "short": ["allowed", "denied"],
    "hours": ["always", "0-5040", "5040-10080", "0-3000,6000-10080"],
    "versions": ["any", "v1,v2"],
    "max_order_lots": _LOTS,
    "max_position_lots": _LOTS,
    "max_strategy_position_lots": _LOTS,
    "collar_ppm": ["unlimited", "500000:100000", "50000", "9000"],
    "max_spread_ppm": ["unlimited", "40000:20000", "10000", "100"],
    "fat_finger_ppm": ["unlimited", "5000000:2000000", "1500000", "500000"],
    "max_depth_ppm": ["unlimited", "3000000:1000000", "500000"],
    "volatility_ppm": ["unlimited", "200000", "50000", "5000"],
    "volatility_window_ms": ["3600000", "50"],
    "volatility_halt_ms": ["60000", "3600000", "30"],
    "restricted": ["no", "no", "no", "yes"],
    "group": ["majors", "-", "minors"],
}


class Chance(Protocol):
    """What a step draws from."""

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""

    def between(self, least: int, most: int) -> int:
        """A whole number, both ends among them."""

    def some(self, options: Sequence[T]) -> list[T]:
        """One to three different ones."""


@dataclass(frozen=True)
class Span:
    """When something happened by the server's clock: between the two, in microseconds."""

    first_us: int
    last_us: int


class LedgerPair:
    """A desk of two accounts, on the model and on a real server. ``story`` is what was done so far."""

    def __init__(
        self, ledger: Ledger, runner: asyncio.Runner, outcomes: Counter[str], restart: Callable[[], None]
    ) -> None:
        """Empty the server and open both accounts; ``outcomes`` counts what was met, ``restart`` kills the server."""
        self._runner, self._outcomes, self._restart = runner, outcomes, restart
        self.story: list[str] = []
        self.run(_emptied(ledger))
        # A ledger remembers the epoch it has seen; this one starts with an empty server.
        self.ledger = Ledger(ledger._wire)
        self.desk = Desk()
        self.accounts = {name: Account(self.desk, name) for name in ACCOUNTS}
        self.books = {name: Books(self.ledger, name) for name in ACCOUNTS}
        self.trades: list[tuple[str, str, str, int, int, int]] = []
        self.adjusted: list[tuple[str, int, dict[str, tuple[int, int]]]] = []
        self.number = 0
        self._seen: dict[str | None, tuple[str, int, str]] = dict.fromkeys(BOOKS, ("", 0, GENESIS))
        self._fresh: dict[str | None, list[tuple[str, str]]] = {name: [] for name in BOOKS}
        self._alerts: dict[str | None, str] = dict.fromkeys(BOOKS, "")
        self._ended: Counter[tuple[str | None, str]] = Counter()
        self._standing: set[tuple[str | None, str, str]] = set()
        self._digests: dict[tuple[str | None, str], str] = {}
        self._amending: set[tuple[str | None, str]] = set()
        self._open()

    def run(self, call: Awaitable[T]) -> T:
        """Wait for it."""

        async def awaited() -> T:
            return await call

        return self._runner.run(awaited())

    def met(self, what: str) -> None:
        """Count an outcome."""
        self._outcomes[what] += 1

    def holder(self, name: str | None) -> Holder:
        """The account, or (None) the desk, of the model."""
        return self.desk if name is None else self.accounts[name]

    # -- both at once --------------------------------------------------------------------------------------------------

    def _timed(self, call: Awaitable[T]) -> tuple[T, Span]:
        """Make a call; the audit says when it happened, or else the server's clock before and after it."""
        return self.run(self._timed_call(call))

    async def _timed_call(self, call: Awaitable[T]) -> tuple[T, Span]:
        before, result = await asyncio.gather(self.ledger._direct("TIME"), call)
        *entries, after = await asyncio.gather(
            *(self.ledger.audit_entries(name, self._seen[name][0]) for name in BOOKS),
            self.ledger._direct("TIME"),
        )
        moments = [self._read(name, *entry) for name, found in zip(BOOKS, entries, strict=True) for entry in found]
        if moments:
            return result, Span(moments[0], moments[0])
        first, last = (int(seconds) * 1_000_000 + int(micros) for seconds, micros in (before, after))
        return result, Span(first, last)

    def _read(self, name: str | None, stream_id: str, entry: Mapping[str, str]) -> int:
        """Take a new audit entry: the next one, hashed into the chain; returns its moment."""
        _, seq, chain = self._seen[name]
        parts = (chain, entry["seq"], entry["us"], entry["kind"], entry["id"], entry["by"], entry["data"])
        assert entry["seq"] == str(seq + 1), f"audit of {name}: expected entry {seq + 1}, was {entry}"
        computed = hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
        assert entry["chain"] == computed, f"audit of {name}: the chain is broken at {entry}"
        self._seen[name] = (stream_id, seq + 1, computed)
        self._fresh[name].append((entry["kind"], entry["id"]))
        self._once(name, entry["kind"], entry["id"])
        return int(entry["us"])

    def _once(self, name: str | None, kind: str, order_id: str) -> None:
        """What can happen to an order once happens once; an amendment is settled at most once, before the end."""
        if kind in {"RESERVED", "DENIED", "ADOPTED", *ENDED}:
            about = f"{'ended' if kind in ENDED - {'DENIED'} else kind} {order_id}"
            self._ended[name, about] += 1
            assert self._ended[name, about] == 1, f"{name}: {about} twice\n{self.told()}"
        if kind == "AMEND_REQUESTED":
            assert (name, order_id) not in self._amending, f"{name}: {order_id} is amended twice at once\n{self.told()}"
            self._amending.add((name, order_id))
        if kind in {"AMENDED", "AMEND_REFUSED"}:
            assert (name, order_id) in self._amending, f"{name}: {order_id} is settled twice\n{self.told()}"
        if kind in {"AMENDED", "AMEND_REFUSED", *ENDED}:
            self._amending.discard((name, order_id))

    def _begin(self, name: str | None, us: int) -> None:
        holders = [self.desk, *self.accounts.values()] if name is None else [self.accounts[name]]
        for holder in holders:
            holder.begin(us)

    def _open(self) -> None:
        desk, own = limit_records({"group|minors|max_gross_exposure": "unlimited"})
        self._first_limits: dict[str | None, dict[str, str]] = {None: desk, **dict.fromkeys(ACCOUNTS, own)}
        self._set_limits(None, desk)
        for name, account in self.accounts.items():
            self._set_limits(name, own)
            self.quote(name, {p: (*prices, None) for p, prices in FIRST_QUOTES.items()})
            self._claim(name)
            with pytest.raises(LedgerUnavailable, match="RECONCILING"):
                self.run(self.books[name].reserve(order("too-early", account=name)))
            _, span = self._timed(
                self.ledger.open_account(name, CASH, {p: (n, 0) for p, n in LOTS_HELD.items()}, "test")
            )
            account.begin(span.first_us)
            account.open_account(CASH, LOTS_HELD)
            self._admit(name)
        self.compare()

    def _claim(self, name: str) -> None:
        self.books[name].epoch, _ = self._timed(self.ledger.claim(name, "test"))
        self.accounts[name].audit.append(("EPOCH", str(self.books[name].epoch)))

    def of(self, product: str) -> Product:
        """The product by its name."""
        return PRODUCTS[product]

    def units(self, asked: Order) -> Units:
        """Lots, and ticks of the limit (None = market) and of the trigger (None = it has none)."""
        return units(asked)

    # -- orders --------------------------------------------------------------------------------------------------------

    def order(self, chance: Chance, name: str) -> tuple[Order, str]:
        """An order that could be anything, and the key that asks for it."""
        product = chance.pick(list(SCALES))
        # Odd prices, so that what is worth a part of a micro is rounded.
        ticks = chance.pick([10_003, 10_000, 10_051, 9_957, 9_900, 10_100, 10_507, 9_503, None, None, 1])
        asked = self.asked(name, chance.pick(list(Side)), self.lots(chance, product), ticks, product)
        asked = replace(
            asked, strategy=chance.pick([*STRATEGIES, "manual"]), reduce_only=chance.pick([False] * 5 + [True])
        )
        if ticks is not None:
            asked = self._of_a_kind(chance, asked)
        return replace(asked, strategy_version=chance.pick(["v1", "v1", "", "v3"])), chance.pick(KEYS)

    def _of_a_kind(self, chance: Chance, asked: Order) -> Order:
        """A limit order with another end, or one that waits for a price, near the market or where that has been."""
        kind = chance.pick([None] * 6 + [TimeInForce.IOC, TimeInForce.IOC, TimeInForce.GTD, *WITH_TRIGGER])
        if kind is TimeInForce.IOC:
            return replace(asked, time_in_force=kind)
        ends: float | None = chance.pick([3_600.0, 3_600.0, 3_600.0, 0.5, -1.0, 1.02])
        if kind in WITH_TRIGGER and chance.pick([True, False]):
            ends = None
        if kind in WITH_TRIGGER:
            ticks = chance.pick([10_300, 9_700, 10_100, 9_900, 10_507, 9_503, 10_010, 9_990, 14_001, 7_001])
            asked = replace(asked, type=OrderType(kind), stop_price=PRODUCTS[asked.product_id].price(ticks))
        if kind is None or ends is None:
            return asked
        return replace(asked, time_in_force=TimeInForce.GTD, end_ns=time.time_ns() + int(ends * 1e9))

    def lots(self, chance: Chance, product: str) -> int:
        """XRP is worth a hundredth of BTC here, so more of it is asked for."""
        return chance.between(1, 30) * (1 if product == "BTC-USD" else chance.pick([1, 97]))

    def asked(
        self, name: str, side: Side, lots: int, ticks: int | None, product: str, strategy: str = "manual"
    ) -> Order:
        """An order under a new id."""
        self.number += 1
        chosen = {"side": side, "product_id": product, "strategy": strategy}
        return order(f"o-{self.number}", account=name, lots=lots, ticks=ticks, **chosen)

    def reserve(self, name: str, asked: Order, by: str = "test") -> Decision:
        """Ask both, compare the answers; the model then holds what the ledger does."""
        account = self.accounts[name]
        verdict, span = self._timed(self.books[name].reserve(asked, by))
        decision = self._agree(account, asked, by, verdict, span)
        lots, ticks, _ = units(asked)
        self.story.append(f"reserve {_shown(asked, by)} -> {sorted(d.code for d in decision.denials) or 'ACCEPTED'}")
        for code in {denial.code for denial in decision.denials} or {"ACCEPTED"}:
            self.met(code)
        if decision.denials:
            assert verdict.kind == "DENIED"
            if decision.kept:
                repeated = any(denial.code == "REPEAT_EXECUTION" for denial in decision.denials)
                account.deny(Held(asked, by, 0, ticks, NOTHING, "DENIED"), repeated)
            return decision
        assert verdict.kind == "ACCEPTED"
        worth = decision.worth(lots)
        self.same(_reserved(verdict), (worth.notional, worth.cash))
        held = Held(asked, by, lots, ticks, worth, "RESERVED", left=lots)
        reduced = Asked(account, asked, *units(asked), by).reduces("account")
        warnings = [(warning.code, warning.scope) for warning in decision.warnings]
        account.take(held, decision.tats, decision.repeats, warnings)
        self.run(self._nothing_exceeded(account, asked, by, reduced))
        return decision

    def _agree(
        self, account: Account, asked: Order, by: str, verdict: Verdict, span: Span, amends: Held | None = None
    ) -> Decision:
        """The model's decision at the moment of the verdict, which must be the same."""
        denials = {_rule(denial) for denial in verdict.answer.get("denials", ())}
        warnings = {_rule(warning) for warning in verdict.answer.get("warnings", ())}
        for us in dict.fromkeys((span.first_us, span.last_us)):
            account.begin(us)
            expected = decide(Asked(account, asked, *units(asked), by, amends))
            if _same(denials, expected.denials, span) and (denials or _same(warnings, expected.warnings, span)):
                return expected
        raise AssertionError(
            f"{_shown(asked, by)}\nledger: {_listed(denials)}, warnings {_listed(warnings)}\n"
            f"model:  {_listed(expected.denials)}, warnings {_listed(expected.warnings)}\n{self.told()}"
        )

    async def _nothing_exceeded(self, account: Account, asked: Order, by: str, reduced: bool) -> None:
        """No limit is exceeded by what the ledger has booked, right after it accepted."""
        snapshot = await self.ledger.snapshot(account.name)
        found = [*_exceeded(snapshot, account, asked, by, reduced)]
        assert found == [], f"accepted beyond {found}\n{self.told()}"

    def check(self, name: str, asked: Order, by: str) -> None:
        """Ask without reserving: the answer of a reservation, and nothing changes."""
        before = self.run(self.books[name].keys())
        verdict, span = self._timed(self.books[name].check(asked, by))
        assert verdict.kind == "CHECKED"
        self._agree(self.accounts[name], asked, by, verdict, span)
        assert self.run(self.books[name].keys()) == before, f"a check of {_shown(asked, by)} has changed something"
        self.story.append(f"check {_shown(asked, by)}")
        self.met("check")

    def ask_again(self, name: str, order_id: str) -> None:
        """The same order under the same id: the first answer."""
        held = self.accounts[name].orders[order_id]
        verdict, _ = self._timed(self.books[name].reserve(held.order, held.by))
        self.same((verdict.kind, verdict.accepted), ("REPEATED", held.lots > 0))

    def ask_for_another(self, name: str, order_id: str) -> None:
        """Another order under the same id."""
        held = self.accounts[name].orders[order_id]
        other = replace(held.order, quantity=held.order.quantity * 2)
        verdict, _ = self._timed(self.ledger.reserve(other, PRODUCTS[other.product_id], held.by))
        self.same((verdict.kind, verdict.accepted), ("CONFLICT", False))

    # -- amendments ----------------------------------------------------------------------------------------------------

    def wanted(self, name: str, order_id: str, lots: int, ticks: int) -> Order:
        """What an order is to be."""
        asked = self.accounts[name].orders[order_id].order
        product = PRODUCTS[asked.product_id]
        return replace(asked, quantity=product.quantity(lots), limit_price=product.price(ticks))

    def amend(self, name: str, order_id: str, lots: int, ticks: int, by: str = "alice") -> set[tuple[str, str]]:
        """Ask for another size and price of an order; it counts for whom it counted for, whoever asks. What denies."""
        account, wanted = self.accounts[name], self.wanted(name, order_id, lots, ticks)
        held = account.orders[order_id]
        verdict, span = self._timed(self.ledger.amend(wanted, PRODUCTS[wanted.product_id], by))
        self.story.append(f"amend {order_id} to {lots} at {ticks} -> {'nothing' if verdict is None else verdict.kind}")
        if held.status == "DENIED" or verdict is None:
            self.same((verdict, held.status), (None, "DENIED"))
            return {("NOT_FOUND", "account")}
        broken = self._amend(account, held, wanted, verdict, span)
        self.story[-1] += f" {sorted(code for code, _ in broken)}"
        for code in {code for code, _ in broken} or {verdict.kind}:
            self.met(f"amend {code}")
        return broken

    def _amend(self, account: Account, held: Held, wanted: Order, verdict: Verdict, span: Span) -> set[tuple[str, str]]:
        lots, ticks, _ = units(wanted)
        assert ticks is not None
        last = held.amend or held
        if held.open and (last.lots, last.ticks) == (lots, ticks):
            self.same((verdict.kind, verdict.accepted), ("REPEATED", True))
            return set()
        denied = Decision(None, None)
        if refusal := refuse_amend(held, lots):
            self.same({_rule(denial) for denial in verdict.answer.get("denials", ())}, {refusal})
            denied.denials = {refusal}
        with account.without(held):
            decision = denied if refusal else self._agree(account, wanted, held.by, verdict, span, held)
        if decision.denials:
            assert verdict.kind == "DENIED"
            if decision.kept:
                account.audit.append(("AMEND_DENIED", wanted.client_order_id))
            return {(denial.code, denial.scope) for denial in decision.denials}
        assert verdict.kind == "ACCEPTED"
        worth = decision.worth(lots - held.filled)
        self.same(_reserved(verdict), (worth.notional, worth.cash))
        warnings = [(warning.code, warning.scope) for warning in decision.warnings]
        account.request_amend(held, lots, ticks, worth, decision.tats, warnings)
        return set()

    def settle_amend(self, name: str, order_id: str, amended: bool) -> str:
        """What the venue has said to an amendment, once; to none it is nothing new."""
        epoch, pending = self.books[name].epoch, self.accounts[name].orders[order_id].amend is not None
        if amended:
            found, _ = self._timed(self.ledger.amended(name, epoch, order_id))
        else:
            found, _ = self._timed(self.ledger.amend_refused(name, epoch, order_id, "why"))
        held = self.accounts[name].orders[order_id]
        expected = "NOT_FOUND" if held.status == "DENIED" else self.accounts[name].settle_amend(order_id, amended)
        self.story.append(f"{order_id} is {'amended' if amended else 'left as it was'} -> {found}")
        self.same(found, expected)
        self.met(f"{'amended' if amended else 'amendment refused'} {found}" + ("" if pending else " without"))
        return found

    # -- execution -----------------------------------------------------------------------------------------------------

    def send(self, name: str, order_id: str) -> None:
        """On its way to the venue, once."""
        found, _ = self._timed(self.ledger.mark_sent(name, self.books[name].epoch, order_id))
        first = self.accounts[name].send(order_id)
        self.same(found, (first, self.accounts[name].orders[order_id].status))
        self.story.append(f"send {order_id}")

    def acknowledge(self, name: str, order_id: str, status: OrderStatus) -> None:
        """The venue has it, or nobody knows."""
        found, _ = self._timed(self.ledger.ack(name, self.books[name].epoch, order_id, status, "v"))
        self.same(found, self.accounts[name].acknowledge(order_id, status))
        self.story.append(f"acknowledge {order_id} {status}")

    def fill(self, name: str, order_id: str, trade_id: str, lots: int, ticks: int, fee: int) -> tuple[str, str]:
        """A fill, perhaps one that was booked before, or that comes late or is too large."""
        books, account = self.books[name], self.accounts[name]
        books.orders[order_id] = account.orders[order_id].order
        found, span = self._timed(books.fill(order_id, lots, ticks, fee, trade_id))
        account.begin(span.last_us)
        self.story.append(f"fill {order_id} {trade_id}: {lots} lots at {ticks}, fee {fee} -> {found}")
        self.same(found, account.fill(order_id, trade_id, lots, ticks, fee))
        self.met(f"fill {found[0]} {found[1]}")
        if found[0] == "APPLIED":
            self.trades.append((name, order_id, trade_id, lots, ticks, fee))
        return found

    def release(self, name: str, order_id: str, status: OrderStatus) -> None:
        """The end of an order, once."""
        found, span = self._timed(self.ledger.release(name, self.books[name].epoch, order_id, status, "why"))
        self.accounts[name].begin(span.last_us)
        first = self.accounts[name].end(order_id, status)
        self.story.append(f"release {order_id} {status}")
        self.same(found, (first, self.accounts[name].orders[order_id].status))
        self.met(f"release {first}")

    def cancel(self, name: str, order_id: str) -> None:
        """As its owner asks."""
        found, span = self._timed(self.ledger.request_cancel(name, order_id, "test"))
        self.accounts[name].begin(span.last_us)
        self.story.append(f"cancel {order_id} -> {found}")
        self.same(found, self.accounts[name].cancel(order_id))
        self.met(f"cancel {found[1]}")

    def finish_outbox(self, name: str) -> None:
        """Execution has read all there is, and is done with it."""
        entries = self.run(self.ledger._direct("XRANGE", f"{account_base(name)}:outbox", "-", "+"))
        sent = [(stream_id, f["kind"], f["id"]) for stream_id, f in entries]
        statuses = {order_id: held.status for order_id, held in self.accounts[name].orders.items()}
        done = [(entry, kind, order_id) for entry, kind, order_id in sent if statuses[order_id] != "RESERVED"]
        self._timed(self.ledger.outbox_done(name, [entry for entry, _, _ in done]))
        for _, kind, order_id in done:
            self.accounts[name].outbox.remove((kind, order_id))
            if kind == "CANCEL":
                self.accounts[name].orders[order_id].cancel_asked = False
        self.story.append(f"{name}: the outbox is worked off")

    def adopt(self, name: str, found: Order) -> bool:
        """An order that the venue has."""
        account, product = self.accounts[name], PRODUCTS[found.product_id]
        taken, _ = self._timed(self.ledger.adopt(self.books[name].epoch, found, product, "v-found"))
        self.story.append(f"found at the venue: {_shown(found, 'venue')} -> {taken}")
        self.same(taken, account.adopt(found, *units(found)))
        self.met(f"adopted {taken}")
        return taken

    def recon_break(self, name: str) -> None:
        """The venue's figures are not those of the books."""
        halted, _ = self._timed(self.ledger.recon_break(name, self.books[name].epoch, ["cash: 1 and 2", "BTC: 3"]))
        self.story.append(f"{name}: a break -> {halted}")
        self.same(halted, self.accounts[name].recon_break())
        self.met(f"break {halted}")

    def emptied(self, name: str, scope: str) -> None:
        """The venue has no order of a scope any more."""
        self._timed(self.ledger.emptied(name, self.books[name].epoch, scope, {"asked": 1}))
        self.accounts[name].audit.append(("EMPTIED", scope))

    def take_over(self, name: str) -> None:
        """Another execution claims the account: the one before can do nothing more."""
        old = self.books[name].epoch
        self._claim(name)
        assert self.books[name].epoch == old + 1
        order_id = next(iter(self.accounts[name].orders), "o-0")
        with pytest.raises(StaleEpoch):
            self.run(self.ledger.release(name, old, order_id, OrderStatus.CANCELLED, "too late"))
        for late in (
            self.ledger.venue_errors(name, old, 9),
            self.ledger.amended(name, old, order_id),
            self.ledger.amend_refused(name, old, order_id, "too late"),
            self.ledger.recon_break(name, old, ["too late"]),
            self.ledger.adopt(old, order("too-late", account=name), PRODUCTS["BTC-USD"], "v"),
        ):
            with pytest.raises(StaleEpoch):
                self.run(late)
        self.story.append(f"{name}: epoch {old + 1}")

    def crash(self) -> None:
        """The server dies and comes back: nothing is lost, and no order is taken until somebody has reconciled."""
        self._restart()
        self.story.append("the server is killed and started again")
        for name in ACCOUNTS:
            with pytest.raises(LedgerUnavailable, match="RECONCILING"):
                self.run(self.books[name].reserve(order("too-early", account=name)))
        self.compare()
        for name in ACCOUNTS:
            self._admit(name)
        self.met("crash")

    def _admit(self, name: str) -> None:
        self._timed(self.ledger.admit(name, self.books[name].epoch))
        self.accounts[name].audit.append(("ADMITTED", str(self.books[name].epoch)))

    def venue_errors(self, name: str, count: int) -> None:
        """The venue has failed so often."""
        _, span = self._timed(self.ledger.venue_errors(name, self.books[name].epoch, count))
        # The window's start is in the book, and says when this was.
        start = self.run(self.ledger.snapshot(name)).book["a|venue_errors"].split()[0]
        windows = self.accounts[name].windows
        us = max(span.first_us, int(start) * 1000) if start != "0" else span.last_us
        self.accounts[name].begin(us)
        self.accounts[name].venue_errors(count)
        self.story.append(f"{name}: {count} errors of the venue, window {windows['a|venue_errors']}")

    def watch(self, name: str) -> None:
        """Prices that stay old."""
        found, span = self._timed(self.ledger.watch(name, self.books[name].epoch))
        self.accounts[name].begin(span.last_us if not found else span.first_us)
        if not found:
            # Nothing is audited where nothing is halted: the model, told the first moment, must agree.
            self.accounts[name].begin(span.first_us)
        expected = self.accounts[name].watch()
        self.story.append(f"{name}: watch -> {found}")
        self.same(sorted(found), sorted(expected))
        self.met("watch " + "".join(sorted(set(found))))

    # -- the account ---------------------------------------------------------------------------------------------------

    def quote(self, name: str, quotes: Mapping[str, tuple[int, int, tuple[int, int] | None]]) -> None:
        """New prices of an account, with the lots there are at them where known."""
        references = []
        for product_id, (bid, ask, sizes) in quotes.items():
            product = PRODUCTS[product_id]
            known: tuple[Decimal | None, Decimal | None] = (None, None)
            if sizes is not None:
                known = (product.quantity(sizes[0]), product.quantity(sizes[1]))
            references.append(Reference(product, product.price(bid), product.price(ask), *known))
        _, span = self._timed(self.ledger.set_references(name, references))
        stored = self.run(self.ledger.snapshot(name)).reference
        set_ms = int(stored[references[0].product.product_id].split()[2])
        account = self.accounts[name]
        account.begin(max(span.first_us, set_ms * 1000))
        account.quote({p: Quote(bid, ask, set_ms, *(sizes or (0, 0))) for p, (bid, ask, sizes) in quotes.items()})
        self.story.append(f"{name}: quote {dict(quotes)}")

    def spoil_the_book(self, name: str, by: int) -> None:
        """Write a counter that is off by one, or put it right again; the next proof tells."""
        key = f"{account_base(name)}:book"
        self.run(self.ledger._direct("HINCRBY", key, "p|BTC-USD|open_orders", str(by)))
        account = self.accounts[name]
        account.differences += by
        self.story.append(f"a counter of {name} is changed by {by}")
        found, _ = self._timed(self.ledger.prove(name))
        self.same(found, account.prove())

    def bind_environment(self, environment: str) -> None:
        """Say what the books are of: the first to come decides for good."""
        fits = self.desk.bind_environment(environment)
        self.story.append(f"the books are to be of {environment} -> {fits}")
        try:
            self._timed(self.ledger.bind_environment(environment, "test"))
        except EnvironmentMixed:
            self.same(fits, False)
        else:
            self.same(fits, True)
        self.same(self.run(self.ledger.environment()), self.desk.environment)
        self.met(f"environment {fits}")

    def arm(self, milliseconds: int) -> None:
        """Let real orders pass for so long."""
        until_ms = self.run(self._now_us()) // 1000 + milliseconds
        try:
            self._timed(self.ledger.arm("test", ANN, "why", until_ms))
        except LedgerError:
            # A moment that was over before the call came: nothing is armed into the past.
            assert self.run(self._now_us()) // 1000 >= until_ms, self.told()
            return
        self.desk.arm(until_ms)
        self.story.append(f"armed until {until_ms}")

    def disarm(self) -> None:
        """Let no more real orders pass."""
        self._timed(self.ledger.disarm("test", "why"))
        self.desk.arm(0)
        self.same(self.run(self.ledger.armed()), None)
        self.story.append("disarmed")

    def tighten(self, name: str | None, scope: str, state: TradingState) -> None:
        """Anybody may, alone."""
        (seq, asked, holds), span = self._timed(self.ledger.tighten(name, scope, state, "test", "why"))
        self._begin(name, span.first_us)
        accounts = [*self.accounts.values()] if name is None else [self.accounts[name]]
        waiting = sum(len(account.covered(scope)) for account in accounts) if state == "CANCEL_ALL" else 0
        expected = self.holder(name).tighten(scope, state)
        self.story.append(f"tighten {name} {scope} {state} -> {holds}")
        self.same((holds, asked), (expected, waiting))
        assert seq <= self._seen[name][1]
        self.met(f"tightened {holds}")

    def propose_resume(self, name: str | None, scope: str, person: str, ttl_s: float = 600) -> str:
        """Ask for another person's yes."""
        proposal, _ = self._timed(self.ledger.propose_resume(name, scope, "test", person, "why", ttl_s))
        self.holder(name).propose(proposal.id, "RESUME", self.holder(name).halt_of(scope), person)
        self._digests[name, proposal.id] = proposal.digest
        self.story.append(f"propose {proposal.id}: resume {name} {scope} by {person}")
        return proposal.id

    def propose_adjust(self, name: str, cash: int, positions: Mapping[str, tuple[int, int]], person: str) -> str:
        """Ask for another person's yes to book {product: (lots, cost)} and cash that came or went."""
        proposal, _ = self._timed(self.ledger.propose_adjust(name, cash, positions, "test", person, "why"))
        content = (cash, tuple(sorted(positions.items())))
        self.accounts[name].propose(proposal.id, "ADJUST", content, person)
        self._digests[name, proposal.id] = proposal.digest
        self.story.append(f"propose {proposal.id}: adjust {name} by {content}, {person}")
        return proposal.id

    def let_expire(self, name: str | None, proposal_id: str) -> None:
        """Wait until the server's clock is past the proposal's end."""
        (expires_ms,) = [p.expires_ms for p in self.run(self.ledger.proposals(name)) if p.id == proposal_id]
        while self.run(self._now_us()) // 1000 <= expires_ms:
            pass
        self.holder(name).proposals[proposal_id].status = "EXPIRED"

    def approve(self, name: str | None, proposal_id: str, person: str, right: bool = True) -> str:
        """A yes, perhaps to something else than what stands there now, perhaps of the same person."""
        digest = self._digests.get((name, proposal_id), "") if right else "0" * 40
        approval, span = self._timed(self.ledger.approve(name, proposal_id, digest, "second", person))
        self._begin(name, span.last_us)
        expected = self.holder(name).approve(proposal_id, right, person)
        self.story.append(f"approve {proposal_id} of {name} by {person} -> {approval.outcome}")
        assert approval.outcome == expected, f"{approval}, expected {expected}\n{self.told()}"
        self.met(f"approve {expected}")
        if expected == "APPLIED" and name is not None:
            proposal = self.accounts[name].proposals[proposal_id]
            if proposal.kind == "ADJUST":
                cash, positions = proposal.content
                assert isinstance(cash, int)
                assert isinstance(positions, tuple)
                self.adjusted.append((name, cash, dict(positions)))
                self.met("adjusted")
        return expected

    def refuse(self, name: str | None, proposal_id: str) -> None:
        """A no."""
        found, _ = self._timed(self.ledger.refuse(name, proposal_id, "second", BOB, "no"))
        self.same(found.outcome, self.holder(name).refuse(proposal_id))
        self.story.append(f"refuse {proposal_id} of {name}")

    def _set_limits(self, name: str | None, wanted: Mapping[str, str]) -> str | None:
        change, _ = self._timed(self.ledger.set_limits(name, wanted, "test", person=ANN))
        now, later = self.holder(name).set_limits(wanted)
        self.same(change.changed, now)
        self.same(change.version, self.holder(name).version)
        self.same((change.proposal_id is not None), bool(later))
        if change.proposal_id is not None:
            content = (self.holder(name).version, tuple(sorted(later.items())))
            self.holder(name).propose(change.proposal_id, "LIMITS", content, ANN)
            (digest,) = [p.digest for p in self.run(self.ledger.proposals(name)) if p.id == change.proposal_id]
            self._digests[name, change.proposal_id] = digest
        return change.proposal_id

    def limit(self, name: str | None, changed: Mapping[str, str], approved: bool = True) -> None:
        """Set single limits by "scope|name"; what is looser is approved at once, or left waiting."""
        wanted = dict(self.holder(name).limits)
        for field, text in changed.items():
            scope, _, limit = field.rpartition("|")
            record = Record(wanted[scope])
            record.words[limit] = text
            wanted[scope] = record.text()
        self.story.append(f"limit {name} {dict(changed)}")
        self._propose_limits(name, wanted, approved)

    def _propose_limits(self, name: str | None, wanted: Mapping[str, str], approved: bool) -> None:
        proposal_id = self._set_limits(name, wanted)
        self.met("limits " + ("lowered" if proposal_id is None else "raised"))
        if proposal_id is not None and approved:
            assert self.approve(name, proposal_id, BOB) == "APPLIED"

    def restore(self, name: str | None, scope: str, record: str) -> None:
        """Set one record as it was."""
        self._propose_limits(name, self.holder(name).limits | {scope: record}, approved=True)

    def restore_all(self, name: str | None) -> None:
        """Set every record as it was in the beginning, the calendar left as it is."""
        first = self._first_limits[name] | {"calendar": self.holder(name).limits["calendar"]}
        self.story.append(f"limits of {name} as in the beginning")
        self._propose_limits(name, first, approved=True)

    def limit_key(self, name: str, key: str, record: str | None) -> None:
        """Give a key limits of its own, or take them away."""
        wanted = {s: text for s, text in self.accounts[name].limits.items() if s != f"key|{key}"}
        self.story.append(f"limit {name} key|{key} {record}")
        self._propose_limits(name, wanted | ({} if record is None else {f"key|{key}": record}), approved=True)

    def let_time_pass(self, seconds: int, names: Sequence[str | None] = BOOKS) -> None:
        """Set clocks forward: to the desk or an account a day passes when its own calendar says so."""
        for name in names:
            zone, offset = self.holder(name).limits["calendar"].split()
            self._set_limits(name, self.holder(name).limits | {"calendar": f"{zone} {int(offset) + seconds}"})
        self.story.append(f"the clocks of {list(names)} are set {seconds} s forward")

    def look_at_the_clock(self) -> None:
        """Tell the model what time it is."""
        self._begin(None, self.run(self._now_us()))

    async def _now_us(self) -> int:
        seconds, micros = await self.ledger._direct("TIME")
        return int(seconds) * 1_000_000 + int(micros)

    def resume_all(self) -> None:
        """Two people resume whatever may be resumed; where money is real, the desk is armed."""
        self.look_at_the_clock()
        if not self.desk.armed():
            self.arm(HOUR_US // 1000)
        for name in BOOKS:
            for scope in [scope for scope, state in self.holder(name).states.items() if state != "ACTIVE"]:
                self.approve(name, self.propose_resume(name, scope, ANN), BOB)

    # -- after every step ----------------------------------------------------------------------------------------------

    def told(self) -> str:
        """What was done, for a message."""
        return "what was done:\n  " + "\n  ".join(self.story[-60:])

    def same(self, found: object, expected: object) -> None:
        """Fail with both, and with what was done, where the ledger has something else than the model expects."""
        assert found == expected, f"ledger: {found}\nmodel:  {expected}\n{self.told()}"

    def compare(self) -> None:
        """Everything there is."""
        self.run(self._compare())
        for name in BOOKS:
            expected, found = self.holder(name).audit, self._fresh[name]
            assert sorted(found) == sorted(expected), f"audit of {name}: {found}, expected {expected}\n{self.told()}"
            expected.clear()
            found.clear()
            standing = {(name, scope, cause) for scope, cause in self.holder(name).causes.items() if cause}
            for _, _, cause in standing - self._standing:
                self.met(f"latched {cause}")
            self._standing = {latch for latch in self._standing if latch[0] != name} | standing

    async def _compare(self) -> None:
        # One exchange for all of it, in this order: what does not add up would be halted by being found.
        proven, snapshots, waiting, alerts = await asyncio.gather(
            asyncio.gather(*(self.ledger.prove(name) for name in BOOKS)),
            asyncio.gather(*(self.ledger.snapshot(name) for name in ACCOUNTS)),
            asyncio.gather(*(self._waiting_orders(name) for name in ACCOUNTS)),
            asyncio.gather(*(self._new_alerts(name) for name in BOOKS)),
        )
        for name, found in zip(BOOKS, alerts, strict=True):
            self.same(sorted(found), sorted(self.holder(name).alerts))
            self.holder(name).alerts.clear()
        assert proven == [0, 0, 0], f"the books do not add up: {proven}\n{self.told()}"
        for name, snapshot, orders in zip(ACCOUNTS, snapshots, waiting, strict=True):
            account = self.accounts[name]
            self._compare_books(name, account.book(), account, snapshot.book, snapshot.now_ms)
            self._adds_up(account, snapshot)
            self._compare_settings(account, snapshot.state, snapshot.limits)
            self._compare_orders(account, *orders)
        self._compare_books(None, self.desk.book(), self.desk, snapshots[0].desk_book, snapshots[0].now_ms)
        self._compare_settings(self.desk, snapshots[0].desk_state, snapshots[0].desk_limits)

    def _compare_books(
        self, name: str | None, expected: Mapping[str, int | str], holder: Holder, book: Mapping[str, str], now_ms: int
    ) -> None:
        self.same((book["seq"], book["head"]), (str(self._seen[name][1]), self._seen[name][2]))
        today = day_number(now_ms * 1000, holder.limits["calendar"])
        different = {}
        for field in sorted((book.keys() | expected.keys()) - {"seq", "head"}):
            pair = (book.get(field, "0"), str(expected.get(field, "0")))
            if field.endswith("day"):
                start = int(book.get(field.removesuffix("day") + "pnl", 0))
                pair = (_current(pair[0], today, start), _current(pair[1], today, start))
            if pair[0] != pair[1] and {*pair} - _NOTHING:
                different[field] = pair
        assert different == {}, f"book of {name}, (ledger, model): {different}\n{self.told()}"

    def _adds_up(self, account: Account, snapshot: Snapshot) -> None:
        """Positions are the sum of the fills, and cash is what they and their fees have left; and what was adjusted."""
        cash, lots = CASH, dict(LOTS_HELD)
        for name, more, positions in self.adjusted:
            if name == account.name:
                cash += more
                for product_id, (came, _) in positions.items():
                    lots[product_id] += came
        for name, order_id, _, amount, ticks, fee in self.trades:
            if name == account.name:
                asked = account.orders[order_id].order
                sign, product = (1 if asked.side is Side.BUY else -1), PRODUCTS[asked.product_id]
                value = product.quantity(amount) * product.price(ticks) * 1_000_000
                cash -= sign * int(value.to_integral_value()) + fee
                lots[asked.product_id] += sign * amount
        self.same(int(snapshot.book["cash"]), cash)
        self.same({p: int(snapshot.book.get(f"p|{p}|lots", 0)) for p in lots}, lots)

    def _compare_settings(self, holder: Holder, state: Mapping[str, str], limits: Mapping[str, str]) -> None:
        states = {s: text for s, text in state.items() if s != "epoch" and not s.startswith("cause|")}
        causes = {s.removeprefix("cause|"): text for s, text in state.items() if s.startswith("cause|") and text}
        self.same(states, holder.states)
        self.same(causes, {scope: cause for scope, cause in holder.causes.items() if cause})
        self.same(limits, holder.limits | {"version": str(holder.version)})

    async def _new_alerts(self, name: str | None) -> list[tuple[str, str, str]]:
        key = f"{account_base(name)}:alerts"
        entries = await self.ledger._direct("XRANGE", key, f"({self._alerts[name]}" if self._alerts[name] else "-", "+")
        if entries:
            self._alerts[name] = entries[-1][0]
        return [(fields["level"], fields["code"], fields["scope"]) for _, fields in entries]

    def prove_by_replay(self) -> None:
        """The audit, replayed from its first entry, leads to the books there are; its chain is whole."""
        for name in BOOKS:
            self.same(self.run(audit.verify(self.ledger, name)), [])
            self.same(self.run(audit.verify_chain(self.ledger, name, None)).findings, [])

    async def _waiting_orders(self, name: str) -> tuple[list[tuple[str, str]], list[dict[str, str]], list[Any]]:
        """The outbox, the open orders, and those that rest in each of ``_RESTING``, with their prices."""
        keys = [f"{account_base(name)}:resting:{product}:{side}" for product, side in _RESTING]
        outbox, opened, resting = await asyncio.gather(
            self.books[name].outbox(),
            self.ledger.open_orders(name),
            asyncio.gather(*(self.ledger._direct("ZRANGE", key, "0", "-1", "WITHSCORES") for key in keys)),
        )
        return outbox, opened, resting

    def _compare_orders(
        self,
        account: Account,
        outbox: Sequence[tuple[str, str]],
        opened: Sequence[Mapping[str, str]],
        resting: Sequence[Any],
    ) -> None:
        self.same(outbox, account.outbox)
        held = {name: each for name, each in account.orders.items() if each.open}
        found = {o["client_order_id"]: _open_figures(account.name, o) for o in opened}
        self.same(found, {name: _expected_figures(each) for name, each in held.items()})
        reserved = sum(int(order["reserved_cash"]) for order in opened)
        self.same(reserved, account.reserved())
        for order_id, each in held.items():
            if each.amend is not None:
                # Whatever the venue answers, what may then still be executed is held already.
                for total, worth in ((each.lots, each.amend.before), (each.amend.lots, each.amend.wanted)):
                    needed = worth.part(max(total - each.filled, 0))
                    most = all(had >= need for had, need in zip(each.holds, needed, strict=True))
                    assert most, f"{order_id} holds {each.holds}, may need {needed}\n{self.told()}"
        for (product, side), rests in zip(_RESTING, resting, strict=True):
            expected = {
                name: each.rests_at
                for name, each in held.items()
                if (each.order.product_id, each.order.side) == (product, side) and each.rests_at is not None
            }
            self.same(_scores(rests), expected)


def _open_figures(account: str, fields: Mapping[str, str]) -> tuple[object, ...]:
    figures = [int(fields[name]) for name in ("lots", "filled_lots", *_RESERVED)]
    return order_of(fields["client_order_id"], account, fields), fields["status"], *figures, "amend" in fields


def _expected_figures(held: Held) -> tuple[object, ...]:
    """The order as the venue has it now, and what it holds."""
    product = PRODUCTS[held.order.product_id]
    price = None if held.ticks is None else product.price(held.ticks)
    now = replace(held.order, quantity=product.quantity(held.lots), limit_price=price)
    return now, held.status, held.lots, held.filled, *held.holds, held.amend is not None


def _scores(entries: Sequence[Any]) -> dict[str, int]:
    """Prices in ticks by order: a sorted set comes as pairs, or flat, as the protocol has it."""
    flat = [part for entry in entries for part in (entry if isinstance(entry, (list, tuple)) else (entry,))]
    return {str(name): int(float(score)) for name, score in zip(flat[::2], flat[1::2], strict=True)}


async def _emptied(ledger: Ledger) -> None:
    await ledger._direct("FLUSHALL")
    # Loaded anew, the library has forgotten which accounts it may take orders for.
    await ledger._direct("FUNCTION", "FLUSH")
    await ledger.install()


class Units(NamedTuple):
    """An order's figures as the ledger has them."""

    lots: int
    ticks: int | None
    stop: int | None


def units(asked: Order) -> Units:
    product = PRODUCTS[asked.product_id]
    prices = (None if price is None else product.ticks(price) for price in (asked.limit_price, asked.stop_price))
    return Units(product.lots(asked.quantity), *prices)


def _reserved(verdict: Verdict) -> tuple[int, int]:
    return int(verdict.answer["reserved_notional_micros"]), int(verdict.answer["reserved_cash_micros"])


def _shown(asked: Order, by: str) -> str:
    lots, ticks, stop = units(asked)
    price = "MARKET" if ticks is None else f"{ticks} {asked.time_in_force}"
    price += "" if stop is None else f" {asked.type} {stop}"
    price += "" if asked.end_ns is None else f" until {asked.end_ns // 1_000_000}"
    flags = (
        f"{' reduce_only' if asked.reduce_only else ''}{f' {asked.strategy_version}' if asked.strategy_version else ''}"
    )
    where = f"{asked.account} {asked.strategy} key {by}"
    return f"{asked.client_order_id} {asked.side} {lots} {asked.product_id} at {price}{flags}, {where}"


def _listed(rules: set[Rule]) -> list[str]:
    return sorted(f"{rule.code} {rule.scope} {rule.value} > {rule.limit}" for rule in rules)


def _rule(denial: Mapping[str, str]) -> Rule:
    value, limit = (int(text) if text.lstrip("-").isdigit() else None for text in (denial["value"], denial["limit"]))
    return Rule(denial["code"], denial["scope"], value, limit)


def _same(found: set[Rule], expected: set[Rule], span: Span) -> bool:
    """Whether the rules are the same; values where the model has them, and as exactly as the moment is known."""
    away_ms = -(-(span.last_us - span.first_us) // 1000)
    bare = {rule[:2] for rule in expected if rule.value is None or (away_ms and rule.code in TIMED)}

    def stripped(rules: set[Rule]) -> set[Rule]:
        return {Rule(r.code, r.scope) if r[:2] in bare else r for r in rules}

    times = {rule[:2]: rule.value for rule in expected if rule.code in TIMED}
    waits = [(rule.value, times.get(rule[:2])) for rule in found if rule[:2] in bare]
    near = all(value is None or wanted is None or abs(value - wanted) <= away_ms for value, wanted in waits)
    return near and stripped(found) == stripped(expected)


def _exceeded(snapshot: Snapshot, account: Account, asked: Order, by: str, reduced: bool) -> list[str]:
    """Limits that what the ledger has booked exceeds now, the accepted order among it."""
    found = []
    book, desk = (
        {n: int(v) for n, v in b.items() if v.lstrip("-").isdigit()} for b in (snapshot.book, snapshot.desk_book)
    )
    prefixes = {"global": "", "account": "a|", f"strategy|{asked.strategy}": f"s|{asked.strategy}|"}
    prefixes |= {f"product|{asked.product_id}": f"p|{asked.product_id}|", f"key|{by}": f"k|{by}|"}
    for scope, prefix in prefixes.items():
        figures, record = desk if scope == "global" else book, account.record(scope)
        waiting = figures.get(f"{prefix}buy_notional", 0) + figures.get(f"{prefix}sell_notional", 0)
        compared = {"max_open_orders": figures[f"{prefix}open_orders"], "max_open_notional": waiting}
        day = (snapshot.desk_book if scope == "global" else snapshot.book)[f"{prefix}day"].split()
        compared |= {"max_daily_orders": int(day[1]), "max_daily_turnover": int(day[2]) + waiting}
        if not reduced and not scope.startswith(("key|", "strategy|")):
            compared["max_gross_exposure"] = figures.get(f"{prefix}gross", 0) + waiting
        found += [f"{scope}|{name}" for name, value in compared.items() if value > record.number(name).hard]
    lots, of_product = book.get(f"p|{asked.product_id}|lots", 0), f"p|{asked.product_id}|"
    after = lots + book.get(f"{of_product}buy_lots", 0)
    if asked.side is Side.SELL:
        after = book.get(f"{of_product}sell_lots", 0) - lots
    if after > account.record(f"product|{asked.product_id}").number("max_position_lots").hard:
        found.append("max_position_lots")
    if asked.side is Side.BUY and book["reserved"] > book["cash"]:
        found.append("cash")
    if asked.side is Side.SELL and after > 0:
        found.append("holdings")
    return found


def _current(day: str, today: int, pnl: int) -> str:
    """A day's figures as they count now: those of another day, or none, are an empty day from the PnL there is."""
    return day if day.split()[0] == str(today) else Day(today, pnl_start=pnl).text()


_RESERVED: Final = ("reserved_lots", "reserved_notional", "reserved_cash")
_RESTING: Final = [(product, side) for product in SCALES for side in Side]
_NOTHING: Final = {"0", "", "0 0"}
"""Ways to say that nothing has been counted."""
