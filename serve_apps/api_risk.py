"""The kill switch: trading states by scope. Halting is anybody's who may trade; resuming takes a second person.

And so does letting one order over its limits.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Self

from fastapi import APIRouter
from pydantic import Field, StrictBool, model_validator

from cluster.api_keys import HALT, READ, RESUME, TRADE, ApiKey
from cluster.approvals import may_change, may_halt
from cluster.ledger import LedgerError, LedgerUnavailable, OrderKnown, Snapshot
from cluster.risk import NAME_PATTERN, InvalidOrder, check_order, in_units, read_order
from serve_apps.api_access import Desk, GuardedRoute, Halter, Reader, Resumer, TheDesk, Trader, account_snapshot
from serve_apps.api_approvals import Proposals, ProposalView, proposal_view
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Reason, Shape
from serve_apps.problem import Problem, forbidden
from strategies.model import Order, Product, TradingState

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/risk", tags=["kill switch"], route_class=GuardedRoute)


class Scope(StrEnum):
    """What a trading state holds for."""

    GLOBAL = "global"
    ACCOUNT = "account"
    STRATEGY = "strategy"
    PRODUCT = "product"

    @property
    def named(self) -> bool:
        """Whether a name says which one."""
        return self in {Scope.STRATEGY, Scope.PRODUCT}


class _Switch(Shape):
    account: str | None = Field(
        None, pattern=NAME_PATTERN, description="null: every account; scope global is always every account"
    )
    scope: Scope
    name: str | None = Field(
        None, min_length=1, max_length=64, description="the strategy or the product", examples=["BTC-USD"]
    )
    reason: Reason

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.scope is Scope.GLOBAL and self.account is not None:
            raise ValueError("account must be null with scope global, which is every account")
        if self.scope.named and self.name is None:
            raise ValueError(f"name must say which {self.scope}")
        if not self.scope.named and self.name is not None:
            raise ValueError(f"name must be null with scope {self.scope}")
        return self

    @property
    def field(self) -> str:
        """The scope as the ledger names it."""
        return f"{self.scope}|{self.name}" if self.scope.named else str(self.scope)


class HaltRequest(_Switch):
    """Stop trading."""

    state: TradingState = Field(
        TradingState.HALTED,
        description="REDUCING: only orders that shrink a position. HALTED: no new order. "
        "CANCEL_ALL: no new order, and every open one is cancelled",
        json_schema_extra={"enum": ["REDUCING", "HALTED", "CANCEL_ALL"]},
    )

    @model_validator(mode="after")
    def _stops(self) -> Self:
        if self.state is TradingState.ACTIVE:
            raise ValueError("state must be REDUCING, HALTED or CANCEL_ALL; use /v1/risk/resume for ACTIVE")
        return self


class ResumeRequest(_Switch):
    """Ask that trading may go on at one scope; what other scopes forbid stays forbidden."""

    expires_s: int = Field(600, ge=10, le=86_400, description="how long another person may approve it")


class OverrideRequest(Shape):
    """Ask that exactly this order may go over its limits, once."""

    order: dict[str, StrictBool | str | None] = Field(description="the body it will be sent with to /v1/orders")
    reason: Reason
    expires_s: int = Field(
        600, ge=10, le=86_400, description="how long another person may approve it, and the order then be sent"
    )


class StateView(Shape):
    """The trading state of one scope."""

    scope: Scope
    name: str | None = Field(examples=[None])
    state: TradingState
    cause: str | None = Field(description="the rule that tripped; null where a person has set it", examples=[None])


class AccountStates(Shape):
    """All trading states of an account, the desk's own first; the strictest that an order touches decides."""

    account: str = Field(examples=["main"])
    states: list[StateView]


class States(Shape):
    """The trading states of the accounts a key covers."""

    accounts: list[AccountStates]


