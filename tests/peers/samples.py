"""What engines are compared on: series, strategies, costs; and a strategy that is told its targets."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cluster.bar_files import read_file
from strategies.backtest import BacktestSpec, Costs, Result, run
from strategies.base import BarStep, Params, Strategy
from strategies.compiled import compiled, compiled_step
from strategies.metrics import periods_per_year
from strategies.model import Bars, Float64Array
from strategies.registry import STRATEGIES
from tests.bar_samples import REAL_DATA
from tests.peers.engines.cases import BAR_COLUMNS, Case
from tests.run_samples import wavy_bars

YEAR_NS: Final = 365.25 * 86_400e9
CHEAP: Final = {"fee_bps": 10.0, "slippage_bps": 5.0}
SHORTS_OF_SMA_CROSS: Final = "shorts_of_sma_cross"
FREE: Final = {"fee_bps": 0.0, "slippage_bps": 0.0}

REAL_FILES: Final = {
    "btc-4h": "ta4j_coinbase/Coinbase-BTC-USD-PT4H-20160518_20251028.json",
    "eth-1d": "ta4j_coinbase/Coinbase-ETH-USD-PT1D-20160517_20251028.json",
    "btc-1m": "lean_coinbase/minute/btcusd/20171217_trade.zip",
}


@functools.cache
def series(name: str) -> Bars:
    """The bars called ``name``: "made-up" (3,000, no gap), "with-gaps" (a tenth of them missing), or a real file."""
    if name == "made-up":
        return wavy_bars(3_000)
    if name == "with-gaps":
        whole = wavy_bars(3_000, seed=11)
        kept = np.random.default_rng(11).random(len(whole)) > 0.1
        arrays = (np.ascontiguousarray(getattr(whole, column)[kept]) for column in BAR_COLUMNS)
        return Bars(whole.product_id, whole.granularity, np.ascontiguousarray(whole.ts_ns[kept]), *arrays)
    return read_file(REAL_DATA / REAL_FILES[name])


@dataclass(frozen=True)
class Question:
    """One comparison: a strategy with parameters on a series, with costs and a timing; ``extra`` is for one engine."""

    series: str
    strategy: str
    params: dict[str, float]
    fill: str = "next_open"
    costs: dict[str, float] | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Readable, and a file's name."""
        numbers = "-".join(f"{value:g}" for value in self.params.values())
        fees = "" if self.costs is None else f"-fee{self.costs['fee_bps']:g}"
        extra = "".join(f"-{value}" for _, value in self.extra)
        return "-".join([self.series, self.strategy, numbers, self.fill]) + fees + extra

    @functools.cached_property
    def result(self) -> Result:
        """Our own answer."""
        bars = series(self.series)
        if self.strategy == SHORTS_OF_SMA_CROSS:
            both = run_on(bars, "sma_cross", self.params | {"allow_short": 1}, self.fill, self.costs)
            return run_on(
                told(bars, np.minimum(np.nan_to_num(both.target), 0.0)), GIVEN_TARGETS.name, {}, self.fill, self.costs
            )
        return run_on(bars, self.strategy, self.params, self.fill, self.costs)

    @property
    def filled_bars(self) -> NDArray[np.int64]:
        """The bars with fills."""
        return np.unique(self.result.fills["bar_index"])

    def case(self) -> Case:
        """The same for another engine."""
        return case_of(self.name, series(self.series), self.result, dict(self.extra))


def run_on(
    bars: Bars, strategy: str, params: dict[str, float], fill: str = "next_open", costs: dict[str, float] | None = None
) -> Result:
    """Our engine's answer; ``strategy`` may be ``given_targets``."""
    terms = Costs.model_validate({**(costs or CHEAP), "fill": fill})
    with _given_targets_registered():
        spec = BacktestSpec(
            product_id=bars.product_id, granularity=bars.granularity, strategy=strategy, params=params, costs=terms
        )
        return run(spec, bars)


def case_of(name: str, bars: Bars, result: Result, extra: dict[str, Any]) -> Case:
    """What ``result`` did on ``bars`` as a case."""
    costs = result.spec.costs
    wanted = np.nan_to_num(result.target)
    if not costs.look_ahead:
        wanted = np.concatenate([[0.0], wanted[:-1]])
    years = float(bars.ts_ns[-1] - bars.ts_ns[0]) / YEAR_NS
    settings = {
        "initial_cash": costs.initial_cash,
        "fee": costs.fee_bps / 1e4,
        "slippage": costs.slippage_bps / 1e4,
        "timing": costs.fill,
        "periods_per_year": periods_per_year(len(bars), years),
    }
    columns = (bars.open, bars.high, bars.low, bars.close, bars.volume)
    return Case(name, bars.ts_ns, *columns, wanted, result.position_units, settings | extra)


class GivenTargetsParams(Params):
    """Nothing to choose."""


@compiled
def given_start(vector: Float64Array) -> int:
    return 0


@compiled_step
def given_on_bar(vector: Float64Array, state: int, bar: BarStep) -> tuple[int, float]:
    """The target is the bar's volume less 2: a way to run any list of targets through the engine as it stands."""
    return state, bar.volume - 2.0


@compiled
def given_targets(
    vector: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    volume: Float64Array,
) -> Float64Array:
    target = np.empty(close.size)
    state = given_start(vector)
    for i in range(close.size):
        bar = BarStep(open_[i], high[i], low[i], close[i], volume[i])
        state, target[i] = given_on_bar(vector, state, bar)
    return target


GIVEN_TARGETS: Final = Strategy(
    "given_targets", "Given targets", GivenTargetsParams, given_start, given_on_bar, given_targets
)


def told(bars: Bars, target: Float64Array) -> Bars:
    """``bars`` whose volume tells ``given_targets`` the target float64[n] of each bar."""
    return Bars(bars.product_id, bars.granularity, bars.ts_ns, bars.open, bars.high, bars.low, bars.close, target + 2.0)


@contextmanager
def _given_targets_registered() -> Iterator[None]:
    STRATEGIES[GIVEN_TARGETS.name] = GIVEN_TARGETS
    try:
        yield
    finally:
        del STRATEGIES[GIVEN_TARGETS.name]
