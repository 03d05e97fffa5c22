"""Amendments (control 41): decided as a new order in place of the open part; of old and new the larger is reserved.

Beside them what else came with orders that wait: triggers, ends, and whether real orders may pass at all (control 56).
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest

from cluster.audit import verify
from cluster.ledger import EnvironmentMixed, Ledger, Verdict, account_base, order_of
from conf.settings import RedisSettings
from strategies.model import NS_PER_S, OrderStatus, OrderType, Side, TimeInForce, TradingState
from tests.books import ACCOUNT, ASKER, KEY, PRODUCTS, Books, order

pytestmark = pytest.mark.anyio

SELL: Final[dict[str, Any]] = {"side": Side.SELL}


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


async def resting(books: Books, name: str = "o-1", **changed: Any) -> None:
    """An order of 10 lots at 9,000 ticks that the venue has taken: 9,000 * 10 * 10 micros, and 0.6 % for the fee."""
    await books.accept(name, **({"ticks": 9_000} | changed))
    await books.send(name)
    await books.ledger.ack(ACCOUNT, books.epoch, name, OrderStatus.OPEN, f"venue-{name}")


async def amend(books: Books, name: str = "o-1", *, lots: int = 10, ticks: int = 9_000, **changed: Any) -> Verdict:
    asked = replace(books.orders[name], **changed)
    product = PRODUCTS[asked.product_id]
    wanted = replace(asked, quantity=product.quantity(lots), limit_price=product.price(ticks))
    verdict = await books.ledger.amend(wanted, product, KEY)
    assert verdict is not None
    return verdict


async def codes(books: Books, name: str = "o-1", **changed: Any) -> list[str]:
    verdict = await amend(books, name, **changed)
    return [denial["code"] for denial in verdict.answer.get("denials", ())]


async def held(books: Books, name: str = "o-1") -> tuple[int, int, int]:
    """Lots, notional and cash an order holds, which the book's counters must say too where it is alone."""
    fields = await books.ledger.order(ACCOUNT, name) or {}
    found = tuple(int(fields[f"reserved_{part}"]) for part in ("lots", "notional", "cash"))
    book = await books.book()
    assert book.get("reserved", 0) == found[2]
    assert book.get("a|buy_notional", 0) == found[1]
    assert book.get("p|BTC-USD|buy_lots", 0) == found[0]
    assert await books.ledger.prove(ACCOUNT) == 0
    return found[0], found[1], found[2]


OLD: Final = (10, 900_000, 905_400)


async def test_the_larger_of_old_and_new_is_held_until_the_venue_has_amended(books: Books) -> None:
    await books.open()
    await resting(books)
    assert await held(books) == OLD
    assert (await amend(books, lots=20, ticks=9_500)).kind == "ACCEPTED"
    assert await held(books) == (20, 1_900_000, 1_911_400)
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == "OPEN"
    assert await held(books) == (20, 1_900_000, 1_911_400)
    assert (await amend(books, lots=5, ticks=8_000)).kind == "ACCEPTED"
    assert await held(books) == (20, 1_900_000, 1_911_400)
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == "OPEN"
    assert await held(books) == (5, 400_000, 402_400)
    fields = await books.ledger.order(ACCOUNT, "o-1") or {}
    assert (fields["quantity"], Decimal(fields["limit_price"]), "amend" in fields) == ("0.005", Decimal(80), False)
    assert await verify(books.ledger, ACCOUNT) == []


async def test_an_amendment_the_venue_refuses_leaves_the_order_as_it_was(books: Books) -> None:
    await books.open()
    await resting(books)
    await amend(books, lots=20, ticks=9_500)
    assert await books.ledger.amend_refused(ACCOUNT, books.epoch, "o-1", "too late") == "OPEN"
    assert await held(books) == OLD
    # Settled once: what comes later changes nothing.
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == "OPEN"
    assert await books.ledger.amend_refused(ACCOUNT, books.epoch, "o-1", "again") == "OPEN"
    assert await held(books) == OLD
    assert (await books.ledger.alerts(ACCOUNT))[0]["code"] == "AMEND_REFUSED"


