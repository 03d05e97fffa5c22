"""Backtests: one with everything that happened, or a block of parameter sets with their metrics only.

``run`` and ``run_block`` share the strategy's compiled loop and the accounting kernel, and a run takes its metrics from
a block of one, so they are equal to the last bit. Memory: ``run_block`` needs O(n + m) for n bars and m parameter sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from strategies import kernel, scans, switches
from strategies.base import RULES, AnyStrategy, Rules, SpecError, Strategy, full_matrix, full_vector, parameter_table
from strategies.compiled import compiled, forget_stale, read_only
from strategies.metrics import METRICS, MOMENTS, NS_PER_YEAR, metrics_of
from strategies.model import Bars, Float64Array, Granularity, Int64Array
from strategies.registry import STRATEGIES, get
from strategies.resample import carried, known_at, resample
from strategies.spec import (
    BacktestSpec,
    Costs,
    Range,
    Sizing,
    StrategyGrid,
    SweepSpec,
    parse_backtest,
    parse_spec,
    require_quantities,
)
from strategies.tables import Series

__all__ = [
    "FILL_DTYPE",
    "AccountingError",
    "BacktestSpec",
    "BarsError",
    "Costs",
    "Evaluation",
    "Range",
    "Result",
    "Sizing",
    "SpecError",
    "StrategyGrid",
    "SweepSpec",
    "evaluate",
    "parse_backtest",
    "parse_spec",
    "run",
    "run_block",
    "tape_of",
    "targets_of",
    "warm",
]

NS_PER_DAY: Final = 86_400 * 10**9
# ``side`` is +1 bought, -1 sold; price after slippage and fee in quote units, quantity in base units (positive).
FILL_DTYPE: Final = np.dtype(
    [("bar_index", np.int64), ("side", np.int8), ("price", np.float64), ("quantity", np.float64), ("fee", np.float64)]
)


class BarsError(ValueError):
    """Bars the kernel refuses: ``field``, the bar's position (None: the whole series), the value and the rule."""

    def __init__(self, field: str, bar_index: int | None, value: object, rule: str) -> None:
        place = "" if bar_index is None else f" of bar {bar_index}"
        super().__init__(f"{field}{place}: expected {rule}, was {value!r}")
        self.field, self.bar_index, self.value, self.rule = field, bar_index, value, rule

    def __reduce__(self) -> tuple[type[BarsError], tuple[str, int | None, object, str]]:
        return BarsError, (self.field, self.bar_index, self.value, self.rule)


class AccountingError(ValueError):
    """The accounts cannot go on at a bar: a strategy's target is out of range, or the equity left the doubles."""

    def __init__(self, strategy: str, bar_index: int, rule: str) -> None:
        super().__init__(f"{strategy} at bar {bar_index}: {rule}")
        self.strategy, self.bar_index, self.rule = strategy, bar_index, rule

    def __reduce__(self) -> tuple[type[AccountingError], tuple[str, int, str]]:
        return AccountingError, (self.strategy, self.bar_index, self.rule)


@dataclass(frozen=True)
class Evaluation:
    """What m parameter sets came to: ``metrics`` float64[m, 13] as ``METRICS``, ``moments`` float64[m, S, 6].

    ``moments`` are, for each of S segments of bars, how many returns, the sums of their first four powers, and the
    segment's growth (``metrics.moments_of``).
    """

    metrics: Float64Array
    moments: Float64Array


@dataclass(frozen=True)
class Result:
    """A backtest bar by bar. ``equity`` (quote units) and ``position_units`` (base units, short < 0) are at each close.

    ``target`` is what the strategy asked for on that bar (NaN: warming up); ``fills`` has ``FILL_DTYPE``; ``metrics``
    is keyed by ``METRICS`` and finite, or NaN where undefined.
    """

    spec: BacktestSpec
    ts_ns: Int64Array
    equity: Float64Array
    target: Float64Array
    position_units: Float64Array
    fills: NDArray[np.void]
    metrics: dict[str, float]

    @property
    def look_ahead(self) -> bool:
        """True where fills used a close that was needed to decide them: not achievable, say so wherever shown."""
        return self.spec.costs.look_ahead


