"""Health checks, monitoring, and the status of the whole."""

import gc
import threading
import time
import weakref

import pytest

from dataflare.config import FailureRecoveryConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import PluginInitializationError, UnhealthyError
from dataflare.types import CircuitState, PluginState

LIMIT = 60  # seconds until a thread that hangs fails its test


@pytest.fixture
def answering(backend):
    """Makes plugins whose health check does as told."""

    class Answering(backend.DataFlarePlugin):
        def __init__(self, answer):
            self.answer = answer
            self.asked = 0

        def process(self, record):
            return backend.PluginResult.skip()

        def health_check(self):
            self.asked += 1
            return self.answer()

    return Answering


def wait_until(true) -> None:
    """Until something is so."""
    until = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def unwell():
    raise OSError("no disk")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: False, "its health check says that it is not fit for work"),
        (lambda: None, "its health check says that it is not fit for work"),
        (unwell, "its health check failed: OSError: no disk"),
    ],
)
def test_a_plugin_that_is_not_well(backend, manager, answering, answer, reason) -> None:
    """It is named with the reason, and the others are well."""
    manager.register_plugin("ill", answering(answer))
    manager.register_plugin("well", backend.Upper())
    report = manager.health_check()
    assert report.plugins["ill"].reason == reason
    assert report.plugins["well"].verdict.name == "HEALTHY"
    assert (report.verdict.name, report.is_healthy) == ("UNHEALTHY", False)
    with pytest.raises(UnhealthyError) as caught:
        report.raise_for_status()
    assert str(caught.value) == f"plugin ill: {reason}"
    assert manager.last_health is report


def test_a_plugin_that_does_not_answer(manager, answering) -> None:
    """The check goes on without it, and does not ask again until it has answered."""
    release = threading.Event()
    plugin = answering(lambda: release.wait(LIMIT))
    manager.register_plugin("hangs", plugin)
    for _ in range(3):
        report = manager.health_check(timeout=0.01)
        assert "has not answered for" in report.plugins["hangs"].reason
    assert plugin.asked == 1
    release.set()
    wait_until(lambda: manager.health_check(timeout=1).is_healthy)


@pytest.mark.parametrize("wrong", [-1, float("nan"), "1", None, True])
def test_a_timeout_is_a_duration(manager, wrong) -> None:
    """Anything else is refused with a sentence; none means that of the configuration."""
    if wrong is None:
        assert manager.health_check(timeout=wrong).is_healthy
        return
    with pytest.raises((TypeError, ValueError), match="timeout must be"):
        manager.health_check(timeout=wrong)


def test_a_pool_under_pressure(backend) -> None:
    """A class whose slabs are all out degrades the pool, and is named."""
    pool = MemoryPoolConfig(max_huge_buffers=1)
    with backend.PluginManager(PluginManagerConfig(memory_pool_config=pool)) as manager:
        held = manager.pool.get_buffer(4 << 20)
        report = manager.health_check()
        assert report.verdict.name == "DEGRADED"
        assert "every HUGE slab is out" in report.pool.reason
        report.raise_for_status()  # it still works
        manager.pool.return_buffer(held)
        assert manager.health_check().is_healthy


def test_a_circuit_that_is_open(backend) -> None:
    """The plugin is unhealthy and in the state ERROR until it works again."""
    recovery = FailureRecoveryConfig(circuit_breaker_minimum=1, circuit_breaker_recovery_time=0)
    broken = [True]

    def fail(value):
        if broken[0]:
            raise ValueError("broken")
        return value

    with backend.PluginManager(PluginManagerConfig(failure_recovery=recovery)) as manager:
        manager.register_plugin("x", backend.map_plugin(fail))
        plugin = manager.get_plugin("x")
        manager.process_batch("x", [b"a"])
        assert manager.get_system_status().plugins["x"].circuit is CircuitState.OPEN
        assert plugin.get_state() is PluginState.ERROR
        assert "its circuit is open" in manager.health_check().plugins["x"].reason
        broken[0] = False
        assert manager.process_batch("x", [b"a", b"b"]).success_count == 2
        assert plugin.get_state() is PluginState.READY
        assert manager.health_check().is_healthy
        status = manager.get_system_status().plugins["x"]
        assert (status.circuit, status.times_opened) == (CircuitState.CLOSED, 1)


