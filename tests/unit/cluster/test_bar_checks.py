"""The rules every bar keeps, as a table: what is broken, which rule is named, in which row."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from cluster.bar_checks import DataError, find_gaps, require_valid
from strategies.model import Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS, make_bars, pick, with_value

HOUR_NS = Granularity.ONE_HOUR.ns

BROKEN: list[tuple[str, int, float, str]] = [
    # column, position, value -> rule
    ("ts_ns", 3, NEW_YEAR_NS + 2 * HOUR_NS, "no duplicate time"),
    ("ts_ns", 3, NEW_YEAR_NS, "times in ascending order"),
    ("ts_ns", 0, -HOUR_NS, "a time from 1970 to 2261"),
    ("ts_ns", 9, 2**63 - 1, "a time from 1970 to 2261"),
    ("ts_ns", 3, NEW_YEAR_NS + 3 * HOUR_NS + 1, "times on the ONE_HOUR grid (UTC)"),
    ("open", 5, math.nan, "a finite open"),
    ("high", 5, math.inf, "a finite high"),
    ("low", 5, -math.inf, "a finite low"),
    ("close", 0, math.nan, "a finite close"),
    ("volume", 9, math.nan, "a finite volume"),
    ("open", 1, 0.0, "a positive open"),
    ("low", 1, -1.0, "a positive low"),
    ("close", 1, 5e-324, "close from 1e-18 to 1e+18"),
    ("high", 1, 1e300, "high from 1e-18 to 1e+18"),
    ("volume", 1, -1e-9, "a volume that is not negative"),
    ("volume", 1, 1e25, "volume up to 1e+24"),
    ("low", 7, 30_000.0, "low <= min(open, close)"),
    ("high", 7, 10_000.0, "max(open, close) <= high"),
    ("open", 7, 10_000.0, "low <= min(open, close)"),
    ("close", 7, 30_000.0, "max(open, close) <= high"),
]


@pytest.mark.parametrize(("name", "index", "value", "rule"), BROKEN)
def test_a_broken_rule_is_named_with_file_and_row(name: str, index: int, value: float, rule: str) -> None:
    with pytest.raises(DataError) as caught:
        require_valid(with_value(make_bars(10), name, index, value), "a.csv", rows=2)
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (error.file, error.row, error.rule) == ("a.csv", index + 2, rule)
    assert str(error).startswith(f"a.csv, row {index + 2}: expected {rule}, was '")


def test_rows_may_come_from_anywhere_in_the_file() -> None:
    with pytest.raises(DataError) as caught:
        require_valid(with_value(make_bars(3), "volume", 1, -1.0), "a.json", rows=np.array([30, 10, 20]))
    assert caught.value.row == 10


@pytest.mark.parametrize("count", [0, 1, 10])
def test_valid_bars_pass(count: int) -> None:
    require_valid(make_bars(count), "a.csv")
    flat = pick(make_bars(count), slice(None))
    for name in ("high", "low", "close"):
        getattr(flat, name)[:] = flat.open
    flat.volume[:] = 0.0
    require_valid(flat, "a.csv")


@pytest.mark.parametrize("name", ["ts_ns", "open", "volume"])
@pytest.mark.parametrize("kind", ["shorter", "two-dimensional", "float32", "list", "objects"])
def test_arrays_of_another_kind_are_refused(name: str, kind: str) -> None:
    bars = make_bars(4)
    columns = {each: getattr(bars, each) for each in ("ts_ns", "open", "high", "low", "close", "volume")}
    columns[name] = {
        "shorter": columns[name][:3],
        "two-dimensional": columns[name].reshape(2, 2),
        "float32": columns[name].astype(np.float32),
        "list": list(columns[name]),
        "objects": columns[name].astype(object),
    }[kind]
    with pytest.raises(DataError, match=name):
        require_valid(Bars(bars.product_id, bars.granularity, *columns.values()), "a.csv")


@pytest.mark.parametrize(
    "product_id", ["", "BTC", "BTC-", "-USD", "btc-usd", "BTC-USD-X", "BTC/USD", "../x-USD", "B T-USD"]
)
def test_a_product_id_is_base_and_quote(product_id: str) -> None:
    with pytest.raises(DataError, match="BASE-QUOTE"):
        require_valid(make_bars(3, product_id), "a.csv")


def test_gaps_are_found_with_their_ends_and_size() -> None:
    bars = pick(make_bars(20), np.r_[2:5, 6:9, 19:20])
    found = [(gap.start_ns, gap.end_ns, gap.missing) for gap in find_gaps(bars.ts_ns, bars.granularity)]
    hour = [NEW_YEAR_NS + position * HOUR_NS for position in range(20)]
    assert found == [(hour[5], hour[6], 1), (hour[9], hour[19], 10)]
    assert find_gaps(make_bars(0).ts_ns, bars.granularity) == []
    with_ends = find_gaps(bars.ts_ns, bars.granularity, hour[0], hour[19] + 3 * HOUR_NS)
    assert [gap.missing for gap in with_ends] == [2, 1, 10, 2]
    assert [gap.missing for gap in find_gaps(make_bars(0).ts_ns, bars.granularity, hour[0], hour[7])] == [7]


def test_a_sieve_of_bars_has_a_bounded_list_of_gaps_that_loses_no_missing_bar() -> None:
    bars = pick(make_bars(300_000), slice(None, None, 3))
    gaps = find_gaps(bars.ts_ns, bars.granularity)
    assert len(gaps) == 10_001
    assert sum(gap.missing for gap in gaps) == 2 * 99_999
    assert gaps[-1].detail.startswith("89999 more gaps with 179998 bars missing")
    assert gaps[-1].start_ns > gaps[-2].end_ns
    assert find_gaps(make_bars(9).ts_ns, bars.granularity) == []
