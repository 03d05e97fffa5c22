"""A search as a state machine: which sets to run next, given the results so far. No Ray, no files, no clock.

A generation is asked from the samplers, a batch a grid; with rungs (successive halving) its best go on to a longer part
of the history, batch by batch, and only then comes the next generation. Told the same results it says the same, so a
driver that was killed repeats the study from the results on disk and goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from jobs.samplers import Archive, make_sampler
from jobs.space import Space
from strategies.base import SpecError
from strategies.metrics import METRICS
from strategies.model import Float64Array, Int64Array
from strategies.registry import find
from strategies.search_spec import Search
from strategies.spec import SweepSpec

Ending = Literal["budget", "patience", "target", "time_budget", "exhausted"]

# The first rung must be long enough for a strategy to trade at all.
RUNG_BARS_MIN: Final = 32


@dataclass(frozen=True)
class Batch:
    """Sets of one grid to be run on the first ``bar_count`` bars: ``matrix`` float64[m, k], ids int64[m] in the study.

    ``first_row`` counts all rows of all batches before this one.
    """

    generation: int
    rung: int
    grid: int
    strategy: str
    set_ids: Int64Array
    matrix: Float64Array
    bar_count: int
    first_row: int


@dataclass
class _Set:
    """What is known of one set: where it came from, and its last run (rung, row, metrics, losses, violation)."""

    grid: int
    generation: int
    row: Float64Array
    key: bytes
    rung: int = -1
    last_row: int = -1
    losses: Float64Array | None = None
    violation: float = 0.0


class Study:
    """One search over ``bar_count`` bars; ``extensions`` are sets that were added to its budget later."""

    def __init__(self, spec: SweepSpec, bar_count: int, extensions: Sequence[int] = ()) -> None:
        """Raises ``SpecError`` where the first rung would be too short."""
        if spec.search is None:
            raise AssertionError("a study needs a search")
        self.search: Search = spec.search
        self.bar_counts = rung_bars(self.search, bar_count)
        self._stages = (self.search.sets, *extensions)
        self._goals, self._limits = self.search.goals, [one for one in self.search.limits if one.of_metrics]
        rules = [one for one in self.search.limits if not one.of_metrics]
        self._spaces = [Space(find(grid.strategy), grid.grid, rules) for grid in spec.grids]
        self._archive = Archive(len(self._goals))
        self._generation_sets = self.search.generation_sets(len(self._spaces))
        population = max(1, self._generation_sets // len(self._spaces))
        self._samplers = [
            make_sampler(self.search.method, space, self._archive, (spec.seed, position), population)
            for position, space in enumerate(self._spaces)
        ]
        self._sets: list[_Set] = []
        self._rows = 0
        self.evaluations = 0
        self._generation = -1
        self._stage = -1
        self._open: tuple[Batch, ...] = ()
        self._promoted: list[int] = []
        self._rung = 0
        self.history: list[dict[str, Any]] = []
        self.endings: list[Ending] = []
        self._front: list[int] = []
        self._next_stage()

    @property
    def generation(self) -> int:
        """The generation that was asked last, from 0; -1 before the first."""
        return self._generation

    @property
    def between_generations(self) -> bool:
        """Whether ``next`` would begin a new generation (or end the study)."""
        return not self._open and not self._promoted

    @property
    def stage(self) -> int:
        """0 while the first budget is spent, then the number of the extension."""
        return self._stage

    @property
    def set_count(self) -> int:
        """Sets asked for so far."""
        return len(self._sets)

    @property
    def planned(self) -> int:
        """Sets there will be at most, by what is known now."""
        return len(self._sets) + self._left + sum(self._stages[self._stage + 1 :])

    @property
    def planned_runs(self) -> int:
        """Runs of sets there will be at most: with rungs, a set is run once on each that it reaches."""
        eta = self.search.eta or 3
        runs, left = self._rows, self.planned - len(self._sets)
        alive = sum(len(batch.set_ids) for batch in self._open)
        for _ in range(self._rung + 1, len(self.bar_counts)):
            alive = math.ceil(alive / eta)
            runs += alive
        alive = len(self._promoted)
        for _ in range(self._rung, len(self.bar_counts)):
            runs += alive
            alive = math.ceil(alive / eta)
        while left > 0:
            alive = min(self._generation_sets, left)
            left -= alive
            for _ in self.bar_counts:
                runs += alive
                alive = math.ceil(alive / eta)
        return runs

    @property
    def over(self) -> bool:
        """Whether every stage has ended."""
        return len(self.endings) == len(self._stages)

    @property
    def begun(self) -> bool:
        """Whether the present stage has had a generation, and has sets left."""
        return 0 < self._left < self._stages[self._stage]

    def next(self) -> tuple[Batch, ...]:
        """What to run now; its results are due before the next call. Empty: the study is over, see ``endings``."""
        if self._open:
            raise AssertionError("the results of the last batches were not told")
        if self._promoted:
            ids = sorted(self._promoted)
            self._promoted = []
        else:
            ids = self._new_generation()
        self._open = self._batches(ids)
        self._rows += sum(len(batch.set_ids) for batch in self._open)
        self.evaluations += sum(len(batch.set_ids) * batch.bar_count for batch in self._open)
        return self._open

    def tell(self, results: Sequence[Float64Array]) -> None:
        """The metrics float64[m, len(METRICS)] of each batch ``next`` gave, in its order."""
        told: list[int] = []
        for batch, metrics in zip(self._open, results, strict=True):
            if metrics.shape != (len(batch.set_ids), len(METRICS)):
                raise AssertionError(f"expected {len(batch.set_ids)} rows of metrics, was {metrics.shape}")
            self._store(batch, metrics)
            told += batch.set_ids.tolist()
        self._open = ()
        if self._rung + 1 < len(self.bar_counts):
            self._rung += 1
            survivors = math.ceil(len(told) / (self.search.eta or 3))
            self._promoted = [told[i] for i in self._standing(told, survivors)[:survivors]]
            return
        self._end_generation(told)

    def stop(self, ending: Ending) -> None:
        """End the current stage here, between two generations: what a clock says is decided by who has one."""
        self._end_stage(ending)

    def columns(self) -> dict[str, NDArray[Any]]:
        """One value a set, by set id: grid, generation, rung, history (fraction), feasible, pareto, last_row."""
        fractions = [self.bar_counts[one.rung] / self.bar_counts[-1] for one in self._sets]
        front = set(self._front)
        return {
            "grid": np.array([one.grid for one in self._sets], dtype=np.int64),
            "generation": np.array([one.generation for one in self._sets], dtype=np.int64),
            "rung": np.array([one.rung for one in self._sets], dtype=np.int64),
            "history": np.array(fractions, dtype=np.float64),
            "feasible": np.array([one.violation == 0.0 for one in self._sets], dtype=np.bool_),
            "pareto": np.array([set_id in front for set_id in range(len(self._sets))], dtype=np.bool_),
            "last_row": np.array([one.last_row for one in self._sets], dtype=np.int64),
        }

    def matrices(self) -> list[tuple[str, Float64Array, Int64Array]]:
        """(strategy, float64[m, k], set ids int64[m]) for each grid of the specification."""
        found = []
        for position, space in enumerate(self._spaces):
            ids = [set_id for set_id, one in enumerate(self._sets) if one.grid == position]
            rows = np.array([self._sets[set_id].row for set_id in ids]).reshape(len(ids), len(space.names))
            found.append((space.strategy.name, rows, np.array(ids, dtype=np.int64)))
        return found

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the search, without the sets themselves."""
        return {
            "method": self.search.method,
            "objectives": list(self.search.objectives),
            "constraints": list(self.search.constraints),
            "sets": len(self._sets),
            "runs": self._rows,
            "full_history_sets": sum(one.rung == len(self.bar_counts) - 1 for one in self._sets),
            "rung_bars": list(self.bar_counts),
            "budgets": list(self._stages),
            "endings": list(self.endings),
            "generations": self.history,
            "pareto_front": [
                {"set_id": set_id, "values": self._values(set_id)} for set_id in sorted(self._front, key=self._by_value)
            ],
        }

    def _next_stage(self) -> None:
        self._stage += 1
        self._left = self._stages[self._stage]
        self._since_better = 0
        self._stage_best = math.inf
        for sampler, share in zip(self._samplers, _shares(self._left, len(self._samplers)), strict=True):
            sampler.plan(share)

    def _end_stage(self, ending: Ending) -> None:
        self.endings.append(ending)
        self._left = 0
        if self._stage + 1 < len(self._stages):
            self._next_stage()

    def _new_generation(self) -> list[int]:
        while len(self.endings) < len(self._stages):
            ending = self._reached()
            if ending is None:
                ids = self._ask(min(self._generation_sets, self._left))
                if ids:
                    return ids
                ending = "exhausted"
            self._end_stage(ending)
        return []

    def _reached(self) -> Ending | None:
        target = self.search.target
        if target is not None and self._stage_best <= float(self._goals[0].loss(np.array(target))):
            return "target"
        if self.search.patience is not None and self._since_better >= self.search.patience:
            return "patience"
        return None if self._left else "budget"

    def _ask(self, count: int) -> list[int]:
        first = len(self._sets)
        asked = []
        for sampler, share in zip(self._samplers, _shares(count, len(self._samplers)), strict=True):
            asked.append(sampler.ask(share))
        # What one space has no more sets for is for the others to fill.
        for position, sampler in enumerate(self._samplers):
            missing = count - sum(len(keys) for _, keys in asked)
            if missing and self.search.method != "cmaes":
                more = sampler.ask(missing)
                points = np.concatenate([asked[position][0], more[0]])
                asked[position] = (points, asked[position][1] + more[1])
        for position, (points, keys) in enumerate(asked):
            rows = self._spaces[position].rows(points)
            for row, key in zip(rows, keys, strict=True):
                self._sets.append(_Set(position, self._generation + 1, row, key))
        self._left -= len(self._sets) - first
        if len(self._sets) > first:
            self._generation += 1
            self._rung = 0
        return list(range(first, len(self._sets)))

    def _batches(self, ids: Sequence[int]) -> tuple[Batch, ...]:
        batches = []
        row = self._rows
        for position, space in enumerate(self._spaces):
            own = [set_id for set_id in ids if self._sets[set_id].grid == position]
            if own:
                matrix = np.array([self._sets[set_id].row for set_id in own])
                bars = self.bar_counts[self._rung]
                name = space.strategy.name
                set_ids = np.array(own, dtype=np.int64)
                batches.append(Batch(self._generation, self._rung, position, name, set_ids, matrix, bars, row))
                row += len(own)
        return tuple(batches)

    def _store(self, batch: Batch, metrics: Float64Array) -> None:
        full = batch.rung == len(self.bar_counts) - 1
        columns = {name: metrics[:, position] for position, name in enumerate(METRICS)}
        names = self._spaces[batch.grid].names
        parameters = {name: batch.matrix[:, position] for position, name in enumerate(names)}
        violation = np.zeros(len(metrics))
        for limit in self._limits:
            # On a part of the history only what cannot get better again counts.
            if full or limit.only_hardens:
                violation += limit.excess(parameters | columns)
        losses = np.stack([goal.loss(columns[goal.metric]) for goal in self._goals], axis=1)
        for position, set_id in enumerate(batch.set_ids.tolist()):
            one = self._sets[set_id]
            one.rung, one.last_row = batch.rung, batch.first_row + position
            one.losses, one.violation = losses[position], float(violation[position])
            self._archive.store(one.key, losses[position], float(violation[position]))

    def _standing(self, ids: Sequence[int], wanted: int) -> list[int]:
        losses = np.array([self._sets[set_id].losses for set_id in ids])
        violations = np.array([self._sets[set_id].violation for set_id in ids])
        return standing(losses, violations, wanted)

    def _end_generation(self, told: Sequence[int]) -> None:
        for sampler in self._samplers:
            sampler.learn()
        good = [set_id for set_id in told if self._sets[set_id].violation == 0.0]
        good = [set_id for set_id in good if np.isfinite(self._losses(set_id)).all()]
        before = {tuple(self._losses(set_id)) for set_id in self._front}
        candidates = self._front + good
        if candidates:
            losses = np.array([self._losses(set_id) for set_id in candidates])
            self._front = [candidates[i] for i in front_of(losses).tolist()]
        # With one objective, the first of equals is the best.
        if len(self._goals) == 1:
            self._front = self._front[:1]
        after = {tuple(self._losses(set_id)) for set_id in self._front}
        better = bool(after - before)
        self._since_better = 0 if better else self._since_better + 1
        self._stage_best = min([self._stage_best, *(float(self._losses(set_id)[0]) for set_id in good)])
        best = min(self._front, key=self._by_value, default=None)
        self.history.append(
            {
                "generation": self._generation,
                "sets": sum(one.generation == self._generation for one in self._sets[-self._generation_sets :]),
                "full_history_sets": len(told),
                "best_set_id": best,
                "best": None if best is None else self._values(best),
                "front": len(self._front),
                "better": better,
            }
        )

    def _losses(self, set_id: int) -> Float64Array:
        losses = self._sets[set_id].losses
        if losses is None:
            raise AssertionError(f"set {set_id} has no result")
        return losses

    def _by_value(self, set_id: int) -> tuple[float, int]:
        return float(self._losses(set_id)[0]), set_id

    def _values(self, set_id: int) -> dict[str, float]:
        losses = self._losses(set_id)
        return {goal.metric: float(goal.loss(losses[i])) for i, goal in enumerate(self._goals)}


