"""The shared state of the desk: one atomic call a verb into the Redis Functions library ledger.lua.

``Ledger`` is stateless beside its connection, so any number of replicas may hold one. How the calls travel is in
``cluster.ledger_wire``.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from importlib.resources import files
from typing import Any, Final

import msgspec

from cluster.ledger_replay import BrokenAudit, Replay
from cluster.ledger_wire import PIPELINE_CALLS_MAX, Wire
from cluster.ledger_wire import LedgerError as LedgerError
from cluster.ledger_wire import LedgerUnavailable as LedgerUnavailable
from cluster.ledger_wire import StaleEpoch as StaleEpoch
from conf.limits import AccountLimits
from conf.settings import Secrets, Settings
from strategies.model import (
    EXACT,
    LEDGER_INTEGER_MAX,
    MICROS_PER_UNIT,
    Denial,
    Fill,
    IncrementError,
    Order,
    OrderStatus,
    Product,
    TradingState,
    micros_exact,
)

ACCOUNTS_KEY: Final = "tt:accounts"
PRODUCTS_KEY: Final = "tt:products"
API_KEYS_KEY: Final = "tt:api_keys"
HEARTBEATS_KEY: Final = "tt:heartbeats"
_MICRO: Final = 1 / Decimal(MICROS_PER_UNIT)
OUTBOX_GROUP: Final = "execution"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ledger's answer to a reservation: ``kind`` ACCEPTED, DENIED, REPEATED or CONFLICT, and the FIRST answer."""

    kind: str
    answer: dict[str, Any]

    @property
    def accepted(self) -> bool:
        """Whether the first answer to this id was yes."""
        return self.answer.get("verdict") == "ACCEPTED" and self.kind != "CONFLICT"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of an account at one instant, fields as ledger.lua names them, integers as text."""

    state: dict[str, str]
    limits: dict[str, str]
    book: dict[str, str]
    positions: dict[str, str]
    reference: dict[str, str]
    now_ms: int
    strategy_positions: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure of the books that does not add up."""

    what: str
    booked: int
    computed: int


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """One instruction on its way to the venue."""

    entry_id: str
    kind: str
    client_order_id: str


def account_base(account: str) -> str:
    """The base of all of an account's keys; the braces put them into one hash slot."""
    return f"tt:{{{account}}}"


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
    content = [
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
    ]
    return hashlib.blake2b(msgspec.json.encode(content), digest_size=16).hexdigest()


