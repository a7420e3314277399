"""One record, and what a plugin made of it."""

import gc
import pickle
import sys
from types import MappingProxyType

import numpy as np
import pytest


def test_a_record_of_bytes_keeps_the_very_object(backend) -> None:
    """No copy of value or key; everything else has its default."""
    value, key = b"value" * 10, b"key" * 10
    record = backend.PluginRecord(value, key=key)
    assert record.value is value
    assert record.key is key
    assert (record.metadata, record.timestamp, record.partition, record.offset) == (None, 0, 0, 0)


@pytest.mark.parametrize(
    "value",
    [
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        np.frombuffer(b"abcd", np.uint8),
        np.frombuffer(b"abcd", "<u2"),
        np.frombuffer(b"abcd", np.uint8).reshape(2, 2),
        type("Bytes", (bytes,), {})(b"abcd"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_bytes_like_values_become_a_flat_read_only_view(backend, value) -> None:
    """Format B, one dimension, read-only, on the same memory."""
    for view in (backend.PluginRecord(value).value, backend.PluginRecord(b"", key=value).key):
        assert type(view) is memoryview
        assert (view.format, view.ndim, view.readonly, bytes(view)) == ("B", 1, True, b"abcd")


def test_a_view_is_no_copy_and_holds_its_source(backend) -> None:
    """A bytearray shows its changes and cannot be resized while the record lives."""
    source = bytearray(b"abcd")
    record = backend.PluginRecord(source)
    source[0] = ord("X")
    assert record.value == b"Xbcd"
    with pytest.raises(BufferError):
        source.append(0)
    del record
    source.append(0)
    assert len(source) == 5


def test_a_pool_buffer_may_be_a_value(backend) -> None:
    """It cannot be returned while the record lives."""
    pool = backend.MemoryPool()
    buffer = pool.get_buffer(3)
    memoryview(buffer)[:] = b"abc"
    record = backend.PluginRecord(buffer)
    assert record.value == b"abc"
    with pytest.raises(BufferError, match="view"):
        pool.return_buffer(buffer)
    del record
    pool.return_buffer(buffer)
    assert buffer.returned


@pytest.mark.parametrize("value", ["text", None, 5, [1, 2], object()])
def test_a_value_or_key_that_is_not_bytes_like_is_refused(backend, value) -> None:
    """TypeError with the name of the type."""
    with pytest.raises(TypeError, match=f"value of a record .* {type(value).__name__}"):
        backend.PluginRecord(value)
    if value is not None:
        with pytest.raises(TypeError, match=f"key of a record .* {type(value).__name__}"):
            backend.PluginRecord(b"", key=value)


def test_a_value_with_gaps_is_refused(backend) -> None:
    """A view that is not contiguous cannot be a value."""
    with pytest.raises(TypeError, match="contiguous"):
        backend.PluginRecord(memoryview(b"abcd")[::2])


@pytest.mark.parametrize(
    ("field", "lowest", "highest"),
    [
        ("timestamp", -(1 << 63), (1 << 63) - 1),
        ("partition", -(1 << 31), (1 << 31) - 1),
        ("offset", -(1 << 63), (1 << 63) - 1),
    ],
)
def test_numbers_have_a_width(backend, field, lowest, highest) -> None:
    """The extremes fit, one more does not, and what is no integer is refused."""
    for number in (lowest, -1, 0, 1, highest, np.int32(5), True):
        record = backend.PluginRecord(b"", **{field: number})
        assert getattr(record, field) == number
        assert type(getattr(record, field)) is int
    for number in (lowest - 1, highest + 1, 1 << 200):
        with pytest.raises(ValueError, match=f"{field} must fit in"):
            backend.PluginRecord(b"", **{field: number})
    for wrong in (1.0, "1", None):
        with pytest.raises(TypeError, match=f"{field} must be an integer"):
            backend.PluginRecord(b"", **{field: wrong})


def test_metadata_is_a_read_only_view_of_the_mapping(backend) -> None:
    """Not a copy; a proxy is kept as it is."""
    given = {"a": 1}
    record = backend.PluginRecord(b"", metadata=given)
    assert type(record.metadata) is MappingProxyType
    given["b"] = 2
    assert record.metadata == {"a": 1, "b": 2}
    with pytest.raises(TypeError):
        record.metadata["a"] = 3
    assert backend.PluginRecord(b"", metadata=record.metadata).metadata is record.metadata
    with pytest.raises(TypeError, match="metadata must be a mapping, not list"):
        backend.PluginRecord(b"", metadata=[("a", 1)])


@pytest.mark.parametrize("name", ["value", "key", "metadata", "timestamp", "partition", "offset"])
def test_a_record_cannot_be_changed(backend, name) -> None:
    """No attribute can be set or deleted, and none can be added."""
    record = backend.PluginRecord(b"value", key=b"key")
    with pytest.raises(AttributeError):
        setattr(record, name, b"other")
    with pytest.raises(AttributeError):
        delattr(record, name)
    with pytest.raises(AttributeError):
        record.surprise = 1
    assert (record.value, record.key) == (b"value", b"key")


def test_a_record_cannot_be_made_twice(backend) -> None:
    """Calling its constructor again would change it."""
    record = backend.PluginRecord(b"a", timestamp=1)
    with pytest.raises(TypeError, match="cannot be changed"):
        record.__init__(b"b")
    assert record == backend.PluginRecord(b"a", timestamp=1)


def test_only_the_value_is_positional(backend) -> None:
    """The other fields are given by name, and unknown ones are refused."""
    with pytest.raises(TypeError):
        backend.PluginRecord(b"value", b"key")
    with pytest.raises(TypeError):
        backend.PluginRecord(b"value", surprise=1)
    with pytest.raises(TypeError):
        backend.PluginRecord()


def test_records_compare_by_value_and_have_no_hash(backend) -> None:
    """Every field counts; bytes and a view of the same bytes are equal."""
    make = backend.PluginRecord
    fields = {
        "key": b"k", "metadata": {"a": 1}, "timestamp": 1, "partition": 2, "offset": 3,
    }  # fmt: skip
    record = make(b"v", **fields)
    assert record == make(bytearray(b"v"), **{**fields, "key": memoryview(b"k")})
    assert record != make(b"w", **fields)
    for name in fields:
        assert record != make(b"v", **{k: v for k, v in fields.items() if k != name})
    assert make(b"v", metadata={}) == make(b"v")
    assert record != b"v"
    with pytest.raises(TypeError, match="unhashable"):
        hash(record)


def test_repr_of_a_record_is_short(backend) -> None:
    """At most sixty bytes of a value, and only the fields that were given."""
    make = backend.PluginRecord
    assert repr(make(b"abc")) == "PluginRecord(b'abc')"
    assert repr(make(b"x" * 60)) == f"PluginRecord({b'x' * 60!r})"
    assert repr(make(b"x" * 61)) == f"PluginRecord({b'x' * 60!r}...)"
    full = make(bytearray(b"v"), key=b"k", metadata={"a": 1}, timestamp=1, partition=2, offset=-3)
    assert repr(full) == (
        "PluginRecord(b'v', key=b'k', metadata={'a': 1}, timestamp=1, partition=2, offset=-3)"
    )


def test_records_survive_pickling(backend) -> None:
    """Views come back as bytes, and the result equals the original."""
    record = backend.PluginRecord(
        bytearray(b"value"), key=memoryview(b"key"), metadata={"a": [1]},
        timestamp=-1, partition=7, offset=1 << 40,
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(record))
    assert again == record
    assert type(again) is type(record)
    assert type(again.value) is type(again.key) is bytes


def test_a_record_leaks_nothing(backend) -> None:
    """The value's reference count comes back."""
    value = b"some value of its own"
    before = sys.getrefcount(value)
    records = [backend.PluginRecord(value, key=value) for _ in range(100)]
    results = [backend.PluginResult.success(value) for _ in range(100)]
    assert sys.getrefcount(value) == before + 300
    del records, results
    gc.collect()
    assert sys.getrefcount(value) == before


OUTCOMES = ["is_success", "is_filtered", "is_skip", "is_error"]


def outcomes_of(result) -> list[str]:
    """Which of the four a result says it is."""
    return [name for name in OUTCOMES if getattr(result, name)]


def test_success_has_data(backend) -> None:
    """Bytes as they are, anything else as a read-only view; metadata as a proxy."""
    data = b"data" * 10
    result = backend.PluginResult.success(data, {"a": 1})
    assert outcomes_of(result) == ["is_success"]
    assert result.data is data
    assert (result.metadata, result.message, result.code) == ({"a": 1}, None, None)
    view = backend.PluginResult.success(bytearray(b"x")).data
    assert (type(view), view.readonly, bytes(view)) == (memoryview, True, b"x")
    assert backend.PluginResult.success(b"").data == b""
    for wrong in ("text", None, 1):
        with pytest.raises(TypeError, match="data of a result must be bytes-like"):
            backend.PluginResult.success(wrong)
    with pytest.raises(TypeError, match="mapping"):
        backend.PluginResult.success(b"", 5)


@pytest.mark.parametrize("kind", ["filtered", "skip"])
def test_filtered_and_skip_are_singletons(backend, kind) -> None:
    """They have nothing to tell but what they are, also after pickling."""
    make = getattr(backend.PluginResult, kind)
    result = make()
    assert make() is result
    assert pickle.loads(pickle.dumps(result)) is result
    assert outcomes_of(result) == [f"is_{kind}"]
    assert (result.data, result.metadata, result.message, result.code) == (None,) * 4
    assert repr(result) == f"PluginResult.{kind}()"


def test_error_has_a_message_and_perhaps_a_code(backend) -> None:
    """The message is text, the code an integer or text."""
    result = backend.PluginResult.error("no such thing", 7)
    assert outcomes_of(result) == ["is_error"]
    assert (result.data, result.metadata) == (None, None)
    assert (result.message, result.code) == ("no such thing", 7)
    assert backend.PluginResult.error("x").code is None
    assert backend.PluginResult.error("x", code="E7").code == "E7"
    with pytest.raises(TypeError, match="message of an error must be str, not bytes"):
        backend.PluginResult.error(b"x")
    with pytest.raises(TypeError, match="code of an error must be int or str, not float"):
        backend.PluginResult.error("x", 1.5)


def test_a_result_is_made_by_its_four_functions_alone_and_cannot_be_changed(backend) -> None:
    """Neither the constructor nor an assignment works."""
    with pytest.raises(TypeError, match="success, filtered, skip or error"):
        backend.PluginResult()
    result = backend.PluginResult.success(b"x")
    for name in ("data", "metadata", "message", "code", "is_success", "surprise"):
        with pytest.raises(AttributeError):
            setattr(result, name, None)


def test_results_compare_by_value_and_have_no_hash(backend) -> None:
    """Outcome, data, metadata, message and code count."""
    make = backend.PluginResult
    results = [
        make.success(b""), make.success(b"x"), make.success(b"x", {"a": 1}), make.filtered(),
        make.skip(), make.error("x"), make.error("y"), make.error("x", 1), make.error("x", "1"),
    ]  # fmt: skip
    for i, one in enumerate(results):
        assert [one == other for other in results] == [i == j for j in range(len(results))]
    assert make.success(b"x") == make.success(bytearray(b"x"), {})
    assert make.success(b"x") != b"x"
    with pytest.raises(TypeError, match="unhashable"):
        hash(results[0])


def test_repr_and_pickling_of_results(backend) -> None:
    """The repr is what makes it, shortened; pickling gives an equal result."""
    make = backend.PluginResult
    for result, text in [
        (make.success(b"abc"), "PluginResult.success(b'abc')"),
        (make.success(bytearray(b"abc")), "PluginResult.success(b'abc')"),
        (make.success(b"x" * 61), f"PluginResult.success({b'x' * 60!r}...)"),
        (make.success(b"", {"a": 1}), "PluginResult.success(b'', metadata={'a': 1})"),
        (make.error("bad"), "PluginResult.error('bad')"),
        (make.error("bad", "E1"), "PluginResult.error('bad', code='E1')"),
    ]:
        assert repr(result) == text
        assert pickle.loads(pickle.dumps(result)) == result
