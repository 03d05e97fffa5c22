"""limits.yaml: every limit is written, "unlimited" is written out, and nothing that is no limit counts as one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from cluster.ledger import LedgerError, limit_fields
from conf.limits import AccountLimits, load_limits
from conf.settings import CONF_DIR, SettingsError
from strategies.model import LEDGER_INTEGER_MAX, Product

STRATEGY: Final = {
    "max_order_notional": 50_000,
    "max_gross_exposure": 250_000,
    "max_open_orders": 200,
    "order_rate_per_s": 50,
    "order_burst": 100,
}
PRODUCT: Final = {"max_order_notional": 50_000, "max_position": 5, "max_open_orders": 100}
ACCOUNT: Final = {
    **STRATEGY,
    "taker_fee_bps": 60,
    "market_buffer_bps": 100,
    "reference_stale_ms": 10_000,
    "products": {"BTC-USD": PRODUCT},
    "strategies": {"manual": STRATEGY},
}
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

PLACES: Final[list[tuple[str, ...]]] = [
    *((name,) for name in ACCOUNT),
    *(("products", "BTC-USD", name) for name in PRODUCT),
    *(("strategies", "manual", name) for name in STRATEGY),
]


LEFT_OUT: Final = object()


def with_limit(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The account's limits with another value at ``place``; ``LEFT_OUT`` leaves it out."""
    account: dict[str, Any] = yaml.safe_load(yaml.safe_dump(ACCOUNT))
    part = account
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    if value is LEFT_OUT:
        del part[place[-1]]
    return account


def load(path: Path, account: Any) -> AccountLimits:
    path.write_text(yaml.safe_dump({"accounts": {"main": account}}))
    return load_limits(path).accounts["main"]


def refused(path: Path, account: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, account)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.yaml"


def test_the_limits_the_project_ships_are_valid() -> None:
    assert "main" in load_limits(CONF_DIR / "limits.yaml").accounts


def test_a_complete_account_is_read(path: Path) -> None:
    limits = load(path, ACCOUNT)
    assert limits.max_order_notional == Decimal(50_000)
    assert limits.products["BTC-USD"].max_position == Decimal(5)
    assert limits.strategies["manual"].order_burst == 100


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_missing_limit_is_named(path: Path, place: tuple[str, ...]) -> None:
    assert f"{'.'.join(('accounts', 'main', *place))}: Field required" in refused(path, with_limit(place, LEFT_OUT))


AMOUNTS: Final = [
    place
    for place in PLACES
    if place[-1] in {"max_order_notional", "max_gross_exposure", "max_position", "max_open_orders", "order_rate_per_s"}
]


@pytest.mark.parametrize("place", AMOUNTS, ids=".".join)
def test_no_limit_at_all_is_written_out(path: Path, place: tuple[str, ...]) -> None:
    part: Any = load(path, with_limit(place, "unlimited"))
    for name in place:
        part = part[name] if isinstance(part, dict) else getattr(part, name)
    assert part == "unlimited"


NO_LIMITS: Final = [
    None,
    "",
    "none",
    "Unlimited",
    "UNLIMITED",
    "infinity",
    "NaN",
    "-inf",
    float("nan"),
    float("inf"),
    float("-inf"),
    -1,
    -0.01,
    "-1",
    True,
    "yes",
    "0x10",
    "1e400",
    "12:30",
    10**18,
    [50_000],
    {"amount": 50_000},
]


# All of them at one limit of each kind, the worst of them at every limit.
REFUSED: Final = [
    *((place, value) for place in AMOUNTS[:4] for value in NO_LIMITS),
    *((place, value) for place in AMOUNTS[4:] for value in (None, float("nan"), -1, True)),
]


@pytest.mark.parametrize(
    ("place", "value"), REFUSED, ids=lambda part: ".".join(part) if isinstance(part, tuple) else repr(part)
)
def test_what_is_no_limit_is_refused_by_name(path: Path, place: tuple[str, ...], value: Any) -> None:
    assert ".".join(("accounts", "main", *place)) in refused(path, with_limit(place, value))


NUMBERS_ONLY: list[tuple[str, list[Any]]] = [
    # what has no "unlimited", values out of its range
    ("order_burst", ["unlimited", 0, -1, 1.5, True, "100", float("nan"), 1_000_001]),
    ("taker_fee_bps", ["unlimited", -1, float("nan"), float("inf"), True, 1_001]),
    ("market_buffer_bps", ["unlimited", -1, float("nan"), float("inf"), True, 5_001]),
    ("reference_stale_ms", ["unlimited", 99, 3_600_001, 1000.5, True, float("nan")]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMBERS_ONLY for value in values])
def test_a_figure_that_must_be_a_number_is_one(path: Path, name: str, value: Any) -> None:
    assert f"accounts.main.{name}" in refused(path, with_limit((name,), value))


