"""Arrow data in and out, through the structs of its C data interface; no library is needed.

Design
------
a. **In.** The array is moved out of its capsule into a `_Held`. Values are views of its memory, and
   each view keeps it alive: it calls the producer's release when the last one dies. Schemas stay in
   their capsules.
b. **Element i of a child** stands at ``parent.offset + child.offset + i``: a sliced struct array
   has its offset in the parent, a sliced record batch in the children.
c. **Nothing is believed** that can be checked. How long a buffer of a producer is, its struct does
   not say.
d. **Out.** Values are copied into buffers of the export. What a struct leads to stands in `_ALIVE`
   under the number that is its private data, until release is called, in whatever thread; ctypes
   takes the GIL for that. The callbacks themselves are never freed.
e. **A limit of ctypes.** A callback is a Python function, which cannot run while an exception is on
   its way. A consumer that releases what it has just then loses that exception: Python reports a
   `SystemError` in its place. The compiled backend has no such limit.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from ctypes import CFUNCTYPE, POINTER, PYFUNCTYPE, c_char, c_char_p, c_int, c_int64, c_void_p
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, final

import numpy as np
import numpy.typing as npt

from dataflare._arrow import (
    RECORD_COLUMNS,
    RESULT_COLUMNS,
    STATUSES,
    TYPES,
    check_columns,
    check_type,
    choose,
    export_names,
    fits,
    type_name,
)
from dataflare._pure.batch import (
    BINARY,
    NO_VALUE,
    TEXT,
    UNCHECKED,
    RecordBatch,
    Value,
    frozen,
)
from dataflare._pure.record import ERROR, FILTERED, Metadata
from dataflare._pure.result import BatchResult

_NULLABLE = 2
_MOST = (1 << 63) - 1
# With more of them an array of views, the widest elements, would not fit in an address space.
_MOST_ELEMENTS = _MOST // 16 - 1
_SHORT = 12  # a value of so many bytes or less stands in its view itself

_most_bytes = (1 << 31) - 1
"""The most bytes of values in an array with offsets of 32 bits, and in a buffer of views."""


class _Schema(ctypes.Structure):
    pass


class _Array(ctypes.Structure):
    pass


class _Stream(ctypes.Structure):
    pass


_Schema._fields_ = [
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_char_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(_Schema))),
    ("dictionary", POINTER(_Schema)),
    ("release", c_void_p),
    ("private_data", c_void_p),
]
_Array._fields_ = [
    ("length", c_int64),
    ("null_count", c_int64),
    ("offset", c_int64),
    ("n_buffers", c_int64),
    ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(_Array))),
    ("dictionary", POINTER(_Array)),
    ("release", c_void_p),
    ("private_data", c_void_p),
]
_Stream._fields_ = [
    ("get_schema", c_void_p),
    ("get_next", c_void_p),
    ("get_last_error", c_void_p),
    ("release", c_void_p),
    ("private_data", c_void_p),
]

_RELEASE = CFUNCTYPE(None, c_void_p)
_GET = CFUNCTYPE(c_int, c_void_p, c_void_p)
_LAST_ERROR = CFUNCTYPE(c_void_p, c_void_p)
_DESTRUCTOR = PYFUNCTYPE(None, c_void_p)

_api = ctypes.pythonapi
_new_capsule = PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)(("PyCapsule_New", _api))
_is_valid = PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(("PyCapsule_IsValid", _api))
_name_of = PYFUNCTYPE(c_char_p, ctypes.py_object)(("PyCapsule_GetName", _api))
_pointer_of = PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_pointer_of_dying = PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))
_clear_error = _api.PyErr_Clear  # without declared arguments: converting these would fail, too
_SCHEMA, _ARRAY, _STREAM = b"arrow_schema", b"arrow_array", b"arrow_array_stream"


def limit_bytes(limit: int) -> int:
    """Set how many bytes an array with offsets of 32 bits may have, for tests; the old limit."""
    global _most_bytes
    before = _most_bytes
    _most_bytes = limit
    return before


# -- In ------------------------------------------------------------------------------------------


class _Held:
    """An array of a producer's: releases it when it dies itself."""

    def __init__(self) -> None:
        self.array = _Array()

    def __del__(self) -> None:
        if self.array.release:
            _RELEASE(self.array.release)(ctypes.addressof(self.array))

    def memory(self, address: int | None, size: int) -> memoryview:
        """A view of memory of the array's, which keeps it alive."""
        if not address or size <= 0:
            return memoryview(b"")
        block = (c_char * size).from_address(address)
        block.owner = self  # type: ignore[attr-defined]
        return memoryview(block).cast("B").toreadonly()

    def numbers(self, address: int | None, count: int, kind: str, start: int = 0) -> Any:
        """An array of NumPy's over memory of the array's."""
        dtype = np.dtype(kind)
        if count == 0:
            return np.zeros(0, dtype)
        assert address is not None
        size = dtype.itemsize
        return np.frombuffer(self.memory(address + start * size, count * size), dtype)


def _pointer_in(capsule: object, name: bytes) -> int:
    """What a capsule of that name has; it stays its owner."""
    if type(capsule).__name__ != "PyCapsule":
        raise TypeError(f"Arrow data must come in a capsule, not in {type(capsule).__name__}")
    if not _is_valid(capsule, name):
        found = _name_of(capsule)
        shown = "no name" if found is None else f"the name {found.decode('utf-8', 'replace')!r}"
        raise TypeError(f"an Arrow capsule must be named {name.decode()!r}, this one has {shown}")
    return int(_pointer_of(capsule, name))


def _take_array(capsule: object) -> _Held:
    """Move the array out of its capsule, which from now on owns nothing."""
    source = _Array.from_address(_pointer_in(capsule, _ARRAY))
    if not source.release:
        raise ValueError("the Arrow array was released already")
    held = _Held()
    ctypes.memmove(ctypes.addressof(held.array), ctypes.addressof(source), ctypes.sizeof(_Array))
    source.release = None
    return held


