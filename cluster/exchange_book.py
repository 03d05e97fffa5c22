"""The exchange simulator's matching: balances and holds, own orders in price-time priority against a seeded book.

The other side of every execution is the seeded book, which stands around the history's path and is new every second.
An order that arrives takes what the book shows (taker, at the book's prices, one fill a level). An order that rests is
filled when the path moves through its limit (maker, at its own limit), at most by what the book shows beyond it.
What was taken from a second's book is gone until the next second.

Every change is an event: decided first, written to the journal, then applied by the code that also replays the
journal at start-up.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from enum import StrEnum
from typing import Any, Final

import numpy as np

from cluster.exchange_history import MARKETS, History
from cluster.exchange_journal import Event, Journal, JournalError
from cluster.exchange_ticket import Kind, Refusal, Ticket
from strategies.model import NS_PER_S, Product, Side

LEVELS: Final = 100
OPEN_ORDERS_MAX: Final = 5_000
ORDERS_MAX: Final = 200_000
_LEVEL_GAP_BPS: Final = 0.2
# After a pause of the process only this many seconds of the path are looked at again for resting orders.
_CATCH_UP_S_MAX: Final = 60
# Money is exact here: no rounding happens below this many digits, and amounts are bounded far below.
_EXACT: Final = Context(prec=60)

Level = tuple[int, int]


class State(StrEnum):
    """Where an order stands, in Coinbase's words."""

    OPEN = "OPEN"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Fees:
    """Fee rates in basis points of the notional."""

    taker_bps: Decimal = Decimal(60)
    maker_bps: Decimal = Decimal(40)

    def rate(self, liquidity: str) -> Decimal:
        """The rate as a fraction; ``liquidity`` is TAKER or MAKER."""
        return (self.taker_bps if liquidity == "TAKER" else self.maker_bps) / 10_000


@dataclass(frozen=True, slots=True)
class Book:
    """One second of the seeded book: levels ``(ticks, lots)``, best first, and the mid in ticks they stand around."""

    product_id: str
    second: int
    mid_ticks: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


@dataclass(slots=True)
class Account:
    """A currency's balance; ``hold`` is the part that open orders have claimed."""

    uuid: str
    currency: str
    total: Decimal
    hold: Decimal = Decimal(0)

    @property
    def available(self) -> Decimal:
        """What a new order may use."""
        return self.total - self.hold


@dataclass(frozen=True, slots=True)
class SimFill:
    """An execution; ``sequence`` is its place in ``Exchange.fills``."""

    sequence: int
    entry_id: str
    trade_id: str
    order_id: str
    product_id: str
    side: Side
    ticks: int
    lots: int
    fee: Decimal
    liquidity: str
    ts_ns: int


@dataclass(slots=True)
class SimOrder:
    """An accepted order; ``hold_rate`` is the fee rate its hold was made with, ``sequence`` its place in the list."""

    sequence: int
    order_id: str
    ticket: Ticket
    created_ns: int
    hold_rate: Decimal
    state: State = State.OPEN
    filled_lots: int = 0
    filled_value: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)
    closed_ns: int = 0
    message: str = ""
    fills: list[SimFill] = field(default_factory=list)

    @property
    def product(self) -> Product:
        """The product the order is for."""
        return MARKETS[self.ticket.product_id].product

    @property
    def open_lots(self) -> int:
        """What is still to be filled (0 for an order by quote size, which never rests)."""
        return max(0, (self.ticket.lots or 0) - self.filled_lots) if self.state is State.OPEN else 0

    def hold(self) -> Decimal:
        """What the order claims: quote currency and fee for a purchase, base currency for a sale."""
        if self.ticket.side is Side.SELL:
            return self.product.quantity(self.open_lots)
        if self.ticket.ticks is None:
            return Decimal(0)
        return self.product.quantity(self.open_lots) * self.product.price(self.ticket.ticks) * (1 + self.hold_rate)


