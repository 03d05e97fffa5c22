"""What must hold: while everything goes wrong (``checkpoint``), and when everything has settled (``final``)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from cluster.audit_chain import ChainCheck, Row, row_of
from cluster.exchange_orders import SimOrder, State
from cluster.ledger_replay import BrokenAudit, rebuild_desk
from strategies.model import TERMINAL, Product, micros_exact

if TYPE_CHECKING:
    from tests.simulation.world import World

DESK: Final = "tt:{desk}"
BASE: Final = f"{DESK}:main"
ENDINGS: Final = frozenset({"FILLED", "CANCELLED", "REJECTED", "EXPIRED"})
_NEVER_SENT: Final = frozenset({"RESERVED", "DENIED"})
_VENUE: Final = {State.FILLED: "FILLED", State.CANCELLED: "CANCELLED", State.EXPIRED: "EXPIRED"}


def checkpoint(world: World) -> Iterator[str]:
    """What holds at any moment."""
    if not world.server.up:
        return
    run = world.server.lua.run
    book = _mapped(run("HGETALL", f"{BASE}:book"))
    if "cash" not in book:
        return
    for base in (BASE, DESK):
        if differences := run("FCALL", "tt_prove", "1", base):
            yield f"{differences} figures of {base} do not add up"
    yield from _within_limits(world, book)
    yield from _once_at_the_venue(world)
    for order in world.venue.exchange.order_list:
        name = order.ticket.client_order_id
        fields = _mapped(run("HGETALL", f"{BASE}:order:{name}"))
        if name in world.strangers and not fields:
            continue
        if not fields or fields["status"] in _NEVER_SENT:
            yield f"{name} is at the venue, in the ledger it is {fields.get('status', 'unknown')}"
        elif int(fields["filled_lots"]) > _filled_lots(order):
            yield f"{name}: {fields['filled_lots']} lots are booked, the venue executed {_filled_lots(order)}"


def final(world: World) -> Iterator[str]:
    """What holds when nothing is under way any more."""
    yield from checkpoint(world)
    run = world.server.lua.run
    orders = {order.ticket.client_order_id: order for order in world.venue.exchange.order_list}
    for name, asked in world.asked.items():
        fields = _mapped(run("HGETALL", f"{BASE}:order:{name}"))
        yield from _answers_agree(name, asked.answers, fields)
        if fields and fields["status"] != "DENIED":
            late = name in world.venue.late
            yield from _order_agrees(name, fields, orders.get(name), asked.amended, late)
    opened_ns = _opened_ns(world)
    for name in world.strangers:
        fields = _mapped(run("HGETALL", f"{BASE}:order:{name}"))
        order = orders.get(name)
        if fields and order:
            yield from _order_agrees(name, fields, order, amended=False, late=False)
        elif order and (order.state is State.OPEN or any(fill.ts_ns > opened_ns for fill in order.fills)):
            yield f"{name} was placed by somebody else ({order.state}), the ledger does not know it"
    alerts = [_mapped(fields) for _, fields in run("XRANGE", f"{BASE}:alerts", "-", "+")]
    for name in world.overfilled:
        if not any(f" {name} " in alert["message"] for alert in alerts if alert["code"] == "OVERFILL"):
            yield f"{name} was filled beyond its size, and nothing was said of it"
    yield from _money_agrees(world)
    yield from _log_agrees(world)


def _within_limits(world: World, book: dict[str, str]) -> Iterator[str]:
    from tests.simulation.world import limits

    if world.strangers:
        # What somebody places at the venue itself is taken over as it is.
        return
    account = limits().accounts["main"]
    opened = int(book.get("a|open_orders", 0))
    if opened > int(account.max_open_orders.hard):
        yield f"{opened} orders are open, the limit is {account.max_open_orders.hard}"
    notional = int(book.get("a|buy_notional", 0)) + int(book.get("a|sell_notional", 0))
    if notional > int(account.max_open_notional.hard) * 1_000_000:
        yield f"open orders are worth {notional} micros, the limit is {account.max_open_notional.hard}"


def _once_at_the_venue(world: World) -> Iterator[str]:
    counted = Counter(order.ticket.client_order_id for order in world.venue.exchange.order_list)
    for name, count in counted.items():
        if count > 1:
            yield f"{name} is {count} orders at the venue"
        # The venue answers a repeat with the first order; the desk does not lean on that, but for a request that was
        # under way longer than any is believed to be.
        if world.venue.delivered[name] > 1 and name not in world.venue.late:
            yield f"{name} was placed {world.venue.delivered[name]} times"


def _answers_agree(name: str, answers: list[str], fields: dict[str, str]) -> Iterator[str]:
    """One id has one answer for ever; what passes by itself is none."""
    lasting = {answer for answer in answers if answer != "PASSING"}
    if len(lasting) > 1:
        yield f"{name} was answered {sorted(lasting)}"
    if "ACCEPTED" in lasting and (not fields or fields["status"] == "DENIED"):
        yield f"{name} was accepted and is {fields.get('status', 'gone')}"
    if "DENIED" in lasting and (not fields or fields["status"] != "DENIED"):
        yield f"{name} was denied and is {fields.get('status', 'gone')}"


def _order_agrees(
    name: str, fields: dict[str, str], order: SimOrder | None, amended: bool, late: bool
) -> Iterator[str]:
    """One order on both sides. ``late``: it came to the venue after it was given up; then only its fills count."""
    status = fields["status"]
    if status not in TERMINAL:
        yield f"{name} has not ended: {status}"
        return
    if order is None:
        if status not in {"CANCELLED", "REJECTED"} or fields["filled_lots"] != "0":
            yield f"{name} is {status} with {fields['filled_lots']} lots, the venue has no such order"
        return
    expected = _VENUE.get(order.state, str(order.state))
    # An amendment may end an order at what is filled of it already: less than the ledger had reserved.
    cut = amended and (status, expected) == ("CANCELLED", "FILLED")
    if status != expected and not cut and not (late and status == "REJECTED"):
        yield f"{name} is {status} in the ledger, {expected} at the venue"
    fills = {fill.trade_id: fill for fill in order.fills}.values()
    lots, product = sum(fill.lots for fill in fills), order.product
    value = sum(micros_exact(product.price(fill.ticks) * product.quantity(fill.lots)) for fill in fills)
    fees = sum(micros_exact(fill.fee) for fill in fills)
    booked = tuple(int(fields[key]) for key in ("filled_lots", "filled_value", "fees"))
    if booked != (lots, value, fees):
        yield f"{name}: booked (lots, value, fees) {booked}, executed {(lots, value, fees)}"
    reserved = [fields[key] for key in ("reserved_lots", "reserved_notional", "reserved_cash")]
    if reserved != ["0", "0", "0"]:
        yield f"{name} has ended and reserves {reserved}"


def _money_agrees(world: World) -> Iterator[str]:
    """Cash and positions, fill by fill and in all."""
    book = _mapped(world.server.lua.run("HGETALL", f"{BASE}:book"))
    if "cash" not in book:
        yield "the account was never opened"
        return
    exchange = world.venue.exchange
    opened_ns = _opened_ns(world)
    fills = {fill.trade_id: fill for fill in exchange.fills if fill.ts_ns > opened_ns}.values()
    moved = Decimal(0)
    exact = 0
    for fill in fills:
        product = _product(world, fill.product_id)
        value = product.price(fill.ticks) * product.quantity(fill.lots)
        sign = -1 if fill.side == "BUY" else 1
        moved += sign * value - fill.fee
        exact += sign * micros_exact(value) - micros_exact(fill.fee)
    # What came or went without an order is no fill: it is said, and the account waits for a person.
    deposited = sum((amount for at_ns, amount in world.deposited if at_ns > opened_ns), Decimal(0))
    if deposited and _mapped(world.server.lua.run("HGETALL", f"{BASE}:state"))["account"] != "HALTED":
        yield f"{deposited} came to the venue without an order, and the account is not halted"
    cash = exchange.accounts["USD"].total - deposited
    opening = micros_exact(cash - moved)
    if int(book["cash"]) != opening + exact:
        yield f"cash: {book['cash']} micros booked, {opening + exact} by the venue's fills"
    if abs(int(book["cash"]) - micros_exact(cash)) > 2 * len(fills):
        yield f"cash: {book['cash']} micros booked, {cash} at the venue without what was deposited"
    for currency, account in exchange.accounts.items():
        if currency == "USD":
            continue
        product = _product(world, f"{currency}-USD")
        lots = int(book.get(f"p|{currency}-USD|lots", 0))
        if product.quantity(lots) != account.total:
            yield f"{currency}: {product.quantity(lots)} booked, {account.total} at the venue"
        if account.hold:
            yield f"{currency}: the venue still holds {account.hold}"


def _opened_ns(world: World) -> int:
    """When the books began: what was filled before is in the opening positions."""
    return next((row.us * 1_000 for row in _rows(world, BASE) if row.kind == "OPENED"), 0)


def _log_agrees(world: World) -> Iterator[str]:
    """The audit log is whole, says every ending once, and leads to the state there is."""
    logs: dict[str | None, list[Row]] = {None: _rows(world, DESK), "main": _rows(world, BASE)}
    for account, rows in logs.items():
        check = ChainCheck()
        check.take_all(rows)
        for finding in check.finish():
            yield f"audit of {account or 'the desk'}: {finding}"
    ends = Counter(row.id for row in logs["main"] if row.kind in ENDINGS)
    for name, count in ends.items():
        if count > 1:
            yield f"{name} has ended {count} times"
    yield from _none_after_a_halt(logs["main"])
    try:
        rebuilt = rebuild_desk(logs)["main"]
    except BrokenAudit as error:
        yield f"the log leads nowhere: {error}"
        return
    for suffix, fields in rebuilt.items():
        if not suffix.startswith(":order:"):
            continue
        stored = _mapped(world.server.lua.run("HGETALL", f"{BASE}{suffix}"))
        for key in ("status", "filled_lots", "filled_value", "fees", "reserved_cash"):
            if fields.get(key) != stored.get(key):
                yield f"{suffix}: {key} is {stored.get(key)}, by the log {fields.get(key)}"
    book = _mapped(world.server.lua.run("HGETALL", f"{BASE}:book"))
    for key in ("cash", "reserved", "fees", "a|open_orders", "p|BTC-USD|lots", "p|ETH-USD|lots"):
        computed = rebuilt.get(":book", {}).get(key)
        if (computed or "0") != (book.get(key) or "0"):
            yield f"book {key} is {book.get(key)}, by the log {computed}"


def _none_after_a_halt(rows: list[Row]) -> Iterator[str]:
    """No order is accepted between a halt of what it belongs to and the resumption."""
    halted: dict[str, bool] = {}
    for row in rows:
        if row.kind == "STATE":
            halted[row.id] = json.loads(row.data)["state"] in {"HALTED", "CANCEL_ALL"}
        elif row.kind == "RESERVED":
            request = json.loads(row.data)["request"]
            for scope in ("account", f"strategy|{request[2]}", f"product|{request[3]}"):
                if halted.get(scope):
                    yield f"{row.id} was accepted while {scope} was halted"


def _rows(world: World, base: str) -> list[Row]:
    entries: list[Any] = world.server.lua.run("XRANGE", f"{base}:audit", "-", "+")
    return [row_of(entry, _mapped(fields)) for entry, fields in entries]


def _filled_lots(order: SimOrder) -> int:
    return sum(fill.lots for fill in {fill.trade_id: fill for fill in order.fills}.values())


def _product(world: World, product_id: str) -> Product:
    return world.venue.exchange.product(product_id)


def _mapped(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
