"""A local exchange that speaks Coinbase Advanced Trade's REST over TLS: the real SDK works against it unchanged.

Everything it serves is SIMULATED and every answer says so (header ``X-Simulated: 1``). One process, one event loop:
a request is answered completely before the next one is looked at, so no state needs a lock.

Beside Coinbase's own paths there are ``GET /healthz`` and, for tests only, ``POST /sim/price`` (see ``_push_price``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import errno
import fcntl
import json
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, TextIO
from urllib.parse import parse_qs

import uvicorn
import uvloop

from cluster import exchange_shapes as shapes
from cluster.exchange_book import Exchange
from cluster.exchange_history import DAY_S, MARKETS, History
from cluster.exchange_keys import Credentials, KeyFileError, Unauthorised, check_token, open_credentials
from strategies.model import NS_PER_S, Granularity

PREFIX: Final = "/api/v3/brokerage"
CANDLES_MAX: Final = 350
BODY_BYTES_MAX: Final = 1_000_000
QUERY_BYTES_MAX: Final = 32_768
_TRADES_MAX: Final = 100
_STOP_S_MAX: Final = 0.5

Message = MutableMapping[str, Any]
_log = logging.getLogger("cluster.exchange_sim")


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
        self._day_stats: dict[str, tuple[int, Any, Any]] = {}

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """ASGI entry; anything but HTTP is not simulated yet."""
        if scope["type"] != "http":
            return
        body = await _read_body(receive)
        answer = self._safe_answer(scope, body)
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
        return shapes.server_time(request.now_ns)

    def list_products(self, request: Request) -> shapes.Json:
        wanted = request.query.get("product_ids") or list(MARKETS)
        spot = _one(request, "product_type", "SPOT") in {"SPOT", "UNKNOWN_PRODUCT_TYPE"}
        found = [self._product(name, request.now_ns) for name in wanted if name in MARKETS and spot]
        offset = _integer(request, "offset", 0, 0, 1_000_000)
        limit = _integer(request, "limit", 250, 1, 1_000)
        return {"products": found[offset : offset + limit], "num_products": len(found)}

    def get_product(self, request: Request, product_id: str) -> shapes.Json:
        return self._product(_known(product_id), request.now_ns)

    def best_bid_ask(self, request: Request) -> shapes.Json:
        names = request.query.get("product_ids") or list(MARKETS)
        books = [self.exchange.book(_known(name), request.now_ns) for name in names]
        return {"pricebooks": [shapes.pricebook(book, 1) for book in books]}

    def product_book(self, request: Request) -> shapes.Json:
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
        limit = _integer(request, "limit", 49, 1, 250)
        entries = list(self.exchange.accounts.values())
        begin = _cursor(request, len(entries))
        page = entries[begin : begin + limit]
        more = begin + limit < len(entries)
        return {
            "accounts": [shapes.account(entry, request.now_ns, self.exchange.portfolio_id) for entry in page],
            "has_next": more,
            "cursor": str(begin + limit) if more else "",
            "size": len(page),
        }

    def get_account(self, request: Request, account_id: str) -> shapes.Json:
        for entry in self.exchange.accounts.values():
            if entry.uuid == account_id:
                return {"account": shapes.account(entry, request.now_ns, self.exchange.portfolio_id)}
        raise RequestError(404, "NOT_FOUND", "account: not found")


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


def _cursor(request: Request, highest: int) -> int:
    text = _one(request, "cursor")
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) > highest:
        raise RequestError(400, "INVALID_ARGUMENT", "cursor argument is invalid")
    return int(text)


def _known(product_id: str) -> str:
    if product_id not in MARKETS:
        raise RequestError(404, "NOT_FOUND", f"product {product_id[:40]}: not found")
    return product_id


# --- the process ------------------------------------------------------------------------------------------------------


class StartError(RuntimeError):
    """The simulator cannot start; the text names the cause and the way out."""


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the event loop's business here (``_serve``), so that a stop by SIGTERM ends with exit code 0."""
        yield


