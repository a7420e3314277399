"""Batches that threads share: who works on them, and what comes out."""

import ctypes
import os
import signal
import sys
import threading
import time

import pytest
from helpers import LIMIT, run_threads, threads_named, wait_until
from hypothesis import given
from hypothesis import strategies as st
from strategies import PLUGINS, batches

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import PluginError
from dataflare.types import PluginState

LARGE = 8192  # records: more than a batch of which nothing is known yet must have to be shared
SMALL_POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


def config_of(parallelism=4, **fields):
    """A configuration of a manager that shares batches."""
    names = {"max_plugin_instances", "failure_recovery"} & fields.keys()
    own = {name: fields.pop(name) for name in names}
    batch = BatchConfig(parallelism=parallelism, **fields)
    return PluginManagerConfig(memory_pool_config=SMALL_POOL, batch_config=batch, **own)


@pytest.fixture
def sharing(backend):
    """A function that makes a manager, which is closed after the test."""
    made = []

    def make(*arguments, **fields):
        made.append(backend.PluginManager(config_of(*arguments, **fields)))
        return made[-1]

    yield make
    for manager in made:
        manager.close()


@pytest.fixture
def meeting(backend):
    """A function that makes a class whose instances wait for each other, once in each batch."""

    def make(number, **attributes):
        class Meets(backend.DataFlarePlugin):
            """Waits at the values that begin with 'meet' until as many threads are there."""

            releases_gil = True
            barrier = threading.Barrier(number)

            def process(self, record):
                if bytes(record.value[:4]) == b"meet":
                    self.threads.add(threading.get_ident())
                    self.barrier.wait(LIMIT)
                return judge(backend, record)

        Meets.threads = set()
        for name, value in attributes.items():
            setattr(Meets, name, value)
        return Meets

    return make


def judge(backend, record):
    """An outcome by the last byte."""
    result = backend.PluginResult
    last = bytes(record.value[-1:])
    if last == b"f":
        return result.filtered()
    if last == b"e":
        return result.error("told to", "E")
    if last == b"r":
        raise ValueError("told to")
    return result.skip() if last == b"k" else result.success(b"new " + record.value)


def values_of(parts, length=LARGE):
    """Values of which the first of every part is one to meet at; all outcomes are among them."""
    values = [b"%d%c" % (i, b"kfersm"[i % 6]) for i in range(length)]
    for part in range(parts):
        values[length * part // parts] = b"meet%d" % part
    return values


def outcomes(result):
    """Everything that a result says of its records, to compare."""
    output = result.output
    return (
        output.to_pylist(),
        result.status.tolist(),
        [(index, str(error), error.code, error.plugin) for index, error in result.errors],
        [
            (r.key and bytes(r.key), dict(r.metadata or {}), r.timestamp, r.partition, r.offset)
            for r in output
        ],
        [(r.data and bytes(r.data), dict(r.metadata or {}), r.message) for r in result.results],
    )


# ---- who works on a batch


@pytest.mark.parametrize("parallelism", [2, 3, 4])
def test_instances_of_a_class_share_a_batch(backend, sharing, meeting, parallelism) -> None:
    """One per thread, results in the order of the input, errors where they belong."""
    manager = sharing(parallelism)
    plugin = meeting(parallelism)
    manager.register_plugin("x", plugin)
    assert manager.get_system_status().plugins["x"].instances == parallelism
    values = values_of(parallelism)
    result = manager.process_batch("x", values)
    assert len(plugin.threads) == parallelism
    plugin.barrier = threading.Barrier(1)
    batch = backend.RecordBatch.from_values(values)
    assert outcomes(result) == outcomes(backend.run_batch(plugin(), batch))
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.batches) == (LARGE, 1)
    assert metrics.failed == result.error_count == len(result.errors) > LARGE // 4
    assert (metrics.successful, metrics.filtered, metrics.skipped) == (
        result.success_count, result.filtered_count, result.skipped_count,
    )  # fmt: skip
    assert metrics.bytes_in == batch.nbytes
    assert metrics.bytes_out == result.output.nbytes
    assert manager.get_system_status().workers == parallelism - 1


