"""Whom the exchange simulator believes, and the certificates and keys it makes for itself."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import ssl
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from cluster.exchange_keys import Credentials, KeyFileError, Unauthorised, check_token, open_credentials
from cluster.exchange_keys import load_private_key as load

NOW = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NOW_S = int(NOW.timestamp())
HOST = "127.0.0.1:8443"
PATH = "/api/v3/brokerage/accounts"
KEY_FILES = ("cdp_key.json", "cdp_key_ed25519.json", "cdp_key_view.json", "cdp_key_transfer.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("keys")
    open_credentials(made, NOW)
    return made


@pytest.fixture(scope="module")
def credentials(folder: Path) -> Credentials:
    return open_credentials(folder, NOW)


def key_of(folder: Path, file: str) -> tuple[str, Any]:
    content = json.loads((folder / file).read_text())
    return content["name"], load(content["privateKey"])


def token(folder: Path, file: str = "cdp_key.json", headers: dict[str, Any] | None = None, **claims: Any) -> str:
    """A good token, but for what is changed."""
    name, key = key_of(folder, file)
    good = {"sub": name, "iss": "cdp", "nbf": NOW_S, "exp": NOW_S + 120, "uri": f"GET {HOST}{PATH}"}
    whole = {claim: value for claim, value in (good | claims).items() if value is not None}
    algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "EdDSA"
    return jwt.encode(whole, key, algorithm=algorithm, headers={"kid": name, "nonce": "0"} | (headers or {}))


def check(given: str, credentials: Credentials, now_s: float = NOW_S) -> str:
    return check_token(given, credentials.keys, "GET", HOST, PATH, now_s)


@pytest.mark.parametrize("file", KEY_FILES)
def test_a_good_token_names_its_key(folder: Path, credentials: Credentials, file: str) -> None:
    assert check(token(folder, file), credentials) == key_of(folder, file)[0]


@pytest.mark.parametrize("now_s", [NOW_S - 5, NOW_S, NOW_S + 119.9])
def test_a_token_is_good_during_its_two_minutes(folder: Path, credentials: Credentials, now_s: float) -> None:
    assert check(token(folder), credentials, now_s)


@pytest.mark.parametrize("now_s", [NOW_S - 6, NOW_S + 120, NOW_S + 10_000])
def test_a_token_is_refused_outside_its_time(folder: Path, credentials: Credentials, now_s: float) -> None:
    with pytest.raises(Unauthorised):
        check(token(folder), credentials, now_s)


@pytest.mark.parametrize("file", KEY_FILES)
@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "coinbase-cloud"},
        {"iss": None},
        {"sub": "someone else"},
        {"sub": None},
        {"uri": f"POST {HOST}{PATH}"},
        {"uri": f"GET {HOST}{PATH}/x"},
        {"uri": f"GET {HOST}{PATH}?limit=1"},
        {"uri": f"GET api.coinbase.com{PATH}"},
        {"uri": f"GET 127.0.0.1{PATH}"},
        {"uri": None},
        {"nbf": None},
        {"exp": None},
        {"exp": NOW_S},
        {"exp": NOW_S - 1},
        {"exp": NOW_S + 181},
        {"exp": "soon"},
        {"exp": True},
        {"nbf": NOW_S + 60},
        {"nbf": float("nan")},
        {"nbf": float("inf"), "exp": float("inf")},
        {"headers": {"kid": "nobody"}},
        {"headers": {"kid": ""}},
    ],
)
def test_a_token_with_one_wrong_claim_is_refused(
    folder: Path, credentials: Credentials, file: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(Unauthorised):
        check(token(folder, file, **changes), credentials)


def test_a_signature_of_another_key_is_refused(folder: Path, credentials: Credentials) -> None:
    forged_keys: tuple[ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey] = (
        ec.generate_private_key(ec.SECP256R1()),
        ed25519.Ed25519PrivateKey.generate(),
    )
    for file, forged_key in zip(KEY_FILES[:2], forged_keys, strict=True):
        assert isinstance(forged_key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
        name, _ = key_of(folder, file)
        claims = jwt.decode(token(folder, file), options={"verify_signature": False})
        algorithm = "ES256" if file == "cdp_key.json" else "EdDSA"
        forged = jwt.encode(claims, forged_key, algorithm=algorithm, headers={"kid": name})
        with pytest.raises(Unauthorised):
            check(forged, credentials)


def test_the_tokens_own_word_on_its_algorithm_is_not_taken(folder: Path, credentials: Credentials) -> None:
    name, _ = key_of(folder, "cdp_key.json")
    claims = jwt.decode(token(folder), options={"verify_signature": False})
    none = f"{encoded({'alg': 'none', 'typ': 'JWT', 'kid': name})}.{encoded(claims)}."
    other_key = token(folder, "cdp_key_ed25519.json", headers={"kid": name}, sub=name)
    # HS256 with the public key as the secret: the classic confusion.
    public = credentials.keys[name]
    assert isinstance(public, ec.EllipticCurvePublicKey)
    head, middle = (encoded(part) for part in ({"alg": "HS256", "typ": "JWT", "kid": name}, claims))
    digest = hmac.new(public.public_numbers().x.to_bytes(32, "big"), f"{head}.{middle}".encode(), hashlib.sha256)
    confused = f"{head}.{middle}.{base64.urlsafe_b64encode(digest.digest()).decode().rstrip('=')}"
    for given in (none, other_key, confused):
        with pytest.raises(Unauthorised):
            check(given, credentials)


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


@pytest.mark.parametrize("kid", [None, 5, ["a"], {"a": 1}, ""])
def test_a_key_id_that_is_no_name_is_refused(folder: Path, credentials: Credentials, kid: Any) -> None:
    _, middle, signature = token(folder).split(".")
    with pytest.raises(Unauthorised):
        check(f"{encoded({'alg': 'ES256', 'kid': kid})}.{middle}.{signature}", credentials)


@pytest.mark.parametrize("given", ["", "x", "a.b.c", "....", "eyJ.eyJ.", "\x00", "ü.ü.ü", "a" * 10_000])
def test_what_is_no_token_is_refused(credentials: Credentials, given: str) -> None:
    with pytest.raises(Unauthorised):
        check(given, credentials)


def test_a_token_cut_or_changed_anywhere_is_refused(folder: Path, credentials: Credentials) -> None:
    good = token(folder)
    for at in range(0, len(good), 7):
        # The last character of a part may hold bits that mean nothing, so the one before it is changed.
        if good[at] == "." or good[at + 1 : at + 2] in {".", ""}:
            continue
        changed = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        for bad in (changed, good[:at]):
            with pytest.raises(Unauthorised):
                check(bad, credentials)


def test_the_token_of_the_control_surface_is_compared_whole(credentials: Credentials) -> None:
    assert credentials.is_sim_token(credentials.sim_token)
    for given in ("", credentials.sim_token[:-1], credentials.sim_token + "x", "ü"):
        assert not credentials.is_sim_token(given)
    assert credentials.sim_token not in repr(credentials)


# --- files ---


def test_private_files_are_only_the_owners(folder: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    public = {"ca.pem", "server.pem"}
    assert public < set(modes)
    assert {name for name, mode in modes.items() if mode & 0o077} == public


def test_what_was_made_once_is_kept(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    open_credentials(folder, NOW + dt.timedelta(days=100))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.parametrize(
    ("days", "renewed"),
    [
        (397 - 31, set()),
        (397 - 29, {"server.pem", "server_key.pem"}),
        (3650 - 29, {"server.pem", "server_key.pem", "ca.pem", "ca_key.pem"}),
        (5000, {"server.pem", "server_key.pem", "ca.pem", "ca_key.pem"}),
    ],
)
def test_certificates_are_renewed_before_they_end(tmp_path: Path, days: int, renewed: set[str]) -> None:
    open_credentials(tmp_path, NOW)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    later = NOW + dt.timedelta(days=days)
    open_credentials(tmp_path, later)
    assert {path.name for path in tmp_path.iterdir() if path.read_bytes() != before[path.name]} == renewed
    certificate(tmp_path / "server.pem").verify_directly_issued_by(certificate(tmp_path / "ca.pem"))
    assert certificate(tmp_path / "server.pem").not_valid_after_utc > later + dt.timedelta(days=29)


@pytest.mark.parametrize("damaged", ["server.pem", "server_key.pem"])
@pytest.mark.parametrize("content", [b"", b"not a certificate", None])
def test_a_damaged_server_certificate_is_made_anew(tmp_path: Path, damaged: str, content: bytes | None) -> None:
    open_credentials(tmp_path, NOW)
    ca = (tmp_path / "ca.pem").read_bytes()
    if content is None:
        (tmp_path / damaged).unlink()
    else:
        (tmp_path / damaged).write_bytes(content)
    open_credentials(tmp_path, NOW)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "server.pem", tmp_path / "server_key.pem")
    assert (tmp_path / "ca.pem").read_bytes() == ca


@pytest.mark.parametrize("damaged", ["ca.pem", "cdp_key.json", "cdp_key_ed25519.json", "sim_token"])
def test_a_damaged_file_that_others_rely_on_is_an_error_that_names_it(tmp_path: Path, damaged: str) -> None:
    open_credentials(tmp_path, NOW)
    (tmp_path / damaged).write_text(" \n")
    with pytest.raises(KeyFileError, match=damaged):
        open_credentials(tmp_path, NOW)


@pytest.mark.parametrize(
    "content",
    ["[]", "null", '{"name": "a"}', '{"name": "a", "privateKey": 5}', '{"name": "a", "privateKey": "AAAA"}'],
)
def test_a_key_file_of_another_shape_is_an_error_without_its_content(tmp_path: Path, content: str) -> None:
    open_credentials(tmp_path, NOW)
    (tmp_path / "cdp_key.json").write_text(content)
    with pytest.raises(KeyFileError, match="name and privateKey") as error:
        open_credentials(tmp_path, NOW)
    assert "AAAA" not in str(error.value)
    assert error.value.__cause__ is None


def test_keys_of_another_kind_are_refused() -> None:
    from cryptography.hazmat.primitives import serialization

    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(ValueError, match="P-256"):
        load(other.decode())
    with pytest.raises(ValueError, match="32 or 64 bytes"):
        load(base64.b64encode(b"x" * 33).decode())


# --- what keys may do ---


def test_a_key_says_that_it_is_a_simulators_and_what_it_may_do(tmp_path: Path) -> None:
    credentials = open_credentials(tmp_path, NOW, portfolios=["second"])
    granted = {file: credentials.grant(key_of(tmp_path, file)[0]) for file in (*KEY_FILES, "cdp_key_second.json")}
    assert all(grant.name.startswith("organizations/simulated") for grant in granted.values())
    assert [grant.can_trade for grant in granted.values()] == [True, True, False, True, True]
    assert [grant.portfolio for grant in granted.values()] == ["", "", "", "", "second"]
    assert [grant.can_transfer for grant in granted.values()] == [False, False, False, True, False]


def test_a_key_named_like_a_real_one_is_made_anew(tmp_path: Path) -> None:
    open_credentials(tmp_path, NOW)
    content = json.loads((tmp_path / "cdp_key.json").read_text())
    content["name"] = "organizations/9f1fb4a4-23d5-4ad0-a4f6-2ed2d0b04ee8/apiKeys/0d0bfcb4-1f0e-45a8-b2a5-16a2b4d4c3a1"
    (tmp_path / "cdp_key.json").write_text(json.dumps(content))
    open_credentials(tmp_path, NOW)
    assert key_of(tmp_path, "cdp_key.json")[0].startswith("organizations/simulated")


def test_a_streams_token_names_no_request(folder: Path, credentials: Credentials) -> None:
    from cluster.exchange_keys import check_stream_token

    name, _ = key_of(folder, "cdp_key.json")
    assert check_stream_token(token(folder, uri=None), credentials.keys, NOW_S) == name
    for refused in (token(folder), token(folder, uri=None, exp=NOW_S), token(folder, uri=None, iss="x"), ""):
        with pytest.raises(Unauthorised):
            check_stream_token(refused, credentials.keys, NOW_S)
