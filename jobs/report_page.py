"""The report's sections, each its HTML and its charts; one that has nothing to show says why in a sentence."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final

import numpy as np

from jobs import report_charts as charts
from jobs import report_luck as luck
from jobs import report_tables as tables
from jobs.report_planes import heat_maps
from jobs.report_run import ReportRun
from jobs.report_series import (
    RoundTrip,
    benchmark_figures,
    curve_figures,
    day_ends,
    distribution,
    per_year,
    returns_of,
    round_trips,
)
from jobs.report_words import duration, label, minus, number, percent, set_text, title_of
from strategies.model import Granularity

NO_BARS: Final = "The bars were not at hand when this page was made. Where they are: desk report RUN --rebuild."
DAY_RETURNS_MIN: Final = 60
SCATTER_MAX: Final = 600
# As report_style.html has it: the other rows are a click away.
SHOWN_ROWS: Final = 15
SHORT: Final = {
    "equity": "Equity",
    "candles": "Candles",
    "months": "Months",
    "returns": "Returns",
    "benchmark": "Benchmark",
    "costs": "Costs",
    "spec": "Specification",
}


@dataclass
class Section:
    """``body`` is HTML; ``charts`` by the id of the element they are drawn in; ``reason``: why there is nothing."""

    name: str
    title: str
    body: str = ""
    controls: str = ""
    reason: str = ""
    short: str = ""
    charts: dict[str, charts.Chart] = field(default_factory=dict)

    def html(self) -> str:
        """The whole section; raises nothing."""
        inside = self.body or f'<p class="absent">{escape(self.reason)}</p>'
        controls = f'<div class="controls">{self.controls}</div>' if self.controls and self.body else ""
        head = f'<div class="head"><h2 id="{self.name}-title">{escape(self.title)}</h2>{controls}</div>'
        return f'<section id="{self.name}" aria-labelledby="{self.name}-title">{head}{inside}</section>'


def sections_of(run: ReportRun) -> tuple[list[Section], dict[str, Any]]:
    """All sections in the order of the page, and the heat maps for the page's script."""
    maps = heat_maps(run.table, run.sort_by)
    parts: tuple[Callable[[ReportRun], Section], ...] = (
        walk_forward, months, returns, trips, benchmark, costs, overfit, study, specification, words
    )  # fmt: skip
    made = [board(run), equity(run), candles(run), heat(run, maps)]
    made += [part(run) for part in parts]
    for section in made:
        section.short = SHORT.get(section.name, "")
    return made, {"maps": maps}


def plot(name: str, what: str, height: int = 320) -> str:
    """The place of a chart; ``what`` is said to who cannot see it."""
    return f'<div class="plot" id="{name}" role="img" aria-label="{escape(what)}" style="height:{height}px"></div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def board(run: ReportRun) -> Section:
    """Leaderboard."""
    rows, total = len(run.rows), run.table.num_rows
    text = "One parameter set." if total == 1 else f"The first {rows} of {total:,} sets by {label(run.sort_by)}."
    text += f" {run.sort_note.capitalize()}." if run.sort_note else ""
    text += " A click on a head sorts; a click on a set with curves shows it below." if total > 1 else ""
    if run.record.dropped_count:
        text += f" {run.record.dropped_count:,} combinations break a rule between parameters and were not run."
    alike = {title_of(name): set_text(common) for name, common in tables.common_parameters(run).items() if common}
    text += "".join(f" {name} has in every row {common}." for name, common in alike.items())
    if "history" in run.table.column_names:
        partly = int((run.table["history"].to_numpy() < 1).sum())
        text += f" {partly:,} sets saw only a part of the history; they stand last and are marked." if partly else ""
    body = f'<div class="scroll" tabindex="0" role="region" aria-label="Leaderboard">{tables.leaderboard(run)}</div>'
    if rows > SHOWN_ROWS:
        body += f'<button type="button" class="more" id="more">Show all {rows} rows</button>'
    return Section("board", "Leaderboard", note(text) + body)


def equity(run: ReportRun) -> Section:
    """Equity with drawdown below, beside the benchmark."""
    several = len(run.products) > 1
    hold = "an equal share of the cash in each product" if several else "all cash in the product"
    switch = (
        '<span class="switch" role="group" aria-label="Scale of the equity axis">'
        '<button type="button" data-scale="linear" aria-pressed="true">Linear</button>'
        '<button type="button" data-scale="log" aria-pressed="false">Log</button></span>'
    )
    text = (
        f"Equity at each bar's close, from {run.spec.costs.initial_cash:,.0f} {run.currency}, after costs. "
        f"Buy and hold puts {hold} at the first open and pays fee and slippage once. A position open at the end stays "
        "open. Drawing a range zooms, a double click shows everything."
    )
    body = plot("equity-plot", "Equity and drawdown over time", 470) + note(text)
    return Section("equity", "Equity and drawdown", body, _selector(run) + switch)


