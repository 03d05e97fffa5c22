"""Bring bars into the store: from the venue, page by page and resumable, or from a file."""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np

from cluster.bar_checks import VALUES, DataError, Finding, MarketDataError, iso, require_product_id, require_valid
from cluster.market_data import SIMULATED, BarStore, WriteReport, read_file
from cluster.series_files import Range, join_bars
from strategies.model import NS_PER_S, Bars, Granularity

if TYPE_CHECKING:
    from cluster.venue import Venue

BARS_PER_PAGE: Final = 350
# Pages written in one go: a killed run asks for at most this many again.
PAGES_PER_WRITE: Final = 20
# A bar that ended so long ago and was not sent will not come any more; a fresher one may only be late.
SETTLED_S: Final = 300
# Beside the venue's own retries: about a minute of patience a page, then the run ends and can be resumed.
TRIES_PER_PAGE: Final = 6
_BACKOFF_FIRST_S: Final = 1.0
_BACKOFF_MAX_S: Final = 30.0

Progress = Callable[[int, int, str], None]
T = TypeVar("T")


class IngestError(MarketDataError):
    """A wish that cannot be fulfilled: which field, what it was, which rule."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(field, str(value), rule)
        self.field = field
        self.value = str(value)
        self.rule = rule

    def __str__(self) -> str:
        return f"{self.field}: expected {self.rule}, was {self.value!r}"


class IngestStopped(MarketDataError):
    """The venue failed for good in the middle; what was fetched is stored and the same call goes on from there."""

    def __init__(self, done: int, total: int, cause: str) -> None:
        super().__init__(done, total, cause)
        self.done = done
        self.total = total
        self.cause = cause

    def __str__(self) -> str:
        return f"stopped after {self.done} of {self.total} pages, which are stored; run it again to go on: {self.cause}"


def ingest_venue(
    venue: Venue,
    store: BarStore,
    product_id: str,
    granularity: Granularity,
    start_ns: int,
    end_ns: int | None = None,
    progress: Progress | None = None,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> WriteReport:
    """Store the venue's bars with ``start_ns <= ts_ns < end_ns`` (None: up to now); the report counts this run's bars.

    Only what the store lacks is asked for, oldest first: a run that was killed goes on, a repeated one asks nothing.
    What the venue answers to have no bars is remembered as a known gap. The running bar is never stored. ``progress``
    gets pages done, pages in all, and what is being fetched. ``gaps`` of the report are all holes of the range.
    Raises ``IngestError`` (the wish), ``IngestStopped`` (the venue), ``DataError``, ``StoreBusy``, ``StoreError``, and
    the venue's own ``VenueError`` for what waiting cannot mend (an unknown product, a refused key, garbage).
    """
    granularity = Granularity(granularity)
    require_product_id(product_id, "ingest")
    if end_ns is not None and start_ns >= end_ns:
        raise IngestError("end", end_ns, f"a time after the start, {start_ns}")
    now_ns = _patiently(venue.server_time_ns, sleep)
    start_ns, end_ns = _closed_range(granularity, start_ns, end_ns, now_ns)
    batch = _Batch(store, product_id, granularity, SIMULATED if venue.endpoint.simulated else "coinbase")
    wanted = _wanted(store, product_id, granularity, start_ns, end_ns, batch.source)
    settled_ns = (now_ns - SETTLED_S * NS_PER_S) // granularity.ns * granularity.ns
    pages = _pages(wanted, granularity.ns)
    tell = progress or (lambda done, total, description: None)
    tell(0, len(pages), f"{product_id} {granularity}")
    try:
        for done, page in enumerate(pages):
            try:
                bars = _patiently(partial(_page, venue, product_id, granularity, page), sleep)
            except _passing_errors() as error:
                raise IngestStopped(done, len(pages), str(error)) from error
            batch.add(_only(bars, wanted), (page[0], min(page[1], settled_ns)))
            tell(done + 1, len(pages), f"{product_id} {granularity} to {iso(page[1])}")
    finally:
        # Whatever ended the walk, the pages that came are kept.
        batch.write()
    return batch.report(store.gaps(product_id, granularity, start_ns, end_ns))


def ingest_file(
    store: BarStore,
    path: str | Path,
    product_id: str | None = None,
    granularity: Granularity | None = None,
    format: str | None = None,  # noqa: A002 the word a user types
    *,
    replace: bool = False,
    source: str | None = None,
) -> WriteReport:
    """Store all bars of a file, or none: see ``read_file`` for the formats, ``BarStore.write`` for ``replace``.

    ``source`` is "file:<name>" unless told otherwise. Raises ``DataError``, ``StoreBusy``, ``StoreError``.
    """
    bars = read_file(path, product_id, granularity, format)
    return store.write(bars, source=source or f"file:{Path(path).name}", replace=replace)


@dataclass
class _Batch:
    """Pages that wait to be written together, and the counts of those that were."""

    store: BarStore
    product_id: str
    granularity: Granularity
    source: str
    pieces: list[Bars] = field(default_factory=list)
    answered: list[Range] = field(default_factory=list)
    reports: list[WriteReport] = field(default_factory=list)

    def add(self, bars: Bars, answered: Range) -> None:
        self.pieces.append(bars)
        self.answered.append(answered)
        if len(self.pieces) >= PAGES_PER_WRITE:
            self.write()

    def write(self) -> None:
        if not self.pieces:
            return
        bars, answered = join_bars(self.product_id, self.granularity, self.pieces), self.answered
        # Emptied first: a write that is refused is not tried again on the way out.
        self.pieces, self.answered = [], []
        self.reports.append(self.store.write(bars, source=self.source, answered=answered))

    def report(self, gaps: Sequence[Finding]) -> WriteReport:
        fetched, new, updated, unchanged = (
            sum(getattr(report, name) for report in self.reports) for name in ("fetched", "new", "updated", "unchanged")
        )
        return WriteReport(self.product_id, self.granularity, fetched, new, updated, unchanged, tuple(gaps))


def _closed_range(granularity: Granularity, start_ns: int, end_ns: int | None, now_ns: int) -> Range:
    """The range on the granularity's grid, without the running bar; perhaps empty."""
    end_ns = now_ns if end_ns is None else end_ns
    if not 0 <= start_ns <= now_ns:
        raise IngestError("start", start_ns, f"a time from 1970 to the venue's clock, {iso(now_ns)}")
    step_ns = granularity.ns
    return -(-start_ns // step_ns) * step_ns, min(-(-end_ns // step_ns) * step_ns, now_ns // step_ns * step_ns)


def _wanted(
    store: BarStore, product_id: str, granularity: Granularity, start_ns: int, end_ns: int, source: str
) -> list[Range]:
    """What the store lacks in the range, once it is sure that the store may take it from this source."""
    if start_ns >= end_ns:
        return []
    store.require_same_kind(product_id, granularity, source)
    missing = store.missing_ranges(product_id, granularity, start_ns, end_ns)
    info = store.info(product_id, granularity)
    if info is None:
        return missing
    # Where the series is carried on, its last bar is asked for again: a file may have ended with an unfinished one.
    behind_ns = info.last_ns + granularity.ns
    return [(info.last_ns if start == behind_ns else start, end) for start, end in missing]


def _pages(wanted: Sequence[Range], step_ns: int) -> list[Range]:
    """The fewest requests that cover ``wanted``; small holes near each other share one."""
    pages: list[Range] = []
    for start, end in wanted:
        at = start
        while at < end:
            if not pages or at >= pages[-1][0] + BARS_PER_PAGE * step_ns:
                pages.append((at, at))
            first = pages[-1][0]
            at = min(end, first + BARS_PER_PAGE * step_ns)
            pages[-1] = (first, at)
    return pages


def _page(venue: Venue, product_id: str, granularity: Granularity, page: Range) -> Bars:
    bars = venue.candles(product_id, granularity, page[0] // NS_PER_S, page[1] // NS_PER_S)
    request = f"the venue's candles of {product_id} {granularity} from {iso(page[0])} to {iso(page[1])}"
    require_valid(bars, request)
    if (bars.product_id, bars.granularity) != (product_id, granularity):
        raise DataError(request, None, "bars of what was asked for", f"{bars.product_id} {bars.granularity}")
    first, stop = np.searchsorted(bars.ts_ns, page)
    return bars.between(int(first), int(stop))


def _only(bars: Bars, wanted: Sequence[Range]) -> Bars:
    """The bars that lie in ``wanted``: what the store has already is left as it is."""
    starts, ends = (np.array(edges, dtype=np.int64) for edges in zip(*wanted, strict=True))
    inside = np.searchsorted(starts, bars.ts_ns, side="right") - 1
    kept = (inside >= 0) & (bars.ts_ns < ends[inside])
    values = (getattr(bars, name)[kept] for name in VALUES)
    return Bars(bars.product_id, bars.granularity, bars.ts_ns[kept], *values)


def _patiently(call: Callable[[], T], sleep: Callable[[float], None]) -> T:
    """``call``, again after a while where the venue throttles or cannot be reached; raises its last error."""
    for attempt in range(TRIES_PER_PAGE):
        try:
            return call()
        except _passing_errors() as error:
            if attempt == TRIES_PER_PAGE - 1:
                raise
            wait_s = _BACKOFF_FIRST_S * 2**attempt * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
            sleep(min(_BACKOFF_MAX_S, max(wait_s, getattr(error, "retry_after_s", 0.0))))
    raise AssertionError("unreachable")


def _passing_errors() -> tuple[type[Exception], ...]:
    # Here and not above: the venue's SDK is heavy, and reading a file needs none of it.
    from cluster.venue import VenueThrottled, VenueUnavailable

    return VenueThrottled, VenueUnavailable


def main(words: Sequence[str] | None = None) -> int:
    """``python -m jobs.ingest``, which ``desk ingest`` starts; 0, or 2 with one line on stderr."""
    options = _parser().parse_args(words)
    try:
        report = _from_file(options) if options.file else _from_venue(options)
    except _known_errors() as error:
        if options.json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        else:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(dataclasses.asdict(report), default=str))
    else:
        missing = sum(gap.missing for gap in report.gaps)
        print(
            f"{report.product_id} {report.granularity}: {report.fetched} fetched, {report.new} new, "
            f"{report.updated} updated, {report.unchanged} unchanged; {len(report.gaps)} gaps ({missing} bars)"
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="desk ingest", description="Bring bars into the store.")
    parser.add_argument("--product", help="for example BTC-USD; needed with the venue")
    parser.add_argument(
        "--granularity", choices=list(Granularity), help="bar length; from the venue ONE_HOUR if absent"
    )
    parser.add_argument(
        "--start", type=_moment_ns, help="first moment, ISO 8601; from the venue 365 days back if absent"
    )
    parser.add_argument("--end", type=_moment_ns, help="end, exclusive; now if absent")
    parser.add_argument("--file", type=Path, help="a file instead of the venue: Advanced Trade JSON, CSV or Lean zip")
    parser.add_argument("--venue", choices=["simulator", "coinbase"], help="another venue than the configured one")
    parser.add_argument("--replace", action="store_true", help="let a file's bars win over stored ones that differ")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def _moment_ns(text: str) -> int:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a moment such as 2024-05-01 or 2024-05-01T12:00Z") from None
    moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment
    return int(moment.timestamp()) * NS_PER_S


def _from_file(options: argparse.Namespace) -> WriteReport:
    granularity = Granularity(options.granularity) if options.granularity else None
    return ingest_file(_store(), options.file, options.product, granularity, replace=options.replace)


def _from_venue(options: argparse.Namespace) -> WriteReport:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    from cluster.venue import COINBASE_HOST, Venue
    from cluster.venue_endpoint import configured_endpoint
    from conf.settings import load_secrets, load_settings

    if not options.product:
        raise IngestError("product", "", "a product such as BTC-USD (--product)")
    settings = load_settings()
    kind = options.venue or settings.venue.kind
    if kind != settings.venue.kind:
        host_port = COINBASE_HOST if kind == "coinbase" else None
        settings = settings.model_copy(
            update={"venue": settings.venue.model_copy(update={"kind": kind, "host_port": host_port})}
        )
    start_ns = options.start if options.start is not None else time.time_ns() - 365 * 86_400 * NS_PER_S
    granularity = Granularity(options.granularity or Granularity.ONE_HOUR)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ProgressBar(*columns, TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(f"{options.product} {granularity}", total=None)

        def tell(done: int, total: int, description: str) -> None:
            bar.update(task, completed=done, total=total, description=description)

        venue = Venue(configured_endpoint(settings, load_secrets(settings)))
        try:
            return ingest_venue(venue, _store(), options.product, granularity, start_ns, options.end, tell)
        finally:
            venue.close()


def _store() -> BarStore:
    from conf.settings import load_settings

    return BarStore(load_settings().bars_path)


def _known_errors() -> tuple[type[Exception], ...]:
    from cluster.venue import VenueError
    from conf.settings import SettingsError

    return (MarketDataError, VenueError, SettingsError)


if __name__ == "__main__":
    sys.exit(main())
