"""Coinbase's documented answers and messages as typed schemas, each with where it is documented and how sure we are.

Written in our own words from what is public; the real venue was never contacted. How sure we are of a shape or field:

* ``DOCUMENTED``: Coinbase's own reference says so, read either there (docs.cdp.coinbase.com, pages with their OpenAPI
  or AsyncAPI), in Coinbase's own SDKs, or in two independent renderings of the reference that agree.
* ``SEEN``: in answers or frames of the real venue that public repositories keep as recordings; not in the reference.
* ``NOT_VERIFIED``: neither; our reading of prose. Tests that rest on it say so in their ids.

A field that may be missing, null or an empty string says so; everything else is always there. Coinbase adds fields and
words without notice, so a reader must survive others. Which fields of a WebSocket message are always there could not be
read: taken are those that every example and every recording carries.

``python -m tests.contract.coinbase_schemas`` prints the table of shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

Schema = dict[str, Any]


class Certainty(StrEnum):
    """How sure we are that the venue really does it."""

    DOCUMENTED = "DOCUMENTED"
    SEEN = "SEEN"
    NOT_VERIFIED = "NOT_VERIFIED"


# --- kinds of values; ``kind`` is ignored by validators and tells the generator of examples what to make -------------

DECIMAL: Final[Schema] = {"type": "string", "pattern": r"^-?[0-9]+(\.[0-9]+)?$", "kind": "decimal"}
AMOUNT_TEXT: Final[Schema] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$", "kind": "amount"}
POSITIVE: Final[Schema] = {"type": "string", "pattern": r"^[0-9]*\.?[0-9]*[1-9][0-9]*(\.[0-9]+)?$", "kind": "positive"}
WHOLE: Final[Schema] = {"type": "string", "pattern": "^[0-9]+$", "kind": "whole"}
UNIX_S: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,11}$", "kind": "unix_s"}
TIME: Final[Schema] = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
    "kind": "time",
}
# Heartbeats carry the server's clock as Go prints it: with and without the monotonic part.
GO_TIME: Final[Schema] = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}",
    "kind": "go_time",
}
TEXT: Final[Schema] = {"type": "string", "kind": "text"}
NAME: Final[Schema] = {"type": "string", "minLength": 1, "kind": "name"}
ORDER_ID: Final[Schema] = {"type": "string", "minLength": 1, "kind": "uuid"}
PRODUCT_ID: Final[Schema] = {"type": "string", "pattern": "^[A-Z0-9]+-[A-Z0-9-]+$", "kind": "product_id"}
FLAG: Final[Schema] = {"type": "boolean"}
FLAG_TEXT: Final[Schema] = {"enum": ["true", "false"]}
INTEGER: Final[Schema] = {"type": "integer", "kind": "integer"}
NUMBER: Final[Schema] = {"type": "number", "kind": "number"}
ANY_OBJECT: Final[Schema] = {"type": "object", "kind": "object"}


def words(text: str) -> Schema:
    """One of these words."""
    return {"enum": text.split()}


@dataclass(frozen=True)
class Field:
    """A field of a shape: what it holds, whether it is always there, and what stands for "none"."""

    schema: Schema | Shape | Many
    required: bool
    certainty: Certainty
    empty: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Many:
    """A list of ``item``."""

    item: Schema | Shape


@dataclass(frozen=True)
class Shape:
    """A JSON object: its fields, and where it is documented."""

    name: str
    certainty: Certainty
    source: str
    fields: dict[str, Field]

    @property
    def schema(self) -> Schema:
        """The JSON schema. Fields that nobody documented are allowed there; ``unknown_fields`` reports them."""
        return {
            "type": "object",
            "properties": {name: _field_schema(field) for name, field in self.fields.items()},
            "required": sorted(name for name, field in self.fields.items() if field.required),
        }

    def unknown_fields(self, answer: Any, path: str = "$") -> Iterator[str]:
        """The paths of fields in ``answer`` that are in no source."""
        if not isinstance(answer, dict):
            return
        for name, value in answer.items():
            if name not in self.fields:
                yield f"{path}.{name}"
            else:
                yield from _unknown(self.fields[name].schema, value, f"{path}.{name}")

    def absent_fields(self, answer: dict[str, Any]) -> set[str]:
        """Documented fields that ``answer`` does not have."""
        return set(self.fields) - set(answer)


def _unknown(schema: Schema | Shape | Many, value: Any, path: str) -> Iterator[str]:
    if isinstance(schema, Shape):
        yield from schema.unknown_fields(value, path)
    elif isinstance(schema, Many) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(schema.item, item, f"{path}[{index}]")


def _field_schema(field: Field) -> Schema:
    schema = _plain(field.schema)
    return {"anyOf": [schema, *({"const": value} for value in field.empty)]} if field.empty else schema


def _plain(schema: Schema | Shape | Many) -> Schema:
    if isinstance(schema, Shape):
        return schema.schema
    if isinstance(schema, Many):
        return {"type": "array", "items": _plain(schema.item)}
    return schema


def must(schema: Schema | Shape | Many, *empty: Any) -> Field:
    """A field the reference calls required; ``empty`` are values for "none" that were seen nevertheless."""
    return Field(schema, True, Certainty.DOCUMENTED, empty)


def may(schema: Schema | Shape | Many, *empty: Any) -> Field:
    """A field of the reference that may be missing."""
    return Field(schema, False, Certainty.DOCUMENTED, empty)


def seen(schema: Schema | Shape | Many, *empty: Any) -> Field:
    """A field that is only in recorded answers."""
    return Field(schema, False, Certainty.SEEN, empty)


def believed(schema: Schema | Shape | Many, *empty: Any) -> Field:
    """A field nobody could confirm."""
    return Field(schema, False, Certainty.NOT_VERIFIED, empty)


_DOCUMENTED, _SEEN, _NOT_VERIFIED = Certainty
_REST: Final = "docs.cdp.coinbase.com/api-reference/advanced-trade-api/rest-api/"
_CHANNELS: Final = "docs.cdp.coinbase.com Advanced Trade WebSocket channels and advanced-trade-asyncapi.json"

# --- words ------------------------------------------------------------------------------------------------------------

SIDE: Final = words("BUY SELL")
ORDER_STATUS: Final = words(
    "PENDING OPEN FILLED CANCELLED EXPIRED FAILED UNKNOWN_ORDER_STATUS QUEUED CANCEL_QUEUED EDIT_QUEUED"
)
TIME_IN_FORCE: Final = words(
    "UNKNOWN_TIME_IN_FORCE GOOD_UNTIL_DATE_TIME GOOD_UNTIL_CANCELLED IMMEDIATE_OR_CANCEL FILL_OR_KILL"
)
TRIGGER_STATUS: Final = words("UNKNOWN_TRIGGER_STATUS INVALID_ORDER_TYPE STOP_PENDING STOP_TRIGGERED")
ORDER_TYPE: Final = words(
    "UNKNOWN_ORDER_TYPE MARKET LIMIT STOP STOP_LIMIT BRACKET TAKE_PROFIT_STOP_LOSS TWAP ROLL_OPEN ROLL_CLOSE"
    " LIQUIDATION SCALED"
)
REJECT_REASON: Final = words(
    "REJECT_REASON_UNSPECIFIED HOLD_FAILURE TOO_MANY_OPEN_ORDERS REJECT_REASON_INSUFFICIENT_FUNDS RATE_LIMIT_EXCEEDED"
)
PRODUCT_TYPE: Final = words("UNKNOWN_PRODUCT_TYPE SPOT FUTURE EQUITY OPTION_GROUP FUTURE_GROUP")
PLACEMENT: Final = words("UNKNOWN_PLACEMENT_SOURCE RETAIL_SIMPLE RETAIL_ADVANCED RETAIL_ADMIN RETAIL_RAISE")
MARGIN_TYPE: Final = words("UNKNOWN_MARGIN_TYPE CROSS ISOLATED")
LIQUIDITY: Final = words("UNKNOWN_LIQUIDITY_INDICATOR MAKER TAKER")
CANCEL_FAILURE: Final = words(
    "UNKNOWN_CANCEL_FAILURE_REASON INVALID_CANCEL_REQUEST UNKNOWN_CANCEL_ORDER COMMANDER_REJECTED_CANCEL_ORDER"
    " DUPLICATE_CANCEL_REQUEST INVALID_CANCEL_PRODUCT_ID INVALID_CANCEL_FCM_TRADING_SESSION NOT_ALLOWED_TO_CANCEL"
    " ORDER_IS_FULLY_FILLED ORDER_IS_BEING_REPLACED"
)
NEW_ORDER_FAILURE: Final = words(
    "UNKNOWN_FAILURE_REASON UNSUPPORTED_ORDER_CONFIGURATION INVALID_SIDE INVALID_PRODUCT_ID INVALID_SIZE_PRECISION"
    " INVALID_PRICE_PRECISION INSUFFICIENT_FUND INVALID_LEDGER_BALANCE ORDER_ENTRY_DISABLED INELIGIBLE_PAIR"
    " INVALID_LIMIT_PRICE_POST_ONLY INVALID_LIMIT_PRICE INVALID_NO_LIQUIDITY INVALID_REQUEST"
    " COMMANDER_REJECTED_NEW_ORDER INSUFFICIENT_FUNDS IN_LIQUIDATION INVALID_MARGIN_TYPE INVALID_LEVERAGE"
    " UNTRADABLE_PRODUCT INVALID_FCM_TRADING_SESSION GEOFENCING_RESTRICTION QUOTE_SIZE_NOT_ALLOWED_FOR_BRACKET"
    " INVALID_BRACKET_PRICES MISSING_MARKET_TRADE_DATA INVALID_BRACKET_LIMIT_PRICE INVALID_BRACKET_STOP_TRIGGER_PRICE"
    " BRACKET_LIMIT_PRICE_OUT_OF_BOUNDS STOP_TRIGGER_PRICE_OUT_OF_BOUNDS BRACKET_ORDER_NOT_SUPPORTED FOK_DISABLED"
    " FOK_ONLY_ALLOWED_ON_LIMIT_ORDERS POST_ONLY_NOT_ALLOWED_WITH_FOK END_TIME_TOO_FAR_IN_FUTURE"
    " LIMIT_PRICE_TOO_FAR_FROM_MARKET OPEN_BRACKET_ORDERS END_TIME_IS_IN_THE_PAST GTD_ORDERS_MUST_HAVE_END_TIME"
    " PRICE_NOT_ALLOWED_FOR_MARKET_ORDERS STOP_ALREADY_TRIGGERED REPLACE_NOT_SUPPORTED ORDER_IS_PENDING_CANCEL"
    " TOO_MANY_PENDING_REPLACES PRODUCT_TRADING_HALTED TRADING_DISABLED CANNOT_CLOSE_ZERO_POSITION"
    " DUPLICATE_CLIENT_ORDER_ID"
)
# Of the reference's list of edit failures only those a spot order with price and size can meet.
EDIT_FAILURE: Final = words(
    "UNKNOWN_EDIT_ORDER_FAILURE_REASON COMMANDER_REJECTED_EDIT_ORDER CANNOT_EDIT_TO_BELOW_FILLED_SIZE ORDER_NOT_FOUND"
    " CALLER_ID_MISMATCH ONLY_LIMIT_ORDER_EDITS_SUPPORTED INVALID_EDITED_SIZE INVALID_EDITED_PRICE"
    " INVALID_ORIGINAL_SIZE INVALID_ORIGINAL_PRICE EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST"
    " ONLY_OPEN_ORDERS_CAN_BE_EDITED SIZE_IN_QUOTE_EDITS_NOT_ALLOWED ORDER_IS_ALREADY_BEING_REPLACED"
    " FIELD_STOPPRICE_NOT_SUPPORTED CANNOT_EDIT_STOP_PRICE_FOR_TRIGGERED_ORDER CANNOT_EDIT_ORDER_PENDING_CANCEL"
    " EXCEEDED_MAX_ALLOWED_EDIT_REQUEST_COUNT ORDER_EDIT_ORDER_TYPE_NOT_SUPPORTED CANNOT_EDIT_TRIGGERED_ORDER"
    " INVALID_EDITED_STOP_PRICE INVALID_EDITED_STOP_LIMIT_PRICE"
)
PREVIEW_FAILURE: Final[Schema] = {
    "type": "string",
    "pattern": "^(UNKNOWN_PREVIEW_FAILURE_REASON|PREVIEW_[A-Z0-9_]+)$",
    "kind": "preview_failure",
}
# Of the reference's list of preview failures those that spot orders of our kinds can meet.
PREVIEW_FAILURES: Final = frozenset(
    {
        "UNKNOWN_PREVIEW_FAILURE_REASON",
        "PREVIEW_INVALID_SIDE",
        "PREVIEW_INVALID_ORDER_CONFIG",
        "PREVIEW_INVALID_PRODUCT_ID",
        "PREVIEW_INVALID_SIZE_PRECISION",
        "PREVIEW_INVALID_PRICE_PRECISION",
        "PREVIEW_MISSING_PRODUCT_PRICE_BOOK",
        "PREVIEW_INVALID_LEDGER_BALANCE",
        "PREVIEW_INSUFFICIENT_LEDGER_BALANCE",
        "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY",
        "PREVIEW_INVALID_LIMIT_PRICE",
        "PREVIEW_INVALID_NO_LIQUIDITY",
        "PREVIEW_INSUFFICIENT_FUND",
        "PREVIEW_INVALID_STOP_PRICE",
        "PREVIEW_INVALID_BASE_SIZE_TOO_LARGE",
        "PREVIEW_INVALID_BASE_SIZE_TOO_SMALL",
        "PREVIEW_INVALID_QUOTE_SIZE_PRECISION",
        "PREVIEW_INVALID_QUOTE_SIZE_TOO_LARGE",
        "PREVIEW_INVALID_QUOTE_SIZE_TOO_SMALL",
        "PREVIEW_INVALID_PRICE_TOO_LARGE",
        "PREVIEW_UNTRADABLE_PRODUCT",
        "PREVIEW_NOT_ALLOWED_BY_MARKET_STATE",
        "PREVIEW_INVALID_END_TIME",
        "PREVIEW_QUOTE_SIZE_NOT_ALLOWED_FOR_BRACKET",
        "PREVIEW_INVALID_BRACKET_PRICES",
        "PREVIEW_MISSING_MARKET_TRADE_DATA",
        "PREVIEW_INVALID_BRACKET_LIMIT_PRICE",
        "PREVIEW_INVALID_BRACKET_STOP_TRIGGER_PRICE",
        "PREVIEW_BRACKET_LIMIT_PRICE_OUT_OF_BOUNDS",
        "PREVIEW_STOP_TRIGGER_PRICE_OUT_OF_BOUNDS",
        "PREVIEW_BRACKET_ORDER_NOT_SUPPORTED",
        "PREVIEW_INVALID_STOP_PRICE_PRECISION",
        "PREVIEW_STOP_PRICE_ABOVE_LIMIT_PRICE",
        "PREVIEW_STOP_PRICE_BELOW_LIMIT_PRICE",
        "PREVIEW_STOP_PRICE_ABOVE_LAST_TRADE_PRICE",
        "PREVIEW_STOP_PRICE_BELOW_LAST_TRADE_PRICE",
        "PREVIEW_FOK_DISABLED",
        "PREVIEW_FOK_ONLY_ALLOWED_ON_LIMIT_ORDERS",
        "PREVIEW_POST_ONLY_NOT_ALLOWED_WITH_FOK",
        "PREVIEW_END_TIME_TOO_FAR_IN_FUTURE",
        "PREVIEW_LIMIT_PRICE_TOO_FAR_FROM_MARKET",
        "PREVIEW_INVALID_BRACKET_ORDER_SIDE",
        "PREVIEW_INVALID_LIMIT_PRICE_PRECISION",
        "PREVIEW_INVALID_STOP_TRIGGER_PRICE_PRECISION",
        "PREVIEW_END_TIME_IS_IN_THE_PAST",
        "PREVIEW_GTD_ORDERS_MUST_HAVE_END_TIME",
        "PREVIEW_PRICE_NOT_ALLOWED_FOR_MARKET_ORDERS",
        "PREVIEW_NON_NUMERIC_ORDER_SIZE",
        "PREVIEW_STOP_TRIGGERED",
        "PREVIEW_REPLACE_NOT_SUPPORTED",
        "PREVIEW_ORDER_IS_PENDING_CANCEL",
        "PREVIEW_TOO_MANY_PENDING_REPLACES",
        "PREVIEW_TRADING_DISABLED",
        "PREVIEW_INVALID_BRACKET_LIMIT_PRICE_PRECISION",
    }
)

# --- REST: market data ------------------------------------------------------------------------------------------------

SERVER_TIME: Final = Shape(
    "time",
    _DOCUMENTED,
    _REST + "public/get-server-time; Coinbase's Python SDK",
    {"iso": may(TIME), "epochSeconds": may(UNIX_S), "epochMillis": may(WHOLE)},
)
PRODUCT: Final = Shape(
    "product",
    _DOCUMENTED,
    _REST + "products/list-products (read); recorded BTC-USD of 2026-04",
    {
        "product_id": must(PRODUCT_ID),
        "price": must(DECIMAL, ""),
        "price_percentage_change_24h": must(DECIMAL, ""),
        "volume_24h": must(DECIMAL, ""),
        "volume_percentage_change_24h": must(DECIMAL, ""),
        "base_increment": must(POSITIVE),
        "quote_increment": must(POSITIVE),
        "quote_min_size": must(AMOUNT_TEXT),
        "quote_max_size": must(AMOUNT_TEXT),
        "base_min_size": must(AMOUNT_TEXT),
        "base_max_size": must(AMOUNT_TEXT),
        "base_name": must(TEXT),
        "quote_name": must(TEXT),
        "watched": must(FLAG),
        "is_disabled": must(FLAG),
        "new": must(FLAG),
        # The reference says a string; futures have an empty one.
        "status": must(words("online offline internal delisted"), ""),
        "cancel_only": must(FLAG),
        "limit_only": must(FLAG),
        "post_only": must(FLAG),
        "trading_disabled": must(FLAG),
        "auction_mode": must(FLAG),
        "product_type": may(PRODUCT_TYPE),
        "quote_currency_id": may(NAME),
        "base_currency_id": may(NAME, ""),
        "fcm_trading_session_details": may(ANY_OBJECT, None),
        "mid_market_price": may(DECIMAL, ""),
        "alias": may(TEXT),
        "alias_to": may(Many(NAME)),
        "base_display_symbol": must(TEXT),
        "quote_display_symbol": must(TEXT),
        "view_only": may(FLAG),
        "price_increment": may(POSITIVE),
        "display_name": may(TEXT),
        "product_venue": may(words("UNKNOWN_VENUE_TYPE CBE FCM INTX")),
        "approximate_quote_24h_volume": may(DECIMAL, ""),
        "new_at": may(TIME, None),
        "market_cap": may(DECIMAL, ""),
        "icon_color": may(TEXT),
        "icon_url": may(TEXT),
        "display_name_overwrite": may(TEXT),
        "is_alpha_testing": may(FLAG),
        "about_description": may(TEXT),
        "future_product_details": may(ANY_OBJECT, None),
        "base_cbrn": seen(TEXT),
        "quote_cbrn": seen(TEXT),
        "product_cbrn": seen(TEXT),
        "best_bid_price": seen(DECIMAL, ""),
        "best_ask_price": seen(DECIMAL, ""),
    },
)
PAGINATION: Final = Shape(
    "pagination",
    _DOCUMENTED,
    _REST + "products/list-products (read)",
    {"prev_cursor": may(TEXT), "next_cursor": may(TEXT), "has_next": may(FLAG), "has_prev": may(FLAG)},
)
PRODUCTS: Final = Shape(
    "products",
    _DOCUMENTED,
    _REST + "products/list-products (read)",
    {"products": may(Many(PRODUCT)), "num_products": may(INTEGER), "pagination": may(PAGINATION, None)},
)
LEVEL: Final = Shape(
    "level",
    _DOCUMENTED,
    _REST + "products/get-best-bid-ask (read)",
    {"price": may(DECIMAL), "size": may(DECIMAL)},
)
PRICEBOOK: Final = Shape(
    "pricebook",
    _DOCUMENTED,
    _REST + "products/get-best-bid-ask (read)",
    {"product_id": must(PRODUCT_ID), "bids": must(Many(LEVEL)), "asks": must(Many(LEVEL)), "time": may(TIME)},
)
BEST_BID_ASK: Final = Shape(
    "best_bid_ask",
    _DOCUMENTED,
    _REST + "products/get-best-bid-ask (read)",
    {"pricebooks": must(Many(PRICEBOOK))},
)
PRODUCT_BOOK: Final = Shape(
    "product_book",
    _DOCUMENTED,
    _REST + "products/get-product-book; recorded answer of 2026-04",
    {
        "pricebook": must(PRICEBOOK),
        "last": may(DECIMAL, ""),
        "mid_market": may(DECIMAL, ""),
        "spread_bps": may(DECIMAL, ""),
        "spread_absolute": may(DECIMAL, ""),
    },
)
CANDLE: Final = Shape(
    "candle",
    _DOCUMENTED,
    _REST + "products/get-product-candles (read); recorded candles",
    {
        "start": may(UNIX_S),
        "low": may(POSITIVE),
        "high": may(POSITIVE),
        "open": may(POSITIVE),
        "close": may(POSITIVE),
        "volume": may(AMOUNT_TEXT),
    },
)
CANDLES: Final = Shape(
    "candles", _DOCUMENTED, _REST + "products/get-product-candles (read)", {"candles": may(Many(CANDLE))}
)
MARKET_TRADE: Final = Shape(
    "market_trade",
    _DOCUMENTED,
    _REST + "products/get-market-trades (read); recorded answer of 2026-04",
    {
        "trade_id": may(NAME),
        "product_id": may(PRODUCT_ID),
        "price": may(POSITIVE),
        "size": may(POSITIVE),
        "time": may(TIME),
        # The maker's side.
        "side": may(SIDE),
        "exchange": may(TEXT),
        "bid": seen(DECIMAL, ""),
        "ask": seen(DECIMAL, ""),
    },
)
MARKET_TRADES: Final = Shape(
    "market_trades",
    _DOCUMENTED,
    _REST + "products/get-market-trades (read)",
    {"trades": may(Many(MARKET_TRADE)), "best_bid": may(DECIMAL, ""), "best_ask": may(DECIMAL, "")},
)

# --- REST: accounts, portfolios, fees, keys ---------------------------------------------------------------------------

MONEY: Final = Shape(
    "money", _DOCUMENTED, _REST + "accounts/list-accounts", {"value": must(DECIMAL), "currency": must(NAME)}
)
ACCOUNT: Final = Shape(
    "account",
    _DOCUMENTED,
    _REST + "accounts/list-accounts; Coinbase's Python SDK",
    {
        "uuid": may(ORDER_ID),
        "name": may(TEXT),
        "currency": may(NAME),
        "available_balance": may(MONEY),
        "default": may(FLAG),
        "active": may(FLAG),
        "created_at": may(TIME),
        "updated_at": may(TIME, None),
        "deleted_at": may(TIME, None),
        "type": may(
            words(
                "ACCOUNT_TYPE_UNSPECIFIED ACCOUNT_TYPE_CRYPTO ACCOUNT_TYPE_FIAT ACCOUNT_TYPE_VAULT"
                " ACCOUNT_TYPE_PERP_FUTURES"
            )
        ),
        "ready": may(FLAG),
        "hold": may(MONEY),
        "retail_portfolio_id": may(TEXT),
        "platform": may(
            words(
                "ACCOUNT_PLATFORM_UNSPECIFIED ACCOUNT_PLATFORM_CONSUMER ACCOUNT_PLATFORM_CFM_CONSUMER"
                " ACCOUNT_PLATFORM_INTX"
            )
        ),
    },
)
ACCOUNTS: Final = Shape(
    "accounts",
    _DOCUMENTED,
    _REST + "accounts/list-accounts",
    {"accounts": may(Many(ACCOUNT)), "has_next": must(FLAG), "cursor": may(TEXT), "size": may(INTEGER)},
)
ONE_ACCOUNT: Final = Shape("one_account", _DOCUMENTED, _REST + "accounts/get-account", {"account": may(ACCOUNT)})
PORTFOLIO: Final = Shape(
    "portfolio",
    _DOCUMENTED,
    _REST + "portfolios/list-portfolios; Coinbase's Python SDK (without deleted)",
    {
        "name": may(TEXT),
        "uuid": may(ORDER_ID),
        "type": may(words("UNDEFINED DEFAULT CONSUMER INTX")),
        "deleted": may(FLAG),
    },
)
PORTFOLIOS: Final = Shape(
    "portfolios", _DOCUMENTED, _REST + "portfolios/list-portfolios", {"portfolios": may(Many(PORTFOLIO))}
)
BALANCES: Final = Shape(
    "portfolio_balances",
    _DOCUMENTED,
    _REST + "portfolios/get-portfolio-breakdown; Coinbase's Python SDK",
    {
        "total_balance": may(MONEY, None),
        "total_futures_balance": may(MONEY, None),
        "total_cash_equivalent_balance": may(MONEY, None),
        "total_crypto_balance": may(MONEY, None),
        "futures_unrealized_pnl": may(MONEY, None),
        "perp_unrealized_pnl": may(MONEY, None),
        "total_neptune_balance": may(MONEY, None),
    },
)
SPOT_POSITION: Final = Shape(
    "spot_position",
    _DOCUMENTED,
    _REST + "portfolios/get-portfolio-breakdown; Coinbase's Python SDK; five clients agree on numbers, not strings",
    {
        "asset": may(NAME),
        "account_uuid": may(ORDER_ID),
        "total_balance_fiat": may(NUMBER),
        "total_balance_crypto": may(NUMBER),
        "available_to_trade_fiat": may(NUMBER),
        "allocation": may(NUMBER),
        "one_day_change": may(NUMBER),
        "cost_basis": may(MONEY, None),
        "asset_img_url": may(TEXT, None),
        "is_cash": may(FLAG),
        "average_entry_price": may(MONEY, None),
        "asset_uuid": may(TEXT, None),
        "available_to_trade_crypto": may(NUMBER),
        "unrealized_pnl": may(NUMBER),
        "available_to_transfer_fiat": seen(NUMBER),
        "available_to_transfer_crypto": seen(NUMBER),
        "available_to_send_fiat": seen(NUMBER),
        "available_to_send_crypto": seen(NUMBER),
        "funding_pnl": seen(NUMBER),
        "asset_color": seen(TEXT, None),
        "account_type": seen(TEXT, None),
    },
)
BREAKDOWN: Final = Shape(
    "portfolio_breakdown",
    _DOCUMENTED,
    _REST + "portfolios/get-portfolio-breakdown",
    {
        "portfolio": may(PORTFOLIO),
        "portfolio_balances": may(BALANCES),
        "spot_positions": may(Many(SPOT_POSITION)),
        "perp_positions": may(Many(ANY_OBJECT)),
        "futures_positions": may(Many(ANY_OBJECT)),
    },
)
ONE_BREAKDOWN: Final = Shape(
    "one_breakdown", _DOCUMENTED, _REST + "portfolios/get-portfolio-breakdown", {"breakdown": may(BREAKDOWN)}
)
FEE_TIER: Final = Shape(
    "fee_tier",
    _DOCUMENTED,
    _REST + "fees/get-transaction-summary; Coinbase's Python SDK",
    {
        "pricing_tier": may(TEXT),
        "usd_from": may(DECIMAL, ""),
        "usd_to": may(DECIMAL, ""),
        "taker_fee_rate": may(AMOUNT_TEXT),
        "maker_fee_rate": may(DECIMAL),
        "aop_from": may(DECIMAL, ""),
        "aop_to": may(DECIMAL, ""),
        "volume_types_and_range": believed(Many(ANY_OBJECT)),
    },
)
TRANSACTION_SUMMARY: Final = Shape(
    "transaction_summary",
    _DOCUMENTED,
    _REST + "fees/get-transaction-summary; Coinbase's Python and TypeScript SDKs",
    {
        "total_volume": may(NUMBER),
        "total_fees": must(NUMBER),
        "fee_tier": must(FEE_TIER),
        "margin_rate": may(ANY_OBJECT, None),
        "goods_and_services_tax": may(ANY_OBJECT, None),
        "advanced_trade_only_volume": may(NUMBER),
        "advanced_trade_only_fees": may(NUMBER),
        "coinbase_pro_volume": may(NUMBER),
        "coinbase_pro_fees": may(NUMBER),
        "total_balance": may(DECIMAL, ""),
        "volume_breakdown": believed(Many(ANY_OBJECT)),
        "has_cost_plus_commission": believed(FLAG),
        "has_promo_fee": may(FLAG),
    },
)
KEY_PERMISSIONS: Final = Shape(
    "key_permissions",
    _DOCUMENTED,
    _REST + "data-api/get-api-key-permissions; Coinbase's Python SDK",
    {
        "can_view": may(FLAG),
        "can_trade": may(FLAG),
        "can_transfer": may(FLAG),
        "portfolio_uuid": may(TEXT),
        "portfolio_type": may(words("UNDEFINED DEFAULT CONSUMER INTX")),
    },
)

# --- REST: orders -----------------------------------------------------------------------------------------------------

_ORDERS: Final = _REST + "orders/"


def _configuration(name: str, **fields: Field) -> Shape:
    return Shape(name, _DOCUMENTED, _ORDERS + "create-order; Coinbase's Python SDK", fields)


_SIZES: Final = {"quote_size": may(POSITIVE), "base_size": may(POSITIVE)}
_EXTRAS: Final = {"rfq_disabled": seen(FLAG), "reduce_only": seen(FLAG), "oco_ref": seen(TEXT)}
_NATIVE: Final = {"currency_size": may(MONEY, None)}
STOP_DIRECTION: Final = words("STOP_DIRECTION_STOP_UP STOP_DIRECTION_STOP_DOWN")
CONFIGURATIONS: Final[dict[str, Shape]] = {
    "market_market_ioc": _configuration("market_market_ioc", **_SIZES, **_NATIVE, **_EXTRAS, rfq_enabled=seen(FLAG)),
    "sor_limit_ioc": _configuration("sor_limit_ioc", **_SIZES, limit_price=must(POSITIVE), **_EXTRAS),
    "limit_limit_fok": _configuration("limit_limit_fok", **_SIZES, limit_price=must(POSITIVE), **_EXTRAS),
    "limit_limit_gtc": _configuration(
        "limit_limit_gtc", **_SIZES, limit_price=must(POSITIVE), post_only=may(FLAG), **_NATIVE, **_EXTRAS
    ),
    "limit_limit_gtd": _configuration(
        "limit_limit_gtd",
        **_SIZES,
        limit_price=must(POSITIVE),
        end_time=must(TIME),
        post_only=may(FLAG),
        **_NATIVE,
        **_EXTRAS,
    ),
    "stop_limit_stop_limit_gtc": _configuration(
        "stop_limit_stop_limit_gtc",
        base_size=must(POSITIVE),
        limit_price=must(POSITIVE),
        stop_price=must(POSITIVE),
        stop_direction=must(STOP_DIRECTION),
    ),
    "stop_limit_stop_limit_gtd": _configuration(
        "stop_limit_stop_limit_gtd",
        base_size=must(POSITIVE),
        limit_price=must(POSITIVE),
        stop_price=must(POSITIVE),
        end_time=must(TIME),
        stop_direction=must(STOP_DIRECTION),
    ),
    "trigger_bracket_gtc": _configuration(
        "trigger_bracket_gtc",
        base_size=must(POSITIVE),
        limit_price=must(POSITIVE),
        stop_trigger_price=must(POSITIVE),
    ),
    "trigger_bracket_gtd": _configuration(
        "trigger_bracket_gtd",
        base_size=must(POSITIVE),
        limit_price=must(POSITIVE),
        stop_trigger_price=must(POSITIVE),
        end_time=must(TIME),
    ),
}
# What the reference has besides and this desk never sends; an account of ours may still show such orders.
FOREIGN_CONFIGURATIONS: Final = ("market_market_fok", "twap_limit_gtd", "scaled_limit_gtc")
CONFIGURATION: Final = Shape(
    "order_configuration",
    _DOCUMENTED,
    _ORDERS + "create-order",
    {name: may(shape) for name, shape in CONFIGURATIONS.items()}
    | {name: may(ANY_OBJECT) for name in FOREIGN_CONFIGURATIONS},
)
EDIT: Final = Shape(
    "edit",
    _DOCUMENTED,
    _ORDERS + "list-orders",
    {"price": may(DECIMAL), "size": may(DECIMAL), "replace_accept_timestamp": may(TIME)},
)
ORDER: Final = Shape(
    "order",
    _DOCUMENTED,
    _ORDERS + "list-orders (through two renderings and Coinbase's SDK); recorded order of 2023-08",
    {
        "order_id": must(ORDER_ID),
        "product_id": must(PRODUCT_ID),
        "user_id": must(TEXT),
        "order_configuration": must(CONFIGURATION),
        "side": must(SIDE),
        "client_order_id": must(TEXT),
        "status": must(ORDER_STATUS),
        "time_in_force": may(TIME_IN_FORCE),
        "created_time": must(TIME),
        "completion_percentage": must(DECIMAL, ""),
        "filled_size": may(AMOUNT_TEXT, ""),
        "average_filled_price": must(AMOUNT_TEXT, ""),
        "fee": may(DECIMAL, ""),
        "number_of_fills": must(WHOLE, ""),
        "filled_value": may(AMOUNT_TEXT, ""),
        "pending_cancel": must(FLAG),
        "size_in_quote": must(FLAG),
        "total_fees": must(DECIMAL, ""),
        "size_inclusive_of_fees": must(FLAG),
        "total_value_after_fees": must(DECIMAL, ""),
        "trigger_status": may(TRIGGER_STATUS),
        "order_type": may(ORDER_TYPE),
        "reject_reason": may(REJECT_REASON, ""),
        "settled": may(FLAG),
        "product_type": may(PRODUCT_TYPE),
        "reject_message": may(TEXT),
        # Not empty on every order that filled: "Internal error" was recorded on a FILLED one.
        "cancel_message": may(TEXT),
        "order_placement_source": may(PLACEMENT),
        "outstanding_hold_amount": may(DECIMAL, ""),
        "is_liquidation": may(FLAG),
        "last_fill_time": may(TIME, None),
        "edit_history": may(Many(EDIT)),
        "leverage": may(DECIMAL, ""),
        "margin_type": may(MARGIN_TYPE, ""),
        "retail_portfolio_id": may(TEXT),
        "originating_order_id": may(TEXT),
        "attached_order_id": may(TEXT),
        "attached_order_configuration": may(CONFIGURATION, None),
        "current_pending_replace": may(EDIT, None),
        "commission_detail_total": may(ANY_OBJECT, None),
        "workable_size": may(DECIMAL, ""),
        "workable_size_completion_pct": may(DECIMAL, ""),
        "product_details": may(ANY_OBJECT, None),
        "cost_basis_method": may(NAME),
        "displayed_order_config": may(NAME),
        "equity_trading_session": may(NAME),
        "prediction_side": may(NAME),
        "last_update_time": may(TIME),
        "total_value_after_fees_native": may(MONEY, None),
        "outstanding_hold_amount_native": may(MONEY, None),
        "total_fees_native": may(MONEY, None),
    },
)
ORDERS: Final = Shape(
    "orders",
    _DOCUMENTED,
    _ORDERS + "list-orders (through two renderings)",
    {
        "orders": must(Many(ORDER)),
        "sequence": may(WHOLE),
        "has_next": must(FLAG),
        "cursor": may(TEXT),
        "proof_token_required": may(FLAG),
    },
)
ONE_ORDER: Final = Shape("one_order", _DOCUMENTED, _ORDERS + "get-order (its request read)", {"order": may(ORDER)})
FILL: Final = Shape(
    "fill",
    _DOCUMENTED,
    _ORDERS + "list-fills; Coinbase's Python SDK; recorded by two clients",
    {
        "entry_id": may(NAME),
        "trade_id": may(NAME),
        "order_id": may(ORDER_ID),
        "trade_time": may(TIME),
        "trade_type": may(words("FILL REVERSAL CORRECTION SYNTHETIC")),
        "price": may(POSITIVE),
        "size": may(POSITIVE),
        "commission": may(DECIMAL),
        "product_id": may(PRODUCT_ID),
        "sequence_timestamp": may(TIME),
        "liquidity_indicator": may(LIQUIDITY),
        "size_in_quote": may(FLAG),
        "user_id": may(TEXT),
        "side": may(SIDE),
        "retail_portfolio_id": may(TEXT),
        "fillSource": believed(NAME),
        "commission_detail_total": believed(ANY_OBJECT, None),
    },
)
FILLS: Final = Shape(
    "fills",
    _DOCUMENTED,
    _ORDERS + "list-fills",
    {"fills": may(Many(FILL)), "cursor": may(TEXT), "proof_token_required": may(FLAG)},
)
ACCEPTANCE: Final = Shape(
    "acceptance",
    _DOCUMENTED,
    _ORDERS + "create-order; Coinbase's Python SDK; issue 49 of that SDK",
    {
        "order_id": must(ORDER_ID),
        "product_id": may(PRODUCT_ID),
        "side": may(SIDE),
        "client_order_id": may(TEXT),
        "attached_order_id": may(TEXT),
    },
)
REFUSAL: Final = Shape(
    "refusal",
    _DOCUMENTED,
    _ORDERS + "create-order; Coinbase's Python SDK; issue 20419 of ccxt",
    {
        # Deprecated in favour of new_order_failure_reason, and the only one that recorded refusals carry.
        "error": may(NEW_ORDER_FAILURE),
        "message": may(TEXT),
        "error_details": may(TEXT),
        "preview_failure_reason": may(PREVIEW_FAILURE),
        "new_order_failure_reason": may(NEW_ORDER_FAILURE),
    },
)
ACCEPTED: Final = Shape(
    "accepted",
    _DOCUMENTED,
    _ORDERS + "create-order; issue 49 of Coinbase's Python SDK",
    {
        "success": must({"const": True}),
        "success_response": must(ACCEPTANCE),
        "order_configuration": may(CONFIGURATION),
        "failure_reason": may(NAME),
        "order_id": may(ORDER_ID),
    },
)
REFUSED: Final = Shape(
    "refused",
    _DOCUMENTED,
    _ORDERS + "create-order; issue 20419 of ccxt",
    {
        "success": must({"const": False}),
        "error_response": must(REFUSAL),
        # As sent, so anything that is JSON.
        "order_configuration": may(ANY_OBJECT),
        "failure_reason": may(NAME),
        "order_id": may({"const": ""}),
    },
)
CANCEL_RESULT: Final = Shape(
    "cancel_result",
    _DOCUMENTED,
    _ORDERS + "cancel-order; Coinbase's Python SDK",
    {"success": must(FLAG), "failure_reason": must(CANCEL_FAILURE), "order_id": must(TEXT)},
)
CANCELLED: Final = Shape("cancelled", _DOCUMENTED, _ORDERS + "cancel-order", {"results": may(Many(CANCEL_RESULT))})
EDIT_ERROR: Final = Shape(
    "edit_error",
    _DOCUMENTED,
    _ORDERS + "edit-order; Coinbase's Python and TypeScript SDKs",
    {"edit_failure_reason": may(EDIT_FAILURE), "preview_failure_reason": may(PREVIEW_FAILURE)},
)
EDITED: Final = Shape(
    "edited",
    _DOCUMENTED,
    _ORDERS + "edit-order; Coinbase's Python SDK",
    {
        "success": must(FLAG),
        "errors": may(Many(EDIT_ERROR)),
        "success_response": believed(ANY_OBJECT, None),
        "error_response": believed(ANY_OBJECT, None),
    },
)
_PREVIEW_EXTRAS: Final = {
    "slippage": may(DECIMAL, ""),
    "order_margin_total": may(DECIMAL, ""),
    "commission_detail_total": may(ANY_OBJECT, None),
    "pnl_configuration": may(ANY_OBJECT, None),
}
EDIT_PREVIEWED: Final = Shape(
    "edit_previewed",
    _DOCUMENTED,
    _ORDERS + "edit-order-preview (through two renderings); Coinbase's Python SDK",
    {
        "errors": must(Many(EDIT_ERROR)),
        "order_total": may(DECIMAL, ""),
        "commission_total": may(DECIMAL, ""),
        "quote_size": may(DECIMAL, ""),
        "base_size": may(DECIMAL, ""),
        "best_bid": may(DECIMAL, ""),
        "best_ask": may(DECIMAL, ""),
        "average_filled_price": may(DECIMAL, ""),
        **_PREVIEW_EXTRAS,
    },
)
PREVIEWED: Final = Shape(
    "previewed",
    _DOCUMENTED,
    _ORDERS + "preview-orders (its required list through a public checker of the reference); Coinbase's Python SDK",
    {
        "order_total": must(DECIMAL, ""),
        "commission_total": must(DECIMAL, ""),
        "errs": must(Many(PREVIEW_FAILURE)),
        "warning": must(Many(words("UNKNOWN BIG_ORDER SMALL_ORDER"))),
        # The reference says strings and gives numbers as examples.
        "quote_size": must({"anyOf": [AMOUNT_TEXT, NUMBER]}, ""),
        "base_size": must({"anyOf": [AMOUNT_TEXT, NUMBER]}, ""),
        "best_bid": must(DECIMAL, ""),
        "best_ask": must(DECIMAL, ""),
        "is_max": must(FLAG),
        "leverage": may(DECIMAL, ""),
        "long_leverage": may(DECIMAL, ""),
        "short_leverage": may(DECIMAL, ""),
        "preview_id": may(TEXT),
        "current_liquidation_buffer": may(DECIMAL, ""),
        "projected_liquidation_buffer": may(DECIMAL, ""),
        "max_leverage": may(DECIMAL, ""),
        "est_average_filled_price": believed(DECIMAL, ""),
        **_PREVIEW_EXTRAS,
    },
)

# --- REST: errors -----------------------------------------------------------------------------------------------------

ERROR: Final = Shape(
    "error",
    _DOCUMENTED,
    "the reference's default answer of every path (a gRPC gateway's); recorded 404 of a public path, 2026-07",
    {
        "error": may(TEXT),
        "code": may({"anyOf": [INTEGER, TEXT]}),
        "message": may(TEXT),
        "details": may(Many(ANY_OBJECT)),
        "error_details": seen(TEXT),
    },
)
THROTTLED: Final = Shape(
    "throttled",
    _DOCUMENTED,
    "docs.cdp.coinbase.com Coinbase App rate limiting",
    {
        "errors": must(
            Many(
                Shape(
                    "throttled_error",
                    _DOCUMENTED,
                    "docs.cdp.coinbase.com Coinbase App rate limiting",
                    {"id": must({"const": "rate_limit_exceeded"}), "message": must(NAME)},
                )
            )
        )
    },
)

REST_SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape
    for shape in (
        SERVER_TIME,
        PRODUCTS,
        PRODUCT,
        BEST_BID_ASK,
        PRODUCT_BOOK,
        CANDLES,
        MARKET_TRADES,
        ACCOUNTS,
        ONE_ACCOUNT,
        PORTFOLIOS,
        ONE_BREAKDOWN,
        TRANSACTION_SUMMARY,
        KEY_PERMISSIONS,
        ORDERS,
        ONE_ORDER,
        FILLS,
        ACCEPTED,
        REFUSED,
        CANCELLED,
        EDITED,
        EDIT_PREVIEWED,
        PREVIEWED,
        ERROR,
        THROTTLED,
    )
}

# --- WebSocket --------------------------------------------------------------------------------------------------------

EVENT_TYPE: Final = words("snapshot update")
SUBSCRIPTIONS: Final[Schema] = {
    "type": "object",
    "additionalProperties": {"type": "array", "items": TEXT},
    "kind": "subscriptions",
}


def _event(name: str, certainty: Certainty, source: str, **fields: Field) -> Shape:
    return Shape(name, certainty, source, fields)


def _message(channel: str, event: Shape) -> Shape:
    return Shape(
        channel,
        event.certainty,
        event.source,
        {
            "channel": Field({"const": channel}, True, event.certainty),
            "timestamp": Field(TIME, True, event.certainty),
            "sequence_num": Field(INTEGER, True, event.certainty),
            "events": Field(Many(event), True, event.certainty),
            # In the prose and its examples, not in the AsyncAPI and not in frames recorded in 2026.
            "client_id": may(TEXT),
        },
    )


_TICKER_FIELDS: Final = {
    "type": may({"const": "ticker"}),
    "product_id": must(PRODUCT_ID),
    "price": must(DECIMAL, ""),
    "volume_24_h": may(DECIMAL, ""),
    "low_24_h": may(DECIMAL, ""),
    "high_24_h": may(DECIMAL, ""),
    "low_52_w": may(DECIMAL, ""),
    "high_52_w": may(DECIMAL, ""),
    "price_percent_chg_24_h": may(DECIMAL, ""),
}
# Empty where there is no quote: recorded on a product whose market had closed for the day.
_QUOTE_FIELDS: Final = {
    "best_bid": may(POSITIVE, ""),
    "best_bid_quantity": may(AMOUNT_TEXT, ""),
    "best_ask": may(POSITIVE, ""),
    "best_ask_quantity": may(AMOUNT_TEXT, ""),
}
USER_ORDER: Final = Shape(
    "user_order",
    _DOCUMENTED,
    _CHANNELS + " (user, its table of fields); Coinbase's Python SDK",
    {
        "avg_price": must(AMOUNT_TEXT, ""),
        "cancel_reason": may(TEXT),
        "client_order_id": must(TEXT),
        "completion_percentage": may(DECIMAL, ""),
        "contract_expiry_type": may(words("UNKNOWN_CONTRACT_EXPIRY_TYPE UNKNOWN_CONTRACT_EXPIRY EXPIRING PERPETUAL")),
        "cumulative_quantity": must(AMOUNT_TEXT, ""),
        "filled_value": may(AMOUNT_TEXT, ""),
        "leaves_quantity": must(AMOUNT_TEXT, ""),
        "limit_price": may(AMOUNT_TEXT, ""),
        "number_of_fills": may(WHOLE, ""),
        "order_id": must(ORDER_ID),
        "order_side": must(SIDE),
        # The table says LIMIT, MARKET, STOP_LIMIT; the example and recordings say "Limit" and "Stop Limit".
        "order_type": must(
            {
                "enum": [
                    "LIMIT",
                    "MARKET",
                    "STOP_LIMIT",
                    "BRACKET",
                    "UNKNOWN_ORDER_TYPE",
                    "Limit",
                    "Market",
                    "Stop Limit",
                    "Bracket",
                ]
            }
        ),
        "outstanding_hold_amount": may(DECIMAL, ""),
        # Text, not a flag.
        "post_only": may(FLAG_TEXT, ""),
        "product_id": must(PRODUCT_ID),
        "product_type": may(PRODUCT_TYPE),
        "reject_reason": may(TEXT),
        "retail_portfolio_id": may(TEXT),
        "risk_managed_by": may(words("UNKNOWN_RISK_MANAGEMENT_TYPE MANAGED_BY_FCM MANAGED_BY_VENUE")),
        "status": must(ORDER_STATUS),
        "stop_price": may(AMOUNT_TEXT, ""),
        "time_in_force": may(TIME_IN_FORCE),
        "total_fees": must(DECIMAL, ""),
        "total_value_after_fees": may(DECIMAL, ""),
        "trigger_status": may(TRIGGER_STATUS),
        "creation_time": must(TIME),
        # 0001-01-01T00:00:00Z where there is none.
        "end_time": may(TIME),
        "start_time": may(TIME),
    },
)
WS_SHAPES: Final[dict[str, Shape]] = {
    shape.name: shape
    for shape in (
        _message(
            "heartbeats",
            _event(
                "heartbeat",
                _DOCUMENTED,
                _CHANNELS + " (heartbeats: the prose says text, the AsyncAPI and recordings an integer)",
                current_time=must(GO_TIME),
                heartbeat_counter=must({"anyOf": [INTEGER, WHOLE]}),
            ),
        ),
        _message(
            "candles",
            _event(
                "candles_event",
                _DOCUMENTED,
                _CHANNELS + " (candles)",
                type=must(EVENT_TYPE),
                candles=must(
                    Many(
                        Shape(
                            "ws_candle",
                            _DOCUMENTED,
                            _CHANNELS + " (candles)",
                            {name: must(field.schema) for name, field in CANDLE.fields.items()}
                            | {"product_id": must(PRODUCT_ID)},
                        )
                    )
                ),
            ),
        ),
        _message(
            "market_trades",
            _event(
                "market_trades_event",
                _DOCUMENTED,
                _CHANNELS + " (market_trades); UNKNOWN_ORDER_SIDE recorded in 2026-08",
                type=must(EVENT_TYPE),
                trades=must(
                    Many(
                        Shape(
                            "ws_trade",
                            _DOCUMENTED,
                            _CHANNELS + " (market_trades)",
                            {
                                "trade_id": must(NAME),
                                "product_id": must(PRODUCT_ID),
                                "price": must(POSITIVE),
                                "size": must(POSITIVE),
                                # The maker's side.
                                "side": must(words("BUY SELL UNKNOWN_ORDER_SIDE")),
                                "time": must(TIME),
                            },
                        )
                    )
                ),
            ),
        ),
        _message(
            "status",
            _event(
                "status_event",
                _DOCUMENTED,
                _CHANNELS + " (status)",
                type=must(EVENT_TYPE),
                products=must(
                    Many(
                        Shape(
                            "status_product",
                            _DOCUMENTED,
                            _CHANNELS + " (status)",
                            {
                                "product_type": may(PRODUCT_TYPE),
                                "id": must(PRODUCT_ID),
                                "base_currency": may(TEXT),
                                "quote_currency": may(TEXT),
                                "base_increment": may(DECIMAL, ""),
                                "quote_increment": may(DECIMAL, ""),
                                "display_name": may(TEXT),
                                "status": must(words("online offline internal delisted"), ""),
                                "status_message": may(TEXT),
                                "min_market_funds": may(DECIMAL, ""),
                            },
                        )
                    )
                ),
            ),
        ),
        _message(
            "ticker",
            _event(
                "ticker_event",
                _DOCUMENTED,
                _CHANNELS + " (ticker); frames recorded in 2026-09",
                type=must(EVENT_TYPE),
                tickers=must(
                    Many(Shape("ticker_row", _DOCUMENTED, _CHANNELS + " (ticker)", _TICKER_FIELDS | _QUOTE_FIELDS))
                ),
            ),
        ),
        _message(
            "ticker_batch",
            _event(
                "ticker_batch_event",
                _DOCUMENTED,
                _CHANNELS + " (ticker_batch: as ticker, without best bid and ask)",
                type=must(EVENT_TYPE),
                tickers=must(
                    Many(Shape("ticker_batch_row", _DOCUMENTED, _CHANNELS + " (ticker_batch)", _TICKER_FIELDS))
                ),
            ),
        ),
        _message(
            "l2_data",
            _event(
                "l2_event",
                _DOCUMENTED,
                _CHANNELS + " (level2, which answers as l2_data)",
                type=must(EVENT_TYPE),
                product_id=must(PRODUCT_ID),
                updates=must(
                    Many(
                        Shape(
                            "l2_update",
                            _DOCUMENTED,
                            _CHANNELS + " (level2)",
                            {
                                "side": must(words("bid offer")),
                                "event_time": must(TIME),
                                "price_level": must(POSITIVE),
                                # Absolute; 0 takes the level away.
                                "new_quantity": must(AMOUNT_TEXT),
                            },
                        )
                    )
                ),
            ),
        ),
        _message(
            "user",
            _event(
                "user_event",
                _DOCUMENTED,
                _CHANNELS + " (user)",
                type=must(EVENT_TYPE),
                orders=must(Many(USER_ORDER), None),
                positions=may(ANY_OBJECT, None),
            ),
        ),
        _message(
            "futures_balance_summary",
            _event(
                "futures_event",
                _DOCUMENTED,
                _CHANNELS + " (futures_balance_summary); a desk of spot orders never asks for it",
                type=must(EVENT_TYPE),
                fcm_balance_summary=must(ANY_OBJECT, None),
            ),
        ),
        _message(
            "subscriptions",
            _event(
                "subscriptions_event",
                _SEEN,
                "not in the AsyncAPI; acknowledgements recorded in 2026-09, numbered like any other frame",
                subscriptions=Field(SUBSCRIPTIONS, True, _SEEN),
            ),
        ),
        Shape(
            "ws_error",
            _SEEN,
            "frames recorded in 2026: also the answer to a channel that does not exist",
            {
                "type": Field({"const": "error"}, True, _SEEN),
                "message": Field(NAME, True, _SEEN),
                "reason": seen(TEXT),
            },
        ),
    )
}
SHAPES: Final = REST_SHAPES | {f"ws {name}": shape for name, shape in WS_SHAPES.items()}

# What the venue is believed to do and no source confirms. The simulator does it; a test of it has NOT_VERIFIED in its
# id, so that nobody takes a green line for knowledge about Coinbase.
NOT_VERIFIED_BEHAVIOUR: Final[dict[str, str]] = {
    "repeated client_order_id": "gets the first order back; the reference also knows DUPLICATE_CLIENT_ORDER_ID",
    "candles at the end": "the bar that starts at `end` is included; 350 are allowed where one source says 349",
    "cancelling twice": "DUPLICATE_CANCEL_REQUEST",
    "market order larger than the book": "ends CANCELLED with what it got",
    "holds of purchases": "include the taker's fee",
    "401 body": "the plain text Unauthorized",
    "sequence of fills": "sequence_timestamp equals trade_time",
    "size_in_quote of fills": "false: sizes are in base units",
}


def table() -> str:
    """The shapes by certainty: fields documented, only seen, not verified, and where they are documented."""
    lines = [f"{'shape':28} {'certainty':12} {'doc.':>4} {'seen':>4} {'n.v.':>4}  where"]
    for name, shape in SHAPES.items():
        counts = [
            sum(field.certainty is certainty for field in nested_fields(shape))
            for certainty in (Certainty.DOCUMENTED, Certainty.SEEN, Certainty.NOT_VERIFIED)
        ]
        numbers = " ".join(f"{count:4}" for count in counts)
        lines.append(f"{name:28} {shape.certainty:12} {numbers}  {shape.source}")
    lines += ["", "behaviour that is NOT_VERIFIED:"]
    lines += [f"  {what}: {how}" for what, how in NOT_VERIFIED_BEHAVIOUR.items()]
    return "\n".join(lines)


def nested_fields(shape: Shape) -> Iterator[Field]:
    """All fields of a shape, however deep."""
    for field in shape.fields.values():
        yield field
        inner = field.schema.item if isinstance(field.schema, Many) else field.schema
        if isinstance(inner, Shape):
            yield from nested_fields(inner)


if __name__ == "__main__":
    print(table())
