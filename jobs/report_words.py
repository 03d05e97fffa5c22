"""The report's vocabulary: for each figure its label, its unit and one sentence with a source; and how figures read."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from html import escape
from typing import Final, NamedTuple

from strategies.model import Granularity
from strategies.registry import CROSS_SECTIONS, STRATEGIES

NO_FIGURE: Final = "–"


class Word(NamedTuple):
    """``unit``: percent (fractions shown as %), signed (the same with its sign), ratio, whole, bars, days, bps."""

    label: str
    unit: str
    meaning: str


WORDS: Final[dict[str, Word]] = {
    "total_return": Word("Total return", "signed", "Last equity over initial cash, less 1; after all costs."),
    "cagr": Word("CAGR", "signed", "Yearly growth that leads to the total return; a year has 365.25 days."),
    "volatility": Word("Volatility", "percent", "Standard deviation of bar returns, made yearly by their own number."),
    "sharpe": Word("Sharpe", "ratio", "Mean bar return over its deviation, yearly, no risk-free rate (Sharpe 1994)."),
    "sortino": Word("Sortino", "ratio", "Mean return over the deviation of losses only, yearly (Sortino, Price 1994)."),
    "calmar": Word("Calmar", "ratio", "CAGR over maximum drawdown (Young 1991)."),
    "max_drawdown": Word("Max drawdown", "percent", "Deepest fall of the equity below its highest close so far."),
    "max_drawdown_bars": Word(
        "Drawdown length", "bars", "Bars from the deepest fall's peak until it is reached again, or to the end."
    ),
    "exposure": Word("Exposure", "percent", "Share of bars at whose close a position was held."),
    "turnover": Word("Turnover / year", "ratio", "Traded notional over equity, added up and divided by the years."),
    "trades": Word("Round trips", "whole", "Times a position was opened and closed again."),
    "win_rate": Word("Win rate", "percent", "Share of round trips that gained after costs."),
    "profit_factor": Word("Profit factor", "ratio", "What winning round trips gained over what losing ones lost."),
    "fills": Word("Fills", "whole", "Executions of orders; only counted for the sets that were run once more."),
    "is_sharpe": Word("IS Sharpe", "ratio", "Sharpe ratio in-sample: on the bars before those held out."),
    "is_return": Word("IS return", "signed", "Return on the bars before those held out."),
    "oos_sharpe": Word("OOS Sharpe", "ratio", "Sharpe ratio out-of-sample: on the last 30 % of bars, held out."),
    "oos_return": Word("OOS return", "signed", "Return on the held-out bars."),
    "psr": Word("PSR", "percent", "Probability that the true Sharpe is above 0 (Bailey, Lopez de Prado 2012)."),
    "dsr": Word("DSR", "percent", "PSR against the best of so many sets without skill (Bailey, Lopez de Prado 2014)."),
    "dsr_sampling": Word("DSR, sampling", "percent", "DSR with luck measured by sampling error alone, not by spread."),
    "stability": Word("Stability", "percent", "Mean Sharpe of the neighbours in the parameters over the set's own."),
    "worst_neighbour": Word("Worst neighbour", "ratio", "Sharpe ratio of the worst neighbour in the parameters."),
    "history": Word("History", "percent", "Share of the bars the set was run on; a halving search drops sets early."),
    "alpha": Word("Alpha / year", "signed", "Return that beta does not explain, yearly (Jensen 1968)."),
    "beta": Word("Beta", "ratio", "Slope of the returns on the benchmark's, least squares."),
    "correlation": Word("Correlation", "ratio", "Pearson correlation of the returns with the benchmark's."),
    "up_capture": Word(
        "Up capture", "percent", "Mean return where the benchmark rose, over the benchmark's mean there."
    ),
    "down_capture": Word("Down capture", "percent", "The same where the benchmark fell: less is better."),
    "tracking_error": Word("Tracking error", "percent", "Deviation of the return over the benchmark's, yearly."),
    "information_ratio": Word(
        "Information ratio", "ratio", "Mean excess return over tracking error, yearly (Goodwin 1998)."
    ),
    "mean": Word("Mean", "fine", "Arithmetic mean of the returns."),
    "deviation": Word("Deviation", "fine", "Standard deviation of the returns, with n - 1."),
    "skew": Word("Skew", "ratio", "Third standardised moment: below 0 the left tail is the longer one."),
    "excess_kurtosis": Word("Excess kurtosis", "ratio", "Fourth standardised moment less 3, which is the normal's."),
    "value_at_risk_95": Word("VaR 95 %", "fine", "Loss exceeded in 5 % of periods, from the returns themselves."),
    "expected_shortfall_95": Word("ES 95 %", "fine", "Mean loss of the worst 5 % (Rockafellar, Uryasev 2000)."),
    "value_at_risk_99": Word("VaR 99 %", "fine", "Loss exceeded in 1 % of periods."),
    "expected_shortfall_99": Word("ES 99 %", "fine", "Mean loss of the worst 1 %."),
    "best": Word("Best", "fine", "The highest single return."),
    "worst": Word("Worst", "fine", "The lowest single return."),
    "above_zero": Word("Above 0", "percent", "Share of periods that gained."),
    "pbo": Word(
        "PBO",
        "percent",
        "Share of CSCV splits whose in-sample winner was below the median outside (Bailey et al. 2015).",
    ),
    "efficiency": Word("Efficiency", "percent", "Out-of-sample Sharpe over the mean in-sample one of the choices."),
    "expected_max_sharpe": Word("Luck's best Sharpe", "ratio", "Expected best Sharpe of so many sets without skill."),
    "trials": Word("Trials", "whole", "Parameter sets that were tried."),
    "independent_trials": Word("Independent trials", "ratio", "Trials corrected for the sets' mean correlation."),
    "min_track_record_years": Word(
        "Needed record", "years", "Years for 95 % confidence in a Sharpe above 0 (Bailey, Lopez de Prado 2012)."
    ),
    "probability_of_loss": Word("P(loss)", "percent", "Share of resampled or held-out results below 0."),
}
# Of these more is good and less than nothing is a loss: coloured by their sign.
SIGNED: Final = frozenset(name for name, word in WORDS.items() if word.unit == "signed")


def label(name: str) -> str:
    """A figure's name as people read it."""
    return WORDS[name].label if name in WORDS else name


