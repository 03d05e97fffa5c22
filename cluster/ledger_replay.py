"""The whole state of an account, and of the desk, computed anew from the audit entries alone."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cluster.audit_chain import GENESIS, Row, chain_of
from cluster.replay_book import ACCOUNT_PREFIX, DESK_PREFIX, Book, Record, Reference, number, record_of

ENDINGS: Final = frozenset({"CANCELLED", "REJECTED", "EXPIRED"})
KEPT_DENIED_US: Final = 86_400 * 1_000_000
KEPT_TERMINAL_US: Final = 172_800 * 1_000_000
SWEEP_EVERY: Final = 10_000
STATE_SCOPES: Final = frozenset({"global", "account", "strategy", "product"})
COUNTED_BY: Final[Mapping[str, str]] = {
    "COOLDOWN": "streak",
    "REPEAT_EXECUTION": "repeats",
    "REJECT_STORM": "rejects",
    "VENUE_UNHEALTHY": "venue_errors",
}
"""What a rule counts, by the cause of the halt it leads to; a person's resumption begins the count anew."""

NOT_IN_THE_LOG: Final[Mapping[str, str]] = {
    ":reference set_ms, bid_lots, ask_lots": "a price that did not change is not written down, only looked at anew",
    ":reference anchor_mid2, anchor_ms, volatile_until_ms": "follow from every look at the price, also at equal ones",
    ":book a|venue_errors": "errors of the venue are counted as they come; only the halt they lead to is an entry",
    ":baseline": "the file the limits last came from, to see what is edited in it next",
    ":limits baseline": "the digest of the file the limits last came from, so that a restart does not take it again",
    ":approvals older than 30 days": "go with the next proposal, whichever of them the server comes across",
    ":order cancel_entry": "the outbox's own number of the question on its way to the venue",
    ":order venue_order_id": "learnt with every answer of the venue; an entry is written where the status changes",
    ":outbox": "what is on its way to the venue now; its consumers, not the books, decide how far it is",
    ":alerts": "repeats what is in the entries, and only the newest are kept",
    ":opened": "the time of the OPENED entry; what reads it reads nothing else of the log",
    ":venue_budget": "when the next request to the venue is due; it is over in a minute",
    ":dup": "lives for milliseconds after an order",
    ":override": "where an approved override is found until it ends; all it says is in the proposal",
}
"""What the server holds and the entries do not, with the reason; nothing of it is a figure of the books."""


class BrokenAudit(ValueError):
    """An entry of the log is missing, repeated, out of order or cannot be read."""


