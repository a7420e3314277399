"""Batches: how they are made, read, cut, shown and kept alive."""

import gc
import itertools
import mmap
import pickle
import sys
import threading
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import pytest

COLUMNS = {
    "keys": [b"k0", None, "k2", bytearray(b"")],
    "timestamps": [10, -11, 12, (1 << 63) - 1],
    "partitions": [0, 1, -2, 3],
    "offsets": np.array([5, 6, 7, 8], np.uint16),
    "metadata": [{"a": 1}, None, MappingProxyType({}), {"b": [2]}],
}


@pytest.fixture
def full(backend):
    """Four records with every column."""
    return backend.RecordBatch.from_values([b"zero", "eins", bytearray(b""), b"3"], **COLUMNS)


def test_values_may_be_anything_that_has_bytes(backend) -> None:
    """Bytes, text as UTF-8, and every bytes-like object."""
    given = [
        b"bytes", "caf\xe9", "\N{GRINNING FACE}", bytearray(b"array"), memoryview(b"view"),
        np.array([1, 2], np.uint8), b"", "", memoryview(b""), b"a\0b",
    ]  # fmt: skip
    expected = [
        b"bytes", b"caf\xc3\xa9", b"\xf0\x9f\x98\x80", b"array", b"view", b"\1\2", b"", b"", b"",
        b"a\0b",
    ]  # fmt: skip
    batch = backend.RecordBatch.from_values(given)
    assert batch.to_pylist() == expected
    assert [record.value for record in batch] == expected
    assert all(type(record.value) is bytes for record in batch)
    assert (len(batch), batch.nbytes) == (10, sum(map(len, expected)))


@pytest.mark.parametrize("make", [list, tuple, iter, dict.fromkeys, lambda v: (x for x in v)])
def test_values_may_be_any_iterable(backend, make) -> None:
    """Lists, tuples, iterators, generators, the keys of a dictionary."""
    assert backend.RecordBatch.from_values(make([b"a", b"b"])).to_pylist() == [b"a", b"b"]


def test_an_empty_batch(backend) -> None:
    """No records, no columns, and nothing fails."""
    for batch in (
        backend.RecordBatch.from_values([]),
        backend.RecordBatch.from_values([], [], timestamps=[], metadata=[]),
        backend.RecordBatch.from_records([]),
        backend.RecordBatch.from_lines(b""),
        backend.RecordBatch.from_values(np.array([], "S4")),
        backend.RecordBatch.from_values(np.empty((0, 4), np.uint8)),
        backend.RecordBatch.from_values([b"a"])[1:],
    ):
        assert (len(batch), batch.nbytes, batch.to_pylist(), list(batch)) == (0, 0, [], [])
        assert bytes(batch.to_lines()) == b""
        assert repr(batch) == "RecordBatch(0 records, 0 bytes: [])"
        with pytest.raises(IndexError):
            batch[0]


def test_bytes_of_a_list_come_back_as_the_very_objects(backend) -> None:
    """No copy in, no copy out; the list may be changed afterwards."""
    values = [b"one" * 20, b"two" * 20]
    one = values[0]
    batch = backend.RecordBatch.from_values(values)
    values.clear()
    assert batch[0].value is one
    assert batch.to_pylist()[0] is one
    assert batch[:1].to_pylist()[0] is one
    assert batch[::-1][1].value is one


@pytest.mark.parametrize("wrong", [None, 5, 1.5, object(), ["nested"], np.float64])
@pytest.mark.parametrize("index", [0, 2])
def test_a_value_of_another_type_is_refused_with_its_index(backend, wrong, index) -> None:
    """TypeError with index and type."""
    values = [b"a", "b"]
    values.insert(index, wrong)
    with pytest.raises(TypeError, match=rf"^value {index} must be .* not {type(wrong).__name__}$"):
        backend.RecordBatch.from_values(values)


def test_text_that_utf8_cannot_express_is_refused_with_its_index(backend) -> None:
    """A lone surrogate, as a value and as a key."""
    with pytest.raises(ValueError, match=r"^value 1 cannot be encoded as UTF-8"):
        backend.RecordBatch.from_values(["fine", "\ud800"])
    with pytest.raises(ValueError, match=r"^key 0 cannot be encoded as UTF-8"):
        backend.RecordBatch.from_values([b""], ["\udfff"])


def test_a_list_that_the_garbage_collector_changes(backend) -> None:
    """What it runs may empty the list while that is read; all values are there, or none."""
    expected = [b"%d" % i for i in range(100)]
    threshold = gc.get_threshold()
    for objects in range(20):
        values = list(expected)

        def empty(phase, info, values=values):
            values.clear()

        gc.disable()
        gc.collect()
        made = [[] for _ in range(objects)]
        gc.callbacks.append(empty)
        try:
            gc.set_threshold(gc.get_count()[0] or 1)
            gc.enable()
            batch = backend.RecordBatch.from_values(values)
        finally:
            gc.callbacks.remove(empty)
            gc.set_threshold(*threshold)
            gc.enable()
        assert batch.to_pylist() in ([], expected)
        assert len(made) == objects


def test_a_value_with_gaps_is_refused_with_its_index(backend) -> None:
    """A view that is not contiguous cannot be a value."""
    with pytest.raises(TypeError, match="value 1 must be contiguous"):
        backend.RecordBatch.from_values([b"", memoryview(b"abcd")[::2]])


@pytest.mark.parametrize("values", [b"bytes", "text", bytearray(b"x"), memoryview(b"x"), 5, None])
def test_what_is_no_sequence_of_values_is_refused(backend, values) -> None:
    """One value alone is most likely a mistake."""
    with pytest.raises(TypeError, match=r"^values must be a sequence of values"):
        backend.RecordBatch.from_values(values)
    if values is not None:
        with pytest.raises(TypeError, match=r"^keys must be a sequence of values"):
            backend.RecordBatch.from_values([b""], values)


def test_what_an_iterable_raises_comes_through(backend) -> None:
    """Its own error, also when that is a TypeError."""

    def broken():
        yield b"a"
        raise TypeError("my own mistake")

    with pytest.raises(TypeError, match="my own mistake"):
        backend.RecordBatch.from_values(broken())


def test_every_column_comes_back(full) -> None:
    """As lists and arrays, and in the records."""
    assert full.to_pylist() == [b"zero", b"eins", b"", b"3"]
    assert full.keys == [b"k0", None, b"k2", b""]
    for name, dtype in [("timestamps", np.int64), ("partitions", np.int32), ("offsets", np.int64)]:
        column = getattr(full, name)
        assert (column.dtype, column.flags.writeable) == (dtype, False)
        assert column.tolist() == list(COLUMNS[name])
    assert full.metadata == COLUMNS["metadata"]
    assert type(full.metadata[0]) is MappingProxyType
    record = full[3]
    assert (record.value, record.key, record.metadata) == (b"3", b"", {"b": [2]})
    assert (record.timestamp, record.partition, record.offset) == ((1 << 63) - 1, 3, 8)
    assert full[1].key is None
    assert full[1].metadata is None


def test_a_column_that_was_not_given_does_not_exist(backend) -> None:
    """None, and the records have the defaults."""
    batch = backend.RecordBatch.from_values([b"a"])
    assert (batch.keys, batch.timestamps, batch.partitions) == (None, None, None)
    assert (batch.offsets, batch.metadata) == (None, None)
    assert batch[0] == backend.PluginRecord(b"a")


def test_columns_are_copied_or_held_but_never_follow_the_source(backend) -> None:
    """Changing a list afterwards changes nothing."""
    keys, timestamps, metadata = [b"k"], [1], [{"a": 1}]
    batch = backend.RecordBatch.from_values([b"a"], keys, timestamps=timestamps, metadata=metadata)
    keys[0], timestamps[0], metadata[0] = b"other", 2, None
    assert batch[0] == backend.PluginRecord(b"a", key=b"k", timestamp=1, metadata={"a": 1})


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"keys": [b"a"]}, ValueError, "keys has the length 1, there are 2 values"),
        ({"keys": [b"a", 5]}, TypeError, "key 1 must be bytes, str or bytes-like, not int"),
        ({"timestamps": [1, 2, 3]}, ValueError, "timestamps"),
        ({"timestamps": [[1, 2]]}, ValueError, "timestamps"),
        ({"timestamps": 5}, ValueError, "timestamps"),
        ({"timestamps": [1, 1 << 63]}, (TypeError, ValueError), "timestamps .* 64 bits"),
        ({"timestamps": [1.5, 2]}, TypeError, "timestamps must be integers"),
        ({"timestamps": ["1", "2"]}, TypeError, "timestamps must be integers"),
        ({"timestamps": [True, False]}, TypeError, "timestamps must be integers"),
        ({"offsets": [None, 1]}, TypeError, "offsets must be integers"),
        ({"offsets": np.array([1 << 63, 0], np.uint64)}, ValueError, "offsets .* 64 bits"),
        ({"partitions": [0, 1 << 31]}, ValueError, "partitions .* 32 bits"),
        ({"partitions": [-(1 << 31) - 1, 0]}, ValueError, "partitions .* 32 bits"),
        ({"metadata": [{}]}, ValueError, "metadata has the length 1, there are 2 values"),
        ({"metadata": [None, 5]}, TypeError, "metadata 1 must be a mapping, not int"),
    ],
)
def test_bad_columns_are_refused_by_name(backend, columns, error, message) -> None:
    """Wrong length, type or range: the sentence names the column."""
    with pytest.raises(error, match=message):
        backend.RecordBatch.from_values([b"x", b"y"], **columns)


