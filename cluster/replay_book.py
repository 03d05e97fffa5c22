"""The counters of a replayed account: figures, days, windows, marks and rates, by the rules the ledger writes down.

Written from those rules and from no server: whole numbers of any size, nothing cached, nothing shared.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

PPM: Final = 1_000_000
RECENT_KEPT: Final = 15
DESK_PREFIX: Final = ""
ACCOUNT_PREFIX: Final = "a|"

Record = Mapping[str, int | str | None]
"""A limit record: a whole number, None for unlimited, or a word."""


@dataclass(slots=True)
class Day:
    """What a scope did on a day; ``start`` is its PnL in micros when the day began."""

    number: int
    orders: int
    turnover: int
    start: int
    messages: int
    fills: int

    def __str__(self) -> str:
        return f"{self.number} {self.orders} {self.turnover} {self.start} {self.messages} {self.fills}"


@dataclass(frozen=True, slots=True)
class Reference:
    """Best bid and ask in ticks; ``num``/``den`` micros of one lot at one tick."""

    bid: int
    ask: int
    num: int
    den: int

    def worth(self, lots: int) -> tuple[int, int]:
        """Signed value at the middle (a long rounded down, a short away from 0) and gross exposure (up), in micros."""
        size, middle2 = abs(lots) * self.num, self.bid + self.ask
        value = size * middle2 // (2 * self.den) if lots > 0 else -_up(size * middle2, 2 * self.den)
        return value, _up(size * _up(middle2, 2), self.den)


class Book:
    """One book: an account's, or the desk's. A field that was never written counts as 0."""

    def __init__(self) -> None:
        """Nothing is written yet; ``limits`` are the records by scope that its days and rates go by."""
        self.limits: dict[str, str] = {}
        self.figures: defaultdict[str, int] = defaultdict(int)
        self.words: dict[str, str] = {}
        self.days: dict[str, Day] = {}
        self.windows: dict[str, tuple[int, int]] = {}

    def list_of(self, name: str) -> list[str]:
        """A field of names."""
        return self.words.get(name, "").split()

    def today(self, prefix: str, us: int) -> Day:
        """The scope's record of the day that ``us`` is in, begun here if there is none yet."""
        day, number = self.days.get(prefix), day_number(us, self.limits.get("calendar"))
        if day is None or day.number != number:
            day = self.days[prefix] = Day(number, 0, 0, self.figures[prefix + "pnl"], 0, 0)
        return day

    def count(self, name: str, now_ms: int, window_ms: int) -> None:
        """Once more in the window ``name``."""
        start_ms, count = self.windows.get(name, (now_ms, 0))
        over = now_ms - start_ms > window_ms
        self.windows[name] = (now_ms, 1) if over else (start_ms, count + 1)

    def advance_rate(self, name: str, us: int, record: Record | None, interval: str, burst: str) -> None:
        """GCRA: the theoretical arrival time one message later."""
        step, most = number(record, interval), number(record, burst)
        if step is not None and most is not None:
            self.figures[name] = min(max(self.figures[name], us), us + most * step) + step

    def count_open(self, prefixes: Iterable[str], side: str, orders: int, notional: int) -> None:
        """Open orders of scopes, and the value of their unfilled part."""
        for prefix in prefixes:
            self.figures[f"{prefix}open_orders"] += orders
            self.figures[f"{prefix}{side}_notional"] += notional

    def remember_size(self, product: str, lots: int) -> None:
        """The last accepted quantities of a product."""
        name = f"p|{product}|recent"
        self.words[name] = " ".join([*self.list_of(name), str(lots)][-RECENT_KEPT:])

    def move(self, prefix: str, side: str, lots: int, value: int, fee: int) -> tuple[int, int]:
        """A fill under one prefix: (profit realised, lots that closed). What a rounding leaves stays in the cost."""
        figures, sign = self.figures, 1 if side == "BUY" else -1
        held, cost = figures[prefix + "lots"], figures[prefix + "cost"]
        closing = min(abs(held), lots) if held * sign < 0 else 0
        closed_value = value * closing // lots
        closed_cost = abs(cost) * closing // abs(held) if closing else 0
        realised = -sign * (closed_value - closed_cost)
        figures[prefix + "realised"] += realised
        figures[prefix + "cost"] += sign * closed_cost + sign * (value - closed_value)
        figures[prefix + "fees"] += fee
        figures[prefix + "lots"] += sign * lots
        return realised, closing

    def note_holder(self, product: str, strategy: str | None) -> None:
        """The products held, and the strategies that ever held one of them."""
        held = set(self.list_of("held")) - {product}
        if self.figures[f"p|{product}|lots"]:
            held.add(product)
        self.words["held"] = " ".join(sorted(held))
        if strategy is not None:
            name = f"p|{product}|strategies"
            self.words[name] = " ".join(sorted({*self.list_of(name), strategy}))

    def mark(self, prefix: str, reference: Reference | None) -> tuple[int, int, int]:
        """Value, gross and PnL of one position brought up to date; returns what each has changed by."""
        figures = self.figures
        lots, cost = figures[prefix + "lots"], figures[prefix + "cost"]
        value, gross = (0, 0) if not lots else (cost, abs(cost)) if reference is None else reference.worth(lots)
        pnl = figures[prefix + "realised"] - figures[prefix + "fees"] + value - cost
        moved = (value - figures[prefix + "value"], gross - figures[prefix + "gross"], pnl - figures[prefix + "pnl"])
        self.add_moved(prefix, moved)
        return moved

    def add_moved(self, prefix: str, moved: tuple[int, int, int]) -> None:
        """Add what ``mark`` returned to a scope above."""
        for name, change in zip(("value", "gross", "pnl"), moved, strict=True):
            self.figures[prefix + name] += change

    def raise_peak(self, prefix: str, name: str) -> None:
        """A scope's peak is the highest ``name`` it was marked with, and never below 0."""
        self.figures[prefix + "peak"] = max(self.figures[prefix + "peak"], self.figures[prefix + name])

    def fields(self) -> dict[str, str]:
        """As the server holds them; figures of 0 and empty words left out."""
        found = {name: str(figure) for name, figure in self.figures.items() if figure}
        found |= {name: word for name, word in self.words.items() if word}
        found |= {prefix + "day": str(day) for prefix, day in self.days.items()}
        return found | {name: f"{start_ms} {count}" for name, (start_ms, count) in self.windows.items()}


@functools.lru_cache(maxsize=4096)
def record_of(text: str) -> Record:
    """The hard levels of a limit record: ``name=hard:soft …``."""
    found: dict[str, int | str | None] = {}
    for item in text.split():
        name, _, value = item.partition("=")
        hard = value.partition(":")[0]
        found[name] = None if hard == "unlimited" else int(hard) if hard.isascii() and hard.isdigit() else value
    return found


def number(record: Record | None, name: str) -> int | None:
    """A limit as a number; None where it is unlimited, a word or not there."""
    value = None if record is None else record.get(name)
    return value if isinstance(value, int) else None


def day_number(us: int, calendar: str | None) -> int:
    """Days since 1970 on the desk's own clock: ``zone offset_s until_s … offset_s``; UTC without a calendar."""
    seconds = us // 1_000_000
    offsets = [int(word) for word in (calendar or "UTC 0").split()[1:]] or [0]
    for offset_s, until_s in zip(offsets[::2], [*offsets[1::2], None], strict=False):
        if until_s is None or seconds < until_s:
            return (seconds + offset_s) // 86_400
    return (seconds + offsets[-1]) // 86_400


def _up(amount: int, divisor: int) -> int:
    return -(-amount // divisor)