def run(spec: BacktestSpec, bars: Bars) -> Result:
    """Backtest ``spec`` on ``bars`` (n >= 1), which must be its product and granularity and lie in its period.

    Raises ``BarsError`` for bars that cannot be used and ``AccountingError`` where the accounts cannot go on.
    """
    _check_belongs(spec, bars)
    series = _series(bars)
    strategy = get(spec.strategy)
    target = _target(strategy, spec.parameters().vector(), _deciding(bars, series, spec.decide_on))
    trace = kernel.new_trace(len(bars))
    tape, tiers = _tape(series, spec.sizing), kernel.tiers_of(spec.costs)
    conditions = kernel.conditions_of(spec.costs, spec.sizing, spec.rules().vector())
    none = np.empty((0, len(MOMENTS)))
    outcome = _account(strategy, target, tape, conditions, tiers, checked_cuts(None, 0), none, trace)
    fills = np.empty(outcome.fills, dtype=FILL_DTYPE)
    columns = (trace.fill_bar, trace.fill_side, trace.fill_price, trace.fill_quantity, trace.fill_fee)
    for name, column in zip(FILL_DTYPE.names or (), columns, strict=True):
        fills[name] = column[: outcome.fills]
    # Those of a block's row, to the last bit: what a block pays for by the change of target sums in another order.
    block = evaluate(strategy, spec.vector()[np.newaxis], bars, spec.costs, spec.sizing, decide_on=spec.decide_on)
    metrics = dict(zip(METRICS, block.metrics[0].tolist(), strict=True))
    return Result(spec, bars.ts_ns, trace.equity, target, trace.units, fills, metrics)


def evaluate(
    strategy: str | Strategy,
    matrix: Float64Array,
    bars: Bars,
    costs: Costs,
    sizing: Sizing | None = None,
    cuts: Int64Array | None = None,
    decide_on: Granularity | None = None,
) -> Evaluation:
    """Run the rows of ``matrix`` float64[m, k + 6] (as ``parameter_table``) on ``bars`` (n >= 1); nothing else is kept.

    float64[m, k] is taken as well: every rule is at its default then. ``cuts`` int64[S + 1] begins with 0, rises and
    ends with n: segment s is the bars from ``cuts[s]`` to before ``cuts[s + 1]``; without them S is 0.
    With ``decide_on`` the strategy sees finished bars of that length only (resample.py); the rest stays on ``bars``.
    Raises ``UnknownStrategy``, ``SpecError`` naming the row and parameter, ``BarsError`` or ``AccountingError``.
    """
    chosen = get(strategy) if isinstance(strategy, str) else strategy
    rows = checked_matrix(chosen, matrix)
    series = _series(bars)
    borders = checked_cuts(cuts, len(bars))
    own = rows[:, : rows.shape[1] - len(RULES)]
    sizing = sizing or Sizing()
    require_quantities(sizing, ())
    tape, tiers = _tape(series, sizing), kernel.tiers_of(costs)
    trace = kernel.new_trace(0)
    metrics = np.empty((len(rows), len(METRICS)))
    moments = np.empty((len(rows), max(borders.size - 1, 0), len(MOMENTS)))
    deciding = _deciding(bars, series, decide_on)
    left = list(range(len(rows)))
    if deciding.known is None:
        left = _left_by_switches(chosen, rows, series, costs, sizing, borders, Evaluation(metrics, moments))
    for position, target in zip(left, _targets(chosen, own[left], deciding), strict=True):
        conditions = kernel.conditions_of(costs, sizing, rows[position, own.shape[1] :])
        outcome = _account(chosen, target, tape, conditions, tiers, borders, moments[position], trace)
        metrics[position] = metrics_of(outcome.tallies, series.years)
    return Evaluation(metrics, moments)


def run_block(
    strategy: str | Strategy, matrix: Float64Array, bars: Bars, costs: Costs, sizing: Sizing | None = None
) -> Float64Array:
    """The metrics of ``evaluate`` alone, float64[m, 13]."""
    return evaluate(strategy, matrix, bars, costs, sizing).metrics


def targets_of(strategy: Strategy, vector: Float64Array, bars: Bars) -> Float64Array:
    """The strategy's targets float64[n] on ``bars``, without accounts; raises as ``run_block`` does."""
    rows = checked_matrix(strategy, np.asarray(vector, dtype=np.float64)[np.newaxis])
    return strategy.targets(read_only(rows[0, : -len(RULES)]), *_series(bars).prices_and_volume)


def warm() -> None:
    """Compile, or load from the cache, everything a backtest calls: afterwards a new process compiles nothing."""
    # The first is made of this module; the second needs what no backtest does.
    from strategies import overfit, portfolio

    forget_stale()
    portfolio.warm()
    overfit.overfitting(np.ones((2, 2, len(MOMENTS))))
    price = np.linspace(100.0, 101.0, 3)
    ts_ns = np.arange(3, dtype=np.int64) * Granularity.ONE_DAY.ns
    bars = Bars("WARM-UP", Granularity.ONE_DAY, ts_ns, price, price, price, price, price)
    tape_of(bars, Sizing(kind="volatility"))
    for name, strategy in STRATEGIES.items():
        cuts = np.array([0, 1, 3], dtype=np.int64)
        evaluate(name, full_vector(strategy.params())[np.newaxis], bars, Costs(), cuts=cuts)
        run(BacktestSpec(product_id="WARM-UP", granularity=Granularity.ONE_DAY, strategy=name), bars)


