"""The way to the ledger's server: calls in pipelines, time-outs, and what each kind of failure means.

Calls made within one turn of the event loop travel as one pipeline: under load that costs one round trip and one fsync
for many orders. ``cluster.ledger`` says what the calls are.

With several servers every new connection goes to the primary that Sentinel names and asks it whether it is one. Where
the settings say so, a pipeline that may have written is answered only when enough replicas have acknowledged it (one
WAIT a pipeline, not one a call); otherwise its calls raise ``LedgerUnavailable``, because a failover may undo them.
What reads may be shown a write that is still waiting.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import hiredis
import redis.asyncio
import redis.exceptions
from pydantic import SecretStr
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from conf.settings import RedisSettings, Secrets, Settings

LOG: Final = logging.getLogger(__name__)
# What the server lists the desk's connections under (CLIENT LIST).
CLIENT_NAME: Final = "desk"
# More calls than this waiting for the server means it cannot keep up: refusing is better than queueing without end.
WAITING_CALLS_MAX: Final = 20_000
PIPELINE_CALLS_MAX: Final = 256
MEMORY_WARN_SHARE: Final = 0.6
MEMORY_ALARM_SHARE: Final = 0.8
# Once most Sentinels have answered the others get this long: the one that led a failover knows of it first.
LATE_SENTINELS_S: Final = 0.05
# A write that changes nothing. WAIT covers what its own connection has written; an answer that only repeats an older
# one has written nothing, so WAIT alone would call it safe whatever the replicas have (Valkey does, Redis 7.0 not).
# PUBLISH goes to the replicas, in order, also with memory full, and to no disk.
BARRIER: Final = ("PUBLISH", "tt:barrier", "")
# Whatever is in neither list may write. XREADGROUP does, but only what the next read of its consumer would repair.
READS: Final = frozenset(
    {"EXISTS", "FCALL_RO", "GET", "HGET", "HGETALL", "HMGET", "INFO", "MGET", "PING", "ROLE", "SCAN", "SCARD"}
    | {"SISMEMBER", "SMEMBERS", "TIME", "TYPE", "XINFO", "XLEN", "XPENDING", "XRANGE", "XREAD", "XREADGROUP"}
    | {"XREVRANGE", "ZCARD", "ZRANGE", "ZSCORE"}
)
READ_FUNCTIONS: Final = frozenset({"tt_check", "tt_open_sums", "tt_snapshot"})

Address = tuple[str, int]


class LedgerError(RuntimeError):
    """The ledger refused a call: a mistake of ours, never a verdict about an order."""


class LedgerUnavailable(RuntimeError):
    """The ledger did not answer in time; whether the call took effect is unknown, so repeat it with the same id."""


class StaleEpoch(RuntimeError):
    """Another writer has claimed the account since; this one must stop."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A command on its way: where the reply goes, and since when (the event loop's seconds) it waits."""

    command: tuple[str, ...]
    future: asyncio.Future[Any]
    since_s: float

    @property
    def may_write(self) -> bool:
        name, *rest = self.command
        if name == "FUNCTION":
            return rest[:1] != ["LIST"]
        return name not in READS and not (name == "FCALL" and rest[:1] and rest[0] in READ_FUNCTIONS)


@dataclass(frozen=True, slots=True)
class Replication:
    """The primary and its replicas: how many are online, how many must acknowledge a write before it is answered."""

    host: str
    port: int
    online: int
    wanted: int


_CLOSED: Final = "the connection to the ledger is closed"


