"""The ledger as a plain Python model, written from the rules, not from the Lua: slow, obvious, all in integers.

Here is what a desk holds and what happens to it; what an order is compared with is in ledger_rules.py, how limits are
read in ledger_limits.py. Sums are made anew each time from orders and positions: no counter that could drift.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from strategies.model import Order, OrderType, Side, TimeInForce
from tests.properties.ledger_limits import UNLIMITED, Record, day_number, merged, within_hours

# Micros that a lot is worth at a tick, as (numerator, denominator).
SCALES: Final = {"BTC-USD": (10, 1), "XRP-USD": (1, 10)}
ENDED: Final = frozenset({"DENIED", "FILLED", "CANCELLED", "REJECTED", "EXPIRED"})
LEVELS: Final = {"ACTIVE": 0, "REDUCING": 1, "HALTED": 2, "CANCEL_ALL": 3}
SIDES: Final = {Side.BUY: "buy", Side.SELL: "sell"}
RESTING: Final = frozenset({TimeInForce.GTC, TimeInForce.GTD})
RECENT_MAX: Final = 15
PPM: Final = 1_000_000
BRACKET_PPM: Final = 50_000
"""How far beyond its trigger a bracket is executed at the worst."""
NO_LIMITS: Final = "versions=any short=allowed hours=always order_burst=1 " + " ".join(
    [f"{name}_ms=0" for name in ("duplicate_window", "reject_window", "repeat_window")]
    + [f"max_{what}=unlimited" for what in (
        "order_notional", "open_orders", "open_notional", "daily_orders", "daily_turnover", "gross_exposure",
        "net_exposure", "daily_loss", "drawdown_ppm", "order_to_trade", "loss_streak", "repeats", "rejects",
    )]
    + ["capital=unlimited", "order_interval_us=unlimited"]
)  # fmt: skip
"""What a strategy without a record is compared with: nothing, but it may not send either."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def value_up(product: str, lots: int, ticks: int) -> int:
    """Micros, rounded up."""
    numerator, denominator = SCALES[product]
    return ceil_div(lots * ticks * numerator, denominator)


class Quote(NamedTuple):
    """A reference: prices in ticks, sizes in lots (0 = unknown), times in server milliseconds."""

    bid: int
    ask: int
    set_ms: int = 0
    bid_lots: int = 0
    ask_lots: int = 0
    anchor_mid2: int = 0
    anchor_ms: int = 0
    volatile_until_ms: int = 0

    @property
    def mid2(self) -> int:
        """Twice the middle."""
        return self.bid + self.ask


@dataclass
class Position:
    """Lots held (negative = short), what they cost, and what was earned and paid before, in micros."""

    lots: int = 0
    cost: int = 0
    realised: int = 0
    fees: int = 0

    def take(self, sign: int, lots: int, value: int, fee: int) -> int | None:
        """Book a fill; returns the profit of what it closed, None where it closed nothing."""
        self.fees += fee
        closing = min(abs(self.lots), lots) if self.lots * sign < 0 else 0
        profit = None
        if closing:
            of_value, of_cost = value * closing // lots, abs(self.cost) * closing // abs(self.lots)
            profit = -sign * (of_value - of_cost)
            self.realised += profit
            self.cost += sign * of_cost
            value -= of_value
        self.cost += sign * value
        self.lots += sign * lots
        return profit

    def move(self, lots: int, cost: int) -> None:
        """Lots come at a cost, or leave with their part of what there was; nothing is earned by it."""
        if self.lots * lots < 0:
            part = abs(self.cost) * min(abs(lots), abs(self.lots)) // abs(self.lots)
            cost = -part if self.cost > 0 else part
        self.lots += lots
        self.cost += cost

    def value(self, product: str, quote: Quote | None) -> int:
        """Micros at the middle of the market, rounded against us."""
        if quote is None:
            return self.cost
        numerator, denominator = SCALES[product]
        # Floor does both: of a short's negative value it is the one that owes more.
        return self.lots * numerator * quote.mid2 // (2 * denominator)

    def gross(self, product: str, quote: Quote | None) -> int:
        """|value| rounded up to the next tick and micro."""
        return abs(self.cost) if quote is None else value_up(product, abs(self.lots), ceil_div(quote.mid2, 2))

    def pnl(self, product: str, quote: Quote | None) -> int:
        """Realised and unrealised profit, fees taken off."""
        return self.realised - self.fees + self.value(product, quote) - self.cost


@dataclass
class Day:
    """A scope's figures of one day."""

    number: int = 0
    orders: int = 0
    turnover: int = 0
    pnl_start: int = 0
    messages: int = 0
    fills: int = 0

    def text(self) -> str:
        return f"{self.number} {self.orders} {self.turnover} {self.pnl_start} {self.messages} {self.fills}"


@dataclass(frozen=True)
class Window:
    """Events counted from the first one until the window's length has passed."""

    start_ms: int
    count: int

    def text(self) -> str:
        return f"{self.start_ms} {self.count}"


class Worth(NamedTuple):
    """Lots, and the micros they were valued at; a purchase needs cash for its fee too."""

    lots: int
    notional: int
    cash: int

    def part(self, lots: int) -> Worth:
        """What so many of the lots are worth by that, rounded up."""
        if lots == 0:
            return NOTHING
        return Worth(lots, ceil_div(self.notional * lots, self.lots), ceil_div(self.cash * lots, self.lots))


NOTHING: Final = Worth(0, 0, 0)


@dataclass(frozen=True)
class Amendment:
    """What an order is to be: its whole size, its price, and what was not filled when it was asked for."""

    lots: int
    ticks: int
    wanted: Worth
    before: Worth


