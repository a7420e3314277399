"""Records that come one by one, and plugins that take them batch by batch."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import PLUGINS, VALUES

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import (
    PluginConfigurationError,
    PluginError,
    UnknownPluginError,
)


def sizes_of(manager, name, records):
    """How many records each batch of a stream had."""
    return [result.processed_count for result in manager.process_stream(name, records)]


def manager_of(backend, **batch):
    """A manager with this configuration of batches."""
    return backend.PluginManager(PluginManagerConfig(batch_config=BatchConfig(**batch)))


def test_a_stream_without_optimisation_has_batches_of_one_size(backend) -> None:
    """The last one has the rest; nothing gives no batch."""
    with manager_of(backend, default_batch_size=4, enable_auto_optimization=False) as manager:
        manager.register_plugin("x", backend.Upper())
        values = [b"%d" % i for i in range(10)]
        batch = backend.RecordBatch.from_values(values)
        for records in (values, iter(values), batch, list(batch), np.array(values)):
            assert sizes_of(manager, "x", records) == [4, 4, 2]
        assert sizes_of(manager, "x", values[:8]) == [4, 4]
        assert sizes_of(manager, "x", []) == []
        assert sizes_of(manager, "x", batch[:0]) == []
        parts = [result.output.to_pylist() for result in manager.process_stream("x", batch)]
        assert list(itertools.chain(*parts)) == values


def test_a_stream_takes_no_more_than_it_needs(backend, manager) -> None:
    """Of a source without end one batch is taken for each that is asked for."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield b"x"

    manager.register_plugin("x", backend.Upper())
    stream = manager.process_stream("x", endless())
    assert len(taken) == 0
    assert next(stream).processed_count == len(taken) == 100
    second = next(stream)
    assert len(taken) == 100 + second.processed_count
    stream.close()


def test_a_stream_goes_on_after_failures(manager, witness) -> None:
    """Errors are in their batch's result."""
    manager.register_plugin("x", witness)
    results = list(manager.process_stream("x", [b"a", b"raise"] * 150))
    assert sum(result.error_count for result in results) == 150
    assert sum(result.success_count for result in results) == 150


def test_what_the_source_raises_comes_through(backend, manager) -> None:
    """After the batches that were full before it."""

    def source():
        yield from [b"a"] * 120
        raise OSError("connection lost")

    manager.register_plugin("x", backend.Upper())
    stream = manager.process_stream("x", source())
    assert next(stream).processed_count == 100
    with pytest.raises(OSError, match="connection lost"):
        next(stream)


def test_slow_batches_shrink(backend) -> None:
    """With a latency that every batch exceeds: the first is the largest."""
    with manager_of(backend, target_latency=0) as manager:
        manager.register_plugin("x", backend.map_plugin(bytes.upper))
        sizes = sizes_of(manager, "x", [b"a"] * 5000)
        assert sizes[0] == max(sizes) == 100
        assert sizes[1] < 100


def test_thin_batches_grow_to_the_maximum(backend) -> None:
    """With a throughput that no batch reaches."""
    infinite = float("inf")
    config = {"max_batch_size": 300, "target_latency": infinite, "min_throughput": infinite}
    with manager_of(backend, **config) as manager:
        manager.register_plugin("x", sleeper(backend, 1e-3))
        sizes = sizes_of(manager, "x", [b"a"] * 9000)
        assert sizes[0] == 100
        assert max(sizes) == sizes[-2] == 300


def sleeper(backend, seconds):
    """A plugin whose batches take a time of their own, whatever they hold."""

    class Sleeps(backend.BatchPlugin):
        def process_batch(self, records):
            time.sleep(seconds)
            skip = backend.PluginResult.skip()
            return backend.BatchResult.from_results(records, [skip] * len(records))

    return Sleeps()


def sized(sizer, plugin, latency, count):
    """The sizes that a plugin is served when batches of n take ``latency(n)``."""
    sizes = []
    for _ in range(count):
        sizer.serve(plugin)
        sizes.append(sizer.size)
        sizer.learn(sizer.size, latency(sizer.size), None)
    return sizes


