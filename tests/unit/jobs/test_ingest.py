"""Ingest: only what lacks is asked for, a killed run goes on, a repeated one asks nothing, the running bar stays out.

The venue here is an object in memory with the venue's signature; tests/integration runs the same calls on the real
class and the simulator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cluster.market_data import SIMULATED, BarStore, DataError, MissingData, StoreBusy
from cluster.venue import VenueGarbage, VenueNotFound, VenueThrottled, VenueUnavailable
from jobs import ingest
from jobs.ingest import IngestError, IngestStopped, ingest_file, ingest_venue
from strategies.model import NS_PER_S, Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, REAL_DATA, make_bars, needs_real_data, pick, same, with_value
from tests.unit.cluster.test_bar_files import csv_text

HOUR = Granularity.ONE_HOUR
HOUR_NS = HOUR.ns


def hour(position: int) -> int:
    return NEW_YEAR_NS + position * HOUR_NS


class MemoryVenue:
    """Bars in memory behind the venue's signature; ``failures[n]`` is raised by the n-th call for candles."""

    def __init__(self, bars: Bars, now_ns: int, simulated: bool = False) -> None:
        self.bars = bars
        self.now_ns = now_ns
        self.endpoint = SimpleNamespace(simulated=simulated)
        self.asked: list[tuple[int, int]] = []
        self.calls = 0
        self.failures: dict[int, BaseException] = {}
        self.before_answer: Callable[[], None] = lambda: None

    def server_time_ns(self) -> int:
        return self.now_ns

    def candles(self, product_id: str, granularity: Granularity, start_s: int, end_s: int) -> Bars:
        self.calls += 1
        if failure := self.failures.pop(self.calls, None):
            raise failure
        assert (end_s - start_s) // granularity.seconds <= 350
        self.asked.append(((start_s * NS_PER_S - NEW_YEAR_NS) // HOUR_NS, (end_s * NS_PER_S - NEW_YEAR_NS) // HOUR_NS))
        self.before_answer()
        inside = (self.bars.ts_ns >= start_s * NS_PER_S) & (self.bars.ts_ns < end_s * NS_PER_S)
        return pick(self.bars, inside)


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return BarStore(tmp_path / "bars", lock_timeout_s=0.1)


def run(venue: MemoryVenue, store: BarStore, start: int, end: int | None, **named: Any) -> Any:
    end_ns = None if end is None else hour(end)
    return ingest_venue(venue, store, "BTC-USD", HOUR, hour(start), end_ns, **named)  # type: ignore[arg-type]


# --- what is asked for and what is stored ---


def test_bars_are_fetched_in_pages_oldest_first(store: BarStore) -> None:
    bars = make_bars(1_000)
    venue = MemoryVenue(bars, hour(2_000))
    report = run(venue, store, 0, 1_000)
    assert venue.asked == [(0, 350), (350, 700), (700, 1_000)]
    assert (report.fetched, report.new, report.updated, report.unchanged, report.gaps) == (1_000, 1_000, 0, 0, ())
    assert same(store.read("BTC-USD", HOUR), bars)
    assert store.ls()[0].sources == ("coinbase",)


def test_a_second_run_asks_nothing(store: BarStore) -> None:
    bars = pick(make_bars(1_000), np.r_[20:100, 105:700, 720:990])
    venue = MemoryVenue(bars, hour(2_000))
    first = run(venue, store, 0, 1_000)
    assert [gap.missing for gap in first.gaps] == [20, 5, 20, 10]
    assert {gap.severity for gap in first.gaps} == {"note"}
    asked = list(venue.asked)
    second = run(venue, store, 0, 1_000)
    assert venue.asked == asked
    assert (second.fetched, second.new, second.unchanged) == (0, 0, 0)
    assert second.gaps == first.gaps


def test_only_what_lacks_is_fetched_and_small_holes_share_a_page(store: BarStore) -> None:
    bars = make_bars(1_000)
    store.write(pick(bars, np.r_[0:50, 60:70, 80:600, 700:1_000]), source="file:a.csv")
    venue = MemoryVenue(bars, hour(2_000))
    report = run(venue, store, 0, 1_000)
    assert venue.asked == [(50, 80), (600, 700)]
    assert (report.fetched, report.new) == (120, 120)
    assert same(store.read("BTC-USD", HOUR), bars)


def test_stored_bars_that_differ_from_the_venues_are_left_alone(store: BarStore) -> None:
    bars = make_bars(100)
    filed = with_value(pick(bars, np.r_[0:40, 60:100]), "volume", 3, 99.0)
    store.write(filed, source="file:a.csv")
    run(MemoryVenue(bars, hour(2_000)), store, 0, 100)
    assert same(store.read("BTC-USD", HOUR), with_value(bars, "volume", 3, 99.0))


def test_a_file_that_ended_with_an_unfinished_bar_is_mended_when_the_series_goes_on(store: BarStore) -> None:
    bars = make_bars(100)
    store.write(with_value(pick(bars, slice(0, 50)), "volume", 49, 0.1), source="file:a.csv")
    report = run(MemoryVenue(bars, hour(2_000)), store, 0, 100)
    assert (report.new, report.updated) == (50, 1)
    assert same(store.read("BTC-USD", HOUR), bars)


@pytest.mark.parametrize("second", [0, 1, 1_800, 3_599])
def test_the_running_bar_is_never_stored(store: BarStore, second: int) -> None:
    bars = make_bars(101)
    venue = MemoryVenue(bars, hour(100) + second * NS_PER_S)
    for end in (None, 101, 500):
        run(venue, store, 0, end)
        assert same(store.read("BTC-USD", HOUR), pick(bars, slice(0, 100)))
    venue.now_ns = hour(101)
    assert run(venue, store, 0, None).new == 1
    assert same(store.read("BTC-USD", HOUR), bars)


def test_a_bar_that_may_only_be_late_is_asked_for_again(store: BarStore) -> None:
    bars = make_bars(100)
    venue = MemoryVenue(pick(bars, slice(0, 99)), hour(100) + 2 * NS_PER_S)
    assert [gap.severity for gap in run(venue, store, 0, None).gaps] == ["warning"]
    venue.bars = bars
    assert run(venue, store, 0, None).new == 1
    venue.bars, venue.now_ns = pick(bars, slice(0, 100)), hour(101) + (ingest.SETTLED_S + 1) * NS_PER_S
    assert [gap.severity for gap in run(venue, store, 0, None).gaps] == ["note"]
    asked = len(venue.asked)
    run(venue, store, 0, None)
    assert len(venue.asked) == asked


def test_a_range_off_the_grid_holds_the_bars_that_start_in_it(store: BarStore) -> None:
    bars = make_bars(100)
    venue = MemoryVenue(bars, hour(200))
    ingest_venue(venue, store, "BTC-USD", HOUR, hour(10) + 1, hour(20) + 1)  # type: ignore[arg-type]
    assert same(store.read("BTC-USD", HOUR), pick(bars, slice(11, 21)))


def test_what_came_before_the_product_existed_is_a_known_gap(store: BarStore) -> None:
    venue = MemoryVenue(make_bars(10, start_ns=hour(2_000)), hour(3_000))
    run(venue, store, 0, 2_010)
    assert len(venue.asked) == 6
    assert len(store.read("BTC-USD", HOUR, hour(0), hour(2_010))) == 10
    run(venue, store, 0, 2_010)
    assert len(venue.asked) == 6


def test_a_range_without_any_bar_is_remembered_too(store: BarStore) -> None:
    venue = MemoryVenue(make_bars(0), hour(3_000))
    assert run(venue, store, 0, 700).gaps[0].missing == 700
    assert len(venue.asked) == 2
    run(venue, store, 0, 700)
    assert len(venue.asked) == 2
    assert store.ls() == []
    with pytest.raises(MissingData):
        store.read("BTC-USD", HOUR)


def test_progress_tells_pages_done_and_in_all(store: BarStore) -> None:
    story: list[tuple[int, int, str]] = []
    venue = MemoryVenue(make_bars(800), hour(2_000))
    run(venue, store, 0, 800, progress=lambda *step: story.append(step))
    assert [(done, total) for done, total, _ in story] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert story[1][2] == "BTC-USD ONE_HOUR to 2024-01-15T14:00:00Z"
    story.clear()
    run(venue, store, 0, 800, progress=lambda *step: story.append(step))
    assert [(done, total) for done, total, _ in story] == [(0, 0)]


# --- wishes that make no sense ---


@pytest.mark.parametrize(
    ("start_ns", "end_ns", "field"),
    [
        (hour(5), hour(5), "end"),
        (hour(6), hour(5), "end"),
        (-1, None, "start"),
        (hour(101), None, "start"),
        (10**30, None, "start"),
    ],
)
def test_a_senseless_range_is_refused_before_anything_is_asked(
    store: BarStore, start_ns: int, end_ns: int | None, field: str
) -> None:
    venue = MemoryVenue(make_bars(100), hour(100))
    with pytest.raises(IngestError) as caught:
        ingest_venue(venue, store, "BTC-USD", HOUR, start_ns, end_ns)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert venue.asked == []


def test_a_senseless_product_is_refused_before_anything_is_asked(store: BarStore) -> None:
    venue = MemoryVenue(make_bars(100), hour(100))
    with pytest.raises(DataError, match="BASE-QUOTE"):
        ingest_venue(venue, store, "../x", HOUR, hour(0))  # type: ignore[arg-type]
    assert venue.asked == []


@pytest.mark.parametrize("simulated", [False, True])
def test_simulated_and_real_bars_do_not_mix_and_nothing_is_asked_in_vain(store: BarStore, simulated: bool) -> None:
    store.write(make_bars(10), source="file:a" if simulated else SIMULATED)
    venue = MemoryVenue(make_bars(100), hour(200), simulated=simulated)
    with pytest.raises(DataError, match="removed first"):
        run(venue, store, 0, 100)
    assert venue.asked == []


def test_bars_of_a_simulated_venue_say_so(store: BarStore) -> None:
    run(MemoryVenue(make_bars(100), hour(200), simulated=True), store, 0, 100)
    assert store.ls()[0].sources == (SIMULATED,)
    assert store.ls()[0].simulated


# --- a venue that fails ---


def test_a_venue_that_throttles_is_asked_again_after_the_time_it_names(store: BarStore) -> None:
    bars = make_bars(1_000)
    venue = MemoryVenue(bars, hour(2_000))
    venue.failures = {1: VenueThrottled("slow down", 7.5), 3: VenueUnavailable("gone"), 4: VenueUnavailable("gone")}
    waits: list[float] = []
    run(venue, store, 0, 1_000, sleep=waits.append)
    assert same(store.read("BTC-USD", HOUR), bars)
    assert waits[0] == 7.5
    assert len(waits) == 3
    assert all(0 < wait_s <= 30 for wait_s in waits)


def test_patience_has_an_end_and_what_came_is_kept(store: BarStore) -> None:
    bars = make_bars(1_000)
    venue = MemoryVenue(bars, hour(2_000))
    venue.failures = {call: VenueUnavailable("the line is dead") for call in range(3, 100)}
    waits: list[float] = []
    with pytest.raises(IngestStopped, match=r"stopped after 2 of 3 pages.*the line is dead") as caught:
        run(venue, store, 0, 1_000, sleep=waits.append)
    assert (caught.value.done, caught.value.total) == (2, 3)
    assert len(waits) == ingest.TRIES_PER_PAGE - 1
    assert sum(waits) < 60
    assert same(store.read("BTC-USD", HOUR), pick(bars, slice(0, 700)))
    venue.failures = {}
    report = run(venue, store, 0, 1_000)
    assert venue.asked[-1] == (699, 1_000)
    assert (report.new, report.unchanged) == (300, 1)
    assert same(store.read("BTC-USD", HOUR), bars)


@pytest.mark.parametrize("error", [VenueNotFound("no such product"), VenueGarbage("HTML"), KeyboardInterrupt()])
def test_what_waiting_cannot_mend_ends_the_run_at_once_and_what_came_is_kept(
    store: BarStore, error: BaseException
) -> None:
    bars = make_bars(1_000)
    venue = MemoryVenue(bars, hour(2_000))
    venue.failures = {2: error}
    with pytest.raises(type(error)):
        run(venue, store, 0, 1_000, sleep=lambda wait_s: pytest.fail("waited"))
    assert same(store.read("BTC-USD", HOUR), pick(bars, slice(0, 350)))


def test_pages_are_stored_in_batches_so_that_a_killed_run_goes_on(
    store: BarStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "PAGES_PER_WRITE", 2)
    bars = make_bars(350 * 5)
    venue = MemoryVenue(bars, hour(2_000))
    stored: list[int] = []
    venue.before_answer = lambda: stored.append(sum(info.rows for info in store.ls()))
    run(venue, store, 0, 350 * 5)
    assert stored == [0, 0, 700, 700, 1_400]


BROKEN: list[tuple[str, int, float, str]] = [
    ("close", 3, math.nan, "a finite close"),
    ("low", 3, 1e9, "low <= min"),
    ("volume", 3, -1.0, "volume that is not negative"),
    ("ts_ns", 3, hour(3) + 1, "grid"),
    ("ts_ns", 3, hour(2), "no duplicate time"),
]


@pytest.mark.parametrize(("name", "index", "value", "rule"), BROKEN)
def test_broken_bars_of_the_venue_are_refused_naming_the_request(
    store: BarStore, name: str, index: int, value: float, rule: str
) -> None:
    venue = MemoryVenue(with_value(make_bars(100), name, index, value), hour(200))
    with pytest.raises(DataError) as caught:
        run(venue, store, 0, 100)
    assert rule in caught.value.rule
    assert caught.value.file == (
        "the venue's candles of BTC-USD ONE_HOUR from 2024-01-01T00:00:00Z to 2024-01-05T04:00:00Z"
    )
    assert store.ls() == []


@pytest.mark.parametrize("answer", [make_bars(10, "ETH-USD"), make_bars(10, granularity=Granularity.ONE_DAY)])
def test_bars_of_something_else_are_refused(store: BarStore, answer: Bars) -> None:
    venue = MemoryVenue(answer, hour(500))
    with pytest.raises(DataError, match="bars of what was asked for"):
        run(venue, store, 0, 300)
    assert store.ls() == []


def test_bars_outside_of_the_page_are_dropped(store: BarStore) -> None:
    bars = make_bars(100)
    venue = MemoryVenue(bars, hour(200))
    venue.candles = lambda *_: bars  # type: ignore[method-assign]
    run(venue, store, 40, 50)
    assert same(store.read("BTC-USD", HOUR), pick(bars, slice(40, 50)))


def test_two_runs_at_once_end_with_the_same_series(store: BarStore) -> None:
    bars = make_bars(1_000)
    other = MemoryVenue(bars, hour(2_000))
    venue = MemoryVenue(bars, hour(2_000))
    venue.before_answer = lambda: run(other, store, 0, 1_000)
    report = run(venue, store, 0, 1_000)
    assert same(store.read("BTC-USD", HOUR), bars)
    assert (report.new, report.unchanged) == (0, 1_000)


# --- from files ---


def test_a_file_is_stored_with_its_name_as_the_source(store: BarStore, tmp_path: Path) -> None:
    bars = pick(make_bars(100), np.r_[0:10, 12:100])
    path = tmp_path / "BTC-USD.csv"
    path.write_text(csv_text(bars))
    report = ingest_file(store, path)
    assert (report.fetched, report.new, [gap.missing for gap in report.gaps]) == (98, 98, [2])
    assert same(store.read("BTC-USD", HOUR), bars)
    assert store.ls()[0].sources == ("file:BTC-USD.csv",)
    again = ingest_file(store, path)
    assert (again.new, again.unchanged) == (0, 98)


def test_a_broken_file_changes_nothing(store: BarStore, tmp_path: Path) -> None:
    good, bad = tmp_path / "BTC-USD.csv", tmp_path / "BTC-USD_2.csv"
    good.write_text(csv_text(make_bars(50)))
    bad.write_text(csv_text(make_bars(100)) + "tail")
    ingest_file(store, good)
    with pytest.raises(DataError) as caught:
        ingest_file(store, bad)
    assert (caught.value.file, caught.value.row) == (str(bad), 102)
    assert same(store.read("BTC-USD", HOUR), make_bars(50))


def test_a_file_that_contradicts_the_store_needs_replace(store: BarStore, tmp_path: Path) -> None:
    path = tmp_path / "bars.csv"
    path.write_text(csv_text(with_value(make_bars(50), "volume", 7, 9.0)))
    store.write(make_bars(50), source="coinbase")
    with pytest.raises(DataError, match="replace=True"):
        ingest_file(store, path, "BTC-USD")
    assert ingest_file(store, path, "BTC-USD", replace=True).updated == 1
    assert store.ls()[0].sources == ("coinbase", "file:bars.csv")


def test_a_simulated_file_may_be_called_so(store: BarStore, tmp_path: Path) -> None:
    path = tmp_path / "BTC-USD.csv"
    path.write_text(csv_text(make_bars(50)))
    ingest_file(store, path, source=SIMULATED)
    assert store.ls()[0].simulated


def test_a_busy_store_is_an_error_that_names_the_lock(store: BarStore, tmp_path: Path) -> None:
    path = tmp_path / "BTC-USD.csv"
    path.write_text(csv_text(make_bars(50)))
    with store._locked("BTC-USD", HOUR), pytest.raises(StoreBusy, match=r"ONE_HOUR\.lock"):
        ingest_file(store, path)


@needs_real_data
def test_real_days_of_minutes_become_one_series(store: BarStore) -> None:
    folder = REAL_DATA / "lean_coinbase" / "minute" / "btcusd"
    for day in ("20161008", "20161007", "20161009"):
        ingest_file(store, folder / f"{day}_trade.zip")
    (info,) = store.ls()
    assert (info.rows, info.granularity) == (1_419 + 1_400 + 1_397, Granularity.ONE_MINUTE)
    assert len(info.sources) == 3
    with pytest.raises(DataError, match="not of quotes"):
        ingest_file(store, folder / "20170903_quote.zip")
