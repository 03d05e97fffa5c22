"""One order over its limits: asked for with a reason, approved by a second person, used once, never over a kill."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

import pytest

from cluster.audit import verify
from cluster.audit_chain import row_of
from cluster.ledger import LedgerError, OrderKnown, Proposal, Verdict
from cluster.ledger_replay import rebuild
from conf.settings import RedisSettings, Settings
from strategies.model import Denial, OrderStatus, Side, TimeInForce, TradingState
from tests.books import ACCOUNT, APPROVER, ASKER, BASE, BTC, KEY, Books, order
from tests.controls import approved, rivals

pytestmark = pytest.mark.anyio

# An order of 10 lots at 10,000 ticks is worth 1,000,000 micros.
WORTH: Final = 1_000_000
SMALL: Final = {"account|max_order_notional": str(WORTH - 1)}


@pytest.fixture
def ledger_server(each_server: RedisSettings) -> RedisSettings:
    """On Valkey and on Redis."""
    return each_server


async def proposed(books: Books, client_order_id: str = "o-1", ttl_s: float = 600, **changed: Any) -> Proposal:
    asked = order(client_order_id, **changed)
    return await books.ledger.propose_override(asked, BTC, KEY, ASKER, "the client agreed", ttl_s)


async def allowed(books: Books, client_order_id: str = "o-1", ttl_s: float = 600, **changed: Any) -> str:
    """Propose and approve an override; the proposal's id."""
    proposal = await proposed(books, client_order_id, ttl_s, **changed)
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "APPLIED"
    return proposal.id


async def status_of(books: Books, proposal_id: str) -> str:
    (status,) = [p.status for p in await books.ledger.proposals(ACCOUNT) if p.id == proposal_id]
    return status


async def adds_up(books: Books) -> None:
    """Books, open orders and audit agree, the proposals too."""
    assert await verify(books.ledger, ACCOUNT) == []
    assert await verify(books.ledger, None) == []
    rows = [row_of(stream_id, fields) for stream_id, fields in await books.ledger.audit_entries(ACCOUNT)]
    replayed = rebuild(rows, ACCOUNT).get(":approvals", {})
    stored = await books.ledger._direct("HGETALL", f"{BASE}:approvals")
    assert {name: json.loads(text) for name, text in replayed.items()} == {
        name: json.loads(text) for name, text in stored.items()
    }


async def reserved(books: Books, client_order_id: str) -> dict[str, Any]:
    """What the audit says of an accepted order."""
    entries = [fields for _, fields in await books.ledger.audit_entries(ACCOUNT)]
    (entry,) = [one for one in entries if (one["kind"], one["id"]) == ("RESERVED", client_order_id)]
    return dict(json.loads(entry["data"]))


# -- what it does ------------------------------------------------------------------------------------------------------


async def test_an_approved_order_passes_once_with_its_denials_as_warnings(books: Books) -> None:
    await books.open(limits=SMALL | {"product|BTC-USD|max_order_lots": "9"})
    name = await allowed(books)
    verdict = await books.reserve(order("o-1"))
    assert (verdict.kind, verdict.accepted) == ("ACCEPTED", True), verdict
    assert verdict.answer["reserved_notional_micros"] == str(WORTH)
    found = {(w["code"], w["scope"], w["value"], w["limit"], w["level"]) for w in verdict.answer["warnings"]}
    assert found == {
        ("NOTIONAL_EXCEEDS_MAX", "account", str(WORTH), str(WORTH - 1), "OVERRIDDEN"),
        ("QTY_EXCEEDS_MAX", "product|BTC-USD", "10", "9", "OVERRIDDEN"),
    }
    assert (await reserved(books, "o-1"))["override"] == name
    assert await status_of(books, name) == "USED"
    assert await books.outbox() == [("SUBMIT", "o-1")]
    alerts = {(alert["level"], alert["code"], alert["id"]) for alert in await books.ledger.alerts(ACCOUNT)}
    assert alerts == {("OVERRIDDEN", "NOTIONAL_EXCEEDS_MAX", "o-1"), ("OVERRIDDEN", "QTY_EXCEEDS_MAX", "o-1")}
    # A repeat gets the first answer, the next order is denied as ever, and what the order left can be undone.
    assert await books.reserve(order("o-1")) == Verdict("REPEATED", verdict.answer)
    assert await books.codes("o-2") == {("NOTIONAL_EXCEEDS_MAX", "account"), ("QTY_EXCEEDS_MAX", "product|BTC-USD")}
    await adds_up(books)
    await books.ledger.request_cancel(ACCOUNT, "o-1", KEY)
    assert await books.book() == {"cash": 10**15}
    await adds_up(books)


