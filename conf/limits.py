"""Risk limits as written in limits.yaml: validated, every one present, "unlimited" written out.

A limit that warns before it denies is a number, or ``{hard: 100, soft: 60}``; without ``soft`` the warning comes at
80 % of the hard level. The type of each field says in which unit people write it (``Unit``);
cluster/limit_records.py makes the ledger's integers of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from conf.settings import SettingsError, describe, read_mapping
from conf.trading_hours import known_zone, week_ranges

UNLIMITED: Final = "unlimited"
Unlimited = Literal["unlimited"]
NO_GROUP: Final = "-"
ANY_KEY: Final = "*"
ANY_VERSION: Final = "any"


class Unit(StrEnum):
    """What people write a limit in."""

    MONEY = "quote currency"
    QUANTITY = "base currency"
    COUNT = "count"
    RATIO = "ratio"
    RATE = "per second"
    PERCENT = "%"
    BPS = "bps"
    MULTIPLE = "x"
    MILLISECONDS = "ms"
    WORD = "word"
    HOURS = "hours of the week"
    VERSIONS = "versions"


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


T = TypeVar("T")


class Level(_Limits, Generic[T]):
    """A limit with the level from which it warns; ``soft`` None stands for 80 % of ``hard``."""

    hard: T
    soft: T | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_value(cls, value: Any) -> Any:
        return value if isinstance(value, (Mapping, Level)) else {"hard": value}

    @model_validator(mode="after")
    def _soft_is_not_looser(self) -> Self:
        soft, hard = _height(self.soft), _height(self.hard)
        if self.soft is not None and soft > hard:
            raise ValueError(f"soft must not be looser than hard, was {self.soft} with hard {self.hard}")
        return self


def _height(level: Any) -> Decimal:
    return Decimal(level) if isinstance(level, (int, Decimal)) else Decimal("inf")


def _written(value: Any) -> Any:
    # Decimal itself reads 1_000, " 5 " and the digits of other scripts too.
    if isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value, re.ASCII):
        raise ValueError("expected a decimal number such as 1250.5")
    return value


_Number = Annotated[Decimal, BeforeValidator(_written)]
_AMOUNT_MAX: Final = 2_000_000_000
_Amount = Annotated[_Number, Field(ge=0, le=_AMOUNT_MAX, allow_inf_nan=False)] | Unlimited
_Share = Annotated[_Number, Field(ge=0, le=1_000_000, allow_inf_nan=False)] | Unlimited
# Strict, because `yes` or `true` must not count as 1.
_Whole = Annotated[int, Field(strict=True, ge=0, le=1_000_000_000)] | Unlimited

Money = Annotated[Level[_Amount], Unit.MONEY]
Quantity = Annotated[Level[_Amount], Unit.QUANTITY]
Count = Annotated[Level[_Whole], Unit.COUNT]
Ratio = Annotated[Level[_Whole], Unit.RATIO]
Percent = Annotated[Level[_Share], Unit.PERCENT]
Bps = Annotated[Level[_Share], Unit.BPS]
Multiple = Annotated[Level[_Share], Unit.MULTIPLE]
# These have no level to warn at: they latch, pace or describe.
Capital = Annotated[_Amount, Unit.MONEY]
Times = Annotated[_Whole, Unit.COUNT]
Move = Annotated[_Share, Unit.PERCENT]
Age = Annotated[Annotated[int, Field(strict=True, ge=100, le=86_400_000)] | Unlimited, Unit.MILLISECONDS]
Window = Annotated[int, Field(strict=True, ge=100, le=86_400_000), Unit.MILLISECONDS]
WindowOrNone = Annotated[int, Field(strict=True, ge=0, le=86_400_000), Unit.MILLISECONDS]
Burst = Annotated[int, Field(strict=True, ge=1, le=1_000_000), Unit.COUNT]
Reserve = Annotated[int, Field(strict=True, ge=0, le=1_000_000), Unit.COUNT]
# Slower than one order in a thousand seconds, the ledger's clock arithmetic would leave its integers.
Rate = Annotated[
    Annotated[_Number, Field(ge=Decimal("0.001"), le=1_000_000, allow_inf_nan=False)] | Unlimited, Unit.RATE
]
Fee = Annotated[_Number, Field(ge=0, le=1000, allow_inf_nan=False), Unit.BPS]
Buffer = Annotated[_Number, Field(ge=0, le=5000, allow_inf_nan=False), Unit.BPS]


def _hours(value: list[str]) -> list[str]:
    week_ranges(value)
    return value


Hours = Annotated[
    Literal["always"] | Annotated[list[str], Field(min_length=1, max_length=64), AfterValidator(_hours)], Unit.HOURS
]


def _versions(value: list[str]) -> list[str]:
    # The ledger would read these as something else than the name of a version.
    for version in value:
        if version in {ANY_VERSION, UNLIMITED} or version.isdigit():
            raise ValueError(f"a version is a name and not only digits, was {version!r}")
    return value


def _group(name: str) -> str:
    if name == UNLIMITED or name.isdigit():
        raise ValueError(f"a group has a name and not only digits, was {name!r}")
    return name


_Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9._\-]{1,64}$")]
Versions = Annotated[
    Literal["any"] | Annotated[list[_Version], Field(min_length=1, max_length=64), AfterValidator(_versions)],
    Unit.VERSIONS,
]
Name = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")]
ProductId = Annotated[str, Field(pattern=r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$")]
GroupName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$"), AfterValidator(_group)]
KeyId = Annotated[str, Field(pattern=r"^([0-9a-f]{12}|\*)$")]


class _OrderLimits(_Limits):
    max_order_notional: Money
    max_open_orders: Count
    max_open_notional: Money
    order_rate_per_s: Rate
    order_burst: Burst
    max_daily_orders: Count
    max_daily_turnover: Money


class GlobalLimits(_OrderLimits):
    """Limits over all accounts of the desk."""

    max_gross_exposure: Money
    max_net_exposure: Money
    max_daily_loss: Money
    max_drawdown_percent: Percent


class StrategyLimits(GlobalLimits):
    """Limits of one strategy within an account."""

    capital: Capital
    max_order_to_trade: Ratio
    max_loss_streak: Times
    max_repeats: Times
    repeat_window_ms: Window
    max_rejects: Times
    reject_window_ms: Window
    duplicate_window_ms: WindowOrNone
    short: Annotated[Literal["allowed", "denied"], Unit.WORD]
    hours: Hours
    versions: Versions


class ProductLimits(_OrderLimits):
    """Limits of one product within an account; quantities in base currency units, positions long or short."""

    max_order_quantity: Quantity
    max_position: Quantity
    max_strategy_position: Quantity
    max_gross_exposure: Money
    max_daily_loss: Money
    max_concentration_percent: Percent
    collar_bps: Bps
    max_spread_bps: Bps
    fat_finger_multiple: Multiple
    max_depth_percent: Percent
    volatility_percent: Move
    volatility_window_ms: Window
    volatility_halt_ms: Window
    restricted: Annotated[Literal["yes", "no"], Unit.WORD]
    hours: Hours
    group: Annotated[GroupName | Literal["-"], Unit.WORD]


class KeyLimits(_OrderLimits):
    """Limits of one API key, or of every key that has none of its own."""


class GroupLimits(_Limits):
    """Limits of products that move together."""

    max_gross_exposure: Money


class AccountLimits(GlobalLimits):
    """Limits of an account; its products, strategies and keys are its allow-lists too."""

    max_leverage: Multiple
    max_concentration_percent: Percent
    max_order_to_trade: Ratio
    message_rate_per_s: Rate
    message_burst: Burst
    cancel_reserve: Reserve
    taker_fee_bps: Fee
    # A market order is valued, and its cash reserved, at the touch plus this much.
    market_buffer_bps: Buffer
    reference_stale_ms: Annotated[int, Field(strict=True, ge=100, le=3_600_000), Unit.MILLISECONDS]
    reference_halt_ms: Age
    max_clock_skew_ms: Age
    duplicate_window_ms: WindowOrNone
    max_venue_errors: Times
    venue_error_window_ms: Window
    max_rejects: Times
    reject_window_ms: Window
    self_trade: Annotated[Literal["deny", "allow"], Unit.WORD]
    products: Annotated[dict[ProductId, ProductLimits], Field(min_length=1)]
    strategies: Annotated[dict[Name, StrategyLimits], Field(min_length=1)]
    keys: Annotated[dict[KeyId, KeyLimits], Field(min_length=1)]
    groups: dict[GroupName, GroupLimits]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.cancel_reserve >= self.message_burst:
            rule = f"cancel_reserve must be below message_burst ({self.message_burst}), was {self.cancel_reserve}"
            raise ValueError(rule)
        for name, product in self.products.items():
            if product.group != NO_GROUP and product.group not in self.groups:
                raise ValueError(f"products.{name}.group: groups has no {product.group!r}")
        return self


class LimitsFile(_Limits):
    """The whole of limits.yaml."""

    calendar_zone: Annotated[str, AfterValidator(lambda name: known_zone(name).key)]
    global_: GlobalLimits = Field(alias="global")
    accounts: Annotated[dict[Name, AccountLimits], Field(min_length=1)]


SCOPE_MODELS: Final[dict[str, type[_Limits]]] = {
    "global": GlobalLimits,
    "account": AccountLimits,
    "strategy": StrategyLimits,
    "product": ProductLimits,
    "key": KeyLimits,
    "group": GroupLimits,
}
"""What is limited -> the limits it has: the fields with a ``Unit``."""


def load_limits(path: Path) -> LimitsFile:
    """Read and validate ``path``; raises ``SettingsError`` naming the field, the value and the rule."""
    if not path.is_file():
        raise SettingsError(f"limits_file: {path} does not exist; without limits every order is denied")
    try:
        return LimitsFile.model_validate(read_mapping(path))
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error)}") from None
