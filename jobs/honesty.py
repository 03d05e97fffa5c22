"""How much of a sweep's result is luck: columns for its table, and the page honesty.json, from the segments' moments.

Two calls, both cheap beside the sweep: ``columns_of(study)`` before the table is ranked (it may be ranked by one of
them), ``page_of(study, columns, best, result)`` after the best set was run once more; ``honesty_of`` makes both.
Nothing here runs a backtest but ``equity_of``, where the caller gives one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np

from jobs.honesty_page import (
    Bootstrap,
    ChosenSet,
    CrossValidation,
    Curve,
    Distribution,
    Fold,
    HeldOut,
    Honesty,
    Interval,
    Overfitting,
    Plan,
    SharpeTests,
    Stability,
    TradeOrder,
    WalkForward,
    WalkStep,
)
from jobs.verdicts import verdicts_of
from strategies.backtest import Result
from strategies.base import RULE_NAMES, ParameterInfo, SpecError, parameter_table
from strategies.metrics import MOMENTS
from strategies.model import Float64Array, Int64Array
from strategies.monte_carlo import bar_returns, bootstrap, reorder_trades, trade_results
from strategies.overfit import (
    deflated_sharpe,
    expected_max_sharpe,
    independent_trials,
    mean_correlation,
    minimum_track_record,
    overfitting,
    probabilistic_sharpe,
    sampling_deviation,
)
from strategies.portfolio import PortfolioResult
from strategies.registry import find
from strategies.segments import GROWTH, HONEST_COLUMNS, Pooled, Segments, complete_rows, pool
from strategies.stability import Neighbourhood, neighbourhood
from strategies.validation import (
    TEST_FOLDS,
    Choice,
    Split,
    choose,
    combinatorial_splits,
    efficiency,
    held_out_columns,
    paths,
    rank_correlation,
    stitched,
    walk_forward_splits,
)

# The best set's backtest: the page needs its times, equity and costs, and its position where it has but one.
AnyResult = Result | PortfolioResult

# Bounds of the page: it is read by a browser.
CURVE_POINTS_MAX: Final = 1_000
SCATTER_MAX: Final = 500
CHOSEN_MAX: Final = 10
LOGIT_MAX: Final = 8.0
LOGIT_BINS: Final = 32
LOG_MAX: Final = 700.0
# A curve is cut here, so that the product of two of its values is still a double.
EQUITY_MAX: Final = 1e150
# Of fewer returns a resampled Sharpe says nothing.
BOOTSTRAP_RETURNS_MIN: Final = 20


@dataclass(frozen=True)
class Group:
    """Sets of one strategy: what their columns are, and their parameters float64[m, k]."""

    strategy: str
    table: tuple[ParameterInfo, ...]
    matrix: Float64Array


@dataclass(frozen=True)
class Study:
    """What a finished sweep leaves behind, every array in the order of the set ids.

    ``moments`` float64[m, S, 6] (a memory-mapped file will do; sets that were stopped early hold NaN from there on),
    ``segments`` are the cuts they were taken between, ``per_year`` is ``periods_per_year`` of the bars.
    """

    groups: tuple[Group, ...]
    moments: Float64Array
    segments: Segments
    per_year: float
    seed: int

    def __post_init__(self) -> None:
        sets = sum(len(group.matrix) for group in self.groups)
        expected = (sets, self.segments.count, len(MOMENTS))
        if not sets or self.moments.shape != expected:
            raise SpecError("moments", self.moments.shape, f"{expected}, of at least one set")

    @property
    def set_count(self) -> int:
        """m."""
        return int(self.moments.shape[0])

    @cached_property
    def complete(self) -> Int64Array:
        """int64: the ids of the sets that ran to the end; only they take part in splits."""
        return complete_rows(self.moments)

    @cached_property
    def whole(self) -> Pooled:
        """Every set over the whole series; not a number for those that did not run to the end."""
        return pool(self.moments, np.arange(self.segments.count))

    def yearly(self, sharpe: Float64Array) -> Float64Array:
        """Per-bar Sharpe ratios as yearly ones."""
        return np.asarray(sharpe * math.sqrt(self.per_year))

    def describe(self, set_id: int) -> tuple[str, dict[str, float]]:
        """A set's strategy and its parameters, without the rules that are off."""
        for group in self.groups:
            if set_id < len(group.matrix):
                values = zip(group.table, group.matrix[set_id].tolist(), strict=False)
                return group.strategy, {
                    info.name: int(value) if info.kind == "int" else value
                    for info, value in values
                    if info.name not in RULE_NAMES or value != info.default
                }
            set_id -= len(group.matrix)
        raise SpecError("set_id", set_id, f"one of {self.set_count} sets")


