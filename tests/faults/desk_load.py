"""Orders for a running desk from a generator in a process of its own, and what must hold of them afterwards."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import msgspec
import psutil

from cluster import local
from cluster.ledger import Ledger
from conf.settings import load_secrets
from tests.faults.books_check import Books, audit, check_books, load_figures
from tests.faults.open_loop import DECIDED, Answer, Asked, read_answers
from tests.system.client import Desk, eventually

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parents[2]
ACCOUNT: Final = "main"
STRATEGY: Final = "manual"
RATE_PER_S: Final = 50.0
GATE_S: Final = 5.0
GATE_P95_MS: Final = 140.0


class PatientDesk(Desk):
    """A desk whose tests wait longer for its ledger than its own parts do, for they share two cores with faults."""

    def ledger(self, work: Callable[[Ledger], Awaitable[T]]) -> T:
        """Run ``work`` on the desk's ledger."""
        patience = {"timeout_s": 20.0, "connect_timeout_s": 20.0}
        # Only here: what starts a part of the desk anew writes the settings it was given into the desk's record.
        patient = self.settings.model_copy(update={"redis": self.settings.redis.model_copy(update=patience)})

        async def connected() -> T:
            ledger = Ledger.connect(patient, load_secrets(self.settings))
            try:
                return await work(ledger)
            finally:
                await ledger.close()

        return asyncio.run(connected())


class Load:
    """A generator at work; ``with Load(…) as load`` ends it in any case."""

    def __init__(
        self, desk: Desk, folder: Path, seed: int, rate_per_s: float = RATE_PER_S, door: str = "serve"
    ) -> None:
        """Orders of a mix that ``seed`` decides, acknowledged into a file in ``folder``."""
        self.desk = desk
        self.name = f"f-{uuid.uuid4().hex[:8]}"
        self.steady: bool | None = None
        self.begin_s = time.time()
        self._rate_per_s = rate_per_s
        self._file = folder / f"{self.name}.jsonl"
        self._asked = Asked(
            url=str(desk.doors[door].base_url),
            key=desk.key,
            file=str(self._file),
            name=self.name,
            bodies=bodies(random.Random(seed)),
            rate_per_s=rate_per_s,
            seed=seed,
        )

    def __enter__(self) -> Self:
        argv = [sys.executable, "-m", "tests.faults.open_loop"]
        self._process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE)
        # The key goes by the pipe, not by the command line, where every user of the machine could read it.
        self._tell(msgspec.json.encode(self._asked))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def answers(self) -> list[Answer]:
        """Those that are final so far."""
        return read_answers(self._file)

    def await_steady(self, timeout_s: float = 20.0) -> None:
        """Wait for five seconds in which the desk is as it should be.

        A machine that cannot carry the rate gets half of it, twice at most; then latencies are void.
        """
        for _ in range(3):
            deadline = time.monotonic() + timeout_s
            while not self._steady_now() and time.monotonic() < deadline:
                time.sleep(0.5)
            self.steady = self._steady_now()
            if self.steady:
                break
            self._rate_per_s /= 2
            self._tell(str(self._rate_per_s).encode())
        # Figures are those of the fault and what surrounds it, not of a desk that is still warming up.
        self.begin_s = time.time() - GATE_S

    def _steady_now(self) -> bool:
        since_s = time.time() - GATE_S
        late = [answer for answer in self.answers() if answer.due_s >= since_s]
        waits_ms = sorted(answer.first_ms for answer in late)
        whole = len(late) >= 0.9 * GATE_S * self._rate_per_s and all(answer.first in DECIDED for answer in late)
        return whole and waits_ms[int(0.95 * len(waits_ms))] < GATE_P95_MS

    def await_service(self, timeout_s: float = 90.0) -> float:
        """Wait until an order that was due from now on is accepted at its first try; seconds it took."""
        begin_s = time.time()

        def served() -> bool:
            return any(a.due_s >= begin_s and a.first == "ACCEPTED" for a in self.answers())

        eventually(served, timeout_s, "an order is accepted")
        return time.time() - begin_s

    def finish(self) -> list[Answer]:
        """No new orders; all answers when those under way have ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        return self.answers()

    def books(self) -> Books:
        """The books of the ended run, once every order of it has ended."""
        accepted = [answer.client_order_id for answer in self.answers() if answer.accepted]
        return settled_books(self.desk, accepted, lambda order_id: order_id.startswith(self.name + "-"))

    def figures(self) -> dict[str, Any]:
        """Of the orders that were due since the gate."""
        return load_figures([a for a in self.answers() if a.due_s >= self.begin_s]) | {
            "orders_per_s": self._rate_per_s,
            "steady": self.steady,
        }


def bodies(chance: random.Random, count: int = 100) -> list[dict[str, Any]]:
    """Orders of each kind: most end at the venue at once unfilled, some are filled, some rest until cancelled."""
    made = []
    for _ in range(count):
        kind = chance.choices(["ends", "fills", "rests"], [7, 2, 1])[0]
        body = {"account": ACCOUNT, "strategy": STRATEGY, "product_id": "BTC-USD", "side": "BUY"}
        body |= {"quantity": f"0.00{chance.randint(1, 9)}"}
        if kind == "fills":
            body |= {"type": "MARKET", "quantity": "0.0001"}
        else:
            price = f"{chance.randint(1_000, 2_000)}.00"
            body |= {"type": "LIMIT", "limit_price": price, "time_in_force": "IOC" if kind == "ends" else "GTC"}
        made.append(body)
    return made


def settled_books(desk: Desk, accepted: Iterable[str], asked: Callable[[str], bool]) -> Books:
    """Let every order end, cancel those that rest, then check ledger and venue; ``asked`` tells the ids of this run."""
    settle(desk)
    books = desk.ledger(lambda ledger: check_books(ledger, ACCOUNT, accepted, asked))
    reserved = {fields["id"] for fields in entries(desk) if fields["kind"] == "RESERVED"}
    at_venue = Counter(order.client_order_id for order in desk.venue().orders() if asked(order.client_order_id))
    books.duplicated.extend(order_id for order_id, times in at_venue.items() if times > 1)
    strangers = sorted(set(at_venue) - reserved)
    books.differences.extend(f"at the venue without a reservation: {order_id}" for order_id in strangers)
    return books


def entries(desk: Desk) -> list[dict[str, str]]:
    """The account's audit entries, oldest first."""
    return desk.ledger(lambda ledger: audit(ledger, ACCOUNT))


