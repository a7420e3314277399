"""The user's guide, row by row: each test is a row, its docstring the promise.

Missing here are rows that have suites of their own: 4.13 (reports), 4.14 (debug mode), 5.1 (the
demo) and 5.4 (the site); Arrow, of rows 3.0 and 4.5, is not there yet.
"""

import dataclasses
import itertools
import logging
import math
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from helpers import LIMIT, run_script, run_threads, wait_until

from dataflare import errors
from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.types import (
    API_VERSION,
    BufferSize,
    CircuitState,
    PluginInfo,
    PluginState,
    PluginType,
)

ROOT = Path(__file__).parents[2]
SMALL_POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


def configured(backend, **fields):
    """A manager with a small pool and these fields of the configuration."""
    return backend.PluginManager(PluginManagerConfig(memory_pool_config=SMALL_POOL, **fields))


@pytest.fixture
def exclaim(backend):
    """A plugin of a few lines."""

    class Exclaim(backend.DataFlarePlugin):
        def process(self, record):
            if record.value == b"bad":
                raise ValueError("bad record")
            return backend.PluginResult.success(bytes(record.value) + b"!")

    return Exclaim


# ---- 1. Plugins


def test_row_1_1_records(backend) -> None:
    """A record is any bytes-like value, not copied, with key, metadata and numbers; immutable."""
    value = bytearray(b"value")
    record = backend.PluginRecord(
        value, key=b"k", metadata={"a": 1}, timestamp=1, partition=2, offset=3
    )
    value[0:1] = b"V"
    assert bytes(record.value) == b"Value"
    assert (record.key, record.timestamp, record.partition, record.offset) == (b"k", 1, 2, 3)
    with pytest.raises(TypeError):
        record.value[0] = 0
    with pytest.raises(TypeError):
        record.metadata["a"] = 2
    with pytest.raises(AttributeError):
        record.timestamp = 5


def test_row_1_2_results(backend) -> None:
    """success, filtered, skip and error say what becomes of a record."""
    make = backend.PluginResult
    success, error = make.success(b"new", {"a": 1}), make.error("why", 7)
    assert (success.data, dict(success.metadata)) == (b"new", {"a": 1})
    assert (error.message, error.code) == ("why", 7)
    kinds = ("success", "filtered", "skip", "error")
    results = (success, make.filtered(), make.skip(), error)
    for name, result in zip(kinds, results, strict=True):
        assert [kind for kind in kinds if getattr(result, f"is_{kind}")] == [name]


def test_row_1_3_info() -> None:
    """PluginInfo says who a plugin is, and cannot be changed."""
    info = PluginInfo("name", "1.2.3", PluginType.FILTER, "what it does", "who wrote it")
    assert info.api_version == API_VERSION
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.name = "other"


def test_row_1_4_types() -> None:
    """There are seven types of plugins."""
    assert [kind.name for kind in PluginType] == [
        "SOURCE", "DESTINATION", "PROCESSOR", "TRANSFORMER", "FILTER", "AGGREGATOR", "CUSTOM",
    ]  # fmt: skip


def test_row_1_5_states(backend, manager) -> None:
    """The manager leads a plugin through its states, and keeps them true."""
    states = []

    class Watches(backend.DataFlarePlugin):
        broken = False

        def initialize(self, config):
            states.append(self.get_state())

        def process(self, record):
            states.append(self.get_state())
            if self.broken:
                raise ValueError("broken")
            return backend.PluginResult.skip()

    plugin = Watches()
    states.append(plugin.get_state())
    manager.register_plugin("x", plugin)
    states.append(plugin.get_state())
    manager.process_batch("x", [b"a"])
    states.append(plugin.get_state())
    plugin.broken = True
    manager.process_batch("x", [b"a"] * 100)
    assert set(states[6:]) == {PluginState.RUNNING}
    states[6:] = [plugin.get_state()]
    manager.unregister_plugin("x")
    states.append(plugin.get_state())
    assert [state.name for state in states] == [
        "UNINITIALIZED", "INITIALIZING", "READY", "RUNNING", "READY", "RUNNING", "ERROR", "STOPPED",
    ]  # fmt: skip


