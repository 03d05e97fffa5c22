"""API keys in the ledger: a hash is stored and never the key, and what is not exactly right is refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Final

import pytest
from pydantic import SecretStr

import cluster.api_keys
from cluster.api_keys import (
    ALL_ACCOUNTS,
    CACHE_S,
    HALT,
    LIMITS,
    READ,
    RESUME,
    SCOPES,
    TRADE,
    ApiKey,
    ApiKeyError,
    KeyRing,
    create_key,
    person_name,
    revoke_key,
)
from cluster.ledger import API_KEYS_KEY, Ledger, LedgerUnavailable
from tests.books import Books

pytestmark = pytest.mark.anyio

PEPPER: Final = SecretStr("pepper-of-a-test")


@pytest.fixture
def ring(ledger: Ledger) -> KeyRing:
    return KeyRing(ledger, PEPPER)


async def made(
    ledger: Ledger, scopes: Sequence[str] = (READ,), accounts: Sequence[str] = ("main",), **more: Any
) -> str:
    return (await create_key(ledger, PEPPER, "test", scopes, accounts, **more)).get_secret_value()


async def test_a_key_is_known_by_its_name_scopes_and_accounts(ledger: Ledger, ring: KeyRing) -> None:
    key = await ring.key(await made(ledger, [TRADE, READ], ["main", "second"]))
    assert key is not None
    assert key == ApiKey(key.key_id, "test", frozenset({READ, TRADE}), frozenset({"main", "second"}), "test")


async def test_a_key_knows_its_person_its_strategies_and_its_end(ledger: Ledger, ring: KeyRing) -> None:
    end_ns = time.time_ns() + 10**12
    key = await ring.key(await made(ledger, person=" Ada  Lovelace", strategies=["manual"], expires_ns=end_ns))
    assert key is not None
    assert (key.person, key.strategies, key.expires_ns) == ("ada lovelace", frozenset({"manual"}), end_ns)


async def test_only_a_hash_of_the_secret_is_stored(ledger: Ledger) -> None:
    presented = await made(ledger)
    _, key_id, secret = presented.split("_", 2)
    everything = json.dumps(await Books(ledger).keys())
    assert key_id in everything
    assert (await ledger.audit_entries(None))[-1][1]["kind"] == "KEY"
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


async def revoke(ledger: Ledger, key: str) -> bool:
    return await revoke_key(ledger, key.split("_", 2)[1])


async def test_a_revoked_key_is_refused(ledger: Ledger, ring: KeyRing) -> None:
    revoked, kept = await made(ledger), await made(ledger)
    assert [await revoke(ledger, revoked) for _ in range(2)] == [True, False]
    assert await ring.key(revoked) is None
    assert await ring.key(kept) is not None


async def test_a_key_there_is_none_of_cannot_be_revoked(ledger: Ledger) -> None:
    with pytest.raises(ApiKeyError, match="key_id"):
        await revoke_key(ledger, "0" * 12)


async def test_a_revoked_key_stops_within_two_seconds_at_a_replica_that_has_just_used_it(
    ledger: Ledger, ring: KeyRing
) -> None:
    key = await made(ledger)
    assert await ring.key(key) is not None
    await revoke(ledger, key)
    revoked_at = time.monotonic()
    while await ring.key(key) is not None:
        await asyncio.sleep(0.01)
    assert time.monotonic() - revoked_at < 2
    assert CACHE_S < 2


async def test_a_key_ends_at_its_time_without_being_read_again(
    ledger: Ledger, ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.api_keys, "CACHE_S", 3_600.0)
    end_ns = time.time_ns() + 500_000_000
    key = await made(ledger, expires_ns=end_ns)
    assert await ring.key(key) is not None
    while time.time_ns() < end_ns:
        await asyncio.sleep(0.01)
    assert await ring.key(key) is None


SAME: list[tuple[str, str]] = [
    # two spellings of one person
    ("Ada", "ada"),
    ("ada", "  ADA "),
    ("ada lovelace", "Ada\u00a0 Lovelace"),
    ("straße", "STRASSE"),
    ("ｂｏｂ", "bob"),
    ("e\u0301mile", "Émile"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spelling_does_not_make_one_person_two(one: str, other: str) -> None:
    assert person_name(one) == person_name(other)


@pytest.mark.parametrize("text", ["", "   ", "x" * 65, "a\0b", "a\u200bb", "a\u202eb", "\ud800"])
def test_a_person_has_a_name_one_can_read(text: str) -> None:
    with pytest.raises(ApiKeyError, match="person"):
        person_name(text)


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
    "damage",
    [
        {"scopes": "read"},
        {"scopes": [1]},
        {"accounts": None},
        {"strategies": "*"},
        {"strategies": [["*"]]},
        {"expires_ns": "never"},
        {"expires_ns": True},
        {"expires_ns": 1.5},
        {"person": "\u200b"},
    ],
)
async def test_a_record_that_says_something_unheard_of_is_no_key(
    ledger: Ledger, ring: KeyRing, damage: dict[str, Any]
) -> None:
    key = await made(ledger)
    key_id = key.split("_", 2)[1]
    await ledger.put_api_key(key_id, (await ledger.api_keys())[key_id] | damage)
    assert await ring.key(key) is None


async def test_a_key_of_the_time_before_persons_is_held_by_its_name_and_may_use_every_strategy(
    ledger: Ledger, ring: KeyRing
) -> None:
    key = await made(ledger, [TRADE])
    key_id = key.split("_", 2)[1]
    record = (await ledger.api_keys())[key_id]
    await ledger.put_api_key(key_id, {k: v for k, v in record.items() if k not in {"person", "strategies"}})
    found = await ring.key(key)
    assert found is not None
    assert (found.person, found.may(TRADE, "main", "sma_cross")) == ("test", True)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"scopes": ["trad"]}, "trad"),
        ({"scopes": [READ, "*"]}, r"\*"),
        ({"scopes": READ}, "expected a list"),
        ({"accounts": "main"}, "expected a list"),
        ({"accounts": ["Main"]}, "Main"),
        ({"accounts": ["main*"]}, "main"),
        ({"strategies": "manual"}, "expected a list"),
        ({"strategies": ["a|b"]}, "strategies"),
        ({"person": " "}, "person"),
        ({"expires_ns": 1}, "expires_ns"),
    ],
)
async def test_a_key_with_rights_there_are_none_of_is_not_made(
    ledger: Ledger, changed: dict[str, Any], named: str
) -> None:
    wanted: dict[str, Any] = {"scopes": [READ], "accounts": ["main"]} | changed
    with pytest.raises(ValueError, match=named):
        await create_key(ledger, PEPPER, "test", wanted.pop("scopes"), wanted.pop("accounts"), **wanted)
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
    # who may trade may halt, and no more than that
    ({TRADE}, {ALL_ACCOUNTS}, HALT, "any", True),
    ({TRADE}, {"main"}, HALT, "second", False),
    ({READ}, {ALL_ACCOUNTS}, HALT, "any", False),
    ({TRADE}, {ALL_ACCOUNTS}, RESUME, "any", False),
    ({HALT}, {ALL_ACCOUNTS}, TRADE, "any", False),
    ({RESUME}, {ALL_ACCOUNTS}, LIMITS, "any", False),
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


async def test_a_key_of_some_strategies_may_only_those() -> None:
    key = ApiKey("id", "test", frozenset({TRADE}), frozenset({"main"}), "test", frozenset({"manual"}))
    assert key.may(TRADE, "main")
    assert key.may(TRADE, "main", "manual")
    assert not key.may(TRADE, "main", "sma_cross")
    assert not key.may(TRADE, "second", "manual")
    assert not key.may(READ, "main", "manual")


async def test_many_askers_at_once_are_all_answered_rightly(ledger: Ledger, ring: KeyRing) -> None:
    keys = [await made(ledger) for _ in range(5)]
    asked = [key if n % 2 else changed(key, -1) for n in range(20) for key in keys]
    found = await asyncio.gather(*(ring.key(key) for key in asked))
    assert [key is not None for key in found] == [key in keys for key in asked]
