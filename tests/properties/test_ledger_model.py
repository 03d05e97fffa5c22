"""Generated sequences of everything that can happen to a desk, on a plain model and on the real server at once."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from cluster.ledger import Ledger
from conf.settings import Settings
from tests.properties.ledger_pair import LedgerPair
from tests.properties.ledger_steps import STEPS, THEMES, Step, crash, set_theme
from tests.servers import Kind, Server, binary, redis_secrets

T = TypeVar("T")
DRAWN: Final = 16
"""Numbers drawn for each generated step."""
WALKED_ON: Final = 40
"""Steps after which a walk starts on an empty desk again."""


MET_BY_A_WALK: Final = {
    "ACCEPTED", "RATE_LIMIT", "MSG_RATE", "INSUFFICIENT_FUNDS", "FAT_FINGER", "OTR", "REDUCE_ONLY_WOULD_INCREASE",
    "check", "crash", "fill APPLIED PARTIALLY_FILLED", "fill APPLIED FILLED", "fill DUPLICATE FILLED",
    "cancel CANCELLED", "cancel REQUESTED", "cancel ALREADY", "release True", "release False", "limits lowered",
    "limits raised", "tightened HALTED", "approve APPLIED", "approve DONE", "approve NOT_FOUND",
    "approve STILL_BREACHED", "latched OVERFILL", "amend ACCEPTED", "amend REPEATED", "amend AMEND_PENDING",
    "amend AMEND_NOT_OPEN", "amend AMEND_TYPE", "amended OPEN", "amended PARTIALLY_FILLED", "amended FILLED",
    "amendment refused OPEN", "amendment refused PARTIALLY_FILLED", "adopted True",
    "adopted False", "adjusted", "break True", "environment True", "NOT_ARMED", "STOP_PRICE", "EXPIRE_IN_PAST",
}  # fmt: skip
MET_BY_A_LONG_WALK: Final = MET_BY_A_WALK | {
    "SELF_TRADE", "MARKET_CLOSED", "latched BAD_BOOK", "BAD_BOOK", "CONCENTRATION", "TRADING_HALTED",
    "NOTIONAL_EXCEEDS_MAX", "QTY_EXCEEDS_MAX", "MAX_GROSS", "MAX_NET", "MAX_POSITION", "MAX_OPEN_ORDERS",
    "MAX_OPEN_VALUE", "LEVERAGE", "DAILY_ORDERS", "DAILY_TURNOVER", "PRICE_COLLAR", "SHORT_NOT_ALLOWED",
    "STALE_REFERENCE", "REDUCE_ONLY_MODE", "DUPLICATE_ORDER", "VOLATILITY_HALT", "MISSING_REFERENCE",
    "SYMBOL_NOT_ALLOWED", "STRATEGY_NOT_APPROVED", "REPEAT_EXECUTION", "OVERFILL", "DAILY_LOSS",
    "DRAWDOWN", "REJECT_STORM", "fill APPLIED CANCELLED", "tightened REDUCING",
    "tightened CANCEL_ALL", "approve CHANGED", "approve EXPIRED", "approve SAME_PERSON", "latched COOLDOWN",
    "latched DAILY_LOSS", "latched DRAWDOWN", "latched REJECT_STORM", "latched REPEAT_EXECUTION",
    "latched STALE_REFERENCE", "latched VENUE_UNHEALTHY", "DAILY_LOSS reached", "DAILY_LOSS not yet",
    "DAILY_LOSS soft level reached", "latched INVARIANT", "amendment refused FILLED", "amend AMEND_BELOW_FILLED",
    "amend NOT_ARMED",
    "amend INSUFFICIENT_FUNDS", "amend RATE_LIMIT", "amend MSG_RATE", "amend TRADING_HALTED", "amend SELF_TRADE",
    "break False", "environment False", "amended CANCELLED without", "latched RECON_BREAK",
}  # fmt: skip


class Generated:
    """Chances that Hypothesis has generated: 0 is the first of the options, towards which it makes failures smaller.

    All of a step's are drawn before it begins and used in turn: what a step asks for depends on the ledger, which
    depends on the clock, and Hypothesis must be asked for the same each time.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        """Use these, from the first again when they are used up."""
        self._numbers = itertools.cycle(numbers)

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return options[next(self._numbers) % len(options)]

    def between(self, least: int, most: int) -> int:
        """A whole number, both ends among them."""
        return least + next(self._numbers) % (most - least + 1)

    def some(self, options: Sequence[T]) -> list[T]:
        """One to three different ones."""
        chosen = [self.pick(range(len(options))) for _ in range(self.between(1, 3))]
        return [options[index] for index in dict.fromkeys(chosen)]


@dataclass
class Seeded:
    """Chances of a generator of random numbers: the same every time."""

    chance: random.Random

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""
        return self.chance.choice(options)

    def between(self, least: int, most: int) -> int:
        """A whole number, both ends among them."""
        return self.chance.randint(least, most)

    def some(self, options: Sequence[T]) -> list[T]:
        """One to three different ones."""
        return self.chance.sample(options, min(len(options), self.chance.randint(1, 3)))


