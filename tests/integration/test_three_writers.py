"""Three processes ask one ledger at once: no limit is passed, no id is reserved twice, all get the same answer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.audit import verify
from cluster.ledger import Ledger
from conf.settings import RedisSettings
from tests.books import ACCOUNT, Books
from tests.servers import PASSWORD

pytestmark = pytest.mark.anyio

ROOT: Final = Path(__file__).resolve().parents[2]
WRITERS: Final = 3
# One process. A line of orders, then, when all are ready, a second line that lets it ask for them all at once.
WRITER: Final = """
import asyncio, json, sys
from pathlib import Path
from pydantic import SecretStr
from cluster.ledger import Ledger
from conf.settings import RedisSettings, Secrets, Settings
from tests.books import BTC, order

async def main(port, password):
    redis = RedisSettings(host="127.0.0.1", port=port, timeout_s=20, connect_timeout_s=20)
    secrets = Secrets(redis_password=SecretStr(password))
    ledger = Ledger.connect(Settings(state_dir=Path("/nowhere"), redis=redis), secrets)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = [order(order_id, **changed) for order_id, changed in json.loads(line)]
        await ledger.ping()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        verdicts = await asyncio.gather(*(ledger.reserve(one, BTC, "writer") for one in asked))
        print(json.dumps([[v.kind, v.accepted, v.answer] for v in verdicts]), flush=True)
    await ledger.close()

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""
Asked = list[tuple[str, dict[str, Any]]]
Answers = list[tuple[str, bool, dict[str, Any]]]


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """On Valkey and on Redis."""
    return each_server


class Writers:
    """The three processes."""

    def __init__(self, server: RedisSettings) -> None:
        command = [sys.executable, "-c", WRITER, str(server.port), PASSWORD]
        pipe = subprocess.PIPE
        self.processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) for _ in range(WRITERS)
        ]

    def ask(self, asked: list[Asked]) -> list[Answers]:
        """What each was answered; all start when all are ready."""
        for writer, orders in zip(self.processes, asked, strict=True):
            self._tell(writer, json.dumps(orders))
        assert [self._told(writer) for writer in self.processes] == ["ready"] * WRITERS
        for writer in self.processes:
            self._tell(writer, "go")
        found = [json.loads(self._told(writer)) for writer in self.processes]
        return [[(kind, accepted, answer) for kind, accepted, answer in answers] for answers in found]

    def stop(self) -> None:
        for writer in self.processes:
            writer.kill()
            writer.communicate()

    def _tell(self, writer: subprocess.Popen[str], line: str) -> None:
        assert writer.stdin is not None
        writer.stdin.write(line + "\n")
        writer.stdin.flush()

    def _told(self, writer: subprocess.Popen[str]) -> str:
        assert writer.stdout is not None
        return writer.stdout.readline().rstrip()


@pytest.fixture(scope="module")
def writers(each_server: RedisSettings) -> Iterator[Writers]:
    writers = Writers(each_server)
    yield writers
    writers.stop()


SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD", "key|*")
LIMITS: list[tuple[str, str]] = [
    # limit, its value: room for 100 of the 300 buys of 10 lots at 10,000 ticks
    *((f"{scope}|max_open_orders", "100") for scope in SCOPES),
    *((f"{scope}|max_open_notional", "100000000") for scope in SCOPES),
    *((f"{scope}|max_daily_orders", "100") for scope in SCOPES),
    *((f"{scope}|max_daily_turnover", "100000000") for scope in SCOPES),
    *((f"{scope}|max_gross_exposure", "100000000") for scope in (*SCOPES[:4], "group|majors")),
    *((f"{scope}|max_net_exposure", "100000000") for scope in SCOPES[:3]),
    *((f"{scope}|order_burst", "100") for scope in SCOPES),
    ("account|message_burst", "100"),
    ("account|max_order_to_trade", "100"),
    ("product|BTC-USD|max_position_lots", "1000"),
    ("product|BTC-USD|max_strategy_position_lots", "1000"),
    ("cash", "100600000"),
]
HOUR_US: Final = "3600000000"


@pytest.mark.parametrize(("limit", "value"), LIMITS, ids=[row[0] for row in LIMITS])
async def test_of_three_hundred_orders_exactly_the_hundred_there_is_room_for_are_accepted(
    books: Books, writers: Writers, limit: str, value: str
) -> None:
    limits = {limit: value} if "|" in limit else {}
    if limit.endswith("_burst"):
        limits[limit.replace("_burst", "_interval_us")] = HOUR_US
    await books.open(cash=int(value) if limit == "cash" else 10**15, limits=limits)
    asked: list[Asked] = [[(f"{writer}-{n}", {}) for n in range(100)] for writer in range(WRITERS)]
    answers = writers.ask(asked)
    assert Counter(kind for answer in answers for kind, *_ in answer) == {"ACCEPTED": 100, "DENIED": 200}
    book = await books.book()
    assert (book["a|open_orders"], book["a|buy_notional"], book["reserved"]) == (100, 10**8, 100_600_000)
    accepted = {answer["client_order_id"] for row in answers for _, yes, answer in row if yes}
    outbox = [order_id for _, order_id in await books.outbox()]
    assert sorted(outbox) == sorted(accepted)
    assert await verify(books.ledger, ACCOUNT) == []


async def test_the_last_unit_goes_to_one_of_three(books: Books, writers: Writers) -> None:
    await books.open(limits={"account|max_gross_exposure": "1000000"})
    answers = writers.ask([[(f"{writer}", {})] for writer in range(WRITERS)])
    assert sorted(kind for ((kind, *_),) in answers) == ["ACCEPTED", "DENIED", "DENIED"]


async def test_the_same_ids_from_all_three_are_reserved_once_with_one_answer(
    books: Books, ledger: Ledger, writers: Writers
) -> None:
    await books.open(limits={"account|max_open_orders": "60"})
    asked: Asked = [(f"o-{n}", {}) for n in range(100)]
    answers = writers.ask([asked] * WRITERS)
    for row in zip(*answers, strict=True):
        kinds = Counter(kind for kind, *_ in row)
        assert kinds["REPEATED"] == WRITERS - 1
        assert row[0][1:] == row[1][1:] == row[2][1:]
    assert sum(accepted for _, accepted, _ in answers[0]) == 60
    assert Counter(await books.outbox()).most_common(1)[0][1] == 1
    assert len(await books.outbox()) == len(await ledger.open_orders(ACCOUNT)) == 60
    assert await verify(ledger, ACCOUNT) == []


async def test_of_three_bodies_with_one_id_one_is_decided_and_two_conflict(books: Books, writers: Writers) -> None:
    await books.open()
    bodies: list[Asked] = [[(f"o-{n}", {"lots": 10 + writer}) for n in range(50)] for writer in range(WRITERS)]
    answers = writers.ask(bodies)
    for row in zip(*answers, strict=True):
        assert sorted(kind for kind, *_ in row) == ["ACCEPTED", "CONFLICT", "CONFLICT"]
    assert (await books.book())["a|open_orders"] == 50
    assert await verify(books.ledger, ACCOUNT) == []