class Wire:
    """A way to the server. Every method may raise ``LedgerUnavailable`` or ``LedgerError``."""

    def __init__(self, settings: RedisSettings, password: str | None, sentinel_password: str | None) -> None:
        """Settings that name a server, or Sentinels; nothing is sent yet."""
        self._settings = settings
        self._primary = _Primary(settings, sentinel_password)
        self._pool = ConnectionPool(
            connection_class=_EncryptedConnection if settings.tls else _PrimaryConnection,
            primary=self._primary,
            asks_for_waitaof=settings.wait_aof,
            db=settings.database,
            password=password,
            # Beside the exchange's own: a cancelled pipeline keeps its connection, one that timed out gives it back.
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.connect_timeout_s,
            # Nothing is repeated behind our back; _exchange says what may be.
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            driver_info=None,  # a round trip of every new connection
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        self._client = redis.asyncio.Redis.from_pool(self._pool)
        # No exchange with the server takes longer than this.
        self._timeout_s = settings.timeout_s + settings.connect_timeout_s
        self._waiting: list[_Call] = []
        self._flushing: asyncio.Task[None] | None = None
        self._waits_for_memory_only = False
        self._closed = False

    @classmethod
    def connect(cls, settings: Settings, secrets: Secrets) -> Wire:
        """A way to the server of ``settings``; nothing is sent yet."""
        server = settings.redis
        if not server.port and not server.sentinels:
            raise LedgerUnavailable("redis.port: no ledger server is known; is the desk up? (desk up)")
        return cls(server, _revealed(secrets.redis_password), _revealed(secrets.sentinel_password))

    async def close(self) -> None:
        """Close the connections; who still waits for an answer gets ``LedgerUnavailable``, as does who comes later."""
        self._closed = True
        for call in self._waiting:
            if not call.future.done():
                call.future.set_exception(LedgerUnavailable(_CLOSED))
        self._waiting.clear()
        if self._flushing is not None:
            # What is under way has an end by itself; cancelled, its pipeline would keep its connection for ever.
            await asyncio.wait([self._flushing], timeout=2 * self._timeout_s)
        await self._client.aclose()

    async def send(self, *command: str) -> Any:
        """One command, sent with all others of this turn of the event loop."""
        if self._closed:
            raise LedgerUnavailable(_CLOSED)
        if len(self._waiting) >= WAITING_CALLS_MAX:
            raise LedgerUnavailable(f"more than {WAITING_CALLS_MAX} calls are waiting for the ledger")
        try:
            "".join(command).encode()
        except UnicodeEncodeError as error:
            # Found while packing, it would fail the calls of everybody else in the pipeline.
            raise LedgerError(f"not text that can be sent: {error}") from None
        loop = asyncio.get_running_loop()
        call = _Call(command, loop.create_future(), loop.time())
        self._waiting.append(call)
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())
        return await call.future

    async def send_alone(self, *command: str) -> Any:
        """One command on a connection of its own, for one the server answers late: it must not hold others back.

        It does not wait for replicas.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (redis.exceptions.RedisError, OSError) as error:
            if _elsewhere(error):
                await self._look_again()
            raise _translate(error) from error

    async def replication(self) -> Replication:
        """What the server at the other end says about its replicas."""
        found = await self.send("INFO", "replication")
        lines = [value for name, value in found.items() if re.fullmatch(r"slave[0-9]+", name)]
        online = sum(isinstance(line, dict) and line.get("state") == "online" for line in lines)
        host, port = self._primary.address or ("", 0)
        return Replication(host, port, online, self._settings.acknowledgements)

    # -- pipelines -----------------------------------------------------------------------------------------------------

    async def _flush(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            replies: list[Any] = [LedgerUnavailable("the exchange with the ledger was interrupted")] * len(batch)
            try:
                replies = await self._exchange(batch)
            except (redis.exceptions.RedisError, OSError) as error:
                replies = [error] * len(batch)
            finally:
                # Whatever happened, nobody is left waiting for an answer that will not come.
                for call, reply in zip(batch, replies, strict=True):
                    # A caller that hung up has cancelled its future; setting it would end this task for all others.
                    if not call.future.done():
                        _settle(call.future, reply)
            if any(_elsewhere(reply) for reply in replies):
                await self._look_again()

    def _next_batch(self) -> list[_Call]:
        """The calls to send now; those that have waited too long, or that nobody waits for, are not sent at all."""
        batch, self._waiting = self._waiting[:PIPELINE_CALLS_MAX], self._waiting[PIPELINE_CALLS_MAX:]
        too_old = asyncio.get_running_loop().time() - self._timeout_s
        for call in batch:
            if call.since_s < too_old and not call.future.done():
                call.future.set_exception(LedgerUnavailable("the ledger does not answer: the call was not sent"))
        return [call for call in batch if not call.future.done()]

    async def _exchange(self, batch: Sequence[_Call]) -> list[Any]:
        # The client's own time-out is one of each reply, not of them all.
        async with asyncio.timeout(self._timeout_s):
            try:
                return await self._pipelined(batch)
            except redis.exceptions.ConnectionError:
                # A connection that a restarted server has closed is opened anew, once: every verb may be repeated
                # safely. A read of the outbox may not: it would skip the entries whose reply was lost.
                if any(call.command[0] == "XREADGROUP" for call in batch):
                    raise
                return await self._pipelined(batch)

    async def _pipelined(self, batch: Sequence[_Call]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        # The connection first, because only it knows what its server can do; the pipeline gives it back.
        connection: _PrimaryConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        pipe.connection = connection
        proof = self._proof(connection) if any(call.may_write for call in batch) else []
        for command in (*(call.command for call in batch), *proof):
            pipe.execute_command(*command)
        try:
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        finally:
            if pipe.connection is not None:
                # Interrupted in its middle: what would still come is nobody's answer, so the connection ends with it.
                pipe.connection = None
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
        shortfall = self._shortfall(replies[len(batch) :])
        return [
            shortfall if shortfall and call.may_write and not isinstance(reply, Exception) else reply
            for call, reply in zip(batch, replies, strict=False)
        ]

    def _proof(self, connection: _PrimaryConnection) -> list[tuple[str, ...]]:
        """The commands after a pipeline that say how many servers have what it wrote."""
        replicas, patience_ms = str(self._settings.acknowledgements), str(self._settings.wait_timeout_ms)
        waits: list[tuple[str, ...]] = [("WAIT", replicas, patience_ms)] if self._settings.acknowledgements else []
        if self._settings.wait_aof and connection.has_waitaof:
            # After WAIT, because a replica tells what its disk has when it is asked, and else once a second: asked by
            # WAIT it has not written yet, asked a second time it has.
            waits.append(("WAITAOF", "1", replicas, patience_ms))
        elif self._settings.wait_aof and not self._waits_for_memory_only:
            self._waits_for_memory_only = True
            LOG.warning(
                "redis.wait_aof: the ledger's server has no WAITAOF (Redis 7.2 and Valkey have): "
                "answers wait for the memory of %s replicas, not for disks",
                replicas,
            )
        return [BARRIER, *waits] if waits else []

    def _shortfall(self, proof: Sequence[Any]) -> Exception | None:
        """Why the pipeline's writes may not last; None where enough servers have them, or none were asked."""
        wanted = self._settings.acknowledgements
        for reply in proof[1:]:
            if isinstance(reply, Exception):
                return _Undurable(f"RISK_UNAVAILABLE: not known to be durable ({reply}); repeat with the same id")
            local, replicas = reply if isinstance(reply, list) else (1, reply)
            if int(local) < 1 or int(replicas) < wanted:
                where = " with their disks" if isinstance(reply, list) else ""
                own = "" if int(local) else ", nor the primary's own disk,"
                return _Undurable(
                    f"RISK_UNAVAILABLE: written, but only {replicas} of {wanted} replicas{own} confirmed it{where} "
                    f"within {self._settings.wait_timeout_ms} ms: not known to be durable; repeat with the same id"
                )
        return proof[0] if proof and isinstance(proof[0], Exception) else None

    async def _look_again(self) -> None:
        """Close the idle connections, so that the next call asks anew where the primary is."""
        try:
            await self._pool.disconnect(inuse_connections=False)
        except (redis.exceptions.RedisError, OSError) as error:
            LOG.debug("closing a connection of the ledger: %s", error)