@dataclass
class Held:
    """An order the ledger knows, and what of its reservation is left."""

    order: Order
    """As it was asked for at first; what it has been amended to is in ``lots`` and ``ticks``."""
    by: str
    lots: int
    ticks: int | None
    worth: Worth
    """What the lots not filled hold their part of."""
    status: str
    left: int = 0
    filled: int = 0
    profit: int = 0
    """Of the exits it has made so far, fees taken off; what a loss streak is counted by."""
    trades: set[str] = field(default_factory=set)
    cancel_asked: bool = False
    amend: Amendment | None = None
    """What the venue has been asked to make of it, and has not answered."""

    @property
    def open(self) -> bool:
        """Whether it holds a reservation."""
        return self.status not in ENDED

    @property
    def rests_at(self) -> int | None:
        """Its price in ticks where it may stand in the venue's book; one with a trigger does not, before.

        While it is amended it may have the old price or the new one: what is nearer to the other side counts.
        """
        if self.order.type is not OrderType.LIMIT or self.order.time_in_force not in RESTING or self.ticks is None:
            return None
        nearer = max if self.order.side is Side.BUY else min
        return nearer(self.ticks, self.amend.ticks) if self.amend else self.ticks

    @property
    def holds(self) -> Worth:
        """What is reserved for the lots that are not filled."""
        return self.worth.part(self.left)

    @property
    def most(self) -> int:
        """Lots the venue may fill: while it amends, of both sizes the larger."""
        return max(self.lots, self.amend.lots) if self.amend else self.lots

    def prefixes(self) -> tuple[str, ...]:
        """The prefixes in the book of the scopes that count its orders and days."""
        return ("a", f"s|{self.order.strategy}", f"p|{self.order.product_id}", f"k|{self.by}")


class Losses(NamedTuple):
    """What a scope has lost since its day began, and where it stands below its peak, in micros."""

    record: Record
    loss: int
    peak: int
    now: int

    def reached(self, soft: bool) -> list[str]:
        """The limits of loss, hard or soft, that have been reached."""
        found = ["DAILY_LOSS"] if self.loss >= self.record.number("max_daily_loss")[soft] else []
        if "max_drawdown_ppm" in self.record.words and self.peak > 0:
            most = self.record.number("max_drawdown_ppm")[soft] * self.peak
            found += ["DRAWDOWN"] if (self.peak - self.now) * PPM >= most else []
        return found


@dataclass
class Proposal:
    """What waits for a second person: a scope to resume, or limits with the version they were asked for at."""

    kind: str
    content: tuple[object, ...]
    person: str
    status: str = "PENDING"


