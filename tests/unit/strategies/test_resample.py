"""Resampling as a table of small bars, and what is known of coarse bars on fine ones."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping

import numpy as np
import pytest

from strategies.model import Bars, Granularity
from strategies.resample import NONE_YET, ResampleError, carried, known_at, require_multiple, resample
from tests.bar_samples import make_bars, pick, same

HOUR = Granularity.ONE_HOUR
TWO = Granularity.TWO_HOUR


def hours(rows: Mapping[int, tuple[float, float, float, float, float]]) -> Bars:
    """Bars by hour of 1970-01-01: open, high, low, close, volume."""
    columns = np.array(list(rows.values()), dtype=np.float64).T
    return Bars("BTC-USD", HOUR, np.array(list(rows), dtype=np.int64) * HOUR.ns, *(c.copy() for c in columns))


FOUR_HOURS = {0: (10, 12, 9, 11, 1), 1: (11, 15, 10, 14, 2), 2: (14, 14, 8, 9, 3), 3: (9, 10, 7, 8, 4)}


def test_a_bucket_has_the_first_open_the_extremes_the_last_close_and_the_sum() -> None:
    coarse = resample(hours(FOUR_HOURS), TWO)
    assert coarse.granularity is TWO
    assert (coarse.ts_ns / HOUR.ns).tolist() == [0, 2]
    rows = np.stack([coarse.open, coarse.high, coarse.low, coarse.close, coarse.volume], axis=1).tolist()
    assert rows == [[10, 15, 9, 14, 3], [14, 14, 7, 8, 7]]


@pytest.mark.parametrize(
    ("what", "kept", "buckets", "with_unfinished"),
    [
        ("whole buckets", [0, 1, 2, 3], [0, 2], [0, 2]),
        ("an unfinished last bucket", [0, 1, 2], [0], [0, 2]),
        ("a bucket without its first bar", [1, 2, 3], [0, 2], [0, 2]),
        ("a bucket that a gap ended is finished once a later bar is there", [0, 2, 3], [0, 2], [0, 2]),
        ("an empty bucket stays a gap", [0, 1, 4, 5], [0, 4], [0, 4]),
        ("nothing but an unfinished bucket", [2], [], [2]),
        ("no bar at all", [], [], []),
    ],
)
def test_buckets(what: str, kept: list[int], buckets: list[int], with_unfinished: list[int]) -> None:
    bars = pick(make_bars(6, start_ns=0), np.array(kept, dtype=np.int64))
    assert (resample(bars, TWO).ts_ns // HOUR.ns).tolist() == buckets
    assert (resample(bars, TWO, unfinished=True).ts_ns // HOUR.ns).tolist() == with_unfinished


@pytest.mark.parametrize("coarse", [g for g in Granularity if g.ns % Granularity.FIFTEEN_MINUTE.ns == 0])
def test_every_multiple_in_steps_is_the_same_as_at_once(coarse: Granularity) -> None:
    bars = make_bars(1_000, granularity=Granularity.FIFTEEN_MINUTE)
    at_once = resample(bars, coarse)
    if coarse.ns % HOUR.ns == 0:
        stepwise = resample(resample(bars, HOUR), coarse)
        assert same(pick(at_once, slice(None)), stepwise) or np.allclose(stepwise.volume, at_once.volume, rtol=1e-14)
        assert stepwise.close.tolist() == at_once.close.tolist()
    assert at_once.high.max() <= bars.high.max()
    assert (at_once.ts_ns % coarse.ns == 0).all()


@pytest.mark.parametrize(
    ("base", "coarse", "rule"),
    [
        (Granularity.FOUR_HOUR, Granularity.SIX_HOUR, "whole multiple"),
        (Granularity.ONE_HOUR, Granularity.ONE_MINUTE, "or coarser"),
        (Granularity.ONE_DAY, Granularity.SIX_HOUR, "or coarser"),
    ],
)
def test_what_is_no_multiple_is_refused(base: Granularity, coarse: Granularity, rule: str) -> None:
    with pytest.raises(ResampleError, match=rule) as caught:
        resample(make_bars(4, granularity=base), coarse)
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own error
    assert (again.field, again.rule) == ("granularity", caught.value.rule)
    with pytest.raises(ResampleError):
        require_multiple(base, coarse)


def test_bars_out_of_order_are_refused() -> None:
    with pytest.raises(ResampleError, match=r"ts_ns\[2\].*later"):
        resample(pick(make_bars(4), np.array([0, 2, 1, 3])), TWO)


@pytest.mark.parametrize(
    ("what", "kept", "known"),
    [
        ("known at the close of the last bar of the bucket", [0, 1, 2, 3, 4], [NONE_YET, 0, 0, 1, 1]),
        ("a missing last bar delays it to the next bar there is", [0, 2, 3, 4], [NONE_YET, 0, 1, 1]),
        ("over an empty bucket the last decision stands", [0, 1, 4, 5], [NONE_YET, 0, 0, 1]),
    ],
)
def test_when_a_coarse_bar_is_known(what: str, kept: list[int], known: list[int]) -> None:
    bars = pick(make_bars(6, start_ns=0), np.array(kept, dtype=np.int64))
    assert known_at(resample(bars, TWO), bars).tolist() == known


def test_a_carried_target_stands_until_the_next_coarse_bar_has_ended() -> None:
    bars = make_bars(6, start_ns=0)
    known = known_at(resample(bars, TWO), bars)
    np.testing.assert_array_equal(carried(np.array([1.0, -1.0, 0.0]), known), [math.nan, 1, 1, -1, -1, 0])
    np.testing.assert_array_equal(carried(np.empty(0), np.full(3, NONE_YET)), [math.nan] * 3)


def test_nothing_known_at_a_bar_depends_on_later_bars() -> None:
    bars = pick(make_bars(300), np.random.default_rng(3).permutation(300)[:200])
    bars = pick(bars, np.argsort(bars.ts_ns))
    coarse = resample(bars, Granularity.SIX_HOUR)
    whole = carried(coarse.close, known_at(coarse, bars))
    for cut in range(1, 200, 7):
        head = bars.between(0, cut)
        short = resample(head, Granularity.SIX_HOUR)
        np.testing.assert_array_equal(carried(short.close, known_at(short, head)), whole[:cut])