def study_of(
    sets: Sequence[tuple[str, Float64Array]], moments: Float64Array, cuts: Int64Array, per_year: float, seed: int
) -> Study:
    """The study of a sweep's ``parameter_sets()``; ``cuts`` as run.json keeps them, ``moments`` in order of set ids."""
    groups = tuple(Group(name, tuple(parameter_table(find(name))), matrix) for name, matrix in sets)
    return Study(groups, moments, Segments(cuts), per_year, seed)


def honesty_of(
    study: Study, best: int, result: AnyResult, equity_of: Callable[[int], Float64Array] | None = None
) -> tuple[dict[str, Float64Array], Honesty]:
    """Columns and page at once, where the best set (an id) and its result are known already."""
    columns = columns_of(study)
    return columns, page_of(study, columns, best, result, equity_of)


def columns_of(study: Study) -> dict[str, Float64Array]:
    """``HONEST_COLUMNS``, float64[m] each, not a number where undefined and for sets that were stopped early.

    Sharpe ratios are yearly. ``psr`` and ``dsr`` are of the whole series, ``dsr`` with every set as a trial;
    ``stability`` is the neighbours' mean whole-series Sharpe over the set's own, ``worst_neighbour`` that of the
    worst of them.
    """
    whole = study.whole
    columns = {name: np.full(study.set_count, np.nan) for name in HONEST_COLUMNS}
    columns |= held_out_columns(study.moments, study.segments, study.per_year)
    columns["psr"] = probabilistic_sharpe(whole.sharpe, 0.0, whole.returns, whole.skew, whole.kurtosis)
    columns["dsr"] = deflated_sharpe(
        whole.sharpe, _trials_deviation(whole), study.set_count, whole.returns, whole.skew, whole.kurtosis
    )
    sharpe = study.yearly(whole.sharpe)
    for part, group in _parts(study):
        near = _neighbourhood(group, sharpe[part])
        columns["stability"][part] = near.share
        columns["worst_neighbour"][part] = near.worst
    return columns


def page_of(
    study: Study,
    columns: dict[str, Float64Array],
    best: int,
    result: AnyResult,
    equity_of: Callable[[int], Float64Array] | None = None,
) -> Honesty:
    """The content of honesty.json: JSON-ready, every number finite or None, some hundred kilobytes at most.

    ``columns`` are ``columns_of(study)``, ``best`` is the id of the set that leads the table and ``result`` its
    backtest. ``equity_of`` (set id -> equity float64[n]) runs a set again, for the some ten sets that the walk-forward
    chose; without it their curve has a point a fold.
    """
    bars = _Bars(result.ts_ns, study.per_year, result.spec.costs.initial_cash)
    enough = len(study.complete) > 1 and not study.segments.too_short
    with ThreadPoolExecutor(1) as pool:
        # Two thirds of the time, and numpy holds no lock meanwhile: on two cores the rest of the page costs nothing.
        luck = pool.submit(_overfitting, study) if enough else None
        page = _page_without_luck(study, columns, best, result, equity_of, bars, enough)
        page["overfitting"] = luck.result() if luck else None
    page["verdicts"] = verdicts_of(page, result.look_ahead, isinstance(result, PortfolioResult))
    return page


