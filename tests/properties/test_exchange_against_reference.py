"""The exchange simulator's engine and a plain reference, driven by the same generated steps, agree after each.

Orders of two portfolios and every configuration, amendments, cancels, pinned prices, time, product flags and restarts
(some from a snapshot). Compared are every order's state and fills, every balance and every hold; beside that the
invariants hold by themselves: nothing negative, nothing filled beyond its size, no book that crosses itself.

Two drivers: Hypothesis, which finds short sequences and makes them shorter, and long walks by seed, which get deep.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.exchange_book import SelfTrade
from cluster.exchange_records import FLAGS
from cluster.exchange_ticket import Kind
from strategies.model import Side
from tests.properties.exchange_pair import CENTRE, Pair

SEEDS = 24
STEPS = 120

products = st.sampled_from(sorted(CENTRE))
offsets = st.one_of(st.integers(-6, 6), st.integers(-400, 400))
distances = st.one_of(st.integers(-3, 12), st.integers(-150, 300))
sizes = st.one_of(st.integers(1, 1_000), st.integers(10**6, 5 * 10**8), st.just(10**8))


class AgainstReference(RuleBasedStateMachine):
    """Drives both; see the module."""

    @initialize(rule=st.sampled_from(list(SelfTrade)))
    def open(self, rule: SelfTrade) -> None:
        self.pair = Pair(rule)

    def teardown(self) -> None:
        if hasattr(self, "pair"):
            self.pair.end()

    @rule(
        product=products,
        side=st.sampled_from(list(Side)),
        kind=st.sampled_from(list(Kind)),
        size=sizes,
        distance=distances,
        stop_distance=distances,
        odd=st.integers(0, 11),
        post_only=st.booleans(),
        lasts_s=st.integers(1, 20),
        second=st.booleans(),
    )
    def place(
        self,
        product: str,
        side: Side,
        kind: Kind,
        size: int,
        distance: int,
        stop_distance: int,
        odd: int,
        post_only: bool,
        lasts_s: int,
        second: bool,
    ) -> None:
        self.pair.place(product, side, kind, size, distance, stop_distance, odd, post_only, lasts_s, second)

    @rule(product=products, cents=st.integers(100, 30_000_000), second=st.booleans())
    def spend(self, product: str, cents: int, second: bool) -> None:
        self.pair.spend(product, cents, second)

    @precondition(lambda self: self.pair.pairs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.pair.cancel(data.draw(st.integers(0, len(self.pair.pairs) - 1), label="order"))

    @precondition(lambda self: self.pair.live())
    @rule(data=st.data(), size=st.none() | sizes, moved=st.just(0) | offsets, stop_moved=st.none() | offsets)
    def amend(self, data: st.DataObject, size: int | None, moved: int, stop_moved: int | None) -> None:
        self.pair.amend(data.draw(st.sampled_from(self.pair.live()), label="order"), size, moved, stop_moved)

    @rule(product=products, offset=offsets)
    def push(self, product: str, offset: int) -> None:
        self.pair.push(product, offset)

    @rule(milliseconds=st.integers(0, 5_000))
    def wait(self, milliseconds: int) -> None:
        self.pair.wait(milliseconds)

    @rule(product=products, flag=st.sampled_from(FLAGS), offset=offsets)
    def close_while_the_price_moves(self, product: str, flag: str, offset: int) -> None:
        self.pair.set_flags(product, {flag})
        self.pair.push(product, offset)
        self.pair.set_flags(product, set())

    @rule(compact=st.booleans())
    def restart(self, compact: bool) -> None:
        self.pair.restart(compact)

    @invariant()
    def both_agree(self) -> None:
        if hasattr(self, "pair"):
            self.pair.check()


TestAgainstReference = AgainstReference.TestCase
TestAgainstReference.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def walk(pair: Pair, dice: random.Random, steps: int) -> None:
    """Take so many steps at random, most of them orders close to the price."""
    for _ in range(steps):
        product = dice.choice(sorted(CENTRE))
        step = dice.choices(
            ("place", "spend", "cancel", "amend", "push", "wait", "flags", "restart"), (50, 4, 6, 14, 12, 8, 5, 1)
        )[0]
        if step == "place":
            size = dice.choice((dice.randint(1, 1_000), 10**8, dice.randint(10**6, 3 * 10**8)))
            near, stop_near = (dice.choice((dice.randint(-4, 12), dice.randint(0, 150))) for _ in range(2))
            side, kind, odd = dice.choice(list(Side)), dice.choice(list(Kind)), dice.randint(0, 11)
            post_only, second = dice.random() < 0.3, dice.random() < 0.5
            pair.place(product, side, kind, size, near, stop_near, odd, post_only, dice.randint(1, 20), second)
        elif step == "spend":
            pair.spend(product, dice.randint(100, 20_000_000), dice.random() < 0.5)
        elif step == "cancel" and pair.pairs:
            pair.cancel(dice.randrange(len(pair.pairs)))
        elif step == "amend" and pair.live():
            size_to = dice.choice((None, 10**8, dice.randint(10**6, 3 * 10**8)))
            stop_moved = dice.choice((None, None, dice.randint(-20, 20)))
            pair.amend(dice.choice(pair.live()), size_to, dice.choice((0, dice.randint(-20, 20))), stop_moved)
        elif step == "push":
            pair.push(product, dice.choice((dice.randint(-10, 10), dice.randint(-200, 200))))
        elif step == "wait":
            pair.wait(dice.randint(0, 3_000))
        elif step == "flags":
            pair.set_flags(product, set(dice.sample(FLAGS, dice.choice((0, 0, 1)))))
        elif step == "restart":
            pair.restart(dice.random() < 0.5)
        pair.check()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_long_walk_finds_no_difference(seed: int) -> None:
    dice = random.Random(seed)
    pair = Pair(dice.choice(list(SelfTrade)))
    try:
        walk(pair, dice, STEPS)
    finally:
        pair.end()
    assert sum(count for what, count in pair.met.items() if what.endswith("accepted")) > STEPS // 8
