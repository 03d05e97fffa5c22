"""Orders straight at a ledger's server, from several clients as the replicas are, over whatever lies between."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster.ledger import Ledger, LedgerUnavailable
from conf.settings import RedisSettings, Settings
from strategies.model import Order
from tests.books import ACCOUNT, BTC, Books, order
from tests.faults.books_check import Books as Checked
from tests.faults.books_check import check_books, load_figures
from tests.faults.open_loop import Answer, OpenLoop, Tried, read_answers
from tests.servers import redis_secrets

REPLICAS: Final = 3
TIMEOUT_S: Final = 1.0
"""To connect and to answer: what the desk's own replicas are given."""
PATIENT_S: Final = 20.0


@asynccontextmanager
async def connected(server: RedisSettings, timeout_s: float = PATIENT_S) -> AsyncIterator[Ledger]:
    """A client of the server; the default time-out is a patient one, for what is not the fault under test."""
    patience = {"timeout_s": timeout_s, "connect_timeout_s": timeout_s}
    settings = Settings(state_dir=Path("/nowhere"), redis=server.model_copy(update=patience))
    ledger = Ledger.connect(settings, redis_secrets())
    try:
        yield ledger
    finally:
        await ledger.close()


async def opened(ledger: Ledger, **arguments: Any) -> Books:
    """An open account without limits on an empty server."""
    await ledger.install()
    return await Books(ledger).open(**arguments)


@dataclass
class LedgerLoad:
    """An open loop of orders while a test breaks things; ``file`` keeps what was answered."""

    file: Path
    name: str
    loop: OpenLoop
    task: asyncio.Task[None]
    begin_s: float = field(default_factory=time.time)

    def answers(self) -> list[Answer]:
        """Those that are final so far."""
        return read_answers(self.file)

    async def until(self, holds: Callable[[list[Answer]], bool], what: str, timeout_s: float = 60.0) -> float:
        """Wait until the answers so far are as wanted; seconds it took."""
        begin_s = time.monotonic()
        while not holds(self.answers()):
            assert not self.task.done(), self.task
            assert time.monotonic() - begin_s < timeout_s, f"not within {timeout_s} s: {what}"
            await asyncio.sleep(0.05)
        return round(time.monotonic() - begin_s, 3)

    async def until_served(self, timeout_s: float = 60.0) -> float:
        """Wait until an order that was due from now on is accepted at its first try; seconds it took."""
        now_s = time.time()
        return await self.until(
            lambda answers: any(a.due_s >= now_s and a.first == "ACCEPTED" for a in answers), "service", timeout_s
        )

    async def finish(self) -> list[Answer]:
        """No new orders; all answers when those under way have ended."""
        self.loop.stop()
        await self.task
        return self.answers()

    def figures(self) -> dict[str, float]:
        """Of all orders."""
        return load_figures(self.answers())

    async def books(self, ledger: Ledger) -> Checked:
        """The books of the ended run, read by a client for which nothing is broken."""
        accepted = [answer.client_order_id for answer in self.answers() if answer.accepted]
        return await check_books(ledger, ACCOUNT, accepted, lambda order_id: order_id.startswith(self.name + "-"))


@asynccontextmanager
async def ledger_load(
    servers: list[RedisSettings], folder: Path, seed: int, rate_per_s: float = 100.0, persist_s: float = 30.0
) -> AsyncIterator[LedgerLoad]:
    """Orders by one client for each of ``servers`` in turn, with the desk's own time-outs."""
    name, file = f"l-{seed}", folder / "answers.jsonl"
    chance = random.Random(seed)
    orders: dict[str, Order] = {}
    ledgers = [Ledger.connect(_impatient(server), redis_secrets()) for server in servers]
    turns = itertools.cycle(ledgers)

    async def send(client_order_id: str) -> Tried:
        if client_order_id not in orders:
            ticks = chance.randint(9_000, 10_000) if chance.random() < 0.8 else None
            orders[client_order_id] = order(client_order_id, lots=chance.randint(1, 20), ticks=ticks)
        try:
            verdict = await next(turns).reserve(orders[client_order_id], BTC, "test")
        except LedgerUnavailable:
            return Tried("UNAVAILABLE")
        decided = "ACCEPTED" if verdict.accepted else "CONFLICT" if verdict.kind == "CONFLICT" else "DENIED"
        return Tried(decided, verdict.kind == "REPEATED")

    loop = OpenLoop(send, name, rate_per_s, persist_s, file, seed)
    task = asyncio.create_task(loop.run())
    try:
        yield LedgerLoad(file, name, loop, task)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for ledger in ledgers:
            await ledger.close()


def _impatient(server: RedisSettings) -> Settings:
    timeouts = {"timeout_s": TIMEOUT_S, "connect_timeout_s": TIMEOUT_S}
    return Settings(state_dir=Path("/nowhere"), redis=server.model_copy(update=timeouts))