def test_a_plugin_that_is_disabled(backend, manager) -> None:
    """It is degraded, because nobody gets through to it."""
    manager.register_plugin("x", backend.Upper())
    manager.disable_plugin("x")
    assert manager.health_check().plugins["x"].reason == "it is disabled"


def test_samples_say_what_happened_in_between(backend, manager) -> None:
    """Counts up to now; sizes and latencies since the sample before."""
    manager.register_plugin("x", backend.Upper())
    manager.process_batch("x", [b"a"] * 30)
    first = manager.take_sample().plugins["x"]
    manager.process_batch("x", [b"a"] * 4)
    manager.process_batch("x", [b"a"] * 6)
    second = manager.take_sample().plugins["x"]
    third = manager.take_sample().plugins["x"]
    assert [each.total_processed for each in (first, second, third)] == [30, 40, 40]
    assert [each.batch_size for each in (first, second, third)] == [30, 5, 0]
    assert second.p50_batch_latency > 0
    assert (third.p99_batch_latency, third.throughput) == (0, 0)
    assert len(manager.samples) == 3


def test_samples_are_bounded(backend) -> None:
    """The oldest goes first."""
    with backend.PluginManager(PluginManagerConfig(max_samples=2)) as manager:
        times = [manager.take_sample().taken_at for _ in range(4)]
        assert [sample.taken_at for sample in manager.samples] == times[2:]


def test_monitoring_survives_what_it_watches(backend, answering) -> None:
    """A plugin that fails to say how it is stops neither samples nor checks."""
    config = PluginManagerConfig(monitoring_interval=0.005, health_check_interval=0.005)
    plugin = answering(unwell)
    with backend.PluginManager(config) as manager:
        manager.register_plugin("x", plugin)
        wait_until(lambda: plugin.asked > 2 and len(manager.samples) > 2)
        assert manager.last_health is not None


def test_monitoring_keeps_no_manager_alive(backend) -> None:
    """A manager that is forgotten goes, and its threads with it."""
    config = PluginManagerConfig(monitoring_interval=0.005, health_check_interval=0.005)
    before = set(threading.enumerate())
    manager = backend.PluginManager(config)
    manager.register_plugin("x", backend.Upper())
    manager.process_batch("x", [b"a"] * 10_000)
    until = time.monotonic() + LIMIT
    while not manager.samples:
        assert time.monotonic() < until
    reference = weakref.ref(manager)
    del manager

    def threads() -> list[str]:
        gc.collect()
        names = [thread.name for thread in set(threading.enumerate()) - before]
        return [name for name in names if name != "dataflare-idle-memory"]

    wait_until(lambda: not threads())
    assert reference() is None


def test_a_class_whose_third_instance_fails_leaves_nothing_behind(backend, manager) -> None:
    """The first two are cleaned up, once, and the name is free."""
    events = []

    class Third(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def initialize(self, config):
            if events.count("begun") == 2:
                raise OSError("no more")
            events.append("begun")

        def cleanup(self):
            events.append("ended")

    with pytest.raises(PluginInitializationError, match="OSError: no more"):
        manager.register_plugin("x", Third)
    assert events == ["begun", "begun", "ended", "ended"]
    manager.register_plugin("x", backend.Upper())


@pytest.mark.parametrize("name", [None, 5, b"x", ["x"], ""])
def test_a_name_is_a_string(backend, manager, name) -> None:
    """Every call that takes one refuses anything else, with a sentence."""
    record = backend.PluginRecord(b"a")
    calls = [
        lambda: manager.register_plugin(name, backend.Upper()),
        lambda: manager.replace_plugin(name, backend.Upper()),
        lambda: manager.unregister_plugin(name),
        lambda: manager.get_plugin(name),
        lambda: manager.enable_plugin(name),
        lambda: manager.disable_plugin(name),
        lambda: manager.process_record(name, record),
        lambda: manager.process_batch(name, [b"a"]),
        lambda: manager.process_stream(name, [b"a"]),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as caught:
            call()
        assert str(caught.value)
    assert manager.list_plugins() == []
