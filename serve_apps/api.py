"""Application /: everything over HTTP but orders. FastAPI, composed of rooms: health, accounts, venue, backtests …

Nothing here blocks the event loop: files of size and Ray's Jobs API are read in threads. The replica holds no state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

from fastapi import FastAPI
from pydantic import SecretStr
from ray import serve
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.api_keys import KeyRing
from cluster.ledger import Ledger
from cluster.local import ray_token
from cluster.market_data import BarStore
from cluster.ray_jobs import RayJobs
from cluster.run_queue import RunQueue
from cluster.venue_budget import shared_venue
from conf.settings import SIMULATED, Secrets, Settings, load_secrets, load_settings
from serve_apps import (
    api_accounts,
    api_approvals,
    api_arming,
    api_backtests,
    api_document,
    api_exposures,
    api_health,
    api_heartbeats,
    api_limits,
    api_pnl,
    api_preview,
    api_problems,
    api_progress,
    api_reconciliation,
    api_research,
    api_results,
    api_risk,
    api_runs,
    api_sessions,
    api_venue,
)
from serve_apps.api_access import Desk
from serve_apps.api_ray import RayCalls
from serve_apps.venue_reads import LOOKING_SHARE, VenueReads

_DESCRIPTION: Final = """\
The desk over HTTP: accounts, exposures, PnL, the venue's own view of them, limits, the kill switch, backtests and
health here; orders at /v1/orders, served by the three risk replicas. Money and quantities are decimal text, times
nanoseconds UTC. Every failure is an RFC 9457 problem document with a machine-readable `code`.
"""

_ROOMS: Final = (
    api_health,
    api_accounts,
    api_pnl,
    api_exposures,
    api_venue,
    api_preview,
    api_heartbeats,
    api_risk,
    api_arming,
    api_limits,
    api_approvals,
    api_reconciliation,
    api_research,
    api_backtests,
    api_progress,
    api_results,
    api_sessions,
)

logger = logging.getLogger("ray.serve")


def build_api(settings: Settings, secrets: Secrets, ledger: Ledger, jobs: RayJobs | None = None) -> FastAPI:
    """The application on ``ledger``; ``jobs`` replaces the Jobs API the settings name.

    Raises ``RuntimeError`` where the pepper is missing, because then no API key can be checked.
    """
    if secrets.api_key_pepper is None:
        raise RuntimeError("secrets: api_key_pepper is missing, so no API key can be checked")
    # No interactive pages: FastAPI's load their scripts from a CDN.
    app = FastAPI(
        title="Desk",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=api_document.route_name,
        lifespan=_taking_turns,
    )
    app.state.desk = Desk(
        settings=settings,
        ledger=ledger,
        keys=KeyRing(ledger, secrets.api_key_pepper),
        store=BarStore(settings.bars_path),
        runs_dir=settings.runs_path.resolve(),
        ray=RayCalls(jobs or ray_jobs(settings)),
        venue=VenueReads(lambda: shared_venue(settings, secrets, ledger, LOOKING_SHARE)),
        queue=RunQueue(settings.runs_path.resolve(), settings.queue),
    )
    api_problems.install(app)
    for router in (api_health.open_router, *(room.router for room in _ROOMS)):
        app.include_router(router)
    api_document.describe(app)
    simulated = settings.data_source == SIMULATED
    app.add_middleware(Door, headers=_ALWAYS | ({"x-simulated": "1"} if simulated else {}))
    return app


@asynccontextmanager
async def _taking_turns(app: FastAPI) -> AsyncIterator[None]:
    """As long as the application runs, waiting runs start when it is their turn."""
    task = asyncio.create_task(api_runs.take_turns(app.state.desk))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def ray_jobs(settings: Settings) -> RayJobs | None:
    """The Jobs API of the settings; None where they know no Ray."""
    port = settings.ray.dashboard_port
    address = settings.ray.address or (f"http://127.0.0.1:{port}" if port else None)
    token = ray_token(settings.state_dir)
    return RayJobs(address, SecretStr(token) if token else None) if address else None


# What an answer says is of this moment and for its caller only.
_ALWAYS: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


class Door:
    """Adds headers to every answer, and makes a fault that nobody caught a problem document instead of a trace."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        """``headers`` are set where the answer has none of that name."""
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("%s: not answered", scope["method"])
            if started:
                raise
            await api_problems.problem_response(api_problems.internal())(scope, receive, send_with_headers)


@serve.deployment(name="api")
@serve.ingress()
class Api:
    """The replica."""

    def __init__(self) -> None:
        """Read settings and secrets; what is missing stops the replica with its name."""
        settings = load_settings()
        secrets = load_secrets(settings)
        self._fastapi = build_api(settings, secrets, Ledger.connect(settings, secrets))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve runs for each request."""
        return self._fastapi


app = Api.bind()  # type: ignore[attr-defined]
