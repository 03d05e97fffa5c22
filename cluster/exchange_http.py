"""The HTTP face of the exchange simulator: Coinbase Advanced Trade's REST paths as a bare ASGI application.

A request is answered completely before the next one is looked at, so no state needs a lock. Beside Coinbase's own paths
there are ``GET /healthz`` and, for tests only, ``POST /sim/price`` (``Face.push_price``).
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from urllib.parse import parse_qs

from cluster import exchange_shapes as shapes
from cluster.exchange_book import Exchange, SimFill, SimOrder, State
from cluster.exchange_history import DAY_S, MARKETS
from cluster.exchange_keys import Credentials, Unauthorised, check_token
from cluster.exchange_ticket import PRICE_TICKS_MAX, Refusal, read_ticket
from cluster.exchange_ws import Hub
from strategies.model import NS_PER_S, Granularity, IncrementError

PREFIX: Final = "/api/v3/brokerage"
CANDLES_MAX: Final = 350
BODY_BYTES_MAX: Final = 1_000_000
QUERY_BYTES_MAX: Final = 32_768
_TRADES_MAX: Final = 100
_CANCELS_MAX: Final = 100
_CLIENT_ORDER_ID_MAX: Final = 128

Message = MutableMapping[str, Any]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """A request after its token was checked. ``query`` has every value of every key, ``body`` the parsed JSON."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: dict[str, Any]
    now_ns: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: JSON (an object), or plain text."""

    status: int
    content: shapes.Json | str
    headers: dict[str, str] = field(default_factory=dict)


class RequestError(Exception):
    """The request cannot be answered; carries the answer to send instead."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.answer = Answer(status, shapes.error(code, message))


