"""A user's strategy tried on bars, step by step: plain, compiled, twice, against other bars and changed futures.

``Trial`` is for a strategy of one product, ``SectionTrial`` for one over several. Each step raises
``StrategyFileError`` where it cannot go on, and gives findings where it can.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import numpy as np

from strategies.base import AnyStrategy, BarStep, SpecError, Strategy, parameters_of
from strategies.causality import CHANGES, CUTS, Leak, changed_panel, cuts_of, find_leaks, made_up_bars, target_leaks
from strategies.compiled import plain, read_only
from strategies.cross_section import CrossSection, PanelStep
from strategies.model import Bars, Float64Array
from strategies.panel import Panel, panel_of
from strategies.user_errors import SourceText, told
from strategies.user_file import check_weights, steps_of

# Windows are drawn up to here, so that most fill within the bars.
DRAWN_MAX: Final = 130
# Compiled and plain may differ by so much where a library's logarithm or power rounds another way.
ROUNDING: Final = 1e-9
# Of made-up products, where the strategy does not ask for more or fewer.
PRODUCTS: Final = 3


@dataclass(frozen=True)
class Finding:
    """What is wrong, or worth knowing, at a line (0: the file as a whole)."""

    severity: Literal["error", "warning"]
    line: int
    text: str
    rule: str


class Trial:
    """One strategy on one series, in the steps of a check; each raises ``StrategyFileError`` where it cannot go on.

    What the strategy asks for is float64[n], a target a bar.
    """

    step = "on_bar"
    # What is asked for, in words; and what belongs to the state, being asked for.
    asked: tuple[str, str] = ("target", "targets")

    def __init__(self, source: SourceText, strategy: AnyStrategy, market: Bars | Panel) -> None:
        self._source, self._strategy, self._market = source, strategy, market
        columns = [getattr(market, name) for name in ("open", "high", "low", "close", "volume")]
        self._columns = [read_only(column.T) for column in columns]
        self.step_line = source.line_of(rf"def {self.step}\b")
        self._start_line = source.line_of(r"def start\b")
        self.cuts_tried = 0

    @property
    def products(self) -> int:
        """How many products it is tried on."""
        return 1 if self._columns[3].ndim == 1 else int(self._columns[3].shape[1])

    # -- what differs between one product and several ------------------------------------------------------------------

    def _functions(self) -> dict[str, Any]:
        strategy = cast(Strategy, self._strategy)
        return {"start": strategy.start, self.step: strategy.on_bar}

    def _more(self) -> tuple[int, ...]:
        """What ``start`` takes besides the parameters."""
        return ()

    def _first_step(self) -> BarStep | PanelStep:
        """As the compiled loop shows it."""
        return BarStep(*(float(column[0]) for column in self._columns))

    def run(self, vector: Float64Array, columns: Sequence[Float64Array]) -> Float64Array:
        """The compiled loop."""
        return cast(Strategy, self._strategy).targets(read_only(vector), *columns)

    def _wanted(self, value: object, where: str) -> Any:
        """What a step asks for, looked at."""
        if not isinstance(value, numbers.Real):
            raise self._source.error(self.step_line, f"{where}: the target is {_short(value)}, not a number")
        target = float(value)
        if not (math.isnan(target) or -1.0 <= target <= 1.0):
            rule = f"{where}: the target is {target:g}; a target lies in -1 … 1, or is nan while warming up"
            raise self._source.error(self.step_line, rule)
        return target

    def _leaks(self, vector: Float64Array, cuts: Sequence[int]) -> list[Leak]:
        return target_leaks(cast(Strategy, self._strategy).targets, vector, cast(Bars, self._market), cuts)

    def _other_market(self) -> Bars | Panel:
        """As long, but of other prices."""
        return made_up_bars(len(self._market), seed=99)

    def _never_asks(self, default: Float64Array) -> str:
        return f"with its defaults it never leaves the warm-up in {len(default)} bars: no target but nan"

    def _held(self, asked: Float64Array) -> Float64Array:
        """What is asked for, told so that a change of it is a change of numbers."""
        return np.nan_to_num(asked)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def plain_targets(self, vector: Float64Array) -> Float64Array:
        """Bar by bar through the interpreter, every result looked at."""
        given = self._given(vector)
        start, step = (plain(function) for function in self._functions().values())
        try:
            state = start(read_only(vector), *self._more())
        except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
            raise told(self._source, error, f"start with {given}", self._start_line) from None
        asked = np.empty(self._columns[3].shape)
        vector = read_only(vector)
        for i, row in enumerate(steps_of(tuple(self._columns))):
            where = f"{self.step} at bar {i} with {given}"
            try:
                result = step(vector, state, row)
            except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
                raise told(self._source, error, where, self.step_line) from None
            if not isinstance(result, tuple) or len(result) != 2:
                rule = f"{where}: expected (state, {self.asked[0]}), was {_short(result)}"
                raise self._source.error(self.step_line, rule)
            state, asked[i] = result[0], self._wanted(result[1], where)
        return asked

    def start_at_the_highest(self) -> None:
        """A grid may ask for every parameter's highest value; its state must fit into memory."""
        highest = np.array([info.high for info in parameters_of(self._strategy.params)])
        try:
            plain(self._functions()["start"])(highest, *self._more())
        except Exception as error:  # noqa: BLE001 -- a user's code may raise anything
            where = f"start with every parameter at its highest ({self._given(highest)})"
            raise told(self._source, error, where, self._start_line) from None

    def compile(self, vector: Float64Array) -> None:
        """Compile each function by itself, so that an error is its own, and compare the kinds of the states."""
        functions, name = self._functions(), "start"
        try:
            state = functions[name](read_only(vector), *self._more())
            name = self.step
            functions[name](read_only(vector), state, self._first_step())
        except Exception as error:  # noqa: BLE001 -- the compiler raises many kinds
            line = self._start_line if name == "start" else self.step_line
            raise told(self._source, error, name, line) from None
        begun, moved = (function.nopython_signatures[-1].return_type for function in functions.values())
        parts = getattr(moved, "types", None)
        if parts is None or len(parts) != 2:
            rule = f"{self.step} returns (state, {self.asked[0]}) on every path; here it is {moved}"
            raise self._source.error(self.step_line, rule)
        if parts[0] != begun:
            rule = f"{self.step} returns another kind of state than start: {_kinds_apart(begun, parts[0])}"
            raise self._source.error(self.step_line, rule)

    def compiled_targets(self, vectors: Sequence[Float64Array]) -> tuple[list[Float64Array], float]:
        """The loop over all ``vectors``, and the seconds of CPU it took once compiled."""
        self.run(vectors[0], [column[:2] for column in self._columns])
        began_s = time.process_time()
        found = [self.run(vector, self._columns) for vector in vectors]
        return found, time.process_time() - began_s

    def compare(
        self, vectors: Sequence[Float64Array], plainly: Sequence[Float64Array], compiled: Sequence[Float64Array]
    ) -> list[Finding]:
        """Plain against compiled, and each against itself run again."""
        one_of, several = self.asked
        for vector, one, two in zip(vectors, plainly, compiled, strict=True):
            for kind, before, again in (
                ("compiled code", two, self.run(vector, self._columns)),
                ("the interpreter", one, self.plain_targets(vector)),
            ):
                place = _first_difference(before, again)
                if place is not None:
                    rule = (
                        f"run twice by {kind} it gives different {several} ({_told(place)}: {before[place]:g}, then "
                        f"{again[place]:g}, with {self._given(vector)}): something in it is chance, a clock, or kept "
                        "outside the state"
                    )
                    return [self.at_step("error", rule)]
            place = _first_difference(one, two)
            if place is not None:
                apart = abs(one[place] - two[place])
                rule = (
                    f"compiled it gives another {one_of} than in plain Python at {_told(place)} ({two[place]!r} and "
                    f"{one[place]!r}, with {self._given(vector)}); only + - * / and math.sqrt are the same everywhere"
                )
                return [self.at_step("warning" if apart <= ROUNDING else "error", rule)]
        return []

    def leaks(self, vector: Float64Array) -> list[Leak]:
        """The causality check with these parameters.

        The bars are also cut right after some on which something new is asked for: one that decides now and then
        and looks one bar ahead shows it there, and nowhere else.
        """
        held = self._held(self.run(vector, self._columns)).reshape(len(self._market), -1)
        new = np.flatnonzero((held[1:] != held[:-1]).any(axis=1)) + 1
        chosen = new[np.linspace(0, new.size - 1, min(new.size, CUTS)).astype(np.int64)] if new.size else new
        cuts = sorted({*cuts_of(len(self._market)), *(bar + 1 for bar in chosen.tolist() if bar + 1 < len(held))})
        self.cuts_tried += len(cuts) * len(CHANGES)
        return self._leaks(vector, cuts)

    def oddities(self, vectors: Sequence[Float64Array], compiled: Sequence[Float64Array]) -> list[Finding]:
        """What is allowed but hardly meant."""
        default = compiled[0]
        if np.isnan(default).all():
            return [self.at_step("warning", self._never_asks(default))]
        held = self._held(default)
        if not np.any(held != held[-1]) and all(_stands_still(self._held(one)) for one in compiled):
            return [self.at_step("warning", f"its {self.asked[1]} never change in {len(default)} bars")]
        other = self._other_market()
        columns = [read_only(getattr(other, name).T) for name in ("open", "high", "low", "close", "volume")]
        elsewhere = self.run(vectors[0], columns)
        settled = held[warm_up_of(default) :]
        if _first_difference(default, elsewhere) is None and np.any(settled != settled[0]):
            rule = f"its {self.asked[1]} move but do not depend on the bars: what does it know them from?"
            return [self.at_step("error", rule)]
        return []

    def at_step(self, severity: Literal["error", "warning"], rule: str) -> Finding:
        """A finding about the step as a whole."""
        error = self._source.error(self.step_line, rule)
        return Finding(severity, error.line, error.text, error.rule)

    def _given(self, vector: Float64Array) -> str:
        names = self._strategy.params.names()
        given = ", ".join(f"{name}={value:g}" for name, value in zip(names, vector.tolist(), strict=True))
        return given or "no parameters"


