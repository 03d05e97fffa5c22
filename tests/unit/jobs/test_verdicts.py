"""What the page says in plain sentences: a table of figures, levels and words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from jobs.honesty_page import Honesty
from jobs.verdicts import verdicts_of


def figures(**low_to_high: float | None) -> dict[str, Any]:
    return {"observed": 1.0, "low_5": 0.5, "median": 1.0, "high_95": 1.5} | low_to_high


PAGE: dict[str, Any] = {
    "version": 1,
    "sets": 1_000,
    "complete_sets": 1_000,
    "plan": {"bars": 5_000},
    "held_out": {
        "set_id": 3,
        "best_is_set_id": 3,
        "leads_held_out": False,
        "best_is_sharpe": 2.0,
        "best_is_oos_sharpe": 1.5,
    },
    "sharpe_tests": {
        "trials": 1_000,
        "sharpe": 1.8,
        "expected_max_sharpe": 1.2,
        "dsr": 0.97,
        "dsr_sampling": 0.3,
        "expected_max_sharpe_sampling": 0.8,
        "track_record_years": 4.0,
        "min_track_record_years": 1.5,
    },
    "walk_forward": [
        {"kind": "rolling", "steps": [{}] * 12, "oos_sharpe": 1.1, "oos_return": 0.31, "efficiency": 0.6},
        {"kind": "anchored", "steps": [{}] * 12, "oos_sharpe": -9.0, "oos_return": -0.9, "efficiency": -3.0},
    ],
    "k_fold": None,
    "cross_validation": {"path_sharpe": {"count": 15, "below_zero": 0.0, "median": 1.05}},
    "overfitting": {"pbo": 0.05, "splits": 12_870},
    "stability": {"share_of_neighbours": 0.9, "neighbours": 4},
    "trade_order": {"trades": 120, "shuffled_max_drawdown": figures(high_95=0.2)},
    "bootstrap": {"sharpe": figures(low_5=0.4, high_95=2.9)},
    "verdicts": [],
}


def page_with(part: str | None, **changes: Any) -> Honesty:
    page: Any = copy.deepcopy(PAGE)
    if part is not None and changes:
        page[part] = page[part][0] if isinstance(page[part], list) else page[part]
        page[part] |= changes
        page[part] = [page[part]] if part == "walk_forward" else page[part]
    elif part is not None:
        page[part] = None
    return page  # type: ignore[no-any-return]


def said(page: Honesty, about: str, **options: bool) -> tuple[str, str] | None:
    found = verdicts_of(page, False, **options)
    mine = [(verdict["level"], verdict["sentence"]) for verdict in found if verdict["about"] == about]
    assert len(mine) <= 1
    return mine[0] if mine else None


@pytest.mark.parametrize(
    ("about", "part", "changes", "level", "words"),
    [
        ("sharpe_tests", "sharpe_tests", {"dsr": 0.97}, "good", "1.80 is more than luck alone gives: among 1,000 sets"),
        ("sharpe_tests", "sharpe_tests", {"dsr": 0.7}, "doubtful", "not safely above luck"),
        ("sharpe_tests", "sharpe_tests", {"dsr": 0.2}, "bad", "no more than luck alone gives"),
        (
            "sharpe_tests",
            "sharpe_tests",
            {"dsr": 0.2, "dsr_sampling": 0.99},
            "doubtful",
            "above the 0.80 that sampling",
        ),
        ("sharpe_tests", "sharpe_tests", {"trials": 1, "dsr": 0.99}, "good", "One set was tried"),
        ("track_record", "sharpe_tests", {}, "good", "4.0 years of data are enough"),
        ("track_record", "sharpe_tests", {"track_record_years": 0.5}, "doubtful", "183 days of data are not enough"),
        ("track_record", "sharpe_tests", {"min_track_record_years": None}, "bad", "No track record"),
        ("held_out", "held_out", {}, "good", "(Sharpe 2.00) came to 1.50 in the held-out bars"),
        ("held_out", "held_out", {"best_is_oos_sharpe": 0.2}, "doubtful", "came to 0.20"),
        ("held_out", "held_out", {"best_is_oos_sharpe": -0.2}, "bad", "came to -0.20"),
        ("held_out", "held_out", {"best_is_sharpe": -2.0, "best_is_oos_sharpe": -1.0}, "bad", "(Sharpe -2.00)"),
        ("held_out", "held_out", {"best_is_oos_sharpe": None}, "unknown", "did nothing in the held-out bars"),
        ("picked", "held_out", {"set_id": 4, "leads_held_out": True}, "doubtful", "of all 1,000 sets: those bars"),
        ("walk_forward", "walk_forward", {}, "good", "gained 31 % out-of-sample at a Sharpe of 1.10, 60 % of the"),
        ("walk_forward", "walk_forward", {"efficiency": 0.1}, "doubtful", "gained 31 %"),
        ("walk_forward", "walk_forward", {"oos_return": -0.25}, "bad", "would have lost 25 %"),
        ("cross_validation", "cross_validation", {}, "good", "Of 15 paths"),
        ("overfitting", "overfitting", {"pbo": 0.05}, "good", "In 5.0 % of 12,870 splits"),
        ("overfitting", "overfitting", {"pbo": 0.4}, "doubtful", "In 40 %"),
        ("overfitting", "overfitting", {"pbo": 0.5}, "bad", "In 50 %"),
        ("stability", "stability", {}, "good", "stands on a plateau: its 4 neighbours in the parameters keep 90 %"),
        ("stability", "stability", {"share_of_neighbours": 0.5}, "doubtful", "stands above its surroundings"),
        ("stability", "stability", {"share_of_neighbours": 0.1, "neighbours": 1}, "bad", "its 1 neighbour in"),
        ("stability", "stability", {"share_of_neighbours": -1.0}, "bad", "a lone peak"),
        ("trade_order", "trade_order", {}, "good", "the same 120 trades would have fallen by more than 20 %"),
        ("trade_order", "trade_order", {"trades": 29}, "doubtful", "29 trades of the best set are too few"),
        ("bootstrap", "bootstrap", {"sharpe": figures(low_5=0.4)}, "good", "between 0.40 and 1.50"),
        ("bootstrap", "bootstrap", {"sharpe": figures(low_5=-0.4)}, "doubtful", "between -0.40 and 1.50"),
        ("bootstrap", "bootstrap", {"sharpe": figures(low_5=-2.0, high_95=-0.1)}, "bad", "between -2.00 and -0.10"),
    ],
)
def test_each_figure_has_its_sentence(about: str, part: str, changes: dict[str, Any], level: str, words: str) -> None:
    found = said(page_with(part, **changes) if changes else page_with(None), about)
    assert found is not None
    assert found[0] == level
    assert words in found[1]


@pytest.mark.parametrize(
    ("part", "about"),
    [
        ("cross_validation", "cross_validation"),
        ("overfitting", "overfitting"),
        ("stability", "stability"),
        ("bootstrap", "bootstrap"),
    ],
)
def test_of_a_part_that_is_not_there_nothing_is_said(part: str, about: str) -> None:
    assert said(page_with(part), about) is None


def test_what_could_not_be_held_out_and_what_has_no_sharpe_is_said() -> None:
    assert said(page_with("held_out"), "plan") == (
        "unknown",
        "5,000 bars are too few to hold any out: nothing here was tested on unseen data.",
    )
    assert said(page_with("sharpe_tests"), "sharpe_tests") == ("unknown", "The best set has no Sharpe ratio to test.")
    found = said(page_with("trade_order"), "trade_order")
    assert found is not None
    assert found[1].startswith("0 trades")


def test_a_look_ahead_comes_first_and_a_portfolio_has_no_order_of_trades() -> None:
    assert verdicts_of(page_with(None), look_ahead=True)[0]["about"] == "look_ahead"
    assert said(page_with("trade_order"), "trade_order", portfolio=True) is None


@pytest.mark.parametrize(("set_id", "leads"), [(3, True), (4, False)])
def test_a_set_that_was_best_before_the_border_was_not_picked_after_it(set_id: int, leads: bool) -> None:
    assert said(page_with("held_out", set_id=set_id, leads_held_out=leads), "picked") is None
