"""Backtests of portfolios: several products, one cash; ``evaluate`` takes one product's bars or a panel alike.

As for one product, ``run`` and ``evaluate`` share the strategy's compiled loop and the accounting kernel
(portfolio_kernel.py says the rules), so their metrics are equal to the last bit. Memory: a few arrays of the panel's
size, shared by all parameter sets, and for one set at a time its equity and its decisions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from strategies import backtest, kernel, portfolio_kernel
from strategies.backtest import NS_PER_DAY, AccountingError, Evaluation, checked_cuts, checked_matrix
from strategies.base import RULES, AnyStrategy, SpecError, Strategy
from strategies.compiled import read_only
from strategies.cross_section import CrossSection
from strategies.metrics import METRICS, MOMENTS, NS_PER_YEAR, metrics_of, moments_of
from strategies.model import Bars, Float64Array, Granularity, Int64Array
from strategies.panel import Panel, panel_of, resampled
from strategies.portfolio_kernel import Decisions, Tape, Terms, Trace
from strategies.registry import CROSS_SECTIONS, find
from strategies.spec import BacktestSpec, Costs, Sizing, require_quantities

# As ``backtest.FILL_DTYPE``; ``product`` is the row of the panel.
PORTFOLIO_FILL_DTYPE: Final = np.dtype(
    [
        ("bar_index", np.int64),
        ("product", np.int64),
        ("side", np.int8),
        ("price", np.float64),
        ("quantity", np.float64),
        ("fee", np.float64),
    ]
)


class WrongMarket(SpecError):
    """A strategy for one product was given several, or one over several products the bars of one."""


@dataclass(frozen=True)
class PortfolioResult:
    """A portfolio bar by bar: ``equity`` float64[n] in quote units and ``units`` float64[p, n] at each close.

    ``weights`` float64[p, n] is what the strategy asked for on that bar (NaN: nothing); ``fills`` has
    ``PORTFOLIO_FILL_DTYPE``; ``metrics`` is keyed by ``METRICS`` and finite, or NaN where undefined.
    """

    spec: BacktestSpec
    product_ids: tuple[str, ...]
    ts_ns: Int64Array
    equity: Float64Array
    weights: Float64Array
    units: Float64Array
    fills: NDArray[np.void]
    metrics: dict[str, float]

    @property
    def look_ahead(self) -> bool:
        """True where fills used a close that was needed to decide them: not achievable, say so wherever shown."""
        return self.spec.costs.look_ahead


def evaluate(
    strategy: str | AnyStrategy,
    matrix: Float64Array,
    market: Bars | Panel,
    costs: Costs,
    sizing: Sizing | None = None,
    cuts: Int64Array | None = None,
    decide_on: Granularity | None = None,
) -> Evaluation:
    """``backtest.evaluate`` for a strategy of either kind on the market it is made for.

    Costs, sizing and rules count as for one product; portfolio_kernel.py says what they mean for several.
    Raises what that raises, and ``WrongMarket``.
    """
    chosen = find(strategy) if isinstance(strategy, str) else strategy
    if isinstance(chosen, Strategy) and isinstance(market, Bars):
        return backtest.evaluate(chosen, matrix, market, costs, sizing, cuts, decide_on)
    if not isinstance(chosen, CrossSection) or not isinstance(market, Panel):
        raise _wrong_market(chosen.name, market)
    sizing = sizing or Sizing()
    rows = _checked_rows(chosen, matrix, market, sizing)
    borders = checked_cuts(cuts, len(market))
    series = _Series.of(market, sizing, decide_on)
    trace = portfolio_kernel.new_trace(len(market) if borders.size else 0, len(market.product_ids))
    metrics = np.empty((len(rows), len(METRICS)))
    moments = np.empty((len(rows), max(borders.size - 1, 0), len(MOMENTS)))
    for position, row in enumerate(rows):
        terms = _terms(costs, sizing, row, market.product_ids)
        outcome = _account(chosen, series.decisions(chosen, row), series, terms, trace)
        metrics[position] = metrics_of(outcome.tallies, series.years)
        if borders.size:
            moments_of(read_only(trace.equity), borders, costs.initial_cash, moments[position])
    return Evaluation(metrics, moments)


def run(spec: BacktestSpec, panel: Panel) -> PortfolioResult:
    """Backtest ``spec`` on ``panel``, whose products and granularity must be its own, with everything that happened.

    Raises as ``evaluate``.
    """
    chosen = find(spec.strategy)
    if not isinstance(chosen, CrossSection):
        raise _wrong_market(chosen.name, panel)
    if panel.product_ids != spec.product_ids:
        raise SpecError("product_ids", panel.product_ids, f"{', '.join(spec.product_ids)} as in the specification")
    if panel.granularity != spec.granularity:
        raise SpecError("granularity", str(panel.granularity), f"{spec.granularity} as in the specification")
    rows = _checked_rows(chosen, spec.vector()[np.newaxis], panel, spec.sizing)
    series = _Series.of(panel, spec.sizing, spec.decide_on)
    decisions = series.decisions(chosen, rows[0])
    terms = _terms(spec.costs, spec.sizing, rows[0], panel.product_ids)
    # Once to count the fills, which stops and thin volume can make many of; once more to write them.
    trace = portfolio_kernel.new_trace(0, len(panel.product_ids))
    count = _account(chosen, decisions, series, terms, trace).fills
    trace = portfolio_kernel.new_trace(len(panel), len(panel.product_ids), count)
    outcome = _account(chosen, decisions, series, terms, trace)
    fills = np.empty(outcome.fills, dtype=PORTFOLIO_FILL_DTYPE)
    columns = (trace.fill_bar, trace.fill_product, trace.fill_side, trace.fill_price)
    for name, column in zip(fills.dtype.names or (), (*columns, trace.fill_quantity, trace.fill_fee), strict=True):
        fills[name] = column[: outcome.fills]
    weights = _spread(decisions, panel)
    metrics = dict(zip(METRICS, metrics_of(outcome.tallies, series.years).tolist(), strict=True))
    return PortfolioResult(spec, panel.product_ids, panel.ts_ns, trace.equity, weights, trace.units.T, fills, metrics)


def weights_of(
    strategy: CrossSection, vector: Float64Array, panel: Panel, decide_on: Granularity | None = None
) -> Float64Array:
    """What the strategy asks for with its own parameters float64[k], float64[p, n]; NaN for nothing; no accounts."""
    rows = _checked_rows(strategy, np.asarray(vector, dtype=np.float64)[np.newaxis], panel, Sizing())
    decisions = _Series.of(panel, Sizing(), decide_on).decisions(strategy, rows[0])
    return _spread(decisions, panel)


def warm() -> None:
    """Compile, or load from the cache, everything a portfolio calls."""
    price = np.linspace(100.0, 101.0, 3)
    ts_ns = np.arange(3, dtype=np.int64) * Granularity.ONE_DAY.ns
    names = ("WARM-UP", "COLD-UP")
    panel = panel_of([Bars(name, Granularity.ONE_DAY, ts_ns, price, price, price, price, price) for name in names])
    for name, strategy in CROSS_SECTIONS.items():
        cuts = np.array([0, 1, 3], dtype=np.int64)
        evaluate(strategy, strategy.params().vector()[np.newaxis], panel, Costs(), cuts=cuts)
        run(BacktestSpec(product_id=names[0], product_ids=names, granularity=Granularity.ONE_DAY, strategy=name), panel)


@dataclass(frozen=True)
class _Series:
    """A panel as the kernels take it, read-only; the years from the first time to the last.

    ``seen`` are the bars that strategies see; a decision of the k-th of them counts as one of the panel's bar
    ``known_on[k]`` (n: none), or of the k-th where it is None.
    """

    seen: tuple[Float64Array, ...]
    known_on: Int64Array | None
    tape: Tape
    years: float

    @staticmethod
    def of(panel: Panel, sizing: Sizing, decide_on: Granularity | None) -> _Series:
        """Raises ``ResampleError`` where ``decide_on`` is no multiple of the panel's granularity."""
        seen = _columns(panel)
        tape = _tape(panel, seen, sizing)
        years = (int(panel.ts_ns[-1]) - int(panel.ts_ns[0])) / NS_PER_YEAR
        if decide_on is None or decide_on == panel.granularity:
            return _Series(seen, None, tape, years)
        coarse = resampled(panel, decide_on)
        ends, wanted = panel.ts_ns + panel.granularity.ns, coarse.ts_ns + decide_on.ns
        return _Series(_columns(coarse), np.searchsorted(ends, wanted, side="left"), tape, years)

    def decisions(self, strategy: CrossSection, row: Float64Array) -> Decisions:
        """What the strategy decides, on the panel's bars; of two coarse bars known at once the later one counts."""
        decisions = strategy.decide(read_only(row[: -len(RULES)]), *self.seen)
        if self.known_on is None:
            return decisions
        bars = self.known_on[decisions.bars[: decisions.used]]
        weights = decisions.weights[: decisions.used][bars < len(self.tape.close)]
        bars = bars[bars < len(self.tape.close)]
        for k in np.flatnonzero(np.diff(bars) == 0):
            weights[k + 1] = np.where(np.isnan(weights[k + 1]), weights[k], weights[k + 1])
        last = np.diff(bars, append=np.int64(-1)) != 0
        return Decisions(bars[last], np.ascontiguousarray(weights[last]), int(last.sum()))


