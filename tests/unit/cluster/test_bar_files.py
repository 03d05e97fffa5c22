"""The readers of bar files: what they accept, and that everything else is a DataError with file, row and rule."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import bar_columns
from cluster.bar_checks import DataError, find_gaps
from cluster.bar_files import read_file
from cluster.lean_zip import aggregate
from strategies.model import NS_PER_S, Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, REAL_DATA, make_bars, needs_real_data, pick, same

REPOSITORY = Path(__file__).resolve().parents[3]
HOUR = Granularity.ONE_HOUR
BARS = make_bars(24)
VALUES = ("open", "high", "low", "close", "volume")


def candles(bars: Bars) -> list[dict[str, str]]:
    """The bars in the shape of Advanced Trade."""
    names = ("low", "high", "open", "close", "volume")
    return [
        {"start": str(bars.ts_ns[row] // NS_PER_S), **{name: repr(float(getattr(bars, name)[row])) for name in names}}
        for row in range(len(bars))
    ]


def json_text(bars: Bars = BARS, indent: int | None = None) -> str:
    return json.dumps({"candles": candles(bars)}, indent=indent)


def csv_rows(bars: Bars = BARS, time: Callable[[int], str] = str) -> list[str]:
    values = [
        [time(int(bars.ts_ns[row])), *(repr(float(getattr(bars, name)[row])) for name in VALUES)]
        for row in range(len(bars))
    ]
    return [",".join(row) for row in values]


def csv_text(
    bars: Bars = BARS, header: str = "ts_ns,open,high,low,close,volume", time: Callable[[int], str] = str
) -> str:
    return "\n".join([header, *csv_rows(bars, time)]) + "\n"


def lean_zip(path: Path, text: str, member: str = "20240101_btcusd_minute_trade.csv", **kinds: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression=kinds.get("compression", zipfile.ZIP_DEFLATED)) as archive:
        archive.writestr(member, text)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(path: Path, **named: Any) -> DataError:
    with pytest.raises(DataError) as caught:
        read_file(path, **named)
    assert caught.value.file == str(path)
    return caught.value


# --- Advanced Trade JSON ---


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("order", ["oldest first", "newest first", "shuffled"])
def test_json_is_read_in_any_order_and_layout(tmp_path: Path, indent: int | None, order: str) -> None:
    positions = {
        "oldest first": np.arange(24),
        "newest first": np.arange(24)[::-1],
        "shuffled": np.random.default_rng(3).permutation(24),
    }[order]
    path = written(tmp_path / "BTC-USD.json", json_text(pick(BARS, positions), indent))
    assert same(read_file(path), BARS)


def test_json_longer_than_a_chunk_is_read_whole(tmp_path: Path) -> None:
    bars = make_bars(30_000)
    path = written(tmp_path / "BTC-USD.json", json_text(bars, indent=2))
    assert path.stat().st_size > 4 * 1024**2
    assert same(read_file(path), bars)


@pytest.mark.parametrize("size", [20, 21, 33, 64, 101, 1_000])
def test_json_is_the_same_wherever_the_chunks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    # The first chunk holds the head, which is longer than 16 bytes.
    monkeypatch.setattr("cluster.bar_files.CHUNK_BYTES", size)
    path = written(tmp_path / "BTC-USD.json", json_text(indent=1))
    assert same(read_file(path), BARS)


ZERO = '{"start": "0", "low": "1", "high": "4", "open": "2", "close": "3", "volume": "5"}'
ONE = ZERO.replace('"0"', '"3600"')
SIX = "a candle of six strings"


def doc(*parts: str, end: str = "]}") -> str:
    return '{"candles": [' + ", ".join(parts) + end


def zero(old: str, new: str) -> str:
    return ZERO.replace(f'"{old}"', new)


BROKEN_JSON: list[tuple[str, str | bytes, int | None, str]] = [
    # name, content, row, part of the rule
    ("empty", "", None, "not empty"),
    ("blank", "   \n ", None, '{"candles"'),
    ("null", "null", None, '{"candles"'),
    ("list", f"[{ZERO}]", None, '{"candles"'),
    ("other key", doc(ZERO).replace("candles", "bars"), None, '{"candles"'),
    ("key before", doc(ZERO).replace("{", '{"a": 1, ', 1), None, '{"candles"'),
    ("key behind", doc(ZERO, end='], "a": 1}'), None, "nothing behind"),
    ("second document", doc(ZERO) + "{}", None, "nothing behind"),
    ("not a list", '{"candles": {}}', None, '{"candles"'),
    ("no candle", doc(), None, "at least one bar"),
    ("cut in a candle", doc(ZERO, ONE[:40], end=""), 2, "to its end"),
    ("cut behind a candle", doc(ZERO, ONE, end=""), 3, "to its end"),
    ("cut behind the list", doc(ZERO, end="]"), None, "nothing behind"),
    ("comma at the end", doc(ZERO, end=",]}"), 1, SIX),
    ("no comma", doc(ZERO + ONE), 1, SIX),
    ("two commas", doc(ZERO, "", ONE), 2, SIX),
    ("comma first", doc("", ZERO), 1, SIX),
    ("number for a string", doc(ONE, zero("2", "2")), 2, SIX),
    ("null for a string", doc(zero("2", "null")), 1, SIX),
    ("missing key", doc(ONE, ZERO.replace(', "volume": "5"', "")), 2, SIX),
    ("unknown key", doc(zero("5", '"5", "x": "1"')), 1, SIX),
    ("key twice", doc(ONE, zero("5", '"5", "open": "2"')), 2, SIX),
    ("nested lists", doc("[" * 50_000, end=""), 1, "to its end"),
    ("nested and closed", doc("[" * 50_000 + "]" * 50_000), 1, SIX),
    ("nested objects", doc('{"open":' * 5_000, end="}"), 1, SIX),
    ("endless candle", doc('{"open": "' + "1" * 200_000, end=""), 1, "at most"),
    ("nan", doc(ONE, zero("4", '"nan"')), 2, "high as a decimal number"),
    ("infinity", doc(zero("5", '"Infinity"')), 1, "volume as a decimal number"),
    ("1e400", doc(ONE, zero("4", '"1e400"')), 2, "a finite high"),
    ("1e-400", doc(ONE, zero("1", '"1e-400"')), 2, "a positive low"),
    ("underscore", doc(zero("5", '"5_0"')), 1, "volume as a decimal number"),
    ("space", doc(zero("5", '" 5"')), 1, "volume as a decimal number"),
    ("empty number", doc(zero("5", '""')), 1, "volume as a decimal number"),
    ("arabic digits", doc(zero("5", '"٥"')), 1, "volume as a decimal number"),
    ("two points", doc(zero("5", '"5.0.0"')), 1, "volume as a decimal number"),
    ("start a fraction", doc(zero("0", '"0.5"')), 1, "UNIX seconds"),
    ("start negative", doc(zero("0", '"-60"')), 1, "UNIX seconds"),
    ("start empty", doc(zero("0", '""')), 1, "UNIX seconds"),
    ("start beyond int64", doc(zero("0", '"99999999999"')), 1, "1970 to 2261"),
    ("start endless", doc(zero("0", '"' + "9" * 9_999 + '"')), 1, "UNIX seconds"),
    ("same time twice", doc(ONE, ZERO, ONE), 3, "no duplicate time"),
    ("off the grid", doc(ZERO, ONE, zero("0", '"7201"')), 3, "ONE_HOUR grid"),
    ("low above high", doc(ONE, zero("1", '"9"')), 2, "low <= min"),
    ("latin-1", doc(zero("5", '"5", "é": "1"')).encode("latin-1"), 1, SIX),
    ("utf-16", json_text().encode("utf-16"), None, '{"candles"'),
    ("zeros", b"\0" * 4_096, None, '{"candles"'),
]


@pytest.mark.parametrize(("name", "content", "row", "rule"), BROKEN_JSON, ids=[case[0] for case in BROKEN_JSON])
def test_broken_json_is_refused(tmp_path: Path, name: str, content: str | bytes, row: int | None, rule: str) -> None:
    error = refused(written(tmp_path / "BTC-USD.json", content), granularity=HOUR)
    assert rule in error.rule
    assert error.row == row


# --- CSV ---


def iso_z(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns // NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_local(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns // NS_PER_S + 7_200, UTC).strftime("%Y-%m-%d %H:%M:%S+02:00")


TIMES: list[tuple[str, str, Callable[[int], str]]] = [
    ("nanoseconds by name", "ts_ns", str),
    ("seconds", "start", lambda ts_ns: str(ts_ns // NS_PER_S)),
    ("seconds as floats", "timestamp", lambda ts_ns: f"{ts_ns // NS_PER_S}.0"),
    ("milliseconds", "timestamp", lambda ts_ns: str(ts_ns // 10**6)),
    ("microseconds", "time", lambda ts_ns: str(ts_ns // 10**3)),
    ("nanoseconds", "time", str),
    ("ISO 8601", "date", iso_z),
    ("ISO 8601 without offset", "date", lambda ts_ns: iso_z(ts_ns)[:-1]),
    ("ISO 8601 with a space", "time", lambda ts_ns: iso_z(ts_ns)[:-1].replace("T", " ")),
    ("ISO 8601 with an offset", "time", iso_local),
]


@pytest.mark.parametrize(("column", "time"), [case[1:] for case in TIMES], ids=[case[0] for case in TIMES])
@pytest.mark.parametrize("newest_first", [False, True])
def test_csv_times_are_understood(tmp_path: Path, column: str, time: Callable[[int], str], newest_first: bool) -> None:
    bars = pick(BARS, slice(None, None, -1)) if newest_first else BARS
    text = csv_text(bars, f"{column},open,high,low,close,volume", time)
    assert same(read_file(written(tmp_path / "BTC-USD.csv", text)), BARS)


def test_csv_of_days_has_plain_dates(tmp_path: Path) -> None:
    days = make_bars(10, granularity=Granularity.ONE_DAY)
    text = csv_text(days, "Date,Open,High,Low,Close,Volume", lambda ts_ns: iso_z(ts_ns)[:10])
    assert same(read_file(written(tmp_path / "BTC-USD.csv", text)), days)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n\n",
        lambda text: text.replace(",", ", "),
        lambda text: text.replace("ts_ns,open", '"ts_ns","Open"'),
        lambda text: "\n".join(line + ",x" for line in text.splitlines()),
    ],
    ids=["byte order mark", "CRLF", "no last newline", "empty lines at the end", "spaces", "quotes", "more columns"],
)
def test_csv_variants_mean_the_same(tmp_path: Path, change: Callable[[str], str]) -> None:
    assert same(read_file(written(tmp_path / "BTC-USD.csv", change(csv_text()))), BARS)


def test_csv_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    rows = [row.split(",") for row in csv_text().splitlines()]
    text = "\n".join(",".join(row[at] for at in (5, 3, 0, 4, 2, 1)) for row in rows)
    assert same(read_file(written(tmp_path / "BTC-USD.csv", text)), BARS)


HEADER = "start,open,high,low,close,volume"
ROW_0, ROW_1, ROW_2 = "0,2,4,1,3,5", "3600,2,4,1,3,5", "7200,2,4,1,3,5"

BROKEN_CSV: list[tuple[str, str | bytes, int | None, str]] = [
    ("empty", "", None, "not empty"),
    ("one newline", "\n", 1, "a header"),
    ("header only", HEADER, None, "at least one bar"),
    ("no header", f"{ROW_0}\n{ROW_1}", 1, "time column"),
    ("no time column", "when,open,high,low,close,volume\n", 1, "time column"),
    ("two time columns", f"date,{HEADER}\n1970-01-01,{ROW_0}", 1, "one time column"),
    ("column twice", f"{HEADER},open\n{ROW_0},2", 1, "one column open"),
    ("no volume", "start,open,high,low,close\n0,2,4,1,3", 1, "column volume"),
    ("header again", f"{HEADER}\n{ROW_0}\n{HEADER}\n{ROW_1}", 3, "UNIX time"),
    ("semicolons", f"{HEADER}\n{ROW_0}".replace(",", ";"), 1, "time column"),
    ("too few fields", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3", 3, "6 fields"),
    ("too many fields", f"{HEADER}\n{ROW_0},9", 2, "6 fields"),
    ("empty line between", f"{HEADER}\n{ROW_0}\n\n{ROW_1}", 3, "no empty line"),
    ("empty line first", f"\n{HEADER}\n{ROW_0}", 1, "no empty line"),
    ("quote left open", f'{HEADER}\n{ROW_0}\n"3600,2,4,1,3,5\n{ROW_2}', 3, "comma-separated"),
    ("field over two lines", f'{HEADER}\n{ROW_0}\n"3600\n",2,4,1,3,5', 3, "comma-separated"),
    ("text behind a quote", f'{HEADER}\n"0"x,2,4,1,3,5', 2, "comma-separated"),
    ("nan", f"{HEADER}\n{ROW_0}\n3600,nan,4,1,3,5", 3, "open as a decimal number"),
    ("inf", f"{HEADER}\n{ROW_0}\n3600,2,inf,1,3,5", 3, "high as a decimal number"),
    ("1e400", f"{HEADER}\n{ROW_0}\n3600,2,1e400,1,3,5", 3, "a finite high"),
    ("empty field", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3,", 3, "volume as a decimal number"),
    ("hexadecimal", f"{HEADER}\n0x0,2,4,1,3,5", 2, "ISO 8601"),
    ("underscore", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3,5_0", 3, "volume as a decimal number"),
    ("two signs", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3,+-5", 3, "volume as a decimal number"),
    ("negative volume", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3,-5", 3, "volume that is not negative"),
    ("zero price", f"{HEADER}\n{ROW_0}\n3600,2,4,0,3,5", 3, "positive low"),
    ("high too low", f"{HEADER}\n{ROW_0}\n3600,2,2.5,1,3,5", 3, "<= high"),
    ("same time twice", f"{HEADER}\n{ROW_0}\n{ROW_1}\n{ROW_1}", 4, "no duplicate time"),
    ("out of order", f"{HEADER}\n{ROW_0}\n{ROW_2}\n{ROW_1}\n10800,2,4,1,3,5", 4, "ascending"),
    ("one out of order, newest first", f"{HEADER}\n{ROW_2}\n{ROW_0}\n{ROW_1}\n-60,2,4,1,3,5", 5, "UNIX time"),
    ("two units", f"{HEADER}\n{ROW_0}\n{ROW_1}\n7200000000000,2,4,1,3,5", 4, "1970 to 2261"),
    ("unit of the first row", f"{HEADER}\n1704067200000,2,4,1,3,5\n1704070800,2,4,1,3,5", 3, "grid"),
    ("another kind of time", f"{HEADER}\n{ROW_0}\n1970-01-01T01:00:00,2,4,1,3,5", 3, "UNIX time"),
    ("time beyond int64", f"{HEADER}\n{'9' * 19},2,4,1,3,5", 2, "1970 to 2261"),
    ("time endless", f"{HEADER}\n{'9' * 9_999},2,4,1,3,5", 2, "ISO 8601"),
    ("year 9999", f"date,{HEADER[6:]}\n9999-12-31T23:59:59-23:59,2,4,1,3,5", 2, "1970 to 2261"),
    ("month 13", f"date,{HEADER[6:]}\n2024-13-01,2,4,1,3,5", 2, "ISO 8601"),
    ("before 1970", f"date,{HEADER[6:]}\n1969-12-31,2,4,1,3,5", 2, "1970 to 2261"),
    ("a date without dashes", f"date,{HEADER[6:]}\n20240101,2,4,1,3,5\n20240102,2,4,1,3,5", 2, "grid"),
    ("off the grid", f"{HEADER}\n{ROW_0}\n3601,2,4,1,3,5", 3, "ONE_HOUR grid"),
    ("latin-1", f"{HEADER}\n{ROW_0}\n3600,2,4,1,3,5 é".encode("latin-1"), 3, "UTF-8"),
    ("utf-16", csv_text().encode("utf-16"), 1, "UTF-8"),
    ("utf-16 without mark", csv_text().encode("utf-16-le"), 1, "time column"),
    ("zeros", b"\0" * 9_000, 1, "time column"),
    ("a zero byte", f"{HEADER}\n{ROW_0}\n3600,2,4,1,\x003,5", 3, "close as a decimal number"),
    ("endless line", f"{HEADER}\n" + "1" * 100_000, 2, "a line of at most"),
    ("endless header", "a," * 100_000, 1, "a line of at most"),
    ("old Mac newlines", "\r".join([HEADER, ROW_0, ROW_1]), None, ""),
]


@pytest.mark.parametrize(("name", "content", "row", "rule"), BROKEN_CSV, ids=[case[0] for case in BROKEN_CSV])
def test_broken_csv_is_refused(tmp_path: Path, name: str, content: str | bytes, row: int | None, rule: str) -> None:
    error = refused(written(tmp_path / "BTC-USD.csv", content), granularity=HOUR)
    assert rule in error.rule
    if rule:
        assert error.row == row


# --- Lean zip ---

LEAN = "0,2,4,1,3,5\n60000,3,5,2,4,6\n180000,4,6,3,5,7\n"
LEAN_DAYS = "20240101 00:00,2,4,1,3,5\n20240102 00:00,3,5,2,4,6\n20240104 00:00,4,6,3,5,7\n"


def test_lean_minutes_are_read_with_product_and_day_from_the_names(tmp_path: Path) -> None:
    bars = read_file(lean_zip(tmp_path / "20240101_trade.zip", LEAN))
    assert (bars.product_id, bars.granularity) == ("BTC-USD", Granularity.ONE_MINUTE)
    assert ((bars.ts_ns - NEW_YEAR_NS) // NS_PER_S).tolist() == [0, 60, 180]
    assert bars.open.tolist() == [2, 3, 4]
    assert bars.volume.tolist() == [5, 6, 7]


@pytest.mark.parametrize("resolution", ["daily", "hour", "elsewhere"])
def test_lean_hours_and_days_are_read(tmp_path: Path, resolution: str) -> None:
    bars = read_file(lean_zip(tmp_path / resolution / "ethusdc_trade.zip", LEAN_DAYS, "ethusdc.csv"))
    wanted = HOUR if resolution == "hour" else Granularity.ONE_DAY
    assert (bars.product_id, bars.granularity) == ("ETH-USDC", wanted)
    assert ((bars.ts_ns - NEW_YEAR_NS) // Granularity.ONE_DAY.ns).tolist() == [0, 1, 3]


@pytest.mark.parametrize("member", ["20240101_btcusd_minute_trade.csv", "20240101_btcusd_second_trade.csv"])
def test_finer_lean_bars_are_summed_up_on_request(tmp_path: Path, member: str) -> None:
    bars = read_file(
        lean_zip(tmp_path / "20240101_trade.zip", LEAN + "300000,9,9,8,8,1\n", member),
        granularity=Granularity.FIVE_MINUTE,
    )
    assert bars.granularity is Granularity.FIVE_MINUTE
    assert ((bars.ts_ns - NEW_YEAR_NS) // NS_PER_S).tolist() == [0, 300]
    columns = [getattr(bars, name).tolist() for name in VALUES]
    assert columns == [[2, 9], [6, 9], [1, 8], [5, 8], [18, 1]]


def test_summing_up_keeps_first_open_extremes_last_close_and_all_volume() -> None:
    minutes = make_bars(600, granularity=Granularity.ONE_MINUTE)
    hours = aggregate(pick(minutes, np.r_[7:250, 400:600]), HOUR)
    assert ((hours.ts_ns - NEW_YEAR_NS) // HOUR.ns).tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert hours.open[1] == minutes.open[60]
    assert hours.close[1] == minutes.close[119]
    assert hours.high[1] == minutes.high[60:120].max()
    assert hours.low[1] == minutes.low[60:120].min()
    assert hours.volume[1] == pytest.approx(minutes.volume[60:120].sum())


DAY, MINUTES = "20240101_trade.zip", "20240101_btcusd_minute_trade.csv"

BROKEN_LEAN: list[tuple[str, str, str, str, dict[str, Any], str]] = [
    # name, archive, member, text, arguments, part of the rule
    ("quotes by member", "20240101_quote.zip", "20240101_btcusd_minute_quote.csv", LEAN, {}, "not of quotes"),
    ("quotes by archive", "btcusd_quote.zip", "btcusd.csv", LEAN_DAYS, {}, "not of quotes"),
    ("quotes by columns", "x.zip", "btcusd.csv", "20240101 00:00" + ",1" * 10, {}, "not of quotes"),
    ("open interest", "20240101_openinterest.zip", "20240101_btcusd_minute_openinterest.csv", LEAN, {}, "trades"),
    ("ticks", "20240101_trade.zip", "20240101_btcusd_tick_trade.csv", LEAN, {}, "a resolution of"),
    ("seconds", "20240101_trade.zip", "20240101_btcusd_second_trade.csv", LEAN, {}, "a granularity to sum"),
    ("finer", "btcusd_trade.zip", "btcusd.csv", LEAN_DAYS, {"granularity": HOUR}, "whole ONE_DAY bars"),
    ("other product", DAY, MINUTES, LEAN, {"product_id": "ETH-USD"}, "product"),
    ("other day", "20240102_trade.zip", "20240101_btcusd_minute_trade.csv", LEAN, {}, "a member for 20240102"),
    ("other symbol", "ethusd_trade.zip", "btcusd.csv", LEAN_DAYS, {}, "a member for ethusd"),
    ("no day", "20241301_trade.zip", "20241301_btcusd_minute_trade.csv", LEAN, {}, "a date YYYYMMDD"),
    ("unknown quote", "abcxyz_trade.zip", "abcxyz.csv", LEAN_DAYS, {}, "a product_id given"),
    ("foreign member", "data.zip", "Data File.TXT", LEAN, {}, "a Lean member"),
    ("path in member", "data.zip", "../20240101_btcusd_minute_trade.csv", LEAN, {}, "a Lean member"),
    ("empty member", DAY, MINUTES, "", {}, "at least one bar"),
    ("few columns", DAY, MINUTES, LEAN + "240000,1,1,1,1", {}, "time,open"),
    ("order", DAY, MINUTES, LEAN + "120000,4,6,3,5,7", {}, "ascending"),
    ("twice", DAY, MINUTES, LEAN + "180000,4,6,3,5,7", {}, "duplicate"),
    ("off the grid", DAY, MINUTES, LEAN + "180500,4,6,3,5,7", {}, "minute grid"),
    ("next day", DAY, MINUTES, LEAN + "86400000,4,6,3,5,7", {}, "midnight"),
    ("negative", DAY, MINUTES, "-60000,4,6,3,5,7", {}, "midnight"),
    ("nan", DAY, MINUTES, "0,nan,6,3,5,7", {}, "open as a decimal"),
    ("day form", "btcusd_trade.zip", "btcusd.csv", "2024011 00:00,2,4,1,3,5", {}, "YYYYMMDD HH:mm"),
    ("day time", "btcusd_trade.zip", "btcusd.csv", "20240101 24:00,2,4,1,3,5", {}, "YYYYMMDD HH:mm"),
]


@pytest.mark.parametrize(
    ("name", "archive", "member", "text", "arguments", "rule"), BROKEN_LEAN, ids=[case[0] for case in BROKEN_LEAN]
)
def test_other_lean_archives_are_refused(
    tmp_path: Path, name: str, archive: str, member: str, text: str, arguments: dict[str, Any], rule: str
) -> None:
    assert rule in refused(lean_zip(tmp_path / archive, text, member), **arguments).rule


def declare_size(path: Path, size: int) -> None:
    """Write another uncompressed size into both headers of the only member."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x03\x04") + 22, size)
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, size)
    path.write_bytes(content)


