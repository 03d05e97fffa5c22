"""The books computed anew from the audit stream alone: what an account must hold, whatever its counters say."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

ENDINGS: Final = frozenset({"FILLED", "CANCELLED", "REJECTED", "EXPIRED"})


class BrokenAudit(ValueError):
    """An entry of the stream is missing, repeated, out of order or cannot be read."""


@dataclass(slots=True)
class Reservation:
    """What an open order holds: lots and micros as reserved at first, and the lots not yet filled."""

    strategy: str
    product: str
    side: str
    lots: int
    notional: int
    cash: int
    left: int

    def share(self, amount: int) -> int:
        """The part of ``amount`` that the unfilled lots still hold, rounded up as ledger.lua does."""
        return -(-amount * self.left // self.lots)


@dataclass(slots=True)
class Replay:
    """The state after ``seq`` entries; integers as in the ledger, fields named as in its book."""

    seq: int = 0
    sums: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    positions: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    strategy_positions: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    open: dict[str, Reservation] = field(default_factory=dict)

    def apply(self, entry: Mapping[str, str]) -> None:
        """Take the next entry; raises ``BrokenAudit`` where it is not the next one or cannot be read."""
        if entry.get("seq") != str(self.seq + 1):
            raise BrokenAudit(f"expected entry {self.seq + 1}, was {entry.get('seq')}")
        try:
            self._take(entry["kind"], entry["id"], json.loads(entry["data"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BrokenAudit(f"entry {self.seq + 1} cannot be read: {error!r}") from error
        self.seq += 1

    def book(self) -> dict[str, int]:
        """Every figure of the book that follows from the entries."""
        figures = defaultdict(int, self.sums)
        for held in self.open.values():
            figures["reserved"] += held.share(held.cash)
            for scope in ("a", f"p|{held.product}", f"s|{held.strategy}"):
                figures[f"{scope}|open_orders"] += 1
                figures[f"{scope}|open_notional"] += held.share(held.notional)
            side = "sell_lots" if held.side == "SELL" else "buy_lots"
            for scope in (f"p|{held.product}", f"sp|{held.strategy}|{held.product}"):
                figures[f"{scope}|{side}"] += held.left
        return dict(figures)

    def _take(self, kind: str, order_id: str, data: Mapping[str, Any]) -> None:
        if kind == "OPENED":
            self.sums["cash"] += int(data["cash"])
            for product, opening in dict(data["positions"]).items():
                self.positions[product] += int(opening["lots"])
                self.sums[f"p|{product}|cost"] += int(opening["cost"])
        elif kind == "RESERVED":
            lots = int(data["lots"])
            names = (data["strategy"], data["product"], data["side"])
            self.open[order_id] = Reservation(*names, lots, int(data["notional"]), int(data["cash"]), lots)
        elif kind == "FILL":
            self._fill(order_id, data)
        elif kind in ENDINGS:
            self.open.pop(order_id, None)

    def _fill(self, order_id: str, data: Mapping[str, Any]) -> None:
        product, lots, value, fee = data["product"], int(data["lots"]), int(data["value"]), int(data["fee"])
        sign = -1 if data["side"] == "SELL" else 1
        self.sums["cash"] -= sign * value + fee
        self.sums["fees"] += fee
        self.sums[f"p|{product}|fees"] += fee
        self._move_cost(product, sign, lots, value)
        self.positions[product] += sign * lots
        self.strategy_positions[data["strategy"], product] += sign * lots
        if order_id in self.open:
            self.open[order_id].left = max(self.open[order_id].left - lots, 0)

    def _move_cost(self, product: str, sign: int, lots: int, value: int) -> None:
        """What closes a position takes its share of the cost, rounded down; the rest stays, and opens the other way."""
        held, cost = self.positions[product], self.sums[f"p|{product}|cost"]
        closing = min(abs(held), lots) if held * sign < 0 else 0
        closed_value = value * closing // lots
        if closing:
            closed_cost = abs(cost) * closing // abs(held)
            self.sums[f"p|{product}|realised"] -= sign * (closed_value - closed_cost)
            self.sums[f"p|{product}|cost"] += sign * closed_cost
        self.sums[f"p|{product}|cost"] += sign * (value - closed_value)
