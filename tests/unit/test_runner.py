"""One plugin in service: its state, its switch, its end, its counters."""

import contextlib
import os
import signal
import threading

import pytest

from dataflare.errors import (
    PluginDisabledError,
    PluginProcessingError,
    RunnerStoppedError,
)
from dataflare.types import PluginState


@pytest.fixture
def make_runner(backend):
    """A function that puts a plugin in service."""
    with backend.MemoryPool() as pool:
        yield lambda plugin, *counters: backend.PluginRunner([plugin], pool, *counters)


def calls_of(backend, runner):
    """Both ways to use a runner."""
    batch = backend.RecordBatch.from_values([b"a"])
    return [lambda: runner.process_batch(batch), lambda: runner.process_record(batch[0])]


def test_a_stopped_runner_refuses_everything(backend, make_runner) -> None:
    """Also when it is disabled; what it counted stays, and stopping twice is fine."""
    runner = make_runner(backend.Upper())
    for call in calls_of(backend, runner):
        call()
    runner.enabled = False
    runner.stop()
    runner.stop()
    for call in calls_of(backend, runner):
        with pytest.raises(RunnerStoppedError) as caught:
            call()
        assert caught.value.plugin == "Upper"
    assert runner.counters.records == 2


def test_a_disabled_runner_refuses_and_can_be_enabled(backend, make_runner) -> None:
    """Nothing is counted meanwhile."""
    runner = make_runner(backend.Upper())
    assert runner.enabled
    runner.enabled = False
    for call in calls_of(backend, runner):
        with pytest.raises(PluginDisabledError):
            call()
    assert runner.counters.records == 0
    runner.enabled = True
    for call in calls_of(backend, runner):
        call()
    assert runner.counters.records == 2


def test_the_state_is_running_until_the_outermost_call_ends(backend, make_runner) -> None:
    """A call inside a call does not end it, whether it succeeds or fails."""
    states = []

    class Nested(backend.DataFlarePlugin):
        def process(self, record):
            states.append(self.get_state())
            if record.value == b"outer":
                for inner in (b"inner", b"fail"):
                    try:
                        runner.process_record(backend.PluginRecord(inner))
                    except PluginProcessingError:
                        states.append("failed")
                    states.append(self.get_state())
            if record.value == b"fail":
                raise ValueError("inner")
            return backend.PluginResult.skip()

    runner = make_runner(Nested())
    runner.process_record(backend.PluginRecord(b"outer"))
    running = PluginState.RUNNING
    assert states == [running, running, running, running, "failed", running]
    assert runner.plugin.get_state() is PluginState.READY
    assert (runner.counters.records, runner.counters.failed) == (3, 1)


def test_a_call_that_stops_its_own_runner_ends_well(backend, make_runner) -> None:
    """It does not wait for itself; the next call is refused."""

    class Quits(backend.DataFlarePlugin):
        def process(self, record):
            runner.stop()
            return backend.PluginResult.skip()

    runner = make_runner(Quits())
    first, second = calls_of(backend, runner)
    assert first().skipped_count == 1
    with pytest.raises(RunnerStoppedError):
        second()


def test_what_follows_a_stop_waits_for_the_call_that_asks_for_it(backend, make_runner) -> None:
    """Also when the call fails; without a call it follows at once."""
    events = []

    class Quits(backend.DataFlarePlugin):
        def process(self, record):
            runner.stop(lambda: events.append("stopped"))
            events.append("processed")
            raise ValueError("and fails")

    for call in range(2):
        runner = make_runner(Quits())
        with contextlib.suppress(PluginProcessingError):
            calls_of(backend, runner)[call]()
    assert events == ["processed", "stopped"] * 2
    make_runner(backend.Upper()).stop(lambda: events.append("at once"))
    assert events[-1] == "at once"


def test_a_plugin_that_releases_its_record_frees_the_runner(backend, make_runner) -> None:
    """The result is there, and the plugin is free for other threads."""

    class Releases(backend.DataFlarePlugin):
        def process(self, record):
            with record.value as view:
                assert len(view) == 3
            return backend.PluginResult.skip()

    runner = make_runner(Releases())
    assert runner.process_record(backend.PluginRecord(bytearray(b"abc"))).is_skip
    assert (runner.counters.bytes_in, runner.counters.bytes_out) == (3, 3)
    assert runner.plugin.get_state() is PluginState.READY
    stopping = threading.Thread(target=runner.stop, daemon=True)
    stopping.start()
    stopping.join(60)
    assert not stopping.is_alive()


def test_the_state_is_not_asked_of_the_plugin(backend, make_runner) -> None:
    """An author may override get_state, and it may fail."""

    class Broken(backend.DataFlarePlugin):
        def process(self, record):
            return backend.PluginResult.skip()

        def get_state(self):
            raise ValueError("no state")

    first, second = calls_of(backend, make_runner(Broken()))
    assert first().skipped_count == 1
    assert second().is_skip


