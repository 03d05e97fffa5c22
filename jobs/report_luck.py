"""The report's page on luck: verdicts, probabilities, intervals and what the cross-validations found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from jobs import report_charts as charts
from jobs.honesty_page import Honesty, Interval, SharpeTests, Verdict
from jobs.report_tables import figures_table, plain_table
from jobs.report_words import NO_FIGURE, iso, number, percent, set_text, title_of

# A level is a word and a sign, never a colour alone.
SIGNS: Final = {"good": "✓", "doubtful": "!", "bad": "✗", "unknown": "?"}


def verdict_list(page: Honesty | None) -> str:
    """The verdicts as a list."""
    return _list(page["verdicts"]) if page else ""


def luck_page(page: Honesty, portfolio: bool) -> tuple[str, dict[str, charts.Chart]]:
    """HTML and charts of what honesty.json says; a part that is None says why."""
    drawn: dict[str, charts.Chart] = {}
    body = _said(page, "look_ahead", "plan", "sharpe_tests", "track_record", "held_out", "picked", "stability")
    body += _sharpe_table(page["sharpe_tests"])
    overfitting, paths = page["overfitting"], page["cross_validation"]
    if overfitting is None or overfitting["pbo"] is None:
        few = page["complete_sets"] < 2
        why = (
            "one set was run to the end: nothing was chosen"
            if few
            else "there are too few bars, or sets that did nothing"
        )
        body += _absent(f"No probability of backtest overfitting (PBO): {why}.")
    else:
        found = {"logits": charts.logits(overfitting), "degradation": charts.degradation(overfitting)}
        text = f"CSCV (Bailey and others 2015): {overfitting['splits']:,} splits of {overfitting['sets']:,} sets; "
        text += f"the winner inside lost outside in {percent(overfitting['probability_of_loss'])} of them."
        body += _said(page, "overfitting") + _pair(drawn, found, text)
    if paths is None:
        body += _absent("No combinatorial cross-validation: it needs two sets and enough bars.")
    else:
        shown = {"paths": charts.path_sharpes(paths)}
        spread = paths["path_sharpe"]
        text = f"Combinatorial purged cross-validation: {paths['splits']} splits, {len(paths['paths_sharpe'])} paths; "
        text += f"90 % of the paths have a Sharpe of {_of(spread['low_5'])} … {_of(spread['high_95'])}."
        chosen = [
            [title_of(one["strategy"]), set_text(one["params"]), f"{one['splits']} of {paths['splits']}"]
            for one in paths["chosen"]
        ]
        table = plain_table(("Strategy", "Parameters", "Splits"), chosen, "The sets the splits chose most often", 2)
        body += _said(page, "cross_validation")
        body += _pair(drawn, shown, text, table)
    return body + _said(page, "bootstrap", "trade_order") + _intervals(page, portfolio), drawn


def windows_table(page: Honesty) -> str:
    """Each walk-forward window, what was chosen and what it came to."""
    folds, rows = page["plan"]["folds"], []
    for walk in page["walk_forward"]:
        for step in walk["steps"]:
            test = folds[step["test"]]
            chosen = f"{title_of(step['strategy'])} {set_text(step['params'] or {})}" if step["strategy"] else "none"
            rows.append(
                [
                    walk["kind"],
                    f"{iso(folds[step['train_from']]['first_ts_ns'])[:10]} … "
                    f"{iso(folds[step['train_to']]['last_ts_ns'])[:10]}",
                    f"{iso(test['first_ts_ns'])[:10]} … {iso(test['last_ts_ns'])[:10]}",
                    chosen,
                    number("is_sharpe", step["is_sharpe"]),
                    number("oos_sharpe", step["oos_sharpe"]),
                    number("oos_return", step["oos_return"]),
                ]
            )
    heads = ("Windows", "Chosen on", "Tested on", "Set", "IS Sharpe", "OOS Sharpe", "OOS return")
    return plain_table(heads, rows, "Walk-forward windows", 4)


def _said(page: Honesty, *about: str) -> str:
    return _list([each for each in page["verdicts"] if each["about"] in about])


def _list(verdicts: Sequence[Verdict]) -> str:
    items = "".join(
        f'<li class="{escape(each["level"])}"><span class="sign" role="img" aria-label="{escape(each["level"])}" '
        f'title="{escape(each["level"])}">{SIGNS.get(each["level"], "?")}</span>{escape(each["sentence"])}</li>'
        for each in verdicts
    )
    return f'<ul class="verdicts">{items}</ul>' if verdicts else ""


def _sharpe_table(tests: SharpeTests | None) -> str:
    if tests is None:
        return _absent("The best set has no Sharpe ratio to test.")
    names = ("sharpe", "psr", "dsr", "dsr_sampling", "trials", "independent_trials", "expected_max_sharpe",
             "min_track_record_years")  # fmt: skip
    values: Mapping[str, Any] = tests
    return figures_table(names, [("Best set", {name: values[name] for name in names})], "Is the Sharpe more than luck?")


def _intervals(page: Honesty, portfolio: bool) -> str:
    rows: list[list[str]] = []
    boot, order = page["bootstrap"], page["trade_order"]
    if boot is not None:
        rows += [
            ["Bootstrap of returns", "Sharpe", *_interval("sharpe", boot["sharpe"])],
            ["Bootstrap of returns", "CAGR", *_interval("cagr", boot["cagr"])],
            ["Bootstrap of returns", "Max drawdown", *_interval("max_drawdown", boot["max_drawdown"])],
        ]
    if order is not None:
        rows += [
            ["Trades shuffled", "Max drawdown", *_interval("max_drawdown", order["shuffled_max_drawdown"])],
            ["Trades drawn anew", "Max drawdown", *_interval("max_drawdown", order["drawn_max_drawdown"])],
            ["Trades drawn anew", "Total return", *_interval("total_return", order["drawn_return"])],
        ]
    body = ""
    if rows:
        heads = ("Resampling", "Figure", "Observed", "5 %", "Median", "95 %")
        body = plain_table(heads, rows, "Monte Carlo intervals of the best set, 90 %", 2)
    if boot is None:
        body += _absent("No bootstrap: too few returns.")
    else:
        text = f"Stationary bootstrap (Politis, Romano 1994): {boot['draws']:,} draws, "
        text += f"blocks of {boot['block_bars']:,.0f} bars on average."
        body += f'<p class="note">{escape(text)}</p>'
    if order is None:
        why = "a portfolio's round trips overlap" if portfolio else "fewer than two round trips"
        body += _absent(f"No Monte Carlo of the trades' order: {why}.")
    return body


def _interval(name: str, found: Interval) -> list[str]:
    values: Mapping[str, Any] = found
    return [number(name, values[key]) for key in ("observed", "low_5", "median", "high_95")]


def _pair(drawn: dict[str, charts.Chart], found: Mapping[str, charts.Chart | None], text: str, beside: str = "") -> str:
    shown = {name: one for name, one in found.items() if one}
    drawn.update(shown)
    plots = "".join(
        f'<div class="plot" id="{name}" role="img" aria-label="{name}" style="height:300px"></div>' for name in shown
    )
    return f'<p class="note">{escape(text)}</p><div class="two">{plots}{beside}</div>'


def _absent(text: str) -> str:
    return f'<p class="absent">{escape(text)}</p>'


def _of(value: float | None) -> str:
    return NO_FIGURE if value is None else number("sharpe", value)
