"""A fresh worker compiles nothing: everything it runs was compiled at set-up and comes from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from strategies.backtest import warm
from tests.ray_head import RayHead, ray_head

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def _set_up() -> None:
    warm()


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=1) as started:
        yield started


def looked(environment: Mapping[str, str], *words: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.cold_worker", *words]
    done = subprocess.run(argv, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_fresh_process_compiles_nothing() -> None:
    found = looked(os.environ)
    assert found["compiled"] == []
    assert found["loaded"] > 10


def test_a_worker_of_ray_compiles_nothing(head: RayHead) -> None:
    found = looked(head.environment, "--ray")
    assert found["compiled"] == []
    assert found["loaded"] > 10


def test_without_a_cache_it_would_be_seen(tmp_path: Path) -> None:
    """The two tests above can fail: with an empty cache the same look finds what is compiled."""
    program = (
        "import strategies.compiled as c; from strategies.indicators import *; import strategies.metrics as m;"
        "m.total_return(1.0, 2.0); print(c.cache_statistics(m.total_return)[1])"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
