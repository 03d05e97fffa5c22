"""How calls travel to the ledger: what replicas must have before an answer, and what a spoilt network does to it.

The calls are those of a tiny library of these tests, so that what is proved is the way, not the verbs: ``once`` keeps
the first value an id was given and answers with it ever after, as the ledger's verbs do.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final

import pytest
import redis
from pydantic import ValidationError

from cluster.ledger import Ledger
from cluster.ledger_wire import READ_FUNCTIONS, LedgerError, LedgerUnavailable, Wire, memory_warning
from conf.settings import RedisSettings
from tests.servers import KINDS, PASSWORD, Group, Server, ask, await_that, binary
from tests.tcp_proxy import BLACK_HOLE, SOUND, Faults, Proxy

pytestmark = pytest.mark.anyio

LIBRARY: Final = """#!lua name=wire_test
redis.register_function { function_name = 'once', callback = function(keys, arguments)
  local known = redis.call('GET', keys[1])
  if known then
    return { 'REPEATED', known }
  end
  redis.call('SET', keys[1], arguments[1])
  redis.call('INCR', 'executed')
  return { 'FIRST', arguments[1] }
end }
redis.register_function { function_name = 'release', flags = { 'allow-oom' }, callback = function(keys)
  return redis.call('DEL', keys[1])
end }
redis.register_function { function_name = 'refuse', callback = function()
  return redis.error_reply('ERR not so')
end }
"""
TIMEOUT_S: Final = 0.5
# Pipelines take one connection; one more may be open while a broken one is replaced.
CONNECTIONS_MAX: Final = 2


def show(**figures: Any) -> None:
    """A test's figures as one line of JSON."""
    print(json.dumps(figures))


@asynccontextmanager
async def connected(settings: RedisSettings) -> AsyncIterator[Wire]:
    wire = Wire(settings, PASSWORD, None)
    try:
        yield wire
    finally:
        await wire.close()


async def once(wire: Wire, name: str, value: str = "1") -> list[str]:
    reply: list[str] = await wire.send("FCALL", "once", "1", name, value)
    return reply


async def timed(call: Any) -> tuple[Any, float]:
    """What a call returned, or the ``LedgerUnavailable`` it raised, and the seconds it took."""
    started = time.monotonic()
    try:
        return await call, time.monotonic() - started
    except LedgerUnavailable as error:
        return error, time.monotonic() - started


