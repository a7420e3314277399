"""Failure recovery: further attempts, the fallback and deadlines."""

import threading

import pytest
from helpers import LIMIT, conserved, run_threads

from dataflare.config import (
    BatchConfig,
    FailureRecoveryConfig,
    MemoryPoolConfig,
    PluginManagerConfig,
)
from dataflare.errors import (
    PluginError,
    PluginProcessingError,
    PluginTimeoutError,
)
from dataflare.types import PluginState

POOL = MemoryPoolConfig(max_large_buffers=2, max_huge_buffers=1)


# ---- further attempts


def test_records_of_a_batch_are_tried_again(recovering, flaky) -> None:
    """Only those that failed, as often as it takes, up to the limit; never one that worked."""
    manager, plugin = recovering(max_retries=3), flaky()
    manager.register_plugin("x", plugin)
    result = manager.process_batch("x", [b"s", b"s2", b"f1", b"s3", b"s4", b"sn", b"k1", b"k"])
    assert plugin.calls == {
        b"s": 1, b"s2": 3, b"f1": 2, b"s3": 4, b"s4": 4, b"sn": 1, b"k1": 2, b"k": 1,
    }  # fmt: skip
    assert result.output.to_pylist() == [b"s!", b"s2!", b"s3!", b"k1", b"k"]
    assert result.status.tolist() == [0, 0, 1, 0, 3, 3, 2, 2]
    assert [(i, str(error), error.code) for i, error in result.errors] == [
        (4, "failure 4", 4), (5, "ValueError: for good", None),
    ]  # fmt: skip
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.batches, metrics.retries) == (8, 1, 2 + 1 + 3 + 3 + 1)
    assert (metrics.successful, metrics.filtered, metrics.skipped, metrics.failed) == (3, 1, 2, 2)
    assert metrics.bytes_out == result.output.nbytes


def test_a_single_record_is_tried_again(backend, recovering, flaky) -> None:
    """The last error is raised; what worked in the end is a result."""
    manager, plugin = recovering(max_retries=2), flaky()
    manager.register_plugin("x", plugin)
    assert manager.process_record("x", backend.PluginRecord(b"s2")).data == b"s2!"
    assert manager.process_record("x", backend.PluginRecord(b"k1")).is_skip
    with pytest.raises(PluginError, match="failure 3"):
        manager.process_record("x", backend.PluginRecord(b"s9"))
    with pytest.raises(PluginProcessingError, match="for good"):
        manager.process_record("x", backend.PluginRecord(b"sn"))
    assert plugin.calls == {b"s2": 3, b"k1": 2, b"s9": 3, b"sn": 1}
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.retries, metrics.failed) == (4, 2 + 1 + 2, 2)
    assert (metrics.bytes_in, metrics.bytes_out) == (8, 3 + 2)


def test_without_retries_every_failure_is_final(recovering, flaky) -> None:
    """max_retries=0."""
    manager, plugin = recovering(max_retries=0), flaky()
    manager.register_plugin("x", plugin)
    assert manager.process_batch("x", [b"s1", b"s"]).error_count == 1
    assert conserved(manager).retries == 0


def test_retryable_errors_of_the_plugin(backend, recovering) -> None:
    """Its own list, also of a member of a chain, and as an error outcome."""
    seen = []

    class Connects(backend.DataFlarePlugin):
        retryable_errors = (ConnectionError,)

        def process(self, record):
            seen.append(bytes(record.value))
            if seen.count(record.value) < 3:
                raise ConnectionResetError
            return backend.PluginResult.skip()

    class Says(backend.DataFlarePlugin):
        retryable_errors = (PluginProcessingError,)

        def process(self, record):
            seen.append("says")
            if seen.count("says") < 2:
                return backend.PluginResult.error("not yet")
            return backend.PluginResult.skip()

    manager = recovering(max_retries=2)
    manager.register_plugin("x", Connects())
    manager.register_plugin("chain", backend.Chain(backend.Upper(), Connects()))
    manager.register_plugin("says", Says())
    assert manager.process_batch("x", [b"a", b"b"]).skipped_count == 2
    assert manager.process_batch("chain", [b"c"]).success_count == 1
    assert manager.process_batch("says", [b"d"]).skipped_count == 1
    assert (seen.count(b"C"), seen.count("says")) == (3, 2)


