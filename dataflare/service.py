"""A plugin in service under a name: what its runner does not decide itself.

A service is what stays when a plugin is replaced: the counters, the circuit breaker, the fallback
and the sink of dead letters. Its runner calls it for everything that is not plain success.

Counting
--------
A record is counted once, with what became of it in the end. A batch that needs no help is counted
by the runner; any other here, after the last attempt and when its dead letters are delivered, so
that no count ever falls. Retries and fallbacks are counted apart.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from dataflare._backend import (
    BatchResult,
    Chain,
    DataFlarePlugin,
    MemoryPool,
    PluginCounters,
    PluginRecord,
    PluginResult,
    PluginRunner,
    RecordBatch,
    plugin_name,
    set_state,
)
from dataflare._events import Event
from dataflare.config import FailureRecoveryConfig
from dataflare.errors import (
    TOO_LATE,
    CircuitOpenError,
    PluginError,
    PluginProcessingError,
    PluginTimeoutError,
    sentence_of,
)
from dataflare.recovery import SHARED_SLOTS, CircuitBreaker, is_retryable, retry_delay
from dataflare.types import CircuitState, PluginState
from dataflare.workers import Workers, has_gil

if TYPE_CHECKING:
    from dataflare.dead_letters import DeadLetterSink

__all__ = ["PluginService"]

_logger = logging.getLogger("dataflare.recovery")
_T = TypeVar("_T")

LONGEST_TIMEOUT = 1 << 62
"""Nanoseconds; a deadline so far away still is a number of 64 bits."""


class PluginService:
    """A plugin in service.

    Parameters
    ----------
    name : str
    plugins : sequence of DataFlarePlugin
        Initialised instances; one more than once, if several threads may run it.
    pool : MemoryPool
    config : FailureRecoveryConfig
    workers : Workers or None
        What large batches are shared out to; None to leave every batch to its caller.
    fallback : DataFlarePlugin, optional
        Gets what the plugin failed at. Initialised.
    dead_letters : DeadLetterSink, optional
        Gets what failed for good.
    """

    # Invariants: `runner` is the one that takes calls; whoever replaces it stops the old one
    # afterwards, and it is in `_former` until its last call has ended. What is read here without a
    # lock is replaced as a whole.

    def __init__(
        self,
        name: str,
        plugins: Sequence[DataFlarePlugin],
        pool: MemoryPool,
        config: FailureRecoveryConfig,
        workers: Workers | None,
        fallback: DataFlarePlugin | None = None,
        dead_letters: DeadLetterSink | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.fallback = fallback
        self.dead_letters = dead_letters
        self.error_kinds: dict[str, int] = {}
        self.counters = PluginCounters(config.circuit_breaker_window)
        self.breaker = CircuitBreaker(config, self.counters, self._circuit_changed)
        self._pool = pool
        self._workers = workers
        self._ending = False
        self._wake = Event()  # set when waiting between attempts is of no use any more
        self._former: list[PluginRunner] = []
        self._lock = threading.RLock()
        self._fallback_runner = (
            None
            if fallback is None
            else PluginRunner(
                (fallback,) * SHARED_SLOTS if fallback.thread_safe else (fallback,), pool
            )
        )
        self.runner = self.make_runner(plugins)

    def make_runner(self, plugins: Sequence[DataFlarePlugin]) -> PluginRunner:
        """What runs these instances, for this service or in the place of what it has."""
        runner = PluginRunner(plugins, self._pool, self.counters, self)
        if self.config.batch_timeout != float("inf"):
            timeout = min(self.config.batch_timeout * 1e9, LONGEST_TIMEOUT)
            runner.timeout_ns = max(int(timeout), 1)
        runner.shares = (
            self._workers is not None
            and len(runner.plugins) > 1
            and (runner.plugin.releases_gil or not has_gil())
        )
        return runner

    @property
    def instances(self) -> list[DataFlarePlugin]:
        """list of DataFlarePlugin: The instances, each once."""
        return each_once(self.runner.plugins)

    @property
    def helpers(self) -> list[DataFlarePlugin]:
        """list of DataFlarePlugin: The fallback, and the plugin that gets dead letters."""
        sink = self.dead_letters
        found = (self.fallback, None if sink is None else sink.plugin)
        return [plugin for plugin in found if plugin is not None]

    def replace(self, new: PluginRunner) -> PluginRunner:
        """Let another runner take the calls from now on.

        Returns
        -------
        PluginRunner
            The runner before; `retire` must follow.
        """
        with self._lock:
            new.enabled = self.runner.enabled
            old, self.runner = self.runner, new
            self._former.append(old)
            self.breaker.reset()
            wake, self._wake = self._wake, Event()
            wake.set()  # the next attempt is at another plugin
        return old

    def retire(self, old: PluginRunner, at_end: Callable[[], object]) -> None:
        """Stop a runner that was replaced."""

        def ended() -> None:
            with self._lock:
                self._former.remove(old)
            at_end()

        old.stop(ended)

    def warn(self) -> None:
        """Wait no more between attempts: the end is near."""
        with self._lock:
            self._ending = True
            self._wake.set()

    def end(self, at_end: Callable[[], object]) -> None:
        """Take no more calls; `at_end` is called when none is running any more."""
        self.warn()
        with self._lock:
            runners = [*self._former, self.runner]
        left = len(runners)

        def one_ended() -> None:
            nonlocal left
            with self._lock:
                left -= 1
                last = left == 0
            if last:
                at_end()

        for runner in runners:
            runner.stop(one_ended)

    def exclusive_times(self) -> list[tuple[str, float]]:
        """Seconds that batches spent in each plugin alone: the members of a chain, or it itself."""
        times: list[tuple[str, float]] = []
        for plugin in self.instances:
            if not isinstance(plugin, Chain):
                return [(plugin_name(plugin), self.counters.busy_ns / 1e9)]
            for place, (name, elapsed) in enumerate(plugin.exclusive_times()):
                if place == len(times):
                    times.append((name, 0.0))
                times[place] = (times[place][0], times[place][1] + elapsed)
        return times

    # What the runner asks

    def record_failed(
        self,
        runner: PluginRunner,
        record: PluginRecord,
        error: PluginError,
        size: int,
        elapsed_ns: int,
    ) -> PluginResult:
        """Try again, let the fallback have it, or raise for good; counted here."""
        result = None
        attempts = 1
        with self._counted_if_interrupted(1, size):
            while result is None and self._may_retry(runner, error, attempts):
                began = time.monotonic_ns()
                outcome, runner = self._current(lambda runner: runner.attempt_record(record))
                if outcome is None:  # stopped or disabled meanwhile: it stays as it is
                    break
                attempts += 1
                self.counters.count_recovery(retries=1)
                elapsed_ns += time.monotonic_ns() - began
                if isinstance(outcome, PluginError):
                    error = outcome
                else:
                    result = outcome
        return self._settle(record, result, error, attempts, size, elapsed_ns)

    def record_refused(self, record: PluginRecord, size: int) -> PluginResult:
        """The circuit is open: probe it if it is time, else let the fallback have the record."""
        if not self.breaker.try_probe():
            return self._settle(record, None, self._open_error(), 0, size, 0)
        began = time.monotonic_ns()
        worked: bool | None = False
        try:
            with self._counted_if_interrupted(1, size):
                outcome, runner = self._current(lambda runner: runner.attempt_record(record))
            worked = None if outcome is None else not isinstance(outcome, PluginError)
        finally:
            self.breaker.probe_ended(worked)
        if outcome is None:
            runner.refuse()
        elapsed_ns = time.monotonic_ns() - began
        if isinstance(outcome, PluginError):
            return self._settle(record, None, outcome, 1, size, elapsed_ns)
        return self._settle(record, outcome, None, 1, size, elapsed_ns)

    def batch_failed(
        self, runner: PluginRunner, batch: RecordBatch, result: BatchResult, deadline: int
    ) -> BatchResult:
        """Try what failed again, let the fallback have it, bury the rest; counted here."""
        attempts = {index: int(not _is_too_late(error)) for index, error in result.errors}
        return self._recover(runner, batch, result, attempts, deadline)

    def batch_refused(self, runner: PluginRunner, batch: RecordBatch, deadline: int) -> BatchResult:
        """The circuit is open: probe it with the first record if it is time."""
        if not len(batch) or not self.breaker.try_probe():
            return self._conclude(batch, BatchResult.failed(batch, self._open_error()), {})
        parts = []
        worked = False
        try:
            with self._counted_if_interrupted(len(batch), batch.nbytes):
                probe = self._attempt(runner, batch[:1], deadline)
                parts.append(probe)
                worked = not probe.error_count
        finally:
            self.breaker.probe_ended(worked)
        rest = batch[1:]
        if len(rest):
            with self._counted_if_interrupted(len(batch), batch.nbytes):
                parts.append(
                    self._attempt(runner, rest, deadline)
                    if worked
                    else BatchResult.failed(rest, self._open_error())
                )
        result = BatchResult.joined(batch, parts, self._pool)
        result.processing_time = sum(part.processing_time for part in parts)
        if not worked:
            return self._conclude(batch, result, {0: 1})
        return self.batch_failed(runner, batch, result, deadline)

    def large_batch(self, runner: PluginRunner, batch: RecordBatch, deadline: int) -> BatchResult:
        """Share a batch out among threads; counted here."""
        assert self._workers is not None
        began = time.monotonic_ns()
        count = min(self._workers.size, len(runner.plugins), len(batch))
        bounds = [len(batch) * i // count for i in range(count + 1)]
        parts = [batch[start:stop] for start, stop in itertools.pairwise(bounds)]
        with self._counted_if_interrupted(len(batch), batch.nbytes):
            results = self._workers.run(
                lambda part: _admitted(runner, part, deadline), parts, BatchResult.failed
            )
            result = BatchResult.joined(batch, results, self._pool)
        result.processing_time = (time.monotonic_ns() - began) / 1e9
        if result.error_count:
            return self.batch_failed(runner, batch, result, deadline)
        runner.learn(len(batch), sum(part.processing_time for part in results))
        runner.count(batch, result)
        return result

    # Its parts

    def _current(
        self, call: Callable[[PluginRunner], _T | None]
    ) -> tuple[_T | PluginError | None, PluginRunner]:
        """Call the runner that is in service, also when it is replaced meanwhile.

        What it raised counts as an outcome; None is that of a plugin that takes no calls.
        """
        outcome: _T | PluginError | None
        while True:
            runner = self.runner
            try:
                outcome = call(runner)
            except PluginError as error:
                outcome = error
            if outcome is not None or self.runner is runner:
                return outcome, runner

    @contextmanager
    def _counted_if_interrupted(self, records: int, size: int) -> Iterator[None]:
        """What is interrupted by more than the error of a record has failed."""
        try:
            yield
        except BaseException:
            self.counters.observe(records, 0, 0, 0, records, size, 0, 0)
            raise

    @staticmethod
    def _attempt(runner: PluginRunner, batch: RecordBatch, deadline: int) -> BatchResult:
        """Part of a call that was let in; what fails as a whole fails for every record."""
        try:
            return _admitted(runner, batch, deadline)
        except Exception as error:
            return BatchResult.failed(batch, _as_plugin_error(error, runner.plugin))

    def _may_retry(self, runner: PluginRunner, error: PluginError, attempts: int) -> bool:
        """Wait before the next attempt, if there may be one."""
        if attempts > self.config.max_retries or not is_retryable(error, runner.plugin):
            return False
        return self._pause(runner, attempts, 0)

    def _pause(self, runner: PluginRunner, attempt: int, deadline: int) -> bool:
        """Wait after a failure of this runner; False if the next attempt would come too late."""
        delay = retry_delay(attempt, self.config)
        if deadline and time.monotonic_ns() + delay * 1e9 >= deadline:
            return False
        with self._lock:
            wake = self._wake
            replaced = self.runner is not runner
        if not replaced:
            wake.wait(delay)
        return not self._ending

    def _retryable(
        self, runner: PluginRunner, result: BatchResult, attempts: dict[int, int]
    ) -> list[int]:
        """The records that failed at the last attempt and may be tried again."""
        most = self.config.max_retries
        return [
            index
            for index, error in result.errors
            if 0 < attempts.get(index, 0) <= most and is_retryable(error, runner.plugin)
        ]

    def _recover(
        self,
        runner: PluginRunner,
        batch: RecordBatch,
        result: BatchResult,
        attempts: dict[int, int],
        deadline: int,
    ) -> BatchResult:
        with self._counted_if_interrupted(len(batch), batch.nbytes):
            waiting = self._retryable(runner, result, attempts)
            while waiting and self._pause(runner, attempts[waiting[0]], deadline):
                part = batch.take(waiting)
                again, runner = self._attempt_again(part, deadline)
                if again is None:  # stopped or disabled meanwhile: it stays as it is
                    break
                self.counters.count_recovery(retries=len(waiting))
                for index in waiting:
                    attempts[index] += 1
                result = self._merge(batch, result, waiting, again)
                still = set(waiting)
                waiting = [i for i in self._retryable(runner, result, attempts) if i in still]
        return self._conclude(batch, result, attempts)

    def _attempt_again(
        self, batch: RecordBatch, deadline: int
    ) -> tuple[BatchResult | None, PluginRunner]:
        try:
            outcome, runner = self._current(lambda runner: runner.attempt_batch(batch, deadline))
        except Exception as error:  # of the engine, not of a record
            runner = self.runner
            outcome = _as_plugin_error(error, runner.plugin)
        if isinstance(outcome, PluginError):
            outcome = BatchResult.failed(batch, outcome)
        return outcome, runner

    def _merge(
        self, batch: RecordBatch, result: BatchResult, indices: list[int], again: BatchResult
    ) -> BatchResult:
        merged = BatchResult.merged(batch, result, indices, again, self._pool)
        merged.processing_time = result.processing_time + again.processing_time
        return merged

    def _settle(
        self,
        record: PluginRecord,
        result: PluginResult | None,
        error: PluginError | None,
        attempts: int,
        size_in: int,
        elapsed_ns: int,
    ) -> PluginResult:
        """Count a record that needed help, and say or raise what became of it."""
        fell_back = 0
        if result is None and self._falls_back():
            with self._counted_if_interrupted(1, size_in):
                try:
                    result = self._fallback_runner.attempt_record(record)  # type: ignore[union-attr]
                    fell_back = 1
                except PluginError as second:
                    if error is not None:
                        error.add_note(f"the fallback failed, too: {second}")
        buried = 0
        try:
            if result is None:
                assert error is not None
                self._note_kinds([error])
                buried = self._bury(record, 0, error, attempts)
        finally:
            self.counters.observe(
                1,
                result is not None and result.is_success,
                result is not None and result.is_filtered,
                result is not None and result.is_skip,
                result is None and not buried,
                size_in,
                0 if result is None else _size_of(result, size_in),
                elapsed_ns,
            )
            self.counters.count_recovery(fallbacks=fell_back, dead_lettered=buried)
            self.breaker.check()
        if result is not None:
            return result
        assert error is not None
        raise error

    def _conclude(
        self, batch: RecordBatch, result: BatchResult, attempts: dict[int, int]
    ) -> BatchResult:
        """Count a batch that needed help, after the fallback had what failed."""
        fell_back = 0
        if result.error_count and self._falls_back():
            with self._counted_if_interrupted(len(batch), batch.nbytes):
                result, fell_back = self._let_fall_back(batch, result)
        self._note_kinds([error for _, error in result.errors])
        buried = 0
        try:
            if self.dead_letters is not None:
                for index, error in result.errors:
                    buried += self._bury(batch[index], index, error, attempts.get(index, 0))
        finally:
            self.counters.observe(
                len(batch),
                result.success_count,
                result.filtered_count,
                result.skipped_count,
                result.error_count - buried,
                batch.nbytes,
                result.output.nbytes,
                int(result.processing_time * 1e9),
            )
            self.counters.count_recovery(fallbacks=fell_back, dead_lettered=buried)
            self.breaker.check()
        return result

    def _let_fall_back(self, batch: RecordBatch, result: BatchResult) -> tuple[BatchResult, int]:
        """What became of it then, and how many records the fallback processed."""
        assert self._fallback_runner is not None
        first = dict(result.errors)
        indices = [index for index, _ in result.errors]
        again = self._attempt(self._fallback_runner, batch.take(indices), 0)
        result = self._merge(batch, result, indices, again)
        if again.errors:
            _logger.warning(
                "the fallback of the plugin %r failed at %d records, first with: %s",
                self.name,
                again.error_count,
                again.errors[0][1],
            )
            # What is reported is why the plugin failed, not the fallback.
            result.errors[:] = [(index, first[index]) for index, _ in result.errors]
        return result, len(again) - again.error_count

    def _bury(self, record: PluginRecord, index: int, error: PluginError, attempts: int) -> bool:
        """Hand a record to the sink of dead letters; whether there is one that accepted it."""
        return self.dead_letters is not None and self.dead_letters.deliver(
            self.name, record, index, error, attempts
        )

    def _note_kinds(self, errors: list[PluginError]) -> None:
        with self._lock:
            for error in errors:
                kind = type(error if error.__cause__ is None else error.__cause__).__name__
                self.error_kinds[kind] = self.error_kinds.get(kind, 0) + 1

    def _falls_back(self) -> bool:
        return self._fallback_runner is not None and self.config.enable_fallback

    def _open_error(self) -> CircuitOpenError:
        return CircuitOpenError(
            f"the circuit of the plugin {self.name!r} is open: too many records failed, "
            f"it is tried again in {self.breaker.retry_after:.3g} s",
            plugin=self.name,
        )

    def _circuit_changed(self, state: CircuitState) -> None:
        runner = self.runner
        runner.tripped = state is not CircuitState.CLOSED
        for plugin in runner.plugins:
            if state is CircuitState.OPEN:
                set_state(plugin, PluginState.ERROR)
            elif (
                state is CircuitState.CLOSED
                and DataFlarePlugin.get_state(plugin) is PluginState.ERROR
            ):
                set_state(plugin, PluginState.READY)

    def after_fork(self) -> None:
        """In the child of a fork, where other threads are gone."""
        self._lock = threading.RLock()
        self._wake = Event()
        self.breaker.after_fork()
        for runner in (*self._former, self.runner):
            runner.after_fork()
        if self._fallback_runner is not None:
            self._fallback_runner.after_fork()
        if self.dead_letters is not None:
            self.dead_letters.after_fork()


def each_once(plugins: Sequence[DataFlarePlugin]) -> list[DataFlarePlugin]:
    """The plugins without repetitions; two that are equal are two all the same."""
    return list({id(plugin): plugin for plugin in plugins}.values())


def _admitted(runner: PluginRunner, batch: RecordBatch, deadline: int) -> BatchResult:
    result = runner.attempt_batch(batch, deadline, True)
    assert result is not None
    return result


def _as_plugin_error(error: Exception, plugin: DataFlarePlugin) -> PluginError:
    if isinstance(error, PluginError):
        return error
    failure = PluginProcessingError(sentence_of(error), plugin=plugin_name(plugin))
    failure.__cause__ = error
    return failure


def _is_too_late(error: PluginError) -> bool:
    """Whether the record was not reached before the deadline of its batch."""
    return isinstance(error, PluginTimeoutError) and error.message == TOO_LATE


def _size_of(result: PluginResult, size_in: int) -> int:
    """Bytes that go on; the plugin can have released the view that the new value may be."""
    try:
        return size_in if result.is_skip else len(result.data or b"")
    except ValueError:
        return 0
