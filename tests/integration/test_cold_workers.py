"""A fresh worker compiles nothing: everything it runs was compiled at set-up and comes from the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.market_data import SIMULATED
from cluster.runs import RunState, prepare_run
from jobs.background import NICENESS, SHARE_NICENESS
from strategies.backtest import warm
from tests.ray_head import RayHead, ray_head
from tests.run_samples import make_spec, make_store, wavy_bars
from tests.sweep_workers import swept

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


STRATEGIES: Final[dict[str, dict[str, Any]]] = {
    "sma_cross": {"fast": list(range(2, 31)), "slow": [40, 60, 90]},
    "rsi_reversion": {"window": list(range(5, 41))},
    "bollinger_reversion": {"window": list(range(10, 51))},
    "donchian_breakout": {"entry_window": list(range(20, 61))},
    "vol_target_momentum": {"lookback": list(range(20, 61))},
}
# The same sets by their changes and, with a stop, bar by bar.
RULES: Final[dict[str, Any]] = {"stop_loss": [0.0, 0.05], "size": [0.5, 1.0]}
GRIDS: Final = [{"strategy": name, "grid": {**grid, **RULES}} for name, grid in STRATEGIES.items()]
PORTFOLIO: Final[list[dict[str, Any]]] = [
    {"strategy": "momentum_rotation", "grid": {"lookback": list(range(5, 60)), "inverse_volatility": [0, 1]}},
    {"strategy": "pairs", "grid": {"window": list(range(20, 90))}},
]


@pytest.mark.parametrize(
    ("grids", "products"),
    [(GRIDS, ()), (PORTFOLIO, ("BTC-USD", "ETH-USD"))],
    ids=["one product", "a portfolio"],
)
def test_the_workers_of_a_sweep_compile_nothing(
    head: RayHead, tmp_path: Path, grids: list[dict[str, Any]], products: tuple[str, ...]
) -> None:
    store = make_store(tmp_path / "bars", wavy_bars(4_000))
    store.write(dataclasses.replace(wavy_bars(3_000, seed=8), product_id="ETH-USD"), source=SIMULATED)
    folder = prepare_run(tmp_path / "runs", store, make_spec(grids=grids, product_ids=products), "cold")
    books = swept(folder, store.root, head.environment)
    assert folder.progress().state is RunState.SUCCEEDED
    assert sum(book["blocks"] for book in books) > 0, "no worker had anything to do"
    assert [book["compiled"] for book in books] == [[]] * len(books)
    assert all(book["loaded"] > 0 for book in books)
    assert all(book["niceness"] == NICENESS for book in books), "a desk's orders come first"
    # Within Ray's session a worker took time from ledger and venue, whatever its niceness: orders waited half a second.
    assert all(book["session"] == book["pid"] for book in books)
    assert {book["share"] for book in books} <= {f"nice {SHARE_NICENESS}", ""}


def test_without_a_cache_it_would_be_seen(tmp_path: Path) -> None:
    """The two tests above can fail: with an empty cache the same look finds what is compiled."""
    program = (
        "import strategies.compiled as c; from strategies.indicators import *; import strategies.metrics as m;"
        "m.total_return(1.0, 2.0); print(c.cache_statistics(m.total_return)[1])"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr
