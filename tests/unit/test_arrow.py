"""Arrow's structs in and out: what is refused, who owns what, what is exported as what."""

import copy
import ctypes
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from arrow_structs import (
    GET,
    LAST_ERROR,
    RELEASE,
    CArray,
    CSchema,
    CStream,
    Node,
    Producer,
    StreamProducer,
    binary,
    ints,
    new_capsule,
    pointer_of,
    released,
    table,
)
from helpers import run_script

LONG = b"a value that is longer than twelve bytes"


def view(size: int, index: int = 0, start: int = 0) -> bytes:
    """One of Arrow's views of a long value."""
    return ints(4, size) + LONG[:4] + ints(4, index, start)


def views(*entries: bytes, data: bytes | None = LONG, sizes: bytes | None = None) -> Node:
    """A column of binary views with a buffer."""
    sizes = ints(8, len(data or b"")) if sizes is None else sizes
    return Node(b"vz", length=len(entries), buffers=[None, b"".join(entries), data, sizes])


def numbers(format: bytes, width: int, *values: int, name: bytes = b"n") -> Node:
    return Node(format, name, len(values), buffers=[None, ints(width, *values)])


def dictionary(*indices: int, words: Node | None = None, **changes: object) -> Node:
    node = Node(
        b"i",
        length=len(indices),
        buffers=[None, ints(4, *indices)],
        dictionary=words or binary(b"zero", b"one"),
    )
    for name, value in changes.items():
        setattr(node, name, value)
    return node


MALFORMED = {
    "length": (binary(b"a", length=-1), "length is -1"),
    "offset": (binary(b"a", offset=-1), "offset -1"),
    "overflow": (binary(b"a", length=1, offset=(1 << 63) - 1), "length is 1"),
    "no address": (binary(b"a", offset=1 << 61), "its length is 1, its offset 2305843009213693952"),
    "null count": (binary(b"a", null_count=-2), "null count is -2"),
    "more nulls": (binary(b"a", null_count=2), "null count is 2"),
    "no bitmap": (binary(b"a", null_count=1), "does not say which"),
    "few buffers": (binary(b"a", buffers=[None, ints(4, 0, 1)]), "has 2 buffers, not 3"),
    "many buffers": (binary(b"a", buffers=[None] * 4), "has 4 buffers, not 3"),
    "buffers": (binary(b"a", buffers=None, array={"n_buffers": 3}), "lacks its buffers"),
    "offsets": (binary(b"a", buffers=[None, None, b"a"]), "lacks its offsets"),
    "values": (binary(b"a", buffers=[None, ints(4, 0, 1), None]), "lacks its values"),
    "descending": (
        binary(b"a", b"b", buffers=[None, ints(4, 1, 2, 1), b"ab"]),
        "element 1 descend",
    ),
    "negative": (binary(b"a", buffers=[None, ints(4, -1, 1), b"ab"]), "element 0 descend"),
    "descending 64": (
        Node(b"Z", length=2, buffers=[None, ints(8, 0, 5, -(1 << 63)), b"ab"]),
        "element 1 descend",
    ),
    "children": (binary(b"a", array={"n_children": 2}), "has 2 children, not the 0"),
    "view size": (views(ints(4, -1) + bytes(12)), "view of element 0 leads out"),
    "view index": (views(view(20), view(20, index=1)), "view of element 1 leads out"),
    "view negative index": (views(view(20, index=-1)), "view of element 0 leads out"),
    "view start": (views(view(20, start=-1)), "view of element 0 leads out"),
    "view stop": (views(view(20, start=len(LONG) - 19)), "view of element 0 leads out"),
    "view buffer": (views(view(20), data=None, sizes=ints(8, 20)), "element 0 leads out"),
    "view sizes": (
        Node(b"vz", length=1, buffers=[None, view(20), LONG, None]),
        "lacks the sizes of its buffers",
    ),
    "views": (Node(b"vz", length=1, buffers=[None, None, ints(8)]), "lacks its views"),
    "view buffers": (Node(b"vz", length=1, buffers=[None, view(20)]), "has 2 buffers, not 3"),
    "fixed": (Node(b"w:4", length=1, buffers=[None, None]), "lacks its values"),
    "fixed length": (
        Node(b"w:4096", length=1 << 50, offset=1 << 52, buffers=[None, b"abcd"]),
        "length is|no memory|does not fit|not enough|Unable to allocate|cannot fit",
    ),
    "index": (dictionary(0, 2), "element 1 is not in its dictionary"),
    "negative index": (dictionary(-1), "element 0 is not in its dictionary"),
    "indices": (dictionary(0, buffers=[None, None]), "lacks its indices"),
    "dictionary length": (
        dictionary(0, words=binary(b"a", length=-1)),
        "dictionary has the length -1",
    ),
    "dictionary missing": (dictionary(0, array={"dictionary": None}), "only one of schema"),
    "table children": (table(binary(b"a"), array={"n_children": 2}), "has 2 children, not the 1"),
    "table child": (
        table(binary(b"a"), binary(b"a", name=b"value"), array={"n_children": 1}),
        "has 1 children, not the 2",
    ),
    "no children": (
        table(binary(b"a"), array={"children": None}),
        "the table .* lacks its children",
    ),
    "short child": (table(binary(b"a"), length=2), "has 1 elements where 2 are needed"),
    "short by offset": (
        table(binary(b"a"), offset=1),
        "has 1 elements where 2 are needed",
    ),
    "table buffers": (table(binary(b"a"), buffers=[]), "has 0 buffers, not 1"),
    "table length": (table(binary(b"a"), length=-1), "the table .* length is -1"),
}


