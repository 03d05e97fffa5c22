"""Property: the compiled accounting kernel equals the slow reference on generated bars, targets and costs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from strategies import kernel
from strategies.backtest import BacktestSpec, Costs, Result, run, run_block
from strategies.compiled import read_only
from strategies.metrics import METRICS, NS_PER_YEAR, metrics_of
from strategies.model import Bars, Granularity
from strategies.registry import STRATEGIES
from tests.properties.reference_kernel import ReferenceRun, reference_metrics, reference_run

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "ta4j_coinbase"

# Three decimals keep every real effect far above the 1e-12 within which both kernels call equities equal.
TARGETS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, math.nan]),
    st.integers(-1_000, 1_000).map(lambda value: value / 1_000),
)
# Mostly quiet, sometimes still (equal prices), sometimes a jump that ruins a short.
STEPS = st.one_of(st.floats(0.95, 1.05), st.just(1.0), st.sampled_from([0.3, 1.8, 2.5, 4.0]))


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    """n bars of open and close, n targets that stand for a while, and costs."""
    length = draw(st.integers(1, 40))
    steps = draw(st.lists(STEPS, min_size=2 * length, max_size=2 * length))
    path = np.clip(100.0 * np.cumprod(steps), 1e-6, 1e9)
    stand = draw(st.lists(st.tuples(TARGETS, st.integers(1, 6)), min_size=length, max_size=length))
    target = [value for value, times in stand for _ in range(times)][:length]
    gaps = draw(st.lists(st.integers(1, 5), min_size=length, max_size=length))
    return {
        "target": np.array(target),
        "open": path[0::2].copy(),
        "close": path[1::2].copy(),
        "ts_ns": np.cumsum(np.array(gaps, dtype=np.int64)) * Granularity.ONE_HOUR.ns,
        "fee_bps": draw(st.sampled_from([0.0, 10.0, 60.0, 1_000.0])),
        "slippage_bps": draw(st.sampled_from([0.0, 5.0, 1_000.0])),
        "fill": draw(st.sampled_from(["next_open", "same_close"])),
        "initial_cash": draw(st.sampled_from([1.0, 10_000.0, 1e12])),
    }


def compiled_run(situation: dict[str, Any]) -> tuple[kernel.Outcome, kernel.Trace]:
    terms = kernel.Terms(
        situation["fee_bps"] / 1e4,
        situation["slippage_bps"] / 1e4,
        situation["fill"] == "same_close",
        situation["initial_cash"],
    )
    trace = kernel.new_trace(len(situation["target"]))
    arrays = [read_only(situation[name]) for name in ("open", "close")]
    return kernel.account(situation["target"], arrays[0], arrays[1], terms, trace), trace


def plain_run(situation: dict[str, Any]) -> ReferenceRun:
    costs = {name: situation[name] for name in ("fee_bps", "slippage_bps", "fill", "initial_cash")}
    return reference_run(situation["target"].tolist(), situation["open"].tolist(), situation["close"].tolist(), **costs)


@given(situations())
@settings(max_examples=600, deadline=None)
def test_books_fills_and_metrics_are_equal(situation: dict[str, Any]) -> None:
    outcome, trace = compiled_run(situation)
    reference = plain_run(situation)
    event("ruined" if reference.equity[-1] == 0 else "solvent")
    scale = max(*reference.equity, situation["initial_cash"])
    np.testing.assert_allclose(trace.equity, reference.equity, rtol=1e-9, atol=1e-11 * scale)
    np.testing.assert_allclose(trace.units, reference.units, rtol=1e-9, atol=1e-11 * scale / situation["close"].min())
    assert outcome.fills == len(reference.fills)
    for i, fill in enumerate(reference.fills):
        assert (trace.fill_bar[i], trace.fill_side[i]) == (fill.bar_index, fill.side)
        given_values = (trace.fill_price[i], trace.fill_quantity[i], trace.fill_fee[i])
        np.testing.assert_allclose(given_values, (fill.price, fill.quantity, fill.fee), rtol=1e-7, atol=1e-11 * scale)
    assert_metrics_equal(outcome, reference, situation["ts_ns"])


def assert_metrics_equal(outcome: kernel.Outcome, reference: ReferenceRun, ts_ns: np.ndarray[Any, Any]) -> None:
    years = int(ts_ns[-1] - ts_ns[0]) / NS_PER_YEAR
    got = dict(zip(METRICS, metrics_of(outcome.tallies, years).tolist(), strict=True))
    expected = reference_metrics(reference, ts_ns.tolist())
    bars_per_year = (len(ts_ns) - 1) / years if years else 1.0
    for name in METRICS:
        rel = 1e-8
        if name in {"sharpe", "sortino"} and np.isfinite(expected[name]) and expected[name] != 0:
            # Both divide by a deviation of returns, each of which is rounded to one part in 1e16 of 1: where nearly all
            # returns are alike the deviation is little more than that rounding, and the ratio as uncertain.
            deviation = abs(np.mean(_returns(reference)) / (expected[name] / np.sqrt(bars_per_year)))
            rel += 2e-15 / deviation
        assert got[name] == pytest.approx(expected[name], rel=rel, abs=1e-9, nan_ok=True), name


def _returns(reference: ReferenceRun) -> Any:
    equity = np.array(reference.equity)
    return np.divide(np.diff(equity), equity[:-1], out=np.zeros(len(equity) - 1), where=equity[:-1] > 0)


@given(situations())
@settings(max_examples=200, deadline=None)
def test_cash_is_never_negative_for_targets_from_0_to_1(situation: dict[str, Any]) -> None:
    situation["target"] = np.abs(situation["target"])
    _, trace = compiled_run(situation)
    cash = trace.equity - trace.units * situation["close"]
    assert (cash >= -1e-12 * np.maximum(trace.equity, situation["initial_cash"])).all()
    assert (trace.equity > 0).all()


@given(situations())
@settings(max_examples=200, deadline=None)
def test_equity_is_never_negative_and_ruin_is_for_good(situation: dict[str, Any]) -> None:
    _, trace = compiled_run(situation)
    assert (trace.equity >= 0).all()
    ruined = np.flatnonzero(trace.equity == 0)
    if ruined.size:
        assert (trace.equity[ruined[0] :] == 0).all()
        assert (trace.units[ruined[0] :] == 0).all()


@pytest.mark.parametrize(
    ("target", "last_open"),
    [pytest.param([-1.0, 0.0, 0.0], 250.0, id="at a fill"), pytest.param([-1.0, -1.0, -1.0], 100.0, id="at a close")],
)
def test_ruin_is_the_same_in_both_kernels(target: list[float], last_open: float) -> None:
    situation: dict[str, Any] = {
        "target": np.array(target),
        "open": np.array([100.0, 100.0, last_open]),
        "close": np.array([100.0, 100.0, 250.0]),
        "ts_ns": np.arange(3, dtype=np.int64) * Granularity.ONE_HOUR.ns,
        "fee_bps": 0.0,
        "slippage_bps": 0.0,
        "fill": "next_open",
        "initial_cash": 1_000.0,
    }
    outcome, trace = compiled_run(situation)
    reference = plain_run(situation)
    assert trace.equity.tolist() == reference.equity == [1_000.0, 1_000.0, 0.0]
    assert outcome.fills == len(reference.fills) == 2
    assert_metrics_equal(outcome, reference, situation["ts_ns"])


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data/ta4j_coinbase is absent")
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_on_real_bars_equals_the_reference_to_1e_9(name: str, fill: str) -> None:
    bars = real_bars()
    short = {"allow_short": 1.0}
    spec = BacktestSpec(
        product_id="BTC-USD", granularity=Granularity.FOUR_HOUR, strategy=name, params=short, costs=Costs(fill=fill)
    )
    result = run(spec, bars)
    assert result.look_ahead == (fill == "same_close")
    check_result(result, bars)
    vector = spec.parameters().vector()
    block = run_block(name, vector[np.newaxis], bars, spec.costs)
    np.testing.assert_array_equal(block[0], [result.metrics[metric] for metric in METRICS])


def check_result(result: Result, bars: Bars) -> None:
    costs = result.spec.costs.model_dump(include={"fee_bps", "slippage_bps", "fill", "initial_cash"})
    reference = reference_run(result.target.tolist(), bars.open.tolist(), bars.close.tolist(), **costs)
    np.testing.assert_allclose(result.equity, reference.equity, rtol=1e-9)
    assert result.fills["bar_index"].tolist() == [fill.bar_index for fill in reference.fills]
    assert len(result.fills) > 20
    np.testing.assert_allclose(result.fills["fee"], [fill.fee for fill in reference.fills], rtol=1e-9)
    expected = reference_metrics(reference, bars.ts_ns.tolist())
    assert result.metrics == pytest.approx(expected, rel=1e-9, nan_ok=True)


def real_bars() -> Bars:
    file = next(DATA.rglob("*BTC*4*.json"), None) or next(DATA.rglob("*BTC*.json"))
    candles = json.loads(file.read_text())["candles"]
    columns = {name: [float(candle[name]) for candle in candles] for name in ("open", "high", "low", "close", "volume")}
    starts = np.array([int(candle["start"]) for candle in candles], dtype=np.int64) * 10**9
    order = np.argsort(starts)
    arrays = {name: np.array(values)[order] for name, values in columns.items()}
    return Bars("BTC-USD", Granularity.FOUR_HOUR, starts[order], **arrays)
