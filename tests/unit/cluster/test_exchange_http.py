"""The HTTP face of the exchange simulator, called as an ASGI application: rules, pages, filters, bounds."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import exchange_http
from cluster.exchange_book import Exchange, Fees
from cluster.exchange_history import DAY_S, MINUTE_S, History
from cluster.exchange_http import BODY_BYTES_MAX, PREFIX, Face
from cluster.exchange_journal import Journal
from cluster.exchange_keys import Unauthorised, open_credentials
from cluster.exchange_ticket import Kind
from strategies.model import NS_PER_S

NOW_NS = 1_741_613_841_500_000_000
NOW_S = NOW_NS // NS_PER_S
TODAY_S = NOW_S // DAY_S * DAY_S
HISTORY = History(7)


class Client:
    """Sends requests straight into the application; private paths need no token here (tokens have their own tests)."""

    def __init__(self, folder: Path) -> None:
        deposits = {"USD": Decimal(1_000_000), "BTC": Decimal(10)}
        self.now_ns = NOW_NS
        exchange = Exchange(HISTORY, Journal(folder / "journal.jsonl"), deposits, Fees(), NOW_NS)
        credentials = open_credentials(folder, dt.datetime.now(dt.UTC))
        self.face = Face(exchange, credentials, TODAY_S - 30 * DAY_S, clock=lambda: self.now_ns)
        self.sim_token = credentials.sim_token

    def send(
        self, method: str, path: str, body: bytes = b"", query: str = "", token: str = ""
    ) -> tuple[int, Any, dict[str, str]]:
        headers = [(b"host", b"exchange"), (b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": headers}
        chunks = [body[i : i + 65_536] for i in range(0, len(body), 65_536)] or [b""]
        incoming = [{"type": "http.request", "body": c, "more_body": i < len(chunks)} for i, c in enumerate(chunks, 1)]
        sent: list[Any] = []

        async def receive() -> Any:
            return incoming.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.face(scope, receive, send))
        start, content = sent
        headers_sent = {name.decode(): value.decode() for name, value in start["headers"]}
        text = content["body"].decode()
        is_json = headers_sent["content-type"] == "application/json"
        return start["status"], json.loads(text) if is_json else text, headers_sent

    def get(self, path: str, **query: Any) -> Any:
        """A GET of a brokerage path that must succeed."""
        status, answer, _ = self.send("GET", PREFIX + path, b"{}", urlencode(query, doseq=True))
        assert status == 200, answer
        return answer

    def refused(self, path: str, **query: Any) -> tuple[int, str]:
        """Status and message of a GET that must not succeed."""
        status, answer, _ = self.send("GET", PREFIX + path, b"", urlencode(query, doseq=True))
        assert status >= 400
        return status, answer["message"]

    def post(self, path: str, body: Any) -> Any:
        status, answer, _ = self.send("POST", PREFIX + path, json.dumps(body).encode())
        assert status == 200, answer
        return answer

    def place(self, client_order_id: str, side: str = "BUY", product_id: str = "BTC-USD", **kinds: Any) -> str:
        """Place an order by its configuration and return the exchange's id."""
        configuration = kinds or {"market_market_ioc": {"base_size": "0.001"}}
        body = {"client_order_id": client_order_id, "product_id": product_id, "side": side}
        answer = self.post("/orders", body | {"order_configuration": configuration})
        assert answer["success"], answer
        return str(answer["order_id"])


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(exchange_http, "check_token", lambda *_: "somebody")
    return Client(tmp_path)


def test_every_answer_says_that_it_is_simulated(client: Client) -> None:
    for method, path in (
        ("GET", "/healthz"),
        ("GET", PREFIX + "/time"),
        ("GET", "/nowhere"),
        ("PUT", PREFIX + "/orders"),
    ):
        _, _, headers = client.send(method, path)
        assert headers["x-simulated"] == "1"
        assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    "path", ["/healthz", *(PREFIX + p for p in ("/time", "/market/products", "/market/products/BTC-USD"))]
)
def test_public_paths_need_no_token(tmp_path: Path, path: str) -> None:
    assert Client(tmp_path).send("GET", path)[0] == 200


