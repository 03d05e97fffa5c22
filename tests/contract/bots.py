"""A user's bot with the real SDK against the simulator, over verified TLS: what it calls, and every answer it gets."""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import requests
import websockets
from coinbase.rest import RESTClient
from coinbase.websocket import WSClient, WSUserClient
from jsonschema import Draft202012Validator

from tests.contract import coinbase_schemas as documented
from tests.contract.coinbase_schemas import Shape
from tests.simulator import PREFIX, Simulator

KEY_FILES: Final = {"ES256": "cdp_key.json", "Ed25519": "cdp_key_ed25519.json"}
WAIT_S_MAX: Final = 15.0

# Which shape answers a path; what is refused with HTTP 200 has another one (``shape_of``).
_SHAPES: Final[tuple[tuple[str, str, Shape], ...]] = (
    ("GET", "/time", documented.SERVER_TIME),
    ("GET", "(/market)?/products", documented.PRODUCTS),
    ("GET", "(/market)?/products/[^/]+", documented.PRODUCT),
    ("GET", "(/market)?/products/[^/]+/candles", documented.CANDLES),
    ("GET", "(/market)?/products/[^/]+/ticker", documented.MARKET_TRADES),
    ("GET", "(/market)?/product_book", documented.PRODUCT_BOOK),
    ("GET", "/best_bid_ask", documented.BEST_BID_ASK),
    ("GET", "/accounts", documented.ACCOUNTS),
    ("GET", "/accounts/[^/]+", documented.ONE_ACCOUNT),
    ("GET", "/portfolios", documented.PORTFOLIOS),
    ("GET", "/portfolios/[^/]+", documented.ONE_BREAKDOWN),
    ("GET", "/transaction_summary", documented.TRANSACTION_SUMMARY),
    ("GET", "/key_permissions", documented.KEY_PERMISSIONS),
    ("GET", "/orders/historical/batch", documented.ORDERS),
    ("GET", "/orders/historical/fills", documented.FILLS),
    ("GET", "/orders/historical/[^/]+", documented.ONE_ORDER),
    ("POST", "/orders", documented.ACCEPTED),
    ("POST", "/orders/close_position", documented.ACCEPTED),
    ("POST", "/orders/batch_cancel", documented.CANCELLED),
    ("POST", "/orders/edit", documented.EDITED),
    ("POST", "/orders/edit_preview", documented.EDIT_PREVIEWED),
    ("POST", "/orders/preview", documented.PREVIEWED),
)


@dataclass(frozen=True)
class Answer:
    """One answer of the venue as it came over the wire."""

    method: str
    path: str
    status: int
    text: str

    @property
    def body(self) -> Any:
        """The JSON."""
        return json.loads(self.text)

    def shape(self) -> Shape | None:
        """The documented shape of this answer; None for the one plain text (401)."""
        if self.status == 401:
            return None
        if self.status == 429:
            return documented.THROTTLED
        if self.status >= 400:
            return documented.ERROR
        path = self.path.removeprefix(PREFIX)
        found = next(
            shape for method, pattern, shape in _SHAPES if method == self.method and re.fullmatch(pattern, path)
        )
        refused = found is documented.ACCEPTED and self.body.get("success") is False
        return documented.REFUSED if refused else found

    def problems(self) -> list[str]:
        """Where the answer is not of its documented shape, or has a field that is in no source."""
        shape = self.shape()
        if shape is None:
            return [] if self.text == "Unauthorized\n" else [f"401 with {self.text[:60]!r}"]
        return problems(shape, self.body, f"{self.method} {self.path} {self.status}")


def problems(shape: Shape, body: Any, what: str) -> list[str]:
    """Where ``body`` is not of the shape, or has a field that is in no source."""
    errors = Draft202012Validator(shape.schema).iter_errors(body)
    found = [f"{what}: {error.json_path}: {error.message[:200]}" for error in errors]
    return found + [f"{what}: {path}: in no source" for path in shape.unknown_fields(body)]


