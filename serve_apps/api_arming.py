"""Arming: real orders pass only while a person has said so, for a day at most. Saying no is anybody's who may halt."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from cluster import arming
from cluster.api_keys import HALT, RESUME
from cluster.arming import ARMED_S_MAX, ARMED_S_MIN, NotLive
from cluster.ledger import Arming
from serve_apps.api_access import Desk, GuardedRoute, Halter, Reader, Resumer, TheDesk
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Nanoseconds, Reason, Shape
from serve_apps.problem import Problem, forbidden

router = APIRouter(prefix="/v1/arming", tags=["kill switch"], route_class=GuardedRoute)


class ArmRequest(Shape):
    """Let real orders pass for a while."""

    reason: Reason
    expires_s: int = Field(ge=ARMED_S_MIN, le=ARMED_S_MAX, description="for how long from now; a day at most")


class ArmingView(Shape):
    """Whether orders of this desk are real, and whether they may pass."""

    environment: str = Field(description="paper, sandbox or live", examples=["paper"])
    needed: bool = Field(description="true: orders are denied (NOT_ARMED) unless armed; only real ones have to be")
    armed: bool
    person: str | None = Field(description="who armed it", examples=[None])
    by: str | None = Field(description="with which key", examples=[None])
    reason: str | None = Field(examples=[None])
    until_ns: Nanoseconds | None


@router.get("", responses=problems())
async def show_arming(desk: TheDesk, _: Reader) -> ArmingView:
    """Whether real orders may pass, who has said so and until when."""
    return arming_view(desk, await desk.ledger.armed())


@router.post("", responses=problems(_409="NOT_LIVE: orders of this desk are not real, so there is nothing to arm"))
async def arm(desk: TheDesk, key: Resumer, request: ArmRequest) -> ArmingView:
    """Let real orders pass until then. It takes the right to resume on every account; the audit names the person."""
    if not arming.may_arm(key):
        raise forbidden(RESUME, "*")
    try:
        armed = await arming.arm(desk.ledger, desk.settings, key, request.reason, request.expires_s)
    except NotLive as error:
        raise Problem(409, error.code, str(error)) from None
    return arming_view(desk, armed)


@router.delete("", responses=problems())
async def disarm(
    desk: TheDesk,
    key: Halter,
    reason: Annotated[Reason, Query(description="why, for the audit")] = "disarmed by hand",
) -> ArmingView:
    """Let no more real orders pass, at once; what rests at the venue stays there. A repeat is harmless."""
    if not arming.may_disarm(key, await desk.ledger.accounts()):
        raise forbidden(HALT, "*")
    await desk.ledger.disarm(key.key_id, reason)
    return arming_view(desk, None)


def arming_view(desk: Desk, armed: Arming | None) -> ArmingView:
    """What is said about the desk's arming."""
    environment = desk.settings.venue.environment
    return ArmingView(
        environment=environment,
        needed=environment == arming.LIVE,
        armed=armed is not None,
        person=armed.person if armed else None,
        by=armed.by if armed else None,
        reason=armed.reason if armed else None,
        until_ns=armed.until_ms * 1_000_000 if armed else None,
    )