def _columns(panel: Panel) -> tuple[Float64Array, ...]:
    arrays = (panel.open, panel.high, panel.low, panel.close, panel.volume)
    return tuple(read_only(array.T) for array in arrays)


def _tape(panel: Panel, columns: tuple[Float64Array, ...], sizing: Sizing) -> Tape:
    days = read_only((panel.ts_ns - panel.ts_ns[0]) / NS_PER_DAY)
    volatility = np.empty((0, len(panel.product_ids)))
    if sizing.kind == "volatility":
        volatility = np.full(columns[0].shape, np.nan)
        for q in range(len(panel.product_ids)):
            there = ~np.isnan(panel.close[q])
            own = read_only(panel.close[q][there])
            volatility[there, q] = kernel.volatility_of(own, read_only(days[there]), sizing.window)
            volatility[:, q] = _latest(volatility[:, q], there)
    there = ~np.isnan(panel.close)
    last_bar = len(panel) - 1 - np.argmax(there[:, ::-1], axis=1)
    last_bar = read_only(np.where(there.any(axis=1), last_bar, len(panel)).astype(np.int64))
    open_, high, low, close, volume = columns
    latest = read_only(panel.last_close().T)
    return Tape(open_, high, low, close, volume, latest, read_only(volatility), days, last_bar)


