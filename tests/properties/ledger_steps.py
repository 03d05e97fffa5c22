"""Everything that can happen to a desk, as steps of a ``LedgerPair`` that draw what they do from a ``Chance``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from strategies.model import OrderStatus, OrderType, Side, TimeInForce, TradingState
from tests.books import STRATEGIES, limit_records
from tests.properties.ledger_model import SCALES, Held, Quote
from tests.properties.ledger_pair import ACCOUNTS, ANN, BOB, BOOKS, FOUND, SCOPES, VALUES, Chance, LedgerPair
from tests.properties.ledger_rules import Asked, Row, rows

Step = Callable[[LedgerPair, Chance], None]
ENDINGS: Final = [OrderStatus.CANCELLED, OrderStatus.REJECTED, OrderStatus.EXPIRED]
NAMES: Final = [*ACCOUNTS, "main"]


# By name: of a scope to be drawn; by "scope|name": of that one.
THEMES: Final[list[dict[str, str]]] = [
    {"order_interval_us": "3600000000", "order_burst": "2"},
    {"order_interval_us": "20000", "order_burst": "1"},
    {"order_interval_us": "9000", "order_burst": "2"},
    {"account|order_interval_us": "3600000000", "account|order_burst": "3"},
    {"account|order_interval_us": "20000", "account|order_burst": "1"},
    {"account|message_interval_us": "3600000000", "account|message_burst": "5", "account|cancel_reserve": "2"},
    {"account|message_interval_us": "15000", "account|message_burst": "2", "account|cancel_reserve": "1"},
    {"account|max_rejects": "1", "strategy|manual|max_rejects": "0"},
    {"account|max_venue_errors": "2"},
    {"account|self_trade": "deny", "account|duplicate_window_ms": "3600000"},
    {"max_loss_streak": "1"},
    {"max_loss_streak": "2"},
    {"max_drawdown_ppm": "10000", "capital": "1000000"},
    {"max_daily_loss": "50000:20000"},
    {"strategy|manual|max_repeats": "2", "strategy|manual|repeat_window_ms": "60000"},
    {"strategy|other|max_repeats": "1", "strategy|other|repeat_window_ms": "25"},
    {"product|BTC-USD|volatility_ppm": "5000", "product|BTC-USD|volatility_halt_ms": "3600000"},
    {"product|XRP-USD|volatility_ppm": "5000", "product|XRP-USD|volatility_halt_ms": "40"},
    {"product|XRP-USD|volatility_ppm": "5000", "product|XRP-USD|volatility_window_ms": "30"},
    {"product|BTC-USD|max_depth_ppm": "500000"},
    {"strategy|other|short": "denied"},
    {"hours": "0-5040"},
    {"fat_finger_ppm": "1500000:1000000"},
    {"account|max_order_to_trade": "3:2"},
    {"max_concentration_ppm": "100000", "max_leverage_ppm": "800000:400000"},
    {"account|reference_halt_ms": "30"},
    {"account|reference_stale_ms": "30"},
]


# -- orders ------------------------------------------------------------------------------------------------------------


def reserve(pair: LedgerPair, chance: Chance) -> None:
    """Any order."""
    name = chance.pick(NAMES)
    pair.reserve(name, *pair.order(chance, name))


def reserve_several(pair: LedgerPair, chance: Chance) -> None:
    """One order after the other."""
    for _ in range(chance.between(2, 4)):
        reserve(pair, chance)


def reserve_what_should_pass(pair: LedgerPair, chance: Chance) -> None:
    """A small order after whatever may be resumed is resumed."""
    pair.resume_all()
    name = chance.pick(NAMES)
    asked, by = pair.order(chance, name)
    if asked.limit_price is None or asked.side is Side.SELL:
        asked = replace(asked, quantity=asked.quantity / pair.units(asked).lots)
    pair.reserve(name, replace(asked, reduce_only=False, strategy_version="v1"), by)


def reserve_at_a_limit(pair: LedgerPair, chance: Chance) -> None:
    """Set one limit to just what the next order makes of it, or one unit less, or warn there; then ask for it."""
    pair.resume_all()
    name = chance.pick(NAMES)
    account = pair.accounts[name]
    asked, by = pair.order(chance, name)
    pair.look_at_the_clock()
    compared = rows(Asked(account, asked, *pair.units(asked), by))
    _at_a_limit(pair, chance, name, compared, lambda: {rule[:2] for rule in pair.reserve(name, asked, by).denials})


def amend_at_a_limit(pair: LedgerPair, chance: Chance) -> None:
    """The same for an order that is to be another one: what it holds so far makes room."""
    pair.resume_all()
    name, order_id = _amendable(pair, chance)
    if order_id is None:
        return
    account, held = pair.accounts[name], pair.accounts[name].orders[order_id]
    lots, ticks = held.filled + chance.between(1, 30), chance.pick([10_003, 9_957, 10_507, 9_503])
    lots += (lots, ticks) == (held.lots, held.ticks)
    wanted = pair.wanted(name, order_id, lots, ticks)
    pair.look_at_the_clock()
    with account.without(held):
        compared = rows(Asked(account, wanted, *pair.units(wanted), held.by, held))
    _at_a_limit(pair, chance, name, compared, lambda: pair.amend(name, order_id, lots, ticks))


def _at_a_limit(
    pair: LedgerPair, chance: Chance, name: str, compared: list[Row], ask: Callable[[], set[tuple[str, str]]]
) -> None:
    """Set the limit of one of the figures compared, ask, and set it back."""
    account = pair.accounts[name]
    compared = [row for row in compared if row.scope != f"strategy|{FOUND}"]
    # First the rule, then where: a rule of one scope is as likely as one that every scope has.
    code = chance.pick(sorted({row.code for row in compared}))
    row = chance.pick([row for row in compared if row.code == code])
    scope = "key|*" if row.scope.startswith("key|") and row.scope not in account.limits else row.scope
    kind = chance.pick(["at the limit", "over it", "over the soft level"])
    value = max(row.value, 0)
    text = {
        "at the limit": f"{value}",
        "over it": f"{max(value - 1, 0)}",
        "over the soft level": f"{value}:{value - 1}",
    }
    if kind == "over the soft level" and value < 1:
        return
    holder = None if scope == "global" else name
    before = pair.holder(holder).limits[scope]
    pair.limit(holder, {f"{scope}|{row.name}": text[kind]})
    broken = ask()
    # A price that has become too old meanwhile is compared with nothing.
    if kind == "over it" and row.value > 0 and not any(code == "STALE_REFERENCE" for code, _ in broken):
        assert (row.code, row.scope) in broken, f"{row} passed one unit over\n{pair.told()}"
    pair.met(f"{kind} {row.code}")
    pair.restore(holder, scope, before)


def lose_to_a_limit(pair: LedgerPair, chance: Chance) -> None:
    """Set a limit of loss to just what the next prices make of it, or one unit more; then let them come."""
    pair.resume_all()
    name = chance.pick(NAMES)
    product, bid = chance.pick(list(SCALES)), chance.pick([9_000, 11_000, chance.between(7_000, 13_000)])
    quotes = {product: Quote(bid, bid + 20)}
    pair.look_at_the_clock()
    desk = copy.deepcopy(pair.desk)
    desk.accounts[name].quote(quotes)
    holders = sorted({strategy for strategy, held in pair.accounts[name].holders if held == product} - {FOUND})
    account_scope = chance.pick(["account", f"product|{product}", *(f"strategy|{s}" for s in holders)])
    scope = chance.pick([account_scope, account_scope, "global"])
    lost = (desk if scope == "global" else desk.accounts[name]).losses(scope)
    holder = None if scope == "global" else name
    before = pair.holder(holder).limits[scope]
    kind = chance.pick(["reached", "not yet", "soft level reached"])
    if lost.loss > 0 and pair.holder(holder).states[scope] == "ACTIVE":
        text = {
            "reached": f"{lost.loss}",
            "not yet": f"{lost.loss + 1}",
            "soft level reached": f"unlimited:{lost.loss}",
        }
        pair.limit(holder, {f"{scope}|max_daily_loss": text[kind]})
        pair.quote(name, {product: (bid, bid + 20, None)})
        cause = pair.holder(holder).causes.get(scope, "")
        assert kind == "soft level reached" or (cause == "DAILY_LOSS") == (kind == "reached"), pair.told()
        pair.met(f"DAILY_LOSS {kind}")
        pair.restore(holder, scope, before)


def check(pair: LedgerPair, chance: Chance) -> None:
    """Any order, without reserving."""
    name = chance.pick(NAMES)
    pair.check(name, *pair.order(chance, name))


def ask_again(pair: LedgerPair, chance: Chance) -> None:
    """An id that is known, with the same order and with another."""
    name, order_id = _any_order(pair, chance, lambda held: True)
    if order_id:
        pair.ask_again(name, order_id)
        pair.ask_for_another(name, order_id)


def touch_what_was_denied(pair: LedgerPair, chance: Chance) -> None:
    """A denied order goes nowhere."""
    name, order_id = _any_order(pair, chance, lambda held: held.status == "DENIED")
    if order_id:
        pair.ask_again(name, order_id)
        pair.send(name, order_id)
        pair.acknowledge(name, order_id, OrderStatus.OPEN)
        assert pair.fill(name, order_id, "t-denied", 1, 10_000, 1) == ("NOT_FOUND", "")
        pair.release(name, order_id, OrderStatus.CANCELLED)
        pair.cancel(name, order_id)
        pair.amend(name, order_id, 3, 9_957)
        pair.settle_amend(name, order_id, chance.pick([True, False]))


# -- amendments --------------------------------------------------------------------------------------------------------


def amend(pair: LedgerPair, chance: Chance) -> None:
    """Another size and price for an order: more or less, one that is filled already, or the same; of any kind."""
    name, order_id = chance.pick([_amendable, _amendable, _known])(pair, chance)
    if order_id:
        _amend(pair, chance, name, order_id)


def amend_twice(pair: LedgerPair, chance: Chance) -> None:
    """An amendment while another one is on its way, perhaps the same."""
    name, order_id = _amendable(pair, chance)
    if order_id:
        _amend(pair, chance, name, order_id)
        _amend(pair, chance, name, order_id)
        to = pair.accounts[name].orders[order_id].amend
        if to is not None:
            pair.amend(name, order_id, to.lots, to.ticks)


def settle_amend(pair: LedgerPair, chance: Chance) -> None:
    """The venue answers an amendment, perhaps one it has answered, or that was never asked for."""
    name, order_id = _any_order(pair, chance, lambda held: held.open and held.amend is not None)
    if not order_id:
        name, order_id = _amendable(pair, chance)
        if order_id:
            _amend(pair, chance, name, order_id)
            pair.compare()
    if chance.pick([False, False, False, True]):
        name, order_id = _known(pair, chance)
    if order_id:
        for amended in chance.pick([[True], [False], [True], [False], [True, False]]):
            pair.settle_amend(name, order_id, amended)


def fill_what_is_amended(pair: LedgerPair, chance: Chance) -> None:
    """Fills come between the question and its answer: up to the smaller size, or between the two, or all of it."""
    name, order_id = _amendable(pair, chance)
    if order_id is None:
        return
    held = pair.accounts[name].orders[order_id]
    _amend(pair, chance, name, order_id)
    pair.compare()
    for _ in range(chance.between(1, 2)):
        sizes = [held.lots, held.amend.lots if held.amend else held.lots]
        most = chance.pick([min(sizes), max(sizes) - 1, min(sizes) - 1, max(sizes)]) - held.filled
        if held.open and most > 0:
            _fill(pair, chance, name, order_id, most)
            pair.compare()
    if chance.pick([False, False, True]):
        pair.release(name, order_id, chance.pick(ENDINGS))
    pair.settle_amend(name, order_id, chance.pick([True, False]))
    pair.compare()
    if chance.pick([True, False]):
        _fill(pair, chance, name, order_id, held.left or 1)


def exit_that_is_amended(pair: LedgerPair, chance: Chance) -> None:
    """A sell that ends with its amendment, at what was filled meanwhile; then the venue tells of another fill."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    strategy = chance.pick(list(STRATEGIES))
    pair.resume_all()
    for side, lots in ((Side.BUY, 6), (Side.SELL, 2)):
        asked = pair.asked(name, side, 6, 10_003, product, strategy)
        if pair.reserve(name, asked).denials:
            return
        pair.send(name, asked.client_order_id)
        _fill(pair, chance, name, asked.client_order_id, lots)
    pair.amend(name, asked.client_order_id, chance.pick([4, 3, 9]), 10_003)
    # At a profit or a loss, before the end and after it: each exit counts once.
    for lots in (2, 1):
        pair.number += 1
        pair.fill(name, asked.client_order_id, f"t-{pair.number}", lots, chance.pick([3_001, 20_001, 6_001]), 0)
        pair.settle_amend(name, asked.client_order_id, chance.pick([True, True, False]))
        pair.compare()


