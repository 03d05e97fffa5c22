"""A plain exchange to hold the simulator's engine against: everything is looked up anew, nothing is kept sorted.

Written from the rules, without the engine's code; only the seeded book (``make_book``) is shared, as an input. Money is
exact; holds are not kept but summed over the open orders whenever they are asked for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from cluster.exchange_levels import make_book

SECOND_NS = 1_000_000_000
LOT = Decimal("0.00000001")
TICK = Decimal("0.01")
TAKER, MAKER = Decimal("0.006"), Decimal("0.004")
HALTING = {"is_disabled", "trading_disabled", "cancel_only", "post_only", "auction_mode", "view_only", "offline"}


class Refused(Exception):
    """The order or amendment is not accepted."""


@dataclass
class Wish:
    """What is asked for: an order by base size (``lots``) or by quote size (``budget``)."""

    portfolio: str
    product: str
    side: str
    kind: str
    lots: int | None = None
    budget: Decimal | None = None
    limit: int | None = None
    stop: int | None = None
    rising: bool = False
    post_only: bool = False
    end_ns: int | None = None

    @property
    def rests(self) -> bool:
        return self.kind.endswith(("gtc", "gtd"))

    @property
    def is_stop(self) -> bool:
        return self.kind.startswith("stop")

    @property
    def is_bracket(self) -> bool:
        return self.kind.startswith("trigger")

    @property
    def buys(self) -> bool:
        return self.side == "BUY"


@dataclass
class Resting:
    """An accepted order."""

    wish: Wish
    place: int
    state: str = "OPEN"
    filled: int = 0
    fills: list[tuple[int, int, str]] = field(default_factory=list)
    triggered: bool = False

    @property
    def left(self) -> int:
        return max(0, (self.wish.lots or 0) - self.filled) if self.state == "OPEN" else 0

    @property
    def works_at(self) -> int | None:
        return worst(self.wish) if self.triggered else self.wish.limit

    @property
    def in_book(self) -> bool:
        unseen = self.wish.is_stop and not self.triggered
        return self.state == "OPEN" and self.wish.rests and not unseen


def worst(wish: Wish) -> int | None:
    """The worst price an order can be executed at."""
    if not wish.is_bracket or wish.stop is None:
        return wish.limit
    # 5 % beyond the trigger, rounded towards it.
    return wish.stop * 105 // 100 if wish.buys else -(-wish.stop * 95 // 100)


class PlainExchange:
    """See the module. Time only moves forward."""

    def __init__(self, seed: int, rule: str, mids: dict[str, int], now_ns: int) -> None:
        self.seed, self.rule, self.mids, self.now_ns = seed, rule, dict(mids), now_ns
        self.orders: list[Resting] = []
        self.money: dict[tuple[str, str], Decimal] = {}
        self.flags: dict[str, set[str]] = {}
        self.taken: dict[tuple[str, int, int, str, int], int] = {}
        self.places = 0

    # --- what clients do ---

    def place(self, wish: Wish) -> Resting:
        self.refuse_by_state(wish)
        self.refuse_by_price(wish)
        if wish.post_only and self.candidates(wish, wish.limit):
            raise Refused("post only")
        undo = self.remembered()
        needed = self.needed(wish)
        if needed is not None and needed > self.available(wish.portfolio, self.pays_with(wish)):
            raise Refused("funds")
        self.places += 1
        order = Resting(wish, self.places)
        spendable = self.available(wish.portfolio, self.pays_with(wish))
        self.orders.append(order)
        if not wish.is_stop:
            self.arrive(order, wish.limit)
        if wish.kind == "limit_limit_fok" and order.filled != wish.lots:
            undo()
            self.places += 1
            order = Resting(wish, self.places, state="CANCELLED")
            self.orders.append(order)
        if needed is None and self.cost(order) > spendable:
            undo()
            raise Refused("funds")
        return order

    def remembered(self) -> Callable[[], None]:
        """What puts everything back as it is now (the orders stay the same objects)."""
        orders = [(order, copy.copy(vars(order)) | {"fills": list(order.fills)}) for order in self.orders]
        money, taken, places = dict(self.money), dict(self.taken), self.places

        def undo() -> None:
            for order, fields in orders:
                vars(order).update(fields)
            self.orders = [order for order, _ in orders]
            self.money, self.taken, self.places = money, taken, places

        return undo

    def cancel(self, order: Resting) -> None:
        if order.state == "OPEN":
            order.state = "CANCELLED"

    def amend(self, order: Resting, lots: int, limit: int, stop: int | None) -> None:
        wish = order.wish
        if order.state != "OPEN" or not wish.kind.endswith("gtc") or (wish.is_bracket and order.triggered):
            raise Refused("not amendable")
        if self.flags.get(wish.product, set()) & (HALTING - {"post_only", "auction_mode"}):
            raise Refused("state")
        changed = copy.copy(wish)
        changed.lots, changed.limit, changed.stop = lots, limit, wish.stop if stop is None else stop
        if stop is not None and (wish.stop is None or order.triggered):
            raise Refused("trigger")
        if wish.stop is not None and not order.triggered:
            self.refuse_by_price(changed)
        if lots <= order.filled or (lots, limit, changed.stop) == (wish.lots, wish.limit, wish.stop):
            raise Refused("size")
        if wish.post_only and self.candidates(wish, limit):
            raise Refused("post only")
        bigger = Resting(changed, 0, filled=order.filled)
        if self.hold(bigger) - self.hold(order) > self.available(wish.portfolio, self.pays_with(wish)):
            raise Refused("funds")
        moved = limit != wish.limit
        if moved or changed.stop != wish.stop or lots > (wish.lots or 0):
            self.places += 1
            order.place = self.places
        order.wish = changed
        if moved and order.in_book:
            self.arrive(order, limit)

    # --- what the world does ---

    def push(self, product: str, mid: int) -> None:
        if mid != self.mids[product]:
            # Another mid is another book.
            self.taken = {key: lots for key, lots in self.taken.items() if key[0] != product}
        self.mids[product] = mid
        self.look(product)

    def set_flags(self, product: str, flags: set[str]) -> None:
        self.flags[product] = flags
        self.look(product)

    def wait(self, now_ns: int) -> None:
        for second in range(self.now_ns // SECOND_NS + 1, now_ns // SECOND_NS + 1):
            self.now_ns = max(self.now_ns, second * SECOND_NS)
            self.expire()
            for product in self.mids:
                self.look(product)
        self.now_ns = now_ns
        self.expire()

    def expire(self) -> None:
        for order in self.orders:
            if order.state == "OPEN" and order.wish.end_ns is not None and order.wish.end_ns <= self.now_ns:
                order.state = "EXPIRED"

    def look(self, product: str) -> None:
        """Resting orders that cross each other, then those the seeded book has crossed, then triggers."""
        if self.flags.get(product, set()) & HALTING:
            return
        while (later := self.crossed(product)) is not None:
            self.arrive(later, later.works_at)
        for side in ("BUY", "SELL"):
            for order in sorted(self.line(product, side), key=lambda o: self.rank(o)):
                self.fill_from_book(order)
        mid = self.mids[product]
        for order in self.orders:
            wish = order.wish
            if order.state != "OPEN" or wish.product != product or wish.stop is None or order.triggered:
                continue
            if mid >= wish.stop if wish.rising else mid <= wish.stop:
                order.triggered = True
                self.places += 1
                order.place = self.places
                self.arrive(order, order.works_at)

    def crossed(self, product: str) -> Resting | None:
        for bid in self.line(product, "BUY"):
            for ask in self.line(product, "SELL"):
                if (bid.works_at or 0) >= (ask.works_at or 0):
                    bids = min(self.line(product, "BUY"), key=self.rank)
                    asks = min(self.line(product, "SELL"), key=self.rank)
                    return max((bids, asks), key=lambda o: o.place)
        return None

    def fill_from_book(self, order: Resting) -> None:
        limit, lots = order.works_at or 0, 0
        for ticks, there in self.seeded(order.wish.product, order.wish.side):
            if lots < order.left and (ticks <= limit if order.wish.buys else ticks >= limit):
                part = min(there, order.left - lots)
                self.take(order.wish, ticks, part)
                lots += part
        if lots:
            self.execute(order, limit, lots, "MAKER")

    # --- matching ---

    def arrive(self, order: Resting, limit: int | None) -> None:
        wish = order.wish
        budget = wish.budget
        spent = False
        while order.state == "OPEN" and (wish.budget is not None or order.left):
            if self.flags.get(wish.product, set()) & HALTING:
                break
            found = self.candidates(wish, limit)
            if not found or spent:
                break
            ticks, there, other = found[0]
            if other is not None and other.wish.portfolio == wish.portfolio:
                self.meet(order, other)
                continue
            lots = there if wish.budget is not None else min(there, order.left)
            if budget is not None:
                affordable = int(budget // (ticks * TICK * LOT * (1 + TAKER)))
                spent, lots = affordable <= there, min(there, affordable)
                budget -= lots * ticks * TICK * LOT * (1 + TAKER)
            if lots:
                self.execute(order, ticks, lots, "TAKER")
                if other is None:
                    self.take(wish, ticks, lots)
                else:
                    self.execute(other, ticks, lots, "MAKER")
        if order.state == "OPEN" and not wish.rests:
            order.state = "FILLED" if spent and order.filled else "CANCELLED"

    def meet(self, order: Resting, own: Resting) -> None:
        """Self-trade prevention."""
        if self.rule == "cancel_newest" or (self.rule == "decrement" and order.wish.budget is not None):
            order.state = "CANCELLED"
        elif self.rule == "cancel_oldest":
            own.state = "CANCELLED"
        elif self.rule == "cancel_both":
            own.state = order.state = "CANCELLED"
        else:
            arriving, resting = order.left, own.left
            for each, other in ((order, resting), (own, arriving)):
                if each.left <= other:
                    each.state = "CANCELLED"
                else:
                    each.wish = copy.copy(each.wish)
                    each.wish.lots = (each.wish.lots or 0) - other

    def candidates(self, wish: Wish, limit: int | None) -> list[tuple[int, int, Resting | None]]:
        """What an order meets within its limit, best first."""
        sign = 1 if wish.buys else -1
        found = [(sign * ticks, 0, 0, ticks, there, None) for ticks, there in self.seeded(wish.product, wish.side)]
        for order in self.line(wish.product, "SELL" if wish.buys else "BUY"):
            ticks = order.works_at or 0
            found.append((sign * ticks, 1, order.place, ticks, order.left, order))  # type: ignore[arg-type]
        within = [each for each in found if limit is None or each[0] <= sign * limit]
        return [(ticks, there, order) for *_, ticks, there, order in sorted(within, key=lambda each: each[:3])]

    def line(self, product: str, side: str) -> list[Resting]:
        return [o for o in self.orders if o.in_book and (o.wish.product, o.wish.side) == (product, side)]

    def rank(self, order: Resting) -> tuple[int, int]:
        return (-1 if order.wish.buys else 1) * (order.works_at or 0), order.place

    def seeded(self, product: str, side: str) -> list[tuple[int, int]]:
        """Seeded levels that an order on ``side`` meets, less what was taken of them."""
        second, mid = self.now_ns // SECOND_NS, self.mids[product]
        book = make_book(self.seed, product, second, mid)
        levels = book.asks if side == "BUY" else book.bids
        left = [(t, q - self.taken.get((product, second, mid, side, t), 0)) for t, q in levels]
        return [level for level in left if level[1] > 0]

    def take(self, wish: Wish, ticks: int, lots: int) -> None:
        key = (wish.product, self.now_ns // SECOND_NS, self.mids[wish.product], wish.side, ticks)
        self.taken[key] = self.taken.get(key, 0) + lots

    def execute(self, order: Resting, ticks: int, lots: int, liquidity: str) -> None:
        wish, value = order.wish, lots * LOT * ticks * TICK
        base, quote = wish.product.split("-")
        sign = 1 if wish.buys else -1
        self.money[wish.portfolio, base] = self.money.get((wish.portfolio, base), Decimal(0)) + sign * lots * LOT
        fee = value * (TAKER if liquidity == "TAKER" else MAKER)
        self.money[wish.portfolio, quote] = self.money.get((wish.portfolio, quote), Decimal(0)) - sign * value - fee
        order.filled += lots
        order.fills.append((ticks, lots, liquidity))
        if wish.lots is not None and order.filled >= wish.lots and order.state == "OPEN":
            order.state = "FILLED"

    # --- rules and money ---

    def refuse_by_state(self, wish: Wish) -> None:
        flags = self.flags.get(wish.product, set())
        closed = flags & {"is_disabled", "trading_disabled", "cancel_only", "view_only", "offline"}
        if closed or ("limit_only" in flags and wish.kind == "market_market_ioc"):
            raise Refused("state")
        if ("auction_mode" in flags and not wish.rests) or ("post_only" in flags and not wish.post_only):
            raise Refused("state")

    def refuse_by_price(self, wish: Wish) -> None:
        if wish.stop is None or wish.limit is None:
            return
        mid = self.mids[wish.product]
        profit_beyond = wish.limit > wish.stop if wish.side == "SELL" else wish.limit < wish.stop
        if wish.is_bracket and not profit_beyond:
            raise Refused("bracket")
        if wish.is_stop and wish.buys and wish.rising and wish.limit < wish.stop:
            raise Refused("limit")
        if wish.is_stop and not wish.buys and not wish.rising and wish.limit > wish.stop:
            raise Refused("limit")
        if mid >= wish.stop if wish.rising else mid <= wish.stop:
            raise Refused("reached")
        if wish.is_bracket and (wish.limit >= mid if wish.buys else wish.limit <= mid):
            raise Refused("reached")

    def pays_with(self, wish: Wish) -> str:
        base, quote = wish.product.split("-")
        return quote if wish.buys else base

    def needed(self, wish: Wish) -> Decimal | None:
        """What must be there before; None where only the executions tell (a market order that buys by base size)."""
        if not wish.buys:
            return (wish.lots or 0) * LOT
        if wish.budget is not None:
            return wish.budget
        price = worst(wish)
        return None if price is None else (wish.lots or 0) * LOT * price * TICK * (1 + TAKER)

    def cost(self, order: Resting) -> Decimal:
        return sum((ticks * TICK * lots * LOT * (1 + TAKER) for ticks, lots, _ in order.fills), Decimal(0))

    def hold(self, order: Resting) -> Decimal:
        if not order.wish.buys:
            return order.left * LOT
        return order.left * LOT * (worst(order.wish) or 0) * TICK * (1 + TAKER)

    def held(self, portfolio: str, currency: str) -> Decimal:
        mine = [o for o in self.orders if o.wish.portfolio == portfolio and self.pays_with(o.wish) == currency]
        return sum((self.hold(order) for order in mine), Decimal(0))

    def available(self, portfolio: str, currency: str) -> Decimal:
        return self.money.get((portfolio, currency), Decimal(0)) - self.held(portfolio, currency)
