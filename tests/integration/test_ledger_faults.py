"""What goes wrong around the ledger: full memory, frozen and killed servers, damaged keys, callers that hang up.

Whatever it is, a call takes effect whole or not at all, and nobody waits longer than the time-out says.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import SecretStr

import cluster.ledger_wire
from cluster.audit import verify
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, Proposal
from conf.settings import RedisSettings, Secrets, Settings
from strategies.model import OrderStatus, Side, TradingState
from tests.books import ACCOUNT, ASKER, BASE, BTC, DESK, PRODUCTS, Books, limit_records, order
from tests.servers import KINDS, Server, binary, redis_secrets
from tests.tampering import set_figure

pytestmark = pytest.mark.anyio

TIMEOUT_S: Final = 0.5
Step = Callable[[], Awaitable[Any]]


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Tests that do not harm the server run on the shared ones, Valkey and Redis."""
    return each_server


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own that writes every call to disk before it answers, as the desk's does."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(binary(request.param), folder, appendfsync="always")
    with server.running():
        yield server


@asynccontextmanager
async def connected(server: Server, timeout_s: float = 20.0) -> AsyncIterator[Ledger]:
    patience = {"timeout_s": timeout_s, "connect_timeout_s": timeout_s}
    settings = Settings(state_dir=Path("/nowhere"), redis=server.settings.model_copy(update=patience))
    ledger = Ledger.connect(settings, redis_secrets())
    try:
        yield ledger
    finally:
        await ledger.close()


async def opened(ledger: Ledger, **arguments: Any) -> Books:
    await ledger.install()
    return await Books(ledger).open(**arguments)


# -- memory is full ----------------------------------------------------------------------------------------------------


async def test_with_memory_full_no_order_is_taken_and_every_risk_can_be_ended(server: Server) -> None:
    async with connected(server) as ledger:
        books = await opened(ledger)
        for number in range(6):
            await books.accept(f"o-{number}")
        for number in range(4):
            await books.send(f"o-{number}")
        await ledger._direct("CONFIG", "SET", "maxmemory", "1mb")
        before = await books.keys()
        with pytest.raises(LedgerUnavailable, match="maxmemory"):
            await books.reserve(order("one-more"))
        assert await books.keys() == before

        assert await ledger.ack(ACCOUNT, books.epoch, "o-0", OrderStatus.OPEN, "v-0") == "OPEN"
        assert await books.fill("o-0", 10, 10_000) == ("APPLIED", "FILLED")
        assert await ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.REJECTED, "x") == (True, "REJECTED")
        assert await ledger.request_cancel(ACCOUNT, "o-2", "test") == ("SENT", "REQUESTED")
        assert await ledger.request_cancel(ACCOUNT, "o-4", "test") == ("CANCELLED", "CANCELLED")
        await books.send("o-5")
        await ledger.tighten(ACCOUNT, "account", TradingState.REDUCING, "test", "full")
        assert (await ledger.tighten(ACCOUNT, "account", TradingState.CANCEL_ALL, "test", "full"))[1] == 3
        assert await verify(ledger, ACCOUNT) == []


async def test_with_memory_full_execution_can_still_start(server: Server) -> None:
    async with connected(server) as ledger:
        books = await opened(ledger)
        await books.accept("o-1")
        await ledger.outbox_open(ACCOUNT)
        await ledger._direct("CONFIG", "SET", "maxmemory", "1mb")

        books.epoch = await ledger.claim(ACCOUNT, "execution")
        await ledger.set_products(list(PRODUCTS.values()))
        await books.limit({"account|max_open_orders": "0"})
        await books.quote()
        assert await ledger.open_account(ACCOUNT, 1, {}, "execution") is False
        await ledger.outbox_open(ACCOUNT)
        (entry,) = await ledger.outbox_read(ACCOUNT, "execution", ">", 10)
        await books.send("o-1")
        await ledger.outbox_done(ACCOUNT, [entry.entry_id])
        await ledger.beat("execution", {"account": ACCOUNT})
        assert await ledger.outbox_length(ACCOUNT) == 0
        assert set(await ledger.heartbeats()) == {"execution"}


