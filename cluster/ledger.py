"""The shared state of the desk: one atomic call a verb into the Redis Functions library of the ledger_*.lua files.

``Ledger`` is stateless beside its connection, so any number of replicas may hold one. How the calls travel is in
``cluster.ledger_wire``.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from typing import Any, Final

import msgspec

from cluster.ledger_wire import PIPELINE_CALLS_MAX, Wire
from cluster.ledger_wire import LedgerError as LedgerError
from cluster.ledger_wire import LedgerUnavailable as LedgerUnavailable
from cluster.ledger_wire import StaleEpoch as StaleEpoch
from conf.settings import Secrets, Settings
from strategies.model import (
    EXACT,
    MICROS_PER_UNIT,
    Denial,
    Fill,
    IncrementError,
    Order,
    OrderStatus,
    OrderType,
    Product,
    Side,
    TimeInForce,
    TradingState,
    micros_exact,
)

DESK_BASE: Final = "tt:{desk}"
LIBRARY: Final = "tt_ledger"
_PARTS: Final = ("ledger_base", "ledger_marks", "ledger_reserve", "ledger_orders", "ledger_venue", "ledger_desk")
ACCOUNTS_KEY: Final = f"{DESK_BASE}:accounts"
PRODUCTS_KEY: Final = "tt:products"
API_KEYS_KEY: Final = f"{DESK_BASE}:api_keys"
HEARTBEATS_KEY: Final = "tt:heartbeats"
OUTBOX_GROUP: Final = "execution"


class EnvironmentMixed(LedgerError):
    """These books are of another environment (paper, sandbox, live) than the venue orders would go to."""


class OrderKnown(LedgerError):
    """There is an order of this id already, accepted or denied, so nothing can be decided for it in advance."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ledger's answer: ``kind`` ACCEPTED, DENIED, REPEATED (with the FIRST answer), CONFLICT or CHECKED."""

    kind: str
    answer: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the first answer to this id was yes."""
        return self.answer.get("verdict") == "ACCEPTED" and self.kind != "CONFLICT"


@dataclass(frozen=True, slots=True)
class Reference:
    """A product's best bid and ask in quote currency units, with the sizes there in base units where known.

    ``age_ms`` is how old they were when they were handed over.
    """

    product: Product
    bid: Decimal
    ask: Decimal
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An account and the desk at one instant, fields as the ledger names them, integers as text.

    ``admitted``: whether this server process takes orders for the account. Of the desk itself, ``state``, ``limits``
    and ``book`` are the desk's too.
    """

    state: dict[str, str]
    limits: dict[str, str]
    book: dict[str, str]
    reference: dict[str, str]
    desk_state: dict[str, str]
    desk_limits: dict[str, str]
    desk_book: dict[str, str]
    now_ms: int
    admitted: bool


@dataclass(frozen=True, slots=True)
class LimitsChange:
    """What ``set_limits`` did: the version that holds, the records now written (None: removed), what waits."""

    version: int
    changed: dict[str, str | None]
    proposal_id: str | None


@dataclass(frozen=True, slots=True)
class Proposal:
    """What waits for a second person: ``kind`` RESUME, LIMITS, OVERRIDE or ADJUST.

    ``status`` is PENDING, APPLIED, REFUSED or EXPIRED. An OVERRIDE that is APPLIED lets its order through until it
    expires; with that order it is USED.
    """

    id: str
    kind: str
    account: str | None
    payload: dict[str, Any]
    reason: str
    by: str
    person: str
    digest: str
    created_ms: int
    expires_ms: int
    status: str
    approver: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """APPLIED, REFUSED, or why not: NOT_FOUND, EXPIRED, SAME_PERSON, CHANGED, DONE, STILL_BREACHED."""

    outcome: str
    detail: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of the books that does not add up."""

    what: str
    booked: int
    computed: int


@dataclass(frozen=True, slots=True)
class Arming:
    """Until when real orders may be sent, who said so and why."""

    until_ms: int
    by: str
    person: str
    reason: str


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One instruction on its way to the venue."""

    entry_id: str
    kind: str
    client_order_id: str


def account_base(account: str | None) -> str:
    """The base of all of an account's keys (None: the desk's); the braces put them all into one hash slot."""
    return DESK_BASE if account is None else f"{DESK_BASE}:{account}"


@functools.cache
def library_source() -> str:
    """The function library: its parts joined."""
    return "\n".join((files("cluster") / f"{part}.lua").read_text() for part in _PARTS)


def value_scale(product: Product) -> tuple[int, int]:
    """Micros that one lot is worth at one tick, as (numerator, denominator) in lowest terms."""
    return _scale(product.base_increment, product.quote_increment)


