"""The simulator's answers against Coinbase's documented schemas, the SDK's own types, and what was seen of the venue.

Three sources, so that simulator and reality cannot drift together unnoticed:

* ``coinbase_schemas``: Coinbase's reference, each shape with where it is documented and how sure we are. Nothing of it
  comes from the simulator. What the simulator leaves out is in ``ABSENT`` with its reason, and nothing else may be.
* The installed SDK's response classes: every field they know is in an answer of the simulator or in ``ABSENT``.
* ``SEEN``: answers of the real venue as their readers published them, and real candles from ``../shared/data``.

The real venue was never contacted. What no source confirms has ``not_verified`` in the name of its test.
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from coinbase.rest.types import (
    accounts_types,
    data_api_types,
    fees_types,
    orders_types,
    portfolios_types,
    product_types,
    public_types,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.contract import coinbase_schemas as documented
from tests.contract.bots import Bot, problems, rest_bot
from tests.contract.coinbase_messages import valid
from tests.contract.coinbase_schemas import Certainty, Many, Shape
from tests.simulator import PREFIX, Simulator, running_simulator

pytestmark = pytest.mark.slow

PRODUCT: Final = "BTC-USD"


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    with running_simulator(tmp_path_factory.mktemp("exchange"), "--history-days", "10") as running:
        running.push_price(PRODUCT, "50000.00")
        yield running


@pytest.fixture(scope="module")
def bot(simulator: Simulator) -> Iterator[Bot]:
    """A bot that has seen every kind of answer the simulator gives."""
    with rest_bot(simulator) as made:
        _see_everything(made)
        yield made


def _see_everything(bot: Bot) -> None:
    client = bot.client
    placed = _place_one_of_each(client)
    _refusals(client)
    resting = placed["limit_limit_gtc"]
    order = {"product_id": PRODUCT, "side": "BUY"}
    limit = {"base_size": "0.01", "limit_price": "1000.00"}
    for configuration in ({"limit_limit_gtc": limit}, {"market_market_ioc": {"base_size": "3000"}}):
        client.post(f"{PREFIX}/orders/preview", data=order | {"order_configuration": configuration})
    for changes in ({"size": "0.02", "price": "1001.00"}, {"size": "0.02", "price": "1001.001"}):
        client.post(f"{PREFIX}/orders/edit_preview", data={"order_id": resting} | changes)
        client.post(f"{PREFIX}/orders/edit", data={"order_id": resting} | changes)
    for order_id in placed.values():
        client.get_order(order_id)
    client.cancel_orders([*placed.values(), "nobody"])
    now_s = int(time.time())
    span = {"start": str(now_s - 3_600), "end": str(now_s), "granularity": "ONE_MINUTE"}
    accounts = client.get(f"{PREFIX}/accounts")
    portfolios = client.get(f"{PREFIX}/portfolios")
    for path, query in (
        ("/time", {}),
        ("/accounts", {"limit": 1}),
        (f"/accounts/{accounts['accounts'][0]['uuid']}", {}),
        (f"/portfolios/{portfolios['portfolios'][0]['uuid']}", {}),
        ("/products", {}),
        ("/market/products", {}),
        (f"/products/{PRODUCT}", {}),
        ("/market/products/SOL-USD", {}),
        ("/best_bid_ask", {}),
        ("/product_book", {"product_id": PRODUCT}),
        ("/market/product_book", {"product_id": PRODUCT}),
        (f"/products/{PRODUCT}/candles", span),
        (f"/market/products/{PRODUCT}/candles", span),
        (f"/products/{PRODUCT}/ticker", {"limit": 5}),
        (f"/market/products/{PRODUCT}/ticker", {"limit": 5}),
        ("/orders/historical/batch", {}),
        ("/orders/historical/batch", {"limit": 1}),
        ("/orders/historical/fills", {}),
        ("/orders/historical/fills", {"limit": 1}),
        ("/transaction_summary", {}),
        ("/key_permissions", {}),
    ):
        client.get(PREFIX + path, params=dict(query))


def _place_one_of_each(client: Any) -> dict[str, str]:
    """One order of every configuration; the id of each."""
    far = {"base_size": "0.01", "limit_price": "1000.00"}
    stop = {"base_size": "0.01", "stop_price": "55000.00", "limit_price": "56000.00"}
    stop |= {"stop_direction": "STOP_DIRECTION_STOP_UP"}
    bracket = {"base_size": "0.01", "limit_price": "60000.00", "stop_trigger_price": "45000.00"}
    end = {"end_time": "2090-01-01T00:00:00Z"}
    configurations: list[tuple[str, dict[str, Any], str]] = [
        ("market_market_ioc", {"quote_size": "10"}, "BUY"),
        ("market_market_ioc", {"base_size": "0.01"}, "BUY"),
        ("limit_limit_gtc", far | {"post_only": True}, "BUY"),
        ("limit_limit_gtd", far | {"post_only": False} | end, "BUY"),
        ("sor_limit_ioc", far, "BUY"),
        ("limit_limit_fok", far, "BUY"),
        ("stop_limit_stop_limit_gtc", stop, "BUY"),
        ("stop_limit_stop_limit_gtd", stop | end, "BUY"),
        ("trigger_bracket_gtc", bracket, "SELL"),
        ("trigger_bracket_gtd", bracket | end, "SELL"),
    ]
    assert {name for name, _, _ in configurations} == set(documented.CONFIGURATIONS)
    placed = {}
    for number, (name, fields, side) in enumerate(configurations):
        answer = _post_order(client, f"contract-{number}", {name: fields}, side)
        assert answer["success"] is True, answer
        placed[name] = str(answer["order_id"])
    return placed


def _refusals(client: Any) -> None:
    configurations: list[dict[str, Any]] = [
        {"market_market_ioc": {"base_size": "3000"}},
        {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "9000000.00", "post_only": True}},
        {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "1000.001"}},
        {"market_market_ioc": {"base_size": "0"}},
        {"limit_limit_gtd": {"base_size": "0.01", "limit_price": "1000", "end_time": "2020-01-01T00:00:00Z"}},
        {"trigger_bracket_gtc": {"base_size": "0.01", "limit_price": "60000", "stop_trigger_price": "45000"}},
        {"twap_limit_gtd": {}},
    ]
    for number, given_configuration in enumerate(configurations):
        assert _post_order(client, f"refused-{number}", given_configuration)["success"] is False
    assert _post_order(client, "refused-product", configurations[0], product_id="NO-SUCH")["success"] is False


def _post_order(
    client: Any, client_order_id: str, configuration: dict[str, Any], side: str = "BUY", product_id: str = PRODUCT
) -> Any:
    body = {"client_order_id": client_order_id, "product_id": product_id, "side": side}
    return client.post(f"{PREFIX}/orders", data=body | {"order_configuration": configuration})


# --- the simulator against the documented shapes ---

ANSWERS: Final = {name: shape for name, shape in documented.REST_SHAPES.items() if name not in ("error", "throttled")}


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=f"{name}-{shape.certainty}") for name, shape in ANSWERS.items()]
)
def test_the_simulators_answers_have_the_documented_shape(name: str, bot: Bot) -> None:
    shape = ANSWERS[name]
    answers = bot.of(shape)
    assert answers
    assert [problem for answer in answers for problem in problems(shape, answer, name)] == []


# What the simulator leaves out of each shape, with the reason. Exactly this: what it serves one day must go from here.
_DISPLAY: Final = "for a web page; no client of ours reads it"
_OTHERS: Final = "for futures, equities or predictions; the simulator has spot alone"
_NATIVE: Final = "accounts are in USD, so there is nothing to convert"
ABSENT: Final[dict[str, dict[str, str]]] = {
    "product": {
        "market_cap": _DISPLAY,
        "icon_color": _DISPLAY,
        "icon_url": _DISPLAY,
        "display_name_overwrite": _DISPLAY,
        "is_alpha_testing": _DISPLAY,
        "about_description": _DISPLAY,
        "future_product_details": _OTHERS,
        "base_cbrn": _OTHERS,
        "quote_cbrn": _OTHERS,
        "product_cbrn": _OTHERS,
        "best_bid_price": "empty in the recording; best_bid_ask tells it",
        "best_ask_price": "empty in the recording; best_bid_ask tells it",
    },
    "products": {"pagination": "with a cursor only; limit and offset are served"},
    "order": {
        "current_pending_replace": "an edit is done before its answer goes out",
        "commission_detail_total": "one commission, which is total_fees",
        "workable_size": "for attached orders, which are not simulated",
        "workable_size_completion_pct": "for attached orders, which are not simulated",
        "product_details": _OTHERS,
        "cost_basis_method": _OTHERS,
        "displayed_order_config": _OTHERS,
        "equity_trading_session": _OTHERS,
        "prediction_side": _OTHERS,
        "last_update_time": "newest field of the reference, not in the SDK",
        "total_value_after_fees_native": _NATIVE,
        "outstanding_hold_amount_native": _NATIVE,
        "total_fees_native": _NATIVE,
    },
    "orders": {"proof_token_required": "for customers in the European Union"},
    "fills": {"proof_token_required": "for customers in the European Union"},
    "fill": {"fillSource": "NOT_VERIFIED", "commission_detail_total": "NOT_VERIFIED"},
    "fee_tier": {"volume_types_and_range": "NOT_VERIFIED"},
    "transaction_summary": {"volume_breakdown": "NOT_VERIFIED", "has_cost_plus_commission": "NOT_VERIFIED"},
    "portfolio_balances": {"total_neptune_balance": "in the SDK alone; a perpetuals venue of the past"},
    "spot_position": {
        "one_day_change": "no client could find it in an answer",
        "asset_img_url": _DISPLAY,
        "asset_uuid": _DISPLAY,
        "asset_color": _DISPLAY,
        "account_type": "in one recording alone",
        "funding_pnl": _OTHERS,
        "available_to_transfer_fiat": "the key may not transfer",
        "available_to_transfer_crypto": "the key may not transfer",
        "available_to_send_fiat": "the key may not transfer",
        "available_to_send_crypto": "the key may not transfer",
    },
    "edit_previewed": {
        "order_margin_total": _OTHERS,
        "commission_detail_total": "null where it does not apply, says a recording",
        "pnl_configuration": "null where it does not apply, says a recording",
    },
    "previewed": {
        "commission_detail_total": "one commission, which is commission_total",
        "est_average_filled_price": "NOT_VERIFIED",
    },
}
# Of a configuration only what this desk sends is echoed; the rest is the venue's own.
_NOT_COMPARED: Final = frozenset(documented.CONFIGURATIONS) | {"order_configuration"}


def _served(bot: Bot) -> dict[str, tuple[Shape, set[str]]]:
    """Every shape in the answers, however deep, with all fields that any of them had."""
    found: dict[str, tuple[Shape, set[str]]] = {}

    def walk(shape: Shape, body: Any) -> None:
        if not isinstance(body, dict):
            return
        found.setdefault(shape.name, (shape, set()))[1].update(body)
        for name, field in shape.fields.items():
            inner = field.schema.item if isinstance(field.schema, Many) else field.schema
            values = body.get(name)
            if isinstance(inner, Shape) and values is not None:
                for value in values if isinstance(values, list) else [values]:
                    walk(inner, value)

    for answer in bot.answers:
        shape = answer.shape()
        if shape is not None and answer.status == 200:
            walk(shape, answer.body)
    return found


def test_the_simulator_serves_every_documented_field_but_those_it_leaves_out_on_purpose(bot: Bot) -> None:
    missing = {}
    for name, (shape, fields) in _served(bot).items():
        if name not in _NOT_COMPARED and set(shape.fields) - fields:
            missing[name] = set(shape.fields) - fields
    assert missing == {name: set(reasons) for name, reasons in ABSENT.items()}


@pytest.mark.parametrize("name", sorted(documented.CONFIGURATIONS))
def test_an_order_is_shown_with_the_configuration_it_was_sent_with(name: str, bot: Bot) -> None:
    shown = [order["order_configuration"] for answer in bot.of(documented.ONE_ORDER) for order in [answer["order"]]]
    assert [each for each in shown if set(each) == {name}]


# --- errors ---


def test_an_error_has_the_shape_of_the_reference(simulator: Simulator) -> None:
    with rest_bot(simulator) as bot:
        for path in (f"/products/{PRODUCT}x", "/orders/historical/no-such-order", "/no/such/path"):
            with pytest.raises(requests.HTTPError, match="404"):
                bot.client.get(PREFIX + path)
        with pytest.raises(requests.HTTPError, match="400"):
            bot.client.get(f"{PREFIX}/products/{PRODUCT}/candles", params={"granularity": "WEEKLY"})
        assert [answer.status for answer in bot.answers] == [404, 404, 404, 400]
        assert bot.problems() == []
        assert all(answer.body["message"] for answer in bot.answers)


def test_a_bad_token_is_401_with_plain_text_not_verified(simulator: Simulator) -> None:
    answer = simulator.request("GET", f"{PREFIX}/accounts", headers={"Authorization": "Bearer nonsense"})
    assert (answer.status_code, answer.text.strip()) == (401, "Unauthorized")


def test_a_key_without_the_scope_is_403_as_the_sdk_knows_it(simulator: Simulator) -> None:
    # The SDK looks for these very words in the body.
    with rest_bot(simulator, "view") as bot:
        with pytest.raises(requests.HTTPError, match="403 Client Error: Missing Required Scopes"):
            bot.client.limit_order_gtc_buy("no-scope", PRODUCT, "0.01", "1000.00")
        assert bot.client.get_api_key_permissions().can_trade is False
        assert bot.problems() == []


def test_what_is_left_of_a_limit_is_told_in_the_headers_the_sdk_reads(simulator: Simulator) -> None:
    try:
        control(simulator, "/sim/limits", {"requests_per_s": 30})
        with rest_bot(simulator, rate_limit_headers=True) as bot:
            answer = bot.client.get_accounts()
            assert (answer.rate_limit_limit, answer.rate_limit_remaining) == ("30", "29")
            assert int(answer.rate_limit_reset) >= 0
    finally:
        control(simulator, "/sim/limits", {"requests_per_s": 0})


@pytest.mark.parametrize(("fault", "status"), [("throttle_429", 429), ("throttle_401", 401)])
def test_a_throttled_request_has_the_documented_body(fault: str, status: int, simulator: Simulator) -> None:
    control(simulator, "/sim/faults", {"rules": [{"match": {"path": "/accounts"}, "fault": fault, "count": 1}]})
    with rest_bot(simulator) as bot:
        with pytest.raises(requests.HTTPError, match=str(status)):
            bot.client.get_accounts()
        assert bot.problems() == []
        assert bot.client.get_accounts().accounts


def control(simulator: Simulator, path: str, body: dict[str, Any]) -> None:
    """Use the simulator's control surface."""
    token = (simulator.state_dir / "sim_token").read_text()
    answer = simulator.request("POST", path, json=body, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text


# --- the SDK's own types ---

_NAMED: Final = re.compile(r'if "(\w+)" in (?:kwargs|response)')
# The SDK says "…_volumes"; the reference, the TypeScript SDK and public answers say "…_volume".
MISSPELT: Final = {"GetTransactionSummaryResponse": {"advanced_trade_only_volumes": "advanced_trade_only_volume"}}
# Of the SDK's positions of a portfolio, what only derivatives have.
OF_OTHERS: Final = {"PortfolioPosition": {"expires_at", "leverage", "rate"}}
SDK_CLASSES: Final[tuple[tuple[type, str], ...]] = (
    (accounts_types.ListAccountsResponse, "accounts"),
    (accounts_types.GetAccountResponse, "one_account"),
    (accounts_types.Account, "account"),
    (product_types.ListProductsResponse, "products"),
    (product_types.GetProductResponse, "product"),
    (product_types.Product, "product"),
    (product_types.GetBestBidAskResponse, "best_bid_ask"),
    (product_types.GetProductBookResponse, "product_book"),
    (product_types.PriceBook, "pricebook"),
    (product_types.L2Level, "level"),
    (product_types.GetProductCandlesResponse, "candles"),
    (product_types.Candle, "candle"),
    (product_types.GetMarketTradesResponse, "market_trades"),
    (product_types.HistoricalMarketTrade, "market_trade"),
    (portfolios_types.ListPortfoliosResponse, "portfolios"),
    (portfolios_types.GetPortfolioBreakdownResponse, "one_breakdown"),
    (portfolios_types.PortfolioBreakdown, "portfolio_breakdown"),
    (portfolios_types.PortfolioBalances, "portfolio_balances"),
    (portfolios_types.PortfolioPosition, "spot_position"),
    (portfolios_types.Portfolio, "portfolio"),
    (orders_types.ListOrdersResponse, "orders"),
    (orders_types.GetOrderResponse, "one_order"),
    (orders_types.Order, "order"),
    (orders_types.EditHistory, "edit"),
    (orders_types.ListFillsResponse, "fills"),
    (orders_types.Fill, "fill"),
    (orders_types.CancelOrdersResponse, "cancelled"),
    (orders_types.CancelOrderObject, "cancel_result"),
    (orders_types.CreateOrderSuccess, "acceptance"),
    (orders_types.CreateOrderError, "refusal"),
    (orders_types.EditOrderResponse, "edited"),
    (orders_types.EditOrderErrors, "edit_error"),
    (orders_types.EditOrderPreviewResponse, "edit_previewed"),
    (orders_types.PreviewOrderResponse, "previewed"),
    (public_types.GetServerTimeResponse, "time"),
    (fees_types.GetTransactionSummaryResponse, "transaction_summary"),
    (fees_types.FeeTier, "fee_tier"),
    (data_api_types.GetAPIKeyPermissionsResponse, "key_permissions"),
    *(
        (getattr(orders_types, "".join(part.title() for part in name.split("_"))), name)
        for name in documented.CONFIGURATIONS
    ),
)


@pytest.mark.parametrize(("response_class", "name"), SDK_CLASSES, ids=lambda value: getattr(value, "__name__", None))
def test_every_field_the_sdk_knows_is_served_or_left_out_on_purpose(response_class: type, name: str, bot: Bot) -> None:
    named = set(_NAMED.findall(inspect.getsource(response_class)))
    assert named
    misspelt = MISSPELT.get(response_class.__name__, {})
    named = {misspelt.get(each, each) for each in named} - OF_OTHERS.get(response_class.__name__, set())
    shape, fields = _served(bot)[name]
    assert named - fields - set(ABSENT.get(name, {})) == set()
    assert named - set(shape.fields) == set()


def test_the_envelope_of_a_new_order_is_the_sdks(bot: Bot) -> None:
    named = set(_NAMED.findall(inspect.getsource(orders_types.CreateOrderResponse)))
    fields = {name for kind in ("accepted", "refused") for name in _served(bot)[kind][1]}
    assert fields == named


# --- what was seen of the real venue ---

# Answers as their readers published them, with our own values in their places.
SEEN: Final[list[tuple[str, str, Any]]] = [
    (
        "accepted",
        "coinbase/coinbase-advanced-py issue 49",
        {
            "success": True,
            "failure_reason": "UNKNOWN_FAILURE_REASON",
            "order_id": "aaaa-4ef9-9587",
            "success_response": {
                "order_id": "aaaa-4ef9-9587",
                "product_id": "LTC-USD",
                "side": "BUY",
                "client_order_id": "mine",
            },
            "order_configuration": {"sor_limit_ioc": {"base_size": "1", "limit_price": "82.9"}},
        },
    ),
    (
        "refused",
        "ccxt/ccxt issue 20419",
        {
            "success": False,
            "failure_reason": "UNKNOWN_FAILURE_REASON",
            "order_id": "",
            "error_response": {
                "error": "INSUFFICIENT_FUND",
                "message": "Insufficient balance in source account",
                "error_details": "",
                "preview_failure_reason": "PREVIEW_INSUFFICIENT_FUND",
            },
            "order_configuration": {"market_market_ioc": {"quote_size": "10"}},
        },
    ),
    (
        "one_order",
        "a filled order of 2023-08: more digits than any increment, a message on an order that was never cancelled",
        {
            "order": {
                "order_id": "a6b8",
                "product_id": "ATOM-USD",
                "user_id": "2f8f",
                "order_configuration": {"market_market_ioc": {"quote_size": "5"}},
                "side": "BUY",
                "client_order_id": "2936",
                "status": "FILLED",
                "time_in_force": "IMMEDIATE_OR_CANCEL",
                "created_time": "2023-08-04T18:05:21.234994Z",
                "completion_percentage": "100",
                "filled_size": "0.5770494951509377",
                "average_filled_price": "8.5959999999999997",
                "fee": "",
                "number_of_fills": "2",
                "filled_value": "4.9603174603174603",
                "pending_cancel": False,
                "size_in_quote": True,
                "total_fees": "0.0396825396825397",
                "size_inclusive_of_fees": True,
                "total_value_after_fees": "5",
                "trigger_status": "INVALID_ORDER_TYPE",
                "order_type": "MARKET",
                "reject_reason": "REJECT_REASON_UNSPECIFIED",
                "settled": True,
                "product_type": "SPOT",
                "reject_message": "",
                "cancel_message": "Internal error",
                "order_placement_source": "RETAIL_ADVANCED",
                "outstanding_hold_amount": "0",
                "is_liquidation": False,
                "last_fill_time": "2023-08-04T18:05:21.351596698Z",
            }
        },
    ),
    (
        "error",
        "a public path that does not exist, 2026-07",
        {"error": "unknown", "error_details": "Not Found", "message": "Not Found"},
    ),
    (
        "throttled",
        "docs.cdp.coinbase.com Coinbase App rate limiting",
        {"errors": [{"id": "rate_limit_exceeded", "message": "Too many requests"}]},
    ),
]


@pytest.mark.parametrize(("kind", "source", "answer"), SEEN, ids=[source for _, source, _ in SEEN])
def test_answers_seen_of_the_real_venue_have_the_same_shape(kind: str, source: str, answer: Any) -> None:
    assert problems(documented.REST_SHAPES[kind], answer, source) == []


def test_real_candles_have_the_same_shape() -> None:
    path = Path(__file__).resolve().parents[2].parent / "shared/data/ta4j_coinbase"
    files = sorted(path.glob("*.json"))
    if not files:
        pytest.skip("real candles are not on this machine (../shared/data/ta4j_coinbase)")
    for file in files:
        rows = json.loads(file.read_text())["candles"]
        assert problems(documented.CANDLES, {"candles": rows[:200] + rows[-200:]}, file.name) == []


# --- the schemas themselves ---


@pytest.mark.parametrize("name", documented.SHAPES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_made_from_a_schema_is_valid_by_it(name: str, data: st.DataObject) -> None:
    shape = documented.SHAPES[name]
    assert list(Draft202012Validator(shape.schema).iter_errors(data.draw(valid(shape)))) == []


@pytest.mark.parametrize("name", ANSWERS)
def test_a_schema_refuses_what_lacks_a_required_field_and_reports_one_that_nobody_knows(name: str, bot: Bot) -> None:
    shape = ANSWERS[name]
    answer = bot.of(shape)[0]
    assert list(shape.unknown_fields(answer | {"surprise": 1})) == ["$.surprise"]
    for required in (field for field, rule in shape.fields.items() if rule.required):
        less = {field: value for field, value in answer.items() if field != required}
        assert not Draft202012Validator(shape.schema).is_valid(less)


def test_every_shape_says_where_it_is_documented_and_how_sure_we_are() -> None:
    counts: dict[Certainty, int] = defaultdict(int)
    for shape in documented.SHAPES.values():
        assert len(shape.source) > 10
        counts[shape.certainty] += 1
    assert counts[Certainty.DOCUMENTED] > 30
    print(documented.table())


# --- what nobody could confirm ---


def test_a_repeated_client_order_id_gets_the_first_order_not_verified(bot: Bot) -> None:
    limit = {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "1000.00"}}
    first = _post_order(bot.client, "repeated", limit)
    again = _post_order(bot.client, "repeated", {"market_market_ioc": {"base_size": "0.5"}})
    assert (again["success"], again["order_id"]) == (True, first["order_id"])


def test_the_bar_that_starts_at_end_is_in_the_answer_not_verified(bot: Bot) -> None:
    end_s = (int(time.time()) // 60 - 10) * 60
    candles = bot.client.get_candles(PRODUCT, str(end_s - 349 * 60), str(end_s), "ONE_MINUTE").candles
    assert (len(candles), int(candles[0]["start"])) == (350, end_s)


def test_cancelling_twice_is_a_duplicate_request_not_verified(bot: Bot) -> None:
    placed = _post_order(bot.client, "twice", {"limit_limit_gtc": {"base_size": "0.01", "limit_price": "1000.00"}})
    first, second = (bot.client.cancel_orders([placed["order_id"]]).results[0] for _ in range(2))
    assert (first.success, second.success, second.failure_reason) == (True, False, "DUPLICATE_CANCEL_REQUEST")


def test_the_hold_of_a_purchase_has_the_takers_fee_in_it_not_verified(bot: Bot) -> None:
    placed = _post_order(bot.client, "held", {"limit_limit_gtc": {"base_size": "1", "limit_price": "1000.00"}})
    found = bot.client.get_order(placed["order_id"]).order
    assert Decimal(found.outstanding_hold_amount) == Decimal("1006")
    bot.client.cancel_orders([placed["order_id"]])


def test_a_fill_is_in_base_units_and_its_sequence_is_its_time_not_verified(bot: Bot) -> None:
    bought = bot.client.market_order_buy("by-quote", PRODUCT, quote_size="100")
    (fill,) = bot.client.get_fills(order_ids=[bought.success_response["order_id"]]).fills[:1]
    assert fill.size_in_quote is False
    assert Decimal(fill.size) < 1
    assert fill.sequence_timestamp == fill.trade_time
