"""What every ``desk`` command shares: how errors, tables and JSON are printed."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, ParamSpec, TypeVar

import typer
from pydantic import BaseModel, SecretStr
from rich.console import Console
from rich.table import Table

from cluster.ledger import LedgerError, LedgerUnavailable
from cluster.processes import DeskError
from conf.settings import SettingsError

P = ParamSpec("P")
R = TypeVar("R")

BAD_INPUT: Final = 2
FAILED: Final = 1

# Without a terminal nobody said how wide a line may be: wide enough for a leaderboard then.
_PIPED_WIDTH: Final = 160
console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH)
errors = Console(stderr=True, width=None if sys.stderr.isatty() else _PIPED_WIDTH)

JsonOption = typer.Option(False, "--json", help="Print one JSON document instead of a table.")


class CommandError(RuntimeError):
    """A command cannot do what was asked; the text says why and what to do."""

    def __init__(self, message: str, **details: Any) -> None:
        """Keep ``details`` (field, value, rule, code …) for --json."""
        super().__init__(message)
        self.details = details


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Turn the errors of the desk into one line on stderr (a JSON document with --json) and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except _known_errors() as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
            raise typer.Exit(_exit_code(error)) from None

    return wrapped


def fail(error: Exception, as_json: bool) -> None:
    """Print an error with what is machine-readable about it."""
    details = dict(getattr(error, "details", {}))
    for name in ("field", "value", "rule", "file", "row", "line", "code"):
        if (value := getattr(error, name, None)) is not None:
            details.setdefault(name, _readable(value))
    if as_json:
        print_json({"error": {"type": type(error).__name__, "message": str(error), **details}})
    else:
        errors.print(f"[bold red]error[/]: {_escape(str(error))}")


def _readable(value: Any) -> Any:
    """The value as JSON can say it: what was refused may be, or hold, what is not a number."""
    try:
        json.dumps(value, default=_plain, allow_nan=False)
    except (ValueError, RecursionError):
        return repr(value)[:200]
    return value


def print_json(value: Any) -> None:
    """One JSON document on stdout, without colour or wrapping."""
    sys.stdout.write(json.dumps(value, indent=1, default=_plain, allow_nan=False) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> None:
    """A table; columns named with a trailing ``>`` are aligned to the right."""
    table = Table(title=title or None, caption=caption or None, title_justify="left", header_style="bold")
    for name in columns:
        table.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left", overflow="fold")
    if table.columns:
        table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*("" if cell is None else _escape(str(cell)) for cell in row))
    console.print(table)


def _exit_code(error: Exception) -> int:
    unavailable = (LedgerUnavailable, LedgerError, DeskError, OSError)
    return FAILED if isinstance(error, unavailable) else BAD_INPUT


def _known_errors() -> tuple[type[Exception], ...]:
    import httpx

    from cluster.api_keys import ApiKeyError
    from cluster.bar_checks import MarketDataError
    from cluster.ray_jobs import JobFieldError, RayJobsError
    from cluster.runs import RunError
    from strategies.base import SpecError

    return (
        ApiKeyError,
        CommandError,
        DeskError,
        SettingsError,
        LedgerUnavailable,
        LedgerError,
        MarketDataError,
        RayJobsError,
        JobFieldError,
        RunError,
        SpecError,
        httpx.HTTPError,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, SecretStr):
        return "**********"
    return str(value)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