class Ledger:
    """The verbs. Every method may raise ``LedgerUnavailable`` or ``LedgerError``."""

    def __init__(self, wire: Wire) -> None:
        """Use ``wire`` for everything; ``close`` closes it."""
        self._wire = wire

    @classmethod
    def connect(cls, settings: Settings, secrets: Secrets) -> Ledger:
        """A ledger on the server of ``settings``; nothing is sent yet."""
        return cls(Wire.connect(settings, secrets))

    async def close(self) -> None:
        """Close the connection."""
        await self._wire.close()

    async def install(self) -> None:
        """Load the function library, replacing an older one."""
        source = (files("cluster") / "ledger.lua").read_text()
        await self._direct("FUNCTION", "LOAD", "REPLACE", source)

    async def ping(self) -> None:
        """Return when the server answers and has the library."""
        reply = await self._direct("FUNCTION", "LIST", "LIBRARYNAME", "tt_ledger")
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

        ``denials`` are what the stateless checks found; with any, the order is denied and that is recorded.
        """
        amounts = ("", "", "", "") if denials else _amounts(order, product)
        arguments = [
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
        ]
        # One argument instead of sixteen: packing them one by one costs the client more than all else in this call.
        try:
            packed = msgspec.json.encode(arguments).decode()
        except UnicodeEncodeError as error:
            raise LedgerError(f"not text that can be sent: {error}") from None
        kind, answer = await self._call("tt_reserve", order.account, packed)
        return Verdict(kind, msgspec.json.decode(answer))

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

    async def set_references(self, account: str, quotes: Sequence[tuple[Product, Decimal, Decimal]]) -> None:
        """Set best bid and ask (quote currency units) of products; their age counts from the server's clock."""
        arguments: list[str] = []
        for product, bid, ask in quotes:
            numerator, denominator = value_scale(product)
            ticks = (str(_increments(product.ticks, bid)), str(_increments(product.ticks, ask)))
            arguments += [product.product_id, *ticks, str(numerator), str(denominator)]
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

    async def outbox_done(self, account: str, entry_ids: Sequence[str]) -> None:
        """Remove finished entries."""
        await self._call("tt_finish_outbox", account, OUTBOX_GROUP, *entry_ids)

    async def outbox_length(self, account: str) -> int:
        """Entries not yet finished."""
        return int(await self._direct("XLEN", f"{account_base(account)}:outbox"))

    # -- the account ---------------------------------------------------------------------------------------------------

    async def set_limits(self, account: str, fields: Mapping[str, str], by: str) -> int:
        """Replace the account's limits; returns their version (unchanged where nothing differs)."""
        arguments = [part for pair in sorted(fields.items()) for part in pair]
        version = int(await self._call("tt_set_limits", account, by, *arguments))
        if account not in await self.accounts():
            await self._direct("SADD", ACCOUNTS_KEY, account)
        return version

    async def open_account(
        self, account: str, cash_micros: int, positions: Mapping[str, tuple[int, int]], by: str
    ) -> bool:
        """Open the books with cash and positions {product: (lots, cost in micros)}; only the first call counts."""
        arguments = [str(part) for product, pair in positions.items() for part in (product, *pair)]
        return str(await self._call("tt_open_account", account, by, str(cash_micros), *arguments)) == "OPENED"

    async def set_state(self, account: str, scope: str, state: TradingState, by: str, reason: str) -> tuple[int, int]:
        """Set a scope's trading state: (audit number, cancels asked for). Scopes: global, account, strategy|S …"""
        seq, asked = await self._call("tt_set_state", account, scope, state.value, by, reason)
        return int(seq), int(asked)

    async def tighten(
        self, account: str, scope: str, state: TradingState, by: str, reason: str
    ) -> tuple[int, int, TradingState]:
        """As ``set_state``, but a stricter state stays: (audit number, cancels asked for, the state that holds)."""
        seq, asked, holds = await self._call("tt_tighten", account, scope, state.value, by, reason)
        return int(seq), int(asked), TradingState(holds)

    async def accounts(self) -> list[str]:
        """Names of all accounts with limits."""
        return sorted(await self._direct("SMEMBERS", ACCOUNTS_KEY))

    async def snapshot(self, account: str) -> Snapshot:
        """The whole account at one instant."""
        reply = await self._call("tt_snapshot", account)
        parts = {reply[i]: _pairs(reply[i + 1]) for i in range(0, len(reply), 2)}
        now_ms = int(parts.pop("now_ms")["now_ms"])
        by_strategy = [name for name in parts if name.startswith("positions:")]
        held = {name.removeprefix("positions:"): parts.pop(name) for name in by_strategy}
        return Snapshot(now_ms=now_ms, strategy_positions=held, **parts)

    async def verify(self, account: str) -> list[Difference]:
        """Prove the books: every counter against the open reservations summed afresh, and all against the audit stream.

        Returns the figures that do not add up; an empty list is the proof. The sums are of one instant, and the stream
        is replayed up to that instant, so the proof holds while others write.
        """
        reply = await self._call("tt_open_sums", account)
        sums, book, positions = (_figures(part) for part in reply[:3])
        by_strategy = _pairs(reply[3])
        strategies = {(s, p): lots for s in by_strategy for p, lots in _figures(by_strategy[s]).items()}
        differences = [
            _difference("orders in :open without a reservation", 0, sums.pop("broken")),
            _difference("reserved orders missing in the outbox", 0, sums.pop("unqueued")),
        ]
        counted = {"reserved", *sums, *(f for f in book if f.endswith(("|open_orders", "|open_notional", "_lots")))}
        differences += [_difference(f, book.get(f, 0), sums.get(f, 0)) for f in sorted(counted)]
        entries = book.pop("seq", 0)
        book.pop("denied_for_rate", None)
        replay = Replay()
        try:
            await self._replay(account, replay, -1 if entries is None else entries)
        except BrokenAudit as error:
            differences.append(Difference(f"audit entries ({error})", entries or 0, replay.seq))
        if replay.seq == entries:
            differences += _compare("", book, replay.book())
            differences += _compare("position ", positions, replay.positions)
            differences += _compare("position of strategy ", strategies, replay.strategy_positions)
        return [d for d in differences if d is not None]

    async def _replay(self, account: str, replay: Replay, entries: int) -> None:
        """Take the first ``entries`` entries of the stream; raises ``BrokenAudit`` where they are not all there."""
        start = "-"
        while True:
            page = await self._direct("XRANGE", f"{account_base(account)}:audit", start, "+", "COUNT", "1000")
            for _, fields in page:
                if replay.seq == entries:
                    # Written since the sums were made; only that it is the next one can be said of it.
                    entries_seen = fields.get("seq")
                    if entries_seen != str(entries + 1):
                        raise BrokenAudit(f"expected entry {entries + 1}, was {entries_seen}")
                    return
                replay.apply(fields)
            if len(page) < 1000:
                break
            start = f"({page[-1][0]}"
        if replay.seq != entries:
            raise BrokenAudit(f"expected {entries}, the stream ends after {replay.seq}")

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

    async def put_api_key(self, key_id: str, record: Mapping[str, Any]) -> None:
        """Add or replace an API key's record."""
        await self._send("FCALL", "tt_put", "1", API_KEYS_KEY, key_id, json.dumps(record))

    async def beat(self, part: str, detail: Mapping[str, Any]) -> None:
        """Note that a part of the desk is alive, with its figures; the time is the server's."""
        seconds, micros = await self._direct("TIME")
        beat = {"at_ms": int(seconds) * 1000 + int(micros) // 1000, **detail}
        await self._send("FCALL", "tt_put", "1", HEARTBEATS_KEY, part, json.dumps(beat))

    async def heartbeats(self) -> dict[str, dict[str, Any]]:
        """The last heartbeat of each part with ``age_ms``."""
        seconds, micros = await self._direct("TIME")
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        beats = {k: json.loads(v) for k, v in _pairs(await self._direct("HGETALL", HEARTBEATS_KEY)).items()}
        return {part: beat | {"age_ms": now_ms - beat["at_ms"]} for part, beat in beats.items()}

    # -- calls ---------------------------------------------------------------------------------------------------------

    async def _fenced(self, function: str, account: str, epoch: int, *arguments: str) -> list[str]:
        reply = await self._call(function, account, str(epoch), *arguments)
        if reply[0] == "STALE_EPOCH":
            raise StaleEpoch(f"epoch {epoch} of account {account} is over: another execution service has claimed it")
        return [str(part) for part in reply]

    async def _call(self, function: str, account: str, *arguments: str) -> Any:
        return await self._send("FCALL", function, "1", account_base(account), *arguments)

    async def _direct(self, *command: str) -> Any:
        return await self._send(*command)

    async def _send(self, *command: str) -> Any:
        return await self._wire.send(*command)


def limit_fields(limits: AccountLimits, products: Mapping[str, Product]) -> dict[str, str]:
    """The limits as the ledger's integers; raises ``LedgerError`` for a product the venue does not have."""
    fields: dict[str, str] = {"account|reference_stale_ms": str(limits.reference_stale_ms)}
    # Rounded to the stricter side, as every limit: costs up, amounts and rates down.
    fields["account|taker_fee_ppm"] = str(math.ceil(limits.taker_fee_bps * 100))
    fields["account|market_buffer_ppm"] = str(math.ceil(limits.market_buffer_bps * 100))
    scopes: list[tuple[str, Any]] = [("account", limits)]
    scopes += [(f"product|{name}", item) for name, item in limits.products.items()]
    scopes += [(f"strategy|{name}", item) for name, item in limits.strategies.items()]
    for scope, item in scopes:
        fields[f"{scope}|max_order_notional"] = _limit(item.max_order_notional, _MICRO)
        fields[f"{scope}|max_open_orders"] = _limit(item.max_open_orders, Decimal(1))
        if scope.startswith("product|"):
            if scope[8:] not in products:
                raise LedgerError(f"limits: {scope[8:]} is not a product of the venue")
            fields[f"{scope}|max_position"] = _limit(item.max_position, products[scope[8:]].base_increment)
        else:
            fields[f"{scope}|max_gross_exposure"] = _limit(item.max_gross_exposure, _MICRO)
            rate = item.order_rate_per_s
            fields[f"{scope}|order_interval_us"] = (
                rate if isinstance(rate, str) else str(math.ceil(MICROS_PER_UNIT / Fraction(rate)))
            )
            fields[f"{scope}|order_burst"] = str(item.order_burst)
    return fields


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


def _limit(amount: Decimal | int | str, increment: Decimal) -> str:
    if isinstance(amount, str):
        return amount
    value = int(EXACT.divide_int(Decimal(amount), increment))
    if value > LEDGER_INTEGER_MAX:
        raise LedgerError(f"limit {amount}: more than the ledger can count; write unlimited if that is meant")
    return str(value)


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


def _figures(flat: Any) -> dict[str, int | None]:
    """Counters as integers; None for what is no integer."""
    return {name: int(text) if re.fullmatch(r"-?[0-9]+", text) else None for name, text in _pairs(flat).items()}


def _difference(what: str, booked: int | None, computed: int | None) -> Difference | None:
    if booked is None or computed is None:
        return Difference(f"{what} (no integer)", booked or 0, computed or 0)
    return None if booked == computed else Difference(what, booked, computed)


def _compare(what: str, booked: Mapping[Any, int | None], computed: Mapping[Any, int]) -> list[Difference | None]:
    names = sorted(set(booked) | set(computed))
    return [_difference(f"{what}{_name(n)} (audit replay)", booked.get(n, 0), computed.get(n, 0)) for n in names]


def _name(name: str | tuple[str, str]) -> str:
    return name if isinstance(name, str) else " ".join(name)