def test_every_other_path_needs_one(tmp_path: Path) -> None:
    client = Client(tmp_path)
    private = [route for route in exchange_http._ROUTES if not route.public]
    assert len(private) == 32
    for route in private:
        path = route.pattern.pattern.replace("\\", "").replace("([^/]+)", "x")
        assert client.send(route.method, path, b"{}")[:2] == (401, "Unauthorized\n")
        assert client.send(route.method, path, b"{}", token="wrong")[:2] == (401, "Unauthorized\n")


def test_the_control_surface_opens_with_its_own_token_and_nothing_else_does(tmp_path: Path) -> None:
    client = Client(tmp_path)
    body = json.dumps({"product_id": "BTC-USD", "price": "50000.00"}).encode()
    assert client.send("POST", "/sim/price", body, token=client.sim_token)[0] == 200
    assert client.send("GET", PREFIX + "/accounts", token=client.sim_token)[0] == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/healthz", 404),
        ("DELETE", PREFIX + "/orders", 404),
        ("GET", PREFIX + "/orders", 404),
        ("GET", PREFIX + "/portfolios/nobody", 404),
        ("GET", PREFIX + "/market/products/NO-USD", 404),
        ("GET", PREFIX + "/market/products/BTC-USD/", 404),
        ("GET", PREFIX + "/orders/historical/nobody", 404),
        ("GET", PREFIX + "/accounts/nobody", 404),
    ],
)
def test_what_is_not_there_is_404_with_a_code(client: Client, method: str, path: str, status: int) -> None:
    got, answer, _ = client.send(method, path)
    assert (got, answer["error"]) == (status, "NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"not json", 400),
        (b"[]", 400),
        (b"null", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"client_order_id": 5}', 400),
        (b"{}", 400),
        (b'{"client_order_id": ""}', 400),
        (json.dumps({"client_order_id": "x" * 129}).encode(), 400),
        (b" " * (BODY_BYTES_MAX + 1), 413),
    ],
)
def test_a_bad_body_is_refused(client: Client, body: bytes, status: int) -> None:
    got, answer, _ = client.send("POST", PREFIX + "/orders", body)
    assert (got, answer["error"]) == (status, "INVALID_ARGUMENT")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["1", "BUY", "BTC-USD"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("base_size", "quote_size", "limit_price", "post_only", "end_time"), JSON),
)
BODIES = st.fixed_dictionaries(
    {"client_order_id": st.text(max_size=3)},
    optional={
        "product_id": st.just("BTC-USD") | JSON,
        "side": st.just("BUY") | JSON,
        "order_configuration": st.dictionaries(st.sampled_from([*Kind, "x"]), FIELDS | JSON, max_size=2) | JSON,
        "order_ids": JSON,
        "price": JSON,
        **dict.fromkeys(
            ("rules", "offset_ms", "requests_per_s", "order_id", "lots", "quantity", "repeat", "size"), JSON
        ),
        **dict.fromkeys(("currency", "amount", "status", "is_disabled", "liquidity", "stop_price"), JSON),
    },
)


POSTS = [route.pattern.pattern.replace("\\", "") for route in exchange_http._ROUTES if route.method == "POST"]


@given(body=BODIES | JSON, path=st.sampled_from(POSTS))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_breaks_it(client: Client, body: Any, path: str) -> None:
    status, answer, _ = client.send("POST", path, json.dumps(body).encode(), token=client.sim_token)
    assert status in {200, 400, 404}, answer


