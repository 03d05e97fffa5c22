"""Properties of every cross-sectional strategy: plain equals compiled to the last bit, and no look into the future."""

from __future__ import annotations

import math

import numpy as np
import pytest

from strategies.base import own_parameters
from strategies.compiled import plain
from strategies.cross_section import CrossSection, PanelStep, natural_log
from strategies.model import Bars, Float64Array, Granularity
from strategies.panel import Panel, panel_of
from strategies.portfolio import evaluate, run, weights_of
from strategies.registry import CROSS_SECTIONS
from strategies.spec import BacktestSpec, Costs
from tests.bar_samples import pick

LENGTH = 500
CUTS = (1, 2, 15, 99, 100, 101, 350, 499)
NAMES = ("BTC-USD", "ETH-USD", "SOL-USD", "LTC-USD")


def made_up_panel(kind: str, products: int, seed: int = 7) -> Panel:
    """Products that walk together, stand still or jump, with holes, a late listing and a delisting."""
    random = np.random.default_rng(seed)
    common = np.cumsum(0.01 * random.standard_normal(LENGTH))
    series = []
    for q in range(products):
        own = 0.02 * np.sin(np.arange(LENGTH) / (9 + q)) + 0.003 * np.cumsum(random.standard_normal(LENGTH))
        close = {
            "walk": 100.0 * np.exp(common + own),
            "still": np.full(LENGTH, 0.1 * (q + 1)),
            "wild": 10.0 ** (10.0 * np.sin(np.arange(LENGTH) / 40.0) + 0.1 * random.standard_normal(LENGTH)),
        }[kind]
        open_ = np.concatenate([close[:1], close[:-1]])
        ts_ns = np.arange(LENGTH, dtype=np.int64) * Granularity.ONE_HOUR.ns
        high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
        there = random.random(LENGTH) < (1.0 if q == 0 else 0.95)
        there[: 60 * q] &= q != 2
        there[400:] &= q != 3
        bars = Bars(NAMES[q], Granularity.ONE_HOUR, ts_ns, open_, high, low, close, random.uniform(0.1, 9, LENGTH))
        series.append(pick(bars, there))
    return panel_of(series)


def vectors(strategy: CrossSection, products: int) -> list[Float64Array]:
    """Random parameters with windows short enough to fill."""
    random = np.random.default_rng(11)
    chosen: list[Float64Array] = []
    while len(chosen) < 10:
        drawn = []
        for info in own_parameters(strategy):
            high = min(info.high, products if info.name in strategy.counts else 60)
            drawn.append(
                float(random.integers(int(info.low), int(high) + 1))
                if info.kind == "int"
                else random.uniform(info.low, min(info.high, 4.0))
            )
        vector = np.array(drawn)
        if strategy.params.keeps_order(vector[np.newaxis])[0]:
            chosen.append(vector)
    return chosen


def plain_weights(strategy: CrossSection, vector: Float64Array, panel: Panel) -> Float64Array:
    """Time by time through the interpreter."""
    on_bars = plain(strategy.on_bars)
    state = plain(strategy.start)(vector, len(panel.product_ids))
    rows = []
    for i in range(len(panel)):
        step = PanelStep(panel.open[:, i], panel.high[:, i], panel.low[:, i], panel.close[:, i], panel.volume[:, i])
        state, weights = on_bars(vector, state, step)
        rows.append(weights.copy())
    return np.array(rows).T


of_each: pytest.MarkDecorator = pytest.mark.parametrize("name", list(CROSS_SECTIONS))


def spliced(panel: Panel, other: Panel, cut: int) -> Panel:
    """The one up to a time, the other from then on."""
    names = ("open", "high", "low", "close", "volume")
    values = (np.concatenate([getattr(panel, n)[:, :cut], getattr(other, n)[:, cut:]], axis=1) for n in names)
    return Panel(panel.product_ids, panel.granularity, panel.ts_ns, *values)


def spec_of(name: str, panel: Panel, params: dict[str, float]) -> BacktestSpec:
    ids = panel.product_ids
    return BacktestSpec(product_id=ids[0], product_ids=ids, granularity=panel.granularity, strategy=name, params=params)


def products_of(strategy: CrossSection) -> int:
    return min(strategy.products_max, len(NAMES))