def test_the_other_columns_are_those_of_the_records(backend, sharing, meeting) -> None:
    """Keys, numbers and metadata, also where a plugin gave some."""

    def process(self, record):
        if bytes(record.value[:4]) == b"meet":
            self.barrier.wait(LIMIT)
        if record.offset % 3 == 0:
            return backend.PluginResult.success(record.value, {"given": record.offset})
        if record.offset % 3 == 1:
            return backend.PluginResult.filtered()
        return backend.PluginResult.skip()

    plugin = meeting(3, process=process)
    manager = sharing(3)
    manager.register_plugin("x", plugin)
    values = values_of(3)
    batch = backend.RecordBatch.from_values(
        values,
        [None if i % 5 == 0 else b"k%d" % i for i in range(LARGE)],
        timestamps=range(LARGE),
        partitions=[i % 7 for i in range(LARGE)],
        offsets=range(LARGE),
        metadata=[{"own": i} if i % 2 else None for i in range(LARGE)],
    )
    result = manager.process_batch("x", batch)
    kept = [i for i in range(LARGE) if i % 3 != 1]
    assert [record.offset for record in result.output] == kept
    for record in (result.output[0], result.output[1], result.output[len(kept) - 1]):
        i = record.offset
        assert bytes(record.value) == values[i]
        assert record.key == (None if i % 5 == 0 else b"k%d" % i)
        assert (record.timestamp, record.partition) == (i, i % 7)
    plugin.barrier = threading.Barrier(1)
    assert outcomes(result) == outcomes(backend.run_batch(plugin(), batch))


def test_one_thread_safe_instance_is_shared(sharing, meeting) -> None:
    """It says so itself; there is no second one."""
    manager = sharing(3)
    plugin = meeting(3, thread_safe=True)
    manager.register_plugin("x", plugin())
    assert manager.get_system_status().plugins["x"].instances == 1
    assert manager.process_batch("x", values_of(3)).processed_count == LARGE
    assert len(plugin.threads) == 3
    assert manager.get_plugin("x").get_state() is PluginState.READY


def test_a_thread_safe_class_has_one_instance(sharing, meeting) -> None:
    """More would be of no use."""
    manager = sharing(4)
    manager.register_plugin("x", meeting(1, thread_safe=True))
    assert manager.get_system_status().plugins["x"].instances == 1


@pytest.mark.parametrize("way", ["instance", "same", "off", "one thread", "one instance"])
def test_what_cannot_be_shared_is_run_by_the_caller(sharing, meeting, way) -> None:
    """A single instance, a factory of a single one, and where the configuration says so."""
    plugin = meeting(1)
    single = plugin()
    manager = {
        "off": lambda: sharing(enable_parallel=False),
        "one thread": lambda: sharing(1),
        "one instance": lambda: sharing(max_plugin_instances=1),
    }.get(way, sharing)()
    manager.register_plugin("x", {"instance": single, "same": lambda: single}.get(way, plugin))
    before = threads_named("dataflare-worker")
    for _ in range(3):
        manager.process_batch("x", values_of(4))
    assert plugin.threads == {threading.get_ident()}
    assert threads_named("dataflare-worker") == before
    status = manager.get_system_status()
    assert (status.workers, status.plugins["x"].instances) == (0, 1)


@pytest.mark.parametrize("most", [2, 3, 9])
def test_there_are_no_more_instances_than_allowed(sharing, meeting, most) -> None:
    """Neither than threads, nor than the configuration says."""
    manager = sharing(4, max_plugin_instances=most)
    manager.register_plugin("x", meeting(min(most, 4)))
    assert manager.get_system_status().plugins["x"].instances == min(most, 4)
    assert manager.process_batch("x", values_of(min(most, 4))).processed_count == LARGE


