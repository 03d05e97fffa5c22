"""The way to the simulated ledger server, with everything that can happen on it: ``Wire``'s interface, virtual time.

A call may be late, be lost before it arrives, or be done with its answer lost; the server may be away, and comes back
having forgotten whom it had admitted. As on the real wire, calls of one process arrive in the order they were made.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import redis.exceptions

from cluster.ledger_wire import LedgerUnavailable, Replication, _translate
from tests.simulation.lua_server import LuaServer
from tests.simulation.store import Reply, ReplyError, Simple
from tests.simulation.virtual_loop import VirtualLoop

TIMEOUT_S: Final = 1.5
OF_ORDERS: Final = frozenset(
    {
        "tt_mark_sent",
        "tt_ack",
        "tt_fill",
        "tt_release",
        "tt_finish_outbox",
        "tt_amended",
        "tt_amend_refused",
        "tt_adopt",
    }
)
"""The calls by which execution moves an order on."""


@dataclass(frozen=True)
class WireFaults:
    """Shares of calls that meet each fault; ``slow_s`` is how late a late one is at most."""

    lost: float = 0.0
    answer_lost: float = 0.0
    reset: float = 0.0
    slow: float = 0.0
    slow_s: float = 1.0


@dataclass
class _Blocked:
    command: tuple[str, ...]
    answer: asyncio.Future[Any]
    wire: SimWire


class SimServer:
    """The server process: it answers calls one at a time. ``offset_us`` is how far its clock is ahead; ``admitted``
    whether anybody has been admitted since it started."""

    def __init__(self, loop: VirtualLoop, note: Callable[..., None]) -> None:
        self.loop = loop
        self.note = note
        self.offset_us = 0
        self.up = True
        self.admitted = False
        self.lua = LuaServer(lambda: loop.now_us() + self.offset_us)
        self._blocked: list[_Blocked] = []

    def stop(self) -> None:
        """Away from now on; who waits for an answer gets none."""
        self.up = self.admitted = False
        blocked, self._blocked = self._blocked, []
        for one in blocked:
            _fail(one.answer, redis.exceptions.ConnectionError("Connection closed by server."))
        self.note("server stops")

    def start(self) -> None:
        """Back with all data, and without what only its process knew."""
        self.lua.restart()
        self.up = True
        self.note("server starts")

    def handle(self, wire: SimWire, command: tuple[str, ...]) -> Reply:
        """Do one command now; raises ``ReplyError``."""
        try:
            reply = self.lua.run(*command)
        except ReplyError as error:
            self.note("ledger", wire.name, *command, "->", f"error {error}")
            raise
        self.note("ledger", wire.name, *command, "->", reply)
        if command[0] == "FCALL" and command[1] == "tt_admit":
            self.admitted = self.admitted or reply[0] == "OK"
        if self._blocked:
            self._serve_blocked()
        return reply

    def block(self, blocked: _Blocked, wait_s: float) -> None:
        """Keep a reader until there is something for it."""
        self._blocked.append(blocked)
        self.loop.call_later(wait_s, self._give_up, blocked)

    def forget(self, wire: SimWire) -> None:
        """A client's connections are gone."""
        self._blocked = [one for one in self._blocked if one.wire is not wire]

    def _give_up(self, blocked: _Blocked) -> None:
        if blocked in self._blocked:
            self._blocked.remove(blocked)
            _succeed(blocked.answer, None)

    def _serve_blocked(self) -> None:
        for one in list(self._blocked):
            reply = self.lua.run(*one.command)
            if reply is not None:
                self._blocked.remove(one)
                self.note("ledger", one.wire.name, *one.command, "->", reply)
                _succeed(one.answer, reply)


