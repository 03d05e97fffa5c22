"""The report in a real browser: every chart is drawn, nothing complains, nothing is loaded, and its controls work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.market_data import BarStore
from cluster.runs import RunFolder, prepare_run, read_market
from jobs.blocks import compute_here
from jobs.sweep import Reporter, Run, finish, plan_of, work_of
from strategies.model import Bars
from strategies.spec import SweepSpec, parse_spec
from strategies.user_file import load, read
from tests.browser import Tab, browser_tab
from tests.run_samples import make_spec, wavy_bars
from tests.strategy_files import GOOD, written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SMA: dict[str, Any] = {"fast": [3, 5, 8, 13], "slow": [21, 34, 55], "stop_loss": [0, 0.02]}
SPACE: dict[str, Any] = {"fast": {"low": 3, "high": 20}, "slow": {"low": 21, "high": 90}}
SEARCH = {"method": "random", "sets": 40, "generation": 10, "objectives": ["sharpe", "-max_drawdown"]}


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BarStore:
    filled = BarStore(tmp_path_factory.mktemp("bars"))
    ether = wavy_bars(5_000, seed=9)
    values = (ether.ts_ns, ether.open, ether.high, ether.low, ether.close, ether.volume)
    for bars in (wavy_bars(5_000), Bars("ETH-USD", ether.granularity, *values)):
        filled.write(bars, source="file:made-up")
    return filled


def driven(root: Path, store: BarStore, spec: SweepSpec) -> RunFolder:
    folder = prepare_run(root, store, spec, "a1")
    run = Run(folder, spec, folder.record(), read_market(store, spec, folder.record()), spec.parameter_sets())
    state = Reporter(folder)
    plan = plan_of(run, state)
    compute_here(work_of(run), plan, state.block)
    finish(run, state, plan)
    return folder


def spec_of(kind: str, root: Path) -> SweepSpec:
    if kind == "portfolio":
        rotation = {"strategy": "momentum_rotation", "grid": {"lookback": [5, 20, 60], "every": [6, 24]}}
        products = {"product_ids": ["BTC-USD", "ETH-USD"], "granularity": "ONE_HOUR"}
        return parse_spec({**products, "grids": [rotation]})
    if kind == "own":
        hostile = GOOD + "\n# </script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>\n"
        name = load(read(written(root, hostile))).name
        return make_spec(grids=[{"strategy": name, "grid": {"fast": [3, 5, 8], "slow": [13, 21, 34]}}])
    changes: dict[str, dict[str, Any]] = {
        "sweep": {"grids": [{"strategy": "sma_cross", "grid": SMA}], "costs": {"fee_bps": 2}},
        "search": {"grids": [{"strategy": "sma_cross", "grid": SPACE}], "search": SEARCH},
        "one set": {"grids": [{"strategy": "sma_cross", "grid": {"fast": [5], "slow": [21]}}]},
        "few bars": {"start": "2024-01-01T00:00", "end": "2024-01-01T09:00"},
        "no fill": {"grids": [{"strategy": "sma_cross", "grid": {"slow": [9_000]}}]},
    }
    return make_spec(**changes[kind])


@pytest.mark.parametrize("kind", ["sweep", "search", "portfolio", "own", "one set", "few bars", "no fill"])
def test_every_chart_is_drawn_and_nothing_complains_or_is_loaded(
    tab: Tab, store: BarStore, tmp_path: Path, kind: str
) -> None:
    folder = driven(tmp_path / "runs", store, spec_of(kind, tmp_path))
    for width, dark in ((1400, False), (500, True)):
        tab.complaints.clear()
        tab.requests.clear()
        tab.open(folder.report_file, width=width, dark=dark)
        tab.value("everything()")
        tab.until("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")
        assert tab.complaints == []
        assert [url[:80] for url in tab.requests if not url.startswith(("file:", "data:"))] == []
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("'broken' in window") is False
        assert tab.value("[...document.querySelectorAll('.plot')].filter((p) => !p.clientHeight).length") == 0
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(15, 17, 21)"


def choose(select: str, value: str) -> str:
    """JavaScript that chooses an option as a user does."""
    return (
        f"(() => {{ const s = document.getElementById('{select}'); s.value = '{value}'; "
        "s.dispatchEvent(new Event('change')); })()"
    )


def test_its_controls_do_what_they_say(tab: Tab, store: BarStore, tmp_path: Path) -> None:
    tab.open(driven(tmp_path / "runs", store, spec_of("sweep", tmp_path)).report_file)
    tab.complaints.clear()
    tab.value("everything()")
    note = "document.getElementById('candle-note').textContent"
    assert "One candle is one bar" not in tab.value(note)
    coarse = tab.value("document.getElementById('candle-plot').data[0].x.length")
    assert 100 < coarse < 700
    tab.value("document.querySelector('[data-part=\"0\"]').click()")
    tab.until(f"{note}.includes('One candle is one bar')")
    tab.value("document.querySelector('[data-part=\"1\"]').click()")
    tab.until(f"!{note}.includes('One candle is one bar')")
    # A stretch drawn with the mouse is shown in finer candles, and a double click shows everything again.
    tab.value("document.getElementById('candle-plot').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = tab.value("document.querySelector('#candle-plot .nsewdrag').getBoundingClientRect().toJSON()")
    middle = box["y"] + box["height"] / 2
    tab.drag((box["x"] + 0.94 * box["width"], middle), (box["x"] + 0.98 * box["width"], middle))
    tab.until(f"{note}.includes('One candle is one bar')")
    # On a busy machine two clicks are not always quick enough to be a double one.
    tab.until(f"!{note}.includes('One candle is one bar')", lambda: tab.double_click((box["x"] + 99, middle)))
    tab.value("document.querySelector('[data-scale=\"log\"]').click()")
    tab.until("document.getElementById('equity-plot').layout.yaxis.type === 'log'")
    before = tab.value("document.getElementById('equity-plot').data[1].y.at(-1)")
    tab.value(
        "(() => { const s = document.getElementById('set'); s.value = '3'; s.dispatchEvent(new Event('change')); })()"
    )
    tab.until(f"document.getElementById('equity-plot').data[1].y.at(-1) !== {before}")
    # Sorted by a click: falling, then rising.
    column = "[...document.querySelectorAll('.board tbody tr')].map((r) => +r.cells[2].dataset.value)"
    head = "document.querySelectorAll('.board thead tr:last-child th')[2].click()"
    tab.value(head)
    rising = tab.value(column)
    assert rising == sorted(rising)
    tab.value(head)
    assert tab.value(column) == rising[::-1]
    tab.value("document.getElementById('more').click()")
    hidden = "[...document.querySelectorAll('.board tbody tr')].filter((r) => !r.offsetHeight).length"
    assert tab.value(hidden) == 0
    for mode in ("median", "best", "slice"):
        tab.value(choose("heat-mode", mode))
        assert "plateau" in tab.value("document.getElementById('heat-note').textContent")
    tab.value("document.querySelector('[data-tip]').focus()")
    assert tab.value("document.getElementById('tip').textContent.length") > 20
    assert tab.complaints == []
