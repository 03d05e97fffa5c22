"""Recorded candles as the price path: the exchange answers with what was recorded, and the price stays within it."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.exchange_history import DAY_S, MARKETS, Candles
from cluster.exchange_replay import Recording, ReplayError, ReplayHistory, open_recordings
from cluster.market_data import read_file
from strategies.model import NS_PER_S, Bars, Granularity

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
LEAN = DATA / "lean_coinbase" / "minute" / "btcusd"
TODAY_S = 1_790_000_000 // DAY_S * DAY_S
# A gap of one bar between 01:00 and 03:00.
ROWS = [
    ("2020-05-01T00:00:00Z", 100.0, 110.0, 90.0, 105.0, 2.0),
    ("2020-05-01T01:00:00Z", 105.0, 106.0, 80.0, 81.0, 1.0),
    ("2020-05-01T03:00:00Z", 82.0, 99.0, 82.0, 99.0, 4.0),
    ("2020-05-02T00:00:00Z", 98.0, 98.5, 97.0, 97.5, 3.0),
]


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    path = tmp_path / "BTC-USD.csv"
    lines = [",".join(map(str, row)) for row in ROWS]
    path.write_text("\n".join(["time,open,high,low,close,volume", *lines]) + "\n")
    return path


def replay(path: Path, day: dt.date | None = dt.date(2020, 5, 1)) -> ReplayHistory:
    return ReplayHistory(7, open_recordings([str(path)], TODAY_S, day))


def rows(candles: Candles) -> list[tuple[Any, ...]]:
    """Start from today's beginning, prices and volume in currency units."""
    columns = (candles.open, candles.high, candles.low, candles.close)
    prices = zip(*(column.tolist() for column in columns), strict=True)
    return [
        (start - TODAY_S, *(ticks / 100 for ticks in each), lots / 1e8)
        for start, each, lots in zip(candles.start_s.tolist(), prices, candles.volume.tolist(), strict=True)
    ]


def at(history: ReplayHistory, hours: float) -> float:
    return history.mid_ticks("BTC-USD", int((TODAY_S + hours * 3_600) * NS_PER_S)) / 100


def test_recorded_bars_come_back_on_the_day_that_is_today(recorded: Path) -> None:
    history = replay(recorded)
    now_ns = (TODAY_S + 2 * DAY_S) * NS_PER_S
    found = rows(history.candles("BTC-USD", Granularity.ONE_HOUR, 0, TODAY_S + 2 * DAY_S, now_ns))
    hours = [0, 1, 3, 24]
    assert found == [(hour * 3_600, *row[1:]) for hour, row in zip(hours, ROWS, strict=True)]


def test_coarser_candles_are_made_of_them_and_a_gap_stays_one(recorded: Path) -> None:
    history = replay(recorded)
    now_ns = (TODAY_S + 2 * DAY_S) * NS_PER_S
    two_hours = history.candles("BTC-USD", Granularity.TWO_HOUR, TODAY_S, TODAY_S + DAY_S, now_ns)
    assert rows(two_hours) == [(0, 100.0, 110.0, 80.0, 81.0, 3.0), (7_200, 82.0, 99.0, 82.0, 99.0, 4.0)]
    days = history.candles("BTC-USD", Granularity.ONE_DAY, TODAY_S, TODAY_S + 2 * DAY_S, now_ns)
    assert rows(days) == [(0, 100.0, 110.0, 80.0, 99.0, 7.0), (DAY_S, 98.0, 98.5, 97.0, 97.5, 3.0)]


def test_finer_candles_lie_within_them_and_reach_their_extremes(recorded: Path) -> None:
    history = replay(recorded)
    now_ns = (TODAY_S + 2 * DAY_S) * NS_PER_S
    minutes = history.candles("BTC-USD", Granularity.ONE_MINUTE, TODAY_S, TODAY_S + 4 * 3_600, now_ns)
    assert len(minutes) == 180
    first = slice(0, 60)
    assert (minutes.open[0], minutes.close[59]) == (10_000, 10_500)
    assert (minutes.high[first].max(), minutes.low[first].min()) == (11_000, 9_000)
    assert minutes.volume[first].sum() == pytest.approx(2e8, abs=60)
    assert (np.diff(minutes.start_s) > 0).all()


@pytest.mark.parametrize(
    ("hours", "price"),
    [
        (-5, 100.0),
        (0, 100.0),
        (1 / 3, 90.0),
        (2 / 3, 110.0),
        (1 - 1e-9, 105.0),
        (1 + 1 / 3, 106.0),
        (1 + 2 / 3, 80.0),
        (2.5, 81.0),
        (3, 82.0),
        (20, 99.0),
        (24 * 30, 97.5),
    ],
)
def test_where_the_price_is(recorded: Path, hours: float, price: float) -> None:
    assert at(replay(recorded), hours) == pytest.approx(price, abs=0.02)


@given(hours=st.floats(0, 30), length=st.sampled_from([g for g in Granularity if g.seconds <= 21_600]))
def test_the_running_candle_ends_at_the_price_and_knows_nothing_of_later(hours: float, length: Granularity) -> None:
    start_s = np.array([TODAY_S, TODAY_S + 3_600, TODAY_S + 10_800], dtype=np.int64)
    opened, high, low, close = (
        np.array(values, dtype=np.int64) for values in ([100, 5, 7], [110, 90, 8], [90, 4, 7], [105, 6, 8])
    )
    bars = Candles(start_s, opened, high, low, close, np.array([9, 9, 9], dtype=np.int64))
    day = dt.date(2020, 5, 1)
    recording = Recording("BTC-USD", 3_600, bars, day, day, day)
    now_ns = int((TODAY_S + hours * 3_600) * NS_PER_S)
    found = recording.candles(length.seconds, TODAY_S, TODAY_S + 2 * DAY_S, now_ns)
    assert (found.start_s * NS_PER_S <= now_ns).all()
    assert ((found.low <= found.open) & (found.open <= found.high)).all()
    assert ((found.low <= found.close) & (found.close <= found.high)).all()
    assert recording.price(now_ns) == found.close[-1]


