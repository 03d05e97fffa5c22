"""Fault 22: execution is killed at every one of its calls of ledger and venue, and while it recovers from that."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from tests.crash_runs import AT_ONCE, IN_DOUBT, assert_met, figures, ledger_servers, run_all, table
from tests.faults.conftest import Report

pytestmark = [pytest.mark.anyio, pytest.mark.faults, pytest.mark.timeout(1_200)]


PARTS: Final = 5
"""All points of a seed are hundreds of runs: so many tests share them."""


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.fault("22", "execution SIGKILLed before, in and after each of its calls", "equal again in 10 s")
async def test_execution_killed_at_any_call_loses_and_doubles_nothing(
    tmp_path: Path, report: Report, seed: int, part: int
) -> None:
    with ledger_servers(tmp_path, AT_ONCE) as servers:
        outcomes = await run_all(servers, tmp_path, seed, part=(part, PARTS))
    print("\n" + table(outcomes))
    report(**figures(outcomes))
    assert_met(outcomes)


@pytest.mark.seeds(2)
@pytest.mark.fault("22", "the same with orders in doubt as long as in service", "equal again in 10 s")
async def test_as_long_as_orders_are_in_doubt_in_service_both_sides_are_equal_soon(
    tmp_path: Path, report: Report, seed: int
) -> None:
    with ledger_servers(tmp_path, AT_ONCE) as servers:
        outcomes = await run_all(servers, tmp_path, seed, IN_DOUBT, constants={})
    print("\n" + table(outcomes))
    report(**figures(outcomes))
    assert_met(outcomes)
