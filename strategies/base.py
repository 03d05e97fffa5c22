"""The strategy contract: parameters with ranges, and a pure step from a bar to a target.

A strategy is ``start(vector) -> state`` and ``on_bar(vector, state, bar) -> (state, target)``. It sees neither orders
nor cash, so its targets depend on bars and parameters only. ``target`` is the wanted fraction of equity in the product,
in [-1, 1] (negative is short), NaN while warming up; NaN always means: hold no position.

The state belongs to the caller's loop: ``on_bar`` may change the arrays inside it, so after the call only the returned
state is valid, and two loops never share one.

The live path runs ``plain(strategy.on_bar)``, the sweep runs ``strategy.targets``, the compiled loop over the same
function; the two are equal to the last bit. For that, a step uses only + - * / and ``math.sqrt`` (IEEE 754 fixes their
results; logarithms and powers differ between libraries).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from strategies.model import Float64Array
from strategies.parameters import ParameterInfo, Params, SpecError, parameters_of
from strategies.rules import RULES, Rules
from strategies.tables import Switches

__all__ = [
    "RULES",
    "RULE_NAMES",
    "AnyStrategy",
    "BarStep",
    "ParameterInfo",
    "Params",
    "Rules",
    "SpecError",
    "Strategy",
    "full_matrix",
    "full_vector",
    "own_parameters",
    "parameter_table",
    "parameters_of",
]

RULE_NAMES: Final = tuple(info.name for info in RULES)


class BarStep(NamedTuple):
    """One bar as a strategy sees it; prices in quote units, volume in base units."""

    open: float
    high: float
    low: float
    close: float
    volume: float


@dataclass(frozen=True)
class AnyStrategy:
    """What a strategy for one product and one over several (cross_section.py) have in common."""

    name: str
    title: str
    params: type[Params]

    @property
    def kind(self) -> Literal["single product", "cross section"]:
        """What it is for, as lists of strategies say it."""
        return "single product" if isinstance(self, Strategy) else "cross section"

    def __post_init__(self) -> None:
        """Fail at import where a parameter is called like a rule: a grid could not tell the two apart."""
        taken = sorted(set(self.params.names()) & set(RULE_NAMES))
        if taken:
            raise TypeError(f"{self.name}: the parameter {taken[0]} has the name of a rule")


@dataclass(frozen=True)
class Strategy(AnyStrategy):
    """A strategy's name and its functions, all module globals of its file and compiled.

    ``start(float64[k]) -> state``; ``on_bar(float64[k], state, BarStep) -> (state, target)``;
    ``targets(float64[k], open, high, low, close, volume: float64[n]) -> float64[n]``, the loop over ``on_bar``.
    ``switches``, where there are any, find the changes of the same targets for many parameter sets at once.
    """

    start: Callable[[Float64Array], Any]
    on_bar: Callable[[Float64Array, Any, BarStep], tuple[Any, float]]
    targets: Callable[..., Float64Array]
    switches: Switches | None = None


def parameter_table(strategy: AnyStrategy) -> list[ParameterInfo]:
    """What can be set of ``strategy``, the columns of a matrix: its own parameters in field order, then ``RULES``."""
    return [*own_parameters(strategy), *RULES]


def own_parameters(strategy: AnyStrategy) -> list[ParameterInfo]:
    """The strategy's own parameters, the first columns of ``parameter_table``: what its compiled code takes."""
    return parameters_of(strategy.params)


def full_vector(params: Params, rules: Rules | None = None) -> Float64Array:
    """float64[k + 6] in the order of ``parameter_table``; without ``rules`` all of them are at their defaults."""
    return np.concatenate([params.vector(), (rules or Rules()).vector()])


def full_matrix(strategy: AnyStrategy, own: Float64Array) -> Float64Array:
    """float64[m, k + 6] from a strategy's own parameters float64[m, k], every rule at its default."""
    return np.hstack([own, np.tile(Rules().vector(), (len(own), 1))])
