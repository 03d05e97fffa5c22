"""The report of a run: one HTML file that needs neither a network nor a server. ``python -m jobs.report --run-dir DIR``

It is made from the run folder's files alone. The charts are drawn in the browser by the plotly.js inside the file; a
content security policy in it forbids loading anything from anywhere. Every text that came from outside is escaped.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.run_folder import LOWER_IS_BETTER, RunError, RunFolder, RunRecord, replace_file, sorting_metric
from jobs.planes import planes_of
from strategies.metrics import METRICS, NS_PER_YEAR
from strategies.model import Float64Array, Granularity, Int64Array
from strategies.registry import CROSS_SECTIONS, STRATEGIES
from strategies.spec import SweepSpec

SERIES_POINTS_MAX: Final = 2_000
BOARD_ROWS_MAX: Final = 50
# A curve that spans more than this is first shown on a logarithmic axis.
LOG_FROM: Final = 20.0
SIMULATED: Final = "SIMULATED"

LABELS: Final = {
    "total_return": "Total return",
    "cagr": "CAGR",
    "volatility": "Volatility",
    "sharpe": "Sharpe",
    "sortino": "Sortino",
    "calmar": "Calmar",
    "max_drawdown": "Max drawdown",
    "max_drawdown_bars": "Drawdown, bars",
    "exposure": "Exposure",
    "turnover": "Turnover / year",
    "trades": "Trades",
    "win_rate": "Win rate",
    "profit_factor": "Profit factor",
    "is_sharpe": "In-sample Sharpe",
    "is_return": "In-sample return",
    "oos_sharpe": "Out-of-sample Sharpe",
    "oos_return": "Out-of-sample return",
    "psr": "PSR",
    "dsr": "Deflated Sharpe",
    "stability": "Stability",
    "worst_neighbour": "Worst neighbour",
}
PERCENT: Final = frozenset({"total_return", "cagr", "volatility", "max_drawdown", "exposure", "win_rate"})
WHOLE: Final = frozenset({"max_drawdown_bars", "trades"})
TILES: Final = ("total_return", "cagr", "sharpe", "sortino", "calmar", "max_drawdown", "win_rate", "trades")
SIGNED: Final = frozenset({"total_return", "cagr"})
MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a run again; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="a run's folder, with results.parquet in it")
    options = parser.parse_args(arguments)
    try:
        path = write_report(RunFolder(options.run_dir.resolve()))
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def write_report(folder: RunFolder) -> Path:
    """Write report.html from the run's files and return its path; raises ``RunError`` where one is missing."""
    run = _read(folder)
    replace_file(folder.report_file, _page(run).encode())
    return folder.report_file


@dataclass(frozen=True)
class _Run:
    spec: SweepSpec
    record: RunRecord
    best: Mapping[str, Any]
    table: pa.Table
    sort_by: str
    ts_ns: Int64Array
    equity: Float64Array
    hold: Float64Array


def _read(folder: RunFolder) -> _Run:
    table = _table(folder.results_file)
    curves = _table(folder.equity_file)
    if not table.num_rows or not curves.num_rows:
        raise RunError("run_id", folder.run_id, "a run with results")
    spec = folder.spec()
    return _Run(
        spec=spec,
        record=folder.record(),
        best=table.slice(0, 1).to_pylist()[0],
        table=table,
        sort_by=sorting_metric(table, spec.sort_by)[0],
        ts_ns=curves["ts_ns"].to_numpy(),
        equity=curves["equity"].to_numpy(),
        hold=curves["buy_and_hold"].to_numpy(),
    )


def _table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise RunError(path.name, str(path), f"a readable Parquet file ({error})") from error


def _page(run: _Run) -> str:
    """The template with every %NAME% filled in, in one pass: no value is taken for a placeholder."""
    record, spec = run.record, run.spec
    what = f"Sweep of {record.set_count:,} parameter sets" if record.set_count > 1 else "Backtest"
    values = {
        "TITLE": escape(f"{record.product_id} · {_bar_length(record.granularity)}"),
        "KICKER": escape(what),
        "LEAD": escape(f"{_day(record.first_ts_ns)} to {_day(record.last_ts_ns)} · {record.bar_count:,} bars"),
        "BANNERS": _banners(record),
        "BEST_TITLE": escape(f"Best by {LABELS[run.sort_by]}: {_title(run.best['strategy'])}"),
        "CHIPS": "".join(
            f'<span class="chip">{escape(name)} <b>{escape(_short(value))}</b></span>'
            for name, value in json.loads(run.best["params"]).items()
        ),
        "TILES": _tiles(run),
        "EQUITY_NOTE": escape(_equity_note(spec)),
        "MONTHS": _months_table(run),
        "BOARD": _board(run),
        "BOARD_NOTE": escape(_board_note(record, run.table.num_rows, run.sort_by)),
        "FACTS": "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in _facts(run).items()),
        "SPEC": escape(json.dumps(spec.model_dump(mode="json"), indent=2)),
        "FOOTER": escape(f"Run {record.run_id} · times are UTC · metrics are fractions of a year of 365.25 days"),
        "DATA": _data(run),
        "PLOTLY": plotly_source(),
    }
    template = Path(__file__).with_name("report.html").read_text()
    return re.sub(r"%([A-Z_]+)%", lambda found: values[found[1]], template)


