"""Readers of files with bars: Advanced Trade JSON, CSV and Lean zip, streamed, bounded and strict.

Whatever is in a file, the outcome is bars that keep every rule of bar_checks.py or a ``DataError`` naming file, row
and rule. The bounds below keep a reader under 512 MB of memory on any input.
"""

from __future__ import annotations

import csv
import re
import stat
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np

from cluster.bar_checks import PRODUCT_ID, TIME_NS_MAX, VALUES, DataError, require_product_id, require_valid
from strategies.model import NS_PER_S, Bars, Granularity, Int64Array

BARS_PER_FILE_MAX: Final = 5_000_000
FILE_BYTES_MAX: Final = 2 * 1024**3
ZIP_BYTES_MAX: Final = 16 * 1024**2
MEMBER_BYTES_MAX: Final = 64 * 1024**2
COMPRESSION_RATIO_MAX: Final = 100
LINE_BYTES_MAX: Final = 64 * 1024

_CHUNK_BYTES: Final = 1024**2
_BATCH_ROWS: Final = 4096
_UTF8_BOM: Final = b"\xef\xbb\xbf"
_NUMBER_CHARACTERS: Final = re.compile(r"[0-9+\-.eE]+")
_DIGITS: Final = re.compile(r"[0-9]+")
# Fewer bars than this may all lie apart by chance; more of them without one neighbour have another granularity.
_BARS_TO_JUDGE_SPACING: Final = 10


class FileFormat(StrEnum):
    """The kinds of files ``read_file`` reads."""

    JSON = "json"
    CSV = "csv"
    LEAN = "lean"


def read_file(
    path: str | Path,
    product_id: str | None = None,
    granularity: Granularity | None = None,
    format: str | None = None,  # noqa: A002 the word a user types
) -> Bars:
    """The bars in a file, oldest first; raises ``DataError`` for anything that is not wholly valid.

    ``format``: by default "lean" for a zip, else by the extension (.json, .csv), else by the first character.
    ``product_id``: needed unless the file's name holds exactly one BASE-QUOTE (``Coinbase-ETH-USD-1d.json``) or a
    Lean zip names it. ``granularity``: by default the most common spacing of the bars, or what the Lean zip names;
    a coarser one sums the bars of a Lean zip up (second bars need that: they have no granularity here).

    * JSON: ``{"candles": [{"start", "low", "high", "open", "close", "volume"}, ...]}``, every value a string,
      ``start`` in UNIX seconds, in any order.
    * CSV: comma, a header with open, high, low, close, volume and one time column (ts_ns, start, timestamp, time or
      date; capitals do not matter, other columns are left out), times ascending or descending. ``ts_ns`` is in
      nanoseconds; the others are ISO 8601 (UTC where no offset is given) or UNIX time, whose unit the first row tells
      by its magnitude: below 1e11 seconds, 1e14 milliseconds, 1e17 microseconds, else nanoseconds.
    * Lean zip: one member as FORMAT.md of Lean's data tells; trades only, of any crypto market, prices unscaled, UTC.
    """
    path = Path(path)
    if product_id is not None:
        require_product_id(product_id, path)
    try:
        kind = _format(path, format)
        if kind is FileFormat.LEAN:
            return _read_lean(path, product_id, granularity)
        product_id = product_id or _product_in_name(path)
        if kind is FileFormat.JSON:
            columns = _read_json(path)
            ts_ns, rows = columns.ts_ns, columns.rows(np.argsort(columns.ts_ns, kind="stable"))
        else:
            columns = _read_csv(path)
            ts_ns = columns.ts_ns
            newest_first = ts_ns.size > 1 and np.count_nonzero(np.diff(ts_ns) < 0) > ts_ns.size // 2
            rows = columns.rows(np.arange(ts_ns.size)[::-1] if newest_first else None)
        if granularity is None:
            granularity = _common_spacing(columns.ts_ns, path)
        bars = columns.bars(product_id, granularity)
        require_valid(bars, path, rows)
        _require_spacing(bars, path)
    except OSError as error:
        raise DataError(path, None, "a readable file", error) from error
    return bars


