"""Properties of the engine of changes: the strategies' targets, and the general loop's results, by another way."""

from __future__ import annotations

import ast
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies import kernel, scans, switches
from strategies.backtest import AccountingError, BacktestSpec, Costs, Evaluation, evaluate, run, targets_of, warm
from strategies.base import Strategy, full_matrix, own_parameters
from strategies.compiled import cache_statistics, read_only
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array, Granularity
from strategies.registry import STRATEGIES
from strategies.tables import WORD, Changes, Series, Switches, Windows

ROOT = Path(__file__).resolve().parents[2]
SWITCHING = [name for name, strategy in STRATEGIES.items() if strategy.switches is not None]
# Whatever does not depend on the order in which many numbers are summed.
EXACT = ("total_return", "cagr", "max_drawdown_bars", "exposure", "turnover", "trades", "win_rate", "profit_factor")
KINDS = ("walk", "quiet", "ties", "still", "rising", "gaps", "saw", "tiny", "huge", "wild", "ruinous")


def made_up_bars(kind: str, seed: int, length: int) -> Bars:
    """Bars of the given character, also such as no market has."""
    random = np.random.default_rng(seed)
    steps = random.standard_normal(length)
    jumps = np.where(random.uniform(size=length) < 0.05, 3.0 * steps, 0.0)
    with np.errstate(over="ignore"):
        close = {
            "walk": 100.0 * np.exp(np.cumsum(0.01 * steps)),
            "quiet": 100.0 * np.exp(np.cumsum(1e-9 * steps)),
            "ties": np.round(20.0 + np.cumsum(np.round(0.7 * steps)) % 17.0),
            "still": np.full(length, 0.1),
            "rising": 1.01 ** np.arange(length),
            "gaps": 100.0 * np.exp(np.cumsum(0.001 * steps + jumps)),
            "saw": 100.0 + np.arange(length) % 7 + 1e-9 * steps,
            "tiny": 1e-305 * np.exp(np.cumsum(0.3 * steps)),
            "huge": 1e305 * np.exp(np.cumsum(0.3 * steps)),
            "wild": 10.0 ** (150.0 * np.sin(np.arange(length) / 40.0) + 0.1 * steps),
            "ruinous": np.where(random.uniform(size=length) < 0.03, 250.0, 100.0 + steps),
        }[kind]
    close = np.clip(close, 5e-324, 1.7e308)
    shift = 1.0 + 0.003 * random.standard_normal(length) * (kind != "still")
    open_ = np.clip(np.concatenate([close[:1], close[:-1]]) * shift, 5e-324, 1.7e308)
    ts_ns = np.arange(length, dtype=np.int64) * Granularity.ONE_HOUR.ns
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    return Bars("BTC-USD", Granularity.ONE_HOUR, ts_ns, open_, high, low, close, np.ones(length))


def rows_of(strategy: Strategy, seed: int, count: int, longest: int) -> Float64Array:
    """float64[count, k]: random parameters, windows up to ``longest`` bars, in no order and with repetitions."""
    random = np.random.default_rng(seed)
    rows: list[list[float]] = []
    while len(rows) < count:
        row = [
            float(random.integers(int(info.low), int(min(info.high, longest)) + 1))
            if info.kind == "int"
            else _level(random, info.low, info.high)
            for info in own_parameters(strategy)
        ]
        if strategy.params.keeps_order(np.array([row]))[0]:
            rows.append(row)
    return np.array(rows)


def _level(random: np.random.Generator, low: float, high: float) -> float:
    """Anywhere in the range, or near its lower end, where bands and volatilities are of use."""
    return float(random.uniform(low, high if random.uniform() < 0.5 else low + 0.03 * (high - low)))


@st.composite
def situations(draw: st.DrawFn) -> dict[str, Any]:
    length = draw(st.one_of(st.integers(1, 12), st.integers(13, 400)))
    cuts = sorted(draw(st.sets(st.integers(1, length - 1), max_size=4))) if length > 1 else []
    return {
        "bars": made_up_bars(draw(st.sampled_from(KINDS)), draw(st.integers(0, 10_000)), length),
        "seed": draw(st.integers(0, 10_000)),
        "sets": draw(st.integers(1, 5)),
        "longest": draw(st.sampled_from([4, 12, 40, 150, 1_000])),
        "fill": draw(st.sampled_from(["next_open", "same_close"])),
        "fee_bps": draw(st.sampled_from([0.0, 10.0, 1_000.0])),
        "slippage_bps": draw(st.sampled_from([0.0, 5.0])),
        "initial_cash": draw(st.sampled_from([1.0, 10_000.0, 1e12])),
        "cuts": np.array([0, *cuts, length], dtype=np.int64),
    }


