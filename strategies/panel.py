"""A panel: the bars of several products on the union of their times, for portfolios with one cash account."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from strategies.model import Bars, Float64Array, Granularity, Int64Array
from strategies.resample import require_multiple, resample

PRODUCTS_MAX: Final = 1_000
_PRICES: Final = ("open", "high", "low", "close")
_VALUES: Final = (*_PRICES, "volume")


class PanelError(ValueError):
    """Bars that make no panel: ``product_id`` (empty: the whole panel), ``field``, the value and the rule."""

    def __init__(self, product_id: str, field: str, value: object, rule: str) -> None:
        place = f"{product_id} {field}".strip()
        super().__init__(f"{place}: expected {rule}, was {reprlib.repr(value)}")
        self.product_id, self.field, self.value, self.rule = product_id, field, value, rule

    def __reduce__(self) -> tuple[type[PanelError], tuple[str, str, object, str]]:
        return PanelError, (self.product_id, self.field, self.value, self.rule)


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of p products at n times, oldest first.

    ``ts_ns`` int64[n] in nanoseconds UTC, strictly increasing, the union of the products' bars. The other arrays are
    float64[p, n]: NaN where a product has no bar at that time (no trading, not listed yet, or no longer). In memory
    the products of one time lie side by side (Fortran order), as loops over time read them.
    """

    product_ids: tuple[str, ...]
    granularity: Granularity
    ts_ns: Int64Array
    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array

    def __len__(self) -> int:
        return int(self.ts_ns.size)

    def between(self, start: int, stop: int) -> Panel:
        """Times ``start:stop`` by position, as views; a product without a bar in them stays, with NaN only."""
        values = (getattr(self, name)[:, start:stop] for name in _VALUES)
        return Panel(self.product_ids, self.granularity, self.ts_ns[start:stop], *values)

    def bars(self, product_id: str) -> Bars:
        """One product's own bars; raises ``PanelError`` where it is not in the panel."""
        if product_id not in self.product_ids:
            raise PanelError("", "product_id", product_id, f"one of {', '.join(self.product_ids)}")
        row = self.product_ids.index(product_id)
        there = ~np.isnan(self.close[row])
        values = (getattr(self, name)[row, there] for name in _VALUES)
        return Bars(product_id, self.granularity, self.ts_ns[there], *values)

    def last_close(self) -> Float64Array:
        """float64[p, n] in the same order: each product's latest close so far, 0 before its first bar."""
        position = np.where(np.isnan(self.close), -1, np.arange(len(self)))
        latest = np.maximum.accumulate(position, axis=1)
        known = np.take_along_axis(self.close, np.maximum(latest, 0), axis=1)
        return np.asfortranarray(np.where(latest >= 0, known, 0.0))


def panel_of(series: Sequence[Bars]) -> Panel:
    """The panel of ``series``, one ``Bars`` (n >= 1) a product, in the given order.

    Raises ``PanelError`` naming product, field, value and rule: no series or too many, a product twice, different
    granularities or quote currencies (one cash pays for all), times out of order, an unusable price or volume. NaN in a
    series is refused: in a panel it would mean that there is no bar.
    """
    _require_one_account(series)
    for bars in series:
        _require_usable(bars)
    return _joined(tuple(bars.product_id for bars in series), series[0].granularity, series)


def _joined(product_ids: tuple[str, ...], granularity: Granularity, series: Sequence[Bars]) -> Panel:
    ts_ns = np.unique(np.concatenate([bars.ts_ns for bars in series]))
    arrays = [np.full((len(series), ts_ns.size), np.nan, order="F") for _ in _VALUES]
    for row, bars in enumerate(series):
        at = np.searchsorted(ts_ns, bars.ts_ns)
        for name, array in zip(_VALUES, arrays, strict=True):
            array[row, at] = getattr(bars, name)
    return Panel(product_ids, granularity, ts_ns, *arrays)


def resampled(panel: Panel, granularity: Granularity) -> Panel:
    """The panel at a coarser granularity, each product by ``resample.resample``; raises ``ResampleError``.

    Whether a bucket has ended is told by the panel's last time, not by each product's own last bar: a product that is
    not traded in a bucket's last minutes has that bar all the same.
    """
    require_multiple(panel.granularity, granularity)
    end_ns = int(panel.ts_ns[-1]) + panel.granularity.ns if len(panel) else 0
    series = []
    for product_id in panel.product_ids:
        coarse = resample(panel.bars(product_id), granularity, unfinished=True)
        series.append(coarse.between(0, int(np.searchsorted(coarse.ts_ns + granularity.ns, end_ns, side="right"))))
    return _joined(panel.product_ids, granularity, series)


def quote_currency(product_id: str) -> str:
    """What the product is paid with: the part after the dash."""
    return product_id.rpartition("-")[2]


def _require_one_account(series: Sequence[Bars]) -> None:
    if not 1 <= len(series) <= PRODUCTS_MAX:
        raise PanelError("", "series", len(series), f"1 to {PRODUCTS_MAX} products")
    first = series[0]
    for position, bars in enumerate(series):
        if bars.product_id in (other.product_id for other in series[:position]):
            raise PanelError(bars.product_id, "product_id", bars.product_id, "each product once")
        if bars.granularity != first.granularity:
            raise PanelError(bars.product_id, "granularity", str(bars.granularity), f"{first.granularity} as the first")
        if quote_currency(bars.product_id) != quote_currency(first.product_id):
            rule = f"the quote currency of {first.product_id}: one cash pays for all"
            raise PanelError(bars.product_id, "product_id", bars.product_id, rule)


def _require_usable(bars: Bars) -> None:
    if len(bars) == 0:
        raise PanelError(bars.product_id, "bars", 0, "at least one bar")
    for name in ("ts_ns", *_VALUES):
        array, wanted = getattr(bars, name), np.dtype(np.int64 if name == "ts_ns" else np.float64)
        if array.dtype != wanted or array.shape != (len(bars),):
            raise PanelError(bars.product_id, name, f"{array.dtype}{array.shape}", f"{wanted}({len(bars)},)")
    for name in _VALUES:
        array = getattr(bars, name)
        usable = np.isfinite(array) & ((array > 0) if name in _PRICES else (array >= 0))
        if not usable.all():
            bar = int(np.argmin(usable))
            rule = "a finite number above 0" if name in _PRICES else "a finite number, 0 or more"
            raise PanelError(bars.product_id, f"{name} of bar {bar}", float(array[bar]), rule)
    late = np.flatnonzero(np.diff(bars.ts_ns) <= 0)
    if late.size:
        bar = int(late[0]) + 1
        raise PanelError(bars.product_id, f"ts_ns of bar {bar}", int(bars.ts_ns[bar]), "later than the bar before")