class Exchange:
    """All state of the simulated venue. Every method takes the time, so that a test can choose it."""

    def __init__(
        self, history: History, journal: Journal, deposits: dict[str, Decimal], fees: Fees, now_ns: int
    ) -> None:
        """Replay ``journal``; ``deposits`` open the accounts it does not know. Raises ``JournalError``."""
        self.history = history
        self.fees = fees
        self.portfolio_id = ""
        self.accounts: dict[str, Account] = {}
        self.orders: dict[str, SimOrder] = {}
        self.open_orders: dict[str, SimOrder] = {}
        self.order_list: list[SimOrder] = []
        self.fills: list[SimFill] = []
        self._by_client_id: dict[str, SimOrder] = {}
        self._journal = journal
        self._pinned: dict[str, int] = {}
        self._books: dict[str, Book] = {}
        self._taken: dict[str, dict[tuple[Side, int], int]] = {}
        self._looked_at_s = now_ns // NS_PER_S
        self._listeners: list[Callable[[Event], None]] = []
        self._replay(deposits, now_ns)

    def listen(self, callback: Callable[[Event], None]) -> None:
        """Have ``callback`` called after each event that is applied from now on."""
        self._listeners.append(callback)

    async def synced(self) -> None:
        """Return when everything that has happened is on disk (it is, as long as each append syncs)."""

    # --- what others do to it ---

    def place(self, ticket: Ticket, now_ns: int) -> SimOrder:
        """Accept an order and execute what can be executed at once; raises ``Refusal``.

        A client order id seen before gets the first order back, whatever else the ticket says.
        """
        known = self._by_client_id.get(ticket.client_order_id)
        if known is not None:
            return known
        self.advance(now_ns)
        with localcontext(_EXACT):
            self._refuse_if_full()
            matches = self._match_arriving(ticket, now_ns)
            self._refuse_if_poor(ticket, matches)
            order_id = str(uuid.uuid4())
            events = [_order_event(ticket, order_id, now_ns, self.fees.rate("TAKER"))]
            events += [self._fill_event(ticket, order_id, level, "TAKER", now_ns) for level in matches]
            events += self._ending(ticket, order_id, matches, now_ns)
            self._commit(events)
        return self.orders[order_id]

    def cancel(self, order_ids: list[str], now_ns: int) -> dict[str, str]:
        """Cancel each order; the value is empty where that was done, else Coinbase's reason."""
        self.advance(now_ns)
        with localcontext(_EXACT):
            results = {order_id: self._cancel_refusal(order_id) for order_id in order_ids}
            text = "User requested cancel"
            taken = [order_id for order_id, refusal in results.items() if not refusal]
            self._commit([_closed_event(order_id, State.CANCELLED, now_ns, text) for order_id in taken])
        return results

    def push_price(self, product_id: str, ticks: int | None, now_ns: int) -> int:
        """Pin the product's mid (None: back to the path) and execute what it crosses; returns the number of fills."""
        self.advance(now_ns)
        if ticks is None:
            self._pinned.pop(product_id, None)
        else:
            self._pinned[product_id] = ticks
        before = len(self.fills)
        with localcontext(_EXACT):
            self._fill_resting(product_id, now_ns)
        return len(self.fills) - before

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``: expire orders and fill those that the path has crossed, second by second."""
        now_s = now_ns // NS_PER_S
        first_s = max(self._looked_at_s + 1, now_s - _CATCH_UP_S_MAX)
        self._looked_at_s = max(self._looked_at_s, now_s)
        if not self.open_orders:
            return
        with localcontext(_EXACT):
            for second in range(first_s, now_s + 1):
                self._expire(second * NS_PER_S)
                for product_id in {order.ticket.product_id for order in self.open_orders.values()}:
                    self._fill_resting(product_id, second * NS_PER_S)

    # --- what others see of it ---

    def order_by_client_id(self, client_order_id: str) -> SimOrder | None:
        """The order with the sender's id."""
        return self._by_client_id.get(client_order_id)

    def mid_ticks(self, product_id: str, now_ns: int) -> int:
        """The mid in ticks: the pushed one (``push_price``), else the history's path at this second."""
        pinned = self._pinned.get(product_id)
        return pinned if pinned is not None else self.history.mid_ticks(product_id, now_ns // NS_PER_S * NS_PER_S)

    def book(self, product_id: str, now_ns: int) -> Book:
        """The seeded book of this second, without what was taken from it."""
        book = self._fresh_book(product_id, now_ns)
        taken = self._taken[product_id]
        if not taken:
            return book
        bids = tuple((t, q - taken.get((Side.BUY, t), 0)) for t, q in book.bids)
        asks = tuple((t, q - taken.get((Side.SELL, t), 0)) for t, q in book.asks)
        left = (tuple(level for level in side if level[1] > 0) for side in (bids, asks))
        return Book(product_id, book.second, book.mid_ticks, *left)

    def past_book(self, product_id: str, second: int, now_ns: int) -> Book:
        """The seeded book of an earlier second (the current one where ``second`` is now)."""
        if second == now_ns // NS_PER_S:
            return self.book(product_id, now_ns)
        mid = self.history.mid_ticks(product_id, second * NS_PER_S)
        return make_book(self.history.seed, product_id, second, mid)

    # --- deciding ---

    def _match_arriving(self, ticket: Ticket, now_ns: int) -> list[Level]:
        """What the book gives the ticket at once: ``(ticks, lots)`` a level; raises ``Refusal`` for post-only."""
        offered = self._offered(ticket.product_id, ticket.side, ticket.ticks, now_ns)
        if ticket.post_only and next(offered, None) is not None:
            text = "limit_price: the order would execute at once"
            raise Refusal("INVALID_LIMIT_PRICE_POST_ONLY", text, "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY")
        if ticket.quote_size is not None:
            return _spend(offered, ticket.quote_size, self.fees.rate("TAKER"), MARKETS[ticket.product_id].product)
        matches = _take(offered, ticket.lots or 0)
        filled = sum(lots for _, lots in matches)
        return [] if ticket.kind is Kind.LIMIT_FOK and filled < (ticket.lots or 0) else matches

    def _offered(self, product_id: str, side: Side, limit_ticks: int | None, now_ns: int) -> Iterator[Level]:
        """Levels an order on ``side`` can execute against within its limit, best first."""
        book = self.book(product_id, now_ns)
        for ticks, lots in book.asks if side is Side.BUY else book.bids:
            if limit_ticks is not None and (ticks > limit_ticks if side is Side.BUY else ticks < limit_ticks):
                return
            yield ticks, lots

    def _refuse_if_full(self) -> None:
        if len(self.open_orders) >= OPEN_ORDERS_MAX or len(self.orders) >= ORDERS_MAX:
            text = f"the simulator holds at most {OPEN_ORDERS_MAX} open orders and {ORDERS_MAX} in all"
            raise Refusal("ORDER_ENTRY_DISABLED", text)

    def _refuse_if_poor(self, ticket: Ticket, matches: list[Level]) -> None:
        product = MARKETS[ticket.product_id].product
        currency = product.quote_currency if ticket.side is Side.BUY else product.base_currency
        needed = _needed(ticket, matches, product, self.fees.rate("TAKER"))
        account = self.accounts.get(currency)
        if account is None or needed > account.available:
            text = "Insufficient balance in source account"
            raise Refusal("INSUFFICIENT_FUND", text, "PREVIEW_INSUFFICIENT_FUND")

    def _ending(self, ticket: Ticket, order_id: str, matches: list[Level], now_ns: int) -> list[Event]:
        """The event that ends an order which does not rest and was not filled by its fills alone."""
        if ticket.kind.rests or (ticket.lots is not None and sum(lots for _, lots in matches) == ticket.lots):
            return []
        shown = sum(lots for _, lots in self._offered(ticket.product_id, ticket.side, ticket.ticks, now_ns))
        spent = ticket.quote_size is not None and 0 < sum(lots for _, lots in matches) < shown
        state = State.FILLED if spent else State.CANCELLED
        return [_closed_event(order_id, state, now_ns, "" if spent else "Not enough in the book")]

    def _fill_resting(self, product_id: str, now_ns: int) -> None:
        """Fill resting orders that the book has crossed, in price-time priority, as far as the book's sizes go."""
        for side in Side:
            best = next(self._offered(product_id, side, None, now_ns), None)
            crossed = [] if best is None else self._crossed(product_id, side, best[0])
            for order in crossed:
                limit = order.ticket.ticks or 0
                matches = _take(self._offered(product_id, side, limit, now_ns), order.open_lots)
                lots = sum(lots for _, lots in matches)
                if lots:
                    # At the order's own limit: it was there first. The book's levels only say how much.
                    fill = self._fill_event(order.ticket, order.order_id, (limit, lots), "MAKER", now_ns)
                    self._commit([fill | {"levels": matches}])

    def _crossed(self, product_id: str, side: Side, best_ticks: int) -> list[SimOrder]:
        """Resting orders whose limit reaches ``best_ticks`` of the other side, first in line first."""
        sign = -1 if side is Side.BUY else 1
        found = [
            (sign * (order.ticket.ticks or 0), order.sequence, order)
            for order in self.open_orders.values()
            if order.ticket.product_id == product_id and order.ticket.side is side
        ]
        return [order for _, _, order in sorted(each for each in found if each[0] <= sign * best_ticks)]

    def _expire(self, now_ns: int) -> None:
        due = [o for o in self.open_orders.values() if o.ticket.end_ns is not None and o.ticket.end_ns <= now_ns]
        self._commit([_closed_event(order.order_id, State.EXPIRED, now_ns, "End time reached") for order in due])

    def _cancel_refusal(self, order_id: str) -> str:
        order = self.orders.get(order_id)
        if order is None:
            return "UNKNOWN_CANCEL_ORDER"
        refusals = {State.OPEN: "", State.FILLED: "ORDER_IS_FULLY_FILLED"}
        return refusals.get(order.state, "DUPLICATE_CANCEL_REQUEST")

    def _fill_event(self, ticket: Ticket, order_id: str, level: Level, liquidity: str, now_ns: int) -> Event:
        ticks, lots = level
        product = MARKETS[ticket.product_id].product
        fee = product.price(ticks) * product.quantity(lots) * self.fees.rate(liquidity)
        return {
            "kind": "fill",
            "order_id": order_id,
            # Random, not seeded: two exchanges with one seed must never hand out the same trade.
            "trade_id": str(uuid.uuid4()),
            "entry_id": str(uuid.uuid4()),
            "ticks": ticks,
            "lots": lots,
            "fee": format(fee, "f"),
            "liquidity": liquidity,
            "ts_ns": now_ns,
            "levels": [level],
        }

    # --- events ---

    def _commit(self, events: list[Event]) -> None:
        self._journal.append([{key: event[key] for key in event if key != "levels"} for event in events])
        for event in events:
            self._apply(event)
            if event["kind"] == "fill":
                self._take_from_book(event)
            for listener in self._listeners:
                listener(event)

    def _replay(self, deposits: dict[str, Decimal], now_ns: int) -> None:
        with localcontext(_EXACT):
            for number, event in enumerate(self._journal.past, 1):
                try:
                    self._apply(event)
                except (KeyError, ValueError, TypeError, ArithmeticError) as error:
                    text = f"{self._journal.path} line {number}: {type(error).__name__}; move the file away"
                    raise JournalError(text) from None
            # All of them when the journal is new; later those of products that came since.
            missing = [currency for currency in _currencies(deposits) if currency not in self.accounts]
            self._commit([_opened_event(missing, deposits, self.portfolio_id)] if missing else [])
            # A process killed between an order and its ending leaves one that would rest although it may not.
            torn = [o for o in self.open_orders.values() if not o.ticket.kind.rests]
            self._commit([_closed_event(o.order_id, State.CANCELLED, now_ns, "Exchange restarted") for o in torn])

    def _apply(self, event: Event) -> None:
        {"opened": self._opened, "order": self._ordered, "fill": self._filled, "closed": self._closed}[event["kind"]](
            event
        )

    def _opened(self, event: Event) -> None:
        self.portfolio_id = event["portfolio_id"]
        for entry in event["accounts"]:
            self.accounts[entry["currency"]] = Account(entry["uuid"], entry["currency"], Decimal(entry["amount"]))

    def _ordered(self, event: Event) -> None:
        order = SimOrder(
            sequence=len(self.order_list),
            order_id=event["order_id"],
            ticket=_ticket(event),
            created_ns=event["created_ns"],
            hold_rate=Decimal(event["hold_rate"]),
        )
        self.orders[order.order_id] = self.open_orders[order.order_id] = order
        self.order_list.append(order)
        self._by_client_id[order.ticket.client_order_id] = order
        self._hold_account(order).hold += order.hold()

    def _filled(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        fill = _fill(event, order, len(self.fills))
        quantity = order.product.quantity(fill.lots)
        value = quantity * order.product.price(fill.ticks)
        held = order.hold()
        order.fills.append(fill)
        self.fills.append(fill)
        order.filled_lots += fill.lots
        order.filled_value += value
        order.fees += fill.fee
        base, quote = self.accounts[order.product.base_currency], self.accounts[order.product.quote_currency]
        base.total += quantity if fill.side is Side.BUY else -quantity
        quote.total += (-value if fill.side is Side.BUY else value) - fill.fee
        if order.filled_lots == order.ticket.lots:
            self._end(order, State.FILLED, fill.ts_ns, "")
        self._hold_account(order).hold += order.hold() - held

    def _closed(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        held = order.hold()
        self._end(order, State(event["state"]), event["ts_ns"], event["message"])
        self._hold_account(order).hold -= held

    def _end(self, order: SimOrder, state: State, ts_ns: int, message: str) -> None:
        order.state, order.closed_ns, order.message = state, ts_ns, message
        del self.open_orders[order.order_id]

    def _hold_account(self, order: SimOrder) -> Account:
        product = order.product
        return self.accounts[product.quote_currency if order.ticket.side is Side.BUY else product.base_currency]

    # --- the book's sizes ---

    def _fresh_book(self, product_id: str, now_ns: int) -> Book:
        second, mid = now_ns // NS_PER_S, self.mid_ticks(product_id, now_ns)
        found = self._books.get(product_id)
        if found is None or (found.second, found.mid_ticks) != (second, mid):
            found = self._books[product_id] = make_book(self.history.seed, product_id, second, mid)
            self._taken[product_id] = {}
        return found

    def _take_from_book(self, event: Event) -> None:
        order = self.orders[event["order_id"]]
        opposite = Side.SELL if order.ticket.side is Side.BUY else Side.BUY
        taken = self._taken[order.ticket.product_id]
        for ticks, lots in event["levels"]:
            taken[(opposite, ticks)] = taken.get((opposite, ticks), 0) + lots


def make_book(seed: int, product_id: str, second: int, mid_ticks: int) -> Book:
    """The book of one second by ``(seed, product, second, mid)`` alone: gaps about 0.2 bp, sizes growing outwards."""
    market = MARKETS[product_id]
    stream = zlib.crc32(f"{product_id}/book".encode())
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, second])))
    gap_max = max(2, round(2 * mid_ticks * _LEVEL_GAP_BPS / 10_000))
    gaps = random.integers(1, gap_max, (2, LEVELS), endpoint=True)
    gaps[:, 0] = market.half_spread_ticks
    growth = np.linspace(0.5, 3.0, LEVELS)
    sizes = random.lognormal(-0.32, 0.8, (2, LEVELS)) * growth * market.level_size
    lots = np.maximum(np.rint(sizes / float(market.product.base_increment)), 1).astype(np.int64)
    offsets = gaps.cumsum(axis=1)
    bid_ticks = mid_ticks - offsets[0]
    bids = tuple((t, q) for t, q in zip(bid_ticks.tolist(), lots[0].tolist(), strict=True) if t > 0)
    asks = tuple(zip((mid_ticks + offsets[1]).tolist(), lots[1].tolist(), strict=True))
    return Book(product_id, second, mid_ticks, bids, asks)


