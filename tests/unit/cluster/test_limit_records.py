"""Limits as the ledger's records: nothing left out, rounded to the stricter side, and read back as they were."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.limit_records import (
    CALENDAR,
    Limit,
    LimitError,
    account_records,
    desk_records,
    fields_of,
    kind_of,
    parse_record,
    read_limit,
    record_fields,
    shown,
    write_record,
)
from conf.limits import SCOPE_MODELS, LimitsFile, load_limits
from conf.settings import CONF_DIR
from strategies.model import LEDGER_INTEGER_MAX, Product
from tests.limit_samples import ACCOUNT, FILE, GROUP, PRODUCT, account_limits, limits_file, with_limit

BTC: Final = Product(
    product_id="BTC-USD",
    base_currency="BTC",
    quote_currency="USD",
    base_increment=Decimal("0.00000001"),
    quote_increment=Decimal("0.01"),
    base_min_size=Decimal("0.00000001"),
    base_max_size=Decimal(1000),
    quote_min_size=Decimal(1),
    quote_max_size=Decimal(1_000_000),
)
PRODUCTS: Final = {"BTC-USD": BTC}


def records(file: Any) -> dict[str, str]:
    limits = LimitsFile.model_validate(file)
    return desk_records(limits) | account_records(limits.accounts["main"], PRODUCTS)


def test_every_scope_has_a_record_with_every_limit_and_names_in_order() -> None:
    file = load_limits(CONF_DIR / "limits.yaml")
    main = file.accounts["main"]
    products = {name: replace(BTC, product_id=name) for name in main.products}
    found = desk_records(file) | account_records(main, products)
    scopes = {"global", "account", "group|majors", "key|*"}
    scopes |= {f"product|{name}" for name in main.products} | {f"strategy|{name}" for name in main.strategies}
    assert found.keys() == scopes | {CALENDAR}
    for scope in scopes:
        names = [part.partition("=")[0] for part in found[scope].split(" ")]
        assert names == sorted(record_fields(kind_of(scope)))


COUNTS: Final = {"global": 11, "account": 28, "strategy": 22, "product": 23, "key": 7, "group": 1}


def test_no_limit_of_the_contract_is_missing() -> None:
    assert {kind: len(fields_of(kind)) for kind in SCOPE_MODELS} == COUNTS


ROUNDED: list[tuple[tuple[str, ...], Any, str, str, str]] = [
    # place in the account, value, scope, the record's name, the text there
    (("max_order_notional",), 50_000, "account", "max_order_notional", "50000000000:40000000000"),
    (("max_order_notional",), "0.0000019", "account", "max_order_notional", "1:0"),
    (("max_order_notional",), "unlimited", "account", "max_order_notional", "unlimited"),
    (("max_order_notional",), 0, "account", "max_order_notional", "0"),
    (("max_order_notional",), {"hard": 10, "soft": 10}, "account", "max_order_notional", "10000000"),
    (("max_order_notional",), {"hard": 10, "soft": "1.0000019"}, "account", "max_order_notional", "10000000:1000001"),
    (("max_order_notional",), {"hard": "unlimited", "soft": 1}, "account", "max_order_notional", "unlimited:1000000"),
    (("max_gross_exposure",), "1000.000001", "account", "max_gross_exposure", "1000000001:800000000"),
    (("max_open_orders",), 0, "account", "max_open_orders", "0"),
    (("max_open_orders",), 1, "account", "max_open_orders", "1:0"),
    (("max_open_orders",), 9, "account", "max_open_orders", "9:7"),
    (("order_rate_per_s",), 50, "account", "order_interval_us", "20000"),
    (("order_rate_per_s",), 3, "account", "order_interval_us", "333334"),
    (("order_rate_per_s",), 1_000_000, "account", "order_interval_us", "1"),
    (("order_rate_per_s",), 999_999, "account", "order_interval_us", "2"),
    (("order_rate_per_s",), "unlimited", "account", "order_interval_us", "unlimited"),
    (("message_rate_per_s",), "0.3", "account", "message_interval_us", "3333334"),
    (("order_burst",), 7, "account", "order_burst", "7"),
    (("cancel_reserve",), 7, "account", "cancel_reserve", "7"),
    (("taker_fee_bps",), "60.001", "account", "taker_fee_ppm", "6001"),
    (("market_buffer_bps",), "0.5", "account", "market_buffer_ppm", "50"),
    (("reference_stale_ms",), 100, "account", "reference_stale_ms", "100"),
    (("max_leverage",), "1.9999999", "account", "max_leverage_ppm", "1999999:1599999"),
    (("max_drawdown_percent",), "12.34567", "account", "max_drawdown_ppm", "123456:98764"),
    (("max_concentration_percent",), 100, "account", "max_concentration_ppm", "1000000:800000"),
    (("self_trade",), "deny", "account", "self_trade", "deny"),
    (("products", "BTC-USD", "max_position"), "0.000000019", "product|BTC-USD", "max_position_lots", "1:0"),
    (("products", "BTC-USD", "max_position"), 5, "product|BTC-USD", "max_position_lots", "500000000:400000000"),
    (("products", "BTC-USD", "max_order_quantity"), 1, "product|BTC-USD", "max_order_lots", "100000000:80000000"),
    (("products", "BTC-USD", "collar_bps"), "500.009", "product|BTC-USD", "collar_ppm", "50000:40000"),
    (("products", "BTC-USD", "max_spread_bps"), {"hard": 5, "soft": 1}, "product|BTC-USD", "max_spread_ppm", "500:100"),
    (("products", "BTC-USD", "fat_finger_multiple"), 10, "product|BTC-USD", "fat_finger_ppm", "10000000:8000000"),
    (("products", "BTC-USD", "max_depth_percent"), 50, "product|BTC-USD", "max_depth_ppm", "500000:400000"),
    (("products", "BTC-USD", "volatility_percent"), "2.5", "product|BTC-USD", "volatility_ppm", "25000"),
    (("products", "BTC-USD", "restricted"), "yes", "product|BTC-USD", "restricted", "yes"),
    (
        ("products", "BTC-USD", "hours"),
        ["tue 09:00-17:00", "mon 09:00-17:00"],
        "product|BTC-USD",
        "hours",
        "540-1020,1980-2460",
    ),
    (("strategies", "manual", "max_gross_exposure"), 1, "strategy|manual", "max_gross_exposure", "1000000:800000"),
    (("strategies", "manual", "capital"), "1.5", "strategy|manual", "capital", "1500000"),
    (("strategies", "manual", "max_order_to_trade"), 10, "strategy|manual", "max_order_to_trade", "10:8"),
    (("strategies", "manual", "versions"), ["b", "a", "b"], "strategy|manual", "versions", "a,b"),
    (("strategies", "manual", "short"), "denied", "strategy|manual", "short", "denied"),
    (("keys", "*", "max_daily_orders"), 5, "key|*", "max_daily_orders", "5:4"),
]


@pytest.mark.parametrize(("place", "value", "scope", "name", "text"), ROUNDED)
def test_a_limit_is_rounded_to_the_stricter_side_and_warns_at_four_fifths(
    place: tuple[str, ...], value: Any, scope: str, name: str, text: str
) -> None:
    record = records(with_limit(("accounts", "main", *place), value))[scope]
    assert dict(part.split("=") for part in record.split(" "))[name] == text
    assert parse_record(scope, record)[name].text() == text


def test_a_position_is_counted_in_lots_of_any_increment() -> None:
    limits = account_limits(products={"BTC-USD": {"max_position": "0.9"}})
    thirds = replace(BTC, base_increment=Decimal("0.3"))
    record = account_records(limits, {"BTC-USD": thirds})["product|BTC-USD"]
    assert parse_record("product|BTC-USD", record)["max_position_lots"] == Limit(3, 2)


def test_every_figure_of_the_ledger_is_an_integer_it_can_count() -> None:
    slow = ACCOUNT | {"order_rate_per_s": "0.001", "order_burst": 1_000_000, "max_order_notional": 2_000_000_000}
    limits = parse_record("account", records(FILE | {"accounts": {"main": slow}})["account"])
    numbers = [limit.hard for limit in limits.values() if isinstance(limit.hard, int)]
    assert all(0 <= number <= LEDGER_INTEGER_MAX for number in numbers)
    interval, burst = limits["order_interval_us"].hard, limits["order_burst"].hard
    assert isinstance(interval, int)
    assert isinstance(burst, int)
    assert interval * burst <= LEDGER_INTEGER_MAX


def test_a_limit_the_ledger_cannot_count_is_refused_rather_than_cut() -> None:
    for level in (2_000_000_000, {"hard": "unlimited", "soft": 2_000_000_000}):
        limits = account_limits(products={"BTC-USD": {"max_position": level}})
        with pytest.raises(LimitError, match="unlimited") as caught:
            account_records(limits, PRODUCTS)
        assert "product|BTC-USD.max_position" in caught.value.field


def test_a_product_the_venue_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(LimitError, match="BTC-USD"):
        account_records(account_limits(), {})


def test_the_calendar_is_the_zone_with_its_offsets() -> None:
    file = limits_file()
    assert desk_records(file)[CALENDAR] == "UTC 0"
    zurich = file.model_copy(update={"calendar_zone": "Europe/Zurich"})
    now = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    assert desk_records(zurich, now)[CALENDAR].startswith("Europe/Zurich 3600 1743296400 7200 ")
    assert account_records(file.accounts["main"], PRODUCTS, "UTC 0")[CALENDAR] == "UTC 0"


# -- one limit by name -------------------------------------------------------------------------------------------------

READ: list[tuple[str, str, Any, tuple[str, Limit]]] = [
    # scope, the file's name, value as given, the record's name and limit
    ("account", "max_order_notional", "1000", ("max_order_notional", Limit(1_000_000_000, 800_000_000))),
    ("account", "max_order_notional", {"hard": "10", "soft": "5"}, ("max_order_notional", Limit(10**7, 5 * 10**6))),
    ("global", "max_drawdown_percent", "unlimited", ("max_drawdown_ppm", Limit("unlimited"))),
    ("account", "max_open_orders", "10", ("max_open_orders", Limit(10, 8))),
    ("account", "max_open_orders", {"hard": "10", "soft": 10}, ("max_open_orders", Limit(10))),
    ("account", "order_burst", "7", ("order_burst", Limit(7))),
    ("key|*", "order_rate_per_s", "2", ("order_interval_us", Limit(500_000))),
    ("product|BTC-USD", "max_position", "0.5", ("max_position_lots", Limit(50_000_000, 40_000_000))),
    ("product|BTC-USD", "restricted", "yes", ("restricted", Limit("yes"))),
    ("strategy|manual", "versions", ["v2"], ("versions", Limit("v2"))),
]


@pytest.mark.parametrize(("scope", "name", "value", "expected"), READ)
def test_one_limit_is_read_by_the_name_and_in_the_unit_of_the_file(
    scope: str, name: str, value: Any, expected: tuple[str, Limit]
) -> None:
    assert read_limit(scope, name, value, BTC) == expected


UNREADABLE: list[tuple[str, str, Any, str]] = [
    # scope, name, value, what the error names
    ("account", "max_orders", "1", "max_orders"),
    ("account", "max_order_lots", "1", "max_order_lots"),
    ("group|majors", "max_order_notional", "1", "max_gross_exposure"),
    ("account", "max_order_notional", "much", "max_order_notional"),
    ("account", "max_order_notional", "NaN", "max_order_notional"),
    ("account", "max_order_notional", "-1", "max_order_notional"),
    ("account", "max_order_notional", "1e400", "max_order_notional"),
    ("account", "max_order_notional", {"hard": "1", "soft": "2"}, "soft"),
    ("account", "order_burst", 0, "order_burst"),
    ("account", "order_burst", "0", "order_burst"),
    ("account", "max_open_orders", "1.5", "max_open_orders"),
    ("account", "max_open_orders", True, "max_open_orders"),
    ("account", "max_open_orders", "١٢", "max_open_orders"),
    ("account", "order_burst", {"hard": 5, "soft": 1}, "order_burst"),
    ("account", "self_trade", "maybe", "self_trade"),
    ("everything", "max_order_notional", "1", "scope"),
    ("product", "max_position", "1", "scope"),
    ("account|main", "max_order_notional", "1", "scope"),
    ("", "max_order_notional", "1", "scope"),
]


@pytest.mark.parametrize(("scope", "name", "value", "named"), UNREADABLE)
def test_a_limit_that_cannot_be_is_refused_by_name(scope: str, name: str, value: Any, named: str) -> None:
    with pytest.raises(LimitError) as caught:
        read_limit(scope, name, value, BTC)
    assert named in str(caught.value)
    assert caught.value.field
    assert caught.value.rule


def test_a_quantity_needs_the_product_to_be_counted() -> None:
    with pytest.raises(LimitError, match="product"):
        read_limit("product|BTC-USD", "max_position", "1", None)


# -- back --------------------------------------------------------------------------------------------------------------

BROKEN: list[tuple[str, str, str]] = [
    # scope, text, what the error names
    ("group|majors", "max_gross_exposure", "max_gross_exposure"),
    ("group|majors", "max_gross_exposure=", "max_gross_exposure"),
    ("group|majors", "max_gross_exposure=1.5", "1.5"),
    ("group|majors", "max_gross_exposure=-1", "-1"),
    ("group|majors", "max_gross_exposure=1e9", "1e9"),
    ("group|majors", "max_gross_exposure=5:", "5:"),
    ("group|majors", "max_gross_exposure=5:6", "5:6"),
    ("group|majors", "max_gross_exposure=5:x", "5:x"),
    ("group|majors", "max_gross_exposure=99999999999999999999", "max_gross_exposure"),
    ("group|majors", f"max_gross_exposure={LEDGER_INTEGER_MAX + 1}", str(LEDGER_INTEGER_MAX)),
    ("group|majors", "max_gross_exposure=1 max_gross_exposure=2", "max_gross_exposure"),
    ("group|majors", "max_net_exposure=1", "max_net_exposure"),
    ("account", "order_burst=5:1", "order_burst"),
    ("nobody", "max_gross_exposure=1", "nobody"),
]


@pytest.mark.parametrize(("scope", "text", "named"), BROKEN)
def test_a_record_that_is_none_is_refused(scope: str, text: str, named: str) -> None:
    with pytest.raises(LimitError) as caught:
        parse_record(scope, text)
    assert named in str(caught.value)


def test_a_record_with_a_limit_missing_can_be_shown_and_not_be_written() -> None:
    text = records(FILE)["account"].replace("order_burst=100 ", "")
    limits = parse_record("account", text)
    assert "order_burst" not in {row.name for row in shown("account", text)}
    with pytest.raises(LimitError, match="order_burst"):
        write_record("account", limits)
    with pytest.raises(LimitError, match="max_position_lots"):
        write_record("account", limits | {"order_burst": Limit(1), "max_position_lots": Limit(1)})


def test_a_cancel_reserve_that_leaves_nothing_for_orders_is_refused() -> None:
    limits = parse_record("account", records(FILE)["account"])
    with pytest.raises(LimitError, match="cancel_reserve"):
        write_record("account", limits | {"cancel_reserve": Limit(100)})


SHOWN: list[tuple[str, str, str, tuple[str, str | None, str]]] = [
    # scope, the file's name, the record's text -> hard, soft, unit
    ("account", "max_order_notional", "max_order_notional=1500000:1", ("1.5", "0.000001", "USD")),
    ("account", "max_open_orders", "max_open_orders=5", ("5", None, "")),
    ("account", "order_rate_per_s", "order_interval_us=20000", ("50", None, "per second")),
    ("account", "order_rate_per_s", "order_interval_us=333334", ("2.999994", None, "per second")),
    ("account", "order_rate_per_s", "order_interval_us=unlimited", ("unlimited", None, "per second")),
    ("account", "max_leverage", "max_leverage_ppm=2500000:1000000", ("2.5", "1", "x")),
    ("account", "taker_fee_bps", "taker_fee_ppm=6001", ("60.01", None, "bps")),
    ("account", "max_drawdown_percent", "max_drawdown_ppm=unlimited:100000", ("unlimited", "10", "%")),
    ("product|BTC-USD", "max_position", "max_position_lots=50000000:1", ("0.5", "0.00000001", "BTC")),
    ("product|BTC-USD", "hours", "hours=540-1020", ("mon 09:00-17:00", None, "")),
    ("product|BTC-USD", "hours", "hours=1320-1560", ("mon 22:00-24:00, tue 00:00-02:00", None, "")),
    ("product|BTC-USD", "hours", "hours=always", ("always", None, "")),
    ("product|BTC-USD", "hours", "hours=nonsense", ("nonsense", None, "")),
    ("strategy|manual", "versions", "versions=a,b", ("a,b", None, "")),
]


@pytest.mark.parametrize(("scope", "name", "text", "expected"), SHOWN)
def test_a_limit_is_shown_in_the_words_and_units_of_the_file(
    scope: str, name: str, text: str, expected: tuple[str, str | None, str]
) -> None:
    (row,) = shown(scope, text, BTC)
    assert (row.scope, row.name) == (scope, name)
    assert (row.hard, row.soft, row.unit) == expected


WHOLE: Final = records(
    FILE
    | {
        "accounts": {
            "main": ACCOUNT | {"products": {"BTC-USD": PRODUCT | {"group": "majors"}}, "groups": {"majors": GROUP}}
        }
    }
)


@settings(deadline=None)
@given(
    scope=st.sampled_from(["global", "account", "strategy|manual", "product|BTC-USD", "key|*", "group|majors"]),
    data=st.data(),
)
def test_what_is_written_is_read_back_the_same(scope: str, data: st.DataObject) -> None:
    limits = parse_record(scope, WHOLE[scope])
    for name, field in record_fields(kind_of(scope)).items():
        if field.has_soft and data.draw(st.booleans()):
            hard = data.draw(st.integers(0, LEDGER_INTEGER_MAX))
            limits[name] = Limit(hard, data.draw(st.none() | st.integers(0, hard)))
    assert parse_record(scope, write_record(scope, limits)) == limits
