"""limits.yaml: every limit is written, "unlimited" is written out, and nothing that is no limit counts as one."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from conf.limits import AccountLimits, LimitsFile, load_limits
from conf.settings import CONF_DIR, SettingsError
from tests.limit_samples import ACCOUNT, FILE, GLOBAL, GROUP, KEY, LEFT_OUT, PRODUCT, STRATEGY, with_limit

MAIN: Final = ("accounts", "main")
PLACES: Final[list[tuple[str, ...]]] = [
    ("calendar_zone",),
    *(("global", name) for name in GLOBAL),
    *((*MAIN, name) for name in ACCOUNT),
    *((*MAIN, "products", "BTC-USD", name) for name in PRODUCT),
    *((*MAIN, "strategies", "manual", name) for name in STRATEGY),
    *((*MAIN, "keys", "*", name) for name in KEY),
]


def load(path: Path, file: Any) -> LimitsFile:
    path.write_text(yaml.safe_dump(file))
    return load_limits(path)


def refused(path: Path, file: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load(path, file)
    return str(caught.value)


def found(limits: LimitsFile, place: tuple[str, ...]) -> Any:
    part: Any = limits
    for name in place:
        part = part[name] if isinstance(part, dict) else getattr(part, name.replace("global", "global_"))
    return part


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limits.yaml"


def test_the_limits_the_project_ships_are_valid_and_bound_every_kind_of_scope() -> None:
    limits = load_limits(CONF_DIR / "limits.yaml").accounts["main"]
    assert all((limits.products, limits.strategies, limits.keys, limits.groups))
    assert limits.self_trade == "deny"
    assert {name: strategy.short for name, strategy in limits.strategies.items() if strategy.short == "allowed"} == {
        "manual": "allowed"
    }


def test_a_complete_file_is_read(path: Path) -> None:
    limits = load(path, with_limit((*MAIN, "max_order_notional"), 50_000)).accounts["main"]
    assert limits.max_order_notional.hard == Decimal(50_000)
    assert limits.strategies["manual"].order_burst == 100


def test_one_part_may_be_written_as_another_with_changes(path: Path) -> None:
    merged = CONF_DIR.joinpath("limits.yaml").read_text().replace("max_position: 100", "max_position: 7", 1)
    path.write_text(merged)
    products = load_limits(path).accounts["main"].products
    assert (products["BTC-USD"].max_position.hard, products["ETH-USD"].max_position.hard) == (Decimal(5), Decimal(7))
    assert products["ETH-USD"].collar_bps == products["BTC-USD"].collar_bps


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_missing_limit_is_named(path: Path, place: tuple[str, ...]) -> None:
    assert f"{'.'.join(place)}: Field required" in refused(path, with_limit(place, LEFT_OUT))


NOT_UNLIMITED: Final = {
    "calendar_zone", "order_burst", "message_burst", "cancel_reserve", "taker_fee_bps", "market_buffer_bps",
    "reference_stale_ms", "duplicate_window_ms", "venue_error_window_ms", "reject_window_ms", "repeat_window_ms",
    "volatility_window_ms", "volatility_halt_ms", "short", "self_trade", "restricted", "hours", "versions", "group",
    "products", "strategies", "keys", "groups",
}  # fmt: skip
AMOUNTS: Final = [place for place in PLACES if place[-1] not in NOT_UNLIMITED]


@pytest.mark.parametrize("place", AMOUNTS, ids=".".join)
def test_no_limit_at_all_is_written_out(path: Path, place: tuple[str, ...]) -> None:
    value = found(load(path, with_limit(place, "unlimited")), place)
    assert getattr(value, "hard", value) == "unlimited"


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
    "1_000",
    " 5",
    "+5",
    ".5",
    "5.",
    "١٢",
    10**18,
    [50_000],
    {"amount": 50_000},
    {"soft": 1},
    {"hard": None},
    {"hard": 50_000, "soft": None, "more": 1},
    {"hard": 50_000, "soft": 50_001},
    {"hard": 50_000, "soft": "unlimited"},
    {"hard": 50_000, "soft": -1},
    {"hard": 50_000, "soft": float("nan")},
]


# All of them at one limit of each kind, the worst of them at every limit.
KINDS: Final = ("max_order_notional", "max_open_orders", "max_position", "max_drawdown_percent", "collar_bps")
REFUSED: Final = [
    *(
        (place, value)
        for kind in KINDS
        for place in [next(place for place in AMOUNTS if place[-1] == kind)]
        for value in NO_LIMITS
    ),
    *((place, value) for place in AMOUNTS for value in (None, True)),
]


@pytest.mark.parametrize(
    ("place", "value"), REFUSED, ids=lambda part: ".".join(part) if isinstance(part, tuple) else repr(part)
)
def test_what_is_no_limit_is_refused_by_name(path: Path, place: tuple[str, ...], value: Any) -> None:
    assert ".".join(place) in refused(path, with_limit(place, value))


LEVELS: list[tuple[Any, Any, Any]] = [
    # as written -> hard, soft
    (100, 100, None),
    ("0.5", Decimal("0.5"), None),
    ({"hard": 100}, 100, None),
    ({"hard": 100, "soft": 60}, 100, 60),
    ({"hard": 100, "soft": 100}, 100, 100),
    ({"hard": 100, "soft": 0}, 100, 0),
    ({"hard": "unlimited", "soft": 60}, "unlimited", 60),
    ({"hard": "unlimited", "soft": "unlimited"}, "unlimited", "unlimited"),
    ("unlimited", "unlimited", None),
]


@pytest.mark.parametrize(("written", "hard", "soft"), LEVELS)
def test_a_limit_has_a_hard_level_and_may_name_a_soft_one(path: Path, written: Any, hard: Any, soft: Any) -> None:
    level = load(path, with_limit((*MAIN, "max_order_notional"), written)).accounts["main"].max_order_notional
    assert (level.hard, level.soft) == (hard, soft)


NUMBERS_ONLY: list[tuple[str, list[Any]]] = [
    # what has no "unlimited", values out of its range
    ("order_burst", ["unlimited", 0, -1, 1.5, True, "100", float("nan"), 1_000_001, {"hard": 5}]),
    ("message_burst", ["unlimited", 0, True, "100"]),
    ("cancel_reserve", ["unlimited", -1, 1.5, True, 100, 101]),
    ("taker_fee_bps", ["unlimited", -1, float("nan"), float("inf"), True, 1_001]),
    ("market_buffer_bps", ["unlimited", -1, float("nan"), float("inf"), True, 5_001]),
    ("reference_stale_ms", ["unlimited", 99, 3_600_001, 1000.5, True, float("nan")]),
    ("duplicate_window_ms", ["unlimited", -1, 1.5, True, 86_400_001]),
    ("reject_window_ms", ["unlimited", 0, 99, 1000.5, True, 86_400_001]),
    ("venue_error_window_ms", ["unlimited", 0, True]),
    ("order_rate_per_s", [0, "0.0009", 1_000_001, True, float("nan"), {"hard": 5}]),
    ("message_rate_per_s", [0, -1, True]),
    ("reference_halt_ms", [99, 1000.5, True, float("inf")]),
    ("max_rejects", [-1, 1.5, True, "5", {"hard": 5, "soft": 1}]),
    ("self_trade", ["unlimited", "Deny", "no", True, None, 0]),
]


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NUMBERS_ONLY for value in values])
def test_a_figure_out_of_its_range_is_refused_by_name(path: Path, name: str, value: Any) -> None:
    assert name in refused(path, with_limit((*MAIN, name), value))


WORDS: list[tuple[tuple[str, ...], list[Any]]] = [
    # places below the account, what is not understood there
    (("strategies", "manual", "short"), ["yes", "Allowed", True, None, ""]),
    (
        ("strategies", "manual", "versions"),
        ["1.0", [], ["any"], ["unlimited"], ["a", "2"], ["a,b"], [""], ["x" * 65], [1], None],
    ),
    (("strategies", "manual", "hours"), ["mon-fri", [], ["always"], ["mon 9-17"], "unlimited", None, [None]]),
    (("products", "BTC-USD", "restricted"), [True, "maybe", None, 0]),
    (("products", "BTC-USD", "hours"), [["mon 09:00-09:00"], ["mon-fri 09:00-17:00", "x"]]),
    (("products", "BTC-USD", "group"), ["majors", "", "Majors", None, "a b", "12"]),
]


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, values in WORDS for value in values])
def test_a_word_that_is_not_understood_is_refused_by_name(path: Path, place: tuple[str, ...], value: Any) -> None:
    assert place[-1] in refused(path, with_limit((*MAIN, *place), value))


def test_hours_versions_and_a_group_are_read(path: Path) -> None:
    product = PRODUCT | {"hours": ["mon-fri 09:00-17:00", "sun 22:00-02:00"], "group": "majors"}
    strategy = STRATEGY | {"versions": ["1.0", "v2-beta_3"]}
    account = ACCOUNT | {
        "products": {"BTC-USD": product},
        "strategies": {"manual": strategy},
        "groups": {"majors": GROUP},
    }
    limits = load(path, FILE | {"accounts": {"main": account}}).accounts["main"]
    assert limits.products["BTC-USD"].hours == ["mon-fri 09:00-17:00", "sun 22:00-02:00"]
    assert limits.strategies["manual"].versions == ["1.0", "v2-beta_3"]


@pytest.mark.parametrize(
    ("account", "named"),
    [
        (ACCOUNT | {"max_orders": 1}, "accounts.main.max_orders"),
        (ACCOUNT | {"products": {"BTC-USD": PRODUCT | {"max_positions": 1}}}, "products.BTC-USD.max_positions"),
        (ACCOUNT | {"products": {}}, "accounts.main.products"),
        (ACCOUNT | {"strategies": {}}, "accounts.main.strategies"),
        (ACCOUNT | {"keys": {}}, "accounts.main.keys"),
        (ACCOUNT | {"keys": {"**": KEY}}, "**"),
        (ACCOUNT | {"keys": {"local desk": KEY}}, "local desk"),
        (ACCOUNT | {"groups": {"a|b": GROUP}}, "a|b"),
        (ACCOUNT | {"groups": {"unlimited": GROUP}}, "groups.unlimited"),
        (ACCOUNT | {"groups": {"12": GROUP}}, "groups.12"),
        (ACCOUNT | {"groups": {"majors": {}}}, "groups.majors.max_gross_exposure"),
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
    assert named in refused(path, FILE | {"accounts": {"main": account}})


@pytest.mark.parametrize(
    ("file", "named"),
    [
        (FILE | {"calendar_zone": "Mars/Olympus"}, "calendar_zone"),
        (FILE | {"calendar_zone": 1}, "calendar_zone"),
        (FILE | {"global": {}}, "global.max_order_notional"),
        (FILE | {"global": GLOBAL | {"max_leverage": 1}}, "global.max_leverage"),
        (FILE | {"global_": GLOBAL}, "global_"),
        (FILE | {"accounts": {"Main": ACCOUNT}}, "Main"),
    ],
)
def test_what_does_not_fit_the_desk_is_refused_by_name(path: Path, file: Any, named: str) -> None:
    assert named in refused(path, file)


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


def test_limits_read_once_are_read_the_same_again(path: Path) -> None:
    limits = load_limits(CONF_DIR / "limits.yaml").accounts["main"]
    assert AccountLimits.model_validate(limits.model_dump()) == limits
    assert AccountLimits.model_validate(limits.model_dump(mode="json")) == limits
