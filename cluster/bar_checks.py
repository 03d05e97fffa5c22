"""What a valid series of bars is: the rules, the errors that name a broken one, the gaps and the data hash."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np

from strategies.model import NS_PER_S, Bars, Granularity, Int64Array

PRICES: Final = ("open", "high", "low", "close")
VALUES: Final = (*PRICES, "volume")
PRODUCT_ID: Final = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}")

# Beyond these no product trades, and products of prices, sizes and cash could leave float64 in a kernel.
PRICE_MIN: Final = 1e-18
PRICE_MAX: Final = 1e18
VOLUME_MAX: Final = 1e24
# 2262-01-01: leaves room above the last stamp for one more bar before int64 ends.
TIME_NS_MAX: Final = 9_214_646_400 * NS_PER_S

# A list of findings stays readable and small however many holes a series has.
GAPS_SHOWN_MAX: Final = 10_000
_VALUE_CHARS_MAX: Final = 200


class MarketDataError(Exception):
    """Anything that keeps bars from being read or stored; the kinds below say which."""


class DataError(MarketDataError, ValueError):
    """Data breaks a rule: in which file (or request), in which row (1-based line or candle), which rule, what value."""

    def __init__(self, file: str | Path, row: int | None, rule: str, value: object = "") -> None:
        # All four go to the base class, so that the error survives pickling between processes.
        super().__init__(str(file), row, rule, str(value)[:_VALUE_CHARS_MAX])
        self.file = str(file)
        self.row = row
        self.rule = rule
        self.value = str(value)[:_VALUE_CHARS_MAX]

    def __str__(self) -> str:
        where = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{where}: expected {self.rule}" + (f", was {self.value!r}" if self.value else "")


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark about a series: a gap (``missing`` bars from ``start_ns`` up to, not including, ``end_ns``) or damage.

    ``severity`` is "note" for a gap the venue itself has, "warning" for any other gap, "error" for damage.
    """

    rule: str
    severity: str
    start_ns: int
    end_ns: int
    missing: int
    detail: str


def require_valid(
    bars: Bars, file: str | Path, rows: Int64Array | int = 1, step_ns: int | None = None, step: str = ""
) -> None:
    """Raise ``DataError`` for the first broken rule.

    ``rows`` gives the bars' rows in ``file``: int64[n], or the row of the first bar. ``step_ns`` (named ``step``) is
    the grid, where it is not the bars' granularity.
    Rules: product id, dtypes and shapes, stamps from 1970 on, strictly ascending, on the granularity's grid (UTC),
    finite values, prices and volume in range, low <= min(open, close) <= max(open, close) <= high. Gaps are no error.
    """
    require_product_id(bars.product_id, file)
    _require_arrays(bars, file)

    def refuse(broken: np.ndarray, rule: str, *names: str) -> None:
        if broken.any():
            first = int(broken.argmax())
            row = rows + first if isinstance(rows, int) else int(rows[first])
            value = " ".join(f"{name}={getattr(bars, name)[first]}" for name in names)
            raise DataError(file, row, rule, value)

    ts_ns = bars.ts_ns
    refuse((ts_ns < 0) | (ts_ns >= TIME_NS_MAX), "a time from 1970 to 2261", "ts_ns")
    steps = np.diff(ts_ns, prepend=np.int64(-1))
    refuse(steps == 0, "no duplicate time", "ts_ns")
    refuse(steps < 0, "times in ascending order", "ts_ns")
    on_grid = f"times on the {step or bars.granularity} grid (UTC)"
    refuse(ts_ns % (step_ns or bars.granularity.ns) != 0, on_grid, "ts_ns")
    for name in VALUES:
        refuse(~np.isfinite(getattr(bars, name)), f"a finite {name}", name)
    for name in PRICES:
        price = getattr(bars, name)
        refuse(price <= 0, f"a positive {name}", name)
        refuse((price < PRICE_MIN) | (price > PRICE_MAX), f"{name} from {PRICE_MIN} to {PRICE_MAX}", name)
    refuse(bars.volume < 0, "a volume that is not negative", "volume")
    refuse(bars.volume > VOLUME_MAX, f"volume up to {VOLUME_MAX}", "volume")
    refuse(bars.low > np.minimum(bars.open, bars.close), "low <= min(open, close)", *PRICES)
    refuse(bars.high < np.maximum(bars.open, bars.close), "max(open, close) <= high", *PRICES)


