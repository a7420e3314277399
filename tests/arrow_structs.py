"""Arrow's C structs made by hand, right or wrong, that count how often they are released."""

import ctypes
from collections import Counter
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, PYFUNCTYPE, c_char_p, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from typing import Any


class CSchema(ctypes.Structure):
    """struct ArrowSchema."""


class CArray(ctypes.Structure):
    """struct ArrowArray."""


class CStream(ctypes.Structure):
    """struct ArrowArrayStream."""


CSchema._fields_ = [
    ("format", c_char_p),
    ("name", c_char_p),
    ("metadata", c_char_p),
    ("flags", c_int64),
    ("n_children", c_int64),
    ("children", POINTER(POINTER(CSchema))),
    ("dictionary", POINTER(CSchema)),
    ("release", c_void_p),
    ("private_data", c_void_p),
]
CArray._fields_ = [
    ("length", c_int64),
    ("null_count", c_int64),
    ("offset", c_int64),
    ("n_buffers", c_int64),
    ("n_children", c_int64),
    ("buffers", POINTER(c_void_p)),
    ("children", POINTER(POINTER(CArray))),
    ("dictionary", POINTER(CArray)),
    ("release", c_void_p),
    ("private_data", c_void_p),
]
CStream._fields_ = [
    ("get_schema", c_void_p),
    ("get_next", c_void_p),
    ("get_last_error", c_void_p),
    ("release", c_void_p),
    ("private_data", c_void_p),
]

RELEASE = CFUNCTYPE(None, c_void_p)
GET = CFUNCTYPE(c_int, c_void_p, c_void_p)
LAST_ERROR = CFUNCTYPE(c_void_p, c_void_p)

new_capsule = PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
pointer_of = PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)

released: Counter[int] = Counter()
"""How often the struct with a number in `private_data` was released."""


def _released(kind: type[Any]) -> Any:
    def release(address: int) -> None:
        struct = kind.from_address(address)
        released[struct.private_data] += 1
        struct.release = None

    return RELEASE(release)


# Kept for ever, as what they were given to may be.
ON_RELEASE = {kind: _released(kind) for kind in (CSchema, CArray, CStream)}
KEPT: list[object] = []
NUMBERS = iter(range(1, 1 << 30))


def address_of(function: object) -> int | None:
    return ctypes.cast(function, c_void_p).value  # type: ignore[arg-type]


@dataclass
class Node:
    """A schema and an array, as far as they are given; `None` in a list makes a NULL."""

    format: bytes | None
    name: bytes = b""
    length: int = 0
    null_count: int = 0
    offset: int = 0
    buffers: list[bytes | None] | None = field(default_factory=list)
    children: list[Any] | None = field(default_factory=list)
    dictionary: Any = None
    schema: dict[str, int] = field(default_factory=dict)  # fields to overwrite
    array: dict[str, int] = field(default_factory=dict)

    def make_schema(self) -> CSchema:
        struct = CSchema(format=self.format, name=self.name)
        children = [child and child.make_schema() for child in self.children or []]
        return self._fill(struct, children, "make_schema", self.schema)

    def make_array(self) -> CArray:
        struct = CArray(length=self.length, null_count=self.null_count, offset=self.offset)
        if self.buffers is not None:
            blocks = [
                None if buffer is None else ctypes.create_string_buffer(buffer, max(len(buffer), 1))
                for buffer in self.buffers
            ]
            addresses = [None if block is None else ctypes.addressof(block) for block in blocks]
            listed = (c_void_p * (len(blocks) + 1))(*addresses)
            struct.n_buffers = len(blocks)
            struct.buffers = ctypes.cast(listed, POINTER(c_void_p))
            KEPT.append((blocks, listed))
        children = [child and child.make_array() for child in self.children or []]
        return self._fill(struct, children, "make_array", self.array)

    def _fill(self, struct: Any, children: list[Any], make: str, changes: dict[str, int]) -> Any:
        kind = type(struct)
        if children:
            listed = (POINTER(kind) * len(children))(
                *(POINTER(kind)() if child is None else ctypes.pointer(child) for child in children)
            )
            struct.n_children = len(children)
            struct.children = ctypes.cast(listed, POINTER(POINTER(kind)))
            KEPT.append((children, listed))
        if self.dictionary is not None:
            struct.dictionary = ctypes.pointer(getattr(self.dictionary, make)())
        struct.private_data = next(NUMBERS)
        struct.release = address_of(ON_RELEASE[kind])
        for name, value in changes.items():
            setattr(struct, name, value)
        KEPT.append(struct)
        return struct


