"""Momentum rotation: hold the products that rose most, look again every so many bars."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies.base import Params
from strategies.compiled import compiled, compiled_step
from strategies.cross_section import CrossSection, PanelStep
from strategies.model import Float64Array, Int64Array
from strategies.portfolio_kernel import Decisions, decided, new_decisions


class MomentumRotationParams(Params):
    """Windows are counted in times of the panel; a product's close stands for it until its next."""

    lookback: int = Field(90, ge=1, le=10_000, description="bars back to the close that the return is measured from")
    every: int = Field(24, ge=1, le=10_000, description="bars from one rebalancing to the next")
    top: int = Field(1, ge=1, le=1_000, description="how many products are held")
    bottom: int = Field(0, ge=0, le=1_000, description="how many of the weakest are sold short; 0: none")
    inverse_volatility: int = Field(0, ge=0, le=1, description="1: weights as 1 / volatility, 0: equal")
    volatility_window: int = Field(30, ge=2, le=10_000, description="returns in the measured volatility")
    absolute_filter: int = Field(0, ge=0, le=1, description="1: only risers are bought and only fallers sold short")


class MomentumRotationState(NamedTuple):
    """``closes`` float64[w + 1, p] is a ring of each product's latest close, ``position`` its next row."""

    closes: Float64Array
    latest: Float64Array
    weights: Float64Array
    scores: Float64Array
    position: int
    seen: int


@compiled
def start(vector: Float64Array, products: int) -> MomentumRotationState:
    rows = int(max(vector[0], vector[5] if vector[4] > 0.0 else 0.0)) + 1
    return MomentumRotationState(
        np.full((rows, products), np.nan),
        np.full(products, np.nan),
        np.full(products, np.nan),
        np.empty(products),
        0,
        0,
    )


@compiled_step
def on_bars(
    vector: Float64Array, state: MomentumRotationState, step: PanelStep
) -> tuple[MomentumRotationState, Float64Array]:
    """Every ``every`` bars, as soon as the windows are full: weights of all products; NaN (no order) in between.

    The ``top`` products by return over ``lookback`` share the equity, or half of it where ``bottom`` products are sold
    short for the other half. A place that no product fills (too few, or the filter) stays in cash. Only a product that
    has a bar now and had one ``lookback`` bars ago is ranked; the others are left. Equal returns go by the products'
    order. Bars without trading count as returns of 0 in a volatility; without any the weight is that of the others'
    smallest volatility.

    Source: N. Jegadeesh and S. Titman, "Returns to Buying Winners and Selling Losers", Journal of Finance, 1993; the
    filter (absolute momentum) is that of G. Antonacci, "Risk Premia Harvesting Through Dual Momentum", 2012.
    """
    closes, latest, weights, scores = state.closes, state.latest, state.weights, state.scores
    rows, products = closes.shape
    for q in range(products):
        if not math.isnan(step.close[q]):
            latest[q] = step.close[q]
        closes[state.position, q] = latest[q]
        weights[q] = math.nan
    seen = state.seen + 1
    if seen >= rows and (seen - rows) % int(vector[1]) == 0:
        past = (state.position + rows - int(vector[0])) % rows
        for q in range(products):
            scores[q] = math.nan
            weights[q] = 0.0
            if not math.isnan(step.close[q]):
                scores[q] = step.close[q] / closes[past, q] - 1.0
        long, short = int(vector[2]), int(vector[3])
        share = 0.5 if short > 0 else 1.0
        _pick(vector, closes, state.position, scores, weights, long, share, 1.0)
        if short > 0:
            _pick(vector, closes, state.position, scores, weights, short, share, -1.0)
    position = state.position + 1
    if position == rows:
        position = 0
    return MomentumRotationState(closes, latest, weights, scores, position, seen), weights


@compiled
def _pick(
    vector: Float64Array,
    closes: Float64Array,
    position: int,
    scores: Float64Array,
    weights: Float64Array,
    places: int,
    share: float,
    side: float,
) -> None:
    """Give the best products by ``side * score`` their weights, and take them out of the running."""
    chosen = np.empty(min(places, scores.size), dtype=np.int64)
    count = 0
    while count < chosen.size:
        best = -1
        for q in range(scores.size):
            if not math.isnan(scores[q]) and (best < 0 or side * scores[q] > side * scores[best]):
                best = q
        if best < 0 or (vector[6] > 0.0 and not side * scores[best] > 0.0):
            break
        scores[best] = math.nan
        chosen[count] = best
        count += 1
    if count > 0:
        _weigh(vector, closes, position, chosen[:count], weights, side * share * count / places)


@compiled
def _weigh(
    vector: Float64Array,
    closes: Float64Array,
    position: int,
    chosen: Int64Array,
    weights: Float64Array,
    total: float,
) -> None:
    """Share ``total`` among the chosen: equally, or each as the inverse of its volatility."""
    if vector[4] == 0.0:
        for q in chosen:
            weights[q] = total / chosen.size
        return
    smallest = math.inf
    for q in chosen:
        weights[q] = _volatility(closes, position, q, int(vector[5]))
        if 0.0 < weights[q] < smallest:
            smallest = weights[q]
    if smallest == math.inf:
        smallest = 1.0
    inverse = 0.0
    for q in chosen:
        weights[q] = smallest / weights[q] if weights[q] > smallest else 1.0
        inverse += weights[q]
    for q in chosen:
        weights[q] = total * (weights[q] / inverse)


@compiled
def _volatility(closes: Float64Array, position: int, q: int, window: int) -> float:
    """Sample deviation of the product's last returns, as many of the ``window`` as it has (two passes: no drift)."""
    rows = closes.shape[0]
    count = 0
    mean = 0.0
    for k in range(window):
        now, before = closes[(position - k) % rows, q], closes[(position - k - 1) % rows, q]
        if not math.isnan(before):
            mean += now / before - 1.0
            count += 1
    if count < 2:
        return 0.0
    mean = mean / count
    squares = 0.0
    for k in range(count):
        now, before = closes[(position - k) % rows, q], closes[(position - k - 1) % rows, q]
        distance = now / before - 1.0 - mean
        squares += distance * distance
    return math.sqrt(squares / (count - 1))


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


MOMENTUM_ROTATION = CrossSection(
    "momentum_rotation",
    "Momentum rotation",
    MomentumRotationParams,
    start,
    on_bars,
    decide,
    counts=("top", "bottom"),
)