# -- execution ---------------------------------------------------------------------------------------------------------


def send(pair: LedgerPair, chance: Chance) -> None:
    """An order goes to the venue; perhaps one that has gone, or has ended."""
    name, order_id = _known(pair, chance)
    if order_id:
        pair.send(name, order_id)


def acknowledge(pair: LedgerPair, chance: Chance) -> None:
    """The venue has it, or did not answer."""
    name, order_id = _known(pair, chance)
    if order_id:
        pair.acknowledge(name, order_id, chance.pick([OrderStatus.OPEN, OrderStatus.UNKNOWN]))


def fill(pair: LedgerPair, chance: Chance) -> None:
    """A fill: in part, late, too large."""
    name, order_id = _known(pair, chance)
    if order_id:
        held = pair.accounts[name].orders[order_id]
        part = min(chance.between(1, 8) * chance.pick([1, 1, 40]), held.left or 1)
        _fill(pair, chance, name, order_id, chance.pick([part] * 9 + [held.lots + 1]))


def fill_the_rest(pair: LedgerPair, chance: Chance) -> None:
    """A fill that ends the order."""
    name, order_id = _any_order(pair, chance, lambda held: held.open)
    if order_id:
        _fill(pair, chance, name, order_id, pair.accounts[name].orders[order_id].left)


