"""What is known of a position, a strategy, an account, the desk: nouns of exposures, and the arithmetic of shares.

Integers as in the ledger: positions in signed lots, money in micros of the quote currency, shares in parts per million.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Final

from strategies.model import LEDGER_INTEGER_MAX

PPM: Final = 1_000_000
OK: Final = "OK"
SOFT: Final = "SOFT"
HARD: Final = "HARD"


@dataclass(frozen=True, slots=True)
class ReferencePrice:
    """A product's reference price: bid and ask in ticks, its age, and the micros one lot is worth at one tick.

    ``bid_lots`` and ``ask_lots`` are the sizes at the touch, 0 where they are not known; ``volatile_ms`` is how long
    only reducing orders are taken because the price moved too fast.
    """

    bid_ticks: int
    ask_ticks: int
    age_ms: int
    fresh: bool
    lot_tick_micros: Fraction
    bid_lots: int = 0
    ask_lots: int = 0
    volatile_ms: int = 0

    def value(self, lots: int) -> int:
        """Signed micros of ``lots`` at the exact middle, rounded down: no long is worth more, no short costs less."""
        return floor(lots * self.lot_tick_micros * Fraction(self.bid_ticks + self.ask_ticks, 2))

    def gross(self, lots: int) -> int:
        """Micros of ``|lots|`` at the middle rounded up to a tick, rounded up: what counts as exposure."""
        return ceil(abs(lots) * self.lot_tick_micros * -(-(self.bid_ticks + self.ask_ticks) // 2))

    @property
    def spread_ppm(self) -> int:
        """Ask less bid in parts per million of the middle, rounded up."""
        return ratio_up(2 * max(0, self.ask_ticks - self.bid_ticks) * PPM, self.bid_ticks + self.ask_ticks)


@dataclass(frozen=True, slots=True)
class Use:
    """A figure beside its limit. ``hard`` None: the limit is missing, and orders are denied for it."""

    value: int
    hard: int | str | None
    soft: int | None = None

    @property
    def share(self) -> float | None:
        """How much of the limit is in use; 1 is full, and so is a limit of 0. None without a number to compare with."""
        if not isinstance(self.hard, int) or self.value >= LEDGER_INTEGER_MAX:
            return None
        return round(max(0, self.value) / self.hard, 6) if self.hard else 1.0

    @property
    def level(self) -> str | None:
        """HARD from the limit on, SOFT above its soft level, else OK; None where the limit is missing."""
        if self.hard is None:
            return None
        if isinstance(self.hard, int) and self.value >= self.hard:
            return HARD
        return SOFT if self.soft is not None and self.value > self.soft else OK


@dataclass(frozen=True, slots=True)
class Day:
    """What a scope has done since its day began, on the desk's own calendar; ``pnl`` is what it earned in it."""

    orders: int
    messages: int
    fills: int
    turnover: int
    pnl: int

    @property
    def messages_per_fill(self) -> int:
        """Orders and cancels for each fill, rounded up; a day without a fill counts as one with one."""
        return ratio_up(self.messages, max(1, self.fills))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScopeFigures:
    """What every scope has. ``gross`` and ``value`` are of its positions; ``uses`` by the limits' names in records."""

    scope: str
    state: str | None
    cause: str | None
    open_orders: int
    buy_notional: int
    sell_notional: int
    gross: int
    value: int
    pnl: int
    day: Day
    uses: Mapping[str, Use]

    @property
    def open_notional(self) -> int:
        """Value of what is open and not filled, as reserved."""
        return self.buy_notional + self.sell_notional

    @property
    def exposure(self) -> int:
        """Positions and open orders: what is compared with the limit on gross exposure."""
        return self.gross + self.open_notional

    @property
    def worst_net(self) -> int:
        """The largest net value, long or short, if every open order of one side were filled."""
        return max(self.value + self.buy_notional, self.sell_notional - self.value, 0)