class Producer:
    """Offers a struct in a capsule; like any producer it releases what nobody took."""

    def __init__(self, node: Node, names: tuple[bytes, bytes] = (b"arrow_schema", b"arrow_array")):
        self.schema = node.make_schema()
        self.array = node.make_array()
        self.numbers = (self.schema.private_data, self.array.private_data)
        self.names = names

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        return tuple(
            new_capsule(ctypes.addressof(struct), name, None)
            for struct, name in zip((self.schema, self.array), self.names, strict=True)
        )

    @property
    def releases(self) -> int:
        """How often the array was released."""
        return released[self.numbers[1]]


class StreamProducer:
    """A stream of structs; `fail` is the number of the call of get_next that fails.

    `called` is called with the name of a function before it answers.
    """

    def __init__(
        self,
        nodes: list[Node],
        fail: int | None = None,
        fail_schema: bool = False,
        called: Callable[[str], object] = lambda name: None,
    ):
        arrays = [node.make_array() for node in nodes]
        self.numbers = [array.private_data for array in arrays]
        self.calls = 0
        message = ctypes.create_string_buffer(b"the disk is on fire")

        def get_schema(stream: int, out: int) -> int:
            if fail_schema:
                return 5
            schema = nodes[0].make_schema()
            ctypes.memmove(out, ctypes.addressof(schema), ctypes.sizeof(schema))
            return 0

        def get_next(stream: int, out: int) -> int:
            called("get_next")
            self.calls += 1
            if self.calls == fail:
                return 5
            array = arrays.pop(0) if arrays else CArray()
            ctypes.memmove(out, ctypes.addressof(array), ctypes.sizeof(array))
            return 0

        def get_last_error(stream: int) -> int:
            called("get_last_error")
            return ctypes.addressof(message)

        functions = GET(get_schema), GET(get_next), LAST_ERROR(get_last_error)

        def release(stream: int) -> None:
            called("release")
            ON_RELEASE[CStream](stream)

        functions = *functions, RELEASE(release)
        self.stream = CStream(*map(address_of, functions), next(NUMBERS))
        self.number = self.stream.private_data
        KEPT.append((functions, message, self.stream))

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return new_capsule(ctypes.addressof(self.stream), b"arrow_array_stream", None)

    @property
    def releases(self) -> int:
        """How often the stream was released."""
        return released[self.number]


def ints(width: int, *numbers: int) -> bytes:
    """Little-endian integers."""
    return b"".join(number.to_bytes(width, "little", signed=True) for number in numbers)


def binary(*values: bytes, name: bytes = b"", format: bytes = b"z", **changes: Any) -> Node:
    """A column of values with offsets of 32 bits."""
    bounds = [0]
    for value in values:
        bounds.append(bounds[-1] + len(value))
    node = Node(format, name, len(values), buffers=[None, ints(4, *bounds), b"".join(values)])
    for key, value in changes.items():
        setattr(node, key, value)
    return node


def table(*columns: Node | None, length: int | None = None, **changes: Any) -> Node:
    """A struct of columns."""
    first = columns[0].length if columns and columns[0] else 0
    node = Node(
        b"+s", length=first if length is None else length, buffers=[None], children=[*columns]
    )
    for key, value in changes.items():
        setattr(node, key, value)
    return node
