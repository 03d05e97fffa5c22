"""Which sets of a space to try next: at random, by Latin hypercube, by Optuna's TPE, by CMA-ES.

A sampler is asked for a number of new sets and learns from the archive once their results are in. Everything follows
from the seed and the order of these calls: no clock, no worker, no address in memory. So a study is repeated by asking
again, and nothing a sampler holds is ever written to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from jobs.space import Dimension, Space
from strategies.model import Float64Array
from strategies.search_spec import Method

if TYPE_CHECKING:
    import optuna

# How often a population may be drawn again, or a design filled up, for sets that break a rule or are known.
PROPOSALS_MAX: Final = 32
# A proposal of TPE costs some 10 ms, so after a few that cannot be used one in their neighbourhood takes the place.
TPE_PROPOSALS_MAX: Final = 4
# With more levels than this TPE sees a continuum: its densities over levels cost many times as much.
TPE_LEVELS_MAX: Final = 32
# A population without a new set says nothing new; after so many the search begins again somewhere else.
REPEATS_MAX: Final = 4
RESTARTS_MAX: Final = 8
SIGMA: Final = 0.25

Asked = tuple[Float64Array, list[bytes]]


class Archive:
    """What is known of each set of a study: that it was asked for, or its losses and by how much it breaks limits."""

    def __init__(self, objectives: int) -> None:
        self._results: dict[bytes, tuple[Float64Array, float] | None] = {}
        self.worst = np.zeros(objectives)
        self._any = False

    def knows(self, key: bytes) -> bool:
        """Whether the set was asked for already."""
        return key in self._results

    def expect(self, key: bytes) -> None:
        """The set was asked for."""
        self._results[key] = None

    def store(self, key: bytes, losses: Float64Array, violation: float) -> None:
        """The set's result: losses float64[objectives], NaN where undefined; violation 0 where nothing is broken."""
        self._results[key] = (losses, violation)
        if np.isfinite(losses).all():
            self.worst = np.maximum(self.worst, losses) if self._any else losses.copy()
            self._any = True

    def result(self, key: bytes) -> tuple[Float64Array, float] | None:
        """Losses without NaN (the worst known instead) and the violation, at least 1 then; None while there is none."""
        found = self._results.get(key)
        if found is None:
            return None
        losses, violation = found
        absent = np.isnan(losses)
        if not absent.any():
            return found
        return np.where(absent, self.worst, losses), max(violation, 1.0)


class Sampler(Protocol):
    """One method on one space."""

    def plan(self, count: int) -> None:
        """So many sets will be asked for from now on, in all."""

    def ask(self, count: int) -> Asked:
        """Points float64[n, d] of new and different sets with their keys; n < ``count`` where there are no more."""

    def learn(self) -> None:
        """The results of everything asked for are in the archive."""


def make_sampler(method: Method, space: Space, archive: Archive, seed: tuple[int, ...], population: int) -> Sampler:
    """The sampler of a method; ``population`` is how many sets of this space a generation has."""
    if method == "random" or not space.dimensions:
        return RandomSampler(space, archive, seed)
    if method in {"lhs", "asha"}:
        return LatinHypercubeSampler(space, archive, seed)
    if method == "tpe":
        return TpeSampler(space, archive, seed)
    return CmaEsSampler(space, archive, seed, population)


class RandomSampler:
    """Independent uniform draws, drawn again where they break a rule or are known."""

    def __init__(self, space: Space, archive: Archive, seed: tuple[int, ...]) -> None:
        self._space, self._archive = space, archive
        self._random = np.random.default_rng(seed)

    def plan(self, count: int) -> None:
        """Nothing to plan."""

    def ask(self, count: int) -> Asked:
        """See ``Sampler``."""
        return _expected(self._archive, self._space.fresh(self._random, count, self._archive.knows))

    def learn(self) -> None:
        """Nothing to learn."""


class LatinHypercubeSampler:
    """Designs with one point in each of n slices of every dimension, n being all the sets planned.

    Source: M. D. McKay, R. J. Beckman and W. J. Conover, Technometrics 21, 1979. Points that break a rule or are known
    are left out, and a smaller design fills up what they leave.
    """

    def __init__(self, space: Space, archive: Archive, seed: tuple[int, ...]) -> None:
        self._space, self._archive = space, archive
        self._random = np.random.default_rng(seed)
        self._design = np.empty((0, len(space.dimensions)))
        self._left = 0

    def plan(self, count: int) -> None:
        """A new design of ``count`` points."""
        self._left = count
        self._draw(count)

    def ask(self, count: int) -> Asked:
        """See ``Sampler``."""
        points, keys = self._pop(count)
        for _ in range(PROPOSALS_MAX):
            missing = count - len(points)
            if not missing:
                break
            # What is left of the plan and not of the design is to be filled up at once, so that it is spread.
            self._draw(max(missing, self._left - len(points)))
            more, more_keys = self._pop(missing)
            points, keys = np.concatenate([points, more]), keys + more_keys
        missing = count - len(points)
        if missing:
            more, more_keys = _expected(self._archive, self._space.fresh(self._random, missing, self._archive.knows))
            points, keys = np.concatenate([points, more]), keys + more_keys
        self._left = max(0, self._left - len(points))
        return points, keys

    def learn(self) -> None:
        """Nothing to learn."""

    def _draw(self, count: int) -> None:
        from scipy.stats import qmc

        self._design = qmc.LatinHypercube(len(self._space.dimensions), rng=self._random).random(count)

    def _pop(self, count: int) -> Asked:
        rows = self._space.rows(self._design)
        allowed = self._space.allowed(rows)
        taken: list[int] = []
        keys: list[bytes] = []
        position = 0
        while position < len(self._design) and len(taken) < count:
            key = self._space.key(rows[position])
            if allowed[position] and not self._archive.knows(key):
                self._archive.expect(key)
                taken.append(position)
                keys.append(key)
            position += 1
        points = self._design[taken]
        self._design = self._design[position:]
        return points, keys


