"""Property: the general kernel equals the slow reference on generated bars, targets, costs, sizes and rules."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from strategies import kernel
from strategies.backtest import tape_of
from strategies.compiled import read_only
from strategies.metrics import METRICS, NS_PER_YEAR, metrics_of, moments_of
from strategies.model import Bars, Float64Array, Granularity
from strategies.rules import Rules
from strategies.spec import Costs, Sizing
from tests.properties.reference_kernel import ReferenceBars, ReferenceRun, Terms, reference_general, reference_metrics

TARGETS = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, math.nan]),
    st.integers(-1_000, 1_000).map(lambda value: value / 1_000),
)
STEPS = st.one_of(st.floats(0.95, 1.05), st.just(1.0), st.sampled_from([0.7, 1.4, 2.3]))
# Uneven numbers: a stop that a low reaches to the last bit would be a matter of rounding.
STOPS = st.sampled_from([0.0, 0.0, 0.013577, 0.0436871, 0.2134567])
# What a situation has besides fee and slippage: nothing, one thing, or everything at once.
OFF = Terms()


@st.composite
def markets(draw: st.DrawFn, length: int) -> Bars:
    """Bars of which some stand still, some have no volume, and some are farther apart in time."""
    steps = np.array(draw(st.lists(STEPS, min_size=2 * length, max_size=2 * length)))
    path = np.clip(100.0 * np.cumprod(steps), 1e-3, 1e6)
    open_, close = path[0::2].copy(), path[1::2].copy()
    still = np.array(draw(st.lists(st.integers(0, 9), min_size=length, max_size=length))) == 0
    open_[still] = close[still]
    reach = np.array(draw(st.lists(st.floats(0.0, 0.06), min_size=2 * length, max_size=2 * length)))
    reach[: 2 * length : 2][still] = reach[1 : 2 * length : 2][still] = 0.0
    high, low = np.maximum(open_, close) * (1.0 + reach[0::2]), np.minimum(open_, close) * (1.0 - reach[1::2])
    volume = np.array(draw(st.lists(st.sampled_from([0.0, 3.7, 50.3, 1e6]), min_size=length, max_size=length)))
    gaps = draw(st.lists(st.sampled_from([1, 1, 5, 400]), min_size=length, max_size=length))
    ts_ns = np.cumsum(np.array(gaps, dtype=np.int64)) * Granularity.ONE_HOUR.ns
    return Bars("BTC-USD", Granularity.ONE_HOUR, ts_ns, open_, high, low, close, volume)


@st.composite
def terms(draw: st.DrawFn) -> Terms:
    """Each rule is off in about half of the situations."""

    def some(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    return Terms(
        initial_cash=some(1_000.0, 1e6),
        fee_bps=some(0.0, 10.0, 60.0, 1_000.0),
        slippage_bps=some(0.0, 5.0, 300.0),
        fill=some("next_open", "same_close"),
        spread_bps=some(0.0, 7.0),
        impact=some(0.0, 0.0, 0.13),
        max_volume_share=some(0.0, 0.0, 0.1, 0.9),
        fee_tiers=some((), ((1_234.5, 7.0), (54_321.9, 3.0))),
        funding_bps_per_day=some(0.0, 11.0, -9.0),
        borrow_bps_per_day=some(0.0, 17.0),
        maintenance_margin=some(0.0, 0.05317, 0.3),
        both_in_bar=some("stop_first", "target_first"),
        zero_volume=some("waits", "fills"),
        locked_bars=some("fills", "waits"),
        at_end=some("hold", "liquidate"),
        kind=some("percent", "percent", "units", "notional", "volatility"),
        window=some(2, 5),
        min_quantity=some(0.0, 0.0, 0.77),
        quantity_increment=some(0.0, 0.0, 0.1, 1.0),
        stop_loss=draw(STOPS),
        take_profit=draw(STOPS),
        trailing_stop=draw(STOPS),
        time_stop_bars=some(0, 0, 1, 3),
        size=some(1.0, 0.35, 2.5, 12.3),
        leverage=some(1.0, 0.5, 3.0, 10.0),
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[Float64Array, Bars, Terms]:
    """Targets that stand for a while, bars and terms."""
    length = draw(st.integers(1, 40))
    stand = draw(st.lists(st.tuples(TARGETS, st.integers(1, 8)), min_size=length, max_size=length))
    target = [value for value, times in stand for _ in range(times)][:length]
    return np.array(target), draw(markets(length)), draw(terms())


def compiled_run(
    target: Float64Array, bars: Bars, agreed: Terms, cuts: Any = ()
) -> tuple[kernel.Outcome, kernel.Trace, Float64Array]:
    """The kernel on the same terms, by way of the specification's own classes."""
    given_terms = dataclasses.asdict(agreed)
    costs = Costs.model_validate({name: given_terms[name] for name in Costs.model_fields})
    sizing = Sizing.model_validate({name: given_terms[name] for name in Sizing.model_fields if name in given_terms})
    rules = Rules.model_validate({name: given_terms[name] for name in Rules.model_fields})
    conditions = kernel.conditions_of(costs, sizing, rules.vector())
    trace = kernel.new_trace(len(bars))
    moments = np.empty((max(len(cuts) - 1, 0), 6))
    borders = read_only(np.array(cuts, dtype=np.int64))
    tape, tiers = tape_of(bars, sizing), kernel.tiers_of(costs)
    return kernel.simulate(target, tape, conditions, tiers, borders, moments, trace), trace, moments