class SectionTrial(Trial):
    """The same for a strategy over several products; what it asks for is float64[n, p], NaN for no order."""

    step = "on_bars"
    asked = ("weights", "weights")

    def _section(self) -> CrossSection:
        return cast(CrossSection, self._strategy)

    def _functions(self) -> dict[str, Any]:
        return {"start": self._section().start, self.step: self._section().on_bars}

    def _more(self) -> tuple[int, ...]:
        return (self.products,)

    def _first_step(self) -> BarStep | PanelStep:
        return PanelStep(*(column[0] for column in self._columns))

    def run(self, vector: Float64Array, columns: Sequence[Float64Array]) -> Float64Array:
        decisions = self._section().decide(read_only(vector), *columns)
        weights = np.full(columns[3].shape, np.nan)
        weights[decisions.bars[: decisions.used]] = decisions.weights[: decisions.used]
        return weights

    def _wanted(self, value: object, where: str) -> Any:
        try:
            # A copy: the array may belong to the state.
            return check_weights(value, self.products).copy()
        except ValueError as error:
            raise self._source.error(self.step_line, f"{where}: {error}") from None

    def _leaks(self, vector: Float64Array, cuts: Sequence[int]) -> list[Leak]:
        def observe(seen: Panel) -> Mapping[str, Float64Array]:
            columns = [read_only(getattr(seen, name).T) for name in ("open", "high", "low", "close", "volume")]
            return {"weights": self.run(vector, columns)}

        return find_leaks(observe, cast(Panel, self._market), changed_panel, cuts)

    def _other_market(self) -> Bars | Panel:
        return made_up_panel(len(self._market), self.products, seed=99)

    def _never_asks(self, default: Float64Array) -> str:
        return f"with its defaults it never asks for anything in {len(default)} bars: no weight but nan"

    def _held(self, asked: Float64Array) -> Float64Array:
        return np.nan_to_num(asked, nan=2.0)


