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
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from dataflare._backend import (
    BatchResult,
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
from dataflare.config import FailureRecoveryConfig
from dataflare.errors import CircuitOpenError, PluginError, RunnerStoppedError
from dataflare.recovery import (
    CircuitBreaker,
    DeadLetter,
    DeadLetterSink,
    is_retryable,
    retry_delay,
)
from dataflare.types import CircuitState, PluginState
from dataflare.workers import Workers, has_gil

__all__ = ["PluginService"]

_logger = logging.getLogger("dataflare.recovery")
_T = TypeVar("_T")


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
    # afterwards. What is read here without a lock is replaced as a whole.

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
        self._ending = threading.Event()
        self._fallback_runner = PluginRunner((fallback,), pool) if fallback is not None else None
        self.runner = self._make_runner(plugins)

    def _make_runner(self, plugins: Sequence[DataFlarePlugin]) -> PluginRunner:
        runner = PluginRunner(plugins, self._pool, self.counters, self)
        if self.config.batch_timeout != float("inf"):
            runner.timeout_ns = int(self.config.batch_timeout * 1e9)
        runner.shares = (
            self._workers is not None
            and len(runner.plugins) > 1
            and (runner.plugin.releases_gil or not has_gil())
        )
        return runner

    @property
    def instances(self) -> list[DataFlarePlugin]:
        """list of DataFlarePlugin: The instances, each once."""
        return list(dict.fromkeys(self.runner.plugins))

    def replace(self, plugins: Sequence[DataFlarePlugin]) -> PluginRunner:
        """Let other instances take the calls from now on.

        Returns
        -------
        PluginRunner
            The runner before, which the caller stops.
        """
        new = self._make_runner(plugins)
        new.enabled = self.runner.enabled
        old, self.runner = self.runner, new
        self.breaker.reset()
        return old

    def end(self, at_end: Callable[[], object]) -> None:
        """Take no more calls; waiting between attempts ends, too."""
        self._ending.set()
        self.runner.stop(at_end)

    def exclusive_times(self) -> list[tuple[str, float]]:
        """Seconds that batches spent in each plugin alone: the members of a chain, or it itself."""
        times: list[tuple[str, float]] = []
        for plugin in self.instances:
            measured = getattr(plugin, "exclusive_times", None)
            if measured is None:
                return [(plugin_name(plugin), self.counters.busy_ns / 1e9)]
            now = measured()
            times = [
                (name, elapsed + before)
                for (name, elapsed), (_, before) in zip(
                    now, times or [("", 0.0)] * len(now), strict=True
                )
            ]
        return times

    # What the runner asks

    def record_failed(
        self, record: PluginRecord, error: PluginError, elapsed_ns: int
    ) -> PluginResult:
        """Try again, let the fallback have it, or raise for good; counted here."""
        result = None
        attempts = 1
        while self._may_retry(error, attempts):
            attempts += 1
            began = time.monotonic_ns()
            try:
                result = self._current(lambda runner: runner.attempt_record(record))
                break
            except PluginError as again:
                error = again
            finally:
                elapsed_ns += time.monotonic_ns() - began
        return self._settle(record, result, error, attempts, elapsed_ns)

    def record_refused(self, record: PluginRecord) -> PluginResult:
        """The circuit is open: probe it if it is time, else let the fallback have the record."""
        if not self.breaker.try_probe():
            return self._settle(record, None, self._open_error(), 0, 0)
        began = time.monotonic_ns()
        worked = False
        try:
            result = self._current(lambda runner: runner.attempt_record(record))
            worked = True
        except RunnerStoppedError:
            raise
        except PluginError as error:
            return self._settle(record, None, error, 1, time.monotonic_ns() - began)
        finally:
            self.breaker.probe_ended(worked)
        return self._settle(record, result, None, 1, time.monotonic_ns() - began)

    def batch_failed(self, batch: RecordBatch, result: BatchResult) -> BatchResult:
        """Try what failed again, let the fallback have it, bury the rest; counted here."""
        attempts = dict.fromkeys((index for index, _ in result.errors), 1)
        waiting = self._retryable(result, attempts)
        while waiting and self._pause(min(attempts[index] for index in waiting)):
            self.counters.count_recovery(retries=len(waiting))
            for index in waiting:
                attempts[index] += 1
            part = batch.take(waiting)
            again = self._attempt_batch(part)
            result = self._merge(batch, result, waiting, again)
            waiting = self._retryable(result, attempts, set(waiting))
        return self._conclude(batch, result, attempts)

    def batch_refused(self, batch: RecordBatch) -> BatchResult:
        """The circuit is open: probe it with the first record if it is time."""
        if len(batch) and self.breaker.try_probe():
            worked = False
            head = batch[:1]
            try:
                probe = self._attempt_batch(head)
                worked = not probe.errors
            finally:
                self.breaker.probe_ended(worked)
            if len(batch) == 1:
                return self._conclude(batch, probe, {0: 1})
            first = self._conclude(head, probe, {0: 1})
            rest = self.runner.process_batch(batch[1:])
            result = BatchResult.joined(batch, [first, rest], self._pool)
            result.processing_time = first.processing_time + rest.processing_time
            return result
        return self._conclude(batch, BatchResult.failed(batch, self._open_error()), {})

    def large_batch(self, batch: RecordBatch) -> BatchResult:
        """Share a batch out among threads; counted here."""
        assert self._workers is not None
        began = time.monotonic_ns()
        runner = self.runner
        deadline = began + runner.timeout_ns if runner.timeout_ns else 0
        count = min(self._workers.size, len(runner.plugins), len(batch))
        bounds = [len(batch) * i // count for i in range(count + 1)]
        parts = [batch[start:stop] for start, stop in itertools.pairwise(bounds)]
        results = self._workers.run(
            lambda part: self._current(lambda current: current.attempt_batch(part, deadline)),
            parts,
            BatchResult.failed,
        )
        result = BatchResult.joined(batch, results, self._pool)
        result.processing_time = (time.monotonic_ns() - began) / 1e9
        runner.learn(len(batch), sum(part.processing_time for part in results))
        if result.errors:
            return self.batch_failed(batch, result)
        runner.count(batch, result)
        return result

    # Its parts

    def _current(self, call: Callable[[PluginRunner], _T]) -> _T:
        """Call the runner that is in service, also when it is replaced meanwhile."""
        while True:
            runner = self.runner
            try:
                return call(runner)
            except RunnerStoppedError:
                if self.runner is runner:
                    raise

    def _attempt_batch(self, batch: RecordBatch) -> BatchResult:
        try:
            return self._current(lambda runner: runner.attempt_batch(batch))
        except PluginError as error:  # stopped or disabled meanwhile
            return BatchResult.failed(batch, error)

    def _may_retry(self, error: PluginError, attempts: int) -> bool:
        if attempts > self.config.max_retries or not is_retryable(error, self.runner.plugin):
            return False
        if not self._pause(attempts):
            return False
        self.counters.count_recovery(retries=1)
        return True

    def _retryable(
        self, result: BatchResult, attempts: dict[int, int], among: set[int] | None = None
    ) -> list[int]:
        """The records that failed and may be tried again."""
        return [
            index
            for index, error in result.errors
            if (among is None or index in among)
            and attempts[index] <= self.config.max_retries
            and is_retryable(error, self.runner.plugin)
        ]

    def _pause(self, attempt: int) -> bool:
        """Wait before the next attempt; False if the plugin is going out of service."""
        return not self._ending.wait(retry_delay(attempt, self.config))

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
        elapsed_ns: int,
    ) -> PluginResult:
        """Count a record that needed help, and say or raise what became of it."""
        fell_back = 0
        if result is None and self._falls_back():
            try:
                result = self._fallback_runner.attempt_record(record)  # type: ignore[union-attr]
                fell_back = 1
            except PluginError as second:
                if error is not None:
                    error.add_note(f"the fallback failed, too: {second}")
        size_in, size_out = len(record.value), 0
        if result is not None and result.data is not None:
            size_out = len(result.data)
        elif result is not None and result.is_skip:
            size_out = size_in
        buried = 0
        try:
            if result is None:
                assert error is not None
                self._note_kind(error)
                buried = self._bury([DeadLetter(self.name, record, 0, error, attempts)])
        finally:
            self.counters.observe(
                1,
                result is not None and result.is_success,
                result is not None and result.is_filtered,
                result is not None and result.is_skip,
                result is None and not buried,
                size_in,
                size_out,
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
        if result.errors and self._falls_back():
            indices = [index for index, _ in result.errors]
            again = self._fallback_runner.attempt_batch(  # type: ignore[union-attr]
                batch.take(indices)
            )
            fell_back = len(again) - again.error_count
            first = dict(result.errors)
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
        for _, error in result.errors:
            self._note_kind(error)
        buried = 0
        try:
            buried = self._bury(
                DeadLetter(self.name, batch[index], index, error, attempts.get(index, 0))
                for index, error in result.errors
            )
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

    def _bury(self, letters: Iterable[DeadLetter]) -> int:
        """Hand letters to the sink of dead letters; how many it accepted."""
        return 0 if self.dead_letters is None else self.dead_letters.deliver(letters)

    def _note_kind(self, error: PluginError) -> None:
        kind = type(error.__cause__ or error).__name__
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
        self._ending = threading.Event()
        self.breaker.after_fork()
        self.runner.after_fork()
        if self._fallback_runner is not None:
            self._fallback_runner.after_fork()
        if self.dead_letters is not None:
            self.dead_letters.after_fork()
