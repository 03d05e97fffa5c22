"""Risk limits as written in limits.yaml: validated, every one present, "unlimited" written out."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conf.settings import SettingsError, describe, read_mapping

Unlimited = Literal["unlimited"]
Amount = Annotated[Decimal, Field(ge=0, le=Decimal(2_000_000_000), allow_inf_nan=False)] | Unlimited
"""An amount in units of the quote currency (USD), or of the base currency for a position."""
# Strict, because `yes` or `true` must not count as 1.
Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)] | Unlimited
Burst = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
# Slower than one order in a thousand seconds, the ledger's clock arithmetic would leave its integers.
Rate = Annotated[Decimal, Field(ge=Decimal("0.001"), le=1_000_000, allow_inf_nan=False)] | Unlimited
ProductId = Annotated[str, Field(pattern=r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$")]


class _Limits(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StrategyLimits(_Limits):
    """Limits of one strategy within an account."""

    max_order_notional: Amount
    max_gross_exposure: Amount
    max_open_orders: Count
    order_rate_per_s: Rate
    order_burst: Burst


class ProductLimits(_Limits):
    """Limits of one product within an account; ``max_position`` in base currency units, long or short."""

    max_order_notional: Amount
    max_position: Amount
    max_open_orders: Count


class AccountLimits(_Limits):
    """Limits of an account; its products and strategies are its allow-lists too."""

    max_order_notional: Amount
    max_gross_exposure: Amount
    max_open_orders: Count
    order_rate_per_s: Rate
    order_burst: Burst
    taker_fee_bps: Annotated[Decimal, Field(ge=0, le=1000)]
    # A market order is valued, and its cash reserved, at the touch plus this much.
    market_buffer_bps: Annotated[Decimal, Field(ge=0, le=5000)]
    reference_stale_ms: Annotated[int, Field(strict=True, ge=100, le=3_600_000)]
    products: Annotated[dict[ProductId, ProductLimits], Field(min_length=1)]
    strategies: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")], StrategyLimits], Field(min_length=1)
    ]


class LimitsFile(_Limits):
    """The whole of limits.yaml."""

    accounts: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,32}$")], AccountLimits], Field(min_length=1)]


def load_limits(path: Path) -> LimitsFile:
    """Read and validate ``path``; raises ``SettingsError`` naming the field, the value and the rule."""
    if not path.is_file():
        raise SettingsError(f"limits_file: {path} does not exist; without limits every order is denied")
    try:
        return LimitsFile.model_validate(read_mapping(path))
    except ValidationError as error:
        raise SettingsError(f"{path}: {describe(error)}") from None