def _page_without_luck(
    study: Study,
    columns: dict[str, Float64Array],
    best: int,
    result: AnyResult,
    equity_of: Callable[[int], Float64Array] | None,
    bars: _Bars,
    enough: bool,
) -> Honesty:
    walks = [_walk_forward(study, kind, bars, equity_of) for kind in ("rolling", "anchored") if enough]
    return {
        "version": 1,
        "sets": study.set_count,
        "complete_sets": len(study.complete),
        "plan": _plan(study.segments, bars),
        "held_out": _held_out(columns, best) if not study.segments.too_short else None,
        "sharpe_tests": _sharpe_tests(study, best),
        "walk_forward": walks,
        "k_fold": _cross_validation(study, 1) if enough else None,
        "cross_validation": _cross_validation(study, TEST_FOLDS) if enough else None,
        "overfitting": None,
        "bootstrap": _bootstrap(result, study),
        "trade_order": _trade_order(result, study),
        "stability": _stability(study, columns, best),
        "verdicts": [],
    }


class _Bars(NamedTuple):
    ts_ns: Int64Array
    per_year: float
    initial_cash: float


def _plan(segments: Segments, bars: _Bars) -> Plan:
    cuts = segments.cuts.tolist()
    border = None if segments.too_short else cuts[2 * segments.first_held_out]
    folds: list[Fold] = [
        {
            "first_bar": first,
            "stop_bar": stop,
            "first_ts_ns": int(bars.ts_ns[first]),
            "last_ts_ns": int(bars.ts_ns[stop - 1]),
            "held_out": border is not None and first >= border,
        }
        for first, stop in zip(cuts[::2], cuts[1::2], strict=True)
    ]
    return {
        "bars": cuts[-1],
        "folds": folds,
        "gap_bars": cuts[2] - cuts[1] if len(cuts) > 2 else 0,
        "held_out_from_bar": border,
        "held_out_from_ts_ns": None if border is None else int(bars.ts_ns[border]),
        "periods_per_year": _number(bars.per_year),
    }


def _held_out(columns: dict[str, Float64Array], best: int) -> HeldOut:
    inside, outside = columns["is_sharpe"], columns["oos_sharpe"]
    taken = None if np.isnan(inside).all() else int(np.nanargmax(inside))
    return {
        "set_id": best,
        "is_sharpe": _number(inside[best]),
        "oos_sharpe": _number(outside[best]),
        "oos_return": _number(columns["oos_return"][best]),
        "leads_held_out": len(outside) > 1
        and not np.isnan(outside[best])
        and bool(outside[best] >= np.nanmax(outside)),
        "best_is_set_id": taken,
        "best_is_sharpe": None if taken is None else _number(inside[taken]),
        "best_is_oos_sharpe": None if taken is None else _number(outside[taken]),
        "best_is_oos_return": None if taken is None else _number(columns["oos_return"][taken]),
        "rank_correlation": _number(rank_correlation(inside, outside)),
    }


