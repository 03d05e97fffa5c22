"""Strategies are found by name; an unknown name is told the known ones."""

from __future__ import annotations

import pickle

import pytest

from strategies.registry import STRATEGIES, UnknownStrategy, get


def test_the_five_strategies_are_registered_under_their_own_names() -> None:
    assert list(STRATEGIES) == [
        "sma_cross",
        "rsi_reversion",
        "bollinger_reversion",
        "donchian_breakout",
        "vol_target_momentum",
    ]
    assert all(get(name) is strategy for name, strategy in STRATEGIES.items())


@pytest.mark.parametrize("name", ["sma-cross", "", "SMA_CROSS", None, 3, ["sma_cross"]])
def test_an_unknown_name_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(UnknownStrategy, match="strategy: expected one of sma_cross, rsi_reversion") as caught:
        get(name)  # type: ignore[arg-type]
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 -- our own bytes
    assert isinstance(copy, UnknownStrategy)
    assert (copy.field, copy.value) == ("strategy", name)