async def test_the_question_shows_the_order_the_rules_it_breaks_and_the_reason(books: Books) -> None:
    await books.open(cash=WORTH, limits=SMALL)
    proposal = await proposed(books)
    assert (proposal.kind, proposal.status, proposal.person, proposal.by, proposal.reason) == (
        "OVERRIDE",
        "PENDING",
        ASKER,
        KEY,
        "the client agreed",
    )
    assert proposal.payload["id"] == "o-1"
    assert proposal.payload["order"] == {
        "strategy": "manual",
        "product": "BTC-USD",
        "side": "BUY",
        "type": "LIMIT",
        "tif": "GTC",
        "quantity": "0.010",
        "limit_price": "100.00",
        "post_only": "0",
        "reduce_only": "0",
        "version": "",
    }
    assert {(rule["code"], rule["value"], rule["never"]) for rule in proposal.payload["denials"]} == {
        ("NOTIONAL_EXCEEDS_MAX", str(WORTH), False),
        ("INSUFFICIENT_FUNDS", "1006000", True),
    }
    # Asking writes nothing but the question, and twice makes one.
    again = await proposed(books)
    assert again.id == proposal.id
    assert [one.id for one in await books.ledger.proposals(ACCOUNT)] == [proposal.id]
    assert (await books.audit())[-1] == ("PROPOSED", proposal.id)
    assert await books.status("o-1") is None
    await adds_up(books)


async def test_a_check_shows_the_override_and_uses_nothing_up(books: Books) -> None:
    await books.open(limits=SMALL)
    assert (await books.check(order("o-1"))).answer["verdict"] == "DENIED"
    name = await allowed(books)
    before = await books.keys()
    for _ in range(2):
        checked = await books.check(order("o-1"))
        assert checked.answer["verdict"] == "ACCEPTED"
        assert [(w["code"], w["level"]) for w in checked.answer["warnings"]] == [("NOTIONAL_EXCEEDS_MAX", "OVERRIDDEN")]
    assert await books.keys() == before
    assert (await books.check(order("o-2"))).answer["verdict"] == "DENIED"
    verdict = await books.reserve(order("o-1"))
    assert verdict.answer == checked.answer
    assert await status_of(books, name) == "USED"
    # Its id is known by now and does not matter to a check; the override does, and it is gone.
    assert (await books.check(order("o-1"))).answer["verdict"] == "DENIED"


async def test_an_order_that_breaks_no_rule_leaves_its_override_alone(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    await books.limit({})
    verdict = await books.reserve(order("o-1"))
    assert (verdict.accepted, verdict.answer.get("warnings")) == (True, None)
    assert "override" not in await reserved(books, "o-1")
    assert await status_of(books, name) == "APPLIED"
    await adds_up(books)


async def test_the_desks_own_limits_and_soft_levels_stand_beside_it(books: Books) -> None:
    await books.open(limits={"global|max_open_orders": "0", "account|max_open_orders": "5:0"})
    await allowed(books)
    warnings = (await books.reserve(order("o-1"))).answer["warnings"]
    assert {(w["scope"], w["limit"], w.get("level")) for w in warnings} == {
        ("account", "0", None),
        ("global", "0", "OVERRIDDEN"),
    }
    fields = await books.ledger.order(ACCOUNT, "o-1")
    assert fields is not None
    assert json.loads(fields["warnings"]) == warnings
    await adds_up(books)


@dataclass(frozen=True)
class Rule:
    """A limit that the order ``changed`` breaks."""

    code: str
    limits: dict[str, str]
    changed: dict[str, Any] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    cash: int = 10**15


OVERRIDABLE: list[Rule] = [
    Rule("QTY_EXCEEDS_MAX", {"product|BTC-USD|max_order_lots": "9"}),
    Rule("NOTIONAL_EXCEEDS_MAX", SMALL),
    Rule("FAT_FINGER", {"product|BTC-USD|fat_finger_ppm": "1000000"}, {"lots": 11}, tuple("abcde")),
    Rule("PRICE_COLLAR", {"product|BTC-USD|collar_ppm": "10"}, {"ticks": 9_999}),
    Rule("MAX_POSITION", {"product|BTC-USD|max_position_lots": "9"}),
    Rule("MAX_POSITION", {"product|BTC-USD|max_strategy_position_lots": "9"}),
    Rule("MAX_GROSS", {"group|majors|max_gross_exposure": "0"}),
    Rule("MAX_NET", {"strategy|manual|max_net_exposure": "0"}),
    Rule("CONCENTRATION", {"account|max_concentration_ppm": "0"}),
    Rule("LEVERAGE", {"account|max_leverage_ppm": "0"}),
    Rule("MAX_OPEN_ORDERS", {"key|*|max_open_orders": "0"}),
    Rule("MAX_OPEN_VALUE", {"global|max_open_notional": "0"}),
    Rule("OTR", {"account|max_order_to_trade": "0"}),
    Rule("DAILY_ORDERS", {"product|BTC-USD|max_daily_orders": "0"}),
    Rule("DAILY_TURNOVER", {"strategy|manual|max_daily_turnover": "0"}),
    Rule("DUPLICATE_ORDER", {"account|duplicate_window_ms": "60000"}, before=("a",)),
    Rule("MARKET_CLOSED", {"product|BTC-USD|hours": "10079-10079"}),
    Rule("VOLATILITY_HALT", {"product|BTC-USD|volatility_ppm": "1", "product|BTC-USD|volatility_halt_ms": "60000"}),
]


@pytest.mark.parametrize("rule", OVERRIDABLE, ids=lambda rule: rule.code)
async def test_two_people_can_let_one_order_over_this(books: Books, rule: Rule) -> None:
    await books.open(cash=rule.cash, limits=rule.limits)
    for name in rule.before:
        await books.accept(name)
    if rule.code == "VOLATILITY_HALT":
        await books.quote({"BTC-USD": (9_899, 10_101)})
        await books.quote({"BTC-USD": (9_900, 10_200)})
    asked = order("o-1", **rule.changed)
    denied = await books.check(asked)
    assert {denial["code"] for denial in denied.answer.get("denials", ())} == {rule.code}
    await allowed(books, **rule.changed)
    verdict = await books.reserve(asked)
    assert verdict.accepted, verdict
    overridden = [w["code"] for w in verdict.answer["warnings"] if w.get("level") == "OVERRIDDEN"]
    assert overridden == [rule.code]
    await adds_up(books)


# -- what it never does ------------------------------------------------------------------------------------------------


async def no_funds(books: Books) -> None:
    await books.limit(SMALL | {"account|taker_fee_ppm": str(10**15)})


async def no_limit(books: Books) -> None:
    await books.limit(SMALL | {"account|max_open_orders": None})


async def no_strategy(books: Books) -> None:
    await books.limit(SMALL | {"strategy|manual": None})


async def no_product(books: Books) -> None:
    await books.limit(SMALL | {"product|BTC-USD": None})


async def restricted(books: Books) -> None:
    await books.limit(SMALL | {"product|BTC-USD|restricted": "yes"})


async def halted(books: Books) -> None:
    await books.halt("account")


async def halted_desk(books: Books) -> None:
    await books.halt("global", TradingState.CANCEL_ALL)


async def halted_product(books: Books) -> None:
    await books.halt("product|BTC-USD")


async def reducing(books: Books) -> None:
    await books.halt("strategy|manual", TradingState.REDUCING)


async def wide_market(books: Books) -> None:
    await books.limit(SMALL | {"product|BTC-USD|max_spread_ppm": "1"})


async def locked_market(books: Books) -> None:
    await books.quote({"BTC-USD": (10_000, 10_000)})


async def no_price(books: Books) -> None:
    await books.ledger._direct("HDEL", f"{BASE}:reference", "BTC-USD")


async def old_price(books: Books) -> None:
    await books.limit(SMALL | {"account|reference_stale_ms": "0"})
    await asyncio.sleep(0.002)


async def self_trade(books: Books) -> None:
    await books.ledger.reserve(order("other", side=Side.SELL, lots=1, ticks=10_000), BTC, KEY)
    await books.limit(SMALL | {"account|self_trade": "deny"})


async def repeats(books: Books) -> None:
    await books.limit(SMALL | {"strategy|manual|max_repeats": "0"})


async def overfilled(books: Books) -> None:
    await books.accept("big", lots=1, ticks=10_000)
    await books.send("big")
    await books.fill("big", 2, 10_000)


NEVER: list[tuple[Any, str]] = [
    # what happens after the approval -> the rule that stands, beside NOTIONAL_EXCEEDS_MAX
    (halted, "TRADING_HALTED"),
    (halted_desk, "TRADING_HALTED"),
    (halted_product, "TRADING_HALTED"),
    (reducing, "REDUCE_ONLY_MODE"),
    (overfilled, "OVERFILL"),
    (repeats, "REPEAT_EXECUTION"),
    (no_limit, "MISSING_LIMIT"),
    (no_strategy, "STRATEGY_NOT_APPROVED"),
    (no_product, "SYMBOL_NOT_ALLOWED"),
    (restricted, "SYMBOL_NOT_ALLOWED"),
    (no_funds, "INSUFFICIENT_FUNDS"),
    (no_price, "MISSING_REFERENCE"),
    (old_price, "STALE_REFERENCE"),
    (wide_market, "BAD_BOOK"),
    (locked_market, "BAD_BOOK"),
    (self_trade, "SELF_TRADE"),
]


@pytest.mark.parametrize(("happens", "code"), NEVER, ids=[row[0].__name__ for row in NEVER])
async def test_nothing_overrides_this_and_with_it_all_denials_stand(books: Books, happens: Any, code: str) -> None:
    await books.open(lots={"BTC-USD": 1}, limits=SMALL)
    name = await allowed(books)
    await happens(books)
    denials = await books.denials("o-1")
    assert code in {denial["code"] for denial in denials}, denials
    if code not in {"MISSING_REFERENCE", "STALE_REFERENCE"}:
        assert "NOTIONAL_EXCEEDS_MAX" in {denial["code"] for denial in denials}
    assert await books.status("o-1") == "DENIED"
    assert await status_of(books, name) == "APPLIED"
    if happens is not no_price:
        await adds_up(books)


@pytest.mark.parametrize("happens", [halted, no_limit, no_funds], ids=lambda happens: happens.__name__)
async def test_an_approval_given_while_it_cannot_pass_is_none_over_it(books: Books, happens: Any) -> None:
    await books.open(limits=SMALL)
    await happens(books)
    await allowed(books)
    assert (await books.reserve(order("o-1"))).kind == "DENIED"
    await adds_up(books)


async def test_a_sell_of_what_is_not_there_is_never_overridden(books: Books) -> None:
    await books.open(limits=SMALL | {"strategy|manual|short": "denied"})
    await allowed(books, side=Side.SELL)
    codes = {code for code, _ in await books.codes("o-1", side=Side.SELL)}
    assert codes == {"INSUFFICIENT_FUNDS", "SHORT_NOT_ALLOWED", "NOTIONAL_EXCEEDS_MAX"}


async def test_a_reduce_only_order_stays_one(books: Books) -> None:
    await books.open(limits=SMALL)
    asked = replace(order("o-1"), reduce_only=True)
    proposal = await books.ledger.propose_override(asked, BTC, KEY, ASKER, "why")
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "APPLIED"
    denials = (await books.reserve(asked)).answer["denials"]
    assert {denial["code"] for denial in denials} == {"REDUCE_ONLY_WOULD_INCREASE", "NOTIONAL_EXCEEDS_MAX"}


async def test_rates_hold_and_leave_the_override_for_the_same_order_later(books: Books) -> None:
    limits = SMALL | {"account|order_interval_us": "3600000000", "account|order_burst": "1"}
    await books.open(limits=limits)
    await books.accept("small", lots=1)
    name = await allowed(books)
    for _ in range(2):
        verdict = await books.reserve(order("o-1"))
        assert [denial["code"] for denial in verdict.answer["denials"]] == ["RATE_LIMIT"]
    assert await books.status("o-1") is None
    assert await status_of(books, name) == "APPLIED"
    await books.limit(SMALL)
    assert (await books.reserve(order("o-1"))).accepted
    assert await status_of(books, name) == "USED"
    await adds_up(books)


async def test_the_venues_own_rules_are_not_ours_to_override(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    verdict = await books.ledger.reserve(order("o-1"), BTC, KEY, [Denial("PRODUCT_STATUS", "offline")])
    assert [denial["code"] for denial in verdict.answer["denials"]] == ["PRODUCT_STATUS"]
    assert await status_of(books, name) == "APPLIED"


# -- exactly this order, once ------------------------------------------------------------------------------------------

OTHERS: list[dict[str, Any]] = [
    {"lots": 11},
    {"ticks": 10_001},
    {"time_in_force": TimeInForce.IOC},
    {"strategy": "other"},
]


@pytest.mark.parametrize("changed", OTHERS, ids=str)
async def test_the_same_id_with_another_body_is_denied(books: Books, changed: dict[str, Any]) -> None:
    await books.open(limits=SMALL)
    await allowed(books)
    assert (await books.reserve(order("o-1", **changed))).kind == "DENIED"
    # The id has been used by that, and nothing is left to override.
    assert (await books.reserve(order("o-1"))).kind == "CONFLICT"
    await adds_up(books)


async def test_the_same_body_with_another_id_is_denied(books: Books) -> None:
    await books.open(limits=SMALL)
    await allowed(books)
    assert (await books.reserve(order("o-2"))).kind == "DENIED"
    assert (await books.reserve(order("o-1"))).accepted


async def test_a_number_written_otherwise_is_the_same_order(books: Books) -> None:
    await books.open(limits=SMALL)
    await allowed(books)
    asked = order("o-1")
    assert (await books.reserve(replace(asked, quantity=Decimal("0.01000")))).accepted


async def test_an_override_of_another_account_is_none(books: Books) -> None:
    await books.open(limits=SMALL)
    other = await Books(books.ledger, account="second").open(limits=SMALL)
    await allowed(books)
    assert (await other.reserve(replace(order("o-1"), account="second"))).kind == "DENIED"


async def test_of_many_submissions_at_once_one_order_comes(books: Books, settings: Settings) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    asked = order("o-1")
    async with rivals(settings) as ledgers:
        verdicts = await asyncio.gather(*(ledgers[n % 3].reserve(asked, BTC, KEY) for n in range(9)))
    assert Counter(verdict.kind for verdict in verdicts) == {"ACCEPTED": 1, "REPEATED": 8}
    assert all(verdict.accepted for verdict in verdicts)
    assert await books.outbox() == [("SUBMIT", "o-1")]
    assert (await books.book())["a|open_orders"] == 1
    assert await status_of(books, name) == "USED"
    await adds_up(books)


async def test_after_it_was_used_the_order_is_not_let_through_again_when_its_record_is_gone(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    assert (await books.reserve(order("o-1"))).accepted
    await books.send("o-1")
    await books.ledger.release(ACCOUNT, books.epoch, "o-1", OrderStatus.CANCELLED, "over")
    await books.ledger._direct("DEL", f"{BASE}:order:o-1")
    await books.ledger._direct(
        "SET", f"{BASE}:override:{(await proposal_of(books, name)).payload['fingerprint']}", name
    )
    assert (await books.reserve(order("o-1"))).kind == "DENIED"


async def proposal_of(books: Books, proposal_id: str) -> Proposal:
    (found,) = [one for one in await books.ledger.proposals(ACCOUNT) if one.id == proposal_id]
    return found


# -- two people, in time -----------------------------------------------------------------------------------------------


async def test_what_nobody_has_approved_overrides_nothing(books: Books) -> None:
    await books.open(limits=SMALL)
    proposal = await proposed(books)
    assert (await books.reserve(order("o-1"))).kind == "DENIED"
    # The order has been decided on since; an approval now would be for nothing, and could not be used.
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "CHANGED"
    assert await status_of(books, proposal.id) == "PENDING"
    await adds_up(books)


@pytest.mark.parametrize("key", ["key", "another-key"])
async def test_the_same_person_cannot_approve_it(books: Books, key: str) -> None:
    await books.open(limits=SMALL)
    proposal = await proposed(books)
    outcome = (await books.ledger.approve(ACCOUNT, proposal.id, proposal.digest, key, ASKER)).outcome
    assert outcome == "SAME_PERSON"
    assert (await books.reserve(order("o-1"))).kind == "DENIED"


async def test_another_digest_approves_nothing(books: Books) -> None:
    await books.open(limits=SMALL)
    proposal = await proposed(books)
    assert (await books.ledger.approve(ACCOUNT, proposal.id, "0" * 40, "key", APPROVER)).outcome == "CHANGED"
    assert (await books.reserve(order("o-1"))).kind == "DENIED"


async def test_an_approval_ends_with_its_time(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books, ttl_s=0.2)
    while await status_of(books, name) == "APPLIED":
        await asyncio.sleep(0.01)
    assert await status_of(books, name) == "EXPIRED"
    assert (await books.check(order("o-1"))).answer["verdict"] == "DENIED"
    assert (await books.reserve(order("o-1"))).kind == "DENIED"
    assert (await books.ledger.refuse(ACCOUNT, name, "key", APPROVER, "late")).outcome == "DONE"
    await adds_up(books)


async def test_it_ends_even_where_the_server_kept_the_pointer_to_it(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books, ttl_s=0.2)
    pointer = f"{BASE}:override:{(await proposal_of(books, name)).payload['fingerprint']}"
    assert await books.ledger._direct("PERSIST", pointer) == 1
    while await status_of(books, name) == "APPLIED":
        await asyncio.sleep(0.01)
    assert (await books.reserve(order("o-1"))).kind == "DENIED"


async def test_a_proposal_after_its_time_cannot_be_approved(books: Books) -> None:
    await books.open(limits=SMALL)
    proposal = await proposed(books, ttl_s=0)
    while await status_of(books, proposal.id) == "PENDING":
        pass
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "EXPIRED"
    assert (await books.reserve(order("o-1"))).kind == "DENIED"


@pytest.mark.parametrize("when", ["before the approval", "after it"])
async def test_a_refused_override_lets_nothing_through(books: Books, when: str) -> None:
    await books.open(limits=SMALL)
    proposal = await proposed(books)
    if when == "after it":
        assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "APPLIED"
    assert (await books.ledger.refuse(ACCOUNT, proposal.id, "key", ASKER, "no longer")).outcome == "REFUSED"
    assert await status_of(books, proposal.id) == "REFUSED"
    assert await approved(books.ledger, ACCOUNT, proposal.id, APPROVER) == "DONE"
    assert (await books.reserve(order("o-1"))).kind == "DENIED"
    await adds_up(books)


async def test_what_was_used_can_be_neither_refused_nor_approved(books: Books) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    await books.reserve(order("o-1"))
    before = await books.keys()
    assert (await books.ledger.refuse(ACCOUNT, name, "key", APPROVER, "no")).outcome == "DONE"
    assert await approved(books.ledger, ACCOUNT, name, APPROVER) == "DONE"
    assert await books.keys() == before


# -- what cannot be asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accepted", [True, False])
async def test_an_id_that_is_known_cannot_be_overridden(books: Books, accepted: bool) -> None:
    await books.open(limits={} if accepted else SMALL)
    assert (await books.reserve(order("o-1"))).accepted is accepted
    before = await books.keys()
    with pytest.raises(OrderKnown, match="o-1"):
        await proposed(books)
    assert await books.keys() == before


async def test_nobody_cannot_ask(books: Books) -> None:
    await books.open(limits=SMALL)
    before = await books.keys()
    with pytest.raises(LedgerError, match="person"):
        await books.ledger.propose_override(order("o-1"), BTC, KEY, "", "why")
    assert await books.keys() == before


DAMAGES: list[tuple[str, ...]] = [
    ("HSET", "approvals", "{id}", "no proposal"),
    ("HSET", "approvals", "{id}", "[1]"),
    ("HSET", "approvals", "{id}", '{"kind":"OVERRIDE","status":"APPLIED","id":"{id}"}'),
    ("HDEL", "approvals", "{id}"),
    ("SET", "approvals", "no hash"),
    ("LPUSH", "override:{fingerprint}", "no text"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=" ".join)
async def test_a_damaged_override_is_none_and_keeps_no_order_from_its_denial(
    books: Books, damage: tuple[str, ...]
) -> None:
    await books.open(limits=SMALL)
    name = await allowed(books)
    fingerprint = (await proposal_of(books, name)).payload["fingerprint"]
    verb, key, *rest = (part.replace("{id}", name).replace("{fingerprint}", fingerprint) for part in damage)
    if verb in {"LPUSH", "SET"}:
        await books.ledger._direct("DEL", f"{BASE}:{key}")
    await books.ledger._direct(verb, f"{BASE}:{key}", *rest)
    assert await books.codes("o-1") == {("NOTIONAL_EXCEEDS_MAX", "account")}


async def test_it_changes_no_limit_and_no_state(books: Books) -> None:
    await books.open(limits=SMALL)
    before = await books.ledger.snapshot(ACCOUNT)
    await allowed(books)
    await books.reserve(order("o-1"))
    after = await books.ledger.snapshot(ACCOUNT)
    assert (after.limits, after.state, after.desk_limits) == (before.limits, before.state, before.desk_limits)
