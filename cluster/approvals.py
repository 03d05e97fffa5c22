"""What needs a second person: where a proposal is found, what it would change, and who may decide on it.

The ledger decides (``Ledger.approve``); here is what the command line and the API say about it in the same words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from cluster.api_keys import ALL_STRATEGIES, HALT, LIMITS, RESUME, TRADE, ApiKey
from cluster.ledger import Approval, Ledger, Proposal, Snapshot
from cluster.limit_records import ShownChange, shown_changes
from cluster.risk import in_units
from strategies.model import Product, TradingState, units

DESK: Final = "DESK"
"""The desk as a whole where an account is named; accounts have small letters."""
GLOBAL: Final = "global"
PENDING: Final = "PENDING"
APPLIED: Final = "APPLIED"
NEVER: Final = " (never overridden)"
"""Beside a rule that an override does not help against."""
REFUSED: Final = "REFUSED"
OVERRIDE: Final = "OVERRIDE"
ADJUST: Final = "ADJUST"
RIGHTS: Final = {"RESUME": RESUME, "LIMITS": LIMITS, OVERRIDE: LIMITS, ADJUST: LIMITS}
"""A proposal's kind -> the scope of a key that may make, approve and refuse it; an override who may trade makes."""
OUTCOMES: Final = {
    "NOT_FOUND": "there is no such proposal",
    "EXPIRED": "the proposal has expired; propose it again",
    "SAME_PERSON": "another person must approve it",
    "CHANGED": "it is no longer what was proposed; look at it again, or propose it again",
    "DONE": "it has been decided already",
    "STILL_BREACHED": "the rule that stopped trading is still broken",
}
"""Why an approval had no effect, in words."""

_ID = re.compile(r"(?P<account>DESK|[a-z0-9_]{1,32})\.(?P<number>[0-9]{1,16})")


def public_id(proposal: Proposal) -> str:
    """``main.17``, or ``DESK.17``: the ledger numbers proposals by account."""
    return f"{proposal.account or DESK}.{proposal.id}"


def split_id(text: str) -> tuple[str | None, str] | None:
    """Account (None: the desk) and number of a public id; None for what is none."""
    match = _ID.fullmatch(text)
    if match is None:
        return None
    return (None if match["account"] == DESK else match["account"]), match["number"]


async def find(ledger: Ledger, text: str) -> Proposal | None:
    """The proposal with this public id."""
    found = split_id(text)
    if found is None:
        return None
    account, number = found
    return next((one for one in await ledger.proposals(account) if one.id == number), None)


async def listed(ledger: Ledger, accounts: Sequence[str | None]) -> list[Proposal]:
    """The proposals of these accounts (None: the desk), newest first."""
    found = [proposal for account in accounts for proposal in await ledger.proposals(account)]
    return sorted(found, key=lambda proposal: proposal.created_ms, reverse=True)


def scopes_of(proposal: Proposal) -> list[str]:
    """The scopes a proposal would change."""
    if proposal.kind == "RESUME":
        return [str(proposal.payload.get("scope", ""))]
    if proposal.kind == OVERRIDE:
        return [f"strategy|{proposal.payload['order']['strategy']}", f"product|{proposal.payload['order']['product']}"]
    if proposal.kind == ADJUST:
        return ["account"]
    return sorted(proposal.payload.get("changes") or {})


def changes_of(proposal: Proposal, limits: Mapping[str, str], products: Mapping[str, Product]) -> list[ShownChange]:
    """What approving it would change now, limit by limit; ``limits`` are the records in force."""
    if proposal.kind == "RESUME":
        return [ShownChange(scope, "state", None, TradingState.ACTIVE.value, "") for scope in scopes_of(proposal)]
    if proposal.kind == OVERRIDE:
        return [_terms(proposal.payload), *_rules(proposal.payload, products)]
    if proposal.kind == ADJUST:
        return _booked(proposal.payload, products)
    return shown_changes(limits, proposal.payload.get("changes") or {}, products)