@functools.lru_cache(maxsize=4096)
def _scale(base_increment: Decimal, quote_increment: Decimal) -> tuple[int, int]:
    scale = Fraction(base_increment) * Fraction(quote_increment) * MICROS_PER_UNIT
    return scale.numerator, scale.denominator


def fingerprint(order: Order) -> str:
    """Identity of an order's content: a repeat of its id must have the same one."""
    price = None if order.limit_price is None else str(order.limit_price.normalize(EXACT))
    content: list[str | int | bool | None] = [
        order.client_order_id,
        order.account,
        order.strategy,
        order.product_id,
        order.side,
        order.type,
        order.time_in_force,
        str(order.quantity.normalize(EXACT)),
        price,
        order.post_only,
        order.reduce_only,
        order.strategy_version,
    ]
    if order.stop_price is not None or order.end_ns is not None:
        stop_price = None if order.stop_price is None else str(order.stop_price.normalize(EXACT))
        content += [stop_price, order.end_ns]
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=16).hexdigest()


def order_of(client_order_id: str, account: str, fields: Mapping[str, str]) -> Order:
    """The order a ledger record stands for."""
    return Order(
        client_order_id=client_order_id,
        account=account,
        strategy=fields["strategy"],
        product_id=fields["product"],
        side=Side(fields["side"]),
        type=OrderType(fields["type"]),
        time_in_force=TimeInForce(fields["tif"]),
        quantity=Decimal(fields["quantity"]),
        limit_price=Decimal(fields["limit_price"]) if fields["limit_price"] else None,
        post_only=fields["post_only"] == "1",
        stop_price=Decimal(fields["stop_price"]) if fields.get("stop_price") else None,
        end_ns=int(fields["end_ns"]) if fields.get("end_ns") else None,
        reduce_only=fields.get("reduce_only") == "1",
        strategy_version=fields.get("version", ""),
    )


