"""What a search beyond the grid may be asked for: method, budget, objectives, constraints, when to stop early.

A constraint is a comparison of two sums of terms, each a number, a name or a number times a name: ``max_drawdown <=
0.3``, ``trades >= 30``, ``slow >= 2 * fast + 10``. Names are metrics or parameters. It is read by the small grammar
below; nothing is ever evaluated as code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from strategies.base import ParameterInfo, SpecError
from strategies.metrics import METRICS
from strategies.model import Float64Array

Method = Literal["random", "lhs", "tpe", "cmaes", "asha"]

SETS_MAX: Final = 1_000_000
# A model that looks at every set tried so far pays for each of them with every new one.
MODEL_SETS_MAX: Final = 20_000
OBJECTIVES_MAX: Final = 4
CONSTRAINTS_MAX: Final = 32
CONSTRAINT_LENGTH_MAX: Final = 200
POPULATION_MIN: Final = 4
# The metrics of which less is better: to search for more of them is a mistake, so the sign must be there.
LESS_IS_BETTER: Final = frozenset({"volatility", "max_drawdown", "max_drawdown_bars", "turnover"})
# On a longer history these stay or grow, so a limit broken on its first part is broken on the whole.
GROWING: Final = frozenset({"max_drawdown", "trades"})

Number = Annotated[float, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Continuous(_Spec):
    """Every number from ``low`` to ``high`` (every whole number of a whole-number parameter), for searches only.

    With ``log`` each factor is as likely as any other: 1 to 10 gets as many sets as 10 to 100.
    """

    low: Number
    high: Number
    log: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if not self.low < self.high:
            raise SpecError("high", self.high, f"more than low = {self.low:g}")
        if self.log and self.low <= 0:
            raise SpecError("low", self.low, "more than 0 on a logarithmic axis")
        return self

    def check(self, info: ParameterInfo, field: str) -> None:
        """Raise ``SpecError`` where an end is no value of the parameter."""
        info.check(self.low, f"{field}.low")
        info.check(self.high, f"{field}.high")


@dataclass(frozen=True, slots=True)
class Constraint:
    """``sum of factor * name + offset <= 0`` (``< 0`` where strict), as it was read from ``text``."""

    text: str
    terms: tuple[tuple[str, float], ...]
    offset: float
    strict: bool

    @property
    def names(self) -> frozenset[str]:
        """The metrics and parameters it is about."""
        return frozenset(name for name, _ in self.terms)

    @property
    def of_metrics(self) -> bool:
        """Whether it can only be judged after a backtest; else it is a rule between parameters."""
        return any(name in METRICS for name in self.names)

    @property
    def only_hardens(self) -> bool:
        """Whether a set that breaks it on the first part of the history breaks it on the whole as well."""
        return all(name in GROWING and factor > 0 for name, factor in self.terms)

    def excess(self, columns: Mapping[str, Float64Array]) -> Float64Array:
        """float64[m]: by how much each row of ``columns`` (name to float64[m]) breaks it, 0 where it holds.

        What is not a number breaks it by 1.
        """
        total = sum((factor * columns[name] for name, factor in self.terms), start=np.float64(self.offset))
        over = np.maximum(np.asarray(total, dtype=np.float64), 0.0)
        if self.strict:
            over = np.where(total == 0.0, 1e-12, over)
        return np.where(np.isnan(over), 1.0, over)


def parse_constraint(text: object, field: str = "constraint") -> Constraint:
    """Read one constraint; raises ``SpecError`` with what was expected."""
    rule = "a comparison like 'max_drawdown <= 0.3', 'trades >= 30' or 'slow >= 2 * fast'"
    if not isinstance(text, str) or len(text) > CONSTRAINT_LENGTH_MAX:
        raise SpecError(field, text, f"{rule}, of at most {CONSTRAINT_LENGTH_MAX} characters")
    try:
        tokens = _Tokens(text)
        left, left_offset = _sum(tokens)
        sign = tokens.take("<=", ">=", "<", ">")
        right, right_offset = _sum(tokens)
        tokens.end()
    except _NotAConstraint as error:
        raise SpecError(field, text, f"{rule} ({error})") from None
    flip = 1.0 if sign.startswith("<") else -1.0
    factors: dict[str, float] = {}
    for side, direction in ((left, flip), (right, -flip)):
        for name, factor in side:
            factors[name] = factors.get(name, 0.0) + direction * factor
    terms = tuple(sorted((name, factor) for name, factor in factors.items() if factor != 0.0))
    offset = flip * (left_offset - right_offset)
    if not terms:
        raise SpecError(field, text, f"{rule} (no name is left in it)")
    if not all(map(math.isfinite, [offset, *(factor for _, factor in terms)])):
        raise SpecError(field, text, f"{rule} (finite numbers)")
    return Constraint(text, terms, offset + 0.0, sign in {"<", ">"})


@dataclass(frozen=True, slots=True)
class Goal:
    """One objective: a metric and whether less of it is wanted."""

    metric: str
    less: bool

    def loss(self, values: Float64Array) -> Float64Array:
        """``values`` such that less is always better."""
        return values + 0.0 if self.less else 0.0 - values


def parse_objective(text: object, field: str = "objective") -> Goal:
    """``sharpe`` is as much as possible, ``-max_drawdown`` as little; raises ``SpecError``."""
    if isinstance(text, str):
        metric = text.strip().removeprefix("-").strip()
        less = text.strip().startswith("-")
        if metric in METRICS:
            if metric in LESS_IS_BETTER and not less:
                raise SpecError(field, text, f"-{metric} (less of it is better)")
            return Goal(metric, less)
    raise SpecError(field, text, f"a metric, or -metric for as little as possible: {', '.join(METRICS)}")


def _tuple(value: object) -> object:
    """A list from JSON or YAML, or a single text, as a tuple."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Texts = Annotated[tuple[Annotated[str, Field(strict=True)], ...], BeforeValidator(_tuple)]