def test_row_1_6_errors(backend, manager, exclaim) -> None:
    """Every error is a PluginError; what the plugin raised itself is its cause."""
    names = [
        "Initialization", "Configuration", "Processing", "Serialization", "Timeout", "Memory",
    ]  # fmt: skip
    kinds = [getattr(errors, f"Plugin{name}Error") for name in names]
    kinds += [errors.UnknownPluginError, errors.DuplicatePluginError]
    kinds += [errors.IncompatiblePluginError, errors.CircuitOpenError]
    assert all(issubclass(kind, errors.PluginError) for kind in kinds)
    manager.register_plugin("x", exclaim())
    with pytest.raises(errors.PluginProcessingError) as caught:
        manager.process_record("x", backend.PluginRecord(b"bad"))
    assert type(caught.value.__cause__) is ValueError


def test_row_1_7_plugins_in_python(backend, manager, exclaim) -> None:
    """A class with `process` is a plugin; everything else has a default."""
    plugin = exclaim()
    manager.register_plugin("x", plugin, {"any": "thing"})
    assert (plugin.info().name, plugin.health_check()) == ("Exclaim", True)
    assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"a!"]


def test_row_1_8_native_plugins(backend, manager) -> None:
    """NativePlugin is the base of plugins without the GIL; pure Python says that it has none."""
    if backend.name == "cython":
        assert isinstance(backend.Upper(), backend.NativePlugin)
        assert backend.Upper().releases_gil
        manager.register_plugin("x", backend.Upper())
        assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"A"]
    else:
        with pytest.raises(errors.PluginConfigurationError, match="needs the compiled backend"):
            backend.NativePlugin()


def test_row_1_9_batch_plugins(backend, manager) -> None:
    """A BatchPlugin sees a whole batch at a time."""

    class Counts(backend.BatchPlugin):
        def process_batch(self, records):
            result = backend.PluginResult.success(b"one of %d" % len(records))
            return backend.BatchResult.from_results(records, [result] * len(records))

    manager.register_plugin("x", Counts())
    assert manager.process_batch("x", [b"a", b"b"]).output.to_pylist() == [b"one of 2"] * 2
    config = BatchConfig()
    assert Counts(config).optimize_batch_size(100, 2 * config.target_latency, 1e9) == 80


def test_row_1_10_adapter(backend, exclaim) -> None:
    """BatchAdapter makes a batch plugin of any plugin."""
    adapter = backend.BatchAdapter(exclaim(), BatchConfig())
    result = adapter.process_batch(backend.RecordBatch.from_values([b"a", b"bad"]))
    assert (result.output.to_pylist(), result.error_count) == ([b"a!"], 1)


def test_row_1_11_functions(backend, manager) -> None:
    """A plain function is a plugin, by one line."""

    @backend.map_plugin
    def double(value: bytes) -> bytes:
        return value * 2

    @backend.filter_plugin
    def is_long(value: bytes) -> bool:
        return len(value) > 2

    manager.register_plugin("x", backend.Chain(double, is_long))
    assert manager.process_batch("x", [b"a", b"ab"]).output.to_pylist() == [b"abab"]


def test_row_1_12_plugins_that_come_with_it(backend, manager) -> None:
    """Filters and transformations for lines, and chains of them."""
    values = [b'{"name": "ERROR a"}', b"ok"]
    for i, (plugin, expected) in enumerate(
        [
            (backend.Contains("ERROR"), values[:1]),
            (backend.StartsWith("o"), [b"ok"]),
            (backend.Upper(), [b'{"NAME": "ERROR A"}', b"OK"]),
            (backend.Lower(), [b'{"name": "error a"}', b"ok"]),
            (backend.Replace("ok", "fine"), [values[0], b"fine"]),
            (backend.Regex("^o(.)$", 1), [b"k"]),
            (backend.JsonField("name", "filter"), [b"ERROR a"]),
            (backend.Chain(backend.JsonField("name", "filter"), backend.Lower()), [b"error a"]),
        ]
    ):
        manager.register_plugin(f"{i}", plugin)
        assert manager.process_batch(f"{i}", values).output.to_pylist() == expected