@pytest.mark.parametrize(("answer", "left"), [("amended", 8), ("refused", 3)])
async def test_fills_while_an_amendment_is_on_its_way_count_for_either_outcome(
    books: Books, answer: str, left: int
) -> None:
    await books.open()
    await resting(books)
    await books.fill("o-1", 5, 9_000)
    await amend(books, lots=15, ticks=9_000)
    assert await held(books) == (10, 900_000, 905_400)
    await books.fill("o-1", 2, 9_000)
    assert (await held(books))[0] == 8
    if answer == "amended":
        await books.ledger.amended(ACCOUNT, books.epoch, "o-1")
    else:
        await books.ledger.amend_refused(ACCOUNT, books.epoch, "o-1", "no")
    assert (await held(books))[0] == left
    await books.fill("o-1", left, 9_000)
    assert await books.status("o-1") == OrderStatus.FILLED
    assert await held(books) == (0, 0, 0)


async def test_an_order_filled_meanwhile_to_its_old_size_ends_when_the_amendment_is_refused(books: Books) -> None:
    await books.open()
    await resting(books)
    await amend(books, lots=15)
    await books.fill("o-1", 10, 9_000)
    assert await books.status("o-1") == OrderStatus.PARTIALLY_FILLED
    assert await books.ledger.amend_refused(ACCOUNT, books.epoch, "o-1", "it was filled") == OrderStatus.FILLED
    assert await held(books) == (0, 0, 0)
    assert "OVERFILL" not in (await books.causes()).values()


async def test_an_order_filled_meanwhile_beyond_its_new_size_ends_when_it_is_amended(books: Books) -> None:
    await books.open()
    await resting(books)
    await amend(books, lots=4)
    await books.fill("o-1", 6, 9_000)
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == OrderStatus.FILLED
    assert await held(books) == (0, 0, 0)


async def test_what_an_order_made_until_its_amendment_ended_it_counts_once(books: Books) -> None:
    await books.open(lots={"BTC-USD": 10})
    await books.accept("buy")
    await books.fill("buy", 10, 10_000)
    await resting(books, **(SELL | {"ticks": 11_000}))
    await amend(books, lots=4, ticks=11_000)
    await books.fill("o-1", 4, 11_000)
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == OrderStatus.FILLED
    # One more, and at a loss: the profit before is no part of it.
    await books.fill("o-1", 1, 9_000)
    assert (await books.book())["s|manual|streak"] == 1
    assert await verify(books.ledger, ACCOUNT) == []


async def test_a_cancelled_order_frees_what_its_amendment_held(books: Books) -> None:
    await books.open()
    await resting(books)
    await amend(books, lots=20)
    await books.ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.CANCELLED, "by the venue")
    assert await books.ledger.amended(ACCOUNT, books.epoch, "o-1") == "CANCELLED"
    assert await held(books) == (0, 0, 0)


async def test_only_an_open_limit_order_that_waits_for_ever_can_be_amended_and_never_below_what_is_filled(
    books: Books,
) -> None:
    await books.open()
    await books.accept("reserved", ticks=9_000)
    assert await codes(books, "reserved") == []
    assert await codes(books, "reserved", lots=11) == ["AMEND_NOT_OPEN"]
    await resting(books, "ioc", time_in_force=TimeInForce.IOC)
    assert await codes(books, "ioc", lots=11) == ["AMEND_TYPE"]
    await resting(books, "o-1")
    await books.fill("o-1", 4, 9_000)
    assert await codes(books, lots=4) == ["AMEND_BELOW_FILLED"]
    assert await codes(books, lots=3) == ["AMEND_BELOW_FILLED"]
    assert await codes(books, lots=5) == []
    assert await codes(books, lots=6) == ["AMEND_PENDING"]
    assert (await amend(books, lots=5)).kind == "REPEATED"
    await resting(books, "o-2")
    await books.ledger.request_cancel(ACCOUNT, "o-2", KEY)
    assert await codes(books, "o-2", lots=11) == ["AMEND_NOT_OPEN"]
    # A cancel that the venue did not carry out once made the order impossible to amend for good.
    entries = await books.ledger._direct("XRANGE", f"{account_base(ACCOUNT)}:outbox", "-", "+")
    await books.ledger.outbox_done(ACCOUNT, [entry for entry, fields in entries if fields["kind"] == "CANCEL"])
    assert await codes(books, "o-2", lots=11) == []
    unknown = replace(books.orders["o-1"], client_order_id="nobody")
    assert await books.ledger.amend(unknown, PRODUCTS["BTC-USD"], KEY) is None
    assert ("AMEND_DENIED", "o-1") in await books.audit()