class Face:
    """The HTTP face of one exchange: an ASGI application."""

    def __init__(
        self,
        exchange: Exchange,
        credentials: Credentials,
        first_s: int,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        """``first_s`` is where candle history begins; ``clock`` gives nanoseconds UTC."""
        self.exchange = exchange
        self.credentials = credentials
        self.first_s = first_s
        self.clock = clock
        self.hub = Hub(exchange, credentials, first_s, clock)
        self._day_stats: dict[str, tuple[int, Any, Any]] = {}

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """ASGI entry for requests and WebSockets."""
        if scope["type"] == "websocket":
            await self.hub.serve(scope, receive, send)
            return
        body = await _read_body(receive)
        answer = self._safe_answer(scope, body)
        if scope["method"] != "GET":
            try:
                await self.exchange.synced()
            except OSError:
                # The client must not take for done what a crash would undo.
                _log.exception("the journal cannot be written")
                answer = Answer(500, shapes.error("INTERNAL", "the simulator failed; its log says why"))
        text = answer.content if isinstance(answer.content, str) else json.dumps(answer.content, separators=(",", ":"))
        payload = text.encode()
        kind = b"text/plain; charset=utf-8" if isinstance(answer.content, str) else b"application/json"
        headers = [(b"content-type", kind), (b"content-length", str(len(payload)).encode()), (b"x-simulated", b"1")]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def _safe_answer(self, scope: MutableMapping[str, Any], body: bytes | None) -> Answer:
        try:
            return self.answer(scope, body)
        except RequestError as refused:
            return refused.answer
        except Exception:  # noqa: BLE001 - the loop's edge: one bad request must not end the exchange
            _log.exception("request failed: %s %s", scope["method"], scope["path"])
            return Answer(500, shapes.error("INTERNAL", "the simulator failed; its log says why"))

    def answer(self, scope: MutableMapping[str, Any], body: bytes | None) -> Answer:
        """Answer one request; raises ``RequestError``. ``body`` is None where it was too large."""
        method, path = str(scope["method"]), str(scope["path"])
        if body is None:
            raise RequestError(413, "INVALID_ARGUMENT", f"body: expected at most {BODY_BYTES_MAX} bytes")
        if len(scope["query_string"]) > QUERY_BYTES_MAX:
            raise RequestError(414, "INVALID_ARGUMENT", f"query: expected at most {QUERY_BYTES_MAX} bytes")
        # Faults on demand (latency, 429, 5xx, HTML, accept-then-drop) belong here, before and after the route is run.
        if path == "/healthz" and method == "GET":
            return Answer(200, {"status": "ok"})
        for route in _ROUTES:
            match = route.pattern.fullmatch(path)
            if match and route.method == method:
                now_ns = self.clock()
                if not route.public:
                    self._authorise(scope, method, path, now_ns, route.control)
                    self.exchange.advance(now_ns)
                query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
                request = Request(method, path, query, _parse_body(body), now_ns)
                return Answer(200, route.run(self, request, *match.groups()))
        raise RequestError(404, "NOT_FOUND", f"{method} {path}: not simulated")

    def _authorise(self, scope: MutableMapping[str, Any], method: str, path: str, now_ns: int, control: bool) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if control and self.credentials.is_sim_token(token):
            return
        host = headers.get(b"host", "")
        try:
            # A scheme other than Bearer leaves no token to check, which fails like any bad one.
            given = token if scheme == "Bearer" else ""
            check_token(given, self.credentials.keys, method, host, path, now_ns / NS_PER_S)
        except Unauthorised as error:
            _log.info("401 for %s %s: %s", method, path, error)
            refused = RequestError(401, "", "")
            refused.answer = Answer(401, "Unauthorized\n")
            raise refused from None

    # --- public market data ---

    def server_time(self, request: Request) -> shapes.Json:
        """GET /time."""
        return shapes.server_time(request.now_ns)

    def list_products(self, request: Request) -> shapes.Json:
        """GET /products: all are SPOT; another product_type finds nothing."""
        wanted = request.query.get("product_ids") or list(MARKETS)
        spot = _one(request, "product_type", "SPOT") in {"SPOT", "UNKNOWN_PRODUCT_TYPE"}
        found = [self._product(name, request.now_ns) for name in wanted if name in MARKETS and spot]
        offset = _integer(request, "offset", 0, 0, 1_000_000)
        limit = _integer(request, "limit", 250, 1, 1_000)
        return {"products": found[offset : offset + limit], "num_products": len(found)}

    def get_product(self, request: Request, product_id: str) -> shapes.Json:
        """GET /products/{id}."""
        return self._product(_known(product_id), request.now_ns)

    def best_bid_ask(self, request: Request) -> shapes.Json:
        """GET /best_bid_ask: one level a side, of all products where none is named."""
        names = request.query.get("product_ids") or list(MARKETS)
        books = [self.exchange.book(_known(name), request.now_ns) for name in names]
        return {"pricebooks": [shapes.pricebook(book, 1) for book in books]}

    def product_book(self, request: Request) -> shapes.Json:
        """GET /product_book: the seeded book, without our own resting orders."""
        if "aggregation_price_increment" in request.query:
            raise RequestError(400, "INVALID_ARGUMENT", "aggregation_price_increment: not simulated")
        limit = _integer(request, "limit", 50, 1, 1_000)
        return shapes.product_book(self.exchange.book(_known(_one(request, "product_id")), request.now_ns), limit)

    def candles(self, request: Request, product_id: str) -> shapes.Json:
        """At most 350 candles whose start lies in ``[start, end]``; more is refused, as Coinbase does."""
        name = _known(product_id)
        try:
            granularity = Granularity(_one(request, "granularity"))
        except ValueError:
            raise RequestError(400, "INVALID_ARGUMENT", "granularity argument is invalid") from None
        start_s = _integer(request, "start", None, 0, 10**11)
        end_s = _integer(request, "end", None, 0, 10**11)
        limit = _integer(request, "limit", CANDLES_MAX, 1, CANDLES_MAX)
        length_s = granularity.seconds
        asked = end_s // length_s - -(-start_s // length_s) + 1
        if start_s > end_s or asked > CANDLES_MAX:
            rule = "start must be before end" if start_s > end_s else "number of candles requested should be less than"
            suffix = "" if start_s > end_s else f" {CANDLES_MAX}"
            raise RequestError(400, "INVALID_ARGUMENT", f"start and end argument is invalid - {rule}{suffix}")
        series = self.exchange.history.candles(name, granularity, start_s, end_s + 1, request.now_ns, self.first_s)
        body = shapes.candles(name, series)
        return {"candles": body["candles"][:limit]}

    def market_trades(self, request: Request, product_id: str) -> shapes.Json:
        """GET /products/{id}/ticker: one seeded trade a second, at most 100."""
        name = _known(product_id)
        limit = min(_integer(request, "limit", _TRADES_MAX, 1, 1_000), _TRADES_MAX)
        now_s = request.now_ns // NS_PER_S
        newest = min(now_s, _integer(request, "end", now_s, 0, 10**11))
        oldest = max(self.first_s, newest - limit + 1, _integer(request, "start", 0, 0, 10**11))
        books = [self.exchange.past_book(name, second, request.now_ns) for second in range(newest, oldest - 1, -1)]
        book = self.exchange.book(name, request.now_ns)
        top = shapes.pricebook(book, 1)
        return {
            "trades": [shapes.market_trade(past) for past in books],
            "best_bid": top["bids"][0]["price"],
            "best_ask": top["asks"][0]["price"],
        }

    def _product(self, name: str, now_ns: int) -> shapes.Json:
        hour = Granularity.ONE_HOUR
        minute = now_ns // (60 * NS_PER_S)
        stats = self._day_stats.get(name)
        if stats is None or stats[0] != minute:
            now_s, candles = now_ns // NS_PER_S, self.exchange.history.candles
            today = candles(name, hour, now_s - DAY_S, now_s + 1, now_ns, self.first_s)
            before = candles(name, hour, now_s - 2 * DAY_S, now_s - DAY_S, now_ns, self.first_s)
            stats = self._day_stats[name] = (minute, today, before)
        return shapes.product(MARKETS[name], self.exchange.book(name, now_ns), stats[1], stats[2])

    # --- accounts ---

    def list_accounts(self, request: Request) -> shapes.Json:
        """GET /accounts."""
        limit = _integer(request, "limit", 49, 1, 250)
        entries = list(self.exchange.accounts.values())
        begin = _cursor(request, len(entries), default=0)
        page = entries[begin : begin + limit]
        more = begin + limit < len(entries)
        return {
            "accounts": [shapes.account(entry, request.now_ns, self.exchange.portfolio_id) for entry in page],
            "has_next": more,
            "cursor": str(begin + limit) if more else "",
            "size": len(page),
        }

    def get_account(self, request: Request, account_id: str) -> shapes.Json:
        """GET /accounts/{uuid}."""
        for entry in self.exchange.accounts.values():
            if entry.uuid == account_id:
                return {"account": shapes.account(entry, request.now_ns, self.exchange.portfolio_id)}
        raise RequestError(404, "NOT_FOUND", "account: not found")

    def transaction_summary(self, request: Request) -> shapes.Json:
        """GET /transaction_summary: of all time, not of the last month."""
        exchange = self.exchange
        volume = sum((order.filled_value for order in exchange.order_list), Decimal(0))
        paid = sum((order.fees for order in exchange.order_list), Decimal(0))
        balance = sum((self._worth(name, request.now_ns) for name in exchange.accounts), Decimal(0))
        return shapes.transaction_summary(volume, paid, balance, exchange.fees)

    def key_permissions(self, request: Request) -> shapes.Json:
        """GET /key_permissions."""
        return shapes.key_permissions(self.exchange.portfolio_id)

    def _worth(self, currency: str, now_ns: int) -> Decimal:
        total, name = self.exchange.accounts[currency].total, f"{currency}-USD"
        if name not in MARKETS:
            return total
        return total * MARKETS[name].product.price(self.exchange.mid_ticks(name, now_ns))

    # --- orders ---

    def create_order(self, request: Request) -> shapes.Json:
        """POST /orders: a known client_order_id gets the first order, whatever else the body says."""
        client_order_id = request.body.get("client_order_id")
        if not isinstance(client_order_id, str) or not 0 < len(client_order_id) <= _CLIENT_ORDER_ID_MAX:
            rule = f"client_order_id: expected 1 to {_CLIENT_ORDER_ID_MAX} characters"
            raise RequestError(400, "INVALID_ARGUMENT", rule)
        known = self.exchange.order_by_client_id(client_order_id)
        if known is not None:
            return shapes.order_accepted(known)
        try:
            return shapes.order_accepted(self.exchange.place(read_ticket(request.body, request.now_ns), request.now_ns))
        except Refusal as refusal:
            given = request.body.get("order_configuration")
            return shapes.order_refused(refusal, given if isinstance(given, dict) else None)

    def cancel_orders(self, request: Request) -> shapes.Json:
        """POST /orders/batch_cancel: a result for each id, in the order given."""
        given = request.body.get("order_ids")
        if not isinstance(given, list) or not all(isinstance(order_id, str) for order_id in given):
            raise RequestError(400, "INVALID_ARGUMENT", "order_ids: expected a list of strings")
        if not 0 < len(given) <= _CANCELS_MAX:
            raise RequestError(400, "INVALID_ARGUMENT", f"order_ids: expected 1 to {_CANCELS_MAX}, was {len(given)}")
        results = self.exchange.cancel(given, request.now_ns)
        return {"results": [shapes.cancel_result(order_id, results[order_id]) for order_id in given]}

    def get_order(self, request: Request, order_id: str) -> shapes.Json:
        """GET /orders/historical/{id}."""
        order = self.exchange.orders.get(order_id)
        if order is None:
            raise RequestError(404, "NOT_FOUND", f"order {order_id[:40]}: not found")
        return {"order": shapes.order(order, self.exchange.portfolio_id)}

    def list_orders(self, request: Request) -> shapes.Json:
        """Newest first. As Coinbase documents: OPEN goes with no other status, and dates do not apply to it."""
        statuses = set(request.query.get("order_status", []))
        if "OPEN" in statuses and len(statuses) > 1:
            raise RequestError(400, "INVALID_ARGUMENT", "order_status: OPEN cannot be paired with other statuses")
        if not statuses <= _STATUSES:
            raise RequestError(400, "INVALID_ARGUMENT", f"order_status: expected some of {sorted(_STATUSES)}")
        limit = _integer(request, "limit", 1_000, 1, 1_000)
        only_open = statuses == {"OPEN"}
        accepts = _order_filter(request, statuses, 2**62 if only_open else _time(request, "end_date", 2**62))
        start_ns = 0 if only_open else _time(request, "start_date", 0)
        found: list[SimOrder] = []
        for order in self._orders_newest_first(request, only_open):
            if order.created_ns < start_ns or len(found) > limit:
                break
            if accepts(order):
                found.append(order)
        page = found[:limit]
        more = len(found) > limit
        return {
            "orders": [shapes.order(order, self.exchange.portfolio_id) for order in page],
            "sequence": "0",
            "has_next": more,
            "cursor": str(page[-1].sequence) if more else "",
        }

    def _orders_newest_first(self, request: Request, only_open: bool) -> Iterable[SimOrder]:
        end = _cursor(request, len(self.exchange.order_list))
        if not only_open:
            return reversed(self.exchange.order_list[:end])
        # The open ones are kept apart, so that the many that have ended are not walked through.
        return sorted(
            (order for order in self.exchange.open_orders.values() if order.sequence < end),
            key=lambda order: -order.sequence,
        )

    def list_fills(self, request: Request) -> shapes.Json:
        """Newest first."""
        limit = _integer(request, "limit", 100, 1, 1_000)
        accepts = _fill_filter(request)
        start_ns = _time(request, "start_sequence_timestamp", 0)
        found: list[SimFill] = []
        for fill in reversed(self._fills(request)):
            if fill.ts_ns < start_ns or len(found) > limit:
                break
            if accepts(fill):
                found.append(fill)
        page = found[:limit]
        cursor = str(page[-1].sequence) if len(found) > limit else ""
        return {"fills": [shapes.fill(fill, self.exchange.portfolio_id) for fill in page], "cursor": cursor}

    def _fills(self, request: Request) -> list[SimFill]:
        """The fills before the cursor, of the orders asked for."""
        end = _cursor(request, len(self.exchange.fills))
        wanted = request.query.get("order_ids")
        if not wanted:
            return self.exchange.fills[:end]
        orders = (self.exchange.orders.get(order_id) for order_id in set(wanted))
        found = [fill for order in orders if order is not None for fill in order.fills if fill.sequence < end]
        return sorted(found, key=lambda fill: fill.sequence)

    # --- the control surface, for tests ---

    def push_price(self, request: Request) -> shapes.Json:
        """``{"product_id": …, "price": "61000.00"}`` pins a mid until it is pushed again or, with null, let go.

        Candles stay those of the path; only book, quotes and matching follow the pin. Not kept over a restart.
        """
        name = _known(str(request.body.get("product_id")))
        given, product = request.body.get("price"), MARKETS[name].product
        ticks: int | None = None
        if given is not None:
            if not isinstance(given, str) or not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,8})?", given):
                raise RequestError(400, "INVALID_ARGUMENT", "price: expected a decimal string or null")
            try:
                ticks = product.ticks(Decimal(given))
            except IncrementError as error:
                raise RequestError(400, "INVALID_ARGUMENT", f"price: {error}") from None
            if not 2 <= ticks <= PRICE_TICKS_MAX:
                raise RequestError(400, "INVALID_ARGUMENT", "price: out of range")
        fills = self.exchange.push_price(name, ticks, request.now_ns)
        self.hub.look(name)
        mid = self.exchange.mid_ticks(name, request.now_ns)
        return {"product_id": name, "price": shapes.plain(product.price(mid)), "fills": fills}


