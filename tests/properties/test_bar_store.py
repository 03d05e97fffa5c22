"""The bar store against a dict of bars, and its ranges against sets of slots."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.market_data import BarStore, DataError
from cluster.series_files import Range, join_ranges
from jobs.ingest import BARS_PER_PAGE, _pages
from strategies.model import Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, make_bars, pick, same

HOUR: Final = Granularity.ONE_HOUR
# Around the turn of a year, so that two parts are in play.
START_NS: Final = NEW_YEAR_NS - 30 * HOUR.ns
TRUTHS: Final = [make_bars(60, start_ns=START_NS, seed=seed) for seed in (1, 2)]

Slots = set[int]
Write = tuple[Slots, int, bool]


def model_write(model: dict[int, int], slots: Slots, truth: int, replace: bool) -> tuple[int, int, int] | None:
    """What a write of ``slots`` with the values of ``truth`` does to a dict; None where it must be refused."""
    last = max(model, default=None)
    differing = {slot for slot in slots if model.get(slot, truth) != truth}
    if not replace and differing - {last}:
        return None
    new = len(slots - model.keys())
    model.update(dict.fromkeys(slots, truth))
    return new, len(differing), len(slots) - new - len(differing)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sets(st.integers(0, 59), min_size=1), st.sampled_from([0, 0, 0, 1]), st.booleans()), max_size=6
    )
)
def test_the_store_is_a_dict_of_bars(writes: list[Write]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, model = BarStore(Path(folder)), dict[int, int]()
        for slots, truth, replace in writes:
            expected = model_write(model, slots, truth, replace)
            try:
                report = store.write(pick(TRUTHS[truth], sorted(slots)), replace=replace)
                assert (report.new, report.updated, report.unchanged) == expected
            except DataError:
                assert expected is None
        if model:
            assert same(store.read("BTC-USD", HOUR), bars_of(model))
            assert store.ls()[0].rows == len(model)
            missing = sum(gap.missing for gap in store.check("BTC-USD", HOUR))
            assert missing == max(model) - min(model) + 1 - len(model)


def bars_of(model: dict[int, int]) -> Bars:
    slots = np.array(sorted(model))
    which = np.array([model[slot] for slot in slots])
    names = ("open", "high", "low", "close", "volume")
    values = (np.where(which == 0, getattr(TRUTHS[0], name)[slots], getattr(TRUTHS[1], name)[slots]) for name in names)
    return Bars("BTC-USD", HOUR, TRUTHS[0].ts_ns[slots], *values)


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def points(ranges: list[Range] | tuple[Range, ...]) -> Slots:
    return {point for start, end in ranges for point in range(start, end)}


@settings(max_examples=300, deadline=None)
@given(RANGES)
def test_joined_ranges_hold_the_same_points_in_order_and_apart(ranges: list[Range]) -> None:
    joined = join_ranges(ranges)
    assert points(joined) == points(ranges)
    edges = [edge for pair in joined for edge in pair]
    assert edges == sorted(set(edges))


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 59)), RANGES, st.integers(0, 60), st.integers(0, 60))
def test_missing_ranges_are_the_slots_neither_stored_nor_answered(
    stored: Slots, answered: list[Range], start: int, end: int
) -> None:
    def ns(slot: int) -> int:
        return START_NS + slot * HOUR.ns

    with tempfile.TemporaryDirectory() as folder:
        store = BarStore(Path(folder))
        store.write(pick(TRUTHS[0], sorted(stored)), answered=[(ns(first), ns(stop)) for first, stop in answered])
        if start < end:
            missing = store.missing_ranges("BTC-USD", HOUR, ns(start), ns(end))
            found = {(at - START_NS) // HOUR.ns for first, stop in missing for at in range(first, stop, HOUR.ns)}
            assert found == set(range(start, end)) - stored - points(answered)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 900), max_size=12), st.integers(1, 5))
def test_pages_cover_what_is_wanted_with_the_fewest_requests(lengths: list[int], step: int) -> None:
    edges = np.cumsum([0, *lengths]).tolist()
    wanted = [(start * step, end * step) for start, end in zip(edges[:-1:2], edges[1::2], strict=False)]
    pages = _pages(wanted, step)
    assert points(wanted) <= points(pages)
    for start, end in pages:
        assert 0 < (end - start) // step <= BARS_PER_PAGE
        assert start in points(wanted)
    # Greedy from the left is minimal: the first points of the pages cannot share a page.
    assert all(right - left >= BARS_PER_PAGE * step for (left, _), (right, _) in pairwise(pages))
