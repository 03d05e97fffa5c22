"""A user's file with ``on_bars``: accepted, computed like the shipped one, and what is wrong told at its line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from cluster.cli import app
from strategies.base import SpecError
from strategies.causality import made_up_bars
from strategies.cross_section import CrossSection
from strategies.model import Float64Array
from strategies.panel import panel_of
from strategies.portfolio import evaluate, run, weights_of
from strategies.registry import UnknownStrategy, find, get
from strategies.spec import Costs, parse_backtest, parse_spec
from strategies.user_check import check, check_apart
from strategies.user_file import load, read
from strategies.user_trial import made_up_panel
from tests.strategy_files import GOOD, SECTION, WEIGHTS, written, wrong

PANEL = made_up_panel(200, 3)
NAMES = ("BTC-USD", "ETH-USD", "SOL-USD")


def own_section(folder: Path, text: str = SECTION) -> CrossSection:
    strategy = load(read(written(folder, text)))
    assert isinstance(strategy, CrossSection)
    return strategy


def problem(tmp_path: Path, text: str) -> tuple[int, str]:
    """Line and rule of the first error found in ``text``."""
    report = check(written(tmp_path, text), PANEL, quick=True)
    assert not report.ok
    return report.first_error().line, report.first_error().rule


def test_a_right_file_is_fit_to_run(tmp_path: Path) -> None:
    report = check(written(tmp_path, SECTION), PANEL, quick=True)
    assert report.findings == []
    assert (report.ok, report.kind, report.products, report.bars) == (True, "cross section", 3, 200)
    assert (report.warm_up_bars, report.cuts_tried > 0) == (20, True)
    assert check(written(tmp_path), quick=True).kind == "single product"


def shipped_vector(lookback: int, every: int, top: int) -> Float64Array:
    params = {"lookback": lookback, "every": every, "top": top}
    return find("momentum_rotation").params.model_validate(params).vector()


def test_it_asks_for_what_the_shipped_one_does(tmp_path: Path) -> None:
    own = own_section(tmp_path)
    shipped = find("momentum_rotation")
    assert isinstance(shipped, CrossSection)
    for lookback, every, top in ((20, 6, 1), (5, 3, 2), (1, 1, 3)):
        theirs = shipped_vector(lookback, every, top)
        mine = weights_of(own, np.array([lookback, every, top], dtype=np.float64), PANEL)
        whole = np.isfinite(PANEL.close).all(axis=0)
        # A product without a bar now, or without one then, is no riser in either; the ring differs after a gap.
        first = int(np.argmax(whole))
        np.testing.assert_array_equal(
            np.isnan(mine[:, first:]), np.isnan(weights_of(shipped, theirs, PANEL)[:, first:])
        )
    gapless = panel_of([made_up_bars(200, q, f"P{q}-USD") for q in range(3)])
    vector = shipped_vector(20, 6, 2)
    mine = weights_of(own, np.array([20.0, 6.0, 2.0]), gapless)
    np.testing.assert_array_equal(mine, weights_of(shipped, vector, gapless))


def test_it_runs_in_sweeps_and_backtests_with_rules(tmp_path: Path) -> None:
    own = own_section(tmp_path)
    period = {"product_ids": list(NAMES), "granularity": "ONE_HOUR"}
    grid = {"strategy": own.name, "grid": {"lookback": [5, 10], "stop_loss": [0.0, 0.02]}}
    (swept,) = parse_spec(period | {"grids": [grid]}).parameter_sets()
    panel = panel_of([made_up_bars(300, q, name) for q, name in enumerate(NAMES)])
    found = evaluate(own.name, swept[1], panel, Costs()).metrics
    spec = parse_backtest(period | {"strategy": own.name, "params": {"lookback": 10, "stop_loss": 0.02}})
    np.testing.assert_array_equal(list(run(spec, panel).metrics.values()), found[3])
    assert len({row[0] for row in found}) == 4
    with pytest.raises(SpecError, match="2 to 1000 products"):
        parse_spec(period | {"product_ids": ["BTC-USD"], "grids": [grid]})
    with pytest.raises(SpecError, match="at most 3"):
        parse_backtest(period | {"strategy": own.name, "params": {"top": 4}})
    with pytest.raises(SpecError, match="one for one product"):
        parse_backtest({"product_id": "BTC-USD", "granularity": "ONE_HOUR", "strategy": own.name})
    with pytest.raises(UnknownStrategy):
        get(own.name)


SEEN_OR_LOADED: list[tuple[str, str, str]] = [
    ("def start(vector, products):", "def decide(vector):\n    return 1\n\n\ndef start(vector, products):", "made for"),
    ("def start(vector, products):", "def start(vector):", "start takes 2 arguments: start(vector, products)"),
    ("def on_bars(vector, state, step):", "def on_bars(vector, state):", "on_bars takes 3 arguments"),
    ("PRODUCTS_MIN = 2", "PRODUCTS_MIN = 0", "a whole number from 1 to 1000"),
    ("PRODUCTS_MIN = 2", "PRODUCTS_MIN = 5; PRODUCTS_MAX = 3", "more than PRODUCTS_MAX"),
    ('COUNTS = ("top",)', 'COUNTS = ("bottom",)', "a tuple of parameters that count products"),
    ("def on_bars(", "def on_bar(vector, state, bar):\n    return state, 0.0\n\n\ndef on_bars(", "not both"),
]
FOUND_BY_RUNNING = [
    (WEIGHTS, "        weights[:] = 1.5\n", "the weight of product 0 is 1.5"),
    (WEIGHTS, "        return state, np.zeros(products + 1)\n", "an array of 3 floats"),
    (WEIGHTS, "        return state, 1.0\n", "the weights are a float"),
    (WEIGHTS, "        return weights\n", "expected (state, weights)"),
    (WEIGHTS, "        weights[:] = step.close[products]\n", "IndexError"),
    (WEIGHTS, "        step.close[0] = 1.0\n", "read-only"),
    (WEIGHTS, "        weights[:] = step.typical\n", "typical"),
    (WEIGHTS, "        weights[:] = nothing_there\n", "nothing_there"),
    (WEIGHTS, "        weights[:] = float(f'{1.0:.2f}')\n", "text formatting does not work"),
    ("return State(closes, weights, bars + 1), weights\n", "return (closes, weights, bars + 1), weights\n", "kind"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "words"), [*SEEN_OR_LOADED, *FOUND_BY_RUNNING])
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, before: str, after: str, words: str) -> None:
    text, line = wrong(before, after, SECTION)
    found, rule = problem(tmp_path, text)
    assert words in rule, rule
    step = text[: text.index("def on_bars")].count("\n") + 1
    assert found == step or line <= found <= line + after.count("\n")
    assert "\n" not in rule


# The rows of one time lie one after the other in memory: behind the last product's close stands the next time's first.
# That function is refused by name; got by another one it is left to the causality check.
RISES = "        rises = step.close / closes[(row + 1) % rows] - 1.0\n"
BEHIND = "reach(step.close, (2 * products,), (8,))[products:]"
REACH = 'reach = getattr(np.lib.stride_tricks, "as_" + "strided")\n\n\nPRODUCTS_MIN = 2'


@pytest.mark.parametrize(
    ("what", "peek"),
    [
        ("each product's own next close", f"        rises = {BEHIND} / step.close\n"),
        ("another product's next close", f"        rises = {BEHIND}[::-1] / step.close[::-1]\n"),
    ],
)
def test_one_that_looks_at_the_next_bar_is_caught_by_changed_futures(tmp_path: Path, what: str, peek: str) -> None:
    text = SECTION.replace("PRODUCTS_MIN = 2", REACH)
    assert text.count(RISES) == 1
    gapless = panel_of([made_up_bars(200, q, f"P{q}-USD") for q in range(3)])
    report = check(written(tmp_path, text.replace(RISES, peek)), gapless, quick=True)
    assert [finding.rule for finding in report.findings if "it knows bars that come later" in finding.rule], what
    # The same file without the peek is honest.
    assert check(written(tmp_path, text), gapless, quick=True).findings == []


def test_reaching_beyond_an_array_is_refused_at_its_line(tmp_path: Path) -> None:
    text, line = wrong(
        RISES, f"        rises = np.lib.stride_tricks.as_strided(step.close, (9,), (8,))[:3]\n{RISES}", SECTION
    )
    found, rule = problem(tmp_path, text)
    assert (found, "does not reach beyond the arrays" in rule) == (line, True)


def test_products_must_be_several_for_a_cross_section_and_one_for_the_other_kind(tmp_path: Path) -> None:
    bars = made_up_bars(200, product_id="BTC-USD")
    assert "2 to 1000 products" in check(written(tmp_path, SECTION), bars, quick=True).first_error().rule
    assert "for one product" in check(written(tmp_path, GOOD), PANEL, quick=True).first_error().rule


def test_a_check_in_a_process_of_its_own_finds_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, SECTION)
    report = check_apart(path, PANEL, quick=True)
    assert dataclasses.replace(report, evaluations_per_s=None) == dataclasses.replace(
        check(path, PANEL, quick=True), evaluations_per_s=None
    )


def test_the_template_passes_at_once(tmp_path: Path) -> None:
    words = ["strategy", "new", "my_rotation", "--cross-section", "--dir", str(tmp_path)]
    assert CliRunner().invoke(app, words).exit_code == 0
    report = check(tmp_path / "my_rotation.py", made_up_panel(400, 3))
    assert (report.findings, report.kind) == ([], "cross section")


def test_the_list_of_strategies_tells_the_kinds_apart() -> None:
    import json

    done = CliRunner().invoke(app, ["strategy", "ls", "--json"])
    listed: Any = {one["name"]: one["kind"] for one in json.loads(done.stdout)["strategies"]}
    assert (listed["sma_cross"], listed["pairs"]) == ("single product", "cross section")
    shown = CliRunner().invoke(app, ["strategy", "ls"], env={"COLUMNS": "200"}).stdout
    assert "cross section" in shown
