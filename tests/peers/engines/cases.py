"""The files between our tests and a peer's process: bars, targets and settings in, equity and fills out, as .npz.

Read and written by both interpreters, so nothing but numpy is imported here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Answer = dict[str, Any]

BAR_COLUMNS: Final = ("open", "high", "low", "close", "volume")
FILL_COLUMNS: Final = ("fill_bar", "fill_side", "fill_price", "fill_quantity", "fill_fee")


@dataclass(frozen=True)
class Case:
    """What an engine is asked: bars of float64[n], what to hold after each decision, and the settings.

    ``wanted`` float64[n] is the target carried out on that very bar (at its open or its close as ``settings["timing"]``
    says), without NaN; ``position`` float64[n] is what our engine held at each close, for engines that are told
    quantities. ``settings`` has initial_cash, fee, slippage (fractions), timing, periods_per_year, and what one engine
    needs.
    """

    name: str
    ts_ns: NDArray[np.int64]
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats
    wanted: Floats
    position: Floats
    settings: dict[str, Any]

    @property
    def changes(self) -> NDArray[np.bool_]:
        """bool[n]: where ``wanted`` differs from the bar before; before the first bar it was 0."""
        return _changes(self.wanted)

    @property
    def same_close(self) -> bool:
        return bool(self.settings["timing"] == "same_close")

    @property
    def decided(self) -> Floats:
        """``wanted`` as of the bar that decided it: one bar earlier where orders are filled at the next open."""
        return self.wanted if self.same_close else np.concatenate([self.wanted[1:], self.wanted[-1:]])

    @property
    def decided_changes(self) -> NDArray[np.bool_]:
        """bool[n]: where ``decided`` differs from the bar before."""
        return _changes(self.decided)


def _changes(targets: Floats) -> NDArray[np.bool_]:
    changed = np.empty(len(targets), dtype=np.bool_)
    np.not_equal(targets, np.concatenate([[0.0], targets[:-1]]), out=changed)
    return changed


def write_case(folder: Path, case: Case) -> None:
    """Put ``<name>.case.npz`` into ``folder``."""
    arrays = {name: getattr(case, name) for name in ("ts_ns", *BAR_COLUMNS, "wanted", "position")}
    np.savez(folder / f"{case.name}.case.npz", settings=json.dumps(case.settings), **arrays)


def read_case(path: Path) -> Case:
    """The case in a file of ``write_case``."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in ("ts_ns", *BAR_COLUMNS, "wanted", "position")}
        settings = json.loads(str(file["settings"]))
    return Case(name=path.name.removesuffix(".case.npz"), settings=settings, **arrays)


def read_answer(folder: Path, engine: str, name: str) -> Answer:
    """What ``answer_all`` wrote: arrays, and plain floats for what has no dimension."""
    with np.load(folder / f"{name}.{engine}.npz") as file:
        return {key: file[key] if file[key].ndim else file[key].item() for key in file.files}


def answer_all(engine: str, answer: Callable[[Case], Answer]) -> None:
    """The main function of an engine's script: every case of the folder named on the command line."""
    folder = Path(sys.argv[1])
    for path in sorted(folder.glob("*.case.npz")):
        case = read_case(path)
        np.savez(folder / f"{case.name}.{engine}.npz", **answer(case))


def fill_columns(rows: list[tuple[int, float, float, float, float]]) -> Answer:
    """Fills given as (bar, side, price, quantity, fee) as the columns of an answer."""
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(FILL_COLUMNS))
    return {name: table[:, column] for column, name in enumerate(FILL_COLUMNS)}
