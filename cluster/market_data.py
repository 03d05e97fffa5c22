"""The bar store: Parquet by product and granularity, written atomically, read into contiguous float64 arrays.

Layout: ``<root>/<product_id>/<granularity>/manifest.json`` names the series' parts, ``<period>.<token>.parquet`` (a
calendar year each, a month for bars shorter than an hour). A part is never changed: a write adds new parts and then
replaces the manifest, which is the one moment at which the series changes. A writer killed before that moment leaves
parts that no manifest names; readers never see them and the next write deletes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import numpy as np

from cluster.bar_checks import (
    PRODUCT_ID,
    TIME_NS_MAX,
    VALUES,
    DataError,
    Finding,
    MarketDataError,
    data_hash,
    find_gaps,
    find_holes,
    gap,
    iso,
    require_product_id,
    require_valid,
)
from cluster.bar_files import read_file
from cluster.series_files import (
    MANIFEST,
    OUR_FILES,
    SCHEMA_VERSION,
    PartGone,
    Range,
    Series,
    commit,
    fsync_folder,
    join_bars,
    join_ranges,
    read_manifest,
    read_part,
    write_part,
)
from strategies.model import Bars, Granularity

__all__ = [
    "SIMULATED",
    "BarStore",
    "DataError",
    "Finding",
    "MarketDataError",
    "MissingData",
    "SeriesInfo",
    "StoreBusy",
    "StoreError",
    "WriteReport",
    "data_hash",
    "read_file",
]

# The source of every bar that no market made; screens and reports repeat the word.
SIMULATED: Final = "SIMULATED"

_LOCK_POLL_S: Final = 0.02
# How often a reader starts again when writers replace the series under it.
_READ_ATTEMPTS_MAX: Final = 20

T = TypeVar("T")


class MissingData(MarketDataError, LookupError):
    """The store does not hold the wanted bars; the message says what it holds and how to fetch the rest."""

    def __init__(
        self, product_id: str, granularity: str, start_ns: int | None, end_ns: int | None, available: tuple[str, ...]
    ) -> None:
        super().__init__(product_id, granularity, start_ns, end_ns, available)
        self.product_id = product_id
        self.granularity = granularity
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.available = available

    def __str__(self) -> str:
        start = "the first bar" if self.start_ns is None else iso(self.start_ns)
        end = "the last bar" if self.end_ns is None else iso(self.end_ns)
        there = "; ".join(self.available) or "nothing of this product"
        command = f"desk ingest --product {self.product_id} --granularity {self.granularity}"
        command += "" if self.start_ns is None else f" --start {iso(self.start_ns)}"
        command += "" if self.end_ns is None else f" --end {iso(self.end_ns)}"
        return (
            f"missing {self.granularity} bars of {self.product_id} from {start} to {end}; "
            f"the store has {there}; fetch them with: {command}"
        )


class StoreBusy(MarketDataError):
    """Another process kept a series' lock longer than the bound."""


class StoreError(MarketDataError):
    """The file system refused a write; nothing was changed."""


