"""Pairs: two products that move together are bet on to meet again when their spread is unusually wide."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import Params
from strategies.compiled import compiled, compiled_step
from strategies.cross_section import CrossSection, PanelStep, natural_log
from strategies.model import Float64Array
from strategies.portfolio_kernel import Decisions, decided, new_decisions


class PairsParams(Params):
    """Distances are counted in standard deviations of the spread over the window."""

    BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("exit", "entry"), ("entry", "stop"))

    window: int = Field(200, ge=3, le=10_000, description="bars in hedge ratio, mean and deviation of the spread")
    entry: float = Field(2.0, ge=0.1, le=20.0, description="distance at which the bet is made")
    exit: float = Field(0.5, ge=0.0, le=20.0, description="distance at which it has come off")
    stop: float = Field(4.0, ge=0.2, le=100.0, description="distance at which it is given up")


class Comoments(NamedTuple):
    """Means, squares and products of two series over a window, cut into laps as in indicators.py.

    ``ring`` float64[w, 2]; ``ends`` float64[w, 5]: means x, y and sums of squares xx, yy and products xy of the last
    lap from each place on; the rest of this lap so far.
    """

    ring: Float64Array
    ends: Float64Array
    position: int
    filled: int
    mean_x: float
    mean_y: float
    xx: float
    yy: float
    xy: float


@compiled
def comoments_start(size: int) -> Comoments:
    return Comoments(np.zeros((size, 2)), np.zeros((size, 5)), 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)


@compiled_step
def comoments_step(state: Comoments, x: float, y: float) -> tuple[Comoments, float, float, float, float, float]:
    """Means of x and y, sums of dx^2, dy^2 and dx * dy over the last ``size`` values; mean_x is NaN until then.

    B. P. Welford 1962 within a part, T. F. Chan et al. 1983 to join two, as for ``rolling_moments_step``.
    """
    ring, ends, position, filled, mean_x, mean_y, xx, yy, xy = state
    size = ring.shape[0]
    ring[position, 0] = x
    ring[position, 1] = y
    position += 1
    from_x = x - mean_x
    from_y = y - mean_y
    mean_x += from_x / position
    mean_y += from_y / position
    xx += from_x * (x - mean_x)
    yy += from_y * (y - mean_y)
    xy += from_x * (y - mean_y)
    if position == size:
        _backwards(ring, ends)
        position = 0
        filled = 1
        mean_x = mean_y = xx = yy = xy = 0.0
    share = position / size
    gap_x = mean_x - ends[position, 0] if position > 0 else 0.0
    gap_y = mean_y - ends[position, 1] if position > 0 else 0.0
    weight = share * (size - position)
    all_x = ends[position, 0] + gap_x * share if filled else math.nan
    all_y = ends[position, 1] + gap_y * share
    all_xx = ends[position, 2] + xx + gap_x * gap_x * weight
    all_yy = ends[position, 3] + yy + gap_y * gap_y * weight
    all_xy = ends[position, 4] + xy + gap_x * gap_y * weight
    moved = Comoments(ring, ends, position, filled, mean_x, mean_y, xx, yy, xy)
    return moved, all_x, all_y, all_xx, all_yy, all_xy


@compiled
def _backwards(ring: Float64Array, ends: Float64Array) -> None:
    size = ring.shape[0]
    mean_x = mean_y = xx = yy = xy = 0.0
    for k in range(size - 1, -1, -1):
        from_x = ring[k, 0] - mean_x
        from_y = ring[k, 1] - mean_y
        mean_x += from_x / (size - k)
        mean_y += from_y / (size - k)
        xx += from_x * (ring[k, 0] - mean_x)
        yy += from_y * (ring[k, 1] - mean_y)
        xy += from_x * (ring[k, 1] - mean_y)
        ends[k, 0] = mean_x
        ends[k, 1] = mean_y
        ends[k, 2] = xx
        ends[k, 3] = yy
        ends[k, 4] = xy


class PairsState(NamedTuple):
    """``side`` is +1 for a bet on the first product, -1 against it, 0 for none; ``barred`` after a stop."""

    moments: Comoments
    weights: Float64Array
    side: float
    barred: int


@compiled
def start(vector: Float64Array, products: int) -> PairsState:
    return PairsState(comoments_start(int(vector[0])), np.full(products, np.nan), 0.0, 0)


@compiled_step
def on_bars(vector: Float64Array, state: PairsState, step: PanelStep) -> tuple[PairsState, Float64Array]:
    """Weights +0.5 and -0.5 when the bet is made, 0 and 0 when it ends, NaN (no order) otherwise.

    The spread is the residual of ln(first price) regressed on ln(second price) over the window (the hedge ratio is the
    slope), its distance that of the last bar in deviations of the window's residuals. At ``entry`` and beyond the wide
    side is sold and the other bought for the same money; the bet ends at ``exit`` or on the other side of it, and at
    ``stop``, after which none is made before the distance has been within ``exit`` once. Times at which not both have a
    bar are passed over.

    Source: E. Gatev, W. N. Goetzmann and K. G. Rouwenhorst, "Pairs Trading: Performance of a Relative-Value Arbitrage
    Rule", Review of Financial Studies, 2006; the regression is that of R. F. Engle and C. W. J. Granger, 1987.
    """
    weights = state.weights
    side = state.side
    barred = state.barred
    moments = state.moments
    weights[0] = math.nan
    weights[1] = math.nan
    if not math.isnan(step.close[0]) and not math.isnan(step.close[1]):
        y = natural_log(step.close[0])
        x = natural_log(step.close[1])
        moments, mean_x, mean_y, xx, yy, xy = comoments_step(moments, x, y)
        slope = xy / xx if xx > 0.0 else 0.0
        deviation = math.sqrt(max(yy - slope * xy, 0.0) / vector[0])
        # Below the rounding of a logarithm a deviation is noise: such a pair stands still.
        if not math.isnan(mean_x) and deviation > 1e-12:
            distance = (y - mean_y - slope * (x - mean_x)) / deviation
            wanted = side
            if abs(distance) <= vector[2]:
                barred = 0
            if side != 0.0 and (-side * distance <= vector[2] or -side * distance >= vector[3]):
                barred = 1 if -side * distance >= vector[3] else barred
                wanted = 0.0
            if wanted == 0.0 and barred == 0 and vector[1] <= abs(distance) < vector[3]:
                wanted = -1.0 if distance > 0.0 else 1.0
            if wanted != side:
                weights[0] = 0.5 * wanted
                weights[1] = -0.5 * wanted
            side = wanted
    return PairsState(moments, weights, side, barred), weights


@compiled
def decide(
    vector: Float64Array,
    open_: Float64Array,
    high: Float64Array,
    low: Float64Array,
    close: Float64Array,
    volume: Float64Array,
) -> Decisions:
    decisions = new_decisions(close.shape[1])
    state = start(vector, close.shape[1])
    for i in range(close.shape[0]):
        state, weights = on_bars(vector, state, PanelStep(open_[i], high[i], low[i], close[i], volume[i]))
        decisions = decided(decisions, i, weights)
    return decisions


PAIRS = CrossSection("pairs", "Pairs", PairsParams, start, on_bars, decide, products_min=2, products_max=2)
