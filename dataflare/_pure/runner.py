"""One plugin in service: lets calls in, runs and measures them, and keeps its state true.

Design
------
a. **A slot is the right to run an instance.** There are as many slots as calls may run at once: one
   of a single instance, one each of several, or several of an instance that is thread-safe. A call
   that finds none free waits, and gets the next one that is left: first come, first served.
b. **Nothing here decides what a failure means.** A call that failed, that is refused because the
   circuit is open, or a batch that is worth sharing out goes to the `supervisor`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, Protocol

from dataflare._pure.batch import RecordBatch
from dataflare._pure.counters import PluginCounters
from dataflare._pure.loop import run_batch, run_record
from dataflare._pure.plugin import DataFlarePlugin, plugin_name, set_state
from dataflare._pure.pool import MemoryPool
from dataflare._pure.record import PluginRecord, PluginResult, require
from dataflare._pure.result import BatchResult
from dataflare.errors import (
    PluginDisabledError,
    PluginError,
    PluginProcessingError,
    RunnerStoppedError,
)
from dataflare.types import PluginState

_FIRST_GUESS = 4096  # records, before anything was measured
_WORTH_SHARING = 200e-6  # seconds of work; a round trip of a thread takes 50e-6


class Supervisor(Protocol):
    """What a runner asks about everything that is not plain success."""

    def record_failed(
        self, record: PluginRecord, error: PluginError, elapsed_ns: int
    ) -> PluginResult: ...
    def record_refused(self, record: PluginRecord) -> PluginResult: ...
    def batch_failed(self, batch: RecordBatch, result: BatchResult) -> BatchResult: ...
    def batch_refused(self, batch: RecordBatch) -> BatchResult: ...
    def large_batch(self, batch: RecordBatch) -> BatchResult: ...


class _Slot:
    """The right to run one instance; held by the thread `owner`, `depth` calls deep."""

    __slots__ = ("depth", "owner", "plugin")

    def __init__(self, plugin: DataFlarePlugin) -> None:
        self.plugin = plugin
        self.owner = 0
        self.depth = 0


class _Waiter:
    """A call that waits for a slot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.slot: _Slot | None = None


