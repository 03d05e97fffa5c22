"""No look-ahead: whatever is changed after a bar must change nothing up to it. For strategies, rules, tables, anything.

``find_leaks`` is the whole idea: something is computed from bars, then again from bars that are the same before a cut
and others from there on (cut off, torn by huge moves, noise, another walk, standing still). What it says about the bars
before the cut must be the same to the last bit; where it is not, the future has leaked into the past.

The one thing this cannot see is knowledge that does not come from the bars at all, such as prices written into the
strategy itself; ``user_file`` refuses the forms of that a file can have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from strategies.model import Bars, Float64Array, Granularity
from strategies.panel import Panel

Observed = Mapping[str, NDArray[Any]]
_S = TypeVar("_S")

CUTS: Final = 12
# The changes a cut is tried with, in this order.
CHANGES: Final = ("cut off", "huge moves", "noise", "another walk", "standing still", "backwards")
_HUGE: Final = 1e5


@dataclasses.dataclass(frozen=True, slots=True)
class Leak:
    """``what`` at ``bar`` was ``before``, and became ``after`` through a change from bar ``cut`` > ``bar`` on."""

    what: str
    bar: int
    cut: int
    change: str
    before: str
    after: str

    def __str__(self) -> str:
        return (
            f"the {self.what} of bar {self.bar} is {self.before}, and {self.after} after a change ({self.change}) "
            f"of the bars from {self.cut} on: it knows bars that come later"
        )


def find_leaks(
    observe: Callable[[_S], Observed],
    series: _S,
    changed: Callable[[_S, int, str], _S],
    cuts: Sequence[int],
    changes: Sequence[str] = CHANGES,
) -> list[Leak]:
    """What ``observe(series)`` says about the past that depends on the future; the first bar of each kind of leak.

    ``observe`` gives arrays by name: one row a bar, or structured rows with a field ``bar_index``. Rows before the cut
    count. ``changed(series, cut, change)`` is the series with other bars from ``cut`` on.
    """
    whole = {name: array.copy() for name, array in observe(series).items()}
    found: list[Leak] = []
    for cut in cuts:
        for change in changes:
            other = observe(changed(series, cut, change))
            for what in whole:
                leak = _difference(what, whole[what], other[what], cut, change)
                if leak is not None:
                    found.append(leak)
    return found


def bar_leaks(
    observe: Callable[[Bars], Observed],
    bars: Bars,
    cuts: Sequence[int] | None = None,
    changes: Sequence[str] = CHANGES,
) -> list[Leak]:
    """``find_leaks`` for what is computed from one product's bars; without ``cuts``, ``cuts_of`` them."""
    return find_leaks(observe, bars, changed_bars, cuts_of(len(bars)) if cuts is None else cuts, changes)


def target_leaks(
    targets: Callable[..., Float64Array],
    vector: Float64Array,
    bars: Bars,
    cuts: Sequence[int] | None = None,
    changes: Sequence[str] = CHANGES,
) -> list[Leak]:
    """The leaks of a strategy's loop ``targets(vector, open, high, low, close, volume)`` with one set of parameters."""
    from strategies.compiled import read_only

    def observe(seen: Bars) -> Observed:
        columns = (seen.open, seen.high, seen.low, seen.close, seen.volume)
        return {"target": targets(read_only(vector), *(read_only(column) for column in columns))}

    return bar_leaks(observe, bars, cuts, changes)


def own_close_leaks(observe: Callable[[Bars], Observed], bars: Bars, tried: Sequence[int] | None = None) -> list[Leak]:
    """Fills that knew the close of their own bar: the close is moved within its bar, the fill must not change.

    ``observe`` gives ``fills``, structured rows with ``bar_index``. A stop within the bar is made by its high or low,
    which stay; a fill at the open knows the bars before. Only "same_close" fails here, and whatever else cheats so.
    """
    whole = observe(bars)["fills"]
    found = []
    for bar in cuts_of(len(bars)) if tried is None else tried:
        close = bars.close.copy()
        low, high = bars.low[bar], bars.high[bar]
        close[bar] = low + (0.25 if close[bar] > (low + high) / 2 else 0.75) * (high - low)
        other = observe(dataclasses.replace(bars, close=close))["fills"]
        one, two = whole[whole["bar_index"] == bar], other[other["bar_index"] == bar]
        if not _same(one, two):
            found.append(Leak("fill", bar, bar, "of its own close", _shown(one), _shown(two)))
    return found


def cuts_of(length: int, count: int = CUTS) -> list[int]:
    """Where to cut a series of ``length`` bars: the ends, and evenly but not in step with anything between."""
    inner = np.linspace(3, length - 3, max(2, count - 4)).astype(np.int64) + (np.arange(max(2, count - 4)) % 3)
    wanted = {1, 2, length - 2, length - 1, *inner.tolist()}
    return sorted(cut for cut in wanted if 0 < cut < length)


