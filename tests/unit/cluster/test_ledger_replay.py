"""The books from the entries alone: worked examples by hand, and entries that cannot be are refused with their number.

A lot of BTC-USD is worth 10 micros at a tick.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
import pytest

from cluster.ledger_replay import BrokenAudit, Replay, rebuild, rebuild_desk
from cluster.replay_book import Reference, day_number
from tests.audit_rows import START_US, Writer

DAY = START_US // 86_400_000_000


@pytest.fixture
def log() -> Writer:
    """100 lots of BTC that cost 900, 1,000,000 micros of cash, prices 99 and 101."""
    log = Writer()
    log.opened(1_000_000, BTC=(100, 90_000))
    log.priced(99, 101)
    return log


def figures(log: Writer) -> dict[str, str]:
    return rebuild(log.rows)[":book"]


def picked(log: Writer, *names: str) -> list[int]:
    found = figures(log)
    return [int(found.get(name, "0")) for name in names]


OVERRIDE: Final = {
    "id": "3",
    "kind": "OVERRIDE",
    "status": "PENDING",
    "payload": json.dumps({"id": "o-1", "fingerprint": "print"}),
    "expires_ms": str(START_US // 1000 + 1_000),
}


def overridden(log: Writer, proposal: dict[str, str], approved: bool = True, order: str = "o-1") -> None:
    """An order that was let over its limits by proposal 3."""
    log.write("PROPOSED", "3", proposal)
    if approved:
        log.write("APPROVED", "3", {"second": "b"}, by="key-b")
    other = Writer()
    other.reserved(order, 10, 10_000)
    log.write("RESERVED", order, json.loads(other.rows[-1].data) | {"override": "3"})


def test_an_override_is_used_by_its_order(log: Writer) -> None:
    overridden(log, OVERRIDE)
    assert json.loads(rebuild(log.rows)[":approvals"]["3"])["status"] == "USED"


NO_OVERRIDES: list[tuple[str, dict[str, str], bool, str]] = [
    # what, how the proposal differs, whether it was approved, the order
    ("nobody approved it", {}, False, "o-1"),
    ("of another order", {}, True, "o-2"),
    ("of another body", {"payload": json.dumps({"id": "o-1", "fingerprint": "other"})}, True, "o-1"),
    ("too late", {"expires_ms": str(START_US // 1000)}, True, "o-1"),
    ("another kind", {"kind": "RESUME"}, True, "o-1"),
]


@pytest.mark.parametrize(("what", "differs", "approved", "order"), NO_OVERRIDES, ids=[row[0] for row in NO_OVERRIDES])
def test_a_log_in_which_an_order_passed_without_its_override_is_broken(
    log: Writer, what: str, differs: dict[str, str], approved: bool, order: str
) -> None:
    overridden(log, OVERRIDE | differs, approved, order)
    with pytest.raises(BrokenAudit, match="no override 3"):
        rebuild(log.rows)


def test_an_override_is_used_once(log: Writer) -> None:
    overridden(log, OVERRIDE)
    log.write("RESERVED", "o-1", log.rows[-1].data)
    with pytest.raises(BrokenAudit, match="no override 3"):
        rebuild(log.rows)


def test_a_position_is_marked_to_the_middle(log: Writer) -> None:
    # 100 lots at 100 ticks of 10 micros are 100,000; they cost 90,000.
    assert picked(log, "a|value", "a|gross", "a|pnl", "a|equity", "a|peak") == [
        100_000, 100_000, 10_000, 1_100_000, 1_100_000,
    ]  # fmt: skip
    log.priced(89, 91)
    assert picked(log, "a|value", "p|BTC-USD|pnl", "a|equity", "a|peak") == [90_000, 0, 1_090_000, 1_100_000]
    assert figures(log)["a|day"] == f"{DAY} 0 0 0 0 0"


def test_without_a_price_a_position_stands_at_its_cost() -> None:
    log = Writer()
    log.opened(5, BTC=(-7, -300))
    assert picked(log, "a|value", "a|gross", "a|pnl", "a|equity", "a|peak") == [-300, 300, 0, -295, 0]


WORTH: list[tuple[int, int, int, int, int, int, int]] = [
    # lots, bid, ask, num, den, value, gross
    (1, 1, 2, 1, 1, 1, 2),
    (-1, 1, 2, 1, 1, -2, 2),
    (3, 50_000, 50_001, 1, 10, 15_000, 15_001),
    (-3, 50_000, 50_001, 1, 10, -15_001, 15_001),
    (10, 99, 101, 10, 1, 10_000, 10_000),
    (10**15, 10**9, 10**9, 10**6, 1, 10**30, 10**30),
]


@pytest.mark.parametrize(("lots", "bid", "ask", "num", "den", "value", "gross"), WORTH)
def test_what_a_position_is_worth_is_rounded_against_its_owner(
    lots: int, bid: int, ask: int, num: int, den: int, value: int, gross: int
) -> None:
    assert Reference(bid, ask, num, den).worth(lots) == (value, gross)


def test_an_open_order_counts_in_every_scope_until_it_ends(log: Writer) -> None:
    log.reserved("o-1", 10, 10_000, 10_060, by="k1")
    found = figures(log)
    for prefix in ("a|", "p|BTC-USD|", "s|manual|", "k|k1|"):
        assert (found[f"{prefix}open_orders"], found[f"{prefix}buy_notional"]) == ("1", "10000")
        assert found[f"{prefix}day"] == f"{DAY} 1 0 0 1 0"
    assert picked(log, "reserved", "p|BTC-USD|buy_lots", "sp|manual|BTC-USD|buy_lots") == [10_060, 10, 10]
    keys = rebuild(log.rows)
    assert keys[":open"] == {"o-1": str(log.rows[-1].us)}
    assert keys[":resting:BTC-USD:BUY"] == {"o-1": "10000"}
    log.write("CANCELLED", "o-1", {"reason": "why not"})
    found = figures(log)
    assert not [name for name in found if name.endswith(("open_orders", "notional", "buy_lots")) or name == "reserved"]
    order = rebuild(log.rows)[":order:o-1"]
    assert (order["status"], order["reason"], order["reserved_lots"]) == ("CANCELLED", "why not", "0")


def test_a_part_that_is_filled_frees_its_share_and_the_rest_is_rounded_up(log: Writer) -> None:
    log.reserved("o-1", 3, 100, 101)
    log.filled("o-1", "t-1", 1, 33)
    # Two of three lots: 66.7 and 67.3 micros.
    assert picked(log, "a|buy_notional", "reserved") == [67, 68]
    log.filled("o-1", "t-2", 2, 66)
    log.write("FILLED", "o-1")
    assert picked(log, "a|buy_notional", "reserved", "a|open_orders") == [0, 0, 0]
    assert rebuild(log.rows)[":fills:o-1"] == {"t-1": "", "t-2": ""}


def test_a_sale_realises_its_share_of_the_cost_and_pays_its_fee(log: Writer) -> None:
    log.reserved("o-1", 50, 60_000, side="SELL")
    log.filled("o-1", "t-1", 40, 44_000, fee=100, side="SELL")
    # 40 of 100 lots cost 36,000 and brought 44,000; the strategy itself sold short.
    assert picked(log, "cash", "fees", "p|BTC-USD|realised", "p|BTC-USD|cost", "p|BTC-USD|lots") == [
        1_043_900, 100, 8_000, 54_000, 60,
    ]  # fmt: skip
    assert picked(log, "sp|manual|BTC-USD|lots", "sp|manual|BTC-USD|cost", "sp|manual|BTC-USD|realised") == [
        -40, -44_000, 0,
    ]  # fmt: skip
    assert picked(log, "a|pnl", "s|manual|pnl") == [8_000 - 100 + 6_000, 44_000 - 40_000 - 100]
    found = figures(log)
    assert (found["held"], found["p|BTC-USD|strategies"]) == ("BTC-USD", "manual")
    assert found["a|day"].split()[2:] == ["44000", "0", "1", "1"]


def test_a_sale_through_zero_opens_the_other_side(log: Writer) -> None:
    log.reserved("o-1", 150, 200_000, side="SELL")
    log.filled("o-1", "t-1", 150, 150_001, side="SELL")
    # 100 lots close for 100,000 (rounded down), the 50,001 left are what the 50 short ones cost.
    assert picked(log, "p|BTC-USD|lots", "p|BTC-USD|realised", "p|BTC-USD|cost") == [-50, 10_000, -50_001]


def test_losing_exits_in_a_row_are_counted_once_an_order(log: Writer) -> None:
    for number, value in enumerate((90, 80, 1_200, 70)):
        log.reserved(f"b-{number}", 10, 1_000)
        log.filled(f"b-{number}", f"tb-{number}", 10, 1_000)
        log.write("FILLED", f"b-{number}")
        log.reserved(f"s-{number}", 10, 1_000, side="SELL")
        log.filled(f"s-{number}", f"ts-{number}", 4, value // 2, side="SELL")
        log.filled(f"s-{number}", f"tt-{number}", 6, value // 2, side="SELL")
        log.write("FILLED", f"s-{number}")
        assert picked(log, "s|manual|streak") == [(1, 2, 0, 1)[number]]


def test_a_new_day_begins_with_the_pnl_of_the_moment_before(log: Writer) -> None:
    log.us += 86_400_000_000
    log.priced(109, 111)
    assert figures(log)["a|day"] == f"{DAY + 1} 0 0 10000 0 0"
    assert picked(log, "a|pnl") == [20_000]


CALENDARS: list[tuple[str | None, int, int]] = [
    # calendar, second since 1970, day
    (None, 86_399, 0),
    ("UTC 0", 86_400, 1),
    ("Europe/Berlin 3600", 82_800, 1),
    ("America/New_York -18000", 86_400, 0),
    ("Europe/Berlin 3600 1000000 7200", 999_999, 11),
    ("Europe/Berlin 0 1000000 86400 2000000 0", 1_000_000, 12),
    ("Europe/Berlin 0 1000000 86400 2000000 0", 2_000_000, 23),
]


@pytest.mark.parametrize(("calendar", "second", "day"), CALENDARS)
def test_days_are_those_of_the_desks_calendar(calendar: str | None, second: int, day: int) -> None:
    assert day_number(second * 1_000_000 + 999_999, calendar) == day


def test_limits_states_and_approvals_are_what_was_last_written(log: Writer) -> None:
    log.write("LIMITS", "1", {"version": 1, "changed": {"account": "a=1", "key|*": "a=1", "calendar": "UTC 0"}})
    log.write("STATE", "account", {"state": "REDUCING", "before": "ACTIVE", "cause": "DAILY_LOSS", "reason": "r"})
    log.write("LIMITS", "2", {"version": 2, "changed": {"key|*": False}})
    log.write("EPOCH", "4")
    log.write("PROPOSED", "7", {"id": "7", "status": "PENDING"})
    log.write("APPROVED", "7", {"kind": "RESUME", "first": "a", "second": "b"}, by="key-b")
    keys = rebuild(log.rows)
    assert keys[":limits"] == {"account": "a=1", "calendar": "UTC 0", "version": "2"}
    assert keys[":state"] == {"account": "REDUCING", "cause|account": "DAILY_LOSS", "epoch": "4"}
    assert '"status": "APPLIED"' in keys[":approvals"]["7"]


def test_asking_for_less_than_holds_changes_nothing(log: Writer) -> None:
    log.write("STATE", "account", {"state": "HALTED", "before": "", "cause": "INVARIANT", "reason": "r"})
    asked = {"state": "HALTED", "asked": "REDUCING", "before": "HALTED", "cause": "", "reason": "r"}
    log.write("STATE", "account", asked)
    assert rebuild(log.rows)[":state"]["cause|account"] == "INVARIANT"


def test_amounts_go_with_a_product_that_changes_its_group(log: Writer) -> None:
    log.write("LIMITS", "1", {"version": 1, "changed": {"product|BTC-USD": "group=majors"}})
    log.reserved("o-1", 10, 10_000)
    assert picked(log, "g|majors|buy_notional", "g|majors|gross") == [10_000, 100_000]
    log.write("LIMITS", "2", {"version": 2, "changed": {"product|BTC-USD": "group=coins"}})
    assert picked(log, "g|majors|buy_notional", "g|majors|gross", "g|coins|gross") == [0, 0, 100_000]


def test_the_desk_is_its_accounts_in_the_order_of_their_times() -> None:
    one, other, desk = Writer(), Writer(), Writer()
    one.opened(100)
    other.us += 500
    other.opened(50, BTC=(10, 10))
    one.us += 10_000
    one.reserved("o-1", 1, 20, 21)
    other.priced(1, 1)
    other.priced(2, 2)
    other.priced(1, 1)
    desk.write("STATE", "global", {"state": "HALTED", "before": "", "cause": "", "reason": "r"})
    keys = rebuild_desk({None: desk.rows, "one": one.rows, "other": other.rows})
    # 100 + 50 in cash, 10 lots at a tick of 10 micros; it was two ticks for a while.
    book = keys[None][":book"]
    assert [book[name] for name in ("equity", "value", "gross", "peak", "pnl", "buy_notional", "open_orders")] == [
        "250", "100", "100", "350", "90", "20", "1",
    ]  # fmt: skip
    assert keys[None][":state"] == {"global": "HALTED", "cause|global": ""}
    assert Replay(None).keys() == {}


REFUSED: list[tuple[str, str, Any]] = [
    ("an unknown kind", "SURPRISE", {}),
    ("no JSON", "SENT", "{"),
    ("a list", "FILL", []),
    ("an unknown order", "SENT", {}),
    ("a reservation without its request", "RESERVED", {"notional": "1", "cash": "1"}),
    ("a reservation that is no number", "RESERVED", {"request": ["x"] * 20, "notional": "1", "cash": "1"}),
    ("an opening without cash", "OPENED", {"positions": {}}),
    ("a price of one figure", "REFERENCE", {"BTC-USD": ["1"]}),
    ("a state without a state", "STATE", {"cause": ""}),
    ("an approval of nothing", "APPROVED", {"second": "b"}),
]


@pytest.mark.parametrize(("what", "kind", "data"), REFUSED, ids=[row[0] for row in REFUSED])
def test_an_entry_that_cannot_be_is_refused_with_its_number(log: Writer, what: str, kind: str, data: Any) -> None:
    log.write(kind, "none", data)
    with pytest.raises(BrokenAudit, match="entry 3"):
        rebuild(log.rows)


def test_a_fill_is_booked_once_and_only_for_its_order(log: Writer) -> None:
    log.reserved("o-1", 10, 10_000)
    log.filled("o-1", "t-1", 2, 2_000)
    for change in ({"trade": "t-1"}, {"side": "SELL"}, {"product": "ETH-USD"}, {"strategy": "other"}, {"lots": 0}):
        wrong = Writer()
        wrong.rows, wrong.us = list(log.rows), log.us
        wrong.filled("o-1", **({"trade": "t-2", "lots": 2, "value": 2_000} | change))  # type: ignore[arg-type]
        with pytest.raises(BrokenAudit, match="entry 5"):
            rebuild(wrong.rows)


def test_entries_end_orders_once(log: Writer) -> None:
    log.reserved("o-1", 10, 10_000)
    log.write("CANCELLED", "o-1", {"reason": ""})
    log.write("EXPIRED", "o-1", {"reason": ""})
    with pytest.raises(BrokenAudit, match="has ended before"):
        rebuild(log.rows)


def test_an_altered_missing_or_repeated_entry_is_refused(log: Writer) -> None:
    log.reserved("o-1", 10, 10_000)
    forged = msgspec.structs.replace(log.rows[1], by="x")
    for rows in ([log.rows[0], forged], [log.rows[1]], [log.rows[0], log.rows[0]], [log.rows[0], log.rows[2]]):
        with pytest.raises(BrokenAudit):
            rebuild(rows)


def test_ended_orders_are_forgotten_as_the_server_forgets_them(log: Writer) -> None:
    log.reserved("o-1", 10, 10_000)
    log.write("CANCELLED", "o-1", {"reason": ""})
    request = '["o-2","f","s","P","BUY","LIMIT","GTC","1","2"]'
    log.write("DENIED", "o-2", f'{{"request":{request},"answer":{{"verdict":"DENIED"}}}}')
    assert {":order:o-1", ":order:o-2"} <= set(rebuild(log.rows))
    assert rebuild(log.rows)[":order:o-2"]["answer"] == '{"verdict":"DENIED"}'
    log.us += 25 * 3_600_000_000
    log.write("ADMITTED", "1")
    assert {key for key in rebuild(log.rows) if key.startswith(":order")} == {":order:o-1"}
    log.us += 24 * 3_600_000_000
    log.write("ADMITTED", "1")
    assert not [key for key in rebuild(log.rows) if key.startswith(":order")]
