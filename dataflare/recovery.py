"""What happens to records that fail: further attempts, and the circuit breaker."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from dataflare._backend import DataFlarePlugin, PluginCounters
from dataflare.config import FailureRecoveryConfig
from dataflare.errors import PluginError
from dataflare.types import CircuitState

__all__ = [
    "SHARED_SLOTS",
    "CircuitBreaker",
    "is_retryable",
    "retry_delay",
]

SHARED_SLOTS = 32
"""Calls that run a thread-safe instance at the same time, at most."""


def is_retryable(error: PluginError, plugin: DataFlarePlugin) -> bool:
    """Whether an error is worth another attempt.

    It is if it, or the exception behind it, has a true attribute ``retryable`` or is of a type in
    the plugin's ``retryable_errors``.

    Parameters
    ----------
    error : PluginError
    plugin : DataFlarePlugin
    """
    raised = [error] if error.__cause__ is None else [error, error.__cause__]
    try:
        return any(
            getattr(each, "retryable", False) or isinstance(each, plugin.retryable_errors)
            for each in raised
        )
    except Exception:  # an author's property: what cannot say that it is retryable is not
        return False


def _uniform() -> float:
    """A random number in [0, 1), as `random.SystemRandom` draws it.

    That module takes as long to import as a tenth of this package, for one number in a failure.
    """
    return (int.from_bytes(os.urandom(7)) >> 3) * 2.0**-53


def retry_delay(
    attempt: int, config: FailureRecoveryConfig, draw: Callable[[], float] = _uniform
) -> float:
    """Seconds to wait after a failed attempt.

    Exponential backoff with half of it random, so that many callers do not come back at once
    ("equal jitter": M. Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015).

    Parameters
    ----------
    attempt : int
        1 after the first one.
    config : FailureRecoveryConfig
    draw : callable
        Uniform in [0, 1).

    Returns
    -------
    float
        Between half and one and a half times ``retry_interval * 2 ** (attempt - 1)``, at most
        ``max_retry_interval``.
    """
    wait = config.retry_interval * 2.0 ** min(attempt - 1, 60)
    return min(wait * (0.5 + draw()), config.max_retry_interval, threading.TIMEOUT_MAX)


class CircuitBreaker:
    """Stops the calls of a plugin that fails too often, and finds out when it works again.

    Closed until more than ``circuit_breaker_threshold`` of the latest records failed; then open.
    That is looked at when a record fails: a call that worked opens no circuit, even if it brings
    the window to its minimum or pushes older successes out of it.
    After ``circuit_breaker_recovery_time`` the next caller gets to probe it (half open): the
    circuit closes if that one record succeeds, and is open as long again if it fails. The pattern
    is M. Nygard's (Release It!, 2007).

    Parameters
    ----------
    config : FailureRecoveryConfig
    counters : PluginCounters
        Whose window of outcomes says how many failed.
    on_change : callable
        Called with the new state, the lock held.
    clock : callable
        Seconds, monotonic.
    """

    # Invariants: `_opened` is when the circuit last opened; while it is HALF_OPEN, `_prober` is the
    # thread that probes, and nobody but it and `reset` changes that.

    def __init__(
        self,
        config: FailureRecoveryConfig,
        counters: PluginCounters,
        on_change: Callable[[CircuitState], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._counters = counters
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.RLock()  # a signal's handler may fail, too
        self._state = CircuitState.CLOSED
        self._opened = 0.0
        self._prober = 0
        self._minimum = min(config.circuit_breaker_minimum, config.circuit_breaker_window)
        self.times_opened = 0

    @property
    def state(self) -> CircuitState:
        """CircuitState: Now."""
        return self._state

    @property
    def retry_after(self) -> float:
        """float: Seconds until a probe is allowed; 0.0 unless the circuit is open."""
        if self._state is not CircuitState.OPEN:
            return 0.0
        elapsed = self._clock() - self._opened
        return max(self._config.circuit_breaker_recovery_time - elapsed, 0.0)

    def check(self) -> None:
        """Open the circuit if too many of the latest records failed."""
        with self._lock:
            records = self._counters.window_records
            if (
                self._state is CircuitState.CLOSED
                and records >= self._minimum
                and self._counters.window_failed > self._config.circuit_breaker_threshold * records
            ):
                self._open()

    def try_probe(self) -> bool:
        """Whether the caller is the one to probe; it then owes `probe_ended`."""
        with self._lock:
            if self._state is not CircuitState.OPEN or self.retry_after > 0:
                return False
            self._prober = threading.get_ident()
            self._change(CircuitState.HALF_OPEN)
            return True

    def probe_ended(self, worked: bool | None) -> None:
        """Close the circuit, or open it again.

        Parameters
        ----------
        worked : bool or None
            None if the plugin was not called after all: then the next caller may probe it.
        """
        with self._lock:
            if self._state is not CircuitState.HALF_OPEN or self._prober != threading.get_ident():
                return  # it was reset meanwhile: what was probed is not what is behind it now
            if worked:
                self._close()
            elif worked is None:
                self._change(CircuitState.OPEN)
            else:
                self._open()

    def reset(self) -> None:
        """Close the circuit: there is another plugin behind it."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        self._opened = self._clock()
        self.times_opened += 1
        self._change(CircuitState.OPEN)

    def _close(self) -> None:
        self._counters.reset_window()
        self._change(CircuitState.CLOSED)

    def _change(self, state: CircuitState) -> None:
        self._state = state
        self._on_change(state)

    def after_fork(self) -> None:
        """In the child of a fork, where a lock may be held by none, and the prober gone."""
        self._lock = threading.RLock()
        if self._state is CircuitState.HALF_OPEN and self._prober != threading.get_ident():
            self._change(CircuitState.OPEN)