def test_row_1_13_backend(backend) -> None:
    """`dataflare.backend` names what runs."""
    assert run_script(backend.name, "import dataflare; print(dataflare.backend)").split() == [
        backend.name
    ]


# ---- 2. Memory pool


def test_row_2_1_size_classes(backend) -> None:
    """A request takes the smallest class that holds it."""
    assert [(size.name, size.value) for size in BufferSize] == [
        ("TINY", 256), ("SMALL", 4096), ("MEDIUM", 65536), ("LARGE", 1 << 20), ("HUGE", 4 << 20),
    ]  # fmt: skip
    with backend.MemoryPool(SMALL_POOL) as pool:
        held = [pool.get_buffer(256), pool.get_buffer(257)]
        classes = pool.get_stats().classes
        assert [classes[size].in_use for size in BufferSize] == [1, 1, 0, 0, 0]
        del held


def test_row_2_2_configuration(backend) -> None:
    """As many slabs as configured; the defaults are those of the guide."""
    config = MemoryPoolConfig()
    assert (config.max_tiny_buffers, config.max_small_buffers, config.max_medium_buffers) == (
        2000, 1000, 200,
    )  # fmt: skip
    assert (config.max_large_buffers, config.max_huge_buffers) == (50, 5)
    assert (config.cleanup_interval, config.max_idle_time, config.enable_metrics) == (60, 300, True)
    with backend.MemoryPool(MemoryPoolConfig(max_tiny_buffers=3)) as pool:
        assert pool.get_stats().classes[BufferSize.TINY].capacity == 3


def test_row_2_3_warmup(backend) -> None:
    """After a warmup all slabs are there and free."""
    with backend.MemoryPool(SMALL_POOL) as pool:
        pool.warmup()
        stats = pool.get_stats()
        assert (stats.in_use, stats.cached) == (0, sum(c.capacity for c in stats.classes.values()))


def test_row_2_4_buffers(backend) -> None:
    """A buffer has the length asked for, is writable, and of any size."""
    with backend.MemoryPool(SMALL_POOL) as pool:
        for size in (1, 300, 5_000_000):
            with pool.get_buffer(size) as buffer:
                assert len(buffer) == size
                memoryview(buffer)[:1] = b"x"
        assert (pool.get_stats().misses, pool.get_stats().in_use) == (1, 0)


def test_row_2_5_returning(backend) -> None:
    """Twice, or with a view alive: a clear error. Dropped: it goes back by itself."""
    with backend.MemoryPool(SMALL_POOL) as pool:
        buffer = pool.get_buffer(10)
        view = memoryview(buffer)
        with pytest.raises(errors.PluginMemoryError):
            pool.return_buffer(buffer)
        view.release()
        pool.return_buffer(buffer)
        with pytest.raises(errors.PluginMemoryError):
            pool.return_buffer(buffer)
        pool.get_buffer(10)
        assert pool.get_stats().in_use == 0


def test_row_2_6_statistics(backend) -> None:
    """Exact counts, the hit rate, and how much of what was handed out was asked for."""
    with backend.MemoryPool(SMALL_POOL) as pool:
        for size in (128, 256, 8 << 20):
            pool.get_buffer(size)
        stats = pool.get_stats()
        assert (stats.allocations, stats.returns, stats.hits, stats.misses) == (3, 3, 2, 1)
        assert stats.cache_hit_rate == 2 / 3
        assert stats.memory_efficiency == (384 + (8 << 20)) / (512 + (8 << 20))


def test_row_2_7_idle_memory(backend) -> None:
    """Slabs that are idle long enough give their memory back, also by themselves."""
    config = dataclasses.replace(SMALL_POOL, max_idle_time=0, cleanup_interval=0.01)
    with backend.MemoryPool(config) as pool:
        buffer = pool.get_buffer(1 << 20)
        memoryview(buffer)[:] = b"x" * (1 << 20)
        del buffer

        def is_zero():
            with pool.get_buffer(1 << 20) as again:
                return memoryview(again)[5] == 0

        wait_until(is_zero)


