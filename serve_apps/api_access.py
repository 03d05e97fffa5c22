"""The door of every /v1 route: who asks, what the key may do, and a body of bounded size in bounded time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.message import Message as Headers
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Response, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from starlette.types import Message, Receive

from cluster.api_keys import HALT, LIMITS, READ, RESEARCH, RESUME, TRADE, ApiKey, KeyRing
from cluster.ledger import Ledger, Snapshot
from cluster.market_data import BarStore
from cluster.risk import NAME_PATTERN
from cluster.run_queue import RunQueue
from conf.settings import Settings
from serve_apps.api_ray import RayCalls
from serve_apps.problem import Problem, forbidden, unauthorised, unknown_account
from serve_apps.venue_reads import VenueReads

BODY_BYTES_MAX: Final = 1_000_000
BODY_TIMEOUT_S: Final = 5.0
STREAMS_MAX: Final = 64

_bearer = HTTPBearer(
    scheme_name="ApiKey",
    bearerFormat="tt_<id>_<secret>",
    description="An API key of the desk: `Authorization: Bearer tt_…`. The scopes a route needs are listed with it.",
    auto_error=False,
)


@dataclass(frozen=True)
class Desk:
    """What the routes answer from."""

    settings: Settings
    ledger: Ledger
    keys: KeyRing
    store: BarStore
    runs_dir: Path
    ray: RayCalls
    venue: VenueReads
    queue: RunQueue
    # Laying out a run reads bars and expands grids in threads; two at once leave the others their turn.
    preparing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    # A session gets one key and one job however often it is asked for at the same time.
    starting: asyncio.Lock = field(default_factory=asyncio.Lock)
    streams: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(STREAMS_MAX))


def desk_of(request: Request) -> Desk:
    """The desk behind the application."""
    desk: Desk = request.app.state.desk
    return desk


async def presented_key(
    request: Request,
    wanted: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
) -> ApiKey:
    """The caller's key with all wanted scopes; 401 without a valid key, 403 without a scope."""
    key = await _identified(request)
    for scope in wanted.scopes:
        if not key.may(scope):
            raise forbidden(scope)
    return key


async def key_with_any(
    request: Request,
    wanted: SecurityScopes,
    _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)] = None,
) -> ApiKey:
    """The caller's key with at least one of the wanted scopes; 401 without a valid key, 403 without any of them."""
    key = await _identified(request)
    if not any(key.may(scope) for scope in wanted.scopes):
        raise forbidden(" or ".join(wanted.scopes))
    return key


TheDesk = Annotated[Desk, Depends(desk_of)]
Reader = Annotated[ApiKey, Security(presented_key, scopes=[READ])]
Trader = Annotated[ApiKey, Security(presented_key, scopes=[TRADE])]
Halter = Annotated[ApiKey, Security(presented_key, scopes=[HALT])]
Resumer = Annotated[ApiKey, Security(presented_key, scopes=[RESUME])]
Limiter = Annotated[ApiKey, Security(presented_key, scopes=[LIMITS])]
Researcher = Annotated[ApiKey, Security(presented_key, scopes=[RESEARCH])]


async def account_snapshot(desk: Desk, key: ApiKey, account: str, scope: str = READ) -> Snapshot:
    """The account as it is now; 403 where the key does not cover it, 404 where it has no limits."""
    if not key.may(scope, account):
        raise forbidden(scope, account)
    if re.fullmatch(NAME_PATTERN, account):
        snapshot = await desk.ledger.snapshot(account)
        if snapshot.limits:
            return snapshot
    raise unknown_account(account)


class GuardedRoute(APIRoute):
    """A route that knows its caller before it reads a byte of the body, and reads a bounded one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the two checks."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            await _identified(request)
            body = await _body(request)
            if body:
                _require_json(request)
            return await handle(Request(request.scope, _replay(body, request.receive)))

        return guarded


async def _identified(request: Request) -> ApiKey:
    known = getattr(request.state, "key", None)
    if isinstance(known, ApiKey):
        return known
    kind, _, presented = request.headers.get("authorization", "").partition(" ")
    key = await desk_of(request).keys.key(presented.strip()) if kind.lower() == "bearer" else None
    if key is None:
        raise unauthorised()
    request.state.key = key
    return key


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_BYTES_MAX:
        raise _too_large()
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "INCOMPLETE_BODY", "the connection closed before the whole body had come")
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > BODY_BYTES_MAX:
                    raise _too_large()
                if not message.get("more_body"):
                    return b"".join(chunks)
    except TimeoutError:
        raise Problem(408, "BODY_TOO_SLOW", f"the whole body must come within {BODY_TIMEOUT_S:.0f} s") from None


def _too_large() -> Problem:
    return Problem(413, "BODY_TOO_LARGE", f"a request has at most {BODY_BYTES_MAX} bytes")


def _require_json(request: Request) -> None:
    headers = Headers()
    headers["content-type"] = request.headers.get("content-type", "text/plain")
    if headers.get_content_type() != "application/json":
        given = request.headers.get("content-type", "none")
        raise Problem(415, "UNSUPPORTED_MEDIA_TYPE", f"Content-Type: expected application/json, was {given!r}")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body read already, once more, and then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay
