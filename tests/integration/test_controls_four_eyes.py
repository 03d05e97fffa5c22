"""What needs a second person: resuming what was halted and loosening a limit. What is stricter holds at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from cluster.ledger import Approval, Ledger, LedgerError
from conf.settings import RedisSettings, Settings
from strategies.model import Side, TradingState
from tests.books import ACCOUNT, APPROVER, ASKER, BASE, Books, Changed, limit_records
from tests.controls import SECOND, approved, connected, rivals
from tests.servers import KINDS, Server, binary

pytestmark = pytest.mark.anyio

SCOPES: Final = ("global", "account", "strategy|manual", "product|BTC-USD")


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """Tests that do not kill the server run on the shared ones, Valkey and Redis."""
    return each_server


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own that writes every call to disk before it answers, as the desk's does."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(binary(request.param), folder, appendfsync="always")
    with server.running():
        yield server


# -- four eyes ---------------------------------------------------------------------------------------------------------


async def proposed(books: Books, kind: str, ttl_s: float = 600) -> str:
    """The id of something that waits for a second person: resuming a halt, or a higher limit."""
    await books.open(limits={"account|max_open_orders": "1"})
    if kind == "RESUME":
        await books.halt("account")
        return (await books.ledger.propose_resume(ACCOUNT, "account", "key", ASKER, "over", ttl_s)).id
    _, records = limit_records({"account|max_open_orders": "2"})
    change = await books.ledger.set_limits(ACCOUNT, records, "key", ASKER, reason="more room", ttl_s=ttl_s)
    assert (change.changed, change.proposal_id is None) == ({}, False)
    return change.proposal_id or ""


async def has_effect(books: Books, kind: str) -> bool:
    if kind == "RESUME":
        return (await books.states())["account"] == "ACTIVE"
    return "max_open_orders=2" in (await books.ledger.snapshot(ACCOUNT)).limits["account"].split()


KINDS_OF_PROPOSALS: Final = ["RESUME", "LIMITS"]


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
async def test_another_persons_approval_takes_effect_once(books: Books, kind: str) -> None:
    name = await proposed(books, kind)
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    assert (proposal.id, proposal.kind, proposal.person, proposal.status) == (name, kind, ASKER, "PENDING")
    assert proposal.reason in {"over", "more room"}
    assert not await has_effect(books, kind)
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "APPLIED"
    assert await has_effect(books, kind)
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    assert (proposal.status, proposal.approver) == ("APPLIED", APPROVER)
    before = await books.keys()
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "DONE"
    assert await books.keys() == before


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
@pytest.mark.parametrize(
    ("what", "outcome"),
    [
        ("the same person", "SAME_PERSON"),
        ("the same person with another key", "SAME_PERSON"),
        ("another digest", "CHANGED"),
        ("no digest", "CHANGED"),
        ("no such proposal", "NOT_FOUND"),
        ("another account's", "NOT_FOUND"),
        ("the desk's", "NOT_FOUND"),
    ],
)
async def test_an_approval_that_does_not_count_changes_nothing(
    books: Books, kind: str, what: str, outcome: str
) -> None:
    name = await proposed(books, kind)
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    before = await books.keys()
    account: str | None = {"another account's": SECOND, "the desk's": None}.get(what, ACCOUNT)
    name = "987654" if what == "no such proposal" else name
    digest = {"another digest": "0" * 40, "no digest": ""}.get(what, proposal.digest)
    key = "another-key" if what.endswith("key") else "key"
    person = ASKER if what.startswith("the same") else APPROVER
    assert (await books.ledger.approve(account, name, digest, key, person)).outcome == outcome
    assert await books.keys() == before


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
async def test_an_approval_by_nobody_is_refused(books: Books, kind: str) -> None:
    name = await proposed(books, kind)
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    before = await books.keys()
    with pytest.raises(LedgerError, match="person"):
        await books.ledger.approve(ACCOUNT, name, proposal.digest, "key", "")
    assert await books.keys() == before


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
async def test_an_approval_after_its_time_has_no_effect(books: Books, kind: str) -> None:
    name = await proposed(books, kind, ttl_s=0)
    while (await books.ledger.proposals(ACCOUNT))[0].status == "PENDING":
        pass
    assert (await books.ledger.proposals(ACCOUNT))[0].status == "EXPIRED"
    before = await books.keys()
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "EXPIRED"
    assert await books.keys() == before
    assert not await has_effect(books, kind)


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
@pytest.mark.parametrize("by", [ASKER, APPROVER])
async def test_what_was_refused_cannot_be_approved(books: Books, kind: str, by: str) -> None:
    name = await proposed(books, kind)
    assert (await books.ledger.refuse(ACCOUNT, name, "key", by, "no")).outcome == "REFUSED"
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "DONE"
    assert (await books.ledger.refuse(ACCOUNT, name, "key", by, "no")).outcome == "DONE"
    assert not await has_effect(books, kind)
    assert (await books.audit()).count(("REFUSED", name)) == 1


@pytest.mark.parametrize("kind", KINDS_OF_PROPOSALS)
async def test_of_many_approvals_at_once_one_takes_effect(books: Books, settings: Settings, kind: str) -> None:
    name = await proposed(books, kind)
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    async with rivals(settings) as ledgers:
        approvals: list[Approval] = await asyncio.gather(
            *(
                ledgers[number % 3].approve(ACCOUNT, name, proposal.digest, "key", f"person-{number}")
                for number in range(9)
            )
        )
    assert Counter(approval.outcome for approval in approvals) == {"APPLIED": 1, "DONE": 8}
    entries = await books.audit()
    effect = ("STATE", "account") if kind == "RESUME" else ("LIMITS", "2")
    assert entries.count(("APPROVED", name)) == 1
    # A halt before the resumption is an entry of the same kind.
    assert entries.count(effect) == (2 if kind == "RESUME" else 1)


async def test_an_approval_and_a_refusal_at_once_are_one_or_the_other(books: Books, settings: Settings) -> None:
    name = await proposed(books, "RESUME")
    (proposal,) = await books.ledger.proposals(ACCOUNT)
    async with rivals(settings) as ledgers:
        outcomes = await asyncio.gather(
            ledgers[0].approve(ACCOUNT, name, proposal.digest, "key", APPROVER),
            ledgers[1].refuse(ACCOUNT, name, "key", APPROVER, "no"),
        )
    assert sorted(approval.outcome for approval in outcomes) in (["APPLIED", "DONE"], ["DONE", "REFUSED"])


async def test_asking_twice_makes_one_proposal(books: Books) -> None:
    await proposed(books, "RESUME")
    again = await books.ledger.propose_resume(ACCOUNT, "account", "key", ASKER, "over")
    assert [proposal.id for proposal in await books.ledger.proposals(ACCOUNT)] == [again.id]
    # Another person's question is another one: its author cannot approve it either.
    other = await books.ledger.propose_resume(ACCOUNT, "account", "key", APPROVER, "over")
    assert other.id != again.id
    assert await approved(books.ledger, ACCOUNT, other.id, APPROVER) == "SAME_PERSON"


HALTS: list[tuple[str, TradingState, TradingState]] = [
    # what, state that was to be resumed, state somebody else asks for before the approval
    ("a stricter one", TradingState.REDUCING, TradingState.HALTED),
    ("the same one", TradingState.HALTED, TradingState.HALTED),
    ("a milder one", TradingState.HALTED, TradingState.REDUCING),
]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("what", "state", "again"), HALTS, ids=[row[0] for row in HALTS])
async def test_an_approval_does_not_undo_a_halt_that_came_after_the_question(
    books: Books, scope: str, what: str, state: TradingState, again: TradingState
) -> None:
    account = None if scope == "global" else ACCOUNT
    await books.open()
    await books.halt(scope, state)
    proposal = await books.ledger.propose_resume(account, scope, "key", ASKER, "over")
    await books.halt(scope, again)
    assert await approved(books.ledger, account, proposal.id, APPROVER) == "DONE"
    assert (await books.states())[scope] == max(state, again, key=lambda one: one.level)
    assert (await books.ledger.proposals(account))[0].status == "REFUSED"
    entries = [fields for _, fields in await books.ledger.audit_entries(account)]
    assert [(fields["kind"], fields["id"]) for fields in entries[-2:]] == [("STATE", scope), ("REFUSED", proposal.id)]
    await books.resume(scope)


async def test_an_approval_does_not_undo_what_tripped_after_the_question(books: Books) -> None:
    await books.open()
    await books.accept("o-1")
    await books.send("o-1")
    await books.halt("strategy|manual", TradingState.REDUCING)
    proposal = await books.ledger.propose_resume(ACCOUNT, "strategy|manual", "key", ASKER, "over")
    await books.fill("o-1", 11, 10_000)
    assert await books.causes() == {"strategy|manual": "OVERFILL"}
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "CHANGED"
    assert await books.causes() == {"strategy|manual": "OVERFILL"}
    await books.resume("strategy|manual")


async def test_a_halt_of_another_scope_leaves_a_question_as_it_is(books: Books) -> None:
    name = await proposed(books, "RESUME")
    await books.halt("strategy|manual")
    await books.halt("global")
    await books.ledger.tighten(ACCOUNT, "account", TradingState.ACTIVE, "test", "no halt at all")
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "APPLIED"


async def test_damaged_proposals_keep_nobody_from_halting(books: Books, ledger: Ledger) -> None:
    await books.open()
    for command in (("HSET", f"{BASE}:approvals", "7", "no proposal"), ("SET", f"{BASE}:approvals", "no hash")):
        await ledger._direct(*command)
        await books.halt("account")
        assert (await books.states())["account"] == "HALTED"


async def test_a_proposal_outlives_the_server_it_was_made_on(server: Server) -> None:
    async with connected(server) as books:
        name = await proposed(books, "RESUME")
        server.kill()
        server.start()
        assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "APPLIED"
        assert await has_effect(books, "RESUME")


# -- limits change -----------------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, str, str | None, str | None, str | None, bool]] = [
    # what, limit, its text before, the one asked for, the one that holds at once (None: none), whether the rest waits
    ("lower", "account|max_open_orders", "9", "8", "8", False),
    ("higher", "account|max_open_orders", "9", "10", "9", True),
    ("a limit instead of none", "account|max_open_orders", "unlimited", "9", "9", False),
    ("none instead of a limit", "account|max_open_orders", "9", "unlimited", "9", True),
    ("a lower soft level", "account|max_open_orders", "9:8", "9:7", "9:7", False),
    ("a higher soft level", "account|max_open_orders", "9:7", "9:8", "9:7", True),
    ("no soft level any more", "account|max_open_orders", "9:7", "9", "9:7", True),
    ("a lower limit and a higher soft level", "account|max_open_orders", "9:5", "8:6", "8:5", True),
    ("a higher limit and a lower soft level", "account|max_open_orders", "8:6", "9:5", "8:5", True),
    ("lower than the soft level was", "account|max_open_orders", "9:8", "5", "5", False),
    ("a slower rate", "account|order_interval_us", "5", "6", "6", False),
    ("a faster rate", "account|order_interval_us", "5", "4", "5", True),
    ("no rate", "account|order_interval_us", "5", "unlimited", "5", True),
    ("a smaller burst", "account|order_burst", "5", "4", "4", False),
    ("more kept for cancels", "account|cancel_reserve", "5", "6", "6", False),
    ("less kept for cancels", "account|cancel_reserve", "5", "4", "5", True),
    ("a longer window", "account|duplicate_window_ms", "5", "6", "6", False),
    ("a shorter window", "account|duplicate_window_ms", "5", "4", "5", True),
    ("a longer halt", "product|BTC-USD|volatility_halt_ms", "5", "6", "6", False),
    ("a shorter halt", "product|BTC-USD|volatility_halt_ms", "5", "4", "5", True),
    ("dearer fees", "account|taker_fee_ppm", "5", "6", "6", False),
    ("cheaper fees", "account|taker_fee_ppm", "5", "4", "5", True),
    ("prices that may be older", "account|reference_stale_ms", "5", "6", "5", True),
    ("less capital", "strategy|manual|capital", "5", "4", "4", False),
    ("no more shorts", "strategy|manual|short", "allowed", "denied", "denied", False),
    ("shorts", "strategy|manual|short", "denied", "allowed", "denied", True),
    ("no more self-trades", "account|self_trade", "allow", "deny", "deny", False),
    ("self-trades", "account|self_trade", "deny", "allow", "deny", True),
    ("restricted", "product|BTC-USD|restricted", "no", "yes", "yes", False),
    ("no longer restricted", "product|BTC-USD|restricted", "yes", "no", "yes", True),
    ("other hours", "product|BTC-USD|hours", "0-60", "0-50", "0-60", True),
    ("another version", "strategy|manual|versions", "a", "b", "a", True),
    ("another group", "product|BTC-USD|group", "majors", "-", "majors", True),
    ("left out, which denies", "account|max_open_orders", "9", None, None, False),
    ("no longer left out", "account|max_open_orders", None, "9", None, True),
    ("the desk's, lower", "global|max_open_orders", "9", "8", "8", False),
    ("the desk's, higher", "global|max_open_orders", "9", "10", "9", True),
]


def limits_in(records: Mapping[str, str]) -> dict[str, set[str]]:
    """Records as sets of their words, the version and the like left out."""
    return {scope: set(text.split()) for scope, text in records.items() if scope not in {"version", "baseline"}}


async def set_records(books: Books, changed: Changed, account: str | None) -> tuple[set[str], bool]:
    """Ask for these limits: the records that changed at once, and whether something waits for a second person."""
    change = await books.ledger.set_limits(account, limit_records(changed)[account is not None], "test", ASKER)
    return set(change.changed), change.proposal_id is not None


async def holds_now(books: Books, changed: Changed, account: str | None) -> bool:
    """Whether exactly these limits hold."""
    snapshot = await books.ledger.snapshot(account)
    return limits_in(snapshot.limits) == limits_in(limit_records(changed)[account is not None])


@pytest.mark.parametrize(("what", "limit", "before", "asked", "holds", "waits"), CHANGES, ids=[r[0] for r in CHANGES])
async def test_a_stricter_limit_holds_at_once_and_a_looser_one_waits_for_a_second_person(
    books: Books, what: str, limit: str, before: str | None, asked: str | None, holds: str | None, waits: bool
) -> None:
    account = None if limit.startswith("global") else ACCOUNT
    assert (await set_records(books, {limit: before}, account))[1] is False
    changed, waiting = await set_records(books, {limit: asked}, account)
    assert changed == (set() if holds == before else {limit.rpartition("|")[0]})
    assert waiting == waits
    assert await holds_now(books, {limit: holds}, account)
    if waits:
        (proposal,) = await books.ledger.proposals(account)
        await books.approve(proposal.id, account)
        assert await holds_now(books, {limit: asked}, account)


RECORDS: list[tuple[str, Changed, Changed, Changed, bool]] = [
    # what, limits before, those asked for, those that hold at once, whether the rest waits
    (
        "one lower, one higher",
        {"account|max_open_orders": "9", "account|max_daily_orders": "9"},
        {"account|max_open_orders": "8", "account|max_daily_orders": "10"},
        {"account|max_open_orders": "8", "account|max_daily_orders": "9"},
        True,
    ),
    ("a product less", {}, {"product|XRP-USD": None}, {"product|XRP-USD": None}, False),
    ("a product more", {"product|XRP-USD": None}, {}, {"product|XRP-USD": None}, True),
    ("a strategy more", {"strategy|other": None}, {}, {"strategy|other": None}, True),
    ("a key with limits of its own", {}, {"key|desk-7|max_open_orders": "1"}, {}, True),
    ("another zone", {}, {"calendar": "Europe/Berlin 3600"}, {}, True),
    ("the same zone, more years", {}, {"calendar": "UTC 0 99 0"}, {"calendar": "UTC 0 99 0"}, False),
]


@pytest.mark.parametrize(("what", "before", "asked", "holds", "waits"), RECORDS, ids=[row[0] for row in RECORDS])
async def test_a_scope_that_is_new_waits_and_one_that_goes_is_gone(
    books: Books, what: str, before: Changed, asked: Changed, holds: Changed, waits: bool
) -> None:
    await set_records(books, before, ACCOUNT)
    assert (await set_records(books, asked, ACCOUNT))[1] == waits
    assert await holds_now(books, holds, ACCOUNT)
    if waits:
        (proposal,) = await books.ledger.proposals(ACCOUNT)
        await books.approve(proposal.id)
        assert await holds_now(books, asked, ACCOUNT)


async def test_a_lowered_limit_holds_for_the_very_next_order(books: Books) -> None:
    await books.open()
    await books.accept("o-1")
    _, records = limit_records({"account|max_open_orders": "1"})
    change = await books.ledger.set_limits(ACCOUNT, records, "test", ASKER)
    assert list(change.changed) == ["account"]
    assert await books.codes("o-2") == {("MAX_OPEN_ORDERS", "account")}
    # Removing an order is what makes room; asking for the old limit alone does not.
    _, records = limit_records({})
    await books.ledger.set_limits(ACCOUNT, records, "test", ASKER)
    assert await books.codes("o-3") == {("MAX_OPEN_ORDERS", "account")}


async def test_an_approval_of_limits_that_have_changed_since_has_no_effect(books: Books) -> None:
    name = await proposed(books, "LIMITS")
    _, records = limit_records({"account|max_open_orders": "0"})
    await books.ledger.set_limits(ACCOUNT, records, "test", ASKER)
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "CHANGED"
    assert await books.codes("o-1") == {("MAX_OPEN_ORDERS", "account")}


async def test_every_change_of_limits_has_a_version_and_an_entry(books: Books) -> None:
    for number, most in enumerate(("9", "8", "7"), start=1):
        _, records = limit_records({"account|max_open_orders": most})
        change = await books.ledger.set_limits(ACCOUNT, records, "test", ASKER)
        assert (change.version, change.proposal_id) == (number, None)
        again = await books.ledger.set_limits(ACCOUNT, records, "test", ASKER)
        assert (again.version, again.changed, again.proposal_id) == (number, {}, None)
    assert await books.audit() == [("LIMITS", "1"), ("LIMITS", "2"), ("LIMITS", "3")]


async def test_new_limits_open_no_scope_that_was_halted(books: Books) -> None:
    await books.open()
    for scope in SCOPES:
        await books.halt(scope)
    await books.limit({"account|max_open_orders": "7"})
    states = await books.states()
    assert {states[scope] for scope in SCOPES} == {"HALTED"}


async def test_a_product_that_changes_its_group_takes_its_amounts_along(books: Books) -> None:
    await books.open(lots={"BTC-USD": 100}, limits={"group|other|max_gross_exposure": "unlimited"})
    await books.accept("buy")
    await books.accept("sell", side=Side.SELL, lots=20)
    moved = {"product|BTC-USD|group": "other", "group|other|max_gross_exposure": "unlimited"}
    await books.limit(moved)
    assert await books.ledger.prove(ACCOUNT) == 0
    book = await books.book(marks=True)
    assert {name: figure for name, figure in book.items() if name.startswith("g|")} == {
        "g|other|buy_notional": 1_000_000,
        "g|other|sell_notional": 2_000_000,
        "g|other|gross": 10_000_000,
    }
    await books.limit({"product|BTC-USD|group": "-"})
    assert not [name for name in await books.book(marks=True) if name.startswith("g|")]
    await books.ledger.request_cancel(ACCOUNT, "buy", "test")
    assert await books.ledger.prove(ACCOUNT) == 0


NO_LIMITS: list[tuple[str, str]] = [
    ("account", "max_open_orders=nan"),
    ("account", "max_open_orders=-1"),
    ("account", "max_open_orders="),
    ("account", "max_open_orders"),
    ("account", "max_open_orders=1.5"),
    ("account", "max_open_orders=1e3"),
    ("account", "max_open_orders=" + "9" * 40),
    ("account", "max_open_orders=Unlimited"),
    ("account", "max_open_orders=9:x"),
    ("account", "max_open_orders=9:10"),
    ("account", "max_open_orders=5:-1"),
    ("account", "order_interval_us=0"),
    ("account", "order_burst=0"),
    ("account", "message_burst=0"),
    ("global", "max_open_orders=1"),
    ("strategy", "max_open_orders=1"),
    ("product|btc", "max_open_orders=1"),
    ("x|y", "max_open_orders=1"),
    ("version", "7"),
    ("baseline", "x"),
    ("calendar", "UTC"),
    ("calendar", "UTC x"),
    ("calendar", ""),
]


@pytest.mark.parametrize(("scope", "record"), NO_LIMITS)
async def test_what_is_no_limit_is_refused_and_the_old_ones_stay(books: Books, scope: str, record: str) -> None:
    await books.open()
    before = await books.keys()
    _, records = limit_records({"account|max_open_orders": "1"})
    with pytest.raises(LedgerError):
        await books.ledger.set_limits(ACCOUNT, records | {scope: record}, "test")
    assert await books.keys() == before
