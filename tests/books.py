"""A small account for tests of the ledger: every limit unlimited until a test sets one, numbers one can check by hand.

BTC-USD: a lot is 0.001 BTC, a tick 0.01 USD, a lot at a tick 10 micros; bid 99.00, ask 101.00.
XRP-USD: a lot is 0.01 XRP, a tick 0.00001 USD, a lot at a tick a tenth of a micro; bid 0.50000, ask 0.50001.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple

from cluster.ledger import DESK_BASE, Ledger, Reference, Verdict, account_base
from strategies.model import Fill, Order, OrderType, Product, Side, TimeInForce, TradingState

ACCOUNT: Final = "main"
BASE: Final = account_base(ACCOUNT)
DESK: Final = DESK_BASE
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
GROUP: Final = "majors"
"""The group both products are in."""
KEY: Final = "test"
"""The API key every order is asked for with, unless a test names another; its limits are those of ``key|*``."""
FEE_PPM: Final = 6_000
BUFFER_PPM: Final = 10_000
QUOTES: Final = {"BTC-USD": (9_900, 10_100), "XRP-USD": (50_000, 50_001)}
"""Reference bid and ask in ticks; the sizes are unknown."""
ASKER: Final = "asker"
APPROVER: Final = "approver"
"""The two people who loosen a limit or resume trading in tests."""

_ALL: Final = {"order_interval_us": "unlimited", "order_burst": "100"} | dict.fromkeys(
    ("max_order_notional", "max_open_orders", "max_open_notional", "max_daily_orders", "max_daily_turnover"),
    "unlimited",
)
_GLOBAL: Final = _ALL | dict.fromkeys(
    ("max_gross_exposure", "max_net_exposure", "max_daily_loss", "max_drawdown_ppm"), "unlimited"
)
_REJECTS: Final = {"max_rejects": "unlimited", "reject_window_ms": "60000", "duplicate_window_ms": "0"}
_ACCOUNT: Final = (
    _GLOBAL
    | _REJECTS
    | {
        "max_leverage_ppm": "unlimited",
        "max_concentration_ppm": "unlimited",
        "max_order_to_trade": "unlimited",
        "message_interval_us": "unlimited",
        "message_burst": "100",
        "cancel_reserve": "0",
        "taker_fee_ppm": str(FEE_PPM),
        "market_buffer_ppm": str(BUFFER_PPM),
        "reference_stale_ms": "3600000",
        "reference_halt_ms": "unlimited",
        "max_clock_skew_ms": "unlimited",
        "max_venue_errors": "unlimited",
        "venue_error_window_ms": "60000",
        "self_trade": "allow",
    }
)
_STRATEGY: Final = (
    _GLOBAL
    | _REJECTS
    | {
        "capital": "unlimited",
        "max_order_to_trade": "unlimited",
        "max_loss_streak": "unlimited",
        "max_repeats": "unlimited",
        "repeat_window_ms": "60000",
        "short": "allowed",
        "hours": "always",
        "versions": "any",
    }
)
_PRODUCT: Final = (
    _ALL
    | dict.fromkeys(
        ("max_order_lots", "max_position_lots", "max_strategy_position_lots", "max_gross_exposure", "max_daily_loss",
         "max_concentration_ppm", "collar_ppm", "max_spread_ppm", "fat_finger_ppm", "max_depth_ppm", "volatility_ppm"),
        "unlimited",
    )
    | {
        "volatility_window_ms": "60000",
        "volatility_halt_ms": "60000",
        "restricted": "no",
        "hours": "always",
        "group": GROUP,
    }
)  # fmt: skip
DESK_LIMITS: Final[dict[str, dict[str, str]]] = {"global": _GLOBAL}
ACCOUNT_LIMITS: Final[dict[str, dict[str, str]]] = {
    "account": _ACCOUNT,
    **{f"strategy|{strategy}": _STRATEGY for strategy in STRATEGIES},
    **{f"product|{product}": _PRODUCT for product in PRODUCTS},
    "key|*": _ALL,
    f"group|{GROUP}": {"max_gross_exposure": "unlimited"},
}
UNLIMITED: Final = {
    f"{scope}|{name}": text for scope, values in (DESK_LIMITS | ACCOUNT_LIMITS).items() for name, text in values.items()
}
"""Every limit there is as "scope|name", the words and windows at their loosest."""
CALENDAR: Final = "UTC 0"

Changed = Mapping[str, str | None]
"""Limits as "scope|name" -> "hard" or "hard:soft" (None leaves it out of its record); "calendar" -> its record;
a whole scope -> None leaves the record out."""


class Day(NamedTuple):
    """The figures of a scope's day as the book packs them."""

    day: int
    orders: int
    turnover: int
    pnl_start: int
    messages: int
    fills: int