def test_a_sizer_finds_the_size_and_starts_over_for_another_plugin(backend) -> None:
    """A search per plugin; the same plugin again is no reason for one."""
    sizer = backend.BatchSizer("x", BatchConfig(max_batch_size=100_000))
    first, second = backend.Upper(), backend.Upper()
    sizes = sized(sizer, first, lambda n: 1e-4 + 1e-6 * n, 40)
    assert sizes[0] == 100
    assert 4000 < sizes[-1] < 7000
    assert sized(sizer, first, lambda n: 1e-4 + 1e-6 * n, 5) == [sizes[-1]] * 5
    assert sized(sizer, second, lambda n: 1e-6 * n, 40)[::39] == [100, 100]


def test_a_plugin_with_a_configuration_is_sized_by_it(backend) -> None:
    """Its own first size, target, maximum and bytes, within the limits of the stream."""
    stream = BatchConfig(default_batch_size=50, max_batch_size=5000, max_batch_bytes=1000)
    own = BatchConfig(default_batch_size=70, max_batch_size=10**6, target_latency=0.01)
    sizer = backend.BatchSizer("x", stream)
    adapter = backend.BatchAdapter(backend.Upper(), own)
    sizes = sized(sizer, adapter, lambda n: 1e-2 * n / 4000, 40)
    assert (sizes[0], sizer.max_bytes) == (70, 1000)
    sizes = sized(sizer, backend.BatchAdapter(backend.Upper(), own), lambda n: 1e-3, 40)
    assert sizes[-1] == 5000
    small = BatchConfig(default_batch_size=7, max_batch_size=8, max_batch_bytes=3)
    assert sized(sizer, backend.BatchAdapter(backend.Upper(), small), lambda n: 1e-3, 40)[0] == 7
    assert (sizer.size, sizer.max_bytes) == (8, 3)
    fixed = BatchConfig(enable_auto_optimization=False)
    fixed = backend.BatchAdapter(backend.Upper(), fixed)
    assert set(sized(sizer, fixed, lambda n: 1.0, 40)) == {100}
    assert sized(sizer, backend.BatchAdapter(backend.Upper()), lambda n: 1e-3, 2)[0] == 50
    assert sizer.max_bytes == 1000


def test_a_batch_plugin_may_decide_the_size_itself(backend) -> None:
    """It is told size, latency and throughput; what it says is kept within the bounds.

    The size is that of the batch as it was, the last one being shorter.
    """
    told = []

    class Decides(backend.BatchPlugin):
        wishes = iter([7, 0, -5, 10_000, 3, 3])

        def process_batch(self, records):
            skip = backend.PluginResult.skip()
            return backend.BatchResult.from_results(records, [skip] * len(records))

        def optimize_batch_size(self, current_size, latency, throughput):
            told.append((current_size, latency, throughput))
            return next(self.wishes)

    with manager_of(backend, default_batch_size=5, max_batch_size=20) as manager:
        manager.register_plugin("x", Decides)
        assert sizes_of(manager, "x", [b"a"] * 36) == [5, 7, 1, 1, 20, 2]
    assert [size for size, _, _ in told] == [5, 7, 1, 1, 20, 2]
    assert all(latency > 0 and throughput > 0 for _, latency, throughput in told)


@pytest.mark.parametrize("wish", [None, 2.5, "7", True])
def test_a_size_that_is_no_integer_is_an_error(backend, manager, wish) -> None:
    """The sentence says what was returned."""

    class Wrong(backend.BatchAdapter):
        def optimize_batch_size(self, current_size, latency, throughput):
            return wish

    manager.register_plugin("x", Wrong(backend.Upper()))
    stream = manager.process_stream("x", [b"a"] * 200)
    assert next(stream).processed_count == 100  # not lost
    with pytest.raises(PluginError, match=f"returned {type(wish).__name__}, not int"):
        next(stream)


def test_a_size_that_fails_takes_no_result_away(backend, manager) -> None:
    """The batch before it was processed, and is handed over first."""

    class Undecided(backend.BatchAdapter):
        def optimize_batch_size(self, current_size, latency, throughput):
            raise ValueError("no idea")

    manager.register_plugin("x", Undecided(backend.Upper()))
    stream = manager.process_stream("x", [b"a"] * 200)
    assert next(stream).success_count == 100
    with pytest.raises(ValueError, match="no idea"):
        next(stream)


def test_a_stream_ends_well_whose_plugin_went_at_its_end(backend, manager) -> None:
    """There is no next batch for which it would be needed."""

    def last(value):
        manager.unregister_plugin("x")
        return value

    manager.register_plugin("x", backend.map_plugin(last))
    (result,) = manager.process_stream("x", [b"a"])
    assert result.output.to_pylist() == [b"a"]


