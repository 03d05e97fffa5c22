"""Parameters: numbers with a default and a range, and the error that names what breaks a rule."""

from __future__ import annotations

import math
import numbers
import reprlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, cast

import annotated_types
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from strategies.model import Float64Array


class SpecError(ValueError):
    """A specification breaks a rule: ``field`` is its dotted path, ``value`` what was given, ``rule`` what holds."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        super().__init__(f"{field}: expected {rule}, was {reprlib.repr(value)}")
        self.field = field
        self.value = value
        self.rule = rule

    def under(self, prefix: str) -> SpecError:
        """The same error as seen from outside the part at ``prefix``."""
        path = f"{prefix}{self.field}" if self.field.startswith("[") else f"{prefix}.{self.field}"
        return SpecError(path.strip("."), self.value, self.rule)

    def __reduce__(self) -> tuple[type[SpecError], tuple[str, object, str]]:
        return SpecError, (self.field, self.value, self.rule)  # errors cross process borders


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter for a grid, a form or a search space; ``low`` and ``high`` are both allowed values."""

    name: str
    kind: Literal["int", "float"]
    default: float
    low: float
    high: float
    description: str

    def check(self, value: object, field: str) -> float:
        """``value`` as a float if it is a number of this kind and in range; raises ``SpecError`` naming ``field``."""
        rule = f"a {'whole' if self.kind == 'int' else 'finite'} number from {self.low:g} to {self.high:g}"
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise SpecError(field, value, rule)
        # Compared before the conversion: an integer of a thousand digits does not fit a float.
        number = cast(float, value)
        if not self.low <= number <= self.high or (self.kind == "int" and number != math.floor(number)):
            raise SpecError(field, value, rule)
        return float(number)


class Params(BaseModel):
    """Base of every strategy's parameters: numbers only, each with a default, a lowest and a highest value.

    ``BELOW`` lists the rules between fields as pairs: the first must be smaller than the second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    BELOW: ClassVar[tuple[tuple[str, str], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Fail at import where a strategy's author forgot a range: a grid could not be checked against it."""
        for info in parameters_of(cls):
            if not info.low <= info.default <= info.high:
                raise TypeError(f"{cls.__name__}.{info.name}: the default is out of range")
        for lesser, greater in cls.BELOW:
            if not {lesser, greater} <= set(cls.names()):
                raise TypeError(f"{cls.__name__}.BELOW names an unknown field")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Parameter names in field order, the order of ``vector()``."""
        return tuple(cls.model_fields)

    @classmethod
    def from_vector(cls, vector: Float64Array) -> Self:
        """The parameters a ``vector()`` was made from; raises pydantic's ``ValidationError``."""
        return cls(**dict(zip(cls.names(), vector.tolist(), strict=True)))

    def vector(self) -> Float64Array:
        """float64[k], the values in field order: what compiled code takes."""
        return np.array([getattr(self, name) for name in self.names()], dtype=np.float64)

    @classmethod
    def keeps_order(cls, matrix: Float64Array) -> NDArray[np.bool_]:
        """bool[m]: which rows of float64[m, k] keep every rule of ``BELOW``."""
        names = cls.names()
        kept = np.ones(len(matrix), dtype=np.bool_)
        for lesser, greater in cls.BELOW:
            kept &= matrix[:, names.index(lesser)] < matrix[:, names.index(greater)]
        return kept

    @field_validator("*", mode="before")
    @classmethod
    def _is_a_number(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"expected a number, was {reprlib.repr(value)}")  # noqa: TRY004 -- pydantic's protocol
        return value

    @model_validator(mode="after")
    def _order_of_fields(self) -> Self:
        for lesser, greater in self.BELOW:
            if not getattr(self, lesser) < getattr(self, greater):
                raise SpecError(lesser, getattr(self, lesser), f"less than {greater} = {getattr(self, greater)}")
        return self


def parameters_of(params: type[Params]) -> list[ParameterInfo]:
    """The same for a class of parameters; a field without a range or a default is a ``TypeError``."""
    table = []
    for name, field in params.model_fields.items():
        low = [float(cast(Any, rule.ge)) for rule in field.metadata if isinstance(rule, annotated_types.Ge)]
        high = [float(cast(Any, rule.le)) for rule in field.metadata if isinstance(rule, annotated_types.Le)]
        if field.annotation not in (int, float) or not low or not high or field.is_required():
            raise TypeError(f"{params.__name__}.{name}: expected int or float = Field(default, ge=, le=)")
        kind: Literal["int", "float"] = "int" if field.annotation is int else "float"
        table.append(ParameterInfo(name, kind, float(field.default), low[0], high[0], field.description or ""))
    return table
