"""A fuzzer on the order decoder: whatever bytes come, an order that an independent reader reads too, or the one error.

The independent reader is Python's own JSON module, made strict: UTF-8 only, no constants, no name twice.
"""

from __future__ import annotations

import datetime as dt
import json
import string
from dataclasses import fields
from decimal import Decimal
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.risk import InvalidOrder, read_order
from strategies.model import Order, OrderType, Side, TimeInForce

# -- what comes out ----------------------------------------------------------------------------------------------------


def survives(body: bytes) -> Order | None:
    """The order, None where it was refused; fails on anything else and on an order nobody else would read."""
    try:
        order = read_order(body)
    except InvalidOrder as error:
        _can_be_answered(error, len(body))
        return None
    read = strictly(body)
    if (end_time := read.pop("end_time", None)) is not None:
        assert order.end_ns == int(dt.datetime.fromisoformat(end_time).timestamp()) * 10**9
    for name, text in read.items():
        meant = getattr(order, name)
        if isinstance(meant, Decimal):
            assert meant == Decimal(text)
            assert 0 < meant < 10**15
        elif text is not None:
            assert meant == text, name
    left_out = {field.name for field in fields(Order)} - set(read) - {"end_ns"}
    assert left_out <= OPTIONAL, left_out
    return order


def _can_be_answered(error: InvalidOrder, length: int) -> None:
    assert error.field.startswith("$"), error.field
    # The refusal travels as JSON: it must be text that can be sent, and not much longer than what it is about.
    assert len(msgspec.json.encode([error.field, error.rule])) < 6 * length + 500


