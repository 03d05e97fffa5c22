"""What the report needs the bars for: the leaders run once more, candles, fills, and the best set at other costs.

It is computed once, where the bars are at hand, and kept small in best/figures.json beside the other results, so that
the page can be made again without them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from cluster.run_folder import RunFolder, RunRecord, replace_file
from jobs import results
from jobs.report_series import Candles, curve_points, drawdown, ladder
from strategies import portfolio
from strategies.backtest import Result
from strategies.model import Bars, Float64Array, Int64Array
from strategies.panel import Panel
from strategies.portfolio import PortfolioResult
from strategies.spec import BacktestSpec, Costs, SweepSpec

VERSION: Final = 1
SETS_MAX: Final = 4
CURVE_POINTS_MAX: Final = 1_200
CANDLES_MAX: Final = 2_000
# Of several products each gets fewer candles, and only the first have any.
PRODUCTS_MAX: Final = 8
PRODUCT_CANDLES_MAX: Final = 500
FILLS_MAX: Final = 1_500

MULTIPLES: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
MULTIPLE_MAX: Final = 16.0
FEES_BPS: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 80.0, 120.0)
FEE_BPS_MAX: Final = 1_000.0
HALVINGS: Final = 10
# Bars of all products together from which on only the best set is run again, and no break-even is looked for.
LARGE: Final = 8_000_000
COST_METRICS: Final = ("total_return", "cagr", "sharpe", "max_drawdown", "trades")
_SCALED: Final = ("fee_bps", "slippage_bps", "spread_bps", "impact", "funding_bps_per_day", "borrow_bps_per_day")


def figures_file_name(folder: RunFolder) -> str:
    """Where ``figures_of`` is kept, relative to the run folder."""
    return str((folder.equity_file.parent / "figures.json").relative_to(folder.path))


def write_figures(
    folder: RunFolder, spec: SweepSpec, record: RunRecord, rows: Sequence[Mapping[str, Any]], market: Bars | Panel
) -> dict[str, Any]:
    """Compute the figures of the leading ``rows`` (as ``Ranked.top`` gives them) and put them into the run folder."""
    figures = figures_of(spec, rows, market) | {"of": identity(record, rows)}
    text = json.dumps(figures, allow_nan=False, separators=(",", ":"))
    replace_file(folder.path / figures_file_name(folder), text.encode())
    return figures


def read_figures(folder: RunFolder, record: RunRecord, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What ``write_figures`` wrote; None where it is not there, is damaged, or belongs to other results."""
    try:
        found = json.loads((folder.path / figures_file_name(folder)).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # the page says that these figures are missing and how to have them made
    fits = isinstance(found, dict) and found.get("version") == VERSION and found.get("of") == identity(record, rows)
    return found if fits else None


def identity(record: RunRecord, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the figures depend on."""
    return [record.spec_hash, record.data_hash, [row["set_id"] for row in rows]]


def figures_of(spec: SweepSpec, rows: Sequence[Mapping[str, Any]], market: Bars | Panel) -> dict[str, Any]:
    """JSON-ready: ``sets`` (curve, fills), ``hold``, ``products`` (candles), ``costs`` of the first row's set."""
    cash = spec.costs.initial_cash
    sets: list[dict[str, Any]] = []
    first: tuple[BacktestSpec, Mapping[str, float]] | None = None
    for row in rows[: SETS_MAX if _cells(market) <= LARGE else 1]:
        result = results.run_set(spec, row["strategy"], row["params"], market)
        # Not the result itself: of many products it is as large as all their bars.
        first = (result.spec, result.metrics) if first is None else first
        about = {"set_id": row["set_id"], "strategy": row["strategy"], "params": row["params"]}
        curve = curve_of(market.ts_ns, result.equity, cash)
        sets.append(about | {"curve": curve, "fills": _fills(result, market)})
    if first is None:
        raise AssertionError("a run has at least one set")
    hold = results.buy_and_hold(market, spec)
    return {
        "version": VERSION,
        "sets": sets,
        "hold": curve_of(market.ts_ns, hold, cash),
        "products": _products(market),
        "product_count": len(market.product_ids) if isinstance(market, Panel) else 1,
        "costs": cost_sensitivity(first[0], market, first[1]),
    }


def _cells(market: Bars | Panel) -> int:
    return len(market) * (len(market.product_ids) if isinstance(market, Panel) else 1)


def shown_fills(count: int, limit: int = FILLS_MAX) -> Int64Array:
    """Which of so many fills are shown: the last half of what fits, and an even choice of those before."""
    if count <= limit:
        return np.arange(count)
    latest = limit // 2
    before = np.linspace(0, count - latest - 1, limit - latest).astype(np.int64)
    return np.concatenate([before, np.arange(count - latest, count)])


def cost_sensitivity(spec: BacktestSpec, market: Bars | Panel, own: Mapping[str, float]) -> dict[str, Any]:
    """The set at multiples of all its costs and at other fees, and where each takes away what it gained."""
    matrix = spec.vector()[np.newaxis]

    def at(costs: Costs | None) -> dict[str, float | None] | None:
        if costs is None:
            return None
        if costs == spec.costs:
            return {name: _number(own[name]) for name in COST_METRICS}
        try:
            found = portfolio.evaluate(
                spec.strategy, matrix, market, costs, spec.sizing, decide_on=spec.decide_on
            ).metrics[0]
        except ValueError:
            return None  # the accounts cannot go on at these costs
        named = dict(zip(own, found.tolist(), strict=True))
        return {name: _number(named[name]) for name in COST_METRICS}

    large = _cells(market) > LARGE
    fees = sorted({0.0, spec.costs.fee_bps, 2 * spec.costs.fee_bps} if large else {*FEES_BPS, spec.costs.fee_bps})
    multiples = [{"at": each, **figures} for each in MULTIPLES if (figures := at(scaled(spec.costs, each)))]
    grid = [{"at": fee, **figures} for fee in fees if (figures := at(with_fee(spec.costs, fee)))]

    def gain(costs: Costs | None) -> float:
        found = at(costs)
        return -1.0 if found is None or found["total_return"] is None else found["total_return"]

    unknown = {"at": None, "side": "unknown", "most": 0.0}
    return {
        "multiples": multiples,
        "fees": grid,
        "multiple_zero": unknown if large else break_even(lambda each: gain(scaled(spec.costs, each)), MULTIPLE_MAX),
        "fee_zero_bps": unknown if large else break_even(lambda fee: gain(with_fee(spec.costs, fee)), FEE_BPS_MAX),
        "fee_bps": spec.costs.fee_bps,
        "free": all(getattr(spec.costs, name) == 0 for name in _SCALED) and not spec.costs.fee_tiers,
    }


def break_even(gain: Callable[[float], float], most: float) -> dict[str, Any]:
    """Where ``gain`` crosses 0 on its way from 0 to ``most``, by halving: ``at`` and the last bracket's width.

    ``at`` is None where there is nothing to lose at 0 (``side`` "below") or still something at ``most`` ("above").
    With more costs other orders may be made, so the gain need not fall all the way: this is one crossing.
    """
    if gain(0.0) <= 0:
        return {"at": None, "side": "below", "most": most}
    low, high = 0.0, most
    step = most / 64
    while step < most and gain(step) > 0:
        low, step = step, step * 2
    if step >= most and gain(most) > 0:
        return {"at": None, "side": "above", "most": most}
    high = min(step, most)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) > 0 else (low, middle)
    return {"at": (low + high) / 2, "side": "", "most": most}


def scaled(costs: Costs, multiple: float) -> Costs | None:
    """All that trading costs times ``multiple``; None where that is more than a specification may ask for."""
    content = costs.model_dump()
    content |= {name: content[name] * multiple for name in _SCALED}
    content["fee_tiers"] = [tier | {"fee_bps": tier["fee_bps"] * multiple} for tier in content["fee_tiers"]]
    return _valid(content)


def with_fee(costs: Costs, fee_bps: float) -> Costs | None:
    """The same with this one fee, without tiers."""
    return _valid(costs.model_dump() | {"fee_bps": fee_bps, "fee_tiers": ()})


def _valid(content: dict[str, Any]) -> Costs | None:
    try:
        return Costs.model_validate(content)
    except ValidationError:
        return None


def why_filled(result: Result, bar: int, after: float, before: float, average: float, price: float, held: int) -> str:
    """Why a fill was made, as far as it can be told afterwards: a stop closes a position the strategy still wants.

    ``before`` and ``after`` are the position, ``average`` its entry price, ``held`` the bars since the entry.
    """
    if before == 0 or abs(after) > 1e-9 * abs(before):
        return "entry" if before == 0 else "resized" if (before > 0) == (after > 0) else "reversed"
    decided = bar if result.look_ahead else bar - 1
    wanted = float(result.target[decided]) if decided >= 0 else math.nan
    rules = result.spec.rules()
    if not (wanted > 0 if before > 0 else wanted < 0):
        return "target 0"
    change = math.copysign(1, before) * (price / average - 1) if average > 0 else 0.0
    if rules.stop_loss and change <= -0.9 * rules.stop_loss:
        return "stop_loss"
    if rules.take_profit and change >= 0.9 * rules.take_profit:
        return "take_profit"
    if rules.time_stop_bars and held >= rules.time_stop_bars:
        return "time_stop_bars"
    return "trailing_stop" if rules.trailing_stop else "closed"


def curve_of(ts_ns: Int64Array, equity: Float64Array, cash: float) -> dict[str, Any]:
    """A curve thinned for the page, with how far below its peak it is (0 or less)."""
    at = curve_points(equity, CURVE_POINTS_MAX)
    falls = -drawdown(equity, cash)[at]
    return {"ts": _seconds(ts_ns[at]), "equity": _rounded(equity[at]), "drawdown": _rounded(falls)}


def _fills(result: Result | PortfolioResult, market: Bars | Panel) -> dict[str, Any]:
    shown = shown_fills(len(result.fills))
    fills = result.fills[shown]
    content = {
        "total": len(result.fills),
        "ts": _seconds(market.ts_ns[fills["bar_index"]]),
        "side": fills["side"].tolist(),
        "price": _rounded(fills["price"]),
        "quantity": _rounded(fills["quantity"]),
        "fee": _rounded(fills["fee"]),
    }
    if isinstance(result, PortfolioResult):
        return content | {"product": fills["product"].tolist(), "why": ["weight"] * len(fills)}
    return content | {"product": [0] * len(fills), "why": _reasons(result, shown)}


def _reasons(result: Result, shown: Int64Array) -> list[str]:
    held = average = 0.0
    entry = 0
    reasons = []
    wanted = set(shown.tolist())
    columns = (result.fills[name].tolist() for name in ("bar_index", "side", "price", "quantity"))
    for position, (bar, side, price, quantity) in enumerate(zip(*columns, strict=True)):
        after = held + side * quantity
        after = 0.0 if abs(after) <= 1e-9 * quantity else after
        if position in wanted:
            reasons.append(why_filled(result, bar, after, held, average, price, bar - entry))
        if held == 0 or after == 0 or (held > 0) != (after > 0):
            average, entry = price, bar
        elif abs(after) > abs(held):
            average += (price - average) * quantity / abs(after)
        held = after
    return reasons


def _products(market: Bars | Panel) -> list[dict[str, Any]]:
    if isinstance(market, Bars):
        return [{"id": market.product_id, "levels": [_level(each) for each in ladder(market, CANDLES_MAX)]}]
    return [
        {"id": name, "levels": [_level(each) for each in ladder(market.bars(name), PRODUCT_CANDLES_MAX, 16)]}
        for name in market.product_ids[:PRODUCTS_MAX]
    ]


def _level(candles: Candles) -> dict[str, Any]:
    values = {name: _rounded(getattr(candles, name)) for name in ("open", "high", "low", "close")}
    volume = [float(f"{value:.4g}") for value in candles.volume.tolist()]
    return {"per": candles.per, "ts": _seconds(candles.ts_ns), **values, "volume": volume}


def _seconds(ts_ns: Int64Array) -> list[int]:
    found: list[int] = (ts_ns // 1_000_000_000).tolist()
    return found


def _rounded(values: Float64Array | NDArray[Any]) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