def test_python_under_the_gil_is_not_shared(sharing, meeting, monkeypatch) -> None:
    """Without a GIL it is."""
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        serial = meeting(1, releases_gil=False)
        manager = sharing(2)
        manager.register_plugin("x", serial)
        manager.process_batch("x", values_of(2))
        assert serial.threads == {threading.get_ident()}
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    shared = meeting(2, releases_gil=False)
    manager = sharing(2)
    manager.register_plugin("x", shared)
    manager.process_batch("x", values_of(2))
    assert len(shared.threads) == 2


def test_small_batches_stay_with_the_caller(sharing, meeting) -> None:
    """As long as nothing was measured, those of less than 4096 records."""
    plugin = meeting(1)
    manager = sharing(2)
    manager.register_plugin("x", plugin)
    manager.process_batch("x", [b"meet"] * 4095)
    assert plugin.threads == {threading.get_ident()}
    assert threads_named("dataflare-worker") == []


def test_records_that_take_long_make_a_small_batch_large(backend, sharing) -> None:
    """What was measured before decides."""
    threads = set()
    both = threading.Barrier(2)

    class Slow(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            threads.add(threading.get_ident())
            if record.value == b"meet":
                both.wait(LIMIT)
            else:
                threading.Event().wait(0.002)
            return backend.PluginResult.skip()

    manager = sharing(2)
    manager.register_plugin("x", Slow)
    manager.process_batch("x", [b"slow"] * 2)
    assert len(threads) == 1
    manager.process_batch("x", [b"meet"] * 2)
    assert len(threads) == 2


# ---- what comes out


@given(
    recipe=batches(), plugin=PLUGINS, threads=st.integers(2, 5), instances=st.integers(2, 6),
)  # fmt: skip
def test_shared_is_the_same_as_serial(backend, recipe, plugin, threads, instances) -> None:
    """Any batch, any plugin, any number of threads and instances."""
    batch, made = recipe.build(backend), plugin.build(backend)
    with backend.MemoryPool(SMALL_POOL) as pool:
        alone = backend.run_batch(made, batch, pool)
        workers = backend.Workers(threads)
        try:
            recovery = FailureRecoveryConfig(circuit_breaker_threshold=1)
            service = backend.PluginService("x", [made] * instances, pool, recovery, workers)
            service.runner.shares = True
            service.runner.learn(1, 1.0)  # a record takes a second: every batch of two is large
            shared = service.runner.process_batch(batch)
        finally:
            workers.close()
        assert outcomes(shared) == outcomes(alone)
        counted = service.counters
        assert counted.records == len(batch)
        assert counted.success + counted.filtered + counted.skipped + counted.failed == len(batch)
        assert counted.failed == alone.error_count


def test_callers_at_once_get_their_own(backend, sharing) -> None:
    """Each record once, in order, none of another's."""
    manager = sharing(3)
    manager.register_plugin("x", backend.map_plugin(bytes.swapcase, thread_safe=True))
    manager.register_plugin("y", backend.Chain(backend.Upper(), backend.Replace("A", "bb")))

    def call(number):
        values = [b"a%d %d" % (number, i) for i in range(LARGE)]
        for _ in range(3):
            for name, change in (
                ("x", bytes.swapcase),
                ("y", lambda value: value.upper().replace(b"A", b"bb")),
            ):
                result = manager.process_batch(name, values)
                assert result.output.to_pylist() == [change(value) for value in values]

    run_threads(*(lambda number=number: call(number) for number in range(3)))
    assert manager.get_metrics("y").total_processed == 9 * LARGE
    assert manager.get_plugin("y").get_state() is PluginState.READY


def test_results_outlive_the_manager(backend) -> None:
    """What threads wrote is as alive as what the caller wrote, and goes back to the pool."""
    with backend.PluginManager(config_of(3)) as manager:
        manager.register_plugin("x", backend.Upper())
        result = manager.process_batch("x", [b"a%d" % i for i in range(LARGE)])
        again = manager.process_batch("x", result.output)
        del again
        assert manager.get_memory_pool_stats().in_use > 0
    assert result.output.to_pylist() == [b"A%d" % i for i in range(LARGE)]
    pool = manager.pool
    del result
    wait_until(lambda: pool.get_stats().in_use == 0)


# ---- calls inside calls


def test_a_plugin_in_a_thread_calls_its_manager(backend, sharing) -> None:
    """Itself, another, one of which there is a single instance; from every thread."""

    class Single(backend.DataFlarePlugin):
        inside = 0

        def process(self, record):
            self.inside += 1
            assert self.inside == 1
            self.inside -= 1
            return backend.PluginResult.success(b"<%s>" % bytes(record.value))

    class Nests(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            value = bytes(record.value)
            if value.startswith(b"deep"):
                inner = manager.process_batch("x", [b"inner", value[4:]])
                return backend.PluginResult.success(b",".join(inner.output.to_pylist()))
            return manager.process_record("single", record)

    manager = sharing(3)
    manager.register_plugin("x", Nests)
    manager.register_plugin("single", Single())
    values = [b"deep%d" % i for i in range(LARGE)]
    result = manager.process_batch("x", values)
    assert result.output.to_pylist() == [b"<inner>,<%d>" % i for i in range(LARGE)]
    assert manager.get_metrics("single").total_processed == 2 * LARGE
    assert manager.get_metrics("x").total_processed == 3 * LARGE


def test_a_batch_inside_a_call_stays_with_its_thread(backend, sharing, meeting) -> None:
    """Else the plugin that sends it could be waited for by the threads that it waits for."""

    class Sends(backend.DataFlarePlugin):
        def process(self, record):
            if record.value == b"outer":
                result = manager.process_batch("inner", [b"leaf"] * LARGE)
                return backend.PluginResult.success(b"%d" % result.success_count)
            return backend.PluginResult.success(b"leaf")

    class Inner(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            return manager.process_record("sends", record)

    manager = sharing(3)
    manager.register_plugin("sends", Sends())
    manager.register_plugin("inner", Inner)
    outer = backend.PluginRecord(b"outer")
    run_threads(
        lambda: [manager.process_record("sends", outer).data == b"%d" % LARGE for _ in range(3)]
    )
    assert manager.get_metrics("sends").failed == 0


def test_plugins_that_call_each_other_do_not_wait_for_each_other(backend, sharing) -> None:
    """One of the two calls fails instead, is tried again, and both records are processed."""
    both = threading.Barrier(2)

    class Calls(backend.DataFlarePlugin):
        def __init__(self, other):
            self.other = other
            self.met = False

        def process(self, record):
            if record.value == b"leaf":
                return backend.PluginResult.success(b"done")
            if not self.met:
                self.met = True
                both.wait(LIMIT)
            return manager.process_record(self.other, backend.PluginRecord(b"leaf"))

    manager = sharing(
        failure_recovery=FailureRecoveryConfig(max_retries=1000, retry_interval=0.001)
    )
    manager.register_plugin("a", Calls("b"))
    manager.register_plugin("b", Calls("a"))
    results = []
    run_threads(
        lambda: results.append(manager.process_record("a", backend.PluginRecord(b"start")).data),
        lambda: results.append(manager.process_record("b", backend.PluginRecord(b"start")).data),
    )
    assert results == [b"done"] * 2
    assert manager.get_metrics("a").retries + manager.get_metrics("b").retries >= 1


def test_a_call_that_cannot_end_says_so(backend, sharing) -> None:
    """In one sentence, as the error of its record; nobody hangs."""
    both = threading.Barrier(2)

    class Calls(backend.DataFlarePlugin):
        def __init__(self, other):
            self.other = other

        def process(self, record):
            if record.value == b"start":
                both.wait(LIMIT)
                return manager.process_record(self.other, backend.PluginRecord(b"leaf"))
            return backend.PluginResult.skip()

    manager = sharing(failure_recovery=FailureRecoveryConfig(max_retries=0))
    manager.register_plugin("a", Calls("b"))
    manager.register_plugin("b", Calls("a"))
    errors = []

    def call(name):
        try:
            manager.process_record(name, backend.PluginRecord(b"start"))
        except PluginError as error:
            errors.append(str(error))

    run_threads(lambda: call("a"), lambda: call("b"))
    assert errors == ["the plugin is held by calls that wait for this one"]


# ---- ends


@pytest.mark.parametrize("way", ["unregister_plugin", "close"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_plugin_in_a_thread_ends_its_own_service(backend, way, number) -> None:
    """The batch is whole, and every instance is cleaned up once, behind it."""
    events = []
    quitting = threading.Barrier(number)

    class Quits(backend.DataFlarePlugin):
        releases_gil = True
        cleaned = 0

        def process(self, record):
            if bytes(record.value[:4]) == b"quit":
                quitting.wait(LIMIT)
                try:
                    manager.unregister_plugin(
                        "x"
                    ) if way == "unregister_plugin" else manager.close()
                except PluginError:  # another was first
                    assert number > 1
            assert not self.cleaned
            return backend.PluginResult.success(record.value)

        def cleanup(self):
            self.cleaned += 1
            events.append(self)

    with backend.PluginManager(config_of(3)) as manager:
        manager.register_plugin("x", Quits)
        values = [b"%d" % i for i in range(LARGE)]
        for part in range(number):
            values[LARGE * part // number + 5] = b"quit"
        done = []
        run_threads(lambda: done.append(manager.process_batch("x", values)))
        assert done[0].output.to_pylist() == values
        assert len({id(each) for each in events}) == len(events) == 3
        assert [each.get_state() for each in events] == [PluginState.STOPPED] * 3
        assert not manager.list_plugins()


@pytest.mark.parametrize("way", ["unregister_plugin", "close"])
def test_service_that_ends_meanwhile_does_not_cut_a_batch(backend, way) -> None:
    """Parts that nobody has taken yet are run as well; only then the plugin is cleaned up."""
    begun, ending = threading.Event(), threading.Event()
    events = []

    class Slow(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            if record.value == b"0":
                begun.set()
                assert ending.wait(LIMIT)
            return backend.PluginResult.skip()

        def cleanup(self):
            events.append("cleanup")

    manager = backend.PluginManager(config_of(2))
    manager.register_plugin("x", Slow)

    def call():
        result = manager.process_batch("x", [b"%d" % i for i in range(LARGE)])
        events.append(result.skipped_count)

    def end():
        assert begun.wait(LIMIT)
        threading.Timer(0.02, ending.set).start()
        manager.close() if way == "close" else manager.unregister_plugin("x")
        events.append("ended")

    run_threads(call, end)
    assert sorted(map(str, events)) == sorted([str(LARGE), "cleanup", "cleanup", "ended"])
    assert events.index("ended") > events.index("cleanup")
    manager.close()
    assert threads_named("dataflare-worker") == []


def test_plugins_that_end_each_other(backend, sharing) -> None:
    """Each in its own call: neither waits, and each is cleaned up behind its last record."""
    both = threading.Barrier(2)
    events = []

    class Ends(backend.DataFlarePlugin):
        def __init__(self, other):
            self.other = other

        def process(self, record):
            both.wait(LIMIT)
            manager.unregister_plugin(self.other)
            both.wait(LIMIT)
            events.append("processed")
            return backend.PluginResult.skip()

        def cleanup(self):
            events.append("cleanup")

    manager = sharing()
    manager.register_plugin("a", Ends("b"))
    manager.register_plugin("b", Ends("a"))
    record = backend.PluginRecord(b"x")
    run_threads(
        lambda: manager.process_record("a", record), lambda: manager.process_record("b", record)
    )
    assert sorted(events) == ["cleanup"] * 2 + ["processed"] * 2
    assert manager.list_plugins() == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_plugin_that_ends_its_thread_loses_that_part_alone(backend, sharing, kind) -> None:
    """Its records have an error each, are counted once, and the next batch is whole."""
    died = threading.Event()

    class Exits(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            worker = threading.current_thread().name.startswith("dataflare-worker")
            if worker and not died.is_set():
                died.set()
                raise kind
            assert died.wait(LIMIT)
            return backend.PluginResult.skip()

    manager = sharing(2, failure_recovery=FailureRecoveryConfig(circuit_breaker_threshold=1))
    manager.register_plugin("x", Exits)
    result = manager.process_batch("x", [b"%d" % i for i in range(LARGE)])
    assert (result.error_count, result.skipped_count) == (LARGE // 2, LARGE // 2)
    indices = [index for index, _ in result.errors]
    assert indices in (list(range(LARGE // 2)), list(range(LARGE // 2, LARGE)))
    assert {str(error) for _, error in result.errors} == {
        f"the worker thread died: {kind.__name__}"
    }
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.failed, metrics.batches) == (LARGE, LARGE // 2, 1)
    assert manager.process_batch("x", [b"a"] * LARGE).skipped_count == LARGE
    wait_until(lambda: manager.get_system_status().workers == 1)
    assert manager.get_plugin("x").get_state() is PluginState.READY


def test_a_worker_that_is_ended_from_outside(backend, sharing) -> None:
    """As if the plugin had ended it; its instance is free again."""
    idents, killed = [], threading.Event()

    class Spins(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            worker = threading.current_thread().name.startswith("dataflare-worker")
            if worker and not killed.is_set():
                idents.append(threading.get_ident())
                while not killed.is_set():
                    pass
                while record.value:  # until it strikes
                    pass
            elif not killed.is_set():
                wait_until(lambda: idents)
                kill = ctypes.pythonapi.PyThreadState_SetAsyncExc
                kill(ctypes.c_ulong(idents[0]), ctypes.py_object(SystemExit))
                killed.set()
            return backend.PluginResult.skip()

    manager = sharing(2, failure_recovery=FailureRecoveryConfig(circuit_breaker_threshold=1))
    manager.register_plugin("x", Spins)
    result = manager.process_batch("x", [b"%d" % i for i in range(LARGE)])
    assert result.error_count == LARGE // 2
    assert "died" in str(result.errors[0][1])
    for _ in range(3):
        assert manager.process_batch("x", [b"a"] * LARGE).skipped_count == LARGE
    assert manager.get_metrics("x").total_processed == 4 * LARGE


def test_an_interrupt_of_the_caller(backend, sharing) -> None:
    """It comes through, the batch counts as failed once, and the plugin is free again."""

    class Interrupted(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            if threading.current_thread() is caller and record.value == b"a":
                os.kill(os.getpid(), signal.SIGINT)
                threading.Event().wait(LIMIT)
            return backend.PluginResult.skip()

    caller = threading.current_thread()
    manager = sharing(2)
    manager.register_plugin("x", Interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            manager.process_batch("x", [b"a"] * LARGE)
    finally:
        signal.signal(signal.SIGINT, before)
    metrics = manager.get_metrics("x")
    assert (metrics.total_processed, metrics.failed, metrics.batches) == (LARGE, LARGE, 1)
    assert manager.process_batch("x", [b"b"] * LARGE).skipped_count == LARGE
    assert manager.get_system_status().plugins["x"].running == 0


def test_a_batch_with_a_failed_record_teaches_as_well(backend, sharing) -> None:
    """How long records take is known from it, and the next batch is shared out."""
    seen = set()

    class Waits(backend.DataFlarePlugin):
        thread_safe = True
        releases_gil = True

        def process(self, record):
            seen.add(threading.get_ident())
            time.sleep(0.001)
            if bytes(record.value) == b"bad":
                raise ValueError("as told")
            return backend.PluginResult.skip()

    manager = sharing(3)
    manager.register_plugin("x", Waits())
    for _ in range(3):
        manager.process_batch("x", [b"a"] * 40 + [b"bad"])
    assert len(seen) > 1
