"""What OpenTelemetry sees of a manager."""

import gc

import observed
import pytest
from observed import CHAIN, FRAGILE, run_threads
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Gauge, InMemoryMetricReader, Sum

from dataflare import __version__

PLUGIN, CLASS = {"dataflare.plugin"}, {"dataflare.class"}
COUNTER, LEVEL, GAUGE = "counter", "up-down counter", "gauge"
METRICS = {
    "dataflare.up": (LEVEL, "1", set()),
    "dataflare.records": (COUNTER, "{record}", {"dataflare.plugin", "dataflare.outcome"}),
    "dataflare.batches": (COUNTER, "{batch}", PLUGIN),
    "dataflare.io": (COUNTER, "By", {"dataflare.plugin", "dataflare.direction"}),
    "dataflare.retries": (COUNTER, "{attempt}", PLUGIN),
    "dataflare.fallbacks": (COUNTER, "{record}", PLUGIN),
    "dataflare.processing.time": (COUNTER, "s", PLUGIN),
    "dataflare.batch.duration": (GAUGE, "s", {"dataflare.plugin", "dataflare.quantile"}),
    "dataflare.record.duration": (GAUGE, "s", {"dataflare.plugin", "dataflare.quantile"}),
    "dataflare.stage.time": (COUNTER, "s", {"dataflare.plugin", "dataflare.stage"}),
    "dataflare.circuit.state": (LEVEL, "1", {"dataflare.plugin", "dataflare.state"}),
    "dataflare.circuit.opened": (COUNTER, "{opening}", PLUGIN),
    "dataflare.plugin.up": (LEVEL, "1", PLUGIN),
    "dataflare.plugin.enabled": (LEVEL, "1", PLUGIN),
    "dataflare.plugin.instances": (LEVEL, "{instance}", PLUGIN),
    "dataflare.calls.running": (LEVEL, "{call}", PLUGIN),
    "dataflare.pool.buffers": (LEVEL, "{buffer}", {"dataflare.class", "dataflare.state"}),
    "dataflare.pool.slabs": (LEVEL, "{buffer}", CLASS),
    "dataflare.pool.buffers.peak": (GAUGE, "{buffer}", CLASS),
    "dataflare.pool.requests": (COUNTER, "{request}", {"dataflare.class", "dataflare.result"}),
    "dataflare.pool.returns": (COUNTER, "{buffer}", CLASS),
    "dataflare.pool.requested": (COUNTER, "By", set()),
    "dataflare.pool.allocated": (COUNTER, "By", set()),
    "dataflare.pool.in_use": (LEVEL, "By", set()),
    "dataflare.pool.in_use.peak": (GAUGE, "By", set()),
    "dataflare.pool.reserved": (LEVEL, "By", set()),
    "dataflare.workers": (LEVEL, "{thread}", set()),
    "dataflare.workers.limit": (LEVEL, "{thread}", set()),
    "dataflare.manager.uptime": (GAUGE, "s", set()),
}


@pytest.fixture
def reader():
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader):
    """A meter provider with a reader in memory."""
    with_reader = MeterProvider([reader], shutdown_on_exit=False)
    yield with_reader
    with_reader.shutdown()


@pytest.fixture
def manager(backend):
    """A manager whose plugins have done something of everything."""
    with backend.PluginManager(observed.CONFIG) as manager:
        observed.fill(backend, manager)
        yield manager