def _schema_in(capsule: object) -> _Schema:
    return _checked(_Schema.from_address(_pointer_in(capsule, _SCHEMA)))


def _checked(schema: _Schema) -> _Schema:
    if not schema.release:
        raise ValueError("the Arrow schema was released already")
    if schema.format is None:
        raise ValueError("the Arrow schema is malformed: it has no format")
    if schema.n_children < 0 or (schema.n_children > 0 and not schema.children):
        raise ValueError("the Arrow schema is malformed: it lacks its children")
    for i in range(schema.n_children):
        if not schema.children[i]:
            raise ValueError(f"the Arrow schema is malformed: child {i} is missing")
    return schema


def _children(schema: _Schema) -> list[_Schema]:
    return [_checked(schema.children[i].contents) for i in range(schema.n_children)]


def _text(text: bytes | None) -> str:
    return "" if text is None else text.decode("utf-8", "replace")


class _Kind(NamedTuple):
    """How the values of a column lie in memory."""

    layout: str  # "nothing", "split", "fixed", "viewed", or "" for anything else
    width: int  # bytes of an offset, or of a value of fixed size
    text: bool


_KINDS = {
    "n": _Kind("nothing", 0, False),
    "z": _Kind("split", 4, False),
    "u": _Kind("split", 4, True),
    "Z": _Kind("split", 8, False),
    "U": _Kind("split", 8, True),
    "vz": _Kind("viewed", 0, False),
    "vu": _Kind("viewed", 0, True),
}
_INTEGERS = {
    "c": "i1", "C": "u1", "s": "i2", "S": "u2", "i": "i4", "I": "u4", "l": "i8", "L": "u8",
}  # fmt: skip
_UNITS = {"tss:": 1_000_000_000, "tsm:": 1_000_000, "tsu:": 1_000, "tsn:": 1}


def _kind_of(written: str) -> _Kind:
    digits = written[2:].lstrip("0") or "0"
    if (
        written[:2] == "w:"
        and written[2:].isascii()
        and written[2:].isdigit()
        and (len(digits) <= 10 and int(digits) < 1 << 31)
    ):
        return _Kind("fixed", int(digits), False)
    return _KINDS.get(written, _Kind("", 0, False))


def _malformed(what: str, why: str) -> ValueError:
    return ValueError(f"{what} of the Arrow data is malformed: {why}")


def _check_array(array: _Array, schema: _Schema, n_buffers: int, what: str) -> None:
    """Refuse what does not fit its schema, apart from what is in its buffers."""
    if not array.release:
        raise _malformed(what, "it was released already")
    if array.length < 0 or array.offset < 0 or array.length > _MOST_ELEMENTS - array.offset:
        raise _malformed(what, f"its length is {array.length}, its offset {array.offset}")
    if array.null_count < -1 or array.null_count > array.length:
        raise _malformed(what, f"its null count is {array.null_count}")
    if array.n_buffers != n_buffers and not (n_buffers < 0 and array.n_buffers >= -n_buffers):
        raise _malformed(what, f"it has {array.n_buffers} buffers, not {abs(n_buffers)}")
    if array.n_buffers > 0 and not array.buffers:
        raise _malformed(what, "it lacks its buffers")
    if array.n_children != schema.n_children:
        raise _malformed(
            what, f"it has {array.n_children} children, not the {schema.n_children} of its schema"
        )
    if array.n_children > 0 and not array.children:
        raise _malformed(what, "it lacks its children")
    for i in range(array.n_children):
        if not array.children[i]:
            raise _malformed(what, f"child {i} is missing")
    if bool(array.dictionary) != bool(schema.dictionary):
        raise _malformed(what, "only one of schema and array has a dictionary")


def _check_range(array: _Array, start: int, length: int, what: str) -> None:
    """The elements from `start` on must exist."""
    if start + length > array.length:
        raise _malformed(what, f"it has {array.length} elements where {start + length} are needed")