# -- damaged keys ------------------------------------------------------------------------------------------------------

# Limits that make every key count: soft levels that raise alerts, a window of duplicates, no trades with oneself.
COUNTING: Final = {
    **{f"{s}|order_interval_us": "1" for s in ("account", "strategy|manual", "global", "key|*")},
    "account|max_open_orders": "100:0",
    "global|max_daily_loss": "1",
    "account|duplicate_window_ms": "60000",
    "account|self_trade": "deny",
    "product|BTC-USD|max_order_lots": "50",
}
KEYS: Final = [
    *(f"{BASE}:{name}" for name in ("state", "limits", "book", "reference", "open", "outbox", "audit", "alerts")),
    *(f"{BASE}:{name}" for name in ("approvals", "resting:BTC-USD:BUY", "resting:BTC-USD:SELL")),
    *(f"{BASE}:{name}" for name in ("order:sent", "fills:sent", "order:waiting", "order:new")),
    *(f"{DESK}:{name}" for name in ("state", "limits", "book", "audit", "alerts", "accounts", "approvals")),
]


async def damage_ready(books: Books) -> dict[str, Proposal]:
    """One order that waits, one that was sent, a halt of another strategy; proposals: to resume it, to let an order
    over its limits, and the same for the order "over", which was approved."""
    await books.open(cash=10**9, limits=COUNTING)
    await books.accept("waiting")
    await books.accept("sent", lots=11)
    await books.send("sent")
    await books.fill("sent", 1, 10_000)
    await books.accept("on-its-way", lots=13)
    await books.send("on-its-way")
    books.orders["new"] = order("new", lots=12)
    await books.halt("strategy|other")
    proposals = {"resume": await books.ledger.propose_resume(ACCOUNT, "strategy|other", "test", ASKER, "over")}
    for name in ("asked", "over"):
        books.orders[name] = order(name, lots=60)
        asked = await books.ledger.propose_override(books.orders[name], BTC, "test", ASKER, "why")
        proposals[name] = asked
    await books.approve(proposals["over"].id)
    await books.ledger._direct("EVAL", SAVE, "0")
    return proposals


# The whole of database 0 put away in database 1, taken out again, and as one text to compare.
SAVE: Final = """
local keys = redis.call('KEYS', '*')
redis.call('SELECT', 1)
redis.call('FLUSHDB')
redis.call('SELECT', 0)
for _, key in ipairs(keys) do redis.call('COPY', key, key, 'DB', 1) end
"""
RESTORE: Final = """
redis.call('FLUSHDB')
redis.call('SELECT', 1)
for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('COPY', key, key, 'DB', 0) end
redis.call('SELECT', 0)
"""
CONTENT: Final = """
local keys = redis.call('KEYS', '*')
table.sort(keys)
for i, key in ipairs(keys) do keys[i] = key .. ' ' .. redis.sha1hex(redis.call('DUMP', key)) end
return keys
"""


