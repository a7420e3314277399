"""Background monitoring: samples in a ring, true figures between them, and no thread too many."""

import gc
import math
import threading
import weakref

import pytest
from helpers import LIMIT, run_threads, threads_named, wait_until

from dataflare.config import BatchConfig, MemoryPoolConfig, PluginManagerConfig
from dataflare.errors import PluginError
from dataflare.types import CircuitState, PluginState

POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)
OFTEN = 0.01


@pytest.fixture
def watched(backend):
    """A function that makes a manager, which is closed after the test."""
    made = []

    def make(**fields):
        made.append(backend.PluginManager(PluginManagerConfig(memory_pool_config=POOL, **fields)))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def monitors():
    """The threads of monitors that run now."""
    return threads_named("dataflare-monitor")


# ---- samples


def test_a_sample_has_what_was_done(backend, watched) -> None:
    """Since the beginning in the counts, since the sample before in the rates."""

    class Judge(backend.DataFlarePlugin):
        def process(self, record):
            if record.value == b"e":
                raise LookupError("no")
            if record.value == b"f":
                return backend.PluginResult.filtered()
            return backend.PluginResult.success(b"12345")

    manager = watched()
    manager.register_plugin("x", Judge())
    manager.process_batch("x", [b"a"] * 30 + [b"e"] * 5 + [b"f"] * 5)
    first = manager.take_sample()
    manager.process_batch("x", [b"a"] * 8)
    manager.process_batch("x", [b"a"] * 4)
    second = manager.take_sample()
    third = manager.take_sample()
    assert manager.samples == [first, second, third]
    one, two, three = (sample.plugins["x"] for sample in (first, second, third))
    assert (one.total_processed, one.successful, one.failed, one.filtered) == (40, 30, 5, 5)
    assert (one.bytes_in, one.bytes_out, one.errors) == (40, 150, {"LookupError": 5})
    assert (one.batch_size, two.batch_size, three.batch_size) == (40.0, 6.0, 0.0)
    assert (two.total_processed, three.total_processed) == (52, 52)
    assert one.throughput > 0
    assert two.throughput > 0
    assert three.throughput == three.p99_latency == three.p50_batch_latency == 0.0
    assert 0 < two.p50_latency <= two.p95_latency <= two.p99_latency
    assert 0 < two.p50_batch_latency <= two.p95_batch_latency <= two.p99_batch_latency
    assert (one.state, one.circuit) == (PluginState.READY, CircuitState.CLOSED)
    assert first.taken_at <= second.taken_at <= third.taken_at
    assert first.pool.allocations <= second.pool.allocations
    assert one.errors == {"LookupError": 5}


def test_latencies_are_those_of_the_interval(backend, watched) -> None:
    """A slow call before it does not count any more, one in it does."""
    nap = [0.0]

    def work(value):
        threading.Event().wait(nap[0])
        return value

    manager = watched()
    manager.register_plugin("x", backend.map_plugin(work))
    figures = []
    for nap[0] in (0.1, 0.0, 0.1):
        manager.process_batch("x", [b"a"])
        figures.append(manager.take_sample().plugins["x"].p50_batch_latency)
    assert figures[0] >= 0.1
    assert figures[1] < 0.1
    assert figures[2] >= 0.1


def test_a_name_that_is_used_again_begins_anew(backend, watched) -> None:
    """Also if no sample was taken in between: nothing is negative."""
    manager = watched()
    for count in (50, 3):
        manager.register_plugin("x", backend.Upper())
        for _ in range(count):
            manager.process_batch("x", [b"a"] * 2)
        sample = manager.take_sample().plugins["x"]
        assert (sample.total_processed, sample.batch_size) == (2 * count, 2.0)
        assert sample.throughput > 0
        assert sample.p50_latency > 0
        manager.unregister_plugin("x")
    manager.take_sample()
    manager.register_plugin("x", backend.Upper())
    assert manager.take_sample().plugins["x"].batch_size == 0.0


def test_a_replaced_plugin_goes_on(backend, watched) -> None:
    """Its counters are the same."""
    manager = watched()
    manager.register_plugin("x", backend.Upper())
    manager.process_batch("x", [b"a"] * 5)
    manager.take_sample()
    manager.replace_plugin("x", backend.Lower())
    manager.process_batch("x", [b"a"] * 7)
    sample = manager.take_sample().plugins["x"]
    assert (sample.total_processed, sample.batch_size) == (12, 7.0)


def test_the_ring_is_bounded(watched) -> None:
    """The oldest goes first."""
    manager = watched(max_samples=3, monitoring_interval=math.inf)
    taken = [manager.take_sample() for _ in range(10)]
    assert manager.samples == taken[-3:]


