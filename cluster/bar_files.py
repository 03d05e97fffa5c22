"""Readers of files with bars: Advanced Trade JSON, CSV and Lean zip, streamed, bounded and strict.

Whatever is in a file, the outcome is bars that keep every rule of bar_checks.py or a ``DataError`` naming file, row
and rule. The bounds below keep a reader under 512 MB of memory on any input.
"""

from __future__ import annotations

import csv
import re
import stat
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cluster.bar_checks import PRODUCT_ID, VALUES, DataError, require_product_id, require_valid
from cluster.bar_columns import (
    CHUNK_BYTES,
    DIGITS,
    LINE_BYTES_MAX,
    QUOTES,
    UTF8_BOM,
    Columns,
    common_spacing,
    line_batches,
)
from cluster.lean_zip import read_lean_zip
from strategies.model import NS_PER_S, Bars, Granularity

FILE_BYTES_MAX: Final = 2 * 1024**3

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
            return read_lean_zip(path, product_id, granularity)
        product_id = product_id or _product_in_name(path)
        columns = _read_json(path) if kind is FileFormat.JSON else _read_csv(path)
        rows = columns.sort(any_order=kind is FileFormat.JSON)
        bars = columns.bars(product_id, granularity or common_spacing(columns.ts_ns, path))
        require_valid(bars, path, rows)
        _require_spacing(bars, path)
    except OSError as error:
        raise DataError(path, None, "a readable file", error) from error
    return bars


def _format(path: Path, given: str | None) -> FileFormat:
    """The file's format, once it is a regular file of bearable size."""
    if given is not None and given not in list(FileFormat):
        raise DataError(path, None, f"a format of {', '.join(FileFormat)}", given)
    try:
        info = path.stat()
    except ValueError as error:
        raise DataError(path, None, "a path without a zero byte", error) from error
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
    return FileFormat.JSON if head.removeprefix(UTF8_BOM).lstrip()[:1] == b"{" else FileFormat.CSV


def _product_in_name(path: Path) -> str:
    words = re.split(r"[^A-Za-z0-9]+", path.stem)
    found = {f"{base}-{quote}" for base, quote in pairwise(words) if f"{base}-{quote}" in path.stem}
    products = sorted(name for name in found if PRODUCT_ID.fullmatch(name) and name.partition("-")[2] in QUOTES)
    if len(products) != 1:
        raise DataError(path, None, "a product_id, given or as the one BASE-QUOTE in the file's name", path.name)
    return products[0]


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


def _read_json(path: Path) -> Columns:
    """Candles are flat objects of numbers in quotes, so the text can be cut behind any closing brace."""
    columns = Columns(path, first_row=1)
    with path.open("rb") as handle:
        pending = handle.read(CHUNK_BYTES)
        head = _JSON_HEAD.match(pending)
        if head is None:
            raise DataError(path, None, _JSON_SHAPE, pending[:60])
        pending = pending[head.end() :]
        while (end := pending.find(b"]")) < 0:
            cut = pending.rfind(b"}") + 1
            _add_candles(columns, pending[:cut])
            pending = pending[cut:]
            if len(pending) > LINE_BYTES_MAX:
                raise DataError(path, columns.row, f"a candle of at most {LINE_BYTES_MAX} bytes", pending[:60])
            chunk = handle.read(CHUNK_BYTES)
            if not chunk:
                raise DataError(path, columns.row, f"{_JSON_SHAPE} to its end", pending[-60:])
            pending += chunk
        _add_candles(columns, pending[:end])
        tail = pending[end:] + handle.read(CHUNK_BYTES)
        if not _JSON_TAIL.fullmatch(tail) or handle.read(1):
            raise DataError(path, None, "nothing behind the candles", tail[:60])
    return columns


def _add_candles(columns: Columns, text: bytes) -> None:
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
        if len(candle.start) > _START_DIGITS_MAX or not DIGITS.fullmatch(candle.start):
            raise DataError(columns.path, columns.row + index, "start in UNIX seconds", candle.start)
    ts_ns = [int(candle.start) * NS_PER_S for candle in candles]
    columns.add(ts_ns, {name: [getattr(candle, name) for candle in candles] for name in VALUES})


