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
"""

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Call]:
    """Calls into a server that holds the functions as they stand in ledger_base.lua."""
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        client = redis.Redis(host="127.0.0.1", port=server.port, password=PASSWORD, decode_responses=True)
        names = ("integer", "two_product", "mul_div", "mul_div_up", "value_up")
        functions = "\n".join(_function(SOURCE.read_text(), name) for name in names)
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


@given(st.integers(-MOST, MOST))
@example(0)
@example(MOST)
@example(-MOST)
@settings(max_examples=100, deadline=None)
def test_an_integer_goes_in_and_out_unchanged(call: Call, n: int) -> None:
    assert call("integer", n) == str(n)


@pytest.mark.parametrize(
    "text",
    ["", " ", "1.0", "1.5", "1e3", "0x10", "nan", "inf", "-inf", "+1", " 1", "1 ", "--1", "1-", str(MOST + 1),
     str(-MOST - 1), "9" * 40, "１", "1\n", "1\0"],
)  # fmt: skip
def test_what_is_no_integer_of_the_ledger_is_an_error(call: Call, text: str) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match="not an integer of the ledger"):
        call("integer", text)
