"""Ingest through the real SDK from the exchange simulator, both as a user runs them; processes die on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.market_data import BarStore, DataError
from cluster.venue import Venue
from jobs.ingest import IngestStopped, ingest_venue
from strategies.model import NS_PER_S, Granularity
from tests.bar_samples import make_bars, same
from tests.simulator import ROOT, Simulator, running_simulator, start_simulator

pytestmark = pytest.mark.slow

MINUTE = Granularity.ONE_MINUTE
HOUR = Granularity.ONE_HOUR
DAY_NS = Granularity.ONE_DAY.ns


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("simulator"), "--history-days", "30") as running:
        yield running


@pytest.fixture
def venue(simulator: Simulator) -> Iterator[Venue]:
    venue = simulator.venue()
    yield venue
    venue.close()


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return BarStore(tmp_path / "bars")


def yesterday_ns(venue: Venue) -> int:
    return venue.server_time_ns() // DAY_NS * DAY_NS - DAY_NS


def test_a_day_of_minutes_is_what_the_venue_says_page_by_page(venue: Venue, store: BarStore) -> None:
    start_ns = yesterday_ns(venue)
    story: list[tuple[int, int, str]] = []
    report = ingest_venue(
        venue, store, "BTC-USD", MINUTE, start_ns, start_ns + DAY_NS, lambda *step: story.append(step)
    )
    assert [(done, total) for done, total, _ in story] == [(done, 5) for done in range(6)]
    stored = store.read("BTC-USD", MINUTE, start_ns, start_ns + DAY_NS)
    assert report.new == len(stored) == 1_440 - sum(gap.missing for gap in report.gaps)
    page = venue.candles("BTC-USD", MINUTE, start_ns // NS_PER_S + 6_000, start_ns // NS_PER_S + 6_000 + 350 * 60)
    first = int(stored.ts_ns.searchsorted(page.ts_ns[0]))
    assert same(stored.between(first, first + len(page)), page)
    (info,) = store.ls()
    assert (info.sources, info.simulated) == (("SIMULATED",), True)


def test_a_repeat_asks_nothing_even_where_the_venue_has_no_history(venue: Venue, store: BarStore) -> None:
    start_ns = yesterday_ns(venue) - 40 * DAY_NS
    end_ns = yesterday_ns(venue)
    first = ingest_venue(venue, store, "ETH-USD", HOUR, start_ns, end_ns)
    assert first.gaps[0].start_ns == start_ns
    assert first.gaps[0].severity == "note"
    totals: list[int] = []
    second = ingest_venue(
        venue, store, "ETH-USD", HOUR, start_ns, end_ns, lambda done, total, text: totals.append(total)
    )
    assert totals == [0]
    assert (second.fetched, second.gaps) == (0, first.gaps)
    assert len(store.read("ETH-USD", HOUR, start_ns, end_ns)) == first.new


def test_the_running_bar_is_not_stored(venue: Venue, store: BarStore) -> None:
    before_ns = venue.server_time_ns()
    ingest_venue(venue, store, "SOL-USD", HOUR, before_ns - 5 * DAY_NS)
    (info,) = store.ls()
    assert info.last_ns + HOUR.ns <= venue.server_time_ns()
    assert info.last_ns >= before_ns - 2 * HOUR.ns


def test_simulated_bars_do_not_enter_a_real_series(venue: Venue, store: BarStore) -> None:
    real = make_bars(10)
    store.write(real, source="coinbase")
    with pytest.raises(DataError, match="removed first"):
        ingest_venue(venue, store, "BTC-USD", HOUR, yesterday_ns(venue))
    assert same(store.read("BTC-USD", HOUR), real)


KILLED_INGEST = """
import sys
from pathlib import Path
from cluster.market_data import BarStore
from cluster.venue import Venue, simulator_endpoint
from jobs import ingest

ingest.PAGES_PER_WRITE = 1
venue = Venue(simulator_endpoint(sys.argv[1], Path(sys.argv[2])))
start_ns, end_ns = int(sys.argv[4]), int(sys.argv[5])
ingest.ingest_venue(venue, BarStore(Path(sys.argv[3])), "BTC-USD", "ONE_MINUTE", start_ns, end_ns)
"""


def test_an_ingest_killed_on_the_way_goes_on_and_ends_with_the_same_bars(
    simulator: Simulator, venue: Venue, store: BarStore, tmp_path: Path
) -> None:
    end_ns = yesterday_ns(venue)
    start_ns = end_ns - 6 * DAY_NS
    arguments = [simulator.host_port, simulator.state_dir, store.root, start_ns, end_ns]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_INGEST, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not store.ls() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.kill()
    child.wait()
    (info,) = store.ls()
    assert 0 < info.rows < 6 * 1_440, "killed on the way"
    assert not [finding for finding in store.check("BTC-USD", MINUTE) if finding.severity == "error"]

    resumed = ingest_venue(venue, store, "BTC-USD", MINUTE, start_ns, end_ns)
    assert 0 < resumed.new < 6 * 1_440
    unharmed = BarStore(tmp_path / "unharmed")
    ingest_venue(venue, unharmed, "BTC-USD", MINUTE, start_ns, end_ns)
    wanted = unharmed.read("BTC-USD", MINUTE, start_ns, end_ns)
    assert same(store.read("BTC-USD", MINUTE, start_ns, end_ns), wanted)


def test_a_venue_that_dies_on_the_way_stops_the_ingest_which_goes_on_with_the_next(
    tmp_path: Path, store: BarStore
) -> None:
    state_dir = tmp_path / "simulator"
    state_dir.mkdir()
    mortal = start_simulator(state_dir, "--history-days", "30")
    venue = mortal.venue()
    end_ns = yesterday_ns(venue)
    start_ns = end_ns - 2 * DAY_NS

    def stop_at_the_third_page(done: int, total: int, description: str) -> None:
        if done == 3:
            mortal.process.kill()
            mortal.process.wait()

    with pytest.raises(IngestStopped, match="stopped after 3 of 9 pages"):
        ingest_venue(
            venue, store, "BTC-USD", MINUTE, start_ns, end_ns, stop_at_the_third_page, sleep=lambda wait_s: None
        )
    venue.close()
    assert mortal.process.stdout is not None
    mortal.process.stdout.close()
    assert store.ls()[0].rows > 900

    with running_simulator(state_dir, "--history-days", "30") as again:
        venue = again.venue()
        report = ingest_venue(venue, store, "BTC-USD", MINUTE, start_ns, end_ns)
        venue.close()
    # The last bar that was there is asked for once more, and the price path depends on the seed alone.
    assert (report.updated, report.unchanged) == (0, 1)
    assert len(store.read("BTC-USD", MINUTE, start_ns, end_ns)) == 2_880 - sum(gap.missing for gap in report.gaps)
