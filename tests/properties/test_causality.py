"""The future never changes the past: strategies, indicators, tables, rules, costs, segments; and cheats are caught."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies import indicators
from strategies.backtest import BacktestSpec, evaluate, parse_backtest, run, targets_of
from strategies.base import Strategy, full_matrix, own_parameters
from strategies.causality import (
    CHANGES,
    bar_leaks,
    changed_bars,
    cuts_of,
    made_up_bars,
    own_close_leaks,
    target_leaks,
)
from strategies.compiled import plain, read_only
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES
from strategies.resample import carried, known_at, resample
from strategies.spec import Costs
from strategies.tables import Changes, Series, Windows

BARS = made_up_bars(900)
SHORT = made_up_bars(260)
Observed = Mapping[str, NDArray[Any]]


def vectors(strategy: Strategy, count: int) -> list[Float64Array]:
    """The defaults and random parameters whose windows fill within the bars."""
    random = np.random.default_rng(3)
    table = own_parameters(strategy)
    chosen = [strategy.params().vector()]
    while len(chosen) < count:
        drawn = [
            float(random.integers(int(info.low), int(min(info.high, 90)) + 1))
            if info.kind == "int"
            else random.uniform(info.low, info.high)
            for info in table
        ]
        vector = np.array(drawn)
        if strategy.params.keeps_order(vector[np.newaxis])[0]:
            chosen.append(vector)
    return chosen


# -- what is honest ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
def test_no_target_of_a_shipped_strategy_depends_on_a_later_bar(name: str) -> None:
    for vector in vectors(STRATEGIES[name], 4):
        assert np.isfinite(targets_of(STRATEGIES[name], vector, BARS)).any()
        assert target_leaks(STRATEGIES[name].targets, vector, BARS) == []


STEPS = sorted(name.removesuffix("_step") for name in vars(indicators) if name.endswith("_step") and name[0] != "_")
STEPS.remove("compiled")


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("name", STEPS)
def test_no_indicator_depends_on_a_later_value(name: str, size: int) -> None:
    start, step = (plain(getattr(indicators, f"{name}_{part}")) for part in ("start", "step"))
    assert len(inspect.signature(step).parameters) == 2

    def observe(bars: Bars) -> Observed:
        state, rows = start(size), []
        for value in bars.close.tolist():
            state, *results = step(state, value)
            rows.append(results)
        return {name: np.array(rows)}

    assert np.isfinite(observe(SHORT)[name]).any()
    assert bar_leaks(observe, SHORT) == []


@pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.switches is not None])
def test_no_change_found_in_shared_tables_depends_on_a_later_bar(name: str) -> None:
    """The fast way sees whole arrays: here its tables and scans alone, tile by tile as the engine asks for them."""
    strategy, tile = STRATEGIES[name], 128
    switches = strategy.switches
    assert switches is not None
    rows = read_only(np.stack(vectors(strategy, 6)))
    columns = [strategy.params.names().index(one) for one in switches.windows]
    sizes, places = np.unique(rows[:, columns].astype(np.int64), return_inverse=True)
    places = np.ascontiguousarray(places.reshape(len(rows), len(columns)).astype(np.int64))
    needs = switches.memory[0] * sizes + switches.memory[1]

    def observe(bars: Bars) -> Observed:
        series = Series(*(read_only(getattr(bars, one)) for one in Series._fields))
        windows = Windows(sizes, np.cumsum(needs) - needs, np.zeros(int(needs.sum())))
        table, carry = np.zeros((sizes.size, switches.lines, tile)), np.zeros((len(rows), 2))
        most = len(rows) * tile
        changes = Changes(np.zeros(len(rows) + 1, dtype=np.int64), np.empty(most, np.int64), np.empty(most))
        target = np.zeros((len(bars), len(rows)))
        for first in range(0, len(bars), tile):
            last = min(first + tile, len(bars))
            switches.table(series, first, last, windows, table)
            switches.scan(rows, places, table, series, first, last, carry, changes)
            for s in range(len(rows)):
                for j in range(changes.first[s], changes.first[s + 1]):
                    target[first + changes.bar[j] :, s] = changes.target[j]
        return {"target": target}

    wanted = np.stack([np.nan_to_num(targets_of(strategy, row, SHORT)) for row in rows], axis=1)
    np.testing.assert_array_equal(observe(SHORT)["target"], wanted)
    assert len(np.unique(wanted)) > 1
    assert bar_leaks(observe, SHORT) == []


def segments(cut: int, length: int) -> NDArray[np.int64]:
    """Cuts for moments: short segments up to ``cut``, then one to the end."""
    inner = np.linspace(0, cut, min(cut, 12) + 1).astype(np.int64)
    return np.unique(np.append(inner, length))


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_no_segment_of_a_block_depends_on_later_bars(name: str, fill: str) -> None:
    """The way a sweep goes, on whichever engine: what is kept of a segment is known at its end."""
    strategy = STRATEGIES[name]
    matrix = full_matrix(strategy, np.stack(vectors(strategy, 5)))
    costs = Costs.model_validate({"fill": fill, "zero_volume": "fills"})
    traded = False
    for cut in cuts_of(len(BARS), 6):
        if cut < 2:
            continue
        before = evaluate(strategy, matrix, BARS, costs, cuts=segments(cut, len(BARS))).moments
        kept = segments(cut, len(BARS)).size - 2
        traded = traded or bool((before[:, :kept, 2] > 0).any())
        for change in CHANGES:
            other = changed_bars(BARS, cut, change)
            after = evaluate(strategy, matrix, other, costs, cuts=segments(cut, len(other))).moments
            one, two = before[:, :kept], after[:, :kept]
            # Counts and growth to the last bit; sums but for their rounding, which another engine does otherwise:
            # later bars may well decide which one runs a set.
            np.testing.assert_array_equal(one[..., [0, 5]], two[..., [0, 5]], err_msg=f"cut {cut}, {change}")
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-15, err_msg=f"cut {cut}, {change}")
    assert traded


# Rules, sizes and costs, each beside the plain case it must differ from for the test to mean anything.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "same close": {"costs": {"fill": "same_close"}},
    "stop": {"params": {"stop_loss": 0.01}},
    "take profit": {"params": {"take_profit": 0.01}},
    "trailing stop": {"params": {"trailing_stop": 0.01}},
    "time stop": {"params": {"time_stop_bars": 5}},
    "all stops": {"params": {"stop_loss": 0.02, "take_profit": 0.03, "trailing_stop": 0.02, "time_stop_bars": 30}},
    "target first": {"params": {"stop_loss": 0.005, "take_profit": 0.005}, "costs": {"both_in_bar": "target_first"}},
    "leverage": {"params": {"size": 3.0, "leverage": 3.0}},
    "units": {"params": {"size": 5.0}, "sizing": {"kind": "units"}},
    "notional": {"params": {"size": 500.0}, "sizing": {"kind": "notional"}},
    "volatility": {"params": {"size": 0.2, "leverage": 2.0}, "sizing": {"kind": "volatility", "window": 20}},
    "increments": {"sizing": {"min_quantity": 1.0, "quantity_increment": 1.0}},
    "spread": {"costs": {"spread_bps": 20.0}},
    "impact": {"costs": {"impact": 0.1}},
    "volume share": {"costs": {"max_volume_share": 0.05, "initial_cash": 1e6}},
    "fee tiers": {"costs": {"fee_tiers": [[20_000.0, 10.0], [100_000.0, 1.0]]}},
    "funding": {"costs": {"funding_bps_per_day": 50.0}},
    "borrow": {"params": {"allow_short": 1}, "costs": {"borrow_bps_per_day": 50.0}},
    "locked bars": {"costs": {"locked_bars": "waits"}},
    "no volume": {"costs": {"zero_volume": "fills"}},
    "decided every four hours": {"decide_on": "FOUR_HOUR"},
    "decided every four hours, stops within": {"decide_on": "FOUR_HOUR", "params": {"stop_loss": 0.01}},
}


def case(name: str, strategy: str = "sma_cross") -> BacktestSpec:
    content = {"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": strategy, **CASES[name]}
    own = {"sma_cross": {"fast": 3, "slow": 12}, "donchian_breakout": {"entry_window": 8, "exit_window": 4}}[strategy]
    return parse_backtest(content | {"params": {**own, "allow_short": 1, **content.get("params", {})}})


def observed(spec: BacktestSpec) -> Callable[[Bars], Observed]:
    """What a backtest says bar by bar."""

    def observe(bars: Bars) -> Observed:
        result = run(spec, dataclasses.replace(bars, product_id="BTC-USD"))
        return {
            "target": result.target,
            "equity": result.equity,
            "position": result.position_units,
            "fills": result.fills,
        }

    return observe


def bars_for(name: str) -> Bars:
    """The bars a case needs to mean anything: some that stand still at another price, for those that wait there."""
    if name == "no volume":
        return dataclasses.replace(BARS, volume=np.where(np.arange(len(BARS)) % 3 == 1, 0.0, BARS.volume))
    if name != "locked bars":
        return BARS
    still = np.arange(len(BARS)) % 7 == 3
    opened, high, low = (np.where(still, BARS.close, column) for column in (BARS.open, BARS.high, BARS.low))
    return dataclasses.replace(BARS, open=opened, high=high, low=low)


# With all of a bar's volume known, a share of it is no forecast; an order on a locked bar waits by what it sees there.
@pytest.mark.parametrize("strategy", ["sma_cross", "donchian_breakout"])
@pytest.mark.parametrize("name", CASES)
def test_no_fill_equity_or_position_depends_on_a_later_bar(name: str, strategy: str) -> None:
    observe, bars = observed(case(name, strategy)), bars_for(name)
    fills, equity = (observe(bars)[what] for what in ("fills", "equity"))
    assert len(fills) > 10
    # A case that changes nothing would say nothing.
    assert name == "plain" or not np.array_equal(equity, observed(case("plain", strategy))(bars)["equity"])
    assert bar_leaks(observe, bars, cuts_of(len(bars), 7)) == []


@pytest.mark.parametrize("name", [name for name in CASES if name != "same close"])
def test_no_fill_knows_its_own_bars_close(name: str) -> None:
    observe = observed(case(name))
    filled = np.unique(observe(BARS)["fills"]["bar_index"])[:60].tolist()
    assert own_close_leaks(observe, BARS, filled) == []


@pytest.mark.parametrize("name", [name for name in CASES if name not in {"plain", "same close"}])
def test_no_segment_of_a_block_with_rules_depends_on_later_bars(name: str) -> None:
    spec = case(name)
    bars = bars_for(name)
    matrix = np.stack([spec.vector(), case(name).vector()])
    for cut in (150, 450, 897):
        kept = segments(cut, len(bars)).size - 2
        given = (spec.costs, spec.sizing, segments(cut, len(bars)), spec.decide_on)
        before = evaluate("sma_cross", matrix, bars, *given).moments[:, :kept]
        for change in CHANGES:
            other = changed_bars(bars, cut, change)
            given = (spec.costs, spec.sizing, segments(cut, len(other)), spec.decide_on)
            after = evaluate("sma_cross", matrix, other, *given).moments[:, :kept]
            np.testing.assert_array_equal(before[..., [0, 5]], after[..., [0, 5]], err_msg=f"cut {cut}, {change}")
            np.testing.assert_allclose(before, after, rtol=1e-9, atol=1e-15, err_msg=f"cut {cut}, {change}")


def test_a_decision_on_coarser_bars_depends_on_no_later_fine_bar() -> None:
    strategy = STRATEGIES["sma_cross"]

    def observe(bars: Bars) -> Observed:
        coarse = resample(bars, Granularity.FOUR_HOUR)
        target = targets_of(strategy, np.array([3.0, 9.0, 1.0]), coarse) if len(coarse) else np.empty(0)
        return {"target": carried(target, known_at(coarse, bars))}

    assert np.isfinite(observe(BARS)["target"]).any()
    assert bar_leaks(observe, BARS, range(1, 40)) == []
    assert bar_leaks(observe, BARS) == []


# -- cheats ------------------------------------------------------------------------------------------------------------

Closes = Callable[[Float64Array], Float64Array]
TAPE = np.zeros(10_000)


def next_bar(close: Float64Array) -> Float64Array:
    return np.append(np.where(close[1:] > close[:-1], 1.0, 0.0), 0.0)


def next_bar_through_a_global_array(close: Float64Array) -> Float64Array:
    # The tape is filled before the first bar; the step reads one place too far.
    TAPE[: close.size] = close
    TAPE[close.size :] = 0.0
    return np.array([1.0 if TAPE[i + 1] > TAPE[i] else 0.0 for i in range(close.size)])


def centred_window(close: Float64Array) -> Float64Array:
    smooth = np.convolve(close, np.full(5, 0.2), "full")[2 : close.size + 2]
    return np.where(close > smooth, 1.0, 0.0)


def normalised_by_the_whole_series(close: Float64Array) -> Float64Array:
    return np.where(close - close.mean() < -0.5 * close.std(), 1.0, 0.0)


def ranked_in_the_whole_series(close: Float64Array) -> Float64Array:
    return np.asarray(np.argsort(np.argsort(close)) / close.size)


def between_the_whole_series_ends(close: Float64Array) -> Float64Array:
    return np.asarray((close - close.min()) / max(close.max() - close.min(), 1e-9))


def filled_backwards(close: Float64Array) -> Float64Array:
    known = np.where(np.arange(close.size) % 10 == 9, close, np.nan)
    for i in range(close.size - 2, -1, -1):
        known[i] = known[i + 1] if np.isnan(known[i]) else known[i]
    return np.where(known > close, 1.0, 0.0)


def close_of_the_day_from_its_first_hour(close: Float64Array) -> Float64Array:
    last = np.minimum(np.arange(close.size) // 24 * 24 + 23, close.size - 1)
    return np.where(close[last] > close, 1.0, 0.0)


def out_before_the_worst_bar(close: Float64Array) -> Float64Array:
    held = np.ones(close.size)
    held[np.argmin(np.diff(close, append=close[-1])) :] = 0.0
    return held


def knows_how_long_the_series_is(close: Float64Array) -> Float64Array:
    return np.where(np.arange(close.size) > close.size // 2, 1.0, 0.0)


def knows_the_last_price(close: Float64Array) -> Float64Array:
    return np.where(close < close[-1], 1.0, -1.0)


def honest(close: Float64Array) -> Float64Array:
    return np.append(np.nan, np.where(close[1:] > close[:-1], 1.0, 0.0))


CHEATS = [
    next_bar,
    next_bar_through_a_global_array,
    centred_window,
    normalised_by_the_whole_series,
    ranked_in_the_whole_series,
    between_the_whole_series_ends,
    filled_backwards,
    close_of_the_day_from_its_first_hour,
    out_before_the_worst_bar,
    knows_how_long_the_series_is,
    knows_the_last_price,
]


def as_loop(closes: Closes) -> Callable[..., Float64Array]:
    """The loop of a strategy that looks at closes only."""
    return lambda _vector, _open, _high, _low, close, _volume: closes(close)


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_strategy_is_caught(cheat: Closes) -> None:
    leaks = target_leaks(as_loop(cheat), np.empty(0), BARS)
    assert leaks
    assert all(leak.bar < leak.cut for leak in leaks)
    assert "it knows bars that come later" in str(leaks[0])


def test_an_honest_strategy_written_the_same_way_is_not() -> None:
    assert target_leaks(as_loop(honest), np.empty(0), BARS) == []


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_strategy_is_caught_by_its_fills_and_equity_too(
    cheat: Closes, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheating = dataclasses.replace(STRATEGIES["sma_cross"], name="cheating", targets=as_loop(cheat), switches=None)
    monkeypatch.setitem(STRATEGIES, "cheating", cheating)
    # At the same close: at the next open the knowledge of one bar ahead is spent when it could be seen.
    content = {"strategy": "cheating", "costs": {"fill": "same_close"}}
    spec = parse_backtest({"product_id": "BTC-USD", "granularity": "ONE_HOUR", **content})
    leaks = bar_leaks(observed(spec), SHORT, cuts_of(len(SHORT), 6))
    assert {"target", "equity", "fills"} <= {leak.what for leak in leaks}


def test_fills_at_the_close_that_decided_them_are_caught() -> None:
    observe = observed(case("same close"))
    filled = np.unique(observe(BARS)["fills"]["bar_index"])[:60].tolist()
    assert own_close_leaks(observe, BARS, filled)


def test_a_coarse_decision_taken_before_its_bar_has_ended_is_caught() -> None:
    def observe(bars: Bars) -> Observed:
        coarse = resample(bars, Granularity.FOUR_HOUR, unfinished=True)
        begun = np.searchsorted(coarse.ts_ns, bars.ts_ns, side="right") - 1
        return {"target": np.where(coarse.close > coarse.open, 1.0, 0.0)[begun]}

    assert bar_leaks(observe, BARS)


def test_a_table_that_sees_the_next_bar_is_caught() -> None:
    def observe(bars: Bars) -> Observed:
        return {"table": np.append(bars.close[1:], np.nan)}

    assert bar_leaks(observe, BARS)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cut", [1, 450, 899])
def test_changed_bars_are_valid_bars_equal_before_the_cut_and_others_after(change: str, cut: int) -> None:
    other = changed_bars(BARS, cut, change)
    for name in ("ts_ns", "open", "high", "low", "close", "volume"):
        one, two = getattr(BARS, name), getattr(other, name)
        np.testing.assert_array_equal(one[:cut], two[:cut])
    assert len(other) == (cut if change == "cut off" else len(BARS))
    assert change == "cut off" or (other.close[cut:] != BARS.close[cut:]).any()
    assert ((other.low <= other.open) & (other.open <= other.high)).all()
    assert ((other.low <= other.close) & (other.close <= other.high)).all()
    assert (other.low > 0).all()
    assert np.isfinite(other.high).all()
    assert (other.volume >= 0).all()


@pytest.mark.parametrize("length", [2, 3, 5, 8, 100])
def test_cuts_lie_within_the_series(length: int) -> None:
    cuts = cuts_of(length)
    assert cuts
    assert all(0 < cut < length for cut in cuts)
    assert cuts == sorted(set(cuts))
