"""How many orders and messages in how much time: rates, budgets, days, hours, duplicates and clocks."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo

import pytest

from cluster.ledger import Ledger
from conf.settings import RedisSettings, Settings
from conf.trading_hours import calendar
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, BASE, DESK, KEY, Books, Day, order
from tests.controls import (
    ROOM,
    SECOND,
    SELL,
    Control,
    Rows,
    denies_one_over_and_accepts_at,
    denies_where_the_limit_is_missing,
    leaves_exactly_its_room_to_three_rivals,
    open_second,
    race,
    warns_above_the_soft_level,
)
from tests.tampering import figure_of, set_figure

pytestmark = pytest.mark.anyio

HOUR_US: Final = "3600000000"
SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")
FIELDS: Final = {
    "global": (DESK, ""),
    "account": (BASE, "a|"),
    "strategy|manual": (BASE, "s|manual|"),
    "product|BTC-USD": (BASE, "p|BTC-USD|"),
    "key|*": (BASE, f"k|{KEY}|"),
}
"""Where each scope's counters are: the base of the key and the prefix of the field."""


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


def named(scope: str) -> str:
    """The scope as a denial names it."""
    return f"key|{KEY}" if scope == "key|*" else scope


# -- counts of the day -------------------------------------------------------------------------------------------------

ORDERS: Final[dict[str, Any]] = {"code": "DAILY_ORDERS", "unit": "orders", "step": 1, "held": {"BTC-USD": 100}}
EARLIER: Final[Rows] = ({}, {"filled": 10_000}, SELL)
OTHERS: Final[Rows] = ({"strategy": "other"}, {"product_id": "XRP-USD", "lots": 1_000, "ticks": 50_000})
OF_SECOND: Final[Rows] = ({"account": SECOND, "lots": 5, "ticks": 9_000},)
TURNOVER: Final[dict[str, Any]] = {
    "code": "DAILY_TURNOVER",
    "unit": "micros",
    "step": 1_000_000,
    "held": {"BTC-USD": 100},
}
# An order is worth 1,000,000 micros, filled at 9,000 ticks 900,000.
TRADED: Final[Rows] = ({"filled": 9_000}, {"lots": 5, "ticks": 9_000}, SELL)
RATIO: Final[dict[str, Any]] = {"code": "OTR", "unit": "ratio"}

DAYS: list[Control] = [
    *(Control(limit=f"{scope}|max_daily_orders", value=1, **ORDERS) for scope in SCOPES),
    Control(limit="global|max_daily_orders", value=7, before=EARLIER + OTHERS + OF_SECOND, **ORDERS),
    Control(limit="account|max_daily_orders", value=6, before=EARLIER + OTHERS + OF_SECOND, **ORDERS),
    Control(limit="strategy|manual|max_daily_orders", value=5, before=EARLIER + OTHERS, **ORDERS),
    Control(limit="product|BTC-USD|max_daily_orders", value=5, before=EARLIER + OTHERS, **ORDERS),
    Control(limit="key|*|max_daily_orders", value=6, before=EARLIER + OTHERS, **ORDERS),
    *(Control(limit=f"{scope}|max_daily_turnover", value=1_000_000, **TURNOVER) for scope in SCOPES),
    Control(limit="global|max_daily_turnover", value=9_800_000, before=TRADED + OTHERS + OF_SECOND, **TURNOVER),
    Control(limit="account|max_daily_turnover", value=9_350_000, before=TRADED + OTHERS + OF_SECOND, **TURNOVER),
    Control(limit="strategy|manual|max_daily_turnover", value=8_350_000, before=TRADED + OTHERS, **TURNOVER),
    Control(limit="product|BTC-USD|max_daily_turnover", value=4_350_000, before=TRADED + OTHERS, **TURNOVER),
    Control(limit="key|*|max_daily_turnover", value=9_350_000, before=TRADED + OTHERS, **TURNOVER),
    # Messages for each fill, where nothing was filled for one fill.
    *(
        row
        for limit in ("account|max_order_to_trade", "strategy|manual|max_order_to_trade")
        for row in (
            Control(limit=limit, value=1, step=1, **RATIO),
            Control(limit=limit, value=3, before=({}, {}), step=1, **RATIO),
            Control(limit=limit, value=3, before=({"filled": 10_000}, {"filled": 10_000}, {}, {}), **RATIO),
        )
    ),
    Control(limit="strategy|manual|max_order_to_trade", value=3, before=({}, {}, OTHERS[0]), step=1, **RATIO),
]  # fmt: skip


