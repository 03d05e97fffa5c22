"""Endpoints that do not fit together are refused before anything is sent; budgets and secrets are kept."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from pydantic import SecretStr

from cluster.venue import EndpointError, Venue, VenueEndpoint, VenueThrottled, simulator_endpoint
from cluster.venue_endpoint import SIMULATED_KEY, ProcessBudget, SafeLog, TokenBucket, redacted


def pem(key: Any) -> str:
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return str(key.private_bytes(*formats).decode())


ES256 = pem(ec.generate_private_key(ec.SECP256R1()))
ED25519 = ed25519.Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("host_port", "simulated"),
    [
        ("api.coinbase.com", False),
        ("API.Coinbase.COM", False),
        ("api.coinbase.com:443", False),
        ("api-sandbox.coinbase.com", False),
        ("127.0.0.1:8443", True),
        ("localhost:1", True),
        ("[::1]:8443", True),
        ("exchange.desk.svc.cluster.local:8443", True),
        ("notcoinbase.com", True),
        ("coinbase.com.example.org", True),
    ],
)
def test_hosts_and_kinds_that_fit(host_port: str, simulated: bool) -> None:
    assert VenueEndpoint(host_port, simulated=simulated).host_port == host_port
    with pytest.raises(EndpointError, match="host_port"):
        VenueEndpoint(host_port, simulated=not simulated)


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize(
    "host_port",
    [
        "",
        " ",
        "https://api.coinbase.com",
        "api.coinbase.com/",
        "api.coinbase.com/api",
        "api.coinbase.com?x",
        "api.coinbase.com#x",
        "api.coinbase.com.",
        ".coinbase.com",
        "user@api.coinbase.com",
        "api.coinbase.com@127.0.0.1:1",
        "api.coinbase.com\\@127.0.0.1",
        "api.coinbase.com:0",
        "api.coinbase.com:65536",
        "api.coinbase.com:https",
        "api.coinbase.com:443:443",
        "127.0.0.1:8443\n",
        "ａpi.coinbase.com",
        "api .coinbase.com",
    ],
)
def test_what_is_no_host_is_refused_for_either_kind(host_port: str, simulated: bool) -> None:
    with pytest.raises(EndpointError, match="host_port"):
        VenueEndpoint(host_port, simulated=simulated)


@pytest.mark.parametrize(
    ("host_port", "simulated", "environment"),
    [
        ("api.coinbase.com", False, "live"),
        ("api-sandbox.coinbase.com", False, "sandbox"),
        ("API-Sandbox.coinbase.com:443", False, "sandbox"),
        ("127.0.0.1:8443", True, "paper"),
        ("api-sandbox.coinbase.com.example.org", True, "paper"),
    ],
)
def test_the_environment_is_what_host_and_kind_say_and_no_other(
    host_port: str, simulated: bool, environment: Any
) -> None:
    assert VenueEndpoint(host_port, simulated=simulated).environment == environment
    assert VenueEndpoint(host_port, simulated=simulated, environment=environment).environment == environment
    others: list[Any] = sorted({"paper", "sandbox", "live"} - {environment})
    for other in others:
        with pytest.raises(EndpointError, match=f"environment: .* is {environment}, expected {other}"):
            VenueEndpoint(host_port, simulated=simulated, environment=other)


@pytest.mark.parametrize("host_port", ["api.coinbase.com", "api-sandbox.coinbase.com"])
def test_a_key_of_the_simulator_goes_to_no_real_host(host_port: str) -> None:
    name = f"{SIMULATED_KEY}/apiKeys/1"
    assert VenueEndpoint("127.0.0.1:1", name, SecretStr(ES256), simulated=True).environment == "paper"
    with pytest.raises(EndpointError, match="key_name"):
        VenueEndpoint(host_port, name, SecretStr(ES256))


@pytest.mark.parametrize("name", ["organizations/1-2-3/apiKeys/4", "me", "", "x/organizations/simulated"])
def test_a_real_key_goes_to_no_simulator(name: str) -> None:
    assert VenueEndpoint("api.coinbase.com", name, SecretStr(ES256)).environment == "live"
    with pytest.raises(EndpointError, match="key_name: a real key must not go to"):
        VenueEndpoint("127.0.0.1:1", name, SecretStr(ES256), simulated=True)


def test_streams_belong_to_the_environment() -> None:
    live = VenueEndpoint("api.coinbase.com")
    assert live.market_stream == "advanced-trade-ws.coinbase.com:443"
    assert live.user_stream == "advanced-trade-ws-user.coinbase.com:443"
    paper = VenueEndpoint("127.0.0.1:8443", simulated=True)
    assert (paper.market_stream, paper.user_stream) == ("127.0.0.1:8443", "127.0.0.1:8443")
    assert VenueEndpoint("api-sandbox.coinbase.com").user_stream == ""


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_of_all_requests_for_cancels_is_refused(share: float) -> None:
    with pytest.raises(EndpointError, match="cancel_share"):
        VenueEndpoint("api.coinbase.com", cancel_share=share)


@pytest.mark.parametrize("name", ["timeout_s", "requests_per_s", "public_requests_per_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_times_and_rates_are_positive_numbers(name: str, value: float) -> None:
    with pytest.raises(EndpointError, match=name):
        VenueEndpoint("api.coinbase.com", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "key",
    [
        ES256,
        ES256.replace("\n", "\\n"),
        pem(ED25519),
        base64.b64encode(ED25519.private_bytes_raw()).decode(),
        base64.b64encode(ED25519.private_bytes_raw() * 2).decode() + "\n",
    ],
)
def test_keys_of_both_kinds_are_taken_and_never_shown(key: str) -> None:
    endpoint = VenueEndpoint("api.coinbase.com", key_name="me", key_secret=SecretStr(key))
    venue = Venue(endpoint)
    assert venue._client(private=True).is_authenticated
    for shown in (repr(endpoint), str(endpoint), repr(venue), f"{venue.__dict__}"):
        assert key not in shown
        assert "PRIVATE" not in shown
    venue.close()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "CANARY-not-base64!",
        base64.b64encode(b"CANARY" * 5).decode(),
        ES256[:60] + "CANARY" + ES256[66:],
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(rsa.generate_private_key(65_537, 2_048)),
    ],
)
def test_a_key_that_cannot_sign_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(EndpointError, match="key_secret") as error:
        VenueEndpoint("api.coinbase.com", key_name="me", key_secret=SecretStr(key))
    assert "CANARY" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("given", [{"key_name": "me"}, {"key_secret": SecretStr(ES256)}])
def test_half_a_key_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="expected both or none"):
        VenueEndpoint("api.coinbase.com", **given)


def test_a_certificate_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match="ca_file"):
        VenueEndpoint("127.0.0.1:1", ca_file=tmp_path / "absent.pem", simulated=True)
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(EndpointError, match="holds no certificate"):
        Venue(VenueEndpoint("127.0.0.1:1", ca_file=tmp_path / "ca.pem", simulated=True))


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"name": "a", "privateKey": 5}', '{"name": "a"'])
def test_a_simulators_folder_without_a_usable_key_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "cdp_key.json").write_text(content)
    with pytest.raises(EndpointError):
        simulator_endpoint("127.0.0.1:1", tmp_path)


# --- the request budget ---


class Clock:
    """A clock that moves only when someone sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_a_seconds_worth_is_free_and_then_requests_wait_their_turn() -> None:
    clock = Clock()
    bucket = TokenBucket(10, clock, clock.sleep)
    for _ in range(10):
        bucket.take(wait_s_max=0)
    for _ in range(20):
        bucket.take(wait_s_max=1)
    assert clock.now_s == pytest.approx(102.0)
    assert len(clock.slept_s) == 20


