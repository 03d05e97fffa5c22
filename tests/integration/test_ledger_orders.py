"""The life of an order in the ledger, what fills do to cash, cost and profit, and the proof of the books."""

from __future__ import annotations

import asyncio
import random
from fractions import Fraction
from typing import Any, Final

import pytest

from cluster.audit import verify
from cluster.ledger import Ledger, LedgerError, StaleEpoch
from conf.settings import RedisSettings
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, BASE, DESK, Books, order
from tests.controls import SECOND, open_second
from tests.tampering import add_to_figure, set_figure

pytestmark = pytest.mark.anyio

SELL: Final = {"side": Side.SELL}


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


# -- one order, step by step -------------------------------------------------------------------------------------------


async def step(books: Books, verb: str) -> str:
    """Do one thing to order o-1 (10 lots reserved at 10,000 ticks); returns what the ledger answered."""
    name, _, rest = verb.partition(" ")
    ledger, epoch = books.ledger, books.epoch
    if name == "send":
        first, status = await ledger.mark_sent(ACCOUNT, epoch, "o-1")
        return f"{status} {'first' if first else 'not first'}"
    if name == "ack":
        return await ledger.ack(ACCOUNT, epoch, "o-1", OrderStatus(rest), "v-1")
    if name == "fill":
        lots, trade_id = rest.split()
        return " ".join(await books.fill("o-1", int(lots), 10_000, 60, trade_id))
    if name == "release":
        first, status = await ledger.release(ACCOUNT, epoch, "o-1", OrderStatus(rest), "why")
        return f"{status} {'first' if first else 'not first'}"
    assert name == "cancel"
    return " ".join(await ledger.request_cancel(ACCOUNT, "o-1", "test"))


LIVES: list[tuple[str, list[tuple[str, str]], int, int]] = [
    # what, steps and answers, lots held and lots still reserved in the end
    ("sent once", [("send", "SENT first"), ("send", "SENT not first")], 0, 10),
    ("acknowledged", [("send", "SENT first"), ("ack OPEN", "OPEN"), ("ack OPEN", "OPEN")], 0, 10),
    ("acknowledged before it was sent: nothing moves", [("ack OPEN", "RESERVED"), ("send", "SENT first")], 0, 10),
    (
        "filled in parts",
        [
            ("send", "SENT first"),
            ("ack OPEN", "OPEN"),
            ("fill 4 t1", "APPLIED PARTIALLY_FILLED"),
            ("fill 6 t2", "APPLIED FILLED"),
            ("send", "FILLED not first"),
        ],
        10,
        0,
    ),
    (
        "the same fill again",
        [
            ("send", "SENT first"),
            ("fill 4 t1", "APPLIED PARTIALLY_FILLED"),
            ("fill 4 t1", "DUPLICATE PARTIALLY_FILLED"),
            ("fill 6 t1", "DUPLICATE PARTIALLY_FILLED"),
            ("fill 6 t2", "APPLIED FILLED"),
            ("fill 6 t2", "DUPLICATE FILLED"),
            ("fill 4 t1", "DUPLICATE FILLED"),
        ],
        10,
        0,
    ),
    (
        "a fill before the acknowledgement",
        [("send", "SENT first"), ("fill 4 t1", "APPLIED PARTIALLY_FILLED"), ("ack OPEN", "PARTIALLY_FILLED")],
        4,
        6,
    ),
    ("a whole fill before the acknowledgement", [("fill 10 t1", "APPLIED FILLED"), ("ack OPEN", "FILLED")], 10, 0),
    ("more than was ordered", [("send", "SENT first"), ("fill 12 t1", "APPLIED FILLED")], 12, 0),
    (
        "more than was left",
        [("send", "SENT first"), ("fill 8 t1", "APPLIED PARTIALLY_FILLED"), ("fill 8 t2", "APPLIED FILLED")],
        16,
        0,
    ),
    (
        "a fill after the last",
        [("send", "SENT first"), ("fill 10 t1", "APPLIED FILLED"), ("fill 1 t2", "APPLIED FILLED")],
        11,
        0,
    ),
    (
        "a late fill after a cancel",
        [
            ("send", "SENT first"),
            ("release CANCELLED", "CANCELLED first"),
            ("fill 4 t1", "APPLIED CANCELLED"),
            ("fill 4 t1", "DUPLICATE CANCELLED"),
        ],
        4,
        0,
    ),
    (
        "cancelled after a part",
        [("send", "SENT first"), ("fill 4 t1", "APPLIED PARTIALLY_FILLED"), ("release CANCELLED", "CANCELLED first")],
        4,
        0,
    ),
    (
        "released once",
        [
            ("send", "SENT first"),
            ("release REJECTED", "REJECTED first"),
            ("release REJECTED", "REJECTED not first"),
            ("release CANCELLED", "REJECTED not first"),
        ],
        0,
        0,
    ),
    ("expired", [("send", "SENT first"), ("ack OPEN", "OPEN"), ("release EXPIRED", "EXPIRED first")], 0, 0),
    (
        "never released after it was filled",
        [("fill 10 t1", "APPLIED FILLED"), ("release CANCELLED", "FILLED not first")],
        10,
        0,
    ),
    (
        "cancelled before it was sent",
        [
            ("cancel", "CANCELLED CANCELLED"),
            ("send", "CANCELLED not first"),
            ("cancel", "CANCELLED ALREADY"),
            ("release CANCELLED", "CANCELLED not first"),
        ],
        0,
        0,
    ),
    (
        "cancelled after it was sent: the venue is asked",
        [("send", "SENT first"), ("cancel", "SENT REQUESTED"), ("ack OPEN", "OPEN"), ("cancel", "OPEN REQUESTED")],
        0,
        10,
    ),
    (
        "cancelled too late",
        [("send", "SENT first"), ("fill 10 t1", "APPLIED FILLED"), ("cancel", "FILLED ALREADY")],
        10,
        0,
    ),
    (
        "no answer from the venue: the reservation stays",
        [("send", "SENT first"), ("ack UNKNOWN", "UNKNOWN"), ("ack UNKNOWN", "UNKNOWN"), ("send", "UNKNOWN not first")],
        0,
        10,
    ),
    (
        "found after all",
        [("send", "SENT first"), ("ack UNKNOWN", "UNKNOWN"), ("ack OPEN", "OPEN"), ("ack UNKNOWN", "OPEN")],
        0,
        10,
    ),
    ("found filled", [("send", "SENT first"), ("ack UNKNOWN", "UNKNOWN"), ("fill 10 t1", "APPLIED FILLED")], 10, 0),
    (
        "not found after all",
        [("send", "SENT first"), ("ack UNKNOWN", "UNKNOWN"), ("release REJECTED", "REJECTED first")],
        0,
        0,
    ),
]


