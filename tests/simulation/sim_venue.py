"""The venue and the way to it: the exchange engine and its HTTP face at one end, the desk's own client at the other.

Between them is what happens on a network and in a venue's machines: a request is late, is lost, is acted upon with the
answer lost, or is answered with 429, 5xx, HTML or half a JSON; lists lag behind, repeat and reorder what they hold.
``SimVenue`` is the real client but for its transport and its signature.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode

import requests
import urllib3.exceptions
from coinbase.rest import RESTClient
from coinbase.rest.rest_base import handle_exception
from pydantic import SecretStr

from cluster import venue as venue_module
from cluster.exchange_book import Exchange, Fees
from cluster.exchange_history import History
from cluster.exchange_http import Face
from cluster.exchange_orders import Rules
from cluster.venue import Venue, VenueEndpoint
from cluster.venue_endpoint import check_ca
from strategies.model import NS_PER_S
from tests.simulation.virtual_loop import VirtualLoop, wait_for

HOST: Final = "simulated.invalid:1"
ORDERS_PATH: Final = "/api/v3/brokerage/orders"
DEPOSITS: Final = {"USD": Decimal(400_000), "BTC": Decimal(2), "ETH": Decimal(20)}
# A request that arrives later than this was given up by whoever sent it (``execution.SETTLED_S``).
LATE_S: Final = 5.5
_TROUBLE_OF_WRITES: Final = 2.0
_TROUBLE_OF_READS: Final = 0.25
_DAY_S: Final = 86_400
_LISTS: Final = {
    f"{ORDERS_PATH}/historical/batch": ("orders", "created_time"),
    f"{ORDERS_PATH}/historical/fills": ("fills", "trade_time"),
}


@dataclasses.dataclass(frozen=True)
class VenueFaults:
    """Shares of requests that meet each fault (of writes many more than of reads), and how far the venue's lists lag
    behind it, in seconds."""

    refused: float = 0.0
    lost: float = 0.0
    act_and_drop: float = 0.0
    late: float = 0.0
    late_s: float = 8.0
    throttled: float = 0.0
    unauthorised: float = 0.0
    failing: float = 0.0
    garbage: float = 0.0
    lists_lag_s: float = 0.0
    repeats: float = 0.0


class MemoryJournal:
    """The exchange's journal without a disk: a venue that restarts finds all of it."""

    def __init__(self, past: Sequence[dict[str, Any]] = ()) -> None:
        self.past = list(past)
        self.events = list(past)
        self.length = 0
        self.path = "memory"

    def append(self, events: Sequence[dict[str, Any]]) -> None:
        """Keep them."""
        self.events += events

    def sync(self) -> None:
        """They are kept."""

    async def synced(self) -> None:
        """They are kept."""

    def close(self) -> None:
        """Nothing is open."""


class _Face(Face):
    """The face without its door: tokens are proven elsewhere, and signing them is most of a call's time."""

    def _authorise(self, *_: Any, **__: Any) -> None:
        return None


@cache
def history() -> History:
    """One market for all seeds: making it takes longer than a run. A run begins at another time of it."""
    return History(7)