@given(
    path=st.sampled_from([route.pattern.pattern for route in exchange_http._ROUTES if route.method == "GET"]),
    query=st.dictionaries(
        st.sampled_from(["limit", "cursor", "start", "end", "granularity", "order_status", "start_date", "end_date"])
        | st.sampled_from(["product_ids", "product_id", "start_sequence_timestamp", "offset", "order_side"]),
        st.text(max_size=12)
        | st.sampled_from(["1", "-1", "ONE_DAY", "BTC-USD", "OPEN", "9" * 11, "2025-01-01T00:00:00Z"]),
        max_size=4,
    ),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_breaks_it(client: Client, path: str, query: dict[str, str]) -> None:
    path = path.replace("\\", "").replace("([^/]+)", "BTC-USD")
    status, answer, _ = client.send("GET", path, b"", urlencode(query), token=client.sim_token)
    assert status in {200, 400, 404}, answer


def test_a_long_query_is_refused(client: Client) -> None:
    assert client.send("GET", PREFIX + "/time", query="x" * 40_000)[0] == 414


def test_a_failure_inside_is_500_and_ends_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(client.face.exchange, "book", broken)
        assert client.send("GET", PREFIX + "/best_bid_ask")[0] == 500
    assert client.send("GET", PREFIX + "/best_bid_ask")[0] == 200


def test_the_reason_of_a_401_is_not_told(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> str:
        raise Unauthorised("exp: not valid for this request")

    monkeypatch.setattr(exchange_http, "check_token", refuse)
    assert client.send("GET", PREFIX + "/accounts")[:2] == (401, "Unauthorized\n")


# --- candles ---


def candles(client: Client, start_s: int, end_s: int, granularity: str = "ONE_MINUTE", **query: Any) -> list[int]:
    span = {"start": str(start_s), "end": str(end_s), "granularity": granularity}
    answer = client.get("/market/products/BTC-USD/candles", **span, **query)
    return [int(candle["start"]) for candle in answer["candles"]]


def test_350_candles_are_a_page_newest_first(client: Client) -> None:
    starts = candles(client, TODAY_S, TODAY_S + 349 * MINUTE_S)
    assert starts == [TODAY_S + i * MINUTE_S for i in reversed(range(350))]
    assert candles(client, TODAY_S, TODAY_S + 349 * MINUTE_S, limit=2) == starts[:2]


def test_one_more_is_refused_in_coinbases_words(client: Client) -> None:
    span = {"start": TODAY_S, "end": TODAY_S + 350 * MINUTE_S, "granularity": "ONE_MINUTE"}
    status, message = client.refused("/market/products/BTC-USD/candles", **span)
    assert (status, "number of candles requested should be less than 350" in message) == (400, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"granularity": "TEN_MINUTE"},
        {"granularity": ""},
        {"start": ""},
        {"start": "-1"},
        {"start": "1e9"},
        {"start": "NaN"},
        {"end": "9" * 30},
        {"start": str(TODAY_S + 61)},
        {"limit": "0"},
        {"limit": "351"},
    ],
)
def test_a_bad_span_is_refused(client: Client, changes: dict[str, str]) -> None:
    span = {"start": str(TODAY_S), "end": str(TODAY_S + 60), "granularity": "ONE_MINUTE"}
    status, message = client.refused("/market/products/BTC-USD/candles", **(span | changes))
    assert (status, "invalid" in message) == (400, True)


def test_candles_end_with_the_running_one_and_begin_with_history(client: Client) -> None:
    assert candles(client, NOW_S - 30, NOW_S + 86_400 * 10, "ONE_DAY") == []
    assert candles(client, TODAY_S, NOW_S + 86_400 * 10, "ONE_DAY") == [TODAY_S]
    assert candles(client, TODAY_S - 300 * DAY_S, TODAY_S, "ONE_DAY")[-1] == TODAY_S - 30 * DAY_S