@dataclass
class Books:
    """The account, and the verbs with what a test does not care about left out."""

    ledger: Ledger
    account: str = ACCOUNT
    epoch: int = 0
    trades: int = 0
    orders: dict[str, Order] = field(default_factory=dict)

    async def open(
        self, cash: int = 10**15, lots: Mapping[str, int] | None = None, limits: Changed | None = None
    ) -> Books:
        """Limits, prices, an epoch, cash in micros and opening positions in lots (at no cost); then orders may come."""
        await self.limit(limits or {})
        await self.quote()
        self.epoch = await self.ledger.claim(self.account, "test")
        positions = {product: (held, 0) for product, held in (lots or {}).items()}
        assert await self.ledger.open_account(self.account, cash, positions, "test")
        await self.ledger.admit(self.account, self.epoch)
        return self

    async def limit(self, changed: Changed) -> None:
        """All limits as in ``UNLIMITED``, except these; what two people must agree on, two people agree on here."""
        desk, own = limit_records(changed)
        await self.set_records(None, desk)
        await self.set_records(self.account, own)

    async def set_records(self, account: str | None, records: Mapping[str, str]) -> None:
        """Set the records of the account or (None) of the desk, and approve as another person what needs approval."""
        change = await self.ledger.set_limits(account, records, "test", person=ASKER)
        if change.proposal_id is not None:
            await self.approve(change.proposal_id, account)

    async def approve(self, proposal_id: str, account: str | None = "") -> None:
        """Approve a proposal that must be applied by that."""
        account = self.account if account == "" else account
        (digest,) = [p.digest for p in await self.ledger.proposals(account) if p.id == proposal_id]
        approval = await self.ledger.approve(account, proposal_id, digest, "second", APPROVER)
        assert approval.outcome == "APPLIED", approval

    async def resume(self, scope: str, account: str | None = "") -> None:
        """Set a scope back to ACTIVE, as two people do; ``global`` is the desk's."""
        account = None if scope == "global" else self.account if account == "" else account
        proposal = await self.ledger.propose_resume(account, scope, "test", ASKER, "the test goes on")
        await self.approve(proposal.id, account)

    async def halt(self, scope: str, state: TradingState = TradingState.HALTED) -> None:
        """Tighten a scope's state; ``global`` is the desk's."""
        await self.ledger.tighten(None if scope == "global" else self.account, scope, state, "test", "why")

    async def states(self) -> dict[str, str]:
        """Trading state of every scope, with the desk's ``global``."""
        snapshot = await self.ledger.snapshot(self.account)
        found = snapshot.desk_state | snapshot.state
        return {scope: text for scope, text in found.items() if scope != "epoch" and not scope.startswith("cause|")}

    async def causes(self) -> dict[str, str]:
        """Cause of every automatic halt that stands, by scope."""
        snapshot = await self.ledger.snapshot(self.account)
        found = snapshot.desk_state | snapshot.state
        return {s.removeprefix("cause|"): text for s, text in found.items() if s.startswith("cause|") and text}

    async def quote(
        self,
        quotes: Mapping[str, tuple[int, int]] = QUOTES,
        sizes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """Reference prices in ticks, with the lots at the touch (bid, ask) where they are known."""
        references = []
        for product_id, (bid, ask) in quotes.items():
            product, size = PRODUCTS[product_id], (sizes or {}).get(product_id)
            sized = () if size is None else (product.quantity(size[0]), product.quantity(size[1]))
            references.append(Reference(product, product.price(bid), product.price(ask), *sized))
        await self.ledger.set_references(self.account, references)

    async def reserve(self, order: Order, by: str = KEY) -> Verdict:
        """Ask for a reservation."""
        self.orders[order.client_order_id] = order
        return await self.ledger.reserve(order, PRODUCTS[order.product_id], by)

    async def check(self, order: Order, by: str = KEY) -> Verdict:
        """Ask what a reservation would be answered."""
        return await self.ledger.check(order, PRODUCTS[order.product_id], by)

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

    async def codes(self, client_order_id: str, **changed: Any) -> set[tuple[str, str]]:
        """(code, scope) of the rules an order breaks."""
        return {(denial["code"], denial["scope"]) for denial in await self.denials(client_order_id, **changed)}

    async def send(self, client_order_id: str) -> None:
        """Carry an order to the venue, which takes it."""
        assert await self.ledger.mark_sent(self.account, self.epoch, client_order_id) == (True, "SENT")

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
        return await self.ledger.fill(self.account, self.epoch, done, product)

    async def book(self, *, marks: bool = False, account: str | None = "") -> dict[str, int]:
        """Every plain integer of the book that is not 0; ``marks`` are the figures that move with the prices."""
        snapshot = await self.ledger.snapshot(self.account)
        figures = snapshot.desk_book if account is None else snapshot.book
        left_out = _PACKED if marks else _PACKED | _MARKS
        return {n: int(v) for n, v in figures.items() if n.rpartition("|")[2] not in left_out and int(v)}

    async def day(self, prefix: str = "a", account: str | None = "") -> Day:
        """The day's figures of a scope by its prefix in the book: a, p|P, s|S, k|K; "" and None of the desk."""
        snapshot = await self.ledger.snapshot(self.account)
        text = snapshot.desk_book["day"] if account is None else snapshot.book[f"{prefix}|day"]
        return Day(*map(int, text.split()))

    async def positions(self) -> dict[str, int]:
        """Lots held by product, those that are not 0."""
        book = await self.book()
        return {n.split("|")[1]: v for n, v in book.items() if n.startswith("p|") and n.endswith("|lots")}

    async def strategy_positions(self) -> dict[tuple[str, str], int]:
        """Lots held by (strategy, product), those that are not 0."""
        book = await self.book()
        named = {tuple(n.split("|")): v for n, v in book.items() if n.startswith("sp|") and n.endswith("|lots")}
        return {(name[1], name[2]): lots for name, lots in named.items()}

    async def status(self, client_order_id: str) -> str | None:
        """Where an order stands; None where it is not known."""
        fields = await self.ledger.order(self.account, client_order_id)
        return None if fields is None else fields["status"]

    async def audit(self) -> list[tuple[str, str]]:
        """(kind, id) of every audit entry, oldest first."""
        entries = await self.ledger._direct("XRANGE", f"{account_base(self.account)}:audit", "-", "+")
        return [(fields["kind"], fields["id"]) for _, fields in entries]

    async def outbox(self) -> list[tuple[str, str]]:
        """(kind, id) of every outbox entry, oldest first."""
        entries = await self.ledger._direct("XRANGE", f"{account_base(self.account)}:outbox", "-", "+")
        return [(fields["kind"], fields["id"]) for _, fields in entries]

    async def keys(self) -> dict[str, Any]:
        """Everything the server holds, to compare before and after."""
        names = sorted(await self.ledger._direct("KEYS", "*"))
        return dict(zip(names, await asyncio.gather(*map(self._content, names)), strict=True))

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


_PACKED: Final = {
    *("seq", "head", "held", "day", "tat", "msg_tat", "rejects", "venue_errors", "repeats", "recent", "strategies"),
}
_MARKS: Final = {"gross", "value", "pnl", "equity", "peak"}


def limit_records(changed: Changed | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """The records of the desk and of the account: all limits as in ``UNLIMITED`` except these."""
    scopes: dict[str, dict[str, str]] = {s: dict(v) for s, v in (DESK_LIMITS | ACCOUNT_LIMITS).items()}
    calendar: str | None = CALENDAR
    for field_name, text in (changed or {}).items():
        scope, _, name = field_name.rpartition("|")
        if field_name == "calendar":
            calendar = text
        elif text is None and field_name in scopes:
            del scopes[field_name]
        elif text is None:
            del scopes[scope][name]
        else:
            # A scope not there yet (a key of its own, a third product) starts as loose as the others of its kind.
            scopes.setdefault(scope, dict(_LOOSE.get(scope.partition("|")[0], {})))[name] = text
    records = {scope: record(values) for scope, values in scopes.items()}
    common = {} if calendar is None else {"calendar": calendar}
    desk = {scope: text for scope, text in records.items() if scope == "global"}
    return desk | common, {scope: text for scope, text in records.items() if scope != "global"} | common


def record(values: Mapping[str, str]) -> str:
    """A record's text: its names sorted, one blank between them."""
    return " ".join(f"{name}={values[name]}" for name in sorted(values))


_LOOSE: Final[dict[str, dict[str, str]]] = {
    "strategy": _STRATEGY,
    "product": _PRODUCT,
    "key": _ALL,
    "group": {"max_gross_exposure": "unlimited"},
}


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
