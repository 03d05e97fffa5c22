"""The exchange simulator's prices: a seeded path per product, from which candles and the live mid both come.

The path of a product depends on ``(seed, product, time)`` alone, never on when the process started. It is made in
two layers, so that any day can be produced without the days before it:

* Daily closes since 1970 by a GARCH(1,1) with Student-t shocks (Bollerslev 1986, doi:10.1016/0304-4076(86)90063-1;
  Bollerslev 1987, doi:10.2307/1925546), drawn weakly towards a long-run price so that no seed ends at zero.
* Within a day a bridge from close to close over nodes 15 seconds apart, its volatility following hourly
  log-volatility (an AR(1)) and a daily season. Between nodes the price is linear, so a candle's extremes lie on nodes.

Prices are whole ticks and volumes whole lots (int64), so that aggregates are exact.
"""

from __future__ import annotations

import zlib
from collections import OrderedDict
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

import numpy as np

from strategies.model import NS_PER_S, Float64Array, Granularity, Int64Array, Product

DAY_S: Final = 86_400
MINUTE_S: Final = 60
NODE_S: Final = 15
_NODES_PER_DAY: Final = DAY_S // NODE_S
_NODES_PER_MINUTE: Final = MINUTE_S // NODE_S
_MINUTES_PER_DAY: Final = DAY_S // MINUTE_S
# 1970 to 2070. A fixed length keeps the draws of a day the same whatever day it is.
_HORIZON_DAYS: Final = 36_525
# Bounds on memory: 57 KB a day of minutes (23 MB in all), 46 KB a day of nodes.
_CACHED_DAYS: Final = 400
_CACHED_NODE_DAYS: Final = 8

_GARCH_ALPHA: Final = 0.08
_GARCH_BETA: Final = 0.90
_SHOCK_FREEDOM: Final = 5
_SHOCK_MAX: Final = 6.0
_REVERSION_PER_DAY: Final = 0.0035
_MARKET_CORRELATION: Final = 0.7
_HOURLY_VOLATILITY_MEMORY: Final = 0.85
_HOURLY_VOLATILITY_NOISE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Market:
    """A product and the character of its prices: long-run price, daily volatility (a fraction), daily volume (base
    units), half of the spread in ticks and the typical size of a book level (base units)."""

    product: Product
    base_name: str
    price: float
    volatility: float
    volume: float
    half_spread_ticks: int
    level_size: float


def _market(
    base: str,
    name: str,
    price: float,
    volatility: float,
    volume: float,
    half_spread_ticks: int,
    level_size: float,
    max_size: str,
) -> Market:
    product = Product(
        product_id=f"{base}-USD",
        base_currency=base,
        quote_currency="USD",
        base_increment=Decimal("0.00000001"),
        quote_increment=Decimal("0.01"),
        base_min_size=Decimal("0.00000001"),
        base_max_size=Decimal(max_size),
        quote_min_size=Decimal(1),
        quote_max_size=Decimal(150_000_000),
    )
    return Market(product, name, price, volatility, volume, half_spread_ticks, level_size)


MARKETS: Final[dict[str, Market]] = {
    market.product.product_id: market
    for market in (
        _market("BTC", "Bitcoin", 60_000.0, 0.030, 9_000.0, 1, 0.25, "3400"),
        _market("ETH", "Ethereum", 3_000.0, 0.038, 110_000.0, 1, 3.0, "42000"),
        _market("SOL", "Solana", 150.0, 0.050, 900_000.0, 1, 40.0, "350000"),
    )
}


@dataclass(frozen=True, slots=True)
class Candles:
    """Candles oldest first: six int64 arrays of one length; ``start_s`` UNIX seconds, prices ticks, volume lots."""

    start_s: Int64Array
    open: Int64Array
    high: Int64Array
    low: Int64Array
    close: Int64Array
    volume: Int64Array

    def __len__(self) -> int:
        return int(self.start_s.size)