def _banners(record: RunRecord) -> str:
    banners = ""
    if record.data_source == SIMULATED:
        text = "SIMULATED: prices are from the exchange simulator, not from a market"
        banners += f'<div class="banner simulated">{text}</div>'
    if record.look_ahead:
        text = (
            "LOOK-AHEAD: orders are filled at the close that decided them (same_close); nobody could have traded this"
        )
        banners += f'<div class="banner look-ahead">{text}</div>'
    return banners


def _tiles(run: _Run) -> str:
    held = float(run.hold[-1] / run.spec.costs.initial_cash - 1)
    beside = {
        "total_return": f"buy and hold {_number('total_return', held)}",
        "cagr": f"over {(int(run.ts_ns[-1]) - int(run.ts_ns[0])) / NS_PER_YEAR:.1f} years",
        "max_drawdown": f"buy and hold {_number('max_drawdown', float(_drawdown(run.hold).max()))}",
        "trades": f"{_number('exposure', run.best['exposure'])} of the time",
    }
    tiles = ""
    for name in TILES:
        value = run.best[name]
        colour = "" if name not in SIGNED or math.isnan(value) else (" up" if value >= 0 else " down")
        tiles += (
            f'<div class="tile"><div class="label">{escape(LABELS[name])}</div>'
            f'<div class="value{colour}">{escape(_number(name, value))}</div>'
            f'<div class="beside">{escape(beside.get(name, ""))}</div></div>'
        )
    return tiles


