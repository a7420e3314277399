"""What DataFlare promises, a test for each row of the guide: the table of contents of the product.

Each test is short and shows that the row is true; the details are tested elsewhere.
"""

import json
import logging
import math
import re
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import dataflare
from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import (
    CircuitOpenError,
    DuplicatePluginError,
    IncompatiblePluginError,
    PluginConfigurationError,
    PluginDisabledError,
    PluginError,
    PluginInitializationError,
    PluginMemoryError,
    PluginProcessingError,
    PluginSerializationError,
    PluginTimeoutError,
    UnhealthyError,
    UnknownPluginError,
)
from dataflare.types import BufferSize, CircuitState, PluginInfo, PluginState, PluginType

ARROW = pa.array([b"a", b"b"])
ROOT = Path(__file__).parents[2]
LIMIT = 60  # seconds until a thread that hangs fails its test


@pytest.fixture
def upper(backend):
    """A manager with one plugin."""
    with backend.PluginManager() as manager:
        manager.register_plugin("upper", backend.Upper())
        yield manager


def fail_on_b(value: bytes) -> bytes:
    if b"b" in value:
        raise ValueError("a b")
    return value


# 1. Plugins


def test_row_1_1_record(backend) -> None:
    """A record has bytes-like value and key that are not copied, and cannot be changed."""
    value = bytearray(b"value")
    record = backend.PluginRecord(value, key=b"key", metadata={"a": 1}, timestamp=1, partition=2)
    value[0:1] = b"V"
    assert bytes(record.value) == b"Value"
    assert (record.key, record.metadata["a"], record.timestamp, record.partition) == (
        b"key",
        1,
        1,
        2,
    )
    with pytest.raises((AttributeError, TypeError)):
        record.value = b"other"
    with pytest.raises(TypeError):
        record.metadata["a"] = 2


def test_row_1_2_result(backend) -> None:
    """An outcome is success, filtered, skip or error, and says which."""
    make = backend.PluginResult
    success, error = make.success(b"x", {"a": 1}), make.error("no", 7)
    assert (success.is_success, success.data, success.metadata) == (True, b"x", {"a": 1})
    assert make.filtered().is_filtered
    assert make.skip().is_skip
    assert (error.is_error, error.message, error.code) == (True, "no", 7)


def test_row_1_3_info() -> None:
    """What a plugin says of itself is frozen."""
    info = PluginInfo("name", "1.0", PluginType.FILTER, "what", "who", 1)
    with pytest.raises(AttributeError):
        info.name = "other"  # type: ignore[misc]


def test_row_1_4_type() -> None:
    """There are seven types of plugins."""
    names = ["SOURCE", "DESTINATION", "PROCESSOR", "TRANSFORMER", "FILTER", "AGGREGATOR", "CUSTOM"]
    assert [member.name for member in PluginType] == names


def test_row_1_5_state(backend) -> None:
    """The manager keeps a plugin's state true as it moves through its life."""
    seen = []

    class Watched(backend.DataFlarePlugin):
        def initialize(self, config):
            seen.append(self.get_state())

        def process(self, record):
            seen.append(self.get_state())
            return backend.PluginResult.skip()

    plugin = Watched()
    seen.append(plugin.get_state())
    with backend.PluginManager() as manager:
        manager.register_plugin("x", plugin)
        seen.append(plugin.get_state())
        manager.process_batch("x", [b"a"])
    seen.append(plugin.get_state())
    state = PluginState
    assert seen == [
        state.UNINITIALIZED, state.INITIALIZING, state.READY, state.RUNNING, state.STOPPED,
    ]  # fmt: skip


def test_row_1_6_errors(backend, upper) -> None:
    """Every error is a PluginError, and what the plugin raised stays as its cause."""
    kinds = [
        PluginInitializationError, PluginConfigurationError, PluginProcessingError,
        PluginSerializationError, PluginTimeoutError, PluginMemoryError, UnknownPluginError,
        DuplicatePluginError, IncompatiblePluginError, CircuitOpenError,
    ]  # fmt: skip
    assert all(issubclass(kind, PluginError) for kind in kinds)
    upper.register_plugin("fails", backend.map_plugin(fail_on_b))
    with pytest.raises(PluginProcessingError, match="a b") as caught:
        upper.process_record("fails", backend.PluginRecord(b"b"))
    assert type(caught.value.__cause__) is ValueError


