"""The exchange simulator's books of account: what its events have made of portfolios, orders, fills and product flags.

Every change is an event (a JSON object) and happens in ``Records.apply``, whether it was just decided or is read from
the journal at start-up. ``snapshot`` writes the same state as a shorter list of events.
"""

from __future__ import annotations

import dataclasses
import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, TypeVar, overload

from cluster.exchange_history import MARKETS
from cluster.exchange_journal import Event
from cluster.exchange_levels import Line
from cluster.exchange_orders import Account, Edit, Portfolio, SimFill, SimOrder, State
from cluster.exchange_ticket import Kind, Ticket, beyond
from strategies.model import Product, Side

FLAGS: Final = (
    "is_disabled",
    "trading_disabled",
    "cancel_only",
    "limit_only",
    "post_only",
    "auction_mode",
    "view_only",
    "offline",
)


_Entry = TypeVar("_Entry", SimOrder, SimFill)


class Kept(Sequence[_Entry]):
    """Entries by their ``sequence``, of which old ones may be gone.

    Its length is that of all there ever were; an index or slice means sequence numbers, and finds what is left of it.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []
        self.ever = 0

    def append(self, entry: _Entry) -> None:
        """Add the newest entry; its sequence is at least ``ever``."""
        self._entries.append(entry)
        self.ever = entry.sequence + 1

    def forget(self, gone: Callable[[_Entry], bool]) -> None:
        """Remove entries."""
        self._entries = [entry for entry in self._entries if not gone(entry)]

    def __len__(self) -> int:
        return self.ever

    @overload
    def __getitem__(self, index: int) -> _Entry: ...

    @overload
    def __getitem__(self, index: slice) -> list[_Entry]: ...

    def __getitem__(self, index: int | slice) -> _Entry | list[_Entry]:
        if isinstance(index, slice):
            start, stop, step = index.indices(self.ever)
            return self._entries[self._place(start) : self._place(stop)][::step]
        place = index if index < 0 else self._place(index)
        entry = self._entries[place]
        if index >= 0 and entry.sequence != index:
            raise IndexError(index)
        return entry

    def __iter__(self) -> Iterator[_Entry]:
        return iter(self._entries)

    def __reversed__(self) -> Iterator[_Entry]:
        return reversed(self._entries)

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Kept) else other)

    __hash__ = None  # type: ignore[assignment]

    def _place(self, sequence: int) -> int:
        return bisect_left(self._entries, sequence, key=attrgetter("sequence"))


class Records:
    """All state that survives a restart. The first portfolio opened is the default one (``portfolio_id`` "").

    ``old_maker_rate`` is for orders of journals that did not know an order's own.
    """

    def __init__(self, old_maker_rate: Decimal) -> None:
        self._old_maker_rate = old_maker_rate
        self.portfolios: dict[str, Portfolio] = {}
        self.orders: dict[str, SimOrder] = {}
        self.open_orders: dict[str, SimOrder] = {}
        self.order_list: Kept[SimOrder] = Kept()
        self.fills: Kept[SimFill] = Kept()
        # Volume and fees of orders that are gone, by portfolio.
        self.forgotten: dict[str, tuple[Decimal, Decimal]] = {}
        self.by_client_id: dict[tuple[str, str], SimOrder] = {}
        self.flags: dict[str, dict[str, bool]] = {}
        self.lines: dict[tuple[str, Side], Line] = {(p, side): Line(side) for p in MARKETS for side in Side}
        self.waiting: dict[str, dict[str, SimOrder]] = {product_id: {} for product_id in MARKETS}
        self._due: list[tuple[int, str]] = []
        self._priority = 0
        self._appliers: dict[str, Callable[[Event], None]] = {
            "batch": self._batch,
            "opened": self._opened,
            "order": self._ordered,
            "arrived": self._arrived,
            "triggered": self._triggered,
            "fill": self._filled,
            "repeated": self._repeated,
            "amended": self._amended,
            "decremented": self._decremented,
            "cancelling": self._cancelling,
            "closed": self._closed,
            "deposited": self._deposited,
            "product": self._product_set,
            "snapshot": self._begun,
            "kept_order": self._kept_order,
            "kept_fill": self._kept_fill,
        }

    def apply(self, event: Event) -> None:
        """Let ``event`` happen; raises ``KeyError``, ``ValueError``, ``TypeError`` or ``ArithmeticError`` for a bad
        one."""
        self._appliers[event["kind"]](event)

    def portfolio(self, portfolio_id: str) -> Portfolio:
        """The portfolio, "" is the default one; raises ``KeyError``."""
        return self.portfolios[portfolio_id or next(iter(self.portfolios), "")]

    def product(self, product_id: str) -> Product:
        """The product with its flags as they are set now."""
        product, flags = MARKETS[product_id].product, self.flags.get(product_id)
        if not flags:
            return product
        given: dict[str, Any] = {name: flags.get(name, False) for name in FLAGS if name != "offline"}
        return dataclasses.replace(product, status="offline" if flags.get("offline") else "online", **given)

    def next_due(self, now_ns: int) -> SimOrder | None:
        """The live order whose time is up first (``SimOrder.deadline_ns``), by ``now_ns``."""
        while self._due and self._due[0][0] <= now_ns:
            order = self.orders[self._due[0][1]]
            deadline_ns = order.deadline_ns
            if deadline_ns is not None and deadline_ns <= now_ns:
                return order
            heapq.heappop(self._due)
        return None

    # --- a shorter list of events for the same state ---

    def snapshot(self) -> Iterator[Event]:
        """Events that make a new ``Records`` equal to this one."""
        forgotten = {p: [plain(volume), plain(fees)] for p, (volume, fees) in self.forgotten.items()}
        counts = {"orders": self.order_list.ever, "fills": self.fills.ever, "forgotten": forgotten}
        yield {"kind": "snapshot", "version": 1, "priority": self._priority} | counts
        for portfolio in self.portfolios.values():
            yield opened_event(portfolio.portfolio_id, portfolio.name, list(portfolio.accounts.values()))
        for product_id, flags in self.flags.items():
            yield {"kind": "product", "product_id": product_id, "flags": flags}
        for order in self.order_list:
            yield _kept_order_event(order)
        first: set[str] = set()
        for fill in self.fills:
            kept = {"kind": "kept_fill", "sequence": fill.sequence, "repeat": fill.entry_id in first}
            yield fill_event(fill) | kept
            first.add(fill.entry_id)

    def forget(self, keep: int) -> None:
        """Forget all orders that have ended but the newest ``keep``, and their fills; what they traded is summed up."""
        ended = [order for order in self.order_list if not order.state.live]
        gone = {order.order_id: order for order in ended[: max(0, len(ended) - keep)]}
        for order in gone.values():
            volume, fees = self.forgotten.get(order.portfolio_id, (Decimal(0), Decimal(0)))
            self.forgotten[order.portfolio_id] = (volume + order.filled_value, fees + order.fees)
            del self.orders[order.order_id]
            del self.by_client_id[order.portfolio_id, order.ticket.client_order_id]
        self.order_list.forget(lambda order: order.order_id in gone)
        self.fills.forget(lambda fill: fill.order_id in gone)
        self._due = [due for due in self._due if due[1] not in gone]
        heapq.heapify(self._due)

    def totals(self, portfolio_id: str) -> tuple[Decimal, Decimal]:
        """Volume and fees of all time, in quote currency."""
        volume, fees = self.forgotten.get(portfolio_id, (Decimal(0), Decimal(0)))
        mine = [order for order in self.order_list if order.portfolio_id == portfolio_id]
        return volume + sum((o.filled_value for o in mine), Decimal(0)), fees + sum((o.fees for o in mine), Decimal(0))

    def _begun(self, event: Event) -> None:
        if event["version"] != 1 or self.portfolios:
            raise ValueError("a snapshot of another version, or not at the beginning")
        self._priority = event["priority"]
        self.order_list.ever, self.fills.ever = event["orders"], event["fills"]
        self.forgotten = {p: (Decimal(v), Decimal(fees)) for p, (v, fees) in event["forgotten"].items()}

    def _kept_order(self, event: Event) -> None:
        order = SimOrder(
            sequence=event["sequence"],
            order_id=event["order_id"],
            portfolio_id=event["portfolio_id"],
            ticket=ticket_of(event),
            created_ns=event["created_ns"],
            taker_rate=Decimal(event["taker_rate"]),
            maker_rate=Decimal(event["maker_rate"]),
            priority=event["priority"],
            limit_ticks=event["limit_ticks"],
            state=State(event["state"]),
            filled_lots=event["filled_lots"],
            filled_value=Decimal(event["filled_value"]),
            fees=Decimal(event["fees"]),
            triggered_ns=event["triggered_ns"],
            due_ns=event["due_ns"],
            reserve=Decimal(event["reserve"]),
            cancel_ns=event["cancel_ns"],
            closed_ns=event["closed_ns"],
            message=event["message"],
            edits=[Edit(*edit) for edit in event["edits"]],
        )
        self._list(order)
        if order.state.live:
            self.open_orders[order.order_id] = order
            self._hold_account(order).hold += order.hold()
            self._note_end(order)
            if order.state is not State.PENDING:
                self._stand(order)

    def _kept_fill(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        fill = _fill(event, order, event["sequence"])
        self.fills.append(fill)
        if not event["repeat"]:
            order.fills.append(fill)

    # --- events ---

    def _batch(self, event: Event) -> None:
        for each in event["events"]:
            self.apply(each)

    def _opened(self, event: Event) -> None:
        portfolio_id = event["portfolio_id"]
        portfolio = self.portfolios.get(portfolio_id)
        if portfolio is None:
            portfolio = self.portfolios[portfolio_id] = Portfolio(portfolio_id, event.get("name", "Default"))
        for entry in event["accounts"]:
            currency = entry["currency"]
            portfolio.accounts[currency] = Account(entry["uuid"], currency, Decimal(entry["amount"]))

    def _deposited(self, event: Event) -> None:
        self.portfolios[event["portfolio_id"]].accounts[event["currency"]].total += Decimal(event["amount"])

    def _product_set(self, event: Event) -> None:
        self.flags[event["product_id"]] = {name: bool(event["flags"].get(name, False)) for name in FLAGS}

    def _ordered(self, event: Event) -> None:
        ticket = ticket_of(event)
        # Before there were two rates, an order had the one of its hold.
        taker_rate = Decimal(event.get("taker_rate") or event["hold_rate"])
        self._priority += 1
        order = SimOrder(
            sequence=len(self.order_list),
            order_id=event["order_id"],
            portfolio_id=event.get("portfolio_id") or self.portfolio("").portfolio_id,
            ticket=ticket,
            created_ns=event["created_ns"],
            taker_rate=taker_rate,
            maker_rate=Decimal(event["maker_rate"]) if "maker_rate" in event else self._old_maker_rate,
            priority=self._priority,
            limit_ticks=ticket.ticks,
        )
        if "due_ns" in event:
            order.state, order.due_ns, order.reserve = State.PENDING, event["due_ns"], Decimal(event["reserve"])
        self._list(order)
        self.open_orders[order.order_id] = order
        self._hold_account(order).hold += order.hold()
        self._note_end(order)
        if order.state is not State.PENDING:
            self._stand(order)

    def _arrived(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        held = order.hold()
        self._priority += 1
        order.state, order.priority = State.OPEN, self._priority
        self._stand(order)
        self._hold_account(order).hold += order.hold() - held

    def _triggered(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        self._leave(order)
        self._priority += 1
        order.priority, order.triggered_ns = self._priority, event["ts_ns"]
        if order.ticket.kind.brackets:
            order.limit_ticks = beyond(order.ticket.side, order.ticket.stop_ticks or 0)
        self._stand(order)

    def _filled(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        fill = _fill(event, order, len(self.fills))
        product = order.product
        quantity = product.quantity(fill.lots)
        value = quantity * product.price(fill.ticks)
        held = order.hold()
        order.fills.append(fill)
        self.fills.append(fill)
        order.filled_lots += fill.lots
        order.filled_value += value
        order.fees += fill.fee
        accounts = self.portfolios[order.portfolio_id].accounts
        base, quote = accounts[product.base_currency], accounts[product.quote_currency]
        base.total += quantity if fill.side is Side.BUY else -quantity
        quote.total += (-value if fill.side is Side.BUY else value) - fill.fee
        if order.state.live and order.ticket.lots is not None and order.filled_lots >= order.ticket.lots:
            self._end(order, State.FILLED, fill.ts_ns, "")
        self._hold_account(order).hold += order.hold() - held

    def _repeated(self, event: Event) -> None:
        fill = self.orders[event["order_id"]].fills[event["index"]]
        self.fills.append(dataclasses.replace(fill, sequence=len(self.fills)))

    def _amended(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        held = order.hold()
        self._leave(order)
        ticks, stop_ticks = event["ticks"], event["stop_ticks"]
        order.ticket = dataclasses.replace(
            order.ticket,
            lots=event["lots"],
            ticks=ticks,
            stop_ticks=stop_ticks,
            configuration=event["configuration"],
        )
        if order.waits or not order.ticket.kind.brackets:
            order.limit_ticks = ticks
        order.edits.append(Edit(event["ts_ns"], event["lots"], ticks, stop_ticks))
        if event["requeued"]:
            self._priority += 1
            order.priority = self._priority
        self._stand(order)
        self._hold_account(order).hold += order.hold() - held

    def _decremented(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        held = order.hold()
        order.ticket = dataclasses.replace(order.ticket, lots=(order.ticket.lots or 0) - event["lots"])
        self._hold_account(order).hold += order.hold() - held

    def _cancelling(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        order.state, order.cancel_ns = State.CANCEL_QUEUED, event["due_ns"]
        self._note_end(order)

    def _closed(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        held = order.hold()
        self._end(order, State(event["state"]), event["ts_ns"], event["message"])
        self._hold_account(order).hold -= held

    # --- where orders stand ---

    def _list(self, order: SimOrder) -> None:
        self.orders[order.order_id] = order
        self.order_list.append(order)
        self.by_client_id[order.portfolio_id, order.ticket.client_order_id] = order

    def _stand(self, order: SimOrder) -> None:
        """Put a live order where it belongs: in line, among those that wait for their trigger, or (bracket) both."""
        ticket = order.ticket
        if order.queued:
            self.lines[ticket.product_id, ticket.side].add(order)
        if order.waits:
            self.waiting[ticket.product_id][order.order_id] = order

    def _note_end(self, order: SimOrder) -> None:
        """Remember when the order has to be looked at because its time is up."""
        for moment_ns in (order.ticket.end_ns, order.cancel_ns, order.due_ns):
            if moment_ns:
                heapq.heappush(self._due, (moment_ns, order.order_id))

    def _leave(self, order: SimOrder) -> None:
        ticket = order.ticket
        if order.queued:
            self.lines[ticket.product_id, ticket.side].remove(order)
        self.waiting[ticket.product_id].pop(order.order_id, None)

    def _end(self, order: SimOrder, state: State, ts_ns: int, message: str) -> None:
        self._leave(order)
        order.state, order.closed_ns, order.message = state, ts_ns, message
        del self.open_orders[order.order_id]

    def _hold_account(self, order: SimOrder) -> Account:
        product = order.product
        currency = product.quote_currency if order.ticket.side is Side.BUY else product.base_currency
        return self.portfolios[order.portfolio_id].accounts[currency]


# --- events as they are written ---------------------------------------------------------------------------------------


def plain(value: Decimal) -> str:
    """A decimal without exponent."""
    return format(value, "f")


def opened_event(portfolio_id: str, name: str, accounts: list[Account]) -> Event:
    """A portfolio with its accounts, or more accounts of one that exists."""
    entries = [{"uuid": a.uuid, "currency": a.currency, "amount": plain(a.total)} for a in accounts]
    return {"kind": "opened", "portfolio_id": portfolio_id, "name": name, "accounts": entries}


def ticket_fields(ticket: Ticket) -> Event:
    """A ticket as JSON; ``ticket_of`` reads it."""
    return {
        "client_order_id": ticket.client_order_id,
        "product_id": ticket.product_id,
        "side": ticket.side.value,
        "configuration": ticket.configuration,
        "lots": ticket.lots,
        "quote_size": None if ticket.quote_size is None else plain(ticket.quote_size),
        "ticks": ticket.ticks,
        "post_only": ticket.post_only,
        "end_ns": ticket.end_ns,
        "stop_ticks": ticket.stop_ticks,
        "rising": ticket.rising,
    }


def ticket_of(event: Event) -> Ticket:
    """The ticket in an order's event; raises ``KeyError`` or ``ValueError``."""
    quote_size = event["quote_size"]
    return Ticket(
        client_order_id=event["client_order_id"],
        product_id=event["product_id"],
        side=Side(event["side"]),
        kind=Kind(next(iter(event["configuration"]))),
        configuration=event["configuration"],
        lots=event["lots"],
        quote_size=None if quote_size is None else Decimal(quote_size),
        ticks=event["ticks"],
        post_only=event["post_only"],
        end_ns=event["end_ns"],
        stop_ticks=event.get("stop_ticks"),
        rising=event.get("rising", False),
    )