def trial_of(source: SourceText, strategy: AnyStrategy, market: Bars | Panel | None, bars: int) -> Trial:
    """The trial of either kind, on ``market`` or on so many made-up bars.

    Raises ``StrategyFileError`` where the market is of the other kind.
    """
    if isinstance(strategy, CrossSection):
        counted = [int(strategy.params().model_dump()[name]) for name in strategy.counts]
        products = min(max(PRODUCTS, strategy.products_min, *counted), strategy.products_max)
        panel = made_up_panel(bars, products) if market is None else market
        if isinstance(panel, Bars):
            panel = panel_of([panel])
        try:
            strategy.check_products(len(panel.product_ids))
            strategy.check_counts(strategy.params().vector()[np.newaxis], len(panel.product_ids))
        except SpecError as error:
            raise source.error(0, f"it cannot be tried on {len(panel.product_ids)} products: {error}") from None
        return SectionTrial(source, strategy, panel)
    if isinstance(market, Panel):
        raise source.error(source.line_of(r"def on_bar\b"), "it is for one product: try it on one, not on several")
    return Trial(source, strategy, made_up_bars(bars) if market is None else market)


def made_up_panel(length: int, products: int, seed: int = 7) -> Panel:
    """``causality.made_up_bars`` of several products, of which the last begins late and, of three, one has gaps."""
    series = [made_up_bars(length, seed + 10 * q, f"MADE{q}-UP") for q in range(products)]
    if products > 1:
        series[-1] = series[-1].between(length // 20, length)
    if products > 2:
        there = np.arange(length) % 11 != 5
        columns = {
            name: getattr(series[1], name)[there] for name in ("ts_ns", "open", "high", "low", "close", "volume")
        }
        series[1] = dataclasses.replace(series[1], **columns)
    return panel_of(series)


def warm_up_of(asked: Float64Array) -> int:
    """Bars before the first that asks for something."""
    silent = np.isnan(asked) if asked.ndim == 1 else np.isnan(asked).all(axis=1)
    return int(np.argmin(silent))


def vectors_of(strategy: AnyStrategy, count: int, products: int = 1) -> list[Float64Array]:
    """The defaults, the lowest values where the rules between them allow it, and random ones with short windows.

    Parameters that count products are drawn up to ``products``.
    """
    counts = strategy.counts if isinstance(strategy, CrossSection) else ()
    table = [
        dataclasses.replace(info, high=min(info.high, products)) if info.name in counts else info
        for info in parameters_of(strategy.params)
    ]
    vectors = [strategy.params().vector()]
    lowest = np.array([info.low for info in table])
    if table and strategy.params.keeps_order(lowest[np.newaxis])[0]:
        vectors.append(lowest)
    random = np.random.default_rng(11)
    for _ in range(50 * count):
        if len(vectors) >= count or not table:
            break
        drawn = [
            float(random.integers(int(info.low), int(max(info.low, min(info.high, DRAWN_MAX))) + 1))
            if info.kind == "int"
            else random.uniform(info.low, info.high)
            for info in table
        ]
        vector = np.array(drawn)
        if strategy.params.keeps_order(vector[np.newaxis])[0]:
            vectors.append(vector)
    return vectors


def _first_difference(one: Float64Array, two: Float64Array) -> tuple[int, ...] | None:
    """The first place at which they differ by a bit (which not-a-number it is does not count)."""
    unequal = (one.view(np.int64) != two.view(np.int64)) & ~(np.isnan(one) & np.isnan(two))
    return tuple(int(part) for part in np.argwhere(unequal)[0]) if unequal.any() else None


def _told(place: tuple[int, ...]) -> str:
    return f"bar {place[0]}" if len(place) == 1 else f"bar {place[0]}, product {place[1]}"


def _stands_still(held: Float64Array) -> bool:
    return not np.any(held != held[0])


def _kinds_apart(begun: Any, moved: Any) -> str:
    names = getattr(begun, "fields", None)
    if names is not None and getattr(moved, "instance_class", None) is getattr(begun, "instance_class", None):
        pairs = zip(names, begun.types, moved.types, strict=True)
        apart = [f"{name} is {two}, was {one}" for name, one, two in pairs if one != two]
        return ", ".join(apart) + " (0 and 0.0 are of different kinds)"
    return f"{moved}, was {begun}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