def strictly(body: bytes) -> dict[str, Any]:
    """The one JSON object in ``body`` as Python reads it; fails where it finds less, more or something else."""

    def unique(members: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({name for name, _ in members}) == len(members), members
        return dict(members)

    def constant(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    read = json.loads(body.decode("utf-8", "strict"), object_pairs_hook=unique, parse_constant=constant)
    assert isinstance(read, dict)
    return read


# -- what goes in ------------------------------------------------------------------------------------------------------

OPTIONAL: Final = {
    *("limit_price", "time_in_force", "post_only", "reduce_only", "strategy_version", "stop_price"),
}
ZONES: Final = (dt.UTC, dt.timezone(dt.timedelta(hours=-5, minutes=-30)), dt.timezone(dt.timedelta(hours=14)))
LOWER: Final = string.ascii_lowercase + string.digits + "_"
UPPER: Final = string.ascii_uppercase + string.digits
_name: Final = st.text(LOWER, min_size=1, max_size=32)
_id: Final = st.text(string.ascii_letters + string.digits + "._:-", min_size=1, max_size=64)
_version: Final = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=64)
_currency: Final = st.text(UPPER, min_size=1, max_size=20)
_whole: Final = st.text(string.digits, min_size=1, max_size=15)
_part: Final = st.text(string.digits, min_size=1, max_size=12)
_decimal: Final = (_whole | st.tuples(_whole, _part).map(".".join)).filter(lambda text: Decimal(text) > 0)


_end_time: Final = st.tuples(st.integers(10**9, 7 * 10**9), st.sampled_from(ZONES)).map(
    lambda at: dt.datetime.fromtimestamp(at[0], at[1]).isoformat().replace("+00:00", "Z")
)


@st.composite
def stops(draw: st.DrawFn, kind: OrderType, side: str) -> dict[str, Any]:
    """What an order with a trigger has beside the others: the trigger on its side of the limit."""
    low, high = sorted([draw(_decimal), draw(_decimal)], key=Decimal)
    if kind is OrderType.BRACKET:
        whole = draw(st.integers(1, 10**14))
        low, high = f"{whole}.{draw(_part)}", str(whole + draw(st.integers(1, 10**14)))
    sells_stop = kind is OrderType.STOP_LIMIT and side == Side.SELL.value
    sells_bracket = kind is OrderType.BRACKET and side == Side.SELL.value
    limit, stop = (low, high) if sells_stop or (kind is OrderType.BRACKET and not sells_bracket) else (high, low)
    found: dict[str, Any] = {"type": kind.value, "limit_price": limit, "stop_price": stop}
    if draw(st.booleans()):
        return found | draw(
            st.sampled_from([{}, {"time_in_force": None}, {"time_in_force": "GTC"}, {"end_time": None}])
        )
    return found | {"time_in_force": TimeInForce.GTD.value, "end_time": draw(_end_time)}


@st.composite
def orders(draw: st.DrawFn) -> dict[str, Any]:
    """A body that must be accepted."""
    order: dict[str, Any] = {
        "client_order_id": draw(_id),
        "account": draw(_name),
        "strategy": draw(_name),
        "product_id": f"{draw(_currency)}-{draw(_currency)}",
        "side": draw(st.sampled_from(Side)).value,
        "quantity": draw(_decimal),
    }
    kind = draw(st.sampled_from(OrderType))
    if kind in {OrderType.STOP_LIMIT, OrderType.BRACKET}:
        return draw(st.permutations(sorted((order | draw(stops(kind, order["side"]))).items())).map(dict))
    if kind is OrderType.MARKET:
        order |= {"type": OrderType.MARKET.value}
        order |= draw(st.sampled_from([{}, {"limit_price": None}, {"time_in_force": None}, {"time_in_force": "IOC"}]))
    else:
        order |= {"type": OrderType.LIMIT.value, "limit_price": draw(_decimal)}
        time_in_force = draw(st.sampled_from([None, *TimeInForce]))
        order |= {"time_in_force": time_in_force} if draw(st.booleans()) or time_in_force else {}
        order |= {"end_time": draw(_end_time)} if time_in_force is TimeInForce.GTD else {}
        may_post = time_in_force in {None, TimeInForce.GTC, TimeInForce.GTD}
        order |= {"post_only": draw(st.booleans()) and may_post} if draw(st.booleans()) else {}
    order |= {"reduce_only": draw(st.booleans())} if draw(st.booleans()) else {}
    order |= {"strategy_version": draw(st.none() | _version)} if draw(st.booleans()) else {}
    return {name: order[name] for name in draw(st.permutations(sorted(order)))}


@st.composite
def spelled(draw: st.DrawFn, value: dict[str, Any]) -> bytes:
    """The same object in another spelling: white space, and characters written as escapes."""
    space = st.text(" \n\t\r", max_size=3)

    def scalar(item: Any) -> str:
        if not isinstance(item, str) or draw(st.integers(0, 3)):
            return json.dumps(item)
        return '"' + "".join(f"\\u{ord(c):04x}" if draw(st.booleans()) else c for c in item) + '"'

    members = [
        f"{draw(space)}{scalar(name)}{draw(space)}:{draw(space)}{scalar(item)}{draw(space)}"
        for name, item in value.items()
    ]
    return f"{draw(space)}{{{','.join(members)}}}{draw(space)}".encode()


VALID: Final = orders().flatmap(spelled)
NAMES: Final = [f'"{field.name}"'.encode() for field in fields(Order)]
PIECES: Final = [
    *NAMES,
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"'", b"\\", b"\\u", b"\\ud83d", b"\\u0000", b"\\x41", b"/*x*/", b"//"),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity", b"nan", b"None", b"undefined", b"0x10", b"1_0"),
    *(b"-0", b"-0.0", b"+1", b"01", b"1e400", b"-1e400", b"1e-400", b"1E5", b".5", b"5.", b"9" * 40, b"0." + b"1" * 40),
    *(b'"0.01"', b'"-0"', b'"NaN"', b'"1e5"', b'"\xd9\xa3"', b'"\xef\xbc\x91"', b'"' + b"9" * 40 + b'"', b'"BUY"'),
    *(b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\xbd", b"\xe2\x80\xa8", b"\x7f", b"\n"),
    *(b'"account":"other"', b'"quantity":1', b'"quantity":NaN', b'"side":"SELL","side":"BUY"', b'"x":{}', b"{}", b"[]"),
]
PIECE: Final = st.sampled_from(PIECES) | st.binary(max_size=4)
ENCODINGS: Final = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp037")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid body with one to five accidents."""
    body = draw(VALID)
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(body)))
        stop = min(len(body), start + draw(st.sampled_from([0, 1, 2, 6, 30])))
        head, middle, tail = body[:start], body[start:stop], body[stop:]
        match draw(st.sampled_from(["insert", "replace", "drop", "repeat", "cut", "flip", "encode", "wrap", "splice"])):
            case "insert":
                body = head + draw(PIECE) + middle + tail
            case "replace":
                body = head + draw(PIECE) + tail
            case "drop":
                body = head + tail
            case "repeat":
                body = head + middle * draw(st.integers(2, 4)) + tail
            case "cut":
                body = head
            case "flip" if middle:
                body = head + bytes([middle[0] ^ 1 << draw(st.integers(0, 7))]) + middle[1:] + tail
            case "encode":
                body = body.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")
            case "wrap":
                body = draw(st.sampled_from([b"[%s]", b'{"order":%s}', b"%s,", b'"%s"', b"(%s)"])).replace(b"%s", body)
            case "splice":
                body = head + draw(VALID)[start:]
    return body


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A valid body with other JSON values in some places, and some members twice."""
    scalar = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.decimals().map(str)
    value = st.recursive(scalar, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3))
    members = [*draw(orders()).items()]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(members) - 1))
        name = members[at][0] if draw(st.integers(0, 3)) else draw(st.text(max_size=8))
        members[at] = (name, draw(value))
    members += draw(st.lists(st.sampled_from(members), max_size=2))
    return b"{" + b",".join(json.dumps(n).encode() + b":" + json.dumps(v).encode() for n, v in members) + b"}"


HOSTILE: Final = {
    "bytes": st.binary(max_size=600),
    "text": st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    "json_like": st.lists(PIECE, max_size=40).map(b"".join),
    "nested": st.tuples(st.sampled_from([b"[", b'{"a":', b'{"quantity":[', b"[{"]), st.integers(1, 4000)).map(
        lambda pair: pair[0] * pair[1]
    ),
    "changed": changed(),
    "mutated": mutated(),
}

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


# -- the properties ----------------------------------------------------------------------------------------------------


@given(st.data())
@settings(patient, max_examples=200)
def test_a_valid_order_is_read_as_what_it_says_in_any_spelling(data: st.DataObject) -> None:
    meant = data.draw(orders())
    order = survives(data.draw(spelled(meant)))
    assert order is not None
    assert {name: str(getattr(order, name)) for name in ("client_order_id", "account", "strategy", "product_id")} == {
        name: meant[name] for name in ("client_order_id", "account", "strategy", "product_id")
    }
    assert (order.side, order.type, order.quantity) == (meant["side"], meant["type"], Decimal(meant["quantity"]))


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_but_an_order_or_the_one_error_comes_out(kind: str) -> None:
    @given(HOSTILE[kind])
    @settings(patient, max_examples=300)
    def fuzz(body: bytes) -> None:
        survives(body)

    fuzz()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_else_comes_out_of_many_more(kind: str) -> None:
    @given(HOSTILE[kind])
    @settings(patient, max_examples=20_000)
    def fuzz(body: bytes) -> None:
        survives(body)

    fuzz()


def test_the_fuzzer_reaches_both_sides() -> None:
    """Of the mutated bodies some must still be orders, or the comparison with the other reader compares nothing."""
    accepted: list[bool] = []

    # Always the same bodies: how many of 150 survive five accidents is otherwise a matter of luck, and once none did.
    @given(mutated())
    @settings(patient, max_examples=600, derandomize=True)
    def fuzz(body: bytes) -> None:
        accepted.append(survives(body) is not None)

    fuzz()
    assert 0 < sum(accepted) < len(accepted)
