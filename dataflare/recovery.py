"""What happens to records that fail: further attempts, the circuit breaker, dead letters."""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from dataflare._backend import DataFlarePlugin, PluginCounters, PluginRecord
from dataflare.config import FailureRecoveryConfig
from dataflare.errors import PluginError
from dataflare.types import CircuitState

__all__ = ["CircuitBreaker", "DeadLetter", "DeadLetterSink", "is_retryable", "retry_delay"]

_logger = logging.getLogger("dataflare.recovery")


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
    return any(
        getattr(each, "retryable", False) or isinstance(each, plugin.retryable_errors)
        for each in raised
    )


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
    return min(wait * (0.5 + draw()), config.max_retry_interval)


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

    # Invariant: `_opened` is when the circuit last opened; nobody but the prober leaves HALF_OPEN.

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
        self._lock = threading.Lock()
        self._state = CircuitState.CLOSED
        self._opened = 0.0
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
                and records >= self._config.circuit_breaker_minimum
                and self._counters.window_failed > self._config.circuit_breaker_threshold * records
            ):
                self._open()

    def try_probe(self) -> bool:
        """Whether the caller is the one to probe; it then owes `probe_ended`."""
        with self._lock:
            if self._state is not CircuitState.OPEN or self.retry_after > 0:
                return False
            self._change(CircuitState.HALF_OPEN)
            return True

    def probe_ended(self, worked: bool) -> None:
        """Close the circuit, or open it again."""
        with self._lock:
            if worked:
                self._close()
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
        """In the child of a fork, where a lock may be held by none."""
        self._lock = threading.Lock()


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
            letter["metadata"] = dict(self.record.metadata)
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
    def flush(self) -> None: ...
    def close(self) -> None: ...


class _CallableSink:
    def __init__(self, function: Callable[[DeadLetter], object]) -> None:
        self._function = function

    def deliver(self, letter: DeadLetter) -> None:
        self._function(letter)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class _FileSink:
    """A line of JSON for each letter, appended to a file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`

    def deliver(self, letter: DeadLetter) -> None:
        self._file.write(letter.to_json() + "\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _PluginSink:
    """A plugin that gets the record, with what happened as metadata."""

    def __init__(self, plugin: DataFlarePlugin) -> None:
        self._plugin = plugin

    def deliver(self, letter: DeadLetter) -> None:
        record = letter.record
        story = {
            "dataflare.plugin": letter.plugin,
            "dataflare.index": letter.index,
            "dataflare.error": letter.error.message,
            "dataflare.attempts": letter.attempts,
        }
        result = self._plugin.process(
            PluginRecord(
                record.value,
                key=record.key,
                metadata={**(record.metadata or {}), **story},
                timestamp=record.timestamp,
                partition=record.partition,
                offset=record.offset,
            )
        )
        if result.is_error:
            raise PluginError(str(result.message), code=result.code)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class DeadLetterSink:
    """Where records go that failed for good.

    Parameters
    ----------
    target : callable, path, or DataFlarePlugin
        A callable gets each `DeadLetter`. A file gets a line of JSON for each. A plugin gets the
        record, with ``dataflare.plugin``, ``dataflare.index``, ``dataflare.error`` and
        ``dataflare.attempts`` in its metadata.

    Raises
    ------
    TypeError
        It is none of these.
    OSError
        The file cannot be written.
    """

    def __init__(self, target: object) -> None:
        self.plugin = target if isinstance(target, DataFlarePlugin) else None
        self._lock = threading.RLock()  # what it calls may fail at a record of its own
        self._sink: _Sink
        if isinstance(target, DataFlarePlugin):
            self._sink = _PluginSink(target)
        elif isinstance(target, str | os.PathLike):
            self._sink = _FileSink(target)
        elif callable(target):
            self._sink = _CallableSink(target)
        else:
            raise TypeError(
                f"dead letters go to a callable, a path or a plugin, not {type(target).__name__}"
            )

    def deliver(self, letters: Iterable[DeadLetter]) -> int:
        """Hand letters over, one by one.

        Returns
        -------
        int
            How many were accepted; why others were not is in the log.
        """
        accepted = 0
        with self._lock:
            for letter in letters:
                try:
                    self._sink.deliver(letter)
                except Exception:
                    _logger.exception(
                        "a dead letter of the plugin %r was not accepted", letter.plugin
                    )
                else:
                    accepted += 1
            try:
                self._sink.flush()
            except OSError:
                _logger.exception("dead letters were not written")
                return 0
        return accepted

    def close(self) -> None:
        """No more letters will come."""
        with self._lock:
            self._sink.close()

    def after_fork(self) -> None:
        """In the child of a fork, where a lock may be held by none."""
        self._lock = threading.RLock()