def candles(run: ReportRun) -> Section:
    """Candles with fills."""
    if run.figures is None:
        return Section("candles", "Candles and fills", reason=NO_BARS)
    ranges = "".join(
        f'<button type="button" data-part="{share}">{text}</button>'
        for share, text in (("1", "All"), ("0.25", "Last 25 %"), ("0.05", "Last 5 %"), ("0", "Last bars"))
    )
    controls = f'<span class="switch" role="group" aria-label="Stretch of time">{ranges}</span>'
    hidden = len(run.products) < 2
    controls = f'<label{" hidden" if hidden else ""}>Product <select id="candle-product"></select></label>' + controls
    left = run.figures["product_count"] - len(run.figures["products"])
    body = plot("candle-plot", "Candles with entries and exits", 520) + '<p class="note" id="candle-note"></p>'
    if left:
        body += note(f"Candles of {left} more products are left out to keep the file small.")
    return Section("candles", "Candles and fills", body, controls)


def heat(run: ReportRun, maps: list[dict[str, Any]]) -> Section:
    """Heat map over two parameters."""
    title = "Parameters"
    if not maps:
        return Section("heat", title, reason="No parameter varies in this run, so there is no surface to look at.")
    controls = (
        '<label>Strategy <select id="heat-strategy"></select></label>'
        '<label>Axes <select id="heat-axes"></select></label>'
        '<label>Cells <select id="heat-mode"></select></label><label>Metric <select id="heat-metric"></select></label>'
    )
    body = plot("heat-plot", "A metric over two parameters", 460) + '<p class="note" id="heat-note"></p>'
    return Section("heat", title, body, controls)


def walk_forward(run: ReportRun) -> Section:
    """Walk-forward windows."""
    title = "Walk-forward"
    page = run.honesty
    if page is None:
        return Section("walk", title, reason="This run has no honesty page: it is of an earlier version.")
    if not page["walk_forward"]:
        few = page["complete_sets"] < 2
        why = "one set was run to the end, so there is nothing to choose" if few else "there are too few bars to cut"
        return Section("walk", title, reason=f"No walk-forward: {why}.")
    rolling = page["walk_forward"][0]
    bars, curve = (
        charts.walk_forward_bars(rolling, page["plan"]["folds"]),
        charts.walk_forward_curve(page["walk_forward"]),
    )
    found = {"walk-bars": bars, "walk-curve": curve}
    body = note("In each window the best set by in-sample Sharpe is chosen on the folds before, and run on the next.")
    body += f'<div class="two">{plot("walk-bars", "Sharpe by window")}{plot("walk-curve", "Stitched equity")}</div>'
    columns = [
        (
            walk["kind"].capitalize(),
            {name: walk[name] for name in ("is_sharpe", "oos_sharpe", "oos_return", "efficiency")},
        )
        for walk in page["walk_forward"]
    ]
    body += tables.figures_table(("is_sharpe", "oos_sharpe", "oos_return", "efficiency"), columns, "Stitched windows")
    body += f"<details><summary>The windows and their sets</summary>{luck.windows_table(page)}</details>"
    return Section("walk", title, body, charts={name: one for name, one in found.items() if one})


def months(run: ReportRun) -> Section:
    """Months by years."""
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Monthly returns">{tables.months_table(run)}</div>'
    )
    return Section("months", "Monthly returns, %", body + note(tables.month_summary(run)))


def returns(run: ReportRun) -> Section:
    """Distribution of daily (of few days: bar) returns."""
    title = "Distribution of returns"
    at, what = _periods(run)
    found = distribution(returns_of(run.equity[at]))
    if found is None:
        return Section(
            "returns", title, reason="Too few returns, or all alike: the best set has no distribution to show."
        )
    hold = distribution(returns_of(run.hold[at])) or {}
    names = ("mean", "deviation", "skew", "excess_kurtosis", "value_at_risk_95", "expected_shortfall_95",
             "value_at_risk_99", "expected_shortfall_99", "best", "worst", "above_zero")  # fmt: skip
    columns = [("Best set", found), ("Buy and hold", hold)]
    table = tables.figures_table(names, columns, f"{what} returns, {found['count']:,}")
    body = f'<div class="two">{plot("returns-plot", "Histogram of returns")}<div class="scroll">{table}</div></div>'
    drawn = {"returns-plot": charts.histogram(found, f"{what} return (the end bins hold what lies beyond)")}
    return Section("returns", title, body, charts=drawn)