def test_the_live_price_lies_in_the_running_candle(client: Client) -> None:
    span = {"start": str(NOW_S // 60 * 60), "end": str(NOW_S), "granularity": "ONE_MINUTE"}
    (running,) = client.get("/products/BTC-USD/candles", **span)["candles"]
    price = Decimal(client.get("/products/BTC-USD")["price"])
    assert Decimal(running["low"]) <= price <= Decimal(running["high"])
    book = client.get("/product_book", product_id="BTC-USD", limit=3)
    assert Decimal(book["mid_market"]) == price
    assert len(book["pricebook"]["bids"]) == len(book["pricebook"]["asks"]) == 3


# --- lists ---


def test_pages_join_to_the_whole_list(client: Client) -> None:
    placed = [client.place(f"id-{i}") for i in range(7)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = client.get("/orders/historical/batch", limit=3, cursor=cursor)
        seen += [order["order_id"] for order in page["orders"]]
        cursor = page["cursor"]
        assert page["has_next"] is bool(cursor)
        if not cursor:
            break
    assert seen == placed[::-1]


def test_fills_page_without_has_next_and_are_filtered_by_order(client: Client) -> None:
    for i in range(5):
        client.place(f"id-{i}")
    first = client.get("/orders/historical/fills", limit=2)
    rest = client.get("/orders/historical/fills", limit=1000, cursor=first["cursor"])
    everything = client.get("/orders/historical/fills")["fills"]
    assert first["fills"] + rest["fills"] == everything
    assert rest["cursor"] == ""
    wanted = everything[3]["order_id"]
    mine = client.get("/orders/historical/fills", order_ids=[wanted, "nobody"])["fills"]
    assert {fill["order_id"] for fill in mine} == {wanted}
    assert [f for f in everything if f["order_id"] == wanted] == mine


def test_new_orders_between_two_pages_neither_repeat_nor_hide_one(client: Client) -> None:
    placed = [client.place(f"id-{i}") for i in range(4)]
    first = client.get("/orders/historical/batch", limit=2)
    client.place("late")
    second = client.get("/orders/historical/batch", limit=2, cursor=first["cursor"])
    assert [o["order_id"] for o in first["orders"] + second["orders"]] == placed[::-1]


def test_orders_are_filtered(client: Client) -> None:
    resting = client.place("resting", limit_limit_gtc={"base_size": "0.001", "limit_price": "1000.00"})
    client.now_ns += 60 * NS_PER_S
    bought = client.place("bought")
    ethereum = client.place("ethereum", "BUY", "ETH-USD", market_market_ioc={"base_size": "0.001"})
    sold = client.place("sold", "SELL")

    def found(**query: Any) -> list[str]:
        return [order["order_id"] for order in client.get("/orders/historical/batch", **query)["orders"]]

    minute_later = "2025-03-10T13:38:00Z"
    assert found() == [sold, ethereum, bought, resting]
    assert found(product_ids=["ETH-USD"]) == [ethereum]
    assert found(product_ids=["ETH-USD", "BTC-USD"]) == [sold, ethereum, bought, resting]
    assert found(order_side="SELL") == [sold]
    assert found(order_ids=[bought, "nobody"]) == [bought]
    assert found(order_status="FILLED") == [sold, ethereum, bought]
    assert found(order_status=["FILLED", "CANCELLED"]) == [sold, ethereum, bought]
    assert found(start_date=minute_later) == [sold, ethereum, bought]
    assert found(end_date=minute_later) == [resting]
    assert found(order_status="OPEN") == [resting]
    assert found(order_status="OPEN", start_date=minute_later) == [resting]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/orders/historical/batch", {"order_status": ["OPEN", "FILLED"]}),
        ("/orders/historical/batch", {"order_status": "open"}),
        ("/orders/historical/batch", {"limit": "0"}),
        ("/orders/historical/batch", {"limit": "ten"}),
        ("/orders/historical/batch", {"cursor": "999"}),
        ("/orders/historical/batch", {"cursor": "abc"}),
        ("/orders/historical/batch", {"start_date": "yesterday"}),
        ("/orders/historical/batch", {"start_date": "2025-03-10T13:38:00"}),
        ("/orders/historical/fills", {"start_sequence_timestamp": "0001-01-01T00:00:00Z"}),
        ("/orders/historical/fills", {"cursor": "-1"}),
        ("/accounts", {"cursor": "5"}),
        ("/accounts", {"limit": "251"}),
        ("/product_book", {"product_id": "BTC-USD", "aggregation_price_increment": "1"}),
    ],
)
def test_a_bad_filter_is_refused(client: Client, path: str, query: dict[str, Any]) -> None:
    assert client.refused(path, **query)[0] == 400


@pytest.mark.parametrize("order_ids", [None, [], "abc", [5], [None], ["x"] * 101])
def test_a_bad_list_to_cancel_is_refused(client: Client, order_ids: Any) -> None:
    body = json.dumps({"order_ids": order_ids}).encode()
    assert client.send("POST", PREFIX + "/orders/batch_cancel", body)[0] == 400


def test_accounts_page(client: Client) -> None:
    first = client.get("/accounts", limit=1)
    second = client.get("/accounts", limit=3, cursor=first["cursor"])
    assert [first["has_next"], second["has_next"]] == [True, False]
    assert [a["currency"] for page in (first, second) for a in page["accounts"]] == ["USD", "BTC", "ETH", "SOL"]
    identity = first["accounts"][0]["uuid"]
    assert client.get(f"/accounts/{identity}")["account"] == first["accounts"][0]


def test_public_trades_go_back_second_by_second(client: Client) -> None:
    trades = client.get("/market/products/BTC-USD/ticker", limit=1000)["trades"]
    assert [int(trade["trade_id"]) for trade in trades] == [NOW_S - i for i in range(100)]
    span = {"limit": 1000, "start": NOW_S - 500, "end": NOW_S - 490}
    earlier = client.get("/market/products/BTC-USD/ticker", **span)["trades"]
    assert [int(trade["trade_id"]) for trade in earlier] == [NOW_S - 490 - i for i in range(11)]


# --- pushed prices ---


def test_a_pushed_price_holds_until_it_is_let_go(client: Client) -> None:
    path = client.get("/products/BTC-USD")["price"]
    assert client.face.exchange.push_price("BTC-USD", 5_000_000, NOW_NS) == 0
    client.now_ns += 30 * NS_PER_S
    assert client.get("/products/BTC-USD")["price"] == "50000.00"
    body = json.dumps({"product_id": "BTC-USD", "price": None}).encode()
    status, answer, _ = client.send("POST", "/sim/price", body, token=client.sim_token)
    assert (status, answer["fills"]) == (200, 0)
    assert abs(Decimal(client.get("/products/BTC-USD")["price"]) / Decimal(path) - 1) < Decimal("0.01")


@pytest.mark.parametrize("price", ["0", "0.01", "-1", "NaN", "1e5", "", "50000.001", 50_000, "9" * 12, ["1"]])
def test_a_bad_pushed_price_is_refused(client: Client, price: Any) -> None:
    body = json.dumps({"product_id": "BTC-USD", "price": price}).encode()
    assert client.send("POST", "/sim/price", body, token=client.sim_token)[0] == 400
    assert client.face.exchange._pinned == {}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("attached_order_configuration", {"trigger_bracket_gtc": {}}, "UNSUPPORTED_ORDER_CONFIGURATION"),
        ("leverage", "2", "INVALID_LEVERAGE"),
        ("margin_type", "CROSS", "INVALID_MARGIN_TYPE"),
        ("retail_portfolio_id", "11111111-2222-3333-4444-555555555555", "INVALID_REQUEST"),
    ],
)
def test_what_would_change_an_orders_meaning_is_refused(client: Client, field: str, value: Any, code: str) -> None:
    body = {"client_order_id": "x", "product_id": "BTC-USD", "side": "BUY", field: value}
    body["order_configuration"] = {"market_market_ioc": {"base_size": "0.001"}}
    answer = client.post("/orders", body)
    assert (answer["success"], answer["error_response"]["error"]) == (False, code)
    assert client.post("/orders/preview", body)["errs"]
    assert client.face.exchange.order_list == []