def memory_warning(used_bytes: int, allowed_bytes: int) -> str | None:
    """What to say about the ledger's memory; None while there is enough. With all of it used new orders are refused."""
    share = used_bytes / allowed_bytes if allowed_bytes else 0.0
    if share < MEMORY_WARN_SHARE:
        return None
    level = "ALARM" if share >= MEMORY_ALARM_SHARE else "WARNING"
    return f"{level}: {100 * share:.1f} % of {allowed_bytes // 2**20} MB used; at 100 % new orders are refused"


# -- where the primary is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one Sentinel says: a higher epoch is newer knowledge."""

    epoch: int
    address: tuple[str, int]
    down: bool


class _Primary:
    """Where the primary is: as the settings say, or the Sentinel that knows the latest failover."""

    def __init__(self, settings: RedisSettings, sentinel_password: str | None) -> None:
        self.address: tuple[str, int] | None = None
        self._settings = settings
        self._password = sentinel_password

    async def find(self) -> tuple[str, int]:
        """Its address now; raises redis' ``ConnectionError`` where nobody knows, or most call it down."""
        if not self._settings.sentinels:
            self.address = self._settings.host or "127.0.0.1", self._settings.port
            return self.address
        answers, errors = await self._asked()
        if not answers:
            raise redis.exceptions.ConnectionError(
                f"no Sentinel tells where {self._settings.sentinel_name} is: {'; '.join(errors)}"
            )
        newest = max(answers, key=lambda answer: (answer.epoch, not answer.down))
        if newest.down:
            raise redis.exceptions.ConnectionError(f"the Sentinels call {self._settings.sentinel_name} down")
        if self.address not in (None, newest.address):
            LOG.warning("the ledger's primary is now %s:%s", *newest.address)
        self.address = newest.address
        return newest.address

    async def _asked(self) -> tuple[list[_Answer], list[str]]:
        """All are asked at once; once most have answered the rest are not waited for."""
        tasks = [asyncio.create_task(self._ask(*address)) for address in self._settings.sentinel_addresses]
        answers: list[_Answer] = []
        errors: list[str] = []
        waiting = set(tasks)
        try:
            while waiting:
                enough = 2 * len(answers) > len(tasks)
                patience_s = LATE_SENTINELS_S if enough else None
                done, waiting = await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    found = task.result()
                    errors.append(found) if isinstance(found, str) else answers.append(found)
                if not done:
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return answers, errors

    async def _ask(self, host: str, port: int) -> _Answer | str:
        """One Sentinel's answer, or why there is none."""
        settings = self._settings
        connection = (SSLConnection if settings.tls else Connection)(
            host=host,
            port=port,
            password=self._password,
            socket_timeout=settings.connect_timeout_s,
            socket_connect_timeout=settings.connect_timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            driver_info=None,
        )
        # During a failover the first names the promoted server before the second does.
        questions = [("SENTINEL", word, settings.sentinel_name) for word in ("GET-MASTER-ADDR-BY-NAME", "MASTER")]
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_commands(questions))
            address, state = [await connection.read_response() for _ in questions]
        except (redis.exceptions.RedisError, OSError) as error:
            return f"{host}:{port}: {error or type(error).__name__}"
        finally:
            # At once, without waiting for the other end: this task may be cancelled any time.
            await connection.disconnect(nowait=True)
        if not isinstance(state, dict):
            state = dict(zip(state[::2], state[1::2], strict=True))
        old = [state["ip"], str(state["port"])] == [str(part) for part in address]
        return _Answer(
            int(state["config-epoch"]), (str(address[0]), int(address[1])), old and "o_down" in state["flags"]
        )