def tip(name: str, text: str | None = None) -> str:
    """HTML of the label with its sentence, which shows on hover and on focus."""
    word = WORDS.get(name)
    shown = escape(text or label(name))
    return f'<span class="tip" tabindex="0" data-tip="{escape(word.meaning)}">{shown}</span>' if word else shown


def number(name: str, value: float | None) -> str:
    """A figure with its unit, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return NO_FIGURE
    unit = WORDS[name].unit if name in WORDS else "ratio"
    if unit in {"percent", "signed"}:
        return percent(value, sign=unit == "signed")
    if unit == "fine":
        return percent(value, digits=3 if abs(value) < 0.001 else 2)
    if unit in {"whole", "bars", "days"}:
        return minus(f"{value:,.0f}") + {"bars": "\u00a0bars", "days": "\u00a0days"}.get(unit, "")
    if unit == "years":
        return minus(f"{value:,.1f}\u00a0years")
    return minus(f"{value:,.2f}")


def percent(value: float | None, sign: bool = False, digits: int | None = None) -> str:
    """A fraction in per cent; large ones without decimals."""
    if value is None or not math.isfinite(value):
        return NO_FIGURE
    digits = (1 if abs(value) < 10 else 0) if digits is None else digits
    if abs(value) >= 1e7:
        return minus(f"{value * 100:{'+' if sign else ''}.2e}\u00a0%")
    return minus(f"{value * 100:{'+' if sign else ''},.{digits}f}\u00a0%")


def minus(text: str) -> str:
    """With a minus sign where there was a hyphen."""
    return text.replace("-", "−")


def short(value: float) -> str:
    """A parameter's value."""
    return f"{value:.6g}"


def set_text(params: dict[str, float]) -> str:
    """A parameter set on one line, to four digits."""
    return ", ".join(
        f"{name} {value:.4g}" if value < 1e4 else f"{name} {short(value)}" for name, value in params.items()
    )


def title_of(strategy: str) -> str:
    """A strategy's title; a user's own by its name without the hash."""
    known = STRATEGIES.get(strategy) or CROSS_SECTIONS.get(strategy)
    return known.title if known else strategy.partition("@")[0]


def bar_length(granularity: str) -> str:
    """For example "4-hour bars"."""
    seconds = Granularity(granularity).seconds
    for unit, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds % unit == 0:
            return f"{seconds // unit}-{name} bars"
    return f"{seconds}-second bars"


def duration(seconds: float) -> str:
    """A stretch of time in the largest unit that fits."""
    for unit, name in ((365.25 * 86_400, "year"), (86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= unit:
            return f"{seconds / unit:,.1f}".removesuffix(".0") + f" {name}{'' if seconds == unit else 's'}"
    return f"{seconds:.0f} seconds"


def day(ts_ns: int) -> str:
    """A date as in a sentence."""
    return f"{_time(ts_ns):%d %B %Y}".lstrip("0")


def moment(ts_ns: int) -> str:
    """Date and time, UTC."""
    return f"{_time(ts_ns):%Y-%m-%d %H:%M:%S} UTC"


def iso(ts_ns: int) -> str:
    """Plotly takes a text without an offset as it stands, whatever the reader's time zone."""
    return f"{_time(ts_ns):%Y-%m-%d %H:%M:%S}"


def _time(ts_ns: int) -> datetime:
    return datetime.fromtimestamp(ts_ns // 1_000_000_000, UTC)
