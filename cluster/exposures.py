"""What an account holds, risks and has earned: pure figures of one ledger snapshot, integers as in the ledger.

Positions are signed lots, money is micros of the quote currency. ``gross`` uses the ledger's own arithmetic (middle
price and value rounded up, open orders added), so that it is the figure the limit is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from cluster.ledger import Snapshot

UNLIMITED: Final = "unlimited"


@dataclass(frozen=True, slots=True)
class Reference:
    """A product's reference price: bid and ask in ticks, its age, and the micros one lot is worth at one tick."""

    bid_ticks: int
    ask_ticks: int
    age_ms: int
    fresh: bool
    lot_tick_micros: Fraction

    def value(self, lots: int) -> int:
        """Signed micros of ``lots`` at the exact middle, rounded half-even."""
        return round(lots * self.lot_tick_micros * Fraction(self.bid_ticks + self.ask_ticks, 2))

    def value_up(self, lots: int) -> int:
        """Micros of ``|lots|`` at the middle rounded up to a tick, rounded up: what the ledger counts as exposure."""
        middle_ticks = -(-(self.bid_ticks + self.ask_ticks) // 2)
        exact = abs(lots) * self.lot_tick_micros * middle_ticks
        return -(-exact.numerator // exact.denominator)


@dataclass(frozen=True, slots=True)
class ProductFigures:
    """One product of an account; ``cost`` is signed like the position, ``realised`` is before fees."""

    product_id: str
    lots: int
    buy_lots: int
    sell_lots: int
    open_orders: int
    open_notional: int
    cost: int
    realised: int
    fees: int
    reference: Reference | None

    @property
    def value(self) -> int | None:
        """The position's signed value at the middle; 0 without a position, None without a price."""
        return _valued(self.lots, self.reference)

    @property
    def unrealised(self) -> int | None:
        """What closing at the middle would add, before fees; None without a price."""
        return None if self.value is None else self.value - self.cost

    @property
    def worst_lots(self) -> int:
        """The largest position, long or short, if every open order of one side were filled."""
        return max(self.lots + self.buy_lots, self.sell_lots - self.lots)


@dataclass(frozen=True, slots=True)
class StrategyFigures:
    """One strategy within an account; ``gross`` and ``net`` are None where a held product has no price."""

    name: str
    lots: Mapping[str, int]
    open_orders: int
    open_notional: int
    gross: int | None
    net: int | None


@dataclass(frozen=True, slots=True)
class AccountFigures:
    """The whole account; ``cash`` is None until the books are opened."""

    cash: int | None
    reserved: int
    fees: int
    open_orders: int
    open_notional: int
    products: tuple[ProductFigures, ...]
    strategies: tuple[StrategyFigures, ...]

    @property
    def free(self) -> int | None:
        """Cash that no open order has reserved."""
        return None if self.cash is None else self.cash - self.reserved

    @property
    def realised(self) -> int:
        """Realised profit of all products, before fees."""
        return sum(product.realised for product in self.products)

    @property
    def net(self) -> int | None:
        """Signed value of all positions; None where a held product has no price."""
        return _sum(product.value for product in self.products)

    @property
    def unrealised(self) -> int | None:
        """Unrealised profit of all products; None where a held product has no price."""
        return _sum(product.unrealised for product in self.products)

    @property
    def equity(self) -> int | None:
        """Cash and the value of all positions."""
        net = self.net
        return None if net is None or self.cash is None else self.cash + net

    @property
    def gross(self) -> int | None:
        """Absolute values of all positions and the notional of all open orders."""
        held = {product.product_id: product.lots for product in self.products}
        references = {product.product_id: product.reference for product in self.products}
        return _gross(held, references, self.open_notional)

    @property
    def prices_fresh(self) -> bool:
        """Whether every held product has a price young enough to be traded on."""
        held = [product.reference for product in self.products if product.lots]
        return all(reference is not None and reference.fresh for reference in held)


def figures(snapshot: Snapshot) -> AccountFigures:
    """Everything computed from ``snapshot``; products are those with a limit, a position or a booking."""
    book, references = snapshot.book, references_of(snapshot)
    cash = book.get("cash")
    products = tuple(_product(snapshot, name, references.get(name)) for name in _product_names(snapshot))
    return AccountFigures(
        cash=None if cash is None else int(cash),
        reserved=_integer(book, "reserved"),
        fees=_integer(book, "fees"),
        open_orders=_integer(book, "a|open_orders"),
        open_notional=_integer(book, "a|open_notional"),
        products=products,
        strategies=tuple(_strategy(snapshot, name, references) for name in sorted(snapshot.strategy_positions)),
    )


def references_of(snapshot: Snapshot) -> dict[str, Reference]:
    """Every reference price with its age at the instant of the snapshot; without a limit on the age none is fresh."""
    stale_ms = snapshot.limits.get("account|reference_stale_ms", "")
    found = {}
    for product_id, packed in snapshot.reference.items():
        bid, ask, set_ms, numerator, denominator = (int(part) for part in packed.split())
        age_ms = max(0, snapshot.now_ms - set_ms)
        fresh = stale_ms == UNLIMITED or (stale_ms.isdigit() and age_ms <= int(stale_ms))
        found[product_id] = Reference(bid, ask, age_ms, fresh, Fraction(numerator, denominator))
    return found


def limited_products(snapshot: Snapshot) -> list[str]:
    """The products the account may trade: those with limits."""
    return sorted({field.split("|")[1] for field in snapshot.limits if field.startswith("product|")})


def _product_names(snapshot: Snapshot) -> list[str]:
    booked = {field.split("|")[1] for field in snapshot.book if field.startswith("p|")}
    return sorted(booked | set(snapshot.positions) | set(limited_products(snapshot)))


def _product(snapshot: Snapshot, name: str, reference: Reference | None) -> ProductFigures:
    book, prefix = snapshot.book, f"p|{name}|"
    return ProductFigures(
        product_id=name,
        lots=_integer(snapshot.positions, name),
        buy_lots=_integer(book, prefix + "buy_lots"),
        sell_lots=_integer(book, prefix + "sell_lots"),
        open_orders=_integer(book, prefix + "open_orders"),
        open_notional=_integer(book, prefix + "open_notional"),
        cost=_integer(book, prefix + "cost"),
        realised=_integer(book, prefix + "realised"),
        fees=_integer(book, prefix + "fees"),
        reference=reference,
    )


def _strategy(snapshot: Snapshot, name: str, references: Mapping[str, Reference]) -> StrategyFigures:
    lots = {product: int(text) for product, text in snapshot.strategy_positions[name].items() if int(text)}
    open_notional = _integer(snapshot.book, f"s|{name}|open_notional")
    return StrategyFigures(
        name=name,
        lots=lots,
        open_orders=_integer(snapshot.book, f"s|{name}|open_orders"),
        open_notional=open_notional,
        gross=_gross(lots, references, open_notional),
        net=_sum(_valued(held, references.get(product)) for product, held in lots.items()),
    )


def _gross(
    lots: Mapping[str, int], references: Mapping[str, Reference] | Mapping[str, Reference | None], open_notional: int
) -> int | None:
    total = open_notional
    for product, held in lots.items():
        reference = references.get(product)
        if held and reference is None:
            return None
        total += reference.value_up(held) if reference else 0
    return total


def _valued(lots: int, reference: Reference | None) -> int | None:
    if not lots:
        return 0
    return None if reference is None else reference.value(lots)


def _sum(amounts: Iterable[int | None]) -> int | None:
    total = 0
    for amount in amounts:
        if amount is None:
            return None
        total += amount
    return total


def _integer(fields: Mapping[str, str], name: str) -> int:
    return int(fields.get(name, "0"))
