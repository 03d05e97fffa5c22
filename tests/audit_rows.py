"""Audit logs for tests: a small writer that chains entries as the ledger's server does, written from the rule."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

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