def main(arguments: list[str] | None = None) -> int:
    """Run the simulator until SIGTERM or SIGINT; 2 where it cannot start."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=options.log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        with _locked(options.state_dir):
            uvloop.run(_serve(options))
    except (StartError, KeyFileError) as error:
        print(f"exchange simulator: {error}", file=sys.stderr)
        return 2
    return 0


async def _serve(options: argparse.Namespace) -> None:
    now = dt.datetime.now(dt.UTC)
    credentials = open_credentials(options.state_dir, now)
    first_s = (int(now.timestamp()) - options.history_days * DAY_S) // DAY_S * DAY_S
    if first_s < 0:
        raise StartError(f"--history-days {options.history_days}: history begins in 1970; choose fewer days")
    deposits = {name: getattr(options, name.lower()) for name in ("USD", "BTC", "ETH", "SOL")}
    exchange = Exchange(History(options.seed), deposits)
    listener = _listen(options.host, options.port)
    host_port = f"{options.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        Face(exchange, credentials, first_s),
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        ssl_certfile=credentials.certificate_file,
        ssl_keyfile=str(credentials.certificate_key_file),
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, loop)
    _write_address(options.state_dir, host_port)
    print(f"exchange simulator (SIMULATED): https://{host_port}", flush=True)
    await server.serve(sockets=[listener])


def _stop(server: uvicorn.Server, loop: asyncio.AbstractEventLoop) -> None:
    """Stop politely, then not: a client that keeps its connection open must not hold the process."""
    server.should_exit = True
    loop.call_later(_STOP_S_MAX, setattr, server, "force_exit", True)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"port {port} of {host} is taken; choose another with --port (0 = a free one)") from None
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; see --host and --port") from None
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """Hold the state folder: two exchanges on one journal would destroy it. The lock goes with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    except OSError as error:
        raise StartError(f"--state-dir {folder}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(f"--state-dir {folder}: another simulator is running there") from None
        yield file


def _write_address(folder: Path, host_port: str) -> None:
    temporary = folder / ".address.json"
    temporary.write_text(json.dumps({"host_port": host_port, "pid": os.getpid()}))
    os.replace(temporary, folder / "address.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.exchange_sim",
        description="A local exchange that speaks Coinbase Advanced Trade's REST over TLS. Everything is SIMULATED.",
        epilog="Clients trust DIR/ca.pem and sign with DIR/cdp_key.json; DIR/address.json tells host and port.",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=_port, default=8443, help="TCP port, 0 = a free one (default %(default)s)")
    parser.add_argument("--state-dir", type=Path, required=True, help="folder of keys, certificates and the journal")
    parser.add_argument("--seed", type=_natural, default=7, help="seed of prices and book (default %(default)s)")
    parser.add_argument(
        "--history-days", type=_days, default=1200, help="days of candles before today (default %(default)s)"
    )
    for name, amount in (("usd", "1000000"), ("btc", "10"), ("eth", "100"), ("sol", "1000")):
        parser.add_argument(
            f"--{name}", type=_amount, default=Decimal(amount), help=f"{name.upper()} on a new account ({amount})"
        )
    parser.add_argument("--log-level", default="warning", choices=["debug", "info", "warning", "error"])
    return parser


def _port(text: str) -> int:
    return _bounded(text, 0, 65_535)


def _natural(text: str) -> int:
    return _bounded(text, 0, 2**63 - 1)


def _days(text: str) -> int:
    return _bounded(text, 1, 20_000)


def _bounded(text: str, low: int, high: int) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, was {text!r}")
    return int(text)


def _amount(text: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,8})?", text):
        raise argparse.ArgumentTypeError(f"expected an amount of at most 12 + 8 digits, was {text!r}")
    return Decimal(text)


if __name__ == "__main__":
    sys.exit(main())
