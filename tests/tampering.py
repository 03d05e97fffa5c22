"""A hand that writes into the ledger's book behind its back, past the verbs: what proofs and checks must notice."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final

from cluster.ledger import Ledger

DAY: Final = "day"


async def set_figure(ledger: Ledger, base: str, name: str, text: str) -> None:
    """Write one figure of a book, where it stands: in its scope's record, or in a field of its own."""
    field, place = _place(name)
    if place is None:
        await ledger._direct("HSET", f"{base}:book", field, text)
        return
    names = _records()[_kind(field)]
    packed = await ledger._direct("HGET", f"{base}:book", field)
    numbers = len(names) - (names[-1] == DAY)
    parts = packed.split(" ", numbers) if packed else ["0"] * numbers
    if place == numbers and len(parts) == numbers:
        parts.append("")
    parts[place] = text
    await ledger._direct("HSET", f"{base}:book", field, " ".join(parts))


async def figure_of(ledger: Ledger, base: str, name: str) -> str:
    """One figure as it stands."""
    field, place = _place(name)
    packed = await ledger._direct("HGET", f"{base}:book", field)
    if place is None or not packed:
        return packed or "0"
    names = _records()[_kind(field)]
    return str(packed.split(" ", len(names) - (names[-1] == DAY))[place])


async def add_to_figure(ledger: Ledger, base: str, name: str, amount: int) -> None:
    """Add to one figure."""
    await set_figure(ledger, base, name, str(int(await figure_of(ledger, base, name)) + amount))


def _place(name: str) -> tuple[str, int | None]:
    field, _, last = name.rpartition("|")
    names = _records().get(_kind(field or "all"), [])
    return (field or "all", names.index(last)) if last in names else (name, None)


def _kind(field: str) -> str:
    return field.partition("|")[0]


@cache
def _records() -> dict[str, list[str]]:
    """Kind of scope -> its figures in their order, as ledger_base.lua lays them out."""
    source = (files("cluster") / "ledger_base.lua").read_text()
    table = source[source.index("local RECORDS = {") :]
    table = table[: table.index("\n}\n")]
    found = re.findall(r"^  (\w+) = \{(.*?)\}", table, re.DOTALL | re.MULTILINE)
    return {kind: re.findall(r"'(\w+)'", names) for kind, names in found}
