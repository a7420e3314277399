"""The circuit of a plugin: when it is called, and when not."""

import threading

import pytest
from helpers import LIMIT, conserved, run_threads

from dataflare.errors import (
    CircuitOpenError,
    PluginDisabledError,
    PluginProcessingError,
)
from dataflare.types import CircuitState, PluginState


@pytest.fixture
def switch(backend):
    """A class of plugins that fail while they are told to."""

    class Switch(backend.DataFlarePlugin):
        broken = True
        calls = 0

        def process(self, record):
            self.calls += 1
            if self.broken:
                raise ValueError("broken")
            return backend.PluginResult.success(b"ok " + record.value)

    return Switch


class Clock:
    """Seconds, as they are set."""

    now = 0.0

    def __call__(self):
        return self.now


def with_clock(manager, name="x"):
    """Let the circuit of a plugin go by a clock of the test's."""
    breaker = manager._services[name].breaker
    breaker._clock = Clock()
    return breaker._clock


def test_the_circuit_opens_and_closes(backend, recovering, switch) -> None:
    """While it is open the plugin is not called, and its state is ERROR; a probe ends that."""
    manager, plugin = recovering(circuit_breaker_recovery_time=30), switch()
    manager.register_plugin("x", plugin)
    clock = with_clock(manager)
    manager.process_batch("x", [b"a"] * 20)
    status = manager.get_system_status().plugins["x"]
    assert (status.circuit, status.times_opened) == (CircuitState.OPEN, 1)
    assert plugin.get_state() is PluginState.ERROR
    result = manager.process_batch("x", [b"a", b"b"])
    assert [type(error) for _, error in result.errors] == [CircuitOpenError] * 2
    assert "circuit of the plugin 'x' is open" in str(result.errors[0][1])
    with pytest.raises(CircuitOpenError, match="tried again in 30 s"):
        manager.process_record("x", backend.PluginRecord(b"a"))
    assert plugin.calls == 20
    clock.now += 31
    with pytest.raises(PluginProcessingError, match="broken"):
        manager.process_record("x", backend.PluginRecord(b"a"))
    assert (plugin.calls, plugin.get_state()) == (21, PluginState.ERROR)
    clock.now += 31
    plugin.broken = False
    assert manager.process_record("x", backend.PluginRecord(b"a")).data == b"ok a"
    assert plugin.get_state() is PluginState.READY
    assert manager.process_batch("x", [b"a"] * 5).success_count == 5
    status = manager.get_system_status().plugins["x"]
    assert (status.circuit, status.times_opened) == (CircuitState.CLOSED, 2)
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.failed) == (20 + 2 + 1 + 1 + 1 + 5, 24)


@pytest.mark.parametrize("works", [True, False])
def test_a_batch_probes_with_its_first_record(recovering, switch, works) -> None:
    """If it fails, no other is tried; dead letters have the place in the whole batch."""
    letters = []
    manager, plugin = recovering(circuit_breaker_recovery_time=0), switch()
    manager.register_plugin("x", plugin, dead_letters=letters.append)
    manager.process_batch("x", [b"a"] * 20)
    letters.clear()
    plugin.calls, plugin.broken = 0, not works
    values = [b"%d" % i for i in range(3000)]
    result = manager.process_batch("x", values)
    if works:
        assert result.output.to_pylist() == [b"ok " + value for value in values]
    else:
        assert plugin.calls == 1
        assert [index for index, _ in result.errors] == list(range(3000))
        assert [letter.index for letter in letters] == list(range(3000))
        assert [letter.attempts for letter in letters] == [1] + [0] * 2999
        assert type(letters[1].error) is CircuitOpenError
        assert [bytes(letter.record.value) for letter in letters] == values
    metrics = conserved(manager)
    assert (metrics.total_processed, metrics.batches) == (3020, 2)


def test_the_rest_of_a_batch_that_probed_is_tried_again(backend, recovering, flaky) -> None:
    """As any other batch, and counted with it."""
    manager, plugin = recovering(circuit_breaker_recovery_time=0), flaky()
    manager.register_plugin("x", plugin)
    manager.process_batch("x", [b"sn"] * 20)
    assert plugin.get_state() is PluginState.ERROR
    result = manager.process_batch("x", [b"s", b"s2", b"fn", b"k1"])
    assert result.status.tolist() == [0, 0, 3, 2]
    assert conserved(manager).retries == 3


def test_of_callers_at_once_one_probes(backend, recovering) -> None:
    """The others are refused, or come when the circuit is closed."""
    inside, most, broken = [], [], [True]

    class Counts(backend.DataFlarePlugin):
        thread_safe = True

        def process(self, record):
            if broken[0]:
                raise ValueError("broken")
            if record.value == b"probe":
                inside.append(1)
                most.append(len(inside))
                threading.Event().wait(0.01)
                inside.pop()
            return backend.PluginResult.skip()

    manager = recovering(circuit_breaker_recovery_time=0)
    for _ in range(10):
        broken[0] = True
        manager.register_plugin("x", Counts())
        manager.process_batch("x", [b"a"] * 20)
        broken[0] = False
        barrier = threading.Barrier(4)
        refused = []

        def call(barrier=barrier, refused=refused):
            barrier.wait(LIMIT)
            try:
                manager.process_record("x", backend.PluginRecord(b"probe"))
            except CircuitOpenError:
                refused.append(1)

        run_threads(*[call] * 4)
        metrics = conserved(manager)
        assert (metrics.total_processed, metrics.failed) == (24, 20 + len(refused))
        manager.unregister_plugin("x")


def test_a_disabled_plugin_is_disabled_whatever_its_circuit(backend, recovering, switch) -> None:
    """It says so, and nothing is counted."""
    manager = recovering(circuit_breaker_recovery_time=0)
    manager.register_plugin("x", switch())
    manager.process_batch("x", [b"a"] * 20)
    manager.disable_plugin("x")
    with pytest.raises(PluginDisabledError):
        manager.process_batch("x", [b"a"])
    with pytest.raises(PluginDisabledError):
        manager.process_record("x", backend.PluginRecord(b"a"))
    assert conserved(manager).total_processed == 20


def test_a_replaced_plugin_has_a_closed_circuit(recovering, switch) -> None:
    """It did not fail yet."""
    manager = recovering(circuit_breaker_recovery_time=1000)
    manager.register_plugin("x", switch())
    manager.process_batch("x", [b"a"] * 20)
    good = switch()
    good.broken = False
    manager.replace_plugin("x", good)
    assert manager.process_batch("x", [b"a"]).success_count == 1
    assert good.get_state() is PluginState.READY