def _take(offered: Iterator[Level], lots: int) -> list[Level]:
    matches = []
    for ticks, available in offered:
        if lots <= 0:
            break
        taken = min(lots, available)
        matches.append((ticks, taken))
        lots -= taken
    return matches


def _spend(offered: Iterator[Level], budget: Decimal, fee_rate: Decimal, product: Product) -> list[Level]:
    """What ``budget`` (quote currency, fees included) buys; ends at the first level it cannot exhaust."""
    matches = []
    for ticks, available in offered:
        lot_cost = product.price(ticks) * product.base_increment * (1 + fee_rate)
        affordable = int((budget / lot_cost).to_integral_value(ROUND_FLOOR))
        taken = min(affordable, available)
        if taken:
            matches.append((ticks, taken))
            budget -= lot_cost * taken
        if affordable <= available:
            break
    return matches


def _needed(ticket: Ticket, matches: list[Level], product: Product, fee_rate: Decimal) -> Decimal:
    """What an order needs to be accepted, in the currency it pays with."""
    if ticket.side is Side.SELL:
        return product.quantity(ticket.lots or 0)
    if ticket.quote_size is not None:
        return ticket.quote_size
    if ticket.ticks is not None:
        return product.quantity(ticket.lots or 0) * product.price(ticket.ticks) * (1 + fee_rate)
    cost = sum((product.price(ticks) * product.quantity(lots) for ticks, lots in matches), Decimal(0))
    return cost * (1 + fee_rate)


