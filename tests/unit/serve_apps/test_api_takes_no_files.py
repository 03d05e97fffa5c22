"""The API takes no strategy files, paths or names of users' strategies, also of one this process had loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from serve_apps.api_submission import read_submission
from strategies.base import SpecError
from strategies.user_file import load, read
from tests.strategy_files import written

PERIOD = {"product_id": "BTC-USD", "granularity": "ONE_HOUR"}


def bodies(name: Any) -> list[dict[str, Any]]:
    """A sweep and a backtest of the strategy called so."""
    return [
        PERIOD | {"grids": [{"strategy": name, "grid": {"fast": [3], "slow": [8]}}]},
        {"backtest": PERIOD | {"strategy": name, "params": {"fast": 3, "slow": 8}}},
    ]


@pytest.mark.parametrize(
    "name",
    [
        "my_strategy.py",
        "./my_strategy.py",
        "../../my_strategy.py",
        "/etc/passwd",
        "file:///tmp/my_strategy.py",
        "C:\\my_strategy.py",
        "my_strategy@0123456789abcdef",
        "sma_cross\0",
        "strategies.sma_cross",
        "my_strategy",
        "",
        None,
        ["my_strategy.py"],
        {"file": "my_strategy.py"},
    ],
)
def test_no_file_or_path_is_taken(name: Any) -> None:
    for body in bodies(name):
        with pytest.raises(SpecError, match="strategy"):
            read_submission(body, None, "key")


def test_a_users_strategy_is_refused_where_it_is_loaded(tmp_path: Path) -> None:
    own = load(read(written(tmp_path)))
    for body in bodies(own.name):
        with pytest.raises(SpecError, match="your own files run by"):
            read_submission(body, None, "key")


def test_fields_that_could_carry_a_file_are_unknown() -> None:
    for field in ("strategy_file", "source", "code", "text", "path", "files", "sha256"):
        for body in bodies("sma_cross"):
            part = body["backtest"] if "backtest" in body else body["grids"][0]
            part[field] = "x"
            with pytest.raises(SpecError, match="no such field"):
                read_submission(body, None, "key")


def test_a_shipped_strategy_is_taken() -> None:
    for body in bodies("sma_cross"):
        assert read_submission(body, None, "key").spec.grids[0].strategy == "sma_cross"
