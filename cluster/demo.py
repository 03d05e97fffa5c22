"""``desk demo``: the whole desk once, from nothing to a leaderboard and orders at the venue, with the real parts."""

from __future__ import annotations

import datetime as dt
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, Final

from cluster import local
from cluster.approvals import APPLIED, GLOBAL
from cluster.cli_access import call, with_ledger
from cluster.cli_orders import order_body
from cluster.console import CommandError, console, print_table
from cluster.ledger import Ledger
from conf.settings import SIMULATED, Settings, load_settings
from strategies.model import TradingState

PRODUCT: Final = "BTC-USD"
GRANULARITY: Final = "FOUR_HOUR"
HISTORY_DAYS: Final = 1_000
GRIDS: Final = (
    "sma_cross.fast=5:50:5",
    "sma_cross.slow=60:200:10",
    "sma_cross.allow_short=0,1",
    "donchian_breakout.entry_window=20:200:10",
    "donchian_breakout.exit_window=5:55:5",
    "donchian_breakout.allow_short=0,1",
)
SETTLE_TIMEOUT_S: Final = 20.0
# Resuming takes two people; the demonstration plays both.
OPERATOR: Final = "operator of the demonstration"
SUPERVISOR: Final = "supervisor of the demonstration"
REASON: Final = "shown by desk demo"
_HALT_MARK: Final = "demo-has-halted"


def run(stay: bool, venue: str | None) -> None:
    """Bring the desk up, ingest, sweep, trade, and stay until Ctrl-C where ``stay``; a desk that ran before stays up.

    Raises ``CommandError`` where a step does not end as it must.
    """
    before = load_settings()
    was_up = (before.state_dir / "desk.json").exists()
    settings = local.up(before, lambda text: console.print(f"  {text}", highlight=False))
    try:
        _steps(settings, venue)
        if stay:
            console.print("\nthe desk stays up; [bold]Ctrl-C[/] stops it")
            _wait_for_ever()
    except KeyboardInterrupt:
        console.print("\nstopping")
    finally:
        # A second Ctrl-C must not interrupt the stopping and leave half of the desk behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if not was_up:
            local.down(settings.state_dir, lambda text: console.print(f"  {text}", highlight=False))


def _steps(settings: Settings, venue: str | None) -> None:
    kind = venue or settings.venue.kind
    if kind == "coinbase":
        # Real and simulated bars never share a store.
        os.environ["DESK_BARS_DIR"] = str(settings.state_dir / "bars-coinbase")
    source = SIMULATED if kind == "simulator" else "coinbase"
    _headline(f"1. bars of {PRODUCT} from the venue, through the Coinbase SDK ({source})")
    start = dt.datetime.now(dt.UTC) - dt.timedelta(days=HISTORY_DAYS)
    words = ["ingest", "-p", PRODUCT, "-g", GRANULARITY, "--start", start.strftime("%Y-%m-%d")]
    _desk(*words, *(["--venue", venue] if venue else []))
    _headline("2. a parameter sweep as a Ray job")
    _desk("sweep", "-p", PRODUCT, "-g", GRANULARITY, *(part for grid in GRIDS for part in ("-G", grid)))
    _headline(f"3. orders through three risk replicas and execution (venue: {settings.data_source})")
    rows = _orders(settings)
    print_table("what became of each order", ["order", "answer", "what happened"], rows)
    _headline("4. where things are")
    from cluster.cli import urls

    print_table("", ["what", "where"], urls(settings).items())


