"""The real SDK's own calls for every method we use, against the simulator, over verified TLS, with both kinds of key.

One test a method. Each looks at what the SDK's response object says, and every answer that came over the wire on the
way must be of its documented shape, without a field that is in no source.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from coinbase.rest import RESTClient
from coinbase.rest.types import orders_types

from tests.contract.bots import KEY_FILES, Bot, rest_bot
from tests.simulator import PREFIX, Simulator, running_simulator

pytestmark = pytest.mark.slow

PRODUCT: Final = "BTC-USD"
MID: Final = "50000.00"
_numbers: Final = itertools.count()


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "10") as running:
        running.push_price(PRODUCT, MID)
        yield running


@pytest.fixture(params=sorted(KEY_FILES))
def bot(request: pytest.FixtureRequest, simulator: Simulator) -> Iterator[Bot]:
    with rest_bot(simulator, request.param) as made:
        yield made
        assert made.problems() == []


@pytest.fixture
def one_bot(simulator: Simulator) -> Iterator[Bot]:
    """With the ES256 key alone, for what does not depend on the key."""
    with rest_bot(simulator) as made:
        yield made
        assert made.problems() == []


@pytest.fixture
def public_bot(simulator: Simulator) -> Iterator[Bot]:
    with rest_bot(simulator, key=None) as made:
        yield made
        assert made.problems() == []


def new_id() -> str:
    return f"sdk-{os.getpid()}-{next(_numbers)}"


# --- orders: every wrapper ---

FUTURE: Final = "2090-01-01T00:00:00Z"
SIZE: Final = {"base_size": "0.01"}
_STOPS: Final = {
    "BUY": {"stop_price": "55000.00", "limit_price": "56000.00", "stop_direction": "STOP_DIRECTION_STOP_UP"},
    "SELL": {"stop_price": "45000.00", "limit_price": "44000.00", "stop_direction": "STOP_DIRECTION_STOP_DOWN"},
}
_BRACKETS: Final = {
    "BUY": {"limit_price": "40000.00", "stop_trigger_price": "55000.00"},
    "SELL": {"limit_price": "60000.00", "stop_trigger_price": "45000.00"},
}
_FAR: Final = {"BUY": {"limit_price": "1000.00"}, "SELL": {"limit_price": "900000.00"}}
# Wrapper, the configuration it writes, what it is given for each side, and how the order stands afterwards.
WRAPPERS: Final[tuple[tuple[str, str, dict[str, dict[str, Any]], str], ...]] = (
    ("market_order", "market_market_ioc", {"BUY": {}, "SELL": {}}, "FILLED"),
    ("limit_order_ioc", "sor_limit_ioc", _FAR, "CANCELLED"),
    ("limit_order_gtc", "limit_limit_gtc", _FAR, "OPEN"),
    ("limit_order_gtd", "limit_limit_gtd", _FAR, "OPEN"),
    ("limit_order_fok", "limit_limit_fok", _FAR, "CANCELLED"),
    ("stop_limit_order_gtc", "stop_limit_stop_limit_gtc", _STOPS, "OPEN"),
    ("stop_limit_order_gtd", "stop_limit_stop_limit_gtd", _STOPS, "OPEN"),
    ("trigger_bracket_order_gtc", "trigger_bracket_gtc", _BRACKETS, "OPEN"),
    ("trigger_bracket_order_gtd", "trigger_bracket_gtd", _BRACKETS, "OPEN"),
)
WRAPPER_CASES: Final = [(*wrapper, side) for wrapper in WRAPPERS for side in ("BUY", "SELL")]
WRAPPER_IDS: Final = [f"{name}-{side}" for name, _, _, _, side in WRAPPER_CASES]


def _fields(wrapper: str, given: dict[str, Any]) -> dict[str, Any]:
    return SIZE | given | ({"end_time": FUTURE} if wrapper.endswith("gtd") else {})


def _check_placed(bot: Bot, answer: Any, client_order_id: str, side: str, name: str, fields: dict[str, Any]) -> Any:
    assert isinstance(answer, orders_types.CreateOrderResponse)
    assert answer.success is True, answer.to_dict()
    placed = answer.success_response
    assert (placed["client_order_id"], placed["product_id"], placed["side"]) == (client_order_id, PRODUCT, side)
    found = bot.client.get_order(placed["order_id"]).order
    assert (found.order_id, found.client_order_id, found.side) == (placed["order_id"], client_order_id, side)
    ((stored, asked),) = found.order_configuration.to_dict().items()
    assert stored == name
    for field, value in fields.items():
        same = (
            asked[field] == value
            if field in ("stop_direction", "end_time")
            else Decimal(asked[field]) == Decimal(value)
        )
        assert same, field
    return found


@pytest.mark.parametrize(("wrapper", "name", "given", "status", "side"), WRAPPER_CASES, ids=WRAPPER_IDS)
def test_every_order_wrapper_places_its_order(
    wrapper: str, name: str, given: dict[str, dict[str, Any]], status: str, side: str, bot: Bot
) -> None:
    fields, client_order_id = _fields(wrapper, given[side]), new_id()
    answer = getattr(bot.client, f"{wrapper}_{side.lower()}")(client_order_id, PRODUCT, **fields)
    found = _check_placed(bot, answer, client_order_id, side, name, fields)
    assert found.status == status
    if status == "OPEN":
        assert bot.client.cancel_orders([found.order_id]).results[0].success is True


@pytest.mark.parametrize(("wrapper", "name", "given", "status", "side"), WRAPPER_CASES, ids=WRAPPER_IDS)
def test_every_order_wrapper_without_a_side_in_its_name_places_its_order(
    wrapper: str, name: str, given: dict[str, dict[str, Any]], status: str, side: str, one_bot: Bot
) -> None:
    fields, client_order_id = _fields(wrapper, given[side]), new_id()
    answer = getattr(one_bot.client, wrapper)(client_order_id, PRODUCT, side, **fields)
    found = _check_placed(one_bot, answer, client_order_id, side, name, fields)
    assert found.status == status
    if status == "OPEN":
        one_bot.client.cancel_orders([found.order_id])


@pytest.mark.parametrize(("wrapper", "name", "given", "status", "side"), WRAPPER_CASES, ids=WRAPPER_IDS)
def test_every_preview_wrapper_previews_and_places_nothing(
    wrapper: str, name: str, given: dict[str, dict[str, Any]], status: str, side: str, bot: Bot
) -> None:
    fields = _fields(wrapper, given[side])
    before = len(bot.client.list_orders().orders)
    by_side = getattr(bot.client, f"preview_{wrapper}_{side.lower()}")(PRODUCT, **fields)
    general = getattr(bot.client, f"preview_{wrapper}")(PRODUCT, side, **fields)
    bare = bot.client.preview_order(PRODUCT, side, {name: _configured(fields)})
    for preview in (by_side, general, bare):
        assert isinstance(preview, orders_types.PreviewOrderResponse)
        assert preview.errs == []
        assert Decimal(preview.order_total) > 0
        assert Decimal(preview.commission_total) > 0
        assert Decimal(preview.base_size) == Decimal("0.01")
        assert Decimal(preview.best_bid) < Decimal(preview.best_ask)
    assert len(bot.client.list_orders().orders) == before


def _configured(fields: dict[str, Any]) -> dict[str, Any]:
    return dict(fields)


def test_a_preview_of_what_is_refused_names_the_documented_reason(bot: Bot) -> None:
    cases = {
        "PREVIEW_INSUFFICIENT_FUND": {"limit_limit_gtc": {"base_size": "3000", "limit_price": "50000.00"}},
        "PREVIEW_INVALID_PRICE_PRECISION": {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "1000.001"}},
        "PREVIEW_INVALID_LIMIT_PRICE_POST_ONLY": {
            "limit_limit_gtc": {"base_size": "0.01", "limit_price": "60000.00", "post_only": True}
        },
    }
    for reason, configuration in cases.items():
        assert bot.client.preview_order(PRODUCT, "BUY", configuration).errs == [reason]


def test_market_orders_by_quote_size_spend_the_quote_and_its_fees(bot: Bot) -> None:
    answer = bot.client.market_order_buy(new_id(), PRODUCT, quote_size="100")
    found = bot.client.get_order(answer.success_response["order_id"]).order
    assert found.status == "FILLED"
    assert found.size_in_quote is True
    assert Decimal(99) < Decimal(found.total_value_after_fees) <= Decimal(100)


def test_create_order_takes_any_configuration_as_it_is(bot: Bot) -> None:
    client_order_id = new_id()
    fields = {"base_size": "0.02", "limit_price": "1000.00", "post_only": True}
    answer = bot.client.create_order(client_order_id, PRODUCT, "BUY", {"limit_limit_gtc": fields})
    found = bot.client.get_order(answer.success_response["order_id"]).order
    assert found.order_configuration.limit_limit_gtc.post_only is True
    bot.client.cancel_orders([found.order_id])


@pytest.mark.parametrize(
    ("configuration", "reasons"),
    [
        ({"market_market_fok": {"base_size": "0.01"}}, {"UNSUPPORTED_ORDER_CONFIGURATION"}),
        ({"twap_limit_gtd": {"base_size": "0.01"}}, {"UNSUPPORTED_ORDER_CONFIGURATION"}),
        ({"limit_limit_gtc": {"base_size": "0.01", "limit_price": "1000.001"}}, {"INVALID_PRICE_PRECISION"}),
        ({"limit_limit_gtc": {"base_size": "0.000000001", "limit_price": "1000"}}, {"INVALID_SIZE_PRECISION"}),
        ({"market_market_ioc": {"base_size": "300"}}, {"INSUFFICIENT_FUND"}),
        (
            {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "60000", "post_only": True}},
            {"INVALID_LIMIT_PRICE_POST_ONLY"},
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict | set) else None,
)
def test_a_refused_order_is_http_200_with_success_false(
    configuration: dict[str, Any], reasons: set[str], one_bot: Bot
) -> None:
    answer = one_bot.client.create_order(new_id(), PRODUCT, "BUY", configuration)
    assert answer.success is False
    assert one_bot.answers[-1].status == 200
    assert {answer.error_response["error"], answer.error_response["new_order_failure_reason"]} == reasons


# --- orders: changing and reading ---


@pytest.fixture
def resting(bot: Bot) -> Iterator[str]:
    """An order that rests at 1,000.00 for 0.05."""
    answer = bot.client.limit_order_gtc_buy(new_id(), PRODUCT, base_size="0.05", limit_price="1000.00")
    order_id = str(answer.success_response["order_id"])
    yield order_id
    bot.client.cancel_orders([order_id])


def test_edit_order_changes_price_and_size(bot: Bot, resting: str) -> None:
    answer = bot.client.edit_order(resting, size="0.04", price="1001.00")
    assert isinstance(answer, orders_types.EditOrderResponse)
    assert answer.success is True, answer.to_dict()
    found = bot.client.get_order(resting).order
    limit = found.order_configuration.limit_limit_gtc
    assert (Decimal(limit.base_size), Decimal(limit.limit_price)) == (Decimal("0.04"), Decimal("1001.00"))
    (edit,) = found.edit_history
    assert (Decimal(edit.size), Decimal(edit.price)) == (Decimal("0.04"), Decimal("1001.00"))


def test_preview_edit_order_changes_nothing(bot: Bot, resting: str) -> None:
    answer = bot.client.preview_edit_order(resting, size="0.04", price="1001.00")
    assert isinstance(answer, orders_types.EditOrderPreviewResponse)
    assert answer.errors == []
    assert Decimal(answer.base_size) == Decimal("0.04")
    assert Decimal(bot.client.get_order(resting).order.order_configuration.limit_limit_gtc.base_size) == Decimal("0.05")


def test_an_edit_that_is_refused_says_why(bot: Bot, resting: str) -> None:
    reasons = {
        "ORDER_NOT_FOUND": bot.client.edit_order("no-such-order", size="0.04", price="1001.00"),
        "INVALID_EDITED_PRICE": bot.client.edit_order(resting, size="0.04", price="1001.001"),
        "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST": bot.client.edit_order(resting, size="0.05", price="1000.00"),
    }
    for reason, answer in reasons.items():
        assert answer.success is False
        assert [error.edit_failure_reason for error in answer.errors] == [reason]


def test_an_edit_without_a_size_is_refused_as_the_venue_does(bot: Bot, resting: str) -> None:
    # Two public clients say: what is left out is read as 0.
    answer = bot.client.edit_order(resting, price="1001.00")
    assert answer.success is False
    assert answer.errors[0].edit_failure_reason in ("INVALID_EDITED_SIZE", "CANNOT_EDIT_TO_BELOW_FILLED_SIZE")


def test_cancel_orders_answers_for_each_in_the_order_given(bot: Bot, resting: str) -> None:
    answer = bot.client.cancel_orders(["no-such-order", resting])
    assert [(each.success, each.order_id) for each in answer.results] == [(False, "no-such-order"), (True, resting)]
    assert answer.results[0].failure_reason == "UNKNOWN_CANCEL_ORDER"
    assert bot.client.get_order(resting).order.status == "CANCELLED"


def test_close_position_is_refused_on_spot_not_verified(bot: Bot) -> None:
    # Positions are of derivatives; what the venue says on spot no source tells. The reason is one of the reference's.
    answer = bot.client.close_position(new_id(), PRODUCT, size="0.01")
    assert isinstance(answer, orders_types.ClosePositionResponse)
    assert (answer.success, answer.error_response["error"]) == (False, "CANNOT_CLOSE_ZERO_POSITION")


# Each filter of list_orders: what is asked, and what every order found must be; at least one must be found.
FILTERS: Final[dict[str, tuple[dict[str, Any], Any]]] = {
    "product_ids": ({"product_ids": [PRODUCT]}, lambda order: order.product_id == PRODUCT),
    "two product_ids": ({"product_ids": [PRODUCT, "ETH-USD"]}, lambda order: order.product_id in (PRODUCT, "ETH-USD")),
    "order_status OPEN": ({"order_status": ["OPEN"]}, lambda order: order.status == "OPEN"),
    "order_status of two": (
        {"order_status": ["FILLED", "CANCELLED"]},
        lambda order: order.status in ("FILLED", "CANCELLED"),
    ),
    "order_types": ({"order_types": ["MARKET"]}, lambda order: order.order_type == "MARKET"),
    "two order_types": ({"order_types": ["MARKET", "LIMIT"]}, lambda order: order.order_type in ("MARKET", "LIMIT")),
    "time_in_forces": (
        {"time_in_forces": ["GOOD_UNTIL_CANCELLED"]},
        lambda order: order.time_in_force == "GOOD_UNTIL_CANCELLED",
    ),
    "order_side": ({"order_side": "SELL"}, lambda order: order.side == "SELL"),
    "product_type": ({"product_type": "SPOT"}, lambda order: order.product_type == "SPOT"),
    "order_placement_source": (
        {"order_placement_source": "RETAIL_ADVANCED"},
        lambda order: order.order_placement_source == "RETAIL_ADVANCED",
    ),
    "asset_filters": ({"asset_filters": ["ETH"]}, lambda order: order.product_id == "ETH-USD"),
    "start_date": ({"start_date": "2020-01-01T00:00:00Z"}, lambda order: order.created_time > "2020"),
    "end_date": ({"end_date": FUTURE}, lambda order: order.created_time < FUTURE),
    "limit": ({"limit": 2}, lambda order: bool(order.order_id)),
    "sort_by": ({"sort_by": "LAST_FILL_TIME"}, lambda order: bool(order.order_id)),
}


@pytest.fixture(scope="module")
def mixed_orders(simulator: Simulator) -> Iterator[list[str]]:
    """One of each kind: filled and resting, bought and sold, of two products."""
    with rest_bot(simulator) as bot:
        client = bot.client
        placed = [
            client.market_order_buy(new_id(), PRODUCT, base_size="0.01"),
            client.market_order_sell(new_id(), PRODUCT, base_size="0.01"),
            client.market_order_buy(new_id(), "ETH-USD", base_size="0.1"),
            client.limit_order_gtc_buy(new_id(), PRODUCT, base_size="0.01", limit_price="1000.00"),
            client.limit_order_ioc_sell(new_id(), PRODUCT, base_size="0.01", limit_price="900000.00"),
        ]
        yield [answer.success_response["order_id"] for answer in placed]


@pytest.mark.parametrize("name", FILTERS)
def test_list_orders_filters(name: str, bot: Bot, mixed_orders: list[str]) -> None:
    query, fits = FILTERS[name]
    found = bot.client.list_orders(**query).orders
    assert found
    assert [order.to_dict() for order in found if not fits(order)] == []


def test_list_orders_by_id_gives_exactly_these(bot: Bot, mixed_orders: list[str]) -> None:
    found = bot.client.list_orders(order_ids=mixed_orders[:2]).orders
    assert {order.order_id for order in found} == set(mixed_orders[:2])


@pytest.mark.parametrize(
    "query",
    [
        {"product_type": "FUTURE"},
        {"start_date": FUTURE},
        {"end_date": "2020-01-01T00:00:00Z"},
        {"order_ids": ["no-such-order"]},
        {"asset_filters": ["XRP"]},
        {"order_placement_source": "RETAIL_SIMPLE"},
    ],
    ids=lambda query: next(iter(query)),
)
def test_list_orders_finds_nothing_where_nothing_fits(
    query: dict[str, Any], one_bot: Bot, mixed_orders: list[str]
) -> None:
    assert one_bot.client.list_orders(**query).orders == []


def test_list_orders_pages_by_cursor_until_the_last(bot: Bot, mixed_orders: list[str]) -> None:
    seen: list[str] = []
    cursor = None
    for _ in range(1_000):
        page = bot.client.list_orders(limit=2, cursor=cursor)
        seen += [order.order_id for order in page.orders]
        if not page.has_next:
            break
        cursor = page.cursor
    assert len(seen) == len(set(seen))
    assert set(mixed_orders) <= set(seen)


def test_get_fills_of_orders_trades_products_and_times(bot: Bot, mixed_orders: list[str]) -> None:
    client = bot.client
    mine = client.get_fills(order_ids=mixed_orders[:1]).fills
    assert {fill.order_id for fill in mine} == {mixed_orders[0]}
    assert sum(Decimal(fill.size) for fill in mine) == Decimal("0.01")
    assert {fill.trade_id for fill in client.get_fills(trade_ids=[mine[0].trade_id]).fills} == {mine[0].trade_id}
    assert {fill.product_id for fill in client.get_fills(product_ids=["ETH-USD"]).fills} == {"ETH-USD"}
    assert client.get_fills(start_sequence_timestamp=FUTURE).fills == []
    assert client.get_fills(end_sequence_timestamp="2020-01-01T00:00:00Z").fills == []
    first = client.get_fills(limit=1)
    second = client.get_fills(limit=1, cursor=first.cursor)
    assert first.fills[0].entry_id != second.fills[0].entry_id


# --- accounts, portfolios, fees, key ---


def test_get_accounts_and_get_account(bot: Bot) -> None:
    accounts = bot.client.get_accounts().accounts
    assert {"USD", "BTC", "ETH", "SOL"} <= {account.currency for account in accounts}
    one = bot.client.get_account(accounts[0].uuid).account
    assert (one.uuid, one.currency) == (accounts[0].uuid, accounts[0].currency)


def test_get_accounts_pages(bot: Bot) -> None:
    first = bot.client.get_accounts(limit=1)
    assert first.has_next is True
    second = bot.client.get_accounts(limit=1, cursor=first.cursor)
    assert first.accounts[0].uuid != second.accounts[0].uuid


def test_get_portfolios_names_the_portfolio_of_the_key(bot: Bot) -> None:
    (portfolio,) = [each for each in bot.client.get_portfolios().portfolios if each.type == "DEFAULT"]
    assert portfolio.uuid == bot.client.get_api_key_permissions().portfolio_uuid


def test_get_portfolio_breakdown_adds_up(bot: Bot) -> None:
    portfolio = bot.client.get_api_key_permissions().portfolio_uuid
    breakdown = bot.client.get_portfolio_breakdown(portfolio).breakdown
    assert breakdown.portfolio.uuid == portfolio
    positions = {position.asset: position for position in breakdown.spot_positions}
    balances = {account.currency: account for account in bot.client.get_accounts().accounts}
    for asset, position in positions.items():
        total = Decimal(balances[asset].available_balance["value"]) + Decimal(balances[asset].hold["value"])
        assert position.total_balance_crypto == pytest.approx(float(total))


def test_get_transaction_summary_tells_the_rates(bot: Bot) -> None:
    summary = bot.client.get_transaction_summary()
    rates = summary.fee_tier
    assert (Decimal(rates["taker_fee_rate"]), Decimal(rates["maker_fee_rate"])) == (Decimal("0.006"), Decimal("0.004"))
    for query in ({"product_type": "SPOT"}, {"product_venue": "CBE"}):
        assert bot.client.get_transaction_summary(**query).total_fees >= 0


def test_get_api_key_permissions(bot: Bot) -> None:
    permissions = bot.client.get_api_key_permissions()
    assert (permissions.can_view, permissions.can_trade, permissions.can_transfer) == (True, True, False)


# --- market data ---


def _span() -> dict[str, str]:
    now_s = int(time.time())
    return {"start": str(now_s - 3_600), "end": str(now_s), "granularity": "ONE_MINUTE"}


def test_get_best_bid_ask_of_all_and_of_some(bot: Bot) -> None:
    assert {book.product_id for book in bot.client.get_best_bid_ask().pricebooks} >= {PRODUCT, "ETH-USD"}
    (book,) = bot.client.get_best_bid_ask(product_ids=[PRODUCT]).pricebooks
    assert Decimal(book.bids[0]["price"]) < Decimal(MID) < Decimal(book.asks[0]["price"])


def test_get_product_book(bot: Bot) -> None:
    book = bot.client.get_product_book(PRODUCT, limit=3)
    assert len(book.pricebook.bids) == 3
    assert Decimal(book.spread_absolute) > 0


def test_get_candles_are_newest_first(bot: Bot) -> None:
    candles = bot.client.get_candles(PRODUCT, **_span()).candles
    starts = [int(candle["start"]) for candle in candles]
    assert starts == sorted(starts, reverse=True)
    assert 59 <= len(starts) <= 61


def test_get_market_trades(bot: Bot) -> None:
    trades = bot.client.get_market_trades(PRODUCT, limit=5)
    assert len(trades.trades) == 5
    assert Decimal(trades.best_bid) < Decimal(trades.best_ask)


def test_get_products_and_get_product(bot: Bot) -> None:
    products = bot.client.get_products(product_type="SPOT").products
    assert PRODUCT in {product.product_id for product in products}
    assert bot.client.get_products(product_ids=[PRODUCT]).products[0].product_id == PRODUCT
    assert bot.client.get_product(PRODUCT).product_id == PRODUCT
    assert bot.client.get_product(PRODUCT, get_tradability_status=True).view_only is False
    assert len(bot.client.get_products(limit=1, offset=1).products) == 1


def test_get_unix_time(public_bot: Bot) -> None:
    answer = public_bot.client.get_unix_time()
    assert abs(int(answer.epoch_seconds) - time.time()) < 30
    assert int(answer.epoch_millis) // 1_000 == int(answer.epoch_seconds)


def test_every_public_method_needs_no_key(public_bot: Bot) -> None:
    client = public_bot.client
    assert client.get_public_products().products
    assert client.get_public_product(PRODUCT).product_id == PRODUCT
    assert client.get_public_product_book(PRODUCT, limit=2).pricebook.product_id == PRODUCT
    assert client.get_public_candles(PRODUCT, **_span()).candles
    assert len(client.get_public_market_trades(PRODUCT, limit=3).trades) == 3


def test_the_bare_verbs_reach_any_path(one_bot: Bot) -> None:
    # What the SDK tells users to do for what it has no method for.
    assert one_bot.client.get(f"{PREFIX}/time")["epochSeconds"]
    body = {"product_id": PRODUCT, "side": "BUY", "order_configuration": {"market_market_ioc": {"base_size": "0.01"}}}
    assert one_bot.client.post(f"{PREFIX}/orders/preview", data=body)["errs"] == []


def test_every_order_method_of_the_sdk_is_among_these() -> None:
    """A new version of the SDK with a new order type must not pass unnoticed."""
    wrappers = {name for name, _, _, _ in WRAPPERS}
    known = wrappers | {f"{name}_{side}" for name in wrappers for side in ("buy", "sell")}
    known |= {f"preview_{name}" for name in known}
    others = {"create_order", "get_order", "list_orders", "edit_order", "preview_edit_order", "cancel_orders"}
    others |= {"preview_order"}
    found = {name for name in dir(RESTClient) if "order" in name}
    assert found == known | others


# What the SDK has and the simulator answers with 404, because a desk of spot orders has no use for it.
NOT_SIMULATED: Final[dict[str, set[str]]] = {
    "portfolios are made and filled by hand": {
        "create_portfolio",
        "edit_portfolio",
        "delete_portfolio",
        "move_portfolio_funds",
    },
    "conversions": {"create_convert_quote", "get_convert_trade", "commit_convert_trade"},
    "payment methods": {"list_payment_methods", "get_payment_method"},
    "futures": {
        "get_futures_balance_summary",
        "list_futures_positions",
        "get_futures_position",
        "schedule_futures_sweep",
        "list_futures_sweeps",
        "cancel_pending_futures_sweep",
        "get_intraday_margin_setting",
        "get_current_margin_window",
        "set_intraday_margin_setting",
    },
    "perpetuals": {
        "allocate_portfolio",
        "get_perps_portfolio_summary",
        "list_perps_positions",
        "get_perps_position",
        "get_perps_portfolio_balances",
        "opt_in_or_out_multi_asset_collateral",
    },
}
_PLUMBING: Final = {"get", "post", "put", "delete", "prepare_and_send_request", "send_request", "set_headers"}


def test_every_method_of_the_sdk_is_called_here_or_not_simulated_on_purpose() -> None:
    methods = {name for name, _ in inspect.getmembers(RESTClient, inspect.isfunction) if not name.startswith("_")}
    wrappers = {name for name in methods if "order" in name}
    source = Path(__file__).read_text()
    called = {name for name in methods if re.search(rf"client\.{name}\(", source)}
    left_out = {name for names in NOT_SIMULATED.values() for name in names}
    assert methods - wrappers - called - _PLUMBING == left_out


def test_what_is_not_simulated_is_404_and_says_so(simulator: Simulator) -> None:
    with rest_bot(simulator) as bot:
        with pytest.raises(requests.HTTPError, match=r"404.*not simulated"):
            bot.client.get(f"{PREFIX}/payment_methods")
        assert bot.problems() == []
