"""Bars at a coarser granularity, and decisions taken on them carried to the finer bars they are executed on."""

from __future__ import annotations

import reprlib
from typing import Final

import numpy as np

from strategies.model import Bars, Float64Array, Granularity, Int64Array

# The index of "no coarse bar has ended yet".
NONE_YET: Final = -1


class ResampleError(ValueError):
    """Bars cannot be made of these: ``field`` names what, ``value`` is what it was, ``rule`` what was expected."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: expected {rule}, was {reprlib.repr(value)}")
        self.field, self.value, self.rule = field, value, rule

    def __reduce__(self) -> tuple[type[ResampleError], tuple[str, object, str]]:
        return ResampleError, (self.field, self.value, self.rule)


def resample(bars: Bars, granularity: Granularity, *, unfinished: bool = False) -> Bars:
    """``bars`` (n) joined to bars of ``granularity`` (c <= n): first open, highest high, lowest low, last close, sum.

    Buckets begin at multiples of their length since 1970 UTC. A bucket without a bar makes none: gaps stay gaps. The
    last bucket is left out where the last bar ends before it does (``unfinished`` keeps it); the first one is kept even
    where the series begins inside it. The same granularity gives the same bars.

    Raises ``ResampleError`` where ``granularity`` is finer or no whole multiple (six hours of four-hour bars), or where
    the bars are not in ascending order.
    """
    require_multiple(bars.granularity, granularity)
    if granularity == bars.granularity or len(bars) == 0:
        return Bars(bars.product_id, granularity, *(getattr(bars, name) for name in ("ts_ns", *_VALUES)))
    disorder = np.flatnonzero(np.diff(bars.ts_ns) <= 0)
    if disorder.size:
        raise ResampleError(f"ts_ns[{disorder[0] + 1}]", int(bars.ts_ns[disorder[0] + 1]), "later than the bar before")
    buckets = bars.ts_ns // granularity.ns
    firsts = np.flatnonzero(np.concatenate([[True], buckets[1:] != buckets[:-1]]))
    lasts = np.concatenate([firsts[1:], [len(bars)]]) - 1
    if not unfinished and int(bars.ts_ns[-1]) + bars.granularity.ns < (int(buckets[-1]) + 1) * granularity.ns:
        firsts, lasts = firsts[:-1], lasts[:-1]
    used = int(lasts[-1]) + 1 if lasts.size else 0
    return Bars(
        bars.product_id,
        granularity,
        buckets[firsts] * granularity.ns,
        bars.open[firsts],
        _joined(np.maximum, bars.high[:used], firsts),
        _joined(np.minimum, bars.low[:used], firsts),
        bars.close[lasts],
        _joined(np.add, bars.volume[:used], firsts),
    )


def require_multiple(base: Granularity, coarse: Granularity) -> None:
    """Raise ``ResampleError`` unless a bar of ``coarse`` is made of whole bars of ``base``."""
    if coarse.ns < base.ns:
        raise ResampleError("granularity", str(coarse), f"{base} or coarser")
    if coarse.ns % base.ns:
        raise ResampleError("granularity", str(coarse), f"a whole multiple of {base}")


def known_at(coarse: Bars, bars: Bars) -> Int64Array:
    """int64[n]: for each of ``bars`` the last of ``coarse`` that has ended when it ends; ``NONE_YET`` before the first.

    A decision of that coarse bar is known at the base bar's close. With fills at the next open it is carried out on the
    first base bar that begins at or after the coarse bar's end; where the base bars that would end with it are missing,
    one bar later. So a target carried here depends on no bar after its own.
    """
    ends = coarse.ts_ns + coarse.granularity.ns
    return np.asarray(np.searchsorted(ends, bars.ts_ns + bars.granularity.ns, side="right") - 1, dtype=np.int64)


def carried(target: Float64Array, known: Int64Array) -> Float64Array:
    """float64[n]: coarse targets float64[c] on the base bars by ``known_at``; NaN where none is known yet."""
    if target.size == 0:
        return np.full(known.size, np.nan)
    return np.where(known == NONE_YET, np.nan, target[known])


_VALUES: Final = ("open", "high", "low", "close", "volume")


def _joined(how: np.ufunc, values: Float64Array, firsts: Int64Array) -> Float64Array:
    if not firsts.size:
        return np.empty(0)
    return np.asarray(how.reduceat(values, firsts), dtype=np.float64)