def _orders(settings: Settings) -> list[tuple[str, str, str]]:
    """Send the demonstration's orders and check that each ends as it must."""
    mark = settings.state_dir / _HALT_MARK
    if mark.exists():
        _resume(mark)
    first = order_body(PRODUCT, "BUY", "0.01", client_order_id=_order_id())
    rows = [("buy 0.01 at the market", *_accepted(first))]
    status, answer = call("POST", "/v1/orders", json=first)
    _expect("the repeated id", status == 201 and answer["client_order_id"] == first["client_order_id"], answer)
    rows.append(("the same id again", "201, the first answer", "nothing new was sent"))
    large = order_body(PRODUCT, "BUY", "40", limit_price="30000.00", client_order_id=_order_id())
    status, answer = call("POST", "/v1/orders", json=large)
    _expect("the order over a limit", status == 422, answer)
    broken = ", ".join(sorted({denial["code"] for denial in answer["denials"]}))
    rows.append(("buy 40 at 30,000", f"{status} DENIED", broken))
    rows.append(("sell the 0.01 again", *_accepted(order_body(PRODUCT, "SELL", "0.01", client_order_id=_order_id()))))
    _halt(mark)
    try:
        status, answer = call(
            "POST", "/v1/orders", json=order_body(PRODUCT, "BUY", "0.01", client_order_id=_order_id())
        )
        _expect("the order after the kill switch", status == 422 and answer["code"] == "TRADING_HALTED", answer)
        rows.append(("buy 0.01 after the kill switch", f"{status} DENIED", answer["code"]))
    finally:
        alone = _resume(mark)
    rows.append(("resume, approved by who asked for it", "refused", alone))
    rows.append(("resume, approved by a second person", APPLIED, "orders pass again"))
    return rows


def _accepted(body: dict[str, Any]) -> tuple[str, str]:
    status, answer = call("POST", "/v1/orders", json=body)
    _expect(f"{body['side']} {body['quantity']}", status == 201, answer)
    final = _settled(body["client_order_id"])
    _expect(f"{body['side']} {body['quantity']}", final["status"] == "FILLED", final)
    price, fees = final["average_price"], final["fees"]
    return "201 ACCEPTED", f"FILLED {final['filled_quantity']} at {price}, fees {fees} ({load_settings().data_source})"


def _settled(client_order_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        _, order = call("GET", f"/v1/orders/{client_order_id}", params={"account": "main"})
        if order.get("status") in {"FILLED", "CANCELLED", "REJECTED", "EXPIRED"} or time.monotonic() > deadline:
            return dict(order)
        time.sleep(0.05)


def _halt(mark: Path) -> None:
    """Halt everywhere; the mark lets the next demonstration undo what a killed one has halted."""
    mark.touch()
    with_ledger(lambda ledger: ledger.tighten(None, GLOBAL, TradingState.HALTED, "demo", REASON))


def _resume(mark: Path) -> str:
    """Ask to resume as one person and approve as another; returns why the first alone was refused."""

    async def work(ledger: Ledger) -> tuple[str, str]:
        proposal = await ledger.propose_resume(None, GLOBAL, "demo", OPERATOR, REASON)
        said = [
            await ledger.approve(None, proposal.id, proposal.digest, "demo", person)
            for person in (OPERATOR, SUPERVISOR)
        ]
        return said[0].outcome, f"{said[1].outcome} {said[1].detail}".strip()

    alone, together = with_ledger(work)
    _expect("resuming after the kill switch", together == APPLIED and alone == "SAME_PERSON", (alone, together))
    mark.unlink(missing_ok=True)
    return alone


def _expect(what: str, holds: bool, answer: Any) -> None:
    if not holds:
        raise CommandError(f"{what} did not end as it must: {answer}")


def _order_id() -> str:
    return f"demo-{uuid.uuid4().hex[:12]}"


def _headline(text: str) -> None:
    console.print(f"\n[bold cyan]{text}[/]")


def _desk(*words: str) -> None:
    """One desk command, as a user would type it, shown as such."""
    console.print(f"$ desk {' '.join(words)}", style="dim", highlight=False)
    done = subprocess.run([sys.executable, "-m", "cluster.cli", *words], check=False)
    if done.returncode != 0:
        raise CommandError(f"desk {words[0]} ended with code {done.returncode}")


def _wait_for_ever() -> None:
    # Ctrl-C and a polite kill both end here as KeyboardInterrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        signal.pause()