@dataclass(frozen=True, slots=True)
class Position:
    """Lots of one product in an account or in one strategy of it; ``cost`` is signed like them.

    ``realised`` is before fees. ``reference`` None: nobody knows what the lots are worth, and ``value`` is their cost.
    """

    lots: int
    buy_lots: int
    sell_lots: int
    cost: int
    realised: int
    fees: int
    gross: int
    value: int
    reference: ReferencePrice | None

    @property
    def priced(self) -> bool:
        """Whether the value stands on a price, fresh or not; nothing is always worth nothing."""
        return self.reference is not None or not self.lots

    @property
    def unrealised(self) -> int:
        """What closing at the middle would add, before fees."""
        return self.value - self.cost

    @property
    def pnl(self) -> int:
        """Realised and unrealised, less fees."""
        return self.realised - self.fees + self.unrealised

    @property
    def worst_lots(self) -> int:
        """The largest position, long or short, if every open order of one side were filled."""
        return max(self.lots + self.buy_lots, self.sell_lots - self.lots)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductFigures(ScopeFigures):
    """One product of an account. ``concentration_ppm``: its exposure in the account's equity."""

    product_id: str
    position: Position
    concentration_ppm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyFigures(ScopeFigures):
    """One strategy within an account, and its own position in every product it ever held.

    ``peak`` is its highest PnL, at least 0; ``drawdown_ppm`` is of its capital and that peak, None without a capital.
    """

    name: str
    positions: Mapping[str, Position]
    position_uses: Mapping[str, Use]
    peak: int
    drawdown_ppm: int | None
    loss_streak: int

    @property
    def priced(self) -> bool:
        """Whether every position stands on a price."""
        return all(position.priced for position in self.positions.values())

    @property
    def realised(self) -> int:
        """Realised profit of its positions, before fees."""
        return sum(position.realised for position in self.positions.values())

    @property
    def unrealised(self) -> int:
        """Unrealised profit of its positions."""
        return sum(position.unrealised for position in self.positions.values())

    @property
    def fees(self) -> int:
        """Fees of its fills."""
        return sum(position.fees for position in self.positions.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class EquityFigures(ScopeFigures):
    """A scope with an equity: the desk, or an account. ``peak`` is the highest equity seen at a mark."""

    equity: int
    peak: int

    @property
    def drawdown(self) -> int:
        """What the equity has fallen from its peak."""
        return max(0, self.peak - self.equity)

    @property
    def drawdown_ppm(self) -> int:
        """The same in parts per million of the peak, rounded down."""
        return fall_ppm(self.peak, self.equity)

    @property
    def leverage_ppm(self) -> int:
        """Exposure in parts per million of the equity; ``LEDGER_INTEGER_MAX`` where there is none."""
        return share_ppm(self.exposure, self.equity)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountFigures(EquityFigures):
    """The whole account; ``cash`` is None until the books are opened."""

    cash: int | None
    reserved: int
    fees: int
    products: tuple[ProductFigures, ...]
    strategies: tuple[StrategyFigures, ...]
    keys: tuple[ScopeFigures, ...]
    groups: tuple[ScopeFigures, ...]

    @property
    def free(self) -> int | None:
        """Cash that no open order has reserved."""
        return None if self.cash is None else self.cash - self.reserved

    @property
    def realised(self) -> int:
        """Realised profit of all products, before fees."""
        return sum(product.position.realised for product in self.products)

    @property
    def unrealised(self) -> int:
        """Unrealised profit of all products."""
        return sum(product.position.unrealised for product in self.products)

    @property
    def priced(self) -> bool:
        """Whether every position stands on a price."""
        return all(product.position.priced for product in self.products)

    @property
    def prices_fresh(self) -> bool:
        """Whether every held product has a price young enough to be traded on."""
        held = [product.position.reference for product in self.products if product.position.lots]
        return all(reference is not None and reference.fresh for reference in held)


def ratio_up(part: int, whole: int) -> int:
    """``part / whole`` rounded up."""
    return -(-part // whole)


def share_ppm(part: int, whole: int) -> int:
    """``part`` in parts per million of ``whole``, rounded up; ``LEDGER_INTEGER_MAX`` of nothing or less."""
    if whole <= 0:
        return LEDGER_INTEGER_MAX if part > 0 else 0
    return ratio_up(part * PPM, whole)


def fall_ppm(peak: int, now: int) -> int:
    """The fall from ``peak`` in parts per million of it, rounded down: a limit trips when it is reached."""
    return (peak - now) * PPM // peak if now < peak and peak > 0 else 0
