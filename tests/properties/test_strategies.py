"""Properties of every registered strategy: plain equals compiled to the last bit, and no look into the future."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from strategies.backtest import BacktestSpec, Costs, run, targets_of
from strategies.base import BarStep, Strategy, own_parameters
from strategies.compiled import plain
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 700
CUTS = (1, 2, 15, 99, 100, 101, 350, 699)


def made_up_bars(kind: str, seed: int = 7, length: int = LENGTH) -> Bars:
    """Bars of the given character: a random walk, equal prices, prices over twenty powers of ten, or a saw."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal(length)
    close = {
        "walk": 100.0 * np.exp(np.cumsum(0.01 * steps)),
        "still": np.full(length, 0.1),
        "wild": 10.0 ** (10.0 * np.sin(np.arange(length) / 40.0) + 0.1 * steps),
        "saw": 100.0 + np.arange(length) % 7 + 1e-9 * steps,
    }[kind]
    open_ = np.concatenate([close[:1], close[:-1]])
    spread = 0.001 * close * (kind != "still")
    high, low = np.maximum(open_, close) + spread, np.minimum(open_, close) - spread
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_HOUR.ns
    volume = random.uniform(0.0, 10.0, length)
    return Bars("BTC-USD", Granularity.ONE_HOUR, ts_ns, open_, high, low, close, volume)


def vectors(strategy: Strategy) -> list[Float64Array]:
    """The defaults, the same with shorts, and random parameters with windows short enough to fill."""
    random = np.random.default_rng(11)
    chosen = [strategy.params().vector()]
    table = own_parameters(strategy)
    while len(chosen) < 12:
        drawn = [
            float(random.integers(int(info.low), int(min(info.high, 130)) + 1))
            if info.kind == "int"
            else random.uniform(info.low, info.high)
            for info in table
        ]
        vector = np.array(drawn)
        if strategy.params.keeps_order(vector[np.newaxis])[0]:
            chosen.append(vector)
    return chosen


def plain_targets(strategy: Strategy, vector: Float64Array, bars: Bars) -> Float64Array:
    """The live path: bar by bar through the interpreter."""
    on_bar = plain(strategy.on_bar)
    state = plain(strategy.start)(vector)
    target = np.empty(len(bars))
    rows = np.stack([bars.open, bars.high, bars.low, bars.close, bars.volume], axis=1).tolist()
    for i, row in enumerate(rows):
        state, target[i] = on_bar(vector, state, BarStep(*row))
    return target


@pytest.mark.parametrize("kind", ["walk", "still", "wild", "saw"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_plain_and_compiled_targets_are_bit_equal(name: str, kind: str) -> None:
    strategy = STRATEGIES[name]
    bars = made_up_bars(kind)
    for vector in vectors(strategy):
        compiled = targets_of(strategy, vector, bars)
        np.testing.assert_array_equal(plain_targets(strategy, vector, bars).view(np.int64), compiled.view(np.int64))


@pytest.mark.parametrize("name", STRATEGIES)
def test_py_func_is_the_same_source(name: str) -> None:
    strategy = STRATEGIES[name]
    bars = made_up_bars("walk", length=150)
    vector = strategy.params().vector()
    state = strategy.start(vector)
    target = np.empty(len(bars))
    for i in range(len(bars)):
        bar = BarStep(bars.open[i], bars.high[i], bars.low[i], bars.close[i], bars.volume[i])
        state, target[i] = strategy.on_bar.py_func(vector, state, bar)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(target.view(np.int64), targets_of(strategy, vector, bars).view(np.int64))


def target_hashes() -> dict[str, str]:
    """One hash over all targets of a strategy: comparable between processes."""
    hashes = {}
    for name, strategy in STRATEGIES.items():
        digest = hashlib.sha256()
        for vector in vectors(strategy)[:4]:
            digest.update(targets_of(strategy, vector, made_up_bars("walk")).tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def test_without_any_compiler_the_targets_are_the_same() -> None:
    code = "import json; from tests.properties.test_strategies import target_hashes; print(json.dumps(target_hashes()))"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    assert json.loads(answer.stdout) == target_hashes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_targets_are_nan_first_and_then_fractions_that_move(name: str) -> None:
    target = targets_of(STRATEGIES[name], STRATEGIES[name].params().vector(), made_up_bars("walk"))
    warm_up = int(np.isnan(target).sum())
    assert 0 < warm_up < 200
    assert np.isnan(target[:warm_up]).all()
    assert (np.abs(target[warm_up:]) <= 1).all()
    assert len(np.unique(target[warm_up:])) > 1


@pytest.mark.parametrize("name", STRATEGIES)
def test_short_targets_come_only_where_they_are_allowed(name: str) -> None:
    params = STRATEGIES[name].params
    bars = made_up_bars("walk")
    assert np.nanmin(targets_of(STRATEGIES[name], params().vector(), bars)) == 0
    assert np.nanmin(targets_of(STRATEGIES[name], params.model_validate({"allow_short": 1}).vector(), bars)) < 0


def changed_pasts(strategy: Strategy, bars: Bars, costs: Costs) -> list[str]:
    """What of the past changes when the future is cut off or is another one: empty for an honest strategy."""
    spec = BacktestSpec(product_id=bars.product_id, granularity=bars.granularity, strategy=strategy.name, costs=costs)
    whole = run(spec, bars)
    changed = []
    for cut in CUTS:
        for future, seen in (("no", bars.between(0, cut)), ("another", _other_future(bars, cut))):
            part = run(spec, seen)
            same = {
                "target": np.array_equal(part.target[:cut].view(np.int64), whole.target[:cut].view(np.int64)),
                "equity": np.array_equal(part.equity[:cut], whole.equity[:cut]),
                "position": np.array_equal(part.position_units[:cut], whole.position_units[:cut]),
                "fills": np.array_equal(
                    part.fills[part.fills["bar_index"] < cut], whole.fills[whole.fills["bar_index"] < cut]
                ),
            }
            changed += [f"{what} before bar {cut} with {future} future" for what, equal in same.items() if not equal]
    return changed


def _other_future(bars: Bars, cut: int) -> Bars:
    def turned(values: Float64Array) -> Float64Array:
        return np.concatenate([values[:cut], values[cut:][::-1] * 1.7])

    return dataclasses.replace(
        bars,
        open=turned(bars.open),
        high=turned(bars.high),
        low=turned(bars.low),
        close=turned(bars.close),
        volume=turned(bars.volume),
    )


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_future_never_changes_the_past(name: str, fill: str) -> None:
    assert changed_pasts(STRATEGIES[name], made_up_bars("walk"), Costs(fill=fill)) == []


def looks_one_bar_ahead(
    vector: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    *_: Float64Array,
) -> Float64Array:
    return np.append(np.where(close[1:] > close[:-1], 1.0, 0.0), 0.0)


def knows_the_mean_of_the_whole_series(
    vector: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    *_: Float64Array,
) -> Float64Array:
    return np.where(close < close.mean(), 1.0, 0.0)


@pytest.mark.parametrize("cheat", [looks_one_bar_ahead, knows_the_mean_of_the_whole_series])
def test_a_cheating_strategy_is_caught(cheat: Callable[..., Float64Array], monkeypatch: pytest.MonkeyPatch) -> None:
    cheating = dataclasses.replace(STRATEGIES["sma_cross"], name="cheating", targets=cheat)
    monkeypatch.setitem(STRATEGIES, "cheating", cheating)
    found = changed_pasts(cheating, made_up_bars("walk"), Costs(fill="same_close"))
    assert any(what.startswith("target") for what in found)
    assert any(what.startswith("equity") for what in found)
