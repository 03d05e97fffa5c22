"""Fixtures of the integration tests: one Valkey a test run, an empty ledger with the function library a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster.ledger import Ledger
from conf.settings import RedisSettings, Settings
from tests.api_desk import ApiDesk, open_desk
from tests.books import Books
from tests.servers import KINDS, Server, binary, redis_secrets, valkey


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests run on asyncio, the loop Serve uses."""
    return "asyncio"


@pytest.fixture(scope="session")
def ledger_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """A running Valkey, empty at first."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session", params=KINDS)
def each_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    """A running Valkey, then Debian's Redis where it is installed: a module that overrides ``ledger_server`` with
    this one runs on both."""
    with Server(binary(request.param), tmp_path_factory.mktemp(request.param)).running() as server:
        yield server


@pytest.fixture
def settings(ledger_server: RedisSettings, tmp_path: Path) -> Settings:
    """Settings of a desk in a folder of its own on the running Valkey; no Ray is named."""
    return Settings(state_dir=tmp_path, redis=ledger_server)


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """An empty ledger with its function library."""
    ledger = Ledger.connect(settings, redis_secrets())
    await ledger._direct("FLUSHALL")
    # A library loaded anew has forgotten which accounts it may take orders for.
    await ledger._direct("FUNCTION", "FLUSH")
    await ledger.install()
    yield ledger
    await ledger.close()


@pytest.fixture
def books(ledger: Ledger) -> Books:
    """An account not opened yet."""
    return Books(ledger)


@pytest.fixture
async def desk(settings: Settings, ledger: Ledger) -> AsyncIterator[ApiDesk]:
    """The API in this process, with a key that may do everything; no account yet."""
    async with open_desk(settings, ledger) as desk:
        yield desk
