"""Users' own strategies in a sweep with several workers of Ray: the same table, compiled once, never mixed up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.market_data import SIMULATED, BarStore
from cluster.runs import RunFolder, RunState, prepare_run
from strategies.user_file import load, read
from tests.ray_head import RayHead, ray_head
from tests.run_samples import driven_here, make_spec, make_store, wavy_bars
from tests.strategy_files import GOOD, SECTION, written
from tests.sweep_workers import swept

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GRID: Final[dict[str, Any]] = {"fast": list(range(2, 32)), "slow": list(range(34, 64, 2)), "stop_loss": [0.0, 0.05]}
SECTION_GRID: Final[dict[str, Any]] = {"lookback": list(range(2, 62)), "every": [6, 12, 24], "stop_loss": [0.0, 0.05]}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(num_cpus=2) as started:
        yield started


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    return make_store(tmp_path_factory.mktemp("bars"), wavy_bars(10_000))


def users(folder: Path, text: str) -> str:
    """The name of the strategy in a file that is always called the same, and is gone afterwards."""
    path = written(folder, text)
    name = load(read(path)).name
    path.unlink()
    return name


def of_its_own(text: str, folder: Path) -> str:
    """A text that no run has compiled before."""
    return f"{text}\n# {folder}\n"


def sweep_of(root: Path, store: BarStore, run_id: str, *names: str) -> RunFolder:
    spec = make_spec(grids=[{"strategy": name, "grid": GRID} for name in names])
    return prepare_run(root, store, spec, run_id)


def on_workers(folder: RunFolder, store: BarStore, head: RayHead) -> None:
    """Compute the run with several workers of Ray, none of which compiles anything."""
    books = swept(folder, store.root, head.environment)
    assert folder.progress().state is RunState.SUCCEEDED
    assert len(books) >= 2, "several workers were to be at work"
    assert [book["compiled"] for book in books] == [[]] * len(books), "the driver has compiled it for all"


def test_two_files_of_one_name_are_told_apart_by_every_worker(head: RayHead, store: BarStore, tmp_path: Path) -> None:
    against = GOOD.replace("return 1.0 if quick > slow else 0.0", "return 0.0 if quick > slow else 1.0")
    assert against != GOOD
    first, second = users(tmp_path, of_its_own(GOOD, tmp_path)), users(tmp_path, of_its_own(against, tmp_path))
    assert first.partition("@")[0] == second.partition("@")[0] == "my_strategy"
    tables = {}
    for run_id, names in {"one": (first,), "both": (first, second, "sma_cross")}.items():
        folder = sweep_of(tmp_path / "runs", store, run_id, *names)
        on_workers(folder, store, head)
        here = driven_here(sweep_of(tmp_path / "quiet", store, run_id, *names), store)
        assert folder.results_file.read_bytes() == here.results_file.read_bytes()
        tables[run_id] = {row["strategy"]: row for row in folder.summary()["best_by_strategy"]}
    assert tables["both"][first]["total_return"] == tables["one"][first]["total_return"]
    assert tables["one"][first]["total_return"] == tables["both"]["sma_cross"]["total_return"]
    assert tables["both"][first]["total_return"] != tables["both"][second]["total_return"]


def test_a_strategy_over_several_products_is_the_same_on_workers(
    head: RayHead, store: BarStore, tmp_path: Path
) -> None:
    store.write(dataclasses.replace(wavy_bars(9_000, seed=8), product_id="ETH-USD"), source=SIMULATED)
    name = users(tmp_path, of_its_own(SECTION, tmp_path))
    grids = [{"strategy": name, "grid": SECTION_GRID}]
    spec = make_spec(grids=grids, product_ids=["BTC-USD", "ETH-USD"])
    folder = prepare_run(tmp_path / "runs", store, spec, "section")
    on_workers(folder, store, head)
    here = driven_here(prepare_run(tmp_path / "quiet", store, spec, "section"), store)
    assert folder.results_file.read_bytes() == here.results_file.read_bytes()
    assert folder.summary()["best_by_strategy"][0]["trades"] > 0
