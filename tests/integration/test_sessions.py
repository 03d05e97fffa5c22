"""A session on the real way of its orders: HTTP, risk, ledger, execution, simulator; killed again and again on it.

The bars are the simulator's of some hours ago, met one a moment; the orders live in the present.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from cluster.api_keys import READ, TRADE, KeyRing, create_key
from cluster.approvals import GLOBAL
from cluster.exposures import figures
from cluster.processes import choose_ports
from cluster.run_folder import RunState
from cluster.session_journal import NOTE, read_journal
from cluster.sessions import SessionFolder, StopRequest, parse_session, prepare_session
from conf.settings import ROOT, RedisSettings
from serve_apps.listener import Listener
from serve_apps.orders import OrdersApp
from strategies.model import NS_PER_S, Granularity, TradingState
from tests.execution_rig import ACCOUNT, Rig, rig
from tests.servers import redis_secrets

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LIVE_BARS: Final = 40
AGO_S: Final = 8 * 3_600
END_S_MAX: Final = 150.0
SPEC: Final[dict[str, Any]] = {
    "account": ACCOUNT,
    "product_id": "BTC-USD",
    "granularity": "ONE_MINUTE",
    "strategy": "sma_cross",
    # What a person sends is not halted after a row of losses, and crossing all the time loses.
    "trades_as": "manual",
    "params": {"fast": 2, "slow": 5},
    "warmup_bars": 50,
    "costs": {"initial_cash": 10_000, "fee_bps": 60},
}


@dataclass
class Live:
    """A session laid out on a rig whose orders are answered at ``url``."""

    made: Rig
    folder: SessionFolder
    url: str
    begin_ns: int

    def launch(self) -> subprocess.Popen[bytes]:
        """A new process of the session."""
        argv = [sys.executable, "-m", "tests.session_process", str(self.folder.path), self.url]
        argv += [self.made.exchange.host_port, str(self.made.exchange.folder), str(self.begin_ns)]
        with (self.folder.path / "log").open("ab") as log:
            return subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})

    async def to_the_end(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the process has ended by itself."""
        status = await asyncio.to_thread(process.wait, END_S_MAX)
        assert status == 0, (self.folder.path / "log").read_text()[-4000:]

    @property
    def orders(self) -> list[dict[str, Any]]:
        """What the journal tells of orders, without moments."""
        checkpoint = self.folder.checkpoint()
        assert checkpoint is not None
        lines = read_journal(self.folder.journal_file, checkpoint.journal_bytes)
        return [line for line in lines if line["kind"] == "order"]

    def compare(self) -> dict[str, Any]:
        """``python -m jobs.session_parity``."""
        argv = [sys.executable, "-m", "jobs.session_parity", "--session-dir", str(self.folder.path), "--json"]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@asynccontextmanager
async def live(server: RedisSettings, tmp_path: Path, **changes: Any) -> AsyncIterator[Live]:
    """A session on a rig with execution at work and orders answered over HTTP."""
    async with rig(server, tmp_path) as made:
        made.begin()

        async def admitted() -> bool:
            return (await made.ledger.snapshot(ACCOUNT)).admitted

        await made.until(admitted, "execution has admitted the account", 30)
        pepper = redis_secrets().api_key_pepper
        assert pepper is not None
        key = await create_key(made.ledger, pepper, "session", [READ, TRADE], [ACCOUNT], strategies=["manual"])
        (port,) = choose_ports(1)
        listener = Listener(OrdersApp(made.ledger, KeyRing(made.ledger, pepper)), port)
        await listener.open()
        try:
            spec = parse_session(SPEC | changes)
            folder, _ = prepare_session(tmp_path / "sessions", spec, "live", "SIMULATED")
            folder.write_key(key.get_secret_value())
            minute_ns = Granularity.ONE_MINUTE.ns
            begin_ns = (time.time_ns() - AGO_S * NS_PER_S) // minute_ns * minute_ns
            yield Live(made, folder, f"http://127.0.0.1:{port}", begin_ns)
        finally:
            await listener.close()


