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
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Any, Final

from cluster.exchange_history import MARKETS, History, Market
from cluster.exchange_journal import Event, Journal, JournalError
from cluster.exchange_levels import Book, Level, Offer, make_book, merged, offers
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
from cluster.exchange_records import FLAGS, Records, opened_event, plain, ticket_fields
from cluster.exchange_ticket import (
    UNKNOWN_FAILURE,
    EditRefusal,
    Kind,
    Refusal,
    Ticket,
    base_lots,
    limit_ticks,
    refuse_prices,
    stop_ticks_of,
)
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
_SNAPSHOT: Final = frozenset({"snapshot", "opened", "product", "kept_order", "kept_fill"})
_SELF_TRADE: Final = "Self trade prevention"

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Arrival:
    """An order as it arrives at the book, and what was decided about it so far.

    ``left`` is what is still to be filled, None where ``budget`` (quote currency, fees included) decides instead.
    """

    order_id: str
    portfolio_id: str
    product: Product
    side: Side
    limit_ticks: int | None
    taker_rate: Decimal
    left: int | None
    budget: Decimal = Decimal(0)
    events: list[Event] = field(default_factory=list)
    taken: list[tuple[Side, int, int]] = field(default_factory=list)
    filled: int = 0
    value: Decimal = Decimal(0)
    ended: str = ""
    spent: bool = False


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
        self._taken: dict[str, dict[tuple[Side, int], int]] = {}
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

        Kinds: order, triggered, fill, amended, decremented, cancelling, closed, repeated (each with ``order_id``);
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
            order = self._amendable(order_id, portfolio_id)
            event = self._amended_event(order, size, price, stop_price, now_ns)
            self._refuse_amendment(order, event, now_ns)
            arrival = _arrival_of(order, event["ticks"], event["lots"])
            arrival.events.append(event)
            if order.queued and event["ticks"] != order.ticket.ticks:
                self._match(arrival, now_ns)
                self._finish(arrival, order.ticket.kind, now_ns)
            self._commit(arrival.events, arrival)
        return order

    def preview_amendment(
        self, order_id: str, size: Any, price: Any, now_ns: int, portfolio_id: str = "", stop_price: Any = None
    ) -> Preview:
        """What the order would be worth after ``amend``; nothing is changed. Raises ``EditRefusal``."""
        self.advance(now_ns)
        with localcontext(EXACT):
            order = self._amendable(order_id, portfolio_id)
            event = self._amended_event(order, size, price, stop_price, now_ns)
            self._refuse_amendment(order, event, now_ns)
            ticks, lots = event["ticks"], event["lots"]
            changed = dataclasses.replace(order.ticket, lots=lots, ticks=ticks, stop_ticks=event["stop_ticks"])
            return self._preview(changed, now_ns, _arrival_of(order, ticks, lots), ())

    def cancel(self, order_ids: list[str], now_ns: int, portfolio_id: str = "") -> dict[str, str]:
        """Cancel each order; the value is empty where that was done, else Coinbase's reason."""
        self.advance(now_ns)
        with localcontext(EXACT):
            results = {order_id: self._cancel_refusal(order_id, portfolio_id) for order_id in order_ids}
            taken = [order_id for order_id, refusal in results.items() if not refusal]
            if self.rules.cancel_delay_ns:
                due_ns = now_ns + self.rules.cancel_delay_ns
                self._commit([{"kind": "cancelling", "order_id": o, "ts_ns": now_ns, "due_ns": due_ns} for o in taken])
            else:
                self._commit([_closed_event(o, State.CANCELLED, now_ns, "User requested cancel") for o in taken])
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
            event = _fill_event(order.order_id, order.product, (ticks, lots), order.rate(liquidity), liquidity, now_ns)
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
                raise _insufficient()
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
        lines = self.records.lines
        best_bid = seeded.bids[0][0] if seeded.bids else None
        best_ask = seeded.asks[0][0] if seeded.asks else None
        bids = merged(seeded.bids, lines[product_id, Side.BUY], Side.BUY, best_ask)
        asks = merged(seeded.asks, lines[product_id, Side.SELL], Side.SELL, best_bid)
        return Book(product_id, seeded.second, seeded.mid_ticks, bids, asks)

    def past_book(self, product_id: str, second: int, now_ns: int) -> Book:
        """The seeded book of an earlier second (the current one where ``second`` is now)."""
        if second == now_ns // NS_PER_S:
            return self._seeded(product_id, now_ns)
        mid = self.history.mid_ticks(product_id, second * NS_PER_S)
        return make_book(self.history.seed, product_id, second, mid)

    # --- deciding about an order that arrives ---

    def _decide(self, ticket: Ticket, now_ns: int, portfolio: Portfolio) -> _Arrival:
        """What placing the ticket would do; raises ``Refusal``."""
        self._refuse_if_full()
        self._refuse_by_state(ticket)
        self._refuse_by_last_price(ticket, now_ns)
        arrival = self._arrival(ticket, portfolio)
        if ticket.post_only and next(self._offers(arrival, now_ns), None) is not None:
            text = "limit_price: the order would execute at once"
            raise Refusal("INVALID_LIMIT_PRICE_POST_ONLY", text, "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY")
        if not ticket.kind.stops:
            self._match(arrival, now_ns)
        if ticket.kind is Kind.LIMIT_FOK and arrival.left:
            arrival = self._arrival(ticket, portfolio)
        self._refuse_if_poor(ticket, arrival, portfolio)
        arrival.events.insert(0, _order_event(ticket, arrival, now_ns, self.fees))
        self._finish(arrival, ticket.kind, now_ns)
        return arrival

    def _arrival(self, ticket: Ticket, portfolio: Portfolio) -> _Arrival:
        return _Arrival(
            order_id=str(uuid.uuid4()),
            portfolio_id=portfolio.portfolio_id,
            product=MARKETS[ticket.product_id].product,
            side=ticket.side,
            limit_ticks=ticket.ticks,
            taker_rate=self.fees.rate("TAKER"),
            left=ticket.lots,
            budget=ticket.quote_size or Decimal(0),
        )

    def _match(self, arrival: _Arrival, now_ns: int) -> None:
        """Decide what the arriving order executes at once; nothing while the product's state forbids matching."""
        if not _matches(self.product(arrival.product.product_id)):
            return
        for offer in self._offers(arrival, now_ns):
            if arrival.left == 0 or arrival.ended or arrival.spent:
                return
            if offer.order is not None and offer.order.portfolio_id == arrival.portfolio_id:
                self._prevent(arrival, offer.order, now_ns)
                continue
            lots = offer.lots if arrival.left is None else min(offer.lots, arrival.left)
            if arrival.left is None:
                affordable = _affordable(arrival, offer.ticks)
                arrival.spent = affordable <= lots
                lots = min(lots, affordable)
            if lots:
                self._execute(arrival, offer, lots, now_ns)

    def _execute(self, arrival: _Arrival, offer: Offer, lots: int, now_ns: int) -> None:
        """One execution: of the arriving order and, where it is not the seeded book's, of the resting one."""
        product, level = arrival.product, (offer.ticks, lots)
        event = _fill_event(arrival.order_id, product, level, arrival.taker_rate, "TAKER", now_ns)
        arrival.events.append(event)
        if offer.order is None:
            arrival.taken.append((_other(arrival.side), offer.ticks, lots))
        else:
            rate = offer.order.rate("MAKER")
            resting = _fill_event(offer.order.order_id, product, level, rate, "MAKER", now_ns)
            arrival.events.append(resting | {"trade_id": event["trade_id"]})
        value = product.price(offer.ticks) * product.quantity(lots)
        arrival.filled += lots
        arrival.value += value
        if arrival.left is None:
            arrival.budget -= value * (1 + arrival.taker_rate)
        else:
            arrival.left -= lots

    def _prevent(self, arrival: _Arrival, resting: SimOrder, now_ns: int) -> None:
        """Decide what happens where the arriving order meets one of its own portfolio."""
        rule = self.rules.self_trade
        if rule is SelfTrade.CANCEL_NEWEST or (rule is SelfTrade.DECREMENT and arrival.left is None):
            arrival.ended = _SELF_TRADE
            return
        if rule is SelfTrade.DECREMENT:
            arriving, rests = arrival.left or 0, resting.open_lots
            if arriving < rests:
                arrival.events.append({"kind": "decremented", "order_id": resting.order_id, "lots": arriving})
            if arriving > rests:
                arrival.events.append({"kind": "decremented", "order_id": arrival.order_id, "lots": rests})
                arrival.left = arriving - rests
            else:
                arrival.ended = _SELF_TRADE
            if arriving < rests:
                return
        if rule is SelfTrade.CANCEL_BOTH:
            arrival.ended = _SELF_TRADE
        arrival.events.append(_closed_event(resting.order_id, State.CANCELLED, now_ns, _SELF_TRADE))

    def _finish(self, arrival: _Arrival, kind: Kind, now_ns: int) -> None:
        """Add the event that ends the arriving order where it does not rest and its fills did not end it."""
        if arrival.left == 0 or (kind.rests and not arrival.ended):
            return
        spent = arrival.spent and arrival.filled > 0
        state = State.FILLED if spent else State.CANCELLED
        message = "" if spent else arrival.ended or "Not enough in the book"
        arrival.events.append(_closed_event(arrival.order_id, state, now_ns, message))

    def _offers(self, arrival: _Arrival, now_ns: int) -> Iterator[Offer]:
        """What the order meets within its limit, best first."""
        product_id, other = arrival.product.product_id, _other(arrival.side)
        book = self._seeded(product_id, now_ns)
        levels = book.asks if arrival.side is Side.BUY else book.bids
        return offers(levels, self.records.lines[product_id, other], arrival.side, arrival.limit_ticks)

    # --- refusing ---

    def _refuse_if_full(self) -> None:
        if len(self.open_orders) >= OPEN_ORDERS_MAX:
            raise Refusal("ORDER_ENTRY_DISABLED", f"the simulator holds at most {OPEN_ORDERS_MAX} open orders")

    def _refuse_by_state(self, ticket: Ticket) -> None:
        """Refuse what the product's flags do not allow."""
        product = self.product(ticket.product_id)
        if product.status != "online" or product.is_disabled or product.view_only:
            raise Refusal("UNTRADABLE_PRODUCT", "product_id: cannot be traded now", "PREVIEW_UNTRADABLE_PRODUCT")
        at_once = not ticket.kind.rests
        forbidding = {
            "trading_disabled": product.trading_disabled,
            "cancel_only": product.cancel_only,
            "limit_only": product.limit_only and ticket.kind is Kind.MARKET_IOC,
            "auction_mode": product.auction_mode and at_once,
            "post_only": product.post_only and not ticket.post_only,
        }
        for name, forbids in forbidding.items():
            if forbids:
                text = f"product_id: {name} does not allow this order now"
                raise Refusal("ORDER_ENTRY_DISABLED", text, "PREVIEW_NOT_ALLOWED_BY_MARKET_STATE")

    def _refuse_by_last_price(self, ticket: Ticket, now_ns: int) -> None:
        """Refuse a trigger that is reached already, and a bracket whose profit side is."""
        if ticket.stop_ticks is None or ticket.ticks is None:
            return
        last = self.mid_ticks(ticket.product_id, now_ns)
        if last >= ticket.stop_ticks if ticket.rising else last <= ticket.stop_ticks:
            if ticket.kind.brackets:
                text, code = "stop_trigger_price: reached already", "INVALID_BRACKET_STOP_TRIGGER_PRICE"
                raise Refusal(code, text, f"PREVIEW_{code}")
            relation = "BELOW" if ticket.rising else "ABOVE"
            text = "stop_price: reached already"
            raise Refusal(UNKNOWN_FAILURE, text, f"PREVIEW_STOP_PRICE_{relation}_LAST_TRADE_PRICE")
        if ticket.kind.brackets and (ticket.ticks >= last if ticket.side is Side.BUY else ticket.ticks <= last):
            text, code = "limit_price: reached already", "INVALID_BRACKET_LIMIT_PRICE"
            raise Refusal(code, text, f"PREVIEW_{code}")

    def _refuse_if_poor(self, ticket: Ticket, arrival: _Arrival, portfolio: Portfolio) -> None:
        product = arrival.product
        currency = product.quote_currency if ticket.side is Side.BUY else product.base_currency
        account = portfolio.accounts.get(currency)
        if account is None or _needed(ticket, arrival, self.fees) > account.available:
            raise _insufficient()

    def _refuse_overdraft(self, order: SimOrder, event: Event) -> None:
        """Refuse a forced fill that the portfolio cannot pay beside what its other open orders hold."""
        product, accounts = order.product, self.portfolios[order.portfolio_id].accounts
        quantity, fee = product.quantity(event["lots"]), Decimal(event["fee"])
        value = quantity * product.price(event["ticks"])
        freed = order.hold() - _hold_with(order, order.open_lots - min(event["lots"], order.open_lots))
        base, quote = accounts[product.base_currency], accounts[product.quote_currency]
        poor = (
            quote.available + freed < value + fee
            if order.ticket.side is Side.BUY
            else base.available + freed < quantity or quote.available + value < fee
        )
        if poor:
            raise _insufficient()

    # --- amending and cancelling ---

    def _order(self, order_id: str) -> SimOrder:
        order = self.orders.get(order_id)
        if order is None:
            raise Refusal("INVALID_REQUEST", f"order {order_id[:40]}: not found")
        return order

    def _amendable(self, order_id: str, portfolio_id: str) -> SimOrder:
        order = self.orders.get(order_id)
        if order is None or order.portfolio_id != (portfolio_id or self.portfolio_id):
            raise EditRefusal("ORDER_NOT_FOUND", "order_id: not found")
        if order.state is State.CANCEL_QUEUED:
            raise EditRefusal("CANNOT_EDIT_ORDER_PENDING_CANCEL", "order_id: is being cancelled")
        if not order.state.live:
            raise EditRefusal("ONLY_OPEN_ORDERS_CAN_BE_EDITED", f"order_id: the order is {order.state}")
        if not order.ticket.kind.amendable:
            raise EditRefusal("ONLY_LIMIT_ORDER_EDITS_SUPPORTED", "order_id: only limit orders good until cancelled")
        if order.ticket.kind.brackets and not order.waits:
            raise EditRefusal("ONLY_LIMIT_ORDER_EDITS_SUPPORTED", "order_id: the bracket is triggered")
        product = self.product(order.ticket.product_id)
        if not product.tradable:
            raise EditRefusal("COMMANDER_REJECTED_EDIT_ORDER", f"{product.product_id}: its state allows cancels only")
        return order

    def _amended_event(self, order: SimOrder, size: Any, price: Any, stop_price: Any, now_ns: int) -> Event:
        """Read what an amendment asks for; raises ``EditRefusal``."""
        ticket, market = order.ticket, MARKETS[order.ticket.product_id]
        try:
            lots = base_lots(market, size)
        except Refusal as refusal:
            raise EditRefusal("INVALID_EDITED_SIZE", refusal.message, refusal.preview) from None
        try:
            ticks = limit_ticks(market, price)
            stop_ticks = self._amended_stop(order, stop_price)
            if stop_ticks is not None and order.waits:
                refuse_prices(ticket.side, ticket.kind, ticks, stop_ticks, ticket.rising)
                changed = dataclasses.replace(ticket, ticks=ticks, stop_ticks=stop_ticks)
                self._refuse_by_last_price(changed, now_ns)
        except Refusal as refusal:
            raise EditRefusal("INVALID_EDITED_PRICE", refusal.message, refusal.preview) from None
        if lots <= order.filled_lots:
            raise EditRefusal("CANNOT_EDIT_TO_BELOW_FILLED_SIZE", "size: that much is filled already")
        if (lots, ticks, stop_ticks) == (ticket.lots, ticket.ticks, ticket.stop_ticks):
            raise EditRefusal("EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST", "nothing would change")
        return {
            "kind": "amended",
            "order_id": order.order_id,
            "lots": lots,
            "ticks": ticks,
            "stop_ticks": stop_ticks,
            "requeued": ticks != ticket.ticks or lots > (ticket.lots or 0) or stop_ticks != ticket.stop_ticks,
            "configuration": _amended_configuration(ticket, order.product, lots, ticks, stop_ticks),
            "ts_ns": now_ns,
        }

    def _amended_stop(self, order: SimOrder, given: Any) -> int | None:
        """The trigger an amendment asks for: the old one where it says nothing."""
        ticket = order.ticket
        if given is None or given == "":
            return ticket.stop_ticks
        if ticket.stop_ticks is None:
            raise EditRefusal("FIELD_STOPPRICE_NOT_SUPPORTED", "stop_price: the order has none")
        if not order.waits:
            raise EditRefusal("CANNOT_EDIT_STOP_PRICE_FOR_TRIGGERED_ORDER", "stop_price: reached already")
        return stop_ticks_of(MARKETS[ticket.product_id], ticket.kind, given)

    def _refuse_amendment(self, order: SimOrder, event: Event, now_ns: int) -> None:
        """Refuse what cannot be paid, or would execute although it may only be posted."""
        arrival = _arrival_of(order, event["ticks"], event["lots"])
        if order.ticket.post_only and next(self._offers(arrival, now_ns), None) is not None:
            preview = "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY"
            raise EditRefusal("INVALID_EDITED_PRICE", "price: the order would execute at once", preview)
        changed = dataclasses.replace(
            order.ticket, lots=event["lots"], ticks=event["ticks"], stop_ticks=event["stop_ticks"]
        )
        more = _hold_with(order, event["lots"] - order.filled_lots, changed) - order.hold()
        product = order.product
        currency = product.quote_currency if order.ticket.side is Side.BUY else product.base_currency
        if more > self.portfolios[order.portfolio_id].accounts[currency].available:
            raise EditRefusal("COMMANDER_REJECTED_EDIT_ORDER", "Insufficient balance", "PREVIEW_INSUFFICIENT_FUND")

    def _cancel_refusal(self, order_id: str, portfolio_id: str) -> str:
        order = self.orders.get(order_id)
        if order is None or order.portfolio_id != (portfolio_id or self.portfolio_id):
            return "UNKNOWN_CANCEL_ORDER"
        refusals = {State.OPEN: "", State.FILLED: "ORDER_IS_FULLY_FILLED"}
        return refusals.get(order.state, "DUPLICATE_CANCEL_REQUEST")

    # --- what time and prices do ---

    def _end_due(self, now_ns: int) -> None:
        """Expire and cancel the orders whose time has come, at that time."""
        while (order := self.records.next_due(now_ns)) is not None:
            end_ns = order.ticket.end_ns
            if order.state is State.CANCEL_QUEUED and (end_ns is None or order.cancel_ns <= end_ns):
                event = _closed_event(order.order_id, State.CANCELLED, order.cancel_ns, "User requested cancel")
            else:
                event = _closed_event(order.order_id, State.EXPIRED, end_ns or now_ns, "End time reached")
            self._commit([event])

    def _move(self, product_id: str, now_ns: int) -> None:
        """Look at the product's price: trigger what it has reached and fill what the book has crossed."""
        lines, waiting = self.records.lines, self.records.waiting[product_id]
        if not (waiting or any(lines[product_id, side] for side in Side)) or not _matches(self.product(product_id)):
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
                arrival = _arrival_of(order, ticks, order.ticket.lots or 0)
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
            self._arrive(later, _arrival_of(later, later.limit_ticks, later.ticket.lots or 0), now_ns)

    def _arrive(self, order: SimOrder, arrival: _Arrival, now_ns: int) -> None:
        self._match(arrival, now_ns)
        self._finish(arrival, order.ticket.kind, now_ns)
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
            taken = _take(levels, side, limit, order.open_lots)
            if not taken:
                return
            # At the order's own limit: it was there first. The book's levels only say how much.
            lots = sum(lots for _, lots in taken)
            event = _fill_event(order.order_id, product, (limit, lots), order.rate("MAKER"), "MAKER", now_ns)
            self._commit([event])
            self._take_from_book(product_id, [(_other(side), ticks, lots) for ticks, lots in taken])

    # --- events ---

    def _commit(self, events: list[Event], arrival: _Arrival | None = None) -> None:
        """Write the events as one line, then let them happen."""
        self._journal.append(events)
        if arrival is not None:
            self._take_from_book(arrival.product.product_id, arrival.taken)
        for event in events:
            self.records.apply(event)
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
            torn = [o for o in self.open_orders.values() if not o.ticket.kind.rests]
            self._commit([_closed_event(o.order_id, State.CANCELLED, now_ns, "Exchange restarted") for o in torn])
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

    def _preview(self, ticket: Ticket, now_ns: int, arrival: _Arrival, errors: tuple[str, ...]) -> Preview:
        if not ticket.kind.stops:
            self._match(arrival, now_ns)
        product = arrival.product
        value, fee = arrival.value, arrival.value * arrival.taker_rate
        filled = product.quantity(arrival.filled)
        average = value / filled if filled else product.price(ticket.ticks or 0)
        base = filled
        if ticket.ticks is not None and arrival.left:
            base += product.quantity(arrival.left)
            rest = product.quantity(arrival.left) * product.price(worst_ticks(ticket) or 0)
            rate = self.fees.rate("TAKER" if ticket.stop_ticks is not None else "MAKER")
            value, fee = value + rest, fee + rest * rate
        elif ticket.lots is not None:
            base = product.quantity(ticket.lots)
        seeded = self.book(ticket.product_id, now_ns)
        best_bid = product.price(seeded.bids[0][0]) if seeded.bids else Decimal(0)
        best_ask = product.price(seeded.asks[0][0]) if seeded.asks else Decimal(0)
        best = best_ask if ticket.side is Side.BUY else best_bid
        buys = ticket.side is Side.BUY
        return Preview(
            order_total=value + fee if buys else value - fee,
            commission_total=fee,
            base_size=base,
            quote_size=ticket.quote_size if ticket.quote_size is not None else value,
            best_bid=best_bid,
            best_ask=best_ask,
            average_price=average,
            slippage=abs(average - best) / best if filled and best else Decimal(0),
            errors=errors,
        )