def trips(run: ReportRun) -> Section:
    """Round trips made of the fills."""
    title = "Round trips"
    made = _round_trips(run)
    if not made:
        return Section("trips", title, reason="The best set closed no position, so there is no round trip to show.")
    share = np.array([trip.share for trip in made])
    bars = np.array([trip.exit_bar - trip.entry_bar for trip in made])
    seconds = Granularity(run.record.granularity).seconds
    gains, losses = share[share > 0], share[share <= 0]
    facts = {
        "Round trips": f"{len(made):,} ({sum(trip.side > 0 for trip in made):,} long)",
        "Gained": percent(len(gains) / len(made)),
        "Mean gain / mean loss": f"{percent(float(gains.mean()), sign=True) if gains.size else '–'} / "
        f"{percent(float(losses.mean()), sign=True) if losses.size else '–'}",
        "Best / worst": f"{percent(float(share.max()), sign=True)} / {percent(float(share.min()), sign=True)}",
        "Held, median": f"{np.median(bars):,.0f} bars ({duration(float(np.median(bars)) * seconds)})",
        "Fees": f"{sum(run.fills['fee'].to_pylist()):,.2f} {run.currency}",
    }
    found = distribution(share)
    if found is None:
        return Section("trips", title, tables.definitions(facts) + note("Too few round trips for a histogram."))
    body = f'<div class="two">{plot("trips-plot", "Histogram of round trips")}{tables.definitions(facts)}</div>'
    found.pop("normal")
    return Section("trips", title, body, charts={"trips-plot": charts.histogram(found, "Net result of a round trip")})


def benchmark(run: ReportRun) -> Section:
    """Beside buy and hold."""
    several = len(run.products) > 1
    title = f"Benchmark: {'equally weighted basket, ' if several else ''}buy and hold"
    cash = run.spec.costs.initial_cash
    columns = [
        ("Best set", curve_figures(run.ts_ns, run.equity, cash)),
        ("Buy and hold", curve_figures(run.ts_ns, run.hold, cash)),
    ]
    names = ("total_return", "cagr", "volatility", "sharpe", "max_drawdown")
    body = tables.figures_table(names, columns, "Whole history, after costs")
    at, what = _periods(run)
    found = benchmark_figures(returns_of(run.equity[at]), returns_of(run.hold[at]), per_year(run.ts_ns[at]))
    if found is None:
        return Section("benchmark", title, body + note("Too few returns to compare them period by period."))
    relative = ("alpha", "beta", "correlation", "up_capture", "down_capture", "tracking_error", "information_ratio")
    beside = tables.figures_table(relative, [("Best set", found)], f"{what} returns against buy and hold")
    return Section("benchmark", title, f'<div class="two">{body}{beside}</div>')


def costs(run: ReportRun) -> Section:
    """The best set at other costs."""
    title = "Cost sensitivity"
    if run.figures is None:
        return Section("costs", title, reason=NO_BARS)
    found = run.figures["costs"]
    drawn = {
        "costs-multiple": charts.cost_lines(found["multiples"], "Times all costs", 1.0, found["multiple_zero"]["at"]),
        "costs-fee": charts.cost_lines(found["fees"], "Fee, bps", found["fee_bps"], found["fee_zero_bps"]["at"]),
    }
    shown = {name: one for name, one in drawn.items() if one}
    text = "The best set run again, with fee, slippage, spread, impact, funding and borrowing multiplied; and with the "
    text += "fee alone changed. " + _break_even_text(found)
    rows = [
        [
            f"{each['at']:g} ×",
            *(number(name, each[name]) for name in ("total_return", "sharpe", "max_drawdown", "trades")),
        ]
        for each in found["multiples"]
    ]
    heads = ["Costs", *(label(name) for name in ("total_return", "sharpe", "max_drawdown", "trades"))]
    plots = "".join(plot(name, "Total return by costs", 280) for name in shown)
    table = tables.plain_table(heads, rows, "The best set at multiples of its costs")
    return Section("costs", title, note(text) + f'<div class="two">{plots}</div>' + table, charts=shown)


def overfit(run: ReportRun) -> Section:
    """How much of it is luck."""
    if run.honesty is None:
        return Section("overfit", "Overfitting", reason="This run has no honesty page: it is of an earlier version.")
    body, drawn = luck.luck_page(run.honesty, len(run.products) > 1)
    return Section("overfit", "Overfitting", body, charts=drawn)