@pytest.mark.parametrize("control", DAYS, ids=str)
async def test_a_count_at_its_limit_passes_and_one_more_does_not(books: Books, control: Control) -> None:
    await denies_one_over_and_accepts_at(books, control)


@pytest.mark.parametrize("control", DAYS, ids=str)
async def test_a_count_above_its_soft_level_passes_with_a_warning(books: Books, control: Control) -> None:
    await warns_above_the_soft_level(books, control)


@pytest.mark.parametrize("control", DAYS, ids=str)
async def test_a_count_without_its_limit_denies_and_an_unlimited_one_passes(books: Books, control: Control) -> None:
    await denies_where_the_limit_is_missing(books, control)


@pytest.mark.parametrize("control", [control for control in DAYS if control.step], ids=str)
async def test_three_rivals_share_exactly_what_is_left_of_the_day(
    books: Books, settings: Settings, control: Control
) -> None:
    await leaves_exactly_its_room_to_three_rivals(books, settings, control)


async def test_denied_orders_count_for_no_day_and_cancelled_ones_do(books: Books) -> None:
    await books.open(limits={"account|max_order_notional": "1000000"})
    for number in range(5):
        assert await books.codes(f"denied-{number}", ticks=10_001) == {("NOTIONAL_EXCEEDS_MAX", "account")}
    await books.accept("o-1")
    await books.ledger.request_cancel(ACCOUNT, "o-1", "test")
    day = await books.day()
    assert (day.orders, day.turnover, day.messages, day.fills) == (1, 0, 1, 0)


async def test_a_cancelled_order_is_no_turnover_and_a_filled_part_is(books: Books) -> None:
    await books.open(limits={"account|max_daily_turnover": "1600000"})
    await books.accept("o-1")
    await books.send("o-1")
    await books.fill("o-1", 4, 9_000)
    # 360,000 filled and six lots open, worth 600,000.
    assert await books.codes("over", lots=7) == {("DAILY_TURNOVER", "account")}
    await books.ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.CANCELLED, "why")
    await books.accept("at", lots=12)
    assert (await books.day()).turnover == 360_000


async def test_a_cancel_sent_to_the_venue_is_a_message_and_one_before_it_is_none(books: Books) -> None:
    await books.open(limits={"account|max_order_to_trade": "4", "strategy|manual|max_order_to_trade": "4"})
    await books.accept("sent")
    await books.send("sent")
    await books.accept("waiting")
    for name in ("sent", "sent", "waiting"):
        await books.ledger.request_cancel(ACCOUNT, name, "test")
    assert (await books.day()).messages == 3
    assert (await books.day("s|manual")).messages == 3
    await books.accept("o-3")
    assert await books.codes("o-4") == {("OTR", "account"), ("OTR", "strategy|manual")}
    # Up to one fill the ratio is to one; a second makes room for as many messages again.
    for _ in range(2):
        await books.fill("sent", 1, 10_000)
    await books.accept("o-5")


# -- the day rolls -----------------------------------------------------------------------------------------------------


async def today(books: Books) -> int:
    """The number of the day in UTC by the server's clock."""
    return (await books.ledger.snapshot(ACCOUNT)).now_ms // 86_400_000