async def the_books_know_the_same(session: Live) -> None:
    """Every order the session decided on is one order at the venue, and its position and money are the ledger's."""
    checkpoint = session.folder.checkpoint()
    assert checkpoint is not None
    accepted = [line["client_order_id"] for line in session.orders if line["event"] == "ACCEPTED"]
    at_venue = [order.client_order_id for order in await asyncio.to_thread(session.made.venue.orders)]
    assert sorted(at_venue) == sorted(set(accepted))
    found = figures(await session.made.ledger.snapshot(ACCOUNT))
    (manual,) = [one for one in found.strategies if one.scope == "strategy|manual"]
    lots = {name: position.lots for name, position in manual.positions.items()}
    held = Decimal(checkpoint.position)
    assert lots.get("BTC-USD", 0) * Decimal("0.00000001") == held
    spent = Decimal(10_000) - Decimal(checkpoint.cash)
    fills = [line for line in session.orders if Decimal(line.get("filled_quantity", "0"))]
    traded = sum(
        (1 if line["side"] == "BUY" else -1) * Decimal(line["filled_value"]) + Decimal(line["fees"]) for line in fills
    )
    assert spent == traded
    assert Decimal(found.fees) / 1_000_000 == Decimal(checkpoint.fees)


async def test_a_session_trades_as_its_backtest_says_and_the_slippage_is_half_the_spread(
    ledger_server: RedisSettings, tmp_path: Path
) -> None:
    async with live(ledger_server, tmp_path, bars_max=LIVE_BARS) as session:
        await session.to_the_end(session.launch())
        assert session.folder.status().state is RunState.SUCCEEDED
        await the_books_know_the_same(session)
        found = await asyncio.to_thread(session.compare)
        assert (found["differences"], found["live_bars"], found["bars"]) == (0, LIVE_BARS, LIVE_BARS + 50)
        assert found["orders"]["FILLED"] == found["fills"] >= 4, found["orders"]
        assert set(found["orders"]) == {"DECIDED", "ACCEPTED", "FILLED"}
        # The simulator's spread is two ticks of 0.01 at tens of thousands; a larger order walks a level or two further.
        assert 0 <= found["median_bps"] < 1
        assert abs(found["mean_bps"]) < 2
        assert Path(found["picture"]).stat().st_size > 1_000_000


async def test_killed_again_and_again_it_sends_nothing_twice_and_its_targets_stay_those_of_the_backtest(
    ledger_server: RedisSettings, tmp_path: Path
) -> None:
    chance = random.Random(4)
    async with live(ledger_server, tmp_path, bars_max=LIVE_BARS) as session:
        kills = 0
        for _ in range(8):
            process = session.launch()
            begun = session.folder.checkpoint()
            bars = begun.bars if begun else 0

            async def moved(process: subprocess.Popen[bytes] = process, bars: int = bars) -> bool:
                now = session.folder.checkpoint()
                return process.poll() is not None or (now is not None and now.bars > bars)

            await session.made.until(moved, "the session has met a bar", 60)
            await asyncio.sleep(chance.uniform(0.0, 0.4))
            kills += process.poll() is None
            process.kill()
            await asyncio.to_thread(process.wait)
        assert kills >= 4
        await session.to_the_end(session.launch())
        await the_books_know_the_same(session)
        checkpoint = session.folder.checkpoint()
        assert checkpoint is not None
        lines = list(read_journal(session.folder.journal_file, checkpoint.journal_bytes))
        assert len([line for line in lines if line["kind"] == NOTE and line["what"] == "resumed"]) >= kills - 1
        assert len({line["ts_ns"] for line in lines if line["kind"] == "bar"}) == checkpoint.bars == LIVE_BARS + 50
        found = await asyncio.to_thread(session.compare)
        assert found["differences"] == 0
        assert found["fills"] >= 4


async def test_a_stopped_session_closes_its_position_at_the_venue(ledger_server: RedisSettings, tmp_path: Path) -> None:
    async with live(ledger_server, tmp_path) as session:
        process = session.launch()

        async def holding() -> bool:
            now = session.folder.checkpoint()
            return now is not None and Decimal(now.position) > 0

        await session.made.until(holding, "the session holds something", 60)
        session.folder.write_stop(StopRequest(by="a test", at_ns=time.time_ns(), flatten=True))
        await session.to_the_end(process)
        assert session.folder.status().state is RunState.STOPPED
        checkpoint = session.folder.checkpoint()
        assert checkpoint is not None
        assert Decimal(checkpoint.position) == 0
        await the_books_know_the_same(session)


async def test_while_trading_is_halted_orders_are_denied_noted_and_not_sent_again(
    ledger_server: RedisSettings, tmp_path: Path
) -> None:
    async with live(ledger_server, tmp_path, bars_max=30) as session:
        await session.made.ledger.tighten(None, GLOBAL, TradingState.HALTED, "test", "drill")
        await session.to_the_end(session.launch())
        events = [(line["event"], line.get("code")) for line in session.orders]
        assert ("DENIED", "TRADING_HALTED") in events
        assert {event for event, _ in events} == {"DECIDED", "DENIED"}
        assert await asyncio.to_thread(session.made.venue.orders) == []
        assert (await asyncio.to_thread(session.compare))["differences"] == 0
