"""A complete limits.yaml as a mapping, every limit unlimited and every word at its loosest, for tests to change."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from conf.limits import AccountLimits, LimitsFile

UNLIMITED: Final = "unlimited"
_ORDERS: Final[dict[str, Any]] = {
    "max_order_notional": UNLIMITED,
    "max_open_orders": UNLIMITED,
    "max_open_notional": UNLIMITED,
    "order_rate_per_s": UNLIMITED,
    "order_burst": 100,
    "max_daily_orders": UNLIMITED,
    "max_daily_turnover": UNLIMITED,
}
KEY: Final = _ORDERS
GLOBAL: Final[dict[str, Any]] = _ORDERS | {
    "max_gross_exposure": UNLIMITED,
    "max_net_exposure": UNLIMITED,
    "max_daily_loss": UNLIMITED,
    "max_drawdown_percent": UNLIMITED,
}
_WINDOWS: Final[dict[str, Any]] = {
    "duplicate_window_ms": 0,
    "max_rejects": UNLIMITED,
    "reject_window_ms": 60_000,
    "max_order_to_trade": UNLIMITED,
}
STRATEGY: Final[dict[str, Any]] = (
    GLOBAL
    | _WINDOWS
    | {
        "capital": UNLIMITED,
        "max_loss_streak": UNLIMITED,
        "max_repeats": UNLIMITED,
        "repeat_window_ms": 60_000,
        "short": "allowed",
        "hours": "always",
        "versions": "any",
    }
)
PRODUCT: Final[dict[str, Any]] = _ORDERS | {
    "max_order_quantity": UNLIMITED,
    "max_position": UNLIMITED,
    "max_strategy_position": UNLIMITED,
    "max_gross_exposure": UNLIMITED,
    "max_daily_loss": UNLIMITED,
    "max_concentration_percent": UNLIMITED,
    "collar_bps": UNLIMITED,
    "max_spread_bps": UNLIMITED,
    "fat_finger_multiple": UNLIMITED,
    "max_depth_percent": UNLIMITED,
    "volatility_percent": UNLIMITED,
    "volatility_window_ms": 60_000,
    "volatility_halt_ms": 60_000,
    "restricted": "no",
    "hours": "always",
    "group": "-",
}
GROUP: Final[dict[str, Any]] = {"max_gross_exposure": UNLIMITED}
ACCOUNT: Final[dict[str, Any]] = (
    GLOBAL
    | _WINDOWS
    | {
        "max_leverage": UNLIMITED,
        "max_concentration_percent": UNLIMITED,
        "message_rate_per_s": UNLIMITED,
        "message_burst": 100,
        "cancel_reserve": 0,
        "taker_fee_bps": 60,
        "market_buffer_bps": 100,
        "reference_stale_ms": 20_000,
        "reference_halt_ms": UNLIMITED,
        "max_clock_skew_ms": UNLIMITED,
        "max_venue_errors": UNLIMITED,
        "venue_error_window_ms": 60_000,
        "self_trade": "allow",
        "products": {"BTC-USD": PRODUCT},
        "strategies": {"manual": STRATEGY},
        "keys": {"*": KEY},
        "groups": {},
    }
)
FILE: Final[dict[str, Any]] = {"calendar_zone": "UTC", "global": GLOBAL, "accounts": {"main": ACCOUNT}}


def account_limits(**changed: Any) -> AccountLimits:
    """The limits of an account; ``products``, ``strategies`` … name what they have, each with its changed limits."""
    models = {"products": PRODUCT, "strategies": STRATEGY, "keys": KEY, "groups": GROUP}
    named = {
        part: {name: models[part] | dict(limits) for name, limits in changed.pop(part).items()}
        for part in models
        if part in changed
    }
    return AccountLimits.model_validate(ACCOUNT | changed | named)


def limits_file(accounts: Mapping[str, AccountLimits] | None = None, **changed: Any) -> LimitsFile:
    """The whole file; ``changed`` are limits of the desk as a whole."""
    dumped = {name: limits.model_dump(mode="json") for name, limits in (accounts or {}).items()}
    return LimitsFile.model_validate({**FILE, "global": GLOBAL | changed, "accounts": dumped or FILE["accounts"]})


def with_limit(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The file with another value at ``place``; ``LEFT_OUT`` leaves it out."""
    changed = copy.deepcopy(FILE)
    part = changed
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    if value is LEFT_OUT:
        del part[place[-1]]
    return changed


LEFT_OUT: Final = object()
