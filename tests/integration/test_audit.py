"""The audit log on real servers: the state rebuilt from it, what is done to it found at its row, anchors that hold."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest

from cluster.audit import verify, verify_chain
from cluster.audit_chain import Row, row_of
from cluster.ledger import Ledger, account_base
from cluster.ledger_replay import NOT_IN_THE_LOG, Replay, rebuild_desk
from conf.settings import RedisSettings
from strategies.model import OrderStatus, Side, TimeInForce, TradingState
from tests.books import ACCOUNT, ASKER, PRODUCTS, STRATEGIES, Books, order

pytestmark = pytest.mark.anyio

OTHER: Final = "second"


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Every test here runs on Valkey and on Redis."""
    return each_server


# -- the whole state from the entries alone ----------------------------------------------------------------------------


class Trader:
    """Does at random whatever can be done to an account, so that every kind of entry is written many times."""

    def __init__(self, books: Books, seed: int, days: list[int]) -> None:
        self.books = books
        self.days = days
        self.chance = random.Random(seed)
        self.asked: list[str] = []
        self.changed: dict[str, str | None] = {}

    async def step(self) -> None:
        steps = {
            self.reserve: 30, self.send: 12, self.acknowledge: 6, self.fill: 25, self.end: 6, self.cancel: 6,
            self.quote: 10, self.limit: 2, self.halt: 1, self.resume: 6, self.claim: 1, self.propose: 2,
            self.look: 3, self.another_day: 1, self.amend: 12, self.settle_amend: 12, self.adopt: 2, self.adjust: 1,
            self.environment: 1, self.empty: 1,
        }  # fmt: skip
        (chosen,) = self.chance.choices(list(steps), list(steps.values()))
        await chosen()

    async def reserve(self) -> None:
        name = f"{self.books.account}-{len(self.asked)}"
        self.asked.append(name)
        product_id = self.chance.choice(list(PRODUCTS))
        asked = order(
            name,
            lots=self.chance.randint(1, 400),
            ticks=self.chance.choice([None, 9_000, 10_000, 11_000] if product_id == "BTC-USD" else [None, 50_000]),
            product_id=product_id,
            side=self.chance.choice(list(Side)),
            strategy=self.chance.choice(STRATEGIES),
        )
        if asked.limit_price is not None and self.chance.random() < 0.2:
            asked = replace(asked, time_in_force=TimeInForce.IOC)
        asked = replace(asked, account=self.books.account, reduce_only=self.chance.random() < 0.1)
        await self.books.reserve(asked, by=self.chance.choice(["test", "robot"]))
        if self.chance.random() < 0.1:
            await self.books.check(asked)

    async def any_order(self, status: str = "") -> str:
        """Mostly one that is open, or that has this status; sometimes one that has ended or was denied."""
        found = await self.books.ledger.open_orders(self.books.account)
        names = [one["client_order_id"] for one in found if status in {"", one["status"]}]
        ended = not names or self.chance.random() < 0.15
        return self.chance.choice(self.asked[-30:] or ["none"]) if ended else self.chance.choice(names)

    async def send(self) -> None:
        await self.books.ledger.mark_sent(self.books.account, self.books.epoch, await self.any_order("RESERVED"))

    async def acknowledge(self) -> None:
        status = self.chance.choice([OrderStatus.OPEN, OrderStatus.UNKNOWN])
        name = await self.any_order("SENT")
        await self.books.ledger.ack(self.books.account, self.books.epoch, name, status, "venue-id")

    async def fill(self) -> None:
        name = await self.any_order()
        if await self.books.status(name) in {None, "DENIED"}:
            return
        lots: int = self.chance.choice([1, 7, 100, 400])
        btc = self.books.orders[name].product_id == "BTC-USD"
        ticks = self.chance.randint(9_500, 10_500) if btc else self.chance.randint(49_000, 51_000)
        await self.books.fill(name, lots, ticks, fee=self.chance.randint(-3, 500))

    async def end(self) -> None:
        status = self.chance.choice([OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.EXPIRED])
        await self.books.ledger.release(self.books.account, self.books.epoch, await self.any_order(), status, "why not")

    async def cancel(self) -> None:
        await self.books.ledger.request_cancel(self.books.account, await self.any_order(), "test")

    async def amend(self) -> None:
        found = [one["client_order_id"] for one in await self.books.ledger.open_orders(self.books.account)]
        limited = [name for name in found if self.books.orders[name].limit_price is not None]
        name = self.chance.choice(limited) if limited else await self.any_order("OPEN")
        asked = self.books.orders.get(name)
        if asked is None or asked.limit_price is None:
            return
        # It has reached the venue, mostly.
        if self.chance.random() < 0.8:
            await self.books.ledger.mark_sent(self.books.account, self.books.epoch, name)
            await self.books.ledger.ack(self.books.account, self.books.epoch, name, OrderStatus.OPEN, "venue-id")
        product, step = PRODUCTS[asked.product_id], self.chance.choice([-1, 0, 1])
        price = asked.limit_price + product.price(step * 10)
        wanted = replace(asked, quantity=product.quantity(self.chance.randint(1, 500)), limit_price=price)
        await self.books.ledger.amend(wanted, product, self.chance.choice(["test", "robot"]))

    async def settle_amend(self) -> None:
        ledger, account, epoch = self.books.ledger, self.books.account, self.books.epoch
        for fields in await ledger.open_orders(account):
            if "amend" in fields and self.chance.random() < 0.7:
                if self.chance.random() < 0.6:
                    await ledger.amended(account, epoch, fields["client_order_id"])
                else:
                    await ledger.amend_refused(account, epoch, fields["client_order_id"], "not today")

    async def adopt(self) -> None:
        name = f"{self.books.account}-found-{len(self.asked)}"
        self.asked.append(name)
        found = order(name, ticks=self.chance.choice([None, 9_000]), side=self.chance.choice(list(Side)))
        found = replace(found, account=self.books.account, strategy="external")
        self.books.orders[name] = found
        assert await self.books.ledger.adopt(self.books.epoch, found, PRODUCTS["BTC-USD"], "venue-id")

    async def adjust(self) -> None:
        lots = self.chance.randint(-50, 50)
        positions = {"BTC-USD": (lots, lots * 1_000)} if lots else {}
        cash = self.chance.randint(-(10**6), 10**6)
        made = await self.books.ledger.propose_adjust(self.books.account, cash, positions, "test", ASKER, "a deposit")
        await self.books.approve(made.id, self.books.account)

    async def environment(self) -> None:
        ledger = self.books.ledger
        await ledger.bind_environment("paper", "test")
        await ledger.arm("test", ASKER, "for the test", await ledger.time_ns() // 1_000_000 + 60_000)
        if self.chance.random() < 0.5:
            await ledger.disarm("test", "no more")

    async def empty(self) -> None:
        await self.books.ledger.emptied(self.books.account, self.books.epoch, "account", {"asked": 3})

    async def quote(self) -> None:
        move = self.chance.randint(-400, 400)
        bid = 9_900 + move if self.chance.random() < 0.8 else 9_900
        crossed = self.chance.random() < 0.03
        quotes = {"BTC-USD": (bid, bid - 1 if crossed else bid + 200)}
        if self.chance.random() < 0.5:
            quotes["XRP-USD"] = (50_000 + move, 50_001 + move)
        await self.books.quote(quotes, {"BTC-USD": (5, 5)} if self.chance.random() < 0.3 else None)

    async def limit(self) -> None:
        field, texts = self.chance.choice(
            [
                ("account|order_interval_us", ["unlimited", "1000", "5000"]),
                ("strategy|manual|order_interval_us", ["unlimited", "1000"]),
                ("account|message_interval_us", ["unlimited", "1000"]),
                ("strategy|other|max_repeats", ["unlimited", "1000"]),
                ("strategy|manual|max_loss_streak", ["unlimited", "3"]),
                ("account|max_rejects", ["unlimited", "2"]),
                ("account|max_daily_loss", ["unlimited", "100000:1"]),
                ("strategy|manual|max_drawdown_ppm", ["unlimited", "1000"]),
                ("strategy|manual|capital", ["unlimited", "1000000"]),
                ("product|BTC-USD|group", ["majors", "-", "coins"]),
                ("group|coins|max_gross_exposure", ["unlimited", "1000000000"]),
                ("account|max_order_notional", ["unlimited", "3000000:100"]),
                ("key|robot|max_open_orders", ["unlimited", "10"]),
            ]
        )
        self.changed[field] = self.chance.choice(texts)
        await self.books.limit(self.changed | {"calendar": f"UTC {self.days[0] * 86_400}"})

    async def halt(self) -> None:
        scopes = ["account", "strategy|manual", "product|XRP-USD", "global"]
        await self.books.halt(self.chance.choice(scopes), self.chance.choice(list(TradingState)))

    async def resume(self) -> None:
        for scope, state in (await self.books.states()).items():
            if state != "ACTIVE" and self.chance.random() < 0.7:
                account = None if scope == "global" else self.books.account
                made = await self.books.ledger.propose_resume(account, scope, "test", ASKER, "on we go")
                await self.books.ledger.approve(account, made.id, made.digest, "second", "approver")

    async def propose(self) -> None:
        made = await self.books.ledger.propose_resume(self.books.account, "account", "test", ASKER, "on we go")
        outcome = self.chance.choice([self.books.ledger.refuse, None])
        if outcome:
            await outcome(self.books.account, made.id, "test", ASKER, "no, after all")

    async def claim(self) -> None:
        self.books.epoch = await self.books.ledger.claim(self.books.account, "test")
        await self.books.ledger.admit(self.books.account, self.books.epoch)

    async def look(self) -> None:
        await self.books.ledger.watch(self.books.account, self.books.epoch)
        await self.books.ledger.venue_errors(self.books.account, self.books.epoch, 1)
        assert await self.books.ledger.prove(self.books.account) == 0

    async def another_day(self) -> None:
        """The desk's clock is set a day on for all accounts, as nothing else moves a server's days."""
        self.days[0] += 1
        for account in await self.books.ledger.accounts():
            limits = (await self.books.ledger.snapshot(account)).limits
            records = {scope: text for scope, text in limits.items() if scope not in {"version", "baseline"}}
            await self.books.set_records(account, records | {"calendar": f"UTC {self.days[0] * 86_400}"})


async def rows_of(ledger: Ledger, account: str | None) -> list[Row]:
    """The whole stream."""
    rows: list[Row] = []
    while page := await ledger.audit_entries(account, rows[-1].stream_id if rows else "", 1_000):
        rows += [row_of(stream_id, fields) for stream_id, fields in page]
    return rows


async def server_keys(books: Books, account: str | None, others: list[str]) -> dict[str, dict[str, str]]:
    """What the server holds of a base: {suffix: {field: value}}, sets and zsets by member."""
    base, found = account_base(account), {}
    for key, content in (await books.keys()).items():
        suffix = key.removeprefix(base)
        if not key.startswith(base) or (account is None and suffix[1:].split(":")[0] in others):
            continue
        if suffix == ":book":
            # By figure: how they are packed into fields is the server's affair.
            found[suffix] = (await books.ledger.snapshot(account)).book
        elif isinstance(content, dict):
            found[suffix] = content
        elif isinstance(content, set):
            found[suffix] = dict.fromkeys(content, "")
        elif suffix == ":open" or suffix.startswith(":resting:"):
            found[suffix] = {member: f"{float(score):.0f}" for member, score in content}
    return found


def dated(computed: dict[str, str], booked: dict[str, str]) -> dict[str, str]:
    """Days as the server has them where one began with a look at an unchanged price: empty, from the PnL as it is."""
    found = dict(computed)
    for name, text in booked.items():
        number = text.split()[0]
        if name.rpartition("|")[2] == "day" and int(number) > int(found.get(name, "0").split()[0]):
            found[name] = f"{number} 0 0 {computed.get(name.removesuffix('day') + 'pnl', '0')} 0 0"
    return found


def comparable(keys: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]]:
    """The keys without what ``NOT_IN_THE_LOG`` names; a figure of 0 is as good as none, JSON is read."""
    found: dict[str, dict[str, Any]] = {}
    for suffix, fields in keys.items():
        if suffix.startswith(":dup:") or suffix in {":venue_budget", ":outbox", ":alerts", ":audit", ":accounts"}:
            continue
        left: dict[str, Any] = dict(fields)
        if suffix == ":book":
            left = {name: text for name, text in fields.items() if text not in {"", "0"} and name != "a|venue_errors"}
        elif suffix == ":reference":
            words = {product: text.split() for product, text in fields.items()}
            left = {p: text if len(text) == 4 else [*text[:2], *text[3:5]] for p, text in words.items()}
        elif suffix == ":approvals":
            left = {name: json.loads(text) for name, text in fields.items()}
        elif suffix == ":limits":
            left.pop("baseline", None)
        elif suffix.startswith(":order:"):
            left = {name: text for name, text in fields.items() if name not in {"cancel_entry", "venue_order_id"}}
            left |= {"amend": json.loads(fields["amend"])} if "amend" in fields else {}
        elif suffix == ":environment":
            left |= {"armed": json.loads(fields["armed"])} if "armed" in fields else {}
        if left:
            found[suffix] = left
    return found