@pytest.mark.parametrize(("what", "steps", "held", "reserved"), LIVES, ids=[row[0] for row in LIVES])
async def test_the_life_of_an_order(
    books: Books, what: str, steps: list[tuple[str, str]], held: int, reserved: int
) -> None:
    await books.open(cash=10**9)
    await books.accept("o-1")
    for verb, answer in steps:
        assert (verb, await step(books, verb)) == (verb, answer)
        assert await verify(books.ledger, ACCOUNT) == []
    found = await books.book()
    assert await books.positions() == ({"BTC-USD": held} if held else {})
    # A lot is 100,000 micros and 60 of fee a fill; what is still reserved keeps its share of 1,006,000.
    fills = sum(answer.startswith("APPLIED") for _, answer in steps)
    assert found["cash"] == 10**9 - held * 100_000 - fills * 60
    assert found.get("reserved", 0) == reserved * 100_600
    assert found.get("a|buy_notional", 0) == reserved * 100_000
    assert found.get("a|open_orders", 0) == (1 if reserved else 0)
    assert found.get("p|BTC-USD|buy_lots", 0) == found.get("sp|manual|BTC-USD|buy_lots", 0) == reserved


@pytest.mark.parametrize("verb", ["send", "ack OPEN", "ack UNKNOWN", "fill 1 t1", "release CANCELLED", "cancel"])
async def test_an_order_nobody_knows_changes_nothing(books: Books, verb: str) -> None:
    await books.open()
    books.orders["o-1"] = order("o-1")
    before = await books.keys()
    assert (await step(books, verb)).split()[0] == "NOT_FOUND"
    assert await books.keys() == before


@pytest.mark.parametrize("verb", ["send", "ack OPEN", "fill 1 t1", "release CANCELLED", "cancel"])
async def test_a_denied_order_stays_denied(books: Books, verb: str) -> None:
    await books.open(limits={"account|max_open_orders": "0"})
    assert await books.denials("o-1")
    before = await books.book()
    await step(books, verb)
    assert (await books.status("o-1"), await books.book(), await books.outbox()) == ("DENIED", before, [])
    assert await verify(books.ledger, ACCOUNT) == []


