"""A reservation on real servers: what an order is worth, what it needs, what a decision leaves behind, the same id.

The limits have tables of their own: test_controls_*.py.
"""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, Final

import pytest

from cluster.ledger import Ledger, LedgerError, LedgerUnavailable
from conf.settings import RedisSettings
from strategies.model import LEDGER_INTEGER_MAX, Denial, Order, Side, TradingState
from tests.books import ACCOUNT, BASE, BTC, DESK, KEY, UNLIMITED, Books, order
from tests.controls import SECOND, open_second

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
    side = "sell" if "side" in changed else "buy"
    assert (found[f"a|{side}_notional"], found.get("reserved", 0)) == (notional, cash)
    assert await books.ledger.prove(ACCOUNT) == 0


# -- what an order needs ----------------------------------------------------------------------------------------------

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


# -- what is missing denies --------------------------------------------------------------------------------------------

NEEDED: Final = [name for name in UNLIMITED if "XRP" not in name and "other" not in name]
"""Every limit that an order of BTC by strategy manual needs."""
SIDES: Final = pytest.mark.parametrize("side", [{}, SELL_MARKET], ids=["buy", "market sell"])


async def rewrite(books: Books, limit: str, text: str | None) -> None:
    """Put any text where a limit stands in its record, or take it out."""
    record, _, name = limit.rpartition("|")
    key = f"{DESK if record == 'global' else BASE}:limits"
    before = await books.ledger._direct("HGET", key, record)
    kept = [part for part in before.split(" ") if not part.startswith(f"{name}=")]
    assert len(kept) == before.count(" ")
    after = sorted(kept + ([] if text is None else [f"{name}={text}"]))
    await books.ledger._direct("HSET", key, record, " ".join(after))


def scope_of(limit: str) -> str:
    """The scope a denial names."""
    record = limit.rpartition("|")[0]
    return f"key|{KEY}" if record == "key|*" else record


@SIDES
@pytest.mark.parametrize("limit", NEEDED)
async def test_a_missing_limit_denies_and_is_named(books: Books, limit: str, side: dict[str, Any]) -> None:
    await books.open(lots={"BTC-USD": 100})
    await rewrite(books, limit, None)
    (denial,) = await books.denials("o-1", **side)
    assert (denial["code"], denial["scope"]) == ("MISSING_LIMIT", scope_of(limit))
    assert limit.rpartition("|")[2] in denial["message"]


NUMBERS: Final = [name for name in NEEDED if UNLIMITED[name] == "unlimited" or UNLIMITED[name].isdigit()]


NO_NUMBERS: Final = ["", "nan", "inf", "-1", "1e3", "1.5", "0x10", "none", "Unlimited", ":5", "5:x", "5:nan", "nan:5"]


@pytest.mark.parametrize("limit", NUMBERS)
async def test_a_limit_that_is_no_number_denies(books: Books, limit: str) -> None:
    # tonumber('nan') is a number in Lua, and nothing is larger than it: such a limit once let everything through.
    await books.open()
    for number, text in enumerate(NO_NUMBERS):
        await rewrite(books, limit, text)
        assert await books.codes(f"o-{number}") == {("MISSING_LIMIT", scope_of(limit))}, text


WORDS: Final = {
    "account|self_trade": "SELF_TRADE",
    "strategy|manual|short": "SHORT_NOT_ALLOWED",
    "product|BTC-USD|restricted": "SYMBOL_NOT_ALLOWED",
    "product|BTC-USD|hours": "MARKET_CLOSED",
    "strategy|manual|hours": "MARKET_CLOSED",
    "strategy|manual|versions": "STRATEGY_NOT_APPROVED",
    "product|BTC-USD|group": "MISSING_LIMIT",
}


@pytest.mark.parametrize("text", ["x", "Allow", "ALLOWED", "No", "n", "0", "false", "nil"])
@pytest.mark.parametrize("limit", WORDS)
async def test_a_word_nobody_knows_is_the_strictest_one(books: Books, limit: str, text: str) -> None:
    await books.open(lots={"BTC-USD": 100})
    await books.accept("resting", lots=1)
    await rewrite(books, limit, text)
    changed = SELL if WORDS[limit] in {"SELF_TRADE", "SHORT_NOT_ALLOWED"} else {}
    assert {code for code, _ in await books.codes("o-1", **changed)} & {WORDS[limit], "MISSING_LIMIT"}