@pytest.mark.parametrize("waiting", ["call", "stop"])
def test_a_signal_ends_the_wait_for_a_plugin(backend, make_runner, waiting) -> None:
    """What its handler raises comes through while another thread holds the plugin."""

    class Woken(BaseException):
        pass

    begun, woken = threading.Event(), threading.Event()

    def hold(value):
        begun.set()
        woken.wait(60)
        return value

    def wake(number, frame):
        if not woken.is_set():
            woken.set()
            raise Woken

    def send():
        while not woken.wait(0.05):
            os.kill(os.getpid(), signal.SIGUSR1)

    runner = make_runner(backend.map_plugin(hold))
    call, _ = calls_of(backend, runner)
    holder, sender = threading.Thread(target=call), threading.Thread(target=send)
    before = signal.signal(signal.SIGUSR1, wake)
    holder.start()
    try:
        assert begun.wait(60)
        with pytest.raises(Woken):  # noqa: PT012 - the signal may come as soon as it is sent
            sender.start()
            call() if waiting == "call" else runner.stop()
    finally:
        woken.set()
        holder.join()
        sender.join()
        signal.signal(signal.SIGUSR1, before)
    assert runner.counters.records == 1


def test_stopping_waits_for_the_call_that_is_running(backend, make_runner) -> None:
    """The record is processed first."""
    started, release, events = threading.Event(), threading.Event(), []

    class Slow(backend.DataFlarePlugin):
        def process(self, record):
            started.set()
            assert release.wait(60)
            events.append("processed")
            return backend.PluginResult.skip()

    def stop():
        runner.stop()
        events.append("stopped")

    runner = make_runner(Slow())
    call, _ = calls_of(backend, runner)
    threads = [threading.Thread(target=call), threading.Thread(target=stop)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    release.set()
    for thread in threads:
        thread.join(60)
    assert events == ["processed", "stopped"]


def test_counters_may_be_those_of_another(backend, make_runner) -> None:
    """They go on counting; the state is that of each plugin."""
    first = make_runner(backend.Upper())
    second = make_runner(backend.Lower(), first.counters)
    assert second.counters is first.counters
    for call in (*calls_of(backend, first), *calls_of(backend, second)):
        call()
    assert (first.counters.records, first.counters.batches, first.counters.bytes_out) == (4, 4, 4)


def test_a_runner_takes_plugins_and_records_alone(backend, make_runner) -> None:
    """Anything else is refused before it is counted."""
    runner = make_runner(backend.Upper())
    for wrong in (None, b"value", [b"value"]):
        with pytest.raises(TypeError):
            runner.process_record(wrong)
        with pytest.raises(TypeError):
            runner.process_batch(wrong)
    assert runner.counters.batches == 0


@pytest.fixture
def supervised(backend):
    """A runner that shares batches, and what it gave to its supervisor."""
    seen = []

    class Supervisor:
        def large_batch(self, runner, batch, deadline):
            seen.append(len(batch))
            return runner.attempt_batch(batch, deadline, True)

    with backend.MemoryPool() as pool:
        runner = backend.PluginRunner([backend.Upper()] * 2, pool, None, Supervisor())
        runner.shares = True
        yield runner, seen


@pytest.mark.parametrize(
    ("records", "seconds", "large"),
    [(1000, 1e-4, 2000), (16, 0.001, 3), (1, 1.0, 2), (1000, 0.0, 2 * 10**8), (5, 1e-5, 4096)],
)
def test_a_batch_is_large_if_it_takes_long_enough(
    backend, supervised, records, seconds, large
) -> None:
    """A fifth of a millisecond, by what was measured last; a few records say little."""
    runner, seen = supervised
    for size in (large - 1, large):
        if size > 10**6:
            continue
        runner.shares = True  # as if nothing was measured
        runner.learn(records, seconds)
        runner.process_batch(backend.RecordBatch.from_values([b"a"] * size))
    assert seen == [large] * (large <= 10**6)


def test_nothing_is_large_unless_it_is_to_be_shared(backend, supervised) -> None:
    """Nor inside a call of a plugin."""
    runner, seen = supervised
    batch = backend.RecordBatch.from_values([b"a"] * 5000)
    outer = backend.PluginRunner(
        [backend.map_plugin(lambda _: runner.process_batch(batch) and b"")], backend.MemoryPool()
    )
    outer.process_batch(batch[:1])
    runner.shares = False
    runner.process_batch(batch)
    assert seen == []
    assert not backend.is_inside()


def test_the_state_after_a_call_is_that_of_the_circuit(backend, make_runner) -> None:
    """ERROR while it is open, also for calls that began before."""

    class Trips(backend.DataFlarePlugin):
        def process(self, record):
            runner.tripped = not runner.tripped
            return backend.PluginResult.skip()

    runner = make_runner(Trips())
    for state in (PluginState.ERROR, PluginState.READY):
        calls_of(backend, runner)[0]()
        assert runner.plugin.get_state() is state