class SimWire:
    """``cluster.ledger_wire.Wire`` of one process."""

    def __init__(self, name: str, server: SimServer, source: random.Random) -> None:
        self.name = name
        self.faults = WireFaults()
        self.dead = False
        self.called: Callable[[bool], None] = lambda _: None
        self._server = server
        self._loop = server.loop
        self._random = source
        self._arrives_s = 0.0

    def kill(self) -> None:
        """The process is gone: what it has sent still arrives, nobody hears the answer, nothing more is sent."""
        self.dead = True
        self._server.forget(self)

    async def close(self) -> None:
        """Nothing to close."""

    async def replication(self) -> Replication:
        """One server, no replicas."""
        return Replication("simulated", 1, 0, 0)

    async def send(self, *command: str) -> Any:
        """One command, in the order of this process's calls."""
        return await self._exchange(command, wait_s=0.0)

    async def send_alone(self, *command: str) -> Any:
        """One command the server may answer late."""
        words = list(command)
        wait_s = 0.0
        if "BLOCK" in words:
            at = words.index("BLOCK")
            wait_s = int(words[at + 1]) / 1000
            del words[at : at + 2]
        return await self._exchange(tuple(words), wait_s=wait_s)

    async def _exchange(self, command: tuple[str, ...], wait_s: float) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.dead:
            return await answer
        faults, draw = self.faults, self._random.random
        late_s = draw() * faults.slow_s if draw() < faults.slow else 0.0
        lost, deaf, reset = draw() < faults.lost, draw() < faults.answer_lost, draw() < faults.reset
        self._arrives_s = max(self._arrives_s + 1e-7, self._loop.time() + self._latency_s() + late_s)
        if not lost:
            self._loop.call_at(self._arrives_s, self._arrive, command, answer, wait_s, deaf, reset)
        limit = self._loop.call_later(
            wait_s + TIMEOUT_S, _fail, answer, redis.exceptions.TimeoutError("Timeout reading")
        )
        try:
            return _as_client(command, await answer)
        except (redis.exceptions.RedisError, ReplyError) as error:
            raise _as_ledger(error) from None
        finally:
            limit.cancel()

    def _arrive(
        self, command: tuple[str, ...], answer: asyncio.Future[Any], wait_s: float, deaf: bool, reset: bool
    ) -> None:
        if not self._server.up:
            self._answer(answer, redis.exceptions.ConnectionError("Connection refused."))
            return
        try:
            reply: Any = self._server.handle(self, command)
        except ReplyError as error:
            reply = error
        self.called(command[0] == "FCALL" and command[1] in OF_ORDERS)
        if reset and command[0] != "XREADGROUP":
            # The real wire sends a pipeline again, once, when its connection was closed under it.
            self._arrive(command, answer, wait_s, deaf, reset=False)
        elif reset:
            self._answer(answer, redis.exceptions.ConnectionError("Connection closed by server."))
        elif wait_s and reply is None:
            self._server.block(_Blocked(command, answer, self), wait_s)
        elif not deaf:
            self._answer(answer, reply)

    def _answer(self, answer: asyncio.Future[Any], reply: Any) -> None:
        settle = _fail if isinstance(reply, Exception) else _succeed
        self._loop.call_later(self._latency_s(), settle, answer, reply)

    def _latency_s(self) -> float:
        return 0.0001 + self._random.random() ** 3 * 0.003


def _as_ledger(error: Exception) -> Exception:
    if isinstance(error, ReplyError):
        # As the client library does.
        return _translate(redis.exceptions.ResponseError(str(error).removeprefix("ERR ")))
    return _translate(error)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)


def _succeed(answer: asyncio.Future[Any], reply: Any) -> None:
    if not answer.done():
        answer.set_result(reply)


def _as_client(command: tuple[str, ...], reply: Reply) -> Any:
    """The reply as the client library gives it."""
    name = command[0].upper()
    if name == "HGETALL":
        return _mapped(reply)
    if name in {"XRANGE", "XREVRANGE"}:
        return [(entry, _mapped(fields)) for entry, fields in reply]
    if name == "XREADGROUP":
        found = reply or []
        return [
            [key, [(entry, None if fields is None else _mapped(fields)) for entry, fields in entries]]
            for key, entries in found
        ]
    if name == "TIME":
        return (int(reply[0]), int(reply[1]))
    if name == "SET" and isinstance(reply, Simple):
        return True
    if name in {"ZRANGE", "ZREVRANGE"} and "WITHSCORES" in command:
        return [[member, float(score)] for member, score in zip(reply[::2], reply[1::2], strict=True)]
    if name == "ZSCORE" and reply is not None:
        return float(reply)
    return str(reply) if isinstance(reply, Simple) else reply


def _mapped(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


__all__ = ["LedgerUnavailable", "SimServer", "SimWire", "WireFaults"]