class Holder:
    """What an account and the desk have in common: limits, states, what waits for approval, an audit."""

    def __init__(self, us: int = 0) -> None:
        """Nothing is set yet."""
        self.us = us
        self.limits: dict[str, str] = {}
        self.version = 0
        self.states: dict[str, str] = {}
        self.causes: dict[str, str] = {}
        self.proposals: dict[str, Proposal] = {}
        self.audit: list[tuple[str, str]] = []
        self.alerts: list[tuple[str, str, str]] = []
        """(SOFT or HARD, code, scope)."""

    def begin(self, us: int) -> None:
        """A step at ``us`` by the server's clock."""
        raise NotImplementedError

    def tighten(self, scope: str, state: str) -> str:
        """As strict as ``state``; what is stricter stays. Returns the state that holds."""
        if LEVELS[self.states[scope]] < LEVELS[state]:
            self.states[scope], self.causes[scope] = state, ""
        self.audit.append(("STATE", scope))
        for proposal_id, proposal in self.proposals.items():
            resumes = (proposal.kind, proposal.content[0]) == ("RESUME", scope)
            if state != "ACTIVE" and resumes and proposal.status == "PENDING":
                proposal.status = "REFUSED"
                self.audit.append(("REFUSED", proposal_id))
        return self.states[scope]

    def latch(self, scope: str, state: str, cause: str) -> bool:
        """As strict as ``state`` until a person resumes; what is as strict already stays as it is."""
        if LEVELS[self.states.get(scope, "ACTIVE")] >= LEVELS[state]:
            return False
        self.states[scope], self.causes[scope] = state, cause
        self.audit.append(("STATE", scope))
        self.alerts.append(("HARD", cause, scope))
        return True

    def set_limits(self, wanted: Mapping[str, str]) -> tuple[dict[str, str | None], dict[str, str]]:
        """What is stricter holds at once, what is looser waits: (written now, None = removed; asked for)."""
        now: dict[str, str | None] = {}
        later: dict[str, str] = {}
        for scope, record in wanted.items():
            before = self.limits.get(scope)
            if not self.version or (scope == "calendar" and before and before.split()[0] == record.split()[0]):
                now |= {scope: record} if record != before else {}
            elif before is None or scope == "calendar":
                later |= {scope: record} if record != before else {}
            else:
                stricter, looser = merged(before, record)
                now |= {scope: stricter} if stricter != before else {}
                later |= {scope: record} if looser else {}
        now |= {scope: None for scope in self.limits if scope not in wanted}
        if now:
            self._write_limits(now)
        return now, later

    def _write_limits(self, changes: Mapping[str, str | None]) -> None:
        self.version += 1
        self.audit.append(("LIMITS", str(self.version)))
        for scope, record in changes.items():
            if record is None:
                del self.limits[scope]
            else:
                self.limits[scope] = record
                if scope.partition("|")[0] in STATEFUL:
                    self.states.setdefault(scope, "ACTIVE")

    def propose(self, proposal_id: str, kind: str, content: tuple[object, ...], person: str) -> None:
        """Make a proposal under the ledger's id, unless the same one waits already."""
        if self.waits(kind, content, person):
            assert self.proposals[proposal_id] == Proposal(kind, content, person), f"waits under another id: {content}"
            return
        assert proposal_id not in self.proposals, f"another proposal has the id {proposal_id}"
        self.proposals[proposal_id] = Proposal(kind, content, person)
        self.audit.append(("PROPOSED", proposal_id))

    def waits(self, kind: str, content: tuple[object, ...], person: str) -> bool:
        """Whether this very proposal is waiting already."""
        return Proposal(kind, content, person) in self.proposals.values()

    def approve(self, proposal_id: str, digest_is_right: bool, person: str) -> str:
        """Another person's yes; returns the outcome."""
        proposal = self.proposals.get(proposal_id)
        if proposal is None:
            return "NOT_FOUND"
        if proposal.status != "PENDING":
            return "EXPIRED" if proposal.status == "EXPIRED" else "DONE"
        if proposal.person == person:
            return "SAME_PERSON"
        if not digest_is_right:
            return "CHANGED"
        if proposal.kind == "RESUME":
            scope = str(proposal.content[0])
            if proposal.content != self.halt_of(scope):
                return "CHANGED"
            if self.breached(str(proposal.content[0]), resuming=True):
                return "STILL_BREACHED"
            self._resume(str(proposal.content[0]))
            self.audit.append(("APPROVED", proposal_id))
        elif proposal.kind == "ADJUST":
            cash, positions = proposal.content
            assert isinstance(cash, int)
            assert isinstance(positions, tuple)
            self.audit.append(("APPROVED", proposal_id))
            self.adjust(cash, dict(positions))
        else:
            version, changes = proposal.content
            if version != self.version:
                return "CHANGED"
            self.audit.append(("APPROVED", proposal_id))
            assert isinstance(changes, tuple)
            self._write_limits(dict(changes))
        proposal.status = "APPLIED"
        return "APPLIED"

    def halt_of(self, scope: str) -> tuple[str, str, str]:
        """What a proposal to resume a scope is about: it, its state and what tripped."""
        return scope, self.states.get(scope, ""), self.causes.get(scope, "")

    def refuse(self, proposal_id: str) -> str:
        """Anybody's no; returns the outcome."""
        proposal = self.proposals.get(proposal_id)
        if proposal is None:
            return "NOT_FOUND"
        if proposal.status != "PENDING":
            return "DONE"
        proposal.status = "REFUSED"
        self.audit.append(("REFUSED", proposal_id))
        return "REFUSED"

    def adjust(self, cash: int, positions: Mapping[str, tuple[int, int]]) -> None:
        """Book cash and (lots, cost) by product that came or went without an order."""
        raise NotImplementedError

    def breached(self, scope: str, resuming: bool = False) -> list[str]:
        """The rules with a latch that a scope breaks as it stands now."""
        raise NotImplementedError

    def losses(self, scope: str) -> Losses:
        """How much a scope has lost, and may lose."""
        raise NotImplementedError

    def trip(self, scope: str, before: Losses) -> None:
        """Latch what has been reached, and say where a soft level was passed since ``before``."""
        now = self.losses(scope)
        for cause in now.reached(soft=False):
            self.latch(scope, "REDUCING", cause)
        for cause in now.reached(soft=True):
            if cause not in now.reached(soft=False) and cause not in before.reached(soft=True):
                self.alerts.append(("SOFT", cause, scope))

    def forget(self, cause: str, scope: str) -> None:
        """What the rule of ``cause`` has counted."""

    def _resume(self, scope: str) -> None:
        self.forget(self.causes.get(scope, ""), scope)
        self.states[scope], self.causes[scope] = "ACTIVE", ""
        self.audit.append(("STATE", scope))


STATEFUL: Final = ("global", "account", "strategy", "product")


