"""The HTTP face of the exchange simulator: Coinbase Advanced Trade's REST paths as a bare ASGI application.

A request is carried out completely before the next one is looked at, so no state needs a lock; its answer leaves when
what it changed is on disk. Here are the door (tokens, rate limits, faults on demand) and the table of paths; what the
paths do is in ``exchange_market``, ``exchange_accounts``, ``exchange_trading`` and, for tests and users of the
simulator only, ``exchange_control``. WebSockets go to ``exchange_ws``.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs

from cluster import exchange_accounts as accounts
from cluster import exchange_control as control
from cluster import exchange_market as market
from cluster import exchange_shapes as shapes
from cluster import exchange_trading as trading
from cluster.exchange_book import Exchange
from cluster.exchange_faults import Faults, Rule, Strikes, spoil
from cluster.exchange_history import MARKETS
from cluster.exchange_keys import ApiKey, Credentials, Unauthorised, check_token
from cluster.exchange_limits import Allowance, RateLimits
from cluster.exchange_request import Answer, Floor, Request, RequestError, bad
from cluster.exchange_tape import Tape
from cluster.exchange_wire import cut
from cluster.exchange_ws import Hub
from strategies.model import NS_PER_S

PREFIX: Final = "/api/v3/brokerage"
BODY_BYTES_MAX: Final = 1_000_000
QUERY_BYTES_MAX: Final = 32_768
_HTML: Final = "<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking.</body></html>"

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_log = logging.getLogger(__name__)


class Face:
    """The HTTP face of one exchange: an ASGI application."""

    def __init__(
        self,
        exchange: Exchange,
        credentials: Credentials,
        first_s: int,
        clock: Callable[[], int] = time.time_ns,
        faults: Faults | None = None,
        limits: RateLimits | None = None,
        tape: Tape | None = None,
        stream_limits: RateLimits | None = None,
    ) -> None:
        """``first_s`` is where candle history begins; ``clock`` gives nanoseconds UTC."""
        self.exchange = exchange
        self.credentials = credentials
        self.first_s = first_s
        self.clock = clock
        self.faults = faults or Faults()
        self.limits = limits or RateLimits()
        self._offset_ns = 0
        self.hub = Hub(exchange, credentials, first_s, self.now_ns, self.faults, tape=tape, limits=stream_limits)
        self._floor = Floor(exchange, first_s)
        self._answers: dict[int, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry for requests and WebSockets."""
        if scope["type"] == "websocket":
            await self.hub.serve(scope, receive, send)
            return
        body = await _read_body(receive)
        answer = await self._struck_answer(scope, body)
        if answer is None:
            cut(scope)
            await receive()
            return
        self._answers[answer.status] = self._answers.get(answer.status, 0) + 1
        kind, payload = _payload(answer)
        headers = [(b"content-type", kind), (b"content-length", str(len(payload)).encode()), (b"x-simulated", b"1")]
        headers += [(name.encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": payload})

    def now_ns(self) -> int:
        """The venue's clock: this machine's, and what ``set_clock`` put on it."""
        return self.clock() + self._offset_ns

    def set_clock(self, offset_ms: int) -> None:
        """Let the venue's clock differ from this machine's by so much."""
        self._offset_ns = offset_ms * 1_000_000
        self.exchange.set_back(self.now_ns())

    def book_changed(self, product_id: str) -> None:
        """Tell the WebSocket's listeners of a book that was changed from outside."""
        self.hub.look(product_id)

    def status(self) -> shapes.Json:
        """Facts about the process: clock, connections, counts."""
        return {
            "seed": self.exchange.history.seed,
            "clock_offset_ms": self._offset_ns // 1_000_000,
            "streams": self.hub.view(),
            "answers": {str(status): count for status, count in sorted(self._answers.items())},
            "faults": self.faults.view(),
            "limits": {"requests_per_s": self.limits.private_per_s, "public_per_s": self.limits.public_per_s},
            "replayed": self.exchange.history.source(),
            "taped": sorted(self.hub.tape.products) if self.hub.tape else [],
        }

    # --- faults on demand ---

    async def _struck_answer(self, scope: Scope, body: bytes | None) -> Answer | None:
        """The answer after what the rules do to it; None where the connection is to be cut."""
        method, path = str(scope["method"]), str(scope["path"])
        strikes = Strikes()
        if path.startswith(PREFIX):
            strikes = self.faults.of_request(method, path.removeprefix(PREFIX), body or b"")
        if strikes.before_s:
            await asyncio.sleep(strikes.before_s)
        rule, answer = strikes.rule, None
        if rule is None or rule.fields["act"]:
            answer = await self._durable_answer(scope, body)
        if strikes.after_s:
            await asyncio.sleep(strikes.after_s)
        if rule is None:
            return answer
        if rule.fault == "hang":
            await asyncio.sleep(rule.fields["s"])
        return _spoiled(rule, answer)

    async def _durable_answer(self, scope: Scope, body: bytes | None) -> Answer:
        """Carry the request out; what it changed or tells is on disk when this returns."""
        answer = self._safe_answer(scope, body)
        # Reading lets time pass too, which may fill and expire; public paths tell nothing that a crash could undo.
        if not str(scope["path"]).startswith((f"{PREFIX}/market/", f"{PREFIX}/time", "/healthz")):
            try:
                await self.exchange.synced()
            except OSError:
                # The client must not take for done what a crash would undo.
                _log.exception("the journal cannot be written")
                return Answer(500, shapes.error("INTERNAL", "the simulator failed; its log says why"))
        return answer

    def _safe_answer(self, scope: Scope, body: bytes | None) -> Answer:
        try:
            return self.answer(scope, body)
        except RequestError as refused:
            return refused.answer
        except Exception:  # noqa: BLE001 - the loop's edge: one bad request must not end the exchange
            _log.exception("request failed: %s %s", scope["method"], scope["path"])
            return Answer(500, shapes.error("INTERNAL", "the simulator failed; its log says why"))

    # --- the door ---

    def answer(self, scope: Scope, body: bytes | None) -> Answer:
        """Answer one request; raises ``RequestError``. ``body`` is None where it was too large."""
        method, path = str(scope["method"]), str(scope["path"])
        if body is None:
            raise RequestError(413, "INVALID_ARGUMENT", f"body: expected at most {BODY_BYTES_MAX} bytes")
        if len(scope["query_string"]) > QUERY_BYTES_MAX:
            raise RequestError(414, "INVALID_ARGUMENT", f"query: expected at most {QUERY_BYTES_MAX} bytes")
        if path == "/healthz" and method == "GET":
            return Answer(200, {"status": "ok"})
        for route in _ROUTES:
            match = route.pattern.fullmatch(path) if route.method == method else None
            if match:
                return self._routed(route, match.groups(), scope, body)
        raise RequestError(404, "NOT_FOUND", f"{method} {path}: not simulated")

    def _routed(self, route: _Route, groups: tuple[str, ...], scope: Scope, body: bytes) -> Answer:
        now_ns = self.now_ns()
        key = None if route.public else self._authorise(route, scope, now_ns)
        allowance = self._allowance(route, scope, key)
        if allowance is not None and not allowance.passes:
            return Answer(429, shapes.throttled(), allowance.headers | {"retry-after": "1"})
        try:
            answer = self._carried_out(route, groups, scope, body, now_ns, key)
        except RequestError as refused:
            answer = refused.answer
        return answer if allowance is None else dataclasses.replace(answer, headers=allowance.headers)

    def _carried_out(
        self, route: _Route, groups: tuple[str, ...], scope: Scope, body: bytes, now_ns: int, key: ApiKey | None
    ) -> Answer:
        if route.trades and key is not None and not key.can_trade:
            raise RequestError(403, "PERMISSION_DENIED", "Missing required scopes")
        if not route.public:
            self.exchange.advance(now_ns)
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        request = Request(route.method, str(scope["path"]), query, _parse_body(body), now_ns, self._floor, key)
        return Answer(200, route.run(self, request) if route.control else route.run(request, *groups))

    def _authorise(self, route: _Route, scope: Scope, now_ns: int) -> ApiKey | None:
        """The key that asks; None for the owner of the control surface's token."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        given = token if scheme == "Bearer" else ""
        if route.control:
            if self.credentials.is_sim_token(given):
                return None
            raise _unauthorised()
        try:
            host, path = headers.get(b"host", ""), str(scope["path"])
            # A scheme other than Bearer leaves no token to check, which fails like any bad one.
            name = check_token(given, self.credentials.keys, route.method, host, path, now_ns / NS_PER_S)
        except Unauthorised as error:
            _log.info("401 for %s %s: %s", route.method, scope["path"], error)
            raise _unauthorised() from None
        return self.credentials.grant(name)

    def _allowance(self, route: _Route, scope: Scope, key: ApiKey | None) -> Allowance | None:
        if route.control:
            return None
        client = scope.get("client") or ("",)
        return self.limits.take(key.name if key else f"address {client[0]}", key is not None, time.monotonic())


def _unauthorised() -> RequestError:
    refused = RequestError(401, "", "")
    refused.answer = Answer(401, "Unauthorized\n")
    return refused


def _spoiled(rule: Rule, answer: Answer | None) -> Answer | None:
    """What a rule makes of an answer (None where the request was not carried out, or is not to be answered)."""
    if rule.fault in ("drop", "accept_then_drop", "hang"):
        return None
    if rule.fault == "throttle_429":
        wait_s = rule.fields["retry_after_s"]
        return Answer(429, shapes.throttled(), {} if wait_s is None else {"retry-after": f"{wait_s:g}"})
    if rule.fault == "throttle_401":
        return Answer(401, "Unauthorized\n")
    if rule.fault == "error_5xx":
        return Answer(int(rule.fields["status"]), "upstream connect error or disconnect/reset before headers")
    if rule.fault == "html":
        return Answer(int(rule.fields["status"]), _HTML, kind="text/html; charset=utf-8")
    answer = answer or Answer(200, {})
    if rule.fault == "garbage_json" or isinstance(answer.content, str):
        text = _payload(answer)[1].decode()
        return Answer(200, text[: len(text) // 2], kind="application/json")
    return Answer(answer.status, spoil(answer.content, rule, MARKETS), answer.headers)


def _payload(answer: Answer) -> tuple[bytes, bytes]:
    """Content type and body."""
    if isinstance(answer.content, str):
        return answer.kind.encode(), answer.content.encode()
    return b"application/json", json.dumps(answer.content, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class _Route:
    """A path: who may ask for it, and what answers (``run`` of a control path gets the face first)."""

    method: str
    pattern: re.Pattern[str]
    run: Callable[..., shapes.Json]
    public: bool = False
    trades: bool = False
    control: bool = False


def _route(
    method: str, path: str, run: Callable[..., shapes.Json], public: bool = False, trades: bool = False
) -> _Route:
    return _Route(method, re.compile(re.escape(PREFIX) + path.replace("{}", "([^/]+)")), run, public, trades)


def _control(method: str, path: str, run: Callable[..., shapes.Json]) -> _Route:
    return _Route(method, re.compile(path), run, control=True)


_ROUTES: Final = (
    # The most frequent first.
    _route("POST", "/orders", trading.create_order, trades=True),
    _route("POST", "/orders/batch_cancel", trading.cancel_orders, trades=True),
    _route("GET", "/orders/historical/batch", trading.list_orders),
    _route("GET", "/orders/historical/fills", trading.list_fills),
    _route("GET", "/orders/historical/{}", trading.get_order),
    _route("POST", "/orders/edit", trading.edit_order, trades=True),
    _route("POST", "/orders/preview", trading.preview_order),
    _route("POST", "/orders/edit_preview", trading.preview_edit),
    _route("POST", "/orders/close_position", trading.close_position, trades=True),
    _route("GET", "/time", market.server_time, public=True),
    _route("GET", "/market/products", market.list_products, public=True),
    _route("GET", "/market/product_book", market.product_book, public=True),
    _route("GET", "/market/products/{}", market.get_product, public=True),
    _route("GET", "/market/products/{}/candles", market.candles, public=True),
    _route("GET", "/market/products/{}/ticker", market.market_trades, public=True),
    _route("GET", "/products", market.list_products),
    _route("GET", "/products/{}", market.get_product),
    _route("GET", "/products/{}/candles", market.candles),
    _route("GET", "/products/{}/ticker", market.market_trades),
    _route("GET", "/best_bid_ask", market.best_bid_ask),
    _route("GET", "/product_book", market.product_book),
    _route("GET", "/accounts", accounts.list_accounts),
    _route("GET", "/accounts/{}", accounts.get_account),
    _route("GET", "/portfolios", accounts.list_portfolios),
    _route("GET", "/portfolios/{}", accounts.get_portfolio),
    _route("GET", "/transaction_summary", accounts.transaction_summary),
    _route("GET", "/key_permissions", accounts.key_permissions),
    _control("POST", "/sim/price", control.push_price),
    _control("GET", "/sim/faults", control.get_faults),
    _control("POST", "/sim/faults", control.set_faults),
    _control("POST", "/sim/clock", control.set_clock),
    _control("POST", "/sim/limits", control.set_limits),
    _control("POST", "/sim/fill", control.fill_order),
    _control("POST", "/sim/order", control.place_order),
    _control("POST", "/sim/show", control.show_status),
    _control("POST", "/sim/product", control.set_product),
    _control("POST", "/sim/deposit", control.deposit),
    _control("GET", "/sim/status", control.get_status),
)


async def _read_body(receive: Receive) -> bytes | None:
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
        raise bad("body: not JSON") from None
    if not isinstance(parsed, dict):
        raise bad("body: expected a JSON object")
    return parsed