def _matches(product: Product) -> bool:
    """Whether orders for the product execute now."""
    return product.tradable and not product.post_only and not product.auction_mode


def _other(side: Side) -> Side:
    return Side.SELL if side is Side.BUY else Side.BUY


def _arrival_of(order: SimOrder, ticks: int | None, lots: int) -> _Arrival:
    """An accepted order that arrives anew, with this limit and whole size."""
    return _Arrival(
        order_id=order.order_id,
        portfolio_id=order.portfolio_id,
        product=order.product,
        side=order.ticket.side,
        limit_ticks=ticks,
        taker_rate=order.taker_rate,
        left=lots - order.filled_lots,
    )


def _take(levels: tuple[Level, ...], side: Side, limit: int, lots: int) -> list[Level]:
    """What levels of the other side give within the limit."""
    taken = []
    for ticks, available in levels:
        if lots <= 0 or (ticks > limit if side is Side.BUY else ticks < limit):
            break
        taken.append((ticks, min(lots, available)))
        lots -= taken[-1][1]
    return taken


def _affordable(arrival: _Arrival, ticks: int) -> int:
    """Lots that the budget, fees included, still buys at this price."""
    product = arrival.product
    lot_cost = product.price(ticks) * product.base_increment * (1 + arrival.taker_rate)
    return int((arrival.budget / lot_cost).to_integral_value(ROUND_FLOOR))


