"""The exchange simulator's matching: resting orders in price-time priority beside a seeded book.

The seeded book stands around the history's path and is new every second. An order that arrives takes what the book
shows (taker, at the book's prices, one fill a level): seeded levels and the resting orders of other portfolios; where
it meets one of its own portfolio, self-trade prevention decides. An order that rests is filled when the path moves
through its limit (maker, at its own limit), at most by what the book shows beyond it. What was taken from a second's
book is gone until the next second. Stops are triggered by the path's price (or the pinned one); a triggered order
arrives anew.

Every change is a list of events: decided first, written to the journal as one line, then applied by the code that also
replays the journal at start-up (``exchange_records``).
"""

from __future__ import annotations

import dataclasses
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, localcontext
from typing import Any, Final

from cluster.exchange_history import MARKETS, History, Market
from cluster.exchange_journal import Event, Journal, JournalError
from cluster.exchange_levels import Book, Level, Offer, make_book, merged, offers
from cluster.exchange_matching import Arrival, arrival_of, closed_event, fill_now, finish, match, other, take
from cluster.exchange_orders import (
    EXACT,
    Account,
    Fees,
    Portfolio,
    Preview,
    Rules,
    SelfTrade,
    SimFill,
    SimOrder,
    State,
    worst_ticks,
)
from cluster.exchange_preview import previewed
from cluster.exchange_records import FLAGS, Records, opened_event, plain, ticket_fields
from cluster.exchange_refusals import (
    amended_event,
    executes,
    hold_with,
    insufficient,
    needed,
    refuse_by_last_price,
    refuse_by_state,
    refuse_to_amend,
)
from cluster.exchange_ticket import EditRefusal, Kind, Refusal, Ticket
from strategies.model import NS_PER_S, Product, Side

__all__ = ["Account", "Book", "Exchange", "Fees", "Level", "Rules", "SelfTrade", "SimFill", "SimOrder", "State"]

OPEN_ORDERS_MAX: Final = 5_000
# With so many orders in all, those that have ended are forgotten but for the newest.
ORDERS_MAX: Final = 100_000
ENDED_KEPT: Final = 25_000
# A journal that has grown by so many lines since it was last written anew is written anew, at start-up and while
# running (which takes about 20 microseconds an order).
COMPACT_LINES_START: Final = 20_000
COMPACT_LINES: Final = 500_000
# After a pause of the process only this many seconds of the path are looked at again for resting orders.
_CATCH_UP_S_MAX: Final = 3_600
_JITTER_S: Final = 2
_NOTHING: Final = Decimal(0)
_SNAPSHOT: Final = frozenset({"snapshot", "opened", "product", "kept_order", "kept_fill"})

_log = logging.getLogger(__name__)


