"""Which block of parameter sets is computed next: cut as the sweep goes, by what the blocks before have cost.

Nothing is known of a grid's cost before it runs, and a block costs less than its sets one by one, because sets that
share an indicator share its table. So the first block of a grid is small, the next ones are as large as the measured
seconds allow, and the last ones are small again, so that no worker waits long for another. The plan is kept nowhere:
what is done is told by the parts in the run folder, and the final table is the same however the sets were cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.run_folder import Block
from strategies.model import Float64Array
from strategies.nearness import steps
from strategies.registry import find

ParameterSets = Sequence[tuple[str, Float64Array]]

PROBE_SETS: Final = 4
# How much larger than the largest measured one a block may be: its cost is a guess.
GROWTH_MAX: Final = 8
# What is left is shared among the workers in so many blocks each, so blocks shrink towards the end.
BLOCKS_PER_WORKER: Final = 3
# A block that is lost with its worker is computed again, and the progress is told block by block.
BLOCK_SECONDS_MAX: Final = 4.0
BLOCK_SECONDS_MIN: Final = 0.25
BLOCKS_MAX: Final = 5_000
# What a trial costs the driver, whose loop handles one after the other: measured, bench_distributed prints it.
TRIAL_COST_S: Final = 0.02
# With many workers the driver would be the limit, so blocks are longer: it is to be busy for at most this part.
DRIVER_SHARE_MAX: Final = 0.5
# Tables that a block's sets share cost the same for few sets as for many: they may be this part of a block.
FIXED_SHARE_MAX: Final = 0.05
# A block of so many times fewer sets has too few of the tables to tell what they cost a larger one.
FEW_TABLES: Final = 16
# A cut may move by so much to where few tables are shared. The longest is twice the shortest, so that the end of a
# whole square of windows, of 2**k sets, lies between; ends of squares of 2**(k - 4) sets are nearly as good and nearer.
SHORTER: Final = 0.65
LONGER: Final = 1.35
NEARLY: Final = 4


class Source(Protocol):
    """What a sweep's loop asks for blocks: a plan over grids, or a search that thinks of sets as it goes."""

    def next(self) -> Block | None:
        """The next block to compute; None where nothing can be begun before another block is done, or all are begun."""

    def rows(self, block: Block) -> Float64Array | None:
        """The block's sets float64[m, k]; None where they are those of ``Work.sets``, which every worker has."""

    def done(self, block: Block, seconds: float) -> None:
        """``block`` was computed, which took so long."""

    def lost(self, block: Block) -> None:
        """The worker of ``block`` was lost; it is to be computed by another."""

    @property
    def finished(self) -> bool:
        """Whether every block is done."""


class GridPlan:
    """The blocks of grids, each set once. ``finished_blocks`` are left out; ``workers`` share what is left."""

    def __init__(self, sets: ParameterSets, finished_blocks: Iterable[Block] = (), workers: int = 1) -> None:
        self.workers = workers
        self._grids: list[_Grid] = []
        first = 0
        for number, (strategy, matrix) in enumerate(sets):
            self._grids.append(_Grid(number, strategy, first, len(matrix), steps(find(strategy), matrix)))
            first += len(matrix)
        for block in finished_blocks:
            for grid in self._grids:
                grid.remove(block.start, block.stop)
        self._open: dict[int, Block] = {}

    def next(self) -> Block | None:
        """The next block to compute; None where all are begun."""
        waiting = [grid for grid in self._grids if grid.left]
        if not waiting:
            return None
        probing = {block.grid for block in self._open.values()}
        unknown = [grid for grid in waiting if grid.set_cost_s is None]
        known = [grid for grid in waiting if grid.set_cost_s is not None]
        fresh = [grid for grid in unknown if grid.number not in probing]
        grid = (fresh or known or unknown)[0]
        block = grid.cut(self._size(grid))
        self._open[block.start] = block
        return block

    def done(self, block: Block, seconds: float) -> None:
        """``block`` was computed in so many seconds, which tells what the next blocks of its grid cost."""
        self._open.pop(block.start, None)
        if seconds > 0:  # else its part was there already, which says nothing of its cost
            self._grids[block.grid].measured(block.stop - block.start, seconds)

    def lost(self, block: Block) -> None:
        """``block`` has to be computed by another worker."""
        if self._open.pop(block.start, None) is not None:
            self._grids[block.grid].add(block.start, block.stop)

    @property
    def finished(self) -> bool:
        """Whether every set is done."""
        return not self._open and not any(grid.left for grid in self._grids)

    def rows(self, block: Block) -> None:
        """A worker has the sets of a grid already."""
        return None

    @property
    def left(self) -> int:
        """How many sets are not begun."""
        return sum(grid.left for grid in self._grids)

    @property
    def all_known(self) -> bool:
        """Whether the cost of every grid of which something is left is known."""
        return all(grid.set_cost_s is not None for grid in self._grids if grid.left)

    @property
    def left_s(self) -> float:
        """Seconds of one worker that the sets not begun yet will take; NaN while no cost is known."""
        if not self.left:
            return 0.0
        known = [grid for grid in self._grids if grid.set_cost_s is not None]
        if not known:
            return math.nan
        # A grid whose first block is still under way is taken to cost what the others do.
        mean_s = sum(grid.set_cost_s or 0.0 for grid in known) / len(known)
        return sum(grid.left * (mean_s if grid.set_cost_s is None else grid.set_cost_s) for grid in self._grids)

    @property
    def set_cost_s(self) -> dict[int, float]:
        """What a set of each grid costs, as measured so far."""
        return {grid.number: grid.set_cost_s for grid in self._grids if grid.set_cost_s is not None}

    def _size(self, grid: _Grid) -> int:
        if grid.set_cost_s is None:
            return PROBE_SETS
        if not grid.split:
            # One block tells nothing of what its sets share: without a second, larger one all would stay as small.
            return GROWTH_MAX * grid.largest
        seconds = block_seconds(self.left_s, self.workers, grid.fixed_s)
        wanted = max(seconds - grid.fixed_s, 0.0) / max(grid.further_set_s, 1e-9)
        return max(1, int(min(wanted, GROWTH_MAX * grid.largest)))


