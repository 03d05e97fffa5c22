"""The holes of the nearest peer, NautilusTrader's RiskEngine, as its code shows them: it would fail each test here.

The letters are those of the list they were noted in: (a) fails open, (b) REDUCING flips, (c) limits it has not,
(d) nothing trips by itself, (e) a throttle for each process, (f) a mixed list judged by one instrument.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import pytest

from cluster.ledger import Ledger, LedgerUnavailable
from conf.settings import RedisSettings
from strategies.model import TradingState
from tests.books import ACCOUNT, BASE, Books, order
from tests.controls import BUY_MARKET, SELL, SELL_MARKET, Row
from tests.integration.test_three_writers import Asked, Writers

pytestmark = pytest.mark.anyio


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


@pytest.fixture(scope="module")
def writers(each_server: RedisSettings) -> Iterator[Writers]:
    """Three processes."""
    writers = Writers(each_server)
    yield writers
    writers.stop()


# -- (a) fails open ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [{}, SELL, BUY_MARKET, SELL_MARKET], ids=["buy", "sell", "market buy", "market sell"])
async def test_a_without_an_account_nothing_passes(books: Books, ledger: Ledger, side: Row) -> None:
    """There: no account in the cache, `return True`."""
    with pytest.raises(LedgerUnavailable):
        await books.reserve(order("o-1", **side))
    await books.limit({})
    await books.quote()
    await ledger.admit(ACCOUNT, await ledger.claim(ACCOUNT, "test"))
    assert ("MISSING_STATE", "account") in await books.codes("o-2", **side)


@pytest.mark.parametrize("side", [BUY_MARKET, SELL_MARKET], ids=["buy", "sell"])
async def test_a_without_a_price_no_market_order_passes(books: Books, side: Row) -> None:
    """There: no quote and no trade, a warning in the log, and the next check."""
    await books.open(lots={"BTC-USD": 100})
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")
    assert await books.codes("o-1", **side) == {("MISSING_REFERENCE", "product|BTC-USD")}


@pytest.mark.parametrize("side", [{}, BUY_MARKET, SELL, SELL_MARKET], ids=["buy", "market buy", "sell", "market sell"])
async def test_a_every_order_needs_its_funds(books: Books, side: Row) -> None:
    """There: a margin account is never asked for its balance."""
    await books.open(cash=0)
    assert await books.codes("o-1", **side) == {("INSUFFICIENT_FUNDS", "account")}


# -- (b) REDUCING that flips -------------------------------------------------------------------------------------------

FLIPS: list[tuple[str, int, list[Row], Row, bool]] = [
    # what, lots held, orders open before, the order, whether it may pass
    ("a buy while flat", 0, [], {"lots": 1}, False),
    ("a sell larger than what is held", 10, [], SELL | {"lots": 11}, False),
    ("two sells that are larger together", 10, [SELL | {"lots": 6}], SELL | {"lots": 5}, False),
    ("a buy larger than what is short", -10, [], {"lots": 11}, False),
    ("a sell of what is held", 10, [], SELL, True),
    ("a buy of what is short", -10, [], {}, True),
]


@pytest.mark.parametrize(("what", "lots", "before", "changed", "passes"), FLIPS, ids=[row[0] for row in FLIPS])
async def test_b_reducing_never_opens_and_never_flips(
    books: Books, what: str, lots: int, before: list[Row], changed: Row, passes: bool
) -> None:
    """There: only the sign of the position is looked at."""
    await books.open(lots={"BTC-USD": lots})
    for number, earlier in enumerate(before):
        await books.accept(f"before-{number}", **earlier)
    await books.halt("account", TradingState.REDUCING)
    assert (("REDUCE_ONLY_MODE", "account") not in await books.codes("o-1", **changed)) is passes


# -- (c) limits it has not ---------------------------------------------------------------------------------------------

Step = Callable[[Books], Awaitable[Any]]


async def nothing(books: Books) -> None:
    """Nothing happens before the order."""


async def halve(books: Books) -> None:
    """100 lots bought at 10,000 ticks are worth half."""
    await books.accept("in", lots=100)
    await books.send("in")
    await books.fill("in", 100, 10_000)
    await books.quote({"BTC-USD": (4_900, 5_100)})


async def age(books: Books) -> None:
    packed = (await books.ledger.snapshot(ACCOUNT)).reference["BTC-USD"].split()
    packed[2] = str(int(packed[2]) - 10_000_000)
    await books.ledger._direct("HSET", f"{BASE}:reference", "BTC-USD", " ".join(packed))


ABSENT: list[tuple[str, str, str, Step, Row]] = [
    # code, limit, its value, what happens before, the order
    ("MAX_POSITION", "product|BTC-USD|max_position_lots", "9", nothing, {}),
    ("MAX_GROSS", "account|max_gross_exposure", "999999", nothing, {}),
    ("MAX_NET", "account|max_net_exposure", "999999", nothing, {}),
    ("MAX_OPEN_ORDERS", "account|max_open_orders", "0", nothing, {}),
    ("DAILY_LOSS", "account|max_daily_loss", "5000000", halve, {}),
    ("DRAWDOWN", "account|max_drawdown_ppm", "1", halve, {}),
    ("PRICE_COLLAR", "product|BTC-USD|collar_ppm", "0", nothing, {"ticks": 10_001}),
    ("STALE_REFERENCE", "account|reference_stale_ms", "1000", age, {}),
    ("SELF_TRADE", "account|self_trade", "deny", lambda books: books.accept("own", lots=1, **SELL), {}),
]


@pytest.mark.parametrize(("code", "limit", "text", "before", "changed"), ABSENT, ids=[row[0] for row in ABSENT])
async def test_c_position_exposure_loss_price_age_and_self_trade_have_limits(
    books: Books, code: str, limit: str, text: str, before: Step, changed: Row
) -> None:
    """There: a notional for each order, the balance and a rate are all there is."""
    await books.open(
        cash=20_000_000, lots={} if code in {"DAILY_LOSS", "DRAWDOWN"} else {"BTC-USD": 1}, limits={limit: text}
    )
    await before(books)
    assert {found for found, _ in await books.codes("o-1", **changed)} == {code}


# -- (d) nothing trips by itself ---------------------------------------------------------------------------------------


async def test_d_a_fill_that_loses_too_much_halts_by_itself(books: Books) -> None:
    """There: fills and position events are only logged."""
    await books.open(limits={"strategy|manual|max_daily_loss": "100000", "strategy|manual|max_loss_streak": "1"})
    await books.accept("in")
    await books.send("in")
    await books.fill("in", 10, 10_000)
    await books.accept("out", **SELL)
    await books.send("out")
    await books.fill("out", 10, 9_000)
    assert (await books.states())["strategy|manual"] == "REDUCING"
    assert await books.codes("o-1") == {("DAILY_LOSS", "strategy|manual")}
    assert [alert["code"] for alert in await books.ledger.alerts(ACCOUNT)] == ["DAILY_LOSS"]


# -- (e) a throttle for each process -----------------------------------------------------------------------------------


async def test_e_three_processes_share_one_throttle(books: Books, writers: Writers) -> None:
    """There: three processes may send three times the rate."""
    await books.open(limits={"account|order_interval_us": "3600000000", "account|order_burst": "30"})
    asked: list[Asked] = [[(f"{writer}-{number}", {}) for number in range(30)] for writer in range(3)]
    answers = writers.ask(asked)
    assert Counter(kind for answer in answers for kind, *_ in answer) == {"ACCEPTED": 30, "DENIED": 60}


# -- (f) a mixed list judged by one instrument -------------------------------------------------------------------------


async def test_f_of_orders_sent_together_each_is_judged_by_its_own_product(books: Books) -> None:
    """There: a list of several instruments is checked with the first one's price, sizes and limits."""
    await books.open(limits={"product|XRP-USD|max_order_notional": "4999999", "product|BTC-USD|max_order_lots": "10"})
    xrp: Final[Row] = {"product_id": "XRP-USD", "ticks": 50_000}
    asked: list[Row] = [{}, xrp | {"lots": 1_000}, {"lots": 11}, xrp | {"lots": 999}]
    found = await asyncio.gather(*(books.codes(f"o-{number}", **changed) for number, changed in enumerate(asked)))
    assert found == [
        set(),
        {("NOTIONAL_EXCEEDS_MAX", "product|XRP-USD")},
        {("QTY_EXCEEDS_MAX", "product|BTC-USD")},
        set(),
    ]


async def test_f_of_orders_sent_together_each_counts_for_the_next(books: Books) -> None:
    """There: an order of a list sees only the cash that the others of its own kind have left."""
    await books.open(cash=1_006_000 + 502_000, limits={"account|max_open_orders": "2"})
    asked: list[Row] = [{}, {"product_id": "XRP-USD", "ticks": 50_000, "lots": 100}, {"lots": 1}]
    found = await asyncio.gather(*(books.codes(f"o-{number}", **changed) for number, changed in enumerate(asked)))
    assert found == [set(), {("INSUFFICIENT_FUNDS", "account")}, set()]
    assert await books.codes("o-3", lots=1) == {("MAX_OPEN_ORDERS", "account")}
