"""Prices an order may have and prices it may be judged by: collar, spread, staleness, volatility, self-trade, lists."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from cluster.ledger import LedgerError
from conf.settings import RedisSettings, Settings
from strategies.model import OrderStatus, Side, TimeInForce
from tests.books import ACCOUNT, BASE, BTC, KEY, Books, order
from tests.controls import (
    BUY,
    BUY_MARKET,
    SELL,
    SELL_MARKET,
    Control,
    asks_the_same_twice,
    denies_one_over_and_accepts_at,
    denies_where_the_limit_is_missing,
    rivals,
    warns_above_the_soft_level,
)

pytestmark = pytest.mark.anyio

PRODUCT: Final = "product|BTC-USD"
HELD: Final = {"BTC-USD": 100}
SIDES: Final = [BUY, SELL, BUY_MARKET, SELL_MARKET]
SIDE_NAMES: Final = ["buy", "sell", "market buy", "market sell"]


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


# -- collar and spread -------------------------------------------------------------------------------------------------

# Bid 9,900 and ask 10,100 ticks: the middle is 10,000, the spread 2 % of it.
COLLAR: Final[dict[str, Any]] = {
    "limit": f"{PRODUCT}|collar_ppm",
    "code": "PRICE_COLLAR",
    "unit": "ppm",
    "held": HELD,
}
SPREAD: Final[dict[str, Any]] = {
    "limit": f"{PRODUCT}|max_spread_ppm",
    "code": "BAD_BOOK",
    "unit": "ppm",
    "held": HELD,
}
PRICES: list[Control] = [
    Control(value=5_000, order={"ticks": 10_050}, **COLLAR),
    Control(value=100, order={"ticks": 10_001}, **COLLAR),
    Control(value=100_000, order={"ticks": 9_000}, **COLLAR),
    Control(value=5_000, order=SELL | {"ticks": 9_950}, **COLLAR),
    Control(value=1_000_000, order=SELL | {"ticks": 20_000}, **COLLAR),
    Control(value=10_000, order=BUY_MARKET, **COLLAR),
    Control(value=10_000, order=SELL_MARKET, **COLLAR),
    Control(value=20_000, **SPREAD),
    Control(value=20_000, order=BUY_MARKET, **SPREAD),
    Control(value=20_000, order=SELL_MARKET, **SPREAD),
]


@pytest.mark.parametrize("control", PRICES, ids=str)
async def test_a_price_at_its_limit_passes_and_one_unit_further_does_not(books: Books, control: Control) -> None:
    await denies_one_over_and_accepts_at(books, control)


@pytest.mark.parametrize("control", PRICES, ids=str)
async def test_a_price_beyond_its_soft_level_passes_with_a_warning(books: Books, control: Control) -> None:
    await warns_above_the_soft_level(books, control)


@pytest.mark.parametrize("control", PRICES, ids=str)
async def test_a_price_without_its_limit_denies_and_an_unlimited_one_passes(books: Books, control: Control) -> None:
    await denies_where_the_limit_is_missing(books, control)


FRACTIONS: list[tuple[tuple[int, int], int, int]] = [
    # bid and ask, limit price, distance from the middle in parts per million rounded up
    ((9_900, 10_101), 10_001, 50),
    ((2, 4), 3, 0),
    ((2, 5), 3, 142_858),
    ((1, 2), 1, 333_334),
    ((1, 2), 2, 333_334),
]


@pytest.mark.parametrize(("quote", "ticks", "distance"), FRACTIONS)
async def test_a_part_of_a_millionth_from_the_middle_counts_as_one(
    books: Books, quote: tuple[int, int], ticks: int, distance: int
) -> None:
    await books.open()
    await books.quote({"BTC-USD": quote})
    if distance:
        await books.limit({f"{PRODUCT}|collar_ppm": str(distance - 1)})
        (denial,) = await books.denials("over", ticks=ticks)
        assert (denial["code"], denial["value"]) == ("PRICE_COLLAR", str(distance))
    await books.limit({f"{PRODUCT}|collar_ppm": str(distance)})
    await books.accept("at", ticks=ticks)


async def test_a_price_too_far_away_to_be_counted_denies(books: Books) -> None:
    await books.open(cash=2 * 10**15, limits={f"{PRODUCT}|collar_ppm": "2000000000000000"})
    await books.quote({"BTC-USD": (1, 2)})
    assert await books.codes("o-1", lots=1, ticks=5 * 10**9) == {("PRICE_COLLAR", PRODUCT)}


# -- a book that makes no sense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_a_locked_market_denies(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots=HELD)
    await books.quote({"BTC-USD": (10_000, 10_000)})
    answer = await asks_the_same_twice_of(books, side)
    assert [(d["code"], d["scope"]) for d in answer["denials"]] == [("BAD_BOOK", PRODUCT)]
    # Locked is not crossed: no latch, and a market that opens again is traded again.
    assert await books.causes() == {}
    await books.quote()
    await books.accept("after", **side)


async def asks_the_same_twice_of(books: Books, changed: dict[str, Any]) -> dict[str, Any]:
    return await asks_the_same_twice(books, Control(limit="", value=0, code="", unit="", order=changed), "o-1")


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_a_crossed_market_halts_its_product_until_a_person_resumes(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots=HELD)
    await books.quote({"BTC-USD": (10_001, 10_000)})
    assert await books.causes() == {PRODUCT: "BAD_BOOK"}
    assert ("BAD_BOOK", PRODUCT) in await books.codes("crossed", **side)
    await books.quote()
    assert await books.codes("uncrossed", **side) == {("BAD_BOOK", PRODUCT)}
    await books.accept("another-product", product_id="XRP-USD")
    await books.resume(PRODUCT)
    await books.accept("resumed", **side)


# -- a price that is missing or old ------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_without_a_reference_price_nothing_passes(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots=HELD)
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    answer = await asks_the_same_twice_of(books, side)
    assert [(d["code"], d["scope"]) for d in answer["denials"]] == [("MISSING_REFERENCE", PRODUCT)]


async def aged(books: Books, product: str, age_ms: int) -> None:
    """Make a reference price ``age_ms`` older."""
    packed = (await books.ledger.snapshot(ACCOUNT)).reference[product].split()
    packed[2] = str(int(packed[2]) - age_ms)
    await books.ledger._direct("HSET", f"{BASE}:reference", product, " ".join(packed))


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_a_stale_reference_price_denies_with_its_age(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots=HELD, limits={"account|reference_stale_ms": "1000000"})
    await aged(books, "BTC-USD", 900_000)
    await books.accept("young-enough", **side)
    await aged(books, "BTC-USD", 100_000)
    (denial,) = await books.denials("too-old", **side)
    assert (denial["code"], denial["scope"], denial["limit"], denial["unit"]) == (
        "STALE_REFERENCE",
        PRODUCT,
        "1000000",
        "ms",
    )
    assert 1_000_000 < int(denial["value"]) < 1_100_000
    await books.quote()
    await books.accept("fresh", **side)


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_a_reference_from_the_future_does_not_stay_fresh_for_ever(books: Books, side: dict[str, Any]) -> None:
    # The server's clock was set back by ten days after the price came in.
    await books.open(lots=HELD, limits={"account|reference_stale_ms": "1000"})
    await aged(books, "BTC-USD", -864_000_000)
    assert await books.codes("o-1", **side) == {("STALE_REFERENCE", PRODUCT)}


@pytest.mark.parametrize("text", ["", "nan", "9900 10100", "9900 10100 x 10 1 0 0 0 0 0", "a b c d e f g h i j"])
async def test_a_damaged_reference_price_lets_nothing_pass(books: Books, text: str) -> None:
    await books.open()
    await books.ledger._direct("HSET", f"{BASE}:reference", "BTC-USD", text)
    before = await books.keys()
    try:
        denials = await books.denials("o-1")
    except LedgerError:
        assert await books.keys() == before
    else:
        assert denials


# -- volatility --------------------------------------------------------------------------------------------------------

VOLATILE: Final = {
    f"{PRODUCT}|volatility_ppm": "50000",
    f"{PRODUCT}|volatility_window_ms": "60000",
    f"{PRODUCT}|volatility_halt_ms": "60000",
}
MOVES: list[tuple[str, list[tuple[int, int]], bool]] = [
    # what, quotes after a middle of 10,000, whether it is a move of more than 5 %
    ("up by as much as is allowed", [(10_400, 10_600)], False),
    ("up by one tick more", [(10_400, 10_602)], True),
    ("down by as much as is allowed", [(9_400, 9_600)], False),
    ("down by one tick more", [(9_398, 9_600)], True),
    ("in two steps", [(10_200, 10_400), (10_400, 10_602)], True),
    ("and back again", [(10_700, 10_900), (9_900, 10_100)], True),
]


@pytest.mark.parametrize(("what", "quotes", "halted"), MOVES, ids=[row[0] for row in MOVES])
async def test_a_price_that_moves_too_fast_lets_only_reducing_orders_pass(
    books: Books, what: str, quotes: list[tuple[int, int]], halted: bool
) -> None:
    await books.open(lots=HELD, limits=VOLATILE)
    for quote in quotes:
        await books.quote({"BTC-USD": quote})
    expected = {("VOLATILITY_HALT", PRODUCT)} if halted else set()
    assert await books.codes("buy") == expected
    assert await books.codes("market-buy", **BUY_MARKET) == expected
    await books.accept("sell", **SELL)
    await books.accept("market-sell", **SELL_MARKET)
    await books.accept("another-product", product_id="XRP-USD")


async def test_a_volatility_halt_ends_by_itself(books: Books) -> None:
    await books.open(limits=VOLATILE | {f"{PRODUCT}|volatility_halt_ms": "1"})
    await books.quote({"BTC-USD": (20_000, 20_001)})
    tries = 0
    while await books.denials(f"o-{tries}"):
        tries += 1
    assert await books.causes() == {}


async def test_a_slow_move_is_none(books: Books) -> None:
    # Each quote comes after the window of the one before has ended.
    await books.open(limits=VOLATILE | {f"{PRODUCT}|volatility_window_ms": "0"})
    for ticks in range(10_000, 20_000, 900):
        now_ms = (await books.ledger.snapshot(ACCOUNT)).now_ms
        while (await books.ledger.snapshot(ACCOUNT)).now_ms < now_ms + 2:
            pass
        await books.quote({"BTC-USD": (ticks, ticks + 1)})
    await books.accept("o-1")


async def test_a_jump_between_two_windows_is_a_move_too(books: Books) -> None:
    # The window's anchor is from its beginning; the last price of the old window is what the first of the new one
    # is compared with.
    await books.open(limits=VOLATILE)
    packed = (await books.ledger.snapshot(ACCOUNT)).reference["BTC-USD"].split()
    packed[8] = str(int(packed[8]) - 60_001)
    await books.ledger._direct("HSET", f"{BASE}:reference", "BTC-USD", " ".join(packed))
    await books.quote({"BTC-USD": (20_000, 20_001)})
    assert await books.codes("o-1") == {("VOLATILITY_HALT", PRODUCT)}


@pytest.mark.parametrize("name", ["volatility_ppm", "volatility_window_ms", "volatility_halt_ms"])
async def test_a_missing_volatility_limit_denies(books: Books, name: str) -> None:
    control = Control(limit=f"{PRODUCT}|{name}", value=0, code="", unit="")
    await denies_where_the_limit_is_missing(books, control)


# -- trading with oneself ----------------------------------------------------------------------------------------------

DENY: Final = {"account|self_trade": "deny"}
SELF_TRADES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # the order that rests, the one that comes, whether they would meet
    ({"ticks": 9_990}, SELL | {"ticks": 9_990}, True),
    ({"ticks": 9_990}, SELL | {"ticks": 9_991}, False),
    ({"ticks": 9_990}, SELL | {"ticks": 9_000}, True),
    ({"ticks": 9_990}, SELL_MARKET, True),
    (SELL | {"ticks": 10_010}, {"ticks": 10_010}, True),
    (SELL | {"ticks": 10_010}, {"ticks": 10_009}, False),
    (SELL | {"ticks": 10_010}, {"ticks": 11_000}, True),
    (SELL | {"ticks": 10_010}, BUY_MARKET, True),
    (SELL | {"ticks": 10_010}, {"ticks": 10_010, "strategy": "other"}, True),
    (SELL | {"ticks": 10_010}, SELL | {"ticks": 9_000}, False),
    (SELL | {"ticks": 10_010, "time_in_force": TimeInForce.IOC}, {"ticks": 10_010}, False),
    ({"product_id": "XRP-USD", "ticks": 60_000}, SELL | {"ticks": 9_900}, False),
]


@pytest.mark.parametrize(("resting", "coming", "meets"), SELF_TRADES, ids=str)
async def test_an_order_that_would_meet_ones_own_is_denied(
    books: Books, resting: dict[str, Any], coming: dict[str, Any], meets: bool
) -> None:
    await books.open(lots=HELD, limits=DENY)
    await books.accept("resting", **resting)
    answer = await asks_the_same_twice_of(books, coming)
    assert [(d["code"], d["scope"]) for d in answer.get("denials", ())] == (
        [("SELF_TRADE", "account")] if meets else []
    )


@pytest.mark.parametrize("ending", ["cancelled", "rejected", "filled"])
async def test_an_order_that_has_ended_meets_nobody(books: Books, ending: str) -> None:
    await books.open(lots=HELD, limits=DENY)
    await books.accept("resting")
    await books.send("resting")
    if ending == "filled":
        await books.fill("resting", 10, 10_000)
    else:
        status = OrderStatus.CANCELLED if ending == "cancelled" else OrderStatus.REJECTED
        await books.ledger.release(ACCOUNT, books.epoch, "resting", status, "why")
    await books.accept("coming", **SELL)


async def test_of_many_orders_resting_any_may_be_the_one_met(books: Books) -> None:
    await books.open(lots=HELD, limits=DENY)
    for ticks in (9_100, 9_900, 9_500):
        await books.accept(f"at-{ticks}", ticks=ticks, lots=1)
    assert await books.codes("o-1", **SELL, lots=1, ticks=9_900) == {("SELF_TRADE", "account")}
    await books.ledger.request_cancel(ACCOUNT, "at-9900", "test")
    await books.accept("o-2", **SELL, lots=1, ticks=9_900)


async def test_self_trades_pass_where_they_are_allowed(books: Books) -> None:
    await books.open(lots=HELD, limits={"account|self_trade": "allow"})
    await books.accept("resting")
    await books.accept("coming", **SELL)


async def test_without_a_word_on_self_trades_nothing_passes(books: Books) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit="account|self_trade", value=0, code="", unit=""))


async def test_of_a_buy_and_a_sell_that_would_meet_only_the_first_side_is_taken(
    books: Books, settings: Settings
) -> None:
    await books.open(lots=HELD, limits=DENY)
    sides = {f"o-{n}": Side.BUY if n % 2 else Side.SELL for n in range(12)}
    async with rivals(settings) as ledgers:
        asked = [order(name, lots=1, side=side) for name, side in sides.items()]
        verdicts = await asyncio.gather(*(ledgers[n % 3].reserve(one, BTC, KEY) for n, one in enumerate(asked)))
    accepted = {sides[verdict.answer["client_order_id"]] for verdict in verdicts if verdict.accepted}
    assert len(accepted) == 1
    assert sum(verdict.accepted for verdict in verdicts) == 6


# -- lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", SIDES, ids=SIDE_NAMES)
async def test_a_restricted_product_is_not_traded(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots=HELD, limits={f"{PRODUCT}|restricted": "yes"})
    answer = await asks_the_same_twice_of(books, side)
    assert [(d["code"], d["scope"]) for d in answer["denials"]] == [("SYMBOL_NOT_ALLOWED", PRODUCT)]
    await books.accept("another", product_id="XRP-USD")
    await books.limit({})
    await books.accept("again", **side)


async def test_without_a_word_on_restriction_nothing_passes(books: Books) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit=f"{PRODUCT}|restricted", value=0, code="", unit=""))


@pytest.mark.parametrize(
    ("removed", "rule"),
    [
        (PRODUCT, ("SYMBOL_NOT_ALLOWED", PRODUCT)),
        ("strategy|manual", ("STRATEGY_NOT_APPROVED", "strategy|manual")),
    ],
)
async def test_what_has_no_record_is_not_on_the_list(books: Books, removed: str, rule: tuple[str, str]) -> None:
    await books.open()
    await books.accept("before")
    await books.limit({removed: None})
    assert rule in await books.codes("after")


@pytest.mark.parametrize(
    ("versions", "version", "passes"),
    [
        ("any", "", True),
        ("any", "1.2", True),
        ("1.2", "1.2", True),
        ("1.2", "", False),
        ("1.2", "1", False),
        ("1.2", "1x2", False),
        ("1.2", "1.2.3", False),
        ("1.0,1.2", "1.0", True),
        ("1.0,1.2", "1.2", True),
        ("1.0,1.2", "1.1", False),
    ],
)
async def test_only_versions_on_the_list_may_trade(books: Books, versions: str, version: str, passes: bool) -> None:
    await books.open(limits={"strategy|manual|versions": versions})
    found = await books.codes("o-1", strategy_version=version)
    assert found == (set() if passes else {("STRATEGY_NOT_APPROVED", "strategy|manual")})
    await books.accept("another", strategy="other", strategy_version=version)


async def test_without_a_list_of_versions_nothing_passes(books: Books) -> None:
    await denies_where_the_limit_is_missing(books, Control(limit="strategy|manual|versions", value=0, code="", unit=""))