def _broken_candle(columns: Columns, text: bytes, reason: str) -> DataError:
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


# --- CSV ---

_TIME_COLUMNS: Final = ("ts_ns", "start", "timestamp", "time", "date")
_UNIX_TIME: Final = re.compile(r"([0-9]{1,19})(?:\.0*)?")
_UNIX_DIGITS_MAX: Final = 19
# A UNIX time below the bound counts in units of so many nanoseconds.
_UNIX_UNITS_NS: Final = ((10**11, NS_PER_S), (10**14, 10**6), (10**17, 10**3), (10**19, 1))
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _read_csv(path: Path) -> Columns:
    columns = Columns(path, first_row=2)
    header: list[str] = []
    at: dict[str, int] = {}
    read_times: Callable[[Columns, Sequence[str]], list[int]] | None = None
    with path.open("rb") as handle:
        for lines in line_batches(path, handle):
            if not header:
                header = _fields(path, 1, lines.pop(0))
                at = _positions(path, header)
            if not lines:
                continue
            fields = _columns(columns, lines, len(header))
            texts = fields[next(at[name] for name in _TIME_COLUMNS if name in at)]
            if read_times is None:
                read_times = _time_reader("ts_ns" in at, texts[0])
            columns.add(read_times(columns, texts), {name: fields[at[name]] for name in VALUES})
    if not header:
        raise DataError(path, 1, "a header", "an empty line")
    return columns


def _columns(columns: Columns, lines: Sequence[str], width: int) -> list[Sequence[str]]:
    """The lines' fields, column by column."""
    records = [
        line.split(",") if '"' not in line and ", " not in line else _fields(columns.path, columns.row + index, line)
        for index, line in enumerate(lines)
    ]
    if set(map(len, records)) != {width}:
        index = next(index for index, record in enumerate(records) if len(record) != width)
        raise DataError(columns.path, columns.row + index, f"{width} fields as in the header", len(records[index]))
    return list(zip(*records, strict=True))


def _fields(path: Path, number: int, line: str) -> list[str]:
    """One line's fields, perhaps quoted; a quoted field ends on its line."""
    try:
        return next(csv.reader([line], strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise DataError(path, number, "comma-separated fields", error) from error


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


def _time_reader(nanoseconds: bool, first: str) -> Callable[[Columns, Sequence[str]], list[int]]:
    """The function that reads the time column, in the unit that its name or its first value tells."""
    match = _UNIX_TIME.fullmatch(first)
    if match is None and not nanoseconds:
        return _iso_times
    unit_ns = 1 if nanoseconds or match is None else next(ns for bound, ns in _UNIX_UNITS_NS if int(match[1]) < bound)
    return partial(_unix_times, unit_ns=unit_ns)


def _unix_times(columns: Columns, texts: Sequence[str], unit_ns: int) -> list[int]:
    if DIGITS.fullmatch("".join(texts)) and min(map(len, texts)) > 0 and max(map(len, texts)) <= _UNIX_DIGITS_MAX:
        return [int(text) * unit_ns for text in texts]
    times = []
    for index, text in enumerate(texts):
        match = _UNIX_TIME.fullmatch(text)
        if match is None:
            raise DataError(columns.path, columns.row + index, "a UNIX time in the unit of the first row", text)
        times.append(int(match[1]) * unit_ns)
    return times


def _iso_times(columns: Columns, texts: Sequence[str]) -> list[int]:
    times = []
    for index, text in enumerate(texts):
        try:
            moment = datetime.fromisoformat(text)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
            times.append((moment - _EPOCH) // timedelta(microseconds=1) * 1000)
        except (ValueError, OverflowError) as error:
            raise DataError(columns.path, columns.row + index, "a time in ISO 8601", text) from error
    return times
