"""The exchange simulator's nouns: rules and fees, accounts and portfolios, orders, fills and previews."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Context, Decimal
from enum import StrEnum
from typing import Final

from cluster.exchange_history import MARKETS
from cluster.exchange_ticket import Kind, Ticket, beyond
from strategies.model import Product, Side

# Money is exact here: no rounding happens below this many digits, and amounts are bounded far below.
EXACT: Final = Context(prec=60)


class State(StrEnum):
    """Where an order stands, in Coinbase's words.

    PENDING: accepted, not yet at the book. CANCEL_QUEUED: still in the book, a cancel is under way. FAILED: accepted,
    then refused when it came to the book.
    """

    PENDING = "PENDING"
    OPEN = "OPEN"
    CANCEL_QUEUED = "CANCEL_QUEUED"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    FAILED = "FAILED"

    @property
    def live(self) -> bool:
        """Whether an order in this state can still execute."""
        return self in _LIVE


_LIVE: Final = frozenset({State.PENDING, State.OPEN, State.CANCEL_QUEUED})


class SelfTrade(StrEnum):
    """What happens where an arriving order would meet a resting one of the same portfolio.

    Cancelled is what is left of the arriving order (newest), the resting order (oldest) or both; or both are made
    smaller by the smaller one's size, which thereby ends (decrement).
    """

    CANCEL_NEWEST = "cancel_newest"
    CANCEL_OLDEST = "cancel_oldest"
    CANCEL_BOTH = "cancel_both"
    DECREMENT = "decrement"


@dataclass(frozen=True, slots=True)
class Fees:
    """Fee rates in basis points of the notional."""

    taker_bps: Decimal = Decimal(60)
    maker_bps: Decimal = Decimal(40)

    def rate(self, liquidity: str) -> Decimal:
        """The rate as a fraction; ``liquidity`` is TAKER or MAKER."""
        return (self.taker_bps if liquidity == "TAKER" else self.maker_bps) / 10_000


@dataclass(frozen=True, slots=True)
class Rules:
    """Choices of the venue that a test or a user may make.

    ``reject_duplicates``: a client order id seen before is refused instead of answered with the first order.
    ``cancel_delay_ns``: a cancelled order is CANCEL_QUEUED for so long and can still be filled.
    ``accept_delay_ns``: an accepted order is PENDING for so long before it comes to the book, where it may fail.
    """

    self_trade: SelfTrade = SelfTrade.CANCEL_NEWEST
    reject_duplicates: bool = False
    cancel_delay_ns: int = 0
    accept_delay_ns: int = 0


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


@dataclass(slots=True)
class Portfolio:
    """Accounts by currency that trade as one: its own orders never execute against each other."""

    portfolio_id: str
    name: str
    accounts: dict[str, Account] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SimFill:
    """An execution; ``sequence`` is its place in ``Exchange.fills``."""

    sequence: int
    entry_id: str
    trade_id: str
    order_id: str
    portfolio_id: str
    product_id: str
    side: Side
    ticks: int
    lots: int
    fee: Decimal
    liquidity: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Edit:
    """An accepted amendment: the size and prices the order has had since ``ts_ns``."""

    ts_ns: int
    lots: int
    ticks: int
    stop_ticks: int | None


@dataclass(slots=True)
class SimOrder:
    """An accepted order. ``ticket`` is what it asks for now (amendments included).

    ``sequence`` is its place in the list, ``priority`` its place in line at its price (a new one, at the end, after an
    amendment that costs the place and after a trigger). ``limit_ticks`` is the price it works at: the ticket's, or 5 %
    beyond the trigger of a bracket that was triggered. ``taker_rate`` and ``maker_rate`` are those of its acceptance,
    so that a hold always covers the fee. ``due_ns`` is when a pending order comes to the book, ``reserve`` what one
    without a limit holds until then.
    """

    sequence: int
    order_id: str
    portfolio_id: str
    ticket: Ticket
    created_ns: int
    taker_rate: Decimal
    maker_rate: Decimal
    priority: int
    limit_ticks: int | None
    state: State = State.OPEN
    filled_lots: int = 0
    filled_value: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)
    triggered_ns: int = 0
    due_ns: int = 0
    reserve: Decimal = Decimal(0)
    cancel_ns: int = 0
    closed_ns: int = 0
    message: str = ""
    shown: str = ""
    fills: list[SimFill] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)

    @property
    def product(self) -> Product:
        """The product the order is for (its flags are ``Exchange.product``'s)."""
        return MARKETS[self.ticket.product_id].product

    @property
    def status(self) -> str:
        """The state to show: the true one, or what ``Exchange.show`` put over it."""
        return self.shown or self.state.value

    @property
    def open_lots(self) -> int:
        """What is still to be filled (0 for an order by quote size, which never rests)."""
        return max(0, (self.ticket.lots or 0) - self.filled_lots) if self.state.live else 0

    @property
    def waits(self) -> bool:
        """Whether its trigger still has to be reached."""
        return self.ticket.stop_ticks is not None and self.triggered_ns == 0

    @property
    def queued(self) -> bool:
        """Whether it stands in the book: a stop order does once it is triggered, a bracket's profit side at once."""
        unseen = self.state is State.PENDING or (self.waits and not self.ticket.kind.brackets)
        return self.ticket.kind.rests and self.state.live and not unseen

    @property
    def deadline_ns(self) -> int | None:
        """When its time is up: it comes to the book, its cancel is done, or it expires."""
        if not self.state.live:
            return None
        given = (self.due_ns if self.state is State.PENDING else 0, self.cancel_ns, self.ticket.end_ns or 0)
        return min((moment for moment in given if moment), default=None)

    @property
    def trigger_status(self) -> str:
        """Coinbase's word for where the trigger stands."""
        if self.ticket.stop_ticks is None:
            return "INVALID_ORDER_TYPE"
        return "STOP_PENDING" if self.waits else "STOP_TRIGGERED"

    def rate(self, liquidity: str) -> Decimal:
        """Its fee rate as a fraction; ``liquidity`` is TAKER or MAKER."""
        return self.taker_rate if liquidity == "TAKER" else self.maker_rate

    def hold(self) -> Decimal:
        """What the order claims: quote currency and fee for a purchase, base currency for a sale."""
        if self.ticket.side is Side.SELL:
            return self.product.quantity(self.open_lots)
        worst = worst_ticks(self.ticket)
        if worst is None:
            return self.reserve if self.state is State.PENDING else Decimal(0)
        cost = self.product.quantity(self.open_lots) * self.product.price(worst)
        return cost * (1 + max(self.taker_rate, self.maker_rate))


@dataclass(frozen=True, slots=True)
class Preview:
    """What an order would do now, in currency units.

    ``order_total`` includes the fee for a purchase and is after it for a sale. ``errors`` are Coinbase's
    ``PreviewFailureReason``s; with one the order would be refused.
    """

    order_total: Decimal
    commission_total: Decimal
    base_size: Decimal
    quote_size: Decimal
    best_bid: Decimal
    best_ask: Decimal
    average_price: Decimal
    slippage: Decimal
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def worst_ticks(ticket: Ticket) -> int | None:
    """The worst price the order can execute at in any of its states; None without one (a market order)."""
    if ticket.kind in {Kind.BRACKET_GTC, Kind.BRACKET_GTD} and ticket.stop_ticks is not None:
        return beyond(ticket.side, ticket.stop_ticks)
    return ticket.ticks