async def test_a_repeat_of_an_order_is_answered_as_at_first_whatever_it_was_amended_to(books: Books) -> None:
    await books.open()
    first = await books.reserve(order("o-1", ticks=9_000))
    await books.send("o-1")
    await books.ledger.ack(ACCOUNT, books.epoch, "o-1", OrderStatus.OPEN, "venue-o-1")
    for lots in (20, 5):
        assert await codes(books, lots=lots) == []
        assert (await books.reserve(order("o-1", ticks=9_000))).answer == first.answer
        await books.ledger.amended(ACCOUNT, books.epoch, "o-1")
        repeat = await books.reserve(order("o-1", ticks=9_000))
        assert (repeat.kind, repeat.answer) == ("REPEATED", first.answer)


async def test_the_same_amendment_in_other_digits_is_a_repeat(books: Books) -> None:
    await books.open()
    await resting(books, "o-1")
    assert await codes(books, lots=11) == []
    product = PRODUCTS["BTC-USD"]
    price = product.price(9_000)
    for digits in (price.normalize(), price * Decimal("1.000")):
        asked = replace(books.orders["o-1"], quantity=product.quantity(11), limit_price=digits)
        verdict = await books.ledger.amend(asked, product, KEY)
        assert verdict is not None
        assert verdict.kind == "REPEATED"


@pytest.mark.parametrize(
    ("limit", "text", "code"),
    [
        ("account|max_order_notional", "1900000", "NOTIONAL_EXCEEDS_MAX"),
        ("account|max_open_notional", "1900000", "MAX_OPEN_VALUE"),
        ("product|BTC-USD|max_order_lots", "20", "QTY_EXCEEDS_MAX"),
        ("product|BTC-USD|max_position_lots", "20", "MAX_POSITION"),
        ("account|max_gross_exposure", "1900000", "MAX_GROSS"),
        ("strategy|manual|max_net_exposure", "1900000", "MAX_NET"),
    ],
)
async def test_an_amendment_is_held_to_the_limits_as_a_new_order_in_place_of_the_old(
    books: Books, limit: str, text: str, code: str
) -> None:
    await books.open(limits={limit: text})
    await resting(books)
    assert await codes(books, lots=21, ticks=9_500) == [code]
    assert await held(books) == OLD
    # Exactly the limit, which the old order does not use up beside the new one.
    assert await codes(books, lots=20, ticks=9_500) == []


async def test_cash_must_reach_for_the_new_order_only(books: Books) -> None:
    await books.open(cash=1_911_400)
    await resting(books)
    assert await codes(books, lots=21, ticks=9_500) == ["INSUFFICIENT_FUNDS"]
    assert await codes(books, lots=20, ticks=9_500) == []
    assert await codes(books, lots=10) == ["AMEND_PENDING"]


