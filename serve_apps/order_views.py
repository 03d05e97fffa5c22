"""Orders and verdicts as /v1/orders shows them: decimals as text in currency units, rules with their figures."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from cluster.ledger import Verdict
from cluster.risk import in_units, is_integer
from serve_apps.problem import Problem
from strategies.model import MICROS_PER_UNIT, Order, Product, units

Answer = tuple[int, dict[str, Any] | list[dict[str, Any]], dict[str, str]]
"""HTTP status, body and headers."""

# Denials that say "not now": nothing is recorded, and the same id may come again.
_RATES: Final = ("RATE_LIMIT", "MSG_RATE")
_LATER: Final = {**dict.fromkeys(_RATES, 429), "CLOCK_SKEW": 503}


def answer_of(verdict: Verdict, account: str, product: Product | None) -> Answer:
    """HTTP status, body and headers of a verdict; raises ``Problem`` for anything but an acceptance."""
    headers = {"idempotent-replayed": "true"} if verdict.kind == "REPEATED" else {}
    answer = verdict.answer
    if verdict.kind == "CONFLICT":
        detail = f"client_order_id {answer['client_order_id']} was already used for another order"
        raise Problem(409, "DUP_ID_DIFFERENT_BODY", detail, {"client_order_id": answer["client_order_id"]})
    if verdict.accepted:
        body = {
            "client_order_id": answer["client_order_id"],
            "account": account,
            "verdict": "ACCEPTED",
            "status": "RESERVED",
            **_reserved(answer),
        }
        if warnings := answer.get("warnings"):
            body["warnings"] = [in_units(warning, product) for warning in warnings]
        return 201, body, headers
    denials = [in_units(denial, product) for denial in answer["denials"]]
    first = denials[0]
    extra = {"client_order_id": answer["client_order_id"], "verdict": "DENIED", "denials": denials}
    detail = "; ".join(f"{d['scope']}: {d['message']}" for d in denials)
    if first["code"] in _LATER:
        headers["retry-after"] = _retry_after(denials)
    raise Problem(_LATER.get(first["code"], 422), first["code"], detail, extra, headers)


def amend_of(verdict: Verdict, order: Order, product: Product) -> Answer:
    """HTTP status, body and headers of the answer to an amendment; raises ``Problem`` where it is denied."""
    if not verdict.accepted:
        return answer_of(verdict, order.account, product)
    body = {
        "client_order_id": order.client_order_id,
        "account": order.account,
        "verdict": "ACCEPTED",
        "amend": "REQUESTED" if verdict.kind == "ACCEPTED" else "ALREADY",
        "quantity": f"{order.quantity:f}",
        "limit_price": f"{order.limit_price:f}",
        **_reserved(verdict.answer),
    }
    if warnings := verdict.answer.get("warnings"):
        body["warnings"] = [in_units(warning, product) for warning in warnings]
    return (202 if verdict.kind == "ACCEPTED" else 200), body, {}


def check_of(verdict: Verdict, account: str, product: Product | None) -> dict[str, Any]:
    """What would become of an order; a denial is an answer to that question like any other."""
    answer = verdict.answer
    body = {"client_order_id": answer["client_order_id"], "account": account, "verdict": answer["verdict"]}
    body |= _reserved(answer) if verdict.accepted else {}
    for name in ("warnings",) if verdict.accepted else ("denials", "warnings"):
        body[name] = [in_units(item, product) for item in answer.get(name, ())]
    return body


def _reserved(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "reserved_notional": _money(answer["reserved_notional_micros"]),
        "reserved_cash": _money(answer["reserved_cash_micros"]),
    }


def _money(micros: str) -> str:
    """Micros, none below 0, as currency units: what ``units`` gives, at a quarter of the time."""
    whole, rest = divmod(int(micros), MICROS_PER_UNIT)
    return f"{whole}.{rest:06d}".rstrip("0") if rest else str(whole)


def _retry_after(denials: list[dict[str, str]]) -> str:
    waits_ms = [int(d["value"]) for d in denials if d["code"] in _RATES and is_integer(d["value"])]
    wait_ms = max(waits_ms, default=0)
    return str(max(1, -(-wait_ms // 1000)))


def order_view(fields: dict[str, str], products: dict[str, Product]) -> dict[str, Any]:
    """An order as the API shows it: decimals as text in currency units."""
    product = products.get(fields["product"])
    view: dict[str, Any] = {
        "client_order_id": fields["client_order_id"],
        "status": fields["status"],
        "strategy": fields["strategy"],
        "product_id": fields["product"],
        "side": fields["side"],
        "type": fields["type"],
        "time_in_force": fields["tif"],
        "quantity": fields["quantity"],
        "limit_price": fields["limit_price"] or None,
        "created_ns": int(fields["created_us"]) * 1000,
        "venue_order_id": fields.get("venue_order_id") or None,
        "reason": fields.get("reason") or None,
    }
    if stop_price := fields.get("stop_price"):
        view["stop_price"] = stop_price
    if end_ns := fields.get("end_ns"):
        view["end_ns"] = int(end_ns)
    if fields["status"] == "DENIED":
        denials = msgspec.json.decode(fields["answer"])["denials"]
        view["denials"] = [in_units(denial, product) for denial in denials]
        return view
    view["post_only"] = fields.get("post_only") == "1"
    view["reduce_only"] = fields.get("reduce_only") == "1"
    if warnings := fields.get("warnings"):
        view["warnings"] = [in_units(warning, product) for warning in msgspec.json.decode(warnings)]
    if amend := fields.get("amend"):
        wanted = msgspec.json.decode(amend)
        view["amending_to"] = {"quantity": wanted["quantity"], "limit_price": wanted["limit_price"]}
    view["reserved_notional"] = f"{units(int(fields['reserved_notional'])):f}"
    view["fees"] = f"{units(int(fields['fees'])):f}"
    view["filled_value"] = f"{units(int(fields['filled_value'])):f}"
    if product is not None:
        filled = product.quantity(int(fields["filled_lots"]))
        view["filled_quantity"] = f"{filled:f}"
        value = units(int(fields["filled_value"]))
        view["average_price"] = f"{(value / filled).quantize(Decimal('0.00000001')).normalize():f}" if filled else None
    return view