class _PrimaryConnection(Connection):
    """A connection to wherever the primary is when it is opened; it is refused by any server that is none."""

    def __init__(self, *, primary: _Primary, asks_for_waitaof: bool = False, **rest: Any) -> None:
        super().__init__(**rest)
        self.has_waitaof = False
        self._primary = primary
        self._asks_for_waitaof = asks_for_waitaof

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        """The commands as bytes, packed in C; one by one in Python it was the largest part of a call."""
        return [b"".join(hiredis.pack_command(tuple(command)) for command in commands)]

    async def _connect(self) -> None:
        self.host, self.port = await self._primary.find()
        await super()._connect()  # type: ignore[no-untyped-call]

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        await super().on_connect_check_health(check_health)
        commands = [("CLIENT", "SETNAME", CLIENT_NAME), ("ROLE",)]
        if self._asks_for_waitaof:
            commands.append(("COMMAND", "INFO", "WAITAOF"))
        await self.send_packed_command(self.pack_commands(commands), check_health=False)
        _, role, *known = [await self.read_response() for _ in commands]
        if role[0] not in {"master", "primary"}:
            raise redis.exceptions.ConnectionError(f"{self.host}:{self.port} is no primary but a {role[0]}")
        self.has_waitaof = bool(known) and any(known[0])


class _EncryptedConnection(_PrimaryConnection, SSLConnection):
    """The same over TLS."""


# -- failures ----------------------------------------------------------------------------------------------------------


class _Undurable(LedgerUnavailable):
    """Written, but a failover may undo it."""


def _settle(future: asyncio.Future[Any], reply: Any) -> None:
    if isinstance(reply, Exception):
        future.set_exception(_translate(reply))
    else:
        future.set_result(reply)


# The server's refusals that say "not now" rather than "not so"; redis-py has classes for some and texts of others.
_NOT_NOW: Final = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
_NOT_NOW_TEXTS: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "UNBLOCKED", "BUSY ", "Function not found")


def _translate(error: Exception) -> Exception:
    if isinstance(error, (LedgerUnavailable, LedgerError)):
        return error
    refused = isinstance(error, redis.exceptions.ResponseError | redis.exceptions.DataError)
    if refused and not isinstance(error, _NOT_NOW) and not str(error).startswith(_NOT_NOW_TEXTS):
        return LedgerError(f"the ledger refused a call: {error}")
    return LedgerUnavailable(f"the ledger does not answer: {error or type(error).__name__}")


def _elsewhere(reply: Any) -> bool:
    """Whether the reply suggests that the primary is another server by now."""
    known = _Undurable | redis.exceptions.ReadOnlyError | redis.exceptions.MasterDownError
    refused = isinstance(reply, redis.exceptions.ResponseError)
    return isinstance(reply, known) or (refused and str(reply).startswith(("NOREPLICAS", "MASTERDOWN", "UNBLOCKED")))


def _revealed(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None