class Search(_Spec):
    """How the parameter sets of a sweep are chosen, instead of every combination of a grid.

    ``sets`` are asked for in generations; the sampler learns between them only, in a fixed order, so the same
    specification gives the same study on any number of workers. ``asha`` is successive halving: every set is run on
    the first ``eta ** (1 - rungs)`` of the history, the best of each rung on ``eta`` times as much, the last on all.
    """

    method: Method
    sets: Annotated[Count, Field(ge=1, le=SETS_MAX, description="distinct parameter sets to try")]
    generation: Annotated[Count, Field(ge=1, le=SETS_MAX, description="sets asked for at once")] | None = None
    objectives: Texts = ("sharpe",)
    constraints: Texts = ()
    eta: Annotated[Count, Field(ge=2, le=16, description="asha: one of so many goes on to the next rung")] | None = None
    rungs: Annotated[Count, Field(ge=2, le=8, description="asha: how many lengths of history")] | None = None
    patience: (
        Annotated[Count, Field(ge=1, description="stop after so many generations without a better set")] | None
    ) = None
    time_budget_s: Annotated[Number, Field(gt=0, le=30 * 86_400, description="begin no generation after it")] | None = (
        None
    )
    target: Annotated[Number, Field(description="stop once the objective is this good")] | None = None

    @model_validator(mode="after")
    def _fits_its_method(self) -> Self:
        for i, text in enumerate(self.objectives):
            parse_objective(text, f"objectives[{i}]")
        for i, text in enumerate(self.constraints):
            parse_constraint(text, f"constraints[{i}]")
        if not 1 <= len(self.objectives) <= OBJECTIVES_MAX:
            raise SpecError("objectives", self.objectives, f"1 to {OBJECTIVES_MAX} of them")
        if len({goal.metric for goal in self.goals}) < len(self.objectives):
            raise SpecError("objectives", self.objectives, "each metric once")
        if len(self.constraints) > CONSTRAINTS_MAX:
            raise SpecError("constraints", len(self.constraints), f"at most {CONSTRAINTS_MAX}")
        for name in ("eta", "rungs"):
            if self.method != "asha" and getattr(self, name) is not None:
                raise SpecError(name, getattr(self, name), "the method asha (no other has rungs)")
        if self.method == "cmaes" and len(self.objectives) > 1:
            raise SpecError("objectives", self.objectives, "one (cmaes has one; tpe takes several)")
        if self.target is not None and len(self.objectives) > 1:
            raise SpecError("target", self.target, "a single objective")
        if self.method in {"tpe", "cmaes"} and self.sets > MODEL_SETS_MAX:
            raise SpecError("sets", self.sets, f"at most {MODEL_SETS_MAX} for {self.method}")
        return self

    @property
    def goals(self) -> tuple[Goal, ...]:
        """The objectives as they were read."""
        return tuple(parse_objective(text) for text in self.objectives)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints as they were read."""
        return tuple(parse_constraint(text) for text in self.constraints)

    @property
    def fractions(self) -> tuple[float, ...]:
        """The part of the history each rung is run on, rising to 1; (1,) where there are no rungs."""
        if self.method != "asha":
            return (1.0,)
        eta, rungs = self.eta or 3, self.rungs or 3
        return tuple(float(eta) ** (rung - rungs + 1) for rung in range(rungs))

    def generation_sets(self, grids: int) -> int:
        """Sets a generation: as asked, else by method and budget; never by workers, the result would follow them."""
        usual = {
            "random": max(64, math.ceil(self.sets / 10)),
            "lhs": max(64, math.ceil(self.sets / 10)),
            "tpe": min(64, max(8, math.ceil(self.sets / 25))),
            "cmaes": 16 * grids,
            "asha": min(1_000, self.sets),
        }
        return min(self.generation or usual[self.method], max(self.sets, POPULATION_MIN * grids))


def check_names(search: Search, parameters: list[set[str]]) -> None:
    """Raise ``SpecError`` where a constraint names nothing known; ``parameters`` are the names of each grid's strategy.

    A rule between parameters holds for the grids that have all of its names, which must be one at least; a limit on
    metrics may name parameters only if every grid has them.
    """
    for i, limit in enumerate(search.limits):
        field = f"search.constraints[{i}]"
        known = set(METRICS).union(*parameters)
        for name in sorted(limit.names - known):
            raise SpecError(field, limit.text, f"metrics and parameters only ({name} is neither)")
        wanted = limit.names - set(METRICS)
        having = [wanted <= names for names in parameters]
        if not any(having) or (limit.of_metrics and not all(having)):
            raise SpecError(field, limit.text, "names that one strategy has (all strategies, beside a metric)")
    if search.sets < len(parameters):
        raise SpecError("search.sets", search.sets, f"at least one a grid, of which there are {len(parameters)}")
    if search.method == "cmaes" and search.generation_sets(len(parameters)) < POPULATION_MIN * len(parameters):
        rule = f"at least {POPULATION_MIN} a strategy, of which there are {len(parameters)}"
        raise SpecError("search.generation", search.generation, rule)


class _NotAConstraint(ValueError):
    """What is wrong with the text, in a few words."""


_TOKEN: Final = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(?![A-Za-z_0-9.])"
    r"|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<sign><=|>=|<|>|\+|-|\*))"
)


class _Tokens:
    """The words of a constraint, one after the other."""

    def __init__(self, text: str) -> None:
        self._words: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise _NotAConstraint(f"at {text[position : position + 10].strip()!r}")
            self._words.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()
        self._next = 0

    def next_is(self, *signs: str) -> bool:
        """Whether one of ``signs`` comes next."""
        return self._next < len(self._words) and self._words[self._next] in [("sign", sign) for sign in signs]

    def take(self, *signs: str) -> str:
        """One of ``signs``."""
        if not self.next_is(*signs):
            raise _NotAConstraint(f"one of {' '.join(signs)} was expected{self._place()}")
        return self.word()[1]

    def word(self) -> tuple[str, str]:
        """The next word with its kind."""
        if self._next == len(self._words):
            raise _NotAConstraint("it ends too early")
        self._next += 1
        return self._words[self._next - 1]

    def end(self) -> None:
        """Nothing more may come."""
        if self._next < len(self._words):
            raise _NotAConstraint(f"the end was expected{self._place()}")

    def _place(self) -> str:
        return f" before {self._words[self._next][1]!r}" if self._next < len(self._words) else " at its end"


def _sum(tokens: _Tokens) -> tuple[list[tuple[str, float]], float]:
    """Terms and constant of ``[+|-] term {(+|-) term}``."""
    terms: list[tuple[str, float]] = []
    offset = 0.0
    for sign, name, factor in _signed_terms(tokens):
        if name:
            terms.append((name, sign * factor))
        else:
            offset += sign * factor
    return terms, offset


def _signed_terms(tokens: _Tokens) -> Iterator[tuple[float, str, float]]:
    sign = -1.0 if tokens.next_is("+", "-") and tokens.take("+", "-") == "-" else 1.0
    yield sign, *_term(tokens)
    while tokens.next_is("+", "-"):
        sign = -1.0 if tokens.take("+", "-") == "-" else 1.0
        yield sign, *_term(tokens)


def _term(tokens: _Tokens) -> tuple[str, float]:
    """``number``, ``name``, ``number * name`` or ``name * number``: the name (empty: none) and its factor."""
    words: list[tuple[str, str]] = [_operand(tokens)]
    if tokens.next_is("*"):
        tokens.take("*")
        words.append(_operand(tokens))
    names = [text for kind, text in words if kind == "name"]
    if len(names) > 1:
        raise _NotAConstraint("two names are multiplied")
    factor = math.prod(float(text) for kind, text in words if kind == "number")
    return (names[0] if names else ""), factor


def _operand(tokens: _Tokens) -> tuple[str, str]:
    kind, text = tokens.word()
    if kind == "sign":
        raise _NotAConstraint(f"a number or a name was expected before {text!r}")
    return kind, text
