"""``desk strategy new | check | ls``: a strategy of your own in one file, tried before it is used; the shipped ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cluster.console import FAILED, CommandError, JsonOption, command, console, errors, print_json, print_table
from conf.settings import load_settings

if TYPE_CHECKING:
    from strategies.base import AnyStrategy, ParameterInfo
    from strategies.model import Bars
    from strategies.panel import Panel
    from strategies.user_check import Report

strategy = typer.Typer(
    no_args_is_help=True,
    help="Strategies: your own from one file, and the shipped ones. A strategy file is code: it runs with the rights "
    "of whoever runs this command, and of the job.",
)

# From the beginning of a strategy to its first check.
_TEMPLATE: Final = '''"""{title}: long while the price is above its average and not overbought, until it falls below.

One file is one strategy: `Params`, `start` and `on_bar`. Try it with `desk strategy check {name}.py`, run it with
`desk sweep {name}.py --product BTC-USD --grid window=20:200:20 --grid overbought=70,80`.
Imports: strategies.*, numpy, numba, math, typing, pydantic. Functions are compiled by the desk and need no decorator.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from pydantic import Field

from strategies import base
from strategies.indicators import (
    RelativeStrength,
    RollingMean,
    relative_strength_start,
    relative_strength_step,
    rolling_mean_start,
    rolling_mean_step,
)


class Params(base.Params):
    """Each parameter is a number with a default and a range; grids and searches are checked against the range.

    Rules between parameters: BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("fast", "slow"),)
    """

    window: int = Field(50, ge=2, le=1_000, description="bars in the average")
    strength_window: int = Field(14, ge=2, le=200, description="changes of the close in the RSI")
    overbought: float = Field(75.0, ge=50.0, le=100.0, description="RSI above which no position is opened")


class State(NamedTuple):
    """All that is remembered from bar to bar: numbers, arrays made by `start`, and the states of indicators.

    Every field keeps its kind: what begins as 0.0 never becomes 0.
    """

    average: RollingMean
    strength: RelativeStrength
    held: float


def start(vector):
    """The state before the first bar. `vector` holds the parameters as floats, in the order of Params."""
    return State(rolling_mean_start(int(vector[0])), relative_strength_start(int(vector[1])), 0.0)


def on_bar(vector, state, bar):
    """(state, target) after a bar, which has open, high, low, close and volume.

    The target is the wanted fraction of equity, -1 (short) to 1, and nan (no position) while warming up. The order is
    filled at the next bar's open. Stops and sizes are rules that any strategy takes: --grid stop_loss=0.02,0.05
    """
    average, mean = rolling_mean_step(state.average, bar.close)
    strength, rsi = relative_strength_step(state.strength, bar.close)
    held = state.held
    if bar.close < mean:
        held = 0.0
    elif bar.close > mean and rsi < vector[2]:
        held = 1.0
    # Indicators are nan until their window is full, and so is the target then.
    warming_up = math.isnan(mean) or math.isnan(rsi)
    if warming_up:
        held = 0.0
    return State(average, strength, held), math.nan if warming_up else held