def fill_again(pair: LedgerPair, chance: Chance) -> None:
    """A fill that was booked."""
    if pair.trades:
        assert pair.fill(*chance.pick(pair.trades[-8:]))[0] == "DUPLICATE"


def release(pair: LedgerPair, chance: Chance) -> None:
    """The venue, or nobody, ends an order."""
    name, order_id = _known(pair, chance)
    if order_id:
        pair.release(name, order_id, chance.pick(ENDINGS))


def cancel(pair: LedgerPair, chance: Chance) -> None:
    """Its owner wants to end it: before it was sent or after, once or twice."""
    name, order_id = chance.pick([_known, _unsent])(pair, chance)
    if order_id:
        if chance.pick([True, False]):
            pair.send(name, order_id)
        for _ in range(chance.pick([1, 1, 2])):
            pair.cancel(name, order_id)
        if chance.pick([True, False]):
            _amend(pair, chance, name, order_id)


def ask_twice(pair: LedgerPair, chance: Chance) -> None:
    """The same order with another id, and one the other way at the same price."""
    name = chance.pick(NAMES)
    asked, by = pair.order(chance, name)
    other = Side.SELL if asked.side is Side.BUY else Side.BUY
    for number, side in enumerate((asked.side, asked.side, other)):
        pair.reserve(name, replace(asked, client_order_id=f"{asked.client_order_id}-{number}", side=side), by)