def test_zip_bombs_are_refused_before_they_go_off(tmp_path: Path) -> None:
    bomb = lean_zip(tmp_path / "20240101_trade.zip", "0" * 60_000_000)
    assert "compression by at most 100" in refused(bomb).rule
    declare_size(bomb, 1_000_000)
    assert refused(bomb).rule
    huge = lean_zip(tmp_path / "20240102_trade.zip", LEAN, "20240102_btcusd_minute_trade.csv")
    declare_size(huge, 2**31)
    assert "a member of at most" in refused(huge).rule


def test_a_zip_has_one_plain_member(tmp_path: Path) -> None:
    two = lean_zip(tmp_path / "two.zip", LEAN)
    with zipfile.ZipFile(two, "a") as archive:
        archive.writestr("b.csv", LEAN)
    assert "one member" in refused(two).rule
    with zipfile.ZipFile(tmp_path / "none.zip", "w"):
        pass
    assert "one member" in refused(tmp_path / "none.zip").rule
    lzma = lean_zip(tmp_path / "lzma.zip", LEAN, compression=zipfile.ZIP_LZMA)
    assert "stored or deflated" in refused(lzma).rule
    assert refused(written(tmp_path / "text.zip", "no zip")).rule == "a whole zip archive"


@pytest.mark.parametrize("length", [4, 30, 60, 100, -1, -22, -23])
def test_a_truncated_zip_is_refused(tmp_path: Path, length: int) -> None:
    path = lean_zip(tmp_path / "20240101_trade.zip", LEAN)
    refused(written(path, path.read_bytes()[:length]))


