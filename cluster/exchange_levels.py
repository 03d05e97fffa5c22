"""The exchange simulator's order book: the seeded levels of one second, and resting orders in line at each price."""

from __future__ import annotations

import zlib
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from cluster.exchange_history import MARKETS
from cluster.exchange_orders import SimOrder
from strategies.model import Side

LEVELS: Final = 100
_LEVEL_GAP_BPS: Final = 0.2

Level = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Book:
    """One second of the book: levels ``(ticks, lots)``, best first, and the mid in ticks they stand around."""

    product_id: str
    second: int
    mid_ticks: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """What an arriving order can execute against: a seeded level (no order), or a resting order."""

    ticks: int
    lots: int
    order: SimOrder | None = None


class Line:
    """The resting orders of one side of a product, best price first, at a price the first in line first."""

    def __init__(self, side: Side) -> None:
        self._sign = -1 if side is Side.BUY else 1
        self._keys: list[tuple[int, int]] = []
        self._orders: dict[tuple[int, int], SimOrder] = {}

    def add(self, order: SimOrder) -> None:
        """Let the order stand in line by its price and priority."""
        key = self._key(order)
        insort(self._keys, key)
        self._orders[key] = order

    def remove(self, order: SimOrder) -> None:
        """Take the order out; price and priority must be those it was added with."""
        key = self._key(order)
        del self._keys[bisect_left(self._keys, key)]
        del self._orders[key]

    def first(self) -> SimOrder | None:
        """The order that executes next."""
        return self._orders[self._keys[0]] if self._keys else None

    def __iter__(self) -> Iterator[SimOrder]:
        return (self._orders[key] for key in self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def _key(self, order: SimOrder) -> tuple[int, int]:
        return self._sign * (order.limit_ticks or 0), order.priority


def offers(levels: tuple[Level, ...], line: Line, side: Side, limit_ticks: int | None) -> Iterator[Offer]:
    """What an order arriving on ``side`` meets within its limit, best first; at one price the seeded level is first.

    ``levels`` and ``line`` are those of the other side.
    """
    sign = 1 if side is Side.BUY else -1
    worst = None if limit_ticks is None else sign * limit_ticks
    seeded = iter(levels)
    level = next(seeded, None)
    for order in line:
        ticks = order.limit_ticks or 0
        while level is not None and sign * level[0] <= sign * ticks:
            if worst is not None and sign * level[0] > worst:
                return
            yield Offer(level[0], level[1])
            level = next(seeded, None)
        if worst is not None and sign * ticks > worst:
            return
        yield Offer(ticks, order.open_lots, order)
    while level is not None and (worst is None or sign * level[0] <= worst):
        yield Offer(level[0], level[1])
        level = next(seeded, None)


def merged(levels: tuple[Level, ...], line: Line, side: Side, other_best: int | None) -> tuple[Level, ...]:
    """The levels of ``side`` with the resting orders added, best first.

    Orders that reach ``other_best`` (the seeded best price of the other side) are about to be filled and left out.
    """
    if not len(line):
        return levels
    sign = -1 if side is Side.BUY else 1
    sizes = dict(levels)
    for order in line:
        ticks = order.limit_ticks or 0
        if other_best is None or sign * ticks > sign * other_best:
            sizes[ticks] = sizes.get(ticks, 0) + order.open_lots
    return tuple(sorted(sizes.items(), key=lambda level: sign * level[0]))


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