def venue_rejects(pair: LedgerPair, chance: Chance) -> None:
    """The venue refuses order after order."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    for _ in range(2):
        asked = pair.asked(name, Side.BUY, 1, 10_003, product, chance.pick(list(STRATEGIES)))
        if not pair.reserve(name, asked).denials:
            pair.send(name, asked.client_order_id)
            pair.release(name, asked.client_order_id, OrderStatus.REJECTED)


def flood_with_cancels(pair: LedgerPair, chance: Chance) -> None:
    """More messages than their budget: cancels are never refused, orders then are."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    before = pair.accounts[name].limits["account"]
    pair.limit(name, {"account|message_interval_us": "3600000000", "account|message_burst": "3"})
    for order_id in [held.order.client_order_id for held in pair.accounts[name].open_in("a")]:
        pair.send(name, order_id)
        pair.cancel(name, order_id)
    pair.reserve(name, pair.asked(name, Side.BUY, 1, 10_003, product))
    pair.restore(name, "account", before)


def outgrow_the_usual(pair: LedgerPair, chance: Chance) -> None:
    """Small orders, one after the other, then one that is much larger."""
    pair.resume_all()
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    before = pair.accounts[name].limits[f"product|{product}"]
    pair.limit(name, {f"product|{product}|fat_finger_ppm": "1500000"})
    for lots in [2] * chance.between(3, 6) + [chance.pick([9, 4_000])]:
        pair.reserve(name, pair.asked(name, Side.BUY, lots, 10_003, product))
    pair.restore(name, f"product|{product}", before)


