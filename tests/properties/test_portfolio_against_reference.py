"""Property: the compiled portfolio kernel equals the slow reference, and with one product the kernel for one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from strategies import kernel, portfolio_kernel
from strategies.compiled import read_only
from strategies.metrics import NS_PER_YEAR, metrics_of
from strategies.model import Float64Array
from tests.properties.reference_kernel import ReferenceRun
from tests.properties.reference_portfolio import Portfolio, Rules, reference_portfolio
from tests.properties.test_kernel_against_reference import assert_metrics_equal, situations

HOUR_NS = 3_600 * 10**9


@st.composite
def portfolios(draw: st.DrawFn) -> dict[str, Any]:
    """n bars of p products with holes, late listings and delistings; weights now and then; rules.

    The numbers come from a generator with a drawn seed: drawing each of them took seconds an example.
    """
    bars, products = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    quiet = random.uniform(0.95, 1.05, (2 * bars, products))
    jumps = random.choice([0.3, 1.8, 2.5, 4.0], (2 * bars, products))
    steps = np.where(random.random(quiet.shape) < draw(st.sampled_from([0.0, 0.05, 0.2])), jumps, quiet)
    steps[random.random(quiet.shape) < 0.1] = 1.0
    path = np.clip(random.choice([1.0, 100.0, 3e4], products) * np.cumprod(steps, axis=0), 1e-6, 1e9)
    there = random.random((bars, products)) < draw(st.sampled_from([1.0, 0.7]))
    for q in range(products):
        if random.random() < 0.3:
            listed, gone = sorted(random.integers(0, bars + 1, 2))
            there[:listed, q] = there[gone:, q] = False
    # Sixteenths: sums of weights are exact, so whether they exceed the leverage is no matter of rounding.
    weights = random.integers(-16 * draw(st.booleans()), 17, (bars, products)) / 16
    share = draw(st.sampled_from([1, products]))
    weights[random.random(weights.shape) < 0.3] = np.nan
    weights[random.random(bars) < draw(st.sampled_from([0.0, 0.5]))] = np.nan
    prices = {"open": path[0::2], "close": path[1::2], "volume": random.choice([0.0, 1.0, 5.0], (bars, products))}
    return {
        "weights": np.round(weights / share * 16) / 16,
        **{name: np.where(there, values, np.nan) for name, values in prices.items()},
        "rules": Rules(
            fee=draw(st.sampled_from([0.0, 0.001, 0.006, 0.1])),
            slippage=draw(st.sampled_from([0.0, 0.0005, 0.1])),
            fill=draw(st.sampled_from(["next_open", "same_close"])),
            needs_volume=draw(st.booleans()),
            initial_cash=draw(st.sampled_from([1.0, 10_000.0])),
            size=draw(st.sampled_from([1.0, 1.0, 0.5, 3.0])),
            leverage=draw(st.sampled_from([1.0, 1.0, 0.25, 2.5])),
        ),
    }


def last_close(close: Float64Array) -> Float64Array:
    """The latest close so far, 0 before the first: float64[n, p]."""
    result = np.zeros_like(close)
    for i, row in enumerate(close):
        result[i] = np.where(np.isnan(row), result[i - 1] if i else 0.0, row)
    return result


def compiled_portfolio(situation: dict[str, Any]) -> tuple[kernel.Outcome, portfolio_kernel.Trace]:
    rules, close = situation["rules"], situation["close"]
    decisions = portfolio_kernel.decisions_of(situation["weights"])
    arrays = (situation["open"], close, situation["volume"], last_close(close))
    terms = portfolio_kernel.Terms(
        rules.fee,
        rules.slippage,
        rules.fill == "same_close",
        rules.needs_volume,
        rules.initial_cash,
        rules.size,
        rules.leverage,
    )
    trace = portfolio_kernel.new_trace(close.shape[0], close.shape[1], decisions)
    prices = portfolio_kernel.Prices(*(read_only(array) for array in arrays))
    return portfolio_kernel.account(decisions, prices, terms, trace), trace


def plain_portfolio(situation: dict[str, Any]) -> Portfolio:
    weights, open_, close, volume = (situation[name].tolist() for name in ("weights", "open", "close", "volume"))
    return reference_portfolio(weights, open_, close, volume, situation["rules"])


@given(portfolios())
@settings(max_examples=300, deadline=None)
def test_books_fills_and_metrics_are_equal(situation: dict[str, Any]) -> None:
    outcome, trace = compiled_portfolio(situation)
    reference = plain_portfolio(situation)
    assert outcome.fault == kernel.OK
    event("ruined" if reference.ruined else "solvent")
    event(f"{min(len(reference.fills), 3)} fills or more")
    scale = max(*reference.run.equity, situation["rules"].initial_cash)
    np.testing.assert_allclose(trace.equity, reference.run.equity, rtol=1e-8, atol=1e-10 * scale)
    cheapest = np.nanmin(situation["close"], initial=1e9)
    np.testing.assert_allclose(trace.units, reference.history, rtol=1e-8, atol=1e-10 * scale / cheapest)
    got = [(int(trace.fill_bar[i]), int(trace.fill_product[i]), trace.fill_side[i]) for i in range(outcome.fills)]
    assert got == [(fill.bar_index, fill.product, fill.side) for fill in reference.fills]
    for i, fill in enumerate(reference.fills):
        numbers = (trace.fill_price[i], trace.fill_quantity[i], trace.fill_fee[i])
        expected = (fill.price, fill.quantity, fill.fee)
        np.testing.assert_allclose(numbers, expected, rtol=1e-6, atol=1e-10 * scale / min(cheapest, 1.0))
    ts_ns = np.arange(len(trace.equity), dtype=np.int64) * HOUR_NS
    if scale < 1e6 * situation["rules"].initial_cash and not _too_close(reference.run):
        assert_metrics_equal(outcome, reference.run, ts_ns)


def _too_close(run: ReferenceRun) -> bool:
    """Whether a round trip ended so near to break-even that its side is a matter of rounding."""
    return any(abs(gain) < 1e-9 * stake for stake, gain in run.trades)


@given(portfolios())
@settings(max_examples=150, deadline=None)
def test_cash_is_never_negative_without_leverage(situation: dict[str, Any]) -> None:
    _, trace = compiled_portfolio(situation)
    cash = trace.equity - (trace.units * last_close(situation["close"])).sum(axis=1)
    if situation["rules"].leverage <= 1.0:
        assert (cash >= -1e-9 * np.maximum.accumulate(trace.equity)).all()
    assert (trace.equity >= 0).all()


@given(portfolios())
@settings(max_examples=100, deadline=None)
def test_nothing_is_traded_where_there_is_no_bar(situation: dict[str, Any]) -> None:
    outcome, trace = compiled_portfolio(situation)
    reference = plain_portfolio(situation)
    ruin_bar = next((i for i, equity in enumerate(reference.run.equity) if equity == 0), None)
    for i in range(outcome.fills):
        bar, product = int(trace.fill_bar[i]), int(trace.fill_product[i])
        assert bar == ruin_bar or not np.isnan(situation["close"][bar, product])
        if situation["rules"].needs_volume:
            assert bar == ruin_bar or situation["volume"][bar, product] > 0


@given(situations())
@settings(max_examples=150, deadline=None)
def test_one_product_is_equal_to_the_kernel_for_one_to_the_last_bit(situation: dict[str, Any]) -> None:
    terms = kernel.Terms(
        situation["fee_bps"] / 1e4,
        situation["slippage_bps"] / 1e4,
        situation["fill"] == "same_close",
        situation["initial_cash"],
    )
    single_trace = kernel.new_trace(len(situation["target"]))
    prices = [read_only(situation[name]) for name in ("open", "close")]
    single = kernel.account(situation["target"], prices[0], prices[1], terms, single_trace)
    rules = Rules(terms.fee, terms.slippage, situation["fill"], False, terms.initial_cash)
    columns = {name: situation[name][:, np.newaxis] for name in ("open", "close")}
    weights = portfolio_kernel.orders_of(situation["target"])[:, np.newaxis]
    outcome, trace = compiled_portfolio(
        {"weights": weights, **columns, "volume": np.zeros_like(weights), "rules": rules}
    )
    assert trace.equity.tobytes() == single_trace.equity.tobytes()
    np.testing.assert_array_equal(trace.units[:, 0], single_trace.units)
    assert (outcome.fills, outcome.fault) == (single.fills, single.fault)
    for name in ("fill_bar", "fill_side", "fill_price", "fill_quantity", "fill_fee"):
        got, expected = getattr(trace, name)[: outcome.fills], getattr(single_trace, name)[: single.fills]
        np.testing.assert_array_equal(got, expected)
    years = int(situation["ts_ns"][-1] - situation["ts_ns"][0]) / NS_PER_YEAR
    # Sums over returns are taken in another order there, block by block.
    np.testing.assert_allclose(
        metrics_of(outcome.tallies, years), metrics_of(single.tallies, years), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("bad", [1.0000001, -1.5, math.inf, -math.inf])
@pytest.mark.parametrize("bar", [0, 1, 2])
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_a_weight_out_of_range_is_a_fault_wherever_it_stands(bad: float, bar: int, fill: str) -> None:
    weights = np.full((3, 2), np.nan)
    weights[bar, 1] = bad
    prices = np.full((3, 2), 10.0)
    situation = {"weights": weights, "open": prices, "close": prices, "volume": prices, "rules": Rules(fill=fill)}
    outcome, _ = compiled_portfolio(situation)
    assert (outcome.fault, outcome.fault_bar) == (kernel.TARGET_OUT_OF_RANGE, bar)
