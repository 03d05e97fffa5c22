"""Coinbase's JSON becomes our nouns, or a typed error that names the field: nothing in between."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from cluster import venue_shapes as shapes
from cluster.venue import VenueGarbage, VenueNotFound, VenueRejected, VenueUnknown
from strategies.model import Granularity, Order, OrderStatus, OrderType, Side, TimeInForce

ORDER = {
    "order_id": "0000-1",
    "client_order_id": "mine-1",
    "product_id": "BTC-USD",
    "side": "BUY",
    "status": "OPEN",
    "filled_size": "0",
    "average_filled_price": "0",
    "total_fees": "0",
    "created_time": "2024-12-05T14:01:07.278515Z",
    "reject_reason": "REJECT_REASON_UNSPECIFIED",
}
FILL = {
    "trade_id": "t-1",
    "order_id": "0000-1",
    "product_id": "BTC-USD",
    "side": "SELL",
    "price": "45123.45",
    "size": "0.005",
    "commission": "1.14",
    "liquidity_indicator": "MAKER",
    "trade_time": "2023-01-18T01:37:38.091377090Z",
}
CANDLE = {"start": "1700000040", "open": "10", "high": "12", "low": "9", "close": "11", "volume": "0.5"}
PRODUCT = {
    "product_id": "BTC-USD",
    "base_currency_id": "BTC",
    "quote_currency_id": "USD",
    "base_increment": "0.00000001",
    "quote_increment": "0.01",
    "base_min_size": "0.00000001",
    "base_max_size": "3400",
    "quote_min_size": "1",
    "quote_max_size": "150000000",
    "status": "online",
    "is_disabled": False,
    "trading_disabled": False,
    "cancel_only": False,
    "limit_only": False,
    "post_only": False,
    "auction_mode": False,
    "view_only": False,
}
QUOTE = {
    "product_id": "BTC-USD",
    "bids": [{"price": "68923.66", "size": "0.17"}],
    "asks": [{"price": "68923.67", "size": "0.16"}],
    "time": "2026-04-07T00:28:59.662782Z",
}
BALANCE = {
    "uuid": "8bfc20d7",
    "currency": "BTC",
    "available_balance": {"value": "1.23456789", "currency": "BTC"},
    "hold": {"value": "0.005", "currency": "BTC"},
}
READERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "order": (shapes.read_order, ORDER),
    "fill": (lambda item: shapes.read_fill(item, "mine-1"), FILL),
    "candle": (shapes.read_candle, CANDLE),
    "product": (shapes.read_product, PRODUCT),
    "quote": (shapes.read_quote, QUOTE),
    "balance": (shapes.read_balance, BALANCE),
}
OPTIONAL = {("order", "reject_reason")}


def test_well_formed_answers_become_nouns() -> None:
    order = shapes.read_order(ORDER)
    assert (order.status, order.created_ns) == (OrderStatus.OPEN, 1_733_407_267_278_515_000)
    fill = shapes.read_fill(FILL, "mine-1")
    assert (fill.quantity, fill.fee, fill.ts_ns) == (Decimal("0.005"), Decimal("1.14"), 1_674_005_858_091_377_090)
    assert shapes.read_candle(CANDLE) == (1_700_000_040, 10.0, 12.0, 9.0, 11.0, 0.5)
    assert shapes.read_quote(QUOTE).ask == Decimal("68923.67")
    assert shapes.read_balance(BALANCE).available == Decimal("1.23456789")
    assert shapes.read_product(PRODUCT).tradable


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field) for kind, (_, item) in READERS.items() for field in item if (kind, field) not in OPTIONAL],
)
@pytest.mark.parametrize("value", [None, 5, [], {}, ["x"], "absent"])
def test_a_field_that_is_absent_or_of_another_kind_is_garbage(kind: str, field: str, value: Any) -> None:
    read, item = READERS[kind]
    damaged = {name: given for name, given in item.items() if name != field}
    if value != "absent":
        damaged[field] = value
    with pytest.raises(VenueGarbage):
        read(damaged)


NUMBERS = [
    ("order", "filled_size"),
    ("order", "average_filled_price"),
    ("order", "total_fees"),
    ("fill", "price"),
    ("fill", "size"),
    ("fill", "commission"),
    ("candle", "open"),
    ("candle", "volume"),
    ("candle", "start"),
    ("product", "base_increment"),
    ("product", "quote_max_size"),
]


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
@pytest.mark.parametrize("value", ["NaN", "sNaN", "Infinity", "-Infinity", "1e999", "abc", "1,5", "0x10", "-"])
def test_a_number_that_is_none_is_garbage(kind: str, field: str, value: str) -> None:
    read, item = READERS[kind]
    with pytest.raises(VenueGarbage, match=field):
        read(item | {field: value})


@pytest.mark.parametrize(
    ("kind", "field"), [n for n in NUMBERS if n not in {("order", "total_fees"), ("fill", "commission")}]
)
def test_a_negative_number_is_garbage_but_for_fees(kind: str, field: str) -> None:
    read, item = READERS[kind]
    with pytest.raises(VenueGarbage, match=field):
        read(item | {field: "-1"})


def test_a_makers_rebate_is_a_negative_fee() -> None:
    assert shapes.read_fill(FILL | {"commission": "-0.5"}, "x").fee == Decimal("-0.5")


@pytest.mark.parametrize("field", ["price", "size"])
def test_a_fill_of_nothing_is_garbage(field: str) -> None:
    with pytest.raises(VenueGarbage, match=field):
        shapes.read_fill(FILL | {field: "0"}, "x")


@pytest.mark.parametrize(
    ("status", "filled", "expected"),
    [
        ("PENDING", "0", OrderStatus.OPEN),
        ("QUEUED", "0", OrderStatus.OPEN),
        ("CANCEL_QUEUED", "0", OrderStatus.OPEN),
        ("EDIT_QUEUED", "0", OrderStatus.OPEN),
        ("EDIT_QUEUED", "0.1", OrderStatus.PARTIALLY_FILLED),
        ("OPEN", "0", OrderStatus.OPEN),
        ("OPEN", "0.1", OrderStatus.PARTIALLY_FILLED),
        ("CANCEL_QUEUED", "0.1", OrderStatus.PARTIALLY_FILLED),
        ("FILLED", "1", OrderStatus.FILLED),
        ("CANCELLED", "0.1", OrderStatus.CANCELLED),
        ("EXPIRED", "0", OrderStatus.EXPIRED),
        ("FAILED", "0", OrderStatus.REJECTED),
        ("UNKNOWN_ORDER_STATUS", "0", OrderStatus.UNKNOWN),
    ],
)
def test_every_state_of_coinbase_has_one_of_ours(status: str, filled: str, expected: OrderStatus) -> None:
    assert shapes.read_order(ORDER | {"status": status, "filled_size": filled}).status is expected


ASKED = {"base_size": "0.5", "limit_price": "60000"}
GTD = {"end_time": "2026-12-31T23:59:59Z"}
END_NS = 1_798_761_599 * 10**9


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({"market_market_ioc": {"base_size": "0.5"}}, ("MARKET", "IOC", "0.5", None, None, False, None)),
        (
            {"market_market_ioc": {"quote_size": "10", "base_size": ""}},
            ("MARKET", "IOC", None, None, None, False, None),
        ),
        ({"sor_limit_ioc": ASKED}, ("LIMIT", "IOC", "0.5", "60000", None, False, None)),
        ({"limit_limit_gtc": ASKED | {"post_only": True}}, ("LIMIT", "GTC", "0.5", "60000", None, True, None)),
        ({"limit_limit_gtd": ASKED | GTD}, ("LIMIT", "GTD", "0.5", "60000", None, False, END_NS)),
        ({"limit_limit_fok": ASKED}, ("LIMIT", "FOK", "0.5", "60000", None, False, None)),
        (
            {
                "stop_limit_stop_limit_gtc": ASKED
                | {"stop_price": "59000", "stop_direction": "STOP_DIRECTION_STOP_UP", "end_time": ""},
                "limit_limit_gtc": None,
            },
            ("STOP_LIMIT", "GTC", "0.5", "60000", "59000", False, None),
        ),
        (
            {"trigger_bracket_gtd": ASKED | GTD | {"stop_trigger_price": "70000"}},
            ("BRACKET", "GTD", "0.5", "60000", "70000", False, END_NS),
        ),
    ],
)
def test_what_an_order_asked_for_is_read_back(configuration: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = shapes.read_order(ORDER | {"order_configuration": configuration})
    kind, time_in_force, *amounts, post_only, end_ns = expected
    assert (found.type, found.time_in_force) == (OrderType(kind), TimeInForce(time_in_force))
    assert [found.quantity, found.limit_price, found.stop_price] == [a and Decimal(a) for a in amounts]
    assert (found.post_only, found.end_ns, found.raw_status) == (post_only, end_ns, "OPEN")


@pytest.mark.parametrize(
    "configuration",
    [
        None,
        {},
        {"twap_limit_gtd": {"base_size": "NaN"}},
        {"scaled_limit_gtc": {}},
        {"market_market_fok": {"base_size": "1"}},
        {"limit_limit_gtc": ASKED, "limit_limit_gtd": ASKED},
        {"limit_limit_gtc": "odd"},
        # A purchase that waits for a falling price: the desk has no such order.
        {"stop_limit_stop_limit_gtc": ASKED | {"stop_price": "1", "stop_direction": "STOP_DIRECTION_STOP_DOWN"}},
    ],
)
def test_an_order_of_a_kind_the_desk_does_not_send_is_read_without_what_it_asked_for(configuration: Any) -> None:
    found = shapes.read_order(ORDER | {"order_configuration": configuration})
    assert (found.type, found.time_in_force, found.quantity, found.limit_price) == (None, None, None, None)
    assert found.status is OrderStatus.OPEN


@pytest.mark.parametrize(
    "configuration",
    [
        [],
        "limit_limit_gtc",
        {"limit_limit_gtc": ASKED | {"base_size": "NaN"}},
        {"limit_limit_gtc": ASKED | {"limit_price": "-1"}},
        {"limit_limit_gtc": ASKED | {"limit_price": 5}},
        {"limit_limit_gtd": ASKED | {"end_time": "tomorrow"}},
    ],
)
def test_what_an_order_asked_for_is_garbage_where_it_is_no_number(configuration: Any) -> None:
    with pytest.raises(VenueGarbage):
        shapes.read_order(ORDER | {"order_configuration": configuration})


@pytest.mark.parametrize("field_value", [{"status": "DONE"}, {"side": "buy"}, {"created_time": "yesterday"}])
def test_words_coinbase_does_not_have_are_garbage(field_value: dict[str, str]) -> None:
    with pytest.raises(VenueGarbage, match=next(iter(field_value))):
        shapes.read_order(ORDER | field_value)


def test_amounts_left_empty_are_zero() -> None:
    order = shapes.read_order(ORDER | {"average_filled_price": "", "total_fees": "", "filled_size": ""})
    assert [order.average_price, order.total_fees, order.filled_quantity] == [Decimal(0)] * 3


@pytest.mark.parametrize(
    "changes",
    [
        {"high": "10.5"},
        {"low": "10.5"},
        {"low": "0"},
        {"open": "13"},
        {"close": "8"},
        {"low": "12", "high": "9"},
    ],
)
def test_a_candle_that_contradicts_itself_is_garbage(changes: dict[str, str]) -> None:
    with pytest.raises(VenueGarbage, match="candle at 1700000040"):
        shapes.read_candle(CANDLE | changes)


def test_bars_must_fit_their_granularity_and_not_repeat() -> None:
    row = shapes.read_candle(CANDLE)
    bars = shapes.make_bars("BTC-USD", Granularity.ONE_MINUTE, [row, (row[0] + 60, *row[1:])])
    assert bars.ts_ns.tolist() == [1_700_000_040 * 10**9, 1_700_000_100 * 10**9]
    assert all(column.dtype == np.float64 for column in (bars.open, bars.high, bars.low, bars.close, bars.volume))
    for rows in ([row, row], [(row[0] + 1, *row[1:])]):
        with pytest.raises(VenueGarbage, match="starts repeat or do not fit"):
            shapes.make_bars("BTC-USD", Granularity.ONE_MINUTE, rows)
    assert len(shapes.make_bars("BTC-USD", Granularity.ONE_DAY, [])) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("2023-01-18T01:37:38.09137709Z", 1_674_005_858_091_377_090),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, expected: int) -> None:
    assert shapes.time_ns_of(text, "t") == expected


@pytest.mark.parametrize("text", ["", "now", "2023-01-18", "2023-13-18T01:37:38Z", "2023-01-18T01:37:38", "1700000000"])
def test_what_is_no_time_is_garbage(text: str) -> None:
    with pytest.raises(VenueGarbage, match="RFC 3339"):
        shapes.time_ns_of(text, "t")


def test_a_time_survives_the_way_there_and_back() -> None:
    for ts_ns in (0, 1_741_613_841_123_456_000, 4_102_444_799_999_999_000):
        assert shapes.time_ns_of(shapes.rfc3339(ts_ns), "t") == ts_ns


# --- orders on their way out ---


def order(**changes: Any) -> Order:
    given: dict[str, Any] = {
        "client_order_id": "mine-1",
        "account": "main",
        "strategy": "manual",
        "product_id": "BTC-USD",
        "side": Side.BUY,
        "type": OrderType.LIMIT,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal("0.50"),
        "limit_price": Decimal("6E+4"),
        "post_only": False,
    }
    return Order(**(given | changes))


STOP = {"type": OrderType.STOP_LIMIT, "stop_price": Decimal(59_000)}
MARKET = {"type": OrderType.MARKET, "time_in_force": TimeInForce.IOC, "limit_price": None}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (MARKET, {"market_market_ioc": {"base_size": "0.5"}}),
        ({}, {"limit_limit_gtc": {"base_size": "0.5", "limit_price": "60000", "post_only": False}}),
        ({"post_only": True}, {"limit_limit_gtc": {"base_size": "0.5", "limit_price": "60000", "post_only": True}}),
        ({"time_in_force": TimeInForce.IOC}, {"sor_limit_ioc": {"base_size": "0.5", "limit_price": "60000"}}),
        ({"time_in_force": TimeInForce.FOK}, {"limit_limit_fok": {"base_size": "0.5", "limit_price": "60000"}}),
        (
            {"time_in_force": TimeInForce.GTD, "end_ns": END_NS, "post_only": True},
            {
                "limit_limit_gtd": ASKED | {"post_only": True, "end_time": "2026-12-31T23:59:59.000000Z"},
            },
        ),
        (
            STOP,
            {
                "stop_limit_stop_limit_gtc": ASKED
                | {"stop_price": "59000", "stop_direction": "STOP_DIRECTION_STOP_UP"},
            },
        ),
        (
            STOP | {"side": Side.SELL, "time_in_force": TimeInForce.GTD, "end_ns": END_NS},
            {
                "stop_limit_stop_limit_gtd": ASKED
                | {"stop_price": "59000", "stop_direction": "STOP_DIRECTION_STOP_DOWN"}
                | {"end_time": "2026-12-31T23:59:59.000000Z"},
            },
        ),
        (
            STOP | {"type": OrderType.BRACKET, "side": Side.SELL},
            {"trigger_bracket_gtc": ASKED | {"stop_trigger_price": "59000"}},
        ),
        (
            STOP
            | {"type": OrderType.BRACKET, "stop_price": Decimal(61_000)}
            | {"time_in_force": TimeInForce.GTD, "end_ns": END_NS},
            {
                "trigger_bracket_gtd": ASKED
                | {"stop_trigger_price": "61000", "end_time": "2026-12-31T23:59:59.000000Z"},
            },
        ),
        (
            {"quantity": Decimal("1E-8")},
            {"limit_limit_gtc": {"base_size": "0.00000001", "limit_price": "60000", "post_only": False}},
        ),
    ],
)
def test_orders_are_written_in_coinbases_configurations(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert shapes.order_configuration(order(**changes)) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"client_order_id": ""},
        {"client_order_id": " "},
        {"client_order_id": "x" * 129},
        {"client_order_id": "mine\n1"},
        {"client_order_id": "mine/1"},
        {"quantity": Decimal(0)},
        {"quantity": Decimal(-1)},
        {"quantity": Decimal("NaN")},
        {"quantity": Decimal("Infinity")},
        {"quantity": Decimal("1E+30")},
        {"quantity": Decimal("1E-30")},
        {"limit_price": None},
        {"limit_price": Decimal(0)},
        {"limit_price": Decimal("NaN")},
        {"post_only": True, "time_in_force": TimeInForce.IOC},
        MARKET | {"time_in_force": TimeInForce.GTC},
        MARKET | {"time_in_force": TimeInForce.FOK},
        MARKET | {"limit_price": Decimal(1)},
        MARKET | {"post_only": True},
        MARKET | {"stop_price": Decimal(1)},
        MARKET | {"time_in_force": TimeInForce.GTD, "end_ns": END_NS},
        {"stop_price": Decimal(1)},
        {"end_ns": END_NS},
        {"time_in_force": TimeInForce.GTD},
        {"time_in_force": TimeInForce.GTD, "end_ns": 0},
        {"time_in_force": TimeInForce.GTD, "end_ns": 10**21},
        STOP | {"stop_price": None},
        STOP | {"limit_price": None},
        STOP | {"stop_price": Decimal("NaN")},
        STOP | {"post_only": True},
        STOP | {"time_in_force": TimeInForce.IOC},
        STOP | {"time_in_force": TimeInForce.FOK},
        STOP | {"type": OrderType.BRACKET},
        STOP | {"type": OrderType.BRACKET, "side": Side.SELL, "stop_price": Decimal(60_000)},
        STOP | {"type": OrderType.BRACKET, "side": Side.SELL, "time_in_force": TimeInForce.IOC},
    ],
)
def test_an_order_that_makes_no_sense_is_refused_before_it_is_sent(changes: dict[str, Any]) -> None:
    with pytest.raises(VenueRejected) as error:
        shapes.order_configuration(order(**changes))
    assert error.value.code == "INVALID_ORDER"


# --- answers to orders ---


@pytest.mark.parametrize(
    ("error_response", "code"),
    [
        ({"error": "INSUFFICIENT_FUND", "preview_failure_reason": "PREVIEW_INSUFFICIENT_FUND"}, "INSUFFICIENT_FUND"),
        ({"error": "UNKNOWN_FAILURE_REASON", "new_order_failure_reason": "INVALID_SIDE"}, "INVALID_SIDE"),
        (
            {"error": "UNKNOWN_FAILURE_REASON", "preview_failure_reason": "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL"},
            "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL",
        ),
        ({"error": "UNKNOWN_PRODUCT_ID"}, "UNKNOWN_PRODUCT_ID"),
        ({}, "UNKNOWN_FAILURE_REASON"),
        (None, "UNKNOWN_FAILURE_REASON"),
        ("oops", "UNKNOWN_FAILURE_REASON"),
    ],
)
def test_a_refusal_carries_its_most_telling_code(error_response: Any, code: str) -> None:
    answer = {"success": False, "failure_reason": "UNKNOWN_FAILURE_REASON", "error_response": error_response}
    assert shapes.read_rejection(answer).code == code


ACCEPTED = {"success": True, "success_response": {"order_id": "v-1", "client_order_id": "mine-1"}}


def test_an_accepted_order_has_the_venues_id() -> None:
    assert shapes.read_accepted(ACCEPTED, "mine-1") == "v-1"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"success": True},
        {"success": "true", "success_response": {"order_id": "v-1"}},
        {"success": None, "success_response": {"order_id": "v-1"}},
        {"success": True, "success_response": None},
        {"success": True, "success_response": []},
        {"success": True, "success_response": {}},
        {"success": True, "success_response": {"order_id": ""}},
        {"success": True, "success_response": {"order_id": 5}},
        {"success": True, "success_response": {"order_id": "v-1", "client_order_id": "another"}},
    ],
)
def test_anything_but_a_clear_yes_leaves_the_order_in_doubt(answer: dict[str, Any]) -> None:
    with pytest.raises(VenueUnknown):
        shapes.read_accepted(answer, "mine-1")


def test_results_of_a_cancel() -> None:
    results = [
        {"order_id": "a", "success": True, "failure_reason": "UNKNOWN_CANCEL_FAILURE_REASON"},
        {"order_id": "b", "success": False, "failure_reason": "UNKNOWN_CANCEL_ORDER"},
        {"order_id": "c", "success": False},
    ]
    assert shapes.read_cancel_results({"results": results}) == {"a": True, "b": "UNKNOWN_CANCEL_ORDER", "c": "?"}
    for answer in ({}, {"results": None}, {"results": ["a"]}, {"results": [{"order_id": "a"}]}):
        with pytest.raises(VenueUnknown):
            shapes.read_cancel_results(answer)


@pytest.mark.parametrize(
    ("statuses", "groups"),
    [
        ([OrderStatus.OPEN], [["PENDING", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"], ["OPEN"]]),
        ([OrderStatus.PARTIALLY_FILLED], [["PENDING", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"], ["OPEN"]]),
        ([OrderStatus.FILLED, OrderStatus.REJECTED], [["FILLED", "FAILED"]]),
        (
            [OrderStatus.OPEN, OrderStatus.CANCELLED],
            [["PENDING", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"], ["OPEN"], ["CANCELLED"]],
        ),
        ([OrderStatus.DENIED, OrderStatus.RESERVED], []),
        ([], []),
    ],
)
def test_open_is_always_asked_for_alone_and_after_what_is_queued(
    statuses: list[OrderStatus], groups: list[list[str]]
) -> None:
    assert shapes.status_groups(statuses) == groups


@pytest.mark.parametrize("given", ["", "a/b", "..", "a?b", "a b", "x" * 200, "ü"])
def test_what_cannot_be_an_id_never_becomes_a_path(given: str) -> None:
    for make in (shapes.order_path, shapes.product_path):
        with pytest.raises(VenueNotFound, match=re.escape("not an id of the venue")):
            make(given)


# --- previews, edits, books, keys ---

PREVIEW = {
    "order_total": "31.5",
    "commission_total": "0.18",
    "errs": [],
    "warning": ["BIG_ORDER"],
    "base_size": "0.0005",
    "quote_size": "31.32",
    "best_bid": "62000.1",
    "best_ask": "62000.2",
}


def test_a_preview_has_amounts_or_says_what_is_wrong() -> None:
    good = shapes.read_preview(PREVIEW)
    assert (good.quantity, good.notional, good.fee) == (Decimal("0.0005"), Decimal("31.5"), Decimal("0.18"))
    assert (good.errors, good.warnings) == ((), ("BIG_ORDER",))
    refused = shapes.read_preview({"errs": ["PREVIEW_INSUFFICIENT_FUND"], "base_size": ""})
    assert (refused.errors, refused.notional, refused.best_bid) == (
        ("PREVIEW_INSUFFICIENT_FUND",),
        Decimal(0),
        Decimal(0),
    )


@pytest.mark.parametrize(
    "damage",
    [{"order_total": None}, {"base_size": "NaN"}, {"best_bid": 5}, {"errs": "no"}, {"warning": {}}],
)
def test_a_preview_that_is_none_is_garbage(damage: dict[str, Any]) -> None:
    with pytest.raises(VenueGarbage):
        shapes.read_preview(PREVIEW | damage)


def test_an_edit_is_taken_refused_or_in_doubt() -> None:
    assert shapes.read_edit_refusal({"success": True, "errors": []}) is None
    for errors, code in (
        ([{"edit_failure_reason": "ORDER_NOT_FOUND", "preview_failure_reason": "UNKNOWN_X"}], "ORDER_NOT_FOUND"),
        ([{"preview_failure_reason": "PREVIEW_INSUFFICIENT_FUND"}], "PREVIEW_INSUFFICIENT_FUND"),
        ([], "UNKNOWN_EDIT_ORDER_FAILURE_REASON"),
        (None, "UNKNOWN_EDIT_ORDER_FAILURE_REASON"),
        (["x"], "UNKNOWN_EDIT_ORDER_FAILURE_REASON"),
    ):
        refusal = shapes.read_edit_refusal({"success": False, "errors": errors})
        assert refusal is not None
        assert refusal.code == code
    for answer in ({}, {"success": None}, {"success": "true"}, {"success": 1}):
        with pytest.raises(VenueUnknown):
            shapes.read_edit_refusal(answer)


def level(price: str) -> dict[str, str]:
    return {"price": price, "size": "1"}


BOOK: dict[str, Any] = {
    "product_id": "BTC-USD",
    "bids": [level("99"), level("98")],
    "asks": [level("100"), level("101")],
    "time": "2026-04-07T00:28:59Z",
}


def test_a_book_is_read_in_order_and_its_sides_may_be_empty() -> None:
    book = shapes.read_book(BOOK, "BTC-USD")
    assert book.bids == ((Decimal(99), Decimal(1)), (Decimal(98), Decimal(1)))
    assert shapes.read_book(BOOK | {"bids": [], "asks": []}, "BTC-USDC").asks == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"product_id": "ETH-USD"},
        {"bids": [level("98"), level("99")]},
        {"asks": [level("100"), level("100")]},
        {"asks": [level("NaN")]},
        {"asks": [level("0")]},
        {"bids": [{"price": "1"}]},
        {"bids": None},
        {"time": ""},
    ],
)
def test_a_book_that_is_none_is_garbage(damage: dict[str, Any]) -> None:
    with pytest.raises(VenueGarbage):
        shapes.read_book(BOOK | damage, "BTC-USD")


def test_a_usdc_product_is_answered_by_its_usd_alias_and_by_no_other() -> None:
    shapes.same_product("BTC-USD", "BTC-USDC")
    for answered, asked in (("BTC-USDC", "BTC-USD"), ("ETH-USD", "BTC-USDC"), ("BTC-US", "BTC-USD"), ("AB", "ABC")):
        with pytest.raises(VenueGarbage, match=asked):
            shapes.same_product(answered, asked)


def test_fees_are_fractions_and_the_volume_a_json_number() -> None:
    tier = {"pricing_tier": "Intro 1", "maker_fee_rate": "0.006", "taker_fee_rate": "0.012"}
    read = shapes.read_fee_tier({"fee_tier": tier, "total_volume": 1234.5})
    assert (read.taker_rate, read.volume) == (Decimal("0.012"), Decimal("1234.5"))
    damaged = ({"total_volume": float("nan")}, {"total_volume": True}, {"total_volume": None}, {"fee_tier": None})
    for damage in damaged:
        with pytest.raises(VenueGarbage):
            shapes.read_fee_tier({"fee_tier": tier, "total_volume": 1} | damage)


@pytest.mark.parametrize("flag", ["can_view", "can_trade", "can_transfer"])
@pytest.mark.parametrize("value", [None, "false", 0])
def test_a_permission_that_is_not_told_is_not_assumed(flag: str, value: Any) -> None:
    told = {"can_view": True, "can_trade": True, "can_transfer": False}
    assert not shapes.read_key_permissions(told).can_transfer
    with pytest.raises(VenueGarbage, match=flag):
        shapes.read_key_permissions(told | {flag: value})


def test_a_portfolio() -> None:
    item = {"uuid": "u-1", "name": "Default", "type": "DEFAULT", "deleted": False}
    assert shapes.read_portfolio(item) == shapes.Portfolio("u-1", "Default", "DEFAULT", False)
    with pytest.raises(VenueGarbage, match="deleted"):
        shapes.read_portfolio(item | {"deleted": None})
