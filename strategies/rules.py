"""Rules that can be added to any strategy: stops, the size of a position, its leverage.

Each is a number with a default that changes nothing, so that grids, searches and results treat it like a parameter.
What the kernel makes of them is said at the top of strategies/kernel.py; what ``size`` counts follows from
``Sizing.kind``.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from strategies.parameters import ParameterInfo, Params, parameters_of


class Rules(Params):
    """Fractions, not per cent; 0 switches a stop off."""

    stop_loss: float = Field(0.0, ge=0.0, le=1.0, description="close at a loss of this fraction of the entry price")
    take_profit: float = Field(0.0, ge=0.0, le=100.0, description="close at a gain of this fraction of the entry price")
    trailing_stop: float = Field(
        0.0, ge=0.0, le=1.0, description="close this fraction off the best price since the entry"
    )
    time_stop_bars: int = Field(0, ge=0, le=10_000_000, description="close after so many bars")
    size: float = Field(
        1.0, ge=0.0, le=1e12, description="times the target: of equity, units, quote units or volatility, as sized"
    )
    leverage: float = Field(1.0, ge=0.01, le=10.0, description="most that a position may be worth, times equity")


RULES: Final[tuple[ParameterInfo, ...]] = tuple(parameters_of(Rules))
