"""What may be at risk at once: open orders and their value, gross and net exposure, concentration, leverage, funds."""

from __future__ import annotations

from typing import Any, Final

import pytest

from conf.settings import RedisSettings, Settings
from strategies.model import Side
from tests.books import ACCOUNT, BASE, Books, order
from tests.controls import (
    BUY_MARKET,
    SECOND,
    SELL,
    SELL_MARKET,
    Control,
    Row,
    Rows,
    denies_one_over_and_accepts_at,
    denies_where_the_limit_is_missing,
    leaves_exactly_its_room_to_three_rivals,
    open_second,
    prepare,
    race,
    warns_above_the_soft_level,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


# An order is 10 lots of BTC at 10,000 ticks: 1,000,000 micros. The middles are 10,000 ticks, and 50,000.5 of XRP.
HELD: Final = {"BTC-USD": 100, "XRP-USD": 1_000}
"""Worth 10,000,000 and 5,000,050 micros; gross 10,000,000 and 5,000,100, the middle rounded up to a tick."""
BUYS: Final[Rows] = ({}, {"lots": 5, "ticks": 9_000})
"""Two buys that are open already: 1,000,000 and 450,000 micros."""
XRP_BUY: Final[Row] = {"product_id": "XRP-USD", "lots": 1_000, "ticks": 50_000}
"""5,000,000 micros."""
OTHERS: Final[Rows] = ({"strategy": "other"}, XRP_BUY)
OF_SECOND: Final[Rows] = ({"account": SECOND, "lots": 5, "ticks": 9_000},)
FILLED: Final[Rows] = ({"filled": 10_000},)
"""Ten lots that strategy manual holds: worth 1,000,000 micros."""
SHORT: Final[Rows] = (SELL | {"filled": 10_000},)
"""Ten lots that strategy manual has sold from what was the account's."""

COUNT: Final[dict[str, Any]] = {"code": "MAX_OPEN_ORDERS", "unit": "orders", "step": 1, "held": HELD}
OPEN_ORDERS: list[Control] = [
    *(Control(limit=f"{scope}|max_open_orders", value=1, **COUNT)
      for scope in ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")),
    Control(limit="global|max_open_orders", value=6, before=BUYS + OTHERS + OF_SECOND, **COUNT),
    Control(limit="account|max_open_orders", value=5, before=BUYS + OTHERS + OF_SECOND, **COUNT),
    Control(limit="account|max_open_orders", value=3, before=BUYS, order=SELL, **COUNT),
    Control(limit="account|max_open_orders", value=1, before=FILLED, **COUNT),
    Control(limit="strategy|manual|max_open_orders", value=4, before=BUYS + OTHERS, **COUNT),
    Control(limit="product|BTC-USD|max_open_orders", value=4, before=BUYS + OTHERS, order=BUY_MARKET, **COUNT),
    Control(limit="key|*|max_open_orders", value=5, before=BUYS + OTHERS, **COUNT),
]  # fmt: skip

VALUE: Final[dict[str, Any]] = {"code": "MAX_OPEN_VALUE", "unit": "micros", "step": 1_000_000, "held": HELD}
OPEN_VALUE: list[Control] = [
    *(Control(limit=f"{scope}|max_open_notional", value=1_000_000, **VALUE)
      for scope in ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")),
    Control(limit="global|max_open_notional", value=8_900_000, before=BUYS + OTHERS + OF_SECOND, **VALUE),
    Control(limit="account|max_open_notional", value=8_450_000, before=BUYS + OTHERS + OF_SECOND, **VALUE),
    Control(limit="account|max_open_notional", value=2_450_000, before=BUYS, order=SELL, **VALUE),
    Control(limit="account|max_open_notional", value=1_000_000, before=FILLED, **VALUE),
    Control(limit="strategy|manual|max_open_notional", value=7_450_000, before=BUYS + OTHERS, **VALUE),
    Control(limit="product|BTC-USD|max_open_notional", value=3_450_000, before=BUYS + OTHERS, **VALUE),
    Control(limit="product|BTC-USD|max_open_notional", value=2_450_000, before=BUYS, order=SELL, **VALUE),
    Control(limit="key|*|max_open_notional", value=8_450_000, before=BUYS + OTHERS, **VALUE),
]  # fmt: skip

GROSS: Final[dict[str, Any]] = {"code": "MAX_GROSS", "unit": "micros", "step": 1_000_000, "held": HELD}
GROSS_EXPOSURE: list[Control] = [
    Control(limit="global|max_gross_exposure", value=16_000_100, **GROSS),
    Control(limit="global|max_gross_exposure", value=28_900_100, before=BUYS + OTHERS + OF_SECOND,
            second_held={"BTC-USD": 50}, **GROSS),
    Control(limit="account|max_gross_exposure", value=16_000_100, second_held={"BTC-USD": 50}, **GROSS),
    Control(limit="account|max_gross_exposure", value=23_450_100, before=BUYS + OTHERS, **GROSS),
    Control(limit="account|max_gross_exposure", value=17_000_100, before=FILLED, **GROSS),
    Control(limit="account|max_gross_exposure", value=17_000_100, before=(SELL,), **GROSS),
    Control(limit="strategy|manual|max_gross_exposure", value=1_000_000, **GROSS),
    Control(limit="strategy|manual|max_gross_exposure", value=7_450_000, before=BUYS + OTHERS, **GROSS),
    Control(limit="strategy|manual|max_gross_exposure", value=2_000_000, before=FILLED, **GROSS),
    Control(limit="strategy|manual|max_gross_exposure", value=2_000_000, before=SHORT, order=SELL, **GROSS),
    Control(limit="product|BTC-USD|max_gross_exposure", value=11_000_000, **GROSS),
    Control(limit="product|BTC-USD|max_gross_exposure", value=13_450_000, before=BUYS + OTHERS, **GROSS),
    Control(limit="group|majors|max_gross_exposure", value=16_000_100, **GROSS),
    Control(limit="group|majors|max_gross_exposure", value=23_450_100, before=BUYS + OTHERS, **GROSS),
]  # fmt: skip

NET: Final[dict[str, Any]] = {"code": "MAX_NET", "unit": "micros", "step": 1_000_000, "held": HELD}
NET_EXPOSURE: list[Control] = [
    Control(limit="global|max_net_exposure", value=16_000_050, **NET),
    Control(limit="global|max_net_exposure", value=28_900_050, before=BUYS + OTHERS + OF_SECOND,
            second_held={"BTC-USD": 50}, **NET),
    Control(limit="account|max_net_exposure", value=16_000_050, second_held={"BTC-USD": 50}, **NET),
    Control(limit="account|max_net_exposure", value=23_450_050, before=BUYS + OTHERS, **NET),
    Control(limit="account|max_net_exposure", value=16_000_050, before=(SELL,), **NET),
    Control(limit="account|max_net_exposure", value=17_000_050, before=FILLED, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=1_000_000, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=2_000_000, before=FILLED, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=1_000_000, order=SELL, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=2_000_000, before=SHORT, order=SELL, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=2_000_000, before=(SELL,), order=SELL, **NET),
    Control(limit="strategy|manual|max_net_exposure", value=1_000_000, before=FILLED, order=SELL | {"lots": 20},
            **NET | {"step": 2_000_000, "held": {"BTC-USD": 1_000}}),
]  # fmt: skip

# 90 USD and 100 lots of BTC worth 10 USD: an equity of 100 USD, so that 100 micros are one part per million.
EQUITY: Final[dict[str, Any]] = {"unit": "ppm", "step": 10_000, "cash": 90_000_000, "held": {"BTC-USD": 100}}
RATIOS: list[Control] = [
    *(
        row
        for scope in ("account", "product|BTC-USD")
        for row in (
            Control(limit=f"{scope}|max_concentration_ppm", value=110_000, code="CONCENTRATION", **EQUITY),
            Control(limit=f"{scope}|max_concentration_ppm", value=124_500, code="CONCENTRATION", before=BUYS, **EQUITY),
            Control(limit=f"{scope}|max_concentration_ppm", value=110_000, code="CONCENTRATION", before=(XRP_BUY,),
                    **EQUITY),
            Control(limit=f"{scope}|max_concentration_ppm", value=101_001, code="CONCENTRATION",
                    order={"lots": 1, "ticks": 10_001}, **EQUITY | {"step": 0}),
        )
    ),
    Control(limit="account|max_leverage_ppm", value=110_000, code="LEVERAGE", **EQUITY),
    Control(limit="account|max_leverage_ppm", value=174_500, code="LEVERAGE", before=(*BUYS, XRP_BUY), **EQUITY),
    Control(limit="account|max_leverage_ppm", value=110_000, code="LEVERAGE", second_held=HELD, **EQUITY),
    Control(limit="account|max_leverage_ppm", value=101_001, code="LEVERAGE", order={"lots": 1, "ticks": 10_001},
            **EQUITY | {"step": 0}),
]  # fmt: skip
ALL: Final = [*OPEN_ORDERS, *OPEN_VALUE, *GROSS_EXPOSURE, *NET_EXPOSURE, *RATIOS]


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_an_exposure_at_its_limit_passes_and_one_unit_more_does_not(books: Books, control: Control) -> None:
    await denies_one_over_and_accepts_at(books, control)


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_an_exposure_above_its_soft_level_passes_with_a_warning(books: Books, control: Control) -> None:
    await warns_above_the_soft_level(books, control)


@pytest.mark.parametrize("control", ALL, ids=str)
async def test_an_exposure_without_its_limit_denies_and_an_unlimited_one_passes(books: Books, control: Control) -> None:
    await denies_where_the_limit_is_missing(books, control)


@pytest.mark.parametrize("control", [control for control in ALL if control.step], ids=str)
async def test_three_rivals_share_exactly_the_exposure_there_is_room_for(
    books: Books, settings: Settings, control: Control
) -> None:
    await leaves_exactly_its_room_to_three_rivals(books, settings, control)


# -- whose counter it is -----------------------------------------------------------------------------------------------


async def test_two_accounts_share_the_desks_counters(books: Books) -> None:
    await books.open(limits={"global|max_open_orders": "2"})
    await open_second(books)
    await books.accept("o-1")
    await books.accept("o-2", account=SECOND)
    for account in (ACCOUNT, SECOND):
        assert await books.codes(f"full-{account}", account=account) == {("MAX_OPEN_ORDERS", "global")}
    await books.ledger.request_cancel(SECOND, "o-2", "test")
    await books.accept("o-3")
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0
    assert await books.ledger.prove(SECOND) == 0


async def test_what_one_account_fills_counts_in_the_desks_exposure(books: Books) -> None:
    await books.open(limits={"global|max_gross_exposure": "2000000", "account|max_gross_exposure": "1000000"})
    await open_second(books)
    await books.accept("o-1", account=ACCOUNT)
    await books.send("o-1")
    await books.fill("o-1", 10, 10_000)
    await books.accept("o-2", account=SECOND)
    assert await books.codes("full", account=SECOND) == {("MAX_GROSS", "global")}


async def test_a_key_counts_its_own_orders_only(books: Books) -> None:
    await books.open(limits={"key|*|max_open_orders": "1"})
    assert (await books.reserve(order("o-1"), "alice")).accepted
    assert (await books.reserve(order("o-2"), "bob")).accepted
    for key in ("alice", "bob"):
        answer = (await books.reserve(order(f"full-{key}"), key)).answer
        assert [(d["code"], d["scope"]) for d in answer["denials"]] == [("MAX_OPEN_ORDERS", f"key|{key}")]
    # The key that reserved it has the room back, whoever cancels.
    await books.ledger.request_cancel(ACCOUNT, "o-1", "bob")
    assert (await books.reserve(order("o-3"), "alice")).accepted
    assert not (await books.reserve(order("o-4"), "bob")).accepted


async def test_a_group_adds_up_its_products_and_no_others(books: Books) -> None:
    limits = {"group|majors|max_gross_exposure": "5000000", "product|BTC-USD|group": "-"}
    await books.open(limits=limits)
    await books.accept("not-in-the-group", lots=1_000)
    await books.accept("fills-the-group", **XRP_BUY)
    assert await books.codes("o-1", product_id="XRP-USD", lots=1, ticks=10) == {("MAX_GROSS", "group|majors")}
    await books.accept("still-not-in-the-group")


async def test_a_group_that_has_no_record_denies(books: Books) -> None:
    await books.open()
    await books.ledger._direct("HDEL", f"{BASE}:limits", "group|majors")
    assert await books.codes("o-1") == {("MISSING_LIMIT", "group|majors")}


# -- equity ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cash", [-10_000_000, -10_000_001], ids=["nothing", "less than nothing"])
@pytest.mark.parametrize(
    ("limit", "code", "scope"),
    [
        ("account|max_concentration_ppm", "CONCENTRATION", "account"),
        ("product|BTC-USD|max_concentration_ppm", "CONCENTRATION", "product|BTC-USD"),
        ("account|max_leverage_ppm", "LEVERAGE", "account"),
    ],
)
async def test_without_equity_nothing_adds_to_the_exposure(
    books: Books, cash: int, limit: str, code: str, scope: str
) -> None:
    await books.open(cash, {"BTC-USD": 100}, {limit: "2000000000"})
    assert (code, scope) in await books.codes("o-1")
    await books.accept("less", **SELL)


async def test_an_exposure_too_many_times_the_equity_to_be_counted_denies(books: Books) -> None:
    most = "2000000000000000"
    ratios = ("account|max_concentration_ppm", "product|BTC-USD|max_concentration_ppm", "account|max_leverage_ppm")
    # Worth 10,000,000 and owed one micro less: every micro more is a million parts of the equity.
    await books.open(cash=-9_999_999, lots={"BTC-USD": 100}, limits=dict.fromkeys(ratios, most))
    assert await books.codes("o-1", lots=10**6) == {
        ("CONCENTRATION", "account"),
        ("CONCENTRATION", "product|BTC-USD"),
        ("LEVERAGE", "account"),
        ("INSUFFICIENT_FUNDS", "account"),
    }


# -- exits are always allowed ------------------------------------------------------------------------------------------

NOTHING_MORE: Final = {
    **{f"{scope}|max_gross_exposure": "1" for scope in ("global", "account", "product|BTC-USD", "group|majors")},
    **{f"{scope}|max_net_exposure": "1" for scope in ("global", "account")},
    **{f"{scope}|max_concentration_ppm": "1" for scope in ("account", "product|BTC-USD")},
    "account|max_leverage_ppm": "1",
}
OF_STRATEGY: Final = {"strategy|manual|max_gross_exposure": "1", "strategy|manual|max_net_exposure": "1"}
NOT_EXEMPT: Final = {"MAX_GROSS", "MAX_NET", "CONCENTRATION", "LEVERAGE"}

EXITS: list[tuple[str, int, list[dict[str, Any]], dict[str, Any], bool]] = [
    # what, lots held, orders open before, the order, whether it passes
    ("a part", 10, [], SELL | {"lots": 4}, True),
    ("all of it", 10, [], SELL, True),
    ("all of it at the market", 10, [], SELL_MARKET, True),
    ("the rest beside what is being sold", 10, [SELL | {"lots": 4}], SELL | {"lots": 6}, True),
    ("more than the rest", 10, [SELL | {"lots": 4}], SELL | {"lots": 7}, False),
    ("more than there is", 10, [], SELL | {"lots": 11}, False),
    ("more of it", 10, [], {"lots": 1}, False),
    ("a short, bought back", -10, [], {}, True),
    ("a short, bought back at the market", -10, [], BUY_MARKET, True),
    ("a short, bought back in two", -10, [{"lots": 4}], {"lots": 6}, True),
    ("a short, through zero", -10, [], {"lots": 11}, False),
    ("a short, through zero in two", -10, [{"lots": 4}], {"lots": 7}, False),
    ("a short, more of it", -10, [], SELL | {"lots": 1}, False),
    ("nothing held, bought", 0, [], {"lots": 1}, False),
    ("nothing held, sold", 0, [], SELL | {"lots": 1}, False),
]


@pytest.mark.parametrize(("what", "lots", "before", "changed", "passes"), EXITS, ids=[row[0] for row in EXITS])
async def test_what_reduces_a_position_passes_every_exposure_limit_but_never_through_zero(
    books: Books, what: str, lots: int, before: list[dict[str, Any]], changed: dict[str, Any], passes: bool
) -> None:
    await books.open(cash=10**9, lots={"BTC-USD": lots})
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    await books.limit(NOTHING_MORE)
    found = await books.codes("o-1", **changed)
    if passes:
        assert found == set()
    else:
        assert {rule for rule in found if rule[0] in NOT_EXEMPT} == {
            *(("MAX_GROSS", scope) for scope in ("global", "account", "product|BTC-USD", "group|majors")),
            *(("CONCENTRATION", scope) for scope in ("account", "product|BTC-USD")),
            *(("MAX_NET", scope) for scope in ("global", "account") if _more_net(lots, before, changed)),
            ("LEVERAGE", "account"),
        }


def _more_net(lots: int, before: list[dict[str, Any]], changed: dict[str, Any]) -> bool:
    """Whether the order could carry the net exposure beyond zero on its own side."""
    asked: int = sum(row.get("lots", 10) for row in [*before, changed])
    return asked + (-lots if changed.get("side") is Side.SELL else lots) > 0


@pytest.mark.parametrize(
    ("bought", "changed", "passes"),
    [
        (10, SELL, True),
        (10, SELL | {"lots": 11}, False),
        (10, {"lots": 1}, False),
        (-10, {}, True),
        (-10, {"lots": 11}, False),
        (-10, SELL | {"lots": 1}, False),
        (0, SELL | {"lots": 1}, False),
    ],
)
async def test_a_strategys_exits_are_those_from_its_own_position(
    books: Books, bought: int, changed: dict[str, Any], passes: bool
) -> None:
    await books.open(lots={"BTC-USD": 500})
    if bought:
        await books.accept("opening", side=Side.BUY if bought > 0 else Side.SELL)
        await books.send("opening")
        await books.fill("opening", 10, 10_000)
    await books.limit(OF_STRATEGY)
    found = await books.codes("o-1", **changed)
    expected = {("MAX_GROSS", "strategy|manual"), ("MAX_NET", "strategy|manual")}
    assert found == (set() if passes else expected)


async def test_a_reducing_order_is_still_held_to_all_other_limits(books: Books) -> None:
    limits = {
        "account|max_order_notional": "1",
        "account|max_open_orders": "0",
        "account|max_open_notional": "1",
        "product|BTC-USD|max_order_lots": "1",
    }
    await books.open(lots={"BTC-USD": 100}, limits=NOTHING_MORE | limits)
    assert await books.codes("o-1", **SELL) == {
        ("NOTIONAL_EXCEEDS_MAX", "account"),
        ("MAX_OPEN_ORDERS", "account"),
        ("MAX_OPEN_VALUE", "account"),
        ("QTY_EXCEEDS_MAX", "product|BTC-USD"),
    }


# -- shorts ------------------------------------------------------------------------------------------------------------

SHORTS: list[tuple[str, list[dict[str, Any]], dict[str, Any], tuple[str, str] | None]] = [
    # what, orders before, the order, value and limit of the denial
    ("all a strategy holds", [{"filled": 10_000}], SELL, None),
    ("one lot more", [{"filled": 10_000}], SELL | {"lots": 11}, ("11", "10")),
    ("what its open sells have left", [{"filled": 10_000}, SELL | {"lots": 4}], SELL | {"lots": 6}, None),
    ("one lot more than that", [{"filled": 10_000}, SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("what it has only ordered", [{}], SELL | {"lots": 1}, ("1", "0")),
    ("what another strategy holds", [{"strategy": "other", "filled": 10_000}], SELL | {"lots": 1}, ("1", "0")),
    ("what another strategy sells", [{"filled": 10_000}, SELL | {"strategy": "other"}], SELL, None),
    ("what nobody holds", [], SELL_MARKET | {"lots": 1}, ("1", "0")),
    ("a buy", [], {}, None),
]


@pytest.mark.parametrize(("what", "before", "changed", "denied"), SHORTS, ids=[row[0] for row in SHORTS])
async def test_a_strategy_that_may_not_go_short_sells_what_it_holds(
    books: Books, what: str, before: list[dict[str, Any]], changed: dict[str, Any], denied: tuple[str, str] | None
) -> None:
    control = Control(limit="", value=0, code="", unit="", before=before, held={"BTC-USD": 1_000})
    await prepare(books, control)
    await books.accept("may-go-short", **SELL | {"lots": 12, "strategy": "other"})
    await books.limit({"strategy|manual|short": "denied"})
    denials = await books.denials("o-1", **changed)
    found = [(d["code"], d["scope"], d["value"], d["limit"], d["unit"]) for d in denials]
    assert found == ([("SHORT_NOT_ALLOWED", "strategy|manual", *denied, "lots")] if denied else [])


async def test_without_a_word_on_shorts_nothing_passes(books: Books) -> None:
    control = Control(limit="strategy|manual|short", value=0, code="", unit="", held={"BTC-USD": 100}, order=SELL)
    await denies_where_the_limit_is_missing(books, control)


async def test_three_rivals_sell_exactly_what_a_strategy_holds(books: Books, settings: Settings) -> None:
    control = Control(
        limit="", value=0, code="", unit="", before=[{"lots": 50, "filled": 10_000}], held={"BTC-USD": 1_000}
    )
    await prepare(books, control)
    await books.limit({"strategy|manual|short": "denied"})
    denied = await race(books, settings, SELL)
    assert {(d["code"], d["scope"]) for d in denied} == {("SHORT_NOT_ALLOWED", "strategy|manual")}


# -- orders that may only reduce ---------------------------------------------------------------------------------------

ONLY: Final = {"reduce_only": True}
REDUCE_ONLY: list[tuple[str, int, list[dict[str, Any]], dict[str, Any], tuple[str, str] | None]] = [
    # what, lots held, orders open before, the order, value and limit of the denial
    ("all of it", 10, [], SELL, None),
    ("a part", 10, [], SELL | {"lots": 1}, None),
    ("through zero", 10, [], SELL | {"lots": 11}, ("11", "10")),
    ("the rest beside what is being sold", 10, [SELL | {"lots": 4}], SELL | {"lots": 6}, None),
    ("more than the rest", 10, [SELL | {"lots": 4}], SELL | {"lots": 7}, ("11", "10")),
    ("more of it", 10, [], {"lots": 1}, ("1", "0")),
    ("flat, bought", 0, [], {"lots": 1}, ("1", "0")),
    ("flat, sold", 0, [], SELL | {"lots": 1}, ("1", "0")),
    ("a short, bought back", -10, [], {}, None),
    ("a short, through zero", -10, [], {"lots": 11}, ("11", "10")),
    ("a short, more of it", -10, [], SELL | {"lots": 1}, ("1", "0")),
]


@pytest.mark.parametrize(
    ("what", "lots", "before", "changed", "denied"), REDUCE_ONLY, ids=[row[0] for row in REDUCE_ONLY]
)
async def test_an_order_that_may_only_reduce_never_increases_or_flips(
    books: Books,
    what: str,
    lots: int,
    before: list[dict[str, Any]],
    changed: dict[str, Any],
    denied: tuple[str, str] | None,
) -> None:
    await books.open(lots={"BTC-USD": lots})
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    denials = await books.denials("o-1", **changed, **ONLY)
    found = [(d["value"], d["limit"], d["unit"]) for d in denials if d["code"] == "REDUCE_ONLY_WOULD_INCREASE"]
    assert found == ([(*denied, "lots")] if denied else [])
    assert bool(denials) == bool(denied)


async def test_three_rivals_reduce_a_position_to_zero_and_no_further(books: Books, settings: Settings) -> None:
    await books.open(lots={"BTC-USD": -50})
    denied = await race(books, settings, ONLY)
    assert {d["code"] for d in denied} == {"REDUCE_ONLY_WOULD_INCREASE"}
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0


async def test_three_rivals_spend_exactly_the_cash_there_is(books: Books, settings: Settings) -> None:
    await books.open(cash=5 * 1_006_000)
    denied = await race(books, settings, {})
    assert {(d["code"], d["scope"]) for d in denied} == {("INSUFFICIENT_FUNDS", "account")}
    assert (await books.book())["reserved"] == 5 * 1_006_000


async def test_three_rivals_sell_exactly_what_the_account_holds(books: Books, settings: Settings) -> None:
    await books.open(lots={"BTC-USD": 50})
    denied = await race(books, settings, SELL)
    assert {(d["code"], d["scope"]) for d in denied} == {("INSUFFICIENT_FUNDS", "account")}