@pytest.mark.parametrize(("node", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_arrays_are_refused(backend, node, reason) -> None:
    """With a sentence, and they are released once."""
    producer = Producer(node)
    with pytest.raises((ValueError, MemoryError, OverflowError), match=reason):
        backend.RecordBatch.from_arrow(producer)
    gc.collect()
    assert producer.releases == 1
    assert not producer.array.release


def nulled(node: Node, kind: str, name: str) -> Node:
    getattr(node, kind)[name] = None
    return node


SCHEMAS = {
    "released": (nulled(binary(b"a"), "schema", "release"), ValueError, "was released already"),
    "format": (Node(None), ValueError, "has no format"),
    "child count": (binary(schema={"n_children": -1}), ValueError, "lacks its children"),
    "children": (
        table(binary(b"a"), schema={"children": None}),
        ValueError,
        "lacks its children",
    ),
    "released child": (
        table(binary(b"a", schema={"release": None})),
        ValueError,
        "schema was released already",
    ),
    "unknown": (Node(b"?"), TypeError, "the array has the type '\\?'"),
    "int": (numbers(b"i", 4, 1), TypeError, "type int32, and must be of strings or of binary"),
    "list": (Node(b"+l", children=[binary(b"a")]), TypeError, "has the type list"),
    "time": (numbers(b"tsu:UTC", 8, 1), TypeError, "type timestamp\\[us\\]"),
    "fixed": (Node(b"w:x"), TypeError, "type fixed_size_binary\\[x\\]"),
    "negative fixed": (Node(b"w:-1"), TypeError, "fixed_size_binary\\[-1\\]"),
    "signed fixed": (Node(b"w:+1"), TypeError, "fixed_size_binary\\[\\+1\\]"),
    "spaced fixed": (Node(b"w: 1"), TypeError, "fixed_size_binary\\[ 1\\]"),
    "huge fixed": (Node(b"w:2147483648"), TypeError, "fixed_size_binary\\[2147483648\\]"),
    "endless fixed": (Node(b"w:" + b"9" * 5000), TypeError, "fixed_size_binary\\[9+\\]"),
    "views of what": (Node(b"v"), TypeError, "type 'v'"),
    "dictionary index": (dictionary(0, format=b"f"), TypeError, "a dictionary of a type"),
    "dictionary of one": (
        dictionary(0, words=dictionary(0)),
        TypeError,
        "a dictionary of a type that is not supported",
    ),
}


@pytest.mark.parametrize(("node", "kind", "reason"), SCHEMAS.values(), ids=SCHEMAS)
def test_malformed_or_unknown_schemas_are_refused(backend, node, kind, reason) -> None:
    """With a sentence that names the type, and the array is released once."""
    producer = Producer(node)
    with pytest.raises(kind, match=reason):
        backend.RecordBatch.from_arrow(producer)
    gc.collect()
    assert producer.releases == 1


def test_a_child_that_is_missing_is_refused(backend) -> None:
    """A NULL among the children, of the schema or of the array."""
    for kind in ("schema", "array"):
        producer = Producer(table(binary(b"a"), binary(b"b", name=b"value")))
        getattr(producer, kind).children[0] = type(getattr(producer, kind).children[0])()
        with pytest.raises(ValueError, match="child 0 is missing"):
            backend.RecordBatch.from_arrow(producer, value="value")
        assert producer.releases == 1


def test_capsules_have_names(backend) -> None:
    """Another name, another object, another number of them: refused, and nothing is taken."""
    for names in ((b"arrow_array", b"arrow_array"), (b"arrow_schema", b"arrow_array_stream")):
        with pytest.raises(TypeError, match=r"capsule must be named 'arrow_\w+', this one has the"):
            backend.RecordBatch.from_arrow(Producer(binary(b"a"), names))

    class Fake:
        def __init__(self, answer: object) -> None:
            self.answer = answer

        def __arrow_c_array__(self, requested_schema: object = None) -> object:
            return self.answer

    for answer, reason in (
        ((1, 2), "in a capsule, not in int"),
        ((1,), "two capsules"),
        (None, "two capsules"),
    ):
        with pytest.raises(TypeError, match=reason):
            backend.RecordBatch.from_arrow(Fake(answer))
    struct = CArray()
    nameless = new_capsule(ctypes.addressof(struct), None, None)
    with pytest.raises(TypeError, match="has no name"):
        backend.RecordBatch.from_arrow(Fake((nameless, nameless)))
    with pytest.raises(TypeError, match="__arrow_c_array__ or __arrow_c_stream__, and list has"):
        backend.RecordBatch.from_arrow([b"a"])


def test_a_released_array_is_refused(backend) -> None:
    """An array that was taken before, or a stream."""
    producer = Producer(binary(b"a"))
    first = backend.RecordBatch.from_arrow(producer)
    with pytest.raises(ValueError, match="array was released already"):
        backend.RecordBatch.from_arrow(producer)
    assert producer.releases == 0
    assert first.to_pylist() == [b"a"]
    stream = StreamProducer([binary(b"a")])
    backend.RecordBatch.from_arrow(stream)
    with pytest.raises(ValueError, match="stream was released already"):
        backend.RecordBatch.from_arrow(stream)


def test_null_buffers_are_accepted_where_nothing_is_read(backend) -> None:
    """Arrays of no elements, and values that are all empty."""
    from_arrow = backend.RecordBatch.from_arrow
    for format in (b"z", b"u", b"Z", b"U"):
        assert len(from_arrow(Producer(Node(format, buffers=[None] * 3)))) == 0
    assert len(from_arrow(Producer(Node(b"vz", buffers=[None] * 3)))) == 0
    assert len(from_arrow(Producer(Node(b"w:3", buffers=[None] * 2)))) == 0
    empty = binary(b"", b"", buffers=[None, ints(4, 7, 7, 7), None])
    assert from_arrow(Producer(empty)).to_pylist() == [b"", b""]
    assert from_arrow(Producer(Node(b"w:0", length=2, buffers=[None, None]))).nbytes == 0
    nothing = from_arrow(Producer(Node(b"n", length=3, null_count=3)))
    assert nothing.nulls.tolist() == [True] * 3


def test_offsets_of_parent_and_child_add_up(backend) -> None:
    """A sliced struct array has its offset in the parent, a sliced record batch in the children."""
    values = [b"v%d" % i for i in range(8)]
    child = binary(*values, name=b"v", offset=2, length=6)
    batch = backend.RecordBatch.from_arrow(Producer(table(child, length=3, offset=1)))
    assert batch.to_pylist() == values[3:6]
    validity = bytes([0b10110])
    parent = table(child, length=3, offset=1, null_count=1, buffers=[validity])
    batch = backend.RecordBatch.from_arrow(Producer(parent))
    assert batch.nulls.tolist() == [False, False, True]
    assert batch.to_pylist() == [*values[3:5], b""]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 17, 64, 65])
