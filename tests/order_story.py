"""One of everything an order can live through, as steps a driver takes whatever becomes of execution meanwhile.

Each step waits for what it needs, so the calls execution makes come in nearly the same number each time and a point to
die at can be named by the call and its number. A step is only finished when its order is where the story wants it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from cluster.ledger import LedgerUnavailable
from strategies.model import Order, OrderStatus, OrderType, Side, TimeInForce
from tests.execution_rig import ACCOUNT, Rig, buy, terminal

Check = Callable[[], Awaitable[bool]]

ENDINGS: Final = {
    "market": OrderStatus.FILLED,
    "sale": OrderStatus.FILLED,
    "resting": OrderStatus.CANCELLED,
    "crossed": OrderStatus.FILLED,
    "refused": OrderStatus.REJECTED,
    "unfilled": OrderStatus.CANCELLED,
    "hasty": OrderStatus.CANCELLED,
    "amended": OrderStatus.FILLED,
    "stubborn": OrderStatus.CANCELLED,
    "triggered": OrderStatus.FILLED,
    "last": OrderStatus.FILLED,
}
"""What must have become of each order, however often execution died."""


@dataclass
class Story:
    """The steps; ``until(check, what)`` is how the driver waits, and where it brings execution back to life."""

    rig: Rig
    seed: int
    until: Callable[[Check, str], Awaitable[None]]

    def orders(self) -> dict[str, Order]:
        """The orders by name; quantities and the order they come in depend on the seed."""
        chance = random.Random(self.seed)

        def tenths(low: int, high: int) -> str:
            return str(Decimal(chance.randint(low, high)).scaleb(-1))

        made = {
            "market": buy("market", "BTC-USD", tenths(1, 3)),
            "sale": buy("sale", "ETH-USD", tenths(10, 40), side=Side.SELL),
            "resting": buy("resting", "BTC-USD", tenths(1, 5), "50000"),
            "crossed": buy("crossed", "ETH-USD", tenths(10, 50), "2990"),
            "refused": buy("refused", "BTC-USD", tenths(1, 3), "60100", post_only=True),
            "unfilled": buy("unfilled", "SOL-USD", tenths(10, 90), "140", time_in_force=TimeInForce.FOK),
            "hasty": buy("hasty", "SOL-USD", tenths(10, 90), "120"),
            "amended": buy("amended", "ETH-USD", tenths(10, 20), "2500"),
            "stubborn": buy("stubborn", "ETH-USD", tenths(10, 20), "2400", post_only=True),
            "triggered": buy(
                "triggered", "SOL-USD", tenths(10, 90), "157", type=OrderType.STOP_LIMIT, stop_price=Decimal(155)
            ),
        }
        names = list(made)
        chance.shuffle(names)
        return {name: made[name] for name in names}

    async def tell(self) -> None:
        """All of it, to the last order's end."""
        async for check, what in self._steps():
            await self.until(check, what)

    async def _steps(self) -> AsyncIterator[tuple[Check, str]]:
        rig = self.rig
        orders = self.orders()
        for name, order in orders.items():
            yield self._reserved(order), f"{name} is reserved"
            if name == "hasty":
                # Asked for while execution is at work on it: whether it was sent is chance.
                yield self._cancel_asked(name), f"a cancel of {name} is asked for"
        for name in ("resting", "crossed", "amended", "stubborn", "triggered"):
            yield self._is(name, "OPEN"), f"{name} rests"
        # More than was ordered, and a price at which an order that must not take would take: that is refused.
        more = replace(orders["amended"], quantity=orders["amended"].quantity + 1, limit_price=Decimal(2600))
        across = replace(orders["stubborn"], limit_price=Decimal(3100))
        for wanted in (more, across):
            yield self._amend_asked(wanted), f"an amendment of {wanted.client_order_id} is asked for"
        yield self._cancel_asked("resting"), "a cancel of resting is asked for"
        rig.exchange.pin("ETH-USD", "2980")
        rig.exchange.pin("SOL-USD", "155")
        for wanted in (more, orders["stubborn"]):
            yield self._stands_at(wanted), f"{wanted.client_order_id} is as the venue has it"
        await rig.fill("amended")
        yield self._cancel_asked("stubborn"), "a cancel of stubborn is asked for"
        for name, status in ENDINGS.items():
            if name != "last":
                yield self._is(name, status.value), f"{name} ends {status}"
        # That orders still go through at the end, and exactly what was ordered.
        yield self._reserved(buy("last", "SOL-USD", "2")), "last is reserved"
        yield self._is("last", "FILLED"), "last ends FILLED"

    def _reserved(self, order: Order) -> Check:
        async def check() -> bool:
            return await self.rig.decided(order)

        return check

    def _is(self, name: str, wanted: str) -> Check:
        async def check() -> bool:
            status = await self.rig.status(name)
            assert status == wanted or not terminal(status), f"{name}: expected {wanted}, was {status}"
            return status == wanted

        return check

    def _amend_asked(self, wanted: Order) -> Check:
        async def check() -> bool:
            with contextlib.suppress(LedgerUnavailable):
                verdict = await self.rig.ledger.amend(wanted, self.rig.products[wanted.product_id], "test")
                assert verdict is not None
                assert verdict.accepted, verdict
                return True
            return False

        return check

    def _stands_at(self, wanted: Order) -> Check:
        async def check() -> bool:
            fields = await self.rig.ledger.order(ACCOUNT, wanted.client_order_id) or {}
            if "amend" in fields:
                return False
            held = Decimal(fields["quantity"]), Decimal(fields["limit_price"])
            assert held == (wanted.quantity, wanted.limit_price), (fields, wanted)
            return True

        return check

    def _cancel_asked(self, name: str) -> Check:
        asked: list[Any] = []

        async def check() -> bool:
            if not asked:
                asked.append(await self.rig.ledger.request_cancel(ACCOUNT, name, "test"))
            return True

        return check