async def test_a_halt_stands_in_an_amendments_way_and_counts_of_orders_do_not(books: Books) -> None:
    await books.open(limits={"account|max_open_orders": "1", "account|max_daily_orders": "1"})
    await resting(books)
    assert await codes(books, lots=11) == []
    await books.ledger.amended(ACCOUNT, books.epoch, "o-1")
    await books.halt("account", TradingState.HALTED)
    assert await codes(books, lots=12) == ["TRADING_HALTED"]
    await books.resume("account")
    await books.halt("account", TradingState.REDUCING)
    assert await codes(books, lots=12) == ["REDUCE_ONLY_MODE"]


async def test_an_amendment_is_of_the_version_that_sent_the_order(books: Books) -> None:
    await books.open(limits={"strategy|manual|versions": "v1,v2"})
    await resting(books, strategy_version="v1")
    # As the front door does: what is amended is read back from the ledger.
    kept = order_of("o-1", ACCOUNT, await books.ledger.order(ACCOUNT, "o-1") or {})
    wanted = replace(kept, quantity=PRODUCTS["BTC-USD"].quantity(11))
    verdict = await books.ledger.amend(wanted, PRODUCTS["BTC-USD"], KEY)
    assert verdict is not None
    assert verdict.kind == "ACCEPTED", verdict.answer


async def test_of_three_who_amend_at_once_one_is_heard(books: Books) -> None:
    await books.open()
    await resting(books)
    answers = await asyncio.gather(*(amend(books, lots=11 + number) for number in range(3)))
    assert sorted(answer.kind for answer in answers) == ["ACCEPTED", "DENIED", "DENIED"]
    assert [entry for entry in await books.outbox() if entry[0] == "AMEND"] == [("AMEND", "o-1")]


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_amended_filled_and_ended_the_counters_add_up(books: Books, seed: int) -> None:
    """Against the plainest reference: what an order holds is never less than what may still be filled of it."""
    chance = random.Random(seed)
    await books.open(lots={"BTC-USD": 10_000})
    for name in ("o-1", "o-2", "o-3"):
        await resting(books, name, **(SELL | {"ticks": 11_000} if name == "o-3" else {}))
    for _ in range(120):
        name = chance.choice(["o-1", "o-2", "o-3"])
        fields = await books.ledger.order(ACCOUNT, name) or {}
        if fields["status"] not in {"OPEN", "PARTIALLY_FILLED"}:
            continue
        ticks = chance.choice([8_000, 9_000]) if name != "o-3" else chance.choice([10_500, 11_000])
        step = chance.choice(["amend", "amend", "fill", "amended", "refused"])
        if step == "amend":
            await amend(books, name, lots=chance.randint(1, 60), ticks=ticks)
        elif step == "fill":
            most = int(fields["reserved_lots"])
            await books.fill(name, chance.randint(1, max(1, most // 2)), ticks)
        elif step == "amended":
            await books.ledger.amended(ACCOUNT, books.epoch, name)
        else:
            await books.ledger.amend_refused(ACCOUNT, books.epoch, name, "no")
        assert await books.ledger.prove(ACCOUNT) == 0
        now = await books.ledger.order(ACCOUNT, name) or {}
        if now["status"] in {"OPEN", "PARTIALLY_FILLED"}:
            assert int(now["reserved_lots"]) >= int(now["lots"]) - int(now["filled_lots"])
    assert await verify(books.ledger, ACCOUNT) == []


# -- triggers and ends -------------------------------------------------------------------------------------------------


def stop(ticks: int, stop_ticks: int, kind: OrderType = OrderType.STOP_LIMIT, **changed: Any) -> dict[str, Any]:
    price = PRODUCTS["BTC-USD"].price(stop_ticks)
    return {"ticks": ticks, "type": kind, "stop_price": price, **changed}


@pytest.mark.parametrize(
    ("changed", "notional"),
    [
        (stop(10_300, 10_200), 1_030_000),
        (stop(9_700, 9_800, **SELL), 990_000),
        (stop(10_500, 9_500, OrderType.BRACKET, **SELL), 1_050_000),
        # Bought back at 5 % beyond the trigger at the worst.
        (stop(9_500, 10_200, OrderType.BRACKET), 1_071_000),
    ],
    ids=["stop buy", "stop sell", "bracket sell", "bracket buy"],
)
async def test_an_order_with_a_trigger_is_valued_at_its_worst_and_stands_in_no_own_orders_way(
    books: Books, changed: dict[str, Any], notional: int
) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"account|self_trade": "deny"})
    await books.accept("other", side=Side.SELL if changed.get("side") is not Side.SELL else Side.BUY, ticks=(
        11_000 if changed.get("side") is not Side.SELL else 9_000))  # fmt: skip
    verdict = await books.reserve(order("o-1", **changed))
    assert verdict.accepted, verdict
    assert int(verdict.answer["reserved_notional_micros"]) == notional


async def test_while_an_amendment_is_on_its_way_own_orders_keep_clear_of_both_prices(books: Books) -> None:
    # It once was the old price alone: a sell between the two met the own buy as soon as the venue had amended it.
    await books.open(lots={"BTC-USD": 100}, limits={"account|self_trade": "deny"})
    await resting(books)
    own = {("SELF_TRADE", "account")}
    assert await codes(books, ticks=9_600) == []
    assert await books.codes("at the new one", ticks=9_600, lots=1, **SELL) == own
    assert await books.codes("over it", ticks=9_601, lots=1, **SELL) == set()
    await books.ledger.amend_refused(ACCOUNT, books.epoch, "o-1", "no")
    assert await books.codes("over the old one again", ticks=9_590, lots=1, **SELL) == set()
    assert await codes(books, ticks=9_500) == []
    await books.ledger.amended(ACCOUNT, books.epoch, "o-1")
    assert await codes(books, ticks=9_100) == []
    assert await books.codes("at the present one", ticks=9_500, lots=1, **SELL) == own
    assert await books.codes("over the present one", ticks=9_501, lots=1, **SELL) == set()


async def test_a_trigger_the_market_has_passed_denies(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100})
    assert await books.codes("at the ask", **stop(10_200, 10_100)) == {("STOP_PRICE", "product|BTC-USD")}
    assert await books.codes("above", **stop(10_200, 10_101)) == set()
    assert await books.codes("at-the-bid", **stop(9_800, 9_900, **SELL)) == {("STOP_PRICE", "product|BTC-USD")}
    assert await books.codes("below", **stop(9_800, 9_899, **SELL)) == set()


