"""Coinbase Advanced Trade through its real SDK; the only importer of ``coinbase``. The simulator is the same code.

What the SDK leaves open is closed here: a timeout on every call, verified TLS whatever the environment says, no
redirects, a request budget, retries only of reads, our ``client_order_id`` always, typed errors, no secret in any text.

``create_order`` has one rule its callers build on: **only ``VenueUnknown`` leaves an order in doubt.** After any other
error the venue has no such order.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import logging
import multiprocessing
import random
import re
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import certifi
import numpy as np
import requests
import urllib3.exceptions
from coinbase.rest import RESTClient
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import SecretStr

from strategies.model import (
    NS_PER_S,
    Bars,
    Fill,
    Granularity,
    Order,
    OrderStatus,
    OrderType,
    Product,
    Side,
    TimeInForce,
)

CANDLES_MAX: Final = 350
COINBASE_HOST: Final = "api.coinbase.com"
_COINBASE_DOMAIN: Final = "coinbase.com"
_READ_TRIES: Final = 3
_BACKOFF_S: Final = (0.2, 0.8)
_PAGES_MAX: Final = 1_000
_PAGE_SIZE: Final = 250
_CANCELS_PER_CALL: Final = 100
_KNOWN_ORDERS_MAX: Final = 10_000
_CLIENT_ORDER_ID: Final = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")
_SECONDS_PER_DAY: Final = 86_400
# How far back an order is looked for by our own id when the caller does not say since when.
_LOOK_BACK_S: Final = 2 * _SECONDS_PER_DAY

T = TypeVar("T")
Json = dict[str, Any]


# --- errors -----------------------------------------------------------------------------------------------------------


class VenueError(RuntimeError):
    """Anything that went wrong between us and the venue. Texts never hold a key, a token or a whole body."""


class EndpointError(VenueError, ValueError):
    """The endpoint's settings do not fit together: host, key or certificate; nothing was sent."""


class VenueRejected(VenueError):
    """The venue refused the request (an order, mostly), or its form did before sending. ``code``: the venue's word."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message


class VenueUnknown(VenueError):
    """The request was sent and no usable answer came: the venue may or may not have acted."""


class VenueUnavailable(VenueError):
    """The venue could not be reached, or a read failed after its retries; nothing was changed there."""


class VenueThrottled(VenueError):
    """Too many requests, by the venue's count or by our own budget; not acted upon. Wait ``retry_after_s``."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class VenueUnauthorised(VenueError):
    """The key is absent, wrong, without the scope, or our clock is off (the token begins now)."""


class VenueGarbage(VenueError):
    """The venue answered with something that is not what it documents: HTML, missing keys, numbers that are none."""


class VenueNotFound(VenueError):
    """The venue does not know the order or the product."""


