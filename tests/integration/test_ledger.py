"""The checks of a reservation on real servers: at each limit accepted, one unit over denied, what is missing denied."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

import pytest

from cluster.ledger import Ledger, LedgerError
from conf.settings import RedisSettings
from strategies.model import LEDGER_INTEGER_MAX, Denial, Order, Side, TradingState
from tests.books import ACCOUNT, BASE, BTC, UNLIMITED, Books, order

pytestmark = pytest.mark.anyio

SELL: Final = {"side": Side.SELL}
BUY_MARKET: Final = {"ticks": None}
SELL_MARKET: Final = {"ticks": None, "side": Side.SELL}


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


def rules(denials: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(denial["code"], denial["scope"]) for denial in denials]


# -- the value of an order ---------------------------------------------------------------------------------------------

# 10 lots (0.01 BTC), bid 9,900 and ask 10,100 ticks, a lot at a tick 10 micros, fee 0.6 %, buffer 1 %.
VALUES: list[tuple[str, dict[str, Any], int, int]] = [
    # what, the order, notional in micros, cash reserved in micros
    ("a buy is worth its limit", {}, 1_000_000, 1_006_000),
    ("a buy far below the market too", {"ticks": 1}, 100, 101),
    ("a market buy is worth the ask and the buffer", BUY_MARKET, 1_020_100, 1_026_221),
    ("a market sell is worth the bid", SELL_MARKET, 990_000, 0),
    ("a sell above the market is worth its limit", SELL | {"ticks": 10_000}, 1_000_000, 0),
    ("a sell below the market is worth the bid", SELL | {"ticks": 1}, 990_000, 0),
    ("a part of a micro counts as one", {"product_id": "XRP-USD", "lots": 1, "ticks": 1}, 1, 2),
    ("so does a part of a larger value", {"product_id": "XRP-USD", "lots": 3, "ticks": 33_333}, 10_000, 10_060),
]


@pytest.mark.parametrize(("what", "changed", "notional", "cash"), VALUES, ids=[row[0] for row in VALUES])
async def test_what_an_order_reserves(
    books: Books, what: str, changed: dict[str, Any], notional: int, cash: int
) -> None:
    await books.open(lots={"BTC-USD": 100})
    verdict = await books.reserve(order("o-1", **changed))
    assert verdict.answer == {
        "client_order_id": "o-1",
        "verdict": "ACCEPTED",
        "product_id": changed.get("product_id", "BTC-USD"),
        "reserved_notional_micros": str(notional),
        "reserved_cash_micros": str(cash),
    }
    found = await books.book()
    assert (found["a|open_notional"], found.get("reserved", 0)) == (notional, cash)
    assert await books.ledger.verify(ACCOUNT) == []


# -- every limit at its boundary ---------------------------------------------------------------------------------------

OPEN_BUYS: Final[list[dict[str, Any]]] = [{}, {"lots": 5, "ticks": 9_000}]
"""Two buys that are open already: 15 lots, 1,000,000 and 450,000 micros."""
OTHERS: Final[list[dict[str, Any]]] = [{"strategy": "other"}, {"product_id": "XRP-USD", "lots": 1_000, "ticks": 50_000}]
"""Two that count for the account only: 1,000,000 and 5,000,000 micros."""
HELD: Final = {"BTC-USD": 100, "XRP-USD": 1_000}
"""Opening positions: worth 10,000,000 and 5,000,100 micros at the middle (10,000 and 50,001 ticks, rounded up)."""

LIMITS: list[tuple[str, list[dict[str, Any]], dict[str, Any], int, str, str]] = [
    # limit, orders open before, the order, the value it is compared with, code, unit
    ("account|max_order_notional", [], {}, 1_000_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("account|max_order_notional", [], BUY_MARKET, 1_020_100, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("account|max_order_notional", [], SELL_MARKET, 990_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("account|max_order_notional", [], SELL | {"ticks": 1}, 990_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("account|max_order_notional", OPEN_BUYS[1:], {}, 1_000_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("product|BTC-USD|max_order_notional", [], {}, 1_000_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("strategy|manual|max_order_notional", [], {}, 1_000_000, "NOTIONAL_EXCEEDS_MAX", "micros"),
    ("account|max_open_orders", [], {}, 1, "MAX_OPEN_ORDERS", "orders"),
    ("account|max_open_orders", OPEN_BUYS + OTHERS, {}, 5, "MAX_OPEN_ORDERS", "orders"),
    ("account|max_open_orders", OPEN_BUYS, SELL, 3, "MAX_OPEN_ORDERS", "orders"),
    ("product|BTC-USD|max_open_orders", OPEN_BUYS + OTHERS, {}, 4, "MAX_OPEN_ORDERS", "orders"),
    ("strategy|manual|max_open_orders", OPEN_BUYS + OTHERS, {}, 4, "MAX_OPEN_ORDERS", "orders"),
    ("product|BTC-USD|max_position", [], {}, 110, "MAX_POSITION", "lots"),
    ("product|BTC-USD|max_position", OPEN_BUYS, {}, 125, "MAX_POSITION", "lots"),
    ("product|BTC-USD|max_position", [*OPEN_BUYS, SELL | {"lots": 50}], {}, 125, "MAX_POSITION", "lots"),
    ("account|max_gross_exposure", [], {}, 16_000_100, "MAX_GROSS", "micros"),
    ("account|max_gross_exposure", OPEN_BUYS + OTHERS, {}, 23_450_100, "MAX_GROSS", "micros"),
    ("account|max_gross_exposure", [], SELL, 16_000_100, "MAX_GROSS", "micros"),
    ("strategy|manual|max_gross_exposure", OPEN_BUYS + OTHERS, {}, 7_450_000, "MAX_GROSS", "micros"),
]


@pytest.mark.parametrize(("limit", "before", "changed", "value", "code", "unit"), LIMITS)
async def test_a_limit_lets_through_what_reaches_it_and_nothing_more(
    books: Books, limit: str, before: list[dict[str, Any]], changed: dict[str, Any], value: int, code: str, unit: str
) -> None:
    await books.open(lots=HELD)
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    await books.limit({limit: str(value - 1)})
    before_it = await books.book()
    (denial,) = await books.denials("over", **changed)
    scope = limit.rpartition("|")[0]
    assert [denial[name] for name in ("code", "scope", "value", "limit", "unit")] == [
        code,
        scope,
        str(value),
        str(value - 1),
        unit,
    ]
    assert denial["message"]
    assert await books.book() == before_it
    await books.limit({limit: str(value)})
    await books.accept("at", **changed)
    assert await books.ledger.verify(ACCOUNT) == []


async def test_a_limit_of_nothing_lets_nothing_through(books: Books) -> None:
    await books.open()
    for name in ("account|max_open_orders", "account|max_order_notional", "product|BTC-USD|max_position"):
        await books.limit({name: "0"})
        assert len(await books.denials(name.replace("|", "-"))) == 1


async def test_what_a_strategy_holds_counts_for_its_gross_exposure(books: Books) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    await books.fill("o-1", 10, 10_000)
    # Now held: 10 lots at the middle, 1,000,000 micros.
    await books.limit({"strategy|manual|max_gross_exposure": "1999999"})
    assert rules(await books.denials("over")) == [("MAX_GROSS", "strategy|manual")]
    await books.limit({"strategy|manual|max_gross_exposure": "2000000"})
    await books.accept("at")
    await books.accept("another strategy", strategy="other")


async def test_a_position_above_a_lowered_limit_may_still_be_reduced(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.limit({"product|BTC-USD|max_position": "10"})
    assert rules(await books.denials("more")) == [("MAX_POSITION", "product|BTC-USD")]
    await books.accept("less", **SELL)


FUNDS: list[tuple[str, int, int, list[dict[str, Any]], dict[str, Any], str, str]] = [
    # what, cash in micros, lots held, orders before, the order, value and limit of the denial
    ("a buy and its fee, to the micro", 1_006_000, 0, [], {}, "", ""),
    ("one micro short", 1_005_999, 0, [], {}, "1006000", "1005999"),
    ("a fee rounded up", 101, 0, [], {"ticks": 1}, "", ""),
    ("a fee that would round down", 100, 0, [], {"ticks": 1}, "101", "100"),
    ("a market buy with its buffer", 1_026_221, 0, [], BUY_MARKET, "", ""),
    ("a market buy one micro short", 1_026_220, 0, [], BUY_MARKET, "1026221", "1026220"),
    ("what other buys have reserved", 2_012_000, 0, [{}], {}, "", ""),
    ("what other buys have left", 2_011_999, 0, [{}], {}, "1006000", "1005999"),
    ("no cash at all", 0, 0, [], {}, "1006000", "0"),
    ("a debt", -5, 0, [], {}, "1006000", "0"),
    ("all that is held", 0, 10, [], SELL, "", ""),
    ("one lot more than is held", 0, 9, [], SELL, "10", "9"),
    ("what open sells have left", 0, 14, [SELL | {"lots": 5}], SELL, "10", "9"),
    ("what open sells leave exactly", 0, 15, [SELL | {"lots": 5}], SELL, "", ""),
    ("nothing held", 0, 0, [], SELL, "10", "0"),
    ("nothing held, at the market", 0, 0, [], SELL_MARKET, "10", "0"),
    ("buys that are open are not held yet", 10**9, 0, [{}], SELL, "10", "0"),
]


@pytest.mark.parametrize(
    ("what", "cash", "lots", "before", "changed", "value", "limit"), FUNDS, ids=[row[0] for row in FUNDS]
)
async def test_an_order_needs_free_cash_or_free_holdings(
    books: Books,
    what: str,
    cash: int,
    lots: int,
    before: list[dict[str, Any]],
    changed: dict[str, Any],
    value: str,
    limit: str,
) -> None:
    await books.open(cash, {"BTC-USD": lots})
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    denials = await books.denials("o-1", **changed)
    shown = [(d["code"], d["scope"], d["value"], d["limit"]) for d in denials]
    assert shown == ([("INSUFFICIENT_FUNDS", "account", value, limit)] if value else [])


# -- order rate --------------------------------------------------------------------------------------------------------

HOUR_US: Final = "3600000000"


@pytest.mark.parametrize("scope", ["account", "strategy|manual"])
async def test_a_burst_is_let_through_and_the_next_order_is_not(books: Books, scope: str) -> None:
    await books.open(limits={f"{scope}|order_interval_us": HOUR_US, f"{scope}|order_burst": "3"})
    for number in range(3):
        await books.accept(f"o-{number}")
    (denial,) = await books.denials("o-3")
    assert (denial["code"], denial["scope"], denial["limit"], denial["unit"]) == ("RATE_LIMIT", scope, "0", "ms")
    assert 3_590_000 < int(denial["value"]) <= 3_600_000


async def test_a_rate_counts_for_its_own_strategy_only(books: Books) -> None:
    await books.open(limits={"strategy|manual|order_interval_us": HOUR_US, "strategy|manual|order_burst": "1"})
    await books.accept("o-1")
    assert rules(await books.denials("o-2")) == [("RATE_LIMIT", "strategy|manual")]
    await books.accept("o-3", strategy="other")


async def test_both_rates_are_named_when_both_are_broken(books: Books) -> None:
    limits = {f"{scope}|order_interval_us": HOUR_US for scope in ("account", "strategy|manual")}
    await books.open(limits=limits | {f"{scope}|order_burst": "1" for scope in ("account", "strategy|manual")})
    await books.accept("o-1")
    assert rules(await books.denials("o-2")) == [("RATE_LIMIT", "account"), ("RATE_LIMIT", "strategy|manual")]


async def test_an_order_comes_through_as_soon_as_its_interval_has_passed(books: Books) -> None:
    await books.open(limits={"account|order_interval_us": "1000", "account|order_burst": "1"})
    for number in range(3):
        while await books.denials(f"o-{number}"):
            pass


async def test_an_order_denied_for_its_rate_is_not_kept(books: Books) -> None:
    await books.open(limits={"account|order_interval_us": HOUR_US, "account|order_burst": "1"})
    await books.accept("o-1")
    entries = await books.audit()
    assert rules(await books.denials("o-2")) == [("RATE_LIMIT", "account")]
    assert rules(await books.denials("o-2", lots=11)) == [("RATE_LIMIT", "account")]
    assert (await books.status("o-2"), await books.audit()) == (None, entries)
    await books.limit({})
    await books.accept("o-2", lots=12)
    assert await books.ledger.verify(ACCOUNT) == []


async def test_a_denied_order_costs_no_rate_budget(books: Books) -> None:
    rate = {"account|order_interval_us": HOUR_US, "account|order_burst": "1", "account|max_order_notional": "1000000"}
    await books.open(limits=rate)
    for number in range(5):
        assert rules(await books.denials(f"over-{number}", ticks=10_001)) == [("NOTIONAL_EXCEEDS_MAX", "account")]
    await books.accept("at")
    # And with the budget gone, a broken limit is still what is named: the rate comes last.
    assert rules(await books.denials("late", ticks=10_001)) == [("NOTIONAL_EXCEEDS_MAX", "account")]


async def test_a_repeated_id_costs_no_rate_budget(books: Books) -> None:
    await books.open(limits={"account|order_interval_us": HOUR_US, "account|order_burst": "2"})
    for _ in range(5):
        verdict = await books.reserve(order("o-1"))
        assert verdict.accepted
    await books.accept("o-2")


async def test_a_clock_that_was_set_back_does_not_lock_an_account_for_long(books: Books) -> None:
    limits = {"account|order_interval_us": "1000000", "account|order_burst": "10"}
    await books.open(limits=limits)
    # What an order left behind before the server's clock was set back by 100 days.
    ahead = int((await books.ledger._direct("TIME"))[0] + 100 * 86_400) * 1_000_000
    await books.ledger._direct("HSET", f"{BASE}:rate", "account", str(ahead))
    (denial,) = await books.denials("o-1")
    assert (denial["code"], int(denial["value"])) == ("RATE_LIMIT", 1_000)


# -- trading states ----------------------------------------------------------------------------------------------------

SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("state", [TradingState.HALTED, TradingState.CANCEL_ALL])
async def test_a_halt_at_any_scope_lets_nothing_through(books: Books, scope: str, state: TradingState) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.ledger.set_state(ACCOUNT, scope, state, "test", "drill")
    sides: list[dict[str, Any]] = [{}, SELL, BUY_MARKET, SELL_MARKET]
    for number, side in enumerate(sides):
        (denial,) = await books.denials(f"o-{number}", **side)
        assert (denial["code"], denial["scope"], denial["value"]) == ("TRADING_HALTED", scope, state)
    await books.ledger.set_state(ACCOUNT, scope, TradingState.ACTIVE, "test", "over")
    await books.accept("after")


@pytest.mark.parametrize(
    ("scope", "passes"),
    [("strategy|other", {}), ("product|XRP-USD", {}), ("strategy|manual", {"strategy": "other"}),
     ("product|BTC-USD", {"product_id": "XRP-USD"})],
)  # fmt: skip
async def test_a_halt_of_one_strategy_or_product_leaves_the_others_alone(
    books: Books, scope: str, passes: dict[str, Any]
) -> None:
    await books.open()
    await books.ledger.set_state(ACCOUNT, scope, TradingState.HALTED, "test", "drill")
    await books.accept("o-1", **passes)


async def held_by_strategy(books: Books, lots: int, account_lots: int = 0) -> None:
    """An account in which strategy manual holds ``lots`` (negative: short) beside ``account_lots`` nobody's."""
    await books.open(lots={"BTC-USD": account_lots})
    if lots:
        await books.accept("opening", lots=1, side=Side.BUY if lots > 0 else Side.SELL)
        await books.send("opening")
        # More than was ordered: an overfill is how a spot account comes to be short.
        assert await books.fill("opening", abs(lots), 10_000) == ("APPLIED", "FILLED")


