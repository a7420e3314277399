"""One plugin in service: lets calls in, runs and measures them, and keeps its state true.

Design
------
a. **A slot is the right to run an instance.** There are as many slots as calls may run at once: one
   of a single instance, one each of several, or several of an instance that is thread-safe. A call
   that finds none free waits, and gets the next one that is left: first come, first served.
b. **The GIL guards the slots**, which are plain C. So a call that finds one free takes no lock.
   Whatever may run other code, such as making an object, comes before the look that decides.
c. **Nothing here decides what a failure means.** A call that failed, that is refused because the
   circuit is open, or a batch that is worth sharing out goes to the `supervisor`. The runner is
   held meanwhile: it does not end before the supervisor is done.
d. **No call waits for itself.** A plugin that calls itself keeps its slot. A call that would wait
   for threads that all wait for this one fails instead. Who is inside a call never waits for the
   end of another: whoever leaves last sees to that.
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
from contextlib import ExitStack

from dataflare.errors import (
    PluginDisabledError, PluginError, PluginProcessingError, RunnerStoppedError
)
from dataflare.types import PluginState

cdef extern from *:
    """
    static __thread int df_depth;
    static void df_depth_add(int count) { df_depth += count; }
    """
    int df_depth                         # calls and holds of this thread, of any runner
    void df_depth_add(int count) noexcept

cdef object ERROR = PluginState.ERROR
cdef object READY = PluginState.READY
cdef object RUNNING = PluginState.RUNNING

cdef Py_ssize_t NEVER = (<size_t>-1) >> 1
cdef Py_ssize_t FIRST_GUESS = 4096       # records, before anything was measured
cdef int64_t WORTH_SHARING = 200_000     # nanoseconds; the round trip of a thread takes 50,000
cdef Py_ssize_t FEW = 16                 # records: what so few take is mostly the call's own time


cdef struct Slot:
    # Invariants: a slot with depth > 0 is held by the thread `owner`, that many calls deep. One
    # that is not free belongs to `owner`, who may not have entered yet.
    void *plugin                         # owner: PluginRunner.plugins
    unsigned long owner
    Py_ssize_t depth


@cython.final
cdef class Waiter:
    """A call that waits for a slot, or for the end."""
    cdef object lock                     # acquired until the wait is over
    cdef Py_ssize_t slot                 # the one it got, or -1
    cdef unsigned long thread

    def __cinit__(self):
        self.lock = threading.Lock()
        self.lock.acquire()
        self.slot = -1
        self.thread = PyThread_get_thread_ident()


cdef dict WAITING = {}                   # thread -> the runner of which it waits for a slot
cdef unsigned long long visits = 0


def is_inside():
    """Whether this thread is inside a call of a plugin, of any manager."""
    return df_depth > 0


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
        What is asked about everything that is not plain success; see `Supervisor` in the pure
        twin. What it returns is the outcome, and it counts it.

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
    # `held` has a thread once for each call that it has with the supervisor.
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
    cdef list at_end                     # called when the last call of a stopped runner ends
    cdef list held
    cdef unsigned long long visit        # number of the last search for a deadlock
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
        self.at_end = []
        self.held = []
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

    cdef Py_ssize_t enter(self, bint admitted) except -2:
        """Wait for a slot and mark its plugin running; `leave` must follow.

        Returns
        -------
        slot : int
            -1: not let in, because the plugin is stopped or disabled; who is admitted already is
            let in all the same.
        """
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Py_ssize_t slot
        if not admitted and (self.stopped or not self.enabled):
            return -1
        slot = self.slot_of(me)
        if slot < 0:
            slot = self.take() if self.vacant else self.wait(admitted)
            if slot < 0:
                return -1
            self.slots[slot].owner = me
        self.slots[slot].depth += 1
        df_depth_add(1)
        (<DataFlarePlugin>self.slots[slot].plugin).state = RUNNING
        return slot

    cdef Py_ssize_t take(self) noexcept:
        self.vacant -= 1
        return self.free[self.vacant]

    cdef Py_ssize_t slot_of(self, unsigned long thread) noexcept:
        """The slot that a thread holds, or -1."""
        cdef Py_ssize_t i
        if self.vacant < self.size:
            for i in range(self.size):
                if self.slots[i].depth and self.slots[i].owner == thread:
                    return i
        return -1

    def refuse(self):
        """Raise why a call is not let in."""
        name = plugin_name(self.plugins[0])
        if self.stopped:
            raise RunnerStoppedError("the plugin is not in service any more", plugin=name)
        raise PluginDisabledError(f"the plugin {name!r} is disabled", plugin=name)

    cdef Py_ssize_t wait(self, bint admitted) except -2:
        """Wait in line for a slot; -1: not let in any more."""
        global visits
        cdef Waiter waiter = Waiter()
        while True:
            if not admitted and (self.stopped or not self.enabled):
                return -1
            if self.vacant:
                return self.take()
            visits += 1
            if self.is_blocked(waiter.thread, visits):
                raise PluginProcessingError(
                    "the plugin is held by calls that wait for this one",
                    plugin=plugin_name(self.plugins[0]), retryable=True,
                )
            self.waiting.append(waiter)
            WAITING[waiter.thread] = self
            try:
                waiter.lock.acquire()
            except BaseException:  # Ctrl-C
                if waiter in self.waiting:
                    self.waiting.remove(waiter)
                    WAITING.pop(waiter.thread, None)
                elif waiter.slot >= 0:
                    self.vacate(waiter.slot)
                raise
            if waiter.slot >= 0:
                if self.enabled or admitted:
                    return waiter.slot
                self.vacate(waiter.slot)
                return -1
            # Woken without a slot: the plugin was stopped.

    cdef bint is_blocked(self, unsigned long me, unsigned long long visit) noexcept:
        """Whether no slot will be left unless `me` leaves one: all that hold them wait for it."""
        cdef Py_ssize_t i
        if self.visit == visit:
            return True
        self.visit = visit
        for i in range(self.size):
            if self.slots[i].owner == me:
                continue
            runner = WAITING.get(self.slots[i].owner)
            if runner is None or not (<PluginRunner>runner).is_blocked(me, visit):
                return False
        return True

    cdef int leave(self, Py_ssize_t slot) except -1:
        cdef DataFlarePlugin plugin = <DataFlarePlugin>self.slots[slot].plugin
        self.slots[slot].depth -= 1
        df_depth_add(-1)
        if self.slots[slot].depth:
            return 0
        if (self.distinct or self.vacant == self.size - 1) and plugin.state is RUNNING:
            plugin.state = ERROR if self.tripped else READY
        return self.vacate(slot)

    cdef int vacate(self, Py_ssize_t slot) except -1:
        """Nobody holds this slot any more: hand it to who waited longest."""
        cdef Waiter waiter
        self.slots[slot].depth = 0
        if self.waiting:
            waiter = self.waiting.popleft()
            WAITING.pop(waiter.thread, None)
            self.slots[slot].owner = waiter.thread
            waiter.slot = slot
            waiter.lock.release()
            return 0
        self.free[self.vacant] = slot
        self.vacant += 1
        return self.end_if_idle() if self.stopped else 0

    cdef int hold(self) except -1:
        """This call goes to the supervisor; `let_go` must follow."""
        self.held.append(PyThread_get_thread_ident())
        df_depth_add(1)
        return 0

    cdef int let_go(self) except -1:
        self.held.remove(PyThread_get_thread_ident())
        df_depth_add(-1)
        return self.end_if_idle() if self.stopped else 0

    cdef bint is_idle(self) noexcept:
        return self.vacant == self.size and not self.held

    cdef int end_if_idle(self) except -1:
        """If this was the last call of a stopped runner, tell who waits for that."""
        if not self.is_idle():
            return 0
        while self.watching:
            (<Waiter>self.watching.pop()).lock.release()
        if self.at_end:
            with ExitStack() as stack:
                while self.at_end:
                    stack.callback(self.at_end.pop())
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
        if self.tripped and self.enabled and not self.stopped and self.supervisor is not None:
            self.hold()
            try:
                return self.supervisor.record_refused(record, size_in)
            finally:
                self.let_go()
        slot = self.enter(False)
        if slot < 0:
            self.refuse()
        started = nanoseconds()
        try:
            result = self.outcome(slot, record)
        except BaseException as error:
            now = nanoseconds()
            if self.supervisor is None or not isinstance(error, PluginError):
                self.counters.c_observe(1, 0, 0, 0, 1, size_in, 0, now - started, now)
                self.leave(slot)
                raise
            self.hold()
            try:
                self.leave(slot)
                return self.supervisor.record_failed(self, record, error, size_in, now - started)
            finally:
                self.let_go()
        now = nanoseconds()
        if result.status == DF_SUCCESS:
            size_out = size_of(result)
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

        Returns
        -------
        PluginResult or None
            None if the plugin is stopped or disabled.

        Raises
        ------
        PluginError
            The record failed.
        """
        cdef Py_ssize_t slot = self.enter(False)
        if slot < 0:
            return None
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
        cdef int64_t now, deadline = self.timeout_at()
        cdef Py_ssize_t length = batch.columns.length
        cdef bint shared = length >= self.large and df_depth == 0
        if ((self.tripped or shared) and self.enabled and not self.stopped
                and self.supervisor is not None):
            self.hold()
            try:
                if self.tripped:
                    return self.supervisor.batch_refused(self, batch, deadline)
                return self.supervisor.large_batch(self, batch, deadline)
            finally:
                self.let_go()
        result = self.attempt(batch, deadline, False, True, &now)
        if result is None:
            self.refuse()
        if self.sharing and length:
            self.learn(length, result.processing_time)
        if result.counts[DF_ERROR] and self.supervisor is not None:
            try:
                return self.supervisor.batch_failed(self, batch, result, deadline)
            finally:
                self.let_go()
        self.count_at(batch, result, now)
        return result

    def attempt_batch(self, RecordBatch batch not None, int64_t deadline=0, bint admitted=False):
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
        cdef int64_t now
        return self.attempt(batch, deadline, admitted, False, &now)

    cdef int64_t timeout_at(self) noexcept:
        return nanoseconds() + self.timeout_ns if self.timeout_ns else 0

    cdef BatchResult attempt(self, RecordBatch batch, int64_t deadline, bint admitted,
                             bint whole, int64_t *now):
        """A `whole` call is counted if it is interrupted, and holds the runner if records failed.

        Returns None if it is not let in.
        """
        cdef BatchResult result
        cdef Py_ssize_t slot = self.enter(admitted)
        if slot < 0:
            return None
        cdef int64_t started = nanoseconds()
        try:
            result = run(<object>self.slots[slot].plugin, batch, self.pool, deadline)
        except BaseException:
            now[0] = nanoseconds()
            if whole:
                self.counters.c_observe(batch.columns.length, 0, 0, 0, batch.columns.length,
                                        batch.size_in_bytes(), 0, now[0] - started, now[0])
            self.leave(slot)
            raise
        now[0] = nanoseconds()
        result.processing_time = (now[0] - started) / 1e9
        if whole and result.counts[DF_ERROR] and self.supervisor is not None:
            self.hold()
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
        if records < FEW and seconds * 1e9 < WORTH_SHARING:
            return
        self.large = max(<Py_ssize_t>(WORTH_SHARING * 1e-9 * records / max(seconds, least)), 2)

    def stop(self, at_end=None):
        """Take the plugin out of service.

        Returns once no call is running; inside a call of any plugin, at once.

        Parameters
        ----------
        at_end : callable, optional
            Called when no call is running any more.
        """
        cdef Waiter waiter
        self.stopped = True
        while self.waiting:
            waiter = self.waiting.popleft()
            WAITING.pop(waiter.thread, None)
            waiter.lock.release()
        if df_depth:
            if at_end is not None:
                self.at_end.append(at_end)
            self.end_if_idle()
            return
        try:
            while not self.is_idle():
                waiter = Waiter()
                if self.is_idle():
                    break
                self.watching.append(waiter)
                waiter.lock.acquire()
        except BaseException:  # Ctrl-C: whoever leaves last sees to the end
            if at_end is not None:
                self.at_end.append(at_end)
            self.end_if_idle()
            raise
        if at_end is not None:
            at_end()

    def after_fork(self):
        """In the child of a fork: calls of other threads are gone, and with them their slots."""
        cdef Py_ssize_t i
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef DataFlarePlugin plugin
        mine = []
        WAITING.clear()
        self.waiting.clear()
        self.watching = []
        self.held = [thread for thread in self.held if thread == me]
        self.vacant = 0
        for i in range(self.size - 1, -1, -1):
            plugin = <DataFlarePlugin>self.slots[i].plugin
            if self.slots[i].depth and self.slots[i].owner == me:
                mine.append(plugin)
                continue
            self.slots[i].depth = 0
            self.free[self.vacant] = i
            self.vacant += 1
            if plugin.state is RUNNING:
                plugin.state = ERROR if self.tripped else READY
        for plugin in mine:
            plugin.state = RUNNING


cdef int64_t size_of(PluginResult result):
    """Bytes of a new value; the plugin can have released the view that it may be."""
    try:
        return len(result.data)
    except ValueError:
        return 0