def test_an_array_of_byte_strings_gives_its_elements(backend) -> None:
    """Without trailing NULs, as NumPy has it, but with inner ones; also with a stride."""
    array = np.array([b"one", b"", b"three", b"a\0b", b"x\0"], "S8")
    batch = backend.RecordBatch.from_values(array)
    assert batch.to_pylist() == array.tolist() == [b"one", b"", b"three", b"a\0b", b"x"]
    assert backend.RecordBatch.from_values(array[::2]).to_pylist() == [b"one", b"three", b"x"]
    assert backend.RecordBatch.from_values(array[::-1]).to_pylist() == array[::-1].tolist()
    with pytest.raises(ValueError, match="one dimension, not 2"):
        backend.RecordBatch.from_values(array[:4].reshape(2, 2))


def test_an_array_of_bytes_gives_its_rows(backend) -> None:
    """Two dimensions of uint8; everything else points to what would do."""
    array = np.frombuffer(b"abcdefghijkl", np.uint8).reshape(3, 4)
    from_values = backend.RecordBatch.from_values
    assert from_values(array).to_pylist() == [b"abcd", b"efgh", b"ijkl"]
    assert from_values(array[::-1]).to_pylist() == [b"ijkl", b"efgh", b"abcd"]
    assert from_values(array[:, 1:3]).to_pylist() == [b"bc", b"fg", b"jk"]
    assert from_values(array[:, ::2]).to_pylist() == [b"ac", b"eg", b"ik"]
    assert from_values(array.T).to_pylist() == [b"aei", b"bfj", b"cgk", b"dhl"]
    assert from_values(array[:, :0]).to_pylist() == [b"", b"", b""]
    for wrong in (array[0], array.reshape(3, 2, 2)):
        with pytest.raises(ValueError, match="from_lines"):
            from_values(wrong)
    for dtype in (np.uint16, np.int8, np.float32):
        with pytest.raises(TypeError, match="an array of values must be of"):
            from_values(array.view(dtype))


def test_an_array_is_not_copied_and_cannot_be_resized(backend) -> None:
    """A change shows, a resize is refused while the batch lives."""
    for array in (np.zeros((2, 3), np.uint8), np.array([b"abc", b"def"])):
        batch = backend.RecordBatch.from_values(array)
        array.view(np.uint8).reshape(2, 3)[1] = np.frombuffer(b"xyz", np.uint8)
        assert batch.to_pylist()[1] == b"xyz"
        del batch


def test_an_array_that_repeats_a_row_without_end_is_refused(backend) -> None:
    """Its views would fill the address space several times."""
    rows = np.lib.stride_tricks.as_strided(np.array([b"a"]), (1 << 60,), (0,))
    with pytest.raises((MemoryError, ValueError)):
        backend.RecordBatch.from_values(rows)


def test_numbers_stand_where_a_processor_can_read_them(backend) -> None:
    """A column that begins at an odd address is copied."""
    raw = b"x" + np.arange(3, dtype=np.int64).tobytes()
    column = np.frombuffer(raw, np.int64, offset=1)
    batch = backend.RecordBatch.from_values([b"a"] * 3, timestamps=column, offsets=column)
    assert batch.timestamps.flags.aligned
    assert batch.offsets.flags.aligned
    assert batch[1:].timestamps.tolist() == [1, 2]


def test_records_become_a_batch_and_come_back(backend, full) -> None:
    """Every field, and columns that no record uses do not exist."""
    records = list(full)
    again = backend.RecordBatch.from_records(iter(records))
    assert list(again) == records
    plain = backend.RecordBatch.from_records([backend.PluginRecord(b"a")])
    assert (plain.keys, plain.timestamps, plain.metadata) == (None, None, None)
    with pytest.raises(TypeError, match="record 1 must be a PluginRecord, not bytes"):
        backend.RecordBatch.from_records([records[0], b"value"])
    with pytest.raises(TypeError, match="sequence"):
        backend.RecordBatch.from_records(b"value")


