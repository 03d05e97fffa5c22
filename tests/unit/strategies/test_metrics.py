"""Metrics by hand, annualised by the bars' own times, and what is undefined is NaN, never infinite."""

from __future__ import annotations

import math
from typing import Any

import pytest

from strategies import metrics as module
from strategies.metrics import METRICS, NS_PER_YEAR, Tallies, metrics_of

NAN = math.nan
YEARS = 0.25
# Four returns: +10 %, -5 %, 0, +5 %; mean 0.025, squared deviations 0.0125, squared losses 0.0025.
TALLIES = Tallies(5, 100.0, 109.725, 0.025, 0.0125, 0.0025, 0.05, 2, 3, 2.0, 2, 1, 15.0, 5.275)


def computed(tallies: Tallies = TALLIES, years: float = YEARS) -> dict[str, float]:
    return dict(zip(METRICS, metrics_of(tallies, years).tolist(), strict=True))


def test_metrics_by_hand() -> None:
    per_year = 16  # four returns in a quarter of a year
    deviation = math.sqrt(0.0125 / 3)
    growth = 1.09725**4 - 1
    assert computed() == pytest.approx(
        {
            "total_return": 0.09725,
            "cagr": growth,
            "volatility": deviation * math.sqrt(per_year),
            "sharpe": 0.025 / deviation * math.sqrt(per_year),
            "sortino": 0.025 / math.sqrt(0.0025 / 4) * math.sqrt(per_year),
            "calmar": growth / 0.05,
            "max_drawdown": 0.05,
            "max_drawdown_bars": 2,
            "exposure": 0.6,
            "turnover": 8.0,
            "trades": 2,
            "win_rate": 0.5,
            "profit_factor": 15.0 / 5.275,
        }
    )


def test_a_year_is_365_and_a_quarter_days_round_the_clock() -> None:
    assert NS_PER_YEAR == 31_557_600 * 10**9
    hours = 24 * 365.25
    assert module.periods_per_year(101, 100 / hours) == pytest.approx(hours)


def test_a_gap_counts_as_time() -> None:
    # Ten hourly bars with as many missing between them: half as many returns a year as without the gap.
    assert module.periods_per_year(11, 20 / 8_766) == pytest.approx(8_766 / 2)


@pytest.mark.parametrize(
    ("what", "change", "years", "undefined"),
    [
        (
            "one bar",
            {"bars": 1, "bars_held": 1},
            0.0,
            {"cagr", "volatility", "sharpe", "sortino", "calmar", "turnover"},
        ),
        ("two bars: one return has no deviation", {"bars": 2}, YEARS, {"volatility", "sharpe"}),
        ("no volatility", {"squared_deviations": 1e-32}, YEARS, {"sharpe"}),
        ("no losing bar", {"squared_losses": 0.0}, YEARS, {"sortino"}),
        ("no drawdown", {"deepest_drawdown": 0.0}, YEARS, {"calmar"}),
        ("no trades", {"trades": 0, "wins": 0, "gross_loss": 0.0}, YEARS, {"win_rate", "profit_factor"}),
        ("no losing trade", {"gross_loss": 0.0}, YEARS, {"profit_factor"}),
        ("a growth beyond all doubles", {"final_equity": 1e6, "deepest_drawdown": 0.5}, 1e-7, {"cagr", "calmar"}),
    ],
)
def test_undefined_is_nan_and_nothing_else_is(
    what: str, change: dict[str, Any], years: float, undefined: set[str]
) -> None:
    got = computed(TALLIES._replace(**change), years)
    assert {name for name, value in got.items() if math.isnan(value)} == undefined
    assert not any(math.isinf(value) for value in got.values())


def test_ruin_is_a_loss_of_everything() -> None:
    got = computed(TALLIES._replace(final_equity=0.0, deepest_drawdown=1.0))
    assert (got["total_return"], got["cagr"], got["calmar"]) == (-1.0, -1.0, -1.0)


def test_every_metric_is_documented() -> None:
    documented = {name for name in METRICS if (getattr(module, name, None) and getattr(module, name).__doc__)}
    assert set(METRICS) - documented == {"max_drawdown", "trades"}
    assert "max_drawdown" in (module.drawdown.__doc__ or "")
    assert "trades" in (module.win_rate.__doc__ or "")