class LedgerMachine(RuleBasedStateMachine):
    """Each rule is one of ``STEPS``; after each of them everything is compared."""

    ledger: Ledger
    runner: asyncio.Runner
    server: Server
    steps: ClassVar[int] = 0
    outcomes: ClassVar[Counter[str]] = Counter()

    @initialize()
    def open(self) -> None:
        """A desk of its own for each sequence."""
        self.pair = LedgerPair(self.ledger, self.runner, self.outcomes, self._restart)

    @invariant()
    def the_ledger_is_what_the_model_is(self) -> None:
        """Every figure of every book, states, limits, orders, resting orders, the outbox, the audit and its chain."""
        type(self).steps += 1
        self.pair.compare()

    def teardown(self) -> None:
        """In the end the audit alone leads to the same books."""
        if hasattr(self, "pair"):
            self.pair.prove_by_replay()

    def _restart(self) -> None:
        self.server.kill()
        self.server.start()

    @classmethod
    def walk(cls, steps: int, seed: int) -> None:
        """So many steps without Hypothesis, drawn by their weights."""
        chance = Seeded(random.Random(seed))
        machine = cls()
        for number in range(steps):
            if number % WALKED_ON == 0:
                machine.teardown()
                machine.open()
                # Each desk of a walk begins with another theme, so that none is left to chance.
                set_theme(machine.pair, chance, THEMES[number // WALKED_ON % len(THEMES)])
            (step,) = chance.chance.choices([*STEPS], [*STEPS.values()])
            step(machine.pair, chance)
            machine.the_ledger_is_what_the_model_is()
        machine.teardown()


def _as_rule(step: Step) -> Any:
    def taken(self: LedgerMachine, numbers: list[int]) -> None:
        step(self.pair, Generated(numbers))

    taken.__name__ = step.__name__
    return rule(numbers=st.lists(st.integers(0, 9_999), min_size=DRAWN, max_size=DRAWN))(taken)


# A crash takes as long as twenty other steps, and shrinking would take its time anew with every try: walks have it.
for _step in [step for step in STEPS if step is not crash]:
    setattr(LedgerMachine, _step.__name__, _as_rule(_step))


@pytest.fixture
def run_on(tmp_path: Path) -> Iterator[Any]:
    """Lets something be done with the machine on a server: (kind, what) -> the machine's class with its counts."""
    with asyncio.Runner() as runner:

        def run(kind: Kind, what: Callable[[type[LedgerMachine]], None]) -> type[LedgerMachine]:
            server = Server(binary(kind), tmp_path)
            with server.running() as redis_settings:
                ledger = Ledger.connect(Settings(state_dir=tmp_path, redis=redis_settings), redis_secrets())
                machine = _machine_on(ledger, runner, server)
                try:
                    what(machine)
                finally:
                    runner.run(ledger.close())
                print(f"{kind}: {machine.steps} steps compared; {sum(machine.outcomes.values())} outcomes:")
                print(", ".join(f"{what} {n}" for what, n in sorted(machine.outcomes.items())))
                return machine

        yield run


def _machine_on(ledger: Ledger, runner: asyncio.Runner, server: Server) -> type[LedgerMachine]:
    """A class of its own, because the counts are the class's."""

    class Machine(LedgerMachine):
        pass

    Machine.ledger, Machine.runner, Machine.server = ledger, runner, server
    Machine.outcomes, Machine.steps = Counter(), 0
    return Machine


def sequences(number: int, steps: int) -> Callable[[type[LedgerMachine]], None]:
    """Generated by Hypothesis."""
    chosen = settings(
        max_examples=number,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    return lambda machine: run_state_machine_as_test(machine, settings=chosen)


def walk(steps: int, seed: int = 3) -> Callable[[type[LedgerMachine]], None]:
    """Drawn by their weights, the same every time."""
    return lambda machine: machine.walk(steps, seed)


# Patient: Hypothesis may take five minutes to make a failure smaller.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "number"), [("valkey", 50), ("redis", 15)])
def test_model_and_server_agree_after_every_step(run_on: Any, kind: Kind, number: int) -> None:
    machine = run_on(kind, sequences(number, 20))
    assert machine.steps >= number * 12


@pytest.mark.parametrize(("kind", "steps"), [("valkey", 1_100), ("redis", 300)])
def test_a_long_walk_meets_every_rule_and_every_end(run_on: Any, kind: Kind, steps: int) -> None:
    """Generated sequences are short and may miss something; a seeded walk is the same every time."""
    machine = run_on(kind, walk(steps))
    assert machine.steps == steps
    # A run that never met these has proven nothing about them.
    missed = MET_BY_A_WALK - set(machine.outcomes) if kind == "valkey" else set()
    assert missed == set()


@pytest.mark.nightly
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
def test_model_and_server_agree_for_fifty_thousand_steps(run_on: Any, kind: Kind) -> None:
    seed = random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}")
    walked = run_on(kind, walk(20_000, seed))
    assert walked.steps == 20_000
    assert MET_BY_A_LONG_WALK - set(walked.outcomes) == set()
    machine = run_on(kind, sequences(150, 50))
    assert walked.steps + machine.steps >= 25_000