@pytest.mark.parametrize("limit", ["account|reference_stale_ms", "account|taker_fee_ppm", "account|market_buffer_ppm"])
@SIDES
async def test_a_figure_needed_to_value_an_order_cannot_be_unlimited(
    books: Books, limit: str, side: dict[str, Any]
) -> None:
    await books.open(lots={"BTC-USD": 100})
    await rewrite(books, limit, "unlimited")
    assert await books.codes("o-1", **side) == {("MISSING_LIMIT", "account")}


@pytest.mark.parametrize("limit", ["global", "account", "key|*", "group|majors"])
async def test_a_record_that_is_missing_denies(books: Books, limit: str) -> None:
    await books.open()
    await books.ledger._direct("HDEL", f"{DESK if limit == 'global' else BASE}:limits", limit)
    scope = f"key|{KEY}" if limit == "key|*" else limit
    assert {rule for rule in await books.codes("o-1") if rule[0] == "MISSING_LIMIT"} == {("MISSING_LIMIT", scope)}


async def test_an_account_nobody_has_set_up_denies_everything(books: Books, ledger: Ledger) -> None:
    with pytest.raises(LedgerUnavailable, match=r"^RECONCILING"):
        await books.denials("o-1")
    await ledger.admit(ACCOUNT, await ledger.claim(ACCOUNT, "test"))
    codes = {code for code, _ in await books.codes("o-1")}
    assert codes == {
        *("MISSING_STATE", "MISSING_LIMIT", "MISSING_REFERENCE", "SYMBOL_NOT_ALLOWED", "STRATEGY_NOT_APPROVED"),
    }


async def aged(books: Books, product: str, age_ms: int) -> None:
    """Make a reference price ``age_ms`` older."""
    packed = (await books.ledger.snapshot(ACCOUNT)).reference[product].split()
    packed[2] = str(int(packed[2]) - age_ms)
    await books.ledger._direct("HSET", f"{BASE}:reference", product, " ".join(packed))


async def test_every_held_product_without_a_fresh_price_denies_by_name(books: Books) -> None:
    held = {"BTC-USD": 100, "XRP-USD": 1_000}
    await books.open(lots=held, limits={"account|reference_stale_ms": "1000000"})
    await aged(books, "XRP-USD", 2_000_000)
    assert await books.codes("o-1") == {("STALE_REFERENCE", "product|XRP-USD")}
    await aged(books, "BTC-USD", 2_000_000)
    both = {("STALE_REFERENCE", "product|BTC-USD"), ("STALE_REFERENCE", "product|XRP-USD")}
    assert await books.codes("o-2") == both
    await books.ledger._direct("HDEL", f"{BASE}:reference", "XRP-USD")
    await books.quote({"BTC-USD": (9_900, 10_100)})
    assert await books.codes("o-3") == {("STALE_REFERENCE", "product|XRP-USD")}
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    await books.quote({"XRP-USD": (50_000, 50_001)})
    await aged(books, "XRP-USD", 2_000_000)
    missing = {("MISSING_REFERENCE", "product|BTC-USD"), ("STALE_REFERENCE", "product|XRP-USD")}
    assert await books.codes("o-4") == missing
    # What is sold needs no other product's price.
    await books.quote({"BTC-USD": (9_900, 10_100)})
    await books.accept("exit", **SELL)


async def test_without_opened_books_no_buy_and_no_sell_passes(books: Books, ledger: Ledger) -> None:
    await books.limit({})
    await books.quote()
    await ledger.admit(ACCOUNT, await ledger.claim(ACCOUNT, "test"))
    assert ("MISSING_STATE", "account") in await books.codes("buy")
    assert {("MISSING_STATE", "account"), ("INSUFFICIENT_FUNDS", "account")} <= await books.codes("sell", **SELL)


# -- a denial names every rule broken ----------------------------------------------------------------------------------


