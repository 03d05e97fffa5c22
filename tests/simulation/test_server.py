"""The simulated ledger server against a real one: the same commands and the same verbs get the same answers.

What must differ between two servers (clocks, and what is made of them) is compared by its place, not by its digits.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.ledger import Ledger, LedgerError, LedgerUnavailable
from cluster.ledger_wire import Wire
from conf.settings import RedisSettings
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, Books, order
from tests.servers import PASSWORD, valkey
from tests.simulation.lua_server import LuaServer
from tests.simulation.sim_wire import _as_client, _as_ledger
from tests.simulation.store import ReplyError

pytestmark = pytest.mark.anyio
COMMANDS = 3_000
VERBS = 250


class DirectWire:
    """The simulated server without a network: every call is answered at once, on the machine's clock."""

    def __init__(self) -> None:
        self.server = LuaServer(lambda: time.time_ns() // 1_000)

    async def send(self, *command: str) -> Any:
        try:
            return _as_client(command, self.server.run(*command))
        except ReplyError as error:
            raise _as_ledger(error) from None

    send_alone = send

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSettings]:
    folder: Path = tmp_path_factory.mktemp("valkey")
    with valkey(folder) as server:
        yield server


@pytest.fixture
async def wires(settings: RedisSettings) -> AsyncIterator[tuple[Any, Any]]:
    """The real one and the simulated one, both empty."""
    real = Wire(settings, PASSWORD, None)
    await real.send("FLUSHALL")
    await real.send("FUNCTION", "FLUSH")
    yield real, DirectWire()
    await real.close()


class Places:
    """Stream ids by their number of appearance in their key, on one side."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, str]] = {}

    def masked(self, key: str, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"\d{13}-\d+", value):
            known = self.known.setdefault(key, {})
            return known.setdefault(value, f"id-{len(known)}")
        if isinstance(value, dict):
            return {self.masked(key, name): self.masked(key, one) for name, one in value.items()}
        if isinstance(value, set):
            return sorted(value)
        return [self.masked(key, one) for one in value] if isinstance(value, (list, tuple)) else value

    def real(self, key: str, command: list[str]) -> list[str]:
        """The command with this side's ids in place of ``<id-N>``."""
        entries = {f"<{place}>": entry for entry, place in self.known.get(key, {}).items()}
        return [re.sub(r"<id-\d+>", lambda match: entries[match[0]], word) for word in command]


KEYS = ("h1", "h2", "s1", "z1", "x1", "t1")


def some_command(source: random.Random, places: Places) -> list[str]:
    """Any command the ledger uses, often on a key of the wrong kind, sometimes with a bad argument."""
    pick, key = source.choice, source.choice(KEYS)
    small = str(source.randint(-3, 5))
    name, member = pick("abc"), pick(("m1", "m2", "m3", "ü"))
    ids = len(places.known.get(key, {}))
    place = f"<id-{source.randrange(ids)}>" if ids else "0"
    return pick(
        [
            ["HSET", key, name, small, "d", member],
            ["HSET", key, name],
            ["HSETNX", key, name, small],
            ["HGET", key, name],
            ["HMGET", key, "a", "b", "x"],
            ["HGETALL", key],
            ["HLEN", key],
            ["HKEYS", key],
            ["HEXISTS", key, name],
            ["HDEL", key, name, "a", name],
            ["HINCRBY", key, "n", small],
            ["SADD", key, member, name],
            ["SREM", key, member],
            ["SISMEMBER", key, member],
            ["SMEMBERS", key],
            ["SCARD", key],
            ["ZADD", key, small, member],
            ["ZADD", key, "1795360678449123", name],
            ["ZADD", key, "x", member],
            ["ZREM", key, member, name],
            ["ZCARD", key],
            ["ZSCORE", key, member],
            ["ZRANGE", key, small, str(source.randint(-3, 5))],
            ["ZREVRANGE", key, "0", "0"],
            ["SET", key, member],
            ["SET", key, member, "PX", "100000"],
            ["SET", key, member, "EX", "10", "NX"],
            ["SET", key, member, "PXAT", "1"],
            ["GET", key],
            ["INCRBY", key, small],
            ["DEL", key],
            ["EXISTS", key, "h1", "h1"],
            ["TYPE", key],
            ["EXPIRE", key, "100"],
            ["EXPIRE", key, "0"],
            ["PERSIST", key],
            ["XADD", key, "*", "kind", name, "id", small],
            ["XADD", "x1", "MAXLEN", "~", "100000", "*", "kind", name],
            ["XADD", key, "*", "kind"],
            ["XLEN", key],
            ["XRANGE", key, "-", "+"],
            ["XRANGE", key, f"({place}" if ids else "-", "+", "COUNT", "3"],
            ["XRANGE", key, place, place],
            ["XREVRANGE", key, "+", "-", "COUNT", "2"],
            ["XREVRANGE", key, f"({place}" if ids else "+", "-", "COUNT", "2"],
            ["XDEL", key, place],
            ["XTRIM", key, "MINID", place],
            ["XGROUP", "CREATE", key, "g", "0", "MKSTREAM"],
            ["XGROUP", "CREATE", key, "g", "0"],
            ["XREADGROUP", "GROUP", "g", "c", "COUNT", "2", "STREAMS", key, ">"],
            ["XREADGROUP", "GROUP", "g", "c", "COUNT", "2", "STREAMS", key, "0"],
            ["XREADGROUP", "GROUP", "g", "other", "COUNT", "2", "STREAMS", key, "0"],
            ["XACK", key, "g", place],
        ]
    )