def _latest(values: Float64Array, there: NDArray[np.bool_]) -> Float64Array:
    """float64[n]: each value again at the times after it that have none of their own."""
    at = np.maximum.accumulate(np.where(there, np.arange(len(values)), 0))
    return np.asarray(values[at])


def _terms(costs: Costs, sizing: Sizing, row: Float64Array, product_ids: tuple[str, ...]) -> Terms:
    agreed = [sizing.quantities_of(product_id) for product_id in product_ids]
    return Terms(
        kernel.conditions_of(costs, sizing, row[-len(RULES) :]),
        kernel.tiers_of(costs),
        read_only(np.array([least for least, _ in agreed])),
        read_only(np.array([increment for _, increment in agreed])),
    )


def _account(
    strategy: CrossSection, decisions: Decisions, series: _Series, terms: Terms, trace: Trace
) -> kernel.Outcome:
    outcome = portfolio_kernel.account(decisions, series.tape, terms, trace)
    if outcome.fault == kernel.TARGET_OUT_OF_RANGE:
        raise AccountingError(strategy.name, outcome.fault_bar, "a weight lies outside -1 … 1")
    if outcome.fault == kernel.EQUITY_OVERFLOW:
        raise AccountingError(strategy.name, outcome.fault_bar, "the equity is no finite number any more")
    return outcome


def _checked_rows(strategy: CrossSection, matrix: Float64Array, panel: Panel, sizing: Sizing) -> Float64Array:
    require_quantities(sizing, panel.product_ids)
    strategy.check_products(len(panel.product_ids))
    if len(panel) == 0:
        raise SpecError("panel", 0, "at least one bar")
    rows = checked_matrix(strategy, matrix)
    strategy.check_counts(rows, len(panel.product_ids))
    return rows


def _spread(decisions: Decisions, panel: Panel) -> Float64Array:
    """float64[p, n]: decisions on the bars they were taken on, NaN between them."""
    weights = np.full((len(panel), len(panel.product_ids)), np.nan)
    weights[decisions.bars[: decisions.used]] = decisions.weights[: decisions.used]
    return weights.T


def _wrong_market(name: str, market: Bars | Panel) -> WrongMarket:
    several = isinstance(market, Panel)
    rule = f"{'one product' if several else 'several products (product_ids)'} for the strategy {name}"
    given = ", ".join(market.product_ids) if isinstance(market, Panel) else market.product_id
    return WrongMarket("product_ids" if several else "product_id", given, rule)
