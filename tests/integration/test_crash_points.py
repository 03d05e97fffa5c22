"""Fault 22, the quick part: execution is killed at each kind of call from the outbox to ack, fill, release and amend.

Every point there is, with five seeds, is in ``make faults`` (tests/faults/test_crash_points.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash_runs import AT_ONCE, CHANGES, assert_met, ledger_servers, run_all, table

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_execution_killed_at_each_kind_of_call_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with ledger_servers(tmp_path, AT_ONCE) as servers:
        outcomes = await run_all(servers, tmp_path, 0, CHANGES)
    print("\n" + table(outcomes))
    assert_met(outcomes)