def _sharpe_tests(study: Study, best: int) -> SharpeTests | None:
    own = Pooled(*(column[best : best + 1] for column in study.whole))
    if not np.isfinite(own.sharpe[0]):
        return None
    deviation = _trials_deviation(study.whole)
    trials = independent_trials(mean_correlation(study.moments, study.complete), study.set_count)
    sampling = float(sampling_deviation(own.returns)[0])
    luck_of_sampling = expected_max_sharpe(sampling, study.set_count)
    luck, luck_of_independent = (expected_max_sharpe(deviation, count) for count in (study.set_count, trials))

    def probability(benchmark: float) -> float | None:
        return _number(probabilistic_sharpe(own.sharpe, benchmark, own.returns, own.skew, own.kurtosis)[0])

    def record_years(benchmark: float) -> float | None:
        return _number(minimum_track_record(own.sharpe, benchmark, own.skew, own.kurtosis)[0] / study.per_year)

    root = math.sqrt(study.per_year)
    return {
        "set_id": best,
        "sharpe": _number(own.sharpe[0] * root),
        "skew": _number(own.skew[0]),
        "kurtosis": _number(own.kurtosis[0]),
        "returns": int(own.returns[0]),
        "trials": study.set_count,
        "independent_trials": _number(trials),
        "trials_sharpe_deviation": _number(deviation * root),
        "expected_max_sharpe": _number(luck * root),
        "expected_max_sharpe_independent": _number(luck_of_independent * root),
        "psr": probability(0.0),
        "dsr": probability(luck),
        "dsr_independent": probability(luck_of_independent),
        "sampling_deviation": _number(sampling * root),
        "expected_max_sharpe_sampling": _number(luck_of_sampling * root),
        "dsr_sampling": probability(luck_of_sampling),
        "min_track_record_years": record_years(0.0),
        "min_track_record_years_deflated": record_years(luck),
        "track_record_years": _number(own.returns[0] / study.per_year),
    }


def _walk_forward(study: Study, kind: str, bars: _Bars, equity_of: Callable[[int], Float64Array] | None) -> WalkForward:
    choice = choose(study.moments, walk_forward_splits(study.segments, anchored=kind == "anchored"), study.complete)
    whole, steps = stitched(choice), choice.outside
    chosen = choice.rows[choice.rows >= 0]
    years = whole.returns[0] / bars.per_year
    return {
        "kind": kind,
        "steps": [_step(study, choice, i, steps) for i in range(len(choice.rows))],
        "is_sharpe": _number(study.yearly(choice.is_sharpe[choice.rows >= 0]).mean()) if chosen.size else None,
        "oos_sharpe": _number(study.yearly(whole.sharpe)[0]),
        "oos_return": _number(whole.total_return[0]),
        "oos_cagr": _number(_gained(whole.growth[0] / years)) if years > 0.0 else None,
        "efficiency": _number(efficiency(choice)),
        "winning_steps": float((steps.growth[choice.rows >= 0] > 0.0).mean()) if chosen.size else None,
        "distinct_sets": len(np.unique(chosen)),
        "curve": _curve(study, choice, bars, equity_of),
    }


def _step(study: Study, choice: Choice, i: int, steps: Pooled) -> WalkStep:
    row, split = int(choice.rows[i]), choice.splits[i]
    strategy, params = study.describe(row) if row >= 0 else (None, None)
    return {
        "train_from": split.train_folds[0],
        "train_to": split.train_folds[-1],
        "test": split.test_folds[0],
        "set_id": row if row >= 0 else None,
        "strategy": strategy,
        "params": params,
        "is_sharpe": _number(choice.is_sharpe[i] * math.sqrt(study.per_year)),
        "oos_sharpe": _number(study.yearly(steps.sharpe)[i]),
        "oos_return": _number(steps.total_return[i]) if row >= 0 else None,
    }


def _curve(study: Study, choice: Choice, bars: _Bars, equity_of: Callable[[int], Float64Array] | None) -> Curve:
    """The test folds end to end, each at its set's own growth; flat in the gaps between them and without a choice."""
    times: list[int] = []
    equity: list[float] = []
    standing = 1.0
    stride = max(1, math.ceil(sum(_length(study, split) for split in choice.splits) / CURVE_POINTS_MAX))
    held, curve = -1, np.empty(0)  # one set's curve at a time: there may be a million bars
    for row, split in zip(choice.rows.tolist(), choice.splits, strict=True):
        first, stop = study.segments.cuts[split.test[0]], study.segments.cuts[split.test[-1] + 1]
        if equity_of is not None and row >= 0:
            held, curve = (held, curve) if row == held else (row, equity_of(row))
            before = curve[first - 1] if first > 0 else bars.initial_cash
            shown = np.union1d(np.arange(first, stop, stride), [stop - 1])
            grown = curve[shown] / before if before > 0.0 else np.zeros(len(shown))
        else:
            shown = np.array([stop - 1])
            growth = float(study.moments[row, split.test, GROWTH].sum()) if row >= 0 else 0.0
            grown = np.array([_gained(growth) + 1.0])
        if not times:
            times.append(int(bars.ts_ns[first - 1]))
            equity.append(standing)
        times.extend(bars.ts_ns[shown].tolist())
        equity.extend(np.minimum(standing * np.minimum(grown, EQUITY_MAX), EQUITY_MAX).tolist())
        standing = equity[-1]
    return {"ts_ns": times, "equity": equity}