def _left_by_switches(
    strategy: Strategy,
    rows: Float64Array,
    series: _Series,
    costs: Costs,
    sizing: Sizing,
    cuts: Int64Array,
    results: Evaluation,
) -> list[int]:
    """Fill ``results`` for the rows that can be paid for by the change of target; the others, for the general loop."""
    own, rules = rows[:, : -len(RULES)], rows[:, -len(RULES) :]
    plain = np.zeros(len(rows), dtype=np.bool_)
    no_rules = Rules().vector()
    if scans.applies(strategy) and kernel.plain(costs, sizing, no_rules, bool(series.prices_and_volume[4].all())):
        plain = (rules == no_rules).all(axis=1)
    if plain.any():
        terms = kernel.Terms(costs.fee_bps / 1e4, costs.slippage_bps / 1e4, costs.look_ahead, costs.initial_cash)
        chosen = np.ascontiguousarray(own[plain])
        columns = Series(*series.prices_and_volume)
        metrics, moments, refused = switches.account_block(strategy, chosen, columns, terms, series.years, cuts)
        results.metrics[plain], results.moments[plain] = metrics, moments
        plain[plain] = ~refused
    return np.flatnonzero(~plain).tolist()


class _Series(NamedTuple):
    """Checked bars as the kernels take them, and the years from the first bar's start to the last one's."""

    prices_and_volume: tuple[Float64Array, Float64Array, Float64Array, Float64Array, Float64Array]
    years: float
    ts_ns: Int64Array


def tape_of(bars: Bars, sizing: Sizing) -> kernel.Tape:
    """``bars`` as the kernel takes them, with what ``sizing`` needs; raises ``BarsError``."""
    return _tape(_series(bars), sizing)


def _tape(series: _Series, sizing: Sizing) -> kernel.Tape:
    close, volume = series.prices_and_volume[3:]
    days = read_only((series.ts_ns - series.ts_ns[0]) / NS_PER_DAY)
    measured = sizing.kind == "volatility"
    volatility = kernel.volatility_of(close, days, sizing.window) if measured else np.empty(0)
    return kernel.Tape(*series.prices_and_volume, days, read_only(volatility), bool(not volume.all()))


class _Deciding(NamedTuple):
    """The bars a strategy sees, and which of them is known on each bar of the accounts (None: it is the same one)."""

    columns: tuple[Float64Array, ...]
    known: Int64Array | None


def _deciding(bars: Bars, series: _Series, decide_on: Granularity | None) -> _Deciding:
    if decide_on is None or decide_on == bars.granularity:
        return _Deciding(series.prices_and_volume, None)
    coarse = resample(bars, decide_on)
    columns = (coarse.open, coarse.high, coarse.low, coarse.close, coarse.volume)
    return _Deciding(tuple(read_only(column) for column in columns), known_at(coarse, bars))


def _target(strategy: Strategy, vector: Float64Array, deciding: _Deciding) -> Float64Array:
    target = strategy.targets(read_only(vector), *deciding.columns)
    return target if deciding.known is None else carried(target, deciding.known)


def _targets(strategy: Strategy, rows: Float64Array, deciding: _Deciding) -> Iterator[Float64Array]:
    """``_target`` of each of ``rows`` float64[m, k], but that 0 may stand for NaN."""
    found = scans.targets(strategy, rows, Series(*deciding.columns))
    return found if deciding.known is None else (carried(target, deciding.known) for target in found)


def _account(
    strategy: Strategy,
    target: Float64Array,
    tape: kernel.Tape,
    conditions: kernel.Conditions,
    tiers: Float64Array,
    cuts: Int64Array,
    moments: Float64Array,
    trace: kernel.Trace,
) -> kernel.Outcome:
    outcome = kernel.simulate(target, tape, conditions, tiers, cuts, moments, trace)
    if outcome.fault == kernel.TARGET_OUT_OF_RANGE:
        raise AccountingError(strategy.name, outcome.fault_bar, "a target lies outside -1 … 1")
    if outcome.fault == kernel.EQUITY_OVERFLOW:
        raise AccountingError(strategy.name, outcome.fault_bar, "the equity is no finite number any more")
    return outcome


