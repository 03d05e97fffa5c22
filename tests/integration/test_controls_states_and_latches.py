"""Trading states, the rules that halt by themselves, and what a server that was started again may decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.ledger import Ledger, LedgerUnavailable, StaleEpoch
from conf.settings import RedisSettings, Settings
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, APPROVER, ASKER, BASE, BTC, DESK, KEY, Books, limit_records, order
from tests.controls import (
    BUY_MARKET,
    SECOND,
    SELL,
    SELL_MARKET,
    Control,
    Row,
    approved,
    connected,
    denies_where_the_limit_is_missing,
    open_second,
    race,
    rivals,
)
from tests.servers import KINDS, Server, binary
from tests.tampering import add_to_figure, figure_of, set_figure

pytestmark = pytest.mark.anyio

SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD")


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Tests that do not kill the server run on the shared ones, Valkey and Redis."""
    return each_server


def rules(denials: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(denial["code"], denial["scope"]) for denial in denials]


def account_of(scope: str) -> str | None:
    """Whose state a scope is: the desk's own or the account's."""
    return None if scope == "global" else ACCOUNT


# -- states ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("state", [TradingState.HALTED, TradingState.CANCEL_ALL])
async def test_a_halt_at_any_scope_lets_nothing_through(books: Books, scope: str, state: TradingState) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.halt(scope, state)
    sides: list[Row] = [{}, SELL, BUY_MARKET, SELL_MARKET]
    for number, side in enumerate(sides):
        (denial,) = await books.denials(f"o-{number}", **side)
        assert (denial["code"], denial["scope"], denial["value"]) == ("TRADING_HALTED", scope, state)
    await books.resume(scope)
    await books.accept("after")


@pytest.mark.parametrize(
    ("scope", "passes"),
    [("strategy|other", {}), ("product|XRP-USD", {}), ("strategy|manual", {"strategy": "other"}),
     ("product|BTC-USD", {"product_id": "XRP-USD"})],
)  # fmt: skip
async def test_a_halt_of_one_strategy_or_product_leaves_the_others_alone(books: Books, scope: str, passes: Row) -> None:
    await books.open()
    await books.halt(scope)
    await books.accept("o-1", **passes)


async def test_a_halt_of_the_desk_halts_every_account_and_one_of_an_account_only_that(books: Books) -> None:
    await books.open()
    await open_second(books)
    await books.halt("account")
    assert await books.codes("o-1") == {("TRADING_HALTED", "account")}
    await books.accept("o-2", account=SECOND)
    await books.halt("global")
    assert await books.codes("o-3") == {("TRADING_HALTED", "account"), ("TRADING_HALTED", "global")}
    assert await books.codes("o-4", account=SECOND) == {("TRADING_HALTED", "global")}


