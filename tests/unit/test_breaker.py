"""The circuit breaker against a clock of its own, and when to try again."""

import math
import threading

import pytest
from helpers import LIMIT, run_threads
from hypothesis import given
from hypothesis import strategies as st

from dataflare.config import FailureRecoveryConfig
from dataflare.errors import PluginError, PluginProcessingError, PluginTimeoutError
from dataflare.types import CircuitState

CLOSED, OPEN, HALF_OPEN = CircuitState


class Clock:
    """Seconds, as they are set."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def circuit(backend):
    """A function that makes a breaker; what it counts, its clock and its changes are attributes."""

    def make(**fields):
        fields = {"circuit_breaker_minimum": 10, "circuit_breaker_window": 100, **fields}
        config = FailureRecoveryConfig(**fields)
        counters = backend.PluginCounters(config.circuit_breaker_window)
        changes, clock = [], Clock()
        breaker = backend.CircuitBreaker(config, counters, changes.append, clock)
        return breaker, counters, clock, changes

    return make


def count(breaker, counters, records, failed):
    """Let so many records come in, and the breaker look at it."""
    counters.observe(records, records - failed, 0, 0, failed, 0, 0, 0)
    breaker.check()


def test_it_opens_when_more_than_the_threshold_failed(circuit) -> None:
    """Not at it, and not before enough records came in."""
    breaker, counters, _, changes = circuit(circuit_breaker_threshold=0.5)
    count(breaker, counters, 9, 9)
    assert breaker.state is CLOSED
    count(breaker, counters, 9, 0)
    assert breaker.state is CLOSED
    count(breaker, counters, 1, 1)
    assert breaker.state is OPEN
    assert (changes, breaker.times_opened) == ([OPEN], 1)
    count(breaker, counters, 50, 50)
    assert (changes, breaker.times_opened) == ([OPEN], 1)


@pytest.mark.parametrize(("threshold", "opens"), [(0, True), (0.999, True), (1, False)])
def test_the_ends_of_the_threshold(circuit, threshold, opens) -> None:
    """With 0 one failure is enough, with 1 none is."""
    breaker, counters, _, _ = circuit(circuit_breaker_threshold=threshold)
    count(breaker, counters, 1000, 1 if threshold == 0 else 1000)
    assert (breaker.state is OPEN) is opens


def test_old_outcomes_slide_out_of_the_window(circuit) -> None:
    """What failed long ago does not count any more."""
    breaker, counters, _, _ = circuit(
        circuit_breaker_minimum=1000, circuit_breaker_window=1000, circuit_breaker_threshold=0.95
    )
    count(breaker, counters, 900, 900)
    for _ in range(200):
        count(breaker, counters, 10, 0)
    assert (counters.window_failed, breaker.state) == (0, CLOSED)
    assert counters.window_records >= 1000


def test_a_minimum_beyond_the_window_is_the_window(circuit) -> None:
    """Else the circuit could never open."""
    breaker, counters, _, _ = circuit(circuit_breaker_minimum=10_000, circuit_breaker_window=16)
    for _ in range(40):
        count(breaker, counters, 1, 1)
    assert breaker.state is OPEN


def test_what_a_fallback_saved_counts_as_failed(circuit) -> None:
    """The plugin behind the circuit did fail."""
    breaker, counters, _, _ = circuit()
    counters.observe(10, 10, 0, 0, 0, 0, 0, 0)
    counters.count_recovery(fallbacks=6)
    breaker.check()
    assert breaker.state is OPEN
    assert (counters.success, counters.failed) == (10, 0)


def test_one_probe_after_the_recovery_time(circuit) -> None:
    """Not before, and only one; if it works the circuit closes and begins anew."""
    breaker, counters, clock, changes = circuit(circuit_breaker_recovery_time=30)
    assert not breaker.try_probe()
    count(breaker, counters, 10, 10)
    clock.now += 29.75
    assert not breaker.try_probe()
    assert breaker.retry_after == 0.25
    clock.now += 0.25
    assert breaker.try_probe()
    assert breaker.state is HALF_OPEN
    assert not breaker.try_probe()
    breaker.probe_ended(True)
    assert (breaker.state, breaker.retry_after) == (CLOSED, 0.0)
    assert (counters.window_records, counters.window_failed) == (0, 0)
    assert changes == [OPEN, HALF_OPEN, CLOSED]
    count(breaker, counters, 9, 9)
    assert breaker.state is CLOSED


def test_a_probe_that_fails_opens_it_for_as_long_again(circuit) -> None:
    """From then on."""
    breaker, counters, clock, _ = circuit(circuit_breaker_recovery_time=30)
    count(breaker, counters, 10, 10)
    clock.now += 100
    assert breaker.try_probe()
    clock.now += 5
    breaker.probe_ended(False)
    assert (breaker.state, breaker.retry_after, breaker.times_opened) == (OPEN, 30.0, 2)
    assert not breaker.try_probe()


def test_a_probe_that_did_not_take_place_leaves_it_to_the_next(circuit) -> None:
    """The time is not begun anew."""
    breaker, counters, clock, _ = circuit()
    count(breaker, counters, 10, 10)
    clock.now += 100
    assert breaker.try_probe()
    breaker.probe_ended(None)
    assert (breaker.state, breaker.times_opened) == (OPEN, 1)
    assert breaker.try_probe()


def test_of_callers_at_once_one_probes(circuit) -> None:
    """The others are refused."""
    breaker, counters, clock, _ = circuit()
    for _ in range(50):
        count(breaker, counters, 10, 10)
        clock.now += 100
        barrier, probed = threading.Barrier(4), []

        def probe(barrier=barrier, probed=probed):
            barrier.wait(LIMIT)
            if breaker.try_probe():
                barrier.wait(LIMIT)
                probed.append(1)
                breaker.probe_ended(True)
            else:
                barrier.wait(LIMIT)

        run_threads(*[probe] * 4)
        assert (probed, breaker.state) == ([1], CLOSED)


@pytest.mark.parametrize("worked", [True, False, None])
def test_a_probe_of_what_was_replaced_says_nothing(circuit, worked) -> None:
    """The circuit of the plugin that is there now stays as it is."""
    breaker, counters, clock, _ = circuit()
    count(breaker, counters, 10, 10)
    clock.now += 100
    assert breaker.try_probe()
    breaker.reset()
    assert breaker.state is CLOSED
    count(breaker, counters, 5, 5)
    breaker.probe_ended(worked)
    assert (breaker.state, counters.window_records) == (CLOSED, 5)


def test_a_prober_that_a_fork_left_behind_is_replaced(circuit) -> None:
    """In the child its thread is gone; a prober that lives on goes on."""
    breaker, counters, clock, _ = circuit()
    count(breaker, counters, 10, 10)
    clock.now += 100
    run_threads(breaker.try_probe)
    assert breaker.state is HALF_OPEN
    breaker.after_fork()
    assert breaker.state is OPEN
    assert breaker.try_probe()
    breaker.after_fork()
    assert breaker.state is HALF_OPEN


# ---- when to try again


@given(
    attempt=st.integers(1, 2000),
    interval=st.floats(0, 1e6) | st.just(math.inf),
    most=st.floats(0, 1e6) | st.just(math.inf),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_the_wait_doubles_with_a_random_half(backend, attempt, interval, most, draw) -> None:
    """Within half and one and a half, at most the longest, and something a thread can wait for."""
    config = FailureRecoveryConfig(retry_interval=interval, max_retry_interval=most)
    wait = backend.retry_delay(attempt, config, lambda: draw)
    assert 0 <= wait <= min(most, threading.TIMEOUT_MAX)
    middle = interval * 2.0 ** min(attempt - 1, 60)
    assert wait <= 1.5 * middle
    assert wait >= min(0.5 * middle, most, threading.TIMEOUT_MAX)


def test_waits_differ(backend) -> None:
    """So that many callers do not come back at once."""
    config = FailureRecoveryConfig(retry_interval=1)
    assert len({backend.retry_delay(1, config) for _ in range(20)}) > 1


def test_what_is_retryable(backend) -> None:
    """The error or the exception behind it, by attribute or by type; anything odd is not."""

    class FlakyError(Exception):
        retryable = True

    class OddError(Exception):
        @property
        def retryable(self):
            raise RuntimeError("who knows")

    class Plugin(backend.DataFlarePlugin):
        retryable_errors = (ConnectionError, PluginTimeoutError)

    def wrapped(cause):
        error = PluginProcessingError("wrapped")
        error.__cause__ = cause
        return error

    plugin, other = Plugin(), backend.Upper()
    for error, of_plugin, of_other in (
        (PluginError("a"), False, False),
        (PluginError("a", retryable=True), True, True),
        (PluginTimeoutError("a"), True, False),
        (wrapped(ConnectionResetError()), True, False),
        (wrapped(FlakyError()), True, True),
        (wrapped(ValueError()), False, False),
        (wrapped(OddError()), False, False),
        (wrapped(PluginError("b", retryable=True)), True, True),
    ):
        assert backend.is_retryable(error, plugin) is of_plugin
        assert backend.is_retryable(error, other) is of_other