# --- nouns ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VenueEndpoint:
    """Where the venue is, who we are, and how fast we may ask.

    ``host_port`` without scheme or path. ``simulated`` says what must be there: a simulated endpoint refuses hosts of
    Coinbase and answers that do not say SIMULATED; a real one refuses all other hosts and any answer that does.
    ``key_secret`` is PEM (ES256, Ed25519) or base64 of an Ed25519 key. Raises ``EndpointError``.
    """

    host_port: str
    key_name: str | None = None
    key_secret: SecretStr | None = None
    ca_file: Path | None = None
    timeout_s: float = 5.0
    simulated: bool = False
    requests_per_s: float = 30.0
    public_requests_per_s: float = 10.0

    def __post_init__(self) -> None:
        """Check every field, so that no client is ever made with a key for the wrong place."""
        host = _host(self.host_port)
        of_coinbase = host == _COINBASE_DOMAIN or host.endswith("." + _COINBASE_DOMAIN)
        if self.simulated and of_coinbase:
            raise EndpointError(f"host_port: {self.host_port} is Coinbase's; a simulated endpoint must not go there")
        if not self.simulated and not of_coinbase:
            raise EndpointError(f"host_port: {self.host_port} is not under {_COINBASE_DOMAIN}; is it a simulator?")
        for name in ("timeout_s", "requests_per_s", "public_requests_per_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise EndpointError(f"{name}: expected a positive number, was {value}")
        if (self.key_name is None) != (self.key_secret is None):
            raise EndpointError("key_name, key_secret: expected both or none")
        if self.key_secret is not None:
            _check_key(self.key_secret)
        if self.ca_file is not None and not self.ca_file.is_file():
            raise EndpointError(f"ca_file: {self.ca_file} is not a file")


def simulator_endpoint(host_port: str, state_dir: Path, timeout_s: float = 5.0) -> VenueEndpoint:
    """The endpoint of a simulator on this machine, from the files in its state folder; raises ``EndpointError``."""
    path = state_dir / "cdp_key.json"
    try:
        content = json.loads(path.read_text())
        name, secret = str(content["name"]), SecretStr(content["privateKey"])
    except (OSError, ValueError, KeyError, TypeError):
        raise EndpointError(f"{path}: expected the simulator's key; has it been started?") from None
    return VenueEndpoint(
        host_port,
        key_name=name,
        key_secret=secret,
        ca_file=state_dir / "ca.pem",
        timeout_s=timeout_s,
        simulated=True,
        requests_per_s=1_000.0,
        public_requests_per_s=1_000.0,
    )


@dataclass(frozen=True, slots=True)
class Quote:
    """Best bid and ask of a product; sizes in base units."""

    product_id: str
    bid: Decimal
    bid_size: Decimal
    ask: Decimal
    ask_size: Decimal
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Balance:
    """A currency's balance at the venue; ``hold`` is claimed by open orders."""

    currency: str
    available: Decimal
    hold: Decimal
    uuid: str


@dataclass(frozen=True, slots=True)
class VenueOrder:
    """An order as the venue sees it. ``average_price`` is 0 while nothing is filled."""

    venue_order_id: str
    client_order_id: str
    product_id: str
    side: Side
    status: OrderStatus
    filled_quantity: Decimal
    average_price: Decimal
    total_fees: Decimal
    created_ns: int
    reject_reason: str


class TokenBucket:
    """A request budget of one process: ``rate_per_s`` on average, a second's worth at once. Thread-safe."""

    def __init__(
        self,
        rate_per_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``clock`` in seconds; both are passed in so that a test needs no waiting."""
        self._rate_per_s = rate_per_s
        self._burst = max(1.0, rate_per_s)
        self._tokens = self._burst
        self._clock, self._sleep = clock, sleep
        self._updated_s = clock()
        self._lock = threading.Lock()

    def take(self, wait_s_max: float) -> None:
        """Take a token, waiting at most ``wait_s_max``; raises ``VenueThrottled`` where that is not enough."""
        with self._lock:
            now_s = self._clock()
            self._tokens = min(self._burst, self._tokens + (now_s - self._updated_s) * self._rate_per_s)
            self._updated_s = now_s
            wait_s = max(0.0, (1.0 - self._tokens) / self._rate_per_s)
            if wait_s > wait_s_max:
                raise VenueThrottled(f"own budget of {self._rate_per_s:g} requests/s is spent", wait_s)
            # The token is taken before the wait, so that those who come later wait behind.
            self._tokens -= 1.0
        if wait_s > 0:
            self._sleep(wait_s)


# --- the venue --------------------------------------------------------------------------------------------------------


class Venue:
    """The venue at one endpoint. Thread-safe: every thread has its own sessions."""

    def __init__(self, endpoint: VenueEndpoint) -> None:
        """Makes no request. Raises ``EndpointError`` where the certificate file cannot be used."""
        _quiet_sdk_log()
        self.endpoint = endpoint
        self._verify = str(endpoint.ca_file) if endpoint.ca_file else certifi.where()
        _check_ca(self._verify)
        self._private_budget = TokenBucket(endpoint.requests_per_s)
        self._public_budget = TokenBucket(endpoint.public_requests_per_s)
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._client_order_ids: OrderedDict[str, str] = OrderedDict()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for session in self._sessions:
                session.close()
            self._sessions.clear()

    # --- public ---

    def server_time_ns(self) -> int:
        """The venue's clock in nanoseconds UTC (it tells milliseconds)."""
        answer = self._read_public(lambda client: client.get_unix_time())
        return _integer(_field(answer, "epoch_millis", "time"), "epochMillis") * 1_000_000

    def products(self) -> list[Product]:
        """All spot products."""
        answer = self._read_public(lambda client: client.get_public_products(product_type="SPOT"))
        return [_product(item) for item in _list(answer, "products")]

    def product(self, product_id: str) -> Product:
        """One product; raises ``VenueNotFound``."""
        return _product(self._read_public(lambda client: client.get_public_product(product_id)))

    def candles(self, product_id: str, granularity: Granularity, start_s: int, end_s: int) -> Bars:
        """One page of bars whose start lies in ``[start_s, end_s)`` (UNIX seconds), oldest first.

        At most 350; needs no key. The last bar may still be running. Raises ``ValueError`` where more is asked for.
        """
        length_s = granularity.seconds
        first_s = -(-start_s // length_s) * length_s
        count = max(0, -(-(end_s - first_s) // length_s))
        if count > CANDLES_MAX:
            raise ValueError(f"end_s: expected at most {CANDLES_MAX} bars of {granularity} a page, asked for {count}")
        if count == 0:
            return _bars(product_id, granularity, [])
        last_s = first_s + (count - 1) * length_s
        answer = self._read_public(
            lambda client: client.get_public_candles(product_id, str(first_s), str(last_s), granularity.value)
        )
        rows = [_candle(item) for item in _list(answer, "candles")]
        # Coinbase may send a bar before the start; one that was not asked for is dropped.
        return _bars(product_id, granularity, sorted(row for row in rows if first_s <= row[0] <= last_s))

    # --- private reads ---

    def best_bid_ask(self, product_ids: Sequence[str]) -> list[Quote]:
        """Best bid and ask of the products, in the order asked for; needs a key."""
        if not product_ids:
            return []
        answer = self._read(lambda client: client.get_best_bid_ask(product_ids=list(product_ids)))
        found = {quote.product_id: quote for quote in map(_quote, _list(answer, "pricebooks"))}
        missing = [name for name in product_ids if name not in found]
        if missing:
            raise VenueGarbage(f"best_bid_ask: no answer for {', '.join(missing)}")
        return [found[name] for name in product_ids]

    def accounts(self) -> list[Balance]:
        """All balances."""
        pages = self._pages(lambda client, cursor: client.get_accounts(limit=_PAGE_SIZE, cursor=cursor))
        return [_balance(item) for page in pages for item in _list(page, "accounts")]

    # --- calls ---

    def _read_public(self, call: Callable[[Any], Any]) -> Json:
        """A public read, sent without our key: a 401 can then only mean throttling (facts: issue 60 of the SDK)."""
        try:
            return self._read_with(call, private=False)
        except VenueUnauthorised as error:
            raise VenueThrottled(f"public request refused: {error}", 1.0) from None

    def _read(self, call: Callable[[Any], Any]) -> Json:
        self._need_key()
        return self._read_with(call, private=True)

    def _read_with(self, call: Callable[[Any], Any], private: bool) -> Json:
        """A read with at most two retries; only what a retry can mend is tried again."""
        budget = self._private_budget if private else self._public_budget
        for attempt in range(_READ_TRIES):
            budget.take(self.endpoint.timeout_s)
            try:
                return _sent(call, self._client(private))
            except (VenueUnknown, VenueUnavailable, VenueThrottled) as error:
                if attempt == _READ_TRIES - 1 or (isinstance(error, VenueThrottled) and error.retry_after_s > 2):
                    raise _as_read_error(error) from None
                # Jitter, so that processes which failed together do not come back together.
                time.sleep(_BACKOFF_S[attempt] * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
        raise AssertionError("unreachable")

    def _pages(self, call: Callable[[Any, str | None], Any]) -> Iterator[Json]:
        """All pages of a list; ends with an error where the venue's cursor does not move."""
        cursor: str | None = None
        for _ in range(_PAGES_MAX):
            page = self._read(lambda client, at=cursor: call(client, at))  # type: ignore[misc]
            yield page
            following = page.get("cursor") or ""
            if not following or page.get("has_next") is False:
                return
            if following == cursor or not isinstance(following, str):
                raise VenueGarbage("cursor: the venue sent the same page twice")
            cursor = following
        raise VenueGarbage(f"cursor: more than {_PAGES_MAX} pages")

    def _need_key(self) -> None:
        if self.endpoint.key_name is None:
            raise VenueUnauthorised(f"{self.endpoint.host_port}: this call needs a key and the endpoint has none")

    def _client(self, private: bool) -> Any:
        name = "private" if private else "public"
        client = getattr(self._local, name, None)
        if client is None:
            client = self._new_client(private)
            setattr(self._local, name, client)
            with self._lock:
                self._sessions.append(client.session)
        return client

    def _new_client(self, private: bool) -> Any:
        secret = self.endpoint.key_secret
        with_key = private and secret is not None
        client = RESTClient(
            # Given even when absent: the SDK's defaults are what the environment held when it was imported.
            api_key=self.endpoint.key_name if with_key else None,
            api_secret=secret.get_secret_value() if with_key and secret is not None else None,
            base_url=self.endpoint.host_port,
            timeout=self.endpoint.timeout_s,
        )
        session = client.session
        # With trust_env the environment's CA bundle and proxies would override what is set here.
        session.trust_env = False
        session.verify = self._verify
        session.max_redirects = 0
        session.hooks["response"].append(self._check_origin)
        return client

    def _check_origin(self, response: requests.Response, *_: Any, **__: Any) -> None:
        """Refuse simulated answers from the real venue and real ones from a simulator."""
        says_simulated = response.headers.get("X-Simulated") == "1"
        if says_simulated != self.endpoint.simulated:
            expected = "SIMULATED" if self.endpoint.simulated else "real"
            raise VenueGarbage(f"{self.endpoint.host_port}: expected a {expected} venue, the answer says otherwise")


# --- from the SDK's errors to ours ------------------------------------------------------------------------------------


def _sent(call: Callable[[Any], Any], client: Any) -> Json:
    """Run one SDK call and return its answer as a plain dict; every failure becomes one of our errors."""
    try:
        answer: Json = _plain(call(client).to_dict())
    except requests.HTTPError as error:
        raise _http_error(error.response) from None
    except multiprocessing.AuthenticationError:
        raise VenueUnauthorised("this call needs a key") from None
    except requests.exceptions.JSONDecodeError:
        raise VenueGarbage("answer: expected JSON, was something else (HTML?)") from None
    except requests.TooManyRedirects:
        raise VenueGarbage("answer: a redirect, which is not followed") from None
    except requests.RequestException as error:
        raise _connection_error(error) from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        # The SDK's response classes fail in these ways where the JSON is not an object of the documented shape.
        raise VenueGarbage(f"answer: not of the documented shape ({type(error).__name__})") from None
    return answer


def _http_error(response: requests.Response) -> VenueError:
    status, text = response.status_code, _error_text(response)
    if status in (401, 403):
        return VenueUnauthorised(f"HTTP {status}: {text}")
    if status == 429:
        return VenueThrottled(f"HTTP 429: {text}", _retry_after_s(response))
    if status == 404:
        return VenueNotFound(f"HTTP 404: {text}")
    if status in (400, 405, 413, 414, 415, 422):
        return VenueRejected(_error_code(response) or f"HTTP_{status}", text)
    # 5xx, and what does not say whether it acted (408, 409, 425, …).
    return VenueUnknown(f"HTTP {status}: {text}")


def _connection_error(error: requests.RequestException) -> VenueError:
    """Whether a failed connection can have carried the request: only what surely did not is VenueUnavailable."""
    reason = _cause(error)
    never = isinstance(
        reason,
        (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError, ssl.SSLCertVerificationError),
    )
    text = f"{type(error).__name__} ({type(reason).__name__})"
    return VenueUnavailable(f"not reached: {text}") if never else VenueUnknown(f"no answer: {text}")


def _cause(error: BaseException) -> BaseException:
    """The innermost reason that ``requests`` and ``urllib3`` wrapped; bounded, as any chain of causes."""
    inner = error
    for _ in range(8):
        wrapped = [getattr(inner, "reason", None), *inner.args]
        following = next((each for each in wrapped if isinstance(each, BaseException)), None)
        if following is None:
            break
        inner = following
    return inner


def _as_read_error(error: VenueError) -> VenueError:
    """A read has no doubt to leave: what would be VenueUnknown for an order is unavailability here."""
    return VenueUnavailable(str(error)) if isinstance(error, VenueUnknown) else error


def _error_text(response: requests.Response) -> str:
    body = _error_body(response)
    text = body.get("message") or body.get("error_details") or body.get("error") or response.reason or ""
    return _redacted(str(text))[:200]


def _error_code(response: requests.Response) -> str:
    return _redacted(str(_error_body(response).get("error") or ""))[:80]


def _error_body(response: requests.Response) -> Json:
    try:
        body = response.json()
    except requests.exceptions.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after_s(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(60.0, float(text)) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,3})?", text) else 1.0


# --- from the venue's JSON to our nouns -------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """The SDK's response objects as plain dicts and lists, however deep."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _product(item: Json) -> Product:
    try:
        return Product(
            product_id=_text(item, "product_id"),
            base_currency=_text(item, "base_currency_id"),
            quote_currency=_text(item, "quote_currency_id"),
            base_increment=_decimal(item, "base_increment"),
            quote_increment=_decimal(item, "quote_increment"),
            base_min_size=_decimal(item, "base_min_size"),
            base_max_size=_decimal(item, "base_max_size"),
            quote_min_size=_decimal(item, "quote_min_size"),
            quote_max_size=_decimal(item, "quote_max_size"),
            status=_text(item, "status"),
            **{flag: _flag(item, flag) for flag in _PRODUCT_FLAGS},
        )
    except VenueGarbage:
        raise
    except ValueError as error:
        raise VenueGarbage(f"product: {error}") from None


_PRODUCT_FLAGS: Final = (
    "is_disabled",
    "trading_disabled",
    "cancel_only",
    "limit_only",
    "post_only",
    "auction_mode",
    "view_only",
)


def _quote(item: Json) -> Quote:
    bids, asks = _list(item, "bids"), _list(item, "asks")
    name = _text(item, "product_id")
    if not bids or not asks:
        raise VenueGarbage(f"best_bid_ask of {name}: a side is empty")
    return Quote(
        name,
        _positive(bids[0], "price"),
        _decimal(bids[0], "size"),
        _positive(asks[0], "price"),
        _decimal(asks[0], "size"),
        _time_ns(_text(item, "time"), "time"),
    )


def _balance(item: Json) -> Balance:
    available, hold = _object(item, "available_balance"), _object(item, "hold")
    return Balance(_text(item, "currency"), _decimal(available, "value"), _decimal(hold, "value"), _text(item, "uuid"))


def _candle(item: Json) -> tuple[int, float, float, float, float, float]:
    numbers = [float(_decimal(item, name)) for name in ("open", "high", "low", "close", "volume")]
    opened, high, low, closed, volume = numbers
    start_s = _integer(_field(item, "start", "candle"), "start")
    if not 0 < low <= min(opened, closed) <= max(opened, closed) <= high < float("inf") or volume < 0:
        raise VenueGarbage(f"candle at {start_s}: low, open, close, high do not fit: {numbers}")
    return start_s, opened, high, low, closed, volume


def _bars(product_id: str, granularity: Granularity, rows: list[tuple[int, float, float, float, float, float]]) -> Bars:
    starts = np.array([row[0] for row in rows], dtype=np.int64)
    if (np.diff(starts) <= 0).any() or (starts % granularity.seconds != 0).any():
        raise VenueGarbage(f"candles of {product_id}: starts repeat or do not fit {granularity}")
    columns = [np.array([row[column] for row in rows], dtype=np.float64) for column in range(1, 6)]
    return Bars(product_id, granularity, starts * NS_PER_S, *columns)


def _field(item: Json, name: str, of: str = "answer") -> Any:
    """A key that must be there: the SDK's own ``obj["x"]`` gives None where it is not."""
    value = item.get(name) if isinstance(item, dict) else None
    if value is None:
        raise VenueGarbage(f"{of}: no {name}")
    return value


def _text(item: Json, name: str) -> str:
    value = _field(item, name)
    if not isinstance(value, str):
        raise VenueGarbage(f"{name}: expected a string, was {type(value).__name__}")
    return value


def _flag(item: Json, name: str) -> bool:
    value = _field(item, name, "product")
    if not isinstance(value, bool):
        raise VenueGarbage(f"{name}: expected true or false, was {type(value).__name__}")
    return value


def _object(item: Json, name: str) -> Json:
    value = _field(item, name)
    if not isinstance(value, dict):
        raise VenueGarbage(f"{name}: expected an object, was {type(value).__name__}")
    return value


def _list(item: Json, name: str) -> list[Json]:
    value = _field(item, name)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise VenueGarbage(f"{name}: expected a list of objects, was {type(value).__name__}")
    return value


def _decimal(item: Json, name: str) -> Decimal:
    """A finite decimal, given as a string; never negative in anything the venue sends us."""
    text = _text(item, name)
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise VenueGarbage(f"{name}: expected a number, was {text[:40]!r}") from None
    if not value.is_finite() or value < 0 or not -40 < value.adjusted() < 40:
        raise VenueGarbage(f"{name}: expected a finite number of 0 or more, was {text[:40]!r}")
    return value


def _positive(item: Json, name: str) -> Decimal:
    value = _decimal(item, name)
    if value == 0:
        raise VenueGarbage(f"{name}: expected more than 0")
    return value


def _integer(value: Any, name: str) -> int:
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise VenueGarbage(f"{name}: expected a whole number, was {text[:40]!r}")
    return int(text)


def _time_ns(text: str, name: str) -> int:
    """RFC 3339 to nanoseconds UTC; fractions beyond microseconds are cut off."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", text)
    if not match:
        raise VenueGarbage(f"{name}: expected an RFC 3339 time, was {text[:40]!r}")
    day, clock, fraction, zone = match.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        raise VenueGarbage(f"{name}: expected an RFC 3339 time, was {text[:40]!r}") from None
    nanoseconds = int((fraction or ".0")[1:].ljust(9, "0"))
    return int(moment.timestamp()) * NS_PER_S + nanoseconds


# --- endpoint, key, log -----------------------------------------------------------------------------------------------


def _host(host_port: str) -> str:
    """The host in lower case; raises ``EndpointError`` for anything but ``host`` or ``host:port``."""
    match = re.fullmatch(r"([A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[::1\])(?::([0-9]{1,5}))?", host_port)
    if not match or (match[2] is not None and not 0 < int(match[2]) < 65_536):
        raise EndpointError(f"host_port: expected host or host:port without scheme or path, was {host_port[:80]!r}")
    return match[1].lower()


def _check_key(secret: SecretStr) -> None:
    """Refuse a key the SDK would fail on at the first call; the text never holds any of it."""
    text = secret.get_secret_value()
    try:
        if text.lstrip().startswith("-----BEGIN"):
            key = serialization.load_pem_private_key(text.replace("\\n", "\n").encode(), password=None)
            usable = isinstance(key, ed25519.Ed25519PrivateKey) or (
                isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1)
            )
        else:
            usable = len(base64.b64decode("".join(text.split()), validate=True)) in (32, 64)
    except (ValueError, TypeError, binascii.Error):
        usable = False
    if not usable:
        raise EndpointError("key_secret: expected an ES256 (P-256) or Ed25519 private key, PEM or base64")


def _check_ca(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError):
        raise EndpointError(f"ca_file: {path} holds no certificate that can be trusted") from None


_SECRET_TEXT: Final = re.compile(
    r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*|-----BEGIN[^-]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|\Z)", re.DOTALL
)


def _redacted(text: str) -> str:
    """``text`` without tokens and keys, should a venue ever echo one."""
    return _SECRET_TEXT.sub("[redacted]", text)


class _SafeLog(logging.Filter):
    """Cuts and redacts what the SDK logs: at ERROR it logs whole response bodies."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = _redacted(record.getMessage())[:500], ()
        return True


def _quiet_sdk_log() -> None:
    """The SDK gives its logger a handler of its own on import; our processes have one place for logs."""
    sdk_log = logging.getLogger("coinbase.RESTClient")
    sdk_log.handlers.clear()
    if not any(isinstance(each, _SafeLog) for each in sdk_log.filters):
        sdk_log.addFilter(_SafeLog())