@dataclass(frozen=True, slots=True)
class _Route:
    method: str
    pattern: re.Pattern[str]
    run: Callable[..., shapes.Json]
    public: bool = False
    control: bool = False


def _route(method: str, path: str, run: Callable[..., shapes.Json], public: bool = False) -> _Route:
    return _Route(method, re.compile(re.escape(PREFIX) + path.replace("{}", "([^/]+)")), run, public)


_ROUTES: Final = (
    _route("GET", "/time", Face.server_time, public=True),
    _route("GET", "/market/products", Face.list_products, public=True),
    _route("GET", "/market/product_book", Face.product_book, public=True),
    _route("GET", "/market/products/{}", Face.get_product, public=True),
    _route("GET", "/market/products/{}/candles", Face.candles, public=True),
    _route("GET", "/market/products/{}/ticker", Face.market_trades, public=True),
    _route("GET", "/products", Face.list_products),
    _route("GET", "/products/{}", Face.get_product),
    _route("GET", "/products/{}/candles", Face.candles),
    _route("GET", "/products/{}/ticker", Face.market_trades),
    _route("GET", "/best_bid_ask", Face.best_bid_ask),
    _route("GET", "/product_book", Face.product_book),
    _route("GET", "/accounts", Face.list_accounts),
    _route("GET", "/accounts/{}", Face.get_account),
    _route("POST", "/orders", Face.create_order),
    _route("POST", "/orders/batch_cancel", Face.cancel_orders),
    _route("GET", "/orders/historical/batch", Face.list_orders),
    _route("GET", "/orders/historical/fills", Face.list_fills),
    _route("GET", "/orders/historical/{}", Face.get_order),
    _route("GET", "/transaction_summary", Face.transaction_summary),
    _route("GET", "/key_permissions", Face.key_permissions),
    # POST /sim/fault comes here.
    _Route("POST", re.compile("/sim/price"), Face.push_price, control=True),
)