# --- formats, products, granularities ---


@pytest.mark.parametrize(
    ("name", "content", "given"),
    [
        ("BTC-USD.json", json_text(), None),
        ("BTC-USD.JSON", json_text(), None),
        ("BTC-USD.csv", csv_text(), None),
        ("BTC-USD", json_text(), None),
        ("BTC-USD", "\ufeff \n" + json_text(), None),
        ("BTC-USD.txt", csv_text(), None),
        ("BTC-USD.csv", json_text(), "json"),
        ("BTC-USD.json", csv_text(), "csv"),
    ],
)
def test_the_format_is_found_or_given(tmp_path: Path, name: str, content: str, given: str | None) -> None:
    if content.startswith("\ufeff"):
        content = content.replace(" \n", "")
    assert same(read_file(written(tmp_path / name, content), format=given), BARS)


def test_a_zip_is_known_by_its_content(tmp_path: Path) -> None:
    path = lean_zip(tmp_path / "20240101_trade.zip", LEAN).rename(tmp_path / "bars.csv")
    assert len(read_file(path)) == 3


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    error = refused(written(tmp_path / "BTC-USD.csv", csv_text()), format="xlsx")
    assert (error.rule, error.value) == ("a format of json, csv, lean", "xlsx")


@pytest.mark.parametrize(
    ("name", "product_id"),
    [
        ("BTC-USD.csv", "BTC-USD"),
        ("Coinbase-BTC-USD-PT4H-20160518_20251028.csv", "BTC-USD"),
        ("1INCH-USDC_hourly.csv", "1INCH-USDC"),
        ("eth ETH-BTC.csv", "ETH-BTC"),
    ],
)
def test_a_product_is_found_in_the_name(tmp_path: Path, name: str, product_id: str) -> None:
    assert read_file(written(tmp_path / name, csv_text())).product_id == product_id
    assert read_file(tmp_path / name, "SOL-EUR").product_id == "SOL-EUR"