def aggregate(bars: Bars, granularity: Granularity) -> Bars:
    """``bars`` summed up to a coarser ``granularity``: first open, highest high, lowest low, last close, all volume."""
    slots = bars.ts_ns // granularity.ns
    starts = np.flatnonzero(np.diff(slots, prepend=-1))
    ends = np.append(starts[1:], slots.size) - 1
    return Bars(
        bars.product_id,
        granularity,
        slots[starts] * granularity.ns,
        bars.open[starts],
        np.maximum.reduceat(bars.high, starts),
        np.minimum.reduceat(bars.low, starts),
        bars.close[ends],
        np.add.reduceat(bars.volume, starts),
    )


def _format(path: Path, given: str | None) -> FileFormat:
    """The file's format, once it is a regular file of bearable size."""
    if given is not None and given not in list(FileFormat):
        raise DataError(path, None, f"a format of {', '.join(FileFormat)}", given)
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):
        raise DataError(path, None, "a regular file", stat.filemode(info.st_mode))
    if info.st_size == 0:
        raise DataError(path, None, "a file that is not empty", "0 bytes")
    if info.st_size > FILE_BYTES_MAX:
        raise DataError(path, None, f"at most {FILE_BYTES_MAX} bytes", info.st_size)
    if given is not None:
        return FileFormat(given)
    with path.open("rb") as handle:
        head = handle.read(64)
    if head.startswith(b"PK") or path.suffix.lower() == ".zip":
        return FileFormat.LEAN
    by_extension = path.suffix.lower().lstrip(".")
    if by_extension in list(FileFormat):
        return FileFormat(by_extension)
    return FileFormat.JSON if head.removeprefix(_UTF8_BOM).lstrip()[:1] == b"{" else FileFormat.CSV


def _product_in_name(path: Path) -> str:
    words = re.split(r"[^A-Za-z0-9]+", path.stem)
    found = {f"{base}-{quote}" for base, quote in pairwise(words) if f"{base}-{quote}" in path.stem}
    products = sorted(name for name in found if PRODUCT_ID.fullmatch(name) and name.partition("-")[2] in _QUOTES)
    if len(products) != 1:
        raise DataError(path, None, "a product_id, given or as the one BASE-QUOTE in the file's name", path.name)
    return products[0]


# Quote currencies a file's name is searched for; a product with another one has to be given.
_QUOTES: Final = ("USDT", "USDC", "EURC", "USD", "EUR", "GBP", "BTC", "ETH", "DAI")


class _Columns:
    """Growing columns of one file: times and five values, 48 bytes a bar; parsed in batches, errors by row."""

    def __init__(self, path: Path, first_row: int) -> None:
        self.path = path
        self.first_row = first_row
        self._ts_ns = array("q")
        self._values = {name: array("d") for name in VALUES}

    @property
    def row(self) -> int:
        """The row the next bar comes from."""
        return self.first_row + len(self._ts_ns)

    def add(self, ts_ns: Sequence[int], texts: dict[str, Sequence[str]]) -> None:
        """Append a batch: times in range, and the decimal text of each value by its name."""
        if len(self._ts_ns) + len(ts_ns) > BARS_PER_FILE_MAX:
            raise DataError(self.path, None, f"at most {BARS_PER_FILE_MAX} bars a file (split it)", "more")
        for name in VALUES:
            self._values[name].extend(self._numbers(name, texts[name]))
        self._ts_ns.extend(ts_ns)

    def _numbers(self, name: str, texts: Sequence[str]) -> list[float]:
        # float() would also take "nan", "1_000" and digits of other scripts: look at the characters first.
        if _NUMBER_CHARACTERS.fullmatch("".join(texts)):
            try:
                return [float(text) for text in texts]
            except ValueError:
                pass
        for index, text in enumerate(texts):
            try:
                if _NUMBER_CHARACTERS.fullmatch(text):
                    float(text)
                    continue
            except ValueError:
                pass
            raise DataError(self.path, self.row + index, f"{name} as a decimal number", text)
        return []

    @property
    def ts_ns(self) -> Int64Array:
        """Times in the file's order; raises ``DataError`` where there is not one bar."""
        if not self._ts_ns:
            raise DataError(self.path, None, "at least one bar", "none")
        return np.frombuffer(self._ts_ns, dtype=np.int64)

    def rows(self, order: Int64Array | None) -> Int64Array | int:
        """Put the bars into ``order`` (None: as they are) and return the rows they come from, for ``require_valid``."""
        if order is None or np.array_equal(order, np.arange(order.size)):
            return self.first_row
        self._ts_ns = array("q", self.ts_ns[order].tobytes())
        for name, column in self._values.items():
            self._values[name] = array("d", np.frombuffer(column)[order].tobytes())
        return order + self.first_row

    def bars(self, product_id: str, granularity: Granularity) -> Bars:
        """The columns as bars, without a copy and without a check."""
        return Bars(product_id, granularity, self.ts_ns, *(np.frombuffer(self._values[name]) for name in VALUES))