def check_search(spec: SweepSpec, bar_count: int) -> None:
    """Raise ``SpecError`` where no set keeps the rules between parameters, or the first rung would be too short."""
    if spec.search is None:
        raise AssertionError("nothing to check without a search")
    rung_bars(spec.search, bar_count)
    rules = [one for one in spec.search.limits if not one.of_metrics]
    for position, grid in enumerate(spec.grids):
        space = Space(find(grid.strategy), grid.grid, rules)
        if not space.fresh(np.random.default_rng(0), 1, lambda _: False)[1]:
            value = [one.text for one in rules]
            raise SpecError("search.constraints", value, f"rules that some set of grids[{position}] keeps")


def rung_bars(search: Search, bar_count: int) -> tuple[int, ...]:
    """How many bars, from the first, each rung is run on; raises ``SpecError`` where the first has too few."""
    counts = tuple(round(bar_count * fraction) for fraction in search.fractions)
    if len(counts) > 1 and counts[0] < RUNG_BARS_MIN:
        rule = f"rungs of at least {RUNG_BARS_MIN} bars: fewer rungs, a smaller eta or more than {bar_count} bars"
        raise SpecError("search.rungs", len(counts), rule)
    return counts


def front_of(losses: Float64Array) -> Int64Array:
    """The rows of float64[n, objectives] that no other row is better than in one and as good in all, rising."""
    front: list[int] = []
    held = np.empty((0, losses.shape[1]))
    # In this order nothing that comes later can be better than what is held.
    for row in np.lexsort(losses.T[::-1]).tolist():
        one = losses[row]
        if not ((held <= one).all(axis=1) & (held < one).any(axis=1)).any():
            front.append(row)
            held = np.concatenate([held, one[np.newaxis]])
    return np.array(sorted(front), dtype=np.int64)