def _length(study: Study, split: Split) -> int:
    return int(study.segments.cuts[split.test[-1] + 1] - study.segments.cuts[split.test[0]])


def _cross_validation(study: Study, test_folds: int) -> CrossValidation:
    choice = choose(study.moments, combinatorial_splits(study.segments, test_folds=test_folds), study.complete)
    whole = paths(study.moments, choice)
    path_sharpe = study.yearly(whole.sharpe)
    sets, counts = np.unique(choice.rows[choice.rows >= 0], return_counts=True)
    often = np.lexsort((sets, -counts))[:CHOSEN_MAX]
    return {
        "folds": study.segments.folds,
        "test_folds": test_folds,
        "splits": len(choice.splits),
        "is_sharpe": _distribution(study.yearly(choice.is_sharpe)),
        "oos_sharpe": _distribution(study.yearly(choice.outside.sharpe)),
        "path_sharpe": _distribution(path_sharpe),
        "path_return": _distribution(whole.total_return),
        "paths_sharpe": [_number(value) for value in path_sharpe],
        "paths_return": [_number(value) for value in whole.total_return],
        "chosen": [_chosen_set(study, int(sets[i]), int(counts[i])) for i in often],
    }


def _chosen_set(study: Study, set_id: int, splits: int) -> ChosenSet:
    strategy, params = study.describe(set_id)
    return {"set_id": set_id, "strategy": strategy, "params": params, "splits": splits}


def _overfitting(study: Study) -> Overfitting:
    found = overfitting(study.moments[:, ::2], study.complete, seed=study.seed)
    intercept, slope, fit = found.degradation()
    edges = np.linspace(-LOGIT_MAX, LOGIT_MAX, LOGIT_BINS + 1)
    counts, _ = np.histogram(np.clip(found.logits, -LOGIT_MAX, LOGIT_MAX), edges)
    inside, outside = study.yearly(found.is_sharpe), study.yearly(found.oos_sharpe)
    shown = np.flatnonzero(np.isfinite(outside))
    shown = shown[:: max(1, math.ceil(len(shown) / SCATTER_MAX))]
    return {
        "pbo": _number(found.pbo),
        "splits": len(found.logits),
        "all_splits": found.all_splits,
        "sets": found.sets,
        "logits": {"edges": edges.tolist(), "counts": counts.tolist()},
        "logit": _distribution(found.logits),
        "probability_of_loss": _number(found.probability_of_loss),
        "degradation": {
            "intercept": _number(intercept * math.sqrt(study.per_year)),
            "slope": _number(slope),
            "r_squared": _number(fit),
            "is_sharpe": inside[shown].tolist(),
            "oos_sharpe": outside[shown].tolist(),
        },
    }


def _bootstrap(result: AnyResult, study: Study) -> Bootstrap | None:
    returns = bar_returns(result.equity)
    if returns.size < BOOTSTRAP_RETURNS_MIN or not math.isfinite(study.per_year):
        return None
    found = bootstrap(returns, study.per_year, seed=study.seed)
    return {
        "draws": len(found.sharpe),
        "block_bars": found.block * found.period,
        "period_bars": found.period,
        "sharpe": _interval(found.observed_sharpe, found.sharpe),
        "cagr": _interval(found.observed_cagr, found.cagr),
        "max_drawdown": _interval(found.observed_max_drawdown, found.max_drawdown),
        "probability_of_loss": _share_below_zero(found.cagr),
    }