YESTERDAY: Final = [
    ("max_daily_orders", "DAILY_ORDERS", "5"),
    ("max_daily_turnover", "DAILY_TURNOVER", "1000000"),
]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("name", "code", "limit"), YESTERDAY)
async def test_a_new_day_begins_with_nothing_used_up(
    books: Books, scope: str, name: str, code: str, limit: str
) -> None:
    await books.open(limits={f"{scope}|{name}": limit})
    base, prefix = FIELDS[scope]
    day = await today(books)
    await set_figure(books.ledger, base, f"{prefix}day", f"{day} 5 1000000 0 5 5")
    assert await books.codes("today") == {(code, named(scope))}
    await set_figure(books.ledger, base, f"{prefix}day", f"{day - 1} 5 1000000 0 5 5")
    await books.accept("yesterday")
    packed = await figure_of(books.ledger, base, f"{prefix}day")
    assert Day(*map(int, packed.split())) == Day(day, 1, 0, 0, 1, 0)


async def test_what_was_lost_yesterday_is_no_loss_of_today(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"account|max_daily_loss": "1000000"})
    day = await today(books)
    # The day before began 900,000 above where it ended.
    pnl = int((await books.ledger.snapshot(ACCOUNT)).book["a|pnl"])
    await set_figure(books.ledger, BASE, "a|day", f"{day - 1} 0 0 {pnl + 900_000} 0 0")
    await books.quote({"BTC-USD": (9_400, 9_600)})
    assert await books.causes() == {}
    assert (await books.day()).pnl_start == pnl
    await books.quote({"BTC-USD": (8_900, 9_100)})
    assert await books.causes() == {"account": "DAILY_LOSS"}


async def test_an_order_that_rests_over_midnight_counts_for_the_day_it_is_filled_on(books: Books) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    day = await today(books)
    await set_figure(books.ledger, BASE, "a|day", f"{day - 1} 1 0 0 1 0")
    await books.fill("o-1", 10, 10_000)
    found = await books.day()
    assert (found.day, found.orders, found.turnover, found.messages, found.fills) == (day, 0, 1_000_000, 0, 1)


ZONES: Final = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Tokyo")
BASE_LUA: Final = Path(__file__).resolve().parents[2] / "cluster" / "ledger_base.lua"


def moments(zone: str) -> list[dt.datetime]:
    """The turns of the days and minutes around the changes of clocks in 2026 and 2027, to the second."""
    found = []
    for text in ("2026-03-08", "2026-03-29", "2026-04-05", "2026-10-04", "2026-10-25", "2026-11-01", "2027-03-28"):
        start = dt.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))
        for hours in (-24, 0, 1, 2, 3, 23, 24, 25, 48):
            moment = start.astimezone(dt.UTC) + dt.timedelta(hours=hours)
            found += [moment - dt.timedelta(seconds=1), moment, moment + dt.timedelta(seconds=1)]
    return found


@pytest.mark.parametrize("zone", ZONES)
async def test_days_and_minutes_of_the_week_are_those_of_the_desks_clock(ledger: Ledger, zone: str) -> None:
    """The ledger's own lines, given any time: days of 23 and 25 hours begin and end where a clock on the wall says."""
    source = re.sub(r"\A#![^\n]*", "", BASE_LUA.read_text())
    probe = (
        source
        + """
    local found = {}
    for i = 2, #ARGV do
      local us = tonumber(ARGV[i]) * 1000000
      found[#found + 1] = text(day_number(us, ARGV[1])) .. ' ' .. text(minute_of_week(us, ARGV[1]))
    end
    return found
    """
    )
    asked = moments(zone)
    record = calendar(zone, asked[0])
    answers = await ledger._direct("EVAL", probe, "0", record, *(str(int(m.timestamp())) for m in asked))
    epoch = dt.date(1970, 1, 1)
    for moment, answer in zip(asked, answers, strict=True):
        local = moment.astimezone(ZoneInfo(zone))
        minute = local.weekday() * 1440 + local.hour * 60 + local.minute
        assert answer == f"{(local.date() - epoch).days} {minute}", moment


