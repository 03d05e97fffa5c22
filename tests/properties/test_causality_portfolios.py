"""The future never changes the past of a portfolio: weights, fills, books, of every product; and cheats are caught."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strategies.causality import Leak, changed_panel, cuts_of, find_leaks, made_up_bars, own_close_leaks
from strategies.model import Bars, Float64Array
from strategies.panel import Panel, panel_of
from strategies.portfolio import run, weights_of
from strategies.portfolio_kernel import decisions_of
from strategies.registry import CROSS_SECTIONS
from strategies.spec import parse_backtest

Observed = Mapping[str, NDArray[Any]]
PRODUCTS = {"momentum_rotation": 3, "pairs": 2}
PARAMS: dict[str, dict[str, float]] = {
    "momentum_rotation": {"lookback": 10, "every": 7, "volatility_window": 8, "inverse_volatility": 1, "bottom": 1},
    "pairs": {"window": 30, "entry": 1.0, "exit": 0.2, "stop": 3.0},
}


def panel(products: int) -> Panel:
    """Products of which one begins late and one has gaps."""
    series = [made_up_bars(500, 7 + 10 * i, f"COIN{i}-USD") for i in range(products)]
    series[-1] = series[-1].between(40, 480)
    kept = np.arange(500) % 11 != 5
    columns = {name: getattr(series[0], name)[kept] for name in ("ts_ns", "open", "high", "low", "close", "volume")}
    series[0] = dataclasses.replace(series[0], **columns)
    return panel_of(series)


# A stop, a limit of volume and a size each of which looks at other bars than the decisions do.
EVERYTHING: dict[str, Any] = {
    "costs": {
        "spread_bps": 2,
        "impact": 0.1,
        "max_volume_share": 0.3,
        "fee_tiers": [[20_000, 5]],
        "locked_bars": "waits",
    },
    "sizing": {"kind": "volatility", "window": 15},
    "rules": {"stop_loss": 0.02, "take_profit": 0.05, "trailing_stop": 0.03, "time_stop_bars": 40, "leverage": 2},
}
CARRY: dict[str, Any] = {
    "costs": {"funding_bps_per_day": 3, "borrow_bps_per_day": 2, "fill": "same_close"},
    "rules": {"stop_loss": 0.02, "size": 2.5, "leverage": 3},
}


def observed(name: str, rules: Mapping[str, float] | None = None, **changes: Any) -> Callable[[Panel], Observed]:
    """Weights, books and fills, one row a time."""

    def observe(seen: Panel) -> Observed:
        content = {
            "product_ids": list(seen.product_ids),
            "granularity": str(seen.granularity),
            "strategy": name,
            "params": PARAMS[name] | dict(rules or {}),
        }
        result = run(parse_backtest(content | changes), seen)
        rows = {"weights": result.weights.T, "units": result.units.T, "equity": result.equity}
        return {**{what: np.ascontiguousarray(array) for what, array in rows.items()}, "fills": result.fills}

    return observe


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"costs": {"fill": "same_close"}},
        {"decide_on": "FOUR_HOUR"},
        EVERYTHING,
        CARRY,
        EVERYTHING | {"decide_on": "FOUR_HOUR"},
    ],
)
@pytest.mark.parametrize("name", CROSS_SECTIONS)
def test_no_weight_fill_or_book_depends_on_a_later_bar(name: str, changes: dict[str, Any]) -> None:
    whole, observe = panel(PRODUCTS[name]), observed(name, **changes)
    assert len(observe(whole)["fills"]) > 10
    assert find_leaks(observe, whole, changed_panel, cuts_of(len(whole), 8)) == []


def of_one_close(name: str, changes: Mapping[str, Any]) -> list[Leak]:
    """What fills of any product on a bar know of the first product's close on that bar."""
    others = [made_up_bars(500, 7 + 10 * i, f"COIN{i}-USD") for i in range(1, PRODUCTS[name])]
    observe = observed(name, **changes)
    bars = made_up_bars(500, 7, "COIN0-USD")
    # Only bars with fills can tell anything.
    tried = np.unique(observe(panel_of([bars, *others]))["fills"]["bar_index"])[:40].tolist()
    return own_close_leaks(lambda seen: observe(panel_of([seen, *others])), bars, tried)


