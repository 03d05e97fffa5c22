"""Longer bars made of stored ones and stored beside them, marked as what they are."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.bar_checks import Finding, MarketDataError
from cluster.market_data import SIMULATED, BarStore
from strategies.model import Granularity
from strategies.resample import ResampleError, require_multiple, resample


class ResampleRefused(MarketDataError):
    """These bars cannot be made: ``field`` names what, ``value`` is what it was, ``rule`` what was expected."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, str(value), rule)
        self.field, self.value, self.rule = field, str(value), rule

    def __str__(self) -> str:
        return f"{self.field}: expected {self.rule}, was {self.value}"


@dataclass(frozen=True, slots=True)
class Resampled:
    """``bars`` stored ones were read and ``made`` longer ones written, of which ``new``, ``updated`` and ``unchanged``.

    ``starts_inside``: the stored bars begin inside the first bar, which is made of less than its length;
    ``unfinished``: they end inside the last one, which was left out. ``gaps`` are holes among the bars made.
    """

    product_id: str
    made_from: Granularity
    granularity: Granularity
    source: str
    bars: int
    made: int
    new: int
    updated: int
    unchanged: int
    first_ns: int
    last_ns: int
    starts_inside: bool
    unfinished: bool
    gaps: tuple[Finding, ...]


def resample_stored(
    store: BarStore,
    product_id: str,
    fine: Granularity,
    coarse: Granularity,
    start_ns: int | None = None,
    end_ns: int | None = None,
    *,
    replace: bool = False,
) -> Resampled:
    """Make bars of ``coarse`` of the stored ones of ``fine`` and store them (strategies/resample.py says how).

    With ``start_ns`` the first one begins there or later: made of less it would stand beside whole ones. Their source
    is "resampled from ONE_MINUTE (coinbase)", that of simulated ones begins with ``SIMULATED``. Raises
    ``ResampleRefused``, and what ``BarStore.read`` and ``write`` raise (``DataError`` where other bars are stored).
    """
    try:
        require_multiple(fine, coarse)
    except ResampleError as error:
        raise ResampleRefused("to", error.value, error.rule) from None
    if fine is coarse:
        raise ResampleRefused("to", coarse, f"coarser than {fine}")
    first_ns = None if start_ns is None else -(-start_ns // coarse.ns) * coarse.ns
    bars = store.read(product_id, fine, first_ns, end_ns)
    made = resample(bars, coarse)
    if not len(made):
        raise ResampleRefused("from", f"{len(bars)} bars", f"{fine} bars that reach the end of a {coarse} bar")
    info = store.info(product_id, fine)
    source = f"resampled from {fine} ({', '.join(info.sources) if info else 'unknown'})"
    if info is not None and info.simulated:
        source = f"{SIMULATED}, {source}"
    report = store.write(made, source=source, replace=replace)
    first, last = int(made.ts_ns[0]), int(made.ts_ns[-1])
    return Resampled(
        product_id,
        fine,
        coarse,
        source,
        len(bars),
        len(made),
        report.new,
        report.updated,
        report.unchanged,
        first,
        last,
        starts_inside=int(bars.ts_ns[0]) != first,
        unfinished=int(bars.ts_ns[-1]) + fine.ns > last + coarse.ns,
        gaps=report.gaps,
    )
