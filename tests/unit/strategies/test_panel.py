"""Panels: the union of times, what is absent, and what makes no panel."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from strategies.model import Bars, Granularity
from strategies.panel import PanelError, panel_of
from tests.bar_samples import make_bars, pick, same, with_value

NAN = np.nan


def two_products() -> list[Bars]:
    """BTC in hours 0, 1, 3 and ETH, listed late, in hours 1, 2."""
    btc = pick(make_bars(6, start_ns=0), np.array([0, 1, 3]))
    eth = pick(make_bars(6, "ETH-USD", start_ns=0, seed=8), np.array([1, 2]))
    return [btc, eth]


def test_the_times_are_the_union_and_absent_bars_are_nan() -> None:
    btc, eth = two_products()
    panel = panel_of([btc, eth])
    assert panel.product_ids == ("BTC-USD", "ETH-USD")
    assert (panel.ts_ns // Granularity.ONE_HOUR.ns).tolist() == [0, 1, 2, 3]
    c, d = btc.close, eth.close
    np.testing.assert_array_equal(panel.close, [[c[0], c[1], NAN, c[2]], [NAN, d[0], d[1], NAN]])
    np.testing.assert_array_equal(np.isnan(panel.volume), np.isnan(panel.close))
    assert panel.close.flags.f_contiguous


def test_the_last_close_stands_until_the_next_and_is_0_before_the_first() -> None:
    btc, eth = two_products()
    c, d = btc.close, eth.close
    np.testing.assert_array_equal(panel_of([btc, eth]).last_close(), [[c[0], c[1], c[1], c[2]], [0, d[0], d[1], d[1]]])


def test_a_product_comes_out_as_it_went_in() -> None:
    series = two_products()
    panel = panel_of(series)
    assert all(same(panel.bars(bars.product_id), bars) for bars in series)
    with pytest.raises(PanelError, match="one of BTC-USD, ETH-USD"):
        panel.bars("DOGE-USD")


def test_a_stretch_keeps_every_product() -> None:
    cut = panel_of(two_products()).between(3, 4)
    assert cut.product_ids == ("BTC-USD", "ETH-USD")
    assert np.isnan(cut.close[1]).all()


def changed(name: str, value: float) -> list[Bars]:
    return [make_bars(5), with_value(make_bars(5, "ETH-USD"), name, 3, value)]


@pytest.mark.parametrize(
    ("what", "series", "product", "field"),
    [
        ("nothing", list, "", "series"),
        ("a product without a bar", lambda: [make_bars(5), make_bars(0, "ETH-USD")], "ETH-USD", "bars"),
        ("a product twice", lambda: [make_bars(5), make_bars(5)], "BTC-USD", "product_id"),
        ("two quote currencies", lambda: [make_bars(5), make_bars(5, "ETH-EUR")], "ETH-EUR", "product_id"),
        (
            "two granularities",
            lambda: [make_bars(5), make_bars(5, "ETH-USD", Granularity.ONE_DAY)],
            "ETH-USD",
            "granularity",
        ),
        ("NaN", lambda: changed("close", NAN), "ETH-USD", "close of bar 3"),
        ("an infinite price", lambda: changed("open", np.inf), "ETH-USD", "open of bar 3"),
        ("a price of 0", lambda: changed("low", 0.0), "ETH-USD", "low of bar 3"),
        ("a negative volume", lambda: changed("volume", -1.0), "ETH-USD", "volume of bar 3"),
        ("disorder", lambda: [pick(make_bars(5), np.array([0, 2, 1]))], "BTC-USD", "ts_ns of bar 2"),
        ("a time twice", lambda: [pick(make_bars(5), np.array([0, 1, 1]))], "BTC-USD", "ts_ns of bar 2"),
    ],
)
def test_refused(what: str, series: Callable[[], Sequence[Bars]], product: str, field: str) -> None:
    with pytest.raises(PanelError) as caught:
        panel_of(series())
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own error
    assert (again.product_id, again.field) == (product, field)