async def set_local_time(books: Books, minute: int, second: int = 10) -> None:
    """A desk's zone in which it is this minute and second of the week now (Monday 00:00 = 0)."""
    now_s = (await books.ledger.snapshot(ACCOUNT)).now_ms // 1000
    wanted = (minute * 60 + second) - (now_s + 3 * 86_400) % 604_800
    for base in (BASE, DESK):
        await books.ledger._direct("HSET", f"{base}:limits", "calendar", f"Somewhere/Else {wanted}")


async def test_the_day_of_the_desks_zone_counts_not_that_of_utc(books: Books) -> None:
    await books.open(limits={"account|max_daily_orders": "1"})
    await set_local_time(books, 1439)
    await books.accept("monday")
    assert await books.codes("still-monday") == {("DAILY_ORDERS", "account")}
    day = (await books.day()).day
    await set_local_time(books, 1440)
    await books.accept("tuesday")
    assert (await books.day()).day == day + 1
    assert (await books.day(account=None)).day == day + 1


async def test_a_change_of_clocks_that_is_past_counts_and_one_to_come_does_not(books: Books) -> None:
    await books.open()
    now_s = (await books.ledger.snapshot(ACCOUNT)).now_ms // 1000
    midnight = 86_400 - now_s % 86_400
    day = now_s // 86_400
    # Offsets before midnight and behind it, and the second the one gives way to the other.
    table = [(now_s + 600, day), (now_s - 600, day + 1), (now_s, day + 1)]
    for number, (until, expected) in enumerate(table):
        await books.ledger._direct("HSET", f"{BASE}:limits", "calendar", f"X {midnight - 90} {until} {midnight + 90}")
        await books.accept(f"o-{number}")
        assert (await books.day()).day == expected, number


# -- hours -------------------------------------------------------------------------------------------------------------

NINE, FIVE, DAY, WEEK = 540, 1_020, 1_440, 10_080
HOURS: list[tuple[str, int, int, bool]] = [
    # hours, minute of the week, second, whether the market is open
    ("always", 0, 0, True),
    (f"{NINE}-{FIVE}", NINE - 1, 30, False),
    (f"{NINE}-{FIVE}", NINE, 0, True),
    (f"{NINE}-{FIVE}", FIVE - 1, 30, True),
    (f"{NINE}-{FIVE}", FIVE, 0, False),
    (f"{NINE}-{FIVE},{NINE + DAY}-{FIVE + DAY}", NINE + DAY, 0, True),
    (f"{NINE}-{FIVE},{NINE + DAY}-{FIVE + DAY}", NINE + DAY - 1, 30, False),
    (f"{WEEK - 60}-{WEEK}", WEEK - 1, 30, True),
    (f"{WEEK - 60}-{WEEK}", 0, 0, False),
    (f"0-60,{WEEK - 60}-{WEEK}", 0, 0, True),
]


@pytest.mark.parametrize("scope", ["strategy|manual", "product|BTC-USD"])
@pytest.mark.parametrize(("hours", "minute", "second", "open_now"), HOURS)
async def test_orders_pass_within_their_hours_and_exits_at_any_time(
    books: Books, scope: str, hours: str, minute: int, second: int, open_now: bool
) -> None:
    await books.open(lots={"BTC-USD": 500})
    await books.accept("opening", strategy="manual")
    await books.send("opening")
    await books.fill("opening", 10, 10_000)
    await books.limit({f"{scope}|hours": hours})
    await set_local_time(books, minute, second)
    found = await books.codes("entry", lots=1)
    assert found == (set() if open_now else {("MARKET_CLOSED", scope)})
    await books.accept("exit", **SELL)


async def test_at_a_strategys_hours_an_exit_is_one_from_its_own_position(books: Books) -> None:
    await books.open(lots={"BTC-USD": 500}, limits={"strategy|manual|hours": "0-1"})
    await set_local_time(books, 2)
    assert await books.codes("nobodys", **SELL) == {("MARKET_CLOSED", "strategy|manual")}
    await books.accept("others", **SELL, strategy="other")


