"""The questions every limit is asked: one over it, at it, at its soft level, missing, unlimited, and raced for.

A ``Control`` is one row of a table: a limit, an order, what happened before it, and the value the order is compared at.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cluster.ledger import Ledger, Reference
from conf.settings import Settings
from strategies.model import Side
from tests.books import ACCOUNT, BASE, DESK, KEY, PRODUCTS, QUOTES, Books, limit_records, order
from tests.servers import Server, redis_secrets

Row = dict[str, Any]
"""How an order differs from a limit buy of 10 lots of BTC at 10,000 ticks."""
Rows = tuple[Row, ...]
SECOND: Final = "second"
"""Another account of the desk, with limits of its own and the desk's counters in common."""
BUY: Final[Row] = {}
SELL: Final[Row] = {"side": Side.SELL}
BUY_MARKET: Final[Row] = {"ticks": None}
SELL_MARKET: Final[Row] = {"ticks": None, "side": Side.SELL}
RIVALS: Final = 3
ASKED_BY_EACH: Final = 4
ROOM: Final = 5
"""How many of the rivals' orders the limit of a race has room for."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """One limit and an order it decides on.

    ``before`` are orders accepted earlier: with ``filled`` (ticks) they are filled whole at that price, with
    ``account`` they are another account's. ``value`` is what the order is compared at; ``step`` is what each further
    order like it adds, 0 where orders do not add up. Where a test says nothing, an account of 10^9 USD holds nothing.
    """

    limit: str
    value: int
    code: str
    unit: str
    order: Mapping[str, Any] = field(default_factory=dict)
    before: Sequence[Mapping[str, Any]] = ()
    step: int = 0
    cash: int = 10**15
    held: Mapping[str, int] = field(default_factory=dict)
    second_held: Mapping[str, int] = field(default_factory=dict)
    also: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def record(self) -> str:
        """The scope whose record holds the limit."""
        return self.limit.rpartition("|")[0]

    @property
    def name(self) -> str:
        """The limit's name in its record."""
        return self.limit.rpartition("|")[2]

    @property
    def scope(self) -> str:
        """The scope a denial names: the key itself where the record is that of all keys."""
        return f"key|{KEY}" if self.record == "key|*" else self.record

    def __str__(self) -> str:
        """What the row is about, as a test's name."""
        words = [f"{name}={value}" for name, value in self.order.items()]
        return " ".join([self.limit, *words, f"after {len(self.before)}" if self.before else ""]).strip()


async def prepare(books: Books, control: Control) -> None:
    """Everything up to the order itself, with the limit still unlimited."""
    await books.open(control.cash, control.held, dict(control.also))
    await books.quote(QUOTES, control.sizes)
    if control.second_held or any("account" in earlier for earlier in control.before):
        await open_second(books, control.second_held)
    for number, earlier in enumerate(control.before):
        changed = dict(earlier)
        ticks = changed.pop("filled", None)
        asked = await books.accept(f"before-{number}", **changed)
        if ticks is not None:
            await books.send(asked.client_order_id)
            lots = changed.get("lots", 10)
            assert await books.fill(asked.client_order_id, lots, ticks) == ("APPLIED", "FILLED")


async def open_second(books: Books, held: Mapping[str, int] | None = None, cash: int = 10**9) -> int:
    """Open the second account with every limit unlimited; returns its epoch."""
    ledger = books.ledger
    _, records = limit_records({})
    await ledger.set_limits(SECOND, records, "test")
    references = [
        Reference(PRODUCTS[name], PRODUCTS[name].price(bid), PRODUCTS[name].price(ask))
        for name, (bid, ask) in QUOTES.items()
    ]
    await ledger.set_references(SECOND, references)
    epoch = await ledger.claim(SECOND, "test")
    await ledger.open_account(SECOND, cash, {product: (lots, 0) for product, lots in (held or {}).items()}, "test")
    await ledger.admit(SECOND, epoch)
    return epoch


async def set_limit(books: Books, control: Control, text: str) -> None:
    """The control's limit, beside the others of its row."""
    await books.limit({**control.also, control.limit: text})


async def asks_the_same_twice(books: Books, control: Control, client_order_id: str) -> dict[str, Any]:
    """What ``check`` and then ``reserve`` answer, which must be the same; the check must leave nothing behind."""
    asked = order(client_order_id, **control.order)
    before = await books.keys()
    checked = await books.check(asked)
    assert checked.kind == "CHECKED"
    assert await books.keys() == before
    verdict = await books.reserve(asked)
    assert checked.answer == verdict.answer
    return verdict.answer


async def denies_one_over_and_accepts_at(books: Books, control: Control) -> None:
    """One unit below the order's value denies it, naming all figures; the value itself lets it through."""
    await prepare(books, control)
    await set_limit(books, control, str(control.value - 1))
    before = await books.book(marks=True)
    answer = await asks_the_same_twice(books, control, "over")
    (denial,) = answer["denials"]
    assert denial["message"]
    del denial["message"]
    assert denial == {
        "code": control.code,
        "scope": control.scope,
        "value": str(control.value),
        "limit": str(control.value - 1),
        "unit": control.unit,
    }
    assert await books.book(marks=True) == before
    await set_limit(books, control, str(control.value))
    answer = await asks_the_same_twice(books, control, "at")
    assert (answer["verdict"], answer.get("warnings", [])) == ("ACCEPTED", [])
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0