def test_row_2_8_without_metrics(backend) -> None:
    """A pool that does not count reports nothing."""
    with backend.MemoryPool(MemoryPoolConfig(enable_metrics=False)) as pool:
        pool.get_buffer(10)
        assert pool.get_stats() is None


# ---- 3. Batches


def test_row_3_0_columnar_batches(backend) -> None:
    """Values, records or lines become a batch: a sequence of records, and columns."""
    batch = backend.RecordBatch.from_values([b"a", b"b"], [b"k", None])
    assert [(bytes(r.value), r.key) for r in batch] == [(b"a", b"k"), (b"b", None)]
    for same in (
        backend.RecordBatch.from_records(list(batch)), backend.RecordBatch.from_lines(b"a\nb\n"),
    ):  # fmt: skip
        assert same.to_pylist() == [b"a", b"b"]


def test_row_3_1_every_field_is_obeyed(backend, exclaim) -> None:
    """Size, maximum, target, minimum, automatic size, sharing and its width."""
    default = BatchConfig()
    assert (default.default_batch_size, default.max_batch_size) == (100, 1000)
    assert (default.target_latency, default.min_throughput, default.parallelism) == (0.05, 2000, 4)
    assert default.enable_auto_optimization
    assert default.enable_parallel
    fixed = BatchConfig(default_batch_size=7, enable_auto_optimization=False, enable_parallel=False)
    with configured(backend, batch_config=fixed) as manager:
        manager.register_plugin("x", exclaim)
        sizes = [len(result) for result in manager.process_stream("x", [b"a"] * 20)]
        assert sizes == [7, 7, 6]
        assert manager.get_system_status().max_workers == 0
    assert BatchConfig(target_latency=timedelta(seconds=2)).target_latency == 2.0


def test_row_3_2_results_of_batches(backend, manager, exclaim) -> None:
    """One record's failure loses no other; its index is its position in the input."""
    manager.register_plugin("x", exclaim())
    result = manager.process_batch("x", [b"a", b"bad", b"c"])
    ((index, error),) = result.errors
    assert (index, str(error)) == (1, "ValueError: bad record")
    assert [outcome.data for outcome in result.results] == [b"a!", None, b"c!"]
    assert (result.processed_count, result.success_count, result.error_count) == (3, 2, 1)
    assert result.throughput_per_second == 3 / result.processing_time


