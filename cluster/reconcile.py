"""Whether the books agree with the venue: open orders, fills, cash and positions, line by line, each with its verdict.

One comparison for all who ask: execution at its start, every half minute and after a lost connection, and
``desk reconcile``. Nothing is changed here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_FLOOR, Decimal
from enum import StrEnum
from typing import Any, Final

from cluster.ledger import Ledger, Snapshot
from cluster.venue import Balance, Venue, VenueOrder
from strategies.model import TERMINAL, OrderStatus, Product, micros_exact, units

# Cash is kept in millionths, and the venue's fees and values may have more decimals: each fill may round by one. A cent
# is ten thousand of them, far more than ever adds up, and nothing anybody would miss.
CASH_TOLERANCE_MICROS: Final = 10_000
FILLS_LATE: Final = "fills that are not listed yet"
STATE_LATE: Final = "the venue's state is behind its fills"
PASSING: Final = frozenset({FILLS_LATE, STATE_LATE})
"""Explanations that hold for a moment only."""
Ask = Callable[..., Awaitable[Any]]


class Verdict(StrEnum):
    """What is to be thought of a line."""

    OK = "OK"
    EXPLAINED = "EXPLAINED"
    BREAK = "BREAK"


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that both sides know: ``ledger`` and ``venue`` as text in units, and why they may differ."""

    kind: str
    name: str
    ledger: str
    venue: str
    verdict: Verdict
    why: str = ""

    @property
    def mark(self) -> tuple[str, str, str]:
        """What of a difference stays while trading goes on: a balance moves, by how much it is off does not."""
        return self.kind, self.name, self.why

    def passing(self) -> Line:
        """The line, explained where it was a break: the next look did not find the same."""
        if self.verdict is not Verdict.BREAK:
            return self
        return replace(self, verdict=Verdict.EXPLAINED, why=f"seen once: {self.why}")

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: ledger {self.ledger}, venue {self.venue}" + (
            f" ({self.why})" if self.why else ""
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """All lines, as they were at ``at_ns`` (nanoseconds UTC)."""

    account: str
    at_ns: int
    lines: tuple[Line, ...]

    @property
    def breaks(self) -> list[str]:
        """The differences nothing explains, as text."""
        return [str(line) for line in self.lines if line.verdict is Verdict.BREAK]

    @property
    def explained(self) -> list[str]:
        """The differences that something explains, as text."""
        return [str(line) for line in self.lines if line.verdict is Verdict.EXPLAINED]

    @property
    def broken(self) -> frozenset[tuple[str, str, str]]:
        """What the differences that nothing explains are about, and by how much; a standing one keeps both."""
        return frozenset(line.mark for line in self.lines if line.verdict is Verdict.BREAK)

    def standing(self, marks: frozenset[tuple[str, str, str]]) -> Comparison:
        """The same, with differences that have not stood all the time (``marks``) explained by just that."""
        return replace(self, lines=tuple(line.passing() if line.mark not in marks else line for line in self.lines))

    def view(self) -> dict[str, Any]:
        """As JSON has it."""
        counts = {verdict.lower(): sum(line.verdict is verdict for line in self.lines) for verdict in Verdict}
        return {"account": self.account, "at_ns": self.at_ns, **counts, "lines": [asdict(line) for line in self.lines]}


class NothingToBook(ValueError):
    """There is no difference of cash or positions that could be booked."""