@dataclass
class Bot:
    """A REST client of the SDK as a user sets it up, and all answers it got."""

    client: Any
    answers: list[Answer] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Of all answers so far."""
        return [problem for answer in self.answers for problem in answer.problems()]

    def of(self, shape: Shape) -> list[Any]:
        """All answers of one shape."""
        return [answer.body for answer in self.answers if answer.shape() is shape]


@contextlib.contextmanager
def rest_bot(simulator: Simulator, key: str | None = "ES256", **options: Any) -> Iterator[Bot]:
    """A bot that signs with the key file of the state folder (None: without a key); ``options`` as the SDK's."""
    path = str(simulator.state_dir / KEY_FILES.get(key, f"cdp_key_{key}.json")) if key else None
    keys: dict[str, Any] = {"key_file": path} if path else {"api_key": None, "api_secret": None}
    client: Any = RESTClient(base_url=simulator.host_port, timeout=10, **keys, **options)
    # Without these two the environment's CA bundle wins, and the simulator's is ignored.
    client.session.trust_env = False
    client.session.verify = str(simulator.state_dir / "ca.pem")
    bot = Bot(client)

    def note(response: requests.Response, *_: Any, **__: Any) -> None:
        request = response.request
        path = str(request.path_url).partition("?")[0]
        bot.answers.append(Answer(str(request.method), path, response.status_code, response.text))

    client.session.hooks["response"].append(note)
    try:
        yield bot
    finally:
        client.session.close()


@dataclass
class Listener:
    """Messages of a WebSocket client of the SDK; ``wait`` for what must come."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def on_message(self, text: str) -> None:
        """Called on the SDK's own thread."""
        with self._changed:
            self.messages.append(json.loads(text))
            self._changed.notify_all()

    def on_open(self) -> None:
        """Called on the SDK's own thread."""
        self.opened += 1

    def on_close(self) -> None:
        """Called on the SDK's own thread."""
        self.closed += 1

    def wait(self, wanted: Callable[[dict[str, Any]], bool], since: int = 0) -> dict[str, Any]:
        """The first message after number ``since`` that is wanted; fails where none comes."""
        end_s = time.monotonic() + WAIT_S_MAX
        with self._changed:
            while True:
                for message in self.messages[since:]:
                    if wanted(message):
                        return message
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    seen = [message.get("channel", message) for message in self.messages[-20:]]
                    raise AssertionError(f"not among {len(self.messages)} messages: the last are {seen}")
                self._changed.wait(left_s)

    def wait_channel(self, channel: str, kind: str | None = None, since: int = 0) -> dict[str, Any]:
        """The first message of a channel (and kind of event)."""

        def wanted(message: dict[str, Any]) -> bool:
            events = message.get("events") or [{}]
            return message.get("channel") == channel and kind in (None, events[0].get("type"))

        return self.wait(wanted, since)

    def problems(self) -> list[str]:
        """Where messages are not of their documented shape."""
        found = []
        for number, message in enumerate(self.messages):
            name = message.get("channel", "ws_error")
            found += problems(documented.WS_SHAPES[name], message, f"message {number} {name}")
        return found


@contextlib.contextmanager
def ws_bot(
    simulator: Simulator,
    kind: type[WSClient | WSUserClient] = WSClient,
    key: str | None = "ES256",
    verified: bool = True,
    **options: Any,
) -> Iterator[tuple[Any, Listener]]:
    """A WebSocket client of the SDK that is open, with a context that verifies (the SDK's own does not)."""
    path = str(simulator.state_dir / KEY_FILES[key]) if key else None
    keys: dict[str, Any] = {"key_file": path} if path else {"api_key": None, "api_secret": None}
    listener = Listener()
    given: dict[str, Any] = {
        "on_message": listener.on_message,
        "on_open": listener.on_open,
        "on_close": listener.on_close,
    }
    made = verified_client(kind, trusted(simulator)) if verified else kind
    client: Any = made(base_url=f"wss://{simulator.host_port}", timeout=10, **keys, **(given | options))
    client.open()
    try:
        yield client, listener
    finally:
        _stop(client)


def trusted(simulator: Simulator) -> ssl.SSLContext:
    """A context that trusts the simulator alone."""
    return ssl.create_default_context(cafile=str(simulator.state_dir / "ca.pem"))


def verified_client(kind: type[WSClient | WSUserClient], context: ssl.SSLContext) -> Any:
    """The SDK's client with a context that verifies: it makes its own at each connection, so that one is exchanged."""

    class Verified(kind):  # type: ignore[misc, valid-type]
        async def open_async(self) -> None:
            bare = websockets.connect
            websockets.connect = lambda *given, **named: bare(*given, **(named | {"ssl": context}))  # type: ignore
            try:
                await super().open_async()
            finally:
                websockets.connect = bare

    return Verified


def _stop(client: Any) -> None:
    """End the client's thread whatever state it is in: its own ``close`` raises after a drop."""
    loop, thread = client.loop, client.thread
    if loop is None or loop.is_closed():
        return
    try:
        client.close()
    except Exception:  # noqa: BLE001 - the SDK raises several kinds here, and the thread must end all the same
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()
