"""Schemathesis on the OpenAPI document: generated requests, right and wrong ones, over HTTP to both applications.

The API and the orders application stand behind one port as behind Serve's, on a real ledger and a real exchange
simulator, with bars and a finished run; only Ray's Jobs API is a double. No answer may be a 5xx, and each must be one
that the document describes.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from cluster.ledger import Ledger
from cluster.processes import choose_ports
from conf.settings import RedisSettings, Settings, VenueSettings
from serve_apps.api import build_api
from serve_apps.orders import PREFIX, OrdersApp
from tests.api_desk import ApiDesk, open_desk
from tests.jobs_api import JobsApi, jobs_api
from tests.run_samples import complete_run, make_spec, make_store
from tests.servers import redis_secrets
from tests.simulator import running_simulator

EXAMPLES: Final = 40
EXAMPLES_NIGHTLY: Final = 2_000
ANSWER_TIMEOUT_S: Final = 20.0
BEAT_S: Final = 1.0
# What there is; half of the requests name it, for about something else there is little to say but 404.
KNOWN: Final = {"account": "main", "run_id": "a1", "client_order_id": "o-1", "product_id": "BTC-USD"}
CHECKS: Final = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
T = TypeVar("T")


def document() -> dict[str, Any]:
    """The document as the API serves it; no server is asked for it."""
    nowhere = Settings(redis=RedisSettings(port=1))
    described: dict[str, Any] = build_api(nowhere, redis_secrets(), Ledger.connect(nowhere, redis_secrets())).openapi()
    return described


SCHEMA: Final = schemathesis.openapi.from_dict(
    document(),
    config=SchemathesisConfig.from_dict({"generation": {"with-security-parameters": False}}),
)
OPERATIONS: Final[dict[str, Any]] = {
    f"{found.ok().method.upper()} {found.ok().path}": found.ok()
    for found in SCHEMA.get_all_operations()
    if isinstance(found, Ok)
}


def test_no_operation_of_the_document_is_left_out() -> None:
    documented = {f"{method.upper()} {path}" for path, item in document()["paths"].items() for method in item}
    assert set(OPERATIONS) == documented


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_one_the_document_describes(served: Served, name: str) -> None:
    fuzz(served, name, EXAMPLES)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_of_many_more_is_one_the_document_describes(served: Served, name: str) -> None:
    fuzz(served, name, EXAMPLES_NIGHTLY)


def fuzz(served: Served, name: str, examples: int) -> None:
    """Ask for one operation in many ways, as many right ones as wrong ones."""
    ask_for(served, name, GenerationMode.POSITIVE, examples // 2)
    # About an operation without parameters nothing can be wrong.
    with suppress(Unsatisfiable):
        ask_for(served, name, GenerationMode.NEGATIVE, examples // 2)


def ask_for(served: Served, name: str, mode: GenerationMode, examples: int) -> None:
    """Ask with generated requests of one mode."""
    operation = OPERATIONS[name]
    known = {
        where: {item.name: KNOWN[item.name] for item in parameters if item.name in KNOWN}
        for where, parameters in (("path_parameters", operation.path_parameters), ("query", operation.query))
    }
    # An event stream's schema says "text"; taken as one of each event, it would be a wrong one.
    streams = "text/event-stream" in str(operation.definition.raw)
    asked = [check for check in CHECKS if not (streams and check is checks.response_schema_conformance)]
    anything = operation.as_strategy(mode)
    of_known = operation.as_strategy(mode, **{where: values for where, values in known.items() if values})

    @given(of_known | anything if any(known.values()) else anything)
    @settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        case.call_and_validate(
            base_url=served.url,
            session=served.session,
            headers=served.headers,
            checks=asked,
            timeout=ANSWER_TIMEOUT_S,
        )

    ask()


@dataclass(frozen=True)
class Served:
    """Where the two applications answer, and a key that may do everything."""

    url: str
    headers: dict[str, str]
    session: requests.Session


@pytest.fixture(scope="module")
def served(ledger_server: RedisSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Both applications behind one port, in a thread of their own."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "exchange").mkdir()
    loop = _Loop()
    with jobs_api() as jobs, requests.Session() as session, running_simulator(folder / "exchange") as simulator:
        venue = VenueSettings(host_port=simulator.host_port)
        desk_settings = Settings(state_dir=folder, redis=ledger_server, venue=venue)
        serving = _serving(desk_settings, jobs)
        port, headers = loop.run(serving.__aenter__())
        yield Served(f"http://127.0.0.1:{port}", headers, session)
        session.close()
        loop.run(serving.__aexit__(None, None, None))
    loop.close()


class _Loop:
    """An event loop in a thread of its own: what is tested runs there, while here requests are made and waited for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@asynccontextmanager
async def _serving(desk_settings: Settings, jobs: JobsApi) -> AsyncIterator[tuple[int, dict[str, str]]]:
    """(port, headers with a key that may do everything)."""
    store = make_store(desk_settings.bars_path)
    complete_run(desk_settings.runs_path, store, make_spec(), KNOWN["run_id"])
    ledger = Ledger.connect(desk_settings, redis_secrets())
    try:
        await ledger._direct("FLUSHALL")
        await ledger.install()
        async with open_desk(desk_settings, ledger, jobs.client()) as desk:
            await desk.open_account()
            await desk.order(KNOWN["client_order_id"], "0.01", "90000")
            async with _listening(desk) as port:
                yield port, {"authorization": desk.client.headers["authorization"]}
    finally:
        await ledger.close()


@asynccontextmanager
async def _listening(desk: ApiDesk) -> AsyncIterator[int]:
    (port,) = choose_ports(1)
    config = uvicorn.Config(_Both(desk), port=port, lifespan="off", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving, beating = asyncio.create_task(server.serve()), asyncio.create_task(_beat(desk))
    while not server.started:
        await asyncio.sleep(0.01)
    yield port
    server.should_exit = True
    beating.cancel()
    await asyncio.wait([serving, beating])


class _Both:
    """The way Serve shares the paths out."""

    def __init__(self, desk: ApiDesk) -> None:
        self._api = desk.app
        self._orders: Any = OrdersApp(desk.ledger, desk.app.state.desk.keys)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        ours = path == PREFIX or path.startswith(f"{PREFIX}/")
        await (self._orders if ours else self._api)(scope, receive, send)


async def _beat(desk: ApiDesk) -> None:
    """What execution does: it is alive, and prices are fresh."""
    while True:
        await desk.ledger.beat("execution", {"account": "main"})
        await desk.quote()
        await asyncio.sleep(BEAT_S)
