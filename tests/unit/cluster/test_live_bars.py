"""When a bar is final, what is never made up, and what the venue changes afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.bar_checks import DataError
from cluster.live_bars import WATCHED_BARS, Correction, LiveBar, LiveBars, bars_of, rows_of
from strategies.model import NS_PER_S, Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, make_bars, pick, same

MINUTE = Granularity.ONE_MINUTE


class Venue:
    """Answers with what a test has put there, whatever time it is."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.pages: list[tuple[int, int]] = []

    def fetch(self, start_s: int, end_s: int) -> Bars:
        assert (end_s - start_s) // 60 <= 350
        self.pages.append((start_s, end_s))
        ts_s = self.bars.ts_ns // NS_PER_S
        return pick(self.bars, (ts_s >= start_s) & (ts_s < end_s))


def minutes(count: int) -> Bars:
    return make_bars(count, granularity=MINUTE)


def at(minute: int, second: float = 0.0) -> int:
    """The moment so far into the year."""
    return NEW_YEAR_NS + minute * MINUTE.ns + int(second * NS_PER_S)


def following(venue: Venue, seen: int) -> LiveBars:
    """After the first ``seen`` bars of the venue were taken as final."""
    live = LiveBars("BTC-USD", MINUTE, venue.fetch)
    for bar in rows_of(venue.bars)[:seen]:
        live.remember(bar)
    return live


def starts(found: list[LiveBar]) -> list[int]:
    return [(bar.ts_ns - NEW_YEAR_NS) // MINUTE.ns for bar in found]


@pytest.mark.parametrize(
    ("there", "looks", "final"),
    [
        # minutes of the bars there, moments of the looks, and what each look brings
        ([0, 1, 2], [at(2, 30)], [[1]]),
        ([0, 1, 2], [at(3, 0.5)], [[1]]),
        ([0, 1, 2, 3], [at(3, 0.5)], [[1, 2]]),
        ([0, 1], [at(2, 6), at(2, 6.5), at(2, 7.5), at(2, 9)], [[], [], [1], []]),
        ([0, 1], [at(2, 1), at(2, 4.9)], [[], []]),
        ([0, 1], [at(1, 30), at(1, 59)], [[], []]),
        ([0, 3], [at(3, 1)], [[]]),
        ([0, 3, 4], [at(4, 1)], [[3]]),
        ([0], [at(5), at(9)], [[], []]),
    ],
    ids=[
        "a bar that a later one follows is final",
        "the running bar is not, though its end has passed a moment ago",
        "all that are followed come at once, in order",
        "without a later bar two equal readings after the grace make it final",
        "within the grace no number of readings does",
        "a bar whose end has not passed never is",
        "an empty minute alone makes nothing final",
        "empty minutes are passed over and stay absent",
        "where nothing trades nothing comes",
    ],
)
def test_a_bar_is_final_only_when_the_venue_cannot_change_it(
    there: list[int], looks: list[int], final: list[list[int]]
) -> None:
    venue = Venue(pick(minutes(10), np.array(there)))
    live = following(venue, 1)
    assert [starts(live.look(moment).final) for moment in looks] == final


def test_a_second_reading_that_differs_starts_the_wait_anew() -> None:
    venue = Venue(minutes(2))
    live = following(venue, 1)
    assert live.look(at(2, 6)).final == []
    venue.bars.close[1] = venue.bars.high[1]
    assert live.look(at(2, 8)).final == []
    (bar,) = live.look(at(2, 10)).final
    assert bar.close == venue.bars.high[1]


def test_what_changed_or_came_late_is_told_once_and_the_order_of_time_is_kept() -> None:
    whole = minutes(6)
    venue = Venue(pick(whole, np.array([0, 1, 3, 4])))
    live = following(venue, 1)
    assert starts(live.look(at(4, 1)).final) == [1, 3]
    venue.bars = pick(whole, slice(0, 6))
    venue.bars.close[1] = venue.bars.high[1]
    before, late = rows_of(whole)[1], rows_of(whole)[2]
    look = live.look(at(5, 1))
    changed = before._replace(close=before.high)
    assert look.corrections == [Correction("CORRECTED", before, changed), Correction("LATE", None, late)]
    assert starts(look.final) == [4]
    assert live.look(at(5, 2)).corrections == []


def test_only_the_newest_bars_are_read_again() -> None:
    venue = Venue(minutes(40))
    live = following(venue, 30)
    live.look(at(31))
    ((first_s, _),) = venue.pages
    assert (first_s * NS_PER_S - NEW_YEAR_NS) // MINUTE.ns == 30 - WATCHED_BARS


def test_history_is_all_that_is_followed_and_a_long_absence_is_read_page_by_page() -> None:
    venue = Venue(minutes(1_000))
    live = LiveBars("BTC-USD", MINUTE, venue.fetch)
    history = live.history(at(100), at(600, 30))
    assert (starts(history)[0], starts(history)[-1], len(history)) == (100, 599, 500)
    assert len(venue.pages) == 2
    assert starts(live.look(at(999, 30)).final) == list(range(600, 999))


def test_history_without_a_bar_begins_where_it_was_asked_for() -> None:
    venue = Venue(pick(minutes(10), np.array([7, 8])))
    live = LiveBars("BTC-USD", MINUTE, venue.fetch)
    assert live.history(at(0), at(5)) == []
    assert starts(live.look(at(8, 1)).final) == [7]


@pytest.mark.parametrize(
    ("there", "now", "due"),
    [
        ([0, 1, 2], at(2, 1), at(3, 0.5)),
        ([0, 1], at(2, 1), at(2, 2)),
        ([0], at(2, 3), at(2, 4)),
        ([0], at(2, 30), at(3, 0.5)),
    ],
    ids=[
        "a bar is met: the next end",
        "its end has passed: soon",
        "it may still come: soon",
        "nothing traded: next end",
    ],
)
def test_the_venue_is_asked_when_it_can_have_something_new(there: list[int], now: int, due: int) -> None:
    venue = Venue(pick(minutes(10), np.array(there)))
    live = following(venue, 1)
    live.look(now)
    assert live.due_ns == due


def test_a_broken_bar_is_refused_and_nothing_is_taken_up() -> None:
    venue = Venue(minutes(5))
    live = following(venue, 1)
    venue.bars.high[2] = venue.bars.low[2] / 2
    with pytest.raises(DataError, match="high"):
        live.look(at(4, 1))
    venue.bars = minutes(5)
    assert starts(live.look(at(4, 1)).final) == [1, 2, 3]


def test_rows_and_bars_are_the_same_bits() -> None:
    bars = minutes(50)
    assert same(bars_of("BTC-USD", MINUTE, rows_of(bars)), bars)
    assert len(bars_of("BTC-USD", MINUTE, [])) == 0
