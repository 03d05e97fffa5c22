"""API keys in the ledger: a hash is stored and never the key, and what is not exactly right is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

import pytest
from pydantic import SecretStr

import cluster.api_keys
from cluster.api_keys import ALL_ACCOUNTS, HALT, READ, SCOPES, TRADE, ApiKey, KeyRing, create_key
from cluster.ledger import API_KEYS_KEY, Ledger, LedgerUnavailable

pytestmark = pytest.mark.anyio

PEPPER: Final = SecretStr("pepper-of-a-test")


@pytest.fixture
def ring(ledger: Ledger) -> KeyRing:
    return KeyRing(ledger, PEPPER)


async def made(ledger: Ledger, scopes: Sequence[str] = (READ,), accounts: Sequence[str] = ("main",)) -> str:
    return (await create_key(ledger, PEPPER, "test", scopes, accounts)).get_secret_value()


async def test_a_key_is_known_by_its_name_scopes_and_accounts(ledger: Ledger, ring: KeyRing) -> None:
    key = await ring.key(await made(ledger, [TRADE, READ], ["main", "second"]))
    assert key is not None
    assert key == ApiKey(key.key_id, "test", frozenset({READ, TRADE}), frozenset({"main", "second"}))


async def test_only_a_hash_of_the_secret_is_stored(ledger: Ledger) -> None:
    presented = await made(ledger)
    _, key_id, secret = presented.split("_", 2)
    everything = json.dumps(
        [await ledger._direct("HGETALL", key) for key in await ledger._direct("KEYS", "*") if "function" not in key]
    )
    assert key_id in everything
    assert secret not in everything
    assert PEPPER.get_secret_value() not in everything
    assert len(secret) == 43


async def test_two_keys_have_nothing_in_common(ledger: Ledger) -> None:
    one, two = (await made(ledger)).split("_", 2), (await made(ledger)).split("_", 2)
    assert one[1] != two[1]
    assert one[2] != two[2]
    records = await ledger.api_keys()
    assert len({record["hash"] for record in records.values()}) == 2


def changed(key: str, position: int) -> str:
    other = "A" if key[position] != "A" else "B"
    return key[:position] + other + key[position + 1 :] if position != -1 else key[:-1] + other


async def test_what_is_not_exactly_the_key_is_refused(ledger: Ledger, ring: KeyRing) -> None:
    key, other = await made(ledger), await made(ledger)
    assert await ring.key(key) is not None
    prefix, key_id, secret = key.split("_", 2)
    wrong = [
        "",
        " ",
        "tt_",
        key_id,
        secret,
        key + "x",
        key[:-1],
        key + "\n",
        " " + key,
        key.upper(),
        f"{prefix}_{key_id}_",
        f"{prefix}_{key_id}_{secret[:-1]}é",
        f"{prefix}_{'0' * 12}_{secret}",
        f"{prefix}_{key_id}_{other.split('_', 2)[2]}",
        f"xx_{key_id}_{secret}",
        changed(key, -1),
        changed(key, len("tt_") + 13),
        "tt_" + "\ud800" * 56,
        "x" * 100_000,
    ]
    assert [text for text in wrong if await ring.key(text) is not None] == []
    assert await ring.key(key) is not None


async def test_a_key_of_another_desk_is_refused(ledger: Ledger) -> None:
    key = await made(ledger)
    assert await KeyRing(ledger, SecretStr("another pepper")).key(key) is None


async def revoke(ledger: Ledger, key: str) -> None:
    key_id = key.split("_", 2)[1]
    await ledger.put_api_key(key_id, (await ledger.api_keys())[key_id] | {"revoked": True})


async def test_a_revoked_key_is_refused(ledger: Ledger, ring: KeyRing) -> None:
    revoked, kept = await made(ledger), await made(ledger)
    await revoke(ledger, revoked)
    assert await ring.key(revoked) is None
    assert await ring.key(kept) is not None


async def test_a_key_revoked_or_removed_in_use_stops_working_when_the_records_are_read_again(
    ledger: Ledger, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.api_keys, "CACHE_S", 0.0)
    revoked, removed = await made(ledger), await made(ledger)
    assert await ring.key(revoked) is not None
    assert await ring.key(removed) is not None
    await revoke(ledger, revoked)
    await ledger._direct("HDEL", API_KEYS_KEY, removed.split("_", 2)[1])
    assert (await ring.key(revoked), await ring.key(removed)) == (None, None)


async def test_within_the_cache_time_the_ledger_is_asked_once(
    ledger: Ledger, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.api_keys, "CACHE_S", 3_600.0)
    key = await made(ledger)
    assert await ring.key(key) is not None
    await ledger._direct("DEL", API_KEYS_KEY)
    assert await ring.key(key) is not None
    assert await ring.key(await made(ledger)) is None


async def test_without_the_ledger_no_key_is_taken_on_trust(
    ledger: Ledger, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.api_keys, "CACHE_S", 0.0)
    key = await made(ledger)
    assert await ring.key(key) is not None

    async def down() -> dict[str, dict[str, Any]]:
        raise LedgerUnavailable("the ledger does not answer")

    monkeypatch.setattr(ledger, "api_keys", down)
    with pytest.raises(LedgerUnavailable):
        await ring.key(key)


@pytest.mark.parametrize(
    "record",
    ["", "x", "[]", "null", "{}", '{"hash": null}', '{"hash": "é"}', '{"hash": ["a"], "scopes": ["read"]}'],
)
async def test_a_damaged_record_locks_out_its_holder_only(ledger: Ledger, ring: KeyRing, record: str) -> None:
    damaged, whole = await made(ledger), await made(ledger)
    await ledger._direct("HSET", API_KEYS_KEY, damaged.split("_", 2)[1], record)
    assert await ring.key(damaged) is None
    assert await ring.key(whole) is not None


@pytest.mark.parametrize(
    ("scopes", "accounts", "named"),
    [
        (["trad"], ["main"], "trad"),
        ([READ, "*"], ["main"], r"\*"),
        (READ, ["main"], "expected a list"),
        ([READ], "main", "expected a list"),
    ],
)
async def test_a_key_with_rights_there_are_none_of_is_not_made(
    ledger: Ledger, scopes: Any, accounts: Any, named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        await create_key(ledger, PEPPER, "test", scopes, accounts)
    assert await ledger.api_keys() == {}


RIGHTS: list[tuple[set[str], set[str], str, str | None, bool]] = [
    # scopes, accounts, what is asked for, for which account, whether it is allowed
    ({READ}, {"main"}, READ, None, True),
    ({READ}, {"main"}, READ, "main", True),
    ({READ}, {"main"}, READ, "second", False),
    ({READ}, {"main"}, READ, "", False),
    ({READ}, {"main"}, TRADE, None, False),
    ({READ}, {"main"}, TRADE, "main", False),
    ({READ, TRADE}, {"main", "second"}, TRADE, "second", True),
    ({TRADE}, {ALL_ACCOUNTS}, TRADE, "any", True),
    ({TRADE}, {ALL_ACCOUNTS}, HALT, "any", False),
    ({TRADE}, {"main*"}, TRADE, "main2", False),
    (set(), {ALL_ACCOUNTS}, READ, None, False),
    (set(SCOPES), set(), READ, "main", False),
    (set(SCOPES), set(), READ, ALL_ACCOUNTS, False),
]


@pytest.mark.parametrize(("scopes", "accounts", "scope", "account", "allowed"), RIGHTS)
async def test_a_key_may_what_its_scopes_say_where_its_accounts_say(
    scopes: set[str], accounts: set[str], scope: str, account: str | None, allowed: bool
) -> None:
    assert ApiKey("id", "test", frozenset(scopes), frozenset(accounts)).may(scope, account) is allowed


async def test_many_askers_at_once_are_all_answered_rightly(ledger: Ledger, ring: KeyRing) -> None:
    keys = [await made(ledger) for _ in range(5)]
    asked = [key if n % 2 else changed(key, -1) for n in range(20) for key in keys]
    found = await asyncio.gather(*(ring.key(key) for key in asked))
    assert [key is not None for key in found] == [key in keys for key in asked]