@pytest.mark.parametrize("wrong", [ValueError, [ValueError], (5,), "ValueError", (int,)])
def test_retryable_errors_must_be_exceptions(backend, recovering, wrong) -> None:
    """Said when the plugin is registered, not when its first record fails."""

    class Plugin(backend.DataFlarePlugin):
        retryable_errors = wrong

        def process(self, record):
            return backend.PluginResult.skip()

    manager = recovering()
    with pytest.raises(PluginError, match="must be a tuple of exception types"):
        manager.register_plugin("x", Plugin())
    assert manager.list_plugins() == []


def test_the_other_columns_survive_attempts_and_fallback(backend, recovering) -> None:
    """Keys, numbers, metadata, and metadata that a plugin gave, of every record its own."""
    calls = {}

    class Gives(backend.DataFlarePlugin):
        def process(self, record):
            number = record.offset
            calls[number] = calls.get(number, 0) + 1
            if number % 3 and calls[number] <= number % 3:
                raise PluginError("again", retryable=number % 3 == 1)
            return backend.PluginResult.success(record.value, {"by": "plugin", "of": number})

    class Helps(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.success(record.value, {"by": "fallback", **record.metadata})

    manager = recovering(circuit_breaker_threshold=1)
    manager.register_plugin("x", Gives(), fallback=Helps())
    batch = backend.RecordBatch.from_values(
        [b"v%d" % i for i in range(9)],
        [b"k%d" % i for i in range(9)],
        timestamps=range(9), partitions=range(9), offsets=range(9),
        metadata=[{"own": i} for i in range(9)],
    )  # fmt: skip
    output = manager.process_batch("x", batch).output
    for i, record in enumerate(output):
        assert (bytes(record.value), bytes(record.key)) == (b"v%d" % i, b"k%d" % i)
        assert (record.timestamp, record.partition, record.offset) == (i, i, i)
        given = {"by": "fallback", "own": i} if i % 3 == 2 else {"by": "plugin", "of": i}
        assert dict(record.metadata) == given
    assert len(output) == 9


def test_a_plugin_for_batches_is_tried_again_as_a_whole(backend, recovering) -> None:
    """What it raises is of every record; what it says of single ones is of those alone."""
    sizes = []

    class Whole(backend.BatchPlugin):
        def process_batch(self, records):
            sizes.append(len(records))
            if len(sizes) == 1:
                raise PluginError("down", retryable=True)
            skip, error = backend.PluginResult.skip(), PluginError("bad", retryable=True)
            return backend.BatchResult.from_results(
                records,
                [error if len(sizes) == 2 and i == 1 else skip for i in range(len(records))],
            )

    manager = recovering()
    manager.register_plugin("x", Whole())
    assert manager.process_batch("x", [b"a", b"b", b"c"]).skipped_count == 3
    assert sizes == [3, 3, 1]
    assert conserved(manager).retries == 4


def test_attempts_end_when_the_plugin_does(backend, recovering) -> None:
    """Unregistered while waiting between two: the record fails with its own error, at once."""
    failing = threading.Event()
    calls = []

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            calls.append("process")
            failing.set()
            raise PluginError("its own", retryable=True)

        def cleanup(self):
            calls.append("cleanup")

    manager = recovering(retry_interval=10_000, max_retry_interval=10_000)
    manager.register_plugin("x", Fails(), fallback=backend.Upper())
    results = []

    def end():
        assert failing.wait(LIMIT)
        manager.unregister_plugin("x")
        calls.append("unregistered")

    run_threads(lambda: results.append(manager.process_batch("x", [b"a", b"b"])), end)
    assert results[0].output.to_pylist() == [b"A", b"B"]
    assert calls == ["process"] * 2 + ["cleanup", "unregistered"]


def test_attempts_go_on_with_the_plugin_that_replaced_it(backend, recovering) -> None:
    """At once, however long it was to be waited."""
    failing = threading.Event()
    cleaned = []

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            failing.set()
            raise PluginError("old", retryable=True)

        def cleanup(self):
            cleaned.append(self)

    manager = recovering(retry_interval=10_000, max_retry_interval=10_000)
    manager.register_plugin("x", Fails())
    results = []

    def replace():
        assert failing.wait(LIMIT)
        manager.replace_plugin("x", backend.Upper())

    run_threads(
        lambda: results.append(manager.process_record("x", backend.PluginRecord(b"a")).data),
        replace,
    )
    assert (results, len(cleaned)) == ([b"A"], 1)
    assert conserved(manager).retries == 1


def test_a_plugin_disabled_meanwhile_is_not_tried_again(backend, recovering) -> None:
    """The record keeps the error it had."""

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            manager.disable_plugin("x")
            raise PluginError("its own", retryable=True)

    manager = recovering()
    manager.register_plugin("x", Fails())
    with pytest.raises(PluginError, match="its own"):
        manager.process_record("x", backend.PluginRecord(b"a"))
    manager.enable_plugin("x")
    (_, error), _ = manager.process_batch("x", [b"a", b"b"]).errors
    assert str(error) == "its own"
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.failed, metrics.retries) == (3, 3, 0)


