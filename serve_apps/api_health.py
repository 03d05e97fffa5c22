"""Health: /healthz (this process), /readyz (may the desk be used?), /v1/health (every part in detail)."""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version
from typing import Any, Final

from fastapi import APIRouter
from pydantic import Field

from cluster.arming import LIVE
from cluster.deadman import Phase
from cluster.exposures import limited_products, references_of
from cluster.ledger_wire import LedgerError, LedgerUnavailable, memory_warning
from conf.settings import SIMULATED
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk
from serve_apps.api_arming import ArmingView, arming_view
from serve_apps.api_heartbeats import DEADMAN_FRESH_MS, DeadManView, deadman_view
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Milliseconds, Shape
from serve_apps.problem import Problem
from strategies.model import TradingState

HEARTBEAT_FRESH_MS: Final = 5_000
ALERTS_COUNTED_MAX: Final = 1_000
US_PER_DAY: Final = 86_400_000_000

open_router = APIRouter(tags=["health"])
router = APIRouter(prefix="/v1", tags=["health"], route_class=GuardedRoute)


class Alive(Shape):
    """This process answers."""

    status: str = Field("ok", examples=["ok"])


class Part(Shape):
    """One part of the desk."""

    name: str = Field(examples=["execution"])
    healthy: bool
    required: bool = Field(description="whether the desk is unready without it")
    detail: str = Field(description="for people: what was found", examples=["heartbeat 310 ms ago"])


class Readiness(Shape):
    """The desk may be used."""

    ready: bool
    parts: list[Part]


class ReferenceAge(Shape):
    """How old a product's reference price is."""

    product_id: str = Field(examples=["BTC-USD"])
    age_ms: Milliseconds | None = Field(description="null: none was ever set")
    fresh: bool = Field(description="whether orders may be valued at it")


class LedgerHealth(Shape):
    """The ledger's server."""

    server: str = Field(examples=["valkey"])
    version: str = Field(examples=["9.1.0"])
    memory_bytes: int = Field(ge=0)
    memory_bytes_max: int = Field(ge=0, description="0: no bound is set")
    memory_share: float | None = Field(description="used share of the bound, 1.0 = full", examples=[0.012])


class StandingHalt(Shape):
    """A scope in which trading is not free."""

    scope: str = Field(examples=["strategy|sma_cross"])
    state: str = Field(examples=["REDUCING"])
    cause: str | None = Field(description="the rule that tripped it; null: a person did", examples=["DAILY_LOSS"])


class AccountHealth(Shape):
    """Whether orders of an account (or of the desk, account null) are taken, and what has been noticed lately."""

    account: str | None
    admitted: bool = Field(
        description="false: orders are refused (RECONCILING) until execution has asked the venue; of the desk: true"
    )
    halts: list[StandingHalt]
    alerts: int = Field(ge=0, description=f"of the last day, soft and hard; at most {ALERTS_COUNTED_MAX} are counted")
    hard_alerts: int = Field(ge=0, description="those for which something was halted")


class VenueHealth(Shape):
    """The exchange orders go to."""

    kind: str = Field(examples=["simulator"])
    simulated: bool
    host_port: str | None = Field(examples=["127.0.0.1:8443"])


class Health(Shape):
    """Every part of the desk in detail."""

    healthy: bool = Field(description="whether every required part is")
    data_source: str = Field(examples=[SIMULATED])
    parts: list[Part]
    ledger: LedgerHealth | None = Field(description="null while it does not answer")
    execution: dict[str, Any] | None = Field(description="the last heartbeat's figures; null: never seen")
    deadman: DeadManView | None = Field(description="null while the ledger does not answer")
    arming: ArmingView | None = Field(description="null while the ledger does not answer")
    venue: VenueHealth
    references: list[ReferenceAge]
    accounts: list[AccountHealth] | None = Field(description="the desk first; null: the ledger does not answer")
    versions: dict[str, str] = Field(examples=[{"desk": "0.1.0", "ray": "2.60.0", "python": "3.11.7"}])


@open_router.get("/healthz")
async def alive() -> Alive:
    """This process lives; nothing else is asked."""
    return Alive(status="ok")