class Change(Shape):
    """What was written for one account, or for the desk as a whole."""

    account: str | None = Field(description="null: the desk as a whole, every account", examples=["main"])
    scope: Scope
    name: str | None
    before: TradingState | None = Field(description="the state before, as read just before the change")
    state: TradingState = Field(description="the state that holds now; a halt leaves a stricter one as it is")
    audit_seq: int = Field(description="number of the audit entry about this", examples=[17])
    cancels_requested: int = Field(ge=0, description="open orders whose cancellation was asked for")


class Changes(Shape):
    """Everything was written."""

    changed: list[Change]


@router.get("/states", responses=problems())
async def show_states(desk: TheDesk, key: Reader) -> States:
    """The trading states of every account the key covers."""
    names = [name for name in await desk.ledger.accounts() if key.may(READ, name)]
    snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in names))
    return States(
        accounts=[
            AccountStates(account=name, states=_states(snapshot))
            for name, snapshot in zip(names, snapshots, strict=True)
        ]
    )


@router.post("/halt", responses=problems(404))
async def halt(desk: TheDesk, key: Halter, request: HaltRequest) -> Changes:
    """Stop trading at a scope, at once and alone. A repeat is harmless, and of two halts the stricter one stays.

    Whoever may trade may halt. Scope global is one write for the desk as a whole.
    """
    before = await _places(desk, key, HALT, request)
    outcomes = await asyncio.gather(
        *(desk.ledger.tighten(account, request.field, request.state, key.key_id, request.reason) for account in before),
        return_exceptions=True,
    )
    changed, failed = [], []
    for (account, state), outcome in zip(before.items(), outcomes, strict=True):
        if isinstance(outcome, (LedgerUnavailable, LedgerError)):
            logger.error("halt of %s at %s failed: %s", account or "the desk", request.field, outcome)
            failed.append(account)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            changed.append(_change(account, request, state, outcome))
    if failed:
        raise _unwritten(failed, changed)
    return Changes(changed=changed)


@router.post("/resume", status_code=202, responses=problems(404, _409="ALREADY_ACTIVE"))
async def resume(desk: TheDesk, key: Resumer, request: ResumeRequest) -> Proposals:
    """Ask that a scope may trade again. Another person approves it at /v1/approvals, before it expires."""
    before = await _places(desk, key, RESUME, request)
    halted = [account for account, state in before.items() if state != TradingState.ACTIVE]
    if not halted:
        raise Problem(409, "ALREADY_ACTIVE", f"{request.field} is ACTIVE", {"scope": request.field})
    proposals = [
        await desk.ledger.propose_resume(
            account, request.field, key.key_id, key.person, request.reason, request.expires_s
        )
        for account in halted
    ]
    return Proposals(proposals=[await proposal_view(desk, proposal) for proposal in proposals])


@router.post(
    "/override",
    status_code=202,
    responses=problems(
        404,
        _409="ORDER_KNOWN: there is an order of this id, accepted or denied; take another id",
        _422="the request cannot be read, or the order breaks a rule of the venue's, which nobody here can override",
    ),
)
async def override(desk: TheDesk, key: Trader, request: OverrideRequest) -> ProposalView:
    """Ask that one order may go over limits it breaks. Another person approves it at /v1/approvals.

    Then the order passes when it is sent to /v1/orders, with this id and body, before the proposal expires: once, its
    denials turned into warnings of level OVERRIDDEN. Halts, prices that are missing or stale, limits that are missing,
    money or holdings that are not there, and what may not be traded at all stand; so do rates.
    """
    order = order_in(request.order)
    if not key.may(TRADE, order.account, order.strategy):
        raise forbidden(TRADE, order.account)
    await account_snapshot(desk, key, order.account, TRADE)
    product = await known_product(desk, order)
    try:
        proposal = await desk.ledger.propose_override(
            order, product, key.key_id, key.person, request.reason, request.expires_s
        )
    except OrderKnown as error:
        raise Problem(409, "ORDER_KNOWN", str(error), {"client_order_id": order.client_order_id}) from None
    return await proposal_view(desk, proposal)


