"""The bar store: merging, reading by range, damage, crashes, several processes, and what it says when bars lack."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.market_data import (
    SIMULATED,
    BarStore,
    DataError,
    MissingData,
    StoreBusy,
    StoreError,
    data_hash,
    read_file,
)
from strategies.model import Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, REAL_DATA, make_bars, needs_real_data, pick, same, with_value

HOUR = Granularity.ONE_HOUR
HOUR_NS = HOUR.ns
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> BarStore:
    return BarStore(tmp_path / "bars")


def files(store: BarStore) -> dict[str, bytes]:
    """Every file of the store and its content, locks left out."""
    paths = (path for path in store.root.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(store.root)): path.read_bytes() for path in paths}


def parts(store: BarStore) -> list[Path]:
    return sorted(store.root.rglob("*.parquet"))


# --- what goes in comes out ---


def test_bars_come_back_bit_for_bit(store: BarStore) -> None:
    bars = make_bars(20_000)
    report = store.write(bars, source="file:a.csv")
    again = store.read("BTC-USD", HOUR)
    assert (report.fetched, report.new, report.updated, report.unchanged) == (20_000, 20_000, 0, 0)
    assert same(bars, again)
    assert data_hash(again) == data_hash(bars) == store.data_hash(bars)


def test_arrays_are_contiguous_writable_and_of_the_kernels_types(store: BarStore) -> None:
    store.write(make_bars(9_000))
    bars = store.read("BTC-USD", HOUR, NEW_YEAR_NS + 5 * HOUR_NS)
    assert bars.ts_ns.dtype == np.int64
    for name in ("ts_ns", "open", "high", "low", "close", "volume"):
        array = getattr(bars, name)
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.aligned
        assert name == "ts_ns" or array.dtype == np.float64


def test_strided_and_read_only_arrays_are_stored_like_others(store: BarStore) -> None:
    bars = make_bars(100)
    views = [getattr(bars, name)[::2] for name in NAMES]
    for view in views:
        view.flags.writeable = False
    store.write(Bars("BTC-USD", HOUR, *views))
    assert same(store.read("BTC-USD", HOUR), pick(bars, slice(None, None, 2)))


def test_parts_are_parquet_with_schema_source_and_version(store: BarStore) -> None:
    store.write(make_bars(10_000), source="coinbase")
    assert [path.name[:5] for path in parts(store)] == ["2024.", "2025."]
    table = pq.read_table(parts(store)[0])
    assert [str(field.type) for field in table.schema] == ["int64"] + ["double"] * 5
    assert table.schema.names == ["ts_ns", "open", "high", "low", "close", "volume"]
    metadata = table.schema.metadata
    assert metadata[b"sources"] == b'["coinbase"]'
    assert metadata[b"schema_version"] == b"1"
    assert metadata[b"product_id"] == b"BTC-USD"
    assert metadata[b"granularity"] == b"ONE_HOUR"


def test_minutes_are_kept_by_month_so_that_a_page_rewrites_little(store: BarStore) -> None:
    store.write(make_bars(60 * 24 * 40, granularity=Granularity.ONE_MINUTE))
    assert [path.name[:8] for path in parts(store)] == ["2024-01.", "2024-02."]


def test_a_million_bars_are_read_in_less_than_a_second(store: BarStore) -> None:
    bars = make_bars(1_000_000, granularity=Granularity.ONE_MINUTE)
    store.write(bars)
    times_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        again = store.read("BTC-USD", Granularity.ONE_MINUTE)
        times_s.append(time.perf_counter() - started_s)
    assert same(bars, again)
    assert min(times_s) < 1.0


# --- merging ---


def test_writing_the_same_bars_again_changes_no_file(store: BarStore) -> None:
    bars = make_bars(10_000)
    store.write(bars, source="file:a.csv")
    before = files(store)
    report = store.write(bars, source="file:b.csv")
    assert (report.new, report.updated, report.unchanged) == (0, 0, 10_000)
    assert files(store) == before
    assert store.ls()[0].sources == ("file:a.csv",)


def test_bars_merge_by_time_in_whatever_order_they_come(store: BarStore) -> None:
    bars = make_bars(12_000)
    order = np.random.default_rng(1).permutation(6)
    for index in order:
        store.write(pick(bars, slice(index, None, 6)), source=f"file:{index}")
    assert same(store.read("BTC-USD", HOUR), bars)
    assert set(store.ls()[0].sources) == {f"file:{index}" for index in order}


def test_only_the_parts_that_change_are_written_anew(store: BarStore) -> None:
    store.write(make_bars(10_000))
    old, new = parts(store)
    store.write(make_bars(5, start_ns=NEW_YEAR_NS + 10_000 * HOUR_NS))
    kept = parts(store)
    assert kept[0] == old
    assert kept[1] != new
    assert len(kept) == 2


def test_the_last_bar_may_still_change_and_counts_as_updated(store: BarStore) -> None:
    bars = make_bars(10)
    store.write(bars)
    longer = with_value(make_bars(11), "volume", 9, 99.0)
    report = store.write(longer)
    assert (report.new, report.updated, report.unchanged) == (1, 1, 9)
    assert same(store.read("BTC-USD", HOUR), longer)


@pytest.mark.parametrize("index", [0, 4, 8])
@pytest.mark.parametrize("name", ["open", "close", "volume"])
def test_another_bar_under_a_stored_time_is_refused_and_changes_nothing(store: BarStore, index: int, name: str) -> None:
    bars = make_bars(10)
    store.write(bars, source="file:a")
    before = files(store)
    other = with_value(make_bars(20), name, index, float(getattr(bars, name)[index]) + 0.01)
    with pytest.raises(DataError, match=r"replace=True") as caught:
        store.write(other, source="file:b")
    assert caught.value.row == index + 1
    assert files(store) == before


def test_a_conflict_in_the_second_part_leaves_the_first_part_too(store: BarStore) -> None:
    store.write(make_bars(10_000))
    before = files(store)
    with pytest.raises(DataError):
        store.write(with_value(make_bars(10_001, start_ns=NEW_YEAR_NS - HOUR_NS), "volume", 9_999, 123.0))
    assert files(store) == before


def test_replace_overrules_a_conflict(store: BarStore) -> None:
    bars = make_bars(10)
    store.write(bars)
    other = with_value(bars, "volume", 3, 5.0)
    report = store.write(other, replace=True)
    assert (report.new, report.updated, report.unchanged) == (0, 1, 9)
    assert same(store.read("BTC-USD", HOUR), other)


def test_an_invalid_series_is_never_stored(store: BarStore) -> None:
    with pytest.raises(DataError, match="a finite close"):
        store.write(with_value(make_bars(10), "close", 4, float("nan")))
    assert store.ls() == []


def test_products_and_granularities_are_apart(store: BarStore) -> None:
    hours, days = make_bars(10), make_bars(10, granularity=Granularity.ONE_DAY, seed=2)
    ether = make_bars(10, "ETH-USD", seed=3)
    for bars in (hours, days, ether):
        store.write(bars)
    assert same(store.read("BTC-USD", Granularity.ONE_DAY), days)
    assert same(store.read("ETH-USD", HOUR), ether)
    assert [(info.product_id, info.granularity) for info in store.ls()] == [
        ("BTC-USD", HOUR),
        ("BTC-USD", Granularity.ONE_DAY),
        ("ETH-USD", HOUR),
    ]


def test_the_report_tells_the_gaps_among_the_bars(store: BarStore) -> None:
    bars = pick(make_bars(10), [0, 1, 2, 5, 6, 9])
    (first, second) = store.write(bars).gaps
    assert (first.start_ns, first.end_ns, first.missing) == (NEW_YEAR_NS + 3 * HOUR_NS, NEW_YEAR_NS + 5 * HOUR_NS, 2)
    assert (second.missing, second.rule, second.severity) == (2, "gap", "warning")


# --- simulated and real ---


@pytest.mark.parametrize(("first", "second"), [(SIMULATED, "coinbase"), ("coinbase", SIMULATED), ("file:x", SIMULATED)])
def test_simulated_and_real_bars_never_share_a_series(store: BarStore, first: str, second: str) -> None:
    store.write(make_bars(10), source=first)
    with pytest.raises(DataError, match="removed first"):
        store.write(make_bars(20), source=second)
    assert store.ls()[0].simulated == (first == SIMULATED)
    assert store.remove("BTC-USD", HOUR)
    store.write(make_bars(20), source=second)
    assert store.ls()[0].sources == (second,)
    assert store.ls()[0].simulated == (second == SIMULATED)


def test_removing_leaves_nothing_of_the_series_and_all_of_the_others(store: BarStore) -> None:
    store.write(make_bars(10))
    store.write(make_bars(10, "ETH-USD"))
    assert store.remove("BTC-USD", HOUR)
    assert not store.remove("BTC-USD", HOUR)
    assert not store.remove("SOL-USD", HOUR)
    assert [info.product_id for info in store.ls()] == ["ETH-USD"]
    with pytest.raises(MissingData):
        store.read("BTC-USD", HOUR)


# --- reading a range ---

RANGES: list[tuple[int | None, int | None, int, int]] = [
    # start, end (in minutes after the first bar) -> position of the first bar read, count
    (None, None, 0, 100),
    (0, 6_000, 0, 100),
    (60, None, 1, 99),
    (None, 120, 0, 2),
    (59, 61, 1, 1),
    (61, 180, 2, 1),
    (0, 1, 0, 1),
    (5_940, 5_941, 99, 1),
    (5_939, 6_000, 99, 1),
]


@pytest.mark.parametrize(("start", "end", "first", "count"), RANGES)
def test_a_range_is_half_open(store: BarStore, start: int | None, end: int | None, first: int, count: int) -> None:
    bars = make_bars(100)
    store.write(bars)
    minute_ns = 60 * 10**9
    start_ns = None if start is None else NEW_YEAR_NS + start * minute_ns
    end_ns = None if end is None else NEW_YEAR_NS + end * minute_ns
    assert same(store.read("BTC-USD", HOUR, start_ns, end_ns), pick(bars, slice(first, first + count)))


@pytest.mark.parametrize(
    ("start", "end"),
    [(-1, 5), (0, 101), (100, 101), (-50, -40), (None, 101), (-1, None), (30, 32)],
    ids=["before", "behind", "just behind", "long before", "end behind", "start before", "inside a gap"],
)
def test_bars_that_are_not_there_are_missing_data(store: BarStore, start: int | None, end: int | None) -> None:
    bars = make_bars(100)
    store.write(pick(bars, np.r_[0:30, 35:100]))
    start_ns = None if start is None else NEW_YEAR_NS + start * HOUR_NS
    end_ns = None if end is None else NEW_YEAR_NS + end * HOUR_NS
    with pytest.raises(MissingData) as caught:
        store.read("BTC-USD", HOUR, start_ns, end_ns)
    assert caught.value.available == ("ONE_HOUR from 2024-01-01T00:00:00Z to 2024-01-05T04:00:00Z",)


def test_missing_data_names_everything_and_the_command_that_helps(store: BarStore) -> None:
    store.write(make_bars(24))
    with pytest.raises(MissingData) as caught:
        store.read("BTC-USD", Granularity.ONE_DAY, NEW_YEAR_NS, NEW_YEAR_NS + Granularity.ONE_DAY.ns)
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert str(error) == (
        "missing ONE_DAY bars of BTC-USD from 2024-01-01T00:00:00Z to 2024-01-02T00:00:00Z; the store has ONE_HOUR "
        "from 2024-01-01T00:00:00Z to 2024-01-02T00:00:00Z; fetch them with: desk ingest --product BTC-USD "
        "--granularity ONE_DAY --start 2024-01-01T00:00:00Z --end 2024-01-02T00:00:00Z"
    )


@pytest.mark.parametrize(
    ("product_id", "start_ns", "end_ns"),
    [
        ("../BTC-USD", None, None),
        ("btc-usd", None, None),
        ("BTC-USD/..", None, None),
        ("", None, None),
        ("BTC-USD", 5, 5),
        ("BTC-USD", 6, 5),
        ("BTC-USD", -1, 5),
        ("BTC-USD", 0, 2**63),
        ("BTC-USD", 10**40, None),
    ],
)
def test_a_senseless_wish_is_a_data_error(
    store: BarStore, product_id: str, start_ns: int | None, end_ns: int | None
) -> None:
    with pytest.raises(DataError):
        store.read(product_id, HOUR, start_ns, end_ns)


def test_what_the_venue_answered_to_be_empty_is_not_missing(store: BarStore) -> None:
    bars = make_bars(100)
    answered = (NEW_YEAR_NS - 10 * HOUR_NS, NEW_YEAR_NS + 120 * HOUR_NS)
    store.write(pick(bars, np.r_[0:30, 35:100]), source="coinbase", answered=[answered])
    assert len(store.read("BTC-USD", HOUR, *answered)) == 95
    assert store.missing_ranges("BTC-USD", HOUR, *answered) == []
    (gap,) = store.check("BTC-USD", HOUR)
    assert (gap.missing, gap.severity) == (5, "note")
    assert "the venue has none" in gap.detail
    with pytest.raises(MissingData):
        store.read("BTC-USD", HOUR, answered[0] - HOUR_NS)


def test_missing_ranges_are_the_holes_no_venue_has_spoken_about(store: BarStore) -> None:
    bars = make_bars(100)
    hours = [NEW_YEAR_NS + hour * HOUR_NS for hour in range(200)]
    store.write(pick(bars, np.r_[10:30, 35:40, 50:60]), answered=[(hours[33], hours[37]), (hours[70], hours[80])])
    wanted = [(0, 10), (30, 33), (40, 50), (60, 70), (80, 100)]
    found = store.missing_ranges("BTC-USD", HOUR, hours[0], hours[100])
    assert found == [(hours[start], hours[end]) for start, end in wanted]
    assert store.missing_ranges("ETH-USD", HOUR, hours[0], hours[9]) == [(hours[0], hours[9])]


# --- damage ---


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"not parquet at all")


def flip(position: float) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * (len(content) - 1))] ^= 0x10
        path.write_bytes(content)

    return damage


def delete(path: Path) -> None:
    path.unlink()


DAMAGES = [truncate, empty, overwrite, delete, *(flip(position) for position in (0, 0.1, 0.3, 0.5, 0.9, 0.97, 1))]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_an_error_that_names_it_and_harms_no_other(
    store: BarStore, damage: Callable[[Path], None]
) -> None:
    store.write(make_bars(10_000))
    first, second = parts(store)
    damage(second)
    with pytest.raises(DataError) as caught:
        store.read("BTC-USD", HOUR)
    assert caught.value.file == str(second)
    with pytest.raises(DataError):
        store.write(make_bars(10_001))
    # The year before is untouched and can be read.
    assert len(store.read("BTC-USD", HOUR, NEW_YEAR_NS, NEW_YEAR_NS + 100 * HOUR_NS)) == 100
    (finding,) = store.check("BTC-USD", HOUR)
    assert (finding.rule, finding.severity) == ("damage", "error")
    assert str(second) in finding.detail
    assert len(store.ls()) == 1
    assert first.exists()


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage is not delete])
def test_a_damaged_manifest_is_an_error_that_names_it(store: BarStore, damage: Callable[[Path], None]) -> None:
    store.write(make_bars(100), answered=[(NEW_YEAR_NS, NEW_YEAR_NS + HOUR_NS)])
    store.write(make_bars(100, "ETH-USD"))
    manifest = store.root / "BTC-USD" / "ONE_HOUR" / "manifest.json"
    damage(manifest)
    for use in (lambda: store.read("BTC-USD", HOUR), lambda: store.write(make_bars(100))):
        with pytest.raises(DataError) as caught:
            use()
        assert caught.value.file == str(manifest)
    assert parts(store), "the parts of a damaged manifest are kept"
    broken, whole = store.ls()
    assert str(manifest) in broken.problem
    assert not whole.problem
    assert store.check("BTC-USD", HOUR)[0].severity == "error"
    assert store.remove("BTC-USD", HOUR)
    store.write(make_bars(100))


def test_a_manifest_of_another_series_is_refused(store: BarStore) -> None:
    store.write(make_bars(100))
    (store.root / "BTC-USD").rename(store.root / "ETH-USD")
    with pytest.raises(DataError, match="a manifest of schema, product, granularity"):
        store.read("ETH-USD", HOUR)


def test_what_does_not_belong_to_the_store_is_neither_read_nor_touched(store: BarStore) -> None:
    store.write(make_bars(100))
    folder = store.root / "BTC-USD" / "ONE_HOUR"
    strangers = [folder / "notes.txt", folder / "mine.parquet", store.root / "README", store.root / "x" / "y" / "z"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    store.write(make_bars(101))
    assert [path.read_text() for path in strangers] == ["mine"] * 4
    assert len(store.ls()) == 1


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "bars").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot write"):
        BarStore(tmp_path / "bars").write(make_bars(10))


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_changes_nothing_and_leaves_nothing(
    store: BarStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.write(make_bars(100))
    before = files(store)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StoreError, match="No space left"):
            store.write(make_bars(10_000))
    assert files(store) == before


# --- crashes and several processes ---

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from cluster.market_data import BarStore
from tests.bar_samples import make_bars

root, point = Path(sys.argv[1]), 1
while True:
    pid = os.fork()
    if pid == 0:
        calls = 0
        def counted(original):
            def call(*arguments, **named):
                global calls
                calls += 1
                if calls == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **named)
            return call
        for name in ("fsync", "replace", "open", "unlink", "rename"):
            setattr(os, name, counted(getattr(os, name)))
        Path.open, Path.unlink = counted(Path.open), counted(Path.unlink)
        BarStore(root).write(make_bars(12_000), source="new")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    store = BarStore(root)
    count = len(store.read("BTC-USD", "ONE_HOUR"))
    assert count in (100, 12_000), count
    assert store.check("BTC-USD", "ONE_HOUR") == []
    print(point, count, "killed" if os.WIFSIGNALED(status) else "finished", flush=True)
    if not os.WIFSIGNALED(status):
        break
    store.remove("BTC-USD", "ONE_HOUR")
    store.write(make_bars(100), source="old")
    point += 1
"""


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)