async def test_an_ended_order_is_kept_for_two_days(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    await books.fill("o-1", 10, 10_000)
    for key in ("order", "fills"):
        assert 172_000 < await ledger._direct("TTL", f"{BASE}:{key}:o-1") <= 172_800


async def test_the_venues_id_and_the_reason_are_kept(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    await ledger.ack(ACCOUNT, books.epoch, "o-1", OrderStatus.OPEN, "venue-7")
    await ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.EXPIRED, "no match é", "sweeper")
    fields = await ledger.order(ACCOUNT, "o-1")
    assert fields is not None
    assert (fields["venue_order_id"], fields["reason"]) == ("venue-7", "no match é")


async def test_asking_for_a_cancel_twice_asks_the_venue_once(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    for _ in range(3):
        assert await ledger.request_cancel(ACCOUNT, "o-1", "test") == ("SENT", "REQUESTED")
    assert await books.outbox() == [("SUBMIT", "o-1"), ("CANCEL", "o-1")]
    assert (await books.audit()).count(("CANCEL_REQUESTED", "o-1")) == 1
    # Carried out or not, the entry is gone: asking again asks again.
    await ledger.outbox_open(ACCOUNT)
    entries = await ledger.outbox_read(ACCOUNT, "c", ">", 10)
    await ledger.outbox_done(ACCOUNT, [entry.entry_id for entry in entries])
    await ledger.request_cancel(ACCOUNT, "o-1", "test")
    assert await books.outbox() == [("CANCEL", "o-1")]


@pytest.mark.parametrize("status", [s for s in OrderStatus if s not in {OrderStatus.OPEN, OrderStatus.UNKNOWN}])
async def test_an_acknowledgement_says_open_or_unknown_and_nothing_else(books: Books, status: OrderStatus) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    before = await books.keys()
    with pytest.raises(LedgerError, match=status):
        await books.ledger.ack(ACCOUNT, books.epoch, "o-1", status)
    assert await books.keys() == before


@pytest.mark.parametrize("status", ["RESERVED", "SENT", "OPEN", "PARTIALLY_FILLED", "UNKNOWN", "FILLED", "DENIED"])
async def test_a_release_ends_an_order_and_nothing_else(books: Books, status: str) -> None:
    await books.open()
    await books.accept("o-1")
    before = await books.keys()
    with pytest.raises(LedgerError, match=status):
        await books.ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus(status), "why")
    assert await books.keys() == before


@pytest.mark.parametrize("changed", [{"side": Side.SELL}, {"product_id": "XRP-USD"}], ids=["side", "product"])
async def test_a_fill_of_another_side_or_product_is_refused(books: Books, changed: dict[str, Any]) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    books.orders["o-1"] = order("o-1", **changed)
    before = await books.keys()
    with pytest.raises(LedgerError, match="does not belong to order o-1"):
        await books.fill("o-1", 1, 10_000)
    assert await books.keys() == before


@pytest.mark.parametrize(("lots", "ticks"), [(0, 10_000), (-1, 10_000), (1, -1), (10**14, 10**5)])
async def test_a_fill_that_cannot_be_is_refused_and_leaves_nothing(books: Books, lots: int, ticks: int) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    before = await books.keys()
    with pytest.raises(LedgerError):
        await books.fill("o-1", lots, ticks)
    assert await books.keys() == before


async def test_a_fill_that_would_carry_a_sum_beyond_the_ledgers_integers_is_refused_whole(books: Books) -> None:
    await books.open(cash=2**51 - 1)
    await set_figure(books.ledger, BASE, "p|BTC-USD|lots", "10")
    await books.accept("o-1", **SELL)
    await books.send("o-1")
    before = await books.keys()
    with pytest.raises(LedgerError, match="cash would be more than the ledger can count"):
        await books.fill("o-1", 10, 10_000)
    assert await books.keys() == before


# -- epochs ------------------------------------------------------------------------------------------------------------


async def test_a_writer_of_an_older_epoch_is_refused_everywhere(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    old, new = books.epoch, await ledger.claim(ACCOUNT, "another")
    assert new == old + 1
    before = await books.keys()
    for verb in ("send", "ack OPEN", "ack UNKNOWN", "fill 1 t1", "release CANCELLED"):
        with pytest.raises(StaleEpoch, match=f"epoch {old}"):
            await step(books, verb)
    books.epoch = new + 1
    with pytest.raises(StaleEpoch):
        await step(books, "send")
    assert await books.keys() == before
    books.epoch = new
    assert await step(books, "fill 10 t1") == "APPLIED FILLED"


async def test_before_anybody_has_claimed_the_account_no_epoch_counts(books: Books, ledger: Ledger) -> None:
    await books.limit({})
    for epoch in (0, 1, -1):
        with pytest.raises(StaleEpoch):
            await ledger.mark_sent(ACCOUNT, epoch, "o-1")


# -- cash, cost and profit ---------------------------------------------------------------------------------------------

PROFITS: list[tuple[str, list[tuple[str, int, int, int]], dict[str, int]]] = [
    # what, fills (side, lots, ticks, fee in micros), lots held, cost and realised profit in micros; a lot-tick is 10
    ("bought", [("BUY", 10, 10_000, 600)], {"lots": 10, "cost": 1_000_000, "realised": 0}),
    (
        "bought twice: the average",
        [("BUY", 10, 10_000, 0), ("BUY", 30, 12_000, 0)],
        {"lots": 40, "cost": 4_600_000, "realised": 0},
    ),
    (
        "sold with a profit",
        [("BUY", 10, 10_000, 600), ("SELL", 10, 11_000, 660)],
        {"lots": 0, "cost": 0, "realised": 100_000},
    ),
    (
        "sold with a loss",
        [("BUY", 10, 10_000, 0), ("SELL", 10, 9_000, 0)],
        {"lots": 0, "cost": 0, "realised": -100_000},
    ),
    (
        "sold in part",
        [("BUY", 10, 10_000, 0), ("SELL", 4, 11_000, 0)],
        {"lots": 6, "cost": 600_000, "realised": 40_000},
    ),
    (
        "what rounding leaves stays in the cost",
        [("BUY", 1, 10_000, 0), ("BUY", 2, 10_001, 0), ("SELL", 1, 10_000, 0), ("SELL", 1, 10_000, 0)],
        {"lots": 1, "cost": 100_007, "realised": -13},
    ),
    (
        "until the last lot takes it along",
        [("BUY", 1, 10_000, 0), ("BUY", 2, 10_001, 0), *[("SELL", 1, 10_000, 0)] * 3],
        {"lots": 0, "cost": 0, "realised": -20},
    ),
    ("sold short", [("SELL", 10, 10_000, 0)], {"lots": -10, "cost": -1_000_000, "realised": 0}),
    (
        "bought back",
        [("SELL", 10, 10_000, 0), ("BUY", 10, 9_000, 0)],
        {"lots": 0, "cost": 0, "realised": 100_000},
    ),
    (
        "bought back in part at a loss",
        [("SELL", 10, 10_000, 0), ("BUY", 5, 12_000, 0)],
        {"lots": -5, "cost": -500_000, "realised": -100_000},
    ),
    (
        "from long to short in one fill",
        [("BUY", 10, 10_000, 0), ("SELL", 25, 11_000, 0)],
        {"lots": -15, "cost": -1_650_000, "realised": 100_000},
    ),
    (
        "from short to long in one fill",
        [("SELL", 10, 10_000, 0), ("BUY", 25, 9_000, 0)],
        {"lots": 15, "cost": 1_350_000, "realised": 100_000},
    ),
    (
        "there and back again",
        [("BUY", 3, 10_001, 7), ("SELL", 7, 10_003, 7), ("BUY", 4, 9_999, 7)],
        {"lots": 0, "cost": 0, "realised": 3 * 20 + 4 * 40},
    ),
    ("at no price", [("BUY", 10, 0, 0), ("SELL", 10, 10_000, 0)], {"lots": 0, "cost": 0, "realised": 1_000_000}),
]


@pytest.mark.parametrize(("what", "fills", "expected"), PROFITS, ids=[row[0] for row in PROFITS])
async def test_cost_and_realised_profit(
    books: Books, what: str, fills: list[tuple[str, int, int, int]], expected: dict[str, int]
) -> None:
    await books.open(cash=10**9)
    await filled(books, fills)
    book, position = await books.book(), (await books.positions()).get("BTC-USD", 0)
    assert {"lots": position, **{n: book.get(f"p|BTC-USD|{n}", 0) for n in ("cost", "realised")}} == expected
    assert {n: book.get(f"sp|manual|BTC-USD|{n}", 0) for n in ("lots", "cost", "realised")} == expected
    bought = sum((1 if side == "BUY" else -1) * lots * ticks * 10 for side, lots, ticks, _ in fills)
    assert book["cash"] == 10**9 - bought - sum(fee for *_, fee in fills)
    assert await verify(books.ledger, ACCOUNT) == []


async def filled(books: Books, fills: list[tuple[str, int, int, int]], product_id: str = "BTC-USD") -> None:
    """Book fills of any size through one open order a side: what is filled beyond it counts all the same."""
    ids = {side: f"{product_id}-{side}" for side in ("BUY", "SELL")}
    for side, order_id in ids.items():
        if order_id not in books.orders:
            # A spot account sells what it has: one lot for as long as it takes to ask.
            await add_to_figure(books.ledger, BASE, f"p|{product_id}|lots", 1)
            await books.accept(order_id, lots=1, ticks=10_000, side=Side(side), product_id=product_id)
            await add_to_figure(books.ledger, BASE, f"p|{product_id}|lots", -1)
    for side, lots, ticks, fee in fills:
        outcome, _ = await books.fill(ids[side], lots, ticks, fee)
        assert outcome == "APPLIED"


@pytest.mark.parametrize("seed", range(4))
async def test_any_sequence_of_fills_is_booked_to_the_micro(books: Books, seed: int) -> None:
    """Against fractions: cash and cash flow exactly, average cost to one micro a closing, all of it gone when flat."""
    chance = random.Random(seed)
    await books.open(cash=10**12)
    lots = fees = 0
    spent, cost, realised, closings = Fraction(0), Fraction(0), Fraction(0), 0
    for _ in range(60):
        side, amount = chance.choice(["BUY", "SELL"]), chance.choice([1, 2, 3, 7, 10, abs(lots) or 1, abs(lots) + 5])
        ticks, fee = chance.randint(1, 200_000), chance.randint(-5, 5_000)
        await filled(books, [(side, amount, ticks, fee)], "XRP-USD")
        sign, value = (1 if side == "BUY" else -1), Fraction(round(Fraction(amount * ticks, 10)))
        closing = min(abs(lots), amount) if lots * sign < 0 else 0
        if closing:
            closed_cost = cost * closing / abs(lots)
            realised += -sign * value * closing / amount - closed_cost
            cost -= closed_cost
            closings += 1
        cost += sign * value * (amount - closing) / amount
        lots, spent, fees = lots + sign * amount, spent + sign * value, fees + fee
        book = await books.book()
        booked_cost, booked_realised = (book.get(f"p|XRP-USD|{name}", 0) for name in ("cost", "realised"))
        assert (await books.positions()).get("XRP-USD", 0) == lots
        assert book["cash"] == 10**12 - spent - fees
        assert booked_cost - booked_realised == spent
        assert abs(booked_cost - cost) <= closings + 1
        assert abs(booked_realised - realised) <= closings + 1
        if lots == 0:
            assert booked_cost == 0
            cost, realised, closings = Fraction(0), Fraction(booked_realised), 0
    assert (await books.book())["p|XRP-USD|fees"] == (await books.book())["fees"] == fees
    assert await verify(books.ledger, ACCOUNT) == []


async def test_a_part_of_a_fill_frees_its_share_rounded_to_the_safe_side(books: Books) -> None:
    await books.open()
    await books.accept("o-1", product_id="XRP-USD", lots=7, ticks=33_333)  # 23,333.1 micros -> 23,334, fee 141
    await books.send("o-1")
    for lots, notional in ((2, 16_668), (2, 10_001), (2, 3_334), (1, 0)):
        await books.fill("o-1", lots, 33_333)
        assert (await books.book()).get("a|buy_notional", 0) == notional
        assert await verify(books.ledger, ACCOUNT) == []


async def test_a_strategy_holds_what_its_own_orders_bought(books: Books) -> None:
    await books.open()
    for name, strategy in (("o-1", "manual"), ("o-2", "other")):
        await books.accept(name, strategy=strategy)
        await books.send(name)
        await books.fill(name, 10, 10_000)
    await books.accept("o-3", lots=15, **SELL)
    await books.send("o-3")
    await books.fill("o-3", 15, 10_000)
    assert await books.positions() == {"BTC-USD": 5}
    assert await books.strategy_positions() == {("manual", "BTC-USD"): -5, ("other", "BTC-USD"): 10}
    snapshot = await books.ledger.snapshot(ACCOUNT)
    assert (snapshot.book["held"], snapshot.book["p|BTC-USD|strategies"]) == ("BTC-USD", "manual other")
    assert await verify(books.ledger, ACCOUNT) == []


# -- opening -----------------------------------------------------------------------------------------------------------


async def test_the_books_are_opened_once(books: Books, ledger: Ledger) -> None:
    await books.open(cash=5, lots={"BTC-USD": 3})
    assert await ledger.open_account(ACCOUNT, 7, {"BTC-USD": (9, 9)}, "test") is False
    assert (await books.book())["cash"] == 5
    assert await books.positions() == {"BTC-USD": 3}


@pytest.mark.parametrize(
    ("cash", "position"),
    [(2**51, (0, 0)), (-(2**51), (0, 0)), (0, (2**51, 0)), (0, (1, 2**51)), (0, (0, 1)), (0, (1, -1)), (0, (-1, 1))],
)
async def test_an_opening_that_cannot_be_is_refused_and_leaves_nothing(
    books: Books, ledger: Ledger, cash: int, position: tuple[int, int]
) -> None:
    before = await books.keys()
    with pytest.raises(LedgerError):
        await ledger.open_account(ACCOUNT, cash, {"XRP-USD": (1, 1), "BTC-USD": position}, "test")
    assert await books.keys() == before


# -- trading states ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        ("global", {"o-1", "o-2", "o-3"}),
        ("account", {"o-1", "o-2", "o-3"}),
        ("strategy|manual", {"o-1", "o-3"}),
        ("product|BTC-USD", {"o-1", "o-2"}),
        ("strategy|nobody", set()),
    ],
)
async def test_cancel_all_cancels_what_was_not_sent_and_asks_for_the_rest(
    books: Books, ledger: Ledger, scope: str, covered: set[str]
) -> None:
    await books.open()
    await books.accept("o-1")
    await books.accept("o-2", strategy="other")
    await books.accept("o-3", product_id="XRP-USD")
    await books.send("o-1")
    account = None if scope == "global" else ACCOUNT
    seq, asked, holds = await ledger.tighten(account, scope, TradingState.CANCEL_ALL, "test", "drill")
    assert (seq > 0, asked, holds) == (True, len(covered), "CANCEL_ALL")
    cancelled = {name for name in ("o-2", "o-3") if await books.status(name) == "CANCELLED"}
    assert cancelled == covered - {"o-1"}
    assert (("CANCEL", "o-1") in await books.outbox()) == ("o-1" in covered)
    assert await verify(books.ledger, ACCOUNT) == []


