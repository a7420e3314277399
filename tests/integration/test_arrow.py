"""Arrow data from and to the libraries that people have it in."""

import datetime
import gc
import threading

import duckdb
import nanoarrow
import polars as pl
import pyarrow as pa
import pytest
from helpers import run_script
from hypothesis import given
from hypothesis import strategies as st

BINARY = [pa.binary(), pa.large_binary(), pa.binary_view()]
TEXT = [pa.string(), pa.large_string(), pa.string_view()]
EXPORTS = {
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
}
LONG = st.integers(0, 40).map(lambda n: b"a value of some length " * n)
BYTES = st.binary(max_size=20) | LONG
STRINGS = st.text(max_size=12) | LONG.map(bytes.decode)


def plain(values: list[object]) -> list[bytes | None]:
    """What a batch has for them."""
    return [value.encode() if isinstance(value, str) else value for value in values]


def contents(batch) -> list[bytes | None]:
    """The values of a batch, None for none."""
    nulls = [False] * len(batch) if batch.nulls is None else batch.nulls.tolist()
    return [None if null else v for v, null in zip(batch.to_pylist(), nulls, strict=True)]


@st.composite
def arrays(draw) -> pa.Array:
    """Of any type that has values, with nulls, and cut at any place."""
    kind = draw(st.sampled_from([*BINARY, *TEXT, "fixed", "dictionary", "null"]))
    if kind == "null":
        array = pa.nulls(draw(st.integers(0, 20)))
    elif kind == "fixed":
        width = draw(st.integers(1, 20))
        entry = st.none() | st.binary(min_size=width, max_size=width)
        array = pa.array(draw(st.lists(entry, max_size=20)), pa.binary(width))
    elif kind == "dictionary":
        words = draw(st.lists(STRINGS, min_size=1, max_size=5))
        index = st.none() | st.integers(0, len(words) - 1)
        type_ = draw(st.sampled_from([pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint64()]))
        indices = pa.array(draw(st.lists(index, max_size=20)), type_)
        array = pa.DictionaryArray.from_arrays(indices, pa.array(words))
    else:
        entry = STRINGS if kind in TEXT else BYTES
        array = pa.array(draw(st.lists(st.none() | entry, max_size=20)), kind)
    start = draw(st.integers(0, len(array)))
    return array.slice(start, draw(st.integers(0, len(array) - start)))


@st.composite
def chunked(draw) -> pa.ChunkedArray:
    """Some chunks of one type."""
    array = draw(arrays())
    count = draw(st.integers(0, 4))
    pieces = []
    for _ in range(count):
        start = draw(st.integers(0, len(array)))
        pieces.append(array.slice(start, draw(st.integers(0, len(array) - start))))
    return pa.chunked_array(pieces, array.type)


@given(array=arrays())
def test_arrays_come_in_and_go_out(backend, array) -> None:
    """Every type, sliced, with nulls: the same values, and of the same kind."""
    expected = plain(array.to_pylist())
    batch = backend.RecordBatch.from_arrow(array)
    assert contents(batch) == expected
    for export in (batch, batch[:], batch.take(range(len(batch)))):
        column = pa.table(export)["value"]
        column.validate(full=True)
        assert plain(column.to_pylist()) == expected
    is_text = array.type in TEXT or pa.types.is_dictionary(array.type)
    assert pa.table(batch)["value"].type == (pa.string() if is_text else pa.binary())


@given(array=arrays(), type=st.sampled_from([*EXPORTS]), start=st.integers(0, 5))
def test_every_type_of_export(backend, array, type, start) -> None:
    """Of a batch, of part of it, and of what a plugin made of it."""
    batch = backend.RecordBatch.from_arrow(array)[start:]
    expected = plain(array.to_pylist())[start:]
    if type.endswith(("string", "string_view")) and any(_bad(value) for value in expected):
        with pytest.raises(ValueError, match="not UTF-8"):
            pa.table(batch.to_arrow(type=type))
        return
    table = pa.table(batch.to_arrow(type=type))
    table.validate(full=True)
    assert table.schema.field("value").type == EXPORTS[type]
    assert plain(table["value"].to_pylist()) == expected
    upper = backend.run_batch(backend.Upper(), batch)
    table = pa.table(upper.to_arrow(type=type))
    table.validate(full=True)
    assert plain(table["value"].to_pylist()) == [v if v is None else v.upper() for v in expected]