async def test_an_order_that_breaks_many_rules_is_told_all_of_them(books: Books) -> None:
    scopes = ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")
    await books.open(
        cash=0,
        limits={
            **{f"{scope}|max_order_notional": "1" for scope in scopes},
            **{f"{scope}|max_open_orders": "0" for scope in scopes},
            **{f"{scope}|max_open_notional": "1" for scope in scopes},
            **{f"{scope}|max_daily_orders": "0" for scope in scopes},
            **{f"{scope}|max_daily_turnover": "1" for scope in scopes},
            **{f"{scope}|max_gross_exposure": "1" for scope in (*scopes[:4], "group|majors")},
            **{f"{scope}|max_net_exposure": "1" for scope in scopes[:3]},
            **{f"{scope}|max_order_to_trade": "0" for scope in ("account", "strategy|manual")},
            **{f"{scope}|max_concentration_ppm": "1" for scope in ("account", "product|BTC-USD")},
            "account|max_leverage_ppm": "1",
            "strategy|manual|versions": "1.0",
            "product|BTC-USD|restricted": "yes",
            "product|BTC-USD|hours": "0-0",
            "product|BTC-USD|max_order_lots": "1",
            "product|BTC-USD|max_position_lots": "1",
            "product|BTC-USD|max_strategy_position_lots": "1",
            "product|BTC-USD|collar_ppm": "1",
            "product|BTC-USD|max_spread_ppm": "1",
            "account|max_rejects": "0",
        },
    )
    await books.halt("global")
    await books.halt("account", TradingState.REDUCING)
    await books.ledger._direct("HDEL", f"{BASE}:state", "strategy|manual")
    await rewrite(books, "account|order_burst", None)
    asked = order("o-1", ticks=10_001, reduce_only=True)
    before = await books.keys()
    checked = await books.check(asked)
    assert await books.keys() == before
    verdict = await books.reserve(asked)
    assert checked.answer == verdict.answer
    named = tuple(f"key|{KEY}" if scope == "key|*" else scope for scope in scopes)
    assert sorted(rules(verdict.answer["denials"])) == sorted(
        [
            ("TRADING_HALTED", "global"),
            ("REDUCE_ONLY_MODE", "account"),
            ("MISSING_STATE", "strategy|manual"),
            ("MISSING_LIMIT", "account"),
            ("REDUCE_ONLY_WOULD_INCREASE", "account"),
            ("STRATEGY_NOT_APPROVED", "strategy|manual"),
            ("SYMBOL_NOT_ALLOWED", "product|BTC-USD"),
            ("MARKET_CLOSED", "product|BTC-USD"),
            ("QTY_EXCEEDS_MAX", "product|BTC-USD"),
            ("MAX_POSITION", "product|BTC-USD"),
            ("MAX_POSITION", "product|BTC-USD"),
            ("PRICE_COLLAR", "product|BTC-USD"),
            ("BAD_BOOK", "product|BTC-USD"),
            *(("NOTIONAL_EXCEEDS_MAX", scope) for scope in named),
            *(("MAX_OPEN_ORDERS", scope) for scope in named),
            *(("MAX_OPEN_VALUE", scope) for scope in named),
            *(("DAILY_ORDERS", scope) for scope in named),
            *(("DAILY_TURNOVER", scope) for scope in named),
            *(("MAX_GROSS", scope) for scope in (*named[:4], "group|majors")),
            *(("MAX_NET", scope) for scope in named[:3]),
            *(("OTR", scope) for scope in ("account", "strategy|manual")),
            *(("CONCENTRATION", scope) for scope in ("account", "product|BTC-USD")),
            ("LEVERAGE", "account"),
            ("INSUFFICIENT_FUNDS", "account"),
        ]
    )


async def test_without_a_price_the_rules_that_need_none_are_still_named(books: Books) -> None:
    await books.open(cash=0, limits={"account|max_open_orders": "0", "product|BTC-USD|max_position_lots": "9"})
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    assert await books.codes("o-1", **BUY_MARKET) == {
        ("MISSING_REFERENCE", "product|BTC-USD"),
        ("MAX_OPEN_ORDERS", "account"),
        ("MAX_POSITION", "product|BTC-USD"),
    }


async def test_what_the_stateless_checks_found_is_recorded_as_the_denial(books: Books) -> None:
    await books.open()
    found = [Denial("UNKNOWN_PRODUCT", "the venue has no such product", "product|ABC-USD", "ABC-USD")]
    asked = order("o-1", product_id="BTC-USD")
    before = await books.keys()
    checked = await books.ledger.check(asked, None, KEY, found)
    assert await books.keys() == before
    verdict = await books.ledger.reserve(asked, None, KEY, found)
    assert (verdict.kind, verdict.accepted, rules(verdict.answer["denials"])) == (
        "DENIED",
        False,
        [("UNKNOWN_PRODUCT", "product|ABC-USD")],
    )
    assert checked.answer == verdict.answer
    assert await books.status("o-1") == "DENIED"
    repeated = await books.ledger.reserve(asked, BTC, KEY)
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
    assert await books.codes("o-2", lots=1, ticks=most, **SELL) == {
        ("VALUE_TOO_LARGE", scope)
        for scope in ("global", "account", "strategy|manual", "product|BTC-USD", "group|majors")
    }
    assert await books.ledger.prove(ACCOUNT) == 0


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
    {"reduce_only": True},
    {"strategy_version": "2"},
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


