"""Eight bars at a time, and memory asked for ahead: a few machine instructions that neither Python nor numba names.

All are for compiled callers, and read columns float64[n] without gaps. A comparison answers with a bit for each of the
eight places from ``at`` on (all of them inside the column), the lowest bit for the first; nothing is rounded or
reordered, so results are those of a loop over the eight. Without a compiler the same is done by plain functions.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, cast

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from strategies.model import Float64Array

LANES: Final = 8
_DOUBLES: Final = ir.VectorType(ir.DoubleType(), LANES)
_INTEGERS: Final = ir.VectorType(ir.IntType(64), LANES)


def _loaded(context: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.load(builder.bitcast(builder.gep(data, [at]), _DOUBLES.as_pointer()), align=8)


def _repeated(builder: Any, value: Any) -> Any:
    first = builder.insert_element(ir.Constant(_DOUBLES, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _bits(builder: Any, compared: Any) -> Any:
    return builder.zext(builder.bitcast(compared, ir.IntType(LANES)), ir.IntType(64))


def _compiling(typed: Callable[..., Any], plain: Callable[..., Any]) -> Any:
    return plain if cast(Any, config).DISABLE_JIT else cast(Any, intrinsic)(typed)


def _with_one(compare: Callable[[Any, Any, Any], Any], holds: Callable[[float, float], bool]) -> Any:
    """A comparison of eight places of a column with one value."""

    def typed(typing_context: Any, array: Any, at: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            eight = _loaded(context, builder, signature.args[0], arguments[0], arguments[1])
            return _bits(builder, compare(builder, eight, _repeated(builder, arguments[2])))

        return types.int64(array, types.intp, types.float64), generate

    return _compiling(typed, lambda array, at, value: sum(int(holds(array[at + k], value)) << k for k in range(LANES)))


def _extreme(name: str, plain: Callable[[Any], float]) -> Any:
    """The least or greatest of eight places; as integers, which order numbers of 0 and above alike."""

    def typed(typing_context: Any, array: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            eight = _loaded(context, builder, signature.args[0], arguments[0], arguments[1])
            form = ir.FunctionType(ir.IntType(64), [_INTEGERS])
            reduce = cast(Any, cgutils).get_or_insert_function(
                builder.module, form, f"llvm.vector.reduce.{name}.v{LANES}i64"
            )
            return builder.bitcast(builder.call(reduce, [builder.bitcast(eight, _INTEGERS)]), ir.DoubleType())

        return types.float64(array, types.intp), generate

    return _compiling(typed, lambda array, at: plain(array[at : at + LANES]))


def _first_of(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


def _as_number(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


def _asked(typing_context: Any, array: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        call = cast(Any, cgutils).get_or_insert_function(builder.module, form, "llvm.prefetch.p0")
        builder.call(call, [place, number(0), number(3), number(1)])  # to be read, kept in every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


Compare = Callable[[Float64Array, int, float], int]

# Where a target other than 0 stands no longer (NaN is another one), and where one of 0 does (NaN is not).
unlike: Compare = _with_one(lambda b, x, y: b.fcmp_unordered("!=", x, y), lambda x, y: x != y)
unlike_zero: Compare = _with_one(lambda b, x, y: b.fcmp_ordered("!=", x, y), lambda x, y: x < y or x > y)
at_most: Compare = _with_one(lambda b, x, y: b.fcmp_ordered("<=", x, y), lambda x, y: x <= y)
at_least: Compare = _with_one(lambda b, x, y: b.fcmp_ordered(">=", x, y), lambda x, y: x >= y)
# Of eight places above 0.
lowest_of: Callable[[Float64Array, int], float] = _extreme("smin", min)
highest_of: Callable[[Float64Array, int], float] = _extreme("smax", max)
# The place of the first one in bits of which there is one, and the number that 64 bits stand for.
first_of: Callable[[int], int] = _compiling(_first_of, lambda bits: (bits & -bits).bit_length() - 1)
as_number: Callable[[int], float] = _compiling(_as_number, lambda bits: struct.unpack("d", struct.pack("q", bits))[0])
# A hint only, for places inside the column: outside it the memory may have no page, and then asking takes long.
ask_for: Callable[[Float64Array, int], None] = _compiling(_asked, lambda array, at: None)
