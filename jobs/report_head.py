"""The head of the report: what kind of run it is, and what must be looked at before anything else."""

from __future__ import annotations

from typing import Final

from jobs.report_run import ReportRun
from jobs.report_series import returns_of
from jobs.report_words import bar_length, moment, percent

# A bar that takes more than this from the equity is looked at before anything else.
CRASH: Final = 0.5


def crash(run: ReportRun) -> str:
    """A sentence about the worst bar where it took most of the equity: often a wrong price; else nothing."""
    changes = returns_of(run.equity)
    if not len(changes) or changes.min() > -CRASH:
        return ""
    at = int(changes.argmin()) + 1
    return (
        f"One bar took {percent(-float(changes[at - 1]))} of the equity: {moment(int(run.ts_ns[at]))}. "
        "Look at that bar in the data before anything else: real, or a wrong price?"
    )


def kicker(run: ReportRun) -> str:
    """What kind of run it is."""
    sets = run.record.set_count
    if run.study is not None:
        return f"Search over {sets:,} parameter sets"
    what = f"Sweep of {sets:,} parameter sets" if sets > 1 else "Backtest"
    return f"Portfolio of {len(run.products)} products · {what}" if len(run.products) > 1 else what


def heading(run: ReportRun) -> str:
    """Product and bars."""
    decided = f", decided on {bar_length(run.spec.decide_on)}" if run.spec.decide_on else ""
    return f"{run.record.product_id} · {bar_length(run.record.granularity)}{decided}"