def fill_event(fill: SimFill) -> Event:
    """A fill as JSON."""
    return {
        "kind": "fill",
        "order_id": fill.order_id,
        "trade_id": fill.trade_id,
        "entry_id": fill.entry_id,
        "ticks": fill.ticks,
        "lots": fill.lots,
        "fee": plain(fill.fee),
        "liquidity": fill.liquidity,
        "ts_ns": fill.ts_ns,
    }


def _fill(event: Event, order: SimOrder, sequence: int) -> SimFill:
    return SimFill(
        sequence=sequence,
        entry_id=event["entry_id"],
        trade_id=event["trade_id"],
        order_id=order.order_id,
        portfolio_id=order.portfolio_id,
        product_id=order.ticket.product_id,
        side=order.ticket.side,
        ticks=event["ticks"],
        lots=event["lots"],
        fee=Decimal(event["fee"]),
        liquidity=event["liquidity"],
        ts_ns=event["ts_ns"],
    )


def _kept_order_event(order: SimOrder) -> Event:
    return ticket_fields(order.ticket) | {
        "kind": "kept_order",
        "sequence": order.sequence,
        "order_id": order.order_id,
        "portfolio_id": order.portfolio_id,
        "created_ns": order.created_ns,
        "taker_rate": plain(order.taker_rate),
        "maker_rate": plain(order.maker_rate),
        "priority": order.priority,
        "limit_ticks": order.limit_ticks,
        "state": order.state.value,
        "filled_lots": order.filled_lots,
        "filled_value": plain(order.filled_value),
        "fees": plain(order.fees),
        "triggered_ns": order.triggered_ns,
        "due_ns": order.due_ns,
        "reserve": plain(order.reserve),
        "cancel_ns": order.cancel_ns,
        "closed_ns": order.closed_ns,
        "message": order.message,
        "edits": [[edit.ts_ns, edit.lots, edit.ticks, edit.stop_ticks] for edit in order.edits],
    }
