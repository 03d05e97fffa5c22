"""The nouns of the desk and the order lifecycle: pure data, no input, no output.

Numbers: ``Decimal`` at the edge, integers in the ledger, ``float64`` in the kernels.
A quantity in the ledger is a whole number of *lots* (the product's ``base_increment``), a price a whole
number of *ticks* (its ``quote_increment``), money a whole number of *micros* (millionths of the quote currency).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

MICROS_PER_UNIT: Final = 1_000_000
# Lua numbers are doubles, and the ledger's exact multiply-divide needs two spare bits below 2^53.
LEDGER_INTEGER_MAX: Final = 2**51 - 1
NS_PER_S: Final = 1_000_000_000

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

# Wide enough that no product of two numbers of the desk is ever rounded; the default 28 digits are not.
EXACT: Final = Context(prec=120)
_PRODUCT_ID = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")


class Granularity(StrEnum):
    """Bar lengths, by the names Coinbase Advanced Trade gives them."""

    ONE_MINUTE = "ONE_MINUTE"
    FIVE_MINUTE = "FIVE_MINUTE"
    FIFTEEN_MINUTE = "FIFTEEN_MINUTE"
    THIRTY_MINUTE = "THIRTY_MINUTE"
    ONE_HOUR = "ONE_HOUR"
    TWO_HOUR = "TWO_HOUR"
    FOUR_HOUR = "FOUR_HOUR"
    SIX_HOUR = "SIX_HOUR"
    ONE_DAY = "ONE_DAY"

    @property
    def seconds(self) -> int:
        """Length of a bar in seconds."""
        return _GRANULARITY_S[self]

    @property
    def ns(self) -> int:
        """Length of a bar in nanoseconds."""
        return _GRANULARITY_S[self] * NS_PER_S


_GRANULARITY_S: Final = {
    Granularity.ONE_MINUTE: 60,
    Granularity.FIVE_MINUTE: 300,
    Granularity.FIFTEEN_MINUTE: 900,
    Granularity.THIRTY_MINUTE: 1_800,
    Granularity.ONE_HOUR: 3_600,
    Granularity.TWO_HOUR: 7_200,
    Granularity.FOUR_HOUR: 14_400,
    Granularity.SIX_HOUR: 21_600,
    Granularity.ONE_DAY: 86_400,
}


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"


class OrderType(StrEnum):
    """What an order asks for.

    STOP_LIMIT rests unseen until the market reaches ``stop_price`` (a purchase from below, a sale from above), then is
    a LIMIT order. BRACKET leaves a position: at ``limit_price`` with a profit or, once ``stop_price`` is reached, with
    a limit 5 % beyond it (Coinbase's rule for trigger brackets).
    """

    MARKET = "MARKET"
    LIMIT = "LIMIT"
    STOP_LIMIT = "STOP_LIMIT"
    BRACKET = "BRACKET"


class TimeInForce(StrEnum):
    """How long: until cancelled, until ``end_ns``, at once what can be had, at once all or nothing."""

    GTC = "GTC"
    GTD = "GTD"
    IOC = "IOC"
    FOK = "FOK"


class OrderStatus(StrEnum):
    """Where an order stands; DENIED is ours (before the venue), REJECTED is the venue's."""

    DENIED = "DENIED"
    RESERVED = "RESERVED"
    SENT = "SENT"
    OPEN = "OPEN"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    UNKNOWN = "UNKNOWN"
    FILLED = "FILLED"
    CANCELLED = "CANCELLED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


_ENDINGS: Final = frozenset({OrderStatus.FILLED, OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.EXPIRED})
_LIVE: Final = frozenset({OrderStatus.OPEN, OrderStatus.PARTIALLY_FILLED}) | _ENDINGS

# What may follow what. UNKNOWN (the venue has not answered) keeps its reservation until the venue was asked.
TRANSITIONS: Final[dict[OrderStatus, frozenset[OrderStatus]]] = {
    OrderStatus.DENIED: frozenset(),
    OrderStatus.RESERVED: frozenset({OrderStatus.SENT, OrderStatus.CANCELLED, OrderStatus.EXPIRED}),
    OrderStatus.SENT: _LIVE | {OrderStatus.UNKNOWN},
    OrderStatus.UNKNOWN: _LIVE,
    OrderStatus.OPEN: frozenset({OrderStatus.PARTIALLY_FILLED}) | _ENDINGS,
    OrderStatus.PARTIALLY_FILLED: _ENDINGS - {OrderStatus.REJECTED},
    OrderStatus.FILLED: frozenset(),
    OrderStatus.CANCELLED: frozenset(),
    OrderStatus.REJECTED: frozenset(),
    OrderStatus.EXPIRED: frozenset(),
}
TERMINAL: Final = frozenset(status for status, following in TRANSITIONS.items() if not following)


class TradingState(StrEnum):
    """How much trading a scope allows; the strictest of all scopes an order touches decides."""

    ACTIVE = "ACTIVE"
    REDUCING = "REDUCING"
    HALTED = "HALTED"
    CANCEL_ALL = "CANCEL_ALL"

    @property
    def level(self) -> int:
        """0 ACTIVE … 3 CANCEL_ALL; a higher level forbids more."""
        return list(TradingState).index(self)


@dataclass(frozen=True, slots=True)
class Denial:
    """One broken rule: which, at which scope, what the order would have made of it and what is allowed."""

    code: str
    message: str
    scope: str = ""
    value: str = ""
    limit: str = ""
    unit: str = ""


class IncrementError(ValueError):
    """A quantity or a price is not a whole number of the product's increments."""


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the venue: increments and sizes in currency units, flags as the venue names them."""

    product_id: str
    base_currency: str
    quote_currency: str
    base_increment: Decimal
    quote_increment: Decimal
    base_min_size: Decimal
    base_max_size: Decimal
    quote_min_size: Decimal
    quote_max_size: Decimal
    status: str = "online"
    is_disabled: bool = False
    trading_disabled: bool = False
    cancel_only: bool = False
    limit_only: bool = False
    post_only: bool = False
    auction_mode: bool = False
    view_only: bool = False

    def __post_init__(self) -> None:
        """Raise ``ValueError`` where the id is malformed or an increment is not positive."""
        if not _PRODUCT_ID.fullmatch(self.product_id):
            raise ValueError(f"product_id: expected BASE-QUOTE, was {self.product_id!r}")
        for name in ("base_increment", "quote_increment"):
            value: Decimal = getattr(self, name)
            if not value.is_finite() or value <= 0:
                raise ValueError(f"{name} of {self.product_id}: expected a positive number, was {value}")

    @property
    def tradable(self) -> bool:
        """Whether the venue takes new orders for the product at all."""
        blocked = self.is_disabled or self.trading_disabled or self.cancel_only or self.view_only
        return self.status == "online" and not blocked

    def lots(self, quantity: Decimal) -> int:
        """Whole lots in ``quantity`` (base currency units); raises ``IncrementError`` if it is not a multiple."""
        return _whole(quantity, self.base_increment, "quantity", self.product_id)

    def ticks(self, price: Decimal) -> int:
        """Whole ticks in ``price`` (quote currency units); raises ``IncrementError`` if it is not a multiple."""
        return _whole(price, self.quote_increment, "limit_price", self.product_id)

    def quantity(self, lots: int) -> Decimal:
        """Base currency units in ``lots``."""
        return self.base_increment * lots

    def price(self, ticks: int) -> Decimal:
        """Quote currency units in ``ticks``."""
        return self.quote_increment * ticks

    def notional_micros(self, lots: int, ticks: int) -> int:
        """Value of ``lots`` at ``ticks`` in micros of the quote currency, rounded up (never understates a risk)."""
        return micros_up(EXACT.multiply(self.base_increment * lots, self.quote_increment * ticks))


def _whole(value: Decimal, increment: Decimal, field: str, product_id: str) -> int:
    steps, rest = EXACT.divmod(value, increment)
    if rest:
        raise IncrementError(f"{field}: {value} is not a multiple of {increment} for {product_id}")
    return int(steps)


def micros_up(amount: Decimal) -> int:
    """``amount`` (currency units) in micros, rounded up."""
    return int(EXACT.multiply(amount, MICROS_PER_UNIT).to_integral_value(ROUND_CEILING))


def micros_exact(amount: Decimal) -> int:
    """``amount`` (currency units) in micros, rounded half-even where it has more than six decimals."""
    return int(EXACT.multiply(amount, MICROS_PER_UNIT).to_integral_value())


def units(micros: int) -> Decimal:
    """Currency units in ``micros``."""
    return Decimal(micros) / MICROS_PER_UNIT


@dataclass(frozen=True, slots=True)
class Order:
    """An order as its sender means it. ``client_order_id`` is the sender's own and never changes.

    ``strategy_version`` names the code that decided; "" says nothing, which only a strategy with any version may.
    ``stop_price`` (STOP_LIMIT, BRACKET) is the trigger; ``end_ns`` (GTD) when it expires, in nanoseconds UTC.
    """

    client_order_id: str
    account: str
    strategy: str
    product_id: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal
    limit_price: Decimal | None = None
    post_only: bool = False
    reduce_only: bool = False
    strategy_version: str = ""
    stop_price: Decimal | None = None
    end_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Fill:
    """A part of an order that the venue executed; ``trade_id`` is the venue's and unique in it."""

    trade_id: str
    client_order_id: str
    venue_order_id: str
    product_id: str
    side: Side
    price: Decimal
    quantity: Decimal
    fee: Decimal
    liquidity: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Bars:
    """A series of bars of one product, oldest first: six arrays of one length ``n``.

    ``ts_ns`` int64, the bar's start in nanoseconds UTC, strictly increasing; the rest float64, prices and volume in
    the product's units. A missing bar (no trading) is simply absent: never filled in.
    """

    product_id: str
    granularity: Granularity
    ts_ns: Int64Array
    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array

    def __len__(self) -> int:
        return int(self.ts_ns.size)

    def between(self, start: int, stop: int) -> Bars:
        """Bars ``start:stop`` by position, as views."""
        cut = slice(start, stop)
        return Bars(
            self.product_id,
            self.granularity,
            self.ts_ns[cut],
            self.open[cut],
            self.high[cut],
            self.low[cut],
            self.close[cut],
            self.volume[cut],
        )
