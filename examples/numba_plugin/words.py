"""Plugins in Python that Numba compiles: they run without the GIL, like C."""

import numba
import numpy
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

import dataflare
from dataflare import NativePlugin
from dataflare.native import ERROR, FILTERED, RECORD, SKIP, commit, fail, forward, reserve
from dataflare.plugins import Chain

process = types.int32(types.voidptr, types.voidptr, types.voidptr)


@intrinsic
def pointer(context, address):
    """A number as a pointer."""

    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uintp), build


@numba.njit
def value_of(record):
    """The bytes of a record, as an array."""
    view = numba.carray(record, 1, RECORD)[0]
    return numba.carray(pointer(view.value), view.value_size, numpy.uint8)


TOO_SHORT = numpy.frombuffer(b"the line has too few words\0", numpy.uint8)
TOO_SHORT_AT = TOO_SHORT.ctypes.data


@numba.cfunc(process)
def first_word(record, out, state):
    """The first word of a line; nothing is copied."""
    value = value_of(record)
    for i in range(len(value)):
        if value[i] == ord(" "):
            return forward(out, record, 0, i)
    return fail(out, 1, pointer(TOO_SHORT_AT))


@numba.cfunc(process)
def mostly_digits(record, out, state):
    """Keeps the lines of which more than half is digits."""
    digits = 0
    value = value_of(record)
    for byte in value:
        digits += ord("0") <= byte <= ord("9")
    return SKIP if 2 * digits > len(value) else FILTERED


@numba.cfunc(process)
def squares(record, out, state):
    """Writes new values: each byte's last bits, squared."""
    value = value_of(record)
    target = reserve(out, len(value))
    if target == 0:
        return ERROR  # no memory: the reason is noted
    made = numba.carray(pointer(target), len(value), numpy.uint8)
    for i in range(len(value)):
        digit = value[i] & 15
        made[i] = ord("0") + digit * digit % 10
    return commit(out, len(value))


if __name__ == "__main__":
    chain = Chain(
        NativePlugin.from_function(first_word, thread_safe=True),
        NativePlugin.from_function(mostly_digits, thread_safe=True),
        NativePlugin.from_function(squares, thread_safe=True),
    )
    with dataflare.PluginManager() as manager:
        manager.register_plugin("words", chain)
        result = manager.process_batch("words", ["1234 x", "GET /", "200", "98 7"])
        print(result.output.to_pylist())
        print(*[f"record {index}: {error}" for index, error in result.errors])
