"""The ledger as a plain Python model, written from the rules, not from ledger.lua: slow, obvious, all in integers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from strategies.model import Order, Side
from tests.books import BUFFER_PPM, FEE_PPM, QUOTES, STRATEGIES, UNLIMITED

# Micros that a lot is worth at a tick, as (numerator, denominator).
SCALES: Final = {"BTC-USD": (10, 1), "XRP-USD": (1, 10)}
ENDED: Final = frozenset({"DENIED", "FILLED", "CANCELLED", "REJECTED", "EXPIRED"})
LEVELS: Final = {"ACTIVE": 0, "REDUCING": 1, "HALTED": 2, "CANCEL_ALL": 3}
Rule = tuple[str, str, str, str]
"""(code, scope, value, limit) of a broken rule."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def value_up(product: str, lots: int, ticks: int) -> int:
    """Micros, rounded up."""
    numerator, denominator = SCALES[product]
    return ceil_div(lots * ticks * numerator, denominator)


@dataclass
class Held:
    """An order the ledger knows, and what of its reservation is left."""

    order: Order
    lots: int
    notional: int
    cash: int
    status: str
    left: int = 0
    filled: int = 0
    trades: set[str] = field(default_factory=set)
    cancel_asked: bool = False

    @property
    def open(self) -> bool:
        """Whether it holds a reservation."""
        return self.status not in ENDED

    def share(self, amount: int) -> int:
        """The unfilled lots' part of ``amount``, rounded up."""
        return ceil_div(amount * self.left, self.lots)

    def covers(self, scope: str) -> bool:
        """Whether the order counts for a scope."""
        strategy, product = f"strategy|{self.order.strategy}", f"product|{self.order.product_id}"
        return scope in {"global", "account", strategy, product}