class SimVenueServer:
    """The venue: the engine, its face, its clock. ``delivered`` counts the acts of placing by client order id."""

    def __init__(self, loop: VirtualLoop, note: Callable[..., None]) -> None:
        self.loop = loop
        self.note = note
        self.offset_ns = 0
        self.delivered: Counter[str] = Counter()
        self.failures: list[str] = []
        self.sockets: dict[Any, None] = {}
        self.late: set[str] = set()
        self.rules = Rules()
        self.exchange = self._exchange(MemoryJournal())
        self.face = self._face()

    def now_ns(self) -> int:
        """The venue's own clock."""
        return self.loop.now_us() * 1_000 + self.offset_ns

    def restart(self) -> None:
        """A new process on the same journal."""
        for socket in list(self.sockets):
            socket._close()
        self.exchange = self._exchange(MemoryJournal(self._journal.events))
        self.face = self._face()
        self.note("venue restarts")

    def act(self, method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
        """Do what a request asks: the status and the body of the answer."""
        scope = {"method": method, "path": path, "query_string": query.encode(), "headers": [], "type": "http"}
        answer = self.face._safe_answer(scope, body)
        if answer.status >= 500:
            self.failures.append(f"the exchange failed: {method} {path}?{query} {body!r}")
        text = answer.content if isinstance(answer.content, str) else json.dumps(answer.content, separators=(",", ":"))
        if method == "POST" and path == ORDERS_PATH and json.loads(text).get("success"):
            self.delivered[json.loads(body)["client_order_id"]] += 1
        return answer.status, text.encode()

    def _exchange(self, journal: MemoryJournal) -> Exchange:
        self._journal = journal
        made = Exchange(history(), journal, DEPOSITS, Fees(), self.now_ns(), self.rules)  # type: ignore[arg-type]
        made.listen(self._heard)
        return made

    def _heard(self, event: dict[str, Any]) -> None:
        for socket in list(self.sockets):
            socket.heard(event.get("order_id", ""))

    def _face(self) -> Face:
        return _Face(self.exchange, None, self.now_ns() // NS_PER_S - 30 * _DAY_S, self.now_ns)  # type: ignore[arg-type]


class Network:
    """The way between one process and the venue."""

    def __init__(self, name: str, server: SimVenueServer, source: random.Random) -> None:
        self.name = name
        self.faults = VenueFaults()
        self.called: Callable[[bool], None] = lambda _: None
        self._server = server
        self._loop = server.loop
        self._random = source

    def request(self, method: str, path: str, query: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        """Inside a worker: send a request and wait for the answer; raises as ``requests`` does."""
        answer: asyncio.Future[tuple[int, bytes]] = self._loop.create_future()
        self._send(method, path, query, body, answer)
        limit = self._loop.call_later(timeout_s, _fail, answer, requests.exceptions.ReadTimeout("timed out"))
        try:
            return wait_for(answer)  # type: ignore[no-any-return]
        finally:
            limit.cancel()
            # Where the process ended meanwhile, nobody is there to hear.
            answer.cancel()

    def _send(self, method: str, path: str, query: str, body: bytes, answer: asyncio.Future[tuple[int, bytes]]) -> None:
        faults, draw = self.faults, self._random.random
        fate = draw()
        for name in ("refused", "lost", "act_and_drop", "late", "throttled", "unauthorised", "failing", "garbage"):
            # What changes something is one request in ten; it is what there must be trouble with.
            share = getattr(faults, name) * (_TROUBLE_OF_WRITES if method == "POST" else _TROUBLE_OF_READS)
            if fate < share:
                break
            fate -= share
        else:
            name = ""
        if name:
            self._server.note("fault", self.name, name, method, path)
        delay_s = self._latency_s() + (draw() * faults.late_s if name == "late" else 0.0)
        if delay_s > LATE_S and path == ORDERS_PATH:
            self._server.late.add(json.loads(body)["client_order_id"])
        if name == "refused":
            reason = urllib3.exceptions.NewConnectionError(None, "refused")  # type: ignore[arg-type]
            error = requests.exceptions.ConnectionError(urllib3.exceptions.MaxRetryError(None, "", reason))  # type: ignore[arg-type]
            self._loop.call_later(delay_s, _fail, answer, error)
        elif name != "lost":
            self._loop.call_later(delay_s, self._arrive, name, method, path, query, body, answer)

    def _arrive(
        self,
        fault: str,
        method: str,
        path: str,
        query: str,
        body: bytes,
        answer: asyncio.Future[tuple[int, bytes]],
    ) -> None:
        # These are decided at the venue's door; of the others half have acted before they failed.
        acts = fault not in {"throttled", "unauthorised"} and (fault != "failing" or self._random.random() < 0.5)
        status, content = self._server.act(method, path, query, body) if acts else (0, b"")
        self._server.note("venue", self.name, method, path, query, body, "->", fault, status, content)
        self.called(method == "POST")
        if fault == "act_and_drop":
            gone = urllib3.exceptions.ProtocolError("Connection aborted.")
            self._later(_fail, answer, requests.exceptions.ConnectionError(gone))
            return
        replaced = {
            "throttled": (429, b"Too many requests"),
            "unauthorised": (401, b"Unauthorized"),
            "failing": (self._random.choice([500, 502, 503, 504]), b"<html>Bad gateway</html>"),
            "garbage": (200, self._random.choice([b"<html></html>", b"[]", content[: len(content) // 2], b"{}"])),
        }
        status, content = replaced.get(fault, (status, content))
        if not fault and method == "GET" and status == 200:
            content = self._lagging(path, content)
        self._later(_succeed, answer, (status, content))

    def _lagging(self, path: str, content: bytes) -> bytes:
        """Lists do not hold the newest yet, and hold some entries twice and in another order."""
        faults = self.faults
        lists = {
            "/orders/historical/batch": ("orders", "created_time"),
            "/orders/historical/fills": ("fills", "trade_time"),
        }
        name, stamp = next((found for suffix, found in lists.items() if path.endswith(suffix)), ("", ""))
        if not name or not (faults.lists_lag_s or faults.repeats):
            return content
        page = json.loads(content)
        horizon_ns = self._server.now_ns() - round(faults.lists_lag_s * self._random.random() * NS_PER_S)
        items = [item for item in page[name] if _ns(item[stamp]) <= horizon_ns]
        if items and self._random.random() < faults.repeats:
            items += self._random.choices(items, k=min(3, len(items)))
            self._random.shuffle(items)
        page[name] = items
        return json.dumps(page).encode()

    def _later(self, settle: Callable[..., None], answer: asyncio.Future[tuple[int, bytes]], value: Any) -> None:
        self._loop.call_later(self._latency_s(), settle, answer, value)

    def _latency_s(self) -> float:
        return 0.001 + self._random.random() ** 4 * 0.08


# It reads all certificates of the machine anew for each client.
venue_module.check_ca = cache(check_ca)  # type: ignore[attr-defined]


class _NoBudget:
    """As many requests as one likes: the budget is proven elsewhere, with clocks of its own."""

    def take(self, kind: str, wait_s_max: float) -> None:
        """At once."""


class SimVenue(Venue):
    """The desk's own client, its requests going over ``network``."""

    def __init__(self, network: Network, timeout_s: float) -> None:
        super().__init__(_endpoint(timeout_s), _NoBudget())
        self.network = network

    def stream_token(self) -> str:
        """Nobody reads it."""
        return ""

    def _new_client(self, private: bool) -> Any:
        return _Client(self.network, self.endpoint, private)


class _Client(RESTClient):  # type: ignore[misc]
    """The SDK's client from the method called to the request made, and from the answer on."""

    def __init__(self, network: Network, endpoint: VenueEndpoint, private: bool) -> None:
        super().__init__(api_key="simulated" if private else None, api_secret="s" if private else None)
        self.base_url, self.timeout, self._network = endpoint.host_port, endpoint.timeout_s, network

    def set_headers(self, method: str, path: str) -> dict[str, str]:
        """None: nobody reads them."""
        return {}

    def send_request(
        self, http_method: str, url_path: str, params: Any, headers: Any, data: dict[str, Any] | None = None
    ) -> Any:
        """As the SDK's, without a socket."""
        query = urlencode(params or {}, doseq=True)
        status, content = self._network.request(
            http_method, url_path, query, json.dumps(data or {}).encode(), self.timeout
        )
        response = requests.Response()
        response.status_code, response._content, response.reason = status, content, "simulated"
        handle_exception(response)
        return response.json()


@cache
def _endpoint(timeout_s: float) -> VenueEndpoint:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    pem = ec.derive_private_key(7, ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return VenueEndpoint(
        HOST,
        key_name="organizations/simulated/apiKeys/1",
        key_secret=SecretStr(pem.decode()),
        timeout_s=timeout_s,
        simulated=True,
        requests_per_s=1_000.0,
        public_requests_per_s=1_000.0,
    )


def _ns(stamp: str) -> int:
    from cluster.venue_shapes import time_ns_of

    return time_ns_of(stamp, "time")


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def _succeed(answer: asyncio.Future[Any], value: Any) -> None:
    if not answer.done():
        answer.set_result(value)