def verbs(books: Books, proposals: dict[str, Proposal]) -> dict[str, Step]:
    ledger, epoch = books.ledger, books.epoch
    proposal, asked = proposals["resume"], proposals["asked"]
    another = order("another", lots=60)
    return {
        "reserve": lambda: books.reserve(books.orders["new"]),
        "reserve overridden": lambda: books.reserve(books.orders["over"]),
        "propose override": lambda: ledger.propose_override(another, BTC, "test", "asker", "drill"),
        "approve override": lambda: ledger.approve(ACCOUNT, asked.id, asked.digest, "test", "approver"),
        "refuse override": lambda: ledger.refuse(ACCOUNT, proposals["over"].id, "test", "approver", "no"),
        "mark_sent": lambda: ledger.mark_sent(ACCOUNT, epoch, "waiting"),
        "ack": lambda: ledger.ack(ACCOUNT, epoch, "on-its-way", OrderStatus.OPEN, "v-1"),
        "late ack": lambda: ledger.ack(ACCOUNT, epoch, "sent", OrderStatus.OPEN, "v-1"),
        "fill": lambda: books.fill("sent", 2, 10_000, 5),
        "last fill": lambda: books.fill("sent", 10, 10_000, 5),
        "release": lambda: ledger.release(ACCOUNT, epoch, "sent", OrderStatus.CANCELLED, "why"),
        "cancel waiting": lambda: ledger.request_cancel(ACCOUNT, "waiting", "test"),
        "cancel sent": lambda: ledger.request_cancel(ACCOUNT, "sent", "test"),
        "tighten": lambda: ledger.tighten(ACCOUNT, "account", TradingState.HALTED, "test", "drill"),
        "tighten desk": lambda: ledger.tighten(None, "global", TradingState.HALTED, "test", "drill"),
        "set_limits": lambda: ledger.set_limits(ACCOUNT, limit_records({"account|max_open_orders": "1"})[1], "test"),
        "loosen": lambda: ledger.set_limits(ACCOUNT, limit_records({})[1], "test", "asker"),
        "propose desk": lambda: ledger.propose_resume(None, "global", "test", "asker", "drill"),
        "propose": lambda: ledger.propose_resume(ACCOUNT, "account", "test", "asker", "drill"),
        "approve": lambda: ledger.approve(ACCOUNT, proposal.id, proposal.digest, "test", "approver"),
        "refuse": lambda: ledger.refuse(ACCOUNT, proposal.id, "test", "approver", "no"),
        "watch": lambda: ledger.watch(ACCOUNT, epoch),
        "venue_errors": lambda: ledger.venue_errors(ACCOUNT, epoch, 1),
        "prove": lambda: ledger.prove(ACCOUNT),
        "set_reference": lambda: books.quote({"BTC-USD": (9_801, 10_001)}),
        "open_account": lambda: ledger.open_account(ACCOUNT, 1, {"XRP-USD": (1, 1)}, "test"),
        "claim": lambda: ledger.claim(ACCOUNT, "test"),
    }


async def fails_whole_or_works(books: Books, verb: Step, damage: Step) -> bool:
    """Whether the verb failed on the damaged ledger; if so, every key must be as before."""
    await books.ledger._direct("EVAL", RESTORE, "0")
    await damage()
    before = await books.ledger._direct("EVAL", CONTENT, "0")
    try:
        await verb()
    except LedgerError:
        assert await books.ledger._direct("EVAL", CONTENT, "0") == before
        return True
    return False


SPENDING: Final = ("reserve", "reserve overridden", "fill", "last fill", "release", "cancel waiting", "set_reference")
# Nothing is done that could not be told.
NEEDS_NO_AUDIT: Final = {"late ack", "open_account", "prove", "watch", "venue_errors", "tighten desk", "propose desk"}


@pytest.mark.parametrize("key", KEYS)
async def test_a_key_of_the_wrong_type_stops_a_verb_before_it_has_written_anything(books: Books, key: str) -> None:
    proposals = await damage_ready(books)
    failed = set()
    for name, verb in verbs(books, proposals).items():
        damage = functools.partial(books.ledger._direct, "SET", key, "not what it should be")
        if await fails_whole_or_works(books, verb, damage):
            failed.add(name)
    assert failed, key
    if key == f"{BASE}:audit":
        assert failed >= set(verbs(books, proposals)) - NEEDS_NO_AUDIT