class History:
    """The price paths of all products for one seed. Not thread-safe: it keeps bounded caches."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._boundaries: dict[str, tuple[Float64Array, Float64Array, Int64Array]] = {}
        self._days: OrderedDict[tuple[str, int], Candles] = OrderedDict()
        self._node_days: OrderedDict[tuple[str, int], tuple[Int64Array, Float64Array]] = OrderedDict()

    def source(self) -> dict[str, dict[str, str]]:
        """By product, from which recording its prices come; none of them from one here."""
        return {}

    def mid_ticks(self, product_id: str, now_ns: int) -> int:
        """The path's price in ticks at ``now_ns``."""
        day, rest_ns = divmod(now_ns, DAY_S * NS_PER_S)
        nodes, _ = self._nodes(product_id, day)
        return _between_nodes(nodes, rest_ns)

    def candles(
        self, product_id: str, granularity: Granularity, start_s: int, stop_s: int, now_ns: int, first_s: int = 0
    ) -> Candles:
        """Candles whose start lies in ``[max(start_s, first_s), stop_s)``, as known at ``now_ns``.

        The running candle is included as far as it has come, once it has volume. ``first_s`` is where history begins
        (a whole day).
        """
        length_s = granularity.seconds
        first = -(-max(start_s, first_s) // length_s) * length_s
        stop = min(stop_s, now_ns // NS_PER_S + 1)
        if first >= stop:
            return _EMPTY
        days = [self._known_day(product_id, day, now_ns) for day in range(first // DAY_S, (stop - 1) // DAY_S + 1)]
        merged = _concatenate([_aggregate(day, length_s) for day in days])
        kept = (merged.start_s >= first) & (merged.start_s < stop)
        return Candles(*(column[kept] for column in _columns(merged)))

    def _known_day(self, product_id: str, day: int, now_ns: int) -> Candles:
        """The minutes of ``day`` that have begun by ``now_ns``, the running one as far as it has come."""
        minutes = self._minutes(product_id, day)
        elapsed_ns = now_ns - day * DAY_S * NS_PER_S
        if elapsed_ns >= DAY_S * NS_PER_S:
            return minutes
        complete = elapsed_ns // (MINUTE_S * NS_PER_S)
        past = Candles(*(column[:complete] for column in _columns(minutes)))
        running = self._running_minute(product_id, day, minutes, elapsed_ns)
        return past if running is None else _concatenate([past, running])

    def _running_minute(self, product_id: str, day: int, minutes: Candles, elapsed_ns: int) -> Candles | None:
        index, in_minute_ns = divmod(elapsed_ns, MINUTE_S * NS_PER_S)
        volume = int(minutes.volume[index]) * in_minute_ns // (MINUTE_S * NS_PER_S)
        if volume == 0:
            return None
        nodes, _ = self._nodes(product_id, day)
        first = index * _NODES_PER_MINUTE
        passed = nodes[first : first + in_minute_ns // (NODE_S * NS_PER_S) + 1]
        price = _between_nodes(nodes, elapsed_ns)
        high, low = max(int(passed.max()), price), min(int(passed.min()), price)
        row = (day * DAY_S + index * MINUTE_S, int(passed[0]), high, low, price, volume)
        return Candles(*(np.array([value], dtype=np.int64) for value in row))

    def _minutes(self, product_id: str, day: int) -> Candles:
        key = (product_id, day)
        found = self._days.get(key)
        if found is None:
            found = self._days[key] = self._make_minutes(product_id, day)
            if len(self._days) > _CACHED_DAYS:
                self._days.popitem(last=False)
        self._days.move_to_end(key)
        return found

    def _make_minutes(self, product_id: str, day: int) -> Candles:
        nodes, volatility = self._nodes(product_id, day)
        inner = nodes[:-1].reshape(_MINUTES_PER_DAY, _NODES_PER_MINUTE)
        close = nodes[_NODES_PER_MINUTE::_NODES_PER_MINUTE]
        starts = day * DAY_S + MINUTE_S * np.arange(_MINUTES_PER_DAY, dtype=np.int64)
        high = np.maximum(inner.max(axis=1), close)
        low = np.minimum(inner.min(axis=1), close)
        volume = self._volume_lots(product_id, day, volatility, (high - low) / close)
        return Candles(starts, inner[:, 0].copy(), high, low, close.copy(), volume)

    def _volume_lots(self, product_id: str, day: int, volatility: Float64Array, ranges: Float64Array) -> Int64Array:
        """Volume rises with volatility and with the minute's range, times noise; at least a lot (no empty minutes)."""
        market = MARKETS[product_id]
        noise = np.exp(self._random(product_id, "volume", day).normal(-0.18, 0.6, _MINUTES_PER_DAY))
        typical = market.volatility / np.sqrt(_MINUTES_PER_DAY)
        minute_volatility = volatility.reshape(_MINUTES_PER_DAY, _NODES_PER_MINUTE)[:, 0]
        units = market.volume / _MINUTES_PER_DAY * minute_volatility * (0.4 + 0.6 * ranges / typical) * noise
        lots = np.rint(units / float(market.product.base_increment)).astype(np.int64)
        at_least_one: Int64Array = np.maximum(lots, 1)
        return at_least_one

    def _nodes(self, product_id: str, day: int) -> tuple[Int64Array, Float64Array]:
        """Ticks at the day's 5,761 nodes (the last is the next day's first) and relative volatility of each step."""
        key = (product_id, day)
        found = self._node_days.get(key)
        if found is None:
            found = self._node_days[key] = self._make_nodes(product_id, day)
            if len(self._node_days) > _CACHED_NODE_DAYS:
                self._node_days.popitem(last=False)
        self._node_days.move_to_end(key)
        return found

    def _make_nodes(self, product_id: str, day: int) -> tuple[Int64Array, Float64Array]:
        if not 0 <= day < _HORIZON_DAYS - 1:
            raise ValueError(f"day: expected 0 (1970) to {_HORIZON_DAYS - 2} (2070), was {day}")
        log_close, sigma, boundary_ticks = self._daily_path(product_id)
        random = self._random(product_id, "steps", day)
        volatility = _intraday_volatility(random)
        own = _shocks(random, _NODES_PER_DAY)
        shared = self._random("market", "steps", day).standard_normal(_NODES_PER_DAY)
        variance = np.square(volatility) * (sigma[day] ** 2 / np.square(volatility).sum())
        steps = np.sqrt(variance) * _correlated(shared, own)
        # A Brownian bridge: what is missing to the day's close is spread in proportion to each step's variance.
        missing = log_close[day + 1] - log_close[day] - steps.sum()
        path = log_close[day] + np.cumsum(steps + missing * variance / variance.sum())
        nodes = np.empty(_NODES_PER_DAY + 1, dtype=np.int64)
        nodes[1:] = np.maximum(np.rint(np.exp(path) / _tick(product_id)), 1.0)
        nodes[0], nodes[-1] = boundary_ticks[day], boundary_ticks[day + 1]
        return nodes, volatility

    def _daily_path(self, product_id: str) -> tuple[Float64Array, Float64Array, Int64Array]:
        """Log price at the start of every day, the day's volatility, and the same prices in ticks."""
        if product_id not in self._boundaries:
            log_close, sigma = self._make_daily_path(product_id)
            ticks = np.maximum(np.rint(np.exp(log_close) / _tick(product_id)), 1.0).astype(np.int64)
            self._boundaries[product_id] = (log_close, sigma, ticks)
        return self._boundaries[product_id]

    def _make_daily_path(self, product_id: str) -> tuple[Float64Array, Float64Array]:
        market = MARKETS[product_id]
        shared = self._random("market", "daily", 0).standard_normal(_HORIZON_DAYS)
        shocks = _correlated(shared, _shocks(self._random(product_id, "daily", 0), _HORIZON_DAYS)).tolist()
        long_run = market.volatility**2
        mean = float(np.log(market.price))
        variance, level = long_run, mean
        levels, sigmas = np.empty(_HORIZON_DAYS), np.empty(_HORIZON_DAYS)
        for day, shock in enumerate(shocks):
            levels[day], sigmas[day] = level, variance**0.5
            surprise = sigmas[day] * shock
            level += float(surprise) + _REVERSION_PER_DAY * (mean - level)
            variance = min(
                (1 - _GARCH_ALPHA - _GARCH_BETA) * long_run + _GARCH_ALPHA * surprise**2 + _GARCH_BETA * variance,
                25 * long_run,
            )
        return levels, sigmas

    def _random(self, product_id: str, purpose: str, day: int) -> np.random.Generator:
        stream = zlib.crc32(f"{product_id}/{purpose}".encode())
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, stream, day])))


_EMPTY: Final = Candles(*(np.empty(0, dtype=np.int64) for _ in range(6)))


def _between_nodes(nodes: Int64Array, rest_ns: int) -> int:
    """Ticks at ``rest_ns`` into the day; integers only, so that a price never leaves the span of its two nodes."""
    index, part_ns = divmod(rest_ns, NODE_S * NS_PER_S)
    before, after = int(nodes[index]), int(nodes[index + 1])
    return before + (after - before) * part_ns // (NODE_S * NS_PER_S)


def _intraday_volatility(random: np.random.Generator) -> Float64Array:
    """Relative volatility of each step: hourly log-volatility with memory, times a season that peaks at 15:00 UTC."""
    knots = np.empty(25)
    level = 0.0
    for hour, noise in enumerate(random.standard_normal(25)):
        level = _HOURLY_VOLATILITY_MEMORY * level + _HOURLY_VOLATILITY_NOISE * float(noise)
        knots[hour] = level + 0.25 * np.cos(2 * np.pi * (hour - 15) / 24)
    volatility: Float64Array = np.exp(np.interp(np.arange(_NODES_PER_DAY) * (NODE_S / 3_600), np.arange(25), knots))
    return volatility


def _shocks(random: np.random.Generator, count: int) -> Float64Array:
    """Student-t shocks of unit variance, cut at six deviations."""
    raw = random.standard_t(_SHOCK_FREEDOM, count) * np.sqrt((_SHOCK_FREEDOM - 2) / _SHOCK_FREEDOM)
    cut: Float64Array = np.clip(raw, -_SHOCK_MAX, _SHOCK_MAX)
    return cut


def _correlated(shared: Float64Array, own: Float64Array) -> Float64Array:
    mixed: Float64Array = np.sqrt(_MARKET_CORRELATION) * shared + np.sqrt(1 - _MARKET_CORRELATION) * own
    return mixed


def _tick(product_id: str) -> float:
    return float(MARKETS[product_id].product.quote_increment)


def _aggregate(minutes: Candles, length_s: int) -> Candles:
    """Exact aggregates of one day's minutes; the last bucket may be incomplete."""
    if length_s == MINUTE_S or not len(minutes):
        return minutes
    firsts = np.arange(0, len(minutes), length_s // MINUTE_S)
    lasts = np.append(firsts[1:], len(minutes)) - 1
    return Candles(
        minutes.start_s[firsts],
        minutes.open[firsts],
        np.maximum.reduceat(minutes.high, firsts),
        np.minimum.reduceat(minutes.low, firsts),
        minutes.close[lasts],
        np.add.reduceat(minutes.volume, firsts),
    )


def _columns(candles: Candles) -> tuple[Int64Array, ...]:
    return (candles.start_s, candles.open, candles.high, candles.low, candles.close, candles.volume)


def _concatenate(parts: list[Candles]) -> Candles:
    return Candles(*(np.concatenate(columns) for columns in zip(*map(_columns, parts), strict=True)))