async def test_a_limit_too_far_beyond_its_trigger_denies_and_a_far_trigger_does_not(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"product|BTC-USD|collar_ppm": "50000"})
    assert await books.codes("far", **stop(5_000, 5_000, **SELL)) == set()
    assert await books.codes("at", **stop(4_750, 5_000, **SELL)) == set()
    assert await books.codes("over", **stop(4_749, 5_000, **SELL)) == {("PRICE_COLLAR", "product|BTC-USD")}


async def test_an_end_in_the_past_denies(books: Books) -> None:
    await books.open()
    now_s = time.time_ns() // NS_PER_S
    gtd = {"ticks": 9_000, "time_in_force": TimeInForce.GTD}
    assert await books.codes("past", **gtd, end_ns=(now_s - 1) * NS_PER_S) == {("EXPIRE_IN_PAST", "account")}
    assert await books.codes("now", **gtd, end_ns=now_s * NS_PER_S) == {("EXPIRE_IN_PAST", "account")}
    assert await books.codes("later", **gtd, end_ns=(now_s + 60) * NS_PER_S) == set()


# -- real money --------------------------------------------------------------------------------------------------------


async def test_real_orders_pass_only_while_the_desk_is_armed(books: Books, ledger: Ledger) -> None:
    await books.open()
    await ledger.bind_environment("live", "test")
    assert await books.codes("o-1") == {("NOT_ARMED", "global")}
    until_ms = await ledger.time_ns() // 1_000_000 + 60_000
    await ledger.arm("key", ASKER, "the market opens", until_ms)
    arming = await ledger.armed()
    assert arming is not None
    assert (arming.person, arming.until_ms) == (ASKER, until_ms)
    assert await books.codes("o-2") == set()
    await ledger.disarm("key", "enough")
    assert await ledger.armed() is None
    assert await books.codes("o-3") == {("NOT_ARMED", "global")}
    # What is open can always be cancelled.
    assert await ledger.request_cancel(ACCOUNT, "o-2", KEY) == ("CANCELLED", "CANCELLED")