@pytest.mark.parametrize(
    "name", ["bars.csv", "btc-usd.csv", "BTCUSD.csv", "BTC_USD.csv", "BTC-USD_ETH-USD.csv", "A-XYZ.csv"]
)
def test_a_name_without_exactly_one_product_needs_it_given(tmp_path: Path, name: str) -> None:
    assert "a product_id, given or as the one" in refused(written(tmp_path / name, csv_text())).rule


def test_a_given_product_is_checked(tmp_path: Path) -> None:
    assert "BASE-QUOTE" in refused(written(tmp_path / "BTC-USD.csv", csv_text()), product_id="../../etc").rule


@pytest.mark.parametrize("granularity", list(Granularity))
def test_the_granularity_is_the_most_common_spacing(tmp_path: Path, granularity: Granularity) -> None:
    bars = pick(make_bars(30, granularity=granularity), np.r_[0:4, 8:12, 20:24])
    path = written(tmp_path / "BTC-USD.csv", csv_text(bars))
    assert read_file(path).granularity is granularity
    assert same(read_file(path, granularity=granularity), bars)


def test_a_spacing_of_no_known_granularity_is_refused(tmp_path: Path) -> None:
    error = refused(written(tmp_path / "BTC-USD.csv", csv_text(pick(make_bars(30), slice(None, None, 3)))))
    assert (error.rule, error.value) == ("bars spaced by a known granularity", "10800.0 s")