def test_a_stream_follows_a_replaced_plugin(backend, manager) -> None:
    """From the next batch on."""
    manager.register_plugin("x", backend.map_plugin(lambda value: b"old"))
    stream = manager.process_stream("x", (b"a" for _ in range(10_000)))
    assert set(next(stream).output.to_pylist()) == {b"old"}
    manager.replace_plugin("x", backend.map_plugin(lambda value: b"new"))
    assert set(next(stream).output.to_pylist()) == {b"new"}
    manager.unregister_plugin("x")
    with pytest.raises(UnknownPluginError):
        next(stream)


# ---- how a stream is cut


def cut(backend, records, size, max_bytes):
    """The values of each batch of a source."""
    take = backend.taker(records)
    return [batch.to_pylist() for batch in iter(lambda: take(size, max_bytes), EMPTY)]


class Empty:
    """Equal to a batch without records."""

    def __eq__(self, batch):
        return len(batch) == 0


EMPTY = Empty()


def in_one_go(values, size, max_bytes):
    """The same, as simply as it can be said."""
    batches = []
    for value in values:
        last = batches[-1] if batches else None
        if last and len(last) < size and sum(map(len, last)) + len(value) <= max_bytes:
            last.append(value)
        else:
            batches.append([value])
    return batches


SOURCES = {
    "list": lambda backend, values: values,
    "iterator": lambda backend, values: iter(values),
    "records": lambda backend, values: [backend.PluginRecord(value) for value in values],
    "record batch": lambda backend, values: backend.RecordBatch.from_values(values),
    "bytearrays": lambda backend, values: map(bytearray, values),
    "wide views": lambda backend, values: (
        memoryview(value * 8).cast("d")[: len(value)] for value in values
    ),
    "text": lambda backend, values: (value.decode() for value in values),
}


@pytest.mark.parametrize("source", SOURCES)
@given(
    values=st.lists(st.text("a\u00e9\u20ac", max_size=12).map(str.encode), max_size=200),
    size=st.integers(1, 250),
    max_bytes=st.integers(1, 100),
)
def test_a_batch_holds_no_more_bytes_than_allowed(backend, source, values, size, max_bytes) -> None:
    """As many records as fit, at least one, each once, from a source of any form."""
    expected = in_one_go(values, size, max_bytes)
    if source == "wide views":
        expected = in_one_go([value * 8 for value in values], size, max_bytes)
    assert cut(backend, SOURCES[source](backend, values), size, max_bytes) == expected


@given(
    values=st.lists(st.binary(max_size=3), max_size=600),
    plan=st.lists(st.tuples(st.integers(1, 300), st.none() | st.integers(1, 300)), min_size=1),
    as_batch=st.booleans(),
)
def test_limits_may_change_from_batch_to_batch(backend, values, plan, as_batch) -> None:
    """No record is lost or taken twice when they do."""
    take = backend.taker(backend.RecordBatch.from_values(values) if as_batch else iter(values))
    found = []
    for size, max_bytes in itertools.cycle(plan):
        part = take(size, max_bytes).to_pylist()
        if not part:
            break
        assert len(part) <= size
        assert max_bytes is None or len(part) == 1 or sum(map(len, part)) <= max_bytes
        found += part
    assert found == values


def test_a_limit_of_bytes_takes_one_record_ahead_and_no_more(backend) -> None:
    """Of a source without end."""
    taken = itertools.count()
    take = backend.taker(b"ab" for _ in taken)
    assert len(take(10, 6)) == 3
    assert next(taken) == 4
    assert len(take(2, 6)) == 2
    assert next(taken) == 6  # with the one that was counted above


@pytest.mark.parametrize("wrong", [None, 5, {"a": 1}, "\ud800"])
def test_a_wrong_record_is_refused_under_a_limit_too(backend, wrong) -> None:
    """With the same words as without one."""
    with pytest.raises((TypeError, ValueError)) as limited:
        backend.taker([b"a", wrong])(10, 100)
    with pytest.raises((TypeError, ValueError)) as unlimited:
        backend.taker([b"a", wrong])(10, None)
    assert str(limited.value) == str(unlimited.value)


