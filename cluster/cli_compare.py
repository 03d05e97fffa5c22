"""``desk compare``: runs side by side, whether that is fair, and what one may conclude of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cluster.cli_leaderboard import SET_WIDTH, fitting, metric, number, parameters
from cluster.console import CommandError, JsonOption, command, console, print_json, print_table
from conf.settings import load_settings

if TYPE_CHECKING:
    from cluster.run_compare import Comparison, Pair, Side

SHOWN: Final = (
    "is_sharpe", "oos_sharpe", "is_return", "oos_return", "dsr", "sharpe", "total_return", "max_drawdown", "trades",
)  # fmt: skip
# Figures of the honesty page, and how many digits of each are shown.
HONESTY: Final = {
    "trials": "sets tried",
    "pbo": "PBO, probability of overfitting",
    "dsr": "DSR, deflated Sharpe of the best",
    "dsr_sampling": "DSR, by sampling error alone",
    "psr": "PSR, Sharpe above 0",
    "best_is_sharpe": "best in-sample Sharpe",
    "best_is_oos_sharpe": "… of that set, held out",
    "rank_correlation": "IS/OOS rank correlation",
    "walk_forward_sharpe": "walk-forward Sharpe",
    "stability": "stability among neighbours",
    "track_record_years": "years of data",
    "min_track_record_years": "… needed for a Sharpe above 0",
}
FACTS: Final = (
    "kind", "product_id", "granularity", "data_source", "bar_count", "sets", "dropped_sets", "search_method",
    "search_runs", "search_generations", "search_endings", "evaluations", "evaluations_per_s", "wall_s", "git_revision",
)  # fmt: skip


@command
def compare(
    run_ids: list[str] = typer.Argument(..., metavar="RUN RUN…", help="Finished runs; the first is compared with."),
    sort_by: str | None = typer.Option(
        None, "--sort-by", help="What the best sets are the best by; else what the runs were sorted by, or oos_sharpe."
    ),
    top: int = typer.Option(3, "--top", min=1, max=100, help="Places of the leaderboards to show side by side."),
    html: Path | None = typer.Option(None, "--html", help="Also write it as a page with both curves to this file."),
    as_json: bool = JsonOption,
) -> None:
    """Whether two or more runs can be compared, what was asked differently, and how their results differ.

    Nothing is computed anew. Example: desk compare 20260101-120000-0a1b2c3d 20260102-120000-4e5f6a7b --html both.html
    """
    from cluster.run_compare import compare as compared
    from cluster.run_compare import read_runs

    runs_dir = load_settings().runs_path
    found = compared(read_runs(runs_dir, run_ids), sort_by, top)
    if html is not None:
        _write_page(runs_dir, run_ids, html, sort_by, top)
    if as_json:
        print_json(found)
        return
    _print_answer(found)
    _print_differences(found)
    _print_best(found.runs, top)
    _print_honesty(found.runs)
    for pair in found.pairs:
        _print_sets(pair)
    _print_facts(found.runs)
    if html is not None:
        console.print("page: ", end="")
        sys.stdout.write(f"{html}\n")


def _write_page(runs_dir: Path, run_ids: Sequence[str], html: Path, sort_by: str | None, top: int) -> None:
    """Started by name: what draws pages is on the floor above."""
    words = [sys.executable, "-m", "jobs.compare", "--out", str(html), "--top", str(top)]
    words += ["--sort-by", sort_by] if sort_by else []
    words += [part for run_id in run_ids for part in ("--run-dir", str(runs_dir / run_id))]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CommandError(f"the page could not be made: {done.stderr.strip() or done.stdout.strip()}", field="html")


def _print_answer(found: Comparison) -> None:
    for sentence in found.answer:
        console.print(sentence, highlight=False, markup=False)
    rows = [[check.about, check.level, *check.values, check.sentence] for check in found.checks]
    told = [row for row in rows if row[1] != "good"]
    if told:
        print_table("what is not the same", ["", "", *_ids(found.runs), ""], told)


def _print_differences(found: Comparison) -> None:
    names = _ids(found.runs)
    rows = [
        [one.field, *(_short(one.values[name]) if name in one.values else "(no such field)" for name in names)]
        for one in found.differences
    ]
    if rows:
        print_table("specifications", ["field", *names], rows)
    else:
        console.print("The specifications are the same.")


def _print_best(runs: Sequence[Side], top: int) -> None:
    beside = SET_WIDTH + 3 + max(len(run.run_id) for run in runs)
    columns = fitting([name for name in SHOWN if any(name in run.rows[0] for run in runs)], beside)
    rows: list[list[Any]] = []
    for place in range(min(top, max(len(run.rows) for run in runs))):
        for run in runs:
            if place < len(run.rows):
                row = run.rows[place]
                cells = [metric(name, row.get(name)) for name in columns]
                rows.append([place + 1, run.run_id, row["strategy"], parameters(row["params"]), *cells])
    sorted_by = ", ".join(dict.fromkeys(run.sorted_by for run in runs))
    heads = ["#>", "run", "strategy", "parameters", *(f"{name}>" for name in columns)]
    print_table(f"best sets by {sorted_by}", heads, rows)
    for note in dict.fromkeys(run.sort_note for run in runs if run.sort_note):
        console.print(note, highlight=False, markup=False)


def _print_honesty(runs: Sequence[Side]) -> None:
    rows: list[list[Any]] = [
        [label, *(_figure(name, run.honesty.get(name)) for run in runs)] for name, label in HONESTY.items()
    ]
    abouts = dict.fromkeys(one["about"] for run in runs for one in run.honesty["verdicts"])
    levels = [{one["about"]: one["level"] for one in run.honesty["verdicts"]} for run in runs]
    rows += [[f"verdict: {about.replace('_', ' ')}", *(one.get(about, "") for one in levels)] for about in abouts]
    print_table("how far each is to be believed", ["", *(f"{name}>" for name in _ids(runs))], rows)
    for run in runs:
        if run.honesty["why_not"]:
            console.print(f"{run.run_id}: {run.honesty['why_not']}", highlight=False, markup=False)


def _print_sets(pair: Pair) -> None:
    common = pair.common
    if not common.sets:
        return
    rows = []
    differing = [one for one in common.metrics if one.equal < common.sets]
    for one in differing:
        far = one.largest
        where = f"{far.strategy} {parameters(far.params)}" if far else ""
        values = [_exact(far.base), _exact(far.other), _exact(far.difference)] if far else ["", "", ""]
        equal = f"{one.equal:,}"
        rows.append([one.metric, equal, *values, where, number(one.rank_correlation), _share(one.other_better)])
    heads = ["figure", "equal>", f"{pair.base}>", f"{pair.other}>", "largest difference>", "of", "ranks>", "better>"]
    if not rows:
        return
    caption = f"better: share of the sets with a better figure in {pair.other}"
    if len(rows) < len(common.metrics):
        caption += f"; the other {len(common.metrics) - len(rows)} figures are equal in all of them"
    if common.partly:
        caption += f"; {common.partly} more sets were run on a part of the bars in one of them"
    print_table(f"{common.sets:,} parameter sets in common", heads, rows, caption)


def _print_facts(runs: Sequence[Side]) -> None:
    rows = [[name.replace("_", " "), *(_short(run.facts[name]) for run in runs)] for name in FACTS]
    print_table("runs", ["", *_ids(runs)], [row for row in rows if any(row[1:])])


def _ids(runs: Iterable[Side]) -> list[str]:
    return [run.run_id for run in runs]


def _figure(name: str, value: float | None) -> str:
    return f"{value:,}" if name == "trials" and value is not None else number(value)


def _short(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ":".join(_short(one) for one in value.values())
    if isinstance(value, list):
        text = ", ".join(_short(one) for one in value)
        return text if len(value) <= 12 else f"{', '.join(_short(one) for one in value[:10])}, … ({len(value)})"
    if isinstance(value, float):
        return f"{value:,.10g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _exact(value: float) -> str:
    return f"{value:.6g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
