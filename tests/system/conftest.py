"""One real desk for all system tests: Valkey, Ray, Serve with HAProxy, the exchange simulator, three risk replicas."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import yaml

from cluster import local
from conf.settings import ServeSettings, Settings, load_settings
from tests.limit_samples import ACCOUNT, GLOBAL, GROUP, KEY, PRODUCT, STRATEGY
from tests.system.client import Desk

_PRODUCT = PRODUCT | {"max_order_notional": 100_000, "max_position": 100, "group": "majors"}
LIMITS = {
    "calendar_zone": "UTC",
    "global": GLOBAL,
    "accounts": {
        "main": ACCOUNT
        | {
            "max_order_notional": 100_000,
            "self_trade": "deny",
            "products": {"BTC-USD": _PRODUCT, "ETH-USD": {**_PRODUCT, "max_position": 10_000}},
            "strategies": {
                "manual": STRATEGY,
                "race": {**STRATEGY, "max_open_orders": 100},
                "gross": {**STRATEGY, "max_gross_exposure": 1_000},
                "slow": {**STRATEGY, "order_rate_per_s": "0.05", "order_burst": 3},
                "stopped": STRATEGY,
            },
            "groups": {"majors": GROUP},
            "keys": {"*": KEY},
        }
    },
}


@pytest.fixture(scope="session")
def desk_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a desk of its own: every port free, limits made for these tests."""
    folder = tmp_path_factory.mktemp("desk")
    limits = folder / "limits.yaml"
    limits.write_text(yaml.safe_dump(LIMITS))
    settings = load_settings("paper", folder / "state")
    # On two loaded cores a killed execution takes long to come back, and these tests are not about the dead man.
    execution = settings.execution.model_copy(update={"deadman_s": 300})
    return settings.model_copy(
        update={"limits_file": limits, "serve": ServeSettings(http_port=0), "execution": execution}
    )


@pytest.fixture(scope="session")
def desk(desk_settings: Settings) -> Iterator[Desk]:
    """The running desk; at the end every process of it is gone."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(local.NUMBA_CACHE_DIR))
    settings = local.up(desk_settings)
    running = Desk(settings)
    yield running
    running.close()
    _crash(running)
    local.down(settings.state_dir)
    left = running.all_processes()
    assert not left, f"left behind: {[process.cmdline() for process in left]}"


def _crash(desk: Desk) -> None:
    """Kill the parents first, so that ``down`` meets orphans: HAProxy without its actor, workers without a raylet."""
    # Read before the first kill: a process whose parent is gone may be one whose command line cannot be read any more.
    titles = [(process, " ".join(process.cmdline())) for process in desk.all_processes()]
    for process, title in titles:
        if (
            title.startswith("ray::HAProxyManager")
            or "/raylet/raylet " in title
            or "ray.scripts.scripts start" in title
        ):
            process.kill()
