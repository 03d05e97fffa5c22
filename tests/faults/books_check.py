"""After a fault: are all acknowledged orders in the books, once each, and do the books add up? Read afresh each time.

The ledger's own proof (``verify``) is one part. The others are made here from what the server holds, without its help:
the audit stream entry by entry, its chain of hashes computed anew, the reservations of the open orders summed up.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from hdrh.histogram import HdrHistogram

from cluster.audit import verify, verify_chain
from cluster.ledger import Ledger, account_base
from tests.faults.open_loop import DECIDED, Answer

PAGE: Final = 2_000
AT_ONCE: Final = 200
CHAIN_BEGIN: Final = "0" * 40


@dataclass(frozen=True, slots=True)
class Books:
    """What a check found; ``lost`` and ``duplicated`` name client order ids, ``differences`` says what is wrong."""

    acknowledged: int
    stored: int
    unacknowledged: int
    """Reserved, but no answer had reached the caller when it gave up: normal, and why it must ask again."""
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, int]:
        """The counts of the report."""
        return {
            "acknowledged": self.acknowledged,
            "stored": self.stored,
            "lost": len(self.lost),
            "duplicated": len(self.duplicated),
        }

    def assert_whole(self) -> None:
        """Lost 0, duplicated 0, and every sum right."""
        assert (self.lost, self.duplicated, self.differences) == ([], [], [])


async def check_books(ledger: Ledger, account: str, accepted: Iterable[str], asked: Callable[[str], bool]) -> Books:
    """Compare what was ``accepted`` (client order ids) with the account; ``asked`` tells the ids of this run.

    Needs a moment without new orders: the stream, the book and the orders are read one after the other.
    """
    entries = await audit(ledger, account)
    reserved = Counter(fields["id"] for fields in entries if fields["kind"] == "RESERVED")
    ours = {order_id: times for order_id, times in reserved.items() if asked(order_id)}
    acknowledged = set(accepted)
    held = await _orders(ledger, account, acknowledged | set(ours))
    lost = {i for i in acknowledged if i not in ours or held[i].get("status", "DENIED") == "DENIED"}
    duplicated = {order_id for order_id, times in ours.items() if times > 1}
    duplicated |= await _queued_twice(ledger, account)
    differences = chain_breaks(entries)
    differences += await unproven(ledger, account)
    differences += await _unlike_sums(ledger, account)
    unacknowledged = len(set(ours) - acknowledged)
    return Books(len(acknowledged), len(ours), unacknowledged, sorted(lost), sorted(duplicated), differences)


async def audit(ledger: Ledger, account: str) -> list[dict[str, str]]:
    """Every audit entry, oldest first."""
    entries: list[dict[str, str]] = []
    start = "-"
    while True:
        page = await ledger._direct("XRANGE", f"{account_base(account)}:audit", start, "+", "COUNT", str(PAGE))
        entries += [_fields(fields) for _, fields in page]
        if len(page) < PAGE:
            return entries
        start = f"({page[-1][0]}"


def chain_breaks(entries: list[dict[str, str]]) -> list[str]:
    """Where numbering or chain of hashes is broken; each hash is computed anew from the entry before."""
    breaks, chain = [], CHAIN_BEGIN
    for number, fields in enumerate(entries, start=1):
        if fields["seq"] != str(number):
            breaks.append(f"audit: expected entry {number}, was {fields['seq']}")
            break
        if "chain" not in fields:
            continue
        parts = [chain, *(fields[name] for name in ("seq", "us", "kind", "id", "by", "data"))]
        chain = hashlib.sha1("\n".join(parts).encode(), usedforsecurity=False).hexdigest()
        if fields["chain"] != chain:
            breaks.append(f"audit: entry {number} does not continue the chain")
            break
    return breaks


def load_figures(answers: list[Answer]) -> dict[str, float]:
    """How the callers fared: shares without a decision, seconds without an acceptance, latencies of the first try."""
    if not answers:
        return {}
    first_try, tries = HdrHistogram(1, 120_000_000, 3), HdrHistogram(1, 120_000_000, 3)
    for answer in answers:
        first_try.record_value(max(1, int(answer.first_ms * 1000)))
        tries.record_value(max(1, int(answer.slowest_ms * 1000)))
    accepted_s = sorted(answer.at_s for answer in answers if answer.accepted)
    gaps = [later - earlier for earlier, later in itertools.pairwise(accepted_s)]
    undecided_first = sum(answer.first not in DECIDED for answer in answers)
    undecided_last = sum(answer.last not in DECIDED for answer in answers)
    return {
        "asked": len(answers),
        "seconds_without_service": round(max(gaps, default=0.0), 3),
        "errors_first_try_percent": round(100 * undecided_first / len(answers), 3),
        "errors_after_retry_percent": round(100 * undecided_last / len(answers), 3),
        "p50_ms": first_try.get_value_at_percentile(50) / 1000,
        "p95_ms": first_try.get_value_at_percentile(95) / 1000,
        "p99_ms": first_try.get_value_at_percentile(99) / 1000,
        "slowest_answer_ms": tries.get_value_at_percentile(100) / 1000,
    }


async def unproven(ledger: Ledger, account: str) -> list[str]:
    """What the desk's own proof finds wrong: counters against reservations, and all against the entries replayed."""
    found = [f"{d.what}: booked {d.booked}, computed {d.computed}" for d in await verify(ledger, account)]
    found += [str(finding) for finding in (await verify_chain(ledger, account, None)).findings]
    for scope in (account, None):
        if different := await ledger.prove(scope):
            found.append(f"prove: {different} counters of {scope or 'the desk'} differ")
    return found


async def _orders(ledger: Ledger, account: str, ids: Iterable[str]) -> dict[str, dict[str, str]]:
    names, found = list(ids), []
    for start in range(0, len(names), AT_ONCE):
        found += await asyncio.gather(*(ledger.order(account, name) for name in names[start : start + AT_ONCE]))
    return {name: fields or {} for name, fields in zip(names, found, strict=True)}


async def _queued_twice(ledger: Ledger, account: str) -> set[str]:
    entries = await ledger._direct("XRANGE", f"{account_base(account)}:outbox", "-", "+")
    queued = Counter(fields["id"] for _, raw in entries if (fields := _fields(raw))["kind"] == "SUBMIT")
    return {order_id for order_id, times in queued.items() if times > 1}


async def _unlike_sums(ledger: Ledger, account: str) -> list[str]:
    """Counters of the account that are not the sum of its open orders."""
    book = (await ledger.snapshot(account)).book
    ids = await ledger._direct("ZRANGE", f"{account_base(account)}:open", "0", "-1")
    orders = await _orders(ledger, account, ids)
    open_value = sum(int(fields["reserved_notional"]) for fields in orders.values())
    cash = sum(int(fields["reserved_cash"]) for fields in orders.values())
    booked = sum(int(book.get(f"a|{name}", "0")) for name in ("buy_notional", "sell_notional", "open_notional"))
    pairs = {
        "open orders": (int(book.get("a|open_orders", "0")), len(ids)),
        "value of open orders": (booked, open_value),
        "reserved cash": (int(book.get("reserved", "0")), cash),
    }
    return [f"{what}: booked {booked}, summed {summed}" for what, (booked, summed) in pairs.items() if booked != summed]


def _fields(raw: Any) -> dict[str, str]:
    return dict(raw) if isinstance(raw, dict) else {raw[i]: raw[i + 1] for i in range(0, len(raw), 2)}