class Ledger:
    """The verbs. Every method may raise ``LedgerUnavailable`` or ``LedgerError``."""

    def __init__(self, wire: Wire) -> None:
        """Use ``wire`` for everything; ``close`` closes it."""
        self._wire = wire
        # The newest epoch seen of each account: a server that is behind it answers from an old state.
        self._epochs: dict[str, int] = {}

    @classmethod
    def connect(cls, settings: Settings, secrets: Secrets) -> Ledger:
        """A ledger on the server of ``settings``; nothing is sent yet."""
        return cls(Wire.connect(settings, secrets))

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()

    async def install(self) -> None:
        """Load the function library, replacing another version of it.

        The same one stays: with a new copy the server would forget which accounts it may take orders for.
        """
        loaded = await self._direct("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY, "WITHCODE")
        if not loaded or _library_code(loaded[0]) != library_source():
            await self._direct("FUNCTION", "LOAD", "REPLACE", library_source())

    async def ping(self) -> None:
        """Return when the server answers and has the library."""
        reply = await self._direct("FUNCTION", "LIST", "LIBRARYNAME", LIBRARY)
        if not reply:
            raise LedgerUnavailable("the ledger's function library is not loaded (desk up loads it)")

    async def server(self) -> tuple[str, str]:
        """Name and version of the server; one that still loads its data does not answer yet."""
        if int((await self._direct("INFO", "persistence")).get("loading", 0)):
            raise LedgerUnavailable("the ledger does not answer: it is loading its data")
        info = await self._direct("INFO", "server")
        name = str(info.get("server_name") or "redis")
        return name, str(info.get(f"{name}_version") or info.get("redis_version"))

    async def memory(self) -> tuple[int, int]:
        """Bytes used and bytes allowed."""
        info = await self._direct("INFO", "memory")
        return int(info["used_memory"]), int(info["maxmemory"])

    # -- orders --------------------------------------------------------------------------------------------------------

    async def reserve(self, order: Order, product: Product | None, by: str, denials: Sequence[Denial] = ()) -> Verdict:
        """Decide on ``order`` and, if it may pass, reserve, audit and queue it: one atomic step.

        ``denials`` are what the stateless checks found; with any, the order is denied and that is recorded. Raises
        ``LedgerUnavailable`` beginning with RECONCILING or STALE_EPOCH where this server must not decide now.
        """
        reply = await self._decide("tt_reserve", order, product, by, denials)
        kind = str(reply[0])
        if kind == "CONFLICT":
            return Verdict(kind, {"client_order_id": order.client_order_id})
        if len(reply) == 3:
            return Verdict(kind, msgspec.json.decode(reply[2]))
        return Verdict(kind, _accepted(order, reply))

    async def check(self, order: Order, product: Product | None, by: str, denials: Sequence[Denial] = ()) -> Verdict:
        """What ``reserve`` would answer to a new id, at this instant; nothing is written. Raises as ``reserve``."""
        reply = await self._decide("tt_check", order, product, by, denials)
        return Verdict("CHECKED", msgspec.json.decode(reply[2]))

    async def _decide(
        self, function: str, order: Order, product: Product | None, by: str, denials: Sequence[Denial]
    ) -> list[Any]:
        seen = self._epochs.get(order.account, 0)
        reply = await self._call(function, order.account, _packed(order, product, by, denials, seen))
        if reply[0] == "NEW_EPOCH":
            # Somebody has reconciled the account since; what this caller keeps of it is read anew by whoever keeps it.
            self._epochs[order.account] = seen = int(reply[1])
            reply = await self._call(function, order.account, _packed(order, product, by, denials, seen))
        if reply[0] in {"STALE_EPOCH", "NEW_EPOCH"}:
            raise LedgerUnavailable(f"STALE_EPOCH: the server is at epoch {reply[1]}, this caller has seen {seen}")
        if reply[0] == "RECONCILING":
            raise LedgerUnavailable(f"RECONCILING: account {order.account} is being compared with the venue")
        self._epochs[order.account] = int(reply[1])
        return list(reply)

    async def amend(self, order: Order, product: Product, by: str, denials: Sequence[Denial] = ()) -> Verdict | None:
        """Ask the venue to make the order of this id what ``order`` says (its whole quantity, its limit price).

        Until the venue has answered, the larger of old and new is reserved. None where there is no such order. A
        DENIED answer leaves the order as it is. Raises as ``reserve``.
        """
        reply = await self._decide("tt_amend", order, product, by, denials)
        kind = str(reply[0])
        if kind == "NOT_FOUND":
            return None
        if kind == "DENIED":
            return Verdict(kind, msgspec.json.decode(reply[2]))
        return Verdict(kind, _accepted(order, reply))

    async def request_cancel(self, account: str, client_order_id: str, by: str) -> tuple[str, str]:
        """Cancel at once what was not sent, else ask the venue: (status, CANCELLED | REQUESTED | ALREADY)."""
        status, outcome = await self._call("tt_request_cancel", account, client_order_id, by)
        return str(status), str(outcome)

    async def order(self, account: str, client_order_id: str) -> dict[str, str] | None:
        """The order's fields, or None."""
        fields = await self._direct("HGETALL", f"{account_base(account)}:order:{client_order_id}")
        return fields or None

    async def open_orders(self, account: str, at_most: int = 10_000) -> list[dict[str, str]]:
        """Orders that hold a reservation, oldest first, each with its ``client_order_id``."""
        ids = await self._direct("ZRANGE", f"{account_base(account)}:open", "0", str(at_most - 1))
        return await self._orders(account, ids)

    async def recent_orders(self, account: str, at_most: int = 100) -> list[dict[str, str]]:
        """The orders of the newest audit entries, newest first, open and ended."""
        entries = await self._direct("XREVRANGE", f"{account_base(account)}:audit", "+", "-", "COUNT", "2000")
        ids = dict.fromkeys(fields["id"] for _, fields in entries if fields["kind"] in {"RESERVED", "DENIED"})
        return await self._orders(account, list(ids)[:at_most])

    async def _orders(self, account: str, ids: Sequence[str]) -> list[dict[str, str]]:
        base = account_base(account)
        found: list[dict[str, str]] = []
        # One pipeline's worth at a time, so that a long list does not keep orders waiting.
        for start in range(0, len(ids), PIPELINE_CALLS_MAX):
            part = ids[start : start + PIPELINE_CALLS_MAX]
            found += await asyncio.gather(*(self._direct("HGETALL", f"{base}:order:{name}") for name in part))
        return [{"client_order_id": key, **fields} for key, fields in zip(ids, found, strict=True) if fields]

    # -- execution -----------------------------------------------------------------------------------------------------

    async def claim(self, account: str, by: str) -> int:
        """A new epoch; every writer with an older one is refused from now on."""
        return int(await self._call("tt_claim", account, by))

    async def admit(self, account: str, epoch: int, by: str = "execution") -> None:
        """Let the server process that answers take orders for the account: it has been reconciled."""
        await self._fenced("tt_admit", account, epoch, by)

    async def watch(self, account: str, epoch: int) -> list[str]:
        """Halt products whose prices have stayed too old: the causes that tripped, or NOT_ADMITTED: reconcile."""
        return (await self._fenced("tt_watch", account, epoch))[1:]

    async def venue_errors(self, account: str, epoch: int, count: int) -> None:
        """Count failures of the venue since the last call; too many of them stop all but reducing orders."""
        await self._fenced("tt_venue_errors", account, epoch, str(count))

    async def prove(self, account: str | None) -> int:
        """Sum every open reservation afresh: how many counters differ. Any difference halts, in the same step."""
        return int(await self._call("tt_prove", account))

    async def mark_sent(self, account: str, epoch: int, client_order_id: str) -> tuple[bool, str]:
        """(whether this caller may send it, the status now)."""
        reply = await self._fenced("tt_mark_sent", account, epoch, client_order_id)
        return len(reply) > 1, reply[0]

    async def ack(
        self, account: str, epoch: int, client_order_id: str, status: OrderStatus, venue_order_id: str = ""
    ) -> str:
        """Note the venue's answer (OPEN), or that there was none (UNKNOWN). Returns the status now."""
        reply = await self._fenced("tt_ack", account, epoch, client_order_id, status.value, venue_order_id)
        return reply[0]

    async def fill(self, account: str, epoch: int, fill: Fill, product: Product) -> tuple[str, str]:
        """Book a fill once: (APPLIED | DUPLICATE | NOT_FOUND, the order's status).

        Raises ``LedgerError`` for a fill of another product or side than its order's.
        """
        reply = await self._fenced(
            "tt_fill",
            account,
            epoch,
            fill.client_order_id,
            fill.trade_id,
            str(_increments(product.lots, fill.quantity)),
            str(micros_exact(EXACT.multiply(fill.price, fill.quantity))),
            str(micros_exact(fill.fee)),
            str(fill.ts_ns),
            fill.product_id,
            fill.side.value,
        )
        return reply[0], reply[1]

    async def release(
        self, account: str, epoch: int, client_order_id: str, status: OrderStatus, reason: str, by: str = "execution"
    ) -> tuple[bool, str]:
        """End an order and free its reservation: (whether this call did it, the status now)."""
        reply = await self._fenced("tt_release", account, epoch, client_order_id, status.value, reason, by)
        return len(reply) > 1, reply[0]

    async def set_references(self, account: str, references: Sequence[Reference]) -> None:
        """Set best bid and ask of products and mark every position to them; ages count from the server's clock."""
        arguments: list[str] = []
        for reference in references:
            product = reference.product
            numerator, denominator = value_scale(product)
            prices = (_increments(product.ticks, price) for price in (reference.bid, reference.ask))
            sizes = (_whole_lots(product, size) for size in (reference.bid_size, reference.ask_size))
            numbers = (*prices, numerator, denominator, *sizes, max(0, reference.age_ms))
            arguments += [product.product_id, *(str(number) for number in numbers)]
        if arguments:
            await self._call("tt_set_reference", account, *arguments)

    async def outbox_open(self, account: str) -> None:
        """Make the outbox's consumer group if it does not exist."""
        await self._call("tt_open_outbox", account, OUTBOX_GROUP)

    async def outbox_read(
        self, account: str, consumer: str, start: str, at_most: int, wait_ms: int = 0
    ) -> list[OutboxEntry]:
        """Entries for ``consumer``: ``start`` ">" = new ones, "0" = those it was given and has not finished.

        With ``wait_ms`` (below the time-out) the server holds the answer back until there is a new entry.
        """
        key = f"{account_base(account)}:outbox"
        command = ["XREADGROUP", "GROUP", OUTBOX_GROUP, consumer, "COUNT", str(at_most)]
        if wait_ms:
            # In the pipeline it would hold back everybody else's calls too.
            reply = await self._wire.send_alone(*command, "BLOCK", str(wait_ms), "STREAMS", key, start)
        else:
            reply = await self._direct(*command, "STREAMS", key, start)
        streams = reply.items() if isinstance(reply, dict) else reply or []
        return [
            OutboxEntry(entry_id, fields.get("kind", ""), fields.get("id", ""))
            for _, entries in streams
            for entry_id, fields in _flat_entries(entries)
            if fields
        ]

    async def amended(self, account: str, epoch: int, client_order_id: str) -> str:
        """The venue has amended the order. Returns the status now."""
        return (await self._fenced("tt_amended", account, epoch, client_order_id))[0]

    async def amend_refused(self, account: str, epoch: int, client_order_id: str, reason: str) -> str:
        """The venue has not amended the order, which is as it was. Returns the status now."""
        return (await self._fenced("tt_amend_refused", account, epoch, client_order_id, reason))[0]

    async def adopt(self, epoch: int, order: Order, product: Product, venue_order_id: str) -> bool:
        """Take over an order found at the venue: it counts from now on, and an alert says so. False: it was known."""
        packed = _packed(order, product, "venue", (), 0)
        return (await self._fenced("tt_adopt", order.account, epoch, packed, venue_order_id))[0] == "ADOPTED"

    async def recon_break(self, account: str, epoch: int, breaks: Sequence[str]) -> bool:
        """Halt the account, because books and venue differ as ``breaks`` say. False: it was halted already."""
        text = "; ".join(breaks)
        return (await self._fenced("tt_recon_break", account, epoch, str(len(breaks)), text))[0] == "HALTED"

    async def emptied(self, account: str, epoch: int, scope: str, figures: Mapping[str, Any]) -> None:
        """Note in the audit that the venue's own list of open orders of ``scope`` was empty."""
        await self._fenced("tt_emptied", account, epoch, scope, "execution", json.dumps(figures))

    async def venue_budget(self, kind: str, rate_per_s: float, cancel_share: float, wait_s_max: float) -> float:
        """Take one request out of what all processes share: seconds to wait before it, at most ``wait_s_max``.

        A negative number says that it was not taken, and after how many seconds one will be free. A share of the burst
        (one second's worth) is kept for the kind ``cancel``; the kind ``public`` has a budget of its own.
        """
        burst = max(1, round(rate_per_s))
        kept = 0 if kind in {"cancel", "public"} else min(burst - 1, round(burst * cancel_share))
        name = "public" if kind == "public" else "private"
        arguments = (name, round(1e6 / rate_per_s), burst, kept, round(wait_s_max * 1e6))
        taken, wait_us = await self._call("tt_venue_budget", None, *(str(part) for part in arguments))
        return int(wait_us) / 1e6 if int(taken) else -max(int(wait_us), 1) / 1e6

    async def outbox_done(self, account: str, entry_ids: Sequence[str]) -> None:
        """Remove finished entries."""
        await self._call("tt_finish_outbox", account, OUTBOX_GROUP, *entry_ids)

    async def queued(self, account: str) -> set[str]:
        """Client order ids of all entries not yet finished."""
        entries = await self._direct("XRANGE", f"{account_base(account)}:outbox", "-", "+")
        return {fields.get("id", "") for _, fields in entries}

    async def outbox_length(self, account: str) -> int:
        """Entries not yet finished."""
        return int(await self._direct("XLEN", f"{account_base(account)}:outbox"))

    # -- the account ---------------------------------------------------------------------------------------------------

    async def set_limits(
        self,
        account: str | None,
        records: Mapping[str, str],
        by: str,
        person: str = "",
        *,
        reason: str = "",
        ttl_s: float = 86_400,
        baseline: str = "",
    ) -> LimitsChange:
        """Ask for these limits, all of them by scope: the first time they are taken as they are.

        Later what is stricter holds at once, and what is looser becomes one proposal for another person. ``baseline``
        is the digest of a file they come from: one that was taken before changes nothing.
        """
        arguments = [part for pair in sorted(records.items()) for part in pair]
        head = (by, person, reason, str(round(ttl_s * 1000)), baseline)
        version, changed, proposal = await self._call("tt_set_limits", account, *head, *arguments)
        applied = {scope: record or None for scope, record in json.loads(changed).items()}
        return LimitsChange(int(version), applied, proposal or None)

    async def propose_resume(
        self, account: str | None, scope: str, by: str, person: str, reason: str, ttl_s: float = 600
    ) -> Proposal:
        """Ask for another person's approval to set ``scope`` ACTIVE."""
        ttl_ms = str(round(ttl_s * 1000))
        reply = await self._call("tt_propose_resume", account, scope, reason, by, person, ttl_ms)
        return _proposal(account, json.loads(reply), 0)

    async def propose_override(
        self, order: Order, product: Product, by: str, person: str, reason: str, ttl_s: float = 600
    ) -> Proposal:
        """Ask for another person's approval that exactly this order, once, may go over limits that can be overridden.

        Neither a halt nor what is missing, stale, not affordable or not allowed can be. Once approved the order passes
        when it is submitted under its id before the proposal expires. ``payload["denials"]`` are the rules it would
        break now. Raises ``OrderKnown``.
        """
        ttl_ms = str(round(ttl_s * 1000))
        packed = _packed(order, product, by, (), 0)
        outcome, text = await self._call("tt_propose_override", order.account, packed, reason, by, person, ttl_ms)
        if outcome == "KNOWN":
            raise OrderKnown(f"client_order_id {order.client_order_id} is an order's already; propose another id")
        return _proposal(order.account, json.loads(text), 0)

    async def propose_adjust(
        self,
        account: str,
        cash_micros: int,
        positions: Mapping[str, tuple[int, int]],
        by: str,
        person: str,
        reason: str,
        ttl_s: float = 600,
    ) -> Proposal:
        """Ask for another person's approval to book cash and {product: (lots, cost in micros)} that came or went.

        For deposits, withdrawals and what else changes at the venue without an order.
        """
        rows = {name: {"lots": str(lots), "cost": str(cost)} for name, (lots, cost) in sorted(positions.items())}
        payload = json.dumps({"cash": str(cash_micros), "positions": rows}, separators=(",", ":"))
        ttl_ms = str(round(ttl_s * 1000))
        reply = await self._call("tt_propose_adjust", account, payload, reason, by, person, ttl_ms)
        return _proposal(account, json.loads(reply), 0)

    async def approve(self, account: str | None, proposal_id: str, digest: str, by: str, person: str) -> Approval:
        """The second person's yes to the proposal with this digest; its effect comes in the same step."""
        return Approval(*await self._call("tt_approve", account, proposal_id, digest, by, person))

    async def refuse(self, account: str | None, proposal_id: str, by: str, person: str, reason: str) -> Approval:
        """End a proposal without its effect, or an approved override that was not used yet."""
        return Approval(*await self._call("tt_refuse", account, proposal_id, by, person, reason))

    async def proposals(self, account: str | None) -> list[Proposal]:
        """Everything proposed lately, newest first."""
        now_ms = await self._now_ms()
        found = _pairs(await self._direct("HGETALL", f"{account_base(account)}:approvals"))
        proposals = [_proposal(account, json.loads(text), now_ms) for text in found.values()]
        return sorted(proposals, key=lambda proposal: int(proposal.id), reverse=True)

    async def open_account(
        self, account: str, cash_micros: int, positions: Mapping[str, tuple[int, int]], by: str
    ) -> bool:
        """Open the books with cash and positions {product: (lots, cost in micros)}; only the first call counts."""
        arguments = [str(part) for product, pair in positions.items() for part in (product, *pair)]
        return str(await self._call("tt_open_account", account, by, str(cash_micros), *arguments)) == "OPENED"

    async def bind_environment(self, environment: str, by: str) -> None:
        """Say what these books are of; raises ``EnvironmentMixed`` where they are of another environment already."""
        outcome, bound = await self._call("tt_bind_environment", None, environment, by)
        if outcome != "OK":
            raise EnvironmentMixed(f"environment: these books are of {bound}; orders would go to {environment}")

    async def arm(self, by: str, person: str, reason: str, until_ms: int) -> None:
        """Let real orders pass until then (``until_ms`` in milliseconds UTC)."""
        await self._call("tt_arm", None, str(until_ms), by, person, reason)

    async def disarm(self, by: str, reason: str) -> None:
        """Let no more real orders pass."""
        await self._call("tt_arm", None, "0", by, "", reason)

    async def armed(self) -> Arming | None:
        """Until when real orders may pass; None where they may not."""
        text, until_ms = await self._direct("HMGET", f"{DESK_BASE}:environment", "armed", "armed_until_ms")
        if not text or int(until_ms) <= await self._now_ms():
            return None
        fields = json.loads(text)
        return Arming(int(until_ms), fields["by"], fields["person"], fields["reason"])

    async def environment(self) -> str | None:
        """What these books are of: paper, sandbox or live; None where nobody has said."""
        return await self._direct("HGET", f"{DESK_BASE}:environment", "name") or None

    async def opened_ns(self, account: str) -> int | None:
        """When the books were opened, in nanoseconds UTC; None where that is not known."""
        text = await self._direct("GET", f"{account_base(account)}:opened")
        return None if text is None else int(text) * 1000

    async def tighten(
        self, account: str | None, scope: str, state: TradingState, by: str, reason: str, cause: str = ""
    ) -> tuple[int, int, TradingState]:
        """Make a scope (global of the desk; account, strategy|S, product|P) at least as strict as ``state``.

        ``cause`` names the rule that asks for it (with an alert), "" a person. Returns (audit number, cancels asked
        for, the state that holds). Loosening is ``propose_resume``'s.
        """
        seq, asked, holds = await self._call("tt_tighten", account, scope, state.value, by, reason, cause)
        return int(seq), int(asked), TradingState(holds)

    async def accounts(self) -> list[str]:
        """Names of all accounts with limits."""
        return sorted(await self._direct("SMEMBERS", ACCOUNTS_KEY))

    async def snapshot(self, account: str | None) -> Snapshot:
        """The whole account, and the desk, at one instant."""
        reply = await self._call("tt_snapshot", account)
        parts = {reply[i]: _pairs(reply[i + 1]) for i in range(0, len(reply), 2)}
        server = parts.pop("server")
        return Snapshot(now_ms=int(server["now_ms"]), admitted=server["admitted"] == "1", **parts)

    async def open_sums(self, account: str | None) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Every open reservation summed afresh (``broken``, ``unqueued`` beside them), the book, the desk's book."""
        sums, book, desk = await self._call("tt_open_sums", account)
        return _pairs(sums), _pairs(book), _pairs(desk)

    async def audit_entries(
        self, account: str | None, after: str = "", at_most: int = 1000
    ) -> list[tuple[str, dict[str, str]]]:
        """Entries of the audit stream, oldest first, from behind the one with the stream id ``after``."""
        start = f"({after}" if after else "-"
        key = f"{account_base(account)}:audit"
        return list(await self._direct("XRANGE", key, start, "+", "COUNT", str(at_most)))

    async def recent_audit(
        self, account: str | None, before: str = "", at_most: int = 1000
    ) -> list[tuple[str, dict[str, str]]]:
        """Entries of the audit stream, newest first, from in front of the one with the stream id ``before``."""
        start = f"({before}" if before else "+"
        key = f"{account_base(account)}:audit"
        return list(await self._direct("XREVRANGE", key, start, "-", "COUNT", str(at_most)))

    async def archived(self, account: str | None, through_seq: int, file: str, sha256: str, by: str = "archive") -> int:
        """Note in the audit that entries up to ``through_seq`` are in ``file``; returns the note's own number."""
        return int(await self._call("tt_archived", account, str(through_seq), file, sha256, by))

    async def trim_audit(self, account: str | None, through_id: str) -> int:
        """Drop the entry with this stream id and all before it, if an archive holds them; returns how many."""
        return int(await self._call("tt_trim_audit", account, through_id))

    async def alerts(self, account: str | None, at_most: int = 100) -> list[dict[str, str]]:
        """The newest alerts, newest first: level SOFT or HARD, code, scope, value, limit, message, id, us."""
        entries = await self._direct("XREVRANGE", f"{account_base(account)}:alerts", "+", "-", "COUNT", str(at_most))
        return [dict(fields) for _, fields in entries]

    # -- what all share ------------------------------------------------------------------------------------------------

    async def set_products(self, products: Sequence[Product]) -> None:
        """Publish the venue's products for the replicas."""
        fields = [part for p in products for part in (p.product_id, json.dumps(asdict(p), default=str))]
        await self._send("FCALL", "tt_put", "1", PRODUCTS_KEY, *fields)

    async def products(self) -> dict[str, Product]:
        """The venue's products as last published."""
        return {key: _product(value) for key, value in _pairs(await self._direct("HGETALL", PRODUCTS_KEY)).items()}

    async def api_keys(self) -> dict[str, dict[str, Any]]:
        """Records of all API keys by key id; they hold hashes, not keys. One that cannot be read is no key."""
        found = _pairs(await self._direct("HGETALL", API_KEYS_KEY))
        return {key_id: record for key_id, text in found.items() if (record := _record(text)) is not None}

    async def put_api_key(self, key_id: str, record: Mapping[str, Any], by: str = "operator") -> None:
        """Add or replace an API key's record; who did it is audited, with everything but the hash."""
        shown = {name: value for name, value in record.items() if name != "hash"}
        await self._call("tt_put_key", None, key_id, json.dumps(record), by, json.dumps(shown))

    async def beat(self, part: str, detail: Mapping[str, Any]) -> None:
        """Note that a part of the desk is alive, with its figures; the time is the server's."""
        beat = {"at_ms": await self._now_ms(), **detail}
        await self._send("FCALL", "tt_put", "1", HEARTBEATS_KEY, part, json.dumps(beat))

    async def heartbeats(self) -> dict[str, dict[str, Any]]:
        """The last heartbeat of each part with ``age_ms``."""
        now_ms = await self._now_ms()
        beats = {k: json.loads(v) for k, v in _pairs(await self._direct("HGETALL", HEARTBEATS_KEY)).items()}
        return {part: beat | {"age_ms": now_ms - beat["at_ms"]} for part, beat in beats.items()}

    async def time_ns(self) -> int:
        """The server's clock in nanoseconds UTC (it tells microseconds)."""
        seconds, micros = await self._direct("TIME")
        return (int(seconds) * 1_000_000 + int(micros)) * 1000

    async def _now_ms(self) -> int:
        return await self.time_ns() // 1_000_000

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def _fenced(self, function: str, account: str, epoch: int, *arguments: str) -> list[str]:
        reply = await self._call(function, account, str(epoch), *arguments)
        if reply[0] == "STALE_EPOCH":
            raise StaleEpoch(f"epoch {epoch} of account {account} is over: another execution service has claimed it")
        return [str(part) for part in reply]

    async def _call(self, function: str, account: str | None, *arguments: str) -> Any:
        return await self._send("FCALL", function, "1", account_base(account), *arguments)

    async def _direct(self, *command: str) -> Any:
        return await self._send(*command)

    async def _send(self, *command: str) -> Any:
        return await self._wire.send(*command)


def _accepted(order: Order, reply: Sequence[Any]) -> dict[str, Any]:
    """What an acceptance says: ``reply`` is {kind, epoch, notional, cash, warnings}."""
    answer = {
        "client_order_id": order.client_order_id,
        "verdict": "ACCEPTED",
        "product_id": order.product_id,
        "reserved_notional_micros": reply[2],
        "reserved_cash_micros": reply[3],
    }
    if reply[4]:
        answer["warnings"] = msgspec.json.decode(reply[4])
    return answer


def _packed(order: Order, product: Product | None, by: str, denials: Sequence[Denial], epoch: int) -> str:
    # One argument instead of twenty: packing them one by one costs the client more than all else in this call.
    amounts = ("", "", "", "") if denials else _amounts(order, product)
    arguments: list[Any] = [
        order.client_order_id,
        fingerprint(order),
        order.strategy,
        order.product_id,
        order.side,
        order.type,
        order.time_in_force,
        str(order.quantity),
        "" if order.limit_price is None else str(order.limit_price),
        "1" if order.post_only else "0",
        *amounts,
        by,
        [asdict(denial) for denial in denials],
        str(epoch),
        str(time.time_ns() // 1_000_000),
        "1" if order.reduce_only else "0",
        order.strategy_version,
    ]
    if order.stop_price is not None or order.end_ns is not None:
        more: dict[str, str] = {} if order.end_ns is None else {"end_ns": str(order.end_ns)}
        if order.stop_price is not None and product is not None and not denials:
            more |= {"stop_price": str(order.stop_price), "stop_ticks": str(product.ticks(order.stop_price))}
        arguments.append(more)
    try:
        return msgspec.json.encode(arguments).decode()
    except UnicodeEncodeError as error:
        raise LedgerError(f"not text that can be sent: {error}") from None


def _amounts(order: Order, product: Product | None) -> tuple[str, str, str, str]:
    """Lots, ticks ("" = market order) and the value of a lot at a tick, as the ledger's integers."""
    if product is None:
        raise LedgerError(f"product_id: {order.product_id} is unknown, so the order needs a denial")
    numerator, denominator = value_scale(product)
    ticks = "" if order.limit_price is None else str(product.ticks(order.limit_price))
    return str(product.lots(order.quantity)), ticks, str(numerator), str(denominator)


def _increments(count: Callable[[Decimal], int], amount: Decimal) -> int:
    try:
        return count(amount)
    except IncrementError as error:
        raise LedgerError(f"the venue's figure does not fit its product: {error}") from error


def _whole_lots(product: Product, size: Decimal | None) -> int:
    """Lots of a size the market shows, rounded down; 0 where it is not known."""
    return int(EXACT.divide_int(size, product.base_increment)) if size else 0


def _proposal(account: str | None, fields: Mapping[str, str], now_ms: int) -> Proposal:
    expires_ms = int(fields["expires_ms"])
    ends = fields["status"] == "PENDING" or (fields["kind"], fields["status"]) == ("OVERRIDE", "APPLIED")
    return Proposal(
        id=fields["id"],
        kind=fields["kind"],
        account=account,
        payload=json.loads(fields["payload"]),
        reason=fields["reason"],
        by=fields["by"],
        person=fields["person"],
        digest=fields["digest"],
        created_ms=int(fields["created_ms"]),
        expires_ms=expires_ms,
        status="EXPIRED" if ends and now_ms > expires_ms else fields["status"],
        approver=fields.get("approver", ""),
    )


def _library_code(listed: Any) -> str:
    return str(_pairs(listed).get("library_code", ""))


def _pairs(flat: Any) -> dict[str, str]:
    return flat if isinstance(flat, dict) else {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}


def _flat_entries(entries: Any) -> list[tuple[str, dict[str, str]]]:
    # RESP3 nests one list deeper than RESP2.
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], (list, tuple)):
        entries = entries[0]
    return [(entry_id, _pairs(fields or {})) for entry_id, fields in entries]


def _record(text: str) -> dict[str, Any] | None:
    # One damaged record must lock out its own holder, not everybody.
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _product(text: str) -> Product:
    fields = json.loads(text)
    decimals = [name for name in fields if name.endswith(("_increment", "_size"))]
    return Product(**(fields | {name: Decimal(fields[name]) for name in decimals}))
