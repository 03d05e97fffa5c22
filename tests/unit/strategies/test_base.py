"""Parameters have ranges, refuse what is no number, and keep the rules between them."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
from pydantic import Field, ValidationError

from strategies.base import (
    RULE_NAMES,
    ParameterInfo,
    Params,
    SpecError,
    full_matrix,
    full_vector,
    parameter_table,
    parameters_of,
)
from strategies.registry import STRATEGIES
from strategies.sma_cross import SmaCrossParams


def test_vector_holds_the_values_in_field_order() -> None:
    assert SmaCrossParams.names() == ("fast", "slow", "allow_short")
    vector = SmaCrossParams(fast=5, slow=9).vector()
    assert vector.dtype == np.float64
    assert vector.tolist() == [5.0, 9.0, 0.0]
    assert SmaCrossParams.from_vector(vector) == SmaCrossParams(fast=5, slow=9)


def test_the_table_describes_a_form_a_grid_and_a_search_space() -> None:
    fast = parameter_table(STRATEGIES["sma_cross"])[0]
    assert fast == ParameterInfo("fast", "int", 20.0, 1.0, 2_000.0, "bars in the fast average")


def test_the_rules_stand_behind_a_strategys_own_parameters_and_change_nothing_by_default() -> None:
    strategy = STRATEGIES["sma_cross"]
    assert tuple(info.name for info in parameter_table(strategy)) == (*strategy.params.names(), *RULE_NAMES)
    assert RULE_NAMES == ("stop_loss", "take_profit", "trailing_stop", "time_stop_bars", "size", "leverage")
    expected = [20.0, 100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
    assert full_vector(strategy.params()).tolist() == expected
    assert full_matrix(strategy, strategy.params().vector()[np.newaxis]).tolist() == [expected]


def test_no_parameter_may_be_called_like_a_rule() -> None:
    class Clash(Params):
        size: int = Field(5, ge=1, le=9)

    with pytest.raises(TypeError, match="sma_cross: the parameter size has the name of a rule"):
        dataclasses.replace(STRATEGIES["sma_cross"], params=Clash)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_defaults_within_its_own_ranges(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy.name == name
    for info in parameter_table(strategy):
        assert info.low <= info.default <= info.high
        assert info.description
    assert strategy.params.keeps_order(strategy.params().vector()[np.newaxis]).all()


@pytest.mark.parametrize(
    "value", [0, 2_001, 10.5, math.nan, math.inf, -math.inf, True, "20", None, [20], 10**400, np.float64("nan"), 1 + 2j]
)
def test_params_refuse(value: object) -> None:
    with pytest.raises(ValidationError):
        SmaCrossParams.model_validate({"fast": value})


@pytest.mark.parametrize("value", [20, 20.0, np.int64(20), np.float64(20)])
def test_params_take_every_kind_of_whole_number(value: object) -> None:
    assert SmaCrossParams.model_validate({"fast": value}).fast == 20


def test_params_are_frozen_and_know_no_other_name() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        SmaCrossParams().fast = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="fsat"):
        SmaCrossParams.model_validate({"fsat": 3})


def test_params_keep_the_rules_between_fields() -> None:
    with pytest.raises(ValidationError, match="fast: expected less than slow = 50, was 50"):
        SmaCrossParams(fast=50, slow=50)
    kept = SmaCrossParams.keeps_order(np.array([[1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [3.0, 2.0, 0.0]]))
    assert kept.tolist() == [True, False, False]


def test_a_class_of_parameters_without_ranges_does_not_come_into_being() -> None:
    with pytest.raises(TypeError, match=r"Endless\.window"):

        class Endless(Params):
            window: int = Field(5, ge=1)

    with pytest.raises(TypeError, match="BELOW"):

        class Typo(Params):
            BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("windwo", "window"),)
            window: int = Field(5, ge=1, le=9)

    with pytest.raises(TypeError, match="default"):

        class Outside(Params):
            window: int = Field(50, ge=1, le=9)


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (0, "a whole number from 1 to 2000"),
        (2_001, "a whole number from 1 to 2000"),
        (1.5, "a whole number from 1 to 2000"),
        (math.nan, "a whole number from 1 to 2000"),
        (math.inf, "a whole number from 1 to 2000"),
        (10**1_000, "a whole number from 1 to 2000"),
        (True, "a whole number from 1 to 2000"),
        ("3", "a whole number from 1 to 2000"),
    ],
)
def test_a_check_names_field_value_and_rule(value: object, rule: str) -> None:
    info = parameters_of(SmaCrossParams)[0]
    with pytest.raises(SpecError) as caught:
        info.check(value, "grids[0].grid.fast")
    assert (caught.value.field, caught.value.rule) == ("grids[0].grid.fast", rule)
    assert caught.value.value is value
    assert len(str(caught.value)) < 200


def test_a_check_passes_on_what_fits() -> None:
    info = parameters_of(SmaCrossParams)[0]
    assert [info.check(value, "x") for value in (1, 2_000.0, Fraction(7))] == [1.0, 2_000.0, 7.0]


def test_errors_survive_the_way_between_processes() -> None:
    error = SpecError("grid.fast", 0, "at least 1").under("grids[0]")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 -- our own bytes
    assert (str(copy), copy.field, copy.value, copy.rule) == (str(error), "grids[0].grid.fast", 0, "at least 1")