async def warns_above_the_soft_level(books: Books, control: Control) -> None:
    """At the soft level nothing is said; one unit over it the order passes with a warning, and an alert is raised."""
    await prepare(books, control)
    await set_limit(books, control, f"{control.value + 1}:{control.value}")
    checked = await books.check(order("at", **control.order))
    assert (checked.answer["verdict"], checked.answer.get("warnings", [])) == ("ACCEPTED", [])
    await set_limit(books, control, f"{control.value}:{control.value - 1}")
    answer = await asks_the_same_twice(books, control, "over")
    (warning,) = answer["warnings"]
    expected = (control.code, control.scope, str(control.value), str(control.value - 1), control.unit)
    names = ("code", "scope", "value", "limit", "unit")
    assert (answer["verdict"], tuple(warning[name] for name in names)) == ("ACCEPTED", expected)
    alerts = await books.ledger.alerts(ACCOUNT, 10)
    assert [alert for alert in alerts if (alert["code"], alert["scope"]) == expected[:2]], alerts


async def denies_where_the_limit_is_missing(books: Books, control: Control) -> None:
    """Without the limit in its record nothing passes, and the denial names it; written out, unlimited is no limit."""
    await prepare(books, control)
    key = f"{DESK if control.record == 'global' else BASE}:limits"
    text = await books.ledger._direct("HGET", key, control.record)
    kept = [part for part in text.split(" ") if not part.startswith(f"{control.name}=")]
    assert len(kept) == text.count(" ")
    await books.ledger._direct("HSET", key, control.record, " ".join(kept))
    answer = await asks_the_same_twice(books, control, "missing")
    (denial,) = answer["denials"]
    assert (denial["code"], denial["scope"]) == ("MISSING_LIMIT", control.scope)
    assert control.name in denial["message"]
    if control.value:
        await books.ledger._direct("HSET", key, control.record, text)
        assert f"{control.name}=unlimited" in text.split(" ")
        answer = await asks_the_same_twice(books, control, "unlimited")
        assert (answer["verdict"], answer.get("warnings", [])) == ("ACCEPTED", [])


async def leaves_exactly_its_room_to_three_rivals(books: Books, settings: Settings, control: Control) -> None:
    """Of many orders from three clients at once exactly those there is room for pass, and the books add up."""
    await prepare(books, control)
    await set_limit(books, control, str(control.value + (ROOM - 1) * control.step))
    denied = await race(books, settings, control.order)
    assert {(denial["code"], denial["scope"]) for denial in denied} == {(control.code, control.scope)}
    assert await books.ledger.prove(ACCOUNT) == await books.ledger.prove(None) == 0


async def race(books: Books, settings: Settings, changed: Mapping[str, Any], room: int = ROOM) -> list[dict[str, str]]:
    """Let three clients ask for orders at once; ``room`` of them must be accepted. Returns the others' denials."""
    product = PRODUCTS[order("any", **changed).product_id]
    async with rivals(settings) as ledgers:
        names = [f"{rival}-{number}" for number in range(ASKED_BY_EACH) for rival in range(RIVALS)]
        verdicts = await asyncio.gather(
            *(
                ledgers[number % RIVALS].reserve(order(name, **changed), product, KEY)
                for number, name in enumerate(names)
            )
        )
    kinds = Counter(verdict.kind for verdict in verdicts)
    assert kinds == {"ACCEPTED": room, "DENIED": len(names) - room}
    return [denial for verdict in verdicts for denial in verdict.answer.get("denials", ())]


@asynccontextmanager
async def rivals(settings: Settings) -> AsyncIterator[list[Ledger]]:
    """Three clients of one ledger, each on connections of its own."""
    ledgers = [Ledger.connect(settings, redis_secrets()) for _ in range(RIVALS)]
    try:
        await asyncio.gather(*(ledger.ping() for ledger in ledgers))
        yield ledgers
    finally:
        for ledger in ledgers:
            await ledger.close()


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Books]:
    """An account not opened yet, on a server of the test's own."""
    settings = Settings(state_dir=Path("/nowhere"), redis=server.settings)
    ledger = Ledger.connect(settings, redis_secrets())
    try:
        await ledger.install()
        yield Books(ledger)
    finally:
        await ledger.close()


async def approved(ledger: Ledger, account: str | None, proposal_id: str, person: str) -> str:
    """Say yes to a proposal as this person; what came of it."""
    (digest,) = [proposal.digest for proposal in await ledger.proposals(account) if proposal.id == proposal_id]
    return (await ledger.approve(account, proposal_id, digest, f"key-of-{person}", person)).outcome
