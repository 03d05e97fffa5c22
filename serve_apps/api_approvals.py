"""What needs a second person: to resume trading, loosen limits or override them for one order. And the alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Security
from pydantic import Field

from cluster.api_keys import LIMITS, READ, RESUME, TRADE, ApiKey
from cluster.approvals import (
    APPLIED,
    OVERRIDE,
    PENDING,
    REFUSED,
    RIGHTS,
    changes_of,
    find,
    in_digits,
    limits_of,
    listed,
    may_decide,
    may_refuse,
    public_id,
    scopes_of,
    why_not,
)
from cluster.ledger import Approval, Proposal
from cluster.limit_records import ShownChange
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, account_snapshot, key_with_any
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Decimals, Nanoseconds, Reason, Shape
from serve_apps.problem import Problem, forbidden
from strategies.model import OrderType, Side, TimeInForce

router = APIRouter(prefix="/v1", tags=["approvals"], route_class=GuardedRoute)

STATUSES: Final = {
    "NOT_FOUND": 404,
    "SAME_PERSON": 403,
    "EXPIRED": 409,
    "CHANGED": 409,
    "DONE": 409,
    "STILL_BREACHED": 409,
}
"""The HTTP status of each reason why a decision had no effect."""
LISTED_MAX: Final = 1000
_FORBIDDEN: Final = "NOT_AUTHORISED, or SAME_PERSON: another person must approve it"
_CONFLICT: Final = (
    "EXPIRED, CHANGED (it is no longer what was looked at), DONE (decided already), STILL_BREACHED (the rule that "
    "stopped trading is still broken)"
)

Decider = Annotated[ApiKey, Security(key_with_any, scopes=[RESUME, LIMITS])]
Refuser = Annotated[ApiKey, Security(key_with_any, scopes=[RESUME, LIMITS, TRADE])]
ProposalPath = Annotated[
    str, Path(description="ACCOUNT.NUMBER, of the desk as a whole DESK.NUMBER", examples=["main.17"])
]
OneAccount = Annotated[
    str | None, Query(description="only this account; without it the desk and all accounts", examples=["main"])
]


class ChangeRow(Shape):
    """One limit (or a trading state) before and after; null where there is none.

    Of an override the order itself, and each rule it broke when it was asked for: its limit, and the order's value.
    """

    scope: str = Field(examples=["product|BTC-USD"])
    name: str = Field(description="named as in limits.yaml; of an override the rule's code", examples=["max_position"])
    before: str | None = Field(examples=["5, warns above 4"])
    after: str | None = Field(examples=["6, warns above 4.8"])
    unit: str = Field(examples=["BTC"])


class ProposedOrder(Shape):
    """The order an override is for; only exactly this one passes."""

    client_order_id: str
    strategy: str = Field(examples=["manual"])
    product_id: str = Field(examples=["BTC-USD"])
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimals
    limit_price: Decimals | None
    post_only: bool
    reduce_only: bool
    strategy_version: str | None


class ProposalView(Shape):
    """What waits, or waited, for a second person."""

    id: str = Field(examples=["main.17"])
    kind: Literal["RESUME", "LIMITS", "OVERRIDE", "ADJUST"]
    account: str | None = Field(description="null: the desk as a whole", examples=["main"])
    status: Literal["PENDING", "APPLIED", "REFUSED", "EXPIRED", "USED"] = Field(
        description="an override that is APPLIED lets its order through until it expires, and is USED by that"
    )
    scopes: list[str] = Field(description="what it would change", examples=[["account"]])
    changes: list[ChangeRow] = Field(description="what approving it would change now")
    reason: str
    person: str = Field(description="who proposed it; another person must approve it", examples=["ada"])
    by: str = Field(description="the key it was proposed with")
    digest: str = Field(description="of the content; to approve is to approve this", examples=["9c1d…"])
    created_ns: Nanoseconds
    expires_ns: Nanoseconds
    approver: str | None = Field(description="the second person", examples=["bob"])
    order: ProposedOrder | None = Field(description="of an override")


class Proposals(Shape):
    """Newest first."""

    proposals: list[ProposalView]


class ApprovalRequest(Shape):
    """Yes to exactly this."""

    digest: str = Field(description="the digest of the proposal that was looked at", pattern="^[0-9a-f]{40}$")


class RefusalRequest(Shape):
    """No."""

    reason: Reason


class Decision(Shape):
    """The proposal was decided; what it changes is changed."""

    outcome: Literal["APPLIED", "REFUSED"]
    proposal: ProposalView


class AlertView(Shape):
    """A limit that warns, or a rule that has tripped."""

    account: str | None = Field(description="null: the desk as a whole", examples=["main"])
    level: str = Field(
        description="SOFT: a warning. HARD: it stays tripped until a person resumes. OVERRIDDEN: two people let one "
        "order over it",
        examples=["SOFT"],
    )
    code: str = Field(examples=["DAILY_LOSS"])
    scope: str = Field(examples=["strategy|sma_cross"])
    value: str = Field(description="in the ledger's integers: micros of money, lots, parts per million")
    limit: str
    message: str
    client_order_id: str | None = Field(description="the order that caused it, where one did")
    at_ns: Nanoseconds


class Alerts(Shape):
    """Newest first; the ledger keeps the last ten thousand of each account."""

    alerts: list[AlertView]


@router.get("/approvals", responses=problems(404))
async def list_approvals(
    desk: TheDesk,
    key: Reader,
    account: OneAccount = None,
    status: Annotated[Literal["pending", "all"], Query(description="what is still to be decided, or everything")] = (
        "pending"
    ),
) -> Proposals:
    """What waits for a second person, on every account the key covers."""
    found = await listed(desk.ledger, await readable(desk, key, account))
    views = [await proposal_view(desk, one) for one in found if status == "all" or one.status == PENDING]
    return Proposals(proposals=views)


@router.post("/approvals/{proposal_id}/approve", responses=problems(404, _403=_FORBIDDEN, _409=_CONFLICT))
async def approve(desk: TheDesk, key: Decider, proposal_id: ProposalPath, request: ApprovalRequest) -> Decision:
    """Approve what another person has proposed; it takes effect in the same step.

    Needs the scope resume or limits, as the proposal's kind (an override needs limits); either may come with a key. An
    override lets its order through once, when that is submitted before the proposal expires.
    """
    proposal = await _proposal(desk, key, proposal_id)
    before = await proposal_view(desk, proposal)
    done = await desk.ledger.approve(proposal.account, proposal.id, request.digest, key.key_id, key.person)
    return _decision(done, before, key)


@router.post("/approvals/{proposal_id}/refuse", responses=problems(404, _403=_FORBIDDEN, _409=_CONFLICT))
async def refuse(desk: TheDesk, key: Refuser, proposal_id: ProposalPath, request: RefusalRequest) -> Decision:
    """End a proposal, or an approved override that was not used yet; who has proposed it may too."""
    proposal = await _proposal(desk, key, proposal_id, refusing=True)
    before = await proposal_view(desk, proposal)
    done = await desk.ledger.refuse(proposal.account, proposal.id, key.key_id, key.person, request.reason)
    return _decision(done, before, key)


@router.get("/alerts", responses=problems(404))
async def list_alerts(
    desk: TheDesk, key: Reader, account: OneAccount = None, limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 100
) -> Alerts:
    """Warnings of soft limits and rules that tripped, newest first, on every account the key covers."""
    rows = [(one, row) for one in await readable(desk, key, account) for row in await desk.ledger.alerts(one, limit)]
    rows.sort(key=lambda pair: int(pair[1]["us"]), reverse=True)
    return Alerts(alerts=[_alert(one, row) for one, row in rows[:limit]])


async def readable(desk: Desk, key: ApiKey, account: str | None) -> list[str | None]:
    """The named account, or all that the key covers; the desk as a whole (None) where it covers every one."""
    if account is not None:
        await account_snapshot(desk, key, account)
        return [account]
    names: list[str | None] = [name for name in await desk.ledger.accounts() if key.may(READ, name)]
    return [*([None] if key.may_everywhere(READ) else []), *names]


async def proposal_view(desk: Desk, proposal: Proposal) -> ProposalView:
    """A proposal with what approving it would change now."""
    limits = limits_of(await desk.ledger.snapshot(proposal.account), proposal.account)
    kind: Any = proposal.kind
    status: Any = proposal.status
    return ProposalView(
        id=public_id(proposal),
        kind=kind,
        account=proposal.account,
        status=status,
        scopes=scopes_of(proposal),
        changes=change_rows(changes_of(proposal, limits, await desk.ledger.products())),
        reason=proposal.reason,
        person=proposal.person,
        by=proposal.by,
        digest=proposal.digest,
        created_ns=proposal.created_ms * 1_000_000,
        expires_ns=proposal.expires_ms * 1_000_000,
        approver=proposal.approver or None,
        order=_order(proposal.payload) if proposal.kind == OVERRIDE else None,
    )


def change_rows(changes: list[ShownChange]) -> list[ChangeRow]:
    """Changes as the API shows them."""
    return [ChangeRow(scope=c.scope, name=c.name, before=c.before, after=c.after, unit=c.unit) for c in changes]


def _order(payload: Mapping[str, Any]) -> ProposedOrder:
    terms = payload["order"]
    return ProposedOrder(
        client_order_id=payload["id"],
        strategy=terms["strategy"],
        product_id=terms["product"],
        side=terms["side"],
        type=terms["type"],
        time_in_force=terms["tif"],
        quantity=in_digits(terms["quantity"]),
        limit_price=in_digits(terms["limit_price"]) if terms["limit_price"] else None,
        post_only=terms["post_only"] == "1",
        reduce_only=terms["reduce_only"] == "1",
        strategy_version=terms["version"] or None,
    )


async def _proposal(desk: Desk, key: ApiKey, proposal_id: str, *, refusing: bool = False) -> Proposal:
    proposal = await find(desk.ledger, proposal_id)
    if proposal is None:
        raise Problem(404, "NOT_FOUND", f"there is no proposal {proposal_id!r}", {"id": proposal_id})
    if not (may_refuse if refusing else may_decide)(key, proposal):
        raise forbidden(RIGHTS.get(proposal.kind, proposal.kind), proposal.account)
    return proposal


def _decision(done: Approval, before: ProposalView, key: ApiKey) -> Decision:
    if done.outcome not in {APPLIED, REFUSED}:
        status = STATUSES.get(done.outcome, 409)
        raise Problem(status, done.outcome, why_not(done), {"id": before.id, "because": done.detail})
    outcome: Any = done.outcome
    approver = key.person if outcome == APPLIED else before.approver
    return Decision(outcome=outcome, proposal=before.model_copy(update={"status": outcome, "approver": approver}))


def _alert(account: str | None, row: dict[str, str]) -> AlertView:
    return AlertView(
        account=account,
        level=row["level"],
        code=row["code"],
        scope=row["scope"],
        value=row["value"],
        limit=row["limit"],
        message=row["message"],
        client_order_id=row.get("id") or None,
        at_ns=int(row["us"]) * 1000,
    )