def settle(desk: Desk, timeout_s: float = 240.0) -> None:
    """Cancel what rests and wait until every order has ended and nothing is on its way to the venue."""
    cancelled: set[str] = set()

    def ended() -> bool:
        open_orders = desk.ledger(lambda ledger: ledger.open_orders(ACCOUNT))
        resting = {fields["client_order_id"] for fields in open_orders if fields["tif"] == "GTC"}
        for order_id in resting - cancelled:
            reply = desk.http.delete(f"/v1/orders/{order_id}", params={"account": ACCOUNT})
            cancelled.update([order_id] if reply.status_code in {200, 202} else [])
        return not open_orders and desk.ledger(lambda ledger: ledger.outbox_length(ACCOUNT)) == 0

    eventually(ended, timeout_s, "every order has ended")


def ledger_process(desk: Desk) -> psutil.Process:
    """The desk's own Valkey, by its recorded pid."""
    (server,) = [item for item in local.recorded(desk.settings.state_dir) if item.name == "valkey"]
    process = server.process()
    assert process is not None, "the desk's Valkey does not run"
    return process


def await_unread(desk: Desk, timeout_s: float = 30.0) -> None:
    """Wait until the desk's ledger, which stands still, has requests it has not read, and no more are coming."""
    seen: list[int] = []

    def all_there() -> bool:
        seen.append(_unread_bytes(desk.settings.redis.port))
        return len(seen) > 3 and 0 < seen[-1] == seen[-4]

    eventually(all_there, timeout_s, "requests wait unread")


def _unread_bytes(port: int) -> int:
    """Bytes that have come to open connections of a local port and were not read yet."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    at_port = [row for row in rows if row[3] == "01" and int(row[1].split(":")[1], 16) == port]
    return sum(int(row[4].split(":")[1], 16) for row in at_port)