@pytest.mark.parametrize("changes", [{}, EVERYTHING, CARRY | {"costs": {"borrow_bps_per_day": 2}}])
@pytest.mark.parametrize("name", CROSS_SECTIONS)
def test_no_fill_of_any_product_knows_a_close_of_its_own_bar(name: str, changes: dict[str, Any]) -> None:
    assert of_one_close(name, changes) == []


def test_fills_at_the_close_that_decided_them_are_seen_as_what_they_are() -> None:
    assert of_one_close("momentum_rotation", {"costs": {"fill": "same_close"}}) != []


def next_bar(close: Float64Array) -> Float64Array:
    return np.where(np.vstack([close[1:], close[-1:]]) > close, 0.3, 0.0)


def best_of_the_whole_series(close: Float64Array) -> Float64Array:
    weights = np.zeros(close.shape)
    weights[:, np.nanargmax(np.nansum(np.diff(close, axis=0), axis=0))] = 1.0
    return weights


def ranked_by_the_whole_series_mean(close: Float64Array) -> Float64Array:
    return np.where(close < np.nanmean(close, axis=0), 0.3, 0.0)


def honest(close: Float64Array) -> Float64Array:
    return np.where(close > np.vstack([close[:1], close[:-1]]), 0.3, 0.0)


def cheating_weights(weigh: Callable[[Float64Array], Float64Array]) -> Callable[[Panel], Observed]:
    chosen = CROSS_SECTIONS["pairs"]

    def decide(_vector: Float64Array, _open: Float64Array, _high: Float64Array, _low: Float64Array, *rest: Any) -> Any:
        return decisions_of(np.ascontiguousarray(weigh(rest[0])))

    cheating = dataclasses.replace(chosen, name="cheating", decide=decide)

    def observe(seen: Panel) -> Observed:
        return {"weights": np.ascontiguousarray(weights_of(cheating, chosen.params().vector(), seen).T)}

    return observe


def full_panel() -> Panel:
    return panel_of([made_up_bars(200, 7 + i, f"COIN{i}-USD") for i in range(2)])


@pytest.mark.parametrize("cheat", [next_bar, best_of_the_whole_series, ranked_by_the_whole_series_mean])
def test_a_cheating_cross_section_is_caught(cheat: Callable[[Float64Array], Float64Array]) -> None:
    assert find_leaks(cheating_weights(cheat), full_panel(), changed_panel, range(3, 190, 20))


def test_an_honest_one_written_the_same_way_is_not() -> None:
    assert find_leaks(cheating_weights(honest), full_panel(), changed_panel, range(3, 190, 20)) == []


def test_a_changed_panel_is_equal_before_the_cut_and_another_after() -> None:
    whole = panel(3)
    for cut in (1, 45, 250, 499):
        for change in ("cut off", "noise", "backwards"):
            other = changed_panel(whole, cut, change)
            for name in ("open", "high", "low", "close", "volume"):
                np.testing.assert_array_equal(getattr(other, name)[:, :cut], getattr(whole, name)[:, :cut])
            assert len(other) == (cut if change == "cut off" else len(whole))
            assert change == "cut off" or not np.array_equal(other.close, whole.close, equal_nan=True)


def test_one_products_bars_of_a_changed_panel_are_valid_bars() -> None:
    bars: Bars = changed_panel(panel(2), 100, "another walk").bars("COIN1-USD")
    assert (bars.low <= np.minimum(bars.open, bars.close)).all()
    assert (bars.high >= np.maximum(bars.open, bars.close)).all()