def test_a_writer_killed_at_any_point_leaves_the_old_or_the_new_state(store: BarStore) -> None:
    store.write(make_bars(100), source="old")
    done = run_python(KILLED_WRITER, str(store.root))
    assert done.returncode == 0, done.stderr
    story = [line.split() for line in done.stdout.splitlines()]
    assert len(story) > 8, "the writer has more moments than these"
    assert story[-1][2] == "finished"
    states = [int(count) for _, count, _ in story]
    assert states == sorted(states), "once the new state is there, it stays"
    assert 100 in states


def test_leftovers_of_a_killed_writer_are_ignored_and_then_deleted(store: BarStore) -> None:
    bars = make_bars(100)
    store.write(bars)
    folder = store.root / "BTC-USD" / "ONE_HOUR"
    leftovers = [folder / f"2024.{'0' * 16}.parquet", folder / f"manifest.json.{'0' * 16}.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    assert same(store.read("BTC-USD", HOUR), bars)
    assert store.check("BTC-USD", HOUR) == []
    store.write(bars)
    assert not any(path.exists() for path in leftovers)
    assert same(store.read("BTC-USD", HOUR), bars)


MANY_WRITERS = """
import sys
from pathlib import Path
from cluster.market_data import BarStore
from tests.bar_samples import make_bars, pick

store, turn = BarStore(Path(sys.argv[1])), int(sys.argv[2])
bars = make_bars(9_000)
for start in range(turn, 60, 3):
    store.write(pick(bars, slice(start, None, 60)), source=f"writer {turn}")
"""


def test_several_processes_write_one_series_without_losing_a_bar(store: BarStore) -> None:
    command = [sys.executable, "-c", MANY_WRITERS, str(store.root)]
    writers = [subprocess.Popen([*command, str(turn)], cwd=REPOSITORY) for turn in range(3)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    assert same(store.read("BTC-USD", HOUR), make_bars(9_000))
    assert len(parts(store)) == 2


def test_a_reader_sees_one_state_while_a_writer_replaces_it(store: BarStore) -> None:
    bars = make_bars(10_000)
    store.write(with_value(bars, "volume", slice(None), 0.0))  # type: ignore[arg-type]
    stop = threading.Event()

    def keep_writing() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.write(with_value(bars, "volume", slice(None), float(turn)), replace=True)  # type: ignore[arg-type]

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        seen: set[float] = set()
        while len(seen) < 5:
            volume = store.read("BTC-USD", HOUR).volume
            assert (volume == volume[0]).all()
            seen.add(float(volume[0]))
    finally:
        stop.set()
        writer.join()


def test_a_lock_that_another_holds_is_waited_for_only_so_long(tmp_path: Path) -> None:
    store = BarStore(tmp_path, lock_timeout_s=0.1)
    store.write(make_bars(10))
    lock = tmp_path / "BTC-USD" / "ONE_HOUR.lock"
    with lock.open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(StoreBusy, match=r"ONE_HOUR\.lock: another writer held it for 0\.1 s"):
            store.write(make_bars(20))
        assert len(store.read("BTC-USD", HOUR)) == 10
    store.write(make_bars(20))


# --- the hash ---


def test_the_hash_is_the_same_on_every_machine() -> None:
    bars = Bars("BTC-USD", HOUR, np.array([0, HOUR_NS]), *(np.array([value, value + 1.0]) for value in range(1, 6)))
    # Made with struct.pack("<2q…", "<2d…") and hashlib alone.
    assert data_hash(bars) == "2ccbad94a83537ed45fa8d37ac569cb4873d2965442e0493b568d9118350322b"


def test_the_hash_tells_every_difference() -> None:
    bars = make_bars(10)
    others = [
        make_bars(10, "ETH-USD"),
        make_bars(9),
        Bars(bars.product_id, Granularity.ONE_MINUTE, *(getattr(bars, name) for name in NAMES)),
        Bars(bars.product_id, HOUR, bars.ts_ns + HOUR_NS, *(getattr(bars, name) for name in NAMES[1:])),
        *(with_value(bars, name, 3, float(np.nextafter(getattr(bars, name)[3], 0))) for name in NAMES[1:]),
    ]
    assert len({data_hash(each) for each in [bars, *others]}) == 1 + len(others)


NAMES = ("ts_ns", "open", "high", "low", "close", "volume")


# --- real bars ---


@needs_real_data
def test_real_bars_keep_their_three_gaps(store: BarStore) -> None:
    path = next((REAL_DATA / "ta4j_coinbase").glob("*BTC-USD-PT4H*.json"))
    report = store.write(read_file(path), source=f"file:{path.name}")
    assert (report.new, len(report.gaps)) == (20_695, 3)
    findings = store.check("BTC-USD", Granularity.FOUR_HOUR)
    assert [(finding.missing, finding.detail[-44:]) for finding in findings] == [
        (1, "2017-02-28T20:00:00Z to 2017-03-01T00:00:00Z"),
        (3, "2018-08-10T04:00:00Z to 2018-08-10T16:00:00Z"),
        (1, "2025-10-25T16:00:00Z to 2025-10-25T20:00:00Z"),
    ]
    assert store.write(read_file(path)).unchanged == 20_695
    assert len(store.read("BTC-USD", Granularity.FOUR_HOUR)) == 20_695