@pytest.mark.parametrize(
    ("text", "newline", "expected"),
    [
        (b"", None, []),
        (b"\n", None, [b""]),
        (b"\n\n", None, [b"", b""]),
        (b"a", None, [b"a"]),
        (b"a\n", None, [b"a"]),
        (b"a\nb", None, [b"a", b"b"]),
        (b"a\n\nb\n", None, [b"a", b"", b"b"]),
        (b"a\0b\n\0\n", None, [b"a\0b", b"\0"]),
        (b"\r\n", None, [b""]),
        (b"a\r\nb\r\n", None, [b"a", b"b"]),
        (b"a\r\nb", None, [b"a", b"b"]),
        (b"a\r\nb\r", None, [b"a", b"b\r"]),
        (b"a\r\nb\nc\r\n", None, [b"a", b"b", b"c"]),
        (b"a\nb\r\nc\n", None, [b"a", b"b\r", b"c"]),
        (b"\n\r\n", None, [b"", b"\r"]),
        (b"a\rb\n", None, [b"a\rb"]),
        (b"a\r\r\n", None, [b"a\r"]),
        (b"\r", None, [b"\r"]),
        (b"a\r\nb\r\n", b"\n", [b"a\r", b"b\r"]),
        (b"a\nb\r\n", b"\r\n", [b"a", b"b"]),
        (b"\n\n", b"\r\n", [b"", b""]),
        (b"x" * 100_000 + b"\ny", None, [b"x" * 100_000, b"y"]),
    ],
)
def test_lines(backend, text, newline, expected) -> None:
    """LF and CRLF, empty lines, NULs, a last line without an end."""
    batch = backend.RecordBatch.from_lines(text, newline=newline)
    assert batch.to_pylist() == expected
    assert batch.nbytes == sum(map(len, expected))
    assert bytes(batch.to_lines()) == b"".join(value + b"\n" for value in expected)
    with backend.MemoryPool() as pool:
        assert backend.RecordBatch.from_lines(text, newline=newline, pool=pool).to_pylist() == (
            expected
        )


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        lambda text: np.frombuffer(text, np.uint8),
        lambda text: np.frombuffer(text, "S1"),
    ],
)
def test_lines_of_any_buffer(backend, make) -> None:
    """Whatever exports contiguous memory."""
    assert backend.RecordBatch.from_lines(make(b"a\nbc\n")).to_pylist() == [b"a", b"bc"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a\nb",), TypeError, "must be bytes-like, not str"),
        ((5,), TypeError, "bytes-like"),
        ((None,), TypeError, "bytes-like"),
        ((memoryview(b"abcd")[::2],), TypeError, "contiguous"),
    ],
)
def test_what_is_no_buffer_has_no_lines(backend, arguments, error, message) -> None:
    """TypeError says what a buffer of lines is."""
    with pytest.raises(error, match=message):
        backend.RecordBatch.from_lines(*arguments)


@pytest.mark.parametrize("newline", [b"", b"\r", b";", "\n"])
def test_only_two_line_ends_exist(backend, newline) -> None:
    """Everything else is refused."""
    with pytest.raises(ValueError, match="newline must be"):
        backend.RecordBatch.from_lines(b"a", newline=newline)


def test_lines_of_a_buffer_that_is_written_to_meanwhile(backend) -> None:
    """Which lines it has depends on the moment; sizes and lines agree all the same."""
    lines = 1 << 14 if backend.name == "cython" else 1 << 8
    few, many = b"a" * 1024 * lines, (b"a" * 1023 + b"\n") * lines
    buffer = bytearray(few)
    ended = threading.Event()

    def write():
        for content in itertools.cycle((many, few)):
            buffer[:] = content
            if ended.is_set():
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(100):
            batch = backend.RecordBatch.from_lines(buffer, newline=b"\n")
            assert batch.nbytes == sum(map(len, batch.to_pylist()))
    finally:
        ended.set()
        thread.join()