async def answered(wire: Any, command: list[str]) -> Any:
    """The answer, or the code of the error."""
    try:
        return await wire.send(*command)
    except (LedgerError, LedgerUnavailable) as error:
        code = re.match(r"[^:]*: ([A-Z]{4,}) ", str(error))
        return f"error {code[1] if code else 'ERR'}"


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_random_commands_get_the_same_answers(wires: tuple[Any, Any], seed: int) -> None:
    source, places = random.Random(seed), (Places(), Places())
    met: set[str] = set()
    for _ in range(COMMANDS):
        command = some_command(source, places[0])
        key = next(word for word in command if word in KEYS)
        replies = [
            place.masked(key, await answered(wire, place.real(key, command)))
            for wire, place in zip(wires, places, strict=True)
        ]
        if command[0] in {"HGETALL", "HKEYS", "SMEMBERS"} and isinstance(replies[0], list):
            replies = [sorted(reply) for reply in replies]
        assert replies[1] == replies[0], command
        met.add(f"{command[0]} {str(replies[0])[:5] == 'error'}")
    assert len(met) > 50


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_same_verbs_leave_the_same_books(wires: tuple[Any, Any], seed: int) -> None:
    sides = [Books(Ledger(wire)) for wire in wires]
    limits = {"account|max_open_orders": "8", "product|BTC-USD|max_order_lots": "60:40", "account|self_trade": "deny"}
    for books in sides:
        await books.ledger.install()
        await books.open(cash=10**12, lots={"BTC-USD": 500}, limits=limits)
    source = random.Random(seed)
    outcomes: set[str] = set()
    for number in range(VERBS):
        state = source.getstate()
        answers = []
        for books in sides:
            source.setstate(state)
            answers.append(masked(await one_verb(books, source, number)))
        assert answers[1] == answers[0], number
        outcomes.add(str(answers[0])[:40])
    assert len(outcomes) > 15, outcomes
    found = [masked(await books.keys()) for books in sides]
    assert found[1] == found[0]


async def one_verb(books: Books, source: random.Random, number: int) -> Any:
    """One step of an account's life, its choice and its arguments drawn from ``source``."""
    ledger, epoch = books.ledger, books.epoch
    name = f"o-{source.randint(max(0, number - 25), number)}"
    what = source.random()
    try:
        if what < 0.35:
            asked = order(
                name,
                lots=source.randint(1, 65),
                ticks=source.choice([None, 9_900, 10_000, 10_100, 10_200]),
                side=source.choice(list(Side)),
            )
            verdict = await books.reserve(asked)
            return verdict.kind, verdict.answer
        if what < 0.5:
            return await ledger.mark_sent(ACCOUNT, epoch, name)
        if what < 0.62:
            status = source.choice([OrderStatus.OPEN, OrderStatus.UNKNOWN])
            return await ledger.ack(ACCOUNT, epoch, name, status, f"v-{name}")
        if what < 0.78:
            if name not in books.orders:
                return "no order to fill"
            return await books.fill(
                name, source.randint(1, 70), source.randint(9_800, 10_200), fee=source.randint(0, 5_000),
                trade_id=f"t-{source.randint(0, number)}",
            )  # fmt: skip
        if what < 0.86:
            return await ledger.release(ACCOUNT, epoch, name, source.choice(
                [OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.EXPIRED]), "the venue says so")  # fmt: skip
        if what < 0.92:
            return await ledger.request_cancel(ACCOUNT, name, "test")
        if what < 0.95:
            bid = source.randint(9_500, 10_500)
            return await books.quote({"BTC-USD": (bid, bid + source.randint(1, 200))})
        if what < 0.96:
            state = await ledger.tighten(ACCOUNT, "account", TradingState.REDUCING, "test", "a/reason with ü")
            await books.resume("account")
            return state[1:]
        if what < 0.98:
            entries = await ledger.outbox_read(ACCOUNT, "execution", source.choice([">", "0"]), 5)
            return [(entry.kind, entry.client_order_id) for entry in entries]
        return await ledger.prove(ACCOUNT), await ledger.prove(None), await ledger.open_sums(ACCOUNT)
    except LedgerError as error:
        return re.sub(r"script: [^,]*|@?\w*user_[^ ]*|[^ ]*tt_ledger:\d+:|on @.*", "", str(error))


_CLOCK = re.compile(r"\b1[5-9]\d{11}(\d{3})?(-\d+)?\b|\b[0-9a-f]{40}\b")


def masked(value: Any) -> Any:
    """Without times, stream ids and hashes, which hold times; JSON read."""
    if isinstance(value, str) and value[:1] in {"{", "["}:
        # Lua writes the fields of a table in the order of its own hashing.
        return masked(json.loads(value))
    if isinstance(value, str):
        return _CLOCK.sub("T", value)
    if isinstance(value, float) and value > 1.5e12:
        return "T"
    if isinstance(value, dict):
        return {masked(key): masked(one) for key, one in sorted(value.items())}
    if isinstance(value, set):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [masked(one) for one in value]
    return value


async def test_a_restart_forgets_who_was_admitted_and_nothing_else(wires: tuple[Any, Any]) -> None:
    wire = wires[1]
    books = Books(Ledger(wire))
    await books.ledger.install()
    await books.open()
    await books.accept("a")
    before = masked(await books.keys())
    wire.server.restart()
    assert masked(await books.keys()) == before
    with pytest.raises(LedgerUnavailable, match="RECONCILING"):
        await books.reserve(order("b"))
    await books.ledger.admit(ACCOUNT, books.epoch)
    assert (await books.reserve(replace(order("b"), quantity=Decimal("0.010")))).accepted