@pytest.mark.parametrize("seed", range(3))
async def test_every_key_of_the_server_can_be_rebuilt_from_the_entries_alone(
    books: Books, ledger: Ledger, seed: int
) -> None:
    second = Books(ledger, OTHER)
    days = [0]
    traders = [Trader(books, seed, days), Trader(second, seed + 100, days)]
    await books.open(lots={"BTC-USD": 1_000, "XRP-USD": -500})
    await second.open(cash=10**12)
    for number in range(900):
        await traders[number % 3 == 0].step()
    logs: dict[str | None, list[Row]] = {a: await rows_of(ledger, a) for a in (None, ACCOUNT, OTHER)}
    rebuilt = rebuild_desk(logs)
    for account in logs:
        server = await server_keys(books, account, [ACCOUNT, OTHER])
        booked, computed = comparable(server), comparable(rebuilt[account])
        assert set(booked) == set(computed)
        for suffix, fields in booked.items():
            assert fields == (dated(computed[suffix], fields) if suffix == ":book" else computed[suffix]), suffix
    assert NOT_IN_THE_LOG
    kinds = {row.kind for rows in logs.values() for row in rows}
    assert kinds == set(Replay(None).verbs) - {"ARCHIVED", "KEY"}
    for account in logs:
        assert await verify(ledger, account) == []
        assert (await verify_chain(ledger, account, None)).findings == []
