"""The ledger's exact arithmetic in Lua, where numbers are doubles, against Python's integers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strategies.model import LEDGER_INTEGER_MAX as MOST
from tests.servers import PASSWORD, valkey

SOURCE: Final = Path(__file__).resolve().parents[2] / "cluster" / "ledger_base.lua"
# In this order, because each uses those before it.
FUNCTIONS: Final = (
    "integer", "own_integer", "two_product", "mul_div", "mul_div_up", "value_up", "value_down", "ppm_up",
)  # fmt: skip
PROBE: Final = """#!lua name=tt_probe
local INTEGER_MAX = {most}
local EXACT_PRODUCT_MAX = 4503599627370496
local SPLIT = 134217729
{functions}
local function shown(n)
  return n and string.format('%.0f', n) or ''
end
redis.register_function('probe_mul_div', function(_, args)
  local quotient, rest = mul_div(tonumber(args[1]), tonumber(args[2]), tonumber(args[3]))
  return {{ shown(quotient), rest and 1 or 0 }}
end)
redis.register_function('probe_value_up', function(_, args)
  return shown(value_up(tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[4])))
end)
redis.register_function('probe_value_down', function(_, args)
  return shown(value_down(tonumber(args[1]), tonumber(args[2]), tonumber(args[3]), tonumber(args[4])))
end)
redis.register_function('probe_ppm_up', function(_, args)
  return shown(ppm_up(tonumber(args[1]), tonumber(args[2])))
end)
redis.register_function('probe_many', function(_, args)
  local shown_all = {{}}
  for i = 1, #args, 3 do
    shown_all[#shown_all + 1] = shown((mul_div(tonumber(args[i]), tonumber(args[i + 1]), tonumber(args[i + 2]))))
  end
  return shown_all
end)
redis.register_function('probe_integer', function(_, args)
  return shown(integer(args[1]))
end)
redis.register_function('probe_own_integer', function(_, args)
  return shown(own_integer(args[1]))
end)
"""

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Calls into a server that holds the functions as they stand in ledger_base.lua."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        client = redis.Redis(host="127.0.0.1", port=server.port, password=PASSWORD, decode_responses=True)
        source = SOURCE.read_text()
        assert "local SPLIT = 134217729\n" in source
        assert f"local INTEGER_MAX = {MOST}\n" in source
        functions = "\n".join(_function(source, name) for name in FUNCTIONS)
        client.function_load(PROBE.format(most=MOST, functions=functions))

        def called(name: str, *arguments: int | str) -> Any:
            return client.fcall(f"probe_{name}", 0, *map(str, arguments))

        yield called
        client.close()


def _function(source: str, name: str) -> str:
    start = source.index(f"local function {name}(")
    return source[start : source.index("\nend\n", start) + 5]


# Edges as often as anything else: powers of two and their neighbours, and the largest.
whole = st.one_of(
    st.integers(0, MOST),
    st.integers(0, 1000),
    st.builds(lambda power, off: max(0, min(MOST, 2**power + off)), st.integers(0, 51), st.integers(-2, 2)),
    st.integers(MOST - 5, MOST),
)
above_nothing = whole.map(lambda n: max(n, 1))


@given(a=whole, b=whole, d=above_nothing)
@example(a=MOST, b=MOST, d=MOST)
@example(a=MOST, b=MOST - 1, d=MOST)
@example(a=MOST, b=1, d=1)
@example(a=2**50, b=3, d=2)
@example(a=3, b=2**50, d=1)
@settings(max_examples=400, deadline=None)
def test_a_product_divided_is_exact_or_refused(call: Call, a: int, b: int, d: int) -> None:
    quotient, rest = divmod(a * b, d)
    shown, has_rest = call("mul_div", a, b, d)
    if shown == "":
        assert quotient >= MOST - 1
    else:
        assert (int(shown), bool(has_rest)) == (quotient, rest > 0)
        assert quotient <= MOST


def test_twenty_thousand_products_at_once_are_exact(call: Call) -> None:
    chance = random.Random(11)

    def drawn() -> int:
        return max(1, min(MOST, (1 << chance.randint(0, 51)) + chance.randint(-3, 3) * chance.randint(0, 1 << 40)))

    cases = [(drawn(), drawn(), drawn()) for _ in range(20_000)]
    replies = call("many", *(n for case in cases[:2_000] for n in case))
    for start in range(2_000, len(cases), 2_000):
        replies += call("many", *(n for case in cases[start : start + 2_000] for n in case))
    exact = [a * b // d for a, b, d in cases]
    wrong = [
        (case, shown, quotient)
        for case, shown, quotient in zip(cases, replies, exact, strict=True)
        if (shown != str(quotient) if shown else quotient < MOST - 1)
    ]
    assert wrong == []
    assert sum(shown != "" for shown in replies) > 8_000


@given(
    lots=st.integers(1, 10**12) | above_nothing,
    ticks=st.integers(1, 10**10) | above_nothing,
    num=st.integers(1, 10**6),
    den=st.sampled_from([1, 10, 10_000, 3, 7, 10**12, 2**31 - 1]),
)
@settings(max_examples=300, deadline=None)
def test_a_value_is_rounded_up_never_down(call: Call, lots: int, ticks: int, num: int, den: int) -> None:
    exact = -(-lots * ticks * num // den)
    shown = call("value_up", lots, ticks, num, den)
    if shown == "":
        assert exact >= MOST - 1 or lots * num >= MOST - 1
    else:
        assert shown == str(exact)


@given(
    lots=st.integers(1, 10**12) | above_nothing,
    ticks=st.integers(1, 10**10) | above_nothing,
    num=st.integers(1, 10**6),
    den=st.sampled_from([1, 2, 10, 20, 10_000, 3, 7, 10**12, 2**31 - 1]),
)
@settings(max_examples=300, deadline=None)
def test_what_a_long_position_is_worth_is_rounded_down_never_up(
    call: Call, lots: int, ticks: int, num: int, den: int
) -> None:
    exact = lots * ticks * num // den
    shown = call("value_down", lots, ticks, num, den)
    if shown == "":
        assert exact >= MOST - 1 or lots * num >= MOST - 1
    else:
        assert shown == str(exact)


@given(a=st.integers(-MOST, MOST) | whole, b=st.integers(-MOST, MOST) | whole)
@example(a=0, b=0)
@example(a=1, b=0)
@example(a=MOST, b=1)
@example(a=-1, b=-1)
@settings(max_examples=300, deadline=None)
def test_a_share_is_rounded_up_and_of_nothing_it_is_more_than_any_limit(call: Call, a: int, b: int) -> None:
    share = 0 if a <= 0 else -(-a * 1_000_000 // b) if b > 0 else MOST
    shown = int(call("ppm_up", a, b))
    assert shown == share or (shown == MOST and share >= MOST - 1)


@given(st.integers(-MOST, MOST))
@example(0)
@example(MOST)
@example(-MOST)
@settings(max_examples=100, deadline=None)
def test_an_integer_goes_in_and_out_unchanged(call: Call, n: int) -> None:
    assert (call("integer", n), call("own_integer", n)) == (str(n), str(n))


NO_NUMBERS: Final = ["", " ", "1.5", "nan", "inf", "-inf", "-nan", "--1", "1-", "x", "9" * 400, "１", str(MOST + 1),
                     str(-MOST - 1), "9" * 40]  # fmt: skip


@pytest.mark.parametrize("text", [*NO_NUMBERS, "1.0", "1e3", "0x10", "+1", " 1", "1 ", "1\n", "1\0"])
def test_what_is_no_integer_of_a_caller_is_an_error(call: Call, text: str) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match="not an integer of the ledger"):
        call("integer", text)


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_whole_number_in_the_ledger_itself_is_an_error(call: Call, text: str) -> None:
    """What the ledger has written is read by a quicker way, which would take "1e3" for 1000 too."""
    with pytest.raises(redis.exceptions.ResponseError, match="not an integer of the ledger"):
        call("own_integer", text)
