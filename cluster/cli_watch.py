"""``desk risk watch``: the desk's state in a terminal, and one key press that halts it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.approvals import GLOBAL
from cluster.cli_access import holder, running_settings, with_ledger
from cluster.cli_risk import figure_rows, halt, scopes_of, snapshots, strained_rows
from cluster.console import CommandError, console
from cluster.exposures import figures
from cluster.ledger import Ledger, LedgerError, LedgerUnavailable, Snapshot
from strategies.model import TradingState

KEYS: Final = {"h": TradingState.HALTED, "c": TradingState.CANCEL_ALL, "r": TradingState.REDUCING}
QUIT: Final = "q"
HELP: Final = "h HALT everything   c HALT and cancel all   r reducing only   q quit"
REASON: Final = "one key press (desk risk watch)"


def watch(account: str | None, every_s: float, key_file: Path | None) -> None:
    """Show and listen until q; raises ``CommandError`` without a terminal or without a valid key."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise CommandError("watch needs a terminal; without one: desk risk halt, desk risk status", field="terminal")
    with_ledger(lambda ledger: _watch(ledger, account, every_s, key_file))


async def _watch(ledger: Ledger, account: str | None, every_s: float, key_file: Path | None) -> None:
    # Who may not halt learns it before it is urgent.
    await holder(ledger, running_settings(), key_file)
    screen = _Screen()
    pressed: asyncio.Queue[str] = asyncio.Queue()
    with _key_presses(pressed), Live(screen.drawn(), console=console, auto_refresh=False) as live:
        looking = asyncio.create_task(_look(ledger, account, every_s, screen, live))
        try:
            # Looking and halting are apart, so that a key press waits for no answer but its own.
            while (key := await pressed.get()) != QUIT:
                if key in KEYS:
                    screen.note = await _press(ledger, KEYS[key], key_file)
                    live.update(screen.drawn(), refresh=True)
        finally:
            looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await looking


async def _press(ledger: Ledger, state: TradingState, key_file: Path | None) -> Text:
    """Halt, and say what became of it; a failure is shown and may be tried again."""
    try:
        key = await holder(ledger, running_settings(), key_file)
        (changed,) = await halt(ledger, key, GLOBAL, state, REASON)
    except (LedgerUnavailable, LedgerError, CommandError) as error:
        return Text(f"NOT HALTED: {error} -- press again", style="bold red")
    asked = f", {changed.cancels_asked} cancels asked for" if changed.cancels_asked else ""
    return Text(f"everything is {changed.state} (audit {changed.audit_seq}{asked})", style="bold red")


async def _look(ledger: Ledger, account: str | None, every_s: float, screen: _Screen, live: Live) -> None:
    while True:
        try:
            screen.desk, screen.accounts = await snapshots(ledger, account)
            screen.trouble = None
        except (LedgerUnavailable, LedgerError, CommandError) as error:
            screen.trouble = str(error)
        live.update(screen.drawn(), refresh=True)
        await asyncio.sleep(every_s)


class _Screen:
    """What is shown now."""

    def __init__(self) -> None:
        self.desk: Snapshot | None = None
        self.accounts: dict[str, Snapshot] = {}
        self.trouble: str | None = "asking the ledger"
        self.note: Text = Text("")

    def drawn(self) -> RenderableType:
        """The whole view."""
        table = Table(title="desk", title_justify="left", header_style="bold")
        for column in ("scope", "state", "cause", "figures"):
            table.add_column(column, overflow="fold")
        if self.desk is not None:
            table.add_row(GLOBAL, *_state(self.desk.desk_state, GLOBAL), "")
        for name, snapshot in self.accounts.items():
            found = figures(snapshot)
            told = "; ".join(f"{what} {value}" for what, value in figure_rows(found))
            table.add_row(f"account {name}", *_state(snapshot.state, "account"), told)
            for one in scopes_of(found)[1:]:
                if one.state not in {None, TradingState.ACTIVE}:
                    table.add_row(f"  {one.scope}", *_state(snapshot.state, one.scope), "")
            for scope, limit, level, share in strained_rows(scopes_of(found)):
                table.add_row(f"  {scope}", Text(level, style="yellow"), limit, share)
        now = dt.datetime.now(dt.UTC).strftime("%H:%M:%S")
        trouble = Text(self.trouble, style="bold red") if self.trouble else Text(f"as of {now} UTC", style="dim")
        return Group(table, trouble, self.note, Text(HELP, style="bold"))


def _state(states: dict[str, str], scope: str) -> tuple[Text, str]:
    state = states.get(scope, "missing")
    style = "green" if state == TradingState.ACTIVE else "bold red"
    return Text(state, style=style), states.get(f"cause|{scope}", "")


@contextlib.contextmanager
def _key_presses(pressed: asyncio.Queue[str]) -> Iterator[None]:
    """Put each key into the queue as it is pressed, without Enter; the terminal is as before afterwards."""
    import os
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def read() -> None:
        for key in os.read(terminal, 64).decode("ascii", "replace").lower() or QUIT:
            pressed.put_nowait(key)

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
