"""Figures of a snapshot: worked examples in lots and micros; a lot is worth a micro at a tick unless said."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from cluster.exposure_figures import Day, ReferencePrice, Use, fall_ppm, share_ppm
from cluster.exposures import day_number, desk_figures, figures, limited_products, references_of
from cluster.ledger import Snapshot
from strategies.model import LEDGER_INTEGER_MAX

NOW_MS = 1_000_000_000
TODAY = NOW_MS // 86_400_000
P = "product|A-USD"


def snapshot(**changed: dict[str, str]) -> Snapshot:
    names = ("state", "limits", "book", "reference", "desk_state", "desk_limits", "desk_book")
    parts: dict[str, dict[str, str]] = {name: {} for name in names}
    return Snapshot(now_ms=NOW_MS, admitted=True, **(parts | changed))


# -- prices ------------------------------------------------------------------------------------------------------------

WORTH: list[tuple[int, str, str, int, int]] = [
    # lots, bid and ask, scale -> value, gross
    (10, "100 100", "1 1", 1000, 1000),
    (-10, "100 100", "1 1", -1000, 1000),
    (10, "100 101", "1 1", 1005, 1010),
    (-10, "100 101", "1 1", -1005, 1010),
    (3, "1 1", "1 2", 1, 2),
    (-3, "1 1", "1 2", -2, 2),
    (1, "1 1", "1 100", 0, 1),
    (-1, "1 1", "1 100", -1, 1),
    (0, "100 101", "1 1", 0, 0),
    (2_000_000_000_000, "1000001 1000001", "1 1000", 2_000_002_000_000_000, 2_000_002_000_000_000),
]


@pytest.mark.parametrize(("lots", "bid_ask", "scale", "value", "gross"), WORTH)
def test_a_position_is_valued_exactly_and_neither_its_worth_overstated_nor_its_exposure_understated(
    lots: int, bid_ask: str, scale: str, value: int, gross: int
) -> None:
    reference = references_of(snapshot(reference={"A-USD": f"{bid_ask} {NOW_MS} {scale} 0 0 200 0 0"}))["A-USD"]
    assert (reference.value(lots), reference.gross(lots)) == (value, gross)


AGES: list[tuple[int, str | None, bool]] = [
    # age, the account's record -> fresh
    (1000, "reference_stale_ms=1000", True),
    (1001, "reference_stale_ms=1000", False),
    (0, "reference_stale_ms=unlimited", False),
    (0, "taker_fee_ppm=1", False),
    (0, "reference_stale_ms=", False),
    (0, None, False),
]


@pytest.mark.parametrize(("age_ms", "record", "fresh"), AGES)
def test_a_price_is_fresh_up_to_its_limit_and_never_without_one(age_ms: int, record: str | None, fresh: bool) -> None:
    found = snapshot(
        limits={} if record is None else {"account": record},
        book={"p|A-USD|lots": "1"},
        reference={"A-USD": f"100 101 {NOW_MS - age_ms} 1 1 7 8 201 5 {NOW_MS + 30}"},
    )
    assert references_of(found)["A-USD"] == ReferencePrice(100, 101, age_ms, fresh, Fraction(1), 7, 8, 30)
    assert figures(found).prices_fresh is fresh


def test_a_reference_of_the_ledger_before_sizes_were_known_is_read_too() -> None:
    assert references_of(snapshot(reference={"A-USD": f"100 102 {NOW_MS} 1 1"}))["A-USD"].ask_lots == 0


@pytest.mark.parametrize(("bid_ask", "spread"), [("100 101", 9951), ("100 100", 0), ("101 100", 0), ("1 3", 1_000_000)])
def test_the_spread_is_the_one_of_the_rule(bid_ask: str, spread: int) -> None:
    found = figures(snapshot(book={"p|A-USD|lots": "0"}, reference={"A-USD": f"{bid_ask} {NOW_MS} 1 1"}))
    assert found.products[0].uses["max_spread_ppm"].value == spread


def test_without_a_price_a_position_stands_at_its_cost_and_says_so() -> None:
    book = {"p|A-USD|lots": "5", "p|A-USD|cost": "400", "p|A-USD|value": "400", "sp|s|A-USD|lots": "5", "cash": "0"}
    held = figures(snapshot(book=book))
    assert (held.priced, held.prices_fresh, held.unrealised, held.strategies[0].priced) == (False, False, 0, False)
    flat = figures(snapshot(book={"p|A-USD|lots": "0", "cash": "0"}))
    assert (flat.priced, flat.prices_fresh) == (True, True)


# -- figures -----------------------------------------------------------------------------------------------------------

WORST: list[tuple[int, int, int, int]] = [
    # lots, open buys, open sells -> the largest position if one side were filled
    (10, 5, 0, 15),
    (10, 0, 5, 10),
    (10, 0, 25, 15),
    (-10, 5, 5, 15),
    (0, 3, 4, 4),
]


@pytest.mark.parametrize(("lots", "buys", "sells", "worst"), WORST)
def test_the_worst_position_counts_the_open_orders_of_one_side(lots: int, buys: int, sells: int, worst: int) -> None:
    book = {f"p|A-USD|{name}": str(n) for name, n in (("lots", lots), ("buy_lots", buys), ("sell_lots", sells))}
    product = figures(snapshot(book=book, limits={P: "max_position_lots=100:80"})).products[0]
    assert product.position.worst_lots == worst
    assert product.uses["max_position_lots"] == Use(worst, 100, 80)


NETS: list[tuple[int, int, int, int]] = [
    # value, open buys, open sells (micros) -> the largest net value if one side were filled
    (1000, 50, 2500, 1500),
    (1000, 50, 0, 1050),
    (-1000, 0, 10, 1010),
    (-1000, 3000, 0, 2000),
    (0, 0, 0, 0),
]


@pytest.mark.parametrize(("value", "buys", "sells", "worst"), NETS)
def test_the_worst_net_value_counts_the_open_orders_of_one_side(value: int, buys: int, sells: int, worst: int) -> None:
    book = {"a|value": str(value), "a|buy_notional": str(buys), "a|sell_notional": str(sells)}
    assert figures(snapshot(book=book)).uses["max_net_exposure"] == Use(worst, None)


def test_profit_is_realised_and_unrealised_less_fees_in_every_scope() -> None:
    book = {
        "cash": "1000", "fees": "13", "reserved": "10", "a|value": "500", "a|equity": "1500", "a|pnl": "94",
        "p|A-USD|lots": "5", "p|A-USD|cost": "400", "p|A-USD|value": "500", "p|A-USD|realised": "7",
        "p|A-USD|fees": "13",
        "sp|s|A-USD|lots": "5", "sp|s|A-USD|cost": "410", "sp|s|A-USD|value": "500", "sp|s|A-USD|realised": "3",
        "sp|s|A-USD|fees": "13", "s|s|pnl": "80", "s|s|value": "500",
    }  # fmt: skip
    found = figures(snapshot(book=book))
    assert (found.free, found.realised, found.unrealised, found.fees) == (990, 7, 100, 13)
    assert found.realised + found.unrealised - found.fees == found.pnl == found.products[0].position.pnl
    assert found.equity == found.cash + found.value if found.cash else False
    (strategy,) = found.strategies
    assert (strategy.realised, strategy.unrealised, strategy.fees) == (3, 90, 13)
    assert strategy.realised + strategy.unrealised - strategy.fees == strategy.pnl == strategy.positions["A-USD"].pnl


def test_leverage_and_concentration_count_what_is_open_and_round_up() -> None:
    book = {
        "a|equity": "3000", "a|gross": "1000", "a|buy_notional": "500", "a|sell_notional": "501",
        "p|A-USD|gross": "900", "p|A-USD|buy_notional": "100", "p|B-USD|gross": "100",
    }  # fmt: skip
    limits = {
        "account": "max_leverage_ppm=700000:660000 max_concentration_ppm=unlimited",
        P: "max_concentration_ppm=333333",
    }
    found = figures(snapshot(book=book, limits=limits))
    assert found.leverage_ppm == 667_000
    assert found.uses["max_leverage_ppm"] == Use(667_000, 700_000, 660_000)
    assert [product.concentration_ppm for product in found.products] == [333_334, 33_334]
    assert found.uses["max_concentration_ppm"] == Use(333_334, "unlimited")
    assert found.products[0].uses["max_concentration_ppm"].level == "HARD"


@pytest.mark.parametrize("equity", [0, -5])
def test_nothing_is_a_share_of_no_equity(equity: int) -> None:
    found = figures(snapshot(book={"a|equity": str(equity), "a|gross": "1"}, limits={"account": "max_leverage_ppm=5"}))
    use = found.uses["max_leverage_ppm"]
    assert (use.value, use.share, use.level) == (LEDGER_INTEGER_MAX, None, "HARD")
    assert share_ppm(0, equity) == 0


FALLS: list[tuple[int, int, int]] = [
    (1000, 900, 100_000),
    (1000, 1000, 0),
    (1000, 2000, 0),
    (0, -5, 0),
    (3, 2, 333_333),
]


@pytest.mark.parametrize(("peak", "now", "ppm"), FALLS)
def test_a_drawdown_is_rounded_down_because_its_limit_trips_when_reached(peak: int, now: int, ppm: int) -> None:
    assert fall_ppm(peak, now) == ppm


def test_a_strategys_drawdown_is_of_its_capital_and_peak() -> None:
    book = {"s|s|peak": "50", "s|s|pnl": "-100", "s|t|pnl": "-100"}
    limits = {"strategy|s": "capital=950 max_drawdown_ppm=150000", "strategy|t": "capital=unlimited"}
    first, second = figures(snapshot(book=book, limits=limits)).strategies
    assert (first.drawdown_ppm, first.uses["max_drawdown_ppm"].level) == (150_000, "HARD")
    assert (second.drawdown_ppm, "max_drawdown_ppm" in second.uses) == (None, False)


DAYS: list[tuple[str, Day]] = [
    # the record; the scope's PnL is 70 -> today
    (f"{TODAY} 3 500 100 9 2", Day(3, 9, 2, 500, -30)),
    (f"{TODAY - 1} 3 500 100 9 2", Day(0, 0, 0, 0, 0)),
    (f"{TODAY} 0 0 -5 0 0", Day(0, 0, 0, 0, 75)),
    ("", Day(0, 0, 0, 0, 0)),
]


@pytest.mark.parametrize(("record", "day"), DAYS)
def test_yesterdays_record_says_nothing_about_today(record: str, day: Day) -> None:
    book = {"a|day": record, "a|pnl": "70", "a|buy_notional": "11"}
    found = figures(snapshot(book=book, limits={"account": "max_daily_loss=30 max_order_to_trade=4"}))
    assert found.day == day
    assert found.uses["max_daily_turnover"].value == day.turnover + 11
    assert found.uses["max_daily_loss"] == Use(max(0, -day.pnl), 30)
    assert found.uses["max_order_to_trade"].value == -(-day.messages // max(1, day.fills))


CALENDARS: list[tuple[str | None, int, int]] = [
    # calendar, second -> day
    (None, 86_399, 0),
    ("UTC 0", 86_400, 1),
    ("Europe/Zurich 3600", 86_399, 1),
    ("America/New_York -18000", 86_400, 0),
    ("X 3600 86000 7200", 80_000, 0),
    ("X 3600 86000 7200", 86_000, 1),
    ("X 0 1000 3600 90000 -3600", 90_000, 1),
    ("X 0 1000 3600 86400 -3600", 86_400, 0),
]


@pytest.mark.parametrize(("calendar", "second", "day"), CALENDARS)
def test_a_day_is_one_of_the_desks_own_calendar(calendar: str | None, second: int, day: int) -> None:
    assert day_number(calendar, second * 1000) == day


WINDOWS: list[tuple[str, int]] = [
    # "start count" -> how many count now, in a window of 1000 ms
    (f"{NOW_MS - 1000} 4", 4),
    (f"{NOW_MS - 1001} 4", 0),
    ("", 0),
]


@pytest.mark.parametrize(("packed", "count"), WINDOWS)
def test_a_window_that_is_over_counts_nothing(packed: str, count: int) -> None:
    book = {"s|s|repeats": packed, "a|venue_errors": packed, "a|rejects": packed}
    limits = {
        "strategy|s": "max_repeats=5 repeat_window_ms=1000",
        "account": "max_venue_errors=5 venue_error_window_ms=1000 max_rejects=5",
    }
    found = figures(snapshot(book=book, limits=limits))
    assert found.strategies[0].uses["max_repeats"] == Use(count, 5)
    assert found.uses["max_venue_errors"] == Use(count, 5)
    assert found.uses["max_rejects"] == Use(0, 5)


BURSTS: list[tuple[int, str, int]] = [
    # microseconds the next arrival is ahead, interval -> used of the burst
    (0, "100", 0),
    (-50, "100", 0),
    (1, "100", 1),
    (300, "100", 3),
    (300, "unlimited", 0),
]


@pytest.mark.parametrize(("ahead_us", "interval", "used"), BURSTS)
def test_what_is_used_of_a_burst(ahead_us: int, interval: str, used: int) -> None:
    book = {"a|tat": str(NOW_MS * 1000 + ahead_us), "a|msg_tat": str(NOW_MS * 1000 + ahead_us)}
    record = f"order_interval_us={interval} order_burst=3 message_interval_us={interval} message_burst=9"
    found = figures(snapshot(book=book, limits={"account": record}))
    assert (found.uses["order_burst"], found.uses["message_burst"]) == (Use(used, 3), Use(used, 9))


# -- scopes ------------------------------------------------------------------------------------------------------------


def test_scopes_are_those_with_limits_and_those_with_a_booking() -> None:
    book = {"p|B-USD|lots": "0", "s|t|pnl": "0", "sp|s|B-USD|lots": "3", "k|k1|open_orders": "2", "g|old|gross": "5"}
    limits = {
        P: "", "strategy|s": "", "key|*": "max_open_orders=9", "key|k2": "max_open_orders=1",
        "group|majors": "max_gross_exposure=10:8", "calendar": "UTC 0", "version": "3",
    }  # fmt: skip
    found = figures(snapshot(book=book, limits=limits))
    assert [product.product_id for product in found.products] == ["A-USD", "B-USD"]
    assert [(one.name, list(one.positions)) for one in found.strategies] == [("s", ["B-USD"]), ("t", [])]
    assert [(key.scope, key.uses["max_open_orders"]) for key in found.keys] == [
        ("key|k1", Use(2, 9)),
        ("key|k2", Use(0, 1)),
    ]
    assert [(one.scope, one.uses) for one in found.groups] == [
        ("group|majors", {"max_gross_exposure": Use(0, 10, 8)}),
        ("group|old", {"max_gross_exposure": Use(5, None)}),
    ]
    assert limited_products(snapshot(limits=limits)) == ["A-USD"]


def test_a_strategys_position_is_compared_with_its_limit_in_the_product() -> None:
    book = {"sp|s|A-USD|lots": "3", "sp|s|A-USD|buy_lots": "4"}
    found = figures(snapshot(book=book, limits={P: "max_strategy_position_lots=7:5"}))
    assert found.strategies[0].position_uses == {"A-USD": Use(7, 7, 5)}


def test_the_desk_has_its_own_book_limits_and_state() -> None:
    book = {"open_orders": "2", "buy_notional": "10", "gross": "90", "value": "-90", "pnl": "5", "equity": "80",
            "peak": "100", "day": f"{TODAY} 2 7 6 2 1", "tat": "0", "seq": "9", "head": "0" * 40}  # fmt: skip
    limits = {"global": "max_open_orders=2 max_gross_exposure=200:99 max_drawdown_ppm=200001", "version": "1"}
    state = {"global": "REDUCING", "cause|global": "DAILY_LOSS"}
    found = desk_figures(snapshot(desk_book=book, desk_limits=limits, desk_state=state, book={"a|open_orders": "1"}))
    assert (found.scope, found.state, found.cause) == ("global", "REDUCING", "DAILY_LOSS")
    assert (found.open_orders, found.exposure, found.value, found.pnl, found.day.pnl) == (2, 100, -90, 5, -1)
    assert (found.equity, found.peak, found.drawdown, found.drawdown_ppm) == (80, 100, 20, 200_000)
    levels = {name: use.level for name, use in found.uses.items() if use.level}
    assert levels == {"max_open_orders": "HARD", "max_gross_exposure": "SOFT", "max_drawdown_ppm": "OK"}


USES: list[tuple[Use, float | None, str | None]] = [
    # a figure and its limit -> the share of it, the level
    (Use(8, 10, 8), 0.8, "OK"),
    (Use(9, 10, 8), 0.9, "SOFT"),
    (Use(10, 10, 8), 1.0, "HARD"),
    (Use(25, 10, 8), 2.5, "HARD"),
    (Use(9, 10), 0.9, "OK"),
    (Use(0, 0), 1.0, "HARD"),
    (Use(-5, 10, 8), 0.0, "OK"),
    (Use(10**15, "unlimited"), None, "OK"),
    (Use(10**15, "unlimited", 5), None, "SOFT"),
    (Use(5, None), None, None),
]


@pytest.mark.parametrize(("use", "share", "level"), USES)
def test_a_limit_is_full_when_its_figure_has_reached_it(use: Use, share: float | None, level: str | None) -> None:
    assert (use.share, use.level) == (share, level)


@pytest.mark.parametrize("record", ["nonsense", "max_open_orders=x", "max_open_orders=1 max_open_orders=2", "color=5"])
def test_a_record_that_cannot_be_read_counts_as_no_limit_as_it_does_for_orders(record: str) -> None:
    found: Any = figures(snapshot(book={"a|open_orders": "1"}, limits={"account": record}))
    assert found.uses["max_open_orders"] == Use(1, None)