def test_a_stream_obeys_the_limit_of_bytes(backend) -> None:
    """And sizes stay near what was run."""
    with manager_of(backend, max_batch_bytes=500, max_batch_size=100_000) as manager:
        manager.register_plugin("x", backend.Upper())
        values = [b"x" * (i % 20) for i in range(5000)] + [b"y" * 600] * 3
        for records in (values, backend.RecordBatch.from_values(values)):
            results = list(manager.process_stream("x", records))
            assert max(result.processed_count for result in results) <= 100
            assert all(
                result.output.nbytes <= 500 or result.processed_count == 1 for result in results
            )
            found = [value for result in results for value in result.output.to_pylist()]
            assert found == [value.upper() for value in values]


@given(
    values=st.lists(VALUES, max_size=300),
    plugin=PLUGINS,
    first=st.integers(1, 40),
    more=st.integers(0, 60),
    target=st.sampled_from([0.0, 1e-5, 0.05]),
    max_bytes=st.none() | st.integers(1, 200),
    as_batch=st.booleans(),
)
def test_what_comes_out_does_not_depend_on_the_batches(
    backend, values, plugin, first, more, target, max_bytes, as_batch
) -> None:
    """Put together, the results of a stream are that of one batch."""
    config = BatchConfig(
        default_batch_size=first,
        max_batch_size=first + more,
        target_latency=target,
        max_batch_bytes=max_bytes,
    )
    pool = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)
    configuration = PluginManagerConfig(
        memory_pool_config=pool,
        batch_config=config,
        # An open circuit does depend on what came before.
        failure_recovery=FailureRecoveryConfig(circuit_breaker_threshold=1),
    )
    batch = backend.RecordBatch.from_values(values)
    with backend.PluginManager(configuration) as manager:
        manager.register_plugin("x", plugin.build(backend))
        whole = manager.process_batch("x", batch)
        parts = list(manager.process_stream("x", batch if as_batch else iter(values)))
    joined = [value for part in parts for value in part.output.to_pylist()]
    assert joined == whole.output.to_pylist()
    assert [code for part in parts for code in part.status.tolist()] == whole.status.tolist()
    assert [str(error) for part in parts for _, error in part.errors] == [
        str(error) for _, error in whole.errors
    ]


# ---- plugins for batches


def test_an_adapter_makes_a_batch_plugin_of_any_plugin(backend, manager, witness) -> None:
    """Its life, its info and its outcomes are those of the plugin."""
    plugin = witness()
    adapter = backend.BatchAdapter(plugin, BatchConfig(target_latency=0))
    assert isinstance(adapter, backend.BatchPlugin)
    assert adapter.info() == plugin.info()
    assert adapter.health_check() is True
    assert adapter.optimize_batch_size(100, 1.0, 5000.0) == 80
    manager.register_plugin("x", adapter, {"a": 1})
    result = manager.process_batch("x", [b"a", b"raise"])
    assert result.output.to_pylist() == [b"seen a"]
    assert str(result.errors[0][1]) == "ValueError: as told"
    record = backend.PluginRecord(b"c")
    assert manager.process_record("x", record) == backend.PluginResult.success(b"seen c")
    manager.unregister_plugin("x")
    assert plugin.events == [("initialize", {"a": 1}), b"a", b"raise", b"c", "cleanup"]
    direct = backend.BatchAdapter("upper").process_batch([b"x"])
    assert direct.output.to_pylist() == [b"X"]
    assert direct.processing_time > 0


def test_adapters_and_batch_plugins_refuse_what_cannot_work(backend) -> None:
    """No plugin, no configuration, no `process_batch`."""
    for wrong in (None, backend.Upper, bytes.upper):
        with pytest.raises(TypeError, match="an adapter takes a plugin"):
            backend.BatchAdapter(wrong)
    with pytest.raises(TypeError, match="config must be a BatchConfig, not dict"):
        backend.BatchAdapter(backend.Upper(), {})
    with pytest.raises(PluginConfigurationError, match="does not define process_batch"):
        backend.BatchPlugin().process_batch(backend.RecordBatch.from_values([b"a"]))


def test_a_batch_plugin_that_fails_fails_all_its_records(backend, manager) -> None:
    """Each with what it raised, and the metrics say so."""

    class Fails(backend.BatchPlugin):
        def process_batch(self, records):
            raise OSError("service down")

    manager.register_plugin("x", Fails)
    result = manager.process_batch("x", [b"a", b"b"])
    assert [(index, str(error)) for index, error in result.errors] == [
        (0, "OSError: service down"),
        (1, "OSError: service down"),
    ]
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.failed, metrics.error_rate) == (2, 2, 1.0)