REDUCING: list[tuple[str, int, int, list[dict[str, Any]], dict[str, Any], tuple[str, str] | None]] = [
    # scope, lots of the strategy, lots of nobody, orders before, the order, value and limit of the denial
    ("account", 0, 10, [], SELL, None),
    ("account", 0, 10, [], SELL | {"lots": 11}, ("11", "10")),
    ("account", 0, 10, [SELL | {"lots": 4}], SELL | {"lots": 6}, None),
    ("account", 0, 10, [SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("account", 0, 10, [SELL | {"lots": 4, "strategy": "other"}], SELL | {"lots": 7}, ("11", "10")),
    ("account", 0, 10, [], {"lots": 1}, ("1", "0")),
    ("account", 0, 10, [], SELL_MARKET, None),
    ("account", 0, 0, [], {"lots": 1}, ("1", "0")),
    ("account", -10, 1, [], {"lots": 9}, None),
    ("account", -10, 1, [], {"lots": 10}, ("10", "9")),
    ("account", -10, 1, [{"lots": 5}], {"lots": 4}, None),
    ("account", -10, 1, [{"lots": 5}], {"lots": 5}, ("10", "9")),
    ("account", -10, 1, [], BUY_MARKET | {"lots": 9}, None),
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
    ("global", 0, 10, [], {"lots": 1}, ("1", "0")),
]  # fmt: skip


@pytest.mark.parametrize(("scope", "lots", "nobodys", "before", "changed", "denied"), REDUCING)
async def test_reducing_lets_through_what_shrinks_a_position_and_never_flips_it(
    books: Books,
    scope: str,
    lots: int,
    nobodys: int,
    before: list[dict[str, Any]],
    changed: dict[str, Any],
    denied: tuple[str, str] | None,
) -> None:
    await held_by_strategy(books, lots, nobodys)
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    await books.ledger.set_state(ACCOUNT, scope, TradingState.REDUCING, "test", "drill")
    denials = await books.denials("o-1", **changed)
    found = [(d["value"], d["limit"], d["scope"], d["unit"]) for d in denials if d["code"] == "REDUCE_ONLY_MODE"]
    assert found == ([(*denied, scope, "lots")] if denied else [])
    assert {d["code"] for d in denials} <= {"REDUCE_ONLY_MODE", "INSUFFICIENT_FUNDS"}
    assert bool(denials) == bool(denied)


async def test_the_strictest_of_all_scopes_decides_and_each_is_named(books: Books) -> None:
    await books.open(lots={"BTC-USD": 5})
    for scope, state in zip(SCOPES, ["REDUCING", "HALTED", "CANCEL_ALL", "REDUCING"], strict=True):
        await books.ledger.set_state(ACCOUNT, scope, TradingState(state), "test", "drill")
    assert rules(await books.denials("o-1")) == [
        ("TRADING_HALTED", "account"),
        ("TRADING_HALTED", "strategy|manual"),
        ("REDUCE_ONLY_MODE", "global"),
        ("REDUCE_ONLY_MODE", "product|BTC-USD"),
    ]


# -- what is missing denies --------------------------------------------------------------------------------------------

NEEDED: Final = [name for name in UNLIMITED if "XRP" not in name and "other" not in name]


@pytest.mark.parametrize("side", [{}, SELL, BUY_MARKET, SELL_MARKET], ids=["buy", "sell", "market buy", "market sell"])
@pytest.mark.parametrize("name", NEEDED)
async def test_a_missing_limit_denies_and_is_named(books: Books, name: str, side: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.ledger._direct("HDEL", f"{BASE}:limits", name)
    denials = [denial for denial in await books.denials("o-1", **side) if denial["code"] == "MISSING_LIMIT"]
    assert [denial["message"] for denial in denials] == [f"no limit {name} is set"]


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "1e3", "1.5", " 1", "0x10", "none", "Unlimited"])
@pytest.mark.parametrize("name", ["account|max_order_notional", "account|order_burst", "account|taker_fee_ppm"])
async def test_a_limit_that_is_no_number_denies(books: Books, name: str, text: str) -> None:
    # tonumber('nan') is a number in Lua, and nothing is larger than it: such a limit once let everything through.
    await books.open()
    await books.ledger._direct("HSET", f"{BASE}:limits", name, text)
    assert [d["message"] for d in await books.denials("o-1")] == [f"limit {name} is not a number"]


@pytest.mark.parametrize("name", ["account|reference_stale_ms", "account|taker_fee_ppm", "account|market_buffer_ppm"])
@pytest.mark.parametrize("side", [{}, SELL, BUY_MARKET], ids=["buy", "sell", "market buy"])
async def test_a_figure_needed_to_value_an_order_cannot_be_unlimited(
    books: Books, name: str, side: dict[str, Any]
) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.limit({name: "unlimited"})
    messages = [d["message"] for d in await books.denials("o-1", **side) if d["code"] == "MISSING_LIMIT"]
    assert messages == [f"limit {name} must be a number"]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("text", [None, "", "active", "OPEN"])
async def test_a_missing_or_unknown_trading_state_denies(books: Books, scope: str, text: str | None) -> None:
    await books.open()
    if text is None:
        await books.ledger._direct("HDEL", f"{BASE}:state", scope)
    else:
        await books.ledger._direct("HSET", f"{BASE}:state", scope, text)
    assert rules(await books.denials("o-1")) == [("MISSING_STATE", scope)]


async def test_an_account_nobody_has_set_up_denies_everything(books: Books) -> None:
    codes = {code for code, _ in rules(await books.denials("o-1"))}
    assert codes == {"MISSING_STATE", "MISSING_LIMIT", "MISSING_REFERENCE"}


@pytest.mark.parametrize(
    ("changed", "scopes"),
    [
        ({"strategy": "unheard_of"}, {"strategy|unheard_of"}),
        ({"product_id": "XRP-USD"}, {"product|XRP-USD"}),
    ],
)
async def test_a_strategy_or_product_without_limits_is_not_on_the_list(
    books: Books, changed: dict[str, Any], scopes: set[str]
) -> None:
    await books.open()
    fewer = {name: value for name, value in UNLIMITED.items() if "XRP" not in name}
    await books.ledger.set_limits(ACCOUNT, fewer, "test")
    denials = await books.denials("o-1", **changed)
    assert {d["scope"] for d in denials} == scopes
    assert {d["code"] for d in denials} <= {"MISSING_LIMIT", "MISSING_STATE"}


@pytest.mark.parametrize("side", [{}, SELL, BUY_MARKET, SELL_MARKET], ids=["buy", "sell", "market buy", "market sell"])
async def test_without_a_reference_price_nothing_passes(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    assert rules(await books.denials("o-1", **side)) == [("MISSING_REFERENCE", "product|BTC-USD")]


async def aged(books: Books, product: str, age_ms: int) -> None:
    """Make a reference price ``age_ms`` old."""
    packed = (await books.ledger.snapshot(ACCOUNT)).reference[product].split()
    packed[2] = str(int(packed[2]) - age_ms)
    await books.ledger._direct("HSET", f"{BASE}:reference", product, " ".join(packed))


@pytest.mark.parametrize("side", [{}, SELL, BUY_MARKET, SELL_MARKET], ids=["buy", "sell", "market buy", "market sell"])
async def test_a_stale_reference_price_denies_with_its_age(books: Books, side: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"account|reference_stale_ms": "1000000"})
    await aged(books, "BTC-USD", 900_000)
    await books.accept("young enough", **side)
    await aged(books, "BTC-USD", 100_000)
    (denial,) = await books.denials("too old", **side)
    assert (denial["code"], denial["scope"], denial["limit"], denial["unit"]) == (
        "STALE_REFERENCE",
        "product|BTC-USD",
        "1000000",
        "ms",
    )
    assert 1_000_000 < int(denial["value"]) < 1_100_000


async def test_every_held_product_without_a_fresh_price_denies_by_name(books: Books) -> None:
    await books.open(lots=HELD, limits={"account|reference_stale_ms": "1000000"})
    await aged(books, "XRP-USD", 2_000_000)
    assert rules(await books.denials("o-1")) == [("STALE_REFERENCE", "product|XRP-USD")]
    await aged(books, "BTC-USD", 2_000_000)
    assert rules(await books.denials("o-2")) == [
        ("STALE_REFERENCE", "product|BTC-USD"),
        ("STALE_REFERENCE", "product|XRP-USD"),
    ]
    await books.ledger._direct("HDEL", f"{BASE}:reference", "XRP-USD")
    await books.quote({"BTC-USD": (9_900, 10_100)})
    assert rules(await books.denials("o-3")) == [("STALE_REFERENCE", "product|XRP-USD")]


async def test_without_opened_books_no_buy_and_no_sell_passes(books: Books) -> None:
    await books.limit({})
    await books.quote()
    assert rules(await books.denials("buy")) == [("MISSING_STATE", "account")]
    assert rules(await books.denials("sell", **SELL)) == [("INSUFFICIENT_FUNDS", "account")]


# -- a denial names every rule broken ----------------------------------------------------------------------------------


async def test_an_order_that_breaks_many_rules_is_told_all_of_them(books: Books) -> None:
    await books.open(
        cash=0,
        limits={
            **{f"{scope}|max_order_notional": "1" for scope in ("account", "product|BTC-USD", "strategy|manual")},
            **{f"{scope}|max_open_orders": "0" for scope in ("account", "product|BTC-USD", "strategy|manual")},
            **{f"{scope}|max_gross_exposure": "1" for scope in ("account", "strategy|manual")},
            "product|BTC-USD|max_position": "1",
        },
    )
    await books.ledger.set_state(ACCOUNT, "global", TradingState.HALTED, "test", "drill")
    await books.ledger.set_state(ACCOUNT, "account", TradingState.REDUCING, "test", "drill")
    await books.ledger._direct("HDEL", f"{BASE}:state", "strategy|manual")
    await books.ledger._direct("HDEL", f"{BASE}:limits", "account|order_burst")
    assert rules(await books.denials("o-1")) == [
        ("TRADING_HALTED", "global"),
        ("MISSING_STATE", "strategy|manual"),
        ("REDUCE_ONLY_MODE", "account"),
        ("NOTIONAL_EXCEEDS_MAX", "account"),
        ("NOTIONAL_EXCEEDS_MAX", "product|BTC-USD"),
        ("NOTIONAL_EXCEEDS_MAX", "strategy|manual"),
        ("MAX_OPEN_ORDERS", "account"),
        ("MAX_OPEN_ORDERS", "product|BTC-USD"),
        ("MAX_OPEN_ORDERS", "strategy|manual"),
        ("MAX_POSITION", "product|BTC-USD"),
        ("MAX_GROSS", "account"),
        ("MAX_GROSS", "strategy|manual"),
        ("INSUFFICIENT_FUNDS", "account"),
        ("MISSING_LIMIT", "account"),
    ]


async def test_without_a_price_the_rules_that_need_none_are_still_named(books: Books) -> None:
    await books.open(cash=0, limits={"account|max_open_orders": "0", "product|BTC-USD|max_position": "9"})
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    assert rules(await books.denials("o-1", **BUY_MARKET)) == [
        ("MISSING_REFERENCE", "product|BTC-USD"),
        ("MAX_OPEN_ORDERS", "account"),
        ("MAX_POSITION", "product|BTC-USD"),
    ]


async def test_what_the_stateless_checks_found_is_recorded_as_the_denial(books: Books) -> None:
    await books.open()
    found = [Denial("UNKNOWN_PRODUCT", "the venue has no such product", "product|ABC-USD", "ABC-USD")]
    asked = order("o-1", product_id="BTC-USD")
    verdict = await books.ledger.reserve(asked, None, "test", found)
    assert (verdict.kind, verdict.accepted, rules(verdict.answer["denials"])) == (
        "DENIED",
        False,
        [("UNKNOWN_PRODUCT", "product|ABC-USD")],
    )
    assert await books.status("o-1") == "DENIED"
    repeated = await books.ledger.reserve(asked, BTC, "test")
    assert (repeated.kind, repeated.answer) == ("REPEATED", verdict.answer)


# -- more than can be counted ------------------------------------------------------------------------------------------

TOO_LARGE: list[tuple[str, dict[str, Any], list[tuple[str, str]]]] = [
    # what, the order, broken rules
    ("lots times ticks", {"lots": 10**9, "ticks": 10**9}, [("VALUE_TOO_LARGE", "account")]),
    ("lots alone", {"lots": LEDGER_INTEGER_MAX, "ticks": 1}, [("VALUE_TOO_LARGE", "account")]),
    ("ticks alone", {"lots": 1, "ticks": LEDGER_INTEGER_MAX}, [("VALUE_TOO_LARGE", "account")]),
    ("the buffer on top", {"lots": 22_200_000_000, "ticks": None}, [("VALUE_TOO_LARGE", "account")]),
]


@pytest.mark.parametrize(("what", "changed", "expected"), TOO_LARGE, ids=[row[0] for row in TOO_LARGE])
async def test_a_value_beyond_the_ledgers_integers_denies_even_without_limits(
    books: Books, what: str, changed: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    await books.open()
    assert [
        rule for rule in rules(await books.denials("o-1", **changed)) if rule[0] != "INSUFFICIENT_FUNDS"
    ] == expected


async def test_sums_beyond_the_ledgers_integers_deny_even_without_limits(books: Books) -> None:
    # One lot held is enough for a sell of any price, and nothing else limits how much such orders add up to.
    await books.open(lots={"BTC-USD": 2})
    most = LEDGER_INTEGER_MAX // 15
    await books.accept("o-1", lots=1, ticks=most, **SELL)
    assert rules(await books.denials("o-2", lots=1, ticks=most, **SELL)) == [
        ("VALUE_TOO_LARGE", "account"),
        ("VALUE_TOO_LARGE", "strategy|manual"),
    ]
    assert await books.ledger.verify(ACCOUNT) == []


@pytest.mark.parametrize("changed", [{"lots": 0}, {"lots": -1}, {"ticks": 0}, {"ticks": -1}])
async def test_an_order_of_nothing_or_less_is_refused_and_leaves_nothing(books: Books, changed: dict[str, Any]) -> None:
    await books.open()
    before = await books.keys()
    with pytest.raises(LedgerError, match="above 0"):
        await books.reserve(order("o-1", **changed))
    assert await books.keys() == before


# -- the same id -------------------------------------------------------------------------------------------------------


async def test_the_same_order_again_gets_the_first_answer(books: Books) -> None:
    await books.open()
    first = await books.reserve(order("o-1"))
    before = await books.keys()
    for _ in range(3):
        again = await books.reserve(order("o-1"))
        assert (again.kind, again.accepted, again.answer) == ("REPEATED", True, first.answer)
    assert await books.keys() == before


async def test_a_denied_order_again_gets_the_same_denial_whatever_has_changed(books: Books) -> None:
    await books.open(limits={"account|max_open_orders": "0"})
    first = await books.reserve(order("o-1"))
    await books.limit({})
    again = await books.reserve(order("o-1"))
    assert (again.kind, again.accepted, again.answer) == ("REPEATED", False, first.answer)


async def test_the_answer_stays_the_first_one_after_the_order_has_ended(books: Books) -> None:
    await books.open()
    first = await books.reserve(order("o-1"))
    await books.ledger.request_cancel(ACCOUNT, "o-1", "test")
    again = await books.reserve(order("o-1"))
    assert (again.kind, again.answer) == ("REPEATED", first.answer)


OTHER_BODIES: list[dict[str, Any]] = [
    {"lots": 11},
    {"ticks": 9_999},
    {"ticks": None},
    {"side": Side.SELL},
    {"strategy": "other"},
    {"product_id": "XRP-USD"},
    {"post_only": True},
]


@pytest.mark.parametrize("changed", OTHER_BODIES, ids=str)
@pytest.mark.parametrize("denied", [False, True])
async def test_the_same_id_with_another_body_is_a_conflict(books: Books, changed: dict[str, Any], denied: bool) -> None:
    await books.open(limits={"account|max_open_orders": "0"} if denied else {})
    await books.reserve(order("o-1"))
    before = await books.keys()
    other = await books.reserve(order("o-1", **changed))
    assert (other.kind, other.accepted) == ("CONFLICT", False)
    assert await books.keys() == before


@pytest.mark.parametrize(
    ("one", "two"),
    [("0.1", "0.10"), ("1", "1.000"), ("10", "1E+1"), ("1234567890.000", "1234567890")],
)
async def test_a_number_written_otherwise_is_the_same_number(books: Books, one: str, two: str) -> None:
    await books.open()
    first, second = (
        Order(**{name: getattr(order("o-1"), name) for name in Order.__slots__} | {"quantity": Decimal(text)})
        for text in (one, two)
    )
    await books.reserve(first)
    assert (await books.reserve(second)).kind == "REPEATED"


async def test_ids_of_two_accounts_have_nothing_to_do_with_each_other(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    verdict = await ledger.reserve(order("o-1", account="second"), BTC, "test")
    assert (verdict.kind, verdict.accepted) == ("DENIED", False)


# -- what an acceptance and a denial leave behind ----------------------------------------------------------------------


async def test_an_accepted_order_is_audited_and_handed_over_exactly_once(books: Books) -> None:
    await books.open(limits={"account|max_order_notional": "1000000"})
    for number in range(3):
        await books.accept(f"o-{number}")
        await books.reserve(order(f"o-{number}"))
        await books.reserve(order(f"o-{number}", lots=1))
        await books.denials(f"over-{number}", ticks=10_001)
    assert await books.outbox() == [("SUBMIT", f"o-{number}") for number in range(3)]
    decided = [entry for entry in await books.audit() if entry[0] in {"RESERVED", "DENIED"}]
    assert decided == [entry for n in range(3) for entry in (("RESERVED", f"o-{n}"), ("DENIED", f"over-{n}"))]


async def test_a_denied_order_is_kept_for_a_day_and_an_open_one_for_good(books: Books, ledger: Ledger) -> None:
    await books.open(limits={"account|max_order_notional": "1000000"})
    await books.accept("o-1")
    await books.denials("over", ticks=10_001)
    assert await ledger._direct("TTL", f"{BASE}:order:o-1") == -1
    assert 86_000 < await ledger._direct("TTL", f"{BASE}:order:over") <= 86_400


async def test_every_scope_counts_what_is_open(books: Books) -> None:
    await books.open(lots=HELD)
    await books.accept("o-1")
    await books.accept("o-2", lots=5, ticks=9_000, strategy="other")
    await books.accept("o-3", **SELL)
    await books.accept("o-4", product_id="XRP-USD", lots=1_000, ticks=50_000)
    assert await books.book() == {
        "cash": 10**15,
        "reserved": 1_006_000 + 452_700 + 5_030_000,
        "a|open_orders": 4,
        "a|open_notional": 1_000_000 + 450_000 + 1_000_000 + 5_000_000,
        "p|BTC-USD|open_orders": 3,
        "p|BTC-USD|open_notional": 2_450_000,
        "p|BTC-USD|buy_lots": 15,
        "p|BTC-USD|sell_lots": 10,
        "p|XRP-USD|open_orders": 1,
        "p|XRP-USD|open_notional": 5_000_000,
        "p|XRP-USD|buy_lots": 1_000,
        "s|manual|open_orders": 3,
        "s|manual|open_notional": 7_000_000,
        "s|other|open_orders": 1,
        "s|other|open_notional": 450_000,
        "sp|manual|BTC-USD|buy_lots": 10,
        "sp|manual|BTC-USD|sell_lots": 10,
        "sp|manual|XRP-USD|buy_lots": 1_000,
        "sp|other|BTC-USD|buy_lots": 5,
    }