def test_a_released_value_fails_its_record_alone(backend, recovering) -> None:
    """A plugin may release the view that it got, and fail: the record is counted all the same."""

    class Releases(backend.DataFlarePlugin):
        def process(self, record):
            record.value.release()
            raise PluginError("released", retryable=True)

    manager = recovering(max_retries=1)
    letters = []
    manager.register_plugin("x", Releases(), dead_letters=letters.append)
    with pytest.raises(PluginError):
        manager.process_record("x", backend.PluginRecord(bytearray(b"abc")))
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.bytes_in) == (1, 3)


@pytest.mark.parametrize("where", ["retry", "fallback", "sink", "probe", "first"])
@pytest.mark.parametrize("single", [True, False])
def test_an_interrupt_is_counted_once(backend, recovering, where, single) -> None:
    """Wherever it comes: the records have failed, it comes through, and nothing is left held."""
    state = {"calls": 0}

    class Fails(backend.DataFlarePlugin):
        def process(self, record):
            state["calls"] += 1
            if (
                where == "first"
                or (where == "retry" and state["calls"] > 1)
                or where == state.get("now")
            ):
                raise KeyboardInterrupt
            raise PluginError("fails", retryable=where == "retry")

    def interrupt(_):
        raise KeyboardInterrupt

    manager = recovering(
        circuit_breaker_minimum=1, circuit_breaker_recovery_time=0,
        circuit_breaker_threshold=0.5 if where == "probe" else 1,
    )  # fmt: skip
    fallback = backend.map_plugin(interrupt) if where == "fallback" else None
    sink = interrupt if where == "sink" else None
    plugin = Fails()
    manager.register_plugin("x", plugin, fallback=fallback, dead_letters=sink)
    before = 0
    if where == "probe":
        assert manager.process_batch("x", [b"a"]).error_count == 1
        state["now"], before = "probe", 1
    call, records = {
        True: (manager.process_record, backend.PluginRecord(b"a")),
        False: (manager.process_batch, [b"a"]),
    }[single]
    with pytest.raises(KeyboardInterrupt):
        call("x", records)
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.failed) == (1 + before, 1 + before)
    assert manager.get_system_status().plugins["x"].running == 0
    assert not backend.is_inside()
    manager.unregister_plugin("x")
    assert plugin.get_state() is PluginState.STOPPED


# ---- the fallback


def test_the_fallback_gets_what_failed(backend, recovering, flaky) -> None:
    """After the last attempt, and all while the circuit is open; it is counted as what it made."""
    manager, plugin, helped = recovering(circuit_breaker_recovery_time=1000), flaky(), []

    class Helps(backend.DataFlarePlugin):
        def process(self, record):
            helped.append(bytes(record.value))
            return backend.PluginResult.success(b"helped " + record.value)

    manager.register_plugin("x", plugin, fallback=Helps)
    result = manager.process_batch("x", [b"s", b"sn", b"s2", b"s9"])
    assert result.output.to_pylist() == [b"s!", b"helped sn", b"s2!", b"helped s9"]
    assert result.errors == []
    assert manager.process_record("x", backend.PluginRecord(b"sn")).data == b"helped sn"
    assert helped == [b"sn", b"s9", b"sn"]
    manager.process_batch("x", [b"sn"] * 20)
    assert plugin.get_state() is PluginState.ERROR
    helped.clear()
    assert manager.process_batch("x", [b"s"]).output.to_pylist() == [b"helped s"]
    assert manager.process_record("x", backend.PluginRecord(b"s")).data == b"helped s"
    assert helped == [b"s"] * 2
    metrics = conserved(manager)
    assert (metrics.failed, metrics.fallbacks, metrics.successful) == (0, 25, 27)