def test_row_3_3_parallel_batches(backend) -> None:
    """Persistent threads share a batch, and its results are in the order of the input."""
    meeting = threading.Barrier(4)
    idents = set()

    class Meets(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            if int(record.value) % 2500 == 0:
                idents.add(threading.get_ident())
                meeting.wait(LIMIT)
            return backend.PluginResult.success(record.value)

    values = [b"%d" % i for i in range(10_000)]
    with configured(backend) as manager:
        manager.register_plugin("x", Meets)
        for _ in range(3):
            assert manager.process_batch("x", values).output.to_pylist() == values
        assert len(idents) == 4


def test_row_3_4_automatic_batch_size(backend, manager) -> None:
    """What a plugin's `optimize_batch_size` returns is the size of the next batch of a stream."""
    seen = []

    class Grows(backend.BatchPlugin):
        def process_batch(self, records):
            skip = backend.PluginResult.skip()
            return backend.BatchResult.from_results(records, [skip] * len(records))

        def optimize_batch_size(self, current_size, latency, throughput):
            seen.append((latency > 0, throughput > 0))
            return current_size * 2

    manager.register_plugin("x", Grows())
    sizes = [len(result) for result in manager.process_stream("x", [b"a"] * 1500)]
    assert sizes == [100, 200, 400, 800]
    assert seen == [(True, True)] * 4


# ---- 4. Manager


def test_row_4_1_configuration(backend) -> None:
    """The parts of a manager's configuration have the defaults of the guide."""
    config = PluginManagerConfig()
    assert (config.monitoring_interval, config.health_check_interval) == (30, 60)
    assert (config.max_plugin_instances, config.enable_auto_optimization) == (10, True)
    with configured(backend, max_plugin_instances=2) as manager:
        manager.register_plugin("x", backend.DataFlarePlugin)
        assert manager.get_system_status().plugins["x"].instances == 2


def test_row_4_2_manager(backend, exclaim) -> None:
    """A context manager; its end stops its threads and cleans its plugins up."""
    before = set(threading.enumerate())
    with configured(backend) as manager:
        plugin = exclaim()
        manager.register_plugin("x", plugin)
    assert plugin.get_state() is PluginState.STOPPED
    wait_until(lambda: {t for t in threading.enumerate() if "idle" not in t.name} <= before)


def test_row_4_3_registry(backend, manager, exclaim) -> None:
    """Register, replace, disable, enable, list, unregister; one name is one plugin."""
    manager.register_plugin("x", exclaim)
    manager.register_plugin("y", backend.Upper())
    with pytest.raises(errors.DuplicatePluginError):
        manager.register_plugin("x", exclaim)
    assert manager.list_plugins() == ["x", "y"]
    manager.replace_plugin("x", backend.Lower())
    assert manager.process_batch("x", [b"A"]).output.to_pylist() == [b"a"]
    manager.disable_plugin("x")
    with pytest.raises(errors.PluginDisabledError):
        manager.process_batch("x", [b"A"])
    manager.enable_plugin("x")
    manager.unregister_plugin("x")
    assert manager.list_plugins() == ["y"]


def test_row_4_4_single_records(backend, manager, exclaim) -> None:
    """process_record gives a result, or raises."""
    manager.register_plugin("x", exclaim())
    assert manager.process_record("x", backend.PluginRecord(b"a")).data == b"a!"
    with pytest.raises(errors.PluginError):
        manager.process_record("x", backend.PluginRecord(b"bad"))


def test_row_4_5_batches(backend, manager) -> None:
    """process_batch takes records, bytes, or a batch."""
    manager.register_plugin("x", backend.Upper())
    for records in (
        [b"a"], [backend.PluginRecord(b"a")], backend.RecordBatch.from_values([b"a"]),
    ):  # fmt: skip
        assert manager.process_batch("x", records).output.to_pylist() == [b"A"]


def test_row_4_6_streams(backend, manager) -> None:
    """process_stream takes any iterable, one without end too, and no more of it than it needs."""
    taken = itertools.count()
    manager.register_plugin("x", backend.Upper())
    stream = manager.process_stream("x", (b"a%d" % i for i in taken))
    assert next(stream).output.to_pylist() == [b"A%d" % i for i in range(100)]
    assert next(taken) <= 101


def test_row_4_7_metrics(backend, manager, exclaim) -> None:
    """What a plugin did, in counts, rates and percentiles; None for an unknown one."""
    manager.register_plugin("x", exclaim())
    manager.process_batch("x", [b"a"] * 9 + [b"bad"])
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.error_rate) == (10, 0.1)
    assert (metrics.bytes_in, metrics.bytes_out) == (12, 18)
    assert metrics.average_throughput == 10 / metrics.processing_time
    assert 0 < metrics.p50_latency <= metrics.p95_latency <= metrics.p99_latency
    assert metrics.p99_latency <= metrics.max_latency
    assert manager.get_metrics("y") is None
    assert manager.get_all_metrics() == {"x": manager.get_metrics("x")}


def test_row_4_8_pool_statistics(backend, manager) -> None:
    """The manager's pool serves its batches, and counts."""
    manager.register_plugin("x", backend.Upper())
    result = manager.process_batch("x", [b"a"] * 100)
    assert manager.get_memory_pool_stats().in_use > 0
    del result
    assert manager.get_memory_pool_stats().in_use == 0


def test_row_4_9_health(backend, manager) -> None:
    """A health check asks every plugin and the pool, and has a verdict for each."""

    class Sick(backend.DataFlarePlugin):
        def health_check(self):
            return False

    manager.register_plugin("fine", backend.Upper())
    manager.health_check().raise_for_status()
    manager.register_plugin("sick", Sick())
    report = manager.health_check()
    assert [report.plugins[name].verdict.value for name in ("fine", "sick")] == [
        "healthy", "unhealthy",
    ]  # fmt: skip
    with pytest.raises(errors.UnhealthyError, match="plugin sick"):
        report.raise_for_status()