def study(run: ReportRun) -> Section:
    """What a search did."""
    title = "Search"
    if run.study is None:
        return Section("study", title, reason="This run is no search: every set of its grids was run.")
    found, table = run.study, run.table
    names = [each.lstrip("-+") for each in found["objectives"]]
    stride = max(1, table.num_rows // SCATTER_MAX)
    rows = table.select(["set_id", "strategy", "params", *names]).take(np.arange(0, table.num_rows, stride)).to_pylist()
    points = [row | {"text": f"{title_of(row['strategy'])} {set_text(json.loads(row['params']))}"} for row in rows
              if all(np.isfinite(row[name]) for name in names)]  # fmt: skip
    drawn = {
        "study-best": charts.best_so_far(found["generations"], found["objectives"][0]),
        "study-front": charts.pareto(points, found["pareto_front"], found["objectives"]),
    }
    shown = {name: one for name, one in drawn.items() if one}
    facts = {
        "Method": f"{found['method']}, {found['sets']:,} sets, {found['runs']:,} runs",
        "Generations": str(len(found["generations"])),
        "Objectives": ", ".join(found["objectives"]),
        "Constraints": ", ".join(found["constraints"]) or "none",
        "Bars by rung": ", ".join(f"{bars:,}" for bars in found["rung_bars"]),
        "On the whole history": f"{found['full_history_sets']:,} sets",
        "Ended by": ", ".join(found["endings"]) or "not ended",
    }
    plots = "".join(plot(name, "The search") for name in shown)
    body = f'<div class="two">{plots}</div>' + tables.definitions(facts)
    text = (
        "On an axis marked ↓ less is better." if "study-front" in shown else "One objective: there is no Pareto front."
    )
    body += note(text)
    return Section("study", title, body, charts=shown)


def specification(run: ReportRun) -> Section:
    """What it was computed from, and how to do it again."""
    rows = [list(one) for one in tables.differing_fields(run.spec)]
    body = tables.definitions(tables.run_facts(run))
    body += tables.plain_table(("Field", "Value", "Default"), rows, "What differs from the defaults", texts=3)
    commands = f"git checkout {shlex.quote(run.record.git_revision)}\ndesk sweep {run.record.run_id}/spec.json"
    own = " Put the strategy below into a file and name that file in the specification." if run.strategy_texts else ""
    text = "The same bars (see the data hash) and the same code give the same table, bit for bit." + own
    body += f"<h3>To do it again</h3><pre>{escape(commands)}</pre>{note(text)}"
    content = json.dumps(run.spec.model_dump(mode="json"), indent=2)
    body += f"<details><summary>The specification as JSON</summary><pre>{escape(content)}</pre></details>"
    for name, source in run.strategy_texts.items():
        body += f"<details><summary>{escape(name)}.py</summary><pre>{escape(source)}</pre></details>"
    return Section("spec", "Specification and hashes", body)


def words(run: ReportRun) -> Section:
    """What each figure means."""
    body = f"<details><summary>What each figure means, and where it is from</summary>{tables.glossary()}</details>"
    return Section("words", "Words", body)


def _selector(run: ReportRun) -> str:
    titles = [f"{title_of(one['strategy'])}, {set_text(one['params'])}" for one in run.shown_sets]
    options = "".join(
        f'<option value="{place}">{place + 1}. {escape(text)}</option>' for place, text in enumerate(titles)
    )
    hidden = " hidden" if len(run.shown_sets) < 2 else ""
    return f'<label{hidden}>Set <select id="set">{options}</select></label>'


def _periods(run: ReportRun) -> tuple[Any, str]:
    """Positions whose returns are looked at, days where there are enough of them, and their name."""
    days = day_ends(run.ts_ns)
    if DAY_RETURNS_MIN < len(days) < len(run.ts_ns):
        return days, "Daily"
    return np.arange(len(run.ts_ns)), "Daily" if len(days) == len(run.ts_ns) else "Bar"


def _round_trips(run: ReportRun) -> list[RoundTrip]:
    table = run.fills
    product = table["product"].to_pylist() if "product" in table.column_names else [""] * table.num_rows
    names = ("bar_index", "side", "price", "quantity", "fee")
    columns = [table[name].to_numpy() for name in names]
    made: list[RoundTrip] = []
    for one in dict.fromkeys(product):
        mine = np.array([each == one for each in product])
        made += round_trips(*(column[mine].tolist() for column in columns))
    return [trip for trip in made if np.isfinite(trip.share)]


def _break_even_text(found: Mapping[str, Any]) -> str:
    if found["free"]:
        return "This run has no costs."
    zero, fee = found["multiple_zero"], found["fee_zero_bps"]
    if zero["side"] == "unknown":
        return "With this many bars the break-even is not looked for."
    if zero["side"] == "below":
        return "It loses even without any costs: there is no break-even."
    if zero["side"] == "above":
        first = f"It gains even at {zero['most']:g} times the costs"
    else:
        first = f"It breaks even at {zero['at']:.2f} times the costs"
    if fee["side"] == "below":
        return f"{first}; with the other costs as they are it loses at any fee."
    second = f"at a fee of {fee['at']:.1f} bps" if fee["at"] is not None else f"at no fee up to {fee['most']:g} bps"
    return minus(f"{first}; with the other costs as they are, {second}.")
