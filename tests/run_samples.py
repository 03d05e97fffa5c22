"""Runs for tests: a small store, specifications, and a run driven in this process without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.market_data import SIMULATED, BarStore
from cluster.runs import Block, RunFolder, prepare_run, read_market
from jobs.blocks import compute_here, config_of, evaluate_block
from jobs.plan import ParameterSets
from jobs.sweep import Reporter, Run, finish, plan_of, work_of
from strategies.backtest import SweepSpec, parse_spec
from strategies.model import Bars, Granularity
from tests.bar_samples import NEW_YEAR_NS

TWO_STRATEGIES: dict[str, Any] = {
    "product_id": "BTC-USD",
    "granularity": "ONE_HOUR",
    "grids": [
        {"strategy": "sma_cross", "grid": {"fast": [3, 5, 8, 13, 21], "slow": [8, 13, 21, 34], "allow_short": [0, 1]}},
        {"strategy": "rsi_reversion", "grid": {"window": [7, 14], "oversold": {"start": 20, "stop": 35, "step": 2.5}}},
    ],
}


def wavy_bars(count: int, seed: int = 7, granularity: Granularity = Granularity.ONE_HOUR) -> Bars:
    """Bars that trend and turn, so that strategies trade and their metrics differ."""
    draws = np.random.default_rng(seed).normal(size=(count, 3))
    wave = 0.1 * np.sin(np.arange(count) / 40) + 0.05 * np.sin(np.arange(count) / 11)
    close = 20_000 * np.exp(wave + np.cumsum(draws[:, 0] * 2e-3))
    opened = np.concatenate([[close[0]], close[:-1]])
    high = np.maximum(opened, close) * (1 + np.abs(draws[:, 1]) * 1e-3)
    low = np.minimum(opened, close) * (1 - np.abs(draws[:, 2]) * 1e-3)
    ts_ns = NEW_YEAR_NS + np.arange(count, dtype=np.int64) * granularity.ns
    return Bars("BTC-USD", granularity, ts_ns, opened, high, low, close, np.abs(draws[:, 1]) + 1)


def make_store(root: Path, bars: Bars | None = None, source: str = SIMULATED) -> BarStore:
    """A store that holds ``bars`` (else 600 wavy ones)."""
    store = BarStore(root)
    store.write(wavy_bars(600) if bars is None else bars, source=source)
    return store


def make_spec(**changes: Any) -> SweepSpec:
    """The two strategies' specification with some fields changed: 42 sets, of which some break fast < slow."""
    return parse_spec(TWO_STRATEGIES | changes)


def one_set_spec(**changes: Any) -> SweepSpec:
    """A sweep of one parameter set: what a single backtest is."""
    return make_spec(grids=[{"strategy": "sma_cross", "grid": {"fast": [5], "slow": [21]}}], **changes)


def loaded(folder: RunFolder, store: BarStore) -> Run:
    """A prepared run, its bars read."""
    spec = folder.spec()
    return Run(folder, spec, folder.record(), read_market(store, spec), spec.parameter_sets())


def cut(sets: ParameterSets, block_count: int) -> list[Block]:
    """About so many blocks that hold every set once."""
    blocks, first = [], 0
    size = max(1, sum(len(matrix) for _, matrix in sets) // block_count)
    for grid, (strategy, matrix) in enumerate(sets):
        for start in range(first, first + len(matrix), size):
            stop = min(start + size, first + len(matrix))
            blocks.append(Block(strategy=strategy, grid=grid, start=start, stop=stop))
        first += len(matrix)
    return blocks


def evaluate_blocks(run: Run, blocks: Sequence[Block]) -> None:
    """Put the parts of these blocks into the run folder, as workers do."""
    for block in blocks:
        evaluate_block(config_of(block), work_of(run))


def complete_run(
    runs_dir: Path, store: BarStore, spec: SweepSpec, run_id: str = "a1", block_count: int = 6
) -> RunFolder:
    """A run computed to its end in this process, block by block, by the functions the workers and the driver call."""
    run = loaded(prepare_run(runs_dir, store, spec, run_id), store)
    evaluate_blocks(run, cut(run.sets, block_count))
    finish(run, Reporter(run.folder))
    return run.folder


def driven_here(folder: RunFolder, store: BarStore) -> RunFolder:
    """A prepared run, a grid's or a search, computed to its end as a driver that needs no worker does."""
    run = loaded(folder, store)
    state = Reporter(folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    finish(run, state, plan)
    return folder