class Desk(Holder):
    """All accounts together: what is compared with the desk's own limits."""

    def __init__(self) -> None:
        """No accounts yet."""
        super().__init__()
        self.accounts: dict[str, Account] = {}
        self.peak = 0
        self.day = Day()
        self.tat = 0
        self.environment = ""
        """paper, sandbox or live; "" until somebody has said."""
        self.armed_until_ms = 0

    def record(self, scope: str) -> Record:
        """The limits of ``global``."""
        return Record(self.limits[scope])

    # Each of an account's scope by its prefix in the book; "" is the desk's own, all accounts summed up.

    def _books(self, account: Account | None, prefix: str) -> list[tuple[Account, str]]:
        if prefix and account is not None:
            return [(account, prefix)]
        return [(each, "a") for each in self.accounts.values()]

    def open_in(self, account: Account | None, prefix: str) -> list[Held]:
        """Orders with a reservation that count for a scope."""
        return [held for each, own in self._books(account, prefix) for held in each.open_in(own)]

    def open_notional(self, account: Account | None, prefix: str, side: Side | None = None) -> int:
        """Micros the open orders of a scope still reserve."""
        return sum(each.open_notional(own, side) for each, own in self._books(account, prefix))

    def gross(self, account: Account | None, prefix: str) -> int:
        """|positions| at the middle, rounded up."""
        return sum(each.gross(own) for each, own in self._books(account, prefix))

    def value(self, account: Account | None, prefix: str) -> int:
        """Positions at the middle, rounded against us."""
        return sum(each.value(own) for each, own in self._books(account, prefix))

    def pnl(self) -> int:
        """Of all accounts."""
        return sum(account.pnl("a") for account in self.accounts.values())

    @property
    def equity(self) -> int:
        """Of all accounts."""
        return sum(account.equity for account in self.accounts.values())

    def today(self, account: Account, prefix: str) -> Day:
        """A scope's figures of the day."""
        return account.today(prefix) if prefix else self.day

    def arrival(self, account: Account, prefix: str, interval_us: int, burst: int) -> int:
        """When the next one would be due by a rate, never further ahead than a full burst (GCRA), in microseconds."""
        tat = account.tats[prefix] if prefix else self.tat
        return min(max(tat, self.us), self.us + burst * interval_us)

    def begin(self, us: int) -> None:
        """A step at ``us``: where a new day has begun, the figures start from what is booked before the step."""
        self.us, number = us, day_number(us, self.limits["calendar"])
        if self.day.number != number:
            self.day = Day(number, pnl_start=self.pnl())

    def breached(self, scope: str, resuming: bool = False) -> list[str]:
        """DAILY_LOSS, DRAWDOWN."""
        return self.losses(scope).reached(soft=False)

    def losses(self, scope: str) -> Losses:
        """Of all accounts together."""
        return Losses(self.record(scope), self.day.pnl_start - self.pnl(), self.peak, self.equity)

    def book(self) -> dict[str, int | str]:
        """Every figure the desk's own book must show."""
        figures: dict[str, int | str] = {
            "open_orders": len(self.open_in(None, "")),
            "gross": self.gross(None, ""),
            "value": self.value(None, ""),
            "pnl": self.pnl(),
            "equity": self.equity,
            "peak": self.peak,
            "tat": self.tat,
            "day": self.day.text(),
        }
        for side, name in SIDES.items():
            figures[f"{name}_notional"] = self.open_notional(None, "", side)
        return figures

    def bind_environment(self, name: str) -> bool:
        """The first to come decides; returns whether it is what holds."""
        if not self.environment:
            self.environment = name
            self.audit.append(("ENVIRONMENT", name))
        return self.environment == name

    def arm(self, until_ms: int) -> None:
        """Real orders may pass until then; 0: not any more."""
        self.armed_until_ms = until_ms
        self.audit.append(("ARMED" if until_ms else "DISARMED", "global"))

    def armed(self) -> bool:
        """Whether orders may go out: what is not real always may."""
        return self.environment != "live" or self.us // 1000 < self.armed_until_ms

    def tighten(self, scope: str, state: str) -> str:
        """As of an account; CANCEL_ALL is asked of all of them."""
        holds = super().tighten(scope, state)
        for account in self.accounts.values() if state == "CANCEL_ALL" else ():
            account.cancel_all("account")
        return holds