def collect(reader):
    """The metrics of one collection, by name; all of one scope."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    (resource,) = data.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("dataflare", __version__)
    found = {metric.name: metric for metric in scope.metrics}
    assert len(found) == len(scope.metrics)
    return found


def points(metrics, name, **wanted):
    """Values by the attributes that were not asked for."""
    found = {}
    for point in metrics[name].data.data_points:
        rest = {key.removeprefix("dataflare."): text for key, text in point.attributes.items()}
        if all(rest.pop(key, None) == text for key, text in wanted.items()):
            key = tuple(rest.values())
            assert key not in found
            found[key] = point.value
    return found


def kind_of(metric):
    if isinstance(metric.data, Gauge):
        return GAUGE
    assert isinstance(metric.data, Sum)
    return COUNTER if metric.data.is_monotonic else LEVEL


def test_every_metric_has_its_kind_unit_and_attributes(backend, manager, provider, reader) -> None:
    """And a description; there is no other metric."""
    with backend.instrument(manager, provider):
        metrics = collect(reader)
    assert {
        name: (
            kind_of(metric),
            metric.unit,
            set().union(*(point.attributes for point in metric.data.data_points)),
        )
        for name, metric in metrics.items()
    } == METRICS
    assert all(metric.description.endswith(".") for metric in metrics.values())


def test_values_are_those_of_the_manager(backend, manager, provider, reader) -> None:
    """Counts by outcome, bytes, times and percentiles of every plugin, and the pool."""
    with backend.instrument(manager, provider):
        metrics = collect(reader)
    assert points(metrics, "dataflare.records", plugin=FRAGILE) == {
        ("success",): 23, ("filtered",): 1, ("skipped",): 1, ("failed",): 1, ("dead_lettered",): 1,
    }  # fmt: skip
    for name, of in manager.get_all_metrics().items():
        label = name.replace("\udcff", "\\udcff")
        assert sum(points(metrics, "dataflare.records", plugin=label).values()) == (
            of.total_processed
        )
        assert points(metrics, "dataflare.io", plugin=label) == {
            ("in",): of.bytes_in, ("out",): of.bytes_out,
        }  # fmt: skip
        assert points(metrics, "dataflare.batches", plugin=label) == {(): of.batches}
        assert points(metrics, "dataflare.processing.time", plugin=label) == {
            (): of.processing_time
        }
        assert points(metrics, "dataflare.batch.duration", plugin=label) == {
            ("0.5",): of.p50_batch_latency,
            ("0.95",): of.p95_batch_latency,
            ("0.99",): of.p99_batch_latency,
            ("1",): of.max_batch_latency,
        }
        assert points(metrics, "dataflare.record.duration", plugin=label) == {
            ("0.5",): of.p50_latency,
            ("0.95",): of.p95_latency,
            ("0.99",): of.p99_latency,
            ("1",): of.max_latency,
        }
    stages = points(metrics, "dataflare.stage.time", plugin=CHAIN)
    assert [*stages] == [("Contains",), ("Upper",), ("Upper (2)",), ("lower",)]
    stats = manager.get_memory_pool_stats()
    assert points(metrics, "dataflare.pool.requested") == {(): stats.bytes_requested}
    assert points(metrics, "dataflare.pool.buffers", state="cached")["small",] == (
        stats.classes[4096].cached
    )


def test_nothing_is_shown_after_close(backend, manager, provider, reader) -> None:
    """Closing twice is fine; the manager can be shown again."""
    handle = backend.instrument(manager, provider)
    assert "dataflare.up" in collect(reader)
    handle.close()
    handle.close()
    assert collect(reader) == {}
    with backend.instrument(manager, provider):
        assert points(collect(reader), "dataflare.up") == {(): 1}
    assert collect(reader) == {}


def test_several_managers_are_told_apart(backend, manager, provider, reader) -> None:
    """By attributes of their own; without, the second one is refused."""
    with backend.PluginManager(observed.CONFIG) as second:
        second.register_plugin(CHAIN, backend.Upper())
        with backend.instrument(manager, provider):
            with pytest.raises(ValueError, match="shows another manager already"):
                backend.instrument(second, provider)
            with backend.instrument(second, provider, attributes={"job": "second"}):
                metrics = collect(reader)
        assert points(metrics, "dataflare.batches", plugin=CHAIN) == {(): 1, ("second",): 0}
        with backend.instrument(second, provider):
            assert points(collect(reader), "dataflare.batches", plugin=CHAIN) == {(): 0}


def test_a_closed_manager_shows_that_it_is_down(backend, provider, reader) -> None:
    """And nothing else; one that is gone shows nothing, and its place is free."""
    manager = backend.PluginManager(observed.CONFIG)
    manager.register_plugin("x", backend.Upper())
    backend.instrument(manager, provider)
    manager.close()
    metrics = collect(reader)
    assert [*metrics] == ["dataflare.up"]
    assert points(metrics, "dataflare.up") == {(): 0}
    del manager
    gc.collect()
    assert collect(reader) == {}
    with backend.PluginManager() as manager, backend.instrument(manager, provider):
        assert points(collect(reader), "dataflare.up") == {(): 1}


def test_the_global_provider_is_the_default(backend, manager) -> None:
    """Without an SDK it measures nothing, and costs nothing."""
    with backend.instrument(manager):
        pass
    with pytest.raises(TypeError, match="must be a PluginManager, not int"):
        backend.instrument(5)


def test_collections_while_plugins_come_and_go(backend, provider, reader, caplog) -> None:
    """No callback fails, and what is shown of a plugin is gone with it."""
    with backend.PluginManager(observed.CONFIG) as manager, backend.instrument(manager, provider):

        def work(name):
            for _ in range(30):
                manager.register_plugin(name, backend.Chain(backend.Upper(), backend.Lower()))
                manager.process_batch(name, [b"a"] * 10)
                manager.unregister_plugin(name)

        def look():
            for _ in range(30):
                collect(reader)

        run_threads(lambda: work("one"), lambda: work("two"), look)
        assert "dataflare.records" not in collect(reader)
    assert caplog.text == ""