def test_one_bar_needs_its_granularity_given(tmp_path: Path) -> None:
    path = written(tmp_path / "BTC-USD.csv", csv_text(make_bars(1)))
    assert "a granularity given" in refused(path).rule
    assert same(read_file(path, granularity=HOUR), make_bars(1))


@pytest.mark.parametrize("given", [Granularity.ONE_MINUTE, Granularity.FIVE_MINUTE, Granularity.ONE_DAY])
def test_a_granularity_the_bars_do_not_have_is_refused(tmp_path: Path, given: Granularity) -> None:
    refused(written(tmp_path / "BTC-USD.csv", csv_text()), granularity=given)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "device", "beneath a file", "zero byte"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "BTC-USD.csv"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "beneath a file":
        path = written(path, "x") / "BTC-USD.csv"
    elif kind == "zero byte":
        path = tmp_path / "BTC\0USD.csv"
    rule = refused(path, product_id="BTC-USD").rule
    assert "file" in rule or "path" in rule


def test_more_bars_than_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bar_columns, "BARS_PER_FILE_MAX", 23)
    for name, text in (("BTC-USD.csv", csv_text()), ("BTC-USD.json", json_text())):
        assert "at most 23 bars" in refused(written(tmp_path / name, text)).rule


# --- memory ---

