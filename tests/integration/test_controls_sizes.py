"""How large an order and the position it leads to may be: notional, quantity, fat finger, depth, position."""

from __future__ import annotations

from typing import Any, Final

import pytest

from conf.settings import RedisSettings, Settings
from strategies.model import LEDGER_INTEGER_MAX, OrderStatus
from tests.books import ACCOUNT, BASE, Books, order
from tests.controls import (
    BUY_MARKET,
    SECOND,
    SELL,
    SELL_MARKET,
    Control,
    denies_one_over_and_accepts_at,
    denies_where_the_limit_is_missing,
    leaves_exactly_its_room_to_three_rivals,
    open_second,
    warns_above_the_soft_level,
)
from tests.tampering import set_figure

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


# 10 lots of BTC at 10,000 ticks of 10 micros; bid 9,900 and ask 10,100 ticks; a market buy is valued 1 % above the ask.
SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")
NOTIONAL: Final[dict[str, Any]] = {"code": "NOTIONAL_EXCEEDS_MAX", "unit": "micros", "held": {"BTC-USD": 100}}
LOTS: Final[dict[str, Any]] = {"limit": "product|BTC-USD|max_order_lots", "code": "QTY_EXCEEDS_MAX", "unit": "lots"}
ONE_XRP: Final = {"product_id": "XRP-USD", "lots": 1, "ticks": 333}
"""33.3 micros, which count as 34."""
EARLIER: Final = ({"lots": 5, "ticks": 9_000},)
RECENT: Final = tuple({"lots": lots} for lots in (3, 2, 4, 3, 90))
"""Five orders with the median 3."""
FAT_FINGER: Final[dict[str, Any]] = {"limit": "product|BTC-USD|fat_finger_ppm", "code": "FAT_FINGER", "unit": "ppm"}
DEPTH: Final[dict[str, Any]] = {
    "limit": "product|BTC-USD|max_depth_ppm",
    "code": "FAT_FINGER",
    "unit": "ppm",
    "held": {"BTC-USD": 100},
    "sizes": {"BTC-USD": (30, 70)},
}

ORDERS: list[Control] = [
    *(Control(limit=f"{scope}|max_order_notional", value=1_000_000, **NOTIONAL) for scope in SCOPES),
    *(Control(limit=f"{scope}|max_order_notional", value=990_000, order=SELL_MARKET, **NOTIONAL) for scope in SCOPES),
    Control(limit="account|max_order_notional", value=1_020_100, order=BUY_MARKET, **NOTIONAL),
    Control(limit="account|max_order_notional", value=990_000, order=SELL | {"ticks": 1}, **NOTIONAL),
    Control(limit="account|max_order_notional", value=1_500_000, order=SELL | {"ticks": 15_000}, **NOTIONAL),
    Control(limit="account|max_order_notional", value=1_000_000, before=EARLIER, **NOTIONAL),
    Control(limit="account|max_order_notional", value=34, order=ONE_XRP, **NOTIONAL),
    Control(value=10, **LOTS),
    Control(value=10, order=BUY_MARKET, **LOTS),
    Control(value=10, order=SELL, held={"BTC-USD": 100}, **LOTS),
    Control(value=10, before=EARLIER, **LOTS),
    Control(value=3_333_334, before=RECENT, **FAT_FINGER),
    Control(value=333_334, order={"lots": 1}, before=RECENT, **FAT_FINGER),
    Control(value=3_333_334, order=SELL, before=RECENT, held={"BTC-USD": 100}, **FAT_FINGER),
    Control(value=142_858, order=BUY_MARKET, **DEPTH),
    Control(value=142_858, order={"ticks": 10_100}, **DEPTH),
    Control(value=333_334, order=SELL_MARKET, **DEPTH),
    Control(value=333_334, order=SELL | {"ticks": 9_900}, **DEPTH),
]  # fmt: skip

POSITION: Final[dict[str, Any]] = {"code": "MAX_POSITION", "unit": "lots"}
OPEN: Final = ({"lots": 15}, {"lots": 20, "strategy": "other"}, SELL | {"lots": 5})
"""Buys of 15 and of 20 lots and a sell of 5 that are open already."""
FILLED: Final = ({"lots": 40, "filled": 10_000}, {"lots": 7, "strategy": "other", "filled": 10_000})
HELD: Final = {"BTC-USD": 100}
PRODUCT: Final = "product|BTC-USD|max_position_lots"
STRATEGY: Final = "product|BTC-USD|max_strategy_position_lots"