def adjustment(
    comparison: Comparison, snapshot: Snapshot, products: Mapping[str, Product]
) -> tuple[int, dict[str, tuple[int, int]]]:
    """What to book so that the books say what the venue does: cash in micros, {product: (lots, cost in micros)}.

    For what came or went without an order. Coins that came are entered at the reference bid. Raises
    ``NothingToBook``.
    """
    cash, positions = 0, {}
    for line in comparison.lines:
        if line.verdict is not Verdict.BREAK or line.kind not in {"cash", "position"}:
            continue
        difference = Decimal(line.venue) - Decimal(line.ledger)
        if line.kind == "cash":
            cash += micros_exact(difference)
            continue
        traded = [name.removeprefix("product|") for name in snapshot.limits if name.startswith("product|")]
        product = next(products[name] for name in sorted(traded) if products[name].base_currency == line.name)
        lots = int((difference / product.base_increment).to_integral_value(ROUND_FLOOR))
        reference = snapshot.reference.get(product.product_id)
        bid = product.price(int(reference.split()[0])) if reference else Decimal(0)
        positions[product.product_id] = (lots, micros_exact(product.quantity(lots) * bid))
    if not cash and not positions:
        raise NothingToBook("the books and the venue agree on cash and positions, so there is nothing to book")
    return cash, positions


async def compare(ledger: Ledger, venue: Venue, account: str, ask: Ask) -> Comparison:
    """Read both sides and hold one against the other; ``ask(call, *arguments)`` awaits a call of the venue.

    Raises ``VenueError`` and what the ledger raises.
    """
    before = await ledger.snapshot(account)
    # Balances first: whatever they hold that is not booked here yet is then seen in an order, too, and explained by it.
    balances: list[Balance] = await ask(venue.accounts)
    theirs: list[VenueOrder] = await ask(venue.open_orders)
    # An order that ended here while the lists were read is on neither side's any more.
    ours = [fields for fields in await ledger.open_orders(account) if OrderStatus(fields["status"]) not in TERMINAL]
    theirs = await _without_ended(ledger, account, ours, theirs, before.now_ms)
    after = await ledger.snapshot(account)
    products = await ledger.products()
    traded = {name.removeprefix("product|"): products.get(name.removeprefix("product|")) for name in after.limits}
    own = {name: product for name, product in traded.items() if product is not None}
    order_lines = compare_orders(ours, theirs, products)
    moved = _figures(before, own) != _figures(after, own)
    doubts = [line.name for line in order_lines if line.verdict is not Verdict.OK]
    doubts += [fields["client_order_id"] for fields in ours if fields["status"] in {"SENT", "UNKNOWN"}]
    why = "fills were booked meanwhile" if moved else f"order {doubts[0]} is not settled" if doubts else ""
    lines = [*compare_balances(after, balances, own, why), *order_lines]
    return Comparison(account, await ledger.time_ns(), tuple(lines))


async def _without_ended(
    ledger: Ledger, account: str, ours: Sequence[Mapping[str, str]], theirs: Sequence[VenueOrder], since_ms: int
) -> list[VenueOrder]:
    """What the venue listed as open, without what has ended here since: its list is a moment old.

    An order that had ended here before and is open there stays: that is a difference.
    """
    open_here = {fields["client_order_id"] for fields in ours}
    kept = []
    for order in theirs:
        known = None
        if order.client_order_id not in open_here:
            known = await ledger.order(account, order.client_order_id)
        ended = known is not None and OrderStatus(known["status"]) in TERMINAL
        if known is None or not ended or int(known["changed_us"]) // 1000 < since_ms:
            kept.append(order)
    return kept


def compare_orders(
    ours: Sequence[Mapping[str, str]], theirs: Sequence[VenueOrder], products: Mapping[str, Product]
) -> list[Line]:
    """A line for every order that one side holds open. ``ours`` are records of the ledger, RESERVED ones too."""
    lines, found = [], {order.client_order_id: order for order in theirs}
    by_venue_id = {order.venue_order_id: order for order in theirs}
    for fields in ours:
        name, status = fields["client_order_id"], OrderStatus(fields["status"])
        order = found.pop(name, None) or by_venue_id.get(fields.get("venue_order_id", ""))
        if order is not None:
            found.pop(order.client_order_id, None)
            lines.append(_order_line(fields, order, products.get(fields["product"])))
        elif status is OrderStatus.RESERVED:
            # Nobody has sent it: the venue need not know it, and it can be the reason of nothing.
            lines.append(Line("order", name, status, "-", Verdict.OK, "not sent yet"))
        elif status is OrderStatus.SENT:
            lines.append(Line("order", name, status, "-", Verdict.EXPLAINED, "on its way to the venue"))
        elif status is OrderStatus.UNKNOWN:
            lines.append(Line("order", name, status, "-", Verdict.EXPLAINED, "the venue has not answered"))
        else:
            lines.append(Line("order", name, status, "not open", Verdict.BREAK, "ended at the venue, not here"))
    for order in found.values():
        name, there = order.client_order_id or order.venue_order_id, order.raw_status or order.status.value
        lines.append(Line("order", name, "-", there, Verdict.BREAK, "the ledger does not know it"))
    return lines