# --- reading requests -------------------------------------------------------------------------------------------------


async def _read_body(receive: Callable[[], Awaitable[Message]]) -> bytes | None:
    """The whole body, or None where it is too large (the rest is read and dropped, so that the answer arrives)."""
    chunks: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        length += len(message.get("body", b""))
        if length <= BODY_BYTES_MAX:
            chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks) if length <= BODY_BYTES_MAX else None


def _parse_body(body: bytes) -> dict[str, Any]:
    """A JSON object; empty is an empty one (the SDK sends ``{}`` even with GET)."""
    if not body.strip():
        return {}
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "INVALID_ARGUMENT", "body: not JSON") from None
    if not isinstance(parsed, dict):
        raise RequestError(400, "INVALID_ARGUMENT", "body: expected a JSON object")
    return parsed


def _one(request: Request, name: str, default: str = "") -> str:
    return request.query.get(name, [default])[0]


def _integer(request: Request, name: str, default: int | None, low: int, high: int) -> int:
    text = _one(request, name)
    if not text and default is not None:
        return default
    if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise RequestError(400, "INVALID_ARGUMENT", f"{name} argument is invalid - expected {low} to {high}")
    return int(text)


def _cursor(request: Request, highest: int, default: int | None = None) -> int:
    """A place in a list of ``highest`` entries; without one, its end (or ``default``)."""
    text = _one(request, "cursor")
    if not text:
        return highest if default is None else default
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) > highest:
        raise RequestError(400, "INVALID_ARGUMENT", "cursor argument is invalid")
    return int(text)