def _trade_order(result: AnyResult, study: Study) -> TradeOrder | None:
    if isinstance(result, PortfolioResult):
        return None  # its round trips overlap, so there is no order to change
    trades = trade_results(result.equity, result.position_units, result.spec.costs.initial_cash)
    if trades.size < 2:
        return None
    found = reorder_trades(trades, seed=study.seed)
    return {
        "trades": found.trades,
        "draws": len(found.drawn_return),
        "shuffled_max_drawdown": _interval(found.observed_max_drawdown, found.shuffled_max_drawdown),
        "drawn_max_drawdown": _interval(found.observed_max_drawdown, found.drawn_max_drawdown),
        "drawn_return": _interval(found.observed_return, found.drawn_return),
        "probability_of_loss": _share_below_zero(found.drawn_return),
    }


def _stability(study: Study, columns: dict[str, Float64Array], best: int) -> Stability | None:
    part, group = next((part, group) for part, group in _parts(study) if best < part.stop)
    near, place = _neighbourhood(group, study.yearly(study.whole.sharpe[part])), best - part.start
    if not near.count[place]:
        return None
    return {
        "neighbours": int(near.count[place]),
        "share_of_neighbours": _number(near.share[place]),
        "neighbours_sharpe": _number(near.mean[place]),
        "neighbours_median_sharpe": _number(near.median[place]),
        "worst_neighbour_sharpe": _number(near.worst[place]),
        "method": near.method,
        "all_sets": _distribution(columns["stability"]),
    }


def _parts(study: Study) -> Iterator[tuple[slice, Group]]:
    first = 0
    for group in study.groups:
        yield slice(first, first + len(group.matrix)), group
        first += len(group.matrix)


def _neighbourhood(group: Group, sharpe: Float64Array) -> Neighbourhood:
    """A group's sets among themselves; those of another strategy, or with a switch set otherwise, are no neighbours."""
    columns = group.table[: group.matrix.shape[1]]
    switches = [info.kind == "int" and (info.low, info.high) == (0.0, 1.0) for info in columns]
    return neighbourhood(group.matrix, sharpe, np.array(switches, dtype=np.bool_))


def _trials_deviation(whole: Pooled) -> float:
    """Deviation of the trials' per-bar Sharpe ratios; 0 for one trial, which nothing deflates."""
    known = whole.sharpe[np.isfinite(whole.sharpe)]
    return float(known.std(ddof=1)) if known.size > 1 else 0.0


def _interval(observed: float, values: Float64Array) -> Interval:
    known = values[np.isfinite(values)]
    ends = np.quantile(known, (0.05, 0.5, 0.95)) if known.size else np.full(3, np.nan)
    low, middle, high = (_number(end) for end in ends)
    return {"observed": _number(observed), "low_5": low, "median": middle, "high_95": high}


def _distribution(values: Float64Array) -> Distribution:
    known = values[np.isfinite(values)]
    ends = np.quantile(known, (0.05, 0.25, 0.5, 0.75, 0.95)) if known.size else np.full(5, np.nan)
    low, quarter, middle, three, high = (_number(end) for end in ends)
    return {
        "count": int(known.size),
        "mean": _number(known.mean()) if known.size else None,
        "deviation": _number(known.std(ddof=1)) if known.size > 1 else None,
        "low_5": low,
        "quarter": quarter,
        "median": middle,
        "three_quarters": three,
        "high_95": high,
        "below_zero": _share_below_zero(values),
    }


def _gained(growth: float) -> float:
    """A logarithm of growth as a return; as good as infinite where it exceeds a double."""
    return math.expm1(growth) if growth < LOG_MAX else math.inf


def _share_below_zero(values: Float64Array) -> float | None:
    known = values[~np.isnan(values)]
    return float((known < 0.0).mean()) if known.size else None


def _number(value: float | np.floating[Any]) -> float | None:
    return float(value) if math.isfinite(value) else None