def _common_spacing(ts_ns: Int64Array, path: Path) -> Granularity:
    if ts_ns.size < 2:
        raise DataError(path, None, "a granularity given, as one bar has no spacing")
    spacings, counts = np.unique(np.diff(ts_ns), return_counts=True)
    spacing_ns = int(spacings[counts.argmax()])
    for granularity in Granularity:
        if granularity.ns == spacing_ns:
            return granularity
    raise DataError(path, None, "bars spaced by a known granularity", f"{spacing_ns / NS_PER_S} s")


def _require_spacing(bars: Bars, path: Path) -> None:
    """Refuse a granularity that is finer than the bars (four-hour bars as an hourly series full of holes)."""
    if len(bars) >= _BARS_TO_JUDGE_SPACING and int(np.diff(bars.ts_ns).min()) > bars.granularity.ns:
        closest_s = int(np.diff(bars.ts_ns).min()) / NS_PER_S
        raise DataError(path, None, f"bars {bars.granularity} apart", f"none closer than {closest_s} s")


# --- Advanced Trade JSON ---


class _Candle(msgspec.Struct, forbid_unknown_fields=True):
    start: str
    low: str
    high: str
    open: str
    close: str
    volume: str


_CANDLE: Final = msgspec.json.Decoder(_Candle)
_CANDLES: Final = msgspec.json.Decoder(list[_Candle])
_JSON_HEAD: Final = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"candles"\s*:\s*\[')
_JSON_TAIL: Final = re.compile(rb"\]\s*\}\s*")
_JSON_SHAPE: Final = '{"candles": [{...}, ...]}'
_START_DIGITS_MAX: Final = 11


def _read_json(path: Path) -> _Columns:
    """Candles are flat objects of numbers in quotes, so the text can be cut behind any closing brace."""
    columns = _Columns(path, first_row=1)
    with path.open("rb") as handle:
        pending = handle.read(_CHUNK_BYTES)
        head = _JSON_HEAD.match(pending)
        if head is None:
            raise DataError(path, None, _JSON_SHAPE, pending[:60])
        pending = pending[head.end() :]
        while (end := pending.find(b"]")) < 0:
            cut = pending.rfind(b"}") + 1
            _add_candles(columns, pending[:cut], last=False)
            pending = pending[cut:]
            if len(pending) > LINE_BYTES_MAX:
                raise DataError(path, columns.row, f"a candle of at most {LINE_BYTES_MAX} bytes", pending[:60])
            chunk = handle.read(_CHUNK_BYTES)
            if not chunk:
                raise DataError(path, columns.row, f"{_JSON_SHAPE} to its end", pending[-60:])
            pending += chunk
        _add_candles(columns, pending[:end], last=True)
        tail = pending[end:] + handle.read(_CHUNK_BYTES)
        if not _JSON_TAIL.fullmatch(tail) or handle.read(1):
            raise DataError(path, None, "nothing behind the candles", tail[:60])
    return columns


def _add_candles(columns: _Columns, text: bytes, *, last: bool) -> None:
    text = text.strip()
    first = columns.row == columns.first_row
    if text and not first:
        if not text.startswith(b","):
            raise DataError(columns.path, columns.row, "a comma between candles", text[:60])
        text = text[1:].strip()
        if not text:
            raise DataError(columns.path, columns.row, "a candle behind the comma", "]")
    if not text:
        return
    try:
        candles = _CANDLES.decode(b"[" + text + b"]")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _broken_candle(columns, text, str(error)) from error
    # All six keys are there and no other, so one more colon is a key given twice (or a value that is no number).
    if text.count(b":") != len(candles) * len(_Candle.__struct_fields__):
        raise _broken_candle(columns, text, "a key given twice")
    for index, candle in enumerate(candles):
        if len(candle.start) > _START_DIGITS_MAX or not _DIGITS.fullmatch(candle.start):
            raise DataError(columns.path, columns.row + index, "start in UNIX seconds", candle.start)
    ts_ns = [int(candle.start) * NS_PER_S for candle in candles]
    _require_times(columns, ts_ns)
    columns.add(ts_ns, {name: [getattr(candle, name) for candle in candles] for name in VALUES})


def _broken_candle(columns: _Columns, text: bytes, reason: str) -> DataError:
    rule = "a candle of six strings: start, low, high, open, close, volume"
    for index, piece in enumerate(text.split(b"}")):
        single = piece.strip().removeprefix(b",").strip()
        try:
            if single and single.count(b":") == len(_Candle.__struct_fields__):
                _CANDLE.decode(single + b"}")
                continue
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return DataError(columns.path, columns.row + index, rule, error)
        if single:
            return DataError(columns.path, columns.row + index, rule, reason)
    return DataError(columns.path, columns.row, rule, reason)


def _require_times(columns: _Columns, ts_ns: Sequence[int]) -> None:
    for index, value in enumerate(ts_ns):
        if not 0 <= value < TIME_NS_MAX:
            raise DataError(columns.path, columns.row + index, "a time from 1970 to 2261", value)


# --- CSV ---

_TIME_COLUMNS: Final = ("ts_ns", "start", "timestamp", "time", "date")
_UNIX_TIME: Final = re.compile(r"([0-9]{1,19})(?:\.0*)?")
# A UNIX time below the bound counts in units of so many nanoseconds.
_UNIX_UNITS_NS: Final = ((10**11, NS_PER_S), (10**14, 10**6), (10**17, 10**3), (10**19, 1))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _read_csv(path: Path) -> _Columns:
    columns = _Columns(path, first_row=2)
    with path.open("rb") as handle:
        records = _records(path, handle)
        header = next(records, [])
        at = _positions(path, header)
        time_name = next(name for name in _TIME_COLUMNS if name in at)
        unit_ns: int | None = None
        while batch := list(islice(records, _BATCH_ROWS)):
            for index, record in enumerate(batch):
                if len(record) != len(header):
                    raise DataError(path, columns.row + index, f"{len(header)} fields as in the header", len(record))
            texts = [record[at[time_name]].strip() for record in batch]
            if unit_ns is None:
                unit_ns = _time_unit_ns(time_name, texts[0])
            ts_ns = [_csv_time(columns, index, text, unit_ns) for index, text in enumerate(texts)]
            _require_times(columns, ts_ns)
            columns.add(ts_ns, {name: [record[at[name]].strip() for record in batch] for name in VALUES})
    return columns


def _records(path: Path, handle: IO[bytes]) -> Iterator[list[str]]:
    """The file's records, one a line; empty lines only at the end."""
    reader = csv.reader(_lines(path, handle), strict=True)
    number = 0
    ended = False
    while True:
        number += 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(path, number, "comma-separated fields", error) from error
        if reader.line_num != number:
            raise DataError(path, number, "a record on one line", "a field over several lines")
        if ended and record:
            raise DataError(path, number - 1, "no empty line between bars", "an empty line")
        ended = not record
        if record:
            yield record


def _lines(path: Path, handle: IO[bytes]) -> Iterator[str]:
    number = 0
    while line := handle.readline(LINE_BYTES_MAX + 1):
        number += 1
        if len(line) > LINE_BYTES_MAX:
            raise DataError(path, number, f"a line of at most {LINE_BYTES_MAX} bytes", line[:60])
        if number == 1:
            line = line.removeprefix(_UTF8_BOM)
        try:
            yield line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(path, number, "text in UTF-8", error) from error


def _positions(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Where the needed columns are: the five values and exactly one time."""
    names = [name.strip().lower() for name in header]
    for name in (*VALUES, *_TIME_COLUMNS):
        if names.count(name) > 1:
            raise DataError(path, 1, f"one column {name}", names.count(name))
    times = [name for name in _TIME_COLUMNS if name in names]
    if len(times) != 1:
        raise DataError(path, 1, f"a header with one time column of {', '.join(_TIME_COLUMNS)}", ",".join(header))
    for name in VALUES:
        if name not in names:
            raise DataError(path, 1, f"a header with a column {name}", ",".join(header))
    return {name: names.index(name) for name in (*VALUES, *times)}


def _time_unit_ns(time_name: str, first: str) -> int:
    """Nanoseconds per unit of the column, judged by its first value; 0 for ISO 8601."""
    if time_name == "ts_ns":
        return 1
    match = _UNIX_TIME.fullmatch(first)
    return 0 if match is None else next(unit for bound, unit in _UNIX_UNITS_NS if int(match[1]) < bound)


def _csv_time(columns: _Columns, index: int, text: str, unit_ns: int) -> int:
    if unit_ns:
        match = _UNIX_TIME.fullmatch(text)
        if match is None:
            raise DataError(columns.path, columns.row + index, "a UNIX time in the unit of the first row", text)
        return int(match[1]) * unit_ns
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        return (moment - _EPOCH) // timedelta(microseconds=1) * 1000
    except (ValueError, OverflowError) as error:
        raise DataError(columns.path, columns.row + index, "a time in ISO 8601", text) from error


# --- Lean zip ---

_LEAN_DAY_MEMBER: Final = re.compile(r"([0-9]{8})_([a-z0-9]+)_([a-z]+)_([a-z]+)\.csv")
_LEAN_LONG_MEMBER: Final = re.compile(r"([a-z0-9]+)\.csv")
_LEAN_ARCHIVE: Final = re.compile(r"([a-z0-9]+)_(trade|quote|openinterest)\.zip")
_LEAN_STEPS_S: Final = {"second": 1, "minute": 60, "hour": 3_600, "daily": 86_400}
_LEAN_FIELDS: Final = 6
_LEAN_QUOTE_FIELDS: Final = 11
_MS_PER_DAY: Final = 86_400_000
_NS_PER_MS: Final = 1_000_000
# Everything zipfile raises on a damaged archive, found by flipping bits.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, struct.error, zlib.error)


class _LeanName(msgspec.Struct, frozen=True):
    """What an archive's and its member's name say; ``day`` only of minute and second files."""

    lean_symbol: str
    resolution: str
    day: str | None


def _read_lean(path: Path, product_id: str | None, granularity: Granularity | None) -> Bars:
    if path.stat().st_size > ZIP_BYTES_MAX:
        raise DataError(path, None, f"a zip of at most {ZIP_BYTES_MAX} bytes", path.stat().st_size)
    columns = _Columns(path, first_row=1)
    try:
        with zipfile.ZipFile(path) as archive:
            member = _only_member(path, archive)
            name = _lean_name(path, member.filename)
            with archive.open(member) as handle:
                _add_lean_lines(columns, handle, name)
    except DataError:
        raise
    except _ZIP_ERRORS as error:
        raise DataError(path, None, "a whole zip archive", error) from error
    product_id = _lean_product(path, name.lean_symbol, product_id)
    step = name.resolution or _common_spacing(columns.ts_ns, path)
    step_ns = _LEAN_STEPS_S[name.resolution] * NS_PER_S if name.resolution else Granularity(step).ns
    target = granularity or next((known for known in Granularity if known.ns == step_ns), None)
    if target is None:
        raise DataError(path, None, f"a granularity to sum {step} bars up to", "none given")
    if target.ns < step_ns or target.ns % step_ns:
        raise DataError(path, None, f"a granularity made of whole {step} bars", target)
    bars = columns.bars(product_id, target)
    require_valid(bars, path, 1, step_ns, step)
    return aggregate(bars, target) if target.ns > step_ns else bars


def _only_member(path: Path, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    members = archive.infolist()
    if len(members) != 1:
        raise DataError(path, None, "a zip of one member", len(members))
    member = members[0]
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(path, None, "a member stored or deflated", f"compression {member.compress_type}")
    if member.file_size > MEMBER_BYTES_MAX:
        raise DataError(path, None, f"a member of at most {MEMBER_BYTES_MAX} bytes", member.file_size)
    if member.file_size > COMPRESSION_RATIO_MAX * max(member.compress_size, 1):
        ratio = f"{member.file_size} from {member.compress_size} bytes"
        raise DataError(path, None, f"compression by at most {COMPRESSION_RATIO_MAX}", ratio)
    return member


def _lean_name(path: Path, member: str) -> _LeanName:
    archive = _LEAN_ARCHIVE.fullmatch(path.name.lower())
    tick_type = archive[2] if archive else "trade"
    if day_member := _LEAN_DAY_MEMBER.fullmatch(member.lower()):
        day, lean_symbol, resolution, tick_type = day_member.groups()
        expected: str = day
    elif long_member := _LEAN_LONG_MEMBER.fullmatch(member.lower()):
        day, lean_symbol = None, long_member[1]
        resolution = path.parent.name.lower() if path.parent.name.lower() in ("hour", "daily") else ""
        expected = lean_symbol
    else:
        rule = "a Lean member (YYYYMMDD_product_resolution_trade.csv or product.csv)"
        raise DataError(path, None, rule, member)
    if tick_type != "trade":
        raise DataError(path, None, "trades: bars are made of them, not of quotes", f"{tick_type} data")
    if archive and archive[1] != expected:
        raise DataError(path, None, f"a member for {archive[1]}, as the archive's name says", member)
    if resolution and resolution not in _LEAN_STEPS_S:
        raise DataError(path, None, f"a resolution of {', '.join(_LEAN_STEPS_S)}", resolution)
    return _LeanName(lean_symbol, resolution, day)


def _lean_product(path: Path, lean_symbol: str, given: str | None) -> str:
    if given is not None:
        if given.replace("-", "").lower() != lean_symbol:
            raise DataError(path, None, f"the product of the file, {lean_symbol}", given)
        return given
    for quote in _QUOTES:
        base = lean_symbol.upper().removesuffix(quote)
        if base and base != lean_symbol.upper():
            return f"{base}-{quote}"
    raise DataError(path, None, "a product_id given, as the quote currency is not known", lean_symbol)


def _add_lean_lines(columns: _Columns, handle: IO[bytes], name: _LeanName) -> None:
    midnight_ns = 0 if name.day is None else _lean_day_ns(columns.path, name.day)
    lines = _lines(columns.path, handle)
    while batch := [line.split(",") for line in islice(lines, _BATCH_ROWS)]:
        ts_ns = []
        for index, fields in enumerate(batch):
            row = columns.row + index
            if len(fields) == _LEAN_QUOTE_FIELDS:
                raise DataError(columns.path, row, "trades: bars are made of them, not of quotes", ",".join(fields))
            if len(fields) != _LEAN_FIELDS:
                raise DataError(columns.path, row, "time,open,high,low,close,volume", ",".join(fields))
            if name.day is None:
                ts_ns.append(_lean_minute_ns(columns.path, row, fields[0]))
            else:
                ts_ns.append(midnight_ns + _lean_offset_ns(columns.path, row, fields[0]))
        _require_times(columns, ts_ns)
        columns.add(ts_ns, {value: [fields[at] for fields in batch] for at, value in enumerate(VALUES, start=1)})


def _lean_day_ns(path: Path, day: str) -> int:
    try:
        moment = datetime(int(day[:4]), int(day[4:6]), int(day[6:]), tzinfo=UTC)
    except ValueError as error:
        raise DataError(path, None, "a date YYYYMMDD in the member's name", day) from error
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def _lean_minute_ns(path: Path, row: int, text: str) -> int:
    try:
        moment = datetime.strptime(text, "%Y%m%d %H:%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(path, row, "a time YYYYMMDD HH:mm", text) from error
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def _lean_offset_ns(path: Path, row: int, text: str) -> int:
    if len(text) > len(str(_MS_PER_DAY)) or not _DIGITS.fullmatch(text) or int(text) >= _MS_PER_DAY:
        raise DataError(path, row, f"milliseconds since midnight below {_MS_PER_DAY}", text)
    return int(text) * _NS_PER_MS