def test_bitmaps_of_every_shape(backend, count) -> None:
    """At every offset, with nulls first, last, alone and throughout."""
    for offset in (0, 1, 7, 8):
        for null in ({0}, {count - 1}, set(range(count)), set(), set(range(0, count, 3))):
            bits = bytearray(b"\xff" * ((offset + count + 7) // 8))
            for i in null:
                bits[(offset + i) // 8] &= ~(1 << (offset + i) % 8)
            values = [b"x%d" % i for i in range(offset + count)]
            node = binary(*values, length=count, offset=offset, null_count=-1)
            node.buffers[0] = bytes(bits)
            batch = backend.RecordBatch.from_arrow(Producer(node))
            got = [False] * count if batch.nulls is None else batch.nulls.tolist()
            assert got == [i in null for i in range(count)]
            expected = [b"" if i in null else values[offset + i] for i in range(count)]
            assert batch.to_pylist() == expected


def test_the_columns_of_a_table(backend) -> None:
    """By name; a null number is 0, a null key is none."""
    node = table(
        binary(b"a", b"b", name=b"text"),
        binary(b"k", b"", name=b"who", null_count=1),
        numbers(b"tsm:", 8, 5, -6, name=b"at"),
        numbers(b"S", 2, 7, -1, name=b"part"),
        numbers(b"l", 8, 9, 10, name=b"place"),
        table(binary(b"x", b"y", name=b"one", format=b"u"), binary(b"1", b"2", name=b"two"),
              name=b"notes"),
    )  # fmt: skip
    node.children[1].buffers[0] = b"\1"
    batch = backend.RecordBatch.from_arrow(
        Producer(node), value="text", key="who", timestamp="at", partition="part",
        offset="place", metadata="notes",
    )  # fmt: skip
    assert batch.to_pylist() == [b"a", b"b"]
    assert batch.keys == [b"k", None]
    assert batch.timestamps.tolist() == [5_000_000, -6_000_000]
    assert batch.partitions.tolist() == [7, 65535]
    assert batch.offsets.tolist() == [9, 10]
    assert batch.metadata == [{"one": "x", "two": b"1"}, {"one": "y", "two": b"2"}]
    assert batch[1].timestamp == -6_000_000
    del batch, node
    gc.collect()


def test_the_column_of_values_is_found_or_asked_for(backend) -> None:
    """The only one, or the one named value; else a sentence names the columns."""
    from_arrow = backend.RecordBatch.from_arrow
    only = Producer(table(binary(b"a", name=b"line")))
    assert from_arrow(only).to_pylist() == [b"a"]
    two = [binary(b"a", name=b"x"), binary(b"b", name=b"value")]
    assert from_arrow(Producer(table(*two))).to_pylist() == [b"b"]
    two[1].name = b"y"
    with pytest.raises(ValueError, match=r"Name it by value=\.\.\.; there are 'x', 'y'"):
        from_arrow(Producer(table(*two)))
    with pytest.raises(ValueError, match="no column 'z'; there are 'x', 'y'"):
        from_arrow(Producer(table(*two)), value="x", key="z")
    two[1].name = b"x"
    with pytest.raises(ValueError, match="more than one column 'x'"):
        from_arrow(Producer(table(*two)), value="x")
    with pytest.raises(ValueError, match="there are none"):
        from_arrow(Producer(table()))
    with pytest.raises(ValueError, match="no column 'x': the data is an array without columns"):
        from_arrow(Producer(binary(b"a")), value="x")
    with pytest.raises(TypeError, match="key must be the name of a column, not int"):
        from_arrow(Producer(table(binary(b"a", name=b"line"))), key=3)


NUMBERS_THAT_DO_NOT_FIT = {
    "timestamp": (numbers(b"tss:", 8, 1, 1 << 40), "element 1 of .* 64 bits as nanoseconds"),
    "early": (numbers(b"tsu:", 8, -(1 << 62)), "element 0 of .* 64 bits as nanoseconds"),
    "offset": (numbers(b"L", 8, 1, -1), "element 1 of the column 'n' does not fit in 64 bits"),
    "partition": (numbers(b"I", 4, 1, -1), "element 1 of the column 'n' does not fit in 32 bits"),
}


@pytest.mark.parametrize("part", NUMBERS_THAT_DO_NOT_FIT)
def test_numbers_that_do_not_fit_are_refused(backend, part) -> None:
    """With the element's place."""
    column, reason = NUMBERS_THAT_DO_NOT_FIT[part]
    values = binary(*[b"a"] * column.length, name=b"value")
    name = "timestamp" if part == "early" else part
    with pytest.raises(ValueError, match=reason):
        backend.RecordBatch.from_arrow(Producer(table(values, column)), **{name: "n"})


def test_columns_of_other_types_are_refused(backend) -> None:
    """Numbers that are none, metadata that is no mapping."""
    values = binary(b"a", name=b"value")
    for part, reason in (
        ("timestamp", "timestamps or integers"),
        ("offset", "must be of integers"),
        ("metadata", "must be of maps or of structs"),
    ):
        with pytest.raises(TypeError, match=f"the column 'n' has the type float64.*{reason}"):
            backend.RecordBatch.from_arrow(
                Producer(table(values, numbers(b"g", 8, 1))), **{part: "n"}
            )
    column = numbers(b"l", 8, 1)
    column.buffers[1] = None
    with pytest.raises(ValueError, match="lacks its numbers"):
        backend.RecordBatch.from_arrow(Producer(table(values, column)), offset="n")


@pytest.mark.parametrize(
    ("format", "width", "signed"),
    [(b"c", 1, True), (b"C", 1, False), (b"s", 2, True), (b"S", 2, False), (b"i", 4, True),
     (b"I", 4, False), (b"l", 8, True)],
)  # fmt: skip
def test_integers_of_every_type(backend, format, width, signed) -> None:
    """With their sign, at the ends of their range."""
    least, most = (-1, 1) if signed else (0, -1)  # as they are written
    values = binary(b"a", b"b", b"c", name=b"value")
    column = numbers(format, width, least, 0, most)
    batch = backend.RecordBatch.from_arrow(
        Producer(table(values, column)), offset="n", timestamp="n"
    )
    expected = [-1, 0, 1] if signed else [0, 0, (1 << 8 * width) - 1]
    assert batch.offsets.tolist() == batch.timestamps.tolist() == expected


def pairs(*bounds: int, format: bytes = b"+m", width: int = 4, keys: bytes = b"u") -> Node:
    entries = table(
        binary(b"a", b"b", b"a", format=keys, name=b"key"),
        binary(b"1", b"2", b"3", format=b"u", name=b"value"),
    )
    return Node(
        format, b"n", len(bounds) - 1, buffers=[None, ints(width, *bounds)], children=[entries]
    )


def test_metadata_of_maps_and_lists_of_pairs(backend) -> None:
    """As mappings; what is malformed is refused."""
    values = binary(b"x", b"y", name=b"value")

    def read(column: Node) -> list[object]:
        return backend.RecordBatch.from_arrow(
            Producer(table(values, column)), metadata="n"
        ).metadata

    assert read(pairs(0, 2, 3)) == [{"a": "1", "b": "2"}, {"a": "3"}]
    assert read(pairs(1, 1, 3, format=b"+L", width=8)) == [{}, {"b": "2", "a": "3"}]
    nulls = pairs(0, 2, 3, format=b"+l")
    nulls.buffers[0], nulls.null_count = b"\2", 1
    assert read(nulls) == [None, {"a": "3"}]
    for column, reason in (
        (pairs(0, 2, 1), "offsets descend"),
        (pairs(-1, 2, 3), "offsets descend"),
        (pairs(0, 2, 4), "3 elements where 4 are needed"),
    ):
        with pytest.raises(ValueError, match=reason):
            read(column)
    with pytest.raises(TypeError, match="strings as keys"):
        read(pairs(0, 2, 3, keys=b"z"))
    same = [binary(b"1", b"2", format=b"u", name=b"k"), binary(b"", b"3", format=b"u", name=b"k")]
    same[1].buffers[0], same[1].null_count = b"\2", 1
    assert read(table(*same, name=b"n")) == [{"k": "1"}, {"k": "3"}]


# -- Who owns what -------------------------------------------------------------------------------


def test_the_data_is_released_once_nothing_refers_to_it(backend) -> None:
    """A slice, a selection and a result that skips keep it; the producer need not."""
    producer = Producer(binary(b"one", b"two", b"three"))
    batch = backend.RecordBatch.from_arrow(producer)
    part, chosen = batch[1:], batch.take([2, 0])
    result = backend.run_batch(backend.Contains(b"e"), batch)
    del batch
    assert producer.releases == 0
    assert part.to_pylist() == [b"two", b"three"]
    del part
    assert chosen.to_pylist() == [b"three", b"one"]
    del chosen
    assert result.output.to_pylist() == [b"one", b"three"]
    assert producer.releases == 0
    del result
    gc.collect()
    assert producer.releases == 1


def test_another_thread_may_let_go(backend) -> None:
    """The last reference dies where it dies."""
    producer = Producer(binary(b"one"))
    batches = [backend.RecordBatch.from_arrow(producer)]
    thread = threading.Thread(target=batches.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert producer.releases == 1


def test_a_stream_is_released_at_its_end(backend) -> None:
    """And all chunks when the batch dies; a chunk without records is one, too."""
    producer = StreamProducer([binary(b"a", b"b"), binary(), binary(b"c")])
    batch = backend.RecordBatch.from_arrow(producer)
    assert producer.releases == 1
    assert batch.to_pylist() == [b"a", b"b", b"c"]
    assert [released[number] for number in producer.numbers[::2]] == [0, 0]
    del batch
    gc.collect()
    assert [released[number] for number in producer.numbers] == [1, 1, 1]


def test_a_stream_that_fails_is_released(backend) -> None:
    """Its message is in the exception; what had come is released."""
    producer = StreamProducer([binary(b"a"), binary(b"b")], fail=2)
    with pytest.raises(OSError, match="the Arrow stream failed: the disk is on fire") as caught:
        backend.RecordBatch.from_arrow(producer)
    assert caught.value.errno == 5
    del caught
    gc.collect()
    assert producer.releases == 1
    assert released[producer.numbers[0]] == 1
    with pytest.raises(OSError, match="on fire"):
        backend.RecordBatch.from_arrow(StreamProducer([binary(b"a")], fail_schema=True))
    broken = StreamProducer([binary(b"a"), binary(b"b", length=-1), binary(b"c")])
    with pytest.raises(ValueError, match="length is -1"):
        backend.RecordBatch.from_arrow(broken)
    gc.collect()
    assert broken.releases == 1


@pytest.mark.parametrize("name", ["get_schema", "get_next"])
def test_a_stream_without_functions_is_refused(backend, name) -> None:
    """And released."""
    producer = StreamProducer([binary(b"a")])
    setattr(producer.stream, name, None)
    with pytest.raises(ValueError, match="the Arrow stream is malformed: it lacks its functions"):
        backend.RecordBatch.from_arrow(producer)
    gc.collect()
    assert producer.releases == 1


@pytest.mark.parametrize("broken", [False, True])
def test_nobody_else_is_in_a_stream_while_it_fails(backend, broken) -> None:
    """Who found an error releases the stream, so until then all others are refused."""
    seen = []

    def look_in(name: str) -> None:
        with pytest.raises(ValueError, match="another thread is reading the Arrow stream"):
            next(reader)
        seen.append(name)

    nodes = [binary(b"a", length=-1)] if broken else [binary(b"a")]
    producer = StreamProducer(nodes, fail=None if broken else 1, called=look_in)
    reader = backend.arrow.import_stream(producer)
    with pytest.raises(ValueError if broken else OSError, match=r"length is -1|on fire"):
        next(reader)
    assert seen == ["get_next", "release"] if broken else ["get_next", "get_last_error", "release"]
    assert producer.releases == 1
    with pytest.raises(StopIteration):
        next(reader)


def test_a_stream_that_nobody_reads_to_its_end_is_released(backend) -> None:
    """When the reader is forgotten."""
    producer = StreamProducer([binary(b"a"), binary(b"b")])
    chunks = backend.arrow.import_stream(producer)
    assert next(chunks).to_pylist() == [b"a"]
    assert producer.calls == 1
    assert producer.releases == 0
    del chunks
    gc.collect()
    assert producer.releases == 1


def test_an_export_that_nobody_takes_is_released(backend) -> None:
    """With its capsule, whichever it is."""
    producer = Producer(binary(LONG, b"short"))
    batch = backend.RecordBatch.from_arrow(producer)
    exports = [
        batch.__arrow_c_array__(),
        batch.__arrow_c_stream__(),
        batch.to_arrow(type="binary_view").__arrow_c_array__(),
        batch.__arrow_c_schema__(),
    ]
    del batch
    assert producer.releases == 0
    del exports
    gc.collect()
    assert producer.releases == 1


def test_a_consumer_may_move_a_child_away(backend) -> None:
    """The child is good when the parent is released, and releases what it leads to itself."""
    producer = Producer(binary(LONG, b"short"))
    batch = backend.RecordBatch.from_arrow(producer)
    schema, capsule = batch.to_arrow(["value", "key"], type="large_binary").__arrow_c_array__()
    del batch
    parent = CArray.from_address(pointer_of(capsule, b"arrow_array"))
    child = CArray()
    source = parent.children[0].contents
    ctypes.memmove(ctypes.addressof(child), ctypes.addressof(source), ctypes.sizeof(CArray))
    source.release = None
    RELEASE(parent.release)(ctypes.addressof(parent))
    assert not parent.release
    del capsule, schema, source, parent
    gc.collect()
    assert ctypes.string_at(child.buffers[2], len(LONG) + 5) == LONG + b"short"
    done = threading.Thread(
        target=lambda: RELEASE(child.release)(ctypes.addressof(child))
    )  # without the GIL, in another thread
    done.start()
    done.join()
    assert not child.release
    gc.collect()
    if backend.name == "cython":  # the pure backend copies
        assert producer.releases == 1


def test_streams_answer_after_their_end_and_say_what_failed(backend) -> None:
    """A chunk, no more chunks; a chunk that cannot be made is an error with a message."""
    batch = backend.RecordBatch.from_values([b"abcdefgh", b"ij", b"x" * 11])
    before = backend.arrow.limit_bytes(10)
    try:
        capsule = batch.__arrow_c_stream__()
        stream = CStream.from_address(pointer_of(capsule, b"arrow_array_stream"))
        address = ctypes.addressof(stream)
        schema, array = CSchema(), CArray()
        assert GET(stream.get_schema)(address, ctypes.addressof(schema)) == 0
        assert schema.children[0].contents.format == b"z"
        RELEASE(schema.release)(ctypes.addressof(schema))
        assert GET(stream.get_next)(address, ctypes.addressof(array)) == 0
        assert array.length == 2
        RELEASE(array.release)(ctypes.addressof(array))
        assert GET(stream.get_next)(address, ctypes.addressof(array)) != 0
        reason = ctypes.string_at(LAST_ERROR(stream.get_last_error)(address))
        assert b"row 2 has 11 bytes in the column 'value'" in reason
    finally:
        backend.arrow.limit_bytes(before)


class Message:
    """A message that does something when it is looked at."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.message = self
        self.function = function

    def __str__(self) -> str:
        self.function()
        return "looked at"


def test_what_happens_while_a_chunk_is_made(backend) -> None:
    """An interrupt is an error for the consumer, and a second reader at that moment is refused."""
    codes = []
    array, inner = CArray(), CArray()

    def interrupt() -> None:
        raise KeyboardInterrupt

    def look_in() -> None:
        codes.append(GET(stream.get_next)(address, ctypes.addressof(inner)))

    result = backend.run_batch(
        backend.map_plugin(lambda value: value if value != b"b" else 1 / 0),
        backend.RecordBatch.from_values([b"a" * 8, b"c" * 8, b"b"]),
    )
    message = Message(lambda: None)
    result.errors[0] = (2, message)
    export = result.to_arrow(["value", "error"], every=True)
    before = backend.arrow.limit_bytes(10)
    try:
        capsule = export.__arrow_c_stream__()
        stream = CStream.from_address(pointer_of(capsule, b"arrow_array_stream"))
        address = ctypes.addressof(stream)
        assert GET(stream.get_next)(address, ctypes.addressof(array)) == 0
        RELEASE(array.release)(ctypes.addressof(array))
        lengths = [array.length]
        message.function = interrupt
        assert GET(stream.get_next)(address, ctypes.addressof(array)) != 0
        reason = ctypes.string_at(LAST_ERROR(stream.get_last_error)(address))
        assert reason == b"KeyboardInterrupt"
        message.function = look_in
        while True:
            assert GET(stream.get_next)(address, ctypes.addressof(array)) == 0
            if not array.release:
                break
            lengths.append(array.length)
            RELEASE(array.release)(ctypes.addressof(array))
    finally:
        backend.arrow.limit_bytes(before)
    assert lengths == [1, 2]
    assert codes
    assert 0 not in codes
    assert not inner.release


# -- What is exported ----------------------------------------------------------------------------


def read(export: object) -> list[list[object]]:
    """The columns of an export, read by the pure backend's own reader."""
    from dataflare._pure import arrow

    schema_capsule, array_capsule = export.__arrow_c_array__()
    schema = arrow._schema_in(schema_capsule)
    held = arrow._take_array(array_capsule)
    columns = []
    for i in range(schema.n_children):
        child, array = schema.children[i].contents, held.array.children[i].contents
        if child.format in (b"i", b"l", b"tsn:"):
            width = "i4" if child.format == b"i" else "i8"
            found = held.numbers(array.buffers[1], array.length, width).tolist()
            valid = arrow._valid(held, array, 0, array.length, "it")
            if valid is not None:
                found = [x if ok else None for x, ok in zip(found, valid, strict=True)]
            columns.append(found)
        elif child.format == b"+m":
            found = arrow._metadata(held, child, array, 0, array.length, "it")
            columns.append([None if x is None else dict(x) for x in found])
        else:
            columns.append(arrow._strings(held, child, array, 0, array.length, "it"))
    return columns


class Part:
    """A chunk, as `read` takes it."""

    def __init__(self, *capsules: object) -> None:
        self.__arrow_c_array__ = lambda: capsules


def chunks_of(capsule: object) -> Iterator[tuple[object, object]]:
    """Capsules of the schema and of each chunk of an export; `read` releases what is in them."""
    stream = CStream.from_address(pointer_of(capsule, b"arrow_array_stream"))
    address = ctypes.addressof(stream)
    while True:
        schema, array = CSchema(), CArray()
        assert GET(stream.get_schema)(address, ctypes.addressof(schema)) == 0
        assert GET(stream.get_next)(address, ctypes.addressof(array)) == 0
        ended = not array.release
        if not ended:
            yield (
                new_capsule(ctypes.addressof(schema), b"arrow_schema", None),
                new_capsule(ctypes.addressof(array), b"arrow_array", None),
            )
        RELEASE(schema.release)(ctypes.addressof(schema))
        if ended:
            break


@pytest.fixture
def result(backend):
    """A success, a skip, a filtered one and an error, with every column."""

    @backend.map_plugin
    def nothing(value: bytes) -> bytes:
        return value

    batch = backend.RecordBatch.from_values(
        [b"zero", b"one", b"two", b"three"],
        [b"k0", None, b"k2", b"k3"],
        timestamps=[1, 0, 3, 4],
        partitions=[5, 6, 7, 8],
        offsets=[0, 10, 11, 12],
        metadata=[{"a": "x"}, None, {}, {"b": "y"}],
    )
    make = backend.PluginResult
    return backend.BatchResult.from_results(
        batch, [make.success(LONG), make.skip(), make.filtered(), make.error("no caf\xe9")]
    )


ALL = ["value", "key", "timestamp", "partition", "offset", "metadata"]


@pytest.mark.parametrize("type", ["binary", "large_binary", "binary_view"])
def test_what_goes_on_with_all_its_columns(result, type) -> None:
    """A timestamp of 0 is one that was not given."""
    assert read(result.to_arrow(ALL, type=type)) == [
        [LONG, b"one"],
        [b"k0", None],
        [1, None],
        [5, 6],
        [0, 10],
        [{"a": "x"}, None],
    ]
    assert read(result.to_arrow(["index", "status", "error"], type=type)) == [
        [0, 1],
        ["success", "skip"],
        [None, None],
    ]


def test_every_record_on_request(result) -> None:
    """A row for each that came in; what did not go on has neither value nor other columns."""
    export = result.to_arrow([*ALL, "index", "status", "error"], every=True)
    assert len(export) == 4
    assert read(export) == [
        [LONG, b"one", None, None],
        [b"k0", None, None, None],
        [1, None, None, None],
        [5, 6, None, None],
        [0, 10, None, None],
        [{"a": "x"}, None, None, None],
        [0, 1, 2, 3],
        ["success", "skip", "filtered", "error"],
        [None, None, None, "no caf\xe9"],
    ]


def test_the_columns_must_be_known(result) -> None:
    """Names, types, and no string in the place of a list of them."""
    batch = result.output
    for columns, kind, reason in (
        (["value", "colour"], ValueError, "no column 'colour'; there are 'value'"),
        (["status"], ValueError, "no column 'status'"),
        (["value", "value"], ValueError, "twice"),
        ([], ValueError, "no column to export"),
        ("value", TypeError, "not one str"),
    ):
        with pytest.raises(kind, match=reason):
            batch.to_arrow(columns)
    with pytest.raises(ValueError, match="no type 'int32'; there are 'binary'"):
        batch.to_arrow(type="int32")
    assert "Export(2 rows: value, status)" in repr(result.to_arrow(["value", "status"]))


def test_a_column_that_no_record_has(backend) -> None:
    """Keys and metadata are null, numbers 0, timestamps were not given."""
    batch = backend.RecordBatch.from_values([b"a", b"b"])
    assert read(batch.to_arrow(ALL)) == [
        [b"a", b"b"], [None, None], [None, None], [0, 0], [0, 0], [None, None],
    ]  # fmt: skip
    assert read(backend.RecordBatch.from_values([]).to_arrow(ALL)) == [[]] * 6


def test_a_stream_in_chunks_has_all_columns(backend) -> None:
    """Each chunk has its part of them, with rows for what did not go on and without."""
    batch = backend.RecordBatch.from_values(
        [b"%06d" % i for i in range(9)],
        timestamps=[*range(9)],
        partitions=[*range(10, 19)],
        offsets=[*range(20, 29)],
        metadata=[{"n": str(i)} if i % 3 else None for i in range(9)],
    )
    result = backend.run_batch(
        backend.filter_plugin(lambda value: value[-1:] not in b"2578"), batch
    )
    for every in (False, True):
        export = result.to_arrow([*ALL, "index", "error"], every=every)
        whole = read(export)
        before = backend.arrow.limit_bytes(13)
        try:
            capsule = export.__arrow_c_stream__()
            parts = [read(Part(*chunk)) for chunk in chunks_of(capsule)]
        finally:
            backend.arrow.limit_bytes(before)
        assert len(parts) >= 3
        joined = [[*chain.from_iterable(columns)] for columns in zip(*parts, strict=True)]
        assert joined == whole
        assert whole[6] == ([*range(9)] if every else [0, 1, 3, 4, 6])


def test_sums_that_do_not_fit_in_32_bits_are_refused(backend) -> None:
    """Of the columns that no chunk is cut for; a type that is large holds them."""
    batch = backend.RecordBatch.from_values([b"a", b"b"], metadata=[{"k": "v" * 9}, {"k": "v"}])
    result = backend.run_batch(backend.Contains(b"a"), batch)
    columns = result.to_arrow(["status"], every=True)
    before = backend.arrow.limit_bytes(9)
    try:
        with pytest.raises(ValueError, match="a column of 12 bytes is too much for offsets of 32"):
            columns.__arrow_c_array__()
        with pytest.raises(ValueError, match="a column of 10 bytes is too much for offsets of 32"):
            batch.to_arrow(["metadata"]).__arrow_c_stream__()
        large = result.to_arrow(["status"], every=True, type="large_string")
        assert read(large) == [["skip", "filtered"]]
    finally:
        backend.arrow.limit_bytes(before)


def test_metadata_must_be_strings_to_be_exported(backend) -> None:
    """The name and the type of what is none are said."""
    batch = backend.RecordBatch.from_values([b"a", b"b"], metadata=[{"x": "y"}, {"n": 1}])
    with pytest.raises(TypeError, match=r"metadata of row 1 has 'n': int; .* must be strings"):
        batch.to_arrow(["metadata"]).__arrow_c_array__()
    with pytest.raises(TypeError, match="must be strings"):
        batch.to_arrow(["value", "metadata"]).__arrow_c_stream__()


def test_strings_stay_strings_and_are_checked(backend) -> None:
    """What a plugin makes of them must be UTF-8, or be exported as binary."""
    words = binary("caf\xe9".encode(), b"tea", format=b"u")
    batch = backend.RecordBatch.from_arrow(Producer(words))
    assert read(batch) == [["caf\xe9", "tea"]]
    assert read(batch[1:]) == [["tea"]]
    assert read(batch.take([1, 0])) == [["tea", "caf\xe9"]]
    assert read(pickle.loads(pickle.dumps(batch))) == [["caf\xe9", "tea"]]
    cut = backend.run_batch(backend.map_plugin(lambda value: value[:4]), batch)
    with pytest.raises(ValueError, match="value of row 0 is not UTF-8: export it as binary"):
        read(cut)
    assert read(cut.to_arrow(type="binary")) == [[b"caf\xc3", b"tea"]]
    upper = backend.run_batch(backend.Upper(), batch)
    assert read(upper) == [["CAF\xe9", "TEA"]]
    assert read(upper) == [["CAF\xe9", "TEA"]]
    assert read(upper.output.to_arrow(type="string_view")) == [["CAF\xe9", "TEA"]]
    plain = backend.RecordBatch.from_values([b"ok", b"\xff"])
    with pytest.raises(ValueError, match="value of row 1 is not UTF-8"):
        plain.to_arrow(type="string").__arrow_c_stream__()


def test_text_that_was_only_kept_is_not_looked_at_again(backend) -> None:
    """What came in as strings is the producer's word; what a plugin made of them is not."""
    lies = binary(b"\xff one", b"two", format=b"u")
    batch = backend.RecordBatch.from_arrow(Producer(lies))
    kept = backend.run_batch(backend.Contains(b"o"), batch)
    _, array = kept.__arrow_c_array__()
    assert CArray.from_address(pointer_of(array, b"arrow_array")).length == 2
    mapped = backend.run_batch(backend.map_plugin(lambda value: value[:5]), batch)
    with pytest.raises(ValueError, match="value of row 0 is not UTF-8"):
        mapped.__arrow_c_array__()


# By Unicode's table 3-7: what is UTF-8, and what comes close.
BAD_TEXT = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xc2\x20", b"\xe0\x9f\xbf", b"\xe1\x80",
    b"\xed\xa0\x80", b"\xef\xbf", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
    b"\xf1\x80\x80", b"\xe1\x80\x20", b"\xf1\x80\x80\xc0", b"\xff",
]  # fmt: skip
GOOD_TEXT = ["\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000",
             "\U0010ffff", ""]  # fmt: skip


def test_utf8_is_what_unicode_says(backend) -> None:
    """At every place of a word of eight bytes."""
    for pad in (0, 1, 7, 8, 9):
        for text in GOOD_TEXT:
            value = b"x" * pad + text.encode() + b"y" * pad
            batch = backend.RecordBatch.from_values([value])
            assert read(batch.to_arrow(type="string")) == [[value.decode()]]
        for bad in BAD_TEXT:
            batch = backend.RecordBatch.from_values([b"x" * pad + bad])
            with pytest.raises(ValueError, match="not UTF-8"):
                batch.to_arrow(type="string").__arrow_c_array__()
            batch = backend.RecordBatch.from_values([b"x" * pad + bad + b"y" * 9])
            with pytest.raises(ValueError, match="not UTF-8"):
                batch.to_arrow(type="string").__arrow_c_array__()


def test_what_was_named_keeps_its_name(backend) -> None:
    """The values are exported under the name of their column, unless another column has it."""
    node = table(binary(b"a", name=b"line"), binary(b"b", name=b"key"))
    batch = backend.RecordBatch.from_arrow(Producer(node), value="line")
    assert repr(batch.to_arrow()) == "Export(1 rows: line)"
    assert repr(backend.run_batch(backend.Upper(), batch[:1]).to_arrow()) == "Export(1 rows: line)"
    batch = backend.RecordBatch.from_arrow(Producer(node), value="key", key="line")
    assert repr(batch.to_arrow(["value", "key"])) == "Export(1 rows: value, key)"


class Wish:
    """A schema to ask for."""

    def __init__(self, *fields: tuple[bytes, bytes], format: bytes = b"+s") -> None:
        node = Node(format, children=[Node(format, name) for name, format in fields])
        self.struct = node.make_schema()

    def __call__(self) -> object:
        return new_capsule(ctypes.addressof(self.struct), b"arrow_schema", None)


def test_a_schema_that_is_asked_for_is_kept_or_refused(backend) -> None:
    """Types of the same kind; other columns and other types are refused by name."""
    batch = backend.RecordBatch.from_values([b"a"], [b"k"], timestamps=[5], partitions=[6])
    export = batch.to_arrow(["value", "key", "timestamp", "partition"])
    names = [b"value", b"key", b"timestamp", b"partition"]
    for formats in ([b"z", b"z", b"tsn:", b"i"], [b"U", b"vz", b"l", b"l"]):
        wish = Wish(*zip(names, formats, strict=True))
        schema, _ = export.__arrow_c_array__(wish())
        struct = CSchema.from_address(pointer_of(schema, b"arrow_schema"))
        assert [struct.children[i].contents.format for i in range(4)] == formats
        export.__arrow_c_stream__(wish())
    for formats, reason in (
        ([b"l", b"z", b"tsn:", b"i"], "'value' cannot be exported as int64"),
        ([b"z", b"z", b"tsu:", b"i"], "'timestamp' cannot be exported as timestamp\\[us\\]"),
        ([b"z", b"z", b"tsn:", b"s"], "'partition' cannot be exported as int16"),
    ):
        with pytest.raises(ValueError, match=reason):
            export.__arrow_c_array__(Wish(*zip(names, formats, strict=True))())
    with pytest.raises(ValueError, match="has the columns \\['x'\\], here are \\['value'\\]"):
        batch.__arrow_c_array__(Wish((b"x", b"z"))())
    with pytest.raises(ValueError, match="asked for is binary, and this is a table"):
        batch.__arrow_c_stream__(Wish(format=b"z")())
    with pytest.raises(TypeError, match="capsule, not in str"):
        batch.__arrow_c_stream__("schema")


def test_the_limit_of_offsets_of_32_bits(backend) -> None:
    """One array cannot hold more; a stream makes several; large types and views can."""
    values = [b"%05d" % i * 4 for i in range(40)]  # 20 bytes each
    batch = backend.RecordBatch.from_values(values, values)
    before = backend.arrow.limit_bytes(100)
    try:
        for columns in (["value"], ["key"], ["value", "key"]):
            export = batch.to_arrow(columns)
            with pytest.raises(ValueError, match="more than 100 bytes do not fit in one array"):
                export.__arrow_c_array__()
        again = backend.RecordBatch.from_arrow(
            Streamed(batch.to_arrow(["value", "key"])), key="key"
        )
        assert again.to_pylist() == values
        assert again.keys == values
        for type in ("large_binary", "binary_view"):
            assert read(batch.to_arrow(type=type)) == [values]
        block = b"".join(values)
        lines = backend.RecordBatch.from_lines(b"\n".join(values))
        assert read(lines.to_arrow(type="binary_view")) == [values]
        huge = backend.RecordBatch.from_values([b"ok", block])
        for type, reason in (
            ("binary", "row 1 has 800 bytes"),
            ("binary_view", "larger than 100|row 1 has 800"),
        ):
            # What is wrong with a later chunk is said to the consumer.
            with pytest.raises((ValueError, OSError), match=reason):
                backend.RecordBatch.from_arrow(Streamed(huge.to_arrow(type=type)))
    finally:
        backend.arrow.limit_bytes(before)


class Streamed:
    """Only the stream of an export."""

    def __init__(self, export: object) -> None:
        self.__arrow_c_stream__ = export.__arrow_c_stream__


# -- Nulls ---------------------------------------------------------------------------------------


def nulls_batch(backend):
    node = binary(b"one", b"", b"two", b"", b"three", null_count=2, format=b"u")
    node.buffers[0] = bytes([0b10101])
    node.length = 4
    node.null_count = -1
    node.name = b"v"
    numbers_ = numbers(b"l", 8, 10, 11, 12, 13, name=b"n")
    return backend.RecordBatch.from_arrow(Producer(table(node, numbers_)), value="v", offset="n")


PLUGINS = {
    "native": lambda backend: backend.Upper(),
    "map": lambda backend: backend.map_plugin(lambda value: value.upper()),
    "chain": lambda backend: backend.Chain(
        backend.map_plugin(lambda value: value), backend.Upper(), backend.Contains(b"O")
    ),
    "class": lambda backend: type(
        "Loud",
        (backend.DataFlarePlugin,),
        {"process": lambda self, r: backend.PluginResult.success(r.value.upper(), {"m": "1"})},
    )(),
    "batch": lambda backend: type(
        "Bulk",
        (backend.BatchPlugin,),
        {
            "process_batch": lambda self, records: backend.BatchResult.from_results(
                records, [backend.PluginResult.success(r.value.upper()) for r in records]
            )
        },
    )(),
}


@pytest.mark.parametrize("kind", PLUGINS)
def test_no_plugin_sees_a_record_without_a_value(backend, kind) -> None:
    """It is skipped, comes out without a value, and keeps its other columns."""
    batch = nulls_batch(backend)
    result = backend.run_batch(PLUGINS[kind](backend), batch)
    assert result.status.tolist() == [0, 2, 0, 2]
    assert result.output.to_pylist() == [b"ONE", b"", b"TWO", b""]
    assert result.output.nulls.tolist() == [False, True, False, True]
    assert result.output.offsets.tolist() == [10, 11, 12, 13]
    assert read(result) == [["ONE", None, "TWO", None]]
    assert result.results[1].is_skip
    if kind == "class":
        assert result.output.metadata == [{"m": "1"}, None, {"m": "1"}, None]


def test_filters_and_failures_beside_nulls(backend) -> None:
    """Places of errors are those of the input."""
    batch = nulls_batch(backend)
    kept = backend.run_batch(backend.Contains(b"tw"), batch)
    assert kept.status.tolist() == [1, 2, 2, 2]
    assert read(kept.to_arrow(["value", "index"])) == [[None, "two", None], [1, 2, 3]]

    def fails(value: bytes) -> bytes:
        raise KeyError("no")

    failed = backend.run_batch(backend.map_plugin(fails), batch)
    assert failed.status.tolist() == [3, 2, 3, 2]
    assert [index for index, _ in failed.errors] == [0, 2]
    assert failed.output.nulls.tolist() == [True, True]
    late = backend.run_batch(backend.map_plugin(bytes.upper), batch, timeout=-1.0)
    assert late.status.tolist() == [3, 2, 3, 2]


def test_nulls_stay_with_slices_selections_copies_and_joins(backend) -> None:
    """And a batch without any says so."""
    batch = nulls_batch(backend)
    assert batch.nulls.tolist() == [False, True, False, True]
    assert batch[::2].nulls is None
    assert batch[1:3].nulls.tolist() == [True, False]
    assert batch.take([3, 0, 3]).nulls.tolist() == [True, False, True]
    again = pickle.loads(pickle.dumps(batch))
    assert again.nulls.tolist() == batch.nulls.tolist()
    assert read(again) == read(batch)
    assert copy.deepcopy(batch).nulls.tolist() == batch.nulls.tolist()
    halves = [backend.run_batch(backend.Upper(), part) for part in (batch[:2], batch[2:])]
    joined = backend.BatchResult.joined(batch, halves)
    assert read(joined) == [["ONE", None, "TWO", None]]
    merged = backend.BatchResult.merged(batch, joined, [0], halves[0].__class__.from_results(
        batch[:1], [backend.PluginResult.success(b"1")]))  # fmt: skip
    assert read(merged) == [["1", None, "TWO", None]]
    skipped = backend.BatchResult.from_results(batch, [backend.PluginResult.skip()] * 4)
    assert read(skipped) == [["one", None, "two", None]]
    assert batch[1].value == b""
    assert batch.to_lines() == b"one\n\ntwo\n\n"
    assert repr(batch) == "RecordBatch(4 records, 6 bytes: [b'one', b'', b'two', ...])"


def test_streams_are_cut_across_chunks(backend) -> None:
    """Batches of the size asked for, whatever the chunks are, and within the bytes allowed."""
    chunks = [binary(*[b"%d" % i for i in range(n)]) for n in (3, 0, 1, 10, 2)]
    expected = [b"%d" % i for n in (3, 0, 1, 10, 2) for i in range(n)]
    for size in (1, 2, 5, 16, 100):
        take = backend.taker(StreamProducer(chunks))
        batches = iter(lambda take=take, size=size: take(size, None), backend.RecordBatch)
        found = []
        for batch in batches:
            if not len(batch):
                break
            found.append(len(batch))
            assert batch.to_pylist() == expected[sum(found[:-1]) : sum(found)]
        assert found[:-1] == [size] * (len(found) - 1)
        assert sum(found) == len(expected)
    for max_bytes in (1, 3, 7):
        take = backend.taker(StreamProducer(chunks))
        found = []
        while len(batch := take(4, max_bytes)):
            assert batch.nbytes <= max_bytes or len(batch) == 1
            found += batch.to_pylist()
        assert found == expected
    result = backend.run_batch(backend.Upper(), backend.RecordBatch.from_values([b"a", b"b"]))
    assert backend.taker(result)(10, None).to_pylist() == [b"A", b"B"]


def test_importing_the_package_does_not_load_it(backend) -> None:
    """Who has no Arrow data does not pay for it."""
    code = "import sys, dataflare; print([name for name in sys.modules if name.endswith('.arrow')])"
    assert run_script(backend.name, code).strip() == "[]"
