"""The contract of cross-sectional strategies: a pure step from one time's bars of all products to their weights.

``start(vector, p) -> state`` and ``on_bars(vector, state, PanelStep) -> (state, weights)``. It sees neither orders nor
cash. A weight is an order for the next bar: the wanted fraction of equity in that product, in [-1, 1] (negative is
short); NaN is no order, what is held stays. So a strategy that asks for nothing returns NaN only, and one that
rebalances returns the same weights again.

The array of weights may belong to the state: it is read before the next call. As for one product, the step runs plain
or compiled with results equal to the last bit, so it uses + - * / and ``math.sqrt`` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from strategies.base import AnyStrategy, SpecError
from strategies.compiled import compiled_step
from strategies.model import Float64Array
from strategies.panel import PRODUCTS_MAX
from strategies.portfolio_kernel import Decisions


class PanelStep(NamedTuple):
    """One time's bars, float64[p] each, NaN where a product has none."""

    open: Float64Array
    high: Float64Array
    low: Float64Array
    close: Float64Array
    volume: Float64Array


@dataclass(frozen=True)
class CrossSection(AnyStrategy):
    """A strategy over several products; its functions are module globals of its file and compiled.

    ``decide(float64[k], open, high, low, close, volume: float64[n, p]) -> Decisions`` is the loop over ``on_bars``.
    ``counts`` names the parameters that count products: none may exceed the number there are.
    """

    start: Callable[[Float64Array, int], Any]
    on_bars: Callable[[Float64Array, Any, PanelStep], tuple[Any, Float64Array]]
    decide: Callable[..., Decisions]
    products_min: int = 1
    products_max: int = PRODUCTS_MAX
    counts: tuple[str, ...] = ()

    def check_products(self, products: int) -> None:
        """Raise ``SpecError`` where the strategy cannot run on so many products."""
        if not self.products_min <= products <= self.products_max:
            rule = f"{self.products_min} to {self.products_max} products for {self.name}"
            if self.products_min == self.products_max:
                rule = f"{self.products_min} products for {self.name}"
            raise SpecError("product_ids", products, rule)

    def check_counts(self, matrix: Float64Array, products: int) -> None:
        """Raise ``SpecError`` naming the row where a parameter counts more products than there are."""
        for name in self.counts:
            column = matrix[:, self.params.names().index(name)]
            if (column > products).any():
                row = int((column > products).argmax())
                raise SpecError(
                    f"matrix[{row}].{name}", float(column[row]), f"at most {products}, the products there are"
                )


SQUARE_ROOT_OF_HALF: Final = math.sqrt(0.5)
# ln 2 in two parts, of which the first has so few digits that its product with a whole number is exact (fdlibm).
LN2_HIGH: Final = 6.93147180369123816490e-01
LN2_LOW: Final = 1.90821492927058770002e-10


@compiled_step
def natural_log(value: float) -> float:
    """ln of a positive finite number by + - * / alone, so that it is the same plain and compiled, on any machine.

    ``value = m * 2**e`` with m around 1, and ``ln m = 2 artanh((m - 1) / (m + 1))`` by its series; within 4e-16 of it
    relative to 1 (that is what the test asks for).
    """
    mantissa, exponent = math.frexp(value)
    if mantissa < SQUARE_ROOT_OF_HALF:
        mantissa = mantissa * 2.0
        exponent = exponent - 1
    ratio = (mantissa - 1.0) / (mantissa + 1.0)
    square = ratio * ratio
    series = 0.0
    for k in range(10, 0, -1):
        series = square * (1.0 / (2.0 * k + 1.0) + series)
    return exponent * LN2_HIGH + (exponent * LN2_LOW + 2.0 * ratio * (1.0 + series))
