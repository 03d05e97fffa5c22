"""A run as the terminal shows it: its leaderboard in-sample and out-of-sample, its costs, and what of it is luck."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from cluster.cli_search import print_study
from cluster.cli_spec import costs_line
from cluster.console import console, print_table

if TYPE_CHECKING:
    from cluster.run_folder import RunFolder

LOOK_AHEAD_MARK: Final = "LOOK-AHEAD (fills at the close that decided them)"
# The columns of a printed leaderboard; what was found on the bars it was chosen by stands beside what the same set did
# on bars that were held out.
HONEST: Final = ("is_sharpe", "oos_sharpe", "is_return", "oos_return", "dsr")
SHOWN: Final = ("sharpe", "total_return", "max_drawdown", "trades")
SHOWN_WITHOUT: Final = ("sharpe", "total_return", "cagr", "max_drawdown", "trades", "win_rate")
PERCENT: Final = frozenset(
    {"total_return", "cagr", "volatility", "max_drawdown", "exposure", "win_rate", "is_return", "oos_return", "history"}
)
# What a narrow terminal has no room for, the first first; and the room that place, strategy and parameters take.
LEFT_OUT: Final = ("is_return", "total_return", "sharpe", "cagr", "dsr", "win_rate", "max_drawdown")
SET_WIDTH: Final = 55
# The verdicts a terminal has room for; the report has them all.
TOLD: Final = ("look_ahead", "plan", "sharpe_tests", "track_record", "held_out", "picked", "overfitting", "stability")
_COLOURS: Final = {"good": "green", "doubtful": "yellow", "bad": "red"}


def print_leaderboard(folder: RunFolder, top: int) -> None:
    """The best rows so far, what they were computed with, and below them how far they are to be believed."""
    from cluster.run_honesty import honesty_of

    record = folder.record()
    rows, _, note = folder.ranked_rows(top)
    honest = [name for name in HONEST if rows and name in rows[0]]
    partly = any(row.get("history", 1.0) < 1.0 for row in rows)
    shown = [*honest, *(SHOWN if honest else SHOWN_WITHOUT), *(["history"] if partly else [])]
    shown = fitting(shown)
    cells = [
        [place, row["strategy"], parameters(row["params"]), *(metric(name, row[name]) for name in shown)]
        for place, row in enumerate(rows, 1)
    ]
    marks = [mark for mark in (record.data_source, LOOK_AHEAD_MARK if record.look_ahead else "") if mark]
    title = f"{record.product_id} {record.granularity}, {record.bar_count} bars, {', '.join(marks)}"
    print_table(title, ["#>", "strategy", "parameters", *(f"{name}>" for name in shown)], cells)
    for line in (note, "history: run on that part of the bars only, ranked below those run on all" if partly else ""):
        if line:
            console.print(line, highlight=False, markup=False)
    console.print(costs_line(folder.spec_content()), highlight=False, markup=False)
    print_honesty(honesty_of(folder))
    if folder.summary_file.exists():
        summary = folder.summary()
        console.print(f"{record.set_count} parameter sets in {summary.get('wall_s', 0):.1f} s", highlight=False)
        print_study(summary)
    if folder.report_file.exists():
        console.print("report: ", end="")
        sys.stdout.write(f"{folder.report_file}\n")


def print_honesty(found: dict[str, Any]) -> None:
    """A line of figures and the sentences made of them, or why there is none."""
    if found["why_not"]:
        console.print(f"honesty: none yet: {found['why_not']}", highlight=False, markup=False)
        return
    console.print(honesty_line(found), highlight=False, markup=False)
    for verdict in found["verdicts"]:
        few_trades = verdict["about"] == "trade_order" and verdict["level"] != "good"
        if verdict["about"] in TOLD or few_trades:
            colour = _COLOURS.get(verdict["level"], "default")
            console.print(f"  [{colour}]{verdict['level']:<8}[/]", end=" ")
            console.print(verdict["sentence"], highlight=False, markup=False)


def honesty_line(found: dict[str, Any]) -> str:
    """The page in a line: the probability of overfitting, the deflated Sharpe ratio, stability, held-out bars."""
    pbo = "PBO n/a" if found["pbo"] is None else f"PBO {found['pbo']:.0%} of {found['pbo_splits']} splits"
    dsr = f"DSR {number(found['dsr'])} of {found['trials'] or 0} trials"
    stability = "stability n/a"
    if found["stability"] is not None:
        stability = f"stability {found['stability']:.2f} over {found['neighbours']} neighbours"
    ranks = f"IS/OOS rank correlation {number(found['rank_correlation'])}"
    return f"honesty: {pbo}, {dsr}, {stability}, {ranks}, walk-forward Sharpe {number(found['walk_forward_sharpe'])}"


def fitting(names: list[str], beside: int = SET_WIDTH) -> list[str]:
    """As many of the columns as the terminal has room for beside so many characters, less telling ones left out."""
    kept = list(names)
    for name in LEFT_OUT:
        if beside + sum(len(one) + 3 for one in kept) <= console.width:
            break
        kept = [one for one in kept if one != name]
    return kept


def parameters(params: dict[str, float]) -> str:
    """A set in a line."""
    return " ".join(f"{name}={value:g}" for name, value in params.items())


def metric(name: str, value: float | None) -> str:
    """A figure as a table shows it."""
    if value is None:
        return "n/a"
    if name in PERCENT:
        return f"{value:.1%}"
    return f"{value:.0f}" if name in {"trades", "max_drawdown_bars"} else f"{value:.2f}"


def number(value: float | None) -> str:
    """Two digits, or that there is none."""
    return "n/a" if value is None else f"{value:.2f}"
