"""The report of a run: one HTML file that needs neither a network nor a server. ``python -m jobs.report --run-dir DIR``

It is made from the run folder's files alone; with ``--bars-dir`` what needs the bars (candles, curves of the next best
sets, other costs) is computed anew first. The charts are drawn in the browser by the plotly.js inside the file; a
content security policy in it forbids loading anything from anywhere. Every text that came from outside is escaped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from cluster.market_data import BarStore, MarketDataError
from cluster.run_folder import RunError, RunFolder, replace_file
from cluster.runs import market_hash, read_market
from jobs.report_charts import plain
from jobs.report_head import crash, heading, kicker
from jobs.report_luck import verdict_list
from jobs.report_page import Section, sections_of
from jobs.report_planes import HEAT_METRICS
from jobs.report_run import ReportRun, read_run
from jobs.report_series import curve_figures
from jobs.report_tables import chips
from jobs.report_words import WORDS, day, duration, label, number, set_text, tip, title_of
from strategies.model import Bars
from strategies.panel import Panel

# A curve that spans more than this is first shown on a logarithmic axis.
LOG_FROM: Final = 20.0
SIMULATED: Final = "SIMULATED"
TILES: Final = ("oos_sharpe", "is_sharpe", "total_return", "cagr", "sharpe", "max_drawdown", "win_rate", "trades")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a run again; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.report", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="a run's folder, with results.parquet in it")
    parser.add_argument("--bars-dir", type=Path, help="root of the bar store, to compute anew what needs the bars")
    options = parser.parse_args(arguments)
    folder = RunFolder(options.run_dir.resolve())
    try:
        market = _market(folder, options.bars_dir) if options.bars_dir else None
        path = write_report(folder, market)
    except (ValueError, MarketDataError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(path)
    return 0


def write_report(folder: RunFolder, market: Bars | Panel | None = None) -> Path:
    """Write report.html from the run's files and return its path; raises ``RunError`` where one is missing.

    ``market`` are the bars the run was computed on; with them best/figures.json is written first.
    """
    run = read_run(folder, market)
    replace_file(folder.report_file, page_of(run).encode())
    return folder.report_file


def page_of(run: ReportRun) -> str:
    """The template with every %NAME% filled in, in one pass: no value is taken for a placeholder."""
    sections, heat = sections_of(run)
    record = run.record
    span = duration((record.last_ts_ns - record.first_ts_ns) / 1e9)
    values = {
        "TITLE": escape(heading(run)),
        "KICKER": escape(kicker(run)),
        "LEAD": escape(f"{day(record.first_ts_ns)} to {day(record.last_ts_ns)} ({span}) · {record.bar_count:,} bars"),
        "BANNERS": _banners(run),
        "NAVIGATION": "".join(f'<a href="#{one.name}">{escape(one.short or one.title)}</a>' for one in sections),
        "BEST_TITLE": escape(_best_title(run)),
        "CHIPS": chips(run.best["params"]),
        "TILES": _tiles(run),
        "VERDICTS": verdict_list(run.honesty),
        "SECTIONS": "\n".join(one.html() for one in sections),
        "FOOTER": escape(f"Run {record.run_id} · times are UTC · a year has 365.25 days"),
        "DATA": _data(run, sections, heat),
        "PLOTLY": plotly_source(),
        "STYLE": _part("report_style.html"),
        "SCRIPT": _part("report_script.html"),
    }
    return re.sub(r"%([A-Z_]+)%", lambda found: values[found[1]], _part("report.html"))


def _best_title(run: ReportRun) -> str:
    name = title_of(run.best["strategy"])
    return f"Best by {label(run.sort_by)}: {name}" if run.table.num_rows > 1 else name


def plotly_source() -> str:
    """plotly.js as the installed plotly package carries it, found without importing the package (half a second)."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise RunError("plotly", "absent", "the plotly package, which carries plotly.js")
    path = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    return path.read_text()


def _market(folder: RunFolder, bars_dir: Path) -> Bars | Panel:
    record = folder.record()
    market = read_market(BarStore(bars_dir.resolve()), folder.spec(), record)
    found = market_hash(market)
    if found != record.data_hash:
        raise RunError("data_hash", found, f"the bars the run was computed on, {record.data_hash}")
    return market


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


def _banners(run: ReportRun) -> str:
    record, banners = run.record, ""
    if record.data_source == SIMULATED:
        text = "SIMULATED: prices are from the exchange simulator, not from a market"
        banners += f'<div class="banner simulated">{text}</div>'
    if record.look_ahead:
        text = (
            "LOOK-AHEAD: orders are filled at the close that decided them (same_close); nobody could have traded this"
        )
        banners += f'<div class="banner look-ahead">{text}</div>'
    if text := crash(run):
        banners += f'<div class="banner crash">{escape(text)}</div>'
    return banners


def _tiles(run: ReportRun) -> str:
    held = curve_figures(run.ts_ns, run.hold, run.spec.costs.initial_cash)
    beside = {name: f"held {number(name, held[name])}" for name in ("total_return", "cagr", "sharpe", "max_drawdown")}
    beside |= {
        "oos_sharpe": f"return {number('oos_return', run.best.get('oos_return'))}",
        "is_sharpe": f"return {number('is_return', run.best.get('is_return'))}",
        "trades": f"in the market {number('exposure', run.best['exposure'])}",
        "win_rate": f"profit factor {number('profit_factor', run.best['profit_factor'])}",
    }
    tiles = ""
    for name in TILES:
        if name not in run.best:
            continue
        value = run.best[name]
        tone = "" if WORDS[name].unit != "signed" or value == 0 else " up" if value > 0 else " down"
        tiles += (
            f'<div class="tile"><div class="label">{tip(name)}</div><div class="value{tone}">'
            f'{escape(number(name, value))}</div><div class="beside">{escape(beside.get(name, ""))}</div></div>'
        )
    return tiles


def _data(run: ReportRun, sections: Sequence[Section], heat: Mapping[str, Any]) -> str:
    names = [name for name in HEAT_METRICS if name in run.table.column_names]
    low, high = float(run.equity.min()), float(run.equity.max())
    data = {
        "scale": "log" if low > 0 and high > LOG_FROM * low else "linear",
        "currency": run.currency,
        "sets": [
            {"title": plain(f"{title_of(one['strategy'])}, {set_text(one['params'])}"), **one} for one in run.shown_sets
        ],
        "hold": run.hold_curve,
        "products": run.figures["products"] if run.figures else [],
        "heat": {
            **heat,
            "metrics": {name: label(name) for name in names},
            "percent": [name for name in names if WORDS[name].unit in {"percent", "signed"}],
            "less": [name for name in names if name in ("max_drawdown", "volatility", "turnover")],
            "metric": run.sort_by if run.sort_by in names else "sharpe",
        },
        "charts": {name: chart for section in sections for name, chart in section.charts.items()},
    }
    # Inside a script element only "</" and "<!--" could end it early; escaping every "<" covers both.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


if __name__ == "__main__":
    sys.exit(main())
