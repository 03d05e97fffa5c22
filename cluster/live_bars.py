"""Bars as they become final, from a venue's candles: never one that may still change, never one that is not there.

A bar is final once its end has passed and a later bar is there, or once it was read twice with equal values, both a
grace after its end (in a quiet market there is no later bar). Where nothing traded there is no bar, and none is made.
A venue may correct what seemed final, or bring a bar late: that is detected among the newest bars and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np

from cluster.bar_checks import require_valid
from cluster.series_files import join_bars
from strategies.model import NS_PER_S, Bars, Granularity

PAGE_BARS: Final = 350
# So many of the newest bars are read again each time, to see whether the venue has changed its mind.
WATCHED_BARS: Final = 8
GRACE_S: Final = 5.0
# How long after a bar's end it is asked for first, and how often until it is final.
FIRST_LOOK_S: Final = 0.5
LOOK_AGAIN_S: Final = 1.0

Fetch = Callable[[int, int], Bars]
"""Bars whose start lies in [start_s, end_s) (UNIX seconds, at most 350), oldest first, the running one included."""


class LiveBar(NamedTuple):
    """One bar: its start in nanoseconds UTC and its five numbers."""

    ts_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True, slots=True)
class Correction:
    """A bar that is another now than when it was taken as final; ``before`` None: it was not there then."""

    kind: Literal["CORRECTED", "LATE"]
    before: LiveBar | None
    after: LiveBar


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the venue brought: bars that are final now, oldest first, and corrections of older ones."""

    final: list[LiveBar]
    corrections: list[Correction]


@dataclass
class LiveBars:
    """The bars of one product behind ``last_ns``, the start of the newest bar taken as final."""

    product_id: str
    granularity: Granularity
    fetch: Fetch
    last_ns: int = -1
    grace_s: float = GRACE_S
    # The newest bars taken as final, as the venue told them last.
    _known: dict[int, LiveBar] = field(default_factory=dict)
    # The bar that waits for a second equal reading, and when it may come.
    _once: tuple[LiveBar, int] | None = None
    # When the venue can have something new at the earliest.
    due_ns: int = 0

    def history(self, first_ns: int, now_ns: int) -> list[LiveBar]:
        """The final bars from ``first_ns`` to ``now_ns``, oldest first; later looks go on behind the last of them.

        Only bars that a later one follows: what may still change is left to the looks. Raises as ``look``.
        """
        bars = self._read(first_ns, now_ns)
        closed = [bar for bar in bars[:-1] if bar.ts_ns + self.granularity.ns <= now_ns]
        self.last_ns = max(self.last_ns, first_ns - self.granularity.ns)
        for bar in closed:
            self.remember(bar)
        return closed

    def look(self, now_ns: int) -> Look:
        """Ask the venue. Raises what ``fetch`` raises, and ``DataError`` for bars that break a rule."""
        start_ns = min(self._known, default=self.last_ns + self.granularity.ns)
        bars = self._read(start_ns, now_ns)
        corrections = [found for bar in bars if (found := self._correction(bar)) is not None]
        final: list[LiveBar] = []
        newer = [bar for bar in bars if bar.ts_ns > self.last_ns]
        for place, bar in enumerate(newer):
            followed = place + 1 < len(newer)
            if not self._is_final(bar, followed, now_ns):
                break  # order is kept: what follows a bar that may change waits with it
            final.append(bar)
        for bar in final:
            self.remember(bar)
        self.due_ns = self._next_due_ns(now_ns)
        return Look(final, corrections)

    def remember(self, bar: LiveBar) -> None:
        """``bar`` is taken as final, or was corrected."""
        self.last_ns = max(self.last_ns, bar.ts_ns)
        self._known[bar.ts_ns] = bar
        while len(self._known) > WATCHED_BARS:
            del self._known[min(self._known)]

    def _next_due_ns(self, now_ns: int) -> int:
        step_ns = self.granularity.ns
        running_ns = now_ns // step_ns * step_ns
        second_reading = self._once is not None and self._once[0].ts_ns > self.last_ns
        # Where nothing traded the bar that has just ended never comes: it is not waited for beyond the grace.
        awaited = self.last_ns < running_ns - step_ns and now_ns < running_ns + self.grace_s * NS_PER_S
        if second_reading or awaited:
            return now_ns + int(LOOK_AGAIN_S * NS_PER_S)
        return running_ns + step_ns + int(FIRST_LOOK_S * NS_PER_S)

    def _is_final(self, bar: LiveBar, followed: bool, now_ns: int) -> bool:
        end_ns = bar.ts_ns + self.granularity.ns
        if now_ns < end_ns:
            return False
        if followed:
            return True
        if now_ns < end_ns + self.grace_s * NS_PER_S:
            return False
        if self._once is not None and self._once[0] == bar:
            return now_ns >= self._once[1]
        self._once = (bar, now_ns + int(LOOK_AGAIN_S * NS_PER_S))
        return False

    def _correction(self, bar: LiveBar) -> Correction | None:
        if bar.ts_ns > self.last_ns or not self._known or bar.ts_ns < min(self._known):
            return None
        before = self._known.get(bar.ts_ns)
        if before == bar:
            return None
        self.remember(bar)
        return Correction("LATE" if before is None else "CORRECTED", before, bar)

    def _read(self, start_ns: int, now_ns: int) -> list[LiveBar]:
        step_s = self.granularity.seconds
        first_s = max(0, start_ns // NS_PER_S // step_s * step_s)
        stop_s = now_ns // NS_PER_S + 1
        pieces = []
        for page_s in range(first_s, stop_s, PAGE_BARS * step_s):
            page = self.fetch(page_s, min(stop_s, page_s + PAGE_BARS * step_s))
            require_valid(page, f"the venue's candles of {self.product_id} {self.granularity}")
            pieces.append(page)
        joined = join_bars(self.product_id, self.granularity, pieces)
        require_valid(joined, f"the venue's candles of {self.product_id} {self.granularity}")
        return [bar for bar in rows_of(joined) if bar.ts_ns >= start_ns]


def rows_of(bars: Bars) -> list[LiveBar]:
    """The bars one by one, as Python's own numbers."""
    columns = (bars.ts_ns, bars.open, bars.high, bars.low, bars.close, bars.volume)
    return [LiveBar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def bars_of(product_id: str, granularity: Granularity, rows: Iterable[LiveBar]) -> Bars:
    """The inverse of ``rows_of``."""
    columns = list(zip(*rows, strict=True)) or [()] * 6
    values = [np.array(column, dtype=np.float64) for column in columns[1:]]
    return Bars(product_id, granularity, np.array(columns[0], dtype=np.int64), *values)