def _terms(payload: Mapping[str, Any]) -> ShownChange:
    """The order an override is for, in one line."""
    terms = payload["order"]
    price = f" at {in_digits(terms['limit_price'])}" if terms["limit_price"] else ""
    words = [f"{terms['type']} {terms['side']} {in_digits(terms['quantity'])} {terms['product']}{price} {terms['tif']}"]
    words += [f"strategy {terms['strategy']}"] + ([f"version {terms['version']}"] if terms["version"] else [])
    words += [name.replace("_", "-") for name in ("post_only", "reduce_only") if terms[name] == "1"]
    return ShownChange(f"order {payload['id']}", "accepted", None, ", ".join(words), "")


def _booked(payload: Mapping[str, Any], products: Mapping[str, Product]) -> list[ShownChange]:
    """What came or went without an order: cash, and positions with what they are entered at."""
    found = [ShownChange("account", "cash", None, f"{units(int(payload['cash'])):+f}", "")]
    for name, change in payload["positions"].items():
        product, lots = products.get(name), int(change["lots"])
        quantity = f"{product.quantity(lots):+f}" if product else f"{lots:+d} lots"
        cost = f"{quantity} at a cost of {units(int(change['cost'])):f}"
        found.append(ShownChange(f"product|{name}", "position", None, cost, product.base_currency if product else ""))
    return found


def in_digits(number: str) -> str:
    """A decimal number without an exponent."""
    return f"{Decimal(number):f}"


def _rules(payload: Mapping[str, Any], products: Mapping[str, Product]) -> list[ShownChange]:
    """The rules the order broke when the override was asked for: the limit before, the order's value after."""
    product = products.get(payload["order"]["product"])
    shown = [(in_units(denial, product), denial.get("never")) for denial in payload["denials"]]
    return [
        ShownChange(
            rule["scope"],
            rule["code"] + (NEVER if never else ""),
            rule["limit"] or None,
            rule["value"] or None,
            rule["unit"],
        )
        for rule, never in shown
    ]


def limits_of(snapshot: Snapshot, account: str | None) -> dict[str, str]:
    """The limit records of an account, or of the desk, from a snapshot of it."""
    return snapshot.desk_limits if account is None else snapshot.limits


def may_decide(key: ApiKey, proposal: Proposal) -> bool:
    """Whether the key's rights cover all that the proposal would change."""
    right = RIGHTS.get(proposal.kind, "")
    return all(may_change(key, right, proposal.account, scope) for scope in scopes_of(proposal))


def may_refuse(key: ApiKey, proposal: Proposal) -> bool:
    """Whether the key may end the proposal: who may decide may, and who has asked for an override may take it back."""
    if may_decide(key, proposal):
        return True
    own = proposal.kind == OVERRIDE and proposal.person == key.person
    return own and key.may(TRADE, proposal.account, proposal.payload["order"]["strategy"])


def may_change(key: ApiKey, right: str, account: str | None, scope: str) -> bool:
    """Whether the key may loosen something at ``scope``: of a strategy its own, of more than that with all of them."""
    kind, _, name = scope.partition("|")
    strategy = name if kind == "strategy" else ALL_STRATEGIES
    return key.may(right, account, strategy) and (account is not None or key.may_everywhere(right))


def may_halt(key: ApiKey, account: str | None, accounts: Sequence[str]) -> bool:
    """Whether the key may halt on ``account``; on the desk as a whole with a right on every account there is."""
    if account is not None:
        return key.may(HALT, account)
    return key.may_everywhere(HALT) or (bool(accounts) and all(key.may(HALT, name) for name in accounts))


def why_not(approval: Approval) -> str:
    """An outcome without effect in words, with the ledger's detail."""
    return OUTCOMES.get(approval.outcome, approval.outcome) + (f" ({approval.detail})" if approval.detail else "")