@pytest.mark.parametrize("scope", ["strategy|manual", "product|BTC-USD"])
async def test_missing_hours_deny(books: Books, scope: str) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit=f"{scope}|hours", value=0, code="", unit=""))


async def test_hours_nobody_can_read_are_closed(books: Books) -> None:
    await books.open()
    record = await books.ledger._direct("HGET", f"{BASE}:limits", "product|BTC-USD")
    for hours in ("", "open", "1020-540", "-", "540", "mon-fri"):
        broken = record.replace("hours=always", f"hours={hours}")
        await books.ledger._direct("HSET", f"{BASE}:limits", "product|BTC-USD", broken)
        assert {code for code, _ in await books.codes(f"o-{hours}".strip("-"))} <= {"MARKET_CLOSED", "MISSING_LIMIT"}
        assert await books.codes(f"again-{hours}".strip("-"))


# -- order rates -------------------------------------------------------------------------------------------------------


def rate(scope: str, interval_us: str, burst: int) -> dict[str, str]:
    return {f"{scope}|order_interval_us": interval_us, f"{scope}|order_burst": str(burst)}


def rules(denials: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(denial["code"], denial["scope"]) for denial in denials]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_burst_is_let_through_and_the_next_order_is_not(books: Books, scope: str) -> None:
    await books.open(limits=rate(scope, HOUR_US, 3))
    for number in range(3):
        await books.accept(f"o-{number}")
    (denial,) = await books.denials("o-3")
    expected = ("RATE_LIMIT", named(scope), "0", "ms")
    assert (denial["code"], denial["scope"], denial["limit"], denial["unit"]) == expected
    assert 3_590_000 < int(denial["value"]) <= 3_600_000


@pytest.mark.parametrize("scope", SCOPES)
async def test_three_rivals_share_exactly_one_burst(books: Books, settings: Settings, scope: str) -> None:
    await books.open(limits=rate(scope, HOUR_US, ROOM))
    assert set(rules(await race(books, settings, {}))) == {("RATE_LIMIT", named(scope))}
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0


@pytest.mark.parametrize(
    ("scope", "passes"),
    [("strategy|manual", {"strategy": "other"}), ("product|BTC-USD", {"product_id": "XRP-USD"})],
)
async def test_a_rate_counts_for_its_own_scope_only(books: Books, scope: str, passes: dict[str, Any]) -> None:
    await books.open(limits=rate(scope, HOUR_US, 1))
    await books.accept("o-1")
    assert await books.codes("o-2") == {("RATE_LIMIT", scope)}
    await books.accept("o-3", **passes)


async def test_a_key_uses_up_its_own_rate_only(books: Books) -> None:
    await books.open(limits=rate("key|*", HOUR_US, 1))
    assert (await books.reserve(order("o-1"), "alice")).accepted
    assert not (await books.reserve(order("o-2"), "alice")).accepted
    assert (await books.reserve(order("o-3"), "bob")).accepted


async def test_two_accounts_share_the_desks_rate(books: Books) -> None:
    await books.open(limits=rate("global", HOUR_US, 2))
    await open_second(books)
    await books.accept("o-1")
    await books.accept("o-2", account=SECOND)
    for account in (ACCOUNT, SECOND):
        assert await books.codes(f"o-{account}", account=account) == {("RATE_LIMIT", "global")}


async def test_every_rate_that_is_broken_is_named(books: Books) -> None:
    await books.open(limits={k: v for scope in SCOPES for k, v in rate(scope, HOUR_US, 1).items()})
    await books.accept("o-1")
    assert await books.codes("o-2") == {("RATE_LIMIT", named(scope)) for scope in SCOPES}


async def test_an_order_comes_through_as_soon_as_its_interval_has_passed(books: Books) -> None:
    await books.open(limits=rate("account", "1000", 1))
    for number in range(3):
        while await books.denials(f"o-{number}"):
            pass