def test_samples_while_plugins_come_and_go(backend, watched) -> None:
    """And while they work: none fails, and the counts add up."""
    manager = watched(max_samples=10)
    done = threading.Event()

    def turn():
        for i in range(60):
            manager.register_plugin("x", backend.Upper())
            manager.process_batch("x", [b"a"] * (i + 1))
            manager.unregister_plugin("x")
        done.set()

    def look():
        while not done.is_set():
            for plugin in manager.take_sample().plugins.values():
                assert plugin.batch_size >= 0
                assert plugin.throughput >= 0
            manager.get_all_metrics()
            manager.get_system_status()

    run_threads(turn, look, look)


# ---- the thread


def test_samples_and_checks_are_taken_by_themselves(backend, watched) -> None:
    """At their intervals, from the first plugin on."""
    before = set(monitors())
    manager = watched(monitoring_interval=OFTEN, health_check_interval=OFTEN)
    assert set(monitors()) == before
    manager.register_plugin("x", backend.Upper())
    manager.register_plugin("y", backend.Upper())
    assert len(set(monitors()) - before) == 1
    wait_until(lambda: len(manager.samples) >= 3 and manager.last_health is not None)
    assert manager.samples[-1].plugins.keys() == {"x", "y"}
    assert manager.last_health.is_healthy


@pytest.mark.parametrize(
    ("sampled", "checked"), [(OFTEN, math.inf), (math.inf, OFTEN), (math.inf, math.inf)]
)
def test_either_can_be_switched_off(backend, watched, sampled, checked) -> None:
    """An infinite interval is never; without both there is no thread."""
    before = set(monitors())
    manager = watched(monitoring_interval=sampled, health_check_interval=checked)
    manager.register_plugin("x", backend.Upper())
    if math.isinf(sampled) and math.isinf(checked):
        assert set(monitors()) == before
    elif math.isinf(checked):
        wait_until(lambda: len(manager.samples) >= 2)
        assert manager.last_health is None
    else:
        wait_until(lambda: manager.last_health is not None)
        assert manager.samples == []


def test_it_ends_with_its_manager(backend, watched) -> None:
    """At close, while it is checking too; no thread is left."""
    before = set(threading.enumerate())
    for _ in range(10):
        manager = watched(monitoring_interval=OFTEN, health_check_interval=OFTEN)
        manager.register_plugin("x", backend.Upper())
        wait_until(lambda manager=manager: manager.samples)
        manager.close()
        taken = len(manager.samples)
        assert set(monitors()) <= before
        assert len(manager.samples) == taken
    wait_until(lambda: {t for t in threading.enumerate() if "idle" not in t.name} <= before)


