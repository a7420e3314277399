"""The result of a batch: counts, statuses, outcomes, output, and what it keeps alive."""

import gc
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from dataflare.errors import PluginProcessingError, PluginSerializationError

SUCCESS, FILTERED, SKIP, ERROR = range(4)


@pytest.fixture
def batch(backend):
    """Six records with every column."""
    return backend.RecordBatch.from_values(
        [b"zero", b"one", b"two", b"three", b"four", b"five"],
        [b"k0", b"k1", None, b"k3", b"k4", b"k5"],
        timestamps=range(6),
        partitions=range(10, 16),
        offsets=range(20, 26),
        metadata=[{"n": 0}, None, {"n": 2}, {"n": 3}, None, None],
    )


@pytest.fixture
def outcomes(backend):
    """One of each kind, with and without metadata."""
    make = backend.PluginResult
    return [
        make.success(b"ZERO"),
        make.filtered(),
        make.skip(),
        make.error("bad three", 3),
        make.success(bytearray(b"FOUR"), {"new": 4}),
        ValueError("bad five"),
    ]


@pytest.fixture
def result(backend, batch, outcomes):
    """The batch with these outcomes."""
    return backend.BatchResult.from_results(batch, outcomes, 0.5)


def test_counts_and_statuses(result) -> None:
    """They add up to what came in."""
    assert result.status.tolist() == [SUCCESS, FILTERED, SKIP, ERROR, SUCCESS, ERROR]
    assert result.status.dtype == np.uint8
    assert (result.processed_count, len(result)) == (6, 6)
    assert (result.success_count, result.filtered_count) == (2, 1)
    assert (result.skipped_count, result.error_count) == (1, 2)
    assert (result.processing_time, result.throughput_per_second) == (0.5, 12.0)
    with pytest.raises(ValueError, match="read-only"):
        result.status[0] = ERROR


def test_output_is_what_goes_on_in_input_order(backend, result) -> None:
    """Successes and skips, each with the other columns of its record; new metadata replaces."""
    make = backend.PluginRecord
    assert list(result.output) == [
        make(b"ZERO", key=b"k0", metadata={"n": 0}, timestamp=0, partition=10, offset=20),
        make(b"two", metadata={"n": 2}, timestamp=2, partition=12, offset=22),
        make(b"FOUR", key=b"k4", metadata={"new": 4}, timestamp=4, partition=14, offset=24),
    ]
    assert result.output.nbytes == len(b"ZEROtwoFOUR")
    assert result.output.to_lines() == b"ZERO\ntwo\nFOUR\n"


def test_errors_have_index_cause_and_code(result) -> None:
    """An error result and an exception both become a PluginError."""
    (first, one), (second, two) = result.errors
    assert (first, second) == (3, 5)
    assert (type(one), str(one), one.code, one.__cause__) == (
        PluginProcessingError, "bad three", 3, None,
    )  # fmt: skip
    assert (type(two), str(two), two.code) == (PluginProcessingError, "ValueError: bad five", None)
    assert type(two.__cause__) is ValueError


def test_results_are_a_sequence_by_input_index(backend, result, outcomes) -> None:
    """Each outcome as it was given, made when asked for."""
    results = result.results
    assert isinstance(results, Sequence)
    expected = [*outcomes[:5], backend.PluginResult.error("ValueError: bad five")]
    assert list(results) == expected
    assert [results[i] for i in range(-6, 6)] == expected * 2
    assert results[1:5:2] == expected[1:5:2]
    assert results[::-1] == expected[::-1]
    assert len(results) == 6
    assert expected[3] in results
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"result {index} of a batch of 6"):
            results[index]
    with pytest.raises(TypeError):
        results["0"]
    assert "6 results" in repr(results)


def test_repr_shows_the_counts(result) -> None:
    """In one line."""
    assert repr(result) == "BatchResult(6 records: 2 success, 1 filtered, 1 skipped, 2 failed)"