def trade_there_and_back(pair: LedgerPair, chance: Chance) -> None:
    """A strategy buys and sells what it has bought: at a profit or a loss."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    strategy, lots = chance.pick(list(STRATEGIES)), chance.between(1, 8)
    for side in (Side.BUY, Side.SELL):
        asked = pair.asked(name, side, lots, 10_003, product, strategy)
        if not pair.reserve(name, asked).denials:
            pair.send(name, asked.client_order_id)
            _fill(pair, chance, name, asked.client_order_id, lots)


def exit_that_ends_late(pair: LedgerPair, chance: Chance) -> None:
    """A sell that is filled in part and cancelled, and then the venue tells of another fill."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    strategy = chance.pick(list(STRATEGIES))
    for side, lots in ((Side.BUY, 4), (Side.SELL, 4)):
        asked = pair.asked(name, side, lots, 10_003, product, strategy)
        if pair.reserve(name, asked).denials:
            return
        pair.send(name, asked.client_order_id)
        _fill(pair, chance, name, asked.client_order_id, lots if side is Side.BUY else 2)
    pair.release(name, asked.client_order_id, chance.pick(ENDINGS))
    pair.compare()
    _fill(pair, chance, name, asked.client_order_id, 2)


def adopt(pair: LedgerPair, chance: Chance) -> None:
    """An order is found at the venue: one nobody knows, or that was denied here; then the same one again."""
    name = chance.pick(NAMES)
    found, _ = pair.order(chance, name)
    found = replace(found, strategy=chance.pick([FOUND, FOUND, "manual"]), strategy_version="", reduce_only=False)
    _, denied = _any_order(pair, chance, lambda held: held.status == "DENIED" and held.order.account == name)
    if denied and denied in pair.accounts[name].orders and chance.pick([True, False]):
        found = replace(found, client_order_id=denied)
    pair.adopt(name, found)
    if chance.pick([False, True]):
        pair.adopt(name, found)
    if chance.pick([False, True]):
        _fill(pair, chance, name, found.client_order_id, pair.units(found).lots)


def adopt_what_is_known(pair: LedgerPair, chance: Chance) -> None:
    """The venue has an order the ledger has too: nothing is new, also where that one has ended."""
    name, order_id = _any_order(pair, chance, lambda held: held.status != "DENIED")
    if order_id:
        assert not pair.adopt(name, pair.accounts[name].orders[order_id].order)


def trade_with_triggers(pair: LedgerPair, chance: Chance) -> None:
    """Stops and brackets at the touch and one tick beside it, and at a limit up to the collar from the trigger."""
    pair.resume_all()
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    quote, units = pair.accounts[name].quotes[product], pair.of(product)
    before = pair.accounts[name].limits[f"product|{product}"]
    pair.limit(name, {f"product|{product}|collar_ppm": chance.pick(["unlimited", "30000", "9000:1000"])})
    for _ in range(chance.between(1, 3)):
        side = chance.pick(list(Side))
        touch = quote.ask if side is Side.BUY else quote.bid
        stop = max(touch + chance.pick([1, 0, -1, 7, -7, 300, -300]), 1)
        limit = max(stop + chance.pick([0, 1, -1, 50, -450, 450]), 1)
        asked = pair.asked(name, side, chance.between(1, 9), limit, product)
        kind = chance.pick([OrderType.STOP_LIMIT, OrderType.BRACKET])
        pair.reserve(name, replace(asked, type=kind, stop_price=units.price(stop)))
    pair.restore(name, f"product|{product}", before)


def finish_outbox(pair: LedgerPair, chance: Chance) -> None:
    """Execution is done with what it was given."""
    pair.finish_outbox(chance.pick(NAMES))


def take_over(pair: LedgerPair, chance: Chance) -> None:
    """Another execution."""
    pair.take_over(chance.pick(NAMES))


def venue_errors(pair: LedgerPair, chance: Chance) -> None:
    """The venue fails."""
    pair.venue_errors(chance.pick(NAMES), chance.pick([1, 0, 2, 5]))


def recon_break(pair: LedgerPair, chance: Chance) -> None:
    """Books and venue differ: all stands still until two people resume it, which nothing holds them from."""
    name = chance.pick(NAMES)
    for _ in range(chance.pick([1, 2])):
        pair.recon_break(name)
    pair.emptied(name, chance.pick(SCOPES))
    if chance.pick([True, False]):
        pair.resume_all()


def watch(pair: LedgerPair, chance: Chance) -> None:
    """Somebody looks how old the prices are."""
    pair.watch(chance.pick(NAMES))


