"""The exchange simulator's matching: balances and holds, own orders in price-time priority against a seeded book."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np

from cluster.exchange_history import MARKETS, History
from strategies.model import NS_PER_S

LEVELS: Final = 100
_LEVEL_GAP_BPS: Final = 0.2

Level = tuple[int, int]


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


class Exchange:
    """All state of the simulated venue. Every method takes the time, so that a test can choose it."""

    def __init__(self, history: History, deposits: dict[str, Decimal]) -> None:
        self.history = history
        self.accounts = {currency: Account(currency, currency, amount) for currency, amount in deposits.items()}
        self.portfolio_id = "portfolio"
        self._pinned: dict[str, int] = {}
        self._books: dict[str, Book] = {}

    def mid_ticks(self, product_id: str, now_ns: int) -> int:
        """The mid in ticks: the pushed one (``push_price``), else the history's path at this second."""
        pinned = self._pinned.get(product_id)
        return pinned if pinned is not None else self.history.mid_ticks(product_id, now_ns // NS_PER_S * NS_PER_S)

    def book(self, product_id: str, now_ns: int) -> Book:
        """The seeded book of this second."""
        second, mid = now_ns // NS_PER_S, self.mid_ticks(product_id, now_ns)
        found = self._books.get(product_id)
        if found is None or (found.second, found.mid_ticks) != (second, mid):
            found = self._books[product_id] = make_book(self.history.seed, product_id, second, mid)
        return found

    def past_book(self, product_id: str, second: int, now_ns: int) -> Book:
        """The seeded book of an earlier second (the current one where ``second`` is now)."""
        if second == now_ns // NS_PER_S:
            return self.book(product_id, now_ns)
        mid = self.history.mid_ticks(product_id, second * NS_PER_S)
        return make_book(self.history.seed, product_id, second, mid)


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