_STATUSES: Final = frozenset(
    {*State, "PENDING", "FAILED", "UNKNOWN_ORDER_STATUS", "QUEUED", "CANCEL_QUEUED", "EDIT_QUEUED"}
)


def _order_filter(request: Request, statuses: set[str], end_ns: int) -> Callable[[SimOrder], bool]:
    query = request.query
    order_ids, products = set(query.get("order_ids", [])), set(query.get("product_ids", []))
    side = _one(request, "order_side")

    def accepts(order: SimOrder) -> bool:
        return (
            (not order_ids or order.order_id in order_ids)
            and (not products or order.ticket.product_id in products)
            and (not statuses or order.state.value in statuses)
            and (not side or order.ticket.side.value == side)
            and order.created_ns < end_ns
        )

    return accepts


def _fill_filter(request: Request) -> Callable[[SimFill], bool]:
    products, trades = set(request.query.get("product_ids", [])), set(request.query.get("trade_ids", []))
    end_ns = _time(request, "end_sequence_timestamp", 2**62)

    def accepts(fill: SimFill) -> bool:
        return (
            (not products or fill.product_id in products)
            and (not trades or fill.trade_id in trades)
            and fill.ts_ns < end_ns
        )

    return accepts


def _time(request: Request, name: str, default: int) -> int:
    """An RFC 3339 time in nanoseconds UTC."""
    text = _one(request, name)
    if not text:
        return default
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment.year < 1970:
        raise RequestError(400, "INVALID_ARGUMENT", f"{name}: expected an RFC 3339 time with its zone")
    return int(moment.replace(microsecond=0).timestamp()) * NS_PER_S + moment.microsecond * 1_000


def _known(product_id: str) -> str:
    if product_id not in MARKETS:
        raise RequestError(404, "NOT_FOUND", f"product {product_id[:40]}: not found")
    return product_id