class Exchange:
    """All state of the simulated venue. Every method takes the time, so that a test can choose it.

    Methods that take ``portfolio_id`` mean the default portfolio by "". What they change is safe on disk once
    ``synced`` has returned.
    """

    def __init__(
        self,
        history: History,
        journal: Journal,
        deposits: dict[str, Decimal],
        fees: Fees,
        now_ns: int,
        rules: Rules | None = None,
    ) -> None:
        """Replay ``journal``; ``deposits`` open the accounts it does not know. Raises ``JournalError``."""
        self.history = history
        self.fees = fees
        self.rules = rules or Rules()
        self.records = Records(fees.rate("MAKER"))
        self.orders = self.records.orders
        self.open_orders = self.records.open_orders
        self.order_list = self.records.order_list
        self.fills = self.records.fills
        self.portfolios = self.records.portfolios
        self._journal = journal
        self._pinned: dict[str, int] = {}
        self._books: dict[str, Book] = {}
        # The book that is shown, with what it was made from: the seeded book and the number of events until then.
        self._shown: dict[str, tuple[Book, int, Book]] = {}
        self._events = 0
        self._looked_at_s = now_ns // NS_PER_S
        self._listeners: list[Callable[[Event], None]] = []
        self._replay(deposits, now_ns)

    @property
    def portfolio_id(self) -> str:
        """The default portfolio's id."""
        return self.records.portfolio("").portfolio_id

    @property
    def accounts(self) -> dict[str, Account]:
        """The default portfolio's accounts by currency."""
        return self.records.portfolio("").accounts

    def listen(self, callback: Callable[[Event], None]) -> None:
        """Have ``callback`` called after each event that is applied from now on.

        Kinds: order, arrived, triggered, fill, amended, decremented, cancelling, closed, repeated (with ``order_id``);
        deposited, opened, product. The order in ``orders`` is then as it is after that event, not yet safe on disk.
        """
        self._listeners.append(callback)

    async def synced(self) -> None:
        """Return when everything that has happened is on disk; raises ``OSError``. All who wait share one sync."""
        await self._journal.synced()

    def compact(self) -> None:
        """Write the journal anew as a snapshot of the present state: atomic, on disk when this returns; raises
        ``OSError``, and then the journal is as it was."""
        self._journal.replace(self.records.snapshot())

    def forget(self) -> None:
        """Forget the orders that have ended but for the newest ``ENDED_KEPT`` (their client order ids too)."""
        with localcontext(EXACT):
            self.records.forget(ENDED_KEPT)
        self._compact_or_go_on()

    # --- what clients do to it ---

    def place(self, ticket: Ticket, now_ns: int, portfolio_id: str = "") -> SimOrder:
        """Accept an order and execute what can be executed at once; raises ``Refusal``.

        A client order id seen before gets the first order back, whatever else the ticket says (or is refused:
        ``Rules.reject_duplicates``).
        """
        known = self.repeat_of(ticket.client_order_id, portfolio_id)
        if known is not None:
            return known
        self.advance(now_ns)
        if len(self.orders) >= ORDERS_MAX:
            self.forget()
        with localcontext(EXACT):
            arrival = self._decide(ticket, now_ns, self.records.portfolio(portfolio_id))
            self._commit(arrival.events, arrival)
        return self.orders[arrival.order_id]

    def repeat_of(self, client_order_id: str, portfolio_id: str = "") -> SimOrder | None:
        """The order that has this client order id already; raises ``Refusal`` where the rules want that."""
        known = self.order_by_client_id(client_order_id, portfolio_id)
        if known is not None and self.rules.reject_duplicates:
            raise Refusal("DUPLICATE_CLIENT_ORDER_ID", "client_order_id: an order with this id exists")
        return known

    def preview(self, ticket: Ticket, now_ns: int, portfolio_id: str = "") -> Preview:
        """What ``place`` would do now; nothing is placed. Raises nothing: refusals are in ``errors``."""
        self.advance(now_ns)
        with localcontext(EXACT):
            portfolio = self.records.portfolio(portfolio_id)
            errors: tuple[str, ...] = ()
            try:
                self._decide(ticket, now_ns, portfolio)
            except Refusal as refusal:
                errors = (refusal.preview,)
            return self._preview(ticket, now_ns, self._arrival(ticket, portfolio), errors)

    def amend(
        self,
        order_id: str,
        size: Any,
        price: Any,
        now_ns: int,
        portfolio_id: str = "",
        stop_price: Any = None,
    ) -> SimOrder:
        """Change size (the whole one, filled part included) and limit of an order, given as decimal strings.

        Raises ``EditRefusal``. The order loses its place in line where its price changes or its size grows.
        """
        self.advance(now_ns)
        with localcontext(EXACT):
            order, event = self._amended(order_id, portfolio_id, size, price, stop_price, now_ns)
            arrival = arrival_of(order, event["ticks"], event["lots"])
            arrival.events.append(event)
            if order.queued and event["ticks"] != order.ticket.ticks:
                self._match(arrival, now_ns)
                finish(arrival, order.ticket.kind, now_ns)
            self._commit(arrival.events, arrival)
        return order

    def preview_amendment(
        self, order_id: str, size: Any, price: Any, now_ns: int, portfolio_id: str = "", stop_price: Any = None
    ) -> Preview:
        """What the order would be worth after ``amend``; nothing is changed. Raises ``EditRefusal``."""
        self.advance(now_ns)
        with localcontext(EXACT):
            order, event = self._amended(order_id, portfolio_id, size, price, stop_price, now_ns)
            ticks, lots = event["ticks"], event["lots"]
            changed = dataclasses.replace(order.ticket, lots=lots, ticks=ticks, stop_ticks=event["stop_ticks"])
            return self._preview(changed, now_ns, arrival_of(order, ticks, lots), ())

    def cancel(self, order_ids: list[str], now_ns: int, portfolio_id: str = "") -> dict[str, str]:
        """Cancel each order; the value is empty where that was done, else Coinbase's reason."""
        self.advance(now_ns)
        with localcontext(EXACT):
            results = {order_id: self._cancel_refusal(order_id, portfolio_id) for order_id in order_ids}
            taken = [order_id for order_id, refusal in results.items() if not refusal]
            self._commit([self._cancelled_event(order_id, now_ns) for order_id in taken])
        return results

    def advance(self, now_ns: int) -> None:
        """Let time pass up to ``now_ns``, second by second: orders expire, are triggered and are filled."""
        now_s = now_ns // NS_PER_S
        first_s = max(self._looked_at_s + 1, now_s - _CATCH_UP_S_MAX)
        if now_s > self._looked_at_s and self._journal.lines_since_replaced > COMPACT_LINES:
            self._compact_or_go_on()
        # A clock that was set back counts from there; a request that was read a moment ago does not set it back.
        back = now_s < self._looked_at_s - _JITTER_S
        self._looked_at_s = now_s if back else max(self._looked_at_s, now_s)
        if not self.open_orders:
            return
        with localcontext(EXACT):
            for second in range(first_s, now_s + 1):
                self._end_due(second * NS_PER_S)
                for product_id in MARKETS:
                    self._move(product_id, second * NS_PER_S)
            self._end_due(now_ns)

    # --- what only a test or its user does to it ---

    def set_back(self, now_ns: int) -> None:
        """The venue's clock was set to an earlier time: from there time passes again."""
        self._looked_at_s = min(self._looked_at_s, now_ns // NS_PER_S)

    def push_price(self, product_id: str, ticks: int | None, now_ns: int) -> int:
        """Pin the product's mid (None: back to the path), trigger and execute what it crosses; returns the number of
        fills."""
        self.advance(now_ns)
        if ticks is None:
            self._pinned.pop(product_id, None)
        else:
            self._pinned[product_id] = ticks
        before = len(self.fills)
        with localcontext(EXACT):
            self._move(product_id, now_ns)
        return len(self.fills) - before

    def set_product(self, product_id: str, flags: Mapping[str, bool], now_ns: int) -> Product:
        """Set the flags given (``exchange_records.FLAGS``), leave the others; raises ``Refusal`` for an unknown one.

        While a flag but ``limit_only`` is set nothing executes; when matching resumes, what crosses does.
        """
        for name, value in flags.items():
            if name not in FLAGS or not isinstance(value, bool):
                raise Refusal("INVALID_REQUEST", f"{name[:40]}: expected true or false for some of {', '.join(FLAGS)}")
        self.advance(now_ns)
        whole = self.records.flags.get(product_id, {}) | dict(flags)
        with localcontext(EXACT):
            self._commit([{"kind": "product", "product_id": product_id, "flags": whole}])
            self._move(product_id, now_ns)
        return self.product(product_id)

    def force_fill(
        self, order_id: str, lots: int | None, ticks: int | None, now_ns: int, liquidity: str = "MAKER"
    ) -> SimFill:
        """Execute an order now, whatever book and state say; also more than it asked for, or after its end.

        ``lots`` None is all that is open; ``ticks`` None is its limit, else the mid. Raises ``Refusal`` where there is
        no such order, nothing to fill, or a balance would become negative.
        """
        self.advance(now_ns)
        order = self._order(order_id)
        lots = order.open_lots if lots is None else lots
        ticks = ticks or order.limit_ticks or self.mid_ticks(order.ticket.product_id, now_ns)
        if lots <= 0 or ticks <= 0:
            raise Refusal("INVALID_REQUEST", "lots: nothing is open; say how much to execute beyond the order")
        with localcontext(EXACT):
            event = fill_now(order.order_id, order.product, (ticks, lots), order.rate(liquidity), liquidity, now_ns)
            self._refuse_overdraft(order, event)
            self._commit([event])
        return order.fills[-1]

    def repeat_fill(self, order_id: str, now_ns: int) -> SimFill:
        """List the order's last fill once more, with the ids it had; balances stay. Raises ``Refusal`` without one."""
        self.advance(now_ns)
        order = self._order(order_id)
        if not order.fills:
            raise Refusal("INVALID_REQUEST", f"order {order_id[:40]}: has no fill to repeat")
        self._commit([{"kind": "repeated", "order_id": order_id, "index": len(order.fills) - 1, "ts_ns": now_ns}])
        return self.fills[-1]

    def show(self, order_id: str, status: str) -> SimOrder:
        """Show another status (PENDING, QUEUED, UNKNOWN_ORDER_STATUS …) than the true one, "" ends that.

        Nothing else changes; not kept over a restart. Raises ``Refusal`` where there is no such order.
        """
        order = self._order(order_id)
        order.shown = status
        return order

    def deposit(self, currency: str, amount: Decimal, now_ns: int, portfolio_id: str = "") -> Account:
        """Add ``amount`` to a balance, negative is a withdrawal; raises ``Refusal`` beyond what is available."""
        self.advance(now_ns)
        portfolio = self.records.portfolio(portfolio_id)
        account = portfolio.accounts.get(currency)
        if account is None:
            raise Refusal("INVALID_REQUEST", f"currency: expected one of {', '.join(portfolio.accounts)}")
        if not amount.is_finite() or abs(amount) > 10**18 or amount != amount.quantize(Decimal("1e-16"), context=EXACT):
            raise Refusal("INVALID_REQUEST", "amount: expected at most 18 + 16 digits")
        with localcontext(EXACT):
            if account.available + amount < 0:
                raise insufficient()
            self._commit(
                [
                    {
                        "kind": "deposited",
                        "portfolio_id": portfolio.portfolio_id,
                        "currency": currency,
                        "amount": plain(amount),
                        "ts_ns": now_ns,
                    }
                ]
            )
        return account

    def open_portfolio(self, name: str, deposits: Mapping[str, Decimal]) -> Portfolio:
        """Open another portfolio with its own accounts; its orders and those of others execute against each other."""
        accounts = [Account(str(uuid.uuid4()), c, deposits.get(c, Decimal(0))) for c in _currencies(deposits)]
        portfolio_id = str(uuid.uuid4())
        self._commit([opened_event(portfolio_id, name, accounts)])
        return self.portfolios[portfolio_id]

    # --- what others see of it ---

    def order_by_client_id(self, client_order_id: str, portfolio_id: str = "") -> SimOrder | None:
        """The order with the sender's id."""
        return self.records.by_client_id.get((portfolio_id or self.portfolio_id, client_order_id))

    def product(self, product_id: str) -> Product:
        """The product with its flags as they are now."""
        return self.records.product(product_id)

    def market(self, product_id: str) -> Market:
        """The market with the product's flags as they are now."""
        return dataclasses.replace(MARKETS[product_id], product=self.product(product_id))

    def mid_ticks(self, product_id: str, now_ns: int) -> int:
        """The mid in ticks: the pushed one (``push_price``), else the history's path at this second."""
        pinned = self._pinned.get(product_id)
        return pinned if pinned is not None else self.history.mid_ticks(product_id, now_ns // NS_PER_S * NS_PER_S)

    def book(self, product_id: str, now_ns: int) -> Book:
        """The book of this second: seeded levels without what was taken from them, and the resting orders."""
        seeded = self._seeded(product_id, now_ns)
        known = self._shown.get(product_id)
        if known is not None and known[0] is seeded and known[1] == self._events:
            return known[2]
        lines = self.records.lines
        best_bid = seeded.bids[0][0] if seeded.bids else None
        best_ask = seeded.asks[0][0] if seeded.asks else None
        bids = merged(seeded.bids, lines[product_id, Side.BUY], Side.BUY, best_ask)
        asks = merged(seeded.asks, lines[product_id, Side.SELL], Side.SELL, best_bid)
        book = Book(product_id, seeded.second, seeded.mid_ticks, bids, asks)
        self._shown[product_id] = (seeded, self._events, book)
        return book

    def past_book(self, product_id: str, second: int, now_ns: int) -> Book:
        """The seeded book of an earlier second (the current one where ``second`` is now)."""
        if second == now_ns // NS_PER_S:
            return self._seeded(product_id, now_ns)
        mid = self.history.mid_ticks(product_id, second * NS_PER_S)
        return make_book(self.history.seed, product_id, second, mid)

    # --- deciding about an order that arrives ---

    def _decide(self, ticket: Ticket, now_ns: int, portfolio: Portfolio) -> Arrival:
        """What placing the ticket would do; raises ``Refusal``."""
        self._refuse_if_full()
        refuse_by_state(ticket, self.product(ticket.product_id))
        refuse_by_last_price(ticket, self.mid_ticks(ticket.product_id, now_ns))
        arrival = self._arrival(ticket, portfolio)
        self._refuse_to_take(ticket, arrival, now_ns)
        if not ticket.kind.stops:
            self._match(arrival, now_ns)
        if ticket.kind is Kind.LIMIT_FOK and arrival.left:
            arrival = self._arrival(ticket, portfolio)
        self._refuse_if_poor(ticket, arrival, portfolio)
        order = _order_event(ticket, arrival, now_ns, self.fees)
        if self.rules.accept_delay_ns:
            # What it would cost now is held; what it then costs is looked at when it comes to the book.
            reserve = needed(ticket, arrival, self.fees) if ticket.side is Side.BUY else Decimal(0)
            order |= {"due_ns": now_ns + self.rules.accept_delay_ns, "reserve": plain(reserve)}
            arrival = dataclasses.replace(arrival, events=[order], taken=[])
        else:
            arrival.events.insert(0, order)
            finish(arrival, ticket.kind, now_ns)
        return arrival

    def _arrival(self, ticket: Ticket, portfolio: Portfolio) -> Arrival:
        return Arrival(
            order_id=str(uuid.uuid4()),
            portfolio_id=portfolio.portfolio_id,
            product=MARKETS[ticket.product_id].product,
            side=ticket.side,
            limit_ticks=ticket.ticks,
            taker_rate=self.fees.rate("TAKER"),
            left=ticket.lots,
            budget=ticket.quote_size or Decimal(0),
        )

    def _match(self, arrival: Arrival, now_ns: int) -> None:
        """Decide what the arriving order executes at once; nothing while the product's state forbids it."""
        if executes(self.product(arrival.product.product_id)):
            match(arrival, self._offers(arrival, now_ns), self.rules.self_trade, now_ns)

    def _offers(self, arrival: Arrival, now_ns: int) -> Iterator[Offer]:
        """What the order meets within its limit, best first."""
        product_id = arrival.product.product_id
        book, line = self._seeded(product_id, now_ns), self.records.lines[product_id, other(arrival.side)]
        levels = book.asks if arrival.side is Side.BUY else book.bids
        return offers(levels, line, arrival.side, arrival.limit_ticks)

    # --- refusing ---

    def _refuse_to_take(self, ticket: Ticket, arrival: Arrival, now_ns: int) -> None:
        """Refuse an order that may only be posted and would execute."""
        if ticket.post_only and next(self._offers(arrival, now_ns), None) is not None:
            text = "limit_price: the order would execute at once"
            raise Refusal("INVALID_LIMIT_PRICE_POST_ONLY", text, "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY")

    def _refuse_if_full(self) -> None:
        if len(self.open_orders) >= OPEN_ORDERS_MAX:
            raise Refusal("ORDER_ENTRY_DISABLED", f"the simulator holds at most {OPEN_ORDERS_MAX} open orders")

    def _refuse_if_poor(self, ticket: Ticket, arrival: Arrival, portfolio: Portfolio, held: Decimal = _NOTHING) -> None:
        """Refuse what is more than what is available and what the order itself holds."""
        product = arrival.product
        currency = product.quote_currency if ticket.side is Side.BUY else product.base_currency
        account = portfolio.accounts.get(currency)
        if account is None or needed(ticket, arrival, self.fees) > account.available + held:
            raise insufficient()

    def _refuse_overdraft(self, order: SimOrder, event: Event) -> None:
        """Refuse a forced fill that the portfolio cannot pay beside what its other open orders hold."""
        product, accounts = order.product, self.portfolios[order.portfolio_id].accounts
        quantity, fee = product.quantity(event["lots"]), Decimal(event["fee"])
        value = quantity * product.price(event["ticks"])
        freed = order.hold() - hold_with(order, order.open_lots - min(event["lots"], order.open_lots))
        base, quote = accounts[product.base_currency], accounts[product.quote_currency]
        poor = (
            quote.available + freed < value + fee
            if order.ticket.side is Side.BUY
            else base.available + freed < quantity or quote.available + value < fee
        )
        if poor:
            raise insufficient()

    # --- amending and cancelling ---

    def _order(self, order_id: str) -> SimOrder:
        order = self.orders.get(order_id)
        if order is None:
            raise Refusal("INVALID_REQUEST", f"order {order_id[:40]}: not found")
        return order

    def _amended(
        self, order_id: str, portfolio_id: str, size: Any, price: Any, stop_price: Any, now_ns: int
    ) -> tuple[SimOrder, Event]:
        """The order an amendment means and what it would change; raises ``EditRefusal``."""
        order = self.orders.get(order_id)
        if order is None or order.portfolio_id != (portfolio_id or self.portfolio_id):
            raise EditRefusal("ORDER_NOT_FOUND", "order_id: not found")
        product_id = order.ticket.product_id
        refuse_to_amend(order, self.product(product_id))
        event = amended_event(order, size, price, stop_price, self.mid_ticks(product_id, now_ns), now_ns)
        self._refuse_amendment(order, event, now_ns)
        return order, event

    def _refuse_amendment(self, order: SimOrder, event: Event, now_ns: int) -> None:
        """Refuse what cannot be paid, or would execute although it may only be posted."""
        arrival = arrival_of(order, event["ticks"], event["lots"])
        if order.ticket.post_only and next(self._offers(arrival, now_ns), None) is not None:
            preview = "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY"
            raise EditRefusal("INVALID_EDITED_PRICE", "price: the order would execute at once", preview)
        changed = dataclasses.replace(
            order.ticket, lots=event["lots"], ticks=event["ticks"], stop_ticks=event["stop_ticks"]
        )
        more = hold_with(order, event["lots"] - order.filled_lots, changed) - order.hold()
        product = order.product
        currency = product.quote_currency if order.ticket.side is Side.BUY else product.base_currency
        if more > self.portfolios[order.portfolio_id].accounts[currency].available:
            raise EditRefusal("COMMANDER_REJECTED_EDIT_ORDER", "Insufficient balance", "PREVIEW_INSUFFICIENT_FUND")

    def _cancel_refusal(self, order_id: str, portfolio_id: str) -> str:
        order = self.orders.get(order_id)
        if order is None or order.portfolio_id != (portfolio_id or self.portfolio_id):
            return "UNKNOWN_CANCEL_ORDER"
        refusals = {State.OPEN: "", State.PENDING: "", State.FILLED: "ORDER_IS_FULLY_FILLED"}
        return refusals.get(order.state, "DUPLICATE_CANCEL_REQUEST")

    def _cancelled_event(self, order_id: str, now_ns: int) -> Event:
        """What a cancel does now: an order that is not in the book yet has nothing to be taken out of."""
        if self.rules.cancel_delay_ns and self.orders[order_id].state is not State.PENDING:
            due_ns = now_ns + self.rules.cancel_delay_ns
            return {"kind": "cancelling", "order_id": order_id, "ts_ns": now_ns, "due_ns": due_ns}
        return closed_event(order_id, State.CANCELLED, now_ns, "User requested cancel")

    # --- what time and prices do ---

    def _end_due(self, now_ns: int) -> None:
        """Expire and cancel the orders whose time has come, at that time; let pending ones come to the book."""
        while (order := self.records.next_due(now_ns)) is not None:
            end_ns = order.ticket.end_ns
            if order.state is State.PENDING and (end_ns is None or order.due_ns < end_ns):
                self._let_in(order, now_ns)
                continue
            if order.state is State.CANCEL_QUEUED and (end_ns is None or order.cancel_ns <= end_ns):
                event = closed_event(order.order_id, State.CANCELLED, order.cancel_ns, "User requested cancel")
            else:
                event = closed_event(order.order_id, State.EXPIRED, end_ns or now_ns, "End time reached")
            self._commit([event])

    def _let_in(self, order: SimOrder, now_ns: int) -> None:
        """A pending order comes to the book; what would refuse a new one lets it fail."""
        ticket, portfolio = order.ticket, self.portfolios[order.portfolio_id]
        arrival = arrival_of(order, ticket.ticks, ticket.lots or 0)
        if ticket.lots is None:
            arrival.left, arrival.budget = None, ticket.quote_size or Decimal(0)
        try:
            refuse_by_state(ticket, self.product(ticket.product_id))
            self._refuse_to_take(ticket, arrival, now_ns)
            if not ticket.kind.stops:
                self._match(arrival, now_ns)
            if ticket.kind is Kind.LIMIT_FOK and arrival.left:
                arrival = arrival_of(order, ticket.ticks, ticket.lots or 0)
            if worst_ticks(ticket) is None and ticket.quote_size is None and ticket.side is Side.BUY:
                # Every other order holds already what it can cost at most.
                self._refuse_if_poor(ticket, arrival, portfolio, order.hold())
        except Refusal as refusal:
            self._commit([closed_event(order.order_id, State.FAILED, now_ns, refusal.code)])
            return
        arrival.events.insert(0, {"kind": "arrived", "order_id": order.order_id, "ts_ns": now_ns})
        finish(arrival, ticket.kind, now_ns)
        self._commit(arrival.events, arrival)

    def _move(self, product_id: str, now_ns: int) -> None:
        """Look at the product's price: trigger what it has reached and fill what the book has crossed."""
        lines, waiting = self.records.lines, self.records.waiting[product_id]
        if not (waiting or any(lines[product_id, side] for side in Side)) or not executes(self.product(product_id)):
            return
        self._uncross(product_id, now_ns)
        # The price passed through what rests before it reached a trigger: a stop must not meet orders long crossed.
        for side in Side:
            self._fill_resting(product_id, side, now_ns)
        self._trigger(product_id, now_ns)

    def _trigger(self, product_id: str, now_ns: int) -> None:
        """Let the orders whose trigger is reached arrive as limit orders, the older first; each is triggered once."""
        last = self.mid_ticks(product_id, now_ns)
        reached = [
            order
            for order in self.records.waiting[product_id].values()
            if (
                last >= (order.ticket.stop_ticks or 0)
                if order.ticket.rising
                else last <= (order.ticket.stop_ticks or 0)
            )
        ]
        for order in sorted(reached, key=lambda each: each.sequence):
            # One triggered before it may have ended it (self-trade prevention).
            if order.waits and order.state.live:
                ticks = worst_ticks(order.ticket)
                arrival = arrival_of(order, ticks, order.ticket.lots or 0)
                event = {"kind": "triggered", "order_id": order.order_id, "ticks": ticks, "ts_ns": now_ns}
                arrival.events.append(event)
                self._arrive(order, arrival, now_ns)

    def _uncross(self, product_id: str, now_ns: int) -> None:
        """After an auction: while resting orders cross each other, the later one arrives anew."""
        bids, asks = (self.records.lines[product_id, side] for side in (Side.BUY, Side.SELL))
        while True:
            bid, ask = bids.first(), asks.first()
            if bid is None or ask is None or (bid.limit_ticks or 0) < (ask.limit_ticks or 0):
                return
            later = bid if bid.priority > ask.priority else ask
            self._arrive(later, arrival_of(later, later.limit_ticks, later.ticket.lots or 0), now_ns)

    def _arrive(self, order: SimOrder, arrival: Arrival, now_ns: int) -> None:
        self._match(arrival, now_ns)
        finish(arrival, order.ticket.kind, now_ns)
        self._commit(arrival.events, arrival)

    def _fill_resting(self, product_id: str, side: Side, now_ns: int) -> None:
        """Fill resting orders that the seeded book has crossed, in line, as far as the book's sizes go."""
        line = self.records.lines[product_id, side]
        while (order := line.first()) is not None:
            limit, product = order.limit_ticks or 0, order.product
            # The seeded best prices are the mid and half the spread: most seconds need no book.
            mid, half = self.mid_ticks(product_id, now_ns), MARKETS[product_id].half_spread_ticks
            if limit < mid + half if side is Side.BUY else limit > mid - half:
                return
            book = self._seeded(product_id, now_ns)
            levels = book.asks if side is Side.BUY else book.bids
            taken = take(levels, side, limit, order.open_lots)
            if not taken:
                return
            # At the order's own limit: it was there first. The book's levels only say how much.
            lots = sum(lots for _, lots in taken)
            event = fill_now(order.order_id, product, (limit, lots), order.rate("MAKER"), "MAKER", now_ns)
            self._commit([event])
            self._take_from_book(product_id, [(other(side), ticks, lots) for ticks, lots in taken])

    # --- events ---

    def _commit(self, events: list[Event], arrival: Arrival | None = None) -> None:
        """Write the events as one line, then let them happen."""
        self._journal.append(events)
        if arrival is not None:
            self._take_from_book(arrival.product.product_id, arrival.taken)
        for event in events:
            self.records.apply(event)
            self._events += 1
            for listener in self._listeners:
                try:
                    listener(event)
                except Exception:  # noqa: BLE001 - a listener's mistake must not leave half of a decision undone
                    _log.exception("a listener failed at %s", event["kind"])

    def _replay(self, deposits: dict[str, Decimal], now_ns: int) -> None:
        with localcontext(EXACT):
            for number, event in enumerate(self._journal.past, 1):
                try:
                    self.records.apply(event)
                except (KeyError, ValueError, TypeError, IndexError, ArithmeticError) as error:
                    text = f"{self._journal.path} line {number}: {type(error).__name__}; move the file away"
                    raise JournalError(text) from None
            snapshot = sum(event["kind"] in _SNAPSHOT for event in self._journal.past)
            self._journal.lines_since_replaced = len(self._journal.past) - snapshot
            self._journal.past.clear()
            self._open_accounts(deposits)
            # Where each event was a line of its own, a process killed between an order and its ending left one that
            # would rest although it may not.
            torn = [o for o in self.open_orders.values() if not (o.ticket.kind.rests or o.state is State.PENDING)]
            self._commit([closed_event(o.order_id, State.CANCELLED, now_ns, "Exchange restarted") for o in torn])
        if self._journal.lines_since_replaced > COMPACT_LINES_START:
            self._compact_or_go_on()
        self._journal.sync()

    def _compact_or_go_on(self) -> None:
        try:
            self.compact()
        except OSError:
            # The journal is as it was and grows on; the next try is due after as many lines again.
            _log.exception("the journal could not be written anew")
            self._journal.lines_since_replaced = 0

    def _open_accounts(self, deposits: dict[str, Decimal]) -> None:
        """All accounts when the journal is new; later those of products that came since, in every portfolio."""
        portfolios = list(self.portfolios.values()) or [Portfolio(str(uuid.uuid4()), "Default")]
        for portfolio in portfolios:
            given = deposits if portfolio is portfolios[0] else {}
            missing = [c for c in _currencies(deposits) if c not in portfolio.accounts]
            accounts = [Account(str(uuid.uuid4()), c, given.get(c, Decimal(0))) for c in missing]
            if accounts:
                self._commit([opened_event(portfolio.portfolio_id, portfolio.name, accounts)])

    # --- the book's sizes ---

    def _seeded(self, product_id: str, now_ns: int) -> Book:
        """The seeded book of this second, without what was taken from it."""
        second, mid = now_ns // NS_PER_S, self.mid_ticks(product_id, now_ns)
        found = self._books.get(product_id)
        if found is None or (found.second, found.mid_ticks) != (second, mid):
            found = self._books[product_id] = make_book(self.history.seed, product_id, second, mid)
        return found

    def _take_from_book(self, product_id: str, taken: list[tuple[Side, int, int]]) -> None:
        if not taken:
            return
        book = self._books[product_id]
        less: dict[tuple[Side, int], int] = {}
        for side, ticks, lots in taken:
            less[side, ticks] = less.get((side, ticks), 0) + lots
        bids = tuple((t, q - less.get((Side.BUY, t), 0)) for t, q in book.bids)
        asks = tuple((t, q - less.get((Side.SELL, t), 0)) for t, q in book.asks)
        left = (tuple(level for level in side if level[1] > 0) for side in (bids, asks))
        self._books[product_id] = Book(product_id, book.second, book.mid_ticks, *left)

    def _preview(self, ticket: Ticket, now_ns: int, arrival: Arrival, errors: tuple[str, ...]) -> Preview:
        if not ticket.kind.stops:
            self._match(arrival, now_ns)
        return previewed(ticket, arrival, self.book(ticket.product_id, now_ns), self.fees, errors)


def _order_event(ticket: Ticket, arrival: Arrival, now_ns: int, fees: Fees) -> Event:
    return ticket_fields(ticket) | {
        "kind": "order",
        "order_id": arrival.order_id,
        "portfolio_id": arrival.portfolio_id,
        "created_ns": now_ns,
        "taker_rate": plain(fees.rate("TAKER")),
        "maker_rate": plain(fees.rate("MAKER")),
    }


def _currencies(deposits: Mapping[str, Decimal]) -> list[str]:
    """Every currency that is deposited or that a product can bring."""
    products = [market.product for market in MARKETS.values()]
    found = [*deposits, *(p.quote_currency for p in products), *(p.base_currency for p in products)]
    return list(dict.fromkeys(found))