def test_to_lines_copies_nothing_where_the_lines_stand_already(backend) -> None:
    """The whole batch and a slice of it are views of the source, read-only."""
    source = bytearray(b"one\ntwo\nthree\n")
    batch = backend.RecordBatch.from_lines(source)
    for part, expected in [
        (batch, b"one\ntwo\nthree\n"), (batch[1:], b"two\nthree\n"), (batch[1:2], b"two\n"),
    ]:  # fmt: skip
        lines = part.to_lines()
        assert type(lines) is memoryview
        assert (lines.readonly, bytes(lines)) == (True, expected)
    source[0] = ord("O")
    assert bytes(batch.to_lines()) == b"One\ntwo\nthree\n"
    crlf = backend.RecordBatch.from_lines(b"a\r\nb\r\n")
    assert type(crlf.to_lines(b"\r\n")) is memoryview
    assert crlf.to_lines(b"\r\n") == b"a\r\nb\r\n"


def test_to_lines_joins_where_they_do_not(backend) -> None:
    """Other ends, a missing last one, picked records, values of a list."""
    batch = backend.RecordBatch.from_lines(b"a\nb\nc")
    assert batch.to_lines() == b"a\nb\nc\n"
    assert batch[:2].to_lines() == b"a\nb\n"
    assert batch.to_lines(b"\r\n") == b"a\r\nb\r\nc\r\n"
    assert batch.to_lines(b"") == b"abc"
    assert batch.to_lines(b"--") == b"a--b--c--"
    assert batch[::2].to_lines() == b"a\nc\n"
    assert batch[::-1].to_lines() == b"c\nb\na\n"
    mixed = backend.RecordBatch.from_lines(b"a\r\nb\nc\r\n")
    assert mixed.to_lines() == b"a\nb\nc\n"
    assert mixed.to_lines(b"\r\n") == b"a\r\nb\r\nc\r\n"
    assert backend.RecordBatch.from_values([b"a", "b", b""]).to_lines() == b"a\nb\n\n"
    for wrong in ("\n", None):
        with pytest.raises(TypeError):
            batch.to_lines(wrong)


@pytest.mark.parametrize("stop", [None, *range(-6, 7)])
@pytest.mark.parametrize("start", [None, *range(-6, 7)])
def test_slices_are_those_of_a_list(backend, full, start, stop) -> None:
    """Any start and stop, with steps of one, more, and backwards; every column follows."""
    records = list(full)
    for step in (None, 1, 2, 3, -1, -2):
        part = full[start:stop:step]
        assert type(part) is backend.RecordBatch
        assert list(part) == records[start:stop:step]
        assert part.nbytes == sum(len(record.value) for record in records[start:stop:step])
        assert list(part[1:]) == records[start:stop:step][1:]


def test_indices_are_those_of_a_list(full) -> None:
    """Negative ones too; outside is an IndexError, and something else a TypeError."""
    records = list(full)
    for index in range(-4, 4):
        assert full[index] == records[index]
    assert full[np.int64(2)] == records[2]
    for index in (4, -5, 1 << 40):
        with pytest.raises(IndexError, match=f"record {index} of a batch of 4"):
            full[index]
    for wrong in ("0", 1.0, None):
        with pytest.raises(TypeError):
            full[wrong]


def test_a_batch_is_an_immutable_sequence(full) -> None:
    """It has what a sequence has, and no way to change it."""
    assert isinstance(full, Sequence)
    assert full[0] in full
    with pytest.raises(TypeError):
        full[0] = full[1]
    with pytest.raises(TypeError):
        del full[0]
    with pytest.raises(AttributeError):
        full.keys = []
    with pytest.raises(AttributeError):
        full.surprise = 1
    with pytest.raises(ValueError, match="read-only"):
        full.timestamps[0] = 1


def test_a_batch_is_made_by_its_functions_alone(backend) -> None:
    """The constructor says which."""
    with pytest.raises(TypeError, match="from_values, from_records, from_lines or from_arrow"):
        backend.RecordBatch()


def test_repr_shows_how_much_and_the_first_values(backend) -> None:
    """Three values at most, sixty bytes of each."""
    make = backend.RecordBatch.from_values
    assert repr(make([b"a"])) == "RecordBatch(1 record, 1 byte: [b'a'])"
    assert repr(make([b"a", "b", b"c"])) == "RecordBatch(3 records, 3 bytes: [b'a', b'b', b'c'])"
    assert repr(make([b"a"] * 4)) == "RecordBatch(4 records, 4 bytes: [b'a', b'a', b'a', ...])"
    assert repr(make([b"x" * 61])) == f"RecordBatch(1 record, 61 bytes: [{b'x' * 60!r}...])"


def test_batches_survive_pickling(backend, full) -> None:
    """Every column, of a whole batch and of a slice."""
    for batch in (full, full[1:3], backend.RecordBatch.from_lines(b"a\nb\n"), full[:0]):
        again = pickle.loads(pickle.dumps(batch))
        assert type(again) is backend.RecordBatch
        assert list(again) == list(batch)