def standing(losses: Float64Array, violations: Float64Array, wanted: int) -> list[int]:
    """Rows from best to worst, at least the first ``wanted`` of them: ``losses`` float64[n, objectives].

    What breaks nothing comes first, by Pareto fronts, and within one those in empty surroundings (NSGA-II: K. Deb and
    others, 2002); then what breaks a limit, by how far; last what is not a number. Equal ones go by row.
    """
    undefined = ~np.isfinite(losses).all(axis=1)
    allowed = np.flatnonzero(~undefined & (violations == 0.0))
    order: list[int] = []
    if losses.shape[1] == 1:
        order = allowed[np.argsort(losses[allowed, 0], kind="stable")].tolist()
    else:
        while len(allowed) and len(order) < wanted:
            front = front_of(losses[allowed])
            order += allowed[front[_by_distance(losses[allowed[front]])]].tolist()
            allowed = np.delete(allowed, front)
        order += allowed.tolist()
    broken = np.flatnonzero(~undefined & (violations > 0.0))
    order += broken[np.argsort(violations[broken], kind="stable")].tolist()
    return order + np.flatnonzero(undefined).tolist()


def _by_distance(losses: Float64Array) -> Int64Array:
    """Rows of a front by the distance between their neighbours, the ends of each objective first."""
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
        distance[order[[0, -1]]] = math.inf
    return np.argsort(-distance, kind="stable").astype(np.int64)


def _shares(count: int, parts: int) -> list[int]:
    return [count * (i + 1) // parts - count * i // parts for i in range(parts)]