REDUCING: list[tuple[str, int, int, list[Row], Row, tuple[str, str] | None]] = [
    # scope, lots the strategy bought, lots of nobody, orders before, the order, value and limit of the denial
    ("account", 0, 10, [], SELL, None),
    ("account", 0, 10, [], SELL | {"lots": 11}, ("11", "10")),
    ("account", 0, 10, [SELL | {"lots": 4}], SELL | {"lots": 6}, None),
    ("account", 0, 10, [SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("account", 0, 10, [SELL | {"lots": 4, "strategy": "other"}], SELL | {"lots": 7}, ("11", "10")),
    ("account", 0, 10, [], {"lots": 1}, ("1", "0")),
    ("account", 0, 10, [], SELL_MARKET, None),
    ("account", 0, 0, [], {"lots": 1}, ("1", "0")),
    ("account", 0, -9, [], {"lots": 9}, None),
    ("account", 0, -9, [], {"lots": 10}, ("10", "9")),
    ("account", 0, -9, [{"lots": 5}], {"lots": 4}, None),
    ("account", 0, -9, [{"lots": 5}], {"lots": 5}, ("10", "9")),
    ("account", 0, -9, [], BUY_MARKET | {"lots": 9}, None),
    ("strategy|manual", 10, 50, [], SELL, None),
    ("strategy|manual", 10, 50, [], SELL | {"lots": 11}, ("11", "10")),
    ("strategy|manual", 10, 50, [SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("strategy|manual", 10, 50, [SELL | {"lots": 40, "strategy": "other"}], SELL, None),
    ("strategy|manual", 0, 50, [], SELL | {"lots": 1}, ("1", "0")),
    ("strategy|manual", -10, 50, [], {"lots": 10}, None),
    ("strategy|manual", -10, 50, [], {"lots": 11}, ("11", "10")),
    ("strategy|other", 0, 0, [], {}, None),
    ("product|BTC-USD", 0, 10, [], SELL, None),
    ("product|BTC-USD", 0, 10, [SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("product|BTC-USD", 0, 10, [], {"lots": 1}, ("1", "0")),
    ("product|XRP-USD", 0, 0, [], {}, None),
    ("global", 0, 10, [], SELL, None),
    ("global", 0, 10, [], SELL | {"lots": 11}, ("11", "10")),
    ("global", 0, 10, [], {"lots": 1}, ("1", "0")),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "bought", "nobodys", "before", "changed", "denied"), REDUCING)
async def test_reducing_lets_through_what_shrinks_a_position_and_never_flips_it(
    books: Books,
    scope: str,
    bought: int,
    nobodys: int,
    before: list[Row],
    changed: Row,
    denied: tuple[str, str] | None,
) -> None:
    await books.open(lots={"BTC-USD": nobodys})
    if bought:
        await traded(books, "opening", Side.BUY if bought > 0 else Side.SELL, abs(bought), 10_000)
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    await books.halt(scope, TradingState.REDUCING)
    denials = await books.denials("o-1", **changed)
    found = [(d["value"], d["limit"], d["scope"], d["unit"]) for d in denials if d["code"] == "REDUCE_ONLY_MODE"]
    assert found == ([(*denied, scope, "lots")] if denied else [])
    assert {d["code"] for d in denials} <= {"REDUCE_ONLY_MODE", "INSUFFICIENT_FUNDS"}
    assert bool(denials) == bool(denied)


@pytest.mark.parametrize("scope", ["global", "account", "product|BTC-USD"])
async def test_three_rivals_under_reducing_close_a_position_and_never_flip_it(
    books: Books, settings: Settings, scope: str
) -> None:
    await books.open(lots={"BTC-USD": -50})
    await books.halt(scope, TradingState.REDUCING)
    denied = await race(books, settings, {})
    assert set(rules(denied)) == {("REDUCE_ONLY_MODE", scope)}


async def test_the_strictest_of_all_scopes_decides_and_each_is_named(books: Books) -> None:
    await books.open(lots={"BTC-USD": 5})
    for scope, state in zip(SCOPES, ["REDUCING", "HALTED", "CANCEL_ALL", "REDUCING"], strict=True):
        await books.halt(scope, TradingState(state))
    assert await books.codes("o-1") == {
        ("REDUCE_ONLY_MODE", "global"),
        ("TRADING_HALTED", "account"),
        ("TRADING_HALTED", "strategy|manual"),
        ("REDUCE_ONLY_MODE", "product|BTC-USD"),
    }


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("text", [None, "", "active", "OPEN"])
async def test_a_missing_or_unknown_trading_state_denies(books: Books, scope: str, text: str | None) -> None:
    await books.open()
    key = f"{DESK if scope == 'global' else BASE}:state"
    if text is None:
        await books.ledger._direct("HDEL", key, scope)
    else:
        await books.ledger._direct("HSET", key, scope, text)
    assert await books.codes("o-1") == {("MISSING_STATE", scope)}


TIGHTENED: list[tuple[str, str, str]] = [
    # state before, state asked for, state that holds
    ("ACTIVE", "REDUCING", "REDUCING"),
    ("ACTIVE", "CANCEL_ALL", "CANCEL_ALL"),
    ("REDUCING", "HALTED", "HALTED"),
    ("HALTED", "HALTED", "HALTED"),
    ("HALTED", "REDUCING", "HALTED"),
    ("HALTED", "ACTIVE", "HALTED"),
    ("CANCEL_ALL", "HALTED", "CANCEL_ALL"),
    ("REDUCING", "ACTIVE", "REDUCING"),
]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("before", "asked", "holds"), TIGHTENED)
async def test_anybody_may_tighten_a_state_alone_and_nobody_loosens_it_so(
    books: Books, scope: str, before: str, asked: str, holds: str
) -> None:
    await books.open()
    await books.halt(scope, TradingState(before))
    _, _, found = await books.ledger.tighten(account_of(scope), scope, TradingState(asked), "test", "drill")
    assert (found, (await books.states())[scope]) == (holds, holds)


async def test_no_order_is_accepted_after_a_halt_was_acknowledged(books: Books, settings: Settings) -> None:
    """Three clients send without a pause while a fourth halts: every RESERVED entry is before the STATE entry."""
    await books.open()
    acknowledged = asyncio.Event()
    late: list[str] = []

    async def send(ledger: Ledger, name: str) -> None:
        for number in range(10_000):
            after = acknowledged.is_set()
            verdict = await ledger.reserve(order(f"{name}-{number}"), BTC, KEY)
            if after and verdict.accepted:
                late.append(f"{name}-{number}")
            if not verdict.accepted:
                return

    async with rivals(settings) as ledgers:
        senders = [asyncio.create_task(send(ledger, str(n))) for n, ledger in enumerate(ledgers)]
        while len(await books.outbox()) < 100:
            pass
        await books.halt("account")
        acknowledged.set()
        await asyncio.gather(*senders)
    kinds = [kind for kind, _ in await books.audit() if kind in {"RESERVED", "STATE"}]
    assert kinds.index("STATE") == len(kinds) - 1 >= 100
    assert late == []


# -- what a rule trips by itself ---------------------------------------------------------------------------------------


async def traded(
    books: Books, name: str, side: Side, lots: int, ticks: int, fee: int = 0, strategy: str = "manual"
) -> None:
    """An order that was accepted, sent and filled whole at this price."""
    await books.accept(name, side=side, lots=lots, strategy=strategy)
    await books.send(name)
    assert (await books.fill(name, lots, ticks, fee))[0] == "APPLIED"


async def mid(books: Books, ticks: int) -> None:
    """Move the middle of the market in BTC."""
    await books.quote({"BTC-USD": (ticks - 100, ticks + 100)})


async def hundred_lots(books: Books) -> None:
    """100 lots bought for 10 USD, beside 10 USD in cash; then a loss one tick short of 1 USD."""
    await traded(books, "opening", Side.BUY, 100, 10_000)
    await mid(books, 9_001)


async def lose(books: Books, name: str, ticks: int = 9_900) -> None:
    await traded(books, f"{name}-in", Side.BUY, 10, 10_000)
    await traded(books, f"{name}-out", Side.SELL, 10, ticks)


async def rejected(books: Books, name: str) -> None:
    await books.accept(name)
    await books.send(name)
    assert await books.ledger.release(ACCOUNT, books.epoch, name, OrderStatus.REJECTED, "no") == (True, "REJECTED")


async def aged(books: Books, age_ms: int) -> None:
    """Make the price of BTC older, and look."""
    packed = (await books.ledger.snapshot(ACCOUNT)).reference["BTC-USD"].split()
    packed[2] = str(int(packed[2]) - age_ms)
    await books.ledger._direct("HSET", f"{BASE}:reference", "BTC-USD", " ".join(packed))
    await books.ledger.watch(ACCOUNT, books.epoch)


async def sent(books: Books) -> None:
    await books.accept("sent")
    await books.send("sent")


async def nothing(books: Books) -> None:
    """Nothing to do."""


Step = Callable[[Books], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Trip:
    """A rule that halts by itself.

    ``before`` goes as far as the rule allows, ``trip`` one unit further; ``heal`` takes away what still stands in the
    way of resuming, where something does.
    """

    cause: str
    scope: str
    state: str
    limits: Mapping[str, str]
    before: Step
    trip: Step
    heal: Step | None = None

    def __str__(self) -> str:
        """As a test's name."""
        return f"{self.cause} {self.scope}"


def daily_loss(scope: str) -> Trip:
    return Trip(
        cause="DAILY_LOSS",
        scope=scope,
        state="REDUCING",
        limits={f"{scope}|max_daily_loss": "1000000"},
        before=hundred_lots,
        trip=lambda books: mid(books, 9_000),
        heal=lambda books: mid(books, 9_001),
    )


def drawdown(scope: str) -> Trip:
    # From 20 USD to 19: 5 % of the peak, or of the strategy's capital.
    capital = {"strategy|manual|capital": "20000000"} if scope.startswith("strategy") else {}
    return Trip(
        cause="DRAWDOWN",
        scope=scope,
        state="REDUCING",
        limits=capital | {f"{scope}|max_drawdown_ppm": "50000"},
        before=hundred_lots,
        trip=lambda books: mid(books, 9_000),
        heal=lambda books: mid(books, 9_001),
    )


async def lose_twice(books: Books) -> None:
    await lose(books, "first")
    await traded(books, "third-in", Side.BUY, 10, 10_000)


async def accept_three(books: Books) -> None:
    for number in range(3):
        await books.accept(f"quick-{number}")


async def reject_two(books: Books) -> None:
    for number in range(2):
        await rejected(books, f"rejected-{number}")


async def one_too_many(books: Books) -> None:
    await add_to_figure(books.ledger, BASE, "a|open_orders", 1)
    assert await books.ledger.prove(ACCOUNT) == 1


async def one_less(books: Books) -> None:
    await add_to_figure(books.ledger, BASE, "a|open_orders", -1)
    assert await books.ledger.prove(ACCOUNT) == 0


TRIPS: list[Trip] = [
    *(daily_loss(scope) for scope in SCOPES),
    *(drawdown(scope) for scope in ("global", "account", "strategy|manual")),
    Trip(
        cause="COOLDOWN",
        scope="strategy|manual",
        state="REDUCING",
        limits={"strategy|manual|max_loss_streak": "2"},
        before=lose_twice,
        trip=lambda books: traded(books, "third-out", Side.SELL, 10, 9_999),
    ),
    Trip(
        cause="REPEAT_EXECUTION",
        scope="strategy|manual",
        state="HALTED",
        limits={"strategy|manual|max_repeats": "3"},
        before=accept_three,
        trip=lambda books: books.codes("one-more"),
    ),
    *(
        Trip(
            cause="REJECT_STORM",
            scope=scope,
            state="REDUCING",
            limits={f"{scope}|max_rejects": "2"},
            before=reject_two,
            trip=lambda books: rejected(books, "one-more"),
        )
        for scope in ("account", "strategy|manual")
    ),
    Trip(
        cause="STALE_REFERENCE",
        scope="product|BTC-USD",
        state="HALTED",
        limits={"account|reference_halt_ms": "1000000"},
        before=lambda books: aged(books, 900_000),
        trip=lambda books: aged(books, 100_001),
        heal=lambda books: books.quote(),
    ),
    Trip(
        cause="BAD_BOOK",
        scope="product|BTC-USD",
        state="HALTED",
        limits={},
        before=lambda books: books.quote({"BTC-USD": (10_000, 10_000)}),
        trip=lambda books: books.quote({"BTC-USD": (10_001, 10_000)}),
        heal=lambda books: books.quote(),
    ),
    Trip(
        cause="VENUE_UNHEALTHY",
        scope="account",
        state="REDUCING",
        limits={"account|max_venue_errors": "5"},
        before=lambda books: books.ledger.venue_errors(ACCOUNT, books.epoch, 5),
        trip=lambda books: books.ledger.venue_errors(ACCOUNT, books.epoch, 1),
    ),
    Trip(
        cause="INVARIANT",
        scope="account",
        state="HALTED",
        limits={},
        before=lambda books: books.ledger.prove(ACCOUNT),
        trip=one_too_many,
        heal=one_less,
    ),
    Trip(
        cause="OVERFILL",
        scope="strategy|manual",
        state="HALTED",
        limits={},
        before=sent,
        trip=lambda books: books.fill("sent", 11, 10_000),
    ),
]
CASH: Final = 20_000_000


async def tripped(books: Books, trip: Trip) -> None:
    await books.open(cash=CASH, limits=trip.limits)
    await trip.before(books)
    await trip.trip(books)


@pytest.mark.parametrize("trip", TRIPS, ids=str)
async def test_a_rule_trips_when_its_limit_is_passed_and_not_before(books: Books, trip: Trip) -> None:
    await books.open(cash=CASH, limits=trip.limits)
    await trip.before(books)
    assert await books.causes() == {}
    assert set((await books.states()).values()) == {"ACTIVE"}
    await trip.trip(books)
    assert await books.causes() == {trip.scope: trip.cause}
    assert (await books.states())[trip.scope] == trip.state
    assert (trip.cause, trip.scope) in await books.codes("after", lots=1)


@pytest.mark.parametrize("trip", TRIPS, ids=str)
async def test_a_rule_that_trips_raises_an_alert_and_is_in_the_audit(books: Books, trip: Trip) -> None:
    await tripped(books, trip)
    account = account_of(trip.scope)
    alerts = await books.ledger.alerts(account, 10)
    assert [alert["scope"] for alert in alerts if (alert["level"], alert["code"]) == ("HARD", trip.cause)] == [
        trip.scope
    ]
    entries = [fields for _, fields in await books.ledger.audit_entries(account)]
    states = [fields for fields in entries if fields["kind"] == "STATE"]
    assert [fields["id"] for fields in states] == [trip.scope]
    assert f'"cause":"{trip.cause}"' in states[0]["data"]


@pytest.mark.parametrize("trip", TRIPS, ids=str)
async def test_what_has_tripped_stays_until_two_people_resume_it(books: Books, trip: Trip) -> None:
    await tripped(books, trip)
    ledger, account = books.ledger, account_of(trip.scope)
    proposal = await ledger.propose_resume(account, trip.scope, "test", ASKER, "looked into it")
    assert await approved(ledger, account, proposal.id, ASKER) == "SAME_PERSON"
    if trip.heal is not None:
        approval = await ledger.approve(account, proposal.id, proposal.digest, "second", APPROVER)
        assert (approval.outcome, approval.detail.partition(":")[0]) == ("STILL_BREACHED", trip.cause)
        await trip.heal(books)
    # That the rule holds again resumes nothing; nor do a new epoch, the same limits, or a person alone.
    await ledger.claim(ACCOUNT, "another")
    for name, records in zip((None, ACCOUNT), limit_records(trip.limits), strict=True):
        assert (await ledger.set_limits(name, records, "test")).changed == {}
    await ledger.tighten(account, trip.scope, TradingState.ACTIVE, "test", "please")
    assert await books.causes() == {trip.scope: trip.cause}
    assert (trip.cause, trip.scope) in await books.codes("still", lots=1)
    assert await approved(ledger, account, proposal.id, APPROVER) == "APPLIED"
    assert await books.causes() == {}
    assert await books.codes("after", lots=1) == set()


async def test_a_rule_that_trips_twice_raises_one_alert(books: Books) -> None:
    await tripped(books, daily_loss("account"))
    await mid(books, 8_000)
    await mid(books, 7_000)
    assert len(await books.ledger.alerts(ACCOUNT, 10)) == 1


async def test_two_rules_may_stand_at_once_and_each_is_named(books: Books) -> None:
    await books.open(cash=CASH, limits={f"{scope}|max_daily_loss": "1000000" for scope in SCOPES})
    await hundred_lots(books)
    await mid(books, 9_000)
    assert await books.causes() == dict.fromkeys(SCOPES, "DAILY_LOSS")
    assert await books.codes("o-1", lots=1) == {("DAILY_LOSS", scope) for scope in SCOPES}
    await books.accept("exit", **SELL)


LOSING: list[tuple[str, list[int], int]] = [
    # what, prices that lots bought at 10,000 ticks are sold at, losing exits in a row in the end
    ("each loses", [9_999, 9_000], 2),
    ("the last wins", [9_999, 9_000, 10_001], 0),
    ("one wins in between", [9_999, 10_001, 9_999], 1),
    ("at cost is no loss", [9_999, 10_000, 9_999], 2),
]


@pytest.mark.parametrize(("what", "prices", "streak"), LOSING, ids=[row[0] for row in LOSING])
async def test_losing_exits_in_a_row_are_counted(books: Books, what: str, prices: list[int], streak: int) -> None:
    await books.open(cash=CASH)
    for number, ticks in enumerate(prices):
        await lose(books, f"o-{number}", ticks)
    assert (await books.book()).get("s|manual|streak", 0) == streak


async def test_an_exit_that_its_fee_turns_into_a_loss_is_one(books: Books) -> None:
    await books.open(cash=CASH)
    await traded(books, "in", Side.BUY, 10, 10_000)
    await traded(books, "out", Side.SELL, 10, 10_001, fee=1_001)
    assert (await books.book())["s|manual|streak"] == 1


async def test_an_exit_in_many_fills_is_one_exit(books: Books) -> None:
    await books.open(cash=CASH)
    await traded(books, "in", Side.BUY, 10, 10_000)
    await books.accept("out", side=Side.SELL)
    await books.send("out")
    for _ in range(10):
        await books.fill("out", 1, 9_999)
    assert (await books.book())["s|manual|streak"] == 1


WINDOWS: list[tuple[str, dict[str, str], str, Step, str]] = [
    # what counts, the limit, the book's field, one more of it, the scope that trips
    ("repeats", {"strategy|manual|max_repeats": "3"}, "s|manual|repeats", accept_three, "strategy|manual"),
    ("rejects", {"strategy|manual|max_rejects": "2"}, "s|manual|rejects", reject_two, "strategy|manual"),
    ("rejects", {"account|max_rejects": "2"}, "a|rejects", reject_two, "account"),
    (
        "venue errors",
        {"account|max_venue_errors": "5"},
        "a|venue_errors",
        lambda books: books.ledger.venue_errors(ACCOUNT, books.epoch, 5),
        "account",
    ),
]


@pytest.mark.parametrize(("what", "limits", "name", "fill_up", "scope"), WINDOWS)
async def test_what_is_counted_in_a_window_is_forgotten_after_it(
    books: Books, what: str, limits: dict[str, str], name: str, fill_up: Step, scope: str
) -> None:
    await books.open(cash=CASH, limits=limits)
    await fill_up(books)
    start, count = (await figure_of(books.ledger, BASE, name)).split()
    await set_figure(books.ledger, BASE, name, f"{int(start) - 60_001} {count}")
    if what == "repeats":
        await books.accept("in-the-next-window")
    elif what == "rejects":
        await rejected(books, "in-the-next-window")
    else:
        await books.ledger.venue_errors(ACCOUNT, books.epoch, 1)
    assert await books.causes() == {}
    assert (await figure_of(books.ledger, BASE, name)).split()[1] == "1"


@pytest.mark.parametrize(
    ("limit", "soft", "code", "scope"),
    [
        *((f"{scope}|max_daily_loss", "5000000:800000", "DAILY_LOSS", scope) for scope in SCOPES),
        *((f"{scope}|max_drawdown_ppm", "500000:40000", "DRAWDOWN", scope) for scope in SCOPES[:3]),
    ],
)
async def test_a_loss_beyond_its_soft_level_raises_one_alert_and_halts_nothing(
    books: Books, limit: str, soft: str, code: str, scope: str
) -> None:
    await books.open(cash=CASH, limits={limit: soft, "strategy|manual|capital": "20000000"})
    await traded(books, "opening", Side.BUY, 100, 10_000)
    account = account_of(scope)
    for ticks, raised in ((9_201, 0), (9_200, 1), (9_100, 1), (9_000, 1)):
        await mid(books, ticks)
        alerts = await books.ledger.alerts(account, 10)
        found = [(alert["level"], alert["code"], alert["scope"]) for alert in alerts]
        assert found == [("SOFT", code, scope)] * raised, ticks
    assert await books.causes() == {}
    await books.accept("o-1", lots=1)


async def test_the_peak_stays_the_peak_when_a_drawdown_is_resumed(books: Books) -> None:
    await tripped(books, drawdown("account"))
    peak = (await books.book(marks=True))["a|peak"]
    await mid(books, 9_001)
    await books.resume("account")
    assert (await books.book(marks=True))["a|peak"] == peak
    await mid(books, 9_000)
    assert await books.causes() == {"account": "DRAWDOWN"}


async def test_a_human_halt_over_an_automatic_one_does_not_hide_what_tripped(books: Books) -> None:
    await tripped(books, daily_loss("account"))
    await books.halt("account")
    proposal = await books.ledger.propose_resume(ACCOUNT, "account", "test", ASKER, "why")
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "STILL_BREACHED"


HALTING: Final = [
    *(f"{scope}|{name}" for scope in SCOPES[:3] for name in ("max_daily_loss", "max_drawdown_ppm")),
    "product|BTC-USD|max_daily_loss",
    *(f"{scope}|{name}" for scope in SCOPES[1:3] for name in ("max_rejects", "reject_window_ms")),
    *(f"strategy|manual|{name}" for name in ("capital", "max_loss_streak", "max_repeats", "repeat_window_ms")),
    *(f"account|{name}" for name in ("reference_halt_ms", "max_venue_errors", "venue_error_window_ms")),
]


@pytest.mark.parametrize("limit", HALTING)
async def test_without_a_limit_that_halts_nothing_passes(books: Books, limit: str) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit=limit, value=0, code="", unit=""))


# -- over a restart ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own that writes every call to disk before it answers, as the desk's does."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(binary(request.param), folder, appendfsync="always")
    with server.running():
        yield server


@pytest.mark.parametrize("trip", TRIPS, ids=str)
async def test_what_has_tripped_is_still_so_after_a_crash_of_the_server(server: Server, trip: Trip) -> None:
    async with connected(server) as books:
        await tripped(books, trip)
        states = await books.states()
        server.kill()
        server.start()
        assert (await books.states(), await books.causes()) == (states, {trip.scope: trip.cause})
        epoch = await books.ledger.claim(ACCOUNT, "execution")
        await books.ledger.admit(ACCOUNT, epoch)
        assert (trip.cause, trip.scope) in await books.codes("after", lots=1)


async def test_a_server_that_was_started_again_takes_no_order_until_it_was_reconciled(server: Server) -> None:
    async with connected(server) as books:
        await books.open()
        await books.accept("waiting")
        await books.accept("sent")
        await books.send("sent")
        server.kill()
        server.start()
        before = await books.keys()
        for refused in (books.reserve(order("o-1")), books.check(order("o-1"))):
            with pytest.raises(LedgerUnavailable, match=r"^RECONCILING"):
                await refused
        assert await books.keys() == before
        # An order from before is known, what ends risk works, and a first answer is repeated.
        assert (await books.reserve(order("sent"))).kind == "REPEATED"
        assert await books.ledger.request_cancel(ACCOUNT, "waiting", "test") == ("CANCELLED", "CANCELLED")
        assert await books.fill("sent", 10, 10_000) == ("APPLIED", "FILLED")
        epoch = await books.ledger.claim(ACCOUNT, "execution")
        with pytest.raises(StaleEpoch):
            await books.ledger.admit(ACCOUNT, books.epoch)
        with pytest.raises(LedgerUnavailable, match=r"^RECONCILING"):
            await books.reserve(order("o-1"))
        await books.ledger.admit(ACCOUNT, epoch)
        await books.accept("o-1")


async def test_each_account_is_admitted_by_itself(server: Server) -> None:
    async with connected(server) as books:
        await books.open()
        await open_second(books)
        server.kill()
        server.start()
        epoch = await books.ledger.claim(SECOND, "execution")
        await books.ledger.admit(SECOND, epoch)
        await books.accept("o-1", account=SECOND)
        with pytest.raises(LedgerUnavailable, match=r"^RECONCILING"):
            await books.reserve(order("o-2"))


async def test_a_server_that_has_forgotten_an_epoch_decides_nothing(books: Books, ledger: Ledger) -> None:
    # What a promoted replica is that never heard of the last claim.
    await books.open()
    await ledger.claim(ACCOUNT, "execution")
    await books.accept("o-1")
    await ledger._direct("HSET", f"{BASE}:state", "epoch", "1")
    before = await books.keys()
    for refused in (books.reserve(order("o-2")), books.check(order("o-2")), books.reserve(order("o-1"))):
        with pytest.raises(LedgerUnavailable, match=r"^STALE_EPOCH"):
            await refused
    assert await books.keys() == before
    await ledger._direct("HSET", f"{BASE}:state", "epoch", "2")
    await books.accept("o-2")
