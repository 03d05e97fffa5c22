"""What a bar leads to in a live session: pure decisions, and the lines of the journal that tell them.

Only a change of target makes an order, as in the backtest. The order goes from the position the session holds, by its
own fills, to the one the target asks for at the bar's close.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, Literal

from cluster.live_bars import Correction, LiveBar
from cluster.session_journal import BAR, CORRECTION, ORDER
from cluster.sessions import Checkpoint, SessionOrder, SessionSpec
from strategies.model import EXACT, Product

_BASIS_POINTS: Final = Decimal(10_000)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a bar leads to. ``wanted`` is the position it asks for (base units); ``acts``: the target counts as acted
    upon, whatever becomes of the order; ``ask_first``: only if the desk says beforehand that it would be accepted."""

    action: Literal["ORDER", "NONE", "SKIPPED"]
    why: str = ""
    wanted: Decimal = Decimal(0)
    side: Literal["BUY", "SELL"] = "BUY"
    quantity: Decimal = Decimal(0)
    acts: bool = False
    ask_first: bool = False


def plan_bar(
    at: Checkpoint,
    target: float,
    close: float,
    equity: Decimal,
    product: Product,
    spec: SessionSpec,
    *,
    fresh: bool,
) -> Plan:
    """What a bar with this ``target`` leads to after checkpoint ``at``; ``fresh``: its order would not come too late.

    What was missed on the way to a smaller position (a denied or rejected exit) is tried again with each bar, once the
    desk says that it would pass; what was missed on the way in stays missed until the target changes.
    """
    wanted_now = wanted_target(target, spec)
    position, standing = Decimal(at.position), Decimal(at.wanted)
    changed = wanted_now != at.standing
    left_over = abs(position) > abs(standing) and not changed
    if not changed and not left_over:
        return Plan("NONE", wanted=standing)
    if at.order is not None or not fresh:
        why = "ORDER_OPEN" if at.order is not None else "TOO_LATE"
        return Plan("SKIPPED" if changed else "NONE", why, wanted=standing)
    if left_over:
        rest = way_to(standing, position, product, close)
        return replace(rest, why=f"LEFT_OVER {rest.why}".rstrip(), ask_first=rest.action == "ORDER")
    wanted = wanted_position(wanted_now, equity, close, product, spec)
    return replace(way_to(wanted, position, product, close), acts=True)


def wanted_position(target: float, equity: Decimal, close: float, product: Product, spec: SessionSpec) -> Decimal:
    """Base units that are worth ``target`` of the equity at ``close``, cut down to whole lots.

    As the backtest sizes (kernel rule 4), the fee and the slippage of getting there are kept back, so that a target of
    1 does not ask for more than there is cash.
    """
    if equity <= 0 or target == 0:
        return Decimal(0)
    costs = spec.costs
    fee, slippage = (Decimal(repr(bps)) / _BASIS_POINTS for bps in (costs.fee_bps, costs.slippage_bps))
    price = EXACT.multiply(EXACT.multiply(Decimal(repr(close)), 1 + fee), 1 + slippage)
    worth = EXACT.multiply(abs(Decimal(repr(target))), equity)
    lots = int(EXACT.divide_int(worth, EXACT.multiply(price, product.base_increment)))
    return product.quantity(lots).copy_sign(Decimal(repr(target)))


def way_to(wanted: Decimal, position: Decimal, product: Product, close: float | None) -> Plan:
    """The order from ``position`` to ``wanted``, or none where it would be smaller than the venue takes."""
    delta = wanted - position
    quantity = min(abs(delta), product.base_max_size)
    side: Literal["BUY", "SELL"] = "BUY" if delta > 0 else "SELL"
    if delta == 0:
        return Plan("NONE", "THERE", wanted=wanted)
    worth = None if close is None else EXACT.multiply(quantity, Decimal(repr(close)))
    if quantity < product.base_min_size or (worth is not None and worth < product.quote_min_size):
        return Plan("NONE", "BELOW_MIN", wanted=wanted, side=side, quantity=quantity)
    return Plan("ORDER", wanted=wanted, side=side, quantity=quantity)


def wanted_target(target: float, spec: SessionSpec) -> float:
    """The target as it is acted upon: none while warming up, no short where only longs are held."""
    if math.isnan(target):
        return 0.0
    return max(target, 0.0) if spec.long_only else target


def number(target: float) -> float | None:
    return None if math.isnan(target) else target


# -- lines of the journal ----------------------------------------------------------------------------------------------


def bar_line(
    bar: LiveBar, target: float, plan: Plan | None = None, at_ns: int = 0, equity: str = "", position: str = ""
) -> dict[str, Any]:
    line: dict[str, Any] = {"kind": BAR, **bar._asdict(), "target": number(target), "live": plan is not None}
    if plan is not None:
        line |= {"at_ns": at_ns, "equity": equity, "position": position, "action": plan.action, "why": plan.why}
        line["wanted"] = f"{plan.wanted:f}"
    return line


def order_line(event: str, order: SessionOrder, at_ns: int, **told: Any) -> dict[str, Any]:
    line = {"kind": ORDER, "event": event, "client_order_id": order.client_order_id, "bar_ts_ns": order.bar_ts_ns}
    return {**line, "side": order.side, "quantity": order.quantity, "at_ns": at_ns, **told}


def correction_line(found: Correction, at_ns: int) -> dict[str, Any]:
    before = None if found.before is None else list(found.before)
    return {"kind": CORRECTION, "what": found.kind, **found.after._asdict(), "before": before, "at_ns": at_ns}
