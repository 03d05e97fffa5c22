"""What the documented schemas allow, our venue client reads; all else is ``VenueGarbage`` or doubt, and nothing more.

The answers are made from the schemas (``coinbase_messages``) and go through the real SDK, so that what its response
classes do to them is part of the test. Only the socket is replaced.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.exchange_keys import open_credentials
from cluster.venue import Venue, VenueGarbage, VenueRejected, VenueUnknown, simulator_endpoint
from strategies.model import Granularity, Order, OrderStatus, OrderType, Side, TimeInForce
from tests.contract import coinbase_schemas as documented
from tests.contract.coinbase_messages import damaged, valid
from tests.contract.coinbase_schemas import Shape

ORDER_ID: Final = "11111111-2222-3333-4444-555555555555"
EXAMPLES: Final = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ORDER: Final = Order(
    client_order_id="ours-1",
    account="main",
    strategy="hand",
    product_id="BTC-USD",
    side=Side.BUY,
    type=OrderType.LIMIT,
    time_in_force=TimeInForce.GTC,
    quantity=Decimal("0.01"),
    limit_price=Decimal("1000.00"),
)


class Wire:
    """Answers every request with ``body``; a second page of a list is empty."""

    def __init__(self) -> None:
        self.body = b"{}"

    def send(self, request: requests.PreparedRequest, **_: Any) -> requests.Response:
        """What ``HTTPAdapter.send`` does, without a socket."""
        response = requests.Response()
        response.status_code = 200
        response.headers["X-Simulated"] = "1"
        response.request = request
        response.url = str(request.url)
        later = "cursor=" in str(request.url)
        response._content = b'{"orders":[],"fills":[],"accounts":[],"has_next":false}' if later else self.body
        return response


@pytest.fixture(scope="module")
def venue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Venue, Wire]]:
    folder: Path = tmp_path_factory.mktemp("exchange")
    open_credentials(folder, dt.datetime.now(dt.UTC))
    wire = Wire()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.adapters.HTTPAdapter, "send", lambda _, request, **given: wire.send(request, **given))
        client = Venue(simulator_endpoint("127.0.0.1:1", folder))
        yield client, wire
        client.close()


# Each read of the venue client: the shape that answers it and the call.
READS: Final[dict[str, tuple[Shape, Callable[[Venue], Any]]]] = {
    "server_time_ns": (documented.SERVER_TIME, lambda venue: venue.server_time_ns()),
    "products": (documented.PRODUCTS, lambda venue: venue.products()),
    "product": (documented.PRODUCT, lambda venue: venue.product("BTC-USD")),
    "product_book": (documented.PRODUCT_BOOK, lambda venue: venue.product_book("BTC-USD", 5)),
    "candles": (documented.CANDLES, lambda venue: venue.candles("BTC-USD", Granularity.ONE_MINUTE, 0, 18_000)),
    "best_bid_ask": (documented.BEST_BID_ASK, lambda venue: venue.best_bid_ask(["BTC-USD"])),
    "accounts": (documented.ACCOUNTS, lambda venue: venue.accounts()),
    "portfolios": (documented.PORTFOLIOS, lambda venue: venue.portfolios()),
    "fee_tier": (documented.TRANSACTION_SUMMARY, lambda venue: venue.fee_tier()),
    "key_permissions": (documented.KEY_PERMISSIONS, lambda venue: venue.key_permissions()),
    "order": (documented.ONE_ORDER, lambda venue: venue.order(ORDER_ID)),
    "orders": (documented.ORDERS, lambda venue: venue.orders(statuses=list(OrderStatus))),
    "open_orders": (documented.ORDERS, lambda venue: venue.open_orders()),
    "order_by_client_id": (documented.ORDERS, lambda venue: venue.order_by_client_id("ours-1")),
    "fills": (documented.FILLS, lambda venue: venue.fills()),
    "preview": (documented.PREVIEWED, lambda venue: venue.preview(ORDER)),
}
# Each call that changes something: doubt is VenueUnknown there, never VenueGarbage.
WRITES: Final[dict[str, tuple[list[Shape], Callable[[Venue], Any]]]] = {
    "create_order": ([documented.ACCEPTED, documented.REFUSED], lambda venue: venue.create_order(ORDER)),
    "cancel": ([documented.CANCELLED], lambda venue: venue.cancel([ORDER_ID])),
    "edit": ([documented.EDITED], lambda venue: venue.edit(ORDER_ID, Decimal("0.02"), Decimal("1000.01"))),
}


@pytest.mark.parametrize("name", READS)
@EXAMPLES
@given(data=st.data())
def test_a_damaged_answer_is_read_or_garbage(name: str, data: st.DataObject, venue: tuple[Venue, Wire]) -> None:
    shape, call = READS[name]
    client, wire = venue
    wire.body = _json(data.draw(damaged(shape)))
    with contextlib.suppress(VenueGarbage):
        call(client)


@pytest.mark.parametrize("name", WRITES)
@EXAMPLES
@given(data=st.data())
def test_a_damaged_answer_to_a_change_is_taken_refused_or_doubt(
    name: str, data: st.DataObject, venue: tuple[Venue, Wire]
) -> None:
    shapes, call = WRITES[name]
    client, wire = venue
    wire.body = _json(data.draw(st.one_of([damaged(shape) for shape in shapes])))
    with contextlib.suppress(VenueUnknown, VenueRejected):
        call(client)


NO_OBJECTS: Final = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "number": b"1",
    "text": b'"text"',
    "html": b"<html>busy</html>",
    "cut off": b'{"orders":',
    "not utf-8": b"\xff",
    "long number": b'{"epochMillis":' + b"9" * 5_000 + b"}",
    "deep": b'{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "less deep": b'{"deep":' + b"[" * 900 + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("body", NO_OBJECTS)
def test_what_is_no_object_is_garbage(name: str, body: str, venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    wire.body = NO_OBJECTS[body]
    with pytest.raises(VenueGarbage):
        READS[name][1](client)


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("body", NO_OBJECTS)
def test_a_change_answered_by_no_object_is_in_doubt(name: str, body: str, venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    wire.body = NO_OBJECTS[body]
    with pytest.raises(VenueUnknown):
        WRITES[name][1](client)


def test_null_where_the_sdk_wants_an_object_leaves_doubt_not_a_lost_order(venue: tuple[Venue, Wire]) -> None:
    # The SDK's class unpacks the configuration without looking; the order itself was accepted.
    client, wire = venue
    accepted = {"success": True, "success_response": {"order_id": ORDER_ID, "client_order_id": ORDER.client_order_id}}
    wire.body = _json(accepted | {"order_configuration": None})
    with pytest.raises(VenueUnknown):
        client.create_order(ORDER)


@EXAMPLES
@given(given_order=valid(documented.ORDER))
def test_every_documented_order_is_read(given_order: dict[str, Any], venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    wire.body = _json({"orders": [given_order], "has_next": False})
    if "filled_size" not in given_order:
        # Optional in the reference, in every recording; an order that does not say how much it filled is not believed.
        with pytest.raises(VenueGarbage):
            client.orders()
        return
    (found,) = client.orders()
    assert (found.venue_order_id, found.client_order_id) == (given_order["order_id"], given_order["client_order_id"])
    assert found.raw_status == given_order["status"]
    assert found.filled_quantity == Decimal(given_order.get("filled_size") or "0")
    ((name, asked),) = given_order["order_configuration"].items()
    if found.type is not None and asked.get("limit_price") is not None:
        assert found.limit_price in (None, Decimal(asked["limit_price"])), name
    assert found.type is None or name in documented.CONFIGURATIONS


@EXAMPLES
@given(given_fill=valid(documented.FILL))
def test_every_documented_fill_with_what_a_fill_needs_is_read(
    given_fill: dict[str, Any], venue: tuple[Venue, Wire]
) -> None:
    client, wire = venue
    needed = {
        "trade_id": "t1",
        "order_id": ORDER_ID,
        "trade_time": "2026-01-01T00:00:00.123456789Z",
        "price": "0.00000001",
        "size": "0.00000001",
        "commission": "-0.5",
        "product_id": "BTC-USD",
        "liquidity_indicator": "MAKER",
        "side": "SELL",
    }
    body = needed | given_fill
    client._remember(body["order_id"], "ours-1")
    wire.body = _json({"fills": [body], "cursor": ""})
    if body.get("trade_type", "FILL") != "FILL":
        # A reversal counted as a fill would double what it takes back.
        assert client.fills() == []
        return
    (found,) = client.fills()
    assert (found.trade_id, found.venue_order_id, found.client_order_id) == (
        body["trade_id"],
        body["order_id"],
        "ours-1",
    )
    assert (found.price, found.quantity) == (Decimal(body["price"]), Decimal(body["size"]))
    assert found.fee == Decimal(body["commission"])


@EXAMPLES
@given(given_account=valid(documented.ACCOUNT), available=valid(documented.AMOUNT_TEXT))
def test_every_documented_account_with_balances_is_read(
    given_account: dict[str, Any], available: str, venue: tuple[Venue, Wire]
) -> None:
    client, wire = venue
    currency = given_account.get("currency", "USD")
    money = {"value": available, "currency": currency}
    needed = {"uuid": "u", "currency": currency, "available_balance": money, "hold": money}
    wire.body = _json({"accounts": [given_account | needed], "has_next": False})
    (found,) = client.accounts()
    assert (found.currency, found.available, found.hold) == (currency, Decimal(available), Decimal(available))


@EXAMPLES
@given(preview=valid(documented.PREVIEWED))
def test_every_documented_preview_is_read(preview: dict[str, Any], venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    if isinstance(preview["base_size"], int | float) and preview["base_size"] < 0:
        preview["base_size"] = 0.001
    wire.body = _json(preview | dict.fromkeys(("order_total", "commission_total", "best_bid", "best_ask"), "1.5"))
    found = client.preview(ORDER)
    assert found.errors == tuple(preview["errs"])
    assert found.warnings == tuple(preview["warning"])
    assert (found.notional, found.quantity) == (Decimal("1.5"), Decimal(str(preview["base_size"] or "0")))


@EXAMPLES
@given(accepted=valid(documented.ACCEPTED))
def test_every_documented_acceptance_of_our_order_is_read(accepted: dict[str, Any], venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    accepted["success_response"] |= {"order_id": ORDER_ID, "client_order_id": ORDER.client_order_id}
    wire.body = _json(accepted)
    assert client.create_order(ORDER) == ORDER_ID


@EXAMPLES
@given(refused=valid(documented.REFUSED))
def test_every_documented_refusal_is_a_rejection_with_the_most_telling_code(
    refused: dict[str, Any], venue: tuple[Venue, Wire]
) -> None:
    client, wire = venue
    wire.body = _json(refused)
    fields = refused["error_response"]
    telling = [fields.get(name) for name in ("error", "new_order_failure_reason", "preview_failure_reason")]
    known = [code for code in telling if code and not code.startswith("UNKNOWN_")]
    with pytest.raises((VenueRejected, VenueUnknown)) as caught:
        client.create_order(ORDER)
    duplicate = known[:1] == ["DUPLICATE_CLIENT_ORDER_ID"]
    assert isinstance(caught.value, VenueUnknown if duplicate else VenueRejected)
    if known and isinstance(caught.value, VenueRejected):
        assert caught.value.code == known[0]


def test_an_id_the_venue_knows_already_is_doubt_not_a_refusal(venue: tuple[Venue, Wire]) -> None:
    # Documented as a reason of its own. Were it a refusal, the desk would free what a living order still needs.
    client, wire = venue
    wire.body = _json({"success": False, "error_response": {"new_order_failure_reason": "DUPLICATE_CLIENT_ORDER_ID"}})
    with pytest.raises(VenueUnknown):
        client.create_order(ORDER)


@EXAMPLES
@given(results=st.lists(valid(documented.CANCEL_RESULT), max_size=4))
def test_cancel_results_are_those_of_the_orders_asked_for(
    results: list[dict[str, Any]], venue: tuple[Venue, Wire]
) -> None:
    client, wire = venue
    wire.body = _json({"results": results})
    answered = {each["order_id"]: each for each in results}
    if not answered:
        with pytest.raises(VenueUnknown):
            client.cancel([ORDER_ID])
        return
    asked = list(answered)
    found = client.cancel(asked)
    assert found == {each: answered[each]["success"] or answered[each]["failure_reason"] for each in asked}


@EXAMPLES
@given(answer=valid(documented.EDITED))
def test_every_documented_answer_to_an_edit_is_yes_or_a_reason(
    answer: dict[str, Any], venue: tuple[Venue, Wire]
) -> None:
    client, wire = venue
    wire.body = _json(answer)
    reasons = {each.get("edit_failure_reason") for each in answer.get("errors", [])[:1]}
    if answer["success"]:
        client.edit(ORDER_ID, Decimal("0.02"), Decimal("1000.01"))
    elif "EDIT_REQUEST_EQUAL_TO_ORIGINAL_REQUEST" in reasons:
        # Perhaps our own earlier edit: it asks the order, which this wire cannot answer.
        with pytest.raises((VenueRejected, VenueUnknown)):
            client.edit(ORDER_ID, Decimal("0.02"), Decimal("1000.01"))
    else:
        with pytest.raises(VenueRejected) as caught:
            client.edit(ORDER_ID, Decimal("0.02"), Decimal("1000.01"))
        assert caught.value.code


@EXAMPLES
@given(product=valid(documented.PRODUCT))
def test_every_documented_spot_product_is_read(product: dict[str, Any], venue: tuple[Venue, Wire]) -> None:
    client, wire = venue
    spot = {"product_id": "BTC-USD", "base_currency_id": "BTC", "quote_currency_id": "USD", "view_only": False}
    wire.body = _json(product | spot)
    try:
        found = client.product("BTC-USD")
    except VenueGarbage:
        # Sizes that fit no increment are refused by the noun itself.
        assert not _increments_fit(product)
        return
    assert found.base_increment == Decimal(product["base_increment"])
    assert found.quote_increment == Decimal(product.get("price_increment", product["quote_increment"]))
    assert found.cancel_only is product["cancel_only"]


def _increments_fit(product: dict[str, Any]) -> bool:
    def pair(low: str, high: str) -> bool:
        return Decimal(product[low]) <= Decimal(product[high])

    sizes = all(Decimal(product[name]) > 0 for name in ("base_min_size", "base_max_size", "quote_max_size"))
    return pair("base_min_size", "base_max_size") and pair("quote_min_size", "quote_max_size") and sizes


def _json(answer: Any) -> bytes:
    # NaN and lone surrogates as a careless sender writes them.
    return json.dumps(answer).encode("utf-8", "surrogatepass")