def block_seconds(left_s: float, workers: int, fixed_s: float = 0.0) -> float:
    """How long the next block should take, where ``left_s`` seconds of work are left for ``workers`` workers.

    ``fixed_s`` of it are paid for any number of sets.
    """
    for_driver_s = max(BLOCK_SECONDS_MIN, workers * TRIAL_COST_S / DRIVER_SHARE_MAX)
    for_tables_s = fixed_s / FIXED_SHARE_MAX
    # Each block is a file; and a worker that is four times slower than the others should not have one of hours.
    most_s = max(BLOCK_SECONDS_MAX, 2 * for_driver_s, for_tables_s, left_s / BLOCKS_MAX)
    # Sharing tables is not worth a worker without a block, unless its block would be mostly tables.
    least_s = max(for_driver_s, 3 * fixed_s, min(for_tables_s, left_s / workers))
    return min(most_s, max(least_s, left_s / (BLOCKS_PER_WORKER * workers)))


@dataclass
class _Grid:
    """One grid: which of its sets nobody has begun, and what a set of it costs."""

    number: int
    strategy: str
    first: int
    count: int
    steps: NDArray[np.int8]
    set_cost_s: float | None = None
    largest: int = 0
    fixed_s: float = 0.0
    split: bool = False
    _seconds: dict[int, float] = field(default_factory=dict)
    _gaps: list[tuple[int, int]] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        if self.count:
            self._gaps = [(self.first, self.first + self.count)]
            self.left = self.count

    def cut(self, size: int) -> Block:
        """Take about ``size`` sets from the first gap, up to where the fewest windows are shared with the next."""
        start, end = self._gaps[0]
        stop = self._seam(start, size, end)
        self._gaps[0:1] = [(stop, end)] if stop < end else []
        self.left -= stop - start
        return Block(strategy=self.strategy, grid=self.number, start=start, stop=stop)

    def _seam(self, start: int, size: int, end: int) -> int:
        if end - start <= LONGER * size:
            return end
        low, high = start + max(1, math.ceil(SHORTER * size)), start + max(1, int(LONGER * size))
        steps_here = self.steps[low - self.first : high - self.first + 1]
        places = np.flatnonzero(steps_here >= steps_here.max() - NEARLY)
        return low + int(places[np.argmin(np.abs(places + low - start - size))])

    def measured(self, size: int, seconds: float) -> None:
        # The cost of a set falls with the size of its block; a small block says little about a large one.
        if size * 2 >= self.largest:
            self.set_cost_s = seconds / size
            self._split(size, seconds)
        self.largest = max(self.largest, size)

    @property
    def further_set_s(self) -> float:
        """What one more set costs a block."""
        return max((self.set_cost_s or 0.0) - self.fixed_s / max(self.largest, 1), 0.0)

    def _split(self, size: int, seconds: float) -> None:
        """What of a block's seconds is paid for any number of sets: a line through a small block and a large one.

        Far smaller blocks have few tables and say nothing of a large one's; of the others the least is believed,
        because a block on a slow worker looks as if it were all tables.
        """
        told = [
            few_s - few * (seconds - few_s) / (size - few)
            for few, few_s in self._seconds.items()
            if 2 * few <= size <= FEW_TABLES * few
        ]
        self.split = self.split or bool(told)
        if told:
            self.fixed_s = min(max(0.0, min(told)), seconds)
        self._seconds[size] = min(seconds, self._seconds.get(size, seconds))

    def remove(self, start: int, stop: int) -> None:
        """The sets from ``start`` to ``stop`` are done."""
        gaps = []
        for low, high in self._gaps:
            gaps += [(low, min(high, start)), (max(low, stop), high)]
        self._gaps = [(low, high) for low, high in gaps if low < high]
        self.left = sum(high - low for low, high in self._gaps)

    def add(self, start: int, stop: int) -> None:
        """The sets from ``start`` to ``stop`` have to be begun again."""
        self._gaps = sorted([*self._gaps, (start, stop)])
        self.left += stop - start
