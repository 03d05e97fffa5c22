"""Runs side by side as one HTML file: ``python -m jobs.compare --out FILE --run-dir A --run-dir B``

What it says is what cluster/run_compare.py finds; drawn are both leaders' curves and the sets that runs have in common.
Every text that came from outside is escaped, and a content security policy in the page forbids loading anything.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np

from cluster.run_compare import ComparedRun, Comparison, Pair, compare, read_run
from cluster.run_folder import RunFolder, replace_file
from cluster.run_pairs import scatter
from jobs.report import plotly_source
from jobs.report_series import sample
from strategies.model import Float64Array, Int64Array

COLOURS: Final = (
    "#2450c8", "#d9730d", "#0f7b6c", "#a1349c", "#c2410c", "#5b6577",
    "#7a6fb0", "#a16207", "#0e7490", "#be185d", "#4d7c0f", "#334155",
)  # fmt: skip
POINTS_MAX: Final = 2_000
SCATTER_MAX: Final = 2_000
# A curve that spans more than this is first shown on a logarithmic axis.
LOG_FROM: Final = 20.0
PERCENT: Final = frozenset(
    {"total_return", "cagr", "volatility", "max_drawdown", "exposure", "win_rate", "is_return", "oos_return"}
)
BEST: Final = (
    "is_sharpe", "oos_sharpe", "is_return", "oos_return", "dsr", "psr", "stability", "sharpe", "total_return",
    "max_drawdown", "trades",
)  # fmt: skip
HONESTY: Final = (
    "trials", "pbo", "dsr", "dsr_sampling", "psr", "best_is_sharpe", "best_is_oos_sharpe", "rank_correlation",
    "walk_forward_sharpe", "stability", "track_record_years", "min_track_record_years",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m jobs.compare", description=__doc__)
    parser.add_argument("--run-dir", type=Path, action="append", required=True, help="a run's folder; repeatable")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--sort-by", help="what the best sets are the best by")
    parser.add_argument("--top", type=int, default=3, help="places of the leaderboards")
    options = parser.parse_args(arguments)
    try:
        runs = [read_run(RunFolder(path.resolve())) for path in options.run_dir]
        write_page(options.out, runs, compare(runs, options.sort_by, options.top))
    except (ValueError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


def write_page(path: Path, runs: Sequence[ComparedRun], found: Comparison) -> None:
    """Write the page of a comparison; raises ``OSError`` where the file cannot be written."""
    replace_file(path, _page(runs, found).encode())


def _page(runs: Sequence[ComparedRun], found: Comparison) -> str:
    """The template with every %NAME% filled in, in one pass: no value is taken for a placeholder."""
    names = [run.run_id for run in runs]
    notes = dict.fromkeys(f"{side.run_id}: {side.sort_note}." for side in found.runs if side.sort_note)
    values = {
        "TITLE": escape(" and ".join(names) if len(names) == 2 else ", ".join(names)),
        "KICKER": escape(f"Comparison of {len(names)} runs"),
        "BANNERS": "".join(f'<div class="banner">{escape(text)}</div>' for text in _banners(runs)),
        "ANSWER": "".join(f"<li>{escape(text)}</li>" for text in found.answer),
        "EQUITY_NOTE": escape(_equity_note(runs)),
        "CHECKS": _checks(found, names),
        "DIFFERENCES": _differences(found, names),
        "SORTED_BY": escape(", ".join(dict.fromkeys(side.sorted_by for side in found.runs))),
        "BEST": _best(found),
        "BEST_NOTE": escape(" ".join(notes)),
        "PLOTS": "".join(_plot(place, pair) for place, pair in enumerate(_with_sets(found))),
        "COMMON": "".join(_common(pair) for pair in found.pairs),
        "HONESTY": _honesty(found),
        "FACTS": _facts(found),
        "FOOTER": "Times are UTC; Sharpe ratios are yearly; nothing was computed anew for this page.",
        "DATA": _data(runs, found),
        "PLOTLY": plotly_source(),
    }
    template = Path(__file__).with_name("compare.html").read_text()
    return re.sub(r"%([A-Z_]+)%", lambda match: values[match[1]], template)


def _banners(runs: Sequence[ComparedRun]) -> list[str]:
    simulated = [run.run_id for run in runs if run.record.data_source == "SIMULATED"]
    ahead = [run.run_id for run in runs if run.record.look_ahead]
    texts = []
    if simulated:
        texts.append(f"SIMULATED prices, from no market: {', '.join(simulated)}")
    if ahead:
        texts.append(f"LOOK-AHEAD, filled at the close that decided: {', '.join(ahead)}")
    return texts


def _equity_note(runs: Sequence[ComparedRun]) -> str:
    leaders = [
        f"{run.run_id}: {best.get('strategy')} {_params(best.get('params') or {})}"
        for run in runs
        if isinstance(best := run.summary.get("best"), dict)
    ]
    return f"Each run's own first set, after costs, from 1 at its first bar. {'; '.join(leaders)}."


def _checks(found: Comparison, names: Sequence[str]) -> str:
    rows = [
        (
            [("text", check.about), ("html", _level(check.level))]
            + [("wide", value) for value in check.values]
            + [("wide", check.sentence)],
            check.level == "good",
        )
        for check in found.checks
    ]
    return _table(["", "", *names, ""], rows)


def _differences(found: Comparison, names: Sequence[str]) -> str:
    if not found.differences:
        return "<p>The specifications are the same.</p>"
    rows = [
        (
            [("text", one.field)]
            + [("wide", _value(one.values[name]) if name in one.values else "no such field") for name in names],
            False,
        )
        for one in found.differences
    ]
    return _table(["Field", *names], rows)


def _best(found: Comparison) -> str:
    columns = [name for name in BEST if any(name in side.rows[0] for side in found.runs)]
    rows = []
    for place in range(max(len(side.rows) for side in found.runs)):
        for number, side in enumerate(found.runs):
            if place < len(side.rows):
                row = side.rows[place]
                head = [("text", str(place + 1)), ("html", _name(number, side.run_id))]
                cells = [("text", f"{row['strategy'].partition('@')[0]} {_params(row['params'])}")]
                rows.append((head + cells + [("", _figure(name, row.get(name))) for name in columns], False))
    return _table(["#", "Run", "Set", *(name.replace("_", " ") for name in columns)], rows)


def _plot(place: int, pair: Pair) -> str:
    title = f"{pair.base} and {pair.other}: {pair.common.sets:,} sets"
    return (
        f'<div><h3>{escape(title)}</h3><div id="pair-{place}" class="plot" role="img" aria-label="{escape(title)}" '
        f'style="height:360px"></div></div>'
    )


def _with_sets(found: Comparison) -> list[Pair]:
    return [pair for pair in found.pairs if pair.common.sets]


def _common(pair: Pair) -> str:
    common, rows = pair.common, []
    title = f"{pair.base} and {pair.other}: {common.identical:,} of {common.sets:,} equal bit for bit"
    if common.partly:
        title += f" ({common.partly:,} more were run on a part of the bars in one of them)"
    for one in common.metrics:
        far = one.largest
        figures = [f"{value:.6g}" for value in (far.base, far.other, far.difference)] if far else ["", "", ""]
        where = f"{far.strategy.partition('@')[0]} {_params(far.params)}" if far else ""
        cells = [one.metric.replace("_", " "), f"{one.equal:,}", *figures, where]
        cells += [_figure("", one.rank_correlation), _figure("total_return", one.other_better)]
        rows.append(([("text" if i in {0, 5} else "", cell) for i, cell in enumerate(cells)], far is None))
    heads = ["Figure", "Equal", pair.base, pair.other, "Largest difference", "of", "Rank correlation", "Better there"]
    return f'<h3>{escape(title)}</h3><div class="scroll">{_table(heads, rows)}</div>'


def _honesty(found: Comparison) -> str:
    rows = []
    for name in HONESTY:
        cells = [_figure("", side.honesty.get(name)) for side in found.runs]
        if name == "trials":
            cells = [f"{side.honesty.get(name) or 0:,}" for side in found.runs]
        rows.append(([("text", name.replace("_", " ")), *(("", cell) for cell in cells)], False))
    verdicts = [{one["about"]: one for one in side.honesty["verdicts"]} for side in found.runs]
    for about in dict.fromkeys(about for one in verdicts for about in one):
        cells = [
            f"{_level(one[about]['level'])}<br>{escape(one[about]['sentence'])}" if about in one else ""
            for one in verdicts
        ]
        rows.append(([("text", about.replace("_", " ")), *(("html wide", cell) for cell in cells)], False))
    absent = [(side.run_id, side.honesty["why_not"]) for side in found.runs if side.honesty["why_not"]]
    rows += [([("text", run_id), ("wide", why)], False) for run_id, why in absent]
    return _table(["", *(side.run_id for side in found.runs)], rows)


def _facts(found: Comparison) -> str:
    names = [name for name in found.runs[0].facts if any(side.facts[name] is not None for side in found.runs)]
    rows = []
    for name in names:
        values = [_fact(name, side.facts[name]) for side in found.runs]
        rows.append(([("text", name.replace("_", " ")), *(("wide", value) for value in values)], len(set(values)) == 1))
    return _table(["", *(side.run_id for side in found.runs)], rows)


def _data(runs: Sequence[ComparedRun], found: Comparison) -> str:
    curves = [
        _curve(run.run_id, COLOURS[place % len(COLOURS)], *run.curve) | {"name": run.run_id}
        for place, run in enumerate(runs)
    ]
    values = [value for curve in curves for value in curve["equity"]]
    log = min(values) > 0 and max(values) > LOG_FROM * min(values)
    border = runs[0].honesty.get("held_out_from_ts_ns")
    tables = {run.run_id: run.table for run in runs}
    pairs = []
    for pair in _with_sets(found):
        metric = found.runs[0].sorted_by
        if not all(metric in tables[name].column_names for name in (pair.base, pair.other)):
            metric = "sharpe"
        points = scatter(tables[pair.base], tables[pair.other], metric, SCATTER_MAX)
        place = list(tables).index(pair.other)
        about = {"metric": metric, "names": [pair.base, pair.other], "color": COLOURS[place % len(COLOURS)]}
        pairs.append(points | about)
    data = {
        "runs": curves,
        "scale": "log" if log else "linear",
        "border": None if border is None else _iso(int(border)),
        "pairs": pairs,
    }
    # Inside a script element only "</" and "<!--" could end it early; escaping every "<" covers both.
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _curve(name: str, colour: str, ts_ns: Int64Array, equity: Float64Array) -> dict[str, Any]:
    if not len(equity) or not equity[0] > 0 or not np.isfinite(equity).all():
        raise ValueError(f"{name}: best/equity.parquet: expected finite equity above 0 at the first bar")
    grown = equity / equity[0]
    falls = grown / np.maximum.accumulate(grown) - 1.0
    at = np.union1d(sample(grown, POINTS_MAX), [int(falls.argmin())])
    return {
        "color": colour,
        "ts": [_iso(ts) for ts in ts_ns[at].tolist()],
        "equity": [float(f"{value:.7g}") for value in grown[at].tolist()],
        "drawdown": [float(f"{value:.5g}") for value in falls[at].tolist()],
    }


def _table(heads: Sequence[str], rows: Sequence[tuple[Sequence[tuple[str, str]], bool]]) -> str:
    """Rows of (kind, text) cells and whether the row is of little interest; only of kind html a text is markup."""
    words = [bool(kind) for kind, _ in rows[0][0]] if rows else []
    head = "".join(
        f'<th{" class=text" if word else ""} scope="col">{escape(text)}</th>'
        for text, word in zip(heads, words, strict=bool(rows))
    )
    body = ""
    for cells, faint in rows:
        shown = "".join(
            f'<td class="{"text " if kind else ""}{kind}">{text if kind.startswith("html") else escape(text)}</td>'
            for kind, text in cells
        )
        body += f"<tr{' class=same' if faint else ''}>{shown}</tr>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _level(level: str) -> str:
    return f'<span class="level {escape(level)}">{escape(level)}</span>'


def _name(place: int, run_id: str) -> str:
    return f'<span class="swatch" style="background:{COLOURS[place % len(COLOURS)]}"></span>{escape(run_id)}'


def _params(params: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in params.items())


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    text = f"{value * 100:,.1f}\u00a0%" if name in PERCENT else f"{value:,.2f}"
    return (f"{value:,.0f}" if name == "trades" else text).replace("-", "−")


def _value(value: object) -> str:
    """A field of a specification as one would write it."""
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return ", ".join(f"{one:g}" for one in value) or "none"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def _fact(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("_ns"):
        return f"{datetime.fromtimestamp(int(value) // 10**9, UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, bool | str):
        return str(value)
    return f"{value:,}" if isinstance(value, int | float) else json.dumps(value)


def _iso(ts_ns: int) -> str:
    # Plotly takes a text without an offset as it stands, whatever the reader's time zone.
    return f"{datetime.fromtimestamp(ts_ns // 10**9, UTC):%Y-%m-%d %H:%M:%S}"


if __name__ == "__main__":
    sys.exit(main())
