"""The books against the venue as execution last found them, and the request to book what came without an order."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Security
from pydantic import Field

from cluster.api_keys import LIMITS, ApiKey
from cluster.approvals import may_change
from cluster.reconcile import Comparison, Line, NothingToBook, Verdict, adjustment
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot, key_with_any
from serve_apps.api_approvals import ProposalView, proposal_view
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Nanoseconds, Reason, Shape
from serve_apps.problem import Problem, forbidden

router = APIRouter(prefix="/v1/reconciliation", tags=["reconciliation"], route_class=GuardedRoute)

Account = Annotated[str, Query(pattern="^[a-z0-9_]{1,32}$", examples=["main"])]
Adjuster = Annotated[ApiKey, Security(key_with_any, scopes=[LIMITS])]
# Figures older than that may have changed since; execution compares every half minute.
FRESH_MS = 120_000


class LineView(Shape):
    """One thing both sides know."""

    kind: Literal["cash", "position", "order"]
    name: str = Field(examples=["USD"])
    ledger: str = Field(examples=["999000"])
    venue: str = Field(examples=["1000000"])
    verdict: Literal["OK", "EXPLAINED", "BREAK"]
    why: str


class Reconciliation(Shape):
    """The comparison execution has made last."""

    account: str = Field(examples=["main"])
    at_ns: Nanoseconds
    age_s: float = Field(ge=0, examples=[12.5])
    ok: int
    explained: int
    breaks: int = Field(description="differences nothing explains; any of them halts the account (RECON_BREAK)")
    lines: list[LineView]


class AdjustRequest(Shape):
    """Book what the last comparison found of cash and coins that came or went without an order."""

    account: str = Field(pattern="^[a-z0-9_]{1,32}$", examples=["main"])
    reason: Reason
    expires_s: int = Field(default=600, ge=60, le=86_400)


@router.get("", responses=problems(404))
async def show_reconciliation(desk: TheDesk, key: Reader, account: Account) -> Reconciliation:
    """Cash, positions and open orders of the ledger and of the venue, each with its verdict."""
    await account_snapshot(desk, key, account)
    beat = await _last(desk, account)
    return Reconciliation(
        account=account,
        at_ns=beat["at_ns"],
        age_s=beat["age_ms"] / 1000,
        ok=beat["ok"],
        explained=beat["explained"],
        breaks=beat["break"],
        lines=[LineView(**line) for line in beat["lines"]],
    )


@router.post(
    "/adjust",
    status_code=202,
    responses=problems(404, _409="NOTHING_TO_BOOK, or STALE: execution has not compared lately"),
)
async def adjust_books(desk: TheDesk, key: Adjuster, request: AdjustRequest) -> ProposalView:
    """Ask another person to book the differences; at /v1/approvals. Then a halt for RECON_BREAK can be resumed."""
    snapshot = await account_snapshot(desk, key, request.account, LIMITS)
    if not may_change(key, LIMITS, request.account, "account"):
        raise forbidden(LIMITS, request.account)
    beat = await _last(desk, request.account)
    if beat["age_ms"] > FRESH_MS:
        raise Problem(409, "STALE", f"the last comparison is {beat['age_ms'] // 1000} s old; is execution running?")
    lines = tuple(Line(**(line | {"verdict": Verdict(line["verdict"])})) for line in beat["lines"])
    try:
        found = Comparison(request.account, beat["at_ns"], lines)
        cash, positions = adjustment(found, snapshot, await desk.ledger.products())
    except NothingToBook as error:
        raise Problem(409, "NOTHING_TO_BOOK", str(error)) from None
    proposal = await desk.ledger.propose_adjust(
        request.account, cash, positions, key.key_id, key.person, request.reason, request.expires_s
    )
    return await proposal_view(desk, proposal)


async def _last(desk: Desk, account: str) -> dict[str, Any]:
    beat = (await desk.ledger.heartbeats()).get(f"reconcile|{account}")
    if beat is None:
        raise Problem(404, "NOT_FOUND", f"account {account} has not been compared with the venue yet")
    return beat