'''


# The same for a strategy over several products.
_SECTION_TEMPLATE: Final = '''"""{title}: hold the products that rose most over a window, look again every so many bars.

One file is one strategy: `Params`, `start` and `on_bars`. Try it with `desk strategy check {name}.py`, run it with
`desk sweep {name}.py --product BTC-USD,ETH-USD,SOL-USD --grid lookback=24:240:24 --grid top=1,2`.
Imports: strategies.*, numpy, numba, math, typing, pydantic. Functions are compiled by the desk and need no decorator.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from pydantic import Field

from strategies import base

# How many products it is for, and the parameters that count products: none may exceed the number there are.
PRODUCTS_MIN = 2
PRODUCTS_MAX = 1_000
COUNTS = ("top",)


class Params(base.Params):
    """Each parameter is a number with a default and a range; grids and searches are checked against the range.

    Rules between parameters: BELOW: ClassVar[tuple[tuple[str, str], ...]] = (("fast", "slow"),)
    """

    lookback: int = Field(48, ge=1, le=5_000, description="bars back to the close that the rise is measured from")
    every: int = Field(24, ge=1, le=5_000, description="bars from one look to the next")
    top: int = Field(1, ge=1, le=1_000, description="how many products are held")


class State(NamedTuple):
    """All that is remembered from bar to bar: numbers, arrays made by `start`, and the states of indicators.

    `closes` is a ring of the last closes, one row a bar, one column a product. Every field keeps its kind.
    """

    closes: np.ndarray
    weights: np.ndarray
    position: int
    seen: int


def start(vector, products):
    """The state before the first bar. `vector` holds the parameters as floats, in the order of Params."""
    return State(np.full((int(vector[0]) + 1, products), np.nan), np.full(products, np.nan), 0, 0)


def on_bars(vector, state, step):
    """(state, weights) after a time's bars: step has open, high, low, close and volume, one number a product.

    They are nan where a product has no bar then. A weight is an order for the next bar: the wanted fraction of equity
    in that product, -1 (short) to 1. nan is no order: what is held stays. All products share one cash.
    Stops and sizes are rules that any strategy takes: --grid stop_loss=0.02,0.05
    """
    closes, weights = state.closes, state.weights
    rows, products = closes.shape
    for q in range(products):
        closes[state.position, q] = step.close[q]
        weights[q] = math.nan
    seen = state.seen + 1
    if seen >= rows and (seen - rows) % int(vector[1]) == 0:
        oldest = (state.position + 1) % rows
        rises = step.close / closes[oldest] - 1.0
        for q in range(products):
            weights[q] = 0.0
        for _ in range(int(vector[2])):
            best = -1
            for q in range(products):
                if not math.isnan(rises[q]) and (best < 0 or rises[q] > rises[best]):
                    best = q
            if best >= 0:
                weights[best] = 1.0 / vector[2]
                rises[best] = math.nan
    return State(closes, weights, (state.position + 1) % rows, seen), weights
'''


@strategy.command("new")
@command
def new(
    name: str = typer.Argument(..., help="The strategy's name: a-z, 0-9 and _, a letter first."),
    folder: Path = typer.Option(Path(), "--dir", help="The folder it is written into, which must exist."),
    cross_section: bool = typer.Option(False, "--cross-section", help="One over several products with one cash."),
    as_json: bool = JsonOption,
) -> None:
    """Write a commented strategy to begin with. Never overwrites anything."""
    from strategies.user_file import SUFFIX, checked_name

    plain = checked_name(name.removesuffix(SUFFIX), name)
    path = folder / f"{plain}{SUFFIX}"
    text = (_SECTION_TEMPLATE if cross_section else _TEMPLATE).format(
        title=plain.replace("_", " ").capitalize(), name=plain
    )
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(f"{path} is there already; nothing was written", field="name", value=name) from None
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror}", field="dir", value=str(folder)) from None
    if as_json:
        print_json({"written": path})
    else:
        console.print(f"written: {path}\ntry it:  desk strategy check {path}", highlight=False, markup=False)


@strategy.command("check")
@command
def check(
    file: Path = typer.Argument(..., help="The strategy file (.py)."),
    product: list[str] = typer.Option(
        [],
        "--product",
        "--products",
        "-p",
        help="Try it on these stored bars; else on made-up ones. Several times, or with commas, for several products.",
    ),
    granularity: str = typer.Option("ONE_HOUR", "--granularity", "-g", help="ONE_MINUTE … ONE_DAY, with --product."),
    cpu_max_s: float = typer.Option(60.0, "--cpu-max", min=1.0, max=3_600.0, help="Seconds of CPU it may take in all."),
    as_json: bool = JsonOption,
) -> None:
    """Compile a strategy file and try it: plain against compiled to the last bit, twice the same, targets in range, and
    no look ahead, whatever later bars are changed into. Exit code 1 where something is wrong.

    A strategy file is code. It is run here, in a process of its own but with your rights: check no file you have not
    read."""
    from strategies.user_check import check_apart

    bars = _stored_bars(product, granularity) if product else None
    report = check_apart(file, bars, cpu_max_s=cpu_max_s)
    if as_json:
        print_json({**dataclasses.asdict(report), "ok": report.ok})
    else:
        _print_report(report)
    if not report.ok:
        raise typer.Exit(FAILED)


@strategy.command("ls")
@command
def ls(as_json: bool = JsonOption) -> None:
    """The shipped strategies of both kinds with their parameters, and the rules every strategy takes."""
    from strategies.base import RULES, own_parameters
    from strategies.registry import CROSS_SECTIONS, STRATEGIES

    shipped: tuple[AnyStrategy, ...] = (*STRATEGIES.values(), *CROSS_SECTIONS.values())
    if as_json:
        described = [
            {
                "name": one.name,
                "kind": one.kind,
                "title": one.title,
                "parameters": [dataclasses.asdict(info) for info in own_parameters(one)],
                "below": [list(pair) for pair in one.params.BELOW],
            }
            for one in shipped
        ]
        print_json({"strategies": described, "rules": [dataclasses.asdict(info) for info in RULES]})
        return
    rows = [row for one in shipped for row in _rows(one.name, one.kind, own_parameters(one))]
    rows += _rows("(every one)", "", RULES)
    columns = ["strategy", "kind", "parameter", "default>", "lowest>", "highest>", "meaning"]
    print_table("strategies", columns, rows, "(every one): rules any strategy takes, your own as well; 0 is off")


def users_strategy(path: Path) -> AnyStrategy:
    """A user's strategy, tried in a process of its own first, then loaded; raises ``StrategyFileError``.

    Warnings go to stderr. What is loaded is what was tried: a file that changes in between is refused.
    """
    from strategies.user_check import check_apart
    from strategies.user_file import load, read

    file = read(path)
    report = check_apart(path, quick=True)
    if not report.ok:
        raise report.first_error()
    if report.sha256 != file.sha256:
        raise CommandError(f"{path} was changed while it was tried; run the command again", field="strategy")
    for finding in report.findings:
        errors.print(f"{path.name}, line {finding.line}: {finding.rule}", highlight=False, markup=False)
    return load(file)


def named_strategies(content: Any, folder: Path) -> Any:
    """A specification in which each ``strategy: ./file.py`` (relative to ``folder``) has become its strategy's name."""
    if isinstance(content, dict):
        return {
            key: users_strategy(folder / value).name if key == "strategy" and is_file_name(value)
            else named_strategies(value, folder)
            for key, value in content.items()
        }  # fmt: skip
    return [named_strategies(part, folder) for part in content] if isinstance(content, list) else content


