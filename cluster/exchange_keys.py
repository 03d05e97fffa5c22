"""Certificates, API keys and token checks of the exchange simulator: everything it needs to be believed and to believe.

All files lie in the state folder: ``ca.pem`` (what clients trust), ``ca_key.pem``, ``server.pem``,
``server_key.pem``, ``sim_token``, and the API keys ``cdp_key.json`` (ES256), ``cdp_key_ed25519.json``,
``cdp_key_view.json`` (may not trade), ``cdp_key_transfer.json`` (may transfer, which a desk should refuse) and one for
each further portfolio. Private ones have mode 0600. They are made once; certificates are renewed at start-up when less
than a month is left.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime as dt
import hmac
import ipaddress
import json
import os
import re
import secrets
import ssl
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_DAYS: Final = 3650
_LEAF_DAYS: Final = 397
_RENEW_DAYS: Final = 30
# Coinbase documents tokens of two minutes; a little more covers a client that rounds. Skew: see facts on clocks.
_TOKEN_LIFE_S_MAX: Final = 180
_CLOCK_SKEW_S: Final = 5

# How the name of every key of a simulator begins: no key of the real venue does.
KEY_NAMES: Final = "organizations/simulated"
_OLD_NAME: Final = re.compile(r"organizations/[0-9a-f-]{36}/apiKeys/[0-9a-f-]{36}")

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class KeyFileError(RuntimeError):
    """A key or certificate file of the state folder cannot be used; the text names the file and the rule."""


class Unauthorised(Exception):
    """A request without a valid token; the text says why, for the simulator's own log only."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a key may do, and the name of the portfolio it is bound to ("" is the default one)."""

    name: str
    can_trade: bool = True
    can_transfer: bool = False
    portfolio: str = ""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the simulator serves with and whom it believes: public keys and what each may do, by the keys' names."""

    ca_file: Path
    certificate_file: Path
    certificate_key_file: Path
    keys: dict[str, PublicKey]
    sim_token: str = field(repr=False)
    grants: dict[str, ApiKey] = field(default_factory=dict)

    def grant(self, name: str) -> ApiKey:
        """What the key of this name may do."""
        return self.grants.get(name, ApiKey(name))

    def is_sim_token(self, given: str) -> bool:
        """Whether ``given`` opens the control surface; compared in constant time."""
        return hmac.compare_digest(given.encode(), self.sim_token.encode())


def open_credentials(folder: Path, now: dt.datetime, portfolios: Sequence[str] = ()) -> Credentials:
    """Read the state folder's keys and certificates, making what is absent or (certificates) about to expire.

    Each of ``portfolios`` (names) has a key of its own, ``cdp_key_<name>.json``.
    Raises ``KeyFileError`` where a file exists but cannot be used.
    """
    _ensure_certificates(folder, now)
    keys, grants = {}, {}
    for file, make, grant in _api_keys(portfolios):
        name, keys_public = _api_key(folder / file, make)
        keys[name], grants[name] = keys_public, dataclasses.replace(grant, name=name)
    token_file = folder / "sim_token"
    if not token_file.exists():
        _write(token_file, secrets.token_urlsafe(32).encode(), private=True)
    token = token_file.read_text().strip()
    if not token:
        raise KeyFileError(f"{token_file}: expected a token, was empty; delete the file to get a new one")
    return Credentials(folder / "ca.pem", folder / "server.pem", folder / "server_key.pem", keys, token, grants)


def check_token(token: str, keys: dict[str, PublicKey], method: str, host: str, path: str, now_s: float) -> str:
    """Verify a CDP token for one request and return the key's name.

    Checked: algorithm by key type (never the token's word), signature, ``kid`` and ``sub`` = a registered key,
    ``iss`` = cdp, ``nbf`` <= now < ``exp``, ``uri`` = "METHOD host/path" without the query. Raises ``Unauthorised``.
    """
    return _check(token, keys, f"{method} {host}{path}", now_s)


def check_stream_token(token: str, keys: dict[str, PublicKey], now_s: float) -> str:
    """Verify the token of a WebSocket message: as for a request, but without ``uri``. Raises ``Unauthorised``."""
    return _check(token, keys, None, now_s)


def _check(token: str, keys: dict[str, PublicKey], uri: str | None, now_s: float) -> str:
    try:
        name = jwt.get_unverified_header(token).get("kid")
        key = keys.get(name) if isinstance(name, str) else None
        if key is None or not isinstance(name, str):
            raise Unauthorised("kid: not a registered key")
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePublicKey) else "EdDSA"
        # Times are compared below, with this process's clock, so that a later fault can move it.
        options = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False}
        claims = jwt.decode(token, key, algorithms=[algorithm], options=options)  # type: ignore[arg-type]
    except (jwt.InvalidTokenError, UnicodeError, ValueError) as error:
        raise Unauthorised(f"token: {type(error).__name__}") from None
    _check_claims(claims, name, uri, now_s)
    return name


def _check_claims(claims: dict[str, object], name: str, uri: str | None, now_s: float) -> None:
    begins, ends = claims.get("nbf"), claims.get("exp")
    if not isinstance(begins, int) or not isinstance(ends, int):
        raise Unauthorised("nbf, exp: expected whole seconds")
    checks = {
        "sub": claims.get("sub") == name,
        "iss": claims.get("iss") == "cdp",
        "uri": claims.get("uri") == uri,
        "nbf": begins <= now_s + _CLOCK_SKEW_S,
        "exp": now_s < ends <= begins + _TOKEN_LIFE_S_MAX,
    }
    for claim, holds in checks.items():
        if not holds:
            raise Unauthorised(f"{claim}: not valid for this request")


