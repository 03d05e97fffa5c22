"""Limit records, calendars and hours as plain Python, for the model of the ledger: read, compared, tightened."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

UNLIMITED: Final = math.inf
LARGER_IS_STRICTER: Final = frozenset(
    {"order_interval_us", "message_interval_us", "taker_fee_ppm", "market_buffer_ppm", "cancel_reserve",
     "duplicate_window_ms", "repeat_window_ms", "reject_window_ms", "venue_error_window_ms", "volatility_halt_ms",
     "volatility_window_ms"}
)  # fmt: skip
STRICT_WORDS: Final = {"short": "denied", "self_trade": "deny", "restricted": "yes"}


class Limit(NamedTuple):
    """A limit's two levels, ``UNLIMITED`` or integers; a limit without a soft level has the hard one for it."""

    hard: float
    soft: float

    def text(self) -> str:
        """As in a record."""
        hard, soft = ("unlimited" if n == UNLIMITED else str(n) for n in self)
        return hard if hard == soft else f"{hard}:{soft}"


class Record:
    """The limits of one scope, read from "name=hard:soft …"."""

    def __init__(self, text: str) -> None:
        """Keep every word by its name."""
        self.words = dict(word.split("=", 1) for word in text.split(" "))

    def number(self, name: str) -> Limit:
        """A limit by its name."""
        hard, _, soft = self.words[name].partition(":")
        return Limit(_number(hard), _number(soft or hard))

    def figure(self, name: str) -> int:
        """A number that is never unlimited."""
        return int(self.words[name])

    def text(self) -> str:
        """The record again, names sorted."""
        return " ".join(f"{name}={self.words[name]}" for name in sorted(self.words))


def _number(word: str) -> float:
    return UNLIMITED if word == "unlimited" else int(word)


def merged(before: str, after: str) -> tuple[str, bool]:
    """The stricter of two records, limit by limit, and whether ``after`` asks for more than that."""
    old, new, found, looser = Record(before), Record(after), {}, False
    for name in old.words.keys() & new.words.keys():
        found[name] = _stricter(name, old.words[name], new.words[name])
        looser |= found[name] != new.words[name]
    # What is no longer there denies, which is stricter; what was not there, and denied, would be looser.
    looser |= not new.words.keys() <= old.words.keys()
    return " ".join(f"{name}={found[name]}" for name in sorted(found)), looser


def _stricter(name: str, before: str, after: str) -> str:
    try:
        old, new = Record(f"n={before}").number("n"), Record(f"n={after}").number("n")
    except ValueError:
        return after if after == STRICT_WORDS.get(name) else before
    hard, soft = (_stricter_number(name, *pair) for pair in zip(old, new, strict=True))
    return Limit(hard, soft if name in LARGER_IS_STRICTER else min(soft, hard)).text()


def _stricter_number(name: str, a: float, b: float) -> float:
    """Whatever the direction, unlimited is the loosest."""
    return max(a, b) if name in LARGER_IS_STRICTER and UNLIMITED not in {a, b} else min(a, b)


def local_seconds(us: int, calendar: str) -> int:
    """Seconds since 1970 on the clock of the desk's time zone: "zone offset until offset until … offset"."""
    seconds, numbers = us // 1_000_000, [int(word) for word in calendar.split(" ")[1:]]
    ends: Iterable[float] = [*numbers[1::2], math.inf]
    return next(seconds + offset for offset, end in zip(numbers[::2], ends, strict=True) if seconds < end)


def day_number(us: int, calendar: str) -> int:
    """Days since 1970-01-01 on that clock."""
    return local_seconds(us, calendar) // 86_400


def within_hours(hours: str, us: int, calendar: str) -> bool:
    """Whether "from-to,…" (minutes of the week, Monday 00:00 = 0, ``to`` exclusive) hold that clock's minute."""
    # 1970-01-05 was a Monday.
    minute = (local_seconds(us, calendar) // 60 - 4 * 1440) % 10_080
    ranges = [] if hours == "always" else [part.split("-") for part in hours.split(",")]
    return hours == "always" or any(int(start) <= minute < int(end) for start, end in ranges)
