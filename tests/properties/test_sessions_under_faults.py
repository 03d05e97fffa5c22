"""Sessions that meet everything at once: kills at any point, a desk often silent, denials, parts of fills.

Whatever happens, the targets are those of the backtest, no id is sent twice for two things, and the session's position
and money are those of the orders as the desk knows them.
"""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.run_folder import RunState
from tests.session_parts import Bench, Fuse, Killed, bench, fused, run_with, same_targets


def troubled(folder: Path, seed: int) -> Bench:
    """A session that trades with nearly every bar, at a desk that makes trouble by ``seed``."""
    chance = random.Random(seed)
    met = bench(folder, start=60 + seed % 60, bars_max=30, params={"fast": 1, "slow": 2}, warmup_bars=30)
    denied: dict[str, str] = {}

    def fills(body: Mapping[str, Any]) -> Decimal:
        # By the id alone, so that the answer to a repeated question stays the same.
        return Decimal("0.5") if zlib.crc32(body["client_order_id"].encode()) % 3 == 0 else Decimal(1)

    def deny(body: Mapping[str, Any]) -> str:
        return denied.setdefault(body["client_order_id"], "TRADING_HALTED" if chance.random() < 0.2 else "")

    met.desk.fills, met.desk.deny = fills, deny
    met.desk.silent = lambda _: chance.random() < 0.2
    return met


def run_with_kills(met: Bench, held: list[Fuse], seed: int) -> int:
    """Run to the end over as many lives as it takes; how often it was killed."""
    chance = random.Random(seed)
    for kills in range(200):
        try:
            assert run_with(met, held, Fuse(chance.randint(45, 200))) is RunState.SUCCEEDED
        except Killed:
            continue
        return kills
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("seed", range(20))
def test_targets_orders_and_money_are_right_whatever_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    check_seed(tmp_path, monkeypatch, seed)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_they_are_for_many_more_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(20, 1_000):
        with monkeypatch.context() as patched:
            check_seed(tmp_path / str(seed), patched, seed)


def check_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """One seed; what is brought to the disk is not seen by a kill of the process, so nobody waits for it."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    met = troubled(tmp_path, seed)
    run_with_kills(met, fused(monkeypatch), seed)
    assert same_targets(met)
    decided = [line["client_order_id"] for line in met.lines("order") if line["event"] == "DECIDED"]
    assert len(decided) == len(set(decided)) == met.checkpoint.orders
    assert set(met.desk.orders) <= set(decided)
    met.desk.silent = lambda _: False
    cash, position = Decimal(10_000), Decimal(0)
    for order_id, (body, said) in met.desk.orders.items():
        if said.outcome == "ACCEPTED":
            view = met.desk.order("main", order_id)
            assert view is not None
            sign = 1 if body["side"] == "BUY" else -1
            position += sign * Decimal(view["filled_quantity"])
            cash -= sign * Decimal(view["filled_value"]) + Decimal(view["fees"])
    assert (Decimal(met.checkpoint.position), Decimal(met.checkpoint.cash)) == (position, cash)
    assert position >= 0