def is_file_name(text: object) -> bool:
    """Whether a strategy is given as a file rather than as a name."""
    return isinstance(text, str) and text.endswith(".py")


def _stored_bars(products: list[str], granularity: str) -> Bars | Panel:
    """The last stored bars of a product, or the panel of several."""
    from cluster.market_data import BarStore
    from strategies.model import Granularity
    from strategies.panel import panel_of
    from strategies.user_check import BARS_MAX

    if granularity not in set(Granularity):
        raise CommandError(f"granularity: {granularity!r} is none of {', '.join(Granularity)}", field="granularity")
    store = BarStore(load_settings().bars_path)
    names = [name for text in products for name in text.split(",")]
    series = [store.read(name, Granularity(granularity)) for name in names]
    if len(series) == 1:
        return series[0].between(max(0, len(series[0]) - BARS_MAX), len(series[0]))
    panel = panel_of(series)
    return panel.between(max(0, len(panel) - BARS_MAX), len(panel))


def _print_report(report: Report) -> None:
    rows = [[finding.severity, finding.line or "", finding.rule, finding.text] for finding in report.findings]
    if rows:
        print_table(report.file, ["", "line>", "what", "there"], rows)
    if not report.ok:
        return
    speed = f"{report.evaluations_per_s / 1e6:,.0f} million bars a second" if report.evaluations_per_s else "unmeasured"
    warm_up = "all" if report.warm_up_bars is None else report.warm_up_bars
    tried = f"{report.bars} bars" + (f" of {report.products} products" if report.kind == "cross section" else "")
    lines = [
        f"{report.file}: fit to run as {report.strategy}",
        f"  {report.parameter_sets} parameter sets x {tried}: compiled like plain, to the last bit; {speed}",
        f"  {report.cuts_tried} changed futures: no look ahead; warm-up {warm_up} bars with the defaults",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)


def _rows(name: str, kind: str, table: tuple[ParameterInfo, ...] | list[ParameterInfo]) -> list[list[Any]]:
    return [
        [
            name if not i else "",
            kind if not i else "",
            one.name,
            f"{one.default:g}",
            f"{one.low:g}",
            f"{one.high:g}",
            one.description,
        ]
        for i, one in enumerate(table)
    ]
