"""Recorded candles as the exchange simulator's price path, in the place of the seeded one.

The recording is moved by whole days, so that a day of it happens today at its own times of day: what lies before now is
history, what lies after now is still to come. Within a bar the price runs from open over both extremes to close (a
rising bar meets its low first), so every candle the exchange answers with is the recorded one or exactly made of it.
Where the recording has no bar, the last close holds and there is no candle; books stay seeded around the price.
"""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np

from cluster.exchange_history import MARKETS, Candles, History
from strategies.model import NS_PER_S, Bars, Granularity, Int64Array

_PRICE_TICKS_MAX: Final = 10**12
_LOTS_MAX: Final = 2**62
_QUIET_S: Final = 3_600


class ReplayError(RuntimeError):
    """A recording cannot be replayed; the text names the file or product and the way out."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One product's bars on the exchange's clock: six int64 arrays, times in seconds, prices in ticks, volumes in lots.

    ``first_day`` and ``last_day`` are those it was recorded on, ``today`` is the one that is played today.
    """

    product_id: str
    length_s: int
    bars: Candles
    first_day: dt.date
    last_day: dt.date
    today: dt.date

    def price(self, now_ns: int) -> int:
        """The path's price in ticks; before the first bar its open, in a gap the last close."""
        index = self._index(now_ns // NS_PER_S)
        if index < 0:
            return int(self.bars.open[0])
        return self._path(index, now_ns - int(self.bars.start_s[index]) * NS_PER_S)

    def candles(self, length_s: int, start_s: int, stop_s: int, now_ns: int) -> Candles:
        """Candles that start in ``[start_s, stop_s)``, as known at ``now_ns`` (the running one as far as it is)."""
        first = -(-start_s // length_s) * length_s
        stop = min(stop_s, now_ns // NS_PER_S + 1)
        if first >= stop:
            return _columns([])
        if length_s < self.length_s:
            return self._finer(length_s, first, stop, now_ns)
        return self._coarser(length_s, first, -(-stop // length_s) * length_s, now_ns)

    def _coarser(self, length_s: int, first: int, stop: int, now_ns: int) -> Candles:
        begin, end = np.searchsorted(self.bars.start_s, [first, min(stop, now_ns // NS_PER_S + 1)])
        rows = [column[begin:end].copy() for column in _arrays(self.bars)]
        if not rows[0].size:
            return _columns([])
        last = int(end) - 1
        elapsed_ns = now_ns - int(self.bars.start_s[last]) * NS_PER_S
        if elapsed_ns < self.length_s * NS_PER_S:
            for row, value in zip(rows[1:], self._part(last, 0, elapsed_ns), strict=True):
                row[-1] = value
        starts = rows[0] // length_s * length_s
        firsts = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1))
        lasts = np.append(firsts[1:], starts.size) - 1
        return Candles(
            starts[firsts],
            rows[1][firsts],
            np.maximum.reduceat(rows[2], firsts),
            np.minimum.reduceat(rows[3], firsts),
            rows[4][lasts],
            np.add.reduceat(rows[5], firsts),
        )

    def _finer(self, length_s: int, first: int, stop: int, now_ns: int) -> Candles:
        found = []
        for start_s in range(first, stop, length_s):
            index = self._index(start_s)
            if index < 0 or start_s >= self.bars.start_s[index] + self.length_s:
                continue
            begin_ns = (start_s - int(self.bars.start_s[index])) * NS_PER_S
            end_ns = begin_ns + min(length_s * NS_PER_S, now_ns - start_s * NS_PER_S)
            found.append((start_s, *self._part(index, begin_ns, end_ns)))
        return _columns(found)

    def _index(self, second: int) -> int:
        """The bar that has begun last, -1 before the first."""
        return int(np.searchsorted(self.bars.start_s, second, side="right")) - 1

    def _part(self, index: int, begin_ns: int, end_ns: int) -> tuple[int, int, int, int, int]:
        """Open, high, low, close and volume of a part of a bar."""
        length_ns = self.length_s * NS_PER_S
        begin, end = self._path(index, begin_ns), self._path(index, end_ns)
        met = [ticks for at_ns, ticks in self._turns(index) if begin_ns <= at_ns <= end_ns]
        volume = int(self.bars.volume[index])
        lots = volume * end_ns // length_ns - volume * begin_ns // length_ns
        return begin, max(begin, end, *met), min(begin, end, *met), end, max(1, lots)

    def _path(self, index: int, at_ns: int) -> int:
        """The price ``at_ns`` into a bar (its close after its end); integers only, so it never leaves the bar."""
        turns = self._turns(index)
        for (from_ns, before), (until_ns, after) in itertools.pairwise(turns):
            if at_ns < until_ns:
                return before + (after - before) * (at_ns - from_ns) // (until_ns - from_ns)
        return turns[-1][1]

    def _turns(self, index: int) -> list[tuple[int, int]]:
        """Where the path turns: at thirds of the bar, over the extreme that lies away from the close first."""
        bars, length_ns = self.bars, self.length_s * NS_PER_S
        opened, high, low, close = (int(column[index]) for column in (bars.open, bars.high, bars.low, bars.close))
        between = (low, high) if close >= opened else (high, low)
        return [
            (0, opened),
            (length_ns // 3, between[0]),
            (length_ns * 2 // 3, between[1]),
            (length_ns, close),
        ]


class ReplayHistory(History):
    """Price paths of which some are recorded; the others are the seeded ones."""

    def __init__(self, seed: int, recordings: Mapping[str, Recording]) -> None:
        super().__init__(seed)
        self.recordings = dict(recordings)

    def source(self) -> dict[str, dict[str, str]]:
        """By product: the recorded days, and which of them is played today."""
        return {
            name: {"first": str(each.first_day), "last": str(each.last_day), "today": str(each.today)}
            for name, each in self.recordings.items()
        }

    def mid_ticks(self, product_id: str, now_ns: int) -> int:
        """The path's price in ticks at ``now_ns``."""
        recording = self.recordings.get(product_id)
        return super().mid_ticks(product_id, now_ns) if recording is None else recording.price(now_ns)

    def candles(
        self, product_id: str, granularity: Granularity, start_s: int, stop_s: int, now_ns: int, first_s: int = 0
    ) -> Candles:
        """As ``History.candles``; a gap of the recording is a gap here."""
        recording = self.recordings.get(product_id)
        if recording is None:
            return super().candles(product_id, granularity, start_s, stop_s, now_ns, first_s)
        return recording.candles(granularity.seconds, max(start_s, first_s), stop_s, now_ns)


def open_recordings(files: Sequence[str], today_s: int, day: dt.date | None = None) -> dict[str, Recording]:
    """Recordings by product from ``[PRODUCT=]FILE`` (Advanced Trade JSON, CSV or Lean zip); several files add up.

    ``day`` of the recording is played on the day that begins at ``today_s``; by default the last whole one of all.
    Raises ``ReplayError``.
    """
    series: dict[str, list[Bars]] = {}
    for text in files:
        bars = _read(text)
        series.setdefault(bars.product_id, []).append(bars)
    joined = {name: _joined(name, parts) for name, parts in series.items()}
    if not joined:
        return {}
    day = day or min(_last_whole_day(bars) for bars in joined.values())
    shift_s = today_s - int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp())
    return {name: _recording(bars, shift_s, day) for name, bars in joined.items()}


def _read(text: str) -> Bars:
    # Reading files needs the parsers of the bar store, which a simulator without recordings does without.
    from cluster.bar_checks import DataError
    from cluster.market_data import read_file

    product_id, _, name = text.rpartition("=")
    path = Path(name)
    try:
        bars = read_file(path, product_id or None)
    except DataError as error:
        if path.suffix != ".zip":
            raise ReplayError(str(error)) from None
        # A Lean zip of seconds has no granularity of ours; summed up to minutes it has.
        try:
            bars = read_file(path, product_id or None, Granularity.ONE_MINUTE)
        except DataError:
            raise ReplayError(str(error)) from None
    if bars.product_id not in MARKETS:
        raise ReplayError(f"{path}: {bars.product_id} is not traded here; say {' or '.join(MARKETS)} with PRODUCT=FILE")
    if not len(bars):
        raise ReplayError(f"{path}: holds no bars")
    return bars


def _joined(name: str, parts: list[Bars]) -> Bars:
    """All files of one product as one series, later files over earlier ones where they have the same bar."""
    kinds = {part.granularity for part in parts}
    if len(kinds) > 1:
        raise ReplayError(f"{name}: its files have different granularities ({', '.join(sorted(kinds))}); choose one")
    stamps = np.concatenate([part.ts_ns for part in parts])
    # Of equal stamps the last file's: ``unique`` gives the first of each, so they are looked at from the end.
    _, places = np.unique(stamps[::-1], return_index=True)
    order = stamps.size - 1 - places
    columns = [np.concatenate([getattr(part, field) for part in parts])[order] for field in _FIELDS]
    return Bars(name, parts[0].granularity, *columns)


_FIELDS: Final = ("ts_ns", "open", "high", "low", "close", "volume")


def _recording(bars: Bars, shift_s: int, today: dt.date) -> Recording:
    product = MARKETS[bars.product_id].product
    prices = [_whole(column, product.quote_increment, 2) for column in (bars.open, bars.high, bars.low, bars.close)]
    volume = _whole(bars.volume, product.base_increment, 1)
    if max(int(column.max()) for column in prices) > _PRICE_TICKS_MAX:
        raise ReplayError(f"{bars.product_id}: a price of the recording is beyond what is traded here")
    opened, high, low, close = prices
    candles = Candles(bars.ts_ns // NS_PER_S + shift_s, opened, high, low, close, volume)
    return Recording(bars.product_id, bars.granularity.seconds, candles, _day(bars, 0), _day(bars, -1), today)


def _whole(values: np.ndarray, increment: Decimal, least: int) -> Int64Array:
    """Values in whole increments; what is finer than an increment is rounded, what is less than one is one."""
    steps: Int64Array = np.clip(np.rint(values / float(increment)), least, float(_LOTS_MAX)).astype(np.int64)
    return steps


def _day(bars: Bars, index: int) -> dt.date:
    return dt.datetime.fromtimestamp(int(bars.ts_ns[index]) // NS_PER_S, dt.UTC).date()


def _last_whole_day(bars: Bars) -> dt.date:
    """The last day that the bars reach the end of, but for an hour without trading; else the first."""
    end_s = int(bars.ts_ns[-1]) // NS_PER_S + bars.granularity.seconds + _QUIET_S
    last = dt.datetime.fromtimestamp(end_s, dt.UTC).date() - dt.timedelta(days=1)
    return max(last, _day(bars, 0))


def _arrays(candles: Candles) -> tuple[Int64Array, ...]:
    return (candles.start_s, candles.open, candles.high, candles.low, candles.close, candles.volume)


def _columns(rows: Sequence[tuple[int, ...]]) -> Candles:
    table = np.array(rows, dtype=np.int64).reshape(len(rows), 6)
    return Candles(*(table[:, column] for column in range(6)))
