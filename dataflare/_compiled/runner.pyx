"""One plugin in service: lets calls in, runs and measures them, and keeps its state true.

Design
------
a. **A slot is the right to run an instance.** There are as many slots as calls may run at once: one
   of a single instance, one each of several, or several of an instance that is thread-safe. A call
   that finds none free waits, and gets the next one that is left: first come, first served.
b. **The GIL guards the slots**, which are plain C. So a call that finds one free takes no lock.
c. **Nothing here decides what a failure means.** A call that failed, that is refused because the
   circuit is open, or a batch that is worth sharing out goes to the `supervisor`.
"""
cimport cython
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t

from dataflare._compiled.batch cimport RecordBatch
from dataflare._compiled.clock cimport nanoseconds
from dataflare._compiled.counters cimport PluginCounters
from dataflare._compiled.loop cimport run, run_one
from dataflare._compiled.output cimport plugin_name
from dataflare._compiled.plugin cimport DataFlarePlugin
from dataflare._compiled.pool cimport DEBUG, MemoryPool
from dataflare._compiled.record cimport PluginRecord, PluginResult
from dataflare._compiled.result cimport BatchResult
from dataflare._compiled.types cimport DF_ERROR, DF_FILTERED, DF_SKIP, DF_SUCCESS

import threading
from collections import deque

from dataflare.errors import (
    PluginDisabledError, PluginError, PluginProcessingError, RunnerStoppedError
)
from dataflare.types import PluginState

cdef object READY = PluginState.READY
cdef object RUNNING = PluginState.RUNNING

cdef Py_ssize_t NEVER = (<size_t>-1) >> 1
cdef Py_ssize_t FIRST_GUESS = 4096       # records, before anything was measured
cdef int64_t WORTH_SHARING = 200_000     # nanoseconds; the round trip of a thread takes 50,000


cdef struct Slot:
    # Invariant: a slot with depth > 0 is held by the thread `owner`, that many calls deep.
    void *plugin                         # owner: PluginRunner.plugins
    unsigned long owner
    Py_ssize_t depth


@cython.final
cdef class Waiter:
    """A call that waits for a slot."""
    cdef object lock                     # acquired until the wait is over
    cdef Py_ssize_t slot                 # the one it got, or -1

    def __cinit__(self):
        self.lock = threading.Lock()
        self.lock.acquire()
        self.slot = -1