# -- the account -------------------------------------------------------------------------------------------------------


def quote(pair: LedgerPair, chance: Chance) -> None:
    """Prices go up and down; sometimes they lock or cross."""
    quotes = {}
    for product in chance.pick([["BTC-USD"], ["XRP-USD"], ["BTC-USD", "XRP-USD"]]):
        bid = chance.pick([9_900, 10_000, 9_990, chance.between(9_700, 10_300), chance.between(7_000, 13_000)])
        spread = chance.pick([20, 200, 1, 2] * 4 + [0, -5])
        quotes[product] = (bid, bid + spread, chance.pick([None, (6, 6), (50, 9), (0, 3)]))
    pair.quote(chance.pick(NAMES), quotes)


def tighten(pair: LedgerPair, chance: Chance) -> None:
    """A person halts something, or would like to loosen it this way."""
    name = chance.pick([*BOOKS, *ACCOUNTS])
    states = [TradingState.REDUCING, TradingState.ACTIVE, TradingState.HALTED, TradingState.CANCEL_ALL]
    pair.tighten(name, "global" if name is None else chance.pick(SCOPES), chance.pick(states))


def spoil_the_book(pair: LedgerPair, chance: Chance) -> None:
    """Books that do not add up: no two people resume, whatever else somebody halts, until they do."""
    name = chance.pick(NAMES)
    pair.spoil_the_book(name, 1)
    if chance.pick([True, False]):
        pair.tighten(name, "account", TradingState.CANCEL_ALL)
    proposal_id = pair.propose_resume(name, "account", ANN)
    assert pair.approve(name, proposal_id, BOB) == "STILL_BREACHED", pair.told()
    pair.met("latched INVARIANT")
    pair.spoil_the_book(name, -1)
    pair.approve(name, proposal_id, BOB)


def adjust(pair: LedgerPair, chance: Chance) -> None:
    """Cash and positions come or go without an order: two people say so, at once or later; some are turned round."""
    name, person = chance.pick(NAMES), chance.pick([ANN, BOB])
    cash = chance.pick([0, 777_777, -777_777, chance.between(-2_000_000, 2_000_000)])
    positions = {}
    for product in chance.pick([[], ["BTC-USD"], ["XRP-USD"], ["BTC-USD", "XRP-USD"]]):
        held = pair.accounts[name].products[product].lots
        lots = chance.pick([chance.between(1, 30), chance.between(-9, -1), 7 - held, -held - 3, -held or 5])
        if lots:
            positions[product] = (lots, lots * chance.pick([0, 99_999, 1_001]))
    proposal_id = pair.propose_adjust(name, cash, positions, person)
    if chance.pick([True, True, True, False]):
        pair.approve(name, proposal_id, person)
        pair.approve(name, proposal_id, BOB if person == ANN else ANN)


def adjust_a_short(pair: LedgerPair, chance: Chance) -> None:
    """Of a position that is owed a part comes back, with a part of its cost that is no whole number."""
    name, product = chance.pick(NAMES), chance.pick(list(SCALES))
    lots = -pair.accounts[name].products[product].lots
    for moved, cost in ((lots, 0), (-7, -chance.between(100, 99_999)), (chance.between(1, 6), 5), (lots and 9, 1_001)):
        if moved:
            proposal_id = pair.propose_adjust(name, 0, {product: (moved, cost)}, ANN)
            pair.approve(name, proposal_id, BOB)
            pair.compare()


def environment(pair: LedgerPair, chance: Chance) -> None:
    """Somebody says what the books are of: once for all."""
    for _ in range(chance.pick([1, 2])):
        pair.bind_environment(chance.pick(["live", "live", "paper", "sandbox"]))
    reserve(pair, chance)
    amend(pair, chance)


def arm(pair: LedgerPair, chance: Chance) -> None:
    """Real orders may pass for an hour or for a moment, or not any more; orders come, and what was accepted goes."""
    if chance.pick([True, True, False]):
        pair.arm(chance.pick([3_600_000, 20]))
    else:
        pair.disarm()
    reserve(pair, chance)
    amend(pair, chance)
    cancel(pair, chance)


def resume_all(pair: LedgerPair, _: Chance) -> None:
    """Two people resume what may be resumed."""
    pair.resume_all()


