"""Parts of a live session for tests: a clock that is set, a venue that serves bars as they come, a desk that remembers.

The desk is a double at the socket: it answers as /v1/orders does, a repeat of an id with the first answer above all,
and fills what it accepts at the next bar's open. With the real one: tests/integration/test_sessions.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from cluster import sessions
from cluster.live_bars import Fetch, LiveBars
from cluster.run_folder import RunState, replace_file
from cluster.session_journal import NOTE, Journal, read_journal
from cluster.sessions import Checkpoint, SessionFolder, SessionSpec, parse_session, prepare_session
from jobs.session_engine import Session
from jobs.session_orders import DeskSilent, Said
from strategies.backtest import run
from strategies.model import NS_PER_S, Bars, Granularity, Product
from tests.api_desk import BTC
from tests.bar_samples import pick
from tests.run_samples import wavy_bars

MINUTE_NS: Final = Granularity.ONE_MINUTE.ns
FEE: Final = Decimal("0.006")
SPEC: Final[dict[str, Any]] = {
    "product_id": "BTC-USD",
    "granularity": "ONE_MINUTE",
    "strategy": "sma_cross",
    "params": {"fast": 5, "slow": 21},
    "warmup_bars": 60,
}


class Killed(BaseException):
    """The process has died here: nothing of it may run on, so no handler of errors catches it."""


@dataclass
class SetClock:
    """Time that passes only where somebody sleeps."""

    now_ns: int

    def time_ns(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += max(1, int(seconds * NS_PER_S))


@dataclass
class Market:
    """A venue's candles as they are at the clock's time: the running bar as far as it has come."""

    bars: Bars
    clock: SetClock
    asked: int = 0

    def fetch(self, start_s: int, end_s: int) -> Bars:
        """As ``Venue.candles``."""
        assert (end_s - start_s) / self.bars.granularity.seconds <= 350
        self.asked += 1
        ts_s = self.bars.ts_ns // NS_PER_S
        found = pick(self.bars, (ts_s >= start_s) & (ts_s < end_s) & (self.bars.ts_ns < self.clock.now_ns))
        running = found.ts_ns + found.granularity.ns > self.clock.now_ns
        # As far as it has come, the running bar has no more than its open.
        for name in ("high", "low", "close"):
            getattr(found, name)[running] = found.open[running]
        found.volume[running] = 0.5
        return found

    def open_after(self, ts_ns: int) -> float:
        """The open of the first bar behind one."""
        at = int(np.searchsorted(self.bars.ts_ns, ts_ns, side="right"))
        return float(self.bars.open[min(at, len(self.bars) - 1)])


@dataclass
class MemoryDesk:
    """Orders by id. ``deny`` names the code of a denial, ``silent`` says whether the next request gets no answer."""

    market: Market
    deny: Callable[[Mapping[str, Any]], str] = lambda _: ""
    silent: Callable[[str], bool] = lambda _: False
    fills: Callable[[Mapping[str, Any]], Decimal] = lambda _: Decimal(1)
    orders: dict[str, tuple[dict[str, Any], Said]] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def submit(self, body: Mapping[str, Any]) -> Said:
        order_id = body["client_order_id"]
        self.requests.append(("submit", order_id))
        if self.silent("submit"):
            return Said("LATER", "RISK_UNAVAILABLE")
        if order_id not in self.orders:
            code = self.deny(body)
            self.orders[order_id] = (dict(body), Said("DENIED", code) if code else Said("ACCEPTED"))
        first, said = self.orders[order_id]
        return said if first == body else Said("DENIED", "DUP_ID_DIFFERENT_BODY")

    def check(self, body: Mapping[str, Any]) -> Said:
        self.requests.append(("check", body["client_order_id"]))
        code = self.deny(body)
        return Said("DENIED", code) if code else Said("ACCEPTED")

    def order(self, account: str, client_order_id: str) -> Mapping[str, Any] | None:
        self.requests.append(("order", client_order_id))
        if self.silent("order"):
            raise DeskSilent("the double says nothing")
        if client_order_id not in self.orders:
            return None
        body, said = self.orders[client_order_id]
        assert body["account"] == account
        if said.outcome == "DENIED":
            return {"status": "DENIED", "denials": [{"code": said.code}]}
        share = self.fills(body)
        decided = client_order_id.split(".")[1]
        after_ns = int(decided) * NS_PER_S if decided.isdigit() else self.market.clock.now_ns
        price = Decimal(repr(self.market.open_after(after_ns)))
        quantity = (Decimal(body["quantity"]) * share).quantize(BTC.base_increment)
        value = quantity * price
        return {
            "status": "FILLED" if share == 1 else "CANCELLED",
            "filled_quantity": f"{quantity:f}",
            "filled_value": f"{value:f}",
            "average_price": f"{price:f}",
            "fees": f"{value * FEE:f}",
        }

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """What the desk took, in order."""
        return [body for body, said in self.orders.values() if said.outcome == "ACCEPTED"]


@dataclass
class Bench:
    """A session laid out with its parts; ``session()`` is a new process on the same folder."""

    folder: SessionFolder
    clock: SetClock
    market: Market
    desk: MemoryDesk
    product: Product = BTC

    def session(
        self, fetch: Fetch | None = None, door: Any = None, sync: Callable[[int], None] = lambda _: None
    ) -> Session:
        """The session, not run yet. Nothing waits for the disk unless ``sync`` does."""
        bars = LiveBars("BTC-USD", Granularity.ONE_MINUTE, fetch or self.market.fetch)
        return Session(self.folder, self.product, bars, door or self.desk, self.clock, sync)

    @property
    def checkpoint(self) -> Checkpoint:
        found = self.folder.checkpoint()
        assert found is not None
        return found

    def lines(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The journal, perhaps of one kind only."""
        found = list(read_journal(self.folder.journal_file, self.checkpoint.journal_bytes))
        return [line for line in found if kind in {None, line["kind"]}]

    def story(self) -> list[dict[str, Any]]:
        """The journal without moments and remarks: what must be the same however often the session was killed."""
        return [{k: v for k, v in line.items() if k != "at_ns"} for line in self.lines() if line["kind"] != NOTE]