class Model:
    """One account."""

    def __init__(self, cash: int, lots: Mapping[str, int]) -> None:
        """Cash and positions that cost nothing, every limit unlimited, every scope active."""
        self.limits = dict(UNLIMITED)
        self.states = {"global": "ACTIVE", "account": "ACTIVE"}
        self.states |= {f"strategy|{name}": "ACTIVE" for name in STRATEGIES}
        self.states |= {f"product|{name}": "ACTIVE" for name in SCALES}
        self.quotes = dict(QUOTES)
        self.cash = cash
        self.fees = 0
        self.positions: defaultdict[str, int] = defaultdict(int, lots)
        self.by_strategy: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.cost: defaultdict[str, int] = defaultdict(int)
        self.realised: defaultdict[str, int] = defaultdict(int)
        self.flow: defaultdict[str, int] = defaultdict(int)
        self.orders: dict[str, Held] = {}
        self.rate_used: defaultdict[str, int] = defaultdict(int)
        self.outbox: list[tuple[str, str]] = []

    # -- what is open --------------------------------------------------------------------------------------------------

    def open_in(self, scope: str) -> list[Held]:
        """Orders with a reservation that count for a scope."""
        return [held for held in self.orders.values() if held.open and held.covers(scope)]

    def open_notional(self, scope: str) -> int:
        """Micros the open orders of a scope still reserve."""
        return sum(held.share(held.notional) for held in self.open_in(scope))

    def open_lots(self, product: str, side: Side, strategy: str | None = None) -> int:
        """Lots not filled yet, of one side."""
        return sum(
            held.left
            for held in self.open_in(f"product|{product}")
            if held.order.side is side and strategy in {None, held.order.strategy}
        )

    def reserved(self) -> int:
        """Cash that open orders hold."""
        return sum(held.share(held.cash) for held in self.open_in("account"))

    def gross(self, scope: str) -> int:
        """Positions at the middle, rounded up, and open orders."""
        strategy = scope.removeprefix("strategy|")
        held = self.positions if scope == "account" else {p: self.by_strategy[strategy, p] for p in SCALES}
        values = (value_up(p, abs(lots), ceil_div(sum(self.quotes[p]), 2)) for p, lots in held.items())
        return sum(values) + self.open_notional(scope)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def decide(self, order: Order, lots: int, ticks: int | None) -> tuple[set[Rule], int, int]:
        """The rules the order breaks, its notional and the cash it would reserve."""
        product, (bid, ask) = order.product_id, self.quotes[order.product_id]
        if order.side is Side.SELL:
            price = max(ticks or 0, bid)
        else:
            price = ticks if ticks is not None else ceil_div(ask * (1_000_000 + BUFFER_PPM), 1_000_000)
        notional = value_up(product, lots, price)
        cash = 0 if order.side is Side.SELL else notional + ceil_div(notional * FEE_PPM, 1_000_000)
        broken = self._states_broken(order, lots)
        for limit, scope, value, code in self.compared(order, lots, notional):
            if self.limits[limit] != "unlimited" and value > int(self.limits[limit]):
                broken.add((code, scope, str(value), self.limits[limit]))
        broken |= self._funds_broken(order, lots, cash)
        if not broken:
            broken = self._rates_broken(order)
        return broken, notional, cash

    def compared(self, order: Order, lots: int, notional: int) -> list[tuple[str, str, int, str]]:
        """(limit, scope, value, code) of everything an order is compared with."""
        strategy, product = f"strategy|{order.strategy}", f"product|{order.product_id}"
        rows = []
        for scope in ("account", strategy, product):
            rows.append((f"{scope}|max_order_notional", scope, notional, "NOTIONAL_EXCEEDS_MAX"))
            rows.append((f"{scope}|max_open_orders", scope, len(self.open_in(scope)) + 1, "MAX_OPEN_ORDERS"))
        rows += [
            (f"{scope}|max_gross_exposure", scope, self.gross(scope) + notional, "MAX_GROSS")
            for scope in ("account", strategy)
        ]
        sign = 1 if order.side is Side.BUY else -1
        after = sign * self.positions[order.product_id] + self.open_lots(order.product_id, order.side) + lots
        rows.append((f"{product}|max_position", product, after, "MAX_POSITION"))
        return rows

    def _states_broken(self, order: Order, lots: int) -> set[Rule]:
        broken: set[Rule] = set()
        for scope in ("global", "account", f"strategy|{order.strategy}", f"product|{order.product_id}"):
            state = self.states[scope]
            if LEVELS[state] >= 2:
                broken.add(("TRADING_HALTED", scope, state, "ACTIVE"))
            elif state == "REDUCING":
                own = order.strategy if scope.startswith("strategy|") else None
                held = self.positions[order.product_id] if own is None else self.by_strategy[own, order.product_id]
                room = max(held if order.side is Side.SELL else -held, 0)
                wanted = self.open_lots(order.product_id, order.side, own) + lots
                if wanted > room:
                    broken.add(("REDUCE_ONLY_MODE", scope, str(wanted), str(room)))
        return broken

    def _funds_broken(self, order: Order, lots: int, cash: int) -> set[Rule]:
        if order.side is Side.SELL:
            free = self.positions[order.product_id] - self.open_lots(order.product_id, Side.SELL)
            return {("INSUFFICIENT_FUNDS", "account", str(lots), str(max(free, 0)))} if lots > free else set()
        free = self.cash - self.reserved()
        return {("INSUFFICIENT_FUNDS", "account", str(cash), str(max(free, 0)))} if cash > free else set()

    def _rates_broken(self, order: Order) -> set[Rule]:
        """Limits here are so slow that nothing comes back while a test runs: a burst is all there is."""
        scopes = ("account", f"strategy|{order.strategy}")
        used_up = {s for s in scopes if str(self.rate_used[s]) == self.limits[f"{s}|order_burst"]}
        return {("RATE_LIMIT", scope, "", "0") for scope in used_up}

    # -- what happens --------------------------------------------------------------------------------------------------

    def take(self, order: Order, lots: int, notional: int, cash: int) -> None:
        """Reserve."""
        self.orders[order.client_order_id] = Held(order, lots, notional, cash, "RESERVED", left=lots)
        self.outbox.append(("SUBMIT", order.client_order_id))
        for scope in ("account", f"strategy|{order.strategy}"):
            if self.limits[f"{scope}|order_burst"] != "unlimited":
                self.rate_used[scope] += 1

    def deny(self, order: Order) -> None:
        """Remember the denial."""
        self.orders[order.client_order_id] = Held(order, 0, 0, 0, "DENIED")

    def fill(self, order_id: str, trade_id: str, lots: int, ticks: int, fee: int) -> tuple[str, str]:
        """Cash, cost, profit and positions move; the reservation shrinks."""
        held = self.orders[order_id]
        if held.status == "DENIED":
            return "NOT_FOUND", ""
        if trade_id in held.trades:
            return "DUPLICATE", held.status
        held.trades.add(trade_id)
        product, sign = held.order.product_id, 1 if held.order.side is Side.BUY else -1
        numerator, denominator = SCALES[product]
        value, rest = divmod(lots * ticks * numerator, denominator)
        # A half is rounded to the even micro.
        value += 2 * rest > denominator or (2 * rest == denominator and value % 2)
        self.cash -= sign * value + fee
        self.fees += fee
        self.flow[product] += sign * value
        self._close(product, sign, lots, value)
        self.positions[product] += sign * lots
        self.by_strategy[held.order.strategy, product] += sign * lots
        held.filled += lots
        held.left = max(held.left - lots, 0)
        if held.open:
            held.status = "FILLED" if held.filled >= held.lots else "PARTIALLY_FILLED"
        return "APPLIED", held.status

    def _close(self, product: str, sign: int, lots: int, value: int) -> None:
        before = self.positions[product]
        closing = min(abs(before), lots) if before * sign < 0 else 0
        if closing:
            of_value, of_cost = value * closing // lots, abs(self.cost[product]) * closing // abs(before)
            self.realised[product] += -sign * (of_value - of_cost)
            self.cost[product] += sign * of_cost
            value -= of_value
        self.cost[product] += sign * value

    def end(self, order_id: str, status: str) -> bool:
        """Free the reservation, once."""
        held = self.orders[order_id]
        if not held.open:
            return False
        held.status, held.left = status, 0
        return True

    def cancel(self, order_id: str) -> tuple[str, str]:
        """As asked for by the order's owner."""
        held = self.orders[order_id]
        if not held.open:
            return held.status, "ALREADY"
        if held.status == "RESERVED":
            self.end(order_id, "CANCELLED")
            return "CANCELLED", "CANCELLED"
        if not held.cancel_asked:
            held.cancel_asked = True
            self.outbox.append(("CANCEL", order_id))
        return held.status, "REQUESTED"

    def set_state(self, scope: str, state: str) -> int:
        """Returns how many cancels were asked for."""
        self.states[scope] = state
        covered = [name for name, held in self.orders.items() if held.open and held.covers(scope)]
        for name in covered if state == "CANCEL_ALL" else ():
            self.cancel(name)
        return len(covered) if state == "CANCEL_ALL" else 0

    # -- what must hold ------------------------------------------------------------------------------------------------

    def exceeded(self, order: Order) -> list[str]:
        """Limits that what is held and open now exceeds, counted anew; asked right after an acceptance."""
        strategy, product = f"strategy|{order.strategy}", f"product|{order.product_id}"
        last = self.orders[order.client_order_id]
        figures = {f"{scope}|max_open_orders": len(self.open_in(scope)) for scope in ("account", strategy, product)}
        figures |= {f"{scope}|max_order_notional": last.notional for scope in ("account", strategy, product)}
        figures |= {f"{scope}|max_gross_exposure": self.gross(scope) for scope in ("account", strategy)}
        worst = self.positions[order.product_id] + self.open_lots(order.product_id, Side.BUY)
        if order.side is Side.SELL:
            worst = self.open_lots(order.product_id, Side.SELL) - self.positions[order.product_id]
        figures[f"{product}|max_position"] = worst
        found = [n for n, v in figures.items() if self.limits[n] != "unlimited" and v > int(self.limits[n])]
        if order.side is Side.BUY and self.reserved() > self.cash:
            found.append("cash")
        if order.side is Side.SELL and worst > 0:
            found.append("holdings")
        return found

    def book(self) -> dict[str, int]:
        """Every figure the ledger's book must show, those that are 0 left out."""
        found = {"cash": self.cash, "fees": self.fees, "reserved": self.reserved()}
        scopes = {"a": "account", **{f"p|{p}": f"product|{p}" for p in SCALES}}
        for name, scope in (scopes | {f"s|{s}": f"strategy|{s}" for s in STRATEGIES}).items():
            found[f"{name}|open_orders"] = len(self.open_in(scope))
            found[f"{name}|open_notional"] = self.open_notional(scope)
        for product in SCALES:
            found |= {f"p|{product}|cost": self.cost[product], f"p|{product}|realised": self.realised[product]}
            for side, name in ((Side.BUY, "buy_lots"), (Side.SELL, "sell_lots")):
                found[f"p|{product}|{name}"] = self.open_lots(product, side)
                for strategy in STRATEGIES:
                    found[f"sp|{strategy}|{product}|{name}"] = self.open_lots(product, side, strategy)
        return {name: amount for name, amount in found.items() if amount}
