"""Where a venue is, who we are there, how fast we may ask, and everything that can go wrong on the way."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import SecretStr

from conf.settings import Environment, Secrets, Settings

COINBASE_HOST: Final = "api.coinbase.com"
MARKET_STREAM: Final = "advanced-trade-ws.coinbase.com:443"
USER_STREAM: Final = "advanced-trade-ws-user.coinbase.com:443"
SIMULATED_KEY: Final = "organizations/simulated"
"""How the names of the simulator's own keys begin."""

RequestKind = Literal["public", "read", "order", "cancel"]
_COINBASE_DOMAIN: Final = "coinbase.com"


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


@dataclass(frozen=True, slots=True)
class VenueEndpoint:
    """Where the venue is, who we are, and how fast we may ask.

    ``host_port`` without scheme or path. ``simulated`` says what must be there: a simulated endpoint refuses hosts of
    Coinbase and answers that do not say SIMULATED; a real one refuses all other hosts and any answer that does.
    ``environment`` is where orders end; given, it must be what host and ``simulated`` say (paper, sandbox or live).
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
    cancel_share: float = 0.2
    # Never None once made: without a value it is what host and ``simulated`` say.
    environment: Environment = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Check every field, so that no client is ever made with a key for the wrong place."""
        host = _host(self.host_port)
        of_coinbase = host == _COINBASE_DOMAIN or host.endswith("." + _COINBASE_DOMAIN)
        if self.simulated and of_coinbase:
            raise EndpointError(f"host_port: {self.host_port} is Coinbase's; a simulated endpoint must not go there")
        if not self.simulated and not of_coinbase:
            raise EndpointError(f"host_port: {self.host_port} is not under {_COINBASE_DOMAIN}; is it a simulator?")
        self._check_environment(host)
        for name in ("timeout_s", "requests_per_s", "public_requests_per_s"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise EndpointError(f"{name}: expected a positive number, was {value}")
        if not 0 <= self.cancel_share < 1:
            raise EndpointError(f"cancel_share: expected 0 or more and below 1, was {self.cancel_share}")
        if (self.key_name is None) != (self.key_secret is None):
            raise EndpointError("key_name, key_secret: expected both or none")
        if self.key_secret is not None:
            _check_key(self.key_secret)
        if self.ca_file is not None and not self.ca_file.is_file():
            raise EndpointError(f"ca_file: {self.ca_file} is not a file")

    def _check_environment(self, host: str) -> None:
        """Host, flag and key must belong to the environment: keys of simulators and real ones never meet a stranger."""
        sandbox = any("sandbox" in label for label in host.split("."))
        found: Environment = "paper" if self.simulated else "sandbox" if sandbox else "live"
        if self.environment not in (None, found):
            raise EndpointError(f"environment: {self.host_port} is {found}, expected {self.environment}")
        object.__setattr__(self, "environment", found)
        if self.key_name is not None and self.key_name.startswith(SIMULATED_KEY) is not self.simulated:
            kind = "a real key" if self.simulated else "a key of a simulator"
            raise EndpointError(f"key_name: {kind} must not go to {self.host_port}, which is {found}")

    @property
    def market_stream(self) -> str:
        """``host:port`` of the market channels; empty where there are none (sandbox)."""
        return self._stream(MARKET_STREAM)

    @property
    def user_stream(self) -> str:
        """``host:port`` of the user channel; empty where there is none (sandbox)."""
        return self._stream(USER_STREAM)

    def _stream(self, of_coinbase: str) -> str:
        return {"paper": self.host_port, "sandbox": "", "live": of_coinbase}[self.environment]


def simulator_endpoint(host_port: str, state_dir: Path, timeout_s: float = 5.0) -> VenueEndpoint:
    """The endpoint of a simulator on this machine, from the files in its state folder; raises ``EndpointError``."""
    path = state_dir / "cdp_key.json"
    try:
        content = json.loads(path.read_text())
        name, secret = content["name"], content["privateKey"]
    except (OSError, ValueError, KeyError, TypeError):
        name = secret = None
    if not isinstance(name, str) or not isinstance(secret, str):
        raise EndpointError(f"{path}: expected the simulator's key; has it been started?")
    return VenueEndpoint(
        host_port,
        key_name=name,
        key_secret=SecretStr(secret),
        ca_file=state_dir / "ca.pem",
        timeout_s=timeout_s,
        simulated=True,
        requests_per_s=1_000.0,
        public_requests_per_s=1_000.0,
    )


def configured_endpoint(settings: Settings, secrets: Secrets) -> VenueEndpoint:
    """The venue of the settings, with our keys where there are any; raises ``EndpointError``."""
    venue = settings.venue
    if venue.kind == "simulator":
        return simulator_endpoint(str(venue.host_port), settings.state_dir / "exchange", venue.timeout_s)
    return VenueEndpoint(
        host_port=venue.host_port or COINBASE_HOST,
        key_name=secrets.coinbase_key_name.get_secret_value() if secrets.coinbase_key_name else None,
        key_secret=secrets.coinbase_private_key,
        timeout_s=venue.timeout_s,
        requests_per_s=venue.requests_per_s,
        cancel_share=venue.cancel_share,
        environment=venue.environment,
    )


class Budget(Protocol):
    """How many requests we may still make; one for a process, or one that all processes share."""

    def take(self, kind: RequestKind, wait_s_max: float) -> None:
        """Wait for a request of this kind, at most ``wait_s_max``; raises ``VenueThrottled`` where that is too short.

        Called on any thread, and may block it.
        """


class ProcessBudget:
    """The budget of one process: public requests on their own, and of the private ones a share only for cancels."""

    def __init__(
        self,
        rate_per_s: float,
        public_rate_per_s: float,
        cancel_share: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        # Two buckets, because whoever waits in one has already taken what comes next: no queue of orders, however
        # long, can be ahead of a cancel.
        self._others = TokenBucket(rate_per_s * (1 - cancel_share), clock, sleep)
        self._cancels = TokenBucket(rate_per_s * cancel_share, clock, sleep) if cancel_share > 0 else self._others
        self._public = TokenBucket(public_rate_per_s, clock, sleep)

    def take(self, kind: RequestKind, wait_s_max: float) -> None:
        """As ``Budget.take``; a cancel uses what others leave before it waits for its own share."""
        if kind == "public":
            self._public.take(wait_s_max)
        elif kind != "cancel":
            self._others.take(wait_s_max)
        elif not (self._cancels.try_take() or self._others.try_take()):
            self._cancels.take(wait_s_max)


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

    def try_take(self) -> bool:
        """Take a token if there is one now."""
        try:
            self.take(0.0)
        except VenueThrottled:
            return False
        return True


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


def check_ca(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError):
        raise EndpointError(f"ca_file: {path} holds no certificate that can be trusted") from None


_SECRET_TEXT: Final = re.compile(
    r"eyJ[\w-]{5,}\.[\w-]+\.[\w-]*|-----BEGIN[^-]*PRIVATE KEY-----.*?(?:-----END[^-]*-----|\Z)", re.DOTALL
)


def redacted(text: str) -> str:
    """``text`` without tokens and keys, should a venue ever echo one."""
    return _SECRET_TEXT.sub("[redacted]", text)


class SafeLog(logging.Filter):
    """Cuts and redacts what the SDK logs: at ERROR it logs whole response bodies."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage())[:500], ()
        return True