class PluginRunner:
    """Runs a plugin for a manager.

    Parameters
    ----------
    plugins : sequence of DataFlarePlugin
        Initialised. As many calls as there are entries run at once; an instance that is in it more
        than once is thread-safe.
    pool : MemoryPool
        Where output is written.
    counters : PluginCounters, optional
        Those of the plugin that this one replaces.
    supervisor : object, optional
        Has ``record_failed(record, error, elapsed_ns)``, ``batch_failed(batch, result)``,
        ``record_refused(record)``, ``batch_refused(batch)`` and ``large_batch(batch)``; what these
        return is the outcome, and they count it.

    Attributes
    ----------
    enabled : bool
    tripped : bool
        Whether the circuit is open: calls are refused.
    shares : bool
        Whether large batches go to the supervisor.
    timeout_ns : int
        Nanoseconds after which a batch begins no further record; 0 for none.

    Notes
    -----
    A plugin that calls itself through its manager does not wait for itself.
    """

    # Invariant: while a call waits, no slot is free. `_lock` guards the slots and both queues.

    def __init__(
        self,
        plugins: Sequence[DataFlarePlugin],
        pool: MemoryPool,
        counters: PluginCounters | None = None,
        supervisor: Supervisor | None = None,
    ) -> None:
        self.plugins = tuple(plugins)
        if not self.plugins or not all(isinstance(item, DataFlarePlugin) for item in self.plugins):
            raise TypeError("a runner takes plugins")
        self.counters = PluginCounters() if counters is None else counters
        self.supervisor = supervisor
        self.enabled = True
        self.tripped = False
        self.timeout_ns = 0
        self._pool = pool
        self._lock = threading.Lock()
        self._slots = [_Slot(plugin) for plugin in self.plugins]
        self._free = self._slots[::-1]
        self._distinct = len({id(plugin) for plugin in self.plugins}) == len(self.plugins)
        self._stopped = False
        self._waiting: deque[_Waiter] = deque()
        self._watching: list[_Waiter] = []
        self._at_end: Callable[[], object] | None = None
        self._large = sys.maxsize

    @property
    def plugin(self) -> DataFlarePlugin:
        """DataFlarePlugin: The first instance."""
        return self.plugins[0]

    @property
    def running(self) -> int:
        """int: Calls that run now."""
        return len(self._slots) - len(self._free)

    @property
    def shares(self) -> bool:
        return self._large != sys.maxsize

    @shares.setter
    def shares(self, wanted: bool) -> None:
        self._large = _FIRST_GUESS if wanted else sys.maxsize

    @contextmanager
    def _entered(self) -> Iterator[_Slot]:
        """Wait for a slot and mark its plugin running."""
        me = threading.get_ident()
        slot = self._slot_of(me) or self._wait()
        if self._stopped or not self.enabled:
            if not slot.depth:
                self._vacate(slot)
            self._refuse()
        slot.owner = me
        slot.depth += 1
        set_state(slot.plugin, PluginState.RUNNING)
        try:
            yield slot
        finally:
            slot.depth -= 1
            if slot.depth == 0:
                alone = self._distinct or self.running == 1
                # Not by get_state, which a plugin may override.
                if alone and slot.plugin._dataflare_state is PluginState.RUNNING:
                    set_state(slot.plugin, PluginState.READY)
                self._vacate(slot)

    def _slot_of(self, thread: int) -> _Slot | None:
        """The slot that a thread holds."""
        for slot in self._slots:
            if slot.depth and slot.owner == thread:
                return slot
        return None

    def _refuse(self) -> NoReturn:
        name = plugin_name(self.plugin)
        if self._stopped:
            raise RunnerStoppedError("the plugin is not in service any more", plugin=name)
        raise PluginDisabledError("the plugin is disabled", plugin=name)

    def _wait(self) -> _Slot:
        """Take a slot, or wait in line for one."""
        with self._lock:
            if self._stopped:
                self._refuse()
            if self._free:
                return self._free.pop()
            waiter = _Waiter()
            self._waiting.append(waiter)
        try:
            waiter.lock.acquire()
        except BaseException:  # Ctrl-C
            with self._lock:
                queued = waiter in self._waiting
                if queued:
                    self._waiting.remove(waiter)
            if not queued and waiter.slot is not None:
                self._vacate(waiter.slot)
            raise
        if waiter.slot is None:  # woken without one: the plugin was stopped
            self._refuse()
        return waiter.slot

    def _vacate(self, slot: _Slot) -> None:
        """Nobody holds this slot any more: hand it to who waited longest."""
        at_end = None
        with self._lock:
            if self._waiting:
                waiter = self._waiting.popleft()
                waiter.slot = slot
                waiter.lock.release()
                return
            self._free.append(slot)
            if self._stopped and len(self._free) == len(self._slots):
                for watcher in self._watching:
                    watcher.lock.release()
                self._watching = []
                at_end, self._at_end = self._at_end, None
        if at_end is not None:
            at_end()

    def process_record(self, record: PluginRecord) -> PluginResult:
        """Run the plugin on one record, and count it.

        Raises
        ------
        PluginError
            The record failed.
        """
        require(record, PluginRecord, "record")
        if self.tripped and not self._stopped and self.supervisor is not None:
            return self.supervisor.record_refused(record)
        size = len(record.value)  # the plugin can release the view that the value may be
        with self._entered() as slot:
            started = time.monotonic_ns()
            try:
                result = _outcome(slot.plugin, record)
            except BaseException as error:
                elapsed = time.monotonic_ns() - started
                if self.supervisor is None or not isinstance(error, PluginError):
                    self.counters.observe(1, 0, 0, 0, 1, size, 0, elapsed)
                    raise
                failure = error
            else:
                self._count_record(size, result, time.monotonic_ns() - started)
                return result
        assert self.supervisor is not None
        return self.supervisor.record_failed(record, failure, elapsed)

    def attempt_record(self, record: PluginRecord) -> PluginResult:
        """Run the plugin on one record, whatever the circuit says, and count nothing.

        Raises
        ------
        PluginError
            The record failed.
        """
        require(record, PluginRecord, "record")
        with self._entered() as slot:
            return _outcome(slot.plugin, record)

    def _count_record(self, size_in: int, result: PluginResult, elapsed_ns: int) -> None:
        size_out = size_in
        success = filtered = skipped = 0
        if result.is_success:
            success, size_out = 1, len(result.data or b"")
        elif result.is_filtered:
            filtered, size_out = 1, 0
        else:
            skipped = 1
        self.counters.observe(1, success, filtered, skipped, 0, size_in, size_out, elapsed_ns)

    def process_batch(self, batch: RecordBatch) -> BatchResult:
        """Run the plugin on a batch, and count it.

        Returns
        -------
        BatchResult
        """
        require(batch, RecordBatch, "batch")
        if self.supervisor is not None:
            if self.tripped and not self._stopped:
                return self.supervisor.batch_refused(batch)
            if len(batch) >= self._large:
                return self.supervisor.large_batch(batch)
        result = self.attempt_batch(batch)
        if result.errors and self.supervisor is not None:
            return self.supervisor.batch_failed(batch, result)
        self.count(batch, result)
        if self.shares and len(batch):
            self.learn(len(batch), result.processing_time)
        return result

    def attempt_batch(self, batch: RecordBatch, deadline: int = 0) -> BatchResult:
        """Run the plugin on a batch, whatever the circuit says, and count nothing.

        Parameters
        ----------
        batch : RecordBatch
        deadline : int
            What `time.monotonic_ns` says then; 0: `timeout_ns` from now.

        Returns
        -------
        BatchResult
        """
        require(batch, RecordBatch, "batch")
        if not deadline and self.timeout_ns:
            deadline = time.monotonic_ns() + self.timeout_ns
        with self._entered() as slot:
            started = time.monotonic_ns()
            try:
                timeout = (deadline - started) / 1e9 if deadline else None
                result = run_batch(slot.plugin, batch, self._pool, timeout)
            except BaseException:
                elapsed = time.monotonic_ns() - started
                self.counters.observe(len(batch), 0, 0, 0, len(batch), batch.nbytes, 0, elapsed)
                raise
            result.processing_time = (time.monotonic_ns() - started) / 1e9
            return result

    def count(self, batch: RecordBatch, result: BatchResult) -> None:
        """Count what became of a batch."""
        self.counters.observe(
            len(batch),
            result.success_count,
            result.filtered_count,
            result.skipped_count,
            result.error_count,
            batch.nbytes,
            result.output.nbytes,
            int(result.processing_time * 1e9),
        )

    def learn(self, records: int, seconds: float) -> None:
        """Note how long so many records take one thread: it says which batches are large."""
        self._large = max(int(_WORTH_SHARING * records / max(seconds, 1e-9)), 2)

    def stop(self, at_end: Callable[[], object] | None = None) -> None:
        """Take the plugin out of service.

        Returns once no call is running; in the plugin's own call, at once.

        Parameters
        ----------
        at_end : callable, optional
            Called when no call is running any more.
        """
        inside = self._slot_of(threading.get_ident()) is not None
        with self._lock:
            self._stopped = True
            while self._waiting:
                self._waiting.popleft().lock.release()
            if inside:
                self._at_end = at_end
                return
        while True:
            with self._lock:
                if len(self._free) == len(self._slots):
                    break
                watcher = _Waiter()
                self._watching.append(watcher)
            try:
                watcher.lock.acquire()
            except BaseException:  # Ctrl-C: whoever leaves last sees to the end
                with self._lock:
                    ended = len(self._free) == len(self._slots)
                    self._at_end = None if ended else at_end
                if ended and at_end is not None:
                    at_end()
                raise
        if at_end is not None:
            at_end()

    def after_fork(self) -> None:
        """In the child of a fork: calls of other threads are gone, and with them their slots."""
        me = threading.get_ident()
        self._lock = threading.Lock()
        self._waiting.clear()
        self._watching = []
        for slot in self._slots:
            if slot.owner != me:
                slot.depth = 0
        self._free = [slot for slot in reversed(self._slots) if not slot.depth]


def _outcome(plugin: DataFlarePlugin, record: PluginRecord) -> PluginResult:
    result = run_record(plugin, record)
    if result.is_error:
        raise PluginProcessingError(
            str(result.message), plugin=plugin_name(plugin), code=result.code
        )
    return result