@open_router.get("/readyz", responses={503: problems()[503]})
async def ready(desk: TheDesk) -> Readiness:
    """200 where orders can be taken: the ledger answers and has been reconciled, execution is alive, prices are fresh.

    Otherwise 503 with code NOT_READY and the same parts. Ray's Jobs API is shown but not required: without it orders
    go on and only new backtests wait. So are the dead man, the ledger's memory once 60 % of it are used, and whether a
    live desk is armed, because it is armed once it is up.
    """
    parts = await parts_of(desk)
    missing = [part for part in parts if part.required and not part.healthy]
    if missing:
        detail = "; ".join(f"{part.name}: {part.detail}" for part in missing)
        raise Problem(503, "NOT_READY", detail, {"parts": [part.model_dump() for part in parts]}, {"retry-after": "1"})
    return Readiness(ready=True, parts=parts)


@router.get("/health", responses=problems())
async def health(desk: TheDesk, _: Reader) -> Health:
    """Every part in detail; the answer is 200 also where parts are unhealthy."""
    parts, ledger, beats, arming, references, accounts = await asyncio.gather(
        parts_of(desk), _ledger(desk), _beats(desk), _arming(desk), _references(desk), _accounts(desk)
    )
    venue = desk.settings.venue
    return Health(
        healthy=all(part.healthy for part in parts if part.required),
        data_source=desk.settings.data_source,
        parts=parts,
        ledger=ledger,
        execution=None if beats is None else beats.get("execution"),
        deadman=None if beats is None else deadman_view(beats, desk.settings.execution.account),
        arming=arming,
        venue=VenueHealth(kind=venue.kind, simulated=desk.settings.data_source == SIMULATED, host_port=venue.host_port),
        references=references or [],
        accounts=accounts,
        versions={name: version(package) for name, package in _PACKAGES.items()}
        | {"python": platform.python_version()},
    )


_PACKAGES: Final = {"desk": "top-tier-trading", "ray": "ray", "fastapi": "fastapi"}


async def parts_of(desk: Desk) -> list[Part]:
    """The parts, asked at once."""
    asked = (
        _ledger_part(desk),
        _memory_part(desk),
        _admission_part(desk),
        _execution_part(desk),
        _deadman_part(desk),
        _arming_part(desk),
        _references_part(desk),
        _ray_part(desk),
    )
    return [part for part in await asyncio.gather(*asked) if part is not None]


async def _ledger_part(desk: Desk) -> Part:
    try:
        await desk.ledger.ping()
    except (LedgerUnavailable, LedgerError):
        return Part(name="ledger", healthy=False, required=True, detail="does not answer, or has no function library")
    return Part(name="ledger", healthy=True, required=True, detail="answers and has its function library")


async def _memory_part(desk: Desk) -> Part | None:
    """A warning while the ledger's memory runs out; it is not required, because orders are still taken."""
    try:
        warning = memory_warning(*await desk.ledger.memory())
    except (LedgerUnavailable, LedgerError):
        return None
    if warning is None:
        return None
    return Part(name="ledger_memory", healthy=False, required=False, detail=warning)


async def _admission_part(desk: Desk) -> Part:
    """A server that was restarted or promoted takes no orders until execution has compared its books with the venue."""
    own = desk.settings.execution.account
    try:
        names = sorted({own, *await desk.ledger.accounts()})
        snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in names))
    except (LedgerUnavailable, LedgerError):
        return Part(name="admission", healthy=False, required=True, detail="the ledger does not answer")
    waiting = [name for name, snapshot in zip(names, snapshots, strict=True) if not snapshot.admitted]
    if not waiting:
        return Part(name="admission", healthy=True, required=True, detail="every account is reconciled with the venue")
    detail = f"orders are refused (RECONCILING) for account {', '.join(waiting)}"
    return Part(name="admission", healthy=own not in waiting, required=True, detail=detail)


async def _execution_part(desk: Desk) -> Part:
    beat = (await _beats(desk) or {}).get("execution")
    if beat is None:
        return Part(name="execution", healthy=False, required=True, detail="no heartbeat is known")
    age_ms = int(beat["age_ms"])
    return Part(
        name="execution", healthy=age_ms < HEARTBEAT_FRESH_MS, required=True, detail=f"heartbeat {age_ms} ms ago"
    )