async def test_cancel_all_twice_asks_the_venue_once(books: Books, ledger: Ledger) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    for _ in range(2):
        assert (await ledger.tighten(ACCOUNT, "account", TradingState.CANCEL_ALL, "test", "drill"))[1] == 1
    assert (await books.outbox()).count(("CANCEL", "o-1")) == 1


async def test_cancel_all_of_the_desk_covers_every_account(books: Books, ledger: Ledger) -> None:
    await books.open()
    epoch = await open_second(books)
    await books.accept("o-1")
    await books.accept("o-2", account=SECOND)
    await books.accept("o-3", account=SECOND)
    assert (await ledger.mark_sent(SECOND, epoch, "o-3"))[0]
    assert (await ledger.tighten(None, "global", TradingState.CANCEL_ALL, "test", "drill"))[1] == 3
    found = [
        await ledger.order(account, name) for account, name in ((ACCOUNT, "o-1"), (SECOND, "o-2"), (SECOND, "o-3"))
    ]
    assert [fields["status"] for fields in found if fields] == ["CANCELLED", "CANCELLED", "SENT"]
    (entry,) = await ledger.audit_entries(SECOND, (await ledger.audit_entries(SECOND))[-2][0])
    assert (entry[1]["kind"], entry[1]["id"]) == ("CANCEL_REQUESTED", "o-3")


