"""Limits: what is in force, asking for others, and their history. Stricter holds at once, looser takes two people."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import Field

from cluster.api_keys import LIMITS, READ, ApiKey
from cluster.approvals import limits_of, may_change
from cluster.ledger import Snapshot
from cluster.limit_changes import HistoryEntry, Wish, base_of, change_limits, history
from cluster.limit_records import CALENDAR, VERSION, LimitError, kind_of, scope_records, shown
from cluster.risk import NAME_PATTERN
from serve_apps.api_access import Desk, GuardedRoute, Limiter, Reader, TheDesk, account_snapshot
from serve_apps.api_approvals import ChangeRow, ProposalView, change_rows, proposal_view
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Nanoseconds, Reason, Shape
from serve_apps.problem import Problem, forbidden
from strategies.model import LEDGER_INTEGER_MAX

router = APIRouter(prefix="/v1/limits", tags=["limits"], route_class=GuardedRoute)

WISHES_MAX = 200
OfAccount = Annotated[str | None, Query(description="without it: the desk as a whole", examples=["main"])]
OfScope = Annotated[
    str | None, Query(description="only this scope, or kind of scope", examples=["product|BTC-USD", "strategy"])
]
_Text = Annotated[str, Field(min_length=1, max_length=64)]
# Strict, because true must not count as 1.
_Whole = Annotated[int, Field(strict=True, ge=0, le=LEDGER_INTEGER_MAX)]


class LimitRow(Shape):
    """One limit in force."""

    scope: str = Field(examples=["product|BTC-USD"])
    name: str = Field(description="named as in limits.yaml", examples=["max_position"])
    hard: str = Field(description="orders beyond it are denied; a number, unlimited, or a word", examples=["5"])
    soft: str | None = Field(description="beyond it an order warns; null: it never does", examples=["4"])
    unit: str = Field(examples=["BTC"])


class LimitsInForce(Shape):
    """The limits of an account, or of the desk as a whole, as orders are checked against now."""

    account: str | None = Field(examples=["main"])
    version: int = Field(ge=0, description="grows with every change")
    calendar: str | None = Field(description="the time zone of days and weeks", examples=["UTC"])
    limits: list[LimitRow]
    unreadable: list[str] = Field(description="scopes whose record cannot be read: orders there are denied")


class LimitWish(Shape):
    """One limit as it should be, in the name and unit of limits.yaml."""

    scope: str = Field(
        pattern=r"^[a-z]{1,16}(\|[A-Za-z0-9_*.\-]{1,64})?$",
        description="global, account, strategy|S, product|P, key|K or group|G",
        examples=["product|BTC-USD"],
    )
    name: str = Field(pattern=r"^[a-z_]{1,64}$", examples=["max_position"])
    hard: _Text | _Whole | Annotated[list[_Text], Field(min_length=1, max_length=64)] = Field(
        description="a decimal as text, a whole number, unlimited, a word, or a list of hours or versions",
        examples=["5"],
    )
    soft: _Text | _Whole | None = Field(None, description="null: 80 % of hard, where the limit warns at all")


class LimitsRequest(Shape):
    """Limits to change, all of one account or all of the desk."""

    account: str | None = Field(
        None, pattern=NAME_PATTERN, description="null: the desk as a whole, scope global", examples=["main"]
    )
    changes: list[LimitWish] = Field(min_length=1, max_length=WISHES_MAX)
    reason: Reason


class LimitsAnswer(Shape):
    """What holds now, and what waits for a second person."""

    account: str | None
    version: int = Field(ge=0)
    applied: list[ChangeRow] = Field(description="what was stricter: it holds already")
    proposal: ProposalView | None = Field(description="what is looser: another person decides")


class HistoryRow(Shape):
    """One step in the life of limits, as the audit has it."""

    seq: int = Field(description="number of the audit entry")
    at_ns: Nanoseconds
    kind: Literal["LIMITS", "PROPOSED", "APPROVED", "REFUSED"]
    by: str = Field(description="the key, the keys of both people, or the file it came from")
    version: int | None = Field(description="the version that held from then on; null where nothing was changed")
    proposal: str | None = Field(description="the number of the proposal it is about")
    reason: str
    changes: list[ChangeRow]


class LimitsHistory(Shape):
    """Newest first."""

    account: str | None
    entries: list[HistoryRow]
    complete: bool = Field(description="false: there is more, further back or in the archive")


@router.get("", responses=problems(404))
async def list_limits(desk: TheDesk, key: Reader, account: OfAccount = None, scope: OfScope = None) -> LimitsInForce:
    """Every limit in force with its unit, of one account or of the desk as a whole."""
    records = limits_of(await _readable(desk, key, account), account)
    products = await desk.ledger.products()
    rows: list[LimitRow] = []
    unreadable = []
    for name, text in scope_records(records).items():
        if name == CALENDAR or scope not in {None, name, name.partition("|")[0]}:
            continue
        try:
            found = shown(name, text, products.get(name.partition("|")[2]))
        except LimitError:
            unreadable.append(name)
            continue
        rows += [LimitRow(scope=r.scope, name=r.name, hard=r.hard, soft=r.soft, unit=r.unit) for r in found]
    return LimitsInForce(
        account=account,
        version=int(records.get(VERSION, "0")),
        calendar=records.get(CALENDAR, "").partition(" ")[0] or None,
        limits=rows,
        unreadable=unreadable,
    )


@router.post(
    "", responses={202: {"model": LimitsAnswer, "description": "some of it waits for a second person"}, **problems(404)}
)
async def set_limits(desk: TheDesk, key: Limiter, request: LimitsRequest, response: Response) -> LimitsAnswer:
    """Change limits while the desk runs: 200 where all of it holds already, 202 where some waits for a second person.

    All of the changes are valid, or nothing is asked for.
    """
    wishes = [_wish(wish) for wish in request.changes]
    try:
        _check_bases(request.account, wishes)
        for wish in wishes:
            if not may_change(key, LIMITS, request.account, wish.scope):
                raise forbidden(LIMITS, request.account)
        if request.account is not None:
            await account_snapshot(desk, key, request.account, LIMITS)
        outcome = await change_limits(desk.ledger, request.account, wishes, key.key_id, key.person, request.reason)
    except LimitError as error:
        extra = {"field": error.field, "value": error.value, "rule": error.rule}
        raise Problem(422, "INVALID_LIMIT", str(error), extra) from None
    proposal = await proposal_view(desk, outcome.proposal) if outcome.proposal else None
    if proposal is not None:
        response.status_code = 202
    return LimitsAnswer(
        account=request.account,
        version=outcome.version,
        applied=change_rows(outcome.applied),
        proposal=proposal,
    )


@router.get("/history", responses=problems(404))
async def limits_history(
    desk: TheDesk,
    key: Reader,
    account: OfAccount = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="at most so many steps")] = 100,
) -> LimitsHistory:
    """Who changed which limit, when and why, from the audit of one account or of the desk as a whole."""
    await _readable(desk, key, account)
    entries, complete = await history(desk.ledger, account, limit)
    return LimitsHistory(account=account, entries=[_row(entry) for entry in entries], complete=complete)


async def _readable(desk: Desk, key: ApiKey, account: str | None) -> Snapshot:
    if account is not None:
        return await account_snapshot(desk, key, account)
    if not key.may_everywhere(READ):
        raise forbidden(READ, "*")
    return await desk.ledger.snapshot(None)


def _wish(wish: LimitWish) -> Wish:
    value: Any = wish.hard if wish.soft is None else {"hard": wish.hard, "soft": wish.soft}
    return Wish(wish.scope, wish.name, value)


def _check_bases(account: str | None, wishes: list[Wish]) -> None:
    for wish in wishes:
        kind_of(wish.scope)
        if base_of(wish.scope, "named") is None and account is not None:
            raise LimitError("account", account, "null with scope global, which is the desk as a whole")
        if base_of(wish.scope, "named") is not None and account is None:
            raise LimitError("account", account, f"the account whose {wish.scope} is meant")


def _row(entry: HistoryEntry) -> HistoryRow:
    kind: Any = entry.kind
    return HistoryRow(
        seq=entry.seq,
        at_ns=entry.ts_us * 1000,
        kind=kind,
        by=entry.by,
        version=entry.version,
        proposal=entry.proposal_id,
        reason=entry.reason,
        changes=change_rows(entry.changes),
    )
