"""Audit logs for tests: a small writer that chains entries as the ledger's server does, written from the rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from cluster.audit_chain import Row

START_US: Final = 1_700_000_000_000_000


def chained(before: str, seq: int, us: int, kind: str, name: str, by: str, data: str) -> str:
    """sha1hex(before \\n seq \\n us \\n kind \\n id \\n by \\n data)."""
    content = "\n".join([before, str(seq), str(us), kind, name, by, data])
    return hashlib.sha1(content.encode(), usedforsecurity=False).hexdigest()


def log(count: int, first: int = 1, before: str = "0" * 40) -> list[Row]:
    """Rows first … first + count - 1 of a log in which an order a row is sent."""
    rows: list[Row] = []
    for seq in range(first, first + count):
        us, name = START_US + seq * 1_000, f"o-{seq}"
        before = chained(before, seq, us, "SENT", name, "execution", "{}")
        stream_id = f"{us // 1_000}-0"
        rows.append(Row(seq, us, "SENT", name, "execution", "{}", before, stream_id))
    return rows


def rechained(rows: Iterable[Row], before: str = "0" * 40) -> list[Row]:
    """The same rows with chain values that fit, as somebody makes them who may write to the server."""
    done: list[Row] = []
    for row in rows:
        before = chained(before, row.seq, row.us, row.kind, row.id, row.by, row.data)
        done.append(msgspec.structs.replace(row, chain=before))
    return done


class Writer:
    """Writes one log entry by entry; the time goes on by a millisecond each."""

    def __init__(self) -> None:
        """An empty log."""
        self.rows: list[Row] = []
        self.us = START_US

    def write(self, kind: str, name: str = "account", data: Any = None, by: str = "test") -> Row:
        """Append an entry; ``data`` is an object, or the text as it is."""
        self.us += 1_000
        before = self.rows[-1].chain if self.rows else "0" * 40
        seq, text = len(self.rows) + 1, data if isinstance(data, str) else json.dumps(data or {}, separators=(",", ":"))
        chain = chained(before, seq, self.us, kind, name, by, text)
        self.rows.append(Row(seq, self.us, kind, name, by, text, chain, f"{self.us // 1_000}-0"))
        return self.rows[-1]

    def opened(self, cash: int, **positions: tuple[int, int]) -> None:
        """The books; ``positions`` are BTC=(lots, cost)."""
        held = {f"{name}-USD": {"lots": str(lots), "cost": str(cost)} for name, (lots, cost) in positions.items()}
        self.write("OPENED", "account", {"cash": str(cash), "positions": held})

    def reserved(self, name: str, lots: int, notional: int, cash: int = 0, **order: str) -> None:
        """An accepted limit order: side, product, strategy, ticks as named, or a buy of BTC-USD by ``manual``."""
        o = {"side": "BUY", "product": "BTC-USD", "strategy": "manual", "ticks": "10000", "by": "key"} | order
        asked: list[Any] = [
            name,
            "print",
            o["strategy"],
            o["product"],
            o["side"],
            "LIMIT",
            "GTC",
            "1",
            "100",
            "0",
            str(lots),
        ]
        asked += [o["ticks"], "10", "1", o["by"], [], "1", "0", "0", ""]
        self.write("RESERVED", name, {"request": asked, "notional": str(notional), "cash": str(cash)}, o["by"])

    def filled(self, name: str, trade: str, lots: int, value: int, fee: int = 0, **order: str) -> None:
        """A fill."""
        o = {"side": "BUY", "product": "BTC-USD", "strategy": "manual"} | order
        figures = {"trade_id": trade, "lots": str(lots), "value": str(value), "fee": str(fee), "ts_ns": "1"}
        self.write("FILL", name, figures | o | {"overfill": False}, "execution")

    def priced(self, bid: int, ask: int, product: str = "BTC-USD", num: int = 10, den: int = 1) -> None:
        """A reference price in ticks."""
        figures = [str(n) for n in (bid, ask, num, den, 0, 0)]
        self.write("REFERENCE", "account", {product: figures}, "execution")