async def test_a_damaged_order_does_not_keep_the_others_from_being_cancelled(books: Books, ledger: Ledger) -> None:
    await books.open()
    for name in ("o-1", "o-2", "o-3", "o-4"):
        await books.accept(name)
    await ledger._direct("HSET", f"{BASE}:order:o-2", "reserved_lots", "ten")
    await ledger._direct("DEL", f"{BASE}:order:o-3")
    assert (await ledger.tighten(ACCOUNT, "account", TradingState.CANCEL_ALL, "test", "drill"))[1] == 2
    assert [await books.status(name) for name in ("o-1", "o-2", "o-4")] == ["CANCELLED", "RESERVED", "CANCELLED"]
    assert await verify(ledger, ACCOUNT) != []


NO_SCOPES: Final = [
    *(
        (ACCOUNT, scope)
        for scope in ("", "epoch", "strategy", "strategy|", "strategy|A", "product|btc", "x|y", "global")
    ),
    *((ACCOUNT, scope) for scope in ("cause|account", "key|*", "group|majors")),
    *((None, scope) for scope in ("account", "strategy|manual", "product|BTC-USD", "")),
]


@pytest.mark.parametrize(("account", "scope"), NO_SCOPES)
async def test_a_scope_that_is_none_is_refused(books: Books, ledger: Ledger, account: str | None, scope: str) -> None:
    # A state written to the field "epoch" would have fenced out every writer.
    await books.open()
    before = await books.keys()
    with pytest.raises(LedgerError, match="not a scope"):
        await ledger.tighten(account, scope, TradingState.HALTED, "test", "drill")
    with pytest.raises(LedgerError, match="not a scope"):
        await ledger.propose_resume(account, scope, "test", "asker", "drill")
    assert await books.keys() == before


