"""What a run has found: its leaderboard, while it runs too, and its report."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from cluster.runs import Progress, RunError, RunFolder, RunState
from conf.settings import SIMULATED
from serve_apps.api_access import GuardedRoute, Reader, TheDesk
from serve_apps.api_problems import invalid_request, problems
from serve_apps.api_runs import RunPath, damaged, find_run, settled
from serve_apps.api_shapes import Shape
from serve_apps.problem import Problem
from strategies.metrics import METRICS
from strategies.segments import HONEST_COLUMNS

router = APIRouter(prefix="/v1/backtests", tags=["backtests"], route_class=GuardedRoute)

# The report brings its own scripts and styles and may reach nothing else; `sandbox` keeps them
# out of the desk's origin.
REPORT_POLICY: Final = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'; sandbox allow-scripts allow-downloads"
)
ROWS_MAX: Final = 1_000


class Row(Shape):
    """One parameter set of a leaderboard."""

    set_id: int = Field(ge=0, description="its place in the specification's order")
    strategy: str = Field(examples=["sma_cross"])
    params: dict[str, float] = Field(examples=[{"fast": 10, "slow": 30}])
    metrics: dict[str, float | None] = Field(
        description=f"{', '.join(METRICS)}, and of an ended run {', '.join(HONEST_COLUMNS)}; of a search history, the "
        "part of the bars the set was run on (below 1 it ranks last); fractions, not per cent; null where a figure is "
        "not a number",
        examples=[{"sharpe": 1.2, "total_return": 0.34}],
    )


class SummaryView(Shape):
    """Of an ended run: its size and its speed."""

    set_count: int
    bar_count: int
    dropped_count: int
    evaluations: int = Field(description="bars times parameter sets")
    evaluations_per_s: float | None = Field(description="of the last driver's share")
    wall_s: float
    best: Row
    best_by_strategy: list[Row]


class RunResult(Shape):
    """The leaderboard of a run, best first; while it runs, of the blocks finished so far."""

    run_id: str
    data_source: str = Field(examples=[SIMULATED])
    look_ahead: bool
    state: RunState
    complete: bool = Field(description="every parameter set is in the table")
    sort_by: str = Field(examples=["oos_sharpe"])
    sort_note: str = Field(description="why it is not what was asked for, or nothing")
    rows: list[Row]
    summary: SummaryView | None = Field(description="null until the run has succeeded")


@router.get("/{run_id}/result", responses=problems(404))
async def show_result(
    desk: TheDesk,
    _: Reader,
    run_id: RunPath,
    limit: Annotated[int, Query(ge=1, le=ROWS_MAX, description="at most so many rows")] = 50,
    sort_by: Annotated[str | None, Query(description="a figure of the rows; without it the specification's")] = None,
) -> RunResult:
    """The leaderboard: of the whole run, or of what is finished so far."""
    columns = (*METRICS, *HONEST_COLUMNS)
    if sort_by is not None and sort_by not in columns:
        raise invalid_request("sort_by", sort_by, f"one of {', '.join(columns)}")
    folder = find_run(desk, run_id)
    progress, _status = await settled(desk, folder)
    return await asyncio.to_thread(_result, folder, progress, limit, sort_by)


@router.get(
    "/{run_id}/report",
    response_class=HTMLResponse,
    responses={
        **problems(404, _404="no such run, or no report of it yet"),
        200: {"description": "One self-contained page", "content": {"text/html": {"schema": {"type": "string"}}}},
    },
)
async def show_report(desk: TheDesk, _: Reader, run_id: RunPath) -> Response:
    """The run's report."""
    folder = find_run(desk, run_id)
    try:
        page = await asyncio.to_thread(folder.report_file.read_bytes)
    except FileNotFoundError:
        progress, _status = await settled(desk, folder)
        detail = f"run {run_id} is {progress.state} and has no report; it is written when the run has succeeded"
        raise Problem(404, "NO_REPORT", detail, {"run_id": run_id}) from None
    return HTMLResponse(page, headers={"content-security-policy": REPORT_POLICY})


def _result(folder: RunFolder, progress: Progress, limit: int, sort_by: str | None) -> RunResult:
    try:
        record = folder.record()
        rows, metric, note = folder.ranked_rows(limit, sort_by)
        succeeded = progress.state is RunState.SUCCEEDED
        summary = _summary(folder.summary()) if succeeded else None
    except RunError as error:
        raise damaged(folder, error) from None
    return RunResult(
        run_id=folder.run_id,
        data_source=record.data_source,
        look_ahead=record.look_ahead,
        state=progress.state,
        complete=succeeded,
        sort_by=metric,
        sort_note=note,
        rows=[_row(row) for row in rows],
        summary=summary,
    )


def _row(row: dict[str, Any]) -> Row:
    metrics = {name: row[name] for name in (*METRICS, *HONEST_COLUMNS, "history") if name in row}
    return Row(set_id=row["set_id"], strategy=row["strategy"], params=row["params"], metrics=metrics)


def _summary(summary: dict[str, Any]) -> SummaryView:
    plain = ("set_count", "bar_count", "dropped_count", "evaluations", "evaluations_per_s", "wall_s")
    return SummaryView(
        **{name: summary[name] for name in plain},
        best=_row(summary["best"]),
        best_by_strategy=[_row(row) for row in summary["best_by_strategy"]],
    )