async def test_a_figure_that_is_no_integer_stops_a_verb_before_it_has_written_anything(books: Books) -> None:
    proposals = await damage_ready(books)
    ledger = books.ledger
    snapshot = await ledger.snapshot(ACCOUNT)
    figures = [
        (base, name)
        for base, book in ((BASE, snapshot.book), (DESK, snapshot.desk_book))
        for name, text in book.items()
        if text.lstrip("-").isdigit()
    ]
    assert len(figures) > 35
    spoils: list[tuple[str, Step]] = [
        (name, functools.partial(set_figure, ledger, base, name, "1.5e3x")) for base, name in figures
    ]
    spoils += [
        (name, functools.partial(ledger._direct, "HSET", f"{BASE}:order:sent", name, "1.5e3x"))
        for name in ("lots", "reserved_lots", "reserved_cash", "filled_value", "fees")
    ]
    ignored = []
    for name, spoil in spoils:
        chosen = [verbs(books, proposals)[verb] for verb in SPENDING]
        if not any([await fails_whole_or_works(books, verb, spoil) for verb in chosen]):
            ignored.append(name)
    # What other products and strategies have is nobody's business here.
    assert [name for name in ignored if "XRP-USD" not in name and "other" not in name] == []


async def test_a_call_that_cannot_be_sent_fails_alone(books: Books) -> None:
    await books.open()
    calls = [books.reserve(order(f"o-{number}")) for number in range(3)]
    broken = books.ledger.tighten(ACCOUNT, "account", TradingState.HALTED, "test", "lone surrogate \ud800")
    failing = asyncio.ensure_future(broken)
    verdicts = await asyncio.gather(*calls)
    assert all(verdict.accepted for verdict in verdicts)
    with pytest.raises(LedgerError, match="not text"):
        await failing


# -- callers that hang up ----------------------------------------------------------------------------------------------


async def test_callers_that_hang_up_do_not_stall_the_others(books: Books) -> None:
    await books.open()
    tasks = [asyncio.create_task(books.reserve(order(f"o-{number}"))) for number in range(300)]
    for number, task in enumerate(tasks):
        if number % 3 == 0:
            task.cancel()
        if number % 50 == 0:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for number, result in enumerate(results):
        if number % 3:
            assert not isinstance(result, BaseException), result
            assert (result.kind, result.answer["client_order_id"]) == ("ACCEPTED", f"o-{number}")
    assert await verify(books.ledger, ACCOUNT) == []


async def test_replies_never_reach_another_caller_however_many_hang_up(books: Books) -> None:
    await books.open()
    for number in range(20):
        await books.accept(f"o-{number}", lots=number + 1)

    async def look(number: int) -> str:
        fields = await books.ledger.order(ACCOUNT, f"o-{number}")
        assert fields is not None
        return fields["lots"]

    for turn in range(30):
        tasks = [asyncio.create_task(look(number)) for number in range(20)]
        for _ in range(turn % 5):
            await asyncio.sleep(0)
        for task in tasks[turn % 3 :: 3]:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        answered = [(number, lots) for number, lots in enumerate(found) if isinstance(lots, str)]
        assert answered == [(number, str(number + 1)) for number, _ in answered]
        assert len(answered) >= 13


async def test_many_readers_at_once_are_all_answered(books: Books) -> None:
    # Each listing takes a connection of its own; more than there are used to be refused.
    await books.open()
    await books.accept("o-1")
    lists = await asyncio.gather(*(books.ledger.open_orders(ACCOUNT) for _ in range(200)))
    assert {len(found) for found in lists} == {1}