def _require_arrays(bars: Bars, file: str | Path) -> None:
    for name in ("ts_ns", *VALUES):
        array = getattr(bars, name)
        wanted = np.dtype(np.int64 if name == "ts_ns" else np.float64)
        if not isinstance(array, np.ndarray) or array.dtype != wanted or array.ndim != 1:
            kind = f"{array.dtype}[{array.ndim}d]" if isinstance(array, np.ndarray) else type(array).__name__
            raise DataError(file, None, f"{name} as a one-dimensional {wanted} array", kind)
        if array.size != bars.ts_ns.size:
            raise DataError(file, None, f"{name} as long as ts_ns ({bars.ts_ns.size})", array.size)


def require_product_id(product_id: str, file: str | Path) -> None:
    """Raise ``DataError`` unless ``product_id`` reads BASE-QUOTE in capitals and digits."""
    if not PRODUCT_ID.fullmatch(product_id):
        raise DataError(file, None, "a product_id as BASE-QUOTE in capitals", product_id)


def find_gaps(
    ts_ns: Int64Array, granularity: Granularity, start_ns: int | None = None, end_ns: int | None = None
) -> list[Finding]:
    """The holes between the stamps (ascending, on the grid), oldest first; with ``start_ns`` and ``end_ns``, also on
    the grid, the holes at both ends of [start_ns, end_ns) too. Beyond 10,000 of them the last finding tells the rest.
    """
    if not ts_ns.size and start_ns is None:
        return []
    start_ns = int(ts_ns[0]) if start_ns is None else start_ns
    end_ns = int(ts_ns[-1]) + granularity.ns if end_ns is None else end_ns
    starts, ends = _hole_edges(ts_ns, granularity.ns, start_ns, end_ns)
    shown = slice(GAPS_SHOWN_MAX)
    gaps = [gap(*hole, granularity) for hole in zip(starts[shown].tolist(), ends[shown].tolist(), strict=True)]
    if starts.size > GAPS_SHOWN_MAX:
        rest = slice(GAPS_SHOWN_MAX, None)
        first_ns, last_ns = int(starts[rest][0]), int(ends[-1])
        missing = int((ends[rest] - starts[rest]).sum()) // granularity.ns
        detail = f"{starts[rest].size} more gaps with {missing} bars missing from {iso(first_ns)} to {iso(last_ns)}"
        gaps.append(Finding("gap", "warning", first_ns, last_ns, missing, detail))
    return gaps


def gap(start_ns: int, end_ns: int, granularity: Granularity) -> Finding:
    """The finding of no bars in [start_ns, end_ns)."""
    missing = (end_ns - start_ns) // granularity.ns
    detail = f"{missing} bars missing from {iso(start_ns)} to {iso(end_ns)}"
    return Finding("gap", "warning", start_ns, end_ns, missing, detail)


def find_holes(ts_ns: Int64Array, step_ns: int, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """The ranges in [start_ns, end_ns) that the stamps in it (ascending, all on the grid) leave open."""
    starts, ends = _hole_edges(ts_ns, step_ns, start_ns, end_ns)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _hole_edges(ts_ns: Int64Array, step_ns: int, start_ns: int, end_ns: int) -> tuple[Int64Array, Int64Array]:
    edges = np.concatenate([[start_ns - step_ns], ts_ns, [end_ns]])
    found = np.flatnonzero(np.diff(edges) > step_ns)
    return edges[found] + step_ns, edges[found + 1]


def data_hash(bars: Bars) -> str:
    """SHA-256 (hex) over product, granularity, length and the arrays' little-endian bytes: equal on every machine."""
    digest = hashlib.sha256(f"{bars.product_id}\0{bars.granularity}\0{len(bars)}\0".encode())
    digest.update(np.ascontiguousarray(bars.ts_ns, dtype="<i8").data)
    for name in VALUES:
        digest.update(np.ascontiguousarray(getattr(bars, name), dtype="<f8").data)
    return digest.hexdigest()


def iso(ts_ns: int) -> str:
    """``ts_ns`` as ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(ts_ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
