"""A hand that writes into the ledger's book behind its back, past the verbs: what proofs and checks must notice."""

from __future__ import annotations

from cluster.ledger import Ledger


async def set_figure(ledger: Ledger, base: str, name: str, text: str) -> None:
    """Write one figure of a book."""
    await ledger._direct("HSET", f"{base}:book", name, text)


async def figure_of(ledger: Ledger, base: str, name: str) -> str:
    """One figure as it stands."""
    return str(await ledger._direct("HGET", f"{base}:book", name) or "0")


async def add_to_figure(ledger: Ledger, base: str, name: str, amount: int) -> None:
    """Add to one figure."""
    await ledger._direct("HINCRBY", f"{base}:book", name, str(amount))