def propose_resume(pair: LedgerPair, chance: Chance) -> None:
    """One person would like to resume; the other one is asked later, or too late."""
    name = chance.pick(list(BOOKS))
    scope, person = "global" if name is None else chance.pick(SCOPES), chance.pick([ANN, BOB])
    if chance.pick([False, False, False, True]) and not pair.holder(name).waits(
        "RESUME", pair.holder(name).halt_of(scope), person
    ):
        proposal_id = pair.propose_resume(name, scope, person, ttl_s=0.001)
        pair.let_expire(name, proposal_id)
        assert pair.approve(name, proposal_id, BOB if person == ANN else ANN) == "EXPIRED"
    else:
        proposal_id = pair.propose_resume(name, scope, person)
        # The same person says yes, and another one to something else than what is asked: neither counts.
        for approver, right in chance.pick([[], [(person, True), (BOB if person == ANN else ANN, False)]]):
            pair.approve(name, proposal_id, approver, right)


def decide_on_a_proposal(pair: LedgerPair, chance: Chance) -> None:
    """A person says yes or no to something; perhaps to nothing, to what it was not, or to an own wish."""
    name = chance.pick(list(BOOKS))
    proposals = pair.holder(name).proposals
    waiting = [proposal_id for proposal_id, proposal in proposals.items() if proposal.status == "PENDING"]
    proposal_id = chance.pick([*waiting[-3:], *[*proposals][-2:], "999"])
    if chance.pick([True, True, True, False]):
        pair.approve(name, proposal_id, chance.pick([BOB, ANN]), right=chance.pick([True, True, True, False]))
    else:
        pair.refuse(name, proposal_id)


def limit(pair: LedgerPair, chance: Chance) -> None:
    """Some limits change: what is stricter at once, what is looser with a second person."""
    name = chance.pick([*BOOKS, *ACCOUNTS])
    fields = _fields(pair, name)
    # First the limit, then where: a name that stands in one scope only is as likely as one that stands in all.
    names = chance.some(sorted({field.rpartition("|")[2] for field in fields}))
    chosen = [chance.pick([field for field in fields if field.endswith(f"|{limit}")]) for limit in names]
    changed = {field: chance.pick(VALUES[field.rpartition("|")[2]]) for field in chosen}
    pair.limit(name, changed, approved=chance.pick([True, True, True, False]))


def limit_together(pair: LedgerPair, chance: Chance) -> None:
    """Limits that only mean something together, or that only a few orders in a row will meet."""
    set_theme(pair, chance, chance.pick(THEMES))


def set_theme(pair: LedgerPair, chance: Chance, theme: dict[str, str]) -> None:
    """Set these limits wherever they stand, those without a scope in one that is drawn."""
    for name in BOOKS:
        fields = _fields(pair, name)
        changed = {field: theme[field] for field in fields if field in theme}
        by_name = {limit: text for limit, text in theme.items() if "|" not in limit}
        scopes = sorted({field.rpartition("|")[0] for field in fields if field.rpartition("|")[2] in by_name})
        if scopes:
            scope = chance.pick(scopes)
            changed |= {f"{scope}|{n}": text for n, text in by_name.items() if f"{scope}|{n}" in fields}
        if changed:
            pair.limit(name, changed)


def unlimit(pair: LedgerPair, chance: Chance) -> None:
    """Back to the limits of the beginning, so that orders pass again."""
    for name in BOOKS:
        pair.restore_all(name)


def limit_key(pair: LedgerPair, chance: Chance) -> None:
    """A key gets limits of its own, or has those of all keys again."""
    (_, records), text = limit_records(), chance.pick([None, "max_open_orders=2", "max_open_orders=1:0"])
    record = None if text is None else records["key|*"].replace("max_open_orders=unlimited", text)
    pair.limit_key(chance.pick(NAMES), "alice", record)


def let_time_pass(pair: LedgerPair, chance: Chance) -> None:
    """Half a week, a day; sometimes only where one zone changes its clocks and another one does not."""
    pair.let_time_pass(chance.pick([86_400, 302_400]), chance.pick([BOOKS, BOOKS, (None,), ("main",)]))


def crash(pair: LedgerPair, _: Chance) -> None:
    """The server dies and comes back."""
    pair.crash()