async def test_a_queue_without_end_is_refused(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    await books.open()
    monkeypatch.setattr(cluster.ledger_wire, "WAITING_CALLS_MAX", 10)
    results = await asyncio.gather(*(books.reserve(order(f"o-{n}")) for n in range(30)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, LedgerUnavailable)]
    assert len(refused) == 20
    assert "more than 10 calls" in str(refused[0])


# -- a server that does not answer -------------------------------------------------------------------------------------


async def timed(call: Awaitable[Any]) -> float:
    """Seconds until the call was refused as unavailable."""
    started = time.monotonic()
    with pytest.raises(LedgerUnavailable):
        await call
    return time.monotonic() - started


async def test_a_frozen_server_is_noticed_within_the_time_out(server: Server) -> None:
    async with connected(server, TIMEOUT_S) as ledger:
        books = await opened(ledger)
        await books.accept("before", lots=3)
        with server.frozen():
            # One exchange (write, answer, perhaps a new connection) and, for those behind it, one wait.
            waits = await asyncio.gather(*(timed(books.reserve(order(f"o-{n}"))) for n in range(700)))
            assert max(waits) < 2 * (2 * TIMEOUT_S) + 1.0
            assert await timed(ledger.order(ACCOUNT, "before")) < 2 * TIMEOUT_S + 1.0
            assert await timed(ledger.open_orders(ACCOUNT)) < 2 * TIMEOUT_S + 1.0
            assert await timed(ledger.ping()) < 2 * TIMEOUT_S + 1.0
        # What was sent may have been done; the answers to it must not be taken for the answers to what comes now.
        fields = await ledger.order(ACCOUNT, "before")
        assert fields is not None
        assert fields["lots"] == "3"
        for number in range(0, 700, 100):
            verdict = await books.reserve(order(f"o-{number}"))
            assert (verdict.kind in {"ACCEPTED", "REPEATED"}, verdict.answer["client_order_id"]) == (
                True,
                f"o-{number}",
            )
        assert await verify(ledger, ACCOUNT) == []


async def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    server = Server(Path("/nowhere"), tmp_path)
    async with connected(server, TIMEOUT_S) as ledger:
        assert await timed(ledger.ping()) < 2 * TIMEOUT_S + 1.0
        assert await timed(ledger.reserve(order("o-1"), BTC, "test")) < 2 * TIMEOUT_S + 1.0


async def test_a_wrong_password_is_unavailable(each_server: RedisSettings) -> None:
    settings = Settings(state_dir=Path("/nowhere"), redis=each_server)
    ledger = Ledger.connect(settings, Secrets(redis_password=SecretStr("wrong")))
    with pytest.raises(LedgerUnavailable) as caught:
        await ledger.ping()
    assert "wrong" not in str(caught.value).replace("wrongpass", "").replace("WRONGPASS", "")
    await ledger.close()


async def test_a_server_nobody_has_named_is_unavailable_with_the_remedy() -> None:
    with pytest.raises(LedgerUnavailable, match="desk up"):
        Ledger.connect(Settings(state_dir=Path("/nowhere")), Secrets())


async def test_without_the_function_library_nothing_is_decided(books: Books) -> None:
    await books.open()
    await books.ledger._direct("FUNCTION", "FLUSH")
    with pytest.raises(LedgerUnavailable, match="desk up"):
        await books.ledger.ping()
    with pytest.raises(LedgerUnavailable):
        await books.reserve(order("o-1"))


async def test_loading_the_library_again_keeps_the_books(books: Books) -> None:
    await books.open()
    await books.accept("o-1")
    before = await books.keys()
    await books.ledger.install()
    await books.ledger.ping()
    assert await books.keys() == before
    assert (await books.reserve(order("o-1"))).kind == "REPEATED"


NOT_NOW: list[tuple[str, list[tuple[str, ...]]]] = [
    # what, commands that bring it about
    ("too few replicas", [("CONFIG", "SET", "min-replicas-to-write", "1")]),
    ("a replica", [("REPLICAOF", "127.0.0.1", "1")]),
    (
        "a replica that knows it is behind",
        [("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")],
    ),
]


@pytest.mark.parametrize(("what", "commands"), NOT_NOW, ids=[row[0] for row in NOT_NOW])
async def test_a_server_that_may_not_write_now_is_unavailable_not_wrong(
    server: Server, what: str, commands: list[tuple[str, ...]]
) -> None:
    async with connected(server) as ledger:
        books = await opened(ledger)
        for command in commands:
            await ledger._direct(*command)
        with pytest.raises(LedgerUnavailable):
            await books.reserve(order("o-1"))


async def until_refused(books: Books) -> None:
    while True:
        await books.reserve(order("o-1"))


async def test_a_server_busy_with_an_endless_script_is_unavailable(server: Server) -> None:
    async with connected(server) as other, connected(server) as ledger:
        books = await opened(ledger)
        await ledger._direct("CONFIG", "SET", "busy-reply-threshold", "20")
        endless = asyncio.create_task(other._direct("EVAL", "while true do end", "0"))
        await asyncio.sleep(0)
        with pytest.raises(LedgerUnavailable, match="BUSY"):
            await until_refused(books)
        await ledger._direct("SCRIPT", "KILL")
        with pytest.raises(LedgerError):
            await endless
        assert (await books.reserve(order("o-1"))).accepted


# -- a connection that breaks ------------------------------------------------------------------------------------------


class Proxy:
    """Stands between a ledger and its server; ``lose_replies`` lets the next request pass and its reply vanish."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._writers: list[asyncio.StreamWriter] = []
        self._losing = False
        self.lost = 0

    async def listen(self) -> int:
        """Returns the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def lose_replies(self) -> None:
        self._losing = True

    def cut(self) -> None:
        """Close every connection, as a server that restarts does."""
        for writer in self._writers:
            writer.close()

    async def close(self) -> None:
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers += [writer, far_writer]
        requests = asyncio.create_task(self._pass_on(reader, far_writer))
        while (data := await far_reader.read(65_536)) and not self._losing:
            writer.write(data)
        self.lost += self._losing
        self._losing = False
        requests.cancel()
        for end in (writer, far_writer):
            end.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()


@asynccontextmanager
async def through_a_proxy(server: RedisSettings) -> AsyncIterator[tuple[Proxy, Ledger]]:
    proxy = Proxy(server.port)
    settings = Settings(state_dir=Path("/nowhere"), redis=server.model_copy(update={"port": await proxy.listen()}))
    ledger = Ledger.connect(settings, redis_secrets())
    try:
        yield proxy, ledger
    finally:
        await ledger.close()
        await proxy.close()


async def test_a_connection_closed_in_between_is_opened_anew(books: Books, each_server: RedisSettings) -> None:
    await books.open()
    async with through_a_proxy(each_server) as (proxy, ledger):
        await ledger.ping()
        proxy.cut()
        assert (await ledger.reserve(order("o-1"), BTC, "test")).kind == "ACCEPTED"


async def test_an_order_whose_answer_was_lost_is_asked_again_and_reserved_once(
    books: Books, each_server: RedisSettings
) -> None:
    await books.open()
    async with through_a_proxy(each_server) as (proxy, ledger):
        await ledger.ping()
        proxy.lose_replies()
        verdict = await ledger.reserve(order("o-1"), BTC, "test")
        assert (verdict.kind, verdict.accepted, proxy.lost) == ("REPEATED", True, 1)
    assert await books.outbox() == [("SUBMIT", "o-1")]
    assert await verify(books.ledger, ACCOUNT) == []


async def test_outbox_entries_whose_reply_was_lost_are_not_skipped(books: Books, each_server: RedisSettings) -> None:
    # Asked again, the server would name the entries after those it believes this reader to have.
    await books.open()
    await books.ledger.outbox_open(ACCOUNT)
    for number in range(4):
        await books.accept(f"o-{number}")
    async with through_a_proxy(each_server) as (proxy, ledger):
        await ledger.ping()
        proxy.lose_replies()
        with pytest.raises(LedgerUnavailable):
            await ledger.outbox_read(ACCOUNT, "execution", ">", 2)
        assert proxy.lost == 1
        # What a new start of execution does: first what it was given before, then what is new.
        given = await ledger.outbox_read(ACCOUNT, "execution", "0", 10)
        new = await ledger.outbox_read(ACCOUNT, "execution", ">", 10)
        assert [entry.client_order_id for entry in given + new] == ["o-0", "o-1", "o-2", "o-3"]


# -- a server that was killed ------------------------------------------------------------------------------------------


async def acknowledged(books: Books, name: str) -> dict[str, str]:
    """Orders one after the other until the server is gone: what was answered, by id."""
    answers = {}
    for number in range(100_000):
        order_id = f"{name}-{number}"
        try:
            verdict = await books.reserve(order(order_id))
            answers[order_id] = "RESERVED"
            assert verdict.accepted
            if number % 3 == 1:
                await books.ledger.mark_sent(ACCOUNT, books.epoch, order_id)
                answers[order_id] = "SENT"
                await books.fill(order_id, 4, 10_000, trade_id=f"t-{order_id}")
                answers[order_id] = "PARTIALLY_FILLED"
            if number % 3 == 2:
                await books.ledger.request_cancel(ACCOUNT, order_id, "test")
                answers[order_id] = "CANCELLED"
        except LedgerUnavailable:
            return answers
    raise AssertionError("the server was never killed")


async def test_what_was_acknowledged_before_a_kill_is_there_after_it(server: Server) -> None:
    async with connected(server, TIMEOUT_S * 4) as ledger:
        books = await opened(ledger)
        writers = [asyncio.create_task(acknowledged(books, name)) for name in "abcdefgh"]
        while await ledger._direct("XLEN", f"{BASE}:outbox") < 200:
            pass
        server.kill()
        answers = {order_id: status for writer in writers for order_id, status in (await writer).items()}
        server.start()

        order_of_life = ["RESERVED", "SENT", "PARTIALLY_FILLED", "CANCELLED"]
        lost = [order_id for order_id in answers if await books.status(order_id) is None]
        behind = [
            order_id
            for order_id, status in answers.items()
            if order_of_life.index(await books.status(order_id) or "RESERVED") < order_of_life.index(status)
        ]
        outbox = [order_id for kind, order_id in await books.outbox() if kind == "SUBMIT"]
        reserved = [order_id for kind, order_id in await books.audit() if kind == "RESERVED"]
        print(f"acknowledged {len(answers)}, stored {len(reserved)}, lost {len(lost)}, behind {len(behind)}")
        assert len(answers) >= 200
        assert (lost, behind) == ([], [])
        assert len(outbox) == len(set(outbox)) == len(reserved)
        assert await verify(ledger, ACCOUNT) == []
        # The caller whose answer was lost asks again with the same id: one reservation, whatever had happened.
        await ledger.admit(ACCOUNT, books.epoch)
        for name in "abcdefgh":
            last = max(int(order_id.split("-")[1]) for order_id in answers if order_id.startswith(name))
            assert (await books.reserve(order(f"{name}-{last}"))).kind == "REPEATED"
            assert (await books.reserve(order(f"{name}-{last + 1}"))).kind in {"ACCEPTED", "REPEATED"}
        assert await verify(ledger, ACCOUNT) == []


async def test_a_server_that_still_loads_its_data_does_not_answer_yet(server: Server) -> None:
    # INFO is answered while loading, so a desk that came up took the server for ready and failed one call later.
    async with connected(server) as ledger:
        await opened(ledger)
        for number in range(300):
            await ledger._direct("SET", f"key-{number}", "x")
        await ledger._direct("BGREWRITEAOF")
        while int((await ledger._direct("INFO", "persistence"))["aof_rewrite_in_progress"]):
            await asyncio.sleep(0.01)
        server.kill()
        server.configure("key-load-delay", "1000")
        server.configure("loading-process-events-interval-bytes", "1024")
        server.launch()
        refusals = []
        while True:
            try:
                await ledger.server()
            except LedgerUnavailable as error:
                refusals.append(str(error))
            else:
                break
        await ledger.install()
        assert [text for text in refusals if "loading" in text]


async def test_name_and_version_of_the_server_are_told(ledger: Ledger, each_server: RedisSettings) -> None:
    name, version = await ledger.server()
    assert name in {"valkey", "redis"}
    assert int(version.split(".")[0]) >= 7
    used, allowed = await ledger.memory()
    assert 0 < used < allowed == 64 * 1024 * 1024


async def test_a_sell_is_never_taken_for_holdings_that_a_damaged_book_hides(books: Books) -> None:
    await books.open(lots={"BTC-USD": 5})
    await set_figure(books.ledger, BASE, "p|BTC-USD|lots", "nan")
    with pytest.raises(LedgerError):
        await books.reserve(order("o-1", lots=5, side=Side.SELL))
