"""Changing limits while the desk runs: what was asked for against what holds, and what has become of limits before.

The ledger applies what is stricter at once and makes one proposal of what is looser; nothing is restarted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cluster.approvals import GLOBAL, find, limits_of
from cluster.ledger import Ledger, Proposal
from cluster.limit_records import (
    VERSION,
    LimitError,
    ShownChange,
    kind_of,
    parse_record,
    read_limit,
    scope_records,
    shown_changes,
    write_record,
)
from strategies.model import Product

KINDS: Final = frozenset({"LIMITS", "PROPOSED", "APPROVED", "REFUSED"})
"""The audit entries a history of limits is made of."""
# A history reads the audit from its end; this bounds how far back.
ENTRIES_READ_MAX: Final = 50_000
_PAGE: Final = 1_000
_ANY_KEY: Final = "key|*"


@dataclass(frozen=True, slots=True)
class Wish:
    """One limit as somebody wants it, in the name and unit of limits.yaml; ``value`` may be {"hard":, "soft":}."""

    scope: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of wishes: what holds now, and what waits for a second person."""

    account: str | None
    version: int
    applied: list[ShownChange]
    proposal: Proposal | None
    waiting: list[ShownChange]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One step in the life of limits, from the audit. ``kind``: LIMITS, PROPOSED, APPROVED or REFUSED."""

    seq: int
    ts_us: int
    kind: str
    by: str
    version: int | None
    proposal_id: str | None
    reason: str
    changes: list[ShownChange]


def base_of(scope: str, account: str) -> str | None:
    """Where a scope's record is kept: at the account, or (None) at the desk."""
    return None if kind_of(scope) == GLOBAL else account


async def change_limits(
    ledger: Ledger, account: str | None, wishes: Sequence[Wish], by: str, person: str, reason: str
) -> Outcome:
    """Ask for ``wishes`` on one account (None: the desk). All of them are valid, or nothing is asked for.

    Raises ``LimitError`` naming the limit, the value and the rule.
    """
    products = await ledger.products()
    before = limits_of(await ledger.snapshot(account), account)
    wanted = wished(scope_records(before), wishes, products)
    change = await ledger.set_limits(account, wanted, by, person, reason=reason)
    proposal = await find(ledger, f"{account or 'DESK'}.{change.proposal_id}") if change.proposal_id else None
    after = scope_records(before) | {scope: text or "" for scope, text in change.changed.items()}
    changes: Mapping[str, str | None] = proposal.payload.get("changes") or {} if proposal else {}
    return Outcome(
        account=account,
        version=change.version,
        applied=shown_changes(before, change.changed, products),
        proposal=proposal,
        waiting=shown_changes(after, changes, products),
    )


def wished(records: Mapping[str, str], wishes: Sequence[Wish], products: Mapping[str, Product]) -> dict[str, str]:
    """All records with the wishes in them; raises ``LimitError`` for a wish that cannot be."""
    wanted = dict(records)
    seen: set[tuple[str, str]] = set()
    for wish in wishes:
        if (wish.scope, wish.name) in seen:
            raise LimitError(f"{wish.scope}.{wish.name}", wish.value, "named once")
        seen.add((wish.scope, wish.name))
        product = products.get(wish.scope.partition("|")[2]) if kind_of(wish.scope) == "product" else None
        name, limit = read_limit(wish.scope, wish.name, wish.value, product)
        record = wanted.get(wish.scope)
        if record is None and kind_of(wish.scope) == "key":
            # What has held for this key so far is what holds for every key.
            record = wanted.get(_ANY_KEY)
        if record is None:
            known = ", ".join(records) or "none"
            raise LimitError("scope", wish.scope, f"expected one that has limits: {known}")
        if kind_of(wish.scope) == "product" and name == "group" and limit.hard != "-":
            _check_group(wish, str(limit.hard), records)
        wanted[wish.scope] = write_record(wish.scope, parse_record(wish.scope, record) | {name: limit})
    return wanted


def _check_group(wish: Wish, group: str, records: Mapping[str, str]) -> None:
    if f"group|{group}" not in records:
        raise LimitError(f"{wish.scope}.{wish.name}", group, "expected a group that has limits")


async def history(ledger: Ledger, account: str | None, at_most: int) -> tuple[list[HistoryEntry], bool]:
    """The last ``at_most`` steps of the account's limits, newest first, and whether that is all there were.

    What was archived from the audit, or lies further back than ``ENTRIES_READ_MAX`` entries, is not in it.
    """
    products = await ledger.products()
    found: list[dict[str, str]] = []
    complete, read, before = False, 0, ""
    # One more than asked for, so that the oldest change shown has one before it to be compared with.
    while not complete and read < ENTRIES_READ_MAX and len(found) <= at_most:
        page = await ledger.recent_audit(account, before, _PAGE)
        found += [fields for _, fields in page if _is_about_limits(fields)]
        complete, read, before = len(page) < _PAGE, read + len(page), page[-1][0] if page else before
    entries = _told(list(reversed(found)), products)
    return list(reversed(entries))[:at_most], complete and len(found) <= at_most


def _is_about_limits(fields: Mapping[str, str]) -> bool:
    kind, data = fields.get("kind"), fields.get("data", "")
    # A refusal does not say what was refused: it is told with the others, and dropped by ``_told`` where it was not
    # about limits.
    return kind in KINDS and (kind in {"LIMITS", "REFUSED"} or _data(data).get("kind") == "LIMITS")


def _told(found: Sequence[Mapping[str, str]], products: Mapping[str, Product]) -> list[HistoryEntry]:
    """Entries from the oldest to the newest, each change against the records known until then."""
    records: dict[str, str | None] = {}
    proposed: set[str] = set()
    told = []
    for fields in found:
        data, kind = _data(fields.get("data", "")), fields["kind"]
        proposal_id = fields.get("id", "") if kind != "LIMITS" else None
        if kind == "REFUSED" and proposal_id not in proposed:
            continue
        changes: list[ShownChange] = []
        if kind == "PROPOSED":
            proposed.add(str(proposal_id))
            wanted = _data(str(data.get("payload", ""))).get("changes") or {}
            changes = shown_changes(_known(records), wanted, products)
        elif kind == "LIMITS":
            changed = {scope: text or None for scope, text in (data.get("changed") or {}).items()}
            changes = shown_changes(_known(records), changed, products)
            records |= changed
        told.append(_entry(fields, data, proposal_id, changes))
    return told


def _known(records: Mapping[str, str | None]) -> dict[str, str]:
    return {scope: text for scope, text in records.items() if text}


def _entry(
    fields: Mapping[str, str], data: Mapping[str, Any], proposal_id: str | None, changes: list[ShownChange]
) -> HistoryEntry:
    version = data.get(VERSION)
    return HistoryEntry(
        seq=int(fields["seq"]),
        ts_us=int(fields["us"]),
        kind=fields["kind"],
        by=fields["by"],
        version=int(version) if version is not None else None,
        proposal_id=proposal_id,
        reason=str(data.get("reason", "")),
        changes=changes,
    )


def _data(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
