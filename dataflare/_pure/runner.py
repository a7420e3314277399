"""One plugin in service: lets calls in, runs and measures them, and keeps its state true.

Design
------
a. **A slot is the right to run an instance.** There are as many slots as calls may run at once: one
   of a single instance, one each of several, or several of an instance that is thread-safe. A call
   that finds none free waits, and gets the next one that is left: first come, first served.
b. **Nothing here decides what a failure means.** A call that failed, that is refused because the
   circuit is open, or a batch that is worth sharing out goes to the `supervisor`. The runner is
   held meanwhile: it does not end before the supervisor is done.
c. **No call waits for itself.** A plugin that calls itself keeps its slot. A call that would wait
   for threads that all wait for this one fails instead. Who is inside a call never waits for the
   end of another: whoever leaves last sees to that.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
_FEW = 16  # records: what so few take is mostly the call's own time


class Supervisor(Protocol):
    """What a runner asks about everything that is not plain success.

    What it returns is the outcome, and it counts it. `size` is that of the record's value, and
    `deadline` what `time.monotonic_ns` says when a batch begins no further record, 0 for never.
    """

    def record_failed(
        self,
        runner: PluginRunner,
        record: PluginRecord,
        error: PluginError,
        size: int,
        elapsed_ns: int,
    ) -> PluginResult: ...
    def record_refused(self, record: PluginRecord, size: int) -> PluginResult: ...
    def batch_failed(
        self, runner: PluginRunner, batch: RecordBatch, result: BatchResult, deadline: int
    ) -> BatchResult: ...
    def batch_refused(
        self, runner: PluginRunner, batch: RecordBatch, deadline: int
    ) -> BatchResult: ...
    def large_batch(
        self, runner: PluginRunner, batch: RecordBatch, deadline: int
    ) -> BatchResult: ...


class _Slot:
    """The right to run one instance.

    With depth > 0 it is held by the thread `owner`, that many calls deep. One that is not free
    belongs to `owner`, who may not have entered yet.
    """

    __slots__ = ("depth", "owner", "plugin")

    def __init__(self, plugin: DataFlarePlugin) -> None:
        self.plugin = plugin
        self.owner = 0
        self.depth = 0


class _Waiter:
    """A call that waits for a slot, or for the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.slot: _Slot | None = None
        self.thread = threading.get_ident()


class _Inside(threading.local):
    depth = 0


_inside = _Inside()  # calls and holds of this thread, of any runner
_waiting: dict[int, PluginRunner] = {}  # thread -> the runner of which it waits for a slot
_lock = threading.RLock()  # guards the slots and queues of all runners, and is held for moments