def _order_event(ticket: Ticket, order_id: str, now_ns: int, hold_rate: Decimal) -> Event:
    return {
        "kind": "order",
        "order_id": order_id,
        "created_ns": now_ns,
        "hold_rate": format(hold_rate, "f"),
        "client_order_id": ticket.client_order_id,
        "product_id": ticket.product_id,
        "side": ticket.side.value,
        "configuration": ticket.configuration,
        "lots": ticket.lots,
        "quote_size": None if ticket.quote_size is None else format(ticket.quote_size, "f"),
        "ticks": ticket.ticks,
        "post_only": ticket.post_only,
        "end_ns": ticket.end_ns,
    }


def _ticket(event: Event) -> Ticket:
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
    )


def _fill(event: Event, order: SimOrder, sequence: int) -> SimFill:
    return SimFill(
        sequence=sequence,
        entry_id=event["entry_id"],
        trade_id=event["trade_id"],
        order_id=order.order_id,
        product_id=order.ticket.product_id,
        side=order.ticket.side,
        ticks=event["ticks"],
        lots=event["lots"],
        fee=Decimal(event["fee"]),
        liquidity=event["liquidity"],
        ts_ns=event["ts_ns"],
    )


def _closed_event(order_id: str, state: State, ts_ns: int, message: str) -> Event:
    return {"kind": "closed", "order_id": order_id, "state": state.value, "ts_ns": ts_ns, "message": message}


def _currencies(deposits: dict[str, Decimal]) -> list[str]:
    """Every currency that is deposited or that a product can bring."""
    products = [market.product for market in MARKETS.values()]
    found = [*deposits, *(p.quote_currency for p in products), *(p.base_currency for p in products)]
    return list(dict.fromkeys(found))


def _opened_event(currencies: list[str], deposits: dict[str, Decimal], portfolio_id: str) -> Event:
    accounts: list[dict[str, Any]] = [
        {"uuid": str(uuid.uuid4()), "currency": currency, "amount": format(deposits.get(currency, Decimal(0)), "f")}
        for currency in currencies
    ]
    return {"kind": "opened", "portfolio_id": portfolio_id or str(uuid.uuid4()), "accounts": accounts}
