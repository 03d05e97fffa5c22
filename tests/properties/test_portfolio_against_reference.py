"""Property: the compiled portfolio kernel equals the slow reference, and with one product the kernel for one."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from strategies import kernel, portfolio_kernel
from strategies.metrics import NS_PER_YEAR, metrics_of
from strategies.model import Bars, Float64Array
from strategies.panel import Panel, panel_of
from tests.properties.reference_kernel import ReferenceRun, Terms
from tests.properties.reference_portfolio import Market, Portfolio, reference_portfolio
from tests.properties.test_general_against_reference import compiled_run, situations, terms
from tests.properties.test_kernel_against_reference import assert_metrics_equal
from tests.unit.strategies.portfolios import VALUES, books_of, panel_from

PLAIN = Terms(initial_cash=1_000.0, zero_volume="fills")


@dataclasses.dataclass
class Situation:
    """Weights float64[n, p], a panel, what was agreed, and the products' own least quantity and increment."""

    weights: Float64Array
    panel: Panel
    agreed: Terms
    quantities: list[tuple[float, float]]


@st.composite
def plain_terms(draw: st.DrawFn) -> Terms:
    """Costs and sizes only: nothing that stops or holds back an order."""
    return dataclasses.replace(
        PLAIN,
        fee_bps=draw(st.sampled_from([0.0, 10.0, 60.0, 1_000.0])),
        slippage_bps=draw(st.sampled_from([0.0, 5.0, 1_000.0])),
        fill=draw(st.sampled_from(["next_open", "same_close"])),
        zero_volume=draw(st.sampled_from(["waits", "fills"])),
        initial_cash=draw(st.sampled_from([1.0, 10_000.0])),
        size=draw(st.sampled_from([1.0, 1.0, 0.5, 3.0])),
        leverage=draw(st.sampled_from([1.0, 1.0, 0.25])),
    )