def test_row_4_10_status(backend, manager) -> None:
    """The state of everything: plugins, workers, memory, circuits, totals."""
    manager.register_plugin("x", backend.Upper())
    manager.process_batch("x", [b"a"])
    status = manager.get_system_status()
    assert (status.state, status.totals.total_processed, status.max_workers) == ("running", 1, 3)
    assert status.uptime > 0
    assert status.memory == manager.get_memory_pool_stats()
    assert status.plugins["x"].circuit is CircuitState.CLOSED


def test_row_4_11_monitoring(backend) -> None:
    """Samples are kept and the health is checked at their intervals."""
    fields = {"monitoring_interval": 0.01, "health_check_interval": 0.01, "max_samples": 5}
    with configured(backend, **fields) as manager:
        manager.register_plugin("x", backend.Upper())
        wait_until(lambda: len(manager.samples) == 5 and manager.last_health)
        assert manager.samples[0].taken_at <= manager.samples[4].taken_at


def test_row_4_12_recovery(backend) -> None:
    """Retry, circuit breaker and fallback, all real."""
    default = FailureRecoveryConfig()
    assert (default.max_retries, default.retry_interval, default.enable_fallback) == (3, 0.1, True)
    assert (default.circuit_breaker_threshold, default.circuit_breaker_recovery_time) == (0.5, 30)
    calls = []

    class Down(backend.DataFlarePlugin):
        def process(self, record):
            calls.append(1)
            raise errors.PluginError("down", retryable=True)

    recovery = FailureRecoveryConfig(retry_interval=0)
    with configured(backend, failure_recovery=recovery) as manager:
        manager.register_plugin("x", Down(), fallback=backend.Upper())
        for expected in (20 * 4, 20 * 4):
            output = manager.process_batch("x", [b"a"] * 20).output
            assert output.to_pylist() == [b"A"] * 20
            assert len(calls) == expected
        metrics = manager.get_metrics("x")
        assert (metrics.retries, metrics.fallbacks, metrics.failed) == (60, 40, 0)
        assert manager.get_system_status().plugins["x"].circuit is CircuitState.OPEN


# ---- 5. What the guide ships beside the library


def test_row_5_2_benchmarks() -> None:
    """`pytest benchmarks/` measures, beside peers."""
    assert list((ROOT / "benchmarks").glob("test_*.py"))


def test_row_5_3_tests() -> None:
    """`pytest` tests; a map of the tests says where."""
    text = (ROOT / "tests" / "README.md").read_text()
    for module in (ROOT / "tests").rglob("test_*.py"):
        assert module.name in text or f"{module.parent.name}/`" in text, module


def test_row_5_5_logging() -> None:
    """The logger `dataflare` is silent unless somebody listens."""
    (handler,) = logging.getLogger("dataflare").handlers[:1]
    assert type(handler) is logging.NullHandler


def test_row_5_6_finding_the_cause(backend) -> None:
    """Memory too high, throughput too low, errors too many: the figures lead to the reason."""

    @backend.map_plugin
    def slow(value: bytes) -> bytes:
        threading.Event().wait(0.01)
        return value

    @backend.map_plugin
    def picky(value: bytes) -> bytes:
        return {b"a": value}[value]

    recovery = FailureRecoveryConfig(circuit_breaker_threshold=1)
    never = {"monitoring_interval": math.inf, "health_check_interval": math.inf}
    with configured(backend, failure_recovery=recovery, **never) as manager:
        manager.register_plugin("slow", backend.Chain(backend.Upper(), slow, backend.Lower()))
        manager.register_plugin("picky", picky)
        held = manager.process_batch("slow", [b"a", b"b"])
        run_threads(lambda: manager.process_batch("picky", [b"a", b"b", b"c"]))
        assert manager.get_memory_pool_stats().in_use > 0
        del held
        assert manager.get_memory_pool_stats().in_use == 0
        stages = manager.get_metrics("slow").stages
        assert max(stages, key=lambda stage: stage.exclusive_time).name == "slow"
        assert manager.take_sample().plugins["picky"].errors == {"KeyError": 2}