class Account(Holder):
    """One account of a desk. Every step begins with ``begin``, which is told the server's clock."""

    def __init__(self, desk: Desk, name: str) -> None:
        """An account not opened yet, without limits."""
        super().__init__()
        self.desk, self.name = desk, name
        desk.accounts[name] = self
        self.quotes: dict[str, Quote] = {}
        self.cash = self.fees = self.peak = 0
        self.products: defaultdict[str, Position] = defaultdict(Position)
        self.by_strategy: defaultdict[tuple[str, str], Position] = defaultdict(Position)
        self.holders: set[tuple[str, str]] = set()
        """(strategy, product) of every fill."""
        self.strategy_peaks: defaultdict[str, int] = defaultdict(int)
        self.orders: dict[str, Held] = {}
        self.days: dict[str, Day] = {}
        self.tats: defaultdict[str, int] = defaultdict(int)
        self.windows: dict[str, Window] = {}
        self.streaks: defaultdict[str, int] = defaultdict(int)
        self.recent: defaultdict[str, list[int]] = defaultdict(list)
        self.duplicates: dict[tuple[object, ...], int] = {}
        self.outbox: list[tuple[str, str]] = []
        self.differences = 0
        """Figures of the books that somebody has spoilt."""

    def record(self, scope: str) -> Record:
        """A scope's limits; a key without a record of its own has those of all keys."""
        if scope == "global":
            return self.desk.record(scope)
        if scope.startswith("key|") and scope not in self.limits:
            return Record(self.limits["key|*"])
        if scope.startswith("strategy|") and scope not in self.limits:
            return Record(NO_LIMITS)
        return Record(self.limits[scope])

    def group_of(self, product: str) -> str:
        """The group a product is in now, - for none."""
        return self.record(f"product|{product}").words["group"]

    def duplicate_window_ms(self, strategy: str) -> int:
        """For how long the same order counts as a duplicate: the longer one of the account's and the strategy's."""
        records = (self.record("account"), self.record(f"strategy|{strategy}"))
        return max(record.figure("duplicate_window_ms") for record in records)

    def is_open(self, scope: str) -> bool:
        """Whether a scope's hours allow new exposure now."""
        return within_hours(self.record(scope).words["hours"], self.us, self.limits["calendar"])

    # -- figures, made anew from orders and positions ------------------------------------------------------------------

    def open_in(self, prefix: str) -> list[Held]:
        """Orders with a reservation that count for a scope."""
        kind, _, name = prefix.partition("|")
        opened = [held for held in self.orders.values() if held.open]
        if kind == "g":
            return [held for held in opened if self.group_of(held.order.product_id) == name]
        return [held for held in opened if prefix in held.prefixes()]

    def open_notional(self, prefix: str, side: Side | None = None) -> int:
        """Micros the open orders of a scope still reserve."""
        return sum(held.holds.notional for held in self.open_in(prefix) if side in {None, held.order.side})

    def open_lots(self, product: str, side: Side, strategy: str | None = None) -> int:
        """Lots not filled yet, of one side."""
        orders = [h for h in self.open_in(f"p|{product}") if strategy in {None, h.order.strategy}]
        return sum(held.left for held in orders if held.order.side is side)

    def reserved(self) -> int:
        """Cash that open orders hold."""
        return sum(held.holds.cash for held in self.open_in("a"))

    @contextmanager
    def without(self, held: Held) -> Iterator[None]:
        """The account as it were if there were no such order."""
        orders = self.orders
        self.orders = {order_id: each for order_id, each in orders.items() if each is not held}
        try:
            yield
        finally:
            self.orders = orders

    def positions(self, prefix: str) -> Iterator[tuple[str, Position]]:
        """(product, position) of a scope: a, p|P, s|S, g|G, sp|S|P; of a key none."""
        kind, _, name = prefix.partition("|")
        if kind in {"s", "sp"}:
            for (strategy, product), position in self.by_strategy.items():
                if name in {strategy, f"{strategy}|{product}"}:
                    yield product, position
            return
        for product, position in self.products.items():
            if kind == "a" or (kind, name) in {("p", product), ("g", self.group_of(product))}:
                yield product, position

    def gross(self, prefix: str) -> int:
        """|positions| at the middle, rounded up."""
        return sum(position.gross(p, self.quotes.get(p)) for p, position in self.positions(prefix))

    def value(self, prefix: str) -> int:
        """Positions at the middle, rounded against us."""
        return sum(position.value(p, self.quotes.get(p)) for p, position in self.positions(prefix))

    def pnl(self, prefix: str) -> int:
        """Realised and unrealised profit, fees taken off."""
        return sum(position.pnl(p, self.quotes.get(p)) for p, position in self.positions(prefix))

    @property
    def equity(self) -> int:
        """Cash and positions."""
        return self.cash + self.value("a")

    def book(self) -> dict[str, int | str]:
        """Every figure the book must show."""
        held = sorted(p for p, position in self.products.items() if position.lots)
        figures: dict[str, int | str] = {"cash": self.cash, "fees": self.fees, "reserved": self.reserved()}
        figures |= {"held": " ".join(held), "a|equity": self.equity, "a|peak": self.peak, "a|msg_tat": self.tats["msg"]}
        figures |= {name: window.text() for name, window in self.windows.items()}
        figures |= {f"{prefix}|day": day.text() for prefix, day in self.days.items()}
        figures |= {f"{prefix}|tat": tat for prefix, tat in self.tats.items() if prefix != "msg"}
        figures |= {f"p|{p}|recent": " ".join(map(str, sizes)) for p, sizes in self.recent.items()}
        figures |= {f"s|{s}|peak": peak for s, peak in self.strategy_peaks.items()}
        figures |= {f"s|{s}|streak": streak for s, streak in self.streaks.items()}
        counting = {prefix for order in self.orders.values() for prefix in order.prefixes()}
        for prefix in counting:
            figures[f"{prefix}|open_orders"] = len(self.open_in(prefix))
        groups = {f"g|{self.group_of(p)}" for p in SCALES} - {"g|-"}
        for prefix in counting | groups:
            for side, name in SIDES.items():
                figures[f"{prefix}|{name}_notional"] = self.open_notional(prefix, side)
        traded = {*self.by_strategy} | {(o.order.strategy, o.order.product_id) for o in self.orders.values()}
        products, own = {f"p|{p}" for p in SCALES}, {f"sp|{s}|{p}" for s, p in traded}
        marked = {"a"} | products | own | {f"s|{s}" for s, _ in traded}
        for prefix in marked:
            figures |= {f"{prefix}|value": self.value(prefix), f"{prefix}|pnl": self.pnl(prefix)}
        for prefix in marked | groups:
            figures[f"{prefix}|gross"] = self.gross(prefix)
        for product in SCALES:
            figures |= self._position_figures(f"p|{product}", product, self.products[product], None)
            figures[f"p|{product}|strategies"] = " ".join(sorted(s for s, p in self.holders if p == product))
        for strategy, product in traded:
            position = self.by_strategy[strategy, product]
            figures |= self._position_figures(f"sp|{strategy}|{product}", product, position, strategy)
        return figures

    def _position_figures(
        self, prefix: str, product: str, position: Position, strategy: str | None
    ) -> dict[str, int | str]:
        amounts = {"lots": position.lots, "cost": position.cost, "realised": position.realised, "fees": position.fees}
        amounts |= {f"{name}_lots": self.open_lots(product, side, strategy) for side, name in SIDES.items()}
        return {f"{prefix}|{name}": amount for name, amount in amounts.items()}

    # -- what happens --------------------------------------------------------------------------------------------------

    def begin(self, us: int) -> None:
        """A step at ``us``: where a new day has begun, figures start from what is booked before the step."""
        self.us, number = us, day_number(us, self.limits["calendar"])
        for prefix, day in self.days.items():
            if day.number != number:
                self.days[prefix] = Day(number, pnl_start=self.pnl(prefix))
        self.desk.begin(us)

    def today(self, prefix: str) -> Day:
        """A scope's figures of the day."""
        number = day_number(self.us, self.limits["calendar"])
        return self.days.setdefault(prefix, Day(number, pnl_start=self.pnl(prefix)))

    def window(self, name: str, length_ms: int, more: int = 1) -> Window:
        """What a window's count is when ``more`` happen now."""
        now_ms, before = self.us // 1000, self.windows.get(name)
        if before is None or now_ms - before.start_ms > length_ms:
            return Window(now_ms, more)
        return Window(before.start_ms, before.count + more)

    def open_account(self, cash: int, lots: Mapping[str, int]) -> None:
        """Cash, and positions that cost nothing; marked at once."""
        before = self._before(lots)
        self.cash = cash
        for product, amount in lots.items():
            self.products[product].lots = amount
        self.audit.append(("OPENED", "account"))
        self._mark(before)

    def quote(self, quotes: Mapping[str, Quote]) -> None:
        """New prices: a move too fast halts for a while, a crossed market until a person resumes."""
        before = self._before(quotes)
        changed = [p for p, new in quotes.items() if p not in self.quotes or self.quotes[p][:2] != new[:2]]
        for product, new in quotes.items():
            waited = self.quotes[product].volatile_until_ms if product in self.quotes else 0
            self.quotes[product] = self._anchored(product, new)
            if self.quotes[product].volatile_until_ms > waited <= new.set_ms:
                self.alerts.append(("HARD", "VOLATILITY_HALT", f"product|{product}"))
            if new.bid > new.ask:
                self.latch(f"product|{product}", "HALTED", "BAD_BOOK")
        if changed:
            self.audit.append(("REFERENCE", "account"))
        self._mark(before)

    def _anchored(self, product: str, new: Quote) -> Quote:
        record, before = self.record(f"product|{product}"), self.quotes.get(product)
        most = record.number("volatility_ppm").hard
        if before is None or most == UNLIMITED:
            return new._replace(anchor_mid2=new.mid2, anchor_ms=new.set_ms)
        anchor, window_ms = (before.anchor_mid2, before.anchor_ms), record.figure("volatility_window_ms")
        if new.set_ms - before.anchor_ms > window_ms:
            # A new window begins with the last price of the old one, unless that one is too old itself.
            anchor = (before.mid2, before.set_ms) if new.set_ms - before.set_ms <= window_ms else (new.mid2, new.set_ms)
        until = before.volatile_until_ms
        if ceil_div(abs(new.mid2 - anchor[0]) * PPM, anchor[0]) > most:
            until = new.set_ms + record.figure("volatility_halt_ms")
        return new._replace(anchor_mid2=anchor[0], anchor_ms=anchor[1], volatile_until_ms=until)

    def take(
        self, held: Held, tats: Mapping[str, int], repeats: Window | None, warnings: Iterable[tuple[str, str]]
    ) -> None:
        """Reserve an order that every rule lets pass; ``warnings`` are (code, scope) of soft levels it is beyond."""
        self.alerts += [("SOFT", *warning) for warning in warnings]
        order = held.order
        self.orders[order.client_order_id] = held
        for day in self._days_of(held):
            day.orders += 1
            day.messages += 1
        self._advance(tats)
        if repeats is not None:
            self.windows[f"s|{order.strategy}|repeats"] = repeats
        recent = self.recent[order.product_id]
        self.recent[order.product_id] = [*recent, held.lots][-RECENT_MAX:]
        if window_ms := self.duplicate_window_ms(order.strategy):
            self.duplicates[content(order)] = self.us // 1000 + window_ms
        self.outbox.append(("SUBMIT", order.client_order_id))
        self.audit.append(("RESERVED", order.client_order_id))

    def _advance(self, tats: Mapping[str, int]) -> None:
        """An order or message has passed at every rate."""
        for prefix, tat in tats.items():
            self.tats[prefix] = tat
        self.desk.tat = self.tats.pop("", self.desk.tat)

    def request_amend(
        self, held: Held, lots: int, ticks: int, wanted: Worth, tats: Mapping[str, int], warnings: list[tuple[str, str]]
    ) -> None:
        """Ask the venue to amend an order; meanwhile of each old and new figure the larger is held."""
        self.alerts += [("SOFT", *warning) for warning in warnings]
        held.amend = Amendment(lots, ticks, wanted, before=held.worth)
        held.worth = Worth(*map(max, held.holds, wanted))
        held.left = held.worth.lots
        for day in self._days_of(held):
            day.messages += 1
        self._advance(tats)
        self.outbox.append(("AMEND", held.order.client_order_id))
        self.audit.append(("AMEND_REQUESTED", held.order.client_order_id))

    def settle_amend(self, order_id: str, amended: bool) -> str:
        """The venue has made it so, or has not; what that leaves to be filled is held, perhaps nothing."""
        held = self.orders[order_id]
        if not held.open or held.amend is None:
            return held.status
        to, held.amend = held.amend, None
        if amended:
            held.lots, held.ticks, held.worth = to.lots, to.ticks, to.wanted
            self.audit.append(("AMENDED", order_id))
        else:
            held.worth = to.before
            self.audit.append(("AMEND_REFUSED", order_id))
            self.alerts.append(("SOFT", "AMEND_REFUSED", f"strategy|{held.order.strategy}"))
        held.left = max(held.lots - held.filled, 0)
        if held.left == 0:
            held.status = "FILLED"
            self.audit.append(("FILLED", order_id))
            self._count_exit(held)
        return held.status

    def adopt(self, order: Order, lots: int, ticks: int | None, stop: int | None) -> bool:
        """Count an order found at the venue, whatever the limits say, unless it is known."""
        known = self.orders.pop(order.client_order_id, None)
        if known is not None and known.status != "DENIED":
            self.orders[order.client_order_id] = known
            return False
        price, cash = ticks or stop or self.quotes[order.product_id].ask, 0
        if order.type is OrderType.BRACKET and order.side is Side.BUY and stop is not None:
            price = ceil_div(stop * (PPM + BRACKET_PPM), PPM)
        notional = value_up(order.product_id, lots, price)
        if order.side is Side.BUY:
            cash = notional + ceil_div(notional * self.record("account").figure("taker_fee_ppm"), PPM)
        worth = Worth(lots, notional, cash)
        self.orders[order.client_order_id] = Held(order, "venue", lots, ticks, worth, "OPEN", left=lots)
        self.audit.append(("ADOPTED", order.client_order_id))
        self.alerts.append(("HARD", "ADOPTED", "account"))
        return True

    def adjust(self, cash: int, positions: Mapping[str, tuple[int, int]]) -> None:
        """What came or went without an order, as two people have said; marked at once."""
        before = self._before(positions)
        self.cash += cash
        for product, (lots, cost) in positions.items():
            self.products[product].move(lots, cost)
        self.audit.append(("ADJUSTED", "account"))
        self._mark(before)

    def recon_break(self) -> bool:
        """The venue says something else than the books: nothing more until somebody has found out."""
        return self.latch("account", "HALTED", "RECON_BREAK")

    def deny(self, held: Held, repeated: bool) -> None:
        """Remember a denial; what a strategy sends without a human stops it."""
        self.orders[held.order.client_order_id] = held
        self.audit.append(("DENIED", held.order.client_order_id))
        if repeated:
            self.latch(f"strategy|{held.order.strategy}", "HALTED", "REPEAT_EXECUTION")

    def send(self, order_id: str) -> bool:
        """RESERVED becomes SENT, once."""
        held = self.orders[order_id]
        if held.status != "RESERVED":
            return False
        held.status = "SENT"
        self.audit.append(("SENT", order_id))
        return True

    def acknowledge(self, order_id: str, status: str) -> str:
        """What the venue says of an order sent: OPEN, or UNKNOWN where it says nothing."""
        held = self.orders[order_id]
        if held.status == "SENT" or (held.status == "UNKNOWN" and status == "OPEN"):
            held.status = status
            self.audit.append((status, order_id))
        return held.status

    def fill(self, order_id: str, trade_id: str, lots: int, ticks: int, fee: int) -> tuple[str, str]:
        """Cash, cost, profit and positions move; the reservation shrinks."""
        held = self.orders[order_id]
        if held.status == "DENIED":
            return "NOT_FOUND", ""
        if trade_id in held.trades:
            return "DUPLICATE", held.status
        order, was_open = held.order, held.open
        product, sign = order.product_id, 1 if order.side is Side.BUY else -1
        value = value_half_even(product, lots, ticks)
        before = self._before([product], order.strategy)
        self.holders.add((order.strategy, product))
        self.cash -= sign * value + fee
        self.fees += fee
        self.products[product].take(sign, lots, value, fee)
        profit = self.by_strategy[order.strategy, product].take(sign, lots, value, fee)
        for day in self._days_of(held):
            day.turnover += value
            day.fills += 1
        held.trades.add(trade_id)
        held.filled += lots
        held.left = max(held.left - lots, 0)
        held.profit += 0 if profit is None else profit - fee
        self.audit.append(("FILL", order_id))
        if was_open:
            held.status = "FILLED" if held.filled >= held.most else "PARTIALLY_FILLED"
            if not held.open:
                self.audit.append(("FILLED", order_id))
        self._mark(before)
        if not held.open:
            self._count_exit(held)
        scope = f"strategy|{order.strategy}"
        if held.filled > held.most and not self.latch(scope, "HALTED", "OVERFILL"):
            self.alerts.append(("HARD", "OVERFILL", scope))
        return "APPLIED", held.status

    def end(self, order_id: str, status: str) -> bool:
        """Free the reservation, once; the venue's rejections are counted."""
        held = self.orders[order_id]
        if not held.open:
            return False
        held.status, held.left, held.amend = status, 0, None
        self.audit.append((status, order_id))
        self._count_exit(held)
        if status == "REJECTED":
            for scope, name in (("account", "a"), (f"strategy|{held.order.strategy}", f"s|{held.order.strategy}")):
                record = self.record(scope)
                window = self.window(f"{name}|rejects", record.figure("reject_window_ms"))
                self.windows[f"{name}|rejects"] = window
                if window.count > record.number("max_rejects").hard:
                    self.latch(scope, "REDUCING", "REJECT_STORM")
        return True

    def _count_exit(self, held: Held) -> None:
        """An ended order that closed something at a loss makes the streak longer, at a profit ends it."""
        strategy = held.order.strategy
        if held.profit > 0:
            self.streaks[strategy] = 0
        if held.profit < 0:
            self.streaks[strategy] += 1
            if self.streaks[strategy] >= self.record(f"strategy|{strategy}").number("max_loss_streak").hard:
                self.latch(f"strategy|{strategy}", "REDUCING", "COOLDOWN")
        held.profit = 0

    def cancel(self, order_id: str) -> tuple[str, str]:
        """As asked for by the order's owner: never refused, but a message all the same."""
        held = self.orders[order_id]
        if not held.open:
            return held.status, "ALREADY"
        if held.status == "RESERVED":
            self.end(order_id, "CANCELLED")
            return "CANCELLED", "CANCELLED"
        if ("CANCEL", order_id) not in self.outbox:
            for day in self._days_of(held):
                day.messages += 1
            record = self.record("account")
            interval = record.number("message_interval_us").hard
            if interval != UNLIMITED:
                arrival = self.desk.arrival(self, "msg", int(interval), record.figure("message_burst"))
                self.tats["msg"] = arrival + int(interval)
            held.cancel_asked = True
            self.outbox.append(("CANCEL", order_id))
            self.audit.append(("CANCEL_REQUESTED", order_id))
        return held.status, "REQUESTED"

    def venue_errors(self, count: int) -> None:
        """Errors of the venue since the last call."""
        record = self.record("account")
        window = self.window("a|venue_errors", record.figure("venue_error_window_ms"), count)
        self.windows["a|venue_errors"] = window
        if window.count > record.number("max_venue_errors").hard:
            self.latch("account", "REDUCING", "VENUE_UNHEALTHY")

    def prove(self) -> int:
        """Books that do not add up halt the account."""
        if self.differences:
            self.latch("account", "HALTED", "INVARIANT")
        return self.differences

    def watch(self) -> list[str]:
        """Prices that have stayed old halt their product; returns the causes of new halts."""
        causes = []
        for product, quote in self.quotes.items():
            age_ms = self.us // 1000 - quote.set_ms
            if age_ms > self.record("account").number("reference_halt_ms").hard:
                causes += ["STALE_REFERENCE"] * self.latch(f"product|{product}", "HALTED", "STALE_REFERENCE")
        return causes

    def tighten(self, scope: str, state: str) -> str:
        """As strict as ``state``; CANCEL_ALL cancels every open order the scope covers."""
        holds = super().tighten(scope, state)
        if state == "CANCEL_ALL":
            self.cancel_all(scope)
        return holds

    def cancel_all(self, scope: str) -> None:
        """As asked for by the owner of each open order of a scope."""
        for held in self.covered(scope):
            self.cancel(held.order.client_order_id)

    def covered(self, scope: str) -> list[Held]:
        """Open orders of a scope: account, strategy|S, product|P; global is all of them."""
        kind, _, name = scope.partition("|")
        return self.open_in(f"{kind[0]}|{name}" if name else "a")

    def forget(self, cause: str, scope: str) -> None:
        """What a rule has counted begins anew when a person resumes."""
        prefix = "a" if scope == "account" else f"s|{scope.partition('|')[2]}"
        if cause == "COOLDOWN":
            self.streaks[scope.partition("|")[2]] = 0
        counted = {"REPEAT_EXECUTION": "repeats", "REJECT_STORM": "rejects", "VENUE_UNHEALTHY": "venue_errors"}
        if cause in counted:
            self.windows[f"{prefix}|{counted[cause]}"] = Window(0, 0)

    # -- marks and latches of losses -----------------------------------------------------------------------------------

    def _before(self, products: Iterable[str], strategy: str | None = None) -> dict[str, Losses]:
        """Begin the days of everything about to be marked; returns what each scope has lost before."""
        scopes = ["account", *(f"product|{p}" for p in products)]
        scopes += [f"strategy|{name}" for name in self._holders(products, strategy)]
        return {"global": self.desk.losses("global")} | {scope: self.losses(scope) for scope in scopes}

    def _mark(self, before: Mapping[str, Losses]) -> None:
        """Peaks, and the latches of losses, of the scopes whose positions or prices have changed."""
        desk = self.desk
        self.peak, desk.peak = max(self.peak, self.equity), max(desk.peak, desk.equity)
        for name in [scope.partition("|")[2] for scope in before if scope.startswith("strategy|")]:
            self.strategy_peaks[name] = max(self.strategy_peaks[name], self.pnl(f"s|{name}"))
        for scope, lost in before.items():
            (desk if scope == "global" else self).trip(scope, lost)

    def losses(self, scope: str) -> Losses:
        """Of the account, a strategy or a product."""
        kind, _, name = scope.partition("|")
        prefix = {"account": "a", "strategy": f"s|{name}", "product": f"p|{name}"}[kind]
        record, peak, now = self.record(scope), self.peak, self.equity
        if kind == "strategy":
            capital = record.number("capital").hard
            # A strategy falls from the capital it was given and what it has made of it; without a capital from nothing.
            base = 0 if capital == UNLIMITED else int(capital)
            peak = 0 if capital == UNLIMITED else base + self.strategy_peaks[name]
            now = base + self.pnl(prefix)
        return Losses(record, self.today(prefix).pnl_start - self.pnl(prefix), peak, now)

    def breached(self, scope: str, resuming: bool = False) -> list[str]:
        """Losses; and where a product is to be resumed, a market that is still not one to trade in."""
        found = self.losses(scope).reached(soft=False)
        if resuming and scope == "account" and self.differences:
            found.append("INVARIANT")
        quote = self.quotes.get(scope.partition("|")[2])
        if resuming and quote is not None:
            if quote.bid > quote.ask:
                found.append("BAD_BOOK")
            if self.us // 1000 - quote.set_ms > self.record("account").number("reference_halt_ms").hard:
                found.append("STALE_REFERENCE")
        return found

    def _holders(self, products: Iterable[str], strategy: str | None = None) -> list[str]:
        """Strategies that ever held one of the products."""
        found = {s for s, p in self.holders if p in set(products)} | ({strategy} if strategy else set())
        return sorted(found)

    def _days_of(self, held: Held) -> list[Day]:
        return [self.desk.day, *(self.today(prefix) for prefix in held.prefixes())]


def content(order: Order) -> tuple[object, ...]:
    """What makes two orders with different ids the same."""
    return (
        order.strategy,
        order.product_id,
        order.side,
        order.type,
        order.quantity,
        order.limit_price,
        order.stop_price,
    )


def value_half_even(product: str, lots: int, ticks: int) -> int:
    """Micros of a fill: exact, a half rounded to the even micro."""
    numerator, denominator = SCALES[product]
    value, rest = divmod(lots * ticks * numerator, denominator)
    return value + (2 * rest > denominator or (2 * rest == denominator and value % 2 == 1))
