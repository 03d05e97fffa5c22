"""Examples made from the documented schemas: valid ones in all their variety, and ones with something wrong in them.

A valid example has every required field, any of the optional ones (or what stands for "none" in their place), and now
and then a field nobody documented. A damaged one is a valid one with up to three places changed into what a venue, a
proxy or a bug might send.
"""

from __future__ import annotations

import copy
import datetime as dt
import uuid
from decimal import Decimal
from typing import Any, Final

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from tests.contract import coinbase_schemas as documented
from tests.contract.coinbase_schemas import Field, Many, Schema, Shape

PRODUCTS: Final = ("BTC-USD", "ETH-USD", "SOL-USD", "BTC-USDC", "ETP-20DEC30-CDE")
# What can stand where something else is documented.
DAMAGE: Final[tuple[Any, ...]] = (
    None,
    "",
    " ",
    "NaN",
    "-NaN",
    "sNaN",
    "Infinity",
    "-1",
    "1e999999999",
    "1e-999999999",
    "0x10",
    "1_000",
    "١٢٣",
    "1" * 400,
    "A_WORD_OF_2027",
    "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "0001-01-01T00:00:00-14:00",
    "2026-01-01T00:00:00",
    "\x00",
    "\ud800",
    0,
    -1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    True,
    [],
    [None],
    [[]],
    {},
    {"value": None},
)


def _decimal(low: str, high: str) -> SearchStrategy[str]:
    numbers = st.decimals(Decimal(low), Decimal(high), allow_nan=False, allow_infinity=False, places=8)
    return numbers.map(lambda number: format(number, "f")) | numbers.map(
        lambda number: format(number.quantize(Decimal(1)) if abs(number) >= 1 else number, "f")
    )


@st.composite
def _times(draw: DrawFn) -> str:
    moment = draw(st.datetimes(dt.datetime(2015, 1, 1), dt.datetime(2035, 1, 1))).replace(microsecond=0)  # noqa: DTZ001
    digits = draw(st.integers(0, 9))
    fraction = f".{draw(st.integers(0, 10**digits - 1)):0{digits}d}" if digits else ""
    return moment.isoformat() + fraction + "Z"


_GO_TIMES: Final = (
    "2026-09-05 22:10:30.25788961 +0000 UTC m=+139651.272674714",
    "2026-04-07 14:30:10.000000000+00:00",
    "2023-06-23T20:31:26.122969572Z",
)
_UUIDS: Final = st.integers(0, 2**128 - 1).map(lambda number: str(uuid.UUID(int=number)))
_TEXT: Final = st.text(st.characters(codec="utf-8"), max_size=20)
_KINDS: Final[dict[str, SearchStrategy[Any]]] = {
    "decimal": _decimal("-1000000000", "1000000000"),
    "amount": _decimal("0", "1000000000"),
    "positive": _decimal("0.00000001", "1000000000"),
    "whole": st.integers(0, 10**12).map(str),
    "unix_s": st.integers(24_000_000, 33_000_000).map(lambda minute: str(minute * 60)),
    "time": _times() | st.sampled_from(["0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"]),
    "go_time": st.sampled_from(_GO_TIMES),
    "text": _TEXT,
    "name": st.sampled_from(["USD", "BTC", "a-name", "Ünï"]),
    "uuid": _UUIDS,
    "product_id": st.sampled_from(PRODUCTS),
    "preview_failure": st.sampled_from(sorted(documented.PREVIEW_FAILURES)),
    "integer": st.integers(0, 10**9),
    "number": st.integers(-(10**6), 10**9) | st.floats(-1e9, 1e9, allow_nan=False).map(lambda number: round(number, 8)),
    "object": st.dictionaries(st.sampled_from(["a", "b"]), st.none() | _TEXT | st.integers(), max_size=2),
    "subscriptions": st.dictionaries(
        st.sampled_from(["ticker", "user", "heartbeats"]), st.lists(st.sampled_from(PRODUCTS), max_size=3), max_size=3
    ),
}


def valid(schema: Schema | Shape | Many) -> SearchStrategy[Any]:
    """Values that the schema allows."""
    if isinstance(schema, Shape):
        return _objects(schema)
    if isinstance(schema, Many):
        return st.lists(valid(schema.item), max_size=3)
    if "anyOf" in schema:
        return st.one_of([valid(each) for each in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    if schema.get("type") == "boolean":
        return st.booleans()
    return _KINDS[schema["kind"]]


def _field(field: Field) -> SearchStrategy[Any]:
    found = valid(field.schema)
    if not field.empty:
        return found
    # Mapped, so that the alternatives of ``found`` together weigh as much as what stands for "none".
    return found.map(lambda value: value) | st.sampled_from(field.empty)


def _objects(shape: Shape) -> SearchStrategy[dict[str, Any]]:
    if shape.name == "order_configuration":
        # Exactly one of its fields.
        return st.one_of([st.fixed_dictionaries({name: _field(field)}) for name, field in shape.fields.items()])
    required = {name: _field(field) for name, field in shape.fields.items() if field.required}
    optional = {name: _field(field) for name, field in shape.fields.items() if not field.required}
    known = st.fixed_dictionaries(required, optional=optional)
    unknown = st.just({}) | st.sampled_from([{"a_field_of_2027": 1}, {"nested_of_2027": {"a": [None]}}])
    return st.tuples(known, unknown).map(lambda pair: pair[0] | pair[1])


@st.composite
def damaged(draw: DrawFn, schema: Schema | Shape | Many) -> Any:
    """A valid example with one to three of its places damaged or taken away."""
    value = copy.deepcopy(draw(valid(schema)))
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return draw(st.sampled_from(DAMAGE))
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(DAMAGE)))
    return value


def _places(value: Any) -> Any:
    """Every place of a value, however deep, as (holder, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)
