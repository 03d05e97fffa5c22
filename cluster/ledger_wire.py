"""The way to the ledger's server: calls in pipelines, time-outs, and what each kind of failure means.

Calls made within one turn of the event loop travel as one pipeline: under load that costs one round trip and one fsync
for many orders. ``cluster.ledger`` says what the calls are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from conf.settings import Secrets, Settings

# More calls than this waiting for the server means it cannot keep up: refusing is better than queueing without end.
WAITING_CALLS_MAX: Final = 20_000
PIPELINE_CALLS_MAX: Final = 256


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


class Wire:
    """A way to the server. Every method may raise ``LedgerUnavailable`` or ``LedgerError``."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        """Use ``client`` for everything; ``close`` closes it. No exchange with the server takes longer than this."""
        self._client = client
        self._timeout_s = timeout_s
        self._waiting: list[_Call] = []
        self._flushing: asyncio.Task[None] | None = None

    @classmethod
    def connect(cls, settings: Settings, secrets: Secrets) -> Wire:
        """A way to the server of ``settings``; nothing is sent yet."""
        if not settings.redis.port:
            raise LedgerUnavailable("redis.port: no ledger server is known; is the desk up? (desk up)")
        client = redis.asyncio.Redis(
            host=settings.redis.host or "127.0.0.1",
            port=settings.redis.port,
            db=settings.redis.database,
            ssl=settings.redis.tls,
            password=secrets.redis_password.get_secret_value() if secrets.redis_password else None,
            socket_timeout=settings.redis.timeout_s,
            socket_connect_timeout=settings.redis.connect_timeout_s,
            # Nothing is repeated behind our back; _exchange says what may be.
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        return cls(client, settings.redis.timeout_s + settings.redis.connect_timeout_s)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, *command: str) -> Any:
        """One command, sent with all others of this turn of the event loop."""
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
        """One command on a connection of its own, for one the server answers late: it must not hold others back."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except (redis.exceptions.RedisError, OSError) as error:
            raise _translate(error) from error

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
        for call in batch:
            pipe.execute_command(*call.command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies


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
_NOT_NOW_TEXTS: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "BUSY ", "Function not found")


def _translate(error: Exception) -> Exception:
    if isinstance(error, (LedgerUnavailable, LedgerError)):
        return error
    refused = isinstance(error, redis.exceptions.ResponseError | redis.exceptions.DataError)
    if refused and not isinstance(error, _NOT_NOW) and not str(error).startswith(_NOT_NOW_TEXTS):
        return LedgerError(f"the ledger refused a call: {error}")
    return LedgerUnavailable(f"the ledger does not answer: {error or type(error).__name__}")
