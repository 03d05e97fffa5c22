"""Reader of Lean's zip archives of crypto trades: one day of minutes or seconds, or all hours or days of a product.

The layout is FORMAT.md of Lean's data: the time is milliseconds since midnight, or ``YYYYMMDD HH:mm``; all in UTC.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Final

import numpy as np

from cluster.bar_checks import VALUES, DataError, require_valid
from cluster.bar_columns import DIGITS, QUOTES, Columns, common_spacing, line_batches
from strategies.model import NS_PER_S, Bars, Granularity

ZIP_BYTES_MAX: Final = 16 * 1024**2
MEMBER_BYTES_MAX: Final = 64 * 1024**2
COMPRESSION_RATIO_MAX: Final = 100

_DAY_MEMBER: Final = re.compile(r"([0-9]{8})_([a-z0-9]+)_([a-z]+)_([a-z]+)\.csv")
_LONG_MEMBER: Final = re.compile(r"([a-z0-9]+)\.csv")
_ARCHIVE: Final = re.compile(r"([a-z0-9]+)_(trade|quote|openinterest)\.zip")
_STEPS_S: Final = {"second": 1, "minute": 60, "hour": 3_600, "daily": 86_400}
_LONG_TIME: Final = re.compile(r"[0-9]{8} [0-9]{2}:[0-9]{2}")
_TRADE_FIELDS: Final = 6
_QUOTE_FIELDS: Final = 11
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS_PER_DAY: Final = 86_400_000
_NS_PER_MS: Final = 1_000_000
# Everything zipfile raises on a damaged archive, found by flipping bits.
_ZIP_ERRORS: Final = (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, struct.error, zlib.error)


@dataclass(frozen=True, slots=True)
class _Name:
    """What an archive's and its member's name say; ``day`` only of minute and second files."""

    lean_symbol: str
    resolution: str
    day: str | None


def read_lean_zip(path: Path, product_id: str | None, granularity: Granularity | None) -> Bars:
    """The bars of one archive, in its own resolution or summed up to a coarser ``granularity``.

    The names of archive, member and folder tell product, day and resolution. Raises ``DataError`` (quotes, ticks,
    seconds without a granularity, a product other than the one given, anything damaged or too large) and ``OSError``.
    """
    if path.stat().st_size > ZIP_BYTES_MAX:
        raise DataError(path, None, f"a zip of at most {ZIP_BYTES_MAX} bytes", path.stat().st_size)
    columns = Columns(path, first_row=1)
    try:
        with zipfile.ZipFile(path) as archive:
            member = _only_member(path, archive)
            name = _read_name(path, member.filename)
            with archive.open(member) as handle:
                _add_lines(columns, handle, name.day)
    except DataError:
        raise
    except _ZIP_ERRORS as error:
        raise DataError(path, None, "a whole zip archive", error) from error
    product_id = _product_id(path, name.lean_symbol, product_id)
    step = name.resolution or common_spacing(columns.ts_ns, path)
    step_ns = _STEPS_S[name.resolution] * NS_PER_S if name.resolution else Granularity(step).ns
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


def _read_name(path: Path, member: str) -> _Name:
    archive = _ARCHIVE.fullmatch(path.name.lower())
    tick_type = archive[2] if archive else "trade"
    if day_member := _DAY_MEMBER.fullmatch(member.lower()):
        day, lean_symbol, resolution, tick_type = day_member.groups()
        expected: str = day
    elif long_member := _LONG_MEMBER.fullmatch(member.lower()):
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
    if resolution and resolution not in _STEPS_S:
        raise DataError(path, None, f"a resolution of {', '.join(_STEPS_S)}", resolution)
    return _Name(lean_symbol, resolution, day)


def _product_id(path: Path, lean_symbol: str, given: str | None) -> str:
    if given is not None:
        if given.replace("-", "").lower() != lean_symbol:
            raise DataError(path, None, f"the product of the file, {lean_symbol}", given)
        return given
    for quote in QUOTES:
        base = lean_symbol.upper().removesuffix(quote)
        if base and base != lean_symbol.upper():
            return f"{base}-{quote}"
    raise DataError(path, None, "a product_id given, as the quote currency is not known", lean_symbol)


def _add_lines(columns: Columns, handle: IO[bytes], day: str | None) -> None:
    midnight_ns = 0 if day is None else _day_ns(columns.path, day)
    for lines in line_batches(columns.path, handle):
        batch = [line.split(",") for line in lines]
        ts_ns = []
        for index, fields in enumerate(batch):
            row = columns.row + index
            if len(fields) == _QUOTE_FIELDS:
                raise DataError(columns.path, row, "trades: bars are made of them, not of quotes", ",".join(fields))
            if len(fields) != _TRADE_FIELDS:
                raise DataError(columns.path, row, "time,open,high,low,close,volume", ",".join(fields))
            if day is None:
                ts_ns.append(_minute_ns(columns.path, row, fields[0]))
            else:
                ts_ns.append(midnight_ns + _offset_ns(columns.path, row, fields[0]))
        columns.add(ts_ns, {name: [fields[at] for fields in batch] for at, name in enumerate(VALUES, start=1)})


def _day_ns(path: Path, day: str) -> int:
    try:
        moment = datetime(int(day[:4]), int(day[4:6]), int(day[6:]), tzinfo=UTC)
    except ValueError as error:
        raise DataError(path, None, "a date YYYYMMDD in the member's name", day) from error
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def _minute_ns(path: Path, row: int, text: str) -> int:
    try:
        # strptime alone would also read fewer digits than these.
        moment = datetime.strptime(text if _LONG_TIME.fullmatch(text) else "", "%Y%m%d %H:%M").replace(tzinfo=UTC)
    except ValueError as error:
        raise DataError(path, row, "a time YYYYMMDD HH:mm", text) from error
    return (moment - _EPOCH) // timedelta(seconds=1) * NS_PER_S


def _offset_ns(path: Path, row: int, text: str) -> int:
    if len(text) > len(str(_MS_PER_DAY)) or not DIGITS.fullmatch(text) or int(text) >= _MS_PER_DAY:
        raise DataError(path, row, f"milliseconds since midnight below {_MS_PER_DAY}", text)
    return int(text) * _NS_PER_MS


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