@pytest.mark.parametrize("code", ["RATE_LIMIT", "MSG_RATE"])
async def test_an_order_denied_for_its_rate_is_not_kept(books: Books, code: str) -> None:
    one = rate("account", HOUR_US, 1) if code == "RATE_LIMIT" else MESSAGES | {"account|message_burst": "1"}
    await books.open(limits=one)
    await books.accept("o-1")
    entries = await books.audit()
    assert await books.codes("o-2") == {(code, "account")}
    assert await books.codes("o-2", lots=11) == {(code, "account")}
    assert (await books.status("o-2"), await books.audit()) == (None, entries)
    await books.limit({})
    await books.accept("o-2", lots=12)
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0


async def test_a_denied_order_uses_up_no_rate_anywhere(books: Books) -> None:
    limits = {k: v for scope in SCOPES for k, v in rate(scope, HOUR_US, 1).items()}
    limits |= MESSAGES | {"account|message_burst": "1", "account|max_order_notional": "1000000"}
    await books.open(limits=limits)
    for number in range(5):
        assert await books.codes(f"over-{number}", ticks=10_001) == {("NOTIONAL_EXCEEDS_MAX", "account")}
    await books.accept("at")
    # And with the budget gone, a broken limit is still what is named: the rate comes last.
    assert await books.codes("late", ticks=10_001) == {("NOTIONAL_EXCEEDS_MAX", "account")}


async def test_an_order_denied_for_one_rate_uses_up_no_other(books: Books) -> None:
    await books.open(limits=rate("account", HOUR_US, 2) | rate("strategy|manual", HOUR_US, 1))
    await books.accept("o-1")
    for number in range(5):
        assert await books.codes(f"denied-{number}") == {("RATE_LIMIT", "strategy|manual")}
    await books.accept("o-2", strategy="other")


async def test_a_repeated_id_uses_up_no_rate(books: Books) -> None:
    await books.open(limits=rate("account", HOUR_US, 2))
    for _ in range(5):
        assert (await books.reserve(order("o-1"))).accepted
    await books.accept("o-2")


async def test_a_check_uses_up_no_rate(books: Books) -> None:
    await books.open(limits=rate("account", HOUR_US, 1) | MESSAGES | {"account|message_burst": "1"})
    for _ in range(5):
        assert (await books.check(order("o-1"))).accepted
    await books.accept("o-1")
    assert rules((await books.check(order("o-2"))).answer["denials"]) == [
        ("RATE_LIMIT", "account"),
        ("MSG_RATE", "account"),
    ]


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_clock_that_was_set_back_does_not_lock_for_long(books: Books, scope: str) -> None:
    await books.open(limits=rate(scope, "1000000", 10))
    # What an order left behind before the server's clock was set back by 100 days.
    base, prefix = FIELDS[scope]
    ahead = ((await books.ledger.snapshot(ACCOUNT)).now_ms + 100 * 86_400_000) * 1_000
    await set_figure(books.ledger, base, f"{prefix}tat", str(ahead))
    (denial,) = await books.denials("o-1")
    assert (denial["code"], denial["scope"], int(denial["value"])) == ("RATE_LIMIT", named(scope), 1_000)


@pytest.mark.parametrize("name", ["order_interval_us", "order_burst"])
@pytest.mark.parametrize("scope", SCOPES)
async def test_a_missing_rate_denies(books: Books, scope: str, name: str) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit=f"{scope}|{name}", value=0, code="", unit=""))


# -- messages ----------------------------------------------------------------------------------------------------------

MESSAGES: Final = {
    "account|message_interval_us": HOUR_US,
    "account|message_burst": "10",
    "account|cancel_reserve": "0",
}


@pytest.mark.parametrize(("reserve", "passing"), [(0, 10), (1, 9), (4, 6), (9, 1)])
async def test_orders_may_use_the_message_budget_down_to_what_is_kept_for_cancels(
    books: Books, reserve: int, passing: int
) -> None:
    await books.open(limits=MESSAGES | {"account|cancel_reserve": str(reserve)})
    for number in range(passing):
        await books.accept(f"o-{number}")
    (denial,) = await books.denials("one-more")
    assert (denial["code"], denial["scope"], denial["unit"]) == ("MSG_RATE", "account", "ms")
    assert 3_590_000 < int(denial["value"]) <= 3_600_000