class TpeSampler:
    """Optuna's tree-structured Parzen estimator, multivariate, asked for whole generations with a constant liar.

    Several objectives make it MOTPE. A limit on metrics is an Optuna constraint; what breaks a rule between parameters
    is drawn again.
    """

    def __init__(self, space: Space, archive: Archive, seed: tuple[int, ...]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._archive = space, archive
        self._random = np.random.default_rng((*seed, 1))
        start = int(np.random.default_rng(seed).integers(2**31))
        directions = [optuna.study.StudyDirection.MINIMIZE] * len(archive.worst)
        sampler = optuna.samplers.TPESampler(seed=start, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(directions=directions, sampler=sampler)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            one.name: optuna.distributions.IntDistribution(0, levels - 1)
            if (levels := _few_levels(one))
            else optuna.distributions.FloatDistribution(0.0, 1.0)
            for one in space.dimensions
        }
        self._open: list[tuple[optuna.Trial, bytes]] = []

    def plan(self, count: int) -> None:
        """Nothing to plan."""

    def ask(self, count: int) -> Asked:
        """See ``Sampler``."""
        points: list[Float64Array] = []
        keys: list[bytes] = []
        for _ in range(count):
            asked = self._proposal()
            if asked is None:
                break
            point, key, trial = asked
            self._archive.expect(key)
            self._open.append((trial, key))
            points.append(point)
            keys.append(key)
        return np.array(points).reshape(len(points), len(self._space.dimensions)), keys

    def learn(self) -> None:
        """Tell Optuna the results, in the order asked."""
        for trial, key in self._open:
            found = self._archive.result(key)
            if found is None:
                raise AssertionError(f"no result of {key!r}, which was asked for")
            trial.set_constraint("violation", found[1])
            self._study.tell(trial, found[0].tolist())
        self._open = []

    def _proposal(self) -> tuple[Float64Array, bytes, optuna.Trial] | None:
        point = np.empty(0)
        for _ in range(TPE_PROPOSALS_MAX):
            trial = self._study.ask(self._distributions)
            point = self._point(trial.params)
            row = self._space.rows(point[np.newaxis])
            key = self._space.key(row[0])
            if self._space.allowed(row)[0] and not self._archive.knows(key):
                return point, key, trial
            self._forget(trial)
        return self._near(point)

    def _near(self, point: Float64Array) -> tuple[Float64Array, bytes, optuna.Trial] | None:
        """A new set, near ``point`` if one is there, told to Optuna as if proposed by it; None where none is left."""
        points, keys = self._space.fresh(self._random, 1, self._archive.knows, around=point)
        if not keys:
            return None
        values: dict[str, Any] = {}
        for one, unit in zip(self._space.dimensions, points[0].tolist(), strict=True):
            levels = _few_levels(one)
            values[one.name] = min(int(unit * levels), levels - 1) if levels else unit
        self._study.enqueue_trial(values)
        trial = self._study.ask(self._distributions)
        return self._point(trial.params), keys[0], trial

    def _forget(self, trial: optuna.Trial) -> None:
        import optuna

        self._study.tell(trial, state=optuna.trial.TrialState.FAIL)

    def _point(self, params: dict[str, Any]) -> Float64Array:
        return np.array(
            [
                (params[one.name] + 0.5) / levels if (levels := _few_levels(one)) else params[one.name]
                for one in self._space.dimensions
            ]
        )


class CmaEsSampler:
    """Covariance matrix adaptation, with margins where there are levels, begun again elsewhere when it has settled.

    Sources: N. Hansen, "The CMA Evolution Strategy: A Tutorial", 2016; R. Hamano and others, "CMA-ES with Margin",
    GECCO 2022. A population may hold sets that are known or break a rule; they are not run, but told with their known
    rank or as the worst. It needs ranks only: what breaks a limit comes after what does not, by how far.
    """

    def __init__(self, space: Space, archive: Archive, seed: tuple[int, ...], population: int) -> None:
        self._space, self._archive = space, archive
        self._seed, self._population = seed, max(4, population)
        self._random = np.random.default_rng((*seed, 1))
        self._restarts = 0
        self._repeats = 0
        self._members: list[tuple[Any, Float64Array, bytes]] = []  # as CMA wants it told, the point, its key
        self._queue: list[int] = []
        self._begin()

    def plan(self, count: int) -> None:
        """Nothing to plan."""

    def ask(self, count: int) -> Asked:
        """See ``Sampler``; at most what is left of the population, since the next one waits for its results."""
        taken: list[int] = []
        for _ in range(REPEATS_MAX * RESTARTS_MAX):
            if self._queue or self._waiting():
                break
            self._draw()
            if not self._queue and not self._waiting():
                self._close()
        if not self._queue and not self._waiting():
            return _expected(self._archive, self._space.fresh(self._random, count, self._archive.knows))
        while self._queue and len(taken) < count:
            taken.append(self._queue.pop(0))
        for member in taken:
            self._archive.expect(self._members[member][2])
        points = np.array([self._members[member][1] for member in taken])
        return points.reshape(len(taken), len(self._space.dimensions)), [self._members[member][2] for member in taken]

    def learn(self) -> None:
        """Tell the population where all its results are in."""
        if self._members and not self._queue and not self._waiting():
            self._close()

    def _waiting(self) -> bool:
        return any(
            self._archive.knows(key) and self._archive.result(key) is None
            for index, (_, _, key) in enumerate(self._members)
            if index not in self._queue
        )

    def _draw(self) -> None:
        """Draw a population; what is new and allowed in it goes into the queue."""
        self._members, self._queue = [], []
        keys: set[bytes] = set()
        for index in range(self._population):
            for _ in range(PROPOSALS_MAX):
                point, told = self._propose()
                row = self._space.rows(point[np.newaxis])
                if self._space.allowed(row)[0]:
                    break
            key = self._space.key(row[0])
            self._members.append((told, point, key))
            if self._space.allowed(row)[0] and key not in keys and not self._archive.knows(key):
                self._queue.append(index)
            keys.add(key)
        self._repeats = 0 if self._queue else self._repeats + 1

    def _close(self) -> None:
        """Tell the ranks of the population, and begin again where nothing new is to be had from it."""
        order = sorted(range(len(self._members)), key=lambda index: (self._standing(index), index))
        ranks = {index: rank for rank, index in enumerate(order)}
        # Equal sets have equal ranks.
        first: dict[bytes, int] = {}
        for index in order:
            first.setdefault(self._members[index][2], ranks[index])
        self._cma.tell([(told, float(first[key])) for told, _, key in self._members])
        self._members = []
        if self._cma.should_stop() or self._repeats >= REPEATS_MAX:
            self._restarts += 1
            self._begin()

    def _standing(self, index: int) -> tuple[int, float]:
        _, point, key = self._members[index]
        found = self._archive.result(key)
        if found is None:
            return 2, float(self._space.excess(self._space.rows(point[np.newaxis]))[0])
        losses, violation = found
        return (1, violation) if violation > 0.0 else (0, float(losses[0]))

    def _begin(self) -> None:
        import cmaes

        self._repeats = 0
        random = np.random.default_rng((*self._seed, 2, self._restarts))
        dimensions = self._space.dimensions
        counts = [0 if one.levels is None else len(one.levels) for one in dimensions]
        bounds = np.array([[0.5 / count, 1 - 0.5 / count] if count else [0.0, 1.0] for count in counts])
        steps = np.array([1.0 / count if count else 0.0 for count in counts])
        seed = int(random.integers(2**31))
        mean = np.full(len(dimensions), 0.5) if not self._restarts else random.uniform(0.1, 0.9, len(dimensions))
        mean = np.clip(mean, bounds[:, 0], bounds[:, 1])
        if any(counts):
            self._cma: Any = cmaes.CMAwM(mean, SIGMA, bounds, steps, seed=seed, population_size=self._population)
            self._propose: Callable[[], tuple[Float64Array, Any]] = self._propose_with_margin
        else:
            self._cma = cmaes.CMA(mean, SIGMA, bounds, seed=seed, population_size=self._population)
            self._propose = self._propose_plain

    def _propose_plain(self) -> tuple[Float64Array, Any]:
        point = self._cma.ask()
        return point, point

    def _propose_with_margin(self) -> tuple[Float64Array, Any]:
        point, told = self._cma.ask()
        return point, told


def _few_levels(dimension: Dimension) -> int:
    """How many levels the dimension has where these are few, else 0."""
    levels = 0 if dimension.levels is None else len(dimension.levels)
    return levels if levels <= TPE_LEVELS_MAX else 0


def _expected(archive: Archive, asked: Asked) -> Asked:
    for key in asked[1]:
        archive.expect(key)
    return asked
