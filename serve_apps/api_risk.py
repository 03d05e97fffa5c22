"""The kill switch: trading states by scope. Halting never loosens; resuming is a right of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum
from typing import Annotated, Self

from fastapi import APIRouter
from pydantic import Field, StringConstraints, model_validator

from cluster.api_keys import HALT, READ, RESUME, ApiKey
from cluster.ledger import LedgerError, LedgerUnavailable, Snapshot
from cluster.risk import NAME_PATTERN
from serve_apps.api_access import Desk, GuardedRoute, Halter, Reader, Resumer, TheDesk, account_snapshot
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Shape
from serve_apps.problem import Problem, forbidden
from strategies.model import TradingState

logger = logging.getLogger("ray.serve")

router = APIRouter(prefix="/v1/risk", tags=["kill switch"], route_class=GuardedRoute)

# Told to each account's ledger: the state written, the audit entry's number, cancels asked for, the state that holds.
Write = Callable[[str], Awaitable[tuple[int, int, TradingState]]]
Reason = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$"),
    Field(description="why, for the audit", examples=["drill"]),
]


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
    """Let trading go on at one scope; what other scopes forbid stays forbidden."""


class StateView(Shape):
    """The trading state of one scope."""

    scope: Scope
    name: str | None = Field(examples=[None])
    state: TradingState


class AccountStates(Shape):
    """All trading states of an account; the strictest that an order touches decides."""

    account: str = Field(examples=["main"])
    states: list[StateView]


class States(Shape):
    """The trading states of the accounts a key covers."""

    accounts: list[AccountStates]


class Change(Shape):
    """What was written for one account."""

    account: str = Field(examples=["main"])
    scope: Scope
    name: str | None
    before: TradingState | None = Field(description="the state before, as read just before the change")
    state: TradingState = Field(description="the state that holds now; a halt leaves a stricter one as it is")
    audit_seq: int = Field(description="number of the account's audit entry about this", examples=[17])
    cancels_requested: int = Field(ge=0, description="open orders whose cancellation was asked for")


class Changes(Shape):
    """Every account was written."""

    changed: list[Change]


@router.get("/states", responses=problems())
async def show_states(desk: TheDesk, key: Reader) -> States:
    """The trading states of every account the key covers."""
    names = [name for name in await desk.ledger.accounts() if key.may(READ, name)]
    snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in names))
    return States(
        accounts=[
            AccountStates(account=name, states=[_state(*pair) for pair in _in_order(snapshot)])
            for name, snapshot in zip(names, snapshots, strict=True)
        ]
    )


@router.post("/halt", responses=problems(404))
async def halt(desk: TheDesk, key: Halter, request: HaltRequest) -> Changes:
    """Stop trading at a scope, at once and alone. A repeat is harmless, and of two halts the stricter one stays."""

    async def write(account: str) -> tuple[int, int, TradingState]:
        return await desk.ledger.tighten(account, request.field, request.state, key.key_id, request.reason)

    return await _switch(desk, key, HALT, request, write)


@router.post("/resume", responses=problems(404))
async def resume(desk: TheDesk, key: Resumer, request: ResumeRequest) -> Changes:
    """Set a scope ACTIVE again."""

    async def write(account: str) -> tuple[int, int, TradingState]:
        seq, asked = await desk.ledger.set_state(
            account, request.field, TradingState.ACTIVE, key.key_id, request.reason
        )
        return seq, asked, TradingState.ACTIVE

    return await _switch(desk, key, RESUME, request, write)


async def _switch(desk: Desk, key: ApiKey, right: str, request: _Switch, write: Write) -> Changes:
    """Find the accounts, write them all, and say what became of each; a failure names what was and was not written."""
    before = await _accounts(desk, key, right, request)
    outcomes = await asyncio.gather(*(write(account) for account in before), return_exceptions=True)
    changed, failed = [], []
    for (account, snapshot), outcome in zip(before.items(), outcomes, strict=True):
        if isinstance(outcome, (LedgerUnavailable, LedgerError)):
            logger.error("%s of %s at %s failed: %s", right, account, request.field, outcome)
            failed.append(account)
        elif isinstance(outcome, BaseException):
            raise outcome
        else:
            changed.append(_change(account, request, snapshot, outcome))
    if failed:
        detail = f"not known to be written for: {', '.join(failed)}; repeat the call, that is harmless"
        extra = {"failed": failed, "changed": [change.model_dump(mode="json") for change in changed]}
        raise Problem(503, "RISK_UNAVAILABLE", detail, extra, {"retry-after": "1"})
    return Changes(changed=changed)


async def _accounts(desk: Desk, key: ApiKey, right: str, request: _Switch) -> dict[str, Snapshot]:
    """The accounts to write; 403 where the key does not cover all of them, 404 or 422 where nothing has the name."""
    if request.account is not None:
        found = {request.account: await account_snapshot(desk, key, request.account, right)}
    else:
        names = await desk.ledger.accounts()
        for name in names:
            if not key.may(right, name):
                raise forbidden(right, name)
        snapshots = await asyncio.gather(*(desk.ledger.snapshot(name) for name in names))
        found = dict(zip(names, snapshots, strict=True))
    if not found:
        raise Problem(404, "UNKNOWN_ACCOUNT", "no account is known yet, so nothing was changed")
    known = {account: snapshot for account, snapshot in found.items() if request.field in snapshot.state}
    if not known:
        raise _unknown_name(request, list(found.values()))
    return known


def _unknown_name(request: _Switch, snapshots: Sequence[Snapshot]) -> Problem:
    prefix = f"{request.scope}|"
    fields = {field for snapshot in snapshots for field in snapshot.state if field.startswith(prefix)}
    names = ", ".join(sorted(field.removeprefix(prefix) for field in fields))
    rule = f"one of {names}" if names else f"a {request.scope} with limits"
    detail = f"name: expected {rule}, was {request.name!r}"
    extra = {"field": "name", "value": str(request.name), "rule": rule}
    return Problem(422, f"UNKNOWN_{request.scope.name}", detail, extra)


def _change(account: str, request: _Switch, snapshot: Snapshot, outcome: tuple[int, int, TradingState]) -> Change:
    seq, asked, state = outcome
    before = snapshot.state.get(request.field)
    return Change(
        account=account,
        scope=request.scope,
        name=request.name,
        before=TradingState(before) if before else None,
        state=state,
        audit_seq=seq,
        cancels_requested=asked,
    )


def _in_order(snapshot: Snapshot) -> list[tuple[str, str]]:
    """(scope field, state) pairs: global, account, strategies, products; the hash's other fields are no states."""
    order = list(Scope)
    pairs = [(field, state) for field, state in snapshot.state.items() if field.partition("|")[0] in set(Scope)]
    return sorted(pairs, key=lambda pair: (order.index(Scope(pair[0].partition("|")[0])), pair[0]))


def _state(field: str, state: str) -> StateView:
    scope, _, name = field.partition("|")
    return StateView(scope=Scope(scope), name=name or None, state=TradingState(state))