def test_a_plugin_error_stays_as_it_is(backend, batch) -> None:
    """Class, code and plugin of an outcome that is a PluginError already."""
    error = PluginSerializationError("no JSON", plugin="json", code="E1")
    skip = backend.PluginResult.skip()
    result = backend.BatchResult.from_results(batch, [skip] * 5 + [error])
    assert result.errors == [(5, error)]
    assert (error.plugin, error.code, error.__cause__) == ("json", "E1", None)


def test_no_time_is_no_throughput(backend, batch) -> None:
    """Not a division by zero."""
    result = backend.BatchResult.from_results(batch, [backend.PluginResult.skip()] * 6)
    assert (result.processing_time, result.throughput_per_second) == (0.0, 0.0)


def test_an_empty_result(backend) -> None:
    """Nothing came in, nothing goes out."""
    result = backend.BatchResult.from_results(backend.RecordBatch.from_values([]), iter([]))
    assert (result.processed_count, result.errors, list(result.results)) == (0, [], [])
    assert (len(result.output), result.status.tolist()) == (0, [])


def test_outcomes_must_fit_the_batch(backend, batch) -> None:
    """One for each record, each a result or an exception."""
    skip = backend.PluginResult.skip()
    make = backend.BatchResult.from_results
    for count in (0, 5, 7):
        with pytest.raises(ValueError, match=f"{count} results do not fit 6 records"):
            make(batch, [skip] * count)
    for wrong in (None, b"value", KeyboardInterrupt()):
        with pytest.raises(TypeError, match=f"result 5 must be .* not {type(wrong).__name__}"):
            make(batch, [skip] * 5 + [wrong])
    with pytest.raises(TypeError):
        make([b"value"], [skip])
    with pytest.raises(TypeError, match="from_results"):
        backend.BatchResult()


def test_a_result_outlives_its_input(backend, outcomes) -> None:
    """Values, keys, statuses and numbers stay as they were when everything else is gone."""
    source = bytearray(b"a\nb\nc\n")
    batch = backend.RecordBatch.from_lines(source)
    result = backend.run_batch(backend.Contains(b""), batch, backend.MemoryPool())
    output, status = result.output, result.status
    del batch, result
    gc.collect()
    with pytest.raises(BufferError):
        source.append(0)
    assert output.to_pylist() == [b"a", b"b", b"c"]
    assert status.tolist() == [SKIP] * 3
    del output
    source.append(0)
    assert status.tolist() == [SKIP] * 3


def test_what_a_result_borrowed_from_the_pool_goes_back(backend) -> None:
    """As soon as nobody needs it, without a garbage collection."""
    with backend.MemoryPool() as pool:
        for plugin in (
            backend.Upper(),
            backend.Chain(backend.Contains(b"a"), backend.Upper()),
            backend.map_plugin(bytes.upper),
            backend.filter_plugin(bool),
        ):
            batch = backend.RecordBatch.from_values([b"abc" * 100] * 50)
            result = backend.run_batch(plugin, batch, pool)
            output, status = result.output, result.status
            del result
            assert len(output) == 50
            del output
            assert len(status) == 50
            del status
            assert pool.get_stats().in_use == 0


def test_a_result_leaks_nothing(backend) -> None:
    """References to data and metadata come back."""
    value, data, metadata = b"some value", b"some data", {"a": 1}
    before = [sys.getrefcount(item) for item in (value, data, metadata)]
    for _ in range(10):
        batch = backend.RecordBatch.from_values([value] * 3, metadata=[metadata] * 3)
        made = [
            backend.PluginResult.success(data, metadata),
            backend.PluginResult.skip(),
            ValueError(),
        ]
        result = backend.BatchResult.from_results(batch, made)
        parts = [list(result.results), list(result.output), result.errors]
        del batch, made, result, parts
    gc.collect()
    assert [sys.getrefcount(item) for item in (value, data, metadata)] == before