@pytest.mark.parametrize(
    ("account", "named"),
    [
        (ACCOUNT | {"max_orders": 1}, "accounts.main.max_orders"),
        (ACCOUNT | {"products": {"BTC-USD": PRODUCT | {"max_positions": 1}}}, "products.BTC-USD.max_positions"),
        (ACCOUNT | {"products": {}}, "accounts.main.products"),
        (ACCOUNT | {"strategies": {}}, "accounts.main.strategies"),
        (ACCOUNT | {"products": {"btc-usd": PRODUCT}}, "btc-usd"),
        (ACCOUNT | {"products": {"BTC|USD": PRODUCT}}, "BTC|USD"),
        (ACCOUNT | {"strategies": {"a|b": STRATEGY}}, "a|b"),
        (ACCOUNT | {"strategies": {"Manual": STRATEGY}}, "Manual"),
        (ACCOUNT | {"strategies": None}, "accounts.main.strategies"),
        ("unlimited", "accounts.main"),
        (None, "accounts.main"),
    ],
)
def test_what_does_not_belong_is_refused_by_name(path: Path, account: Any, named: str) -> None:
    assert named in refused(path, account)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "accounts: Field required"),
        ("accounts: {}", "accounts"),
        ("accounts: [main]", "accounts"),
        ("accounts: {Main: {}}", "Main"),
        ("account: {}", "account"),
        ("accounts: {main: {max_order_notional: 1, max_order_notional: 2}}", "max_order_notional is named twice"),
        ("accounts: {main: {", "limits.yaml"),
        ("- main", "expected a mapping"),
    ],
)
def test_a_file_that_holds_no_limits_is_refused(path: Path, text: str, named: str) -> None:
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"limits\.yaml"):
        load_limits(path)
    with pytest.raises(SettingsError) as caught:
        load_limits(path)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_refused_with_what_follows(path: Path) -> None:
    with pytest.raises(SettingsError, match="without limits every order is denied"):
        load_limits(path)


# -- as the ledger's integers ------------------------------------------------------------------------------------------

FIELDS: list[tuple[tuple[str, ...], Any, str, str]] = [
    # limit, value, the ledger's field, its integer
    (("max_order_notional",), 50_000, "account|max_order_notional", "50000000000"),
    (("max_order_notional",), "0.0000019", "account|max_order_notional", "1"),
    (("max_order_notional",), "unlimited", "account|max_order_notional", "unlimited"),
    (("max_order_notional",), 0, "account|max_order_notional", "0"),
    (("max_gross_exposure",), "1000.000001", "account|max_gross_exposure", "1000000001"),
    (("max_open_orders",), 0, "account|max_open_orders", "0"),
    (("order_rate_per_s",), 50, "account|order_interval_us", "20000"),
    (("order_rate_per_s",), 3, "account|order_interval_us", "333334"),
    (("order_rate_per_s",), 1_000_000, "account|order_interval_us", "1"),
    (("order_rate_per_s",), 999_999, "account|order_interval_us", "2"),
    (("order_rate_per_s",), "unlimited", "account|order_interval_us", "unlimited"),
    (("order_burst",), 7, "account|order_burst", "7"),
    (("taker_fee_bps",), "60.001", "account|taker_fee_ppm", "6001"),
    (("market_buffer_bps",), "0.5", "account|market_buffer_ppm", "50"),
    (("reference_stale_ms",), 100, "account|reference_stale_ms", "100"),
    (("products", "BTC-USD", "max_position"), "0.000000019", "product|BTC-USD|max_position", "1"),
    (("products", "BTC-USD", "max_position"), 5, "product|BTC-USD|max_position", "500000000"),
    (("strategies", "manual", "max_gross_exposure"), 1, "strategy|manual|max_gross_exposure", "1000000"),
]


@pytest.mark.parametrize(("place", "value", "field", "integer"), FIELDS)
def test_a_limit_is_rounded_to_the_stricter_side(
    path: Path, place: tuple[str, ...], value: Any, field: str, integer: str
) -> None:
    assert limit_fields(load(path, with_limit(place, value)), {"BTC-USD": BTC})[field] == integer


def test_a_position_is_counted_in_lots_of_any_increment(path: Path) -> None:
    from dataclasses import replace

    limits = load(path, with_limit(("products", "BTC-USD", "max_position"), "0.9"))
    thirds = replace(BTC, base_increment=Decimal("0.3"))
    assert limit_fields(limits, {"BTC-USD": thirds})["product|BTC-USD|max_position"] == "3"


def test_every_figure_of_the_ledger_is_an_integer_it_can_count(path: Path) -> None:
    slow = with_limit(("order_rate_per_s",), "0.001") | {"order_burst": 1_000_000}
    fields = limit_fields(load(path, slow), {"BTC-USD": BTC})
    assert all(0 <= int(value) <= LEDGER_INTEGER_MAX for value in fields.values())
    assert int(fields["account|order_interval_us"]) * int(fields["account|order_burst"]) <= LEDGER_INTEGER_MAX


def test_a_limit_the_ledger_cannot_count_is_refused_rather_than_cut(path: Path) -> None:
    limits = load(path, with_limit(("products", "BTC-USD", "max_position"), 2_000_000_000))
    with pytest.raises(LedgerError, match="unlimited"):
        limit_fields(limits, {"BTC-USD": BTC})


def test_a_product_the_venue_does_not_have_is_refused_by_name(path: Path) -> None:
    with pytest.raises(LedgerError, match="BTC-USD"):
        limit_fields(load(path, ACCOUNT), {})
