"""What the fault tests measured, as tables: one row for each fault, over all the seeds it was run with."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

FAULT: Final = "fault"
"""The name under which a test hands over its figures (pytest's user properties)."""
NUMBERS: Final = ("1", "2", *(str(number) for number in range(7, 26) if number != 24))

_COUNTS: Final = ("acknowledged", "stored", "lost", "duplicated")
_SERVICE: Final = {
    "seconds_without_service": "no service, s",
    "errors_first_try_percent": "errors first try, %",
    "errors_after_retry_percent": "after retry, %",
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "p99_ms": "p99, ms",
}
_VENUE: Final = ("acknowledged", "at_venue", "lost", "duplicated", "undecided")
_AGAIN: Final = ("resynced_s", "agreed_worst_s")
_HIDDEN: Final = {"asked", "slowest_answer_ms", "steady", "at_venue", "undecided"}


@dataclass(frozen=True, slots=True)
class Row:
    """All runs of one fault. ``figures`` is one mapping a run."""

    number: str
    name: str
    target: str
    figures: Sequence[Mapping[str, Any]]
    failed: int = 0
    skipped: Sequence[str] = field(default=())


def page(machine: Mapping[str, str], rows: Sequence[Row]) -> str:
    """TEST_REPORT.md."""
    with_service = [row for row in rows if any("seconds_without_service" in f for f in row.figures)]
    targets = ([row.number, row.name, row.target] for row in rows)
    parts = [_HEAD, _table(["machine", ""], machine.items())]
    parts += ["## Books", _BOOKS, _table(["#", "fault", "runs", *_COUNTS, "outcome"], map(_books_cells, rows))]
    parts += ["## Service", _SERVICE_TEXT]
    parts += [_table(["#", "fault", *_SERVICE.values(), "void"], map(_service_cells, with_service))]
    at_venue = [row for row in rows if any("at_venue" in f for f in row.figures)]
    if at_venue:
        header = ["#", "fault", "runs", *(name.replace("_", " ") for name in _VENUE), "equal again, s", "outcome"]
        parts += ["## The venue", _VENUE_TEXT, _table(header, map(_venue_cells, at_venue))]
    parts += ["## What else each test measured", _MORE]
    parts += [_table(["#", "fault", "figure", "least", "median", "most"], _more_cells(rows))]
    parts += ["## Targets", _TARGETS, _table(["#", "fault", "target"], targets)]
    missing = [f"- {number}" for number in NUMBERS if number not in {row.number for row in rows}]
    skipped = [f"- {row.number}, {row.name}: {reason}" for row in rows for reason in dict.fromkeys(row.skipped)]
    if missing or skipped:
        parts += ["## Not run", "\n".join(missing + skipped)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def order_of(row: Row) -> tuple[int, str]:
    """By number, then by name."""
    return (NUMBERS.index(row.number), row.name)


_HEAD: Final = """# Test report: faults

Written by `make faults` from what it measured; not edited by hand. Each test breaks one thing while orders come in,
mends it, and then compares the file of what callers were told with what the books hold. Lost 0 and duplicated 0 are
asserted; so is that the books add up, entry by entry and hash by hash. Times are reported and never asserted.
"""
_BOOKS: Final = """Sums over all runs. Acknowledged: orders whose caller was told yes. Stored: reservations of these
callers in the ledger. Stored may be more: an order may be reserved and its answer lost, which is why a caller asks
again with the same id. Lost: acknowledged and not stored. Duplicated: reserved, queued or at the venue twice.
"""
_SERVICE_TEXT: Final = """Median / worst of the runs. No service: the longest time between two acceptances. Errors:
orders whose first try, and whose last try, ended without a decision. Latencies are of the first try, from the time the
order was due (open loop, HdrHistogram). Void: runs whose p95 was not below 140 ms before the fault, so that their
latencies say little; their counts hold.
"""
_VENUE_TEXT: Final = """Orders that execution carries to the exchange simulator over TLS; sums over all runs. At venue:
orders the exchange itself lists, once each; fewer than acknowledged, because it refuses some and others are cancelled
before they are sent. Undecided: orders whose fate nobody knew when both sides were equal again. Equal again: seconds
from the end of the fault, or from the start of the process that took over, until orders, fills, positions and cash of
exchange and ledger were the same (median / worst).
"""
_MORE: Final = "Of all runs of a test; a figure whose name ends in `_s` is in seconds, in `_ms` in milliseconds.\n"
_TARGETS: Final = "What was wanted of each, to be compared with the tables above.\n"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _books_cells(row: Row) -> list[str]:
    known = any("acknowledged" in figures for figures in row.figures)
    sums = [f"{sum(f.get(name, 0) for f in row.figures):,}" if known else "" for name in _COUNTS]
    outcome = f"{row.failed} FAILED" if row.failed else "passed" if row.figures else "skipped"
    return [row.number, row.name, str(len(row.figures) or ""), *sums, outcome]


def _venue_cells(row: Row) -> list[str]:
    sums = [f"{sum(f.get(name, 0) for f in row.figures):,}" for name in _VENUE]
    again = [f[name] for f in row.figures for name in _AGAIN if name in f]
    outcome = f"{row.failed} FAILED" if row.failed else "passed"
    return [row.number, row.name, str(len(row.figures)), *sums, _median_and_worst(again), outcome]


def _service_cells(row: Row) -> list[str]:
    cells = [_median_and_worst([f[name] for f in row.figures if name in f]) for name in _SERVICE]
    void = sum(figures.get("steady") is False for figures in row.figures)
    return [row.number, row.name, *cells, f"{void} of {len(row.figures)}" if void else ""]


def _more_cells(rows: Sequence[Row]) -> Iterable[list[str]]:
    for row in rows:
        names = dict.fromkeys(name for figures in row.figures for name in figures)
        for name in names:
            if name in _COUNTS or name in _SERVICE or name in _HIDDEN:
                continue
            values = [figures[name] for figures in row.figures if name in figures]
            if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
                numbers = (min(values), statistics.median(values), max(values))
                yield [row.number, row.name, name, *map(_number, numbers)]
            else:
                yield [row.number, row.name, name, "", ", ".join(dict.fromkeys(str(value) for value in values)), ""]


def _median_and_worst(values: Sequence[float]) -> str:
    return f"{_number(statistics.median(values))} / {_number(max(values))}" if values else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}" if abs(value) < 100 else f"{value:,.0f}"