async def test_ids_of_two_accounts_have_nothing_to_do_with_each_other(books: Books) -> None:
    await books.open()
    await open_second(books)
    await books.accept("o-1")
    await books.accept("o-1", account=SECOND, lots=11)
    assert (await books.reserve(order("o-1"))).kind == "REPEATED"


async def test_a_check_knows_no_ids(books: Books) -> None:
    await books.open(limits={"account|max_open_orders": "1"})
    await books.accept("o-1")
    before = await books.keys()
    for asked in (order("o-1"), order("o-1", lots=11), order("o-2")):
        checked = await books.check(asked)
        assert (checked.kind, rules(checked.answer["denials"])) == ("CHECKED", [("MAX_OPEN_ORDERS", "account")])
    assert await books.keys() == before


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


async def test_a_warning_is_in_the_answer_the_audit_and_the_alerts(books: Books, ledger: Ledger) -> None:
    await books.open(limits={"account|max_open_orders": "5:0", "global|max_open_orders": "5:0"})
    verdict = await books.reserve(order("o-1"))
    warnings = verdict.answer["warnings"]
    assert {(w["code"], w["scope"], w["value"], w["limit"], w["unit"]) for w in warnings} == {
        ("MAX_OPEN_ORDERS", scope, "1", "0", "orders") for scope in ("account", "global")
    }
    (entry,) = [fields for _, fields in await ledger.audit_entries(ACCOUNT) if fields["kind"] == "RESERVED"]
    assert json.loads(entry["data"])["warnings"] == warnings
    alerts = await ledger.alerts(ACCOUNT, 10)
    assert {(a["level"], a["code"], a["scope"], a["id"]) for a in alerts} == {
        ("SOFT", "MAX_OPEN_ORDERS", scope, "o-1") for scope in ("account", "global")
    }
    assert (await books.reserve(order("o-1"))).answer == verdict.answer


async def test_every_scope_counts_what_is_open(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100, "XRP-USD": 1_000})
    await books.accept("o-1")
    await books.accept("o-2", lots=5, ticks=9_000, strategy="other")
    await books.accept("o-3", **SELL)
    assert (await books.reserve(order("o-4", product_id="XRP-USD", lots=1_000, ticks=50_000), "alice")).accepted
    assert {n: v for n, v in (await books.book()).items() if not n.endswith("|lots")} == {
        "cash": 10**15,
        "reserved": 1_006_000 + 452_700 + 5_030_000,
        "a|open_orders": 4,
        "a|buy_notional": 1_000_000 + 450_000 + 5_000_000,
        "a|sell_notional": 1_000_000,
        "p|BTC-USD|open_orders": 3,
        "p|BTC-USD|buy_notional": 1_450_000,
        "p|BTC-USD|sell_notional": 1_000_000,
        "p|BTC-USD|buy_lots": 15,
        "p|BTC-USD|sell_lots": 10,
        "p|XRP-USD|open_orders": 1,
        "p|XRP-USD|buy_notional": 5_000_000,
        "p|XRP-USD|buy_lots": 1_000,
        "s|manual|open_orders": 3,
        "s|manual|buy_notional": 6_000_000,
        "s|manual|sell_notional": 1_000_000,
        "s|other|open_orders": 1,
        "s|other|buy_notional": 450_000,
        f"k|{KEY}|open_orders": 3,
        f"k|{KEY}|buy_notional": 1_450_000,
        f"k|{KEY}|sell_notional": 1_000_000,
        "k|alice|open_orders": 1,
        "k|alice|buy_notional": 5_000_000,
        "g|majors|buy_notional": 6_450_000,
        "g|majors|sell_notional": 1_000_000,
        "sp|manual|BTC-USD|buy_lots": 10,
        "sp|manual|BTC-USD|sell_lots": 10,
        "sp|manual|XRP-USD|buy_lots": 1_000,
        "sp|other|BTC-USD|buy_lots": 5,
    }
    desk = await books.book(account=None)
    assert {name: desk[name] for name in ("open_orders", "buy_notional", "sell_notional")} == {
        "open_orders": 4,
        "buy_notional": 6_450_000,
        "sell_notional": 1_000_000,
    }