async def _deadman_part(desk: Desk) -> Part:
    """Whether a silence of the desk would be noticed; not required, because orders do not wait for him."""
    beats = await _beats(desk)
    seen = None if beats is None else deadman_view(beats, desk.settings.execution.account)
    if seen is None or seen.phase is None:
        detail = "the ledger does not answer" if seen is None else "was never heard, so no silence would be noticed"
    elif (seen.age_ms or 0) > DEADMAN_FRESH_MS:
        detail = f"silent himself for {seen.age_ms} ms, so no silence would be noticed"
    elif seen.phase is Phase.WAITING:
        detail = "WAITING for the first heartbeat of execution"
    else:
        detail = f"{seen.phase}" + (f": {seen.reason}" if seen.phase is not Phase.WATCHING and seen.reason else "")
    return Part(name="deadman", healthy=seen is not None and seen.watching, required=False, detail=detail)


async def _arming_part(desk: Desk) -> Part | None:
    """Of a live desk: whether its orders may pass."""
    if desk.settings.venue.environment != LIVE:
        return None
    arming = await _arming(desk)
    if arming is None:
        return Part(name="arming", healthy=False, required=False, detail="the ledger does not answer")
    detail = (
        f"by {arming.person}: {arming.reason}" if arming.armed else "not armed: every order is denied (desk arm live)"
    )
    return Part(name="arming", healthy=arming.armed, required=False, detail=detail)


async def _references_part(desk: Desk) -> Part:
    references = await _references(desk)
    account = desk.settings.execution.account
    if not references:
        detail = f"account {account} has no limits yet" if references is not None else "the ledger does not answer"
        return Part(name="prices", healthy=False, required=True, detail=detail)
    late = [reference for reference in references if not reference.fresh]
    if not late:
        return Part(name="prices", healthy=True, required=True, detail=f"{len(references)} products have fresh prices")
    ages = ", ".join(f"{r.product_id} {'none' if r.age_ms is None else f'{r.age_ms} ms old'}" for r in late)
    return Part(name="prices", healthy=False, required=True, detail=f"no fresh reference price: {ages}")


async def _ray_part(desk: Desk) -> Part:
    healthy, detail = await desk.ray.state()
    return Part(name="ray_jobs", healthy=healthy, required=False, detail=detail)


async def _ledger(desk: Desk) -> LedgerHealth | None:
    try:
        (name, release), (used, allowed) = await asyncio.gather(desk.ledger.server(), desk.ledger.memory())
    except (LedgerUnavailable, LedgerError):
        return None
    share = round(used / allowed, 4) if allowed else None
    return LedgerHealth(server=name, version=release, memory_bytes=used, memory_bytes_max=allowed, memory_share=share)


async def _beats(desk: Desk) -> dict[str, dict[str, Any]] | None:
    try:
        return await desk.ledger.heartbeats()
    except (LedgerUnavailable, LedgerError):
        return None


async def _arming(desk: Desk) -> ArmingView | None:
    try:
        return arming_view(desk, await desk.ledger.armed())
    except (LedgerUnavailable, LedgerError):
        return None


async def _references(desk: Desk) -> list[ReferenceAge] | None:
    """The age of every product's price in the account of execution; None where the ledger does not answer."""
    try:
        snapshot = await desk.ledger.snapshot(desk.settings.execution.account)
    except (LedgerUnavailable, LedgerError):
        return None
    known = references_of(snapshot)
    return [
        ReferenceAge(
            product_id=name,
            age_ms=known[name].age_ms if name in known else None,
            fresh=name in known and known[name].fresh,
        )
        for name in limited_products(snapshot)
    ]


async def _accounts(desk: Desk) -> list[AccountHealth] | None:
    """The desk and every account; None where the ledger does not answer."""
    try:
        names = [None, *await desk.ledger.accounts()]
        return await asyncio.gather(*(_account(desk, name) for name in names))
    except (LedgerUnavailable, LedgerError):
        return None


async def _account(desk: Desk, name: str | None) -> AccountHealth:
    snapshot, newest = await asyncio.gather(
        desk.ledger.snapshot(name), desk.ledger.alerts(name, at_most=ALERTS_COUNTED_MAX)
    )
    state = snapshot.desk_state if name is None else snapshot.state
    since_us = snapshot.now_ms * 1_000 - US_PER_DAY
    alerts = [alert for alert in newest if int(alert["us"]) > since_us]
    return AccountHealth(
        account=name,
        admitted=name is None or snapshot.admitted,
        halts=[
            StandingHalt(scope=scope, state=text, cause=state.get(f"cause|{scope}") or None)
            for scope, text in sorted(state.items())
            if scope != "epoch" and not scope.startswith("cause|") and text != TradingState.ACTIVE
        ],
        alerts=len(alerts),
        hard_alerts=sum(alert["level"] == "HARD" for alert in alerts),
    )