# -- prices ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quote", [(0, 1), (-1, 1), (1, 0), (1, -1), (1, 2**51), (2**51, 1)])
async def test_of_prices_that_cannot_be_none_is_set(books: Books, quote: tuple[int, int]) -> None:
    await books.quote()
    before = await books.keys()
    with pytest.raises(LedgerError):
        await books.quote({"XRP-USD": (1, 2), "BTC-USD": quote})
    assert await books.keys() == before


# -- the proof of the books --------------------------------------------------------------------------------------------


async def lively(books: Books) -> Books:
    """Books with something in every figure: held, open and partly filled, in both products and strategies."""
    await books.open(cash=10**12, lots={"BTC-USD": 100})
    for number, strategy in enumerate(("manual", "other")):
        for product in ("BTC-USD", "XRP-USD"):
            name = f"{strategy}-{product}"
            await books.accept(name, strategy=strategy, product_id=product, lots=100)
            await books.send(name)
            await books.fill(name, 40 + number, 9_999, fee=77)
    await books.accept("sell", lots=20, **SELL)
    await books.send("sell")
    await books.fill("sell", 5, 10_100, fee=3)
    await books.accept("waiting", lots=3)
    assert await verify(books.ledger, ACCOUNT) == []
    return books


# What the server holds and no entry tells: how fast orders came, and when the venue failed.
NOT_PROVED: Final = {"tat", "msg_tat", "venue_errors", "archived"}


