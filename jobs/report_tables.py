"""The report's tables as HTML: leaderboard, months, figures beside a benchmark, what the run was computed from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from cluster.run_folder import LOWER_IS_BETTER
from jobs.report_run import ReportRun
from jobs.report_series import monthly_returns
from jobs.report_words import WORDS, label, minus, moment, number, percent, set_text, short, tip, title_of

MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# The leaderboard's columns, by what they are of.
GROUPS: Final = (
    ("Out-of-sample", ("oos_sharpe", "oos_return")),
    ("In-sample", ("is_sharpe", "is_return")),
    ("More than luck", ("psr", "dsr", "dsr_sampling")),
    ("Whole history", ("sharpe", "total_return", "cagr", "max_drawdown")),
    ("Neighbours", ("stability", "worst_neighbour")),
    ("Trading", ("fills", "trades", "win_rate", "profit_factor", "exposure", "turnover")),
    ("Risk", ("volatility", "sortino", "calmar", "max_drawdown_bars")),
)


def leaderboard(run: ReportRun) -> str:
    """The leading rows; a click on a column's head sorts them."""
    groups = [(name, [one for one in columns if one in run.rows[0]]) for name, columns in GROUPS]
    groups = [(name, columns) for name, columns in groups if columns]
    above = '<th class="text stuck" colspan="2" scope="colgroup">Set</th>'
    above += "".join(f'<th class="group" colspan="{len(c)}" scope="colgroup">{escape(name)}</th>' for name, c in groups)
    heads = ['<th class="text" scope="col">#</th>', '<th class="text stuck" scope="col">Strategy and parameters</th>']
    firsts = {columns[0] for _, columns in groups}
    for name in (name for _, columns in groups for name in columns):
        sort = f' aria-sort="{"ascending" if name in LOWER_IS_BETTER else "descending"}"' if name == run.sort_by else ""
        edge = ' class="edge"' if name in firsts else ""
        heads.append(f'<th{edge} scope="col"{sort}>{tip(name)}</th>')
    columns = [name for _, names in groups for name in names]
    shown = {one["set_id"] for one in run.shown_sets}
    common = common_parameters(run)
    one_goal = run.study is not None and len(run.study["objectives"]) == 1
    body = "".join(
        _board_row(place, row, columns, firsts, shown, common, one_goal) for place, row in enumerate(run.rows, 1)
    )
    head = f'<tr class="above">{above}</tr><tr>{"".join(heads)}</tr>'
    return f'<table class="sortable board"><thead>{head}</thead><tbody>{body}</tbody></table>'


def common_parameters(run: ReportRun) -> dict[str, dict[str, float]]:
    """By strategy what is alike in all its rows of the leaderboard; nothing where it has but one."""
    found: dict[str, dict[str, float]] = {}
    for strategy in dict.fromkeys(row["strategy"] for row in run.rows):
        mine = [row["params"] for row in run.rows if row["strategy"] == strategy]
        alike = {name: value for name, value in mine[0].items() if all(one.get(name) == value for one in mine)}
        found[strategy] = alike if len(mine) > 1 and len(alike) < len(mine[0]) else {}
    return found


def _board_row(
    place: int,
    row: Mapping[str, Any],
    columns: list[str],
    firsts: set[str],
    shown: set[int],
    common: Mapping[str, Mapping[str, float]],
    one_goal: bool,
) -> str:
    marks = ""
    if row.get("history", 1.0) < 1.0:
        marks += f'<span class="mark">only the first {percent(row["history"], digits=0)} of the bars</span>'
    if row.get("feasible") is False:
        marks += '<span class="mark bad">breaks a constraint</span>'
    if row.get("pareto"):
        text = "best of the search" if one_goal else "Pareto front"
        marks += f'<span class="mark good">{text}</span>'
    own = {name: value for name, value in row["params"].items() if name not in common[row["strategy"]]}
    name = f'<b>{escape(title_of(row["strategy"]))}</b> <span class="soft">{escape(set_text(own))}</span>'
    cells = [
        f'<td class="text" data-value="{place}">{place}</td>',
        f'<th class="text stuck" scope="row">{name}{marks}</th>',
    ]
    for column in columns:
        value = math.nan if row[column] is None else float(row[column])
        exact = repr(value) if math.isfinite(value) else ""
        tone = " loss" if WORDS[column].unit == "signed" and value < 0 else ""
        edge = " edge" if column in firsts else ""
        cells.append(f'<td class="{(tone + edge).strip()}" data-value="{exact}">{escape(number(column, value))}</td>')
    leads = f' data-set="{row["set_id"]}"' if row["set_id"] in shown else ""
    return f"<tr{leads}>{''.join(cells)}</tr>"


