"""The account that the benchmarks trade: every control is on, at a number that none of its orders reaches.

Order ``number`` buys 0.0001 BTC at one of 90,000 prices below the market, so that the duplicate window is on and finds
nothing. Nobody executes for these accounts: only the orders application and the ledger are at work.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from cluster.ledger import Ledger, Reference
from cluster.limit_records import CALENDAR, account_records, desk_records
from conf.limits import LimitsFile
from strategies.model import Order, OrderType, Product, Side, TimeInForce

STRATEGY: Final = "manual"
VERSION: Final = "v1"
QUANTITY: Final = Decimal("0.0001")
BID: Final = Decimal("50000.00")
# A hundred such accounts are still as much as the desk can count.
CASH_MICROS: Final = 2 * 10**13
LOWEST_TICKS: Final = 4_900_000
PRICES: Final = 90_000
PRODUCT: Final = Product(
    "BTC-USD",
    "BTC",
    "USD",
    Decimal("0.00000001"),
    Decimal("0.01"),
    Decimal("0.00001"),
    Decimal("3400"),
    Decimal("1"),
    Decimal("10000000"),
)

_MOST: Final = 1_000_000_000
_ALL_WEEK: Final = ["mon-sun 00:00-24:00"]
_ORDERS: Final[dict[str, Any]] = {
    "max_order_notional": _MOST,
    "max_open_orders": _MOST,
    "max_open_notional": _MOST,
    "order_rate_per_s": 1_000_000,
    "order_burst": 1_000_000,
    "max_daily_orders": _MOST,
    "max_daily_turnover": _MOST,
}
_GLOBAL: Final = _ORDERS | {
    "max_gross_exposure": _MOST,
    "max_net_exposure": _MOST,
    "max_daily_loss": _MOST,
    "max_drawdown_percent": 90,
}
_STRATEGY: Final = _GLOBAL | {
    "capital": _MOST,
    "max_order_to_trade": _MOST,
    "max_loss_streak": 1_000,
    "max_repeats": _MOST,
    "repeat_window_ms": 60_000,
    "max_rejects": 1_000,
    "reject_window_ms": 60_000,
    "duplicate_window_ms": 1_000,
    "short": "denied",
    "hours": _ALL_WEEK,
    "versions": [VERSION, "v2"],
}
_PRODUCT: Final = _ORDERS | {
    "max_order_quantity": 1_000,
    "max_position": 1_000_000,
    "max_strategy_position": 1_000_000,
    "max_gross_exposure": _MOST,
    "max_daily_loss": _MOST,
    "max_concentration_percent": 100,
    "collar_bps": 500,
    "max_spread_bps": 100,
    "fat_finger_multiple": 1_000_000,
    "max_depth_percent": 1_000,
    "volatility_percent": 50,
    "volatility_window_ms": 60_000,
    "volatility_halt_ms": 60_000,
    "restricted": "no",
    "hours": _ALL_WEEK,
    "group": "majors",
}
_ACCOUNT: Final = _GLOBAL | {
    "max_leverage": 10,
    "max_concentration_percent": 100,
    "max_order_to_trade": _MOST,
    "message_rate_per_s": 1_000_000,
    "message_burst": 1_000_000,
    "cancel_reserve": 1_000,
    "taker_fee_bps": 60,
    "market_buffer_bps": 100,
    "reference_stale_ms": 3_600_000,
    "reference_halt_ms": 7_200_000,
    "max_clock_skew_ms": 3_600_000,
    "duplicate_window_ms": 1_000,
    "max_venue_errors": 1_000,
    "venue_error_window_ms": 60_000,
    "max_rejects": 1_000,
    "reject_window_ms": 60_000,
    "self_trade": "deny",
    "products": {PRODUCT.product_id: _PRODUCT},
    "strategies": {STRATEGY: _STRATEGY},
    "keys": {"*": _ORDERS},
    "groups": {"majors": {"max_gross_exposure": _MOST}},
}
LIMITS: Final[dict[str, Any]] = {
    "calendar_zone": "America/New_York",
    "global": _GLOBAL,
    "accounts": {"main": _ACCOUNT},
}
"""As limits.yaml; every account of a benchmark has the limits of ``main``."""


async def open_account(ledger: Ledger, account: str, cash_micros: int = CASH_MICROS) -> int:
    """Limits, a price, cash, and leave to take orders; returns the epoch."""
    file = LimitsFile.model_validate(LIMITS)
    desk = desk_records(file)
    await ledger.set_limits(None, desk, "bench")
    records = account_records(file.accounts["main"], {PRODUCT.product_id: PRODUCT}, desk[CALENDAR])
    await ledger.set_limits(account, records, "bench")
    epoch = await ledger.claim(account, "bench")
    size = Decimal(10)
    await ledger.set_references(account, [Reference(PRODUCT, BID, BID + PRODUCT.quote_increment, size, size)])
    await ledger.open_account(account, cash_micros, {}, "bench")
    await ledger.admit(account, epoch)
    return epoch


def order(account: str, number: int) -> Order:
    """One of them."""
    return Order(
        client_order_id=f"o-{number}",
        account=account,
        strategy=STRATEGY,
        product_id=PRODUCT.product_id,
        side=Side.BUY,
        type=OrderType.LIMIT,
        time_in_force=TimeInForce.GTC,
        quantity=QUANTITY,
        limit_price=PRODUCT.price(LOWEST_TICKS + number % PRICES),
        strategy_version=VERSION,
    )


def body(account: str, number: int) -> bytes:
    """The same as the body of a request."""
    ticks = LOWEST_TICKS + number % PRICES
    return (
        f'{{"client_order_id":"o-{number}","account":"{account}","strategy":"{STRATEGY}","product_id":"BTC-USD",'
        f'"side":"BUY","type":"LIMIT","quantity":"{QUANTITY}","limit_price":"{ticks // 100}.{ticks % 100:02d}",'
        f'"strategy_version":"{VERSION}"}}'
    ).encode()