def calls(port: int, *commands: str) -> int:
    """How often the server was given these commands."""
    stats = ask(port, "INFO", "commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in commands)


def clients(port: int) -> int:
    """Connections of ordinary clients, without the one that asks."""
    listed = ask(port, "CLIENT", "LIST", "TYPE", "normal")
    return len(listed if isinstance(listed, list) else listed.splitlines()) - 1


# -- replicas ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def running_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """A primary and one replica, which write every call to disk; the replica reaches the primary through a proxy."""
    group = Group(request.param, tmp_path_factory.mktemp("pair"), replicas=1, sentinels=0, appendfsync="always")
    with group.running():
        ask(group.nodes[0].server.settings.port, "FUNCTION", "LOAD", LIBRARY)
        yield group


@pytest.fixture
def pair(running_pair: Group) -> Iterator[Group]:
    """The pair in step, before and after the test."""
    primary = running_pair.nodes[0]
    running_pair.await_in_step(primary)
    yield running_pair
    primary.proxy.faults = SOUND
    running_pair.await_in_step(primary)


def settings_of(group: Group, **changed: Any) -> RedisSettings:
    """Of a client that reaches the primary past the proxy, so that only the replica can be cut off."""
    return group.settings_of(group.nodes[0], **changed)


async def test_a_write_is_answered_once_a_replica_has_it(pair: Group) -> None:
    replica = pair.nodes[1].server.settings.port
    latencies_ms = []
    async with connected(settings_of(pair)) as wire:
        for number in range(100):
            _, seconds = await timed(once(wire, f"has-it-{number}"))
            latencies_ms.append(1000 * seconds)
            assert ask(replica, "GET", f"has-it-{number}") == "1"
    show(test="answered once a replica has it", writes=100, p50_ms=round(median(latencies_ms), 2))


async def test_a_write_no_replica_confirms_is_not_answered_and_its_repeat_gets_the_first_answer(pair: Group) -> None:
    async with connected(settings_of(pair)) as wire:
        await once(wire, "before")
        pair.nodes[0].proxy.faults = BLACK_HOLE
        refused, seconds = await timed(once(wire, "cut-off", "first"))
        assert isinstance(refused, LedgerUnavailable)
        assert str(refused).startswith("RISK_UNAVAILABLE: written, but only 0 of 1 replicas")
        assert str(refused).endswith("not known to be durable; repeat with the same id")
        assert 0.3 <= seconds < 1.3
        repeated, _ = await timed(once(wire, "cut-off", "second"))
        assert isinstance(repeated, LedgerUnavailable)

        pair.nodes[0].proxy.faults = SOUND
        pair.await_in_step(pair.nodes[0])
        assert await once(wire, "cut-off", "third") == ["REPEATED", "first"]
    show(test="no replica confirms", refused_after_ms=round(1000 * seconds))


async def test_a_repeat_on_another_connection_is_no_safer_than_the_write_it_repeats(pair: Group) -> None:
    # WAIT counts what its own connection has written, and a repeat writes nothing.
    async with connected(settings_of(pair)) as writer, connected(settings_of(pair)) as other:
        await once(other, "connects-first")
        pair.nodes[0].proxy.faults = BLACK_HOLE
        first, _ = await timed(once(writer, "repeated", "first"))
        repeat, _ = await timed(once(other, "repeated", "second"))
    async with connected(settings_of(pair)) as fresh:
        again, _ = await timed(once(fresh, "repeated", "third"))
    assert [type(answer).__bases__ for answer in (first, repeat, again)] == [(LedgerUnavailable,)] * 3


async def test_reads_are_answered_and_refusals_stay_what_they_are_while_no_replica_confirms(pair: Group) -> None:
    async with connected(settings_of(pair)) as wire:
        await wire.send("HSET", "shown", "field", "value")
        pair.nodes[0].proxy.faults = BLACK_HOLE
        asked = (
            wire.send("HGETALL", "shown"),
            once(wire, "in-one-pipeline"),
            wire.send("FCALL", "refuse", "0"),
        )
        read, write, refusal = await asyncio.gather(*asked, return_exceptions=True)
        assert read == {"field": "value"}
        assert isinstance(write, LedgerUnavailable)
        assert isinstance(refusal, LedgerError)
        assert "not so" in str(refusal)
        _, seconds = await timed(wire.send("HGETALL", "shown"))
        assert seconds < 0.3


async def test_a_pipeline_costs_one_wait_and_reading_none(pair: Group) -> None:
    port = pair.nodes[0].server.settings.port
    async with connected(settings_of(pair)) as wire:
        before = calls(port, "wait")
        await asyncio.gather(*(once(wire, f"together-{number}") for number in range(200)))
        waits = calls(port, "wait") - before
        await asyncio.gather(*(wire.send("GET", f"together-{number}") for number in range(200)))
        assert calls(port, "wait") - before == waits
    assert 1 <= waits <= 2
    show(test="one WAIT a pipeline", writes=200, waits=waits)


async def test_with_memory_full_what_ends_risk_is_still_confirmed(pair: Group) -> None:
    port = pair.nodes[0].server.settings.port
    async with connected(settings_of(pair)) as wire:
        await once(wire, "to-release")
        ask(port, "CONFIG", "SET", "maxmemory", "1mb")
        try:
            refused, _ = await timed(once(wire, "one-more"))
            assert isinstance(refused, LedgerUnavailable)
            assert "maxmemory" in str(refused)
            assert await wire.send("FCALL", "release", "1", "to-release") == 1
        finally:
            ask(port, "CONFIG", "SET", "maxmemory", "64mb")


async def test_waiting_for_disks_where_the_server_can_and_said_once_where_it_cannot(
    pair: Group, caplog: pytest.LogCaptureFixture
) -> None:
    port = pair.nodes[0].server.settings.port
    can = True
    try:
        ask(port, "WAITAOF", "0", "0", "1")
    except redis.exceptions.ResponseError:
        can = False
    before, before_memory = calls(port, "waitaof"), calls(port, "wait")
    latencies_ms = []
    with caplog.at_level(logging.WARNING, "cluster.ledger_wire"):
        async with connected(settings_of(pair, wait_aof=True)) as wire:
            for number in range(5):
                answer, seconds = await timed(once(wire, f"on-disk-{number}"))
                assert answer == ["FIRST", "1"]
                latencies_ms.append(1000 * seconds)
    said = [record.message for record in caplog.records if "WAITAOF" in record.message]
    assert (calls(port, "waitaof") - before, calls(port, "wait") - before_memory) == (5 if can else 0, 5)
    assert len(said) == (0 if can else 1)
    # A replica that is not asked for it a second time tells once a second.
    assert median(latencies_ms) < 300
    show(
        test="WAIT 1, WAITAOF 1 1",
        server_has_it=can,
        p50_ms=round(median(latencies_ms)),
        worst_ms=round(max(latencies_ms)),
    )


async def test_a_replica_is_not_taken_for_a_primary(pair: Group) -> None:
    async with connected(pair.settings_of(pair.nodes[1])) as wire:
        for command in (("GET", "before"), ("FCALL", "once", "1", "on-a-replica", "1")):
            with pytest.raises(LedgerUnavailable, match="is no primary but a slave"):
                await wire.send(*command)
        with pytest.raises(LedgerUnavailable, match="is no primary"):
            await wire.send_alone("XREADGROUP", "GROUP", "g", "c", "BLOCK", "10", "STREAMS", "s", ">")


async def test_a_primary_that_becomes_a_replica_is_left_at_the_first_refusal(pair: Group) -> None:
    first, second = pair.nodes
    async with connected(settings_of(pair)) as wire:
        assert await once(wire, "as-a-primary") in (["FIRST", "1"], ["REPEATED", "1"])
        ask(first.server.settings.port, "REPLICAOF", "127.0.0.1", str(second.proxy.port))
        try:
            for _ in range(2):
                with pytest.raises(LedgerUnavailable):
                    await once(wire, "as-a-replica")
            # A reading from there would be old from now on.
            with pytest.raises(LedgerUnavailable, match="is no primary"):
                await wire.send("GET", "as-a-primary")
        finally:
            ask(first.server.settings.port, "REPLICAOF", "NO", "ONE")
        assert await once(wire, "as-a-primary-again") in (["FIRST", "1"], ["REPEATED", "1"])


async def test_replicas_online_are_counted(pair: Group) -> None:
    async with connected(settings_of(pair)) as wire:
        found = await wire.replication()
    assert (found.host, found.port) == ("127.0.0.1", pair.nodes[0].server.settings.port)
    assert (found.online, found.wanted) == (1, 1)


# -- a spoilt network --------------------------------------------------------------------------------------------------

SPOILT: Final = {
    "50 ms later": Faults(delay_s=0.05),
    "200 ms later": Faults(delay_s=0.2),
    "20 KB a second": Faults(bandwidth_bytes_per_s=20_000),
    "1 % reset": Faults(reset_share=0.01),
    "10 % of replies lost": Faults(cut_share=0.1),
    "refused": Faults(refuse=True),
    "black hole": BLACK_HOLE,
    "half-open, requests lost": Faults(drop_requests=True),
    "half-open, replies lost": Faults(drop_replies=True),
}
"""Faults by name; the network heals after each."""
DEAD: Final = {name for name, faults in SPOILT.items() if faults.drop_requests or faults.drop_replies or faults.refuse}


@pytest.fixture(params=KINDS)
def lone_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server without replicas."""
    server = Server(binary(request.param), tmp_path)
    with server.running():
        ask(server.settings.port, "FUNCTION", "LOAD", LIBRARY)
        yield server


def through(proxy: Proxy, **changed: Any) -> RedisSettings:
    return RedisSettings(host="127.0.0.1", port=proxy.port, timeout_s=TIMEOUT_S, connect_timeout_s=TIMEOUT_S, **changed)


async def ask_each(wire: Wire, names: list[str], value: str) -> dict[str, tuple[Any, float]]:
    """Ten at a time, as many clients do: what each got and how long it took."""
    found: dict[str, tuple[Any, float]] = {}
    for start in range(0, len(names), 10):
        part = names[start : start + 10]
        results = await asyncio.gather(*(timed(once(wire, name, f"{value}-{name}")) for name in part))
        found |= dict(zip(part, results, strict=True))
    return found


@pytest.mark.parametrize("fault", SPOILT)
async def test_a_spoilt_network_refuses_or_answers_and_never_does_a_thing_twice(
    lone_server: Server, fault: str
) -> None:
    port = lone_server.settings.port
    names = [f"n-{number}" for number in range(60 if fault in DEAD else 200)]
    with Proxy(port) as proxy:
        async with connected(through(proxy)) as wire:
            assert await once(wire, "before") == ["FIRST", "1"]
            proxy.faults = SPOILT[fault]
            if fault == "refused":
                proxy.reset()
            spoilt = await ask_each(wire, names, "first")
            proxy.faults = SOUND
            healed_at = time.monotonic()
            while isinstance((await timed(wire.send("PING")))[0], LedgerUnavailable):
                assert time.monotonic() < healed_at + 5
            recovery_s = time.monotonic() - healed_at
            healed = await ask_each(wire, names, "second")
            open_after = proxy.open_connections, clients(port)
    refused = [name for name, (answer, _) in spoilt.items() if isinstance(answer, LedgerUnavailable)]
    kept = [name for name, (answer, _) in healed.items() if answer == ["REPEATED", f"first-{name}"]]
    new = [name for name, (answer, _) in healed.items() if answer == ["FIRST", f"second-{name}"]]
    assert sorted(kept + new) == sorted(names)
    assert set(new) <= set(refused)
    assert {tuple(answer) for answer, _ in spoilt.values() if not isinstance(answer, LedgerUnavailable)} <= {
        (kind, f"first-{name}") for name in names for kind in ("FIRST", "REPEATED")
    }
    assert int(ask(port, "GET", "executed")) == len(names) + 1
    worst_s = max(seconds for _, seconds in spoilt.values())
    # One exchange for those ahead, one of its own; a slow connect may come before either.
    assert worst_s < 2 * (2 * TIMEOUT_S) + 1.0
    assert len(refused) == len(names) if fault in DEAD else len(refused) < len(names)
    assert max(open_after) <= CONNECTIONS_MAX
    show(
        test="spoilt network",
        fault=fault,
        asked=len(names),
        refused=len(refused),
        done_unanswered=len(set(refused) & set(kept)),
        twice=0,
        worst_s=round(worst_s, 3),
        recovery_s=round(recovery_s, 3),
        connections=max(open_after),
    )


async def test_a_connection_opens_over_a_slow_network_within_the_default_time_outs(lone_server: Server) -> None:
    with Proxy(lone_server.settings.port) as proxy:
        proxy.faults = Faults(delay_s=0.2)
        defaults = RedisSettings(host="127.0.0.1", port=proxy.port)
        async with connected(defaults) as wire:
            answer, seconds = await timed(once(wire, "far-away"))
    assert answer == ["FIRST", "1"]
    assert seconds < defaults.timeout_s + defaults.connect_timeout_s
    show(test="first answer over 200 ms each way", seconds=round(seconds, 2))


async def test_a_thousand_lost_replies_execute_nothing_twice(lone_server: Server) -> None:
    port = lone_server.settings.port
    names = [f"n-{number}" for number in range(500)]
    with Proxy(port) as proxy:
        async with connected(through(proxy)) as wire:
            proxy.faults = Faults(cut_share=1.0, cut_after=b"FCALL")
            delivered = set()
            for name in names:
                cut_before = proxy.cut
                # Sent twice: a call whose connection ended is repeated once.
                assert isinstance((await timed(once(wire, name, f"first-{name}")))[0], LedgerUnavailable)
                if proxy.cut > cut_before:
                    delivered.add(name)
            proxy.faults = SOUND
            for name in names:
                # On a machine busy with other work a connection may not open in time: that call was never sent.
                first = ["REPEATED", f"first-{name}"] if name in delivered else ["FIRST", "second"]
                assert await once(wire, name, "second") == first
            assert await wire.send("GET", "executed") == str(len(names))
            assert max(proxy.open_connections, clients(port)) <= CONNECTIONS_MAX
        assert len(delivered) > 0.9 * len(names)
        assert proxy.cut > 1.8 * len(names)
    await_that(lambda: clients(port) == 0, "closed connections are gone")
    show(test="lost replies", lost=proxy.cut, calls=len(names), twice=0, connections_opened=proxy.accepted)


async def test_a_blocking_call_ends_with_the_network_and_leaves_no_connection(lone_server: Server) -> None:
    port = lone_server.settings.port
    ask(port, "XGROUP", "CREATE", "s", "g", "$", "MKSTREAM")
    read = ("XREADGROUP", "GROUP", "g", "c", "BLOCK", "300", "STREAMS", "s", ">")
    with Proxy(port) as proxy:
        async with connected(through(proxy)) as wire:
            assert await wire.send_alone(*read) in (None, [], {})
            for faults in (BLACK_HOLE, Faults(refuse=True), Faults(drop_replies=True)):
                proxy.faults = faults
                if faults.refuse:
                    proxy.reset()
                for _ in range(5):
                    answer, seconds = await timed(wire.send_alone(*read))
                    assert isinstance(answer, LedgerUnavailable)
                    assert seconds < 2 * TIMEOUT_S + 0.5
                proxy.faults = SOUND
                assert await wire.send_alone(*read) in (None, [], {})
                await_that(lambda: max(proxy.open_connections, clients(port)) <= CONNECTIONS_MAX, "none is left")


# -- settings and words ------------------------------------------------------------------------------------------------

SENTINELS: Final = ("a:1", "b:2", "c:3")


@pytest.mark.parametrize(
    ("settings", "acknowledgements", "embedded"),
    [
        ({}, 0, True),
        ({"wait_aof": True}, 0, True),
        ({"host": "ledger"}, 0, False),
        ({"host": "ledger", "wait_replicas": 2}, 2, False),
        ({"sentinels": SENTINELS, "wait_replicas": 1}, 1, False),
        ({"sentinels": SENTINELS, "wait_replicas": 0}, 0, False),
        ({"sentinels": SENTINELS, "wait_replicas": 2}, 2, False),
        ({"host": "ledger", "wait_replicas": 1, "wait_aof": True, "wait_timeout_ms": 499}, 1, False),
        ({"timeout_s": 0.2}, 0, True),
    ],
)
def test_how_many_replicas_answers_wait_for(settings: dict[str, Any], acknowledgements: int, embedded: bool) -> None:
    found = RedisSettings(**settings)
    assert (found.acknowledgements, found.embedded) == (acknowledgements, embedded)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"wait_replicas": 1}, "the desk's own server has none"),
        ({"host": "a", "sentinels": SENTINELS}, "host and sentinels: one of them"),
        ({"sentinels": ["a:1", "a:1"]}, "each Sentinel is named once"),
        ({"sentinels": ["a"]}, "expected host:port, was 'a'"),
        ({"sentinels": ["a:0"]}, "expected host:port"),
        ({"sentinels": ["a:65536"]}, "expected host:port"),
        ({"sentinels": [":1"]}, "expected host:port"),
        ({"sentinels": ["a b:1"]}, "expected host:port"),
        ({"sentinels": ["a:1\n"]}, "expected host:port"),
        ({"sentinels": ["a:１"]}, "expected host:port"),
        ({"sentinels": "a:1"}, "valid tuple"),
        ({"sentinels": [f"a:{n}" for n in range(1, 17)]}, "at most 15"),
        ({"sentinels": SENTINELS}, "wait_replicas: named with sentinels"),
        ({"sentinels": SENTINELS, "wait_replicas": None}, "as many as there are replicas"),
        ({"sentinels": SENTINELS, "sentinel_name": ""}, "at least 1 character"),
        ({"host": "a", "wait_replicas": -1}, "greater than or equal to 0"),
        ({"host": "a", "wait_replicas": 17}, "less than or equal to 16"),
        ({"host": "a", "wait_replicas": 1, "wait_timeout_ms": 0}, "greater than or equal to 1"),
        ({"host": "a", "wait_replicas": 1, "wait_timeout_ms": 1000}, "must be below timeout_s"),
        ({"sentinels": SENTINELS, "wait_replicas": 1, "timeout_s": 0.4}, "must be below timeout_s"),
        ({"wait_aof": True, "timeout_s": 0.4}, "must be below timeout_s"),
        ({"host": "a", "wait_replicas": 1, "wait_aof": True, "wait_timeout_ms": 500}, "twice 500 ms must be below"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_rule(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        RedisSettings(**settings)


def test_sentinels_are_hosts_and_ports() -> None:
    settings = RedisSettings(wait_replicas=2, sentinels=("ledger-0.ledger:26379", "[::1]:26380"))
    assert settings.sentinel_addresses == [("ledger-0.ledger", 26379), ("::1", 26380)]


@pytest.mark.parametrize(
    ("used", "allowed", "warning"),
    [
        (599, 1000, None),
        (600, 1000, "WARNING: 60.0 %"),
        (799, 1000, "WARNING: 79.9 %"),
        (800, 1000, "ALARM: 80.0 %"),
        (1100, 1000, "ALARM: 110.0 %"),
        (10**9, 0, None),
    ],
)
def test_memory_is_warned_about_before_it_is_full(used: int, allowed: int, warning: str | None) -> None:
    found = memory_warning(used * 2**20, allowed * 2**20)
    assert found is None if warning is None else (found or "").startswith(warning)


async def test_what_need_not_be_confirmed_is_what_the_ledgers_library_calls_reading(ledger: Ledger) -> None:
    (library,) = await ledger._direct("FUNCTION", "LIST", "LIBRARYNAME", "tt_ledger")
    functions = {function["name"]: set(function["flags"]) for function in library["functions"]}
    assert {name for name, flags in functions.items() if "no-writes" in flags} == READ_FUNCTIONS