POSITIONS: list[Control] = [
    Control(limit=PRODUCT, value=10, step=10, **POSITION),
    Control(limit=PRODUCT, value=110, step=10, held=HELD, **POSITION),
    Control(limit=PRODUCT, value=145, step=10, held=HELD, before=OPEN, **POSITION),
    Control(limit=PRODUCT, value=57, step=10, before=FILLED, **POSITION),
    Control(limit=PRODUCT, value=10, order=BUY_MARKET, step=10, **POSITION),
    Control(limit=STRATEGY, value=10, step=10, held=HELD, **POSITION),
    Control(limit=STRATEGY, value=25, step=10, held=HELD, before=OPEN, **POSITION),
    Control(limit=STRATEGY, value=50, step=10, before=FILLED, **POSITION),
    Control(limit=STRATEGY, value=15, order=SELL, step=10, held=HELD, before=OPEN, **POSITION),
    Control(limit=STRATEGY, value=30, order=SELL | {"lots": 70}, before=FILLED, step=70, held=HELD | {"BTC-USD": 900},
            **POSITION),
]  # fmt: skip
ALL: Final = [*ORDERS, *POSITIONS]


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_a_size_at_its_limit_passes_and_one_unit_more_does_not(books: Books, control: Control) -> None:
    await denies_one_over_and_accepts_at(books, control)


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_a_size_above_its_soft_level_passes_with_a_warning(books: Books, control: Control) -> None:
    await warns_above_the_soft_level(books, control)


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_a_size_without_its_limit_denies_and_an_unlimited_one_passes(books: Books, control: Control) -> None:
    await denies_where_the_limit_is_missing(books, control)


@pytest.mark.parametrize("control", POSITIONS, ids=str)
async def test_three_rivals_share_exactly_the_position_there_is_room_for(
    books: Books, settings: Settings, control: Control
) -> None:
    await leaves_exactly_its_room_to_three_rivals(books, settings, control)


# -- by product, by key, by desk ---------------------------------------------------------------------------------------


async def test_a_key_with_a_record_of_its_own_is_held_to_that_and_no_other(books: Books) -> None:
    await books.open(limits={"key|*|max_order_notional": "999999", "key|desk-7|max_order_notional": "1000000"})
    asked = order("o-1")
    assert [d["scope"] for d in (await books.check(asked, "desk-8")).answer["denials"]] == ["key|desk-8"]
    assert (await books.check(asked, "desk-7")).accepted
    await books.limit({"key|*|max_order_notional": "1000000", "key|desk-7|max_order_notional": "999999"})
    assert (await books.check(asked, "desk-8")).accepted
    assert [d["scope"] for d in (await books.check(asked, "desk-7")).answer["denials"]] == ["key|desk-7"]


@pytest.mark.parametrize(
    "passes", [{"product_id": "XRP-USD", "lots": 1_000, "ticks": 50_000}, {"strategy": "other"}], ids=str
)
async def test_a_size_limit_holds_for_its_own_product_and_strategy_only(books: Books, passes: dict[str, Any]) -> None:
    scope = "product|BTC-USD" if "product_id" in passes else "strategy|manual"
    await books.open(limits={f"{scope}|max_order_notional": "1"})
    assert await books.codes("denied") == {("NOTIONAL_EXCEEDS_MAX", scope)}
    await books.accept("passes", **passes)


async def test_the_desks_own_limit_holds_for_every_account(books: Books) -> None:
    await books.open(limits={"global|max_order_notional": "999999"})
    await open_second(books)
    for account in (ACCOUNT, SECOND):
        assert await books.codes(f"of-{account}", account=account) == {("NOTIONAL_EXCEEDS_MAX", "global")}


# -- fat finger --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recent", range(5))
async def test_fewer_than_five_earlier_orders_have_no_median_to_go_by(books: Books, recent: int) -> None:
    await books.open(limits={"product|BTC-USD|fat_finger_ppm": "1000000"})
    for number in range(recent):
        await books.accept(f"before-{number}", lots=1)
    await books.accept("large", lots=1_000)


