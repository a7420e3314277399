"""What happens to records that fail: further attempts, the circuit breaker, dead letters."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dataflare._backend import (
    DataFlarePlugin,
    MemoryPool,
    PluginCounters,
    PluginRecord,
    PluginRunner,
)
from dataflare.config import FailureRecoveryConfig
from dataflare.errors import PluginError
from dataflare.types import CircuitState

__all__ = [
    "SHARED_SLOTS",
    "CircuitBreaker",
    "DeadLetter",
    "DeadLetterSink",
    "is_retryable",
    "retry_delay",
]

_logger = logging.getLogger("dataflare.recovery")

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


def retry_delay(
    attempt: int, config: FailureRecoveryConfig, draw: Callable[[], float] = random.random
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


@dataclass(frozen=True)
class DeadLetter:
    """A record that failed for good.

    Attributes
    ----------
    plugin : str
        The name under which the plugin is registered.
    record : PluginRecord
    index : int
        Position in its batch; 0 for a record that was processed alone.
    error : PluginError
    attempts : int
        How often the plugin was called for it; 0 if the circuit was open.
    """

    plugin: str
    record: PluginRecord
    index: int
    error: PluginError
    attempts: int

    def to_json(self) -> str:
        """All of it as a line of JSON, without the line end.

        Bytes that are not UTF-8 are in ``record_base64`` and ``key_base64``.

        Returns
        -------
        str
        """
        letter: dict[str, object] = {
            "plugin": self.plugin,
            "index": self.index,
            **as_text("record", bytes(self.record.value)),
        }
        if self.record.key is not None:
            letter |= as_text("key", bytes(self.record.key))
        for name in ("timestamp", "partition", "offset"):
            if getattr(self.record, name):
                letter[name] = getattr(self.record, name)
        if self.record.metadata:
            letter["metadata"] = {str(key): entry for key, entry in self.record.metadata.items()}
        letter |= {
            "failed_in": self.error.plugin,
            "error": self.error.message,
            "code": self.error.code,
            "attempts": self.attempts,
        }
        return json.dumps(letter, default=str)


def as_text(name: str, value: bytes) -> dict[str, object]:
    """Bytes as an entry of JSON: text where they are UTF-8, else base64."""
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


class _Sink(Protocol):
    def deliver(self, letter: DeadLetter) -> None: ...
    def close(self) -> None: ...


class _CallableSink:
    def __init__(self, function: Callable[[DeadLetter], object]) -> None:
        self._function = function

    def deliver(self, letter: DeadLetter) -> None:
        self._function(letter)

    def close(self) -> None:
        pass


class _FileSink:
    """A line of JSON for each letter, appended to a file.

    Each line is handed to the operating system at once and whole, so that neither a crash nor a
    fork can lose or double it, and lines of several processes do not mix.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`

    def deliver(self, letter: DeadLetter) -> None:
        line = letter.to_json().encode("utf-8", "backslashreplace") + b"\n"
        while line:
            line = line[self._file.write(line) :]

    def close(self) -> None:
        self._file.close()


class _PluginSink:
    """A plugin that gets the record, with what happened as metadata."""

    def __init__(self, plugin: DataFlarePlugin, pool: MemoryPool) -> None:
        self._runner = PluginRunner(
            (plugin,) * SHARED_SLOTS if plugin.thread_safe else (plugin,), pool
        )

    def deliver(self, letter: DeadLetter) -> None:
        record = letter.record
        story = {
            "dataflare.plugin": letter.plugin,
            "dataflare.index": letter.index,
            "dataflare.error": letter.error.message,
            "dataflare.attempts": letter.attempts,
        }
        self._runner.attempt_record(
            PluginRecord(
                record.value,
                key=record.key,
                metadata={**(record.metadata or {}), **story},
                timestamp=record.timestamp,
                partition=record.partition,
                offset=record.offset,
            )
        )

    def close(self) -> None:
        pass

    def after_fork(self) -> None:
        self._runner.after_fork()


class DeadLetterSink:
    """Where records go that failed for good.

    Parameters
    ----------
    target : callable, path, or DataFlarePlugin
        A callable gets each `DeadLetter`, from the thread whose record failed. A file gets a line
        of JSON for each. A plugin gets the record, with ``dataflare.plugin``, ``dataflare.index``,
        ``dataflare.error`` and ``dataflare.attempts`` in its metadata.
    pool : MemoryPool
        Where a plugin's output is written.

    Raises
    ------
    TypeError
        It is none of these.
    OSError
        The file cannot be written.
    """

    # No lock is held while the target is called: it may use the manager, and fail at a record.

    def __init__(self, target: object, pool: MemoryPool) -> None:
        self.plugin = target if isinstance(target, DataFlarePlugin) else None
        self._sink: _Sink
        if isinstance(target, DataFlarePlugin):
            self._sink = _PluginSink(target, pool)
        elif isinstance(target, str | os.PathLike):
            self._sink = _FileSink(target)
        elif callable(target):
            self._sink = _CallableSink(target)
        else:
            raise TypeError(
                f"dead letters go to a callable, a path or a plugin, not {type(target).__name__}"
            )

    def deliver(self, letter: DeadLetter) -> bool:
        """Hand a letter over.

        Returns
        -------
        bool
            Whether it was accepted; why it was not is in the log.
        """
        try:
            self._sink.deliver(letter)
        except Exception:
            _logger.exception("a dead letter of the plugin %r was not accepted", letter.plugin)
            return False
        return True

    def close(self) -> None:
        """No more letters will come."""
        self._sink.close()

    def after_fork(self) -> None:
        """In the child of a fork, where the calls of other threads are gone."""
        if isinstance(self._sink, _PluginSink):
            self._sink.after_fork()