async def test_a_change_to_any_figure_of_the_book_is_found_and_named(books: Books, ledger: Ledger) -> None:
    await lively(books)
    assert await verify(ledger, None) == []
    for account, base in ((ACCOUNT, BASE), (None, DESK)):
        snapshot = await ledger.snapshot(account)
        book = snapshot.book if account else snapshot.desk_book
        names = [name for name in book if name.rpartition("|")[2] not in NOT_PROVED]
        assert len(names) > (80 if account else 9)
        for name in names:
            figure = int(book[name]) if book[name].lstrip("-").isdigit() and name != "head" else None
            for text in (str(figure + 1), str(figure - 1)) if figure is not None else (f"x{book[name][1:]}", ""):
                await set_figure(ledger, base, name, text)
                assert await verify(ledger, account), (base, name, text)
            await set_figure(ledger, base, name, book[name])
        assert await verify(ledger, account) == []


async def test_a_change_to_any_counter_of_open_orders_halts_at_the_next_proof(books: Books, ledger: Ledger) -> None:
    await lively(books)
    counters = ("open_orders", "buy_notional", "sell_notional", "buy_lots", "sell_lots", "reserved")
    book = (await ledger.snapshot(ACCOUNT)).book
    names = [name for name in book if name.rpartition("|")[2] in counters]
    assert len(names) > 20
    for name in names:
        for change in (1, -1):
            await add_to_figure(ledger, BASE, name, change)
            assert await ledger.prove(ACCOUNT) == 1, name
            await add_to_figure(ledger, BASE, name, -change)
    assert await ledger.prove(ACCOUNT) == 0
    assert await books.causes() == {"account": "INVARIANT"}


