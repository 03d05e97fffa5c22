"""Fixtures of the fault tests. ``make faults`` runs them all; without it only quick ones run, with one seed each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from cluster import local
from conf.settings import CONF_DIR, ServeSettings, load_settings, read_mapping
from tests.faults.desk_load import PatientDesk
from tests.faults.report import FAULT
from tests.servers import KINDS, Kind, Server, binary
from tests.system.client import Desk

PLUGIN: Final = "fault-run"
"""The plugin of ``make faults``; where it is registered the whole set runs."""

# What would latch a halt of its own accord, or stop a test of thousands of orders, in the limits the desk comes with.
_LOOSENED: Final[dict[str, Any]] = {
    **dict.fromkeys(("max_daily_loss", "max_drawdown_percent", "max_rejects", "max_venue_errors"), "unlimited"),
    **dict.fromkeys(("max_order_to_trade", "reference_halt_ms", "volatility_percent"), "unlimited"),
    "max_open_orders": 100_000,
    "reference_stale_ms": 60_000,
}

Report = Callable[..., None]


def pytest_configure(config: pytest.Config) -> None:
    """The marks of these tests."""
    config.addinivalue_line(
        "markers", "fault(number, name, target): the fault of the table in the facts, and its target"
    )
    config.addinivalue_line("markers", "seeds(most): a test that takes long and varies little")
    config.addinivalue_line("markers", "faults: only part of the whole set, `make faults`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with a ``seed`` runs once for each, or for so many as its mark says."""
    if "seed" in metafunc.fixturenames:
        run = metafunc.config.pluginmanager.get_plugin(PLUGIN)
        mark = metafunc.definition.get_closest_marker("seeds")
        most = mark.args[0] if mark else 1_000
        metafunc.parametrize("seed", range(min(run.seeds if run else 1, most)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long unless the whole set was asked for."""
    if config.pluginmanager.get_plugin(PLUGIN) is None:
        skip = pytest.mark.skip(reason="part of the whole set of fault tests: make faults")
        for item in items:
            if item.get_closest_marker("faults"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, the loop Serve uses."""
    return "asyncio"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """``report(**figures)`` adds to what the test hands over; at its end they are printed as one line of JSON.

    Which fault it is stands in the test's mark ``fault(number, name, target)``; what was measured is handed over also
    where the test then fails.
    """
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "which fault is this? @pytest.mark.fault(number, name, target)"
    number, name, target = mark.args
    figures: dict[str, Any] = {}
    yield figures.update
    seed = getattr(request.node, "callspec", None)
    named = {"fault": number, "name": name, "seed": seed.params.get("seed", 0) if seed else 0, **figures}
    request.node.user_properties.append((FAULT, {"number": number, "name": name, "target": target, "figures": figures}))
    print("\n" + json.dumps(named))


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether this is the whole set: then tests ask more."""
    return request.config.pluginmanager.get_plugin(PLUGIN) is not None


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A real desk of its own, every control on; at the end every process of it is gone."""
    os.environ.setdefault("NUMBA_CACHE_DIR", str(local.NUMBA_CACHE_DIR))
    folder = tmp_path_factory.mktemp("desk")
    limits = folder / "limits.yaml"
    limits.write_text(yaml.safe_dump(_loosened(read_mapping(CONF_DIR / "limits.yaml"))))
    settings = load_settings("paper", folder / "state")
    # The venue's own pace would be the slowest part, and a backlog of it is not what is tested.
    changes = {
        "limits_file": limits,
        "serve": ServeSettings(http_port=0),
        "venue": settings.venue.model_copy(update={"requests_per_s": 500.0}),
        # Outages longer than the dead man's patience are part of the tests, and not what he would have to judge.
        "execution": settings.execution.model_copy(update={"deadman_s": 600.0}),
    }
    settings = local.up(settings.model_copy(update=changes))
    running = PatientDesk(settings)
    yield running
    running.close()
    local.down(settings.state_dir)
    left = running.all_processes()
    assert not left, f"left behind: {[process.cmdline() for process in left]}"


@contextmanager
def durable_server(kind: Kind, folder: Path) -> Iterator[Server]:
    """A server in a folder of its own that writes to disk before it answers, as the desk's does."""
    own = folder / "server"
    own.mkdir()
    with (server := Server(binary(kind), own, appendfsync="always")).running():
        yield server


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own, Valkey and then Redis."""
    with durable_server(request.param, tmp_path) as server:
        yield server


def _loosened(limits: Any) -> Any:
    if not isinstance(limits, dict):
        return limits
    return {name: _LOOSENED.get(name, _loosened(value)) for name, value in limits.items()}