def changed_bars(bars: Bars, cut: int, change: str, seed: int = 5) -> Bars:
    """``bars``, valid bars again, equal before ``cut`` and others from there on."""
    if change == "cut off":
        return bars.between(0, cut)
    random = np.random.default_rng([seed, cut, CHANGES.index(change)])
    count = len(bars) - cut
    close, volume = bars.close[cut:], bars.volume[cut:]
    last = float(bars.close[cut - 1])
    if change == "huge moves":
        # One jump up and one down: an account that meets one at every bar leaves the doubles.
        new = close * np.where(np.arange(count) <= count // 2, _HUGE, 1 / _HUGE)
        volume = volume * _HUGE + 1.0
    elif change == "noise":
        new = close * np.exp(0.05 * random.standard_normal(count))
        volume = volume * random.uniform(0.1, 10.0, count)
    elif change == "another walk":
        new = last * np.exp(np.cumsum(0.02 * random.standard_normal(count)))
        volume = random.uniform(0.0, 10.0, count)
    elif change == "standing still":
        new = np.full(count, last)
        volume = np.zeros(count)
    else:
        new = close[::-1] * 1.7
        volume = volume[::-1] * 1.7
    return _with_tail(bars, cut, new, volume, 0.0 if change == "standing still" else 0.001)


def changed_panel(panel: Panel, cut: int, change: str) -> Panel:
    """``changed_bars`` for several products: each one's bars from the time ``cut`` on, by a change of its own."""
    if change == "cut off":
        return panel.between(0, cut)
    columns = {name: getattr(panel, name).copy(order="F") for name in ("open", "high", "low", "close", "volume")}
    for row, product_id in enumerate(panel.product_ids):
        bars = panel.bars(product_id)
        before = int(np.searchsorted(bars.ts_ns, panel.ts_ns[cut]))
        # Of a product that begins later the first bar stays: there is nothing before it to go on from.
        before = max(before, 1)
        if before < len(bars):
            other = changed_bars(bars, before, change, seed=5 + row)
            at = np.searchsorted(panel.ts_ns, bars.ts_ns)
            for name, column in columns.items():
                column[row, at] = getattr(other, name)
    return dataclasses.replace(panel, **columns)


def made_up_bars(length: int, seed: int = 7, product_id: str = "MADE-UP") -> Bars:
    """A seeded walk with trends, calm and wild times: float64[length] prices, all above 0, some bars without volume."""
    random = np.random.default_rng(seed)
    wave = 0.1 * np.sin(np.arange(length) / 40.0) + 0.05 * np.sin(np.arange(length) / 11.0)
    width = 0.004 * (1.0 + np.sin(np.arange(length) / 150.0) ** 2)
    close = 100.0 * np.exp(wave + np.cumsum(width * random.standard_normal(length)))
    opened = np.concatenate([close[:1], close[:-1]]) * np.exp(0.0005 * random.standard_normal(length))
    spread = 1.0 + 0.003 * random.random((2, length))
    high, low = np.maximum(opened, close) * spread[0], np.minimum(opened, close) / spread[1]
    volume = np.where(random.random(length) < 0.02, 0.0, random.uniform(0.0, 10.0, length))
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_HOUR.ns
    return Bars(product_id, Granularity.ONE_HOUR, ts_ns, opened, high, low, close, volume)


def _with_tail(bars: Bars, cut: int, close: Float64Array, volume: Float64Array, spread: float) -> Bars:
    opened = np.concatenate([[bars.close[cut - 1] * (1.0 + 3.0 * spread)], close[:-1]])
    high, low = np.maximum(opened, close) * (1.0 + spread), np.minimum(opened, close) * (1.0 - spread)
    tails = {"open": opened, "high": high, "low": low, "close": close, "volume": volume}
    joined: dict[str, Any] = {name: np.concatenate([getattr(bars, name)[:cut], tail]) for name, tail in tails.items()}
    return dataclasses.replace(bars, **joined)


def _difference(what: str, whole: NDArray[Any], other: NDArray[Any], cut: int, change: str) -> Leak | None:
    if whole.dtype.names:
        one, two = whole[whole["bar_index"] < cut], other[other["bar_index"] < cut]
        if _same(one, two):
            return None
        count = min(len(one), len(two))
        first = next((i for i in range(count) if not _same(one[i : i + 1], two[i : i + 1])), count)
        bar = min(int(rows["bar_index"][first]) for rows in (one, two) if first < len(rows))
        return Leak(what, bar, cut, change, _shown(one[first : first + 1]), _shown(two[first : first + 1]))
    one, two = whole[:cut], other[:cut]
    if one.shape == two.shape and _same(one, two):
        return None
    unequal = [i for i in range(min(len(one), len(two))) if not _same(one[i : i + 1], two[i : i + 1])]
    bar = unequal[0] if unequal else min(len(one), len(two))
    return Leak(what, bar, cut, change, _shown(one[bar : bar + 1]), _shown(two[bar : bar + 1]))


def _same(one: NDArray[Any], two: NDArray[Any]) -> bool:
    """Equal to the last bit, but for which not-a-number and which zero it is."""
    if one.shape != two.shape:
        return False
    if one.dtype.names:
        return all(_same(one[name], two[name]) for name in one.dtype.names)
    return bool(np.array_equal(one, two, equal_nan=one.dtype.kind == "f"))


def _shown(rows: NDArray[Any]) -> str:
    if not len(rows):
        return "absent"
    return str(rows[0].tolist())
