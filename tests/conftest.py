"""The order of the tiers, fast first, and the long one only on request."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

TIERS = ("unit", "properties", "simulation", "contract", "kubernetes", "peers", "integration", "system", "faults")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--nightly`` runs the long tier as well."""
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly too")


def pytest_configure(config: pytest.Config) -> None:
    """Kernels compiled by one process serve all others, as in production."""
    from cluster.local import NUMBA_CACHE_DIR

    os.environ.setdefault("NUMBA_CACHE_DIR", str(NUMBA_CACHE_DIR))
    # The same examples each time, so that a red run means a change; the nightly tier looks for new ones.
    settings.register_profile("desk", derandomize=not config.getoption("--nightly"), print_blob=True)
    settings.load_profile("desk")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by tier; skip what is nightly unless it was asked for."""
    items.sort(key=_tier)
    if not config.getoption("--nightly"):
        skip = pytest.mark.skip(reason="nightly tier: make nightly")
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(skip)


def _tier(item: pytest.Item) -> int:
    folders = Path(item.path).relative_to(Path(__file__).parent).parts
    return TIERS.index(folders[0]) if folders[0] in TIERS else 0
