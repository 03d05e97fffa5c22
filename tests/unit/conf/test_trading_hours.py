"""Hours of the week and the UTC offsets of the desk's time zone, against the calendar itself."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest

from conf.trading_hours import MINUTES_PER_WEEK, calendar, known_zone, week_ranges

DAY = 24 * 60

HOURS: list[tuple[list[str], list[tuple[int, int]]]] = [
    # hours -> minutes of the week, the last not included
    (["mon 00:00-24:00"], [(0, DAY)]),
    (["mon 09:00-17:00"], [(540, 1_020)]),
    (["mon-tue 09:00-17:00"], [(540, 1_020), (DAY + 540, DAY + 1_020)]),
    (["tue 09:00-17:00", "mon 09:00-17:00"], [(540, 1_020), (DAY + 540, DAY + 1_020)]),
    (["mon-sun 00:00-24:00"], [(0, MINUTES_PER_WEEK)]),
    # over midnight, and over the end of the week
    (["mon 22:00-02:00"], [(1_320, 1_560)]),
    (["sun 22:00-02:00"], [(0, 120), (6 * DAY + 1_320, MINUTES_PER_WEEK)]),
    (["sun 22:00-00:00"], [(6 * DAY + 1_320, MINUTES_PER_WEEK)]),
    (["sat-mon 10:00-11:00"], [(600, 660), (5 * DAY + 600, 5 * DAY + 660), (6 * DAY + 600, 6 * DAY + 660)]),
    # what touches or overlaps is one range
    (["mon 09:00-12:00", "mon 12:00-17:00"], [(540, 1_020)]),
    (["mon 09:00-12:00", "mon 11:00-17:00", "mon 10:00-11:00"], [(540, 1_020)]),
    (["mon 09:00-12:00", "mon 12:01-17:00"], [(540, 720), (721, 1_020)]),
    (["mon 23:59-24:00"], [(1_439, 1_440)]),
]


@pytest.mark.parametrize(("hours", "ranges"), HOURS)
def test_hours_are_minutes_of_the_week(hours: list[str], ranges: list[tuple[int, int]]) -> None:
    assert week_ranges(hours) == ranges


@pytest.mark.parametrize(
    "text",
    [
        "", "always", "mon", "09:00-17:00", "mon 9:00-17:00", "mon 09:00-17", "mon 09:00 - 17:00", "Mon 09:00-17:00",
        "mon  09:00-17:00", "monday 09:00-17:00", "mon-fri-sun 09:00-17:00", "mon,tue 09:00-17:00", "xyz 09:00-17:00",
        "mon-xyz 09:00-17:00", "mon 25:00-26:00", "mon 09:60-10:00", "mon 24:01-25:00", "mon 09:00-24:01",
        "mon 24:00-02:00", "mon 09:00-09:00", "mon 00:00-00:00", "mon 09:00-17:00\n", "mon ٠٩:٠٠-١٧:٠٠",
    ],
)  # fmt: skip
def test_what_is_no_range_of_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|starts before"):
        week_ranges([text])


NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


def offset_at(text: str, second: int) -> int:
    """The offset a reader of the calendar finds for a UTC second."""
    parts = [int(part) for part in text.split()[1:]]
    for offset, until in zip(parts[0::2], parts[1::2], strict=False):
        if second < until:
            return offset
    return parts[-1]


def test_utc_has_one_offset_for_ever() -> None:
    assert calendar("UTC", NOW) == "UTC 0"


@pytest.mark.parametrize(
    "zone",
    ["Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "America/St_Johns", "Asia/Kathmandu",
     "Africa/Casablanca", "Asia/Tokyo", "Pacific/Kiritimati"],
)  # fmt: skip
def test_the_calendar_agrees_with_the_zone_on_both_sides_of_every_change_for_ten_years(zone: str) -> None:
    text = calendar(zone, NOW)
    known = ZoneInfo(zone)
    changes = [int(part) for part in text.split()[1:]][1::2]
    hours = range(int(NOW.timestamp()), int(NOW.replace(year=2036).timestamp()), 6 * 3_600)
    for second in [*hours, *changes, *(change - 1 for change in changes)]:
        expected = dt.datetime.fromtimestamp(second, known).utcoffset()
        assert expected is not None
        assert offset_at(text, second) == expected.total_seconds(), (zone, second)
    assert changes == sorted(changes)


def test_the_clocks_of_zurich_change_at_one_in_the_morning_utc() -> None:
    text = calendar("Europe/Zurich", NOW)
    spring, autumn = (int(dt.datetime(2027, *day, 1, tzinfo=dt.UTC).timestamp()) for day in ((3, 28), (10, 31)))
    assert (offset_at(text, spring - 1), offset_at(text, spring)) == (3_600, 7_200)
    assert (offset_at(text, autumn - 1), offset_at(text, autumn)) == (7_200, 3_600)


def test_a_restart_within_the_same_years_writes_the_same_calendar() -> None:
    same = {calendar("Europe/Zurich", dt.datetime(year, 7, 1, tzinfo=dt.UTC)) for year in range(2025, 2030)}
    assert len(same) == 1
    assert calendar("Europe/Zurich", dt.datetime(2030, 1, 1, tzinfo=dt.UTC)) not in same


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "utc ", "Europe", "a\0b"])
def test_a_zone_there_is_none_of_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match="expected a time zone"):
        known_zone(name)
