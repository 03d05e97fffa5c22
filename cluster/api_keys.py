"""API keys: ``tt_<id>_<secret>``. The ledger keeps a keyed hash, never the key.

The secret has 256 random bits, so a fast keyed hash (HMAC-SHA256 with the desk's pepper) is the right one: there is
nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import SecretStr

from cluster.ledger import Ledger

READ: Final = "read"
TRADE: Final = "trade"
HALT: Final = "halt"
RESUME: Final = "resume"
RESEARCH: Final = "research"
SCOPES: Final = (READ, TRADE, HALT, RESUME, RESEARCH)
ALL_ACCOUNTS: Final = "*"
# A revoked key may work for this long at a replica that has seen it before.
CACHE_S: Final = 2.0

_KEY = re.compile(r"tt_(?P<id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_\-]{43})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What the holder of a key may do."""

    key_id: str
    name: str
    scopes: frozenset[str]
    accounts: frozenset[str]

    def may(self, scope: str, account: str | None = None) -> bool:
        """Whether the key allows ``scope``, on ``account`` where one is named."""
        covered = account is None or ALL_ACCOUNTS in self.accounts or account in self.accounts
        return scope in self.scopes and covered


async def create_key(
    ledger: Ledger, pepper: SecretStr, name: str, scopes: Sequence[str], accounts: Sequence[str]
) -> SecretStr:
    """Make a key, store its hash, and return it: this is the only time it can be read.

    Raises ``ValueError`` for a scope there is none of, or where scopes or accounts are not given as a list.
    """
    if isinstance(scopes, str) or isinstance(accounts, str):
        raise ValueError("scopes and accounts: expected a list of names, was one text")  # noqa: TRY004
    if unknown := sorted(set(scopes) - set(SCOPES)):
        raise ValueError(f"scopes: {', '.join(unknown)} is none; known: {', '.join(SCOPES)}")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    record = {
        "name": name,
        "hash": _hash(pepper, secret),
        "scopes": sorted(scopes),
        "accounts": sorted(accounts),
        "created_ns": time.time_ns(),
    }
    await ledger.put_api_key(key_id, record)
    return SecretStr(f"tt_{key_id}_{secret}")


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
        """The key's rights, or None where it is unknown, wrong or revoked. Raises ``LedgerUnavailable``."""
        if time.monotonic() - self._read_at > CACHE_S:
            self._records = await self._ledger.api_keys()
            self._read_at = time.monotonic()
            self._proved.clear()
        if presented in self._proved:
            return self._proved[presented]
        match = _KEY.fullmatch(presented)
        record = self._records.get(match["id"]) if match else None
        if match is None or record is None or record.get("revoked"):
            return None
        if not hmac.compare_digest(str(record.get("hash")).encode(), _hash(self._pepper, match["secret"]).encode()):
            return None
        rights = (frozenset(record.get(name, ())) for name in ("scopes", "accounts"))
        key = ApiKey(match["id"], str(record.get("name")), *rights)
        self._proved[presented] = key
        return key


def _hash(pepper: SecretStr, secret: str) -> str:
    return hmac.new(pepper.get_secret_value().encode(), secret.encode(), hashlib.sha256).hexdigest()