@pytest.mark.parametrize(
    ("last_bar", "today"),
    [
        ("2020-05-02T23:00:00Z", dt.date(2020, 5, 2)),
        ("2020-05-02T22:00:00Z", dt.date(2020, 5, 2)),
        ("2020-05-02T21:00:00Z", dt.date(2020, 5, 1)),
        ("2020-05-01T03:00:00Z", dt.date(2020, 5, 1)),
    ],
)
def test_the_last_whole_day_is_today_unless_another_is_asked_for(tmp_path: Path, last_bar: str, today: dt.date) -> None:
    more = tmp_path / "more.csv"
    lines = ["time,open,high,low,close,volume", "2020-05-01T00:00:00Z,1,1,1,1,1", "2020-05-01T01:00:00Z,1,1,1,1,1"]
    more.write_text("\n".join([*lines, f"{last_bar},1,1,1,1,1"]) + "\n")
    one = open_recordings([f"BTC-USD={more}"], TODAY_S)["BTC-USD"]
    assert (one.first_day, one.today) == (dt.date(2020, 5, 1), today)
    moved_s = TODAY_S - int(dt.datetime(today.year, today.month, today.day, tzinfo=dt.UTC).timestamp())
    assert one.bars.start_s[-1] == int(dt.datetime.fromisoformat(last_bar).timestamp()) + moved_s
    asked = open_recordings([f"BTC-USD={more}"], TODAY_S, dt.date(2020, 5, 1))["BTC-USD"]
    assert (asked.today, asked.bars.start_s[0]) == (dt.date(2020, 5, 1), TODAY_S)


def test_products_without_a_recording_have_their_seeded_path(recorded: Path) -> None:
    from cluster.exchange_history import History

    now_ns = TODAY_S * NS_PER_S + 12_345 * NS_PER_S
    history, seeded = replay(recorded), History(7)
    assert history.mid_ticks("ETH-USD", now_ns) == seeded.mid_ticks("ETH-USD", now_ns)
    span = ("ETH-USD", Granularity.ONE_HOUR, TODAY_S, TODAY_S + DAY_S, now_ns)
    assert np.array_equal(history.candles(*span).close, seeded.candles(*span).close)


def test_files_of_one_product_add_up_and_the_later_one_wins(recorded: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.csv"
    more.write_text(
        "time,open,high,low,close,volume\n2020-05-01T03:00:00Z,1,1,1,1,1\n2020-05-01T04:00:00Z,2,2,2,2,2\n"
        "2020-05-01T05:00:00Z,2,2,2,2,2\n"
    )
    (one,) = open_recordings([str(recorded), f"BTC-USD={more}"], TODAY_S, dt.date(2020, 5, 1)).values()
    hours = (one.bars.start_s - TODAY_S) // 3_600
    assert (hours.tolist(), one.bars.close.tolist()) == ([0, 1, 3, 4, 5, 24], [10_500, 8_100, 100, 200, 200, 9_750])


@pytest.mark.parametrize(
    ("content", "name", "says"),
    [
        (None, "BTC-USD.csv", "a readable file"),
        ("time,open\n", "BTC-USD.csv", "BTC-USD.csv"),
        ("time,open,high,low,close,volume\n2020-05-01T00:00:00Z,NaN,1,1,1,1\n", "BTC-USD.csv", "row"),
        ("time,open,high,low,close,volume\n0,1,1,1,1,1\n3600,1,1,1,1,1\n", "DOGE-USD.csv", "DOGE-USD is not traded"),
        (b"\x00\xff", "BTC-USD.zip", "BTC-USD.zip"),
    ],
)
def test_a_file_that_cannot_be_played_is_named(tmp_path: Path, content: Any, name: str, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ReplayError) as error:
        open_recordings([str(path)], TODAY_S)
    assert says in str(error.value)


def test_two_granularities_of_one_product_are_refused(recorded: Path, tmp_path: Path) -> None:
    other = tmp_path / "minutes.csv"
    other.write_text(
        "time,open,high,low,close,volume\n2020-05-03T00:00:00Z,1,1,1,1,1\n2020-05-03T00:01:00Z,1,1,1,1,1\n"
    )
    with pytest.raises(ReplayError, match="different granularities"):
        open_recordings([str(recorded), f"BTC-USD={other}"], TODAY_S)


def test_a_real_day_comes_back_bar_for_bar() -> None:
    file = LEAN / "20171217_trade.zip"
    if not file.exists():
        pytest.skip("real candles are not on this machine (../shared/data/lean_coinbase)")
    history = ReplayHistory(7, open_recordings([str(file)], TODAY_S))
    real: Bars = read_file(file)
    now_ns = (TODAY_S + DAY_S) * NS_PER_S
    found = history.candles("BTC-USD", Granularity.ONE_MINUTE, TODAY_S, TODAY_S + DAY_S, now_ns)
    assert len(found) == len(real)
    assert np.array_equal(found.start_s - TODAY_S, real.ts_ns // NS_PER_S % DAY_S)
    for name in ("open", "high", "low", "close"):
        assert np.abs(getattr(found, name) / 100 - getattr(real, name)).max() < 0.0051
    increment = float(MARKETS["BTC-USD"].product.base_increment)
    assert np.abs(found.volume * increment - real.volume).max() < increment