@dataclass(frozen=True, slots=True)
class SeriesInfo:
    """One stored series. ``problem`` is empty unless its manifest cannot be read (the numbers are 0 then)."""

    product_id: str
    granularity: Granularity
    rows: int
    first_ns: int
    last_ns: int
    sources: tuple[str, ...]
    simulated: bool
    size_bytes: int
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.granularity} from {iso(self.first_ns)} to {iso(self.last_ns + self.granularity.ns)}"


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of the ``fetched`` bars: new, updated or unchanged; ``gaps`` are the holes left among them."""

    product_id: str
    granularity: Granularity
    fetched: int = 0
    new: int = 0
    updated: int = 0
    unchanged: int = 0
    gaps: tuple[Finding, ...] = ()


class BarStore:
    """Bars by product and granularity under ``root``. Any number of processes may read and write at once."""

    data_hash = staticmethod(data_hash)

    def __init__(self, root: Path, lock_timeout_s: float = 30.0) -> None:
        self.root = Path(root)
        self.lock_timeout_s = lock_timeout_s

    def write(
        self, bars: Bars, *, source: str = "unknown", replace: bool = False, answered: Sequence[Range] = ()
    ) -> WriteReport:
        """Merge ``bars`` into their series by time: all of them or, on any error, none.

        An equal bar is no change. A different bar under a stored time replaces it only if it is the series' last one
        (which may have been unfinished) or with ``replace``; else ``DataError``. ``answered`` are [start_ns, end_ns)
        ranges of which the venue gave all it has. Raises ``DataError`` (also for mixing simulated and real bars in a
        series: ``remove`` it first), ``StoreBusy``, ``StoreError``.
        """
        where = f"bars of {bars.product_id} {bars.granularity} from {source}"
        require_valid(bars, where)
        with self._locked(bars.product_id, bars.granularity) as folder:
            series = self._series(bars.product_id, bars.granularity)
            if series is None:
                series = Series(SCHEMA_VERSION, bars.product_id, bars.granularity, is_simulated(source))
            _require_same_kind(folder, series, source)
            try:
                merged, report = _merge(folder, series, bars, source, replace)
                merged = msgspec.structs.replace(merged, answered=join_ranges([*series.answered, *answered]))
                if merged != series:
                    commit(folder, merged)
            except OSError as error:
                raise StoreError(f"{folder}: cannot write: {error}") from error
            finally:
                self._delete_leftovers(folder)
        return report

    def read(
        self, product_id: str, granularity: Granularity, start_ns: int | None = None, end_ns: int | None = None
    ) -> Bars:
        """Bars with ``start_ns <= ts_ns < end_ns`` (None: the series' own end) as contiguous, writable arrays.

        Raises ``MissingData`` where the range reaches beyond what is stored (or known to be empty) or holds no bar,
        ``DataError`` where a stored file is damaged.
        """
        granularity = Granularity(granularity)
        _require_range(self.root, start_ns, end_ns)

        def view(series: Series) -> Bars | None:
            if not series.parts:
                return None
            start = series.parts[0].first_ns if start_ns is None else _up(start_ns, granularity.ns)
            end = series.parts[-1].last_ns + granularity.ns if end_ns is None else _up(end_ns, granularity.ns)
            return self._load(series, start, end) if series.covers(start, end) else None

        bars = self._viewed(product_id, granularity, view)
        if bars is not None and len(bars):
            return bars
        available = tuple(str(info) for info in self.ls() if info.product_id == product_id and not info.problem)
        raise MissingData(product_id, granularity, start_ns, end_ns, available)

    def missing_ranges(self, product_id: str, granularity: Granularity, start_ns: int, end_ns: int) -> list[Range]:
        """The [start, end) ranges inside [start_ns, end_ns), both on the grid, with neither a stored bar nor a venue's
        word that there is none. Raises ``DataError`` where a stored file is damaged."""
        _require_range(self.root, start_ns, end_ns)

        def view(series: Series) -> list[Range]:
            stamps = self._load(series, start_ns, end_ns).ts_ns
            return _subtract(find_holes(stamps, granularity.ns, start_ns, end_ns), series.answered)

        missing = self._viewed(product_id, granularity, view)
        return [(start_ns, end_ns)] if missing is None else missing

    def gaps(self, product_id: str, granularity: Granularity, start_ns: int, end_ns: int) -> list[Finding]:
        """The holes in [start_ns, end_ns), both on the grid: also before the first bar and behind the last."""
        if start_ns >= end_ns:
            return []

        def view(series: Series) -> list[Finding]:
            stamps = self._load(series, start_ns, end_ns).ts_ns
            return _with_the_venues_word(series, find_gaps(stamps, granularity, start_ns, end_ns))

        gaps = self._viewed(product_id, granularity, view)
        return [gap(start_ns, end_ns, granularity)] if gaps is None else gaps

    def info(self, product_id: str, granularity: Granularity) -> SeriesInfo | None:
        """One series as ``ls`` shows it; None where there is no bar."""
        return self._info(product_id, Granularity(granularity))

    def require_same_kind(self, product_id: str, granularity: Granularity, source: str) -> None:
        """Raise ``DataError`` where the series is of simulated bars and ``source`` is not, or the other way round."""
        series = self._series(product_id, granularity)
        if series is not None:
            _require_same_kind(self._folder(product_id, granularity), series, source)

    def ls(self) -> list[SeriesInfo]:
        """Every stored series, by product and granularity; one whose manifest is damaged says so in ``problem``."""
        infos = []
        for path in self.root.glob(f"*/*/{MANIFEST}"):
            product_id, granularity = path.parts[-3:-1]
            if PRODUCT_ID.fullmatch(product_id) and granularity in Granularity.__members__:
                infos.append(self._info(product_id, Granularity(granularity)))
        order = list(Granularity)
        found = [info for info in infos if info is not None]
        return sorted(found, key=lambda info: (info.product_id, order.index(info.granularity)))

    def check(self, product_id: str, granularity: Granularity) -> list[Finding]:
        """Everything to remark about a stored series: damaged files, broken rules, gaps. Raises ``MissingData``."""
        granularity = Granularity(granularity)
        try:
            findings = self._viewed(product_id, granularity, self._findings)
        except DataError as error:
            return [_damage(error, 0, 0)]
        if findings is None:
            raise MissingData(product_id, granularity, None, None, ())
        return findings

    def remove(self, product_id: str, granularity: Granularity) -> bool:
        """Forget a series, its known gaps included; whether there was one."""
        if not self._folder(product_id, granularity).is_dir():
            return False
        with self._locked(product_id, granularity) as folder:
            existed = (folder / MANIFEST).exists()
            try:
                (folder / MANIFEST).unlink(missing_ok=True)
                fsync_folder(folder)
            except OSError as error:
                raise StoreError(f"{folder}: cannot remove: {error}") from error
            self._delete_leftovers(folder)
            # A folder that holds something of somebody else's stays.
            with contextlib.suppress(OSError):
                folder.rmdir()
        return existed

    def _folder(self, product_id: str, granularity: Granularity) -> Path:
        require_product_id(product_id, self.root)
        return self.root / product_id / Granularity(granularity)

    @contextlib.contextmanager
    def _locked(self, product_id: str, granularity: Granularity) -> Iterator[Path]:
        """Hold the series' write lock (a kernel lock: it ends with its process) and yield the folder."""
        folder = self._folder(product_id, granularity)
        lock = folder.with_name(f"{folder.name}.lock")
        deadline = time.monotonic() + self.lock_timeout_s
        with contextlib.ExitStack() as stack:
            try:
                lock.parent.mkdir(parents=True, exist_ok=True)
                handle = stack.enter_context(lock.open("ab"))
                while not _try_lock(handle.fileno()):
                    if time.monotonic() >= deadline:
                        raise StoreBusy(f"{lock}: another writer held it for {self.lock_timeout_s} s")
                    time.sleep(_LOCK_POLL_S)
                # Only now: the holder of the lock may have removed the series and its folder.
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise StoreError(f"{folder}: cannot write: {error}") from error
            yield folder

    def _viewed(self, product_id: str, granularity: Granularity, view: Callable[[Series], T]) -> T | None:
        """``view`` of one state of the series (None: there is no series), however often writers replace it."""
        series = self._series(product_id, granularity)
        for _ in range(_READ_ATTEMPTS_MAX):
            if series is None:
                return None
            try:
                return view(series)
            except PartGone:
                newer = self._series(product_id, granularity)
                if newer == series:
                    raise
                series = newer
        folder = self._folder(product_id, granularity)
        raise StoreBusy(f"{folder}: replaced {_READ_ATTEMPTS_MAX} times while it was read")

    def _findings(self, series: Series) -> list[Finding]:
        folder = self._folder(series.product_id, series.granularity)
        findings: list[Finding] = []
        stamps = [np.empty(0, np.int64)]
        for part in series.parts:
            try:
                bars = read_part(folder, series, part)
                require_valid(bars, folder / part.name)
                stamps.append(bars.ts_ns)
            except DataError as error:
                if isinstance(error, PartGone) and self._series(series.product_id, series.granularity) != series:
                    raise
                findings.append(_damage(error, part.first_ns, part.last_ns + series.granularity.ns))
        return findings + _with_the_venues_word(series, find_gaps(np.concatenate(stamps), series.granularity))

    def _delete_leftovers(self, folder: Path) -> None:
        """Delete our own files that no manifest names; anything else in the folder is not ours to touch.

        What is on the disk decides, not what the caller meant to write: a commit may have happened before its error.
        """
        # A file that stays costs room and nothing else, and the next write tries again.
        with contextlib.suppress(OSError, DataError):
            series = self._series(folder.parent.name, Granularity(folder.name))
            named = {part.name for part in series.parts} if series else set()
            for path in folder.iterdir():
                if path.name not in named and OUR_FILES.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _series(self, product_id: str, granularity: Granularity) -> Series | None:
        return read_manifest(self._folder(product_id, granularity), product_id, granularity)

    def _load(self, series: Series, start_ns: int, end_ns: int) -> Bars:
        """The stored bars in the range, perhaps none."""
        folder = self._folder(series.product_id, series.granularity)
        wanted = [part for part in series.parts if part.first_ns < end_ns and part.last_ns >= start_ns]
        pieces = []
        for part in wanted:
            bars = read_part(folder, series, part)
            start, stop = np.searchsorted(bars.ts_ns, (start_ns, end_ns))
            pieces.append(bars.between(int(start), int(stop)))
        return join_bars(series.product_id, series.granularity, pieces)

    def _info(self, product_id: str, granularity: Granularity) -> SeriesInfo | None:
        try:
            series = self._series(product_id, granularity)
        except DataError as error:
            return SeriesInfo(product_id, granularity, 0, 0, 0, (), False, 0, str(error))
        if series is None or not series.parts:
            return None
        parts = series.parts
        rows, size_bytes = sum(part.rows for part in parts), sum(part.size_bytes for part in parts)
        first_ns, last_ns = parts[0].first_ns, parts[-1].last_ns
        return SeriesInfo(
            product_id, granularity, rows, first_ns, last_ns, series.sources, series.simulated, size_bytes
        )


def _merge(folder: Path, series: Series, bars: Bars, source: str, replace: bool) -> tuple[Series, WriteReport]:
    """Write the parts that change (as new files) and return the manifest naming them."""
    parts = {part.period: part for part in series.parts}
    series_last_ns = series.parts[-1].last_ns if series.parts else -1
    new = updated = 0
    for period, piece in _by_period(bars):
        part = parts.get(period)
        stored = join_bars(bars.product_id, bars.granularity, [] if part is None else [read_part(folder, series, part)])
        same, differs = _compare(stored, piece)
        if not replace:
            _require_no_conflict(folder, stored, piece, differs & (piece.ts_ns != series_last_ns))
        added, changed = int((~same & ~differs).sum()), int(differs.sum())
        if added or changed:
            sources = tuple(dict.fromkeys([*(part.sources if part else ()), source]))
            parts[period] = write_part(folder, period, _overlay(stored, piece), sources)
        new, updated = new + added, updated + changed
    ordered = tuple(parts[period] for period in sorted(parts))
    gaps = tuple(find_gaps(bars.ts_ns, bars.granularity))
    report = WriteReport(bars.product_id, bars.granularity, len(bars), new, updated, len(bars) - new - updated, gaps)
    return msgspec.structs.replace(series, parts=ordered), report


def _by_period(bars: Bars) -> Iterator[tuple[str, Bars]]:
    unit = "Y" if bars.granularity.seconds >= Granularity.ONE_HOUR.seconds else "M"
    periods = bars.ts_ns.astype("datetime64[ns]").astype(f"datetime64[{unit}]")
    cuts = [0, *(np.flatnonzero(periods[1:] != periods[:-1]) + 1), len(bars)]
    for start, stop in itertools.pairwise(cuts):
        if stop > start:
            yield str(periods[start]), bars.between(int(start), int(stop))


def _compare(stored: Bars, piece: Bars) -> tuple[np.ndarray, np.ndarray]:
    """Two masks over ``piece``: bars stored with the same values, bars stored with others."""
    if not len(stored):
        none = np.zeros(len(piece), dtype=bool)
        return none, none
    at = np.minimum(np.searchsorted(stored.ts_ns, piece.ts_ns), len(stored) - 1)
    there = stored.ts_ns[at] == piece.ts_ns
    equal = there.copy()
    for name in VALUES:
        equal &= getattr(stored, name)[at] == getattr(piece, name)
    return equal, there & ~equal


def _require_no_conflict(folder: Path, stored: Bars, piece: Bars, conflicts: np.ndarray) -> None:
    if not conflicts.any():
        return
    index = int(conflicts.argmax())
    at = int(np.searchsorted(stored.ts_ns, piece.ts_ns[index]))
    old, new = ([float(getattr(bars, name)[i]) for name in VALUES] for bars, i in ((stored, at), (piece, index)))
    value = f"{iso(int(piece.ts_ns[index]))}: stored {old}, given {new}"
    raise DataError(folder, index + 1, "the bar that is stored under this time (replace=True overrules)", value)


def _overlay(stored: Bars, piece: Bars) -> Bars:
    """Both series in one, ``piece`` winning where both have a time."""
    kept = ~np.isin(stored.ts_ns, piece.ts_ns, assume_unique=True)
    ts_ns = np.concatenate([stored.ts_ns[kept], piece.ts_ns])
    order = np.argsort(ts_ns, kind="stable")
    values = [np.concatenate([getattr(stored, name)[kept], getattr(piece, name)])[order] for name in VALUES]
    return Bars(piece.product_id, piece.granularity, ts_ns[order], *values)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _require_range(root: Path, start_ns: int | None, end_ns: int | None) -> None:
    for name, value in (("start_ns", start_ns), ("end_ns", end_ns)):
        if value is not None and not 0 <= value < TIME_NS_MAX:
            raise DataError(root, None, f"{name} from 0 to {TIME_NS_MAX}", value)
    if start_ns is not None and end_ns is not None and start_ns >= end_ns:
        raise DataError(root, None, "start_ns before end_ns", f"{start_ns} {end_ns}")


def is_simulated(source: str) -> bool:
    """Whether bars of this source are of no market: ``SIMULATED``, alone or before what was done with them."""
    return source.partition(",")[0] == SIMULATED


def _up(ts_ns: int, step_ns: int) -> int:
    return -(-ts_ns // step_ns) * step_ns


def _damage(error: DataError, start_ns: int, end_ns: int) -> Finding:
    return Finding("damage", "error", start_ns, end_ns, 0, str(error))


def _require_same_kind(folder: Path, series: Series, source: str) -> None:
    if series.simulated != is_simulated(source):
        kind = f"a {'simulated' if series.simulated else 'real'} source, or the series removed first"
        raise DataError(folder, None, kind, source)


def _with_the_venues_word(series: Series, gaps: Sequence[Finding]) -> list[Finding]:
    """``gaps``, those marked that the venue itself has."""
    return [
        gap
        if _subtract([(gap.start_ns, gap.end_ns)], series.answered)
        else dataclasses.replace(gap, severity="note", detail=f"{gap.detail}; the venue has none")
        for gap in gaps
    ]


def _subtract(ranges: Sequence[Range], known: Sequence[Range]) -> list[Range]:
    """``ranges`` without ``known``; both ascending and disjoint."""
    left: list[Range] = []
    first = 0
    for start, end in ranges:
        while first < len(known) and known[first][1] <= start:
            first += 1
        at = first
        while at < len(known) and known[at][0] < end:
            if start < known[at][0]:
                left.append((start, known[at][0]))
            start = max(start, known[at][1])
            at += 1
        if start < end:
            left.append((start, end))
    return left