@pytest.mark.parametrize("name", ["open_orders", "buy_notional", "sell_notional", "gross", "value", "pnl", "equity"])
async def test_a_change_to_a_counter_of_the_desk_halts_the_desk(books: Books, ledger: Ledger, name: str) -> None:
    await lively(books)
    await add_to_figure(ledger, DESK, name, 1)
    assert await ledger.prove(ACCOUNT) == 0
    assert await ledger.prove(None) == 1
    assert await books.causes() == {"global": "INVARIANT"}


@pytest.mark.parametrize("name", ["reserved_lots", "reserved_notional", "reserved_cash"])
async def test_a_change_to_an_open_orders_reservation_is_found(books: Books, ledger: Ledger, name: str) -> None:
    await lively(books)
    await ledger._direct("HINCRBY", f"{BASE}:order:manual-BTC-USD", name, "1")
    assert await verify(ledger, ACCOUNT)
    assert await ledger.prove(ACCOUNT)


FAULTS: list[tuple[str, list[tuple[str, ...]], str]] = [
    # what, commands, what a difference names
    ("an order's record is gone", [("DEL", f"{BASE}:order:sell")], "orders in :open without a reservation"),
    (
        "an order has ended but is still open",
        [("HSET", f"{BASE}:order:sell", "status", "FILLED")],
        "without a reservation",
    ),
    ("an order's record is no order", [("HSET", f"{BASE}:order:sell", "reserved_cash", "x")], "without a reservation"),
    ("an open order is not listed", [("ZREM", f"{BASE}:open", "sell")], "a|open_orders"),
    ("an order listed that never was", [("ZADD", f"{BASE}:open", "1", "ghost")], "without a reservation"),
    ("nobody will send a reserved order", [("DEL", f"{BASE}:outbox")], "missing in the outbox"),
    ("a position is gone", [("HDEL", f"{BASE}:book", "p|BTC-USD|lots")], "p|BTC-USD|lots"),
    ("the book is gone", [("DEL", f"{BASE}:book")], "a|open_orders"),
    ("the audit stream is gone", [("DEL", f"{BASE}:audit")], "audit entries"),
    ("the count of entries is ahead", [("HINCRBY", f"{BASE}:book", "seq", "1")], "audit entries"),
    ("a state nobody set", [("HSET", f"{BASE}:state", "account", "HALTED")], ":state account"),
    ("a limit nobody set", [("HSET", f"{BASE}:limits", "key|x", "max_open_orders=1")], ":limits key|x"),
]


@pytest.mark.parametrize(("what", "commands", "named"), FAULTS, ids=[row[0] for row in FAULTS])
async def test_a_planted_fault_is_found(
    books: Books, ledger: Ledger, what: str, commands: list[tuple[str, ...]], named: str
) -> None:
    await lively(books)
    for command in commands:
        await ledger._direct(*command)
    found = await verify(ledger, ACCOUNT)
    assert any(named in difference.what for difference in found), found


@pytest.mark.parametrize(
    ("name", "text"), [("cash", "much"), ("p|BTC-USD|lots", "1.5"), ("p|DOGE-USD|lots", "5"), ("s|manual|pnl", "nan")]
)
async def test_a_figure_that_nobody_booked_is_found(books: Books, ledger: Ledger, name: str, text: str) -> None:
    await lively(books)
    await set_figure(ledger, BASE, name, text)
    found = await verify(ledger, ACCOUNT)
    assert any(name.rpartition("|")[0] in difference.what for difference in found), found


async def test_the_proof_holds_while_others_write(books: Books, ledger: Ledger) -> None:
    await books.open()

    async def write(name: str) -> None:
        for number in range(15):
            await books.accept(f"{name}-{number}")
            await books.send(f"{name}-{number}")
            await books.fill(f"{name}-{number}", 5, 10_000)

    writers = [asyncio.create_task(write(name)) for name in "abc"]
    proofs = 0
    while not all(writer.done() for writer in writers):
        assert await verify(ledger, ACCOUNT) == []
        assert await ledger.prove(ACCOUNT) == 0
        proofs += 1
    await asyncio.gather(*writers)
    assert proofs > 3