def _order_line(fields: Mapping[str, str], order: VenueOrder, product: Product | None) -> Line:
    name = fields["client_order_id"]
    if product is None:
        return Line("order", name, fields["status"], order.status, Verdict.BREAK, f"no product {fields['product']}")
    filled = product.quantity(int(fields["filled_lots"]))
    ours = f"{fields['side']} {fields['quantity']} {order.product_id}, filled {filled.normalize():f}"
    wanted = "any" if order.quantity is None else f"{order.quantity.normalize():f}"
    theirs = f"{order.side} {wanted} {order.product_id}, filled {order.filled_quantity.normalize():f}"
    if (order.product_id, order.side) != (fields["product"], fields["side"]):
        return Line("order", name, ours, theirs, Verdict.BREAK, "another product or side")
    if filled < order.filled_quantity:
        return Line("order", name, ours, theirs, Verdict.EXPLAINED, FILLS_LATE)
    if filled > order.filled_quantity:
        return Line("order", name, ours, theirs, Verdict.EXPLAINED, STATE_LATE)
    if order.quantity is not None and order.quantity != Decimal(fields["quantity"]):
        explained = bool(fields.get("amend"))
        verdict = Verdict.EXPLAINED if explained else Verdict.BREAK
        return Line("order", name, ours, theirs, verdict, "being amended" if explained else "another quantity")
    return Line("order", name, ours, theirs, Verdict.OK)


def compare_balances(
    snapshot: Snapshot, balances: Sequence[Balance], products: Mapping[str, Product], why: str = ""
) -> list[Line]:
    """A line for the cash and for each currency held; ``why`` explains differences where something is under way."""
    totals: defaultdict[str, Decimal] = defaultdict(Decimal)
    for balance in balances:
        totals[balance.currency] += balance.available + balance.hold
    lines, cash = [], int(snapshot.book.get("cash", "0"))
    for currency in sorted({product.quote_currency for product in products.values()}):
        difference = totals[currency] * 1_000_000 - cash
        agrees = abs(difference) <= CASH_TOLERANCE_MICROS
        lines.append(_balance_line("cash", currency, units(cash), totals[currency], agrees, why))
    by_base: defaultdict[str, list[Product]] = defaultdict(list)
    for product in products.values():
        by_base[product.base_currency].append(product)
    for currency, group in sorted(by_base.items()):
        held = sum((p.quantity(int(snapshot.book.get(f"p|{p.product_id}|lots", "0"))) for p in group), Decimal(0))
        increment = min(product.base_increment for product in group)
        # What is less than a lot cannot be traded and was never booked.
        whole = (totals[currency] / increment).to_integral_value(ROUND_FLOOR) * increment
        lines.append(_balance_line("position", currency, held, totals[currency], held == whole, why))
    return lines


def _balance_line(kind: str, name: str, ours: Decimal, theirs: Decimal, agrees: bool, why: str) -> Line:
    verdict = Verdict.OK if agrees else Verdict.EXPLAINED if why else Verdict.BREAK
    said = why if why and not agrees else "" if agrees else f"differ by {(theirs - ours).normalize():f}"
    return Line(kind, name, f"{ours.normalize():f}", f"{theirs.normalize():f}", verdict, said)


def _figures(snapshot: Snapshot, products: Mapping[str, Product]) -> tuple[str, ...]:
    names = ("cash", *(f"p|{name}|lots" for name in sorted(products)))
    return tuple(snapshot.book.get(name, "0") for name in names)
