"""The exchange simulator's rate limits: a second's worth of requests in each bucket, refilled as time passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.exchange_limits import RateLimits


def passed(limits: RateLimits, who: str, now_s: float, private: bool = True) -> bool:
    allowance = limits.take(who, private, now_s)
    return allowance is None or allowance.passes


def test_a_rate_of_nothing_limits_nothing() -> None:
    limits = RateLimits()
    assert limits.take("a", True, 0.0) is None
    assert all(passed(limits, "a", 0.0) for _ in range(1_000))


def test_a_burst_of_a_seconds_worth_passes_and_the_rest_waits() -> None:
    limits = RateLimits(3, 1)
    assert [passed(limits, "a", 0.0) for _ in range(5)] == [True] * 3 + [False] * 2
    assert [passed(limits, "a", 0.34), passed(limits, "a", 0.35)] == [True, False]
    assert [passed(limits, "b", 0.35), passed(limits, "b", 0.35, private=False)] == [True, True]


def test_headers_say_what_is_left_and_when_it_is_whole_again() -> None:
    limits = RateLimits(10, 0)
    first = limits.take("a", True, 0.0)
    assert first is not None
    assert first.headers == {"x-ratelimit-limit": "10", "x-ratelimit-remaining": "9", "x-ratelimit-reset": "1"}


def test_many_strangers_do_not_fill_the_memory() -> None:
    limits = RateLimits(1, 1)
    for number in range(20_000):
        limits.take(str(number), False, 0.0)
    assert len(limits._buckets) == 10_000


@given(steps=st.lists(st.floats(0, 3), max_size=200), rate=st.integers(1, 50))
def test_never_more_than_the_rate_and_a_burst(steps: list[float], rate: int) -> None:
    limits = RateLimits(rate)
    now_s, count = 0.0, 0
    for step in steps:
        now_s += step / rate
        count += passed(limits, "a", now_s)
    assert count <= rate * now_s + rate + 1e-6


@pytest.mark.parametrize("rate", [0.5, 1])
def test_a_slow_rate_still_lets_one_pass(rate: float) -> None:
    limits = RateLimits(rate)
    assert passed(limits, "a", 0.0)
    assert not passed(limits, "a", 0.5 / rate)
    assert passed(limits, "a", 2 / rate)