async def test_cancels_use_up_the_budget_and_are_never_refused(books: Books) -> None:
    await books.open(limits=MESSAGES)
    for number in range(5):
        await books.accept(f"o-{number}")
        await books.send(f"o-{number}")
    for number in range(5):
        assert await books.ledger.request_cancel(ACCOUNT, f"o-{number}", "test") == ("SENT", "REQUESTED")
    assert await books.codes("late") == {("MSG_RATE", "account")}


async def test_cancels_pass_in_a_flood_of_orders(books: Books) -> None:
    await books.open(limits=MESSAGES | rate("account", HOUR_US, 20) | {"account|message_burst": "20"})
    for number in range(20):
        await books.accept(f"o-{number}")
        await books.send(f"o-{number}")
    flood = [asyncio.create_task(books.reserve(order(f"flood-{number}"))) for number in range(200)]
    cancels = [books.ledger.request_cancel(ACCOUNT, f"o-{number}", "test") for number in range(20)]
    assert await asyncio.gather(*cancels) == [("SENT", "REQUESTED")] * 20
    denied = await asyncio.gather(*flood)
    assert {code for v in denied for code, _ in rules(v.answer["denials"])} == {"RATE_LIMIT", "MSG_RATE"}
    assert [entry for entry in await books.outbox() if entry[0] == "CANCEL"] == [
        ("CANCEL", f"o-{n}") for n in range(20)
    ]


@pytest.mark.parametrize("state", [TradingState.HALTED, TradingState.REDUCING])
@pytest.mark.parametrize("scope", ["global", "account", "strategy|manual", "product|BTC-USD"])
async def test_cancels_pass_under_a_halt_at_any_scope(books: Books, scope: str, state: TradingState) -> None:
    await books.open(limits=MESSAGES | {"account|message_burst": "2"})
    await books.accept("sent")
    await books.send("sent")
    await books.accept("waiting")
    await books.halt(scope, state)
    assert await books.ledger.request_cancel(ACCOUNT, "sent", "test") == ("SENT", "REQUESTED")
    assert await books.ledger.request_cancel(ACCOUNT, "waiting", "test") == ("CANCELLED", "CANCELLED")


async def test_three_rivals_share_exactly_the_message_budget(books: Books, settings: Settings) -> None:
    await books.open(limits=MESSAGES | {"account|message_burst": str(ROOM + 3), "account|cancel_reserve": "3"})
    assert set(rules(await race(books, settings, {}))) == {("MSG_RATE", "account")}


async def test_the_message_budget_comes_back_with_time(books: Books) -> None:
    limits = {"account|message_interval_us": "1000", "account|message_burst": "2", "account|cancel_reserve": "1"}
    await books.open(limits=limits)
    for number in range(3):
        while await books.denials(f"o-{number}"):
            pass


@pytest.mark.parametrize("name", ["message_interval_us", "message_burst", "cancel_reserve"])
async def test_a_missing_message_limit_denies(books: Books, name: str) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit=f"account|{name}", value=0, code="", unit=""))


# -- duplicates --------------------------------------------------------------------------------------------------------

MINUTE_MS: Final = "60000"
ANOTHER: list[dict[str, Any]] = [
    {"lots": 11},
    {"ticks": 9_999},
    {"side": Side.SELL},
    {"strategy": "other"},
    {"product_id": "XRP-USD"},
    {"ticks": None},
]


