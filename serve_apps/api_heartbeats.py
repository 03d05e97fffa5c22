"""Heartbeats: a trader promises to be heard; once it is silent too long, the dead man cancels the account's orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from pydantic import Field

from cluster.api_keys import TRADE, ApiKey
from cluster.deadman import PART, Phase, is_armed, trader_part, traders_of
from cluster.risk import NAME_PATTERN
from serve_apps.api_access import Desk, GuardedRoute, Reader, TheDesk, Trader, account_snapshot
from serve_apps.api_accounts import AccountName
from serve_apps.api_problems import problems
from serve_apps.api_shapes import Milliseconds, Shape
from serve_apps.problem import Problem

router = APIRouter(prefix="/v1/accounts/{account}/heartbeat", tags=["accounts"], route_class=GuardedRoute)

TIMEOUT_S_MIN: Final = 2.0
TIMEOUT_S_MAX: Final = 3_600.0
# Names are kept after their end, and every heartbeat of the desk is read once a second.
NAMES_MAX: Final = 200
# A dead man that was not heard for longer than this does not watch.
DEADMAN_FRESH_MS: Final = 10_000

Beats = Mapping[str, Mapping[str, Any]]


class Heartbeat(Shape):
    """A sign of life; the first one arms the dead man, each renews its patience."""

    name: str = Field(pattern=NAME_PATTERN, description="which trader, one of the account's", examples=["bot_1"])
    timeout_s: float = Field(
        ge=TIMEOUT_S_MIN,
        le=TIMEOUT_S_MAX,
        allow_inf_nan=False,
        description="a silence longer than this cancels every order of the account and halts it",
        examples=[30],
    )


class TraderView(Shape):
    """One trader's heartbeat."""

    name: str = Field(examples=["bot_1"])
    timeout_s: float = Field(examples=[30])
    age_ms: Milliseconds = Field(description="since it was last heard")
    armed: bool = Field(description="false: it was ended, by its trader or, once it had tripped, by the dead man")
    person: str | None = Field(description="who beats")


class DeadManView(Shape):
    """The dead man, who watches over execution, the ledger and these traders."""

    watching: bool = Field(description="whether a silence would be noticed now")
    phase: Phase | None = Field(
        description="WAITING for execution's first beat, WATCHING, CANCELLING all orders, TRIPPED: all are cancelled "
        "and the account is halted until it is resumed; null: the dead man was never heard"
    )
    age_ms: Milliseconds | None = Field(description="since it was last heard itself")
    reason: str | None = Field(description="why it tripped last")


class Heartbeats(Shape):
    """Who is watched, and by whom."""

    account: str = Field(examples=["main"])
    deadman: DeadManView
    traders: list[TraderView]


_NOT_WATCHED: Final = "NOT_WATCHED: no execution trades for the account; TOO_MANY_HEARTBEATS: too many names were used"


@router.get("", responses=problems(404))
async def list_heartbeats(desk: TheDesk, key: Reader, account: AccountName) -> Heartbeats:
    """The dead man's state and every trader that beats or did."""
    await account_snapshot(desk, key, account)
    return await _heartbeats(desk, account)


@router.post("", responses=problems(404, _409=_NOT_WATCHED))
async def beat(desk: TheDesk, key: Trader, account: AccountName, request: Heartbeat) -> Heartbeats:
    """Be heard. After ``timeout_s`` without another call the dead man cancels all of the account's orders and halts it.

    Look at ``deadman`` in the answer: where nobody is watching, the promise is kept by nobody.
    """
    await account_snapshot(desk, key, account, TRADE)
    if account != desk.settings.execution.account:
        raise Problem(409, "NOT_WATCHED", f"no execution trades for account {account}", {"account": account})
    known = traders_of(account, await desk.ledger.heartbeats())
    if request.name not in known and len(known) >= NAMES_MAX:
        raise Problem(409, "TOO_MANY_HEARTBEATS", f"{NAMES_MAX} names were used; take one of them again")
    await _write(desk, key, account, request.name, request.timeout_s, ended=False)
    return await _heartbeats(desk, account)


@router.delete("", responses=problems(404))
async def end(
    desk: TheDesk,
    key: Trader,
    account: AccountName,
    name: Annotated[str, Query(pattern=NAME_PATTERN, description="which trader", examples=["bot_1"])],
) -> Heartbeats:
    """Stop being watched, as before a planned end; orders stay as they are. A repeat is harmless."""
    await account_snapshot(desk, key, account, TRADE)
    known = traders_of(account, await desk.ledger.heartbeats()).get(name)
    if known is None:
        raise Problem(
            404, "UNKNOWN_HEARTBEAT", f"no trader {name!r} of account {account} was ever heard", {"name": name}
        )
    if is_armed(known):
        await _write(desk, key, account, name, float(known["timeout_s"]), ended=True)
    return await _heartbeats(desk, account)


def deadman_view(beats: Beats, account: str) -> DeadManView:
    """What the dead man says of itself, and whether it is still there to act."""
    last = beats.get(PART)
    if last is None or last.get("account") != account:
        return DeadManView(watching=False, phase=None, age_ms=None, reason=None)
    phase, age_ms = Phase(last["phase"]), max(0, int(last["age_ms"]))
    watching = age_ms <= DEADMAN_FRESH_MS and phase is Phase.WATCHING
    return DeadManView(watching=watching, phase=phase, age_ms=age_ms, reason=str(last.get("reason") or "") or None)


async def _heartbeats(desk: Desk, account: str) -> Heartbeats:
    beats = await desk.ledger.heartbeats()
    traders = [_trader(name, one) for name, one in sorted(traders_of(account, beats).items())]
    return Heartbeats(account=account, deadman=deadman_view(beats, account), traders=traders)


def _trader(name: str, one: Mapping[str, Any]) -> TraderView:
    return TraderView(
        name=name,
        timeout_s=float(one.get("timeout_s", 0)),
        age_ms=max(0, int(one["age_ms"])),
        armed=is_armed(one),
        person=str(one["person"]) if one.get("person") else None,
    )


async def _write(desk: Desk, key: ApiKey, account: str, name: str, timeout_s: float, *, ended: bool) -> None:
    detail = {"account": account, "name": name, "timeout_s": timeout_s, "by": key.key_id, "person": key.person}
    await desk.ledger.beat(trader_part(account, name), detail | ({"ended": True} if ended else {}))
