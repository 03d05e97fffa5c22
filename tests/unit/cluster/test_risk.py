"""Reading an order strictly and checking it against its product: tables of what is refused, and a fuzzer."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.risk import ORDER_BYTES_MAX, InvalidOrder, check_order, read_order
from strategies.model import LEDGER_INTEGER_MAX, Order, OrderType, Product, Side, TimeInForce

LIMIT: Final[dict[str, Any]] = {
    "client_order_id": "o-1",
    "account": "main",
    "strategy": "manual",
    "product_id": "BTC-USD",
    "side": "BUY",
    "type": "LIMIT",
    "quantity": "0.5",
    "limit_price": "50000.01",
}
MARKET: Final = {name: value for name, value in LIMIT.items() if name != "limit_price"} | {"type": "MARKET"}
OPTIONAL: Final = {"time_in_force": "GTC", "post_only": False, "reduce_only": False, "strategy_version": "v1"}
REQUIRED: Final = [name for name in LIMIT if name != "limit_price"]

BTC: Final = Product(
    product_id="BTC-USD",
    base_currency="BTC",
    quote_currency="USD",
    base_increment=Decimal("0.001"),
    quote_increment=Decimal("0.01"),
    base_min_size=Decimal("0.002"),
    base_max_size=Decimal("10"),
    quote_min_size=Decimal("5"),
    quote_max_size=Decimal("100000"),
)


def body(**changed: Any) -> bytes:
    return json.dumps(LIMIT | changed).encode()


def raw(field: str, literal: bytes) -> bytes:
    """A valid body, except that ``field`` has this literal."""
    return json.dumps(LIMIT | {field: "@"}).encode().replace(b'"@"', literal)


# -- read_order: what passes -------------------------------------------------------------------------------------------


def test_a_limit_order_is_read_to_the_last_digit() -> None:
    assert read_order(body(quantity="123456789012345.123456789012")) == Order(
        client_order_id="o-1",
        account="main",
        strategy="manual",
        product_id="BTC-USD",
        side=Side.BUY,
        type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC,
        quantity=Decimal("123456789012345.123456789012"),
        limit_price=Decimal("50000.01"),
    )


PASSES: list[tuple[dict[str, Any], str, Any]] = [
    # body beside the defaults, field of the order, what it is
    ({}, "time_in_force", TimeInForce.GTC),
    ({"time_in_force": None}, "time_in_force", TimeInForce.GTC),
    ({"time_in_force": "FOK"}, "time_in_force", TimeInForce.FOK),
    ({"post_only": True}, "post_only", True),
    ({"post_only": False, "time_in_force": "IOC"}, "post_only", False),
    ({}, "reduce_only", False),
    ({"reduce_only": False}, "reduce_only", False),
    ({"reduce_only": True}, "reduce_only", True),
    ({"reduce_only": True, "post_only": True}, "reduce_only", True),
    ({"reduce_only": True, "time_in_force": "FOK"}, "reduce_only", True),
    ({"reduce_only": True, "type": "MARKET", "limit_price": None}, "reduce_only", True),
    ({}, "strategy_version", ""),
    ({"strategy_version": None}, "strategy_version", ""),
    ({"strategy_version": "v1.2_RC-3"}, "strategy_version", "v1.2_RC-3"),
    ({"strategy_version": "x" * 64}, "strategy_version", "x" * 64),
    ({"type": "MARKET", "limit_price": None}, "time_in_force", TimeInForce.IOC),
    ({"type": "MARKET", "limit_price": None}, "limit_price", None),
    ({"client_order_id": "x" * 64}, "client_order_id", "x" * 64),
    ({"client_order_id": "A.b_c:d-9"}, "client_order_id", "A.b_c:d-9"),
    ({"quantity": "000000000000001"}, "quantity", Decimal(1)),
    ({"quantity": "0.000000000001"}, "quantity", Decimal("0.000000000001")),
]


@pytest.mark.parametrize(("changed", "field", "value"), PASSES)
def test_what_is_left_out_has_its_one_meaning(changed: dict[str, Any], field: str, value: Any) -> None:
    assert getattr(read_order(body(**changed)), field) == value


@pytest.mark.parametrize("text", [b" \n\t%s\r\n ", b"%s"])
def test_white_space_around_the_body_does_not_matter(text: bytes) -> None:
    assert read_order(text % body()).client_order_id == "o-1"


def test_a_name_written_with_escapes_is_the_same_name() -> None:
    assert read_order(body().replace(b'"account"', b'"acc\\u006funt"')).account == "main"


# -- read_order: what is refused ---------------------------------------------------------------------------------------


def refused(data: bytes) -> InvalidOrder:
    with pytest.raises(InvalidOrder) as caught:
        read_order(data)
    assert str(caught.value) == f"{caught.value.field}: {caught.value.rule}"
    return caught.value


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name: str) -> None:
    lacking = {key: value for key, value in LIMIT.items() if key != name}
    assert refused(json.dumps(lacking).encode()).field == f"$.{name}"


@pytest.mark.parametrize("name", [*LIMIT, *OPTIONAL])
@pytest.mark.parametrize("literal", [b"1", b"-1", b"1.5", b"[]", b'["1"]', b"{}", b"1e400", b"12345678901234567890"])
def test_a_value_of_another_type_is_refused_by_name(name: str, literal: bytes) -> None:
    assert refused(raw(name, literal)).field == f"$.{name}"


@pytest.mark.parametrize("name", [*REQUIRED, "post_only", "reduce_only"])
def test_null_is_no_value_for_a_field_that_is_needed(name: str) -> None:
    assert refused(raw(name, b"null")).field == f"$.{name}"


NOT_NUMBERS: Final = [
    "",
    " ",
    "0",
    "0.0",
    "000",
    "-1",
    "+1",
    "- 1",
    "1e5",
    "1E5",
    "1e400",
    "1e-400",
    "NaN",
    "nan",
    "sNaN",
    "inf",
    "Infinity",
    "-Infinity",
    "0x10",
    "1_000",
    "1,000",
    ".5",
    "5.",
    "1.2.3",
    " 1",
    "1 ",
    "1\n",
    "\n1",
    "1\u0000",
    "１",
    "٣",
    "½",
    "1\u200b",
    "9" * 16,
    "9" * 40,
    "0." + "1" * 13,
    "0." + "1" * 40,
    "true",
    "null",
    "one",
]


@pytest.mark.parametrize("field", ["quantity", "limit_price"])
@pytest.mark.parametrize("text", NOT_NUMBERS)
def test_a_number_is_a_short_plain_positive_decimal(field: str, text: str) -> None:
    assert refused(body(**{field: text})).field == f"$.{field}"


NOT_NAMES: list[tuple[str, str]] = [
    # field, text
    ("client_order_id", ""),
    ("client_order_id", "x" * 65),
    ("client_order_id", "a b"),
    ("client_order_id", "a\n"),
    ("client_order_id", "é"),
    ("client_order_id", "a/b"),
    ("client_order_id", "{a}"),
    ("client_order_id", "a\u0000"),
    ("account", ""),
    ("account", "Main"),
    ("account", "main\n"),
    ("account", "main}"),
    ("account", "x" * 33),
    ("strategy", "a|b"),
    ("strategy", "manual\n"),
    ("strategy", "a-b"),
    ("product_id", ""),
    ("product_id", "BTC"),
    ("product_id", "btc-usd"),
    ("product_id", "BTC-USD\n"),
    ("product_id", "BTC-USD-PERP"),
    ("product_id", "BTC-" + "U" * 21),
    ("product_id", "BTC|USD"),
    ("side", "buy"),
    ("side", "HOLD"),
    ("side", ""),
    ("side", "BUY\n"),
    ("type", "STOP"),
    ("type", "limit"),
    ("time_in_force", "DAY"),
    ("time_in_force", ""),
    ("strategy_version", ""),
    ("strategy_version", "x" * 65),
    ("strategy_version", "1,2"),
    ("strategy_version", "v 1"),
    ("strategy_version", "v1\n"),
    ("strategy_version", "é"),
]


@pytest.mark.parametrize(("field", "text"), NOT_NAMES)
def test_a_name_outside_its_alphabet_is_refused(field: str, text: str) -> None:
    assert refused(body(**{field: text})).field == f"$.{field}"


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    # body beside the defaults, the field that is wrong
    ({"limit_price": None}, "$.limit_price"),
    ({"type": "MARKET"}, "$.limit_price"),
    ({"type": "MARKET", "limit_price": None, "time_in_force": "GTC"}, "$.time_in_force"),
    ({"type": "MARKET", "limit_price": None, "time_in_force": "FOK"}, "$.time_in_force"),
    ({"type": "MARKET", "limit_price": None, "post_only": True}, "$.post_only"),
    ({"time_in_force": "IOC", "post_only": True}, "$.post_only"),
    ({"time_in_force": "FOK", "post_only": True}, "$.post_only"),
]


@pytest.mark.parametrize(("changed", "field"), CONTRADICTIONS)
def test_fields_that_contradict_each_other_are_refused(changed: dict[str, Any], field: str) -> None:
    assert refused(body(**changed)).field == field


@pytest.mark.parametrize("name", ["notional", "Quantity", "quantity ", "a`b", "", "__proto__", "$.side", "é"])
def test_an_unknown_field_is_refused_by_name(name: str) -> None:
    error = refused(body(**{name: "1"}))
    assert error.field.startswith("$.")
    assert name in f"{error.field} {error.rule}"


@pytest.mark.parametrize("name", [*LIMIT, *OPTIONAL])
def test_a_field_named_twice_is_refused_whatever_it_says(name: str) -> None:
    values = LIMIT | OPTIONAL
    again = json.dumps({name: values[name]}).encode()[1:-1]
    for twice in (body()[:-1] + b"," + again + b"," + again + b"}", b"{" + again + b"," + again + b"," + body()[1:]):
        error = refused(twice)
        assert (error.field, error.rule) == (f"$.{name}", "named twice")


def test_a_field_named_twice_in_two_spellings_is_refused() -> None:
    assert refused(body()[:-1] + b', "quantit\\u0079": "9"}').field == "$.quantity"


NOT_ORDERS: list[bytes] = [
    b"",
    b" ",
    b"null",
    b"true",
    b"1",
    b"NaN",
    b'"order"',
    b"[]",
    b"[" + body() + b"]",
    b"\x00",
    b"\xff\xfe",
    body()[:-1],
    body() + b"x",
    body() + body(),
    body().replace(b'"', b"'"),
    body()[:-1] + b",}",
    b"\xef\xbb\xbf" + body(),
    body().decode().encode("utf-16"),
    body().decode().encode("utf-32"),
    raw("quantity", b"NaN"),
    raw("quantity", b"Infinity"),
    raw("quantity", b"0x10"),
    raw("quantity", b"01"),
    raw("quantity", b'"\xff"'),
    raw("quantity", b'"\xed\xa0\xbd"'),
    raw("quantity", b'"\\ud83d"'),
    raw("quantity", b'"1'),
    b"[" * ORDER_BYTES_MAX,
    b'{"a":' * (ORDER_BYTES_MAX // 5),
    raw("quantity", b"[" * 8_000),
    raw("quantity", b"[" * 4_000 + b"]" * 4_000),
    body() + b" " * ORDER_BYTES_MAX,
    b"x" * 10_000_000,
]


@pytest.mark.parametrize("data", NOT_ORDERS, ids=range(len(NOT_ORDERS)))
def test_what_is_no_json_object_of_an_order_is_refused(data: bytes) -> None:
    assert refused(data).field.startswith("$")


def test_the_longest_body_is_read_and_one_byte_more_is_not() -> None:
    padded = body() + b" " * (ORDER_BYTES_MAX - len(body()))
    assert read_order(padded).client_order_id == "o-1"
    assert refused(padded + b" ").rule == f"at most {ORDER_BYTES_MAX} bytes, was {ORDER_BYTES_MAX + 1}"


# -- read_order: anything else -----------------------------------------------------------------------------------------


def survives(data: bytes) -> None:
    """Either an order that can be checked, or the one error; nothing else comes out."""
    try:
        order = read_order(data)
    except InvalidOrder:
        return
    assert 0 < order.quantity < 10**15
    assert order.limit_price is None or 0 < order.limit_price < 10**15
    check_order(order, BTC)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_the_one_error(data: bytes) -> None:
    survives(data)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.decimals().map(str)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner), max_leaves=8
)


@given(st.dictionaries(st.sampled_from([*LIMIT, *OPTIONAL, "x"]), values, max_size=4))
@settings(max_examples=300, deadline=None)
def test_no_values_raise_anything_but_the_one_error(changed: dict[str, Any]) -> None:
    survives(json.dumps(LIMIT | changed).encode())


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from([body(), json.dumps(MARKET).encode(), body(post_only=True)])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 6)))
        piece = draw(
            st.binary(max_size=4) | st.sampled_from([b"{", b"[", b'"', b",", b":", b"\\u0000", b"1e999", b"-"])
        )
        data[start:stop] = data[start:stop] + piece if draw(st.booleans()) else piece
    return bytes(data)


@given(mutated())
@settings(max_examples=500, deadline=None)
def test_no_mutation_of_a_valid_body_raises_anything_but_the_one_error(data: bytes) -> None:
    survives(data)


# -- check_order -------------------------------------------------------------------------------------------------------


def codes(product: Product | None = BTC, **changed: Any) -> list[str]:
    order = read_order(json.dumps((MARKET if changed.get("type") == "MARKET" else LIMIT) | changed).encode())
    return [denial.code for denial in check_order(order, product)]


def test_an_order_within_all_the_products_rules_has_no_denial() -> None:
    assert codes() == []


def test_a_product_nobody_knows_denies() -> None:
    assert codes(None) == ["UNKNOWN_PRODUCT"]


SIZES: list[tuple[str, str, list[str]]] = [
    # quantity, price, denials            (size 0.002 to 10 in 0.001, price in 0.01, notional 5 to 100,000)
    ("0.002", "50000", []),
    ("0.001", "50000", ["SIZE_BELOW_MIN"]),
    ("10", "10000", []),
    ("10.001", "9000", ["SIZE_ABOVE_MAX"]),
    ("0.0025", "50000", ["SIZE_INCREMENT"]),
    ("0.0000001", "50000", ["SIZE_BELOW_MIN", "SIZE_INCREMENT"]),
    ("10.0001", "50000", ["SIZE_ABOVE_MAX", "SIZE_INCREMENT"]),
    ("1", "50000.01", []),
    ("1", "50000.001", ["PRICE_INCREMENT"]),
    ("1", "50000.019999999999", ["PRICE_INCREMENT"]),
    ("0.0025", "50000.001", ["SIZE_INCREMENT", "PRICE_INCREMENT"]),
    ("0.002", "2500", []),
    ("0.002", "2499.99", ["SIZE_BELOW_MIN"]),
    ("2", "50000", []),
    ("2", "50000.01", ["SIZE_ABOVE_MAX"]),
    ("0.001", "0.01", ["SIZE_BELOW_MIN", "SIZE_BELOW_MIN"]),
    ("999999999999999.999", "999999999999999.99", ["SIZE_ABOVE_MAX", "VALUE_TOO_LARGE"]),
    ("1", "999999999999999.99", ["VALUE_TOO_LARGE"]),
    ("1", "22517998136852.47", ["SIZE_ABOVE_MAX"]),
    ("1", "22517998136852.48", ["VALUE_TOO_LARGE"]),
]


@pytest.mark.parametrize(("quantity", "price", "expected"), SIZES)
def test_sizes_and_increments_at_their_boundaries(quantity: str, price: str, expected: list[str]) -> None:
    assert codes(quantity=quantity, limit_price=price) == expected


def test_the_largest_countable_number_of_ticks_is_the_ledgers() -> None:
    assert BTC.ticks(Decimal("22517998136852.47")) == LEDGER_INTEGER_MAX


@pytest.mark.parametrize(
    ("quantity", "price", "denial"),
    [
        ("0.001", "50000", ("SIZE_BELOW_MIN", "0.001", "0.002", "BTC")),
        ("10.001", "9000", ("SIZE_ABOVE_MAX", "10.001", "10", "BTC")),
        ("0.002", "2499.99", ("SIZE_BELOW_MIN", "4.99998", "5", "USD")),
        ("2", "50000.01", ("SIZE_ABOVE_MAX", "100000.02", "100000", "USD")),
        ("0.0025", "50000", ("SIZE_INCREMENT", "0.0025", "0.001", "")),
        ("1", "50000.001", ("PRICE_INCREMENT", "50000.001", "0.01", "")),
    ],
)
def test_a_denial_names_value_limit_and_unit(quantity: str, price: str, denial: tuple[str, str, str, str]) -> None:
    (found,) = check_order(read_order(body(quantity=quantity, limit_price=price)), BTC)
    assert (found.code, found.value, found.limit, found.unit, found.scope) == (*denial, "product|BTC-USD")
    assert found.message


FLAGS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    # the product, the order, which of the product's flags deny it
    ({"status": "offline"}, {}, ["offline"]),
    ({"status": ""}, {}, [""]),
    ({"is_disabled": True}, {}, ["is_disabled"]),
    ({"trading_disabled": True}, {}, ["trading_disabled"]),
    ({"cancel_only": True}, {}, ["cancel_only"]),
    ({"view_only": True}, {}, ["view_only"]),
    ({"auction_mode": True}, {}, ["auction_mode"]),
    ({"limit_only": True}, {}, []),
    ({"limit_only": True}, {"type": "MARKET"}, ["limit_only"]),
    ({"post_only": True}, {"post_only": True}, []),
    ({"post_only": True}, {}, ["post_only"]),
    ({"post_only": True}, {"type": "MARKET"}, ["post_only"]),
    (
        {"status": "delisted", "cancel_only": True, "limit_only": True},
        {"type": "MARKET"},
        ["delisted", "cancel_only", "limit_only"],
    ),
]


@pytest.mark.parametrize(("flags", "changed", "named"), FLAGS)
def test_each_flag_of_the_product_denies_what_it_says(
    flags: dict[str, Any], changed: dict[str, Any], named: list[str]
) -> None:
    order = read_order(json.dumps((MARKET if changed.get("type") == "MARKET" else LIMIT) | changed).encode())
    denials = check_order(order, replace(BTC, **flags))
    assert [denial.value for denial in denials] == named
    assert {denial.code for denial in denials} <= {"PRODUCT_STATUS"}


def test_every_broken_rule_is_named_not_only_the_first() -> None:
    product = replace(BTC, status="offline", view_only=True)
    assert codes(product, quantity="0.0015", limit_price="1.001") == [
        "PRODUCT_STATUS",
        "PRODUCT_STATUS",
        "SIZE_BELOW_MIN",
        "SIZE_INCREMENT",
        "PRICE_INCREMENT",
    ]


def test_a_market_order_is_held_to_the_sizes_too() -> None:
    assert codes(type="MARKET", quantity="10.0005") == ["SIZE_ABOVE_MAX", "SIZE_INCREMENT"]


numbers = st.decimals(min_value=Decimal("1e-12"), max_value=Decimal(10**15) - 1, places=12).map(lambda d: f"{d:f}")
increments = st.integers(0, 18).map(lambda places: Decimal(1).scaleb(-places))


@given(numbers, numbers, increments, increments)
@example("999999999999999.999999999999", "999999999999999.999999999999", Decimal("1e-18"), Decimal("1e-18"))
@settings(max_examples=300, deadline=None)
def test_any_readable_number_can_be_checked_against_any_increment(
    quantity: str, price: str, base_increment: Decimal, quote_increment: Decimal
) -> None:
    # Dividing 27 digits by an increment of 18 places once ended in decimal.InvalidOperation, not in a denial.
    product = replace(BTC, base_increment=base_increment, quote_increment=quote_increment)
    order = read_order(body(quantity=quantity, limit_price=price))
    found = {denial.code for denial in check_order(order, product)}
    assert ("SIZE_INCREMENT" in found) == bool(int(order.quantity.scaleb(12)) % max(1, int(base_increment.scaleb(12))))
    assert ("PRICE_INCREMENT" in found) == bool(
        int(Decimal(price).scaleb(12)) % max(1, int(quote_increment.scaleb(12)))
    )