def series_of(bars: Bars) -> Series:
    return Series(*(read_only(column) for column in (bars.open, bars.high, bars.low, bars.close, bars.volume)))


def steps_of(target: Float64Array) -> list[tuple[int, float]]:
    """The changes in a strategy's targets as the general loop takes them: NaN is 0, and 0 comes before the first."""
    wanted = np.where(np.isnan(target), 0.0, target)
    before = np.concatenate([[0.0], wanted[:-1]])
    return [(int(i), float(wanted[i])) for i in np.flatnonzero(wanted != before)]


def found_changes(
    strategy: Strategy, rows: Float64Array, bars: Bars, tiles: list[int]
) -> list[list[tuple[int, float]]]:
    """The changes as the engine finds them, in tiles of the given lengths (the last one over and over)."""
    assert strategy.switches is not None
    columns = [strategy.params.names().index(name) for name in strategy.switches.windows]
    sizes, places = np.unique(rows[:, columns].astype(np.int64), return_inverse=True)
    needs = strategy.switches.memory[0] * sizes + strategy.switches.memory[1]
    windows = Windows(sizes, np.cumsum(needs) - needs, np.zeros(int(needs.sum())))
    width = -(-max(tiles) // WORD) * WORD
    table = np.zeros((sizes.size, strategy.switches.lines, width))
    room = len(rows) * width
    changes = Changes(np.zeros(len(rows) + 1, dtype=np.int64), np.empty(room, np.int64), np.empty(room))
    carried = np.zeros((len(rows), 2))
    found: list[list[tuple[int, float]]] = [[] for _ in rows]
    for first, last in _tiles(len(bars), tiles):
        strategy.switches.table(series_of(bars), first, last, windows, table)
        strategy.switches.scan(
            read_only(rows),
            places.reshape(len(rows), len(columns)).astype(np.int64),
            table,
            series_of(bars),
            first,
            last,
            carried,
            changes,
        )
        for s in range(len(rows)):
            for j in range(changes.first[s], changes.first[s + 1]):
                found[s].append((first + int(changes.bar[j]), float(changes.target[j])))
    return found


def _tiles(length: int, tiles: list[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for number in range(length):
        last = min(first + tiles[min(number, len(tiles) - 1)], length)
        yield first, last
        first = last
        if first == length:
            return


@pytest.mark.parametrize("name", SWITCHING)
@given(situation=situations(), tiles=st.lists(st.integers(1, 200), min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_the_changes_found_are_those_of_the_targets(name: str, situation: dict[str, Any], tiles: list[int]) -> None:
    strategy, bars = STRATEGIES[name], situation["bars"]
    rows = rows_of(strategy, situation["seed"], situation["sets"], situation["longest"])
    for row, found in zip(rows, found_changes(strategy, rows, bars, tiles), strict=True):
        expected = steps_of(targets_of(strategy, row, bars))
        event(f"{min(len(expected), 3)} changes or more")
        assert found == expected


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short series go through many tiles, and rows through several turns."""
    monkeypatch.setattr(scans, "TILE_BARS", 64)
    monkeypatch.setattr(scans, "SETS_AT_ONCE", 2)
    monkeypatch.setattr(scans, "TARGETS_AT_ONCE", 300)


def general(strategy: Strategy, *arguments: Any, **named: Any) -> Evaluation | AccountingError:
    """The same evaluation without the engine of changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scans, "applies", lambda _: False)
        return attempt(strategy, *arguments, **named)


def attempt(strategy: Strategy, *arguments: Any, **named: Any) -> Evaluation | AccountingError:
    try:
        return evaluate(strategy, *arguments, **named)
    except AccountingError as error:
        return error


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", SWITCHING)
@given(situation=situations())
@settings(max_examples=300, deadline=None)
def test_evaluations_equal_those_of_the_general_loop(name: str, situation: dict[str, Any]) -> None:
    strategy = STRATEGIES[name]
    rows = rows_of(strategy, situation["seed"], situation["sets"], situation["longest"])
    costs = Costs(**{name: situation[name] for name in ("fill", "fee_bps", "slippage_bps", "initial_cash")})
    for cuts in (None, situation["cuts"]):
        fast = attempt(strategy, rows, situation["bars"], costs, cuts=cuts)
        slow = general(strategy, rows, situation["bars"], costs, cuts=cuts)
        if isinstance(slow, AccountingError) or isinstance(fast, AccountingError):
            event("no accounts")
            assert str(fast) == str(slow)
        else:
            assert_equal(fast, slow)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", SWITCHING)
@given(situation=situations())
@settings(max_examples=100, deadline=None)
def test_targets_filled_in_from_the_changes_give_the_same_bits_under_every_rule(
    name: str, situation: dict[str, Any]
) -> None:
    """Sets with rules are accounted bar by bar; those that differ in their rules alone share their targets."""
    strategy = STRATEGIES[name]
    own = rows_of(strategy, situation["seed"], situation["sets"], situation["longest"])
    rows = full_matrix(strategy, own[np.repeat(np.arange(len(own)), 2)])
    rows[:, own.shape[1]] = np.tile([0.02, 0.3], len(own))
    costs = Costs(**{name: situation[name] for name in ("fill", "fee_bps", "slippage_bps", "initial_cash")})
    fast = attempt(strategy, rows, situation["bars"], costs, cuts=situation["cuts"])
    slow = general(strategy, rows, situation["bars"], costs, cuts=situation["cuts"])
    if isinstance(slow, AccountingError) or isinstance(fast, AccountingError):
        assert str(fast) == str(slow)
        return
    np.testing.assert_array_equal(fast.metrics, slow.metrics)
    np.testing.assert_array_equal(fast.moments, slow.moments)


def test_targets_of_rows_that_return_later_are_right(small_tiles: None) -> None:
    strategy, bars = STRATEGIES["sma_cross"], made_up_bars("walk", 12, 1_000)
    rows = np.array([[2.0, 9.0, 1.0], [2.0, 9.0, 1.0], [5.0, 20.0, 0.0], [2.0, 9.0, 1.0], [3.0, 9.0, 1.0]])
    found = list(scans.targets(strategy, rows, series_of(bars)))
    assert [steps_of(target) for target in found] == [steps_of(targets_of(strategy, row, bars)) for row in rows]
    assert list(scans.targets(strategy, rows[:0], series_of(bars))) == []
    nothing = Series(*(column[:0] for column in series_of(bars)))  # decided on longer bars, of which none is complete
    assert [len(target) for target in scans.targets(strategy, rows, nothing)] == [0] * 5


def assert_equal(fast: Evaluation, slow: Evaluation) -> None:
    """Money to the last bit, statistics to 1e-9 of themselves, or of what is noise in them."""
    exact = [METRICS.index(name) for name in EXACT]
    np.testing.assert_array_equal(fast.metrics[:, exact], slow.metrics[:, exact])
    rest = [column for column in range(len(METRICS)) if column not in exact]
    np.testing.assert_allclose(fast.metrics[:, rest], slow.metrics[:, rest], rtol=1e-9, atol=1e-12)
    assert_moments_equal(fast.moments, slow.moments)


def assert_moments_equal(fast: NDArray[np.float64], slow: NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(fast[:, :, 0], slow[:, :, 0])
    np.testing.assert_allclose(fast[:, :, 5], slow[:, :, 5], rtol=1e-9, atol=1e-14)
    for s in range(fast.shape[1]):
        with np.errstate(over="ignore", invalid="ignore"):
            scale = np.sqrt(slow[:, :, 2].sum(axis=1))
            for power in (1, 2, 3, 4):
                off = np.abs(fast[:, s, power] - slow[:, s, power])
                assert (off <= 1e-9 * np.maximum(np.abs(slow[:, s, power]), scale**power)).all() or not np.isfinite(
                    slow[:, s, power]
                ).all()


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("name", "row", "kind", "seed", "length", "fill"),
    [
        pytest.param(
            "vol_target_momentum",
            (8.0, 38.0, 0.0246838237152765, 0.2272387217847769, 0.0),
            "wild",
            42,
            266,
            "same_close",
            id="the cash of a part was taken for rounding where the price had risen by twenty powers of ten since",
        ),
        pytest.param(
            "sma_cross", (8.0, 23.0, 0.0), "quiet", 122, 80, "next_open", id="losses of a millionth of a millionth"
        ),
    ],
)
def test_what_once_disagreed_agrees(
    name: str, row: tuple[float, ...], kind: str, seed: int, length: int, fill: str
) -> None:
    costs = Costs.model_validate({"fee_bps": 0.0, "slippage_bps": 0.0, "fill": fill})
    arguments = (STRATEGIES[name], np.array([row]), made_up_bars(kind, seed, length), costs)
    fast, slow = attempt(*arguments), general(*arguments)
    assert isinstance(fast, Evaluation)
    assert isinstance(slow, Evaluation)
    assert_equal(fast, slow)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", SWITCHING)
def test_equity_is_equal_to_the_last_bit_at_every_close(name: str, fill: str) -> None:
    strategy, costs = STRATEGIES[name], Costs(fill=fill)
    rows = rows_of(strategy, 3, 3, 12)
    bars = made_up_bars("walk", 5, 200)
    for row in rows:
        params = dict(zip(strategy.params.names(), row.tolist(), strict=True))
        spec = BacktestSpec(
            product_id="BTC-USD", granularity=Granularity.ONE_HOUR, strategy=name, params=params, costs=costs
        )
        whole = run(spec, bars).equity
        for stop in range(1, len(bars) + 1):
            ended = evaluate(strategy, row[np.newaxis], bars.between(0, stop), costs).metrics[0, 0]
            assert ended == whole[stop - 1] / costs.initial_cash - 1.0


@pytest.mark.parametrize("fill", ["next_open", "same_close"])
@pytest.mark.parametrize("name", SWITCHING)
def test_orders_at_the_changes_are_the_fills_of_the_general_loop(name: str, fill: str) -> None:
    strategy, bars, costs = STRATEGIES[name], made_up_bars("walk", 8, 1_500), Costs(fill=fill, fee_bps=10)
    params = {"allow_short": 1.0}
    spec = BacktestSpec(
        product_id="BTC-USD", granularity=Granularity.ONE_HOUR, strategy=name, params=params, costs=costs
    )
    fills = run(spec, bars).fills
    lag = 0 if costs.look_ahead else 1
    book = kernel.Book(costs.initial_cash, 0.0, 0.0, 0.0, 0, 0, 0.0, 0.0, False)
    made = []
    for bar, target in found_changes(strategy, spec.parameters().vector()[np.newaxis], bars, [256])[0]:
        if bar + lag < len(bars):
            price = (bars.open if lag else bars.close)[bar + lag]
            book, execution = kernel.carry_out(
                book, target, float(price), costs.fee_bps / 1e4, costs.slippage_bps / 1e4
            )
            if execution.quantity:
                made.append((bar + lag, math.copysign(1, execution.quantity), execution.price, abs(execution.quantity)))
    assert len(made) > 5
    assert made == [(int(f["bar_index"]), float(f["side"]), float(f["price"]), float(f["quantity"])) for f in fills]


MONEY = st.one_of(st.floats(-2e4, 2e4), st.floats(1e-300, 1e300), st.sampled_from([0.0, 1.0, 1e4, 5e-324]))


@given(
    cash=MONEY,
    units=MONEY,
    stake=MONEY,
    target=st.one_of(st.floats(-1, 1), st.sampled_from([0.0, -0.0, 1.0, -1.0])),
    price=st.one_of(st.floats(0.01, 1e5), st.floats(5e-324, 1.7e308)),
    fee=st.sampled_from([0.0, 0.001, 0.1]),
    slippage=st.sampled_from([0.0, 0.0005, 0.5]),
)
@settings(max_examples=2_000, deadline=None)
def test_an_order_without_branches_is_the_kernels_order(
    cash: float, units: float, stake: float, target: float, price: float, fee: float, slippage: float
) -> None:
    book = kernel.Book(cash, units, stake, 0.5, 3, 1, 2.0, 5.0, False)
    expected, execution = kernel.carry_out(book, target, price, fee, slippage)
    event(f"ruined {expected.ruined}, made {execution.quantity != 0}")
    found = switches._ordered(book, target, price, fee, slippage)
    np.testing.assert_array_equal(np.array(found, dtype=np.float64), np.array(expected, dtype=np.float64))


@pytest.mark.parametrize("name", SWITCHING)
def test_ordinary_sets_are_not_left_to_the_general_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = STRATEGIES[name]
    rows = np.stack([strategy.params().vector(), strategy.params.model_validate({"allow_short": 1}).vector()])
    monkeypatch.setattr("strategies.backtest._account", None)  # the general loop would fall over it
    results = evaluate(strategy, rows, made_up_bars("walk", 2, 20_000), Costs(fee_bps=1))
    assert (results.metrics[:, METRICS.index("trades")] > 5).all()


def test_a_ruined_set_is_run_by_the_general_loop_and_the_others_are_not() -> None:
    strategy = STRATEGIES["sma_cross"]
    bars = made_up_bars("ruinous", 2, 500)
    rows = np.array([[2.0, 9.0, 1.0], [2.0, 9.0, 0.0]])
    results = evaluate(strategy, rows, bars, Costs(fee_bps=0, slippage_bps=0))
    assert results.metrics[0, 0] == -1.0
    assert results.metrics[1, 0] > -1.0


def test_an_evaluation_does_not_depend_on_the_rows_beside_it() -> None:
    """To the last bit: a sweep's table must not tell how it was cut into blocks. The tiles once followed from them."""
    strategy, bars = STRATEGIES["sma_cross"], made_up_bars("walk", 12, 20_000)
    rows = rows_of(strategy, 6, 150, 300)
    cuts = np.array([0, 700, 9_000, 20_000], dtype=np.int64)
    together = evaluate(strategy, rows, bars, Costs(), cuts=cuts)
    for size in (1, 7, 40):
        blocks = [evaluate(strategy, rows[at : at + size], bars, Costs(), cuts=cuts) for at in range(0, 150, size)]
        np.testing.assert_array_equal(together.metrics, np.concatenate([block.metrics for block in blocks]))
        np.testing.assert_array_equal(together.moments, np.concatenate([block.moments for block in blocks]))


def test_an_evaluation_does_not_depend_on_the_rows_beside_it_or_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy, bars = STRATEGIES["sma_cross"], made_up_bars("walk", 12, 5_000)
    rows = rows_of(strategy, 6, 40, 300)
    exact = [METRICS.index(name) for name in EXACT]
    together = evaluate(strategy, rows, bars, Costs()).metrics
    monkeypatch.setattr(scans, "TILE_BARS", 64)
    alone = np.concatenate([evaluate(strategy, row[np.newaxis], bars, Costs()).metrics for row in rows])
    np.testing.assert_array_equal(together[:, exact], alone[:, exact])
    np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_addresses_are_taken_only_of_what_a_caller_holds() -> None:
    """An array made in the same function is freed after its last mention; the words of directions once were so."""
    for path in sorted((ROOT / "strategies").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                given = {argument.arg for argument in function.args.args}
                assert _addressed(function) <= given, f"{path.name}: {function.name}"


def _addressed(function: ast.FunctionDef) -> set[str]:
    """The names whose arrays, or parts, ``address`` is called with."""
    calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
    taken = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "address"]
    return {next(node.id for node in ast.walk(part) if isinstance(node, ast.Name)) for part in taken}


def machine_code_made() -> list[str]:
    """Which of the engine's functions this process had to compile for blocks of several sets and segments."""
    bars = made_up_bars("walk", 1, 3_000)
    for name in SWITCHING:
        strategy = STRATEGIES[name]
        rows = rows_of(strategy, 1, 7, 50)
        for cuts in (None, np.array([0, 1, 700, 3_000], dtype=np.int64)):
            evaluate(strategy, rows, bars, Costs(), cuts=cuts)
    functions = [*vars(switches).values(), *(strategy.switches for strategy in STRATEGIES.values())]
    functions += [part for one in functions if isinstance(one, Switches) for part in (one.table, one.scan)]
    return [made.__name__ for made in functions if hasattr(made, "stats") and cache_statistics(made)[1]]


def test_after_warming_another_process_compiles_nothing_for_any_shape_of_block() -> None:
    """A lone row's moments once had a layout of their own, so that blocks of several compiled again."""
    warm()
    code = "import json; from tests.properties import test_switches as t; print(json.dumps(t.machine_code_made()))"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=280
    )
    assert json.loads(answer.stdout) == []
