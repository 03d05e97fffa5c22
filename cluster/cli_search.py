"""The options of ``desk sweep`` that search instead of running a grid, and the line they end with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from cluster.console import CommandError, console

SearchOption = typer.Option(
    None,
    "--search",
    help="random, lhs (Latin hypercube), tpe, cmaes or asha (successive halving on a growing history) instead of every "
    "combination. Axes may then be LOW..HIGH or LOW..HIGH:log as well.",
)
SetsOption = typer.Option(None, "--sets", min=1, help="How many parameter sets the search tries (or --extend adds).")
ObjectiveOption = typer.Option(
    [], "--objective", help="A metric, as much as possible, or -METRIC, as little; repeatable. Without it: sharpe."
)
ConstraintOption = typer.Option(
    [], "--constraint", help="For example 'trades >= 30', 'max_drawdown <= 0.3', 'slow >= 2 * fast'; repeatable."
)
GenerationOption = typer.Option(None, "--generation", min=1, help="Sets the search asks for at once.")
EtaOption = typer.Option(None, "--eta", min=2, help="asha: one of so many sets goes on to the next rung.")
RungsOption = typer.Option(None, "--rungs", min=2, help="asha: how many lengths of history.")
PatienceOption = typer.Option(None, "--patience", min=1, help="Stop after so many generations without a better set.")
TimeBudgetOption = typer.Option(None, "--time-budget-s", help="Begin no generation after so many seconds.")
TargetOption = typer.Option(None, "--target", help="Stop once the objective is this good.")
ExtendOption = typer.Option(
    None, "--extend", metavar="RUN", help="Add --sets to the budget of a search that has succeeded, and go on with it."
)


def search_of(method: str | None, sets: int | None, **options: Any) -> dict[str, Any]:
    """``{"search": …}`` for a specification from the options given; empty without ``--search``.

    Raises ``CommandError`` where an option of a search is given without one.
    """
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if method is None:
        for name in [*given, *(["sets"] if sets is not None else [])]:
            option = f"--{name.rstrip('s') if name in {'objectives', 'constraints'} else name.replace('_', '-')}"
            raise CommandError(f"{option} is for a search: --search is needed", field="search", rule="required")
        return {}
    if sets is None:
        raise CommandError("--search needs --sets, how many to try", field="sets", rule="required")
    return {"search": {"method": method, "sets": sets, **given}}


def extend(runs_dir: Path, run_id: str, sets: int | None) -> Any:
    """Add to a study's budget; its specification, to be run again under the same id."""
    from cluster.runs import open_run
    from cluster.study_file import extend_study

    if sets is None:
        raise CommandError("--extend needs --sets, how many to add", field="sets", rule="required")
    folder = open_run(runs_dir, run_id)
    spec = folder.spec()
    extend_study(folder, sets)
    return spec


def continuous_axis(text: str) -> dict[str, Any] | None:
    """``2..200`` or ``0.01..0.5:log`` as an axis; None where the text is no such axis."""
    ends, colon, scale = text.partition(":")
    low, dots, high = ends.partition("..")
    if not dots or (colon and scale != "log"):
        return None
    try:
        return {"low": float(low), "high": float(high), "log": scale == "log"}
    except ValueError:
        return None


def print_study(summary: dict[str, Any]) -> None:
    """What a search did, in a line, and its Pareto front where it had several objectives."""
    study = summary.get("study")
    if not study:
        return
    ended = ", ".join(study["endings"])
    generations = len(study["generations"])
    line = (
        f"{study['method']}: {study['sets']} sets in {generations} generations, {study['runs']} runs; ended by {ended}"
    )
    console.print(line, highlight=False)
    if len(study["objectives"]) > 1:
        for one in study["pareto_front"]:
            values = ", ".join(f"{name} {value:.4g}" for name, value in one["values"].items())
            console.print(f"  front: set {one['set_id']} {values} {one['params']}", highlight=False)