def minute_bars(count: int, seed: int = 7) -> Bars:
    """Wavy bars of a minute each, rounded as a venue's prices are."""
    bars = wavy_bars(count, seed, Granularity.ONE_MINUTE)
    for name in ("open", "high", "low", "close"):
        np.round(getattr(bars, name), 2, out=getattr(bars, name))
    np.round(bars.volume, 8, out=bars.volume)
    return bars


def bench(tmp_path: Path, bars: Bars | None = None, start: int = 60, **changes: Any) -> Bench:
    """A session whose clock stands shortly after the beginning of bar ``start``."""
    bars = minute_bars(400) if bars is None else bars
    spec = spec_of(**changes)
    folder, _ = prepare_session(tmp_path / "sessions", spec, "s1", "SIMULATED", now_ns=1)
    clock = SetClock(int(bars.ts_ns[start]) + 1_000_000_000)
    market = Market(bars, clock)
    return Bench(folder, clock, market, MemoryDesk(market))


def spec_of(**changes: Any) -> SessionSpec:
    """The specification with some fields changed."""
    return parse_session(SPEC | changes)


def met_bars(met: Bench) -> Bars:
    first = int(np.searchsorted(met.market.bars.ts_ns, met.lines("bar")[0]["ts_ns"]))
    return met.market.bars.between(first, first + met.checkpoint.bars)


def same_targets(met: Bench) -> bool:
    """Whether the session's targets are those of the backtest of the same bars, bit for bit."""
    wanted = run(met.folder.spec().backtest(), met_bars(met)).target.tolist()
    found = [math.nan if line["target"] is None else line["target"] for line in met.lines("bar")]
    return [value.hex() for value in found] == [value.hex() for value in wanted]


# -- killed at a point -------------------------------------------------------------------------------------------------


class Fuse:
    """Counts points and ends the process at one of them."""

    def __init__(self, at: int = -1) -> None:
        self.at = at
        self.passed: list[str] = []

    def point(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) - 1 == self.at:
            raise Killed(name)


def fused(monkeypatch: pytest.MonkeyPatch) -> list[Fuse]:
    """Every write of a session passes the fuse in the list: before it, half-way where that can be seen, and after."""
    held: list[Fuse] = [Fuse()]
    append = Journal.append

    def replacing(path: Path, data: bytes) -> None:
        held[0].point(f"before {path.name}")
        replace_file(path, data)
        held[0].point(f"after {path.name}")

    def appending(journal: Journal, lines: Any) -> int:
        held[0].point("before journal")
        before = journal.length
        length = append(journal, lines)
        with journal.path.open("r+b") as file:
            whole = file.read()
            file.truncate(before + (length - before) // 2)
            held[0].point("half of journal")
            file.seek(0)
            file.write(whole)
        held[0].point("after journal")
        return length

    monkeypatch.setattr(sessions, "replace_file", replacing)
    monkeypatch.setattr(Journal, "append", appending)
    return held


class Wired:
    """The desk, with a point before and after each request."""

    def __init__(self, met: Bench, fuse: Fuse) -> None:
        self._desk, self._fuse = met.desk, fuse

    def _ask(self, name: str, call: Callable[[], Any]) -> Any:
        self._fuse.point(f"before {name}")
        answer = call()
        self._fuse.point(f"after {name}")
        return answer

    def submit(self, body: Mapping[str, Any]) -> Said:
        return self._ask("submit", lambda: self._desk.submit(body))  # type: ignore[no-any-return]

    def check(self, body: Mapping[str, Any]) -> Said:
        return self._ask("check", lambda: self._desk.check(body))  # type: ignore[no-any-return]

    def order(self, account: str, client_order_id: str) -> Mapping[str, Any] | None:
        return self._ask("order", lambda: self._desk.order(account, client_order_id))  # type: ignore[no-any-return]


def run_with(met: Bench, held: list[Fuse], fuse: Fuse) -> RunState:
    held[0] = fuse

    def fetch(start_s: int, end_s: int) -> Bars:
        fuse.point("before candles")
        bars = met.market.fetch(start_s, end_s)
        fuse.point("after candles")
        return bars

    return met.session(fetch, Wired(met, fuse)).run()