def is_inside() -> bool:
    """Whether this thread is inside a call of a plugin, of any manager."""
    return _inside.depth > 0


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork)


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
        What is asked about everything that is not plain success; see `Supervisor`.

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

    # Invariants: while a call waits, no slot is free. `_held` has a thread once for each call that
    # it has with the supervisor.

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
        self._slots = [_Slot(plugin) for plugin in self.plugins]
        self._free = self._slots[::-1]
        self._distinct = len({id(plugin) for plugin in self.plugins}) == len(self.plugins)
        self._stopped = False
        self._waiting: deque[_Waiter] = deque()
        self._watching: list[_Waiter] = []
        self._at_end: list[Callable[[], object]] = []
        self._held: list[int] = []
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

    def _enter(self, admitted: bool = False) -> _Slot | None:
        """Wait for a slot and mark its plugin running; `_leave` must follow.

        None: not let in, because the plugin is stopped or disabled; who is admitted already is let
        in all the same.
        """
        me = threading.get_ident()
        if not admitted and (self._stopped or not self.enabled):
            return None
        slot = self._slot_of(me) or self._wait(admitted)
        if slot is None:
            return None
        slot.owner = me
        slot.depth += 1
        _inside.depth += 1
        set_state(slot.plugin, PluginState.RUNNING)
        return slot

    def _leave(self, slot: _Slot) -> None:
        slot.depth -= 1
        _inside.depth -= 1
        if slot.depth == 0:
            if self._distinct or self.running == 1:
                self._at_rest(slot.plugin)
            self._vacate(slot)

    def _at_rest(self, plugin: DataFlarePlugin) -> None:
        # Not by get_state, which a plugin may override.
        if plugin._dataflare_state is PluginState.RUNNING:
            set_state(plugin, PluginState.ERROR if self.tripped else PluginState.READY)

    def _slot_of(self, thread: int) -> _Slot | None:
        """The slot that a thread holds."""
        for slot in self._slots:
            if slot.depth and slot.owner == thread:
                return slot
        return None

    def refuse(self) -> NoReturn:
        """Raise why a call is not let in."""
        name = plugin_name(self.plugin)
        if self._stopped:
            raise RunnerStoppedError("the plugin is not in service any more", plugin=name)
        raise PluginDisabledError(f"the plugin {name!r} is disabled", plugin=name)

    def _wait(self, admitted: bool) -> _Slot | None:
        """Take a slot, or wait in line for one; None: not let in any more."""
        while True:
            with _lock:
                if not admitted and (self._stopped or not self.enabled):
                    return None
                if self._free:
                    slot = self._free.pop()
                    slot.owner = threading.get_ident()
                    return slot
                waiter = _Waiter()
                blocked = self._is_blocked(waiter.thread, set())
                if not blocked:
                    self._waiting.append(waiter)
                    _waiting[waiter.thread] = self
            if blocked:
                raise PluginProcessingError(
                    "the plugin is held by calls that wait for this one",
                    plugin=plugin_name(self.plugin),
                    retryable=True,
                )
            try:
                waiter.lock.acquire()
            except BaseException:  # Ctrl-C
                with _lock:
                    queued = waiter in self._waiting
                    if queued:
                        self._waiting.remove(waiter)
                        _waiting.pop(waiter.thread, None)
                if not queued and waiter.slot is not None:
                    self._vacate(waiter.slot)
                raise
            if waiter.slot is not None:
                if self.enabled or admitted:
                    return waiter.slot
                self._vacate(waiter.slot)
                return None
            # Woken without a slot: the plugin was stopped.

    def _is_blocked(self, me: int, seen: set[PluginRunner]) -> bool:
        """Whether no slot will be left unless `me` leaves one: all that hold them wait for it."""
        if self in seen:
            return True
        seen.add(self)
        for slot in self._slots:
            if slot.owner != me:
                runner = _waiting.get(slot.owner)
                if runner is None or not runner._is_blocked(me, seen):
                    return False
        return True

    def _vacate(self, slot: _Slot) -> None:
        """Nobody holds this slot any more: hand it to who waited longest."""
        with _lock:
            slot.depth = 0
            if self._waiting:
                waiter = self._waiting.popleft()
                _waiting.pop(waiter.thread, None)
                slot.owner = waiter.thread
                waiter.slot = slot
                waiter.lock.release()
                return
            self._free.append(slot)
        if self._stopped:
            self._end_if_idle()

    def _hold(self) -> None:
        """This call goes to the supervisor; `_let_go` must follow."""
        self._held.append(threading.get_ident())
        _inside.depth += 1

    def _let_go(self) -> None:
        with _lock:
            self._held.remove(threading.get_ident())
        _inside.depth -= 1
        if self._stopped:
            self._end_if_idle()

    def _is_idle(self) -> bool:
        return len(self._free) == len(self._slots) and not self._held

    def _end_if_idle(self) -> None:
        """If this was the last call of a stopped runner, tell who waits for that."""
        with ExitStack() as stack, _lock:
            if not self._is_idle():
                return
            while self._watching:
                self._watching.pop().lock.release()
            while self._at_end:
                stack.callback(self._at_end.pop())

    def _is_let_in(self) -> bool:
        """Hold the runner for a call that the supervisor begins, unless it takes no calls."""
        with _lock:
            if self._stopped or not self.enabled:
                return False
            self._hold()
            return True

    def process_record(self, record: PluginRecord) -> PluginResult:
        """Run the plugin on one record, and count it.

        Raises
        ------
        PluginError
            The record failed.
        """
        require(record, PluginRecord, "record")
        size = len(record.value)  # the plugin can release the view that the value may be
        supervisor = self.supervisor
        if self.tripped and supervisor is not None and self._is_let_in():
            try:
                return supervisor.record_refused(record, size)
            finally:
                self._let_go()
        slot = self._enter()
        if slot is None:
            self.refuse()
        started = time.monotonic_ns()
        try:
            result = _outcome(slot.plugin, record)
        except BaseException as error:
            elapsed = time.monotonic_ns() - started
            if supervisor is None or not isinstance(error, PluginError):
                self.counters.observe(1, 0, 0, 0, 1, size, 0, elapsed)
                self._leave(slot)
                raise
            self._hold()
            try:
                self._leave(slot)
                return supervisor.record_failed(self, record, error, size, elapsed)
            finally:
                self._let_go()
        try:
            self._count_record(size, result, time.monotonic_ns() - started)
        finally:
            self._leave(slot)
        return result

    def attempt_record(self, record: PluginRecord) -> PluginResult | None:
        """Run the plugin on one record, whatever the circuit says, and count nothing.

        Returns
        -------
        PluginResult or None
            None if the plugin is stopped or disabled.

        Raises
        ------
        PluginError
            The record failed.
        """
        require(record, PluginRecord, "record")
        slot = self._enter()
        if slot is None:
            return None
        try:
            return _outcome(slot.plugin, record)
        finally:
            self._leave(slot)

    def _count_record(self, size_in: int, result: PluginResult, elapsed_ns: int) -> None:
        size_out = size_in
        success = filtered = skipped = 0
        if result.is_success:
            success, size_out = 1, _size_of(result)
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
        deadline = time.monotonic_ns() + self.timeout_ns if self.timeout_ns else 0
        supervisor = self.supervisor
        shared = len(batch) >= self._large and not is_inside()
        if (self.tripped or shared) and supervisor is not None and self._is_let_in():
            try:
                if self.tripped:
                    return supervisor.batch_refused(self, batch, deadline)
                return supervisor.large_batch(self, batch, deadline)
            finally:
                self._let_go()
        result = self._attempt(batch, deadline, whole=True)
        if result is None:
            self.refuse()
        if self.shares and len(batch):
            self.learn(len(batch), result.processing_time)
        if result.error_count and supervisor is not None:
            try:
                return supervisor.batch_failed(self, batch, result, deadline)
            finally:
                self._let_go()
        self.count(batch, result)
        return result

    def attempt_batch(
        self, batch: RecordBatch, deadline: int = 0, admitted: bool = False
    ) -> BatchResult | None:
        """Run the plugin on a batch, whatever the circuit says, and count nothing.

        Parameters
        ----------
        batch : RecordBatch
        deadline : int
            What `time.monotonic_ns` says then; 0 for none.
        admitted : bool
            Part of a call that was let in: it ends, also if the plugin is stopped or disabled.

        Returns
        -------
        BatchResult or None
            None if the plugin is stopped or disabled.
        """
        require(batch, RecordBatch, "batch")
        return self._attempt(batch, deadline, admitted)

    def _attempt(
        self, batch: RecordBatch, deadline: int, admitted: bool = False, whole: bool = False
    ) -> BatchResult | None:
        """A `whole` call is counted if it is interrupted, and holds the runner if records failed.

        Returns None if it is not let in.
        """
        slot = self._enter(admitted)
        if slot is None:
            return None
        started = time.monotonic_ns()
        try:
            timeout = (deadline - started) / 1e9 if deadline else None
            result = run_batch(slot.plugin, batch, self._pool, timeout)
            result.processing_time = (time.monotonic_ns() - started) / 1e9
        except BaseException:
            if whole:
                elapsed = time.monotonic_ns() - started
                self.counters.observe(len(batch), 0, 0, 0, len(batch), batch.nbytes, 0, elapsed)
            self._leave(slot)
            raise
        if whole and result.error_count and self.supervisor is not None:
            self._hold()
        self._leave(slot)
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
        if records < _FEW and seconds < _WORTH_SHARING:
            return
        self._large = max(int(_WORTH_SHARING * records / max(seconds, 1e-9)), 2)

    def stop(self, at_end: Callable[[], object] | None = None) -> None:
        """Take the plugin out of service.

        Returns once no call is running; inside a call of any plugin, at once.

        Parameters
        ----------
        at_end : callable, optional
            Called when no call is running any more.
        """
        with _lock:
            self._stopped = True
            while self._waiting:
                waiter = self._waiting.popleft()
                _waiting.pop(waiter.thread, None)
                waiter.lock.release()
            if is_inside() and at_end is not None:
                self._at_end.append(at_end)
        if is_inside():
            self._end_if_idle()
            return
        try:
            while True:
                with _lock:
                    if self._is_idle():
                        break
                    waiter = _Waiter()
                    self._watching.append(waiter)
                waiter.lock.acquire()
        except BaseException:  # Ctrl-C: whoever leaves last sees to the end
            if at_end is not None:
                self._at_end.append(at_end)
            self._end_if_idle()
            raise
        if at_end is not None:
            at_end()

    def after_fork(self) -> None:
        """In the child of a fork: calls of other threads are gone, and with them their slots."""
        me = threading.get_ident()
        self._waiting.clear()
        self._watching = []
        self._held = [thread for thread in self._held if thread == me]
        mine = [slot for slot in self._slots if slot.depth and slot.owner == me]
        self._free = [slot for slot in reversed(self._slots) if slot not in mine]
        for slot in self._free:
            slot.depth = 0
            self._at_rest(slot.plugin)
        for slot in mine:
            set_state(slot.plugin, PluginState.RUNNING)


def _size_of(result: PluginResult) -> int:
    """Bytes of a new value; the plugin can have released the view that it may be."""
    try:
        return len(result.data or b"")
    except ValueError:
        return 0


def _outcome(plugin: DataFlarePlugin, record: PluginRecord) -> PluginResult:
    result = run_record(plugin, record)
    if result.is_error:
        raise PluginProcessingError(
            str(result.message), plugin=plugin_name(plugin), code=result.code
        )
    return result
