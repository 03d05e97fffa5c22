"""Reconciling while orders come, rest, fill and end all the time: lists that are not of one instant halt nothing."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import pytest

from strategies.model import OrderStatus
from tests.execution_rig import ACCOUNT, Rig, buy
from tests.faults.venue_load import venue_rig

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

BUSY_S: Final = 10.0
RESTING: Final = 40


async def test_an_account_that_trades_all_the_time_is_not_halted_for_it(tmp_path: Path) -> None:
    async with venue_rig(tmp_path, execution={"reconcile_interval_s": 0.5}) as made:
        ended = asyncio.get_running_loop().time() + BUSY_S
        async with asyncio.TaskGroup() as group:
            for number in range(RESTING):
                group.create_task(_trade(made, number, ended))
        assert [alert for alert in await made.ledger.alerts(ACCOUNT) if alert["code"] == "RECON_BREAK"] == []
        await made.agree()
        assert made.calls()["venue.accounts"] > BUSY_S / 5, "nobody has reconciled meanwhile"


async def _trade(made: Rig, number: int, ended: float) -> None:
    """One order after the other: most rest until the exchange executes them, some are filled at once."""
    chance = random.Random(number)
    count = 0
    while asyncio.get_running_loop().time() < ended:
        count += 1
        name = f"b-{number}-{count}"
        if chance.random() < 0.3:
            await made.reserve(buy(name, "BTC-USD", "0.0001"))
            continue
        await made.reserve(buy(name, "ETH-USD", "0.01", "2000"))
        fields = await _resting(made, name)
        await asyncio.sleep(chance.uniform(0.0, 0.5))
        body = {"order_id": fields["venue_order_id"], "quantity": fields["quantity"]}
        await asyncio.to_thread(made.exchange.ask, "POST", "/sim/fill", body)


async def _resting(made: Rig, name: str) -> dict[str, str]:
    async def rests() -> bool:
        return await made.status(name) == OrderStatus.OPEN

    await made.until(rests, f"{name} rests")
    return await made.ledger.order(ACCOUNT, name) or {}
