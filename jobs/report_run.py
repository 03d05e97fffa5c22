"""All that the report of a run is made from, read from the run folder's files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from scipy.special import ndtr, ndtri

from cluster.run_folder import RunError, RunFolder, RunRecord, sorting_metric
from jobs.honesty_page import Honesty
from jobs.report_figures import SETS_MAX, curve_of, read_figures, shown_fills, write_figures
from strategies.metrics import METRICS
from strategies.model import Bars, Float64Array, Int64Array
from strategies.panel import Panel
from strategies.segments import HONEST_COLUMNS
from strategies.spec import SweepSpec

ROWS_MAX: Final = 50
# Of a user's own strategy at most so much is printed.
TEXT_MAX: Final = 40_000


@dataclass(frozen=True)
class ReportRun:
    """``rows`` are the leading ones of ``table``, best first; ``figures`` need the bars and may be None.

    ``honesty`` and ``summary`` are None of a run of an earlier version. ``strategy_texts`` are users' own files.
    """

    folder: RunFolder
    spec: SweepSpec
    record: RunRecord
    table: pa.Table
    rows: Sequence[Mapping[str, Any]]
    sort_by: str
    sort_note: str
    ts_ns: Int64Array
    equity: Float64Array
    hold: Float64Array
    fills: pa.Table
    honesty: Honesty | None
    summary: Mapping[str, Any] | None
    figures: Mapping[str, Any] | None
    strategy_texts: Mapping[str, str]

    @property
    def best(self) -> Mapping[str, Any]:
        """The leading row."""
        return self.rows[0]

    @property
    def products(self) -> tuple[str, ...]:
        """One, or those of a portfolio."""
        return self.spec.product_ids or (self.spec.product_id,)

    @property
    def currency(self) -> str:
        """What prices and equity are counted in."""
        return self.spec.product_id.rpartition("-")[2]

    @property
    def study(self) -> Mapping[str, Any] | None:
        """What summary.json says of a search; None of a grid."""
        return (self.summary or {}).get("study")

    @cached_property
    def shown_sets(self) -> list[Mapping[str, Any]]:
        """The sets with curves and fills; without ``figures`` the best one alone, from its own files."""
        if self.figures is not None:
            return list(self.figures["sets"])
        fills = {name: self.fills[name] for name in ("ts_ns", "side", "price", "quantity", "fee")}
        shown = pa.array(shown_fills(self.fills.num_rows))
        plain = {name: column.take(shown).to_pylist() for name, column in fills.items()}
        seconds = [ts // 1_000_000_000 for ts in plain.pop("ts_ns")]
        zero = {"product": [0] * len(seconds), "why": [""] * len(seconds)}
        one = {name: self.best[name] for name in ("set_id", "strategy", "params")}
        one["curve"] = curve_of(self.ts_ns, self.equity, self.spec.costs.initial_cash)
        one["fills"] = {"total": self.fills.num_rows, "ts": seconds, **plain, **zero}
        return [one]

    @cached_property
    def hold_curve(self) -> Mapping[str, Any]:
        """Buy and hold, thinned."""
        if self.figures is not None:
            found: Mapping[str, Any] = self.figures["hold"]
            return found
        return curve_of(self.ts_ns, self.hold, self.spec.costs.initial_cash)


def read_run(folder: RunFolder, market: Bars | Panel | None = None) -> ReportRun:
    """Raises ``RunError`` naming the file that is missing or damaged, ``SpecError`` for a specification that is none.

    With ``market`` (the run's own bars) the figures that need it are computed and kept in the run folder.
    """
    table, curves, fills = (_table(path) for path in (folder.results_file, folder.equity_file, folder.fills_file))
    if not table.num_rows or not curves.num_rows:
        raise RunError("run_id", folder.run_id, "a run with results")
    spec, record = folder.spec(), folder.record()
    honesty = cast("Honesty | None", _json(folder.honesty_file))
    rows = _rows(table, honesty)
    leading = rows[:SETS_MAX]
    figures = read_figures(folder, record, leading) if market is None else None
    if market is not None:
        figures = write_figures(folder, spec, record, leading, market)
    sort_by, sort_note = sorting_metric(table, spec.sort_by)
    return ReportRun(
        folder=folder,
        spec=spec,
        record=record,
        table=table,
        rows=_with_fills(rows, figures),
        sort_by=sort_by,
        sort_note=sort_note,
        ts_ns=curves["ts_ns"].to_numpy(),
        equity=curves["equity"].to_numpy(),
        hold=curves["buy_and_hold"].to_numpy(),
        fills=fills,
        honesty=honesty,
        summary=_json(folder.summary_file),
        figures=figures,
        strategy_texts=_texts(folder),
    )


def dsr_sampling(sharpe: float, psr: float, luck: float | None) -> float:
    """A set's probability to exceed ``luck``, from its PSR against 0: both have the same standard error.

    PSR = Phi(sharpe / error) gives the error, and Phi((sharpe - luck) / error) is wanted. NaN where PSR is rounded to
    0 or 1 or the Sharpe ratio is 0: then it tells no error.
    """
    if luck is None or not (0 < psr < 1) or not math.isfinite(sharpe) or abs(sharpe) < 1e-9:
        return math.nan
    return float(ndtr(ndtri(psr) * (1 - luck / sharpe)))


def _rows(table: pa.Table, honesty: Honesty | None) -> list[dict[str, Any]]:
    names = [name for name in (*METRICS, *HONEST_COLUMNS) if name in table.column_names]
    marks = [name for name in ("history", "feasible", "pareto") if name in table.column_names]
    rows: list[dict[str, Any]] = (
        table.slice(0, ROWS_MAX).select(["set_id", "strategy", "params", *names, *marks]).to_pylist()
    )
    tests = honesty["sharpe_tests"] if honesty else None
    luck = tests["expected_max_sharpe_sampling"] if tests else None
    for row in rows:
        row["params"] = json.loads(row["params"])
        if "psr" in row:
            whole = row.get("history", 1.0) == 1.0
            row["dsr_sampling"] = dsr_sampling(row["sharpe"], row["psr"], luck) if whole else math.nan
    return rows


def _with_fills(rows: list[dict[str, Any]], figures: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    fills = {one["set_id"]: one["fills"]["total"] for one in figures["sets"]} if figures else {}
    return [row | {"fills": float(fills.get(row["set_id"], math.nan))} for row in rows]


def _texts(folder: RunFolder) -> dict[str, str]:
    if not folder.strategies_dir.is_dir():
        return {}
    found = {}
    for path in sorted(folder.strategies_dir.glob("*.py")):
        text = path.read_text(errors="replace")
        found[path.stem] = text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + "\n# … cut here by the report"
    return found


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(path.name, str(path), f"a readable Parquet file ({error})") from error


def _json(path: Path) -> Any:
    """None where the file is not there, as in runs of earlier versions; raises ``RunError`` where it is damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(path.name, str(path), f"JSON ({error})") from error
