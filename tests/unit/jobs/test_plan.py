"""Blocks are cut by what the ones before have cost: each set once, whatever is lost, in as few blocks as is wise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.run_folder import Block
from jobs import plan as plans
from jobs.plan import GridPlan, block_seconds
from strategies.model import Float64Array
from strategies.nearness import places
from strategies.registry import find


def sets_of(sizes: Sequence[int]) -> list[tuple[str, Float64Array]]:
    return [("sma_cross", np.arange(3.0 * size).reshape(size, 3)) for size in sizes]


def drive(plan: GridPlan, cost_s: Callable[[Block], float]) -> list[tuple[Block, float]]:
    """The plan carried out by its workers in the order in which they come free: the blocks with their seconds."""
    free_s = [0.0] * plan.workers
    running: list[tuple[float, Block, float]] = []
    done = []
    while not plan.finished:
        while len(running) < plan.workers and (block := plan.next()) is not None:
            seconds = cost_s(block)
            running.append((min(free_s) + seconds, block, seconds))
        running.sort(key=lambda entry: entry[0])
        _, block, seconds = running.pop(0)
        plan.done(block, seconds)
        done.append((block, seconds))
    return done


def covers(blocks: Sequence[Block], count: int) -> bool:
    places = sorted((block.start, block.stop) for block in blocks)
    ends = [0, *(stop for _, stop in places)]
    return [start for start, _ in places] == ends[:-1] and ends[-1] == count


@pytest.mark.parametrize(
    ("sizes", "set_s", "workers", "blocks_max"),
    [
        ([1], 1e-3, 8, 1),
        ([1_000], 1e-3, 1, 8),  # a second of work
        ([100_000], 1e-3, 2, 50),  # 50 seconds for each: 4, 32, 256, 2,048 sets, then 4 seconds each, then shorter ones
        ([1_000_000], 1e-4, 2, 50),
        ([50, 1_000_000], 1e-4, 2, 60),
        ([1_000_000], 1.0, 1_000, 20_000),  # a thousand seconds for each of a thousand workers
    ],
)
def test_blocks_are_few_and_hold_every_set_once(sizes: list[int], set_s: float, workers: int, blocks_max: int) -> None:
    done = drive(GridPlan(sets_of(sizes), workers=workers), lambda block: set_s * (block.stop - block.start))
    assert covers([block for block, _ in done], sum(sizes))
    assert len(done) <= blocks_max


def test_the_first_block_of_every_grid_is_small_and_no_block_is_a_leap() -> None:
    done = drive(GridPlan(sets_of([10_000, 20_000])), lambda block: 1e-5 * (block.stop - block.start))
    for grid in (0, 1):
        sizes = [block.stop - block.start for block, _ in done if block.grid == grid]
        assert sizes[0] == plans.PROBE_SETS
        assert all(b <= 1.4 * plans.GROWTH_MAX * max(sizes[: i + 1]) for i, b in enumerate(sizes[1:]))


def test_a_block_takes_seconds_not_sets() -> None:
    """A grid whose sets cost a thousand times more is cut into blocks of about the same seconds."""
    done = drive(GridPlan(sets_of([20_000, 400]), workers=2), lambda block: (1e-3, 0.1)[block.grid] * _size(block))
    for grid in (0, 1):
        # What shares the cost of its table was measured small; the last ones are small on purpose.
        longest = max(seconds for block, seconds in done if block.grid == grid)
        assert 1.0 < longest <= 1.5 * plans.BLOCK_SECONDS_MAX


def test_a_table_that_sets_share_makes_blocks_larger_as_it_is_seen_to_be_shared() -> None:
    done = drive(GridPlan(sets_of([100_000]), workers=2), lambda block: 0.05 + 1e-5 * _size(block))
    sizes = [_size(block) for block, _ in done]
    assert max(sizes) > 1_000
    assert len(sizes) <= 25


def test_tables_that_cost_much_make_blocks_long_enough_to_share_them() -> None:
    """A plan that had measured one small block only cut all others as small: seconds of tables for each."""
    done = drive(GridPlan(sets_of([20_000]), workers=16), lambda block: 5.0 + 0.1 * _size(block))
    assert sum(seconds for _, seconds in done) < 1.3 * 0.1 * 20_000


def test_a_block_whose_part_was_there_already_says_nothing_of_the_cost() -> None:
    plan = GridPlan(sets_of([1_000]))
    first, second = plan.next(), plan.next()
    assert first is not None
    assert second is not None
    plan.done(first, 0.4)
    plan.done(second, 0.0)
    assert plan.set_cost_s == {0: 0.1}


def test_the_last_blocks_are_short_so_that_nobody_waits_long() -> None:
    done = drive(GridPlan(sets_of([40_000]), workers=4), lambda block: 1e-2 * _size(block))
    last = [seconds for block, seconds in sorted(done, key=lambda entry: entry[0].start)[-4:]]
    assert max(last) <= 1.0


def test_with_many_workers_blocks_are_as_long_as_the_driver_needs() -> None:
    for workers in (1, 10, 100, 1_000, 10_000):
        seconds = block_seconds(1e9, workers)
        # The driver hands out a block in TRIAL_COST_S; until the first worker is free again it has to serve all others.
        assert workers * plans.TRIAL_COST_S <= plans.DRIVER_SHARE_MAX * seconds
        assert block_seconds(0.0, workers) <= seconds


def test_what_is_finished_is_left_out_also_where_finished_blocks_overlap() -> None:
    finished = [
        Block(strategy="sma_cross", grid=0, start=start, stop=stop) for start, stop in ((10, 20), (15, 30), (95, 100))
    ]
    plan = GridPlan(sets_of([100, 10]), finished)
    assert plan.left == 85
    done = [block for block, _ in drive(plan, lambda block: 1e-3)]
    sets = sorted(itertools.chain.from_iterable(range(block.start, block.stop) for block in done))
    assert sets == [*range(10), *range(30, 95), *range(100, 110)]
    assert all(block.grid == (block.start >= 100) for block in done)


def test_blocks_share_windows() -> None:
    """Cut row by row, blocks of a wide grid needed nearly every window of its long side: half their time."""
    fast, slow, short = np.meshgrid(np.arange(1, 101.0), np.arange(110, 910.0), np.arange(2.0), indexing="ij")
    matrix = np.stack([fast.ravel(), slow.ravel(), short.ravel()], axis=1)
    matrix = matrix[np.argsort(places(find("sma_cross"), matrix), kind="stable")]

    def tables(block: Block) -> int:
        return sum(np.unique(matrix[block.start : block.stop, column]).size for column in (0, 1))

    done = drive(GridPlan([("sma_cross", matrix)], workers=2), lambda block: 3e-4 * (_size(block) + tables(block)))
    assert covers([block for block, _ in done], len(matrix))
    assert sum(tables(block) for block, _ in done) <= 0.04 * len(matrix)
    assert all(matrix[block.start, 2] == 0.0 for block, _ in done)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3_000), min_size=1, max_size=4),
    workers=st.integers(1, 9),
    set_s=st.floats(1e-6, 1.0),
    losses=st.lists(st.integers(0, 60), max_size=6),
    data=st.data(),
)
def test_every_set_is_done_once_whatever_is_lost_and_in_whatever_order(
    sizes: list[int], workers: int, set_s: float, losses: list[int], data: st.DataObject
) -> None:
    plan = GridPlan(sets_of(sizes), workers=workers)
    running: list[Block] = []
    done: list[Block] = []
    turn = 0
    while not plan.finished:
        while len(running) < workers and (block := plan.next()) is not None:
            running.append(block)
        block = running.pop(data.draw(st.integers(0, len(running) - 1)))
        turn += 1
        if turn in losses:
            plan.lost(block)
        else:
            plan.done(block, set_s * _size(block))
            done.append(block)
    assert plan.next() is None
    assert covers(done, sum(sizes))


def _size(block: Block) -> int:
    return block.stop - block.start