@pytest.mark.parametrize("scope", ["account", "strategy|manual"])
async def test_the_same_order_under_another_id_within_the_window_is_a_duplicate(books: Books, scope: str) -> None:
    await books.open(limits={f"{scope}|duplicate_window_ms": MINUTE_MS})
    await books.accept("o-1")
    (denial,) = await books.denials("o-2")
    assert (denial["code"], denial["limit"], denial["unit"]) == ("DUPLICATE_ORDER", MINUTE_MS, "ms")
    assert 0 <= int(denial["value"]) < 60_000
    # The first id again is no duplicate but the same order.
    assert (await books.reserve(order("o-1"))).kind == "REPEATED"


@pytest.mark.parametrize("changed", ANOTHER, ids=str)
async def test_an_order_that_differs_in_anything_is_no_duplicate(books: Books, changed: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"account|duplicate_window_ms": MINUTE_MS})
    await books.accept("o-1")
    await books.accept("o-2", **changed)


async def test_a_number_written_otherwise_is_a_duplicate_all_the_same(books: Books) -> None:
    await books.open(limits={"account|duplicate_window_ms": MINUTE_MS})
    await books.accept("o-1")
    asked = replace(order("o-2"), quantity=Decimal("0.0100"), limit_price=Decimal("100.000"))
    assert rules((await books.reserve(asked)).answer["denials"]) == [("DUPLICATE_ORDER", "strategy|manual")]


async def test_after_the_window_the_same_order_may_come_again(books: Books) -> None:
    await books.open(limits={"account|duplicate_window_ms": "30"})
    await books.accept("o-0")
    started = time.monotonic()
    tries = 1
    while await books.denials(f"o-{tries}"):
        tries += 1
    assert tries > 1 or time.monotonic() - started > 0.02


async def test_the_longer_of_two_windows_counts(books: Books) -> None:
    limits = {"account|duplicate_window_ms": "1", "strategy|manual|duplicate_window_ms": MINUTE_MS}
    await books.open(limits=limits)
    await books.accept("o-1")
    now_ms = (await books.ledger.snapshot(ACCOUNT)).now_ms
    while (await books.ledger.snapshot(ACCOUNT)).now_ms < now_ms + 3:
        pass
    assert {code for code, _ in await books.codes("o-2")} == {"DUPLICATE_ORDER"}


async def test_a_denied_order_makes_no_other_a_duplicate(books: Books) -> None:
    await books.open(limits={"account|duplicate_window_ms": MINUTE_MS, "account|max_open_orders": "0"})
    assert await books.codes("o-1") == {("MAX_OPEN_ORDERS", "account")}
    await books.limit({"account|duplicate_window_ms": MINUTE_MS})
    await books.accept("o-2")


async def test_of_the_same_order_from_three_rivals_one_is_taken(books: Books, settings: Settings) -> None:
    await books.open(limits={"account|duplicate_window_ms": MINUTE_MS})
    denied = await race(books, settings, {}, room=1)
    assert {denial["code"] for denial in denied} == {"DUPLICATE_ORDER"}


@pytest.mark.parametrize("scope", ["account", "strategy|manual"])
async def test_a_missing_duplicate_window_denies(books: Books, scope: str) -> None:
    control = Control(limit=f"{scope}|duplicate_window_ms", value=0, code="", unit="")
    await denies_where_the_limit_is_missing(books, control)


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off_s", [-10, 10], ids=["behind", "ahead"])
async def test_an_order_from_a_clock_that_differs_too_much_is_denied_and_not_kept(
    books: Books, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    await books.open(limits={"account|max_clock_skew_ms": "5000"})
    await books.accept("o-1")
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + off_s * 10**9)
    (denial,) = await books.denials("o-2")
    assert (denial["code"], denial["scope"], denial["limit"], denial["unit"]) == ("CLOCK_SKEW", "account", "5000", "ms")
    assert 9_000 < int(denial["value"]) < 11_000
    assert await books.status("o-2") is None
    monkeypatch.undo()
    await books.accept("o-2")


async def test_a_missing_clock_skew_denies(books: Books) -> None:
    await denies_where_the_limit_is_missing(
        books, Control(limit="account|max_clock_skew_ms", value=0, code="", unit="")
    )
