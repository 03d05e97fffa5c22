"""API keys: ``tt_<id>_<secret>``. The ledger keeps a keyed hash, never the key, and the person who holds it.

The secret has 256 random bits, so a fast keyed hash (HMAC-SHA256 with the desk's pepper) is the right one: there is
nothing to guess that a slow hash would protect. Where two people must agree, persons are compared and not keys.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from cluster.ledger import Ledger

READ: Final = "read"
TRADE: Final = "trade"
HALT: Final = "halt"
RESUME: Final = "resume"
LIMITS: Final = "limits"
RESEARCH: Final = "research"
SCOPES: Final = (READ, TRADE, HALT, RESUME, LIMITS, RESEARCH)
ALL_ACCOUNTS: Final = "*"
ALL_STRATEGIES: Final = "*"
# A key must stop within two seconds of its revocation, at a replica that has just read the records too.
CACHE_S: Final = 1.0
PERSON_CHARACTERS_MAX: Final = 64

_KEY = re.compile(r"tt_(?P<id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_\-]{43})")
_NAME = re.compile(r"[a-z0-9_]{1,32}")


class ApiKeyError(ValueError):
    """A key cannot be made, or is none; ``field``, ``value`` and ``rule`` say which, what and why."""

    def __init__(self, field: str, value: object, rule: str) -> None:
        """Keep the three for a machine-readable answer."""
        super().__init__(f"{field}: {rule}, was {value!r}")
        self.field = field
        self.value = str(value)
        self.rule = rule


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the holder of a key may do. Two keys of one ``person`` are one person where two must agree."""

    key_id: str
    name: str
    scopes: frozenset[str]
    accounts: frozenset[str]
    person: str = ""
    strategies: frozenset[str] = frozenset({ALL_STRATEGIES})
    expires_ns: int | None = None

    def may(self, scope: str, account: str | None = None, strategy: str | None = None) -> bool:
        """Whether the key allows ``scope``, on ``account`` and for ``strategy`` where they are named.

        Who may trade may halt too.
        """
        covered = account is None or ALL_ACCOUNTS in self.accounts or account in self.accounts
        covered &= strategy is None or ALL_STRATEGIES in self.strategies or strategy in self.strategies
        return covered and (scope in self.scopes or (scope == HALT and TRADE in self.scopes))

    def may_everywhere(self, scope: str) -> bool:
        """Whether the key allows ``scope`` on every account there is or will be."""
        return ALL_ACCOUNTS in self.accounts and self.may(scope)


async def create_key(
    ledger: Ledger,
    pepper: SecretStr,
    name: str,
    scopes: Sequence[str],
    accounts: Sequence[str],
    *,
    person: str | None = None,
    strategies: Sequence[str] = (ALL_STRATEGIES,),
    expires_ns: int | None = None,
    by: str = "operator",
) -> SecretStr:
    """Make a key, store its hash, and return it: this is the only time it can be read.

    ``person`` is who holds it (default: ``name``), ``expires_ns`` when it ends, ``by`` who makes it, for the audit.
    Raises ``ApiKeyError``, a ``ValueError``, for rights there are none of, a list that is none, a person without a name
    and an end in the past.
    """
    _check_names("scopes", scopes, re.compile("|".join(SCOPES)), f"of {', '.join(SCOPES)}")
    _check_names("accounts", accounts, _NAME, "an account's name or *")
    _check_names("strategies", strategies, _NAME, "a strategy's name or *")
    if expires_ns is not None and expires_ns <= time.time_ns():
        raise ApiKeyError("expires_ns", expires_ns, "a time still to come")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    record = {
        "name": name,
        "person": person_name(name if person is None else person),
        "hash": _hash(pepper, secret),
        "scopes": sorted(set(scopes)),
        "accounts": sorted(set(accounts)),
        "strategies": sorted(set(strategies)),
        "created_ns": time.time_ns(),
    }
    await ledger.put_api_key(key_id, record | ({"expires_ns": expires_ns} if expires_ns is not None else {}), by)
    return SecretStr(f"tt_{key_id}_{secret}")


