"""Weights in, books out: the portfolio kernel by way of the specification's own classes, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from strategies import kernel, portfolio, portfolio_kernel
from strategies.model import Float64Array, Granularity, Int64Array
from strategies.panel import Panel
from strategies.rules import Rules
from strategies.spec import Costs, Sizing

_BEYOND = ("fee_bps", "slippage_bps")
VALUES = ("open", "high", "low", "close", "volume")


def panel_from(columns: Mapping[str, Float64Array], hours: Int64Array | None = None) -> Panel:
    """A panel of arrays float64[n, p]; without ``hours`` a bar an hour; times without any bar stay."""
    bars, products = columns["close"].shape
    ts_ns = np.asarray(np.arange(bars) if hours is None else hours, dtype=np.int64) * Granularity.ONE_HOUR.ns
    names = tuple(f"P{q}-USD" for q in range(products))
    return Panel(names, Granularity.ONE_HOUR, ts_ns, *(np.asfortranarray(columns[name].T) for name in VALUES))


def books_of(
    weights: Float64Array, panel: Panel, agreed: Mapping[str, Any]
) -> tuple[kernel.Outcome, portfolio_kernel.Trace]:
    """Weights float64[n, p] on ``panel``; ``agreed`` are fields of ``Costs``, ``Sizing`` and ``Rules`` in one."""
    costs: Any
    sizing: Any
    rules: Any
    costs, sizing, rules = (
        kind.model_validate(
            {name: agreed[name] for name in kind.model_fields if name in agreed and name not in _BEYOND}
        )
        for kind in (Costs, Sizing, Rules)
    )
    # Costs out of range are fine for a table worked by hand.
    beyond = {name: agreed[name] for name in _BEYOND if name in agreed}
    costs = costs.model_copy(update=beyond)
    unknown = agreed.keys() - Costs.model_fields.keys() - Sizing.model_fields.keys() - Rules.model_fields.keys()
    assert not unknown, unknown
    decisions, tape = portfolio_kernel.decisions_of(weights), portfolio._Series.of(panel, sizing, None).tape
    terms = portfolio._terms(costs, sizing, rules.vector(), panel.product_ids)
    products = len(panel.product_ids)
    count = portfolio_kernel.account(decisions, tape, terms, portfolio_kernel.new_trace(0, products)).fills
    trace = portfolio_kernel.new_trace(len(panel), products, count)
    outcome = portfolio_kernel.account(decisions, tape, terms, trace)
    assert outcome.fills == count
    return outcome, trace