def monthly_returns(ts_ns: Int64Array, equity: Float64Array, initial_cash: float) -> list[tuple[int, list[float]]]:
    """(year, twelve returns as fractions and the year's) for each year, oldest first; NaN for months without a bar.

    A month's return is its last equity over the last equity before it (at first, the initial cash) less 1.
    """
    months = ts_ns.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)  # months since January 1970
    last = np.append(np.flatnonzero(np.diff(months)), len(months) - 1)
    closing = equity[last]
    opening = np.concatenate([[initial_cash], closing[:-1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        returns = np.where(opening > 0, closing / opening - 1, np.nan)
    years: dict[int, list[float]] = {}
    growth: dict[int, float] = {}
    for month, change in zip(months[last].tolist(), returns.tolist(), strict=True):
        year = 1970 + month // 12
        years.setdefault(year, [math.nan] * 12)[month % 12] = change
        growth[year] = growth.get(year, 1.0) * (1 + change)
    return [(year, [*changes, growth[year] - 1]) for year, changes in years.items()]


def _months_table(run: _Run) -> str:
    years = monthly_returns(run.ts_ns, run.equity, run.spec.costs.initial_cash)
    known = np.abs([change for _, row in years for change in row[:12] if math.isfinite(change)])
    # The colour is full at the 90th percentile: one wild month would make all others pale.
    full = max(float(np.quantile(known, 0.9)), 1e-9) if known.size else 1.0
    head = "".join(f"<th>{name}</th>" for name in (*MONTHS, "Year"))
    rows = "".join(
        f'<tr><th class="text">{year}</th>{"".join(_month_cell(change, full) for change in row)}</tr>'
        for year, row in years
    )
    return f'<table class="months"><thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _month_cell(change: float, full: float) -> str:
    if not math.isfinite(change):
        return "<td></td>"
    strength = min(1.0, abs(change) / full) * 0.62
    colour = "18,121,90" if change >= 0 else "184,58,51"
    text = _minus(f"{change * 100:+.1f}")
    return f'<td style="background:rgba({colour},{strength:.2f})">{text}</td>'


def _board(run: _Run) -> str:
    rows = run.table.slice(0, BOARD_ROWS_MAX).to_pylist()
    heads = ['<th class="text">#</th>', '<th class="text">Strategy</th>', '<th class="text">Parameters</th>']
    for name in METRICS:
        sort = ""
        if name == run.sort_by:
            sort = f' aria-sort="{"ascending" if name in LOWER_IS_BETTER else "descending"}"'
        heads.append(f"<th{sort}>{escape(LABELS[name])}</th>")
    body = "".join(_board_row(place, row) for place, row in enumerate(rows, 1))
    return f'<table class="sortable"><thead><tr>{"".join(heads)}</tr></thead><tbody>{body}</tbody></table>'


def _board_row(place: int, row: Mapping[str, Any]) -> str:
    params = ", ".join(f"{name} {_short(value)}" for name, value in json.loads(row["params"]).items())
    cells = [
        f'<td class="text" data-value="{place}">{place}</td>',
        f'<td class="text">{escape(_title(row["strategy"]))}</td>',
        f'<td class="text">{escape(params)}</td>',
    ]
    for name in METRICS:
        value = row[name]
        exact = "" if math.isnan(value) else repr(value)
        cells.append(f'<td data-value="{exact}">{escape(_number(name, value))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _board_note(record: RunRecord, rows: int, sort_by: str) -> str:
    if rows == 1:
        return "one parameter set"
    note = f"the first {min(rows, BOARD_ROWS_MAX)} of {rows:,} by {LABELS[sort_by]}; a click on a head sorts"
    if record.dropped_count:
        note += f"; {record.dropped_count:,} combinations break a rule between parameters and were not run"
    return note


def _facts(run: _Run) -> dict[str, str]:
    record, costs = run.record, run.spec.costs
    fill = "at the next bar's open" if not record.look_ahead else "at the same bar's close (look-ahead)"
    return {
        "Source of the bars": record.data_source,
        "Bars": f"{record.product_id} {record.granularity}, {record.bar_count:,} from {_moment(record.first_ts_ns)} "
        f"to {_moment(record.last_ts_ns)}",
        "Data hash": f"sha256 {record.data_hash}",
        "Costs": f"fee {costs.fee_bps:g} bp and slippage {costs.slippage_bps:g} bp on each fill, {fill}",
        "Initial cash": f"{costs.initial_cash:,.2f}",
        "Seed": str(record.seed),
        "Specification": f"sha256 {record.spec_hash}",
        "Code": f"git {record.git_revision}{', with local changes' if record.git_dirty else ''}",
        "Code of the strategies": f"sha256 {record.code_hash}",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Laid out": _moment(record.created_ns),
    }


def _equity_note(spec: SweepSpec) -> str:
    return (
        f"Equity at each bar's close, from {spec.costs.initial_cash:,.0f}, after fees and slippage. Buy and hold puts "
        "all cash into the product at the first bar's open and pays both once. A position open at the end stays open."
    )


def _data(run: _Run) -> str:
    at = sample(run.equity, SERIES_POINTS_MAX)
    metrics = [name for name in LABELS if name in METRICS]
    data = {
        "scale": "log" if run.equity.min() > 0 and run.equity.max() > LOG_FROM * run.equity.min() else "linear",
        "currency": run.record.product_id.rpartition("-")[2],
        "series": {
            "ts": [_iso(ts) for ts in run.ts_ns[at].tolist()],
            "equity": _rounded(run.equity[at]),
            "hold": _rounded(run.hold[at]),
            "drawdown": _rounded(-_drawdown(run.equity)[at]),
            "hold_drawdown": _rounded(-_drawdown(run.hold)[at]),
        },
        "planes": planes_of(run.table, {name: _title(name) for name in (*STRATEGIES, *CROSS_SECTIONS)}, run.sort_by),
        "metrics": {name: LABELS[name] for name in metrics},
        "percent": sorted(PERCENT),
        "sort_by": run.sort_by,
    }
    # Inside a script element only "</" and "<!--" could end it early; escaping every "<" covers both.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def sample(values: Float64Array, points_max: int) -> Int64Array:
    """Positions of at most ``points_max`` values, rising, first and last included: the lowest and the highest of each
    of equal stretches, so that peaks and drawdowns stay."""
    if len(values) <= points_max:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), (points_max - 2) // 2 + 1).astype(np.int64)
    chosen = {0, len(values) - 1}
    for start, stop in itertools.pairwise(edges.tolist()):
        chosen.add(start + int(values[start:stop].argmin()))
        chosen.add(start + int(values[start:stop].argmax()))
    return np.array(sorted(chosen), dtype=np.int64)


def _drawdown(equity: Float64Array) -> Float64Array:
    """float64[n]: how far below its highest value so far the equity is, as a fraction of that value."""
    peak = np.maximum.accumulate(equity)
    return np.asarray(1.0 - equity / peak)


def plotly_source() -> str:
    """plotly.js as the installed plotly package carries it, found without importing the package (half a second)."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise RunError("plotly", "absent", "the plotly package, which carries plotly.js")
    path = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return path.read_text()


def _number(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if name in PERCENT:
        digits = 1 if abs(value) < 10 else 0
        text = f"{value * 100:{'+' if name in SIGNED else ''},.{digits}f}\u00a0%"
    else:
        text = f"{value:,.0f}" if name in WHOLE else f"{value:,.2f}"
    return _minus(text)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _rounded(values: Float64Array) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


def _short(value: float) -> str:
    return f"{value:g}"


def _title(strategy: str) -> str:
    known = STRATEGIES.get(strategy) or CROSS_SECTIONS.get(strategy)
    return known.title if known else strategy


def _bar_length(granularity: str) -> str:
    seconds = Granularity(granularity).seconds
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % unit == 0:
            return f"{seconds // unit}-{name} bars"
    return f"{seconds}-second bars"


def _time(ts_ns: int) -> datetime:
    return datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC)


def _day(ts_ns: int) -> str:
    return f"{_time(ts_ns):%d %B %Y}".lstrip("0")


def _moment(ts_ns: int) -> str:
    return f"{_time(ts_ns):%Y-%m-%d %H:%M:%S} UTC"


def _iso(ts_ns: int) -> str:
    # Plotly takes a text without an offset as it stands, whatever the reader's time zone.
    return f"{_time(ts_ns):%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    sys.exit(main())