async def revoke_key(ledger: Ledger, key_id: str, by: str = "operator") -> bool:
    """End a key; it stops everywhere within two seconds. False where it was revoked already.

    Raises ``ApiKeyError`` where there is no such key.
    """
    record = (await ledger.api_keys()).get(key_id)
    if record is None:
        raise ApiKeyError("key_id", key_id, "expected the id of a key (desk keys list)")
    if record.get("revoked"):
        return False
    await ledger.put_api_key(key_id, {**record, "revoked": True, "revoked_ns": time.time_ns()}, by)
    return True


def person_name(text: str) -> str:
    """A person's name as it is compared: case, width and blanks must not make one person two.

    Raises ``ApiKeyError`` where nothing is left or a character cannot be seen.
    """
    name = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    if not 1 <= len(name) <= PERSON_CHARACTERS_MAX or not name.isprintable():
        raise ApiKeyError("person", text, f"expected 1 to {PERSON_CHARACTERS_MAX} visible characters")
    return name


class KeyRing:
    """Checks presented keys against the ledger's records, re-read every ``CACHE_S``."""

    def __init__(self, ledger: Ledger, pepper: SecretStr) -> None:
        """Use the records of ``ledger``."""
        self._ledger = ledger
        self._pepper = pepper
        self._records: Mapping[str, Mapping[str, Any]] = {}
        self._read_at = float("-inf")
        self._proved: dict[str, ApiKey] = {}

    async def key(self, presented: str) -> ApiKey | None:
        """The key's rights; None where it is unknown, wrong, revoked or over. Raises ``LedgerUnavailable``."""
        if time.monotonic() - self._read_at > CACHE_S:
            # The age of what is read counts from before it was asked for.
            asked_at = time.monotonic()
            self._records = await self._ledger.api_keys()
            self._read_at = asked_at
            self._proved.clear()
        key = self._proved.get(presented) or self._prove(presented)
        if key is None or (key.expires_ns is not None and key.expires_ns <= time.time_ns()):
            return None
        self._proved[presented] = key
        return key

    async def make(self, name: str, scopes: Sequence[str], accounts: Sequence[str], **more: Any) -> SecretStr:
        """A new key that this ring will know: ``create_key`` with its ledger and pepper."""
        return await create_key(self._ledger, self._pepper, name, scopes, accounts, **more)

    def _prove(self, presented: str) -> ApiKey | None:
        match = _KEY.fullmatch(presented)
        record = self._records.get(match["id"]) if match else None
        if match is None or record is None or record.get("revoked"):
            return None
        if not hmac.compare_digest(str(record.get("hash")).encode(), _hash(self._pepper, match["secret"]).encode()):
            return None
        return _key_of(match["id"], record)


def _key_of(key_id: str, record: Mapping[str, Any]) -> ApiKey | None:
    """The key a record describes; None for a record that says nothing one can rely on."""
    expires_ns = record.get("expires_ns")
    rights = [record.get("scopes", []), record.get("accounts", []), record.get("strategies", [ALL_STRATEGIES])]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in rights):
        return None
    if expires_ns is not None and (isinstance(expires_ns, bool) or not isinstance(expires_ns, int)):
        return None
    name = str(record.get("name"))
    try:
        person = person_name(str(record.get("person") or name))
    except ApiKeyError:
        return None
    scopes, accounts, strategies = (frozenset(names) for names in rights)
    return ApiKey(key_id, name, scopes, accounts, person, strategies, expires_ns)


def _check_names(field: str, names: Sequence[str], allowed: re.Pattern[str], rule: str) -> None:
    if isinstance(names, str):
        raise ApiKeyError(field, names, "expected a list of names")
    for name in names:
        if allowed.fullmatch(name) is None and not (field != "scopes" and name == ALL_ACCOUNTS):
            raise ApiKeyError(field, name, f"expected names, each {rule}")


def _hash(pepper: SecretStr, secret: str) -> str:
    return hmac.new(pepper.get_secret_value().encode(), secret.encode(), hashlib.sha256).hexdigest()