@cython.final
cdef class PluginRunner:
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
    # Invariants: free[0:vacant] are the slots that nobody holds; while a call waits, vacant is 0.
    cdef readonly tuple plugins
    cdef readonly PluginCounters counters
    cdef public object supervisor
    cdef public bint enabled
    cdef public bint tripped
    cdef public int64_t timeout_ns
    cdef MemoryPool pool
    cdef MemoryPool guarded              # the pool in debug mode, else None: for single records
    cdef Slot *slots                     # [size]; owner: self
    cdef Py_ssize_t *free                # [size]; owner: self
    cdef Py_ssize_t size
    cdef Py_ssize_t vacant
    cdef bint distinct                   # no instance has more than one slot
    cdef bint stopped
    cdef object waiting                  # deque of Waiter, for a slot
    cdef list watching                   # of Waiter, for all slots to be vacant
    cdef object at_end                   # called when the last call of a stopped runner ends
    cdef bint sharing
    cdef Py_ssize_t large                # records from which on a batch is shared out

    def __cinit__(self, plugins, MemoryPool pool not None, PluginCounters counters=None,
                  supervisor=None):
        cdef Py_ssize_t i
        self.plugins = tuple(plugins)
        self.size = len(self.plugins)
        if not self.plugins or not all(isinstance(item, DataFlarePlugin) for item in self.plugins):
            raise TypeError("a runner takes plugins")
        self.pool = pool
        self.guarded = pool if pool.flags >= DEBUG else None
        self.counters = PluginCounters() if counters is None else counters
        self.supervisor = supervisor
        self.enabled = True
        self.waiting = deque()
        self.watching = []
        self.large = NEVER
        self.distinct = len({id(plugin) for plugin in self.plugins}) == self.size
        self.slots = <Slot *>PyMem_RawCalloc(self.size, sizeof(Slot))
        self.free = <Py_ssize_t *>PyMem_RawCalloc(self.size, sizeof(Py_ssize_t))
        if self.slots is NULL or self.free is NULL:
            raise MemoryError("no memory for a plugin's slots")
        for i in range(self.size):
            self.slots[i].plugin = <void *>self.plugins[i]
            self.free[i] = self.size - 1 - i
        self.vacant = self.size

    def __dealloc__(self):
        PyMem_RawFree(self.slots)
        PyMem_RawFree(self.free)

    @property
    def plugin(self):
        """DataFlarePlugin: The first instance."""
        return self.plugins[0]

    @property
    def running(self):
        """int: Calls that run now."""
        return self.size - self.vacant

    @property
    def shares(self):
        return self.sharing

    @shares.setter
    def shares(self, bint wanted):
        self.sharing = wanted
        self.large = FIRST_GUESS if wanted else NEVER

    cdef Py_ssize_t enter(self) except -1:
        """Wait for a slot and mark its plugin running; `leave` must follow."""
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Py_ssize_t slot = self.slot_of(me)
        if self.stopped or not self.enabled:
            self.refuse()
        if slot < 0:
            if self.vacant:
                self.vacant -= 1
                slot = self.free[self.vacant]
            else:
                slot = self.wait()
            self.slots[slot].owner = me
        self.slots[slot].depth += 1
        (<DataFlarePlugin>self.slots[slot].plugin).state = RUNNING
        return slot

    cdef Py_ssize_t slot_of(self, unsigned long thread) noexcept:
        """The slot that a thread holds, or -1."""
        cdef Py_ssize_t i
        if self.vacant < self.size:
            for i in range(self.size):
                if self.slots[i].depth and self.slots[i].owner == thread:
                    return i
        return -1

    cdef int refuse(self) except -1:
        name = plugin_name(self.plugins[0])
        if self.stopped:
            raise RunnerStoppedError("the plugin is not in service any more", plugin=name)
        raise PluginDisabledError("the plugin is disabled", plugin=name)

    cdef Py_ssize_t wait(self) except -1:
        """Wait in line for a slot."""
        cdef Waiter waiter = Waiter()
        self.waiting.append(waiter)
        try:
            waiter.lock.acquire()
        except BaseException:  # Ctrl-C
            if waiter in self.waiting:
                self.waiting.remove(waiter)
            elif waiter.slot >= 0:
                self.vacate(waiter.slot)
            raise
        if waiter.slot < 0:  # woken without one: the plugin was stopped
            self.refuse()
        if not self.enabled:
            self.vacate(waiter.slot)
            self.refuse()
        return waiter.slot

    cdef int leave(self, Py_ssize_t slot) except -1:
        cdef DataFlarePlugin plugin = <DataFlarePlugin>self.slots[slot].plugin
        self.slots[slot].depth -= 1
        if self.slots[slot].depth:
            return 0
        if (self.distinct or self.vacant == self.size - 1) and plugin.state is RUNNING:
            plugin.state = READY
        self.vacate(slot)
        return 0

    cdef int vacate(self, Py_ssize_t slot) except -1:
        """Nobody holds this slot any more: hand it to who waited longest."""
        cdef Waiter waiter
        self.slots[slot].depth = 0
        if self.waiting:
            waiter = self.waiting.popleft()
            waiter.slot = slot
            waiter.lock.release()
            return 0
        self.free[self.vacant] = slot
        self.vacant += 1
        if self.stopped and self.vacant == self.size:
            for waiter in self.watching:
                waiter.lock.release()
            self.watching = []
            if self.at_end is not None:
                at_end, self.at_end = self.at_end, None
                at_end()
        return 0

    def process_record(self, PluginRecord record not None):
        """Run the plugin on one record, and count it.

        Raises
        ------
        PluginError
            The record failed.
        """
        cdef PluginResult result
        cdef Py_ssize_t slot
        # Asked for now, because the plugin can release the view that the value may be.
        cdef int64_t started, now, size_in = len(record.value), size_out = 0
        if self.tripped and not self.stopped:
            return self.supervisor.record_refused(record)
        slot = self.enter()
        started = nanoseconds()
        try:
            result = self.outcome(slot, record)
        except BaseException as error:
            now = nanoseconds()
            self.leave(slot)
            if self.supervisor is not None and isinstance(error, PluginError):
                return self.supervisor.record_failed(record, error, now - started)
            self.counters.c_observe(1, 0, 0, 0, 1, size_in, 0, now - started, now)
            raise
        now = nanoseconds()
        if result.status == DF_SUCCESS:
            size_out = len(result.data)
        elif result.status == DF_SKIP:
            size_out = size_in
        self.counters.c_observe(
            1, result.status == DF_SUCCESS, result.status == DF_FILTERED,
            result.status == DF_SKIP, 0, size_in, size_out, now - started, now
        )
        self.leave(slot)
        return result

    cdef PluginResult outcome(self, Py_ssize_t slot, PluginRecord record):
        cdef PluginResult result = run_one(<object>self.slots[slot].plugin, record,
                                           self.guarded)
        if result.status == DF_ERROR:
            raise PluginProcessingError(
                result.message, plugin=plugin_name(<object>self.slots[slot].plugin),
                code=result.code
            )
        return result

    def attempt_record(self, PluginRecord record not None):
        """Run the plugin on one record, whatever the circuit says, and count nothing.

        Raises
        ------
        PluginError
            The record failed.
        """
        cdef Py_ssize_t slot = self.enter()
        try:
            return self.outcome(slot, record)
        finally:
            self.leave(slot)

    def process_batch(self, RecordBatch batch not None):
        """Run the plugin on a batch, and count it.

        Returns
        -------
        BatchResult
        """
        cdef BatchResult result
        cdef int64_t now
        cdef Py_ssize_t length = batch.columns.length
        if self.tripped and not self.stopped:
            return self.supervisor.batch_refused(batch)
        if length >= self.large:
            return self.supervisor.large_batch(batch)
        result = self.attempt(batch, self.timeout_at(), &now)
        if result.counts[DF_ERROR] and self.supervisor is not None:
            return self.supervisor.batch_failed(batch, result)
        self.count_at(batch, result, now)
        if self.sharing and length:
            self.learn(length, result.processing_time)
        return result

    def attempt_batch(self, RecordBatch batch not None, int64_t deadline=0):
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
        cdef int64_t now
        return self.attempt(batch, deadline or self.timeout_at(), &now)

    cdef int64_t timeout_at(self) noexcept:
        return nanoseconds() + self.timeout_ns if self.timeout_ns else 0

    cdef BatchResult attempt(self, RecordBatch batch, int64_t deadline, int64_t *now):
        cdef BatchResult result
        cdef Py_ssize_t slot = self.enter()
        cdef int64_t started = nanoseconds()
        try:
            result = run(<object>self.slots[slot].plugin, batch, self.pool, deadline)
        except BaseException:
            now[0] = nanoseconds()
            self.leave(slot)
            self.counters.c_observe(batch.columns.length, 0, 0, 0, batch.columns.length,
                                    batch.size_in_bytes(), 0, now[0] - started, now[0])
            raise
        now[0] = nanoseconds()
        result.processing_time = (now[0] - started) / 1e9
        self.leave(slot)
        return result

    def count(self, RecordBatch batch not None, BatchResult result not None):
        """Count what became of a batch."""
        self.count_at(batch, result, nanoseconds())

    cdef int count_at(self, RecordBatch batch, BatchResult result, int64_t now) except -1:
        self.counters.c_observe(
            batch.columns.length, result.counts[DF_SUCCESS], result.counts[DF_FILTERED],
            result.counts[DF_SKIP], result.counts[DF_ERROR], batch.size_in_bytes(),
            result.output.size_in_bytes(), <int64_t>(result.processing_time * 1e9), now
        )
        return 0

    def learn(self, Py_ssize_t records, double seconds):
        """Note how long so many records take one thread: it says which batches are large."""
        cdef double least = 1e-9
        self.large = max(<Py_ssize_t>(WORTH_SHARING * 1e-9 * records / max(seconds, least)), 2)

    def stop(self, at_end=None):
        """Take the plugin out of service.

        Returns once no call is running; in the plugin's own call, at once.

        Parameters
        ----------
        at_end : callable, optional
            Called when no call is running any more.
        """
        cdef Waiter waiter
        self.stopped = True
        while self.waiting:
            (<Waiter>self.waiting.popleft()).lock.release()
        if self.slot_of(PyThread_get_thread_ident()) >= 0:
            self.at_end = at_end
            return
        while self.vacant < self.size:
            waiter = Waiter()
            self.watching.append(waiter)
            try:
                waiter.lock.acquire()
            except BaseException:  # Ctrl-C: whoever leaves last sees to the end
                if self.vacant < self.size:
                    self.at_end = at_end
                elif at_end is not None:
                    at_end()
                raise
        if at_end is not None:
            at_end()

    def after_fork(self):
        """In the child of a fork: calls of other threads are gone, and with them their slots."""
        cdef Py_ssize_t i
        cdef unsigned long me = PyThread_get_thread_ident()
        self.waiting.clear()
        self.watching = []
        self.vacant = 0
        for i in range(self.size - 1, -1, -1):
            if not (self.slots[i].depth and self.slots[i].owner == me):
                self.slots[i].depth = 0
                self.free[self.vacant] = i
                self.vacant += 1