def order_in(body: Mapping[str, bool | str | None]) -> Order:
    try:
        return read_order(json.dumps(body).encode())
    except InvalidOrder as error:
        field = error.field.replace("$", "order", 1)
        raise Problem(400, "INVALID_ORDER", f"{field}: {error.rule}", {"field": field, "rule": error.rule}) from None


async def known_product(desk: Desk, order: Order) -> Product:
    """The order's product, none of whose own rules it breaks."""
    product = (await desk.ledger.products()).get(order.product_id)
    found = [in_units(asdict(denial), product) for denial in check_order(order, product)]
    if product is None or found:
        detail = "; ".join(f"{denial['scope']}: {denial['message']}" for denial in found)
        raise Problem(422, found[0]["code"], detail, {"client_order_id": order.client_order_id, "denials": found})
    return product


async def _places(desk: Desk, key: ApiKey, right: str, request: _Switch) -> dict[str | None, str | None]:
    """Where the scope's state is kept (None: the desk), with the state now.

    403 where the key does not cover all of it, 404 or 422 where nothing has the name.
    """
    known = await desk.ledger.accounts()
    if request.scope is Scope.GLOBAL:
        _require(key, right, None, request.field, known)
        return {None: (await desk.ledger.snapshot(None)).desk_state.get(request.field)}
    if request.account is not None:
        found = {request.account: await account_snapshot(desk, key, request.account, right)}
    else:
        snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in known))
        found = dict(zip(known, snapshots, strict=True))
    for account in found:
        _require(key, right, account, request.field, known)
    if not found:
        raise Problem(404, "UNKNOWN_ACCOUNT", "no account is known yet, so nothing was changed")
    if not any(request.field in snapshot.state for snapshot in found.values()):
        raise _unknown_name(request, list(found.values()))
    return {account: one.state[request.field] for account, one in found.items() if request.field in one.state}


def _require(key: ApiKey, right: str, account: str | None, field: str, known: Sequence[str]) -> None:
    allowed = may_halt(key, account, known) if right == HALT else may_change(key, right, account, field)
    if not allowed:
        raise forbidden(right, account or "*")


def _unwritten(failed: Sequence[str | None], changed: Sequence[Change]) -> Problem:
    names = ", ".join(account or "the desk" for account in failed)
    detail = f"not known to be written for: {names}; repeat the call, that is harmless"
    extra = {"failed": list(failed), "changed": [change.model_dump(mode="json") for change in changed]}
    return Problem(503, "RISK_UNAVAILABLE", detail, extra, {"retry-after": "1"})


def _unknown_name(request: _Switch, snapshots: Sequence[Snapshot]) -> Problem:
    prefix = f"{request.scope}|"
    fields = {field for snapshot in snapshots for field in snapshot.state if field.startswith(prefix)}
    names = ", ".join(sorted(field.removeprefix(prefix) for field in fields))
    rule = f"one of {names}" if names else f"a {request.scope} with limits"
    detail = f"name: expected {rule}, was {request.name!r}"
    extra = {"field": "name", "value": str(request.name), "rule": rule}
    return Problem(422, f"UNKNOWN_{request.scope.name}", detail, extra)


def _change(
    account: str | None, request: _Switch, before: str | None, outcome: tuple[int, int, TradingState]
) -> Change:
    seq, asked, state = outcome
    return Change(
        account=account,
        scope=request.scope,
        name=request.name,
        before=TradingState(before) if before else None,
        state=state,
        audit_seq=seq,
        cancels_requested=asked,
    )


def _states(snapshot: Snapshot) -> list[StateView]:
    """Global, account, strategies, products; the hashes' other fields are no states."""
    order = list(Scope)
    fields = {**snapshot.desk_state, **snapshot.state}
    found = [field for field in fields if field.partition("|")[0] in set(Scope)]
    found.sort(key=lambda field: (order.index(Scope(field.partition("|")[0])), field))
    return [_state(field, fields[field], fields.get(f"cause|{field}", "")) for field in found]


def _state(field: str, state: str, cause: str) -> StateView:
    scope, _, name = field.partition("|")
    return StateView(scope=Scope(scope), name=name or None, state=TradingState(state), cause=cause or None)
