"""A small account for tests of the ledger: every limit unlimited until a test sets one, numbers one can check by hand.

BTC-USD: a lot is 0.001 BTC, a tick 0.01 USD, a lot at a tick 10 micros; bid 99.00, ask 101.00.
XRP-USD: a lot is 0.01 XRP, a tick 0.00001 USD, a lot at a tick a tenth of a micro; bid 0.50000, ask 0.50001.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final

from cluster.ledger import Ledger, Verdict
from strategies.model import Fill, Order, OrderType, Product, Side, TimeInForce

ACCOUNT: Final = "main"
BASE: Final = "tt:{main}"
BTC: Final = Product(
    product_id="BTC-USD",
    base_currency="BTC",
    quote_currency="USD",
    base_increment=Decimal("0.001"),
    quote_increment=Decimal("0.01"),
    base_min_size=Decimal("0.001"),
    base_max_size=Decimal(1_000_000_000),
    quote_min_size=Decimal(0),
    quote_max_size=Decimal(1_000_000_000),
)
XRP: Final = replace(
    BTC,
    product_id="XRP-USD",
    base_currency="XRP",
    base_increment=Decimal("0.01"),
    quote_increment=Decimal("0.00001"),
)
PRODUCTS: Final = {product.product_id: product for product in (BTC, XRP)}
STRATEGIES: Final = ("manual", "other")
FEE_PPM: Final = 6_000
BUFFER_PPM: Final = 10_000
QUOTES: Final = {"BTC-USD": (9_900, 10_100), "XRP-USD": (50_000, 50_001)}
"""Reference bid and ask in ticks."""

_SCOPED: Final = {
    "account": ("max_order_notional", "max_gross_exposure", "max_open_orders", "order_interval_us", "order_burst"),
    "product": ("max_order_notional", "max_position", "max_open_orders"),
    "strategy": ("max_order_notional", "max_gross_exposure", "max_open_orders", "order_interval_us", "order_burst"),
}
UNLIMITED: Final = {
    "account|reference_stale_ms": "3600000",
    "account|taker_fee_ppm": str(FEE_PPM),
    "account|market_buffer_ppm": str(BUFFER_PPM),
    **{f"account|{name}": "unlimited" for name in _SCOPED["account"]},
    **{f"product|{p}|{name}": "unlimited" for p in PRODUCTS for name in _SCOPED["product"]},
    **{f"strategy|{s}|{name}": "unlimited" for s in STRATEGIES for name in _SCOPED["strategy"]},
}


@dataclass
class Books:
    """The account, and the verbs with what a test does not care about left out."""

    ledger: Ledger
    epoch: int = 0
    trades: int = 0
    orders: dict[str, Order] = field(default_factory=dict)

    async def open(
        self, cash: int = 10**15, lots: Mapping[str, int] | None = None, limits: Mapping[str, str] | None = None
    ) -> Books:
        """Limits, prices, an epoch, cash in micros and opening positions in lots (at no cost)."""
        await self.limit(limits or {})
        await self.quote()
        self.epoch = await self.ledger.claim(ACCOUNT, "test")
        positions = {product: (held, 0) for product, held in (lots or {}).items()}
        assert await self.ledger.open_account(ACCOUNT, cash, positions, "test")
        return self

    async def limit(self, changed: Mapping[str, str]) -> None:
        """All limits as in ``UNLIMITED``, except these."""
        await self.ledger.set_limits(ACCOUNT, UNLIMITED | dict(changed), "test")

    async def quote(self, quotes: Mapping[str, tuple[int, int]] = QUOTES) -> None:
        """Reference prices in ticks."""
        priced = [(PRODUCTS[p], PRODUCTS[p].price(bid), PRODUCTS[p].price(ask)) for p, (bid, ask) in quotes.items()]
        await self.ledger.set_references(ACCOUNT, priced)

    async def reserve(self, order: Order) -> Verdict:
        """Ask for a reservation."""
        self.orders[order.client_order_id] = order
        return await self.ledger.reserve(order, PRODUCTS[order.product_id], "test")

    async def accept(self, client_order_id: str, **changed: Any) -> Order:
        """Reserve an order that must be accepted."""
        asked = order(client_order_id, **changed)
        verdict = await self.reserve(asked)
        assert (verdict.kind, verdict.accepted) == ("ACCEPTED", True), verdict
        return asked

    async def denials(self, client_order_id: str, **changed: Any) -> list[dict[str, str]]:
        """The broken rules of an order; none if it is accepted."""
        verdict = await self.reserve(order(client_order_id, **changed))
        return list(verdict.answer.get("denials", ()))

    async def send(self, client_order_id: str) -> None:
        """Carry an order to the venue, which takes it."""
        assert await self.ledger.mark_sent(ACCOUNT, self.epoch, client_order_id) == (True, "SENT")

    async def fill(
        self, client_order_id: str, lots: int, ticks: int, fee: int = 0, trade_id: str = ""
    ) -> tuple[str, str]:
        """A fill of an order asked for before, the fee in micros."""
        self.trades += 1
        asked = self.orders[client_order_id]
        product = PRODUCTS[asked.product_id]
        done = Fill(
            trade_id=trade_id or f"t-{self.trades}",
            client_order_id=client_order_id,
            venue_order_id="v",
            product_id=asked.product_id,
            side=asked.side,
            price=product.price(ticks),
            quantity=product.quantity(lots),
            fee=Decimal(fee).scaleb(-6),
            liquidity="TAKER",
            ts_ns=self.trades,
        )
        return await self.ledger.fill(ACCOUNT, self.epoch, done, product)

    async def book(self) -> dict[str, int]:
        """Every figure of the book that is not 0, the number of audit entries left out."""
        figures = (await self.ledger.snapshot(ACCOUNT)).book
        return {name: int(text) for name, text in figures.items() if int(text) and name != "seq"}

    async def positions(self) -> dict[str, int]:
        """Lots held, those that are not 0."""
        held = (await self.ledger.snapshot(ACCOUNT)).positions
        return {product: int(lots) for product, lots in held.items() if int(lots)}

    async def status(self, client_order_id: str) -> str | None:
        """Where an order stands; None where it is not known."""
        fields = await self.ledger.order(ACCOUNT, client_order_id)
        return None if fields is None else fields["status"]

    async def audit(self) -> list[tuple[str, str]]:
        """(kind, id) of every audit entry, oldest first."""
        entries = await self.ledger._direct("XRANGE", f"{BASE}:audit", "-", "+")
        return [(fields["kind"], fields["id"]) for _, fields in entries]

    async def outbox(self) -> list[tuple[str, str]]:
        """(kind, id) of every outbox entry, oldest first."""
        entries = await self.ledger._direct("XRANGE", f"{BASE}:outbox", "-", "+")
        return [(fields["kind"], fields["id"]) for _, fields in entries]

    async def keys(self) -> dict[str, Any]:
        """Everything the server holds, to compare before and after."""
        return {key: await self._content(key) for key in sorted(await self.ledger._direct("KEYS", "*"))}

    async def _content(self, key: str) -> Any:
        kind = await self.ledger._direct("TYPE", key)
        reads = {
            "hash": ("HGETALL", key),
            "string": ("GET", key),
            "set": ("SMEMBERS", key),
            "zset": ("ZRANGE", key, "0", "-1", "WITHSCORES"),
            "stream": ("XRANGE", key, "-", "+"),
        }
        return await self.ledger._direct(*reads[kind])


def order(client_order_id: str, *, lots: int = 10, ticks: int | None = 10_000, **changed: Any) -> Order:
    """A limit buy of BTC; ``ticks`` None makes it a market order."""
    product = PRODUCTS[changed.get("product_id", "BTC-USD")]
    base = Order(
        client_order_id=client_order_id,
        account=ACCOUNT,
        strategy="manual",
        product_id=product.product_id,
        side=Side.BUY,
        type=OrderType.MARKET if ticks is None else OrderType.LIMIT,
        time_in_force=TimeInForce.IOC if ticks is None else TimeInForce.GTC,
        quantity=product.quantity(lots),
        limit_price=None if ticks is None else product.price(ticks),
    )
    return replace(base, **changed)