STEPS: Final[dict[Step, int]] = {
    reserve: 5,
    reserve_several: 3,
    reserve_what_should_pass: 4,
    reserve_at_a_limit: 6,
    lose_to_a_limit: 2,
    amend_at_a_limit: 5,
    amend: 3,
    amend_twice: 2,
    settle_amend: 4,
    fill_what_is_amended: 4,
    exit_that_is_amended: 2,
    trade_with_triggers: 2,
    adopt: 2,
    adopt_what_is_known: 1,
    check: 2,
    ask_again: 1,
    touch_what_was_denied: 1,
    send: 3,
    acknowledge: 2,
    fill: 4,
    fill_the_rest: 3,
    fill_again: 2,
    release: 3,
    cancel: 3,
    ask_twice: 2,
    venue_rejects: 2,
    flood_with_cancels: 1,
    outgrow_the_usual: 2,
    trade_there_and_back: 4,
    exit_that_ends_late: 1,
    finish_outbox: 1,
    take_over: 1,
    venue_errors: 2,
    recon_break: 2,
    adjust: 2,
    adjust_a_short: 1,
    environment: 2,
    arm: 1,
    watch: 1,
    quote: 5,
    tighten: 4,
    spoil_the_book: 1,
    resume_all: 1,
    propose_resume: 1,
    decide_on_a_proposal: 4,
    limit: 4,
    limit_together: 4,
    unlimit: 1,
    limit_key: 1,
    let_time_pass: 1,
    crash: 1,
}
"""Every step, and how often it comes in a walk."""


def _known(pair: LedgerPair, chance: Chance) -> tuple[str, str | None]:
    """An order that was accepted; often one that is still open."""
    only_open = chance.pick([True, True, False])
    return _any_order(pair, chance, lambda held: held.lots > 0 and (held.open or not only_open))


def _unsent(pair: LedgerPair, chance: Chance) -> tuple[str, str | None]:
    """An order that is still here."""
    return _any_order(pair, chance, lambda held: held.status == "RESERVED")


def _amendable(pair: LedgerPair, chance: Chance) -> tuple[str, str | None]:
    """An order the venue may be asked to amend, brought there where it is not yet."""
    name, order_id = _any_order(
        pair,
        chance,
        lambda held: (
            held.open
            and (held.order.type, held.order.time_in_force) == (OrderType.LIMIT, TimeInForce.GTC)
            and not held.cancel_asked
            and held.amend is None
        ),
    )
    if order_id is None:
        pair.resume_all()
        side, ticks = chance.pick([(Side.BUY, 9_957), (Side.SELL, 10_051), (Side.BUY, 10_003)])
        asked = pair.asked(name, side, chance.between(1, 9), ticks, chance.pick(list(SCALES)))
        order_id = None if pair.reserve(name, asked).denials else asked.client_order_id
    if order_id and pair.accounts[name].orders[order_id].status in {"RESERVED", "SENT", "UNKNOWN"}:
        pair.send(name, order_id)
        pair.acknowledge(name, order_id, OrderStatus.OPEN)
    return name, order_id


def _amend(pair: LedgerPair, chance: Chance, name: str, order_id: str) -> None:
    held = pair.accounts[name].orders[order_id]
    least = max(held.filled, 1)
    lots = chance.pick([held.lots, least, least + 1, held.lots + 1, chance.between(1, 40), held.lots * 2])
    ticks = chance.pick([held.ticks or 10_003, 10_003, 9_957, 9_503, 10_507, 10_051])
    pair.amend(name, order_id, lots, ticks)


def _any_order(pair: LedgerPair, chance: Chance, wanted: Callable[[Held], bool]) -> tuple[str, str | None]:
    """(account, id) of one of the latest orders like that, None where there is none."""
    name = chance.pick(NAMES)
    ids = [order_id for order_id, held in pair.accounts[name].orders.items() if wanted(held)]
    return name, chance.pick(ids[-8:][::-1]) if ids else None


def _fill(pair: LedgerPair, chance: Chance, name: str, order_id: str, lots: int) -> None:
    pair.number += 1
    ticks = chance.pick([10_001, 9_507, 10_503, chance.between(8_000, 12_000)])
    pair.fill(name, order_id, f"t-{pair.number}", lots, ticks, chance.pick([0, 7, 600, -50]))


def _fields(pair: LedgerPair, name: str | None) -> list[str]:
    records = pair.holder(name).limits
    names = {s: [word.partition("=")[0] for word in text.split(" ")] for s, text in records.items() if s != "calendar"}
    return sorted(f"{scope}|{word}" for scope, words in names.items() for word in words)