@pytest.mark.parametrize("kind", ["walk", "still", "wild"])
@of_each
def test_plain_and_compiled_weights_are_bit_equal(name: str, kind: str) -> None:
    strategy = CROSS_SECTIONS[name]
    panel = made_up_panel(kind, products_of(strategy))
    asked = 0
    for vector in vectors(strategy, products_of(strategy)):
        compiled = weights_of(strategy, vector, panel)
        assert plain_weights(strategy, vector, panel).tobytes() == compiled.tobytes(), vector
        asked += int(np.count_nonzero(~np.isnan(compiled)))
    assert asked > 20 or kind == "still"


@of_each
def test_weights_are_in_range_and_add_up_to_1_at_most(name: str) -> None:
    strategy = CROSS_SECTIONS[name]
    for kind in ("walk", "wild"):
        panel = made_up_panel(kind, products_of(strategy))
        for vector in vectors(strategy, products_of(strategy)):
            weights = np.nan_to_num(weights_of(strategy, vector, panel))
            assert (np.abs(weights).sum(axis=0) <= 1 + 1e-12).all(), vector


@of_each
def test_changing_any_bar_after_one_changes_no_weight_up_to_it(name: str) -> None:
    strategy = CROSS_SECTIONS[name]
    panel = made_up_panel("walk", products_of(strategy))
    other = made_up_panel("wild", products_of(strategy), seed=8)
    for vector in vectors(strategy, products_of(strategy)):
        whole = weights_of(strategy, vector, panel)
        for cut in CUTS:
            changed = spliced(panel, other, cut)
            np.testing.assert_array_equal(weights_of(strategy, vector, changed)[:, :cut], whole[:, :cut])
            np.testing.assert_array_equal(weights_of(strategy, vector, panel.between(0, cut)), whole[:, :cut])


@of_each
def test_equity_up_to_a_bar_depends_on_nothing_after_it(name: str) -> None:
    strategy = CROSS_SECTIONS[name]
    panel = made_up_panel("walk", products_of(strategy))
    window: dict[str, dict[str, float]]
    window = {"momentum_rotation": {"lookback": 20, "every": 5, "top": 2}, "pairs": {"window": 40, "entry": 1.0}}
    spec = BacktestSpec(
        product_id=NAMES[0],
        product_ids=panel.product_ids,
        granularity=panel.granularity,
        strategy=name,
        params=window[name],
    )
    whole = run(spec, panel)
    assert len(whole.fills) > 10
    for cut in CUTS:
        np.testing.assert_array_equal(run(spec, panel.between(0, cut)).equity, whole.equity[:cut])


@of_each
def test_a_block_and_a_single_run_give_the_same_metrics(name: str) -> None:
    strategy = CROSS_SECTIONS[name]
    panel = made_up_panel("walk", products_of(strategy))
    rows = np.array(vectors(strategy, products_of(strategy)))
    cuts = np.array([0, 200, 350, LENGTH])
    block = evaluate(name, rows, panel, Costs(), cuts=cuts)
    for row, vector in enumerate(rows):
        params = dict(zip(strategy.params.names(), vector.tolist(), strict=True))
        spec = BacktestSpec(
            product_id=NAMES[0],
            product_ids=panel.product_ids,
            granularity=panel.granularity,
            strategy=name,
            params=params,
        )
        result = run(spec, panel)
        np.testing.assert_array_equal(block.metrics[row], list(result.metrics.values()))
        returns = np.diff(result.equity) / result.equity[:-1]
        np.testing.assert_allclose(block.moments[row, 1, 1], returns[199:349].sum(), rtol=1e-9, atol=1e-15)
        growth = block.moments[row, :, 5].sum()
        assert growth == pytest.approx(math.log1p(result.metrics["total_return"]), abs=1e-12)


def test_the_logarithm_is_right_and_the_same_plain_and_compiled() -> None:
    random = np.random.default_rng(5)
    uncompiled = plain(natural_log)
    values = [*np.exp(random.uniform(-40, 40, 2_000)), *(1 + random.uniform(-0.3, 0.3, 2_000)), 1.0, 1e-18, 1e18, 0.5]
    for value in map(float, values):
        assert natural_log(value) == uncompiled(value)
        assert natural_log(value) == pytest.approx(math.log(value), rel=4e-16, abs=4e-16)
