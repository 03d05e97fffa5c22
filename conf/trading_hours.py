"""The desk's clock: hours of the week in which trading is open, and a time zone's UTC offsets for the years to come."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_PER_DAY: Final = 24 * 60
MINUTES_PER_WEEK: Final = 7 * MINUTES_PER_DAY
ALWAYS: Final = "always"
# Offsets are written for at least this long; they change with the first start after a block of years only, so that
# no restart changes them by itself.
CALENDAR_YEARS: Final = 10
_BLOCK_YEARS: Final = 5

_HOURS = re.compile(
    r"(?P<first>[a-z]{3})(-(?P<last>[a-z]{3}))? (?P<start>[0-9]{2}:[0-9]{2})-(?P<end>[0-9]{2}:[0-9]{2})"
)


def week_ranges(hours: Sequence[str]) -> list[tuple[int, int]]:
    """Hours such as ``mon-fri 09:00-17:00`` as sorted, disjoint ranges of minutes of the week (Monday 00:00 = 0).

    The first minute is in a range, the last is not. An end at or before its start is on the next day; ``24:00`` is
    the end of a day. Raises ``ValueError`` for what cannot be read so.
    """
    ranges: list[tuple[int, int]] = []
    for text in hours:
        match = _HOURS.fullmatch(text)
        if match is None or {match["first"], match["last"] or "mon"} - set(DAYS):
            raise ValueError(f"expected hours such as 'mon-fri 09:00-17:00', was {text!r}")
        start, end = _minute(match["start"]), _minute(match["end"])
        if start in {MINUTES_PER_DAY, end}:
            raise ValueError(f"a range of hours starts before 24:00 and is not empty, was {text!r}")
        first = DAYS.index(match["first"])
        last = DAYS.index(match["last"]) if match["last"] else first
        for day in range(first, last + 1 + (7 if last < first else 0)):
            opens = day % 7 * MINUTES_PER_DAY
            ranges += _in_the_week(opens + start, opens + end + (MINUTES_PER_DAY if end < start else 0))
    return _merged(ranges)


def known_zone(name: str) -> ZoneInfo:
    """The time zone of this name; raises ``ValueError`` where there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"expected a time zone such as UTC or Europe/Zurich, was {name!r}") from None


def calendar(name: str, now: dt.datetime) -> str:
    """``zone offset_s until_s offset_s … offset_s``: each UTC offset with the UTC second it ends at, the last without.

    Covers the years from the start of ``now``'s block of five to at least ten years later.
    """
    zone = known_zone(name)
    year = now.astimezone(dt.UTC).year
    year -= year % _BLOCK_YEARS
    moment = dt.datetime(year, 1, 1, tzinfo=dt.UTC)
    end = dt.datetime(year + _BLOCK_YEARS + CALENDAR_YEARS, 1, 1, tzinfo=dt.UTC)
    parts = [name, str(_offset_s(zone, moment))]
    while moment < end:
        # No zone changes twice within a day.
        following = moment + dt.timedelta(days=1)
        if _offset_s(zone, following) != _offset_s(zone, moment):
            changes_s = _transition_s(zone, int(moment.timestamp()), int(following.timestamp()))
            parts += [str(changes_s), str(_offset_s(zone, following))]
        moment = following
    return " ".join(parts)


def _transition_s(zone: ZoneInfo, before_s: int, after_s: int) -> int:
    """The first UTC second of the new offset, between one of the old and one of the new."""
    old = _offset_s(zone, _utc(before_s))
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if _offset_s(zone, _utc(middle_s)) == old:
            before_s = middle_s
        else:
            after_s = middle_s
    return after_s


def _utc(second: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(second, dt.UTC)


def _offset_s(zone: ZoneInfo, moment: dt.datetime) -> int:
    local = moment.astimezone(zone).replace(tzinfo=dt.UTC)
    return int((local - moment).total_seconds())


def _minute(text: str) -> int:
    hours, minutes = (int(part) for part in text.split(":"))
    minute = hours * 60 + minutes
    if minutes > 59 or minute > MINUTES_PER_DAY:
        raise ValueError(f"expected a time from 00:00 to 24:00, was {text!r}")
    return minute


def _in_the_week(start: int, end: int) -> list[tuple[int, int]]:
    """A range that runs over the end of Sunday continues on Monday."""
    if end <= MINUTES_PER_WEEK:
        return [(start, end)]
    return [(start, MINUTES_PER_WEEK), (0, end - MINUTES_PER_WEEK)]


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