def _series(bars: Bars) -> _Series:
    """Raise ``BarsError`` unless every bar can be used: kernels do not check."""
    length = len(bars)
    if length == 0:
        raise BarsError("bars", None, 0, "at least one bar")
    named = {"open": bars.open, "high": bars.high, "low": bars.low, "close": bars.close, "volume": bars.volume}
    for name, array in {"ts_ns": bars.ts_ns, **named}.items():
        wanted = np.dtype(np.int64 if name == "ts_ns" else np.float64)
        if array.dtype != wanted or array.shape != (length,):
            raise BarsError(name, None, f"{array.dtype}{array.shape}", f"{wanted}({length},)")
    for name, array in named.items():
        fault = _first_unusable(read_only(array), name != "volume")
        if fault >= 0:
            raise BarsError(
                name,
                fault,
                float(array[fault]),
                "a finite number above 0" if name != "volume" else "a finite number, 0 or more",
            )
    late = _first_not_later(read_only(bars.ts_ns))
    if late >= 0:
        raise BarsError("ts_ns", late, int(bars.ts_ns[late]), "later than the bar before")
    years = (int(bars.ts_ns[-1]) - int(bars.ts_ns[0])) / NS_PER_YEAR
    views = [read_only(array) for array in named.values()]
    return _Series((views[0], views[1], views[2], views[3], views[4]), years, read_only(bars.ts_ns))


@compiled
def _first_unusable(values: Float64Array, above_zero: bool) -> int:
    # Counting has no exit from the loop, so it runs eight values at a time; the search is for the rare fault.
    usable = 0
    for i in range(values.size):
        usable += (values[i] >= 0.0) & (values[i] < np.inf) & ((values[i] > 0.0) | (not above_zero))
    if usable < values.size:
        for i in range(values.size):
            if not (0.0 <= values[i] < np.inf) or (values[i] == 0.0 and above_zero):
                return i
    return -1


@compiled
def _first_not_later(ts_ns: Int64Array) -> int:
    later = 0
    for i in range(1, ts_ns.size):
        later += ts_ns[i] > ts_ns[i - 1]
    if later < ts_ns.size - 1:
        for i in range(1, ts_ns.size):
            if ts_ns[i] <= ts_ns[i - 1]:
                return i
    return -1


def checked_matrix(strategy: AnyStrategy, matrix: Float64Array) -> Float64Array:
    """``matrix`` with a column for every parameter and rule, read-only; raises ``SpecError`` naming the row."""
    table = parameter_table(strategy)
    values = np.asarray(matrix)
    if values.ndim == 2 and values.dtype == np.float64 and values.shape[1] == len(table) - len(RULES):
        values = full_matrix(strategy, values)
    if values.dtype != np.float64 or values.ndim != 2 or values.shape[1] != len(table):
        raise SpecError("matrix", f"{values.dtype}{values.shape}", f"float64(m, {len(table)})")
    for column, info in enumerate(table):
        given = values[:, column]
        fits = (given >= info.low) & (given <= info.high)
        if info.kind == "int":
            fits &= given == np.floor(given)
        if not fits.all():
            row = int(np.argmin(fits))
            info.check(float(given[row]), f"matrix[{row}].{info.name}")
    kept = strategy.params.keeps_order(values)
    if not kept.all():
        row = int(np.argmin(kept))
        rules = " and ".join(f"{lesser} < {greater}" for lesser, greater in strategy.params.BELOW)
        raise SpecError(f"matrix[{row}]", values[row].tolist(), rules)
    return read_only(values)


def checked_cuts(cuts: Int64Array | None, length: int) -> Int64Array:
    """The borders of segments of ``length`` bars, empty for None; raises ``SpecError``."""
    if cuts is None:
        return read_only(np.empty(0, dtype=np.int64))
    values = np.asarray(cuts)
    if values.dtype != np.int64 or values.ndim != 1 or values.size < 2:
        raise SpecError("cuts", f"{values.dtype}{values.shape}", "int64(S + 1) with S of 1 or more")
    if values[0] != 0 or values[-1] != length or not (np.diff(values) > 0).all():
        raise SpecError("cuts", values.tolist(), f"bar numbers that rise from 0 to {length}")
    return read_only(values)


def _check_belongs(spec: BacktestSpec, bars: Bars) -> None:
    if bars.product_id != spec.product_id:
        raise BarsError("product_id", None, bars.product_id, f"{spec.product_id} as in the specification")
    if bars.granularity != spec.granularity:
        raise BarsError("granularity", None, str(bars.granularity), f"{spec.granularity} as in the specification")
    if len(bars) and spec.start_ns is not None and int(bars.ts_ns[0]) < spec.start_ns:
        raise BarsError("ts_ns", 0, int(bars.ts_ns[0]), f"at or after start = {spec.start_ns}")
    if len(bars) and spec.end_ns is not None and int(bars.ts_ns[-1]) > spec.end_ns:
        raise BarsError("ts_ns", len(bars) - 1, int(bars.ts_ns[-1]), f"at or before end = {spec.end_ns}")