@st.composite
def portfolios(draw: st.DrawFn, agreed: st.SearchStrategy[Terms] | None = None) -> Situation:
    """n bars of p products with holes, late listings and delistings; weights now and then; terms.

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
    opens, closes = path[0::2].copy(), path[1::2]
    still = random.random(opens.shape) < 0.1
    opens[still] = closes[still]
    reach = np.where(still, 0.0, random.uniform(0.0, 0.06, (2, *opens.shape)))
    columns = {
        "open": opens,
        "high": np.maximum(opens, closes) * (1.0 + reach[0]),
        "low": np.minimum(opens, closes) * (1.0 - reach[1]),
        "close": closes,
        "volume": random.choice([0.0, 3.7, 50.3, 1e6], (bars, products)),
    }
    hours = np.cumsum(random.choice([1, 1, 5, 400], bars))
    panel = panel_from({name: np.where(there, values, np.nan) for name, values in columns.items()}, hours)
    chosen = draw(plain_terms() if agreed is None else agreed)
    quantities = [(chosen.min_quantity, chosen.quantity_increment)] * products
    if agreed is not None and draw(st.booleans()):
        quantities = [(float(random.choice([0.0, 0.77])), float(random.choice([0.0, 0.1]))) for _ in quantities]
    return Situation(np.round(weights / share * 16) / 16, panel, chosen, quantities)


def compiled_portfolio(situation: Situation) -> tuple[kernel.Outcome, portfolio_kernel.Trace]:
    panel, agreed = situation.panel, dataclasses.asdict(situation.agreed)
    named = {
        name: {"min_quantity": least, "quantity_increment": increment}
        for name, (least, increment) in zip(panel.product_ids, situation.quantities, strict=True)
    }
    return books_of(situation.weights, panel, agreed | {"quantities": named})


def plain_portfolio(situation: Situation) -> Portfolio:
    panel = situation.panel
    columns = {name: getattr(panel, name).T.tolist() for name in VALUES}
    market = Market(**columns, ts_ns=panel.ts_ns.tolist())
    return reference_portfolio(situation.weights.tolist(), market, situation.agreed, situation.quantities)


def assert_equal_to_the_reference(situation: Situation) -> None:
    outcome, trace = compiled_portfolio(situation)
    reference = plain_portfolio(situation)
    assert outcome.fault == kernel.OK
    event("ruined" if reference.ruined else "solvent")
    event(f"{min(len(reference.fills), 3)} fills or more")
    scale = max(*reference.run.equity, situation.agreed.initial_cash)
    got = [(int(trace.fill_bar[i]), int(trace.fill_product[i]), trace.fill_side[i]) for i in range(outcome.fills)]
    assert got == [(fill.bar_index, fill.product, fill.side) for fill in reference.fills]
    np.testing.assert_allclose(trace.equity, reference.run.equity, rtol=1e-8, atol=1e-10 * scale)
    cheapest = np.nanmin(situation.panel.close, initial=1e9)
    np.testing.assert_allclose(trace.units, reference.history, rtol=1e-8, atol=1e-10 * scale / cheapest)
    for i, fill in enumerate(reference.fills):
        numbers = (trace.fill_price[i], trace.fill_quantity[i], trace.fill_fee[i])
        expected = (fill.price, fill.quantity, fill.fee)
        np.testing.assert_allclose(numbers, expected, rtol=1e-6, atol=1e-10 * scale / min(cheapest, 1.0))
    if scale < 1e6 * situation.agreed.initial_cash and not _too_close(reference.run):
        assert_metrics_equal(outcome, reference.run, situation.panel.ts_ns)


@given(portfolios())
@settings(max_examples=300, deadline=None)
def test_books_fills_and_metrics_are_equal(situation: Situation) -> None:
    assert_equal_to_the_reference(situation)


@given(portfolios(terms()))
@settings(max_examples=600, deadline=None)
def test_books_fills_and_metrics_are_equal_with_every_cost_size_and_rule(situation: Situation) -> None:
    event(f"kind {situation.agreed.kind}")
    assert_equal_to_the_reference(situation)


def _too_close(run: ReferenceRun) -> bool:
    """Whether a round trip ended so near to break-even that its side is a matter of rounding."""
    return any(abs(gain) < 1e-9 * stake for stake, gain in run.trades)


@given(portfolios())
@settings(max_examples=150, deadline=None)
def test_cash_is_never_negative_without_leverage(situation: Situation) -> None:
    _, trace = compiled_portfolio(situation)
    cash = trace.equity - (trace.units * situation.panel.last_close().T).sum(axis=1)
    assert (cash >= -1e-9 * np.maximum.accumulate(trace.equity)).all()
    assert (trace.equity >= 0).all()


@given(portfolios(terms()))
@settings(max_examples=100, deadline=None)
def test_nothing_is_traded_where_there_is_no_bar(situation: Situation) -> None:
    outcome, trace = compiled_portfolio(situation)
    reference = plain_portfolio(situation)
    ruin_bar = next((i for i, equity in enumerate(reference.run.equity) if equity == 0), None)
    for i in range(outcome.fills):
        bar, product = int(trace.fill_bar[i]), int(trace.fill_product[i])
        assert bar == ruin_bar or not np.isnan(situation.panel.close[product, bar])
        if situation.agreed.zero_volume == "waits" and situation.agreed.at_end == "hold":
            assert bar == ruin_bar or situation.panel.volume[product, bar] > 0


@given(situations())
@settings(max_examples=600, deadline=None)
def test_one_product_is_equal_to_the_kernel_for_one_to_the_last_bit(
    situation: tuple[Float64Array, Bars, Terms],
) -> None:
    target, bars, agreed = situation
    single, single_trace, _ = compiled_run(target, bars, agreed)
    weights = portfolio_kernel.orders_of(target)[:, np.newaxis]
    quantities = [(agreed.min_quantity, agreed.quantity_increment)]
    outcome, trace = compiled_portfolio(Situation(weights, panel_of([bars]), agreed, quantities))
    assert (outcome.fills, outcome.fault) == (single.fills, single.fault)
    # Interest is added up in another order there, so everything after it is equal but for rounding.
    charged = agreed.funding_bps_per_day != 0 or agreed.borrow_bps_per_day != 0
    scale = max(single_trace.equity.max(), agreed.initial_cash)
    bound = {"rtol": 1e-9, "atol": 1e-12 * scale / min(1.0, bars.close.min())} if charged else {"rtol": 0, "atol": 0}
    np.testing.assert_allclose(trace.equity, single_trace.equity, **bound)
    np.testing.assert_allclose(trace.units[:, 0], single_trace.units, **bound)
    for name in ("fill_bar", "fill_side", "fill_price", "fill_quantity", "fill_fee"):
        got, expected = getattr(trace, name)[: outcome.fills], getattr(single_trace, name)[: single.fills]
        np.testing.assert_allclose(got, expected, **bound)
    years = int(bars.ts_ns[-1] - bars.ts_ns[0]) / NS_PER_YEAR
    # Sums over returns are taken in another order there, block by block.
    np.testing.assert_allclose(
        metrics_of(outcome.tallies, years), metrics_of(single.tallies, years), rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize("bad", [1.0000001, -1.5, math.inf, -math.inf])
@pytest.mark.parametrize("bar", [0, 1, 2])
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
def test_a_weight_out_of_range_is_a_fault_wherever_it_stands(bad: float, bar: int, fill: str) -> None:
    weights = np.full((3, 2), np.nan)
    weights[bar, 1] = bad
    panel = panel_from(dict.fromkeys(("open", "high", "low", "close", "volume"), np.full((3, 2), 10.0)))
    situation = Situation(weights, panel, dataclasses.replace(PLAIN, fill=fill), [(0.0, 0.0)] * 2)
    outcome, _ = compiled_portfolio(situation)
    assert (outcome.fault, outcome.fault_bar) == (kernel.TARGET_OUT_OF_RANGE, bar)