def test_a_fallback_that_fails_too(backend, recovering) -> None:
    """The error is the plugin's own, and the record has failed."""

    def broken(value):
        raise ValueError("plugin")

    def broken_too(value):
        raise LookupError("fallback")

    manager = recovering()
    fallback = backend.map_plugin(broken_too)
    manager.register_plugin("x", backend.map_plugin(broken), fallback=fallback)
    ((_, error),) = manager.process_batch("x", [b"a"]).errors
    assert str(error) == "ValueError: plugin"
    with pytest.raises(PluginProcessingError) as caught:
        manager.process_record("x", backend.PluginRecord(b"a"))
    assert str(caught.value) == "ValueError: plugin"
    assert any("fallback failed, too" in note for note in caught.value.__notes__)
    metrics = conserved(manager)
    assert (metrics.failed, metrics.fallbacks) == (2, 0)


def test_fallbacks_can_be_switched_off(backend, recovering, flaky) -> None:
    """enable_fallback=False."""
    manager = recovering(enable_fallback=False)
    manager.register_plugin("x", flaky(), fallback=backend.Upper())
    assert manager.process_batch("x", [b"sn"]).error_count == 1
    assert conserved(manager).fallbacks == 0


# ---- deadlines


def slow_plugins(backend):
    """A plugin of every kind that is run in Python; each takes a while at b'slow'."""

    def wait(value):
        if bytes(value) == b"slow":
            threading.Event().wait(0.05)
        return value

    class Slow(backend.DataFlarePlugin):
        def process(self, record):
            wait(record.value)
            return backend.PluginResult.skip()

    return {
        "map": backend.map_plugin(wait),
        "filter": backend.filter_plugin(wait),
        "class": Slow(),
        "chain": backend.Chain(Slow(), backend.Upper()),
    }


@pytest.mark.parametrize("kind", ["map", "filter", "class", "chain"])
@pytest.mark.parametrize("fast", [0, 300])
def test_a_batch_ends_at_its_deadline(backend, recovering, kind, fast) -> None:
    """Soon, even if it began fast: what was not begun has an error that says so, and no attempt."""
    letters = []
    manager = recovering(batch_timeout=0.3, circuit_breaker_threshold=1)
    manager.register_plugin("x", slow_plugins(backend)[kind], dead_letters=letters.append)
    result = manager.process_batch("x", [b"fast"] * fast + [b"slow"] * 500)
    done = len(result) - result.error_count
    assert fast <= done <= fast + 40
    assert [index for index, _ in result.errors] == list(range(done, fast + 500))
    assert {type(error) for _, error in result.errors} == {PluginTimeoutError}
    assert {str(e) for _, e in result.errors} == {
        "the batch reached its time limit before this record"
    }
    if kind != "chain":  # there the first member may have had the record
        assert {letter.attempts for letter in letters} == {0}
    assert conserved(manager).dead_lettered == result.error_count


def test_attempts_end_at_the_deadline(backend, recovering) -> None:
    """None is begun that would come after it."""

    class Fails(backend.DataFlarePlugin):
        calls = 0

        def process(self, record):
            Fails.calls += 1
            raise PluginError("again", retryable=True)

    manager = recovering(
        batch_timeout=0.5, retry_interval=10_000, max_retry_interval=10_000, max_retries=10
    )
    manager.register_plugin("x", Fails())
    ((_, error),) = manager.process_batch("x", [b"a"]).errors
    assert (str(error), Fails.calls) == ("again", 1)


@pytest.mark.parametrize("timeout", [1e-12, 1e-9, 1e12, float("inf")])
def test_any_deadline_is_one(backend, recovering, timeout) -> None:
    """Neither too short nor too long for a number of nanoseconds."""
    manager = recovering(batch_timeout=timeout)
    manager.register_plugin("x", backend.map_plugin(bytes.upper))
    result = manager.process_batch("x", [b"a"] * 10)
    assert (result.success_count == 0) == (timeout < 1)


def test_shared_parts_have_the_deadline_of_their_batch(backend) -> None:
    """Whoever takes them, and when."""

    class Slow(backend.DataFlarePlugin):
        releases_gil = True

        def process(self, record):
            threading.Event().wait(0.02)
            return backend.PluginResult.skip()

    recovery = FailureRecoveryConfig(batch_timeout=0.1, circuit_breaker_threshold=1)
    config = PluginManagerConfig(
        memory_pool_config=POOL, batch_config=BatchConfig(parallelism=3), failure_recovery=recovery
    )
    with backend.PluginManager(config) as manager:
        manager.register_plugin("x", Slow)
        result = manager.process_batch("x", [b"a"] * 6000)
        assert 0 < result.skipped_count < 300
        assert result.error_count + result.skipped_count == 6000
        assert manager.get_metrics("x").total_processed == 6000