def outputs_of(backend, batch) -> dict:
    """Everything that must keep the source of a batch alive."""
    kept = backend.run_batch(backend.filter_plugin(lambda value: True), batch)
    return {
        "batch": batch,
        "slice": batch[1:],
        "picked": batch[::-1],
        "lines": batch[:1].to_lines(),
        "filtered": kept.output,
        "native": backend.run_batch(backend.Contains(b""), batch).output,
        "result": backend.run_batch(backend.Contains(b"o"), batch),
    }


HOLDERS = ["batch", "slice", "picked", "lines", "filtered", "native", "result"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_bytearray_cannot_be_resized_while_anything_needs_it(backend, holder) -> None:
    """And can right after, without a garbage collection."""
    source = bytearray(b"one\ntwo\n")
    batch = backend.RecordBatch.from_lines(source)
    held = outputs_of(backend, batch)[holder]
    del batch
    with pytest.raises(BufferError):
        source.extend(b"x" * 10)
    del held
    source.extend(b"x" * 10)
    assert len(source) == 18


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_mapping_cannot_be_closed_while_anything_needs_it(backend, holder) -> None:
    """And can right after, without a garbage collection."""
    mapping = mmap.mmap(-1, 8)
    mapping[:] = b"one\ntwo\n"
    batch = backend.RecordBatch.from_lines(mapping)
    held = outputs_of(backend, batch)[holder]
    del batch
    with pytest.raises(BufferError):
        mapping.close()
    del held
    mapping.close()
    assert mapping.closed


def test_values_and_keys_hold_their_buffers(backend) -> None:
    """Each export ends with the batch, and the values taken out are copies."""
    value, key = bytearray(b"value"), bytearray(b"key")
    batch = backend.RecordBatch.from_values([value], [key])
    for source in (value, key):
        with pytest.raises(BufferError):
            source.append(0)
    record = batch[0]
    del batch
    value.append(0)
    key.append(0)
    assert (record.value, record.key) == (b"value", b"key")


def test_a_view_that_the_caller_releases_does_not_matter(backend) -> None:
    """The batch has one of its own, of values, keys and lines."""
    source = bytearray(b"one\ntwo\n")
    for make in (
        backend.RecordBatch.from_lines,
        lambda view: backend.RecordBatch.from_values([view]),
        lambda view: backend.RecordBatch.from_values([b""], [view]),
    ):
        view = memoryview(source)
        batch = make(view)
        view.release()
        assert b"one" in (batch[0].value or batch[0].key)
        with pytest.raises(BufferError):
            source.append(0)
        del batch
    source.append(0)
    assert len(source) == 9


def test_numbers_hold_their_batch(backend, full) -> None:
    """A column that was taken out stays as it was."""
    columns = full.timestamps, full[1:3].partitions, full[::-1].offsets
    del full
    gc.collect()
    backend.RecordBatch.from_values([b"other"] * 100, timestamps=range(100))
    assert [column.tolist() for column in columns] == [
        [10, -11, 12, (1 << 63) - 1], [1, -2], [8, 7, 6, 5],
    ]  # fmt: skip


def test_the_lines_of_a_pool_buffer_hold_it(backend) -> None:
    """A buffer can be split and returned afterwards; its column goes back to the pool too."""
    with backend.MemoryPool() as pool:
        buffer = pool.get_buffer(4)
        memoryview(buffer)[:] = b"a\nb\n"
        batch = backend.RecordBatch.from_lines(buffer, pool=pool)
        assert batch.to_pylist() == [b"a", b"b"]
        with pytest.raises(BufferError, match="view"):
            pool.return_buffer(buffer)
        del batch
        pool.return_buffer(buffer)
        assert pool.get_stats().in_use == 0


def test_a_batch_leaks_nothing(backend) -> None:
    """References to values, keys and metadata come back."""
    value, key, metadata = b"a value", b"a key", {"a": 1}
    before = [sys.getrefcount(item) for item in (value, key, metadata)]
    for _ in range(10):
        batch = backend.RecordBatch.from_values([value] * 3, [key] * 3, metadata=[metadata] * 3)
        parts = [batch[1:], batch[::-1], list(batch), batch.to_pylist(), batch.metadata]
        outputs = outputs_of(backend, batch)
        del batch, parts, outputs
    gc.collect()
    assert [sys.getrefcount(item) for item in (value, key, metadata)] == before
