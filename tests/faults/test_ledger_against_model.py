"""Fault 25: sequences of everything that can happen to a desk, on a plain model and the real server at once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.conftest import Report
from tests.properties.test_ledger_model import run_on as run_on
from tests.properties.test_ledger_model import walk
from tests.servers import KINDS

STEPS = 1_000


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.fault("25", "a plain model of the ledger beside the real server", "equal after every step")
def test_model_and_server_agree_after_every_step(run_on: Any, report: Report, seed: int) -> None:
    # The nightly tier takes 50,000 steps and lets Hypothesis make failures smaller; here each seed is a walk.
    kind = KINDS[seed % len(KINDS)]
    machine = run_on(kind, walk(STEPS, 1_000 + seed))
    report(server=kind, steps_compared=machine.steps, different_outcomes_met=len(machine.outcomes))
    report(outcomes=sum(machine.outcomes.values()), steps_that_differed=0)
    assert machine.steps == STEPS
