"""Whatever sets a sweep is made of, its honesty is plain JSON, within its bounds, and the same in any order of sets."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs.honesty import AnyResult, Group, Study, columns_of, page_of
from strategies.backtest import FILL_DTYPE, BacktestSpec, Result
from strategies.model import Granularity
from strategies.parameters import ParameterInfo
from strategies.segments import HONEST_COLUMNS, Segments, plan_segments
from tests.bar_samples import NEW_YEAR_NS
from tests.moment_samples import moments_of

Floats = NDArray[np.float64]
TABLE = (
    ParameterInfo("fast", "int", 5, 1, 1_000, ""),
    ParameterInfo("width", "float", 2.0, 0.0, 10.0, ""),
    ParameterInfo("allow_short", "int", 0, 0, 1, ""),
)
KINDS = ("noise", "idle", "ruined", "constant", "huge", "stopped", "copy")


def returns_of(kinds: list[str], bars: int, seed: int) -> tuple[Floats, list[int]]:
    """Returns float64[m, bars - 1], and which sets were stopped early."""
    generator = np.random.default_rng(seed)
    returns = generator.normal(1e-4, 0.01, size=(len(kinds), max(bars - 1, 0)))
    for row, kind in enumerate(kinds):
        if kind == "idle":
            returns[row] = 0.0
        elif kind == "constant":
            returns[row] = 1e-3
        elif kind == "huge":
            returns[row] = np.abs(returns[row]) * 1e4
        elif kind == "copy":
            returns[row] = returns[0]
        elif kind == "ruined" and bars > 1:
            at = int(generator.integers(bars - 1))
            returns[row, at], returns[row, at + 1 :] = -1.0, 0.0
    return returns, [row for row, kind in enumerate(kinds) if kind == "stopped"]


def study_of_kinds(kinds: list[str], bars: int, seed: int) -> tuple[Study, AnyResult]:
    returns, stopped = returns_of(kinds, bars, seed)
    cuts = plan_segments(bars)
    moments = moments_of(returns, cuts)
    for row in stopped:
        moments[row, moments.shape[1] // 2 :] = np.nan
    generator = np.random.default_rng(seed + 1)
    matrix = np.stack(
        [generator.integers(1, 5, len(kinds)), generator.random(len(kinds)), np.zeros(len(kinds))], axis=1
    )
    study = Study((Group("made_up", TABLE, matrix.astype(float)),), moments, Segments(cuts), 8_766.0, seed)
    with np.errstate(over="ignore"):
        equity = np.minimum(10_000.0 * np.concatenate([[1.0], np.cumprod(1.0 + returns[0])]), 1e300)
    spec = BacktestSpec(product_id="BTC-USD", granularity=Granularity.ONE_HOUR, strategy="sma_cross")
    ts_ns = NEW_YEAR_NS + np.arange(bars, dtype=np.int64) * Granularity.ONE_HOUR.ns
    units = (np.arange(bars) // 7 % 2).astype(float)
    return study, Result(spec, ts_ns, equity[:bars], units, units, np.empty(0, dtype=FILL_DTYPE), {})


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=12),
    st.sampled_from([1, 2, 3, 50, 83, 200, 700]),
    st.integers(0, 2**31),
)
def test_every_sweep_has_a_page_that_is_plain_json(kinds: list[str], bars: int, seed: int) -> None:
    study, result = study_of_kinds(kinds, bars, seed)
    columns = columns_of(study)
    page = page_of(study, columns, 0, result)
    assert json.loads(json.dumps(page, allow_nan=False)) == page
    assert tuple(columns) == HONEST_COLUMNS
    assert all(values.shape == (len(kinds),) and not np.isinf(values).any() for values in columns.values())
    for name, low, high in (("psr", 0, 1), ("dsr", 0, 1), ("stability", -1, 1), ("oos_return", -1, np.inf)):
        known = columns[name][~np.isnan(columns[name])]
        assert ((known >= low) & (known <= high)).all()
    both = ~np.isnan(columns["dsr"])
    assert (columns["dsr"][both] <= columns["psr"][both]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 12))
def test_the_order_of_the_sets_changes_no_figure_of_any_set(seed: int, sets: int) -> None:
    study, _ = study_of_kinds(["noise"] * sets, 400, seed)
    order = np.random.default_rng(seed).permutation(sets)
    group = study.groups[0]
    shuffled = replace(study, groups=(replace(group, matrix=group.matrix[order]),), moments=study.moments[order])
    one, other = columns_of(study), columns_of(shuffled)
    for name in HONEST_COLUMNS:
        np.testing.assert_allclose(one[name][order], other[name], rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 8), st.integers(2, 6))
def test_more_trials_of_the_same_kind_deflate_more(seed: int, sets: int, times: int) -> None:
    study, _ = study_of_kinds(["noise"] * sets, 400, seed)
    group = study.groups[0]
    again = np.tile(np.arange(sets), times)
    more = replace(study, groups=(replace(group, matrix=group.matrix[again]),), moments=study.moments[again])
    few, many = columns_of(study)["dsr"], columns_of(more)["dsr"][:sets]
    # The same Sharpe ratios over again deviate by the factor of sample to population, which falls with their number.
    deviation = np.sqrt((sets - 1) / sets * sets * times / (sets * times - 1))
    if deviation > 0.9:
        assert (many <= few + 1e-12).all()