async def test_an_arming_ends_by_itself(books: Books, ledger: Ledger) -> None:
    await books.open()
    await ledger.bind_environment("live", "test")
    await ledger.arm("key", ASKER, "a moment", await ledger.time_ns() // 1_000_000 + 150)
    while await ledger.armed() is not None:
        await asyncio.sleep(0.01)
    assert await books.codes("o-1") == {("NOT_ARMED", "global")}


async def test_books_of_one_environment_never_become_those_of_another(books: Books, ledger: Ledger) -> None:
    await books.open()
    await ledger.bind_environment("paper", "test")
    await ledger.bind_environment("paper", "test")
    with pytest.raises(EnvironmentMixed, match=r"books are of paper.*would go to live"):
        await ledger.bind_environment("live", "test")
    assert await ledger.environment() == "paper"
    assert await books.codes("o-1") == set()


async def test_the_request_budget_is_one_for_all_and_keeps_a_share_for_cancels(ledger: Ledger) -> None:
    taken = await asyncio.gather(*(ledger.venue_budget("order", 10, 0.3, 0.0) for _ in range(30)))
    assert 7 <= sum(wait >= 0 for wait in taken) <= 8
    cancels = await asyncio.gather(*(ledger.venue_budget("cancel", 10, 0.3, 0.0) for _ in range(30)))
    assert 3 <= sum(wait >= 0 for wait in cancels) <= 4
    # Others wait their turn, and are told how long.
    assert await ledger.venue_budget("public", 10, 0.3, 0.0) == 0
    waits = [await ledger.venue_budget("cancel", 10, 0.3, 1.0) for _ in range(3)]
    assert waits == sorted(waits)
    assert all(0 < wait <= 1 for wait in waits)


# -- what came or went without an order --------------------------------------------------------------------------------


async def adjust(books: Books, lots: int, cost: int, cash: int = 0) -> None:
    made = await books.ledger.propose_adjust(ACCOUNT, cash, {"BTC-USD": (lots, cost)}, KEY, ASKER, "a transfer")
    await books.approve(made.id)


@pytest.mark.parametrize(("sign", "left"), [(1, 67), (-1, -67)], ids=["held", "owed"])
async def test_a_part_that_leaves_takes_its_part_of_the_cost_rounded_alike_for_what_is_held_and_owed(
    books: Books, sign: int, left: int
) -> None:
    await books.open()
    await adjust(books, sign * 3, sign * 100)
    await adjust(books, -sign, 0)
    assert (await books.book())["p|BTC-USD|cost"] == left
    assert await verify(books.ledger, ACCOUNT) == []


async def test_an_order_taken_over_keeps_its_trigger_and_its_end(books: Books) -> None:
    await books.open()
    found = order("o-1", **stop(10_300, 10_200), time_in_force=TimeInForce.GTD, end_ns=time.time_ns() + 60 * NS_PER_S)
    assert await books.ledger.adopt(books.epoch, found, PRODUCTS["BTC-USD"], "v")
    assert order_of("o-1", ACCOUNT, await books.ledger.order(ACCOUNT, "o-1") or {}) == found


async def test_a_bracket_purchase_taken_over_holds_what_one_that_is_asked_for_would(books: Books) -> None:
    await books.open()
    found = order("o-1", **stop(9_500, 10_200, OrderType.BRACKET))
    wanted = (await books.check(found)).answer["reserved_cash_micros"]
    assert await books.ledger.adopt(books.epoch, found, PRODUCTS["BTC-USD"], "v")
    assert await held(books) == (10, 1_071_000, int(wanted))