def _bad(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


@given(data=chunked())
def test_chunks_become_one_batch(backend, data) -> None:
    """A chunked array, and a table of it; what comes out is cut where memory is."""
    expected = plain(data.to_pylist())
    assert contents(backend.RecordBatch.from_arrow(data)) == expected
    batch = backend.RecordBatch.from_arrow(pa.table({"line": data}))
    assert contents(batch) == expected
    assert plain(pa.table(batch)["line"].to_pylist()) == expected
    kept = backend.run_batch(backend.Contains(b"a"), batch)
    table = pa.table(kept.to_arrow(["value", "index", "status"]))
    table.validate(full=True)
    going = [i for i, value in enumerate(expected) if value is None or b"a" in value]
    assert table["index"].to_pylist() == going
    assert plain(table["line"].to_pylist()) == [expected[i] for i in going]


@given(
    rows=st.lists(
        st.tuples(
            st.none() | STRINGS,
            st.none() | BYTES,
            st.none() | st.integers(-(1 << 53), 1 << 53),
            st.none() | st.integers(-(1 << 15), (1 << 15) - 1),
            st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
            st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        ),
        max_size=12,
    ),
    start=st.integers(0, 4),
    unit=st.sampled_from(["us", "ns"]),
    parent=st.booleans(),
)
def test_tables_come_in_and_go_out(backend, rows, start, unit, parent) -> None:
    """Every column of a record; sliced as a table, where the offset is in the children, and as an
    array of structs, where it is in the parent."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * 6
    types = [pa.string(), pa.binary(), pa.timestamp(unit), pa.int16(), pa.int64(),
             pa.map_(pa.string(), pa.string())]  # fmt: skip
    names = ["line", "who", "at", "part", "place", "notes"]
    arrays_ = [pa.array(column, type) for column, type in zip(columns, types, strict=True)]
    whole = pa.RecordBatch.from_arrays(arrays_, names)
    data = whole.to_struct_array().slice(start) if parent else whole.slice(start)
    batch = backend.RecordBatch.from_arrow(
        data, value="line", key="who", timestamp="at", partition="part", offset="place",
        metadata="notes",
    )  # fmt: skip
    rows = rows[start:]
    assert contents(batch) == plain([row[0] for row in rows])
    assert batch.keys == [row[1] for row in rows]
    factor = 1000 if unit == "us" else 1
    assert batch.timestamps.tolist() == [(row[2] or 0) * factor for row in rows]
    assert batch.partitions.tolist() == [row[3] or 0 for row in rows]
    assert batch.offsets.tolist() == [row[4] or 0 for row in rows]
    assert batch.metadata == [row[5] for row in rows]
    assert [record.key for record in batch] == [row[1] for row in rows]
    out = pa.table(batch.to_arrow(["value", "key", "timestamp", "partition", "offset", "metadata"]))
    out.validate(full=True)
    assert out["line"].to_pylist() == [row[0] for row in rows]
    assert out["key"].to_pylist() == [row[1] for row in rows]
    assert out["timestamp"].cast(pa.int64()).to_pylist() == [
        (row[2] or 0) * factor or None for row in rows
    ]
    assert out["partition"].to_pylist() == [row[3] or 0 for row in rows]
    assert out["offset"].to_pylist() == [row[4] or 0 for row in rows]
    found = out["metadata"].to_pylist()
    assert [None if row is None else dict(row) for row in found] == [row[5] for row in rows]


@given(values=st.lists(st.none() | STRINGS, max_size=20), parts=st.integers(1, 3))
def test_polars(backend, values, parts) -> None:
    """A series, a frame of several chunks, and a result as a frame."""
    series = pl.Series("line", values, pl.String)
    frame = pl.concat([series.to_frame()] * parts, rechunk=False)
    expected = values * parts
    for data, want in ((series, values), (frame, expected)):
        batch = backend.RecordBatch.from_arrow(data)
        assert contents(batch) == plain(want)
        result = backend.run_batch(backend.Upper(), batch)
        out = pl.DataFrame(result)
        assert out.to_series().dtype == pl.String
        got = out.to_series().to_list()
        assert got == [v if v is None else v.encode().upper().decode() for v in want]
        viewed = pl.DataFrame(batch.to_arrow(type="string_view")).to_series().to_list()
        assert viewed == want
    binary = pl.Series("b", plain(values), pl.Binary)
    batch = backend.RecordBatch.from_arrow(binary)
    # A batch is a sequence of records, and to polars that comes first.
    assert pl.DataFrame(batch.to_arrow()).to_series().to_list() == plain(values)


def test_duckdb(backend) -> None:
    """A relation comes in, a result is queried."""
    relation = duckdb.sql(
        "select 'line ' || range as line, range as place from range(5000) order by range"
    )
    batch = backend.RecordBatch.from_arrow(relation, value="line", offset="place")
    assert batch.to_pylist() == [b"line %d" % i for i in range(5000)]
    assert batch.offsets.tolist() == [*range(5000)]
    kept = backend.run_batch(backend.Contains(b"42"), batch)
    result = kept.to_arrow(["value", "offset", "index", "status"])  # noqa: F841, found by name
    expected = [i for i in range(5000) if "42" in str(i)]
    rows = duckdb.sql('select line, "offset", "index", status from result').fetchall()
    assert rows == [(f"line {i}", i, i, "skip") for i in expected]
    assert duckdb.sql("select count(*) from kept").fetchall() == [(len(expected),)]
    views = kept.to_arrow(type="string_view")  # noqa: F841
    assert duckdb.sql("select max(line) from views").fetchall() == [("line 942",)]
    nothing = backend.run_batch(backend.Contains(b"not there"), batch)  # noqa: F841
    assert duckdb.sql("select count(*) from nothing").fetchall() == [(0,)]


@given(values=st.lists(st.none() | STRINGS, max_size=20))
def test_nanoarrow(backend, values) -> None:
    """Both ways, as an array and as a stream."""
    batch = backend.RecordBatch.from_arrow(nanoarrow.Array(values, nanoarrow.string()))
    assert contents(batch) == plain(values)
    rows = [{"value": value} for value in values]
    assert nanoarrow.Array(batch).to_pylist() == rows
    assert nanoarrow.ArrayStream(batch).read_all().to_pylist() == rows


def test_a_schema_may_be_asked_for(backend) -> None:
    """What pyarrow asks for it gets, or a sentence."""
    batch = backend.RecordBatch.from_values([b"a", b"bc"])
    schema = pa.schema({"value": pa.large_string()})
    assert pa.table(batch, schema=schema).schema == schema
    for wrong, reason in (
        (pa.schema({"value": pa.int32()}), "'value' cannot be exported as int32"),
        (pa.schema({"other": pa.binary()}), "has the columns"),
    ):
        with pytest.raises(ValueError, match=reason):
            pa.table(batch, schema=wrong)
    assert pa.schema(batch) == pa.schema({"value": pa.binary()})


def test_the_manager_takes_arrow_data(backend) -> None:
    """Batches, and streams that are cut to the tuner's size, across chunks."""
    table = pa.table({"line": [f"line {i}" for i in range(1000)]})
    with backend.PluginManager() as manager:
        manager.register_plugin("upper", backend.Upper())
        expected = [f"LINE {i}" for i in range(1000)]
        assert pl.DataFrame(manager.process_batch("upper", table))["line"].to_list() == expected
        again = manager.process_batch("upper", manager.process_batch("upper", table))
        assert again.output.to_pylist() == [line.encode() for line in expected]
        chunks = table.to_batches(max_chunksize=7)
        reader = pa.RecordBatchReader.from_batches(table.schema, chunks)
        results = list(manager.process_stream("upper", reader))
        assert [len(result) for result in results[:1]] == [100]
        assert (
            pa.concat_tables([pa.table(result) for result in results])["line"].to_pylist()
            == expected
        )
        for data in (table, pl.DataFrame(table), pl.Series(table["line"]), chunks[0]):
            total = sum(len(result) for result in manager.process_stream("upper", data))
            assert total == len(data)
        with pytest.raises(ValueError, match=r"there are 'a', 'b'$"):
            manager.process_batch("upper", pa.table({"a": ["x"], "b": ["y"]}))
        with pytest.raises(TypeError, match="has the type int64"):
            list(manager.process_stream("upper", pa.table({"a": [1]})))


def test_large_batches_with_nulls_are_shared_out(backend) -> None:
    """Threads work on parts, and nulls stay where they were."""
    values = [None if i % 7 == 0 else f"line {i}" for i in range(20_000)]
    with backend.PluginManager() as manager:
        manager.register_plugin("upper", backend.Upper())
        for _ in range(3):
            result = manager.process_batch("upper", pa.array(values))
            expected = [v if v is None else v.upper() for v in values]
            assert pa.table(result)["value"].to_pylist() == expected
        metrics = manager.get_metrics("upper")
        assert metrics.total_processed == 60_000


def test_a_stream_holds_no_more_than_it_needs(backend) -> None:
    """Chunks come when a batch needs them, and go when its result is gone."""
    made = []

    def chunks():
        for i in range(50):
            made.append(i)
            yield pa.record_batch({"line": [f"line {i}-{j}" for j in range(100)]})

    schema = pa.schema({"line": pa.string()})
    before = pa.total_allocated_bytes()
    with backend.PluginManager() as manager:
        manager.register_plugin("upper", backend.Upper())
        stream = manager.process_stream(
            "upper", pa.RecordBatchReader.from_batches(schema, chunks())
        )
        next(stream)
        assert len(made) <= 3
        held = [pa.total_allocated_bytes() - before for _ in stream]
        assert max(held) < 500_000
    gc.collect()
    assert pa.total_allocated_bytes() <= before


def test_memory_is_given_back_in_both_directions(backend) -> None:
    """To pyarrow, when nobody refers to it; by pyarrow, in a thread of its own."""
    gc.collect()
    before = pa.total_allocated_bytes()
    array = pa.array([b"x" * 100] * 1000)
    batch = backend.RecordBatch.from_arrow(array)
    del array
    table = pa.table(batch.to_arrow(type="binary_view"))
    expected = table["value"].to_pylist()
    del batch
    gc.collect()
    assert table["value"].to_pylist() == expected
    tables = [table]
    del table
    thread = threading.Thread(target=tables.clear)
    thread.start()
    thread.join()
    gc.collect()
    assert pa.total_allocated_bytes() == before


def test_a_generator_that_fails_is_an_error_of_the_stream(backend) -> None:
    """Its message reaches who reads the batches."""

    def chunks():
        yield pa.record_batch({"line": ["one"]})
        raise KeyError("no such thing")

    reader = pa.RecordBatchReader.from_batches(pa.schema({"line": pa.string()}), chunks())
    with pytest.raises(OSError, match=r"Arrow stream failed.*no such thing"):
        backend.RecordBatch.from_arrow(reader)


def test_timestamps_of_every_unit(backend) -> None:
    """As nanoseconds; with a time zone they are the same instants."""
    instant = datetime.datetime(2026, 11, 25, 3, 4, 5, tzinfo=datetime.UTC)
    expected = int(instant.timestamp()) * 1_000_000_000
    for type in (pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us", "Europe/Paris"),
                 pa.timestamp("ns")):  # fmt: skip
        naive = instant if type.tz else instant.replace(tzinfo=None)
        table = pa.table({"value": ["x"], "at": pa.array([naive], type)})
        batch = backend.RecordBatch.from_arrow(table, timestamp="at")
        assert batch.timestamps.tolist() == [expected]
    far = pa.table({"value": ["x"], "at": pa.array([1 << 40], pa.timestamp("s"))})
    with pytest.raises(ValueError, match="does not fit in 64 bits as nanoseconds"):
        backend.RecordBatch.from_arrow(far, timestamp="at")


def test_what_is_released_while_an_exception_is_raised(backend) -> None:
    """The exception stays the one it is; on the pure backend, it is one."""
    batch = backend.RecordBatch.from_arrow(pa.array(["x"]))
    kinds = KeyError if backend.name == "cython" else (KeyError, SystemError)
    for _ in range(3):
        with pytest.raises(kinds):
            pa.table(batch)["not there"]


SHUTDOWN = """
import pyarrow as pa, dataflare, threading
batch = dataflare.RecordBatch.from_arrow(pa.array([b"x" * 100] * 1000))
tables = [pa.table(batch), pa.table(batch.to_arrow(type="binary_view"))]
reader = pa.RecordBatchReader.from_stream(batch)
capsules = batch.__arrow_c_stream__(), batch.__arrow_c_array__()
class Late:
    def __del__(self, tables=tables, capsules=capsules):
        tables.clear()
late = Late()
late.me = late
print("done")
"""


def test_the_end_of_the_interpreter(backend) -> None:
    """What others still hold then does not bring it down."""
    assert run_script(backend.name, SHUTDOWN) == "done\n"
