"""Figures of a snapshot: worked examples in lots and micros; a lot is worth a micro at a tick unless said."""

from __future__ import annotations

from fractions import Fraction

import pytest

from cluster.exposures import Reference, figures, references_of
from cluster.ledger import Snapshot

NOW_MS = 1_000_000


def snapshot(
    lots: int = 0,
    cost: int = 0,
    bid_ask: str | None = "100 101",
    age_ms: int = 0,
    scale: str = "1 1",
    book: dict[str, str] | None = None,
    stale_ms: str | None = "1000",
) -> Snapshot:
    return Snapshot(
        state={},
        limits={} if stale_ms is None else {"account|reference_stale_ms": stale_ms},
        book={"cash": "1000", "p|A-USD|cost": str(cost)} | (book or {}),
        positions={"A-USD": str(lots)},
        reference={} if bid_ask is None else {"A-USD": f"{bid_ask} {NOW_MS - age_ms} {scale}"},
        now_ms=NOW_MS,
        strategy_positions={"s": {"A-USD": str(lots)}},
    )


VALUES: list[tuple[int, int, str, str, int, int, int, int]] = [
    # lots, cost, bid and ask, scale -> value, unrealised, gross, equity
    (10, 900, "100 100", "1 1", 1000, 100, 1000, 2000),
    (-10, -900, "100 100", "1 1", -1000, -100, 1000, 0),
    (10, 0, "100 101", "1 1", 1005, 1005, 1010, 2005),
    (-10, 0, "100 101", "1 1", -1005, -1005, 1010, -5),
    (3, 0, "1 1", "1 2", 2, 2, 2, 1002),
    (1, 0, "1 1", "1 100", 0, 0, 1, 1000),
    (-1, 0, "1 1", "1 100", 0, 0, 1, 1000),
    (0, 0, "100 101", "1 1", 0, 0, 0, 1000),
    (2_000_000_000_000, 0, "1000001 1000001", "1 1000", 2_000_002_000_000_000, 2_000_002_000_000_000,
     2_000_002_000_000_000, 2_000_002_000_001_000),
]  # fmt: skip


@pytest.mark.parametrize(("lots", "cost", "bid_ask", "scale", "value", "unrealised", "gross", "equity"), VALUES)
def test_a_position_is_valued_exactly_and_its_exposure_never_understated(
    lots: int, cost: int, bid_ask: str, scale: str, value: int, unrealised: int, gross: int, equity: int
) -> None:
    found = figures(snapshot(lots, cost, bid_ask, scale=scale))
    assert (found.net, found.unrealised, found.gross, found.equity) == (value, unrealised, gross, equity)
    assert (found.strategies[0].net, found.strategies[0].gross) == (value, gross)


WORST: list[tuple[int, int, int, int]] = [
    # lots, open buys, open sells -> the largest position if one side were filled
    (10, 5, 0, 15),
    (10, 0, 5, 10),
    (10, 0, 25, 15),
    (-10, 5, 5, 15),
    (0, 3, 4, 4),
]


@pytest.mark.parametrize(("lots", "buys", "sells", "worst"), WORST)
def test_the_worst_position_counts_the_open_orders_of_one_side(lots: int, buys: int, sells: int, worst: int) -> None:
    book = {"p|A-USD|buy_lots": str(buys), "p|A-USD|sell_lots": str(sells)}
    assert figures(snapshot(lots, book=book)).products[0].worst_lots == worst


AGES: list[tuple[int, str | None, bool]] = [
    # age, limit on it -> fresh
    (1000, "1000", True),
    (1001, "1000", False),
    (10**9, "unlimited", True),
    (0, None, False),
]


@pytest.mark.parametrize(("age_ms", "stale_ms", "fresh"), AGES)
def test_a_price_is_fresh_up_to_its_limit_and_never_without_one(age_ms: int, stale_ms: str | None, fresh: bool) -> None:
    found = snapshot(1, age_ms=age_ms, stale_ms=stale_ms)
    assert references_of(found)["A-USD"] == Reference(100, 101, age_ms, fresh, Fraction(1))
    assert figures(found).prices_fresh is fresh


def test_without_a_price_only_what_needs_none_is_told() -> None:
    held = figures(snapshot(5, cost=400, bid_ask=None, book={"p|A-USD|realised": "7", "reserved": "10"}))
    assert (held.net, held.unrealised, held.gross, held.equity, held.prices_fresh) == (None, None, None, None, False)
    assert (held.realised, held.free) == (7, 990)
    flat = figures(snapshot(0, bid_ask=None, book={"a|open_notional": "30"}))
    assert (flat.net, flat.gross, flat.equity, flat.prices_fresh) == (0, 30, 1000, True)