def _valid(held: _Held, array: _Array, first: int, length: int, what: str) -> list[bool] | None:
    """Which elements are not null; None: all."""
    if array.null_count == 0 or array.n_buffers == 0 or array.length == 0 or length == 0:
        return None
    if not array.buffers[0]:
        if array.null_count > 0:
            raise _malformed(what, f"{array.null_count} of it are null, and it does not say which")
        return None
    skipped = first // 8
    first -= 8 * skipped
    octets = held.numbers(array.buffers[0], (first + length + 7) // 8, "u1", skipped)
    bits = np.unpackbits(octets, count=first + length, bitorder="little")
    valid: list[bool] = bits[first:].astype(bool).tolist()
    return valid


def _values(
    held: _Held, schema: _Schema, array: _Array, start: int, length: int, what: str
) -> tuple[list[Value | None], bool]:
    """`length` elements from `start` on, None for null, and whether they are text."""
    if schema.dictionary:
        return _looked_up(held, schema, array, start, length, what)
    kind = _kind_of(_text(schema.format))
    if not kind.layout:
        raise TypeError(
            f"{what} has the type {type_name(_text(schema.format))}, and must be of strings or "
            f"of binary values"
        )
    if kind.layout == "nothing":
        _check_array(array, schema, 0, what)
        _check_range(array, start, length, what)
        return [None] * length, False
    _check_array(array, schema, {"split": 3, "fixed": 2, "viewed": -3}[kind.layout], what)
    _check_range(array, start, length, what)
    if length == 0:
        return [], kind.text
    first = start + array.offset
    valid = _valid(held, array, first, length, what)
    read = {"fixed": _fixed, "split": _split, "viewed": _viewed}[kind.layout]
    values: list[Value | None] = [*read(held, array, kind, first, length, valid, what)]
    if valid is not None:
        values = [value if ok else None for value, ok in zip(values, valid, strict=True)]
    return values, kind.text


def _fixed(
    held: _Held,
    array: _Array,
    kind: _Kind,
    first: int,
    length: int,
    valid: list[bool] | None,
    what: str,
) -> list[Value]:
    width = kind.width
    if width and not array.buffers[1]:
        raise _malformed(what, "it lacks its values")
    if width and first + length > _MOST // width:
        raise _malformed(what, f"its length is {array.length}")
    if not width:
        return [b""] * length
    memory = held.memory(array.buffers[1] + first * width, width * length)
    return [memory[i : i + width] for i in range(0, width * length, width)]


def _split(
    held: _Held,
    array: _Array,
    kind: _Kind,
    first: int,
    length: int,
    valid: list[bool] | None,
    what: str,
) -> list[Value]:
    if not array.buffers[1]:
        raise _malformed(what, "it lacks its offsets")
    bounds = held.numbers(array.buffers[1], length + 1, f"i{kind.width}", first).tolist()
    if bounds[0] < 0 or bounds != sorted(bounds):
        bad = next((i for i in range(length) if bounds[i + 1] < bounds[i]), 0)
        raise _malformed(what, f"the offsets of element {bad} descend or are negative")
    if not array.buffers[2]:
        if bounds[-1] > bounds[0]:
            raise _malformed(what, "it lacks its values")
        return [b""] * length
    memory = held.memory(array.buffers[2] + bounds[0], bounds[-1] - bounds[0])
    return [
        memory[begin - bounds[0] : end - bounds[0]] for begin, end in itertools.pairwise(bounds)
    ]


def _viewed(
    held: _Held,
    array: _Array,
    kind: _Kind,
    first: int,
    length: int,
    valid: list[bool] | None,
    what: str,
) -> Iterator[Value]:
    if not array.buffers[1]:
        raise _malformed(what, "it lacks its views")
    count = array.n_buffers - 3
    if count and not array.buffers[array.n_buffers - 1]:
        raise _malformed(what, "it lacks the sizes of its buffers")
    sizes = held.numbers(array.buffers[array.n_buffers - 1], count, "i8").tolist()
    buffers = [held.memory(array.buffers[2 + i], sizes[i]) for i in range(count)]
    memory = held.memory(array.buffers[1] + 16 * first, 16 * length)
    words = np.frombuffer(memory, np.int32).reshape(length, 4)[:, [0, 2, 3]].tolist()
    for i, (size, index, begin) in enumerate(words):
        if valid is not None and not valid[i]:
            yield b""
            continue
        if 0 <= size <= _SHORT:
            yield memory[16 * i + 4 : 16 * i + 4 + size]
            continue
        if size < 0 or not 0 <= index < count or begin < 0 or begin + size > len(buffers[index]):
            raise _malformed(what, f"the view of element {i} leads out of its buffers")
        yield buffers[index][begin : begin + size]


def _looked_up(
    held: _Held, schema: _Schema, array: _Array, start: int, length: int, what: str
) -> tuple[list[Value | None], bool]:
    kind = _INTEGERS.get(_text(schema.format))
    inner = _checked(schema.dictionary.contents)
    if kind is None or inner.dictionary:
        raise TypeError(f"{what} has a dictionary of a type that is not supported")
    _check_array(array, schema, 2, what)
    _check_range(array, start, length, what)
    words = array.dictionary.contents
    if words.length < 0:
        raise _malformed(what, f"its dictionary has the length {words.length}")
    found, is_text = _values(held, inner, words, 0, words.length, f"the dictionary of {what}")
    if length == 0:
        return [], is_text
    if not array.buffers[1]:
        raise _malformed(what, "it lacks its indices")
    first = start + array.offset
    valid = _valid(held, array, first, length, what)
    values: list[Value | None] = []
    for i, index in enumerate(held.numbers(array.buffers[1], length, kind, first).tolist()):
        if valid is not None and not valid[i]:
            values.append(None)
        elif 0 <= index < len(found):
            values.append(found[index])
        else:
            raise _malformed(what, f"element {i} is not in its dictionary")
    return values, is_text


def _numbers(
    held: _Held,
    schema: _Schema,
    array: _Array,
    start: int,
    length: int,
    timed: bool,
    what: str,
) -> npt.NDArray[np.int64]:
    """A column of integers."""
    written = _text(schema.format)
    unit = _UNITS.get(written[:4], 0) if timed else 0
    kind = "i8" if unit else _INTEGERS.get(written)
    if kind is None or schema.dictionary:
        raise TypeError(
            f"{what} has the type {type_name(written)}, and must be of "
            f"{'timestamps or ' if timed else ''}integers"
        )
    _check_array(array, schema, 2, what)
    _check_range(array, start, length, what)
    if length and not array.buffers[1]:
        raise _malformed(what, "it lacks its numbers")
    first = start + array.offset
    valid = _valid(held, array, first, length, what)
    found = held.numbers(array.buffers[1], length, kind, first)
    if valid is None and kind == "i8" and unit <= 1:
        return frozen(found)
    numbers = [number * (unit or 1) for number in found.tolist()]
    if valid is not None:
        numbers = [number if ok else 0 for number, ok in zip(numbers, valid, strict=True)]
    for i, number in enumerate(numbers):
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(
                f"element {i} of {what} does not fit in 64 bits{' as nanoseconds' if timed else ''}"
            )
    return frozen(np.array(numbers, np.int64))


def _strings(
    held: _Held, schema: _Schema, array: _Array, start: int, length: int, what: str
) -> list[str | bytes | None]:
    """Elements as `str`, or as `bytes` if the type is binary; None for null."""
    values, is_text = _values(held, schema, array, start, length, what)
    if is_text:
        return [None if value is None else bytes(value).decode() for value in values]
    return [None if value is None else bytes(value) for value in values]


def _metadata(
    held: _Held, schema: _Schema, array: _Array, start: int, length: int, what: str
) -> tuple[Metadata | None, ...]:
    """A column of maps, or of structs, as mappings."""
    written = _text(schema.format)
    if written == "+s":
        return _metadata_of_structs(held, schema, array, start, length, what)
    pair = _checked(schema.children[0].contents) if schema.n_children == 1 else None
    if (
        written not in ("+m", "+l", "+L")
        or pair is None
        or pair.format != b"+s"
        or pair.n_children != 2
    ):
        raise TypeError(
            f"{what} has the type {type_name(written)}, and must be of maps or of structs"
        )
    _check_array(array, schema, 2, what)
    _check_range(array, start, length, what)
    pairs = array.children[0].contents
    _check_array(pairs, pair, 1, what)
    if length == 0:
        return ()
    if not array.buffers[1]:
        raise _malformed(what, "it lacks its offsets")
    start += array.offset
    valid = _valid(held, array, start, length, what)
    kind = "i8" if written == "+L" else "i4"
    places = held.numbers(array.buffers[1], length + 1, kind, start).tolist()
    first, stop = places[0], places[-1]
    if first < 0 or places != sorted(places):
        raise _malformed(what, "its offsets descend or are negative")
    _check_range(pairs, first, stop - first, what)
    keys, values = (
        _strings(held, child, pairs.children[i].contents, pairs.offset + first, stop - first, what)
        for i, child in enumerate(_children(pair))
    )
    found: list[Metadata | None] = []
    for i in range(length):
        if valid is not None and not valid[i]:
            found.append(None)
            continue
        mapping = {}
        for j in range(places[i] - first, places[i + 1] - first):
            key = keys[j]
            if type(key) is not str:
                raise TypeError(f"{what} must have strings as keys")
            if values[j] is not None:
                mapping[key] = values[j]
        found.append(MappingProxyType(mapping))
    return tuple(found)


def _metadata_of_structs(
    held: _Held, schema: _Schema, array: _Array, start: int, length: int, what: str
) -> tuple[Metadata | None, ...]:
    _check_array(array, schema, 1, what)
    _check_range(array, start, length, what)
    first = array.offset + start
    valid = _valid(held, array, first, length, what)
    columns = []
    for i, child in enumerate(_children(schema)):
        name = _text(child.name)
        values = _strings(
            held, child, array.children[i].contents, first, length, f"{name!r} in {what}"
        )
        columns.append((name, values))
    return tuple(
        None
        if valid is not None and not valid[j]
        else MappingProxyType(
            {name: column[j] for name, column in columns if column[j] is not None}
        )
        for j in range(length)
    )


class _Plan:
    """Which columns of data of one schema the parts of a record come from."""

    def __init__(self, schema: _Schema, wanted: Sequence[str | None]) -> None:
        self.table = schema.format == b"+s" and not schema.dictionary
        self.names: list[str] = []
        if not self.table:
            for name in wanted:
                if name is not None:
                    raise ValueError(f"no column {name!r}: the data is an array without columns")
            return
        self.children = _children(schema)
        self.names = [_text(child.name) for child in self.children]
        self.columns = dict(zip(RECORD_COLUMNS, choose(self.names, wanted), strict=True))

    def batch(self, schema: _Schema, held: _Held) -> RecordBatch:
        root = held.array
        if not self.table:
            if root.length < 0:
                raise _malformed("the array", f"its length is {root.length}")
            values, is_text = _values(held, schema, root, 0, root.length, "the array")
            return _batch_of(values, is_text, None)
        _check_array(root, schema, 1, "the table")
        start, length = root.offset, root.length
        valid = _valid(held, root, start, length, "the table")

        def read(part: str, function: Callable[..., Any], *more: object) -> Any:
            column = self.columns[part]
            if column < 0:
                return None
            array = root.children[column].contents
            what = f"the column {self.names[column]!r}"
            return function(held, self.children[column], array, start, length, *more, what)

        def present(values: list[Value | None]) -> list[Value | None]:
            if valid is None:
                return values
            return [value if ok else None for value, ok in zip(values, valid, strict=True)]

        values, is_text = read("value", _values)
        batch = _batch_of(present(values), is_text, self.names[self.columns["value"]])
        found = read("key", _values)
        if found is not None:
            batch._keys = tuple(present(found[0]))
            batch._key_text = found[1]
        batch._timestamps = read("timestamp", _numbers, True)
        batch._offsets = read("offset", _numbers, False)
        wide = read("partition", _numbers, False)
        if wide is not None:
            for i, number in enumerate(wide.tolist()):
                if not -(1 << 31) <= number < 1 << 31:
                    name = self.names[self.columns["partition"]]
                    raise ValueError(f"element {i} of the column {name!r} does not fit in 32 bits")
            batch._partitions = frozen(wide.astype(np.int32))
        batch._metadata = read("metadata", _metadata)
        return batch


def _batch_of(values: list[Value | None], is_text: bool, name: str | None) -> RecordBatch:
    batch = RecordBatch._of_values(tuple(NO_VALUE if value is None else value for value in values))
    batch._nullable = None in values
    batch._text = TEXT if is_text else BINARY
    batch._name = name
    return batch


class _Reader:
    """A producer's stream as an iterator of batches, of a chunk each."""

    def __init__(self, capsule: object, wanted: Sequence[str | None]) -> None:
        self._stream = _Stream()
        self._schema = _Schema()
        self._busy = threading.Lock()  # who has it is in __next__, and may end the stream
        source = _Stream.from_address(_pointer_in(capsule, _STREAM))
        if not source.release:
            raise ValueError("the Arrow stream was released already")
        ctypes.memmove(
            ctypes.addressof(self._stream), ctypes.addressof(source), ctypes.sizeof(source)
        )
        source.release = None
        if not self._stream.get_schema or not self._stream.get_next:
            raise ValueError("the Arrow stream is malformed: it lacks its functions")
        code = self._call(self._stream.get_schema, self._schema)
        if code:
            self._schema.release = None
            self._fail(code)
        self._plan = _Plan(_checked(self._schema), wanted)

    def __del__(self) -> None:
        if self._schema.release:
            _RELEASE(self._schema.release)(ctypes.addressof(self._schema))
        self._end()

    def _call(self, function: int, out: ctypes.Structure) -> int:
        return int(_GET(function)(ctypes.addressof(self._stream), ctypes.addressof(out)))

    def _fail(self, code: int) -> NoReturn:
        reason = None
        if self._stream.get_last_error:
            reason = _LAST_ERROR(self._stream.get_last_error)(ctypes.addressof(self._stream))
        message = os.strerror(code) if not reason else _text(ctypes.string_at(reason))
        self._end()
        raise OSError(code, f"the Arrow stream failed: {message}")

    def _end(self) -> None:
        release = self._stream.release
        if release:
            stream = _Stream()
            ctypes.memmove(
                ctypes.addressof(stream), ctypes.addressof(self._stream), ctypes.sizeof(stream)
            )
            self._stream.release = None  # first: meanwhile another thread may look at it
            _RELEASE(release)(ctypes.addressof(stream))

    def empty(self) -> RecordBatch:
        """The batch of a stream without chunks."""
        schema, name = self._schema, None
        if self._plan.table:
            column = self._plan.columns["value"]
            schema, name = self._plan.children[column], self._plan.names[column]
        if schema.dictionary:
            schema = schema.dictionary.contents
        return _batch_of([], _kind_of(_text(schema.format)).text, name)

    def __iter__(self) -> Iterator[RecordBatch]:
        return self

    def __next__(self) -> RecordBatch:
        if not self._busy.acquire(blocking=False):
            raise ValueError("another thread is reading the Arrow stream")
        # To the end: who found an error releases the stream, and nobody may be in it then.
        try:
            return self._read()
        finally:
            self._busy.release()

    def _read(self) -> RecordBatch:
        held = _Held()
        if not self._stream.release:
            raise StopIteration
        code = self._call(self._stream.get_next, held.array)
        if code:
            held.array.release = None
            self._fail(code)
        if not held.array.release:
            self._end()
            raise StopIteration
        try:
            return self._plan.batch(self._schema, held)
        except BaseException:
            self._end()
            raise


_NONE = (None,) * 6


def import_stream(data: object, wanted: tuple[str | None, ...] = _NONE) -> Iterator[RecordBatch]:
    """Batches of the chunks of Arrow data, as they come.

    Parameters
    ----------
    data : object with ``__arrow_c_array__`` or ``__arrow_c_stream__``
    wanted : tuple of (str or None)
        Columns, in the order of ``RecordBatch.from_arrow``.

    Returns
    -------
    iterator of RecordBatch
    """
    export = getattr(data, "__arrow_c_stream__", None)
    return iter((import_batch(data, wanted),)) if export is None else _Reader(export(), wanted)


def import_batch(data: object, wanted: tuple[str | None, ...] = _NONE) -> RecordBatch:
    """All of some Arrow data as one batch; see `RecordBatch.from_arrow`."""
    export = getattr(data, "__arrow_c_array__", None)
    if export is None:
        stream = getattr(data, "__arrow_c_stream__", None)
        if stream is None:
            raise TypeError(
                f"data must have __arrow_c_array__ or __arrow_c_stream__, and "
                f"{type(data).__name__} has neither"
            )
        reader = _Reader(stream(), wanted)
        return join_batches([*reader] or [reader.empty()])
    capsules = export()
    if not isinstance(capsules, tuple) or len(capsules) != 2:
        raise TypeError("__arrow_c_array__ must return two capsules")
    held = _take_array(capsules[1])
    schema = _schema_in(capsules[0])
    return _Plan(schema, wanted).batch(schema, held)


def join_batches(batches: list[RecordBatch]) -> RecordBatch:
    """One batch after the other, as one; no value is copied.

    Parameters
    ----------
    batches : list of RecordBatch

    Returns
    -------
    RecordBatch
    """
    if len(batches) == 1:
        return batches[0]
    joined = RecordBatch._of_values(
        tuple(itertools.chain.from_iterable(part._values for part in batches))
    )
    texts = {part._text for part in batches}
    if texts and BINARY not in texts:
        joined._text = TEXT if texts == {TEXT} else UNCHECKED
    joined._nullable = any(part._nullable for part in batches)
    joined._key_text = any(part._key_text for part in batches)
    joined._name = next((part._name for part in batches if part._name), None)

    def column(name: str, unset: object) -> list[Any] | None:
        if all(getattr(part, name) is None for part in batches):
            return None
        found: list[Any] = []
        for part in batches:
            entries = getattr(part, name)
            found.extend([unset] * len(part) if entries is None else entries)
        return found

    keys, metadata = column("_keys", None), column("_metadata", None)
    joined._keys = None if keys is None else tuple(keys)
    joined._metadata = None if metadata is None else tuple(metadata)
    for name, dtype in (("_timestamps", "i8"), ("_offsets", "i8"), ("_partitions", "i4")):
        numbers = column(name, 0)
        setattr(joined, name, None if numbers is None else frozen(np.array(numbers, dtype)))
    return joined


# -- Out -----------------------------------------------------------------------------------------

_ALIVE: dict[int, object] = {}
_keys = itertools.count(1)  # 0 would be a NULL


def _keep(thing: object) -> int:
    """Keep something alive until `_drop`; its number."""
    key = next(_keys)
    _ALIVE[key] = thing
    return key


def _drop(key: int | None) -> None:
    _ALIVE.pop(key or 0, None)


def _release_node(kind: type[Any], address: int) -> None:
    _clear_error()
    node = kind.from_address(address)
    for i in range(node.n_children):
        child = node.children[i].contents
        if child.release:  # else the consumer moved it away
            _RELEASE(child.release)(ctypes.addressof(child))
    key = node.private_data
    node.release = None
    node.private_data = None
    _drop(key)


def _release_array(address: int) -> None:
    _release_node(_Array, address)


def _release_schema(address: int) -> None:
    _release_node(_Schema, address)


def _release_stream(address: int) -> None:
    _clear_error()
    stream = _Stream.from_address(address)
    key = stream.private_data
    stream.release = None
    stream.private_data = None
    _drop(key)


def _get_schema(address: int, out: int) -> int:
    chunks = _ALIVE[_Stream.from_address(address).private_data]
    assert isinstance(chunks, _Chunks)
    return chunks.answer(out, chunks.schema)


def _get_next(address: int, out: int) -> int:
    chunks = _ALIVE[_Stream.from_address(address).private_data]
    assert isinstance(chunks, _Chunks)
    return chunks.answer(out, chunks.next)


def _get_last_error(address: int) -> int | None:
    chunks = _ALIVE[_Stream.from_address(address).private_data]
    assert isinstance(chunks, _Chunks)
    return None if chunks.error is None else ctypes.addressof(chunks.error)


def _destructor(kind: type[Any], name: bytes) -> Callable[[int], None]:
    """What frees the struct in a capsule, and releases it if nobody took it."""

    def destroy(capsule: int) -> None:
        _clear_error()
        address = _pointer_of_dying(capsule, name)
        node = kind.from_address(address)
        if node.release:
            _RELEASE(node.release)(address)
        _IN_CAPSULES.pop(address, None)

    return destroy


def _callback(kind: Any, function: Callable[..., object]) -> int | None:
    """The address of a function for consumers, who may call it after this module is gone."""
    callback = kind(function)
    _api.Py_IncRef(ctypes.py_object(callback))
    return ctypes.cast(callback, c_void_p).value


_IN_CAPSULES: dict[int, ctypes.Structure] = {}
_ON_RELEASE = {
    _Schema: _callback(_RELEASE, _release_schema),
    _Array: _callback(_RELEASE, _release_array),
    _Stream: _callback(_RELEASE, _release_stream),
}
_ON_GET_SCHEMA = _callback(_GET, _get_schema)
_ON_GET_NEXT = _callback(_GET, _get_next)
_ON_GET_LAST_ERROR = _callback(_LAST_ERROR, _get_last_error)
_DESTRUCTORS = {
    _SCHEMA: _callback(_DESTRUCTOR, _destructor(_Schema, _SCHEMA)),
    _ARRAY: _callback(_DESTRUCTOR, _destructor(_Array, _ARRAY)),
    _STREAM: _callback(_DESTRUCTOR, _destructor(_Stream, _STREAM)),
}


def _capsule(node: ctypes.Structure, name: bytes) -> object:
    address = ctypes.addressof(node)
    _IN_CAPSULES[address] = node
    return _new_capsule(address, name, _DESTRUCTORS[name])


def _pointers(kind: type[Any], nodes: Sequence[Any]) -> Any:
    return (POINTER(kind) * len(nodes))(*map(ctypes.pointer, nodes))


def _make_schema(
    written: str, name: str, nullable: bool = False, children: Sequence[_Schema] = ()
) -> _Schema:
    node = _Schema()
    texts = (written.encode(), name.encode())
    node.format, node.name = texts
    node.flags = _NULLABLE if nullable else 0
    node.n_children = len(children)
    pointers = _pointers(_Schema, children)
    if children:
        node.children = ctypes.cast(pointers, POINTER(POINTER(_Schema)))
    node.private_data = _keep((texts, pointers, children))
    node.release = _ON_RELEASE[_Schema]
    return node


def _make_array(
    length: int, nulls: int, buffers: Sequence[object], children: Sequence[_Array] = ()
) -> _Array:
    """An array of buffers, which are arrays of NumPy's or None."""
    node = _Array()
    node.length, node.null_count = length, nulls
    node.n_buffers, node.n_children = len(buffers), len(children)
    listed = (c_void_p * max(len(buffers), 1))(
        *(buffer.ctypes.data if isinstance(buffer, np.ndarray) else None for buffer in buffers)
    )
    node.buffers = ctypes.cast(listed, POINTER(c_void_p))
    pointers = _pointers(_Array, children)
    if children:
        node.children = ctypes.cast(pointers, POINTER(POINTER(_Array)))
    node.private_data = _keep((listed, list(buffers), pointers, children))
    node.release = _ON_RELEASE[_Array]
    return node


def _bitmap(present: Sequence[bool]) -> tuple[npt.NDArray[np.uint8] | None, int]:
    nulls = len(present) - sum(present)
    if not nulls:
        return None, 0
    return np.packbits(np.array(present, bool), bitorder="little"), nulls


def _bytes_array(values: Sequence[Value | None], written: str) -> _Array:
    """A column of binary values or of strings."""
    bitmap, nulls = _bitmap([value is not None for value in values])
    filled = [b"" if value is None else value for value in values]
    if written[0] == "v":
        return _views_array(filled, bitmap, nulls)
    total = sum(map(len, filled))
    narrow = written in "zu"
    if narrow and total > _most_bytes:  # of values and keys there are no more: see fitting
        raise ValueError(
            f"a column of {total} bytes is too much for offsets of 32 bits: export fewer rows at a "
            f"time, or as a type that is large"
        )
    offsets = np.zeros(len(filled) + 1, "i4" if narrow else "i8")
    np.cumsum([len(value) for value in filled], out=offsets[1:])
    data = np.frombuffer(b"".join(filled) or b"\0", np.uint8)
    return _make_array(len(filled), nulls, [bitmap, offsets, data])


def _views_array(
    values: Sequence[Value], bitmap: npt.NDArray[np.uint8] | None, nulls: int
) -> _Array:
    buffers = [bytearray()]
    views = bytearray()
    for i, value in enumerate(values):
        size = len(value)
        if size > _most_bytes:
            raise ValueError(
                f"row {i} has {size} bytes, too many for a view: ask for a type that is large"
            )
        views += size.to_bytes(4, sys.byteorder)
        if size <= _SHORT:
            views += bytes(value).ljust(_SHORT, b"\0")
            continue
        if len(buffers[-1]) + size > _most_bytes:
            buffers.append(bytearray())
        views += bytes(value[:4])
        views += (len(buffers) - 1).to_bytes(4, sys.byteorder)
        views += len(buffers[-1]).to_bytes(4, sys.byteorder)
        buffers[-1] += value
    filled = [np.frombuffer(buffer, np.uint8) for buffer in buffers if buffer]
    sizes = np.array([len(buffer) for buffer in filled], np.int64)
    written = np.frombuffer(views or b"\0" * 16, np.uint8)
    return _make_array(len(values), nulls, [bitmap, written, *filled, sizes])


@final
class Export:
    """Columns of a batch or of a result, for any library that reads Arrow data."""

    def __init__(
        self,
        batch: RecordBatch,
        result: BatchResult | None,
        every: bool,
        columns: Sequence[str],
        type: str | None,
    ) -> None:
        self._batch = batch
        self._columns = check_columns(columns, RECORD_COLUMNS if result is None else RESULT_COLUMNS)
        check_type(type)
        self._type = type
        self._result = result
        self._names = export_names(self._columns, batch._name)
        # By row: the place of its record in the batch, or None.
        self._places: Sequence[int | None] = range(len(batch))
        self._every = every
        if every and result is not None:
            places = result._places
            self._places = [
                None if status in (FILTERED, ERROR) else places[i]
                for i, status in enumerate(result.status.tolist())
            ]

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Export({len(self)} rows: {', '.join(self._names)})"

    def __arrow_c_schema__(self) -> object:
        return _capsule(self.schema(self._formats(None)), _SCHEMA)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        formats = self._formats(requested_schema)
        if self.fitting(formats, 0) < len(self):
            raise ValueError(
                f"more than {_most_bytes} bytes do not fit in one array with offsets of 32 bits: "
                f"ask for a stream, or for a type that is large"
            )
        schema = _capsule(self.schema(formats), _SCHEMA)
        return schema, _capsule(self.rows(formats, 0, len(self)), _ARRAY)

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        stream = _Stream()
        chunks = _Chunks(self, self._formats(requested_schema))
        stream.get_schema = _ON_GET_SCHEMA
        stream.get_next = _ON_GET_NEXT
        stream.get_last_error = _ON_GET_LAST_ERROR
        stream.private_data = _keep(chunks)
        stream.release = _ON_RELEASE[_Stream]
        return _capsule(stream, _STREAM)

    def _formats(self, requested: object) -> list[str]:
        """The types of the columns, as the C data interface writes them."""
        kind = self._type
        if kind is None:
            kind = "string" if self._batch._text != BINARY else "binary"
        text = TYPES[kind.replace("binary", "string")]
        binary = TYPES[kind.replace("string", "binary")]
        known = {
            "value": TYPES[kind],
            "key": text if self._batch._key_text else binary,
            "status": text,
            "error": text,
            "timestamp": "tsn:",
            "partition": "i",
            "metadata": "+m",
        }
        found = [known.get(column, "l") for column in self._columns]
        if requested is None:
            return found
        schema = _schema_in(requested)
        if schema.format != b"+s" or schema.dictionary:
            raise ValueError(
                f"the schema asked for is {type_name(_text(schema.format))}, and this is a table"
            )
        children = _children(schema)
        names = [_text(child.name) for child in children]
        if names != self._names:
            raise ValueError(
                f"the schema asked for has the columns {names}, here are {self._names}"
            )
        for i, child in enumerate(children):
            wish = _text(child.format)
            if child.dictionary or not fits(self._columns[i], wish):
                raise ValueError(
                    f"the column {names[i]!r} cannot be exported as "
                    f"{'a dictionary' if child.dictionary else type_name(wish)}"
                )
            found[i] = wish
        return found

    def schema(self, formats: Sequence[str]) -> _Schema:
        children = []
        for name, column, written in zip(self._names, self._columns, formats, strict=True):
            nullable = column not in ("index", "status") and (
                self._every or column not in ("partition", "offset")
            )
            inner: Sequence[_Schema] = ()
            if written == "+m":
                pair = (_make_schema("u", "key"), _make_schema("u", "value", True))
                inner = (_make_schema("+s", "entries", False, pair),)
            children.append(_make_schema(written, name, nullable, inner))
        return _make_schema("+s", "", False, children)

    def fitting(self, formats: Sequence[str], start: int) -> int:
        """How many rows from `start` on fit in one array."""
        length = len(self) - start
        for column, written in zip(self._columns, formats, strict=True):
            if written not in ("z", "u") or column in ("status", "error"):
                continue
            fit, room = 0, _most_bytes
            for value in self._bytes(column, start, length):
                room -= 0 if value is None else len(value)
                if room < 0:
                    if fit == 0:
                        raise ValueError(
                            f"row {start} has {_most_bytes - room} bytes in the column "
                            f"{column!r}, too many for offsets of 32 bits: ask for a type that is "
                            f"large"
                        )
                    break
                fit += 1
            length = fit
        return length

    def _bytes(self, column: str, start: int, length: int) -> list[Value | None]:
        """Values or keys by row."""
        source = self._batch._values if column == "value" else self._batch._keys
        places = self._places[start : start + length]
        if source is None:
            return [None] * length
        found = [None if place is None else source[place] for place in places]
        return [None if value is NO_VALUE else value for value in found]

    def rows(self, formats: Sequence[str], start: int, length: int) -> _Array:
        """Some rows, as a struct."""
        children: list[_Array] = []
        try:
            for column, written in zip(self._columns, formats, strict=True):
                children.append(self._column(column, written, start, length))
        except BaseException:
            for child in children:
                _release_array(ctypes.addressof(child))
            raise
        return _make_array(length, 0, [None], children)

    def _column(self, column: str, written: str, start: int, length: int) -> _Array:
        if column in ("value", "key"):
            values = self._bytes(column, start, length)
            if written[-1] in "uU":
                self._check_text(column, values, start)
            return _bytes_array(values, written)
        if column in ("status", "error"):
            strings = self._statuses() if column == "status" else self._messages()
            return _bytes_array(strings[start : start + length], written)
        if column == "metadata":
            return self._maps(start, length)
        return self._integers(column, written, start, length)

    def _check_text(self, column: str, values: Sequence[Value | None], start: int) -> None:
        if self._batch._key_text if column == "key" else self._batch._text == TEXT:
            return
        for i, value in enumerate(values):
            try:
                bytes(value or b"").decode()
            except UnicodeDecodeError:
                raise ValueError(
                    f"the {column} of row {start + i} is not UTF-8: export it as binary, "
                    f"with to_arrow(type='binary')"
                ) from None

    def _origins(self) -> list[int]:
        """By row: the position of its record in the input."""
        assert self._result is not None
        if self._every:
            return list(range(len(self)))
        status = self._result.status
        return np.flatnonzero((status != FILTERED) & (status != ERROR)).tolist()

    def _statuses(self) -> list[Value | None]:
        assert self._result is not None
        status = self._result.status.tolist()
        return [STATUSES[status[i]].encode() for i in self._origins()]

    def _messages(self) -> list[Value | None]:
        found: list[Value | None] = [None] * len(self)
        if self._every and self._result is not None:
            for index, error in self._result.errors:
                found[index] = str(error.message).encode("utf-8", "replace")
        return found

    def _integers(self, column: str, written: str, start: int, length: int) -> _Array:
        places = self._places[start : start + length]
        if column == "index":
            numbers: list[int | None] = [*self._origins()[start : start + length]]
        else:
            source = {
                "timestamp": self._batch._timestamps,
                "offset": self._batch._offsets,
                "partition": self._batch._partitions,
            }[column]
            found = [0] * len(self._batch) if source is None else source.tolist()
            numbers = [None if place is None else found[place] for place in places]
            if column == "timestamp":  # 0: it was not given
                numbers = [number or None for number in numbers]
        bitmap, nulls = _bitmap([number is not None for number in numbers])
        dtype = np.int32 if written == "i" else np.int64
        filled = np.array([number or 0 for number in numbers] or [0], dtype)
        return _make_array(length, nulls, [bitmap, filled])

    def _maps(self, start: int, length: int) -> _Array:
        """A map from strings to strings by row."""
        source = self._batch._metadata
        present, offsets = [], [0]
        keys: list[Value | None] = []
        values: list[Value | None] = []
        for row, place in enumerate(self._places[start : start + length], start):
            metadata = None if source is None or place is None else source[place]
            present.append(metadata is not None)
            for key, value in (metadata or {}).items():
                if type(key) is not str or type(value) is not str:
                    raise TypeError(
                        f"the metadata of row {row} has {key!r}: {type(value).__name__}; "
                        f"what is exported must be strings"
                    )
                keys.append(key.encode())
                values.append(value.encode())
            offsets.append(len(keys))
        pair = (_bytes_array(keys, "u"), _bytes_array(values, "u"))
        bitmap, nulls = _bitmap(present)
        entries = _make_array(len(keys), 0, [None], pair)
        return _make_array(length, nulls, [bitmap, np.array(offsets, np.int32)], (entries,))


class _Chunks:
    """An export as a stream: as many chunks as offsets of 32 bits make necessary, mostly one."""

    def __init__(self, export: Export, formats: list[str]) -> None:
        self._export = export
        self._formats = formats
        self._start = 0
        self._done = False
        self._busy = threading.Lock()  # who has it makes a chunk
        self.error: ctypes.Array[c_char] | None = None
        # The first chunk is made now: what is wrong with the values is then an exception here.
        self._ready = self._prepare()

    def __del__(self) -> None:
        ready = getattr(self, "_ready", None)
        if ready is not None:
            _release_array(ctypes.addressof(ready))

    def _prepare(self) -> _Array | None:
        if self._done:
            return None
        length = self._export.fitting(self._formats, self._start)
        array = self._export.rows(self._formats, self._start, length)
        self._start += length
        self._done = self._start == len(self._export)
        return array

    def schema(self) -> _Schema:
        return self._export.schema(self._formats)

    def next(self) -> _Array:
        if not self._busy.acquire(blocking=False):
            raise ValueError("another thread is reading the Arrow stream")
        try:
            array = self._ready or self._prepare()
            self._ready = None
        finally:
            self._busy.release()
        return array or _Array()

    def answer(self, out: int, make: Callable[[], ctypes.Structure]) -> int:
        """Move what is made to where the consumer wants it."""
        try:
            node = make()
        except BaseException as error:  # of a signal, too: the consumer would see success
            message = str(error) or type(error).__name__
            self.error = ctypes.create_string_buffer(message.encode("utf-8", "replace"))
            return errno.ENOMEM if isinstance(error, MemoryError) else errno.EINVAL
        ctypes.memmove(out, ctypes.addressof(node), ctypes.sizeof(node))
        return 0