def months_table(run: ReportRun) -> str:
    """Years by months, in per cent, coloured by size and sign."""
    years = monthly_returns(run.ts_ns, run.equity, run.spec.costs.initial_cash)
    known = np.abs([change for _, row in years for change in row[:12] if math.isfinite(change)])
    # The colour is full at the 90th percentile: one wild month would make all others pale.
    full = max(float(np.quantile(known, 0.9)), 1e-9) if known.size else 1.0
    head = "".join(f'<th scope="col">{name}</th>' for name in (*MONTHS, "Year"))
    rows = "".join(
        f'<tr><th class="text" scope="row">{year}</th>{"".join(_month_cell(change, full) for change in row)}</tr>'
        for year, row in years
    )
    return f'<table class="months"><thead><tr><th scope="col">Year</th>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _month_cell(change: float, full: float) -> str:
    if not math.isfinite(change):
        return "<td></td>"
    strength = round(min(1.0, abs(change) / full) * 55)
    colour = "up" if change >= 0 else "down"
    digits = 1 if abs(change) < 10 else 0
    style = f"background:color-mix(in srgb,var(--{colour}) {strength}%,transparent)"
    return f'<td style="{style}">{minus(f"{change * 100:+,.{digits}f}")}</td>'


def month_summary(run: ReportRun) -> str:
    """How many months gained, the best and the worst one."""
    years = monthly_returns(run.ts_ns, run.equity, run.spec.costs.initial_cash)
    known = [(change, year, month) for year, row in years for month, change in enumerate(row[:12])]
    known = [one for one in known if math.isfinite(one[0])]
    if not known:
        return ""
    gained = sum(change > 0 for change, _, _ in known)
    best, worst = max(known), min(known)
    return (
        f"{gained} of {len(known)} months gained. Best: {percent(best[0], sign=True)} in {MONTHS[best[2]]} {best[1]}; "
        f"worst: {percent(worst[0], sign=True)} in {MONTHS[worst[2]]} {worst[1]}. Both ends may be part months."
    )


def figures_table(names: Iterable[str], columns: Sequence[tuple[str, Mapping[str, float | None]]], caption: str) -> str:
    """A figure a row, a column for each of ``columns``."""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title, _ in columns)
    rows = ""
    for name in names:
        cells = "".join(f"<td>{escape(number(name, values.get(name)))}</td>" for _, values in columns)
        rows += f'<tr><th class="text" scope="row">{tip(name)}</th>{cells}</tr>'
    head = f'<thead><tr><th class="text" scope="col">Figure</th>{heads}</tr></thead>'
    return f'<table class="figures"><caption>{escape(caption)}</caption>{head}<tbody>{rows}</tbody></table>'


def plain_table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str, texts: int = 1) -> str:
    """Texts in rows; the first ``texts`` columns are words, the others figures."""

    def cells(open_tag: str, close_tag: str, row: Sequence[str]) -> str:
        word = ' class="text"'
        return "".join(
            f"<{open_tag}{word if place < texts else ''}>{escape(text)}</{close_tag}>" for place, text in enumerate(row)
        )

    head = cells('th scope="col"', "th", heads)
    body = "".join(f"<tr>{cells('td', 'td', row)}</tr>" for row in rows)
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    region = f'class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"'
    return f"<div {region}><table>{inside}</table></div>"


def definitions(facts: Mapping[str, str]) -> str:
    """Names and texts."""
    return f'<dl class="facts">{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())}</dl>'


def differing_fields(model: BaseModel, path: str = "") -> list[tuple[str, str, str]]:
    """(dotted name, value, default) of every field of a specification that is not at its default."""
    found: list[tuple[str, str, str]] = []
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        default = info.get_default(call_default_factory=True) if not info.is_required() else None
        if value == default:
            continue
        if isinstance(value, BaseModel) and isinstance(default, type(value)):
            found += differing_fields(value, f"{path}{name}.")
        else:
            plain = model.model_dump(mode="json", include={name})[name]
            text = plain if isinstance(plain, str) else json.dumps(plain)
            found.append((path + name, text, "required" if info.is_required() else _default_text(default)))
    return found


def _default_text(default: object) -> str:
    return (
        "none" if default is None or default == () else f"{default:g}" if isinstance(default, float) else str(default)
    )


def run_facts(run: ReportRun) -> dict[str, str]:
    """What the run was computed from, and by what."""
    record = run.record
    return {
        "Run": record.run_id,
        "Source of the bars": record.data_source,
        "Bars": f"{record.product_id} {record.granularity}, {record.bar_count:,} from {moment(record.first_ts_ns)} "
        f"to {moment(record.last_ts_ns)}",
        "Data hash": f"sha256 {record.data_hash}",
        "Specification": f"sha256 {record.spec_hash}",
        "Seed": str(record.seed),
        "Code": f"git {record.git_revision}{', with local changes' if record.git_dirty else ''}",
        "Code of the strategies": f"sha256 {record.code_hash}",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Laid out": moment(record.created_ns),
        **{
            f"Strategy {name.partition('@')[0]}": f"sha256 begins {name.partition('@')[2]}"
            for name in run.strategy_texts
        },
    }


def glossary() -> str:
    """Every figure's sentence."""
    return definitions({word.label: word.meaning for word in WORDS.values()})


def chips(params: Mapping[str, float]) -> str:
    """A parameter set as small labels."""
    return "".join(
        f'<span class="chip">{escape(name)} <b>{escape(short(value))}</b></span>' for name, value in params.items()
    )


def metric_names(names: Iterable[str]) -> dict[str, str]:
    """Labels of these figures, for the page's script."""
    return {name: label(name) for name in names}