def _needed(ticket: Ticket, arrival: _Arrival, fees: Fees) -> Decimal:
    """What an order needs to be accepted, in the currency it pays with."""
    product = arrival.product
    if ticket.side is Side.SELL:
        return product.quantity(ticket.lots or 0)
    if ticket.quote_size is not None:
        return ticket.quote_size
    worst = worst_ticks(ticket)
    if worst is not None:
        rate = max(fees.rate("TAKER"), fees.rate("MAKER"))
        return product.quantity(ticket.lots or 0) * product.price(worst) * (1 + rate)
    return arrival.value * (1 + fees.rate("TAKER"))


def _hold_with(order: SimOrder, lots: int, ticket: Ticket | None = None) -> Decimal:
    """What the order would hold with so many open lots (and another ticket)."""
    product, worst = order.product, worst_ticks(ticket or order.ticket)
    if order.ticket.side is Side.SELL:
        return product.quantity(lots)
    return product.quantity(lots) * product.price(worst or 0) * (1 + max(order.taker_rate, order.maker_rate))


def _amended_configuration(
    ticket: Ticket, product: Product, lots: int, ticks: int, stop_ticks: int | None
) -> dict[str, Any]:
    """The configuration as the sender would have written it for the amended order."""
    fields = dict(ticket.configuration[ticket.kind.value])
    fields |= {"base_size": plain(product.quantity(lots)), "limit_price": plain(product.price(ticks))}
    if stop_ticks is not None:
        fields["stop_trigger_price" if ticket.kind.brackets else "stop_price"] = plain(product.price(stop_ticks))
    return {ticket.kind.value: fields}