def test_a_wait_that_would_be_too_long_is_refused_and_costs_nothing() -> None:
    clock = Clock()
    bucket = TokenBucket(2, clock, clock.sleep)
    bucket.take(0)
    bucket.take(0)
    for _ in range(5):
        with pytest.raises(VenueThrottled, match="budget of 2 requests/s") as error:
            bucket.take(wait_s_max=0.4)
        assert error.value.retry_after_s == pytest.approx(0.5)
    assert clock.slept_s == []
    bucket.take(wait_s_max=0.6)
    assert clock.slept_s == pytest.approx([0.5])


def test_a_pause_saves_up_one_second_at_most() -> None:
    clock = Clock()
    bucket = TokenBucket(5, clock, clock.sleep)
    clock.now_s += 1_000
    for _ in range(5):
        bucket.take(0)
    with pytest.raises(VenueThrottled):
        bucket.take(0)


def test_a_slow_budget_still_allows_one() -> None:
    clock = Clock()
    bucket = TokenBucket(0.1, clock, clock.sleep)
    bucket.take(0)
    with pytest.raises(VenueThrottled) as error:
        bucket.take(1)
    assert error.value.retry_after_s == pytest.approx(10)


def test_orders_never_use_the_share_kept_for_cancels_however_many_wait() -> None:
    clock = Clock()
    budget = ProcessBudget(10, 5, 0.2, clock, clock.sleep)
    for kind in ("order", "read") * 4:
        budget.take(kind, 0)
    with pytest.raises(VenueThrottled):
        budget.take("order", 0)
    # Cancels have their own two, then wait for their own share and never behind the orders.
    for _ in range(2):
        budget.take("cancel", 0)
    with pytest.raises(VenueThrottled) as error:
        budget.take("cancel", 0.4)
    assert error.value.retry_after_s == pytest.approx(0.5)
    for _ in range(5):
        budget.take("public", 0)
    with pytest.raises(VenueThrottled):
        budget.take("public", 0)


def test_cancels_may_use_what_others_leave() -> None:
    clock = Clock()
    budget = ProcessBudget(10, 5, 0.2, clock, clock.sleep)
    for _ in range(10):
        budget.take("cancel", 0)
    for kind in ("cancel", "order", "read"):
        with pytest.raises(VenueThrottled):
            budget.take(kind, 0)


def test_without_a_share_cancels_are_as_all_others() -> None:
    clock = Clock()
    budget = ProcessBudget(2, 5, 0.0, clock, clock.sleep)
    budget.take("order", 0)
    budget.take("cancel", 0)
    with pytest.raises(VenueThrottled):
        budget.take("cancel", 0)


# --- what may be shown ---


def test_tokens_and_keys_are_cut_out_of_texts() -> None:
    token = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtZSJ9.c2lnbmF0dXJl"
    text = redacted(f"before {token} between {ES256} after")
    assert text.startswith("before [redacted] between [redacted]")
    assert "PRIVATE" not in text
    assert token[:10] not in text
    assert redacted(ES256[: len(ES256) // 2]) == "[redacted]"
    assert redacted("HTTP 400: start and end argument is invalid") == "HTTP 400: start and end argument is invalid"


def test_the_sdks_log_is_cut_and_redacted_and_has_no_handler_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    Venue(VenueEndpoint("api.coinbase.com")).close()
    Venue(VenueEndpoint("api.coinbase.com")).close()
    log = logging.getLogger("coinbase.RESTClient")
    assert log.handlers == []
    assert sum(isinstance(each, SafeLog) for each in log.filters) == 1
    log.error("HTTP Error: %s %s", ES256, "x" * 2_000)
    (record,) = caplog.records
    assert "PRIVATE" not in record.getMessage()
    assert len(record.getMessage()) <= 500