async def test_only_the_last_fifteen_accepted_orders_make_the_median(books: Books) -> None:
    await books.open(limits={"product|BTC-USD|max_order_lots": "500"})
    for number in range(15):
        await books.accept(f"large-{number}", lots=500)
    for number in range(8):
        assert await books.codes(f"denied-{number}", lots=501)
    for number in range(7):
        await books.accept(f"small-{number}", lots=1)
    limits = {"product|BTC-USD|max_order_lots": "500", "product|BTC-USD|fat_finger_ppm": "2000000"}
    await books.limit(limits)
    # Eight of the last fifteen are of 500 lots; after one more of 1 lot, eight are of 1.
    await books.accept("one-more", lots=1)
    assert await books.codes("over", lots=3) == {("FAT_FINGER", "product|BTC-USD")}
    await books.accept("at", lots=2)


async def test_the_median_is_the_products_own(books: Books) -> None:
    await books.open(limits={"product|BTC-USD|fat_finger_ppm": "2000000"})
    for number in range(5):
        await books.accept(f"small-{number}", lots=1)
    await books.accept("another product", product_id="XRP-USD", lots=100)
    assert await books.codes("o-1", lots=3) == {("FAT_FINGER", "product|BTC-USD")}


async def test_a_size_too_many_times_the_median_to_be_counted_denies(books: Books) -> None:
    await books.open(limits={"product|BTC-USD|fat_finger_ppm": "2000000000000000"})
    for number in range(5):
        await books.accept(f"small-{number}", lots=1)
    assert await books.codes("o-1", lots=3 * 10**9, ticks=1) == {("FAT_FINGER", "product|BTC-USD")}


# -- depth -------------------------------------------------------------------------------------------------------------

RESTING: list[dict[str, Any]] = [{"ticks": 10_099}, SELL | {"ticks": 9_901}]


@pytest.mark.parametrize("resting", RESTING, ids=str)
async def test_an_order_that_takes_nothing_from_the_book_needs_no_depth(books: Books, resting: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"product|BTC-USD|max_depth_ppm": "1"})
    await books.accept("size unknown", **resting)
    await books.quote(sizes={"BTC-USD": (1, 1)})
    await books.accept("size known", **resting)


@pytest.mark.parametrize("taking", [BUY_MARKET, SELL_MARKET, {"ticks": 10_100}, SELL | {"ticks": 9_900}], ids=str)
async def test_a_depth_nobody_knows_denies_what_would_take_from_it(books: Books, taking: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"product|BTC-USD|max_depth_ppm": "1000000"})
    assert await books.codes("unknown", **taking) == {("MISSING_REFERENCE", "product|BTC-USD")}
    await books.quote(sizes={"BTC-USD": (0, 0)})
    assert await books.codes("zero", **taking) == {("MISSING_REFERENCE", "product|BTC-USD")}
    await books.quote(sizes={"BTC-USD": (10, 10)})
    await books.accept("known", **taking)


async def test_a_size_too_many_times_the_depth_to_be_counted_denies(books: Books) -> None:
    await books.open(cash=2 * 10**15, limits={"product|BTC-USD|max_depth_ppm": "2000000000000000"})
    await books.quote({"BTC-USD": (1, 2)}, {"BTC-USD": (1, 1)})
    assert await books.codes("o-1", lots=3 * 10**9, ticks=2) == {("FAT_FINGER", "product|BTC-USD")}


# -- position ----------------------------------------------------------------------------------------------------------


async def test_a_position_above_a_lowered_limit_may_still_be_reduced(books: Books) -> None:
    limits = {"product|BTC-USD|max_position_lots": "10", "product|BTC-USD|max_strategy_position_lots": "10"}
    await books.open()
    await books.accept("opening", lots=100)
    await books.send("opening")
    await books.fill("opening", 100, 10_000)
    await books.limit(limits)
    assert await books.codes("more") == {("MAX_POSITION", "product|BTC-USD")}
    await books.accept("less", **SELL)


async def test_a_position_beyond_what_can_be_counted_is_denied_without_any_limit(books: Books) -> None:
    await books.open()
    await set_figure(books.ledger, BASE, "p|BTC-USD|lots", str(LEDGER_INTEGER_MAX))
    assert ("VALUE_TOO_LARGE", "product|BTC-USD") in await books.codes("o-1")


async def test_cancelled_and_rejected_orders_make_room_again(books: Books) -> None:
    await books.open(limits={"product|BTC-USD|max_position_lots": "10"})
    await books.accept("o-1")
    assert await books.codes("full") == {("MAX_POSITION", "product|BTC-USD")}
    await books.ledger.request_cancel(ACCOUNT, "o-1", "test")
    await books.accept("o-2")
    await books.send("o-2")
    await books.ledger.release(ACCOUNT, books.epoch, "o-2", OrderStatus.REJECTED, "why")
    await books.accept("o-3")