def _insufficient() -> Refusal:
    return Refusal("INSUFFICIENT_FUND", "Insufficient balance in source account", "PREVIEW_INSUFFICIENT_FUND")


def _order_event(ticket: Ticket, arrival: _Arrival, now_ns: int, fees: Fees) -> Event:
    return ticket_fields(ticket) | {
        "kind": "order",
        "order_id": arrival.order_id,
        "portfolio_id": arrival.portfolio_id,
        "created_ns": now_ns,
        "taker_rate": plain(fees.rate("TAKER")),
        "maker_rate": plain(fees.rate("MAKER")),
    }


def _fill_event(order_id: str, product: Product, level: Level, fee_rate: Decimal, liquidity: str, now_ns: int) -> Event:
    ticks, lots = level
    return {
        "kind": "fill",
        "order_id": order_id,
        # Random, not seeded: two exchanges with one seed must never hand out the same trade.
        "trade_id": str(uuid.uuid4()),
        "entry_id": str(uuid.uuid4()),
        "ticks": ticks,
        "lots": lots,
        "fee": plain(product.price(ticks) * product.quantity(lots) * fee_rate),
        "liquidity": liquidity,
        "ts_ns": now_ns,
    }


def _closed_event(order_id: str, state: State, ts_ns: int, message: str) -> Event:
    return {"kind": "closed", "order_id": order_id, "state": state.value, "ts_ns": ts_ns, "message": message}


def _currencies(deposits: Mapping[str, Decimal]) -> list[str]:
    """Every currency that is deposited or that a product can bring."""
    products = [market.product for market in MARKETS.values()]
    found = [*deposits, *(p.quote_currency for p in products), *(p.base_currency for p in products)]
    return list(dict.fromkeys(found))