MEASURED_READ = """
import re, sys
from pathlib import Path
from cluster.bar_files import read_file
from cluster.bar_checks import DataError
try:
    print(len(read_file(sys.argv[1], "BTC-USD")))
except DataError as error:
    print(error.rule)
# Not getrusage: its peak is inherited from the process that started this one, however large that was.
print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def sparse(path: Path) -> None:
    with path.open("wb") as handle:
        handle.truncate(1_900_000_000)


def too_large(path: Path) -> None:
    with path.open("wb") as handle:
        handle.truncate(3 * 1024**3)


def one_long_line(path: Path) -> None:
    path.write_bytes(b"start,open,high,low,close,volume\n" + b"1" * 100_000_000)


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(20_000):
            archive.writestr(f"{index}", b"")


def blank_json(path: Path) -> None:
    path.write_bytes(b'{"candles": [' + b" " * 100_000_000)


def million_bars(path: Path) -> None:
    line = "{},2,4,1,3,5\n"
    with path.open("w") as handle:
        handle.write("start,open,high,low,close,volume\n")
        handle.writelines(line.format(60 * index) for index in range(1_000_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "outcome"),
    [
        ("a.csv", sparse, "a line of at most"),
        ("a.json", sparse, '{"candles"'),
        ("b.csv", too_large, "at most 2147483648 bytes"),
        ("c.csv", one_long_line, "a line of at most"),
        ("d.zip", many_members, "a zip of one member"),
        ("e.json", blank_json, "a candle of at most"),
        ("f.csv", million_bars, "1000000"),
    ],
)
def test_no_file_takes_more_than_512_mb(tmp_path: Path, name: str, make: Callable[[Path], None], outcome: str) -> None:
    path = tmp_path / name
    make(path)
    command = [sys.executable, "-c", MEASURED_READ, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True)
    found, peak_mb = done.stdout.splitlines()
    assert outcome in found
    assert int(peak_mb) < 512


# --- real files ---


@needs_real_data
def test_real_btc_json_has_all_rows_and_three_gaps() -> None:
    bars = read_file(next((REAL_DATA / "ta4j_coinbase").glob("*BTC-USD-PT4H*.json")))
    assert (bars.product_id, bars.granularity, len(bars)) == ("BTC-USD", Granularity.FOUR_HOUR, 20_695)
    assert [gap.missing for gap in find_gaps(bars.ts_ns, bars.granularity)] == [1, 3, 1]
    assert (bars.ts_ns[0], bars.open[0], bars.volume[0]) == (1_463_544_000 * NS_PER_S, 456.16, 561.88098307)


@needs_real_data
def test_real_eth_json_is_turned_round() -> None:
    bars = read_file(next((REAL_DATA / "ta4j_coinbase").glob("*ETH-USD-PT1D*.json")))
    assert (bars.product_id, bars.granularity, len(bars)) == ("ETH-USD", Granularity.ONE_DAY, 3_450)
    assert (bars.ts_ns[-1], bars.close[-1]) == (1_761_696_000 * NS_PER_S, 3_870.3)
    assert (np.diff(bars.ts_ns) > 0).all()


@needs_real_data
def test_every_real_lean_archive_is_read_or_refused_for_a_reason() -> None:
    outcomes: dict[str, int] = {}
    for path in sorted((REAL_DATA / "lean_coinbase").rglob("*.zip")):
        try:
            bars = read_file(path)
            outcome = f"{bars.product_id} {bars.granularity}"
        except DataError as error:
            outcome = error.rule
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes == {
        "BTC-USD ONE_DAY": 1,
        "BTC-USD ONE_MINUTE": 9,
        "trades: bars are made of them, not of quotes": 6,
        "a granularity to sum second bars up to": 3,
    }


@needs_real_data
@pytest.mark.parametrize("day", ["20161007", "20161008", "20161009"])
def test_real_seconds_summed_up_are_the_real_minutes(day: str) -> None:
    folder = REAL_DATA / "lean_coinbase"
    minutes = read_file(folder / "minute" / "btcusd" / f"{day}_trade.zip")
    summed = read_file(folder / "second" / "btcusd" / f"{day}_trade.zip", granularity=Granularity.ONE_MINUTE)
    assert np.array_equal(summed.ts_ns, minutes.ts_ns)
    for name in VALUES:
        np.testing.assert_allclose(getattr(summed, name), getattr(minutes, name), rtol=1e-9)


@needs_real_data
def test_lean_and_ta4j_agree_where_they_overlap() -> None:
    """In 2016 on extremes and volume exactly, on opens and closes to a few cents (they order trades differently)."""
    four_hours = read_file(next((REAL_DATA / "ta4j_coinbase").glob("*BTC-USD-PT4H*.json")))
    tolerances = {"high": 0.0, "low": 0.0, "volume": 1e-12, "open": 2e-4, "close": 2e-4}
    for path in sorted((REAL_DATA / "lean_coinbase" / "minute").rglob("2016*_trade.zip")):
        summed = read_file(path, granularity=Granularity.FOUR_HOUR)
        at = np.searchsorted(four_hours.ts_ns, summed.ts_ns)
        assert np.array_equal(four_hours.ts_ns[at], summed.ts_ns)
        for name, tolerance in tolerances.items():
            np.testing.assert_allclose(getattr(summed, name), getattr(four_hours, name)[at], rtol=tolerance)


@needs_real_data
def test_lean_days_and_ta4j_days_have_the_same_extremes_nearly_always() -> None:
    four_hours = read_file(next((REAL_DATA / "ta4j_coinbase").glob("*BTC-USD-PT4H*.json")))
    ta4j, lean = (
        aggregate(four_hours, Granularity.ONE_DAY),
        read_file(REAL_DATA / "lean_coinbase/daily/btcusd_trade.zip"),
    )
    common, here, there = np.intersect1d(ta4j.ts_ns, lean.ts_ns, return_indices=True)
    assert len(common) == 818
    for name in ("high", "low"):
        assert (getattr(ta4j, name)[here] == getattr(lean, name)[there]).mean() > 0.95
