"""Records that come one by one, and plugins that take them batch by batch."""

import itertools

import numpy as np
import pytest

from dataflare.config import BatchConfig, PluginManagerConfig
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


def test_slow_batches_shrink_by_a_fifth(backend) -> None:
    """With a latency that every batch exceeds: down to ten, as the guide has it."""
    with manager_of(backend, target_latency=0) as manager:
        manager.register_plugin("x", backend.Upper())
        assert sizes_of(manager, "x", [b"a"] * 478) == [
            100, 80, 64, 51, 40, 32, 25, 20, 16, 12, 10, 10, 10, 8,
        ]  # fmt: skip


def test_thin_batches_grow_by_a_fifth(backend) -> None:
    """With a throughput that no batch reaches: up to the maximum."""
    infinite = float("inf")
    config = {"max_batch_size": 200, "target_latency": infinite, "min_throughput": infinite}
    with manager_of(backend, **config) as manager:
        manager.register_plugin("x", backend.Upper())
        assert sizes_of(manager, "x", [b"a"] * 936) == [100, 120, 144, 172, 200, 200]


def test_a_batch_plugin_may_decide_the_size_itself(backend) -> None:
    """It is told size, latency and throughput; what it says is kept within the bounds."""
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
    assert [size for size, _, _ in told] == [5, 7, 1, 1, 20, 3]
    assert all(latency > 0 and throughput > 0 for _, latency, throughput in told)


@pytest.mark.parametrize("wish", [None, 2.5, "7", True])
def test_a_size_that_is_no_integer_is_an_error(backend, manager, wish) -> None:
    """The sentence says what was returned."""

    class Wrong(backend.BatchAdapter):
        def optimize_batch_size(self, current_size, latency, throughput):
            return wish

    manager.register_plugin("x", Wrong(backend.Upper()))
    with pytest.raises(PluginError, match=f"returned {type(wish).__name__}, not int"):
        list(manager.process_stream("x", [b"a"] * 200))


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
    direct = backend.BatchAdapter(backend.Upper()).process_batch([b"x"])
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