def test_row_1_7_plugin(backend) -> None:
    """Only `process` is required of a plugin in Python."""

    class Least(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.success(record.value + b"!")

    with backend.PluginManager() as manager:
        manager.register_plugin("least", Least)
        assert manager.process_record("least", backend.PluginRecord(b"a")).data == b"a!"
        assert manager.health_check().is_healthy


def test_row_1_8_native_plugin() -> None:
    """A base class to cimport, with hooks for a record and for a batch; pure mode refuses it."""
    page = (Path(dataflare.__file__).parent / "__init__.pxd").read_text()
    assert "c_process(self, const Record *record, Emitter *out)" in page
    assert "c_process_batch" in page
    assert dataflare.plugins.Upper.__mro__[1] is dataflare.NativePlugin


def test_row_1_9_batch_plugin(backend, upper) -> None:
    """A plugin may take whole batches, and decide on the size of the next."""

    class Whole(backend.BatchPlugin):
        def process_batch(self, records):
            make = backend.PluginResult.success
            size = b"%d" % len(records)
            return backend.BatchResult.from_results(records, [make(size) for _ in records])

        def optimize_batch_size(self, current_size, latency, throughput):
            return 2

    upper.register_plugin("whole", Whole)
    values = [result.output.to_pylist() for result in upper.process_stream("whole", [b""] * 104)]
    assert values == [[b"100"] * 100, [b"2"] * 2, [b"2"] * 2]


def test_row_1_10_adapter(backend) -> None:
    """Any plugin for records is one for batches."""
    adapter = backend.BatchAdapter(backend.Upper(), BatchConfig())
    assert adapter.process_batch([b"a", b"b"]).output.to_pylist() == [b"A", b"B"]


def test_row_1_11_decorators(backend, upper) -> None:
    """A plain function is a plugin by one line."""
    upper.register_plugin("map", backend.map_plugin(lambda value: value * 2))
    upper.register_plugin("filter", backend.filter_plugin(lambda value: value != b"b"))
    assert upper.process_batch("map", [b"a"]).output.to_pylist() == [b"aa"]
    assert upper.process_batch("filter", [b"a", b"b"]).output.to_pylist() == [b"a"]


@pytest.mark.parametrize(
    ("make", "given", "wanted"),
    [
        (lambda b: b.Contains("RR"), [b"ERROR", b"ok"], [b"ERROR"]),
        (lambda b: b.StartsWith("E"), [b"ERROR", b"ok"], [b"ERROR"]),
        (lambda b: b.Upper(), [b"ok"], [b"OK"]),
        (lambda b: b.Lower(), [b"OK"], [b"ok"]),
        (lambda b: b.Replace("o", "00"), [b"ok"], [b"00k"]),
        (lambda b: b.Regex(r"id=(\d+)", group=1), [b"id=42;"], [b"42"]),
        (lambda b: b.JsonField("a"), [b'{"a": "x"}'], [b"x"]),
        (lambda b: b.Chain(b.Contains("o"), b.Upper()), [b"ok", b"no", b"x"], [b"OK", b"NO"]),
    ],
)
def test_row_1_12_plugins_of_the_library(backend, make, given, wanted) -> None:
    """Plugins come with the library."""
    with backend.PluginManager() as manager:
        manager.register_plugin("x", make(backend))
        assert manager.process_batch("x", given).output.to_pylist() == wanted


def test_row_1_12_on_the_command_line(tmp_path) -> None:
    """They are there by name."""
    (tmp_path / "in").write_bytes(b"an ERROR\nfine\n")
    command = [sys.executable, "-m", "dataflare.cli", "run", "-p", "contains:ERROR", "-p", "upper"]
    done = subprocess.run([*command, "in"], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout == b"AN ERROR\n"


def test_row_1_13_backend() -> None:
    """The library says what runs."""
    assert dataflare.backend == "cython"


# 2. Memory pool


def test_row_2_1_classes(backend) -> None:
    """A request takes the smallest class that holds it."""
    sizes = {1: "TINY", 256: "TINY", 257: "SMALL", 65536: "MEDIUM", 65537: "LARGE", 4 << 20: "HUGE"}
    with backend.MemoryPool() as pool:
        for size, name in sizes.items():
            assert pool.get_buffer(size).size_class is BufferSize[name]


def test_row_2_2_configuration(backend) -> None:
    """Slabs are preallocated for each class, as many as configured."""
    with backend.MemoryPool(MemoryPoolConfig(max_tiny_buffers=3, max_idle_time=7)) as pool:
        assert pool.get_stats().classes[BufferSize.TINY].capacity == 3


def test_row_2_3_warmup(backend) -> None:
    """A pool can be made resident before its first use."""
    small = MemoryPoolConfig(max_large_buffers=1, max_huge_buffers=0)
    with backend.MemoryPool(small) as pool:
        pool.warmup()
        assert pool.trim(0) > 0  # there was something to give back


def test_row_2_4_buffer(backend) -> None:
    """A buffer has the size asked for, and is memory for everything that writes."""
    with backend.MemoryPool() as pool, pool.get_buffer(5) as buffer:
        assert len(buffer) == 5
        memoryview(buffer)[:] = b"hello"
        assert np.frombuffer(buffer, np.uint8).tobytes() == b"hello"
        large = pool.get_buffer((4 << 20) + 1)
        assert (len(large), large.size_class) == ((4 << 20) + 1, None)
        assert pool.get_stats().misses == 1


def test_row_2_5_return(backend) -> None:
    """A wrong return is a clear error; a buffer that is dropped goes back by itself."""
    with backend.MemoryPool() as pool, backend.MemoryPool() as other:
        buffer = pool.get_buffer(1)
        with pytest.raises(PluginMemoryError, match="another memory pool"):
            other.return_buffer(buffer)
        view = memoryview(buffer)
        with pytest.raises(PluginMemoryError, match="1 view"):
            pool.return_buffer(buffer)
        view.release()
        pool.return_buffer(buffer)
        with pytest.raises(PluginMemoryError, match="was returned"):
            pool.return_buffer(buffer)
        pool.get_buffer(1)
        assert pool.get_stats().in_use == 0


def test_row_2_6_statistics(backend) -> None:
    """Counts are exact."""
    with backend.MemoryPool(MemoryPoolConfig(max_tiny_buffers=1)) as pool:
        held = [pool.get_buffer(64), pool.get_buffer(192)]
        pool.return_buffer(held.pop())
        stats = pool.get_stats()
        assert (stats.allocations, stats.hits, stats.misses, stats.returns) == (2, 1, 1, 1)
        assert (stats.in_use, stats.cached > 0, stats.peak_in_use) == (1, True, 2)
        assert stats.cache_hit_rate == 0.5
        assert stats.memory_efficiency == 256 / (256 + 192)


def test_row_2_7_idle_memory(backend, caplog) -> None:
    """Idle slabs give their pages back by themselves."""
    caplog.set_level(logging.DEBUG, "dataflare")
    config = MemoryPoolConfig(max_idle_time=0, cleanup_interval=0.01)
    with backend.MemoryPool(config) as pool:
        memoryview(pool.get_buffer(1 << 20))[:] = bytes(1 << 20)
        until = time.monotonic() + LIMIT
        while "bytes of idle pool memory back" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_row_2_8_without_metrics(backend) -> None:
    """It can do without counting, and reports nothing then."""
    with backend.MemoryPool(MemoryPoolConfig(enable_metrics=False)) as pool:
        pool.get_buffer(1)
        assert pool.get_stats() is None


# 3. Batches


def test_row_3_0_record_batch(backend) -> None:
    """A batch is made of values, records, lines or Arrow data, and gives its values as bytes."""
    make = backend.RecordBatch
    record = backend.PluginRecord(b"a", key=b"k")
    batches = [
        make.from_values([b"a", "b"]), make.from_lines(b"a\nb\n"),
        make.from_records([record, backend.PluginRecord(b"b")]), make.from_arrow(ARROW),
    ]  # fmt: skip
    assert all(batch.to_pylist() == [b"a", b"b"] for batch in batches)
    assert batches[2].keys == [b"k", None]


def test_row_3_1_configuration() -> None:
    """The defaults are those of the guide; durations may be timedeltas."""
    config = BatchConfig(target_latency=timedelta(milliseconds=50))
    assert config == BatchConfig(
        default_batch_size=100, max_batch_size=1000, target_latency=0.05, min_throughput=2000,
        enable_auto_optimization=True, enable_parallel=True, parallelism=4,
    )  # fmt: skip


def test_row_3_2_batch_result(backend, upper) -> None:
    """One record's failure loses no other record, and its index is that of the input."""
    upper.register_plugin("x", backend.map_plugin(fail_on_b))
    result = upper.process_batch("x", [b"a", b"b", b"c"])
    assert result.output.to_pylist() == [b"a", b"c"]
    ((index, error),) = result.errors
    assert (index, type(error.__cause__)) == (1, ValueError)
    assert (result.processed_count, result.success_count, result.error_count) == (3, 2, 1)
    assert [each.is_error for each in result.results] == [False, True, False]
    assert result.processing_time > 0
    assert result.throughput_per_second == pytest.approx(3 / result.processing_time)


def test_row_3_3_parallel_batches(backend) -> None:
    """A batch is shared out over threads that stay, and its results are in input order."""
    both = threading.Barrier(2, timeout=LIMIT)
    threads = set()

    class Meets(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            if threading.get_ident() not in threads:
                threads.add(threading.get_ident())
                both.wait()
            return backend.PluginResult.success(record.value)

    config = PluginManagerConfig(batch_config=BatchConfig(parallelism=2))
    values = [b"%d" % i for i in range(10_000)]
    with backend.PluginManager(config) as manager:
        manager.register_plugin("x", Meets)
        assert manager.process_batch("x", values).output.to_pylist() == values
        assert manager.get_system_status().workers == 1
    assert len(threads) == 2


def test_row_3_4_automatic_batch_size(backend, upper) -> None:
    """The size of a stream's batches follows from what the batches before took."""
    sizes = [result.processed_count for result in upper.process_stream("upper", [b"a"] * 5000)]
    assert sizes[0] == 100
    assert max(sizes) > 100
    fixed = PluginManagerConfig(enable_auto_optimization=False)
    with backend.PluginManager(fixed) as manager:
        manager.register_plugin("upper", backend.Upper())
        sizes = {len(result) for result in manager.process_stream("upper", [b"a"] * 500)}
    assert sizes == {100}


# 4. Manager


def test_row_4_1_configuration() -> None:
    """The defaults are those of the guide."""
    config = PluginManagerConfig()
    assert (config.monitoring_interval, config.health_check_interval) == (30, 60)
    assert (config.max_plugin_instances, config.enable_debug_mode) == (10, False)
    assert config.enable_auto_optimization


def test_row_4_2_manager(backend) -> None:
    """A context manager; closing stops its threads."""
    before = threading.active_count()
    with backend.PluginManager() as manager:
        manager.register_plugin("upper", backend.Upper())
        manager.process_batch("upper", [b"a"] * 10_000)
    assert threading.active_count() <= before + 1  # the process's one thread for idle memory
    manager.close()
    with pytest.raises(PluginError, match="closed"):
        manager.process_batch("upper", [b"a"])


def test_row_4_3_registration(backend) -> None:
    """An instance, a class, a factory or a place; names are unique; plugins come and go."""
    config = PluginManagerConfig(max_plugin_instances=2)
    with backend.PluginManager(config) as manager:
        manager.register_plugin("instance", backend.Upper())
        manager.register_plugin("factory", lambda: backend.map_plugin(bytes.upper))
        assert manager.get_system_status().plugins["factory"].instances == 2
        if backend.name == dataflare.backend:
            manager.register_plugin("place", "dataflare.plugins:Upper")
            manager.unregister_plugin("place")
        with pytest.raises(DuplicatePluginError, match="registered already"):
            manager.register_plugin("instance", backend.Lower())
        manager.replace_plugin("instance", backend.Lower())
        assert manager.process_batch("instance", [b"A"]).output.to_pylist() == [b"a"]
        manager.disable_plugin("instance")
        with pytest.raises(PluginDisabledError):
            manager.process_batch("instance", [b"A"])
        manager.enable_plugin("instance")
        manager.unregister_plugin("instance")
        assert manager.list_plugins() == ["factory"]

        class Old(backend.DataFlarePlugin):
            def info(self):
                return PluginInfo("old", api_version=0)

        with pytest.raises(IncompatiblePluginError, match=r"API version 0.*has version 1"):
            manager.register_plugin("old", Old())


def test_row_4_4_process_record(backend, upper) -> None:
    """One record gives one result, or an error."""
    assert upper.process_record("upper", backend.PluginRecord(b"a")).data == b"A"
    with pytest.raises(UnknownPluginError):
        upper.process_record("nobody", backend.PluginRecord(b"a"))


def test_row_4_5_process_batch(backend, upper) -> None:
    """Records in many forms."""
    forms = [[b"a"], ["a"], (b"a",), [backend.PluginRecord(b"a")], np.array([b"a"]),
             backend.RecordBatch.from_values([b"a"]), ARROW[:1]]  # fmt: skip
    for records in forms:
        result = upper.process_batch("upper", records)
        assert result.output.to_pylist() == [b"A"]
        assert pa.table(result).num_rows == 1


def test_row_4_6_process_stream(upper) -> None:
    """A stream may have no end: no more is taken than needed."""

    def endless():
        while True:
            yield b"a"

    stream = upper.process_stream("upper", endless())
    assert next(stream).output.to_pylist() == [b"A"] * 100


def test_row_4_7_metrics(backend, upper) -> None:
    """What a plugin did, in figures that mean what they say."""
    upper.register_plugin("x", backend.map_plugin(fail_on_b))
    upper.process_batch("x", [b"aa", b"b", b"c", b"d"])
    metrics = upper.get_metrics("x")
    assert (metrics.total_processed, metrics.successful, metrics.error_rate) == (4, 3, 0.25)
    assert (metrics.bytes_in, metrics.bytes_out, metrics.batches) == (5, 4, 1)
    assert 0 < metrics.p50_latency <= metrics.p95_latency <= metrics.p99_latency
    assert metrics.average_throughput == pytest.approx(1 / metrics.average_latency)
    assert upper.get_metrics("nobody") is None
    assert set(upper.get_all_metrics()) == {"upper", "x"}


def test_row_4_8_pool_statistics(upper) -> None:
    """The pool carries the work."""
    result = upper.process_batch("upper", [b"a"] * 100)
    assert upper.get_memory_pool_stats().allocations > 0
    assert len(result) == 100


def test_row_4_9_health(backend, upper) -> None:
    """Every plugin is asked."""

    class Unwell(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def health_check(self):
            return False

    upper.health_check().raise_for_status()
    upper.register_plugin("unwell", Unwell())
    report = upper.health_check()
    assert "not fit" in report.plugins["unwell"].reason
    with pytest.raises(UnhealthyError, match="plugin unwell"):
        report.raise_for_status()


def test_row_4_10_status(upper) -> None:
    """The whole at a glance."""
    upper.process_batch("upper", [b"a"] * 3)
    status = upper.get_system_status()
    assert (status.state, status.totals.total_processed) == ("running", 3)
    assert status.plugins["upper"].circuit is CircuitState.CLOSED
    assert status.uptime > 0


def test_row_4_11_monitoring(backend) -> None:
    """Samples are kept and the health is checked by themselves, at their intervals."""
    config = PluginManagerConfig(
        monitoring_interval=0.01, health_check_interval=0.01, max_samples=3
    )
    with backend.PluginManager(config) as manager:
        manager.register_plugin("upper", backend.Upper())
        until = time.monotonic() + LIMIT
        while len(manager.samples) < 3 or manager.last_health is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert manager.last_health.is_healthy
        assert set(manager.samples[-1].plugins) == {"upper"}


def test_row_4_12_failure_recovery(backend) -> None:
    """Retry, circuit breaker and fallback are real."""
    attempts = []

    def flaky(value):
        attempts.append(value)
        if len(attempts) < 3:
            raise PluginError("not yet", retryable=True)
        if value == b"bad":
            raise ValueError("never")
        return value

    recovery = FailureRecoveryConfig(
        max_retries=3,
        retry_interval=0,
        circuit_breaker_minimum=4,
        circuit_breaker_recovery_time=math.inf,
    )
    with backend.PluginManager(PluginManagerConfig(failure_recovery=recovery)) as manager:
        letters = []
        manager.register_plugin("x", backend.map_plugin(flaky), dead_letters=letters.append)
        assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"a"]
        assert manager.get_metrics("x").retries == 2
        manager.process_batch("x", [b"bad"] * 5)
        assert [letter.record.value for letter in letters] == [b"bad"] * 5
        with pytest.raises(CircuitOpenError):
            manager.process_record("x", backend.PluginRecord(b"a"))
        manager.register_plugin(
            "y", backend.map_plugin(fail_on_b), fallback=backend.map_plugin(lambda value: b"saved")
        )
        assert manager.process_batch("y", [b"a", b"b"]).output.to_pylist() == [b"a", b"saved"]


def test_row_4_13_report(backend, upper, tmp_path) -> None:
    """All of it as JSON, or as one page."""
    upper.process_batch("upper", [b"a"])
    for name in ("report.json", "report.html"):
        upper.export_performance_report(tmp_path / name)
    assert json.loads((tmp_path / "report.json").read_text())
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_row_4_14_debug_mode(backend, caplog) -> None:
    """Steps are logged, and a buffer that was not returned is named with its place."""
    caplog.set_level(logging.DEBUG, "dataflare")
    with backend.PluginManager(PluginManagerConfig(enable_debug_mode=True)) as manager:
        manager.register_plugin("upper", backend.Upper())
        kept = manager.pool.get_buffer(10)
    assert "registered the plugin 'upper'" in caplog.text
    assert f"{__file__}:" in caplog.text
    assert len(kept) == 10


# 5. What is shipped beside the library


def test_row_5_1_demo() -> None:
    """A demonstration of pool, batches and manager, with figures."""
    command = [sys.executable, "-W", "error", "examples/performance_demo.py", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in (
        "hit rate",
        "after warmup()",
        "native, fused: both",
        "Shared out among threads",
        "found, from 10 on",
        "One record at a time",
        "dead letters, the first:",
        "memory pool",
    ):
        assert part in done.stdout, part
    [probed] = [line for line in done.stdout.splitlines() if "a probe shows it" in line]
    assert probed.split()[-1] == "closed"


def test_row_5_2_benchmarks() -> None:
    """Each row of the table of targets has its benchmark, which CI runs."""
    sources = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("test_*.py"))
    measured = set(re.findall(r"^def test_(p\d+b?)", sources, re.M))
    targets = (ROOT / "benchmarks" / "targets.py").read_text()
    promised = set(re.findall(r'^    "(P\d+b?)\b', targets, re.M))
    assert len(promised) > 10
    assert measured == {row.lower() for row in promised}


def test_row_5_3_tests() -> None:
    """`pytest` tests, and a map of the tests says what is where."""
    text = (ROOT / "tests" / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    named = {name for row in rows for name in re.findall(r"`([\w./]+)`", row)}
    for module in (ROOT / "tests").rglob("test_*.py"):
        folder = module.parent.name
        # A folder has a row of its own where its files are one thing, or each is of one module.
        whole = {"browser", "cdoor", "cimport", "kernels", "kit", "packaging", "unit"}
        assert module.name in {Path(name).name for name in named} or (
            folder in whole and f"{folder}/" in named
        ), module


def test_row_5_4_site() -> None:
    """A site: tutorial, authors' guide, tuning, troubleshooting, API; all of it is in the index."""
    chapters = [
        "getting-started",
        "python-plugins",
        "native-plugins",
        "batches",
        "troubleshooting",
        "api",
    ]
    index = (ROOT / "docs" / "index.md").read_text().splitlines()
    for name in chapters:
        assert name in index
        assert (ROOT / "docs" / f"{name}.md").read_text().startswith("# ")


def test_row_5_5_logging() -> None:
    """Standard logging: the logger `dataflare`, silent unless the application wants it."""
    assert any(type(h) is logging.NullHandler for h in logging.getLogger("dataflare").handlers)


def test_row_5_6_troubleshooting() -> None:
    """Three symptoms, each with the calls that find the cause."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    _, *chapters = re.split(r"^## ", text, flags=re.M)
    titles = ["Memory is too high", "Throughput is too low", "The error rate is too high"]
    assert [chapter.partition("\n")[0] for chapter in chapters][-3:] == titles
    for chapter in chapters[-3:]:
        code = "".join(re.findall(r"```python\n(.*?)```", chapter, re.S))  # run by tests/docs
        asked = set(re.findall(r"manager\.(\w+)\(", code))
        assert asked, chapter
        assert all(callable(getattr(dataflare.PluginManager, name)) for name in asked)