# --- API keys ---------------------------------------------------------------------------------------------------------


def _new_es256() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return pem.decode()


def _new_ed25519() -> str:
    """An Ed25519 key as the developer portal hands it out: base64 of the 32 secret and the 32 public bytes."""
    key = ed25519.Ed25519PrivateKey.generate()
    return base64.b64encode(key.private_bytes_raw() + key.public_key().public_bytes_raw()).decode()


def _api_keys(portfolios: Sequence[str]) -> list[tuple[str, Callable[[], str], ApiKey]]:
    """Every key's file, how it is made and what it may do (without its name, which is in the file)."""
    return [
        ("cdp_key.json", _new_es256, ApiKey("")),
        ("cdp_key_ed25519.json", _new_ed25519, ApiKey("")),
        ("cdp_key_view.json", _new_es256, ApiKey("", can_trade=False)),
        ("cdp_key_transfer.json", _new_es256, ApiKey("", can_transfer=True)),
        *((f"cdp_key_{name}.json", _new_es256, ApiKey("", portfolio=name)) for name in portfolios),
    ]


def _api_key(path: Path, make: Callable[[], str]) -> tuple[str, PublicKey]:
    if not path.exists():
        _make_key(path, make)
    try:
        content = json.loads(path.read_text())
        # Keys of before had names like real ones; a desk must be able to tell them apart.
        if isinstance(content["name"], str) and _OLD_NAME.fullmatch(content["name"]):
            content = _make_key(path, make)
        name, text = content["name"], content["privateKey"]
        return str(name), load_private_key(text).public_key()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KeyFileError(f"{path}: expected JSON with name and privateKey; delete it for a new one") from None


def _make_key(path: Path, make: Callable[[], str]) -> dict[str, str]:
    content = {"name": f"{KEY_NAMES}-{uuid.uuid4()}/apiKeys/{uuid.uuid4()}", "privateKey": make()}
    _write(path, json.dumps(content, indent=2).encode(), private=True)
    return content


def load_private_key(text: str) -> PrivateKey:
    """An ES256 (P-256) or Ed25519 key from PEM or base64 of 32 or 64 bytes; raises ``ValueError``."""
    if text.lstrip().startswith("-----BEGIN"):
        key = serialization.load_pem_private_key(text.encode(), password=None)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return key
        raise ValueError("expected an ES256 (P-256) or Ed25519 key")
    raw = base64.b64decode("".join(text.split()), validate=True)
    if len(raw) not in (32, 64):
        raise ValueError(f"expected 32 or 64 bytes, was {len(raw)}")
    return ed25519.Ed25519PrivateKey.from_private_bytes(raw[:32])


# --- Certificates -----------------------------------------------------------------------------------------------------


def _ensure_certificates(folder: Path, now: dt.datetime) -> None:
    ca_file, ca_key_file = folder / "ca.pem", folder / "ca_key.pem"
    leaf_file, leaf_key_file = folder / "server.pem", folder / "server_key.pem"
    if not (ca_key_file.exists() and _fresh(ca_file, now)):
        key, certificate = _new_ca(now)
        _write(ca_key_file, _pem(key), private=True)
        _write(ca_file, certificate.public_bytes(serialization.Encoding.PEM), private=False)
        leaf_file.unlink(missing_ok=True)
    if not _usable_leaf(leaf_file, leaf_key_file, ca_file, now):
        key, certificate = _new_leaf(_read_certificate(ca_file), _read_ca_key(ca_key_file), now)
        _write(leaf_key_file, _pem(key), private=True)
        _write(leaf_file, certificate.public_bytes(serialization.Encoding.PEM), private=False)


def _usable_leaf(leaf_file: Path, leaf_key_file: Path, ca_file: Path, now: dt.datetime) -> bool:
    """Whether the server's certificate is fresh, issued by the CA and fits its key; if not, a new one costs nothing."""
    try:
        if not _fresh(leaf_file, now):
            return False
        _read_certificate(leaf_file).verify_directly_issued_by(_read_certificate(ca_file))
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(leaf_file, leaf_key_file)
    except (KeyFileError, InvalidSignature, ValueError, TypeError, ssl.SSLError, OSError):
        return False
    return True


def _fresh(path: Path, now: dt.datetime) -> bool:
    return path.exists() and _read_certificate(path).not_valid_after_utc > now + dt.timedelta(days=_RENEW_DAYS)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        raise KeyFileError(f"{path}: not a PEM certificate; delete it to get a new one") from None


def _read_ca_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise KeyFileError(f"{path}: not a PEM EC key; delete it and ca.pem to get new ones")
    return key


def _new_ca(now: dt.datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Exchange simulator CA (this machine only)")])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(name, name, key, now, _CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(identifier, critical=False)
    return key, builder.sign(key, hashes.SHA256())


def _new_leaf(
    issuer: x509.Certificate, issuer_key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    addresses = [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]
    names = [x509.DNSName("localhost"), *(x509.IPAddress(address) for address in addresses)]
    builder = _builder(name, issuer.subject, key, now, _LEAF_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return key, builder.add_extension(authority, critical=False).sign(issuer_key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    # An hour back, for clients whose clock runs late.
    builder = builder.not_valid_before(now - dt.timedelta(hours=1)).not_valid_after(now + dt.timedelta(days=days))
    return builder.serial_number(x509.random_serial_number())


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, private: bool) -> None:
    """Write atomically; a private file is never readable by others, not even for a moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