def plain_run(target: Float64Array, bars: Bars, agreed: Terms) -> ReferenceRun:
    columns = [array.tolist() for array in (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.ts_ns)]
    return reference_general(target.tolist(), ReferenceBars(*columns), agreed)


@given(situations())
@settings(max_examples=1_000, deadline=None)
def test_books_fills_and_metrics_are_equal(situation: tuple[Float64Array, Bars, Terms]) -> None:
    _, bars, agreed = situation
    reference = plain_run(*situation)
    cuts = [0, *range(1, len(bars), 7), len(bars)]
    outcome, trace, moments = compiled_run(*situation, cuts=cuts)
    event("ruined" if reference.equity[-1] == 0 else "solvent")
    event(f"kind {agreed.kind}")
    assert outcome.fault == kernel.OK
    scale = max(*reference.equity, agreed.initial_cash)
    # Money that was nearly lost and made again carries the rounding of all that was there before.
    np.testing.assert_allclose(trace.equity, reference.equity, rtol=1e-8, atol=1e-11 * scale)
    np.testing.assert_allclose(trace.units, reference.units, rtol=1e-8, atol=1e-11 * scale / bars.close.min())
    assert outcome.fills == len(reference.fills)
    for i, fill in enumerate(reference.fills):
        assert (trace.fill_bar[i], trace.fill_side[i]) == (fill.bar_index, fill.side)
        values = (trace.fill_price[i], trace.fill_quantity[i], trace.fill_fee[i])
        np.testing.assert_allclose(values, (fill.price, fill.quantity, fill.fee), rtol=1e-7, atol=1e-11 * scale)
    expected = np.empty_like(moments)
    moments_of(trace.equity, read_only(np.array(cuts)), agreed.initial_cash, expected)
    np.testing.assert_allclose(moments, expected, rtol=1e-9, atol=1e-12)
    assert_metrics_equal(outcome, reference, bars.ts_ns)


def assert_metrics_equal(outcome: kernel.Outcome, reference: ReferenceRun, ts_ns: Any) -> None:
    years = int(ts_ns[-1] - ts_ns[0]) / NS_PER_YEAR
    got = dict(zip(METRICS, metrics_of(outcome.tallies, years).tolist(), strict=True))
    expected = reference_metrics(reference, ts_ns.tolist())
    for name in METRICS:
        rel = 1e-7
        if name in {"sharpe", "sortino"} and got["volatility"] < 1e-4:
            rel = 1e-3  # little more than the rounding of the returns is left to divide by
        assert got[name] == pytest.approx(expected[name], rel=rel, abs=1e-9, nan_ok=True), name