def test_it_keeps_no_manager_alive(backend) -> None:
    """One that nobody knows any more goes, with its threads, though it was not closed."""
    before = set(threading.enumerate())
    config = PluginManagerConfig(
        memory_pool_config=POOL, monitoring_interval=OFTEN, health_check_interval=OFTEN
    )

    class Plain(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

    def use():
        manager = backend.PluginManager(config)
        manager.register_plugin("x", Plain())
        manager.register_plugin("y", backend.Upper, fallback=backend.Lower(), dead_letters=print)
        manager.process_batch("y", [b"a"] * 100_000)
        wait_until(lambda: manager.samples and manager.last_health)
        return [weakref.ref(manager), weakref.ref(manager.get_plugin("x"))]

    gone = use()

    def is_gone():
        gc.collect()
        return not any(reference() for reference in gone)

    wait_until(is_gone)
    wait_until(lambda: {t for t in threading.enumerate() if "idle" not in t.name} <= before)


def test_what_fails_is_logged_and_tried_again(backend, watched, caplog) -> None:
    """A check that raises does not end it, and the samples go on."""
    manager = watched(monitoring_interval=OFTEN, health_check_interval=OFTEN)
    manager.health_check = lambda: 1 // 0
    manager.register_plugin("x", backend.Upper())
    wait_until(lambda: "monitoring failed" in caplog.text)
    taken = len(manager.samples)
    wait_until(lambda: len(manager.samples) >= taken + 2)


def test_a_failing_plugin_does_not_disturb_it(backend, watched) -> None:
    """Neither its state, nor its name, nor its health."""

    class Broken(backend.DataFlarePlugin):
        named = False

        def process(self, record):
            return backend.PluginResult.skip()

        def info(self):
            if self.named:
                raise ValueError("no name")
            return super().info()

        def get_state(self):
            raise ValueError("no state")

        def health_check(self):
            raise ValueError("no health")

        @property
        def exclusive_times(self):
            raise ValueError("no times")

    manager = watched(monitoring_interval=OFTEN, health_check_interval=OFTEN)
    plugin = Broken()
    manager.register_plugin("x", plugin)
    plugin.named = True
    wait_until(lambda: len(manager.samples) >= 3 and manager.last_health is not None)
    assert manager.samples[-1].plugins["x"].state is PluginState.READY
    assert manager.get_metrics("x").stages[0].name == "Broken"
    assert not manager.last_health.is_healthy


def test_a_plugin_that_hangs_does_not_stop_the_samples(backend, watched) -> None:
    """For longer than its health check may take."""
    release = threading.Event()

    class Hangs(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def health_check(self):
            return release.wait(LIMIT)

    manager = watched(
        monitoring_interval=OFTEN, health_check_interval=OFTEN, health_check_timeout=OFTEN
    )
    manager.register_plugin("x", Hangs())
    try:
        wait_until(lambda: manager.last_health is not None and len(manager.samples) >= 3)
        assert "has not answered" in manager.last_health.plugins["x"].reason
        assert len(threads_named("dataflare-health")) == 1
    finally:
        release.set()


# ---- the status of the system


def test_the_status_says_it_all(backend, watched) -> None:
    """State, plugins, threads, memory and totals, also after the end."""

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            raise ValueError("no")

    manager = watched()
    manager.register_plugin("x", backend.Contains(b"a"))
    manager.register_plugin("y", Fails)
    manager.disable_plugin("x")
    manager.enable_plugin("x")
    manager.process_batch("x", [b"a", b"b"])
    manager.process_batch("y", [b"c"])
    with pytest.raises(PluginError):
        manager.process_record("y", backend.PluginRecord(b"cc"))
    manager.disable_plugin("y")
    status = manager.get_system_status()
    assert (status.state, status.workers, status.max_workers) == ("running", 0, 3)
    assert status.uptime > 0
    x, y = status.plugins["x"], status.plugins["y"]
    assert (x.state, x.enabled, x.instances, x.running) == (PluginState.READY, True, 1, 0)
    assert (y.enabled, y.instances, y.circuit, y.times_opened) == (
        False, 4, CircuitState.CLOSED, 0,
    )  # fmt: skip
    totals = status.totals
    assert (totals.total_processed, totals.skipped, totals.filtered) == (4, 1, 1)
    assert (totals.failed, totals.successful, totals.dead_lettered) == (2, 0, 0)
    assert (totals.bytes_in, totals.bytes_out) == (5, 1)
    assert status.memory.in_use >= 0
    manager.close()
    status = manager.get_system_status()
    assert (status.state, status.plugins, status.totals.total_processed) == ("closed", {}, 0)


def test_the_time_of_a_chain_is_that_of_its_members(backend, watched) -> None:
    """The one that sleeps has nearly all, the sum no more than all; replacing begins anew."""

    def nap(value):
        threading.Event().wait(0.05)
        return value

    def chain():
        return backend.Chain(
            backend.Upper(), backend.map_plugin(nap, name="nap"), backend.Lower(), backend.Upper()
        )

    manager = watched()
    manager.register_plugin("x", chain)
    for _ in range(2):
        manager.process_batch("x", [b"a", b"b"])
        metrics = manager.get_metrics("x")
        times = {stage.name: stage.exclusive_time for stage in metrics.stages}
        assert [stage.name for stage in metrics.stages] == ["Upper", "nap", "Lower", "Upper"]
        assert times["nap"] >= 0.1
        assert all(times[name] < times["nap"] for name in ("Upper", "Lower"))
        assert sum(stage.exclusive_time for stage in metrics.stages) <= metrics.processing_time
    manager.replace_plugin("x", chain)
    assert sum(stage.exclusive_time for stage in manager.get_metrics("x").stages) == 0.0


def test_the_times_of_instances_add_up(backend, watched) -> None:
    """Of chains that a factory made, however many members each of them has."""
    made = []

    def factory():
        made.append(backend.Chain(*[backend.map_plugin(bytes)] * (len(made) + 1)))
        return made[-1]

    manager = watched()
    manager.register_plugin("x", factory)
    for plugin in made:
        backend.run_batch(plugin, backend.RecordBatch.from_values([b"a"] * 100))
    stages = manager.get_metrics("x").stages
    assert [stage.name for stage in stages] == ["bytes"] * 4
    parts = [time for plugin in made for _, time in plugin.exclusive_times()]
    assert sum(stage.exclusive_time for stage in stages) == pytest.approx(sum(parts))


def test_a_plugin_that_is_no_chain_has_all_the_time(backend, watched) -> None:
    """One stage."""
    manager = watched()
    manager.register_plugin("x", backend.Upper())
    manager.process_batch("x", [b"a"])
    metrics = manager.get_metrics("x")
    ((name, time),) = [(stage.name, stage.exclusive_time) for stage in metrics.stages]
    assert (name, time) == ("Upper", metrics.processing_time)


def test_a_manager_without_a_thread_to_monitor_it(backend, monkeypatch) -> None:
    """Works all the same; the next plugin tries again."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    config = PluginManagerConfig(batch_config=BatchConfig(enable_parallel=False))
    with backend.PluginManager(config) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            manager.register_plugin("x", backend.Upper())
        assert manager.process_batch("x", [b"a"]).output.to_pylist() == [b"A"]
        assert not manager._monitor.is_running
        manager.unregister_plugin("x")
        manager.register_plugin("x", backend.Upper())
        assert manager._monitor.is_running