@dataclass(slots=True)
class Held:
    """An order the ledger knows: as asked for, what is left of its reservation, and what became of it."""

    id: str
    request: list[Any]
    by: str
    warnings: str
    notional: int
    cash: int
    lots: int
    left: int
    created_us: int
    changed_us: int
    status: str = "RESERVED"
    filled: int = 0
    value: int = 0
    fees: int = 0
    realised: int | None = None
    venue_order_id: str = ""
    reason: str | None = None
    trades: set[str] = field(default_factory=set)
    basis: int = 0
    amend: dict[str, str] | None = None
    changed: dict[str, str] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    expires_us: int | None = None

    @property
    def strategy(self) -> str:
        """The strategy it counts for."""
        return str(self.request[2])

    @property
    def product(self) -> str:
        """The product it is of."""
        return str(self.request[3])

    @property
    def side(self) -> str:
        """BUY or SELL."""
        return str(self.request[4])

    @property
    def rests(self) -> bool:
        """Whether it stands in the book where another own order may meet it."""
        stop = len(self.request) > 20 and "stop_ticks" in self.request[20]
        return self.request[6] in {"GTC", "GTD"} and bool(self.request[11]) and not stop

    @property
    def rests_at(self) -> str:
        """Its price in ticks; of one that is being amended the price nearer to the other side, old or new."""
        if self.amend is None:
            return str(self.request[11])
        nearer = max if self.side == "BUY" else min
        return nearer(str(self.request[11]), self.amend["ticks"], key=int)

    @property
    def open(self) -> bool:
        """Whether it holds a reservation."""
        return self.status != "FILLED" and self.status not in ENDINGS

    def share(self, amount: int) -> int:
        """The part of ``amount`` that the unfilled lots still hold, rounded up."""
        return -(-amount * self.left // (self.basis or self.lots))

    @property
    def total(self) -> int:
        """Lots that may be filled: of an order that is being amended, the larger number."""
        return max(self.lots, int(self.amend["lots"])) if self.amend else self.lots

    def hold(self, lots: int, basis: int, notional: int, cash: int) -> None:
        """From now on the unfilled lots hold their part of what ``basis`` lots were valued at."""
        self.left, self.basis, self.notional, self.cash = lots, basis, notional, cash

    def fields(self) -> dict[str, str]:
        """As the server holds it."""
        names = ("fingerprint", "strategy", "product", "side", "type", "tif", "quantity", "limit_price", "post_only")
        found = dict(zip(names, self.request[1:10], strict=True))
        figures = {
            "lots": self.lots,
            "filled_lots": self.filled,
            "filled_value": self.value,
            "fees": self.fees,
            "reserved_lots": self.left,
            "reserved_notional": self.share(self.notional),
            "reserved_cash": self.share(self.cash),
            "notional": self.notional,
            "cash": self.cash,
            "created_us": self.created_us,
            "changed_us": self.changed_us,
        }
        found |= {name: str(figure) for name, figure in figures.items()}
        found |= {"status": self.status, "by": self.by, "reduce_only": self.request[18], "version": self.request[19]}
        found["warnings"] = self.warnings
        found |= self.changed | self.first | ({"basis_lots": str(self.basis)} if self.basis else {})
        found |= {"amend": json.dumps(self.amend, sort_keys=True)} if self.amend else {}
        more = self.request[20] if len(self.request) > 20 else None
        if isinstance(more, dict):
            found |= {"stop_price": more.get("stop_price", ""), "end_ns": more.get("end_ns", "")}
        found |= {} if self.realised is None else {"realised": str(self.realised)}
        return found | ({} if self.reason is None else {"reason": self.reason})


class Replay:
    """The state after ``seq`` entries of one account's log, or of the desk's own (``account`` None).

    ``desk`` is the desk's book where several accounts are replayed together; without one an account has its own,
    which then counts this account alone.
    """

    def __init__(self, account: str | None = "", desk: Book | None = None) -> None:
        """Before the first entry."""
        self.account = account
        self.seq = 0
        self.chain = GENESIS
        self.us = 0
        self.book = Book()
        self.desk = self.book if account is None else desk or Book()
        self.state: dict[str, str] = {}
        self.limits = self.book.limits
        self.environment: dict[str, str] = {}
        self.references: dict[str, Reference] = {}
        self.orders: dict[str, Held] = {}
        self.denied: dict[str, tuple[int, dict[str, str]]] = {}
        self.approvals: dict[str, dict[str, Any]] = {}
        self.verbs: dict[str, Callable[[Row, Any], None]] = {
            "OPENED": self._opened,
            "RESERVED": self._reserved,
            "DENIED": self._denied,
            "SENT": self._moved_on,
            "OPEN": self._moved_on,
            "UNKNOWN": self._moved_on,
            "FILL": self._fill,
            "FILLED": self._filled,
            "CANCEL_REQUESTED": self._cancel_requested,
            "AMEND_REQUESTED": self._amend_requested,
            "AMENDED": self._amended,
            "AMEND_REFUSED": self._amend_refused,
            "AMEND_DENIED": self._nothing,
            "ADOPTED": self._adopted,
            "ADJUSTED": self._adjusted,
            "EMPTIED": self._nothing,
            "ENVIRONMENT": self._environment,
            "ARMED": self._armed,
            "DISARMED": self._armed,
            "REFERENCE": self._reference,
            "STATE": self._state,
            "LIMITS": self._limits,
            "PROPOSED": self._proposed,
            "APPROVED": self._approved,
            "REFUSED": self._refused,
            "EPOCH": self._epoch,
            "ADMITTED": self._nothing,
            "ARCHIVED": self._archived,
            "KEY": self._nothing,
            **dict.fromkeys(ENDINGS, self._ended),
        }

    def apply(self, row: Row) -> None:
        """Take the next entry; raises ``BrokenAudit`` where it is not the next one, was altered or cannot be read."""
        if row.problem or row.seq != self.seq + 1:
            raise BrokenAudit(f"expected entry {self.seq + 1}, was {row.problem or row.seq}")
        if chain_of(self.chain, row) != row.chain:
            raise BrokenAudit(f"entry {row.seq} does not follow from the one before it: it was altered")
        verb = self.verbs.get(row.kind)
        if verb is None:
            raise BrokenAudit(f"entry {row.seq} is of no kind that is known: {row.kind!r}")
        try:
            self.us = row.us
            verb(row, json.loads(row.data))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise BrokenAudit(f"entry {row.seq} cannot be read: {error!r}") from error
        self.seq, self.chain = row.seq, row.chain
        if row.seq % SWEEP_EVERY == 0:
            self._sweep()

    # -- orders --------------------------------------------------------------------------------------------------------

    def _reserved(self, row: Row, data: Mapping[str, Any]) -> None:
        request = list(data["request"])
        lots, notional, cash = int(request[10]), int(data["notional"]), int(data["cash"])
        # The server keeps the same text as in the entry, so it is cut out and not written anew.
        warnings = row.data.partition(',"warnings":')[2][:-1] if "warnings" in data else ""
        order = Held(row.id, request, row.by, warnings, notional, cash, lots, lots, row.us, row.us)
        self.orders[row.id] = order
        if "override" in data:
            self._use_override(data["override"], request)
        self.book.figures["reserved"] += cash
        self._count_open(order, 1, lots, notional, 1)
        for book, prefix, scope in self._scopes(order):
            record = self._record(scope)
            day = book.today(prefix, row.us)
            day.orders += 1
            day.messages += 1
            book.advance_rate(prefix + "tat", row.us, record, "order_interval_us", "order_burst")
        account, strategy = self._record("account"), self._record(f"strategy|{order.strategy}")
        self.book.advance_rate("a|msg_tat", row.us, account, "message_interval_us", "message_burst")
        if number(strategy, "max_repeats") is not None:
            window_ms = number(strategy, "repeat_window_ms") or 0
            self.book.count(f"s|{order.strategy}|repeats", row.us // 1000, window_ms)
        self.book.remember_size(order.product, lots)

    def _use_override(self, name: str, request: list[str]) -> None:
        """Two people must have agreed to exactly this order, for now, and for no order before it."""
        proposal = self.approvals[name]
        payload = json.loads(proposal["payload"])
        approved = (proposal["kind"], proposal["status"]) == ("OVERRIDE", "APPLIED")
        due = self.us // 1000 <= int(proposal["expires_ms"])
        if not approved or not due or [payload["id"], payload["fingerprint"]] != request[:2]:
            raise ValueError(f"order {request[0]} had no override {name} to use")
        proposal["status"] = "USED"

    def _denied(self, row: Row, data: Mapping[str, Any]) -> None:
        request = data["request"]
        names = ("fingerprint", "strategy", "product", "side", "type", "tif", "quantity", "limit_price")
        fields = dict(zip(names, request[1:9], strict=True))
        fields |= {"status": "DENIED", "by": row.by, "created_us": str(row.us)}
        fields["answer"] = row.data.partition(',"answer":')[2][:-1]
        self.denied[row.id] = (row.us + KEPT_DENIED_US, fields)
        self.orders.pop(row.id, None)

    def _moved_on(self, row: Row, data: Mapping[str, Any]) -> None:
        order = self.orders[row.id]
        order.status, order.changed_us = row.kind, row.us
        order.venue_order_id = data.get("venue_order_id") or order.venue_order_id

    def _fill(self, row: Row, data: Mapping[str, Any]) -> None:
        order, book = self.orders[row.id], self.book
        lots, value, fee = int(data["lots"]), int(data["value"]), int(data["fee"])
        self._check_fill(order, data)
        strategies = self._begin_mark([order.product], [order.strategy])
        sign = 1 if order.side == "BUY" else -1
        was_open, left = order.open, max(order.left - lots, 0)
        ended = was_open and order.filled + lots >= order.total
        before = order.left, order.share(order.notional), order.share(order.cash)
        order.left = left
        book.figures["cash"] -= sign * value + fee
        book.figures["fees"] += fee
        book.figures["reserved"] -= before[2] - order.share(order.cash)
        self._count_open(order, -1, before[0] - left, before[1] - order.share(order.notional), 1 if ended else 0)
        realised, closing = book.move(f"sp|{order.strategy}|{order.product}|", order.side, lots, value, fee)
        book.move(f"p|{order.product}|", order.side, lots, value, fee)
        book.note_holder(order.product, order.strategy)
        for scope_book, prefix, _ in self._scopes(order):
            day = scope_book.today(prefix, row.us)
            day.turnover += value
            day.fills += 1
        order.trades.add(data["trade_id"])
        order.filled, order.value, order.fees = order.filled + lots, order.value + value, order.fees + fee
        kept = (order.realised or 0) + (realised - fee if closing else 0)
        self._end_mark([order.product], strategies)
        if ended or (not was_open and closing):
            self._count_streak(order, kept)
            kept = 0
        order.realised = kept
        if was_open:
            order.status, order.changed_us = "FILLED" if ended else "PARTIALLY_FILLED", row.us
        if not order.open:
            order.expires_us = row.us + KEPT_TERMINAL_US

    def _check_fill(self, order: Held, data: Mapping[str, Any]) -> None:
        if data["trade_id"] in order.trades:
            raise ValueError(f"trade {data['trade_id']} is booked already")
        wanted = (order.strategy, order.product, order.side)
        if (data["strategy"], data["product"], data["side"]) != wanted or int(data["lots"]) <= 0:
            raise ValueError(f"not a fill of order {order.id}, {wanted}")

    def _filled(self, row: Row, data: Mapping[str, Any]) -> None:
        """Written with the fill that ended the order, where everything of it was done."""
        if self.orders[row.id].status != "FILLED":
            raise ValueError(f"order {row.id} is not filled")

    def _ended(self, row: Row, data: Mapping[str, Any]) -> None:
        order = self.orders[row.id]
        if not order.open:
            raise ValueError(f"order {row.id} has ended before: {order.status}")
        self.book.figures["reserved"] -= order.share(order.cash)
        self._count_open(order, -1, order.left, order.share(order.notional), 1)
        self._count_streak(order, order.realised or 0)
        if row.kind == "REJECTED":
            self._count_rejection("a|rejects", "account")
            self._count_rejection(f"s|{order.strategy}|rejects", f"strategy|{order.strategy}")
        order.left, order.realised, order.amend = 0, 0, None
        order.status, order.changed_us, order.reason = row.kind, row.us, data["reason"]
        order.expires_us = row.us + KEPT_TERMINAL_US

    def _cancel_requested(self, row: Row, data: Mapping[str, Any]) -> None:
        order = self.orders[row.id]
        for book, prefix, _ in self._scopes(order):
            book.today(prefix, row.us).messages += 1
        account = self._record("account")
        self.book.advance_rate("a|msg_tat", row.us, account, "message_interval_us", "message_burst")

    def _amend_requested(self, row: Row, data: Mapping[str, Any]) -> None:
        """Of the old and the new amounts the larger are held until the venue has answered."""
        order, held = self.orders[row.id], {name: int(text) for name, text in data["held"].items()}
        before = order.left, order.share(order.notional), order.share(order.cash)
        self.book.figures["reserved"] += held["cash"] - before[2]
        self._count_open(order, 1, held["lots"] - before[0], held["notional"] - before[1], 0)
        for book, prefix, scope in self._scopes(order):
            book.today(prefix, row.us).messages += 1
            book.advance_rate(prefix + "tat", row.us, self._record(scope), "order_interval_us", "order_burst")
        account = self._record("account")
        self.book.advance_rate("a|msg_tat", row.us, account, "message_interval_us", "message_burst")
        order.amend = dict(data["to"])
        # An amendment leaves both amounts as they were first, which is what a repeat of the order is answered with.
        order.first = order.first or {"first_notional": str(order.notional), "first_cash": str(order.cash)}
        order.hold(held["lots"], held["lots"], held["notional"], held["cash"])

    def _amended(self, row: Row, data: Mapping[str, Any]) -> None:
        order = self.orders[row.id]
        to = order.amend or {}
        self._settle_amend(order, *(int(to[name]) for name in ("lots", "left", "notional", "cash")))
        order.changed = {name: to[name] for name in ("quantity", "limit_price")}
        order.request = [*order.request[:11], to["ticks"], *order.request[12:]]

    def _amend_refused(self, row: Row, data: Mapping[str, Any]) -> None:
        order = self.orders[row.id]
        was = order.amend or {}
        self._settle_amend(order, order.lots, *(int(was[f"old_{name}"]) for name in ("basis", "notional", "cash")))

    def _settle_amend(self, order: Held, lots: int, basis: int, notional: int, cash: int) -> None:
        before = order.left, order.share(order.notional), order.share(order.cash)
        order.lots, order.amend = lots, None
        order.hold(max(lots - order.filled, 0), basis, notional, cash)
        ended = order.left == 0
        self.book.figures["reserved"] -= before[2] - order.share(cash)
        self._count_open(order, -1, before[0] - order.left, before[1] - order.share(notional), 1 if ended else 0)
        order.changed_us = self.us
        if ended:
            self._count_streak(order, order.realised or 0)
            order.realised = 0
            order.status, order.expires_us = "FILLED", self.us + KEPT_TERMINAL_US

    def _adopted(self, row: Row, data: Mapping[str, Any]) -> None:
        """An order found at the venue: counted as any other, against no limit and no rate."""
        request = list(data["request"])
        lots, notional, cash = int(request[10]), int(data["notional"]), int(data["cash"])
        order = Held(row.id, request, row.by, "", notional, cash, lots, lots, row.us, row.us, "OPEN")
        order.venue_order_id = data["venue_order_id"]
        self.denied.pop(row.id, None)
        self.orders[row.id] = order
        self.book.figures["reserved"] += cash
        self._count_open(order, 1, lots, notional, 1)

    # -- the account ---------------------------------------------------------------------------------------------------

    def _opened(self, row: Row, data: Mapping[str, Any]) -> None:
        positions = dict(data["positions"])
        self._begin_mark(list(positions), [])
        self.book.figures["cash"] += int(data["cash"])
        for product, opening in positions.items():
            self.book.figures[f"p|{product}|lots"] += int(opening["lots"])
            self.book.figures[f"p|{product}|cost"] += int(opening["cost"])
            self.book.note_holder(product, None)
        self._end_mark(list(positions), [])

    def _adjusted(self, row: Row, data: Mapping[str, Any]) -> None:
        positions = dict(data["positions"])
        self._begin_mark(list(positions), [])
        self.book.figures["cash"] += int(data["cash"])
        for product, change in positions.items():
            prefix, lots, cost = f"p|{product}|", int(change["lots"]), int(change["cost"])
            held = self.book.figures[prefix + "lots"]
            if held * lots < 0:
                whole = self.book.figures[prefix + "cost"]
                part = abs(whole) * min(abs(lots), abs(held)) // abs(held)
                cost = -part if whole > 0 else part
            self.book.figures[prefix + "lots"] += lots
            self.book.figures[prefix + "cost"] += cost
            self.book.note_holder(product, None)
        self._end_mark(list(positions), [])

    def _environment(self, row: Row, data: Mapping[str, Any]) -> None:
        self.environment["name"] = row.id

    def _armed(self, row: Row, data: Mapping[str, Any]) -> None:
        who = {"until_ms": data["until_ms"], "by": row.by, "person": data["person"], "reason": data["reason"]}
        self.environment |= {"armed_until_ms": data["until_ms"], "armed": json.dumps(who, sort_keys=True)}

    def _reference(self, row: Row, data: Mapping[str, Any]) -> None:
        products = list(data)
        strategies = self._begin_mark(products, [])
        for product, figures in data.items():
            self.references[product] = Reference(*(int(figure) for figure in figures[:4]))
        self._end_mark(products, strategies)

    def _state(self, row: Row, data: Mapping[str, Any]) -> None:
        if "asked" in data and data["state"] == data["before"]:
            # Somebody asked for a state that was held already, or for less: the stricter one stays, with its cause.
            return
        cause = self.state.get(f"cause|{row.id}", "")
        if data["state"] == "ACTIVE" and cause in COUNTED_BY and "asked" not in data:
            prefix = ACCOUNT_PREFIX if row.id == "account" else f"s|{row.id.removeprefix('strategy|')}|"
            self._begin_counting_anew(prefix + COUNTED_BY[cause])
        self.state[row.id] = data["state"]
        self.state[f"cause|{row.id}"] = data["cause"]

    def _limits(self, row: Row, data: Mapping[str, Any]) -> None:
        for scope, text in dict(data["changed"]).items():
            product = scope.removeprefix("product|") if scope.startswith("product|") else None
            group = self._group(product) if product else None
            if text is False:
                self.limits.pop(scope, None)
            else:
                self.limits[scope] = text
                if scope.partition("|")[0] in STATE_SCOPES:
                    self.state.setdefault(scope, "ACTIVE")
            if product:
                self._move_group(product, group, self._group(product))
        self.limits["version"] = str(data["version"])

    def _proposed(self, row: Row, data: Mapping[str, Any]) -> None:
        self.approvals[row.id] = dict(data)

    def _approved(self, row: Row, data: Mapping[str, Any]) -> None:
        self.approvals[row.id] |= {"status": "APPLIED", "approved_by": row.by, "approver": data["second"]}

    def _refused(self, row: Row, data: Mapping[str, Any]) -> None:
        self.approvals[row.id] |= {"status": "REFUSED"}

    def _epoch(self, row: Row, data: Mapping[str, Any]) -> None:
        self.state["epoch"] = row.id

    def _archived(self, row: Row, data: Mapping[str, Any]) -> None:
        self.book.figures["archived"] = int(data["through_seq"])

    def _nothing(self, row: Row, data: Mapping[str, Any]) -> None:
        """An entry that changes no key."""

    # -- what several share --------------------------------------------------------------------------------------------

    def _record(self, scope: str) -> Record | None:
        """The limits of a scope now, of ``global`` the desk's; a key without limits of its own has those of all."""
        text = (self.desk.limits if scope == "global" else self.limits).get(scope)
        if text is None and scope.startswith("key|"):
            text = self.limits.get("key|*")
        return None if text is None else record_of(text)

    def _group(self, product: str) -> str | None:
        group = (self._record(f"product|{product}") or {}).get("group")
        return group if isinstance(group, str) and group != "-" else None

    def _scopes(self, order: Held) -> list[tuple[Book, str, str]]:
        """The book, the prefix and the limits of every scope an order counts for, the desk's first."""
        return [
            (self.desk, DESK_PREFIX, "global"),
            (self.book, ACCOUNT_PREFIX, "account"),
            (self.book, f"s|{order.strategy}|", f"strategy|{order.strategy}"),
            (self.book, f"p|{order.product}|", f"product|{order.product}"),
            (self.book, f"k|{order.by}|", f"key|{order.by}"),
        ]

    def _count_open(self, order: Held, sign: int, lots: int, notional: int, orders: int) -> None:
        side = "sell" if order.side == "SELL" else "buy"
        for book, prefix, _ in self._scopes(order):
            book.count_open([prefix], side, sign * orders, sign * notional)
        if group := self._group(order.product):
            self.book.figures[f"g|{group}|{side}_notional"] += sign * notional
        for prefix in (f"p|{order.product}|", f"sp|{order.strategy}|{order.product}|"):
            self.book.figures[f"{prefix}{side}_lots"] += sign * lots

    def _move_group(self, product: str, before: str | None, after: str | None) -> None:
        """Amounts of a product that changes its group go with it."""
        for name in ("buy_notional", "sell_notional", "gross") if before != after else ():
            amount = self.book.figures[f"p|{product}|{name}"]
            if before is not None:
                self.book.figures[f"g|{before}|{name}"] -= amount
            if after is not None:
                self.book.figures[f"g|{after}|{name}"] += amount

    def _begin_counting_anew(self, name: str) -> None:
        if name.endswith("|streak"):
            self.book.figures[name] = 0
        else:
            self.book.windows[name] = (0, 0)

    def _count_streak(self, order: Held, realised: int) -> None:
        name = f"s|{order.strategy}|streak"
        if realised:
            self.book.figures[name] = 0 if realised > 0 else self.book.figures[name] + 1

    def _count_rejection(self, name: str, scope: str) -> None:
        self.book.count(name, self.us // 1000, number(self._record(scope), "reject_window_ms") or 0)

    def _begin_mark(self, products: list[str], strategies: list[str]) -> list[str]:
        """A new day begins before anything changes, for all that is marked; returns the strategies."""
        touched = {name for product in products for name in self.book.list_of(f"p|{product}|strategies")}
        touched |= set(strategies)
        self.desk.today(DESK_PREFIX, self.us)
        for prefix in [ACCOUNT_PREFIX, *(f"p|{p}|" for p in products), *(f"s|{s}|" for s in touched)]:
            self.book.today(prefix, self.us)
        return sorted(touched)

    def _end_mark(self, products: Iterable[str], strategies: Iterable[str]) -> None:
        """Positions at their new worth, then the scopes above them, then peaks."""
        book = self.book
        for product in products:
            reference = self.references.get(product)
            moved = book.mark(f"p|{product}|", reference)
            book.add_moved(ACCOUNT_PREFIX, moved)
            self.desk.add_moved(DESK_PREFIX, moved)
            if group := self._group(product):
                book.figures[f"g|{group}|gross"] += moved[1]
            for strategy in book.list_of(f"p|{product}|strategies"):
                book.add_moved(f"s|{strategy}|", book.mark(f"sp|{strategy}|{product}|", reference))
        equity = book.figures["cash"] + book.figures["a|value"]
        self.desk.figures["equity"] += equity - book.figures["a|equity"]
        book.figures["a|equity"] = equity
        book.raise_peak(ACCOUNT_PREFIX, "equity")
        self.desk.raise_peak(DESK_PREFIX, "equity")
        for strategy in strategies:
            book.raise_peak(f"s|{strategy}|", "pnl")

    def _sweep(self) -> None:
        """Forget what the server forgot long ago."""
        for name, (expires_us, _) in list(self.denied.items()):
            if expires_us < self.us:
                del self.denied[name]
        for name, order in list(self.orders.items()):
            if order.expires_us is not None and order.expires_us + KEPT_TERMINAL_US < self.us:
                del self.orders[name]

    # -- the keys ------------------------------------------------------------------------------------------------------

    def keys(self, now_us: int = 0) -> dict[str, dict[str, str]]:
        """Every key of the account (or of the desk) as {suffix: {field: value}}; sets and zsets by member.

        Ended orders are there as long as the server keeps them, up to ``now_us`` (the last entry's time if later).
        """
        now_us = max(now_us, self.us)
        book = self.book.fields() | {"seq": str(self.seq), "head": self.chain}
        found = {
            ":state": dict(self.state),
            ":limits": dict(self.limits),
            ":environment": dict(self.environment),
            ":book": book if self.seq else {},
            ":reference": {p: f"{r.bid} {r.ask} {r.num} {r.den}" for p, r in self.references.items()},
            ":open": {o.id: str(o.created_us) for o in self.orders.values() if o.open},
            ":approvals": {name: json.dumps(proposal, sort_keys=True) for name, proposal in self.approvals.items()},
        }
        for name, (expires_us, fields) in self.denied.items():
            if expires_us > now_us:
                found[f":order:{name}"] = fields
        for order in self.orders.values():
            if order.expires_us is not None and order.expires_us <= now_us:
                continue
            found[f":order:{order.id}"] = order.fields()
            if order.trades:
                found[f":fills:{order.id}"] = dict.fromkeys(sorted(order.trades), "")
            if order.open and order.rests:
                resting = found.setdefault(f":resting:{order.product}:{order.side}", {})
                resting[order.id] = order.rests_at
        return {suffix: fields for suffix, fields in found.items() if fields}


def rebuild_desk(logs: Mapping[str | None, Iterable[Row]]) -> dict[str | None, dict[str, dict[str, str]]]:
    """The keys of the desk (None) and of all its accounts, from all their entries in the order of their times."""
    own = Replay(None)
    replays = {account: own if account is None else Replay(account, own.book) for account in logs}
    named = [[(account, row) for row in rows] for account, rows in logs.items()]
    for account, row in heapq.merge(*named, key=lambda entry: entry[1].us):
        replays[account].apply(row)
    now_us = max(replay.us for replay in replays.values())
    return {account: replay.keys(now_us) for account, replay in replays.items()}


def rebuild(entries: Iterable[Row], account: str | None = "") -> dict[str, dict[str, str]]:
    """The keys of an account after ``entries``, all of them from its first; raises ``BrokenAudit``."""
    replay = Replay(account)
    for row in entries:
        replay.apply(row)
    return replay.keys()
